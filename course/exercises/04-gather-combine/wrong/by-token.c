/* Your rows are in the order of the tokens. They must be in the order of the experts: count first,
   then add up, then place. */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int count, *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) start[routes->expert[t * slots + s] + 1]++;
    for (int e = 0; e < E; e++) start[e + 1] += start[e];
    count = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * slots + s, row = count++;
            routes->row[at] = row;
            routes->row_token[row] = t;
            routes->row_gate[row] = routes->gate[at];
        }
}
