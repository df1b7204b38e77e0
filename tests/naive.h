/* naive.h - the whole forward pass a second time: one token at a time, in plain loops, always in
   double. It uses nothing of hmoe.h but the table of tensors. It is slow and easy to check by
   reading. Include it after hmoe.h. */

#ifndef NAIVE_H
#define NAIVE_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct naive {
    double *logits;        /* [N, V] */
    double *ce;            /* [N] */
    double *gates;         /* [L, N, E], 0 for the experts not chosen */
    hmoe_losses losses;
} naive;

static inline double *naive_array(size_t n) {
    double *a = (double *)calloc(n ? n : 1, sizeof(double));
    if (!a) { puts("naive.h: out of memory"); exit(2); }
    return a;
}

static inline naive naive_create(const hmoe_config *c, int N) {
    naive r;
    memset(&r, 0, sizeof r);
    r.logits = naive_array((size_t)N * c->V);
    r.ce = naive_array(N);
    r.gates = naive_array((size_t)c->L * N * c->E);
    return r;
}

static inline void naive_free(naive *r) {
    free(r->logits);
    free(r->ce);
    free(r->gates);
}

/* All parameters, as doubles; the caller frees them. */
static inline double *naive_params(const hmoe_model *m) {
    double *params = naive_array(m->param_count);
    for (size_t i = 0; i < m->param_count; i++) params[i] = (double)m->params[i];
    return params;
}

/* A tensor by its name in a checkpoint. A wrong name is a mistake in the test. */
static inline const hmoe_tensor *naive_find(const hmoe_model *m, const char *format, ...) {
    char name[HMOE_NAME_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    for (size_t i = 0; i < m->tensor_count; i++)
        if (!strcmp(m->tensors[i].name, name)) return &m->tensors[i];
    printf("naive.h: the model has no tensor %s\n", name);
    exit(2);
}

/* y = W x,  W: [out, in] */
static inline void naive_linear(double *y, const double *W, const double *x, int out, int in) {
    for (int o = 0; o < out; o++) {
        y[o] = 0;
        for (int i = 0; i < in; i++) y[o] += W[(size_t)o * in + i] * x[i];
    }
}

/* y = w * x / sqrt(mean(x^2) + eps) */
static inline void naive_norm(double *y, const double *x, const double *w, int C, double eps) {
    double square = 0;
    for (int i = 0; i < C; i++) square += x[i] * x[i];
    for (int i = 0; i < C; i++) y[i] = w[i] * x[i] / sqrt(square / C + eps);
}

/* Rotate-half: dimensions i and i + hs/2 are rotated by the angle position * theta^(-2i/hs). */
static inline void naive_rope(double *head, int position, int hs, double theta) {
    for (int i = 0; i < hs / 2; i++) {
        double angle = position * pow(theta, -2.0 * i / hs);
        double a = head[i], b = head[i + hs / 2];
        head[i] = a * cos(angle) - b * sin(angle);
        head[i + hs / 2] = b * cos(angle) + a * sin(angle);
    }
}

/* One expert on one token: y = W2 (silu(W1 x) * (W3 x)). */
static inline void naive_expert(double *y, const double *w1, const double *w3, const double *w2,
                                const double *x, int C, int H) {
    double *a = naive_array(H), *b = naive_array(H);
    naive_linear(a, w1, x, H, C);
    naive_linear(b, w3, x, H, C);
    for (int i = 0; i < H; i++) a[i] = a[i] / (1 + exp(-a[i])) * b[i];
    naive_linear(y, w2, a, C, H);
    free(a);
    free(b);
}

/* One token's gates from its probabilities; 0 for experts that are not chosen. Takes the largest
   P + b that is left (the lowest index if equal) until there are K, or until their P add up to p.
   b: the biases of the layer's experts, or NULL. */
static inline void naive_gates(double *gates, const double *P, const double *b, double p,
                               const hmoe_config *c) {
    int norm = c->gate == HMOE_GATE_NORM
               || (c->gate == HMOE_GATE_DEFAULT && !(c->routing == HMOE_TOP_K && c->K == 1));
    double sum = 0;
    int chosen = 0;
    for (int e = 0; e < c->E; e++) gates[e] = 0;
    while (chosen < c->E) {
        int best = -1;
        if (c->routing == HMOE_TOP_K && chosen == c->K) break;
        if (c->routing == HMOE_TOP_P && p < 1 && chosen > 0 && sum >= p) break;
        for (int e = 0; e < c->E; e++) {
            double better = best < 0 ? 1 : b ? P[e] + b[e] - (P[best] + b[best]) : P[e] - P[best];
            if (gates[e] == 0 && better > 0) best = e;
        }
        assert(best >= 0);
        gates[best] = P[best];
        sum += P[best];
        chosen++;
    }
    if (norm) for (int e = 0; e < c->E; e++) gates[e] /= sum;
}

/* Causal attention of one sequence. A token sees at most `window` tokens, of which it is the last.
   Keys and values have NKV heads, and head h of the NH heads of queries uses the one at the same
   part of the way, h / NH.   x and out: [T, C]   wq, wo: [C, C]   wk, wv: [KV, C] */
static inline void naive_attention(double *out, const double *x, const double *wq,
                                   const double *wk, const double *wv, const double *wo,
                                   const hmoe_config *c, int T, int window) {
    int C = c->C, NH = c->NH, hs = C / NH, NKV = c->NKV ? c->NKV : NH, KV = NKV * hs;
    double *q = naive_array((size_t)T * C), *k = naive_array((size_t)T * KV);
    double *v = naive_array((size_t)T * KV), *mix = naive_array(C), *a = naive_array(T);
    for (int t = 0; t < T; t++) {
        naive_linear(q + t * C, wq, x + t * C, C, C);
        naive_linear(k + t * KV, wk, x + t * C, KV, C);
        naive_linear(v + t * KV, wv, x + t * C, KV, C);
        for (int h = 0; h < NH; h++) naive_rope(q + t * C + h * hs, t, hs, c->rope_theta);
        for (int h = 0; h < NKV; h++) naive_rope(k + t * KV + h * hs, t, hs, c->rope_theta);
    }
    for (int t = 0; t < T; t++) {
        int first = t - window + 1 > 0 ? t - window + 1 : 0;
        for (int h = 0; h < NH; h++) {
            const double *q_h = q + t * C + h * hs, *k_h = k + h * NKV / NH * hs;
            const double *v_h = v + h * NKV / NH * hs;
            double sum = 0;
            for (int s = first; s <= t; s++) {
                double score = 0;
                for (int i = 0; i < hs; i++) score += q_h[i] * k_h[s * KV + i];
                a[s] = exp(score / sqrt((double)hs));
                sum += a[s];
            }
            for (int i = 0; i < hs; i++) {
                mix[h * hs + i] = 0;
                for (int s = first; s <= t; s++) mix[h * hs + i] += a[s] / sum * v_h[s * KV + i];
            }
        }
        naive_linear(out + t * C, wo, mix, C, C);
    }
    free(q); free(k); free(v); free(mix); free(a);
}

/* A layer's experts on all N tokens, as a loop over tokens. y: [N, C] receives the mixture, and
   gates: [N, E] the gates. Adds to `losses`. noise: the n of noisy gating, [N, E], or NULL. */
static inline void naive_moe(double *y, double *gates, hmoe_losses *losses, const double *x,
                             const hmoe_model *m, const double *params, int l, int N,
                             const double *noise) {
    const hmoe_config *c = &m->config;
    const char *moe = "model.layers.%d.block_sparse_moe.%s";
    const char *weight = "model.layers.%d.block_sparse_moe.experts.%d.w%d.weight";
    int C = c->C, E = c->E;
    double *r = naive_array(E), *P = naive_array(E), *extra = naive_array(E);
    double *part = naive_array(C), *f = naive_array(E), *P_mean = naive_array(E);
    const double *b = c->balance == HMOE_BALANCE_OFF ? NULL
                      : params + naive_find(m, moe, l, "gate.e_score_correction_bias")->offset;
    double p = c->budget > 0 ? params[naive_find(m, moe, l, "top_p")->offset] : c->top_p;
    double mean_H = 0, entropy = 0, square = 0;
    for (int e = 0; e < E; e++) mean_H += (double)c->H[e] / E;
    for (int t = 0; t < N; t++) {
        const double *x_t = x + t * C;
        double *y_t = y + t * C, *gates_t = gates + t * E, sum = 0;
        naive_linear(r, params + naive_find(m, moe, l, "gate.weight")->offset, x_t, E, C);
        if (noise) {       /* r += n * RMSNorm(softplus(W_n x)) */
            naive_linear(extra, params + naive_find(m, moe, l, "noise.weight")->offset, x_t, E, C);
            for (int e = 0; e < E; e++) extra[e] = log(1 + exp(extra[e]));
            naive_norm(extra, extra, params + naive_find(m, moe, l, "noise_norm.weight")->offset,
                       E, c->rms_norm_eps);
            for (int e = 0; e < E; e++) r[e] += noise[t * E + e] * extra[e];
        }
        for (int e = 0; e < E; e++) sum += exp(r[e]);
        for (int e = 0; e < E; e++) P[e] = exp(r[e]) / sum;
        naive_gates(gates_t, P, b, p, c);
        for (int i = 0; i < C; i++) y_t[i] = 0;
        for (int e = 0; e < E; e++) {
            entropy -= P[e] * log(P[e]);
            P_mean[e] += P[e] / N;
            if (gates_t[e] == 0) continue;
            f[e] += 1.0 / N;
            if (c->H[e] == 0) continue;            /* a null expert adds nothing */
            naive_expert(part, params + naive_find(m, weight, l, e, 1)->offset,
                         params + naive_find(m, weight, l, e, 3)->offset,
                         params + naive_find(m, weight, l, e, 2)->offset, x_t, C, c->H[e]);
            for (int i = 0; i < C; i++) y_t[i] += gates_t[e] * part[i];
        }
        square += log(sum) * log(sum);
    }
    for (int e = 0; e < E; e++) {
        losses->term[HMOE_LB] += E * f[e] * P_mean[e];
        losses->term[HMOE_PP] += E * f[e] * c->H[e] / mean_H * P_mean[e];
    }
    losses->term[HMOE_ENT] += E * entropy / N;
    losses->term[HMOE_Z] += square / N;
    free(r); free(P); free(extra); free(part); free(f); free(P_mean);
}

/* The model on B sequences of T tokens. params: naive_params(m), perhaps changed. window: the
   number of tokens that attention sees (T: all). noise: [L, N, E] or NULL. */
static inline void naive_forward(naive *out, const hmoe_model *m, const double *params,
                                 const int *tokens, const int *targets, int B, int T, int window,
                                 const double *noise) {
    const hmoe_config *c = &m->config;
    const char *in_layer = "model.layers.%d.%s.weight";
    int N = B * T, C = c->C, V = c->V, E = c->E;
    double *x = naive_array((size_t)N * C), *n = naive_array((size_t)N * C);
    double *y = naive_array((size_t)N * C);
    double ce = 0;
    hmoe_losses *losses = &out->losses;
    memset(losses, 0, sizeof *losses);
    for (int t = 0; t < N; t++)
        for (int i = 0; i < C; i++)
            x[t * C + i] = params[naive_find(m, "model.embed_tokens.weight")->offset
                                  + (size_t)tokens[t] * C + i];
    for (int l = 0; l < c->L; l++) {
        const double *w = params + naive_find(m, in_layer, l, "input_layernorm")->offset;
        for (int t = 0; t < N; t++) naive_norm(n + t * C, x + t * C, w, C, c->rms_norm_eps);
        for (int b = 0; b < B; b++)
            naive_attention(y + b * T * C, n + b * T * C,
                            params + naive_find(m, in_layer, l, "self_attn.q_proj")->offset,
                            params + naive_find(m, in_layer, l, "self_attn.k_proj")->offset,
                            params + naive_find(m, in_layer, l, "self_attn.v_proj")->offset,
                            params + naive_find(m, in_layer, l, "self_attn.o_proj")->offset,
                            c, T, window);
        for (int i = 0; i < N * C; i++) x[i] += y[i];
        w = params + naive_find(m, in_layer, l, "post_attention_layernorm")->offset;
        for (int t = 0; t < N; t++) naive_norm(n + t * C, x + t * C, w, C, c->rms_norm_eps);
        naive_moe(y, out->gates + (size_t)l * N * E, losses, n, m, params, l, N,
                  noise ? noise + (size_t)l * N * E : NULL);
        for (int i = 0; i < N * C; i++) x[i] += y[i];
    }
    for (int t = 0; t < N; t++) {
        double *logits = out->logits + (size_t)t * V, sum = 0;
        naive_norm(n, x + t * C, params + naive_find(m, "model.norm.weight")->offset, C,
                   c->rms_norm_eps);
        naive_linear(logits, params + naive_find(m, "lm_head.weight")->offset, n, V, C);
        for (int v = 0; v < V; v++) sum += exp(logits[v]);
        if (!targets) continue;
        out->ce[t] = log(sum) - logits[targets[t]];
        ce += out->ce[t] / N;
    }
    losses->ce = ce;
    losses->total = ce;
    for (int i = HMOE_LB; i <= HMOE_Z; i++) losses->total += c->loss_coef[i] * losses->term[i];
    free(x); free(n); free(y);
}

#endif
