/* FUNCTIONS hmoe__softmax_row hmoe__choose */

static struct { int softmax, n, with_lse, N, E, K, norm; hmoe_real *x, *lse, scale;
                hmoe_routes routes; } c;

static int make_softmax(int i) {
    static const struct { int n; double scale, x[4]; const char *what; } cases[] = {
        { 1, 1, { 3 }, "one number" }, { 2, 1, { 0.5, 0.5 }, "a tie" },
        { 2, 1, { 1, 0 }, "two numbers" }, { 2, 0.5, { 1, -1 }, "a scale" },
        { 2, 1, { 10000, 9999 }, "extreme numbers" },
        { 2, 1, { -10000, -9999 }, "extreme numbers" },
        { 3, 0.25, { 10000, -10000, 0 }, "extreme numbers, and a scale" },
        { 3, 1, { -INFINITY, 2, -INFINITY }, "minus infinity, as in attention's mask" },
    };
    int known = i < 8;
    c.softmax = 1, c.n = known ? cases[i].n : pick(1, 12);
    c.scale = known ? cases[i].scale : pick(1, 8) / 4.0, c.with_lse = i % 5 != 4 || known;
    describe("hmoe__softmax_row, %s: n = %d, scale = %g%s", known ? cases[i].what : "at random",
             c.n, c.scale, c.with_lse ? "" : ", lse is NULL");
    c.x = random_reals("x", 0, c.n, ADDED, 3);
    for (int k = 0; known && k < c.n; k++) c.x[k] = cases[i].x[k];
    c.lse = reals("lse", 0, 1, OUTPUT);
    return 1;
}

static int make_choice(int i) {
    static const struct { int N, E, K, norm; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, 0, RANDOM, "one expert" }, { 1, 2, 1, 0, RANDOM, "one token, K = 1, raw gate" },
        { 1, 2, 1, 0, TIES, "a tie" }, { 1, 3, 2, 1, RANDOM, "one token" },
        { 1, 4, 2, 1, TIES, "ties" }, { 2, 3, 3, 1, RANDOM, "K = E" },
        { 2, 3, 3, 1, TIES, "K = E, and ties" }, { 2, 3, 2, 0, EXTREME, "extreme logits" },
        { 2, 4, 3, 1, EXTREME, "extreme logits: P is 0 for several experts" },
        { 2, 3, 2, 0, RANDOM, "raw gates" },
    };
    int known = i < 10;
    c.softmax = 0, c.N = known ? cases[i].N : pick(1, 6), c.E = known ? cases[i].E : pick(1, 9);
    c.K = known ? cases[i].K : pick(1, c.E), c.norm = known ? cases[i].norm : pick(0, 1);
    describe("hmoe__choose, %s: N = %d, E = %d, K = %d, norm = %d", known ? cases[i].what
             : "at random", c.N, c.E, c.K, c.norm);
    c.routes = make_routes(c.N, c.E, c.K, HIDDEN, INPUT, HIDDEN, OUTPUT, HIDDEN);
    fill_router(&c.routes, c.N, c.E, known ? cases[i].kind : (check_router)pick(0, 3));
    if (i == 2 || i == 4) for (int e = 0; e < c.E; e++) c.routes.P[e] = 1.0 / c.E;
    return 1;
}

static int make_case(int i) {
    if (i >= 50) return 0;
    for_function(i >= 20);
    return i < 20 ? make_softmax(i) : make_choice(i - 20);
}

static void call_case(void) {
    if (c.softmax) ANSWER(hmoe__softmax_row)(c.x, c.n, c.scale, c.with_lse ? c.lse : NULL);
    else ANSWER(hmoe__choose)(&c.routes, HMOE_TOP_K, c.K, 0.6, c.norm, c.N, c.E);
}

static void right_case(void) {
    double p[12], lse;
    if (c.softmax) {
        right_softmax(p, &lse, c.x, c.n, c.scale);
        for (int k = 0; k < c.n; k++) c.x[k] = p[k];
        if (c.with_lse) *c.lse = lse;
    } else right_choice(&c.routes, HMOE_TOP_K, c.K, 1, c.norm, c.N, c.E);
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
