/* The product rule gives two terms for the derivative of silu(a) = a s: s + a s (1 - s). The
   second is missing. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h, const hmoe_real *dh,
                                           hmoe_real g, int H) {
    hmoe_real dg = 0;
    for (int i = 0; i < H; i++) {
        hmoe_real a = u[i], b = u[H + i], s = hmoe__sigmoid(a), d = g * dh[i];
        dg += dh[i] * a * s * b;
        u[i] = d * b * s;
        u[H + i] = d * a * s;
        h[i] = g * a * s * b;
    }
    return dg;
}
