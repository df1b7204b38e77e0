/* Your function reads gate[] with the number of the row as index. The index of gate[] is token and
   slot; the index of row_gate[] is the row. */
static void hmoe__combine_forward(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                                  const hmoe_routes *routes, int N, int C) {
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < C; i++) y[t * C + i] = x[t * C + i];
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s, row = routes->row[at];
            for (int i = 0; i < C; i++) y[t * C + i] += routes->gate[row] * rows[row * C + i];
        }
    }
}
