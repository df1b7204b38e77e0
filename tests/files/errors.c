/* What a caller can do wrong, and a machine without memory or disk. What must hold each time: a
   status and a message that names the offending thing, no crash, no leak, nothing changed.
   damaged.c has the files that are wrong. */

#define _POSIX_C_SOURCE 200809L
#include <stddef.h>
#include "memory.h"
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/interop/hmoe_interop.h"
#include "extra/parallel/hmoe_placement.h"
#include "extra/muon/hmoe_muon.h"
#include "../test.h"
#include "../fixtures.h"
#include <dirent.h>
#include <math.h>
#include <signal.h>
#ifdef SIGXFSZ
#include <sys/resource.h>
#endif

/* A message is one line, and contains `says`. */
static void check_message(const char *message, const char *says) {
    int ok = message[0] && !strchr(message, '\n') && strstr(message, says);
    if (!CHECK(ok)) printf("   said: \"%s\", without \"%s\"\n", message, says);
}

/* ---- Files. */

static char directory[64] = SMALL_TMP "hmoe-test-errors-XXXXXX";

static const char *path(const char *name) { return small_path(directory, name); }

static void write_text(const char *name, const char *text) {
    FILE *f = fopen(name, "wb");
    if (!f || fputs(text, f) == EOF || fclose(f)) perror(name), exit(2);
}

/* A number that changes with any name or byte in a directory. */
static uint64_t fingerprint(const char *name) {
    uint64_t all = 0;
    DIR *dir = opendir(name);
    if (!dir) return 1;
    for (struct dirent *entry; (entry = readdir(dir)); ) {
        char file[600];
        uint64_t h = 0;
        struct stat about;
        FILE *f = NULL;
        snprintf(file, sizeof file, "%s/%s", name, entry->d_name);
        for (const char *c = entry->d_name; *c; c++) h = hmoe_random(h, (uint64_t)*c, 1, 0);
        if (!stat(file, &about) && S_ISREG(about.st_mode)) f = fopen(file, "rb");
        for (int c; f && (c = getc(f)) != EOF;) h = h * 1099511628211u + (unsigned)c + 1;
        if (f) fclose(f);
        all += hmoe_random(h, 0, 2, 0);            /* a sum: the order does not matter */
    }
    closedir(dir);
    return all;
}

/* Whatever a failed test has left. */
static void remove_tree(const char *name) {
    DIR *dir = opendir(name);
    for (struct dirent *entry; dir && (entry = readdir(dir)); ) {
        char file[600];
        snprintf(file, sizeof file, "%s/%s", name, entry->d_name);
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && remove(file))
            remove_tree(file);
    }
    if (dir) closedir(dir);
    if (remove(name)) rmdir(name);                 /* Windows tells the two apart */
}

enum { FILES = 5 };
static const char *const file_name[FILES] = { "model.safetensors", "config.json",
                                              "training.safetensors", "tokenizer.json",
                                              "tokenizer_config.json" };

static void remove_checkpoint(const char *name) {
    char file[600];
    for (int i = 0; i < FILES; i++) {
        snprintf(file, sizeof file, "%s/%s", name, file_name[i]);
        remove(file);
    }
    CHECK(rmdir(name) == 0);                       /* nothing else is in there */
}

/* Smaller than small_config's, and with a vocabulary. */
static void make_model(hmoe_model *m) {
    hmoe_config c = small_config();
    c.V = 5, c.C = 4, c.T = 3;
    c.vocab_size = 5;
    memcpy(c.vocab, "abcde", 5);
    small_create(m, &c, 2);
    spread_weights(m, 0.4, 0.6);
}

static void step_once(hmoe_model *m) {
    static const int tokens[6] = { 0, 1, 2, 3, 4, 0 };
    hmoe_adamw adamw = hmoe_default_adamw();
    CHECK_INT(hmoe_forward(m, HMOE_TRAIN, tokens, tokens, 2, 3), HMOE_OK);
    CHECK_INT(hmoe_backward(m, 1), HMOE_OK);
    CHECK_INT(hmoe_update(m, &adamw), HMOE_OK);
}

/* ---- Configurations. */

static void refuse(const hmoe_config *c, int line, const char *says) {
    char message[HMOE_MESSAGE_SIZE] = "", where[40];
    hmoe_model m;
    size_t live = memory_live;
    memset(&m, 0, sizeof m);
    sprintf(where, "(refused in line %d)", line);
    test_context = where;
    CHECK_INT(hmoe_check_config(c, message), HMOE_BAD_ARGUMENT);
    check_message(message, says);
    CHECK_INT(hmoe_check_config(c, NULL), HMOE_BAD_ARGUMENT);
    CHECK_INT(hmoe_create(&m, c, 1, 1, 1), HMOE_BAD_ARGUMENT);
    check_message(m.message, says);
    CHECK_INT(memory_live, live);
    hmoe_free(&m);                                 /* allowed, and does nothing */
    test_context = "";
}

/* The change to a good configuration, and what the message must contain. */
#define REFUSE(change, says) \
    do { hmoe_config c = small_config(); change; refuse(&c, __LINE__, says); } while (0)

static void bad_configurations(void) {
    hmoe_config good = small_config();
    CHECK_INT(hmoe_check_config(&good, NULL), HMOE_OK);
    REFUSE(c.V = 0, "V");
    REFUSE(c.V = -7, "-7");
    REFUSE(c.V = HMOE_MAX_DIM + 1, "1048577");
    REFUSE(c.T = 0, "T");
    REFUSE(c.T = -3, "-3");
    REFUSE(c.T = HMOE_MAX_DIM + 1, "1048577");
    REFUSE(c.C = 0, "C");
    REFUSE(c.C = -8, "-8");
    REFUSE(c.C = 2 * HMOE_MAX_DIM, "2097152");
    REFUSE((c.C = 10, c.NH = 4), "10");            /* not divisible */
    REFUSE((c.C = 6, c.NH = 2), "6");              /* a head of 3, odd */
    REFUSE(c.NH = 0, "NH");
    REFUSE(c.NH = -2, "-2");
    REFUSE(c.NKV = -1, "-1");
    REFUSE(c.NKV = 4, "NKV is 4: must be from 0 to 2");   /* more than NH */
    REFUSE((c.C = 16, c.NH = 4, c.NKV = 3), "must divide NH");
    REFUSE(c.L = 0, "L");
    REFUSE(c.L = -1, "-1");
    REFUSE(c.L = HMOE_MAX_LAYERS + 1, "1025");
    REFUSE(c.E = 0, "E");
    REFUSE(c.E = -4, "-4");
    REFUSE(c.E = HMOE_MAX_EXPERTS + 1, "257");
    REFUSE(c.K = 0, "K");
    REFUSE(c.K = 5, "5");                          /* more than E */
    REFUSE(c.K = -1, "-1");
    REFUSE((c.H[0] = c.H[1] = c.H[2] = c.H[3] = 0), "0");     /* nothing but null experts */
    REFUSE(c.balance = (hmoe_balance)3, "balance is 3");
    REFUSE(c.balance_rate = -0.1, "balance_rate");
    REFUSE(c.balance_rate = NAN, "balance_rate");
    REFUSE(c.budget = 0.5, "Top-P");                           /* Top-K has none */
    REFUSE((c.routing = HMOE_TOP_P, c.budget = 1.5), "1.5");
    REFUSE((c.routing = HMOE_TOP_P, c.budget = -0.5), "-0.5");
    REFUSE(c.H[1] = -6, "-6");
    REFUSE(c.H[0] = HMOE_MAX_DIM, "1048576");      /* too wide together with the others */
    REFUSE(c.routing = (hmoe_routing)5, "5");
    REFUSE(c.gate = (hmoe_gate)7, "7");
    REFUSE((c.routing = HMOE_TOP_P, c.top_p = 0), "0");
    REFUSE((c.routing = HMOE_TOP_P, c.top_p = -0.25), "-0.25");
    REFUSE((c.routing = HMOE_TOP_P, c.top_p = 1.5), "1.5");
    REFUSE((c.routing = HMOE_TOP_P, c.top_p = NAN), "nan");
    REFUSE(c.loss_coef[HMOE_LB] = NAN, "nan");
    REFUSE(c.loss_coef[HMOE_PP] = INFINITY, "inf");
    REFUSE(c.loss_coef[HMOE_ENT] = -INFINITY, "inf");
    REFUSE(c.loss_coef[HMOE_Z] = NAN, "nan");
    REFUSE(c.rms_norm_eps = NAN, "nan");
    REFUSE(c.rms_norm_eps = -1, "-1");
    REFUSE(c.rope_theta = NAN, "nan");
    REFUSE(c.rope_theta = 0, "0");
    REFUSE(c.vocab_size = 300, "300");
    REFUSE(c.vocab_size = c.V + 1, "vocab: 12 bytes, V: 11");
    REFUSE(c.vocab_size = -1, "vocab: -1 bytes");
}

/* Each size may be large, not all of them: products must not wrap around, and what does not fit
   is out of memory, not a crash. */
static void sizes_that_overflow(void) {
    size_t live = memory_live;
    for (int i = 0; i < 4; i++) {
        hmoe_config c = small_config();
        hmoe_model m;
        hmoe_status status;
        memset(&m, 0, sizeof m);
        if (i != 1) c.C = HMOE_MAX_DIM, c.NH = 2;
        if (i != 2) c.T = HMOE_MAX_DIM / 2;
        if (i != 3) c.V = HMOE_MAX_DIM;
        c.L = i ? 2 : HMOE_MAX_LAYERS;
        c.H[0] = HMOE_MAX_DIM / 2;
        status = hmoe_create(&m, &c, 1, 1, 1);
        CHECK(status == HMOE_OUT_OF_MEMORY || status == HMOE_BAD_ARGUMENT);
        check_message(m.message, "");
        CHECK_INT(memory_live, live);
    }
    for (int i = 0; i < 4; i++) {                  /* sequences that a batch cannot hold */
        static const int max_B[4] = { -1, 1 << 30, 2147483647, HMOE_MAX_TOKENS };
        static const char *const says[4] = { "-1", "1073741824", "2147483647", "16777216" };
        hmoe_config c = small_config();
        hmoe_model m;
        memset(&m, 0, sizeof m);
        CHECK_INT(hmoe_create(&m, &c, 1, max_B[i], 1), HMOE_BAD_ARGUMENT);
        check_message(m.message, says[i]);
        CHECK_INT(memory_live, live);
    }
}

/* hmoe_activation_bytes is what hmoe_create takes, but for the arrays of parameters, the panels of
   each thread and a few small tables. */
static void memory_is_what_was_said(void) {
    for (int training = 0; training < 2; training++)
        for (int max_B = 0; max_B < 3; max_B++) {
            hmoe_config c = hmoe_default_config();
            hmoe_model m;
            size_t before = memory_live, said, taken;
            c.V = 65;
            memset(&m, 0, sizeof m);
            said = hmoe_activation_bytes(&c, max_B, training);
            CHECK_INT(hmoe_create(&m, &c, 1, max_B, training), HMOE_OK);
            taken = memory_live - before - (training ? 4 : 1) * m.param_count * sizeof(hmoe_real)
                    - TEST_THREADS * HMOE__PACKED * sizeof(hmoe_real);
            CHECK(taken + 10000 > said && taken < said + 100000);
            CHECK(said > (size_t)500000 * max_B);
            hmoe_free(&m);
            CHECK(memory_live == before);
        }
}

/* ---- Out of memory: every allocation of every function fails once. programs/analysis.sh checks
   that all of those that the headers declare come up in this part, up to the next one. */

static hmoe_model subject;                         /* what the calls below work on */
static hmoe_cache cache;
static hmoe_muon muon;
static int tokens6[6] = { 0, 1, 2, 3, 4, 0 };
static hmoe_real numbers[64];

static hmoe_status call_create(void) {
    hmoe_config c = small_config();
    return hmoe_create(&subject, &c, 1, 2, 1);
}
static hmoe_status call_create_to_generate(void) {
    hmoe_config c = small_config();
    c.routing = HMOE_TOP_P, c.noisy_gating = 1;
    return hmoe_create(&subject, &c, 1, 0, 0);
}
static hmoe_status call_load(void) { return hmoe_load(&subject, path("oom"), 2, 0); }
static hmoe_status call_resume(void) { return hmoe_load(&subject, path("oom"), 2, 1); }
static hmoe_status call_save(void) {
    HMOE__TRY(hmoe_prepare(&subject, path("oom"), 1));
    hmoe_discard(&subject, path("oom"), 1);
    HMOE__TRY(hmoe_prepare(&subject, path("oom"), 1));
    HMOE__TRY(hmoe_commit(&subject, path("oom"), 1));
    return hmoe_save(&subject, path("oom"), 1);
}
static hmoe_status call_export(void) {
    return hmoe_export_mixtral(&subject, path("oom"), NULL);
}
static hmoe_status call_cache(void) {
    hmoe_status status = hmoe_cache_create(&cache, &subject);
    if (status) CHECK(!cache.keys && !cache.values && !cache.angles && !cache.L);
    return status;
}
static hmoe_status call_next(void) { return hmoe_next(&subject, &cache, 1, numbers); }
static hmoe_status call_step(void) {
    hmoe_adamw adamw = hmoe_default_adamw();
    HMOE__TRY(hmoe_forward(&subject, HMOE_TRAIN, tokens6, tokens6, 2, 3));
    HMOE__TRY(hmoe_backward(&subject, 1));
    if (muon.matrices) HMOE__TRY(hmoe_muon_update(&muon, &subject));
    return hmoe_update(&subject, &adamw);
}
static hmoe_status call_muon(void) {
    int own[64], frozen = 0;                       /* which tensors are Muon's */
    hmoe_status status;
    for (size_t i = 0; i < subject.tensor_count; i++) own[i] = subject.tensors[i].frozen;
    muon = hmoe_default_muon();
    status = hmoe_muon_create(&muon, &subject);
    for (size_t i = 0; i < subject.tensor_count; i++) frozen |= subject.tensors[i].frozen != own[i];
    CHECK_INT(frozen, !status);
    if (status) CHECK(!muon.matrices && !muon.scratch);
    return status;
}
static hmoe_status call_config(void) {
    hmoe_config c;
    return hmoe_load_config(&c, path("oom"), subject.message);
}

/* What cannot report a failure, or has no reason for one. */
static hmoe_status call_the_rest(void) {
    hmoe_config c = hmoe_default_config();
    hmoe_route route;
    hmoe_usage usage;
    hmoe_device of[4];
    hmoe_real logits[6 * 5];
    int device[HMOE_MAX_EXPERTS];
    c.V = 5;
    CHECK(hmoe_activation_bytes(&c, 2, 1) > 0);
    CHECK(hmoe_learning_rate(1, 2, 3, 1, 0) == 0.5);
    CHECK(hmoe_random(1, 2, 3, 4) != hmoe_random(1, 2, 3, 5));
    CHECK(isfinite(hmoe_normal(1, 2, 3, 4)));
    HMOE__TRY(hmoe_expert_sizes(c.H, c.E, 100, "hybrid", subject.message));
    HMOE__TRY(hmoe_byte_vocab(&c, (const unsigned char *)"abc", 3, subject.message));
    HMOE__TRY(hmoe_check_config(&subject.config, subject.message));
    HMOE__TRY(hmoe_forward(&subject, HMOE_EVALUATE, tokens6, tokens6, 2, 3));
    HMOE__TRY(hmoe_get_logits(&subject, logits));
    HMOE__TRY(hmoe_get_token_losses(&subject, numbers));
    HMOE__TRY(hmoe_get_route(&subject, 0, 0, &route));
    hmoe_get_usage(&subject, 0, &usage);
    HMOE__TRY(hmoe_place_experts(device, c.H, c.E, 4, HMOE_PAIRS, subject.message));
    CHECK(hmoe_get_devices(&subject, device, 4, of).params >= 1);
    CHECK(hmoe_activated(&subject) > 0);
    CHECK(hmoe_parameters(&subject) == (double)subject.param_count);
    CHECK(hmoe_sample(logits, 5, 1, 2, 0.9, 1, 0) < 5);
    hmoe_reset_usage(&subject);
    hmoe_zero_gradients(&subject);
    return HMOE_OK;
}

static double loss_now(void) {
    CHECK_INT(hmoe_forward(&subject, HMOE_EVALUATE, tokens6, tokens6, 2, 3), HMOE_OK);
    return subject.losses.total;
}

/* Lets the n-th allocation of a call fail for n = 0, 1, ... until it needs no more. `makes`: the
   call makes the model, so that a failure must leave nothing at all; otherwise the model must
   compute what it did. `least`: so many allocations there are at least. */
static void starve(const char *name, hmoe_status (*call)(void), int makes, int least) {
    int needed = 0;
    size_t live = memory_live;
    uint64_t files = fingerprint(path("oom"));
    double loss = makes ? 0 : loss_now();
    test_context = name;
    for (int n = 0; n <= needed; n++) {
        hmoe_status status;
        if (makes) memset(&subject, 0, sizeof subject);
        memory_calls = 0;
        memory_fail_at = n;
        status = call();
        needed = memory_calls;
        memory_fail_at = -1;
        if (needed <= n) {                         /* nothing failed: so many it needs */
            CHECK_INT(status, HMOE_OK);
            break;
        }
        CHECK_INT(status, HMOE_OUT_OF_MEMORY);
        check_message(subject.message, "memory");
        CHECK_INT(memory_live, live);
        CHECK(fingerprint(path("oom")) == files);
        if (makes) CHECK(small_is_gone(&subject));
        else CHECK(loss_now() == loss);
        if (makes) hmoe_free(&subject);
    }
    CHECK(needed >= least);
}

static void out_of_memory(void) {
    size_t live = memory_live;
    starve("create to generate", call_create_to_generate, 1, 6);
    hmoe_free(&subject);
    starve("create", call_create, 1, 9);
    CHECK(memory_live > live);
    hmoe_free(&subject);
    CHECK_INT(memory_live, live);
    make_model(&subject);
    step_once(&subject);
    CHECK_INT(hmoe_save(&subject, path("oom"), 1), HMOE_OK);
    starve("step", call_step, 0, 0);
    starve("muon_create", call_muon, 0, 2);
    starve("step of Muon", call_step, 0, 0);
    hmoe_muon_free(&muon);
    starve("load_config", call_config, 0, 1);
    starve("cache_create", call_cache, 0, 1);
    starve("next", call_next, 0, 0);
    starve("the rest", call_the_rest, 0, 0);
    hmoe_cache_free(&cache);
    CHECK_INT(hmoe_save(&subject, path("oom"), 1), HMOE_OK);
    starve("save", call_save, 0, 2);               /* the same again: not a byte may change */
    remove(path("oom/training.safetensors"));      /* an export does not touch a run */
    CHECK_INT(call_export(), HMOE_OK);
    starve("export", call_export, 0, 10);
    CHECK_INT(hmoe_save(&subject, path("oom"), 1), HMOE_OK);
    hmoe_free(&subject);
    CHECK_INT(memory_live, live);
    starve("load", call_load, 1, 10);
    hmoe_free(&subject);
    starve("resume", call_resume, 1, 13);
    hmoe_free(&subject);
    CHECK_INT(memory_live, live);
    remove_checkpoint(path("oom"));
}

/* ---- Calls. */

#define REFUSED(call, says) \
    do { \
        CHECK_INT(call, HMOE_BAD_ARGUMENT); \
        check_message(m.message, says); \
    } while (0)

static void bad_batches(void) {
    hmoe_model m;
    int bad[6] = { 0, 1, 5, 2, 3, 4 }, negative[6] = { 0, 1, 2, 3, -2, 4 };
    make_model(&m);                                /* V 5, T 3, two sequences at most */
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, bad, tokens6, 2, 3), "5");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, bad, 2, 3), "5");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, negative, tokens6, 2, 3), "-2");
    REFUSED(hmoe_forward(&m, HMOE_EVALUATE, tokens6, negative, 2, 3), "-2");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 1, 4), "4");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 3, 3), "3 x 3");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 1 << 30, 3), "1073741824");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 0, 3), "0");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 0), "0");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, -1, 3), "-1");
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, -3), "-3");
    step_once(&m);                                 /* none of this did any harm */
    CHECK(m.message[0] == 0);
    hmoe_free(&m);
}

static void calls_out_of_order(void) {
    hmoe_model m;
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_config c;
    make_model(&m);
    c = m.config;
    REFUSED(hmoe_backward(&m, 1), "forward");      /* before any forward */
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, tokens6, 2, 3), HMOE_OK);
    REFUSED(hmoe_backward(&m, 1), "forward");      /* evaluated only */
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, NULL, 2, 3), "target");
    REFUSED(hmoe_backward(&m, 1), "forward");      /* no targets, no loss, no gradient */
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, NULL, 2, 3), HMOE_OK);
    REFUSED(hmoe_get_token_losses(&m, numbers), "losses");
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), HMOE_OK);
    CHECK_INT(hmoe_get_logits(&m, numbers), HMOE_OK);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    REFUSED(hmoe_backward(&m, 1), "forward");      /* twice */
    REFUSED(hmoe_get_logits(&m, numbers), "backward");
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), HMOE_OK);
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    REFUSED(hmoe_backward(&m, 1), "forward");      /* those activations are of other weights */
    hmoe_free(&m);
    memset(&m, 0, sizeof m);                       /* a model that only generates */
    CHECK_INT(hmoe_create(&m, &c, 1, 0, 0), HMOE_OK);
    REFUSED(hmoe_forward(&m, HMOE_EVALUATE, tokens6, NULL, 1, 1), "");
    REFUSED(hmoe_update(&m, &adamw), "training");
    REFUSED(hmoe_backward(&m, 1), "");
    hmoe_free(&m);
    memset(&m, 0, sizeof m);                       /* one that also evaluates */
    CHECK_INT(hmoe_create(&m, &c, 1, 2, 0), HMOE_OK);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, tokens6, 2, 3), HMOE_OK);
    REFUSED(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), "training");
    REFUSED(hmoe_save(&m, path("no"), 1), "training");
    CHECK(access(path("no"), F_OK) != 0);
    hmoe_free(&m);
    hmoe_free(&m);                                 /* twice does no harm */
}

static void indices_out_of_range(void) {
    hmoe_model m, shared;
    hmoe_route route;
    hmoe_usage usage;
    make_model(&m);                                /* L 2, E 4, V 5 */
    hmoe_config other = m.config;
    REFUSED(hmoe_get_route(&m, 0, 0, &route), "forward");
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, NULL, 1, 3), HMOE_OK);
    REFUSED(hmoe_get_route(&m, 2, 0, &route), "2");
    REFUSED(hmoe_get_route(&m, -1, 0, &route), "-1");
    REFUSED(hmoe_get_route(&m, 0, 3, &route), "3");
    REFUSED(hmoe_get_route(&m, 0, -4, &route), "-4");
    CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
    REFUSED(hmoe_next(&m, &cache, 5, numbers), "5");
    REFUSED(hmoe_next(&m, &cache, -1, numbers), "-1");
    CHECK_INT(cache.position, 0);
    hmoe_cache_free(&cache);
    hmoe_cache_free(&cache);
    REFUSED(hmoe_next(&m, &cache, 0, numbers), "cache");
    other.NKV = 1;                                 /* a smaller cache than this model's */
    small_create(&shared, &other, 0);
    CHECK_INT(hmoe_cache_create(&cache, &shared), HMOE_OK);
    REFUSED(hmoe_next(&m, &cache, 0, numbers), "cache");
    hmoe_cache_free(&cache);
    hmoe_free(&shared);
    hmoe_get_usage(&m, 2, &usage);
    CHECK_INT(usage.tokens, 0);
    hmoe_get_usage(&m, -1, &usage);
    CHECK_INT(usage.tokens, 0);
    hmoe_free(&m);
}

/* ---- Not finite. */

/* A weight that everything passes through becomes NaN, or infinite: an error, not a choice of
   expert -1, and it is gone when the weight is. */
static void poisoned_weights(void) {
    hmoe_model m;
    int found = 0;
    make_model(&m);
    CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
    for (size_t i = 0; i < m.tensor_count; i++) {
        const hmoe_tensor *t = &m.tensors[i];
        for (int kind = 0; kind < 2; kind++) {
            hmoe_real *w = m.params + t->offset, saved = *w;
            if (strstr(t->name, "experts")) {      /* used by nobody, perhaps */
                hmoe_usage u;
                int l = 0, e = 0;
                sscanf(t->name, "model.layers.%d.block_sparse_moe.experts.%d.", &l, &e);
                hmoe_reset_usage(&m);
                CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), HMOE_OK);
                hmoe_get_usage(&m, l, &u);
                if (u.share[e] == 0) continue;
            }
            test_context = t->name;
            *w = (hmoe_real)(kind ? INFINITY : NAN);
            CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), HMOE_NOT_FINITE);
            check_message(m.message, "");
            CHECK_INT(hmoe_backward(&m, 1), HMOE_BAD_ARGUMENT);
            if (strstr(t->name, ".gate."))         /* without a loss to tell of it */
                CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, NULL, 2, 3), HMOE_NOT_FINITE);
            if (kind == 0 && !strstr(t->name, "experts"))  /* token 0 need not meet the expert */
                CHECK_INT(hmoe_next(&m, &cache, 0, numbers), HMOE_NOT_FINITE);
            hmoe_cache_free(&cache);
            *w = saved;
            CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
            CHECK_INT(hmoe_next(&m, &cache, 0, numbers), HMOE_OK);
            CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, tokens6, 2, 3), HMOE_OK);
            found++;
        }
    }
    test_context = "";
    CHECK(found > 30);
    hmoe_cache_free(&cache);
    hmoe_free(&m);
}

static void poisoned_gradient(void) {
    static const float poison[3] = { NAN, INFINITY, -INFINITY };
    hmoe_model m;
    hmoe_adamw adamw = hmoe_default_adamw();
    make_model(&m);
    step_once(&m);
    for (int i = 0; i < 3; i++) {
        size_t size = m.param_count * sizeof(hmoe_real);
        char *before = (char *)small_array(3 * size);
        memcpy(before, m.params, size);
        memcpy(before + size, m.exp_avg, size);
        memcpy(before + 2 * size, m.exp_avg_sq, size);
        CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens6, tokens6, 2, 3), HMOE_OK);
        CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
        m.grads[m.param_count - 1 - i] = poison[i];
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_NOT_FINITE);
        check_message(m.message, "");
        CHECK_INT(m.step, 1);
        CHECK(!memcmp(before, m.params, size));
        CHECK(!memcmp(before + size, m.exp_avg, size));
        CHECK(!memcmp(before + 2 * size, m.exp_avg_sq, size));
        for (size_t k = 0; k < m.param_count; k++)      /* the next step starts anew */
            if (m.grads[k] != 0) { CHECK(m.grads[k] == 0); break; }
        free(before);
    }
    step_once(&m);
    CHECK_INT(m.step, 2);
    hmoe_free(&m);
}

/* ---- The export as a Mixtral. */

static void refuse_export(const hmoe_config *c, const char *to, const char *says) {
    hmoe_model m;
    uint64_t before = fingerprint(directory), inside = fingerprint(path(to));
    size_t params = 77, live;
    small_create(&m, c, 0);
    live = memory_live;
    test_context = says;
    CHECK_INT(hmoe_export_mixtral(&m, path(to), &params), HMOE_BAD_ARGUMENT);
    check_message(m.message, says);
    CHECK(params == 77);
    CHECK_INT(memory_live, live);
    CHECK(fingerprint(directory) == before && fingerprint(path(to)) == inside);
    hmoe_free(&m);
}

static void bad_exports(void) {
    hmoe_config c = small_config(), other;
    hmoe_model m;
    other = c, other.routing = HMOE_TOP_P, other.top_p = 0.6;
    refuse_export(&other, "export", "Top-P");
    other.gate = HMOE_GATE_RAW;
    refuse_export(&other, "export", "Top-P");
    other = c, other.gate = HMOE_GATE_RAW;
    refuse_export(&other, "export", "raw");
    other = c, other.K = 1;                        /* raw, where nothing else is said */
    refuse_export(&other, "export", "raw");
    small_create(&m, &c, 0);
    CHECK_INT(hmoe_save(&m, path("run"), 1), HMOE_OK);
    refuse_export(&c, "run", "holds a run");
    remove_checkpoint(path("run"));
    CHECK_INT(hmoe_export_mixtral(&m, path("no/such/parent"), NULL), HMOE_IO);
    check_message(m.message, "no/such/parent");
    write_text(path("file"), "kept");
    CHECK_INT(hmoe_export_mixtral(&m, path("file"), NULL), HMOE_IO);
    check_message(m.message, "file");
    CHECK(remove(path("file")) == 0);              /* it is still one */
    hmoe_free(&m);
    CHECK_INT(memory_live, 0);
}

/* The wide model gives the same logits, from another directory, with the noise left out and no
   tokenizer where there is no vocabulary; and the narrow one is what it was. */
static void good_export(void) {
    hmoe_config c = small_config();
    hmoe_model m, wide;
    hmoe_real logits[6 * 11], same[6 * 11], *before;
    size_t params = 0;
    c.noisy_gating = 1;
    small_create(&m, &c, 1);
    spread_weights(&m, 0.4, 0.6);
    before = reals(m.param_count);
    memcpy(before, m.params, m.param_count * sizeof *before);
    CHECK_INT(hmoe_export_mixtral(&m, path("export"), &params), HMOE_OK);
    CHECK(!memcmp(before, m.params, m.param_count * sizeof *before) && m.message[0] == 0);
    CHECK(m.config.noisy_gating == 1 && m.config.H[1] == 2);
    memset(&wide, 0, sizeof wide);
    CHECK_INT(hmoe_load(&wide, path("export"), 1, 0), HMOE_OK);
    CHECK(wide.param_count == params && wide.config.noisy_gating == 0);
    CHECK_INT(params, m.param_count + 2 * (3 * 8 * (4 * 7 - 15) - 4 * 8 - 4));
    for (int e = 0; e < c.E; e++) CHECK_INT(wide.config.H[e], 7);
    CHECK_INT(hmoe_forward(&m, HMOE_EVALUATE, tokens6, NULL, 1, 6), HMOE_OK);
    CHECK_INT(hmoe_forward(&wide, HMOE_EVALUATE, tokens6, NULL, 1, 6), HMOE_OK);
    CHECK_INT(hmoe_get_logits(&m, logits), HMOE_OK);
    CHECK_INT(hmoe_get_logits(&wide, same), HMOE_OK);
    for (int i = 0; i < 66; i++) CHECK_NEAR(same[i], logits[i], 1e-5, 1e-6);
    CHECK(access(path("export/tokenizer.json"), F_OK) != 0);
    hmoe_free(&wide), hmoe_free(&m);
    free(before);
    remove_checkpoint(path("export"));
    CHECK_INT(memory_live, 0);
}

/* ---- Places where nothing can be read or written. */

static void nowhere(void) {
    hmoe_model m;
    char long_name[5000];
    make_model(&m);
    CHECK_INT(hmoe_save(&m, path("no/such/parent"), 1), HMOE_IO);
    check_message(m.message, "no/such/parent");
    write_text(path("file"), "kept");
    CHECK_INT(hmoe_save(&m, path("file"), 1), HMOE_IO);          /* a file is no directory */
    check_message(m.message, "file");
    CHECK(fingerprint(path("file")) == 1);          /* it is still a file */
    CHECK(remove(path("file")) == 0);
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    CHECK(hmoe_save(&m, long_name + 2000, 1) != HMOE_OK);        /* too long for the system */
    check_message(m.message, "x");
    hmoe_free(&m);
    CHECK(hmoe_load(&m, long_name + 2000, 1, 1) != HMOE_OK);
    check_message(m.message, "x");
    REFUSED(hmoe_load(&m, long_name, 1, 0), "is too long");      /* for hmoe.h, too */
    CHECK_INT(hmoe_load(&m, path("nowhere"), 1, 0), HMOE_IO);
    check_message(m.message, "nowhere/config.json");
    CHECK_INT(hmoe_load(&m, "/dev/null", 1, 0), HMOE_IO);        /* no directory either */
    check_message(m.message, "/dev/null");
    CHECK_INT(memory_live, 0);
}

/* A target that cannot be replaced: here a directory stands in its place. */
static void save_over_the_impossible(void) {
    for (int i = 0; i < FILES; i++) {
        hmoe_model m;
        uint64_t before;
        char name[300];
        snprintf(name, sizeof name, "%s/blocked/%s", directory, file_name[i]);
        if (mkdir(path("blocked"), 0777) || mkdir(name, 0777)) perror(name), exit(2);
        make_model(&m);
        before = fingerprint(path("blocked"));
        CHECK_INT(hmoe_save(&m, path("blocked"), 1), HMOE_IO);
        check_message(m.message, file_name[i]);
        if (i == 0) CHECK(fingerprint(path("blocked")) == before);  /* the first */
        CHECK(rmdir(name) == 0);
        for (int k = 0; k < FILES; k++) {          /* what came before it may be there; no rest */
            snprintf(name, sizeof name, "%s/blocked/%s", directory, file_name[k]);
            remove(name);
        }
        CHECK(rmdir(path("blocked")) == 0);
        hmoe_free(&m);
    }
}

/* The disk is full after so many bytes: a limit on file sizes stands for it. The checkpoint that
   was there still loads, in one piece, and no half-written file is left. */
static void full_disk(void) {
#ifdef SIGXFSZ
    hmoe_model m, loaded;
    struct rlimit limit, saved;
    char message[HMOE_MESSAGE_SIZE] = "";
    make_model(&m);
    CHECK_INT(hmoe_save(&m, path("full"), 1), HMOE_OK);
    step_once(&m);
    signal(SIGXFSZ, SIG_IGN);                      /* so that write fails, as on a full disk */
    if (getrlimit(RLIMIT_FSIZE, &saved)) perror("getrlimit"), exit(2);
    for (rlim_t bytes_left = 0; bytes_left < 4000; bytes_left += 777) {
        uint64_t before = fingerprint(path("full"));
        hmoe_status status;
        limit = saved;
        limit.rlim_cur = bytes_left;
        fflush(stdout);
        setrlimit(RLIMIT_FSIZE, &limit);
        status = hmoe_save(&m, path("full"), 1);
        strcpy(message, m.message);
        setrlimit(RLIMIT_FSIZE, &saved);
        CHECK_INT(status, HMOE_IO);
        check_message(message, "safetensors");
        CHECK(fingerprint(path("full")) == before);
        memset(&loaded, 0, sizeof loaded);
        CHECK_INT(hmoe_load(&loaded, path("full"), 1, 1), HMOE_OK);
        CHECK_INT(loaded.step, 0);
        hmoe_free(&loaded);
    }
    CHECK_INT(hmoe_save(&m, path("full"), 1), HMOE_OK);
    hmoe_free(&m);
    signal(SIGXFSZ, SIG_DFL);
    remove_checkpoint(path("full"));
#endif
}

int main(void) {
    memory_most = memory_soiled = (size_t)1 << 28;  /* Linux would promise far more than it has */
    threads(TEST_THREADS);
    if (!mkdtemp(directory)) { perror(directory); return 1; }
    TEST(bad_configurations);
    TEST(sizes_that_overflow);
    TEST(memory_is_what_was_said);
    TEST(out_of_memory);
    TEST(bad_batches);
    TEST(calls_out_of_order);
    TEST(indices_out_of_range);
    TEST(poisoned_weights);
    TEST(poisoned_gradient);
    TEST(bad_exports);
    TEST(good_export);
    TEST(nowhere);
    TEST(save_over_the_impossible);
    TEST(full_disk);
    remove_tree(directory);
    return test_summary("errors");
}
