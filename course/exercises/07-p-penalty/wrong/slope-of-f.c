/* Your function changes slope->f. f counts choices. A small change of P does not change a choice,
   therefore f is a constant and has no derivative here. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
        slope->f[e] += coef * x->E * x->Phat[e] * x->H[e] / x->mean_H;
    }
    return loss;
}
