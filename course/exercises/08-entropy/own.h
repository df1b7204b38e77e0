/* The entropy's loss of one layer: E times the mean entropy of the tokens. Returns the loss. Adds
   coef times its derivative with respect to each mean of *x to that mean's place in *slope. */
static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope);
