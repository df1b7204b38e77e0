/* Your search for the largest number starts at 0 and not at x[0]. If all numbers are far below 0,
   every exp is 0, and 0 / 0 is NaN. */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real max = 0, sum = 0;
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) {
        x[i] = exp(scale * (x[i] - max));
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
    if (lse) *lse = scale * max + log(sum);
}
