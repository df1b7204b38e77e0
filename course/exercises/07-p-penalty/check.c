/* FUNCTIONS hmoe__losses */

enum { STEPS = 200 };
static struct { int N; hmoe_config config; hmoe_real *dP_all, *sums, *losses; } c;

static int make_case(int i) {
    static const struct { int N, E, K, L, term; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, 1, 1, RANDOM, "one expert" }, { 1, 2, 1, 1, 1, RANDOM, "one token" },
        { 2, 2, 1, 1, 1, RANDOM, "two tokens" }, { 3, 2, 2, 1, 1, RANDOM, "K = E" },
        { 4, 3, 1, 1, 1, FAVOURITE, "all tokens to expert 0, the others empty" },
        { 2, 3, 2, 1, 1, TIES, "a tie" }, { 4, 3, 2, 2, 1, RANDOM, "two layers" },
        { 4, 4, 2, 1, 4, EXTREME, "extreme logits, all four losses" },
        { 3, 2, 1, 1, 0, RANDOM, "load balancing alone" },
        { 3, 2, 1, 1, 2, RANDOM, "entropy alone" }, { 3, 2, 1, 1, 3, RANDOM, "z-loss alone" },
    };
    int known = i < 11, K, term;
    if (i >= 40) return 0;
    c.config = small_config();
    c.N = known ? cases[i].N : pick(1, 9), c.config.E = known ? cases[i].E : pick(1, 6);
    K = known ? cases[i].K : pick(1, c.config.E), c.config.L = known ? cases[i].L : pick(1, 3);
    term = known ? cases[i].term : 4;
    c.config.loss_coef[HMOE_LB] = term == 0 || term == 4 ? 1 : 0;
    c.config.loss_coef[HMOE_PP] = term == 1 ? 1 : term == 4 ? 0.5 : 0;
    c.config.loss_coef[HMOE_ENT] = term == 2 || term == 4 ? 0.25 : 0;
    c.config.loss_coef[HMOE_Z] = term == 3 || term == 4 ? 0.125 : 0;
    describe("%s: N = %d, E = %d, K = %d, L = %d; coefficients lb %g, pp %g, ent %g, z %g; ce = 2",
             known ? cases[i].what : "at random", c.N, c.config.E, K, c.config.L, c.config.loss_coef[HMOE_LB],
             c.config.loss_coef[HMOE_PP], c.config.loss_coef[HMOE_ENT], c.config.loss_coef[HMOE_Z]);
    int *H = ints("H", 0, c.config.E, INPUT);
    for (int e = 0; e < c.config.E; e++) {
        c.config.H[e] = H[e] = i == 5 || i == 8 ? 4 : i == 0 ? 1 : i % 2 ? 1 + 2 * e : pick(1, 9);
    }
    c.sums = reals("sums", c.config.L, 2 * c.config.E + 3, INPUT);
    c.losses = reals("loss: lb, pp, ent, z, total", 0, 5, OUTPUT);
    c.dP_all = reals("dP_all", c.config.L, c.config.E, OUTPUT);
    for (int l = 0; l < c.config.L; l++) {
        hmoe_routes r = make_routes(c.N, c.config.E, K, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN);
        fill_router(&r, c.N, c.config.E, known ? cases[i].kind : (check_router)pick(0, 3));
        hmoe__choose(&r, HMOE_TOP_K, K, 1, 1, c.N, c.config.E);
        hmoe__dispatch(&r, c.N, c.config.E);
        hmoe__router_sums(c.sums + l * hmoe__sum_count(&c.config), &r, c.N, c.config.E);
    }
    return 1;
}

static void call_case(void) {
    hmoe_losses loss = { check_unset, 2, check_unset, check_unset, check_unset, check_unset };
    ANSWER(hmoe__losses)(&loss, c.dP_all, c.sums, &c.config, c.N);
    c.losses[0] = loss.term[HMOE_LB], c.losses[1] = loss.term[HMOE_PP], c.losses[2] = loss.term[HMOE_ENT], c.losses[3] = loss.term[HMOE_Z];
    c.losses[4] = loss.total;
}

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.loss_coef[HMOE_LB] = 0.05, config.loss_coef[HMOE_PP] = 0.1, config.loss_coef[HMOE_ENT] = 0.01, config.loss_coef[HMOE_Z] = 0.01;
    return config;
}

/* Tokens and work, with the one loss and the other. */
static void experiment(void) {
    static double ce[STEPS];
    printf("\nNow %d steps with load balancing, and with the P-Penalty: your hmoe__losses makes "
           "both.\nThe last third of them, layer 1, in %%:\n\n", STEPS);
    for (int penalty = 0; penalty < 2; penalty++) {
        hmoe_config config = small_config();
        hmoe_model m;
        double work = 0, tokens = 0;
        config.loss_coef[HMOE_LB] = penalty ? 0 : 0.5, config.loss_coef[HMOE_PP] = penalty ? 0.5 : 0;
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
    printf("\nWhich row is even, and why? README.md has the argument.\n");
}
