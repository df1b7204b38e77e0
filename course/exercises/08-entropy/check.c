/* FUNCTIONS hmoe__router_softmax hmoe__router_backward */

enum { STEPS = 150 };
static struct { int backward, N, E, norm; double d_entropy, d_lse2; hmoe_routes routes;
                hmoe_real *dgate, *dP_all; } c;

static int make_case(int i) {
    static const struct { int N, E, K, norm, term; check_router kind; const char *what; }
        cases[] = {
        { 1, 1, 1, 0, 0, RANDOM, "one expert, the gates' term" },
        { 1, 2, 1, 0, 0, RANDOM, "raw gates, their term alone" },
        { 1, 3, 2, 1, 0, RANDOM, "normalised gates, their term alone" },
        { 1, 2, 1, 0, 1, RANDOM, "balance alone" }, { 1, 2, 1, 0, 2, RANDOM, "entropy alone" },
        { 1, 3, 1, 0, 2, TIES, "entropy alone" }, { 1, 2, 1, 0, 3, RANDOM, "z-loss alone" },
        { 2, 3, 3, 1, 0, RANDOM, "K = E, the gates' term alone" },
        { 2, 3, 0, 1, 4, EXTREME, "Top-P, extreme logits: some P are 0" },
        { 1, 2, 1, 1, 0, RANDOM, "a single expert with a normalised gate" },
    };
    int k = i / 2, known = k < 10, K, term;
    if (i >= 60) return 0;
    for_function(c.backward = i % 2);
    c.N = known ? cases[k].N : pick(1, 6), c.E = known ? cases[k].E : pick(1, 6);
    K = known ? cases[k].K : pick(0, c.E), term = known ? cases[k].term : 4;
    c.norm = known ? cases[k].norm : pick(0, 1);
    c.d_entropy = term == 2 || term == 4 ? 0.5 : 0, c.d_lse2 = term == 3 || term == 4 ? 0.25 : 0;
    if (!c.backward) {
        describe("hmoe__router_softmax, %s: N = %d, E = %d", !known ? "at random" :
                 cases[k].kind == EXTREME ? "extreme logits" : cases[k].kind == TIES ? "ties"
                 : "a few numbers", c.N, c.E);
        c.routes = make_routes(c.N, c.E, 1, INPUT, OUTPUT, OUTPUT, HIDDEN, HIDDEN);
        fill_router(&c.routes, c.N, c.E, known ? cases[k].kind : (check_router)pick(0, 3));
        for (int j = 0; j < c.N * c.E; j++) c.routes.P[j] = check_unset;
        for (int t = 0; t < c.N; t++) c.routes.lse[t] = c.routes.entropy[t] = check_unset;
        return 1;
    }
    describe("hmoe__router_backward, %s: N = %d, E = %d, norm = %d, d_entropy = %g, d_lse2 = %g",
             known ? cases[k].what : "at random", c.N, c.E, c.norm, c.d_entropy, c.d_lse2);
    c.routes = make_routes(c.N, c.E, K ? K : c.E, ADDED, INPUT, INPUT, INPUT, INPUT);
    fill_router(&c.routes, c.N, c.E, known ? cases[k].kind : (check_router)pick(0, 3));
    hmoe__choose(&c.routes, K ? HMOE_TOP_K : HMOE_TOP_P, K, 0.7, c.norm, c.N, c.E);
    hmoe__dispatch(&c.routes, c.N, c.E);
    c.dgate = random_reals("dgate", 0, c.routes.expert_start[c.E], INPUT,
                           term == 0 || term == 4 ? 1 : 0);
    c.dP_all = random_reals("dP_all", 0, c.E, INPUT, term == 1 || term == 4 ? 1 : 0);
    return 1;
}

static void call_case(void) {
    if (c.backward)
        ANSWER(hmoe__router_backward)(&c.routes, c.dgate, c.dP_all, c.d_entropy, c.d_lse2, c.norm,
                                      c.N, c.E);
    else ANSWER(hmoe__router_softmax)(&c.routes, c.N, c.E);
}

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.routing = HMOE_TOP_P, config.loss_coef[HMOE_ENT] = 0.03, config.loss_coef[HMOE_Z] = 0.01;
    return config;
}

/* How many experts a token has, with and without the loss. */
static void experiment(void) {
    static double ce[STEPS];
    printf("\nNow Top-P with p = %g, %d steps, with your functions. In the last third of "
           "them:\n\n", training_config().top_p, STEPS);
    for (int i = 0; i < 4; i++) {
        hmoe_config config = training_config();
        hmoe_model m;
        double experts = 0;
        config.loss_coef[HMOE_ENT] = i ? 0.003 * pow(10, i - 1) : 0, config.loss_coef[HMOE_Z] = 0;
        check_answer = 1;
        if (!train(&m, &config, 1e-2, STEPS, ce, 1)) { hmoe_free(&m); check_answer = 0; return; }
        check_answer = 0;
        for (int l = 0; l < config.L; l++)
            for (int e = 0; e < config.E; e++) experts += share(&m, l, e) / config.L;
        printf("    ent_coef %5.3f   %.2f experts a token   cross-entropy %.3f\n", config.loss_coef[HMOE_ENT],
               experts, mean_in_the_end(ce, STEPS));
        hmoe_free(&m);
    }
    printf("\nWhat does the last row say about a coefficient that is too large?\n");
}
