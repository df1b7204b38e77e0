/* The factor E is missing, in the loss and in its slope. With this factor the loss of even routing
   is K for every E. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->f[e] * x->Phat[e];
        slope->Phat[e] += coef * x->f[e];
    }
    return loss;
}
