/* The factor coef is missing in the slope. The total loss contains coef * L_pp, therefore its
   derivative has the factor coef, too. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += x->E * M;
    }
    return loss;
}
