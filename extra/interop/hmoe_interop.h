/* hmoe_interop.h - Mixtral models of other programs: reads them, and writes a model of
   hmoe.h as one. Include it after hmoe.h, in the same way. It uses hmoe.h's reader of
   safetensors files (hmoe__input and the functions on it, under READING) and its list of
   tensors. */
#ifndef HMOE_INTEROP_H
#define HMOE_INTEROP_H

#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Like hmoe_load(m, dir, max_B, 0), but also reads a Mixtral that another program wrote:
   in shards, whose names are in model.safetensors.index.json; in half precision (F16, BF16);
   with tied embeddings; and with rotary_emb.inv_freq, which is computed here. Our models have
   an output matrix of their own. It becomes a copy of the embedding, and hmoe_save writes
   both. The Mixtral must have no sliding window that is shorter than its context. */
hmoe_status hmoe_load_mixtral(hmoe_model *m, const char *dir, int max_B);

/* Writes the model as an ordinary Mixtral. All experts become as wide as the widest: W1
   and W3 get rows of zeros and W2 columns of zeros, which does not change what an expert
   computes. A model that is already in dir is removed first, config.json before the rest.
   *params, unless NULL, receives the number of parameters after padding. Returns
   HMOE_BAD_ARGUMENT if Mixtral has no such form (Top-P, raw gates, biases that are not
   0), and if dir holds a run (training.safetensors). */
hmoe_status hmoe_export_mixtral(hmoe_model *m, const char *dir, size_t *params);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_INTEROP_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_INTEROP_IMPLEMENTED
#define HMOE_INTEROP_IMPLEMENTED

/* ---------------------------------------------------------------------------------------------
   READING */

/* A number of 16 bits in F16: sign, 5 bits of exponent, 10 bits of fraction. */
static float hmoe__from_f16(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (exponent == 31) value = fraction ? (float)NAN : (float)INFINITY;
    else if (exponent) value = (float)ldexp(1024 + fraction, exponent - 25);
    else value = (float)ldexp(fraction, -24);
    return half >> 15 ? -value : value;
}

/* In place, from the last number to the first, because they grow. */
static void hmoe__widen_f16(hmoe_real *numbers, size_t n) {
    while (n-- > 0) {
        uint16_t half;
        memcpy(&half, (const char *)numbers + n * sizeof half, sizeof half);
        numbers[n] = (hmoe_real)hmoe__from_f16(half);
    }
}

/* A BF16 is the upper half of a float. */
static void hmoe__widen_bf16(hmoe_real *numbers, size_t n) {
    while (n-- > 0) {
        uint16_t half;
        uint32_t bits;
        float value;
        memcpy(&half, (const char *)numbers + n * sizeof half, sizeof half);
        bits = (uint32_t)half << 16;
        memcpy(&value, &bits, sizeof value);
        numbers[n] = (hmoe_real)value;
    }
}

/* What is wrong with numbers of a type that is not read. */
static const char *hmoe__no_format(const char *dtype) {
    static const char *const small[] = { "\"F8_", "\"F6_", "\"F4", "\"I", "\"U" };
    for (int i = 0; i < 5; i++)
        if (!strncmp(dtype, small[i], strlen(small[i])))
            return i < 3 ? "has floats of 8 bits or fewer: dequantise the model first, to F32, "
                           "F16 or BF16"
                         : "has integers, as in a quantised model: dequantise it first, to F32, "
                           "F16 or BF16";
    return "must be F32, F16 or BF16";
}

/* The names of the files with the weights, without repeats. name NULL: model.safetensors. */
typedef struct hmoe__shards {
    char *text;    /* holds the names */
    char **name;
    size_t n;
} hmoe__shards;

static void hmoe__free_shards(hmoe__shards *s) {
    HMOE_FREE(s->text);
    HMOE_FREE(s->name);
}

static hmoe_status hmoe__shard_path(char *path, const char *dir, const hmoe__shards *s, size_t i,
                                    char *message) {
    return hmoe__path(path, dir, s->name ? s->name[i] : "model.safetensors", message);
}

/* 1 if a JSON string is the name of a file in the same directory: an index that someone else
   wrote must not lead elsewhere. */
static int hmoe__is_shard(const char *string) {
    static const char ending[] = ".safetensors";
    size_t n = strcspn(string + 1, "\""), end = sizeof ending - 1;
    return *string == '"' && n > end && n < 256 && string[1] != '.'
           && strcspn(string + 1, "/\\:\"") == n && !strncmp(string + 1 + n - end, ending, end);
}

static int hmoe__by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The files of an index, which names one for each tensor. */
static hmoe_status hmoe__read_index(hmoe__shards *s, const char *dir, char *message) {
    hmoe__reader r = { NULL, 0, "", NULL };
    char path[HMOE__PATH_SIZE];
    const char *map, *at, *member;
    size_t n = 0, unique = 0;
    HMOE__TRY(hmoe__read_json_file(&s->text, path, dir, "model.safetensors.index.json", 1 << 28,
                                   message));
    r.object = s->text;
    map = hmoe__member(&r, "weight_map", 1);
    HMOE__TRY(hmoe__reader_status(&r, path, message));
    for (at = map; *map == '{' && (member = hmoe__json_next(&at, 1)) != NULL; n++)
        if (!hmoe__is_shard(hmoe__json_value(member))) break;
    if (n == 0 || member)
        return HMOE__CORRUPT(message, "%.300s: weight_map must name files of this directory, such "
                             "as model-00001-of-00002.safetensors", path);
    s->name = (char **)hmoe__alloc_zeroed(n, sizeof *s->name);
    if (!s->name) return hmoe__no_memory(message, (double)(n * sizeof *s->name), "names of files");
    for (at = map, n = 0; (member = hmoe__json_next(&at, 1)) != NULL; n++)
        s->name[n] = s->text + (hmoe__json_value(member) + 1 - s->text);
    for (size_t i = 0; i < n; i++) *strchr(s->name[i], '"') = 0;
    qsort(s->name, n, sizeof *s->name, hmoe__by_name);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(s->name[i], s->name[unique - 1])) s->name[unique++] = s->name[i];
    s->n = unique;
    return HMOE_OK;
}

static hmoe_status hmoe__list_shards(hmoe__shards *s, const char *dir, char *message) {
    static const char *const names[] = { "model.safetensors", "model.safetensors.index.json" };
    char path[HMOE__PATH_SIZE];
    s->n = 1;
    for (int i = 0; i < 2; i++) {
        FILE *file;
        HMOE__TRY(hmoe__path(path, dir, names[i], message));
        errno = 0;
        if ((file = hmoe__open(path)) != NULL) fclose(file);
        if (file && i == 0) return HMOE_OK;
        if (!file && i == 1 && errno == ENOENT) return HMOE_OK;   /* names model.safetensors */
    }
    return hmoe__read_index(s, dir, message);
}

/* Checks that all files together are large enough for config.json, at 2 bytes per number. */
static hmoe_status hmoe__check_shards(const hmoe_config *c, const char *dir, const hmoe__shards *s,
                                      int tied, char *message) {
    char path[HMOE__PATH_SIZE];
    double sum = 0, least = hmoe__least_bytes(c, 2) - (tied ? 2.0 * c->V * c->C : 0);
    for (size_t i = 0; i < s->n; i++) {
        FILE *file = NULL;
        int64_t bytes = 0;
        HMOE__TRY(hmoe__shard_path(path, dir, s, i, message));
        HMOE__TRY(hmoe__open_input(&file, &bytes, path, message));
        fclose(file);
        sum += (double)bytes;
    }
    return hmoe__check_bytes(sum, least, path, message);
}

/* Reads config.json again, for what hmoe_config does not keep. */
static hmoe_status hmoe__read_tied(int *tied, const char *dir, char *message) {
    hmoe__reader r = { NULL, 0, "", NULL };
    char path[HMOE__PATH_SIZE], *text;
    hmoe_status status = hmoe__read_json_file(&text, path, dir, "config.json", 1 << 20, message);
    if (!status) r.object = text, *tied = hmoe__is_true(&r, "tie_word_embeddings");
    HMOE_FREE(text);
    return status;
}

/* Copies the embedding, which is the first tensor, to the output matrix. */
static hmoe_status hmoe__tie(hmoe_model *m, hmoe__input *in) {
    size_t row = (size_t)m->config.C, bytes = row * sizeof *m->params;
    hmoe_real *x = (hmoe_real *)HMOE_MALLOC(bytes);
    if (!x) return hmoe__no_memory(m->message, (double)bytes, "a row");
    for (size_t t = 0; t < (size_t)m->config.V; t++) {
        m->backend->download(x, m->params + t * row, bytes);
        m->backend->upload(m->params + m->head + t * row, x, bytes);
    }
    HMOE_FREE(x);
    for (size_t i = 0; i < in->places; i++)   /* now it is not missing */
        if (m->tensors[in->place[i].tensor].offset == m->head) in->place[i].end = 1;
    return hmoe__synchronize(m);
}

static hmoe_status hmoe__read_shards(hmoe_model *m, hmoe__input *in, const char *dir,
                                     const hmoe__shards *s, int tied) {
    for (size_t i = 0; i < s->n; i++) {
        HMOE__TRY(hmoe__shard_path(in->path, dir, s, i, m->message));
        HMOE__TRY(hmoe__load_file(m, in));
        hmoe__close_input(in);
    }
    if (tied) HMOE__TRY(hmoe__tie(m, in));
    return hmoe__check_complete(m, in);
}

hmoe_status hmoe_load_mixtral(hmoe_model *m, const char *dir, int max_B) {
    static const hmoe__format formats[] = { { "F32", 4, hmoe__widen_float },
                                            { "F16", 2, hmoe__widen_f16 },
                                            { "BF16", 2, hmoe__widen_bf16 } };
    hmoe__shards shards = { NULL, NULL, 0 };
    hmoe_config config;
    hmoe__input in;
    hmoe_status status;
    int tied = 0;
    m->message[0] = 0;
    status = hmoe_load_config(&config, dir, m->message);
    if (!status) status = hmoe__read_tied(&tied, dir, m->message);
    if (!status) status = hmoe__list_shards(&shards, dir, m->message);
    if (!status) status = hmoe__check_shards(&config, dir, &shards, tied, m->message);
    if (!status) status = hmoe__build(m, &config, 0, max_B, 0, 0);
    status = hmoe__free_on_failure(m, status);
    if (!status) {
        status = hmoe__begin_input(&in, m, 0, m->message);
        in.formats = formats;
        in.format_count = 3;
        in.no_format = hmoe__no_format;
        in.ignored = "rotary_emb.inv_freq";
        if (!status) status = hmoe__read_shards(m, &in, dir, &shards, tied);
        hmoe__end_input(&in);
        status = hmoe__free_on_failure(m, status);
    }
    hmoe__free_shards(&shards);
    return status;
}

/* ---------------------------------------------------------------------------------------------
   WRITING */

/* Removes a model that is in the way of another one: config.json first, so that a crash
   in between leaves none, and the tokenizer's files, which the other one may not have. */
static hmoe_status hmoe__remove_model(const char *dir, char *message) {
    static const char *const names[] = { "config.json", "tokenizer.json", "tokenizer_config.json" };
    char path[HMOE__PATH_SIZE];
    for (int i = 0; i < 3; i++) {
        HMOE__TRY(hmoe__path(path, dir, names[i], message));
        if ((hmoe__follow(path) || remove(path)) && errno != ENOENT)
            return HMOE__FAIL(message, HMOE_IO, "cannot remove %.300s: %s", path, strerror(errno));
    }
    return HMOE_OK;
}

/* The tensors of m as the first rows and columns of those of `wide`, which is all zeros
   so far. */
static hmoe_status hmoe__copy_padded(hmoe_model *wide, hmoe_model *m) {
    const hmoe_backend *be = m->backend;
    hmoe_real *row = (hmoe_real *)HMOE_MALLOC(HMOE_MAX_DIM * sizeof *row);
    if (!row) return hmoe__no_memory(m->message, HMOE_MAX_DIM * sizeof *row, "a row");
    for (size_t i = 0, k = 0; i < wide->tensor_count; i++) {
        const hmoe_tensor *to = &wide->tensors[i], *from;
        /* noise and biases of 0 are left out; a null expert stays all zeros */
        if (to->expert >= 0 && !m->config.H[to->expert]) continue;
        while (strcmp(m->tensors[k].name, to->name)) k++;
        from = &m->tensors[k++];
        for (size_t r = 0, bytes = (size_t)from->cols * sizeof *row; r < (size_t)from->rows; r++) {
            be->download(row, m->params + from->offset + r * from->cols, bytes);
            be->upload(wide->params + to->offset + r * to->cols, row, bytes);
        }
    }
    HMOE_FREE(row);
    return hmoe__synchronize(m);
}

hmoe_status hmoe_export_mixtral(hmoe_model *m, const char *dir, size_t *params) {
    hmoe_config config = m->config;
    char path[HMOE__PATH_SIZE];
    hmoe_status status;
    hmoe_model wide;
    FILE *run;
    m->message[0] = 0;
    if (config.routing != HMOE_TOP_K)
        return HMOE__BAD(m->message, "Mixtral takes the same number of experts for every token: a "
                         "Top-P model has no such form");
    if (!hmoe__norm_gates(&config))
        return HMOE__BAD(m->message, "Mixtral divides the gates by their sum: a model with raw "
                         "gates has no such form");
    for (int l = 0; config.balance && l < config.L; l++) {
        hmoe_real b[HMOE_MAX_EXPERTS];
        m->backend->download(b, m->params + m->layers[l].bias, (size_t)config.E * sizeof *b);
        for (int e = 0; e < config.E; e++)
            if (b[e] != 0)
                return HMOE__BAD(m->message, "Mixtral takes the experts of largest P: this model "
                                 "adds a bias to P (in layer %d %g to that of expert %d) and has "
                                 "no such form", l, (double)b[e], e);
    }
    HMOE__TRY(hmoe__path(path, dir, "training.safetensors", m->message));
    errno = 0;
    if ((run = hmoe__open(path)) != NULL) fclose(run);
    if (run || (errno != ENOENT && errno != ENOTDIR))
        return HMOE__BAD(m->message, "%.300s holds a run: choose another directory", dir);
    for (int e = 0; e < config.E; e++) config.H[e] = hmoe__widest(&m->config);
    config.noisy_gating = 0, config.balance = HMOE_BALANCE_OFF;
    memset(&wide, 0, sizeof wide);
    wide.backend = m->backend, wide.tokenizer = m->tokenizer;
    status = hmoe__free_on_failure(&wide, hmoe__build(&wide, &config, 0, 0, 0, 0));
    if (!status) {
        status = hmoe__copy_padded(&wide, m);
        if (status) memcpy(wide.message, m->message, sizeof wide.message);
        else status = hmoe_prepare(&wide, dir, 0);
        if (!status && (status = hmoe__remove_model(dir, wide.message)) != HMOE_OK)
            hmoe_discard(&wide, dir, 0);
        if (!status) status = hmoe_commit(&wide, dir, 0);
    }
    memcpy(m->message, wide.message, sizeof m->message);
    if (params) *params = wide.param_count;
    hmoe_free(&wide);
    return status;
}

#endif /* HMOE_INTEROP_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
