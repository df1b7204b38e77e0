/* hmoe.h - a heterogeneous mixture-of-experts transformer in one C header: forward and backward.

WHAT IT IS

   A language model in the LLaMA form whose feed-forward layers are mixtures of experts of
   *different widths*. A router sends each token to a few of them; narrow experts are cheap, wide
   ones strong, and a loss on the router decides who gets the work. Two papers define it:

     HMoE    Wang et al., Heterogeneous Mixture of Experts for Language Modeling, arXiv 2408.10681
     MoDSE   Sun et al., Mixture of Diverse Size Experts, arXiv 2409.12210

   Everything is here: the layers, their gradients, the router and its losses, AdamW, generation
   with a key/value cache, files, looking inside. Next door:
   another optimizer (hmoe_muon.h), several processes (hmoe_parallel.h). It needs libc, and OpenMP
   where there is one. It is no tensor library, automatic differentiator, tokenizer or server: one
   model is in it. No expert has a capacity, no token is dropped, nothing is padded.

HOW TO USE IT

   In *one* C or C++ file write

       #define HMOE_IMPLEMENTATION
       #include "hmoe.h"

   and a plain #include "hmoe.h" anywhere else. Compile with -O3 -march=native -ffp-contract=fast
   -fno-math-errno -fopenmp (the Makefile finds out which of these the compiler knows); link -lm.

A WHOLE PROGRAM

       #define HMOE_IMPLEMENTATION
       #include "hmoe.h"
       #include <stdio.h>
       int main(void) {
           static int text[33] = { 7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3, 26 };  // then zeros
           hmoe_config config = hmoe_default_config();  // 8 experts of unequal widths, two a token
           hmoe_adamw adamw = hmoe_default_adamw();
           hmoe_model model = { 0 };
           config.V = 27;                               // tokens are 0 .. 26
           if (hmoe_create(&model, &config, 1337, 1, 1)) return puts(model.message);
           for (int step = 1; step <= 40 && !hmoe_forward(&model, HMOE_TRAIN, text, text + 1, 1, 32)
                              && !hmoe_backward(&model, 1) && !hmoe_update(&model, &adamw); step++)
               printf("step %d  cross-entropy %f\n", step, model.losses.ce);
           puts(model.message);                         // empty where all went well
           hmoe_free(&model);
       }

CONTENTS (search for the words in capitals; IMPLEMENTATION and all below it come after the API)

       CONFIGURATION    what a model is made of              THE API           what a program calls
       THE ROUTES       the router's decision, as data       THE STEPS         the seam for a GPU
       IMPLEMENTATION
       UTILITIES        messages, random numbers             PRODUCTS          the one hot loop
       LAYERS           norm, RoPE, attention, SwiGLU,       EXPERT SIZES      how wide each is
                        embedding, cross-entropy             ROUTER            who gets a token
       EXPERTS          products, SwiGLU, combine            LOSSES            balance, penalty, ...
       THE MODEL        tensors, memory                      FORWARD           tokens in, loss out
       BACKWARD         the same page upside down            OPTIMIZER         AdamW, CPU's steps
       INFERENCE        cache, sampling

SYMBOLS, the same everywhere

       B, T, N = B*T    sequences, their length, tokens      C, V, L   width, vocabulary, layers
       NH, hs           heads, head size (C = NH * hs)       E, K      experts, experts per token
       H[e]             hidden width of expert e             ldh       the widest: row stride of h
       r, P             router logits and their softmax
       S[t], g[t][e]    experts chosen for token t, their gates: the weights of their outputs

MACROS, to be defined before the #include

       HMOE_REAL                      type of every number: float, unless defined as double (for
                                      gradient checks); the same in every file
       HMOE_MALLOC(n), HMOE_FREE(p)   another allocator; p may be NULL   } where
       HMOE_SIMD                      -fopenmp-simd is on               } HMOE_IMPLEMENTATION is

OWNERSHIP AND ERRORS

   The caller owns every struct and array it passes; the library copies what it keeps. What
   hmoe_create and hmoe_cache_create allocate, hmoe_free and hmoe_cache_free free.
   Functions that can fail return a status, 0 being HMOE_OK, and leave one line on what is wrong and
   what would be right in the model's `message` (or in a `message` of HMOE_MESSAGE_SIZE chars, which
   may be NULL). Nothing exits, prints or keeps global state. assert() guards the library's own
   invariants, never its input.

THREADS AND REPRODUCIBILITY

   OpenMP's threads share the work (omp_set_num_threads). One model is used by one caller at a time;
   several models are independent. No sum depends on the number of threads, and everything random
   is a function of the seed and of what it is for: the same seed and build give the same bits.

LIMITS

   Sizes: HMOE_MAX_* below. Attention keeps [B, NH, T, T] numbers, when training in each layer, a
   cache 2 L T C. Numbers in texts are read and written as LC_NUMERIC says: leave that at "C", as it
   is unless setlocale() is called. A thread needs 360 KB of stack: set OMP_STACKSIZE=1M if need be.

CHANGES   1.0   the model, training, generation

LICENCE   MIT, at the end of this file. */

#ifndef HMOE_H
#define HMOE_H

#if defined(HMOE_IMPLEMENTATION) && !defined(HMOE_NO_FILES) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L   /* fileno and fsync, under -std=c99 */
#endif
#if defined(HMOE_IMPLEMENTATION) && !defined(_FILE_OFFSET_BITS) && !defined(__LP64__)
#define _FILE_OFFSET_BITS 64      /* files of any size on machines of 32 bits too */
#endif

#include <stddef.h>
#include <stdint.h>

#ifndef HMOE_REAL
#define HMOE_REAL float
#endif
typedef HMOE_REAL hmoe_real;

#define HMOE_VERSION "1.0"
#define HMOE_MESSAGE_SIZE 512
#define HMOE_NAME_SIZE 96       /* of a tensor's name, with its terminating zero */
#define HMOE_MAX_EXPERTS 256
#define HMOE_MAX_DIM (1 << 20)  /* V, T, C, and the widths of all experts together */
#define HMOE_MAX_LAYERS 1024
#define HMOE_MAX_TOKENS (1 << 24) /* in one batch, counted once for each expert they can have */

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hmoe_status {
    HMOE_OK = 0,
    HMOE_BAD_ARGUMENT,     /* a value that no call of this kind can work with */
    HMOE_OUT_OF_MEMORY,
    HMOE_NOT_FINITE,       /* a NaN or an infinity came up: the step was not made */
    HMOE_IO,               /* the system refused to read or write */
    HMOE_BAD_FILE          /* a file is not what it should be */
} hmoe_status;

/* ---------------------------------------------------------------------------------------------
   CONFIGURATION - what a model is made of. Start from hmoe_default_config() and change it. */

typedef enum hmoe_routing {
    HMOE_TOP_K,            /* the K experts of largest P             HMoE eq. 8, MoDSE eq. 2 */
    HMOE_TOP_P             /* the fewest whose P add up to top_p     HMoE eq. 9 to 11 */
} hmoe_routing;

typedef enum hmoe_gate {
    HMOE_GATE_DEFAULT,     /* norm, but raw for Top-K with K = 1: there norm would make every gate 1
                              and cut the router off from the language model's loss */
    HMOE_GATE_NORM,        /* g = P divided by its sum over the chosen experts */
    HMOE_GATE_RAW          /* g = P */
} hmoe_gate;

/* Bias balancing (Wang et al., arXiv 2408.15664): each layer has a bias b for each expert. Experts
   are ordered by P + b; gates use P alone. After each update b_e moves by balance_rate, up if the
   load of expert e is below the mean load, down if it is above. */
typedef enum hmoe_balance {
    HMOE_BALANCE_OFF,
    HMOE_BALANCE_TOKENS,   /* load of expert e: f_e, its share of the tokens */
    HMOE_BALANCE_WORK      /* f_e H[e], its share of the work. The b of a null expert stays 0 */
} hmoe_balance;

typedef struct hmoe_config {
    int V;                        /* vocabulary: tokens are 0 .. V-1. No default */
    int T;                        /* context: the longest sequence */
    int C;                        /* width of the model, a multiple of NH; C / NH is even (RoPE) */
    int L;                        /* layers */
    int NH;                       /* attention heads */
    int E;                        /* experts per layer, 1 .. HMOE_MAX_EXPERTS; 1 is a dense model */
    int K;                        /* experts per token under Top-K, 1 .. E */
    int H[HMOE_MAX_EXPERTS];      /* hidden width of each expert (hmoe_expert_sizes); same in every
                                     layer. 0: a null expert, which has no parameters, needs no
                                     products and adds 0. At least one width is above 0 */
    hmoe_routing routing;
    double top_p;                 /* under Top-P: from 1e-9 to 1, which takes all experts */
    double budget;                /* 0: top_p is fixed. Otherwise, under Top-P only: each layer has
                                     its own top_p, which starts at the value above and moves after
                                     each update until a token's experts have, on average, this
                                     share of the layer's total width. In (0, 1] */
    hmoe_gate gate;
    hmoe_balance balance;
    double balance_rate;          /* how far b moves in one update, from 0 to 1 */
    int noisy_gating;             /* 1: MoDSE eq. 3 to 5, noise on the logits while training */
    double lb_coef;               /* coefficients of the router's losses: load balancing, */
    double pp_coef;               /*   parameter penalty, */
    double ent_coef;              /*   entropy, */
    double z_coef;                /*   z-loss */
    double rms_norm_eps;          /* added to the mean square in RMSNorm */
    double rope_theta;            /* base of RoPE's wavelengths */
    int vocab_size;               /* how many entries of vocab are set: V, or 0 for none */
    unsigned char vocab[256];     /* token i is byte vocab[i], ascending; for programs and files */
} hmoe_config;

/* The smallest useful HMoE: C 128, L 4, NH 4, T 64; 8 experts of arithmetic widths, 172 on average,
   Top-2 with normalised gates, P-Penalty. V is left 0 and must be set. */
hmoe_config hmoe_default_config(void);

/* Fills H[0..E-1] with widths that follow a strategy and add up to `total` exactly:
     "homogeneous"   all equal                             "arithmetic"  9 11 13 ... 23   (HMoE)
     "geometric"     1 2 4 8 ...                 (HMoE)    "hybrid"      1 1 1 1 2 2 4 4  (HMoE)
     "modse"         4.5 0.5 4 1 ..., pairs      (MoDSE)   "3,1,2.5"     E ratios of one's own
   A ratio of 0 makes a null expert, of width 0; the others share the total. Widths are multiples
   of 8 where the total allows it. */
hmoe_status hmoe_expert_sizes(int *H, int E, long long total, const char *strategy, char *message);

typedef enum hmoe_placement { HMOE_PAIRS, HMOE_CONTIGUOUS, HMOE_GIVEN } hmoe_placement;

/* Places E experts on D devices: device[e] receives 0 .. D-1. HMOE_PAIRS (MoDSE section 3.2; also
   appendix D of HMoE's EMNLP version, not of its first arXiv version): the widest with the
   narrowest, the next with the next, and so on; whole pairs to a device, so that E must be a
   multiple of 2 D. HMOE_CONTIGUOUS: E / D neighbours each. HMOE_GIVEN: as device[] has it already,
   which is only checked. */
hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message);

/* Are these values a model? HMOE_OK, or HMOE_BAD_ARGUMENT and what would be right. */
hmoe_status hmoe_check_config(const hmoe_config *config, char *message);

/* ---------------------------------------------------------------------------------------------
   THE ROUTES - the router's decision for the N tokens of one layer, as data. Everything after
   hmoe__choose reads it, the backward pass too; nothing changes or repeats it. */

typedef struct hmoe_routes {
    int slots;                /* most experts a token can have: K under Top-K, E under Top-P */
    hmoe_real *logits;        /* [N, E]      r = W_r x (+ noise); backward: their gradient */
    hmoe_real *P;             /* [N, E]      softmax of r over all experts */
    hmoe_real *lse;           /* [N]         log of the sum of exp(r), for the z-loss */
    hmoe_real *entropy;       /* [N]         -sum over e of P ln P, in nats */
    int *count;               /* [N]         |S[t]|, 1 .. slots */
    int *expert;              /* [N, slots]  S[t], by descending P + b; the first `count` are set */
    hmoe_real *gate;          /* [N, slots]  g of those experts */
    /* the same, seen from the experts: rows, sorted by expert and then by token */
    int *expert_start;        /* [E + 1]     expert e works on rows expert_start[e] .. [e+1]-1 */
    int *row_token;           /* [N * slots] the token of each row */
    hmoe_real *row_gate;      /* [N * slots] its gate */
    int *row;                 /* [N, slots]  and back: where slot s of token t has its row */
    /* what choose reads besides P: state of the layer, in m->params */
    const hmoe_real *bias;    /* [E]         b of bias balancing; NULL: 0 */
    const hmoe_real *top_p;   /* [1]         the layer's own top_p; NULL: config.top_p */
} hmoe_routes;

/* ---------------------------------------------------------------------------------------------
   THE STEPS - every computation on big arrays goes through this table, so that a backend (a GPU)
   can put its functions and its memory in place of the processor's. Lists, structs, H and scalars
   lie in the host's memory; every array they point to is the backend's, and host code touches it
   only by fetch and store. */

/* One member of a list of linear maps, y = x W^T on rows rows[0] .. rows[1]-1 of x and y. A dense
   layer is a list of one; unequal experts are a list whose members differ. No two members of a
   list write to the same place. */
typedef struct hmoe_linear {
    hmoe_real *x;             /* [.., in]    row stride ldx */
    hmoe_real *w;             /* [out, in] */
    hmoe_real *y;             /* [.., out]   row stride ldy */
    const int *rows;          /* two ints in the backend's memory, such as &expert_start[e] */
    int in, out, ldx, ldy;
    const hmoe_real *add;     /* forward: y = x W^T + add; backward_input: x = y W + add; laid out
                                 like the result, which it may be; NULL: 0. weight always adds */
    /* in or out may be 0, of a null expert: in = 0 gives y = add, or zeros; out = 0 gives x so */
    const int *x_row, *y_row; /* NULL, or where x (or y) is read: row r is its row x_row[r]. So
                                 experts take their tokens from where they lie: row_token */
} hmoe_linear;

/* What AdamW multiplies with in one step. */
typedef struct hmoe_rates {
    hmoe_real scale;          /* of the gradient: clipping */
    hmoe_real beta1, beta2;
    hmoe_real step, root;     /* lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t): the moments start at 0,
                                 and this takes that bias out */
    hmoe_real decay;          /* lr * weight_decay */
} hmoe_rates;

typedef struct hmoe_steps {
    const char *name;         /* "cpu" */
    const char *(*error)(void);   /* waits; what went wrong since the last call, or NULL */
    /* memory */
    void *(*get)(size_t bytes);   /* NULL where there is none */
    void (*give_back)(void *array);                               /* may be NULL */
    void (*fetch)(void *host, const void *array, size_t bytes);
    void (*store)(void *array, const void *host, size_t bytes);
    void (*zero)(void *array, size_t bytes);
    /* the three products of a linear map */
    void (*linear_forward)(const hmoe_linear *list, int n);          /* y  = x W^T */
    void (*linear_backward_input)(const hmoe_linear *list, int n);   /* x  = y W     (gradients) */
    void (*linear_backward_weight)(const hmoe_linear *list, int n);  /* W += y^T x   (gradients) */
    /* the layers; every pair is explained where it is written, under LAYERS and EXPERTS */
    void (*embed_forward)(hmoe_real *x, const int *tokens, const hmoe_real *w, int N, int C);
    void (*embed_backward)(hmoe_real *dw, const int *tokens, const hmoe_real *dx, int N, int C);
    void (*rmsnorm_forward)(hmoe_real *y, hmoe_real *rrms, const hmoe_real *x, const hmoe_real *w,
                            double eps, int N, int C);
    void (*rmsnorm_backward)(hmoe_real *dx, hmoe_real *dw, hmoe_real *dy, const hmoe_real *x,
                             const hmoe_real *w, const hmoe_real *rrms, int N, int C);
    void (*rope)(hmoe_real *qkv, const hmoe_real *angles, int direction, int B, int T, int NH,
                 int hs);
    void (*attention_forward)(hmoe_real *out, hmoe_real *att, const hmoe_real *qkv, int B, int T,
                              int NH, int hs);
    void (*attention_backward)(hmoe_real *dqkv, hmoe_real *datt, const hmoe_real *dout,
                               const hmoe_real *out, hmoe_real *att, const hmoe_real *qkv, int B,
                               int T, int NH, int hs);
    void (*up_forward)(hmoe_real *h, const hmoe_linear *list, const hmoe_routes *routes,
                       const int *H, int E, int ldh);
    void (*swiglu_backward)(hmoe_real *u, hmoe_real *h, hmoe_real *dgate, const hmoe_real *dh,
                            const hmoe_routes *routes, const int *H, int E, int ldh);
    void (*dropout)(hmoe_real *y, const hmoe_real *x, const hmoe_real *dy, double p, uint64_t key,
                    int first, int N, int C);
    void (*cross_entropy_forward)(hmoe_real *ce, const hmoe_real *logits, const int *targets,
                                  int N, int V);
    void (*cross_entropy_backward)(hmoe_real *logits, const int *targets, double scale, int N,
                                   int V);
    /* the router and the experts, under ROUTER and EXPERTS; draw may be raw */
    void (*noise_forward)(const hmoe_routes *routes, const hmoe_real *raw, const hmoe_real *gain,
                          double eps, uint64_t key, int first, int N, int E);
    void (*noise_backward)(hmoe_real *draw, hmoe_real *dgain, const hmoe_routes *routes,
                           const hmoe_real *raw, const hmoe_real *gain, double eps, uint64_t key,
                           int first, int N, int E);
    void (*router_softmax)(const hmoe_routes *routes, int N, int E);
    void (*choose)(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p, int norm,
                   int N, int E);
    void (*dispatch)(const hmoe_routes *routes, int N, int E);
    void (*router_sums)(double *sums, const hmoe_routes *routes, int N, int E);
    void (*router_backward)(const hmoe_routes *routes, const hmoe_real *dgate,
                            const hmoe_real *dP_all, double d_entropy, double d_lse2, int norm,
                            int N, int E);
    void (*combine_forward)(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                            const hmoe_routes *routes, int N, int C);
    void (*combine_backward)(hmoe_real *dx, const hmoe_real *drows, const hmoe_routes *routes,
                             int N, int C);
    /* the optimizer */
    double (*squared_norm)(const hmoe_real *g, size_t n);
    void (*adamw)(hmoe_real *w, hmoe_real *g, hmoe_real *m, hmoe_real *v, size_t n,
                  const hmoe_rates *rates);
} hmoe_steps;

/* ---------------------------------------------------------------------------------------------
   THE API - what a program calls. */

/* One tensor. The table of all of them is what initialising, weight decay, saving, loading and
   gradient checks walk over. */
typedef struct hmoe_tensor {
    char name[HMOE_NAME_SIZE];    /* as in a Mixtral checkpoint */
    int dims, rows, cols;         /* shape [rows] (dims 1, cols 1) or [rows, cols] (dims 2) */
    int expert;                   /* whose it is; -1: of none */
    size_t offset;                /* where it starts in params, grads, exp_avg and exp_avg_sq */
    double mean, std;             /* initial values are mean + std * N(0, 1) */
    int fixed;                    /* the program's to set; not 0: hmoe_update clears its gradients
                                     and leaves it as it is, frozen (1) or for Muon (2) */
    int state;                    /* 1: no parameter but state of a layer, b or top_p. Its gradient
                                     is always 0, so AdamW leaves it as it is; hmoe_update moves it
                                     by what the step's tokens chose */
} hmoe_tensor;

/* The loss and its parts: total = ce + lb_coef * lb + pp_coef * pp + ent_coef * ent + z_coef * z.
   ce: mean over tokens, in nats. The others: sums over the layers. */
typedef struct hmoe_losses {
    double total, ce, lb, pp, ent, z;
} hmoe_losses;

typedef struct hmoe_model {
    char message[HMOE_MESSAGE_SIZE];  /* why the last call failed; empty otherwise */
    hmoe_config config;               /* read only, once created */
    const hmoe_steps *steps;          /* who computes; set before hmoe_create, NULL: the CPU */
    struct hmoe_peers *peers;         /* who else does; set before hmoe_create, NULL: nobody */

    hmoe_tensor *tensors;             /* [tensor_count], by offset */
    size_t tensor_count;
    size_t param_count;
    hmoe_real *params;                /* [param_count], in the backend's memory, as are */
    hmoe_real *grads;                 /*   the gradients (NULL in a model for inference), */
    hmoe_real *exp_avg, *exp_avg_sq;  /*   and AdamW's two moments */

    double dropout;                   /* 0 .. 0.9, 0 at first, the program's to set: how much of
                                         what attention and experts add to the residual stream
                                         HMOE_TRAIN leaves out. The same until hmoe_backward */
    hmoe_losses losses;               /* of the last hmoe_forward that had targets */
    double grad_norm;                 /* of all gradients, before clipping, at the last update */

    /* The state of a run. Saved with it; a program may set what it keeps account of. */
    uint64_t seed;
    int64_t step;                     /* updates made */
    int64_t tokens;                   /* tokens seen in training */
    double flops;                     /* spent in training: 6 * activated * tokens, and attention */
    double seconds;                   /* for the program: time spent in training */
    double best_val_loss;             /* for the program: lowest so far, nats; DBL_MAX at first */
    int optimizer;                    /* for the program: which one it is, 0 at first */

    /* inside */
    int max_tokens;                   /* most tokens in a batch */
    int B, sequence_length, mode;     /* of the last forward pass; mode -1: none */
    int had_targets;                  /* did it have any? then there are token losses */
    int all_tokens, first_token;      /* of all processes; how many those before this one have */
    double pass_flops;                /* what it will have cost, when its backward pass is made */
    int64_t step_tokens;              /* passed backward since the last update: number the noise */
    double *usage;                    /* for INSPECTION: the routers' sums, and tokens */
    double *chosen;                   /* [L, E] tokens that chose each expert since hmoe_update */
    struct hmoe__layer *layers;       /* per layer: where its tensors start, its activations */
    struct hmoe__buffers *buffers;    /* the other activations */
    void *arena;                      /* the backend's memory behind all activations */
    size_t head;                      /* offset of the last tensor */
} hmoe_model;

/* THE PEERS - other processes that train the same model, each with its part of every batch and of
   the experts, and with a copy of all else. They make the same calls in the same order; what one of
   them cannot do, all of them refuse. hmoe_parallel.h fills this table. */
typedef hmoe_status (*hmoe_work)(hmoe_model *m, const char *dir, int training);
typedef struct hmoe_peers {
    int rank, size;                    /* this process is number `rank` of `size` */
    int here[HMOE_MAX_EXPERTS];        /* does expert e lie in this process? */
    hmoe_status (*create)(hmoe_model *m, int max_B, int training);   /* sets `here` */
    /* one's failure is everyone's; of N, the tokens here, come all_tokens and first_token */
    hmoe_status (*agree)(hmoe_model *m, hmoe_status status, int N);
    void (*sum)(hmoe_model *m, double *x, int n);   /* each x[i], over all processes */
    /* what a layer asks of its experts, wherever they are: see FORWARD and BACKWARD */
    void (*experts_forward)(hmoe_model *m, int l);
    void (*experts_backward)(hmoe_model *m, int l, const hmoe_real *dy);
    double (*reduce)(hmoe_model *m);   /* sums up grads; returns their squared norm */
    /* files: the first process works, the others hand it their tensors, or are handed them */
    hmoe_status (*lead)(hmoe_model *m, hmoe_work work, const char *dir, int training);
    void (*fetch)(hmoe_model *m, hmoe_real *host, size_t saved, size_t at, size_t n);
    void (*store)(hmoe_model *m, const hmoe_real *host, size_t saved, size_t at, size_t n);
} hmoe_peers;

/* Makes a model, with weights drawn from the seed. Zero *m first (and set m->steps to choose a
   backend). max_B: most sequences of config->T tokens in one batch; 0: it can only generate.
   training: 1 makes room for gradients, moments and what the backward pass needs. After a failure
   nothing is left to free. */
hmoe_status hmoe_create(hmoe_model *m, const hmoe_config *config, uint64_t seed, int max_B,
                        int training);
void hmoe_free(hmoe_model *m);  /* all but its message; also of a model that is zero, or freed */

typedef enum hmoe_mode { HMOE_EVALUATE, HMOE_TRAIN } hmoe_mode;

/* Runs B sequences of T tokens, [B, T] each: any B and T with T <= config.T and B * T <= max_B *
   config.T. targets: the tokens that should come next, or NULL (then there are no losses).
   HMOE_TRAIN keeps what hmoe_backward needs and adds the noise of noisy gating. HMOE_NOT_FINITE
   comes of a router or of the loss; without targets the logits are not looked at. */
hmoe_status hmoe_forward(hmoe_model *m, hmoe_mode mode, const int *tokens, const int *targets,
                         int B, int T);

/* Adds `scale` times the gradient of the last training pass's losses.total to grads; once per pass.
   Gradient accumulation: hmoe_forward and hmoe_backward with scale = 1 / n for each of n
   micro-batches, then one hmoe_update. Cross-entropy, entropy, z-loss and noise are then those of
   the uncut batch; load balancing and P-Penalty are not: f_e and Phat_e are each micro-batch's. */
hmoe_status hmoe_backward(hmoe_model *m, double scale);

/* AdamW (Loshchilov and Hutter 2019) as in PyTorch. */
typedef struct hmoe_adamw {
    double lr;
    double beta1, beta2;          /* decay of the two moments */
    double weight_decay;          /* on tensors of two dimensions */
    double clip;                  /* gradients are scaled by clip / norm where their norm exceeds
                                     it; 0: never */
} hmoe_adamw;

hmoe_adamw hmoe_default_adamw(void);   /* 2e-3; 0.9, 0.99; 0.1; 1 */

/* Clips, makes one step of AdamW, moves biases and budgets, clears the gradients, counts the step.
   Where a gradient is not finite it clears them and says HMOE_NOT_FINITE: the step is not made. */
hmoe_status hmoe_update(hmoe_model *m, const hmoe_adamw *adamw);

/* Forgets the gradients and the choices so far, for example if a micro-batch failed. */
void hmoe_zero_gradients(hmoe_model *m);

/* The schedule: for step = 1, 2, ... lr * step / warmup up to warmup, then a cosine down to min_lr
   at `steps`. */
double hmoe_learning_rate(int64_t step, int64_t warmup, int64_t steps, double lr, double min_lr);

/* Random bits: a function of the seed, of what they are for (programs: below 2^16; the library:
   above) and of two indices; nothing depends on how many were drawn before. */
uint64_t hmoe_random(uint64_t seed, uint64_t what, uint64_t i, uint64_t j);
double hmoe_normal(uint64_t seed, uint64_t what, uint64_t i, uint64_t j);   /* of N(0, 1) */

/* Generation, one token at a time. A cache holds the keys and values of the last T tokens of one
   sequence; several caches may share a model. */
typedef struct hmoe_cache {
    int64_t position;                 /* tokens so far; set to 0, another sequence starts */
    int L, T, C;                      /* of the model it was made for */
    hmoe_real *keys, *values;         /* [L, T, C], at position mod T; keys are rotated already */
    hmoe_real *angles;                /* [2, hs/2], RoPE's at this position */
} hmoe_cache;
hmoe_status hmoe_cache_create(hmoe_cache *cache, hmoe_model *m);
void hmoe_cache_free(hmoe_cache *cache);

/* Takes one token, gives the logits [V] of the one after it. */
hmoe_status hmoe_next(hmoe_model *m, hmoe_cache *cache, int token, hmoe_real *logits);

/* Draws a token from logits [V], which it overwrites. temperature 0: the largest. top_k > 0: among
   the k largest. top_p < 1: among the fewest whose probabilities reach top_p. The draw depends on
   the seed and the position alone. */
int hmoe_sample(hmoe_real *logits, int V, double temperature, int top_k, double top_p,
                uint64_t seed, int64_t position);

/* ---------------------------------------------------------------------------------------------
   INSPECTION - who chose whom, how much each expert worked, what one of them does alone. */

/* What the last hmoe_forward computed, with its B and T, until any other call that computes; arrays
   are the caller's. */
hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits);   /* [N, V] */
hmoe_status hmoe_get_token_losses(hmoe_model *m, hmoe_real *ce); /* [N], nats; needs targets */

/* Bytes that such a model takes beyond parameters, gradients and moments; 0: no configuration. */
size_t hmoe_activation_bytes(const hmoe_config *config, int max_B, int training);

/* The choice for one token in one layer. */
typedef struct hmoe_route {
    int count;                        /* |S[t]| */
    int expert[HMOE_MAX_EXPERTS];     /* the first `count`: the experts, by descending P + b, */
    double gate[HMOE_MAX_EXPERTS];    /*   and their gates; their widths are config.H[expert] */
    double P[HMOE_MAX_EXPERTS];       /* the whole softmax, [E] */
} hmoe_route;
hmoe_status hmoe_get_route(hmoe_model *m, int layer, int token, hmoe_route *route);

/* How the experts of one layer were used, over all tokens that hmoe_forward saw since
   hmoe_reset_usage, in training or not. All 0 for a layer that is not there. */
typedef struct hmoe_usage {
    int64_t tokens;
    double share[HMOE_MAX_EXPERTS];   /* f_e: share of the tokens that chose expert e */
    double compute[HMOE_MAX_EXPERTS]; /* its share of the experts' work: f_e H[e], sums to 1 */
    double P[HMOE_MAX_EXPERTS];       /* mean router probability */
    int dead;                         /* experts that no token chose */
    double entropy;                   /* of the router, mean per token, in nats */
    double experts;                   /* mean |S| */
    double width;                     /* mean over tokens of the chosen experts' added widths */
    double bias[HMOE_MAX_EXPERTS];    /* b of bias balancing as it is now, all 0 without it */
    double top_p;                     /* of this layer as it is now; 0 under Top-K */
} hmoe_usage;
void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage);
void hmoe_reset_usage(hmoe_model *m);

/* What each of D devices holds and does where expert e lies on device[e] (hmoe_place_experts): sums
   over all layers since hmoe_reset_usage. Returns how uneven that is: the largest share over the
   mean, of each of the three; 1 is even, and a device is 0 where there is nothing to share. */
typedef struct hmoe_device {
    double params;                    /* of its experts */
    double tokens;                    /* that came to them */
    double work;                      /* the same times the expert's width */
} hmoe_device;
hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of);

/* Parameters of the whole model, wherever its experts are. */
double hmoe_parameters(const hmoe_model *m);

/* Activated parameters per token: attention, norms, router, head, one embedding row, and 3 C H[e]
   of the experts chosen since hmoe_reset_usage (before the first token: as if all were chosen
   equally often). */
double hmoe_activated(const hmoe_model *m);

/* One expert alone: y = W2 (silu(W1 x) * (W3 x)) on rows of the caller's; x, y: [rows, C]. */
hmoe_status hmoe_run_expert(hmoe_model *m, int layer, int e, const hmoe_real *x, hmoe_real *y,
                            int rows);

/* ---------------------------------------------------------------------------------------------
   FILES - checkpoints in the layout of Hugging Face's Mixtral. HMOE_NO_FILES leaves them out. */
#ifndef HMOE_NO_FILES

/* Writes model.safetensors, config.json and, where token i is byte vocab[i], the tokenizer's files;
   with training = 1 training.safetensors too (but not the gradients of an unfinished
   accumulation). Makes the directory where there is none, but not its parents. Other files
   stay (see below for what held another model). Who else saves there is the caller's business. */
hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training);

/* The two halves of hmoe_save: hmoe_prepare writes all files beside their targets, hmoe_commit
   renames them; where one of them fails, what was beside is gone. hmoe_discard removes what was
   prepared. A directory that holds another model should lose that in between, config.json first, or
   a crash while files are renamed mixes the two, and what the new one lacks (a vocabulary, a run's
   state) is still the older one's. */
hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training);
hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training);
void hmoe_discard(hmoe_model *m, const char *dir, int training);

/* Makes a model from a directory. training = 1 reads training.safetensors, to go on with a run;
   training = 0 reads model.safetensors. *m and max_B are as for hmoe_create. A Mixtral that others
   made is read too, also from shards (model-00001-of-00002.safetensors ...) and from half precision
   (F16, BF16), where it has as many key/value heads as heads, an output of its own, and no sliding
   window shorter than its context. */
hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training);

/* Writes the model as an ordinary Mixtral: all experts as wide as the widest, with rows of zeros in
   W1 and W3 and columns of zeros in W2, which changes nothing of what they compute. A model that is
   there goes first, config.json before all else. *params, unless NULL, receives how many parameters
   it has then. HMOE_BAD_ARGUMENT where Mixtral has no such form (Top-P, raw gates) and where dir
   holds a run (training.safetensors). */
hmoe_status hmoe_export_mixtral(hmoe_model *m, const char *dir, size_t *params);

/* Sets V, vocab_size and vocab to the distinct bytes of a text, in ascending order. */
hmoe_status hmoe_byte_vocab(hmoe_config *config, const unsigned char *text, size_t n,
                            char *message);

/* Reads config.json alone. */
hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message);
#endif /* HMOE_NO_FILES */

/* ---------------------------------------------------------------------------------------------
   THE GPU - hmoe_cuda.cu, where it is part of the program.

       hmoe_model m = { 0 };
       m.steps = hmoe_cuda(HMOE_BF16, message);     NULL: no GPU that can; the message says why
       if (!m.steps || hmoe_create(&m, ...)) ...     and everything else stays as it was */

enum { HMOE_TILE = 64 };   /* rows and columns of a product that a block computes at a time; 128
                              rows where a model is wide */

typedef enum hmoe_precision {
    HMOE_FLOAT32,      /* plain arithmetic, which follows the processor's closely */
    HMOE_BF16          /* the operands of products are rounded to bf16 and multiplied on tensor
                          cores; sums, weights and the residual stream stay float. From sm_80 on */
} hmoe_precision;

/* The steps on the current GPU (cudaSetDevice, CUDA_VISIBLE_DEVICES). One thread at a time may use
   models of this backend: they share the device's default stream, and the first error of any of
   them is reported by the next call that waits, as HMOE_IO. NULL, and a line in message
   [HMOE_MESSAGE_SIZE], where there is no such GPU. */
const hmoe_steps *hmoe_cuda(hmoe_precision precision, char *message);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_H */

/* =============================================================================================
   IMPLEMENTATION */
#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_IMPLEMENTED
#define HMOE_IMPLEMENTED

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(HMOE_MALLOC) != defined(HMOE_FREE)
#error "HMOE_MALLOC and HMOE_FREE come together"
#elif !defined(HMOE_MALLOC)
#define HMOE_MALLOC(n) malloc(n)
#define HMOE_FREE(p) free(p)
#endif

/* Every parallel loop below writes, in each of its iterations, to places of that iteration's own,
   and adds them up in one order: so no thread can race, and none can change a bit. */
#if defined(_OPENMP) || defined(HMOE_SIMD)
#define HMOE__PRAGMA(text) _Pragma(#text)
#else
#define HMOE__PRAGMA(text)
#endif
#ifdef _OPENMP
#include <omp.h>
#define HMOE__PARALLEL_FOR(n) HMOE__PRAGMA(omp parallel for schedule(static) if ((n) > 1))
static int hmoe__threads(void) { return omp_get_max_threads(); }
#else
#define HMOE__PARALLEL_FOR(n)
static int hmoe__threads(void) { return 1; }
#endif
#define HMOE__SIMD HMOE__PRAGMA(omp simd)
#define HMOE__SIMD_SUM(s) HMOE__PRAGMA(omp simd reduction(+ : s))
#if defined(__clang__)   /* it cannot, as long as NaNs count; and at -O1 it warns of every loop */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"
#define HMOE__SIMD_MAX(s)
#else
#define HMOE__SIMD_MAX(s) HMOE__PRAGMA(omp simd reduction(max : s))
#endif

#if defined(__GNUC__)
#define HMOE__INLINE static inline __attribute__((always_inline))
#define HMOE__PRINTF(text, first) __attribute__((format(printf, text, first)))
#define HMOE__ALIGNED __attribute__((aligned(64)))
#define HMOE__PREFETCH(p, to_write) __builtin_prefetch(p, to_write)
#else
#define HMOE__INLINE static inline
#define HMOE__PRINTF(text, first)
#define HMOE__ALIGNED
#define HMOE__PREFETCH(p, to_write) (void)(p)
#endif

/* Writes the line that explains a failure, and is its status: no function, since a compiler or an
   analyzer that looks into none with "..." would take it for one that may return HMOE_OK. */
#define HMOE__FAIL(message, status, ...) (hmoe__explain(message, __VA_ARGS__), status)
#define HMOE__BAD(message, ...) HMOE__FAIL(message, HMOE_BAD_ARGUMENT, __VA_ARGS__)
#define HMOE__TRY(call) \
    do { hmoe_status status_ = (call); if (status_) return status_; } while (0)

/* What PART ONE takes from PART TWO. */
static void hmoe__explain(char *message, const char *format, ...);
static uint64_t hmoe__mix(uint64_t z);
HMOE__INLINE hmoe_real hmoe__exp(hmoe_real x);
HMOE__INLINE hmoe_real hmoe__sqrt(hmoe_real x);
HMOE__INLINE hmoe_real hmoe__sigmoid(hmoe_real x);

/* What the library itself draws numbers for; weights use a hash of the tensor's name. */
enum { HMOE__FOR_NOISE = 1 << 16, HMOE__FOR_SAMPLE, HMOE__FOR_DROPOUT };

typedef struct hmoe__product {   /* { c, d, a, b, a_at, b_at, c_row, a_row, a_k, b_k, b_col, ... */
    hmoe_real *c;                /* [M, N], row stride c_row */
    const hmoe_real *d;          /* like c, or NULL: 0 */
    const hmoe_real *a, *b;
    const int *a_at, *b_at;      /* NULL, or where rows lie: row r of memory is row a_at[r] */
    size_t c_row, a_row, a_k, b_k, b_col;   /* how far apart neighbours lie; one of A's two is 1 */
    int M, N, K;
} hmoe__product;

/* How ragged work is shared: laid end to end as one line, which is cut into as many parts of equal
   length as there are threads. No sum is cut, so the parts change no bit; and each thread finds in
   its cache what it computed the step before, since lists of the same rows are cut alike. */
typedef struct hmoe__part { double from, to, at; } hmoe__part;

static void hmoe__multiply(hmoe__product p);
static void hmoe__linear_forward(const hmoe_linear *list, int n);
static hmoe__part hmoe__part_of(double work, int part, int parts);
static int hmoe__next_of(hmoe__part *s, int units, double cost, int *first);
static double hmoe__total_width(const hmoe_config *c);
static int hmoe__widest(const hmoe_config *c);
static hmoe_status hmoe__agree(hmoe_model *m, hmoe_status status, int N);
static hmoe_status hmoe__settle(hmoe_model *m);
static hmoe_status hmoe__collect(hmoe_model *m);
static hmoe_status hmoe__check_batch(hmoe_model *m, hmoe_mode mode, const int *tokens,
                                     const int *targets, int B, int T);

/* =============================================================================================
   PART ONE - THE MODEL */

/* ---------------------------------------------------------------------------------------------
   ROUTER - who gets a token. The story of one layer, each step a function:

       logits     r = W_r x (+ noise)   how much does each expert want this token?  (a product)
       softmax    P = softmax(r)        as shares that sum to 1
       choose     S, g                  the few that get it, and with what weight
       dispatch   expert_start, rows    who works on what: ragged, nothing dropped
       sums       counts, sum of P, ... what the losses and the reports are made of

   and then, under EXPERTS, their products, SwiGLU, combine. */

/* Softmax of one row in place: p_i = exp(scale (x_i - max)) / sum. *lse, unless NULL, receives
   log(sum of exp(scale x_i)). The largest is taken off first, so no exp overflows and the sum is at
   least 1. */
static void hmoe__softmax_row(hmoe_real *x, int n, hmoe_real scale, hmoe_real *lse) {
    hmoe_real max = x[0], sum = 0, inverse;
    HMOE__SIMD_MAX(max)
    for (int i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    HMOE__SIMD_SUM(sum)
    for (int i = 0; i < n; i++) {
        x[i] = hmoe__exp(scale * (x[i] - max));
        sum += x[i];
    }
    inverse = 1 / sum;
    HMOE__SIMD
    for (int i = 0; i < n; i++) x[i] *= inverse;
    if (lse) *lse = scale * max + (hmoe_real)log((double)sum);
}

/* P = softmax(r) over all E; and per token the log of its denominator and its entropy. */
static void hmoe__router_softmax(const hmoe_routes *routes, int N, int E) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *r = routes->logits + (size_t)t * E;
        hmoe_real *P = routes->P + (size_t)t * E, lse, entropy = 0;
        memcpy(P, r, (size_t)E * sizeof *P);
        hmoe__softmax_row(P, E, 1, &lse);
        for (int e = 0; e < E; e++) entropy -= P[e] * (r[e] - lse);   /* ln P = r - lse */
        routes->lse[t] = lse;
        routes->entropy[t] = entropy;
    }
}

/* S[t] and g. Experts are taken by descending P + b (b: bias balancing's, or 0), ties by ascending
   index, until there are enough:
     Top-K   K of them                          HMoE eq. 8, MoDSE eq. 2
     Top-P   their P add up to top_p            HMoE eq. 9 to 11; at 1 all, whatever rounding says
   Gates are P, without b; norm: divided by their sum. The next in that order is the largest P + b
   that comes after the last one taken; where P is NaN there is none, and any expert will do: the
   pass is refused. */
static void hmoe__choose(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p,
                         int norm, int N, int E) {
    if (routes->top_p) top_p = (double)*routes->top_p;
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + (size_t)t * E;
        int *S = routes->expert + (size_t)t * routes->slots, n = 0, last = -1, enough = 0;
        hmoe_real *g = routes->gate + (size_t)t * routes->slots, sum = 0, x[HMOE_MAX_EXPERTS];
        for (int e = 0; e < E; e++) x[e] = P[e] + (routes->bias ? routes->bias[e] : 0);
        while (!enough) {
            int next = -1;
            for (int e = 0; e < E; e++) {
                int after = last < 0 || x[e] < x[last] || (x[e] == x[last] && e > last);
                if (after && (next < 0 || x[e] > x[next])) next = e;
            }
            if (next < 0) next = n;
            S[n] = last = next;
            g[n++] = P[next];
            sum += P[next];
            enough = n == E || (routing == HMOE_TOP_K ? n == K : top_p < 1 && sum >= top_p);
        }
        routes->count[t] = n;   /* a bias may take experts whose P are all 0: gates 0, not 0 / 0 */
        if (norm && sum != 0) for (int s = 0; s < n; s++) g[s] /= sum;
    }
}

/* The same choice, seen from the experts: the rows of expert e are expert_start[e] .. [e+1]-1,
   its tokens in order. A counting sort; one thread, since it only moves a few ints a token.

       token 0 -> 2 0      token 1 -> 2 1      token 2 -> 0 2        (Top-2, E = 3)

       row           0   1 | 2 | 3   4   5
       row_token     0   2 | 1 | 0   1   2        expert_start  0 2 3 6
                  expert 0 | 1 | expert 2                                                        */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int next[HMOE_MAX_EXPERTS], *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) start[routes->expert[t * slots + s] + 1]++;
    for (int e = 0; e < E; e++) {
        next[e] = start[e];
        start[e + 1] += start[e];
    }
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++) {
            int at = t * slots + s, row = next[routes->expert[at]]++;
            routes->row[at] = row;
            routes->row_token[row] = t;
            routes->row_gate[row] = routes->gate[at];
        }
}

/* How many sums the router of a layer leaves. */
static size_t hmoe__sum_count(const hmoe_config *c) { return 2 * (size_t)c->E + 3; }

/* sums: [2 E + 3] receives, over the N tokens, how many chose each expert, the sum of each P[e],
   of the entropies, of lse^2 and of |S|. */
static void hmoe__router_sums(double *sums, const hmoe_routes *routes, int N, int E) {
    double *P_sum = sums + E, entropy = 0, lse2 = 0;
    for (int e = 0; e < E; e++)
        sums[e] = routes->expert_start[e + 1] - routes->expert_start[e], P_sum[e] = 0;
    for (int t = 0; t < N; t++) {
        for (int e = 0; e < E; e++) P_sum[e] += routes->P[(size_t)t * E + e];
        entropy += routes->entropy[t];
        lse2 += (double)routes->lse[t] * routes->lse[t];
    }
    sums[2 * E] = entropy;
    sums[2 * E + 1] = lse2;
    sums[2 * E + 2] = routes->expert_start[E];
}

/* From the gates and the losses back to the logits, which their gradient replaces:
     gates     norm: dP_e = (dg_e - sum over S of dg g) / sum over S of P;   raw: dP_e = dg_e
     balance   dP_e += dP_all[e]                       the same for every token, see LOSSES
     softmax   dr_e = P_e (dP_e - sum over e of dP_e P_e)
     entropy   dr_e -= d_entropy P_e (ln P_e + entropy)
     z-loss    dr_e += d_lse2 2 lse P_e
   dgate: [rows], gradient of the gate of each row   d_entropy, d_lse2: of entropy[t], lse[t]^2 */
static void hmoe__router_backward(const hmoe_routes *routes, const hmoe_real *dgate,
                                  const hmoe_real *dP_all, double d_entropy, double d_lse2,
                                  int norm, int N, int E) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + (size_t)t * E;
        hmoe_real *r = routes->logits + (size_t)t * E, dP[HMOE_MAX_EXPERTS];
        hmoe_real dg_g = 0, P_chosen = 0, mean = 0, lse = routes->lse[t];
        size_t first = (size_t)t * routes->slots;
        for (int e = 0; e < E; e++) dP[e] = dP_all[e];
        for (int s = 0; s < routes->count[t]; s++) {
            dg_g += dgate[routes->row[first + s]] * routes->gate[first + s];
            P_chosen += P[routes->expert[first + s]];
        }
        for (int s = 0; s < routes->count[t]; s++) {
            hmoe_real dg = dgate[routes->row[first + s]];
            if (norm) dg = P_chosen != 0 ? (dg - dg_g) / P_chosen : 0;
            dP[routes->expert[first + s]] += dg;
        }
        for (int e = 0; e < E; e++) mean += dP[e] * P[e];
        for (int e = 0; e < E; e++)
            r[e] = P[e] * (dP[e] - mean + (hmoe_real)d_lse2 * 2 * lse
                           - (hmoe_real)d_entropy * (r[e] - lse + routes->entropy[t]));
    }
}

/* Noisy gating (MoDSE eq. 3 to 5; n as in Shazeer et al. 2017):
     r += n * gain * z / rms(z),   z = softplus(raw),   raw = W_n x,   n ~ N(0, 1)
   n is a function of key (seed, step, layer), token in the step and expert, never stored:
   hmoe_normal(key, HMOE__FOR_NOISE = 65536, first + t, e), first being the number of token 0 within
   the step.      raw: [N, E]   gain: [E] */
static hmoe_real hmoe__noise_row(hmoe_real *z, const hmoe_real *raw, double eps, int E) {
    hmoe_real sum = 0;   /* z: [E] receives softplus(raw); returns 1 / rms(z) */
    for (int e = 0; e < E; e++) {
        z[e] = (raw[e] > 0 ? raw[e] : 0) + (hmoe_real)log1p(exp(-fabs((double)raw[e])));
        sum += z[e] * z[e];
    }
    return isfinite(sum) ? 1 / hmoe__sqrt(sum / E + (hmoe_real)eps) : sum - sum;
}

static void hmoe__noise_forward(const hmoe_routes *routes, const hmoe_real *raw,
                                const hmoe_real *gain, double eps, uint64_t key, int first, int N,
                                int E) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real z[HMOE_MAX_EXPERTS], rrms = hmoe__noise_row(z, raw + (size_t)t * E, eps, E);
        for (int e = 0; e < E; e++) {
            double n = hmoe_normal(key, HMOE__FOR_NOISE, (uint64_t)first + t, e);
            routes->logits[(size_t)t * E + e] += (hmoe_real)n * gain[e] * z[e] * rrms;
        }
    }
}

/* From dr, in routes->logits: dgain += dr n z / rms(z), and through RMSNorm (as above) and softplus
   (whose derivative is the sigmoid) to draw, which is replaced and may be raw itself. One thread,
   so that dgain has one order: E numbers a token are little. */
static void hmoe__noise_backward(hmoe_real *draw, hmoe_real *dgain, const hmoe_routes *routes,
                                 const hmoe_real *raw, const hmoe_real *gain, double eps,
                                 uint64_t key, int first, int N, int E) {
    for (int t = 0; t < N; t++) {
        hmoe_real z[HMOE_MAX_EXPERTS], rrms = hmoe__noise_row(z, raw + (size_t)t * E, eps, E);
        hmoe_real dy[HMOE_MAX_EXPERTS], mean = 0;
        for (int e = 0; e < E; e++) {
            double n = hmoe_normal(key, HMOE__FOR_NOISE, (uint64_t)first + t, e);
            dy[e] = routes->logits[(size_t)t * E + e] * (hmoe_real)n;
            dgain[e] += dy[e] * z[e] * rrms;
            mean += gain[e] * dy[e] * z[e] * rrms / E;
        }
        for (int e = 0; e < E; e++) {
            hmoe_real dz = rrms * (gain[e] * dy[e] - z[e] * rrms * mean);
            draw[(size_t)t * E + e] = dz * hmoe__sigmoid(raw[(size_t)t * E + e]);
        }
    }
}

/* Bias balancing (Wang et al. 2024):  b_e += rate sign(mean load - load_e)
   load: [E], over the tokens of the step: chosen[e], or chosen[e] H[e] where work is balanced; null
   experts, which do no work, then count neither in the mean nor move. */
static void hmoe__steer_bias(hmoe_real *b, const double *chosen, const hmoe_config *c) {
    int work = c->balance == HMOE_BALANCE_WORK, n = 0;
    double load[HMOE_MAX_EXPERTS], sum = 0;
    for (int e = 0; e < c->E; e++) {
        load[e] = chosen[e] * (work ? c->H[e] : 1);
        sum += load[e];
        n += !work || c->H[e] > 0;
    }
    for (int e = 0; e < c->E; e++)   /* loads are whole numbers: an exact tie moves nothing */
        if (!work || c->H[e] > 0)
            b[e] += (hmoe_real)(c->balance_rate * ((n * load[e] < sum) - (n * load[e] > sum)));
}

/* A budget F (as DTop-p, arXiv 2512.13996, holds |S|):  logit(p) += 0.1 (F - width) / F
   width: the chosen experts' share of all widths, mean over the step's tokens. In the logit a step
   means as much near 1, where 1 - p counts, as elsewhere. The limits keep p where it has an effect,
   so p reacts in the next step: the largest P is at least 1 / E. */
static hmoe_real hmoe__steered_p(double p, double width, const hmoe_config *c) {
    const double low = 0.5 / c->E, high = 1 - 1e-5;
    p = p < low ? low : p > high ? high : p;
    p = 1 / (1 + (1 - p) / p * exp(-0.1 * (c->budget - width) / c->budget));
    return (hmoe_real)(p < low ? low : p > high ? high : p);
}

/* ---------------------------------------------------------------------------------------------
   EXPERTS - each takes its tokens, runs at its own width, and the results come back. The
   arrays are laid out by rows; a row of u and h is as long as the widest expert needs, and an
   expert touches only its own part of it:

       rows of          u: W1 x | W3 x, 2 H[e]              h: silu(W1 x) * (W3 x), H[e]
       expert 0 (narrow)    aaaa bbbb . . . . . . . .           hhhh . . . .
       expert 1 (wide)      aaaaaaaa bbbbbbbb . . . .           hhhhhhhh . .                     */

/* SwiGLU (Shazeer 2020):  h = silu(a) * b,   silu(a) = a sigmoid(a)
   One row of one expert of width H; u = [a | b] = [W1 x | W3 x]: [2H] */
static void hmoe__swiglu_row(hmoe_real *h, const hmoe_real *u, int H) {
    HMOE__SIMD
    for (int i = 0; i < H; i++) h[i] = u[i] * hmoe__sigmoid(u[i]) * u[H + i];
}

/* The gate g multiplies the whole expert, y = g W2 h, so with dh = W2^T dy:
     dg = dh . h,   dL/dh = g dh,   da = dL/dh b sigmoid(a) (1 + a (1 - sigmoid(a))),
     db = dL/dh silu(a)
   u turns into its gradient, and h receives g h, which the gradient of W2 needs. Returns dg. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h, const hmoe_real *dh,
                                           hmoe_real g, int H) {
    hmoe_real dg = 0;
    HMOE__SIMD_SUM(dg)
    for (int i = 0; i < H; i++) {
        hmoe_real a = u[i], b = u[H + i], s = hmoe__sigmoid(a), d = g * dh[i];
        dg += dh[i] * a * s * b;
        u[i] = d * b * s * (1 + a * (1 - s));
        u[H + i] = d * a * s;
        h[i] = g * a * s * b;
    }
    return dg;
}

/* dgate[row] = dh . h;   u and h change as hmoe__swiglu_row_backward says. dh NULL: forward. Rows
   are cut into shares of equal work, as those of the products are. */
static void hmoe__swiglu_backward(hmoe_real *u, hmoe_real *h, hmoe_real *dgate,
                                  const hmoe_real *dh, const hmoe_routes *routes, const int *H,
                                  int E, int ldh) {
    const int *start = routes->expert_start;
    int parts = start[E] > 32 ? hmoe__threads() : 1;
    double work = 0;
    for (int e = 0; e < E; e++) work += (H[e] + 1.0) * (start[e + 1] - start[e]);
    HMOE__PARALLEL_FOR(parts)
    for (int part = 0; part < parts; part++) {
        hmoe__part mine = hmoe__part_of(work, part, parts);
        for (int e = 0; e < E; e++) {
            int first, end = hmoe__next_of(&mine, start[e + 1] - start[e], H[e] + 1, &first);
            for (int row = start[e] + first; row < start[e] + end; row++) {
                hmoe_real *u_row = u + (size_t)row * 2 * ldh, *h_row = h + (size_t)row * ldh;
                if (!dh) hmoe__swiglu_row(h_row, u_row, H[e]);
                else dgate[row] = hmoe__swiglu_row_backward(u_row, h_row, dh + (size_t)row * ldh,
                                                            routes->row_gate[row], H[e]);
            }
        }
    }
}

/* The first half of all experts: u = [a | b] = [W1 x | W3 x], which is what the list asks for, and
   h = silu(a) b.   h: [rows, ldh]   u: [rows, 2 ldh] */
static void hmoe__up_forward(hmoe_real *h, const hmoe_linear *list, const hmoe_routes *routes,
                             const int *H, int E, int ldh) {
    hmoe__linear_forward(list, E);
    hmoe__swiglu_backward(list->y, h, NULL, NULL, routes, H, E, ldh);
}

/* y_t = x_t + sum over S[t] of g rows[row of (t, e)], in the order of the choice */
static void hmoe__combine_forward(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                                  const hmoe_routes *routes, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real *y_t = y + (size_t)t * C;
        memcpy(y_t, x + (size_t)t * C, (size_t)C * sizeof *y);
        for (int s = 0; s < routes->count[t]; s++) {
            size_t at = (size_t)t * routes->slots + s;
            const hmoe_real *row = rows + (size_t)routes->row[at] * C;
            HMOE__SIMD
            for (int i = 0; i < C; i++) y_t[i] += routes->gate[at] * row[i];
        }
    }
}

/* dx_t = sum over S[t] of drows: what experts send back to their tokens (the gates are in it) */
static void hmoe__combine_backward(hmoe_real *dx, const hmoe_real *drows,
                                   const hmoe_routes *routes, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real *dx_t = dx + (size_t)t * C;
        for (int s = 0; s < routes->count[t]; s++) {
            const hmoe_real *row = drows + (size_t)routes->row[(size_t)t * routes->slots + s] * C;
            HMOE__SIMD
            for (int i = 0; i < C; i++) dx_t[i] = s ? dx_t[i] + row[i] : row[i];
        }
    }
}

/* ---------------------------------------------------------------------------------------------
   LOSSES - what keeps the router honest. Per layer, then summed. With, over the N tokens,
   f_e = share that chose expert e (a constant for the gradient) and Phat_e = mean of P[t][e]:

     load balancing   L_lb  = E sum_e f_e Phat_e             Switch Transformers eq. 4
     P-Penalty        L_pp  = E sum_e M_e Phat_e,            HMoE's parameter penalty
                      M_e   = f_e H[e] / mean(H)
     entropy          L_ent = (E / N) sum_t entropy of P[t]  HMoE eq. 5, with the other sign
     z-loss           L_z   = (1 / N) sum_t lse_t^2          ST-MoE eq. 5

   Both penalties push on Phat_e as hard as expert e is busy: load balancing counts its tokens, the
   P-Penalty its *work*, so that narrow experts end up with more tokens than wide ones.

   Where the papers leave a choice:
   M_e      HMoE prints H[e] alone, and says that equal widths give load balancing. H[e] / mean(H)
            makes that true; so would H[e] / max(H), and H[e] / sum(H) up to the factor E. Under
            these three its coefficient 0.1 would be 0.1, 0.07 (arithmetic widths) or 0.0125 here,
            and a mean over L layers divides by L again. mean(H) is over all E: if some experts are
            null and the others equal, these feel E / (their number) times load balancing.
   entropy  HMoE prints + E sum_e P_e ln P_e, with no mean over tokens. Its text wants fewer
            experts under Top-P, so each token's entropy must fall. Therefore this sign, and the
            mean, as in Huang et al., arXiv 2403.07652. HMoE's 3e-2 would be 0.24 per nat and layer
            here: after 100 steps every token has the same single expert. 3e-5 leaves about two.
   f_e      MoDSE eq. 10 counts first choices; here all choices count, as in MoDSE's tables.

   dP_all[l][e] is what both are worth per unit of P[t][e], the same for every token. */
static void hmoe__losses(hmoe_losses *loss, hmoe_real *dP_all, const double *sums,
                         const hmoe_config *c, double N) {
    double mean_H = hmoe__total_width(c) / c->E;
    loss->lb = loss->pp = loss->ent = loss->z = 0;
    for (int l = 0; l < c->L; l++, sums += hmoe__sum_count(c)) {
        for (int e = 0; e < c->E; e++) {
            double f = sums[e] / N, Phat = sums[c->E + e] / N, M = f * c->H[e] / mean_H;
            loss->lb += c->E * f * Phat;
            loss->pp += c->E * M * Phat;
            dP_all[l * c->E + e] = (hmoe_real)(c->E * (c->lb_coef * f + c->pp_coef * M) / N);
        }
        loss->ent += c->E * sums[2 * c->E] / N;
        loss->z += sums[2 * c->E + 1] / N;
    }
    loss->total = loss->ce + c->lb_coef * loss->lb + c->pp_coef * loss->pp
                  + c->ent_coef * loss->ent + c->z_coef * loss->z;
}

/* ---------------------------------------------------------------------------------------------
   EXPERT SIZES - a strategy is a list of ratios; widths are whole units shared by largest
   remainder, so that the total is kept and models of equal size can be compared. */

/* The ratios of a strategy by its name; 0 where there is no such name. */
static int hmoe__named_ratios(double *ratio, int E, const char *strategy) {
    int ones = (E + 1) / 2, twos = (E + 3) / 4;
    for (int e = 0; e < E; e++)
        if (!strcmp(strategy, "homogeneous")) ratio[e] = 1;
        else if (!strcmp(strategy, "arithmetic")) ratio[e] = E == 1 ? 1 : 9 + 14.0 * e / (E - 1);
        else if (!strcmp(strategy, "geometric")) ratio[e] = ldexp(1, e);
        else if (!strcmp(strategy, "hybrid")) ratio[e] = e < ones ? 1 : e < ones + twos ? 2 : 4;
        else if (!strcmp(strategy, "modse")) {
            static const double paper[8] = { 4.5, 0.5, 4, 1, 3, 2, 2.5, 2.5 };
            double larger = E == 2 ? 4.5 : 4.5 - 2.0 * (e / 2) / (E / 2.0 - 1);
            ratio[e] = E == 8 ? paper[e] : e % 2 ? 5 - larger : larger;
        } else return 0;
    return 1;
}

/* ---------------------------------------------------------------------------------------------
   LAYERS - each a forward and a backward function, side by side. `dx` is the gradient of the loss
   by x. Gradients of weights are added to; what a function replaces, it says. */

/* Embedding:  x_t = W[token_t]       x: [N, C]   W: [V, C]   tokens: [N] */
static void hmoe__embed_forward(hmoe_real *x, const int *tokens, const hmoe_real *w, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++)
        memcpy(x + (size_t)t * C, w + (size_t)tokens[t] * C, (size_t)C * sizeof *x);
}

/* dW[token_t] += dx_t. Tokens share rows of dW, so threads share out the columns instead. */
static void hmoe__embed_backward(hmoe_real *dw, const int *tokens, const hmoe_real *dx, int N,
                                 int C) {
    HMOE__PARALLEL_FOR(C)
    for (int block = 0; block < C; block += 16)
        for (int t = 0; t < N; t++)
            for (int i = block; i < C && i < block + 16; i++)
                dw[(size_t)tokens[t] * C + i] += dx[(size_t)t * C + i];
}

/* RMSNorm (Zhang and Sennrich 2019):  y = w * x / rms(x),   rms(x) = sqrt(mean(x^2) + eps)
   x, y: [N, C]   w: [C]   rrms: [N] receives 1 / rms(x), which the backward pass needs. */
static void hmoe__rmsnorm_forward(hmoe_real *y, hmoe_real *rrms, const hmoe_real *x,
                                  const hmoe_real *w, double eps, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *x_t = x + (size_t)t * C;
        hmoe_real *y_t = y + (size_t)t * C;
        hmoe_real sum = 0, r;
        HMOE__SIMD_SUM(sum)
        for (int i = 0; i < C; i++) sum += x_t[i] * x_t[i];
        /* where the sum overflows, NaN: 1 / infinity, a 0, would pass for a number */
        r = isfinite(sum) ? 1 / hmoe__sqrt(sum / C + (hmoe_real)eps) : sum - sum;
        HMOE__SIMD
        for (int i = 0; i < C; i++) y_t[i] = w[i] * x_t[i] * r;
        rrms[t] = r;
    }
}

/* With the normalised row n = x / rms(x):
     dx += (w dy - n mean(w dy n)) / rms(x)     the mean is what moving x does to its own rms
     dw += sum over t of dy n                    dy may be used up */
static void hmoe__rmsnorm_backward(hmoe_real *dx, hmoe_real *dw, hmoe_real *dy,
                                   const hmoe_real *x, const hmoe_real *w, const hmoe_real *rrms,
                                   int N, int C) {
    /* dw: in blocks of 32 tokens, each in dy's row of its first; so threads change no order */
    HMOE__PARALLEL_FOR(N)
    for (int block = 0; block < N; block += 32)
        for (int t = block; t < N && t < block + 32; t++) {
            const hmoe_real *x_t = x + (size_t)t * C;
            hmoe_real *dx_t = dx + (size_t)t * C, *dy_t = dy + (size_t)t * C;
            hmoe_real *dw_block = dy + (size_t)block * C, r = rrms[t], mean = 0;
            HMOE__SIMD_SUM(mean)
            for (int i = 0; i < C; i++) mean += w[i] * dy_t[i] * x_t[i];
            mean = mean * r / C;
            HMOE__SIMD
            for (int i = 0; i < C; i++) {
                dx_t[i] += r * (w[i] * dy_t[i] - x_t[i] * r * mean);
                dw_block[i] = dy_t[i] * x_t[i] * r + (t > block ? dw_block[i] : 0);
            }
        }
    for (int block = 0; block < N; block += 32)
        for (int i = 0; i < C; i++) dw[i] += dy[(size_t)block * C + i];
}

/* RoPE (Su et al. 2021), rotate-half: in every head of q and k, dimensions i and i + hs/2 of the
   token at position t turn by the angle t * theta^(-2i/hs), so that q . k depends on the distance
   of the two tokens alone. Its backward pass is the same rotation the other way: direction -1.
   qkv: [N, 3C], q | k | v, in place   angles: [T, 2, hs/2], cosines and sines */
static void hmoe__rope_row(hmoe_real *x, const hmoe_real *angles, int direction, int heads,
                           int hs) {
    const hmoe_real *cosine = angles, *sine = angles + hs / 2;
    for (int head = 0; head < heads; head++) {
        hmoe_real *a = x + (size_t)head * hs, *b = a + hs / 2;
        HMOE__SIMD
        for (int i = 0; i < hs / 2; i++) {
            hmoe_real s = direction * sine[i], a_i = a[i], b_i = b[i];
            a[i] = a_i * cosine[i] - b_i * s;
            b[i] = b_i * cosine[i] + a_i * s;
        }
    }
}

static void hmoe__rope(hmoe_real *qkv, const hmoe_real *angles, int direction, int B, int T,
                       int NH, int hs) {
    HMOE__PARALLEL_FOR(B * T)
    for (int t = 0; t < B * T; t++)   /* q and k lie side by side: 2 NH heads */
        hmoe__rope_row(qkv + (size_t)t * 3 * NH * hs, angles + (size_t)(t % T) * hs, direction,
                       2 * NH, hs);
}

/* Fills one row of angles, [2, hs/2], for a position. */
static void hmoe__rope_angles(hmoe_real *angles, int64_t position, int hs, double theta) {
    for (int i = 0; i < hs / 2; i++) {
        double angle = (double)position * pow(theta, -2.0 * i / hs);
        angles[i] = (hmoe_real)cos(angle);
        angles[hs / 2 + i] = (hmoe_real)sin(angle);
    }
}

/* Causal attention (Vaswani et al. 2017), per sequence and head:
     att[i][j] = softmax over j <= i of (q_i . k_j / sqrt(hs)),   out_i = sum_j att[i][j] v_j
   out: [N, C]   att: [B, NH, T, T], kept for the backward pass   qkv: [N, 3C]
   Queries go in blocks of 32; for keys after a block nothing is computed. Within the block
   masked scores are so low that their exp is 0, and products and softmax may run over them. */
enum { HMOE__QUERIES = 32 };

static void hmoe__attention_forward(hmoe_real *out, hmoe_real *att, const hmoe_real *qkv, int B,
                                    int T, int NH, int hs) {
    size_t C = (size_t)NH * hs, row = 3 * C;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    HMOE__PARALLEL_FOR(B * NH)
    for (int head = 0; head < B * NH; head++) {
        const hmoe_real *q = qkv + head / NH * (T * row) + head % NH * hs, *k = q + C, *v = k + C;
        hmoe_real *p = att + (size_t)head * T * T;
        hmoe_real *o = out + head / NH * (T * C) + head % NH * hs;
        for (int i0 = 0; i0 < T; i0 += HMOE__QUERIES) {
            int end = i0 + HMOE__QUERIES < T ? i0 + HMOE__QUERIES : T;
            hmoe_real *p_i0 = p + (size_t)i0 * T;
            hmoe__product scores = { p_i0, NULL, q + i0 * row, k, NULL, NULL, (size_t)T, row, 1, 1,
                                     row, end - i0, end, hs };                      /* q k^T */
            hmoe__product values = { o + i0 * C, NULL, p_i0, v, NULL, NULL, C, (size_t)T, 1, row, 1,
                                     end - i0, hs, end };                           /* p v */
            hmoe__multiply(scores);
            for (int i = i0; i < end; i++) {
                hmoe_real *p_i = p + (size_t)i * T;
                int whole = i / 16 * 16 + 16 < end ? i / 16 * 16 + 16 : end;   /* of vectors */
                for (int j = i + 1; j < whole; j++) p_i[j] = (hmoe_real)-INFINITY;
                for (int j = whole; j < end; j++) p_i[j] = 0;
                hmoe__softmax_row(p_i, whole, scale, NULL);
            }
            hmoe__multiply(values);
        }
    }
}

/* With p = att[i] and dp_j = dout_i . v_j:
     dv_j += p_j dout_i
     ds_j  = p_j (dp_j - sum over j of p_j dp_j)    the softmax; the sum is dout_i . out_i
     dq_i += ds_j k_j / sqrt(hs),   dk_j += ds_j q_i / sqrt(hs)
   dqkv: [N, 3C], replaced   datt: [B * NH, 32, T], scratch for ds   att may be used up */
static void hmoe__attention_backward(hmoe_real *dqkv, hmoe_real *datt, const hmoe_real *dout,
                                     const hmoe_real *out, hmoe_real *att, const hmoe_real *qkv,
                                     int B, int T, int NH, int hs) {
    size_t C = (size_t)NH * hs, row = 3 * C;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    HMOE__PARALLEL_FOR(B * NH)
    for (int head = 0; head < B * NH; head++) {
        size_t at = head / NH * (T * row) + head % NH * hs;
        size_t at_o = head / NH * (T * C) + head % NH * hs;
        const hmoe_real *q = qkv + at, *k = q + C, *v = k + C, *p = att + (size_t)head * T * T;
        hmoe_real *dq = dqkv + at, *dk = dq + C, *dv = dk + C;
        hmoe_real *ds = datt + (size_t)head * HMOE__QUERIES * T;
        for (int t = 0; t < T; t++)
            for (int i = 0; i < hs; i++) dk[t * row + i] = dv[t * row + i] = 0;
        for (int i0 = 0; i0 < T; i0 += HMOE__QUERIES) {
            int end = i0 + HMOE__QUERIES < T ? i0 + HMOE__QUERIES : T, n = end - i0;
            const hmoe_real *p_i0 = p + (size_t)i0 * T, *do_i0 = dout + at_o + i0 * C;
            size_t t_row = (size_t)T;
            hmoe__product to_dv = { dv, dv, p_i0, do_i0, NULL, NULL, row, 1, t_row, C, 1,
                                    end, hs, n };
            hmoe__product to_dp = { ds, NULL, do_i0, v, NULL, NULL, t_row, C, 1, 1, row,
                                    n, end, hs };
            hmoe__product to_dq = { dq + i0 * row, NULL, ds, k, NULL, NULL, row, t_row, 1, row, 1,
                                    n, hs, end };
            hmoe__product to_dk = { dk, dk, ds, q + i0 * row, NULL, NULL, row, 1, t_row, row, 1,
                                    end, hs, n };
            hmoe__multiply(to_dv);   /* dv += p^T dout */
            hmoe__multiply(to_dp);   /* dp  = dout v^T, in ds */
            for (int i = 0; i < n; i++) {
                const hmoe_real *o_i = out + at_o + (i0 + i) * C, *do_i = do_i0 + i * C;
                const hmoe_real *p_i = p_i0 + i * t_row;
                hmoe_real *ds_i = ds + i * t_row, sum = 0;
                HMOE__SIMD_SUM(sum)
                for (int j = 0; j < hs; j++) sum += do_i[j] * o_i[j];
                HMOE__SIMD
                for (int j = 0; j < end; j++) ds_i[j] = p_i[j] * (ds_i[j] - sum) * scale;
            }
            hmoe__multiply(to_dq);   /* dq  = ds k */
            hmoe__multiply(to_dk);   /* dk += ds^T q */
        }
    }
}

/* Cross-entropy:  ce_t = logsumexp(logits_t) - logits_t[target_t]      logits: [N, V] */
static void hmoe__cross_entropy_forward(hmoe_real *ce, const hmoe_real *logits, const int *targets,
                                        int N, int V) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *x = logits + (size_t)t * V;
        hmoe_real max = x[0], sum = 0;
        HMOE__SIMD_MAX(max)
        for (int i = 1; i < V; i++) max = x[i] > max ? x[i] : max;
        HMOE__SIMD_SUM(sum)
        for (int i = 0; i < V; i++) sum += hmoe__exp(x[i] - max);
        ce[t] = max - x[targets[t]] + (hmoe_real)log((double)sum);
    }
}

/* d logits_t = scale (softmax(logits_t) - onehot(target_t)), in place of the logits */
static void hmoe__cross_entropy_backward(hmoe_real *logits, const int *targets, double scale, int N,
                                         int V) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real *x = logits + (size_t)t * V;
        hmoe__softmax_row(x, V, 1, NULL);
        x[targets[t]] -= 1;
        for (int i = 0; i < V; i++) x[i] *= (hmoe_real)scale;
    }
}

/* Dropout (Srivastava et al. 2014) of what a block adds to the residual stream, y = x + block(x):
     forward    y = x + mask (y - x) / (1 - p)          x given, dy NULL
     backward   y = mask dy / (1 - p)                   the gradient of what the block gave; x NULL
   mask[t][i] is 0 with probability p. It is a function of key (seed, step, layer), token in the
   step and i, never stored: bits 16 (i % 4) .. of the mix of a number of the token and i / 4. */
static void hmoe__dropout(hmoe_real *y, const hmoe_real *x, const hmoe_real *dy, double p,
                          uint64_t key, int first, int N, int C) {
    const uint64_t limit = (uint64_t)(p * 65536);
    const hmoe_real scale = (hmoe_real)(1 / (1 - p));
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        uint64_t token = hmoe_random(key, HMOE__FOR_DROPOUT, (uint64_t)first + t, 0);
        hmoe_real *y_t = y + (size_t)t * C;
        const hmoe_real *x_t = x ? x + (size_t)t * C : NULL, *dy_t = dy ? dy + (size_t)t * C : NULL;
        uint64_t bits = 0;
        for (int i = 0; i < C; i++, bits >>= 16) {
            if (i % 4 == 0) bits = hmoe__mix(token ^ (uint64_t)(i / 4));
            hmoe_real mask = (bits & 0xffff) < limit ? 0 : scale;
            y_t[i] = dy ? mask * dy_t[i] : x_t[i] + mask * (y_t[i] - x_t[i]);
        }
    }
}

/* ---------------------------------------------------------------------------------------------
   FORWARD - tokens in, loss out:

      embed  [ norm  q k v  rope  attention  o  +  norm  router ... experts  + ] x L  norm  head  */

/* One layer: where its tensors start in params and grads, and its activations. There is one more of
   these than layers; of the last only x, w_norm1, rrms1 and n1 are used, by the final norm. */
typedef struct hmoe__layer {
    size_t w_norm1, w_qkv, w_o;         /* q, k, v lie side by side: one [3C, C] */
    size_t w_norm2, w_router, w_noise, w_noise_gain;
    size_t bias, top_p;                 /* state, where config has balance, and budget */
    size_t w13[HMOE_MAX_EXPERTS];       /* W1 and W3 side by side: one [2 H[e], C] */
    size_t w2[HMOE_MAX_EXPERTS];        /* [C, H[e]] */
    hmoe_real *x, *rrms1, *n1;          /* [N, C] input; [N]; [N, C] RMSNorm(x) */
    hmoe_real *qkv, *att, *out;         /* [N, 3C] q | k | v; [B, NH, T, T]; [N, C] */
    hmoe_real *x2, *rrms2, *n2;         /* [N, C] x + attention; [N]; [N, C] RMSNorm(x2) */
    hmoe_real *raw;                     /* [N, E] W_n n2 of noisy gating, then its gradient */
    hmoe_real *u;                       /* [rows, 2 ldh], inside the experts */
    hmoe_routes routes;
} hmoe__layer;

/* What all layers share. */
typedef struct hmoe__buffers {
    int *tokens, *targets, *all_rows;   /* [N], [N]; { 0, N }, the rows of a dense product */
    hmoe_real *angles;                  /* [T, 2, hs/2], RoPE's */
    hmoe_real *h, *rows;                /* [rows, ldh] inside experts; [rows, C] what they give */
    hmoe_real *logits, *ce;             /* [N, V], [N] */
    double *sums;                       /* [L, 2 E + 3], see hmoe__router_sums */
    hmoe_real *dP_all;                  /* [L, E], see hmoe__losses */
    hmoe_real *dx, *dn, *dqkv, *dout;   /* backward: [N, C], [N, C], [N, 3C], [N, C] */
    hmoe_real *datt, *dh, *dgate;       /* [B * NH, 32, T], [rows, ldh], [rows] */
    double *host_sums;                  /* in the host's memory: sums and the mean ce, dP_all and */
    hmoe_real *host_dP, *host_ce;       /*   ce, fetched or to be stored */
} hmoe__buffers;

/* A dense layer is a list of one. x: [N, in]   w: [out, in]   y: [N, out] */
static hmoe_linear hmoe__dense(hmoe_real *x, hmoe_real *w, hmoe_real *y, int in, int out,
                               const int *rows, const hmoe_real *add) {
    hmoe_linear map = { x, w, y, rows, in, out, in, out, add, NULL, NULL };
    return map;
}

/* The experts' products are lists of E: up, y = x W13^T, or down, y = x W2^T. params: the weights,
   or their gradients. token: NULL, or of which token each row takes its x (up) or y (down). */
static void hmoe__expert_list(hmoe_linear *list, const hmoe_model *m, const hmoe__layer *ly, int up,
                              hmoe_real *params, hmoe_real *x, hmoe_real *y, const int *token) {
    int C = m->config.C, ldh = hmoe__widest(&m->config);
    for (int e = 0; e < m->config.E; e++) {
        const int *rows = ly->routes.expert_start + e;
        int H = m->config.H[e];
        hmoe_linear w13 = { x, params + ly->w13[e], y, rows, C, 2 * H, C, 2 * ldh, NULL, token,
                            NULL };
        hmoe_linear w2 = { x, params + ly->w2[e], y, rows, H, C, ldh, C, NULL, NULL, token };
        list[e] = up ? w13 : w2;
    }
}

static void hmoe__attention_cached(hmoe_cache *cache, const hmoe_config *c, int l, hmoe_real *out,
                                   hmoe_real *att, hmoe_real *q);   /* under INFERENCE */

/* The number within the step of the pass's first token here. */
static int hmoe__first(const hmoe_model *m) { return (int)m->step_tokens + m->first_token; }

/* y = x + block(x), or its gradient: see hmoe__dropout. block: 0 attention, 1 the experts. */
static void hmoe__drop(hmoe_model *m, int l, int block, hmoe_real *y, const hmoe_real *x,
                       const hmoe_real *dy, int N) {
    uint64_t key = hmoe_random(m->seed, HMOE__FOR_DROPOUT, (uint64_t)m->step,
                               2 * (uint64_t)l + block);
    m->steps->dropout(y, x, dy, m->dropout, key, hmoe__first(m), N, m->config.C);
}

/* x2 = x + Attention(RMSNorm(x)). With a cache: of one token, to those before it. */
static void hmoe__attention_block_forward(hmoe_model *m, int l, int B, int T, hmoe_cache *cache) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    const int *rows = m->buffers->all_rows;
    hmoe__layer *ly = &m->layers[l];
    int C = c->C, N = B * T, hs = C / c->NH;
    hmoe_linear qkv = hmoe__dense(ly->n1, m->params + ly->w_qkv, ly->qkv, C, 3 * C, rows, NULL);
    hmoe_linear o = hmoe__dense(ly->out, m->params + ly->w_o, ly->x2, C, C, rows, ly->x);
    s->rmsnorm_forward(ly->n1, ly->rrms1, ly->x, m->params + ly->w_norm1, c->rms_norm_eps, N, C);
    s->linear_forward(&qkv, 1);
    if (cache) hmoe__attention_cached(cache, c, l, ly->out, ly->att, ly->qkv);
    else {
        s->rope(ly->qkv, m->buffers->angles, 1, B, T, c->NH, hs);
        s->attention_forward(ly->out, ly->att, ly->qkv, B, T, c->NH, hs);
    }
    s->linear_forward(&o, 1);
    if (m->dropout > 0 && m->mode == HMOE_TRAIN) hmoe__drop(m, l, 0, ly->x2, ly->x, NULL, N);
}

/* Noise is a function of seed, step and layer (this key), and of token in the step and expert. */
static uint64_t hmoe__noise_key(const hmoe_model *m, int l) {
    return hmoe_random(m->seed, HMOE__FOR_NOISE, (uint64_t)m->step, (uint64_t)l);
}

/* The router, from RMSNorm(x2) to the routes: logits, softmax, choose, dispatch, sums. */
static void hmoe__router_forward(hmoe_model *m, int l, int N) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    const int *rows = m->buffers->all_rows;
    hmoe__layer *ly = &m->layers[l];
    hmoe_linear list[2];
    int noisy = c->noisy_gating && m->mode == HMOE_TRAIN, E = c->E;
    list[0] = hmoe__dense(ly->n2, m->params + ly->w_router, ly->routes.logits, c->C, E, rows, NULL);
    if (noisy) list[1] = hmoe__dense(ly->n2, m->params + ly->w_noise, ly->raw, c->C, E, rows, NULL);
    s->linear_forward(list, noisy ? 2 : 1);
    if (noisy)
        s->noise_forward(&ly->routes, ly->raw, m->params + ly->w_noise_gain, c->rms_norm_eps,
                         hmoe__noise_key(m, l), hmoe__first(m), N, E);
    s->router_softmax(&ly->routes, N, E);
    s->choose(&ly->routes, c->routing, c->K, c->top_p, c->gate == HMOE_GATE_NORM, N, E);
    s->dispatch(&ly->routes, N, E);
    s->router_sums(m->buffers->sums + l * hmoe__sum_count(c), &ly->routes, N, E);
}

/* x of the next layer = x2 + MoE(RMSNorm(x2)),
   MoE(n_t) = sum over e in S[t] of g[t][e] W2_e (silu(W1_e n_t) * (W3_e n_t)) */
static void hmoe__moe_block_forward(hmoe_model *m, int l, int N) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    hmoe_linear up[HMOE_MAX_EXPERTS], down[HMOE_MAX_EXPERTS];
    hmoe__expert_list(up, m, ly, 1, m->params, ly->n2, ly->u, ly->routes.row_token);
    hmoe__expert_list(down, m, ly, 0, m->params, b->h, b->rows, NULL);
    s->rmsnorm_forward(ly->n2, ly->rrms2, ly->x2, m->params + ly->w_norm2, c->rms_norm_eps, N,
                       c->C);
    hmoe__router_forward(m, l, N);
    if (m->peers) m->peers->experts_forward(m, l);   /* b->rows, from wherever they are */
    else {
        s->up_forward(b->h, up, &ly->routes, c->H, c->E, hmoe__widest(c));
        s->linear_forward(down, c->E);
    }
    s->combine_forward((ly + 1)->x, ly->x2, b->rows, &ly->routes, N, c->C);
    if (m->dropout > 0 && m->mode == HMOE_TRAIN) hmoe__drop(m, l, 1, (ly + 1)->x, ly->x2, NULL, N);
}

/* All layers, from tokens to logits. */
static void hmoe__layers_forward(hmoe_model *m, int B, int T, hmoe_cache *cache) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    hmoe__buffers *b = m->buffers;
    hmoe__layer *last = &m->layers[c->L];
    hmoe_linear head = hmoe__dense(last->n1, m->params + m->head, b->logits, c->C, c->V,
                                   b->all_rows, NULL);
    s->embed_forward(m->layers[0].x, b->tokens, m->params, B * T, c->C);
    for (int l = 0; l < c->L; l++) {
        hmoe__attention_block_forward(m, l, B, T, cache);
        hmoe__moe_block_forward(m, l, B * T);
    }
    s->rmsnorm_forward(last->n1, last->rrms1, last->x, m->params + last->w_norm1, c->rms_norm_eps,
                       B * T, c->C);
    s->linear_forward(&head, 1);
}

hmoe_status hmoe_forward(hmoe_model *m, hmoe_mode mode, const int *tokens, const int *targets,
                         int B, int T) {
    int rows[2] = { 0, 0 };
    m->message[0] = 0;
    m->mode = -1;
    hmoe_status status = hmoe__check_batch(m, mode, tokens, targets, B, T);
    if (!status) m->all_tokens = rows[1] = B * T;
    HMOE__TRY(hmoe__agree(m, status, rows[1]));
    m->steps->store(m->buffers->all_rows, rows, sizeof rows);
    m->steps->store(m->buffers->tokens, tokens, (size_t)rows[1] * sizeof *tokens);
    if (targets) m->steps->store(m->buffers->targets, targets, (size_t)rows[1] * sizeof *targets);
    m->mode = mode, m->B = B, m->sequence_length = T, m->had_targets = targets != NULL;
    hmoe__layers_forward(m, B, T, NULL);
    m->mode = -1;   /* until it is known to be good */
    HMOE__TRY(hmoe__collect(m));
    m->mode = mode;
    return HMOE_OK;
}

/* ---------------------------------------------------------------------------------------------
   BACKWARD - the same page upside down. dx carries the gradient of the residual stream from the
   last layer to the first; each block adds to it. */

/* Of y = x W^T: dx = dy W (or +=), dW += dy^T x. */
static void hmoe__dense_backward(hmoe_model *m, hmoe_real *dx, size_t w, hmoe_real *dy,
                                 hmoe_real *x, int in, int out, int add) {
    const int *rows = m->buffers->all_rows;
    hmoe_linear input = hmoe__dense(dx, m->params + w, dy, in, out, rows, add ? dx : NULL);
    hmoe_linear weight = hmoe__dense(x, m->grads + w, dy, in, out, rows, NULL);
    m->steps->linear_backward_input(&input, 1);
    m->steps->linear_backward_weight(&weight, 1);
}

/* From the gradients of the gates to those of the router's weights, and on to dn. */
static void hmoe__router_backward_block(hmoe_model *m, int l, int N, double scale) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    double all = m->all_tokens;
    s->router_backward(&ly->routes, b->dgate, b->dP_all + (size_t)l * c->E,
                       scale * c->ent_coef * c->E / all, scale * c->z_coef / all,
                       c->gate == HMOE_GATE_NORM, N, c->E);
    if (c->noisy_gating) {
        s->noise_backward(ly->raw, m->grads + ly->w_noise_gain, &ly->routes, ly->raw,
                          m->params + ly->w_noise_gain, c->rms_norm_eps, hmoe__noise_key(m, l),
                          hmoe__first(m), N, c->E);
        hmoe__dense_backward(m, b->dn, ly->w_noise, ly->raw, ly->n2, c->C, c->E, 1);
    }
    hmoe__dense_backward(m, b->dn, ly->w_router, ly->routes.logits, ly->n2, c->C, c->E, 1);
}

static void hmoe__moe_block_backward(hmoe_model *m, int l, int N, double scale) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    hmoe_linear list[HMOE_MAX_EXPERTS];
    const int *token = ly->routes.row_token;
    int E = c->E;
    hmoe_real *dy = m->dropout > 0 ? b->dn : b->dx;
    if (m->dropout > 0) hmoe__drop(m, l, 1, dy, NULL, b->dx, N);
    if (m->peers) m->peers->experts_backward(m, l, dy);
    else {
        hmoe__expert_list(list, m, ly, 0, m->params, b->dh, dy, token);
        s->linear_backward_input(list, E);                 /* dh = dy W2, without the gate */
        s->swiglu_backward(ly->u, b->h, b->dgate, b->dh, &ly->routes, c->H, E, hmoe__widest(c));
        hmoe__expert_list(list, m, ly, 0, m->grads, b->h, dy, token);
        s->linear_backward_weight(list, E);                /* dW2 += dy^T (g h) */
        hmoe__expert_list(list, m, ly, 1, m->grads, ly->n2, ly->u, token);
        s->linear_backward_weight(list, E);                /* dW13 += du^T n */
        hmoe__expert_list(list, m, ly, 1, m->params, b->rows, ly->u, NULL);
        s->linear_backward_input(list, E);                 /* dn of each row = du W13 */
    }
    s->combine_backward(b->dn, b->rows, &ly->routes, N, c->C);
    hmoe__router_backward_block(m, l, N, scale);
    s->rmsnorm_backward(b->dx, m->grads + ly->w_norm2, b->dn, ly->x2, m->params + ly->w_norm2,
                        ly->rrms2, N, c->C);
}

static void hmoe__attention_block_backward(hmoe_model *m, int l, int B, int T) {
    const hmoe_steps *s = m->steps;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    int C = m->config.C, NH = m->config.NH, N = B * T;
    hmoe_real *dy = m->dropout > 0 ? b->dn : b->dx;
    if (m->dropout > 0) hmoe__drop(m, l, 0, dy, NULL, b->dx, N);
    hmoe__dense_backward(m, b->dout, ly->w_o, dy, ly->out, C, C, 0);
    s->attention_backward(b->dqkv, b->datt, b->dout, ly->out, ly->att, ly->qkv, B, T, NH, C / NH);
    s->rope(b->dqkv, b->angles, -1, B, T, NH, C / NH);
    hmoe__dense_backward(m, b->dn, ly->w_qkv, b->dqkv, ly->n1, C, 3 * C, 0);
    s->rmsnorm_backward(b->dx, m->grads + ly->w_norm1, b->dn, ly->x, m->params + ly->w_norm1,
                        ly->rrms1, N, C);
}

hmoe_status hmoe_backward(hmoe_model *m, double scale) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    hmoe__buffers *b = m->buffers;
    int B = m->B, T = m->sequence_length, N = B * T;
    m->message[0] = 0;
    if (m->mode != HMOE_TRAIN)
        return HMOE__BAD(m->message, "hmoe_backward needs a successful hmoe_forward in mode "
                         "HMOE_TRAIN just before it, once");
    m->mode = -1;   /* the activations turn into gradients */
    hmoe__layer *last = &m->layers[c->L];
    for (int i = 0; i < c->L * c->E; i++) b->host_dP[i] *= (hmoe_real)scale;
    s->store(b->dP_all, b->host_dP, (size_t)c->L * c->E * sizeof *b->host_dP);
    s->cross_entropy_backward(b->logits, b->targets, scale / m->all_tokens, N, c->V);
    hmoe__dense_backward(m, b->dn, m->head, b->logits, last->n1, c->C, c->V, 0);
    s->zero(b->dx, (size_t)N * c->C * sizeof(hmoe_real));
    s->rmsnorm_backward(b->dx, m->grads + last->w_norm1, b->dn, last->x, m->params + last->w_norm1,
                        last->rrms1, N, c->C);
    for (int l = c->L - 1; l >= 0; l--) {
        hmoe__moe_block_backward(m, l, N, scale);
        hmoe__attention_block_backward(m, l, B, T);
    }
    s->embed_backward(m->grads, b->tokens, b->dx, N, c->C);
    for (int l = 0; l < c->L; l++)
        for (int e = 0; e < c->E; e++)
            m->chosen[l * c->E + e] += b->host_sums[l * hmoe__sum_count(c) + e];
    m->step_tokens += m->all_tokens;
    m->tokens += m->all_tokens;
    m->flops += m->pass_flops;
    return hmoe__settle(m);
}

/* ---------------------------------------------------------------------------------------------
   OPTIMIZER - clipping, AdamW, the schedule; and the table of steps. */

/* m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
   w -= lr (mhat / (sqrt(vhat) + 1e-8) + decay w);   and g = 0 for the next step: one pass over
   memory, which is what this costs. All parameters are visited, not the activated ones alone. */
static void hmoe__adamw(hmoe_real *w, hmoe_real *g, hmoe_real *m, hmoe_real *v, size_t n,
                        const hmoe_rates *rates) {
    const hmoe_rates r = *rates;
    int blocks = (int)((n + 4095) / 4096);
    HMOE__PARALLEL_FOR(blocks)
    for (int block = 0; block < blocks; block++) {
        size_t start = (size_t)block * 4096, end = start + 4096 < n ? start + 4096 : n;
        HMOE__SIMD
        for (size_t i = start; i < end; i++) {
            hmoe_real g_i = g[i] * r.scale;
            hmoe_real m_i = r.beta1 * m[i] + (1 - r.beta1) * g_i;
            hmoe_real v_i = r.beta2 * v[i] + (1 - r.beta2) * g_i * g_i;
            w[i] -= r.step * m_i / (hmoe__sqrt(v_i) * r.root + (hmoe_real)1e-8) + r.decay * w[i];
            m[i] = m_i, v[i] = v_i, g[i] = 0;
        }
    }
}

hmoe_adamw hmoe_default_adamw(void) {
    hmoe_adamw a = { 2e-3, 0.9, 0.99, 0.1, 1.0 };
    return a;
}

double hmoe_learning_rate(int64_t step, int64_t warmup, int64_t steps, double lr, double min_lr) {
    double done;
    if (step <= warmup) return lr * (double)step / (double)warmup;
    if (step >= steps) return min_lr;
    done = (double)(step - warmup) / (double)(steps - warmup);
    return min_lr + (lr - min_lr) * 0.5 * (1 + cos(3.141592653589793 * done));
}

/* Forgets what the passes since the last update left, but for the gradients. */
static void hmoe__begin_step(hmoe_model *m) {
    memset(m->chosen, 0, (size_t)m->config.L * m->config.E * sizeof *m->chosen);
    m->step_tokens = 0;
    m->mode = -1;   /* the activations are those of other weights */
}

void hmoe_zero_gradients(hmoe_model *m) {
    if (m->grads) m->steps->zero(m->grads, m->param_count * sizeof(hmoe_real));
    hmoe__begin_step(m);
}

/* Moves the state of each layer by what the tokens of this step chose. */
static hmoe_status hmoe__steer(hmoe_model *m) {
    const hmoe_config *c = &m->config;
    if (!c->balance && c->budget == 0) return HMOE_OK;
    for (int l = 0; l < c->L && m->step_tokens > 0; l++) {
        const double *chosen = m->chosen + l * c->E;
        hmoe_real b[HMOE_MAX_EXPERTS], p, *bias = m->params + m->layers[l].bias;
        hmoe_real *top_p = m->params + m->layers[l].top_p;
        double width = 0;
        if (c->balance) {
            m->steps->fetch(b, bias, (size_t)c->E * sizeof *b);
            hmoe__steer_bias(b, chosen, c);
            m->steps->store(bias, b, (size_t)c->E * sizeof *b);
        }
        if (c->budget > 0) {
            for (int e = 0; e < c->E; e++) width += chosen[e] * c->H[e];
            m->steps->fetch(&p, top_p, sizeof p);
            width /= (double)m->step_tokens * hmoe__total_width(c);
            p = hmoe__steered_p((double)p, width, c);
            m->steps->store(top_p, &p, sizeof p);
        }
    }
    return hmoe__settle(m);
}

/* Adds up the gradients of all processes; clears them where their norm is not finite. */
static hmoe_status hmoe__gradient_norm(hmoe_model *m) {
    m->grad_norm = sqrt(m->peers ? m->peers->reduce(m)
                                 : m->steps->squared_norm(m->grads, m->param_count));
    if (isfinite(m->grad_norm)) return HMOE_OK;
    hmoe_zero_gradients(m);
    return HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the gradients' norm is %f", m->grad_norm);
}

hmoe_status hmoe_update(hmoe_model *m, const hmoe_adamw *a) {
    double t = (double)m->step + 1, clip = 1;
    hmoe_rates rates;
    m->message[0] = 0;
    if (!m->grads) return HMOE__BAD(m->message, "this model was not made for training");
    rates.beta1 = (hmoe_real)a->beta1, rates.beta2 = (hmoe_real)a->beta2;
    rates.step = (hmoe_real)(a->lr / (1 - pow(a->beta1, t)));
    rates.root = (hmoe_real)(1 / sqrt(1 - pow(a->beta2, t)));
    rates.decay = (hmoe_real)(a->lr * a->weight_decay);
    if (!(a->lr >= 0 && a->beta1 >= 0 && rates.beta1 < 1 && a->beta2 >= 0 && rates.beta2 < 1
          && a->weight_decay >= 0 && a->clip >= 0 && isfinite(rates.step) && isfinite(rates.decay)))
        return HMOE__BAD(m->message, "AdamW with lr %g, betas %.9g %.9g, decay %g, clip %g: in %d "
                         "bytes betas must be below 1, lr and lr * decay finite, none negative",
                         a->lr, a->beta1, a->beta2, a->weight_decay, a->clip,
                         (int)sizeof rates.step);
    HMOE__TRY(hmoe__gradient_norm(m));
    if (a->clip > 0 && m->grad_norm > a->clip) clip = a->clip / m->grad_norm;
    rates.scale = (hmoe_real)clip;
    for (size_t i = 0, j; i < m->tensor_count; i = j) {   /* neighbours of one kind in one call */
        const hmoe_tensor *one = &m->tensors[i];
        size_t at = one->offset, end;
        for (j = i + 1; j < m->tensor_count && m->tensors[j].dims == one->dims
                        && m->tensors[j].fixed == one->fixed; j++) {}
        end = j < m->tensor_count ? m->tensors[j].offset : m->param_count;
        rates.decay = (hmoe_real)(one->dims == 2 ? a->lr * a->weight_decay : 0);
        if (one->fixed) m->steps->zero(m->grads + at, (end - at) * sizeof *m->grads);
        else m->steps->adamw(m->params + at, m->grads + at, m->exp_avg + at, m->exp_avg_sq + at,
                        end - at, &rates);
    }
    hmoe_status status = hmoe__steer(m);
    m->step++;
    hmoe__begin_step(m);
    return status;
}

/* =============================================================================================
   PART TWO - THE ENGINE ROOM. You have read the model; what follows makes it fast, safe and portable. */

/* ---------------------------------------------------------------------------------------------
   UTILITIES - messages, random numbers, exp. */

HMOE__PRINTF(2, 3)
static void hmoe__explain(char *message, const char *format, ...) {
    va_list args;
    if (!message) return;
    va_start(args, format);
    vsnprintf(message, HMOE_MESSAGE_SIZE, format, args);
    va_end(args);
}

static hmoe_status hmoe__no_memory(char *message, double bytes, const char *what) {
    return HMOE__FAIL(message, HMOE_OUT_OF_MEMORY, "out of memory: %.0f bytes for %s are not to be "
                      "had", bytes, what);
}

/* The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit in moves half of those out. */
static uint64_t hmoe__mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t hmoe_random(uint64_t seed, uint64_t what, uint64_t i, uint64_t j) {
    return hmoe__mix(hmoe__mix(hmoe__mix(hmoe__mix(seed) ^ what) ^ i) ^ j);
}

/* A number from N(0, 1), by Box and Muller's transform of two uniform ones. */
double hmoe_normal(uint64_t seed, uint64_t what, uint64_t i, uint64_t j) {
    uint64_t bits = hmoe_random(seed, what, i, j);
    double u = ((double)(bits >> 32) + 0.5) / 4294967296.0;   /* never 0 */
    double v = (double)(bits & 0xffffffffu) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static uint64_t hmoe__hash(const char *text) {   /* FNV-1a */
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* exp of a float, in steps that a compiler turns into vector instructions (libm's is called once
   per element, and softmax and SiLU would cost more than the products): x = n ln 2 + r, exp(r) by
   the polynomial of the Cephes library, 2^n by its bits. Relative error below 2e-7 for x in
   [-87, 88]; 0 from -88 down, where floats run out (no power of two has an exponent of -127: its
   bits are those of 0), and exp(88) above; NaN stays NaN. */
HMOE__INLINE float hmoe__expf(float x) {
    float shifted, n, r, p, power, size = fabsf(x);
    uint32_t bits;
    x = copysignf(size > 88.0f ? 88.0f : size, x);   /* not two limits: gcc would branch on them */
    shifted = x * 1.44269504f + 12582912.0f;   /* 1.5 * 2^23: the low bits are x / ln 2, rounded */
    n = shifted - 12582912.0f;
    r = x - n * 0.693359375f + n * 2.12194440e-4f;
    p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

HMOE__INLINE hmoe_real hmoe__exp(hmoe_real x) {
    return sizeof x == sizeof(float) ? (hmoe_real)hmoe__expf((float)x) : (hmoe_real)exp((double)x);
}

HMOE__INLINE hmoe_real hmoe__sqrt(hmoe_real x) {
    return sizeof x == sizeof(float) ? (hmoe_real)sqrtf((float)x) : (hmoe_real)sqrt((double)x);
}

HMOE__INLINE hmoe_real hmoe__sigmoid(hmoe_real x) { return 1 / (1 + hmoe__exp(-x)); }

/* ---------------------------------------------------------------------------------------------
   PRODUCTS - the one hot loop. Every heavy computation is a matrix product, and in a mixture of
   experts they come in ragged bunches: so there is one primitive, a *list* of products, each of
   its own size.

       C[i,j] = sum over k of A(i,k) B(k,j) + D[i,j]    i < M, j < N, k < K: letters of this
                                                         room alone, as in BLAS

   All three products of a linear map are this one, with other strides:

       forward   y  = x W^T      A = x     B(k,j) = W[j,k]
       input     dx = dy W       A = dy    B = W
       weight    dW += dy^T x    A(i,k) = dy[k,i]    B = x

   Columns of B are copied into a *panel*, NR numbers for each k one after another, padded with
   zeros; the tile then adds MR x NR products at a time in registers, reading the panel from the
   first cache in order. Where a row of A is a column in memory (weight), a block of A is copied,
   too. A thread needs 360 KB of stack for the two. */

/* The tile fills the vector registers: MR * NR / (numbers in one) of them hold sums. */
#if defined(__AVX512F__)
enum { HMOE__MR = 6, HMOE__NR = 256 / sizeof(hmoe_real) };    /* 24 of 32 registers */
#elif defined(__AVX__) || defined(__aarch64__)
enum { HMOE__MR = 6, HMOE__NR = 64 / sizeof(hmoe_real) };     /* AVX2: 12 of 16; NEON: 24 of 32 */
#else
enum { HMOE__MR = 2, HMOE__NR = 64 / sizeof(hmoe_real) };     /* 128 bits: 8 of 16 */
#endif
enum { HMOE__KC = 192,      /* so much of k at a time: the panel stays in the first cache */
       HMOE__ROWS = 1536 / sizeof(hmoe_real),   /* and so many rows that packing is worth it */
       HMOE__BLOCK_ROW = HMOE__ROWS + 16 };  /* no power of 2: those use only a part of a cache */

/* A perfect riffle of 256 cards: it moves the top bit of a card's place to the bottom. */
HMOE__INLINE void hmoe__riffle(hmoe_real *to, const hmoe_real *from) {
    HMOE__SIMD
    for (int i = 0; i < 128; i++) {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[i + 128];
    }
}

/* Transposes a square of 16 x 16. A number's place in it is row * 16 + column, and four riffles
   exchange the two. Compilers turn them into vector instructions, unlike 256 moves. */
static void hmoe__transpose(hmoe_real *to, size_t to_row, const hmoe_real *from, size_t from_row) {
    hmoe_real x[256] HMOE__ALIGNED, y[256] HMOE__ALIGNED;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) x[i * 16 + j] = from[i * from_row + j];
    hmoe__riffle(y, x), hmoe__riffle(x, y), hmoe__riffle(y, x), hmoe__riffle(x, y);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[i * to_row + j] = x[i * 16 + j];
}

/* B(k0 .. k0+K-1, j0 .. j0+n-1) into panel[K][nr]. */
static void hmoe__pack(hmoe_real *panel, const hmoe__product *p, int k0, int K, int j0, int n,
                       int nr) {
    const hmoe_real *b = p->b + j0 * p->b_col;
    if (p->b_col == 1) {
        for (int k = 0; k < K; k++) {
            const hmoe_real *b_k = b + (p->b_at ? p->b_at[k0 + k] : k0 + k) * p->b_k;
            for (int j = 0; j < n; j++) panel[k * nr + j] = b_k[j];
            for (int j = n; j < nr; j++) panel[k * nr + j] = 0;
        }
        return;
    }
    b += k0;
    for (int j = 0; j < nr; j += 16)
        for (int k = 0; k < K; k += 16)
            if (k + 16 <= K && j + 16 <= n)
                hmoe__transpose(panel + k * nr + j, nr, b + j * p->b_col + k, p->b_col);
            else
                for (int c = k; c < K && c < k + 16; c++)
                    for (int r = j; r < nr && r < j + 16; r++)
                        panel[c * nr + r] = r < n ? b[r * p->b_col + c] : 0;
}

/* A(i0 .. i0+rows-1, k0 .. k0+K-1), its columns rows in memory: block[k * BLOCK_ROW + i] */
static void hmoe__pack_block(hmoe_real *block, const hmoe__product *p, int i0, int rows, int k0,
                             int K) {
    for (int k = 0; k < K; k++) {
        const hmoe_real *a_k = p->a + (p->a_at ? p->a_at[k0 + k] : k0 + k) * p->a_k + i0;
        for (int i = 0; i < rows; i++) block[k * HMOE__BLOCK_ROW + i] = a_k[i];
    }
}

/* c = d + sum, or sum; m and n are constants where the whole tile is stored. */
HMOE__INLINE void hmoe__store(hmoe_real *c, const hmoe_real *d, size_t c_row,
                              hmoe_real sum[HMOE__MR][HMOE__NR], const int m, const int n) {
    for (int i = 0; i < m; i++, c += c_row) {
        if (d) for (int j = 0; j < n; j++) c[j] = d[j] + sum[i][j];
        else for (int j = 0; j < n; j++) c[j] = sum[i][j];
        d = d ? d + c_row : d;
    }
}

/* MR rows by nr columns, of which m by n are stored. nr is a constant wherever this is inlined, so
   that sum[][] becomes registers. row: where each row of A starts; its neighbours lie a_k apart. */
HMOE__INLINE void hmoe__tile(hmoe_real *c, const hmoe_real *d, size_t c_row,
                             const hmoe_real *const *row, size_t a_k, const hmoe_real *panel, int m,
                             int n, int K, const int nr) {
    hmoe_real sum[HMOE__MR][HMOE__NR], part[HMOE__MR][HMOE__NR];
    for (int i = 0; i < HMOE__MR; i++) {
        HMOE__SIMD
        for (int j = 0; j < nr; j++) sum[i][j] = 0;
    }
    for (int i = 0; i < HMOE__MR; i++)   /* where the next tile goes comes near meanwhile */
        for (int j = 0; j < nr; j += 64 / (int)sizeof *c)
            HMOE__PREFETCH(c + (i + HMOE__MR) * c_row + j, 1);
    for (int k = 0; k < K; k++)
        for (int i = 0; i < HMOE__MR; i++) {
            hmoe_real a_ik = row[i][k * a_k];
            HMOE__SIMD
            for (int j = 0; j < nr; j++) sum[i][j] += a_ik * panel[k * nr + j];
        }
    if (m == HMOE__MR && n == nr) hmoe__store(c, d, c_row, sum, HMOE__MR, nr);
    else {   /* a copy: clang keeps no array in registers of which any index varies */
        for (int i = 0; i < HMOE__MR; i++) for (int j = 0; j < nr; j++) part[i][j] = sum[i][j];
        hmoe__store(c, d, c_row, part, m, n);
    }
}

/* The tile of rows i .. i+m-1 and columns j0 .. j0+n-1. block: their part of one, or NULL. */
static void hmoe__multiply_tile(const hmoe__product *p, const hmoe_real *panel,
                                const hmoe_real *block, int i, int m, int j0, int n, int k0,
                                int K) {
    enum { NR = HMOE__NR, Q = HMOE__NR / 4 };
    const hmoe_real *row[HMOE__MR], *d = k0 ? p->c : p->d;
    size_t at = i * p->c_row + j0, a_k = block ? HMOE__BLOCK_ROW : 1;
    hmoe_real *c = p->c + at;
    for (int r = 0; r < HMOE__MR; r++) {   /* rows past m repeat the last one, and are not stored */
        int in = r < m ? r : m - 1;
        row[r] = block ? block + in
                 : p->a + (p->a_at ? p->a_at[i + in] : i + in) * p->a_row + k0;
    }
    d = d ? d + at : d;
    switch ((n + Q - 1) / Q) {
    case 4: hmoe__tile(c, d, p->c_row, row, a_k, panel, m, n, K, NR); break;
    case 3: hmoe__tile(c, d, p->c_row, row, a_k, panel, m, n, K, 3 * Q); break;
    case 2: hmoe__tile(c, d, p->c_row, row, a_k, panel, m, n, K, 2 * Q); break;
    default: hmoe__tile(c, d, p->c_row, row, a_k, panel, m, n, K, Q);
    }
}

/* Rows first .. end-1 of a product. */
static void hmoe__multiply_rows(const hmoe__product *p, int first, int end) {
    enum { MR = HMOE__MR, NR = HMOE__NR, Q = HMOE__NR / 4 };
    hmoe_real panel[HMOE__KC * NR] HMOE__ALIGNED, block[HMOE__KC * HMOE__BLOCK_ROW] HMOE__ALIGNED;
    for (int i0 = first; i0 < end; i0 += HMOE__ROWS)
        for (int k0 = 0; k0 == 0 || k0 < p->K; k0 += HMOE__KC) {   /* K = 0: an empty sum */
            int rows = end - i0 < HMOE__ROWS ? end - i0 : HMOE__ROWS;
            int K = p->K - k0 < HMOE__KC ? p->K - k0 : HMOE__KC;
            if (p->a_k != 1) hmoe__pack_block(block, p, i0, rows, k0, K);
            for (int j0 = 0; j0 < p->N; j0 += NR) {
                int n = p->N - j0 < NR ? p->N - j0 : NR;
                hmoe__pack(panel, p, k0, K, j0, n, (n + Q - 1) / Q * Q);
                for (int i = 0; i < rows; i += MR)
                    hmoe__multiply_tile(p, panel, p->a_k != 1 ? block + i : NULL, i0 + i,
                                        rows - i < MR ? rows - i : MR, j0, n, k0, K);
            }
        }
}

/* One whole product, by the calling thread alone. */
static void hmoe__multiply(hmoe__product p) { hmoe__multiply_rows(&p, 0, p.M); }

/* A few rows of x W^T, as in generation: a panel would be packed for hardly anything, and both
   operands lie in the order of k: each element of columns first .. end-1 is a dot product. */
static int hmoe__few(const hmoe__product *p) { return p->M < 4 && p->a_k == 1 && p->b_k == 1; }

static void hmoe__multiply_few(const hmoe__product *p, int first, int end) {
    for (int j = first; j < end; j++)
        for (int i = 0; i < p->M; i++) {
            const hmoe_real *a = p->a + (p->a_at ? p->a_at[i] : i) * p->a_row;
            const hmoe_real *b = p->b + j * p->b_col;
            hmoe_real sum = 0;
            for (int k = 0; k < p->K; k += 64 / (int)sizeof sum)   /* some rows ahead */
                HMOE__PREFETCH(b + k + 4096 / sizeof sum, 0);
            HMOE__SIMD_SUM(sum)
            for (int k = 0; k < p->K; k++) sum += a[k] * b[k];
            p->c[i * p->c_row + j] = p->d ? p->d[i * p->c_row + j] + sum : sum;
        }
}

static hmoe__part hmoe__part_of(double work, int part, int parts) {
    hmoe__part s = { work * part / parts, work * (part + 1) / parts, 0 };
    if (part + 1 == parts) s.to = DBL_MAX;
    return s;
}

static int hmoe__cut(double length, int units, double cost) {
    if (length <= 0 || cost <= 0) return 0;
    return length < units * cost ? (int)(length / cost) / HMOE__MR * HMOE__MR : units;
}

/* The next stretch of the line is `units` of one cost each: those of this part begin at *first.
   Returns their end. */
static int hmoe__next_of(hmoe__part *s, int units, double cost, int *first) {
    int end = hmoe__cut(s->to - s->at, units, cost);
    *first = hmoe__cut(s->from - s->at, units, cost);
    s->at += units * cost;
    return end;
}

enum { HMOE__FORWARD, HMOE__INPUT, HMOE__WEIGHT };

/* The product that a linear map asks for in one of the three forms. */
static hmoe__product hmoe__product_of(const hmoe_linear *map, int form) {
    size_t ldx = (size_t)map->ldx, ldy = (size_t)map->ldy, in = (size_t)map->in;
    int start = map->rows[0], rows = map->rows[1] - start;
    const int *x_at = map->x_row ? map->x_row + start : NULL;
    const int *y_at = map->y_row ? map->y_row + start : NULL;
    hmoe_real *w = map->w, *x = map->x + (x_at ? 0 : start * ldx);
    hmoe_real *y = map->y + (y_at ? 0 : start * ldy);
    const hmoe_real *d = map->add && form != HMOE__WEIGHT ? map->add + start
                         * (form == HMOE__FORWARD ? ldy : ldx) : NULL;
    hmoe__product forward = { y, d, x, w, x_at, NULL, ldy, ldx, 1, 1, in, rows, map->out, map->in };
    hmoe__product input = { x, d, y, w, y_at, NULL, ldx, ldy, 1, in, 1, rows, map->in, map->out };
    hmoe__product weight = { w, w, y, x, y_at, x_at, in, 1, ldy, ldx, 1, map->out, map->in, rows };
    return form == HMOE__FORWARD ? forward : form == HMOE__INPUT ? input : weight;
}

/* The members' outputs are one line of work, of which each thread makes one part. */
static void hmoe__multiply_list(const hmoe_linear *list, int n, int form) {
    hmoe__product product[HMOE_MAX_EXPERTS];
    double cost[HMOE_MAX_EXPERTS], work = 0;   /* of one output, of all */
    assert(n <= HMOE_MAX_EXPERTS);
    for (int i = 0; i < n; i++) {
        product[i] = hmoe__product_of(&list[i], form);
        cost[i] = (double)product[i].K;
        if (!list[i].in || !list[i].out) cost[i] = 1;   /* a null expert gives rows of zeros */
        work += cost[i] * product[i].M * product[i].N;
    }
    int parts = work > 5e5 ? hmoe__threads() : 1;   /* for less, waking the threads costs more */
    HMOE__PARALLEL_FOR(parts)
    for (int part = 0; part < parts; part++) {
        hmoe__part mine = hmoe__part_of(work, part, parts);
        for (int i = 0; i < n; i++) {   /* an expert without tokens: no rows, or a sum of nothing */
            const hmoe__product *p = &product[i];
            int first, end, few = hmoe__few(p);
            end = hmoe__next_of(&mine, few ? p->N : p->M, cost[i] * (few ? p->M : p->N), &first);
            if (few) hmoe__multiply_few(p, first, end);
            else hmoe__multiply_rows(p, first, end);
        }
    }
}

static void hmoe__linear_forward(const hmoe_linear *list, int n) {
    hmoe__multiply_list(list, n, HMOE__FORWARD);
}
static void hmoe__linear_backward_input(const hmoe_linear *list, int n) {
    hmoe__multiply_list(list, n, HMOE__INPUT);
}
static void hmoe__linear_backward_weight(const hmoe_linear *list, int n) {
    hmoe__multiply_list(list, n, HMOE__WEIGHT);
}

/* ---------------------------------------------------------------------------------------------
   EXPERT SIZES, shared out */

/* Shares `units` among n experts in proportion to ratio[]. An expert whose share is below one unit
   gets one, and the others share the rest; each then gets the whole part of its share, and the
   largest remainders one unit more, ties going to the lowest index. */
static void hmoe__share(long long *width, const double *ratio, int n, long long units) {
    const double tiny = 1e-9;   /* what rounding may make of a whole share, or of a tie */
    double remainder[HMOE_MAX_EXPERTS], sum;
    long long rest;
    int small;
    for (int i = 0; i < n; i++) width[i] = 0;      /* 0: still shares */
    do {
        sum = 0, rest = units, small = 0;
        for (int i = 0; i < n; i++)
            if (width[i]) rest--;
            else sum += ratio[i];
        for (int i = 0; i < n; i++)
            if (!width[i] && ratio[i] / sum * (double)rest < 1 - tiny) width[i] = small = 1;
    } while (small);
    for (int i = 0; i < n; i++) {
        double share = ratio[i] / sum * (double)rest;
        remainder[i] = -1;
        if (width[i]) { units--; continue; }
        width[i] = (long long)(share + tiny);
        remainder[i] = share - (double)width[i];
        units -= width[i];
    }
    for (; units > 0; units--) {
        int best = 0;
        for (int i = 1; i < n; i++) if (remainder[i] > remainder[best] + tiny) best = i;
        width[best]++;
        remainder[best] = -1;
    }
}

/* Ratios written as "9,11,13": exactly E of them, each 0 or from 1e-9 to 1e9, and not all 0. */
static hmoe_status hmoe__listed_ratios(double *ratio, int E, const char *list, char *message) {
    const char *at = list;
    double sum = 0;
    for (int n = 0;; n++) {
        char *end;
        double value = strtod(at, &end);
        if (end == at || (*end && *end != ','))
            return HMOE__BAD(message, "sizes '%.200s': not a strategy (homogeneous, arithmetic, "
                             "geometric, hybrid, modse), nor ratios such as 9,11,13", list);
        if (value != 0 && !(value >= 1e-9 && value <= 1e9))
            return HMOE__BAD(message, "ratio %g in '%.200s' must be 0, or from 1e-9 to 1e9", value,
                             list);
        if (n < E) ratio[n] = value;
        sum += value;
        if (!*end && n + 1 == E)
            return sum > 0 ? HMOE_OK : HMOE__BAD(message, "'%.200s': all ratios are 0: at least "
                                                 "one expert must have a width", list);
        if (!*end || n + 1 > E)
            return HMOE__BAD(message, "'%.200s' has %s than %d ratios, one for each expert", list,
                             n + 1 < E ? "fewer" : "more", E);
        at = end + 1;
    }
}

hmoe_status hmoe_expert_sizes(int *H, int E, long long total, const char *strategy, char *message) {
    double ratio[HMOE_MAX_EXPERTS] = { 0 }, pair[HMOE_MAX_EXPERTS] = { 0 };
    long long width[HMOE_MAX_EXPERTS], pairs[HMOE_MAX_EXPERTS], unit;
    int of[HMOE_MAX_EXPERTS], n = 0, equal = 1;
    if (E < 1 || E > HMOE_MAX_EXPERTS)
        return HMOE__BAD(message, "%d experts: must be 1 to %d", E, HMOE_MAX_EXPERTS);
    if (!hmoe__named_ratios(ratio, E, strategy))
        HMOE__TRY(hmoe__listed_ratios(ratio, E, strategy, message));
    for (int e = 0; e < E; e++)   /* null experts stand aside: n experts share the total */
        if (ratio[e] > 0) of[n] = e, ratio[n++] = ratio[e];
    if (total < n || total > HMOE_MAX_DIM)
        return HMOE__BAD(message, "a total width of %lld for %d experts: must be from %d, one for "
                         "each, to %d", total, n, n, HMOE_MAX_DIM);
    for (int i = 1; i < n; i++) equal &= ratio[i] == ratio[0];
    unit = equal ? (total % (8LL * n) == 0 ? 8 : 1) : total % 8 == 0 && total >= 8LL * n ? 8 : 1;
    if (strcmp(strategy, "modse")) hmoe__share(width, ratio, n, total / unit);
    else {   /* among the pairs first, so that all of them are as large */
        if (E % 2)
            return HMOE__BAD(message, "modse makes pairs: the number of experts must be even, not "
                             "%d", E);
        for (int i = 0; i < E / 2; i++) pair[i] = ratio[2 * i] + ratio[2 * i + 1];
        hmoe__share(pairs, pair, E / 2, total / unit);
        for (int i = 0; i < E / 2; i++) hmoe__share(width + 2 * i, ratio + 2 * i, 2, pairs[i]);
    }
    for (int e = 0; e < E; e++) H[e] = 0;
    for (int i = 0; i < n; i++) H[of[i]] = (int)(width[i] * unit);
    return HMOE_OK;
}

hmoe_status hmoe_place_experts(int *device, const int *H, int E, int D, hmoe_placement placement,
                               char *message) {
    int by_width[HMOE_MAX_EXPERTS], pairs = placement == HMOE_PAIRS;
    for (int e = 0; placement == HMOE_GIVEN && e < E; e++)
        if (device[e] < 0 || device[e] >= D)
            return HMOE__BAD(message, "expert %d of %d is on device %d: must be from 0 to %d", e,
                             E, device[e], D - 1);
    if (placement == HMOE_GIVEN) return HMOE_OK;
    if (E < 1 || E > HMOE_MAX_EXPERTS || D < 1 || D > E || E % (D << pairs))
        return HMOE__BAD(message, "%d experts on %d devices: %s each, so a multiple of %.0f", E, D,
                         pairs ? "whole pairs" : "equally many", (1.0 + pairs) * D);
    for (int e = 0, at; e < E; by_width[at] = e++)   /* the widest first */
        for (at = e; at && H[e] > H[by_width[at - 1]]; at--) by_width[at] = by_width[at - 1];
    for (int i = 0; i < E; i++)
        if (pairs) device[by_width[i]] = (i < E / 2 ? i : E - 1 - i) % D;
        else device[i] = i / (E / D);
    return HMOE_OK;
}

static double hmoe__total_width(const hmoe_config *c) {
    double total = 0;
    for (int e = 0; e < c->E; e++) total += c->H[e];
    return total;
}

/* ---------------------------------------------------------------------------------------------
   THE MODEL - its tensors and its memory, each laid out by one function. */

hmoe_config hmoe_default_config(void) {
    hmoe_config c;
    memset(&c, 0, sizeof c);
    c.T = 64, c.C = 128, c.L = 4, c.NH = 4, c.E = 8, c.K = 2;
    hmoe_expert_sizes(c.H, c.E, 8 * 172, "arithmetic", NULL);
    c.top_p = 0.57, c.pp_coef = 0.01, c.balance_rate = 0.001;
    c.rms_norm_eps = 1e-5, c.rope_theta = 10000;
    return c;
}

static int hmoe__norm_gates(const hmoe_config *c) {
    if (c->gate == HMOE_GATE_DEFAULT) return c->routing == HMOE_TOP_P || c->K > 1;
    return c->gate == HMOE_GATE_NORM;
}

static int hmoe__slots(const hmoe_config *c) { return c->routing == HMOE_TOP_K ? c->K : c->E; }

static int hmoe__widest(const hmoe_config *c) {
    int widest = 0;
    for (int e = 0; e < c->E; e++) widest = c->H[e] > widest ? c->H[e] : widest;
    return widest;
}

hmoe_status hmoe_check_config(const hmoe_config *c, char *message) {
    const struct { const char *what; double value, low, high; } range[] = {
        { "vocabulary V", (double)c->V, 1, HMOE_MAX_DIM },
        { "context T", (double)c->T, 1, HMOE_MAX_DIM },
        { "width C", (double)c->C, 2, HMOE_MAX_DIM },
        { "number of layers L", (double)c->L, 1, HMOE_MAX_LAYERS },
        { "number of heads NH", (double)c->NH, 1, HMOE_MAX_DIM },
        { "number of experts E", (double)c->E, 1, HMOE_MAX_EXPERTS },
        { "experts per token K", (double)c->K, 1, (double)c->E },
        { "routing", (double)c->routing, HMOE_TOP_K, HMOE_TOP_P },
        { "gate", (double)c->gate, HMOE_GATE_DEFAULT, HMOE_GATE_RAW },
        { "top_p", c->top_p, 1e-9, 1 }, { "budget", c->budget, 0, 1 },
        { "balance", (double)c->balance, HMOE_BALANCE_OFF, HMOE_BALANCE_WORK },
        { "balance_rate", c->balance_rate, 0, 1 },
        { "noisy_gating", (double)c->noisy_gating, 0, 1 },
        { "lb_coef", c->lb_coef, 0, 1e6 }, { "pp_coef", c->pp_coef, 0, 1e6 },
        { "ent_coef", c->ent_coef, 0, 1e6 }, { "z_coef", c->z_coef, 0, 1e6 },
        { "rms_norm_eps", c->rms_norm_eps, 0, 1 }, { "rope_theta", c->rope_theta, 1, 1e12 },
    };
    for (size_t i = 0; i < sizeof range / sizeof range[0]; i++)
        if (!(range[i].value >= range[i].low && range[i].value <= range[i].high))   /* or NaN */
            return HMOE__BAD(message, "%s is %.9g: must be from %.9g to %.9g", range[i].what,
                             range[i].value, range[i].low, range[i].high);
    if (c->C % c->NH || c->C / c->NH % 2)
        return HMOE__BAD(message, "width C is %d and heads NH %d: C must be NH times an even head "
                         "size", c->C, c->NH);
    for (int e = 0; e < c->E; e++)
        if (c->H[e] < 0 || c->H[e] > HMOE_MAX_DIM || hmoe__total_width(c) > HMOE_MAX_DIM
            || hmoe__total_width(c) < 1)
            return HMOE__BAD(message, "expert_sizes: expert %d is %d wide: must be from 0 to %d, "
                             "and all of them together from 1 to %d", e, c->H[e], HMOE_MAX_DIM,
                             HMOE_MAX_DIM);
    if (c->budget > 0 && c->routing != HMOE_TOP_P)
        return HMOE__BAD(message, "budget %.9g: steers top_p, so it needs Top-P routing: Top-K "
                         "takes K experts whatever they cost", c->budget);
    if (c->vocab_size != 0 && (c->vocab_size != c->V || c->V > 256))
        return HMOE__BAD(message, "vocab: %d bytes, V: %d, must be equal", c->vocab_size, c->V);
    for (int i = 1; i < c->vocab_size; i++)
        if (c->vocab[i] <= c->vocab[i - 1])
            return HMOE__BAD(message, "vocab: byte %d follows byte %d: must ascend", c->vocab[i],
                             c->vocab[i - 1]);
    return HMOE_OK;
}

/* Does this process have it? An expert of another one is listed, and takes no room. */
static int hmoe__is_here(const hmoe_model *m, int expert) {
    return expert < 0 || !m->peers || m->peers->here[expert];
}

/* Where a call may fail in one process alone, all meet here, and all fail. N: as in hmoe_peers. */
static hmoe_status hmoe__agree(hmoe_model *m, hmoe_status status, int N) {
    return m->peers ? m->peers->agree(m, status, N) : status;
}

/* Adds one tensor to the table (in a first walk there is none: it only counts), and notes in *at
   where it starts. cols 0: a vector. */
HMOE__PRINTF(8, 9)
static void hmoe__add_tensor(hmoe_model *m, size_t *at, int expert, int rows, int cols, double mean,
                             double std, const char *name, ...) {
    *at = m->param_count;
    if (m->tensors) {
        hmoe_tensor *t = &m->tensors[m->tensor_count];
        va_list args;
        va_start(args, name);
        vsnprintf(t->name, sizeof t->name, name, args);
        va_end(args);
        t->dims = cols ? 2 : 1, t->rows = rows, t->cols = cols ? cols : 1;
        t->offset = *at, t->expert = expert, t->mean = mean, t->std = std;
    }
    m->tensor_count++;
    if (hmoe__is_here(m, expert)) m->param_count += (size_t)rows * (cols ? cols : 1);
}

/* The same for a layer's state: n numbers that all start at `value`. */
static void hmoe__add_state(hmoe_model *m, size_t *at, int n, double value, const char *moe,
                            const char *name) {
    hmoe__add_tensor(m, at, -1, n, 0, value, 0, "%s.%s", moe, name);
    if (m->tensors) m->tensors[m->tensor_count - 1].state = 1;
}

/* The one walk over all parameters, in the order in which they lie. Matrices start as N(0, 0.02);
   the two that write to the residual stream are smaller by sqrt(2L), the number of such writes. */
static void hmoe__list_tensors(hmoe_model *m, hmoe__layer *layers) {
    const hmoe_config *c = &m->config;
    const double std = 0.02, std_out = 0.02 / sqrt(2.0 * c->L);
    hmoe__layer unused;
    size_t inside;   /* another tensor that belongs to the one before */
    m->tensor_count = m->param_count = 0;
    hmoe__add_tensor(m, &inside, -1, c->V, c->C, 0, std, "model.embed_tokens.weight");
    for (int l = 0; l < c->L; l++) {
        hmoe__layer *ly = layers ? &layers[l] : &unused;
        char layer[32], moe[64];
        snprintf(layer, sizeof layer, "model.layers.%d", l);
        snprintf(moe, sizeof moe, "%s.block_sparse_moe", layer);
        hmoe__add_tensor(m, &ly->w_norm1, -1, c->C, 0, 1, 0, "%s.input_layernorm.weight",
                         layer);
        for (int i = 0; i < 3; i++)
            hmoe__add_tensor(m, i ? &inside : &ly->w_qkv, -1, c->C, c->C, 0, std,
                             "%s.self_attn.%c_proj.weight", layer, "qkv"[i]);
        hmoe__add_tensor(m, &ly->w_o, -1, c->C, c->C, 0, std_out, "%s.self_attn.o_proj.weight",
                         layer);
        hmoe__add_tensor(m, &ly->w_norm2, -1, c->C, 0, 1, 0, "%s.post_attention_layernorm.weight",
                         layer);
        hmoe__add_tensor(m, &ly->w_router, -1, c->E, c->C, 0, std, "%s.gate.weight", moe);
        if (c->balance)
            hmoe__add_state(m, &ly->bias, c->E, 0, moe, "gate.e_score_correction_bias");
        if (c->budget > 0) hmoe__add_state(m, &ly->top_p, 1, c->top_p, moe, "top_p");
        if (c->noisy_gating) {
            hmoe__add_tensor(m, &ly->w_noise, -1, c->E, c->C, 0, 0, "%s.noise.weight", moe);
            hmoe__add_tensor(m, &ly->w_noise_gain, -1, c->E, 0, 1, 0, "%s.noise_norm.weight", moe);
        }
        for (int e = 0; e < c->E; e++) {
            int H = c->H[e], C = c->C;
            if (!H) { ly->w13[e] = ly->w2[e] = 0; continue; }   /* a null expert has no tensors */
            hmoe__add_tensor(m, &ly->w13[e], e, H, C, 0, std, "%s.experts.%d.w1.weight", moe, e);
            hmoe__add_tensor(m, &inside, e, H, C, 0, std, "%s.experts.%d.w3.weight", moe, e);
            hmoe__add_tensor(m, &ly->w2[e], e, C, H, 0, std_out, "%s.experts.%d.w2.weight", moe, e);
        }
    }
    hmoe__add_tensor(m, layers ? &layers[c->L].w_norm1 : &inside, -1, c->C, 0, 1, 0,
                     "model.norm.weight");
    hmoe__add_tensor(m, &m->head, -1, c->V, c->C, 0, std, "lm_head.weight");
}

/* The arena: arrays one after another, each on a cache line of its own. With base NULL it only
   counts, so the formula for the memory is the layout itself. Bytes are counted as double: products
   of hostile sizes must not wrap around. */
typedef struct hmoe__arena {
    char *base;
    double used, most;
} hmoe__arena;

static void *hmoe__take(hmoe__arena *a, double rows, double cols, size_t size) {
    void *array = a->base ? a->base + (size_t)a->used : NULL;
    a->used += ceil(rows * cols * (double)size / 64) * 64;
    if (a->used > a->most) a->most = a->used;
    return array;
}

static hmoe_real *hmoe__reals(hmoe__arena *a, double rows, double cols) {
    return (hmoe_real *)hmoe__take(a, rows, cols, sizeof(hmoe_real));
}

static int *hmoe__ints(hmoe__arena *a, double rows, double cols) {
    return (int *)hmoe__take(a, rows, cols, sizeof(int));
}

static void hmoe__take_routes(hmoe__arena *a, hmoe_routes *r, int slots, double N, int E) {
    r->slots = slots;
    r->logits = hmoe__reals(a, N, E), r->P = hmoe__reals(a, N, E);
    r->lse = hmoe__reals(a, N, 1), r->entropy = hmoe__reals(a, N, 1);
    r->count = hmoe__ints(a, N, 1);
    r->expert = hmoe__ints(a, N, slots), r->gate = hmoe__reals(a, N, slots);
    r->expert_start = hmoe__ints(a, E + 1, 1);
    r->row_token = hmoe__ints(a, N, slots), r->row_gate = hmoe__reals(a, N, slots);
    r->row = hmoe__ints(a, N, slots);
}

/* The one walk over the activations. Without training the layers use the same memory in turn, but
   for their routes, which one may want to look at. ldh is 0 where peers have the experts' rows. */
static double hmoe__list_activations(const hmoe_config *c, int ldh, int max_B, int training,
                                     char *base, hmoe__layer *layers, hmoe__buffers *b) {
    hmoe__arena arena = { base, 0, 0 }, *a = &arena;
    hmoe__layer unused;
    int slots = hmoe__slots(c);
    double N = max_B ? (double)max_B * c->T : 1, rows = N * slots, C = c->C, shared;
    for (int l = 0; l < c->L; l++)
        hmoe__take_routes(a, layers ? &layers[l].routes : &unused.routes, slots, N, c->E);
    shared = a->used;
    for (int l = 0; l <= c->L; l++) {
        hmoe__layer *ly = layers ? &layers[l] : &unused;
        if (!training) a->used = shared;
        ly->x = hmoe__reals(a, N, C);
        ly->rrms1 = hmoe__reals(a, N, 1), ly->n1 = hmoe__reals(a, N, C);
        if (l == c->L) break;
        ly->qkv = hmoe__reals(a, N, 3 * C), ly->att = hmoe__reals(a, N * c->NH, c->T);
        ly->out = hmoe__reals(a, N, C), ly->x2 = hmoe__reals(a, N, C);
        ly->rrms2 = hmoe__reals(a, N, 1), ly->n2 = hmoe__reals(a, N, C);
        ly->raw = hmoe__reals(a, c->noisy_gating ? N : 0, c->E);
        ly->u = hmoe__reals(a, rows, 2 * ldh);
    }
    a->used = a->most;
    b->tokens = hmoe__ints(a, N, 1), b->targets = hmoe__ints(a, N, 1);
    b->all_rows = hmoe__ints(a, 2, 1);
    b->angles = hmoe__reals(a, c->T, C / c->NH);
    b->h = hmoe__reals(a, rows, ldh), b->rows = hmoe__reals(a, rows, C);
    b->logits = hmoe__reals(a, N, c->V), b->ce = hmoe__reals(a, N, 1);
    b->sums = (double *)hmoe__take(a, c->L, (double)hmoe__sum_count(c), sizeof(double));
    b->dP_all = hmoe__reals(a, c->L, c->E);
    if (training) {
        b->dx = hmoe__reals(a, N, C), b->dn = hmoe__reals(a, N, C);
        b->dqkv = hmoe__reals(a, N, 3 * C), b->dout = hmoe__reals(a, N, C);
        b->datt = hmoe__reals(a, N * c->NH, HMOE__QUERIES);
        b->dh = hmoe__reals(a, rows, ldh), b->dgate = hmoe__reals(a, rows, 1);
    }
    return a->most + 64;   /* room to bring the start to a cache line */
}

static const hmoe_steps *hmoe__cpu(void);   /* under OPTIMIZER, when all of them are known */

/* Waits for the backend, and passes on what went wrong there. */
static hmoe_status hmoe__settle(hmoe_model *m) {
    const char *error = m->steps->error();
    return error ? HMOE__FAIL(m->message, HMOE_IO, "%s: %s", m->steps->name, error) : HMOE_OK;
}

static void *hmoe__zeroed(size_t count, size_t size) {
    void *p = count && size > (size_t)-1 / 2 / count ? NULL : HMOE_MALLOC(count * size);
    if (p) memset(p, 0, count * size);
    return p;
}

/* Draws every tensor's first values. Each number has its own place in the random stream. */
static void hmoe__init_params(hmoe_model *m, hmoe_real *host) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        uint64_t what = hmoe__hash(t->name);
        if (!hmoe__is_here(m, t->expert)) continue;
        HMOE__PARALLEL_FOR(t->rows)
        for (int r = 0; r < t->rows; r++)
            for (size_t k = (size_t)r * t->cols, end = k + t->cols; k < end; k++)
                host[k] = (hmoe_real)(t->mean + (t->std > 0 ? t->std * hmoe_normal(m->seed, what,
                                                                                 k, 0) : 0));
        m->steps->store(m->params + t->offset, host, (size_t)t->rows * t->cols * sizeof *host);
    }
}

/* The model's own small arrays, in the host's memory, and the list of its tensors. */
static hmoe_status hmoe__create_tables(hmoe_model *m) {
    const hmoe_config *c = &m->config;
    size_t sums = c->L * hmoe__sum_count(c);
    hmoe__buffers *b;
    hmoe__list_tensors(m, NULL);   /* counts */
    m->tensors = (hmoe_tensor *)hmoe__zeroed(m->tensor_count, sizeof *m->tensors);
    m->layers = (hmoe__layer *)hmoe__zeroed((size_t)c->L + 1, sizeof *m->layers);
    m->buffers = b = (hmoe__buffers *)hmoe__zeroed(1, sizeof *m->buffers);
    /* usage, and after it the host's other arrays */
    m->usage = (double *)hmoe__zeroed(2 * (sums + 1) + 2 * (size_t)c->L * c->E + m->max_tokens + 1,
                                      sizeof *m->usage);
    if (!m->tensors || !m->layers || !m->usage || !b)
        return hmoe__no_memory(m->message, (double)m->tensor_count * sizeof *m->tensors,
                               "the list of tensors");
    b->host_sums = m->usage + sums + 1;
    m->chosen = b->host_sums + sums + 1;
    b->host_dP = (hmoe_real *)(m->chosen + c->L * c->E), b->host_ce = b->host_dP + c->L * c->E;
    hmoe__list_tensors(m, m->layers);
    return HMOE_OK;
}

/* The big arrays, in the backend's memory. draw: give the parameters their first values. */
static hmoe_status hmoe__create_arrays(hmoe_model *m, int max_B, int training, int draw) {
    const hmoe_config *c = &m->config;
    hmoe_real **array[4] = { &m->params, &m->grads, &m->exp_avg, &m->exp_avg_sq }, *host;
    size_t bytes = m->param_count * sizeof(hmoe_real), hs = (size_t)c->C / c->NH, most = c->T * hs;
    int ldh = m->peers ? 0 : hmoe__widest(c);
    double arena = hmoe__list_activations(c, ldh, max_B, training, NULL, NULL, m->buffers);
    double all = arena + (training ? 4.0 : 1.0) * (double)bytes;
    /* Linux promises, piece by piece, more than it has, and kills who uses it: so ask at once */
    void *whole = all < (double)((size_t)-1 / 4) ? m->steps->get((size_t)all) : NULL;
    if (!whole) return hmoe__no_memory(m->message, all, "a model, which grows with the square of C "
                                       "and, training, of T,");
    m->steps->give_back(whole);
    for (int i = 0; i < (training ? 4 : 1); i++) {
        *array[i] = (hmoe_real *)m->steps->get(bytes);
        if (!*array[i]) return hmoe__no_memory(m->message, (double)bytes, "the parameters");
        m->steps->zero(*array[i], bytes);
    }
    m->arena = m->steps->get((size_t)arena);
    if (!m->arena) return hmoe__no_memory(m->message, arena, "activations");
    hmoe__list_activations(c, ldh, max_B, training,
                           (char *)m->arena + (64 - (uintptr_t)m->arena % 64) % 64, m->layers,
                           m->buffers);
    for (int l = 0; l < c->L; l++) {
        hmoe_routes *routes = &m->layers[l].routes;
        routes->bias = c->balance ? m->params + m->layers[l].bias : NULL;
        routes->top_p = c->budget > 0 ? m->params + m->layers[l].top_p : NULL;
    }
    for (size_t i = 0; i < m->tensor_count; i++) {
        size_t n = (size_t)m->tensors[i].rows * m->tensors[i].cols;
        most = n > most ? n : most;
    }
    host = (hmoe_real *)HMOE_MALLOC(most * sizeof *host);   /* where arrays are made and stored */
    if (!host) return hmoe__no_memory(m->message, (double)most * sizeof *host, "a tensor");
    for (int t = 0; t < c->T; t++) hmoe__rope_angles(host + t * hs, t, (int)hs, c->rope_theta);
    m->steps->store(m->buffers->angles, host, c->T * hs * sizeof *host);
    if (draw) hmoe__init_params(m, host);
    HMOE_FREE(host);
    return hmoe__settle(m);
}

static hmoe_status hmoe__create(hmoe_model *m, const hmoe_config *config, uint64_t seed, int max_B,
                                int training, int draw) {
    double params, rows = (double)max_B * config->T;
    HMOE__TRY(hmoe_check_config(config, m->message));
    if (max_B < 0 || rows * hmoe__slots(config) > HMOE_MAX_TOKENS)
        return HMOE__BAD(m->message, "batches of %d x %d tokens: at least 0 sequences and at most "
                         "%d tokens, counted once for each of %d experts", max_B, config->T,
                         HMOE_MAX_TOKENS, hmoe__slots(config));
    params = 2.0 * config->V * config->C + (double)config->L * config->C
             * (4.0 * config->C + 3 * hmoe__total_width(config) + config->E);
    if (params * 4 * sizeof(hmoe_real) > (double)((size_t)-1 / 4))
        return hmoe__no_memory(m->message, params * sizeof(hmoe_real), "the parameters");
    m->config = *config;
    m->config.gate = hmoe__norm_gates(config) ? HMOE_GATE_NORM : HMOE_GATE_RAW;
    m->seed = seed;
    m->max_tokens = max_B * config->T;
    m->mode = -1;
    m->best_val_loss = DBL_MAX;
    if (!m->steps) m->steps = hmoe__cpu();
    if (m->peers) HMOE__TRY(m->peers->create(m, max_B, training));
    HMOE__TRY(hmoe__create_tables(m));
    return hmoe__create_arrays(m, max_B, training, draw);
}

/* Frees what a failed creation left, here or in another process. */
static hmoe_status hmoe__created(hmoe_model *m, hmoe_status status) {
    status = hmoe__agree(m, status, 0);
    if (status) hmoe_free(m);
    return status;
}

hmoe_status hmoe_create(hmoe_model *m, const hmoe_config *config, uint64_t seed, int max_B,
                        int training) {
    m->message[0] = 0;
    return hmoe__created(m, hmoe__create(m, config, seed, max_B, training, 1));
}

void hmoe_free(hmoe_model *m) {
    const hmoe_model old = *m;
    void *arrays[5] = { m->params, m->grads, m->exp_avg, m->exp_avg_sq, m->arena };
    for (int i = 0; m->steps && i < 5; i++) m->steps->give_back(arrays[i]);
    HMOE_FREE(m->tensors);
    HMOE_FREE(m->layers);
    HMOE_FREE(m->buffers);
    HMOE_FREE(m->usage);
    memset(m, 0, sizeof *m);
    memcpy(m->message, old.message, sizeof m->message);
    m->steps = old.steps, m->peers = old.peers;
}

/* Activated parameters per token, were `widths` the chosen experts' added widths in all layers. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C;
    return c->L * (4 * C * C + 2 * C + c->E * C) + 2 * C + c->V * C + 3 * C * widths;
}

/* Fetches what the pass found, the sums of the routers and the cross-entropy, over all processes,
   and keeps account of it. FLOPs: 6 per activated parameter and token, and attention's, 4 C per key
   forward and twice that backward, over (T + 1) / 2 keys on average. */
static hmoe_status hmoe__collect(hmoe_model *m) {
    const hmoe_config *c = &m->config;
    hmoe__buffers *b = m->buffers;
    double *sums = b->host_sums, width = 0;
    size_t per_layer = hmoe__sum_count(c), n = c->L * per_layer;
    int N = m->B * m->sequence_length, all = m->all_tokens;
    m->steps->fetch(sums, b->sums, n * sizeof *sums);
    if (m->had_targets) m->steps->cross_entropy_forward(b->ce, b->logits, b->targets, N, c->V);
    if (m->had_targets) m->steps->fetch(b->host_ce, b->ce, (size_t)N * sizeof *b->host_ce);
    HMOE__TRY(hmoe__settle(m));
    sums[n] = 0;
    for (int t = 0; t < N && m->had_targets; t++) sums[n] += (double)b->host_ce[t] / all;
    if (m->peers) m->peers->sum(m, sums, (int)n + 1);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(sums[i]))
            return HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the router of layer %d gives NaN or "
                              "infinity: its weights or its input are no longer finite",
                              (int)(i / per_layer));
    for (size_t i = 0; i < n; i++) {
        m->usage[i] += sums[i];
        if (i % per_layer < (size_t)c->E) width += sums[i] * c->H[i % per_layer] / all;
    }
    m->usage[n] += all;
    m->pass_flops = all * (6 * hmoe__activated_with(c, width)
                           + 6.0 * c->L * c->C * (m->sequence_length + 1));
    if (!m->had_targets) return HMOE_OK;
    m->losses.ce = sums[n];
    hmoe__losses(&m->losses, b->host_dP, sums, c, all);
    if (isfinite(m->losses.total)) return HMOE_OK;
    return HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the loss is %f", m->losses.total);
}

static hmoe_status hmoe__check_tokens(hmoe_model *m, const char *what, const int *tokens, int N) {
    for (int t = 0; t < N; t++)
        if (tokens[t] < 0 || tokens[t] >= m->config.V)
            return HMOE__BAD(m->message, "%s %d is %d: must be from 0 to %d", what, t, tokens[t],
                             m->config.V - 1);
    return HMOE_OK;
}

static hmoe_status hmoe__check_batch(hmoe_model *m, hmoe_mode mode, const int *tokens,
                                     const int *targets, int B, int T) {
    if (B < (m->peers ? 0 : 1) || T < 1 || T > m->config.T || B > m->max_tokens / T)
        return HMOE__BAD(m->message, "a batch of %d x %d tokens: the model was made for sequences "
                         "of 1 to %d, and %d tokens in all", B, T, m->config.T, m->max_tokens);
    if (!tokens) return HMOE__BAD(m->message, "tokens are missing");
    if (mode == HMOE_TRAIN && (!m->grads || !targets))
        return HMOE__BAD(m->message, "training needs %s", m->grads ? "targets"
                         : "a model that was made for training");
    if (!(m->dropout >= 0 && m->dropout <= 0.9))
        return HMOE__BAD(m->message, "dropout is %g: must be from 0 to 0.9", m->dropout);
    HMOE__TRY(hmoe__check_tokens(m, "token", tokens, B * T));
    return targets ? hmoe__check_tokens(m, "target", targets, B * T) : HMOE_OK;
}

/* In 256 pieces of fixed place, so that the order of the sum does not depend on the threads. */
static double hmoe__squared_norm(const hmoe_real *g, size_t n) {
    double part[256], sum = 0;
    HMOE__PARALLEL_FOR(256)
    for (int i = 0; i < 256; i++) {
        size_t k = n / 256 * i + n % 256 * i / 256;
        size_t end = n / 256 * (i + 1) + n % 256 * (i + 1) / 256;
        for (part[i] = 0; k < end; k += 4096) {   /* 64 sums at once, of few numbers each */
            hmoe_real lane[64] = { 0 };
            size_t stop = end - k < 4096 ? end : k + 4096, q = k;
            for (; q + 64 <= stop; q += 64)
                HMOE__SIMD
                for (int j = 0; j < 64; j++) lane[j] += g[q + j] * g[q + j];
            for (int j = 0; q < stop; j++, q++) lane[j] += g[q] * g[q];
            for (int j = 0; j < 64; j++) part[i] += (double)lane[j];
        }
    }
    for (int i = 0; i < 256; i++) sum += part[i];
    return sum;
}

/* The processor's own steps, in the order of hmoe_steps. */
static void *hmoe__get(size_t bytes) { return HMOE_MALLOC(bytes); }
static void hmoe__give_back(void *array) { HMOE_FREE(array); }
static void hmoe__zero(void *array, size_t bytes) { memset(array, 0, bytes); }
static void hmoe__copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }
static const char *hmoe__error(void) { return NULL; }

static const hmoe_steps *hmoe__cpu(void) {
    static const hmoe_steps steps = {
        "cpu", hmoe__error, hmoe__get, hmoe__give_back, hmoe__copy, hmoe__copy,
        hmoe__zero, hmoe__linear_forward, hmoe__linear_backward_input, hmoe__linear_backward_weight,
        hmoe__embed_forward, hmoe__embed_backward, hmoe__rmsnorm_forward, hmoe__rmsnorm_backward,
        hmoe__rope, hmoe__attention_forward, hmoe__attention_backward, hmoe__up_forward,
        hmoe__swiglu_backward, hmoe__dropout, hmoe__cross_entropy_forward,
        hmoe__cross_entropy_backward,
        hmoe__noise_forward, hmoe__noise_backward, hmoe__router_softmax, hmoe__choose,
        hmoe__dispatch, hmoe__router_sums, hmoe__router_backward, hmoe__combine_forward,
        hmoe__combine_backward, hmoe__squared_norm, hmoe__adamw,
    };
    return &steps;
}

/* ---------------------------------------------------------------------------------------------
   INFERENCE - one token at a time: the forward page with N = 1, and a cache of the keys and values
   of the last T tokens. Each step reads every activated weight once, which is what it costs. */

hmoe_status hmoe_cache_create(hmoe_cache *cache, hmoe_model *m) {
    const hmoe_config *c = &m->config;
    double half = (double)c->L * c->T * c->C, bytes = (2 * half + c->C) * sizeof(hmoe_real);
    memset(cache, 0, sizeof *cache);
    m->message[0] = 0;
    if (m->steps != hmoe__cpu())
        return HMOE__BAD(m->message, "token-by-token generation runs on the CPU: load the model "
                         "without the %s backend", m->steps->name);
    if (bytes < (double)((size_t)-1 / 4)) cache->keys = (hmoe_real *)HMOE_MALLOC((size_t)bytes);
    hmoe_status status = hmoe__agree(m, cache->keys ? HMOE_OK : hmoe__no_memory(m->message, bytes,
                                     "the keys and values of T tokens in L layers"), 0);
    cache->L = c->L, cache->T = c->T, cache->C = c->C;
    if (status) hmoe_cache_free(cache);
    else cache->values = cache->keys + (size_t)half, cache->angles = cache->values + (size_t)half;
    return status;
}

void hmoe_cache_free(hmoe_cache *cache) {
    HMOE_FREE(cache->keys);
    memset(cache, 0, sizeof *cache);
}

/* Attention of one token to the last T, itself among them. Its key and value join the cache. */
static void hmoe__attention_cached(hmoe_cache *cache, const hmoe_config *c, int l, hmoe_real *out,
                                   hmoe_real *att, hmoe_real *q) {
    int C = c->C, hs = C / c->NH, seen = cache->position < c->T ? (int)cache->position + 1 : c->T;
    size_t layer = (size_t)l * c->T * C, slot = (size_t)(cache->position % c->T) * C;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    hmoe__rope_row(q, cache->angles, 1, 2 * c->NH, hs);
    memcpy(cache->keys + layer + slot, q + C, (size_t)C * sizeof *q);
    memcpy(cache->values + layer + slot, q + 2 * C, (size_t)C * sizeof *q);
    for (int head = 0; head < c->NH; head++, out += hs, q += hs) {
        const hmoe_real *k = cache->keys + layer + head * hs;
        const hmoe_real *v = cache->values + layer + head * hs;
        for (int j = 0; j < seen; j++, k += C) {
            hmoe_real sum = 0;
            HMOE__SIMD_SUM(sum)
            for (int i = 0; i < hs; i++) sum += q[i] * k[i];
            att[j] = sum;
        }
        hmoe__softmax_row(att, seen, scale, NULL);
        for (int i = 0; i < hs; i++) out[i] = 0;
        for (int j = 0; j < seen; j++, v += C)
            for (int i = 0; i < hs; i++) out[i] += att[j] * v[i];
    }
}

hmoe_status hmoe_next(hmoe_model *m, hmoe_cache *cache, int token, hmoe_real *logits) {
    hmoe__buffers *b = m->buffers;
    const hmoe_config *c = &m->config;
    int fits = cache->keys && cache->L == c->L && cache->T == c->T && cache->C == c->C;
    m->message[0] = 0;
    hmoe_status status = fits ? hmoe__check_tokens(m, "token", &token, 1) : HMOE__BAD(m->message,
                         "this cache was not made for this model: hmoe_cache_create");
    HMOE__TRY(hmoe__agree(m, status, 0));
    m->mode = -1;   /* what the last hmoe_forward left is overwritten */
    hmoe__rope_angles(cache->angles, cache->position, c->C / c->NH, c->rope_theta);
    b->all_rows[0] = 0, b->all_rows[1] = 1, b->tokens[0] = token;
    hmoe__layers_forward(m, 1, 1, cache);
    cache->position++;
    memcpy(logits, b->logits, (size_t)c->V * sizeof *logits);
    for (int i = 0; i < c->V; i++)
        if (!isfinite(logits[i]))
            status = HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the logits are not finite: the "
                                "weights are not those of a trained model");
    return hmoe__agree(m, status, 0);
}

int hmoe_sample(hmoe_real *logits, int V, double temperature, int top_k, double top_p,
                uint64_t seed, int64_t position) {
    double sum = 0, mass = 0, u;
    int best = 0, last, kept = 0, limit = top_k > 0 && top_k < V ? top_k : V;
    for (int i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    if (temperature <= 0) return best;
    for (int i = 0; i < V; i++) {   /* the softmax, times a constant; the order must not matter */
        if (i != best) logits[i] = (hmoe_real)exp((logits[i] - logits[best]) / temperature);
        sum += i == best ? 1 : (double)logits[i];
    }
    logits[best] = 1;
    for (; kept < limit && (top_p >= 1 || mass < top_p * sum); kept++) {
        if (limit == V && top_p >= 1) last = kept;   /* nothing is left out */
        else for (int i = last = 0; i < V; i++) if (logits[i] > logits[last]) last = i;
        mass += (double)logits[last];
        logits[last] = -logits[last];                /* negative: kept */
    }
    u = (double)(hmoe_random(seed, HMOE__FOR_SAMPLE, (uint64_t)position, 0) >> 11)
        / 9007199254740992.0 * mass;
    last = best;
    for (int i = 0; i < V; i++)
        if (logits[i] < 0) {
            last = i;
            u += (double)logits[i];
            if (u < 0) break;
        }
    return last;
}

/* =============================================================================================
   PART THREE - FILES AND INSPECTION */

/* ---------------------------------------------------------------------------------------------
   INSPECTION */

static hmoe_status hmoe__nothing_there(hmoe_model *m, const char *what) {
    return HMOE__BAD(m->message, "no %s: they are there after a hmoe_forward that succeeded and "
                     "before hmoe_backward", what);
}

hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (m->mode < 0) return hmoe__nothing_there(m, "logits");
    m->steps->fetch(logits, m->buffers->logits, N * m->config.V * sizeof *logits);
    return hmoe__settle(m);
}

hmoe_status hmoe_get_token_losses(hmoe_model *m, hmoe_real *ce) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (m->mode < 0 || !m->had_targets) return hmoe__nothing_there(m, "token losses");
    m->steps->fetch(ce, m->buffers->ce, N * sizeof *ce);
    return hmoe__settle(m);
}

size_t hmoe_activation_bytes(const hmoe_config *config, int max_B, int training) {
    hmoe__buffers unused;
    double bytes;
    if (hmoe_check_config(config, NULL) || max_B < 0) return 0;
    bytes = hmoe__list_activations(config, hmoe__widest(config), max_B, training, NULL, NULL,
                                   &unused);
    return bytes < (double)((size_t)-1 / 2) ? (size_t)bytes : (size_t)-1;
}

hmoe_status hmoe_get_route(hmoe_model *m, int layer, int token, hmoe_route *route) {
    const hmoe_steps *s = m->steps;
    hmoe_real gate[HMOE_MAX_EXPERTS], P[HMOE_MAX_EXPERTS];
    const hmoe_routes *r;
    size_t E = (size_t)m->config.E, slots;
    m->message[0] = 0;
    if (m->mode < 0) return hmoe__nothing_there(m, "routes");
    if (layer < 0 || layer >= m->config.L || token < 0 || token >= m->B * m->sequence_length)
        return HMOE__BAD(m->message, "no token %d in layer %d: there are %d "
                          "tokens and %d layers", token, layer, m->B * m->sequence_length,
                          m->config.L);
    r = &m->layers[layer].routes;
    slots = (size_t)r->slots;
    s->fetch(&route->count, r->count + token, sizeof(int));
    s->fetch(route->expert, r->expert + token * slots, slots * sizeof(int));
    s->fetch(gate, r->gate + token * slots, slots * sizeof *gate);
    s->fetch(P, r->P + token * E, E * sizeof *P);
    HMOE__TRY(hmoe__settle(m));
    for (int i = 0; i < route->count; i++) route->gate[i] = (double)gate[i];
    for (size_t e = 0; e < E; e++) route->P[e] = (double)P[e];
    return HMOE_OK;
}

void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage) {
    const hmoe_config *c = &m->config;
    size_t per_layer = hmoe__sum_count(c);
    const hmoe_routes *routes;
    const double *sums;
    double tokens, N;
    hmoe_real state[HMOE_MAX_EXPERTS];
    memset(usage, 0, sizeof *usage);
    if (layer < 0 || layer >= c->L) return;
    routes = &m->layers[layer].routes;
    sums = m->usage + layer * per_layer;
    tokens = m->usage[c->L * per_layer], N = tokens > 0 ? tokens : 1;
    usage->tokens = (int64_t)tokens;
    for (int e = 0; e < c->E; e++) {
        usage->share[e] = sums[e] / N;
        usage->P[e] = sums[c->E + e] / N;
        usage->width += usage->share[e] * c->H[e];
        usage->dead += sums[e] == 0;
    }
    for (int e = 0; e < c->E && usage->width > 0; e++)
        usage->compute[e] = usage->share[e] * c->H[e] / usage->width;
    usage->entropy = sums[2 * c->E] / N;
    usage->experts = sums[2 * c->E + 2] / N;
    if (c->routing == HMOE_TOP_P) usage->top_p = c->top_p;
    if (routes->top_p) {
        m->steps->fetch(state, routes->top_p, sizeof *state);
        usage->top_p = (double)*state;
    }
    if (routes->bias) m->steps->fetch(state, routes->bias, (size_t)c->E * sizeof *state);
    for (int e = 0; routes->bias && e < c->E; e++) usage->bias[e] = (double)state[e];
}

void hmoe_reset_usage(hmoe_model *m) {
    memset(m->usage, 0, (m->config.L * hmoe__sum_count(&m->config) + 1) * sizeof *m->usage);
}

hmoe_device hmoe_get_devices(const hmoe_model *m, const int *device, int D, hmoe_device *of) {
    const hmoe_config *c = &m->config;
    hmoe_device sum = { 0, 0, 0 }, most = { 0, 0, 0 };
    memset(of, 0, (size_t)D * sizeof *of);
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(m, l, &usage);
        for (int e = 0; e < c->E; e++) {
            double tokens = usage.share[e] * (double)usage.tokens;
            of[device[e]].params += 3.0 * c->C * c->H[e];
            of[device[e]].tokens += tokens;
            of[device[e]].work += tokens * c->H[e];
        }
    }
    for (int d = 0; d < D; d++) {
        sum.params += of[d].params, most.params = fmax(most.params, of[d].params);
        sum.tokens += of[d].tokens, most.tokens = fmax(most.tokens, of[d].tokens);
        sum.work += of[d].work, most.work = fmax(most.work, of[d].work);
    }
    if (sum.tokens > 0) most.tokens *= D / sum.tokens;
    if (sum.work > 0) most.work *= D / sum.work;   /* null experts do none */
    most.params *= D / sum.params;
    return most;
}

double hmoe_parameters(const hmoe_model *m) {
    double sum = 0;
    for (size_t i = 0; i < m->tensor_count; i++)
        if (!m->tensors[i].state) sum += (double)m->tensors[i].rows * m->tensors[i].cols;
    return sum;
}

double hmoe_activated(const hmoe_model *m) {
    const hmoe_config *c = &m->config;
    double widths = 0, even = c->routing == HMOE_TOP_K ? c->K : ceil(c->top_p * c->E);
    for (int l = 0; l < c->L; l++) {
        hmoe_usage usage;
        hmoe_get_usage(m, l, &usage);
        widths += usage.tokens ? usage.width : even * (double)hmoe__total_width(c) / c->E;
    }
    return hmoe__activated_with(c, widths);
}

hmoe_status hmoe_run_expert(hmoe_model *m, int layer, int e, const hmoe_real *x, hmoe_real *y,
                            int rows) {
    const hmoe_steps *s = m->steps;
    const hmoe_config *c = &m->config;
    int range[2] = { 0, rows }, C = c->C, H, *on;
    size_t n = (size_t)(rows > 0 ? rows : 0);
    double bytes;
    hmoe_real *xs, *ys, *u, *h;
    hmoe_linear up, down;
    hmoe_routes routes;
    hmoe_status status;
    m->message[0] = 0;
    if (layer < 0 || layer >= c->L || e < 0 || e >= c->E || rows < 0 || rows > HMOE_MAX_TOKENS
        || !hmoe__is_here(m, e))
        return HMOE__BAD(m->message, "no expert %d in layer %d, or not for %d "
                          "rows: there are %d in %d layers", e, layer, rows, c->E, c->L);
    H = c->H[e];
    bytes = 64 + (double)n * (2.0 * C + 3.0 * H) * sizeof *x;
    /* the range of rows, and after it the arrays */
    on = bytes < (double)((size_t)-1 / 4) ? (int *)s->get((size_t)bytes) : NULL;
    if (!on) return hmoe__no_memory(m->message, bytes, "the expert's rows");
    xs = (hmoe_real *)(void *)((char *)on + 64);
    ys = xs + n * C, u = ys + n * C, h = u + n * 2 * H;
    up = hmoe__dense(xs, m->params + m->layers[layer].w13[e], u, C, 2 * H, on, NULL);
    down = hmoe__dense(h, m->params + m->layers[layer].w2[e], ys, H, C, on, NULL);
    memset(&routes, 0, sizeof routes);
    routes.expert_start = on;
    s->store(on, range, sizeof range);
    s->store(xs, x, n * C * sizeof *x);
    s->up_forward(h, &up, &routes, &H, 1, H);
    s->linear_forward(&down, 1);
    s->fetch(y, ys, n * C * sizeof *y);
    status = hmoe__settle(m);
    s->give_back(on);
    return status;
}

/* ---------------------------------------------------------------------------------------------
   FILES - in the layout of Hugging Face's Mixtral.

   A checkpoint is a directory:

       config.json            what the model is made of: Mixtral's keys and a few of our own
       model.safetensors      its weights, float32
       tokenizer.json         its vocabulary, for the tokenizers library, with tokenizer_config.json
       training.safetensors   all that a run needs to go on, to the bit: the weights in the type of
                              the build, AdamW's moments (NAME.exp_avg, NAME.exp_avg_sq), and in its
                              metadata the state of the run

   All files are written beside their targets (NAME.tmp) and flushed to disk. Then they are renamed,
   config.json last. A crash at any moment leaves whole files, and a full disk the older ones. No
   reader needs two files of the same moment.

   A safetensors file is 8 bytes of length, so many bytes of JSON, and the tensors' bytes:

       { "__metadata__": { "format": "pt" },
         "lm_head.weight": { "dtype": "F32", "shape": [65, 128], "data_offsets": [0, 33280] }, ... }

   Reading trusts nothing: a text is checked to be JSON before anything is read of it, every length
   before it is used, and nothing large is allocated for a file too small to need it. (The context
   alone is taken from config.json's word: no weights belong to it.)
 */
#ifndef HMOE_NO_FILES

#include <ctype.h>
#include <errno.h>

/* ---------------------------------------------------------------------------------------------
   The platform - what C99 lacks: POSIX, then Windows, then what is left without either (files are
   not forced to the disk, the directory must be there already, 2 GB may be the limit). */
#if defined(__GLIBC__) && !defined(__USE_POSIX)
#error "Include hmoe.h before any other header, compile with -std=gnu99, or define HMOE_NO_FILES"
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
static FILE *hmoe__open(const char *path) {   /* to read; a pipe would wait for who writes */
    struct stat is;
    if (stat(path, &is) || S_ISREG(is.st_mode)) return fopen(path, "rb");
    errno = S_ISDIR(is.st_mode) ? EISDIR : EINVAL;
    return NULL;
}
static int hmoe__seek(FILE *f, int64_t at, int from) { return fseeko(f, (off_t)at, from); }
static int64_t hmoe__tell(FILE *f) { return ftello(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f) || fsync(fileno(f)); }
static int hmoe__make_directory(const char *path) { return mkdir(path, 0777) && errno != EEXIST; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    int fd, failed = rename(from, to);
    if (failed || (fd = open(dir, O_RDONLY)) < 0) return failed;
    fsync(fd);   /* so that the new name lasts too, where the file system can do this */
    close(fd);
    return 0;
}
#elif defined(_WIN32)
#include <direct.h>
#include <io.h>
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) int __stdcall MoveFileExA(const char *, const char *, unsigned long);
#ifdef __cplusplus
extern "C"
#endif
__declspec(dllimport) void __stdcall Sleep(unsigned long);
static FILE *hmoe__open(const char *path) { return fopen(path, "rb"); }
static int hmoe__seek(FILE *f, int64_t at, int from) { return _fseeki64(f, at, from); }
static int64_t hmoe__tell(FILE *f) { return _ftelli64(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f) || _commit(_fileno(f)); }
static int hmoe__make_directory(const char *path) { return _mkdir(path) && errno != EEXIST; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    (void)dir;
    for (int i = 0; i < 40; i++, Sleep(50))   /* a reader, or a virus scanner, has it open */
        if (MoveFileExA(from, to, 1 | 8)) return 0;   /* replace what is there; write it through */
    errno = EACCES;
    return -1;
}
#else
static FILE *hmoe__open(const char *path) { return fopen(path, "rb"); }
static int hmoe__seek(FILE *f, int64_t at, int from) { return fseek(f, (long)at, from); }
static int64_t hmoe__tell(FILE *f) { return ftell(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f); }
static int hmoe__make_directory(const char *path) { (void)path; return 0; }
static int hmoe__replace(const char *from, const char *to, const char *dir) {
    (void)dir;
    remove(to);
    return rename(from, to);
}
#endif

/* Files are little-endian: turns n numbers of `size` bytes from this machine's order into theirs,
   or back. On a little-endian machine compilers leave nothing of it. */
static void hmoe__order_bytes(void *numbers, size_t n, size_t size) {
    const uint16_t one = 1;
    unsigned char *at = (unsigned char *)numbers;
    if (*(const unsigned char *)&one == 1) return;
    for (size_t i = 0; i < n; i++, at += size)
        for (size_t k = 0; k < size / 2; k++) {
            unsigned char byte = at[k];
            at[k] = at[size - 1 - k];
            at[size - 1 - k] = byte;
        }
}

#define HMOE__CORRUPT(message, ...) HMOE__FAIL(message, HMOE_BAD_FILE, __VA_ARGS__)

hmoe_status hmoe_byte_vocab(hmoe_config *c, const unsigned char *text, size_t n, char *message) {
    unsigned char seen[256] = { 0 };
    if (n == 0) return HMOE__BAD(message, "an empty text has no vocabulary");
    for (size_t i = 0; i < n; i++) seen[text[i]] = 1;
    c->vocab_size = 0;
    for (int byte = 0; byte < 256; byte++)
        if (seen[byte]) c->vocab[c->vocab_size++] = (unsigned char)byte;
    c->V = c->vocab_size;
    return HMOE_OK;
}

enum { HMOE__PATH_SIZE = 4096 };

static hmoe_status hmoe__path(char *path, const char *dir, const char *name, const char *ending,
                              char *message) {
    int n = snprintf(path, HMOE__PATH_SIZE, "%s/%s%s", dir, name, ending);
    if (n >= 0 && n < HMOE__PATH_SIZE) return HMOE_OK;
    return HMOE__BAD(message, "the path %.100s... is too long", dir);
}

/* The arrays of a checkpoint (a model has only the first), and tensor number i of all of them. */
static hmoe_real *hmoe__saved_array(hmoe_model *m, size_t which) {
    return which == 0 ? m->params : which == 1 ? m->exp_avg : m->exp_avg_sq;
}

static const hmoe_tensor *hmoe__saved_tensor(const hmoe_model *m, size_t i,
                                             char name[HMOE_NAME_SIZE + 16]) {
    static const char *const ending[3] = { "", ".exp_avg", ".exp_avg_sq" };
    const hmoe_tensor *t = &m->tensors[i % m->tensor_count];
    snprintf(name, HMOE_NAME_SIZE + 16, "%s%s", t->name, ending[i / m->tensor_count]);
    return t;
}

/* ---------------------------------------------------------------------------------------------
   Writing. */

/* A file beside the one whose place it will take. */
typedef struct hmoe__output {
    FILE *file;
    char path[HMOE__PATH_SIZE];
} hmoe__output;

static hmoe_status hmoe__open_output(hmoe__output *out, const char *dir, const char *name,
                                     char *message) {
    HMOE__TRY(hmoe__path(out->path, dir, name, ".tmp", message));
    remove(out->path);   /* whatever it is: a file of another's, a link, a pipe */
    out->file = fopen(out->path, "wb");
    if (out->file) return HMOE_OK;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(errno));
}

/* Was all of it written, and is it on the disk? */
static hmoe_status hmoe__close_output(hmoe__output *out, hmoe_status status, char *message) {
    int error = 0;
    if (ferror(out->file) || hmoe__flush_to_disk(out->file)) error = errno ? errno : EIO;
    if (fclose(out->file) && !error) error = errno;
    if (status || !error) return status;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(error));
}

/* A double in the fewest digits that give it back. */
static void hmoe__write_double(FILE *f, double value) {
    char text[32];
    int digits = 15;
    do snprintf(text, sizeof text, "%.*g", digits, value);
    while (digits++ < 17 && strtod(text, NULL) != value);
    fputs(text, f);
}

static void hmoe__write_member(FILE *f, const char *name, double value) {
    fprintf(f, "  \"%s\": ", name);
    hmoe__write_double(f, value);
    fputs(",\n", f);
}

/* What config.json calls the values of hmoe_balance. */
static const char *const hmoe__balances[] = { "off", "tokens", "work" };

/* Is it one of Mixtral's own, so that whatever opens Mixtral computes the same? */
static int hmoe__is_mixtral(const hmoe_config *c) {
    for (int e = 1; e < c->E; e++) if (c->H[e] != c->H[0]) return 0;
    return c->routing == HMOE_TOP_K && hmoe__norm_gates(c) && !c->noisy_gating && !c->balance;
}

static void hmoe__write_list(FILE *f, const char *name, const hmoe_config *c, int n) {
    fprintf(f, "  \"%s\": [", name);
    for (int i = 0; i < n; i++)
        fprintf(f, "%s%d", i ? ", " : "", *name == 'v' ? c->vocab[i] : c->H[i]);
    fputs("],\n", f);
}

static hmoe_status hmoe__save_config(hmoe_model *m, const char *dir) {
    const hmoe_config *c = &m->config;
    const char *names[] = { "rms_norm_eps", "rope_theta", "top_p", "lb_coef", "pp_coef", "ent_coef",
                            "z_coef" };
    const double values[] = { c->rms_norm_eps, c->rope_theta, c->top_p, c->lb_coef, c->pp_coef,
                              c->ent_coef, c->z_coef };
    int mixtral = hmoe__is_mixtral(c);
    hmoe__output out;
    FILE *f;
    HMOE__TRY(hmoe__open_output(&out, dir, "config.json", m->message));
    f = out.file;
    fprintf(f, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            mixtral ? "MixtralForCausalLM" : "HMoEForCausalLM", mixtral ? "mixtral" : "hmoe");
    fprintf(f, "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n", c->C, c->L);
    fprintf(f, "  \"num_attention_heads\": %d,\n  \"num_key_value_heads\": %d,\n", c->NH, c->NH);
    fprintf(f, "  \"num_local_experts\": %d,\n  \"num_experts_per_tok\": %d,\n", c->E, c->K);
    fprintf(f, "  \"intermediate_size\": %d,\n  \"vocab_size\": %d,\n", hmoe__widest(c), c->V);
    fprintf(f, "  \"max_position_embeddings\": %d,\n", c->T);
    hmoe__write_list(f, "expert_sizes", c, c->E);
    fprintf(f, "  \"routing\": \"%s\",\n", c->routing == HMOE_TOP_K ? "topk" : "topp");
    fprintf(f, "  \"norm_topk_prob\": %s,\n", hmoe__norm_gates(c) ? "true" : "false");
    fprintf(f, "  \"noisy_gating\": %s,\n", c->noisy_gating ? "true" : "false");
    if (c->balance) {
        fprintf(f, "  \"balance\": \"%s\",\n", hmoe__balances[c->balance]);
        hmoe__write_member(f, "balance_rate", c->balance_rate);
    }
    if (c->budget > 0) hmoe__write_member(f, "budget", c->budget);
    for (int i = 0; i < 7; i++) {
        if (mixtral && i == 2) continue;   /* top_p: transformers would sample with it */
        hmoe__write_member(f, names[i], values[i]);
    }
    if (c->vocab_size) hmoe__write_list(f, "vocab", c, c->vocab_size);
    fputs("  \"rope_parameters\": {\"rope_theta\": ", f);
    hmoe__write_double(f, c->rope_theta);
    fputs(", \"rope_type\": \"default\"},\n  \"hidden_act\": \"silu\",\n"
          "  \"tie_word_embeddings\": false,\n  \"torch_dtype\": \"float32\",\n"
          "  \"dtype\": \"float32\",\n  \"bos_token_id\": null,\n  \"eos_token_id\": null\n}\n", f);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* The character that stands for a byte in GPT-2's byte-level alphabet: itself where it can be seen,
   and the others in turn from 256 on. */
static int hmoe__byte_character(int byte) {
    int other = 256;
    for (int b = 0;; b++) {
        int seen = (b > 32 && b < 127) || (b > 160 && b != 173);
        if (b == byte) return seen ? b : other;
        other += !seen;
    }
}

/* A BPE without merges: every byte is a token. */
static hmoe_status hmoe__save_tokenizer(hmoe_model *m, const char *dir) {
    static const char level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                "\"trim_offsets\": false, \"use_regex\": false}";
    const hmoe_config *c = &m->config;
    hmoe__output out;
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer.json", m->message));
    fprintf(out.file, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
            "  \"added_tokens\": [],\n  \"normalizer\": null,\n  \"pre_tokenizer\": %s,\n"
            "  \"post_processor\": null,\n  \"decoder\": %s,\n", level, level);
    fputs("  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,\n"
          "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n"
          "    \"fuse_unk\": false, \"byte_fallback\": false, \"merges\": [], \"vocab\": {",
          out.file);
    for (int i = 0; i < c->vocab_size; i++)
        fprintf(out.file, "%s\"\\u%04x\": %d", i ? ", " : "",
                (unsigned)hmoe__byte_character(c->vocab[i]), i);
    fputs("}}\n}\n", out.file);
    HMOE__TRY(hmoe__close_output(&out, HMOE_OK, m->message));
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer_config.json", m->message));
    fputs("{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n", out.file);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* The header of a safetensors file, `size` bytes a number, padded to a multiple of 8 bytes. Not 0
   where the file did not take it. */
static int hmoe__write_header(FILE *f, hmoe_model *m, size_t arrays, size_t size) {
    char name[HMOE_NAME_SIZE + 16];
    uint64_t length = 0, at = 0;
    int64_t end;
    fwrite(&length, sizeof length, 1, f);   /* known at the end */
    fputs("{\"__metadata__\":{\"format\":\"pt\"", f);
    if (arrays > 1) {
        fprintf(f, ",\"step\":\"%lld\",\"tokens\":\"%lld\",\"seed\":\"%llu\",\"flops\":\"",
                (long long)m->step, (long long)m->tokens, (unsigned long long)m->seed);
        hmoe__write_double(f, m->flops);
        fputs("\",\"seconds\":\"", f);
        hmoe__write_double(f, m->seconds);
        fputs("\",\"best_val_loss\":\"", f);
        hmoe__write_double(f, m->best_val_loss);
        fprintf(f, "\",\"optimizer\":\"%d\"", m->optimizer);
    }
    fputs("}", f);
    for (size_t i = 0; i < arrays * m->tensor_count; i++) {
        const hmoe_tensor *t = hmoe__saved_tensor(m, i, name);
        uint64_t start = at;
        at += (uint64_t)t->rows * t->cols * size;
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", name, size == 8 ? "F64" : "F32",
                t->rows);
        if (t->dims == 2) fprintf(f, ",%d", t->cols);
        fprintf(f, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)start,
                (unsigned long long)at);
    }
    fputs("}", f);
    end = hmoe__tell(f);
    if (end < 0) return -1;
    for (; end % 8; end++) fputs(" ", f);
    length = (uint64_t)end - sizeof length;
    if (hmoe__seek(f, 0, SEEK_SET)) return -1;   /* rewind() forgets errors */
    hmoe__order_bytes(&length, 1, sizeof length);
    fwrite(&length, sizeof length, 1, f);
    return hmoe__seek(f, 0, SEEK_END);
}

static const size_t hmoe__chunk = 1 << 16;   /* numbers fetched or stored at a time */

static hmoe_status hmoe__save_tensors(hmoe_model *m, const char *dir, const char *file,
                                      size_t arrays, size_t size) {
    hmoe_real *chunk = (hmoe_real *)HMOE_MALLOC(hmoe__chunk * sizeof *chunk);
    hmoe__output out;
    hmoe_status status;
    int whole = 1;
    if (!chunk) return hmoe__no_memory(m->message, (double)(hmoe__chunk * sizeof *chunk),
                                       "a piece of a tensor");
    status = hmoe__open_output(&out, dir, file, m->message);
    if (!status) whole = !hmoe__write_header(out.file, m, arrays, size);
    for (size_t k = 0; !status && whole && k < arrays * m->tensor_count; k++) {
        const hmoe_tensor *t = &m->tensors[k % m->tensor_count];
        const hmoe_real *from = hmoe__saved_array(m, k / m->tensor_count) + t->offset;
        for (size_t at = 0, n, all = (size_t)t->rows * t->cols; whole && at < all; at += n) {
            n = all - at < hmoe__chunk ? all - at : hmoe__chunk;
            if (m->peers) m->peers->fetch(m, chunk, k, at, n);
            else m->steps->fetch(chunk, from + at, n * sizeof *chunk);
            for (size_t i = 0; size < sizeof *chunk && i < n; i++) {   /* double to float */
                float narrow = (float)chunk[i];
                memcpy((char *)chunk + i * size, &narrow, sizeof narrow);
            }
            hmoe__order_bytes(chunk, n, size);
            whole = fwrite(chunk, size, n, out.file) == n;
        }
    }
    if (!status) {
        status = whole ? hmoe__settle(m)
                       : HMOE__FAIL(m->message, HMOE_IO, "cannot write %.300s: %s", out.path,
                                    strerror(errno));
        status = hmoe__close_output(&out, status, m->message);
    }
    HMOE_FREE(chunk);
    return status;
}

/* The names of a checkpoint's files, in the order in which they take their places: the state comes
   after the weights, so that what goes on after a crash in between writes them again. */
static int hmoe__files(const hmoe_model *m, int training, const char *names[5]) {
    int n = 0;
    names[n++] = "model.safetensors";
    if (m->config.vocab_size) names[n++] = "tokenizer.json", names[n++] = "tokenizer_config.json";
    if (training) names[n++] = "training.safetensors";
    names[n++] = "config.json";
    return n;
}

void hmoe_discard(hmoe_model *m, const char *dir, int training) {
    char beside[HMOE__PATH_SIZE];
    const char *names[5];
    if (m->peers && m->peers->rank) return;
    for (int n = hmoe__files(m, training, names); n-- > 0;)
        if (!hmoe__path(beside, dir, names[n], ".tmp", NULL)) remove(beside);
}

static hmoe_status hmoe__write_files(hmoe_model *m, const char *dir, int training) {
    if (training)
        HMOE__TRY(hmoe__save_tensors(m, dir, "training.safetensors", 3, sizeof(hmoe_real)));
    HMOE__TRY(hmoe__save_tensors(m, dir, "model.safetensors", 1, sizeof(float)));
    if (m->config.vocab_size) HMOE__TRY(hmoe__save_tokenizer(m, dir));
    return hmoe__save_config(m, dir);
}

static hmoe_status hmoe__prepare(hmoe_model *m, const char *dir, int training) {
    hmoe_status status;
    if (training && !m->grads) return HMOE__BAD(m->message, "this model was not made for training");
    if (hmoe__make_directory(dir))
        return HMOE__FAIL(m->message, HMOE_IO, "cannot make the directory %.300s: %s", dir,
                          strerror(errno));
    status = hmoe__write_files(m, dir, training);
    if (status) hmoe_discard(m, dir, training);
    return status;
}

static hmoe_status hmoe__commit(hmoe_model *m, const char *dir, int training) {
    char path[HMOE__PATH_SIZE], beside[HMOE__PATH_SIZE];
    const char *names[5];
    for (int i = 0, n = hmoe__files(m, training, names); i < n; i++) {
        HMOE__TRY(hmoe__path(path, dir, names[i], "", m->message));
        HMOE__TRY(hmoe__path(beside, dir, names[i], ".tmp", m->message));
        if (!hmoe__replace(beside, path, dir)) continue;
        int error = errno;
        hmoe_discard(m, dir, training);
        return HMOE__FAIL(m->message, HMOE_IO, "cannot write %.300s: %s", path, strerror(error));
    }
    return HMOE_OK;
}

/* Files are the work of one process: the first. */
static hmoe_status hmoe__lead(hmoe_model *m, hmoe_work work, const char *dir, int training) {
    m->message[0] = 0;
    return m->peers ? m->peers->lead(m, work, dir, training) : work(m, dir, training);
}

hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training) {
    return hmoe__lead(m, hmoe__prepare, dir, training);
}

hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training) {
    return hmoe__lead(m, hmoe__commit, dir, training);
}

hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training) {
    HMOE__TRY(hmoe_prepare(m, dir, training));
    return hmoe_commit(m, dir, training);
}

/* Removes a model that is in the way of another one: config.json first, so that a crash in between
   leaves none, and the tokenizer's files, which the other one may not have. */
static hmoe_status hmoe__remove_model(const char *dir, char *message) {
    static const char *const names[] = { "config.json", "tokenizer.json", "tokenizer_config.json" };
    char path[HMOE__PATH_SIZE];
    for (int i = 0; i < 3; i++) {
        HMOE__TRY(hmoe__path(path, dir, names[i], "", message));
        if (remove(path) && errno != ENOENT)
            return HMOE__FAIL(message, HMOE_IO, "cannot remove %.300s: %s", path, strerror(errno));
    }
    return HMOE_OK;
}

/* The tensors of m as the first rows and columns of those of `wide`, which is all zeros so far. */
static hmoe_status hmoe__pad(hmoe_model *wide, hmoe_model *m) {
    const hmoe_steps *s = m->steps;
    hmoe_real *row = (hmoe_real *)HMOE_MALLOC(HMOE_MAX_DIM * sizeof *row);
    if (!row) return hmoe__no_memory(m->message, HMOE_MAX_DIM * sizeof *row, "a row");
    for (size_t i = 0, k = 0; i < wide->tensor_count; i++) {
        const hmoe_tensor *to = &wide->tensors[i], *from;
        /* noise and biases of 0 are left out; a null expert stays all zeros */
        if (to->expert >= 0 && !m->config.H[to->expert]) continue;
        while (strcmp(m->tensors[k].name, to->name)) k++;
        from = &m->tensors[k++];
        for (size_t r = 0, bytes = (size_t)from->cols * sizeof *row; r < (size_t)from->rows; r++) {
            s->fetch(row, m->params + from->offset + r * from->cols, bytes);
            s->store(wide->params + to->offset + r * to->cols, row, bytes);
        }
    }
    HMOE_FREE(row);
    return hmoe__settle(m);
}

hmoe_status hmoe_export_mixtral(hmoe_model *m, const char *dir, size_t *params) {
    hmoe_config config = m->config;
    char path[HMOE__PATH_SIZE];
    hmoe_status status;
    hmoe_model wide;
    FILE *run;
    m->message[0] = 0;
    if (config.routing != HMOE_TOP_K)
        return HMOE__BAD(m->message, "Mixtral takes the same number of experts for every token: a "
                         "Top-P model has no such form");
    if (!hmoe__norm_gates(&config))
        return HMOE__BAD(m->message, "Mixtral divides the gates by their sum: a model with raw "
                         "gates has no such form");
    for (int l = 0; config.balance && l < config.L; l++) {
        hmoe_real b[HMOE_MAX_EXPERTS];
        m->steps->fetch(b, m->params + m->layers[l].bias, (size_t)config.E * sizeof *b);
        for (int e = 0; e < config.E; e++)
            if (b[e] != 0)
                return HMOE__BAD(m->message, "Mixtral takes the experts of largest P: this model "
                                 "adds a bias to P (in layer %d %g to that of expert %d) and has "
                                 "no such form", l, (double)b[e], e);
    }
    HMOE__TRY(hmoe__path(path, dir, "training.safetensors", "", m->message));
    errno = 0;
    if ((run = hmoe__open(path)) != NULL) fclose(run);
    if (run || (errno != ENOENT && errno != ENOTDIR))
        return HMOE__BAD(m->message, "%.300s holds a run: choose another directory", dir);
    for (int e = 0; e < config.E; e++) config.H[e] = hmoe__widest(&m->config);
    config.noisy_gating = 0, config.balance = HMOE_BALANCE_OFF;
    memset(&wide, 0, sizeof wide);
    wide.steps = m->steps;
    status = hmoe__created(&wide, hmoe__create(&wide, &config, 0, 0, 0, 0));
    if (!status) {
        status = hmoe__pad(&wide, m);
        if (status) memcpy(wide.message, m->message, sizeof wide.message);
        else status = hmoe_prepare(&wide, dir, 0);
        if (!status && (status = hmoe__remove_model(dir, wide.message)) != HMOE_OK)
            hmoe_discard(&wide, dir, 0);
        if (!status) status = hmoe_commit(&wide, dir, 0);
    }
    memcpy(m->message, wide.message, sizeof m->message);
    if (params) *params = wide.param_count;
    hmoe_free(&wide);
    return status;
}

/* ---------------------------------------------------------------------------------------------
   JSON - hmoe__json_after says whether a text is JSON at all, before anything else is read of it;
   what walks over it then can trust its form. A value starts where `at` points. */

static const char *hmoe__json_space(const char *at) { return at + strspn(at, " \n\r\t"); }

/* Behind a string, or NULL. Names and words here are plain: escapes are passed over, not read. */
static const char *hmoe__json_string(const char *at) {
    if (*at++ != '"') return NULL;
    for (; *at != '"'; at++) {
        if ((unsigned char)*at < 0x20) return NULL;
        if (*at != '\\') continue;
        if (!*++at || !strchr("\"\\/bfnrtu", *at)) return NULL;
        if (*at == 'u' && strspn(at + 1, "0123456789abcdefABCDEF") < 4) return NULL;
    }
    return at + 1;
}

/* Behind a number, or NULL. strtod would take more: 01, .5, 1.e5, inf. */
static const char *hmoe__json_digits(const char *at) {
    static const char digits[] = "0123456789";
    size_t n;
    if (*at == '-') at++;
    n = *at == '0' ? 1 : strspn(at, digits);
    if (n > 0 && at[n] == '.') at += n + 1, n = strspn(at, digits);
    if (n > 0 && (at[n] == 'e' || at[n] == 'E')) {
        at += n + (at[n + 1] == '-' || at[n + 1] == '+' ? 2 : 1);
        n = strspn(at, digits);
    }
    return n > 0 ? at + n : NULL;
}

/* Behind any value and the white space after it, or NULL. */
static const char *hmoe__json_after(const char *at, int depth) {
    const char close = *at == '{' ? '}' : ']';
    if (*at == '"') at = hmoe__json_string(at);
    else if (*at == '{' || *at == '[') {
        int empty = *hmoe__json_space(at + 1) == close;
        for (at = hmoe__json_space(at + 1); !empty; at = hmoe__json_space(at + 1)) {
            if (close == '}') {
                at = hmoe__json_string(at);
                if (!at || *(at = hmoe__json_space(at)) != ':') return NULL;
                at = hmoe__json_space(at + 1);
            }
            if (depth == 0 || !(at = hmoe__json_after(at, depth - 1))) return NULL;
            if (*at == close) break;
            if (*at != ',') return NULL;
        }
        at++;
    } else if (!strncmp(at, "true", 4) || !strncmp(at, "null", 4)) at += 4;
    else if (!strncmp(at, "false", 5)) at += 5;
    else at = hmoe__json_digits(at);
    return at ? hmoe__json_space(at) : NULL;
}

enum { HMOE__JSON_DEPTH = 32 };

/* The value of the member whose name starts here. */
static const char *hmoe__json_value(const char *name) {
    return hmoe__json_space(hmoe__json_space(hmoe__json_string(name)) + 1);
}

/* Steps through a list, or the names of an object's members: *at is at the bracket, and then behind
   what was returned last. NULL at the end. */
static const char *hmoe__json_next(const char **at, int object) {
    const char *next = hmoe__json_space(*at + 1);
    if (**at == ']' || **at == '}' || *next == ']' || *next == '}') return NULL;
    *at = hmoe__json_after(object ? hmoe__json_value(next) : next, HMOE__JSON_DEPTH);
    return next;
}

static int hmoe__json_is(const char *string, const char *word) {
    size_t n = strlen(word);
    return *string == '"' && !strncmp(string + 1, word, n) && string[n + 1] == '"';
}

static int hmoe__json_number(const char *at, double *value) {
    *value = *at == '-' || isdigit((unsigned char)*at) ? strtod(at, NULL) : (double)NAN;
    return isfinite(*value);
}

/* A list of whole numbers from 0 to high; returns how many, or -1 where it is something else. */
static int hmoe__json_list(const char *at, double *out, int max, double high) {
    int n = 0;
    if (*at != '[') return -1;
    for (const char *x; (x = hmoe__json_next(&at, 0)) != NULL; n++)
        if (n == max || !hmoe__json_number(x, &out[n]) || !(out[n] >= 0 && out[n] <= high)
            || out[n] != floor(out[n])) return -1;
    return n;
}

/* The value of the member of this name; NULL where there is none. *twice counts further ones. */
static const char *hmoe__json_find(const char *object, const char *name, int *twice) {
    const char *found = NULL;
    if (*object != '{') return NULL;
    for (const char *member; (member = hmoe__json_next(&object, 1)) != NULL;)
        if (hmoe__json_is(member, name)) {
            *twice += found != NULL;
            found = hmoe__json_value(member);
        }
    return found;
}

/* ---------------------------------------------------------------------------------------------
   Reading - first the members of an object, one call each, then config.json, then the tensors. */

/* An object that is read, and what is wrong with the first member that cannot be. */
typedef struct hmoe__reader {
    const char *object;
    int quoted;              /* values are strings that hold numbers, as in safetensors' metadata */
    const char *name, *wrong;
} hmoe__reader;

/* The value of a member, or NULL where it is missing: needed says whether it may. */
static const char *hmoe__member(hmoe__reader *r, const char *name, int needed) {
    int twice = 0;
    const char *value = hmoe__json_find(r->object, name, &twice), *end;
    const char *wrong = twice ? "comes twice" : !value && needed ? "is missing" : NULL;
    if (value && r->quoted) {
        end = *value == '"' ? hmoe__json_digits(value + 1) : NULL;
        if ((!end || *end != '"') && !wrong) wrong = "must be a number in quotes";
        value++;
    }
    if (r->wrong || !wrong) return r->wrong ? NULL : value;
    r->name = name, r->wrong = wrong;
    return NULL;
}

static void hmoe__wrong(hmoe__reader *r, const char *name, const char *wrong) {
    if (!r->wrong) r->name = name, r->wrong = wrong;
}

/* HMOE_OK, or a message with what was wrong first. */
static hmoe_status hmoe__reader_status(const hmoe__reader *r, const char *path, char *message) {
    int twice = 0, shown, length;
    const char *value = r->wrong ? hmoe__json_find(r->object, r->name, &twice) : NULL;
    if (!r->wrong) return HMOE_OK;
    if (!value) return HMOE__CORRUPT(message, "%.300s: %s %s", path, r->name, r->wrong);
    shown = (int)strcspn(value, "\r\n\t");   /* one line */
    length = (int)(hmoe__json_after(value, HMOE__JSON_DEPTH) - value);
    if (shown > length) shown = length;
    return HMOE__CORRUPT(message, "%.300s: %s %s: it is %.*s", path, r->name, r->wrong,
                         shown < 40 ? shown : 40, value);
}

static void hmoe__get_double(hmoe__reader *r, const char *name, int needed, double *out) {
    const char *value = hmoe__member(r, name, needed);
    if (value && !hmoe__json_number(value, out)) hmoe__wrong(r, name, "must be a number");
}

static double hmoe__get_whole(hmoe__reader *r, const char *name, double most) {
    double number = 0;
    hmoe__get_double(r, name, 1, &number);
    if (number < 0 || number > most || number != floor(number))
        hmoe__wrong(r, name, "must be a whole number in its range");
    return r->wrong ? 0 : number;
}

static int hmoe__get_int(hmoe__reader *r, const char *name) {
    return (int)hmoe__get_whole(r, name, HMOE_MAX_DIM);
}

/* Which of two values a member has: 1 for yes, 0 for no; `missing` where it is not there. */
static int hmoe__get_choice(hmoe__reader *r, const char *name, int needed, const char *yes,
                            const char *no, int missing) {
    const char *value = hmoe__member(r, name, needed);
    if (!value) return missing;
    if (!strncmp(value, yes, strlen(yes))) return 1;
    if (strncmp(value, no, strlen(no))) hmoe__wrong(r, name, "has a value that is not supported");
    return 0;
}

/* A member that may be missing or null, and otherwise is a number from low to high. */
static void hmoe__get_limit(hmoe__reader *r, const char *name, double low, double high,
                            const char *wrong) {
    const char *value = hmoe__member(r, name, 0);
    double number;
    if (!value || !strncmp(value, "null", 4) || !strncmp(value, "false", 5)) return;
    if (!hmoe__json_number(value, &number) || number < low || number > high)
        hmoe__wrong(r, name, wrong);
}

static int hmoe__get_list(hmoe__reader *r, const char *name, int needed, double *out, double most) {
    const char *value = hmoe__member(r, name, needed);
    int n = value ? hmoe__json_list(value, out, 256, most) : 0;
    if (n < 0 || (value && n == 0))
        hmoe__wrong(r, name, "must be a list of 1 to 256 whole numbers in their range");
    return n;
}

static hmoe_status hmoe__open_input(FILE **file, int64_t *bytes, const char *path, char *message) {
    *file = hmoe__open(path);
    if (*file && !hmoe__seek(*file, 0, SEEK_END) && (*bytes = hmoe__tell(*file)) >= 0) {
        rewind(*file);
        return HMOE_OK;
    }
    return HMOE__FAIL(message, HMOE_IO, "cannot open %.300s: %s", path, strerror(errno));
}

/* The next n <= most bytes of a file, which must be one JSON object: *text receives them. */
static hmoe_status hmoe__read_json(char **text, FILE *file, uint64_t n, uint64_t most,
                                   const char *path, char *message) {
    const char *end;
    if (n > most)
        return HMOE__CORRUPT(message, "%.300s: %.0f bytes of JSON are too many", path, (double)n);
    *text = (char *)HMOE_MALLOC((size_t)n + 1);
    if (!*text) return hmoe__no_memory(message, (double)n, "a header");
    if (fread(*text, 1, (size_t)n, file) != n)
        return HMOE__FAIL(message, HMOE_IO, "cannot read %.300s", path);
    (*text)[n] = 0;
    end = **text == '{' ? hmoe__json_after(*text, HMOE__JSON_DEPTH) : NULL;
    if (end == *text + n) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s: this is not one JSON object", path);
}

/* rope_theta, which newer files say in an object rope_parameters, where it may be scaled. */
static void hmoe__read_rope(hmoe__reader *r, hmoe_config *c) {
    const char *object = hmoe__member(r, "rope_parameters", 0), *at = object, *member;
    int newer = object && strncmp(object, "null", 4);
    double inner = 0;
    if (newer) {
        hmoe__reader rope = { object, 0, "", NULL };
        hmoe__get_choice(&rope, "rope_type", 0, "\"default\"", "\"default\"", 1);
        hmoe__get_double(&rope, "rope_theta", 1, &inner);
        while (*object == '{' && (member = hmoe__json_next(&at, 1)) != NULL)
            if (!hmoe__json_is(member, "rope_type") && !hmoe__json_is(member, "rope_theta"))
                hmoe__wrong(&rope, "rope_parameters", "says more");   /* a factor, of some kind */
        if (rope.wrong) hmoe__wrong(r, "rope_parameters", "is not plain RoPE with a rope_theta");
    }
    c->rope_theta = inner;
    hmoe__get_double(r, "rope_theta", !newer, &c->rope_theta);
    if (newer && inner != c->rope_theta)
        hmoe__wrong(r, "rope_theta", "is another one than in rope_parameters");
}

/* How experts are balanced by a bias; without the member, not at all. */
static void hmoe__get_balance(hmoe__reader *r, hmoe_config *c) {
    const char *value = hmoe__member(r, "balance", 0);
    int is = HMOE_BALANCE_WORK;
    while (value && is > 0 && !hmoe__json_is(value, hmoe__balances[is])) is--;
    if (value && !hmoe__json_is(value, hmoe__balances[is]))
        hmoe__wrong(r, "balance", "must be \"off\", \"tokens\" or \"work\"");
    c->balance = value ? (hmoe_balance)is : HMOE_BALANCE_OFF;
    c->balance_rate = hmoe_default_config().balance_rate;
    hmoe__get_double(r, "balance_rate", 0, &c->balance_rate);
}

/* A model of our own kind says everything; a Mixtral lacks our keys, and what it lacks is what
   makes it compute the same. */
static hmoe_status hmoe__parse_config(hmoe_config *c, const char *text, const char *path,
                                      char *message) {
    hmoe__reader reader = { text, 0, "", NULL }, *r = &reader;
    double list[256];
    char why[HMOE_MESSAGE_SIZE];
    int ours = hmoe__get_choice(r, "model_type", 1, "\"hmoe\"", "\"mixtral\"", 0), widest, n;
    memset(c, 0, sizeof *c);
    c->C = hmoe__get_int(r, "hidden_size");
    c->L = hmoe__get_int(r, "num_hidden_layers");
    c->NH = hmoe__get_int(r, "num_attention_heads");
    if (hmoe__get_int(r, "num_key_value_heads") != c->NH)
        hmoe__wrong(r, "num_attention_heads", "must be num_key_value_heads");
    c->E = hmoe__get_int(r, "num_local_experts");
    c->K = hmoe__get_int(r, "num_experts_per_tok");
    c->V = hmoe__get_int(r, "vocab_size");
    c->T = hmoe__get_int(r, "max_position_embeddings");
    widest = hmoe__get_int(r, "intermediate_size");
    hmoe__get_double(r, "rms_norm_eps", 1, &c->rms_norm_eps);
    hmoe__read_rope(r, c);
    hmoe__get_choice(r, "hidden_act", 0, "\"silu\"", "\"silu\"", 1);
    hmoe__get_choice(r, "tie_word_embeddings", 0, "false", "null", 0);
    hmoe__get_choice(r, "attention_bias", 0, "false", "null", 0);
    hmoe__get_choice(r, "rope_scaling", 0, "null", "false", 0);
    hmoe__get_choice(r, "quantization_config", 0, "null", "false", 0);
    hmoe__get_limit(r, "sliding_window", c->T, DBL_MAX, "must not be shorter than the context");
    hmoe__get_limit(r, "head_dim", c->NH ? c->C / c->NH : 0, c->NH ? c->C / c->NH : 0,
                    "must be hidden_size / num_attention_heads");
    n = hmoe__get_list(r, "expert_sizes", ours, list, HMOE_MAX_DIM);
    for (int e = 0; e < HMOE_MAX_EXPERTS; e++)
        c->H[e] = n ? e < n ? (int)list[e] : 0 : e < c->E ? widest : 0;
    if ((n && n != c->E) || (c->E <= HMOE_MAX_EXPERTS && hmoe__widest(c) != widest))
        hmoe__wrong(r, "expert_sizes", "must be num_local_experts widths, the largest "
                    "intermediate_size");
    c->routing = hmoe__get_choice(r, "routing", ours, "\"topk\"", "\"topp\"", 1) ? HMOE_TOP_K
                                                                           : HMOE_TOP_P;
    c->top_p = hmoe_default_config().top_p;
    hmoe__get_double(r, "top_p", ours, &c->top_p);
    c->gate = hmoe__get_choice(r, "norm_topk_prob", ours, "true", "false", 1) ? HMOE_GATE_NORM
                                                                        : HMOE_GATE_RAW;
    c->noisy_gating = hmoe__get_choice(r, "noisy_gating", ours, "true", "false", 0);
    hmoe__get_balance(r, c);
    hmoe__get_double(r, "budget", 0, &c->budget);
    hmoe__get_double(r, "lb_coef", ours, &c->lb_coef);
    hmoe__get_double(r, "pp_coef", ours, &c->pp_coef);
    hmoe__get_double(r, "ent_coef", ours, &c->ent_coef);
    hmoe__get_double(r, "z_coef", ours, &c->z_coef);
    c->vocab_size = hmoe__get_list(r, "vocab", 0, list, 255);
    for (int i = 0; i < c->vocab_size; i++) c->vocab[i] = (unsigned char)list[i];
    HMOE__TRY(hmoe__reader_status(r, path, message));
    if (hmoe_check_config(c, why)) return HMOE__CORRUPT(message, "%.300s: %.200s", path, why);
    return HMOE_OK;
}

hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message) {
    char path[HMOE__PATH_SIZE], *text = NULL;
    FILE *file = NULL;
    int64_t bytes = 0;
    hmoe_status status = hmoe__path(path, dir, "config.json", "", message);
    if (!status) status = hmoe__open_input(&file, &bytes, path, message);
    if (!status) status = hmoe__read_json(&text, file, (uint64_t)bytes, 1 << 20, path, message);
    if (!status) status = hmoe__parse_config(config, text, path, message);
    if (file) fclose(file);
    HMOE_FREE(text);
    return status;
}

/* What numbers are stored as, and how many bytes one takes. */
typedef enum hmoe__type { HMOE__F16, HMOE__BF16, HMOE__F32, HMOE__F64, HMOE__TYPES } hmoe__type;
static const char *const hmoe__type_names[HMOE__TYPES] = { "F16", "BF16", "F32", "F64" };
static size_t hmoe__type_size(hmoe__type type) {
    return type == HMOE__F64 ? 8 : type == HMOE__F32 ? 4 : 2;
}

/* Where a tensor lies among a file's bytes (exact below 2^53), and which one it is. */
typedef struct hmoe__place {
    double begin, end;         /* end 0: not found so far */
    hmoe__type type;
    size_t tensor;
    uint64_t hash;             /* of its name: 64 bits, no two of a model's names share them */
} hmoe__place;

typedef struct hmoe__input {
    FILE *file;
    char path[HMOE__PATH_SIZE];
    char *header;
    double data, data_bytes;   /* where the tensors' bytes start, and how many there are */
    int training, shards;      /* shards 0: one file */
    hmoe__place *place;        /* [places], one for each tensor of each array, by hash, */
    hmoe__place *here;         /*   and those that this file has, as they lie in it */
    size_t places, found;      /* arrays * tensor_count; how many are here */
} hmoe__input;

/* One tensor's description: NULL, or what is wrong with it. */
static const char *hmoe__read_entry(const char *entry, const hmoe_tensor *t, const hmoe__input *in,
                                    hmoe__place *place) {
    int twice = 0, type = 0;
    const char *dtype = hmoe__json_find(entry, "dtype", &twice);
    const char *shape = hmoe__json_find(entry, "shape", &twice);
    const char *offsets = hmoe__json_find(entry, "data_offsets", &twice);
    double dims[2] = { 0, 1 }, at[2] = { 0, 0 };
    if (!dtype || !shape || !offsets || twice) return "must have one dtype, shape and data_offsets";
    while (type < HMOE__TYPES && !hmoe__json_is(dtype, hmoe__type_names[type])) type++;
    if (in->training && sizeof(hmoe_real) != (type < HMOE__TYPES ? hmoe__type_size((hmoe__type)type)
                                                                 : 0))
        return sizeof(hmoe_real) == 8 ? "must be F64, the type of this build" : "must be F32";
    if (!in->training && type > HMOE__F32) return "must be F32, F16 or BF16";
    if (hmoe__json_list(shape, dims, 2, HMOE_MAX_DIM) != t->dims || dims[0] != t->rows
        || dims[1] != t->cols) return "has another shape than config.json says";
    place->type = (hmoe__type)type;
    if (hmoe__json_list(offsets, at, 2, in->data_bytes) != 2
        || at[1] - at[0] != (double)t->rows * t->cols * (double)hmoe__type_size(place->type))
        return "has data_offsets that do not fit";
    if (place->end > 0) return "comes twice";
    place->begin = at[0], place->end = at[1];
    return NULL;
}

static int hmoe__by_hash(const void *a, const void *b) {
    uint64_t x = ((const hmoe__place *)a)->hash, y = ((const hmoe__place *)b)->hash;
    return (x > y) - (x < y);
}

static int hmoe__by_begin(const void *a, const void *b) {
    double x = ((const hmoe__place *)a)->begin, y = ((const hmoe__place *)b)->begin;
    return (x > y) - (x < y);
}

/* What a file has must fill its data without hole or overlap. */
static const char *hmoe__check_places(const hmoe_model *m, hmoe__input *in, char *name) {
    double at = 0;
    qsort(in->here, in->found, sizeof *in->here, hmoe__by_begin);
    for (size_t i = 0; i < in->found; at = in->here[i++].end)
        if (in->here[i].begin != at) {
            hmoe__saved_tensor(m, in->here[i].tensor, name);
            return "overlaps the one before it, or leaves a hole there";
        }
    strcpy(name, "the last tensor");
    return at == in->data_bytes ? NULL : "does not end where the file does";
}

static void hmoe__read_state(hmoe__reader *r, hmoe_model *m) {
    const char *seed = hmoe__member(r, "seed", 1);
    char *end = NULL;
    errno = 0;
    if (seed) m->seed = strtoull(seed, &end, 10);
    if (seed && (errno || !isdigit((unsigned char)*seed) || *end != '"'))
        hmoe__wrong(r, "seed", "must be a whole number of 64 bits");
    m->step = (int64_t)hmoe__get_whole(r, "step", 1e15);
    m->tokens = (int64_t)hmoe__get_whole(r, "tokens", 1e15);
    hmoe__get_double(r, "flops", 1, &m->flops);
    hmoe__get_double(r, "seconds", 1, &m->seconds);
    hmoe__get_double(r, "best_val_loss", 1, &m->best_val_loss);
    if (hmoe__member(r, "optimizer", 0)) m->optimizer = (int)hmoe__get_whole(r, "optimizer", 1e6);
    if (m->flops < 0 || m->seconds < 0 || m->best_val_loss < 0)
        hmoe__wrong(r, "flops", "and seconds and best_val_loss must not be negative");
}

static hmoe_status hmoe__read_header(hmoe_model *m, hmoe__input *in) {
    char name[HMOE_NAME_SIZE + 16] = "";
    const char *at = in->header, *member, *wrong = NULL;
    hmoe__place named, *place;
    if (in->training) {
        hmoe__reader header = { in->header, 0, "", NULL }, r = { "", 1, "", NULL };
        r.object = hmoe__member(&header, "__metadata__", 1);
        HMOE__TRY(hmoe__reader_status(&header, in->path, m->message));
        hmoe__read_state(&r, m);
        HMOE__TRY(hmoe__reader_status(&r, in->path, m->message));
    }
    in->found = 0;
    while (!wrong && (member = hmoe__json_next(&at, 1)) != NULL) {
        if (hmoe__json_is(member, "__metadata__")) continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(member + 1, "\""), member + 1);
        named.hash = hmoe__hash(name);
        place = (hmoe__place *)bsearch(&named, in->place, in->places, sizeof named, hmoe__by_hash);
        wrong = !place ? "is no tensor of this model"
                : hmoe__read_entry(hmoe__json_value(member),
                                   &m->tensors[place->tensor % m->tensor_count], in, place);
        if (!wrong) in->here[in->found++] = *place;
    }
    if (!wrong) wrong = hmoe__check_places(m, in, name);
    if (!wrong) return HMOE_OK;
    return HMOE__CORRUPT(m->message, "%.300s: %s %s", in->path, name, wrong);
}

/* A float of half as many bits: sign, exponent, fraction. A BF16 is the upper half of a float. */
static float hmoe__half_to_float(uint16_t half, hmoe__type type) {
    uint32_t bits = (uint32_t)half << 16;
    int exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (type == HMOE__BF16) memcpy(&value, &bits, sizeof value);
    else if (exponent == 31) value = fraction ? (float)NAN : (float)INFINITY;
    else if (exponent) value = (float)ldexp(1024 + fraction, exponent - 25);
    else value = (float)ldexp(fraction, -24);
    return type == HMOE__F16 && half >> 15 ? -value : value;
}

/* Turns numbers as they lie in a file into hmoe_real, in place: the last first, since they grow. */
static void hmoe__widen(hmoe_real *numbers, size_t n, hmoe__type type) {
    const char *from = (const char *)numbers;
    while (hmoe__type_size(type) < sizeof *numbers && n-- > 0) {
        float value;
        uint16_t half;
        if (type == HMOE__F32) memcpy(&value, from + n * sizeof value, sizeof value);
        else {
            memcpy(&half, from + n * sizeof half, sizeof half);
            value = hmoe__half_to_float(half, type);
        }
        numbers[n] = (hmoe_real)value;
    }
}

/* Opens a file and reads its header. */
static hmoe_status hmoe__open_tensors(hmoe_model *m, hmoe__input *in) {
    uint64_t length = 0;
    int64_t bytes = 0;
    HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, m->message));
    if (fread(&length, sizeof length, 1, in->file) != 1) bytes = 0;
    hmoe__order_bytes(&length, 1, sizeof length);
    if (bytes < 8 || length > (uint64_t)bytes - 8)
        return HMOE__CORRUPT(m->message, "%.300s: the header's length is not possible", in->path);
    in->data = 8 + (double)length;
    in->data_bytes = (double)bytes - in->data;
    return hmoe__read_json(&in->header, in->file, length, 1 << 28, in->path, m->message);
}

static void hmoe__close_input(hmoe__input *in) {
    if (in->file) fclose(in->file);
    HMOE_FREE(in->header);
    in->file = NULL, in->header = NULL;
}

static hmoe_status hmoe__read_tensors(hmoe_model *m, hmoe__input *in, hmoe_real *chunk) {
    for (size_t i = 0; i < in->found; i++) {
        const hmoe__place *place = &in->here[i];   /* in the file's order */
        const hmoe_tensor *t = &m->tensors[place->tensor % m->tensor_count];
        hmoe_real *to = hmoe__saved_array(m, place->tensor / m->tensor_count) + t->offset;
        size_t all = (size_t)t->rows * t->cols, size = hmoe__type_size(place->type);
        int failed = hmoe__seek(in->file, (int64_t)(in->data + place->begin), SEEK_SET);
        for (size_t n, at = 0; !failed && at < all; at += n) {
            n = all - at < hmoe__chunk ? all - at : hmoe__chunk;
            failed = fread(chunk, size, n, in->file) != n;
            hmoe__order_bytes(chunk, n, size);
            hmoe__widen(chunk, n, place->type);
            if (m->peers) m->peers->store(m, chunk, place->tensor, at, n);
            else m->steps->store(to + at, chunk, n * sizeof *chunk);
        }
        if (failed) return HMOE__FAIL(m->message, HMOE_IO, "cannot read %.300s", in->path);
    }
    return hmoe__settle(m);
}

/* The weights' file number i, and how many there are where a large model was cut into shards: the
   index says it, and nothing else is read of it. */
static hmoe_status hmoe__input_path(hmoe__input *in, const char *dir, int i, char *message) {
    char name[48] = "model.safetensors";
    if (in->training) strcpy(name, "training.safetensors");
    else if (in->shards)
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", i + 1, in->shards);
    return hmoe__path(in->path, dir, name, "", message);
}

static hmoe_status hmoe__count_shards(hmoe__input *in, const char *dir, char *message) {
    static const char digits[] = "0123456789";
    int64_t bytes = 0;
    hmoe__reader r = { NULL, 0, "", NULL };
    const char *map, *file = NULL;
    HMOE__TRY(hmoe__input_path(in, dir, 0, message));
    if (in->training || (in->file = hmoe__open(in->path)) != NULL) return HMOE_OK;
    HMOE__TRY(hmoe__path(in->path, dir, "model.safetensors.index.json", "", message));
    in->file = hmoe__open(in->path);
    if (!in->file && errno == ENOENT) return hmoe__input_path(in, dir, 0, message);   /* it lacks */
    hmoe__close_input(in);
    HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, message));
    HMOE__TRY(hmoe__read_json(&in->header, in->file, (uint64_t)bytes, 1 << 28, in->path, message));
    r.object = in->header;
    map = hmoe__member(&r, "weight_map", 1);
    HMOE__TRY(hmoe__reader_status(&r, in->path, message));
    if (*map == '{') file = hmoe__json_next(&map, 1);
    if (file && !strncmp(file = hmoe__json_value(file), "\"model-", 7)
        && strspn(file + 7, digits) == 5 && !strncmp(file + 12, "-of-", 4)
        && strspn(file + 16, digits) == 5 && !strncmp(file + 21, ".safetensors\"", 13))
        in->shards = (int)strtol(file + 16, NULL, 10);
    if (in->shards > 0) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s: weight_map must name files such as "
                         "model-00001-of-00002.safetensors", in->path);
}

/* The files must be large enough for what config.json describes: known before anything is allocated
   for it. */
static hmoe_status hmoe__check_sizes(hmoe__input *in, const char *dir, double least,
                                     char *message) {
    double sum = 0;
    for (int i = 0; i < (in->shards ? in->shards : 1); i++) {
        int64_t bytes = 0;
        hmoe__close_input(in);
        HMOE__TRY(hmoe__input_path(in, dir, i, message));
        HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, message));
        sum += (double)bytes;
    }
    hmoe__close_input(in);
    if (sum >= least) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s%s: %.0f bytes, where config.json describes a model of "
                         "more than %.0f", in->path, in->shards ? " and those before it" : "", sum,
                         least);
}

static hmoe_status hmoe__load_file(hmoe_model *m, hmoe__input *in) {
    hmoe_real *chunk;
    hmoe_status status;
    HMOE__TRY(hmoe__open_tensors(m, in));
    HMOE__TRY(hmoe__read_header(m, in));
    chunk = (hmoe_real *)HMOE_MALLOC(hmoe__chunk * sizeof *chunk);
    if (!chunk) return hmoe__no_memory(m->message, (double)(hmoe__chunk * sizeof *chunk),
                                       "a piece of a tensor");
    status = hmoe__read_tensors(m, in, chunk);
    HMOE_FREE(chunk);
    return status;
}

/* config.json, and whether the files are large enough for what it says. */
static hmoe_status hmoe__find(hmoe_model *m, const char *dir, int training) {
    hmoe__input in;
    hmoe_model counted;
    hmoe_status status;
    double least;
    memset(&in, 0, sizeof in), memset(&counted, 0, sizeof counted);
    in.training = training;
    HMOE__TRY(hmoe_load_config(&m->config, dir, m->message));
    counted.config = m->config;
    hmoe__list_tensors(&counted, NULL);
    least = (double)counted.tensor_count * 64   /* a name, "dtype", "shape" and "data_offsets" */
            + (double)counted.param_count * (training ? sizeof(hmoe_real) : 2);
    status = hmoe__count_shards(&in, dir, m->message);
    if (!status) status = hmoe__check_sizes(&in, dir, least * (training ? 3 : 1), m->message);
    hmoe__close_input(&in);
    return status;
}

/* A bias or a top_p that is no number would go unnoticed: the experts are chosen all the same. */
static hmoe_status hmoe__check_state(hmoe_model *m, const char *path) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        int is_p = strstr(t->name, ".top_p") != NULL;
        hmoe_real x[HMOE_MAX_EXPERTS];
        if (!t->state) continue;
        m->steps->fetch(x, m->params + t->offset, (size_t)t->rows * sizeof *x);
        for (int k = 0; k < t->rows; k++)
            if (!isfinite(x[k]) || (is_p && !(x[k] > 0 && x[k] <= 1)))
                return HMOE__CORRUPT(m->message, "%.300s: %s must be %s: it is %g", path, t->name,
                                     is_p ? "above 0 and at most 1" : "finite", (double)x[k]);
    }
    return hmoe__settle(m);
}

static hmoe_status hmoe__read_files(hmoe_model *m, hmoe__input *in, const char *dir) {
    size_t arrays = in->training ? 3 : 1, missing = m->tensor_count * arrays;
    char name[HMOE_NAME_SIZE + 16];
    HMOE__TRY(hmoe__count_shards(in, dir, m->message));
    hmoe__close_input(in);
    in->places = missing;
    in->place = (hmoe__place *)hmoe__zeroed(in->places, 2 * sizeof *in->place);
    if (!in->place) return hmoe__no_memory(m->message, 2.0 * (double)(in->places
                                           * sizeof *in->place), "a header");
    in->here = in->place + in->places;
    for (size_t i = 0; i < in->places; i++) {
        hmoe__saved_tensor(m, in->place[i].tensor = i, name);
        in->place[i].hash = hmoe__hash(name);
    }
    qsort(in->place, in->places, sizeof *in->place, hmoe__by_hash);
    for (int i = 0; i < (in->shards ? in->shards : 1); i++) {
        HMOE__TRY(hmoe__input_path(in, dir, i, m->message));
        HMOE__TRY(hmoe__load_file(m, in));
        hmoe__close_input(in);
    }
    for (size_t i = 0; i < in->places; i++)
        if (in->place[i].end == 0 && in->place[i].tensor < missing) missing = in->place[i].tensor;
    if (missing == in->places) return hmoe__check_state(m, in->path);
    hmoe__saved_tensor(m, missing, name);
    return HMOE__CORRUPT(m->message, "%.300s: %s is missing", in->path, name);
}

static hmoe_status hmoe__read(hmoe_model *m, const char *dir, int training) {
    hmoe__input in;
    hmoe_status status;
    memset(&in, 0, sizeof in);
    in.training = training;
    status = hmoe__read_files(m, &in, dir);
    hmoe__close_input(&in);
    HMOE_FREE(in.place);
    return status;
}

hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training) {
    hmoe_config config;
    hmoe_status status = hmoe__lead(m, hmoe__find, dir, training);
    config = m->config;
    if (!status) status = hmoe__create(m, &config, 0, max_B, training, 0);
    status = hmoe__created(m, status);
    return status ? status : hmoe__created(m, hmoe__lead(m, hmoe__read, dir, training));
}

#endif /* HMOE_NO_FILES */

#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#endif /* HMOE_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */

/* MIT License - Copyright (c) 2026 the hmoe.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
   associated documentation files (the "Software"), to deal in the Software without restriction,
   including without limitation the rights to use, copy, modify, merge, publish, distribute,
   sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions: The above copyright notice and this
   permission notice shall be included in all copies or substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
