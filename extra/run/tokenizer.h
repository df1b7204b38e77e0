/* tokenizer.h - the bytes of each token: from the model's list of bytes, or from a tokenizer.json
   with GPT-2's byte-level alphabet. It only decodes; extra/interop/tokens.py encodes. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "cli.h"

typedef struct tokenizer {
    char *text;            /* of tokenizer.json, as it is; NULL: there is none */
    char *json;            /* the same, with plain names */
    int V;                 /* number of its tokens */
    const char **piece;    /* [V] their JSON strings, in that text; "\"\"" for one without bytes,
                              such as <|endoftext|>; NULL for a number that is no token */
    int byte_of[512];      /* the byte of a character of the alphabet, or -1 */
} tokenizer;

/* Reads one character of a JSON string, and moves on. */
static inline unsigned long tokenizer_character(const char **at) {
    const unsigned char *c = (const unsigned char *)*at;
    unsigned long x = c[0];
    if (x == '\\' && c[1] == 'u') {
        char hex[5] = { (char)c[2], (char)c[3], (char)c[4], (char)c[5], 0 };
        *at += 6;
        return strtoul(hex, NULL, 16);
    }
    if (x == '\\') {                                 /* the alphabet has only \" and \\ of these */
        *at += 2;
        return c[1];
    }
    if ((x & 0xe0) == 0xc0) {                        /* two bytes of UTF-8 are all it needs */
        *at += 2;
        return (x & 0x1f) << 6 | (c[1] & 0x3fu);
    }
    *at += 1;
    return x < 0x80 ? x : 512;
}

/* Calls `put`, unless NULL, with each byte of a piece. Returns their number, or -1 if there is no
   piece, or if it has other characters than the alphabet's. */
static inline int tokenizer_bytes(const tokenizer *t, const char *piece, void (*put)(int byte)) {
    int n = 0;
    if (!piece) return -1;
    for (const char *at = piece + 1; *at != '"'; n++) {
        unsigned long x = tokenizer_character(&at);
        if (x >= 512 || t->byte_of[x] < 0) return -1;
        if (put) put(t->byte_of[x]);
    }
    return n;
}

/* The member `id` of a token, or a value of the vocabulary. */
static inline int tokenizer_id(const char *value, const char *path) {
    double id = -1;
    if (!value || !hmoe__json_number(value, &id) || id < 0 || id >= HMOE_MAX_DIM || id != floor(id))
        cli_fail(1, "%s: a token has no number from 0 to %d", path, HMOE_MAX_DIM - 1);
    return (int)id;
}

/* Sets the pieces of all tokens, if t->piece is there; before that it counts them. */
static inline void tokenizer_walk(tokenizer *t, const char *path) {
    int repeats = 0;
    const char *model = hmoe__json_find(t->json, "model", &repeats);
    const char *vocab = model ? hmoe__json_find(model, "vocab", &repeats) : NULL;
    const char *added = hmoe__json_find(t->json, "added_tokens", &repeats);
    if (!vocab || *vocab != '{')
        cli_fail(1, "%s: has no object \"vocab\" in its object \"model\"", path);
    for (const char *name; (name = hmoe__json_next(&vocab, 1)) != NULL;) {
        int id = tokenizer_id(hmoe__json_value(name), path);
        if (t->piece) t->piece[id] = name;
        else if (id >= t->V) t->V = id + 1;
    }
    for (const char *item; added && *added == '[' && (item = hmoe__json_next(&added, 0)) != NULL;) {
        int id = tokenizer_id(hmoe__json_find(item, "id", &repeats), path);
        if (t->piece) t->piece[id] = "\"\"";
        else if (id >= t->V) t->V = id + 1;
    }
}

/* Reads a tokenizer.json. If its pieces are of another kind, their bytes stay unknown. */
static inline void tokenizer_read(tokenizer *t, const char *path) {
    char why[HMOE_MESSAGE_SIZE];
    int64_t bytes = 0;
    FILE *file;
    if (hmoe__open_input(&file, &bytes, path, why)
        || hmoe__read_json(&t->json, file, (uint64_t)bytes, 1 << 28, path, why))
        cli_fail(1, "%s", why);
    fclose(file);
    size_t n;
    t->text = (char *)cli_read(path, &n, "");
    for (int i = 0; i < 512; i++) t->byte_of[i] = -1;
    for (int byte = 0; byte < 256; byte++) t->byte_of[hmoe__byte_character(byte)] = byte;
    tokenizer_walk(t, path);
    t->piece = (const char **)cli_alloc((size_t)t->V * sizeof *t->piece);
    for (int i = 0; i < t->V; i++) t->piece[i] = NULL;
    tokenizer_walk(t, path);
    for (int i = 0; i < t->V && t->piece; i++)
        if (t->piece[i] && tokenizer_bytes(t, t->piece[i], NULL) < 0) {
            free(t->piece);
            t->piece = NULL;
            cli_warn("%s is no byte-level tokenizer: tokens are shown as numbers", path);
        }
}

/* Fills the model's list of bytes, if tokens 0, 1, ... are single bytes in ascending order and the
   rest have none: a checkpoint of train_tiny that another program saved without its list. */
static inline void tokenizer_name_bytes(const tokenizer *t, hmoe_config *c) {
    int n = 0;
    for (int i = 0; i < t->V && t->piece; i++) {
        const char *at = t->piece[i] ? t->piece[i] + 1 : "";
        int length = tokenizer_bytes(t, t->piece[i], NULL);
        int byte = length == 1 ? t->byte_of[tokenizer_character(&at)] : -1;
        if (length <= 0) continue;
        if (byte < 0 || n < i || (n > 0 && byte <= c->vocab[n - 1])) return;
        c->vocab[n++] = (unsigned char)byte;
    }
    if (t->V <= c->V) c->vocab_size = n;
}

/* Reads what a model's directory says of its tokens. If it says nothing, 256 tokens are bytes. */
static inline void tokenizer_of_model(tokenizer *t, hmoe_config *c, const char *dir) {
    char path[CLI_PATH_SIZE];
    if (c->vocab_size) return;
    if (!access(cli_path(path, dir, "tokenizer.json"), F_OK)) {
        tokenizer_read(t, path);
        tokenizer_name_bytes(t, c);
    } else if (c->V == 256) {
        c->vocab_size = 256;
        for (int i = 0; i < 256; i++) c->vocab[i] = (unsigned char)i;
    }
}

/* Calls `put` with each byte of a token, or with the digits of its number if they are unknown. */
static inline void tokenizer_put(const tokenizer *t, const hmoe_config *c, int token,
                                 void (*put)(int byte)) {
    char number[16];
    if (c->vocab_size) {
        if (token < c->vocab_size) put(c->vocab[token]);
    } else if (!t->piece || token >= t->V || tokenizer_bytes(t, t->piece[token], put) < 0) {
        snprintf(number, sizeof number, "%d ", token);
        for (const char *digit = number; *digit; digit++) put(*digit);
    }
}

/* How many bytes these tokens stand for; 0 if there is no tokenizer, -1 if it lacks one of them. */
static inline double tokenizer_length(const tokenizer *t, const hmoe_config *c, const int *tokens,
                                      size_t n) {
    double sum = 0;
    if (c->vocab_size) return (double)n;
    for (size_t i = 0; i < n && t->piece; i++) {
        int length = tokens[i] < t->V ? tokenizer_bytes(t, t->piece[tokens[i]], NULL) : -1;
        if (length < 0) return -1;
        sum += length;
    }
    return sum;
}

#endif
