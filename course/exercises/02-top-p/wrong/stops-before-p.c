/* Your function leaves out the expert with which the sum reaches p. S[t] is the shortest list
   whose sum *reaches* p, not the longest whose sum is below p. */
static void hmoe__choose(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p,
                         int norm, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + t * E;
        int *S = routes->expert + t * routes->slots, taken[HMOE_MAX_EXPERTS] = { 0 }, n = 0;
        hmoe_real *g = routes->gate + t * routes->slots, sum = 0;
        for (int enough = 0; !enough;) {
            int best = -1;
            for (int e = 0; e < E; e++)
                if (!taken[e] && (best < 0 || P[e] > P[best])) best = e;
            if (routing == HMOE_TOP_P && top_p < 1 && n && sum + P[best] >= top_p) break;
            taken[best] = 1;
            S[n] = best, g[n++] = P[best], sum += P[best];
            enough = n == E || (routing == HMOE_TOP_K ? n == K : top_p < 1 && sum >= top_p);
        }
        routes->count[t] = n;
        for (int s = 0; norm && s < n; s++) g[s] /= sum;
    }
}
