/* The norms are missing: each layer has two of C numbers, and one more follows the last layer. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + c->E * C) + C + c->V * C + 3 * C * widths;
}
