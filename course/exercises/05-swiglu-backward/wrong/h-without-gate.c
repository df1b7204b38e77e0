/* h must become g h: the gradient of W2 is dy^T (g h), and g enters it only here. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h, const hmoe_real *dh,
                                           hmoe_real g, int H) {
    hmoe_real dg = 0;
    for (int i = 0; i < H; i++) {
        hmoe_real a = u[i], b = u[H + i], s = hmoe__sigmoid(a), d = g * dh[i];
        dg += dh[i] * a * s * b;
        u[i] = d * b * s * (1 + a * (1 - s));
        u[H + i] = d * a * s;
        h[i] = a * s * b;
    }
    return dg;
}
