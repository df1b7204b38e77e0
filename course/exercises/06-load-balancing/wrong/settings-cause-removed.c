/* The cause was taken away: that is no cure. my_cure is to leave what made the router collapse,
   and add to it. */
static void my_collapse(hmoe_config *config) {
    config->ent_coef = 0.1;
}

static void my_cure(hmoe_config *config) {
    config->ent_coef = 0, config->lb_coef = 1;
}
