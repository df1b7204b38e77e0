/* FUNCTIONS hmoe__router_softmax hmoe__entropy_loss hmoe__router_backward */

enum { SOFTMAX, LOSS, BACKWARD, STEPS = 150 };
static loss_case loss;
static struct { int what, N, E, norm; double d_entropy, d_lse2; hmoe_routes routes;
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
    int k = i / 3, known = k < 10, K, term;
    if (i >= 90) return 0;
    for_function(c.what = i % 3);
    c.N = known ? cases[k].N : pick(1, 6), c.E = known ? cases[k].E : pick(1, 6);
    K = known ? cases[k].K : pick(0, c.E), term = known ? cases[k].term : 4;
    c.norm = known ? cases[k].norm : pick(0, 1);
    c.d_entropy = term == 2 || term == 4 ? 0.5 : 0, c.d_lse2 = term == 3 || term == 4 ? 0.25 : 0;
    if (c.what == LOSS) {
        double coef = k ? pick(1, 20) / 10.0 : 1;
        describe("hmoe__entropy_loss: N = %d, E = %d, coef = %g", c.N, c.E, coef);
        loss = make_loss_case(c.N, c.E, 1, known ? cases[k].kind : (check_router)pick(0, 3), coef,
                              NULL);
        return 1;
    }
    if (c.what == SOFTMAX) {
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
    right_choice(&c.routes, K ? HMOE_TOP_K : HMOE_TOP_P, K, 0.7, c.norm, c.N, c.E);
    hmoe__dispatch(&c.routes, c.N, c.E);
    c.dgate = random_reals("dgate", 0, c.routes.expert_start[c.E], INPUT,
                           term == 0 || term == 4 ? 1 : 0);
    c.dP_all = random_reals("dP_all", 0, c.E, INPUT, term == 1 || term == 4 ? 1 : 0);
    return 1;
}

static void call_case(void) {
    if (c.what == LOSS) call_loss(ANSWER(hmoe__entropy_loss), &loss);
    else if (c.what == BACKWARD)
        ANSWER(hmoe__router_backward)(&c.routes, c.dgate, c.dP_all, c.d_entropy, c.d_lse2, c.norm,
                                      c.N, c.E);
    else ANSWER(hmoe__router_softmax)(&c.routes, c.N, c.E);
}

/* Softmax, lse and entropy of one token's logits. */
static void right_router(double *P, double *lse, double *entropy, int t) {
    right_softmax(P, lse, c.routes.logits + t * c.E, c.E, 1);
    *entropy = 0;
    for (int e = 0; e < c.E; e++) if (P[e] > 0) *entropy -= P[e] * log(P[e]);
}

/* The part of the loss that depends on the logits of one token, if the gradients of the gates and
   of all P are those of the input. Its derivatives are that token's dr. */
static int right_token;
static double part_of_token(void) {
    int t = right_token, n = c.routes.count[t];
    const int *S = c.routes.expert + t * c.routes.slots, *row = c.routes.row + t * c.routes.slots;
    double P[HMOE_MAX_EXPERTS], lse, entropy, chosen = 0, sum;
    right_router(P, &lse, &entropy, t);
    sum = c.d_entropy * entropy + c.d_lse2 * lse * lse;
    for (int s = 0; s < n; s++) chosen += P[S[s]];
    for (int s = 0; s < n; s++) sum += c.dgate[row[s]] * P[S[s]] / (c.norm ? chosen : 1);
    for (int e = 0; e < c.E; e++) sum += c.dP_all[e] * P[e];
    return sum;
}

static double value(void) { return loss.E * *loss.entropy; }

static void right_case(void) {
    double dr[HMOE_MAX_EXPERTS];
    if (c.what == LOSS) { right_loss(value, &loss); return; }
    for (int t = right_token = 0; t < c.N; right_token = ++t) {
        hmoe_real *r = c.routes.logits + t * c.E;
        if (c.what == SOFTMAX) {
            right_router(c.routes.P + t * c.E, &c.routes.lse[t], &c.routes.entropy[t], t);
            continue;
        }
        for (int e = 0; e < c.E; e++) dr[e] = right_slope(part_of_token, &r[e], 1);
        memcpy(r, dr, (size_t)c.E * sizeof *r);
    }
}

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.routing = HMOE_TOP_P, config.loss_coef[HMOE_ENT] = 0.03, config.loss_coef[HMOE_Z] = 0.01;
    return config;
}

/* The number of experts per token, for several coefficients. */
static void experiment(void) {
    static double ce[STEPS];
    printf("\nNow %d steps of Top-P with p = %g and your functions. Means of the last third:\n\n",
           STEPS, training_config().top_p);
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
        printf("    coefficient %5.3f   %.2f experts per token   cross-entropy %.3f\n",
               config.loss_coef[HMOE_ENT], experts, mean_in_the_end(ce, STEPS));
        hmoe_free(&m);
    }
    printf("\nWhat happens in the last row, and why?\n");
}
