/* Your function uses the logit r in place of ln P. ln P = r - lse. */
static void hmoe__router_softmax(const hmoe_routes *routes, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *r = routes->logits + t * E;
        hmoe_real *P = routes->P + t * E, lse, entropy = 0;
        for (int e = 0; e < E; e++) P[e] = r[e];
        hmoe__softmax_row(P, E, 1, &lse);
        for (int e = 0; e < E; e++) entropy -= P[e] * r[e];
        routes->lse[t] = lse;
        routes->entropy[t] = entropy;
    }
}
