/* The P-Penalty of one layer: E sum_e M_e Phat_e, M_e = f_e H[e] / mean(H). Returns the loss. Adds
   coef times its derivative with respect to each mean of *x to that mean's place in *slope. */
static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope);
