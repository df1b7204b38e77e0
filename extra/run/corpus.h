/* corpus.h - what train_tiny learns from: the bytes of a text, or files of tokens that another
   program made. */
#ifndef CORPUS_H
#define CORPUS_H

#include "cli.h"
#include "extra/run/text.h"
#include "extra/run/tokenizer.h"

typedef struct corpus {
    const char *data, *tokens, *tokens_val, *tokenizer;     /* the options, all names of files */
    text_tokens train, val;                /* val may be the same text as train: */
    size_t n_train, n_val, val_start;      /*   it has n_val tokens from val_start on */
    const char *path;                      /* of the text, or of the tokens */
    double size;                           /* bytes, or tokens, of the files */
    uint64_t hash;                         /* of all of them */
    int largest;                           /* token of the files */
    double tokens_per_byte;                /* of val; 0: it is 1, or not known */
    tokenizer words;
} corpus;

#define CORPUS_OPTIONS(x) \
    CLI_TEXT("--data", &(x).data, "FILE", "tinyshakespeare/input.txt", \
             "text; its last tenth is for validation"), \
    CLI_TEXT("--tokens", &(x).tokens, "FILE", NULL, "instead of a text: tokens of 16 bits, as of" \
             "\n                             nanoGPT and llama2.c, or a file of llm.c"), \
    CLI_TEXT("--tokens-val", &(x).tokens_val, "FILE", NULL, \
             "tokens for validation; without it the last tenth"), \
    CLI_TEXT("--tokenizer", &(x).tokenizer, "FILE", NULL, \
             "with --tokens: the tokenizer.json that made them")

/* Decides between a text and tokens. Ends the program if these options do not fit together. */
static inline void corpus_check(corpus *x, const cli_option *options) {
    if (cli_given(options, "--tokens") && cli_given(options, "--data"))
        cli_fail(2, "--tokens and --data: give only one of them");
    if (cli_given(options, "--data")) x->tokens = NULL;     /* that of a recipe */
    if (x->tokens) x->data = NULL;
    else if (!cli_given(options, "--tokens-val")) x->tokens_val = NULL;
    if (x->tokens_val && !x->tokens) cli_fail(2, "--tokens-val: needs --tokens");
    if (x->tokenizer && !x->tokens) cli_fail(2, "--tokenizer: needs --tokens");
}

/* Reads the text, or the files of tokens once, for their hash. hint: what to do if it is not
   there. */
static inline void corpus_open(corpus *x, hmoe_model *m, const char *hint) {
    text_tokens text = { x->data, 0, NULL, NULL, 0, 1 };
    x->path = x->tokens ? x->tokens : x->data;
    x->hash = hmoe__hash("");
    if (x->tokens) {
        text = text_open(x->tokens);
        x->largest = text_scan(&text, &x->hash);
    } else {
        text.bytes = cli_read_once(x->data, &text.n, hint);
        x->hash = hmoe__hash_more(x->hash, text.bytes, text.n);
    }
    x->train = x->val = text;
    if (x->tokens_val) {
        x->val = text_open(x->tokens_val);
        int largest = text_scan(&x->val, &x->hash);
        if (largest > x->largest) x->largest = largest;
    }
    x->size = (double)x->train.n + (x->tokens_val ? (double)x->val.n : 0);
    double sum = (double)(x->hash >> 32) + (double)(uint32_t)x->hash;   /* below 2^33: exact */
    if (cli_sum(m, sum) != sum * cli_ranks)
        cli_fail(1, "%s: the processes read different files", x->path);
}

/* Turns the bytes into tokens. fresh: their vocabulary becomes the model's. */
static inline void corpus_use_bytes(corpus *x, hmoe_config *c, int fresh) {
    if (fresh && x->train.n) hmoe_byte_vocab(c, x->train.bytes, x->train.n, NULL);
    else if (!c->vocab_size)
        cli_fail(1, "%s: the model's %d tokens are no bytes, so it reads no text: give --tokens",
                 x->data, c->V);
    text_to_tokens(c, x->train.bytes, x->train.n, x->data);
}

/* fresh: V comes from the tokenizer, or from the largest token. */
static inline void corpus_use_tokens(corpus *x, hmoe_config *c, int fresh) {
    if (fresh) {
        c->V = x->words.V ? x->words.V : x->largest + 1;
        c->vocab_size = 0;
    }
    if (x->largest >= c->V)
        cli_fail(1, "%s: its largest token is %d, but the %s has only %d", x->tokens, x->largest,
                 fresh ? "tokenizer" : "model", c->V);
}

/* Sets tokens_per_byte of the validation part. */
static inline void corpus_count_bytes(corpus *x, const hmoe_config *c) {
    enum { PIECE = 1 << 16 };
    int *piece = (int *)cli_alloc(PIECE * sizeof *piece);
    double sum = 0, length = 0;
    for (size_t at = 1, n; at < x->n_val && length >= 0; at += n) {
        n = x->n_val - at < PIECE ? x->n_val - at : PIECE;
        text_get(&x->val, x->val_start + at, n, piece);
        length = tokenizer_length(&x->words, c, piece, n);
        sum += length;
    }
    free(piece);
    if (length < 0)
        cli_warn("%s has tokens that the tokenizer lacks: no loss per byte is shown", x->val.path);
    else if (sum > 0) x->tokens_per_byte = (double)(x->n_val - 1) / sum;
}

/* Reads the tokenizer of the option. A model in `dir` may have one there, or else its tokens may be
   bytes. */
static inline void corpus_read_tokenizer(corpus *x, hmoe_config *c, const char *dir) {
    if (x->tokenizer) tokenizer_read(&x->words, x->tokenizer);
    else if (dir) tokenizer_of_model(&x->words, c, dir);
}

/* Prepares what corpus_open has read for a model. fresh: the model's vocabulary becomes that of the
   text. `dir`: NULL, or that of the model. */
static inline void corpus_load(corpus *x, hmoe_model *m, hmoe_config *c, int fresh,
                               const char *dir) {
    size_t n = x->train.n, T = (size_t)c->T, least = T + 1;
    x->n_train = n;
    if (!x->tokens_val) {
        least = ((T + 1) * 10 + 8) / 9;              /* then 9n/10 is at least T + 1 */
        if (least < 11) least = 11;                  /* and n/10 at least 2 */
        x->n_train = x->val_start = n / 10 * 9 + n % 10 * 9 / 10;
    }
    x->n_val = x->val.n - x->val_start;
    if (n < least)
        cli_fail(1, "%s has %lu %s: it needs at least %lu for --context %d", x->path,
                 (unsigned long)n, x->tokens ? "tokens" : "bytes", (unsigned long)least, c->T);
    if (x->n_val < 2) cli_fail(1, "%s: needs at least 2 tokens", x->val.path);
    corpus_read_tokenizer(x, c, dir);
    if (x->tokens) corpus_use_tokens(x, c, fresh);
    else corpus_use_bytes(x, c, fresh);
    if (!fresh && x->tokenizer && x->words.V > c->V)
        cli_fail(1, "%s: has %d tokens, but the model has only %d", x->tokenizer, x->words.V, c->V);
    if (!c->vocab_size) m->tokenizer = x->words.text;
    if (x->tokens) corpus_count_bytes(x, c);
}

/* The loss on the validation part: see text_loss. */
static inline hmoe_status corpus_loss(const corpus *x, hmoe_model *m, size_t windows, int B,
                                      double *loss) {
    return text_loss(m, &x->val, x->val_start, x->n_val, windows, B, NULL, loss);
}

#endif
