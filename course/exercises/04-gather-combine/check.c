/* FUNCTIONS hmoe__dispatch hmoe__combine_forward */

static struct { int combine, N, E, C; hmoe_routes routes; hmoe_real *x, *y, *rows; } c;

/* The number of (token, expert) pairs that come before the pair (t, e). */
static int pairs_before(int t, int e) {
    int n = 0;
    for (int other = 0; other < c.N; other++)
        for (int s = 0; s < c.routes.count[other]; s++) {
            int expert = c.routes.expert[other * c.routes.slots + s];
            n += expert < e || (expert == e && other < t);
        }
    return n;
}

static void right_dispatch(void) {
    for (int e = 0; e <= c.E; e++) c.routes.expert_start[e] = pairs_before(0, e);
    for (int t = 0; t < c.N; t++)
        for (int s = 0; s < c.routes.count[t]; s++) {
            int at = t * c.routes.slots + s, row = pairs_before(t, c.routes.expert[at]);
            c.routes.row[at] = row;
            c.routes.row_token[row] = t, c.routes.row_gate[row] = c.routes.gate[at];
        }
}

static int make_case(int i) {
    static const struct { int N, E, K, C; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, 1, RANDOM, "one token, one expert, a width of 1" },
        { 1, 3, 2, 2, RANDOM, "one token, and an expert without tokens" },
        { 2, 2, 1, 2, RANDOM, "two tokens, K = 1" }, { 3, 3, 2, 2, RANDOM, "three tokens" },
        { 3, 4, 1, 2, FAVOURITE, "all tokens choose expert 0, the others have none" },
        { 2, 3, 3, 2, RANDOM, "K = E" }, { 2, 4, 2, 3, TIES, "ties" },
        { 4, 3, 0, 2, RANDOM, "Top-P: unequal numbers of experts" },
        { 4, 5, 0, 1, EXTREME, "Top-P, extreme logits, a width of 1" },
    };
    int k = i / 2, known = k < 9, E, K;
    if (i >= 50) return 0;
    for_function(c.combine = i % 2);
    c.N = known ? cases[k].N : pick(1, 8);
    c.E = E = known ? cases[k].E : pick(1, 8), c.C = known ? cases[k].C : pick(1, 9);
    K = known ? cases[k].K : pick(0, E);          /* 0: Top-P */
    describe("%s, %s: N = %d, E = %d, %s = %d%s%.0d", c.combine ? "hmoe__combine_forward"
             : "hmoe__dispatch", known ? cases[k].what : "at random", c.N, E, K ? "K" : "slots",
             K ? K : E, c.combine ? ", C = " : "", c.combine ? c.C : 0);
    c.routes = make_routes(c.N, E, K ? K : E, HIDDEN, HIDDEN, HIDDEN, INPUT,
                           c.combine ? INPUT : OUTPUT);
    fill_router(&c.routes, c.N, E, known ? cases[k].kind : (check_router)pick(0, 3));
    right_choice(&c.routes, K ? HMOE_TOP_K : HMOE_TOP_P, K, 0.7, 1, c.N, E);
    if (!c.combine) return 1;
    right_dispatch();
    c.x = random_reals("x", c.N, c.C, INPUT, 1);
    c.rows = random_reals("rows", c.routes.expert_start[E], c.C, INPUT, 1);
    c.y = reals("y", c.N, c.C, OUTPUT);
    return 1;
}

static void call_case(void) {
    if (c.combine) ANSWER(hmoe__combine_forward)(c.y, c.x, c.rows, &c.routes, c.N, c.C);
    else ANSWER(hmoe__dispatch)(&c.routes, c.N, c.E);
}

/* The rows in the order of the experts: each adds to its token. */
static void right_case(void) {
    if (!c.combine) { right_dispatch(); return; }
    for (int i = 0; i < c.N * c.C; i++) c.y[i] = c.x[i];
    for (int row = 0; row < c.routes.expert_start[c.E]; row++) {
        hmoe_real *y = c.y + c.routes.row_token[row] * c.C;
        for (int i = 0; i < c.C; i++) y[i] += c.routes.row_gate[row] * c.rows[row * c.C + i];
    }
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
