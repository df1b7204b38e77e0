/* Your function gives the whole budget to the experts of one layer. Every layer has its own
   experts. */
static void my_widths(hmoe_config *config, double budget) {
    double C = config->C, L = config->L, E = config->E;
    double rest = budget - (2 * config->V + 1) * C - L * C * (4 * C + 2 + E);
    int pair = (int)(rest / (3 * C) / (E / 2)), half = (int)E / 2;
    for (int i = 0; i < half; i++) {
        config->H[i] = pair / 4 + i;
        config->H[config->E - 1 - i] = pair - config->H[i];
    }
}
