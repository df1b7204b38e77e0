/* check.h - what the checkers share. Each check.c gives four functions:

     int make_case(int i)              describes input i, lays out its arrays; 0: there is none
     void call_case(void)              calls the functions, as ANSWER(name)(...), on them
     hmoe_config training_config(void) what is trained afterwards
     void experiment(void)             what there is to see then

   main asks hmoe.h's own functions and the learner's about every input, compares what they wrote,
   tells of the smallest input where they differ, and finds out whether a wrong answer does just the
   same. Where none differs, it trains with both. hmoe_real is double here.

   Arrays lie in one stretch of memory, between fences, and every answer starts from the same.
   Before and after that stretch nothing is, so that who writes far beside an array crashes. */

#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static int make_case(int i);
static void call_case(void);
static hmoe_config training_config(void);
static void experiment(void);

#define ANSWER(name) (answers_##name[check_answer])

/* How this program ends: numbers that no exit() of the learner's has by chance. */
enum check_end { CHECK_OK = 100, CHECK_DIFFERS, CHECK_CRASH, CHECK_TIME, CHECK_MEMORY, CHECK_FILE };
enum { CHECK_ROOM = 1 << 21, CHECK_FENCE = 64, CHECK_ARRAYS = 40,
       CHECK_ANSWERS = sizeof check_messages / sizeof *check_messages };

/* What an array is for the function. */
typedef enum check_kind {
    INPUT,      /* only to be read */
    OUTPUT,     /* to be written; what hmoe.h leaves alone may hold anything */
    ADDED,      /* to be added to */
    SCRATCH,    /* may be used up */
    HIDDEN,     /* plays no part, and is not shown */
    CLUE        /* tells wrong answers apart, and is neither right nor wrong */
} check_kind;

typedef struct check_array {
    const char *name;
    int rows, cols, is_int;     /* rows 0: one of a single dimension */
    check_kind kind;
    size_t at, bytes;
} check_array;

static unsigned char *check_memory;     /* [CHECK_ROOM] */
static unsigned char check_before[CHECK_ROOM], check_right[CHECK_ROOM], check_yours[CHECK_ROOM];
static check_array check_list[CHECK_ARRAYS];
static int check_arrays;
static size_t check_used;
static char check_text[400];          /* what the input is, in words */
static uint64_t check_draws;
static int check_part;                /* which of the functions it is for: 0, 1, ... */
static unsigned check_wrong_parts;    /* of which the learner's gave other results: bit by bit */
static int check_learner = 1;         /* the answer that is judged; tests judge wrong ones */
static const double check_unset = -7.0e77;      /* what outputs hold before */
static const int check_unset_int = -777777;

static void check_get_memory(void) {
    const size_t nothing = 1 << 24;
    void *all = mmap(NULL, CHECK_ROOM + 2 * nothing, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) abort();
    check_memory = (unsigned char *)all + nothing;
    if (mprotect(check_memory, CHECK_ROOM, PROT_READ | PROT_WRITE)) abort();
}

/* --- for check.c: an input ------------------------------------------------------------------- */

/* What is special about this input, and its sizes. */
static void describe(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(check_text, sizeof check_text, format, args);
    va_end(args);
}

/* Where an exercise has several functions: which of them this input is for. */
static void for_function(int number) { check_part = number; }

static void *check_add(const char *name, int rows, int cols, int is_int, check_kind kind) {
    check_array *a = &check_list[check_arrays++];
    size_t n = (size_t)(rows ? rows : 1) * cols, size = is_int ? sizeof(int) : sizeof(double);
    a->name = name, a->rows = rows, a->cols = cols, a->is_int = is_int, a->kind = kind;
    a->at = check_used + CHECK_FENCE, a->bytes = n * size;
    check_used = (a->at + a->bytes + CHECK_FENCE + 63) / 64 * 64;
    if (check_arrays >= CHECK_ARRAYS || check_used > CHECK_ROOM) abort();
    memset(check_memory + a->at - CHECK_FENCE, 0xa5, check_used - a->at + CHECK_FENCE);
    for (size_t i = 0; i < n; i++)
        if (is_int) ((int *)(void *)(check_memory + a->at))[i] = check_unset_int;
        else ((double *)(void *)(check_memory + a->at))[i] = check_unset;
    return check_memory + a->at;
}

/* An array [cols], where rows is 0, or [rows, cols]. */
static hmoe_real *reals(const char *name, int rows, int cols, check_kind kind) {
    return (hmoe_real *)check_add(name, rows, cols, 0, kind);
}

static int *ints(const char *name, int rows, int cols, check_kind kind) {
    return (int *)check_add(name, rows, cols, 1, kind);
}

/* Fills it with numbers from scale * N(0, 1), two decimals each, so that they can be read. */
static hmoe_real *random_reals(const char *name, int rows, int cols, check_kind kind,
                               double scale) {
    hmoe_real *x = reals(name, rows, cols, kind);
    check_draws++;
    for (int i = 0; i < (rows ? rows : 1) * cols; i++)
        x[i] = round(100 * scale * hmoe_normal(17, check_draws, (uint64_t)i, 0)) / 100;
    return x;
}

static int pick(int low, int high) {        /* low <= the result <= high */
    return low + (int)(hmoe_random(17, 9999, ++check_draws, 0) % (uint64_t)(high - low + 1));
}

/* The arrays of routes, in groups that a function reads or writes: logits; P; lse and entropy; the
   choice (count, expert, gate); the lists of the experts. */
static hmoe_routes make_routes(int N, int E, int slots, check_kind logits, check_kind P,
                               check_kind sums, check_kind choice, check_kind lists) {
    hmoe_routes r;
    memset(&r, 0, sizeof r);                       /* no bias, no top_p of its own */
    r.slots = slots;
    r.logits = reals("logits", N, E, logits);
    r.P = reals("P", N, E, P);
    r.lse = reals("lse", 0, N, sums), r.entropy = reals("entropy", 0, N, sums);
    r.count = ints("count", 0, N, choice);
    r.expert = ints("expert", N, slots, choice), r.gate = reals("gate", N, slots, choice);
    r.expert_start = ints("expert_start", 0, E + 1, lists);
    r.row_token = ints("row_token", 0, N * slots, lists);
    r.row_gate = reals("row_gate", 0, N * slots, lists);
    r.row = ints("row", N, slots, lists);
    return r;
}

/* Logits of this kind for N tokens, and their softmax with its sums. */
typedef enum check_router { RANDOM, TIES, EXTREME, FAVOURITE } check_router;

static void fill_router(const hmoe_routes *r, int N, int E, check_router kind) {
    check_draws++;
    for (int i = 0; i < N * E; i++) {
        double n = round(100 * hmoe_normal(17, check_draws, (uint64_t)i, 0)) / 100;
        r->logits[i] = kind == RANDOM ? n : kind == TIES ? round(n / 2)
                       : kind == EXTREME ? 1000 * n : i % E ? n : n + 20;
    }
    hmoe__router_softmax(r, N, E);
}

/* --- the program is ended for it -------------------------------------------------------------- */

static void check_say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(CHECK_CRASH);
}

/* The last words. A memory that is full shows in that no more can be had. */
static void check_ended(int number) {
    int how = CHECK_CRASH;
    const char *what = "It crashed";
    if (number == SIGXCPU) {
        how = CHECK_TIME, what = "It used up its time (a loop that never ends?)";
    } else if (number == SIGXFSZ) {
        how = CHECK_FILE, what = "It wrote a file of more than a megabyte";
    } else if (mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
        how = CHECK_MEMORY, what = "It took more than a gigabyte of memory";
    } else if (number == SIGSEGV || number == SIGBUS) {
        what = "It crashed: it read or wrote where nothing is (SIGSEGV)";
    } else if (number == SIGFPE) what = "It crashed: it divided an integer by zero (SIGFPE)";
    else if (number == SIGABRT) what = "It crashed: abort() was called, as a failed assert does";
    check_say("\n");
    check_say(what);
    check_say(", on this input:\n    ");
    check_say(check_text);
    check_say("\n");
    _exit(how);
}

static void check_catch(void) {
    static char stack[1 << 16];             /* the other one may be full */
    static const int numbers[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGXCPU, SIGXFSZ };
    stack_t there;
    struct sigaction action;
    memset(&there, 0, sizeof there);
    memset(&action, 0, sizeof action);
    there.ss_sp = stack, there.ss_size = sizeof stack;
    sigaltstack(&there, NULL);
    action.sa_handler = check_ended, action.sa_flags = SA_ONSTACK;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
}

/* --- comparing -------------------------------------------------------------------------------- */

/* Its numbers in one of the copies of the memory. */
static double check_number(const check_array *a, const unsigned char *memory, int i) {
    int whole;
    double number;
    memcpy(&whole, memory + a->at + (a->is_int ? (size_t)i * sizeof whole : 0), sizeof whole);
    memcpy(&number, memory + a->at + (a->is_int ? 0 : (size_t)i * sizeof number), sizeof number);
    return a->is_int ? whole : number;
}

static int check_is_unset(const check_array *a, double x) {
    return a->is_int ? x == check_unset_int : x == check_unset;
}

static int check_length(const check_array *a) { return (a->rows ? a->rows : 1) * a->cols; }

/* The first place where `seen` is not `right`, or -1. Float functions may have been used: about
   six digits count, of the largest number in the array. */
static int check_differs(const check_array *a, const unsigned char *seen,
                         const unsigned char *right) {
    double largest = 0;
    for (int i = 0; i < check_length(a); i++) {
        double size = fabs(check_number(a, right, i));
        if (size > largest && size < 1e70) largest = size;
    }
    for (int i = 0; i < check_length(a); i++) {
        double x = check_number(a, seen, i), y = check_number(a, right, i);
        if (a->kind == OUTPUT && check_is_unset(a, y)) continue;
        if (x == y || (isnan(x) && isnan(y))) continue;
        if (a->is_int || !(fabs(x - y) <= 2e-6 * (fabs(y) + 0.1 * largest) + 1e-12)) return i;
    }
    return -1;
}

/* Has it written beside its arrays, or to those that it may only read? */
static const char *check_trespass(void) {
    static char text[200];
    for (int k = 0; k < check_arrays; k++) {
        const check_array *a = &check_list[k];
        if (a->kind == INPUT && memcmp(check_memory + a->at, check_before + a->at, a->bytes)) {
            snprintf(text, sizeof text, "It changes %s, which is only to be read.", a->name);
            return text;
        }
        for (int i = 0; i < CHECK_FENCE; i++)
            if (check_memory[a->at - 1 - i] != 0xa5 || check_memory[a->at + a->bytes + i] != 0xa5) {
                snprintf(text, sizeof text, "It writes %s %s, outside of the array.",
                         check_memory[a->at - 1 - i] != 0xa5 ? "before the start of"
                         : "past the end of", a->name);
                return text;
            }
    }
    return NULL;
}

/* What an answer makes of the input, from the same start. */
static void check_ask(int answer, unsigned char *result) {
    memcpy(check_memory, check_before, check_used);
    check_answer = answer;
    call_case();
    check_answer = 0;
    memcpy(result, check_memory, check_used);
}

static int check_make(int i) {
    check_arrays = 0, check_used = 0, check_part = 0, check_draws = (uint64_t)i * 1000;
    snprintf(check_text, sizeof check_text, "input %d", i);
    if (!make_case(i)) return 0;
    memcpy(check_before, check_memory, check_used);
    return 1;
}

/* --- telling ---------------------------------------------------------------------------------- */

static void check_print_row(const char *before, const check_array *a, const unsigned char *memory,
                            int row, int column) {
    int first = a->cols <= 8 || column < 7 ? 0 : column - 6;
    printf("%s%s", before, first ? " ..." : "");
    for (int i = first; i < a->cols && i < first + 8; i++) {
        double x = check_number(a, memory, row * a->cols + i);
        if (check_is_unset(a, x)) printf("       -");
        else printf(" %7.*g", a->is_int ? 9 : 4, x);
    }
    printf("%s\n", first + 8 < a->cols ? " ..." : "");
}

static void check_print_shape(const check_array *a) {
    if (a->rows) printf("%s [%d, %d]", a->name, a->rows, a->cols);
    else printf("%s [%d]", a->name, a->cols);
}

static void check_print_input(void) {
    for (int k = 0; k < check_arrays; k++) {
        const check_array *a = &check_list[k];
        if (a->kind == OUTPUT || a->kind == CLUE || a->kind == HIDDEN) continue;
        printf("    ");
        check_print_shape(a);
        printf("%s\n", a->kind == ADDED ? " as it was before" : "");
        for (int r = 0; r < (a->rows ? a->rows : 1) && r < 6; r++)
            check_print_row("       ", a, check_before, r, 0);
        if (a->rows > 6) printf("        ...\n");
    }
}

static void check_print_difference(const char *trespass) {
    int shown = 0;
    for (int k = 0; k < check_arrays; k++) {
        const check_array *a = &check_list[k];
        int i, row;
        double x;
        if (a->kind != OUTPUT && a->kind != ADDED) continue;
        i = check_differs(a, check_yours, check_right);
        if (i < 0) continue;
        row = i / a->cols;
        x = check_number(a, check_yours, i);
        printf("\n    ");
        check_print_shape(a);
        if (a->rows) printf(" differs first at %s[%d][%d]", a->name, row, i % a->cols);
        else if (a->cols > 1) printf(" differs first at [%d]", i % a->cols);
        else printf(" differs");
        if (check_is_unset(a, x)) printf(": nothing was written there");
        else if (isnan(x)) printf(": it is NaN (0 / 0, infinity - infinity, 0 * infinity)");
        else if (isinf(x)) printf(": it is infinite (too large an exp, a division by 0)");
        printf("\n");
        check_print_row("       yours   ", a, check_yours, row, i % a->cols);
        check_print_row("       right   ", a, check_right, row, i % a->cols);
        if (++shown == 3) break;
    }
    if (trespass) printf("\n    %s\n", trespass);
    else if (!shown)
        printf("\n    Asked about it once more, it is right: does it keep something from one call to "
               "the\n    next, or read what was never written?\n");
}

/* Do two results differ in what an answer writes, or (with clues) in what tells answers apart? */
static int check_results_differ(const unsigned char *seen, const unsigned char *right, int clues) {
    for (int k = 0; k < check_arrays; k++) {
        check_kind kind = check_list[k].kind;
        if ((kind == OUTPUT || kind == ADDED || (clues && kind == CLUE))
            && check_differs(&check_list[k], seen, right) >= 0) return 1;
    }
    return 0;
}

/* Is what this wrong answer writes what the learner's does, on every input to the functions that it
   has wrong, and the learner too? */
static int check_is_same_as(int wrong) {
    unsigned parts = 0;
    for (int i = 0; check_make(i); i++) {
        if (!(check_wrong_parts & 1u << check_part)) continue;
        check_ask(0, check_right);
        check_ask(wrong, check_yours);
        if (check_results_differ(check_yours, check_right, 0)) parts |= 1u << check_part;
    }
    for (int i = 0; check_make(i); i++) {
        if (!(parts & 1u << check_part)) continue;
        check_ask(check_learner, check_yours);
        check_ask(wrong, check_right);
        if (check_results_differ(check_yours, check_right, 1)) return 0;
    }
    return parts != 0;
}

/* Asks about every input. Returns how many there are, *wrong: of how many the answer differs,
   *smallest: the one of fewest numbers among these. */
static int check_all(int *wrong, int *smallest) {
    size_t least = 0;
    int i;
    *wrong = 0, *smallest = -1;
    for (i = 0; check_make(i); i++) {
        int differs;
        check_ask(0, check_right);
        check_ask(check_learner, check_yours);
        differs = check_trespass() || check_results_differ(check_yours, check_right, 0);
        if (!differs) continue;
        ++*wrong, check_wrong_parts |= 1u << check_part;
        if (*smallest < 0 || check_used < least) *smallest = i, least = check_used;
    }
    return i;
}

static int check_report(int wrong, int smallest, int all) {
    const char *trespass;
    check_make(smallest);
    check_ask(0, check_right);
    check_ask(check_learner, check_yours);
    trespass = check_trespass();
    printf("Of %d inputs, %d give%s other results. The smallest of them:\n\n    %s\n", all, wrong,
           wrong == 1 ? "s" : "", check_text);
    check_print_input();
    check_print_difference(trespass);
    fflush(stdout);
    for (int w = 2; w < CHECK_ANSWERS; w++)
        if (check_is_same_as(w)) printf("\nWhat happened: %s\n", check_messages[w]);
    return CHECK_DIFFERS;
}

/* --- training --------------------------------------------------------------------------------- */

enum { CHECK_B = 4, CHECK_STEPS = 40 };
static unsigned char check_bytes[1 << 18];
static int check_byte_count;

/* A small model; check.c may change it. */
static hmoe_config small_config(void) {
    hmoe_config c = hmoe_default_config();
    c.V = 256, c.T = 16, c.C = 16, c.L = 2, c.NH = 2, c.E = 4, c.K = 2;
    memset(c.H, 0, sizeof c.H);
    hmoe_expert_sizes(c.H, c.E, 96, "arithmetic", NULL);
    return c;
}

/* The share of the tokens that expert e of layer l had, since m->usage was cleared. */
static double share(const hmoe_model *m, int l, int e) {
    size_t per_layer = hmoe__sum_count(&m->config);
    return m->usage[l * per_layer + e] / m->usage[m->config.L * per_layer];
}

/* Means of the last third of so many numbers. */
static double mean_in_the_end(const double *x, int n) {
    double sum = 0;
    for (int i = n - n / 3; i < n; i++) sum += x[i] / (n / 3);
    return sum;
}

static void clear_usage(hmoe_model *m) {
    memset(m->usage, 0, (m->config.L * hmoe__sum_count(&m->config) + 1) * sizeof *m->usage);
}

/* Trains a model for so many steps; loss[step]: the total, or with ce_only its cross-entropy. 0
   where that failed. m->usage: of the last third. */
static int train(hmoe_model *m, const hmoe_config *c, double lr, int steps, double *loss,
                 int ce_only) {
    hmoe_adamw adamw = hmoe_default_adamw();
    int tokens[CHECK_B * 64], targets[CHECK_B * 64];
    memset(m, 0, sizeof *m);
    adamw.lr = lr;
    if (hmoe_create(m, c, 7, CHECK_B, 1)) return 0;
    for (int step = 0; step < steps; step++) {
        for (int b = 0; b < CHECK_B; b++) {
            uint64_t at = hmoe_random(7, 1, (uint64_t)step, (uint64_t)b)
                          % (uint64_t)(check_byte_count - c->T - 1);
            for (int t = 0; t < c->T; t++) {
                tokens[b * c->T + t] = check_bytes[at + t];
                targets[b * c->T + t] = check_bytes[at + t + 1];
            }
        }
        if (step == steps - steps / 3) clear_usage(m);      /* how experts are used in the end */
        if (hmoe_forward(m, HMOE_TRAIN, tokens, targets, CHECK_B, c->T)) return 0;
        loss[step] = ce_only ? m->losses.ce : m->losses.total;
        if (hmoe_backward(m, 1) || hmoe_update(m, &adamw)) return 0;
    }
    return 1;
}

/* The same run with hmoe.h's functions and with the learner's. */
static int check_training(void) {
    static double loss[2][CHECK_STEPS];
    hmoe_config c = training_config();
    double apart = 0;
    printf("Now %d steps of training with your functions in the place of the built-in ones.\n\n"
           "    loss     built-in        yours\n", CHECK_STEPS);
    fflush(stdout);
    snprintf(check_text, sizeof check_text, "a training run");
    for (check_answer = 0; check_answer < 2; check_answer++) {
        hmoe_model m;
        int trained = train(&m, &c, 3e-3, CHECK_STEPS, loss[check_answer], 0);
        if (!trained) printf("It stopped: %s\n", m.message);
        hmoe_free(&m);
        if (!trained) return CHECK_DIFFERS;
    }
    check_answer = 0;
    for (int step = 0; step < CHECK_STEPS; step++) {
        double d = fabs(loss[0][step] - loss[1][step]);
        if (!(d <= apart)) apart = d;
        if (step % 13 == 0)
            printf("    step %2d  %.6f     %.6f\n", step + 1, loss[0][step], loss[1][step]);
    }
    if (!(apart <= 1e-4)) {
        printf("\nThey are apart by %.1e, more than 1e-4: something was not among the inputs that "
               "were tried.\n", apart);
        return CHECK_DIFFERS;
    }
    printf("\nThe two are never apart by more than 1e-4.\n");
    return CHECK_OK;
}

int main(int argc, char **argv) {
    int wrong, smallest, all, quick = argc > 2 && atoi(argv[2]);
    FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!f) return puts("check: there is no text to train on"), CHECK_CRASH;
    if (argc > 3) check_learner = atoi(argv[3]);
    check_byte_count = (int)fread(check_bytes, 1, sizeof check_bytes, f);
    fclose(f);
    setvbuf(stdout, NULL, _IOLBF, 4096);
    check_catch();
    check_get_memory();
    all = check_all(&wrong, &smallest);
    if (wrong) return check_report(wrong, smallest, all);
    printf("All %d inputs give the right results.\n", all);
    fflush(stdout);
    if (check_training() != CHECK_OK) return CHECK_DIFFERS;
    fflush(stdout);
    if (!quick) experiment();
    return CHECK_OK;
}
