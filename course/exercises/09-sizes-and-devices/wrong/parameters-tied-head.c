/* Your function counts one matrix of V x C. Embedding and head are two matrices here. */
static double my_parameters(const hmoe_config *config) {
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return config->V * C + C + config->L * (4 * C * C + 2 * C + config->E * C + 3 * C * widths);
}
