/* Your slope contains Phat_e: this is the derivative with respect to f_e. But f counts choices and
   is a constant. The derivative with respect to Phat_e is E f_e. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->Phat[e];
    }
    return loss;
}
