/* Your function takes the log of P. If P is 0, the log is minus infinity, and 0 times infinity is
   NaN. ln P = r - lse is finite, and 0 times it is 0. */
static void hmoe__router_softmax(const hmoe_routes *routes, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *r = routes->logits + t * E;
        hmoe_real *P = routes->P + t * E, lse, entropy = 0;
        for (int e = 0; e < E; e++) P[e] = r[e];
        hmoe__softmax_row(P, E, 1, &lse);
        for (int e = 0; e < E; e++) entropy -= P[e] * log(P[e]);
        routes->lse[t] = lse;
        routes->entropy[t] = entropy;
    }
}
