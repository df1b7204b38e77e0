/* cli_peers.h - a program as one of several processes: built with mpicc and -DHMOE_MPI, started by
   mpirun. Without -DHMOE_MPI all functions here do nothing. cli.h includes it.

   Only the first process reads, writes and prints; the others' standard output is discarded. If
   all processes have the same error, it is printed once and all end. If one process has an error
   (for example a full disk), it prints the error and ends the others a second later. */
#ifndef CLI_PEERS_H
#define CLI_PEERS_H

#ifndef HMOE_MPI

typedef struct cli_peers { int none; } cli_peers;
#define CLI_PEERS(p)
static inline void cli_begin(const char *program, int *argc, char ***argv) {
    cli_program = program;
    (void)argc, (void)argv;
}
static inline const char *cli_launcher(void) { return ""; }
static inline void cli_join(cli_peers *p, hmoe_model *m, const cli_option *options, int n) {
    (void)p, (void)m, (void)options, (void)n;
}
static inline unsigned char *cli_read_once(const char *path, size_t *size, const char *hint) {
    return cli_read(path, size, hint);
}
static inline void cli_share(void *bytes, size_t size) { (void)bytes, (void)size; }
static inline void cli_introduce_peers(const cli_peers *p, const hmoe_model *m) {
    (void)p, (void)m;
}

#else
#include "hmoe_parallel.h"
#include "hmoe_mpi.h"

typedef struct cli_peers {
    int expert_ranks;
    const char *place;
    int placed;                /* of how many experts it says the rank; 0: of none */
    hmoe_wire wire;
    hmoe_parallel parallel;
} cli_peers;
#define CLI_PEERS(p) \
    CLI_INT("--expert-ranks", &(p).expert_ranks, 1, 256, "all", \
            "ranks that share the experts, and the others copy them"), \
    CLI_TEXT("--place", &(p).place, "RULE", "pairs", "places of experts: pairs, contiguous," \
             "\n                             or a rank for each, such as 0,1,1,0"),

static MPI_Comm cli_end;   /* processes that end wait for each other here */
static hmoe_parallel *cli_joined;

static void cli_end_all(int status, const char *text) {
    MPI_Request all;
    double began = MPI_Wtime();
    int here = 0;
    if (cli_rank == 0 && *text) fprintf(stderr, "%s: %s\n", cli_program, text);
    MPI_Ibarrier(cli_end, &all);
    while (!here && MPI_Wtime() < began + 1) MPI_Test(&all, &here, MPI_STATUS_IGNORE);
    if (here) exit(status);
    if (cli_rank > 0 && *text) fprintf(stderr, "%s: process %d: %s\n", cli_program, cli_rank, text);
    MPI_Abort(MPI_COMM_WORLD, status);
}

static void cli_finalize(void) { MPI_Finalize(); }

static inline void cli_begin(const char *program, int *argc, char ***argv) {
    cli_program = program;
    int threads;
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &threads);   /* only one thread calls MPI */
    atexit(cli_finalize);
    MPI_Comm_rank(MPI_COMM_WORLD, &cli_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &cli_ranks);
    MPI_Comm_dup(MPI_COMM_WORLD, &cli_end);
    cli_at_failure = cli_end_all;
    if (cli_rank > 0 && !freopen("/dev/null", "w", stdout)) cli_cannot("open", "/dev/null");
}

/* The command that starts all of them. */
static inline const char *cli_launcher(void) {
    static char launch[32];
    snprintf(launch, sizeof launch, "mpirun -n %d ", cli_ranks);
    return launch;
}

/* Ends all processes if their options differ. --threads may differ. */
static inline void cli_same_options(const cli_option *options, int n) {
    char mine[1024], first[1024];
    for (const cli_option *o = options; o < options + n; o++) {
        int other = cli_ranks, least;
        memset(mine, 0, sizeof mine);
        const char *text = o->kind == CLI_IS_TEXT ? *(const char **)o->value : NULL;
        if (o->kind == CLI_IS_TEXT) snprintf(mine, sizeof mine, "%s", text ? text : "none");
        else if (o->kind == CLI_IS_SEED)
            snprintf(mine, sizeof mine, "%llu", (unsigned long long)*(const uint64_t *)o->value);
        else snprintf(mine, sizeof mine, "%s", cli_name_of(o, cli_get(o)));
        if (!o->given && strlen(mine) < 900) strcat(mine, " by default");   /* may differ */
        memcpy(first, mine, sizeof mine);
        MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
        if (strcmp(mine, first) && strcmp(o->name, "--threads")) other = cli_rank;
        MPI_Allreduce(&other, &least, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
        if (least == cli_ranks) continue;
        MPI_Bcast(mine, sizeof mine, MPI_CHAR, least, MPI_COMM_WORLD);
        cli_fail(2, "%s: process 0 has %s and process %d %s: give all of them the same", o->name,
                 first, least, mine);
    }
}

/* --place: a word, or the rank of each expert. */
static inline void cli_place(cli_peers *p) {
    const char *at = p->place;
    int word = cli_choice("pairs|contiguous", at);
    p->parallel.placement = word < 0 ? HMOE_GIVEN : word ? HMOE_CONTIGUOUS : HMOE_PAIRS;
    for (int e = 0; word < 0 && e < HMOE_MAX_EXPERTS; e++) p->parallel.device[e] = -1;
    for (int e = 0; word < 0; e++) {
        char *end;
        long rank = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || rank < 0 || rank >= p->wire.expert_ranks
            || e == HMOE_MAX_EXPERTS)
            cli_fail(2, "--place %.80s: needs pairs, contiguous, or for each expert a rank from 0 "
                     "to %d", p->place, p->wire.expert_ranks - 1);
        p->parallel.device[e] = (int)rank, p->placed = e + 1;
        if (!*end) break;
        at = end + 1;
    }
}

/* Joins the other processes, to train m with them. */
static inline void cli_join(cli_peers *p, hmoe_model *m, const cli_option *options, int n) {
    char why[HMOE_MESSAGE_SIZE];
    cli_same_options(options, n);
    for (const cli_option *o = options; o < options + n; o++)
        if (!strcmp(o->name, "--backend") && *(const int *)o->value)
            cli_fail(2, "--backend cuda: several processes compute on the cpu only");
    if (p->expert_ranks && cli_ranks % p->expert_ranks)
        cli_fail(2, "--expert-ranks %d: there are %d processes, which is no multiple of it",
                 p->expert_ranks, cli_ranks);
    if (hmoe_mpi(&p->wire, p->expert_ranks, why) || hmoe_join(&p->parallel, &p->wire, why))
        cli_fail(1, "%s", why);
    cli_place(p);
    cli_joined = &p->parallel;
    hmoe_train_with(m, &p->parallel);
}

/* Reads a file. The first process reads it for all. */
static inline unsigned char *cli_read_once(const char *path, size_t *size, const char *hint) {
    unsigned char *bytes = cli_rank ? NULL : cli_read(path, size, hint);
    hmoe_broadcast(cli_joined, size, sizeof *size);
    if (cli_rank) bytes = (unsigned char *)cli_alloc(*size + 1);
    hmoe_broadcast(cli_joined, bytes, *size);
    bytes[*size] = 0;
    return bytes;
}

/* Gives all processes what the first one has. */
static inline void cli_share(void *bytes, size_t size) { hmoe_broadcast(cli_joined, bytes, size); }

static inline void cli_introduce_peers(const cli_peers *p, const hmoe_model *m) {
    int D = p->wire.expert_ranks;
    if (p->placed > m->config.E)
        cli_fail(2, "--place %.80s: there are only %d experts", p->place, m->config.E);
    printf("ranks    %d: experts over %d, %d cop%s; expert parameters of each:", cli_ranks, D,
           cli_ranks / D, cli_ranks == D ? "y" : "ies");
    for (int d = 0; d < D; d++) {
        double params = 0;
        for (int e = 0; e < m->config.E; e++)
            params += p->parallel.device[e] == d ? 3.0 * m->config.C * m->config.H[e] : 0;
        params *= m->config.L;
        printf(" %.0f", params);
    }
    putchar('\n');
}

#endif

/* The sum over all processes. */
static inline double cli_sum(hmoe_model *m, double x) {
    if (m->processes) m->processes->sum(m, &x, 1);
    return x;
}

/* Prints the backend and the processes. */
static inline void cli_introduce(const cli_peers *p, const hmoe_model *m) {
    cli_introduce_peers(p, m);
    if (strcmp(m->backend->name, "cpu")) printf("backend  %s\n", m->backend->name);
#ifdef _OPENMP
    else printf("threads  %d\n", cli_threads(0));
#else
    else printf("threads  1 (built without OpenMP, which would use all cores)\n");
#endif
    fflush(stdout);
}

#endif
