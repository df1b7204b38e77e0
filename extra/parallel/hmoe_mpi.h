/* hmoe_mpi.h - the network of hmoe_parallel.h over MPI (Open MPI, MPICH and others).
   Include it after hmoe_parallel.h in one file, and compile that file with mpicc.

       MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
       hmoe_wire wire;
       hmoe_parallel parallel;
       if (hmoe_mpi(&wire, 2, message) || hmoe_join(&parallel, &wire, message))   groups of two
           MPI_Abort(MPI_COMM_WORLD, 1);
       hmoe_train_with(&model, &parallel);
       ... hmoe_create, hmoe_forward, hmoe_backward, hmoe_update, hmoe_save, as with one process
       hmoe_free(&model), hmoe_leave(&parallel), hmoe_mpi_free(&wire);
       MPI_Finalize();

   An error of MPI ends all processes (MPI's default). All machines must store numbers in
   the same way. */
#ifndef HMOE_MPI_H
#define HMOE_MPI_H

#include <mpi.h>

#include "hmoe_parallel.h"

/* Fills the table for all processes of MPI_COMM_WORLD, in groups of expert_ranks
   neighbours; 0: one group. */
static inline hmoe_status hmoe_mpi(hmoe_wire *wire, int expert_ranks, char *message);
static inline void hmoe_mpi_free(hmoe_wire *wire);   /* before MPI_Finalize */

typedef struct hmoe__mpi_sets { MPI_Comm of[3]; } hmoe__mpi_sets;   /* in hmoe_among's order */

static inline MPI_Comm hmoe__mpi_set(const hmoe_wire *wire, hmoe_among among) {
    return ((const hmoe__mpi_sets *)wire->self)->of[among];
}

/* An item is one MPI type. So counts stay int, however wide a row is. */
static inline void hmoe__mpi_exchange(const hmoe_wire *wire, hmoe_among among,
                                      const hmoe_parcels *out, const hmoe_parcels *in,
                                      size_t item) {
    MPI_Datatype row;
    MPI_Type_contiguous((int)item, MPI_BYTE, &row);
    MPI_Type_commit(&row);
    MPI_Alltoallv(out->array, out->count, out->at, row, in->array, in->count, in->at, row,
                  hmoe__mpi_set(wire, among));
    MPI_Type_free(&row);
}

/* Bytes that are sent at a time: MPI counts with ints. */
static inline size_t hmoe__mpi_part(size_t n) { return n < 1u << 30 ? n : 1u << 30; }

static inline void hmoe__mpi_send(const hmoe_wire *wire, int to, const void *bytes, size_t n) {
    const char *at = (const char *)bytes;
    for (size_t part; n > 0; at += part, n -= part) {
        part = hmoe__mpi_part(n);
        MPI_Send(at, (int)part, MPI_BYTE, to, 0, hmoe__mpi_set(wire, HMOE_ALL));
    }
}

static inline void hmoe__mpi_receive(const hmoe_wire *wire, int from, void *bytes, size_t n) {
    char *at = (char *)bytes;
    for (size_t part; n > 0; at += part, n -= part) {
        part = hmoe__mpi_part(n);
        MPI_Recv(at, (int)part, MPI_BYTE, from, 0, hmoe__mpi_set(wire, HMOE_ALL),
                 MPI_STATUS_IGNORE);
    }
}

static inline hmoe_status hmoe_mpi(hmoe_wire *wire, int expert_ranks, char *message) {
    hmoe__mpi_sets *sets = (hmoe__mpi_sets *)HMOE_MALLOC(sizeof *sets);
    memset(wire, 0, sizeof *wire);
    if (!sets) return HMOE__FAIL(message, HMOE_OUT_OF_MEMORY, "out of memory for MPI");
    MPI_Comm_rank(MPI_COMM_WORLD, &wire->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &wire->size);
    wire->expert_ranks = expert_ranks > 0 ? expert_ranks : wire->size;
    MPI_Comm_dup(MPI_COMM_WORLD, &sets->of[HMOE_ALL]);
    MPI_Comm_split(sets->of[HMOE_ALL], wire->rank / wire->expert_ranks, wire->rank,
                   &sets->of[HMOE_GROUP]);
    MPI_Comm_split(sets->of[HMOE_ALL], wire->rank % wire->expert_ranks, wire->rank,
                   &sets->of[HMOE_COPIES]);
    wire->self = sets;
    wire->exchange = hmoe__mpi_exchange;
    wire->send = hmoe__mpi_send, wire->receive = hmoe__mpi_receive;
    return HMOE_OK;
}

static inline void hmoe_mpi_free(hmoe_wire *wire) {
    hmoe__mpi_sets *sets = (hmoe__mpi_sets *)wire->self;
    for (int i = 0; sets && i < 3; i++) MPI_Comm_free(&sets->of[i]);
    HMOE_FREE(sets);
    wire->self = NULL;
}

#endif
