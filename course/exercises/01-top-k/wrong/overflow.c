/* Your function takes exp of x itself. From about 710 on (88 in float) this is infinite, and
   infinity / infinity is NaN. Subtract the largest x first: this does not change the quotient. */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real sum = 0;
    for (int i = 0; i < n; i++) {
        x[i] = exp(scale * x[i]);
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
    if (lse) *lse = log(sum);
}
