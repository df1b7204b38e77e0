/* FUNCTIONS hmoe__dispatch hmoe__combine_forward */

static struct { int combine, N, E, C; hmoe_routes routes; hmoe_real *x, *y, *rows; } c;

static int make_case(int i) {
    static const struct { int N, E, K, C; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, 1, RANDOM, "one token, one expert, a width of 1" },
        { 1, 3, 2, 2, RANDOM, "one token, so that an expert is empty" },
        { 2, 2, 1, 2, RANDOM, "two tokens, K = 1" }, { 3, 3, 2, 2, RANDOM, "three tokens" },
        { 3, 4, 1, 2, FAVOURITE, "all tokens to expert 0, the others empty" },
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
    hmoe__choose(&c.routes, K ? HMOE_TOP_K : HMOE_TOP_P, K, 0.7, 1, c.N, E);
    if (!c.combine) return 1;
    hmoe__dispatch(&c.routes, c.N, E);
    c.x = random_reals("x", c.N, c.C, INPUT, 1);
    c.rows = random_reals("rows", c.routes.expert_start[E], c.C, INPUT, 1);
    c.y = reals("y", c.N, c.C, OUTPUT);
    return 1;
}

static void call_case(void) {
    if (c.combine) ANSWER(hmoe__combine_forward)(c.y, c.x, c.rows, &c.routes, c.N, c.C);
    else ANSWER(hmoe__dispatch)(&c.routes, c.N, c.E);
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
