/* FUNCTIONS hmoe__swiglu_row_backward */

static struct { int H; hmoe_real *u, *h, *dh, *dg, g; } c;

static int make_case(int i) {
    static const struct { int H; double g, scale; const char *what; } cases[] = {
        { 1, 1, 1, "a width of 1, a gate of 1" }, { 1, 0.25, 1, "a width of 1" },
        { 2, 0.5, 1, "a width of 2" }, { 2, 0, 1, "a gate of 0" },
        { 2, 0.5, 10000, "extreme numbers" }, { 3, 0.75, 0, "zeros" },
    };
    int known = i < 6;
    if (i >= 30) return 0;
    c.H = known ? cases[i].H : pick(1, 12), c.g = known ? cases[i].g : pick(1, 20) / 20.0;
    describe("%s: H = %d, g = %g", known ? cases[i].what : "at random", c.H, c.g);
    c.u = random_reals("u", 2, c.H, ADDED, known ? cases[i].scale : 2);
    c.dh = random_reals("dh", 0, c.H, INPUT, 1);
    c.h = reals("h", 0, c.H, OUTPUT);
    c.dg = reals("the returned dg", 0, 1, OUTPUT);
    return 1;
}

static void call_case(void) {
    c.dg[0] = ANSWER(hmoe__swiglu_row_backward)(c.u, c.h, c.dh, c.g, c.H);
}

/* Number i of h, times g dh: the sum of these over i is L, and their derivatives are the result. */
static int right_i;
static double g_dh_h(void) {
    double a = c.u[right_i], b = c.u[c.H + right_i];
    return c.g * c.dh[right_i] * a / (1 + exp(-a)) * b;
}

static void right_case(void) {
    *c.dg = 0;
    for (int i = right_i = 0; i < c.H; right_i = ++i) {
        double *a = &c.u[i], *b = &c.u[c.H + i];
        double da = right_slope(g_dh_h, a, fmax(1, fabs(*a)));
        double db = right_slope(g_dh_h, b, fmax(1, fabs(*b)));
        *c.dg += right_slope(g_dh_h, &c.g, 1);
        c.h[i] = c.g * *a / (1 + exp(-*a)) * *b;
        *a = da, *b = db;
    }
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
