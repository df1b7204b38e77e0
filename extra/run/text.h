/* text.h - functions on a text and a model, for train_tiny and generate: turn bytes into tokens,
   measure the loss on a text, and write a text. */
#ifndef TEXT_H
#define TEXT_H

#include "cli.h"

/* Turns bytes into tokens, in place. */
static inline void text_to_tokens(const hmoe_config *c, unsigned char *text, size_t n,
                                  const char *what) {
    int token[256];
    for (int i = 0; i < 256; i++) token[i] = -1;
    for (int i = 0; i < c->vocab_size; i++) token[c->vocab[i]] = i;
    for (size_t i = 0; i < n; i++) {
        if (token[text[i]] < 0)
            cli_fail(1, "%s: byte %d (0x%02x) at offset %lu is not among the %d that the model "
                     "knows", what, text[i], text[i], (unsigned long)i, c->vocab_size);
        text[i] = (unsigned char)token[text[i]];
    }
}

/* The token before a text: a newline, or token 0 if the vocabulary has no newline. */
static inline unsigned char text_start(const hmoe_config *c) {
    for (int i = 0; i < c->vocab_size; i++)
        if (c->vocab[i] == '\n') return (unsigned char)i;
    return 0;
}

/* Mean cross-entropy of the tokens of a text (n >= 2) after the first. windows = 0: uses all
   tokens, in consecutive windows of T inputs; the last window may be shorter. Otherwise it uses at
   most that many windows, evenly spaced. A pass has at most B windows, which the processes share.
   `look`, if not NULL, is called after each pass over consecutive windows with its first token. */
static inline hmoe_status text_loss(hmoe_model *m, const unsigned char *text, size_t n,
                                   size_t windows, int B,
                                   void (*look)(hmoe_model *m, size_t first, size_t tokens),
                                   double *loss) {
    size_t inputs = n - 1, T = (size_t)m->config.T < inputs ? (size_t)m->config.T : inputs;
    size_t all = (inputs + T - 1) / T, count = 0, b;
    int spaced = windows > 0 && windows < all;
    size_t between = windows > 1 ? windows - 1 : 1;
    int *x = (int *)cli_alloc((size_t)B * T * 2 * sizeof *x), *y = x + (size_t)B * T;
    hmoe_status status = HMOE_OK;
    if (!spaced) windows = all;
    size_t whole = spaced ? windows : all - 1;   /* the last window is a pass of its own */
    *loss = 0;
    for (size_t w = 0; w < windows && !status; w += b) {
        size_t t = w < whole ? T : inputs - w * T;
        b = w < whole ? whole - w : 1;
        if (b > (size_t)B) b = (size_t)B;
        size_t first = b * (size_t)cli_rank / (size_t)cli_ranks;    /* those of this process */
        size_t end = b * (size_t)(cli_rank + 1) / (size_t)cli_ranks;
        for (size_t i = 0; i < (end - first) * t; i++) {
            size_t window = w + first + i / t;
            size_t start = spaced ? window * (inputs - T) / between : window * T;
            x[i] = text[start + i % t];
            y[i] = text[start + i % t + 1];
        }
        status = hmoe_forward(m, HMOE_EVALUATE, x, y, (int)(end - first), (int)t);
        if (!status && look) look(m, w * T, b * t);
        *loss += m->losses.ce * (double)(b * t);
        count += b * t;
    }
    *loss /= (double)count;
    free(x);
    return status;
}

typedef struct text_sampling {
    double temperature, top_p;
    int top_k;
    uint64_t seed;
} text_sampling;

/* Makes a model for the CPU with the weights of another: only the CPU generates. */
static inline hmoe_status text_copy(hmoe_model *copy, hmoe_model *m) {
    hmoe_status status = hmoe_create(copy, &m->config, m->seed, 0, 0);
    if (status) return status;
    m->backend->download(copy->params, m->params, m->param_count * sizeof *m->params);
    const char *error = m->backend->synchronize();
    if (!error) return HMOE_OK;
    snprintf(copy->message, sizeof copy->message, "%s: %s", m->backend->name, error);
    return HMOE_IO;
}

/* Writes n bytes after a prompt of at least one token. */
static inline hmoe_status text_write(hmoe_model *m, const unsigned char *prompt, size_t prompt_size,
                                    int n, const text_sampling *s, void (*put)(int byte)) {
    int V = m->config.V, token;
    hmoe_real *logits = (hmoe_real *)cli_alloc((size_t)V * sizeof *logits);
    hmoe_cache cache = { 0 };
    hmoe_model copy = { 0 }, *given = m;
    hmoe_status status = HMOE_OK;
    if (strcmp(m->backend->name, "cpu")) {
        m = &copy;
        status = text_copy(&copy, given);
    }
    if (!status) status = hmoe_cache_create(&cache, m);
    for (size_t i = 0; i < prompt_size && n > 0 && !status; i++)
        status = hmoe_next(m, &cache, prompt[i], logits);
    for (int i = 0; i < n && !status; i++) {
        token = hmoe_sample(logits, V, s->temperature, s->top_k, s->top_p, s->seed, cache.position);
        put(m->config.vocab[token]);
        if (i < n - 1) status = hmoe_next(m, &cache, token, logits);
    }
    if (m != given) memcpy(given->message, copy.message, sizeof copy.message);
    hmoe_cache_free(&cache);
    hmoe_free(&copy);
    free(logits);
    return status;
}

#endif
