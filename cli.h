/* cli.h - what train_tiny and generate share as programs: errors, options, files. Include it after
   the implementation of hmoe.h: it uses its functions on files.

   A program has one table of its options: --help, defaults, reading and ranges all come from it. */
#ifndef CLI_H
#define CLI_H

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { CLI_PATH_SIZE = 1024 };

/* --- the platform ---------------------------------------------------------------------------- */

#ifdef _WIN32
#include "extra/windows/cli_windows.h"
#else
#include <fcntl.h>

/* A standard stream that is closed stays unused. A failed write is an error and no signal. */
static inline void cli_prepare(void) {
    int f;
    do f = open("/dev/null", O_RDWR);
    while (f >= 0 && f < 3);
    close(f);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

static volatile sig_atomic_t cli_interrupted, cli_continued;
static inline void cli_interrupt(int signal_number) {
    if (signal_number == SIGCONT) cli_continued = 1;
    else cli_interrupted = 1;
}

/* on = 1: Ctrl-C and the like set cli_interrupted. on = 0: they end the program. A terminal that
   is closed is like Ctrl-C, unless nohup says that the program is to go on. A process that goes on
   after Ctrl-Z sets cli_continued. */
static inline void cli_catch_interrupts(int on) {
    struct sigaction action = { .sa_handler = on ? cli_interrupt : SIG_DFL,
                                .sa_flags = SA_RESTART };
    struct sigaction hangup;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (!sigaction(SIGHUP, NULL, &hangup) && hangup.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL);
    sigaction(SIGCONT, &action, NULL);
}

/* Calls `work` at the signals that end a program, but for those that are ignored. */
static inline void cli_catch_ends(void (*work)(int)) {
    const int ends[] = { SIGINT, SIGTERM, SIGHUP };
    for (int i = 0; i < 3; i++)
        if (signal(ends[i], work) == SIG_IGN) signal(ends[i], SIG_IGN);
}

/* Is there one file or directory behind both names? */
static inline int cli_is_same(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static inline int cli_is_relative(const char *path) { return *path != '/'; }

/* Is this open file still the one behind that name? */
static inline int cli_is_open_at(int f, const char *path) {
    struct stat x, y;
    return !fstat(f, &x) && !stat(path, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}
static inline int cli_is_at(FILE *f, const char *path) { return cli_is_open_at(fileno(f), path); }

/* Keeps a directory, so that cli_is_open_at tells whether it is still the one of that name. */
static inline int cli_keep(const char *dir) { return open(dir, O_RDONLY); }

/* Locks a file until the process ends. Returns 0, or the owner's process number, or -1 with errno.
   Tries again if the owner has just ended, or if the file was removed meanwhile. */
static inline long cli_take(const char *file) {
    for (;;) {
        struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
        int f = open(file, O_RDWR | O_CREAT, 0666);
        if (f < 0) return -1;
        if (fcntl(f, F_SETLK, &lock) == 0) {
            if (cli_is_open_at(f, file)) return 0;
        } else {
            if (errno != EACCES && errno != EAGAIN) return -1;
            if (fcntl(f, F_GETLK, &lock)) return -1;
            if (lock.l_type != F_UNLCK) return (long)lock.l_pid;
        }
        close(f);
    }
}

/* This program's standard output or error once more, if that is what a path means; else NULL. */
static inline FILE *cli_same_stream(const char *path) {
    for (int f = STDOUT_FILENO; f <= STDERR_FILENO; f++)
        if (cli_is_open_at(f, path)) return fdopen(dup(f), "wb");
    return NULL;
}

/* Seconds, by a clock that nobody sets back. */
static inline double cli_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#endif

/* Seconds since `began`; `instead`, if the process was stopped meanwhile: nobody knows how long. */
static inline double cli_seconds_since(double began, double instead) {
    double seconds = cli_seconds() - began;          /* first: a stop after this must not count */
    if (cli_continued) seconds = instead;
    cli_continued = 0;
    return seconds;
}

/* --- errors ---------------------------------------------------------------------------------- */

static const char *cli_program = "";   /* begins every error */
static int cli_line_is_open;           /* a line on the terminal still lacks its end */

/* With several processes (cli_peers.h) this is number `rank` of `ranks`. */
static int cli_rank, cli_ranks = 1;
static void (*cli_at_failure)(int status, const char *text);   /* ends all of them */

#if defined(__GNUC__)
#define CLI_LIKE_PRINTF(text, first) __attribute__((format(printf, text, first)))
#define CLI_NEVER_RETURNS __attribute__((noreturn))
#else
#define CLI_LIKE_PRINTF(text, first)
#define CLI_NEVER_RETURNS
#endif

/* What was typed must not move the cursor or begin a line: such a byte becomes a question mark.
   The only newline that stays is the one before a "(hint)" at the end. */
static inline void cli_to_one_line(char *text) {
    char *hint = NULL;
    for (char *c = text; *c; c++)
        if (c[0] == '\n' && c[1] == '(') hint = c;
    for (char *c = text; *c; c++)
        if (((unsigned char)*c < ' ' || *c == 127) && c != hint) *c = '?';
    if (cli_line_is_open) putchar('\n');
    cli_line_is_open = 0;
    fflush(stdout);
}

/* Ends the program with one line that says what is wrong and what would be right, and perhaps
   "\n(a hint)". status: 2 for the command line, 1 for all else. */
CLI_NEVER_RETURNS CLI_LIKE_PRINTF(2, 3)
static inline void cli_fail(int status, const char *format, ...) {
    char text[2000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    cli_to_one_line(text);
    if (cli_at_failure) cli_at_failure(status, text);
    fprintf(stderr, "%s: %s\n", cli_program, text);
    exit(status);
}

CLI_NEVER_RETURNS static inline void cli_cannot(const char *what, const char *path) {
    cli_fail(1, "cannot %s %s: %s", what, path, strerror(errno));
}

/* The same for what does not end the program. Only the first process says it. */
CLI_LIKE_PRINTF(1, 2) static inline void cli_warn(const char *format, ...) {
    char text[2000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    cli_to_one_line(text);
    if (cli_rank == 0) fprintf(stderr, "%s: warning: %s\n", cli_program, text);
}

static inline void *cli_alloc(size_t bytes) {
    void *p = malloc(bytes + !bytes);
    if (!p) cli_fail(1, "out of memory: the program needs %lu more bytes", (unsigned long)bytes);
    return p;
}

/* --- options --------------------------------------------------------------------------------- */

typedef enum cli_kind { CLI_IS_FLAG, CLI_IS_TEXT, CLI_IS_WORD, CLI_IS_INT, CLI_IS_SEED,
                        CLI_IS_REAL } cli_kind;

typedef struct cli_option {
    const char *name;      /* "--width", or "-n" */
    cli_kind kind;
    void *value;           /* where it is stored */
    const char *what;      /* what --help calls a text: "FILE"; or the "words|to choose|from" */
    double low, high;      /* the range of a number */
    const char *initial;   /* the default. Words such as "all" leave the value as it is */
    const char *help;
    const char *given;     /* the last value on the command line, NULL if there was none */
} cli_option;

/* The rows of a table, by the type of `value`: int, const char *, int (0 for the first word), int,
   uint64_t, double. */
#define CLI_FLAG(name, value, help) { name, CLI_IS_FLAG, value, "", 0, 0, NULL, help, NULL }
#define CLI_TEXT(name, value, what, initial, help) \
    { name, CLI_IS_TEXT, value, what, 0, 0, initial, help, NULL }
#define CLI_WORD(name, value, words, initial, help) \
    { name, CLI_IS_WORD, value, words, 0, 0, initial, help, NULL }
#define CLI_INT(name, value, low, high, initial, help) \
    { name, CLI_IS_INT, value, "N", low, high, initial, help, NULL }
#define CLI_SEED(name, value, initial, help) \
    { name, CLI_IS_SEED, value, "N", 0, INFINITY, initial, help, NULL }
#define CLI_REAL(name, value, low, high, initial, help) \
    { name, CLI_IS_REAL, value, "X", low, high, initial, help, NULL }

/* Position of a word in "a|b|c", or -1. */
static inline int cli_choice(const char *words, const char *word) {
    size_t n = strlen(word);
    for (int i = 0;; i++) {
        size_t length = strcspn(words, "|");
        if (length == n && !strncmp(words, word, n)) return i;
        if (!words[length]) return -1;
        words += length + 1;
    }
}

/* Stores a number, if it is one: nothing around it, finite, and in the range. Returns whether. */
static inline int cli_set_number(const cli_option *o, const char *text) {
    const char *allowed = o->kind == CLI_IS_REAL ? "+-.0123456789eE" : "+-0123456789";
    char *end;
    double x = strtod(text, &end);
    if (text[strspn(text, allowed)] || end == text || *end || !isfinite(x)) return 0;
    if (x < o->low || x > o->high) return 0;
    if (o->kind == CLI_IS_REAL) *(double *)o->value = x;
    if (o->kind == CLI_IS_INT) *(int *)o->value = (int)x;
    if (o->kind != CLI_IS_SEED) return 1;
    errno = 0;
    uint64_t seed = strtoull(text, NULL, 10);
    if (errno) return 0;
    *(uint64_t *)o->value = seed;
    return 1;
}

static inline int cli_set(const cli_option *o, const char *text) {
    int choice;
    switch (o->kind) {
    case CLI_IS_FLAG:
        *(int *)o->value = 1;
        return 1;
    case CLI_IS_TEXT:
        *(const char **)o->value = text;
        return 1;
    case CLI_IS_WORD:
        choice = cli_choice(o->what, text);
        if (choice >= 0) *(int *)o->value = choice;
        return choice >= 0;
    default:
        return cli_set_number(o, text);
    }
}

/* The text for a value that this option could have: a number, a flag, or the number of a word. */
static inline const char *cli_name_of(const cli_option *o, double value) {
    static char text[64];
    const char *word = o->what;
    hmoe__print_double(text, value);
    if (o->kind == CLI_IS_FLAG) snprintf(text, sizeof text, "%s", value != 0 ? "it" : "none");
    if (o->kind != CLI_IS_WORD) return text;
    for (int i = (int)value; i > 0; i--) word += strcspn(word, "|") + 1;
    snprintf(text, sizeof text, "%.*s", (int)strcspn(word, "|"), word);
    return text;
}

/* The value as a number; of a flag or a word as cli_name_of takes it. Not for a text or a seed. */
static inline double cli_get(const cli_option *o) {
    return o->kind == CLI_IS_REAL ? *(const double *)o->value : *(const int *)o->value;
}

/* The option of that name, which the table must have. */
static inline const cli_option *cli_find(const cli_option *options, const char *name) {
    while (strcmp(options->name, name)) options++;
    return options;
}

/* Its value on the command line, or NULL. */
static inline const char *cli_given(const cli_option *options, const char *name) {
    return cli_find(options, name)->given;
}

/* The range of a number. */
static inline const char *cli_range(const cli_option *o) {
    static char text[64];
    if (o->kind == CLI_IS_SEED) return "[0, 18446744073709551615]";
    if (isinf(o->high)) snprintf(text, sizeof text, "[%.15g, inf)", o->low);
    else snprintf(text, sizeof text, "[%.15g, %.15g]", o->low, o->high);
    return text;
}

static inline void cli_help(const char *usage, const cli_option *options, int n) {
    printf("%s\n\n", usage);
    for (const cli_option *o = options; o < options + n; o++) {
        int column = printf("  %s %s", o->name, o->what);
        printf("%*s %s", column < 28 ? 28 - column : 0, "", o->help);
        if (o->initial) printf(" [%s]", o->initial);
        if (o->kind >= CLI_IS_INT) printf(" in %s", cli_range(o));
        putchar('\n');
    }
    printf("  --help                     this page, with defaults in [brackets]\n");
    if (cli_at_failure) cli_at_failure(0, "");   /* the other processes may not have been asked */
    exit(0);
}

/* Ends the program because of a value; NULL: because there is none. */
CLI_NEVER_RETURNS static inline void cli_refuse(const cli_option *o, const char *value) {
    if (!value) cli_fail(2, "%s: needs a value after it (--help lists the options)", o->name);
    if (o->kind == CLI_IS_WORD) cli_fail(2, "%s %.120s: needs one of %s", o->name, value, o->what);
    const char *number = o->kind == CLI_IS_REAL ? "number" : "whole number";
    cli_fail(2, "%s %.120s: needs a %s in %s", o->name, value, number, cli_range(o));
}

/* The option that a word names: in full, "--steps=5", or by any beginning that no other option has.
   Returns NULL for --help. *value receives what stands in the same word, or NULL. */
static inline cli_option *cli_named(char *word, cli_option *options, int n, const char **value) {
    size_t length = word[1] == '-' ? strcspn(word, "=") : 2;
    cli_option *found = NULL;
    int help = !strncmp("--help", word, length) && length > 2, matches = help;
    for (cli_option *o = options; o < options + n; o++) {
        if (strncmp(o->name, word, length)) continue;
        found = o;
        matches++;
        if (strlen(o->name) > length) continue;
        matches = 1;
        help = 0;
        break;
    }
    if (matches > 1) cli_fail(2, "%.120s: several options begin like this (see --help)", word);
    if (matches < 1) cli_fail(2, "%.120s: no such option (--help lists them)", word);
    *value = word[length] ? word + length + (word[length] == '=' && length > 2) : NULL;
    if (*value && (help || found->kind == CLI_IS_FLAG))
        cli_fail(2, "%.120s: this option takes no value", word);
    return help ? NULL : found;
}

/* Sets all defaults, then what the command line says. Words that are no option become argv[1],
   argv[2] ...; returns how many. "--" ends the options. */
static inline int cli_parse(int argc, char **argv, cli_option *options, int n, const char *usage) {
    int words = 0, ended = 0;
    cli_prepare();
    for (int i = 0; i < n; i++)
        if (options[i].initial) cli_set(&options[i], options[i].initial);
    for (int i = 1; i < argc; i++) {
        const char *value;
        if (ended || argv[i][0] != '-' || !argv[i][1]) {
            argv[++words] = argv[i];
            continue;
        }
        if (!strcmp(argv[i], "--")) {
            ended = 1;
            continue;
        }
        cli_option *o = cli_named(argv[i], options, n, &value);
        if (!o) cli_help(usage, options, n);
        if (!value && o->kind == CLI_IS_FLAG) value = "";
        if (!value && ++i < argc) value = argv[i];
        if (!value || !cli_set(o, value)) cli_refuse(o, value);
        o->given = value;
    }
    return words;
}

#include "extra/run/cli_files.h"

/* --- the backend ---------------------------------------------------------------------------- */

typedef struct cli_backend { int threads, cuda, bf16; } cli_backend;

#define CLI_BACKEND(b) \
    CLI_INT("--threads", &(b).threads, 1, 1024, "all", "number of threads"), \
    CLI_WORD("--backend", &(b).cuda, "cpu|cuda", "cpu", "device for training and scoring"), \
    CLI_WORD("--precision", &(b).bf16, "float32|bf16", "float32", "number format of products")

/* Sets the number of threads; 0: does not change it (at first it is all). Returns the number. */
static inline int cli_threads(int threads) {
#ifdef _OPENMP
    if (threads) omp_set_num_threads(threads);
    return omp_get_max_threads();
#else
    (void)threads;
    return 1;
#endif
}

/* Gets them ready. Returns the backend for a model. */
static inline const hmoe_backend *cli_start_backend(const cli_backend *b) {
    cli_threads(b->threads);
    if (b->bf16 && !b->cuda)
        cli_fail(2, "--precision bf16: the cpu computes in float32 only, add --backend cuda");
    if (!b->cuda) return NULL;                       /* the CPU's */
#ifdef HMOE_CUDA
    char why[HMOE_MESSAGE_SIZE];
    const hmoe_backend *backend = hmoe_cuda(b->bf16 ? HMOE_BF16 : HMOE_FLOAT32, why);
    if (!backend) cli_fail(1, "%s", why);
    return backend;
#else
    cli_fail(2, "--backend cuda: this program was built without it, build it with make cuda");
#endif
}

#include "extra/parallel/cli_peers.h"

#endif /* CLI_H */
