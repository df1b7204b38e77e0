/* Files that were damaged, or made to harm, one change at a time: each loads, and is then exactly
   what its text says, or is refused with a message that names it and says what is wrong. Nothing
   leaks, no file changes, and nothing is allocated that the files do not justify. FULL=1 flips
   every bit (of a run's header, which is long, every second one) and counts to millions. */

#ifdef _WIN32
#include <stdio.h>
int main(void) {
    puts("files in memory need fmemopen: skipped\ndamaged: 0 passed, 0 failed");
    return 0;
}
#else

#include "memory_files.h"
#include "../test.h"
#include "../fixtures.h"

static int full;

/* ---- Checkpoints, in memory. */

typedef struct file {
    const char *name;
    unsigned char *data;
    size_t size, text;              /* bytes; and how many there are before the tensors' */
} file;

enum { CONFIG, FIRST, SECOND, THIRD, INDEX, FILES };
typedef struct checkpoint {
    const char *what;
    int training, mixtral;          /* mixtral: hmoe_load_mixtral reads it */
    file file[FILES];               /* name NULL: none */
} checkpoint;

enum { MODEL, RUN, HALF, SHARDS, CHECKPOINTS };
static checkpoint good[CHECKPOINTS];
static hmoe_model model;            /* what is in them, */
static size_t model_bytes;          /*   and what it takes */

/* A description of a tensor, in parts that can be exchanged. */
typedef struct entry {
    char name[140], dtype[16], shape[40], begin[40], end[40];
} entry;

typedef struct tensors {
    const char *metadata, *instead;     /* instead: of tensor 0, another description */
    int n;
    entry entry[80];
    unsigned char *data;
    size_t size;
} tensors;

static file make_file(const char *name, const void *data, size_t size) {
    file f;
    f.name = name, f.size = f.text = size;
    f.data = (unsigned char *)small_array(size + 1);   /* a zero behind the text */
    memcpy(f.data, data, size);
    return f;
}

/* 8 bytes of length, a header, data. */
static file tensor_file(const char *name, const char *header, size_t length, const void *data,
                        size_t size) {
    file f;
    f.name = name, f.text = 8 + length, f.size = f.text + size;
    f.data = (unsigned char *)small_array(f.size);
    for (int i = 0; i < 8; i++) f.data[i] = (unsigned char)((uint64_t)length >> (8 * i));
    memcpy(f.data + 8, header, length);
    if (size) memcpy(f.data + f.text, data, size);
    return f;
}

static file write_tensors(const char *name, const tensors *t) {
    size_t room = 400 * (size_t)t->n + 1000 + (t->instead ? strlen(t->instead) : 0);
    char *header = (char *)small_array(room);
    int n = sprintf(header, t->metadata ? "{\"__metadata__\":{%s}" : "{", t->metadata);
    file f;
    for (int i = 0; i < t->n; i++) {
        const entry *e = &t->entry[i];
        n += sprintf(header + n, "%s\"%s\":", n > 1 ? "," : "", e->name);
        if (i == 0 && t->instead) n += sprintf(header + n, "%s", t->instead);
        else n += sprintf(header + n, "{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%s,%s]}",
                          e->dtype, e->shape, e->begin, e->end);
    }
    n += sprintf(header + n, "}");
    f = tensor_file(name, header, (size_t)n, t->data, t->size);
    free(header);
    return f;
}

/* Tensors first, first + step, ... of the model (and of its moments); in half precision in turn as
   F16, BF16 and F32, whose bytes are whatever they are. */
static tensors list_tensors(int arrays, size_t first, size_t step, int half) {
    static const char *const ending[3] = { "", ".exp_avg", ".exp_avg_sq" };
    static const char *const dtype[3] = { "F16", "BF16", "F32" };
    const hmoe_real *array[3] = { model.params, model.exp_avg, model.exp_avg_sq };
    tensors t;
    memset(&t, 0, sizeof t);
    t.metadata = arrays == 3 ? "\"step\":\"7\",\"tokens\":\"99\",\"seed\":\"18446744073709551615\","
                               "\"flops\":\"1e+15\",\"seconds\":\"1.5\",\"best_val_loss\":\"2.5\""
                             : "\"format\":\"pt\"";
    t.data = (unsigned char *)small_array(arrays * model.param_count * 4);
    for (size_t i = first; i < arrays * model.tensor_count; i += step) {
        const hmoe_tensor *m = &model.tensors[i % model.tensor_count];
        size_t size = half && i % 3 < 2 ? 2 : 4, n = (size_t)m->rows * m->cols;
        entry *e = &t.entry[t.n++];
        sprintf(e->name, "%s%s", m->name, ending[i / model.tensor_count]);
        strcpy(e->dtype, half ? dtype[i % 3] : "F32");
        sprintf(e->shape, m->dims == 2 ? "%d,%d" : "%d", m->rows, m->cols);
        sprintf(e->begin, "%d", (int)t.size);
        for (size_t k = 0; k < n; k++, t.size += size) {
            memcpy(t.data + t.size, array[i / model.tensor_count] + m->offset + k, size);
            hmoe__order_bytes(t.data + t.size, 1, size);
        }
        sprintf(e->end, "%d", (int)t.size);
    }
    return t;
}

/* Tensors first, first + step, ... in a file. */
static file shard(const char *name, size_t first, size_t step) {
    tensors t = list_tensors(1, first, step, 0);
    file f = write_tensors(name, &t);
    free(t.data);
    return f;
}

static file take_file(const char *name) {
    const memory_file *f = memory_find(name);
    file taken;
    if (!f) { printf("damaged.c: no %s was saved\n", name); exit(2); }
    taken = make_file(name, f->data, f->size);
    if (strstr(name, ".safetensors")) taken.text = 8 + taken.data[0] + 256u * taken.data[1];
    return taken;
}

/* A model as small as one can be that has every kind of tensor and every key. */
static void make_checkpoints(void) {
    static const char index[] = "{\"weight_map\": {\"x\": \"model-00001-of-00002.safetensors\", "
                                "\"y\": \"model-00002-of-00002.safetensors\"}}";
    hmoe_config c = hmoe_default_config();
    tensors t;
    c.V = 3, c.T = 2, c.C = 2, c.L = 1, c.NH = 1, c.E = 2, c.K = 2, c.noisy_gating = 1;
    memset(c.H, 0, sizeof c.H);
    c.H[0] = 1, c.H[1] = 2;
    c.loss_coef[HMOE_LB] = 0.5, c.loss_coef[HMOE_Z] = 0.25, c.loss_coef[HMOE_ENT] = 0.125;
    c.vocab_size = 3;
    memcpy(c.vocab, "abc", 3);
    small_create(&model, &c, 1);
    spread_weights(&model, 0.4, 0.6);
    fill(model.exp_avg, model.param_count, 1);
    fill(model.exp_avg_sq, model.param_count, 1);
    for (size_t i = 0; i < model.param_count; i++) model.exp_avg_sq[i] = fabsf(model.exp_avg_sq[i]);
    model.seed = 12345, model.step = 7, model.tokens = 99, model.optimizer = 1;
    model.best_of = 1234567890123456;
    model.recipe = 6543210987654321;
    model.flops = 123456789, model.seconds = 1.5, model.best_val_loss = 2.5;
    CHECK_INT(hmoe_save(&model, "", 1), HMOE_OK);
    model_bytes = memory_live;
    for (int i = 0; i < CHECKPOINTS; i++) good[i].file[CONFIG] = take_file("config.json");
    good[MODEL].what = "model", good[MODEL].file[FIRST] = take_file("model.safetensors");
    good[RUN].what = "run", good[RUN].file[FIRST] = take_file("training.safetensors");
    good[RUN].training = 1;
    t = list_tensors(1, 0, 1, 1);
    good[HALF].what = "half", good[HALF].file[FIRST] = write_tensors("model.safetensors", &t);
    free(t.data);
    good[SHARDS].what = "shards", good[HALF].mixtral = good[SHARDS].mixtral = 1;
    good[SHARDS].file[INDEX] = make_file("model.safetensors.index.json", index, sizeof index - 1);
    good[SHARDS].file[FIRST] = shard("model-00001-of-00002.safetensors", 0, 2);
    good[SHARDS].file[SECOND] = shard("model-00002-of-00002.safetensors", 1, 2);
}

/* ---- What was loaded must be what stands in the files, read here in another way. */

/* The end of the string at text, if that is `key`, whose characters may be escaped (\u0041). */
static const char *after_key(const char *text, const char *end, const char *key) {
    char escaped[8];
    for (; *key && text < end; key++) {
        if (*text == *key) {
            text++;
            continue;
        }
        if (*text != '\\' || text + 6 >= end) return NULL;
        sprintf(escaped, "\\u%04x", (unsigned)(unsigned char)*key);
        if (memcmp(text, escaped, 6)) return NULL;
        text += 6;
    }
    return *key == 0 && text < end && *text == '"' ? text + 1 : NULL;
}

/* The first `"key"` of a text, and what follows its colon; NULL: there is none. */
static const char *value_of(const char *text, const char *end, const char *key) {
    for (; text + strlen(key) + 3 < end; text++) {
        const char *after = *text == '"' ? after_key(text + 1, end, key) : NULL;
        if (after) {
            for (text = after; text < end && strchr(" \r\n\t", *text);) text++;
            if (text < end && *text == ':')
                for (text++; text < end && strchr(" \r\n\t\"", *text);) text++;
            return text;
        }
    }
    return NULL;
}

static double number_of(const file *f, const char *key) {
    const char *value = value_of((const char *)f->data, (const char *)f->data + f->size, key);
    return value ? strtod(value, NULL) : (double)NAN;
}

static void check_config(const hmoe_config *c, const file *f) {
    const struct { const char *key; double loaded; } keys[] = {
        { "hidden_size", c->C }, { "num_hidden_layers", c->L }, { "num_attention_heads", c->NH },
        { "num_key_value_heads", c->NKV }, { "num_local_experts", c->E },
        { "num_experts_per_tok", c->K }, { "vocab_size", c->V }, { "intermediate_size", 2 },
        { "max_position_embeddings", c->T }, { "rms_norm_eps", c->rms_norm_eps },
        { "rope_theta", c->rope_theta }, { "top_p", c->top_p },
        { "lb_coef", c->loss_coef[HMOE_LB] }, { "pp_coef", c->loss_coef[HMOE_PP] },
        { "ent_coef", c->loss_coef[HMOE_ENT] }, { "z_coef", c->loss_coef[HMOE_Z] } };
    const char *vocab = value_of((const char *)f->data, (const char *)f->data + f->size, "vocab");
    int bytes = vocab != NULL;
    char *comma;
    for (const char *at = vocab; at && *at != ']'; at++) bytes += *at == ',';
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!CHECK(number_of(f, keys[i].key) == keys[i].loaded))
            printf("   %s: read as %.17g\n", keys[i].key, keys[i].loaded);
    CHECK(c->H[0] == 1 && c->H[1] == 2 && c->noisy_gating == 1);
    CHECK(c->routing == HMOE_TOP_K && c->gate == HMOE_GATE_NORM);
    CHECK_INT(c->vocab_size, bytes);
    for (int i = 0; i < c->vocab_size; i++) {
        CHECK_INT(c->vocab[i], strtod(vocab + 1, &comma));
        vocab = comma;
    }
}

/* What a number of 16 or 32 bits is worth, by its definition. */
static double value_at(const unsigned char *at, char dtype) {
    unsigned half = at[0] | (unsigned)at[1] << 8;
    int bits = dtype == 'B' ? 7 : 10, bias = dtype == 'B' ? 127 : 15;
    int exponent = (int)(half & 0x7fff) >> bits;
    double fraction = ldexp(half & ((1u << bits) - 1), -bits), value;
    if (exponent == 2 * bias + 1) value = fraction > 0 ? (double)NAN : (double)INFINITY;
    else value = exponent ? ldexp(1 + fraction, exponent - bias) : ldexp(fraction, 1 - bias);
    return half >> 15 ? -value : value;
}

/* A tensor's numbers are the bytes that its description, in one of the files, points to. */
static void check_tensor(const char *name, const hmoe_real *loaded, size_t n,
                         const checkpoint *c) {
    const char *at = NULL, *end = NULL, *offsets, *dtype;
    const unsigned char *from;
    const file *f = &c->file[FIRST];
    char *comma = NULL;
    size_t begin, size;
    for (; !at && f <= &c->file[THIRD] && f->name; f++)
        at = value_of((const char *)f->data + 8, end = (const char *)f->data + f->text, name);
    f--;
    if (!CHECK(at != NULL)) return;
    dtype = value_of(at, end, "dtype"), offsets = value_of(at, end, "data_offsets");
    if (!CHECK(dtype && offsets && *offsets == '[')) return;
    begin = (size_t)strtod(offsets + 1, &comma);
    comma += strspn(comma, " ");
    size = *dtype == 'F' && dtype[1] == '3' ? 4 : 2;
    from = f->data + f->text + begin;
    CHECK_INT(strtod(comma + 1, NULL), begin + n * size);
    if (!CHECK(from + n * size <= f->data + f->size)) return;
    for (size_t k = 0; k < n; k++, from += size) {
        double right = value_at(from, *dtype);
        float bits = loaded[k];
        hmoe__order_bytes(&bits, 1, sizeof bits);
        if (size == 4 ? !memcmp(&bits, from, 4)
                      : isnan(right) ? isnan(loaded[k]) : (double)loaded[k] == right
                        && !signbit(loaded[k]) == !signbit(right)) continue;
        printf("%s: number %d\n", name, (int)k);
        CHECK_NEAR(loaded[k], size == 4 ? (double)NAN : right, 0, -1);
        return;
    }
}

static void check_loaded(hmoe_model *m, const checkpoint *c) {
    static const char *const ending[3] = { "", ".exp_avg", ".exp_avg_sq" };
    const hmoe_real *array[3] = { m->params, m->exp_avg, m->exp_avg_sq };
    const file *first = &c->file[FIRST];
    int tokens[2] = { 0, 2 };
    hmoe_status status;
    check_config(&m->config, &c->file[CONFIG]);
    for (size_t i = 0; i < (c->training ? 3 : 1) * m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i % m->tensor_count];
        char name[HMOE_NAME_SIZE + 16];
        sprintf(name, "%s%s", t->name, ending[i / m->tensor_count]);
        check_tensor(name, array[i / m->tensor_count] + t->offset, (size_t)t->rows * t->cols, c);
    }
    if (c->training) {
        CHECK((double)m->step == number_of(first, "step"));
        CHECK((double)m->tokens == number_of(first, "tokens"));
        CHECK((double)m->seed == number_of(first, "seed"));
        CHECK(m->flops == number_of(first, "flops"));
        CHECK(m->seconds == number_of(first, "seconds"));
        CHECK(m->best_val_loss == number_of(first, "best_val_loss"));
        CHECK(isnan(number_of(first, "best_of")) ? m->best_of == 0
              : (double)m->best_of == number_of(first, "best_of"));
        CHECK(isnan(number_of(first, "recipe")) ? m->recipe == 0
              : (double)m->recipe == number_of(first, "recipe"));
    }
    if (m->max_tokens == 0) return;
    status = hmoe_forward(m, HMOE_EVALUATE, tokens, tokens, 1, m->config.T < 2 ? 1 : 2);
    CHECK(status == HMOE_OK || status == HMOE_NOT_FINITE);
}

/* ---- Loading: with what should come of it, and which file is to blame. */

/* It loads, or else it is refused; where that is known, here is what the message says of it. */
#define LOADS ((const char *)0)
static const char REFUSED[] = "", EITHER[] = "loads or not", NO_FILE[] = "cannot open",
                  NOT_JSON[] = "this is not one JSON object";
static char said[HMOE_MESSAGE_SIZE];                /* the last message */

/* The files in memory are those that were put there: none is new, or written anew. */
static int files_are_those_of(const checkpoint *c) {
    int others = 0;
    for (int i = 0; i < MEMORY_FILES; i++) others += memory_files[i].name != NULL;
    for (int i = 0; i < FILES; i++) {
        const memory_file *f = c->file[i].name ? memory_find(c->file[i].name) : NULL;
        others -= f && f->data == (char *)c->file[i].data && f->size == c->file[i].size;
    }
    return others == 0;
}

/* Puts them there, and returns their bytes. */
static double put_files(const checkpoint *c) {
    double bytes = 0;
    memory_clear();
    for (int i = 0; i < FILES; i++)
        if (c->file[i].name) {
            memory_put(c->file[i].name, c->file[i].data, c->file[i].size);
            bytes += c->file[i].data ? (double)c->file[i].size : 0;
        }
    return bytes;
}

static hmoe_status read_files(hmoe_model *m, const checkpoint *c, int max_B) {
    memset(m, 0, sizeof *m);
    return c->mixtral ? hmoe_load_mixtral(m, "", max_B) : hmoe_load(m, "", max_B, c->training);
}

static hmoe_status load(const checkpoint *c, const char *right, int max_B, const char *blame) {
    double files = put_files(c);
    hmoe_status status;
    hmoe_model m;
    memory_peak = memory_live;
    status = read_files(&m, c, max_B);
    if ((memory_peak - model_bytes) > 1 << 19)
        CHECK((double)(memory_peak - model_bytes) <= memory_justified(files, max_B, c->training));
    strcpy(said, m.message);
    if (status == HMOE_OK) {
        CHECK(right == LOADS || right == EITHER);
        check_loaded(&m, c);
    } else {
        int ok = CHECK(right != LOADS);
        ok &= CHECK(status == (right == NO_FILE ? HMOE_IO : HMOE_BAD_FILE)
                    || (status == HMOE_IO && right == EITHER));
        ok &= CHECK(memory_message_is_good(&m, status) && strstr(said, blame));
        if (right != LOADS && right != EITHER) ok &= CHECK(strstr(said, right) != NULL);
        if (!ok && test_bad_checks <= TEST_MAX_PRINTED)
            printf("   said: %s\n   and should name %s, and say: %s\n", said, blame,
                   right ? right : "nothing");
        CHECK(memory_live == model_bytes && small_is_gone(&m));
    }
    CHECK(files_are_those_of(c));
    hmoe_free(&m);
    CHECK(memory_live == model_bytes && memory_open == 0);
    return status;
}

/* The same with one file exchanged, which is freed. */
static hmoe_status load_with(int which, int part, file changed, const char *right) {
    checkpoint c = good[which];
    const char *blame = changed.name;
    hmoe_status status;
    c.file[part] = changed;
    if (right == EITHER || which == SHARDS) blame = ".";               /* shards: their sum */
    status = load(&c, right, 1, blame);
    free(changed.data);
    return status;
}

static hmoe_status load_tensors(int which, const tensors *t, const char *right) {
    return load_with(which, FIRST, write_tensors(good[which].file[FIRST].name, t), right);
}

static void intact(void) {
    for (int i = 0; i < CHECKPOINTS; i++) {
        test_context = good[i].what;
        CHECK_INT(load(&good[i], LOADS, 1, ""), HMOE_OK);
        CHECK_INT(load(&good[i], LOADS, 0, ""), HMOE_OK);
    }
}

/* Every allocation of a load fails once: then nothing is left, in memory or open. */
static void starved(void) {
    for (int i = 0; i < CHECKPOINTS; i++) {
        hmoe_status status = HMOE_OUT_OF_MEMORY;
        hmoe_model m;
        int n = -1;
        test_context = good[i].what;
        put_files(&good[i]);
        while (status == HMOE_OUT_OF_MEMORY) {
            memory_calls = 0, memory_fail_at = ++n;
            status = read_files(&m, &good[i], 1);
            if (status) {
                CHECK_INT(status, HMOE_OUT_OF_MEMORY);
                CHECK(memory_message_is_good(&m, status) && strstr(m.message, "memory"));
                CHECK(small_is_gone(&m));
            }
            hmoe_free(&m);
            CHECK(memory_live == model_bytes && memory_open == 0);
        }
        CHECK_INT(memory_calls, n);                 /* of which all have failed */
        CHECK(n >= 10);
        memory_fail_at = -1;
    }
}

/* ---- Bytes: cut off, added, flipped. */

static void truncated(void) {
    for (int which = 0; which < CHECKPOINTS; which++)
        for (int part = 0; part < FILES; part++) {
            const file *f = &good[which].file[part];
            const char *cut_text = part == CONFIG || part == INDEX ? NOT_JSON : REFUSED;
            char where[100];
            test_context = where;
            for (size_t n = 0; f->name && n < f->size; n++) {
                int newline = part == CONFIG && n == f->size - 1;      /* is all that is lost */
                file cut;
                if (!full && which != MODEL && n > 100 && n % 4) continue;
                cut = make_file(f->name, f->data, n);
                sprintf(where, "(%s of %s, the first %d bytes)", f->name, good[which].what, (int)n);
                cut.text = f->text;
                load_with(which, part, cut, newline ? LOADS : cut_text);
                if (f->text == f->size || n < 8 || n >= f->text) continue;
                cut = tensor_file(f->name, (const char *)f->data + 8, n - 8, f->data + f->text,
                                  f->size - f->text);
                load_with(which, part, cut, part == FIRST && which < HALF && n > f->text - 8
                          && f->data[n] == ' ' ? LOADS : REFUSED);     /* the header's padding */
            }
        }
    test_context = "";
}

static void followed_by_more(void) {
    static const struct { const char *bytes; size_t n; const char *right; } more[] = {
        { " ", 1, LOADS },     { "\r\n\t ", 4, LOADS }, { "\0", 1, NOT_JSON },
        { "x", 1, NOT_JSON },  { "{}", 2, NOT_JSON },   { ",", 1, NOT_JSON },
        { "}", 1, NOT_JSON },  { "//", 2, NOT_JSON },   { "\n\0\n", 3, NOT_JSON },
        { "\0{", 2, NOT_JSON }, { "\n{\"a\":1}", 8, NOT_JSON },
        { "0123456789abcdef", 16, NOT_JSON } };
    for (int which = 0; which < CHECKPOINTS; which++)
        for (int part = 0; part < FILES; part++)
            for (size_t i = 0; i < sizeof more / sizeof *more && good[which].file[part].name; i++) {
                const file *f = &good[which].file[part];
                char *text = (char *)small_array(f->size + more[i].n);
                memcpy(text, f->data, f->text);
                memcpy(text + f->text, more[i].bytes, more[i].n);
                memcpy(text + f->text + more[i].n, f->data + f->text, f->size - f->text);
                test_context = more[i].bytes;
                if (f->text == f->size) {
                    load_with(which, part, make_file(f->name, text, f->size + more[i].n),
                              more[i].right);
                } else {              /* behind the header, as a part of it; and behind all */
                    load_with(which, part, tensor_file(f->name, text + 8, f->text - 8 + more[i].n,
                                                       f->data + f->text, f->size - f->text),
                              more[i].right);
                    memcpy(text, f->data, f->size);
                    memcpy(text + f->size, more[i].bytes, more[i].n);
                    load_with(which, part, make_file(f->name, text, f->size + more[i].n),
                              "the last tensor does not end where the file does");
                }
                free(text);
            }
}

/* Whatever loads was compared with the text that the flip left: check_loaded. Most of a header is
   names, shapes and offsets, and no flip of those can go unseen. */
static void flipped(void) {
    for (int which = 0; which < CHECKPOINTS; which++)
        for (int part = 0; part < FILES; part++) {
            checkpoint *c = &good[which];
            file *f = &c->file[part];
            int refused = 0, all = 0, loaded_elsewhere = 0;
            if (!f->name || (part == CONFIG && which != MODEL)) continue;
            for (size_t i = 0; i < f->text; i++)
                for (int bit = 0; bit < 8; bit++) {
                    char where[100];
                    hmoe_status status;
                    size_t one_in = full ? (which == RUN ? 2 : 1) : 8;
                    if (i > (part ? 100 : 1000) && (i + (size_t)bit) % one_in) continue;
                    sprintf(where, "(bit %d of byte %d of %s of %s)", bit, (int)i, f->name,
                            c->what);
                    test_context = where;
                    f->data[i] ^= (unsigned char)(1 << bit);
                    status = load(c, EITHER, 1, "");
                    f->data[i] ^= (unsigned char)(1 << bit);
                    refused += status != HMOE_OK, all++;
                    /* behind the metadata everything in a header counts */
                    if (f->text < f->size && i > 8 + strcspn((char *)f->data + 8, "}"))
                        loaded_elsewhere += status == HMOE_OK;
                }
            test_context = f->name;
            CHECK_INT(loaded_elsewhere, 0);
            CHECK(refused > all / 2);
        }
    test_context = "";
}

/* ---- Numbers, in every place where there is one. */

/* never: it is no number in JSON, whatever strtod makes of it. */
static const struct { const char *text; int never; } numbers[] = {
    { "0", 0 }, { "-0", 0 }, { "1", 0 }, { "-1", 0 }, { "2", 0 }, { "3", 0 }, { "1.5", 0 },
    { "0.5", 0 }, { "2.0", 0 }, { "1e0", 0 }, { "2E+0", 0 }, { "1e-400", 0 }, { "255", 0 },
    { "256", 0 }, { "1048576", 0 }, { "1048577", 0 }, { "2147483647", 0 }, { "2147483648", 0 },
    { "4294967295", 0 }, { "4294967296", 0 }, { "4294967297", 0 }, { "9007199254740992", 0 },
    { "9007199254740993", 0 }, { "9223372036854775807", 0 }, { "9223372036854775808", 0 },
    { "18446744073709551615", 0 }, { "18446744073709551616", 0 }, { "18446744073709551617", 0 },
    { "1e15", 0 }, { "1000000000000001", 0 }, { "1e308", 0 }, { "1e999", 0 }, { "-1e999", 0 },
    { "nan", 1 }, { "NaN", 1 }, { "Infinity", 1 }, { "-inf", 1 }, { "0x1", 1 }, { "01", 1 },
    { "+1", 1 }, { "1.", 1 }, { ".5", 1 }, { "-.5", 1 }, { "1.e0", 1 }, { "1e", 1 }, { "1e+", 1 },
    { "--1", 1 }, { "-", 1 }, { "1-2", 1 }, { "1.2.3", 1 }, { "1e1e1", 1 }, { "1 2", 1 },
    { "1_0", 1 }, { "", 1 } };
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static int fits(int i, double low, double high, int whole) {
    double value = strtod(numbers[i].text, NULL);
    return !numbers[i].never && value >= low && value <= high && (!whole || value == floor(value));
}

/* What should come of number i: refused, if it is none, because the text is not JSON. */
static const char *expected(int i, int right, const char *says) {
    return numbers[i].never ? NOT_JSON : right ? LOADS : says;
}

/* The config.json as pairs, each of which stands in a line of its own. Tests set other values, and
   reset them all. */
typedef struct pair { char key[40]; const char *value; } pair;      /* NULL: left out */
static pair pairs[64], good_pairs[64];
static int pair_count, good_pair_count;

static void reset(void) {
    memcpy(pairs, good_pairs, sizeof pairs);
    pair_count = good_pair_count;
}

static void set(const char *key, const char *value) {
    int i = 0;
    while (i < pair_count && strcmp(pairs[i].key, key)) i++;
    if (i == pair_count) strcpy(pairs[pair_count++].key, key);
    pairs[i].value = value;
}

static void read_pairs(void) {
    static char values[64][200];
    const char *at = (const char *)good[MODEL].file[CONFIG].data;
    while ((at = strstr(at, "\n  \"")) != NULL) {
        const char *value = strstr(at, "\": ") + 3, *end = value + strcspn(value, "\n");
        pair *p = &good_pairs[good_pair_count];
        sprintf(p->key, "%.*s", (int)(value - 3 - (at + 4)), at + 4);
        p->value = values[good_pair_count++];
        sprintf((char *)p->value, "%.*s", (int)(end - value - (end[-1] == ',')), value);
        at = value;
    }
    reset();
}

/* A config.json of the pairs, with text at its start. */
static file config_with(const char *start) {
    size_t size = strlen(start) + 10;
    char *text, *at;
    file f;
    for (int i = 0; i < pair_count; i++)
        size += pairs[i].value ? strlen(pairs[i].value) + sizeof pairs[i].key + 10 : 0;
    at = text = (char *)small_array(size);
    at += sprintf(at, "{%s", start);
    for (int i = 0; i < pair_count; i++)
        if (pairs[i].value)
            at += sprintf(at, "%s\"%s\":%s", at[-1] == '{' ? "" : ",", pairs[i].key,
                          pairs[i].value);
    strcpy(at, "}");
    f = make_file("config.json", text, strlen(text));
    free(text);
    return f;
}

static hmoe_status load_config(const char *right) {
    return load_with(MODEL, CONFIG, config_with(""), right);
}

/* format: the value, with %s where the number goes. */
static void numbers_at(const char *key, const char *format, double low, double high, int whole) {
    const char *says = strstr(key, "rope") ? "rope_theta" : key;
    static char value[200];
    set(key, value);
    test_context = value;
    for (int i = 0; i < NUMBERS; i++) {
        if (whole && fits(i, 1e4, high, 1)) continue;   /* a context of a million: not here */
        if (!strcmp(format, "[%s,2]") && fits(i, 0, 0, 1)) continue;   /* see other_models */
        sprintf(value, format, numbers[i].text);
        load_config(expected(i, fits(i, low, high, whole),
                             whole && fits(i, 0, 1 << 20, 1) ? REFUSED : says));
    }
    reset();
}

static void numbers_in_config(void) {
    static const struct { const char *key; double low, high; int whole; } keys[] = {
        { "hidden_size", 2, 2, 1 }, { "num_hidden_layers", 1, 1, 1 },
        { "num_attention_heads", 1, 1, 1 }, { "num_key_value_heads", 1, 1, 1 },
        { "num_local_experts", 2, 2, 1 }, { "num_experts_per_tok", 1, 2, 1 },
        { "intermediate_size", 2, 2, 1 }, { "vocab_size", 3, 3, 1 },
        { "max_position_embeddings", 1, 1 << 20, 1 }, { "rms_norm_eps", 0, 1, 0 },
        { "rope_theta", 10000, 10000, 0 }, { "top_p", 1e-9, 1, 0 }, { "lb_coef", 0, 1e6, 0 },
        { "pp_coef", 0, 1e6, 0 }, { "ent_coef", 0, 1e6, 0 }, { "z_coef", 0, 1e6, 0 } };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        numbers_at(keys[i].key, "%s", keys[i].low, keys[i].high, keys[i].whole);
    numbers_at("rope_parameters", "{\"rope_type\":\"default\",\"rope_theta\":%s}", 10000, 10000, 0);
    numbers_at("expert_sizes", "[%s,2]", 1, 1, 1);
    numbers_at("expert_sizes", "[1,%s]", 2, 2, 1);
    numbers_at("expert_sizes", "[1,2,%s]", 1, 0, 1);
    numbers_at("vocab", "[%s,98,99]", 0, 97, 1);
    numbers_at("vocab", "[97,98,%s]", 99, 255, 1);
    numbers_at("vocab", "[97,%s,99]", 98, 98, 1);
    numbers_at("unread", "%s", -INFINITY, INFINITY, 0);       /* keys that we do not write */
    numbers_at("sliding_window", "%s", 2, 1.7e308, 0);
    numbers_at("head_dim", "%s", 2, 2, 0);
    numbers_at("quantization_config", "%s", 1, 0, 0);
}

/* Other values of a key, also of keys that we do not write; and whole messages. The model has C 2,
   NH 1, T 2, V 3, two experts of widths 1 and 2, and Top-K. */
static void values_in_config(void) {
    static const char strange[] = "has a value that is not supported", bytes[] = "vocab: byte 98 "
        "follows byte 98: must ascend", rope[] = "is not plain RoPE with a rope_theta",
        context[] = "must not be shorter than the context", number[] = "must be a number",
        list[] = "must be a list of 1 to 256 whole numbers in their range",
        widths[] = "must be num_local_experts widths, the largest intermediate_size",
        words[] = "must be \"off\", \"tokens\" or \"work\"",
        quantised[] = "says that the weights are quantised: convert them to F32, F16 or BF16 first",
        rotary[] = "must be 1: all dimensions of a head are rotated";
    static const struct { const char *key, *value, *says; } cases[] = {
        { "model_type", "\"bert\"", strange },     { "model_type", "[\n1]", strange },
        { "num_attention_heads", "2", "width C is 2 and heads NH 2: C must be NH times an even "
          "head size" },
        { "num_key_value_heads", "2", "must divide num_attention_heads" },
        { "num_key_value_heads", "0", "must divide num_attention_heads" },
        { "num_key_value_heads", "null", number },
        { "num_experts_per_tok", "3", "experts per token K is 3: must be from 1 to 2" },
        { "hidden_size", "11111111112222222222333333333344444444445", "must be a whole number in "
          "its range" },
        { "hidden_act", "\"gelu\"", strange },     { "tie_word_embeddings", "true", strange },
        { "eos_token_id", "{\"hidden_size\": 7}", LOADS }, { "attention_dropout", "0.5", LOADS },
        { "transformers_version", "\"4.57.1\"", LOADS },
        { "attention_bias", "false", LOADS },      { "attention_bias", "true", strange },
        { "sliding_window", "null", LOADS },       { "sliding_window", "false", LOADS },
        { "sliding_window", "1", context },        { "sliding_window", "\"4096\"", context },
        { "head_dim", "null", LOADS },
        { "head_dim", "[2]", "must be hidden_size / num_attention_heads" },
        { "quantization_config", "null", LOADS },
        { "quantization_config", "{\"quant_method\": \"fp8\"}", quantised },
        { "quantization_config", "\"fp8\"", strange },
        { "partial_rotary_factor", "1.0", LOADS }, { "partial_rotary_factor", "null", LOADS },
        { "partial_rotary_factor", "0.5", rotary }, { "partial_rotary_factor", "\"1\"", rotary },
        { "rope_scaling", "null", LOADS },         { "rope_scaling", "{\"factor\": 2}", strange },
        { "rope_theta", NULL, LOADS },             { "rope_parameters", NULL, LOADS },
        { "rope_theta", "500000", "differs from rope_parameters" },
        { "rope_parameters", "null", LOADS },
        { "rope_parameters", "{\"rope_type\":\"default\"}", rope },
        { "rope_parameters", "{\"rope_theta\":10000,\"partial_rotary_factor\":1}", LOADS },
        { "rope_parameters", "{\"rope_theta\":10000,\"partial_rotary_factor\":0.5}", rope },
        { "rope_parameters", "{\"rope_type\":\"yarn\",\"rope_theta\":10000}", rope },
        { "rope_parameters", "{\"factor\":2,\"rope_theta\":10000}", rope },
        { "expert_sizes", "[2]", widths },         { "expert_sizes", "[1,2,2]", widths },
        { "expert_sizes", "[1,\"2\"]", list },     { "expert_sizes", "[]", list },
        { "routing", "\"topq\"", strange },        { "norm_topk_prob", "1", strange },
        { "lb_coef", "1e999", number },            { "balance", "\"off\"", LOADS },
        { "balance", "\"heads\"", words },         { "balance", "1", words },
        { "balance_rate", "1", LOADS },            { "balance_rate", "\"0.1\"", number },
        { "balance_rate", "2", "balance_rate is 2: must be from 0 to 1" },
        { "budget", "0", LOADS },                  { "budget", "\"0\"", number },
        { "budget", "-0.5", "budget is -0.5: must be from 0 to 1" },
        { "budget", "0.5", "budget 0.5: changes top_p, so it needs Top-P routing" },
        { "vocab", "[97,98]", LOADS },             /* the third is special */
        { "vocab", "[97,98,99,100]", "vocab: 4 bytes, V: 3: must be from 0 to V, and at most 256" },
        { "vocab", "[97,98,98]", bytes },          { "vocab", "[97,98,256]", list },
        { "vocab", "\"abc\"", list } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *key = cases[i].key, *value = cases[i].value, *says = cases[i].says;
        char read[300], checked[300];           /* what says it: the reader, hmoe_check_config */
        set(key, value);
        test_context = value;
        load_config(says);
        snprintf(checked, sizeof checked, "/config.json: %s", says ? says : "");
        snprintf(read, sizeof read, "/config.json: %s %s: it is %.*s", key, says ? says : "",
                 value && strchr(value, '\n') ? 1 : 40, value ? value : "");   /* of one line */
        if (says && !CHECK(!strcmp(said, read) || !strcmp(said, checked))) puts(said);
        reset();
    }
}

/* A context takes no weights, so no file is too small for a long one: it is allocated, or not. */
static void long_contexts(void) {
    size_t most = memory_most;
    memory_most = (size_t)1 << 26;
    for (int i = 0; i < 4; i++) {
        int T = i < 2 ? 65536 : 1048576, max_B = i % 2;
        checkpoint c = good[MODEL];
        hmoe_model m;
        set("max_position_embeddings", i < 2 ? "65536" : "1048576");
        c.file[CONFIG] = config_with("");
        put_files(&c);
        memory_peak = memory_live;
        CHECK_INT(read_files(&m, &c, max_B), max_B ? HMOE_OUT_OF_MEMORY : HMOE_OK);   /* T * T */
        CHECK((double)(memory_peak - model_bytes) <= memory_justified(3000, max_B, 0));
        CHECK_INT(m.config.T, max_B ? 0 : T);
        hmoe_free(&m);
        CHECK(memory_live == model_bytes);
        free(c.file[CONFIG].data);
    }
    memory_most = most;
    reset();
}

/* In a header any other number would leave a hole, overlap, or have another shape. */
static void numbers_in_headers(void) {
    for (int which = MODEL; which <= RUN; which++) {
        tensors t = list_tensors(which == RUN ? 3 : 1, 0, 1, 0);
        load_tensors(which, &t, LOADS);
        for (int k = 0; k < t.n; k++)
            for (int place = 0; place < 4; place++)
                for (int i = 0; i < NUMBERS; i++) {
                    entry *e = &t.entry[k], saved = *e;
                    const char *text = numbers[i].text, *comma = strchr(saved.shape, ',');
                    double was = strtod(place == 0 ? e->begin : place == 1 ? e->end : place == 2
                                        ? e->shape : comma ? comma + 1 : "", NULL);
                    char says[200];
                    if (place == 3 && !comma) continue;
                    if (!full && which == RUN && (k + i) % 5) continue;
                    if (place == 0) strcpy(e->begin, text);
                    else if (place == 1) strcpy(e->end, text);
                    else if (place == 2) sprintf(e->shape, "%s%s", text, comma ? comma : "");
                    else sprintf(strchr(e->shape, ',') + 1, "%s", text);
                    sprintf(says, "%s has %s", e->name,
                            place < 2 ? "data_offsets that do not fit" : "another shape than");
                    test_context = text;
                    load_tensors(which, &t, place == 2 && !comma && !*text ? says      /* [] */
                              : expected(i, fits(i, was, was, 1), says));
                    *e = saved;
                }
        free(t.data);
    }
}

static void numbers_in_metadata(void) {
    static const struct { const char *key; double high; int whole; } keys[] = {
        { "step", 1e15, 1 }, { "tokens", 1e15, 1 }, { "optimizer", 1e6, 1 },
        { "flops", 1.7e308, 0 }, { "seconds", 1.7e308, 0 }, { "best_val_loss", 1.7e308, 0 },
        { "seed", 0, 1 }, { "best_of", 0, 1 },
        { "recipe", 0, 1 } };
    enum { KEYS = sizeof keys / sizeof *keys };
    static const struct { const char *member, *says; } strange[] = {
        { "\"%s\":\" 1\"", "must be a number in quotes: it is \" 1\"" },
        { "\"%s\":\"1 \"", "must be a number in quotes" },
        { "\"%s\":\"\\u00e9\"", "must be a number in quotes" },
        { "\"%s\":1", "must be a number in quotes: it is 1" },
        { "\"%s\":\"5\",\"%s\":\"5\"", "comes twice" }, { "\"no_%s\":\"5\"", "is missing" } };
    enum { STRANGE = sizeof strange / sizeof *strange };
    tensors t = list_tensors(3, 0, 1, 0);
    for (int k = 0; k < KEYS; k++)
        for (int i = -STRANGE; i < NUMBERS; i++) {
            const char *key = keys[k].key, *text = i < 0 ? "" : numbers[i].text;
            char metadata[600] = "", member[100], says[100];
            int right = i >= 0 && fits(i, 0, keys[k].high, keys[k].whole);
            if (k >= 6 && i >= 0)              /* a seed is all digits, and has 64 bits */
                right = !numbers[i].never && strspn(text, "0123456789") == strlen(text)
                        && (strlen(text) < 20 || strcmp(text, "18446744073709551615") <= 0);
            if ((k == 2 || k >= 7) && i == -1) right = 1;   /* may be missing */
            sprintf(member, i < 0 ? strange[i + STRANGE].member : "\"%s\":\"%s\"", key,
                    i < 0 ? key : text);
            sprintf(says, "%s %s", key, i < 0 ? strange[i + STRANGE].says : "");
            for (int j = 0; j < KEYS; j++) {
                if (j) strcat(metadata, ",");
                if (j == k) strcat(metadata, member);
                else sprintf(metadata + strlen(metadata), "\"%s\":\"5\"", keys[j].key);
            }
            t.metadata = test_context = metadata;
            load_tensors(RUN, &t, right ? LOADS : says);
        }
    t.metadata = "},\"__metadata__\":{";
    load_tensors(RUN, &t, "__metadata__ comes twice");
    t.metadata = NULL;
    load_tensors(RUN, &t, "__metadata__ is missing");
    free(t.data);
    test_context = "";
}

/* Every F16 and every BF16, in a tensor so large that it is read in more than one piece. */
static void half_precision(void) {
    enum { ROWS = 36000 };
    checkpoint c = good[HALF];
    set("vocab_size", "36000"), set("vocab", NULL);
    c.file[CONFIG] = config_with("");
    reset();
    for (int type = 0; type < 2; type++) {
        tensors t = list_tensors(1, 0, 1, 0);
        size_t numbers_in_all = 2 * 2 * ROWS + model.param_count;
        unsigned char *data = (unsigned char *)small_array(2 * numbers_in_all);
        for (size_t k = 0; k < numbers_in_all; k++) {
            unsigned half = (unsigned)(k * 25 + k / 65536) & 65535;    /* 25: not in order */
            data[2 * k] = (unsigned char)half, data[2 * k + 1] = (unsigned char)(half >> 8);
        }
        t.size = 0;
        for (int i = 0; i < t.n; i++) {
            entry *e = &t.entry[i];
            int n = (atoi(e->end) - atoi(e->begin)) / 4;
            if (!strcmp(e->shape, "3,2")) sprintf(e->shape, "%d,2", ROWS), n = 2 * ROWS;
            strcpy(e->dtype, type ? "BF16" : "F16");
            sprintf(e->begin, "%d", (int)t.size);
            sprintf(e->end, "%d", (int)(t.size += 2 * (size_t)n));
        }
        free(t.data);
        t.data = data;
        c.file[FIRST] = write_tensors("model.safetensors", &t);
        test_context = t.entry[0].dtype;
        load(&c, LOADS, 0, "");
        free(data), free(c.file[FIRST].data);
    }
    free(c.file[CONFIG].data);
    test_context = "";
}

/* Biases, and the top_p that a budget steers, are read like weights; but they take part in no sum
   that would show what is wrong with them. The configuration comes back as it was saved. */
static void states(void) {
    static const double wrong[] = { NAN, INFINITY, -INFINITY, 0, -0.5, 1.5 };
    hmoe_config c = small_config();
    hmoe_model m, loaded;
    c.routing = HMOE_TOP_P, c.top_p = 0.75, c.budget = 0.25, c.gate = HMOE_GATE_RAW;
    c.balance = HMOE_BALANCE_TOKENS, c.balance_rate = 0.125, c.rms_norm_eps = 0.5;
    c.C = 4, c.V = 5, c.H[1] = 0;
    small_create(&m, &c, 0);
    memset(&loaded, 0, sizeof loaded);
    for (size_t i = 0; i < m.tensor_count; i++)
        for (int k = 0; k < 6; k++) {
            const hmoe_tensor *t = &m.tensors[i];
            int is_p = strstr(t->name, ".top_p") != NULL;
            hmoe_real *x = m.params + t->offset + t->rows - 1, saved = *x;
            if (!t->state) break;
            *x = (hmoe_real)wrong[k];
            test_context = t->name;
            memory_clear();
            CHECK_INT(hmoe_save(&m, "", 0), HMOE_OK);
            CHECK_INT(hmoe_load(&loaded, "", 0, 0), k > 2 && !is_p ? HMOE_OK : HMOE_BAD_FILE);
            if (k <= 2 || is_p) CHECK(strstr(loaded.message, t->name) != NULL);
            hmoe_free(&loaded);
            *x = saved;
        }
    memory_clear();
    CHECK_INT(hmoe_save(&m, "", 0), HMOE_OK);
    CHECK_INT(hmoe_load(&loaded, "", 0, 0), HMOE_OK);
    CHECK(loaded.config.routing == c.routing && loaded.config.gate == c.gate);
    CHECK(loaded.config.balance == c.balance && loaded.config.balance_rate == c.balance_rate);
    CHECK(loaded.config.budget == c.budget && loaded.config.top_p == c.top_p);
    CHECK(loaded.config.rms_norm_eps == c.rms_norm_eps && loaded.config.H[1] == 0);
    hmoe_free(&loaded), hmoe_free(&m);
    CHECK(memory_live == model_bytes && memory_open == 0);
    test_context = "";
}

/* The last number of each tensor of each array of a run: one that AdamW cannot have left. */
static void numbers_of_a_run(void) {
    static const float wrong[] = { NAN, INFINITY, -INFINITY, -1, -0.0f };
    checkpoint c = good[RUN];
    tensors t = list_tensors(3, 0, 1, 0);
    for (int i = 0; i < t.n; i++)
        for (int k = 0; k < 5; k++) {
            int squares = strstr(t.entry[i].name, ".exp_avg_sq") != NULL;
            unsigned char *at = t.data + atoi(t.entry[i].end) - 4, saved[4];
            char says[200];
            sprintf(says, "%s must be finite%s: it has ", t.entry[i].name,
                    squares ? " and not negative" : "");
            test_context = says;
            memcpy(saved, at, 4);
            memcpy(at, &wrong[k], 4);
            hmoe__order_bytes(at, 1, 4);
            c.file[FIRST] = write_tensors("training.safetensors", &t);
            load(&c, k < 3 || (k == 3 && squares) ? says : LOADS, 1, "training.safetensors");
            free(c.file[FIRST].data);
            memcpy(at, saved, 4);
        }
    free(t.data);
    test_context = "";
}

/* ---- Members: missing, twice, of another kind. */

static int one_of(const char *words, const char *key) {
    const char *at = strstr(words, key);
    return at && (at == words || at[-1] == ' ') && strchr(" ", at[strlen(key)]);
}

static void members_of_config(void) {
    static const char *const other[] = { "null", "true", "{}", "[]", "\"\"", "\"x\"", "[[1]]",
                                         "[{}]", "{\"a\":1}", "[1,null]" };
    for (int i = 0; i < pair_count; i++) {
        pair saved = pairs[i];
        char missing[60], twice[60];
        int unread = one_of("architectures dtype torch_dtype bos_token_id eos_token_id", saved.key);
        int nullable = unread || one_of("tie_word_embeddings rope_parameters", saved.key);
        int needless = nullable || one_of("hidden_act rope_theta vocab", saved.key);
        test_context = saved.key;
        sprintf(missing, "%s is missing", saved.key), sprintf(twice, "%s comes twice", saved.key);
        pairs[i].value = NULL;
        load_config(needless ? LOADS : missing);
        pairs[i] = pairs[pair_count++] = saved;                        /* twice the same */
        load_config(unread ? LOADS : twice);
        pair_count--;
        for (size_t k = 0; k < sizeof other / sizeof *other; k++) {
            if (k == 1 && one_of("norm_topk_prob noisy_gating", saved.key)) continue;
            pairs[i].value = other[k];
            load_config(unread || (k == 0 && nullable) ? LOADS : saved.key);
        }
        pairs[i] = saved;                       /* with an escape in it, and twice */
        sprintf(pairs[i].key, "%.1s\\u%04x%s", saved.key, (unsigned)saved.key[1], saved.key + 2);
        load_config(LOADS);
        pairs[pair_count++] = saved;
        load_config(unread ? LOADS : twice);
        pair_count--;
        pairs[i] = saved;
    }
    test_context = "";
}

static void members_of_headers(void) {
    static const char *const dtypes[] = { "F16", "BF16", "F64", "I32", "F8_E4M3", "f32", "F3",
                                          "F322", "", "F32 ", "\\u0046" };
    for (int which = MODEL; which <= RUN; which++) {
        tensors t = list_tensors(which == RUN ? 3 : 1, 0, 1, 0);
        char says[200];
        for (int k = 0; k < t.n; k++) {
            entry saved = t.entry[k];
            int rows = 0, cols = 0;
            test_context = saved.name;
            t.entry[k] = t.entry[--t.n];                               /* missing */
            load_tensors(which, &t, REFUSED);
            t.entry[t.n++] = t.entry[k], t.entry[k] = saved;
            t.entry[t.n++] = saved;                                    /* twice the same */
            sprintf(says, "%s comes twice", saved.name);
            load_tensors(which, &t, says);
            sprintf(t.entry[t.n - 1].name, "%s ", saved.name);         /* one more, of no tensor */
            sprintf(says, "%s  is not a tensor of this model", saved.name);
            load_tensors(which, &t, says);
            t.n--;
            sprintf(says, "%s must be F32", saved.name);
            for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
                strcpy(t.entry[k].dtype, dtypes[i]);
                load_tensors(which, &t, says);
            }
            t.entry[k] = saved;
            sprintf(says, "%s has another shape than config.json says", saved.name);
            if (sscanf(saved.shape, "%d,%d", &rows, &cols) == 2 && rows != cols) {
                sprintf(t.entry[k].shape, "%d,%d", cols, rows);        /* transposed */
                load_tensors(which, &t, says);
            }
            sprintf(t.entry[k].shape, "%s,1", saved.shape);            /* another dimension */
            load_tensors(which, &t, says);
            strcpy(t.entry[k].shape, "");
            load_tensors(which, &t, says);
            t.entry[k] = saved;
        }
        free(t.data);
    }
    test_context = "";
}

/* Any part of a description may be missing, or come twice, or be of another kind. */
static void parts_of_a_description(void) {
    static const char *const parts[3] = { "\"dtype\":\"F32\"", "\"shape\":[3,2]",
                                          "\"data_offsets\":[0,24]" };
    static const char *const odd[] = {
        "null", "[]", "{}", "\"F32\"", "5",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[0]}",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[0,24,24]}",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[24,0]}",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[0,0]}",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[[0],[24]]}",
        "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":\"0,24\"}",
        "{\"dtype\":[\"F32\"],\"shape\":[3,2],\"data_offsets\":[0,24]}",
        "{\"dtype\":\"F32\",\"shape\":3,\"data_offsets\":[0,24]}",
        "{\"dtype\":\"F32\",\"shape\":[3,\"2\"],\"data_offsets\":[0,24]}",
        " { \"shape\" : [ 3 , 2 ] , \"data_offsets\" : [ 0 , 24 ] , \"dtype\" : \"F32\" } " };
    tensors t = list_tensors(1, 0, 1, 0);
    for (int i = -6; i < (int)(sizeof odd / sizeof *odd); i++) {
        int missing = i + 6, twice = i + 3;             /* one of the parts, or none */
        char description[300] = "{", says[200];
        sprintf(says, "%s %s", t.entry[0].name, i < 0 ? "must have one dtype, shape" : "");
        for (int k = 0; k < 3; k++) {
            const char *comma = description[1] ? "," : "";
            if (k == missing) continue;
            sprintf(description + strlen(description), "%s%s", comma, parts[k]);
            if (k == twice) sprintf(description + strlen(description), ",%s", parts[k]);
        }
        strcat(description, "}");
        t.instead = test_context = i < 0 ? description : odd[i];
        load_tensors(MODEL, &t, t.instead[0] == ' ' ? LOADS : says);
    }
    free(t.data);
    test_context = "";
}

/* ---- Where tensors lie. */

static void shift(entry *e, int by) {
    sprintf(e->begin, "%d", atoi(e->begin) + by);
    sprintf(e->end, "%d", atoi(e->end) + by);
}

/* A file in which the bytes of entry i are left out, and the others close up. */
static tensors without_bytes_of(const tensors *t, int i) {
    tensors less = *t;
    int begin = atoi(t->entry[i].begin), end = atoi(t->entry[i].end);
    less.size -= (size_t)(end - begin);
    for (int k = 0; k < t->n; k++)
        if (atoi(t->entry[k].begin) > begin) shift(&less.entry[k], begin - end);
    return less;
}

static void places(void) {
    tensors t = list_tensors(1, 0, 1, 0), moved;
    unsigned char *data = t.data;
    t.data = (unsigned char *)small_array(t.size + 8);
    memcpy(t.data, data, t.size);
    for (int i = 0; i < t.n / 2; i++) {                 /* in any order */
        entry other = t.entry[i];
        t.entry[i] = t.entry[t.n - 1 - i], t.entry[t.n - 1 - i] = other;
    }
    load_tensors(MODEL, &t, LOADS);
    for (int i = 0; i < t.n; i++) {
        static const char overlaps[] = "overlaps the one before it, or leaves a hole there";
        entry saved = t.entry[i];
        char says[200];
        test_context = saved.name;
        for (int by = -8; by <= 8; by += 4) {           /* over its neighbours, or past the ends */
            shift(&t.entry[i], by);
            load_tensors(MODEL, &t, by ? REFUSED : LOADS);
            t.entry[i] = saved;
        }
        for (int k = 0; k < t.n; k++) {                 /* in each other's places, or in the same */
            entry other = t.entry[k];
            if (k == i || strcmp(saved.shape, other.shape)) continue;
            strcpy(t.entry[i].begin, other.begin), strcpy(t.entry[i].end, other.end);
            load_tensors(MODEL, &t, overlaps);
            strcpy(t.entry[k].begin, saved.begin), strcpy(t.entry[k].end, saved.end);
            load_tensors(MODEL, &t, LOADS);
            t.entry[i] = saved, t.entry[k] = other;
            moved = without_bytes_of(&t, i);            /* in the same, and nothing is left over */
            strcpy(moved.entry[i].begin, moved.entry[k].begin);
            strcpy(moved.entry[i].end, moved.entry[k].end);
            load_tensors(MODEL, &moved, overlaps);
        }
        moved = without_bytes_of(&t, i);                /* left out, and nobody else moved in */
        moved.entry[i] = moved.entry[--moved.n];
        sprintf(says, "%s is missing", saved.name);
        load_tensors(MODEL, &moved, says);
        moved = t;
        moved.size += 4;                                /* a hole after the last, and before it */
        load_tensors(MODEL, &moved, "the last tensor does not end where the file does");
        for (int k = 0; k < t.n; k++)
            if (atoi(t.entry[k].begin) >= atoi(saved.begin)) shift(&moved.entry[k], 4);
        sprintf(says, "%s %s", saved.name, overlaps);
        load_tensors(MODEL, &moved, says);
    }
    free(t.data), free(data);
    test_context = "";
}

/* ---- Text: depth, length, characters. */

static char *repeated(const char *text, size_t times, const char *end, size_t times_end) {
    size_t n = strlen(text), n_end = strlen(end);
    char *all = (char *)small_array(n * times + n_end * times_end + 1);
    for (size_t i = 0; i < times; i++) memcpy(all + i * n, text, n);
    for (size_t i = 0; i < times_end; i++) memcpy(all + n * times + i * n_end, end, n_end);
    return all;
}

/* config.json may have 1 MB, of which the rest of it takes less than 1,000 bytes. */
static const char *fits_config(const char *member, const char *right) {
    return strlen(member) < (1 << 20) - 1000 ? right : "bytes is too long";
}

/* A member that nobody reads, in config.json, the index, and at three places of a header. */
static void load_with_member(const char *member, const char *right) {
    char *text = (char *)small_array(strlen(member) + 10000);
    const file *rest = &good[HALF].file[FIRST];
    int n;
    load_with(MODEL, CONFIG, config_with(member), fits_config(member, right));
    n = sprintf(text, "{%s,\"weight_map\":{\"x\":\"model-00001-of-00002.safetensors\","
                "\"y\":\"model-00002-of-00002.safetensors\"}}", member);
    load_with(SHARDS, INDEX, make_file("model.safetensors.index.json", text, (size_t)n), right);
    for (int place = 0; place < 3; place++) {           /* as a tensor, it is one too many */
        char *header = (char *)rest->data + 8, *at = header + 1;
        if (place > 0) at = strstr(header, place == 1 ? "\"format\"" : "\"dtype\"");
        n = sprintf(text, "%.*s%s,%.*s", (int)(at - header), header, member,
                    (int)(header + rest->text - 8 - at), at);
        load_with(HALF, FIRST, tensor_file("model.safetensors", text, (size_t)n,
                                           rest->data + rest->text, rest->size - rest->text),
                  place || right == NOT_JSON ? right
                  : right == LOADS ? "is not a tensor of this model" : REFUSED);
    }
    free(text);
}

static void depth(void) {
    static const char *const nest[3][3] = { { "[", "", "]" }, { "{\"a\":", "1", "}" },
                                            { "[{\"a\":", "[]", "}]" } };
    for (int kind = 0; kind < 3; kind++)
        for (int n = 1; n <= 100000; n += n < 40 ? 1 : n) {
            char *open = repeated(nest[kind][0], (size_t)n, "", 0), where[60];
            char *close = repeated(nest[kind][2], (size_t)n, "", 0);
            char *member = (char *)small_array(strlen(open) + strlen(close) + 100);
            sprintf(where, "(%d deep, of kind %d)", n, kind);
            test_context = where;
            sprintf(member, "\"deep\":%s%s%s", open, nest[kind][1], close);
            load_with_member(member, n <= 14 ? LOADS : n > 100 ? NOT_JSON : EITHER);
            sprintf(member, "\"deep\":%s", open);
            load_with_member(member, NOT_JSON);
            free(open), free(close), free(member);
        }
    test_context = "";
}

static void counts(void) {
    size_t most = full ? 1000000 : 10000, at_once = memory_most;
    char *list = repeated("1,", most, "1", 1), *digits = repeated("1", most, "", 0);
    char *names = repeated("\"a\":0,", most, "\"b\":0", 1);
    char *text = (char *)small_array(10 * most + 100);
    tensors t;
    memory_most = (size_t)1 << 26;
    sprintf(text, "\"list\":[%s]", list);
    load_with_member(text, LOADS);
    sprintf(text, "\"object\":{%s}", names);
    load_with_member(text, LOADS);
    sprintf(text, "\"digits\":%s", digits);
    load_with_member(text, LOADS);
    sprintf(text, "\"%s\":\"%s\"", digits, digits);
    load_with_member(text, LOADS);
    load_with_member(names, LOADS);
    test_context = "(a long list where a short one belongs)";
    for (int i = 0; i < 4; i++) {
        static const char *const keys[4] = { "vocab", "expert_sizes", "hidden_size", "lb_coef" };
        sprintf(text, "[%s]", list);
        set(keys[i], i < 2 ? text : digits);
        load_config(fits_config(i < 2 ? text : digits, keys[i]));
        reset();
    }
    t = list_tensors(1, 0, 1, 0);
    t.instead = text;
    sprintf(text, "{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[0,24]}", list);
    load_tensors(MODEL, &t, "has another shape");
    sprintf(text, "{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[%s]}", list);
    load_tensors(MODEL, &t, "has data_offsets that do not fit");
    free(t.data);
    memory_most = at_once;
    free(list), free(digits), free(names), free(text);
}

/* Members: JSON, which loads; broken in bytes that nobody decodes; and no JSON. */
static void characters(void) {
    static const char *const members[] = {
        "\"x\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\"\":\"\"", "\"x\":\"\\u00e9\\uD83D\\uDE00\"",
        "\"x\":\"\\\\u\"", "\"x\":\"\x7f\"", "\"\xc3\xa9\":\"\xe2\x82\xac\xf0\x9f\x98\x80\"",
        "\"x\" : [ ] , \"y\":\r\n\t{ }", "\"x\":[true,false,null,-0.5e-1]",
        NULL,       /* surrogates, and what is not UTF-8 */
        "\"x\":\"\\ud800\"", "\"x\":\"\\udc00\\ud800\"", "\"x\":\"\xff\xfe\"", "\"x\":\"\xc3\"",
        "\"\x80\":0", "\"x\":\"\xed\xa0\x80\"", "\"x\":\"\xc0\x80\"",
        NULL,
        "\"x\":\"\\u12\"", "\"x\":\"\\u12g4\"", "\"x\":\"\\u\"", "\"x\":\"\\x41\"", "\"x\":\"\\\"",
        "\"x\":\"\\", "\"x\":\"a\nb\"", "\"x\":\"\x01\"", "\"x\":\"\x1f\"", "\"x\":\"\t\"",
        "\"x\":\"\\q\"", "\"x\":1;\"y\":2", "\"x\":[1;2]", "\"x\":falsy", "\"x\":[1.}", "\"x\":\"",
        "\"x", "\"x\"", "\"x\":", "\"x\":,\"y\":1", "\"x\":1,", ",\"x\":1", "\"x\":[1,]",
        "\"x\":[,1]", "\"x\":[1 2]", "\"x\":[1}", "\"x\":{\"a\":1]", "\"x\":{\"a\"}",
        "\"x\":{1:1}", "\"x\" 1", "x:1", "'x':1", "\"x\":True", "\"x\":nul", "\"x\":nulls",
        "\"x\":truefalse", "/* */\"x\":1", "\"x\":\v1", "\"x\":\xc2\xa0" "1", "\"x\":1}",
        "\"x\":1]" };
    const char *right[] = { LOADS, EITHER, NOT_JSON };
    int kind = 0;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        if (!(test_context = members[i])) kind++;
        else load_with_member(members[i], right[kind]);
}

/* Whole texts: others, a mark in front, other ends of lines, zeros. */
static void whole_texts(void) {
    static const char *const texts[] = { "", "[]", "null", "1", "\"\"", "{", "\xef\xbb\xbf{}" };
    for (int part = CONFIG; part <= INDEX; part += INDEX - CONFIG) {
        const file *f = &good[SHARDS].file[part];
        char *text = (char *)small_array(2 * f->size + 10);
        size_t n = 0;
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
            load_with(SHARDS, part, make_file(f->name, texts[i], strlen(texts[i])), NOT_JSON);
        memcpy(text, "\xef\xbb\xbf", 3);
        memcpy(text + 3, f->data, f->size);
        load_with(SHARDS, part, make_file(f->name, text, f->size + 3), NOT_JSON);
        for (size_t i = 0; i < f->size; i++) {
            if (f->data[i] == '\n') text[n++] = '\r';
            text[n++] = (char)f->data[i];
        }
        load_with(SHARDS, part, make_file(f->name, text, n), LOADS);
        for (size_t i = 0; i < f->size; i++) {          /* a zero at every place */
            memcpy(text, f->data, f->size);
            text[i] = 0;
            load_with(SHARDS, part, make_file(f->name, text, f->size),
                      part == CONFIG && i == f->size - 1 ? EITHER : NOT_JSON);
        }
        for (size_t i = 0; i < f->size; i++) text[2 * i] = (char)f->data[i], text[2 * i + 1] = 0;
        load_with(SHARDS, part, make_file(f->name, text, 2 * f->size), NOT_JSON);    /* UTF-16 */
        memset(text, 0, f->size);
        load_with(SHARDS, part, make_file(f->name, text, f->size), NOT_JSON);
        free(text);
    }
}

static void names(void) {
    tensors t = list_tensors(1, 0, 1, 0);
    entry saved = t.entry[3];
    for (int i = 0; i < 46; i++) {
        static const char *const change[] = { "%s.", " %s", "%s\\u0000", "%s\\\\", "%.5s",
                                              "%s\\\"" };
        if (i < 6) sprintf(t.entry[3].name, change[i], saved.name);
        else memset(t.entry[3].name, 'x', 84 + (size_t)i);  /* longer than the room for a name */
        test_context = t.entry[3].name;
        load_tensors(MODEL, &t, "is not a tensor of this model");
        t.entry[3] = saved;
    }
    free(t.data);
    test_context = "";
}

/* ---- Files: none, empty, a directory, lengths that cannot be; and models that are too large. */

static void no_files(void) {
    for (int which = 0; which < CHECKPOINTS; which++)
        for (int part = 0; part < FILES; part++) {
            checkpoint c = good[which];
            file saved = c.file[part];
            const char *blame = saved.name;
            if (!blame) continue;
            test_context = blame;
            if (part == INDEX) blame = "model.safetensors";            /* which is tried first */
            c.file[part].name = NULL;
            load(&c, NO_FILE, 1, blame);
            c.file[part].name = saved.name, c.file[part].data = NULL;  /* a directory */
            load(&c, NO_FILE, 1, saved.name);
            c.file[part].data = saved.data, c.file[part].size = 0;     /* empty */
            load(&c, REFUSED, 1, part < INDEX && part ? ".safetensors" : saved.name);
        }
}

static void lengths(void) {
    for (int which = 0; which < CHECKPOINTS; which++) {
        file *f = &good[which].file[FIRST];
        unsigned char saved[8];
        uint64_t right = f->text - 8;
        memcpy(saved, f->data, 8);
        for (int i = 0; i < 64 * 5 + 20; i++) {         /* 2^n - 2 .. 2^n + 2, and near the sizes */
            uint64_t length = i < 320 ? ((uint64_t)1 << (i / 5)) + (uint64_t)(i % 5) - 2
                              : i < 330 ? f->size + (uint64_t)i - 325 : right + (uint64_t)i - 335;
            char where[60];
            for (int k = 0; k < 8; k++) f->data[k] = (unsigned char)(length >> (8 * k));
            sprintf(where, "(%.0f, in place of %.0f)", (double)length, (double)right);
            test_context = where;
            if (length != right && f->data[length + 8 < f->size ? length + 7 : 8] != ' ')
                load(&good[which], length > f->size - 8 ? "the header's length is invalid"
                                                        : REFUSED, 1, f->name);
            memcpy(f->data, saved, 8);
        }
    }
    test_context = "";
}

/* Billions of parameters beside files of a few kilobytes; and models that are another one only in
   their widths. */
static void other_models(void) {
    static const char *const cases[][3] = {
        { "hidden_size", "1048576", "config.json describes a model of more than" },
        { "vocab_size", "1048576", "config.json describes a model of more than" },
        { "num_hidden_layers", "1024", "config.json describes a model of more than" },
        { "num_hidden_layers", "100", "config.json describes a model of more than" },
        { "num_hidden_layers", "2", "" }, { "hidden_size", "4", "config.json" },
        { "expert_sizes", "[2,1]", "has another shape than config.json says" },
        { "expert_sizes", "[2,2]", "config.json" }, { "noisy_gating", "false", "is not a tensor" },
        { "expert_sizes", "[0,2]", "experts.0.w1.weight" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int which = 0; which < CHECKPOINTS; which++) {
            checkpoint c = good[which];
            set(cases[i][0], cases[i][1]), set("vocab", NULL);
            c.file[CONFIG] = config_with("");
            test_context = cases[i][1];
            load(&c, cases[i][2], 0, ".safetensors");
            free(c.file[CONFIG].data);
            reset();
        }
}

/* 256 experts of one unit in 1024 layers: 16 MB of weights, but a million tensors, whose names
   alone are larger. */
static void more_tensors_than_names(void) {
    char *list = repeated("[1", 1, ",1", 255), *widths = repeated(list, 1, "]", 1);
    set("num_local_experts", "256"), set("expert_sizes", widths), set("intermediate_size", "1");
    set("num_hidden_layers", "1024");
    for (int which = 0; which < CHECKPOINTS; which++) {
        checkpoint c = good[which];
        file *f = &c.file[FIRST];
        c.file[CONFIG] = config_with("");
        f->data = (unsigned char *)small_array(f->size = 1 << 24);
        memcpy(f->data, good[which].file[FIRST].data, f->text);
        load(&c, "config.json describes a model of more than", 0, ".safetensors");
        free(c.file[CONFIG].data), free(f->data);
    }
    reset();
    free(list), free(widths);
}

/* ---- Shards, and their index. */

static void load_index(const char *text, const char *right, const char *blame) {
    checkpoint c = good[SHARDS];
    c.file[INDEX] = make_file("model.safetensors.index.json", text, strlen(text));
    test_context = text;
    load(&c, right, 1, blame);
    free(c.file[INDEX].data);
    test_context = "";
}

static char long_file[300];

/* Names of a file: such that are there, beside the second; not there; what is no JSON; and what
   names no file of the directory. */
static void indices(void) {
    static const char names[] = "weight_map must name files of this directory, such as "
                                "model-00001-of-00002.safetensors",
                      missing[] = "config.json describes";
    static const char *const cases[] = {
        "model-00001-of-00002.safetensors", "model\\u002d00001-of-00002.safetensors",
        NULL,
        "model-00002-of-00002.safetensors",
        NULL,
        "model-00001-of-00001.safetensors", "weights of two.safetensors", "x.safetensors",
        "model-00001-of-99999.safetensors", "-.safetensors", "%s%n.safetensors",
        "\xc3\xa9.safetensors",
        NULL,
        "model-\",  00002",
        NULL,
        "model-00001-of-00002.safetensors2", "model-00001-of-00002.safetensors\\n",
        "model-00001-of-00002.safetensor", "/model-00001-of-00002.safetensors",
        "./model-00001-of-00002.safetensors", "../model-00001-of-00002.safetensors",
        "a/model-00001-of-00002.safetensors", "a\\/model-00001-of-00002.safetensors",
        "\\u002e\\u002e\\u002fmodel-00001-of-00002.safetensors", "..\\\\model.safetensors",
        "c:model-00001-of-00002.safetensors", ".model-00001-of-00002.safetensors",
        "model-\",\"b\":\"-00002.safetensors", "model-\",\"bbb\":\"00002", "a\\u0000.safetensors",
        "model-00001-of-00002.bin", "model-00001-of-00002", "model-1-of-2", ".safetensors",
        "x.SAFETENSORS", "", long_file };
    const char *right[] = { LOADS, missing, NO_FILE, NOT_JSON, names };
    static const char *const texts[][2] = {
        { "{}", "weight_map is missing" }, { "{\"weight_map\":null}", names },
        { "{\"weight_map\":[]}", names }, { "{\"weight_map\":{}}", names },
        { "{\"weight_map\":\"model-00001-of-00002.safetensors\"}", names },
        { "{\"weight_map\":[\"model-00001-of-00002.safetensors\"]}", names },
        { "{\"weight_map\":{\"a\":5}}", names }, { "{\"weight_map\":{\"a\":null}}", names },
        { "{\"weight_map\":{\"a\":{}}}", names }, { "{\"weight_map\":{},\"weight_map\":{}}",
          "weight_map comes twice" },
        { "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\",\"b\":5}}", names } };
    checkpoint c = good[SHARDS];
    int kind = 0;
    memset(long_file, 'x', 256);
    strcpy(long_file + 256, ".safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[600];
        if (!cases[i]) { kind++; continue; }
        for (int last = 0; last < 2; last++) {
            sprintf(text, "{\"weight_map\":{\"a\":\"%s\",\"b\":\"%s\",\"c\":\"%s\"}}",
                    last ? "model-00002-of-00002.safetensors" : cases[i],
                    "model-00002-of-00002.safetensors",
                    last ? cases[i] : "model-00002-of-00002.safetensors");
            load_index(text, right[kind], right[kind] == NO_FILE ? cases[i]
                       : right[kind] == missing ? ".safetensors" : ".index.json");
        }
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        load_index(texts[i][0], texts[i][1], ".index.json");
    c.file[THIRD] = make_file("model.safetensors", "is read first", 13);
    load(&c, REFUSED, 1, "/model.safetensors: ");
    free(c.file[THIRD].data);
}

/* The model in n files, of which one may be left out (-1: none). */
static checkpoint cut_model(int n, int without) {
    static char name[3][40], text[200];
    checkpoint c = good[SHARDS];
    int at = 0;
    for (int i = 0; i < 3; i++) {
        sprintf(name[i], "model-%05d-of-%05d.safetensors", i + 1, n);
        if (i < n) at += sprintf(text + at, "%s\"%d\":\"%s\"", i ? "," : "{\"weight_map\":{", i,
                                 name[i]);
        c.file[FIRST + i] = shard(name[i], (size_t)i, (size_t)n);
        if (i >= n || i == without) c.file[FIRST + i].name = NULL;
    }
    strcpy(text + at, "}}");
    c.file[INDEX] = make_file("model.safetensors.index.json", text, strlen(text));
    return c;
}

static void free_cut(checkpoint *c) {
    for (int i = FIRST; i <= INDEX; i++) free(c->file[i].data);
}

/* Any cut will do; and each thing that can be wrong with the second file of three. */
static void cuts(void) {
    static const char second[] = "model-00002-of-00003.safetensors";
    char missing[HMOE_NAME_SIZE + 20];
    const struct { size_t from; const char *dtype, *says; } cases[] = {
        { 0, "F32", "comes twice" }, { 4, "F32", missing }, { 1000, "F32", missing },
        { 1, "F64", "must be F32, F16 or BF16" }, { 1, "BF16", "has data_offsets that" } };
    checkpoint c;
    for (int n = 1; n <= 3; n++) {
        c = cut_model(n, -1);
        load(&c, LOADS, 1, "");
        free_cut(&c);
    }
    c = cut_model(3, 1);
    load(&c, NO_FILE, 1, second);
    sprintf(missing, "%s is missing", model.tensors[1].name);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tensors t = list_tensors(1, cases[i].from, 3, 0);
        free(c.file[SECOND].data);
        strcpy(t.entry[0].dtype, cases[i].dtype);
        c.file[SECOND] = write_tensors(second, &t);
        test_context = cases[i].says;
        load(&c, cases[i].says, 1, cases[i].says == missing ? "model-00003" : second);
        free(t.data);
    }
    free_cut(&c);
    test_context = "";
}

/* ---- Mixtrals of others: keys and tensors that ours do not have, or that ours must have. */

/* A config.json with the keys that nobody leaves out; more follows. The rest is what transformers
   takes for a key that is missing. */
static char foreign_config[] =
    "{\"model_type\":\"mixtral\",\"hidden_size\":2,\"num_hidden_layers\":2,\"vocab_size\":3,"
    "\"num_attention_heads\":1,\"num_key_value_heads\":1,\"intermediate_size\":2";
static hmoe_model before;          /* the model of the other tests */

static void begin_foreign(void) {
    hmoe_config c = hmoe_default_config();
    c.V = 3, c.T = 2, c.C = 2, c.L = 2, c.NH = 1, c.E = 8, c.K = 2;
    for (int e = 0; e < 8; e++) c.H[e] = 2;
    before = model;
    small_create(&model, &c, 1);
    spread_weights(&model, 0.4, 0.6);
}

static void end_foreign(void) {
    memory_clear();
    hmoe_free(&model);
    model = before;
    CHECK(memory_live == model_bytes && memory_open == 0);
    test_context = "";
}

/* Loads the tensors with this config.json. `says`: why not. NULL: it loads, and has the weights of
   `model`, or its embedding as the output matrix too. */
static hmoe_config load_foreign(const char *more, const tensors *t, const char *says, int tied,
                                hmoe_status (*how)(hmoe_model *, const char *, int)) {
    static char config[1000];
    file weights = write_tensors("model.safetensors", t);
    hmoe_status status;
    hmoe_config c;
    hmoe_model m;
    size_t live = memory_live;
    snprintf(config, sizeof config, "%s%s}", foreign_config, more);
    memory_clear();
    memory_put("config.json", (unsigned char *)config, strlen(config));
    memory_put("model.safetensors", weights.data, weights.size);
    memset(&m, 0, sizeof m);
    test_context = more;
    status = how(&m, "", 0);
    c = m.config;
    if (says) {
        CHECK_INT(status, HMOE_BAD_FILE);
        if (!CHECK(strstr(m.message, says) != NULL)) printf("   said: %s\n", m.message);
        CHECK(memory_message_is_good(&m, status) && small_is_gone(&m));
    } else if (CHECK_INT(status, HMOE_OK)) {
        size_t head = m.head * sizeof *m.params;
        CHECK(!memcmp(m.params, model.params, head));
        CHECK(!memcmp(m.params + m.head, model.params + (tied ? 0 : m.head),
                      3 * 2 * sizeof(float)));
    } else printf("   said: %s\n", m.message);
    hmoe_free(&m);
    CHECK(memory_live == live && memory_open == 0);
    free(weights.data);
    return c;
}

static hmoe_status load_strictly(hmoe_model *m, const char *dir, int max_B) {
    return hmoe_load(m, dir, max_B, 0);
}

static void foreign_configs(void) {
    static const char *const needed[] = { "model_type", "hidden_size", "num_hidden_layers",
        "vocab_size", "num_attention_heads", "intermediate_size" };
    char *kv = strstr(foreign_config, "num_key_value_heads");
    hmoe_config c;
    tensors t;
    begin_foreign();
    t = list_tensors(1, 0, 1, 0);
    c = load_foreign("", &t, NULL, 0, hmoe_load_mixtral);
    CHECK(c.E == 8 && c.K == 2 && c.T == 131072 && c.rope_theta == 1e6 && c.rms_norm_eps == 1e-5);
    CHECK(c.routing == HMOE_TOP_K && c.gate == HMOE_GATE_NORM && c.vocab_size == 0 && c.H[7] == 2);
    c = load_foreign(",\"rms_norm_eps\":0.125,\"rope_theta\":500.5,\"max_position_embeddings\":7,"
                     "\"num_experts_per_tok\":3,\"num_local_experts\":8", &t, NULL, 0,
                     hmoe_load_mixtral);
    CHECK(c.K == 3 && c.T == 7 && c.rope_theta == 500.5 && c.rms_norm_eps == 0.125);
    c = load_foreign(",\"rope_parameters\":{\"rope_theta\":77}", &t, NULL, 0, hmoe_load_mixtral);
    CHECK(c.rope_theta == 77);
    load_foreign(",\"num_local_experts\":7", &t, "another shape", 0, hmoe_load_mixtral);
    load_foreign(",\"rms_norm_eps\":null", &t, "rms_norm_eps must be a number", 0,
                 hmoe_load_mixtral);
    load_foreign(",\"hidden\\u005fact\":\"\\u0073ilu\",\"\\/\":\"\\/\"", &t, NULL, 0,
                 hmoe_load_mixtral);
    load_foreign(",\"hidden\\u005fact\":\"gelu\"", &t, "hidden_act has a value", 0,
                 hmoe_load_mixtral);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        char says[60], *at = strstr(foreign_config, needed[i]), was = *at;
        sprintf(says, "%s is missing", needed[i]);
        *at = 'X';
        load_foreign("", &t, says, 0, hmoe_load_mixtral);
        *at = was;
    }
    *kv = 'X';                                     /* as many as heads; 8 if there is no such key */
    load_foreign(",\"num_key_value_heads\":null", &t, NULL, 0, hmoe_load_mixtral);
    load_foreign("", &t, "num_key_value_heads must divide", 0, hmoe_load_mixtral);
    *kv = 'n';
    free(t.data);
    end_foreign();
}

/* lm_head.weight is the last tensor. */
static void tied_embeddings(void) {
    static const char tied[] = ",\"tie_word_embeddings\":true";
    tensors t, less;
    begin_foreign();
    t = list_tensors(1, 0, 1, 0);
    less = list_tensors(1, 0, 1, 0);
    less.n--, less.size -= 3 * 2 * sizeof(float);
    load_foreign(tied, &less, NULL, 1, hmoe_load_mixtral);
    load_foreign(tied, &t, NULL, 1, hmoe_load_mixtral);        /* it is there, and not used */
    load_foreign("", &less, "lm_head.weight is missing", 0, hmoe_load_mixtral);
    load_foreign(",\"tie_word_embeddings\":false", &less, "lm_head.weight is missing", 0,
                 hmoe_load_mixtral);
    load_foreign(tied, &less, "lm_head.weight is missing", 1, load_strictly);
    load_foreign(",\"tie_word_embeddings\":1", &less, "tie_word_embeddings has a value", 1,
                 hmoe_load_mixtral);
    strcpy(less.entry[0].name, "rotary_emb.inv_freq");
    load_foreign(tied, &less, "model.embed_tokens.weight is missing", 1, hmoe_load_mixtral);
    free(t.data), free(less.data);
    end_foreign();
}

/* A tensor more, at every place of the file. */
static void tensors_that_do_not_matter(void) {
    static const struct { const char *name, *dtype, *shape, *says; int bytes; } more[] = {
        { "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", "1", NULL, 4 },
        { "rotary_emb.inv_freq", "I64", "1", NULL, 8 },
        { "model.rotary\\u005femb.inv_freq", "F8_E4M3", "0", NULL, 0 },
        { "x.rotary_emb.inv_freq2", "F32", "1", "is not a tensor of this model", 4 },
        { "x.rotary_emb.inv_fre", "F32", "1", "is not a tensor of this model", 4 },
        { "inv_freq", "F32", "1", "is not a tensor of this model", 4 },
        { "rotary_emb.inv_freq", "F32", "2", "the last tensor does not end where the file", 8 },
        { "rotary_emb.inv_freq", "F32", "0", "or leaves a hole there", 0 } };
    begin_foreign();
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        for (int place = 0; place < 8; place++) {
            tensors t = list_tensors(1, 0, 1, 0);
            entry *e = &t.entry[t.n];
            int where = place == 7 ? t.n : place, at, bytes = more[i].bytes;
            unsigned char *data;
            at = where == t.n ? (int)t.size : atoi(t.entry[where].begin);
            if (i == 7) bytes = 4;                     /* more room than it says */
            if (i == 6) bytes = 4;                     /* less */
            for (int k = where; k < t.n; k++) {
                sprintf(t.entry[k].begin, "%d", atoi(t.entry[k].begin) + bytes);
                sprintf(t.entry[k].end, "%d", atoi(t.entry[k].end) + bytes);
            }
            strcpy(e->name, more[i].name), strcpy(e->dtype, more[i].dtype);
            strcpy(e->shape, more[i].shape);
            sprintf(e->begin, "%d", at), sprintf(e->end, "%d", at + more[i].bytes);
            data = (unsigned char *)small_array(t.size + (size_t)bytes);
            memcpy(data, t.data, (size_t)at);
            memcpy(data + at + bytes, t.data + at, t.size - (size_t)at);
            free(t.data);
            t.data = data, t.size += (size_t)bytes, t.n++;
            if (!(i >= 6 && where == t.n - 1))         /* there other things are wrong */
                load_foreign("", &t, more[i].says, 0, hmoe_load_mixtral);
            if (!more[i].says) load_foreign("", &t, "is not a tensor", 0, load_strictly);
            strcpy(e->end, "99999999");
            load_foreign("", &t, i < 3 || i > 5 ? "has data_offsets that do not fit"
                                                : more[i].says, 0, hmoe_load_mixtral);
            free(data);
        }
    end_foreign();
}

/* Every name of a tensor, escaped; and types of numbers, with what they are. */
static void names_and_types(void) {
    static const char few[] = "has floats of 8 bits or fewer: dequantise the model first, to F32, "
        "F16 or BF16", whole[] = "has integers, as in a quantised model: dequantise it first",
        other[] = "must be F32, F16 or BF16";
    static const char *const types[][2] = {
        { "F8_E4M3", few }, { "F8_E5M2", few }, { "F8_E8M0", few }, { "F4", few },
        { "F6_E2M3", few }, { "I8", whole }, { "I32", whole }, { "I64", whole }, { "U8", whole },
        { "U16", whole }, { "F64", other }, { "BOOL", other }, { "C64", other }, { "", other },
        { "F", other }, { "F32 ", other } };
    tensors t;
    begin_foreign();
    t = list_tensors(1, 0, 1, 0);
    for (int i = 0; i < t.n; i++) {
        entry saved = t.entry[i];
        char says[300], *dot = strchr(saved.name, '.');
        sprintf(t.entry[i].name, "%.*s\\u002e%s", (int)(dot - saved.name), saved.name, dot + 1);
        load_foreign("", &t, NULL, 0, hmoe_load_mixtral);
        strcpy(t.entry[i].name, saved.name), strcpy(t.entry[i].dtype, "\\u0046\\u00332");
        load_foreign("", &t, NULL, 0, hmoe_load_mixtral);
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            strcpy(t.entry[i].dtype, types[k][0]);
            sprintf(says, "%s %s", saved.name, types[k][1]);
            load_foreign("", &t, says, 0, hmoe_load_mixtral);
        }
        t.entry[i] = saved;
    }
    free(t.data);
    end_foreign();
}

int main(void) {
    const char *wanted = getenv("FULL");
    full = wanted && *wanted == '1';
    threads(1);
    make_checkpoints();
    read_pairs();
    TEST(intact);
    TEST(starved);
    TEST(truncated);
    TEST(followed_by_more);
    TEST(flipped);
    TEST(numbers_in_config);
    TEST(values_in_config);
    TEST(long_contexts);
    TEST(numbers_in_headers);
    TEST(numbers_in_metadata);
    TEST(half_precision);
    TEST(states);
    TEST(numbers_of_a_run);
    TEST(members_of_config);
    TEST(members_of_headers);
    TEST(parts_of_a_description);
    TEST(places);
    TEST(depth);
    TEST(counts);
    TEST(characters);
    TEST(whole_texts);
    TEST(names);
    TEST(no_files);
    TEST(lengths);
    TEST(other_models);
    TEST(more_tensors_than_names);
    TEST(indices);
    TEST(cuts);
    TEST(foreign_configs);
    TEST(tied_embeddings);
    TEST(tensors_that_do_not_matter);
    TEST(names_and_types);
    return test_summary("damaged");
}

#endif
