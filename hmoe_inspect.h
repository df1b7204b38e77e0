/* hmoe_inspect.h - looks into a model of hmoe.h: who chose whom, how much each expert worked, what
   one of them does alone. Include it beside hmoe.h, in the same way. */
#ifndef HMOE_INSPECT_H
#define HMOE_INSPECT_H

#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the last hmoe_forward computed, with its B and T, until any other call that computes; arrays
   are the caller's. */
hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits);   /* [N, V] */
hmoe_status hmoe_get_token_losses(hmoe_model *m, hmoe_real *ce); /* [N], nats; needs targets */

/* Bytes that such a model takes beyond parameters, gradients and moments; 0: no configuration. */
size_t hmoe_activation_bytes(const hmoe_config *config, int max_B, int training);

/* The choice for one token in one layer. */
typedef struct hmoe_route {
    int count;                        /* |S[t]| */
    int expert[HMOE_MAX_EXPERTS];     /* the first `count`: the experts, by descending P + b, */
    double gate[HMOE_MAX_EXPERTS];    /*   and their gates; their widths are config.H[expert] */
    double P[HMOE_MAX_EXPERTS];       /* the whole softmax, [E] */
} hmoe_route;
hmoe_status hmoe_get_route(hmoe_model *m, int layer, int token, hmoe_route *route);

/* How the experts of one layer were used, over all tokens that hmoe_forward saw since
   hmoe_reset_usage, in training or not. All 0 for a layer that is not there. */
typedef struct hmoe_usage {
    int64_t tokens;
    double share[HMOE_MAX_EXPERTS];   /* f_e: share of the tokens that chose expert e */
    double compute[HMOE_MAX_EXPERTS]; /* its share of the experts' work: f_e H[e], sums to 1 */
    double P[HMOE_MAX_EXPERTS];       /* mean router probability */
    int dead;                         /* experts that no token chose */
    double entropy;                   /* of the router, mean per token, in nats */
    double experts;                   /* mean |S| */
    double width;                     /* mean over tokens of the chosen experts' added widths */
    double bias[HMOE_MAX_EXPERTS];    /* b of bias balancing as it is now, all 0 without it */
    double top_p;                     /* of this layer as it is now; 0 under Top-K */
} hmoe_usage;
void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage);
void hmoe_reset_usage(hmoe_model *m);

/* What each of D devices holds and does where expert e lies on device[e] (hmoe_place_experts): sums
   over all layers since hmoe_reset_usage. Returns how uneven that is: the largest share over the
   mean, of each of the three; 1 is even, and a device is 0 where there is nothing to share. */
typedef struct hmoe_device {
    double params;                    /* of its experts */
    double tokens;                    /* that came to them */
    double work;                      /* the same times the expert's width */
} hmoe_device;
hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of);

/* Parameters of the whole model, wherever its experts are. */
double hmoe_parameters(const hmoe_model *m);

/* Activated parameters per token: attention, norms, router, head, one embedding row, and 3 C H[e]
   of the experts chosen since hmoe_reset_usage (before the first token: as if all were chosen
   equally often). */
double hmoe_activated(const hmoe_model *m);

/* One expert alone: y = W2 (silu(W1 x) * (W3 x)) on rows of the caller's; x, y: [rows, C]. */
hmoe_status hmoe_run_expert(hmoe_model *m, int layer, int e, const hmoe_real *x, hmoe_real *y,
                            int rows);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_INSPECT_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_INSPECT_IMPLEMENTED
#define HMOE_INSPECT_IMPLEMENTED

static hmoe_status hmoe__nothing_there(hmoe_model *m, const char *what) {
    return HMOE__BAD(m->message, "no %s: they are there after a hmoe_forward that succeeded and "
                     "before hmoe_backward", what);
}

hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (m->mode < 0) return hmoe__nothing_there(m, "logits");
    m->steps->fetch(logits, m->buffers->logits, N * m->config.V * sizeof *logits);
    return hmoe__settle(m);
}

hmoe_status hmoe_get_token_losses(hmoe_model *m, hmoe_real *ce) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (m->mode < 0 || !m->had_targets) return hmoe__nothing_there(m, "token losses");
    m->steps->fetch(ce, m->buffers->ce, N * sizeof *ce);
    return hmoe__settle(m);
}

size_t hmoe_activation_bytes(const hmoe_config *config, int max_B, int training) {
    hmoe__buffers unused;
    double bytes;
    if (hmoe_check_config(config, NULL) || max_B < 0) return 0;
    bytes = hmoe__list_activations(config, hmoe__widest(config), max_B, training, NULL, NULL,
                                   &unused);
    return bytes < (double)((size_t)-1 / 2) ? (size_t)bytes : (size_t)-1;
}

hmoe_status hmoe_get_route(hmoe_model *m, int layer, int token, hmoe_route *route) {
    const hmoe_steps *s = m->steps;
    hmoe_real gate[HMOE_MAX_EXPERTS], P[HMOE_MAX_EXPERTS];
    const hmoe_routes *r;
    size_t E = (size_t)m->config.E, slots;
    m->message[0] = 0;
    if (m->mode < 0) return hmoe__nothing_there(m, "routes");
    if (layer < 0 || layer >= m->config.L || token < 0 || token >= m->B * m->sequence_length)
        return HMOE__BAD(m->message, "no token %d in layer %d: there are %d "
                          "tokens and %d layers", token, layer, m->B * m->sequence_length,
                          m->config.L);
    r = &m->layers[layer].routes;
    slots = (size_t)r->slots;
    s->fetch(&route->count, r->count + token, sizeof(int));
    s->fetch(route->expert, r->expert + token * slots, slots * sizeof(int));
    s->fetch(gate, r->gate + token * slots, slots * sizeof *gate);
    s->fetch(P, r->P + token * E, E * sizeof *P);
    HMOE__TRY(hmoe__settle(m));
    for (int i = 0; i < route->count; i++) route->gate[i] = (double)gate[i];
    for (size_t e = 0; e < E; e++) route->P[e] = (double)P[e];
    return HMOE_OK;
}

void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage) {
    const hmoe_config *c = &m->config;
    size_t per_layer = hmoe__sum_count(c);
    const hmoe_routes *routes;
    const double *sums;
    double tokens, N;
    hmoe_real state[HMOE_MAX_EXPERTS];
    memset(usage, 0, sizeof *usage);
    if (layer < 0 || layer >= c->L) return;
    routes = &m->layers[layer].routes;
    sums = m->usage + layer * per_layer;
    tokens = m->usage[c->L * per_layer], N = tokens > 0 ? tokens : 1;
    usage->tokens = (int64_t)tokens;
    for (int e = 0; e < c->E; e++) {
        usage->share[e] = sums[e] / N;
        usage->P[e] = sums[c->E + e] / N;
        usage->width += usage->share[e] * c->H[e];
        usage->dead += sums[e] == 0;
    }
    for (int e = 0; e < c->E && usage->width > 0; e++)
        usage->compute[e] = usage->share[e] * c->H[e] / usage->width;
    usage->entropy = sums[2 * c->E] / N;
    usage->experts = sums[2 * c->E + 2] / N;
    if (c->routing == HMOE_TOP_P) usage->top_p = c->top_p;
    if (routes->top_p) {
        m->steps->fetch(state, routes->top_p, sizeof *state);
        usage->top_p = (double)*state;
    }
    if (routes->bias) m->steps->fetch(state, routes->bias, (size_t)c->E * sizeof *state);
    for (int e = 0; routes->bias && e < c->E; e++) usage->bias[e] = (double)state[e];
}

void hmoe_reset_usage(hmoe_model *m) {
    memset(m->usage, 0, (m->config.L * hmoe__sum_count(&m->config) + 1) * sizeof *m->usage);
}

hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of) {
    const hmoe_config *c = &m->config;
    hmoe_device sum = { 0, 0, 0 }, most = { 0, 0, 0 };
    memset(of, 0, (size_t)D * sizeof *of);
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(m, l, &usage);
        for (int e = 0; e < c->E; e++) {
            double tokens = usage.share[e] * (double)usage.tokens;
            of[device[e]].params += 3.0 * c->C * c->H[e];
            of[device[e]].tokens += tokens;
            of[device[e]].work += tokens * c->H[e];
        }
    }
    for (int d = 0; d < D; d++) {
        sum.params += of[d].params, most.params = fmax(most.params, of[d].params);
        sum.tokens += of[d].tokens, most.tokens = fmax(most.tokens, of[d].tokens);
        sum.work += of[d].work, most.work = fmax(most.work, of[d].work);
    }
    if (sum.tokens > 0) most.tokens *= D / sum.tokens;
    if (sum.work > 0) most.work *= D / sum.work;   /* null experts do none */
    most.params *= D / sum.params;
    return most;
}

double hmoe_parameters(const hmoe_model *m) {
    double sum = 0;
    for (size_t i = 0; i < m->tensor_count; i++)
        if (!m->tensors[i].state) sum += (double)m->tensors[i].rows * m->tensors[i].cols;
    return sum;
}

double hmoe_activated(const hmoe_model *m) {
    const hmoe_config *c = &m->config;
    double widths = 0, even = c->routing == HMOE_TOP_K ? c->K : ceil(c->top_p * c->E);
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(m, l, &usage);
        widths += usage.tokens ? usage.width : even * (double)hmoe__total_width(c) / c->E;
    }
    return hmoe__activated_with(c, widths);
}

hmoe_status hmoe_run_expert(hmoe_model *m, int layer, int e, const hmoe_real *x, hmoe_real *y,
                            int rows) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    int range[2] = { 0, rows }, C = c->C, H, *on;
    size_t n = (size_t)(rows > 0 ? rows : 0);
    double bytes;
    hmoe_real *xs, *ys, *u, *h;
    hmoe_linear up, down;
    hmoe_routes routes;
    hmoe_status status;
    m->message[0] = 0;
    if (layer < 0 || layer >= c->L || e < 0 || e >= c->E || rows < 0 || rows > HMOE_MAX_TOKENS
        || !hmoe__is_here(m, e))
        return HMOE__BAD(m->message, "no expert %d in layer %d, or not for %d "
                          "rows: there are %d in %d layers", e, layer, rows, c->E, c->L);
    H = c->H[e];
    bytes = 64 + (double)n * (2.0 * C + 3.0 * H) * sizeof *x;
    /* the range of rows, and after it the arrays */
    on = bytes < (double)((size_t)-1 / 4) ? (int *)s->get((size_t)bytes) : NULL;
    if (!on) return hmoe__no_memory(m->message, bytes, "the expert's rows");
    xs = (hmoe_real *)(void *)((char *)on + 64);
    ys = xs + n * C, u = ys + n * C, h = u + n * 2 * H;
    up = hmoe__dense(xs, m->params + m->layers[layer].w13[e], u, C, 2 * H, on, NULL);
    down = hmoe__dense(h, m->params + m->layers[layer].w2[e], ys, H, C, on, NULL);
    memset(&routes, 0, sizeof routes);
    routes.expert_start = on;
    s->store(on, range, sizeof range);
    s->store(xs, x, n * C * sizeof *x);
    s->up_forward(h, &up, &routes, &H, 1, H);
    s->linear_forward(&down, 1);
    s->fetch(y, ys, n * C * sizeof *y);
    status = hmoe__settle(m);
    s->give_back(on);
    return status;
}

#endif /* HMOE_INSPECT_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
