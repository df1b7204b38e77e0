/* check.h - the part that all checkers share. Each check.c defines five functions:

     int make_case(int i)              describes input i and makes its arrays; returns 0 if there is
                                       no input i
     void call_case(void)              calls the functions, as ANSWER(name)(...), on these arrays
     void right_case(void)             writes the right results into the same arrays. It does not
                                       call the functions of the exercise: it uses the definition,
                                       or central differences
     hmoe_config training_config(void) the model for the training run
     void experiment(void)             prints an experiment after the training run

   main calls the learner's functions on every input and compares the results with right_case. If
   some differ, it prints the smallest such input, and the message of each wrong answer that has the
   same results as the learner. If none differs, it trains a model with hmoe.h's functions and again
   with the learner's. hmoe_real is double here.

   All arrays lie in one stretch of memory, with fences between them. Every answer starts from the
   same contents. No memory lies before and after that stretch. Therefore a write far outside of an
   array crashes. */

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
static void right_case(void);
static hmoe_config training_config(void);
static void experiment(void);

#define ANSWER(name) (answers_##name[check_answer])

/* The exit status of this program. A learner's exit() has none of these numbers by chance. */
enum check_end { CHECK_OK = 100, CHECK_DIFFERS, CHECK_CRASH, CHECK_TIME, CHECK_MEMORY, CHECK_FILE };
enum { CHECK_ROOM = 1 << 21, CHECK_FENCE = 64, CHECK_ARRAYS = 40,
       CHECK_ANSWERS = sizeof check_messages / sizeof *check_messages };

/* The role of an array. */
typedef enum check_kind {
    INPUT,      /* the function may only read it */
    OUTPUT,     /* the function writes it; numbers that right_case does not write may be anything */
    ADDED,      /* the function adds to it */
    SCRATCH,    /* the function may overwrite it */
    HIDDEN,     /* the function does not use it; the report does not show it */
    CLUE        /* distinguishes wrong answers; no value of it is right or wrong */
} check_kind;

typedef struct check_array {
    const char *name;
    int rows, cols, is_int;     /* rows 0: the array has one dimension */
    check_kind kind;
    size_t at, bytes;
} check_array;

static unsigned char *check_memory;     /* [CHECK_ROOM] */
static unsigned char check_before[CHECK_ROOM], check_right[CHECK_ROOM], check_yours[CHECK_ROOM];
static check_array check_list[CHECK_ARRAYS];
static int check_arrays;
static size_t check_used;
static char check_text[400];          /* describes the input */
static uint64_t check_draws;
static int check_part;                /* the function that the input tests: 0, 1, ... */
static unsigned check_wrong_parts;    /* bit k: function k of the learner gives other results */
static int check_learner = 1;         /* the answer that is checked; the tests check wrong ones */
static const double check_unset = -7.0e77;      /* outputs hold this before a call */
static const int check_unset_int = -777777;

static void check_get_memory(void) {
    const size_t nothing = 1 << 24;
    void *all = mmap(NULL, CHECK_ROOM + 2 * nothing, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) abort();
    check_memory = (unsigned char *)all + nothing;
    if (mprotect(check_memory, CHECK_ROOM, PROT_READ | PROT_WRITE)) abort();
}

/* --- for check.c: an input -------------------------------------------------------------------- */

/* Describes this input: its purpose and its sizes. */
static void describe(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(check_text, sizeof check_text, format, args);
    va_end(args);
}

/* If an exercise has several functions: the number of the function that this input tests. */
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

/* Makes an array [rows, cols], or [cols] if rows is 0. */
static hmoe_real *reals(const char *name, int rows, int cols, check_kind kind) {
    return (hmoe_real *)check_add(name, rows, cols, 0, kind);
}

static int *ints(const char *name, int rows, int cols, check_kind kind) {
    return (int *)check_add(name, rows, cols, 1, kind);
}

/* The same, filled with numbers from scale * N(0, 1), rounded to two decimals. */
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

/* The arrays of routes, in groups: logits; P; lse and entropy; the choice (count, expert, gate);
   the lists of the experts. */
static hmoe_routes make_routes(int N, int E, int slots, check_kind logits, check_kind P,
                               check_kind sums, check_kind choice, check_kind lists) {
    hmoe_routes r;
    memset(&r, 0, sizeof r);                       /* no bias; the top_p of the call */
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

/* Makes logits of this kind for N tokens, and their softmax, lse and entropy. */
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

/* Softmax of one row from its definition, p_i = 1 / (sum over j of exp(scale (x_j - x_i))), and
   the log of the sum of exp(scale x_j), which is scale x_i - log p_i for every i. */
static void right_softmax(double *p, double *lse, const double *x, int n, double scale) {
    int largest = 0;
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < n; j++) sum += x[j] == x[i] ? 1 : exp(scale * (x[j] - x[i]));
        p[i] = x[i] == -INFINITY ? 0 : 1 / sum;
        if (x[i] > x[largest]) largest = i;
    }
    *lse = scale * x[largest] - log(p[largest]);
}

/* The number of experts that come before expert e if experts are ordered by descending P, and by
   index if their P are equal. */
static int right_rank(const double *P, int e, int E) {
    int rank = 0;
    for (int j = 0; j < E; j++) rank += P[j] > P[e] || (P[j] == P[e] && j < e);
    return rank;
}

/* S[t] and the gates, from their definition. */
static void right_choice(const hmoe_routes *r, hmoe_routing routing, int K, double top_p, int norm,
                         int N, int E) {
    for (int t = 0; t < N; t++) {
        const double *P = r->P + t * E;
        int by_rank[HMOE_MAX_EXPERTS], n = 0;
        double sum = 0;      /* of the P that come before */
        for (int e = 0; e < E; e++) by_rank[right_rank(P, e, E)] = e;
        while (n < E && (routing == HMOE_TOP_K ? n < K : n == 0 || top_p >= 1 || sum < top_p)) {
            r->expert[t * r->slots + n] = by_rank[n];
            sum += P[by_rank[n++]];
        }
        r->count[t] = n;
        for (int s = 0; s < n; s++) r->gate[t * r->slots + s] = P[by_rank[s]] / (norm ? sum : 1);
    }
}

/* The derivative of f() with respect to *x, by central differences with steps h and 2 h. size: *x
   must change by about this much before f changes its shape. */
static double right_slope(double (*f)(void), double *x, double size) {
    double at = *x, h = 1e-3 * size, value[5], slope;
    for (int i = -2; i <= 2; i++) {
        *x = at + i * h;
        value[i + 2] = i ? f() : 0;
    }
    *x = at;
    slope = (8 * (value[3] - value[1]) - (value[4] - value[0])) / (12 * h);
    return fabs(slope) * h < 1e-15 * (fabs(value[1]) + fabs(value[3])) ? 0 : slope;   /* rounding */
}

/* An input for one of hmoe_loss_terms: the means over N tokens of a layer of E experts. The tokens'
   choices are in `routes`, so that right_case can compute the loss from them. */
typedef struct loss_case {
    int N, E;
    hmoe_routes routes;
    double coef;
    int *H, *others;
    hmoe_real *f, *Phat, *entropy, *value, *slope_Phat, *slope_entropy;
} loss_case;

/* H: the widths, or NULL: all 4. */
static loss_case make_loss_case(int N, int E, int K, check_router kind, double coef, const int *H) {
    loss_case c;
    c.N = N, c.E = E, c.coef = coef;
    c.H = ints("x->H", 0, E, H ? INPUT : HIDDEN);
    c.f = reals("x->f", 0, E, INPUT), c.Phat = reals("x->Phat", 0, E, INPUT);
    c.entropy = reals("x->entropy", 0, 1, INPUT);
    c.value = reals("the returned loss", 0, 1, OUTPUT);
    c.slope_Phat = random_reals("slope->Phat", 0, E, ADDED, 1);
    c.slope_entropy = random_reals("slope->entropy", 0, 1, ADDED, 1);
    c.others = ints("how many other numbers of *slope changed", 0, 1, OUTPUT);
    c.routes = make_routes(N, E, K, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN);
    fill_router(&c.routes, N, E, kind);
    right_choice(&c.routes, HMOE_TOP_K, K, 1, 1, N, E);
    *c.entropy = 0;
    for (int e = 0; e < E; e++) c.H[e] = H ? H[e] : 4, c.f[e] = c.Phat[e] = 0;
    for (int t = 0; t < N; t++) {
        *c.entropy += c.routes.entropy[t] / N;
        for (int e = 0; e < E; e++) c.Phat[e] += c.routes.P[t * E + e] / N;
        for (int s = 0; s < K; s++) c.f[c.routes.expert[t * K + s]] += 1.0 / N;
    }
    return c;
}

static void call_loss(double (*loss)(const hmoe_means *, double, hmoe_means *),
                      const loss_case *c) {
    hmoe_means x, slope;
    memset(&x, 0, sizeof x);
    memset(&slope, 0, sizeof slope);
    x.E = c->E, x.H = c->H, x.entropy = *c->entropy, slope.entropy = *c->slope_entropy;
    for (int e = 0; e < c->E; e++) {
        x.f[e] = c->f[e], x.Phat[e] = c->Phat[e], slope.Phat[e] = c->slope_Phat[e];
        x.mean_H += (double)c->H[e] / c->E;
    }
    *c->value = loss(&x, c->coef, &slope);
    *c->entropy = x.entropy, *c->slope_entropy = slope.entropy;
    *c->others = (slope.E != 0) + (slope.mean_H != 0) + (slope.lse2 != 0);
    for (int e = 0; e < HMOE_MAX_EXPERTS; e++) {
        *c->others += slope.f[e] != 0;
        if (e >= c->E) *c->others += slope.Phat[e] != 0;
        else c->f[e] = x.f[e], c->Phat[e] = x.Phat[e], c->slope_Phat[e] = slope.Phat[e];
    }
}

/* value(): the loss, computed from c->routes, c->Phat and c->entropy. */
static void right_loss(double (*value)(void), const loss_case *c) {
    *c->value = value();
    *c->others = 0;
    *c->slope_entropy += c->coef * right_slope(value, c->entropy, 1);
    for (int e = 0; e < c->E; e++)
        c->slope_Phat[e] += c->coef * right_slope(value, &c->Phat[e], 1);
}

/* --- the program is ended --------------------------------------------------------------------- */

static void check_say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(CHECK_CRASH);
}

/* Prints the reason. If no more memory can be had, the memory was full. */
static void check_ended(int number) {
    int how = CHECK_CRASH;
    const char *what = "Your program crashed";
    if (number == SIGXCPU) {
        how = CHECK_TIME, what = "Your program used all its time (a loop that never ends?)";
    } else if (number == SIGXFSZ) {
        how = CHECK_FILE, what = "Your program wrote a file of more than a megabyte";
    } else if (mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) {
        how = CHECK_MEMORY, what = "Your program took more than a gigabyte of memory";
    } else if (number == SIGSEGV || number == SIGBUS) {
        what = "Your program crashed: it used memory that does not exist (SIGSEGV)";
    } else if (number == SIGFPE) {
        what = "Your program crashed: it divided an integer by zero (SIGFPE)";
    } else if (number == SIGABRT) {
        what = "Your program crashed: it called abort(), perhaps through assert";
    }
    check_say("\n");
    check_say(what);
    check_say(", on this input:\n    ");
    check_say(check_text);
    check_say("\n");
    _exit(how);
}

static void check_catch(void) {
    static char stack[1 << 16];             /* the usual stack may be full */
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

/* Number i of an array, in one of the copies of the memory. */
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

/* The first place with a difference between `seen` and `right`, or -1. The learner may use float
   functions: therefore about six digits must agree, of the largest number in the array. */
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

/* Says whether the last call wrote outside of its arrays or changed an input; NULL: it did not. */
static const char *check_trespass(void) {
    static char text[200];
    for (int k = 0; k < check_arrays; k++) {
        const check_array *a = &check_list[k];
        if (a->kind == INPUT && memcmp(check_memory + a->at, check_before + a->at, a->bytes)) {
            snprintf(text, sizeof text, "Your function changes %s. It may only read it.", a->name);
            return text;
        }
        for (int i = 0; i < CHECK_FENCE; i++)
            if (check_memory[a->at - 1 - i] != 0xa5 || check_memory[a->at + a->bytes + i] != 0xa5) {
                snprintf(text, sizeof text, "Your function writes %s %s, outside of the array.",
                         check_memory[a->at - 1 - i] != 0xa5 ? "before the start of"
                         : "past the end of", a->name);
                return text;
            }
    }
    return NULL;
}

/* The results of an answer on this input. */
static void check_ask(int answer, unsigned char *result) {
    memcpy(check_memory, check_before, check_used);
    check_answer = answer;
    call_case();
    check_answer = 0;
    memcpy(result, check_memory, check_used);
}

/* The right results on this input. */
static void check_ask_right(void) {
    memcpy(check_memory, check_before, check_used);
    right_case();
    memcpy(check_right, check_memory, check_used);
}

static int check_make(int i) {
    check_arrays = 0, check_used = 0, check_part = 0, check_draws = (uint64_t)i * 1000;
    snprintf(check_text, sizeof check_text, "input %d", i);
    if (!make_case(i)) return 0;
    memcpy(check_before, check_memory, check_used);
    return 1;
}

/* --- the report ------------------------------------------------------------------------------- */

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
        printf("%s\n", a->kind == ADDED ? " before the call" : "");
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
        if (check_is_unset(a, x)) printf(": your function writes nothing there");
        else if (isnan(x)) printf(": yours is NaN (0 / 0, infinity - infinity, 0 * infinity)");
        else if (isinf(x)) printf(": yours is infinite (a large exp, a division by 0)");
        printf("\n");
        check_print_row("       yours   ", a, check_yours, row, i % a->cols);
        check_print_row("       right   ", a, check_right, row, i % a->cols);
        if (++shown == 3) break;
    }
    if (trespass) printf("\n    %s\n", trespass);
    else if (!shown)
        printf("\n    A second call on this input gives the right results. Does your function keep "
               "a\n    number from one call to the next, or read memory that was never written?\n");
}

/* 1 if two results differ in an OUTPUT or ADDED array, or (if clues is 1) in a CLUE. */
static int check_results_differ(const unsigned char *seen, const unsigned char *right, int clues) {
    for (int k = 0; k < check_arrays; k++) {
        check_kind kind = check_list[k].kind;
        if ((kind == OUTPUT || kind == ADDED || (clues && kind == CLUE))
            && check_differs(&check_list[k], seen, right) >= 0) return 1;
    }
    return 0;
}

/* 1 if this wrong answer and the learner's have the same results on every input for the functions
   that are wrong in both. */
static int check_is_same_as(int wrong) {
    unsigned parts = 0;
    for (int i = 0; check_make(i); i++) {
        if (!(check_wrong_parts & 1u << check_part)) continue;
        check_ask_right();
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

/* Calls the learner's functions on every input. Returns the number of inputs. *wrong receives the
   number of inputs with other results, *smallest the one among them that has the fewest numbers. */
static int check_all(int *wrong, int *smallest) {
    size_t least = 0;
    int i;
    *wrong = 0, *smallest = -1;
    for (i = 0; check_make(i); i++) {
        int differs;
        check_ask_right();
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
    check_ask_right();
    check_ask(check_learner, check_yours);
    trespass = check_trespass();
    printf("Your functions give other results on %d of %d inputs. The smallest of these inputs:\n\n"
           "    %s\n", wrong, all, check_text);
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

/* A small model. check.c may change it. */
static hmoe_config small_config(void) {
    hmoe_config c = hmoe_default_config();
    c.V = 256, c.T = 16, c.C = 16, c.L = 2, c.NH = 2, c.E = 4, c.K = 2;
    memset(c.H, 0, sizeof c.H);
    hmoe_expert_sizes(c.H, c.E, 96, "arithmetic", NULL);
    return c;
}

/* The share of the tokens that chose expert e of layer l, since hmoe_reset_usage. */
static double share(const hmoe_model *m, int l, int e) {
    hmoe_usage usage;
    hmoe_get_usage(m, l, &usage);
    return usage.share[e];
}

/* The mean of the last third of n numbers. */
static double mean_in_the_end(const double *x, int n) {
    double sum = 0;
    for (int i = n - n / 3; i < n; i++) sum += x[i] / (n / 3);
    return sum;
}

/* Trains a model. loss[step] receives the total loss, or the cross-entropy if ce_only is 1. The
   usage is that of the last third of the steps. Returns 0 if it fails. */
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
        if (step == steps - steps / 3) hmoe_reset_usage(m);
        if (hmoe_forward(m, HMOE_TRAIN, tokens, targets, CHECK_B, c->T)) return 0;
        loss[step] = ce_only ? m->losses.ce : m->losses.total;
        if (hmoe_backward(m, 1) || hmoe_update(m, &adamw)) return 0;
    }
    return 1;
}

/* Trains twice: with hmoe.h's functions and with the learner's. */
static int check_training(void) {
    static double loss[2][CHECK_STEPS];
    hmoe_config c = training_config();
    double apart = 0;
    printf("Now %d steps of training, first with the functions of hmoe.h, then with yours.\n\n"
           "    loss     hmoe.h          yours\n", CHECK_STEPS);
    fflush(stdout);
    snprintf(check_text, sizeof check_text, "a training run");
    for (check_answer = 0; check_answer < 2; check_answer++) {
        hmoe_model m;
        int trained = train(&m, &c, 3e-3, CHECK_STEPS, loss[check_answer], 0);
        if (!trained) printf("The training failed: %s\n", m.message);
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
        printf("\nThe two losses differ by %.1e, which is more than 1e-4. Your function is wrong "
               "on an input\nthat was not tried.\n", apart);
        return CHECK_DIFFERS;
    }
    printf("\nThe two losses never differ by more than 1e-4.\n");
    return CHECK_OK;
}

int main(int argc, char **argv) {
    int wrong, smallest, all, quick = argc > 2 && atoi(argv[2]);
    FILE *f = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!f) return puts("check: cannot read the text for training"), CHECK_CRASH;
    if (argc > 3) check_learner = atoi(argv[3]);
    check_byte_count = (int)fread(check_bytes, 1, sizeof check_bytes, f);
    fclose(f);
    setvbuf(stdout, NULL, _IOLBF, 4096);
    check_catch();
    check_get_memory();
    all = check_all(&wrong, &smallest);
    if (wrong) return check_report(wrong, smallest, all);
    printf("Your functions give the right results on all %d inputs.\n", all);
    fflush(stdout);
    if (check_training() != CHECK_OK) return CHECK_DIFFERS;
    fflush(stdout);
    if (!quick) experiment();
    return CHECK_OK;
}
