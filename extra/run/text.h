/* text.h - functions on a text and a model, for train_tiny and generate: read a text as tokens,
   measure the loss on it, and write a text. */
#ifndef TEXT_H
#define TEXT_H

#include "cli.h"

/* --- tokens ---------------------------------------------------------------------------------- */

/* Tokens 0 .. n-1 of a text. A text of bytes is in memory. A file of tokens is read piece by piece,
   so it may be larger than the memory. */
typedef struct text_tokens {
    const char *path;
    size_t n;
    unsigned char *bytes;     /* [n] tokens; or NULL: */
    FILE *file;               /*   they are in this file, after `start` bytes, */
    int64_t start;
    int width;                /*   each of 2 or 4 bytes, the lowest first */
} text_tokens;

/* Copies tokens at .. at + n - 1. */
static inline void text_get(const text_tokens *x, size_t at, size_t n, int *out) {
    size_t w = (size_t)x->width;
    if (x->bytes) {
        for (size_t i = 0; i < n; i++) out[i] = x->bytes[at + i];
        return;
    }
    if (hmoe__seek(x->file, x->start + (int64_t)(at * w), SEEK_SET)
        || fread(out, w, n, x->file) != n)
        cli_fail(1, "cannot read %s: %s", x->path, ferror(x->file) ? strerror(errno) : "it is "
                 "shorter than it was");
    hmoe__order_bytes(out, n, w);
    while (w == 2 && n-- > 0) {                      /* backwards, because they grow */
        uint16_t token;
        memcpy(&token, (const char *)out + n * w, w);
        out[n] = token;
    }
}

/* Tokens at .. at + n - 1, and for each the one after it. */
static inline void text_get_pairs(const text_tokens *x, size_t at, size_t n, int *inputs,
                                  int *targets) {
    text_get(x, at, n, inputs);
    memcpy(targets, inputs + 1, (n - 1) * sizeof *targets);
    text_get(x, at + n, 1, targets + n - 1);
}

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

/* Opens a file of tokens: bare numbers of 16 bits (nanoGPT, llama2.c), or llm.c's, which begin with
   256 numbers of 32 bits: a magic number, a version and the number of tokens. */
static inline text_tokens text_open(const char *path) {
    enum { MAGIC_16 = 20240520, MAGIC_32 = 20240801 };
    text_tokens x = { path, 0, NULL, NULL, 0, 2 };
    char why[HMOE_MESSAGE_SIZE];
    if (!cli_is_file(path)) cli_fail(1, "%.300s: is no regular file, as tokens need", path);
    uint32_t head[256] = { 0 };
    int64_t bytes = 0;
    if (hmoe__open_input(&x.file, &bytes, path, why)) cli_fail(1, "%s", why);
    if (fread(head, sizeof *head, 256, x.file) == 256) hmoe__order_bytes(head, 256, sizeof *head);
    if (head[0] == MAGIC_16 || head[0] == MAGIC_32) {
        x.start = sizeof head;
        if (head[0] == MAGIC_32) x.width = 4;
    }
    x.n = (size_t)((bytes - x.start) / x.width);
    if ((bytes - x.start) % x.width)
        cli_fail(1, "%s is no file of tokens: %lld bytes are not a whole number of %d-bit tokens",
                 path, (long long)(bytes - x.start), 8 * x.width);
    if (x.start && x.n != head[2])
        cli_fail(1, "%s is no file of tokens: its header promises %lu tokens, but it has %lu", path,
                 (unsigned long)head[2], (unsigned long)x.n);
    return x;
}

/* Reads a whole file of tokens. Returns the largest, and adds the file to a hash. */
static inline int text_scan(const text_tokens *x, uint64_t *hash) {
    enum { PIECE = 1 << 16 };
    int *piece = (int *)cli_alloc(PIECE * sizeof *piece), largest = 0;
    for (size_t at = 0, n; at < x->n; at += n) {
        n = x->n - at < PIECE ? x->n - at : PIECE;
        text_get(x, at, n, piece);
        for (size_t i = 0; i < n; i++) {
            if ((uint32_t)piece[i] >= HMOE_MAX_DIM)
                cli_fail(1, "%s: token %lu is %lu: it must be below %d", x->path,
                         (unsigned long)(at + i), (unsigned long)(uint32_t)piece[i], HMOE_MAX_DIM);
            if (piece[i] > largest) largest = piece[i];
        }
        *hash = hmoe__hash_more(*hash, piece, n * sizeof *piece);
    }
    free(piece);
    return largest;
}

/* A text to score: of bytes, or for a model whose tokens are no bytes a file of tokens. */
static inline text_tokens text_read(const hmoe_config *c, const char *path) {
    text_tokens x = { path, 0, NULL, NULL, 0, 1 };
    uint64_t hash = 0;
    int largest = 0;
    if (c->vocab_size) x.bytes = cli_read(path, &x.n, "");
    else x = text_open(path);
    if (x.n < 2)
        cli_fail(1, "%s has %lu %s: a text to score needs at least 2", path, (unsigned long)x.n,
                 x.bytes ? "bytes" : "tokens");
    if (x.bytes) text_to_tokens(c, x.bytes, x.n, path);
    else if ((largest = text_scan(&x, &hash)) >= c->V)
        cli_fail(1, "%s: has token %d, but the model's tokens are 0 to %d", path, largest,
                 c->V - 1);
    return x;
}

/* --- loss ------------------------------------------------------------------------------------ */

static double text_seconds_a_line;   /* of progress, if there is no terminal; 0: none */

/* Shows how far a long measurement is: after a second on a terminal, in place. `began`: the time of
   its start. done = all erases the line. */
static inline void text_progress(size_t done, size_t all, double began) {
    static double shown;
    int terminal = isatty(STDOUT_FILENO);
    double now = cli_seconds(), every = terminal ? 0.1 : text_seconds_a_line;
    double left = (now - began) * (double)(all - done) / (double)done;
    if (shown < began) shown = terminal ? began + 1 : began;
    if (done == all) {
        if (cli_line_is_open) printf("\r\033[K");
        cli_line_is_open = 0;
    } else if (every > 0 && now - shown >= every) {
        shown = now;
        if (terminal) putchar('\r');
        printf("measuring the loss: %.0f %%, %.0f:%02d left", 100 * (double)done / (double)all,
               floor(left / 60), (int)fmod(left, 60));
        if (terminal) printf("\033[K");
        else putchar('\n');
        cli_line_is_open = terminal;
        fflush(stdout);
    }
}

/* The windows for so many tokens; 0 for all. */
static inline size_t text_windows(const hmoe_model *m, int tokens) {
    int T = m->config.T;
    return tokens ? tokens > T ? (size_t)(tokens / T) : 1 : 0;
}

/* How many of n tokens text_loss measures: all that follow one, if there are not more windows. */
static inline size_t text_measured(const hmoe_model *m, size_t n, size_t windows) {
    size_t T = (size_t)m->config.T;
    return windows > 0 && windows < (n - 1 + T - 1) / T ? windows * T : n - 1;
}

/* Mean cross-entropy of tokens first .. first + n - 1 (n >= 2) of a text, but for the first of
   them. windows = 0: uses all of them, in consecutive windows of T inputs; the last window may be
   shorter. Otherwise it uses at most that many windows, evenly spaced. A pass has at most B
   windows, which the processes share. `look`, if not NULL, is called after each pass over
   consecutive windows with its first token. */
static inline hmoe_status text_loss(hmoe_model *m, const text_tokens *text, size_t first, size_t n,
                                    size_t windows, int B,
                                    void (*look)(hmoe_model *m, size_t first, size_t tokens),
                                    double *loss) {
    size_t inputs = n - 1, T = (size_t)m->config.T < inputs ? (size_t)m->config.T : inputs;
    size_t all = (inputs + T - 1) / T, measured = text_measured(m, n, windows), b;
    int spaced = measured < inputs;
    size_t between = windows > 1 ? windows - 1 : 1;
    int *x = (int *)cli_alloc((size_t)B * T * 2 * sizeof *x), *y = x + (size_t)B * T;
    double began = cli_seconds();
    hmoe_status status = HMOE_OK;
    if (!spaced) windows = all;
    size_t whole = spaced ? windows : all - 1;   /* the last window is a pass of its own */
    *loss = 0;
    for (size_t w = 0; w < windows && !status; w += b) {
        size_t t = w < whole ? T : inputs - w * T;
        b = w < whole ? whole - w : 1;
        if (b > (size_t)B) b = (size_t)B;
        size_t mine = b * (size_t)cli_rank / (size_t)cli_ranks;     /* those of this process */
        size_t end = b * (size_t)(cli_rank + 1) / (size_t)cli_ranks;
        for (size_t i = mine; i < end; i++) {
            size_t start = first + (spaced ? (w + i) * (inputs - T) / between : (w + i) * T);
            text_get_pairs(text, start, t, x + (i - mine) * t, y + (i - mine) * t);
        }
        status = hmoe_forward(m, HMOE_EVALUATE, x, y, (int)(end - mine), (int)t);
        if (!status && look) look(m, w * T, b * t);
        *loss += m->losses.ce * (double)(b * t);
        text_progress(w + b, windows, began);
    }
    *loss /= (double)measured;
    free(x);
    return status;
}

/* --- writing --------------------------------------------------------------------------------- */

/* The token before a text: a newline, or token 0 if the vocabulary has no newline. */
static inline int text_start(const hmoe_config *c) {
    for (int i = 0; i < c->vocab_size; i++)
        if (c->vocab[i] == '\n') return i;
    return 0;
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

/* Writes n tokens after a prompt of at least one token. A token that is no byte of the vocabulary,
   such as one for padding, is never written. */
static inline hmoe_status text_write(hmoe_model *m, const int *prompt, size_t prompt_size, int n,
                                     const text_sampling *s, void (*put)(int token)) {
    int V = m->config.V, token, written = m->config.vocab_size ? m->config.vocab_size : V;
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
        token = hmoe_sample(logits, written, s->temperature, s->top_k, s->top_p, s->seed,
                            cache.position);
        put(token);
        if (i < n - 1) status = hmoe_next(m, &cache, token, logits);
    }
    if (m != given) memcpy(given->message, copy.message, sizeof copy.message);
    hmoe_cache_free(&cache);
    hmoe_free(&copy);
    free(logits);
    return status;
}

#endif
