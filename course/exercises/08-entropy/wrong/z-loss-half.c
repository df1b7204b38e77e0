/* A factor 2 is missing in the z-loss: the derivative of lse^2 is 2 lse times the derivative of
   lse. */
static void hmoe__router_backward(const hmoe_routes *routes, const hmoe_real *dgate,
                                  const hmoe_real *dP_all, double d_entropy, double d_lse2,
                                  int norm, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + t * E;
        hmoe_real *r = routes->logits + t * E, dP[HMOE_MAX_EXPERTS];
        hmoe_real dg_g = 0, P_chosen = 0, mean = 0, lse = routes->lse[t];
        for (int e = 0; e < E; e++) dP[e] = dP_all[e];
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s;
            dg_g += dgate[routes->row[at]] * routes->gate[at];
            P_chosen += P[routes->expert[at]];
        }
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * routes->slots + s;
            hmoe_real dg = dgate[routes->row[at]];
            dP[routes->expert[at]] += norm ? (dg - dg_g) / P_chosen : dg;
        }
        for (int e = 0; e < E; e++) mean += dP[e] * P[e];
        for (int e = 0; e < E; e++)
            r[e] = P[e] * (dP[e] - mean + d_lse2 * lse
                           - d_entropy * (r[e] - lse + routes->entropy[t]));
    }
}
