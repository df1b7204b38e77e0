/* Your function counts three matrices for attention. It has four of C x C: q, k, v and the output.
   */
static double my_parameters(const hmoe_config *config) {
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return 2 * config->V * C + C + config->L * (3 * C * C + 2 * C + config->E * C + 3 * C * widths);
}
