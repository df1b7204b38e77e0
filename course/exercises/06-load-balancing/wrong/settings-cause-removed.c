/* my_cure removed the cause. It must keep the settings that made the router collapse, and add
   another setting. */
static void my_collapse(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->loss_coef[HMOE_ENT] = 0, config->loss_coef[HMOE_LB] = 1;
}
