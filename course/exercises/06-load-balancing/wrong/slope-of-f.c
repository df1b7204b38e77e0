/* Your function changes slope->f. f counts choices. A small change of P does not change a choice,
   therefore f is a constant and has no derivative here. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->f[e];
        slope->f[e] += coef * x->E * x->Phat[e];
    }
    return loss;
}
