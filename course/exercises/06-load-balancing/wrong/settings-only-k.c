/* One expert a token, or another gate, starves some experts but need not kill half of them.
   Which loss rewards a router for being sure of itself, whoever it is sure of? */
static void my_collapse(hmoe_config *config) {
    config->K = 1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_LB] = 1;
}
