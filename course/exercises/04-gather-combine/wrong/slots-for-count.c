/* Your function uses all slots of a token. Under Top-P only the first count[t] slots are set; the
   others contain no expert. */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int next[HMOE_MAX_EXPERTS], *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < slots; s++) start[(unsigned)routes->expert[t * slots + s] % E + 1]++;
    for (int e = 0; e < E; e++) start[e + 1] += start[e];
    for (int e = 0; e < E; e++) next[e] = start[e];
    for (int t = 0; t < N; t++)
        for (int s = 0; s < slots; s++) {
            int at = t * slots + s, row = next[(unsigned)routes->expert[at] % E]++;
            routes->row[at] = row;
            routes->row_token[row] = t;
            routes->row_gate[row] = routes->gate[at];
        }
}
