/* The experts are even, but the model learns nothing: the balance is much larger than the cross-
   entropy. Try a tenth of the coefficient. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_LB] = 300;
}
