/* The rows of an expert are in descending order of the tokens. They must be in ascending order, so
   that all sums over them have one order. */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int next[HMOE_MAX_EXPERTS], *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) start[routes->expert[t * slots + s] + 1]++;
    for (int e = 0; e < E; e++) start[e + 1] += start[e];
    for (int e = 0; e < E; e++) next[e] = start[e];
    for (int t = N - 1; t >= 0; t--)
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * slots + s, row = next[routes->expert[at]]++;
            routes->row[at] = row;
            routes->row_token[row] = t;
            routes->row_gate[row] = routes->gate[at];
        }
}
