/* Your function reads a again after it has overwritten u[i] with the gradient. Read a and b before
   you write to u. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h, const hmoe_real *dh,
                                           hmoe_real g, int H) {
    hmoe_real dg = 0;
    for (int i = 0; i < H; i++) {
        hmoe_real a = u[i], b = u[H + i], s = hmoe__sigmoid(a), d = g * dh[i];
        dg += dh[i] * a * s * b;
        u[i] = d * b * s * (1 + a * (1 - s));
        u[H + i] = d * u[i] * s;
        h[i] = g * a * s * b;
    }
    return dg;
}
