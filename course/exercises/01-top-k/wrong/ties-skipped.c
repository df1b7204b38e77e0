/* Your function looks for the next expert only among those of *smaller* P than the last. If
   several experts have equal P, it takes only one of them. */
static void hmoe__choose(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p,
                         int norm, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + t * E;
        int *S = routes->expert + t * routes->slots;
        hmoe_real *g = routes->gate + t * routes->slots, sum = 0;
        for (int s = 0; s < K; s++) {
            int best = -1;
            for (int e = 0; e < E; e++)
                if ((s == 0 || P[e] < g[s - 1]) && (best < 0 || P[e] > P[best])) best = e;
            if (best < 0) best = 0;
            S[s] = best, g[s] = P[best], sum += P[best];
        }
        routes->count[t] = K;
        for (int s = 0; norm && s < K; s++) g[s] /= sum;
    }
}
