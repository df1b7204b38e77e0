/* FUNCTIONS hmoe_place_experts hmoe__activated_with my_parameters my_widths
   FROM extra/parallel/hmoe_placement.h */

enum { PLACE, ACTIVATED, PARAMETERS, WIDTHS, STEPS = 120 };
static struct { int what, D; hmoe_placement placement; hmoe_config config; double budget, widths;
                int *H, *device, *count, *together, *status;
                int *fits, *used, *unequal, *paired;
                hmoe_real *number, *clue; } c;

static void widest_first(int *order, const int *H, int E) {
    for (int e = 0, at; e < E; order[at] = e++)
        for (at = e; at && H[e] > H[order[at - 1]]; at--) order[at] = order[at - 1];
}

static hmoe_config any_config(int i) {
    hmoe_config config = small_config();
    config.NH = pick(1, 4), config.C = config.NH * 2 * pick(1, 4);
    config.L = i % 4 ? pick(1, 4) : 1;
    config.V = pick(2, 256), config.E = i % 8 ? pick(1, 8) : 1;
    for (int e = 0; e < config.E; e++) config.H[e] = i < 8 ? 1 : pick(1, 30);
    return config;
}

static void make_place(int i) {
    static const struct { int E, D, contiguous, H[8]; const char *what; } cases[] = {
        { 2, 1, 0, { 1, 3 }, "one pair" }, { 4, 2, 0, { 4, 3, 2, 1 }, "two pairs, widest first" },
        { 4, 2, 0, { 3, 1, 4, 2 }, "two pairs" }, { 4, 2, 1, { 3, 1, 4, 2 }, "contiguous" },
        { 8, 2, 0, { 9, 11, 13, 15, 17, 19, 21, 23 }, "arithmetic widths" },
        { 4, 4, 1, { 4, 3, 2, 1 }, "contiguous, one expert each" },
        { 6, 2, 0, { 1, 2, 3, 4, 5, 6 }, "E is not a multiple of 2 D: an error" },
        { 4, 2, 0, { 2, 2, 2, 2 }, "equal widths" },
        { 8, 2, 0, { 1, 50, 2, 40, 3, 30, 4, 20 }, "very unequal widths" },
    };
    int known = i < 9, E;
    c.D = known ? cases[i].D : pick(1, 3), E = known ? cases[i].E : 2 * c.D * pick(1, 2);
    c.placement = (known ? cases[i].contiguous : i % 2) ? HMOE_CONTIGUOUS : HMOE_PAIRS;
    describe("hmoe_place_experts, %s: E = %d, D = %d, %s", known ? cases[i].what : "at random", E,
             c.D, c.placement == HMOE_PAIRS ? "HMOE_PAIRS" : "HMOE_CONTIGUOUS");
    c.config.E = E, c.H = ints("H", 0, E, INPUT);
    for (int e = 0; e < E; e++) c.H[e] = known ? cases[i].H[e] : 1 + e * 7 % E * 3;
    c.status = ints("failed (1: yes)", 0, 1, OUTPUT);
    c.count = ints("how many experts each device has", 0, c.D, OUTPUT);
    c.together = ints("i-th widest and i-th narrowest on one device (1: yes)", 0,
                      E / 2 ? E / 2 : 1, OUTPUT);
    c.device = ints("device", 0, E, c.placement == HMOE_PAIRS ? CLUE : OUTPUT);
}

static int make_case(int i) {
    if (i >= 60) return 0;
    for_function(c.what = i % 4);
    i /= 4;
    memset(&c.config, 0, sizeof c.config);
    if (c.what == PLACE) { make_place(i); return 1; }
    c.config = any_config(i);
    if (c.what == WIDTHS) {
        c.config.E = i % 2 ? 8 : 4, c.config.C = 8 * (i + 1), c.config.NH = 4;
        c.budget = (2.0 * c.config.V + 1) * c.config.C + c.config.L * c.config.C
                   * (2.0 + c.config.E + 4 * c.config.C + 3.0 * c.config.E * (24 + 5 * i));
        describe("my_widths: budget %.0f; C = %d, L = %d, V = %d, E = %d", c.budget, c.config.C,
                 c.config.L, c.config.V, c.config.E);
        c.fits = ints("at most `budget` parameters (1: yes)", 0, 1, OUTPUT);
        c.used = ints("at least 95 % of them", 0, 1, OUTPUT);
        c.unequal = ints("the widest is at least twice as wide as the narrowest", 0, 1, OUTPUT);
        c.paired = ints("all pairs have the same total width", 0, 1, OUTPUT);
        c.clue = reals("clue", 0, 1, CLUE);
        reals("a large array: this input is never the smallest", 0, 200, HIDDEN);
        return 1;
    }
    c.widths = pick(1, 40);
    if (c.what == PARAMETERS)
        describe("my_parameters: C = %d, L = %d, V = %d, E = %d", c.config.C, c.config.L,
                 c.config.V, c.config.E);
    else describe("hmoe__activated_with: C = %d, L = %d, V = %d, E = %d, widths = %g", c.config.C,
                  c.config.L, c.config.V, c.config.E, c.widths);
    c.H = ints("H", 0, c.config.E, INPUT);
    memcpy(c.H, c.config.H, (size_t)c.config.E * sizeof *c.H);
    c.number = reals("the returned number", 0, 1, OUTPUT);
    return 1;
}

static void call_place(void) {
    int order[HMOE_MAX_EXPERTS], E = c.config.E;
    *c.status = ANSWER(hmoe_place_experts)(c.device, c.H, E, c.D, c.placement, NULL) != HMOE_OK;
    if (*c.status) {
        for (int e = 0; e < E; e++) c.device[e] = check_unset_int;
        return;
    }
    widest_first(order, c.H, E);
    for (int d = 0; d < c.D; d++) c.count[d] = 0;
    for (int e = 0; e < E; e++)
        if (c.device[e] >= 0 && c.device[e] < c.D) c.count[c.device[e]]++;
    for (int i = 0; i < E / 2; i++)     /* if all widths are equal, every pairing is right */
        c.together[i] = c.placement == HMOE_CONTIGUOUS || c.H[order[0]] == c.H[order[E - 1]]
                        || c.device[order[i]] == c.device[order[E - 1 - i]];
}

static void call_widths(void) {
    hmoe_config config = c.config;
    int order[HMOE_MAX_EXPERTS], E = config.E;
    double parameters;
    *c.fits = *c.used = *c.unequal = *c.paired = 1, *c.clue = 1;
    if (ANSWER(my_widths) == reference_my_widths) return;
    memset(config.H, 0, sizeof config.H);
    ANSWER(my_widths)(&config, c.budget);
    parameters = reference_my_parameters(&config);
    for (int e = 0; e < E; e++) if (config.H[e] < 1) parameters = 0;
    widest_first(order, config.H, E);
    *c.fits = parameters <= c.budget, *c.used = parameters >= 0.95 * c.budget;
    *c.unequal = config.H[order[0]] >= 2 * config.H[order[E - 1]];
    for (int i = 1; i < E / 2; i++)
        *c.paired &= config.H[order[i]] + config.H[order[E - 1 - i]]
                     == config.H[order[0]] + config.H[order[E - 1]];
    *c.clue = round(10 * parameters / c.budget);
}

static void call_case(void) {
    if (c.what == PLACE) call_place();
    else if (c.what == WIDTHS) call_widths();
    else if (c.what == PARAMETERS) *c.number = ANSWER(my_parameters)(&c.config);
    else *c.number = ANSWER(hmoe__activated_with)(&c.config, c.widths);
}

/* Counts with the list of all tensors. */
static double reference_my_parameters(const hmoe_config *config) {
    hmoe_model m;
    memset(&m, 0, sizeof m);
    m.config = *config;
    hmoe__list_tensors(&m, NULL);
    return (double)m.param_count;
}

/* All parameters without the experts' matrices and without V - 1 rows of the embedding; then 3 C
   for each unit of width. */
static double right_activated(void) {
    double C = c.config.C, all = reference_my_parameters(&c.config);
    for (int e = 0; e < c.config.E; e++) all -= 3.0 * c.config.L * C * c.H[e];
    return all - (c.config.V - 1) * C + 3 * C * c.widths;
}

static void right_case(void) {
    int E = c.config.E, whole = c.placement == HMOE_PAIRS ? 2 * c.D : c.D;
    if (c.what == WIDTHS) *c.fits = *c.used = *c.unequal = *c.paired = 1;
    else if (c.what == PARAMETERS) *c.number = reference_my_parameters(&c.config);
    else if (c.what == ACTIVATED) *c.number = right_activated();
    else if ((*c.status = E % whole != 0) == 0) {
        for (int d = 0; d < c.D; d++) c.count[d] = E / c.D;
        for (int i = 0; i < E / 2; i++) c.together[i] = 1;
        for (int e = 0; e < E && c.placement == HMOE_CONTIGUOUS; e++) c.device[e] = e / (E / c.D);
    }
}

static void reference_my_widths(hmoe_config *config, double budget) {   /* many are right */
    (void)config, (void)budget;
}

static hmoe_config training_config(void) { return small_config(); }

/* The predicted and the measured numbers. */
static void experiment(void) {
    static double ce[STEPS];
    hmoe_config config = small_config();
    double predicted;
    if (answers_my_widths[1] == reference_my_widths) return;
    config.E = 8, config.loss_coef[HMOE_PP] = 0.1, check_answer = 1;
    my_widths(&config, 30000);
    check_answer = 0;
    printf("\nYour widths for 30000 parameters:");
    for (int e = 0; e < 8; e++) printf(" %d", config.H[e]);
    printf(". Beside them: equal widths of the same total.\n\n");
    for (int equal = 0; equal < 2; equal++) {
        hmoe_model m;
        double inverse = 0, widths = 0;
        if (equal) hmoe_expert_sizes(config.H, 8, (long long)hmoe__total_width(&config),
                                     "homogeneous", NULL);
        for (int e = 0; e < 8; e++) inverse += 1.0 / config.H[e];
        check_answer = 1;      /* work is even if shares are proportional to 1 / H[e] */
        predicted = hmoe__activated_with(&config, config.L * config.K * 8 / inverse);
        check_answer = 0;
        if (!train(&m, &config, 5e-3, STEPS, ce, 1)) { hmoe_free(&m); return; }
        for (int l = 0; l < config.L; l++)
            for (int e = 0; e < 8; e++) widths += share(&m, l, e) * config.H[e];
        printf("    %-7s %zu parameters; activated: %.0f if work is even, %.0f as measured; "
               "cross-entropy %.3f\n", equal ? "equal" : "yours", m.param_count, predicted,
               hmoe__activated_with(&config, widths), mean_in_the_end(ce, STEPS));
        hmoe_free(&m);
    }
    printf("\nThe measured number is larger if wide experts do more than an even share of the "
           "work.\n");
}
