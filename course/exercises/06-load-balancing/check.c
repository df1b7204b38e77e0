/* FUNCTIONS hmoe__load_balancing my_collapse my_cure */

enum { STEPS = 110 };
static int settings;        /* 1: the input is for my_collapse and my_cure */
static loss_case c;
static hmoe_real *clue;
static int *collapsed, *cured, *learned, *same;

static int make_case(int i) {
    static const struct { int N, E, K; check_router kind; const char *what; } cases[] = {
        { 1, 1, 1, RANDOM, "one token, one expert" }, { 1, 2, 1, RANDOM, "one token" },
        { 2, 2, 1, RANDOM, "two tokens" }, { 3, 2, 2, RANDOM, "K = E" },
        { 4, 3, 1, FAVOURITE, "all tokens choose expert 0, the others have none" },
        { 4, 3, 2, RANDOM, "four tokens" }, { 4, 4, 2, EXTREME, "extreme logits" },
    };
    int known = i < 7, N, E, K;
    double coef;
    if (i > 30) return 0;
    for_function(settings = i == 30);
    if (settings) {
        describe("my_collapse and my_cure: %d steps of training with each", STEPS);
        collapsed = ints("collapsed: in one layer at least half of the experts have less than 1 % "
                         "of the tokens (1: yes)", 0, 1, OUTPUT);
        cured = ints("cured: every expert has at least a quarter of an even share", 0, 1, OUTPUT);
        learned = ints("learned: the cross-entropy is lower than before the cure by 0.05", 0, 1,
                       OUTPUT);
        same = ints("the cause is unchanged: E K routing gate top_p noise, ent and z not lower", 0,
                    1, OUTPUT);
        clue = reals("clue", 0, 6, CLUE);
        reals("a large array: this input is never the smallest", 1, 10000, HIDDEN);
        return 1;
    }
    N = known ? cases[i].N : pick(1, 9), E = known ? cases[i].E : pick(1, 6);
    K = known ? cases[i].K : pick(1, E), coef = i == 2 ? 1 : pick(1, 20) / 10.0;
    describe("%s: N = %d, E = %d, K = %d, coef = %g", known ? cases[i].what : "at random", N, E, K,
             coef);
    c = make_loss_case(N, E, K, known ? cases[i].kind : (check_router)pick(0, 3), coef, NULL);
    return 1;
}

/* Trains with these settings. *least receives the lowest share of any expert, divided by an even
   share; *dead the largest number of experts of one layer that have less than 1 %. Returns the
   cross-entropy at the end. */
static double outcome(const hmoe_config *config, double *least, int *dead) {
    static struct { hmoe_config config; double mean, least; int dead; } known[4 * CHECK_ANSWERS];
    static double ce[STEPS];
    static int runs;
    hmoe_model m;
    double mean = 1e9;
    for (int i = 0; i < runs; i++)       /* many wrong answers have the same settings */
        if (!memcmp(&known[i].config, config, sizeof *config)) {
            *least = known[i].least, *dead = known[i].dead;
            return known[i].mean;
        }
    *least = 0, *dead = 0;
    if (config->E == 8 && train(&m, config, 1e-2, STEPS, ce, 1)) {
        mean = mean_in_the_end(ce, STEPS), *least = 1;
        for (int l = 0, none; l < config->L; l++, *dead = none > *dead ? none : *dead) {
            hmoe_usage usage;
            hmoe_get_usage(&m, l, &usage);
            none = 0;
            for (int e = 0; e < 8; e++) {
                double part = usage.share[e] / (usage.experts / 8);
                none += usage.share[e] < 0.01;
                if (part < *least) *least = part;
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
            const double *before = sick.loss_coef, *after = well.loss_coef;
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
                      && well.noisy_gating == sick.noisy_gating
                      && after[HMOE_ENT] >= before[HMOE_ENT] && after[HMOE_Z] >= before[HMOE_Z];
            r->clue[0] = before[HMOE_ENT] > 0;
            r->clue[1] = after[HMOE_LB] > 0 || after[HMOE_PP] > 0;
            r->clue[2] = after[HMOE_ENT] > before[HMOE_ENT];
            r->clue[3] = after[HMOE_Z] > before[HMOE_Z];
            r->clue[4] = after[HMOE_LB] + after[HMOE_PP] >= 10;
            r->clue[5] = sick.K == 1;
        }
    }
    *collapsed = r->collapsed, *cured = r->cured, *learned = r->learned, *same = r->same;
    memcpy(clue, r->clue, sizeof r->clue);
}

static void call_case(void) {
    if (settings) call_settings();
    else call_loss(ANSWER(hmoe__load_balancing), &c);
}

/* Each choice of a token costs E / N times the Phat of the chosen expert. */
static double value(void) {
    double sum = 0;
    for (int t = 0; t < c.N; t++)
        for (int s = 0; s < c.routes.count[t]; s++)
            sum += c.Phat[c.routes.expert[t * c.routes.slots + s]];
    return sum * c.E / c.N;
}

static void right_case(void) {
    if (settings) *collapsed = *cured = *learned = *same = 1;
    else right_loss(value, &c);
}

static void reference_my_collapse(hmoe_config *config) { (void)config; }   /* many are right */
static void reference_my_cure(hmoe_config *config) { (void)config; }

static hmoe_config training_config(void) {
    hmoe_config config = small_config();
    config.loss_coef[HMOE_PP] = 0, config.loss_coef[HMOE_LB] = 0.1;
    return config;
}

static void experiment(void) {}
