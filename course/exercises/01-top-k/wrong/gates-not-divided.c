/* The gates are not normalised. If norm is 1, divide each gate by the sum of P over the chosen
   experts. Then the gates of a token add up to 1. */
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
        routes->count[t] = K;
        for (int s = 0; sum < 0 && s < K; s++) g[s] /= sum;
    }
}
