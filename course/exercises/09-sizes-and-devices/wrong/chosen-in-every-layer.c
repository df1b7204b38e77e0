/* Your function multiplies the widths with L. `widths` is already the sum over all layers. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C + c->E * C) + 2 * C + c->V * C + 3 * C * widths * c->L;
}
