/* Your function reads the panel with n numbers per row. A row of the panel has nr numbers, with
   zeros at its end; n is only the number of columns that are stored. */
static void hmoe__tile(hmoe_real *c, const hmoe_real *d, size_t c_stride,
                       const hmoe_real *const *row, size_t a_step, const hmoe_real *panel, int m,
                       int n, int K, const int nr) {
    hmoe_real sum[HMOE__MR][HMOE__NR];
    for (int i = 0; i < HMOE__MR; i++)
        for (int j = 0; j < nr; j++) sum[i][j] = 0;
    for (int k = 0; k < K; k++)
        for (int i = 0; i < HMOE__MR; i++)
            for (int j = 0; j < nr; j++)
                sum[i][j] += row[i][k * a_step] * panel[k * n + (j < n ? j : 0)];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) c[i * c_stride + j] = sum[i][j] + (d ? d[i * c_stride + j] : 0);
}
