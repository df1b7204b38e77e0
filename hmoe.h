/* hmoe.h - a heterogeneous mixture-of-experts language model in one C header, for
   training and use.

WHAT IT IS

   A transformer in the LLaMA form. Its feed-forward layers are mixtures of experts, and
   the experts have different widths. A router sends each token to a few experts. A narrow
   expert is cheap, a wide expert is strong, and a loss on the router decides how the work
   is shared. Two papers define the model:

     HMoE    Wang et al., Heterogeneous Mixture of Experts for Language Modeling, arXiv 2408.10681
     MoDSE   Sun et al., Mixture of Diverse Size Experts, arXiv 2409.12210

   The header holds every layer and its gradient, the router and its losses, AdamW,
   generation with a key/value cache, checkpoints, and functions that show which expert
   computed what. It needs libc only. It uses OpenMP if the compiler has it.

WHAT IT IS NOT

   It is not a tensor library, it does not differentiate automatically, and it has no
   tokenizer. It computes this one model. No expert has a capacity limit, no token is
   dropped, nothing is padded.

HOW TO USE IT

   In one C or C++ file write

       #define HMOE_IMPLEMENTATION
       #include "hmoe.h"

   before any other #include. Write a plain #include "hmoe.h" in all other files. Compile
   with -O3 -march=native -ffp-contract=fast -fno-math-errno -fopenmp, and link with -lm.

A WHOLE PROGRAM

       #define HMOE_IMPLEMENTATION
       #include "hmoe.h"
       #include <stdio.h>
       int main(void) {
           static int text[33] = { 7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3, 26 };  // then zeros
           hmoe_config config = hmoe_default_config();  // 8 experts of unequal widths, 2 per token
           hmoe_adamw adamw = hmoe_default_adamw();
           hmoe_model model = { 0 };
           config.V = 27;                               // tokens are 0 .. 26
           if (hmoe_create(&model, &config, 1337, 1, 1)) return puts(model.message);
           for (int step = 1; step <= 40 && !hmoe_forward(&model, HMOE_TRAIN, text, text + 1, 1, 32)
                              && !hmoe_backward(&model, 1) && !hmoe_update(&model, &adamw); step++)
               printf("step %d  cross-entropy %f\n", step, model.losses.ce);
           puts(model.message);                         // empty if nothing failed
           hmoe_free(&model);
       }

CONTENTS, in file order (search for the words in capitals)

   THE API            CONFIGURATION   what a model is made of
                      TRAINING        create, forward, backward, update
                      GENERATION      one token at a time
                      INSPECTION      which expert computed what
                      FILES           save and load
                      ROUTES          the router's decision, as data
                      BACKEND         the functions that a GPU replaces; skip it at first
   PART ONE           A MIXTURE AS A LOOP, PRODUCTS IN SHORT, ROUTER, EXPERTS, LOSSES,
   the model          EXPERT SIZES, LAYERS, FORWARD, BACKWARD, ADAMW. Read it from the first
                      line to the last; you may stop there.
   PART TWO           UTILITIES, FAST PRODUCTS, OPTIONS, SEVERAL PROCESSES, MEMORY, CHECKS AND
   the engine room    ACCOUNTS, ROUNDING OF SIZES, THE CPU BACKEND, GENERATING. It makes
                      PART ONE fast, safe and portable.
   PART THREE         LOOKING INSIDE, FILES: THE PLATFORM, WRITING, JSON, READING

SYMBOLS, the same everywhere

   B, T, N = B * T    sequences in a batch, tokens in a sequence, tokens in the batch
   C, V, L            width of the model, size of the vocabulary, number of layers
   NH, hs             attention heads, size of one head (C = NH * hs)
   NKV, KV            heads of keys and values; KV = NKV * hs. NKV is NH unless heads share them
   E, K, H[e]         experts in a layer, experts per token, hidden width of expert e
   r, P, lse          router logits [N, E], their softmax, the log of its denominator
   S[t], g[t][e]      the experts chosen for token t; their gates: weights of their outputs
   slot, row          place of an expert in S[t]; place of a (token, expert) pair in expert order
   f[e], Phat[e]      share of the tokens that chose expert e; mean of P[t][e] over the tokens
   dx                 gradient of the loss with respect to x, for every x

MACROS, defined before the #include

   HMOE_REAL                      type of every number: float by default; double for gradient
                                  checks. Define it the same way in every file.
   HMOE_MALLOC(n), HMOE_FREE(p)   your allocator; p may be NULL   } needed only in the file
   HMOE_SIMD                      -fopenmp-simd is on             } that defines
   HMOE_NO_FILES                  leave out FILES                 } HMOE_IMPLEMENTATION
   HMOE_PLAIN                     use the plain product of PRODUCTS IN SHORT: slow, easy to debug

OWNERSHIP AND ERRORS

   The caller owns every struct and array that it passes. The library copies what it
   keeps. hmoe_free and hmoe_cache_free free what hmoe_create and hmoe_cache_create
   allocate. A function that can fail returns a status; 0 is HMOE_OK. If it fails, it
   writes one line into the model's `message`, or into the `message` argument
   (HMOE_MESSAGE_SIZE chars; may be NULL). The line says what is wrong and what would be
   right. The library never exits or prints, and has no global state. assert() checks the
   library's own invariants, never its input.

THREADS AND REPRODUCIBILITY

   OpenMP threads share the work (omp_set_num_threads). One thread at a time may use a
   model; different models are independent. The number of threads never changes a result.
   Every random number is computed from the seed and its purpose (step, layer, token),
   never from how many numbers were drawn before. The same seed and the same build give
   the same bits.

LIMITS

   HMOE_MAX_* below limit the sizes. Attention stores B * NH * T * T numbers, in training
   for each layer. A key/value cache stores 2 * L * T * KV numbers. Each thread needs 64 KB
   of stack.

CHANGES   1.0   the model, training, generation, files, inspection

LICENCE   MIT, at the end of this file. */

#ifndef HMOE_H
#define HMOE_H

#if defined(HMOE_IMPLEMENTATION) && !defined(HMOE_NO_FILES) && !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L   /* declares fileno and fsync under -std=c99 */
#endif
#if defined(HMOE_IMPLEMENTATION) && !defined(_FILE_OFFSET_BITS) && !defined(__LP64__)
#define _FILE_OFFSET_BITS 64      /* allows files above 2 GB on 32-bit machines */
#endif

#include <stddef.h>
#include <stdint.h>

#ifndef HMOE_REAL
#define HMOE_REAL float
#endif
typedef HMOE_REAL hmoe_real;

#define HMOE_VERSION "1.0"
#define HMOE_MESSAGE_SIZE 512
#define HMOE_NAME_SIZE 96         /* of a tensor's name, with the final zero */
#define HMOE_MAX_EXPERTS 256
#define HMOE_MAX_DIM (1 << 20)    /* of V, T, C, and of the sum of all H[e] */
#define HMOE_MAX_LAYERS 1024
#define HMOE_MAX_TOKENS (1 << 24) /* in a batch, times the most experts that one token can have */

#ifdef __cplusplus
extern "C" {
#endif

/* =======================================================================================
   THE API */

typedef enum hmoe_status {
    HMOE_OK = 0,
    HMOE_BAD_ARGUMENT,     /* a value is out of range, or does not fit the others */
    HMOE_OUT_OF_MEMORY,
    HMOE_NOT_FINITE,       /* a NaN or an infinity appeared; the step was not made */
    HMOE_IO,               /* the system could not read or write */
    HMOE_BAD_FILE          /* a file has wrong contents */
} hmoe_status;

/* ---------------------------------------------------------------------------------------
   CONFIGURATION - start from hmoe_default_config() and change fields. */

typedef enum hmoe_routing {
    HMOE_TOP_K,  /* the K experts of largest P             HMoE eq. 8, MoDSE eq. 2 */
    HMOE_TOP_P   /* the fewest whose P add up to top_p     HMoE eq. 9 to 11 */
} hmoe_routing;

typedef enum hmoe_gate {
    HMOE_GATE_DEFAULT,  /* norm; but raw for Top-K with K = 1, because norm would make every gate
                           1 and the router would get no gradient from the cross-entropy */
    HMOE_GATE_NORM,     /* g = P divided by the sum of P over the chosen experts */
    HMOE_GATE_RAW       /* g = P */
} hmoe_gate;

/* Bias balancing (Wang et al., arXiv 2408.15664): each layer has a bias b for each
   expert. Experts are ordered by P + b; gates use P alone. After each update, b_e
   increases by balance_rate if the load of expert e is below the mean load, and decreases
   by it if the load is above. */
typedef enum hmoe_balance {
    HMOE_BALANCE_OFF,
    HMOE_BALANCE_TOKENS,  /* load of expert e: f_e, its share of the tokens */
    HMOE_BALANCE_WORK     /* load: f_e H[e], its share of the work. A null expert keeps b = 0 */
} hmoe_balance;

/* The router's losses. LOSSES in PART ONE explains them and says how to add one. */
enum {
    HMOE_LB,               /* load balancing */
    HMOE_PP,               /* P-Penalty, HMoE's parameter penalty */
    HMOE_ENT,              /* entropy of the router */
    HMOE_Z,                /* z-loss of the router */
    HMOE_LOSS_TERMS        /* how many there are */
};

typedef struct hmoe_config {
    int V;                    /* vocabulary: tokens are 0 .. V-1. There is no default */
    int T;                    /* context: the longest sequence */
    int C;                    /* model width, a multiple of NH; C / NH is even (RoPE) */
    int L;                    /* layers */
    int NH;                   /* attention heads */
    int NKV;                  /* heads of keys and values, a divisor of NH; 0: NH */
    int E;                    /* experts per layer, 1 .. HMOE_MAX_EXPERTS; 1: dense */
    int K;                    /* experts per token under Top-K, 1 .. E */
    int H[HMOE_MAX_EXPERTS];  /* [E] hidden width of each expert, the same in every layer
                                 (hmoe_expert_sizes). 0 is a null expert: it has no parameters
                                 and adds 0. At least one width is above 0 */
    hmoe_routing routing;
    double top_p;             /* under Top-P: 1e-9 to 1; 1 takes all experts */
    double budget;            /* 0: top_p is fixed. Above 0, up to 1, Top-P only: each layer has
                                 its own top_p. It starts at top_p. After each update it moves
                                 so that the experts of a token have, on average, this share of
                                 the layer's total width */
    hmoe_gate gate;
    hmoe_balance balance;
    double balance_rate;      /* change of b in one update, 0 to 1 */
    int noisy_gating;         /* 1: noise on the logits in training, MoDSE eq. 3 to 5 */
    double loss_coef[HMOE_LOSS_TERMS];  /* weights of the losses: [HMOE_PP] ... */
    double rms_norm_eps;       /* added to the mean square in RMSNorm */
    double rope_theta;         /* base of the wavelengths in RoPE */
    int vocab_size;            /* number of entries in vocab: at most V; 0 for none */
    unsigned char vocab[256];  /* token i is byte vocab[i], ascending; saved in config.json. Tokens
                                  vocab_size .. V-1 are special and stand for no bytes */
} hmoe_config;

/* C 128, L 4, NH 4, T 64; 8 experts of arithmetic widths, 172 on average; Top-2 with
   normalised gates, and the P-Penalty. V is 0 and must be set. */
hmoe_config hmoe_default_config(void);

/* Fills H[0 .. E-1] with widths that follow a strategy and whose sum is exactly `total`:
     "homogeneous"   all equal                             "arithmetic"  9 11 13 ... 23   (HMoE)
     "geometric"     1 2 4 8 ...                 (HMoE)    "hybrid"      1 1 1 1 2 2 4 4  (HMoE)
     "modse"         4.5 0.5 4 1 ..., pairs      (MoDSE)   "3,1,2.5"     your own E ratios
   A ratio of 0 makes a null expert; the other experts share the total. Widths are
   multiples of 8 if the total allows it. */
hmoe_status hmoe_expert_sizes(int *H, int E, long long total, const char *strategy,
                              char *message);

/* Returns HMOE_OK if the configuration describes a model. */
hmoe_status hmoe_check_config(const hmoe_config *config, char *message);

/* ---------------------------------------------------------------------------------------
   TRAINING */

/* One tensor. Initialisation, weight decay, files and gradient checks walk over the table
   of them. */
typedef struct hmoe_tensor {
    char name[HMOE_NAME_SIZE];  /* as in a Mixtral checkpoint */
    int dims, rows, cols;       /* shape: [rows] if dims is 1 (cols is then 1), [rows, cols] if 2 */
    int expert;                 /* the expert that owns it; -1: none */
    size_t offset;              /* its start in params, grads, exp_avg and exp_avg_sq */
    double mean, std;           /* initial values are mean + std * N(0, 1) */
    int frozen;                 /* set by the caller. 1: hmoe_update clears the gradient of this
                                   tensor and does not change its values */
    int state;                  /* 1: not a parameter but state of a layer, b or top_p. Its
                                   gradient is always 0; hmoe_update moves it */
} hmoe_tensor;

typedef struct hmoe_losses {
    double total;                  /* ce + the sum over i of loss_coef[i] * term[i] */
    double ce;                     /* cross-entropy, mean over the tokens, in nats */
    double term[HMOE_LOSS_TERMS];  /* the router's losses, each a sum over the layers */
} hmoe_losses;

/* The table of the router's losses. Its index is the enum above. */
typedef struct hmoe_means hmoe_means;
typedef struct hmoe_loss_term {
    const char *name;  /* "pp": of the option --pp, the key pp_coef and the column pp of the log */
    double (*value)(const hmoe_means *x, double coef, hmoe_means *slope);  /* see LOSSES */
    double initial;        /* coefficient in hmoe_default_config() */
    const char *what;      /* "P-Penalty" */
} hmoe_loss_term;
extern const hmoe_loss_term hmoe_loss_terms[HMOE_LOSS_TERMS];

struct hmoe_backend;
struct hmoe_processes;

typedef struct hmoe_model {
    char message[HMOE_MESSAGE_SIZE];  /* why the last call failed; empty if it did not */
    hmoe_config config;               /* do not change it after hmoe_create */
    const struct hmoe_backend *backend;   /* set before hmoe_create; NULL: the CPU */

    hmoe_tensor *tensors;             /* [tensor_count], ordered by offset */
    size_t tensor_count;
    size_t param_count;
    hmoe_real *params;                /* [param_count], in the backend's memory */
    hmoe_real *grads;                 /* [param_count] likewise; NULL without training */
    hmoe_real *exp_avg, *exp_avg_sq;  /* [param_count] likewise: AdamW's two moments */

    double dropout;                   /* set by the caller, 0 to 0.9, at first 0: dropout rate of
                                         what attention and the experts add to the residual stream,
                                         in training only. Do not change it between hmoe_forward
                                         and hmoe_backward */
    const char *tokenizer;            /* set by the caller, not owned: the text of a tokenizer.json
                                         that hmoe_save writes. NULL: hmoe_save writes one for bytes
                                         if config.vocab_size is not 0, else none */
    hmoe_losses losses;               /* of the last hmoe_forward that had targets */
    double grad_norm;                 /* of all gradients, before the last clipping */

    /* State of a run. hmoe_save stores it with training = 1. */
    uint64_t seed;
    int64_t step;          /* updates made */
    int64_t tokens;        /* tokens seen in training */
    double flops;          /* spent in training: 6 * activated * tokens, and attention */
    double seconds;        /* kept for the caller: time spent in training */
    double best_val_loss;  /* kept for the caller: lowest so far; at first DBL_MAX */
    uint64_t best_of;      /* kept for the caller: what it was measured on; at first 0 */
    uint64_t recipe;       /* kept for the caller: a hash of the options; at first 0 */
    int optimizer;         /* kept for the caller: which optimizer; at first 0 */

    /* Internal. */
    int max_tokens;                 /* most tokens in a batch */
    int B, sequence_length, mode;   /* of the last forward pass */
    int has_results;                /* 1: its activations are still there, and finite */
    int had_targets;                /* 1: there are token losses */
    int all_tokens, first_token;    /* tokens of all processes; before this one */
    double pass_flops;              /* of the last pass; hmoe_backward adds it */
    int64_t step_tokens;            /* tokens since the last update */
    double *usage;                  /* routers' sums over many passes */
    double *chosen;                 /* [L, E] tokens of each expert since the last update */
    struct hmoe__layer *layers;     /* [L + 1] offsets and activations of each layer */
    struct hmoe__buffers *buffers;  /* activations that the layers share */
    void *arena;                    /* the backend's memory that holds all activations */
    size_t head;                    /* offset of lm_head.weight */
    const struct hmoe_processes *processes;  /* NULL: alone. extra/parallel sets */
    void *parallel;                          /*   both, for several processes */
} hmoe_model;

/* Makes a model with weights drawn from the seed. Set *m to zero first (and then
   m->backend, to choose one). max_B: most sequences of config->T tokens in a batch; 0:
   the model can only generate. training: 1 allocates gradients, moments and activations
   for the backward pass. If it fails, nothing is left to free. */
hmoe_status hmoe_create(hmoe_model *m, const hmoe_config *config, uint64_t seed,
                        int max_B, int training);
void hmoe_free(hmoe_model *m);  /* keeps the message; *m may be zero, or already freed */

typedef enum hmoe_mode { HMOE_EVALUATE, HMOE_TRAIN } hmoe_mode;

/* Runs B sequences of T tokens. T <= config.T and B * T <= max_B * config.T.
   tokens: [B, T]   targets: [B, T] the tokens that follow, or NULL (then there are no losses).
   HMOE_TRAIN applies noise and dropout and allows hmoe_backward. Returns HMOE_NOT_FINITE
   if a router or the loss is NaN or infinite. Without targets only the routers are
   checked. */
hmoe_status hmoe_forward(hmoe_model *m, hmoe_mode mode, const int *tokens,
                         const int *targets, int B, int T);

/* Adds `scale` times the gradient of losses.total to grads. Call it once after
   hmoe_forward in mode HMOE_TRAIN. To accumulate over n micro-batches, call both n times
   with scale = 1 / n, then hmoe_update once. Cross-entropy, entropy, z-loss and noise are
   then those of the whole batch. Load balancing and P-Penalty are not, because f and Phat
   are those of each micro-batch. */
hmoe_status hmoe_backward(hmoe_model *m, double scale);

/* AdamW (Loshchilov and Hutter 2019), as PyTorch computes it. */
typedef struct hmoe_adamw {
    double lr;
    double beta1, beta2;  /* decay of the two moments */
    double weight_decay;  /* of tensors with two dimensions */
    double clip;          /* if the norm of all gradients exceeds this, they are scaled by
                             clip / norm; 0: never */
} hmoe_adamw;

hmoe_adamw hmoe_default_adamw(void);   /* 2e-3; 0.9, 0.99; 0.1; 1 */

/* Clips the gradients, makes one AdamW step, moves b and top_p, clears the
   gradients and counts the step. If a gradient is not finite, it clears the gradients,
   changes nothing else and returns HMOE_NOT_FINITE. */
hmoe_status hmoe_update(hmoe_model *m, const hmoe_adamw *adamw);

/* Clears the gradients and the counted choices, for example after a failed call. */
void hmoe_zero_gradients(hmoe_model *m);

/* Learning rate at step = 1, 2, ...: lr * step / warmup up to step `warmup`, then a
   cosine that reaches min_lr at step `steps`. */
double hmoe_learning_rate(int64_t step, int64_t warmup, int64_t steps, double lr,
                          double min_lr);

/* Random numbers. Each is a function of the seed, of its purpose `what` and of two
   indices. A program uses values of `what` below 2^16; the library uses larger ones. */
uint64_t hmoe_random(uint64_t seed, uint64_t what, uint64_t i, uint64_t j);
double hmoe_normal(uint64_t seed, uint64_t what, uint64_t i,
                   uint64_t j); /* from N(0, 1) */

/* ---------------------------------------------------------------------------------------
   GENERATION - one token at a time. Several caches may share one model. */

typedef struct hmoe_cache {
    int64_t position;          /* tokens so far; set it to 0 to start another sequence */
    int L, T, C, KV;           /* of the model that it was made for */
    hmoe_real *keys, *values;  /* [L, T, KV], at position mod T; keys are rotated */
    hmoe_real *angles;         /* [2, hs/2], for RoPE at this position */
} hmoe_cache;
hmoe_status hmoe_cache_create(hmoe_cache *cache, hmoe_model *m);
void hmoe_cache_free(hmoe_cache *cache);

/* Reads one token and writes the logits [V] of the next one. */
hmoe_status hmoe_next(hmoe_model *m, hmoe_cache *cache, int token, hmoe_real *logits);

/* Draws a token from logits [V], and overwrites them. temperature 0: takes the largest.
   top_k > 0: draws among the k largest. top_p < 1: draws among the fewest whose
   probabilities reach top_p. The result depends on the seed and the position only. */
int hmoe_sample(hmoe_real *logits, int V, double temperature, int top_k, double top_p,
                uint64_t seed, int64_t position);

/* ---------------------------------------------------------------------------------------
   INSPECTION - which expert computed what. */

/* Results of the last hmoe_forward. They exist until the next call that computes. */
hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits);   /* [N, V] */
hmoe_status hmoe_get_token_losses(hmoe_model *m,
                                  hmoe_real *ce); /* [N], nats; needs targets */

/* The choice for one token in one layer. */
typedef struct hmoe_route {
    int count;                      /* |S[t]| */
    int expert[HMOE_MAX_EXPERTS];   /* [count] the experts by descending P + b, */
    double gate[HMOE_MAX_EXPERTS];  /* [count] their gates; widths: config.H[expert] */
    double P[HMOE_MAX_EXPERTS];     /* [E] the whole softmax */
} hmoe_route;
hmoe_status hmoe_get_route(hmoe_model *m, int layer, int token, hmoe_route *route);

/* How the experts of a layer were used, over all tokens of hmoe_forward since
   hmoe_reset_usage, in training or not. All fields are 0 if there is no such layer. */
typedef struct hmoe_usage {
    int64_t tokens;
    double share[HMOE_MAX_EXPERTS];   /* [E] f_e: share of the tokens that chose e */
    double compute[HMOE_MAX_EXPERTS]; /* [E] share of the work, f_e H[e]; the sum is 1 */
    double P[HMOE_MAX_EXPERTS];       /* [E] mean router probability */
    int dead;                         /* experts that no token chose */
    double entropy;                   /* of the router, mean over the tokens, in nats */
    double experts;                   /* mean |S| */
    double width;                     /* mean over the tokens of the sum of H over S */
    double bias[HMOE_MAX_EXPERTS];    /* [E] present b of bias balancing; 0 without it */
    double top_p;                     /* present top_p of this layer; 0 under Top-K */
} hmoe_usage;
void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage);
void hmoe_reset_usage(hmoe_model *m);

/* Bytes of activations that such a model needs; 0 if the configuration is not valid. On a
   CPU each thread needs 360 KB more. */
size_t hmoe_activation_bytes(const hmoe_config *config, int max_B, int training);

/* Parameters of the whole model, in all processes. */
double hmoe_parameters(const hmoe_model *m);

/* Activated parameters per token: attention, norms, router, head, one embedding row, and
   3 C H[e] for each chosen expert, as measured since hmoe_reset_usage. Before the first
   token it assumes that all experts are chosen equally often. */
double hmoe_activated(const hmoe_model *m);

/* ---------------------------------------------------------------------------------------
   FILES - checkpoints in the layout of Hugging Face's Mixtral. PART THREE describes the
   files. */
#ifndef HMOE_NO_FILES

/* Writes model.safetensors and config.json into the directory `dir`, and the tokenizer's
   files if there is one. training = 1 also writes training.safetensors, from which
   a run resumes to the bit (but without the gradients of an unfinished accumulation).
   Makes the directory if needed, but not its parents. Other files in it stay. Two
   processes must not save into one directory. */
hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training);

/* The two halves of hmoe_save. hmoe_prepare writes every file under a temporary name;
   hmoe_commit renames them. If either fails, the temporary files are removed.
   hmoe_discard removes them on request. Do not save into a directory that holds a
   different model: a crash during the renames could mix the two. Save into a new directory
   and rename that (extra/run/overwrite.h does so). */
hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training);
hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training);
void hmoe_discard(hmoe_model *m, const char *dir, int training);

/* Makes a model from a directory. training = 1 reads training.safetensors, to resume a
   run; training = 0 reads model.safetensors. *m and max_B are as for hmoe_create. */
hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training);

/* The same with a configuration of the caller's: that of hmoe_load_config with changes that
   leave the tensors as they are, such as T, K, top_p or loss_coef. NULL: config.json's. */
hmoe_status hmoe_load_as(hmoe_model *m, const hmoe_config *config, const char *dir, int max_B,
                         int training);

/* Reads config.json only. */
hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message);

/* Sets V, vocab_size and vocab to the distinct bytes of a text, in ascending order. */
hmoe_status hmoe_byte_vocab(hmoe_config *config, const unsigned char *text, size_t n,
                            char *message);

#endif /* HMOE_NO_FILES */

/* ---------------------------------------------------------------------------------------
   ROUTES - the router's decision for the N tokens of one layer, as data. hmoe__choose
   makes it once. Everything after it only reads it, the backward pass too. */

typedef struct hmoe_routes {
    int slots;           /* most experts of a token: K under Top-K, E under Top-P */
    hmoe_real *logits;   /* [N, E]      r = W_r x (+ noise); in the backward pass dr */
    hmoe_real *P;        /* [N, E]      softmax of r over all experts */
    hmoe_real *lse;      /* [N]         log of the sum of exp(r), for the z-loss */
    hmoe_real *entropy;  /* [N]         -sum over e of P ln P, in nats */
    int *count;          /* [N]         |S[t]|, 1 .. slots */
    int *expert;         /* [N, slots]  S[t] by descending P + b: `count` of them */
    hmoe_real *gate;     /* [N, slots]  the gates g of those experts */
    /* The same (token, expert) pairs as rows, ordered by expert and then by token: */
    int *expert_start;    /* [E + 1]     expert e has rows expert_start[e] .. [e+1]-1 */
    int *row_token;       /* [N * slots] the token of each row */
    hmoe_real *row_gate;  /* [N * slots] the gate of each row */
    int *row;             /* [N, slots]  the row of slot s of token t */
    /* State of the layer that changes the choice, in params: */
    const hmoe_real *bias;    /* [E]         b of bias balancing; NULL: all 0 */
    const hmoe_real *top_p;   /* [1]         the layer's own top_p; NULL: config.top_p */
} hmoe_routes;

/* ---------------------------------------------------------------------------------------
   BACKEND - the functions that work on big arrays. Skip this table at first: PART ONE
   explains each function where it is written. hmoe_cuda.cu fills the same table for a
   GPU. Structs, lists, H and scalars are in CPU memory. The arrays they point to are in
   the backend's memory; read and write them only with download and upload. */

/* Memory for copies of parts of operands, in pieces of one size: one for each thread. A
   thread that has none uses its stack, and is slower. The result is the same. */
struct hmoe_panels {
    void *memory;
    hmoe_real *first;         /* the first piece, aligned */
    int count;
};

/* One member of a list of linear maps y = x W^T, on rows rows[0] .. rows[1]-1. A dense
   layer is a list of one. Unequal experts are a list whose members have different sizes.
   No two members of a list write to the same place. */
typedef struct hmoe_linear {
    hmoe_real *x;             /* [.., in]    row stride ldx */
    hmoe_real *w;             /* [out, in] */
    hmoe_real *y;             /* [.., out]   row stride ldy */
    const int *rows;          /* [2] in the backend's memory, e.g. &expert_start[e] */
    int in, out, ldx, ldy;    /* in or out is 0 for a null expert */
    const hmoe_real *add;     /* added to the result, and laid out like it: y = x W^T + add,
                                 x = y W + add. It may be the result itself. NULL: 0 */
    const int *x_row, *y_row; /* if not NULL, row r is read from row x_row[r] of x (y_row[r] of y).
                                 This is the gather: an expert reads its tokens in place, through
                                 row_token */
    const struct hmoe_panels *panels;  /* in member 0, for the list; NULL: none, as on a GPU */
} hmoe_linear;

/* Factors of one AdamW step. */
typedef struct hmoe_rates {
    hmoe_real scale;       /* of the gradient, from clipping */
    hmoe_real beta1, beta2;
    hmoe_real step, root;  /* lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t): they correct the bias
                              of moments that start at 0 */
    hmoe_real decay;       /* lr * weight_decay */
} hmoe_rates;

/* Sums over the N tokens of one layer, from which the losses and reports are computed.
   They lie in one array of HMOE_SUMS(E) doubles, in this order. */
typedef struct hmoe_sums {
    double *count;            /* [E]  tokens that chose expert e */
    double *P;                /* [E]  sum of P[t][e] */
    double *entropy;          /* [1]  sum of entropy[t] */
    double *lse2;             /* [1]  sum of lse[t]^2 */
    double *rows;             /* [1]  sum of |S[t]| */
} hmoe_sums;
#define HMOE_SUMS(E) (2 * (size_t)(E) + 3)
static inline hmoe_sums hmoe_sums_in(double *array, int E) {
    hmoe_sums sums = { array, array + E, array + 2 * E, array + 2 * E + 1,
                       array + 2 * E + 2 };
    return sums;
}

typedef struct hmoe_backend {
    const char *name;         /* "cpu" */
    /* waits for all work; returns the first error since the last call, or NULL */
    const char *(*synchronize)(void);
    /* memory */
    void *(*alloc)(size_t bytes);   /* returns NULL if there is not enough */
    void (*free)(void *array);      /* array may be NULL */
    void (*download)(void *host, const void *array, size_t bytes);
    void (*upload)(void *array, const void *host, size_t bytes);
    void (*zero)(void *array, size_t bytes);
    /* the three products of a linear map */
    void (*linear_forward)(const hmoe_linear *list, int n);          /* y  = x W^T */
    void (*linear_backward_input)(const hmoe_linear *list, int n);   /* x  = y W     (gradients) */
    void (*linear_backward_weight)(const hmoe_linear *list, int n);  /* W += y^T x   (gradients) */
    /* ROUTER; draw may be the same array as raw */
    void (*router_softmax)(const hmoe_routes *routes, int N, int E);
    void (*choose)(const hmoe_routes *routes, hmoe_routing routing, int K, double top_p,
                   int norm, int N, int E);
    void (*dispatch)(const hmoe_routes *routes, int N, int E);
    void (*router_sums)(double *sums, const hmoe_routes *routes, int N, int E);
    void (*router_backward)(const hmoe_routes *routes, const hmoe_real *dgate,
                            const hmoe_real *dP, double d_entropy, double d_lse2,
                            int norm, int N, int E);
    void (*noise_forward)(const hmoe_routes *routes, const hmoe_real *raw,
                          const hmoe_real *gain, double eps, uint64_t key, int first,
                          int N, int E);
    void (*noise_backward)(hmoe_real *draw, hmoe_real *dgain, const hmoe_routes *routes,
                           const hmoe_real *raw, const hmoe_real *gain, double eps,
                           uint64_t key, int first, int N, int E);
    /* EXPERTS */
    void (*experts_up)(hmoe_real *h, const hmoe_linear *list, const int *start,
                       const int *H, int E, int ldh);
    void (*swiglu_backward)(hmoe_real *u, hmoe_real *h, hmoe_real *dgate,
                            const hmoe_real *dh, const int *start,
                            const hmoe_real *row_gate, const int *H, int E, int ldh);
    void (*combine_forward)(hmoe_real *y, const hmoe_real *x, const hmoe_real *rows,
                            const hmoe_routes *routes, int N, int C);
    void (*combine_backward)(hmoe_real *dx, const hmoe_real *drows,
                             const hmoe_routes *routes, int N, int C);
    /* LAYERS */
    void (*embed_forward)(hmoe_real *x, const int *tokens, const hmoe_real *w, int N,
                          int C);
    void (*embed_backward)(hmoe_real *dw, const int *tokens, const hmoe_real *dx, int N,
                           int C);
    void (*rmsnorm_forward)(hmoe_real *y, hmoe_real *rrms, const hmoe_real *x,
                            const hmoe_real *w, double eps, int N, int C);
    void (*rmsnorm_backward)(hmoe_real *dx, hmoe_real *dw, hmoe_real *dy,
                             const hmoe_real *x, const hmoe_real *w,
                             const hmoe_real *rrms, int N, int C);
    void (*rope)(hmoe_real *qkv, const hmoe_real *angles, int direction, int B, int T,
                 int NH, int NKV, int hs);
    void (*attention_forward)(hmoe_real *out, hmoe_real *att, const hmoe_real *qkv, int B,
                              int T, int NH, int NKV, int hs);
    void (*attention_backward)(hmoe_real *dqkv, hmoe_real *datt, const hmoe_real *dout,
                               const hmoe_real *out, hmoe_real *att, const hmoe_real *qkv,
                               int B, int T, int NH, int NKV, int hs);
    void (*cross_entropy_forward)(hmoe_real *ce, const hmoe_real *logits,
                                  const int *targets, int N, int V);
    void (*cross_entropy_backward)(hmoe_real *logits, const int *targets, double scale,
                                   int N, int V);
    void (*dropout_forward)(hmoe_real *y, const hmoe_real *x, double p, uint64_t key,
                            int first, int N, int C);
    void (*dropout_backward)(hmoe_real *dblock, const hmoe_real *dy, double p,
                             uint64_t key, int first, int N, int C);
    /* ADAMW */
    double (*squared_norm)(const hmoe_real *g, size_t n);
    void (*adamw)(hmoe_real *w, hmoe_real *g, hmoe_real *m, hmoe_real *v, size_t n,
                  const hmoe_rates *rates);
} hmoe_backend;

/* hmoe_cuda.cu, if it is part of the program:

       m.backend = hmoe_cuda(HMOE_BF16, message);
       if (!m.backend || hmoe_create(&m, ...)) ...      everything else stays the same */
typedef enum hmoe_precision {
    HMOE_FLOAT32,  /* plain float arithmetic, close to the CPU's */
    HMOE_BF16      /* operands of products are rounded to bf16 and multiplied on tensor cores;
                      sums, weights and the residual stream stay float. Needs sm_80 or later */
} hmoe_precision;

enum { HMOE_TILE = 64 };   /* a block of the GPU computes HMOE_TILE x HMOE_TILE numbers of a product
                              at a time; 2 HMOE_TILE rows if the model is wide */

/* Returns the backend for the current GPU (cudaSetDevice, CUDA_VISIBLE_DEVICES). If no
   GPU can be used it returns NULL and says why in message [HMOE_MESSAGE_SIZE]. One thread
   at a time may use models of this backend, because they share the device's default
   stream. The first error of any of them is returned as HMOE_IO by the next call that
   waits. */
const hmoe_backend *hmoe_cuda(hmoe_precision precision, char *message);

#ifdef __cplusplus
}
#endif

#endif /* HMOE_H */

#ifdef HMOE_IMPLEMENTATION
#ifndef HMOE_IMPLEMENTED
#define HMOE_IMPLEMENTED

#include <assert.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* OpenMP. In every parallel loop, each iteration writes only its own memory and sums in a
   fixed order. There are no races, and the number of threads never changes a result, not
   even its last bit. HMOE__SIMD asks the compiler for vector instructions in the next
   loop. */
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
#if defined(__clang__)   /* clang vectorises a maximum only under -ffast-math; at -O1 it warns */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"
#define HMOE__SIMD_MAX(s)
#else
#define HMOE__SIMD_MAX(s) HMOE__PRAGMA(omp simd reduction(max : s))
#endif
#if defined(__GNUC__)
#define HMOE__INLINE static inline __attribute__((always_inline))
#define HMOE__PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define HMOE__INLINE static inline
#define HMOE__PRINTF(text, first)
#endif

/* Errors. HMOE__FAIL writes the message and has the value `status`. */
HMOE__PRINTF(2, 3) static void hmoe__write_message(char *message, const char *format, ...);
#define HMOE__FAIL(message, status, ...) (hmoe__write_message(message, __VA_ARGS__), status)
#define HMOE__BAD(message, ...) HMOE__FAIL(message, HMOE_BAD_ARGUMENT, __VA_ARGS__)
#define HMOE__TRY(call) \
    do { \
        hmoe_status status_ = (call); \
        if (status_) return status_; \
    } while (0)

/* What PART ONE uses of PART TWO. */
HMOE__INLINE hmoe_real hmoe__exp(hmoe_real x);
HMOE__INLINE hmoe_real hmoe__sqrt(hmoe_real x);
HMOE__INLINE hmoe_real hmoe__sigmoid(hmoe_real x);
static uint64_t hmoe__mix(uint64_t z);   /* a random number from z */
static double hmoe__total_width(const hmoe_config *c);
static int hmoe__widest(const hmoe_config *c);
static void hmoe__linear_forward(const hmoe_linear *list, int n);
static int hmoe__first_row(const int *start, const int *H, int E, int part, int parts);
static hmoe_status hmoe__check_batch(hmoe_model *m, hmoe_mode mode, const int *tokens,
                                     const int *targets, int B, int T);
static hmoe_status hmoe__check_rates(hmoe_model *m, const hmoe_adamw *a,
                                     const hmoe_rates *rates);
static hmoe_status hmoe__collect(hmoe_model *m);       /* computes the losses */
static void hmoe__count_pass(hmoe_model *m);           /* updates the counters */
static hmoe_status hmoe__move_state(hmoe_model *m);    /* moves b and top_p */
static void hmoe__begin_step(hmoe_model *m);           /* resets the step's counters */
static void hmoe__attention_cached(hmoe_cache *cache, const hmoe_config *c, int l,
                                   hmoe_real *out, hmoe_real *att, hmoe_real *qkv);
/* Keys of the random numbers of dropout and noise. block: 0 attention, 1 experts */
static uint64_t hmoe__dropout_key(const hmoe_model *m, int l, int block);
static uint64_t hmoe__noise_key(const hmoe_model *m, int l);
static int hmoe__first_number(const hmoe_model *m);    /* the pass's first token */
static hmoe_status hmoe__synchronize(hmoe_model *m);   /* waits for the backend */
/* In several processes (extra/parallel/). In one process there is nothing to exchange. */
static hmoe_status hmoe__common_status(hmoe_model *m, hmoe_status status, int N);
static int hmoe__remote_experts_forward(hmoe_model *m, int l);
static int hmoe__remote_experts_backward(hmoe_model *m, int l, const hmoe_real *dy);
static double hmoe__sum_gradients(hmoe_model *m);      /* returns their squared norm */

enum { HMOE__FOR_NOISE = 1 << 16, HMOE__FOR_SAMPLE, HMOE__FOR_DROPOUT };   /* for hmoe_random */

/* =======================================================================================
   PART ONE - THE MODEL. Read it from here to the sign where PART TWO begins.

   A MIXTURE AS A LOOP - the mixture-of-experts layer in plain C. Everything in ROUTER and
   EXPERTS computes this, with its gradient, for many tokens at once. (tests/naive.h is
   the whole forward pass in this style. The tests compare the two.)

       for (int t = 0; t < N; t++) {                           // each token chooses
           for (int e = 0; e < E; e++) r[e] = dot(W_r[e], x_t);  // how well e suits it
           P = softmax(r);                                     // shares that sum to 1
           S = the K largest P;                                // Top-P: until they sum to p
           for (int e in S) g[e] = P[e] / (sum of P over S);   // gates: weights
           y_t = 0;                                            // a residual is added later
           for (int e in S) {                                  // only the chosen compute
               for (int i = 0; i < H[e]; i++)                  // each has its own width
                   h[i] = silu(dot(W1[e][i], x_t)) * dot(W3[e][i], x_t);
               for (int i = 0; i < C; i++) y_t[i] += g[e] * dot(W2[e][i], h);
           }
       }

   Where widths differ        hmoe__up_list, hmoe__down_list, hmoe__list_tensors.
   To add a loss              LOSSES: three places, listed there.
   To add a shared expert     a dense SwiGLU beside the chosen ones: hmoe__list_tensors
      (W1, W3, W2), hmoe__layer and hmoe__list_activations (u), hmoe__moe_block_forward and
      _backward (experts_up with start = all_rows; row_gate all 1), hmoe__activated_with.
   To change the activation   hmoe__swiglu_row and hmoe__swiglu_row_backward; in
      hmoe_cuda.cu finish_tile and swiglu_backward_kernel; in tests/naive.h naive_expert; hidden_act
      in hmoe__save_config and hmoe__parse_config. */

/* ---------------------------------------------------------------------------------------
   PRODUCTS IN SHORT - almost all work is matrix products. Every linear map y = x W^T
   needs three:

       forward   y  = x W^T          input   dx = dy W          weight   dW += dy^T x

   and all are C = A B + D with operands read by rows or by columns. In a mixture,
   products come as a list: one member per expert, each with its own number of rows and
   its own width. The backend computes a list at once (linear_forward,
   linear_backward_input, linear_backward_weight). */

/* An operand: element (i, j) is x[i * stride + j], or x[j * stride + i] if it is
   transposed. If `row` is not NULL, row r is read from row row[r] of x. */
typedef struct hmoe__view {
    const hmoe_real *x;
    size_t stride;
    int transposed;
    const int *row;
} hmoe__view;

static hmoe__view hmoe__rows(const hmoe_real *x, size_t stride) {
    hmoe__view view = { x, stride, 0, NULL };
    return view;
}

static hmoe__view hmoe__transposed(const hmoe_real *x, size_t stride) {
    hmoe__view view = { x, stride, 1, NULL };
    return view;
}

typedef struct hmoe__product {
    hmoe_real *c;            /* [M, N], row stride c_stride */
    size_t c_stride;
    hmoe__view a, b;         /* A: [M, K], B: [K, N] */
    const hmoe_real *d;      /* laid out like c, may be c itself; NULL: 0 */
    int M, N, K;
} hmoe__product;

#ifdef HMOE_PLAIN
static const hmoe_real *hmoe__at(const hmoe__view *v, int i, int j) {   /* (i, j) */
    int r = v->transposed ? j : i, k = v->transposed ? i : j;
    return v->x + (v->row ? v->row[r] : r) * v->stride + k;
}

/* Rows first .. end-1 of C = A B + D. The inner loop reads B in the order of memory: over
   k if B is transposed (a dot product), else over j. PART TWO has the fast form. */
static void hmoe__multiply_rows(const hmoe__product *p, int first, int end) {
    for (int i = first; i < end; i++) {
        hmoe_real *c = p->c + i * p->c_stride;
        for (int j = 0; j < p->N; j++) c[j] = p->d ? p->d[i * p->c_stride + j] : 0;
        for (int j = 0; j < p->N && p->b.transposed; j++) {
            const hmoe_real *a = hmoe__at(&p->a, i, 0), *b = hmoe__at(&p->b, 0, j);
            hmoe_real sum = 0;
            HMOE__SIMD_SUM(sum)
            for (int k = 0; k < p->K; k++) sum += a[k] * b[k];
            c[j] += sum;
        }
        for (int k = 0; k < p->K && !p->b.transposed; k++) {
            const hmoe_real a = *hmoe__at(&p->a, i, k), *b = hmoe__at(&p->b, k, 0);
            for (int j = 0; j < p->N; j++) c[j] += a * b[j];
        }
    }
}
#else
static void hmoe__multiply_rows(const hmoe__product *p, int first, int end);   /* FAST PRODUCTS */
#endif

/* C = A B + D by the calling thread alone. */
static void hmoe__multiply(hmoe_real *c, size_t c_stride, hmoe__view a, hmoe__view b,
                           const hmoe_real *d, int M, int N, int K) {
    hmoe__product product = { c, c_stride, a, b, d, M, N, K };
    hmoe__multiply_rows(&product, 0, M);
}

/* ---------------------------------------------------------------------------------------
   ROUTER - which experts get a token. The steps of one layer:

       logits     r = W_r x (+ noise)   how well does each expert suit this token? (a product)
       softmax    P = softmax(r)        the same, as shares that sum to 1
       choose     S, g                  the few experts that get it, and with what weight
       dispatch   expert_start, rows    which tokens each expert works on; none is dropped
       sums       counts, sum of P, ... input of the losses and reports

   EXPERTS then computes their outputs and adds them up. OPTIONS in PART TWO has noise, and
   bias balancing and budgets, which change the choice. All are off by default. */

/* Softmax of one row of n numbers, in place: p_i = exp(scale (x_i - max)) / sum.
   Subtracting the largest first keeps exp from overflowing, and the sum is at least 1. If
   lse is not NULL, *lse receives log(sum of exp(scale x_i)). */
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

/* P = softmax(r) over all E experts; and for each token lse and the entropy of P.
   Reads logits [N, E]; writes P [N, E], lse [N], entropy [N]. */
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

/* S[t] and g. Takes experts by descending P + b (b: bias balancing's, or 0), ties by
   ascending index, until there are enough:
     Top-K   K of them                          HMoE eq. 8, MoDSE eq. 2
     Top-P   their P add up to top_p            HMoE eq. 9 to 11. top_p = 1: all, exactly
   Gates are P, without b. norm = 1 divides them by their sum.
   Reads P [N, E]; writes count [N], expert and gate [N, slots]. */
static void hmoe__choose(const hmoe_routes *routes, hmoe_routing routing, int K,
                         double top_p, int norm, int N, int E) {
    if (routes->top_p) top_p = (double)*routes->top_p;
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *P = routes->P + (size_t)t * E;
        int *S = routes->expert + (size_t)t * routes->slots, n = 0, last = -1, enough = 0;
        hmoe_real *g = routes->gate + (size_t)t * routes->slots;
        hmoe_real x[HMOE_MAX_EXPERTS], sum = 0;
        for (int e = 0; e < E; e++) x[e] = P[e] + (routes->bias ? routes->bias[e] : 0);
        while (!enough) {
            int next = -1;   /* the largest x that comes after the last one taken */
            for (int e = 0; e < E; e++) {
                int after = last < 0 || x[e] < x[last] || (x[e] == x[last] && e > last);
                if (after && (next < 0 || x[e] > x[next])) next = e;
            }
            if (next < 0) next = n;  /* P is NaN: any expert; hmoe_forward reports it */
            S[n] = last = next;
            g[n++] = P[next];
            sum += P[next];
            if (routing == HMOE_TOP_K) enough = n == K;
            else enough = n == E || (top_p < 1 && sum >= top_p);
        }
        routes->count[t] = n;
        if (norm && sum != 0)  /* with a bias all chosen P may be 0: then gates are 0, not 0 / 0 */
            for (int s = 0; s < n; s++) g[s] /= sum;
    }
}

/* The same choice, ordered by expert: the rows of expert e are expert_start[e] ..
   [e+1]-1, and its tokens are in order. This is a counting sort. One thread does it,
   because it moves only a few integers per token.

       token 0 -> 2 0      token 1 -> 2 1      token 2 -> 0 2        (Top-2, E = 3)

       row           0   1 | 2 | 3   4   5
       row_token     0   2 | 1 | 0   1   2        expert_start  0 2 3 6
                  expert 0 | 1 | expert 2

   Reads count, expert, gate; writes expert_start, row_token, row_gate and row. */
static void hmoe__dispatch(const hmoe_routes *routes, int N, int E) {
    int next[HMOE_MAX_EXPERTS], *start = routes->expert_start, slots = routes->slots;
    for (int e = 0; e <= E; e++) start[e] = 0;
    for (int t = 0; t < N; t++)
        for (int s = 0; s < routes->count[t]; s++)
            start[routes->expert[t * slots + s] + 1]++;
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

/* Fills an array of HMOE_SUMS(E) doubles: see hmoe_sums. */
static void hmoe__router_sums(double *array, const hmoe_routes *routes, int N, int E) {
    hmoe_sums sums = hmoe_sums_in(array, E);
    *sums.entropy = *sums.lse2 = 0;
    for (int e = 0; e < E; e++) {
        sums.count[e] = routes->expert_start[e + 1] - routes->expert_start[e];
        sums.P[e] = 0;
    }
    for (int t = 0; t < N; t++) {
        for (int e = 0; e < E; e++) sums.P[e] += routes->P[(size_t)t * E + e];
        *sums.entropy += routes->entropy[t];
        *sums.lse2 += (double)routes->lse[t] * routes->lse[t];
    }
    *sums.rows = routes->expert_start[E];
}

/* Computes dr from the gradients of the gates and of the losses. Overwrites the logits.
   course/TOUR.md derives each line (e and j run over the experts):
     gates     norm: dP_e += (dg_e - sum_{j in S} dg_j g_j) / sum_{j in S} P_j;   raw: dP_e += dg_e
     losses    dP_e starts as dP_all[e], which is the same for every token: see LOSSES
     softmax   dr_e  = P_e (dP_e - sum_j dP_j P_j)
     z-loss    dr_e += d_lse2 2 lse P_e
     entropy   dr_e -= d_entropy P_e (ln P_e + entropy)
   dgate: [rows] gradient of each row's gate   dP_all: [E]
   d_entropy, d_lse2: gradient of the loss with respect to entropy[t] and to lse[t]^2 */
static void hmoe__router_backward(const hmoe_routes *routes, const hmoe_real *dgate,
                                  const hmoe_real *dP_all, double d_entropy,
                                  double d_lse2, int norm, int N, int E) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        size_t at = (size_t)t * routes->slots;
        const int *row = routes->row + at, *S = routes->expert + at;
        const hmoe_real *P = routes->P + (size_t)t * E, *g = routes->gate + at;
        hmoe_real *r = routes->logits + (size_t)t * E, dP[HMOE_MAX_EXPERTS];
        hmoe_real dg_g = 0, P_chosen = 0, dP_P = 0, lse = routes->lse[t];
        for (int e = 0; e < E; e++) dP[e] = dP_all[e];
        for (int s = 0; s < routes->count[t]; s++) {
            dg_g += dgate[row[s]] * g[s];
            P_chosen += P[S[s]];
        }
        for (int s = 0; s < routes->count[t]; s++) {
            hmoe_real dg = dgate[row[s]];
            if (norm) dg = P_chosen != 0 ? (dg - dg_g) / P_chosen : 0;
            dP[S[s]] += dg;
        }
        for (int e = 0; e < E; e++) dP_P += dP[e] * P[e];
        for (int e = 0; e < E; e++) {
            hmoe_real softmax = dP[e] - dP_P;
            hmoe_real z_loss = (hmoe_real)d_lse2 * 2 * lse;
            hmoe_real entropy = (hmoe_real)d_entropy * (r[e] - lse + routes->entropy[t]);
            r[e] = P[e] * (softmax + z_loss - entropy);
        }
    }
}

/* ---------------------------------------------------------------------------------------
   EXPERTS - each expert takes its tokens, computes at its own width, and the outputs are
   added up. Arrays have a row per (token, expert) pair. A row of u and h is as long as
   the widest expert needs; a narrow expert uses only the start of it:

       rows of          u = [W1 x | W3 x]: 2 H[e] numbers     h = silu(W1 x) * (W3 x): H[e] numbers
       expert 0 (narrow)    aaaa bbbb . . . . . . . .           hhhh . . . .
       expert 1 (wide)      aaaaaaaa bbbbbbbb . . . .           hhhhhhhh . .                     */

/* SwiGLU (Shazeer 2020):  h = silu(a) * b,   silu(a) = a sigmoid(a)
   One row of an expert of width H.   h: [H]   u = [a | b] = [W1 x | W3 x]: [2H] */
static void hmoe__swiglu_row(hmoe_real *h, const hmoe_real *u, int H) {
    HMOE__SIMD
    for (int i = 0; i < H; i++) h[i] = u[i] * hmoe__sigmoid(u[i]) * u[H + i];
}

/* The gate g multiplies the expert's output, y = g W2 h. With dh = W2^T dy (without the
   gate):
     dg = dh . h,   dL/dh = g dh,
     da = dL/dh b sigmoid(a) (1 + a (1 - sigmoid(a))),   db = dL/dh silu(a)
   Overwrites u with du = [da | db], and h with g h, which the gradient of W2 needs.
   Returns dg. */
static hmoe_real hmoe__swiglu_row_backward(hmoe_real *u, hmoe_real *h,
                                           const hmoe_real *dh, hmoe_real g, int H) {
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

/* All rows of all experts, cut into parts of equal work, one per thread.
   u: [rows, 2 ldh]   h: [rows, ldh]   ldh: the largest H[e]
   start: [E + 1] expert e has rows start[e] .. start[e+1]-1 */
static void hmoe__swiglu_forward(hmoe_real *h, const hmoe_real *u, const int *start,
                                 const int *H, int E, int ldh) {
    int parts = start[E] > 32 ? hmoe__threads() : 1;
    HMOE__PARALLEL_FOR(parts)
    for (int part = 0; part < parts; part++) {
        int row = hmoe__first_row(start, H, E, part, parts), e = 0;
        int end = hmoe__first_row(start, H, E, part + 1, parts);
        for (; row < end; row++) {
            while (row >= start[e + 1]) e++;
            hmoe__swiglu_row(h + (size_t)row * ldh, u + (size_t)row * 2 * ldh, H[e]);
        }
    }
}

/* dh: [rows, ldh]   row_gate: [rows]   dgate: [rows] receives dg. Overwrites u and h. */
static void hmoe__swiglu_backward(hmoe_real *u, hmoe_real *h, hmoe_real *dgate,
                                  const hmoe_real *dh, const int *start,
                                  const hmoe_real *row_gate, const int *H, int E,
                                  int ldh) {
    int parts = start[E] > 32 ? hmoe__threads() : 1;
    HMOE__PARALLEL_FOR(parts)
    for (int part = 0; part < parts; part++) {
        int row = hmoe__first_row(start, H, E, part, parts), e = 0;
        int end = hmoe__first_row(start, H, E, part + 1, parts);
        for (; row < end; row++) {
            size_t at = (size_t)row * ldh;
            while (row >= start[e + 1]) e++;
            dgate[row] = hmoe__swiglu_row_backward(u + 2 * at, h + at, dh + at,
                                                   row_gate[row], H[e]);
        }
    }
}

/* Computes u = [W1 x | W3 x], the y of the list, and then h, for all experts. */
static void hmoe__experts_up(hmoe_real *h, const hmoe_linear *list, const int *start,
                             const int *H, int E, int ldh) {
    hmoe__linear_forward(list, E);
    hmoe__swiglu_forward(h, list->y, start, H, E, ldh);
}

/* y_t = x_t + sum over S[t] of g * (the row of t and that expert), in order of choice.
   x, y: [N, C]   rows: [rows, C] the experts' outputs */
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

/* dx_t = sum over S[t] of the rows of drows [rows, C]; the gates are already in them.
   Overwrites dx [N, C]. */
static void hmoe__combine_backward(hmoe_real *dx, const hmoe_real *drows,
                                   const hmoe_routes *routes, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real *dx_t = dx + (size_t)t * C;
        for (int s = 0; s < routes->count[t]; s++) {
            size_t at = (size_t)t * routes->slots + s;
            const hmoe_real *row = drows + (size_t)routes->row[at] * C;
            HMOE__SIMD
            for (int i = 0; i < C; i++) dx_t[i] = s ? dx_t[i] + row[i] : row[i];
        }
    }
}

/* ---------------------------------------------------------------------------------------
   LOSSES - terms that are added to the cross-entropy to steer the router. Each is a
   function of means over the N tokens of a layer, and is summed over the layers. Its
   value and its derivative stand side by side. Each token contributes 1 / N to each mean,
   so hmoe_backward divides by N.

     load balancing   L_lb  = E sum_e f_e Phat_e             Switch Transformers eq. 4
     P-Penalty        L_pp  = E sum_e M_e Phat_e,            HMoE's parameter penalty
                      M_e   = f_e H[e] / mean(H)
     entropy          L_ent = E * mean entropy of P[t]       HMoE eq. 5, other sign
     z-loss           L_z   = mean of lse_t^2                ST-MoE eq. 5

   f_e is a constant in the backward pass; the gradient goes through Phat. The first two
   push Phat_e down in proportion to the load of expert e. Load balancing counts its
   tokens. The P-Penalty counts its work, so narrow experts end up with more tokens than
   wide ones.

   TO ADD A LOSS of these means, change three places: add a name above HMOE_LOSS_TERMS in
   CONFIGURATION, a function here, and a row in hmoe_loss_terms below. The options, the
   log, the checkpoint, the checks and the gradient tests walk over that table.

   Where the papers leave a choice:
   M_e: HMoE prints H[e] alone, and says that equal widths give load balancing. H[e] /
     mean(H) makes that true. So would H[e] / max(H), or H[e] / sum(H) up to the factor
     E. HMoE's coefficient 0.1 would be 0.1 (mean), 0.07 (max) or 0.0125 (sum) here; a
     mean over the layers would divide it by L again. mean(H) is over all E: if some
     experts are null and the others equal, their penalty is E / (their number) times
     load balancing.
   entropy: HMoE prints + E sum_e P_e ln P_e, with no mean over tokens. Its text asks for
     fewer experts under Top-P, so the entropy of each token must fall. Therefore this
     sign, and the mean, as in Huang et al., arXiv 2403.07652. HMoE's 3e-2 would be 0.24
     per nat and layer here: after 100 steps every token has the same single expert. 3e-5
     leaves about two.
   f_e: MoDSE eq. 10 counts first choices only. Here all choices count, as in MoDSE's
     tables. */

/* Means over the tokens of one layer; in a `slope`, derivatives of all losses, times
   their coefficients, with respect to these means. */
struct hmoe_means {
    int E;
    const int *H;                                     /* [E] */
    double mean_H, f[HMOE_MAX_EXPERTS], Phat[HMOE_MAX_EXPERTS], entropy, lse2;
};

static double hmoe__load_balancing(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        loss += x->E * x->f[e] * x->Phat[e];
        slope->Phat[e] += coef * x->E * x->f[e];
    }
    return loss;
}

static double hmoe__p_penalty(const hmoe_means *x, double coef, hmoe_means *slope) {
    double loss = 0;
    for (int e = 0; e < x->E; e++) {
        double M = x->f[e] * x->H[e] / x->mean_H;
        loss += x->E * M * x->Phat[e];
        slope->Phat[e] += coef * x->E * M;
    }
    return loss;
}

static double hmoe__entropy_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    slope->entropy += coef * x->E;
    return x->E * x->entropy;
}

static double hmoe__z_loss(const hmoe_means *x, double coef, hmoe_means *slope) {
    slope->lse2 += coef;
    return x->lse2;
}

/* In the order of the enum. */
const hmoe_loss_term hmoe_loss_terms[HMOE_LOSS_TERMS] = {
    { "lb", hmoe__load_balancing, 0, "load-balancing loss" },
    { "pp", hmoe__p_penalty, 0.01, "P-Penalty" },
    { "ent", hmoe__entropy_loss, 0, "entropy loss" },
    { "z", hmoe__z_loss, 0, "z-loss" },
};

/* All losses, from each layer's sums over `all` tokens. slope: [L] their derivatives. */
static void hmoe__losses(hmoe_losses *losses, hmoe_means *slope, double *sums,
                         const hmoe_config *c, double all) {
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) losses->term[i] = 0;
    for (int l = 0; l < c->L; l++) {
        hmoe_sums s = hmoe_sums_in(sums + l * HMOE_SUMS(c->E), c->E);
        hmoe_means x;
        x.E = c->E, x.H = c->H, x.mean_H = hmoe__total_width(c) / c->E;
        x.entropy = *s.entropy / all, x.lse2 = *s.lse2 / all;
        for (int e = 0; e < c->E; e++) {
            x.f[e] = s.count[e] / all;
            x.Phat[e] = s.P[e] / all;
        }
        memset(&slope[l], 0, sizeof slope[l]);
        for (int i = 0; i < HMOE_LOSS_TERMS; i++)
            losses->term[i] += hmoe_loss_terms[i].value(&x, c->loss_coef[i], &slope[l]);
    }
    losses->total = losses->ce;
    for (int i = 0; i < HMOE_LOSS_TERMS; i++)
        losses->total += c->loss_coef[i] * losses->term[i];
}

/* ---------------------------------------------------------------------------------------
   EXPERT SIZES - a strategy is a list of E ratios. ROUNDING OF SIZES, in PART TWO, turns
   them into whole widths with an exact total, so that models of equal size can be
   compared. */

/* The ratios of a strategy by its name. Returns 0 if there is no such name. */
static int hmoe__named_ratios(double *ratio, int E, const char *strategy) {
    static const double modse[8] = { 4.5, 0.5, 4, 1, 3, 2, 2.5, 2.5 };  /* as MoDSE prints it */
    int ones = (E + 1) / 2, twos = (E + 3) / 4;
    for (int e = 0; e < E; e++)
        if (!strcmp(strategy, "homogeneous")) ratio[e] = 1;
        else if (!strcmp(strategy, "arithmetic"))
            ratio[e] = E == 1 ? 1 : 9 + 14.0 * e / (E - 1);
        else if (!strcmp(strategy, "geometric")) ratio[e] = ldexp(1, e);
        else if (!strcmp(strategy, "hybrid")) ratio[e] = e < ones ? 1 : e < ones + twos ? 2 : 4;
        else if (!strcmp(strategy, "modse") && E == 8) ratio[e] = modse[e];
        else if (!strcmp(strategy, "modse")) {  /* the larger of a pair: 4.5 to 2.5 */
            double larger = E == 2 ? 4.5 : 4.5 - 2.0 * (e / 2) / (E / 2.0 - 1);
            ratio[e] = e % 2 ? 5 - larger : larger;
        } else return 0;
    return 1;
}

/* ---------------------------------------------------------------------------------------
   LAYERS - the rest of the transformer. The forward and the backward function of a layer
   stand side by side (RoPE has one function for both). Weight gradients are accumulated.
   Each function says which arrays it overwrites. */

/* Embedding:  x_t = W[token_t]       x: [N, C]   W: [V, C]   tokens: [N] */
static void hmoe__embed_forward(hmoe_real *x, const int *tokens, const hmoe_real *w,
                                int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++)
        memcpy(x + (size_t)t * C, w + (size_t)tokens[t] * C, (size_t)C * sizeof *x);
}

/* dW[token_t] += dx_t. Two tokens may have the same row of dW, so the threads share the
   columns. */
static void hmoe__embed_backward(hmoe_real *dw, const int *tokens, const hmoe_real *dx,
                                 int N, int C) {
    HMOE__PARALLEL_FOR(C)
    for (int block = 0; block < C; block += 16)
        for (int t = 0; t < N; t++)
            for (int i = block; i < C && i < block + 16; i++)
                dw[(size_t)tokens[t] * C + i] += dx[(size_t)t * C + i];
}

/* RMSNorm (Zhang and Sennrich 2019):  y = w * x / rms(x), rms(x) = sqrt(mean(x^2) + eps)
   x, y: [N, C]   w: [C]   rrms: [N] receives 1 / rms(x), for the backward pass */
static void hmoe__rmsnorm_forward(hmoe_real *y, hmoe_real *rrms, const hmoe_real *x,
                                  const hmoe_real *w, double eps, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        const hmoe_real *x_t = x + (size_t)t * C;
        hmoe_real *y_t = y + (size_t)t * C;
        hmoe_real sum = 0, r;
        HMOE__SIMD_SUM(sum)
        for (int i = 0; i < C; i++) sum += x_t[i] * x_t[i];
        /* if the sum overflows, give NaN: 1 / infinity is 0, which looks valid */
        r = isfinite(sum) ? 1 / hmoe__sqrt(sum / C + (hmoe_real)eps) : sum - sum;
        HMOE__SIMD
        for (int i = 0; i < C; i++) y_t[i] = w[i] * x_t[i] * r;
        rrms[t] = r;
    }
}

/* With the normalised row n = x / rms(x):
     dx += (w dy - n mean(w dy n)) / rms(x)     the mean is the effect of x on its own rms
     dw += sum over t of dy n
   Overwrites dy: dw is first summed over blocks of 32 tokens. Each partial sum is stored in
   the first dy row of its block, which is no longer needed. Thus the order of the sum does
   not depend on the number of threads. */
static void hmoe__rmsnorm_backward(hmoe_real *dx, hmoe_real *dw, hmoe_real *dy,
                                   const hmoe_real *x, const hmoe_real *w,
                                   const hmoe_real *rrms, int N, int C) {
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

/* RoPE (Su et al. 2021), rotate-half: in every head of q and k, dimensions i and i + hs/2
   of the token at position t are rotated by the angle t * theta^(-2i/hs). Then q . k
   depends only on the distance between the two tokens. The backward pass rotates the
   other way: direction -1.
   One token: x: [heads, hs], in place   angles: [2, hs/2], cosines and sines */
static void hmoe__rope_row(hmoe_real *x, const hmoe_real *angles, int direction,
                           int heads, int hs) {
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

/* qkv: [N, C + 2 KV], q | k | v, in place   angles: [T, 2, hs/2] */
static void hmoe__rope(hmoe_real *qkv, const hmoe_real *angles, int direction, int B,
                       int T, int NH, int NKV, int hs) {
    HMOE__PARALLEL_FOR(B * T)
    for (int t = 0; t < B * T; t++)   /* q and k are neighbours: NH + NKV heads */
        hmoe__rope_row(qkv + (size_t)t * (NH + 2 * NKV) * hs, angles + (size_t)(t % T) * hs,
                       direction, NH + NKV, hs);
}

/* Fills the angles [2, hs/2] of one position. */
static void hmoe__rope_angles(hmoe_real *angles, int64_t position, int hs, double theta) {
    for (int i = 0; i < hs / 2; i++) {
        double angle = (double)position * pow(theta, -2.0 * i / hs);
        angles[i] = (hmoe_real)cos(angle);
        angles[hs / 2 + i] = (hmoe_real)sin(angle);
    }
}

/* Causal attention (Vaswani et al. 2017), per sequence and head:
     att[i][j] = softmax over j <= i of (q_i . k_j / sqrt(hs)),
     out_i     = sum over j of att[i][j] v_j
   Head h of the queries uses head h / (NH / NKV) of the keys and values. If NKV < NH, several
   heads share them (grouped-query attention, Ainslie et al. 2023).
   out: [N, C]   att: [B, NH, T, T], kept for the backward pass   qkv: [N, C + 2 KV]
   Queries are computed in blocks of 32, each against the keys up to the end of the block.
   Inside the block, later keys get the probability 0. */
enum { HMOE__QUERIES = 32 };

/* The softmax of row i of a block that ends at key `end`, in whole vectors of 16. */
static void hmoe__causal_softmax(hmoe_real *p_i, int i, int end, hmoe_real scale) {
    int whole = i / 16 * 16 + 16 < end ? i / 16 * 16 + 16 : end;
    for (int j = i + 1; j < whole; j++) p_i[j] = (hmoe_real)-INFINITY;
    for (int j = whole; j < end; j++) p_i[j] = 0;
    hmoe__softmax_row(p_i, whole, scale, NULL);
}

static void hmoe__attention_forward(hmoe_real *out, hmoe_real *att, const hmoe_real *qkv,
                                    int B, int T, int NH, int NKV, int hs) {
    size_t C = (size_t)NH * hs, KV = (size_t)NKV * hs, row = C + 2 * KV;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    HMOE__PARALLEL_FOR(B * NH)
    for (int head = 0; head < B * NH; head++) {
        const hmoe_real *start = qkv + head / NH * (T * row), *q = start + head % NH * hs;
        const hmoe_real *k = start + C + head % NH / (NH / NKV) * hs, *v = k + KV;
        hmoe_real *o = out + head / NH * (T * C) + head % NH * hs;
        for (int i0 = 0; i0 < T; i0 += HMOE__QUERIES) {
            int end = i0 + HMOE__QUERIES < T ? i0 + HMOE__QUERIES : T, n = end - i0;
            hmoe_real *p = att + ((size_t)head * T + i0) * T;
            hmoe__multiply(p, T, hmoe__rows(q + i0 * row, row), hmoe__transposed(k, row),
                           NULL, n, end, hs); /* scores = q k^T */
            for (int i = 0; i < n; i++)
                hmoe__causal_softmax(p + (size_t)i * T, i0 + i, end, scale);
            hmoe__multiply(o + i0 * C, C, hmoe__rows(p, T), hmoe__rows(v, row), NULL,
                           n, hs, end);                                   /* out = p v */
        }
    }
}

/* With p = att[i] and dp_j = dout_i . v_j:
     dv_j += p_j dout_i
     ds_j  = p_j (dp_j - sum over j of p_j dp_j)    the softmax; the sum is dout_i . out_i
     dq_i += ds_j k_j / sqrt(hs),   dk_j += ds_j q_i / sqrt(hs)
   Heads that share k and v add to the same dk and dv, so one thread computes them.
   Overwrites dqkv.   dout, out: [N, C]   datt: [B * NH, 32, T] dp, then ds / sqrt(hs) */
static void hmoe__attention_backward(hmoe_real *dqkv, hmoe_real *datt,
                                     const hmoe_real *dout, const hmoe_real *out,
                                     hmoe_real *att, const hmoe_real *qkv, int B, int T,
                                     int NH, int NKV, int hs) {
    size_t C = (size_t)NH * hs, KV = (size_t)NKV * hs, row = C + 2 * KV;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    int group = NH / NKV;
    HMOE__PARALLEL_FOR(B * NKV)
    for (int kv = 0; kv < B * NKV; kv++) {
        size_t at_k = kv / NKV * (T * row) + C + kv % NKV * hs;
        const hmoe_real *k = qkv + at_k, *v = k + KV;
        hmoe_real *dk = dqkv + at_k, *dv = dk + KV;
        for (int t = 0; t < T; t++)
            for (int i = 0; i < hs; i++) dk[t * row + i] = dv[t * row + i] = 0;
        for (int head = kv * group; head < (kv + 1) * group; head++)
            for (int i0 = 0; i0 < T; i0 += HMOE__QUERIES) {
                int end = i0 + HMOE__QUERIES < T ? i0 + HMOE__QUERIES : T, n = end - i0;
                size_t token = (size_t)(head / NH) * T + i0, at = head % NH * hs;
                const hmoe_real *q = qkv + token * row + at, *p = att + ((size_t)head * T + i0) * T;
                const hmoe_real *o = out + token * C + at, *d_o = dout + token * C + at;
                hmoe_real *dq = dqkv + token * row + at;
                hmoe_real *ds = datt + (size_t)head * HMOE__QUERIES * T;
                hmoe__multiply(dv, row, hmoe__transposed(p, T), hmoe__rows(d_o, C), dv,
                               end, hs, n);
                hmoe__multiply(ds, T, hmoe__rows(d_o, C), hmoe__transposed(v, row), NULL,
                               n, end, hs);
                for (int i = 0; i < n; i++) {
                    hmoe_real *ds_i = ds + (size_t)i * T, sum = 0;
                    HMOE__SIMD_SUM(sum)
                    for (int j = 0; j < hs; j++) sum += d_o[i * C + j] * o[i * C + j];
                    HMOE__SIMD
                    for (int j = 0; j < end; j++)
                        ds_i[j] = p[(size_t)i * T + j] * (ds_i[j] - sum) * scale;
                }
                hmoe__multiply(dq, row, hmoe__rows(ds, T), hmoe__rows(k, row), NULL, n, hs, end);
                hmoe__multiply(dk, row, hmoe__transposed(ds, T), hmoe__rows(q, row), dk,
                               end, hs, n);
            }
    }
}

/* Cross-entropy:  ce_t = logsumexp(logits_t) - logits_t[target_t]      logits: [N, V]   ce: [N] */
static void hmoe__cross_entropy_forward(hmoe_real *ce, const hmoe_real *logits,
                                        const int *targets, int N, int V) {
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

/* d logits_t = scale (softmax(logits_t) - onehot(target_t)). Overwrites logits. */
static void hmoe__cross_entropy_backward(hmoe_real *logits, const int *targets,
                                         double scale, int N, int V) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        hmoe_real *x = logits + (size_t)t * V;
        hmoe__softmax_row(x, V, 1, NULL);
        x[targets[t]] -= 1;
        for (int i = 0; i < V; i++) x[i] *= (hmoe_real)scale;
    }
}

/* ---------------------------------------------------------------------------------------
   FORWARD - tokens in, loss out:

      embed  [ norm  q k v  rope  attention  o  +  norm  router ... experts  + ] x L  norm  head  */

/* One layer: where its tensors start in params and grads, and its activations. There are
   L + 1 of these; the last holds only x, w_norm1, rrms1 and n1, for the final norm. */
typedef struct hmoe__layer {
    size_t w_norm1, w_qkv, w_o;    /* q, k, v are neighbours: one [C + 2 KV, C] */
    size_t w_norm2, w_router, w_noise, w_noise_gain;
    size_t bias, top_p;            /* state, if config has balance or budget */
    size_t w13[HMOE_MAX_EXPERTS];  /* W1 and W3 are neighbours: one [2 H[e], C] */
    size_t w2[HMOE_MAX_EXPERTS];   /* [C, H[e]] */
    hmoe_real *x, *rrms1, *n1;     /* [N, C] input; [N]; [N, C] RMSNorm(x) */
    hmoe_real *qkv, *att, *out;    /* [N, C + 2 KV] q | k | v; [B, NH, T, T]; [N, C] */
    hmoe_real *x2, *rrms2, *n2;    /* [N, C] x + attention; [N]; [N, C] RMSNorm(x2) */
    hmoe_real *raw;                /* [N, E] W_n n2 for noisy gating, then its gradient */
    hmoe_real *u;                  /* [rows, 2 ldh] inside the experts */
    hmoe_routes routes;
} hmoe__layer;

/* Activations that all layers share. */
typedef struct hmoe__buffers {
    int *tokens, *targets, *all_rows;  /* [N], [N]; { 0, N }: rows of a dense product */
    hmoe_real *angles;                 /* [T, 2, hs/2] of RoPE */
    hmoe_real *h, *rows;               /* [rows, ldh] in experts; [rows, C] their outputs */
    hmoe_real *logits, *ce;            /* [N, V], [N] */
    double *sums;                      /* [L, HMOE_SUMS(E)], see hmoe_sums */
    hmoe_real *dP_all;                 /* [L, E], see hmoe__router_backward */
    hmoe_real *dx, *dn, *dqkv, *dout;  /* backward: [N, C], [N, C], [N, C + 2 KV], [N, C] */
    hmoe_real *datt, *dh, *dgate;      /* [B * NH, 32, T], [rows, ldh], [rows] */
    /* in CPU memory: */
    double *host_sums;                  /* [L, HMOE_SUMS(E)] sums, and [1] the mean ce */
    hmoe_real *host_dP, *host_ce;       /* [L, E], [N] */
    hmoe_means *slope;                  /* [L] derivatives of the losses */
    hmoe_linear *list;                  /* [E] products of the experts */
    struct hmoe_panels panels;
} hmoe__buffers;

/* A dense linear map. x: [N, in]   w: [out, in]   y: [N, out] */
static hmoe_linear hmoe__dense(hmoe_model *m, hmoe_real *x, hmoe_real *w, hmoe_real *y, int in,
                               int out, const hmoe_real *add) {
    hmoe_linear map = { x, w, y, m->buffers->all_rows, in, out, in, out, add, NULL, NULL,
                        &m->buffers->panels };
    return map;
}

/* y = x W^T + add; W starts at params[w]. */
static void hmoe__dense_forward(hmoe_model *m, hmoe_real *y, hmoe_real *x, size_t w,
                                int in, int out, const hmoe_real *add) {
    hmoe_linear map = hmoe__dense(m, x, m->params + w, y, in, out, add);
    m->backend->linear_forward(&map, 1);
}

/* The experts' products, as lists of E: u = x W13^T, and y = h W2^T. `params` holds the
   weights, or their gradients. x_row and y_row: NULL, or row_token. */
static void hmoe__up_list(hmoe_linear *list, const hmoe_model *m, const hmoe__layer *ly,
                          hmoe_real *params, hmoe_real *x, hmoe_real *u,
                          const int *x_row) {
    int C = m->config.C, ldh = hmoe__widest(&m->config);
    for (int e = 0; e < m->config.E; e++) {
        int H = m->config.H[e];  /* here experts become unequal: each has its own width */
        hmoe_linear up = { x, params + ly->w13[e], u, ly->routes.expert_start + e, C, 2 * H,
                           C, 2 * ldh, NULL, x_row, NULL, &m->buffers->panels };
        list[e] = up;
    }
}

static void hmoe__down_list(hmoe_linear *list, const hmoe_model *m, const hmoe__layer *ly,
                            hmoe_real *params, hmoe_real *h, hmoe_real *y,
                            const int *y_row) {
    int C = m->config.C, ldh = hmoe__widest(&m->config);
    for (int e = 0; e < m->config.E; e++) {
        int H = m->config.H[e];
        hmoe_linear down = { h, params + ly->w2[e], y, ly->routes.expert_start + e, H, C,
                             ldh, C, NULL, NULL, y_row, &m->buffers->panels };
        list[e] = down;
    }
}

/* x2 = x + Attention(RMSNorm(x)). With a cache: one token, over all so far. */
static void hmoe__attention_block_forward(hmoe_model *m, int l, int B, int T,
                                          hmoe_cache *cache) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    int C = c->C, N = B * T, hs = C / c->NH;
    be->rmsnorm_forward(ly->n1, ly->rrms1, ly->x, m->params + ly->w_norm1,
                        c->rms_norm_eps, N, C);
    hmoe__dense_forward(m, ly->qkv, ly->n1, ly->w_qkv, C, C + 2 * c->NKV * hs, NULL);
    if (cache) hmoe__attention_cached(cache, c, l, ly->out, ly->att, ly->qkv);
    else {
        be->rope(ly->qkv, m->buffers->angles, 1, B, T, c->NH, c->NKV, hs);
        be->attention_forward(ly->out, ly->att, ly->qkv, B, T, c->NH, c->NKV, hs);
    }
    hmoe__dense_forward(m, ly->x2, ly->out, ly->w_o, C, C, ly->x);
    if (m->dropout > 0 && m->mode == HMOE_TRAIN)
        be->dropout_forward(ly->x2, ly->x, m->dropout, hmoe__dropout_key(m, l, 0),
                            hmoe__first_number(m), N, C);
}

/* The router, from RMSNorm(x2) to the routes. */
static void hmoe__router_forward(hmoe_model *m, int l, int N) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    int E = c->E, norm = c->gate == HMOE_GATE_NORM;
    hmoe__dense_forward(m, ly->routes.logits, ly->n2, ly->w_router, c->C, E, NULL);
    if (c->noisy_gating && m->mode == HMOE_TRAIN) {
        hmoe__dense_forward(m, ly->raw, ly->n2, ly->w_noise, c->C, E, NULL);
        be->noise_forward(&ly->routes, ly->raw, m->params + ly->w_noise_gain,
                          c->rms_norm_eps, hmoe__noise_key(m, l), hmoe__first_number(m),
                          N, E);
    }
    be->router_softmax(&ly->routes, N, E);
    be->choose(&ly->routes, c->routing, c->K, c->top_p, norm, N, E);
    be->dispatch(&ly->routes, N, E);
    be->router_sums(m->buffers->sums + l * HMOE_SUMS(E), &ly->routes, N, E);
}

/* x of the next layer = x2 + MoE(RMSNorm(x2)),
   MoE(n_t) = sum over e in S[t] of g[t][e] W2_e (silu(W1_e n_t) * (W3_e n_t)) */
static void hmoe__moe_block_forward(hmoe_model *m, int l, int N) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    const int *start = ly->routes.expert_start, *token = ly->routes.row_token;
    be->rmsnorm_forward(ly->n2, ly->rrms2, ly->x2, m->params + ly->w_norm2,
                        c->rms_norm_eps, N, c->C);
    hmoe__router_forward(m, l, N);
    if (!hmoe__remote_experts_forward(m, l)) {
        hmoe__up_list(b->list, m, ly, m->params, ly->n2, ly->u, token);
        be->experts_up(b->h, b->list, start, c->H, c->E, hmoe__widest(c));  /* u, h */
        hmoe__down_list(b->list, m, ly, m->params, b->h, b->rows, NULL);
        be->linear_forward(b->list, c->E);                                 /* rows = h W2^T */
    }
    be->combine_forward((ly + 1)->x, ly->x2, b->rows, &ly->routes, N, c->C);
    if (m->dropout > 0 && m->mode == HMOE_TRAIN)
        be->dropout_forward((ly + 1)->x, ly->x2, m->dropout, hmoe__dropout_key(m, l, 1),
                            hmoe__first_number(m), N, c->C);
}

/* All layers, from tokens to logits. */
static void hmoe__layers_forward(hmoe_model *m, int B, int T, hmoe_cache *cache) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__buffers *b = m->buffers;
    hmoe__layer *last = &m->layers[c->L];
    be->embed_forward(m->layers[0].x, b->tokens, m->params, B * T, c->C);
    for (int l = 0; l < c->L; l++) {
        hmoe__attention_block_forward(m, l, B, T, cache);
        hmoe__moe_block_forward(m, l, B * T);
    }
    be->rmsnorm_forward(last->n1, last->rrms1, last->x, m->params + last->w_norm1,
                        c->rms_norm_eps, B * T, c->C);
    hmoe__dense_forward(m, b->logits, last->n1, m->head, c->C, c->V, NULL);
}

hmoe_status hmoe_forward(hmoe_model *m, hmoe_mode mode, const int *tokens,
                         const int *targets, int B, int T) {
    const hmoe_backend *be = m->backend;
    hmoe__buffers *b = m->buffers;
    m->message[0] = 0;
    m->has_results = 0;
    hmoe_status status = hmoe__check_batch(m, mode, tokens, targets, B, T);
    int N = m->all_tokens = status ? 0 : B * T, rows[2] = { 0, N };
    HMOE__TRY(hmoe__common_status(m, status, N));
    be->upload(b->all_rows, rows, sizeof rows);
    be->upload(b->tokens, tokens, (size_t)N * sizeof *tokens);
    if (targets) be->upload(b->targets, targets, (size_t)N * sizeof *targets);
    m->mode = mode, m->B = B, m->sequence_length = T, m->had_targets = targets != NULL;
    hmoe__layers_forward(m, B, T, NULL);
    if (targets) be->cross_entropy_forward(b->ce, b->logits, b->targets, N, m->config.V);
    HMOE__TRY(hmoe__collect(m));
    m->has_results = 1;
    return HMOE_OK;
}

/* ---------------------------------------------------------------------------------------
   BACKWARD - the same steps in reverse order. dx holds the gradient of the residual
   stream, from the last layer to the first. Each block adds to it. */

/* Of y = x W^T: dx = dy W (add = 1: dx += dy W), dW += dy^T x. */
static void hmoe__dense_backward(hmoe_model *m, hmoe_real *dx, size_t w, hmoe_real *dy,
                                 hmoe_real *x, int in, int out, int add) {
    hmoe_linear input = hmoe__dense(m, dx, m->params + w, dy, in, out, add ? dx : NULL);
    hmoe_linear weight = hmoe__dense(m, x, m->grads + w, dy, in, out, NULL);
    m->backend->linear_backward_input(&input, 1);
    m->backend->linear_backward_weight(&weight, 1);
}

/* The gradient of what a block adds to the residual stream: dx, through dropout's mask.
   block: 0 attention, 1 experts */
static hmoe_real *hmoe__block_gradient(hmoe_model *m, int l, int block, int N) {
    hmoe__buffers *b = m->buffers;
    if (m->dropout <= 0) return b->dx;
    m->backend->dropout_backward(b->dn, b->dx, m->dropout, hmoe__dropout_key(m, l, block),
                                 hmoe__first_number(m), N, m->config.C);
    return b->dn;
}

/* Adds to the gradients of the router's weights, and to dn. */
static void hmoe__router_block_backward(hmoe_model *m, int l, int N, double scale) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    double per_token = scale / m->all_tokens;
    be->router_backward(&ly->routes, b->dgate, b->dP_all + (size_t)l * c->E,
                        b->slope[l].entropy * per_token, b->slope[l].lse2 * per_token,
                        c->gate == HMOE_GATE_NORM, N, c->E);
    if (c->noisy_gating) {
        be->noise_backward(ly->raw, m->grads + ly->w_noise_gain, &ly->routes, ly->raw,
                           m->params + ly->w_noise_gain, c->rms_norm_eps,
                           hmoe__noise_key(m, l), hmoe__first_number(m), N, c->E);
        hmoe__dense_backward(m, b->dn, ly->w_noise, ly->raw, ly->n2, c->C, c->E, 1);
    }
    hmoe__dense_backward(m, b->dn, ly->w_router, ly->routes.logits, ly->n2, c->C, c->E, 1);
}

static void hmoe__moe_block_backward(hmoe_model *m, int l, int N, double scale) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    hmoe_linear *list = b->list;
    const int *start = ly->routes.expert_start, *token = ly->routes.row_token;
    hmoe_real *dy = hmoe__block_gradient(m, l, 1, N);
    if (!hmoe__remote_experts_backward(m, l, dy)) {
        hmoe__down_list(list, m, ly, m->params, b->dh, dy, token);
        be->linear_backward_input(list, c->E);  /* dh = dy W2, without the gate */
        be->swiglu_backward(ly->u, b->h, b->dgate, b->dh, start, ly->routes.row_gate,
                            c->H, c->E, hmoe__widest(c)); /* u: du; h: g h; dgate */
        hmoe__down_list(list, m, ly, m->grads, b->h, dy, token);
        be->linear_backward_weight(list, c->E);  /* dW2 += dy^T (g h) */
        hmoe__up_list(list, m, ly, m->grads, ly->n2, ly->u, token);
        be->linear_backward_weight(list, c->E);  /* dW13 += du^T n */
        hmoe__up_list(list, m, ly, m->params, b->rows, ly->u, NULL);
        be->linear_backward_input(list, c->E);   /* rows: dn of each row = du W13 */
    }
    be->combine_backward(b->dn, b->rows, &ly->routes, N, c->C);
    hmoe__router_block_backward(m, l, N, scale);
    be->rmsnorm_backward(b->dx, m->grads + ly->w_norm2, b->dn, ly->x2,
                         m->params + ly->w_norm2, ly->rrms2, N, c->C);
}

static void hmoe__attention_block_backward(hmoe_model *m, int l, int B, int T) {
    const hmoe_backend *be = m->backend;
    hmoe__layer *ly = &m->layers[l];
    hmoe__buffers *b = m->buffers;
    int C = m->config.C, NH = m->config.NH, NKV = m->config.NKV, hs = C / NH, N = B * T;
    hmoe_real *dy = hmoe__block_gradient(m, l, 0, N);
    hmoe__dense_backward(m, b->dout, ly->w_o, dy, ly->out, C, C, 0);
    be->attention_backward(b->dqkv, b->datt, b->dout, ly->out, ly->att, ly->qkv, B, T, NH,
                           NKV, hs);
    be->rope(b->dqkv, b->angles, -1, B, T, NH, NKV, hs);
    hmoe__dense_backward(m, b->dn, ly->w_qkv, b->dqkv, ly->n1, C, C + 2 * NKV * hs, 0);
    be->rmsnorm_backward(b->dx, m->grads + ly->w_norm1, b->dn, ly->x,
                         m->params + ly->w_norm1, ly->rrms1, N, C);
}

/* dP_all = scale times the losses' derivative through Phat, the same for all tokens. */
static void hmoe__upload_dP(hmoe_model *m, double scale) {
    hmoe__buffers *b = m->buffers;
    int L = m->config.L, E = m->config.E;
    for (int l = 0; l < L; l++)
        for (int e = 0; e < E; e++)
            b->host_dP[l * E + e] = (hmoe_real)(b->slope[l].Phat[e] / m->all_tokens)
                                    * (hmoe_real)scale;
    m->backend->upload(b->dP_all, b->host_dP, (size_t)L * E * sizeof *b->host_dP);
}

hmoe_status hmoe_backward(hmoe_model *m, double scale) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    hmoe__buffers *b = m->buffers;
    int B = m->B, T = m->sequence_length, N = B * T;
    m->message[0] = 0;
    if (!m->has_results || m->mode != HMOE_TRAIN)
        return HMOE__BAD(m->message, "hmoe_backward needs a successful hmoe_forward in mode "
                                     "HMOE_TRAIN just before it, once");
    m->has_results = 0;   /* gradients overwrite the activations */
    hmoe__layer *last = &m->layers[c->L];
    hmoe__upload_dP(m, scale);
    be->cross_entropy_backward(b->logits, b->targets, scale / m->all_tokens, N, c->V);
    hmoe__dense_backward(m, b->dn, m->head, b->logits, last->n1, c->C, c->V, 0);
    be->zero(b->dx, (size_t)N * c->C * sizeof(hmoe_real));
    be->rmsnorm_backward(b->dx, m->grads + last->w_norm1, b->dn, last->x,
                         m->params + last->w_norm1, last->rrms1, N, c->C);
    for (int l = c->L - 1; l >= 0; l--) {
        hmoe__moe_block_backward(m, l, N, scale);
        hmoe__attention_block_backward(m, l, B, T);
    }
    be->embed_backward(m->grads, b->tokens, b->dx, N, c->C);
    hmoe__count_pass(m);
    return hmoe__synchronize(m);
}

/* ---------------------------------------------------------------------------------------
   ADAMW - the gradients' norm, clipping, and the step. */

/* m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
   w -= lr (mhat / (sqrt(vhat) + 1e-8) + decay w);   then g = 0 for the next step.
   One pass over all n numbers: memory traffic limits the speed. */
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
            w[i] -= r.step * m_i / (hmoe__sqrt(v_i) * r.root + (hmoe_real)1e-8)
                    + r.decay * w[i];
            m[i] = m_i;
            v[i] = v_i;
            g[i] = 0;
        }
    }
}

/* Sums the gradients of all processes and sets grad_norm. If it is not finite, clears them. */
static hmoe_status hmoe__gradient_norm(hmoe_model *m) {
    m->grad_norm = sqrt(hmoe__sum_gradients(m));
    if (isfinite(m->grad_norm)) return HMOE_OK;
    hmoe_zero_gradients(m);
    return HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the gradients' norm is %f",
                      m->grad_norm);
}

/* Updates tensors i .. j-1, which have the same dims and frozen, in one call. */
static void hmoe__update_tensors(hmoe_model *m, size_t i, size_t j, hmoe_rates *rates,
                                 double decay) {
    const hmoe_tensor *t = &m->tensors[i];
    size_t at = t->offset, end = j < m->tensor_count ? m->tensors[j].offset : m->param_count;
    rates->decay = (hmoe_real)(t->dims == 2 ? decay : 0);
    if (t->frozen) m->backend->zero(m->grads + at, (end - at) * sizeof *m->grads);
    else
        m->backend->adamw(m->params + at, m->grads + at, m->exp_avg + at,
                          m->exp_avg_sq + at, end - at, rates);
}

hmoe_status hmoe_update(hmoe_model *m, const hmoe_adamw *a) {
    double t = (double)m->step + 1, clip = 1;
    hmoe_rates rates;
    m->message[0] = 0;
    if (!m->grads) return HMOE__BAD(m->message, "this model was not made for training");
    rates.beta1 = (hmoe_real)a->beta1;
    rates.beta2 = (hmoe_real)a->beta2;
    rates.step = (hmoe_real)(a->lr / (1 - pow(a->beta1, t)));
    rates.root = (hmoe_real)(1 / sqrt(1 - pow(a->beta2, t)));
    HMOE__TRY(hmoe__check_rates(m, a, &rates));
    HMOE__TRY(hmoe__gradient_norm(m));
    if (a->clip > 0 && m->grad_norm > a->clip) clip = a->clip / m->grad_norm;
    rates.scale = (hmoe_real)clip;
    for (size_t i = 0, j; i < m->tensor_count; i = j) {
        const hmoe_tensor *list = m->tensors;
        for (j = i + 1; j < m->tensor_count && list[j].dims == list[i].dims
                        && list[j].frozen == list[i].frozen; j++) {}
        hmoe__update_tensors(m, i, j, &rates, a->lr * a->weight_decay);
    }
    hmoe_status status = hmoe__move_state(m);
    m->step++;
    hmoe__begin_step(m);
    return status;
}

/* =======================================================================================
   PART TWO - THE ENGINE ROOM. You have read the model. What follows makes it fast, safe
   and portable; skip it until you need it. */

/* With these flags isfinite() is always 1, and the order of a sum is the compiler's choice. */
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(_M_FP_FAST) \
    || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "Compile hmoe.h without -ffast-math or -Ofast: use -O3 -ffp-contract=fast -fno-math-errno"
#endif

#if defined(HMOE_MALLOC) != defined(HMOE_FREE)
#error "Define both HMOE_MALLOC and HMOE_FREE, or neither"
#elif !defined(HMOE_MALLOC)
#define HMOE_MALLOC(n) malloc(n)
#define HMOE_FREE(p) free(p)
#endif

#if defined(__GNUC__)
#define HMOE__ALIGNED __attribute__((aligned(64)))
#define HMOE__PREFETCH(p, to_write) __builtin_prefetch(p, to_write)
#else
#define HMOE__ALIGNED
#define HMOE__PREFETCH(p, to_write) (void)(p)
#endif

/* ---------------------------------------------------------------------------------------
   UTILITIES - messages, random numbers, exp. */

static void hmoe__write_message(char *message, const char *format, ...) {
    va_list args;
    if (!message) return;
    va_start(args, format);
    vsnprintf(message, HMOE_MESSAGE_SIZE, format, args);
    va_end(args);
}

static hmoe_status hmoe__no_memory(char *message, double bytes, const char *what) {
    return HMOE__FAIL(message, HMOE_OUT_OF_MEMORY, "out of memory: cannot allocate %.0f bytes for "
                      "%s", bytes, what);
}

/* Numbers have a decimal point in every locale of the program: strtod and snprintf use what
   setlocale() chose, often a comma. *end is the end of the number in text, or text if there
   is none. A double that is written in full has at most 1,077 characters. */
static double hmoe__parse_double(const char *text, const char **end) {
    const char *mark = localeconv()->decimal_point, *at = text + strspn(text, " \t");
    char copy[1200], *point, *stop;
    size_t n = strspn(at, "+-.0123456789eE"), width = strlen(mark);
    double value;
    *end = text;
    if (n == 0 || n + width >= sizeof copy) return (double)NAN;
    memcpy(copy, at, n);
    copy[n] = 0;
    if ((point = strchr(copy, '.')) != NULL) {
        memmove(point + width, point + 1, strlen(point));
        memcpy(point, mark, width);
    }
    value = strtod(copy, &stop);
    if (stop > copy) *end = at + (stop - copy) - (point && stop > point ? width - 1 : 0);
    return value;
}

/* The last step of splitmix64 (Steele, Lea, Flood 2014). If one bit of z changes, each
   bit of the result changes with probability 1/2. */
static uint64_t hmoe__mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t hmoe_random(uint64_t seed, uint64_t what, uint64_t i, uint64_t j) {
    return hmoe__mix(hmoe__mix(hmoe__mix(hmoe__mix(seed) ^ what) ^ i) ^ j);
}

/* The transform of Box and Muller: a number from N(0, 1) out of two uniform ones. */
double hmoe_normal(uint64_t seed, uint64_t what, uint64_t i, uint64_t j) {
    uint64_t bits = hmoe_random(seed, what, i, j);
    double u = ((double)(bits >> 32) + 0.5) / 4294967296.0;   /* never 0 */
    double v = (double)(bits & 0xffffffffu) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

/* FNV-1a (Fowler, Noll, Vo). h: the hash of what comes before, hmoe__hash("") for nothing. */
static uint64_t hmoe__hash_more(uint64_t h, const void *bytes, size_t n) {
    const unsigned char *at = (const unsigned char *)bytes;
    for (size_t i = 0; i < n; i++) h = (h ^ at[i]) * 0x100000001b3u;
    return h;
}

static uint64_t hmoe__hash(const char *text) {
    return hmoe__hash_more(0xcbf29ce484222325u, text, strlen(text));
}

/* exp of a float, in operations that a compiler turns into vector instructions. libm's
   exp is called once per element; with it, softmax and SiLU would cost more than the
   products. x = n ln 2 + r; exp(r) is the polynomial of the Cephes library; 2^n is made
   from its bits. The relative error is below 2e-7 for x in [-87, 88]. At -88 and
   below, the result is 0, because its exponent bits are 0. Above 88 it is exp(88). NaN
   stays NaN. */
HMOE__INLINE float hmoe__expf(float x) {
    float shifted, n, r, p, power, size = fabsf(x);
    uint32_t bits;
    x = copysignf(size > 88.0f ? 88.0f : size, x);  /* one limit: gcc would branch at two */
    shifted = x * 1.44269504f + 12582912.0f;  /* 1.5 * 2^23: the low bits are x / ln 2, rounded */
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

/* ---------------------------------------------------------------------------------------
   FAST PRODUCTS - C = A B + D as in PRODUCTS IN SHORT, which has the plain form.

   NR columns of B are copied into a *panel*: for each k, NR numbers side by side, padded
   with zeros. A *tile* then computes MR x NR results in registers, and reads the panel
   from the first-level cache in order. If A is transposed (in dW += dy^T x), a block of A
   is copied, too. Both copies, 360 KB, lie in the model's memory: many systems give a thread
   a stack of 128 KB. Without that memory a thread makes smaller copies on its stack. */

/* The sums of a tile fill most vector registers: MR * NR / (numbers in a register) of
   them. */
#if defined(__AVX512F__)
enum { HMOE__MR = 6, HMOE__NR = 256 / sizeof(hmoe_real) };    /* 24 of 32 registers */
#elif defined(__AVX__) || defined(__aarch64__)
enum { HMOE__MR = 6, HMOE__NR = 64 / sizeof(hmoe_real) };     /* AVX2: 12 of 16; NEON: 24 of 32 */
#else
enum { HMOE__MR = 2, HMOE__NR = 64 / sizeof(hmoe_real) };     /* 128 bits: 8 of 16 */
#endif

#ifndef HMOE_PLAIN
enum { HMOE__KC = 192,      /* part of k for which a panel fits the cache */
       HMOE__ROWS = 1536 / sizeof(hmoe_real),  /* so many rows of C use one panel */
       HMOE__BLOCK_ROW = HMOE__ROWS + 16,      /* a power of 2 would use only part of the cache */
       HMOE__PANEL = (int)HMOE__KC * (int)HMOE__NR,
       HMOE__BLOCK = (int)HMOE__KC * (int)HMOE__BLOCK_ROW,
       HMOE__PACKED = HMOE__PANEL + HMOE__BLOCK };  /* of struct hmoe_panels */

/* Rotates the 8 bits of each number's index: index i + 128 b becomes 2 i + b. */
HMOE__INLINE void hmoe__riffle(hmoe_real *to, const hmoe_real *from) {
    HMOE__SIMD
    for (int i = 0; i < 128; i++) {
        to[2 * i] = from[i];
        to[2 * i + 1] = from[i + 128];
    }
}

/* Transposes a square of 16 x 16. The index of a number is row * 16 + column. Each riffle
   rotates the 8 bits of the index by one; four riffles exchange row and column. Compilers
   turn riffles into vector instructions, but not 256 single moves. */
static void hmoe__transpose(hmoe_real *to, size_t to_row, const hmoe_real *from,
                            size_t from_row) {
    hmoe_real x[256] HMOE__ALIGNED, y[256] HMOE__ALIGNED;
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) x[i * 16 + j] = from[i * from_row + j];
    hmoe__riffle(y, x);
    hmoe__riffle(x, y);
    hmoe__riffle(y, x);
    hmoe__riffle(x, y);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[i * to_row + j] = x[i * 16 + j];
}

/* Row r of a view, in memory. */
static const hmoe_real *hmoe__row_of(const hmoe__view *v, int r) {
    return v->x + (v->row ? v->row[r] : r) * v->stride;
}

/* Copies B(k0 .. k0+K-1, j0 .. j0+n-1) into panel[K][nr]. */
static void hmoe__pack(hmoe_real *panel, const hmoe__view *b, int k0, int K, int j0,
                       int n, int nr) {
    if (!b->transposed) {
        for (int k = 0; k < K; k++) {
            const hmoe_real *b_k = hmoe__row_of(b, k0 + k) + j0;
            for (int j = 0; j < n; j++) panel[k * nr + j] = b_k[j];
            for (int j = n; j < nr; j++) panel[k * nr + j] = 0;
        }
        return;
    }
    const hmoe_real *x = b->x + j0 * b->stride + k0;
    for (int j = 0; j < nr; j += 16)
        for (int k = 0; k < K; k += 16)
            if (k + 16 <= K && j + 16 <= n)
                hmoe__transpose(panel + k * nr + j, nr, x + j * b->stride + k, b->stride);
            else
                for (int c = k; c < K && c < k + 16; c++)
                    for (int r = j; r < nr && r < j + 16; r++)
                        panel[c * nr + r] = r < n ? x[r * b->stride + c] : 0;
}

/* Copies a transposed A(i0 .. i0+rows-1, k0 .. k0+K-1) into block[k * block_row + i]. */
static void hmoe__pack_block(hmoe_real *block, int block_row, const hmoe__view *a, int i0,
                             int rows, int k0, int K) {
    for (int k = 0; k < K; k++) {
        const hmoe_real *a_k = hmoe__row_of(a, k0 + k) + i0;
        for (int i = 0; i < rows; i++) block[k * block_row + i] = a_k[i];
    }
}

/* c = d + sum, or c = sum. m and n are constants if the whole tile is stored. */
HMOE__INLINE void hmoe__store(hmoe_real *c, const hmoe_real *d, size_t c_stride,
                              hmoe_real sum[HMOE__MR][HMOE__NR], const int m, const int n) {
    for (int i = 0; i < m; i++, c += c_stride) {
        if (d) for (int j = 0; j < n; j++) c[j] = d[j] + sum[i][j];
        else for (int j = 0; j < n; j++) c[j] = sum[i][j];
        d = d ? d + c_stride : d;
    }
}

/* A tile of MR rows and nr columns, of which m and n are stored. nr is a constant at
   every call, so the compiler keeps sum[][] in registers. row: the start of each row of
   A, whose neighbours are a_step apart. */
HMOE__INLINE void hmoe__tile(hmoe_real *c, const hmoe_real *d, size_t c_stride,
                             const hmoe_real *const *row, size_t a_step, const hmoe_real *panel,
                             int m, int n, int K, const int nr) {
    hmoe_real sum[HMOE__MR][HMOE__NR], part[HMOE__MR][HMOE__NR];
    for (int i = 0; i < HMOE__MR; i++) {
        HMOE__SIMD
        for (int j = 0; j < nr; j++) sum[i][j] = 0;
    }
    for (int i = 0; i < HMOE__MR; i++)  /* prefetch the memory that the next tile is stored to */
        for (int j = 0; j < nr; j += 64 / (int)sizeof *c)
            HMOE__PREFETCH(c + (i + HMOE__MR) * c_stride + j, 1);
    for (int k = 0; k < K; k++)
        for (int i = 0; i < HMOE__MR; i++) {
            hmoe_real a_ik = row[i][k * a_step];
            HMOE__SIMD
            for (int j = 0; j < nr; j++) sum[i][j] += a_ik * panel[k * nr + j];
        }
    if (m == HMOE__MR && n == nr) hmoe__store(c, d, c_stride, sum, HMOE__MR, nr);
    else {  /* a copy: clang keeps no array in registers that has a variable index */
        for (int i = 0; i < HMOE__MR; i++)
            for (int j = 0; j < nr; j++) part[i][j] = sum[i][j];
        hmoe__store(c, d, c_stride, part, m, n);
    }
}

/* The tile of rows i .. i+m-1 and columns j0 .. j0+n-1. block: its rows of a packed A, or
   NULL. */
static void hmoe__multiply_tile(const hmoe__product *p, const hmoe_real *panel,
                                const hmoe_real *block, int block_row, int i, int m, int j0,
                                int n, int k0, int K) {
    enum { NR = HMOE__NR, Q = HMOE__NR / 4 };
    const hmoe_real *row[HMOE__MR], *d = k0 ? p->c : p->d;
    size_t stride = p->c_stride, at = i * stride + j0, a_step = block ? (size_t)block_row : 1;
    hmoe_real *c = p->c + at;
    for (int r = 0; r < HMOE__MR; r++) {  /* rows past m repeat the last one */
        int in = r < m ? r : m - 1;
        row[r] = block ? block + in : hmoe__row_of(&p->a, i + in) + k0;
    }
    if (d) d += at;
    switch ((n + Q - 1) / Q) {  /* the width in quarters: narrow edges cost less */
    case 4: hmoe__tile(c, d, stride, row, a_step, panel, m, n, K, NR); break;
    case 3: hmoe__tile(c, d, stride, row, a_step, panel, m, n, K, 3 * Q); break;
    case 2: hmoe__tile(c, d, stride, row, a_step, panel, m, n, K, 2 * Q); break;
    default: hmoe__tile(c, d, stride, row, a_step, panel, m, n, K, Q);
    }
}

/* Rows first .. end-1 of a product. panel and block have room for so many numbers. Less
   room means more passes. No element depends on it: each is a sum over k in the same
   order. */
static void hmoe__multiply_with(const hmoe__product *p, int first, int end, hmoe_real *panel,
                                int panel_size, hmoe_real *block, int block_size) {
    enum { MR = HMOE__MR, Q = HMOE__NR / 4 };
    int depth = p->K < 1 ? 1 : p->K < HMOE__KC ? p->K : HMOE__KC, packed = p->a.transposed;
    int NR = depth * HMOE__NR <= panel_size ? HMOE__NR : HMOE__NR / 2, most = HMOE__ROWS;
    int block_row = block_size / depth;
    if (block_row > HMOE__BLOCK_ROW) block_row = HMOE__BLOCK_ROW;
    if (packed && block_row < most) most = block_row / MR * MR;
    for (int i0 = first; i0 < end; i0 += most)
        for (int k0 = 0; k0 == 0 || k0 < p->K; k0 += HMOE__KC) {  /* K 0: an empty sum */
            int rows = end - i0 < most ? end - i0 : most;
            int K = p->K - k0 < HMOE__KC ? p->K - k0 : HMOE__KC;
            if (packed) hmoe__pack_block(block, block_row, &p->a, i0, rows, k0, K);
            for (int j0 = 0; j0 < p->N; j0 += NR) {
                int n = p->N - j0 < NR ? p->N - j0 : NR;
                hmoe__pack(panel, &p->b, k0, K, j0, n, (n + Q - 1) / Q * Q);
                for (int i = 0; i < rows; i += MR)
                    hmoe__multiply_tile(p, panel, packed ? block + i : NULL, block_row, i0 + i,
                                        rows - i < MR ? rows - i : MR, j0, n, k0, K);
            }
        }
}

/* The same on the stack, for products as small as those of attention. */
static void hmoe__multiply_rows(const hmoe__product *p, int first, int end) {
    enum { PANEL = 24576 / sizeof(hmoe_real), BLOCK = 14336 / sizeof(hmoe_real) };
    hmoe_real panel[PANEL] HMOE__ALIGNED, block[BLOCK] HMOE__ALIGNED;
    hmoe__multiply_with(p, first, end, panel, PANEL, block, BLOCK);
}

/* The same in a piece of the model's memory, if there is one. */
static void hmoe__multiply_in(hmoe_real *piece, const hmoe__product *p, int first, int end) {
    if (!piece) hmoe__multiply_rows(p, first, end);
    else hmoe__multiply_with(p, first, end, piece, HMOE__PANEL, piece + HMOE__PANEL, HMOE__BLOCK);
}
#else
enum { HMOE__PACKED = 0 };

static void hmoe__multiply_in(hmoe_real *piece, const hmoe__product *p, int first, int end) {
    (void)piece;
    hmoe__multiply_rows(p, first, end);
}
#endif

static void hmoe__free_panels(struct hmoe_panels *panels) {
    HMOE_FREE(panels->memory);
    memset(panels, 0, sizeof *panels);
}

/* Makes pieces for all threads that there are now. If there is no memory for them, returns 0
   and keeps those that it has. */
static int hmoe__grow_panels(struct hmoe_panels *panels) {
    size_t piece = HMOE__PACKED * sizeof(hmoe_real), n = (size_t)hmoe__threads();
    char *memory;
    if (!piece || n <= (size_t)panels->count) return 1;
    if ((memory = (char *)HMOE_MALLOC(n * piece + 64)) == NULL) return 0;
    hmoe__free_panels(panels);
    panels->memory = memory;
    panels->first = (hmoe_real *)(void *)(memory + (64 - (uintptr_t)memory % 64) % 64);
    panels->count = (int)n;
    return 1;
}

/* A few rows of x W^T, as in generation. Packing would cost more than it saves, and both
   operands are stored along k: each element is a dot product. Computes columns first ..
   end-1. */
static void hmoe__multiply_columns(const hmoe__product *p, int first, int end) {
    for (int j = first; j < end; j++)
        for (int i = 0; i < p->M; i++) {
            const hmoe_real *a = p->a.x + (p->a.row ? p->a.row[i] : i) * p->a.stride;
            const hmoe_real *b = p->b.x + j * p->b.stride;
            hmoe_real sum = 0;
            for (int k = 0; k < p->K; k += 64 / (int)sizeof sum)   /* some rows ahead */
                HMOE__PREFETCH(b + k + 4096 / sizeof sum, 0);
            HMOE__SIMD_SUM(sum)
            for (int k = 0; k < p->K; k++) sum += a[k] * b[k];
            p->c[i * p->c_stride + j] = p->d ? p->d[i * p->c_stride + j] + sum : sum;
        }
}

/* How threads share ragged work. All units of work form one sequence. It is divided into
   parts of equal work, one for each thread. No unit is divided, so results do not depend on
   the parts. Lists with the same rows are divided alike, so the cache of each thread still
   has its own results of the step before. */
typedef struct hmoe__work { double from, to, at; } hmoe__work;

static hmoe__work hmoe__work_of_thread(double work, int part, int parts) {
    hmoe__work w = { work * part / parts, work * (part + 1) / parts, 0 };
    if (part + 1 == parts) w.to = DBL_MAX;
    return w;
}

/* How many of `units` of one cost fit into a length: a multiple of MR, so that no tile is
   cut. */
static int hmoe__units_before(double length, int units, double cost) {
    if (length <= 0 || cost <= 0) return 0;
    if (length >= units * cost) return units;
    return (int)(length / cost) / HMOE__MR * HMOE__MR;
}

/* Adds `units` of equal cost to the sequence. This part has units *first .. (result)-1. */
static int hmoe__next_work(hmoe__work *w, int units, double cost, int *first) {
    int end = hmoe__units_before(w->to - w->at, units, cost);
    *first = hmoe__units_before(w->from - w->at, units, cost);
    w->at += units * cost;
    return end;
}

/* The first row of part number `part`, if the rows of all experts are cut into parts of
   equal work. A row of expert e costs H[e] + 1. */
static int hmoe__first_row(const int *start, const int *H, int E, int part, int parts) {
    double work = 0, before;
    for (int e = 0; e < E; e++) work += (H[e] + 1.0) * (start[e + 1] - start[e]);
    before = work * part / parts;
    for (int e = 0; e < E && part < parts; e++) {
        int rows = start[e + 1] - start[e];
        if (before < (H[e] + 1.0) * rows) return start[e] + (int)(before / (H[e] + 1.0));
        before -= (H[e] + 1.0) * rows;
    }
    return start[E];
}

enum { HMOE__FORWARD, HMOE__INPUT, HMOE__WEIGHT };

/* The product of a linear map in one of the three forms. */
static hmoe__product hmoe__product_of(const hmoe_linear *map, int form) {
    size_t ldx = (size_t)map->ldx, ldy = (size_t)map->ldy, in = (size_t)map->in;
    int start = map->rows[0], rows = map->rows[1] - start;
    const int *x_row = map->x_row ? map->x_row + start : NULL;
    const int *y_row = map->y_row ? map->y_row + start : NULL;
    hmoe_real *w = map->w;
    hmoe_real *x = map->x + (x_row ? 0 : start * ldx);
    hmoe_real *y = map->y + (y_row ? 0 : start * ldy);
    const hmoe_real *add_y = map->add ? map->add + start * ldy : NULL;
    const hmoe_real *add_x = map->add ? map->add + start * ldx : NULL;
    hmoe__view rows_x = { x, ldx, 0, x_row }, rows_y = { y, ldy, 0, y_row };
    hmoe__view dy_transposed = { y, ldy, 1, y_row };
    hmoe__product forward = { y, ldy, rows_x, hmoe__transposed(w, in), add_y,
                              rows, map->out, map->in };
    hmoe__product input = { x, ldx, rows_y, hmoe__rows(w, in), add_x, rows, map->in, map->out };
    hmoe__product weight = { w, in, dy_transposed, rows_x, w, map->out, map->in, rows };
    return form == HMOE__FORWARD ? forward : form == HMOE__INPUT ? input : weight;
}

/* The cost of one of its results. */
static double hmoe__cost_of(const hmoe_linear *map, const hmoe__product *p) {
    return map->in && map->out ? (double)p->K : 1;   /* null: rows of zeros */
}

/* A list of products. The results of all members are one line of work; each thread
   computes a part. */
static void hmoe__multiply_list(const hmoe_linear *list, int n, int form) {
    const struct hmoe_panels *panels = n ? list->panels : NULL;
    double work = 0;
    for (int i = 0; i < n; i++) {
        hmoe__product p = hmoe__product_of(&list[i], form);
        work += hmoe__cost_of(&list[i], &p) * p.M * p.N;
    }
    int parts = work > 5e5 ? hmoe__threads() : 1;  /* waking threads costs time */
    HMOE__PARALLEL_FOR(parts)
    for (int part = 0; part < parts; part++) {
        hmoe__work mine = hmoe__work_of_thread(work, part, parts);
        size_t at = (size_t)part * HMOE__PACKED;
        hmoe_real *piece = panels && part < panels->count ? panels->first + at : NULL;
        for (int i = 0; i < n; i++) {  /* expert without tokens: no rows or an empty sum */
            hmoe__product p = hmoe__product_of(&list[i], form);
            double cost = hmoe__cost_of(&list[i], &p);
            int by_columns = p.M < 4 && form == HMOE__FORWARD, first, end;
            end = by_columns ? hmoe__next_work(&mine, p.N, cost * p.M, &first)
                             : hmoe__next_work(&mine, p.M, cost * p.N, &first);
            if (by_columns) hmoe__multiply_columns(&p, first, end);
            else hmoe__multiply_in(piece, &p, first, end);
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

/* ---------------------------------------------------------------------------------------
   OPTIONS - noisy gating, dropout, bias balancing and budgets. All are off by default. */

/* Noisy gating (MoDSE eq. 3 to 5; n as in Shazeer et al. 2017), in training:
     r += n * gain * z / rms(z),   z = softplus(raw),   raw = W_n x,   n ~ N(0, 1)
   n is hmoe_normal(key, 65536, first + t, e). key comes from the seed, the step and the
   layer; first is the number of token 0 within the step. So n is never stored.

   One row: z [E] receives softplus(raw). Returns 1 / rms(z). */
static hmoe_real hmoe__noise_row(hmoe_real *z, const hmoe_real *raw, double eps, int E) {
    hmoe_real sum = 0;
    for (int e = 0; e < E; e++) {
        z[e] = (raw[e] > 0 ? raw[e] : 0) + (hmoe_real)log1p(exp(-fabs((double)raw[e])));
        sum += z[e] * z[e];
    }
    return isfinite(sum) ? 1 / hmoe__sqrt(sum / E + (hmoe_real)eps) : sum - sum;
}

/* raw: [N, E]   gain: [E]   Adds the noise to logits [N, E]. */
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

/* Reads dr from routes->logits. Adds dgain = dr n z / rms(z), and overwrites draw (which
   may be raw itself), through RMSNorm as in LAYERS and softplus, whose derivative is the
   sigmoid. One thread does it, so that dgain is summed in one order. */
static void hmoe__noise_backward(hmoe_real *draw, hmoe_real *dgain,
                                 const hmoe_routes *routes, const hmoe_real *raw,
                                 const hmoe_real *gain, double eps, uint64_t key,
                                 int first, int N, int E) {
    for (int t = 0; t < N; t++) {
        const hmoe_real *raw_t = raw + (size_t)t * E, *dr = routes->logits + (size_t)t * E;
        hmoe_real z[HMOE_MAX_EXPERTS], rrms = hmoe__noise_row(z, raw_t, eps, E);
        hmoe_real dy[HMOE_MAX_EXPERTS], mean = 0;
        for (int e = 0; e < E; e++) {
            dy[e] = dr[e] * (hmoe_real)hmoe_normal(key, HMOE__FOR_NOISE, (uint64_t)first + t, e);
            dgain[e] += dy[e] * z[e] * rrms;
            mean += gain[e] * dy[e] * z[e] * rrms / E;
        }
        for (int e = 0; e < E; e++) {
            hmoe_real dz = rrms * (gain[e] * dy[e] - z[e] * rrms * mean);
            draw[(size_t)t * E + e] = dz * hmoe__sigmoid(raw_t[e]);
        }
    }
}

/* Dropout (Srivastava et al. 2014) of what a block adds to the residual stream. With
   y = x + block(x):   y = x + mask (y - x) / (1 - p)
   mask[t][i] is 0 with probability p, else 1.
   The mask is computed from key (seed, step, layer), the token's number in the step and
   i, and is never stored. Fills mask [4] for dimensions i .. i+3, divided by 1 - p. */
static void hmoe__dropout_mask(hmoe_real *mask, double p, uint64_t token, int i) {
    const uint64_t limit = (uint64_t)(p * 65536);
    uint64_t bits = hmoe__mix(token ^ (uint64_t)(i / 4));
    for (int k = 0; k < 4; k++, bits >>= 16)
        mask[k] = (bits & 0xffff) < limit ? 0 : (hmoe_real)(1 / (1 - p));
}

/* x: [N, C]   y: [N, C] x + block(x), overwritten with the above */
static void hmoe__dropout_forward(hmoe_real *y, const hmoe_real *x, double p,
                                  uint64_t key, int first, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        uint64_t token = hmoe_random(key, HMOE__FOR_DROPOUT, (uint64_t)first + t, 0);
        const hmoe_real *x_t = x + (size_t)t * C;
        hmoe_real *y_t = y + (size_t)t * C, mask[4];
        for (int i = 0; i < C; i++) {
            if (i % 4 == 0) hmoe__dropout_mask(mask, p, token, i);
            y_t[i] = x_t[i] + mask[i % 4] * (y_t[i] - x_t[i]);
        }
    }
}

/* dblock = mask dy / (1 - p)   dblock, dy: [N, C]; dblock is overwritten, may be dy */
static void hmoe__dropout_backward(hmoe_real *dblock, const hmoe_real *dy, double p,
                                   uint64_t key, int first, int N, int C) {
    HMOE__PARALLEL_FOR(N)
    for (int t = 0; t < N; t++) {
        uint64_t token = hmoe_random(key, HMOE__FOR_DROPOUT, (uint64_t)first + t, 0);
        hmoe_real mask[4];
        for (int i = 0; i < C; i++) {
            if (i % 4 == 0) hmoe__dropout_mask(mask, p, token, i);
            dblock[(size_t)t * C + i] = mask[i % 4] * dy[(size_t)t * C + i];
        }
    }
}

static int hmoe__first_number(const hmoe_model *m) {
    return (int)m->step_tokens + m->first_token;
}

static uint64_t hmoe__dropout_key(const hmoe_model *m, int l, int block) {
    uint64_t which = 2 * (uint64_t)l + block;
    return hmoe_random(m->seed, HMOE__FOR_DROPOUT, (uint64_t)m->step, which);
}

static uint64_t hmoe__noise_key(const hmoe_model *m, int l) {
    return hmoe_random(m->seed, HMOE__FOR_NOISE, (uint64_t)m->step, (uint64_t)l);
}

/* Bias balancing (Wang et al. 2024), after each update:  b_e += rate sign(mean - load_e)
   count: [E] tokens that chose expert e in this step. load_e is count[e], or count[e]
   H[e] if work is balanced. Null experts do no work: then they do not count in the mean,
   and their b stays 0. */
static void hmoe__move_bias(hmoe_real *b, const double *count, const hmoe_config *c) {
    int work = c->balance == HMOE_BALANCE_WORK, n = 0;
    double load[HMOE_MAX_EXPERTS], sum = 0;
    for (int e = 0; e < c->E; e++) {
        load[e] = count[e] * (work ? c->H[e] : 1);
        sum += load[e];
        n += !work || c->H[e] > 0;
    }
    for (int e = 0; e < c->E; e++) {
        int below = n * load[e] < sum, above = n * load[e] > sum;  /* exact: loads are integers */
        if (!work || c->H[e] > 0) b[e] += (hmoe_real)(c->balance_rate * (below - above));
    }
}

/* A budget F (as DTop-p, arXiv 2512.13996, controls |S|):  logit(p) += 0.1 (F - width) / F
   width: share of all widths that a token used, mean over the step. Moving logit(p) works
   near p = 1 too, where 1 - p matters. The limits keep p where it has an effect (the
   largest P of a token is at least 1 / E), so that p reacts in the next step. Returns the
   new p. */
static hmoe_real hmoe__move_top_p(double p, double width, const hmoe_config *c) {
    const double low = 0.5 / c->E, high = 1 - 1e-5;
    p = p < low ? low : p > high ? high : p;
    p = 1 / (1 + (1 - p) / p * exp(-0.1 * (c->budget - width) / c->budget));
    return (hmoe_real)(p < low ? low : p > high ? high : p);
}

/* Moves b and top_p of each layer by what the tokens of this step chose. */
static hmoe_status hmoe__move_state(hmoe_model *m) {
    const hmoe_backend *be = m->backend;
    const hmoe_config *c = &m->config;
    if (!c->balance && c->budget == 0) return HMOE_OK;
    for (int l = 0; l < c->L && m->step_tokens > 0; l++) {
        const double *count = m->chosen + l * c->E;
        hmoe_real b[HMOE_MAX_EXPERTS], p;
        hmoe_real *bias = m->params + m->layers[l].bias, *top_p = m->params + m->layers[l].top_p;
        if (c->balance) {
            be->download(b, bias, (size_t)c->E * sizeof *b);
            hmoe__move_bias(b, count, c);
            be->upload(bias, b, (size_t)c->E * sizeof *b);
        }
        if (c->budget > 0) {
            double width = 0;
            for (int e = 0; e < c->E; e++) width += count[e] * c->H[e];
            width /= (double)m->step_tokens * hmoe__total_width(c);
            be->download(&p, top_p, sizeof p);
            p = hmoe__move_top_p((double)p, width, c);
            be->upload(top_p, &p, sizeof p);
        }
    }
    return hmoe__synchronize(m);
}

/* ---------------------------------------------------------------------------------------
   SEVERAL PROCESSES - the functions that extra/parallel/ provides, and what happens
   without them. All processes make the same calls in the same order. If a call fails in
   one, it fails in all. */

typedef hmoe_status (*hmoe_file_work)(hmoe_model *m, const char *dir, int training);

struct hmoe_processes {
    int (*rank)(const hmoe_model *m);                    /* this process, from 0 */
    int (*has_expert)(const hmoe_model *m, int expert);  /* 1: in this process */
    hmoe_status (*create)(hmoe_model *m, int max_B, int training);
    /* If any process failed, all return that failure. N is this process's token count;
       from all of them it sets all_tokens and first_token. */
    hmoe_status (*common_status)(hmoe_model *m, hmoe_status status, int N);
    void (*sum)(hmoe_model *m, double *x, int n);  /* each x[i], over all processes */
    double (*sum_gradients)(hmoe_model *m);        /* returns their squared norm */
    /* in place of the two experts' parts of hmoe__moe_block_forward and _backward */
    void (*experts_forward)(hmoe_model *m, int l);
    void (*experts_backward)(hmoe_model *m, int l, const hmoe_real *dy);
    /* The first process does the work on files. The others send it their tensors, or
       get them. */
    hmoe_status (*by_first)(hmoe_model *m, hmoe_file_work work, const char *dir, int training);
    void (*download)(hmoe_model *m, hmoe_real *host, size_t saved, size_t at, size_t n);
    void (*upload)(hmoe_model *m, const hmoe_real *host, size_t saved, size_t at, size_t n);
};

/* 1 if this process holds the tensors of that expert. -1: tensors of no expert. */
static int hmoe__is_local(const hmoe_model *m, int expert) {
    return expert < 0 || !m->processes || m->processes->has_expert(m, expert);
}

static hmoe_status hmoe__common_status(hmoe_model *m, hmoe_status status, int N) {
    return m->processes ? m->processes->common_status(m, status, N) : status;
}

static double hmoe__sum_gradients(hmoe_model *m) {
    if (m->processes) return m->processes->sum_gradients(m);
    return m->backend->squared_norm(m->grads, m->param_count);
}

static int hmoe__remote_experts_forward(hmoe_model *m, int l) {
    if (m->processes) m->processes->experts_forward(m, l);
    return m->processes != NULL;
}

static int hmoe__remote_experts_backward(hmoe_model *m, int l, const hmoe_real *dy) {
    if (m->processes) m->processes->experts_backward(m, l, dy);
    return m->processes != NULL;
}

/* ---------------------------------------------------------------------------------------
   MEMORY - the model's tensors and activations. One function lists each, so that
   counting, allocating, saving and checking cannot disagree. */

hmoe_config hmoe_default_config(void) {
    hmoe_config c;
    memset(&c, 0, sizeof c);
    c.T = 64, c.C = 128, c.L = 4, c.NH = 4, c.E = 8, c.K = 2;
    hmoe_expert_sizes(c.H, c.E, 8 * 172, "arithmetic", NULL);
    c.top_p = 0.57, c.balance_rate = 0.001;
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) c.loss_coef[i] = hmoe_loss_terms[i].initial;
    c.rms_norm_eps = 1e-5, c.rope_theta = 10000;
    return c;
}

static int hmoe__norm_gates(const hmoe_config *c) {
    if (c->gate == HMOE_GATE_DEFAULT) return c->routing == HMOE_TOP_P || c->K > 1;
    return c->gate == HMOE_GATE_NORM;
}

static int hmoe__slots(const hmoe_config *c) {
    return c->routing == HMOE_TOP_K ? c->K : c->E;
}

static int hmoe__kv_heads(const hmoe_config *c) { return c->NKV ? c->NKV : c->NH; }

static int hmoe__widest(const hmoe_config *c) {
    int widest = 0;
    for (int e = 0; e < c->E; e++) widest = c->H[e] > widest ? c->H[e] : widest;
    return widest;
}

static double hmoe__total_width(const hmoe_config *c) {
    double total = 0;
    for (int e = 0; e < c->E; e++) total += c->H[e];
    return total;
}

/* Adds one tensor to the table and writes its start into *at. If there is no table yet,
   it only counts. cols 0: a vector. */
HMOE__PRINTF(8, 9)
static void hmoe__add_tensor(hmoe_model *m, size_t *at, int expert, int rows, int cols,
                             double mean, double std, const char *name, ...) {
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
    if (hmoe__is_local(m, expert)) m->param_count += (size_t)rows * (cols ? cols : 1);
}

/* Adds state of a layer: n numbers that all start at `value`. */
static void hmoe__add_state(hmoe_model *m, size_t *at, int n, double value,
                            const char *moe, const char *name) {
    hmoe__add_tensor(m, at, -1, n, 0, value, 0, "%s.%s", moe, name);
    if (m->tensors) m->tensors[m->tensor_count - 1].state = 1;
}

/* All tensors, in the order of memory. Matrices start as N(0, 0.02), that of noise as
   0. The two that write to the residual stream start smaller by sqrt(2L), because there
   are 2L such writes. */
static void hmoe__list_tensors(hmoe_model *m, hmoe__layer *layers) {
    const hmoe_config *c = &m->config;
    const double std = 0.02, std_out = 0.02 / sqrt(2.0 * c->L);
    const int KV = c->C / c->NH * hmoe__kv_heads(c);
    hmoe__layer unused;
    size_t inside;   /* unused: this tensor continues the one before */
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
            hmoe__add_tensor(m, i ? &inside : &ly->w_qkv, -1, i ? KV : c->C, c->C, 0, std,
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
            if (!H) { ly->w13[e] = ly->w2[e] = 0; continue; }  /* a null expert has no tensors */
            hmoe__add_tensor(m, &ly->w13[e], e, H, C, 0, std, "%s.experts.%d.w1.weight", moe, e);
            hmoe__add_tensor(m, &inside, e, H, C, 0, std, "%s.experts.%d.w3.weight", moe, e);
            hmoe__add_tensor(m, &ly->w2[e], e, C, H, 0, std_out, "%s.experts.%d.w2.weight", moe, e);
        }
    }
    hmoe__add_tensor(m, layers ? &layers[c->L].w_norm1 : &inside, -1, c->C, 0, 1, 0,
                     "model.norm.weight");
    hmoe__add_tensor(m, &m->head, -1, c->V, c->C, 0, std, "lm_head.weight");
}

/* The arena holds arrays one after another, each on its own cache lines. With base NULL
   it only counts: the same function gives the layout and the size. Bytes are
   counted in double, so that huge sizes from a file cannot wrap around. */
typedef struct hmoe__arena {
    char *base;
    double used, most;
} hmoe__arena;

static void *hmoe__arena_alloc(hmoe__arena *a, double rows, double cols, size_t size) {
    void *array = a->base ? a->base + (size_t)a->used : NULL;
    a->used += ceil(rows * cols * (double)size / 64) * 64;
    if (a->used > a->most) a->most = a->used;
    return array;
}

static hmoe_real *hmoe__arena_reals(hmoe__arena *a, double rows, double cols) {
    return (hmoe_real *)hmoe__arena_alloc(a, rows, cols, sizeof(hmoe_real));
}

static int *hmoe__arena_ints(hmoe__arena *a, double rows, double cols) {
    return (int *)hmoe__arena_alloc(a, rows, cols, sizeof(int));
}

static void hmoe__arena_routes(hmoe__arena *a, hmoe_routes *r, int slots, double N,
                               int E) {
    r->slots = slots;
    r->logits = hmoe__arena_reals(a, N, E), r->P = hmoe__arena_reals(a, N, E);
    r->lse = hmoe__arena_reals(a, N, 1), r->entropy = hmoe__arena_reals(a, N, 1);
    r->count = hmoe__arena_ints(a, N, 1);
    r->expert = hmoe__arena_ints(a, N, slots), r->gate = hmoe__arena_reals(a, N, slots);
    r->expert_start = hmoe__arena_ints(a, E + 1, 1);
    r->row_token = hmoe__arena_ints(a, N, slots), r->row_gate = hmoe__arena_reals(a, N, slots);
    r->row = hmoe__arena_ints(a, N, slots);
}

/* All activations. Without training, all layers share memory; only their routes are
   separate, so that hmoe_get_route can read them. ldh is 0 if other processes
   hold the experts' rows. Returns the size in bytes. */
static double hmoe__list_activations(const hmoe_config *c, int ldh, int max_B,
                                     int training, char *base, hmoe__layer *layers,
                                     hmoe__buffers *b) {
    hmoe__arena arena = { base, 0, 0 }, *a = &arena;
    hmoe__layer unused;
    int slots = hmoe__slots(c);
    double N = max_B ? (double)max_B * c->T : 1, rows = N * slots, C = c->C, shared;
    double qkv = C + 2 * C / c->NH * hmoe__kv_heads(c);
    for (int l = 0; l < c->L; l++)
        hmoe__arena_routes(a, layers ? &layers[l].routes : &unused.routes, slots, N, c->E);
    shared = a->used;
    for (int l = 0; l <= c->L; l++) {
        hmoe__layer *ly = layers ? &layers[l] : &unused;
        if (!training) a->used = shared;
        ly->x = hmoe__arena_reals(a, N, C);
        ly->rrms1 = hmoe__arena_reals(a, N, 1), ly->n1 = hmoe__arena_reals(a, N, C);
        if (l == c->L) break;
        ly->qkv = hmoe__arena_reals(a, N, qkv), ly->att = hmoe__arena_reals(a, N * c->NH, c->T);
        ly->out = hmoe__arena_reals(a, N, C), ly->x2 = hmoe__arena_reals(a, N, C);
        ly->rrms2 = hmoe__arena_reals(a, N, 1), ly->n2 = hmoe__arena_reals(a, N, C);
        ly->raw = hmoe__arena_reals(a, c->noisy_gating ? N : 0, c->E);
        ly->u = hmoe__arena_reals(a, rows, 2 * ldh);
    }
    a->used = a->most;
    b->tokens = hmoe__arena_ints(a, N, 1), b->targets = hmoe__arena_ints(a, N, 1);
    b->all_rows = hmoe__arena_ints(a, 2, 1);
    b->angles = hmoe__arena_reals(a, c->T, C / c->NH);
    b->h = hmoe__arena_reals(a, rows, ldh), b->rows = hmoe__arena_reals(a, rows, C);
    b->logits = hmoe__arena_reals(a, N, c->V), b->ce = hmoe__arena_reals(a, N, 1);
    b->sums = (double *)hmoe__arena_alloc(a, c->L, (double)HMOE_SUMS(c->E), sizeof(double));
    b->dP_all = hmoe__arena_reals(a, c->L, c->E);
    if (training) {
        b->dx = hmoe__arena_reals(a, N, C), b->dn = hmoe__arena_reals(a, N, C);
        b->dqkv = hmoe__arena_reals(a, N, qkv), b->dout = hmoe__arena_reals(a, N, C);
        b->datt = hmoe__arena_reals(a, N * c->NH, HMOE__QUERIES);
        b->dh = hmoe__arena_reals(a, rows, ldh), b->dgate = hmoe__arena_reals(a, rows, 1);
    }
    return a->most + 64;   /* 64 more, to align the start */
}

static const hmoe_backend *hmoe__cpu_backend(void);   /* under THE CPU BACKEND */

static void *hmoe__alloc_zeroed(size_t count, size_t size) {
    void *p = count && size > (size_t)-1 / 2 / count ? NULL : HMOE_MALLOC(count * size);
    if (p) memset(p, 0, count * size);
    return p;
}

/* Draws the initial values of every tensor. */
static void hmoe__init_params(hmoe_model *m, hmoe_real *host) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        uint64_t what = hmoe__hash(t->name);
        if (!hmoe__is_local(m, t->expert)) continue;
        HMOE__PARALLEL_FOR(t->rows)
        for (int r = 0; r < t->rows; r++)
            for (size_t k = (size_t)r * t->cols, end = k + t->cols; k < end; k++) {
                double noise = t->std > 0 ? t->std * hmoe_normal(m->seed, what, k, 0) : 0;
                host[k] = (hmoe_real)(t->mean + noise);
            }
        m->backend->upload(m->params + t->offset, host, (size_t)t->rows * t->cols * sizeof *host);
    }
}

/* The small arrays, in CPU memory, and the list of tensors. */
static hmoe_status hmoe__create_tables(hmoe_model *m) {
    const hmoe_config *c = &m->config;
    size_t L = (size_t)c->L, LE = L * c->E, sums = L * HMOE_SUMS(c->E);
    hmoe__buffers *b;
    hmoe__list_tensors(m, NULL);   /* counts */
    m->tensors = (hmoe_tensor *)hmoe__alloc_zeroed(m->tensor_count, sizeof *m->tensors);
    m->layers = (hmoe__layer *)hmoe__alloc_zeroed(L + 1, sizeof *m->layers);
    m->usage = (double *)hmoe__alloc_zeroed(sums + 1, sizeof *m->usage);
    m->chosen = (double *)hmoe__alloc_zeroed(LE, sizeof *m->chosen);
    m->buffers = b = (hmoe__buffers *)hmoe__alloc_zeroed(1, sizeof *b);
    if (b) {
        b->host_sums = (double *)hmoe__alloc_zeroed(sums + 1, sizeof *b->host_sums);
        b->host_dP = (hmoe_real *)hmoe__alloc_zeroed(LE, sizeof *b->host_dP);
        b->host_ce = (hmoe_real *)hmoe__alloc_zeroed(m->max_tokens + 1, sizeof *b->host_ce);
        b->slope = (hmoe_means *)hmoe__alloc_zeroed(L, sizeof *b->slope);
        b->list = (hmoe_linear *)hmoe__alloc_zeroed((size_t)c->E, sizeof *b->list);
    }
    if (!m->tensors || !m->layers || !m->usage || !m->chosen || !b || !b->host_sums || !b->host_dP
        || !b->host_ce || !b->slope || !b->list
        || (!strcmp(m->backend->name, "cpu") && !hmoe__grow_panels(&b->panels)))
        return hmoe__no_memory(m->message, (double)m->tensor_count * sizeof *m->tensors,
                               "the list of tensors");
    hmoe__list_tensors(m, m->layers);
    return HMOE_OK;
}

/* The big arrays, in the backend's memory. draw = 1 gives the parameters their initial
   values. */
static hmoe_status hmoe__create_arrays(hmoe_model *m, int max_B, int training, int draw) {
    const hmoe_config *c = &m->config;
    hmoe_real **array[4] = { &m->params, &m->grads, &m->exp_avg, &m->exp_avg_sq }, *host;
    size_t bytes = m->param_count * sizeof(hmoe_real), hs = (size_t)c->C / c->NH, most = c->T * hs;
    int ldh = m->processes ? 0 : hmoe__widest(c);
    double arena = hmoe__list_activations(c, ldh, max_B, training, NULL, NULL, m->buffers);
    double all = arena + (training ? 4.0 : 1.0) * (double)bytes;
    /* Linux overcommits: each piece may be granted and the process killed later. One
       request for the total fails at once if it cannot fit. */
    void *whole = all < (double)((size_t)-1 / 4) ? m->backend->alloc((size_t)all) : NULL;
    if (!whole)
        return hmoe__no_memory(m->message, all, "this model: its size grows with the square of C "
                               "and, in training, of T");
    m->backend->free(whole);
    for (int i = 0; i < (training ? 4 : 1); i++) {
        *array[i] = (hmoe_real *)m->backend->alloc(bytes);
        if (!*array[i]) return hmoe__no_memory(m->message, (double)bytes, "the parameters");
        m->backend->zero(*array[i], bytes);
    }
    m->arena = m->backend->alloc((size_t)arena);
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
    host = (hmoe_real *)HMOE_MALLOC(most * sizeof *host);  /* arrays for upload */
    if (!host) return hmoe__no_memory(m->message, (double)most * sizeof *host, "a tensor");
    for (int t = 0; t < c->T; t++) hmoe__rope_angles(host + t * hs, t, (int)hs, c->rope_theta);
    m->backend->upload(m->buffers->angles, host, c->T * hs * sizeof *host);
    if (draw) hmoe__init_params(m, host);
    HMOE_FREE(host);
    return hmoe__synchronize(m);
}

/* draw = 0: the parameters stay 0, because a file will fill them. */
static hmoe_status hmoe__build(hmoe_model *m, const hmoe_config *config, uint64_t seed,
                               int max_B, int training, int draw) {
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
    m->config.NKV = hmoe__kv_heads(config);
    m->config.gate = hmoe__norm_gates(config) ? HMOE_GATE_NORM : HMOE_GATE_RAW;
    m->seed = seed;
    m->max_tokens = max_B * config->T;
    m->best_val_loss = DBL_MAX;
    if (!m->backend) m->backend = hmoe__cpu_backend();
    if (m->processes) HMOE__TRY(m->processes->create(m, max_B, training));
    HMOE__TRY(hmoe__create_tables(m));
    return hmoe__create_arrays(m, max_B, training, draw);
}

/* If a creation failed, here or in another process, frees what it left. */
static hmoe_status hmoe__free_on_failure(hmoe_model *m, hmoe_status status) {
    status = hmoe__common_status(m, status, 0);
    if (status) hmoe_free(m);
    return status;
}

hmoe_status hmoe_create(hmoe_model *m, const hmoe_config *config, uint64_t seed,
                        int max_B, int training) {
    m->message[0] = 0;
    return hmoe__free_on_failure(m, hmoe__build(m, config, seed, max_B, training, 1));
}

void hmoe_free(hmoe_model *m) {
    const hmoe_model old = *m;
    hmoe__buffers *b = m->buffers;
    void *arrays[5] = { m->params, m->grads, m->exp_avg, m->exp_avg_sq, m->arena };
    for (int i = 0; m->backend && i < 5; i++) m->backend->free(arrays[i]);
    if (b) {
        HMOE_FREE(b->host_sums);
        HMOE_FREE(b->host_dP);
        HMOE_FREE(b->host_ce);
        HMOE_FREE(b->slope);
        HMOE_FREE(b->list);
        hmoe__free_panels(&b->panels);
    }
    HMOE_FREE(b);
    HMOE_FREE(m->tensors);
    HMOE_FREE(m->layers);
    HMOE_FREE(m->usage);
    HMOE_FREE(m->chosen);
    memset(m, 0, sizeof *m);
    memcpy(m->message, old.message, sizeof m->message);
    m->backend = old.backend;
    m->processes = old.processes;
    m->parallel = old.parallel;
}

/* ---------------------------------------------------------------------------------------
   CHECKS AND ACCOUNTS */

hmoe_status hmoe_check_config(const hmoe_config *c, char *message) {
    const struct { const char *what; double value, low, high; } range[] = {
        { "vocabulary V", (double)c->V, 1, HMOE_MAX_DIM },
        { "context T", (double)c->T, 1, HMOE_MAX_DIM },
        { "width C", (double)c->C, 2, HMOE_MAX_DIM },
        { "number of layers L", (double)c->L, 1, HMOE_MAX_LAYERS },
        { "number of heads NH", (double)c->NH, 1, HMOE_MAX_DIM },
        { "heads of keys and values NKV", (double)c->NKV, 0, (double)c->NH },
        { "number of experts E", (double)c->E, 1, HMOE_MAX_EXPERTS },
        { "experts per token K", (double)c->K, 1, (double)c->E },
        { "routing", (double)c->routing, HMOE_TOP_K, HMOE_TOP_P },
        { "gate", (double)c->gate, HMOE_GATE_DEFAULT, HMOE_GATE_RAW },
        { "top_p", c->top_p, 1e-9, 1 }, { "budget", c->budget, 0, 1 },
        { "balance", (double)c->balance, HMOE_BALANCE_OFF, HMOE_BALANCE_WORK },
        { "balance_rate", c->balance_rate, 0, 1 },
        { "noisy_gating", (double)c->noisy_gating, 0, 1 },
        { "rms_norm_eps", c->rms_norm_eps, 0, 1 },
        { "rope_theta", c->rope_theta, 1, 1e12 },
    };
    for (size_t i = 0; i < sizeof range / sizeof range[0]; i++)
        if (!(range[i].value >= range[i].low && range[i].value <= range[i].high))  /* or NaN */
            return HMOE__BAD(message, "%s is %.9g: must be from %.9g to %.9g", range[i].what,
                             range[i].value, range[i].low, range[i].high);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++)
        if (!(c->loss_coef[i] >= 0 && c->loss_coef[i] <= 1e6))
            return HMOE__BAD(message, "%s_coef is %.9g: must be from 0 to 1e+06",
                             hmoe_loss_terms[i].name, c->loss_coef[i]);
    if (c->C % c->NH || c->C / c->NH % 2)
        return HMOE__BAD(message, "width C is %d and heads NH %d: C must be NH times an even head "
                         "size", c->C, c->NH);
    if (c->NH % hmoe__kv_heads(c))
        return HMOE__BAD(message, "heads NH are %d and heads of keys and values NKV %d: NKV must "
                         "divide NH", c->NH, c->NKV);
    for (int e = 0; e < c->E; e++)
        if (c->H[e] < 0 || c->H[e] > HMOE_MAX_DIM || hmoe__total_width(c) > HMOE_MAX_DIM
            || hmoe__total_width(c) < 1)
            return HMOE__BAD(message, "expert_sizes: expert %d is %d wide: must be from 0 to %d, "
                             "and their sum from 1 to %d", e, c->H[e], HMOE_MAX_DIM,
                             HMOE_MAX_DIM);
    if (c->budget > 0 && c->routing != HMOE_TOP_P)
        return HMOE__BAD(message, "budget %.9g: changes top_p, so it needs Top-P routing",
                         c->budget);
    if (c->vocab_size < 0 || c->vocab_size > (c->V < 256 ? c->V : 256))
        return HMOE__BAD(message, "vocab: %d bytes, V: %d: must be from 0 to V, and at most 256",
                         c->vocab_size, c->V);
    for (int i = 1; i < c->vocab_size; i++)
        if (c->vocab[i] <= c->vocab[i - 1])
            return HMOE__BAD(message, "vocab: byte %d follows byte %d: must ascend", c->vocab[i],
                             c->vocab[i - 1]);
    return HMOE_OK;
}

/* Activated parameters per token. widths: sum of H over all chosen experts and layers. */
static double hmoe__activated_with(const hmoe_config *c, double widths) {
    double C = c->C, KV = C / c->NH * hmoe__kv_heads(c);
    return c->L * (2 * C * C + 2 * C * KV + 2 * C + c->E * C) + 2 * C + c->V * C + 3 * C * widths;
}

/* Checks and adds up the sums of a pass, from all processes. FLOPs: 6 per activated
   parameter and token; for attention 4 C per key forward and twice that backward, (T + 1)
   / 2 keys on average. */
static hmoe_status hmoe__add_usage(hmoe_model *m, const double *sums) {
    const hmoe_config *c = &m->config;
    size_t per_layer = HMOE_SUMS(c->E), n = c->L * per_layer;
    double width = 0, all = m->all_tokens;
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
    return HMOE_OK;
}

static hmoe_status hmoe__collect(hmoe_model *m) {
    const hmoe_backend *be = m->backend;
    hmoe__buffers *b = m->buffers;
    double *sums = b->host_sums;
    size_t n = m->config.L * HMOE_SUMS(m->config.E);
    int N = m->B * m->sequence_length;
    be->download(sums, b->sums, n * sizeof *sums);
    if (m->had_targets) be->download(b->host_ce, b->ce, (size_t)N * sizeof *b->host_ce);
    HMOE__TRY(hmoe__synchronize(m));
    sums[n] = 0;
    for (int t = 0; t < N && m->had_targets; t++) sums[n] += (double)b->host_ce[t] / m->all_tokens;
    if (m->processes) m->processes->sum(m, sums, (int)n + 1);
    HMOE__TRY(hmoe__add_usage(m, sums));
    if (!m->had_targets) return HMOE_OK;
    m->losses.ce = sums[n];
    hmoe__losses(&m->losses, b->slope, sums, &m->config, m->all_tokens);
    if (isfinite(m->losses.total)) return HMOE_OK;
    return HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the loss is %f", m->losses.total);
}

/* Called when the backward pass is made. */
static void hmoe__count_pass(hmoe_model *m) {
    int L = m->config.L, E = m->config.E;
    for (int l = 0; l < L; l++)
        for (int e = 0; e < E; e++)
            m->chosen[l * E + e] += m->buffers->host_sums[l * HMOE_SUMS(E) + e];
    m->step_tokens += m->all_tokens;
    m->tokens += m->all_tokens;
    m->flops += m->pass_flops;
}

static hmoe_status hmoe__check_rates(hmoe_model *m, const hmoe_adamw *a,
                                     const hmoe_rates *rates) {
    int betas = a->beta1 >= 0 && rates->beta1 < 1 && a->beta2 >= 0 && rates->beta2 < 1;
    int finite = isfinite(rates->step) && isfinite((hmoe_real)(a->lr * a->weight_decay));
    if (a->lr >= 0 && betas && a->weight_decay >= 0 && a->clip >= 0 && finite) return HMOE_OK;
    return HMOE__BAD(m->message, "AdamW with lr %g, betas %.9g %.9g, decay %g, clip %g: as "
                     "%d-byte numbers betas must be below 1, lr and lr * decay finite, none "
                     "negative",
                     a->lr, a->beta1, a->beta2, a->weight_decay, a->clip, (int)sizeof rates->step);
}

static hmoe_status hmoe__check_tokens(hmoe_model *m, const char *what, const int *tokens,
                                      int N) {
    for (int t = 0; t < N; t++)
        if (tokens[t] < 0 || tokens[t] >= m->config.V)
            return HMOE__BAD(m->message, "%s %d is %d: must be from 0 to %d", what, t, tokens[t],
                             m->config.V - 1);
    return HMOE_OK;
}

static hmoe_status hmoe__check_batch(hmoe_model *m, hmoe_mode mode, const int *tokens,
                                     const int *targets, int B, int T) {
    if (B < (m->processes ? 0 : 1) || T < 1 || T > m->config.T || B > m->max_tokens / T)
        return HMOE__BAD(m->message, "a batch of %d x %d tokens: the model was made for sequences "
                         "of 1 to %d, and %d tokens in all", B, T, m->config.T, m->max_tokens);
    if (!tokens) return HMOE__BAD(m->message, "tokens are missing");
    if (m->buffers->panels.count) hmoe__grow_panels(&m->buffers->panels);   /* more threads now? */
    if (mode == HMOE_TRAIN && (!m->grads || !targets))
        return HMOE__BAD(m->message, "training needs %s", m->grads ? "targets"
                         : "a model that was made for training");
    if (!(m->dropout >= 0 && m->dropout <= 0.9))
        return HMOE__BAD(m->message, "dropout is %g: must be from 0 to 0.9", m->dropout);
    HMOE__TRY(hmoe__check_tokens(m, "token", tokens, B * T));
    return targets ? hmoe__check_tokens(m, "target", targets, B * T) : HMOE_OK;
}

/* ---------------------------------------------------------------------------------------
   ROUNDING OF SIZES - widths are whole units, shared by largest remainder. */

/* Shares `units` among n experts in proportion to ratio[]. An expert with a share below
   one unit gets one unit, and the others share the rest. Each gets the whole part of
   its share. The experts with the largest remainders get one unit more, at ties the one
   with the lowest index. */
static void hmoe__share_out(long long *width, const double *ratio, int n,
                            long long units) {
    const double tiny = 1e-9;   /* tolerance for rounding of a whole share or a tie */
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

/* Ratios written as "9,11,13": exactly E of them, each 0 or from 1e-9 to 1e9, and not all
   0. */
static hmoe_status hmoe__listed_ratios(double *ratio, int E, const char *list,
                                       char *message) {
    const char *at = list;
    double sum = 0;
    for (int n = 0;; n++) {
        const char *end;
        double value = hmoe__parse_double(at, &end);
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

hmoe_status hmoe_expert_sizes(int *H, int E, long long total, const char *strategy,
                              char *message) {
    double ratio[HMOE_MAX_EXPERTS] = { 0 }, pair[HMOE_MAX_EXPERTS] = { 0 };
    long long width[HMOE_MAX_EXPERTS], pairs[HMOE_MAX_EXPERTS], unit;
    int of[HMOE_MAX_EXPERTS], n = 0, equal = 1;
    if (E < 1 || E > HMOE_MAX_EXPERTS)
        return HMOE__BAD(message, "%d experts: must be 1 to %d", E, HMOE_MAX_EXPERTS);
    if (!hmoe__named_ratios(ratio, E, strategy))
        HMOE__TRY(hmoe__listed_ratios(ratio, E, strategy, message));
    for (int e = 0; e < E; e++)   /* the n experts that are not null share the total */
        if (ratio[e] > 0) of[n] = e, ratio[n++] = ratio[e];
    if (total < n || total > HMOE_MAX_DIM)
        return HMOE__BAD(message, "a total width of %lld for %d experts: must be from %d, one for "
                         "each, to %d", total, n, n, HMOE_MAX_DIM);
    for (int i = 1; i < n; i++) equal &= ratio[i] == ratio[0];
    unit = equal ? (total % (8LL * n) == 0 ? 8 : 1) : total % 8 == 0 && total >= 8LL * n ? 8 : 1;
    if (strcmp(strategy, "modse")) hmoe__share_out(width, ratio, n, total / unit);
    else {   /* first among the pairs, so that all pairs have the same size */
        if (E % 2)
            return HMOE__BAD(message, "modse makes pairs: the number of experts must be even, not "
                             "%d", E);
        for (int i = 0; i < E / 2; i++) pair[i] = ratio[2 * i] + ratio[2 * i + 1];
        hmoe__share_out(pairs, pair, E / 2, total / unit);
        for (int i = 0; i < E / 2; i++) hmoe__share_out(width + 2 * i, ratio + 2 * i, 2, pairs[i]);
    }
    for (int e = 0; e < E; e++) H[e] = 0;
    for (int i = 0; i < n; i++) H[of[i]] = (int)(width[i] * unit);
    return HMOE_OK;
}

/* ---------------------------------------------------------------------------------------
   THE CPU BACKEND */

/* Sum of squares, in 256 pieces at fixed places, so that the order does not depend on
   threads. */
static double hmoe__squared_norm(const hmoe_real *g, size_t n) {
    double part[256], sum = 0;
    HMOE__PARALLEL_FOR(256)
    for (int i = 0; i < 256; i++) {
        size_t k = n / 256 * i + n % 256 * i / 256;
        size_t end = n / 256 * (i + 1) + n % 256 * (i + 1) / 256;
        for (part[i] = 0; k < end; k += 4096) {  /* 64 sums at once, of few numbers */
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

static void *hmoe__cpu_alloc(size_t bytes) { return HMOE_MALLOC(bytes); }
static void hmoe__cpu_free(void *array) { HMOE_FREE(array); }
static void hmoe__cpu_zero(void *array, size_t bytes) { memset(array, 0, bytes); }
static void hmoe__cpu_copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}
static const char *hmoe__cpu_synchronize(void) { return NULL; }

/* In the order of struct hmoe_backend. */
static const hmoe_backend *hmoe__cpu_backend(void) {
    static const hmoe_backend backend = {
        "cpu", hmoe__cpu_synchronize,
        hmoe__cpu_alloc, hmoe__cpu_free, hmoe__cpu_copy, hmoe__cpu_copy, hmoe__cpu_zero,
        hmoe__linear_forward, hmoe__linear_backward_input, hmoe__linear_backward_weight,
        hmoe__router_softmax, hmoe__choose, hmoe__dispatch, hmoe__router_sums,
        hmoe__router_backward, hmoe__noise_forward, hmoe__noise_backward,
        hmoe__experts_up, hmoe__swiglu_backward, hmoe__combine_forward, hmoe__combine_backward,
        hmoe__embed_forward, hmoe__embed_backward, hmoe__rmsnorm_forward, hmoe__rmsnorm_backward,
        hmoe__rope, hmoe__attention_forward, hmoe__attention_backward,
        hmoe__cross_entropy_forward, hmoe__cross_entropy_backward,
        hmoe__dropout_forward, hmoe__dropout_backward,
        hmoe__squared_norm, hmoe__adamw,
    };
    return &backend;
}

static hmoe_status hmoe__synchronize(hmoe_model *m) {
    const char *error = m->backend->synchronize();
    return error ? HMOE__FAIL(m->message, HMOE_IO, "%s: %s", m->backend->name, error) : HMOE_OK;
}

/* ---------------------------------------------------------------------------------------
   GENERATING - the same forward functions with N = 1, and a cache of the keys and values
   of the last T tokens. Most of a step's time goes into reading each activated weight once. */

hmoe_status hmoe_cache_create(hmoe_cache *cache, hmoe_model *m) {
    const hmoe_config *c = &m->config;
    int hs = c->C / c->NH, KV = c->NKV * hs;
    double half = (double)c->L * c->T * KV, bytes = (2 * half + hs) * sizeof(hmoe_real);
    memset(cache, 0, sizeof *cache);
    m->message[0] = 0;
    if (m->backend != hmoe__cpu_backend())
        return HMOE__BAD(m->message, "token-by-token generation runs on the CPU: load the model "
                         "without the %s backend", m->backend->name);
    hmoe_status status = HMOE_OK;
    if (bytes < (double)((size_t)-1 / 4)) cache->keys = (hmoe_real *)HMOE_MALLOC((size_t)bytes);
    if (!cache->keys)
        status = hmoe__no_memory(m->message, bytes, "keys and values of T tokens in L layers");
    status = hmoe__common_status(m, status, 0);
    cache->L = c->L, cache->T = c->T, cache->C = c->C, cache->KV = KV;
    if (status) hmoe_cache_free(cache);
    else cache->values = cache->keys + (size_t)half, cache->angles = cache->values + (size_t)half;
    return status;
}

void hmoe_cache_free(hmoe_cache *cache) {
    HMOE_FREE(cache->keys);
    memset(cache, 0, sizeof *cache);
}

/* Attention of one token to the last T tokens, itself included. Adds its key and value
   to the cache. */
static void hmoe__attention_cached(hmoe_cache *cache, const hmoe_config *c, int l,
                                   hmoe_real *out, hmoe_real *att, hmoe_real *q) {
    int C = c->C, hs = C / c->NH, KV = cache->KV, group = c->NH / c->NKV;
    int seen = cache->position < c->T ? (int)cache->position + 1 : c->T;
    size_t layer = (size_t)l * c->T * KV, slot = (size_t)(cache->position % c->T) * KV;
    hmoe_real scale = 1 / hmoe__sqrt((hmoe_real)hs);
    hmoe__rope_row(q, cache->angles, 1, c->NH + c->NKV, hs);
    memcpy(cache->keys + layer + slot, q + C, (size_t)KV * sizeof *q);
    memcpy(cache->values + layer + slot, q + C + KV, (size_t)KV * sizeof *q);
    for (int head = 0; head < c->NH; head++, out += hs, q += hs) {
        const hmoe_real *k = cache->keys + layer + head / group * hs;
        const hmoe_real *v = cache->values + layer + head / group * hs;
        for (int j = 0; j < seen; j++, k += KV) {
            hmoe_real sum = 0;
            HMOE__SIMD_SUM(sum)
            for (int i = 0; i < hs; i++) sum += q[i] * k[i];
            att[j] = sum;
        }
        hmoe__softmax_row(att, seen, scale, NULL);
        for (int i = 0; i < hs; i++) out[i] = 0;
        for (int j = 0; j < seen; j++, v += KV)
            for (int i = 0; i < hs; i++) out[i] += att[j] * v[i];
    }
}

hmoe_status hmoe_next(hmoe_model *m, hmoe_cache *cache, int token, hmoe_real *logits) {
    hmoe__buffers *b = m->buffers;
    const hmoe_config *c = &m->config;
    int fits = cache->keys && cache->L == c->L && cache->T == c->T && cache->C == c->C
               && cache->KV == c->NKV * (c->C / c->NH);
    m->message[0] = 0;
    hmoe_status status = fits ? hmoe__check_tokens(m, "token", &token, 1) : HMOE__BAD(m->message,
                         "this cache was not made for this model: call hmoe_cache_create");
    HMOE__TRY(hmoe__common_status(m, status, 0));
    m->has_results = 0;   /* this overwrites the results of the last hmoe_forward */
    m->mode = HMOE_EVALUATE;
    hmoe__rope_angles(cache->angles, cache->position, c->C / c->NH, c->rope_theta);
    b->all_rows[0] = 0, b->all_rows[1] = 1, b->tokens[0] = token;
    hmoe__layers_forward(m, 1, 1, cache);
    cache->position++;
    memcpy(logits, b->logits, (size_t)c->V * sizeof *logits);
    for (int i = 0; i < c->V; i++)
        if (!isfinite(logits[i]))
            status = HMOE__FAIL(m->message, HMOE_NOT_FINITE, "the logits are not finite: the "
                                "weights are not those of a trained model");
    return hmoe__common_status(m, status, 0);
}

int hmoe_sample(hmoe_real *logits, int V, double temperature, int top_k, double top_p,
                uint64_t seed, int64_t position) {
    double sum = 0, mass = 0, u;
    int best = 0, last, kept = 0, limit = top_k > 0 && top_k < V ? top_k : V;
    for (int i = 1; i < V; i++) if (logits[i] > logits[best]) best = i;
    if (temperature <= 0) return best;
    for (int i = 0; i < V; i++) {  /* the softmax times a constant */
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

hmoe_adamw hmoe_default_adamw(void) {
    hmoe_adamw a = { 2e-3, 0.9, 0.99, 0.1, 1.0 };
    return a;
}

double hmoe_learning_rate(int64_t step, int64_t warmup, int64_t steps, double lr,
                          double min_lr) {
    double done;
    if (step <= warmup) return lr * (double)step / (double)warmup;
    if (step >= steps) return min_lr;
    done = (double)(step - warmup) / (double)(steps - warmup);
    return min_lr + (lr - min_lr) * 0.5 * (1 + cos(3.141592653589793 * done));
}

/* Resets the counters of a step, but not the gradients. */
static void hmoe__begin_step(hmoe_model *m) {
    memset(m->chosen, 0, (size_t)m->config.L * m->config.E * sizeof *m->chosen);
    m->step_tokens = 0;
    m->has_results = 0;   /* these activations belong to older weights */
}

void hmoe_zero_gradients(hmoe_model *m) {
    if (m->grads) m->backend->zero(m->grads, m->param_count * sizeof(hmoe_real));
    hmoe__begin_step(m);
}

/* =======================================================================================
   PART THREE - LOOKING INSIDE, AND FILES */

static hmoe_status hmoe__nothing_there(hmoe_model *m, const char *what) {
    return HMOE__BAD(m->message, "no %s: they exist after a successful hmoe_forward and before "
                     "hmoe_backward", what);
}

hmoe_status hmoe_get_logits(hmoe_model *m, hmoe_real *logits) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (!m->has_results) return hmoe__nothing_there(m, "logits");
    m->backend->download(logits, m->buffers->logits, N * m->config.V * sizeof *logits);
    return hmoe__synchronize(m);
}

hmoe_status hmoe_get_token_losses(hmoe_model *m, hmoe_real *ce) {
    size_t N = (size_t)m->B * m->sequence_length;
    m->message[0] = 0;
    if (!m->has_results || !m->had_targets) return hmoe__nothing_there(m, "token losses");
    m->backend->download(ce, m->buffers->ce, N * sizeof *ce);
    return hmoe__synchronize(m);
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
    const hmoe_backend *be = m->backend;
    hmoe_real gate[HMOE_MAX_EXPERTS], P[HMOE_MAX_EXPERTS];
    const hmoe_routes *r;
    size_t E = (size_t)m->config.E, slots;
    m->message[0] = 0;
    if (!m->has_results) return hmoe__nothing_there(m, "routes");
    if (layer < 0 || layer >= m->config.L || token < 0 || token >= m->B * m->sequence_length)
        return HMOE__BAD(m->message, "no token %d in layer %d: there are %d "
                          "tokens and %d layers", token, layer, m->B * m->sequence_length,
                          m->config.L);
    r = &m->layers[layer].routes;
    slots = (size_t)r->slots;
    be->download(&route->count, r->count + token, sizeof(int));
    be->download(route->expert, r->expert + token * slots, slots * sizeof(int));
    be->download(gate, r->gate + token * slots, slots * sizeof *gate);
    be->download(P, r->P + token * E, E * sizeof *P);
    HMOE__TRY(hmoe__synchronize(m));
    for (int i = 0; i < route->count; i++) route->gate[i] = (double)gate[i];
    for (size_t e = 0; e < E; e++) route->P[e] = (double)P[e];
    return HMOE_OK;
}

void hmoe_get_usage(const hmoe_model *m, int layer, hmoe_usage *usage) {
    const hmoe_config *c = &m->config;
    size_t per_layer = HMOE_SUMS(c->E);
    const hmoe_routes *routes;
    hmoe_sums sums;
    double tokens, N;
    hmoe_real state[HMOE_MAX_EXPERTS];
    memset(usage, 0, sizeof *usage);
    if (layer < 0 || layer >= c->L) return;
    routes = &m->layers[layer].routes;
    sums = hmoe_sums_in(m->usage + layer * per_layer, c->E);
    tokens = m->usage[c->L * per_layer], N = tokens > 0 ? tokens : 1;
    usage->tokens = (int64_t)tokens;
    for (int e = 0; e < c->E; e++) {
        usage->share[e] = sums.count[e] / N;
        usage->P[e] = sums.P[e] / N;
        usage->width += usage->share[e] * c->H[e];
        usage->dead += sums.count[e] == 0;
    }
    for (int e = 0; e < c->E && usage->width > 0; e++)
        usage->compute[e] = usage->share[e] * c->H[e] / usage->width;
    usage->entropy = *sums.entropy / N;
    usage->experts = *sums.rows / N;
    if (c->routing == HMOE_TOP_P) usage->top_p = c->top_p;
    if (routes->top_p) {
        m->backend->download(state, routes->top_p, sizeof *state);
        usage->top_p = (double)*state;
    }
    if (routes->bias) m->backend->download(state, routes->bias, (size_t)c->E * sizeof *state);
    for (int e = 0; routes->bias && e < c->E; e++) usage->bias[e] = (double)state[e];
}

void hmoe_reset_usage(hmoe_model *m) {
    memset(m->usage, 0, (m->config.L * HMOE_SUMS(m->config.E) + 1) * sizeof *m->usage);
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

#ifndef HMOE_NO_FILES

#include <ctype.h>
#include <errno.h>

/* ---------------------------------------------------------------------------------------
   The platform - what C99 lacks: POSIX, then Windows, then what is left without either
   (files are not forced to the disk, the directory must be there already, 2 GB may be the
   limit).

   hmoe__create   opens a new file, which is to replace `target` later: with the permissions
                  of that file, and never if that is a pipe or a device
   hmoe__follow   replaces a path that is a link by where the link leads
   hmoe__replace  gives a file another name; a file of that name is gone at once */
enum { HMOE__PATH_SIZE = 4096 };
#if defined(__GLIBC__) && !defined(__USE_POSIX)
#error "Include hmoe.h before any other header, compile with -std=gnu99, or define HMOE_NO_FILES"
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
static FILE *hmoe__open(const char *path) {   /* a pipe would wait for its writer */
    struct stat is;
    if (stat(path, &is) || S_ISREG(is.st_mode)) return fopen(path, "rb");
    errno = S_ISDIR(is.st_mode) ? EISDIR : EINVAL;
    return NULL;
}
static int hmoe__seek(FILE *f, int64_t at, int from) {
    return fseeko(f, (off_t)at, from);
}
static int64_t hmoe__tell(FILE *f) { return ftello(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f) || fsync(fileno(f)); }
static int hmoe__make_directory(const char *path) {
    return mkdir(path, 0777) && errno != EEXIST;
}
static FILE *hmoe__create(const char *path, const char *target) {
    struct stat is;
    int f, exists = !stat(target, &is);
    FILE *file;
    errno = exists && S_ISDIR(is.st_mode) ? EISDIR : EINVAL;
    if (exists && !S_ISREG(is.st_mode)) return NULL;
    if ((f = open(path, O_WRONLY | O_CREAT | O_EXCL, 0666)) < 0) return NULL;
    if (exists) fchmod(f, is.st_mode & 0777);   /* if the file system can */
    if (!(file = fdopen(f, "wb"))) close(f);
    return file;
}
static int hmoe__follow(char path[HMOE__PATH_SIZE]) {
    char to[HMOE__PATH_SIZE];
    for (ssize_t links = 0, n; (n = readlink(path, to, sizeof to - 1)) >= 0; links++) {
        char *slash = strrchr(path, '/'), *name = *to != '/' && slash ? slash + 1 : path;
        errno = links < 40 ? ENAMETOOLONG : ELOOP;
        if (links == 40 || name - path + n >= HMOE__PATH_SIZE) return -1;
        memcpy(name, to, (size_t)n);
        name[n] = 0;
    }
    return 0;
}
static int hmoe__replace(const char *from, const char *to) {
    const char *slash = strrchr(to, '/');
    char dir[HMOE__PATH_SIZE] = ".";
    int fd;
    if (rename(from, to) && rename(from, to)) return -1;   /* a network may fail once */
    if (slash) snprintf(dir, sizeof dir, "%.*s", (int)(slash - to) + 1, to);
    if ((fd = open(dir, O_RDONLY)) < 0) return 0;
    fsync(fd);   /* makes the new name durable, if the file system can */
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
static int hmoe__make_directory(const char *path) {
    return _mkdir(path) && errno != EEXIST;
}
static FILE *hmoe__create(const char *path, const char *target) {
    (void)target;
    return fopen(path, "wb");
}
static int hmoe__follow(char *path) { (void)path; return 0; }
static int hmoe__replace(const char *from, const char *to) {
    for (int i = 0; i < 40; i++, Sleep(50))   /* another program may have it open */
        if (MoveFileExA(from, to, 1 | 8)) return 0;  /* REPLACE_EXISTING | WRITE_THROUGH */
    errno = EACCES;
    return -1;
}
#else
static FILE *hmoe__open(const char *path) { return fopen(path, "rb"); }
static int hmoe__seek(FILE *f, int64_t at, int from) { return fseek(f, (long)at, from); }
static int64_t hmoe__tell(FILE *f) { return ftell(f); }
static int hmoe__flush_to_disk(FILE *f) { return fflush(f); }
static int hmoe__make_directory(const char *path) { (void)path; return 0; }
static FILE *hmoe__create(const char *path, const char *target) {
    (void)target;
    return fopen(path, "wb");
}
static int hmoe__follow(char *path) { (void)path; return 0; }
static int hmoe__replace(const char *from, const char *to) {
    remove(to);
    return rename(from, to);
}
#endif

/* Files are little-endian. Converts n numbers of `size` bytes from this machine's byte
   order, or back. On a little-endian machine it does nothing. */
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

hmoe_status hmoe_byte_vocab(hmoe_config *c, const unsigned char *text, size_t n,
                            char *message) {
    unsigned char seen[256] = { 0 };
    if (n == 0) return HMOE__BAD(message, "an empty text has no vocabulary");
    for (size_t i = 0; i < n; i++) seen[text[i]] = 1;
    c->vocab_size = 0;
    for (int byte = 0; byte < 256; byte++)
        if (seen[byte]) c->vocab[c->vocab_size++] = (unsigned char)byte;
    c->V = c->vocab_size;
    return HMOE_OK;
}

static hmoe_status hmoe__path(char *path, const char *dir, const char *name,
                              char *message) {
    int n = snprintf(path, HMOE__PATH_SIZE, "%s/%s", dir, name);
    if (n >= 0 && n < HMOE__PATH_SIZE) return HMOE_OK;
    return HMOE__BAD(message, "the path %.100s... is too long", dir);
}

/* A checkpoint for training has three arrays: params, exp_avg, exp_avg_sq; otherwise
   only the first. These return one array, and the tensor and name of number i of all of
   them. */
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

/* ---------------------------------------------------------------------------------------
   Writing. */

/* A file `path`, which has the name `beside` until it is complete: .NAME.hmoe.tmp. Nobody
   else uses such a name, so one that is there was left by a crash. If there is a link in
   place of the file, both names are where it leads, and the link stays. */
typedef struct hmoe__output {
    FILE *file;
    char path[HMOE__PATH_SIZE], beside[HMOE__PATH_SIZE];
} hmoe__output;

static hmoe_status hmoe__name_output(hmoe__output *out, const char *dir, const char *name,
                                     char *message) {
    int start, n;
    HMOE__TRY(hmoe__path(out->path, dir, name, message));
    if (hmoe__follow(out->path))
        return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(errno));
    start = (int)(strrchr(out->path, '/') - out->path) + 1;
    n = snprintf(out->beside, sizeof out->beside, "%.*s.%s.hmoe.tmp", start, out->path,
                 out->path + start);
    if (n >= 0 && n < HMOE__PATH_SIZE) return HMOE_OK;
    return HMOE__BAD(message, "the path %.100s... is too long", out->path);
}

static hmoe_status hmoe__open_output(hmoe__output *out, const char *dir, const char *name,
                                     char *message) {
    HMOE__TRY(hmoe__name_output(out, dir, name, message));
    remove(out->beside);   /* whatever it is: an old file, a link, a pipe */
    out->file = hmoe__create(out->beside, out->path);
    if (out->file) return HMOE_OK;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(errno));
}

/* Flushes to the disk, and fails if anything was not written. */
static hmoe_status hmoe__close_output(hmoe__output *out, hmoe_status status,
                                      char *message) {
    int error = 0;
    if (ferror(out->file) || hmoe__flush_to_disk(out->file)) error = errno ? errno : EIO;
    if (fclose(out->file) && !error) error = errno;
    if (status || !error) return status;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(error));
}

/* Gives a complete file its name. */
static hmoe_status hmoe__rename_output(const hmoe__output *out, char *message) {
    if (!hmoe__replace(out->beside, out->path)) return HMOE_OK;
    return HMOE__FAIL(message, HMOE_IO, "cannot write %.300s: %s", out->path, strerror(errno));
}

/* Prints the fewest digits that read back as the same double. */
static void hmoe__print_double(char text[40], double value) {
    const char *mark = localeconv()->decimal_point;
    char *at;
    int digits = 15;
    do snprintf(text, 40, "%.*g", digits, value);
    while (digits++ < 17 && strtod(text, NULL) != value);
    if ((at = strstr(text, mark)) == NULL) return;
    *at = '.';
    memmove(at + 1, at + strlen(mark), strlen(at + strlen(mark)) + 1);
}

static void hmoe__write_double(FILE *f, double value) {
    char text[40];
    hmoe__print_double(text, value);
    fputs(text, f);
}

static void hmoe__write_member(FILE *f, const char *name, double value) {
    fprintf(f, "  \"%s\": ", name);
    hmoe__write_double(f, value);
    fputs(",\n", f);
}

/* Names of the values of hmoe_balance in config.json. */
static const char *const hmoe__balances[] = { "off", "tokens", "work" };

/* 1 if Mixtral computes the same: then other programs may open the model as a Mixtral. */
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
    int mixtral = hmoe__is_mixtral(c);
    hmoe__output out;
    FILE *f;
    HMOE__TRY(hmoe__open_output(&out, dir, "config.json", m->message));
    f = out.file;
    fprintf(f, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
            mixtral ? "MixtralForCausalLM" : "HMoEForCausalLM", mixtral ? "mixtral" : "hmoe");
    fprintf(f, "  \"hidden_size\": %d,\n  \"num_hidden_layers\": %d,\n", c->C, c->L);
    fprintf(f, "  \"num_attention_heads\": %d,\n  \"num_key_value_heads\": %d,\n", c->NH, c->NKV);
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
    hmoe__write_member(f, "rms_norm_eps", c->rms_norm_eps);
    hmoe__write_member(f, "rope_theta", c->rope_theta);
    if (!mixtral) hmoe__write_member(f, "top_p", c->top_p);  /* transformers would sample with it */
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) {
        char key[32];
        snprintf(key, sizeof key, "%s_coef", hmoe_loss_terms[i].name);
        hmoe__write_member(f, key, c->loss_coef[i]);
    }
    if (c->vocab_size) hmoe__write_list(f, "vocab", c, c->vocab_size);
    fputs("  \"rope_parameters\": {\"rope_theta\": ", f);
    hmoe__write_double(f, c->rope_theta);
    fputs(", \"rope_type\": \"default\"},\n  \"hidden_act\": \"silu\",\n"
          "  \"tie_word_embeddings\": false,\n  \"torch_dtype\": \"float32\",\n"
          "  \"dtype\": \"float32\",\n  \"bos_token_id\": null,\n  \"eos_token_id\": null\n}\n", f);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* The character of a byte in GPT-2's byte-level alphabet: the byte itself if it is
   printable; the other bytes are numbered from 256 on. */
static int hmoe__byte_character(int byte) {
    int other = 256;
    for (int b = 0;; b++) {
        int seen = (b > 32 && b < 127) || (b > 160 && b != 173);
        if (b == byte) return seen ? b : other;
        other += !seen;
    }
}

/* A BPE without merges: every byte is a token. Bytes that the vocabulary lacks become ?, or
   a space, or token 0: a tokenizer without unk_token would drop them. */
static void hmoe__write_byte_tokenizer(FILE *f, const hmoe_config *c) {
    static const char level[] = "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                                "\"trim_offsets\": false, \"use_regex\": false}";
    const size_t n = (size_t)c->vocab_size;
    int unknown = memchr(c->vocab, '?', n) ? '?' : memchr(c->vocab, ' ', n) ? ' ' : c->vocab[0];
    fprintf(f, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n"
            "  \"added_tokens\": [],\n  \"normalizer\": null,\n  \"pre_tokenizer\": %s,\n"
            "  \"post_processor\": null,\n  \"decoder\": %s,\n", level, level);
    fprintf(f, "  \"model\": {\"type\": \"BPE\", \"dropout\": null, \"unk_token\": \"\\u%04x\",\n"
            "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n"
            "    \"fuse_unk\": false, \"byte_fallback\": false, \"merges\": [], \"vocab\": {",
            (unsigned)hmoe__byte_character(unknown));
    for (int i = 0; i < c->vocab_size; i++)
        fprintf(f, "%s\"\\u%04x\": %d", i ? ", " : "",
                (unsigned)hmoe__byte_character(c->vocab[i]), i);
    fputs("}}\n}\n", f);
}

static int hmoe__has_tokenizer(const hmoe_model *m) {
    return m->tokenizer || m->config.vocab_size;
}

static hmoe_status hmoe__save_tokenizer(hmoe_model *m, const char *dir) {
    hmoe__output out;
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer.json", m->message));
    if (m->tokenizer) fputs(m->tokenizer, out.file);
    else hmoe__write_byte_tokenizer(out.file, &m->config);
    HMOE__TRY(hmoe__close_output(&out, HMOE_OK, m->message));
    HMOE__TRY(hmoe__open_output(&out, dir, "tokenizer_config.json", m->message));
    fputs("{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n", out.file);
    return hmoe__close_output(&out, HMOE_OK, m->message);
}

/* Writes the header of a safetensors file, padded to a multiple of 8 bytes. size: bytes
   of one number. Returns 0 if it was written. */
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
        fprintf(f, "\",\"best_of\":\"%llu\",\"recipe\":\"%llu\",\"optimizer\":\"%d\"",
                (unsigned long long)m->best_of, (unsigned long long)m->recipe, m->optimizer);
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

static const size_t hmoe__chunk = 1 << 16;   /* numbers that are copied at a time */

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
            if (m->processes) m->processes->download(m, chunk, k, at, n);
            else m->backend->download(chunk, from + at, n * sizeof *chunk);
            for (size_t i = 0; size < sizeof *chunk && i < n; i++) {  /* to float */
                float narrow = (float)chunk[i];
                memcpy((char *)chunk + i * size, &narrow, sizeof narrow);
            }
            hmoe__order_bytes(chunk, n, size);
            whole = fwrite(chunk, size, n, out.file) == n;
        }
    }
    if (!status) {
        status = whole ? hmoe__synchronize(m)
                       : HMOE__FAIL(m->message, HMOE_IO, "cannot write %.300s: %s", out.path,
                                    strerror(errno));
        status = hmoe__close_output(&out, status, m->message);
    }
    HMOE_FREE(chunk);
    return status;
}

/* The names of a checkpoint's files, in the order of the renames. The training state
   comes after the weights: if a crash comes between them, the resumed run writes the
   weights again. */
static int hmoe__files(const hmoe_model *m, int training, const char *names[5]) {
    int n = 0;
    names[n++] = "model.safetensors";
    if (hmoe__has_tokenizer(m)) names[n++] = "tokenizer.json", names[n++] = "tokenizer_config.json";
    if (training) names[n++] = "training.safetensors";
    names[n++] = "config.json";
    return n;
}

void hmoe_discard(hmoe_model *m, const char *dir, int training) {
    const char *names[5];
    hmoe__output out;
    if (m->processes && m->processes->rank(m)) return;
    for (int n = hmoe__files(m, training, names); n-- > 0;)
        if (!hmoe__name_output(&out, dir, names[n], NULL)) remove(out.beside);
}

static hmoe_status hmoe__write_files(hmoe_model *m, const char *dir, int training) {
    if (training)
        HMOE__TRY(hmoe__save_tensors(m, dir, "training.safetensors", 3, sizeof(hmoe_real)));
    HMOE__TRY(hmoe__save_tensors(m, dir, "model.safetensors", 1, sizeof(float)));
    if (hmoe__has_tokenizer(m)) HMOE__TRY(hmoe__save_tokenizer(m, dir));
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
    const char *names[5];
    hmoe__output out;
    for (int i = 0, n = hmoe__files(m, training, names); i < n; i++) {
        HMOE__TRY(hmoe__name_output(&out, dir, names[i], m->message));
        hmoe_status status = hmoe__rename_output(&out, m->message);
        if (status) hmoe_discard(m, dir, training);
        HMOE__TRY(status);
    }
    return HMOE_OK;
}

/* Only the first process reads and writes files. */
static hmoe_status hmoe__by_first_process(hmoe_model *m, hmoe_file_work work,
                                          const char *dir, int training) {
    m->message[0] = 0;
    return m->processes ? m->processes->by_first(m, work, dir, training) : work(m, dir, training);
}

hmoe_status hmoe_prepare(hmoe_model *m, const char *dir, int training) {
    return hmoe__by_first_process(m, hmoe__prepare, dir, training);
}

hmoe_status hmoe_commit(hmoe_model *m, const char *dir, int training) {
    return hmoe__by_first_process(m, hmoe__commit, dir, training);
}

hmoe_status hmoe_save(hmoe_model *m, const char *dir, int training) {
    HMOE__TRY(hmoe_prepare(m, dir, training));
    return hmoe_commit(m, dir, training);
}

/* ---------------------------------------------------------------------------------------
   JSON - hmoe__json_after checks that the whole text is JSON first. Therefore the other
   functions need no checks. A value starts where `at` points. */

static const char *hmoe__json_space(const char *at) { return at + strspn(at, " \n\r\t"); }

/* Each of the next three returns the end of a string, number or value, or NULL if there
   is none. */
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

/* Stricter than strtod, which also accepts 01, .5, 1.e5 and inf. */
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

/* Any value, and the white space after it. */
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

/* Decodes escapes that JSON does not need, such as \u0041 and \/, so that names can be
   compared. Text that is JSON has them in strings only. */
static void hmoe__json_unescape(char *text) {
    char *to = text;
    for (const char *at = text; *at;) {
        int escaped = *at == '\\', is_u = escaped && at[1] == 'u';
        char hex[5] = "2f";   /* \/ */
        long c;
        if (is_u) memcpy(hex, at + 2, 4);
        c = is_u || (escaped && at[1] == '/') ? strtol(hex, NULL, 16) : 0;
        if (c >= 32 && c < 127 && c != '"' && c != '\\') {
            *to++ = (char)c;
            at += is_u ? 6 : 2;
            continue;
        }
        *to++ = *at++;
        if (escaped) *to++ = *at++;
    }
    *to = 0;
}

/* The value of the member whose name starts at `name`. */
static const char *hmoe__json_value(const char *name) {
    return hmoe__json_space(hmoe__json_space(hmoe__json_string(name)) + 1);
}

/* Returns the next element of a list, or the next member's name of an object, or NULL
   at the end. *at starts at the bracket and moves along. */
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
    const char *end;
    *value = *at == '-' || isdigit((unsigned char)*at) ? hmoe__parse_double(at, &end) : (double)NAN;
    return isfinite(*value);
}

/* Reads a list of at most `max` whole numbers from 0 to high. Returns their number, or
   -1 if it is not such a list. */
static int hmoe__json_list(const char *at, double *out, int max, double high) {
    int n = 0;
    if (*at != '[') return -1;
    for (const char *x; (x = hmoe__json_next(&at, 0)) != NULL; n++)
        if (n == max || !hmoe__json_number(x, &out[n]) || !(out[n] >= 0 && out[n] <= high)
            || out[n] != floor(out[n])) return -1;
    return n;
}

/* The value of the member with this name, or NULL. *repeats counts repeated names. */
static const char *hmoe__json_find(const char *object, const char *name, int *repeats) {
    const char *found = NULL;
    if (*object != '{') return NULL;
    for (const char *member; (member = hmoe__json_next(&object, 1)) != NULL;)
        if (hmoe__json_is(member, name)) {
            *repeats += found != NULL;
            found = hmoe__json_value(member);
        }
    return found;
}

/* ---------------------------------------------------------------------------------------
   Reading - first the members of an object, one call each, then config.json, then the
   tensors. */

/* An object to read, and the first error in it. */
typedef struct hmoe__reader {
    const char *object;
    int quoted;  /* 1: values are numbers in quotes, as in the metadata of safetensors */
    const char *name, *wrong;
} hmoe__reader;

/* The value of a member, or NULL if it is missing. needed = 1: then that is an error. */
static const char *hmoe__member(hmoe__reader *r, const char *name, int needed) {
    int repeats = 0;
    const char *value = hmoe__json_find(r->object, name, &repeats), *end;
    const char *wrong = repeats ? "comes twice" : !value && needed ? "is missing" : NULL;
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

/* HMOE_OK, or a message about the first error. */
static hmoe_status hmoe__reader_status(const hmoe__reader *r, const char *path,
                                       char *message) {
    int repeats = 0, shown, length;
    const char *value = r->wrong ? hmoe__json_find(r->object, r->name, &repeats) : NULL;
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

/* missing: the value if there is no such member; 0: then that is an error. */
static int hmoe__get_int(hmoe__reader *r, const char *name, int missing) {
    if (missing && !hmoe__member(r, name, 0)) return missing;
    return (int)hmoe__get_whole(r, name, HMOE_MAX_DIM);
}

static int hmoe__is_true(hmoe__reader *r, const char *name) {
    const char *value = hmoe__member(r, name, 0);
    return value && !strncmp(value, "true", 4);
}

/* Returns 1 if the member's value is `yes`, 0 if `no`, and `missing` if there is no
   such member. */
static int hmoe__get_choice(hmoe__reader *r, const char *name, int needed,
                            const char *yes, const char *no, int missing) {
    const char *value = hmoe__member(r, name, needed);
    if (!value) return missing;
    if (!strncmp(value, yes, strlen(yes))) return 1;
    if (strncmp(value, no, strlen(no))) hmoe__wrong(r, name, "has a value that is not supported");
    return 0;
}

/* Checks a member that may be missing or null, or a number from low to high. */
static void hmoe__get_limit(hmoe__reader *r, const char *name, double low, double high,
                            const char *wrong) {
    const char *value = hmoe__member(r, name, 0);
    double number;
    if (!value || !strncmp(value, "null", 4) || !strncmp(value, "false", 5)) return;
    if (!hmoe__json_number(value, &number) || number < low || number > high)
        hmoe__wrong(r, name, wrong);
}

static int hmoe__get_list(hmoe__reader *r, const char *name, int needed, double *out,
                          double most) {
    const char *value = hmoe__member(r, name, needed);
    int n = value ? hmoe__json_list(value, out, 256, most) : 0;
    if (n < 0 || (value && n == 0))
        hmoe__wrong(r, name, "must be a list of 1 to 256 whole numbers in their range");
    return n;
}

static hmoe_status hmoe__open_input(FILE **file, int64_t *bytes, const char *path,
                                    char *message) {
    *file = hmoe__open(path);
    if (*file && !hmoe__seek(*file, 0, SEEK_END) && (*bytes = hmoe__tell(*file)) >= 0) {
        rewind(*file);
        return HMOE_OK;
    }
    return HMOE__FAIL(message, HMOE_IO, "cannot open %.300s: %s", path, strerror(errno));
}

/* Reads the next n bytes of a file into *text. They must be one JSON object, and n <=
   most. */
static hmoe_status hmoe__read_json(char **text, FILE *file, uint64_t n, uint64_t most,
                                   const char *path, char *message) {
    const char *end;
    if (n > most)
        return HMOE__CORRUPT(message, "%.300s: JSON of %.0f bytes is too long", path, (double)n);
    *text = (char *)HMOE_MALLOC((size_t)n + 1);
    if (!*text) return hmoe__no_memory(message, (double)n, "a header");
    if (fread(*text, 1, (size_t)n, file) != n)
        return HMOE__FAIL(message, HMOE_IO, "cannot read %.300s", path);
    (*text)[n] = 0;
    end = **text == '{' ? hmoe__json_after(*text, HMOE__JSON_DEPTH) : NULL;
    if (end != *text + n)
        return HMOE__CORRUPT(message, "%.300s: this is not one JSON object", path);
    hmoe__json_unescape(*text);
    return HMOE_OK;
}

/* A whole file of JSON, and its path [HMOE__PATH_SIZE]. The caller frees *text in any case. */
static hmoe_status hmoe__read_json_file(char **text, char *path, const char *dir, const char *name,
                                        uint64_t most, char *message) {
    FILE *file = NULL;
    int64_t bytes = 0;
    hmoe_status status;
    *text = NULL;
    HMOE__TRY(hmoe__path(path, dir, name, message));
    HMOE__TRY(hmoe__open_input(&file, &bytes, path, message));
    status = hmoe__read_json(text, file, (uint64_t)bytes, most, path, message);
    fclose(file);
    return status;
}

/* Reads rope_theta; `missing` is its value if there is none, 0: then that is an error.
   Newer files have it in an object rope_parameters, which may also ask for scaling; that is
   an error here. */
static void hmoe__read_rope(hmoe__reader *r, hmoe_config *c, double missing) {
    static const char all[] = "must be 1: all dimensions of a head are rotated";
    const char *object = hmoe__member(r, "rope_parameters", 0), *at = object, *member;
    int newer = object && strncmp(object, "null", 4);
    double inner = 0;
    if (newer) {
        hmoe__reader rope = { object, 0, "", NULL };
        hmoe__get_choice(&rope, "rope_type", 0, "\"default\"", "\"default\"", 1);
        hmoe__get_double(&rope, "rope_theta", 1, &inner);
        hmoe__get_limit(&rope, "partial_rotary_factor", 1, 1, all);
        while (*object == '{' && (member = hmoe__json_next(&at, 1)) != NULL)
            if (!hmoe__json_is(member, "rope_type") && !hmoe__json_is(member, "rope_theta")
                && !hmoe__json_is(member, "partial_rotary_factor"))
                hmoe__wrong(&rope, "rope_parameters", "says more");   /* some scaling */
        if (rope.wrong) hmoe__wrong(r, "rope_parameters", "is not plain RoPE with a rope_theta");
    }
    c->rope_theta = newer ? inner : missing;
    hmoe__get_double(r, "rope_theta", !newer && missing == 0, &c->rope_theta);
    hmoe__get_limit(r, "partial_rotary_factor", 1, 1, all);
    if (newer && inner != c->rope_theta)
        hmoe__wrong(r, "rope_theta", "differs from rope_parameters");
}

/* Reads "balance" and "balance_rate". A missing member means off. */
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

/* A model of type "hmoe" must have all keys. A Mixtral has no keys of ours; then they
   get the values with which the model computes what Mixtral computes. Its own keys that may
   be left out get the values that transformers gives them. */
static hmoe_status hmoe__parse_config(hmoe_config *c, const char *text, const char *path,
                                      char *message) {
    hmoe__reader reader = { text, 0, "", NULL }, *r = &reader;
    double list[256];
    const char *kv;
    char why[HMOE_MESSAGE_SIZE], key[HMOE_LOSS_TERMS][32];
    int ours = hmoe__get_choice(r, "model_type", 1, "\"hmoe\"", "\"mixtral\"", 0), widest, n;
    memset(c, 0, sizeof *c);
    c->C = hmoe__get_int(r, "hidden_size", 0);
    c->L = hmoe__get_int(r, "num_hidden_layers", 0);
    c->NH = hmoe__get_int(r, "num_attention_heads", 0);
    kv = hmoe__member(r, "num_key_value_heads", 0);
    c->NKV = !ours && kv && !strncmp(kv, "null", 4)
             ? c->NH : hmoe__get_int(r, "num_key_value_heads", ours ? 0 : 8);
    if (!c->NKV || c->NH % c->NKV)
        hmoe__wrong(r, "num_key_value_heads", "must divide num_attention_heads");
    c->E = hmoe__get_int(r, "num_local_experts", ours ? 0 : 8);
    c->K = hmoe__get_int(r, "num_experts_per_tok", ours ? 0 : 2);
    c->V = hmoe__get_int(r, "vocab_size", 0);
    c->T = hmoe__get_int(r, "max_position_embeddings", ours ? 0 : 131072);
    widest = hmoe__get_int(r, "intermediate_size", 0);
    c->rms_norm_eps = 1e-5;
    hmoe__get_double(r, "rms_norm_eps", ours, &c->rms_norm_eps);
    hmoe__read_rope(r, c, ours ? 0 : 1e6);
    hmoe__get_choice(r, "hidden_act", 0, "\"silu\"", "\"silu\"", 1);
    if (ours || !hmoe__is_true(r, "tie_word_embeddings"))
        hmoe__get_choice(r, "tie_word_embeddings", 0, "false", "null", 0);
    hmoe__get_choice(r, "attention_bias", 0, "false", "null", 0);
    hmoe__get_choice(r, "rope_scaling", 0, "null", "false", 0);
    if (!hmoe__get_choice(r, "quantization_config", 0, "null", "{", 1))
        hmoe__wrong(r, "quantization_config", "says that the weights are quantised: convert them "
                    "to F32, F16 or BF16 first");
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
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) {  /* older files lack later terms */
        snprintf(key[i], sizeof key[i], "%s_coef", hmoe_loss_terms[i].name);
        hmoe__get_double(r, key[i], ours && i <= HMOE_Z, &c->loss_coef[i]);
    }
    c->vocab_size = hmoe__get_list(r, "vocab", 0, list, 255);
    for (int i = 0; i < c->vocab_size; i++) c->vocab[i] = (unsigned char)list[i];
    HMOE__TRY(hmoe__reader_status(r, path, message));
    if (hmoe_check_config(c, why)) return HMOE__CORRUPT(message, "%.300s: %.200s", path, why);
    return HMOE_OK;
}

hmoe_status hmoe_load_config(hmoe_config *config, const char *dir, char *message) {
    char path[HMOE__PATH_SIZE], *text;
    hmoe_status status = hmoe__read_json_file(&text, path, dir, "config.json", 1 << 20, message);
    if (!status) status = hmoe__parse_config(config, text, path, message);
    HMOE_FREE(text);
    return status;
}

/* A type of numbers in a file. widen, if not NULL, turns n of them into hmoe_real, in
   place. */
typedef struct hmoe__format {
    const char *name;
    size_t size;               /* bytes of one number */
    void (*widen)(hmoe_real *numbers, size_t n);
} hmoe__format;

/* F32 to double, backwards, because doubles are wider. */
static void hmoe__widen_float(hmoe_real *numbers, size_t n) {
    while (sizeof *numbers > sizeof(float) && n-- > 0) {
        float value;
        memcpy(&value, (const char *)numbers + n * sizeof value, sizeof value);
        numbers[n] = (hmoe_real)value;
    }
}

/* Place of a tensor among the bytes of a file (exact below 2^53). */
typedef struct hmoe__place {
    double begin, end;  /* end 0: not found so far */
    const hmoe__format *format;
    size_t tensor;
    uint64_t hash;      /* of its name; unique within a model */
} hmoe__place;

typedef struct hmoe__input {
    FILE *file;
    char path[HMOE__PATH_SIZE];
    char *header;
    double data, data_bytes;   /* start and number of the tensors' bytes */
    int training;              /* 1: a training.safetensors */
    const hmoe__format *formats;   /* [format_count] those that may be read */
    int format_count;
    const char *(*no_format)(const char *dtype);   /* says what is wrong with others, or NULL */
    const char *ignored;           /* NULL, or the end of names of tensors that do not matter */
    double ignored_bytes;          /*   and their bytes in this file */
    hmoe__place *place;  /* [places] one for each tensor of each array, ordered by hash */
    hmoe__place *here;   /* [found] those in this file, in its order */
    size_t places, found;
} hmoe__input;

/* Reads the description of one tensor. Returns an error, or NULL. */
static const char *hmoe__read_entry(const char *entry, const hmoe_tensor *t,
                                    const hmoe__input *in, hmoe__place *place) {
    int repeats = 0, type = 0;
    const char *dtype = hmoe__json_find(entry, "dtype", &repeats);
    const char *shape = hmoe__json_find(entry, "shape", &repeats);
    const char *offsets = hmoe__json_find(entry, "data_offsets", &repeats);
    double dims[2] = { 0, 1 }, at[2] = { 0, 0 };
    if (!dtype || !shape || !offsets || repeats)
        return "must have one dtype, shape and data_offsets";
    while (type < in->format_count && !hmoe__json_is(dtype, in->formats[type].name)) type++;
    if (type == in->format_count)
        return in->no_format ? in->no_format(dtype)
               : sizeof(hmoe_real) == 8 && in->training ? "must be F64, the type of this build"
               : "must be F32";
    if (hmoe__json_list(shape, dims, 2, HMOE_MAX_DIM) != t->dims || dims[0] != t->rows
        || dims[1] != t->cols) return "has another shape than config.json says";
    place->format = &in->formats[type];
    if (hmoe__json_list(offsets, at, 2, in->data_bytes) != 2
        || at[1] - at[0] != (double)t->rows * t->cols * (double)place->format->size)
        return "has data_offsets that do not fit";
    if (place->end > 0) return "comes twice";
    place->begin = at[0], place->end = at[1];
    return NULL;
}

/* The same for a tensor that does not matter, if its name ends so. */
static const char *hmoe__read_ignored(const char *entry, const char *name, hmoe__input *in) {
    const char *offsets;
    double at[2] = { 0, 0 };
    size_t n = strlen(name), end = in->ignored ? strlen(in->ignored) : n + 1;
    int repeats = 0;
    if (n < end || strcmp(name + n - end, in->ignored)) return "is not a tensor of this model";
    offsets = hmoe__json_find(entry, "data_offsets", &repeats);
    if (!offsets || hmoe__json_list(offsets, at, 2, in->data_bytes) != 2 || at[1] < at[0])
        return "has data_offsets that do not fit";
    in->ignored_bytes += at[1] - at[0];
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

/* The tensors of a file must fill its data without holes and overlaps. Those that do not
   matter fill holes of their size. */
static const char *hmoe__check_places(const hmoe_model *m, hmoe__input *in, char *name) {
    double at = 0, holes = in->ignored_bytes;
    qsort(in->here, in->found, sizeof *in->here, hmoe__by_begin);
    for (size_t i = 0; i < in->found; at = in->here[i++].end) {
        double hole = in->here[i].begin - at;
        holes -= hole;
        if (hole < 0 || holes < 0) {
            hmoe__saved_tensor(m, in->here[i].tensor, name);
            return "overlaps the one before it, or leaves a hole there";
        }
    }
    strcpy(name, "the last tensor");
    return at + holes == in->data_bytes ? NULL : "does not end where the file does";
}

static uint64_t hmoe__get_uint64(hmoe__reader *r, const char *name, int needed) {
    const char *digits = hmoe__member(r, name, needed);
    uint64_t number = 0;
    char *end = NULL;
    errno = 0;
    if (digits) number = strtoull(digits, &end, 10);
    if (digits && (errno || !isdigit((unsigned char)*digits) || *end != '"'))
        hmoe__wrong(r, name, "must be a whole number of 64 bits");
    return number;
}

static void hmoe__read_state(hmoe__reader *r, hmoe_model *m) {
    m->seed = hmoe__get_uint64(r, "seed", 1);
    m->best_of = hmoe__get_uint64(r, "best_of", 0);   /* older files lack these two */
    m->recipe = hmoe__get_uint64(r, "recipe", 0);
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
    in->found = 0, in->ignored_bytes = 0;
    while (!wrong && (member = hmoe__json_next(&at, 1)) != NULL) {
        if (hmoe__json_is(member, "__metadata__")) continue;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(member + 1, "\""), member + 1);
        named.hash = hmoe__hash(name);
        place = (hmoe__place *)bsearch(&named, in->place, in->places, sizeof named, hmoe__by_hash);
        wrong = !place ? hmoe__read_ignored(hmoe__json_value(member), name, in)
                : hmoe__read_entry(hmoe__json_value(member),
                                   &m->tensors[place->tensor % m->tensor_count], in, place);
        if (!wrong && place) in->here[in->found++] = *place;
    }
    if (!wrong) wrong = hmoe__check_places(m, in, name);
    if (!wrong) return HMOE_OK;
    return HMOE__CORRUPT(m->message, "%.300s: %s %s", in->path, name, wrong);
}

/* Opens a file and reads its header. */
static hmoe_status hmoe__open_tensors(hmoe_model *m, hmoe__input *in) {
    uint64_t length = 0;
    int64_t bytes = 0;
    HMOE__TRY(hmoe__open_input(&in->file, &bytes, in->path, m->message));
    if (fread(&length, sizeof length, 1, in->file) != 1) bytes = 0;
    hmoe__order_bytes(&length, 1, sizeof length);
    if (bytes < 8 || length > (uint64_t)bytes - 8)
        return HMOE__CORRUPT(m->message, "%.300s: the header's length is invalid", in->path);
    in->data = 8 + (double)length;
    in->data_bytes = (double)bytes - in->data;
    return hmoe__read_json(&in->header, in->file, length, 1 << 28, in->path, m->message);
}

static void hmoe__close_input(hmoe__input *in) {
    if (in->file) fclose(in->file);
    HMOE_FREE(in->header);
    in->file = NULL, in->header = NULL;
}

/* A run must not go on from damaged numbers: a NaN would show later, as something else's
   fault. */
static hmoe_status hmoe__check_chunk(const hmoe_model *m, const hmoe__input *in, size_t saved,
                                     const hmoe_real *x, size_t n, char *message) {
    int squares = saved / m->tensor_count == 2;
    char name[HMOE_NAME_SIZE + 16];
    if (m->tensors[saved % m->tensor_count].state) return HMOE_OK;   /* hmoe__check_state */
    for (size_t i = 0; i < n; i++) {
        if (isfinite(x[i]) && (!squares || x[i] >= 0)) continue;
        hmoe__saved_tensor(m, saved, name);
        return HMOE__CORRUPT(message, "%.300s: %s must be finite%s: it has %g", in->path, name,
                             squares ? " and not negative" : "", (double)x[i]);
    }
    return HMOE_OK;
}

static hmoe_status hmoe__read_tensors(hmoe_model *m, hmoe__input *in, hmoe_real *chunk) {
    for (size_t i = 0; i < in->found; i++) {
        const hmoe__place *place = &in->here[i];   /* in the file's order */
        const hmoe_tensor *t = &m->tensors[place->tensor % m->tensor_count];
        hmoe_real *to = hmoe__saved_array(m, place->tensor / m->tensor_count) + t->offset;
        size_t all = (size_t)t->rows * t->cols, size = place->format->size;
        int failed = hmoe__seek(in->file, (int64_t)(in->data + place->begin), SEEK_SET);
        for (size_t n, at = 0; !failed && at < all; at += n) {
            n = all - at < hmoe__chunk ? all - at : hmoe__chunk;
            failed = fread(chunk, size, n, in->file) != n;
            hmoe__order_bytes(chunk, n, size);
            if (failed) break;
            if (place->format->widen) place->format->widen(chunk, n);
            if (in->training)
                HMOE__TRY(hmoe__check_chunk(m, in, place->tensor, chunk, n, m->message));
            if (m->processes) m->processes->upload(m, chunk, place->tensor, at, n);
            else m->backend->upload(to + at, chunk, n * sizeof *chunk);
        }
        if (failed) return HMOE__FAIL(m->message, HMOE_IO, "cannot read %.300s", in->path);
    }
    return hmoe__synchronize(m);
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

/* Checks biases and top_p here, because hmoe_forward would not notice a NaN in them. */
static hmoe_status hmoe__check_state(hmoe_model *m, const char *path) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[i];
        int is_p = strstr(t->name, ".top_p") != NULL;
        hmoe_real x[HMOE_MAX_EXPERTS];
        if (!t->state) continue;
        m->backend->download(x, m->params + t->offset, (size_t)t->rows * sizeof *x);
        for (int k = 0; k < t->rows; k++)
            if (!isfinite(x[k]) || (is_p && !(x[k] > 0 && x[k] <= 1)))
                return HMOE__CORRUPT(m->message, "%.300s: %s must be %s: it is %g", path, t->name,
                                     is_p ? "above 0 and at most 1" : "finite", (double)x[k]);
    }
    return hmoe__synchronize(m);
}

/* Fills in->place for a model, and sets what hmoe_save writes as the formats. */
static hmoe_status hmoe__begin_input(hmoe__input *in, const hmoe_model *m, int training,
                                     char *message) {
    static const hmoe__format f32 = { "F32", 4, hmoe__widen_float }, f64 = { "F64", 8, NULL };
    char name[HMOE_NAME_SIZE + 16];
    memset(in, 0, sizeof *in);
    in->training = training;
    in->formats = training && sizeof(hmoe_real) == 8 ? &f64 : &f32;
    in->format_count = 1;
    in->places = m->tensor_count * (training ? 3 : 1);
    in->place = (hmoe__place *)hmoe__alloc_zeroed(in->places, 2 * sizeof *in->place);
    if (!in->place)
        return hmoe__no_memory(message, 2.0 * (double)(in->places * sizeof *in->place), "a header");
    in->here = in->place + in->places;
    for (size_t i = 0; i < in->places; i++) {
        hmoe__saved_tensor(m, i, name);
        in->place[i].tensor = i;
        in->place[i].hash = hmoe__hash(name);
    }
    qsort(in->place, in->places, sizeof *in->place, hmoe__by_hash);
    return HMOE_OK;
}

static void hmoe__end_input(hmoe__input *in) {
    hmoe__close_input(in);
    HMOE_FREE(in->place);
}

/* After all files: names the first tensor that none of them has. */
static hmoe_status hmoe__check_complete(hmoe_model *m, const hmoe__input *in) {
    size_t missing = in->places;
    char name[HMOE_NAME_SIZE + 16];
    for (size_t i = 0; i < in->places; i++)
        if (in->place[i].end == 0 && in->place[i].tensor < missing) missing = in->place[i].tensor;
    if (missing == in->places) return hmoe__check_state(m, in->path);
    hmoe__saved_tensor(m, missing, name);
    return HMOE__CORRUPT(m->message, "%.300s: %s is missing", in->path, name);
}

/* Least size in bytes of the files of such a model, with `size` bytes per number. */
static double hmoe__least_bytes(const hmoe_config *c, size_t size) {
    hmoe_model counted;
    memset(&counted, 0, sizeof counted);
    counted.config = *c;
    hmoe__list_tensors(&counted, NULL);
    return (double)counted.tensor_count * 64  /* name, dtype, shape, data_offsets */
           + (double)counted.param_count * (double)size;
}

/* `bytes`: the size of all files. Checked before anything is allocated for the model. */
static hmoe_status hmoe__check_bytes(double bytes, double least, const char *path,
                                     char *message) {
    if (bytes >= least) return HMOE_OK;
    return HMOE__CORRUPT(message, "%.300s: %.0f bytes, but config.json describes a model of more "
                         "than %.0f", path, bytes, least);
}

static const char *hmoe__weights_file(int training) {
    return training ? "training.safetensors" : "model.safetensors";
}

/* Checks that the weights' file is large enough for m->config. */
static hmoe_status hmoe__check_size(hmoe_model *m, const char *dir, int training) {
    size_t size = training ? 3 * sizeof(hmoe_real) : sizeof(float);
    char path[HMOE__PATH_SIZE];
    FILE *file = NULL;
    int64_t bytes = 0;
    HMOE__TRY(hmoe_check_config(&m->config, m->message));
    HMOE__TRY(hmoe__path(path, dir, hmoe__weights_file(training), m->message));
    HMOE__TRY(hmoe__open_input(&file, &bytes, path, m->message));
    fclose(file);
    return hmoe__check_bytes((double)bytes, hmoe__least_bytes(&m->config, size), path,
                             m->message);
}

static hmoe_status hmoe__check_directory(hmoe_model *m, const char *dir, int training) {
    HMOE__TRY(hmoe_load_config(&m->config, dir, m->message));
    return hmoe__check_size(m, dir, training);
}

static hmoe_status hmoe__read_checkpoint(hmoe_model *m, const char *dir, int training) {
    hmoe__input in;
    hmoe_status status = hmoe__begin_input(&in, m, training, m->message);
    if (!status) status = hmoe__path(in.path, dir, hmoe__weights_file(training), m->message);
    if (!status) status = hmoe__load_file(m, &in);
    if (!status) status = hmoe__check_complete(m, &in);
    hmoe__end_input(&in);
    return status;
}

hmoe_status hmoe_load_as(hmoe_model *m, const hmoe_config *given, const char *dir, int max_B,
                         int training) {
    hmoe_config config;
    hmoe_status status;
    if (given) m->config = *given;
    status = hmoe__by_first_process(m, given ? hmoe__check_size : hmoe__check_directory, dir,
                                    training);
    config = m->config;
    if (!status) status = hmoe__build(m, &config, 0, max_B, training, 0);
    HMOE__TRY(hmoe__free_on_failure(m, status));
    status = hmoe__by_first_process(m, hmoe__read_checkpoint, dir, training);
    return hmoe__free_on_failure(m, status);
}

hmoe_status hmoe_load(hmoe_model *m, const char *dir, int max_B, int training) {
    return hmoe_load_as(m, NULL, dir, max_B, training);
}

#endif /* HMOE_NO_FILES */

#if defined(__clang__)
#pragma clang diagnostic pop
#endif
#endif /* HMOE_IMPLEMENTED */
#endif /* HMOE_IMPLEMENTATION */

/* MIT License - Copyright (c) 2026 the hmoe.h authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this
   software and associated documentation files (the "Software"), to deal in the Software
   without restriction, including without limitation the rights to use, copy, modify,
   merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
   permit persons to whom the Software is furnished to do so, subject to the following
   conditions: The above copyright notice and this permission notice shall be included in
   all copies or substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
   INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A
   PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
   HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
   CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR
   THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
