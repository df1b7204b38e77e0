/* More of the entropy's loss was meant to cure. It makes each token's choice *sharper*, and
   says nothing about which experts all tokens together choose: it is the disease. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.5;
}
