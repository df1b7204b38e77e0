/* FUNCTIONS hmoe__p_penalty */

enum { STEPS = 200 };
static loss_case c;

static int make_case(int i) {
    static const struct { int N, E, K, H[4]; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, { 1 }, RANDOM, "one expert" }, { 1, 2, 1, { 1, 3 }, RANDOM, "one token" },
        { 2, 2, 1, { 5, 2 }, RANDOM, "two tokens" }, { 3, 2, 2, { 1, 3 }, RANDOM, "K = E" },
        { 4, 3, 1, { 2, 6, 1 }, FAVOURITE, "all tokens choose expert 0, the others have none" },
        { 2, 3, 2, { 1, 4, 4 }, TIES, "a tie" },
        { 4, 4, 2, { 7, 3, 9, 1 }, EXTREME, "extreme logits" },
        { 3, 2, 1, { 4, 4 }, RANDOM, "equal widths" },
        { 3, 3, 2, { 0, 4, 2 }, RANDOM, "a null expert" },
    };
    int known = i < 9, H[6], N, E, K;
    double coef;
    if (i >= 40) return 0;
    N = known ? cases[i].N : pick(1, 9), E = known ? cases[i].E : pick(1, 6);
    K = known ? cases[i].K : pick(1, E), coef = i == 2 ? 1 : pick(1, 20) / 10.0;
    for (int e = 0; e < E; e++) H[e] = known ? cases[i].H[e] : i % 2 ? 1 + 2 * e : pick(1, 9);
    describe("%s: N = %d, E = %d, K = %d, coef = %g", known ? cases[i].what : "at random", N, E, K,
             coef);
    c = make_loss_case(N, E, K, known ? cases[i].kind : (check_router)pick(0, 3), coef, H);
    return 1;
}

static void call_case(void) { call_loss(ANSWER(hmoe__p_penalty), &c); }

/* A choice of expert e costs H[e] / sum(H) times E E / N times Phat_e. */
static double value(void) {
    double sum = 0, widths = 0;
    for (int e = 0; e < c.E; e++) widths += c.H[e];
    for (int t = 0; t < c.N; t++)
        for (int s = 0; s < c.routes.count[t]; s++) {
            int e = c.routes.expert[t * c.routes.slots + s];
            sum += c.H[e] * c.Phat[e];
        }
    return sum * c.E * c.E / c.N / widths;
}

static void right_case(void) { right_loss(value, &c); }

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.loss_coef[HMOE_LB] = 0.05, config.loss_coef[HMOE_PP] = 0.1;
    config.loss_coef[HMOE_ENT] = 0.01, config.loss_coef[HMOE_Z] = 0.01;
    return config;
}

/* Shares of tokens and work, with load balancing and with the P-Penalty. */
static void experiment(void) {
    static double ce[STEPS];
    printf("\nNow %d steps with load balancing, and %d with your P-Penalty. The last third, "
           "layer 1,\nin %%:\n\n", STEPS, STEPS);
    for (int penalty = 0; penalty < 2; penalty++) {
        hmoe_config config = small_config();
        hmoe_model m;
        double work = 0, tokens = 0;
        config.loss_coef[HMOE_LB] = penalty ? 0 : 0.5;
        config.loss_coef[HMOE_PP] = penalty ? 0.5 : 0;
        check_answer = 1;
        if (!train(&m, &config, 1e-2, STEPS, ce, 1)) { hmoe_free(&m); check_answer = 0; return; }
        check_answer = 0;
        printf("    %-16s width ", penalty ? "P-Penalty" : "load balancing");
        for (int e = 0; e < config.E; e++) {
            printf("%6d", config.H[e]);
            tokens += share(&m, 0, e), work += share(&m, 0, e) * config.H[e];
        }
        printf("\n%20s tokens", "");
        for (int e = 0; e < config.E; e++) printf("%6.1f", 100 * share(&m, 0, e) / tokens);
        printf("\n%20s   work", "");
        for (int e = 0; e < config.E; e++)
            printf("%6.1f", 100 * share(&m, 0, e) * config.H[e] / work);
        printf("\n");
        hmoe_free(&m);
    }
    printf("\nWhich rows are even, and why? README.md explains it.\n");
}
