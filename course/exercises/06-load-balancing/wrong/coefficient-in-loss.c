/* The returned loss has the factor coef. hmoe__losses multiplies the returned value with coef.
   Only the slope has this factor here. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->f[e];
    }
    return coef * loss;
}
