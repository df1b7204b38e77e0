/* Your function takes the rows of c to be n apart. They are c_stride apart, because c is a part of
   a wider matrix. */
static void hmoe__tile(hmoe_real *c, const hmoe_real *d, size_t c_stride,
                       const hmoe_real *const *row, size_t a_step, const hmoe_real *panel, int m,
                       int n, int K, const int nr) {
    hmoe_real sum[HMOE__MR][HMOE__NR];
    for (int i = 0; i < HMOE__MR; i++)
        for (int j = 0; j < nr; j++) sum[i][j] = 0;
    for (int k = 0; k < K; k++)
        for (int i = 0; i < HMOE__MR; i++)
            for (int j = 0; j < nr; j++) sum[i][j] += row[i][k * a_step] * panel[k * nr + j];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) c[i * n + j] = sum[i][j] + (d ? d[i * c_stride + j] : 0);
}
