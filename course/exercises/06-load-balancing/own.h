/* Load balancing of one layer: E sum_e f_e Phat_e. Returns the loss. Adds coef times its derivative
   with respect to each mean of *x to that mean's place in *slope. */
static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope);

/* Makes a router collapse. config: 8 experts, Top-2, all coefficients of the losses are 0. Change
   anything in it except E. At the end of training, at least half of the experts of one layer must
   each have less than 1 % of the tokens. */
static void my_collapse(hmoe_config *config);

/* Cures the router. config: the result of my_collapse. Add a setting. Then every expert of every
   layer must have at least a quarter of an even share of the tokens, and the cross-entropy must be
   lower than before by at least 0.05. Do not remove the cause of the collapse. */
static void my_cure(hmoe_config *config);
