/* lse lacks the number that you subtracted before exp: the log of the sum of exp(scale x) is scale
   max + log(your sum). */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real max = x[0], sum = 0;
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) {
        x[i] = exp(scale * (x[i] - max));
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
    if (lse) *lse = log(sum);
}
