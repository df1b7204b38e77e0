/* The sum is not divided by C. rms(x) contains the mean of the squares and not their sum. */
static void hmoe__rmsnorm_backward(hmoe_real *dx, hmoe_real *dw, hmoe_real *dy,
                                   const hmoe_real *x, const hmoe_real *w, const hmoe_real *rrms,
                                   int N, int C) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *x_t = x + t * C, *dy_t = dy + t * C;
        hmoe_real r = rrms[t], mean = 0;
        for (int i = 0; i < C; i++) mean += w[i] * dy_t[i] * x_t[i] * r;
        for (int i = 0; i < C; i++) {
            dx[t * C + i] += r * (w[i] * dy_t[i] - x_t[i] * r * mean);
            dw[i] += dy_t[i] * x_t[i] * r;
        }
    }
}
