/* my_cure uses the z-loss. It keeps logits small and does not depend on how many tokens choose an
   expert. A loss that does contains f. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_Z] = 0.1;
}
