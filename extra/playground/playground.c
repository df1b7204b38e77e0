/* playground.c - hmoe.h as a WebAssembly module, for worker.js.

   A module holds one run and is never freed: each run has a new worker. No call takes long, so the
   worker can answer messages between calls: train() does a micro-batch or an update, evaluate() a
   few windows, speak() a few bytes. A call writes its results into an array; the comment of the
   function describes it. -1 or NULL means failure; message() then returns the reason. Batches,
   windows and schedule are those of train_tiny, so the same settings give the same run. */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"

#define EXPORT(name) __attribute__((export_name(#name)))
enum { BATCHES = 1, SAMPLES = 2,      /* purposes of random numbers, as in train_tiny.c */
       BATCH = 12,                    /* sequences in a step */
       WINDOWS = 128 };               /* of the validation text, in an evaluation */
#define SLICE 8e8                     /* FLOPs per call, if possible: about 30 ms */

static hmoe_model m;
static hmoe_cache cache;
static hmoe_adamw adamw;
static int steps, micro, part;        /* sequences in a micro-batch; how many of BATCH are done */
static unsigned char *text;           /* tokens: n_train to learn from, then n_val to validate on */
static size_t n_train, n_val;
static int *x, *y;                    /* inputs and targets of a batch */
static double ce, reported;           /* sum since the last report(), over so many steps */
static double windows_loss, loss;     /* of the running evaluation; of the last one */
static size_t window;
static double *found;                 /* results of report() and route() */
static hmoe_real *nll;                /* of the tokens of a line */

EXPORT(message) const char *message(void) { return m.message; }
EXPORT(room) void *room(size_t bytes) { return malloc(bytes); }

/* Turns n bytes into tokens, in place, and leaves out bytes that the model does not know. Returns
   the number of tokens. */
static size_t to_tokens(unsigned char *bytes, size_t n) {
    int token[256];
    size_t known = 0;
    for (int i = 0; i < 256; i++) token[i] = -1;
    for (int i = 0; i < m.config.vocab_size; i++) token[m.config.vocab[i]] = i;
    for (size_t i = 0; i < n; i++)
        if (token[bytes[i]] >= 0) bytes[known++] = (unsigned char)token[bytes[i]];
    return known;
}

/* Chooses how much of a step one call does: all of it, if that is fast enough. */
static void choose_micro(const hmoe_config *c) {
    double widths = 0, share = c->routing == HMOE_TOP_K ? (double)c->K / c->E : c->top_p, flops;
    for (int e = 0; e < c->E; e++) widths += c->L * share * c->H[e];
    flops = 6.0 * c->T * (hmoe__activated_with(c, widths) + (double)c->L * c->C * (c->T + 1));
    for (micro = BATCH; micro > 1 && (BATCH % micro || micro * flops > SLICE);) micro--;
}

/* Allocates memory for batches and samples, once there is a model. Returns width, layers, context,
   experts, sequences in a micro-batch; then the experts' widths. */
static const int *begin(unsigned char *bytes, size_t n) {
    static int shape[5 + HMOE_MAX_EXPERTS];
    const hmoe_config *c = &m.config;
    size_t batch = (size_t)micro * (size_t)c->T;
    text = bytes, n = to_tokens(text, n);
    n_train = n / 10 * 9 + n % 10 * 9 / 10, n_val = n - n_train;
    x = (int *)malloc(batch * 2 * sizeof *x), y = x + batch;
    nll = (hmoe_real *)malloc((size_t)c->T * sizeof *nll);
    found = (double *)malloc((8 + (size_t)c->T * (2 + 2 * (size_t)c->L * (size_t)c->E))
                             * sizeof *found);
    shape[0] = c->C, shape[1] = c->L, shape[2] = c->T, shape[3] = c->E, shape[4] = micro;
    memcpy(shape + 5, c->H, (size_t)c->E * sizeof *shape);
    return !x || !nll || !found || hmoe_cache_create(&cache, &m) ? NULL : shape;
}

/* Starts a new run. s: width layers experts hidden routing k p gate pp lb ent z lr steps seed;
   choices are numbered from 0. sizes: a rule, or ratios. */
EXPORT(make) const int *make(const double *s, const char *sizes, unsigned char *bytes, size_t n) {
    hmoe_config c = hmoe_default_config();
    c.C = (int)s[0], c.L = (int)s[1], c.NH = c.C / 32, c.E = (int)s[2], c.K = (int)s[5];
    c.routing = s[4] > 0 ? HMOE_TOP_P : HMOE_TOP_K, c.top_p = s[6];
    c.gate = s[7] > 0 ? HMOE_GATE_RAW : HMOE_GATE_NORM;
    c.loss_coef[HMOE_PP] = s[8], c.loss_coef[HMOE_LB] = s[9];
    c.loss_coef[HMOE_ENT] = s[10], c.loss_coef[HMOE_Z] = s[11];
    adamw = hmoe_default_adamw(), adamw.lr = s[12], steps = (int)s[13];
    if (hmoe_byte_vocab(&c, bytes, n, m.message)
        || hmoe_expert_sizes(c.H, c.E, (long long)(c.E * s[3]), sizes, m.message)
        || hmoe_check_config(&c, m.message)) return NULL;
    choose_micro(&c);
    return hmoe_create(&m, &c, (uint64_t)s[14], micro, 1) ? NULL : begin(bytes, n);
}

/* Opens a checkpoint to look at it. Its files are already in place. */
EXPORT(look_at) const int *look_at(unsigned char *bytes, size_t n) {
    hmoe_config c;
    if (hmoe_load_config(&c, "model", m.message)) return NULL;
    choose_micro(&c);
    if (hmoe_load(&m, "model", micro, 0)) return NULL;
    hmoe__write_message(m.message, "its config.json has no vocab: its tokens have no bytes");
    return m.config.vocab_size ? begin(bytes, n) : NULL;
}

/* Saves a checkpoint, with the seconds spent in training. */
EXPORT(save) int save(double seconds) {
    m.seconds = seconds;
    return hmoe_save(&m, "model", 1) ? -1 : 0;
}

/* Returns 0 if the step needs more calls, 1 if it is done. */
EXPORT(train) int train(void) {
    size_t T = (size_t)m.config.T;
    uint64_t step = (uint64_t)m.step + 1;
    double share = (double)micro / BATCH;
    hmoe_adamw now = adamw;
    if (part < BATCH) {
        for (int b = 0; b < micro; b++) {
            const unsigned char *from = text + hmoe_random(m.seed, BATCHES, step,
                                                           (uint64_t)(part + b)) % (n_train - T);
            for (size_t t = 0; t < T; t++) x[b * T + t] = from[t], y[b * T + t] = from[t + 1];
        }
        if (hmoe_forward(&m, HMOE_TRAIN, x, y, micro, (int)T) || hmoe_backward(&m, share))
            return -1;
        ce += share * m.losses.ce, reported += share;
        if ((part += micro) < BATCH || micro < BATCH) return 0;
    }
    part = 0;
    now.lr = hmoe_learning_rate((int64_t)step, (steps + 2) / 3, steps, adamw.lr, 0);
    return hmoe_update(&m, &now) ? -1 : 1;
}

/* Returns 0 if more calls are needed, 1 if the loss is known (NaN if the model knows too few of the
   bytes). */
EXPORT(evaluate) int evaluate(void) {
    size_t inputs = n_val > 1 ? n_val - 1 : 0, T = (size_t)m.config.T, windows = inputs / T, b;
    if (windows > WINDOWS) windows = WINDOWS;
    b = windows - window < (size_t)micro ? windows - window : (size_t)micro;
    for (size_t i = 0; i < b * T; i++) {
        size_t start = windows > 1 ? (window + i / T) * (inputs - T) / (windows - 1) : 0;
        x[i] = text[n_train + start + i % T], y[i] = text[n_train + start + i % T + 1];
    }
    if (b && hmoe_forward(&m, HMOE_EVALUATE, x, y, (int)b, (int)T)) return -1;
    if (b) windows_loss += m.losses.ce * (double)b;
    if ((window += b) < windows) return 0;
    loss = windows_loss / (double)windows;
    m.best_val_loss = fmin(loss, m.best_val_loss);   /* the one that is not NaN */
    return window = 0, windows_loss = 0, 1;
}

/* Reports on the steps since the last call: step, cross-entropy, gradient norm, activated
   parameters, all parameters, experts per token, validation loss; then by layer f_e of all experts,
   and their shares of the compute. */
EXPORT(report) const double *report(void) {
    const hmoe_config *c = &m.config;
    double *next = found + 7, experts = 0;
    for (int l = 0; l < c->L; l++) {
        hmoe_usage u;
        hmoe_get_usage(&m, l, &u);
        experts += u.experts / c->L;
        for (int e = 0; e < c->E; e++) *next++ = u.share[e];
        for (int e = 0; e < c->E; e++) *next++ = u.compute[e];
    }
    found[0] = (double)m.step, found[1] = ce / reported, found[2] = m.grad_norm;
    found[3] = hmoe_activated(&m), found[4] = (double)m.param_count, found[5] = experts;
    found[6] = loss, ce = reported = 0;
    hmoe_reset_usage(&m);
    return found;
}

/* Writes the next n bytes of a sample into `bytes`. first = 1 starts a new sample. */
EXPORT(speak) int speak(unsigned char *bytes, int n, int first) {
    static int token;
    const hmoe_config *c = &m.config;
    hmoe_real *logits = (hmoe_real *)malloc((size_t)c->V * sizeof *logits);
    uint64_t seed = hmoe_random(m.seed, SAMPLES, (uint64_t)m.step, 0);
    int failed = 0;
    if (!logits) return -1;
    if (first) cache.position = token = 0;
    for (int i = 0; first && i < c->vocab_size; i++) if (c->vocab[i] == '\n') token = i;
    for (int i = 0; i < n && !failed; i++) {
        failed = hmoe_next(&m, &cache, token, logits);
        token = hmoe_sample(logits, c->vocab_size, 0.8, 0, 1, seed, cache.position);
        bytes[i] = c->vocab[token];
    }
    free(logits);
    return failed ? -1 : 0;
}

/* The routes of n <= T bytes, without those that the model does not know. Returns the number of
   bytes that are left, these bytes, and for each the cross-entropy of the next one in nats (the
   last has none); then by byte, layer and expert the gate (0: not chosen) and P. */
EXPORT(route) const double *route(unsigned char *bytes, int n) {
    const hmoe_config *c = &m.config;
    size_t E = (size_t)c->E;
    double *gate;
    found[0] = n = (int)to_tokens(bytes, (size_t)n);
    if (n == 0) return found;
    for (int t = 0; t < n; t++) x[t] = bytes[t], y[t] = bytes[t + 1 < n ? t + 1 : t];
    if (hmoe_forward(&m, HMOE_EVALUATE, x, y, 1, n) || hmoe_get_token_losses(&m, nll)) return NULL;
    gate = found + 1 + 2 * n;
    for (int t = 0; t < n; t++) {
        found[1 + t] = c->vocab[bytes[t]], found[1 + n + t] = (double)nll[t];
        for (int l = 0; l < c->L; l++, gate += 2 * E) {
            hmoe_route r;
            if (hmoe_get_route(&m, l, t, &r)) return NULL;
            memset(gate, 0, E * sizeof *gate);
            for (int i = 0; i < r.count; i++) gate[r.expert[i]] = r.gate[i];
            memcpy(gate + E, r.P, E * sizeof *gate);
        }
    }
    return found;
}
