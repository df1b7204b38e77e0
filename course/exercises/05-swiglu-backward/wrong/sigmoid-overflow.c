/* Your sigmoid is exp(a) / (1 + exp(a)). If a is large, this is infinity / infinity, which is NaN.
   1 / (1 + exp(-a)) is right for every a. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h, const hmoe_real *dh,
                                           hmoe_real g, int H) {
    hmoe_real dg = 0;
    for (int i = 0; i < H; i++) {
        hmoe_real a = u[i], b = u[H + i], s = exp(a) / (1 + exp(a)), d = g * dh[i];
        dg += dh[i] * a * s * b;
        u[i] = d * b * s * (1 + a * (1 - s));
        u[H + i] = d * a * s;
        h[i] = g * a * s * b;
    }
    return dg;
}
