/* cuda_on_cpu.h - runs a CUDA program on the processor, to test it where there is no GPU.

   A .cu file is compiled as C++17 with this directory first on the include path, where
   cuda_runtime.h, mma.h, cuda_bf16.h and cuda_pipeline.h all lead here. Every thread of a kernel is
   a fiber with a stack of its own; all of them take turns on one thread of the host, each running
   until it reaches a __syncthreads or something that its whole warp does together. What it finds:

     - barriers that some threads of a block do not reach, or reach elsewhere; deadlock
     - warp operations whose lanes differ in place or mask; shuffles from lanes outside the mask
     - memory never written (device and shared memory starts as NaN), and asynchronous copies not
       waited for (until the wait their target is NaN)
     - misaligned vectors, fragments and copies; copies in the wrong direction or out of bounds;
       launches that ask for more than there is
     - under ASan: accesses outside an allocation, and to device memory by the host
     - under gcc's TSan: races. Only launches, __syncthreads and __syncwarp order threads

   What it cannot find: rounding inside tensor cores, missing waits for a stream (all is done at
   once), mistakes in inline PTX, and how fast anything is.

   A kernel must be launched through cudaLaunchKernelEx, have dynamic shared memory only
   (coc::shared_memory), and use no cooperative groups, textures or waiting between blocks.

   COC_ORDER      0 threads run in ascending order, 1 in descending order, 2 at random
   COC_SEED       of the random order
   COC_RESIDENT   how many blocks run at the same time: 1; under TSan 4, which sees races between
                  two blocks unless one runs in the other's place after it */

#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tuple>
#include <type_traits>
#include <utility>
#ifndef __x86_64__
#include <ucontext.h>
#define COC_UCONTEXT
#endif

#define CUDA_ON_CPU 1
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800
#endif
#define CUDART_VERSION 13000
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static_shared_memory_is_not_emulated

/* The engine's own memory accesses are not the program's: no sanitizer looks at them. */
#if defined(__has_feature)   /* clang */
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#elif __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define COC_TSAN(...) __VA_ARGS__
#define COC_ENGINE __attribute__((no_sanitize("thread"), noinline))
extern "C" {
void *__tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void *);
void __tsan_switch_to_fiber(void *, unsigned);
void *__tsan_get_current_fiber(void);
void __tsan_acquire(void *);
void __tsan_release(void *);
}
#else
#define COC_TSAN(...)
#define COC_ENGINE __attribute__((noinline))
#endif
#if defined(__SANITIZE_ADDRESS__)
#define COC_ASAN(...) __VA_ARGS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define COC_ASAN(...)
#endif

/* ---------------------------------------------------------------------------------------------
   NUMBERS */

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct __nv_bfloat16 { uint16_t bits; };

inline float __bfloat162float(__nv_bfloat16 b) {
    uint32_t bits = (uint32_t)b.bits << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

inline __nv_bfloat16 __float2bfloat16(float f) {   /* to the nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (f != f) return { 0x7fff };
    bits += 0x7fff + ((bits >> 16) & 1);
    return { (uint16_t)(bits >> 16) };
}

inline double cospi(double x) { return cos(3.14159265358979323846 * x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

/* ---------------------------------------------------------------------------------------------
   THREADS */

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace coc {

enum { MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32, MAX_PENDING = 8, MAX_COPIES = 512 };
enum State : uint8_t { READY, WAITING, DONE };
struct Block;

struct Copy { void *to; const void *from; unsigned size, zeros; long group; };   /* asynchronous */

struct Fiber {
    void *sp;
    char *stack;
    Block *block;
    int id, line;             /* its thread's number; where it waits, */
    const char *what;         /*   and for what */
    State state;
    Copy *copy;               /* those not waited for yet are first_copy .. end_copy, mod MAX */
    unsigned first_copy, end_copy;
    long group;
#ifdef COC_UCONTEXT
    ucontext_t context;
#endif
    void *sanitizer;          /* what it knows this fiber by */
};

/* Something that the lanes in `mask` do together: each leaves its arguments, the last does it. */
struct Pending { unsigned mask, arrived; int line; const char *what; void *argument[32]; };

struct Block {
    Fiber *fiber;
    int threads, live;
    uint3 index;
    char *shared, *stacks;
    size_t shared_size, stacks_size;
    int at_barrier, barrier_line, barrier_phase, warp_phase[MAX_WARPS];
    Pending pending[MAX_WARPS][MAX_PENDING];
    uint64_t ready[MAX_THREADS / 64];
    long block_sync, barrier_sync[2], warp_sync[MAX_WARPS][2];   /* what TSan orders by */
};

inline int order = -1;               /* the settings; order -1: not read from the environment yet */
inline int resident = 1;
inline uint64_t random_state = 1;
inline size_t stack_size = 64 << 10;

inline void (*kernel)(void *);       /* the launch that is running */
inline void *kernel_arguments;
inline long start_sync, end_sync;
inline Fiber *current;
inline Fiber host;
inline const void *host_stack;
inline size_t host_stack_size;
inline Block *pool[64];

COC_ENGINE inline unsigned draw(unsigned below) {
    random_state ^= random_state << 13, random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)(random_state >> 20) % below;
}

[[noreturn]] COC_ENGINE inline void die(const char *message, int line = 0) {
    fflush(stdout);
    fprintf(stderr, "cuda_on_cpu: %s (line %d", message, line);
    if (current && current != &host)
        fprintf(stderr, ", block %u %u %u, thread %d", current->block->index.x,
                current->block->index.y, current->block->index.z, current->id);
    fprintf(stderr, ")\n");
    _Exit(77);
}

#ifndef COC_UCONTEXT
extern "C" void coc_switch(void **save, void *to);
__asm__(".text\n.weak coc_switch\n.type coc_switch,@function\ncoc_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size coc_switch,.-coc_switch\n");
#endif

COC_ENGINE inline void switch_to(Fiber *to) {
    Fiber *from = current;
    current = to;
    if (to != &host) {
        unsigned t = (unsigned)to->id, x = blockDim.x, y = blockDim.y;
        threadIdx = { t % x, t / x % y, t / (x * y) };
        blockIdx = to->block->index;
    }
    COC_ASAN(__sanitizer_start_switch_fiber(from->state == DONE ? nullptr : &from->sanitizer,
                                            to == &host ? host_stack : to->stack,
                                            to == &host ? host_stack_size : stack_size);)
    COC_TSAN(__tsan_switch_to_fiber(to->sanitizer, 1 /* orders nothing */);)
#ifdef COC_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    coc_switch(&from->sp, to->sp);
#endif
    COC_ASAN(__sanitizer_finish_switch_fiber(from->sanitizer, nullptr, nullptr);)
}

COC_ENGINE inline void fiber_main() {
    COC_ASAN(__sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_size);)
    COC_TSAN(__tsan_acquire(&start_sync); __tsan_acquire(&current->block->block_sync);)
    kernel(kernel_arguments);
    if (current->first_copy != current->end_copy) die("a thread ends with copies not waited for");
    COC_TSAN(__tsan_release(&end_sync); __tsan_release(&current->block->block_sync);)
    current->state = DONE;
    current->block->live--;
    switch_to(&host);
    abort();
}

COC_ENGINE inline void set_ready(Fiber *f) {
    f->state = READY;
    f->block->ready[f->id / 64] |= 1ull << f->id % 64;
}

COC_ENGINE inline void wait_for(const char *what, int line) {
    current->state = WAITING, current->what = what, current->line = line;
    switch_to(&host);
}

COC_ENGINE inline Fiber *next_ready(Block *b) {
    int words = (b->threads + 63) / 64, start = order == 2 ? (int)draw((unsigned)b->threads) : 0;
    for (int k = 0; k <= words; k++) {
        int w = order == 1 ? words - 1 - k % words : (start / 64 + k) % words, bit;
        uint64_t mask = b->ready[w];
        if (k == 0 && order != 1) mask &= ~0ull << start % 64;
        if (!mask) continue;
        bit = order == 1 ? 63 - __builtin_clzll(mask) : __builtin_ctzll(mask);
        b->ready[w] &= ~(1ull << bit);
        return &b->fiber[w * 64 + bit];
    }
    return nullptr;
}

COC_ENGINE inline char *map(size_t size) {
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die("no memory for the threads of a block");
    return (char *)p;
}

/* Stacks, each behind a page that must not be touched, and shared memory, where all is NaN. */
COC_ENGINE inline void block_memory(Block *b, int threads, size_t shared) {
    size_t per = stack_size + 4096, stacks = per * (size_t)threads;
    if (!b->fiber) b->fiber = (Fiber *)calloc(MAX_THREADS, sizeof(Fiber));
    if (b->stacks_size < stacks) {
        if (b->stacks) munmap(b->stacks, b->stacks_size);
        b->stacks = map(stacks), b->stacks_size = stacks;
        for (int i = 0; i < threads; i++) mprotect(b->stacks + per * (size_t)i, 4096, PROT_NONE);
    }
    if (b->shared_size != shared) {
        if (b->shared) munmap(b->shared, b->shared_size);
        b->shared = shared ? map(shared) : nullptr, b->shared_size = shared;
    }
    for (size_t i = 0; i < shared / 8; i++) ((volatile uint64_t *)b->shared)[i] = ~0ull;
}

COC_ENGINE inline void block_start(Block *b, uint3 index, int threads, size_t shared) {
    block_memory(b, threads, shared);
    b->index = index, b->threads = b->live = threads;
    b->at_barrier = b->barrier_phase = 0;
    memset(b->pending, 0, sizeof b->pending), memset(b->warp_phase, 0, sizeof b->warp_phase);
    for (int i = 0; i < threads; i++) {
        Fiber *f = &b->fiber[i];
        f->block = b, f->id = i, f->stack = b->stacks + (stack_size + 4096) * (size_t)i + 4096;
        f->first_copy = f->end_copy = 0, f->group = 0;
        COC_ASAN(f->sanitizer = nullptr; __asan_unpoison_memory_region(f->stack, stack_size);)
        COC_TSAN(if (!f->sanitizer) f->sanitizer = __tsan_create_fiber(0);)
#ifdef COC_UCONTEXT
        getcontext(&f->context);
        f->context.uc_stack.ss_sp = f->stack, f->context.uc_stack.ss_size = stack_size;
        makecontext(&f->context, fiber_main, 0);
#else   /* what coc_switch pops; not all stacks begin at one place in their page: caches */
        void **top = (void **)(f->stack + stack_size - i % 32 * 128);
        *--top = nullptr;
        *--top = (void *)fiber_main;
        for (int r = 0; r < 6; r++) *--top = nullptr;
        f->sp = top;
#endif
        set_ready(f);
    }
    COC_TSAN(__tsan_release(&start_sync);)   /* what the host did comes before the block */
}

[[noreturn]] COC_ENGINE inline void deadlock(const Block *b) {
    fprintf(stderr, "cuda_on_cpu: deadlock in block %u %u %u\n", b->index.x, b->index.y,
            b->index.z);
    for (int i = 0, j; i < b->threads; i = j) {
        const Fiber *f = &b->fiber[i];
        for (j = i; j < b->threads && b->fiber[j].state == f->state && b->fiber[j].line == f->line;)
            j++;
        if (f->state == DONE) fprintf(stderr, "  threads %d to %d: ended\n", i, j - 1);
        else fprintf(stderr, "  threads %d to %d: %s, line %d\n", i, j - 1, f->what, f->line);
    }
    _Exit(78);
}

COC_ENGINE inline void settings() {
    const char *s = getenv("COC_ORDER");
    order = s ? atoi(s) : 0;
    if ((s = getenv("COC_SEED"))) random_state = strtoull(s, nullptr, 10) * 0x9e3779b97f4a7c15u | 1;
    COC_TSAN(resident = 4; host.sanitizer = __tsan_get_current_fiber();)
    if ((s = getenv("COC_RESIDENT"))) resident = atoi(s) < 64 ? atoi(s) : 64;
    COC_ASAN(stack_size = 256 << 10;) COC_TSAN(stack_size = 80 << 10;)
}

COC_ENGINE inline void run_grid(dim3 grid, int threads, size_t shared) {
    uint64_t total = (uint64_t)grid.x * grid.y * grid.z, next = 0;
    Block *running[64];
    int active = 0;
    if (order < 0) settings();
    current = &host;
    while (next < total || active) {
        while (active < resident && next < total) {
            uint64_t i = order == 1 ? total - 1 - next : next;
            Block *b = nullptr;
            for (int k = 0; !b; k++) {   /* the first that is not running */
                if (!pool[k]) pool[k] = (Block *)calloc(1, sizeof(Block));
                b = pool[k];
                for (int a = 0; a < active; a++) if (running[a] == pool[k]) b = nullptr;
            }
            block_start(b, { (unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y),
                             (unsigned)(i / grid.x / grid.y) }, threads, shared);
            running[active++] = b, next++;
        }
        int a = order == 2 && active > 1 ? (int)draw((unsigned)active) : 0;
        Fiber *f = next_ready(running[a]);
        if (f) switch_to(f);
        else if (running[a]->live) deadlock(running[a]);
        else running[a] = running[--active];
    }
    COC_TSAN(__tsan_acquire(&end_sync);)
}

COC_ENGINE inline void barrier(int line) {
    Block *b = current->block;
    if (b->at_barrier == 0) b->barrier_line = line;
    else if (b->barrier_line != line) die("threads of a block are in different barriers", line);
    COC_TSAN(int phase = b->barrier_phase & 1; __tsan_release(&b->barrier_sync[phase]);)
    if (++b->at_barrier == b->threads) {
        b->at_barrier = 0, b->barrier_phase++;
        for (int i = 0; i < b->threads; i++) set_ready(&b->fiber[i]);
        switch_to(&host);
    } else wait_for("wait in __syncthreads", line);
    COC_TSAN(__tsan_acquire(&b->barrier_sync[phase]);)
}

/* Something that the lanes in mask do together. orders: does it order what they do in memory? */
typedef void (*Together)(void **argument, unsigned mask);
COC_ENGINE inline void together(const char *what, int line, unsigned mask, void *argument,
                                Together f, bool orders = false) {
    Block *b = current->block;
    int w = current->id / 32, lane = current->id % 32;
    Pending *p = nullptr, *free_one = nullptr;
    if (!(mask >> lane & 1)) die("a lane is not in the mask it gives", line);
    for (Pending &q : b->pending[w])
        if (q.arrived && q.mask == mask) p = &q;
        else if (q.arrived && (q.mask & mask)) die("warp operations with overlapping masks", line);
        else if (!q.arrived && !free_one) free_one = &q;
    if (!p) {
        if (!(p = free_one)) die("too many warp operations at a time", line);
        p->mask = mask, p->line = line, p->what = what;
    }
    if (p->line != line || p->what != what) die("lanes of a warp do different things", line);
    p->argument[lane] = argument, p->arrived |= 1u << lane;
    (void)orders;
    COC_TSAN(int phase = b->warp_phase[w] & 1; if (orders) __tsan_release(&b->warp_sync[w][phase]);)
    if (p->arrived == mask) {
        if (f) f(p->argument, mask);
        p->arrived = 0;
        COC_TSAN(if (orders) b->warp_phase[w]++;)
        for (unsigned m = mask & ~(1u << lane); m; m &= m - 1)
            set_ready(&b->fiber[w * 32 + __builtin_ctz(m)]);
        if (order == 2 && draw(4) == 0) {   /* at random a thread also stops where it need not */
            set_ready(current);
            switch_to(&host);
        }
    } else wait_for(what, line);
    COC_TSAN(if (orders) __tsan_acquire(&b->warp_sync[w][phase]);)
}

inline void *shared_memory(size_t size, size_t align) {
    if (size > current->block->shared_size) die("more shared memory used than the launch gives");
    if (align > 1024) die("shared memory is not aligned as this");
    return current->block->shared;
}
inline int lane() { return current->id % 32; }

}  /* namespace coc */

/* ---------------------------------------------------------------------------------------------
   WHAT THREADS OF A BLOCK OR WARP DO TOGETHER */

inline void __syncthreads(int line = __builtin_LINE()) { coc::barrier(line); }
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    coc::together("wait in __syncwarp", line, mask, nullptr, nullptr, true);
}

namespace coc {

struct Shuffle { uint64_t in, out; int from; };

COC_ENGINE inline void shuffle_all(void **argument, unsigned mask) {
    for (unsigned m = mask; m; m &= m - 1) {
        Shuffle *s = (Shuffle *)argument[__builtin_ctz(m)];
        if (!(mask >> s->from & 1)) die("a shuffle reads a lane outside its mask");
        s->out = ((Shuffle *)argument[s->from])->in;
    }
}

template <class T>
inline T shuffle(const char *what, unsigned mask, T value, int from, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a number");
    Shuffle s = { 0, 0, from };
    memcpy(&s.in, &value, sizeof value);
    together(what, line, mask, &s, shuffle_all);
    memcpy(&value, &s.out, sizeof value);
    return value;
}

struct Vote { int predicate; unsigned ballot; };

COC_ENGINE inline void vote_all(void **argument, unsigned mask) {
    unsigned ballot = 0;
    for (unsigned m = mask; m; m &= m - 1)
        if (((Vote *)argument[__builtin_ctz(m)])->predicate) ballot |= m & -m;
    for (unsigned m = mask; m; m &= m - 1) ((Vote *)argument[__builtin_ctz(m)])->ballot = ballot;
}

}  /* namespace coc */

template <class T>
inline T __shfl_sync(unsigned mask, T value, int from, int line = __builtin_LINE()) {
    return coc::shuffle("wait in __shfl_sync", mask, value, from & 31, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int x, int line = __builtin_LINE()) {
    return coc::shuffle("wait in __shfl_xor_sync", mask, value, coc::lane() ^ x, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int d, int line = __builtin_LINE()) {
    int at = coc::lane() + d;
    return coc::shuffle("wait in __shfl_down_sync", mask, value, at < 32 ? at : at - d, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int d, int line = __builtin_LINE()) {
    int at = coc::lane() - d;
    return coc::shuffle("wait in __shfl_up_sync", mask, value, at >= 0 ? at : at + d, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    coc::Vote vote = { predicate, 0 };
    coc::together("wait in __ballot_sync", line, mask, &vote, coc::vote_all);
    return vote.ballot;
}
/* Asynchronous copies are made only when they are waited for; until then their target is NaN. */
namespace coc {

inline void copy_now(const Copy &c) {   /* the sanitizers shall look at this */
    const uint16_t *from = (const uint16_t *)c.from;
    uint16_t *to = (uint16_t *)c.to;
    for (unsigned i = 0; i < c.size / 2; i++) to[i] = i < (c.size - c.zeros) / 2 ? from[i] : 0;
}

COC_ENGINE inline void finish_copies(size_t keep) {
    Fiber *f = current;
    for (; f->first_copy < f->end_copy; f->first_copy++) {
        const Copy &c = f->copy[f->first_copy % MAX_COPIES];
        if (c.group >= f->group - (long)keep) break;
        copy_now(c);
    }
}

COC_ENGINE inline void remember_copy(void *to, const void *from, size_t size, size_t zeros) {
    Fiber *f = current;
    const char *shared = f->block->shared;
    if ((size != 4 && size != 8 && size != 16) || zeros > size || zeros % 2
        || (uintptr_t)to % size || (uintptr_t)from % size) die("size or alignment of a copy");
    if ((char *)to < shared || (char *)to + size > shared + f->block->shared_size)
        die("an asynchronous copy to elsewhere than shared memory");
    if (!f->copy) f->copy = (Copy *)calloc(MAX_COPIES, sizeof(Copy));
    if (f->end_copy - f->first_copy == MAX_COPIES) die("too many copies at a time");
    f->copy[f->end_copy++ % MAX_COPIES] = { to, from, (unsigned)size, (unsigned)zeros, f->group };
}

COC_ENGINE inline void commit_copies() { current->group++; }

}  /* namespace coc */

inline void __pipeline_memcpy_async(void *to, const void *from, size_t size, size_t zeros = 0) {
    coc::remember_copy(to, from, size, zeros);
    for (size_t i = 0; i < size / 4; i++) ((uint32_t *)to)[i] = ~0u;
}
inline void __pipeline_commit() { coc::commit_copies(); }
inline void __pipeline_wait_prior(size_t keep) { coc::finish_copies(keep); }

/* ---------------------------------------------------------------------------------------------
   TENSOR CORES */

/* A fragment is spread over its warp: number i of lane l is number 32 i + l of the tile. */
namespace nvcuda { namespace wmma {

struct matrix_a; struct matrix_b; struct accumulator; struct row_major; struct col_major;
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    enum { ROWS = std::is_same<Use, matrix_b>::value ? K : M,
           COLS = std::is_same<Use, matrix_a>::value ? K : N, num_elements = ROWS * COLS / 32 };
    typedef T element_type;
    T x[num_elements];
};

struct Place { const void *p; unsigned stride; };

COC_ENGINE inline void same_place(void **argument, unsigned) {
    const Place *a = (Place *)argument[0];
    for (int i = 1; i < 32; i++)
        if (((Place *)argument[i])->p != a->p || ((Place *)argument[i])->stride != a->stride)
            coc::die("the lanes of a warp give different places of a fragment");
}

template <class T>
inline void check_place(const char *what, const T *p, unsigned stride, int line) {
    Place place = { p, stride };
    if ((uintptr_t)p % 32 || stride * sizeof(T) % 16)
        coc::die("a fragment's place is no multiple of 32 bytes, or its stride none of 16", line);
    coc::together(what, line, ~0u, &place, same_place);
}

template <class Fragment, class T>
inline void load(Fragment &f, const T *p, unsigned stride, bool by_rows) {
    for (int i = 0; i < Fragment::num_elements; i++) {
        int at = i * 32 + coc::lane(), r = at / Fragment::COLS, c = at % Fragment::COLS;
        f.x[i] = p[by_rows ? (size_t)r * stride + c : (size_t)c * stride + r];
    }
}

template <class Use, int M, int N, int K, class T, class Layout>
inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout> &f, const T *p, unsigned stride,
                             int line = __builtin_LINE()) {
    check_place("wait in load_matrix_sync", p, stride, line);
    load(f, p, stride, std::is_same<Layout, row_major>::value);
}
template <int M, int N, int K, class T>
inline void load_matrix_sync(fragment<accumulator, M, N, K, T> &f, const T *p, unsigned stride,
                             layout_t layout, int line = __builtin_LINE()) {
    check_place("wait in load_matrix_sync", p, stride, line);
    load(f, p, stride, layout == mem_row_major);
}
template <int M, int N, int K, class T>
inline void store_matrix_sync(T *p, const fragment<accumulator, M, N, K, T> &f, unsigned stride,
                              layout_t layout, int line = __builtin_LINE()) {
    check_place("wait in store_matrix_sync", p, stride, line);
    for (int i = 0; i < f.num_elements; i++) {
        int at = i * 32 + coc::lane(), r = at / f.COLS, c = at % f.COLS;
        p[layout == mem_row_major ? (size_t)r * stride + c : (size_t)c * stride + r] = f.x[i];
    }
}
template <class Fragment, class T> inline void fill_fragment(Fragment &f, T value) {
    for (auto &x : f.x) x = value;
}

struct Multiply { void *d; const void *a, *b, *c; };

template <int M, int N, int K, class T, class LayoutA, class LayoutB> struct Multiplier {
    typedef fragment<accumulator, M, N, K, float> D;
    typedef fragment<matrix_a, M, N, K, T, LayoutA> A;
    typedef fragment<matrix_b, M, N, K, T, LayoutB> B;
    COC_ENGINE static void all(void **argument, unsigned) {
        float a[M * K], b[K * N], c[M * N];
        for (int l = 0; l < 32; l++) {
            const Multiply *m = (Multiply *)argument[l];
            for (int i = 0; i < A::num_elements; i++)
                a[i * 32 + l] = __bfloat162float(((const A *)m->a)->x[i]);
            for (int i = 0; i < B::num_elements; i++)
                b[i * 32 + l] = __bfloat162float(((const B *)m->b)->x[i]);
            for (int i = 0; i < D::num_elements; i++) c[i * 32 + l] = ((const D *)m->c)->x[i];
        }
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++)
                for (int j = 0; j < N; j++) c[i * N + j] += a[i * K + k] * b[k * N + j];
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < D::num_elements; i++)
                ((D *)((Multiply *)argument[l])->d)->x[i] = c[i * 32 + l];
    }
};

template <int M, int N, int K, class T, class LayoutA, class LayoutB>
inline void mma_sync(fragment<accumulator, M, N, K, float> &d,
                     const fragment<matrix_a, M, N, K, T, LayoutA> &a,
                     const fragment<matrix_b, M, N, K, T, LayoutB> &b,
                     const fragment<accumulator, M, N, K, float> &c, int line = __builtin_LINE()) {
    Multiply m = { &d, &a, &b, &c };
    coc::together("wait in mma_sync", line, ~0u, &m, Multiplier<M, N, K, T, LayoutA, LayoutB>::all);
}

} }  /* namespace nvcuda::wmma */

/* ---------------------------------------------------------------------------------------------
   THE RUNTIME */

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2,
                   cudaErrorInvalidConfiguration = 9, cudaErrorNoDevice = 100,
                   cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                      cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrComputeCapabilityMajor = 75,
                      cudaDevAttrComputeCapabilityMinor = 76 };
typedef struct coc_stream *cudaStream_t;
struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

namespace coc {

/* What a test may look at, and set: the fail_at-th call from 1 on fails; 0: none does. */
inline long calls, fail_at;
inline size_t bytes_to_device, bytes_from_device;
inline size_t most_shared = 48 << 10;    /* that a block may have */
inline int devices = 1, capability = 80;
inline int allocations;          /* arrays that are allocated now */

struct Array { char *p; size_t size; };
inline Array array[4096];
inline cudaError_t last_error;

inline cudaError_t fail(cudaError_t e) { return last_error = e; }
inline bool failing() { return ++calls == fail_at; }

inline Array *find(const void *p) {
    for (int i = 0; i < allocations; i++)
        if ((char *)p >= array[i].p && (char *)p < array[i].p + array[i].size) return &array[i];
    return nullptr;
}

inline bool inside(const Array *a, const void *p, size_t n) {
    return (char *)p + n <= a->p + a->size;
}

/* The host must not touch device memory. */
COC_ENGINE inline void guard(bool on) {
    (void)on;
    COC_ASAN(for (int i = 0; i < allocations; i++)
        if (on) __asan_poison_memory_region(array[i].p, array[i].size);
        else __asan_unpoison_memory_region(array[i].p, array[i].size);)
}

}  /* namespace coc */

inline const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess ? "no error" : e == cudaErrorMemoryAllocation ? "out of memory"
         : e == cudaErrorLaunchFailure ? "unspecified launch failure"
         : e == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "invalid argument";
}
inline cudaError_t cudaGetLastError() {   /* never fails itself */
    cudaError_t e = coc::last_error;
    coc::last_error = cudaSuccess;
    return e;
}

inline cudaError_t cudaGetDeviceCount(int *n) {
    *n = coc::devices;
    return coc::failing() || *n == 0 ? coc::fail(cudaErrorNoDevice) : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return coc::failing() ? coc::fail(cudaErrorLaunchFailure) : cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr a, int) {
    *value = a == cudaDevAttrMultiProcessorCount ? 3
           : a == cudaDevAttrComputeCapabilityMajor ? coc::capability / 10 : coc::capability % 10;
    return coc::failing() ? coc::fail(cudaErrorLaunchFailure) : cudaSuccess;
}

inline cudaError_t cudaMalloc(void **p, size_t n) {
    size_t room = (n ? n + 255 : 256) / 256 * 256;
    if (coc::failing() || coc::allocations == 4096 || !(*p = aligned_alloc(256, room)))
        return *p = nullptr, coc::fail(cudaErrorMemoryAllocation);
    memset(*p, 0xff, n);
    coc::array[coc::allocations++] = { (char *)*p, n };
    coc::guard(true);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *p) {
    cudaError_t e = coc::failing() ? coc::fail(cudaErrorLaunchFailure) : cudaSuccess;
    if (!p) return e;
    for (int i = 0; i < coc::allocations; i++)
        if (coc::array[i].p == p) {
            coc::guard(false);
            coc::array[i] = coc::array[--coc::allocations];
            coc::guard(true);
            return free(p), e;
        }
    return coc::fail(cudaErrorInvalidValue);
}

inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                                   cudaStream_t = 0) {
    coc::Array *a = n ? coc::find(to) : nullptr, *b = n ? coc::find(from) : nullptr;
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (coc::failing()) return coc::fail(cudaErrorLaunchFailure);
    if (n && kind != cudaMemcpyDefault && ((a != nullptr) != to_device
                                           || (b != nullptr) != from_device))
        return coc::fail(cudaErrorInvalidValue);
    if ((a && !coc::inside(a, to, n)) || (b && !coc::inside(b, from, n)))
        return coc::fail(cudaErrorInvalidValue);
    if (a && !b) coc::bytes_to_device += n;
    if (b && !a) coc::bytes_from_device += n;
    coc::guard(false);
    if (n) memcpy(to, from, n);
    coc::guard(true);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, n, kind);
}
inline cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t = 0) {
    coc::Array *a = coc::find(p);
    if (coc::failing()) return coc::fail(cudaErrorLaunchFailure);
    if (n && (!a || !coc::inside(a, p, n))) return coc::fail(cudaErrorInvalidValue);
    coc::guard(false);
    if (n) memset(p, value, n);
    coc::guard(true);
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    return coc::failing() ? coc::fail(cudaErrorLaunchFailure) : cudaSuccess;
}

template <class Kernel>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, Kernel, int, size_t) {
    *n = 1;
    return coc::failing() ? coc::fail(cudaErrorLaunchFailure) : cudaSuccess;
}

template <class... Parameter, class... Argument>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(Parameter...),
                                      Argument &&...argument) {
    typedef std::tuple<void (*)(Parameter...), Parameter...> Call;
    Call call(kernel, std::forward<Argument>(argument)...);
    size_t threads = (size_t)c->blockDim.x * c->blockDim.y * c->blockDim.z;
    if (coc::failing()) return coc::fail(cudaErrorLaunchFailure);
    if (threads == 0 || threads > 1024 || c->gridDim.x == 0 || c->gridDim.x > 0x7fffffff
        || c->gridDim.y == 0 || c->gridDim.y > 65535 || c->gridDim.z == 0 || c->gridDim.z > 65535)
        return coc::fail(cudaErrorInvalidConfiguration);
    if (c->dynamicSmemBytes > coc::most_shared) return coc::fail(cudaErrorInvalidValue);
    blockDim = c->blockDim, gridDim = c->gridDim;
    coc::kernel_arguments = &call;
    coc::kernel = [](void *p) {
        std::apply([](auto f, auto &...x) { f(x...); }, *(Call *)p);
    };
    coc::guard(false);
    coc::run_grid(c->gridDim, (int)threads, c->dynamicSmemBytes);
    coc::guard(true);
    return cudaSuccess;
}

#endif
