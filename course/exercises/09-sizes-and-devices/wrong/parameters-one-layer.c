/* Your function counts the experts of one layer. Each layer has its own experts. */
static double my_parameters(const hmoe_config *config) {
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return 2 * config->V * C + C + config->L * (4 * C * C + 2 * C + config->E * C) + 3 * C * widths;
}
