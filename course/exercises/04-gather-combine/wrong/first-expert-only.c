/* Your function adds only the first expert of each token. A token has count[t] experts. */
static void hmoe__combine_forward(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                                  const hmoe_routes *routes, int N, int C) {
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < C; i++) y[t * C + i] = x[t * C + i];
        for (int s = 0; s < 1; s++) {
            int at = t * routes->slots + s, row = routes->row[at];
            for (int i = 0; i < C; i++) y[t * C + i] += routes->gate[at] * rows[row * C + i];
        }
    }
}
