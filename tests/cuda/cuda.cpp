/* cuda.cpp - hmoe_cuda.cu against the processor: every function of its table on random ragged
   problems, then whole models. Compiled with tests/cuda first on the include path, all of it runs
   on the processor; compiled by nvcc, on a GPU, but for what only an imitated one can show.

       cuda [short | long | least [seed [test ...]]]

   How it compares: all arrays of a case lie in one stretch of memory, of which the device has a
   copy. A step is called on both, and afterwards every byte of the two is either among the results,
   and then close enough, or what it was. What nobody wrote is NaN. */

#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "hmoe_cuda.cu"

#include "../test.h"
#include "../fixtures.h"

#include <initializer_list>
#include <vector>

enum { LEAST, SHORT, LONG };
static int effort = SHORT;
static const hmoe_backend *gpu, *const cpu = hmoe__cpu_backend();
static hmoe_precision precision;
static char context[200];

/* Says which case it is: failed checks print it. */
#define CASE(...) (snprintf(context, sizeof context, __VA_ARGS__), test_context = context)
#define WRONG(...) do { \
        if (test_bad_checks < TEST_MAX_PRINTED) printf("  " __VA_ARGS__); \
        CHECK(!"right"); \
    } while (0)

/* ---------------------------------------------------------------------------------------------
   TWO COPIES OF EVERYTHING */

enum { ROOM = 12 << 20 };
alignas(64) static unsigned char here[ROOM];      /* where tests have their arrays */
alignas(64) static unsigned char before[ROOM];    /* what was stored on the device, */
alignas(64) static unsigned char after[ROOM];     /*   and what it made of it */
alignas(64) static unsigned char sizes[ROOM];     /* the CPU's step on absolute values */
static unsigned char *there;                      /* the device's copy, as large as is used */
static size_t used;
struct Factors { float *at; size_t n; };
static std::vector<Factors> factor_arrays;        /* what the reference rounds in bf16 */

static hmoe_linear list[HMOE_MAX_EXPERTS];

static float rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, 4);
    return x;
}

static void clear() {
    const uint32_t nan = 0x7fc5a5a5;
    for (size_t i = 0; i < used + 4096 && i < ROOM; i += 4) memcpy(here + i, &nan, 4);
    used = 0;
    factor_arrays.clear();
}

/* n numbers, on a cache line of their own as a model's activations are, or (packed) wherever the
   last array ended, as its weights are. */
template <class T> static T *room(size_t n, int packed = 0) {
    size_t at = packed ? used : (used + 63) / 64 * 64;
    used = at + n * sizeof(T);
    if (used > ROOM) { puts("cuda: ROOM is too small"); exit(2); }
    return (T *)(here + at);
}

static float *numbers(size_t n, double scale, int packed = 0) {
    float *x = room<float>(n, packed);
    fill(x, n, scale);
    return x;
}

/* Factors of a product: in bf16 the device rounds them, and so must the reference. */
static float *factors(size_t n, double scale, int packed = 0) {
    float *x = numbers(n, scale, packed);
    factor_arrays.push_back({ x, n });
    return x;
}

static hmoe_linear dense(float *x, float *w, float *y, int in, int out, const int *rows) {
    hmoe_linear map = { x, w, y, rows, in, out, in, out, NULL, NULL, NULL, NULL };
    return map;
}

/* The case is laid out: the device gets its copy. A product of no rows makes that one's twin, which
   is the business of the steps from then on. */
static void ready() {
    memcpy(before, here, used);
    gpu->free(there);
    there = (unsigned char *)gpu->alloc(used + 64);
    CHECK(there);
    gpu->zero(there, used + 64);
    float *x = (float *)there;
    hmoe_linear nothing = dense(x, x, x, 1, 1, (int *)there);
    gpu->linear_forward(&nothing, 1);
    gpu->upload(there, here, used);
    if (precision == HMOE_BF16)
        for (const Factors &f : factor_arrays)
            for (size_t i = 0; i < f.n; i++) f.at[i] = rounded(f.at[i]);
    memcpy(sizes, here, used);
    for (size_t i = 3; i < used; i += 4) sizes[i] &= 0x7f;      /* |x|; an int has no sign here */
}

/* The same argument for another copy. Whatever does not lie in `here` stays as it is. */
template <class T> static T on(unsigned char *, T x) { return x; }
template <class T> static T *on(unsigned char *base, T *p) {
    size_t at = (size_t)((unsigned char *)p - here);
    return (unsigned char *)p >= here && at < ROOM ? (T *)(base + at) : p;
}
static const hmoe_routes *on(unsigned char *base, const hmoe_routes *routes) {
    static hmoe_routes r;
    r = *routes;
    r.logits = on(base, r.logits), r.P = on(base, r.P), r.lse = on(base, r.lse);
    r.entropy = on(base, r.entropy), r.count = on(base, r.count), r.expert = on(base, r.expert);
    r.gate = on(base, r.gate), r.expert_start = on(base, r.expert_start);
    r.row_token = on(base, r.row_token), r.row_gate = on(base, r.row_gate), r.row = on(base, r.row);
    r.bias = on(base, r.bias), r.top_p = on(base, r.top_p);
    return &r;
}
static const hmoe_linear *on(unsigned char *base, const hmoe_linear *) {
    static hmoe_linear moved[HMOE_MAX_EXPERTS];
    for (int i = 0; i < HMOE_MAX_EXPERTS; i++) {
        hmoe_linear &m = moved[i] = list[i];
        m.x = on(base, m.x), m.w = on(base, m.w), m.y = on(base, m.y), m.rows = on(base, m.rows);
        m.add = on(base, m.add), m.x_row = on(base, m.x_row), m.y_row = on(base, m.y_row);
    }
    return moved;
}

template <class... A, class... B>
static void sized(void (*hmoe_backend::*step)(A...), B... arguments) {
    (cpu->*step)(on(sizes, (A)arguments)...);
}
template <class... A, class... B>
static void both(void (*hmoe_backend::*step)(A...), B... arguments) {
    (cpu->*step)(arguments...);
    (gpu->*step)(on(there, (A)arguments)...);
}

/* Ends a case: what of the results is left to look at? */
static void fetch() {
    const char *error;
    gpu->download(after, there, used);
    error = gpu->synchronize();
    if (!CHECK(!error)) printf("  %s\n", error);
}

static void looked_at(const void *p, size_t bytes) {
    size_t at = (size_t)((unsigned char *)p - here);
    memcpy(after + at, before + at, bytes);
}

static void rest_is_untouched() {
    for (size_t i = 0; i < used; i++)
        if (after[i] != before[i]) {
            WRONG("byte %zu of %zu has changed\n", i, used);
            return;
        }
}

template <class T> static void exact(const T *p, size_t n) {
    const T *seen = on(after, p);
    for (size_t i = 0; i < n; i++)
        if (memcmp(&seen[i], &p[i], sizeof *p)) {
            WRONG("number %zu of %zu is %g, should be %g\n", i, n, (double)seen[i], (double)p[i]);
            break;
        }
    looked_at(p, n * sizeof *p);
}

/* |difference| <= tolerance * size: of the largest reference, or (own) each number's in `sizes`. */
template <class T> static void close(const T *p, size_t n, double tolerance, int own = 0) {
    const T *seen = on(after, p), *size = on(sizes, p);
    double largest = 1e-30;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)p[i]));
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)seen[i] - p[i]) / (own ? fmax(size[i], 1e-30) : largest);
        if (error <= tolerance) continue;
        WRONG("number %zu of %zu is %.9g, should be %.9g, off by %.2g\n", i, n, (double)seen[i],
              (double)p[i], error);
        break;
    }
    looked_at(p, n * sizeof *p);
}

/* ---------------------------------------------------------------------------------------------
   PRODUCTS. Both sides add the same float products in different orders. An order's error is at
   most K u times the sum of |a b|, u = 2^-24 = 6e-8, and about sqrt(K) u where roundings are
   independent: 32 u is several times what K = 400 gives, and far below a term forgotten. */

#ifdef CUDA_ON_CPU
static const double sum_tolerance = 2e-6;
#else
static const double sum_tolerance = 1e-5;   /* tensor cores cut off where others round */
#endif

static int one_of(std::initializer_list<int> values) {
    return values.begin()[pick(0, (int)values.size() - 1)];
}
static int some_width(int most) {
    int n = one_of({ 8, 9, 16, 31, 40, 64, 65, 72, 128, 172, 250, 400 });
    return most > 400 ? most : n <= most ? n : pick(8, most);
}
static int some_rows(int most) {
    int n = one_of({ 0, 1, 2, 15, 16, 17, 33, 63, 64, 130, 300 });
    return n <= most ? n : pick(0, most);
}

static void (*hmoe_backend::*const product[3])(const hmoe_linear *, int) = {   /* by form */
    &hmoe_backend::linear_forward, &hmoe_backend::linear_backward_input,
    &hmoe_backend::linear_backward_weight
};

/* The list is laid out: multiplies, and looks at every member's result. */
static void products_of_list(int form, int n) {
    ready();
    sized(product[form], list, n);
    both(product[form], list, n);
    fetch();
    for (int i = 0; i < n; i++) {
        const hmoe_linear &m = list[i];
        if (form == HMOE__WEIGHT) close(m.w, (size_t)m.in * m.out, sum_tolerance, 1);
        else for (size_t r = (size_t)m.rows[0]; r < (size_t)m.rows[1]; r++)
            if (form == HMOE__FORWARD) close(m.y + r * m.ldy, (size_t)m.out, sum_tolerance, 1);
            else close(m.x + r * m.ldx, (size_t)m.in, sum_tolerance, 1);
    }
    rest_is_untouched();
}

/* n members on stretches of common rows, each with its own widths, as the experts have. gather: the
   operand of that many tokens is found through indices; 2: of weight, both. add: 2 to itself. */
static void product_case(int form, int n, int most_rows, int most_width, int gather, int add) {
    int total, ldx = 0, ldy = 0, *start, *at = NULL;
    float *x, *y, *added = NULL;
    clear();
    start = room<int>((size_t)n + 1);
    start[0] = pick(0, 3);
    for (int i = 0; i < n; i++) {
        start[i + 1] = start[i] + some_rows(most_rows);
        list[i].in = some_width(most_width), list[i].out = some_width(most_width);
        ldx = list[i].in > ldx ? list[i].in : ldx, ldy = list[i].out > ldy ? list[i].out : ldy;
    }
    ldx += pick(0, 3), ldy += pick(0, 3), total = start[n] + 2;
    CASE("form %d, %d members, %d rows, up to %d x %d, gather %d, add %d", form, n, total, ldx, ldy,
         gather, add);
    if (gather) {
        at = room<int>((size_t)total);
        for (int i = 0; i < total; i++) at[i] = pick(0, total / 2);
    }
    x = form == HMOE__INPUT ? room<float>((size_t)total * ldx) : factors((size_t)total * ldx, 1);
    y = form == HMOE__FORWARD ? room<float>((size_t)total * ldy) : factors((size_t)total * ldy, 1);
    if (add) {
        size_t size = (size_t)total * (form == HMOE__FORWARD ? ldy : ldx);
        added = add == 1 ? room<float>(size) : form == HMOE__FORWARD ? y : x;
        if (form != HMOE__WEIGHT) fill(added, size, 3);
    }
    room<float>((size_t)pick(0, 7), 1);
    for (int i = 0; i < n; i++) {
        size_t size = (size_t)list[i].in * list[i].out;
        list[i].w = form == HMOE__WEIGHT ? numbers(size, 2, 1) : factors(size, 1, 1);
        list[i].x = x, list[i].y = y, list[i].ldx = ldx, list[i].ldy = ldy;
        list[i].rows = start + i, list[i].add = added;
        list[i].x_row = form != HMOE__INPUT ? at : NULL;
        list[i].y_row = form == HMOE__INPUT || (form == HMOE__WEIGHT && gather == 2) ? at : NULL;
    }
    products_of_list(form, n);
}

/* Two products of the same rows, as the router and its noise are: y and w of their own. */
static void products_side_by_side(int form) {
    int N = pick(30, 70), in = 33;
    clear();
    int *rows = room<int>(2);
    float *x = factors((size_t)N * in, 1);
    rows[0] = 0, rows[1] = N;
    CASE("form %d, side by side, %d rows", form, N);
    for (int i = 0; i < 2; i++) {
        int out = i ? 8 : 5;
        size_t wide = (size_t)N * out, size = (size_t)in * out;
        list[i] = dense(form == HMOE__INPUT ? room<float>((size_t)N * in) : x,
                        form == HMOE__WEIGHT ? numbers(size, 1, 1) : factors(size, 1, 1),
                        form == HMOE__FORWARD ? room<float>(wide) : factors(wide, 1), in, out,
                        rows);
    }
    products_of_list(form, 2);
}

static void products() {
    for (int form = HMOE__FORWARD; form <= HMOE__WEIGHT; form++) {
        product_case(form, 1, 300, 400, 0, effort ? 0 : 1);      /* as dense layers are */
        product_case(form, 3, 130, 172, 1, 2);
        product_case(form, 64, 17, 40, 1, 1);                    /* more than a warp at a time */
        products_side_by_side(form);
        for (int i = 0; i < (effort == LONG ? 12 : 3) && effort; i++)
            for (int gather = 0; gather < 3; gather++)
                product_case(form, pick(2, 9), 130, 172, gather, gather);
        if (effort) product_case(form, HMOE_MAX_EXPERTS, 2, 16, 0, 0);
        if (effort && precision) product_case(form, 2, 130, 520, 1, 1);   /* takes larger tiles */
        if (effort == LONG) product_case(form, 8, 300, 400, 1, 1);
    }
}

/* ---------------------------------------------------------------------------------------------
   TWINS: in bf16, products read a rounded copy of their operands. Is that of x, rows row .. end-1,
   the one of the floats that `after` has? */

static void twin_is_fresh(const float *x, int row, int end, int cols, int ld) {
    enum { OUT = 8 };
    const int rows[2] = { 0, end - row };
    const float *seen = on(after, x) + (size_t)row * ld;
    std::vector<float> w((size_t)OUT * cols), y((size_t)(end - row + 1) * OUT);
    if (precision != HMOE_BF16 || row == end) return;
    for (float &value : w) value = (float)pick(-8, 8);
    float *w_there = (float *)gpu->alloc(w.size() * 4), *y_there = (float *)gpu->alloc(y.size() * 4);
    int *rows_there = (int *)gpu->alloc(sizeof rows);
    gpu->upload(w_there, w.data(), w.size() * 4);
    gpu->upload(rows_there, rows, sizeof rows);
    hmoe_linear map = dense((float *)on(there, x) + (size_t)row * ld, w_there, y_there, cols, OUT,
                            rows_there);
    map.ldx = ld;
    gpu->linear_forward(&map, 1);
    gpu->download(y.data(), y_there, y.size() * 4);
    for (int r = 0; r < rows[1]; r++)
        for (int j = 0; j < OUT; j++) {
            double sum = 0, size = 1e-30;
            for (int i = 0; i < cols; i++) {
                double term = (double)rounded(seen[(size_t)r * ld + i]) * w[(size_t)j * cols + i];
                sum += term, size += fabs(term);
            }
            if (!(fabs(y[(size_t)r * OUT + j] - sum) <= sum_tolerance * size)) {
                WRONG("row %d of %d x %d has another twin\n", r, end - row, cols);
                r = rows[1];
                break;
            }
        }
    gpu->free(w_there), gpu->free(y_there), gpu->free(rows_there);
}

/* What is stored or zeroed later counts, too. */
static void twins_follow() {
    clear();
    float *x = numbers(40 * 24, 1);
    ready();
    twin_is_fresh(x, 0, 0, 24, 24);
    for (int round = 0; round < 3; round++) {
        fetch();
        CASE("round %d", round);
        twin_is_fresh(x, 0, 40, 24, 24);
        if (round == 0) gpu->zero(on(there, x) + 5 * 24 + 3, 4 * 50);
        else gpu->upload(on(there, x) + 17, x + 100, 4 * 301);
    }
}

/* ---------------------------------------------------------------------------------------------
   LAYERS */

static void rmsnorm() {
    for (int C : { 2, 16, 33, 128, 384 }) {
        int N = pick(1, 70);
        CASE("N %d, C %d", N, C);
        clear();
        float *x = numbers((size_t)N * C, 2), *w = (room<float>(1), numbers(C, 1, 1));
        float *y = room<float>((size_t)N * C), *rrms = room<float>(N);
        float *dx = numbers((size_t)N * C, 1), *dy = numbers((size_t)N * C, 1);
        float *dw = (room<float>(3), numbers(C, 1, 1));
        ready();
        both(&hmoe_backend::rmsnorm_forward, y, rrms, x, w, 1e-5, N, C);
        both(&hmoe_backend::rmsnorm_backward, dx, dw, dy, x, w, rrms, N, C);
        fetch();
        twin_is_fresh(y, 0, N, C, C), twin_is_fresh(dx, 0, N, C, C);
        close(y, (size_t)N * C, 2e-6), close(rrms, N, 1e-6);
        close(dx, (size_t)N * C, 4e-6), close(dw, C, 4e-6);
        looked_at(dy, (size_t)N * C * 4);
        rest_is_untouched();
    }
}

/* A token whose square is no float any more must not come out as zeros. */
static void rmsnorm_overflows() {
    clear();
    float *x = numbers(64, 1), *w = numbers(32, 1, 1), *y = room<float>(64), *rrms = room<float>(2);
    x[40] = 1e30f;
    ready();
    both(&hmoe_backend::rmsnorm_forward, y, rrms, x, w, 1e-5, 2, 32);
    fetch();
    for (int i = 0; i < 64; i++) CHECK_INT(isnan(y[i]), i >= 32);
    CHECK(!isnan(rrms[0]) && isnan(rrms[1]));
}

static void rope() {
    for (int hs : { 2, 8, 10, 64 }) {
        int B = pick(1, 3), T = pick(1, 40), NKV = pick(1, 3), NH = NKV * pick(1, 3);
        int row = (NH + 2 * NKV) * hs;
        clear();
        float *angles = room<float>((size_t)T * hs), *x = numbers((size_t)B * T * row, 1);
        for (int t = 0; t < T; t++) hmoe__rope_angles(angles + t * hs, t, hs, 10000);
        for (int direction = 1; direction >= -1; direction -= 2) {
            ready();
            both(&hmoe_backend::rope, x, angles, direction, B, T, NH, NKV, hs);
            fetch();
            twin_is_fresh(x, 0, B * T, row, row);
            close(x, (size_t)B * T * row, 1e-6);
            rest_is_untouched();
        }
    }
}

static void embedding() {
    for (int C : { 2, 33, 128 }) {
        int N = pick(1, 90), V = pick(1, 20);
        clear();
        int *tokens = room<int>(N);
        float *w = numbers((size_t)V * C, 1), *x = room<float>((size_t)N * C);
        float *dw = numbers((size_t)V * C, 1), *dx = numbers((size_t)N * C, 1);
        for (int t = 0; t < N; t++) tokens[t] = pick(0, V - 1);
        ready();
        both(&hmoe_backend::embed_forward, x, tokens, w, N, C);
        both(&hmoe_backend::embed_backward, dw, tokens, dx, N, C);
        fetch();
        exact(x, (size_t)N * C), close(dw, (size_t)V * C, 2e-6);
        rest_is_untouched();
    }
}

/* In bf16, att and the gradient of the scores are rounded on their way to the second products: 2^-9
   of each, of which a bit more is left in the sums. */
static void attention_case(int B, int T, int NH, int NKV, int hs) {
    size_t C = (size_t)NH * hs, row = C + 2 * (size_t)NKV * hs, N = (size_t)B * T;
    const double forward = precision ? 4e-3 : 4e-6, backward = precision ? 1.5e-2 : 1e-5;
    CASE("B %d, T %d, NH %d, NKV %d, hs %d", B, T, NH, NKV, hs);
    clear();
    float *qkv = factors(N * row, 1), *att = room<float>((size_t)B * NH * T * T);
    float *out = room<float>(N * C), *dout = factors(N * C, 1), *dqkv = room<float>(N * row);
    float *datt = room<float>((size_t)B * NH * HMOE__QUERIES * T);
    ready();
    both(&hmoe_backend::attention_forward, out, att, qkv, B, T, NH, NKV, hs);
    fetch();
    twin_is_fresh(out, 0, (int)N, (int)C, (int)C);
    close(out, N * C, forward);
    for (size_t i = 0; i < (size_t)B * NH * T; i++)
        close(att + i * T, i % T + 1, precision ? 1e-5 : 4e-6);
    looked_at(att, (size_t)B * NH * T * T * 4);
    rest_is_untouched();
    both(&hmoe_backend::attention_backward, dqkv, datt, dout, out, att, qkv, B, T, NH, NKV, hs);
    fetch();
    close(dqkv, N * row, backward);
    looked_at(out, N * C * 4);
    looked_at(att, (size_t)B * NH * T * T * 4);
    looked_at(datt, (size_t)B * NH * HMOE__QUERIES * T * 4);
    rest_is_untouched();
}

static void attention() {
    attention_case(2, effort ? 70 : 67, 2, 1, 10);   /* two heads share keys and values */
    if (!effort) return;
    attention_case(1, 1, 1, 1, 8), attention_case(3, 5, 2, 2, 2), attention_case(2, 33, 3, 3, 32);
    attention_case(1, 64, 2, 1, 64), attention_case(1, 130, 1, 1, 16);
    attention_case(2, 9, 6, 2, 8);
    if (effort != LONG) return;
    for (int i = 0; i < 12; i++) {
        int NKV = pick(1, 3);
        attention_case(pick(1, 3), pick(1, 70), NKV * pick(1, 3), NKV, 2 * pick(1, 32));
    }
    attention_case(90, 4, 6, 3, 4);    /* more heads than one list takes */
}

static void cross_entropy() {
    for (int V : { 1, 7, 65, 300 }) {
        int N = pick(1, 40);
        clear();
        int *targets = room<int>(N);
        float *logits = numbers((size_t)N * V, 5), *ce = room<float>(N);
        for (int t = 0; t < N; t++) targets[t] = pick(0, V - 1);
        logits[0] += 80;
        ready();
        both(&hmoe_backend::cross_entropy_forward, ce, logits, targets, N, V);
        both(&hmoe_backend::cross_entropy_backward, logits, targets, 0.25, N, V);
        fetch();
        twin_is_fresh(logits, 0, N, V, V);
        /* both round logit - maximum, about 30 here, by up to 2^-24 of it */
        close(ce, N, 4e-6), close(logits, (size_t)N * V, 4e-6);
        rest_is_untouched();
    }
}

static void dropout() {
    for (double p : { 0.1, 0.5, 0.9 }) {
        int N = pick(1, 50), C = pick(1, 40), first = pick(0, 1000);
        uint64_t key = hmoe_random(1, 2, (uint64_t)N, (uint64_t)C);
        size_t n = (size_t)N * C;
        clear();
        float *y = numbers(n, 1), *x = numbers(n, 1), *dy = numbers(n, 1), *dx = room<float>(n);
        ready();
        both(&hmoe_backend::dropout_forward, y, x, p, key, first, N, C);
        both(&hmoe_backend::dropout_backward, dx, dy, p, key, first, N, C);
        fetch();
        twin_is_fresh(dx, 0, N, C, C);
        close(y, n, 1e-6), exact(dx, n);
        rest_is_untouched();
    }
}

/* ---------------------------------------------------------------------------------------------
   ROUTER AND EXPERTS */

static hmoe_routes routes_for(int N, int E, int slots) {
    hmoe_routes r;
    size_t n = (size_t)N * slots;
    r.slots = slots;
    r.logits = numbers((size_t)N * E, 2), r.P = room<float>((size_t)N * E);
    r.lse = room<float>(N), r.entropy = room<float>(N), r.count = room<int>(N);
    r.expert = room<int>(n), r.gate = room<float>(n), r.expert_start = room<int>((size_t)E + 1);
    r.row_token = room<int>(n), r.row_gate = room<float>(n), r.row = room<int>(n);
    r.bias = r.top_p = NULL;
    return r;
}

/* Routes as they are after dispatch: some experts get no token, some many. */
static hmoe_routes ready_routes(int N, int E, int slots, hmoe_routing routing) {
    hmoe_routes r = routes_for(N, E, slots);
    for (int e = 0; e < E; e++)
        for (int t = 0, bias = pick(-6, 3); t < N; t++) r.logits[(size_t)t * E + e] += bias;
    cpu->router_softmax(&r, N, E);
    cpu->choose(&r, routing, slots, 0.7, 1, N, E);
    cpu->dispatch(&r, N, E);
    return r;
}

static void chosen(const hmoe_routes &r, int N) {
    const int *count = on(after, r.count);
    for (int t = 0; t < N; t++)
        if (CHECK_INT(count[t], r.count[t])) {
            size_t at = (size_t)t * r.slots, n = (size_t)r.count[t];
            exact(r.expert + at, n), close(r.gate + at, n, 1e-6);
        }
    exact(r.count, (size_t)N);
    looked_at(r.expert, (size_t)N * r.slots * 4), looked_at(r.gate, (size_t)N * r.slots * 4);
}

static void router() {
    for (int E : { 1, 3, 8, 33, 256 })
        for (int routing = HMOE_TOP_K; routing <= HMOE_TOP_P; routing++) {
            if (!effort && E > 33) continue;
            int N = pick(1, 70), K = pick(1, E < 9 ? E : 9), norm = pick(0, 1);
            double top_p = pick(0, 4) ? pick(1, 16) / 16.0 : 1;
            CASE("N %d, E %d, K %d, top_p %g", N, E, K, routing ? top_p : 0);
            clear();
            hmoe_routes r = routes_for(N, E, routing ? E : K);
            float *ties = r.P, *bias = room<float>((size_t)E), *own_p = room<float>(1);
            double *sums = room<double>(2 * (size_t)E + 3);
            for (int e = 0; e < E; e++) bias[e] = (float)pick(-2, 2) / 16;   /* makes ties, too */
            *own_p = (float)pick(1, 16) / 16;
            if (pick(0, 1)) r.bias = bias;
            if (pick(0, 1)) r.top_p = own_p;
            ready();
            both(&hmoe_backend::router_softmax, &r, N, E);
            fetch();
            close(r.P, (size_t)N * E, 2e-6), close(r.lse, N, 1e-6), close(r.entropy, N, 1e-5);
            rest_is_untouched();
            for (int t = 0; t < N; t += 2)            /* and many of equal P */
                for (int e = 0; e < E; e++) ties[(size_t)t * E + e] = (float)pick(1, 4) / 16;
            ready();                                  /* the same P for both */
            both(&hmoe_backend::choose, &r, (hmoe_routing)routing, K, top_p, norm, N, E);
            fetch();
            chosen(r, N);
            rest_is_untouched();
            ready();
            both(&hmoe_backend::dispatch, &r, N, E);
            both(&hmoe_backend::router_sums, sums, &r, N, E);
            fetch();
            size_t rows = (size_t)r.expert_start[E];
            exact(r.expert_start, (size_t)E + 1), exact(r.row_token, rows);
            exact(r.row_gate, rows);
            for (int t = 0; t < N; t++) exact(r.row + (size_t)t * r.slots, (size_t)r.count[t]);
            exact(sums, (size_t)E), close(sums + E, (size_t)E + 3, 1e-7);
            rest_is_untouched();
        }
}

/* A router that is NaN is refused later; until then experts must be experts. */
static void router_of_nan() {
    for (int routing = HMOE_TOP_K; routing <= HMOE_TOP_P; routing++) {
        enum { N = 9, E = 5 };
        clear();
        const hmoe_routes r = routes_for(N, E, E);
        for (int i = 0; i < N * E; i++) r.P[i] = i / E % 3 ? (float)NAN : i % 2 ? 0.2f : (float)NAN;
        ready();
        gpu->choose(on(there, &r), (hmoe_routing)routing, 2, 0.6, 1, N, E);
        gpu->dispatch(on(there, &r), N, E);
        fetch();
        for (int t = 0; t < N; t++) {
            int count = on(after, r.count)[t];
            CHECK(count >= 1 && count <= E);
            for (int s = 0; s < count && s < E; s++) {
                int e = on(after, r.expert)[t * E + s];
                CHECK(e >= 0 && e < E);
            }
        }
    }
}

static void router_backward() {
    for (int E : { 1, 3, 8, 40 }) {
        int N = pick(1, 70), slots = pick(1, E), norm = pick(0, 1);
        CASE("N %d, E %d, slots %d, norm %d", N, E, slots, norm);
        clear();
        hmoe_routes r = ready_routes(N, E, slots, HMOE_TOP_K);
        float *dgate = numbers((size_t)N * slots, 1), *dP = numbers(E, 1);
        ready();
        both(&hmoe_backend::router_backward, &r, dgate, dP, 0.3, 0.2, norm, N, E);
        fetch();
        twin_is_fresh(r.logits, 0, N, E, E);
        close(r.logits, (size_t)N * E, 1e-5);
        rest_is_untouched();
    }
}

static void noise() {
    for (int E : { 1, 3, 8, 40 }) {
        int N = pick(1, 70), first = pick(0, 99);
        uint64_t key = hmoe_random(3, 4, (uint64_t)N, (uint64_t)E);
        CASE("N %d, E %d", N, E);
        clear();
        hmoe_routes r = routes_for(N, E, 1);
        float *raw = numbers((size_t)N * E, 2), *gain = (room<float>(1), numbers(E, 1, 1));
        float *dgain = numbers(E, 1, 1);
        ready();
        both(&hmoe_backend::noise_forward, &r, raw, gain, 1e-5, key, first, N, E);
        both(&hmoe_backend::noise_backward, raw, dgain, &r, raw, gain, 1e-5, key, first, N, E);
        fetch();
        twin_is_fresh(raw, 0, N, E, E);
        if (E > 1) close(raw, (size_t)N * E, 1e-5);      /* of one expert: 0, but for rounding */
        looked_at(raw, (size_t)N * E * 4);
        close(r.logits, (size_t)N * E, 1e-5), close(dgain, E, 1e-5);
        rest_is_untouched();
    }
}

/* The whole of the experts but their plain products, on random routes. */
static void experts_case(int N, int E, int slots, int C, int widest, hmoe_routing routing) {
    int H[HMOE_MAX_EXPERTS], ldh = 0;
    CASE("N %d, E %d, slots %d, C %d, H up to %d", N, E, slots, C, widest);
    clear();
    for (int e = 0; e < E; e++) H[e] = some_width(widest), ldh = H[e] > ldh ? H[e] : ldh;
    hmoe_routes r = ready_routes(N, E, slots, routing);
    const int *start = r.expert_start;
    size_t rows = (size_t)N * slots;
    float *x = factors((size_t)N * C, 1), *h = room<float>(rows * ldh);
    float *u = room<float>(rows * 2 * ldh), *dh = numbers(rows * ldh, 1);
    float *dgate = room<float>(rows), *y = room<float>((size_t)N * C);
    float *given = numbers(rows * C, 1), *dx = room<float>((size_t)N * C);
    room<float>(1);
    for (int e = 0; e < E; e++) {
        hmoe_linear up = { x, factors((size_t)2 * H[e] * C, 0.3, 1), u, start + e, C, 2 * H[e], C,
                           2 * ldh, NULL, r.row_token, NULL, NULL };
        list[e] = up;
    }
    ready();
    sized(&hmoe_backend::experts_up, h, list, r.expert_start, H, E, ldh);
    both(&hmoe_backend::experts_up, h, list, r.expert_start, H, E, ldh);
    fetch();
    for (int e = 0; e < E; e++) {
        twin_is_fresh(h, start[e], start[e + 1], H[e], ldh);
        for (size_t row = (size_t)start[e]; row < (size_t)start[e + 1]; row++) {
            close(u + row * 2 * ldh, 2 * (size_t)H[e], sum_tolerance, 1);
            close(h + row * ldh, (size_t)H[e], 5 * sum_tolerance, 1);   /* h moves by at most
                 1.1 |b| da + |a| db, and its size is at least |a b| / 2 */
        }
    }
    rest_is_untouched();
    ready();
    both(&hmoe_backend::swiglu_backward, u, h, dgate, dh, r.expert_start, r.row_gate, H, E, ldh);
    both(&hmoe_backend::combine_forward, y, x, given, &r, N, C);
    both(&hmoe_backend::combine_backward, dx, given, &r, N, C);
    fetch();
    for (int e = 0; e < E; e++) {
        twin_is_fresh(h, start[e], start[e + 1], H[e], ldh);
        twin_is_fresh(u, start[e], start[e + 1], 2 * H[e], 2 * ldh);
        for (size_t row = (size_t)start[e]; row < (size_t)start[e + 1]; row++) {
            close(u + row * 2 * ldh, 2 * (size_t)H[e], 4e-6);
            close(h + row * ldh, (size_t)H[e], 4e-6);
        }
    }
    close(dgate, (size_t)start[E], 4e-6);
    close(y, (size_t)N * C, 1e-6), close(dx, (size_t)N * C, 1e-6);
    rest_is_untouched();
}

static void experts() {
    experts_case(70, 5, 2, 40, 72, HMOE_TOP_K);
    if (!effort) return;
    experts_case(33, 8, 8, 33, 65, HMOE_TOP_P), experts_case(9, 1, 1, 16, 250, HMOE_TOP_K);
    experts_case(40, 64, 3, 18, 31, HMOE_TOP_K);
    if (effort == LONG && precision) experts_case(150, 2, 1, 512, 520, HMOE_TOP_K);
    if (effort == LONG) for (int i = 0; i < 8; i++)
        experts_case(pick(1, 300), pick(2, 12), 2, pick(4, 130), 250, HMOE_TOP_K);
}

/* ---------------------------------------------------------------------------------------------
   OPTIMIZER */

static void optimizer() {
    for (size_t n : { 1, 255, 4097, 20000 }) {
        const hmoe_rates rates = { 0.7f, 0.9f, 0.99f, 0.01f, 3.1f, 0.001f };
        double sum = 0;
        clear();
        float *w = (room<float>(1), numbers(n, 1, 1)), *g = numbers(n, 1, 1), *m = numbers(n, 1, 1);
        float *v = numbers(n, 1, 1);
        for (size_t i = 0; i < n; i++) v[i] = fabsf(v[i]), sum += (double)g[i] * g[i];
        ready();
        CHECK_NEAR(gpu->squared_norm(on(there, g), n), sum, 1e-6, 0);
        both(&hmoe_backend::adamw, w, g, m, v, n, &rates);
        fetch();
        twin_is_fresh(w, 0, (int)(n / 5), 5, 5);
        close(w, n, 1e-6), exact(g, n), close(m, n, 1e-6), close(v, n, 1e-6);
        rest_is_untouched();
    }
}

/* ---------------------------------------------------------------------------------------------
   WHOLE MODELS. Two experts whose probabilities are nearly equal may change places when a sum is
   rounded otherwise, and then everything after differs. So the CPU's choices are written down and
   the device is made to follow them, after its own have been looked at. */

struct Decision { std::vector<int> count, expert; };
static std::vector<Decision> decisions;
static size_t replayed;
static hmoe_backend recorder, replayer;
static int disagreements, looked;

static void record(const hmoe_routes *r, hmoe_routing routing, int K, double top_p, int norm, int N,
                   int E) {
    cpu->choose(r, routing, K, top_p, norm, N, E);
    decisions.push_back({ std::vector<int>(r->count, r->count + N),
                          std::vector<int>(r->expert, r->expert + (size_t)N * r->slots) });
}

static void replay(const hmoe_routes *r, hmoe_routing routing, int K, double top_p, int norm, int N,
                   int E) {
    const Decision &d = decisions[replayed++];
    size_t n = (size_t)N * r->slots;
    std::vector<float> P((size_t)N * E), gate(n);
    std::vector<int> count(N), expert(n);
    std::vector<float> bias(E, 0.0f);
    float own_p = 0;
    if (r->bias) gpu->download(bias.data(), r->bias, bias.size() * 4);
    if (r->top_p) gpu->download(&own_p, r->top_p, 4), top_p = own_p;
    gpu->choose(r, routing, K, top_p, norm, N, E);
    gpu->download(P.data(), r->P, P.size() * 4);
    gpu->download(count.data(), r->count, count.size() * 4);
    gpu->download(expert.data(), r->expert, n * 4);
    for (int t = 0; t < N; t++) {
        float sum = 0, mass = 0, *g = &gate[(size_t)t * r->slots];
        const int *S = &d.expert[(size_t)t * r->slots], *own = &expert[(size_t)t * r->slots];
        const float *P_t = &P[(size_t)t * E];
        looked++;
        for (int s = 0; s < d.count[t]; s++) {
            sum += g[s] = P_t[S[s]];
            if (s >= count[t] || own[s] == S[s]) continue;
            disagreements++;
            if (precision == HMOE_FLOAT32)
                CHECK_NEAR(P_t[own[s]] + bias[own[s]], P_t[S[s]] + bias[S[s]], 0, 1e-5);
        }
        if (count[t] != d.count[t] && precision == HMOE_FLOAT32) {   /* then it was close */
            disagreements++;
            for (int s = 0; s < count[t] && s < d.count[t]; s++) mass += P_t[own[s]];
            CHECK_NEAR(mass, top_p, 0, 1e-5);
        }
        for (int s = 0; norm && s < d.count[t]; s++) g[s] /= sum;
    }
    gpu->upload(r->count, d.count.data(), count.size() * 4);
    gpu->upload(r->expert, d.expert.data(), n * 4);
    gpu->upload(r->gate, gate.data(), n * 4);
}

static hmoe_config tiny(int variant) {
    hmoe_config c = hmoe_default_config();
    c.V = 31, c.T = 24, c.C = 24, c.L = 2, c.NH = 2, c.E = 4 + variant % 2 * 3;
    hmoe_expert_sizes(c.H, c.E, 12 * c.E, "arithmetic", NULL);
    c.loss_coef[HMOE_LB] = 0.05, c.loss_coef[HMOE_PP] = 0.02, c.loss_coef[HMOE_ENT] = 0.01, c.loss_coef[HMOE_Z] = 0.01;
    if (variant == 1) c.routing = HMOE_TOP_P, c.top_p = 0.7, c.noisy_gating = 1;
    if (variant == 2) hmoe_expert_sizes(c.H, c.E, 63, "modse", NULL), c.noisy_gating = 1;
    if (variant == 3) c.K = 1, c.NH = 3, c.NKV = 1, c.C = 18;
    if (variant == 4) c.E = c.K = 1;
    if (variant == 5) steer(&c, 3);
    if (variant == 6) c.routing = HMOE_TOP_P, steer(&c, 11);
    return c;
}

static void create(hmoe_model *m, const hmoe_config *c, const hmoe_backend *steps, int B) {
    memset(m, 0, sizeof *m);
    m->backend = steps;
    if (hmoe_create(m, c, 11, B, 1)) { printf("  %s\n", m->message); exit(1); }
}

/* Weights large enough that the router has made up its mind. */
static void spread(hmoe_model *to_cpu, hmoe_model *to_gpu) {
    spread_weights(to_cpu, 0.2, 0.5);
    to_gpu->backend->upload(to_gpu->params, to_cpu->params, to_cpu->param_count * sizeof(float));
}

static std::vector<float> fetched(const hmoe_model &m, const float *array) {
    std::vector<float> host(m.param_count);
    m.backend->download(host.data(), array, host.size() * 4);
    return host;
}

/* The largest difference, in terms of the largest number of b. */
static double apart(const float *a, const float *b, size_t n) {
    double largest = 1e-30, worst = 0;
    for (size_t i = 0; i < n; i++) {
        double difference = fabs((double)a[i] - b[i]);
        largest = fmax(largest, fabs((double)b[i]));
        worst = difference <= worst ? worst : difference;   /* a NaN stays */
    }
    return worst / largest;
}

static void same_gradients(const hmoe_model &a, const hmoe_model &b) {
    std::vector<float> g = fetched(b, b.grads);
    for (size_t i = 0; i < a.tensor_count; i++) {
        const hmoe_tensor &t = a.tensors[i];
        CASE("%s", t.name);
        CHECK(apart(&g[t.offset], a.grads + t.offset, (size_t)t.rows * t.cols)
              <= (precision ? 0.15 : 1e-5));
    }
}

/* One micro-batch, forward and backward. */
static void pass(hmoe_model *m, const int *tokens, int B, int T) {
    if (!CHECK(!hmoe_forward(m, HMOE_TRAIN, tokens, tokens + 1, B, T) && !hmoe_backward(m, 0.5)))
        printf("  %s\n", m->message);
}

static void training() {
    for (int variant = 0; variant < (effort ? 7 : 1); variant++) {
        hmoe_config c = tiny(variant);
        hmoe_model a, b;
        hmoe_adamw adamw = hmoe_default_adamw();
        int steps = effort == LONG ? 20 : effort == SHORT ? 3 : 1, B = 2, N = B * c.T;
        recorder = *cpu, recorder.choose = record;
        replayer = *gpu, replayer.choose = replay;
        decisions.clear(), replayed = 0, disagreements = looked = 0;
        create(&a, &c, &recorder, B), create(&b, &c, &replayer, B);
        spread(&a, &b);
        a.dropout = b.dropout = variant % 2 ? 0 : 0.2;
        for (int step = 0; step < steps; step++) {
            for (int T = c.T; T >= c.T - 7; T -= 7) {      /* two micro-batches */
                int *tokens = random_tokens(B * T + 1, c.V);
                CASE("variant %d, step %d, T %d", variant, step, T);
                pass(&a, tokens, B, T), pass(&b, tokens, B, T);
                CHECK_NEAR(b.losses.total, a.losses.total, precision ? 1e-2 : 1e-5 * (step + 1), 0);
                free(tokens);
            }
            if (step == 0) same_gradients(a, b);
            CHECK(!hmoe_update(&a, &adamw) && !hmoe_update(&b, &adamw));
            CHECK_NEAR(b.grad_norm, a.grad_norm, precision ? 0.1 : 1e-4 * (step + 1), 0);
        }
        CHECK(disagreements <= (precision ? 0.1 : 0.01) * looked);
        std::vector<float> state = fetched(b, b.params);   /* follows from the choices: exact */
        for (size_t i = 0; i < a.tensor_count; i++) {
            const hmoe_tensor &t = a.tensors[i];
            CASE("variant %d, %s", variant, t.name);
            if (t.state) CHECK(!memcmp(&state[t.offset], a.params + t.offset, t.rows * 4));
            if (t.state && strstr(t.name, "top_p")) CHECK(a.params[t.offset] != (float)c.top_p);
        }
        std::vector<int> tokens((size_t)N);
        std::vector<float> mine((size_t)N * c.V), its((size_t)N * c.V);
        CHECK(!hmoe_forward(&a, HMOE_EVALUATE, tokens.data(), NULL, B, c.T)
              && !hmoe_forward(&b, HMOE_EVALUATE, tokens.data(), NULL, B, c.T));
        CHECK(!hmoe_get_logits(&a, mine.data()) && !hmoe_get_logits(&b, its.data()));
        CHECK(apart(its.data(), mine.data(), mine.size()) <= (precision ? 0.05 : 1e-3));
        hmoe_free(&a), hmoe_free(&b);
    }
}

/* A run that goes its own way: its losses, then its weights. */
static std::vector<float> run(int variant, int steps) {
    hmoe_config c = tiny(variant);
    hmoe_model m;
    hmoe_adamw adamw = hmoe_default_adamw();
    std::vector<float> losses, params;
    create(&m, &c, gpu, 2);
    small_draws = 77;
    for (int step = 0; step < steps; step++) {
        int *tokens = random_tokens(2 * c.T + 1, c.V);
        CHECK(!hmoe_forward(&m, HMOE_TRAIN, tokens, tokens + 1, 2, c.T) && !hmoe_backward(&m, 1)
              && !hmoe_update(&m, &adamw));
        losses.push_back((float)m.losses.total);
        free(tokens);
    }
    params = fetched(m, m.params);
    losses.insert(losses.end(), params.begin(), params.end());
    hmoe_free(&m);
    return losses;
}

static int same(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

static void repeats_to_the_bit() {
    int steps = effort ? 2 : 1;
    std::vector<float> first = run(2, steps);
    CHECK(isfinite(first.back()));
    CHECK(same(first, run(2, steps)));
#ifdef CUDA_ON_CPU
    int order_before = coc::order;
    for (int order = 0; order < 3 && effort; order++) {   /* and so does any order of the threads */
        coc::order = order;
        CHECK(same(first, run(2, steps)));
    }
    coc::order = order_before;
#endif
}

/* ---------------------------------------------------------------------------------------------
   WHAT ONLY AN IMITATED GPU SHOWS */

#ifdef CUDA_ON_CPU
#include <sys/wait.h>
#include <unistd.h>

/* A training step takes tokens in and gives losses and sums out, and nothing else crosses. */
static void bytes_that_cross() {
    hmoe_config c = tiny(2);
    hmoe_model m;
    hmoe_adamw adamw = hmoe_default_adamw();
    size_t N = 2 * (size_t)c.T, E = (size_t)c.E, L = (size_t)c.L;
    int *tokens = random_tokens(2 * c.T + 1, c.V);
    create(&m, &c, gpu, 2);
    for (int step = 0; step < 2; step++) {
        coc::bytes_to_device = coc::bytes_from_device = 0;
        CHECK(!hmoe_forward(&m, HMOE_TRAIN, tokens, tokens + 1, 2, c.T) && !hmoe_backward(&m, 1)
              && !hmoe_update(&m, &adamw));
        CHECK_INT(coc::bytes_to_device, 8 + 2 * 4 * N + 4 * L * E);
        CHECK_INT(coc::bytes_from_device, 8 * L * (2 * E + 3) + 4 * N + 8 * SUMS);
    }
    hmoe_free(&m);
    free(tokens);
}

#ifndef __SANITIZE_THREAD__   /* TSan is confused by fork */

/* A short life of a model. Returns whether anyone noticed that something went wrong. */
static int short_life() {
    char message[HMOE_MESSAGE_SIZE] = "";
    hmoe_config c = small_config();
    hmoe_model m;
    hmoe_adamw adamw = hmoe_default_adamw();
    int tokens[7] = { 1, 2, 3, 4, 5, 6, 7 };
    memset(&m, 0, sizeof m);
    m.backend = hmoe_cuda(precision, message);
    if (!m.backend) return message[0] != 0;
    int bad = hmoe_create(&m, &c, 5, 1, 1) || hmoe_forward(&m, HMOE_TRAIN, tokens, tokens + 1, 1, 6)
              || hmoe_backward(&m, 1);
    long passed = coc::calls;      /* then come the kernel and the copy of the gradients' norm: */
    if (!bad) bad = hmoe_update(&m, &adamw) != HMOE_OK;
    if (!bad && coc::fail_at > passed && coc::fail_at <= passed + 2) bad = 4;  /* no step without */
    if (bad == 1) bad = m.message[0] ? 1 : 2;
    hmoe_free(&m);
    bad |= m.backend->synchronize() != NULL;
    return bad;
}

/* What a function returns, in a process of its own: what the first use of the device leaves must
   not be there yet, and a crash is one failure. */
static int in_child(int (*function)(long), long argument) {
    int status = -1;
    pid_t child;
    fflush(stdout);
    if ((child = fork()) == 0) {
        int result = function(argument);
        fflush(stdout);
        _exit(result);
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int first_life_with_failure(long n) {
    coc::calls = 0, coc::fail_at = n;
    if (short_life() != 1) return 1;
    coc::fail_at = 0;
    return short_life() ? 3 : 0;
}

static int life_with_failure(long n) {
    int kept = coc::allocations, noticed;
    coc::calls = 0, coc::fail_at = n;
    noticed = short_life();
    if (coc::calls < n) return 99;
    coc::fail_at = 0;
    return noticed != 1 ? 1 : coc::allocations != kept ? 2 : short_life() ? 3
         : coc::allocations != kept ? 4 : 0;
}

/* Whichever call fails: somebody says so, nothing leaks, and the next model works. */
static void every_failure() {
    static const char *const what[5] = { "", "nobody noticed", "device memory leaks",
                                         "the next model does not work", "the next model leaks" };
    int status = 0, stride = effort == LONG ? 1 : effort ? 9 : 40;
    for (long n = 1; n < 12; n++) CHECK_INT(in_child(first_life_with_failure, n), 0);
    CHECK(!short_life());           /* what is kept between models is there from here on */
    for (long n = 1; status != 99; n += n < 20 ? 1 : stride) {
        status = in_child(life_with_failure, n);
        if (!CHECK(status == 0 || (status == 99 && n > 100)))
            printf("  call %ld: %s\n", n, status > 0 && status < 5 ? what[status]
                   : "the process died");
        if (n > 10000) return;
    }
}

static int without_device(long devices) {
    char message[HMOE_MESSAGE_SIZE] = "";
    coc::devices = (int)devices;
    return hmoe_cuda(precision, message) || !message[0] || hmoe_cuda(precision, NULL);
}

static int on_old_device(long) {
    char message[HMOE_MESSAGE_SIZE] = "";
    coc::capability = 75;
    int some = hmoe_cuda(precision, message) != NULL;
    return precision == HMOE_BF16 ? some || !message[0] : !some || message[0];
}

static void devices() {
    CHECK_INT(in_child(without_device, 0), 0);
    CHECK_INT(in_child(on_old_device, 0), 0);
}
#endif

static int kept;
static void nothing_leaks() { CHECK_INT(coc::allocations, kept); }
#endif

static int asked_for(int argc, char **argv, const char *test) {
    for (int i = 3; i < argc; i++) if (!strcmp(argv[i], test)) return 1;
    return argc < 4;
}
#define RUN(test) do { if (asked_for(argc, argv, #test)) TEST(test); } while (0)

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "short";
    char message[HMOE_MESSAGE_SIZE];
    effort = !strcmp(mode, "least") ? LEAST : !strcmp(mode, "long") ? LONG : SHORT;
    threads(1);
    for (hmoe_precision p : { HMOE_FLOAT32, HMOE_BF16 }) {
        precision = p;
        small_draws = argc > 2 ? 1000000 * strtoull(argv[2], NULL, 10) : 0;
#if defined(CUDA_ON_CPU) && !defined(__SANITIZE_THREAD__)
        RUN(every_failure);
        RUN(devices);
#endif
        gpu = hmoe_cuda(p, message);
        if (!gpu) { printf("cuda: %s\n", message); return 1; }
#ifdef CUDA_ON_CPU
        kept = coc::allocations;
#endif
        RUN(products);
        RUN(twins_follow);
        RUN(rmsnorm);
        RUN(rmsnorm_overflows);
        RUN(rope);
        RUN(embedding);
        RUN(attention);
        RUN(cross_entropy);
        RUN(dropout);
        RUN(router);
        RUN(router_of_nan);
        RUN(router_backward);
        RUN(noise);
        RUN(experts);
        RUN(optimizer);
        RUN(training);
        RUN(repeats_to_the_bit);
#ifdef CUDA_ON_CPU
        RUN(bytes_that_cross);
#endif
        gpu->free(there), there = NULL;
#ifdef CUDA_ON_CPU
        RUN(nothing_leaks);
#endif
    }
    return test_summary("cuda");
}
