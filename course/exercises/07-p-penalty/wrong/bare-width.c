/* M contains the bare width H[e], as HMoE prints it. Divide it by mean(H): then equal widths give
   load balancing, and the coefficient keeps its meaning if the widths grow. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e];
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}
