/* Your function returns the loss, but adds nothing to slope->entropy. Such a loss is reported, but
   changes no router. */
static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    (void)coef, (void)slope;
    return x->E * x->entropy;
}
