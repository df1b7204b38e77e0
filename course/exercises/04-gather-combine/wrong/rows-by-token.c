/* Your function reads rows as if they were in the order of the tokens. They are in the order of
   the experts. routes->row has the row of each token and slot. */
static void hmoe__combine_forward(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                                  const hmoe_routes *routes, int N, int C) {
    int next = 0;
    for (int t = 0; t < N; t++) {
        for (int i = 0; i < C; i++) y[t * C + i] = x[t * C + i];
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s, row = next++;
            for (int i = 0; i < C; i++) y[t * C + i] += routes->gate[at] * rows[row * C + i];
        }
    }
}
