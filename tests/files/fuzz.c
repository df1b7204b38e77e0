/* fuzz.c - looks for files that break hmoe_load. For clang's libFuzzer, which varies inputs and
   keeps those that reach new code. `make fuzz` builds and runs it.

   An input is a byte that says what is read, three lengths of two bytes, and the four parts of a
   checkpoint: config.json, the index of shards, the second shard, and last the first or only file
   of tensors. Whatever they hold, hmoe_load must say OK, or what is wrong with which file; free
   all that it allocated, which must be in proportion to the files; and a model that it makes must
   compute, and be the same when it is saved and loaded again. */

#include "memory_files.h"

enum { CONFIG, INDEX, SECOND, FIRST, PARTS };
enum { TRAINING = 1, SHARDS = 2, BATCH = 4 };          /* what is read: bits of the first byte */
enum { START = 7, MOST = 1 << 15, ROOM = 1 << 16 };    /* where parts start; bytes of an input; and
                                                          of a part, while it is changed */

typedef struct input {
    int kind;
    const uint8_t *part[PARTS];
    size_t size[PARTS];
} input;

#define MUST(condition) must(!!(condition), #condition, __LINE__)
static const char *said = "";                          /* the last message */
static void must(int ok, const char *what, int line) {
    if (ok) return;
    fprintf(stderr, "tests/files/fuzz.c:%d: failed: %s   %s\n", line, what, said);
    abort();
}

static input unpack(const uint8_t *data, size_t size) {
    input in;
    in.kind = data[0];
    for (size_t i = 0, at = START; i < PARTS; at += in.size[i++]) {
        size_t left = size - at, n = i < FIRST ? data[1 + 2 * i] + 256u * data[2 + 2 * i] : left;
        in.part[i] = data + at;
        in.size[i] = n < left ? n : left;
    }
    return in;
}

/* Puts the files where hmoe_load will look; returns their bytes. */
static double put_files(const input *in) {
    static const char *const name[PARTS] = { "config.json", "model.safetensors.index.json",
                                             "model-00002-of-00002.safetensors",
                                             "model-00001-of-00002.safetensors" };
    double bytes = 0;
    memory_clear();
    for (int i = 0; i < PARTS; i++) {
        int shards = (in->kind & SHARDS) && !(in->kind & TRAINING);
        const char *alone = in->kind & TRAINING ? "training.safetensors" : "model.safetensors";
        if (!shards && (i == INDEX || i == SECOND)) continue;
        memory_put(i == FIRST && !shards ? alone : name[i], in->part[i], in->size[i]);
        bytes += (double)in->size[i];
    }
    return bytes;
}

/* Two tokens: a model that was loaded may give NaNs, and nothing worse. */
static void use(hmoe_model *m, int max_B) {
    int T = m->config.T < 2 ? 1 : 2, tokens[2] = { 0, m->config.V - 1 };
    hmoe_status status;
    if (max_B) {
        status = hmoe_forward(m, HMOE_EVALUATE, tokens, tokens, 1, T);
    } else {
        hmoe_real *logits = (hmoe_real *)memory_malloc((size_t)m->config.V * sizeof *logits);
        hmoe_cache cache;
        memset(&cache, 0, sizeof cache);
        status = hmoe_cache_create(&cache, m);
        MUST(status == HMOE_OK || status == HMOE_OUT_OF_MEMORY);
        for (int i = 0; status == HMOE_OK && i < 2; i++)
            status = hmoe_next(m, &cache, tokens[i], logits);
        if (status == HMOE_OUT_OF_MEMORY) status = HMOE_OK;
        hmoe_cache_free(&cache);
        memory_free(logits);
    }
    MUST(status == HMOE_OK || status == HMOE_NOT_FINITE);
}

static hmoe_status load(hmoe_model *m, int max_B, int training) {
    return training ? hmoe_load(m, "", max_B, 1) : hmoe_load_mixtral(m, "", max_B);
}

/* Saves what was loaded, loads that and saves it again: not a byte may differ. */
static void round_trip(hmoe_model *m, int max_B, int training) {
    static const char *const name[3] = { "config.json", "model.safetensors",
                                         "training.safetensors" };
    static char first[3][1 << 17];
    size_t size[3];
    hmoe_model again;
    memset(&again, 0, sizeof again);
    said = again.message;
    memory_clear();
    MUST(hmoe_save(m, "", training) == HMOE_OK);
    MUST(load(&again, max_B, training) == HMOE_OK);
    MUST(!memcmp(m->params, again.params, m->param_count * sizeof *m->params));
    for (int i = 0; i < 2 + training; i++) {
        memory_file *f = memory_find(name[i]);
        memcpy(first[i], f->data, size[i] = f->size);
    }
    MUST(hmoe_save(&again, "", training) == HMOE_OK);
    for (int i = 0; i < 2 + training; i++) {
        memory_file *f = memory_find(name[i]);
        MUST(f->size == size[i] && !memcmp(f->data, first[i], size[i]));
    }
    said = m->message;
    hmoe_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int training, max_B;
    hmoe_status status;
    hmoe_model m;
    double files;
    input in;
    if (size < START || size > MOST) return -1;
    in = unpack(data, size);
    training = in.kind & TRAINING, max_B = in.kind & BATCH ? 1 : 0;
    files = put_files(&in);
    memset(&m, 0, sizeof m);
    said = m.message;
    memory_peak = memory_live;
    status = load(&m, max_B, training);
    if (memory_peak > 1 << 19)
        MUST((double)memory_peak <= memory_justified(files, max_B, training));
    if (status) MUST(memory_message_is_good(&m, status));
    if (status) MUST(memory_live == 0);
    else {
        use(&m, max_B);
        round_trip(&m, max_B, training);
    }
    hmoe_free(&m);
    MUST(memory_live == 0 && memory_open == 0);
    memory_clear();
    return 0;
}

/* ---- Mutations that know the format: in most of them only one part changes, and the lengths that
   stand in front of the parts, and of the JSON in a file of tensors, stay right. */

enum { HEADER1 = PARTS, HEADER2, PIECES };             /* FIRST and SECOND are then data alone */
static uint8_t piece[PIECES][ROOM];
static size_t piece_size[PIECES];

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);

static uint64_t drawn;
static size_t draw(size_t n) { return n ? (size_t)(hmoe_random(1, 2, 3, drawn++) % n) : 0; }

/* Cuts an input into pieces. A length that cannot be is put right: all of it is header then. */
static void take_apart(const input *in) {
    for (int i = 0; i < PARTS; i++) {
        int header = i == FIRST ? HEADER1 : HEADER2;
        const uint8_t *at = in->part[i];
        size_t n = in->size[i], length = 0;
        if (i == FIRST || i == SECOND) {
            size_t prefix = n < 8 ? n : 8;
            for (size_t k = prefix; k-- > 0;) length = length << 8 | at[k];
            at += prefix, n -= prefix;
            if (length > n) length = n;
            memcpy(piece[header], at, length);
            piece_size[header] = length;
            at += length, n -= length;
        }
        memcpy(piece[i], at, n);
        piece_size[i] = n;
    }
}

static size_t put_together(uint8_t *data, size_t max, int kind) {
    size_t at = START;
    for (int i = 0; i < PARTS; i++) {
        int tensors = i == FIRST || i == SECOND, header = i == FIRST ? HEADER1 : HEADER2;
        size_t start = at, length = tensors ? piece_size[header] : 0;
        if (at + 8 + length + piece_size[i] > max) return 0;
        if (tensors && length + piece_size[i] > 0) {   /* otherwise there is no such file */
            for (int k = 0; k < 8; k++) data[at++] = (uint8_t)((uint64_t)length >> (8 * k));
            memcpy(data + at, piece[header], length);
            at += length;
        }
        memcpy(data + at, piece[i], piece_size[i]);
        at += piece_size[i];
        if (i < FIRST) data[1 + 2 * i] = (uint8_t)(at - start);
        if (i < FIRST) data[2 + 2 * i] = (uint8_t)((at - start) >> 8);
    }
    data[0] = (uint8_t)kind;
    return at;
}

/* Replaces bytes from .. to of a piece with n others. */
static void splice(int p, size_t from, size_t to, const void *bytes, size_t n) {
    size_t size = piece_size[p];
    if (size - (to - from) + n > ROOM) return;
    memmove(piece[p] + from + n, piece[p] + to, size - to);
    memcpy(piece[p] + from, bytes, n);
    piece_size[p] = size - (to - from) + n;
}

/* Another value: in place of a number, or of anything that begins at a random place. */
static void change_value(int p) {
    static const char *const words[] = {
        "0", "1", "-1", "2", "3", "4", "256", "257", "65536", "1048576", "1048577", "2147483647",
        "2147483648", "4294967295", "4294967296", "9007199254740993", "9223372036854775807",
        "18446744073709551615", "1e308", "1e999", "-0", "1.5", "1e-9", "0.5", "1e3", "nan", "01",
        "null", "true", "false", "[]", "{}", "[1]", "[1,2]", "[2,1]", "1,1", "\"\"", "\"F16\"",
        "\"BF16\"", "\"F32\"", "\"F64\"", "\"topk\"", "\"topp\"", "\"mixtral\"", "\"hmoe\"",
        "\"silu\"", "\"default\"", "\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"__metadata__\"",
        "\"lm_head.weight\"", "\"model.norm.weight\"", "\"weight_map\"", "\"rope_parameters\"",
        "\"rope_theta\"", "\"rope_type\"", "\"sliding_window\"", "\"head_dim\"", "\"vocab\"",
        "\"expert_sizes\"", "\"optimizer\"", "\"model-00001-of-00002.safetensors\"",
        "\"model-00001-of-99999.safetensors\"", "\"../x.safetensors\"", "\"tie_word_embeddings\"",
        "\"partial_rotary_factor\"", "\"x.rotary_emb.inv_freq\"", "\"F8_E4M3\"", "\"best_of\"", "\"recipe\"",
        "\"\\/\"", "\\u0065", "\"x\":1,", "\"\\u0041\"", "\xef\xbb\xbf", "\r\n",
        "[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]" };
    const char *word = words[draw(sizeof words / sizeof *words)];
    const uint8_t *text = piece[p];
    size_t size = piece_size[p], from = draw(size + 1), to;
    while (draw(8) && from < size && (text[from] < '0' || text[from] > '9')) from++;
    for (to = from; to < size && text[to] >= '0' && text[to] <= '9';) to++;
    splice(p, from, to, word, strlen(word));
}

/* Takes what stands between two commas away, or puts it somewhere else, or both. */
static void move_members(int p) {
    static uint8_t span[ROOM];
    size_t comma[64], n = 0, from, to, length, size = piece_size[p], start = draw(size + 1);
    for (size_t i = 0; i < size && n < 64; i++)
        if (piece[p][(start + i) % size] == ',') comma[n++] = (start + i) % size;
    if (n < 2) return;
    from = comma[0], to = comma[draw(2) ? 1 : draw(n)];
    if (to < from) { size_t other = to; to = from; from = other; }
    length = to - from;
    memcpy(span, piece[p] + from, length);
    if (draw(3)) splice(p, from, to, "", 0);
    if (draw(3)) {
        size_t at = comma[draw(n)];
        if (at <= piece_size[p]) splice(p, at, at, span, length);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned int seed) {
    size_t n;
    int p, kind;
    drawn = (uint64_t)seed << 32;
    if (size < START || size > MOST || draw(8) == 0) return LLVMFuzzerMutate(data, size, max);
    {
        input in = unpack(data, size);
        take_apart(&in);
        kind = in.kind;
    }
    for (int changes = 1 + (int)draw(3); changes > 0; changes--) {
        do p = (int)draw(PIECES); while (p != CONFIG && piece_size[p] == 0 && draw(4));
        switch (draw(p == FIRST || p == SECOND ? 3 : 8)) {
        case 0: case 1: case 2:
            piece_size[p] = LLVMFuzzerMutate(piece[p], piece_size[p], ROOM);
            break;
        case 3: case 4: case 5: change_value(p); break;
        default: move_members(p);
        }
    }
    if (draw(16) == 0) kind ^= 1 << draw(3);
    n = put_together(data, max, kind);
    return n ? n : LLVMFuzzerMutate(data, size, max);
}

/* ---- Inputs to start from. */

/* Tensors first, first + step, ... as a file, in F32, F16 or BF16 (size 2: the upper halves). */
static void write_tensors(int part, const hmoe_model *m, size_t first, size_t step,
                          const char *dtype) {
    int header = part == FIRST ? HEADER1 : HEADER2;
    size_t size = strcmp(dtype, "F32") ? 2 : 4, at = 0;
    int n = sprintf((char *)piece[header], "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = first; i < m->tensor_count; i += step) {
        const hmoe_tensor *t = &m->tensors[i];
        size_t count = (size_t)t->rows * t->cols;
        n += sprintf((char *)piece[header] + n, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", t->name,
                     dtype, t->rows);
        if (t->dims == 2) n += sprintf((char *)piece[header] + n, ",%d", t->cols);
        n += sprintf((char *)piece[header] + n, "],\"data_offsets\":[%d,%d]}", (int)at,
                     (int)(at + count * size));
        for (size_t k = 0; k < count; k++, at += size)
            memcpy(piece[part] + at, (const char *)&m->params[t->offset + k] + 4 - size, size);
    }
    n += sprintf((char *)piece[header] + n, "}");
    piece_size[header] = (size_t)n;
    piece_size[part] = at;
}

static void write_seed(const char *dir, int kind) {
    static uint8_t data[4 * ROOM];
    static int number;
    size_t size = put_together(data, sizeof data, kind);
    char path[1000];
    FILE *f;
    snprintf(path, sizeof path, "%s/seed-%02d", dir, number++);
    f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) perror(path), exit(1);
}

static void take_file(int part, const char *name) {
    const memory_file *f = memory_find(name);
    input in;
    memset(&in, 0, sizeof in);
    MUST(f);
    in.part[part] = (const uint8_t *)f->data, in.size[part] = f->size;
    for (int i = 0; i < PARTS; i++) if (i != part) in.part[i] = piece[i], in.size[i] = 0;
    take_apart(&in);
}

/* A model and its run, then the model in half precision, as two shards, and without a tensor. */
static void write_seeds(const char *dir, const hmoe_config *c) {
    static const char index[] = "{\"metadata\":{\"total_size\":1},\"weight_map\":"
                                "{\"lm_head.weight\":\"model-00002-of-00002.safetensors\","
                                "\"model.norm.weight\":\"model-00001-of-00002.safetensors\"}}";
    static uint8_t config[ROOM];
    size_t config_size;
    hmoe_model m;
    memset(&m, 0, sizeof m);
    MUST(hmoe_create(&m, c, 1, 1, 1) == HMOE_OK);
    m.best_val_loss = 2.5, m.seconds = 1.5, m.step = 7;
    MUST(hmoe_save(&m, "", 1) == HMOE_OK);
    take_file(CONFIG, "config.json");
    memcpy(config, piece[CONFIG], config_size = piece_size[CONFIG]);
    for (int kind = 0; kind < 7; kind++) {
        memset(piece_size, 0, sizeof piece_size);
        if (kind == 0) take_file(FIRST, "model.safetensors");
        if (kind == 1) take_file(FIRST, "training.safetensors");
        if (kind == 2) write_tensors(FIRST, &m, 0, 1, "F16");
        if (kind == 3) write_tensors(FIRST, &m, 0, 1, "BF16");
        if (kind == 4 || kind == 5) {
            write_tensors(FIRST, &m, 0, 2, "F32");
            write_tensors(SECOND, &m, 1, 2, kind == 4 ? "F32" : "BF16");
            memcpy(piece[INDEX], index, piece_size[INDEX] = sizeof index - 1);
        }
        if (kind == 6) write_tensors(FIRST, &m, 1, 1, "F32");
        memcpy(piece[CONFIG], config, piece_size[CONFIG] = config_size);
        write_seed(dir, (kind == 1 ? TRAINING : 0) | (piece_size[INDEX] ? SHARDS : 0)
                        | (kind % 2 ? BATCH : 0));
    }
    hmoe_free(&m);
    memory_clear();
}

/* A Mixtral of others: fewer keys, and some that we do not write. tied: without lm_head.weight,
   which is the last tensor. */
static void write_foreign_seed(const char *dir, const hmoe_config *c, int tied) {
    static const char config[] =
        "{\"model_type\":\"mixtral\",\"hidden_size\":2,\"num_hidden_layers\":1,"
        "\"num_attention_heads\":1,\"num_key_value_heads\":1,\"num_local_experts\":2,"
        "\"num_experts_per_tok\":2,\"intermediate_size\":2,\"vocab_size\":3,"
        "\"max_position_embeddings\":2,\"rms_norm_eps\":1e-05,\"rope_theta\":1000000.0,"
        "\"sliding_window\":null,\"head_dim\":2,\"attention_bias\":false,\"rope_scaling\":null,"
        "\"quantization_config\":null,\"hidden_act\":\"silu\",\"tie_word_embeddings\":";
    hmoe_model m;
    memset(&m, 0, sizeof m);
    memset(piece_size, 0, sizeof piece_size);
    MUST(hmoe_create(&m, c, 1, 1, 0) == HMOE_OK);
    m.tensor_count -= (size_t)tied;
    write_tensors(FIRST, &m, 0, 1, "BF16");
    m.tensor_count += (size_t)tied;
    piece_size[CONFIG] = (size_t)sprintf((char *)piece[CONFIG], "%s%s}", config,
                                         tied ? "true" : "null");
    write_seed(dir, BATCH);
    hmoe_free(&m);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *dir = *argc == 3 && !strcmp((*argv)[1], "--seeds") ? (*argv)[2] : NULL;
    if (!dir) return 0;
    for (int which = 0; which < 3; which++) {
        hmoe_config c = hmoe_default_config();
        c.V = 3, c.T = 2, c.C = 2, c.L = 1, c.NH = 1, c.E = 2, c.K = 2;
        memset(c.H, 0, sizeof c.H);
        c.H[0] = which ? 1 : 2, c.H[1] = 2;
        if (which == 0) c.vocab_size = 3, memcpy(c.vocab, "abc", 3);
        if (which == 1) c.routing = HMOE_TOP_P;
        if (which == 2) c.noisy_gating = 1, c.gate = HMOE_GATE_RAW;
        write_seeds(dir, &c);
        if (which == 0) write_foreign_seed(dir, &c, 0), write_foreign_seed(dir, &c, 1);
    }
    exit(0);
}
