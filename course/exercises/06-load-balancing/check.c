/* FUNCTIONS hmoe__losses my_collapse my_cure */

enum { STEPS = 110 };
static struct { int settings, N; hmoe_config config; hmoe_real *dP_all;
                hmoe_real *sums, *lb, *total, *clue;
                int *collapsed, *cured, *learned, *same; } c;

static int make_case(int i) {
    static const struct { int N, E, K, L; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, 1, RANDOM, "one token, one expert" }, { 1, 2, 1, 1, RANDOM, "one token" },
        { 2, 2, 1, 1, RANDOM, "two tokens" }, { 3, 2, 2, 1, RANDOM, "K = E" },
        { 4, 3, 1, 1, FAVOURITE, "all tokens to expert 0, the others empty" },
        { 4, 3, 2, 2, RANDOM, "two layers" }, { 4, 4, 2, 1, EXTREME, "extreme logits" },
    };
    int known = i < 7, K;
    if (i > 20) return 0;
    for_function(c.settings = i == 20);
    c.config = small_config();
    if (c.settings) {
        describe("my_collapse and my_cure: %d steps of training with each", STEPS);
        c.collapsed = ints("collapsed: half the experts of a layer get less than 1 % each (1: yes)",
                           0, 1, OUTPUT);
        c.cured = ints("cured: every expert has a quarter of an even share, or more", 0, 1, OUTPUT);
        c.learned = ints("learned: the cross-entropy is lower than collapsed by 0.05", 0, 1,
                         OUTPUT);
        c.same = ints("what made it collapse is still there: E K routing gate entropy z noise", 0,
                      1, OUTPUT);
        c.clue = reals("clue", 0, 6, CLUE);
        reals("rank last", 1, 10000, HIDDEN);
        return 1;
    }
    c.N = known ? cases[i].N : pick(1, 9), c.config.E = known ? cases[i].E : pick(1, 6);
    K = known ? cases[i].K : pick(1, c.config.E), c.config.L = known ? cases[i].L : pick(1, 3);
    c.config.loss_coef[HMOE_PP] = 0, c.config.loss_coef[HMOE_LB] = known ? 1 : pick(1, 20) / 10.0;
    describe("%s: N = %d, E = %d, K = %d, L = %d, lb_coef = %g, the other coefficients 0, ce = 2",
             known ? cases[i].what : "at random", c.N, c.config.E, K, c.config.L,
             c.config.loss_coef[HMOE_LB]);
    c.sums = reals("sums", c.config.L, 2 * c.config.E + 3, INPUT);
    c.lb = reals("loss->term[HMOE_LB]", 0, 1, OUTPUT), c.total = reals("loss->total", 0, 1, OUTPUT);
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

/* Trains with these settings: the lowest share of any expert in *least, of an even one, the most
   experts of one layer below 1 % in *dead; returns the cross-entropy in the end. */
static double outcome(const hmoe_config *config, double *least, int *dead) {
    static struct { hmoe_config config; double mean, least; int dead; } known[4 * CHECK_ANSWERS];
    static double ce[STEPS];
    static int runs;
    hmoe_model m;
    double mean = 1e9;
    for (int i = 0; i < runs; i++)       /* wrong answers have much in common */
        if (!memcmp(&known[i].config, config, sizeof *config)) {
            *least = known[i].least, *dead = known[i].dead;
            return known[i].mean;
        }
    *least = 0, *dead = 0;
    if (config->E == 8 && train(&m, config, 1e-2, STEPS, ce, 1)) {
        mean = mean_in_the_end(ce, STEPS), *least = 1;
        for (int l = 0, none; l < config->L; l++, *dead = none > *dead ? none : *dead) {
            double even = m.usage[l * hmoe__sum_count(config) + 2 * 8 + 2]
                          / m.usage[config->L * hmoe__sum_count(config)] / 8;
            none = 0;
            for (int e = 0; e < 8; e++) {
                none += share(&m, l, e) < 0.01;
                if (share(&m, l, e) / even < *least) *least = share(&m, l, e) / even;
            }
        }
    }
    if (config->E == 8) hmoe_free(&m);
    known[runs].config = *config, known[runs].mean = mean;
    known[runs].least = *least, known[runs++].dead = *dead;
    return mean;
}

static void call_settings(void) {
    static struct { int known, collapsed, cured, learned, same; double clue[6]; }
        result[CHECK_ANSWERS], *r;
    int me = check_answer;
    r = &result[me];
    if (!r->known) {
        hmoe_config sick = small_config(), well;
        r->known = r->collapsed = r->cured = r->learned = r->same = 1;
        sick.E = 8, sick.loss_coef[HMOE_PP] = 0;
        hmoe_expert_sizes(sick.H, 8, 192, "arithmetic", NULL);
        if (answers_my_collapse[me] != reference_my_collapse
            && answers_my_cure[me] != reference_my_cure) {
            double ce[2], least[2];
            int dead[2];
            ANSWER(my_collapse)(&sick);
            well = sick;
            ANSWER(my_cure)(&well);
            check_answer = 0;
            ce[0] = outcome(&sick, &least[0], &dead[0]);
            ce[1] = outcome(&well, &least[1], &dead[1]);
            check_answer = me;
            r->collapsed = dead[0] >= 4, r->cured = least[1] >= 0.25;
            r->learned = ce[1] <= ce[0] - 0.05;
            r->same = sick.E == 8 && well.E == 8 && well.K == sick.K && well.gate == sick.gate
                      && well.routing == sick.routing && well.top_p == sick.top_p
                      && well.noisy_gating == sick.noisy_gating && well.loss_coef[HMOE_ENT] >= sick.loss_coef[HMOE_ENT]
                      && well.loss_coef[HMOE_Z] >= sick.loss_coef[HMOE_Z];
            r->clue[0] = sick.loss_coef[HMOE_ENT] > 0, r->clue[1] = well.loss_coef[HMOE_LB] > 0 || well.loss_coef[HMOE_PP] > 0;
            r->clue[2] = well.loss_coef[HMOE_ENT] > sick.loss_coef[HMOE_ENT], r->clue[3] = well.loss_coef[HMOE_Z] > sick.loss_coef[HMOE_Z];
            r->clue[4] = well.loss_coef[HMOE_LB] + well.loss_coef[HMOE_PP] >= 10, r->clue[5] = sick.K == 1;
        }
    }
    *c.collapsed = r->collapsed, *c.cured = r->cured, *c.learned = r->learned, *c.same = r->same;
    memcpy(c.clue, r->clue, sizeof r->clue);
}

static void call_case(void) {
    hmoe_losses loss = { -1, 2, -1, -1, -1, -1 };
    if (c.settings) { call_settings(); return; }
    ANSWER(hmoe__losses)(&loss, c.dP_all, c.sums, &c.config, c.N);
    *c.lb = loss.term[HMOE_LB], *c.total = loss.total;
}

static void reference_my_collapse(hmoe_config *config) { (void)config; }   /* there are many */
static void reference_my_cure(hmoe_config *config) { (void)config; }

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.loss_coef[HMOE_PP] = 0, config.loss_coef[HMOE_LB] = 0.1;
    return config;
}

static void experiment(void) {}
