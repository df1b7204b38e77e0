/* The norms were forgotten: two of C numbers in each layer, and one at the end. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + c->E * C) + C + c->V * C + 3 * C * widths;
}
