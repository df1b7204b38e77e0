/* bench.c - how near the machine's limit is training, and generation? `make bench` runs it, about a
   minute; nothing else should run meanwhile.

   The limit is measured first: multiply-adds that stay in registers, on all threads. A training
   step is counted at 6 FLOPs per activated parameter (as the routing chose) and token. Each number
   is the median of several repeats, after a warm-up. Lines that begin with "bench" are for
   programs. PROFILE in the environment: also the share of each kind of step, timed around the table
   of steps through which all of them are called. */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __clang__   /* as in hmoe.h */
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

static double now(void) {
#ifdef _OPENMP
    return omp_get_wtime();
#else
    return (double)clock() / CLOCKS_PER_SEC;
#endif
}

static int all_threads(void) {
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}

static void use_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return x[n / 2];
}

static void check(hmoe_status status, const hmoe_model *m) {
    if (!status) return;
    fprintf(stderr, "bench: %s\n", m->message);
    exit(1);
}

/* --- the limit ------------------------------------------------------------------------------- */

/* GFLOP/s of multiply-adds on as many sums as a tile has: all in registers, nothing from memory. */
static double peak(int threads) {
    enum { ROUNDS = 4000000, REPEATS = 5 };
    double rate[REPEATS];
    volatile hmoe_real sink = 0;
    for (int r = 0; r < REPEATS; r++) {
        double start = now();
        HMOE__PARALLEL_FOR(threads)
        for (int t = 0; t < threads; t++) {
            hmoe_real sum[HMOE__MR][HMOE__NR], total = 0;
            hmoe_real a = (hmoe_real)(0.5 + 1e-9 * t), b = (hmoe_real)1e-3;
            for (int i = 0; i < HMOE__MR; i++)
                for (int j = 0; j < HMOE__NR; j++) sum[i][j] = (hmoe_real)(i + j);
            for (int k = 0; k < ROUNDS; k++)
                for (int i = 0; i < HMOE__MR; i++) {
                    HMOE__SIMD
                    for (int j = 0; j < HMOE__NR; j++) sum[i][j] = sum[i][j] * a + b;
                }
            for (int i = 0; i < HMOE__MR; i++)
                for (int j = 0; j < HMOE__NR; j++) total += sum[i][j];
            sink = total;
        }
        rate[r] = 2.0 * ROUNDS * HMOE__MR * HMOE__NR * threads / (now() - start) / 1e9;
    }
    (void)sink;
    return median(rate, REPEATS);
}

/* GFLOP/s of one product in the three forms. */
static void products(int M, int N, int K) {
    enum { REPEATS = 15 };
    static const char *const names[3] = { "forward", "input", "weight" };
    void (*const form[3])(const hmoe_linear *, int) = {
        hmoe__linear_forward, hmoe__linear_backward_input, hmoe__linear_backward_weight };
    int rows[2] = { 0, M };
    size_t n = (size_t)M * K + (size_t)N * K + (size_t)M * N;
    hmoe_real *x = (hmoe_real *)calloc(n, sizeof *x);
    double rate[REPEATS];
    if (!x) exit(1);
    for (size_t i = 0; i < n; i++) x[i] = (hmoe_real)(i % 7) * (hmoe_real)0.01;
    hmoe_real *w = x + (size_t)M * K, *y = w + (size_t)N * K;
    struct hmoe_panels panels = { NULL, NULL, 0 };
    hmoe__grow_panels(&panels);
    hmoe_linear map = { x, w, y, rows, K, N, K, N, NULL, NULL, NULL, &panels };
    printf("product  %4d x %4d x %4d ", M, N, K);
    for (int f = 0; f < 3; f++) {
        for (int r = 0; r < REPEATS; r++) {
            double start = now();
            form[f](&map, 1);
            rate[r] = 2.0 * M * N * K / (now() - start) / 1e9;
        }
        printf("  %s %.0f", names[f], median(rate, REPEATS));
    }
    puts(" GFLOP/s");
    hmoe__free_panels(&panels);
    free(x);
}

/* --- training -------------------------------------------------------------------------------- */

static hmoe_config shape(int C, int L, int NH, int T, int total, int E, int K, const char *sizes) {
    hmoe_config c = hmoe_default_config();
    c.V = 65, c.C = C, c.L = L, c.NH = NH, c.T = T, c.E = E, c.K = K;
    if (hmoe_expert_sizes(c.H, E, total, sizes, NULL)) exit(1);
    return c;
}

static int *random_tokens(int n, int V) {
    int *tokens = (int *)malloc((size_t)n * sizeof *tokens);
    if (!tokens) exit(1);
    for (int i = 0; i < n; i++) tokens[i] = (int)(hmoe_random(1, 2, (uint64_t)i, 0) % (uint64_t)V);
    return tokens;
}

typedef struct speed {
    double tokens, gflops;       /* per second */
    double activated, experts;   /* parameters and experts per token */
} speed;

static const double LR = 2e-3;

/* Whole training steps: forward, backward, clipping and AdamW. */
static speed train(const hmoe_config *c, int B, int steps, int threads, const hmoe_backend *table,
                   double lr) {
    enum { REPEATS = 5 };
    hmoe_model m = { 0 };
    hmoe_adamw adamw = hmoe_default_adamw();
    int n = B * c->T, *tokens = random_tokens(n + 1, c->V);
    double rate[REPEATS];
    speed s;
    use_threads(threads);
    adamw.lr = lr;
    m.backend = table;
    check(hmoe_create(&m, c, 1, B, 1), &m);
    for (int r = -1; r < REPEATS; r++) {   /* -1: the warm-up */
        double start = now();
        for (int i = 0; i < steps; i++) {
            check(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens + 1, B, c->T), &m);
            check(hmoe_backward(&m, 1), &m);
            check(hmoe_update(&m, &adamw), &m);
        }
        if (r >= 0) rate[r] = (double)n * steps / (now() - start);
        else hmoe_reset_usage(&m);
    }
    s.tokens = median(rate, REPEATS);
    s.activated = hmoe_activated(&m);
    s.gflops = 6 * s.activated * s.tokens / 1e9;
    s.experts = 0;
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(&m, l, &usage);
        s.experts += usage.experts / c->L;
    }
    hmoe_free(&m);
    free(tokens);
    return s;
}

static void show_training(const char *name, const speed *s, double limit) {
    printf("bench %s tok/s=%.0f gflops=%.1f peak=%.1f of_peak=%.3f\n", name, s->tokens, s->gflops,
           limit, s->gflops / limit);
    fflush(stdout);
}

/* --- generation ------------------------------------------------------------------------------ */

/* Time per token against the time to read the activated parameters once, by a summing loop over
   bytes that lie where the model's lie: one thread. */
static void generation(const hmoe_config *c, const char *name) {
    enum { REPEATS = 9, TOKENS = 64 };
    hmoe_model m = { 0 };
    hmoe_cache cache;
    hmoe_real logits[65];
    volatile hmoe_real sink = 0;
    double token[REPEATS], reading[REPEATS], t, r;
    size_t n;
    use_threads(1);
    check(hmoe_create(&m, c, 1, 0, 0), &m);
    check(hmoe_cache_create(&cache, &m), &m);
    n = (size_t)hmoe_activated(&m);
    for (int k = 0; k < REPEATS; k++) {
        double start = now();
        for (int i = 0; i < TOKENS; i++) check(hmoe_next(&m, &cache, i, logits), &m);
        token[k] = (now() - start) / TOKENS;
        start = now();
        for (int i = 0; i < TOKENS; i++) {
            hmoe_real sum = 0;
            const hmoe_real *w = m.params + (size_t)i * 4096 % (m.param_count - n);
            HMOE__SIMD_SUM(sum)
            for (size_t p = 0; p < n; p++) sum += w[p];
            sink = sum;
        }
        reading[k] = (now() - start) / TOKENS;
    }
    (void)sink;
    t = median(token, REPEATS), r = median(reading, REPEATS);
    printf("bench generate %s us/token=%.1f us/reading=%.1f ratio=%.2f tok/s=%.0f\n", name, 1e6 * t,
           1e6 * r, t / r, 1 / t);
    fflush(stdout);
    hmoe_cache_free(&cache);
    hmoe_free(&m);
}

/* --- the profile: a table of steps whose functions take the time of the CPU's ---------------- */

enum { PRODUCTS, ATTENTION, LAYERS, ROUTER, EXPERTS, LOSS, OPTIMIZER, MEMORY, PARTS };
static const char *const part_names[PARTS] = { "products", "attention", "norm, RoPE, embedding",
    "router, dispatch", "SwiGLU, combine", "cross-entropy", "norm of gradients, AdamW",
    "zeroing" };
static double spent[PARTS];

#define TIMED(part, name, parameters, arguments) \
    static void timed_##name parameters { \
        double began = now(); \
        hmoe__##name arguments; \
        spent[part] += now() - began; \
    }
#define R const hmoe_real
#define ROUTES const hmoe_routes *routes
static void timed_zero(void *a, size_t n) {
    double start = now();
    memset(a, 0, n);
    spent[MEMORY] += now() - start;
}
TIMED(PRODUCTS, linear_forward, (const hmoe_linear *list, int n), (list, n))
TIMED(PRODUCTS, linear_backward_input, (const hmoe_linear *list, int n), (list, n))
TIMED(PRODUCTS, linear_backward_weight, (const hmoe_linear *list, int n), (list, n))
TIMED(LAYERS, embed_forward, (hmoe_real *x, const int *t, R *w, int N, int C), (x, t, w, N, C))
TIMED(LAYERS, embed_backward, (hmoe_real *w, const int *t, R *x, int N, int C), (w, t, x, N, C))
TIMED(LAYERS, rmsnorm_forward, (hmoe_real *y, hmoe_real *r, R *x, R *w, double eps, int N, int C),
      (y, r, x, w, eps, N, C))
TIMED(LAYERS, rmsnorm_backward,
      (hmoe_real *dx, hmoe_real *dw, hmoe_real *dy, R *x, R *w, R *r, int N, int C),
      (dx, dw, dy, x, w, r, N, C))
TIMED(LAYERS, rope, (hmoe_real *q, R *angles, int d, int B, int T, int NH, int NKV, int hs),
      (q, angles, d, B, T, NH, NKV, hs))
TIMED(ATTENTION, attention_forward,
      (hmoe_real *o, hmoe_real *a, R *q, int B, int T, int NH, int NKV, int hs),
      (o, a, q, B, T, NH, NKV, hs))
TIMED(ATTENTION, attention_backward,
      (hmoe_real *dq, hmoe_real *da, R *d, R *o, hmoe_real *a, R *q, int B, int T, int NH, int NKV,
       int hs), (dq, da, d, o, a, q, B, T, NH, NKV, hs))
TIMED(EXPERTS, swiglu_backward,
      (hmoe_real *u, hmoe_real *h, hmoe_real *g, R *d, const int *start, R *row_gate, const int *H,
       int E, int ldh), (u, h, g, d, start, row_gate, H, E, ldh))
TIMED(EXPERTS, swiglu_forward,
      (hmoe_real *h, R *u, const int *start, const int *H, int E, int ldh), (h, u, start, H, E, ldh))
TIMED(LOSS, cross_entropy_forward, (hmoe_real *ce, R *x, const int *t, int N, int V),
      (ce, x, t, N, V))
TIMED(LOSS, cross_entropy_backward, (hmoe_real *x, const int *t, double scale, int N, int V),
      (x, t, scale, N, V))
TIMED(ROUTER, router_softmax, (ROUTES, int N, int E), (routes, N, E))
TIMED(ROUTER, choose, (ROUTES, hmoe_routing r, int K, double p, int norm, int N, int E),
      (routes, r, K, p, norm, N, E))
TIMED(ROUTER, dispatch, (ROUTES, int N, int E), (routes, N, E))
TIMED(ROUTER, router_sums, (double *sums, ROUTES, int N, int E), (sums, routes, N, E))
TIMED(ROUTER, router_backward,
      (ROUTES, R *dgate, R *dP, double d_entropy, double d_lse2, int norm, int N, int E),
      (routes, dgate, dP, d_entropy, d_lse2, norm, N, E))
TIMED(EXPERTS, combine_forward, (hmoe_real *y, R *x, R *rows, ROUTES, int N, int C),
      (y, x, rows, routes, N, C))
TIMED(EXPERTS, combine_backward, (hmoe_real *dx, R *rows, ROUTES, int N, int C),
      (dx, rows, routes, N, C))
TIMED(OPTIMIZER, adamw, (hmoe_real *w, hmoe_real *g, hmoe_real *m, hmoe_real *v, size_t n,
                         const hmoe_rates *rates), (w, g, m, v, n, rates))
static void timed_experts_up(hmoe_real *h, const hmoe_linear *list, const int *start, const int *H,
                             int E, int ldh) {
    timed_linear_forward(list, E);
    timed_swiglu_forward(h, list->y, start, H, E, ldh);
}
static double timed_squared_norm(const hmoe_real *g, size_t n) {
    double start = now(), sum = hmoe__squared_norm(g, n);
    spent[OPTIMIZER] += now() - start;
    return sum;
}

static void profile(const hmoe_config *c, int B, int steps, const char *name) {
    hmoe_backend table = *hmoe__cpu_backend();
    double start, whole, rest;
#define USE(step) table.step = timed_##step
    USE(zero), USE(linear_forward), USE(linear_backward_input);
    USE(linear_backward_weight), USE(embed_forward), USE(embed_backward), USE(rmsnorm_forward);
    USE(rmsnorm_backward), USE(rope), USE(attention_forward), USE(attention_backward);
    USE(experts_up), USE(swiglu_backward), USE(cross_entropy_forward);
    USE(cross_entropy_backward), USE(router_softmax), USE(choose), USE(dispatch);
    USE(router_sums), USE(router_backward), USE(combine_forward);
    USE(combine_backward), USE(squared_norm), USE(adamw);
    memset(spent, 0, sizeof spent);
    start = now();
    train(c, B, steps, all_threads(), &table, LR);
    rest = whole = now() - start;
    for (int p = 0; p < PARTS; p++) {
        printf("profile  %s  %5.1f %%  %s\n", name, 100 * spent[p] / whole, part_names[p]);
        rest -= spent[p];
    }
    printf("profile  %s  %5.1f %%  the rest, and making the model\n", name, 100 * rest / whole);
}

int main(void) {
    int threads = all_threads();
    hmoe_config small = shape(128, 4, 4, 64, 8 * 172, 8, 2, "arithmetic");
    hmoe_config large = shape(384, 6, 6, 256, 8 * 512, 8, 2, "arithmetic");
    hmoe_config equal = shape(128, 4, 4, 64, 8 * 172, 8, 2, "homogeneous");
    hmoe_config by_mass = small;   /* an untrained router gives each about 1/8, so this takes two */
    double limit, first = 0;
    speed s, one;
    by_mass.routing = HMOE_TOP_P, by_mass.top_p = 0.2, by_mass.loss_coef[HMOE_PP] = 0;
    use_threads(threads);
    limit = peak(threads);
    printf("peak     %.1f GFLOP/s on %d threads, tile %d x %d\n", limit, threads, HMOE__MR,
           (int)HMOE__NR);
    products(768, 384, 128);
    products(192, 496, 128);
    products(2048, 1152, 384);
    products(512, 1408, 384);
    s = train(&small, 12, 20, threads, NULL, LR);
    show_training("train width=128", &s, limit);
    one = train(&small, 12, 10, 1, NULL, LR);
    printf("bench threads width=128 one=%.0f all=%.0f ratio=%.2f\n", one.tokens, s.tokens,
           s.tokens / one.tokens);
    one = train(&equal, 12, 20, threads, NULL, LR);
    printf("bench sizes width=128 arithmetic=%.0f homogeneous=%.0f ratio=%.3f\n", s.tokens,
           one.tokens, s.tokens / one.tokens);
    s = train(&small, 12, 20, threads, NULL, 0);   /* untrained, the router goes on choosing two */
    one = train(&by_mass, 12, 20, threads, NULL, 0);
    printf("bench routing width=128 topk=%.0f topp=%.0f experts=%.2f ratio=%.3f\n", s.tokens,
           one.tokens, one.experts, one.tokens / s.tokens);
    s = train(&large, 8, 1, threads, NULL, LR);
    show_training("train width=384", &s, limit);
    for (int E = 8; E <= 64; E *= 2) {
        hmoe_config c = shape(384, 6, 6, 256, 4096, E, E / 4, "arithmetic");
        s = train(&c, 8, 1, threads, NULL, LR);
        first = E == 8 ? s.tokens : first;
        printf("bench experts E=%d K=%d tok/s=%.0f time=%.2f\n", E, E / 4, s.tokens,
               first / s.tokens);
        fflush(stdout);
    }
    generation(&small, "width=128");
    generation(&large, "width=384");
    if (getenv("PROFILE")) {
        profile(&small, 12, 20, "width=128");
        profile(&large, 8, 1, "width=384");
    }
    return 0;
}
