/* mpi.c - compares several processes with one. Each process that mpirun starts also computes the
   whole batch alone, with a model of hmoe.h without peers. test_mpi.sh runs it; its files are
   in $MPI_DIR. */
#include <stddef.h>
static void *get(size_t n);
#define HMOE_MALLOC(n) get(n)
#define HMOE_FREE(p) free(p)
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/muon/hmoe_muon.h"
#include "hmoe_parallel.h"
#include "hmoe_mpi.h"
#include "tests/test.h"
#include "tests/fixtures.h"

static int rank, ranks, no_memory;       /* this one of how many; has it no more? */
static void *get(size_t n) { return no_memory ? NULL : malloc(n); }

/* One model twice: in this process alone, and with its peers. */
typedef struct both {
    hmoe_model one, part;
    hmoe_parallel parallel;
    hmoe_wire wire;
    int *tokens, *targets, B, T;         /* the whole batch */
    int first;                           /* of its sequences, in this process */
} both;

static void check_ok(both *p, hmoe_status status, const hmoe_model *m) {
    (void)p;
    if (status) printf("process %d: %s\n", rank, m->message);
    CHECK_INT(status, HMOE_OK);
}

static void join(both *p, int D, hmoe_placement placement) {
    char message[HMOE_MESSAGE_SIZE] = "";
    static const int list[8] = { 0, 0, 1, 0, 0, 2, 1, 0 };     /* uneven; a fourth has none */
    CHECK_INT(hmoe_mpi(&p->wire, D, message), HMOE_OK);
    CHECK_INT(hmoe_join(&p->parallel, &p->wire, message), HMOE_OK);
    p->parallel.placement = placement;
    for (int e = 0; e < 8; e++) p->parallel.device[e] = list[e] % p->wire.expert_ranks;
    hmoe_train_with(&p->part, &p->parallel);
}

static const hmoe_tensor *named(const hmoe_model *m, const char *name) {
    for (size_t i = 0; i < m->tensor_count; i++)
        if (!strcmp(m->tensors[i].name, name)) return &m->tensors[i];
    return NULL;
}

/* Calls look(x of the part, the same of the one, how many) for each tensor that is here. */
static void each_tensor(both *p, hmoe_real *part, hmoe_real *one,
                        void (*look)(hmoe_real *part, hmoe_real *one, size_t n)) {
    for (size_t i = 0; i < p->part.tensor_count; i++) {
        const hmoe_tensor *t = &p->part.tensors[i], *whole = named(&p->one, t->name);
        if (t->expert >= 0 && !p->parallel.here[t->expert]) continue;
        test_context = t->name;
        look(part + t->offset, one + whole->offset, (size_t)t->rows * t->cols);
    }
    test_context = "";
}

static void take(hmoe_real *part, hmoe_real *one, size_t n) { memcpy(part, one, n * sizeof *one); }

static double tolerance, largest;        /* near: to so much of the largest */
static void find_largest(hmoe_real *part, hmoe_real *one, size_t n) {
    (void)part;
    for (size_t k = 0; k < n; k++) largest = fmax(largest, fabs((double)one[k]));
}
static void near(hmoe_real *part, hmoe_real *one, size_t n) {
    for (size_t k = 0; k < n; k++) CHECK_NEAR(part[k], one[k], 0, tolerance * largest);
}

static void compare(both *p, hmoe_real *part, hmoe_real *one, double to) {
    tolerance = to, largest = 0;
    each_tensor(p, part, one, find_largest);
    CHECK(largest > 0);
    each_tensor(p, part, one, near);
}

static hmoe_config config_of(const char *sizes, int E, hmoe_routing routing) {
    hmoe_config c = small_config();
    c.V = 11, c.T = 6, c.E = E, c.routing = routing, c.top_p = 0.7;
    CHECK_INT(hmoe_expert_sizes(c.H, E, E * 5, sizes, NULL), HMOE_OK);
    return c;
}

static void make(both *p, const hmoe_config *c, int B, int D, hmoe_placement placement) {
    memset(p, 0, sizeof *p);
    p->B = B, p->T = c->T;
    small_draws = 1000;                                        /* the same in all processes */
    small_create(&p->one, c, B);
    spread_weights(&p->one, 0.3, 1);
    join(p, D, placement);
    check_ok(p, hmoe_create(&p->part, c, 5, B, 1), &p->part);
    each_tensor(p, p->part.params, p->one.params, take);
    p->tokens = random_tokens(B * c->T, c->V);
    p->targets = random_tokens(B * c->T, c->V);
}

static void unmake(both *p) {
    hmoe_free(&p->one), hmoe_free(&p->part);
    hmoe_leave(&p->parallel), hmoe_mpi_free(&p->wire);
    free(p->tokens), free(p->targets);
}

/* This process's sequences of the first B are first .. first + its B - 1, dealt evenly. */
static hmoe_status forward_part(both *p, hmoe_mode mode, int B) {
    int at = B * rank / ranks * p->T, mine = B * (rank + 1) / ranks - B * rank / ranks;
    p->first = B * rank / ranks;
    return hmoe_forward(&p->part, mode, p->tokens + at, p->targets + at, mine, p->T);
}

/* In float the last bit of a logit may differ, and a choice may depend on that bit. Therefore the
   part uses the choices of the whole model, whose pass came first, with its own gates. */
static const both *replayed;
static void replay(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p, int norm,
                   int N, int E) {
    hmoe__choose(routes, routing, K, top_p, norm, N, E);
    for (int l = 0; l < replayed->one.config.L; l++) {
        const hmoe_routes *one = &replayed->one.layers[l].routes;
        int slots = routes->slots, first = replayed->first * replayed->T;
        if (routes != &replayed->part.layers[l].routes) continue;
        for (int t = 0; t < N; t++) {
            int n = routes->count[t] = one->count[first + t], *S = routes->expert + t * slots;
            hmoe_real *g = routes->gate + t * slots, sum = 0;
            memcpy(S, one->expert + (first + t) * slots, n * sizeof *S);
            for (int s = 0; s < n; s++) sum += g[s] = routes->P[t * E + S[s]];
            for (int s = 0; s < n && norm && sum != 0; s++) g[s] /= sum;
        }
    }
}

static hmoe_status forward_replayed(both *p, int B) {
    const hmoe_backend *cpu = p->part.backend;
    hmoe_backend replaying = *cpu;
    hmoe_status status;
    replayed = p, replaying.choose = replay;
    if (sizeof(hmoe_real) == 4) p->part.backend = &replaying;
    status = forward_part(p, HMOE_TRAIN, B);
    p->part.backend = cpu;
    return status;
}

static void same_losses(both *p, double to) {
    const hmoe_losses *a = &p->part.losses, *b = &p->one.losses;
    CHECK_NEAR(a->total, b->total, to, to);
    CHECK_NEAR(a->ce, b->ce, to, to);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) CHECK_NEAR(a->term[i], b->term[i], to, to);
    for (size_t i = 0; i <= p->one.config.L * HMOE_SUMS(p->one.config.E); i++)
        CHECK_NEAR(p->part.usage[i], p->one.usage[i], to, to);
}

/* Tolerances. A row of a product has the same bits for any number of rows, except for fewer than
   four. If two experts were exchanged, the difference would be far larger. */
#define GRADIENTS (sizeof(hmoe_real) == 8 ? 1e-12 : 1e-5)

/* Biases and a layer's own p follow from the loads of all processes: the same bits. */
static void same_state(both *p) {
    for (size_t i = 0; i < p->one.tensor_count; i++) {
        const hmoe_tensor *t = &p->one.tensors[i];
        const hmoe_real *a = p->one.params + t->offset;
        if (!t->state) continue;
        CHECK(!memcmp(a, p->part.params + named(&p->part, t->name)->offset,
                      (size_t)t->rows * sizeof *a));
        CHECK(strstr(t->name, ".top_p") ? *a != (hmoe_real)p->one.config.top_p : a[0] != a[1]);
    }
}

/* A step of two micro-batches, the second of another size, then the update, as often as asked. */
static void steps(both *p, int n, double to) {
    hmoe_adamw adamw = { 0.01, 0.9, 0.99, 0.1, 0.5 };
    for (int step = 0; step < n; step++) {
        for (int a = 0; a < 2; a++) {
            int B = a ? p->B - 1 : p->B;
            check_ok(p, hmoe_forward(&p->one, HMOE_TRAIN, p->tokens, p->targets, B, p->T), &p->one);
            check_ok(p, forward_replayed(p, B), &p->part);
            same_losses(p, to);
            check_ok(p, hmoe_backward(&p->one, 0.5), &p->one);
            check_ok(p, hmoe_backward(&p->part, 0.5), &p->part);
            for (int i = 0; i < p->B * p->T; i++)              /* other tokens from now on */
                p->tokens[i] = (p->tokens[i] * 3 + step + a) % p->one.config.V;
        }
        CHECK_INT(p->part.tokens, p->one.tokens);
        CHECK_NEAR(p->part.flops, p->one.flops, 1e-9, 0);
        if (step == 0) {                                       /* what hmoe_update does first */
            hmoe_real *mine = reals(p->part.param_count);
            memcpy(mine, p->part.grads, p->part.param_count * sizeof *mine);
            hmoe__parallel_sum_gradients(&p->part);
            compare(p, p->part.grads, p->one.grads, to);
            memcpy(p->part.grads, mine, p->part.param_count * sizeof *mine);
            p->parallel.reduced = 0;
            free(mine);
        }
        check_ok(p, hmoe_update(&p->one, &adamw), &p->one);
        check_ok(p, hmoe_update(&p->part, &adamw), &p->part);
        CHECK_NEAR(p->part.grad_norm, p->one.grad_norm, to, 0);
        same_state(p);
    }
}

/* All groupings that R allows, all placements that E allows, each on one of the models below. */
static void each_way(hmoe_config c, double dropout, int B, int n, double to) {
    for (int D = 1; D <= ranks; D *= 2)
        for (int placement = HMOE_PAIRS; placement <= HMOE_GIVEN; placement++) {
            both p;
            char context[64];
            if (placement == HMOE_PAIRS && c.E % (2 * D)) continue;
            make(&p, &c, B, D, (hmoe_placement)placement);
            snprintf(context, sizeof context, "R %d D %d placement %d", ranks, D, placement);
            test_context = context;
            p.one.dropout = p.part.dropout = dropout;
            steps(&p, n, to);
            unmake(&p);
        }
}

static void arithmetic_top_k(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_K);
    each_way(c, 0, 8, 1, GRADIENTS);
    c.K = 1;
    each_way(c, 0, 8, 1, GRADIENTS);
    c.K = 8;
    each_way(c, 0, 8, 1, GRADIENTS);
}
static void arithmetic_top_p(void) {
    each_way(config_of("arithmetic", 8, HMOE_TOP_P), 0, 8, 1, GRADIENTS);
}
static void modse(void) { each_way(config_of("modse", 8, HMOE_TOP_K), 0, 8, 1, GRADIENTS); }
static void noise_and_dropout(void) {
    hmoe_config c = config_of("geometric", 8, HMOE_TOP_K);
    c.noisy_gating = 1;
    each_way(c, 0.3, 8, 1, GRADIENTS);
}
/* A null expert, biases and budgets. In float the last bits may move a bias: only one step. */
static void steered(void) {
    static const int combinations[] = { 1, 3, 5, 7, 10, 11 };
    for (int i = 0; i < 6; i++) {
        hmoe_config c = config_of("arithmetic", 8, combinations[i] < 6 && i % 2 ? HMOE_TOP_K
                                                                                : HMOE_TOP_P);
        steer(&c, combinations[i]);
        each_way(c, 0, 8, sizeof(hmoe_real) == 8 ? 4 : 1, GRADIENTS);
    }
}
/* Fewer sequences than processes: some have none. */
static void fewer_sequences(void) {
    each_way(config_of("modse", 8, HMOE_TOP_K), 0.1, 2, 1, GRADIENTS);
}

static void fifty_steps(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_P);
    for (int D = 1; D <= ranks; D *= 2) {
        both p;
        c.noisy_gating = D > 1;
        make(&p, &c, 8, D, HMOE_CONTIGUOUS);
        p.one.dropout = p.part.dropout = 0.1;
        steps(&p, 50, 1e-9);
        compare(&p, p.part.params, p.one.params, 1e-9);
        compare(&p, p.part.exp_avg, p.one.exp_avg, 1e-9);
        unmake(&p);
    }
}

/* One token everywhere: all choose the same two experts of a layer, and no others get a row. */
static void empty_exchanges(void) {
    for (int D = 1; D <= ranks; D *= 2)
        for (int token = 0; token < 4; token++) {
            hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_K);
            double dead = 0;
            both p;
            make(&p, &c, 4, D, HMOE_PAIRS);
            for (int i = 0; i < 4 * c.T; i++) p.tokens[i] = token;
            check_ok(&p, hmoe_forward(&p.one, HMOE_TRAIN, p.tokens, p.targets, 4, c.T), &p.one);
            check_ok(&p, forward_part(&p, HMOE_TRAIN, 4), &p.part);
            for (int e = 0; e < 8; e++) dead += p.part.usage[e] == 0;
            CHECK(dead == 6);
            same_losses(&p, GRADIENTS);
            check_ok(&p, hmoe_backward(&p.one, 1), &p.one);
            check_ok(&p, hmoe_backward(&p.part, 1), &p.part);
            hmoe__parallel_sum_gradients(&p.part);
            compare(&p, p.part.grads, p.one.grads, GRADIENTS);
            unmake(&p);
        }
}

/* Evaluation, and a text token by token, in a model that is not for training. */
static void without_training(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_K);
    hmoe_real a[16], b[16];
    hmoe_cache one, part;
    both p;
    make(&p, &c, 5, ranks, HMOE_CONTIGUOUS);
    hmoe_free(&p.part);
    check_ok(&p, hmoe_create(&p.part, &c, 5, 5, 0), &p.part);
    each_tensor(&p, p.part.params, p.one.params, take);
    check_ok(&p, hmoe_forward(&p.one, HMOE_EVALUATE, p.tokens, p.targets, 5, p.T), &p.one);
    check_ok(&p, forward_part(&p, HMOE_EVALUATE, 5), &p.part);
    same_losses(&p, GRADIENTS);
    check_ok(&p, hmoe_cache_create(&one, &p.one), &p.one);
    check_ok(&p, hmoe_cache_create(&part, &p.part), &p.part);
    for (int i = 0; i < 9; i++) {
        check_ok(&p, hmoe_next(&p.one, &one, p.tokens[i], a), &p.one);
        check_ok(&p, hmoe_next(&p.part, &part, p.tokens[i], b), &p.part);
        for (int v = 0; v < c.V; v++) CHECK_NEAR(b[v], a[v], GRADIENTS, GRADIENTS);
    }
    hmoe_cache_free(&one), hmoe_cache_free(&part);
    unmake(&p);
}

/* One process fails, and all return the same message; then the model continues. */
static void all_say(const hmoe_model *m, hmoe_status status, hmoe_status expected,
                    const char *part) {
    char first[HMOE_MESSAGE_SIZE];
    memcpy(first, m->message, sizeof first);
    MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
    CHECK_INT(status, expected);
    if (!CHECK(strstr(m->message, part) != NULL)) printf("%s\n", m->message);
    CHECK(!strcmp(first, m->message));
}

static void failures_are_everyones(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_K);
    hmoe_adamw adamw = hmoe_default_adamw();
    char dir[64] = "", message[HMOE_MESSAGE_SIZE];
    int last = ranks - 1, a = 8 * rank / ranks * c.T, old;
    hmoe_real weight;
    size_t norm;
    both p;
    make(&p, &c, 8, ranks, HMOE_CONTIGUOUS);
    old = p.tokens[a];
    if (rank == last) p.tokens[a] = 77;
    all_say(&p.part, forward_part(&p, HMOE_TRAIN, 8), HMOE_BAD_ARGUMENT, "is 77: must be from 0");
    p.tokens[a] = old;
    CHECK_INT(forward_part(&p, HMOE_TRAIN, 8), HMOE_OK);
    CHECK_INT(hmoe_backward(&p.part, 1), HMOE_OK);
    if (rank == last) p.part.grads[named(&p.part, "lm_head.weight")->offset] = (hmoe_real)NAN;
    all_say(&p.part, hmoe_update(&p.part, &adamw), HMOE_NOT_FINITE, "norm is");
    for (size_t i = 0; i < p.part.param_count; i++) CHECK(p.part.grads[i] == 0);
    CHECK_INT(p.part.step, 0);
    norm = named(&p.part, "model.layers.1.post_attention_layernorm.weight")->offset;
    weight = p.part.params[norm];
    if (rank == last) p.part.params[norm] = (hmoe_real)NAN;
    all_say(&p.part, forward_part(&p, HMOE_TRAIN, 8), HMOE_NOT_FINITE, "layer 1");
    if (rank == last) p.part.params[norm] = weight + (hmoe_real)1e-4;   /* weights drift apart */
    snprintf(dir, sizeof dir, "%s/drifted%d", getenv("MPI_DIR"), ranks);
    if (ranks > 1) all_say(&p.part, hmoe_save(&p.part, dir, 1), HMOE_IO, "the same weights");
    CHECK(access(dir, F_OK) != 0);
    p.part.params[norm] = weight;
    CHECK_INT(hmoe_save(&p.part, dir, 1), HMOE_OK);
    all_say(&p.part, hmoe_save(&p.part, "/dev/null/x", 1), HMOE_IO, "make the directory");
    hmoe_free(&p.part);
    all_say(&p.part, hmoe_load(&p.part, "/nowhere", 8, 1), HMOE_IO, "/nowhere/config.json");
    if (rank == 0) {                                   /* half of a state is none */
        char file[100];
        snprintf(file, sizeof file, "%s/training.safetensors", dir);
        CHECK(truncate(file, 9000) == 0);
    }
    all_say(&p.part, hmoe_load(&p.part, dir, 8, 1), HMOE_BAD_FILE, "training.safetensors");
    c.E = 6;
    p.parallel.placement = HMOE_PAIRS;
    if (ranks == 4)
        all_say(&p.part, hmoe_create(&p.part, &c, 1, 1, 1), HMOE_BAD_ARGUMENT, "multiple of 8");
    p.wire.expert_ranks = ranks + 1;
    CHECK_INT(hmoe_join(&p.parallel, &p.wire, message), HMOE_BAD_ARGUMENT);
    unmake(&p);
}

/* The same for calls that some programs make. */
static void other_failures(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_K);
    hmoe_muon muon = hmoe_default_muon();
    hmoe_cache cache;
    hmoe_real logits[16], *before;
    int last = rank == ranks - 1;
    size_t bytes, at;
    both p;
    make(&p, &c, 8, ranks, HMOE_CONTIGUOUS);
    no_memory = last;
    all_say(&p.part, hmoe_cache_create(&cache, &p.part), HMOE_OUT_OF_MEMORY, "keys and values");
    all_say(&p.part, hmoe_muon_create(&muon, &p.part), HMOE_OUT_OF_MEMORY, "Muon's products");
    no_memory = 0;
    CHECK(!cache.keys && !muon.scratch && !muon.matrices);
    for (size_t i = 0; i < p.part.tensor_count; i++) CHECK_INT(p.part.tensors[i].frozen, 0);
    CHECK_INT(hmoe_cache_create(&cache, &p.part), HMOE_OK);
    all_say(&p.part, hmoe_next(&p.part, &cache, last ? 77 : 1, logits), HMOE_BAD_ARGUMENT, "is 77");
    CHECK_INT(hmoe_next(&p.part, &cache, 1, logits), HMOE_OK);

    CHECK_INT(hmoe_muon_create(&muon, &p.part), HMOE_OK);   /* one expert's gradient, in one */
    CHECK_INT(forward_part(&p, HMOE_TRAIN, 8), HMOE_OK);
    CHECK_INT(hmoe_backward(&p.part, 1), HMOE_OK);
    bytes = p.part.param_count * sizeof *before;
    before = reals(p.part.param_count);
    memcpy(before, p.part.params, bytes);
    if (last)
        p.part.grads[named(&p.part, "model.layers.0.block_sparse_moe.experts.7.w2.weight")->offset]
            = (hmoe_real)NAN;
    all_say(&p.part, hmoe_muon_update(&muon, &p.part), HMOE_NOT_FINITE, "norm is");
    CHECK(!memcmp(before, p.part.params, bytes));
    for (size_t i = 0; i < p.part.param_count; i++) CHECK(p.part.grads[i] == 0);
    free(before);

    at = named(&p.part, "lm_head.weight")->offset;
    if (last) p.part.params[at] = (hmoe_real)NAN;
    all_say(&p.part, hmoe_next(&p.part, &cache, 1, logits), HMOE_NOT_FINITE, "logits");
    hmoe_cache_free(&cache), hmoe_muon_free(&muon);
    hmoe_free(&p.part);
    no_memory = last;
    all_say(&p.part, hmoe_create(&p.part, &c, 5, 8, 1), HMOE_OUT_OF_MEMORY, "out of memory");
    no_memory = 0;
    unmake(&p);
}

static int same_files(const char *a, const char *b, const char *name) {
    char path[2][160];
    FILE *f[2];
    int x, y;
    snprintf(path[0], 160, "%s/%s", a, name), snprintf(path[1], 160, "%s/%s", b, name);
    f[0] = fopen(path[0], "rb"), f[1] = fopen(path[1], "rb");
    if (!f[0] || !f[1]) return 0;
    do x = fgetc(f[0]), y = fgetc(f[1]);
    while (x == y && x != EOF);
    fclose(f[0]), fclose(f[1]);
    return x == y;
}

/* With a configuration of the caller's, which the first process alone can compare with files. */
static void load_as_another(both *p, const char *dir, int D) {
    hmoe_config c = p->one.config;
    c.K = 3, c.loss_coef[HMOE_Z] = 0.5;
    hmoe_free(&p->part), hmoe_leave(&p->parallel), hmoe_mpi_free(&p->wire);
    join(p, D, HMOE_CONTIGUOUS);
    check_ok(p, hmoe_load_as(&p->part, &c, dir, 2, 1), &p->part);
    each_tensor(p, p->part.params, p->one.params, near);
    CHECK(p->part.config.K == 3 && p->part.config.loss_coef[HMOE_Z] == 0.5);
    CHECK_INT(p->part.step, 12);
    hmoe_free(&p->part);
    c.H[0]++, c.H[1]--;
    all_say(&p->part, hmoe_load_as(&p->part, &c, dir, 2, 1), HMOE_BAD_FILE, "another shape");
    c.K = 9;
    all_say(&p->part, hmoe_load_as(&p->part, &c, dir, 2, 1), HMOE_BAD_ARGUMENT, "K is 9");
}

/* Many processes write the same bytes as one. Many, in any groups, read what one wrote. */
static void one_checkpoint(void) {
    hmoe_config c = config_of("modse", 8, HMOE_TOP_K);
    char one[100], many[100];
    both p;
    c.noisy_gating = 1;
    snprintf(one, sizeof one, "%s/one", getenv("MPI_DIR"));
    snprintf(many, sizeof many, "%s/many", getenv("MPI_DIR"));
    make(&p, &c, 8, ranks, HMOE_PAIRS);
    fill(p.one.exp_avg, p.one.param_count, 1), fill(p.one.exp_avg_sq, p.one.param_count, 1);
    for (size_t i = 0; i < p.one.param_count; i++)
        p.one.exp_avg_sq[i] *= p.one.exp_avg_sq[i];      /* never negative */
    each_tensor(&p, p.part.exp_avg, p.one.exp_avg, take);
    each_tensor(&p, p.part.exp_avg_sq, p.one.exp_avg_sq, take);
    p.one.step = p.part.step = 12, p.one.tokens = p.part.tokens = 345;
    p.one.best_val_loss = p.part.best_val_loss = 2.5, p.one.optimizer = p.part.optimizer = 1;
    p.one.best_of = p.part.best_of = 99;
    if (rank == 0) check_ok(&p, hmoe_save(&p.one, one, 1), &p.one);
    p.part.seconds = rank;                               /* the first one's counts */
    check_ok(&p, hmoe_save(&p.part, many, 1), &p.part);
    if (rank == 0) {
        CHECK(same_files(one, many, "training.safetensors"));
        CHECK(same_files(one, many, "model.safetensors"));
        CHECK(same_files(one, many, "config.json"));
    }
    check_ok(&p, hmoe_forward(&p.one, HMOE_TRAIN, p.tokens, p.targets, 8, p.T), &p.one);
    check_ok(&p, forward_part(&p, HMOE_TRAIN, 8), &p.part);
    check_ok(&p, hmoe_save(&p.part, many, 1), &p.part);  /* saving disturbs no pass */
    check_ok(&p, hmoe_backward(&p.one, 1), &p.one);
    check_ok(&p, hmoe_backward(&p.part, 1), &p.part);
    hmoe__parallel_sum_gradients(&p.part);
    compare(&p, p.part.grads, p.one.grads, GRADIENTS);
    for (int D = 1; D <= ranks; D *= 2) {
        hmoe_free(&p.part), hmoe_leave(&p.parallel), hmoe_mpi_free(&p.wire);
        join(&p, D, HMOE_CONTIGUOUS);
        check_ok(&p, hmoe_load(&p.part, one, 2, 1), &p.part);
        tolerance = 0;
        each_tensor(&p, p.part.params, p.one.params, near);
        each_tensor(&p, p.part.exp_avg, p.one.exp_avg, near);
        each_tensor(&p, p.part.exp_avg_sq, p.one.exp_avg_sq, near);
        CHECK_INT(p.part.step, 12);
        CHECK_INT(p.part.tokens, 345);
        CHECK_INT(p.part.seed, 5);
        CHECK_INT(p.part.optimizer, 1);
        CHECK(p.part.best_val_loss == 2.5);
        CHECK_INT(p.part.best_of, 99);
        load_as_another(&p, one, D);
    }
    unmake(&p);
}

/* The same processes give the same bits. */
static void again_the_same_bits(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_P);
    hmoe_real *first = NULL;
    for (int run = 0; run < 2; run++) {
        both p;
        make(&p, &c, 8, ranks > 2 ? 2 : ranks, HMOE_PAIRS);
        steps(&p, 5, 1e-4);
        if (!first) {
            first = reals(p.part.param_count);
            memcpy(first, p.part.params, p.part.param_count * sizeof *first);
        } else CHECK(!memcmp(first, p.part.params, p.part.param_count * sizeof *first));
        unmake(&p);
    }
    free(first);
}

/* The rows and bytes that were sent equal those computed from the routes. */
static void what_travels(void) {
    hmoe_config c = config_of("arithmetic", 8, HMOE_TOP_P);
    double rows = 0, shared = 0;
    both p;
    make(&p, &c, 8, ranks, HMOE_CONTIGUOUS);
    check_ok(&p, forward_part(&p, HMOE_TRAIN, 8), &p.part);
    for (int l = 0; l < c.L; l++) {
        const hmoe_routes *r = &p.part.layers[l].routes;
        for (int e = 0; e < 8; e++)
            if (e / (8 / ranks) != rank) rows += r->expert_start[e + 1] - r->expert_start[e];
    }
    CHECK(p.parallel.bytes[HMOE_COUNTS] == c.L * (8 - 8 / ranks) * (double)sizeof(int));
    check_ok(&p, hmoe_backward(&p.part, 1), &p.part);
    p.parallel.messages[HMOE_ROWS] = 0;
    MPI_Allreduce(MPI_IN_PLACE, &rows, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    MPI_Allreduce(MPI_IN_PLACE, p.parallel.bytes, HMOE_KINDS, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    CHECK(p.parallel.bytes[HMOE_ROWS] == 4 * rows * c.C * sizeof(hmoe_real));   /* there and back */
    p.parallel.bytes[HMOE_GRADIENTS] = 0;
    hmoe__parallel_sum_gradients(&p.part);
    MPI_Allreduce(MPI_IN_PLACE, p.parallel.bytes, HMOE_KINDS, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    for (size_t i = 0; i < p.one.tensor_count; i++)
        if (p.one.tensors[i].expert < 0)
            shared += (double)p.one.tensors[i].rows * p.one.tensors[i].cols;
    CHECK(p.parallel.bytes[HMOE_GRADIENTS] == 2 * (ranks - 1) * shared * sizeof(hmoe_real));
    unmake(&p);
}

/* `counts SIZES D PLACEMENT`: one step, and what test_scale.py predicts of it: of each process the
   rows it has for each expert, and what hmoe_parallel counted. */
static void print_counts(const char *sizes, int D, hmoe_placement placement) {
    hmoe_config c = config_of(sizes, 8, HMOE_TOP_P);
    hmoe_adamw adamw = hmoe_default_adamw();
    both p;
    CHECK_INT(hmoe_expert_sizes(c.H, 8, 8 * 344, sizes, NULL), HMOE_OK);
    c.C = 64, c.T = 24;              /* a layer's experts are more than a HMOE__PIECE */
    make(&p, &c, 4, D, placement);
    check_ok(&p, forward_part(&p, HMOE_TRAIN, 4), &p.part);
    memset(p.parallel.messages, 0, sizeof p.parallel.messages);
    memset(p.parallel.bytes, 0, sizeof p.parallel.bytes);
    check_ok(&p, forward_part(&p, HMOE_TRAIN, 4), &p.part);
    check_ok(&p, hmoe_backward(&p.part, 1), &p.part);
    check_ok(&p, hmoe_update(&p.part, &adamw), &p.part);
    for (int r = 0; r < ranks; r++) {                      /* one after another */
        MPI_Barrier(MPI_COMM_WORLD);
        if (r != rank) continue;
        printf("model %d %d %d %d", c.V, c.C, c.L, c.T);
        for (int e = 0; e < 8; e++) printf(" %d", c.H[e]);
        for (int l = 0; l < c.L; l++) {
            const int *start = p.part.layers[l].routes.expert_start;
            printf("\nroutes %d %d", rank, l);
            for (int e = 0; e < 8; e++) printf(" %d", start[e + 1] - start[e]);
        }
        for (int kind = 0; kind < HMOE_FILES; kind++)
            printf("\ncounted %d %d %.0f %.0f", rank, kind, p.parallel.messages[kind],
                   p.parallel.bytes[kind]);
        putchar('\n');
        fflush(stdout);
    }
    unmake(&p);
}

int main(int argc, char **argv) {
    int bad, all;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &all);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    threads(TEST_THREADS);
    if (argc == 5 && !strcmp(argv[1], "counts")) {
        print_counts(argv[2], atoi(argv[3]), (hmoe_placement)atoi(argv[4]));
        MPI_Finalize();
        return test_failed;
    }
    TEST(arithmetic_top_k);
    TEST(arithmetic_top_p);
    TEST(modse);
    TEST(noise_and_dropout);
    TEST(steered);
    TEST(fewer_sequences);
    if (sizeof(hmoe_real) == 8) TEST(fifty_steps);
    TEST(empty_exchanges);
    TEST(without_training);
    TEST(failures_are_everyones);
    TEST(other_failures);
    TEST(one_checkpoint);
    TEST(again_the_same_bits);
    TEST(what_travels);
    bad = test_failed;
    MPI_Allreduce(&bad, &all, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    MPI_Finalize();
    if (rank == 0) test_failed = all, test_summary("mpi");
    return all > 0;
}
