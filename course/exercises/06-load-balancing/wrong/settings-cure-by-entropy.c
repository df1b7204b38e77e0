/* my_cure uses a larger coefficient of the entropy's loss. This loss makes each token's choice
   *surer*. It does not depend on how many tokens choose the same expert. This is the cause, not a
   cure. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.5;
}
