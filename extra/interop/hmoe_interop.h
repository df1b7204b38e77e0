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
   in shards (model-00001-of-00002.safetensors ...) and in half precision (F16, BF16). The
   Mixtral must have an output matrix of its own, and no sliding window that is shorter
   than its context. */
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

/* Path of the weights' file number i. shards 0: there is one file, without a number. */
static hmoe_status hmoe__shard_path(char *path, const char *dir, int i, int shards, char *message) {
    char name[48] = "model.safetensors";
    if (shards)
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, shards);
    return hmoe__path(path, dir, name, message);
}

/* Is it a name such as "model-00001-of-00002.safetensors"? Returns the second number, or
   0. */
static int hmoe__shards_in_name(const char *string) {
    static const char digits[] = "0123456789";
    if (strncmp(string, "\"model-", 7) || strspn(string + 7, digits) != 5) return 0;
    if (strncmp(string + 12, "-of-", 4) || strspn(string + 16, digits) != 5) return 0;
    if (strncmp(string + 21, ".safetensors\"", 13)) return 0;
    return (int)strtol(string + 16, NULL, 10);
}

/* Reads the number of shards from the index: of its weight_map only the first name. */
static hmoe_status hmoe__read_index(int *shards, FILE *file, int64_t bytes, const char *path,
                                    char *message) {
    hmoe__reader r = { NULL, 0, "", NULL };
    char *text = NULL;
    const char *map, *first = NULL;
    hmoe_status status = hmoe__read_json(&text, file, (uint64_t)bytes, 1 << 28, path, message);
    if (!status) {
        r.object = text;
        map = hmoe__member(&r, "weight_map", 1);
        status = hmoe__reader_status(&r, path, message);
        if (!status && *map == '{') first = hmoe__json_next(&map, 1);
        if (first) *shards = hmoe__shards_in_name(hmoe__json_value(first));
        if (!status && *shards <= 0)
            status = HMOE__CORRUPT(message, "%.300s: weight_map must name files such as "
                                   "model-00001-of-00002.safetensors", path);
    }
    HMOE_FREE(text);
    return status;
}

/* 0 if there is a model.safetensors, or neither it nor an index. */
static hmoe_status hmoe__count_shards(int *shards, const char *dir, char *message) {
    char path[HMOE__PATH_SIZE];
    int64_t bytes = 0;
    FILE *file;
    hmoe_status status;
    *shards = 0;
    HMOE__TRY(hmoe__shard_path(path, dir, 0, 0, message));
    if ((file = hmoe__open(path)) != NULL) {
        fclose(file);
        return HMOE_OK;
    }
    HMOE__TRY(hmoe__path(path, dir, "model.safetensors.index.json", message));
    file = hmoe__open(path);
    if (!file && errno == ENOENT) return HMOE_OK;   /* the error will name model.safetensors */
    if (file) fclose(file);
    HMOE__TRY(hmoe__open_input(&file, &bytes, path, message));
    status = hmoe__read_index(shards, file, bytes, path, message);
    fclose(file);
    return status;
}

/* Checks that all files together are large enough for config.json, at 2 bytes per number.
   */
static hmoe_status hmoe__check_shards(const hmoe_config *c, const char *dir, int shards,
                                      char *message) {
    char path[HMOE__PATH_SIZE];
    double sum = 0;
    for (int i = 0; i < (shards ? shards : 1); i++) {
        FILE *file = NULL;
        int64_t bytes = 0;
        HMOE__TRY(hmoe__shard_path(path, dir, i, shards, message));
        HMOE__TRY(hmoe__open_input(&file, &bytes, path, message));
        fclose(file);
        sum += (double)bytes;
    }
    return hmoe__check_bytes(sum, hmoe__least_bytes(c, 2), path, message);
}

static hmoe_status hmoe__read_shards(hmoe_model *m, hmoe__input *in, const char *dir, int shards) {
    for (int i = 0; i < (shards ? shards : 1); i++) {
        HMOE__TRY(hmoe__shard_path(in->path, dir, i, shards, m->message));
        HMOE__TRY(hmoe__load_file(m, in));
        hmoe__close_input(in);
    }
    return hmoe__check_complete(m, in);
}

hmoe_status hmoe_load_mixtral(hmoe_model *m, const char *dir, int max_B) {
    static const hmoe__format formats[] = { { "F32", 4, hmoe__widen_float },
                                            { "F16", 2, hmoe__widen_f16 },
                                            { "BF16", 2, hmoe__widen_bf16 } };
    hmoe_config config;
    hmoe__input in;
    int shards = 0;
    hmoe_status status;
    m->message[0] = 0;
    status = hmoe_load_config(&config, dir, m->message);
    if (!status) status = hmoe__count_shards(&shards, dir, m->message);
    if (!status) status = hmoe__check_shards(&config, dir, shards, m->message);
    if (!status) status = hmoe__build(m, &config, 0, max_B, 0, 0);
    HMOE__TRY(hmoe__free_on_failure(m, status));
    status = hmoe__begin_input(&in, m, 0, m->message);
    in.formats = formats;
    in.format_count = 3;
    if (!status) status = hmoe__read_shards(m, &in, dir, shards);
    hmoe__end_input(&in);
    return hmoe__free_on_failure(m, status);
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
