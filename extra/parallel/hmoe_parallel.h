/* hmoe_parallel.h - one model of hmoe.h in several processes: expert parallelism, and
   replicas. Include it after hmoe.h, in the same way. The network is a table of three
   functions, hmoe_wire. hmoe_mpi.h fills it for MPI.

   R processes form R / D groups of D. Within a group each expert is in one process. A
   process has whole pairs of a wide and a narrow expert (hmoe_place_experts). Each group
   has a copy of all experts. Each process has a copy of attention, norms, router,
   embedding and head. R = 4, D = 2:

       group 0                                  group 1
       process 0          process 1             process 2          process 3
       sequences 0 1      2 3                   4 5                6 7           of a batch of 8
       experts 0 3 4 7    1 2 5 6               0 3 4 7            1 2 5 6
              <----- tokens ----->                     <----- tokens ----->
              <----- gradients of the same experts --->
       <------------------------- gradients of all else -------------------------->

   A process routes its own tokens and sends each to the processes of its experts: first
   the number of rows for each expert, then the rows. The outputs come back, and the
   sender adds them up, so gates are never sent. In the backward pass it sends g dy and
   gets dx. The gradient of the gate is dg = dy . y, with the output y that it kept. The
   rows are the same as in the forward pass, in the same order, so they are not counted
   again. An expert sees the tokens of its whole group in the order in which one process
   would have them. Its gradients are summed over its copies only.

   All sums are made in the order of the processes, so the same processes give the same
   bits. */
#ifndef HMOE_PARALLEL_H
#define HMOE_PARALLEL_H

#include "hmoe.h"
#include "hmoe_placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A set of processes: all, the group of this one, or those with the same experts. */
typedef enum hmoe_among { HMOE_ALL, HMOE_GROUP, HMOE_COPIES } hmoe_among;

/* For each process r of a set: count[r] items, which start at item at[r] of array. */
typedef struct hmoe_parcels {
    void *array;
    int *count, *at;
} hmoe_parcels;

/* The network. Each function returns when it is done. If it fails, it ends the process.
   */
typedef struct hmoe_wire {
    int rank, size;                   /* this process is number `rank` of `size` */
    int expert_ranks;                 /* D: the processes of a group are neighbours */
    /* each process of the set sends parcels to all, itself too; item: bytes of one item */
    void (*exchange)(const struct hmoe_wire *wire, hmoe_among among, const hmoe_parcels *out,
                     const hmoe_parcels *in, size_t item);
    void (*send)(const struct hmoe_wire *wire, int to, const void *bytes, size_t n);
    void (*receive)(const struct hmoe_wire *wire, int from, void *bytes, size_t n);
    void *self;                       /* data of the network */
} hmoe_wire;

/* Kinds of messages. Messages to other processes are counted, except empty ones. */
typedef enum hmoe_traffic {
    HMOE_COUNTS, HMOE_ROWS, HMOE_GRADIENTS, HMOE_SUMS, HMOE_FILES, HMOE_KINDS
} hmoe_traffic;

typedef struct hmoe_parallel {
    hmoe_placement placement;
    int device[HMOE_MAX_EXPERTS];     /* which process of a group has expert e; HMOE_GIVEN: set */
    double messages[HMOE_KINDS], bytes[HMOE_KINDS];
    /* internal */
    int64_t reduced;                  /* the step whose gradients are summed; 0: none */
    double norm;                      /* their squared norm */
    const hmoe_wire *wire;
    int here[HMOE_MAX_EXPERTS];           /* 1: expert e lies in this process */
    int mine, expert[HMOE_MAX_EXPERTS];   /* the experts in this process, ascending, */
    int H[HMOE_MAX_EXPERTS], ldh;         /*   their widths, and the widest */
    int order[HMOE_MAX_EXPERTS];          /* all experts, by process and then by number: */
    int first[HMOE_MAX_EXPERTS + 1];      /*   process d has order[first[d]] .. [first[d+1]-1] */
    hmoe_parcels out, in;                 /* [R] parcels to and from each process */
    int *everyones;                       /* [2 R] */
    void *parts;                          /* the terms of a sum */
    struct hmoe__crossing *crossing;      /* [L], or one that all layers use in turn */
    void *arena;
    int *counts, *row;                    /* [E], [N * slots]: routes, in the order of sending */
    hmoe_real *sent, *came, *gave;        /* [N * slots, C], [most, C] as they came, by expert */
    hmoe_real *h, *dh, *dg, *ones;        /* [most, ldh], [most, ldh], [most], [most] by expert */
} hmoe_parallel;

/* Prepares p for a network, which must outlive it. Then set placement and device if
   needed, and call hmoe_train_with(m, p) before hmoe_create or hmoe_load; max_B is then
   the most sequences of this process. All processes must make the same calls for m with
   the same arguments, except tokens, targets and B, which may be 0. Losses, usage and the
   gradients' norm are those of all processes. The first process saves and loads for all,
   and hmoe_save writes what a single process would write. If a call fails in one process,
   it fails in all, with the same status and message. But if hmoe_join has no memory, it fails
   in this process only, and the caller must end the others. It fails in all if they are not
   of the same build. */
hmoe_status hmoe_join(hmoe_parallel *p, const hmoe_wire *wire, char *message);
void hmoe_train_with(hmoe_model *m, hmoe_parallel *p);   /* p NULL: only this process */
void hmoe_leave(hmoe_parallel *p);        /* call it after hmoe_free */

/* Copies n bytes from the first process to all. */
void hmoe_broadcast(hmoe_parallel *p, void *bytes, size_t n);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_PARALLEL_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_PARALLEL_IMPLEMENTED
#define HMOE_PARALLEL_IMPLEMENTED

#include <limits.h>

enum { HMOE__PIECE = 1 << 18 };   /* numbers that are added at a time */

/* What one layer keeps for its backward pass. Rows have one of two orders: as they came
   (by process, then by expert), or by expert (then by process), which the products need.
   */
typedef struct hmoe__crossing {
    int *got;                     /* [D, mine] rows that came from each process for each expert */
    int *start;                   /* [mine + 1] by expert: first row of each */
    int *at;                      /* [most] by expert: number of the row as it came */
    hmoe_real *x, *u;             /* [most, C] as they came; [most, 2 ldh] by expert */
    hmoe_real *y;                 /* [N * slots, C] outputs, in the order of sending */
} hmoe__crossing;

static hmoe_parallel *hmoe__parallel(const hmoe_model *m) { return (hmoe_parallel *)m->parallel; }

static int hmoe__parallel_rank(const hmoe_model *m) { return hmoe__parallel(m)->wire->rank; }

static int hmoe__parallel_has(const hmoe_model *m, int expert) {
    return hmoe__parallel(m)->here[expert];
}

static int hmoe__size_of(const hmoe_parallel *p, hmoe_among among) {
    int D = p->wire->expert_ranks, R = p->wire->size;
    return among == HMOE_ALL ? R : among == HMOE_GROUP ? D : R / D;
}

static int hmoe__rank_in(const hmoe_parallel *p, hmoe_among among) {
    int D = p->wire->expert_ranks, rank = p->wire->rank;
    return among == HMOE_ALL ? rank : among == HMOE_GROUP ? rank % D : rank / D;
}

/* ---------------------------------------------------------------------------------------------
   Sums, and a common status. */

static void hmoe__count(hmoe_parallel *p, hmoe_traffic kind, double bytes) {
    p->messages[kind] += bytes > 0;
    p->bytes[kind] += bytes;
}

/* Sends the parcels p->out and receives p->in. */
static void hmoe__exchange(hmoe_parallel *p, hmoe_among among, const void *out, void *in,
                           size_t item, hmoe_traffic kind) {
    p->out.array = (void *)out, p->in.array = in;
    for (int r = 0; r < hmoe__size_of(p, among); r++)
        if (r != hmoe__rank_in(p, among)) hmoe__count(p, kind, (double)p->out.count[r] * item);
    p->wire->exchange(p->wire, among, &p->out, &p->in, item);
}

/* all[r] receives the `bytes` bytes `mine` of process r. */
static void hmoe__gather(hmoe_parallel *p, hmoe_among among, const void *mine, void *all,
                         size_t bytes) {
    for (int r = 0; r < hmoe__size_of(p, among); r++) {
        p->out.count[r] = p->in.count[r] = 1;
        p->out.at[r] = 0, p->in.at[r] = r;
    }
    hmoe__exchange(p, among, mine, all, bytes, HMOE_SUMS);
}

/* parts: [R, n] doubles or hmoe_reals. The first row receives the sum, in the order of R.
   */
static void hmoe__add_up(void *parts, int R, int n, size_t size) {
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int r = 0; r < R; r++)
            sum += size == sizeof(double) ? ((double *)parts)[(size_t)r * n + i]
                                          : (double)((hmoe_real *)parts)[(size_t)r * n + i];
        if (size == sizeof(double)) ((double *)parts)[i] = sum;
        else ((hmoe_real *)parts)[i] = (hmoe_real)sum;
    }
}

static int hmoe__slice(int n, int r, int R) { return (int)((int64_t)n * r / R); }

/* x[0 .. n-1] receives its sum over a set. Each process adds up one slice and sends it to
   all. */
static void hmoe__sum(hmoe_parallel *p, hmoe_among among, void *x, size_t n, size_t size,
                      hmoe_traffic kind) {
    int R = hmoe__size_of(p, among), me = hmoe__rank_in(p, among);
    for (size_t at = 0; R > 1 && at < n; at += HMOE__PIECE) {
        int N = n - at < HMOE__PIECE ? (int)(n - at) : HMOE__PIECE;
        int mine = hmoe__slice(N, me + 1, R) - hmoe__slice(N, me, R);
        char *piece = (char *)x + at * size;
        for (int r = 0; r < R; r++) {
            p->out.at[r] = hmoe__slice(N, r, R);
            p->out.count[r] = hmoe__slice(N, r + 1, R) - p->out.at[r];
            p->in.count[r] = mine, p->in.at[r] = r * mine;
        }
        hmoe__exchange(p, among, piece, p->parts, size, kind);
        hmoe__add_up(p->parts, R, mine, size);
        for (int r = 0; r < R; r++) {
            p->in.at[r] = p->out.at[r], p->in.count[r] = p->out.count[r];
            p->out.at[r] = 0, p->out.count[r] = mine;
        }
        hmoe__exchange(p, among, p->parts, piece, size, kind);
    }
}

static void hmoe__parallel_sum(hmoe_model *m, double *x, int n) {
    hmoe__sum(hmoe__parallel(m), HMOE_ALL, x, (size_t)n, sizeof *x, HMOE_SUMS);
}

static void hmoe__send(hmoe_parallel *p, int to, const void *bytes, size_t n) {
    p->wire->send(p->wire, to, bytes, n);
    hmoe__count(p, HMOE_FILES, (double)n);
}

static void hmoe__pass_on(hmoe_parallel *p, int from, void *bytes, size_t n) {
    const hmoe_wire *w = p->wire;
    if (w->rank != from) { w->receive(w, from, bytes, n); return; }
    for (int r = 0; r < w->size; r++) if (r != from) hmoe__send(p, r, bytes, n);
}

void hmoe_broadcast(hmoe_parallel *p, void *bytes, size_t n) { hmoe__pass_on(p, 0, bytes, n); }

static hmoe_status hmoe__parallel_common_status(hmoe_model *m, hmoe_status status, int N) {
    hmoe_parallel *p = hmoe__parallel(m);
    int mine[2], *all = p->everyones, first = 0;
    double tokens = 0;
    mine[0] = (int)status, mine[1] = N;
    hmoe__gather(p, HMOE_ALL, mine, all, sizeof mine);
    for (int r = p->wire->size; r-- > 0; tokens += all[2 * r + 1])
        if (all[2 * r]) first = r, status = (hmoe_status)all[2 * r];
    if (status) {
        hmoe__pass_on(p, first, m->message, sizeof m->message);
        return status;
    }
    if (tokens > INT_MAX)
        return HMOE__BAD(m->message, "%.0f tokens in all processes: at most %d", tokens, INT_MAX);
    if (tokens == 0) return HMOE_OK;   /* a pass may wait for its backward */
    m->all_tokens = (int)tokens, m->first_token = 0;
    for (int r = 0; r < p->wire->rank; r++) m->first_token += all[2 * r + 1];
    return HMOE_OK;
}

/* Checks that all copies of a weight are equal, by hashes. */
static hmoe_status hmoe__check_copies(hmoe_model *m) {
    hmoe_parallel *p = hmoe__parallel(m);
    uint64_t hash[2] = { 0, 0 }, *all = (uint64_t *)p->parts;
    double differ = 0;
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        size_t n = hmoe__is_local(m, t->expert) ? (size_t)t->rows * t->cols : 0;
        for (size_t k = 0; k < n; k++) {
            uint64_t bits = 0, *of = &hash[t->expert >= 0];
            memcpy(&bits, &m->params[t->offset + k], sizeof *m->params);
            *of = hmoe__mix(*of ^ bits);
        }
    }
    for (int experts = 0; experts < 2; experts++) {
        hmoe_among among = experts ? HMOE_COPIES : HMOE_ALL;
        hmoe__gather(p, among, &hash[experts], all, sizeof *all);
        for (int r = 1; r < hmoe__size_of(p, among); r++) differ += all[r] != all[0];
    }
    hmoe__parallel_sum(m, &differ, 1);
    if (differ == 0) return HMOE_OK;
    return HMOE__FAIL(m->message, HMOE_IO, "the processes no longer have the same weights: they "
                      "were built differently, or memory or the network fails");
}

/* ---------------------------------------------------------------------------------------------
   The experts of each process, and memory for their rows. */

static hmoe_status hmoe__place_here(hmoe_model *m) {
    hmoe_parallel *p = hmoe__parallel(m);
    const hmoe_config *c = &m->config;
    int D = p->wire->expert_ranks, me = hmoe__rank_in(p, HMOE_GROUP), n = 0;
    hmoe_placement how = D == 1 && p->placement == HMOE_PAIRS ? HMOE_CONTIGUOUS : p->placement;
    HMOE__TRY(hmoe_place_experts(p->device, c->H, c->E, D, how, m->message));
    p->mine = p->ldh = 0;
    for (int d = 0; d < D; d++) {
        p->first[d] = n;
        for (int e = 0; e < c->E; e++) if (p->device[e] == d) p->order[n++] = e;
    }
    p->first[D] = n;
    for (int e = 0; e < c->E; e++) {
        p->here[e] = p->device[e] == me;
        if (!p->here[e]) continue;
        p->expert[p->mine] = e, p->H[p->mine++] = c->H[e];
        p->ldh = c->H[e] > p->ldh ? c->H[e] : p->ldh;
    }
    return HMOE_OK;
}

/* All of this memory, like hmoe__list_activations. `most` rows come if all tokens of a
   group choose the experts of this process. Memory that no row touches costs only
   addresses. */
static double hmoe__list_crossings(hmoe_parallel *p, const hmoe_config *c, double N, double most,
                                   int training, char *base) {
    hmoe__arena arena = { base, 0, 0 }, *a = &arena;
    int layers = training ? c->L : 1, D = p->wire->expert_ranks;
    double sent = N * hmoe__slots(c);
    p->crossing = (hmoe__crossing *)hmoe__arena_alloc(a, layers, 1, sizeof *p->crossing);
    for (int l = 0; l < layers; l++) {
        hmoe__crossing unused, *cross = base ? &p->crossing[l] : &unused;
        cross->got = hmoe__arena_ints(a, D, p->mine),
        cross->start = hmoe__arena_ints(a, p->mine + 1, 1);
        cross->at = hmoe__arena_ints(a, most, 1);
        cross->x = hmoe__arena_reals(a, most, c->C),
        cross->u = hmoe__arena_reals(a, most, 2 * p->ldh);
        cross->y = hmoe__arena_reals(a, sent, c->C);
    }
    p->counts = hmoe__arena_ints(a, c->E, 1), p->row = hmoe__arena_ints(a, sent, 1);
    p->sent = hmoe__arena_reals(a, sent, c->C);
    p->came = hmoe__arena_reals(a, most, c->C), p->gave = hmoe__arena_reals(a, most, c->C);
    p->h = hmoe__arena_reals(a, most, p->ldh),
    p->dh = hmoe__arena_reals(a, training ? most : 0, p->ldh);
    p->dg = hmoe__arena_reals(a, most, 1), p->ones = hmoe__arena_reals(a, most, 1);
    return a->most + 64;
}

static hmoe_status hmoe__parallel_create(hmoe_model *m, int max_B, int training) {
    hmoe_parallel *p = hmoe__parallel(m);
    const hmoe_config *c = &m->config;
    int slots = hmoe__slots(c);
    double N = max_B ? (double)max_B * c->T : 1, most, bytes;
    if (m->backend != hmoe__cpu_backend())
        return HMOE__BAD(m->message, "several processes compute on the CPU, not on the %s backend",
                         m->backend->name);
    HMOE__TRY(hmoe__place_here(m));
    most = p->wire->expert_ranks * N * (slots < p->mine ? slots : p->mine);
    if (most > INT_MAX)
        return HMOE__BAD(m->message, "%.0f rows may come to the experts of one process: at most "
                         "%d; a smaller batch, or fewer expert ranks", most, INT_MAX);
    bytes = hmoe__list_crossings(p, c, N, most, training, NULL);
    HMOE_FREE(p->arena);
    p->arena = bytes < (double)((size_t)-1 / 4) ? HMOE_MALLOC((size_t)bytes) : NULL;
    if (!p->arena) return hmoe__no_memory(m->message, bytes, "the rows of other processes");
    hmoe__list_crossings(p, c, N, most, training,
                         (char *)p->arena + (64 - (uintptr_t)p->arena % 64) % 64);
    return HMOE_OK;
}

/* ---------------------------------------------------------------------------------------------
   Sending rows to the experts and back. */

/* Computes which rows go to which process (p->out, p->row), and which come from which
   (p->in, start, at). In the forward pass it sends the counts first. */
static void hmoe__plan(hmoe_parallel *p, hmoe__crossing *cross, const int *expert_start, int E,
                       int forward) {
    int D = p->wire->expert_ranks, n = 0, mine = p->mine, next[HMOE_MAX_EXPERTS], came = 0;
    for (int i = 0; i < E; i++) {
        int e = p->order[i];
        p->counts[i] = expert_start[e + 1] - expert_start[e];
        for (int row = expert_start[e]; row < expert_start[e + 1]; row++) p->row[n++] = row;
    }
    if (forward) {
        for (int d = 0; d < D; d++) {
            p->out.at[d] = p->first[d], p->out.count[d] = p->first[d + 1] - p->first[d];
            p->in.at[d] = d * mine, p->in.count[d] = mine;
        }
        hmoe__exchange(p, HMOE_GROUP, p->counts, cross->got, sizeof(int), HMOE_COUNTS);
    }
    n = 0;
    for (int d = 0; d < D; d++) {
        p->out.at[d] = n, p->out.count[d] = p->in.count[d] = 0, p->in.at[d] = came;
        for (int i = p->first[d]; i < p->first[d + 1]; i++) p->out.count[d] += p->counts[i];
        for (int i = 0; i < mine; i++) p->in.count[d] += cross->got[d * mine + i];
        n += p->out.count[d], came += p->in.count[d];
    }
    cross->start[0] = 0;
    for (int i = 0; i < mine; i++) {
        next[i] = cross->start[i + 1] = cross->start[i];
        for (int d = 0; d < D; d++) cross->start[i + 1] += cross->got[d * mine + i];
    }
    for (int d = 0, row = 0; d < D; d++)
        for (int i = 0; i < mine; i++)
            for (int k = 0; k < cross->got[d * mine + i]; k++) cross->at[next[i]++] = row++;
}

/* Copies rows of C numbers: to[i] = from[at[i]], or to[at[i]] = from[i] if scatter is 1.
   */
static void hmoe__move_rows(hmoe_real *to, const hmoe_real *from, const int *at, int n, int C,
                            int scatter) {
    HMOE__PARALLEL_FOR(n)
    for (int i = 0; i < n; i++)
        memcpy(to + (size_t)(scatter ? at[i] : i) * C, from + (size_t)(scatter ? i : at[i]) * C,
               (size_t)C * sizeof *to);
}

static void hmoe__rows_to_experts(hmoe_parallel *p, hmoe_real *came, int C) {
    hmoe__exchange(p, HMOE_GROUP, p->sent, came, (size_t)C * sizeof *came, HMOE_ROWS);
}

/* Sends p->gave (by expert) back to the senders. Stores it in the order of sending, then
   by route. */
static void hmoe__rows_to_senders(hmoe_model *m, const hmoe__crossing *cross, hmoe_real *received,
                                  int rows) {
    hmoe_parallel *p = hmoe__parallel(m);
    hmoe_parcels swap = p->out;
    int C = m->config.C;
    hmoe__move_rows(p->came, p->gave, cross->at, cross->start[p->mine], C, 1);
    p->out = p->in, p->in = swap;
    hmoe__exchange(p, HMOE_GROUP, p->came, received, (size_t)C * sizeof *received, HMOE_ROWS);
    hmoe__move_rows(m->buffers->rows, received, p->row, rows, C, 1);
}

/* The products of this process's experts: members of hmoe.h's list, on the rows that
   came. Row r of x (up = 1) or of y (up = 0) is read from row at[r]. */
static void hmoe__my_list(hmoe_linear *list, const hmoe_model *m, const hmoe__layer *ly,
                          const hmoe__crossing *cross, int up, hmoe_real *params, hmoe_real *x,
                          hmoe_real *y, const int *at) {
    hmoe_parallel *p = hmoe__parallel(m);
    if (up) hmoe__up_list(list, m, ly, params, x, y, at);
    else hmoe__down_list(list, m, ly, params, x, y, at);
    for (int i = 0; i < p->mine; i++) {
        list[i] = list[p->expert[i]];   /* in place: they ascend */
        list[i].rows = cross->start + i;
        if (up) list[i].ldy = 2 * p->ldh;
        else list[i].ldx = p->ldh;
    }
}

static void hmoe__parallel_forward(hmoe_model *m, int l) {
    hmoe_parallel *p = hmoe__parallel(m);
    const hmoe_backend *be = m->backend;
    hmoe__layer *ly = &m->layers[l];
    hmoe__crossing *cross = &p->crossing[m->grads ? l : 0];
    hmoe_linear *list = m->buffers->list;
    const int *row_token = ly->routes.row_token;
    int C = m->config.C, E = m->config.E, rows = ly->routes.expert_start[E];
    hmoe__plan(p, cross, ly->routes.expert_start, E, 1);
    HMOE__PARALLEL_FOR(rows)
    for (int k = 0; k < rows; k++)
        memcpy(p->sent + (size_t)k * C, ly->n2 + (size_t)row_token[p->row[k]] * C,
               (size_t)C * sizeof *p->sent);
    hmoe__rows_to_experts(p, cross->x, C);
    hmoe__my_list(list, m, ly, cross, 1, m->params, cross->x, cross->u, cross->at);
    if (p->mine) be->experts_up(p->h, list, cross->start, p->H, p->mine, p->ldh);
    hmoe__my_list(list, m, ly, cross, 0, m->params, p->h, p->gave, NULL);
    be->linear_forward(list, p->mine);
    hmoe__rows_to_senders(m, cross, cross->y, rows);
}

/* Fills p->sent with g dy of each route, and computes dg = dy . y. */
static void hmoe__send_dy(hmoe_model *m, const hmoe__layer *ly, const hmoe__crossing *cross,
                          const hmoe_real *dy, int rows) {
    hmoe_parallel *p = hmoe__parallel(m);
    int C = m->config.C;
    HMOE__PARALLEL_FOR(rows)
    for (int k = 0; k < rows; k++) {
        int row = p->row[k];
        const hmoe_real *dy_t = dy + (size_t)ly->routes.row_token[row] * C;
        const hmoe_real *y_k = cross->y + (size_t)k * C;
        hmoe_real *sent = p->sent + (size_t)k * C, g = ly->routes.row_gate[row], dg = 0;
        HMOE__SIMD_SUM(dg)
        for (int i = 0; i < C; i++) {
            sent[i] = g * dy_t[i];
            dg += dy_t[i] * y_k[i];
        }
        m->buffers->dgate[row] = dg;
    }
}

static void hmoe__parallel_backward(hmoe_model *m, int l, const hmoe_real *dy) {
    hmoe_parallel *p = hmoe__parallel(m);
    const hmoe_backend *be = m->backend;
    hmoe__layer *ly = &m->layers[l];
    hmoe__crossing *cross = &p->crossing[l];
    hmoe_linear *list = m->buffers->list;
    int C = m->config.C, E = m->config.E, rows = ly->routes.expert_start[E];
    p->reduced = 0;
    hmoe__plan(p, cross, ly->routes.expert_start, E, 0);
    hmoe__send_dy(m, ly, cross, dy, rows);
    hmoe__rows_to_experts(p, p->came, C);
    hmoe__my_list(list, m, ly, cross, 0, m->params, p->dh, p->came, cross->at);
    be->linear_backward_input(list, p->mine);               /* dh = g dy W2 */
    for (int row = 0; row < cross->start[p->mine]; row++) p->ones[row] = 1;   /* g is in dh */
    be->swiglu_backward(cross->u, p->h, p->dg, p->dh, cross->start, p->ones, p->H, p->mine,
                        p->ldh);
    hmoe__my_list(list, m, ly, cross, 0, m->grads, p->h, p->came, cross->at);
    be->linear_backward_weight(list, p->mine);              /* dW2 += (g dy)^T h */
    hmoe__my_list(list, m, ly, cross, 1, m->grads, cross->x, cross->u, cross->at);
    be->linear_backward_weight(list, p->mine);              /* dW13 += du^T n */
    hmoe__my_list(list, m, ly, cross, 1, m->params, p->gave, cross->u, NULL);
    be->linear_backward_input(list, p->mine);               /* dn of each row = du W13 */
    hmoe__rows_to_senders(m, cross, p->sent, rows);
}

/* Sums the gradients of one step: those of an expert over its copies, all others over all
   processes. Neighbours that are summed over the same set are sent together. The squared
   norm counts each gradient once. */
static double hmoe__parallel_sum_gradients(hmoe_model *m) {
    hmoe_parallel *p = hmoe__parallel(m);
    double norm[2] = { 0, 0 };   /* of shared tensors; of experts */
    if (p->reduced == m->step + 1) return p->norm;   /* Muon calls this first, then AdamW */
    for (size_t i = 0, j; i < m->tensor_count; i = j) {
        size_t at = m->tensors[i].offset, end;
        int experts = m->tensors[i].expert >= 0;
        for (j = i + 1; j < m->tensor_count && (m->tensors[j].expert >= 0) == experts; j++) { }
        end = j < m->tensor_count ? m->tensors[j].offset : m->param_count;
        hmoe__sum(p, experts ? HMOE_COPIES : HMOE_ALL, m->grads + at, end - at, sizeof *m->grads,
                  HMOE_GRADIENTS);
        norm[experts] += m->backend->squared_norm(m->grads + at, end - at);
    }
    hmoe__sum(p, HMOE_GROUP, &norm[1], 1, sizeof *norm, HMOE_SUMS);
    p->reduced = m->step + 1;
    return p->norm = norm[0] + norm[1];
}

/* ---------------------------------------------------------------------------------------------
   Files. The first process reads and writes them. It asks the others for their tensors,
   or sends them theirs. */

/* A request to another process: n numbers of saved tensor number `saved`, from number
   `at` on. */
enum { HMOE__FETCH, HMOE__STORE, HMOE__DONE };
typedef struct hmoe__order {
    uint64_t what, saved, at, n;
} hmoe__order;

static hmoe_real *hmoe__saved(hmoe_model *m, uint64_t saved, uint64_t at) {
    const hmoe_tensor *t = &m->tensors[saved % m->tensor_count];
    return hmoe__saved_array(m, saved / m->tensor_count) + t->offset + at;
}

static void hmoe__parallel_download(hmoe_model *m, hmoe_real *host, size_t saved,
                                    size_t at, size_t n) {
    hmoe_parallel *p = hmoe__parallel(m);
    int expert = m->tensors[saved % m->tensor_count].expert;
    hmoe__order order = { HMOE__FETCH, saved, at, n };
    if (hmoe__is_local(m, expert)) {
        memcpy(host, hmoe__saved(m, saved, at), n * sizeof *host);
        return;
    }
    hmoe__send(p, p->device[expert], &order, sizeof order);
    p->wire->receive(p->wire, p->device[expert], host, n * sizeof *host);
}

static void hmoe__parallel_upload(hmoe_model *m, const hmoe_real *host, size_t saved, size_t at,
                              size_t n) {
    hmoe_parallel *p = hmoe__parallel(m);
    int expert = m->tensors[saved % m->tensor_count].expert;
    hmoe__order order = { HMOE__STORE, saved, at, n };
    if (hmoe__is_local(m, expert)) memcpy(hmoe__saved(m, saved, at), host, n * sizeof *host);
    for (int r = 1; r < p->wire->size; r++) {
        if (expert >= 0 && p->device[expert] != r % p->wire->expert_ranks) continue;
        hmoe__send(p, r, &order, sizeof order);
        hmoe__send(p, r, host, n * sizeof *host);
    }
}

static void hmoe__serve(hmoe_model *m) {
    hmoe_parallel *p = hmoe__parallel(m);
    hmoe__order order;
    for (;;) {
        p->wire->receive(p->wire, 0, &order, sizeof order);
        if (order.what == HMOE__DONE) return;
        hmoe_real *numbers = hmoe__saved(m, order.saved, order.at);
        size_t bytes = order.n * sizeof *numbers;
        if (order.what == HMOE__FETCH) hmoe__send(p, 0, numbers, bytes);
        else p->wire->receive(p->wire, 0, numbers, bytes);
    }
}

/* The first process works, and the others answer its requests. Then it sends them the
   configuration and the state of the run. */
static hmoe_status hmoe__parallel_by_first(hmoe_model *m, hmoe_file_work work,
                                           const char *dir, int training) {
    hmoe_parallel *p = hmoe__parallel(m);
    hmoe__order done = { HMOE__DONE, 0, 0, 0 };
    hmoe_status status = HMOE_OK;
    if (m->params) HMOE__TRY(hmoe__check_copies(m));
    if (p->wire->rank) hmoe__serve(m);
    else {
        status = work(m, dir, training);
        for (int r = 1; r < p->wire->size; r++) hmoe__send(p, r, &done, sizeof done);
    }
    HMOE__TRY(hmoe__parallel_common_status(m, status, 0));
    hmoe_broadcast(p, &m->config, sizeof m->config);
    /* the fields of the run's state are neighbours */
    hmoe_broadcast(p, (char *)m + offsetof(hmoe_model, seed),
               offsetof(hmoe_model, max_tokens) - offsetof(hmoe_model, seed));
    return HMOE_OK;
}

/* Processes of different builds would misread each other's bytes. What they say of
   themselves here must have the same form in every version. */
static hmoe_status hmoe__check_builds(hmoe_parallel *p, char *message) {
    uint64_t mine[4], *all = (uint64_t *)p->parts;
    mine[0] = sizeof(hmoe_real), mine[1] = hmoe__hash(HMOE_VERSION);
    mine[2] = sizeof(hmoe_model), mine[3] = 0x0102030405060708u;   /* the order of bytes */
    hmoe__gather(p, HMOE_ALL, mine, all, sizeof mine);
    for (int r = 1; r < p->wire->size; r++) {
        const uint64_t *its = all + 4 * r;
        if (!memcmp(its, all, sizeof mine)) continue;
        if (its[3] == all[3] && its[0] != all[0])
            return HMOE__BAD(message, "process 0 computes with numbers of %d bytes and process %d "
                             "with %d: start the same build everywhere", (int)all[0], r,
                             (int)its[0]);
        return HMOE__BAD(message, "processes 0 and %d are of different versions or machines: start "
                         "the same build everywhere", r);
    }
    return HMOE_OK;
}

hmoe_status hmoe_join(hmoe_parallel *p, const hmoe_wire *wire, char *message) {
    size_t R = (size_t)wire->size, numbers = HMOE__PIECE + R;
    memset(p, 0, sizeof *p);
    if (wire->expert_ranks < 1 || wire->expert_ranks > HMOE_MAX_EXPERTS
        || wire->size % wire->expert_ranks)
        return HMOE__BAD(message, "%d processes in groups of %d: must be a multiple, and a group "
                         "at most %d", wire->size, wire->expert_ranks, HMOE_MAX_EXPERTS);
    p->wire = wire;
    p->parts = hmoe__alloc_zeroed(numbers * sizeof(double) + 6 * R * sizeof(int), 1);
    if (!p->parts) return hmoe__no_memory(message, (double)numbers * 8, "sums");
    p->everyones = (int *)((double *)p->parts + numbers);
    p->out.count = p->everyones + 2 * R, p->out.at = p->out.count + R;
    p->in.count = p->out.at + R, p->in.at = p->in.count + R;
    return hmoe__check_builds(p, message);
}

void hmoe_train_with(hmoe_model *m, hmoe_parallel *p) {
    static const struct hmoe_processes functions = {   /* in the order of hmoe.h */
        hmoe__parallel_rank, hmoe__parallel_has, hmoe__parallel_create,
        hmoe__parallel_common_status, hmoe__parallel_sum, hmoe__parallel_sum_gradients,
        hmoe__parallel_forward, hmoe__parallel_backward, hmoe__parallel_by_first,
        hmoe__parallel_download, hmoe__parallel_upload,
    };
    m->processes = p ? &functions : NULL;
    m->parallel = p;
}

void hmoe_leave(hmoe_parallel *p) {
    HMOE_FREE(p->parts);
    HMOE_FREE(p->arena);
    memset(p, 0, sizeof *p);
}

#endif /* HMOE_PARALLEL_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
