/* The router is missing: E C numbers in each layer. Every token uses the whole router. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C) + 2 * C + c->V * C + 3 * C * widths;
}
