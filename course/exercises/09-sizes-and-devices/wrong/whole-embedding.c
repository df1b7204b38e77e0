/* The whole embedding was counted: a token reads a single row of it, C numbers. (The head is
   another matter: all V rows are multiplied.) */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C + c->E * C) + C + 2 * c->V * C + 3 * C * widths;
}
