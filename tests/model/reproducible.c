/* What only shows in the type that trains: float stays close to double, a run is the same to the
   last bit for any number of threads, twice, and across a save and a load; and it learns. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "../test.h"
#include "../fixtures.h"
#include "../naive.h"
#include <stdlib.h>

static char directory[64] = SMALL_TMP "hmoe-test-float-XXXXXX";

/* ---- Float against double: losses and the gradient of every tensor of a middle-sized model. The
   double is naive.h's, so neither the code nor the type is shared. A gradient is compared along
   one random direction per tensor, with a central difference of the naive loss. */

static double directional(naive *slow, const hmoe_model *m, double *params,
                          const hmoe_tensor *tensor, const hmoe_real *direction,
                          const int *tokens, const int *targets, int B, int T) {
    size_t n = (size_t)tensor->rows * tensor->cols;
    double *w = params + tensor->offset, *saved = (double *)small_array(n * sizeof *saved);
    double h = 1e-4, loss[2];
    memcpy(saved, w, n * sizeof *w);
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < n; i++) w[i] = saved[i] + (side ? -h : h) * (double)direction[i];
        naive_forward(slow, m, params, tokens, targets, B, T, T, NULL);
        loss[side] = slow->losses.total;
    }
    memcpy(w, saved, n * sizeof *w);
    free(saved);
    return (loss[0] - loss[1]) / (2 * h);
}

/* All experts, so that no step can cross a switch: who is chosen is tested elsewhere. */
static void float_is_close_to_double(void) {
    hmoe_config c = small_config();
    hmoe_model m;
    int *tokens, *targets, B = 2, T = 9;
    double *params;
    naive slow;
    c.V = 30, c.T = 9, c.C = 24, c.NH = 3, c.K = 4;
    c.H[0] = 17, c.H[1] = 3, c.H[2] = 40, c.H[3] = 70;
    tokens = random_tokens(B * T, c.V);
    targets = random_tokens(B * T, c.V);
    small_create(&m, &c, B);
    spread_weights(&m, 0.2, 0.3);
    params = naive_params(&m);
    slow = naive_create(&c, B * T);
    naive_forward(&slow, &m, params, tokens, targets, B, T, T, NULL);
    CHECK_INT(hmoe_forward(&m, HMOE_TRAIN, tokens, targets, B, T), HMOE_OK);
    CHECK_NEAR(m.losses.total, slow.losses.total, 1e-5, 0);
    CHECK_INT(hmoe_backward(&m, 1), HMOE_OK);
    for (size_t i = 0; i < m.tensor_count; i++) {
        const hmoe_tensor *t = &m.tensors[i];
        size_t n = (size_t)t->rows * t->cols;
        hmoe_real *direction = random_reals(n, 1 / sqrt((double)n));
        double analytic = 0, length = 0;
        for (size_t k = 0; k < n; k++) {
            analytic += (double)direction[k] * (double)m.grads[t->offset + k];
            length += pow((double)m.grads[t->offset + k], 2);
        }
        test_context = t->name;
        CHECK_NEAR(analytic, directional(&slow, &m, params, t, direction, tokens, targets, B, T),
                   0, 1e-4 * sqrt(length) + 1e-7);
        CHECK(length > 0);
        free(direction);
    }
    test_context = "";
    naive_free(&slow);
    hmoe_free(&m);
    free(params); free(tokens); free(targets);
}

/* ---- Runs. */

/* A model with every kind of step in it, at a size where tiles, edges and threads all have work. */
static hmoe_config run_config(hmoe_routing routing, int noisy) {
    hmoe_config c = hmoe_default_config();
    c.V = 65, c.T = 24, c.C = 48, c.L = 2, c.NH = 4;
    CHECK_INT(hmoe_expert_sizes(c.H, c.E, 8 * 40, "arithmetic", NULL), HMOE_OK);
    c.NKV = routing == HMOE_TOP_P ? 1 : noisy ? 2 : 0;   /* heads that share keys and values */
    c.routing = routing;
    c.noisy_gating = noisy;
    c.loss_coef[HMOE_LB] = 0.01, c.loss_coef[HMOE_PP] = 0.1, c.loss_coef[HMOE_ENT] = 0.03, c.loss_coef[HMOE_Z] = 0.001;
    return c;
}

/* Training steps `first` to `last` on batches that depend on the step alone. */
static void train(hmoe_model *m, int first, int last) {
    enum { B = 3, T = 24 };
    hmoe_adamw adamw = hmoe_default_adamw();
    for (int step = first; step <= last; step++) {
        int text[B * (T + 1)], tokens[B * T], targets[B * T];
        for (int i = 0; i < B * (T + 1); i++)
            text[i] = (int)(hmoe_random(11, 0, step, i) % (uint64_t)m->config.V);
        for (int micro = 0; micro < 2; micro++) {
            for (int i = 0; i < B * T; i++) {
                tokens[i] = text[i / T * (T + 1) + i % T];
                targets[i] = text[i / T * (T + 1) + i % T + 1];
            }
            CHECK_INT(hmoe_forward(m, HMOE_TRAIN, tokens, targets, micro ? B : B - 1, T), HMOE_OK);
            CHECK_INT(hmoe_backward(m, 0.5), HMOE_OK);
        }
        adamw.lr = hmoe_learning_rate(step, 3, 10, 1e-2, 1e-3);
        CHECK_INT(hmoe_update(m, &adamw), HMOE_OK);
    }
}

static void create_run(hmoe_model *m, const hmoe_config *c, uint64_t seed) {
    memset(m, 0, sizeof *m);
    if (!CHECK(!hmoe_create(m, c, seed, 3, 1))) printf("%s\n", m->message), exit(2);
}

static int same_bits(const hmoe_model *a, const hmoe_model *b) {
    size_t bytes = a->param_count * sizeof(hmoe_real);
    return a->param_count == b->param_count && a->step == b->step && a->tokens == b->tokens
        && a->seed == b->seed
        && !memcmp(&a->flops, &b->flops, sizeof a->flops)
        && !memcmp(&a->losses, &b->losses, sizeof a->losses)
        && !memcmp(&a->grad_norm, &b->grad_norm, sizeof a->grad_norm)
        && !memcmp(a->params, b->params, bytes) && !memcmp(a->exp_avg, b->exp_avg, bytes)
        && !memcmp(a->exp_avg_sq, b->exp_avg_sq, bytes);
}

/* The last model is made for one thread, and has more later. */
static void same_bits_for_any_number_of_threads(void) {
    static const int counts[4] = { 1, 2, 5, 3 };
    for (int rule = 0; rule < 5; rule++) {
        hmoe_config c = run_config(rule % 3 == 1 ? HMOE_TOP_P : HMOE_TOP_K, rule == 2);
        if (rule > 2) steer(&c, rule == 3 ? 3 : 11);
        hmoe_model m[4];
        for (int i = 0; i < 4; i++) {
            threads(i < 3 ? counts[i] : 1);
            create_run(&m[i], &c, 1337);
            threads(counts[i]);
            train(&m[i], 1, 3);
            CHECK(HMOE__PACKED == 0 || m[i].buffers->panels.count == hmoe__threads());
            CHECK(i == 0 || same_bits(&m[0], &m[i]));
        }
        for (int i = 0; i < 4; i++) hmoe_free(&m[i]);
    }
    threads(TEST_THREADS);
}

/* Generation too. */
static void same_logits_for_any_number_of_threads(void) {
    hmoe_config c = run_config(HMOE_TOP_K, 0);
    hmoe_model m;
    hmoe_real logits[2][65];
    create_run(&m, &c, 3);
    for (int i = 0; i < 2; i++) {
        hmoe_cache cache;
        threads(i ? 5 : 1);
        CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
        for (int t = 0; t < 30; t++) CHECK_INT(hmoe_next(&m, &cache, t, logits[i]), HMOE_OK);
        hmoe_cache_free(&cache);
    }
    CHECK(!memcmp(logits[0], logits[1], sizeof logits[0]));
    threads(TEST_THREADS);
    hmoe_free(&m);
}

static void same_bits_for_one_seed_only(void) {
    hmoe_config c = run_config(HMOE_TOP_K, 1);
    hmoe_model a, b, other;
    create_run(&a, &c, 1);
    create_run(&b, &c, 1);
    create_run(&other, &c, 2);
    CHECK(memcmp(a.params, other.params, a.param_count * sizeof *a.params));
    train(&a, 1, 3);
    train(&b, 1, 3);
    CHECK(same_bits(&a, &b));
    hmoe_free(&a);
    hmoe_free(&b);
    hmoe_free(&other);
}

/* ---- Checkpoints. */

static const char *path(const char *sub, const char *file) {
    static char buffer[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(buffer[turn], sizeof buffer[turn], "%s/%s%s%s", directory, sub, *file ? "/" : "",
             file);
    return buffer[turn];
}

static int same_file(const char *a, const char *b) {
    FILE *f = fopen(a, "rb"), *g = fopen(b, "rb");
    int x = 0, y = 0;
    long bytes = 0;
    if (f && g) while (x == y && x != EOF) x = getc(f), y = getc(g), bytes++;
    if (f) fclose(f);
    if (g) fclose(g);
    return f && g && x == y && bytes > 1;
}

static int remove_checkpoint(const char *sub) {
    remove(path(sub, "model.safetensors"));
    remove(path(sub, "config.json"));
    remove(path(sub, "training.safetensors"));
    remove(path(sub, "tokenizer.json"));
    remove(path(sub, "tokenizer_config.json"));
    return rmdir(path(sub, "")) == 0;              /* nothing else was left there */
}

/* Saved after 3 steps, loaded, and 3 more = 6 steps without a break. */
static void resumed_is_never_stopped(void) {
    for (int rule = 0; rule < STEERED_TOP_K + STEERED_TOP_P; rule++) {
        hmoe_config c = run_config(rule < STEERED_TOP_K ? HMOE_TOP_K : HMOE_TOP_P, 1);
        hmoe_model straight, first, second;
        steer(&c, rule < STEERED_TOP_K ? rule : rule - STEERED_TOP_K);
        create_run(&straight, &c, 4);
        create_run(&first, &c, 4);
        train(&straight, 1, 6);
        train(&first, 1, 3);
        first.seconds = 12.5;
        first.best_val_loss = 1.75, first.best_of = 0xfedcba9876543210, first.recipe = 0x8000000000000001;
        CHECK_INT(hmoe_save(&first, path("run", ""), 1), HMOE_OK);
        memset(&second, 0, sizeof second);
        CHECK_INT(hmoe_load(&second, path("run", ""), 3, 1), HMOE_OK);
        CHECK(second.seconds == 12.5 && second.best_val_loss == 1.75);
        CHECK(second.best_of == 0xfedcba9876543210 && second.recipe == 0x8000000000000001);
        second.losses = first.losses;              /* those of the last pass are not state */
        second.grad_norm = first.grad_norm;
        CHECK(same_bits(&first, &second));
        train(&second, 4, 6);
        CHECK(same_bits(&straight, &second));
        train(&first, 4, 6);                       /* and saving does not disturb a run */
        CHECK(same_bits(&straight, &first));
        hmoe_free(&straight);
        hmoe_free(&first);
        hmoe_free(&second);
        CHECK(remove_checkpoint("run"));
    }
}

static void save_load_save(void) {
    static const char *const file[3] = { "model.safetensors", "config.json",
                                         "training.safetensors" };
    for (int i = 0; i < 4 + STEERED_TOP_P; i++) {
        hmoe_config c = run_config(i % 2 || i >= 4 ? HMOE_TOP_P : HMOE_TOP_K, i == 2);
        hmoe_model a, b;
        if (i >= 4) steer(&c, i - 4);
        c.gate = (hmoe_gate)(i % 3);
        c.top_p = 0.1 + 0.2;                       /* 0.30000000000000004: all its digits */
        c.loss_coef[HMOE_LB] = 1.0 / 3;
        if (i) {
            c.vocab_size = c.V;
            for (int k = 0; k < c.V; k++) c.vocab[k] = (unsigned char)(3 * k + i);
        }
        create_run(&a, &c, 99);
        train(&a, 1, 2);
        CHECK(a.best_val_loss > 1e300 && a.best_of == 0);  /* not measured yet; that too is kept */
        CHECK_INT(hmoe_save(&a, path("a", ""), 1), HMOE_OK);
        memset(&b, 0, sizeof b);
        CHECK_INT(hmoe_load(&b, path("a", ""), 3, 1), HMOE_OK);
        CHECK_INT(hmoe_save(&b, path("b", ""), 1), HMOE_OK);
        for (int k = 0; k < 3; k++) CHECK(same_file(path("a", file[k]), path("b", file[k])));
        hmoe_free(&b);
        CHECK_INT(hmoe_load(&b, path("a", ""), 0, 0), HMOE_OK);    /* for generation only */
        CHECK(!memcmp(a.params, b.params, a.param_count * sizeof *a.params));
        CHECK(remove_checkpoint("b"));
        CHECK_INT(hmoe_save(&b, path("b", ""), 0), HMOE_OK);
        CHECK(same_file(path("a", file[0]), path("b", file[0])));
        CHECK(same_file(path("a", file[1]), path("b", file[1])));
        CHECK(access(path("b", file[2]), F_OK) != 0);
        CHECK_INT(hmoe_save(&b, path("a", ""), 0), HMOE_OK);       /* over an older one */
        CHECK(same_file(path("a", file[0]), path("b", file[0])));
        hmoe_free(&a);
        hmoe_free(&b);
        CHECK(remove_checkpoint("a"));
        CHECK(remove_checkpoint("b"));
    }
}

/* A configuration that was changed after it was read: the model is the one that hmoe_create makes
   of it, with the weights of the file. One that has other tensors is refused. */
static void loaded_as_another(void) {
    static const char *const says[] = { "another shape", ".safetensors: ", "is missing",
                                        "is not a tensor", "config.json describes a model of more",
                                        "experts per token K is 9", "number of layers L is 5000" };
    hmoe_config c = run_config(HMOE_TOP_K, 0), read;
    hmoe_model a, b, other;
    create_run(&a, &c, 5);
    train(&a, 1, 2);
    CHECK_INT(hmoe_save(&a, path("a", ""), 1), HMOE_OK);
    for (int training = 0; training < 2; training++) {
        CHECK_INT(hmoe_load_config(&read, path("a", ""), NULL), HMOE_OK);
        read.T = 32, read.K = 3, read.gate = HMOE_GATE_RAW, read.rms_norm_eps = 0.01;
        read.loss_coef[HMOE_Z] = 0.5, read.rope_theta = 500;
        memset(&b, 0, sizeof b);
        CHECK_INT(hmoe_load_as(&b, &read, path("a", ""), 3, training), HMOE_OK);
        CHECK(b.config.T == 32 && b.config.K == 3 && b.step == 2 * training);
        if (training) {
            size_t bytes = a.param_count * sizeof *a.params;
            create_run(&other, &read, 5);
            memcpy(other.params, a.params, bytes);
            memcpy(other.exp_avg, a.exp_avg, bytes), memcpy(other.exp_avg_sq, a.exp_avg_sq, bytes);
            other.step = a.step, other.tokens = a.tokens, other.flops = a.flops;
            train(&other, 3, 4), train(&b, 3, 4);
            CHECK(same_bits(&other, &b));
            hmoe_free(&other);
        }
        hmoe_free(&b);
        for (int i = 0; i < 7; i++) {
            hmoe_load_config(&read, path("a", ""), NULL);
            if (i == 0) read.H[0]++, read.H[1]--;
            else if (i == 1) read.noisy_gating = 1;
            else if (i == 2) read.balance = HMOE_BALANCE_TOKENS;
            else if (i == 3) read.L = 1;
            else if (i == 4) read.C = 1 << 16;
            else if (i == 5) read.K = 9;
            else read.L = 5000;
            CHECK_INT(hmoe_load_as(&b, &read, path("a", ""), 3, training),
                      i >= 5 ? HMOE_BAD_ARGUMENT : HMOE_BAD_FILE);
            if (!CHECK(strstr(b.message, says[i]) != NULL)) puts(b.message);
            CHECK(!b.params && !b.tensors);
        }
    }
    hmoe_free(&a);
    CHECK(remove_checkpoint("a"));
}

static int holds(const char *file, const char *right) {
    char text[200];
    FILE *f = fopen(file, "rb");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    return f && !strcmp(text, right);
}

/* The caller's tokenizer.json is saved as it is, with a vocabulary of bytes or without one. */
static void tokenizer_of_the_caller(void) {
    static const char text[] = "{ \"model\": \"50% of \u00e9\" }";
    for (int bytes = 0; bytes < 2; bytes++) {
        hmoe_config c = run_config(HMOE_TOP_K, 0);
        hmoe_model m;
        c.vocab_size = bytes ? c.V : 0;
        for (int k = 0; k < c.vocab_size; k++) c.vocab[k] = (unsigned char)k;
        create_run(&m, &c, 5);
        m.tokenizer = text;
        CHECK_INT(hmoe_prepare(&m, path("a", ""), 1), HMOE_OK);
        CHECK(access(path("a", "tokenizer.json"), F_OK) != 0);
        hmoe_discard(&m, path("a", ""), 1);
        CHECK(rmdir(path("a", "")) == 0);
        CHECK_INT(hmoe_save(&m, path("a", ""), 1), HMOE_OK);
        CHECK(holds(path("a", "tokenizer.json"), text));
        CHECK(access(path("a", "tokenizer_config.json"), F_OK) == 0);
        CHECK(remove_checkpoint("a"));
        m.tokenizer = NULL;
        CHECK_INT(hmoe_save(&m, path("a", ""), 0), HMOE_OK);
        CHECK_INT(access(path("a", "tokenizer.json"), F_OK) == 0, bytes);
        CHECK(!holds(path("a", "tokenizer.json"), text));
        hmoe_free(&m);
        CHECK(remove_checkpoint("a"));
    }
}

/* What is a Mixtral says so, and a configuration without our keys means equal widths, Top-K and
   normalised gates; what is none must not be opened as one. */
static void mixtral_or_not(void) {
    static const char plain[] =
        "{ \"model_type\": \"mixtral\", \"hidden_size\": 48, \"num_hidden_layers\": 2,\n"
        "  \"num_attention_heads\": 4, \"num_key_value_heads\": 4, \"num_local_experts\": 8,\n"
        "  \"num_experts_per_tok\": 2, \"intermediate_size\": 40, \"vocab_size\": 65,\n"
        "  \"max_position_embeddings\": 24, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,\n"
        "  \"hidden_act\": \"silu\", \"sliding_window\": null, \"use_cache\": true }\n";
    int tokens[24] = { 5, 4, 3, 2, 1 };
    for (int i = 0; i < 5; i++) {                  /* only the first is one */
        hmoe_config c = run_config(i == 1 ? HMOE_TOP_P : HMOE_TOP_K, i == 2);
        hmoe_model a, b;
        char text[4096];
        size_t n;
        FILE *f;
        for (int e = 0; e < c.E; e++) c.H[e] = 40;
        if (i == 3) c.gate = HMOE_GATE_RAW;
        if (i == 4) c.H[0] = 39, c.H[1] = 41;
        create_run(&a, &c, 8);
        spread_weights(&a, 0.1, 0.3);
        CHECK_INT(hmoe_save(&a, path("a", ""), 0), HMOE_OK);
        f = fopen(path("a", "config.json"), "rb");
        n = f ? fread(text, 1, sizeof text - 1, f) : 0;
        if (f) fclose(f);
        text[n] = 0;
        CHECK(!strstr(text, "MixtralForCausalLM") == (i > 0));
        CHECK(!strstr(text, "\"model_type\": \"mixtral\"") == (i > 0));
        CHECK(!strstr(text, "\"model_type\": \"hmoe\"") == (i == 0));
        if (i == 0) {
            hmoe_real logits[2][24 * 65];
            f = fopen(path("a", "config.json"), "wb");
            CHECK(f && fputs(plain, f) >= 0 && fclose(f) == 0);
            memset(&b, 0, sizeof b);
            CHECK_INT(hmoe_load(&b, path("a", ""), 1, 0), HMOE_OK);
            CHECK_INT(hmoe_forward(&a, HMOE_EVALUATE, tokens, NULL, 1, 24), HMOE_OK);
            CHECK_INT(hmoe_forward(&b, HMOE_EVALUATE, tokens, NULL, 1, 24), HMOE_OK);
            CHECK_INT(hmoe_get_logits(&a, logits[0]), HMOE_OK);
            CHECK_INT(hmoe_get_logits(&b, logits[1]), HMOE_OK);
            CHECK(!memcmp(logits[0], logits[1], sizeof logits[0]));
            hmoe_free(&b);
        }
        hmoe_free(&a);
        CHECK(remove_checkpoint("a"));
    }
}

/* ---- Learning. */

static void overfits_one_batch(void) {
    enum { N = 2 * 16 };
    static const unsigned char text[] =
        "To be, or not to be, that is the question: Whether 'tis nobler";
    hmoe_config c = hmoe_default_config();
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_model m;
    int tokens[N], targets[N], step;
    c.V = 128, c.T = 16, c.C = 32, c.L = 2, c.NH = 2, c.E = 4;
    CHECK_INT(hmoe_expert_sizes(c.H, c.E, 4 * 32, "arithmetic", NULL), HMOE_OK);
    create_run(&m, &c, 1);
    adamw.lr = 1e-2;
    for (int i = 0; i < N; i++) tokens[i] = text[i], targets[i] = text[i + 1];
    for (step = 0; step < 300; step++) {
        if (!CHECK(!hmoe_forward(&m, HMOE_TRAIN, tokens, targets, 2, 16))) break;
        if (m.losses.ce < 0.05) break;
        CHECK(!hmoe_backward(&m, 1) && !hmoe_update(&m, &adamw));
    }
    CHECK(m.losses.ce < 0.05);
    CHECK(m.losses.ce > 0);
    /* and it says what it has learnt: greedy, from the first byte of each line on */
    for (int line = 0; line < 2; line++) {
        hmoe_cache cache;
        hmoe_real logits[128];
        int right = 0;
        CHECK_INT(hmoe_cache_create(&cache, &m), HMOE_OK);
        for (int t = 0, token; t < 16; t++) {
            CHECK_INT(hmoe_next(&m, &cache, tokens[line * 16 + t], logits), HMOE_OK);
            token = hmoe_sample(logits, 128, 0, 0, 1, 0, t);
            right += token == targets[line * 16 + t];
        }
        CHECK(right >= 15);
        hmoe_cache_free(&cache);
    }
    hmoe_free(&m);
}

int main(void) {
    if (!mkdtemp(directory)) { perror(directory); return 1; }
    threads(TEST_THREADS);
    TEST(float_is_close_to_double);
    TEST(same_bits_for_any_number_of_threads);
    TEST(same_logits_for_any_number_of_threads);
    TEST(same_bits_for_one_seed_only);
    TEST(resumed_is_never_stopped);
    TEST(save_load_save);
    TEST(loaded_as_another);
    TEST(tokenizer_of_the_caller);
    TEST(mixtral_or_not);
    TEST(overfits_one_batch);
    remove_checkpoint("run");                      /* what a failed test may have left */
    remove_checkpoint("a");
    remove_checkpoint("b");
    rmdir(directory);
    return test_summary("reproducible");
}
