/* Numbers at the edge of what a float holds, and shapes at the edge of what a model can be. What
   must hold each time: the numbers are what mathematics says, or the library says that something is
   no longer finite. Never a NaN, and never a plausible number that stands for one, in silence. In
   float, where overflow is near. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/muon/hmoe_muon.h"
#include "../test.h"
#include "../fixtures.h"
#include "../naive.h"
#include <float.h>

static hmoe_real *weights(const hmoe_model *m, const char *name, int layer) {
    return m->params + naive_find(m, name, layer)->offset;
}

static int all_finite(const hmoe_real *x, size_t n) {
    for (size_t i = 0; i < n; i++) if (!isfinite(x[i])) return 0;
    return 1;
}

static int all_zero(const hmoe_real *x, size_t n) {
    for (size_t i = 0; i < n; i++) if (x[i] != 0) return 0;
    return 1;
}

static int model_is_finite(const hmoe_model *m) {
    return all_finite(m->params, m->param_count) && all_finite(m->exp_avg, m->param_count)
           && all_finite(m->exp_avg_sq, m->param_count);
}

/* The smallest shape there is. */
static hmoe_config least_config(void) {
    hmoe_config c = hmoe_default_config();
    c.V = 2, c.T = 1, c.C = 2, c.L = 1, c.NH = 1, c.E = 2, c.K = 1;
    for (int e = 0; e < HMOE_MAX_EXPERTS; e++) c.H[e] = 1;
    c.loss_coef[HMOE_PP] = 0;
    return c;
}

/* Some steps on a text, at places that move on. After each, all is finite; or the library has said
   so, with a message. Returns how many were made, and in *loss the last cross-entropy. */
static int learn(hmoe_model *m, const hmoe_adamw *adamw, const int *text, int n, int B, int T,
                 int steps, double *loss) {
    int *tokens = ints((size_t)B * T), *targets = ints((size_t)B * T), step = 0, overflown = 0;
    for (; step < steps; step++) {
        hmoe_status status;
        for (int i = 0; i < B * T; i++) {
            int at = (step * 7 + i / T * 5) % (n - T) + i % T;
            tokens[i] = text[at], targets[i] = text[at + 1];
        }
        status = hmoe_forward(m, HMOE_TRAIN, tokens, targets, B, T);
        if (!status) {
            const hmoe_losses *l = &m->losses;
            CHECK(isfinite(l->total + l->ce));
            for (int i = 0; i < HMOE_LOSS_TERMS; i++) CHECK(isfinite(l->term[i]));
            CHECK(!overflown);                     /* weights that were not, and it did not tell */
            *loss = l->ce;
            CHECK_INT(hmoe_backward(m, 1), HMOE_OK);
            status = hmoe_update(m, adamw);
        }
        if (status) {
            CHECK_INT(status, HMOE_NOT_FINITE);
            CHECK(m->message[0] != 0);
            break;
        }
        CHECK(m->message[0] == 0 && isfinite(m->grad_norm) && m->grad_norm >= 0);
        overflown = !model_is_finite(m);           /* then the next step must say it */
        CHECK(all_zero(m->grads, m->param_count));
    }
    free(tokens), free(targets);
    return step;
}

/* ---- Texts that hold nothing, or next to nothing. */

static void one_byte_for_ever(void) {
    static const int same[40] = { 0 };
    hmoe_adamw adamw = hmoe_default_adamw();
    for (int V = 1; V <= 3; V++) {                 /* one of V tokens; V = 1: nothing to learn */
        hmoe_config c = small_config();
        hmoe_model m;
        double loss = -1;
        c.V = V;
        adamw.lr = 0.05;
        small_create(&m, &c, 2);
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, same, same, 2, c.T), HMOE_OK);
        CHECK_NEAR(m.losses.ce, log((double)V), 0.05, 1e-7);       /* small weights: all alike */
        if (V == 1) CHECK(m.losses.ce == 0);
        CHECK_INT(learn(&m, &adamw, same, 40, 2, c.T, 150, &loss), 150);
        CHECK(loss >= 0 && loss < 1e-3);
        hmoe_free(&m);
    }
}

static void two_bytes_in_turn(void) {
    static int text[41];
    hmoe_config c = least_config();
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_model m;
    double loss = 1;
    for (int i = 0; i < 41; i++) text[i] = i % 2;
    c.T = 4;
    adamw.lr = 0.02;
    small_create(&m, &c, 4);
    CHECK_INT(learn(&m, &adamw, text, 41, 4, 4, 3000, &loss), 3000);   /* width 2, experts of 1 */
    CHECK(loss >= 0 && loss < 0.01);
    hmoe_free(&m);
}

/* ---- Routers. */

/* A router of zeros finds all experts alike, and the losses are known whatever E is. */
static void a_router_without_an_opinion(void) {
    static const int E[5] = { 1, 2, 8, 64, 256 };
    for (int i = 0; i < 20; i++) {
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_usage u;
        int n, tokens[6] = { 0, 1, 2, 3, 4, 5 };
        double work = 0, even = 0;
        c.E = E[i % 5];
        c.routing = i < 10 ? HMOE_TOP_K : HMOE_TOP_P;
        c.K = i < 5 ? (c.E > 1 ? 2 : 1) : c.E;
        c.top_p = i < 15 ? 1 : 1e-9;
        n = i < 10 ? c.K : i < 15 ? c.E : 1;       /* experts of a token: the first n */
        for (int e = 0; e < c.E; e++) c.H[e] = 1 + e % 5, even += c.H[e] / (double)c.E;
        for (int e = 0; e < n; e++) work += c.H[e] / even;
        small_create(&m, &c, 1);
        for (int l = 0; l < c.L; l++)
            memset(weights(&m, "model.layers.%d.block_sparse_moe.gate.weight", l), 0,
                   (size_t)c.E * c.C * sizeof(hmoe_real));
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 6), HMOE_OK);
        CHECK_NEAR(m.losses.term[HMOE_LB], c.L * n, 1e-5, 0);
        CHECK_NEAR(m.losses.term[HMOE_PP], c.L * work, 1e-5, 0);
        CHECK_NEAR(m.losses.term[HMOE_ENT], c.L * c.E * log((double)c.E), 1e-5, 1e-6);
        CHECK_NEAR(m.losses.term[HMOE_Z], c.L * log((double)c.E) * log((double)c.E), 1e-5, 1e-6);
        hmoe_get_usage(&m, 1, &u);
        CHECK_INT(u.dead, c.E - n);
        CHECK_NEAR(u.experts, n, 0, 0);
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        CHECK(all_finite(m.grads, m.param_count));
        hmoe_free(&m);
    }
}

/* Every token is (sqrt(C), 0, 0, ...) to the router, so its first column, times that, are the
   logits: +x for experts 1 and 3, -x for the others. */
static void a_router_without_a_doubt(void) {
    static const double x[4] = { 30, 1e4, 1e15, 1e30 };
    static const int tokens[6] = { 0 };
    for (int i = 0; i < 8; i++) {
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_adamw adamw = hmoe_default_adamw();
        hmoe_route route;
        hmoe_usage u;
        c.L = 1;
        if (i % 2) c.routing = HMOE_TOP_P, c.top_p = 0.9;
        c.loss_coef[HMOE_Z] = 0;                              /* (of lse = 1e30 no float holds the square) */
        small_create(&m, &c, 1);
        spread_weights(&m, 0.4, 0);
        for (int k = 0; k < c.C; k++) m.params[k] = k ? 0 : 1000;
        memset(weights(&m, "model.layers.%d.self_attn.o_proj.weight", 0), 0,
               (size_t)c.C * c.C * sizeof(hmoe_real));
        for (int k = 0; k < c.C; k++)
            weights(&m, "model.layers.%d.post_attention_layernorm.weight", 0)[k] = 1;
        for (int e = 0; e < 4; e++)
            weights(&m, "model.layers.%d.block_sparse_moe.gate.weight", 0)[e * c.C] =
                (hmoe_real)((e % 2 ? x[i / 2] : -x[i / 2]) / sqrt((double)c.C));
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, tokens, 1, 6), HMOE_OK);
        CHECK_INT(hmoe_get_route(&m, 0, 5, &route), HMOE_OK);
        CHECK(route.count == 2 && route.expert[0] == 1 && route.expert[1] == 3);
        for (int s = 0; s < 2; s++) CHECK_NEAR(route.gate[s], 0.5, 1e-6, 0);
        CHECK_NEAR(m.losses.term[HMOE_ENT], 4 * log(2.0), x[i / 2] > 1e5 ? 1 : 1e-3, 0);   /* r - lse cancel */
        CHECK_NEAR(m.losses.term[HMOE_Z], x[i / 2] * x[i / 2], 0.1, 0);
        CHECK_NEAR(m.losses.term[HMOE_LB], 4, 1e-6, 0);       /* 4 (1 * 1/2 + 1 * 1/2) */
        CHECK_NEAR(m.losses.term[HMOE_PP], 4 * (2 + 1) / 3.75 / 2, 1e-6, 0);
        hmoe_get_usage(&m, 0, &u);
        CHECK(u.dead == 2 && u.share[0] == 0 && u.share[1] == 1 && u.share[3] == 1);
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        CHECK(all_finite(m.grads, m.param_count));
        for (size_t k = 0; k < m.tensor_count; k++) {
            const hmoe_tensor *t = &m.tensors[k];
            int e = -1, zero = all_zero(m.grads + t->offset, (size_t)t->rows * t->cols);
            if (!strstr(t->name, "experts")) continue;
            sscanf(strstr(t->name, "experts"), "experts.%d", &e);
            CHECK_INT(zero, e % 2 == 0);           /* who gets no token learns nothing */
        }
        if (hmoe_update(&m, &adamw))               /* the rest of r - lse, times 1e30, squared */
            CHECK(x[i / 2] == 1e30 && strstr(m.message, "norm"));
        CHECK(model_is_finite(&m));
        hmoe_free(&m);
    }
}

/* ---- What a program may ask of the optimizer, the losses and the shape. */

enum { LR, DECAY, CLIP, BETAS, DROPOUT, COEFFICIENTS, WEIGHTS, NOISE, KINDS };

static void extremes_of_learning(void) {
    static const struct { int kind; double value; int goes_on; } cases[] = {
        { LR, 0, 1 }, { LR, 10, 0 }, { LR, 1e3, 0 }, { LR, 1e10, 0 }, { LR, 1e20, 0 },
        { LR, 1e30, 0 }, { LR, 1e37, 0 }, { LR, 1e-30, 1 }, { LR, 1e-300, 1 }, { DECAY, 1e10, 0 },
        { DECAY, 500, 1 }, { CLIP, 1e-30, 1 }, { CLIP, 1e-300, 1 }, { CLIP, 1e30, 1 },
        { CLIP, 1e300, 1 }, { CLIP, 0, 1 }, { BETAS, 0, 1 }, { BETAS, 0.999999, 1 },
        { DROPOUT, 0.9, 1 }, { COEFFICIENTS, 1e6, 1 }, { WEIGHTS, 0, 1 }, { WEIGHTS, 1e-20, 1 },
        { WEIGHTS, 1e-38, 1 }, { WEIGHTS, 1e4, 0 }, { WEIGHTS, 1e10, 0 }, { WEIGHTS, 1e18, 0 },
        { WEIGHTS, 1e25, 0 }, { WEIGHTS, 1e38, 0 }, { NOISE, 0, 1 }, { NOISE, 1e10, 0 },
        { NOISE, 1e37, 0 } };
    int *text = random_tokens(60, 2);
    for (size_t i = 0; i < 4 * (sizeof cases / sizeof *cases); i++) {
        double value = cases[i / 4].value, loss = 0;
        int shape = (int)(i % 4), kind = cases[i / 4].kind, made;
        char where[60];
        hmoe_config c = shape ? small_config() : least_config();
        hmoe_adamw adamw = hmoe_default_adamw();
        hmoe_model m;
        if (shape == 2) {                          /* 64 experts, two at work */
            c.E = 64;
            for (int e = 0; e < 64; e++) c.H[e] = 1 + e % 3;
        }
        if (shape == 3) c.routing = HMOE_TOP_P, c.top_p = 1;
        c.noisy_gating = kind == NOISE;
        if (kind == COEFFICIENTS) c.loss_coef[HMOE_LB] = c.loss_coef[HMOE_PP] = c.loss_coef[HMOE_ENT] = c.loss_coef[HMOE_Z] = value;
        if (kind == LR) adamw.lr = value;
        if (kind == DECAY) adamw.weight_decay = value;
        if (kind == CLIP) adamw.clip = value;
        if (kind == BETAS) adamw.beta1 = adamw.beta2 = value;
        small_create(&m, &c, 2);
        if (kind == DROPOUT) m.dropout = value;
        for (size_t k = 0; k < m.param_count && kind == WEIGHTS; k++)
            m.params[k] = (hmoe_real)(m.params[k] * value);
        for (size_t k = 0; k < m.tensor_count && kind == NOISE; k++)
            if (strstr(m.tensors[k].name, "noise.weight"))
                fill(m.params + m.tensors[k].offset, (size_t)c.E * c.C, value);
        sprintf(where, "(kind %d, %g, shape %d)", kind, value, shape);
        test_context = where;
        made = learn(&m, &adamw, text, 60, shape ? 2 : 1, c.T, 25, &loss);
        CHECK(made == 25 || !cases[i / 4].goes_on);
        hmoe_free(&m);
    }
    free(text);
}

/* What moves nothing moves nothing; and a small step is a small step. */
static void steps_of_nothing(void) {
    for (int i = 0; i < 3; i++) {
        static const int text[20] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
        hmoe_config c = small_config();
        hmoe_adamw adamw = hmoe_default_adamw();
        hmoe_model m;
        hmoe_real *before;
        double loss;
        small_create(&m, &c, 2);
        before = reals(m.param_count);
        memcpy(before, m.params, m.param_count * sizeof *before);
        if (i == 0) adamw.lr = 0;
        if (i == 1) adamw.clip = 1e-30, adamw.weight_decay = 0;    /* squares: all 0 */
        if (i == 2) adamw.lr = 1e-30;
        CHECK_INT(learn(&m, &adamw, text, 20, 2, 6, 10, &loss), 10);
        CHECK(!memcmp(before, m.params, m.param_count * sizeof *before));
        CHECK_INT(m.step, 10);
        free(before);
        hmoe_free(&m);
    }
}

/* Rates that a float cannot hold, or that it rounds to nonsense, are refused: no step is made. */
static void rates_that_round_to_nonsense(void) {
    static const hmoe_adamw bad[] = {
        { 1e39, 0.9, 0.99, 0.1, 1 },       { 1e300, 0.9, 0.99, 0, 1 },  { INFINITY, .9, .99, 0, 1 },
        { 1e30, 0.9, 0.99, 1e10, 1 },      { 1, 0.9, 0.99, INFINITY, 1 }, { NAN, 0.9, 0.99, 0, 1 },
        { 0, 0.9, 0.99, INFINITY, 1 },     { 1, NAN, 0.99, 0, 1 },      { 1, 0.9, NAN, 0, 1 },
        { 1e-3, 0.999999999, 0.99, 0, 1 }, { 1e-3, 0.9, 0.999999999, 0, 1 }, { 1, 0.9, 1, 0, 1 },
        { 1, 0.9, 0.99, NAN, 1 },          { 1, 0.9, 0.99, 0, NAN } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        static const int text[6] = { 1, 2, 3, 4, 5, 6 };
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_real *before;
        small_create(&m, &c, 1);
        before = reals(m.param_count);
        memcpy(before, m.params, m.param_count * sizeof *before);
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6), HMOE_OK);
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        CHECK_INT(hmoe_update(&m, &bad[i]), HMOE_BAD_ARGUMENT);
        CHECK(strstr(m.message, "AdamW") != NULL);
        CHECK(m.step == 0 && !memcmp(before, m.params, m.param_count * sizeof *before));
        free(before);
        hmoe_free(&m);
    }
}

/* ---- Overflows that could pass for numbers. */

/* 1 / rms of a row whose square overflows is 0, and 0 times the row a vector like any other. */
static void a_row_too_long_for_its_norm(void) {
    static const char *const places[5] = { "", "mlp", "final", "just fits", "noise" };
    for (int i = 0; i < 5; i++) {
        static const int text[6] = { 1, 2, 3, 4, 5, 6 };
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_real logits[11];
        hmoe_cache cache;
        hmoe_status right;
        c.L = 1, c.noisy_gating = i == 4;
        test_context = places[i];
        small_create(&m, &c, 1);
        spread_weights(&m, 0.4, 0.6);
        for (int k = 0; k < c.E * c.C && i == 4; k++)
            weights(&m, "model.layers.%d.block_sparse_moe.noise.weight", 0)[k] *= (hmoe_real)1e25;
        if (i == 0 || i == 3)
            for (int k = 0; k < c.V * c.C; k++) m.params[k] *= (hmoe_real)(i ? 1e18 : 1e25);
        else
            for (int k = 0; k < (i == 1 ? c.C * c.C : 0); k++)
                weights(&m, "model.layers.%d.self_attn.o_proj.weight", 0)[k] *= (hmoe_real)1e25;
        for (int e = 0; e < c.E && i == 2; e++) {
            char name[80];
            sprintf(name, "model.layers.0.block_sparse_moe.experts.%d.w2.weight", e);
            for (int k = 0; k < c.C * c.H[e]; k++) weights(&m, name, 0)[k] *= (hmoe_real)1e25;
        }
        right = i < 3 ? HMOE_NOT_FINITE : HMOE_OK;
        CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
        CHECK_INT(hmoe_next(&m, &cache, 1, logits), right);
        if (i == 4) right = HMOE_NOT_FINITE;       /* noise is for training */
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6), right);
        CHECK((m.message[0] == 0) == (right == HMOE_OK));
        hmoe_cache_free(&cache);
        hmoe_free(&m);
    }
    test_context = "";
}

/* The first token's only score overflows to -infinity. The scores that the mask hides are no more
   than that, and must not take its place: the token would look into the future. */
static void a_score_below_the_mask(void) {
    static const int text[2] = { 0, 1 };
    hmoe_config c = least_config();
    hmoe_model m;
    hmoe_real *q, *k;
    c.T = 2;
    small_create(&m, &c, 1);
    spread_weights(&m, 0.5, 0.5);
    for (int i = 0; i < 4; i++) m.params[i] = i % 3 == 0;       /* token 0: (1, 0), 1: (0, 1) */
    q = weights(&m, "model.layers.%d.self_attn.q_proj.weight", 0);
    k = weights(&m, "model.layers.%d.self_attn.k_proj.weight", 0);
    for (int i = 0; i < 4; i++) q[i] = k[i] = 0;
    q[0] = (hmoe_real)1e15, k[0] = (hmoe_real)-1e15;            /* a score of -2e30: share 1 */
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 2), HMOE_OK);
    q[0] = (hmoe_real)1e25, k[0] = (hmoe_real)-1e25;
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 2), HMOE_NOT_FINITE);
    hmoe_free(&m);
}

/* A score, or all of them, so large that its exp would overflow: the softmax takes the largest off
   first. Attention of a token to itself alone changes nothing but what v says. */
static void scores_that_exp_cannot_take(void) {
    static const int text[4] = { 0, 0, 0, 0 };
    double ce[2];
    for (int i = 0; i < 2; i++) {
        hmoe_config c = least_config();
        hmoe_model m;
        c.T = 4;
        small_draws = 77;
        small_create(&m, &c, 1);
        spread_weights(&m, 0.5, 0.5);
        for (int k = 0; k < 4; k++) {              /* i = 0: equal scores, i = 1: huge ones */
            weights(&m, "model.layers.%d.self_attn.q_proj.weight", 0)[k] *= i ? 1e9f : 0;
            weights(&m, "model.layers.%d.self_attn.k_proj.weight", 0)[k] *= i ? 1e9f : 0;
        }
        for (int k = 0; k < 4; k++)                /* and huge logits: a loss of 1e9 or 0 */
            weights(&m, "lm_head.weight", 0)[k] *= 1e9f;
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 4), HMOE_OK);
        ce[i] = m.losses.ce;
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        CHECK(all_finite(m.grads, m.param_count));
        hmoe_free(&m);
    }
    CHECK_NEAR(ce[0], ce[1], 1e-4, 0);             /* all values are the same, so any shares do */
}

/* ---- A NaN or an infinity in each array, in each tensor: it is noticed, or harms nothing. */

static void poison_in_every_array(void) {
    static const char *const array[4] = { "params", "grads", "exp_avg", "exp_avg_sq" };
    static const float poison[3] = { NAN, INFINITY, -INFINITY };
    static const int text[6] = { 0, 1, 2, 3, 4, 5 };
    hmoe_config c = small_config();
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_model m;
    int silent = 0, noticed = 0;
    c.K = c.E;                                     /* every tensor is at work */
    c.noisy_gating = 1;
    for (int which = 0; which < 4; which++)
        for (size_t i = 0, tensors = 1; i < tensors; i++)
            for (int p = 0; p < 3; p++) {
                char where[200];
                hmoe_status status;
                hmoe_real *arrays[4];
                small_create(&m, &c, 1);
                tensors = m.tensor_count;
                spread_weights(&m, 0.3, 0.5);
                arrays[0] = m.params, arrays[1] = m.grads;
                arrays[2] = m.exp_avg, arrays[3] = m.exp_avg_sq;
                sprintf(where, "%s of %.100s, %g", array[which], m.tensors[i].name, poison[p]);
                test_context = where;
                if (which != 1) arrays[which][m.tensors[i].offset] = poison[p];
                if (which == 0 && strstr(where, "gate.weight"))    /* with no loss to tell of it */
                    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, text, NULL, 1, 6), HMOE_NOT_FINITE);
                status = hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6);
                if (which == 0 && strstr(where, "noise.weight") && !isnan(poison[p]))
                    status = HMOE_NOT_FINITE;      /* softplus(-infinity) is 0, and no harm */
                if (which == 0) CHECK_INT(status, HMOE_NOT_FINITE);
                if (!status) status = hmoe_backward(&m, 1);
                if (which == 1) m.grads[m.tensors[i].offset] = poison[p];
                if (!status) status = hmoe_update(&m, &adamw);
                if (which == 1) {
                    CHECK_INT(status, HMOE_NOT_FINITE);
                    CHECK(model_is_finite(&m));
                }
                if (!status) status = hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6);
                CHECK(!status == !m.message[0] || strstr(where, "noise.weight"));
                if (status) {
                    noticed++;
                    CHECK_INT(status, HMOE_NOT_FINITE);
                } else {                           /* m / sqrt(infinity) is 0: no harm */
                    silent++;
                    CHECK(which == 3 && all_finite(m.params, m.param_count));
                }
                hmoe_free(&m);
            }
    test_context = "";
    CHECK(noticed > 300 && silent < noticed / 5);
}

static void a_scale_that_is_no_number(void) {
    static const int text[6] = { 0, 1, 2, 3, 4, 5 };
    static const double scale[4] = { NAN, INFINITY, -INFINITY, 1e300 };
    for (int i = 0; i < 4; i++) {
        hmoe_config c = small_config();
        hmoe_adamw adamw = hmoe_default_adamw();
        hmoe_model m;
        small_create(&m, &c, 1);
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6), HMOE_OK);
        CHECK_INT(hmoe_backward(&m, scale[i]), HMOE_OK);
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_NOT_FINITE);
        CHECK(model_is_finite(&m) && m.step == 0 && all_zero(m.grads, m.param_count));
        hmoe_free(&m);
    }
}

/* ---- Muon, whose rates are its own. */

static void muon_at_its_extremes(void) {
    static const double lr[5] = { 0, 10, 1e10, 1e30, 1e300 };
    int *text = random_tokens(6, 11);
    for (int i = 0; i < 5; i++) {
        hmoe_config c = small_config();
        hmoe_adamw adamw = hmoe_default_adamw();
        hmoe_muon muon = hmoe_default_muon();
        hmoe_model m;
        hmoe_status status = HMOE_OK;
        int overflown = 0;
        small_create(&m, &c, 1);
        CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_OK);
        muon.lr = lr[i];
        for (int step = 0; step < 10 && !status; step++) {
            status = hmoe_forward(&m, HMOE_TRAIN, text, text, 1, 6);
            if (!status) CHECK(isfinite(m.losses.total) && !overflown);
            if (!status) status = hmoe_backward(&m, 1);
            if (!status) status = hmoe_muon_update(&muon, &m);
            if (!status) status = hmoe_update(&m, &adamw);
            overflown = !model_is_finite(&m);
        }
        CHECK(status == HMOE_OK || (status == HMOE_NOT_FINITE && m.message[0]));
        if (i == 0) {
            CHECK_INT(status, HMOE_OK);
            m.grads[naive_find(&m, "model.layers.1.self_attn.o_proj.weight")->offset] = NAN;
            CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_NOT_FINITE);
            CHECK(all_zero(m.grads, m.param_count));
        }
        hmoe_muon_free(&muon);
        hmoe_free(&m);
    }
    free(text);
}

/* ---- Sampling from logits of any size. */

static void sampling_at_its_extremes(void) {
    static const hmoe_real logits[4] = { -1e38f, 1e38f, 0, 1 };
    static const double temperature[6] = { 0, 1e-300, 1e-30, 1, 1e30, 1e308 };
    int seen[4] = { 0 };
    for (int i = 0; i < 6; i++)
        for (int k = -1; k < 6; k++)
            for (int p = 0; p < 3; p++)
                for (int position = 0; position < 20; position++) {
                    hmoe_real x[4];
                    int token;
                    memcpy(x, logits, sizeof x);
                    token = hmoe_sample(x, 4, temperature[i], k, p ? (p == 1 ? 1e-300 : 1) : 0.5, 3,
                                        position);
                    CHECK(token >= 0 && token < 4);
                    if (i < 4) CHECK_INT(token, 1);            /* by far the largest */
                    else seen[token]++;
                }
    CHECK(seen[0] && seen[1] && seen[2] && seen[3]);           /* so hot that all are alike */
}

int main(void) {
    threads(1);
    TEST(one_byte_for_ever);
    TEST(two_bytes_in_turn);
    TEST(a_router_without_an_opinion);
    TEST(a_router_without_a_doubt);
    TEST(extremes_of_learning);
    TEST(steps_of_nothing);
    TEST(rates_that_round_to_nonsense);
    TEST(a_row_too_long_for_its_norm);
    TEST(a_score_below_the_mask);
    TEST(scores_that_exp_cannot_take);
    TEST(poison_in_every_array);
    TEST(a_scale_that_is_no_number);
    TEST(muon_at_its_extremes);
    TEST(sampling_at_its_extremes);
    return test_summary("extremes");
}
