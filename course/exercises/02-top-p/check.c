/* FUNCTIONS hmoe__choose */

static struct { int N, E, K, norm; double p; hmoe_routing routing; hmoe_routes routes; } c;

static int make_case(int i) {
    static const struct { int E; double p, P[4]; int norm; const char *what; } cases[] = {
        { 1, 0.6, { 1 }, 1, "one expert" }, { 2, 0.6, { 0.75, 0.25 }, 1, "one is enough" },
        { 2, 0.5, { 0.5, 0.5 }, 1, "p reached exactly, and a tie" },
        { 3, 0.75, { 0.25, 0.5, 0.25 }, 1, "p reached exactly" },
        { 3, 0.6, { 0.125, 0.5, 0.375 }, 0, "raw gates" },
        { 3, 0.6, { 0.125, 0.5, 0.375 }, 1, "two are needed" },
        { 4, 0.6, { 0.25, 0.25, 0.25, 0.25 }, 1, "all tie" },
        { 3, 1, { 0, 1, 0 }, 1, "p = 1 takes all, also experts with P = 0" },
        { 3, 1e-9, { 0.25, 0.25, 0.5 }, 1, "the smallest p" },
        { 2, 1, { 1, 1e-20 }, 0, "p = 1, and a sum that rounds to 1 too early" },
    };
    int known = i < 10;
    if (i >= 50) return 0;
    c.routing = i % 5 == 4 && !known ? HMOE_TOP_K : HMOE_TOP_P;
    c.N = known ? 1 : pick(1, 6), c.E = known ? cases[i].E : pick(1, 9), c.K = pick(1, c.E);
    c.p = known ? cases[i].p : pick(1, 20) / 20.0, c.norm = known ? cases[i].norm : pick(0, 1);
    if (c.routing == HMOE_TOP_K)
        describe("Top-K at random: N = %d, E = %d, K = %d, norm = %d", c.N, c.E, c.K, c.norm);
    else describe("%s: Top-P, N = %d, E = %d, top_p = %g, norm = %d", known ? cases[i].what
                  : "at random", c.N, c.E, c.p, c.norm);
    c.routes = make_routes(c.N, c.E, c.routing == HMOE_TOP_K ? c.K : c.E, HIDDEN, INPUT, HIDDEN,
                           OUTPUT, HIDDEN);
    fill_router(&c.routes, c.N, c.E, (check_router)pick(0, 3));
    for (int e = 0; known && e < c.E; e++) c.routes.P[e] = cases[i].P[e];
    return 1;
}

static void call_case(void) {
    ANSWER(hmoe__choose)(&c.routes, c.routing, c.K, c.p, c.norm, c.N, c.E);
}

static void right_case(void) {
    right_choice(&c.routes, c.routing, c.K, c.p, c.norm, c.N, c.E);
}

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.routing = HMOE_TOP_P;
    return config;
}

static void experiment(void) {}
