/* test_muon.c - Muon against triple loops, and against what orthogonal means. */
#define HMOE_IMPLEMENTATION
#include "hmoe_muon.h"
#include "tests/test.h"
#include "tests/fixtures.h"

enum { SIZE = 64 };   /* larger than any side of the small model's matrices */

static double dot_of(const double *a, size_t step_a, const double *b, size_t step_b, int n) {
    double sum = 0;
    for (int k = 0; k < n; k++) sum += a[k * step_a] * b[k * step_b];
    return sum;
}

/* Five steps of X -> a X + b (X X^T) X + c (X X^T)^2 X on [rows, cols], never transposed. */
static void newton_schulz(double *X, int rows, int cols) {
    static double A[SIZE * SIZE], AX[SIZE * SIZE], AAX[SIZE * SIZE];
    double norm = sqrt(dot_of(X, 1, X, 1, rows * cols));
    for (int k = 0; k < rows * cols; k++) X[k] /= norm;
    for (int step = 0; step < 5; step++) {
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < rows; j++)
                A[i * rows + j] = dot_of(X + i * cols, 1, X + j * cols, 1, cols);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++)
                AX[i * cols + j] = dot_of(A + i * rows, 1, X + j, cols, rows);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < cols; j++)
                AAX[i * cols + j] = dot_of(A + i * rows, 1, AX + j, cols, rows);
        for (int k = 0; k < rows * cols; k++)
            X[k] = 3.4445 * X[k] - 4.7750 * AX[k] + 2.0315 * AAX[k];
    }
}

static int is_for_muon(const char *name) {
    return strstr(name, "experts") || strstr(name, "q_proj") || strstr(name, "k_proj")
        || strstr(name, "v_proj") || strstr(name, "o_proj");
}

/* Three steps with random gradients: Muon's matrices by the formulas, all others as AdamW alone
   would have them. */
static void three_steps(void) {
    hmoe_config c = small_config();
    hmoe_adamw adamw = { 0.01, 0.9, 0.99, 0.1, 0 };
    hmoe_muon muon = hmoe_default_muon();
    hmoe_model m, plain;
    hmoe_real *M, *expected, X[SIZE * SIZE];
    c.noisy_gating = 1;
    small_create(&m, &c, 1), small_create(&plain, &c, 1);
    M = reals(m.param_count), expected = reals(m.param_count);
    memcpy(expected, m.params, m.param_count * sizeof *expected);
    CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_OK);
    CHECK_NEAR(muon.lr, 0.02, 0, 0);
    muon.lr = 0.05, muon.momentum = 0.9, muon.weight_decay = 0.3;
    for (int step = 0; step < 3; step++) {
        fill(m.grads, m.param_count, 2);
        memcpy(plain.grads, m.grads, m.param_count * sizeof *m.grads);
        for (size_t i = 0; i < m.tensor_count; i++) {
            const hmoe_tensor *t = &m.tensors[i];
            size_t size = (size_t)t->rows * t->cols, at = t->offset;
            double rate = 0.05 * sqrt(t->rows > t->cols ? (double)t->rows / t->cols : 1);
            if (!is_for_muon(t->name)) continue;
            for (size_t k = 0; k < size; k++) {
                M[at + k] = 0.9 * M[at + k] + m.grads[at + k];
                X[k] = m.grads[at + k] + 0.9 * M[at + k];
            }
            newton_schulz(X, t->rows, t->cols);
            for (size_t k = 0; k < size; k++)
                expected[at + k] -= rate * X[k] + 0.05 * 0.3 * expected[at + k];
        }
        CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_OK);
        CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
        CHECK_INT(hmoe_update(&plain, &adamw), HMOE_OK);
        CHECK_INT(m.step, step + 1);
    }
    for (size_t i = 0; i < m.tensor_count; i++) {
        const hmoe_tensor *t = &m.tensors[i];
        const hmoe_real *same = is_for_muon(t->name) ? expected : plain.params;
        test_context = t->name;
        CHECK_INT(t->frozen != 0, is_for_muon(t->name) != 0);
        for (size_t k = t->offset; k < t->offset + (size_t)t->rows * t->cols; k++) {
            CHECK_NEAR(m.params[k], same[k], 1e-10, 1e-10);
            CHECK(m.grads[k] == 0);
        }
    }
    hmoe_muon_free(&muon);
    hmoe_free(&m), hmoe_free(&plain);
    free(M), free(expected);
}

/* What one step takes off a matrix is nearly orthogonal: Jordan's polynomial brings singular values
   between 0.68 and 1.13, so O O^T of m rows has a trace between 0.46 m and 1.28 m; and it lies
   along the gradient: <G, O> is the sum of G's singular values but for those factors, so above
   0.68 |G|. A matrix that the program froze stays as it is. */
static void steps_are_orthogonal(void) {
    hmoe_config c = small_config();
    hmoe_muon muon = hmoe_default_muon();
    hmoe_model m;
    hmoe_real *before, *g;
    c.C = 32, c.NH = 4, c.NKV = 2;                               /* W_k and W_v are [16, 32] */
    for (int e = 0; e < c.E; e++) c.H[e] = 16 * (e + 1);
    small_create(&m, &c, 1);
    hmoe_tensor *frozen = &m.tensors[m.tensor_count - 3];   /* the last W2; then norm and head */
    CHECK(strstr(frozen->name, ".w2.") != NULL);
    frozen->frozen = 1;
    CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_OK);
    CHECK_INT(frozen->frozen, 1);
    muon.weight_decay = 0, muon.lr = 1;
    fill(m.grads, m.param_count, 1e-3);
    before = reals(m.param_count), g = reals(m.param_count);
    memcpy(before, m.params, m.param_count * sizeof *before);
    memcpy(g, m.grads, m.param_count * sizeof *g);
    CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_OK);
    for (size_t i = 0; i < m.tensor_count; i++) {
        const hmoe_tensor *t = &m.tensors[i];
        int small = t->rows < t->cols ? t->rows : t->cols;
        double trace = 0, along = 0, norm = 0, tall = t->rows > t->cols;
        double scale = tall ? sqrt((double)t->rows / t->cols) : 1;
        test_context = t->name;
        for (size_t k = t->offset; t == frozen && k < t->offset + (size_t)t->rows * t->cols; k++)
            CHECK(m.params[k] == before[k]);
        if (!t->frozen || t == frozen) continue;
        for (size_t k = t->offset; k < t->offset + (size_t)t->rows * t->cols; k++) {
            double o = (before[k] - m.params[k]) / scale;
            trace += o * o, along += o * g[k], norm += g[k] * g[k];
        }
        CHECK(trace > 0.46 * small && trace < 1.28 * small);
        CHECK(along > 0.68 * sqrt(norm));
    }
    hmoe_muon_free(&muon);
    hmoe_free(&m);
    free(before), free(g);
}

static void same_bits_for_any_number_of_threads(void) {
    hmoe_config c = small_config();
    hmoe_real *first = NULL;
    c.C = 48, c.NH = 4, c.E = 20, c.L = 1;                       /* several groups of matrices */
    for (int e = 0; e < c.E; e++) c.H[e] = 24 + 3 * e;
    for (int n = 1; n <= 5; n += 2) {
        hmoe_muon muon = hmoe_default_muon();
        hmoe_model m;
        threads(n);
        small_create(&m, &c, 1);
        CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_OK);
        small_draws = 77;
        fill(m.grads, m.param_count, 1);
        CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_OK);
        if (!first) {
            first = reals(m.param_count);
            memcpy(first, m.params, m.param_count * sizeof *first);
        } else CHECK(!memcmp(first, m.params, m.param_count * sizeof *first));
        hmoe_muon_free(&muon);
        hmoe_free(&m);
    }
    free(first);
    threads(TEST_THREADS);
}

static void refused(void) {
    hmoe_config c = small_config();
    hmoe_muon muon = hmoe_default_muon();
    hmoe_real *before;
    hmoe_model m = { 0 };
    CHECK_INT(hmoe_create(&m, &c, 1, 1, 0), HMOE_OK);
    CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_BAD_ARGUMENT);    /* not for training */
    hmoe_free(&m);
    small_create(&m, &c, 1);
    CHECK_INT(hmoe_muon_create(&muon, &m), HMOE_OK);
    muon.momentum = 1;
    CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_BAD_ARGUMENT);
    muon.momentum = 0.95;
    before = reals(m.param_count);
    memcpy(before, m.params, m.param_count * sizeof *before);
    m.grads[m.tensors[2].offset + 3] = (hmoe_real)NAN;
    CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_NOT_FINITE);
    CHECK(strstr(m.message, "norm") != NULL);
    for (size_t i = 0; i < m.param_count; i++) CHECK(m.params[i] == before[i] && m.grads[i] == 0);
    CHECK_INT(hmoe_muon_update(&muon, &m), HMOE_OK);              /* no gradient at all: no step */
    for (size_t i = 0; i < m.param_count; i++) CHECK(isfinite(m.params[i]));
    hmoe_muon_free(&muon);
    hmoe_muon_free(&muon);                                        /* twice is once */
    hmoe_free(&m);
    free(before);
}

/* hmoe_update leaves a fixed tensor as it is, and clears its gradients. */
static void fixed_tensors(void) {
    hmoe_config c = small_config();
    hmoe_adamw adamw = hmoe_default_adamw();
    hmoe_model m;
    hmoe_real *before;
    small_create(&m, &c, 1);
    before = reals(m.param_count);
    memcpy(before, m.params, m.param_count * sizeof *before);
    for (size_t i = 0; i < m.tensor_count; i += 3) m.tensors[i].frozen = 1;
    fill(m.grads, m.param_count, 1);
    CHECK_INT(hmoe_update(&m, &adamw), HMOE_OK);
    for (size_t i = 0; i < m.tensor_count; i++)
        for (size_t k = 0; k < (size_t)m.tensors[i].rows * m.tensors[i].cols; k++) {
            size_t at = m.tensors[i].offset + k;
            CHECK((m.params[at] == before[at]) == (i % 3 == 0));
            CHECK(m.grads[at] == 0);
        }
    hmoe_free(&m);
    free(before);
}

int main(void) {
    threads(TEST_THREADS);
    TEST(three_steps);
    TEST(steps_are_orthogonal);
    TEST(same_bits_for_any_number_of_threads);
    TEST(refused);
    TEST(fixed_tensors);
    return test_summary("test_muon");
}
