/* FUNCTIONS hmoe__rmsnorm_backward */

static const double EPS = 1e-5;
static struct { hmoe_real *dx, *dw, *dy, *x, *w, *rrms; int N, C; } c;

static int make_case(int i) {
    static const struct { int N, C; double scale; const char *what; } cases[] = {
        { 1, 1, 1, "a width of 1" }, { 1, 2, 1, "one token" }, { 2, 3, 1, "two tokens" },
        { 3, 1, 1, "a width of 1, three tokens" }, { 1, 4, 0, "a row of zeros" },
        { 2, 5, 1e6, "large numbers" },
        { 2, 4, 1e-2, "numbers whose squares are not larger than eps" },
        { 33, 3, 1, "many tokens" }, { 70, 2, 1, "more tokens" },
    };
    if (i >= 30) return 0;
    c.N = i < 9 ? cases[i].N : pick(1, 40), c.C = i < 9 ? cases[i].C : pick(1, 12);
    describe("%s: N = %d, C = %d", i < 9 ? cases[i].what : "at random", c.N, c.C);
    c.x = random_reals("x", c.N, c.C, INPUT, i < 9 ? cases[i].scale : 1);
    c.w = random_reals("w", 0, c.C, INPUT, 1);
    c.rrms = reals("rrms", 0, c.N, INPUT);
    c.dy = random_reals("dy", c.N, c.C, SCRATCH, 1);
    c.dx = random_reals("dx", c.N, c.C, ADDED, 1);
    c.dw = random_reals("dw", 0, c.C, ADDED, 1);
    for (int t = 0; t < c.N; t++) {
        double sum = 0;
        for (int k = 0; k < c.C; k++) sum += c.x[t * c.C + k] * c.x[t * c.C + k];
        c.rrms[t] = 1 / sqrt(sum / c.C + EPS);
    }
    return 1;
}

static void call_case(void) {
    ANSWER(hmoe__rmsnorm_backward)(c.dx, c.dw, c.dy, c.x, c.w, c.rrms, c.N, c.C);
}

/* The sum of dy y over one token: its derivatives are that token's dx and its part of dw. */
static int right_token;
static double dy_y(void) {
    const double *x = c.x + right_token * c.C, *dy = c.dy + right_token * c.C;
    double squares = 0, sum = 0;
    for (int i = 0; i < c.C; i++) squares += x[i] * x[i];
    for (int i = 0; i < c.C; i++) sum += dy[i] * c.w[i] * x[i] / sqrt(squares / c.C + EPS);
    return sum;
}

static void right_case(void) {
    for (right_token = 0; right_token < c.N; right_token++)
        for (int i = 0; i < c.C; i++) {
            int at = right_token * c.C + i;
            c.dx[at] += right_slope(dy_y, &c.x[at], 1 / c.rrms[right_token]);
            c.dw[i] += right_slope(dy_y, &c.w[i], 1);
        }
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
