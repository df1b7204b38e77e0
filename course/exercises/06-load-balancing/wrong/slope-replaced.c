/* Your function replaces slope->Phat. It must add to it, because other losses have added their
   slopes there. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] = coef * x->E * x->f[e];
    }
    return loss;
}
