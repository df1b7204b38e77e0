/* Everything that can be wrong is wrong here once. What must hold each time: a status and a message
   that names the offending thing, no crash, no leak, nothing changed; and a file never gets more
   memory than its own size justifies. */

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

static const char *path(const char *name) {
    static char buffer[4][300];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(buffer[turn], sizeof buffer[turn], "%s/%s", directory, name);
    return buffer[turn];
}

typedef struct bytes {
    unsigned char *data;
    size_t size;
} bytes;

static bytes read_bytes(const char *name) {
    bytes b = { NULL, 0 };
    struct stat about;
    FILE *f;
    if (stat(name, &about) || !S_ISREG(about.st_mode) || !(f = fopen(name, "rb"))) return b;
    b.data = (unsigned char *)small_array((size_t)about.st_size + 1);   /* a zero behind the end */
    b.size = fread(b.data, 1, (size_t)about.st_size, f);
    fclose(f);
    return b;
}

static void write_bytes(const char *name, const void *data, size_t size) {
    FILE *f = fopen(name, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) perror(name), exit(2);
}

/* A number that changes with any name or byte in a directory. */
static uint64_t fingerprint(const char *name) {
    uint64_t all = 0;
    DIR *dir = opendir(name);
    if (!dir) return 1;
    for (struct dirent *entry; (entry = readdir(dir)); ) {
        char file[600];
        uint64_t h = 0;
        bytes b;
        snprintf(file, sizeof file, "%s/%s", name, entry->d_name);
        b = read_bytes(file);
        for (const char *c = entry->d_name; *c; c++) h = hmoe_random(h, (uint64_t)*c, 1, 0);
        for (size_t i = 0; i < b.size; i++) h = h * 1099511628211u + b.data[i] + 1;
        all += hmoe_random(h, b.size, 2, 0);       /* a sum: the order does not matter */
        free(b.data);
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

enum { MODEL, CONFIG, TRAINING, FILES = 5 };
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

/* The model whose checkpoint is damaged below. */
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
    REFUSE(c.vocab_size = 3, "3");                 /* neither 0 nor V */
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

/* hmoe_activation_bytes is what hmoe_create takes, but for the arrays of parameters and a few small
   tables. */
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
            taken = memory_live - before - (training ? 4 : 1) * m.param_count * sizeof(hmoe_real);
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
static hmoe_status call_shards(void) { return hmoe_load_mixtral(&subject, path("shards"), 1); }
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

static int is_gone(void) {                         /* all but the message, and who would compute */
    static const hmoe_model zero;
    hmoe_model m = subject;
    memset(m.message, 0, sizeof m.message);
    m.backend = NULL;
    return !memcmp(&m, &zero, sizeof m);
}

/* Lets the n-th allocation of a call fail for n = 0, 1, ... until it needs no more. `makes`: the
   call makes the model, so that a failure must leave nothing at all; otherwise the model must
   compute what it did. `least`: so many allocations there are at least. */
static void starve(const char *name, hmoe_status (*call)(void), int makes, int least) {
    int needed = 0;
    size_t live = memory_live;
    uint64_t files = fingerprint(path("oom")) + fingerprint(path("shards"));
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
        CHECK(fingerprint(path("oom")) + fingerprint(path("shards")) == files);
        if (makes) CHECK(is_gone());
        else CHECK(loss_now() == loss);
        if (makes) hmoe_free(&subject);
    }
    CHECK(needed >= least);
    test_context = "";
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
    hmoe_model m;
    hmoe_route route;
    hmoe_usage usage;
    make_model(&m);                                /* L 2, E 4, V 5 */
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

/* ---- Checkpoints. `good` is one that is right; its files are damaged one way at a time. */

static bytes good[3];
static hmoe_real *good_params;

static const char *file_path(int file) {
    static char buffer[3][300];
    snprintf(buffer[file], sizeof buffer[file], "%s/damaged/%s", directory, file_name[file]);
    return buffer[file];
}

static void restore(int file) {
    write_bytes(file_path(file), good[file].data, good[file].size);
}

static void make_checkpoint(void) {
    hmoe_model m;
    make_model(&m);
    step_once(&m);
    m.best_val_loss = 2.5;
    CHECK_INT(hmoe_save(&m, path("damaged"), 1), HMOE_OK);
    good_params = reals(m.param_count);
    memcpy(good_params, m.params, m.param_count * sizeof *good_params);
    for (int i = 0; i < 3; i++) good[i] = read_bytes(file_path(i));
    hmoe_free(&m);
}

/* Loads what stands in the directory, of which one file is damaged; returns the status. Where that
   is OK the weights must be the good ones; otherwise there must be a message, and nothing else. */
static hmoe_status load_damaged(int file, char *message) {
    hmoe_model m;
    hmoe_status status;
    size_t live = memory_live;
    memset(&m, 0, sizeof m);
    memory_peak = memory_live;
    status = hmoe_load(&m, path("damaged"), 1, file == TRAINING);
    CHECK(memory_peak < 4 << 20);                   /* the files have some 50 kilobytes */
    strcpy(message, m.message);
    if (status == HMOE_OK) {
        CHECK(!memcmp(m.params, good_params, m.param_count * sizeof *good_params));
    } else {
        check_message(m.message, "");
        CHECK(status == HMOE_BAD_FILE || status == HMOE_OUT_OF_MEMORY || status == HMOE_IO);
        CHECK_INT(memory_live, live);
    }
    hmoe_free(&m);
    CHECK_INT(memory_live, live);
    return status;
}

static hmoe_status load_with(int file, const void *data, size_t size, char *message) {
    write_bytes(file_path(file), data, size);
    return load_damaged(file, message);
}

/* One byte in its place: a file system may flush a file that is written anew, and there are ten
   thousand of these. */
static void write_byte(int file, size_t at, int byte) {
    FILE *f = fopen(file_path(file), "r+b");
    if (!f || fseek(f, (long)at, SEEK_SET) || putc(byte, f) == EOF || fclose(f))
        perror(file_path(file)), exit(2);
}

static void refuse_file(int file, const void *data, size_t size, const char *says) {
    char message[HMOE_MESSAGE_SIZE];
    uint64_t before;
    write_bytes(file_path(file), data, size);
    before = fingerprint(path("damaged"));
    CHECK_INT(load_with(file, data, size, message), HMOE_BAD_FILE);
    CHECK(fingerprint(path("damaged")) == before);
    check_message(message, says);
    check_message(message, file_name[file]);
    restore(file);
}

/* The file with the first `find` (after the first `after`) replaced. In a safetensors file the
   header's length is put right, so that nothing else is wrong. */
static bytes edited(int file, const char *after, const char *find, const char *replace) {
    size_t start = file == CONFIG ? 0 : 8, end = good[file].size, at, n = strlen(find);
    size_t m = strlen(replace);
    uint64_t header = 0;
    bytes b;
    if (file != CONFIG) {
        for (int i = 7; i >= 0; i--) header = header << 8 | good[file].data[i];
        end = 8 + (size_t)header;
    }
    for (at = start; at + strlen(after) <= end; at++)
        if (!memcmp(good[file].data + at, after, strlen(after))) break;
    for (; at + n <= end; at++) if (!memcmp(good[file].data + at, find, n)) break;
    if (at + n > end) {
        printf("errors.c: %s has no %s after %s\n", file_name[file], find, after);
        exit(2);
    }
    b.size = good[file].size - n + m;
    b.data = (unsigned char *)small_array(b.size);
    memcpy(b.data, good[file].data, at);
    memcpy(b.data + at, replace, m);
    memcpy(b.data + at + m, good[file].data + at + n, good[file].size - at - n);
    if (file != CONFIG)
        for (int i = 0; i < 8; i++) b.data[i] = (unsigned char)((header - n + m) >> (8 * i));
    return b;
}

static void refuse_edit(int file, const char *after, const char *find, const char *replace,
                        const char *says) {
    bytes b = edited(file, after, find, replace);
    test_context = replace;
    refuse_file(file, b.data, b.size, says);
    free(b.data);
    test_context = "";
}

static void intact(void) {
    char message[HMOE_MESSAGE_SIZE];
    for (int i = 0; i < 3; i++)
        CHECK_INT(load_with(i, good[i].data, good[i].size, message), HMOE_OK);
}

static void missing_files(void) {
    hmoe_model m;
    hmoe_config c;
    char message[HMOE_MESSAGE_SIZE] = "";
    memset(&m, 0, sizeof m);
    CHECK_INT(hmoe_load(&m, path("nowhere"), 1, 0), HMOE_IO);
    check_message(m.message, "nowhere");
    CHECK_INT(hmoe_load_config(&c, path("nowhere"), message), HMOE_IO);
    check_message(message, "nowhere");
    for (int i = 0; i < 3; i++) {
        remove(file_path(i));
        CHECK_INT(hmoe_load(&m, path("damaged"), 1, i == TRAINING), HMOE_IO);
        check_message(m.message, file_name[i]);
        restore(i);
    }
    CHECK_INT(hmoe_load(&m, "/dev/null", 1, 0), HMOE_IO);
    check_message(m.message, "/dev/null");
    CHECK_INT(memory_live, 0);
}

static void truncated_files(void) {
    char message[HMOE_MESSAGE_SIZE];
    for (int file = 0; file < 3; file++) {
        size_t size = good[file].size;
        for (size_t i = 0; i <= 24; i++) {         /* the first bytes, and evenly from there */
            size_t cut = i < 10 ? i : size * (i - 10) / 15;
            refuse_file(file, good[file].data, cut, "");
        }
        if (file == CONFIG) continue;              /* which may lack the line's end */
        for (size_t cut = size - 5; cut < size; cut++)
            refuse_file(file, good[file].data, cut, "");
        for (size_t extra = 1; extra <= 8; extra += 7) {          /* and bytes too many */
            unsigned char *longer = (unsigned char *)small_array(size + extra);
            memcpy(longer, good[file].data, size);
            CHECK_INT(load_with(file, longer, size + extra, message), HMOE_BAD_FILE);
            restore(file);
            free(longer);
        }
    }
}

/* Any bit of a header may flip: then the load fails, or what flipped did not concern the weights
   (load_damaged compares them). config.json has both its masks, model.safetensors one for each
   byte; training.safetensors the metadata and every third byte of the rest, which is alike. */
static void every_header_byte_flipped(void) {
    char message[HMOE_MESSAGE_SIZE];
    uint64_t before = fingerprint(path("damaged"));
    for (int file = 0; file < 3; file++) {
        size_t header = good[file].size;
        int refused = 0;
        unsigned char *data = good[file].data;
        if (file != CONFIG) header = 8 + data[0] + 256u * data[1] + 65536u * data[2];
        for (size_t i = 0; i < header; i++) {
            static const unsigned char masks[2] = { 1, 0x80 };
            for (int k = 0; k < 2; k++) {
                if (file != CONFIG && (i + k) % 2) continue;
                if (file == TRAINING && i > 300 && i % 3) continue;
                write_byte(file, i, data[i] ^ masks[k]);
                refused += load_damaged(file, message) != HMOE_OK;
            }
            write_byte(file, i, data[i]);
        }
        restore(file);
        CHECK(refused > (int)header / 5);
        CHECK(fingerprint(path("damaged")) == before);
    }
}

static void put_length(unsigned char *to, uint64_t n) {
    for (int i = 0; i < 8; i++) to[i] = (unsigned char)(n >> (8 * i));
}

static void hostile_headers(void) {
    static const uint64_t lengths[] = { 0, 1, (uint64_t)1 << 31, (uint64_t)1 << 32,
                                        (uint64_t)1 << 40, (uint64_t)1 << 63, UINT64_MAX,
                                        UINT64_MAX - 7, UINT64_MAX - 8 };
    for (int file = MODEL; file <= TRAINING; file += TRAINING - MODEL) {
        unsigned char *copy = (unsigned char *)small_array(good[file].size);
        unsigned char *deep = (unsigned char *)small_array(300008);
        memcpy(copy, good[file].data, good[file].size);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            put_length(copy, lengths[i]);
            refuse_file(file, copy, good[file].size, "");
        }
        put_length(copy, good[file].size - 8);     /* a header that is the whole file */
        refuse_file(file, copy, good[file].size, "");
        for (int kind = 0; kind < 3; kind++) {     /* deeper than any stack */
            const char *nest = kind == 0 ? "[" : kind == 1 ? "{\"a\":" : "{\"x\":[";
            size_t n = strlen(nest);
            put_length(deep, 300000);
            for (size_t i = 0; i < 300000; i++) deep[8 + i] = (unsigned char)nest[i % n];
            refuse_file(file, deep, 300008, "");
        }
        free(copy);
        free(deep);
    }
}

static void wrong_tensors(void) {
    static const char *const norm = "model.norm.weight", *const head = "lm_head.weight";
    for (int file = MODEL; file <= TRAINING; file += TRAINING - MODEL) {
        refuse_edit(file, norm, "F32", "F16", "model.norm.weight");
        refuse_edit(file, norm, "F32", "I64", "F32");
        refuse_edit(file, norm, "[4]", "[5]", "model.norm.weight");
        refuse_edit(file, norm, "[4]", "[2,2]", "model.norm.weight");
        refuse_edit(file, norm, "[4]", "[]", "model.norm.weight");
        refuse_edit(file, norm, "[4]", "[-4]", "");
        refuse_edit(file, norm, "[4]", "[4.5]", "");
        refuse_edit(file, norm, "[4]", "[1e30]", "");
        refuse_edit(file, norm, "[4]", "[18446744073709551620]", "");
        refuse_edit(file, norm, "[4]", "\"4\"", "");
        refuse_edit(file, head, "[5,4]", "[4,5]", "lm_head.weight");
        refuse_edit(file, "", norm, "model.norm.heavy", "model.norm");       /* missing */
        refuse_edit(file, "", norm, head, "");     /* that one twice, the other missing */
        refuse_edit(file, norm, "\"dtype\"", "\"type\"", "model.norm.weight");
        refuse_edit(file, norm, "\"shape\"", "\"form\"", "model.norm.weight");
        refuse_edit(file, norm, "\"data_offsets\"", "\"offsets\"", "model.norm.weight");
        refuse_edit(file, "", "\"model.norm.weight\"",
                    "\"extra\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
                    "\"model.norm.weight\"", "extra");
        refuse_edit(file, "", "\"model.norm.weight\"", "5,\"model.norm.weight\"", "");
        refuse_edit(file, "", "\"model.norm.weight\"",   /* twice the same, word for word */
                    "\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[4],"
                    "\"data_offsets\":[0,16]},\"model.norm.weight\"", "model.norm.weight");
    }
    refuse_edit(TRAINING, "", "{\"__metadata__\"", "{\"__metadata__\":{},\"__metadata__\"",
                "__metadata__ comes twice");
    refuse_edit(TRAINING, "", "\"__metadata__\"", "\"__metaphor__\"", "__metadata__ is missing");
}

/* The first description of a tensor's place in a file, as text. */
static const char *offsets_of(int file, const char *name) {
    static char text[2][60];
    static int turn;
    const unsigned char *at = good[file].data + 8, *end;
    turn ^= 1;
    while (memcmp(at, name, strlen(name))) at++;
    while (memcmp(at, "\"data_offsets\"", 14)) at++;
    for (end = at; *end != ']'; end++) {}
    snprintf(text[turn], sizeof text[turn], "%.*s", (int)(end - at + 1), (const char *)at);
    return text[turn];
}

/* The first tensor begins at 0; moved, it overlaps the second or leaves a gap, lies beyond the end
   of the file, or has another size than its shape says. */
static void wrong_offsets(void) {
    static const char *const offsets[] = {
        "\"data_offsets\":[4,", "\"data_offsets\":[-4,", "\"data_offsets\":[99999999,",
        "\"data_offsets\":[18446744073709551600,", "\"data_offsets\":[1e3,",
        "\"data_offsets\":[0.5,", "\"data_offsets\":[\"0\",", "\"data_offsets\":[0,0,",
        "\"data_offsets\":[", "\"data_offsets\":[null," };
    for (int file = MODEL; file <= TRAINING; file += TRAINING - MODEL) {
        for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++)
            refuse_edit(file, "", "\"data_offsets\":[0,", offsets[i], "");
        /* two tensors of one size on the same bytes: each by itself is within the file */
        refuse_edit(file, "1.self_attn.k_proj", offsets_of(file, "1.self_attn.k_proj"),
                    offsets_of(file, "1.self_attn.q_proj"), "overlap");
    }
}

/* A run continues in the type it began in: a file of the other one is refused by name. */
static void the_other_type(void) {
    char message[HMOE_MESSAGE_SIZE];
    bytes b = { NULL, good[TRAINING].size };
    b.data = (unsigned char *)small_array(b.size);
    memcpy(b.data, good[TRAINING].data, b.size);
    for (size_t i = 0; i + 3 < b.size; i++)
        if (!memcmp(b.data + i, "\"F32", 4)) memcpy(b.data + i, "\"F64", 4);
    CHECK_INT(load_with(TRAINING, b.data, b.size, message), HMOE_BAD_FILE);
    check_message(message, "F32");                 /* what it should be */
    check_message(message, "training.safetensors");
    restore(TRAINING);
    free(b.data);
}

/* ---- config.json. */

/* The value that stands behind a key, as text; it ends at a comma or a line's end outside of
   brackets. */
static size_t value_of(const char *key, size_t *length) {
    const char *text = (const char *)good[CONFIG].data, *at, *end;
    char quoted[100];
    int depth = 0;
    sprintf(quoted, "\"%s\":", key);
    at = strstr(text, quoted);                     /* read_bytes leaves a zero behind the text */
    if (!at) { printf("errors.c: config.json has no %s\n", key); exit(2); }
    at += strlen(quoted);
    while (*at == ' ') at++;
    for (end = at; depth > 0 || (*end != ',' && *end != '\n' && *end != '}'); end++)
        depth += (*end == '[' || *end == '{') - (*end == ']' || *end == '}');
    *length = (size_t)(end - at);
    return (size_t)(at - text);
}

static bytes config_with(const char *key, const char *value) {
    size_t length, at = value_of(key, &length), n = strlen(value);
    bytes b = { NULL, good[CONFIG].size - length + n };
    b.data = (unsigned char *)small_array(b.size);
    memcpy(b.data, good[CONFIG].data, at);
    memcpy(b.data + at, value, n);
    memcpy(b.data + at + n, good[CONFIG].data + at + length, good[CONFIG].size - at - length);
    return b;
}

static void refuse_value(const char *key, const char *value, const char *says) {
    bytes b = config_with(key, value);
    char where[100];
    sprintf(where, "(%s: %.40s)", key, value);
    test_context = where;
    refuse_file(CONFIG, b.data, b.size, says);
    free(b.data);
    test_context = "";
}

static void keys_missing_or_of_the_wrong_type(void) {
    static const char *const keys[] = {
        "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "num_local_experts", "num_experts_per_tok", "intermediate_size",
        "vocab_size", "max_position_embeddings", "rms_norm_eps", "expert_sizes",
        "routing", "top_p", "norm_topk_prob", "noisy_gating", "lb_coef", "pp_coef", "ent_coef",
        "z_coef" };
    static const char *const nonsense[] = { "null", "{}", "\"x\"", "[1, 2]", "[[1]]", "nan" };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char quoted[60], renamed[60];
        bytes b;
        sprintf(quoted, "\"%s\"", keys[i]);
        sprintf(renamed, "\"x%s\"", keys[i]);
        b = edited(CONFIG, "", quoted, renamed);
        test_context = keys[i];
        refuse_file(CONFIG, b.data, b.size, keys[i]);
        free(b.data);
        for (size_t k = 0; k < sizeof nonsense / sizeof *nonsense; k++)
            refuse_value(keys[i], nonsense[k], k == 5 ? "" : keys[i]);
    }
    test_context = "";
}

/* Newer files have rope_theta in an object, with what scales it; ours has it in both places. */
static void rope_in_either_place(void) {
    char message[HMOE_MESSAGE_SIZE];
    bytes flat = edited(CONFIG, "rope_parameters", "\"rope_theta\"", "\"none\"");
    bytes inner = edited(CONFIG, "", "\"rope_theta\"", "\"none\"");
    bytes scaled = edited(CONFIG, "", "\"default\"", "\"yarn\"");
    CHECK_INT(load_with(CONFIG, inner.data, inner.size, message), HMOE_OK);
    refuse_file(CONFIG, flat.data, flat.size, "rope_parameters");
    refuse_file(CONFIG, scaled.data, scaled.size, "rope_parameters");
    refuse_value("rope_theta", "500000", "rope_theta");
    free(flat.data), free(inner.data), free(scaled.data);
    restore(CONFIG);
}

/* Keys that we do not write, of a Mixtral that others made: C 4, NH 2, T 3. */
static void keys_of_others(void) {
    static const struct { const char *key, *right, *wrong; } cases[] = {
        { "sliding_window", "null", "2" },        { "sliding_window", "3", "0" },
        { "sliding_window", "4096", "-1" },       { "sliding_window", "false", "\"4096\"" },
        { "head_dim", "2", "4" },                 { "head_dim", "null", "1" },
        { "head_dim", "2.0", "[2]" },             { "rope_scaling", "null", "{\"factor\": 2}" },
        { "attention_bias", "false", "true" },    { "attention_dropout", "0.5", NULL },
        { "quantization_config", "null", "{\"quant_method\": \"fp8\"}" },
        { "transformers_version", "\"4.57.1\"", NULL },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int wrong = 0; wrong < 2; wrong++) {
            char start[100], message[HMOE_MESSAGE_SIZE];
            const char *value = wrong ? cases[i].wrong : cases[i].right;
            bytes b;
            if (!value) continue;
            sprintf(start, "{\"%s\": %s,", cases[i].key, value);
            if (wrong) refuse_edit(CONFIG, "", "{", start, cases[i].key);
            else {
                b = edited(CONFIG, "", "{", start);
                test_context = start;
                CHECK_INT(load_with(CONFIG, b.data, b.size, message), HMOE_OK);
                test_context = "";
                free(b.data);
            }
            restore(CONFIG);
        }
}

static void values_out_of_range(void) {
    static const char *const counts[] = { "hidden_size", "num_hidden_layers",
                                          "num_attention_heads", "num_local_experts",
                                          "num_experts_per_tok", "vocab_size",
                                          "max_position_embeddings" };
    static const char *const wrong[] = { "0", "-4", "2.5", "4294967300", "1e300", "1e999" };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++)
            refuse_value(counts[i], wrong[k], "");
    refuse_value("hidden_size", "6", "6");         /* a head of 3 */
    refuse_value("num_attention_heads", "3", "3");
    refuse_value("num_experts_per_tok", "5", "5");
    refuse_value("num_key_value_heads", "1", "num_key_value_heads");     /* grouped queries */
    refuse_value("expert_sizes", "[5, 2, 7]", "expert_sizes");
    refuse_value("expert_sizes", "[5, 2, 7, 1, 1]", "expert_sizes");
    refuse_value("expert_sizes", "[5, 2, 7, -1]", "expert_sizes");
    refuse_value("expert_sizes", "[5, 2, 7, \"1\"]", "expert_sizes");
    refuse_value("routing", "\"topq\"", "topq");
    refuse_value("noisy_gating", "false, \"balance\": \"heads\"", "balance");
    refuse_value("noisy_gating", "false, \"balance\": 1", "balance");
    refuse_value("noisy_gating", "false, \"balance_rate\": 2", "balance_rate");
    refuse_value("noisy_gating", "false, \"balance_rate\": \"0.1\"", "balance_rate");
    refuse_value("noisy_gating", "false, \"budget\": -0.5", "budget");
    refuse_value("noisy_gating", "false, \"budget\": 0.5", "budget");   /* with Top-K */
    refuse_value("norm_topk_prob", "1", "norm_topk_prob");
    refuse_value("rms_norm_eps", "-1", "-1");
    refuse_value("rope_theta", "0", "0");
    refuse_value("lb_coef", "1e999", "lb_coef");
    refuse_value("hidden_act", "\"gelu\"", "gelu");
    refuse_value("tie_word_embeddings", "true", "tie_word_embeddings");
    refuse_value("vocab", "[97, 98, 99]", "vocab");
    refuse_value("vocab", "[97, 98, 99, 100, 256]", "vocab");
    refuse_value("vocab", "[97, 98, 99, 100, -1]", "vocab");
    refuse_value("vocab", "[97, 98, 99, 100, 97]", "vocab");     /* a byte twice */
    refuse_value("vocab", "\"abcde\"", "vocab");
}

/* A configuration that is one, but not that of these weights. */
static void widths_that_do_not_fit(void) {
    static const struct { const char *key, *value; } cases[] = {
        { "expert_sizes", "[5, 2, 7, 2]" },  { "expert_sizes", "[2, 5, 7, 1]" },
        { "num_hidden_layers", "1" },        { "num_hidden_layers", "3" },
        { "hidden_size", "8" },              { "noisy_gating", "true" },
        { "expert_sizes", "[5, 2, 7, 0]" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes b = config_with(cases[i].key, cases[i].value);
        for (int training = 0; training < 2; training++) {
            hmoe_model m;
            memset(&m, 0, sizeof m);
            test_context = cases[i].value;
            write_bytes(file_path(CONFIG), b.data, b.size);
            CHECK_INT(hmoe_load(&m, path("damaged"), 1, training), HMOE_BAD_FILE);
            check_message(m.message, training ? "training.safetensors" : "model.");
            hmoe_free(&m);
            restore(CONFIG);
        }
        free(b.data);
    }
    test_context = "";
    CHECK_INT(memory_live, 0);
}

/* Terabytes on paper, five kilobytes on disk: compared before anything is allocated. */
static void terabytes_beside_a_small_file(void) {
    static const struct { const char *key, *value; } cases[] = {
        { "hidden_size", "1048576" }, { "vocab_size", "1048576" },
        { "num_hidden_layers", "1024" }, { "expert_sizes", "[1000000, 20000, 20000, 1]" } };
    bytes saved = good[CONFIG];
    for (size_t i = 0; i < 4; i++) {
        good[CONFIG] = config_with(cases[i].key, cases[i].value);
        for (int training = 0; training < 2; training++) {
            hmoe_model m;
            hmoe_status status;
            memset(&m, 0, sizeof m);
            restore(CONFIG);
            memory_peak = memory_live;
            test_context = cases[i].key;
            status = hmoe_load(&m, path("damaged"), 1, training);
            CHECK(status == HMOE_BAD_FILE);
            CHECK(memory_peak < 2 << 20);
            check_message(m.message, "");
            hmoe_free(&m);
        }
        free(good[CONFIG].data);
        good[CONFIG] = saved;
    }
    restore(CONFIG);
    test_context = "";
    CHECK_INT(memory_live, 0);
}

/* Our own keys with something besides: whatever a value looks like, it must be one. */
static void text_that_is_not_json(void) {
    static const char *const wrong[] = {
        "", "{", "}", "[", "]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{\"a\" 1}", "{a:1}",
        "{'a':1}", "[1 2]", "[1,]", "[,1]", "[1}", "{\"a\":1]", "1e", "-", "--1",
        "0x10", "tru", "True", "NaN", "Infinity", "-inf", "\"\\q\"", "\"a\nb\"", "\"", "'a'", "a",
        "1 2", "1, 2" };
    static const char *const right[] = {
        "0", "-0.5", "1e-5", "2E+3", "true", "false", "null", "\"\"", "\"\\\"\\\\\\u00e9\"", "[]",
        "{}", " [ 1 , [ ] ] ", "{ \"a\" : { \"hidden_size\" : 7 } }", "[[[[[[[[[[]]]]]]]]]]" };
    char message[HMOE_MESSAGE_SIZE], *deep = (char *)small_array(400000);
    bytes b;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char start[100];
        sprintf(start, "{\"junk\": %s,", wrong[i]);
        refuse_edit(CONFIG, "", "{", start, "");
    }
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        char start[100];
        sprintf(start, "{\"junk\": %s,", right[i]);
        b = edited(CONFIG, "", "{", start);
        test_context = right[i];
        CHECK_INT(load_with(CONFIG, b.data, b.size, message), HMOE_OK);
        test_context = "";
        restore(CONFIG);
        free(b.data);
    }
    refuse_file(CONFIG, "", 0, "");
    refuse_file(CONFIG, "[]", 2, "");
    refuse_file(CONFIG, "null", 4, "");
    refuse_file(CONFIG, "\xef\xbb\xbf{}", 5, "");
    for (int kind = 0; kind < 2; kind++) {         /* something after the end, also after a zero */
        bytes longer = { NULL, good[CONFIG].size + 2 };
        longer.data = (unsigned char *)small_array(longer.size);
        memcpy(longer.data, good[CONFIG].data, good[CONFIG].size);
        memcpy(longer.data + good[CONFIG].size, kind ? "\0{" : " {", 2);
        test_context = kind ? "(after a zero byte)" : "(after the end)";
        refuse_file(CONFIG, longer.data, longer.size, "");
        test_context = "";
        free(longer.data);
    }
    for (int kind = 0; kind < 2; kind++) {         /* deeper than any stack */
        const char *nest = kind ? "{\"a\":" : "[";
        int at = sprintf(deep, "{\"junk\": "), n = (int)strlen(nest);
        for (int i = 0; i < 300000; i++) deep[at + i] = nest[i % n];
        strcpy(deep + at + 300000, ",");
        b = edited(CONFIG, "", "{", deep);
        refuse_file(CONFIG, b.data, b.size, "");
        free(b.data);
    }
    free(deep);
    refuse_edit(CONFIG, "", "\"hidden_size\"", "\"hidden_size\": 4,\n\"hidden_size\"",
                "hidden_size");
}

/* ---- Half precision, shards, and the export: what others write, and what is written for them. */

/* Writes the tensors number `first`, `first` + `step` ... of a model, the last one first: their
   values as floats, or as the halves that stand in `half`, one for each parameter. */
static void write_tensors(const char *name, const hmoe_model *m, size_t first, size_t step,
                          const char *dtype, const uint16_t *half) {
    char *header = (char *)small_array(300 * m->tensor_count + 100);
    unsigned char *data = (unsigned char *)small_array(m->param_count * 4);
    size_t size = half ? 2 : 4, at = 0, n = (size_t)sprintf(header, "{");
    bytes file = { NULL, 0 };
    for (size_t i = m->tensor_count; i-- > 0;) {
        const hmoe_tensor *t = &m->tensors[i];
        size_t count = (size_t)t->rows * t->cols, start = at;
        if (i < first || (i - first) % step) continue;
        for (size_t k = t->offset; k < t->offset + count; k++, at += size) {
            float value = (float)m->params[k];
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (half) bits = half[k];
            for (size_t b = 0; b < size; b++) data[at + b] = (unsigned char)(bits >> 8 * b);
        }
        n += (size_t)sprintf(header + n, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%d%s",
                             n > 1 ? "," : "", t->name, dtype, t->rows, t->dims == 2 ? "," : "");
        if (t->dims == 2) n += (size_t)sprintf(header + n, "%d", t->cols);
        n += (size_t)sprintf(header + n, "],\"data_offsets\":[%lu,%lu]}", (unsigned long)start,
                             (unsigned long)at);
    }
    header[n++] = '}';
    file.size = 8 + n + at;
    file.data = (unsigned char *)small_array(file.size);
    put_length(file.data, n);
    memcpy(file.data + 8, header, n);
    memcpy(file.data + 8 + n, data, at);
    write_bytes(name, file.data, file.size);
    free(header), free(data), free(file.data);
}

/* What a half is worth, from its definition. */
static double half_value(unsigned half, int exponent_bits) {
    int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(half & 0x7fff) >> fraction_bits;
    double fraction = ldexp(half & ((1u << fraction_bits) - 1), -fraction_bits), value;
    if (exponent == 2 * bias + 1) value = fraction > 0 ? (double)NAN : (double)INFINITY;
    else if (exponent) value = ldexp(1 + fraction, exponent - bias);
    else value = ldexp(fraction, 1 - bias);
    return half >> 15 ? -value : value;
}

/* Every half there is, in a tensor so large that it is read in more than one piece. */
static void half_precision(void) {
    static const char *const dtype[2] = { "F16", "BF16" };
    hmoe_config c = small_config();
    hmoe_model m;
    uint16_t *half;
    c.V = 9000, c.C = 8, c.T = 3;
    small_create(&m, &c, 0);
    CHECK_INT(hmoe_save(&m, path("half"), 0), HMOE_OK);
    half = (uint16_t *)small_array(m.param_count * sizeof *half);
    for (size_t k = 0; k < m.param_count; k++) half[k] = (uint16_t)(k * 25 + k / 65536);
    for (int type = 0; type < 2; type++) {
        hmoe_model loaded;
        int wrong = 0;
        memset(&loaded, 0, sizeof loaded);
        test_context = dtype[type];
        write_tensors(path("half/model.safetensors"), &m, 0, 1, dtype[type], half);
        CHECK_INT(hmoe_load_mixtral(&loaded, path("half"), 0), HMOE_OK);
        for (size_t k = 0; k < m.param_count && loaded.params; k++) {
            double right = half_value(half[k], type ? 8 : 5), seen = (double)loaded.params[k];
            if (isnan(right) ? isnan(seen) : seen == right && !signbit(seen) == !signbit(right))
                continue;
            if (wrong++ == 0) printf("%s %04x is read as %g\n", dtype[type], half[k], seen);
        }
        CHECK_INT(wrong, 0);
        hmoe_free(&loaded);
    }
    test_context = "";
    free(half);
    hmoe_free(&m);
    remove_checkpoint(path("half"));
    CHECK_INT(memory_live, 0);
}

static void write_index(const char *text) {
    write_bytes(path("shards/model.safetensors.index.json"), text, strlen(text));
}

/* The index is the least that one can be: with other names in it, nothing else is read of it. */
static void write_index_of(const char *value) {
    char index[300];
    sprintf(index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {\"lm_head.weight\": %s, "
            "\"model.norm.weight\": 5}}", value);
    write_index(index);
}

/* A model as so many shards, and nothing else in the directory. */
static void cut(const hmoe_model *m, int n) {
    char name[100];
    remove_tree(path("shards"));
    if (mkdir(path("shards"), 0777)) perror(path("shards")), exit(2);
    write_bytes(path("shards/config.json"), good[CONFIG].data, good[CONFIG].size);
    for (int i = 0; i < n; i++) {
        sprintf(name, "shards/model-%05d-of-%05d.safetensors", i + 1, n);
        write_tensors(path(name), m, (size_t)i, (size_t)n, "F32", NULL);
    }
    sprintf(name, "\"model-00001-of-%05d.safetensors\"", n);
    write_index_of(name);
}

/* Loads them: the good weights, or a status with a message. */
static void load_shards(hmoe_status right, const char *says) {
    hmoe_model m;
    size_t live = memory_live;
    uint64_t before = fingerprint(path("shards"));
    memset(&m, 0, sizeof m);
    memory_peak = memory_live;
    test_context = says;
    CHECK_INT(hmoe_load_mixtral(&m, path("shards"), 1), right);
    CHECK(memory_peak < memory_live + (4 << 20));
    if (right) check_message(m.message, says);
    else CHECK(!memcmp(m.params, good_params, m.param_count * sizeof *good_params));
    hmoe_free(&m);
    CHECK_INT(memory_live, live);
    CHECK(fingerprint(path("shards")) == before);
    test_context = "";
}

static void wrong_indices(const hmoe_model *m) {
    static const char *const text[][2] = {
        { "", "not one JSON object" },            { "[]", "not one JSON object" },
        { "{\"weight_map\": {}", "not one JSON object" },
        { "{}", "weight_map is missing" },        { "{\"weight_map\": null}", "weight_map" },
        { "{\"weight_map\": []}", "weight_map" },  { "{\"weight_map\": {}}", "weight_map" },
        { "{\"weight_map\": \"x\"}", "weight_map" },
        { "{\"weight_map\": [\"model-00001-of-00002.safetensors\"]}", "weight_map" },
        { "{\"weight_map\": {}, \"weight_map\": {}}", "weight_map comes twice" } };
    static const char *const names[] = {
        "5", "null", "{}", "[]", "\"\"", "\"model-\"", "\"model.safetensors\"",
        "\"model-1-of-2.safetensors\"", "\"model-00001-of-2.safetensors\"",
        "\"model-00001-of-000002.safetensors\"", "\"model-00001-of-00000.safetensors\"",
        "\"model-00001-of--0002.safetensors\"", "\"model-00001-of-xxxxx.safetensors\"",
        "\"model-00001-of-\"", "\"../model-00001-of-00002.safetensors\"",
        "\"pytorch_model-00001-of-00002.bin\"" };
    cut(m, 2);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        write_index(text[i][0]);
        load_shards(HMOE_BAD_FILE, text[i][1]);
        load_shards(HMOE_BAD_FILE, "model.safetensors.index.json");
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        write_index_of(names[i]);
        load_shards(HMOE_BAD_FILE, "model-00001-of-00002.safetensors");   /* as it should be */
        load_shards(HMOE_BAD_FILE, "weight_map");
    }
    write_index_of("\"model-00001-of-00001.safetensors\"");   /* such files do not exist */
    load_shards(HMOE_IO, "model-00001-of-00001.safetensors");
    write_index_of("\"model-00001-of-99999.safetensors\"");
    load_shards(HMOE_IO, "model-00001-of-99999.safetensors");
    write_index_of("\"model-00001-of-00002.safetensors\"");
    load_shards(HMOE_OK, "(restored)");
}

static void wrong_shards(const hmoe_model *m) {
    static const char *const second = "shards/model-00002-of-00003.safetensors";
    char quoted[HMOE_NAME_SIZE + 20];
    bytes b, config;
    cut(m, 3);
    remove(path(second));
    load_shards(HMOE_IO, "model-00002-of-00003.safetensors");
    write_tensors(path(second), m, 0, 3, "F32", NULL);           /* the first one again */
    load_shards(HMOE_BAD_FILE, "comes twice");
    write_tensors(path(second), m, 4, 3, "F32", NULL);           /* without its first tensor */
    sprintf(quoted, "%s is missing", m->tensors[1].name);
    load_shards(HMOE_BAD_FILE, quoted);
    write_tensors(path(second), m, m->tensor_count, 1, "F32", NULL);   /* with none at all */
    load_shards(HMOE_BAD_FILE, quoted);
    write_tensors(path(second), m, 1, 3, "F64", NULL);
    load_shards(HMOE_BAD_FILE, "must be F32, F16 or BF16");
    write_tensors(path(second), m, 1, 3, "BF16", NULL);          /* twice as many bytes */
    load_shards(HMOE_BAD_FILE, "data_offsets");
    write_tensors(path(second), m, 1, 3, "F32", NULL);
    b = read_bytes(path(second));
    write_bytes(path(second), b.data, b.size - 1);
    load_shards(HMOE_BAD_FILE, "model-00002-of-00003.safetensors");
    write_bytes(path(second), b.data, 0);
    load_shards(HMOE_BAD_FILE, "model-00002-of-00003.safetensors");
    write_bytes(path(second), b.data, b.size);
    free(b.data);
    load_shards(HMOE_OK, "(restored)");
    config = config_with("num_hidden_layers", "1024");            /* megabytes, on paper */
    write_bytes(path("shards/config.json"), config.data, config.size);
    load_shards(HMOE_BAD_FILE, "config.json describes");
    free(config.data);
}

/* Files of any order, in any cut; and each thing that can be wrong with them. */
static void shards(void) {
    hmoe_model m, run;
    memset(&m, 0, sizeof m);
    memset(&run, 0, sizeof run);
    CHECK_INT(hmoe_load(&m, path("damaged"), 1, 0), HMOE_OK);
    for (int n = 1; n <= 4; n++) {
        cut(&m, n);
        load_shards(HMOE_OK, "(shards)");
    }
    CHECK_INT(hmoe_load(&run, path("shards"), 1, 1), HMOE_IO);   /* a run is one file */
    check_message(run.message, "training.safetensors");
    write_bytes(path("shards/model.safetensors"), "is read first", 13);
    load_shards(HMOE_BAD_FILE, "/model.safetensors");
    wrong_indices(&m);
    wrong_shards(&m);
    cut(&m, 3);
    starve("load from shards", call_shards, 1, 18);
    hmoe_free(&subject);
    hmoe_free(&m);
    remove_tree(path("shards"));
    CHECK_INT(memory_live, 0);
}

static void refuse_export(const hmoe_config *c, const char *to, const char *says) {
    hmoe_model m;
    uint64_t before = fingerprint(directory), inside = fingerprint(path(to));
    size_t params = 77;
    size_t live;
    small_create(&m, c, 0);
    live = memory_live;
    test_context = says;
    CHECK_INT(hmoe_export_mixtral(&m, path(to), &params), HMOE_BAD_ARGUMENT);
    check_message(m.message, says);
    CHECK(params == 77);
    CHECK_INT(memory_live, live);
    CHECK(fingerprint(directory) == before && fingerprint(path(to)) == inside);
    test_context = "";
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
    refuse_export(&c, "damaged", "holds a run");
    small_create(&m, &c, 0);
    CHECK_INT(hmoe_export_mixtral(&m, path("no/such/parent"), NULL), HMOE_IO);
    check_message(m.message, "no/such/parent");
    write_bytes(path("file"), "kept", 4);
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

static void free_checkpoint(void) {
    for (int i = 0; i < 3; i++) free(good[i].data);
    free(good_params);
    remove_checkpoint(path("damaged"));
    CHECK_INT(memory_live, 0);
}

/* ---- Saving. */

static void save_to_nowhere(void) {
    hmoe_model m;
    char long_name[3000];
    make_model(&m);
    CHECK_INT(hmoe_save(&m, path("no/such/parent"), 1), HMOE_IO);
    check_message(m.message, "no/such/parent");
    write_bytes(path("file"), "kept", 4);
    CHECK_INT(hmoe_save(&m, path("file"), 1), HMOE_IO);          /* a file is no directory */
    check_message(m.message, "file");
    CHECK(fingerprint(path("file")) == 1);          /* it is still a file */
    CHECK(remove(path("file")) == 0);
    memset(long_name, 'x', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    CHECK(hmoe_save(&m, long_name, 1) != HMOE_OK);
    check_message(m.message, "x");
    CHECK(hmoe_load(&m, long_name, 1, 1) != HMOE_OK);
    hmoe_free(&m);
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
        if (i == MODEL) CHECK(fingerprint(path("blocked")) == before);  /* the first */
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
    make_checkpoint();
    TEST(intact);
    TEST(missing_files);
    TEST(truncated_files);
    TEST(every_header_byte_flipped);
    TEST(hostile_headers);
    TEST(wrong_tensors);
    TEST(wrong_offsets);
    TEST(the_other_type);
    TEST(keys_missing_or_of_the_wrong_type);
    TEST(rope_in_either_place);
    TEST(keys_of_others);
    TEST(values_out_of_range);
    TEST(widths_that_do_not_fit);
    TEST(terabytes_beside_a_small_file);
    TEST(text_that_is_not_json);
    TEST(half_precision);
    TEST(shards);
    TEST(bad_exports);
    TEST(good_export);
    TEST(free_checkpoint);
    TEST(save_to_nowhere);
    TEST(save_over_the_impossible);
    TEST(full_disk);
    remove_tree(directory);
    return test_summary("errors");
}
