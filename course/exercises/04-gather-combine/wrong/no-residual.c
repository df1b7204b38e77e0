/* x is missing: y = x + the sum over the experts. Without x, a layer does not pass on its input.
   */
static void hmoe__combine_forward(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                                  const hmoe_routes *routes, int N, int C) {
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < C; i++) y[t * C + i] = 0;
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s, row = routes->row[at];
            for (int i = 0; i < C; i++) y[t * C + i] += routes->gate[at] * rows[row * C + i];
        }
    }
}
