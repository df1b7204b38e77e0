/* Your function gives the whole budget to the experts. First subtract embedding, head, attention,
   norms and router. */
static void my_widths(hmoe_config *config, double budget) {
    double C = config->C, L = config->L, E = config->E;
    double rest = budget;
    int pair = (int)(rest / (3 * C * L) / (E / 2)), half = (int)E / 2;
    for (int i = 0; i < half; i++) {
        config->H[i] = pair / 4 + i;
        config->H[config->E - 1 - i] = pair - config->H[i];
    }
}
