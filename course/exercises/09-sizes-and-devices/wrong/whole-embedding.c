/* Your function counts the whole embedding. A token reads one row of it, C numbers. (But a token
   uses all V rows of the head.) */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C + c->E * C) + C + 2 * c->V * C + 3 * C * widths;
}
