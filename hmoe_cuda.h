/* hmoe_cuda.h - the steps of hmoe.h on a GPU: what a program calls. hmoe_cuda.cu is behind it.

       hmoe_model m = { 0 };
       m.steps = hmoe_cuda(HMOE_BF16, message);     NULL: no GPU that can; the message says why
       if (!m.steps || hmoe_create(&m, ...)) ...     and everything else stays as it was */
#ifndef HMOE_CUDA_H
#define HMOE_CUDA_H

#include "hmoe.h"

#ifdef __cplusplus
extern "C" {
#endif

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
#endif
