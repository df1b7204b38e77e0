/* The factor coef is missing in the slope. The total loss contains coef * L_lb, therefore its
   derivative has the factor coef, too. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] += x->E * x->f[e];
    }
    return loss;
}
