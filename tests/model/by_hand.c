/* Numbers that can be worked out on paper: the losses at known routes, the experts' sizes, ties,
   AdamW, the schedule, what a cut batch adds up to, what a run reports. In double. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/parallel/hmoe_placement.h"
#include "../test.h"
#include "../fixtures.h"
#include "../naive.h"

/* ---- Losses and usage at routes made by hand.

   A model whose attention is off and whose embedding of token v is a long one-hot vector: after
   RMSNorm it is sqrt(C) in dimension v, so column v of the router's matrix, times sqrt(C), is what
   token v gets as logits. */
static void one_hot_create(hmoe_model *m, const hmoe_config *c) {
    hmoe_real *embedding, *output;
    small_create(m, c, 1);
    embedding = m->params + naive_find(m, "model.embed_tokens.weight")->offset;
    for (int v = 0; v < c->V; v++)
        for (int i = 0; i < c->C; i++) embedding[v * c->C + i] = i == v ? 1e6 : 0;
    for (int l = 0; l < c->L; l++) {
        output = m->params + naive_find(m, "model.layers.%d.self_attn.o_proj.weight", l)->offset;
        for (int i = 0; i < c->C * c->C; i++) output[i] = 0;
    }
}

static void set_router(hmoe_model *m, int token, const double *P, double log_sum) {
    const hmoe_config *c = &m->config;
    for (int l = 0; l < c->L; l++) {
        const char *name = "model.layers.%d.block_sparse_moe.gate.weight";
        hmoe_real *w = m->params + naive_find(m, name, l)->offset;
        for (int e = 0; e < c->E; e++)
            w[e * c->C + token] = (log(P[e]) + log_sum) / sqrt((double)c->C);
    }
}

static void losses_at_hand_made_routes(void) {
    static const double P[4][4] = { { 0.5, 0.25, 0.125, 0.125 }, { 0.1, 0.2, 0.3, 0.4 },
                                    { 0.25, 0.25, 0.25, 0.25 }, { 0.05, 0.8, 0.1, 0.05 } };
    static const double log_sum[4] = { 0, 1, -2, 0.5 };
    static const int tokens[4] = { 0, 1, 2, 3 };
    hmoe_config c = small_config();
    hmoe_model m;
    hmoe_usage u;
    c.V = 4, c.T = 4, c.L = 1, c.K = 2;
    for (int e = 0; e < 4; e++) c.H[e] = 2 * e + 2;              /* 2 4 6 8, mean 5 */
    one_hot_create(&m, &c);
    for (int v = 0; v < 4; v++) set_router(&m, v, P[v], log_sum[v]);
    /* P[2] is a tie of four: to be it exactly after rounding, its logits must be equal */
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 1, 4), HMOE_OK);
    /* chosen: {0 1} {3 2} {0 1} {1 2}, so f = (2 3 2 1)/4, and Phat = (0.9 1.5 0.775 0.825)/4 */
    CHECK_NEAR(m.losses.term[HMOE_LB], 2.16875, 1e-10, 0);                  /* 4 sum f Phat */
    CHECK_NEAR(m.losses.term[HMOE_PP], 1.875, 1e-10, 0);                    /* 4 sum f H/5 Phat */
    CHECK_NEAR(m.losses.term[HMOE_ENT], 4.587502730639634, 1e-10, 0);       /* 4/4 sum of -P ln P */
    CHECK_NEAR(m.losses.term[HMOE_Z], (0 + 1 + 4 + 0.25) / 4, 1e-10, 0);
    CHECK_NEAR(m.losses.total, m.losses.ce + 0.3 * 2.16875 + 0.2 * 1.875
               + 0.05 * 4.587502730639634 + 0.1 * 1.3125, 1e-10, 0);
    hmoe_get_usage(&m, 0, &u);
    CHECK_INT(u.tokens, 4);
    CHECK_INT(u.dead, 0);
    for (int e = 0; e < 4; e++) {
        static const double f[4] = { 0.5, 0.75, 0.5, 0.25 }, P_mean[4] = { 0.9, 1.5, 0.775, 0.825 };
        CHECK_NEAR(u.share[e], f[e], 1e-12, 0);
        CHECK_NEAR(u.compute[e], f[e] * (2 * e + 2) / 9, 1e-12, 0);
        CHECK_NEAR(u.P[e], P_mean[e] / 4, 1e-10, 0);
    }
    CHECK_NEAR(u.entropy, 4.587502730639634 / 4, 1e-10, 0);
    CHECK_NEAR(u.experts, 2, 1e-12, 0);
    CHECK_NEAR(u.width, 0.5 * 2 + 0.75 * 4 + 0.5 * 6 + 0.25 * 8, 1e-12, 0);
    hmoe_free(&m);
}

/* A router of zeros has no preference: P = 1/E for everyone. */
static void losses_at_uniform_routing(void) {
    static const int tokens[6] = { 3, 1, 4, 1, 5, 9 };
    hmoe_config c = small_config();
    for (int E = 1; E <= 9; E += 2)
        for (int K = 1; K <= E; K++) {
            hmoe_model m;
            hmoe_usage u;
            c.E = E, c.K = K;
            for (int e = 0; e < E; e++) c.H[e] = 6;
            small_create(&m, &c, 1);
            for (int l = 0; l < c.L; l++) {
                const char *gate = "model.layers.%d.block_sparse_moe.gate.weight";
                memset(m.params + naive_find(&m, gate, l)->offset, 0, E * c.C * sizeof(hmoe_real));
            }
            CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 6), HMOE_OK);
            CHECK_NEAR(m.losses.term[HMOE_LB], c.L * K, 1e-12, 0);
            CHECK_NEAR(m.losses.term[HMOE_PP], c.L * K, 1e-12, 0);
            CHECK_NEAR(m.losses.term[HMOE_ENT], c.L * E * log(E), 1e-12, 1e-12);
            CHECK_NEAR(m.losses.term[HMOE_Z], c.L * log(E) * log(E), 1e-12, 1e-12);
            hmoe_get_usage(&m, 1, &u);             /* ties go to the lowest index */
            for (int e = 0; e < E; e++) CHECK(u.share[e] == (e < K));
            CHECK_INT(u.dead, E - K);
            hmoe_free(&m);
        }
}

/* Equal widths: the parameter penalty is load balancing, at any routes, and in its gradient. */
static void penalty_of_equal_widths_is_load_balancing(void) {
    hmoe_config c = small_config();
    int *tokens = random_tokens(12, c.V);
    hmoe_real *gradient = NULL;
    c.routing = HMOE_TOP_P;
    for (int e = 0; e < c.E; e++) c.H[e] = 7;
    for (int i = 0; i < 2; i++) {
        hmoe_model m;
        c.loss_coef[HMOE_LB] = i ? 0.5 : 0;
        c.loss_coef[HMOE_PP] = i ? 0 : 0.5;
        small_draws = 300;
        small_create(&m, &c, 2);
        spread_weights(&m, 0.4, 0.6);
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 2, 6), HMOE_OK);
        CHECK_NEAR(m.losses.term[HMOE_PP], m.losses.term[HMOE_LB], 1e-12, 0);
        CHECK(fabs(m.losses.term[HMOE_LB] - 2 * c.L) > 1e-3);               /* not at rest */
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        if (!gradient) gradient = reals(m.param_count);
        for (size_t k = 0; k < m.param_count; k++)
            if (i) CHECK_NEAR(m.grads[k], gradient[k], 1e-11, 1e-14);
            else gradient[k] = m.grads[k];
        hmoe_free(&m);
    }
    free(gradient); free(tokens);
}

/* ---- The choice. */

static void choose(hmoe_routes *r, const double *P, int E, hmoe_routing routing, int K,
                   double top_p, int norm) {
    for (int e = 0; e < E; e++) r->P[e] = P[e];
    hmoe__choose(r, routing, K, top_p, norm, 1, E);
}

static void ties_go_to_the_lowest_index(void) {
    static const double P[6] = { 0.125, 0.25, 0.125, 0.25, 0.125, 0.125 };
    static const int order[6] = { 1, 3, 0, 2, 4, 5 };
    for (int K = 1; K <= 6; K++) {
        hmoe_routes r = routes_create(1, 6, K);
        choose(&r, P, 6, HMOE_TOP_K, K, 0, 0);
        CHECK_INT(r.count[0], K);
        for (int s = 0; s < K; s++) {
            CHECK_INT(r.expert[s], order[s]);
            CHECK(r.gate[s] == P[order[s]]);
        }
        routes_free(&r);
    }
}

/* The shortest prefix, by descending P, whose sum reaches p. All of these sums are exact. */
static void top_p_takes_the_shortest_prefix(void) {
    static const double P[5] = { 0.0625, 0.25, 0.5, 0.125, 0.0625 };
    static const int order[5] = { 2, 1, 3, 0, 4 };
    static const struct { double p; int count; } cases[] = {
        { 1e-9, 1 }, { 0.3, 1 }, { 0.5, 1 }, { 0.501, 2 }, { 0.75, 2 }, { 0.76, 3 },
        { 0.875, 3 }, { 0.9, 4 }, { 0.9375, 4 }, { 0.95, 5 }, { 1, 5 } };
    hmoe_routes r = routes_create(1, 5, 5);
    for (int norm = 0; norm < 2; norm++)
        for (int i = 0; i < 11; i++) {
            double sum = 0;
            choose(&r, P, 5, HMOE_TOP_P, 0, cases[i].p, norm);
            CHECK_INT(r.count[0], cases[i].count);
            for (int s = 0; s < r.count[0]; s++) sum += P[order[s]];
            for (int s = 0; s < r.count[0]; s++) {
                CHECK_INT(r.expert[s], order[s]);
                CHECK_NEAR(r.gate[s], P[order[s]] / (norm ? sum : 1), 1e-15, 0);
            }
        }
    routes_free(&r);
}

/* p = 1 does not add up at all: rounding could stop the sum short of 1, or reach it early. */
static void top_p_of_one_takes_all(void) {
    static const double P[4] = { 1, 1e-30, 0, 1e-20 };
    hmoe_routes r = routes_create(1, 4, 4);
    choose(&r, P, 4, HMOE_TOP_P, 0, 1, 0);
    CHECK_INT(r.count[0], 4);
    CHECK_INT(r.expert[0], 0);
    CHECK_INT(r.expert[1], 3);
    CHECK_INT(r.expert[2], 1);
    CHECK_INT(r.expert[3], 2);
    routes_free(&r);
}

/* ---- Sizes. */

/* Worked out with exact fractions from the rules beside hmoe_expert_sizes. */
static const struct { int E; long long total; const char *strategy; int H[16]; } sizes[] = {
    /* as printed in the papers */
    { 8, 32768, "arithmetic", { 2304, 2816, 3328, 3840, 4352, 4864, 5376, 5888 } },
    { 8, 30720, "modse", { 6912, 768, 6144, 1536, 4608, 3072, 3840, 3840 } },
    { 8, 40960, "modse", { 9216, 1024, 8192, 2048, 6144, 4096, 5120, 5120 } },
    /* eight experts of 172 on average */
    { 8, 1376, "homogeneous", { 172, 172, 172, 172, 172, 172, 172, 172 } },
    { 8, 1376, "arithmetic", { 96, 120, 136, 160, 184, 208, 224, 248 } },
    { 8, 1376, "geometric", { 8, 8, 24, 40, 88, 176, 344, 688 } },
    { 8, 1376, "hybrid", { 88, 88, 88, 88, 168, 168, 344, 344 } },
    { 8, 1376, "modse", { 312, 32, 272, 72, 208, 136, 176, 168 } },
    /* equal shares: units of 8 only where the mean is one */
    { 3, 600, "homogeneous", { 200, 200, 200 } },
    { 8, 100, "homogeneous", { 13, 13, 13, 13, 12, 12, 12, 12 } },
    { 5, 64, "homogeneous", { 13, 13, 13, 13, 12 } },
    { 5, 21, "1,1,1,1,1", { 5, 4, 4, 4, 4 } },
    /* one expert takes it all */
    { 1, 172, "arithmetic", { 172 } },
    { 1, 24, "hybrid", { 24 } },
    { 1, 24, "geometric", { 24 } },
    { 1, 7, "homogeneous", { 7 } },
    /* other numbers of experts */
    { 16, 65536, "arithmetic", { 2304, 2544, 2784, 3024, 3256, 3496, 3736, 3976,
                                 4216, 4456, 4696, 4936, 5168, 5408, 5648, 5888 } },
    { 2, 320, "arithmetic", { 88, 232 } },
    { 3, 480, "arithmetic", { 88, 160, 232 } },
    { 4, 512, "arithmetic", { 72, 112, 144, 184 } },
    { 6, 1001, "arithmetic", { 94, 123, 152, 181, 211, 240 } },
    { 12, 4096, "geometric", { 8, 8, 8, 8, 16, 32, 64, 128, 256, 512, 1016, 2040 } },
    { 2, 96, "hybrid", { 32, 64 } },
    { 3, 160, "hybrid", { 40, 40, 80 } },
    { 5, 400, "hybrid", { 56, 56, 56, 120, 112 } },
    { 6, 330, "hybrid", { 30, 30, 30, 60, 60, 120 } },
    { 12, 1600, "hybrid", { 72, 72, 64, 64, 64, 64, 136, 136, 136, 264, 264, 264 } },
    { 2, 80, "modse", { 72, 8 } },
    { 4, 400, "modse", { 184, 16, 104, 96 } },
    { 6, 480, "modse", { 144, 16, 112, 48, 80, 80 } },
    { 6, 101, "modse", { 31, 3, 24, 10, 17, 16 } },
    { 10, 800, "modse", { 144, 16, 128, 32, 112, 48, 96, 64, 80, 80 } },
    /* who would get less than one unit gets one */
    { 4, 40, "geometric", { 8, 8, 8, 16 } },
    { 6, 64, "geometric", { 8, 8, 8, 8, 8, 24 } },
    { 12, 96, "geometric", { 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8 } },
    { 8, 8, "arithmetic", { 1, 1, 1, 1, 1, 1, 1, 1 } },
    { 8, 20, "modse", { 4, 1, 4, 1, 3, 2, 3, 2 } },
    { 2, 64, "1,1000", { 8, 56 } },
    { 3, 48, "1,1,1000", { 8, 8, 32 } },
    /* ratios of one's own */
    { 3, 656, "3,1,4.2", { 240, 80, 336 } },
    { 3, 13, "3,1,2.5", { 6, 2, 5 } },
    { 4, 240, "9,11,13,15", { 48, 56, 64, 72 } },
    /* null experts: the others share the total as if they were alone */
    { 9, 1376, "0,9,11,13,15,17,19,21,23", { 0, 96, 120, 136, 160, 184, 208, 224, 248 } },
    { 8, 700, "0,1,1,1,1,1,1,1", { 0, 100, 100, 100, 100, 100, 100, 100 } },
    { 8, 56, "1,1,1,0,1,1,1,1", { 8, 8, 8, 0, 8, 8, 8, 8 } },
    { 8, 48, "0,1,1,1,1,1,1,1", { 0, 7, 7, 7, 7, 7, 7, 6 } },
    { 4, 16, "0,1,0,3", { 0, 8, 0, 8 } },
    { 4, 15, "0,1,0,3", { 0, 4, 0, 11 } },
    { 3, 2, "1,0,1", { 1, 0, 1 } },
    { 2, 100, "1,0", { 100, 0 } },
};

static void sizes_worked_out(void) {
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int H[HMOE_MAX_EXPERTS];
        char message[HMOE_MESSAGE_SIZE] = "";
        test_context = sizes[i].strategy;
        CHECK_INT(hmoe_expert_sizes(H, sizes[i].E, sizes[i].total, sizes[i].strategy, message),
                  HMOE_OK);
        for (int e = 0; e < sizes[i].E; e++) CHECK_INT(H[e], sizes[i].H[e]);
    }
    test_context = "";
}

static void sizes_keep_the_total(void) {
    static const char *const strategies[] = { "homogeneous", "arithmetic", "geometric", "hybrid",
                                              "modse" };
    for (int i = 0; i < 100; i++) {
        int E = pick(1, i % 10 ? 24 : HMOE_MAX_EXPERTS), H[HMOE_MAX_EXPERTS];
        long long total = E + (i % 3 ? pick(0, 4000) : pick(0, 20));
        if (i % 4 == 0) total = (total + 7) / 8 * 8;
        for (int s = 0; s < 5; s++) {
            long long sum = 0;
            int unit = total % 8 == 0 && total >= 8 * E && (s > 0 || total % (8 * E) == 0) ? 8 : 1;
            if (s == 4 && E % 2) continue;
            if (E == 1 && total % 8 == 0) unit = 8;
            CHECK_INT(hmoe_expert_sizes(H, E, total, strategies[s], NULL), HMOE_OK);
            for (int e = 0; e < E; e++) {
                sum += H[e];
                CHECK(H[e] >= unit && H[e] % unit == 0);
            }
            CHECK_INT(sum, total);
        }
    }
}

static void sizes_refused(void) {
    static const struct { int E; long long total; const char *strategy, *says; } cases[] = {
        { 8, 7, "arithmetic", "7" },       { 8, 0, "homogeneous", "0" },
        { 8, -5, "geometric", "-5" },      { 0, 100, "arithmetic", "0" },
        { -3, 100, "arithmetic", "-3" },   { 257, 10000, "arithmetic", "257" },
        { 8, 1LL << 40, "arithmetic", "1099511627776" },
        { 7, 100, "modse", "7" },          { 1, 100, "modse", "1" },
        { 8, 100, "harmonic", "harmonic" }, { 8, 100, "", "" },
        { 3, 100, "1,2", "2" },            { 3, 100, "1,2,3,4", "4" },
        { 2, 100, "1,-2", "-2" },          { 2, 100, "0,0", "all ratios are 0" },
        { 2, 100, "1,nan", "nan" },        { 2, 100, "1,inf", "inf" },
        { 2, 100, "1,2x", "2x" },          { 2, 100, "1,,2", "" },
        { 2, 100, "1,2,", "" },            { 2, 100, "1;2", "1;2" },          { 4, 2, "0,1,1,1", "must be from 3" },
        { 2, 100, "1,1e-10", "1e-10" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int H[HMOE_MAX_EXPERTS] = { 0 };
        char message[HMOE_MESSAGE_SIZE] = "";
        test_context = cases[i].strategy;
        CHECK_INT(hmoe_expert_sizes(H, cases[i].E, cases[i].total, cases[i].strategy, message),
                  HMOE_BAD_ARGUMENT);
        if (!CHECK(message[0] && strstr(message, cases[i].says))) printf("   said: %s\n", message);
        CHECK_INT(hmoe_expert_sizes(H, cases[i].E, cases[i].total, cases[i].strategy, NULL),
                  HMOE_BAD_ARGUMENT);
    }
    test_context = "";
}

/* ---- What the model is made of. */

static void tensor_is(const hmoe_model *m, const char *name, int rows, int cols, size_t *count) {
    const hmoe_tensor *t = naive_find(m, "%s", name);
    test_context = name;
    CHECK_INT(t->rows, rows);
    CHECK_INT(t->cols, cols ? cols : 1);
    CHECK_INT(t->dims, cols ? 2 : 1);
    *count += (size_t)rows * (cols ? cols : 1);
    test_context = "";
}

/* Names and shapes are those of a Mixtral checkpoint, and there is nothing besides. */
static void tensors(void) {
    for (int noisy = 0; noisy < 2; noisy++) {
        hmoe_config c = small_config();
        hmoe_model m;
        size_t count = 0, end = 0;
        int C = c.C;
        c.noisy_gating = noisy;
        small_create(&m, &c, 1);
        tensor_is(&m, "model.embed_tokens.weight", c.V, C, &count);
        tensor_is(&m, "model.norm.weight", C, 0, &count);
        tensor_is(&m, "lm_head.weight", c.V, C, &count);
        for (int l = 0; l < c.L; l++) {
            static const char *const square[4] = { "q", "k", "v", "o" };
            char name[HMOE_NAME_SIZE];
            int at = sprintf(name, "model.layers.%d.", l);
            strcpy(name + at, "input_layernorm.weight"), tensor_is(&m, name, C, 0, &count);
            strcpy(name + at, "post_attention_layernorm.weight"), tensor_is(&m, name, C, 0, &count);
            for (int i = 0; i < 4; i++) {
                sprintf(name + at, "self_attn.%s_proj.weight", square[i]);
                tensor_is(&m, name, C, C, &count);
            }
            at += sprintf(name + at, "block_sparse_moe.");
            strcpy(name + at, "gate.weight"), tensor_is(&m, name, c.E, C, &count);
            if (noisy) {
                strcpy(name + at, "noise.weight"), tensor_is(&m, name, c.E, C, &count);
                strcpy(name + at, "noise_norm.weight"), tensor_is(&m, name, c.E, 0, &count);
            }
            for (int e = 0; e < c.E; e++)
                for (int w = 1; w <= 3; w++) {
                    sprintf(name + at, "experts.%d.w%d.weight", e, w);
                    tensor_is(&m, name, w == 2 ? C : c.H[e], w == 2 ? c.H[e] : C, &count);
                }
        }
        CHECK_INT(m.param_count, count);
        CHECK_INT(m.tensor_count, 3 + c.L * (7 + 3 * c.E + 2 * noisy));
        for (size_t i = 0; i < m.tensor_count; i++) {            /* in order, without gaps */
            CHECK_INT(m.tensors[i].offset, end);
            end += (size_t)m.tensors[i].rows * m.tensors[i].cols;
        }
        hmoe_free(&m);
    }
}

/* N(0, 0.02), those that write to the residual stream over sqrt(2L); gains 1, noise 0. */
static void initial_weights(void) {
    hmoe_config c = hmoe_default_config();
    hmoe_model m;
    c.V = 65;
    c.noisy_gating = 1;
    small_create(&m, &c, 0);
    for (size_t i = 0; i < m.tensor_count; i++) {
        const hmoe_tensor *t = &m.tensors[i];
        size_t n = (size_t)t->rows * t->cols;
        const hmoe_real *w = m.params + t->offset;
        double mean = 0, square = 0, should = 0.02;
        test_context = t->name;
        for (size_t k = 0; k < n; k++) mean += w[k] / n;
        for (size_t k = 0; k < n; k++) square += (w[k] - mean) * (w[k] - mean) / n;
        if (strstr(t->name, "o_proj") || strstr(t->name, ".w2.")) should /= sqrt(2.0 * c.L);
        if (t->dims == 1 || strstr(t->name, "noise")) {
            for (size_t k = 0; k < n; k++) CHECK(w[k] == (t->dims == 1));
        } else {
            CHECK_NEAR(mean, 0, 0, 4 * should / sqrt((double)n));      /* four standard errors */
            CHECK_NEAR(sqrt(square), should, 4 / sqrt(2.0 * n), 0);
        }
    }
    test_context = "";
    hmoe_free(&m);
}

/* What random numbers depend on, all of it; and that they are what they should be. */
static void random_numbers(void) {
    enum { DRAWS = 20000 };
    double mean = 0, square = 0, fourth = 0;
    CHECK(hmoe_random(1, 2, 3, 4) == hmoe_random(1, 2, 3, 4));
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(0, 2, 3, 4));
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(1, 0, 3, 4));
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(1, 2, 0, 4));
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(1, 2, 3, 0));
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(1, 2, 4, 3));
    for (int bit = 0; bit < 64; bit++) {
        int ones = 0;
        for (int i = 0; i < 1000; i++) ones += (int)(hmoe_random(7, 0, i, 0) >> bit & 1);
        CHECK(ones > 400 && ones < 600);
    }
    for (int i = 0; i < DRAWS; i++) {
        double n = hmoe_normal(3, 5, i / 7, i % 7);
        mean += n / DRAWS;
        square += n * n / DRAWS;
        fourth += n * n * n * n / DRAWS;
    }
    CHECK_NEAR(mean, 0, 0, 0.03);
    CHECK_NEAR(square, 1, 0, 0.05);
    CHECK_NEAR(fourth, 3, 0, 0.3);
}

/* ---- Training. */

/* By the published formula, in Python:
     n = sqrt(sum(g*g)); g = g * min(1, clip/n); m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2
     w -= lr * (m / (1 - b1^s) / (sqrt(v / (1 - b2^s)) + 1e-8) + decay * w)
   with lr 0.1, b1 0.9, b2 0.99, decay 0.1, clip 1. One weight of a matrix, one of a norm (which
   does not decay), one of a matrix whose gradient is 0 (which only decays); norms 5, 0.22, 10. */
static void adamw_for_three_steps(void) {
    static const double gradient[3][3] = { { 3, 4, 0 }, { 0.1, -0.2, 0 }, { -6, 8, 0 } };
    static const double norm[3] = { 5, 0.22360679774997896, 10 };
    static const double expected[3][3] = {
        { 0.39500000166666666, -1.09999999875, 1.98 },
        { 0.31254900535675056, -1.1470408567216011, 1.9601999999999999 },
        { 0.31121881779650296, -1.2175783943048049, 1.940598 } };
    static const double start[3] = { 0.5, -1, 2 };
    hmoe_config c = small_config();
    hmoe_adamw adamw = { 0.1, 0.9, 0.99, 0.1, 1 };
    hmoe_model m;
    size_t at[3];
    small_create(&m, &c, 1);
    at[0] = naive_find(&m, "lm_head.weight")->offset + 5;
    at[1] = naive_find(&m, "model.layers.1.input_layernorm.weight")->offset + 1;
    at[2] = naive_find(&m, "model.layers.0.block_sparse_moe.experts.2.w2.weight")->offset;
    memset(m.params, 0, m.param_count * sizeof *m.params);
    for (int k = 0; k < 3; k++) m.params[at[k]] = start[k];
    for (int step = 0; step < 3; step++) {
        for (int k = 0; k < 3; k++) m.grads[at[k]] = gradient[step][k];
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
        CHECK_INT(m.step, step + 1);
        CHECK_NEAR(m.grad_norm, norm[step], 1e-14, 0);
        for (int k = 0; k < 3; k++) CHECK_NEAR(m.params[at[k]], expected[step][k], 1e-13, 0);
        for (size_t i = 0; i < m.param_count; i++) CHECK(m.grads[i] == 0);
    }
    for (size_t i = 0; i < m.param_count; i++)
        if (i != at[0] && i != at[1] && i != at[2]) CHECK(m.params[i] == 0);
    hmoe_free(&m);
}

static void clip_of_zero_clips_nothing(void) {
    hmoe_config c = small_config();
    hmoe_adamw adamw = { 0.1, 0, 0, 0, 0 };        /* moments that forget: v is the last g^2 */
    hmoe_model m;
    small_create(&m, &c, 1);
    m.grads[0] = 300;
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    CHECK_NEAR(m.exp_avg_sq[0], 90000, 1e-14, 0);
    m.grads[0] = 300;
    adamw.clip = 3;
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    CHECK_NEAR(m.exp_avg_sq[0], 9, 1e-14, 0);
    m.grads[0] = 2;                                /* not longer than clip: left alone */
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    CHECK_NEAR(m.exp_avg_sq[0], 4, 1e-14, 0);
    hmoe_free(&m);
}

static void schedule(void) {
    CHECK_NEAR(hmoe_learning_rate(1, 100, 1000, 1e-3, 1e-4), 1e-5, 1e-12, 0);
    CHECK_NEAR(hmoe_learning_rate(50, 100, 1000, 1e-3, 1e-4), 5e-4, 1e-12, 0);
    CHECK_NEAR(hmoe_learning_rate(100, 100, 1000, 1e-3, 1e-4), 1e-3, 1e-12, 0);
    CHECK_NEAR(hmoe_learning_rate(325, 100, 1000, 1e-3, 1e-4),
               1e-4 + 9e-4 * (1 + sqrt(0.5)) / 2, 1e-12, 0);     /* a quarter of the way down */
    CHECK_NEAR(hmoe_learning_rate(550, 100, 1000, 1e-3, 1e-4), 5.5e-4, 1e-12, 0);
    CHECK_NEAR(hmoe_learning_rate(1000, 100, 1000, 1e-3, 1e-4), 1e-4, 1e-12, 0);
    CHECK_NEAR(hmoe_learning_rate(2000, 100, 1000, 1e-3, 1e-4), 1e-4, 1e-12, 0);  /* and stays */
    CHECK(hmoe_learning_rate(101, 100, 1000, 1e-3, 1e-4) < 1e-3);
    CHECK_NEAR(hmoe_learning_rate(5, 0, 10, 1e-3, 0), 5e-4, 1e-12, 0);   /* no warm-up */
    CHECK_NEAR(hmoe_learning_rate(10, 0, 10, 1e-3, 0), 0, 0, 1e-18);
    CHECK_NEAR(hmoe_learning_rate(10, 10, 10, 1e-3, 1e-4), 1e-3, 1e-12, 0); /* only warm-up */
    CHECK_NEAR(hmoe_learning_rate(3, 10, 5, 1e-3, 1e-4), 3e-4, 1e-12, 0);   /* cut short */
    CHECK_NEAR(hmoe_learning_rate(1, 0, 1, 1e-3, 1e-4), 1e-4, 1e-12, 0);
}

/* Two steps on 8 sequences at once, or as 4 micro-batches of 2: noise, gradients and weights are
   the same. (Load balancing and the penalty are off: their f_e is that of each micro-batch.) */
static void accumulation(void) {
    hmoe_config c = small_config();
    hmoe_adamw adamw = { 0.05, 0.9, 0.99, 0.1, 1 };
    hmoe_model whole, cut;
    hmoe_real *before;
    int *tokens = random_tokens(8 * 6, c.V), *targets = random_tokens(8 * 6, c.V);
    c.noisy_gating = 1;
    c.loss_coef[HMOE_LB] = c.loss_coef[HMOE_PP] = 0;
    small_create(&whole, &c, 8);
    small_create(&cut, &c, 2);
    whole.dropout = cut.dropout = 0.2;         /* masks go by a token's number in the step */
    spread_weights(&whole, 0.4, 0.6);
    memcpy(cut.params, whole.params, whole.param_count * sizeof *whole.params);
    before = reals(whole.param_count);
    memcpy(before, whole.params, whole.param_count * sizeof *before);
    for (int step = 0; step < 2; step++) {
        hmoe_losses sum = { 0, 0, { 0 } };
        CHECK_INT(hmoe_forward(&whole, HMOE_TRAIN, tokens, targets, 8, 6), HMOE_OK);
        CHECK_INT(hmoe_backward(&whole, 1), HMOE_OK);
        for (int i = 0; i < 4; i++) {
            CHECK_INT(hmoe_forward(&cut, HMOE_TRAIN, tokens + i * 12, targets + i * 12, 2, 6),
                      HMOE_OK);
            CHECK_INT(hmoe_backward(&cut, 0.25), HMOE_OK);
            sum.ce += cut.losses.ce / 4;
            sum.term[HMOE_ENT] += cut.losses.term[HMOE_ENT] / 4;
            sum.term[HMOE_Z] += cut.losses.term[HMOE_Z] / 4;
        }
        CHECK_NEAR(sum.ce, whole.losses.ce, 1e-12, 0);
        CHECK_NEAR(sum.term[HMOE_ENT], whole.losses.term[HMOE_ENT], 1e-12, 0);
        CHECK_NEAR(sum.term[HMOE_Z], whole.losses.term[HMOE_Z], 1e-12, 0);
        for (size_t i = 0; i < whole.param_count; i++)
            CHECK_NEAR(cut.grads[i], whole.grads[i], 1e-12, 1e-12);
        CHECK_INT(hmoe_update(&whole, &adamw), HMOE_OK);
        CHECK_INT(hmoe_update(&cut, &adamw), HMOE_OK);
        /* AdamW divides by what may be tiny: rounding grows where a gradient is almost 0 */
        for (size_t i = 0; i < whole.param_count; i++)
            CHECK_NEAR(cut.params[i], whole.params[i], 1e-8, 1e-8);
        memcpy(cut.params, whole.params, whole.param_count * sizeof *whole.params);
    }
    CHECK_INT(cut.tokens, whole.tokens);
    CHECK_INT(cut.tokens, 2 * 8 * 6);
    CHECK(memcmp(before, whole.params, whole.param_count * sizeof *before));
    hmoe_free(&whole);
    hmoe_free(&cut);
    free(before); free(tokens); free(targets);
}

/* The noise is there while training, and only then; it is another in every step and sequence. */
/* What is left out, and what the rest is multiplied by: y = x + mask (y - x) / (1 - p). */
static void dropout_masks(void) {
    enum { N = 500, C = 30 };
    hmoe_config c = small_config();
    hmoe_model m;
    hmoe_real *x = random_reals(N * C, 1), *y = reals(N * C), *dy = reals(N * C);
    hmoe_real *later = reals(N * C);
    int dropped = 0, other = 0, *tokens = random_tokens(12, c.V);
    double loss;
    for (int i = 0; i < N * C; i++) y[i] = x[i] + 1;
    hmoe__dropout_forward(y, x, 0.25, 42, 7, N, C);
    for (int i = 0; i < N * C; i++) dy[i] = 1;
    hmoe__dropout_backward(dy, dy, 0.25, 42, 7, N, C);              /* the same mask, in place */
    for (int i = 0; i < N * C; i++) {
        double branch = y[i] - x[i];
        CHECK(fabs(branch) < 1e-12 || fabs(branch - 4.0 / 3) < 1e-12);
        CHECK_NEAR(dy[i], branch, 1e-12, 1e-12);
        dropped += branch < 0.5;
    }
    CHECK(abs(dropped - N * C / 4) < 4 * sqrt(N * C * 0.25 * 0.75));
    for (int i = 0; i < N * C; i++) later[i] = 1;                /* token 1 is number 8 there too */
    hmoe__dropout_backward(later, later, 0.25, 42, 8, N, C);
    CHECK(!memcmp(later, dy + C, (N - 1) * C * sizeof *dy));
    hmoe__dropout_backward(later, later, 0.25, 43, 8, N, C);
    for (int i = 0; i < (N - 1) * C; i++) other += (later[i] == 0) != (dy[C + i] == 0);
    CHECK(other > N * C / 8);
    small_create(&m, &c, 2);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 2, 6), HMOE_OK);
    loss = m.losses.ce;
    m.dropout = 0.5;
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 2, 6), HMOE_OK);
    CHECK(m.losses.ce == loss);
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 2, 6), HMOE_OK);
    CHECK(m.losses.ce != loss);
    m.dropout = 0.95;
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 2, 6), HMOE_BAD_ARGUMENT);
    hmoe_free(&m);
    free(x); free(y); free(dy); free(later); free(tokens);
}

/* Which numbers each call of a training pass drops: the backend's functions, with a look at what
   they did to their arrays. With dropout 0.5 a number is kept and doubled, or it is dropped. */
enum { CALLS = 100, MASK = 6 * 8 };                /* 6 tokens of 8 numbers */
static unsigned char masks[CALLS][MASK];
static int mask_calls;

static void seen_dropout_forward(hmoe_real *y, const hmoe_real *x, double p, uint64_t key, int first,
                                 int N, int C) {
    hmoe_real given[MASK];
    memcpy(given, y, sizeof given);
    hmoe__dropout_forward(y, x, p, key, first, N, C);
    for (int i = 0; i < MASK; i++) {
        int kept = fabs((double)(y[i] - x[i])) > fabs((double)(given[i] - x[i]));
        CHECK_NEAR(y[i] - x[i], kept ? 2 * (double)(given[i] - x[i]) : 0, 1e-9, 1e-15);
        masks[mask_calls][i] = (unsigned char)kept;
    }
    mask_calls++;
}

static void seen_dropout_backward(hmoe_real *dblock, const hmoe_real *dy, double p, uint64_t key,
                                  int first, int N, int C) {
    hmoe__dropout_backward(dblock, dy, p, key, first, N, C);
    for (int i = 0; i < MASK; i++) masks[mask_calls][i] = dblock[i] != 0;
    mask_calls++;
}

/* One pass over a sequence of 6 tokens: four masks forward (two layers, two places in each), and the
   same four backward. */
static void one_pass(hmoe_model *m) {
    static const int tokens[6] = { 1, 2, 3, 4, 5, 6 };
    int at = mask_calls;
    CHECK_INT(hmoe_forward(m, HMOE_TRAIN, tokens, tokens, 1, 6), HMOE_OK);
    CHECK_INT(hmoe_backward(m, 1), HMOE_OK);
    CHECK_INT(mask_calls, at + 8);
    for (int i = 0; i < 4; i++) CHECK(!memcmp(masks[at + i], masks[at + 7 - i], MASK));
    mask_calls = at + 4;
}

/* Each layer, each place in it, each step, each micro-batch of a step and each seed has a mask of
   its own; the same seed and step have the same. Two masks agree in about half of their numbers. */
static void dropout_masks_differ(void) {
    hmoe_backend looking = *hmoe__cpu_backend();
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_config c = small_config();
    looking.dropout_forward = seen_dropout_forward;
    looking.dropout_backward = seen_dropout_backward;
    mask_calls = 0;
    for (int seed = 1; seed < 4; seed++) {         /* the third model is the second again */
        hmoe_model m;
        memset(&m, 0, sizeof m);
        m.backend = &looking;
        CHECK_INT(hmoe_create(&m, &c, (uint64_t)(seed < 3 ? seed : 2), 1, 1), HMOE_OK);
        m.dropout = 0.5;
        for (int step = 0; step < 2; step++) {
            one_pass(&m), one_pass(&m);
            CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
        }
        hmoe_free(&m);
    }
    CHECK_INT(mask_calls, 3 * 16);
    for (int i = 0; i < 2 * 16; i++)
        for (int k = 0; k < i; k++) {
            int same = 0;
            for (int j = 0; j < MASK; j++) same += masks[i][j] == masks[k][j];
            CHECK(same > MASK / 8 && same < MASK * 7 / 8);     /* 24, with a deviation of 3.5 */
        }
    CHECK(!memcmp(masks[16], masks[32], 16 * MASK));
}

static void noise_only_in_training(void) {
    hmoe_config c = small_config();
    hmoe_adamw still = { 0, 0.9, 0.99, 0, 1 };     /* lr 0: the weights stay */
    hmoe_model m;
    int tokens[4] = { 1, 1, 1, 1 };
    double evaluated, trained;
    hmoe_real P[4];
    c.noisy_gating = 1;
    small_create(&m, &c, 4);
    spread_weights(&m, 0.4, 0.6);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 4, 1), HMOE_OK);
    evaluated = m.losses.term[HMOE_Z];
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 4, 1), HMOE_OK);
    trained = m.losses.term[HMOE_Z];
    CHECK(fabs(evaluated - trained) > 1e-3);
    for (int t = 0; t < 4; t++) {                  /* four times the same token, other noise */
        hmoe_route route;
        CHECK_INT(hmoe_get_route(&m, 0, t, &route), HMOE_OK);
        P[t] = route.P[0];
        for (int s = 0; s < t; s++) CHECK(P[s] != P[t]);
    }
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 4, 1), HMOE_OK);
    CHECK(m.losses.term[HMOE_Z] == trained);                  /* the same step, the same noise */
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    CHECK_INT(hmoe_update(&m, &still), HMOE_OK);
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 4, 1), HMOE_OK);
    CHECK(m.losses.term[HMOE_Z] != trained);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 4, 1), HMOE_OK);
    CHECK(m.losses.term[HMOE_Z] == evaluated);
    hmoe_free(&m);
}

/* ---- What a run reports. */

static void usage_is_what_the_routes_say(void) {
    for (int rule = 0; rule < 2; rule++) {
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_route route;
        hmoe_usage u;
        double count[2][4] = { { 0 } }, P[2][4] = { { 0 } }, entropy[2] = { 0 };
        int N = 0;
        c.routing = rule ? HMOE_TOP_P : HMOE_TOP_K;
        small_create(&m, &c, 2);
        spread_weights(&m, 0.4, 0.9);
        for (int pass = 0; pass < 3; pass++) {
            int *tokens = random_tokens(12, c.V), T = 6 - pass;
            if (pass == 1) {                       /* what was before is forgotten */
                hmoe_reset_usage(&m);
                memset(count, 0, sizeof count);
                memset(P, 0, sizeof P);
                memset(entropy, 0, sizeof entropy);
                N = 0;
            }
            CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, NULL, 2, T), HMOE_OK);
            for (int l = 0; l < c.L; l++)
                for (int t = 0; t < 2 * T; t++) {
                    CHECK_INT(hmoe_get_route(&m, l, t, &route), HMOE_OK);
                    for (int s = 0; s < route.count; s++) count[l][route.expert[s]]++;
                    for (int e = 0; e < c.E; e++) {
                        P[l][e] += route.P[e];
                        entropy[l] -= route.P[e] * log(route.P[e]);
                    }
                }
            N += 2 * T;
            free(tokens);
        }
        for (int l = 0; l < c.L; l++) {
            double work = 0, chosen = 0;
            int dead = 0;
            hmoe_get_usage(&m, l, &u);
            for (int e = 0; e < c.E; e++) {
                work += count[l][e] * c.H[e];
                chosen += count[l][e];
                dead += count[l][e] == 0;
            }
            CHECK_INT(u.tokens, N);
            CHECK_INT(u.dead, dead);
            CHECK_NEAR(u.experts, chosen / N, 1e-12, 0);
            CHECK_NEAR(u.width, work / N, 1e-12, 0);
            CHECK_NEAR(u.entropy, entropy[l] / N, 1e-12, 0);
            for (int e = 0; e < c.E; e++) {
                CHECK_NEAR(u.share[e], count[l][e] / N, 1e-12, 0);
                CHECK_NEAR(u.compute[e], count[l][e] * c.H[e] / work, 1e-12, 0);
                CHECK_NEAR(u.P[e], P[l][e] / N, 1e-12, 0);
            }
        }
        hmoe_free(&m);
    }
}

/* Attention, norms, router, head, one embedding row, and the chosen experts' 3 C H[e]. */
/* MoDSE section 3.2: its own widths, made in pairs, give every device the same parameters. */
static void experts_in_pairs(void) {
    static const int paper[8] = { 6912, 768, 6144, 1536, 4608, 3072, 3840, 3840 };
    static const int mixed[6] = { 5, 9, 1, 9, 7, 3 };   /* by width: 1 and 3, 4, 0, 5, 2 */
    char message[HMOE_MESSAGE_SIZE];
    int device[HMOE_MAX_EXPERTS], H[HMOE_MAX_EXPERTS];
    for (int D = 1; D <= 4; D *= 2) {
        int sum[4] = { 0 }, pairs[4] = { 0 };
        CHECK_INT(hmoe_place_experts(device, paper, 8, D, HMOE_PAIRS, message), HMOE_OK);
        for (int e = 0; e < 8; e++) sum[device[e]] += paper[e], pairs[device[e]]++;
        for (int d = 0; d < D; d++) CHECK_INT(sum[d], 8 * 3840 / D);
        for (int d = 0; d < D; d++) CHECK_INT(pairs[d], 8 / D);
        for (int e = 0; e < 8; e += 2) CHECK_INT(device[e], device[e + 1]);
    }
    CHECK_INT(hmoe_place_experts(device, mixed, 6, 3, HMOE_PAIRS, message), HMOE_OK);
    CHECK(device[1] == device[2] && device[3] == device[5] && device[4] == device[0]);
    CHECK(device[1] != device[3] && device[3] != device[4] && device[4] != device[1]);
    CHECK_INT(hmoe_expert_sizes(H, 16, 65536, "arithmetic", NULL), HMOE_OK);   /* HMoE's 16B */
    CHECK_INT(hmoe_place_experts(device, H, 16, 8, HMOE_PAIRS, message), HMOE_OK);
    for (int e = 0; e < 8; e++) CHECK_INT(device[e], device[15 - e]);
    CHECK_INT(hmoe_place_experts(device, mixed, 6, 3, HMOE_CONTIGUOUS, message), HMOE_OK);
    for (int e = 0; e < 6; e++) CHECK_INT(device[e], e / 2);
    CHECK_INT(hmoe_place_experts(device, paper, 8, 3, HMOE_PAIRS, message), HMOE_BAD_ARGUMENT);
    CHECK(strstr(message, "8 experts on 3 devices") && strstr(message, "multiple of 6"));
    CHECK_INT(hmoe_place_experts(device, paper, 8, 8, HMOE_PAIRS, NULL), HMOE_BAD_ARGUMENT);
    CHECK_INT(hmoe_place_experts(device, paper, 8, 8, HMOE_CONTIGUOUS, NULL), HMOE_OK);
    CHECK_INT(hmoe_place_experts(device, paper, 8, 0, HMOE_PAIRS, NULL), HMOE_BAD_ARGUMENT);
    CHECK_INT(hmoe_place_experts(device, paper, 0, 1, HMOE_PAIRS, NULL), HMOE_BAD_ARGUMENT);
    CHECK_INT(hmoe_place_experts(device, paper, 8, 1 << 30, HMOE_PAIRS, NULL), HMOE_BAD_ARGUMENT);
}

/* What devices hold and do, counted from the routes. */
static void devices_share_the_work(void) {
    hmoe_config c = small_config();
    hmoe_model m;
    hmoe_route route;
    hmoe_device of[2], uneven;
    const int device[4] = { 1, 0, 0, 1 };
    double params[2] = { 0 }, tokens[2] = { 0 }, work[2] = { 0 };
    int *text = random_tokens(12, c.V);
    small_create(&m, &c, 2);
    spread_weights(&m, 0.4, 0.9);
    CHECK_INT(c.E, 4);
    uneven = hmoe_get_devices(&m, device, 2, of);
    CHECK(of[0].tokens == 0 && of[1].work == 0 && uneven.tokens == 0 && uneven.work == 0);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, text, NULL, 2, 6), HMOE_OK);
    for (int l = 0; l < c.L; l++)
        for (int t = 0; t < 12; t++) {
            CHECK_INT(hmoe_get_route(&m, l, t, &route), HMOE_OK);
            for (int s = 0; s < route.count; s++) {
                tokens[device[route.expert[s]]]++;
                work[device[route.expert[s]]] += c.H[route.expert[s]];
            }
        }
    for (size_t i = 0; i < m.tensor_count; i++) {
        const char *expert = strstr(m.tensors[i].name, "experts.");
        if (expert) params[device[expert[8] - '0']] += (double)m.tensors[i].rows * m.tensors[i].cols;
    }
    uneven = hmoe_get_devices(&m, device, 2, of);
    for (int d = 0; d < 2; d++) {
        CHECK_NEAR(of[d].params, params[d], 1e-12, 0);
        CHECK_NEAR(of[d].tokens, tokens[d], 1e-12, 0);
        CHECK_NEAR(of[d].work, work[d], 1e-12, 0);
    }
    CHECK_NEAR(uneven.params, 2 * fmax(params[0], params[1]) / (params[0] + params[1]), 1e-12, 0);
    CHECK_NEAR(uneven.tokens, 2 * fmax(tokens[0], tokens[1]) / (tokens[0] + tokens[1]), 1e-12, 0);
    CHECK_NEAR(uneven.work, 2 * fmax(work[0], work[1]) / (work[0] + work[1]), 1e-12, 0);
    hmoe_free(&m);
    free(text);
}

static void activated_parameters(void) {
    hmoe_config c = small_config();                /* V 11, C 8, L 2, E 4, widths 5 2 7 1 */
    hmoe_model m;
    hmoe_usage u;
    int *tokens = random_tokens(12, c.V);
    double fixed = 2 * (4 * 8 * 8 + 2 * 8 + 4 * 8) + 8 + 11 * 8 + 8, width = 0;
    small_create(&m, &c, 2);
    spread_weights(&m, 0.4, 0.9);
    CHECK_NEAR(hmoe_activated(&m), fixed + 2 * 3 * 8 * (2.0 / 4 * 15), 1e-12, 0);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, NULL, 2, 6), HMOE_OK);
    for (int l = 0; l < 2; l++) {
        hmoe_get_usage(&m, l, &u);
        width += u.width;
    }
    CHECK_NEAR(hmoe_activated(&m), fixed + 3 * 8 * width, 1e-12, 0);
    hmoe_free(&m);
    c.NH = 4, c.NKV = 1;                           /* keys and values of 2 numbers, not 8 */
    small_create(&m, &c, 2);
    CHECK_NEAR(hmoe_activated(&m), fixed - 2 * (2 * 6 * 8) + 2 * 3 * 8 * (2.0 / 4 * 15), 1e-12, 0);
    hmoe_free(&m);
    c.E = c.K = 1;                                 /* a dense model activates all but embeddings */
    small_create(&m, &c, 2);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, NULL, 2, 6), HMOE_OK);
    CHECK_NEAR(hmoe_activated(&m), (double)m.param_count - 10 * 8, 1e-12, 0);
    hmoe_free(&m);
    free(tokens);
}

/* Training costs 6 FLOPs per activated parameter and token, and attention: queries with keys and
   probabilities with values, 4 C for each pair of tokens, three times that with the backward pass,
   (T + 1) / 2 pairs per token and layer. */
static void training_flops(void) {
    hmoe_config c = small_config();
    hmoe_model m;
    int *tokens = random_tokens(12, c.V);
    double one;
    small_create(&m, &c, 2);
    spread_weights(&m, 0.4, 0.9);
    CHECK(m.flops == 0 && m.tokens == 0);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens, tokens, 2, 6), HMOE_OK);
    CHECK(m.flops == 0 && m.tokens == 0);          /* evaluation is not training */
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 2, 5), HMOE_OK);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    one = m.flops;
    hmoe_reset_usage(&m);                          /* measured on these tokens alone */
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 2, 5), HMOE_OK);
    CHECK_NEAR(one, 10 * (6 * hmoe_activated(&m) + 12 * c.L * c.C * 6 / 2.0), 1e-12, 0);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    CHECK_NEAR(m.flops, 2 * one, 1e-12, 0);
    CHECK_INT(m.tokens, 20);
    hmoe_free(&m);
    free(tokens);
}

static void distinct_bytes(void) {
    hmoe_config c = hmoe_default_config();
    unsigned char all[1000];
    CHECK_INT(hmoe_byte_vocab(&c, (const unsigned char *)"to be\xff\n", 7, NULL), HMOE_OK);
    CHECK_INT(c.V, 7);
    CHECK_INT(c.vocab_size, 7);
    CHECK(!memcmp(c.vocab, "\n beot\xff", 7));
    for (int i = 0; i < 1000; i++) all[i] = (unsigned char)(i * 7);
    CHECK_INT(hmoe_byte_vocab(&c, all, 1000, NULL), HMOE_OK);
    CHECK_INT(c.V, 256);
    for (int i = 0; i < 256; i++) CHECK_INT(c.vocab[i], i);
}

int main(void) {
    threads(TEST_THREADS);
    TEST(losses_at_hand_made_routes);
    TEST(losses_at_uniform_routing);
    TEST(penalty_of_equal_widths_is_load_balancing);
    TEST(ties_go_to_the_lowest_index);
    TEST(top_p_takes_the_shortest_prefix);
    TEST(top_p_of_one_takes_all);
    TEST(sizes_worked_out);
    TEST(sizes_keep_the_total);
    TEST(sizes_refused);
    TEST(tensors);
    TEST(initial_weights);
    TEST(random_numbers);
    TEST(adamw_for_three_steps);
    TEST(clip_of_zero_clips_nothing);
    TEST(schedule);
    TEST(accumulation);
    TEST(dropout_masks);
    TEST(dropout_masks_differ);
    TEST(noise_only_in_training);
    TEST(usage_is_what_the_routes_say);
    TEST(experts_in_pairs);
    TEST(devices_share_the_work);
    TEST(activated_parameters);
    TEST(training_flops);
    TEST(distinct_bytes);
    return test_summary("by_hand");
}
