/* Your function replaces slope->Phat. It must add to it, because other losses have added their
   slopes there. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] = coef * x->E * M;
    }
    return loss;
}
