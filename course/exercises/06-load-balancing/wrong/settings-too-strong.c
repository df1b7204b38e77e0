/* The experts are even, and the model does not learn any more: the balance drowns the language.
   A coefficient is a compromise; try a tenth. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_LB] = 300;
}
