/* Every gradient against central differences, in double: each layer pair by itself, then the whole
   model, tensor by tensor and loss by loss.

   A gradient is right if it differs from the difference quotient by less than a millionth of the
   tensor's largest (plus 1e-9). Two traps are closed. The choice of experts is piecewise constant,
   so a step must not cross a switch: where one does it is made smaller, then given up, and most
   elements must have been checked in the end. And zero equals zero: a gradient that must not be
   zero is required not to be, one that must be is required to be. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "../test.h"
#include "../fixtures.h"

/* The model's losses: cross-entropy, each term of the router (TERM + HMOE_LB ...), the total. A layer
   alone has one loss, number 0. */
enum { CE, TERM, TOTAL = TERM + HMOE_LOSS_TERMS, TERMS };

static const char *term_name(int k) {
    return k == CE ? "ce" : k == TOTAL ? "total" : hmoe_loss_terms[k - TERM].name;
}

enum expected { NONZERO, ZERO };
enum { MAX_ELEMENTS = 24 };                    /* checked of one tensor, evenly spread */

typedef void (*loss_function)(double loss[TERMS]);
typedef uint64_t (*choice_function)(void);     /* a fingerprint of who is chosen, after a loss */

/* (8 (L(x+h) - L(x-h)) - (L(x+2h) - L(x-2h))) / 12h: the central difference with its h^2 error
   removed. Returns 0 if the choice of experts was not the same at all four points. */
static int difference(double d[TERMS], hmoe_real *x, double h, int terms, loss_function loss,
                      choice_function choice, uint64_t chosen) {
    static const double at[4] = { 1, -1, 2, -2 }, factor[4] = { 8, -8, -1, 1 };
    hmoe_real saved = *x;
    int same = 1;
    for (int k = 0; k < terms; k++) d[k] = 0;
    for (int i = 0; i < 4 && same; i++) {
        double value[TERMS] = { 0 };
        *x = (hmoe_real)(saved + at[i] * h);
        loss(value);
        for (int k = 0; k < terms; k++) d[k] += factor[i] * value[k] / (12 * h);
        same = !choice || choice() == chosen;
    }
    *x = saved;
    return same;
}

/* The gradients dx[k] of x [n], k < terms, against differences of loss. */
static void check_gradients(const char *name, hmoe_real *x, const hmoe_real *const *dx, size_t n,
                            int terms, const enum expected *expected, loss_function loss,
                            choice_function choice) {
    double worst[TERMS] = { 0 }, largest[TERMS] = { 0 }, ignored[TERMS];
    size_t stride = n / MAX_ELEMENTS + 1;
    int tried = 0, checked = 0;
    uint64_t chosen = 0;
    if (n == 0) return;
    loss(ignored);
    if (choice) chosen = choice();
    for (int k = 0; k < terms; k++)
        for (size_t i = 0; i < n; i++)
            if (fabs(dx[k][i]) > largest[k]) largest[k] = fabs(dx[k][i]);
    for (size_t i = 0; i < n; i += stride, tried++) {
        double d[TERMS];
        if (!difference(d, &x[i], 3e-4, terms, loss, choice, chosen)
            && !difference(d, &x[i], 3e-5, terms, loss, choice, chosen)) continue;
        for (int k = 0; k < terms; k++) {
            double error = fabs(dx[k][i] - d[k]);
            if (!(error <= worst[k])) worst[k] = error;        /* a NaN is the worst of all */
        }
        checked++;
    }
    for (int k = 0; k < terms; k++) {
        int ok = worst[k] <= 1e-6 * largest[k] + 1e-9
                 && (expected[k] == ZERO ? largest[k] < 1e-12 : largest[k] > 1e-9)
                 && 2 * checked > tried;
        if (!ok)
            printf("gradient of %s%s%s: off by %.3g, largest %.3g%s, %d of %d checked\n", name,
                   terms > 1 ? " for " : "", terms > 1 ? term_name(k) : "", worst[k], largest[k],
                   expected[k] == ZERO ? " (should be zero)" : "", checked, tried);
        CHECK(ok);
    }
}

static void check_gradient(const char *name, hmoe_real *x, const hmoe_real *dx, size_t n,
                           loss_function loss) {
    static const enum expected nonzero[1] = { NONZERO };
    check_gradients(name, x, &dx, n, 1, nonzero, loss, NULL);
}

static double dot(const hmoe_real *a, const hmoe_real *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

/* ---- Layers. The loss of a layer is <c, y>: its output y times fixed random numbers c, which are
   therefore dL/dy. What the losses below read stands here. */

static int N, B, T, NH, NKV, hs, C, V, E;
static hmoe_real *x, *y, *c, *w, *scratch;
static hmoe_routes routes;

static int expert_start[4] = { 0, 3, 3, 10 };  /* the second expert has no rows */
static int width[3] = { 4, 9, 17 };
static hmoe_linear list[3];
static void linear_loss(double *loss) {
    hmoe__linear_forward(list, 3);
    *loss = dot(c, y, 10 * 20);
}

static void linear(void) {
    int rows = 10, in = 5, ldx = 7, ldy = 20;
    hmoe_real *weights = random_reals(30 * 5, 1), *dweights = random_reals(30 * 5, 1);
    hmoe_real *before = reals(30 * 5), *dx = reals(10 * 7);
    hmoe_linear input[3], weight[3];
    x = random_reals(rows * ldx, 1);
    y = reals(rows * ldy);
    c = random_reals(rows * ldy, 1);
    memcpy(before, dweights, 30 * 5 * sizeof(hmoe_real));
    for (int e = 0, offset = 0; e < 3; offset += width[e++] * in) {
        hmoe_linear member = { x, weights + offset, y, &expert_start[e], in, width[e], ldx, ldy,
                               NULL, NULL, NULL, NULL };
        list[e] = input[e] = weight[e] = member;
        input[e].y = weight[e].y = c;
        input[e].x = dx;
        weight[e].w = dweights + offset;
    }
    for (int r = 0; r < rows; r++)             /* c is 0 where no member writes */
        for (int o = width[r < 3 ? 0 : 2]; o < ldy; o++) c[r * ldy + o] = 0;
    hmoe__linear_backward_input(input, 3);
    check_gradient("linear x", x, dx, rows * ldx, linear_loss);
    hmoe__linear_backward_weight(weight, 3);
    for (int i = 0; i < 30 * 5; i++) dweights[i] -= before[i];    /* it was added to */
    check_gradient("linear W", weights, dweights, 30 * 5, linear_loss);
    for (int i = 4 * 5; i < 13 * 5; i++) CHECK(dweights[i] == 0); /* no rows, no gradient */
    free(weights); free(dweights); free(before); free(dx); free(x); free(y); free(c);
}

static int *tokens;
static void embed_loss(double *loss) {
    hmoe__embed_forward(y, tokens, w, N, C);
    *loss = dot(c, y, (size_t)N * C);
}

static void embed(void) {
    N = 9, C = 6, V = 4;                       /* more tokens than vocabulary: rows add up */
    hmoe_real *dw = reals(V * C);
    tokens = random_tokens(N, V);
    w = random_reals(V * C, 1);
    y = reals(N * C);
    c = random_reals(N * C, 1);
    hmoe__embed_backward(dw, tokens, c, N, C);
    check_gradient("embedding w", w, dw, V * C, embed_loss);
    free(dw); free(tokens); free(w); free(y); free(c);
}

static void norm_loss(double *loss) {
    hmoe__rmsnorm_forward(y, scratch, x, w, 1e-5, N, C);
    *loss = dot(c, y, (size_t)N * C);
}

static void rmsnorm(void) {
    static const int sizes[5][2] = { { 1, 2 }, { 7, 6 }, { 70, 33 }, { 3, 128 }, { 5, 1 } };
    for (int i = 0; i < 5; i++) {
        N = sizes[i][0], C = sizes[i][1];
        size_t n = (size_t)N * C;
        /* with C = 1, y is the sign of x but for eps: small x, so that there is a gradient */
        hmoe_real *dx = random_reals(n, 1), *dw = random_reals(C, 1);
        hmoe_real *dx0 = reals(n), *dw0 = reals(C), *dy = reals(n);
        x = random_reals(n, C == 1 ? 0.01 : 1), y = reals(n), c = random_reals(n, 1);
        w = random_reals(C, 1), scratch = reals(N);
        memcpy(dx0, dx, n * sizeof *dx);
        memcpy(dw0, dw, C * sizeof *dw);
        hmoe__rmsnorm_forward(y, scratch, x, w, 1e-5, N, C);
        memcpy(dy, c, n * sizeof *dy);                            /* it is used up */
        hmoe__rmsnorm_backward(dx, dw, dy, x, w, scratch, N, C);
        for (size_t k = 0; k < n; k++) dx[k] -= dx0[k];           /* both were added to */
        for (int k = 0; k < C; k++) dw[k] -= dw0[k];
        if (C > 1) check_gradient("rmsnorm x", x, dx, n, norm_loss);
        check_gradient("rmsnorm w", w, dw, C, norm_loss);
        free(dx); free(dw); free(dx0); free(dw0); free(dy);
        free(x); free(y); free(c); free(w); free(scratch);
    }
}

static hmoe_real *angles;
static void rope_loss(double *loss) {
    size_t n = (size_t)B * T * (NH + 2 * NKV) * hs;
    memcpy(y, x, n * sizeof *y);
    hmoe__rope(y, angles, 1, B, T, NH, NKV, hs);
    *loss = dot(c, y, n);
}

static void rope_case(int B_, int T_, int NH_, int NKV_, int hs_) {
    B = B_, T = T_, NH = NH_, NKV = NKV_, hs = hs_;
    size_t n = (size_t)B * T * (NH + 2 * NKV) * hs;
    x = random_reals(n, 1), y = reals(n), c = random_reals(n, 1);
    angles = random_reals((size_t)T * hs, 1);
    for (int t = 0; t < T; t++)
        for (int k = 0; k < hs / 2; k++) {                        /* cosines, then sines */
            double angle = angles[t * hs + k];
            angles[t * hs + k] = cos(angle);
            angles[t * hs + hs / 2 + k] = sin(angle);
        }
    hmoe_real *dx = reals(n);
    memcpy(dx, c, n * sizeof *dx);
    hmoe__rope(dx, angles, -1, B, T, NH, NKV, hs);
    check_gradient("rope qkv", x, dx, n, rope_loss);
    free(dx); free(x); free(y); free(c); free(angles);
}

static void rope(void) {
    rope_case(1, 1, 1, 1, 2), rope_case(2, 5, 3, 3, 4), rope_case(1, 9, 1, 1, 6);
    rope_case(2, 3, 2, 2, 16);
}

static void attention_loss(double *loss) {
    hmoe__attention_forward(y, scratch, x, B, T, NH, NKV, hs);
    *loss = dot(c, y, (size_t)B * T * NH * hs);
}

static void attention_case(int B_, int T_, int NH_, int NKV_, int hs_) {
    B = B_, T = T_, NH = NH_, NKV = NKV_, hs = hs_;
    size_t n = (size_t)B * T * NH * hs, all = n + (size_t)B * T * 2 * NKV * hs;
    size_t pairs = (size_t)B * NH * T * (T > 64 ? T : 64);
    hmoe_real *dx = random_reals(all, 1), *datt = reals(pairs);        /* dx is replaced */
    x = random_reals(all, 1), y = reals(n), c = random_reals(n, 1), scratch = reals(pairs);
    hmoe__attention_forward(y, scratch, x, B, T, NH, NKV, hs);
    hmoe__attention_backward(dx, datt, c, y, scratch, x, B, T, NH, NKV, hs);
    check_gradient("attention qkv", x, dx, all, attention_loss);
    free(dx); free(datt); free(x); free(y); free(c); free(scratch);
}

static void attention(void) {
    attention_case(1, 1, 1, 1, 2), attention_case(2, 5, 3, 3, 4), attention_case(1, 9, 1, 1, 6);
    attention_case(3, 2, 2, 2, 2), attention_case(1, 17, 2, 2, 16), attention_case(1, 67, 1, 1, 2);
}

/* Routes of N tokens among E experts from random logits. */
static void random_routes(hmoe_routing routing, int K, double top_p, int norm) {
    routes = routes_create(N, E, routing == HMOE_TOP_K ? K : E);
    fill(routes.logits, (size_t)N * E, 1);
    hmoe__router_softmax(&routes, N, E);
    hmoe__choose(&routes, routing, K, top_p, norm, N, E);
    hmoe__dispatch(&routes, N, E);
}

/* c stands for <W2^T dy>, the gradient of an expert's output before its gate. */
static int H[5] = { 3, 1, 19, 8, 1 };
static void swiglu_loss(double *loss) {
    int ldh = 19;
    *loss = 0;
    hmoe__swiglu_forward(y, x, routes.expert_start, H, E, ldh);
    for (int e = 0; e < E; e++)
        for (int r = routes.expert_start[e]; r < routes.expert_start[e + 1]; r++)
            *loss += routes.row_gate[r] * dot(c + r * ldh, y + r * ldh, H[e]);
}

static void swiglu(void) {
    N = 6, E = 5;
    int rows = 2 * N, ldh = 19;
    random_routes(HMOE_TOP_K, 2, 0, 0);
    hmoe_real *du = reals(rows * 2 * ldh), *h = reals(rows * ldh), *dgate = reals(rows);
    hmoe_real *forward = reals(rows * ldh), *by_row = reals((size_t)rows * 2 * ldh);
    x = random_reals((size_t)rows * 2 * ldh, 1), y = reals(rows * ldh);
    c = random_reals(rows * ldh, 1);
    memcpy(du, x, (size_t)rows * 2 * ldh * sizeof *du);
    hmoe__swiglu_forward(h, x, routes.expert_start, H, E, ldh);
    memcpy(forward, h, (size_t)rows * ldh * sizeof *h);
    hmoe__swiglu_backward(du, h, dgate, c, routes.expert_start, routes.row_gate, H, E, ldh);
    for (int e = 0; e < E; e++)
        for (int r = routes.expert_start[e]; r < routes.expert_start[e + 1]; r++) {
            check_gradient("swiglu u", x + r * 2 * ldh, du + r * 2 * ldh, 2 * H[e], swiglu_loss);
            for (int i = 0; i < H[e]; i++)     /* h times its gate, for the gradient of W2 */
                CHECK_NEAR(h[r * ldh + i], routes.row_gate[r] * forward[r * ldh + i], 1e-14, 0);
        }
    check_gradient("swiglu gate", routes.row_gate, dgate, rows, swiglu_loss);
    routes_free(&routes);
    free(du); free(h); free(dgate); free(forward); free(by_row); free(x); free(y); free(c);
}

static int *targets;
static void ce_loss(double *loss) {
    *loss = 0;
    hmoe__cross_entropy_forward(y, x, targets, N, V);
    for (int t = 0; t < N; t++) *loss += 0.7 * y[t];
}

static void cross_entropy(void) {
    static const int sizes[4][2] = { { 1, 2 }, { 5, 7 }, { 3, 65 }, { 2, 300 } };
    for (int i = 0; i < 4; i++) {
        N = sizes[i][0], V = sizes[i][1];
        targets = random_tokens(N, V);
        x = random_reals(N * V, 2), y = reals(N);
        hmoe_real *dx = reals(N * V);
        memcpy(dx, x, (size_t)N * V * sizeof *dx);
        hmoe__cross_entropy_backward(dx, targets, 0.7, N, V);
        check_gradient("cross-entropy logits", x, dx, N * V, ce_loss);
        free(dx); free(targets); free(x); free(y);
    }
}

/* Every row takes its token's x; the backward pass of that is combine's, which adds up what the
   rows send back. (Combine's other half, the gate, is SwiGLU's.) */
static void taken_loss(double *loss) {
    *loss = 0;
    for (int row = 0; row < routes.expert_start[E]; row++)
        *loss += dot(c + row * C, x + routes.row_token[row] * C, (size_t)C);
}

static void combine(void) {
    N = 7, E = 5, C = 6;
    random_routes(HMOE_TOP_P, 0, 0.6, 1);
    size_t rows = routes.expert_start[E], n = (size_t)N * C;
    hmoe_real *dx = random_reals(n, 1);   /* replaced */
    x = random_reals(n, 1), c = random_reals(rows * C, 1);
    hmoe__combine_backward(dx, c, &routes, N, C);
    check_gradient("combine x", x, dx, n, taken_loss);
    free(dx); free(x); free(c);
    routes_free(&routes);
}

/* The router: gates, a pull on every P, entropy and log-sum-exp, each with its own weight. */
static hmoe_routing routing;
static int K, norm;
static double top_p, pull_entropy, pull_lse2;
static hmoe_real *pull_P;
static uint64_t routes_choice(void) {
    uint64_t choice = 0;
    for (int t = 0; t < N; t++) {
        const int *S = routes.expert + t * routes.slots;
        uint64_t set = 0;
        for (int s = 0; s < routes.count[t]; s++) set |= 1ull << S[s];
        choice = hmoe_random(choice, 1, set, 0);
    }
    return choice;
}

static void router_loss(double *loss) {
    /* a gate counts by what its expert makes of it, wherever its row may be */
    memcpy(routes.logits, x, (size_t)N * E * sizeof *x);
    hmoe__router_softmax(&routes, N, E);
    hmoe__choose(&routes, routing, K, top_p, norm, N, E);
    hmoe__dispatch(&routes, N, E);
    *loss = 0;
    for (int t = 0; t < N; t++) {
        for (int s = 0; s < routes.count[t]; s++) {
            int at = t * routes.slots + s;
            *loss += routes.gate[at] * c[t * E + routes.expert[at]];
        }
        for (int e = 0; e < E; e++) *loss += pull_P[e] * routes.P[t * E + e];
        *loss += pull_entropy * routes.entropy[t] + pull_lse2 * routes.lse[t] * routes.lse[t];
    }
}

static void router_case(int with_gates, int with_P, int with_entropy, int with_lse) {
    static const enum expected expected[2] = { NONZERO, ZERO };
    size_t n = (size_t)N * E;
    int zero = 1;
    double ignored;
    hmoe_real *dgate = reals(n);
    const hmoe_real *dx;
    x = random_reals(n, 1);
    c = with_gates ? random_reals(n, 1) : reals(n);
    pull_P = with_P ? random_reals(E, 1) : reals(E);
    pull_entropy = with_entropy ? 0.4 : 0;
    pull_lse2 = with_lse ? -0.3 : 0;
    routes = routes_create(N, E, routing == HMOE_TOP_K ? K : E);
    router_loss(&ignored);
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes.count[t]; s++)
            dgate[routes.row[t * routes.slots + s]]
                = c[t * E + routes.expert[t * routes.slots + s]];
    /* a gate that is always 1 sends no gradient, and a softmax of one is 1 */
    for (int t = 0; t < N; t++) if (with_gates && E > 1 && (!norm || routes.count[t] > 1)) zero = 0;
    if (E > 1 && (with_P || with_entropy)) zero = 0;
    if (with_lse) zero = 0;
    hmoe__router_backward(&routes, dgate, pull_P, pull_entropy, pull_lse2, norm, N, E);
    hmoe_real *gradient = reals(n);
    memcpy(gradient, routes.logits, n * sizeof *gradient);
    dx = gradient;
    check_gradients("router logits", x, &dx, n, 1, &expected[zero], router_loss, routes_choice);
    free(dgate); free(gradient); free(x); free(c); free(pull_P);
    routes_free(&routes);
}

static void router(void) {
    static const int sizes[5][3] = { { 5, 4, 2 }, { 6, 8, 1 }, { 4, 3, 3 }, { 2, 1, 1 },
                                     { 1, 9, 5 } };
    char where[80];
    test_context = where;
    for (int i = 0; i < 5; i++)
        for (int rule = 0; rule < 5; rule++)
            for (int parts = 0; parts < 5; parts++) {
                N = sizes[i][0], E = sizes[i][1], K = sizes[i][2];
                routing = rule < 2 ? HMOE_TOP_K : HMOE_TOP_P;
                norm = rule % 2;
                top_p = rule == 4 ? 1 : 0.6;
                sprintf(where, "(N %d E %d K %d rule %d parts %d)", N, E, K, rule, parts);
                router_case(parts == 0 || parts == 4, parts == 1 || parts == 4,
                            parts == 2 || parts == 4, parts == 3 || parts == 4);
            }
    test_context = "";
}

/* Noisy gating: r += n * gain * softplus(raw) / rms(softplus(raw)); here x is raw, w the gain. */
static void noise_loss(double *loss) {
    memset(routes.logits, 0, (size_t)N * E * sizeof *routes.logits);
    hmoe__noise_forward(&routes, x, w, 1e-5, 77, 3, N, E);
    *loss = dot(c, routes.logits, (size_t)N * E);
}

static void noise(void) {
    N = 5, E = 6;
    size_t n = (size_t)N * E;
    hmoe_real *dx = reals(n), *dw = reals(E);
    routes = routes_create(N, E, 2);
    x = random_reals(n, 2), w = random_reals(E, 1), c = random_reals(n, 1);
    x[0] = -40;                                /* both ends of softplus */
    x[n - 1] = 40;
    memcpy(routes.logits, c, n * sizeof *c);   /* where the router's backward leaves dL/dr */
    hmoe__noise_backward(dx, dw, &routes, x, w, 1e-5, 77, 3, N, E);
    check_gradient("noise raw", x, dx, n, noise_loss);
    check_gradient("noise gain", w, dw, E, noise_loss);
    free(dx); free(dw); free(x); free(w); free(c);
    routes_free(&routes);
}

/* ---- The model. */

static hmoe_model model;
static int unused_experts;                     /* seen in all cases together */

static void model_loss(double loss[TERMS]) {
    hmoe_status status = hmoe_forward(&model, HMOE_TRAIN, tokens, targets, B, T);
    const hmoe_losses *l = &model.losses;
    CHECK(status == HMOE_OK);
    loss[CE] = l->ce;
    loss[TOTAL] = l->total;
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) loss[TERM + i] = l->term[i];
}

static uint64_t model_choice(void) {
    static hmoe_route route;
    uint64_t choice = 0;
    for (int l = 0; l < model.config.L; l++)
        for (int t = 0; t < B * T; t++) {
            uint64_t set = 0;
            CHECK(hmoe_get_route(&model, l, t, &route) == HMOE_OK);
            for (int s = 0; s < route.count; s++) set |= 1ull << route.expert[s];
            choice = hmoe_random(choice, 1, set, 0);
        }
    return choice;
}

/* The gradient of a loss by itself: of the total with its coefficient as 1, minus that without. */
static hmoe_real *model_gradient(int term) {
    hmoe_config saved = model.config;
    hmoe_real *gradient = reals(model.param_count);
    double ignored[TERMS];
    for (int pass = 0; pass < (term == CE || term == TOTAL ? 1 : 2); pass++) {
        for (int i = 0; i < HMOE_LOSS_TERMS && term != TOTAL; i++)
            model.config.loss_coef[i] = TERM + i == term && pass == 0;
        model_loss(ignored);
        CHECK(hmoe_backward(&model, 1) == HMOE_OK);
        for (size_t i = 0; i < model.param_count; i++)
            gradient[i] += pass == 0 ? model.grads[i] : -model.grads[i];
        memset(model.grads, 0, model.param_count * sizeof *model.grads);
        model.step_tokens = 0;                 /* the same noise again */
    }
    model.config = saved;
    return gradient;
}

/* Does a loss move with the router's weights of layer l? Facts of the routes decide. */
typedef struct facts {
    int used[HMOE_MAX_EXPERTS];                /* tokens of each expert */
    int gates_move;                            /* some gate is not a constant 1 */
    int moves[TERMS];                          /* this layer's part of a loss has a gradient */
} facts;

static facts layer_facts(int l) {
    static hmoe_route route;
    facts f;
    const hmoe_config *cfg = &model.config;
    int raw_by_default = cfg->routing == HMOE_TOP_K && cfg->K == 1;
    int normed = cfg->gate == HMOE_GATE_NORM || (cfg->gate == HMOE_GATE_DEFAULT && !raw_by_default);
    memset(&f, 0, sizeof f);
    for (int t = 0; t < B * T; t++) {
        CHECK(hmoe_get_route(&model, l, t, &route) == HMOE_OK);
        int wide = 0;                          /* the experts that add something */
        for (int s = 0; s < route.count; s++) {
            f.used[route.expert[s]]++;
            wide += cfg->H[route.expert[s]] > 0;
        }
        if (cfg->E > 1 && wide && (!normed || route.count > 1)) f.gates_move = 1;
    }
    /* sum_e a_e Phat_e is a constant where all a_e are equal, since Phat adds up to 1 */
    for (int e = 1; e < cfg->E; e++) {
        if (f.used[e] != f.used[0]) f.moves[TERM + HMOE_LB] = 1;
        if (f.used[e] * cfg->H[e] != f.used[0] * cfg->H[0]) f.moves[TERM + HMOE_PP] = 1;
    }
    for (int i = HMOE_ENT; i < HMOE_LOSS_TERMS; i++) f.moves[TERM + i] = cfg->E > 1;
    f.moves[TERM + HMOE_Z] = 1;
    return f;
}

static enum expected expect(const hmoe_tensor *t, int term, const facts *f) {
    int L = model.config.L, l = -1, e = -1, from, terms_below = 0, own = 0;
    const char *expert = strstr(t->name, ".experts.");
    int router = strstr(t->name, ".gate.") || strstr(t->name, ".noise");
    sscanf(t->name, "model.layers.%d.", &l);
    if (expert) sscanf(expert, ".experts.%d.", &e);
    if (t->state) return ZERO;                 /* it only decides the choice */
    if (e >= 0 && f[l].used[e] == 0) return ZERO;
    if (T == 1 && (strstr(t->name, "q_proj") || strstr(t->name, "k_proj"))) return ZERO;
    if (strstr(t->name, "lm_head") || !strcmp(t->name, "model.norm.weight"))
        return term == CE || term == TOTAL ? NONZERO : ZERO;
    /* the losses of the layers that see this tensor: an expert and a gate reach the next layer,
       what comes before the router this one too, the router's weights this one at any rate */
    from = l < 0 ? 0 : e >= 0 || router ? l + 1 : l;
    for (int k = TERM; k < TOTAL; k++) {
        if (term != TOTAL && term != k) continue;
        for (int i = from; i < L; i++) terms_below |= f[i].moves[k];
        if (router) own |= f[l].moves[k];
    }
    if (term == CE || term == TOTAL) terms_below = 1;   /* which every tensor reaches */
    if (router) return own || (f[l].gates_move && terms_below) ? NONZERO : ZERO;
    return terms_below ? NONZERO : ZERO;
}

static double dropout;                         /* of the models that are checked */

static void check_model(const hmoe_config *config, double router_scale) {
    facts *f = (facts *)small_array(config->L * sizeof *f);
    hmoe_real *gradient[TERMS];
    char where[200];
    double ignored[TERMS];
    sprintf(where, "(B %d T %d C %d L %d NH %d NKV %d E %d K %d %s gate %d p %g noise %d "
            "balance %d budget %g)", B, T, config->C, config->L, config->NH, config->NKV, config->E,
            config->K, config->routing == HMOE_TOP_K ? "top-k" : "top-p", config->gate, config->top_p,
            config->noisy_gating, config->balance, config->budget);
    test_context = where;
    small_create(&model, config, B);
    model.dropout = dropout;
    spread_weights(&model, 0.4, router_scale);
    tokens = random_tokens(B * T, config->V);
    targets = random_tokens(B * T, config->V);
    for (int k = 0; k < TERMS; k++) gradient[k] = model_gradient(k);
    model_loss(ignored);
    for (int l = 0; l < config->L; l++) {
        f[l] = layer_facts(l);
        for (int e = 0; e < config->E; e++) unused_experts += f[l].used[e] == 0;
    }
    for (size_t i = 0; i < model.tensor_count; i++) {
        const hmoe_tensor *t = &model.tensors[i];
        const hmoe_real *dx[TERMS];
        enum expected expected[TERMS];
        for (int k = 0; k < TERMS; k++) {
            dx[k] = gradient[k] + t->offset;
            expected[k] = expect(t, k, f);
        }
        check_gradients(t->name, model.params + t->offset, dx, (size_t)t->rows * t->cols, TERMS,
                        expected, model_loss, model_choice);
    }
    for (int k = 0; k < TERMS; k++) free(gradient[k]);
    free(tokens); free(targets); free(f);
    hmoe_free(&model);
    test_context = "";
}

/* Every routing rule with every gate rule, without and with noise. */
static void model_rules(hmoe_routing rule) {
    for (int i = 0; i < 6; i++) {
        hmoe_config config = small_config();
        config.routing = rule;
        config.gate = i % 3 == 0 ? HMOE_GATE_DEFAULT : i % 3 == 1 ? HMOE_GATE_NORM : HMOE_GATE_RAW;
        config.noisy_gating = i >= 3;
        B = 2, T = 4;
        check_model(&config, 0.5);
    }
}

static void model_top_k(void) { model_rules(HMOE_TOP_K); }
static void model_top_p(void) { model_rules(HMOE_TOP_P); }

/* One expert per token: the raw gate is the default, and the one through which the router learns;
   normalised, the gate is 1 and the router's gradient from the cross-entropy zero. */
static void model_one_expert_per_token(void) {
    hmoe_config config = small_config();
    config.K = 1;
    B = 2, T = 3;
    check_model(&config, 0.5);
    config.gate = HMOE_GATE_NORM;
    check_model(&config, 0.5);
    config.routing = HMOE_TOP_P;
    config.top_p = 1e-6;
    check_model(&config, 0.5);
}

/* The masks are the same in every pass of a step, so differences can be taken. */
static void model_with_dropout(void) {
    hmoe_config config = small_config();
    B = 2, T = 4;
    dropout = 0.3;
    check_model(&config, 0.5);
    config.routing = HMOE_TOP_P;
    config.noisy_gating = 1;
    dropout = 0.1;
    check_model(&config, 0.5);
    dropout = 0;
}

static void model_all_experts(void) {
    hmoe_config config = small_config();
    B = 1, T = 5;
    config.K = config.E;
    check_model(&config, 0.5);
    config.gate = HMOE_GATE_RAW;
    check_model(&config, 0.5);
    config.routing = HMOE_TOP_P;
    config.top_p = 1;
    check_model(&config, 0.5);
}

static void model_edge_sizes(void) {
    hmoe_config config = small_config();
    config.E = config.K = 1;                   /* a dense model */
    B = 2, T = 3;
    check_model(&config, 0.5);
    config.H[0] = 1;
    B = 1, T = 1;
    check_model(&config, 0.5);
    config = small_config();                   /* one token: most experts have none */
    check_model(&config, 0.5);
    config.L = 1, config.C = 2, config.NH = 1, config.V = 2;
    for (int e = 0; e < config.E; e++) config.H[e] = 1;
    B = 3, T = 2;
    check_model(&config, 0.5);
    B = 3, T = 1;
    check_model(&config, 0.5);
}

/* Null experts, biases and a layer's own top_p, together and apart. */
static void model_steered(void) {
    for (int i = 0; i < STEERED_TOP_K + STEERED_TOP_P; i++) {
        hmoe_config config = small_config();
        config.routing = i < STEERED_TOP_K ? HMOE_TOP_K : HMOE_TOP_P;
        config.gate = i % 5 < 3 ? HMOE_GATE_NORM : HMOE_GATE_RAW;
        steer(&config, i < STEERED_TOP_K ? i : i - STEERED_TOP_K);
        B = 2, T = 4;
        check_model(&config, 0.5);
    }
}

static void model_random_sizes(void) {
    for (int i = 0; i < 24; i++) {
        hmoe_config config = small_config();
        config.NH = pick(1, 3);
        config.C = config.NH * 2 * pick(1, 2);
        config.V = pick(2, 9);
        config.L = pick(1, 3);
        config.E = pick(1, 6);
        config.K = pick(1, config.E);
        for (int e = 0; e < config.E; e++) config.H[e] = pick(0, 2) ? pick(1, 9) : 1;
        config.routing = pick(0, 1) ? HMOE_TOP_K : HMOE_TOP_P;
        config.gate = (hmoe_gate)pick(0, 2);
        config.top_p = 0.1 * pick(1, 10);
        config.noisy_gating = pick(0, 2) == 0;
        B = pick(1, 3), T = pick(1, 5);
        check_model(&config, 0.2 * pick(1, 4));
    }
    CHECK(unused_experts > 0);                 /* an expert without tokens was among them */
}

/* Heads that share keys and values: all of them, or two each. */
static void shared_keys(void) {
    hmoe_config config = small_config();
    rope_case(2, 5, 3, 1, 4), rope_case(1, 4, 4, 2, 6);
    attention_case(2, 5, 3, 1, 4), attention_case(2, 5, 6, 3, 2), attention_case(2, 37, 4, 2, 2);
    B = 2, T = 4;
    config.NH = 4;
    for (config.NKV = 1; config.NKV <= 2; config.NKV++) check_model(&config, 0.5);
}

/* backward adds `scale` times the gradient to what is there. */
static void scale_and_accumulation(void) {
    hmoe_config config = small_config();
    double ignored[TERMS];
    hmoe_real *once, *sum;
    B = 2, T = 4;
    small_create(&model, &config, B);
    spread_weights(&model, 0.4, 0.5);
    tokens = random_tokens(B * T, config.V);
    targets = random_tokens(B * T, config.V);
    once = model_gradient(TOTAL);
    fill(model.grads, model.param_count, 0.1);
    sum = reals(model.param_count);
    memcpy(sum, model.grads, model.param_count * sizeof *sum);
    model_loss(ignored);
    CHECK(hmoe_backward(&model, 0.25) == HMOE_OK);
    for (size_t i = 0; i < model.param_count; i++)
        CHECK_NEAR(model.grads[i], sum[i] + 0.25 * once[i], 1e-12, 1e-13);
    free(once); free(sum); free(tokens); free(targets);
    hmoe_free(&model);
}

int main(void) {
    threads(TEST_THREADS);
    TEST(linear);
    TEST(embed);
    TEST(rmsnorm);
    TEST(rope);
    TEST(attention);
    TEST(swiglu);
    TEST(cross_entropy);
    TEST(combine);
    TEST(router);
    TEST(noise);
    TEST(model_top_k);
    TEST(model_top_p);
    TEST(model_one_expert_per_token);
    TEST(model_all_experts);
    TEST(model_edge_sizes);
    TEST(model_random_sizes);
    TEST(scale_and_accumulation);
    TEST(model_with_dropout);
    TEST(model_steered);
    TEST(shared_keys);
    return test_summary("gradients");
}
