/* Your function counts two matrices for each chosen expert. SwiGLU has three, W1, W3 and W2, of C
   H[e] numbers each. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C + c->E * C) + 2 * C + c->V * C + 2 * C * widths;
}
