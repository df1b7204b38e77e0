/* Files that were damaged, or made to harm, one change at a time: each loads, and is then exactly
   what its text says, or is refused with a message that names it. Nothing leaks, and nothing is
   allocated that the files do not justify. FULL=1 flips every bit (of a run's header, which is
   long, every second one) and counts to millions. */

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

enum { CONFIG, FIRST, SECOND, INDEX, FILES };
typedef struct checkpoint {
    const char *what;
    int training;
    file file[FILES];               /* name NULL: none */
} checkpoint;

enum { MODEL, RUN, HALF, SHARDS, CHECKPOINTS };
static checkpoint good[CHECKPOINTS];
static hmoe_model model;            /* what is in them, */
static size_t model_bytes;          /*   and what it takes */

/* A description of a tensor, in parts that can be exchanged. */
typedef struct entry {
    char name[120], dtype[16], shape[40], begin[40], end[40];
} entry;

typedef struct tensors {
    const char *metadata;
    int n;
    entry entry[64];
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
    char *header = (char *)small_array(400 * (size_t)t->n + 1000);
    int n = sprintf(header, "{\"__metadata__\":{%s}", t->metadata);
    file f;
    for (int i = 0; i < t->n; i++) {
        const entry *e = &t->entry[i];
        n += sprintf(header + n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                     "\"data_offsets\":[%s,%s]}", e->name, e->dtype, e->shape, e->begin, e->end);
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
    static const char index[] = "{\"weight_map\": {\"x\": \"model-00001-of-00002.safetensors\"}}";
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
    model.seed = 12345, model.step = 7, model.tokens = 99, model.optimizer = 1;
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
    good[SHARDS].what = "shards";
    good[SHARDS].file[INDEX] = make_file("model.safetensors.index.json", index, sizeof index - 1);
    for (int i = 0; i < 2; i++) {
        t = list_tensors(1, (size_t)i, 2, 0);
        good[SHARDS].file[FIRST + i] = write_tensors(i ? "model-00002-of-00002.safetensors"
                                                       : "model-00001-of-00002.safetensors", &t);
        free(t.data);
    }
}

/* ---- What was loaded must be what stands in the files, read here in another way. */

/* The first `"key"` of a text, and what follows its colon; NULL: there is none. */
static const char *value_of(const char *text, const char *end, const char *key) {
    size_t n = strlen(key);
    for (; text + n + 3 < end; text++)
        if (*text == '"' && !memcmp(text + 1, key, n) && text[n + 1] == '"') {
            for (text += n + 2; text < end && strchr(" \r\n\t", *text);) text++;
            if (text < end && *text == ':')
                for (text++; text < end && strchr(" \r\n\t\"", *text);) text++;
            return text;
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
        { "num_key_value_heads", c->NH }, { "num_local_experts", c->E },
        { "num_experts_per_tok", c->K }, { "vocab_size", c->V }, { "intermediate_size", 2 },
        { "max_position_embeddings", c->T }, { "rms_norm_eps", c->rms_norm_eps },
        { "rope_theta", c->rope_theta }, { "top_p", c->top_p }, { "lb_coef", c->loss_coef[HMOE_LB] },
        { "pp_coef", c->loss_coef[HMOE_PP] }, { "ent_coef", c->loss_coef[HMOE_ENT] }, { "z_coef", c->loss_coef[HMOE_Z] } };
    const char *vocab = value_of((const char *)f->data, (const char *)f->data + f->size, "vocab");
    char *comma;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!CHECK(number_of(f, keys[i].key) == keys[i].loaded))
            printf("   %s: read as %.17g\n", keys[i].key, keys[i].loaded);
    CHECK(c->H[0] == 1 && c->H[1] == 2 && c->noisy_gating == 1);
    CHECK(c->routing == HMOE_TOP_K && c->gate == HMOE_GATE_NORM);
    CHECK_INT(c->vocab_size, vocab ? 3 : 0);
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
    for (; !at && f <= &c->file[SECOND] && f->name; f++)
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
                      : isnan(right) ? isnan(loaded[k]) : (double)loaded[k] == right) continue;
        printf("%s\n", name);
        CHECK(size == 4 ? !memcmp(&bits, from, 4) : (double)loaded[k] == right);
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
    }
    if (m->max_tokens == 0) return;
    status = hmoe_forward(m, HMOE_EVALUATE, tokens, tokens, 1, m->config.T < 2 ? 1 : 2);
    CHECK(status == HMOE_OK || status == HMOE_NOT_FINITE);
}

/* ---- Loading: with what should come of it, and which file is to blame. */

enum { REFUSED, LOADS, EITHER };

static hmoe_status load(const checkpoint *c, int right, int max_B, const char *blame) {
    double files = 0;
    hmoe_status status;
    hmoe_model m;
    memset(&m, 0, sizeof m);
    memory_clear();
    for (int i = 0; i < FILES; i++)
        if (c->file[i].name) {
            memory_put(c->file[i].name, c->file[i].data, c->file[i].size);
            files += c->file[i].data ? (double)c->file[i].size : 0;
        }
    memory_peak = memory_live;
    status = c->training ? hmoe_load(&m, "", max_B, 1) : hmoe_load_mixtral(&m, "", max_B);
    if ((memory_peak - model_bytes) > 1 << 19)
        CHECK((double)(memory_peak - model_bytes) <= memory_justified(files, max_B, c->training));
    if (status == HMOE_OK) {
        CHECK(right != REFUSED);
        check_loaded(&m, c);
    } else {
        int ok = CHECK(right != LOADS);
        ok &= CHECK(status == HMOE_BAD_FILE || status == HMOE_IO);
        ok &= CHECK(memory_message_is_good(&m, status) && strstr(m.message, blame));
        if (!ok && test_bad_checks <= TEST_MAX_PRINTED)
            printf("   said: %s\n   and should name %s\n", m.message, blame);
        CHECK(memory_live == model_bytes);
    }
    hmoe_free(&m);
    CHECK(memory_live == model_bytes && memory_open == 0);
    return status;
}

/* The same with one file exchanged, which is freed. */
static hmoe_status load_with(int which, int part, file changed, int right) {
    checkpoint c = good[which];
    const char *blame = changed.name;
    hmoe_status status;
    c.file[part] = changed;
    if (right == EITHER || which == SHARDS) blame = ".";               /* shards: their sum */
    status = load(&c, right, 1, blame);
    free(changed.data);
    return status;
}

static void intact(void) {
    for (int i = 0; i < CHECKPOINTS; i++) {
        test_context = good[i].what;
        CHECK_INT(load(&good[i], LOADS, 1, ""), HMOE_OK);
        CHECK_INT(load(&good[i], LOADS, 0, ""), HMOE_OK);
    }
}

/* ---- Bytes: cut off, added, flipped. */

static void truncated(void) {
    for (int which = 0; which < CHECKPOINTS; which++)
        for (int part = 0; part < FILES; part++) {
            const file *f = &good[which].file[part];
            char where[100];
            test_context = where;
            for (size_t n = 0; f->name && n < f->size; n++) {
                int newline = part == CONFIG && n == f->size - 1;      /* is all that is lost */
                file cut;
                if (!full && which != MODEL && n > 100 && n % 4) continue;
                cut = make_file(f->name, f->data, n);
                sprintf(where, "(%s of %s, the first %d bytes)", f->name, good[which].what, (int)n);
                cut.text = f->text;
                load_with(which, part, cut, newline ? LOADS : REFUSED);
                if (f->text == f->size || n < 8 || n >= f->text) continue;
                cut = tensor_file(f->name, (const char *)f->data + 8, n - 8, f->data + f->text,
                                  f->size - f->text);
                load_with(which, part, cut, part == FIRST && which < HALF && n > f->text - 8
                          && f->data[n] == ' ' ? LOADS : REFUSED);     /* the header's padding */
            }
        }
}

static void followed_by_more(void) {
    static const struct { const char *bytes; size_t n; int right; } more[] = {
        { " ", 1, LOADS },    { "\r\n\t ", 4, LOADS }, { "\0", 1, REFUSED }, { "x", 1, REFUSED },
        { "{}", 2, REFUSED }, { ",", 1, REFUSED },      { "}", 1, REFUSED },  { "//", 2, REFUSED },
        { "\n\0\n", 3, REFUSED }, { "\n{\"a\":1}", 8, REFUSED },
        { "0123456789abcdef", 16, REFUSED } };
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
                    load_with(which, part, make_file(f->name, text, f->size + more[i].n), REFUSED);
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

/* The config.json as pairs. Each stands in a line of its own. */
typedef struct pair { char key[40], value[200]; } pair;
static pair pairs[64];
static int pair_count;

static void read_pairs(void) {
    const char *at = (const char *)good[MODEL].file[CONFIG].data;
    while ((at = strstr(at, "\n  \"")) != NULL) {
        pair *p = &pairs[pair_count++];
        const char *value = strstr(at, "\": ") + 3, *end = value + strcspn(value, "\n");
        sprintf(p->key, "%.*s", (int)(value - 3 - (at + 4)), at + 4);
        sprintf(p->value, "%.*s", (int)(end - value - (end[-1] == ',')), value);
        at = value;
    }
}

/* A config.json without pair number `without` (-1: with all), and with text at its start. */
static file config_with(const char *start, int without) {
    char *text = (char *)small_array(strlen(start) + 20000);
    int n = sprintf(text, "{%s", start);
    file f;
    for (int i = 0; i < pair_count; i++)
        if (i != without)
            n += sprintf(text + n, "%s\"%s\":%s", text[n - 1] == '{' ? "" : ",", pairs[i].key,
                         pairs[i].value);
    n += sprintf(text + n, "}");
    f = make_file("config.json", text, (size_t)n);
    free(text);
    return f;
}

static pair *pair_of(const char *key) {
    for (int i = 0; i < pair_count; i++) if (!strcmp(pairs[i].key, key)) return &pairs[i];
    printf("damaged.c: config.json has no %s\n", key);
    exit(2);
}

/* format: the value, with %s where the number goes. */
static void numbers_at(const char *key, const char *format, double low, double high, int whole) {
    pair *p = pair_of(key), saved = *p;
    for (int i = 0; i < NUMBERS; i++) {
        if (whole && fits(i, 1e4, high, 1)) continue;   /* a context of a million: not here */
        if (!strcmp(format, "[%s,2]") && fits(i, 0, 0, 1)) continue;   /* a null expert: it is the
                                      weights that do not fit then, see errors.c */
        sprintf(p->value, format, numbers[i].text);
        test_context = p->value;
        load_with(MODEL, CONFIG, config_with("", -1), fits(i, low, high, whole));
    }
    *p = saved;
    test_context = "";
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
    for (int i = 0; i < NUMBERS; i++) {                  /* keys that we do not write */
        static const char *const others[] = { "unread", "sliding_window", "head_dim",
                                              "quantization_config" };
        static const double low[] = { -INFINITY, 2, 2, 1 }, high[] = { INFINITY, 1.7e308, 2, 0 };
        for (int k = 0; k < 4; k++) {
            char start[100];
            sprintf(start, "\"%s\":%s", others[k], numbers[i].text);
            test_context = start;
            load_with(MODEL, CONFIG, config_with(start, -1), fits(i, low[k], high[k], 0));
        }
    }
    test_context = "";
}

/* A context takes no weights, so no file is too small for a long one: it is allocated, or not. */
static void long_contexts(void) {
    pair *p = pair_of("max_position_embeddings"), saved = *p;
    size_t most = memory_most;
    for (int large = 0; large < 2; large++)
        for (int max_B = 0; max_B < 2; max_B++) {
            checkpoint c = good[MODEL];
            hmoe_model m;
            hmoe_status status;
            strcpy(p->value, large ? "1048576" : "65536");
            c.file[CONFIG] = config_with("", -1);
            memory_most = (size_t)1 << 26;
            memory_clear();
            for (int i = 0; i < 2; i++)
                memory_put(c.file[i].name, c.file[i].data, c.file[i].size);
            memset(&m, 0, sizeof m);
            memory_peak = memory_live;
            status = hmoe_load_mixtral(&m, "", max_B);
            CHECK_INT(status, max_B ? HMOE_OUT_OF_MEMORY : HMOE_OK);   /* T * T numbers */
            CHECK((double)(memory_peak - model_bytes) <= memory_justified(3000, max_B, 0));
            CHECK_INT(m.config.T, status ? 0 : large ? 1048576 : 65536);
            hmoe_free(&m);
            CHECK(memory_live == model_bytes);
            free(c.file[CONFIG].data);
        }
    memory_most = most;
    *p = saved;
}

/* In a header any other number would leave a hole, overlap, or have another shape. */
static void numbers_in_headers(void) {
    for (int which = MODEL; which <= RUN; which++) {
        tensors t = list_tensors(which == RUN ? 3 : 1, 0, 1, 0);
        load_with(which, FIRST, write_tensors(good[which].file[FIRST].name, &t), LOADS);
        for (int k = 0; k < t.n; k++)
            for (int place = 0; place < 4; place++)
                for (int i = 0; i < NUMBERS; i++) {
                    entry *e = &t.entry[k], saved = *e;
                    const char *text = numbers[i].text, *comma = strchr(saved.shape, ',');
                    double was = strtod(place == 0 ? e->begin : place == 1 ? e->end : place == 2
                                        ? e->shape : comma ? comma + 1 : "", NULL);
                    if (place == 3 && !comma) continue;
                    if (!full && which == RUN && (k + i) % 5) continue;
                    if (place == 0) strcpy(e->begin, text);
                    else if (place == 1) strcpy(e->end, text);
                    else if (place == 2) sprintf(e->shape, "%s%s", text, comma ? comma : "");
                    else sprintf(strchr(e->shape, ',') + 1, "%s", text);
                    test_context = text;
                    load_with(which, FIRST, write_tensors(good[which].file[FIRST].name, &t),
                              fits(i, was, was, 1));
                    *e = saved;
                }
        free(t.data);
    }
    test_context = "";
}

static void numbers_in_metadata(void) {
    static const struct { const char *key; double high; int whole; } keys[] = {
        { "step", 1e15, 1 }, { "tokens", 1e15, 1 }, { "optimizer", 1e6, 1 },
        { "flops", 1.7e308, 0 }, { "seconds", 1.7e308, 0 }, { "best_val_loss", 1.7e308, 0 },
        { "seed", 0, 1 } };
    tensors t = list_tensors(3, 0, 1, 0);
    for (int k = 0; k < 7; k++)
        for (int i = -4; i < NUMBERS; i++) {
            static const char *const strange[4] = { "\" 1\"", "\"1 \"", "1", "\"\\u0031\"" };
            char metadata[600] = "", value[40];
            int right = i >= 0 && fits(i, 0, keys[k].high, keys[k].whole);
            if (k == 6 && i >= 0) {            /* a seed is all digits, and has 64 bits */
                const char *text = numbers[i].text;
                right = !numbers[i].never && strspn(text, "0123456789") == strlen(text)
                        && (strlen(text) < 20 || strcmp(text, "18446744073709551615") <= 0);
            }
            sprintf(value, i < 0 ? "%s" : "\"%s\"", i < 0 ? strange[i + 4] : numbers[i].text);
            for (int j = 0; j < 7; j++)
                sprintf(metadata + strlen(metadata), "%s\"%s\":%s", j ? "," : "", keys[j].key,
                        j == k ? value : "\"5\"");
            t.metadata = test_context = metadata;
            load_with(RUN, FIRST, write_tensors("training.safetensors", &t), right);
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
        char start[300];
        int unread = one_of("architectures dtype torch_dtype bos_token_id eos_token_id", saved.key);
        int nullable = unread || one_of("tie_word_embeddings rope_parameters", saved.key);
        int needless = nullable || one_of("hidden_act rope_theta vocab", saved.key);
        test_context = saved.key;
        load_with(MODEL, CONFIG, config_with("", i), needless ? LOADS : REFUSED);
        sprintf(start, "\"%s\":%s", saved.key, saved.value);           /* twice the same */
        load_with(MODEL, CONFIG, config_with(start, -1), unread ? LOADS : REFUSED);
        for (size_t k = 0; k < sizeof other / sizeof *other; k++) {
            if (k == 1 && one_of("norm_topk_prob noisy_gating", saved.key)) continue;
            strcpy(pairs[i].value, other[k]);
            load_with(MODEL, CONFIG, config_with("", -1),
                      unread || (k == 0 && nullable) ? LOADS : REFUSED);
        }
        pairs[i] = saved;                       /* with an escape in it: no key of ours */
        sprintf(pairs[i].key, "%.1s\\u%04x%s", saved.key, (unsigned)saved.key[1], saved.key + 2);
        load_with(MODEL, CONFIG, config_with("", -1), needless ? LOADS : REFUSED);
        pairs[i] = saved;
    }
    test_context = "";
}

static void members_of_headers(void) {
    static const char *const dtypes[] = { "F16", "BF16", "F64", "I32", "F8_E4M3", "f32", "F3",
                                          "F322", "", "F32 ", "\\u0046" };
    for (int which = MODEL; which <= RUN; which++) {
        const char *name = good[which].file[FIRST].name;
        tensors t = list_tensors(which == RUN ? 3 : 1, 0, 1, 0);
        for (int k = 0; k < t.n; k++) {
            entry saved = t.entry[k];
            int rows = 0, cols = 0;
            test_context = saved.name;
            t.entry[k] = t.entry[--t.n];                               /* missing */
            load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            t.entry[t.n++] = t.entry[k], t.entry[k] = saved;
            t.entry[t.n++] = saved;                                    /* twice the same */
            load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            sprintf(t.entry[t.n - 1].name, "%s ", saved.name);         /* one more, of no tensor */
            load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            t.n--;
            for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
                strcpy(t.entry[k].dtype, dtypes[i]);
                load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            }
            t.entry[k] = saved;
            if (sscanf(saved.shape, "%d,%d", &rows, &cols) == 2 && rows != cols) {
                sprintf(t.entry[k].shape, "%d,%d", cols, rows);        /* transposed */
                load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            }
            sprintf(t.entry[k].shape, "%s,1", saved.shape);            /* another dimension */
            load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            strcpy(t.entry[k].shape, "");
            load_with(which, FIRST, write_tensors(name, &t), REFUSED);
            t.entry[k] = saved;
        }
        free(t.data);
    }
    test_context = "";
}

/* Any part of a description may be missing, or come twice, or be of another kind. */
static void parts_of_a_description(void) {
    static const char *const parts[3] = { "\"dtype\":\"F32\"", "\"shape\":[2]",
                                          "\"data_offsets\":[0,8]" };
    static const struct { const char *entry; int right; } odd[] = {
        { "null", REFUSED }, { "[]", REFUSED }, { "{}", REFUSED }, { "\"F32\"", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,8]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[[0],[8]]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":\"0,8\"}", REFUSED },
        { "{\"dtype\":[\"F32\"],\"shape\":[2],\"data_offsets\":[0,8]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}", REFUSED },
        { "{\"dtype\":\"F32\",\"shape\":[\"2\"],\"data_offsets\":[0,8]}", REFUSED },
        { " { \"shape\" : [ 2 ] , \"data_offsets\" : [ 0 , 8 ] , \"dtype\" : \"F32\" } ", LOADS } };
    tensors t = list_tensors(1, 0, 1, 0);
    file rest;
    for (int k = 0; k < t.n; k++)                       /* model.norm.weight comes first */
        if (!strcmp(t.entry[k].name, "model.norm.weight")) {
            size_t at = (size_t)atoi(t.entry[k].begin);
            memmove(t.data + 8, t.data, at);
            for (int i = 0; i < k; i++) {
                sprintf(t.entry[i].begin, "%d", atoi(t.entry[i].begin) + 8);
                sprintf(t.entry[i].end, "%d", atoi(t.entry[i].end) + 8);
            }
            t.entry[k] = t.entry[--t.n];
            break;
        }
    rest = write_tensors("model.safetensors", &t);
    for (int i = -18; i < (int)(sizeof odd / sizeof *odd); i++) {
        char *header = (char *)small_array(rest.text + 1000), description[300] = "{";
        int n, right = REFUSED, missing = (i + 18) % 3, twice = (i + 18) / 3 % 6;
        if (i >= 0) strcpy(description, odd[i].entry), right = odd[i].right;
        else {                                          /* twice 3 to 5: no part is */
            for (int k = 0; k < 3; k++) {
                if (k != missing || twice < 3)
                    sprintf(description + strlen(description), "%s%s",
                            description[1] ? "," : "", parts[k]);
                if (k == twice)
                    sprintf(description + strlen(description), ",%s", parts[k]);
            }
            strcat(description, "}");
        }
        n = sprintf(header, "{\"model.norm.weight\":%s,%.*s", description, (int)rest.text - 9,
                    (char *)rest.data + 9);
        test_context = description;
        load_with(MODEL, FIRST, tensor_file("model.safetensors", header, (size_t)n, t.data, t.size),
                  right);
        free(header);
    }
    free(rest.data), free(t.data);
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
    const char *name = "model.safetensors";
    unsigned char *data = t.data;
    t.data = (unsigned char *)small_array(t.size + 8);
    memcpy(t.data, data, t.size);
    for (int i = 0; i < t.n / 2; i++) {                 /* in any order */
        entry other = t.entry[i];
        t.entry[i] = t.entry[t.n - 1 - i], t.entry[t.n - 1 - i] = other;
    }
    load_with(MODEL, FIRST, write_tensors(name, &t), LOADS);
    for (int i = 0; i < t.n; i++) {
        entry saved = t.entry[i];
        test_context = saved.name;
        for (int by = -8; by <= 8; by += 4) {           /* over its neighbours, or past the ends */
            shift(&t.entry[i], by);
            load_with(MODEL, FIRST, write_tensors(name, &t), by ? REFUSED : LOADS);
            t.entry[i] = saved;
        }
        for (int k = 0; k < t.n; k++) {                 /* in each other's places, or in the same */
            entry other = t.entry[k];
            if (k == i || strcmp(saved.shape, other.shape)) continue;
            strcpy(t.entry[i].begin, other.begin), strcpy(t.entry[i].end, other.end);
            load_with(MODEL, FIRST, write_tensors(name, &t), REFUSED);
            strcpy(t.entry[k].begin, saved.begin), strcpy(t.entry[k].end, saved.end);
            load_with(MODEL, FIRST, write_tensors(name, &t), LOADS);
            t.entry[i] = saved, t.entry[k] = other;
            moved = without_bytes_of(&t, i);            /* in the same, and nothing is left over */
            strcpy(moved.entry[i].begin, moved.entry[k].begin);
            strcpy(moved.entry[i].end, moved.entry[k].end);
            load_with(MODEL, FIRST, write_tensors(name, &moved), REFUSED);
        }
        moved = without_bytes_of(&t, i);                /* left out, and nobody else moved in */
        moved.entry[i] = moved.entry[--moved.n];
        load_with(MODEL, FIRST, write_tensors(name, &moved), REFUSED);
        moved = t;
        moved.size += 4;                                /* a hole after the last, and before it */
        load_with(MODEL, FIRST, write_tensors(name, &moved), REFUSED);
        for (int k = 0; k < t.n; k++)
            if (atoi(t.entry[k].begin) >= atoi(saved.begin)) shift(&moved.entry[k], 4);
        load_with(MODEL, FIRST, write_tensors(name, &moved), REFUSED);
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
static int fits_config(const char *member, int right) {
    return strlen(member) < (1 << 20) - 1000 ? right : REFUSED;
}

/* A member that nobody reads, in config.json, the index, and at three places of a header. */
static void load_with_member(const char *member, int right) {
    char *text = (char *)small_array(strlen(member) + 10000);
    const file *rest = &good[HALF].file[FIRST];
    int n;
    load_with(MODEL, CONFIG, config_with(member, -1), fits_config(member, right));
    n = sprintf(text, "{%s,\"weight_map\":{\"x\":\"model-00001-of-00002.safetensors\"}}", member);
    load_with(SHARDS, INDEX, make_file("model.safetensors.index.json", text, (size_t)n), right);
    for (int place = 0; place < 3; place++) {           /* as a tensor, it is one too many */
        char *header = (char *)rest->data + 8, *at = header + 1;
        if (place > 0) at = strstr(header, place == 1 ? "\"format\"" : "\"dtype\"");
        n = sprintf(text, "%.*s%s,%.*s", (int)(at - header), header, member,
                    (int)(header + rest->text - 8 - at), at);
        load_with(HALF, FIRST, tensor_file("model.safetensors", text, (size_t)n,
                                           rest->data + rest->text, rest->size - rest->text),
                  place == 0 ? REFUSED : right);
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
            load_with_member(member, n <= 14 ? LOADS : n > 100 ? REFUSED : EITHER);
            sprintf(member, "\"deep\":%s", open);
            load_with_member(member, REFUSED);
            free(open), free(close), free(member);
        }
    test_context = "";
}

static void counts(void) {
    size_t most = full ? 1000000 : 10000, at_once = memory_most;
    char *list = repeated("1,", most, "1", 1), *digits = repeated("1", most, "", 0);
    char *names = repeated("\"a\":0,", most, "\"b\":0", 1);
    char *text = (char *)small_array(10 * most + 100);
    pair saved;
    memory_most = (size_t)1 << 26;
    sprintf(text, "\"list\":[%s]", list);
    load_with_member(text, LOADS);
    sprintf(text, "\"object\":{%s}", names);
    load_with_member(text, LOADS);
    sprintf(text, "\"digits\":%s", digits);
    load_with_member(text, LOADS);
    sprintf(text, "\"%s\":\"%s\"", digits, digits);
    load_with_member(text, LOADS);
    load_with(MODEL, CONFIG, config_with(names, -1), fits_config(names, LOADS));
    test_context = "(a long list where a short one belongs)";
    for (int i = 0; i < 4; i++) {
        static const char *const keys[4] = { "vocab", "expert_sizes", "hidden_size", "lb_coef" };
        pair *p = pair_of(keys[i]);
        saved = *p;
        sprintf(p->key, "other_%d", i);
        sprintf(text, i < 2 ? "\"%s\":[%s]" : "\"%s\":%s", keys[i], i < 2 ? list : digits);
        load_with(MODEL, CONFIG, config_with(text, -1), REFUSED);
        *p = saved;
    }
    for (int i = 0; i < 3; i++) {
        const char *header = i == 0 ? "{\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[%s]}}"
                             : i == 1 ? "{\"lm_head.weight\":{\"dtype\":\"F32\",\"shape\":[3,2],"
                                        "\"data_offsets\":[%s]}}" : "{%s}";
        int n = sprintf(text, header, i < 2 ? list : names);
        const file *f = &good[MODEL].file[FIRST];
        load_with(MODEL, FIRST, tensor_file(f->name, text, (size_t)n, f->data + f->text,
                                            f->size - f->text), REFUSED);
    }
    memory_most = at_once;
    free(list), free(digits), free(names), free(text);
    test_context = "";
}

static void characters(void) {
    static const struct { const char *member; int right; } cases[] = {
        { "\"x\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", LOADS }, { "\"\":\"\"", LOADS },
        { "\"x\":\"\\u00e9\\uD83D\\uDE00\"", LOADS }, { "\"x\":\"\\\\u\"", LOADS },
        { "\"x\":\"\x7f\"", LOADS },
        { "\"\xc3\xa9\":\"\xe2\x82\xac\xf0\x9f\x98\x80\"", LOADS },
        { "\"x\" : [ ] , \"y\":\r\n\t{ }", LOADS }, { "\"x\":[true,false,null,-0.5e-1]", LOADS },
        { "\"x\":\"\\ud800\"", EITHER }, { "\"x\":\"\\udc00\\ud800\"", EITHER },    /* surrogates */
        { "\"x\":\"\xff\xfe\"", EITHER }, { "\"x\":\"\xc3\"", EITHER }, { "\"\x80\":0", EITHER },
        { "\"x\":\"\xed\xa0\x80\"", EITHER }, { "\"x\":\"\xc0\x80\"", EITHER },
        { "\"x\":\"\\u12\"", REFUSED }, { "\"x\":\"\\u12g4\"", REFUSED },
        { "\"x\":\"\\u\"", REFUSED }, { "\"x\":\"\\x41\"", REFUSED }, { "\"x\":\"\\\"", REFUSED },
        { "\"x\":\"\\", REFUSED },
        { "\"x\":\"a\nb\"", REFUSED }, { "\"x\":\"\x01\"", REFUSED }, { "\"x\":\"\t\"", REFUSED },
        { "\"x\":\"", REFUSED }, { "\"x", REFUSED }, { "\"x\"", REFUSED }, { "\"x\":", REFUSED },
        { "\"x\":,\"y\":1", REFUSED }, { "\"x\":1,", REFUSED }, { ",\"x\":1", REFUSED },
        { "\"x\":[1,]", REFUSED }, { "\"x\":[,1]", REFUSED }, { "\"x\":[1 2]", REFUSED },
        { "\"x\":[1}", REFUSED }, { "\"x\":{\"a\":1]", REFUSED }, { "\"x\":{\"a\"}", REFUSED },
        { "\"x\":{1:1}", REFUSED }, { "\"x\" 1", REFUSED }, { "x:1", REFUSED },
        { "'x':1", REFUSED }, { "\"x\":True", REFUSED }, { "\"x\":nul", REFUSED },
        { "\"x\":nulls", REFUSED },
        { "\"x\":truefalse", REFUSED }, { "/* */\"x\":1", REFUSED }, { "\"x\":\v1", REFUSED },
        { "\"x\":\xc2\xa0" "1", REFUSED }, { "\"x\":1}", REFUSED }, { "\"x\":1]", REFUSED } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_context = cases[i].member;
        load_with_member(cases[i].member, cases[i].right);
    }
    test_context = "";
}

/* The same change to whole texts: a mark in front, other ends of lines, zeros. */
static void whole_texts(void) {
    for (int part = CONFIG; part <= INDEX; part += INDEX - CONFIG) {
        const file *f = &good[SHARDS].file[part];
        char *text = (char *)small_array(2 * f->size + 10);
        size_t n = 0;
        memcpy(text, "\xef\xbb\xbf", 3);
        memcpy(text + 3, f->data, f->size);
        load_with(SHARDS, part, make_file(f->name, text, f->size + 3), REFUSED);
        for (size_t i = 0; i < f->size; i++) {
            if (f->data[i] == '\n') text[n++] = '\r';
            text[n++] = (char)f->data[i];
        }
        load_with(SHARDS, part, make_file(f->name, text, n), LOADS);
        for (size_t i = 0; i < f->size; i++) {          /* a zero at every place */
            memcpy(text, f->data, f->size);
            text[i] = 0;
            load_with(SHARDS, part, make_file(f->name, text, f->size),
                      part == CONFIG && i == f->size - 1 ? EITHER : REFUSED);
        }
        for (size_t i = 0; i < f->size; i++) text[2 * i] = (char)f->data[i], text[2 * i + 1] = 0;
        load_with(SHARDS, part, make_file(f->name, text, 2 * f->size), REFUSED);    /* UTF-16 */
        memset(text, 0, f->size);
        load_with(SHARDS, part, make_file(f->name, text, f->size), REFUSED);
        free(text);
    }
}

static void names(void) {
    tensors t = list_tensors(1, 0, 1, 0);
    for (int i = 0; i < 6; i++) {
        static const char *const change[] = { "%s.", " %s", "%s\\u0000", "%s\\\\", "%.5s",
                                              "%s\\\"" };
        entry saved = t.entry[3];
        sprintf(t.entry[3].name, change[i], saved.name);
        test_context = t.entry[3].name;
        load_with(MODEL, FIRST, write_tensors("model.safetensors", &t), REFUSED);
        t.entry[3] = saved;
    }
    test_context = "";
    for (size_t length = 90; length < 130; length++) {  /* longer than the room for a name */
        char *name = repeated("x", length, "", 0), header[1000];
        int n = sprintf(header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],"
                        "\"data_offsets\":[0,4]}}", name);
        load_with(MODEL, FIRST, tensor_file("model.safetensors", header, (size_t)n, t.data, t.size),
                  REFUSED);
        free(name);
    }
    free(t.data);
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
            CHECK_INT(load(&c, REFUSED, 1, blame), HMOE_IO);
            c.file[part].name = saved.name, c.file[part].data = NULL;  /* a directory */
            CHECK_INT(load(&c, REFUSED, 1, saved.name), HMOE_IO);
            c.file[part].data = saved.data, c.file[part].size = 0;     /* empty */
            CHECK_INT(load(&c, REFUSED, 1, part < INDEX && part ? ".safetensors" : saved.name),
                      HMOE_BAD_FILE);
        }
    test_context = "";
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
                load(&good[which], REFUSED, 1, f->name);
            memcpy(f->data, saved, 8);
        }
    }
    test_context = "";
}

/* Billions of parameters, or a million tensors, beside files of a few kilobytes. */
static void larger_than_the_files(void) {
    static const char *const cases[][3] = {
        { "hidden_size", "1048576", "" }, { "vocab_size", "1048576", "" },
        { "num_hidden_layers", "1024", "" }, { "num_hidden_layers", "100", "" },
        { "num_hidden_layers", "2", "" }, { "hidden_size", "4", "" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int which = 0; which < CHECKPOINTS; which++) {
            pair *p = pair_of(cases[i][0]), *vocab = pair_of("vocab"), was = *p, was_vocab = *vocab;
            checkpoint c = good[which];
            strcpy(p->value, cases[i][1]);
            strcpy(vocab->key, "no_vocab");
            c.file[CONFIG] = config_with("", -1);
            test_context = cases[i][1];
            load(&c, REFUSED, 0, ".safetensors");
            free(c.file[CONFIG].data);
            *p = was, *vocab = was_vocab;
        }
    test_context = "";
}

/* 256 experts of one unit in 1024 layers: 16 MB of weights, but a million tensors, whose names
   alone are larger. */
static void more_tensors_than_names(void) {
    static const char *const keys[] = { "num_local_experts", "expert_sizes", "intermediate_size",
                                        "num_hidden_layers" };
    char *list = repeated("1,", 255, "1", 1), *start = (char *)small_array(1000);
    pair *p[4], saved[4];
    for (int i = 0; i < 4; i++) p[i] = pair_of(keys[i]), saved[i] = *p[i];
    for (int i = 0; i < 4; i++) p[i]->key[0] = 'X';
    sprintf(start, "\"num_local_experts\":256,\"expert_sizes\":[%s],\"intermediate_size\":1,"
            "\"num_hidden_layers\":1024", list);
    for (int which = 0; which < CHECKPOINTS; which++) {
        checkpoint c = good[which];
        file *f = &c.file[FIRST];
        c.file[CONFIG] = config_with(start, -1);
        f->data = (unsigned char *)small_array(f->size = 1 << 24);
        memcpy(f->data, good[which].file[FIRST].data, f->text);
        load(&c, REFUSED, 0, ".safetensors");
        free(c.file[CONFIG].data), free(f->data);
    }
    for (int i = 0; i < 4; i++) *p[i] = saved[i];
    free(list), free(start);
}

/* ---- The index of shards. */

static void indices(void) {
    static const struct { const char *name; int right; } cases[] = {
        { "model-00001-of-00002.safetensors", LOADS },
        { "model-00002-of-00002.safetensors", LOADS },
        { "model-00001-of-00001.safetensors", EITHER },   /* files that are not there */
        { "model-00001-of-00003.safetensors", EITHER },
        { "model-00001-of-99999.safetensors", EITHER },
        { "model-00001-of-00000.safetensors", REFUSED },
        { "model-00001-of-00002.safetensors2", REFUSED },
        { "model-00001-of-00002.safetensors\\n", REFUSED },
        { "model-00001-of-00002.safetensor", REFUSED },
        { "model-00001-of- 0002.safetensors", REFUSED },
        { "model-00001-of-+0002.safetensors", REFUSED },
        { "model-00001-of--0002.safetensors", REFUSED },
        { "model-0x001-of-00002.safetensors", REFUSED },
        { "model-00001-OF-00002.safetensors", REFUSED },
        { "model-000001-of-000002.safetensors", REFUSED },
        { "model-00001-of-99999999999999999999.safetensors", REFUSED },
        { "/model-00001-of-00002.safetensors", REFUSED },
        { "model-\",\"b\":\"-00002.safetensors", REFUSED },   /* which ends after model- */
        { "model-\",\"bbb\":\"00002", REFUSED }, { "model-\",  00002", REFUSED },
        { "model-00001-of-00002.bin", REFUSED }, { "model-00001-of-00002", REFUSED },
        { "model-1-of-2.safetensors", REFUSED }, { "model-", REFUSED }, { "", REFUSED } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        int n = sprintf(text, "{\"weight_map\":{\"a\":\"%s\"}}", cases[i].name);
        file index = make_file("model.safetensors.index.json", text, (size_t)n);
        test_context = cases[i].name;
        if (load_with(SHARDS, INDEX, index, cases[i].right) != HMOE_IO)
            CHECK(cases[i].right != EITHER);
    }
    test_context = "";
}

int main(void) {
    const char *wanted = getenv("FULL");
    full = wanted && *wanted == '1';
    threads(1);
    make_checkpoints();
    read_pairs();
    TEST(intact);
    TEST(truncated);
    TEST(followed_by_more);
    TEST(flipped);
    TEST(numbers_in_config);
    TEST(long_contexts);
    TEST(numbers_in_headers);
    TEST(numbers_in_metadata);
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
    TEST(larger_than_the_files);
    TEST(more_tensors_than_names);
    TEST(indices);
    return test_summary("damaged");
}

#endif
