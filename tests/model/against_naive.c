/* What is fast is what is simple: the same numbers from two roads. The other road is naive.h, the
   model written a second time in plain loops and in double, or a few lines here.

   Runs in either type. In double the two agree to the last digits; in float, where the fast tiles
   have other shapes, to what float can hold. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "../test.h"
#include "../fixtures.h"
#include "../naive.h"

/* What rounding may do to numbers around 1. */
static const double tolerance = sizeof(hmoe_real) == 8 ? 1e-11 : 3e-5;

/* ---- Products. Every member of a list works on its own rows of arrays wider than it needs; all
   that lies beyond its edges must stay as it was. Some members add the result to what is there, or
   to something else; some take the rows that they read from other places. */

enum { MEMBERS = 9 };
enum form { FORWARD, BACKWARD_INPUT, BACKWARD_WEIGHT };
static const int row_counts[] = { 0, 1, 5, 6, 7, 63, 64, 65, 300 };
static const int widths[] = { 1, 2, 8, 15, 16, 17, 31, 48, 63, 65, 130, 193, 257, 400 };

typedef struct product {
    hmoe_linear list[MEMBERS];
    int start[MEMBERS + 1];
    int n, rows, ldx, ldy;
    hmoe_real *x, *y, *w, *other;
    int *place;                                /* [rows], where row r is read, if not at r */
    double *x_expected, *y_expected, *w_expected;
    size_t x_size, y_size, w_size;
} product;

static double *doubles(const hmoe_real *x, size_t n) {
    double *copy = (double *)small_array(n * sizeof *copy);
    for (size_t i = 0; i < n; i++) copy[i] = (double)x[i];
    return copy;
}

/* An array no larger than it must be: a sanitizer sees the first number read or written beyond. */
static void product_create(product *p, enum form form, int n, int big) {
    size_t w_offset[MEMBERS];
    int widest_in = 0, widest_out = 0;
    memset(p, 0, sizeof *p);
    p->n = n;
    for (int k = 0; k < n; k++) {
        int rows = row_counts[pick(0, big ? 8 : 6)];
        hmoe_linear *member = &p->list[k];
        member->in = widths[pick(0, big ? 13 : 8)];
        member->out = widths[pick(0, big ? 13 : 8)];
        p->start[k + 1] = p->start[k] + rows;
        if (member->in > widest_in) widest_in = member->in;
        if (member->out > widest_out) widest_out = member->out;
        w_offset[k] = p->w_size;
        p->w_size += (size_t)member->in * member->out;
    }
    p->rows = p->start[n];
    p->ldx = widest_in + pick(0, 3);
    p->ldy = widest_out + pick(0, 3);
    p->x_size = (size_t)p->rows * p->ldx;
    p->y_size = (size_t)p->rows * p->ldy;
    p->x = random_reals(p->x_size, 1), p->x_expected = doubles(p->x, p->x_size);
    p->y = random_reals(p->y_size, 1), p->y_expected = doubles(p->y, p->y_size);
    p->w = random_reals(p->w_size, 1), p->w_expected = doubles(p->w, p->w_size);
    p->other = random_reals(p->x_size + p->y_size, 1);
    p->place = (int *)small_array((size_t)(p->rows + 1) * sizeof *p->place);
    for (int r = 0; r < p->rows; r++) p->place[r] = pick(0, p->rows - 1);
    for (int k = 0; k < n; k++) {
        hmoe_linear *member = &p->list[k];
        hmoe_real *result = form == FORWARD ? p->y : p->x;
        const hmoe_real *add[3] = { NULL, result, p->other };
        member->x = p->x;
        member->y = p->y;
        if (form != BACKWARD_WEIGHT) member->add = add[pick(0, 2)];
        if (form != BACKWARD_INPUT && pick(0, 1)) member->x_row = p->place;
        if (form != FORWARD && pick(0, 1)) member->y_row = p->place;
        member->w = p->w + w_offset[k];
        member->rows = &p->start[k];
        member->ldx = p->ldx;
        member->ldy = p->ldy;
    }
}

static void product_free(product *p) {
    free(p->x); free(p->y); free(p->w); free(p->other); free(p->place);
    free(p->x_expected); free(p->y_expected); free(p->w_expected);
}

static void check_same(const hmoe_real *a, const double *b, size_t n, double allowed) {
    for (size_t i = 0; i < n; i++) CHECK_NEAR(a[i], b[i], allowed, allowed);
}

/* The three forms as triple loops, over x, w and y as they were before. */
static void naive_product(product *p, enum form form) {
    double *x = doubles(p->x, p->x_size), *y = doubles(p->y, p->y_size);
    double *w = doubles(p->w, p->w_size);
    for (int k = 0; k < p->n; k++) {
        const hmoe_linear *q = &p->list[k];
        size_t first = (size_t)(q->w - p->w);
        for (int r = p->start[k]; r < p->start[k + 1]; r++) {
            double *x_r = x + (size_t)(q->x_row ? q->x_row[r] : r) * p->ldx;
            double *y_r = y + (size_t)(q->y_row ? q->y_row[r] : r) * p->ldy;
            double *x_new = p->x_expected + (size_t)r * p->ldx;
            double *y_new = p->y_expected + (size_t)r * p->ldy;
            for (int o = 0; form == FORWARD && o < q->out; o++)
                y_new[o] = q->add ? (double)q->add[(size_t)r * p->ldy + o] : 0;
            for (int i = 0; form == BACKWARD_INPUT && i < q->in; i++)
                x_new[i] = q->add ? (double)q->add[(size_t)r * p->ldx + i] : 0;
            for (int o = 0; o < q->out; o++)
                for (int i = 0; i < q->in; i++) {
                    size_t oi = first + (size_t)o * q->in + i;
                    if (form == FORWARD) y_new[o] += w[oi] * x_r[i];
                    if (form == BACKWARD_INPUT) x_new[i] += w[oi] * y_r[o];
                    if (form == BACKWARD_WEIGHT) p->w_expected[oi] += y_r[o] * x_r[i];
                }
        }
    }
    free(x); free(y); free(w);
}

/* Computes the product with memory for the panels of `count` threads. The first time it keeps the
   result; later the result must have the same bits. */
static void compute_again(void (*fast)(const hmoe_linear *, int), product *p, int count,
                          const hmoe_real *given, hmoe_real *kept) {
    struct hmoe_panels panels = { NULL, NULL, 0 };
    hmoe_real *array[3] = { p->x, p->y, p->w };
    size_t size[3] = { p->x_size, p->y_size, p->w_size };
    threads(count);
    if (count) hmoe__grow_panels(&panels);
    threads(2);
    p->list[0].panels = count ? &panels : NULL;
    for (int i = 0; i < 3; given += size[i++]) memcpy(array[i], given, size[i] * sizeof *given);
    fast(p->list, p->n);
    for (int i = 0; i < 3; kept += size[i++])
        if (count == 2) memcpy(kept, array[i], size[i] * sizeof *kept);
        else CHECK(!memcmp(kept, array[i], size[i] * sizeof *kept));
    hmoe__free_panels(&panels);
}

static void products(enum form form) {
    threads(2);
    void (*fast)(const hmoe_linear *, int) = form == FORWARD ? hmoe__linear_forward
        : form == BACKWARD_INPUT ? hmoe__linear_backward_input : hmoe__linear_backward_weight;
    for (int round = 0; round < 60; round++) {
        product p;
        int n = round % 3 == 0 ? 1 : pick(2, MEMBERS);
        product_create(&p, form, n, n <= 2 || round == 59);
        naive_product(&p, form);
        size_t all = p.x_size + p.y_size + p.w_size;
        hmoe_real *given = reals(all), *kept = reals(all);
        memcpy(given, p.x, p.x_size * sizeof *given);
        memcpy(given + p.x_size, p.y, p.y_size * sizeof *given);
        memcpy(given + p.x_size + p.y_size, p.w, p.w_size * sizeof *given);
        for (int count = 2; count >= 0; count--) compute_again(fast, &p, count, given, kept);
        free(given), free(kept);
        /* sums of up to 400 products of N(0, 1) numbers are around 20 */
        check_same(p.y, p.y_expected, p.y_size, 20 * tolerance);
        check_same(p.x, p.x_expected, p.x_size, 20 * tolerance);
        check_same(p.w, p.w_expected, p.w_size, 20 * tolerance);
        product_free(&p);
    }
    threads(TEST_THREADS);
}

static void linear_forward(void) { products(FORWARD); }
static void linear_backward_input(void) { products(BACKWARD_INPUT); }
static void linear_backward_weight(void) { products(BACKWARD_WEIGHT); }

/* The exponential that the compiler can vectorise, against libm's. */
static void exponential(void) {
    double epsilon = sizeof(hmoe_real) == 8 ? 2.3e-16 : 1.2e-7;
    double lowest = sizeof(hmoe_real) == 8 ? -700 : -87, highest = -lowest + 1;
    for (int i = 0; i <= 20000; i++) {
        hmoe_real v = (hmoe_real)(lowest + (highest - lowest) * i / 20000);
        CHECK_NEAR(hmoe__exp(v), exp((double)v), 4 * epsilon, 0);
    }
    for (int i = -1000; i <= 1000; i++) {          /* where a softmax and a SiLU use it most */
        hmoe_real v = (hmoe_real)(i * 0.003);
        CHECK_NEAR(hmoe__exp(v), exp((double)v), 4 * epsilon, 0);
    }
    CHECK(hmoe__exp(0) == 1);
    CHECK(hmoe__exp((hmoe_real)NAN) != hmoe__exp((hmoe_real)NAN));      /* NaN stays NaN */
    CHECK(hmoe__exp((hmoe_real)-1e4) == 0);          /* exactly: masked scores rely on it */
    CHECK(hmoe__exp((hmoe_real)-1e30) == 0);
    CHECK(hmoe__exp((hmoe_real)-INFINITY) == 0);
    CHECK(hmoe__exp((hmoe_real)1e4) > 1e38);
    CHECK(hmoe__exp((hmoe_real)INFINITY) > 1e38);
}

/* ---- The model. */

/* hmoe_forward against naive_forward: logits, losses, every token's cross-entropy and gates. */
static void check_forward(hmoe_model *m, hmoe_mode mode, int B, int T) {
    const hmoe_config *c = &m->config;
    int N = B * T, E = c->E;
    double *noise = NULL;
    int *tokens = random_tokens(N, c->V), *targets = random_tokens(N, c->V);
    hmoe_real *logits = reals((size_t)N * c->V), *ce = reals(N);
    double *params = naive_params(m);
    naive slow = naive_create(c, N);
    static hmoe_route route;
    if (c->noisy_gating && mode == HMOE_TRAIN) {   /* the same n, put in by the other road */
        noise = naive_array((size_t)c->L * N * E);
        for (int l = 0; l < c->L; l++)
            for (int t = 0; t < N; t++)
                for (int e = 0; e < E; e++)
                    noise[(l * N + t) * E + e]
                        = hmoe_normal(hmoe__noise_key(m, l), HMOE__FOR_NOISE, t, e);
    }
    naive_forward(&slow, m, params, tokens, targets, B, T, T, noise);
    CHECK_INT(hmoe_forward(m, mode, tokens, targets, B, T), HMOE_OK);
    CHECK_INT(hmoe_get_logits(m, logits), HMOE_OK);
    CHECK_INT(hmoe_get_token_losses(m, ce), HMOE_OK);
    check_same(logits, slow.logits, (size_t)N * c->V, 10 * tolerance);
    check_same(ce, slow.ce, N, 10 * tolerance);
    for (int l = 0; l < c->L; l++)
        for (int t = 0; t < N; t++) {
            double *gates = slow.gates + ((size_t)l * N + t) * E;
            CHECK_INT(hmoe_get_route(m, l, t, &route), HMOE_OK);
            for (int s = 0; s < route.count; s++) {
                CHECK_NEAR(route.gate[s], gates[route.expert[s]], 0, 10 * tolerance);
                gates[route.expert[s]] = 0;
            }
            for (int e = 0; e < E; e++) CHECK(gates[e] == 0);     /* nobody else was chosen */
        }
    CHECK_NEAR(m->losses.ce, slow.losses.ce, 10 * tolerance, tolerance);
    CHECK_NEAR(m->losses.term[HMOE_LB], slow.losses.term[HMOE_LB], 10 * tolerance, 0);
    CHECK_NEAR(m->losses.term[HMOE_PP], slow.losses.term[HMOE_PP], 10 * tolerance, 0);
    CHECK_NEAR(m->losses.term[HMOE_ENT], slow.losses.term[HMOE_ENT], 10 * tolerance, 10 * tolerance);
    CHECK_NEAR(m->losses.term[HMOE_Z], slow.losses.term[HMOE_Z], 10 * tolerance, 0);
    CHECK_NEAR(m->losses.total, slow.losses.total, 10 * tolerance, 0);
    naive_free(&slow);
    free(tokens); free(targets); free(logits); free(ce); free(params); free(noise);
}

static void whole_model(void) {
    char where[120];
    test_context = where;
    for (int i = 0; i < 24; i++) {
        hmoe_model m;
        hmoe_config c = small_config();
        c.NKV = pick(0, 3);
        c.NH = c.NKV ? c.NKV * pick(1, 3) : pick(1, 3);
        c.C = c.NH * 2 * pick(1, 4);
        c.T = pick(1, 12);
        c.L = pick(1, 3);
        c.V = i == 6 ? 1 : pick(2, 80);
        c.E = i == 7 || i == 8 ? HMOE_MAX_EXPERTS : pick(1, 9);
        c.K = pick(1, c.E);
        for (int e = 0; e < c.E; e++) c.H[e] = pick(1, c.E > 9 ? 3 : 40);
        c.routing = i % 2 ? HMOE_TOP_P : HMOE_TOP_K;
        c.top_p = i % 8 == 7 ? 1 : 0.1 * pick(1, 9);
        c.gate = (hmoe_gate)(i / 2 % 3);
        c.noisy_gating = i % 5 < 2;                /* no noise unless training */
        c.rms_norm_eps = i % 3 ? 1e-5 : 1e-2;
        c.rope_theta = i % 4 ? 10000 : 500;
        sprintf(where, "(case %d: T %d C %d NH %d NKV %d L %d E %d K %d)", i, c.T, c.C, c.NH, c.NKV,
                c.L, c.E, c.K);
        for (int training = 0; training < 2; training++) {        /* which lays out memory anew */
            memset(&m, 0, sizeof m);
            CHECK_INT(hmoe_create(&m, &c, 5, 3, training), HMOE_OK);
            spread_weights(&m, 0.3, 0.7);
            check_forward(&m, HMOE_EVALUATE, 3, c.T);
            check_forward(&m, HMOE_EVALUATE, pick(1, 3), pick(1, c.T));
            if (training) check_forward(&m, HMOE_TRAIN, pick(1, 3), pick(1, c.T));
            hmoe_free(&m);
        }
    }
    test_context = "";
}

/* Null experts, biases and a layer's own top_p, together and apart, with either rule for gates. */
static void steered_models(void) {
    char where[100];
    test_context = where;
    for (int i = 0; i < STEERED_TOP_K + STEERED_TOP_P; i++)
        for (int gate = 0; gate < 3; gate++) {
            hmoe_model m;
            hmoe_config c = small_config();
            c.E = 6, c.H[4] = 20, c.H[5] = 9;
            c.routing = i < STEERED_TOP_K ? HMOE_TOP_K : HMOE_TOP_P;
            c.gate = (hmoe_gate)gate;
            c.K = pick(1, 3);
            steer(&c, i < STEERED_TOP_K ? i : i - STEERED_TOP_K);
            sprintf(where, "(combination %d, gate %d, K %d)", i, gate, c.K);
            small_create(&m, &c, 3);
            spread_weights(&m, 0.3, 0.7);
            check_forward(&m, HMOE_EVALUATE, 3, 6);
            check_forward(&m, HMOE_TRAIN, 1, 1);   /* rows so few that products take another way */
            hmoe_free(&m);
        }
    test_context = "";
}

/* B * T tokens fit in any cut that holds no more than the model was made for. */
static void more_and_shorter_sequences(void) {
    hmoe_model m;
    hmoe_config c = small_config();
    small_create(&m, &c, 2);                       /* 2 x 6 tokens */
    spread_weights(&m, 0.3, 0.7);
    check_forward(&m, HMOE_TRAIN, 12, 1);
    check_forward(&m, HMOE_TRAIN, 6, 2);
    check_forward(&m, HMOE_TRAIN, 1, 6);
    hmoe_free(&m);
}

/* One expert is a dense SwiGLU feed-forward. */
static void one_expert_is_dense(void) {
    for (int gate = 0; gate < 3; gate++) {         /* P of one is 1, so every gate rule agrees */
        hmoe_model m;
        hmoe_config c = small_config();
        c.E = c.K = 1;
        c.H[0] = 37;
        c.gate = (hmoe_gate)gate;
        small_create(&m, &c, 2);
        spread_weights(&m, 0.3, 0.7);
        check_forward(&m, HMOE_EVALUATE, 2, 6);
        CHECK_NEAR(m.losses.term[HMOE_LB], c.L, tolerance, 0);
        CHECK_NEAR(m.losses.term[HMOE_ENT], 0, 0, tolerance);
        hmoe_free(&m);
    }
}

/* With K = E and raw gates a layer is the sum of P[e] * expert e over all experts. */
static void all_experts_raw_is_the_weighted_sum(void) {
    enum { E = 4 };
    hmoe_model m;
    hmoe_config c = small_config();
    double gates[E] = { 0 }, P[E] = { 0.1, 0.2, 0.3, 0.4 };
    c.K = E;
    c.gate = HMOE_GATE_RAW;
    small_create(&m, &c, 2);
    spread_weights(&m, 0.3, 0.7);
    naive_gates(gates, P, NULL, 0, &m.config);
    for (int e = 0; e < E; e++) CHECK(gates[e] == P[e]);
    check_forward(&m, HMOE_EVALUATE, 2, 6);
    hmoe_free(&m);
}

/* Top-P with p = 1 takes everyone, which is Top-K with K = E: the same bits. */
static void top_p_of_one_is_all_experts(void) {
    hmoe_config c = small_config();
    int *tokens = random_tokens(12, c.V);
    hmoe_real *logits[2] = { reals(12 * c.V), reals(12 * c.V) };
    hmoe_losses losses[2];
    for (int i = 0; i < 2; i++) {
        hmoe_model m;
        c.routing = i ? HMOE_TOP_P : HMOE_TOP_K;
        c.top_p = 1;
        c.K = c.E;
        small_create(&m, &c, 2);
        small_draws = 500;                         /* the same weights for both */
        spread_weights(&m, 0.3, 3);                /* decided: P far below 1e-3 among them */
        CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 2, 6), HMOE_OK);
        CHECK_INT(hmoe_get_logits(&m, logits[i]), HMOE_OK);
        losses[i] = m.losses;
        hmoe_free(&m);
    }
    CHECK(!memcmp(logits[0], logits[1], 12 * c.V * sizeof(hmoe_real)));
    CHECK(!memcmp(&losses[0], &losses[1], sizeof losses[0]));
    free(tokens); free(logits[0]); free(logits[1]);
}

/* Grouped by expert, computed, and added up again = a loop over the tokens, whatever the groups:
   a layer's experts in isolation, with empty, tiny and full groups. */
static void grouped_dispatch_is_a_loop_over_tokens(void) {
    enum { N = 200, E = 5, C = 6 };
    hmoe_routes r = routes_create(N, E, E);
    hmoe_real *x = random_reals(N * C, 1), *y = reals(N * C), *rows = reals(N * E * C);
    int start_seen = 0;
    fill(r.logits, N * E, 2);
    for (int t = 0; t < N; t++) r.logits[t * E + 1] = -200;       /* nobody wants expert 1 */
    hmoe__router_softmax(&r, N, E);
    hmoe__choose(&r, HMOE_TOP_P, 0, 0.8, 1, N, E);
    hmoe__dispatch(&r, N, E);
    CHECK_INT(r.expert_start[0], 0);
    CHECK_INT(r.expert_start[2] - r.expert_start[1], 0);
    for (int e = 0; e < E; e++)
        for (int row = r.expert_start[e]; row < r.expert_start[e + 1]; row++) {
            int t = r.row_token[row], found = 0;
            if (row > r.expert_start[e]) CHECK(r.row_token[row - 1] < t);
            for (int s = 0; s < r.count[t]; s++)
                if (r.row[t * E + s] == row) {
                    found++;
                    CHECK_INT(r.expert[t * E + s], e);
                    CHECK(r.gate[t * E + s] == r.row_gate[row]);
                }
            CHECK_INT(found, 1);
            start_seen++;
        }
    for (int t = 0; t < N; t++) start_seen -= r.count[t];
    CHECK_INT(start_seen, 0);                      /* no row too many, no token dropped */
    /* "experts" that multiply by their number plus one */
    for (int e = 0; e < E; e++)
        for (int row = r.expert_start[e]; row < r.expert_start[e + 1]; row++)
            for (int i = 0; i < C; i++) rows[row * C + i] = (e + 1) * x[r.row_token[row] * C + i];
    hmoe__combine_forward(y, x, rows, &r, N, C);
    for (int t = 0; t < N; t++)
        for (int i = 0; i < C; i++) {
            double expected = (double)x[t * C + i];
            for (int s = 0; s < r.count[t]; s++)
                expected += (double)r.gate[t * E + s] * (r.expert[t * E + s] + 1) * x[t * C + i];
            CHECK_NEAR(y[t * C + i], expected, tolerance, tolerance);
        }
    routes_free(&r);
    free(x); free(y); free(rows);
}

/* The row of `from` of which row r of `to` is a copy. Heads are 4 rows; where there are fewer of
   them, neighbours share. */
static int row_shared(int r, const hmoe_tensor *from, const hmoe_tensor *to) {
    int copies = to->rows / from->rows;
    return r / 4 / copies * 4 + r % 4;
}

/* NH heads that share the keys and values of NKV heads are an ordinary model, if each head gets a
   copy of the rows of W_k and W_v that it shares: the same loss. The gradient of a shared row is
   the sum of the gradients of its copies; that of all other weights is the same. */
static void shared_keys_are_copies(void) {
    enum { NH = 6 };
    static const int shared[] = { 1, 2, 3 };
    int *tokens = random_tokens(12, 11);
    for (int i = 0; i < 3; i++) {
        hmoe_config c = small_config();
        hmoe_model few, all;
        c.NH = NH, c.C = 24, c.NKV = shared[i];
        small_create(&few, &c, 2);
        spread_weights(&few, 0.3, 0.7);
        c.NKV = 0;
        small_create(&all, &c, 2);
        CHECK_INT(few.tensor_count, all.tensor_count);
        for (size_t k = 0; k < few.tensor_count; k++) {
            const hmoe_tensor *from = &few.tensors[k], *to = &all.tensors[k];
            for (int r = 0; r < to->rows; r++)
                memcpy(all.params + to->offset + (size_t)r * to->cols, few.params + from->offset
                       + (size_t)row_shared(r, from, to) * to->cols, to->cols * sizeof(hmoe_real));
        }
        CHECK_INT(hmoe_forward(&few, HMOE_TRAIN, tokens, tokens + 1, 1, 6), HMOE_OK);
        CHECK_INT(hmoe_forward(&all, HMOE_TRAIN, tokens, tokens + 1, 1, 6), HMOE_OK);
        CHECK_NEAR(few.losses.total, all.losses.total, tolerance, 0);
        CHECK_INT(hmoe_backward(&few, 1), HMOE_OK);
        CHECK_INT(hmoe_backward(&all, 1), HMOE_OK);
        for (size_t k = 0; k < few.tensor_count; k++) {
            const hmoe_tensor *from = &few.tensors[k], *to = &all.tensors[k];
            hmoe_real *g = few.grads + from->offset;
            for (int r = 0; r < to->rows; r++)
                for (int j = 0; j < to->cols; j++)
                    g[(size_t)row_shared(r, from, to) * to->cols + j]
                        -= all.grads[to->offset + (size_t)r * to->cols + j];
            for (int j = 0; j < from->rows * from->cols; j++)
                CHECK_NEAR(g[j], 0, 0, 10 * tolerance);
        }
        hmoe_free(&few);
        hmoe_free(&all);
    }
    free(tokens);
}

/* ---- Inference. */

/* Token by token through the cache gives the logits of one pass over the sequence, in which each
   layer attends to the last T positions (all of them, until the cache is full). */
static void check_cached(const hmoe_config *c, int length) {
    hmoe_model m;
    hmoe_cache cache, other;
    int *tokens = random_tokens(length, c->V);
    hmoe_real *logits = reals(c->V), *ignored = reals(c->V);
    naive slow = naive_create(c, length);
    double *params;
    memset(&m, 0, sizeof m);
    CHECK_INT(hmoe_create(&m, c, 5, 0, 0), HMOE_OK);              /* a model that only generates */
    spread_weights(&m, 0.3, 0.7);
    params = naive_params(&m);
    naive_forward(&slow, &m, params, tokens, NULL, 1, length, c->T, NULL);
    CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
    CHECK_INT(hmoe_cache_create(&other, &m), HMOE_OK);
    for (int t = 0; t < length; t++) {
        CHECK_INT(hmoe_next(&m, &cache, tokens[t], logits), HMOE_OK);
        CHECK_INT(hmoe_next(&m, &other, tokens[length - 1 - t], ignored), HMOE_OK);
        CHECK_INT(cache.position, t + 1);
        check_same(logits, slow.logits + (size_t)t * c->V, c->V, 10 * tolerance);
    }
    hmoe_cache_free(&cache);
    hmoe_cache_free(&other);
    hmoe_free(&m);
    naive_free(&slow);
    free(tokens); free(logits); free(ignored); free(params);
}

static void cached_inference(void) {
    for (int i = 0; i < 6; i++) {
        hmoe_config c = small_config();
        c.T = i == 5 ? 1 : 4 + i;
        c.NH = 4, c.NKV = i % 3;                   /* 0: no head shares its keys */
        c.routing = i % 2 ? HMOE_TOP_P : HMOE_TOP_K;
        c.gate = (hmoe_gate)(i / 2);
        c.noisy_gating = i == 4;
        check_cached(&c, c.T);
    }
}

static void sliding_cache(void) {
    for (int i = 0; i < 4; i++) {
        hmoe_config c = small_config();
        c.T = i == 3 ? 1 : 3 + 2 * i;
        c.L = 3, c.NKV = i % 2;
        check_cached(&c, 25);                      /* the same as a fresh start only if L = 1: what
                                                      slid out still speaks through upper layers */
    }
}

/* The cache also agrees with hmoe_forward itself, at a size where the fast tiles are used. */
static void cached_inference_at_full_size(void) {
    hmoe_model m;
    hmoe_cache cache;
    hmoe_config c = hmoe_default_config();
    int *tokens = random_tokens(40, 65);
    hmoe_real *one = reals(65), *all = reals(40 * 65);
    c.V = 65, c.L = 2, c.T = 100;                  /* more than one block of queries */
    c.NKV = 2;                                     /* for 4 heads */
    small_create(&m, &c, 1);
    spread_weights(&m, 0.08, 0.2);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, NULL, 1, 40), HMOE_OK);
    CHECK_INT(hmoe_get_logits(&m, all), HMOE_OK);
    CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
    for (int t = 0; t < 40; t++) {
        CHECK_INT(hmoe_next(&m, &cache, tokens[t], one), HMOE_OK);
        for (int v = 0; v < 65; v++)
            CHECK_NEAR(one[v], all[t * 65 + v], 30 * tolerance, 30 * tolerance);
    }
    check_forward(&m, HMOE_EVALUATE, 1, 100);      /* and both with the naive model */
    hmoe_cache_free(&cache);
    hmoe_free(&m);
    free(tokens); free(one); free(all);
}

/* Sampling: what each rule keeps, by drawing often. */
static void sampling(void) {
    static const double P[5] = { 0.1, 0.4, 0.05, 0.25, 0.2 };
    int seen[4][5] = { { 0 } };
    enum { DRAWS = 4000 };
    for (int i = 0; i < DRAWS; i++)
        for (int rule = 0; rule < 4; rule++) {
            hmoe_real logits[5];
            int v;
            for (int k = 0; k < 5; k++) logits[k] = (hmoe_real)(log(P[k]) + 3);
            v = hmoe_sample(logits, 5, rule == 0 ? 0 : rule == 3 ? 0.5 : 1, rule == 1 ? 2 : 0,
                            rule == 2 ? 0.7 : 1, 42, i);
            CHECK(v >= 0 && v < 5);
            if (v >= 0 && v < 5) seen[rule][v]++;
        }
    CHECK_INT(seen[0][1], DRAWS);                  /* temperature 0: the largest */
    CHECK_INT(seen[1][1] + seen[1][3], DRAWS);     /* the two largest, as 0.4 to 0.25 */
    CHECK_NEAR(seen[1][1] / (double)DRAWS, 0.4 / 0.65, 0, 0.03);
    CHECK_INT(seen[2][1] + seen[2][3] + seen[2][4], DRAWS);       /* 0.4 + 0.25 < 0.7 */
    CHECK_NEAR(seen[2][4] / (double)DRAWS, 0.2 / 0.85, 0, 0.03);
    for (int k = 0; k < 5; k++)                    /* temperature 1/2 squares the odds */
        CHECK_NEAR(seen[3][k] / (double)DRAWS, P[k] * P[k] / 0.275, 0, 0.03);
    for (int i = 0; i < 50; i++) {                 /* the draw depends on seed and position alone */
        hmoe_real a[3] = { 0, 0, 0 }, b[3] = { 0, 0, 0 };
        CHECK_INT(hmoe_sample(a, 3, 1, 0, 1, 7, i), hmoe_sample(b, 3, 1, 0, 1, 7, i));
    }
}

int main(void) {
    threads(TEST_THREADS);
    TEST(linear_forward);
    TEST(linear_backward_input);
    TEST(linear_backward_weight);
    TEST(exponential);
    TEST(whole_model);
    TEST(steered_models);
    TEST(more_and_shorter_sequences);
    TEST(one_expert_is_dense);
    TEST(all_experts_raw_is_the_weighted_sum);
    TEST(top_p_of_one_is_all_experts);
    TEST(grouped_dispatch_is_a_loop_over_tokens);
    TEST(shared_keys_are_copies);
    TEST(cached_inference);
    TEST(sliding_cache);
    TEST(cached_inference_at_full_size);
    TEST(sampling);
    return test_summary("against_naive");
}
