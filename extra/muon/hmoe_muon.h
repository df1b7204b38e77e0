/* hmoe_muon.h - Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the
   models of hmoe.h. This optimizer needs about half the tokens of AdamW. Include it after
   hmoe.h, in the same way.

   A few directions dominate the gradient of a matrix. Muon replaces the gradient, after
   momentum, by the nearest orthogonal matrix. In it all directions have the same weight:

       M = momentum M + G,   U = G + momentum M                                     (Nesterov)
       U = P S Q^T  ->  O = P Q^T                        every singular value becomes about 1
       W -= lr (sqrt(max(1, rows / cols)) O + decay W)

   Five Newton-Schulz steps, starting from X = U / |U|, compute O without a decomposition:

       X -> a X + b (X X^T) X + c (X X^T)^2 X

   They push all singular values towards 1. They consist of matrix products only: here
   lists of products with as many sizes as there are experts.

   Muon trains the matrices of attention and of the experts. hmoe_update trains all other
   tensors (embedding, head, router, norms) with AdamW:

       hmoe_muon muon = hmoe_default_muon();
       if (hmoe_muon_create(&muon, &model)) ...
       if (hmoe_muon_update(&muon, &model) || hmoe_update(&model, &adamw)) ...    in every step
       hmoe_muon_free(&muon);

   M is stored in the model's exp_avg (exp_avg_sq stays 0 there), so hmoe_save saves it.
   Gradients need no clipping, because the size of U does not matter. */
#ifndef HMOE_MUON_H
#define HMOE_MUON_H

#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One matrix and its arrays. X and Y are [m, n] with m = min(rows, cols). A tall matrix
   is transposed, because A = X X^T and B are [m, m]. */
typedef struct hmoe_muon_matrix {
    hmoe_real *w, *g, *M;
    hmoe_real *X, *Y, *A, *B;
    int rows, cols, range[2];     /* range: { 0, m } */
} hmoe_muon_matrix;

typedef struct hmoe_muon {
    double lr;                    /* 0.02 */
    double momentum;              /* 0.95 */
    double weight_decay;          /* 0.05 */
    /* internal */
    unsigned char *mine;          /* [tensor_count] 1: this tensor is updated here */
    hmoe_muon_matrix *matrices;   /* those of one group of tensors at a time */
    hmoe_real *scratch;
} hmoe_muon;

hmoe_muon hmoe_default_muon(void);

/* Allocates memory and freezes its tensors for hmoe_update. If it fails, nothing is left
   to free. */
hmoe_status hmoe_muon_create(hmoe_muon *muon, hmoe_model *m);
void hmoe_muon_free(hmoe_muon *muon);

/* Makes one step for these matrices. Call hmoe_update after it, which counts the step. If
   a gradient is not finite, it changes no weight, clears all gradients and returns
   HMOE_NOT_FINITE. */
hmoe_status hmoe_muon_update(hmoe_muon *muon, hmoe_model *m);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_MUON_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_MUON_IMPLEMENTED
#define HMOE_MUON_IMPLEMENTED

enum { HMOE__GROUP = 64 };   /* matrices in one list of products; scratch has memory for as many */

hmoe_muon hmoe_default_muon(void) {
    hmoe_muon muon = { 0.02, 0.95, 0.05, NULL, NULL, NULL };
    return muon;
}

static int hmoe__is_for_muon(const hmoe_tensor *t) {
    return strstr(t->name, "_proj.") || strstr(t->name, ".experts.");
}

/* Collects the next group of matrices, from tensor *next on. Their arrays start at
   `scratch`; if it is NULL, they are only counted. Returns the count of numbers. */
static size_t hmoe__muon_group(hmoe_muon *muon, const hmoe_model *m, size_t *next, int *n) {
    size_t used = 0;
    for (*n = 0; *next < m->tensor_count && *n < HMOE__GROUP; ++*next) {
        const hmoe_tensor *t = &m->tensors[*next];
        size_t small = (size_t)(t->rows < t->cols ? t->rows : t->cols);
        size_t size = (size_t)t->rows * t->cols, at[4] = { used, used + size, 0, 0 };
        if (!muon->mine[*next] || !hmoe__is_local(m, t->expert)) continue;
        at[2] = at[1] + size, at[3] = at[2] + small * small;
        used = at[3] + small * small;
        if (muon->scratch) {
            hmoe_muon_matrix one = { m->params + t->offset, m->grads + t->offset,
                                     m->exp_avg + t->offset, muon->scratch + at[0],
                                     muon->scratch + at[1], muon->scratch + at[2],
                                     muon->scratch + at[3], t->rows, t->cols, { 0, (int)small } };
            muon->matrices[*n] = one;
        }
        ++*n;
    }
    return used;
}

hmoe_status hmoe_muon_create(hmoe_muon *muon, hmoe_model *m) {
    size_t most = 1, next = 0;
    hmoe_status status;
    int n;
    m->message[0] = 0;
    muon->scratch = NULL, muon->matrices = NULL, muon->mine = NULL;
    if (!m->grads) return HMOE__BAD(m->message, "this model was not made for training");
    if (m->backend != hmoe__cpu_backend())
        return HMOE__BAD(m->message, "Muon runs on the CPU, not on the %s backend",
                         m->backend->name);
    muon->mine = (unsigned char *)hmoe__alloc_zeroed(m->tensor_count, 1);
    for (size_t i = 0; muon->mine && i < m->tensor_count; i++)   /* not frozen ones */
        muon->mine[i] = !m->tensors[i].frozen && hmoe__is_for_muon(&m->tensors[i]);
    while (muon->mine && next < m->tensor_count) {
        size_t used = hmoe__muon_group(muon, m, &next, &n);
        most = used > most ? used : most;
    }
    muon->matrices = (hmoe_muon_matrix *)hmoe__alloc_zeroed(HMOE__GROUP, sizeof *muon->matrices);
    muon->scratch = (hmoe_real *)hmoe__alloc_zeroed(most, sizeof *muon->scratch);
    status = hmoe__common_status(m,
                                 muon->mine && muon->matrices && muon->scratch
                                     ? HMOE_OK
                                     : hmoe__no_memory(m->message,
                                                       (double)most * sizeof(hmoe_real),
                                                       "Muon's products"),
                                 0);
    if (status) hmoe_muon_free(muon);
    for (size_t i = 0; !status && i < m->tensor_count; i++)   /* AdamW leaves them alone */
        if (muon->mine[i]) m->tensors[i].frozen = 1;
    return status;
}

void hmoe_muon_free(hmoe_muon *muon) {
    HMOE_FREE(muon->mine);
    HMOE_FREE(muon->matrices);
    HMOE_FREE(muon->scratch);
    muon->mine = NULL, muon->matrices = NULL, muon->scratch = NULL;
}

/* Index in X of element i, j of the matrix. */
static size_t hmoe__muon_at(const hmoe_muon_matrix *q, int i, int j) {
    return q->rows > q->cols ? (size_t)j * q->rows + i : (size_t)i * q->cols + j;
}

/* M = momentum M + G,  X = (G + momentum M) / its norm. */
static void hmoe__muon_start(const hmoe_muon_matrix *q, hmoe_real momentum) {
    size_t size = (size_t)q->rows * q->cols;
    double sum = 0, norm;
    for (size_t k = 0; k < size; k++) {
        hmoe_real M_k = momentum * q->M[k] + q->g[k], u = q->g[k] + momentum * M_k;
        sum += (double)u * u;
    }
    norm = sqrt(sum);
    for (int i = 0; i < q->rows; i++)
        for (int j = 0; j < q->cols; j++) {
            size_t k = (size_t)i * q->cols + j;
            q->M[k] = momentum * q->M[k] + q->g[k];
            q->X[hmoe__muon_at(q, i, j)] = (q->g[k] + momentum * q->M[k])
                                           / (hmoe_real)(norm + 1e-30);
        }
}

/* B = a I + b A + c A A. B holds A A at first. */
static void hmoe__muon_mix(const hmoe_muon_matrix *q) {
    const hmoe_real a = (hmoe_real)3.4445, b = (hmoe_real)-4.7750, c = (hmoe_real)2.0315;
    int m = q->range[1];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < m; j++) {
            size_t k = (size_t)i * m + j;
            q->B[k] = b * q->A[k] + c * q->B[k] + (i == j ? a : 0);
        }
}

static void hmoe__muon_end(const hmoe_muon_matrix *q, double lr, double decay) {
    hmoe_real rate = (hmoe_real)(lr * sqrt(q->rows > q->cols ? (double)q->rows / q->cols : 1));
    for (int i = 0; i < q->rows; i++)
        for (int j = 0; j < q->cols; j++) {
            size_t k = (size_t)i * q->cols + j;
            q->w[k] -= rate * q->X[hmoe__muon_at(q, i, j)] + (hmoe_real)(lr * decay) * q->w[k];
        }
}

/* Five Newton-Schulz steps for n matrices at once: X -> (a I + b A + c A A) X with A = X
   X^T. */
static void hmoe__newton_schulz(const hmoe_model *m, hmoe_muon_matrix *q, int n) {
    hmoe_linear to_A[HMOE__GROUP], to_AA[HMOE__GROUP], to_X[HMOE__GROUP];
    const struct hmoe_panels *panels = &m->buffers->panels;
    for (int step = 0; step < 5; step++) {
        for (int i = 0; i < n; i++) {
            int k = q[i].range[1], wide = q[i].rows < q[i].cols ? q[i].cols : q[i].rows;
            hmoe_linear A = { q[i].X, q[i].X, q[i].A, q[i].range, wide, k, wide, k, NULL, NULL,
                              NULL, panels };
            hmoe_linear AA = { q[i].A, q[i].A, q[i].B, q[i].range, k, k, k, k, NULL, NULL, NULL,
                               panels };
            hmoe_linear X = { q[i].Y, q[i].X, q[i].B, q[i].range, wide, k, wide, k, NULL, NULL,
                              NULL, panels };
            to_A[i] = A, to_AA[i] = AA, to_X[i] = X;
        }
        m->backend->linear_forward(to_A, n);           /* A  = X X^T */
        m->backend->linear_forward(to_AA, n);          /* B  = A A^T, and A is symmetric */
        HMOE__PARALLEL_FOR(n)
        for (int i = 0; i < n; i++) hmoe__muon_mix(&q[i]);
        m->backend->linear_backward_input(to_X, n);    /* Y  = B X */
        for (int i = 0; i < n; i++) {
            hmoe_real *X = q[i].X;
            q[i].X = q[i].Y, q[i].Y = X;
        }
    }
}

hmoe_status hmoe_muon_update(hmoe_muon *muon, hmoe_model *m) {
    size_t next = 0;
    m->message[0] = 0;
    if (!(muon->lr >= 0 && muon->momentum >= 0 && muon->momentum < 1 && muon->weight_decay >= 0))
        return HMOE__BAD(m->message, "Muon with lr %g, momentum %g, decay %g: momentum must be "
                         "below 1, and nothing negative", muon->lr, muon->momentum,
                         muon->weight_decay);
    HMOE__TRY(hmoe__gradient_norm(m));   /* fails in all processes together */
    while (next < m->tensor_count) {
        int n;
        hmoe__muon_group(muon, m, &next, &n);
        HMOE__PARALLEL_FOR(n)
        for (int i = 0; i < n; i++)
            hmoe__muon_start(&muon->matrices[i], (hmoe_real)muon->momentum);
        hmoe__newton_schulz(m, muon->matrices, n);
        HMOE__PARALLEL_FOR(n)
        for (int i = 0; i < n; i++)
            hmoe__muon_end(&muon->matrices[i], muon->lr, muon->weight_decay);
    }
    return HMOE_OK;
}

#endif /* HMOE_MUON_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */
