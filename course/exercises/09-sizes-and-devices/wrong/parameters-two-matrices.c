/* Your function counts two matrices for each expert. SwiGLU has three: W1, W3 and W2. */
static double my_parameters(const hmoe_config *config) {
    double C = config->C, widths = 0;
    for (int e = 0; e < config->E; e++) widths += config->H[e];
    return 2 * config->V * C + C + config->L * (4 * C * C + 2 * C + config->E * C + 2 * C * widths);
}
