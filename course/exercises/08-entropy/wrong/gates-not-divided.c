/* Your function treats the gates as raw although norm is 1. Then g = P / (sum over S of P), and
   each gate depends on every chosen P: dP = (dg - sum of dg g) / (sum of P). */
static void hmoe__router_backward(const hmoe_routes *routes, const hmoe_real *dgate,
                                  const hmoe_real *dP_all, double d_entropy, double d_lse2,
                                  int norm, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + t * E;
        hmoe_real *r = routes->logits + t * E, dP[HMOE_MAX_EXPERTS];
        hmoe_real mean = 0, lse = routes->lse[t];
        for (int e = 0; e < E; e++) dP[e] = dP_all[e];
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s;
            hmoe_real dg = dgate[routes->row[at]];
            dP[routes->expert[at]] += dg;
        }
        for (int e = 0; e < E; e++) mean += dP[e] * P[e];
        for (int e = 0; e < E; e++)
            r[e] = P[e] * (dP[e] - mean + d_lse2 * 2 * lse
                           - d_entropy * (r[e] - lse + routes->entropy[t]));
    }
}
