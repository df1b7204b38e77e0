/* Your function changes expert_start while it places rows. At the end it contains the *end* of
   each expert. Use a copy for placing. */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) start[routes->expert[t * slots + s] + 1]++;
    for (int e = 0; e < E; e++) start[e + 1] += start[e];
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * slots + s, row = start[routes->expert[at]]++;
            routes->row[at] = row;
            routes->row_token[row] = t;
            routes->row_gate[row] = routes->gate[at];
        }
}
