/* Your function returns the loss, but adds nothing to slope->Phat. Such a loss is reported, but
   changes no router. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        (void)coef, (void)slope;
    }
    return loss;
}
