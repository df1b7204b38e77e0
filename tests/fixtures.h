/* fixtures.h - random numbers, arrays and small models that several tests use. Include it after the
   implementation of hmoe.h. */

#ifndef FIXTURES_H
#define FIXTURES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef _WIN32
#define SMALL_TMP ""                  /* there is no /tmp: here */
#define mkdir(path, mode) mkdir(path)
static inline char *mkdtemp(char *path) { return mktemp(path) && !mkdir(path, 0) ? path : NULL; }
#else
#define SMALL_TMP "/tmp/"
#endif

/* The path of a file in a directory, until the fourth call after this one. */
static inline const char *small_path(const char *directory, const char *name) {
    static char text[4][300];
    static int next;
    next = (next + 1) % 4;
    snprintf(text[next], sizeof text[next], "%s/%s", directory, name);
    return text[next];
}

/* Sets the number of threads. Tests that do not test threads use one: these models are so small
   that waking a second thread takes longer than the work. The thread sanitizer's build uses 4
   (tests/programs/analysis.sh). */
#ifndef TEST_THREADS
#define TEST_THREADS 1
#endif
static inline void threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#else
    (void)n;
#endif
}

/* Every call of fill and pick draws new numbers. A test that first sets small_draws gives the same
   numbers after any other test. */
static uint64_t small_draws;

static inline void fill(hmoe_real *x, size_t n, double scale) {
    small_draws++;
    for (size_t i = 0; i < n; i++) x[i] = (hmoe_real)(scale * hmoe_normal(9, small_draws, i, 0));
}

static inline int pick(int low, int high)       /* low <= the result <= high */
{
    return low + (int)(hmoe_random(9, 1000, ++small_draws, 0) % (uint64_t)(high - low + 1));
}

static inline void *small_array(size_t bytes) {
    void *a = calloc(bytes ? bytes : 1, 1);
    if (!a) { puts("fixtures.h: out of memory"); exit(2); }
    return a;
}

static inline hmoe_real *reals(size_t n) { return (hmoe_real *)small_array(n * sizeof(hmoe_real)); }
static inline int *ints(size_t n) { return (int *)small_array(n * sizeof(int)); }

static inline hmoe_real *random_reals(size_t n, double scale) {
    hmoe_real *x = reals(n);
    fill(x, n, scale);
    return x;
}

static inline int *random_tokens(int n, int V) {
    int *tokens = ints(n);
    for (int i = 0; i < n; i++) tokens[i] = pick(0, V - 1);
    return tokens;
}

/* A small model of two layers: four experts of widths 5 2 7 1, Top-2. All its losses have a
   coefficient above 0. */
static inline hmoe_config small_config(void) {
    static const int widths[4] = { 5, 2, 7, 1 };
    hmoe_config c = hmoe_default_config();
    c.V = 11; c.T = 6; c.C = 8; c.L = 2; c.NH = 2; c.E = 4; c.K = 2;
    memset(c.H, 0, sizeof c.H);
    memcpy(c.H, widths, sizeof widths);
    c.loss_coef[HMOE_LB] = 0.3, c.loss_coef[HMOE_PP] = 0.2;
    c.loss_coef[HMOE_ENT] = 0.05, c.loss_coef[HMOE_Z] = 0.1;
    return c;
}

/* Combination `i` of a null expert, bias balancing and a budget: 0 .. 11 with Top-P, 0 .. 5 with
   Top-K, which has no budget. 0 is none of them. The null expert is not the first one: otherwise
   code that skips it and numbers the others wrongly would pass. */
enum { STEERED_TOP_K = 6, STEERED_TOP_P = 12 };
static inline void steer(hmoe_config *c, int i) {
    if (i % 2) c->H[c->E > 1] = 0;
    if (i % 2 && c->E == 1) c->H[0] = 1;
    c->balance = (hmoe_balance)(i / 2 % 3), c->balance_rate = 0.01;
    c->budget = i / 6 ? 0.4 : 0;
}

static inline void small_create(hmoe_model *m, const hmoe_config *c, int max_B) {
    memset(m, 0, sizeof *m);
    if (hmoe_create(m, c, 5, max_B, 1)) { printf("fixtures.h: %s\n", m->message); exit(2); }
}

/* Only the message and the backend are left in *m. */
static inline int small_is_gone(const hmoe_model *m) {
    hmoe_model zero, rest = *m;
    memset(&zero, 0, sizeof zero);
    memset(rest.message, 0, sizeof rest.message);
    rest.backend = NULL;
    return !memcmp(&rest, &zero, sizeof rest);
}

/* With the initial weights every probability is near 1/E and every gradient near 0. This function
   gives larger weights: matrices `scale` * N(0, 1), the router's `router` * N(0, 1), gains
   around 1. */
static inline void spread_weights(hmoe_model *m, double scale, double router) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        size_t n = (size_t)t->rows * t->cols;
        hmoe_real *w = m->params + t->offset;
        fill(w, n, t->dims == 1 ? 0.2 : strstr(t->name, "gate.weight") ? router : scale);
        if (t->dims == 1 && !t->state) for (size_t k = 0; k < n; k++) w[k] += 1;
        if (strstr(t->name, ".top_p")) w[0] = (hmoe_real)pick(20, 95) / 100;
    }
}

/* Routes for N tokens that belong to no model. */
static inline hmoe_routes routes_create(int N, int E, int slots) {
    hmoe_routes r;
    memset(&r, 0, sizeof r);
    r.slots = slots;
    r.logits = reals((size_t)N * E);
    r.P = reals((size_t)N * E);
    r.lse = reals(N);
    r.entropy = reals(N);
    r.count = ints(N);
    r.expert = ints((size_t)N * slots);
    r.gate = reals((size_t)N * slots);
    r.expert_start = ints((size_t)E + 1);
    r.row_token = ints((size_t)N * slots);
    r.row_gate = reals((size_t)N * slots);
    r.row = ints((size_t)N * slots);
    return r;
}

static inline void routes_free(hmoe_routes *r) {
    free(r->logits); free(r->P); free(r->lse); free(r->entropy);
    free(r->count); free(r->expert); free(r->gate);
    free(r->expert_start); free(r->row_token); free(r->row_gate); free(r->row);
}

#endif
