/* The norm after the last layer is missing: C numbers. */
static double my_parameters(const hmoe_config *config) {
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return 2 * config->V * C + config->L * (4 * C * C + 2 * C + config->E * C + 3 * C * widths);
}
