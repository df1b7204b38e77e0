/* The factor coef is missing in the slope. The total loss contains coef * L_ent, therefore its
   derivative has the factor coef, too. */
static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    slope->entropy += x->E + 0 * coef;
    return x->E * x->entropy;
}
