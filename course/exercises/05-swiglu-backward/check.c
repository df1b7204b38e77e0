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

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
