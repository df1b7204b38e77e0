/* The factor E is missing, in the loss and in its slope: L_ent is E times the mean entropy. */
static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    slope->entropy += coef;
    return x->entropy;
}
