/* FUNCTIONS hmoe__tile */

static struct { int m, n, K, nr, with_d; size_t c_stride, a_step; hmoe_real *c, *d, *a, *panel; } c;

static int make_case(int i) {
    static const struct { int m, n, K, nr, d, block; const char *what; } cases[] = {
        { 1, 1, 1, 1, 0, 0, "one number" }, { 1, 1, 2, 1, 0, 0, "an inner length of 2" },
        { 1, 1, 2, HMOE__NR, 0, 0, "one column of a wider panel" },
        { 2, 1, 2, 1, 0, 0, "two rows" }, { 1, 1, 1, 1, 1, 0, "d is added" },
        { 2, 1, 1, 1, 1, 0, "d is added, two rows" }, { 2, 1, 2, 1, 2, 0, "d is c itself" },
        { 2, 1, 2, 1, 0, 1, "neighbours in a row of A lie apart" },
        { HMOE__MR, HMOE__NR, 3, HMOE__NR, 0, 0, "a whole tile" },
    };
    int known = i < 9, block, a_rows, a_cols;
    if (i >= 60) return 0;
    c.m = known ? cases[i].m : pick(1, HMOE__MR);
    c.nr = known ? cases[i].nr : pick(1, 4) * (HMOE__NR / 4);
    c.n = known ? cases[i].n : pick(1, c.nr);
    c.K = known ? cases[i].K : pick(1, 9), c.with_d = known ? cases[i].d : pick(0, 2);
    block = known ? cases[i].block : pick(0, 1);
    c.c_stride = (size_t)c.n + (known ? 1 : pick(0, 5)), c.a_step = block ? HMOE__MR + 1 : 1;
    describe("%s: m = %d, n = %d, K = %d, nr = %d, c_stride = %d, a_step = %d, d %s", known
             ? cases[i].what : "at random", c.m, c.n, c.K, c.nr, (int)c.c_stride, (int)c.a_step,
             c.with_d == 0 ? "NULL" : c.with_d == 1 ? "given" : "is c");
    a_rows = block ? c.K : c.m, a_cols = block ? HMOE__MR + 1 : c.K;
    c.a = random_reals(block ? "A, its columns as rows" : "A", a_rows, a_cols, INPUT, 1);
    c.panel = random_reals("panel", c.K, c.nr, INPUT, 1);
    c.c = random_reals("c", c.m, (int)c.c_stride, ADDED, 1);
    c.d = c.with_d == 1 ? random_reals("d", c.m, (int)c.c_stride, INPUT, 1) : c.with_d ? c.c : NULL;
    return 1;
}

static void call_case(void) {
    const hmoe_real *row[HMOE__MR];
    for (int r = 0; r < HMOE__MR; r++) {
        int in = r < c.m ? r : c.m - 1;
        row[r] = c.a_step == 1 ? c.a + in * c.K : c.a + in;
    }
    ANSWER(hmoe__tile)(c.c, c.d, c.c_stride, row, c.a_step, c.panel, c.m, c.n, c.K, c.nr);
}

/* One number after the other. A(i, k) is a[i * K + k], or a[k * (MR + 1) + i] if its columns are
   rows in memory. */
static void right_case(void) {
    for (int i = 0; i < c.m; i++)
        for (int j = 0; j < c.n; j++) {
            size_t at = i * c.c_stride + j;
            double sum = c.d ? c.d[at] : 0;
            for (int k = 0; k < c.K; k++)
                sum += c.a[c.a_step == 1 ? i * c.K + k : k * (HMOE__MR + 1) + i]
                       * c.panel[k * c.nr + j];
            c.c[at] = sum;
        }
}

static hmoe_config training_config(void) { return small_config(); }
static void experiment(void) {}
