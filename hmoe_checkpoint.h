/* hmoe_checkpoint.h - files for the models of hmoe.h, in the layout of Hugging Face's Mixtral.

   A checkpoint is a directory:

       config.json            what the model is made of: Mixtral's keys and a few of our own
       model.safetensors      its weights, float32
       tokenizer.json         its vocabulary, for the tokenizers library, with tokenizer_config.json
       training.safetensors   all that a run needs to go on, to the bit: the weights in the type of
                              the build, AdamW's moments (NAME.exp_avg, NAME.exp_avg_sq), and in its
                              metadata the state of the run

   All files are written beside their targets (NAME.tmp) and flushed to disk. Then they are renamed,
   config.json last. A crash at any moment leaves whole files, and a full disk the older ones. No
   reader needs two files of the same moment.

   A safetensors file is 8 bytes of length, so many bytes of JSON, and the tensors' bytes:

       { "__metadata__": { "format": "pt" },
         "lm_head.weight": { "dtype": "F32", "shape": [65, 128], "data_offsets": [0, 33280] }, ... }

   Reading trusts nothing: a text is checked to be JSON before anything is read of it, every length
   before it is used, and nothing large is allocated for a file too small to need it. (The context
   alone is taken from config.json's word: no weights belong to it.)

   hmoe.h knows nothing of this file. Include this one instead of it, before any other header where
   HMOE_IMPLEMENTATION is defined (it asks POSIX for fsync); messages and ownership are as there.

   CONTENTS   The API   The platform   Writing   JSON   Reading

   LICENCE    MIT, the same as hmoe.h's, at its end. */

#ifndef HMOE_CHECKPOINT_H
#define HMOE_CHECKPOINT_H

#if defined(HMOE_IMPLEMENTATION) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L   /* fileno and fsync, under -std=c99 */
#endif
#if defined(HMOE_IMPLEMENTATION) && !defined(_FILE_OFFSET_BITS) && !defined(__LP64__)
#define _FILE_OFFSET_BITS 64      /* files of any size on machines of 32 bits too */
#endif
#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes model.safetensors, config.json and, where token i is byte vocab[i], the tokenizer's files;
   with training = 1 training.safetensors too (but not the gradients of an unfinished
   accumulation). Makes the directory where there is none, but not its parents. Other files
   stay (see below for what held another model). Who else saves there is the caller's business. */
hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training);

/* The two halves of hmoe_save: hmoe_prepare writes all files beside their targets, hmoe_commit
   renames them; where one of them fails, what was beside is gone. hmoe_discard removes what was
   prepared. A directory that holds another model should lose that in between, config.json first, or
   a crash while files are renamed mixes the two, and what the new one lacks (a vocabulary, a run's
   state) is still the older one's. */
hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training);
hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training);
void hmoe_discard(hmoe_model *m, const char *dir, int training);

/* Makes a model from a directory. training = 1 reads training.safetensors, to go on with a run;
   training = 0 reads model.safetensors. *m and max_B are as for hmoe_create. A Mixtral that others
   made is read too, also from shards (model-00001-of-00002.safetensors ...) and from half precision
   (F16, BF16), where it has as many key/value heads as heads, an output of its own, and no sliding
   window shorter than its context. */
hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training);

/* Writes the model as an ordinary Mixtral: all experts as wide as the widest, with rows of zeros in
   W1 and W3 and columns of zeros in W2, which changes nothing of what they compute. A model that is
   there goes first, config.json before all else. *params, unless NULL, receives how many parameters
   it has then. HMOE_BAD_ARGUMENT where Mixtral has no such form (Top-P, raw gates) and where dir
   holds a run (training.safetensors). */
hmoe_status hmoe_export_mixtral(hmoe_model *m, const char *dir, size_t *params);

/* Sets V, vocab_size and vocab to the distinct bytes of a text, in ascending order. */
hmoe_status hmoe_byte_vocab(hmoe_config *config, const unsigned char *text, size_t n,
                            char *message);

/* Reads config.json alone. */
hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_CHECKPOINT_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_CHECKPOINT_IMPLEMENTED
#define HMOE_CHECKPOINT_IMPLEMENTED

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

/* ---------------------------------------------------------------------------------------------
   The platform - what C99 lacks: POSIX, then Windows, then what is left without either (files are
   not forced to the disk, the directory must be there already, 2 GB may be the limit). */
#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
static FILE *hmoe__open(const char *path) {   /* to read; a pipe would wait for who writes */
    struct stat is;
    if (stat(path, &is) || S_ISREG(is.st_mode)) return fopen(path, "rb");
    errno = S_ISDIR(is.st_mode) ? EISDIR : EINVAL;
    return NULL;
}
static int hmoe__seek(FILE *f, int64_t at, int from) { return fseeko(f, (off_t)at, from); }
static int64_t hmoe__tell(FILE *f) { return ftello(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f) || fsync(fileno(f)); }
static int hmoe__make_directory(const char *path) { return mkdir(path, 0777) && errno != EEXIST; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    int fd, failed = rename(from, to);
    if (failed || (fd = open(dir, O_RDONLY)) < 0) return failed;
    fsync(fd);   /* so that the new name lasts too, where the file system can do this */
    close(fd);
    return 0;
}
#elif defined(_WIN32)
#include <direct.h>
#include <io.h>
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) int __stdcall MoveFileExA(const char *, const char *, unsigned long);
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) void __stdcall Sleep(unsigned long);
static FILE *hmoe__open(const char *path) { return fopen(path, "rb"); }
static int hmoe__seek(FILE *f, int64_t at, int from) { return _fseeki64(f, at, from); }
static int64_t hmoe__tell(FILE *f) { return _ftelli64(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f) || _commit(_fileno(f)); }
static int hmoe__make_directory(const char *path) { return _mkdir(path) && errno != EEXIST; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    (void)dir;
    for (int i = 0; i < 40; i++, Sleep(50))   /* a reader, or a virus scanner, has it open */
        if (MoveFileExA(from, to, 1 | 8)) return 0;   /* replace what is there; write it through */
    errno = EACCES;
    return -1;
}
#else
static FILE *hmoe__open(const char *path) { return fopen(path, "rb"); }
static int hmoe__seek(FILE *f, int64_t at, int from) { return fseek(f, (long)at, from); }
static int64_t hmoe__tell(FILE *f) { return ftell(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f); }
static int hmoe__make_directory(const char *path) { (void)path; return 0; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    (void)dir;
    remove(to);
    return rename(from, to);
}
#endif

/* Files are little-endian: turns n numbers of `size` bytes from this machine's order into theirs,
   or back. On a little-endian machine compilers leave nothing of it. */
static void hmoe__order_bytes(void *numbers, size_t n, size_t size) {
    const uint16_t one = 1;
    unsigned char *at = (unsigned char *)numbers;
    if (*(const unsigned char *)&one == 1) return;
    for (size_t i = 0; i < n; i++, at += size)
        for (size_t k = 0; k < size / 2; k++) {
            unsigned char byte = at[k];
            at[k] = at[size - 1 - k];
            at[size - 1 - k] = byte;
        }
}

#define HMOE__CORRUPT(message, ...) HMOE__FAIL(message, HMOE_BAD_FILE, __VA_ARGS__)

hmoe_status hmoe_byte_vocab(hmoe_config *c, const unsigned char *text, size_t n, char *message) {
    unsigned char seen[256] = { 0 };
    if (n == 0) return HMOE__BAD(message, "an empty text has no vocabulary");
    for (size_t i = 0; i < n; i++) seen[text[i]] = 1;
    c->vocab_size = 0;
    for (int byte = 0; byte < 256; byte++)
        if (seen[byte]) c->vocab[c->vocab_size++] = (unsigned char)byte;
    c->V = c->vocab_size;
    return HMOE_OK;
}

enum { HMOE__PATH_SIZE = 4096 };

static hmoe_status hmoe__path(char *path, const char *dir, const char *name, const char *ending,
                              char *message) {
    int n = snprintf(path, HMOE__PATH_SIZE, "%s/%s%s", dir, name, ending);
    if (n >= 0 && n < HMOE__PATH_SIZE) return HMOE_OK;
    return HMOE__BAD(message, "the path %.100s... is too long", dir);
}

/* The arrays of a checkpoint (a model has only the first), and tensor number i of all of them. */
static hmoe_real *hmoe__saved_array(hmoe_model *m, size_t which) {
    return which == 0 ? m->params : which == 1 ? m->exp_avg : m->exp_avg_sq;
}

static const hmoe_tensor *hmoe__saved_tensor(const hmoe_model *m, size_t i,
                                             char name[HMOE_NAME_SIZE + 16]) {
    static const char *const ending[3] = { "", ".exp_avg", ".exp_avg_sq" };
    const hmoe_tensor *t = &m->tensors[i % m->tensor_count];
    snprintf(name, HMOE_NAME_SIZE + 16, "%s%s", t->name, ending[i / m->tensor_count]);
    return t;
}

/* ---------------------------------------------------------------------------------------------
   Writing. */

/* A file beside the one whose place it will take. */
typedef struct hmoe__output {
    FILE *file;
    char path[HMOE__PATH_SIZE];
} hmoe__output;

static hmoe_status hmoe__open_output(hmoe__output *out, const char *dir, const char *name,
                                     char *message) {
    HMOE__TRY(hmoe__path(out->path, dir, name, ".tmp", message));
    remove(out->path);   /* whatever it is: a file of another's, a link, a pipe */
    out->file = fopen(out->path, "wb");
    if (out->file) return HMOE_OK;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(errno));
}

/* Was all of it written, and is it on the disk? */
static hmoe_status hmoe__close_output(hmoe__output *out, hmoe_status status, char *message) {
    int error = 0;
    if (ferror(out->file) || hmoe__flush_to_disk(out->file)) error = errno ? errno : EIO;
    if (fclose(out->file) && !error) error = errno;
    if (status || !error) return status;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(error));
}

/* A double in the fewest digits that give it back. */
static void hmoe__write_double(FILE *f, double value) {
    char text[32];
    int digits = 15;
    do snprintf(text, sizeof text, "%.*g", digits, value);
    while (digits++ < 17 && strtod(text, NULL) != value);
    fputs(text, f);
}

static void hmoe__write_member(FILE *f, const char *name, double value) {
    fprintf(f, "  \"%s\": ", name);
    hmoe__write_double(f, value);
    fputs(",\n", f);
}

/* What config.json calls the values of hmoe_balance. */
static const char *const hmoe__balances[] = { "off", "tokens", "work" };

/* Is it one of Mixtral's own, so that whatever opens Mixtral computes the same? */
static int hmoe__is_mixtral(const hmoe_config *c) {
    for (int e = 1; e < c->E; e++) if (c->H[e] != c->H[0]) return 0;
    return c->routing == HMOE_TOP_K && hmoe__norm_gates(c) && !c->noisy_gating && !c->balance;
}

static void hmoe__write_list(FILE *f, const char *name, const hmoe_config *c, int n) {
    fprintf(f, "  \"%s\": [", name);
    for (int i = 0; i < n; i++)
        fprintf(f, "%s%d", i ? ", " : "", *name == 'v' ? c->vocab[i] : c->H[i]);
    fputs("],\n", f);
}

static hmoe_status hmoe__save_config(hmoe_model *m, const char *dir) {
    const hmoe_config *c = &m->config;
    const char *names[] = { "rms_norm_eps", "rope_theta", "top_p", "lb_coef", "pp_coef", "ent_coef",
                            "z_coef" };
    const double values[] = { c->rms_norm_eps, c->rope_theta, c->top_p, c->lb_coef, c->pp_coef,
                              c->ent_coef, c->z_coef };
    int mixtral = hmoe__is_mixtral(c);
    hmoe__output out;
    FILE *f;
    HMOE__TRY(hmoe__open_output(&out, dir, "config.json", m->message));
    f = out.file;
    fprintf(f, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            mixtral ? "MixtralForCausalLM" : "HMoEForCausalLM", mixtral ? "mixtral" : "hmoe");
    fprintf(f, "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n", c->C, c->L);
    fprintf(f, "  \"num_attention_heads\": %d,\n  \"num_key_value_heads\": %d,\n", c->NH, c->NH);
    fprintf(f, "  \"num_local_experts\": %d,\n  \"num_experts_per_tok\": %d,\n", c->E, c->K);
    fprintf(f, "  \"intermediate_size\": %d,\n  \"vocab_size\": %d,\n", hmoe__widest(c), c->V);
    fprintf(f, "  \"max_position_embeddings\": %d,\n", c->T);
    hmoe__write_list(f, "expert_sizes", c, c->E);
    fprintf(f, "  \"routing\": \"%s\",\n", c->routing == HMOE_TOP_K ? "topk" : "topp");
    fprintf(f, "  \"norm_topk_prob\": %s,\n", hmoe__norm_gates(c) ? "true" : "false");
    fprintf(f, "  \"noisy_gating\": %s,\n", c->noisy_gating ? "true" : "false");
    if (c->balance) {
        fprintf(f, "  \"balance\": \"%s\",\n", hmoe__balances[c->balance]);
        hmoe__write_member(f, "balance_rate", c->balance_rate);
    }
    if (c->budget > 0) hmoe__write_member(f, "budget", c->budget);
    for (int i = 0; i < 7; i++) {
        if (mixtral && i == 2) continue;   /* top_p: transformers would sample with it */
        hmoe__write_member(f, names[i], values[i]);
    }
    if (c->vocab_size) hmoe__write_list(f, "vocab", c, c->vocab_size);
    fputs("  \"rope_parameters\": {\"rope_theta\": ", f);
    hmoe__write_double(f, c->rope_theta);
    fputs(", \"rope_type\": \"default\"},\n  \"hidden_act\": \"silu\",\n"
          "  \"tie_word_embeddings\": false,\n  \"torch_dtype\": \"float32\",\n"
          "  \"dtype\": \"float32\",\n  \"bos_token_id\": null,\n  \"eos_token_id\": null\n}\n", f);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* The character that stands for a byte in GPT-2's byte-level alphabet: itself where it can be seen,
   and the others in turn from 256 on. */
static int hmoe__byte_character(int byte) {
    int other = 256;
    for (int b = 0;; b++) {
        int seen = (b > 32 && b < 127) || (b > 160 && b != 173);
        if (b == byte) return seen ? b : other;
        other += !seen;
    }
}

/* A BPE without merges: every byte is a token. */
static hmoe_status hmoe__save_tokenizer(hmoe_model *m, const char *dir) {
    static const char level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                "\"trim_offsets\": false, \"use_regex\": false}";
    const hmoe_config *c = &m->config;
    hmoe__output out;
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer.json", m->message));
    fprintf(out.file, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
            "  \"added_tokens\": [],\n  \"normalizer\": null,\n  \"pre_tokenizer\": %s,\n"
            "  \"post_processor\": null,\n  \"decoder\": %s,\n", level, level);
    fputs("  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,\n"
          "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n"
          "    \"fuse_unk\": false, \"byte_fallback\": false, \"merges\": [], \"vocab\": {",
          out.file);
    for (int i = 0; i < c->vocab_size; i++)
        fprintf(out.file, "%s\"\\u%04x\": %d", i ? ", " : "",
                (unsigned)hmoe__byte_character(c->vocab[i]), i);
    fputs("}}\n}\n", out.file);
    HMOE__TRY(hmoe__close_output(&out, HMOE_OK, m->message));
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer_config.json", m->message));
    fputs("{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n", out.file);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* The header of a safetensors file, `size` bytes a number, padded to a multiple of 8 bytes. Not 0
   where the file did not take it. */
static int hmoe__write_header(FILE *f, hmoe_model *m, size_t arrays, size_t size) {
    char name[HMOE_NAME_SIZE + 16];
    uint64_t length = 0, at = 0;
    int64_t end;
    fwrite(&length, sizeof length, 1, f);   /* known at the end */
    fputs("{\"__metadata__\":{\"format\":\"pt\"", f);
    if (arrays > 1) {
        fprintf(f, ",\"step\":\"%lld\",\"tokens\":\"%lld\",\"seed\":\"%llu\",\"flops\":\"",
                (long long)m->step, (long long)m->tokens, (unsigned long long)m->seed);
        hmoe__write_double(f, m->flops);
        fputs("\",\"seconds\":\"", f);
        hmoe__write_double(f, m->seconds);
        fputs("\",\"best_val_loss\":\"", f);
        hmoe__write_double(f, m->best_val_loss);
        fprintf(f, "\",\"optimizer\":\"%d\"", m->optimizer);
    }
    fputs("}", f);
    for (size_t i = 0; i < arrays * m->tensor_count; i++) {
        const hmoe_tensor *t = hmoe__saved_tensor(m, i, name);
        uint64_t start = at;
        at += (uint64_t)t->rows * t->cols * size;
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", name, size == 8 ? "F64" : "F32",
                t->rows);
        if (t->dims == 2) fprintf(f, ",%d", t->cols);
        fprintf(f, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)start,
                (unsigned long long)at);
    }
    fputs("}", f);
    end = hmoe__tell(f);
    if (end < 0) return -1;
    for (; end % 8; end++) fputs(" ", f);
    length = (uint64_t)end - sizeof length;
    if (hmoe__seek(f, 0, SEEK_SET)) return -1;   /* rewind() forgets errors */
    hmoe__order_bytes(&length, 1, sizeof length);
    fwrite(&length, sizeof length, 1, f);
    return hmoe__seek(f, 0, SEEK_END);
}

static const size_t hmoe__chunk = 1 << 16;   /* numbers fetched or stored at a time */

static hmoe_status hmoe__save_tensors(hmoe_model *m, const char *dir, const char *file,
                                      size_t arrays, size_t size) {
    hmoe_real *chunk = (hmoe_real *)HMOE_MALLOC(hmoe__chunk * sizeof *chunk);
    hmoe__output out;
    hmoe_status status;
    int whole = 1;
    if (!chunk) return hmoe__no_memory(m->message, (double)(hmoe__chunk * sizeof *chunk),
                                       "a piece of a tensor");
    status = hmoe__open_output(&out, dir, file, m->message);
    if (!status) whole = !hmoe__write_header(out.file, m, arrays, size);
    for (size_t k = 0; !status && whole && k < arrays * m->tensor_count; k++) {
        const hmoe_tensor *t = &m->tensors[k % m->tensor_count];
        const hmoe_real *from = hmoe__saved_array(m, k / m->tensor_count) + t->offset;
        for (size_t at = 0, n, all = (size_t)t->rows * t->cols; whole && at < all; at += n) {
            n = all - at < hmoe__chunk ? all - at : hmoe__chunk;
            if (m->peers) m->peers->fetch(m, chunk, k, at, n);
            else m->steps->fetch(chunk, from + at, n * sizeof *chunk);
            for (size_t i = 0; size < sizeof *chunk && i < n; i++) {   /* double to float */
                float narrow = (float)chunk[i];
                memcpy((char *)chunk + i * size, &narrow, sizeof narrow);
            }
            hmoe__order_bytes(chunk, n, size);
            whole = fwrite(chunk, size, n, out.file) == n;
        }
    }
    if (!status) {
        status = whole ? hmoe__settle(m)
                       : HMOE__FAIL(m->message, HMOE_IO, "cannot write %.300s: %s", out.path,
                                    strerror(errno));
        status = hmoe__close_output(&out, status, m->message);
    }
    HMOE_FREE(chunk);
    return status;
}

/* The names of a checkpoint's files, in the order in which they take their places: the state comes
   after the weights, so that what goes on after a crash in between writes them again. */
static int hmoe__files(const hmoe_model *m, int training, const char *names[5]) {
    int n = 0;
    names[n++] = "model.safetensors";
    if (m->config.vocab_size) names[n++] = "tokenizer.json", names[n++] = "tokenizer_config.json";
    if (training) names[n++] = "training.safetensors";
    names[n++] = "config.json";
    return n;
}

void hmoe_discard(hmoe_model *m, const char *dir, int training) {
    char beside[HMOE__PATH_SIZE];
    const char *names[5];
    if (m->peers && m->peers->rank) return;
    for (int n = hmoe__files(m, training, names); n-- > 0;)
        if (!hmoe__path(beside, dir, names[n], ".tmp", NULL)) remove(beside);
}

static hmoe_status hmoe__write_files(hmoe_model *m, const char *dir, int training) {
    if (training)
        HMOE__TRY(hmoe__save_tensors(m, dir, "training.safetensors", 3, sizeof(hmoe_real)));
    HMOE__TRY(hmoe__save_tensors(m, dir, "model.safetensors", 1, sizeof(float)));
    if (m->config.vocab_size) HMOE__TRY(hmoe__save_tokenizer(m, dir));
    return hmoe__save_config(m, dir);
}

static hmoe_status hmoe__prepare(hmoe_model *m, const char *dir, int training) {
    hmoe_status status;
    if (training && !m->grads) return HMOE__BAD(m->message, "this model was not made for training");
    if (hmoe__make_directory(dir))
        return HMOE__FAIL(m->message, HMOE_IO, "cannot make the directory %.300s: %s", dir,
                          strerror(errno));
    status = hmoe__write_files(m, dir, training);
    if (status) hmoe_discard(m, dir, training);
    return status;
}

static hmoe_status hmoe__commit(hmoe_model *m, const char *dir, int training) {
    char path[HMOE__PATH_SIZE], beside[HMOE__PATH_SIZE];
    const char *names[5];
    for (int i = 0, n = hmoe__files(m, training, names); i < n; i++) {
        HMOE__TRY(hmoe__path(path, dir, names[i], "", m->message));
        HMOE__TRY(hmoe__path(beside, dir, names[i], ".tmp", m->message));
        if (!hmoe__replace(beside, path, dir)) continue;
        int error = errno;
        hmoe_discard(m, dir, training);
        return HMOE__FAIL(m->message, HMOE_IO, "cannot write %.300s: %s", path, strerror(error));
    }
    return HMOE_OK;
}

/* Files are the work of one process: the first. */
static hmoe_status hmoe__lead(hmoe_model *m, hmoe_work work, const char *dir, int training) {
    m->message[0] = 0;
    return m->peers ? m->peers->lead(m, work, dir, training) : work(m, dir, training);
}

hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training) {
    return hmoe__lead(m, hmoe__prepare, dir, training);
}

hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training) {
    return hmoe__lead(m, hmoe__commit, dir, training);
}

hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training) {
    HMOE__TRY(hmoe_prepare(m, dir, training));
    return hmoe_commit(m, dir, training);
}

/* Removes a model that is in the way of another one: config.json first, so that a crash in between
   leaves none, and the tokenizer's files, which the other one may not have. */
static hmoe_status hmoe__remove_model(const char *dir, char *message) {
    static const char *const names[] = { "config.json", "tokenizer.json", "tokenizer_config.json" };
    char path[HMOE__PATH_SIZE];
    for (int i = 0; i < 3; i++) {
        HMOE__TRY(hmoe__path(path, dir, names[i], "", message));
        if (remove(path) && errno != ENOENT)
            return HMOE__FAIL(message, HMOE_IO, "cannot remove %.300s: %s", path, strerror(errno));
    }
    return HMOE_OK;
}

/* The tensors of m as the first rows and columns of those of `wide`, which is all zeros so far. */
static hmoe_status hmoe__pad(hmoe_model *wide, hmoe_model *m) {
    const hmoe_steps *s = m->steps;
    hmoe_real *row = (hmoe_real *)HMOE_MALLOC(HMOE_MAX_DIM * sizeof *row);
    if (!row) return hmoe__no_memory(m->message, HMOE_MAX_DIM * sizeof *row, "a row");
    for (size_t i = 0, k = 0; i < wide->tensor_count; i++) {
        const hmoe_tensor *to = &wide->tensors[i], *from;
        /* noise and biases of 0 are left out; a null expert stays all zeros */
        if (to->expert >= 0 && !m->config.H[to->expert]) continue;
        while (strcmp(m->tensors[k].name, to->name)) k++;
        from = &m->tensors[k++];
        for (size_t r = 0, bytes = (size_t)from->cols * sizeof *row; r < (size_t)from->rows; r++) {
            s->fetch(row, m->params + from->offset + r * from->cols, bytes);
            s->store(wide->params + to->offset + r * to->cols, row, bytes);
        }
    }
    HMOE_FREE(row);
    return hmoe__settle(m);
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
        m->steps->fetch(b, m->params + m->layers[l].bias, (size_t)config.E * sizeof *b);
        for (int e = 0; e < config.E; e++)
            if (b[e] != 0)
                return HMOE__BAD(m->message, "Mixtral takes the experts of largest P: this model "
                                 "adds a bias to P (in layer %d %g to that of expert %d) and has "
                                 "no such form", l, (double)b[e], e);
    }
    HMOE__TRY(hmoe__path(path, dir, "training.safetensors", "", m->message));
    errno = 0;
    if ((run = hmoe__open(path)) != NULL) fclose(run);
    if (run || (errno != ENOENT && errno != ENOTDIR))
        return HMOE__BAD(m->message, "%.300s holds a run: choose another directory", dir);
    for (int e = 0; e < config.E; e++) config.H[e] = hmoe__widest(&m->config);
    config.noisy_gating = 0, config.balance = HMOE_BALANCE_OFF;
    memset(&wide, 0, sizeof wide);
    wide.steps = m->steps;
    status = hmoe__created(&wide, hmoe__create(&wide, &config, 0, 0, 0, 0));
    if (!status) {
        status = hmoe__pad(&wide, m);
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

/* ---------------------------------------------------------------------------------------------
   JSON - hmoe__json_after says whether a text is JSON at all, before anything else is read of it;
   what walks over it then can trust its form. A value starts where `at` points. */

static const char *hmoe__json_space(const char *at) { return at + strspn(at, " \n\r\t"); }

/* Behind a string, or NULL. Names and words here are plain: escapes are passed over, not read. */
static const char *hmoe__json_string(const char *at) {
    if (*at++ != '"') return NULL;
    for (; *at != '"'; at++) {
        if ((unsigned char)*at < 0x20) return NULL;
        if (*at != '\\') continue;
        if (!*++at || !strchr("\"\\/bfnrtu", *at)) return NULL;
        if (*at == 'u' && strspn(at + 1, "0123456789abcdefABCDEF") < 4) return NULL;
    }
    return at + 1;
}

/* Behind a number, or NULL. strtod would take more: 01, .5, 1.e5, inf. */
static const char *hmoe__json_digits(const char *at) {
    static const char digits[] = "0123456789";
    size_t n;
    if (*at == '-') at++;
    n = *at == '0' ? 1 : strspn(at, digits);
    if (n > 0 && at[n] == '.') at += n + 1, n = strspn(at, digits);
    if (n > 0 && (at[n] == 'e' || at[n] == 'E')) {
        at += n + (at[n + 1] == '-' || at[n + 1] == '+' ? 2 : 1);
        n = strspn(at, digits);
    }
    return n > 0 ? at + n : NULL;
}

/* Behind any value and the white space after it, or NULL. */
static const char *hmoe__json_after(const char *at, int depth) {
    const char close = *at == '{' ? '}' : ']';
    if (*at == '"') at = hmoe__json_string(at);
    else if (*at == '{' || *at == '[') {
        int empty = *hmoe__json_space(at + 1) == close;
        for (at = hmoe__json_space(at + 1); !empty; at = hmoe__json_space(at + 1)) {
            if (close == '}') {
                at = hmoe__json_string(at);
                if (!at || *(at = hmoe__json_space(at)) != ':') return NULL;
                at = hmoe__json_space(at + 1);
            }
            if (depth == 0 || !(at = hmoe__json_after(at, depth - 1))) return NULL;
            if (*at == close) break;
            if (*at != ',') return NULL;
        }
        at++;
    } else if (!strncmp(at, "true", 4) || !strncmp(at, "null", 4)) at += 4;
    else if (!strncmp(at, "false", 5)) at += 5;
    else at = hmoe__json_digits(at);
    return at ? hmoe__json_space(at) : NULL;
}

enum { HMOE__JSON_DEPTH = 32 };

/* The value of the member whose name starts here. */
static const char *hmoe__json_value(const char *name) {
    return hmoe__json_space(hmoe__json_space(hmoe__json_string(name)) + 1);
}

/* Steps through a list, or the names of an object's members: *at is at the bracket, and then behind
   what was returned last. NULL at the end. */
static const char *hmoe__json_next(const char **at, int object) {
    const char *next = hmoe__json_space(*at + 1);
    if (**at == ']' || **at == '}' || *next == ']' || *next == '}') return NULL;
    *at = hmoe__json_after(object ? hmoe__json_value(next) : next, HMOE__JSON_DEPTH);
    return next;
}

static int hmoe__json_is(const char *string, const char *word) {
    size_t n = strlen(word);
    return *string == '"' && !strncmp(string + 1, word, n) && string[n + 1] == '"';
}

static int hmoe__json_number(const char *at, double *value) {
    *value = *at == '-' || isdigit((unsigned char)*at) ? strtod(at, NULL) : (double)NAN;
    return isfinite(*value);
}

/* A list of whole numbers from 0 to high; returns how many, or -1 where it is something else. */
static int hmoe__json_list(const char *at, double *out, int max, double high) {
    int n = 0;
    if (*at != '[') return -1;
    for (const char *x; (x = hmoe__json_next(&at, 0)) != NULL; n++)
        if (n == max || !hmoe__json_number(x, &out[n]) || !(out[n] >= 0 && out[n] <= high)
            || out[n] != floor(out[n])) return -1;
    return n;
}

/* The value of the member of this name; NULL where there is none. *twice counts further ones. */
static const char *hmoe__json_find(const char *object, const char *name, int *twice) {
    const char *found = NULL;
    if (*object != '{') return NULL;
    for (const char *member; (member = hmoe__json_next(&object, 1)) != NULL;)
        if (hmoe__json_is(member, name)) {
            *twice += found != NULL;
            found = hmoe__json_value(member);
        }
    return found;
}

/* ---------------------------------------------------------------------------------------------
   Reading - first the members of an object, one call each, then config.json, then the tensors. */

/* An object that is read, and what is wrong with the first member that cannot be. */
typedef struct hmoe__reader {
    const char *object;
    int quoted;              /* values are strings that hold numbers, as in safetensors' metadata */
    const char *name, *wrong;
} hmoe__reader;

/* The value of a member, or NULL where it is missing: needed says whether it may. */
static const char *hmoe__member(hmoe__reader *r, const char *name, int needed) {
    int twice = 0;
    const char *value = hmoe__json_find(r->object, name, &twice), *end;
    const char *wrong = twice ? "comes twice" : !value && needed ? "is missing" : NULL;
    if (value && r->quoted) {
        end = *value == '"' ? hmoe__json_digits(value + 1) : NULL;
        if ((!end || *end != '"') && !wrong) wrong = "must be a number in quotes";
        value++;
    }
    if (r->wrong || !wrong) return r->wrong ? NULL : value;
    r->name = name, r->wrong = wrong;
    return NULL;
}

static void hmoe__wrong(hmoe__reader *r, const char *name, const char *wrong) {
    if (!r->wrong) r->name = name, r->wrong = wrong;
}

/* HMOE_OK, or a message with what was wrong first. */
static hmoe_status hmoe__reader_status(const hmoe__reader *r, const char *path, char *message) {
    int twice = 0, shown, length;
    const char *value = r->wrong ? hmoe__json_find(r->object, r->name, &twice) : NULL;
    if (!r->wrong) return HMOE_OK;
    if (!value) return HMOE__CORRUPT(message, "%.300s: %s %s", path, r->name, r->wrong);
    shown = (int)strcspn(value, "\r\n\t");   /* one line */
    length = (int)(hmoe__json_after(value, HMOE__JSON_DEPTH) - value);
    if (shown > length) shown = length;
    return HMOE__CORRUPT(message, "%.300s: %s %s: it is %.*s", path, r->name, r->wrong,
                         shown < 40 ? shown : 40, value);
}

static void hmoe__get_double(hmoe__reader *r, const char *name, int needed, double *out) {
    const char *value = hmoe__member(r, name, needed);
    if (value && !hmoe__json_number(value, out)) hmoe__wrong(r, name, "must be a number");
}

static double hmoe__get_whole(hmoe__reader *r, const char *name, double most) {
    double number = 0;
    hmoe__get_double(r, name, 1, &number);
    if (number < 0 || number > most || number != floor(number))
        hmoe__wrong(r, name, "must be a whole number in its range");
    return r->wrong ? 0 : number;
}

static int hmoe__get_int(hmoe__reader *r, const char *name) {
    return (int)hmoe__get_whole(r, name, HMOE_MAX_DIM);
}

/* Which of two values a member has: 1 for yes, 0 for no; `missing` where it is not there. */
static int hmoe__get_choice(hmoe__reader *r, const char *name, int needed, const char *yes,
                            const char *no, int missing) {
    const char *value = hmoe__member(r, name, needed);
    if (!value) return missing;
    if (!strncmp(value, yes, strlen(yes))) return 1;
    if (strncmp(value, no, strlen(no))) hmoe__wrong(r, name, "has a value that is not supported");
    return 0;
}

/* A member that may be missing or null, and otherwise is a number from low to high. */
static void hmoe__get_limit(hmoe__reader *r, const char *name, double low, double high,
                            const char *wrong) {
    const char *value = hmoe__member(r, name, 0);
    double number;
    if (!value || !strncmp(value, "null", 4) || !strncmp(value, "false", 5)) return;
    if (!hmoe__json_number(value, &number) || number < low || number > high)
        hmoe__wrong(r, name, wrong);
}

static int hmoe__get_list(hmoe__reader *r, const char *name, int needed, double *out, double most) {
    const char *value = hmoe__member(r, name, needed);
    int n = value ? hmoe__json_list(value, out, 256, most) : 0;
    if (n < 0 || (value && n == 0))
        hmoe__wrong(r, name, "must be a list of 1 to 256 whole numbers in their range");
    return n;
}

static hmoe_status hmoe__open_input(FILE **file, int64_t *bytes, const char *path, char *message) {
    *file = hmoe__open(path);
    if (*file && !hmoe__seek(*file, 0, SEEK_END) && (*bytes = hmoe__tell(*file)) >= 0) {
        rewind(*file);
        return HMOE_OK;
    }
    return HMOE__FAIL(message, HMOE_IO, "cannot open %.300s: %s", path, strerror(errno));
}

/* The next n <= most bytes of a file, which must be one JSON object: *text receives them. */
static hmoe_status hmoe__read_json(char **text, FILE *file, uint64_t n, uint64_t most,
                                   const char *path, char *message) {
    const char *end;
    if (n > most)
        return HMOE__CORRUPT(message, "%.300s: %.0f bytes of JSON are too many", path, (double)n);
    *text = (char *)HMOE_MALLOC((size_t)n + 1);
    if (!*text) return hmoe__no_memory(message, (double)n, "a header");
    if (fread(*text, 1, (size_t)n, file) != n)
        return HMOE__FAIL(message, HMOE_IO, "cannot read %.300s", path);
    (*text)[n] = 0;
    end = **text == '{' ? hmoe__json_after(*text, HMOE__JSON_DEPTH) : NULL;
    if (end == *text + n) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s: this is not one JSON object", path);
}

/* rope_theta, which newer files say in an object rope_parameters, where it may be scaled. */
static void hmoe__read_rope(hmoe__reader *r, hmoe_config *c) {
    const char *object = hmoe__member(r, "rope_parameters", 0), *at = object, *member;
    int newer = object && strncmp(object, "null", 4);
    double inner = 0;
    if (newer) {
        hmoe__reader rope = { object, 0, "", NULL };
        hmoe__get_choice(&rope, "rope_type", 0, "\"default\"", "\"default\"", 1);
        hmoe__get_double(&rope, "rope_theta", 1, &inner);
        while (*object == '{' && (member = hmoe__json_next(&at, 1)) != NULL)
            if (!hmoe__json_is(member, "rope_type") && !hmoe__json_is(member, "rope_theta"))
                hmoe__wrong(&rope, "rope_parameters", "says more");   /* a factor, of some kind */
        if (rope.wrong) hmoe__wrong(r, "rope_parameters", "is not plain RoPE with a rope_theta");
    }
    c->rope_theta = inner;
    hmoe__get_double(r, "rope_theta", !newer, &c->rope_theta);
    if (newer && inner != c->rope_theta)
        hmoe__wrong(r, "rope_theta", "is another one than in rope_parameters");
}

/* How experts are balanced by a bias; without the member, not at all. */
static void hmoe__get_balance(hmoe__reader *r, hmoe_config *c) {
    const char *value = hmoe__member(r, "balance", 0);
    int is = HMOE_BALANCE_WORK;
    while (value && is > 0 && !hmoe__json_is(value, hmoe__balances[is])) is--;
    if (value && !hmoe__json_is(value, hmoe__balances[is]))
        hmoe__wrong(r, "balance", "must be \"off\", \"tokens\" or \"work\"");
    c->balance = value ? (hmoe_balance)is : HMOE_BALANCE_OFF;
    c->balance_rate = hmoe_default_config().balance_rate;
    hmoe__get_double(r, "balance_rate", 0, &c->balance_rate);
}

/* A model of our own kind says everything; a Mixtral lacks our keys, and what it lacks is what
   makes it compute the same. */
static hmoe_status hmoe__parse_config(hmoe_config *c, const char *text, const char *path,
                                      char *message) {
    hmoe__reader reader = { text, 0, "", NULL }, *r = &reader;
    double list[256];
    char why[HMOE_MESSAGE_SIZE];
    int ours = hmoe__get_choice(r, "model_type", 1, "\"hmoe\"", "\"mixtral\"", 0), widest, n;
    memset(c, 0, sizeof *c);
    c->C = hmoe__get_int(r, "hidden_size");
    c->L = hmoe__get_int(r, "num_hidden_layers");
    c->NH = hmoe__get_int(r, "num_attention_heads");
    if (hmoe__get_int(r, "num_key_value_heads") != c->NH)
        hmoe__wrong(r, "num_attention_heads", "must be num_key_value_heads");
    c->E = hmoe__get_int(r, "num_local_experts");
    c->K = hmoe__get_int(r, "num_experts_per_tok");
    c->V = hmoe__get_int(r, "vocab_size");
    c->T = hmoe__get_int(r, "max_position_embeddings");
    widest = hmoe__get_int(r, "intermediate_size");
    hmoe__get_double(r, "rms_norm_eps", 1, &c->rms_norm_eps);
    hmoe__read_rope(r, c);
    hmoe__get_choice(r, "hidden_act", 0, "\"silu\"", "\"silu\"", 1);
    hmoe__get_choice(r, "tie_word_embeddings", 0, "false", "null", 0);
    hmoe__get_choice(r, "attention_bias", 0, "false", "null", 0);
    hmoe__get_choice(r, "rope_scaling", 0, "null", "false", 0);
    hmoe__get_choice(r, "quantization_config", 0, "null", "false", 0);
    hmoe__get_limit(r, "sliding_window", c->T, DBL_MAX, "must not be shorter than the context");
    hmoe__get_limit(r, "head_dim", c->NH ? c->C / c->NH : 0, c->NH ? c->C / c->NH : 0,
                    "must be hidden_size / num_attention_heads");
    n = hmoe__get_list(r, "expert_sizes", ours, list, HMOE_MAX_DIM);
    for (int e = 0; e < HMOE_MAX_EXPERTS; e++)
        c->H[e] = n ? e < n ? (int)list[e] : 0 : e < c->E ? widest : 0;
    if ((n && n != c->E) || (c->E <= HMOE_MAX_EXPERTS && hmoe__widest(c) != widest))
        hmoe__wrong(r, "expert_sizes", "must be num_local_experts widths, the largest "
                    "intermediate_size");
    c->routing = hmoe__get_choice(r, "routing", ours, "\"topk\"", "\"topp\"", 1) ? HMOE_TOP_K
                                                                           : HMOE_TOP_P;
    c->top_p = hmoe_default_config().top_p;
    hmoe__get_double(r, "top_p", ours, &c->top_p);
    c->gate = hmoe__get_choice(r, "norm_topk_prob", ours, "true", "false", 1) ? HMOE_GATE_NORM
                                                                        : HMOE_GATE_RAW;
    c->noisy_gating = hmoe__get_choice(r, "noisy_gating", ours, "true", "false", 0);
    hmoe__get_balance(r, c);
    hmoe__get_double(r, "budget", 0, &c->budget);
    hmoe__get_double(r, "lb_coef", ours, &c->lb_coef);
    hmoe__get_double(r, "pp_coef", ours, &c->pp_coef);
    hmoe__get_double(r, "ent_coef", ours, &c->ent_coef);
    hmoe__get_double(r, "z_coef", ours, &c->z_coef);
    c->vocab_size = hmoe__get_list(r, "vocab", 0, list, 255);
    for (int i = 0; i < c->vocab_size; i++) c->vocab[i] = (unsigned char)list[i];
    HMOE__TRY(hmoe__reader_status(r, path, message));
    if (hmoe_check_config(c, why)) return HMOE__CORRUPT(message, "%.300s: %.200s", path, why);
    return HMOE_OK;
}

hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message) {
    char path[HMOE__PATH_SIZE], *text = NULL;
    FILE *file = NULL;
    int64_t bytes = 0;
    hmoe_status status = hmoe__path(path, dir, "config.json", "", message);
    if (!status) status = hmoe__open_input(&file, &bytes, path, message);
    if (!status) status = hmoe__read_json(&text, file, (uint64_t)bytes, 1 << 20, path, message);
    if (!status) status = hmoe__parse_config(config, text, path, message);
    if (file) fclose(file);
    HMOE_FREE(text);
    return status;
}

/* What numbers are stored as, and how many bytes one takes. */
typedef enum hmoe__type { HMOE__F16, HMOE__BF16, HMOE__F32, HMOE__F64, HMOE__TYPES } hmoe__type;
static const char *const hmoe__type_names[HMOE__TYPES] = { "F16", "BF16", "F32", "F64" };
static size_t hmoe__type_size(hmoe__type type) {
    return type == HMOE__F64 ? 8 : type == HMOE__F32 ? 4 : 2;
}

/* Where a tensor lies among a file's bytes (exact below 2^53), and which one it is. */
typedef struct hmoe__place {
    double begin, end;         /* end 0: not found so far */
    hmoe__type type;
    size_t tensor;
    uint64_t hash;             /* of its name: 64 bits, no two of a model's names share them */
} hmoe__place;

typedef struct hmoe__input {
    FILE *file;
    char path[HMOE__PATH_SIZE];
    char *header;
    double data, data_bytes;   /* where the tensors' bytes start, and how many there are */
    int training, shards;      /* shards 0: one file */
    hmoe__place *place;        /* [places], one for each tensor of each array, by hash, */
    hmoe__place *here;         /*   and those that this file has, as they lie in it */
    size_t places, found;      /* arrays * tensor_count; how many are here */
} hmoe__input;

/* One tensor's description: NULL, or what is wrong with it. */
static const char *hmoe__read_entry(const char *entry, const hmoe_tensor *t, const hmoe__input *in,
                                    hmoe__place *place) {
    int twice = 0, type = 0;
    const char *dtype = hmoe__json_find(entry, "dtype", &twice);
    const char *shape = hmoe__json_find(entry, "shape", &twice);
    const char *offsets = hmoe__json_find(entry, "data_offsets", &twice);
    double dims[2] = { 0, 1 }, at[2] = { 0, 0 };
    if (!dtype || !shape || !offsets || twice) return "must have one dtype, shape and data_offsets";
    while (type < HMOE__TYPES && !hmoe__json_is(dtype, hmoe__type_names[type])) type++;
    if (in->training && sizeof(hmoe_real) != (type < HMOE__TYPES ? hmoe__type_size((hmoe__type)type)
                                                                 : 0))
        return sizeof(hmoe_real) == 8 ? "must be F64, the type of this build" : "must be F32";
    if (!in->training && type > HMOE__F32) return "must be F32, F16 or BF16";
    if (hmoe__json_list(shape, dims, 2, HMOE_MAX_DIM) != t->dims || dims[0] != t->rows
        || dims[1] != t->cols) return "has another shape than config.json says";
    place->type = (hmoe__type)type;
    if (hmoe__json_list(offsets, at, 2, in->data_bytes) != 2
        || at[1] - at[0] != (double)t->rows * t->cols * (double)hmoe__type_size(place->type))
        return "has data_offsets that do not fit";
    if (place->end > 0) return "comes twice";
    place->begin = at[0], place->end = at[1];
    return NULL;
}

static int hmoe__by_hash(const void *a, const void *b) {
    uint64_t x = ((const hmoe__place *)a)->hash, y = ((const hmoe__place *)b)->hash;
    return (x > y) - (x < y);
}

static int hmoe__by_begin(const void *a, const void *b) {
    double x = ((const hmoe__place *)a)->begin, y = ((const hmoe__place *)b)->begin;
    return (x > y) - (x < y);
}

/* What a file has must fill its data without hole or overlap. */
static const char *hmoe__check_places(const hmoe_model *m, hmoe__input *in, char *name) {
    double at = 0;
    qsort(in->here, in->found, sizeof *in->here, hmoe__by_begin);
    for (size_t i = 0; i < in->found; at = in->here[i++].end)
        if (in->here[i].begin != at) {
            hmoe__saved_tensor(m, in->here[i].tensor, name);
            return "overlaps the one before it, or leaves a hole there";
        }
    strcpy(name, "the last tensor");
    return at == in->data_bytes ? NULL : "does not end where the file does";
}

static void hmoe__read_state(hmoe__reader *r, hmoe_model *m) {
    const char *seed = hmoe__member(r, "seed", 1);
    char *end = NULL;
    errno = 0;
    if (seed) m->seed = strtoull(seed, &end, 10);
    if (seed && (errno || !isdigit((unsigned char)*seed) || *end != '"'))
        hmoe__wrong(r, "seed", "must be a whole number of 64 bits");
    m->step = (int64_t)hmoe__get_whole(r, "step", 1e15);
    m->tokens = (int64_t)hmoe__get_whole(r, "tokens", 1e15);
    hmoe__get_double(r, "flops", 1, &m->flops);
    hmoe__get_double(r, "seconds", 1, &m->seconds);
    hmoe__get_double(r, "best_val_loss", 1, &m->best_val_loss);
    if (hmoe__member(r, "optimizer", 0)) m->optimizer = (int)hmoe__get_whole(r, "optimizer", 1e6);
    if (m->flops < 0 || m->seconds < 0 || m->best_val_loss < 0)
        hmoe__wrong(r, "flops", "and seconds and best_val_loss must not be negative");
}

static hmoe_status hmoe__read_header(hmoe_model *m, hmoe__input *in) {
    char name[HMOE_NAME_SIZE + 16] = "";
    const char *at = in->header, *member, *wrong = NULL;
    hmoe__place named, *place;
    if (in->training) {
        hmoe__reader header = { in->header, 0, "", NULL }, r = { "", 1, "", NULL };
        r.object = hmoe__member(&header, "__metadata__", 1);
        HMOE__TRY(hmoe__reader_status(&header, in->path, m->message));
        hmoe__read_state(&r, m);
        HMOE__TRY(hmoe__reader_status(&r, in->path, m->message));
    }
    in->found = 0;
    while (!wrong && (member = hmoe__json_next(&at, 1)) != NULL) {
        if (hmoe__json_is(member, "__metadata__")) continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(member + 1, "\""), member + 1);
        named.hash = hmoe__hash(name);
        place = (hmoe__place *)bsearch(&named, in->place, in->places, sizeof named, hmoe__by_hash);
        wrong = !place ? "is no tensor of this model"
                : hmoe__read_entry(hmoe__json_value(member),
                                   &m->tensors[place->tensor % m->tensor_count], in, place);
        if (!wrong) in->here[in->found++] = *place;
    }
    if (!wrong) wrong = hmoe__check_places(m, in, name);
    if (!wrong) return HMOE_OK;
    return HMOE__CORRUPT(m->message, "%.300s: %s %s", in->path, name, wrong);
}

/* A float of half as many bits: sign, exponent, fraction. A BF16 is the upper half of a float. */
static float hmoe__half_to_float(uint16_t half, hmoe__type type) {
    uint32_t bits = (uint32_t)half << 16;
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (type == HMOE__BF16) memcpy(&value, &bits, sizeof value);
    else if (exponent == 31) value = fraction ? (float)NAN : (float)INFINITY;
    else if (exponent) value = (float)ldexp(1024 + fraction, exponent - 25);
    else value = (float)ldexp(fraction, -24);
    return type == HMOE__F16 && half >> 15 ? -value : value;
}

/* Turns numbers as they lie in a file into hmoe_real, in place: the last first, since they grow. */
static void hmoe__widen(hmoe_real *numbers, size_t n, hmoe__type type) {
    const char *from = (const char *)numbers;
    while (hmoe__type_size(type) < sizeof *numbers && n-- > 0) {
        float value;
        uint16_t half;
        if (type == HMOE__F32) memcpy(&value, from + n * sizeof value, sizeof value);
        else {
            memcpy(&half, from + n * sizeof half, sizeof half);
            value = hmoe__half_to_float(half, type);
        }
        numbers[n] = (hmoe_real)value;
    }
}

/* Opens a file and reads its header. */
static hmoe_status hmoe__open_tensors(hmoe_model *m, hmoe__input *in) {
    uint64_t length = 0;
    int64_t bytes = 0;
    HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, m->message));
    if (fread(&length, sizeof length, 1, in->file) != 1) bytes = 0;
    hmoe__order_bytes(&length, 1, sizeof length);
    if (bytes < 8 || length > (uint64_t)bytes - 8)
        return HMOE__CORRUPT(m->message, "%.300s: the header's length is not possible", in->path);
    in->data = 8 + (double)length;
    in->data_bytes = (double)bytes - in->data;
    return hmoe__read_json(&in->header, in->file, length, 1 << 28, in->path, m->message);
}

static void hmoe__close_input(hmoe__input *in) {
    if (in->file) fclose(in->file);
    HMOE_FREE(in->header);
    in->file = NULL, in->header = NULL;
}

static hmoe_status hmoe__read_tensors(hmoe_model *m, hmoe__input *in, hmoe_real *chunk) {
    for (size_t i = 0; i < in->found; i++) {
        const hmoe__place *place = &in->here[i];   /* in the file's order */
        const hmoe_tensor *t = &m->tensors[place->tensor % m->tensor_count];
        hmoe_real *to = hmoe__saved_array(m, place->tensor / m->tensor_count) + t->offset;
        size_t all = (size_t)t->rows * t->cols, size = hmoe__type_size(place->type);
        int failed = hmoe__seek(in->file, (int64_t)(in->data + place->begin), SEEK_SET);
        for (size_t n, at = 0; !failed && at < all; at += n) {
            n = all - at < hmoe__chunk ? all - at : hmoe__chunk;
            failed = fread(chunk, size, n, in->file) != n;
            hmoe__order_bytes(chunk, n, size);
            hmoe__widen(chunk, n, place->type);
            if (m->peers) m->peers->store(m, chunk, place->tensor, at, n);
            else m->steps->store(to + at, chunk, n * sizeof *chunk);
        }
        if (failed) return HMOE__FAIL(m->message, HMOE_IO, "cannot read %.300s", in->path);
    }
    return hmoe__settle(m);
}

/* The weights' file number i, and how many there are where a large model was cut into shards: the
   index says it, and nothing else is read of it. */
static hmoe_status hmoe__input_path(hmoe__input *in, const char *dir, int i, char *message) {
    char name[48] = "model.safetensors";
    if (in->training) strcpy(name, "training.safetensors");
    else if (in->shards)
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, in->shards);
    return hmoe__path(in->path, dir, name, "", message);
}

static hmoe_status hmoe__count_shards(hmoe__input *in, const char *dir, char *message) {
    static const char digits[] = "0123456789";
    int64_t bytes = 0;
    hmoe__reader r = { NULL, 0, "", NULL };
    const char *map, *file = NULL;
    HMOE__TRY(hmoe__input_path(in, dir, 0, message));
    if (in->training || (in->file = hmoe__open(in->path)) != NULL) return HMOE_OK;
    HMOE__TRY(hmoe__path(in->path, dir, "model.safetensors.index.json", "", message));
    in->file = hmoe__open(in->path);
    if (!in->file && errno == ENOENT) return hmoe__input_path(in, dir, 0, message);   /* it lacks */
    hmoe__close_input(in);
    HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, message));
    HMOE__TRY(hmoe__read_json(&in->header, in->file, (uint64_t)bytes, 1 << 28, in->path, message));
    r.object = in->header;
    map = hmoe__member(&r, "weight_map", 1);
    HMOE__TRY(hmoe__reader_status(&r, in->path, message));
    if (*map == '{') file = hmoe__json_next(&map, 1);
    if (file && !strncmp(file = hmoe__json_value(file), "\"model-", 7)
        && strspn(file + 7, digits) == 5 && !strncmp(file + 12, "-of-", 4)
        && strspn(file + 16, digits) == 5 && !strncmp(file + 21, ".safetensors\"", 13))
        in->shards = (int)strtol(file + 16, NULL, 10);
    if (in->shards > 0) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s: weight_map must name files such as "
                         "model-00001-of-00002.safetensors", in->path);
}

/* The files must be large enough for what config.json describes: known before anything is allocated
   for it. */
static hmoe_status hmoe__check_sizes(hmoe__input *in, const char *dir, double least,
                                     char *message) {
    double sum = 0;
    for (int i = 0; i < (in->shards ? in->shards : 1); i++) {
        int64_t bytes = 0;
        hmoe__close_input(in);
        HMOE__TRY(hmoe__input_path(in, dir, i, message));
        HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, message));
        sum += (double)bytes;
    }
    hmoe__close_input(in);
    if (sum >= least) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s%s: %.0f bytes, where config.json describes a model of "
                         "more than %.0f", in->path, in->shards ? " and those before it" : "", sum,
                         least);
}

static hmoe_status hmoe__load_file(hmoe_model *m, hmoe__input *in) {
    hmoe_real *chunk;
    hmoe_status status;
    HMOE__TRY(hmoe__open_tensors(m, in));
    HMOE__TRY(hmoe__read_header(m, in));
    chunk = (hmoe_real *)HMOE_MALLOC(hmoe__chunk * sizeof *chunk);
    if (!chunk) return hmoe__no_memory(m->message, (double)(hmoe__chunk * sizeof *chunk),
                                       "a piece of a tensor");
    status = hmoe__read_tensors(m, in, chunk);
    HMOE_FREE(chunk);
    return status;
}

/* config.json, and whether the files are large enough for what it says. */
static hmoe_status hmoe__find(hmoe_model *m, const char *dir, int training) {
    hmoe__input in;
    hmoe_model counted;
    hmoe_status status;
    double least;
    memset(&in, 0, sizeof in), memset(&counted, 0, sizeof counted);
    in.training = training;
    HMOE__TRY(hmoe_load_config(&m->config, dir, m->message));
    counted.config = m->config;
    hmoe__list_tensors(&counted, NULL);
    least = (double)counted.tensor_count * 64   /* a name, "dtype", "shape" and "data_offsets" */
            + (double)counted.param_count * (training ? sizeof(hmoe_real) : 2);
    status = hmoe__count_shards(&in, dir, m->message);
    if (!status) status = hmoe__check_sizes(&in, dir, least * (training ? 3 : 1), m->message);
    hmoe__close_input(&in);
    return status;
}

/* A bias or a top_p that is no number would go unnoticed: the experts are chosen all the same. */
static hmoe_status hmoe__check_state(hmoe_model *m, const char *path) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        int is_p = strstr(t->name, ".top_p") != NULL;
        hmoe_real x[HMOE_MAX_EXPERTS];
        if (!t->state) continue;
        m->steps->fetch(x, m->params + t->offset, (size_t)t->rows * sizeof *x);
        for (int k = 0; k < t->rows; k++)
            if (!isfinite(x[k]) || (is_p && !(x[k] > 0 && x[k] <= 1)))
                return HMOE__CORRUPT(m->message, "%.300s: %s must be %s: it is %g", path, t->name,
                                     is_p ? "above 0 and at most 1" : "finite", (double)x[k]);
    }
    return hmoe__settle(m);
}

static hmoe_status hmoe__read_files(hmoe_model *m, hmoe__input *in, const char *dir) {
    size_t arrays = in->training ? 3 : 1, missing = m->tensor_count * arrays;
    char name[HMOE_NAME_SIZE + 16];
    HMOE__TRY(hmoe__count_shards(in, dir, m->message));
    hmoe__close_input(in);
    in->places = missing;
    in->place = (hmoe__place *)hmoe__zeroed(in->places, 2 * sizeof *in->place);
    if (!in->place) return hmoe__no_memory(m->message, 2.0 * (double)(in->places
                                           * sizeof *in->place), "a header");
    in->here = in->place + in->places;
    for (size_t i = 0; i < in->places; i++) {
        hmoe__saved_tensor(m, in->place[i].tensor = i, name);
        in->place[i].hash = hmoe__hash(name);
    }
    qsort(in->place, in->places, sizeof *in->place, hmoe__by_hash);
    for (int i = 0; i < (in->shards ? in->shards : 1); i++) {
        HMOE__TRY(hmoe__input_path(in, dir, i, m->message));
        HMOE__TRY(hmoe__load_file(m, in));
        hmoe__close_input(in);
    }
    for (size_t i = 0; i < in->places; i++)
        if (in->place[i].end == 0 && in->place[i].tensor < missing) missing = in->place[i].tensor;
    if (missing == in->places) return hmoe__check_state(m, in->path);
    hmoe__saved_tensor(m, missing, name);
    return HMOE__CORRUPT(m->message, "%.300s: %s is missing", in->path, name);
}

static hmoe_status hmoe__read(hmoe_model *m, const char *dir, int training) {
    hmoe__input in;
    hmoe_status status;
    memset(&in, 0, sizeof in);
    in.training = training;
    status = hmoe__read_files(m, &in, dir);
    hmoe__close_input(&in);
    HMOE_FREE(in.place);
    return status;
}

hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training) {
    hmoe_config config;
    hmoe_status status = hmoe__lead(m, hmoe__find, dir, training);
    config = m->config;
    if (!status) status = hmoe__create(m, &config, 0, max_B, training, 0);
    status = hmoe__created(m, status);
    return status ? status : hmoe__created(m, hmoe__lead(m, hmoe__read, dir, training));
}

#endif /* HMOE_CHECKPOINT_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
