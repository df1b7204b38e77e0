/* scale is missing: multiply each number with it before exp. (Attention passes 1 / sqrt(hs) as
   scale.) */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) {
        x[i] = exp(x[i] - max);
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
    if (lse) *lse = max + log(sum);
}
