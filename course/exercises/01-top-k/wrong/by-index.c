/* S[t] has the right experts in the order of their index. It must list them by descending P, and
   the gates in the same order. */
static void hmoe__choose(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p,
                         int norm, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + t * E;
        int *S = routes->expert + t * routes->slots, taken[HMOE_MAX_EXPERTS] = { 0 };
        hmoe_real *g = routes->gate + t * routes->slots, sum = 0;
        for (int s = 0; s < K; s++) {
            int best = -1;
            for (int e = 0; e < E; e++)
                if (!taken[e] && (best < 0 || P[e] > P[best])) best = e;
            taken[best] = 1;
            S[s] = best, g[s] = P[best], sum += P[best];
        }
        for (int e = 0, s = 0; e < E; e++)
            if (taken[e]) S[s] = e, g[s++] = P[e];
        routes->count[t] = K;
        for (int s = 0; norm && s < K; s++) g[s] /= sum;
    }
}
