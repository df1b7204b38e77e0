/* hmoe_cuda.cu - the backend of hmoe.h for a GPU. Optional: hmoe.h is complete without it.

   A backend is a table of functions (hmoe_backend). This file fills the table with kernels.
   Weights, gradients, moments and activations stay in the GPU's memory. In a training step only
   tokens go to the GPU, and only losses and the routers' sums come back. The most important
   kernel is `multiply`, in PRODUCTS. One launch of it computes a list of matrix products whose
   rows are ragged and whose widths differ.

THE GROUPED PRODUCT

   Example: four experts of widths 2 : 3 : 4 : 5 have 130, 70, 300 and 10 tokens. Each product is
   divided into tiles of at most 64 x 64 numbers. A block computes one tile at a time. Rows are
   tokens, columns are the width:

       expert 3 (widest)   10 tokens   [ 0  1  2  3  4 ]
       expert 2           300 tokens   [ 5 10 15 20 ]
                                       [ 6 11 16 21 ]
                                       [ 7 12 17 22 ]
                                       [ 8 13 18 23 ]
                                       [ 9 14 19 24 ]     the last 44 tokens
       expert 1            70 tokens   [25 27 29 ]
                                       [26 28 30 ]        the last 6
       expert 0           130 tokens   [31 34 ]
                                       [32 35 ]
                                       [33 36 ]           the last 2

   The list has 37 tiles, numbered as shown. The widest experts come first, so that the short
   tiles at the end fill the gaps. Nothing is padded to the widest expert or to the fullest one.
   No expert has a capacity limit, and no token is dropped.

   The host does not know how many tokens an expert has. It launches as many blocks as fit on the
   device. Each block reads expert_start, computes the same list of tiles, and takes the tiles
   blockIdx.x, blockIdx.x + gridDim.x, and so on. A tile reads its tokens in place, through their
   indices (row_token).

   There are three forms: y = x W^T, dx = dy W and dW += dy^T x. A dense layer is a list of one
   product. Attention is a list of B * NH products that skip the tiles above the diagonal.

BF16 AND TWINS

   With HMOE_BF16, the operands of products are bf16. Tensor cores multiply them and add the
   products in float. A float array can have a *twin*: a bf16 array with the same indices. The
   kernel that computes an operand writes both arrays at once, so rounding needs no pass of its
   own. Master weights, sums and the residual stream stay in float.

   Not done: the fragments of mma.h work on all GPUs from sm_80 on. Hopper's wgmma reads shared
   memory directly, and reports say that it is about 1.7 times as fast. It needs its own kernels.

   There are no atomics. Every sum has a fixed order, so two runs give the same bits. tests/cuda
   runs this file without a GPU; therefore launches use launch(), and shared memory uses SHARED. */

#include "hmoe.h"

#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static_assert(sizeof(hmoe_real) == sizeof(float), "the GPU computes in float, not in double");

#ifdef CUDA_ON_CPU   /* in tests */
#define SHARED(type, s) type &s = *(type *)coc::shared_memory(sizeof(type), alignof(type))
#else
#define SHARED(type, s) \
    extern __shared__ __align__(128) char hmoe_shared[]; type &s = *(type *)hmoe_shared
#endif

namespace {
typedef __nv_bfloat16 bf16;

/* ---------------------------------------------------------------------------------------------
   DEVICE - memory, errors, launches. */
/* One array of the device, and its twin. The twin is NULL until twin() is called for it. */
struct Array {
    float *data;
    bf16 *twin;
    size_t bytes;
    int precision;
    Array *next;
};

/* Threads, warps and shared memory of a block, in all kernels but multiply; and the number of
   partial sums in squared_norm. */
enum { THREADS = 256, WARPS = THREADS / 32, SHARED_BYTES = THREADS * sizeof(float), SUMS = 256 };

struct Device {
    int blocks;                /* multiprocessors; grids are multiples of this */
    Array *arrays;
    double *sums;              /* [SUMS], for squared_norm */
    cudaError_t error;         /* the first since the last synchronize(), */
    const char *doing;         /*   and the operation that failed */
    char text[HMOE_MESSAGE_SIZE];
} device;

bool ok(cudaError_t error, const char *doing) {
    if (error && !device.error) device.error = error, device.doing = doing;
    return !error;
}

/* Launches a kernel. All launches use it. After an error it launches nothing until synchronize()
   has reported the error. threads: per block. */
template <class... P, class... A>
void launch(const char *name, void (*kernel)(P...), size_t blocks, int threads, size_t shared,
            const A &...arguments) {
    cudaLaunchConfig_t config = {};
    if (device.error || !blocks) return;
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    ok(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), name);
}

/* EACH: one thread per element i of n. EACH_WARP: one warp per item t of n. */
#define EACH(i, n) \
    for (size_t i = blockIdx.x * (size_t)THREADS + threadIdx.x; i < (size_t)(n); \
         i += (size_t)gridDim.x * THREADS)
#define EACH_WARP(t, n) \
    for (size_t t = blockIdx.x * (size_t)WARPS + threadIdx.x / 32; t < (size_t)(n); \
         t += (size_t)gridDim.x * WARPS)
#define LAUNCH(kernel, items, ...) \
    launch(#kernel, kernel, ((size_t)(items) + THREADS - 1) / THREADS, THREADS, 0, __VA_ARGS__)
#define LAUNCH_WARPS(kernel, items, ...) \
    launch(#kernel, kernel, ((size_t)(items) + WARPS - 1) / WARPS, THREADS, 0, __VA_ARGS__)
#define LAUNCH_BLOCKS(kernel, blocks, ...) \
    launch(#kernel, kernel, (size_t)(blocks), THREADS, SHARED_BYTES, __VA_ARGS__)

__device__ int lane() { return threadIdx.x % 32; }

/* Sums and maxima over a warp; all lanes get the result. */
template <class T> __device__ T warp_sum(T x) {
    for (int d = 16; d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}
__device__ float warp_max(float x) {
    for (int d = 16; d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

template <class T> struct Parts { T part[WARPS]; };   /* shared by a block */
/* Sum over a block of THREADS; all threads get the result. */
template <class T> __device__ T block_sum(T x, T *part) {
    T sum = 0;
    x = warp_sum(x);
    if (lane() == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) sum += part[w];
    __syncthreads();   /* all threads have read `part`: it may be overwritten */
    return sum;
}

/* Writes a number that will be an operand of a product, and its twin if there is one. */
__device__ void put(float *x, bf16 *twin, size_t i, float value) {
    x[i] = value;
    if (twin) twin[i] = __float2bfloat16(value);
}

__global__ void round_to_bf16(bf16 *twin, const float *x, size_t n) {
    EACH(i, n) twin[i] = __float2bfloat16(x[i]);
}

Array *array_of(const void *p) {
    for (Array *a = device.arrays; a; a = a->next)
        if ((const char *)p >= (char *)a->data && (const char *)p < (char *)a->data + a->bytes)
            return a;
    return NULL;
}

/* The twin of x. The first call makes it. NULL if products read floats. */
bf16 *twin(const float *x) {
    Array *a = array_of(x);
    size_t n;
    if (!a || a->precision != HMOE_BF16) return NULL;
    n = a->bytes / sizeof *x;
    if (!a->twin && ok(cudaMalloc((void **)&a->twin, n * sizeof *a->twin), "bf16 copies"))
        LAUNCH(round_to_bf16, n, a->twin, a->data, n);
    return a->twin ? a->twin + (x - a->data) : NULL;
}

template <int precision> void *device_alloc(size_t bytes) {
    Array *a = (Array *)calloc(1, sizeof *a);
    cudaError_t e;
    if (!a) return NULL;
    a->bytes = (bytes + 255) / 256 * 256;
    e = cudaMalloc((void **)&a->data, a->bytes);
    if (e) {
        cudaGetLastError();   /* too little memory is not a device error: the caller reports it */
        if (e != cudaErrorMemoryAllocation) ok(e, "allocating memory");
        free(a);
        return NULL;
    }
    a->precision = precision;
    a->next = device.arrays;
    device.arrays = a;
    return a->data;
}

void device_free(void *array) {
    Array **link = &device.arrays, *a;
    while (*link && (*link)->data != array) link = &(*link)->next;
    a = *link;
    if (!a) return;
    *link = a->next;
    ok(cudaFree(a->data), "freeing memory");
    if (a->twin) ok(cudaFree(a->twin), "freeing memory");
    free(a);
}

void download(void *host, const void *array, size_t bytes) {
    if (!ok(cudaMemcpy(host, array, bytes, cudaMemcpyDeviceToHost), "copying from the device"))
        memset(host, 0, bytes);
}

/* Computes the twin again after the data has changed. */
void refresh_twin(void *array, size_t bytes) {
    float *x = (float *)array;
    if (array_of(x) && array_of(x)->twin) LAUNCH(round_to_bf16, bytes / 4, twin(x), x, bytes / 4);
}

void upload(void *array, const void *host, size_t bytes) {
    ok(cudaMemcpy(array, host, bytes, cudaMemcpyHostToDevice), "copying to the device");
    refresh_twin(array, bytes);
}

void zero(void *array, size_t bytes) {
    ok(cudaMemsetAsync(array, 0, bytes, 0), "clearing memory");
    refresh_twin(array, bytes);
}

const char *synchronize() {
    ok(cudaDeviceSynchronize(), "waiting for the device");
    if (!device.error) return NULL;
    snprintf(device.text, sizeof device.text, "%s (%s)", cudaGetErrorString(device.error),
             device.doing);
    cudaGetLastError();
    device.error = cudaSuccess;
    return device.text;
}

/* ---------------------------------------------------------------------------------------------
   PRODUCTS - C[m][n] = sum over k of A(m, k) B(k, n), for each member of a list. The three forms
   read their operands like this:

       form       C      A         B        m          n     k        A in memory   B in memory
       FORWARD    y      x         W        tokens     out   in       [m][k]        [n][k]
       INPUT      dx     dy        W        tokens     in    out      [m][k]        [k][n]
       WEIGHT     dW     dy        x        out        in    tokens   [k][m]        [k][n]

   A tile has the same layout in shared memory. Asynchronous copies move 16 bytes at a time and
   write zeros beyond the edge. The fragments transpose. */

enum { FORWARD, INPUT, WEIGHT };
enum {
    STORE,                /* c = sum, + add */
    SWIGLU,               /* W1 and W3 together: c = [a | b], extra = silu(a) b */
    SOFTMAX_BACKWARD      /* c = p becomes p (sum - extra[row]) scale: the gradient of scores */
};
enum {
    MEMBERS = HMOE_MAX_EXPERTS,   /* most members of a list: they are kernel arguments */
    BN = HMOE_TILE,       /* columns of a tile; its rows, BM, are 64 or 128 */
    STAGES = 3            /* tiles of operands in shared memory: one in use, two being copied */
};

struct Member {
    const void *a, *b;    /* float or bf16 */
    const int *a_at, *b_at;   /* if not NULL, row r is row a_at[r] of memory */
    const int *rows;      /* the range of rows, in the device's memory; NULL: 0 .. M or K */
    float *c;
    const float *add;     /* laid out like c, or NULL */
    float *extra;
    bf16 *twin;           /* NULL, or the twin of the result: of extra for SwiGLU, else of c */
    int M, N, K;          /* M (forward, input) or K (weight) is used only if rows is NULL */
    int lda, ldb, ldc, ld_extra;
    int whole_a, whole_b; /* 1: 16 bytes can be copied at a time */
};

struct List {
    int n, op, causal;    /* causal: nothing above the diagonal is read or written, see multiply */
    float scale;
    Member m[MEMBERS];
};

/* Shared memory of a block. Rows of operands are 16 bytes longer than the tile; otherwise all rows
   of a fragment would use the same banks. */
template <typename T, int FORM, int BM> struct Tile {
    enum {
        BK = 64 / sizeof(T), PAD = 16 / sizeof(T),
        A_ROWS = FORM == WEIGHT ? BK : BM, A_COLS = FORM == WEIGHT ? BM : BK,
        B_ROWS = FORM == FORWARD ? (int)BN : BK, B_COLS = FORM == FORWARD ? BK : (int)BN
    };
    union {
        struct {
            T a[STAGES][A_ROWS][A_COLS + PAD];
            T b[STAGES][B_ROWS][B_COLS + PAD];
        } in;
        float out[BM][BN + 4];   /* the sums, to be written to memory in whole rows */
    };
    int start[MEMBERS + 1];      /* member e has tiles start[e] .. start[e + 1] - 1 */
};

/* Fills `start` from the members' ranges of rows. Every block computes the same. */
__device__ void list_tiles(int *start, const List &list, int form, int BM) {
    int columns = list.op == SWIGLU ? BN / 2 : BN;
    for (int e = threadIdx.x; e < list.n; e += blockDim.x) {
        const Member &m = list.m[e];
        int rows = m.rows ? m.rows[1] - m.rows[0] : form == WEIGHT ? m.K : m.M;
        int M = form == WEIGHT ? m.M : rows;
        start[e + 1] = rows ? (M + BM - 1) / BM * ((m.N + columns - 1) / columns) : 0;
    }
    if (threadIdx.x == 0) start[0] = 0;
    __syncthreads();
    if (threadIdx.x < 32)   /* one warp adds them up, 32 at a time */
        for (int e = lane(), before = 0; e - lane() < list.n; e += 32) {
            int sum = e < list.n ? start[e + 1] : 0;
            for (int d = 1; d < 32; d *= 2) {
                int left = __shfl_up_sync(~0u, sum, d);
                if (lane() >= d) sum += left;
            }
            sum += before;
            if (e < list.n) start[e + 1] = sum;
            before = __shfl_sync(~0u, sum, 31);
        }
    __syncthreads();
}

__device__ int member_of(const int *start, int n, int tile) {
    int low = 0, high = n;   /* start[low] <= tile < start[high] */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (start[middle] <= tile) low = middle;
        else high = middle;
    }
    return low;
}

/* Starts a copy of 16 bytes to shared memory: `valid` bytes of data, then zeros. If the count is
   not a constant, __pipeline_memcpy_async becomes many branches; this is one instruction. */
__device__ void copy_16(void *to, const void *from, int valid) {
#if !defined(CUDA_ON_CPU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from), "r"(valid) : "memory");
#else
    __pipeline_memcpy_async(to, from, 16, 16 - valid);
#endif
}

/* Copies a tile of an operand: rows row .. row_end-1 (if `at` is not NULL, row r is at[r]), columns
   col .. col_end-1, at most ROWS x COLS; the rest of the tile becomes zero. From row `half` of the
   tile on, adds `jump` to the row, to reach W3, which is stored after W1. */
template <int ROWS, int COLS, typename T, int WIDTH>
__device__ void load_tile(T (*to)[WIDTH], const T *from, size_t ld, const int *at, int whole,
                          int row, int row_end, int col, int col_end, int half, int jump) {
    enum { CHUNK = 16 / sizeof(T) };
    for (int i = threadIdx.x; i < ROWS * COLS / CHUNK; i += blockDim.x) {
        int r = i / (COLS / CHUNK), c = i % (COLS / CHUNK) * CHUNK;
        int source = row + r - (r < half ? 0 : half);
        int valid = source < row_end ? min(max(col_end - col - c, 0), (int)CHUNK) : 0;
        const T *x = from;
        if (valid) {
            size_t place = (size_t)(at ? at[source] : source) + (r < half ? 0 : jump);
            x += place * ld + col + c;
        }
        if (whole) copy_16(&to[r][c], x, valid * (int)sizeof(T));
        else for (int j = 0; j < CHUNK; j++) to[r][c + j] = j < valid ? x[j] : T{};
    }
}

/* Loads a fragment from shared memory. mma.h would use generic loads. If the compiler knows that
   the address is in shared memory, it uses LDSM, which takes a quarter of the instructions. */
template <class Fragment>
__device__ void load_fragment(Fragment &f, const bf16 *p, unsigned ld) {
#if !defined(CUDA_ON_CPU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    using namespace nvcuda::wmma;
    unsigned *x = (unsigned *)f.x, place = (unsigned)__cvta_generic_to_shared(p);
#define LOAD(what) \
    asm volatile("wmma.load." what ".m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;" \
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) \
                 : "r"(place), "r"(ld) : "memory")
    if constexpr (std::is_same_v<Fragment, fragment<matrix_a, 16, 16, 16, bf16, row_major>>)
        LOAD("a.sync.aligned.row");
    else if constexpr (std::is_same_v<Fragment, fragment<matrix_a, 16, 16, 16, bf16, col_major>>)
        LOAD("a.sync.aligned.col");
    else if constexpr (std::is_same_v<Fragment, fragment<matrix_b, 16, 16, 16, bf16, row_major>>)
        LOAD("b.sync.aligned.row");
    else
        LOAD("b.sync.aligned.col");
#else
    nvcuda::wmma::load_matrix_sync(f, p, ld);
#endif
}

/* The sums of one tile, in registers. Each warp or thread has a part.
   add: adds one stage of operands. give: writes the sums to shared memory. */
template <typename T, int FORM, int BM> struct Sums;

/* bf16 on tensor cores: a warp has 32 x 32 of the tile, as 2 x 2 fragments. */
template <int FORM, int BM> struct Sums<bf16, FORM, BM> {
#if defined(CUDA_ON_CPU) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    typedef Tile<bf16, FORM, BM> S;
    template <class use, class layout>
    using fragment = nvcuda::wmma::fragment<use, 16, 16, 16, bf16, layout>;
    typedef std::conditional_t<FORM == WEIGHT, nvcuda::wmma::col_major, nvcuda::wmma::row_major> A;
    typedef std::conditional_t<FORM == FORWARD, nvcuda::wmma::col_major, nvcuda::wmma::row_major> B;
    nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum[2][2];

    __device__ static int row() { return threadIdx.x / 64 * 32; }
    __device__ static int col() { return threadIdx.x / 32 % 2 * 32; }

    __device__ void clear() {
        for (int i = 0; i < 4; i++) nvcuda::wmma::fill_fragment(sum[i / 2][i % 2], 0.0f);
    }

    __device__ void add(const S &s, int stage) {
        const auto &a = s.in.a[stage];
        const auto &b = s.in.b[stage];
#pragma unroll
        for (int k = 0; k < S::BK; k += 16) {
            fragment<nvcuda::wmma::matrix_a, A> a_i[2];
            fragment<nvcuda::wmma::matrix_b, B> b_j[2];
            for (int i = 0; i < 2; i++) {
                int m = row() + 16 * i, n = col() + 16 * i;
                load_fragment(a_i[i], FORM == WEIGHT ? &a[k][m] : &a[m][k], S::A_COLS + S::PAD);
                load_fragment(b_j[i], FORM == FORWARD ? &b[n][k] : &b[k][n], S::B_COLS + S::PAD);
            }
            for (int i = 0; i < 4; i++)
                nvcuda::wmma::mma_sync(sum[i / 2][i % 2], a_i[i / 2], b_j[i % 2],
                                       sum[i / 2][i % 2]);
        }
    }

    __device__ void give(S &s) const {
        for (int i = 0; i < 4; i++)
            nvcuda::wmma::store_matrix_sync(&s.out[row() + i / 2 * 16][col() + i % 2 * 16],
                                            sum[i / 2][i % 2], BN + 4,
                                            nvcuda::wmma::mem_row_major);
    }
#else   /* sm_75 has no bf16; hmoe_cuda refuses it there */
    __device__ void clear() {}
    __device__ void add(const Tile<bf16, FORM, BM> &, int) {}
    __device__ void give(Tile<bf16, FORM, BM> &) const {}
#endif
};

/* float: a thread has 8 x 4 numbers, BM / 8 rows and 16 columns apart. */
template <int FORM, int BM> struct Sums<float, FORM, BM> {
    typedef Tile<float, FORM, BM> S;
    float sum[8][4];

    __device__ static int row(int i) { return threadIdx.x / 16 + BM / 8 * i; }
    __device__ static int col(int j) { return threadIdx.x % 16 + 16 * j; }

    __device__ void clear() {
        for (int i = 0; i < 32; i++) sum[i / 4][i % 4] = 0;
    }

    __device__ void add(const S &s, int stage) {
        const auto &a = s.in.a[stage];
        const auto &b = s.in.b[stage];
        for (int k = 0; k < S::BK; k++) {
            float a_i[8], b_j[4];
            for (int i = 0; i < 8; i++) a_i[i] = FORM == WEIGHT ? a[k][row(i)] : a[row(i)][k];
            for (int j = 0; j < 4; j++) b_j[j] = FORM == FORWARD ? b[col(j)][k] : b[k][col(j)];
            for (int i = 0; i < 8; i++)
                for (int j = 0; j < 4; j++) sum[i][j] += a_i[i] * b_j[j];
        }
    }

    __device__ void give(S &s) const {
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 4; j++) s.out[row(i)][col(j)] = sum[i][j];
    }
};

/* Writes the sums of a tile to memory, row by row. first: the row of c for the tile's row 0. */
template <class S>
__device__ void finish_tile(const S &s, const List &list, const Member &m, int BM, size_t first,
                            int m0, int M, int n0) {
    int half = list.op == SWIGLU;   /* BN / 2 columns */
#pragma unroll 4
    for (int i = threadIdx.x; i < BM * BN >> half; i += blockDim.x) {
        int r = (i << half) / BN, j = i & ((BN >> half) - 1);
        size_t row = first + r, at = row * m.ldc + n0 + j;
        float sum = s.out[r][j];
        if (m0 + r >= M || n0 + j >= m.N) continue;
        if (list.op == SWIGLU) {
            float b = s.out[r][BN / 2 + j];
            m.c[at] = sum;
            m.c[at + m.N] = b;
            put(m.extra, m.twin, row * m.ld_extra + n0 + j, sum / (1 + expf(-sum)) * b);
        } else if (list.op == SOFTMAX_BACKWARD)
            put(m.c, m.twin, at, m.c[at] * (sum - m.extra[row]) * list.scale);
        else
            put(m.c, m.twin, at, m.add ? sum + m.add[at] : sum);
    }
}

/* The kernel. causal: C (forward), A (input) or A's transpose (weight) is a lower triangle with
   queries as rows and keys as columns. Tiles above the diagonal are skipped, and inner sums end or
   start at the diagonal. Numbers above it inside a tile are already 0. */
template <typename T, int FORM, int BM>
__global__ void __launch_bounds__(2 * BM) multiply(const __grid_constant__ List list) {
    typedef Tile<T, FORM, BM> S;
    SHARED(S, s);
    list_tiles(s.start, list, FORM, BM);
    for (int tile = blockIdx.x; tile < s.start[list.n]; tile += gridDim.x) {
        int e = member_of(s.start, list.n, tile);
        const Member &m = list.m[e];
        int first = m.rows ? m.rows[0] : 0, rows = m.rows ? m.rows[1] - first : -1;
        int M = FORM == WEIGHT || rows < 0 ? m.M : rows, K = FORM == WEIGHT && m.rows ? rows : m.K;
        int down = (M + BM - 1) / BM, m0 = (tile - s.start[e]) % down * BM;
        int half = list.op == SWIGLU ? BN / 2 : BN, jump = list.op == SWIGLU ? m.N : 0;
        int n0 = (tile - s.start[e]) / down * half;   /* SwiGLU: half of W1, half of W3 */
        int k0 = 0, k_end = K, steps;
        if (list.causal && FORM == FORWARD && n0 >= m0 + BM) continue;
        if (list.causal && FORM == INPUT) k_end = min(K, m0 + BM);
        if (list.causal && FORM == WEIGHT) k0 = m0;
        steps = (k_end - k0 + S::BK - 1) / S::BK;

        auto load = [&](int step) {   /* starts to copy the operands of one step */
            const bool forward = FORM == FORWARD, weight = FORM == WEIGHT;
            int k = k0 + step * S::BK, stage = step % STAGES, b_first = weight ? first : 0;
            if (step < steps) {
                load_tile<S::A_ROWS, S::A_COLS>(
                    s.in.a[stage], (const T *)m.a, m.lda, m.a_at, m.whole_a,
                    first + (weight ? k : m0), first + (weight ? k_end : M),
                    weight ? m0 : k, weight ? M : k_end, BM, 0);
                load_tile<S::B_ROWS, S::B_COLS>(
                    s.in.b[stage], (const T *)m.b, m.ldb, m.b_at, m.whole_b,
                    forward ? n0 : b_first + k, forward ? m.N : b_first + k_end,
                    forward ? k : n0, forward ? k_end : m.N, half, jump);
            }
            __pipeline_commit();
        };

        Sums<T, FORM, BM> sums;
        sums.clear();
        for (int step = 0; step < STAGES - 1; step++) load(step);
        for (int step = 0; step < steps; step++) {
            __pipeline_wait_prior(STAGES - 2);   /* this thread's copies have arrived, */
            __syncthreads();                     /* all copies have; the last step is done: */
            load(step + STAGES - 1);             /* its buffer is free */
            sums.add(s, step % STAGES);
        }
        __syncthreads();   /* the operands are used: the sums may overwrite them */
        sums.give(s);
        __syncthreads();
        finish_tile(s, list, m, BM, (FORM == WEIGHT ? 0 : (size_t)first) + m0, m0, M, n0);
        __syncthreads();   /* the sums are read: the next operands may overwrite them */
    }
}

/* As many blocks as fit on the device at once, but at most one per tile. */
template <typename T, int FORM, int BM> void multiply_launch(const List &list) {
    static int resident;
    const size_t bytes = sizeof(Tile<T, FORM, BM>);
    void (*kernel)(const List) = multiply<T, FORM, BM>;
    static_assert(sizeof(Tile<T, FORM, BM>) <= 48 << 10, "what devices give without being asked");
    if (!resident && !ok(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 2 * BM,
                                                                       bytes), "multiply"))
        return;
    launch("multiply", kernel, (size_t)device.blocks * max(resident, 1), 2 * BM, bytes, list);
}

/* From the sizes that the host knows. The unknown size counts as 0. */
double size_of(const Member &m) { return (double)m.N * (m.M + m.K); }

template <typename T, int BM> void multiply_form(const List &list, int form) {
    if (form == FORWARD) multiply_launch<T, FORWARD, BM>(list);
    else if (form == INPUT) multiply_launch<T, INPUT, BM>(list);
    else multiply_launch<T, WEIGHT, BM>(list);
}

/* Tiles of 128 rows use each loaded number twice as often, but they need many rows. Wide models are
   trained with batches that have enough. */
void multiply_list(const List &list, int form, int is_bf16) {
    if (!list.n) return;
    if (!is_bf16) multiply_form<float, 64>(list, form);
    else if (size_of(list.m[0]) < 512 * 512) multiply_form<bf16, 64>(list, form);
    else multiply_form<bf16, 128>(list, form);
}

/* Fills in the operands: floats, or their twins. Returns whether they are bf16. */
int set_operands(Member *m, const float *a, int lda, const float *b, int ldb) {
    const bf16 *a_twin = twin(a), *b_twin = a_twin ? twin(b) : NULL;
    int chunk = b_twin ? 8 : 4;
    m->a = b_twin ? (const void *)a_twin : a;
    m->b = b_twin ? (const void *)b_twin : b;
    m->lda = lda, m->ldb = ldb;
    m->whole_a = lda % chunk == 0 && (uintptr_t)m->a % 16 == 0;
    m->whole_b = ldb % chunk == 0 && (uintptr_t)m->b % 16 == 0;
    return b_twin != NULL;
}

/* A list of linear maps, the largest first. h: NULL, or receives SwiGLU of y's two halves. */
void linear(const hmoe_linear *maps, int n, int form, float *h, int ldh) {
    const int forward = form == FORWARD, weight = form == WEIGHT;
    int is_bf16 = 0;
    List list;
    memset(&list, 0, offsetof(List, m));
    list.op = h ? SWIGLU : STORE;
    for (int i = 0; i < n; i++) {
        const hmoe_linear *map = &maps[i];
        Member m = Member();
        int at = list.n++;   /* below MEMBERS: a list has at most one member per expert */
        is_bf16 = set_operands(&m, forward ? map->x : map->y, forward ? map->ldx : map->ldy,
                               weight ? map->x : map->w, weight ? map->ldx : map->in);
        m.rows = map->rows;
        m.a_at = forward ? map->x_row : map->y_row, m.b_at = weight ? map->x_row : NULL;
        m.c = forward ? map->y : weight ? map->w : map->x;
        m.ldc = forward ? map->ldy : weight ? map->in : map->ldx;
        m.add = weight ? map->w : map->add;
        m.M = weight ? map->out : 0, m.N = forward ? map->out : map->in;
        m.K = forward ? map->in : weight ? 0 : map->out;
        if (h) m.N /= 2, m.extra = h, m.twin = twin(h), m.ld_extra = ldh;
        for (; at && size_of(m) > size_of(list.m[at - 1]); at--) list.m[at] = list.m[at - 1];
        list.m[at] = m;
    }
    multiply_list(list, form, is_bf16);
}

void linear_forward(const hmoe_linear *list, int n) { linear(list, n, FORWARD, NULL, 0); }
void linear_backward_input(const hmoe_linear *list, int n) { linear(list, n, INPUT, NULL, 0); }
void linear_backward_weight(const hmoe_linear *list, int n) { linear(list, n, WEIGHT, NULL, 0); }

/* The experts' first half, in one launch. A tile has 32 columns of W1 x and the same 32 of W3 x, so
   it can compute SwiGLU. */
void experts_up(float *h, const hmoe_linear *list, const int *, const int *, int E,
                int ldh) {
    linear(list, E, FORWARD, h, ldh);
}

/* ---------------------------------------------------------------------------------------------
   ATTENTION - uses the same kernel, for B * NH products of the queries, keys and values of a head.
   Their rows are C + 2 KV apart. att is a lower triangle; tiles above the diagonal are skipped. For
   long contexts, a fused kernel that never stores att would need less memory. */

/* The matrices of all heads. `share` heads of queries, one after another, have the same one. */
struct Head {
    const float *x;
    size_t batch, step;   /* from one sequence, and from one matrix, to the next */
    int ld, share;
    const float *of(size_t b, size_t head) const { return x + b * batch + head / share * step; }
};

/* If heads share the result c, their products are added up, one launch after another. */
void attention_product(int form, int op, float scale, Head a, Head b, Head c, const float *extra,
                       int M, int N, int K, int B, int NH) {
    List list;
    int group = c.share, results = B * NH / group;
    for (int first = 0; first < group; first++)
        for (int done = 0; done < results; done += MEMBERS) {
            int is_bf16 = 0;
            memset(&list, 0, offsetof(List, m));
            list.op = op, list.causal = 1, list.scale = scale;
            for (int i = done; i < results && i < done + MEMBERS; i++) {
                Member m = Member();
                size_t at = (size_t)i * group + first, batch = at / NH, head = at % NH;
                is_bf16 = set_operands(&m, a.of(batch, head), a.ld, b.of(batch, head), b.ld);
                m.c = (float *)c.of(batch, head), m.ldc = c.ld;
                m.add = first ? m.c : NULL;
                m.M = M, m.N = N, m.K = K;
                if (extra) m.extra = (float *)extra + at * M;
                if (extra || form == INPUT) m.twin = twin(m.c);   /* out and ds become operands */
                list.m[list.n++] = m;
            }
            multiply_list(list, form, is_bf16);
        }
}

/* Row i of a head becomes softmax(scale * scores) over j <= i, then 0. One warp per row. */
__global__ void softmax_causal(float *att, bf16 *twin, float scale, size_t rows, int T) {
    EACH_WARP(row, rows) {
        float *p = att + row * T, max = -INFINITY, sum = 0;
        int i = row % T;
        for (int j = lane(); j <= i; j += 32) max = fmaxf(max, p[j]);
        max = warp_max(max);
        for (int j = lane(); j <= i; j += 32) sum += expf(scale * (p[j] - max));
        sum = 1 / warp_sum(sum);
        for (int j = lane(); j < T; j += 32)
            put(att, twin, row * T + j, j <= i ? expf(scale * (p[j] - max)) * sum : 0);
    }
}

void attention_forward(float *out, float *att, const float *qkv, int B, int T, int NH, int NKV,
                       int hs) {
    size_t C = (size_t)NH * hs, KV = (size_t)NKV * hs, row = C + 2 * KV, TT = (size_t)T * T;
    Head q = { qkv, T * row, (size_t)hs, (int)row, 1 }, k = q, v;
    Head p = { att, NH * TT, TT, T, 1 }, o = { out, T * C, (size_t)hs, (int)C, 1 };
    k.x += C, k.share = NH / NKV, v = k, v.x += KV;
    attention_product(FORWARD, STORE, 1, q, k, p, NULL, T, T, hs, B, NH);
    LAUNCH_WARPS(softmax_causal, (size_t)B * NH * T, att, twin(att), 1 / sqrtf((float)hs),
                 (size_t)B * NH * T, T);
    attention_product(INPUT, STORE, 1, p, v, o, NULL, T, hs, T, B, NH);
}

/* D[head][t] = dout_t . out_t, which the gradient of the softmax subtracts. One warp per t. Also
   writes dout's twin, because a product has computed dout. */
__global__ void attention_dots(float *D, const float *dout, bf16 *twin, const float *out, int B,
                               int T, int NH, int hs) {
    EACH_WARP(item, (size_t)B * NH * T) {
        size_t t = item % T, head = item / T % NH, b = item / T / NH;
        size_t at = ((b * T + t) * NH + head) * hs;
        float sum = 0;
        for (int i = lane(); i < hs; i += 32) {
            sum += dout[at + i] * out[at + i];
            if (twin) twin[at + i] = __float2bfloat16(dout[at + i]);
        }
        sum = warp_sum(sum);
        if (lane() == 0) D[item] = sum;
    }
}

/* dv = p^T dout;  ds = p (dout v^T - D) / sqrt(hs), in place of p;  dq = ds k;  dk = ds^T q */
void attention_backward(float *dqkv, float *datt, const float *dout, const float *out, float *att,
                        const float *qkv, int B, int T, int NH, int NKV, int hs) {
    size_t C = (size_t)NH * hs, KV = (size_t)NKV * hs, row = C + 2 * KV, TT = (size_t)T * T;
    size_t rows = (size_t)B * NH * T;
    Head q = { qkv, T * row, (size_t)hs, (int)row, 1 }, k = q, v, dq = q, dk, dv;
    Head p = { att, NH * TT, TT, T, 1 }, d_o = { dout, T * C, (size_t)hs, (int)C, 1 };
    k.x += C, k.share = NH / NKV, v = k, v.x += KV;
    dk = k, dv = v, dq.x = dqkv, dk.x = dqkv + C, dv.x = dk.x + KV;
    LAUNCH_WARPS(attention_dots, rows, datt, dout, twin(dout), out, B, T, NH, hs);
    attention_product(WEIGHT, STORE, 1, p, d_o, dv, NULL, T, hs, T, B, NH);
    attention_product(FORWARD, SOFTMAX_BACKWARD, 1 / sqrtf((float)hs), d_o, v, p, datt, T, T, hs,
                      B, NH);
    attention_product(INPUT, STORE, 1, p, k, dq, NULL, T, hs, T, B, NH);
    attention_product(WEIGHT, STORE, 1, p, q, dk, NULL, T, hs, T, B, NH);
}

/* ---------------------------------------------------------------------------------------------
   LAYERS - hmoe.h has the formulas, beside functions of the same names. */
__global__ void embed_forward_kernel(float *x, const int *tokens, const float *w, size_t n, int C) {
    EACH(i, n) x[i] = w[(size_t)tokens[i / C] * C + i % C];
}
void embed_forward(float *x, const int *tokens, const float *w, int N, int C) {
    LAUNCH(embed_forward_kernel, (size_t)N * C, x, tokens, w, (size_t)N * C, C);
}

/* One block per token position. If the same token stands earlier, the block ends; otherwise it adds
   the rows of all positions with this token, in order. A warp searches 32 positions at a time. */
__global__ void embed_backward_kernel(float *dw, const int *tokens, const float *dx, int N, int C) {
    int t = blockIdx.x, token = tokens[t];
    for (int at = 0; at < N; at += 32) {
        unsigned same = __ballot_sync(~0u, at + lane() < N && tokens[at + lane()] == token);
        for (; same; same &= same - 1) {
            int other = at + __ffs((int)same) - 1;
            if (other < t) return;   /* it stands earlier: that block adds it */
            for (int i = threadIdx.x; i < C; i += THREADS)
                dw[(size_t)token * C + i] += dx[(size_t)other * C + i];
        }
    }
}
void embed_backward(float *dw, const int *tokens, const float *dx, int N, int C) {
    LAUNCH_BLOCKS(embed_backward_kernel, N, dw, tokens, dx, N, C);
}

/* 1 / rms. NaN if the sum overflowed: 1 / infinity is 0, which looks valid. */
__device__ float rrms_of(float sum, int n, float eps) {
    return isfinite(sum) ? 1 / sqrtf(sum / n + eps) : sum - sum;
}
__global__ void rmsnorm_forward_kernel(float *y, bf16 *twin, float *rrms, const float *x,
                                       const float *w, float eps, int N, int C) {
    EACH_WARP(t, N) {
        float sum = 0, r;
        for (int i = lane(); i < C; i += 32) sum += x[t * C + i] * x[t * C + i];
        r = rrms_of(warp_sum(sum), C, eps);
        for (int i = lane(); i < C; i += 32) put(y, twin, t * C + i, w[i] * x[t * C + i] * r);
        if (lane() == 0) rrms[t] = r;
    }
}
void rmsnorm_forward(float *y, float *rrms, const float *x, const float *w, double eps, int N,
                     int C) {
    LAUNCH_WARPS(rmsnorm_forward_kernel, N, y, twin(y), rrms, x, w, (float)eps, N, C);
}

/* Computes dx. Overwrites dy with dy x / rms(x); the sum of its rows is dw. */
__global__ void rmsnorm_backward_kernel(float *dx, bf16 *twin, float *dy, const float *x,
                                        const float *w, const float *rrms, int N, int C) {
    EACH_WARP(t, N) {
        float mean = 0, r = rrms[t];
        for (int i = lane(); i < C; i += 32) mean += w[i] * dy[t * C + i] * x[t * C + i];
        mean = warp_sum(mean) * r / C;
        for (int i = lane(); i < C; i += 32) {
            size_t at = t * C + i;
            put(dx, twin, at, dx[at] + r * (w[i] * dy[at] - x[at] * r * mean));
            dy[at] *= x[at] * r;
        }
    }
}

/* dw[i] += sum over rows of x[row][i]. A block adds 32 columns, each warp every eighth row. */
__global__ void add_columns(float *dw, const float *x, int N, int C) {
    SHARED(Parts<float[32]>, s);
    int i = blockIdx.x * 32 + lane(), warp = threadIdx.x / 32;
    float sum = 0;
#pragma unroll 8
    for (int t = warp; t < N; t += WARPS) sum += x[(size_t)t * C + min(i, C - 1)];
    s.part[warp][lane()] = sum;
    __syncthreads();
    if (warp == 0 && i < C) {
        for (int other = 1; other < WARPS; other++) sum += s.part[other][lane()];
        dw[i] += sum;
    }
}
void rmsnorm_backward(float *dx, float *dw, float *dy, const float *x, const float *w,
                      const float *rrms, int N, int C) {
    LAUNCH_WARPS(rmsnorm_backward_kernel, N, dx, twin(dx), dy, x, w, rrms, N, C);
    LAUNCH_BLOCKS(add_columns, (C + 31) / 32, dw, dy, N, C);
}

/* One thread rotates one pair of q or k. v is only copied to the twin. */
__global__ void rope_kernel(float *qkv, bf16 *twin, const float *angles, int direction,
                            size_t pairs, int T, int NH, int NKV, int hs) {
    int heads = NH + 2 * NKV;
    EACH(pair, pairs) {
        int i = pair % (hs / 2), head = pair / (hs / 2) % heads;
        size_t t = pair / (hs / 2) / heads, at = (t * heads + head) * hs + i;
        const float *angle = angles + t % T * hs + i;
        float a = qkv[at], b = qkv[at + hs / 2], c = 1, s = 0;
        if (head < NH + NKV) c = angle[0], s = direction * angle[hs / 2];
        put(qkv, twin, at, a * c - b * s);
        put(qkv, twin, at + hs / 2, b * c + a * s);
    }
}
void rope(float *qkv, const float *angles, int direction, int B, int T, int NH, int NKV, int hs) {
    size_t pairs = (size_t)B * T * (NH + 2 * NKV) * (hs / 2);
    LAUNCH(rope_kernel, pairs, qkv, twin(qkv), angles, direction, pairs, T, NH, NKV, hs);
}

struct Widths { int H[HMOE_MAX_EXPERTS]; };

/* One warp per row. hmoe__swiglu_row_backward has the formulas. */
__global__ void swiglu_backward_kernel(float *u, bf16 *u_twin, float *h, bf16 *h_twin, float *dgate,
                                       const float *dh, const int *start, const float *row_gate,
                                       const __grid_constant__ Widths widths, int E, int ldh) {
    EACH_WARP(row, start[E]) {
        int e = member_of(start, E, row), H = widths.H[e];
        size_t a_at = row * 2 * ldh, h_at = row * ldh;
        float g = row_gate[row], dg = 0;
        for (int i = lane(); i < H; i += 32) {
            float a = u[a_at + i], b = u[a_at + H + i], s = 1 / (1 + expf(-a)), d = dh[h_at + i];
            dg += d * a * s * b;
            put(u, u_twin, a_at + i, g * d * b * s * (1 + a * (1 - s)));
            put(u, u_twin, a_at + H + i, g * d * a * s);
            put(h, h_twin, h_at + i, g * a * s * b);
        }
        dg = warp_sum(dg);
        if (lane() == 0) dgate[row] = dg;
    }
}
void swiglu_backward(float *u, float *h, float *dgate, const float *dh, const int *start,
                     const float *row_gate, const int *H, int E, int ldh) {
    Widths widths;   /* the host does not know the number of rows */
    memcpy(widths.H, H, (size_t)E * sizeof *H);
    LAUNCH_BLOCKS(swiglu_backward_kernel, device.blocks * 8, u, twin(u), h, twin(h), dgate, dh,
                  start, row_gate, widths, E, ldh);
}

/* The same bits as hmoe_random and hmoe_normal of hmoe.h. */
__device__ uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
__device__ uint64_t random_bits(uint64_t seed, uint64_t what, uint64_t i, uint64_t j) {
    return mix(mix(mix(mix(seed) ^ what) ^ i) ^ j);
}
enum { FOR_NOISE = 1 << 16, FOR_DROPOUT = FOR_NOISE + 2 };   /* as in hmoe.h */

__device__ double normal(uint64_t key, uint64_t i, uint64_t j) {
    uint64_t bits = random_bits(key, FOR_NOISE, i, j);
    double u = ((double)(bits >> 32) + 0.5) / 4294967296.0;
    double v = (double)(bits & 0xffffffffu) / 4294967296.0;
    return sqrt(-2 * log(u)) * cospi(2 * v);
}

/* One thread per four numbers, which share 64 random bits. */
__global__ void dropout_kernel(float *y, bf16 *twin, const float *x, const float *dy,
                               uint64_t limit, float scale, uint64_t key, int first, size_t fours,
                               int C) {
    EACH(four, fours) {
        size_t t = four / ((C + 3) / 4);
        int q = four % ((C + 3) / 4);
        uint64_t bits = mix(random_bits(key, FOR_DROPOUT, (uint64_t)first + t, 0) ^ (uint64_t)q);
        for (int i = 4 * q; i < C && i < 4 * q + 4; i++, bits >>= 16) {
            size_t at = t * C + i;
            float mask = (bits & 0xffff) < limit ? 0 : scale;
            put(y, twin, at, dy ? mask * dy[at] : x[at] + mask * (y[at] - x[at]));
        }
    }
}
void dropout(float *y, const float *x, const float *dy, double p, uint64_t key, int first, int N,
             int C) {
    size_t fours = (size_t)N * ((C + 3) / 4);
    LAUNCH(dropout_kernel, fours, y, twin(y), x, dy, (uint64_t)(p * 65536), (float)(1 / (1 - p)),
           key, first, fours, C);
}
void dropout_forward(float *y, const float *x, double p, uint64_t key, int first, int N, int C) {
    dropout(y, x, NULL, p, key, first, N, C);
}
void dropout_backward(float *dblock, const float *dy, double p, uint64_t key, int first, int N,
                      int C) {
    dropout(dblock, NULL, dy, p, key, first, N, C);
}

/* The log of the sum of exp(x), computed by a warp. */
__device__ float log_sum_exp(const float *x, int n) {
    float max = -INFINITY, sum = 0;
    for (int i = lane(); i < n; i += 32) max = fmaxf(max, x[i]);
    max = warp_max(max);
    for (int i = lane(); i < n; i += 32) sum += expf(x[i] - max);
    return max + logf(warp_sum(sum));
}

/* Writes ce. If ce is NULL, overwrites the logits with their gradient. */
__global__ void cross_entropy_kernel(float *ce, float *logits, bf16 *twin, const int *targets,
                                     float scale, int N, int V) {
    EACH_WARP(t, N) {
        float lse = log_sum_exp(logits + t * V, V);
        if (ce && lane() == 0) ce[t] = lse - logits[t * V + targets[t]];
        for (int i = lane(); i < V && !ce; i += 32)
            put(logits, twin, t * V + i,
                scale * (expf(logits[t * V + i] - lse) - (i == targets[t] ? 1 : 0)));
    }
}
void cross_entropy_forward(float *ce, const float *logits, const int *targets, int N, int V) {
    LAUNCH_WARPS(cross_entropy_kernel, N, ce, (float *)logits, (bf16 *)NULL, targets, 1.0f, N, V);
}
void cross_entropy_backward(float *logits, const int *targets, double scale, int N, int V) {
    LAUNCH_WARPS(cross_entropy_kernel, N, (float *)NULL, logits, twin(logits), targets,
                 (float)scale, N, V);
}

/* ---------------------------------------------------------------------------------------------
   ROUTER - the steps of hmoe.h, one warp or one thread per token. */
/* softplus of raw, and 1 / rms over the experts of a token: hmoe__noise_row. */
__device__ float softplus(float raw) {
    return fmaxf(raw, 0) + (float)log1p(exp(-fabs((double)raw)));
}
__device__ float noise_rrms(const float *raw, float eps, int E) {
    float sum = 0;
    for (int e = 0; e < E; e++) sum += softplus(raw[e]) * softplus(raw[e]);
    return rrms_of(sum, E, eps);
}

__global__ void noise_forward_kernel(float *logits, const float *raw, const float *gain, float eps,
                                     uint64_t key, int first, int N, int E) {
    EACH(t, N) {
        float rrms = noise_rrms(raw + t * E, eps, E);
        for (int e = 0; e < E; e++)
            logits[t * E + e] += (float)normal(key, (uint64_t)first + t, e) * gain[e]
                                 * softplus(raw[t * E + e]) * rrms;
    }
}
void noise_forward(const hmoe_routes *routes, const float *raw, const float *gain, double eps,
                   uint64_t key, int first, int N, int E) {
    LAUNCH(noise_forward_kernel, N, routes->logits, raw, gain, (float)eps, key, first, N, E);
}

/* dgain. One block per expert. */
__global__ void noise_gain_kernel(float *dgain, const float *dr, const float *raw, float eps,
                                  uint64_t key, int first, int N, int E) {
    SHARED(Parts<double>, s);
    int e = blockIdx.x;
    double sum = 0;
    for (size_t t = threadIdx.x; t < (size_t)N; t += THREADS)
        sum += dr[t * E + e] * (float)normal(key, (uint64_t)first + t, e)
               * softplus(raw[t * E + e]) * noise_rrms(raw + t * E, eps, E);
    sum = block_sum(sum, s.part);
    if (threadIdx.x == 0) dgain[e] += (float)sum;
}

/* draw. One thread per token. draw may be the same array as raw: the mean is computed before
   anything is written, and each number is read before it is overwritten. */
__global__ void noise_backward_kernel(float *draw, bf16 *twin, const float *dr, const float *raw,
                                      const float *gain, float eps, uint64_t key, int first, int N,
                                      int E) {
    EACH(t, N) {
        float rrms = noise_rrms(raw + t * E, eps, E), mean = 0;
        for (int e = 0; e < E; e++)
            mean += gain[e] * dr[t * E + e] * (float)normal(key, (uint64_t)first + t, e)
                    * softplus(raw[t * E + e]) * rrms / E;
        for (int e = 0; e < E; e++) {
            float dy = dr[t * E + e] * (float)normal(key, (uint64_t)first + t, e);
            float x = raw[t * E + e], dz = rrms * (gain[e] * dy - softplus(x) * rrms * mean);
            put(draw, twin, t * E + e, dz / (1 + expf(-x)));
        }
    }
}
void noise_backward(float *draw, float *dgain, const hmoe_routes *routes, const float *raw,
                    const float *gain, double eps, uint64_t key, int first, int N, int E) {
    LAUNCH_BLOCKS(noise_gain_kernel, E, dgain, routes->logits, raw, (float)eps, key, first, N, E);
    LAUNCH(noise_backward_kernel, N, draw, twin(draw), routes->logits, raw, gain, (float)eps, key,
           first, N, E);
}

__global__ void router_softmax_kernel(hmoe_routes routes, int N, int E) {
    EACH_WARP(t, N) {
        const float *r = routes.logits + t * E;
        float lse = log_sum_exp(r, E), entropy = 0;
        for (int e = lane(); e < E; e += 32) {
            float P = expf(r[e] - lse);
            routes.P[t * E + e] = P;
            entropy -= P * (r[e] - lse);
        }
        entropy = warp_sum(entropy);
        if (lane() == 0) routes.lse[t] = lse, routes.entropy[t] = entropy;
    }
}
void router_softmax(const hmoe_routes *routes, int N, int E) {
    LAUNCH_WARPS(router_softmax_kernel, N, *routes, N, E);
}

/* hmoe__choose, line by line. One thread per token. */
__global__ void choose_kernel(hmoe_routes routes, hmoe_routing routing, int K, double top_p,
                              int norm, int N, int E) {
    if (routes.top_p) top_p = *routes.top_p;
    EACH(t, N) {
        const float *P = routes.P + t * E;
        int *S = routes.expert + t * routes.slots, n = 0, last = -1, enough = 0;
        float *g = routes.gate + t * routes.slots, sum = 0;
        auto x = [&](int e) { return P[e] + (routes.bias ? routes.bias[e] : 0); };
        while (!enough) {
            int next = -1;
            for (int e = 0; e < E; e++) {
                int after = last < 0 || x(e) < x(last) || (x(e) == x(last) && e > last);
                if (after && (next < 0 || x(e) > x(next))) next = e;
            }
            if (next < 0) next = n;
            S[n] = last = next;
            g[n++] = P[next];
            sum += P[next];
            enough = n == E || (routing == HMOE_TOP_K ? n == K : top_p < 1 && sum >= top_p);
        }
        routes.count[t] = n;
        if (norm && sum != 0) for (int s = 0; s < n; s++) g[s] /= sum;
    }
}
void choose(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p, int norm, int N,
            int E) {
    LAUNCH(choose_kernel, N, *routes, routing, K, top_p, norm, N, E);
}

/* One block per expert. It counts the choices of the experts before it; its rows start there. Then
   it finds its own tokens in order, THREADS at a time. A thread's row is the number of choices
   before it: in its warp (a ballot) and in the warps before. */
__global__ void dispatch_kernel(hmoe_routes routes, int N, int E) {
    SHARED(Parts<int>, s);
    int e = blockIdx.x, slots = routes.slots, before = 0, mine = 0;
    size_t n = (size_t)N * slots;
    for (size_t i = threadIdx.x; i < n; i += THREADS)
        if ((int)(i % slots) < routes.count[i / slots]) {
            before += routes.expert[i] < e;
            mine += routes.expert[i] == e;
        }
    before = block_sum(before, s.part);
    mine = block_sum(mine, s.part);
    if (threadIdx.x == 0) routes.expert_start[e] = before;
    if (threadIdx.x == 0 && e == E - 1) routes.expert_start[E] = before + mine;
    for (size_t first = 0; first < n; first += THREADS) {
        size_t i = first + threadIdx.x;
        int is_mine = i < n && (int)(i % slots) < routes.count[i / slots] && routes.expert[i] == e;
        unsigned ballot = __ballot_sync(~0u, is_mine);
        int row = before + __popc(ballot & ((1u << lane()) - 1));
        if (lane() == 0) s.part[threadIdx.x / 32] = __popc(ballot);
        __syncthreads();
        for (int w = 0; w < WARPS; w++) {
            if (w < (int)threadIdx.x / 32) row += s.part[w];
            before += s.part[w];
        }
        if (is_mine) {
            routes.row[i] = row;
            routes.row_token[row] = (int)(i / slots);
            routes.row_gate[row] = routes.gate[i];
        }
        __syncthreads();
    }
}
void dispatch(const hmoe_routes *routes, int N, int E) {
    LAUNCH_BLOCKS(dispatch_kernel, E, *routes, N, E);
}

/* One block per sum: P of each expert, the entropies, lse^2; and the counts. */
__global__ void router_sums_kernel(hmoe_sums sums, hmoe_routes routes, int N, int E) {
    SHARED(Parts<double>, s);
    int which = blockIdx.x;
    double sum = 0;
    for (size_t t = threadIdx.x; t < (size_t)N && which < E + 2; t += THREADS) {
        double lse = routes.lse[t];
        sum += which < E ? (double)routes.P[t * E + which]
                         : which == E ? (double)routes.entropy[t] : lse * lse;
    }
    sum = block_sum(sum, s.part);
    if (threadIdx.x == 0) {
        double *to = which < E ? &sums.P[which] : which == E ? sums.entropy
                     : which == E + 1 ? sums.lse2 : sums.rows;
        *to = which < E + 2 ? sum : routes.expert_start[E];
        if (which < E)
            sums.count[which] = routes.expert_start[which + 1] - routes.expert_start[which];
    }
}
void router_sums(double *sums, const hmoe_routes *routes, int N, int E) {
    LAUNCH_BLOCKS(router_sums_kernel, E + 3, hmoe_sums_in(sums, E), *routes, N, E);
}

/* dP of one expert: from the losses, and from the gate if the expert was chosen. */
__device__ float dP_of(const hmoe_routes &routes, size_t t, int e, const float *dgate, float dP,
                       float dg_g, float P_chosen) {
    for (size_t s = t * routes.slots; s < t * routes.slots + routes.count[t]; s++)
        if (routes.expert[s] == e) dP += (dgate[routes.row[s]] - dg_g) / P_chosen;
    return dP;
}

/* hmoe__router_backward. One thread per token. */
__global__ void router_backward_kernel(hmoe_routes routes, bf16 *twin, const float *dgate,
                                       const float *dP_all, float d_entropy, float d_lse2, int norm,
                                       int N, int E) {
    EACH(t, N) {
        const float *P = routes.P + t * E, *r = routes.logits + t * E;
        float dg_g = 0, P_chosen = 0, mean = 0, lse = routes.lse[t];
        for (size_t s = t * routes.slots; s < t * routes.slots + routes.count[t]; s++) {
            dg_g += dgate[routes.row[s]] * routes.gate[s];
            P_chosen += P[routes.expert[s]];
        }
        if (!norm) dg_g = 0, P_chosen = 1;
        if (P_chosen == 0) dg_g = 0, P_chosen = INFINITY;   /* the gates are 0 and stay so */
        for (int e = 0; e < E; e++)
            mean += dP_of(routes, t, e, dgate, dP_all[e], dg_g, P_chosen) * P[e];
        for (int e = 0; e < E; e++)
            put(routes.logits, twin, t * E + e,
                P[e] * (dP_of(routes, t, e, dgate, dP_all[e], dg_g, P_chosen) - mean
                        + d_lse2 * 2 * lse - d_entropy * (r[e] - lse + routes.entropy[t])));
    }
}
void router_backward(const hmoe_routes *routes, const float *dgate, const float *dP_all,
                     double d_entropy, double d_lse2, int norm, int N, int E) {
    LAUNCH(router_backward_kernel, N, *routes, twin(routes->logits), dgate, dP_all,
                 (float)d_entropy, (float)d_lse2, norm, N, E);
}

/* y = x + sum of g rows; backward: y = sum of rows. One thread per number. */
__global__ void combine_kernel(float *y, const float *x, const float *rows, hmoe_routes routes,
                               size_t n, int C) {
    EACH(i, n) {
        size_t slot = i / C * routes.slots;
        float sum = x ? x[i] : 0;
        for (int s = 0; s < routes.count[i / C]; s++)
            sum += (x ? routes.gate[slot + s] : 1) * rows[(size_t)routes.row[slot + s] * C + i % C];
        y[i] = sum;
    }
}
void combine_forward(float *y, const float *x, const float *rows, const hmoe_routes *routes, int N,
                     int C) {
    LAUNCH(combine_kernel, (size_t)N * C, y, x, rows, *routes, (size_t)N * C, C);
}
void combine_backward(float *dx, const float *drows, const hmoe_routes *routes, int N, int C) {
    LAUNCH(combine_kernel, (size_t)N * C, dx, (const float *)NULL, drows, *routes, (size_t)N * C,
           C);
}

/* ---------------------------------------------------------------------------------------------
   OPTIMIZER */
__global__ void squared_norm_kernel(double *sums, const float *g, size_t n) {
    SHARED(Parts<double>, s);
    double sum = 0;
    EACH(i, n) sum += (double)g[i] * g[i];
    sum = block_sum(sum, s.part);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
double squared_norm(const float *g, size_t n) {
    double part[SUMS], sum = 0;
    LAUNCH_BLOCKS(squared_norm_kernel, SUMS, device.sums, g, n);
    download(part, device.sums, sizeof part);
    for (int i = 0; i < SUMS; i++) sum += part[i];
    return device.error ? NAN : sum;
}

__global__ void adamw_kernel(float *w, bf16 *twin, float *g, float *m, float *v, size_t n,
                             hmoe_rates r) {
    EACH(i, n) {
        float g_i = g[i] * r.scale;
        float m_i = r.beta1 * m[i] + (1 - r.beta1) * g_i;
        float v_i = r.beta2 * v[i] + (1 - r.beta2) * g_i * g_i;
        put(w, twin, i, w[i] - (r.step * m_i / (sqrtf(v_i) * r.root + 1e-8f) + r.decay * w[i]));
        m[i] = m_i, v[i] = v_i, g[i] = 0;
    }
}
void adamw(float *w, float *g, float *m, float *v, size_t n, const hmoe_rates *rates) {
    LAUNCH(adamw_kernel, n, w, twin(w), g, m, v, n, *rates);
}

/* ---------------------------------------------------------------------------------------------
   THE TABLE - in the order of struct hmoe_backend. The two backends differ in `alloc`, which marks
   arrays that may have a twin. */
#define BACKEND(name, alloc) { \
    name, synchronize, alloc, device_free, download, upload, zero, \
    linear_forward, linear_backward_input, linear_backward_weight, \
    router_softmax, choose, dispatch, router_sums, router_backward, noise_forward, noise_backward, \
    experts_up, swiglu_backward, combine_forward, combine_backward, \
    embed_forward, embed_backward, rmsnorm_forward, rmsnorm_backward, rope, attention_forward, \
    attention_backward, cross_entropy_forward, cross_entropy_backward, dropout_forward, \
    dropout_backward, squared_norm, adamw }
const hmoe_backend backend_float32 = BACKEND("cuda", device_alloc<HMOE_FLOAT32>);
const hmoe_backend backend_bf16 = BACKEND("cuda bf16", device_alloc<HMOE_BF16>);

}  /* namespace */

const hmoe_backend *hmoe_cuda(hmoe_precision precision, char *message) {
    char unused[HMOE_MESSAGE_SIZE], *text = message ? message : unused;
    int count = 0, which = 0, major = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (!e && !count) e = cudaErrorNoDevice;
    if (!e) e = cudaGetDevice(&which);
    if (!e) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, which);
    if (!e) e = cudaDeviceGetAttribute(&device.blocks, cudaDevAttrMultiProcessorCount, which);
    if (!e && !device.sums) e = cudaMalloc((void **)&device.sums, SUMS * sizeof *device.sums);
    cudaGetLastError();
    text[0] = 0;
    if (e) snprintf(text, HMOE_MESSAGE_SIZE, "no GPU can be used: %s", cudaGetErrorString(e));
    else if (precision == HMOE_BF16 && major < 8)
        snprintf(text, HMOE_MESSAGE_SIZE, "this GPU has no bf16, which begins with compute "
                 "capability 8.0: use float32");
    if (text[0]) return NULL;
    return precision == HMOE_BF16 ? &backend_bf16 : &backend_float32;
}
