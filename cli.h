/* cli.h - what train_tiny and generate share: options, errors and files, and what both do with a
   text: turn its bytes into tokens, measure the model's loss on it, let the model write one.
   Include it after the implementation of hmoe.h, whose ways with files it shares.
   HMOE_CUDA is defined where hmoe_cuda.cu is part of the program.

   A program describes each of its options once, in a table. The --help page, the defaults, reading
   a value and checking its range all come from there. */
#ifndef CLI_H
#define CLI_H

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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
#ifdef HMOE_CUDA
#include "hmoe.h"
#endif

typedef enum cli_kind {    /* `value` points to    `range` is */
    CLI_FLAG,              /* int                  NULL: there is no value */
    CLI_TEXT,              /* const char *         what to call the value in --help */
    CLI_CHOICE,            /* int, 0 1 2 ...       "words|to choose|from" */
    CLI_INT,               /* int                  "[1, 256]", an interval */
    CLI_SEED,              /* uint64_t             the same */
    CLI_REAL               /* double               the same; "(0, 1]" is without the 0 */
} cli_kind;

typedef struct cli_option {
    const char *name;      /* "--width", or "-n" */
    cli_kind kind;
    void *value;
    const char *range;
    const char *initial;   /* the default; words such as "all" leave the value 0 */
    const char *help;
    const char *given;     /* the last value on the command line, NULL if there was none */
} cli_option;

/* --- the platform: Windows, then POSIX -------------------------------------------------------- */

static volatile sig_atomic_t cli_interrupted;   /* by Ctrl-C, while it is caught */
static inline void cli_interrupt(int signal_number) {
    cli_interrupted = 1;
    (void)signal_number;
#ifdef _WIN32
    signal(signal_number, cli_interrupt);       /* there a handler is good for one signal */
#endif
}

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <io.h>
#include <process.h>
#include <share.h>
#include <windows.h>

/* Bytes are written as they are, and a console reads them as UTF-8 and knows "\033[K". */
static inline void cli_prepare(void) {
    HANDLE console = GetStdHandle(STD_OUTPUT_HANDLE);
    DWORD mode;
    for (int i = 0; i < 3; i++) _setmode(i, _O_BINARY);
    if (!GetConsoleMode(console, &mode)) return;
    SetConsoleOutputCP(CP_UTF8);
    SetConsoleMode(console, mode | 4);             /* ENABLE_VIRTUAL_TERMINAL_PROCESSING */
}

static inline void cli_catch_interrupts(int on) {
    signal(SIGINT, on ? cli_interrupt : SIG_DFL);
    signal(SIGTERM, on ? cli_interrupt : SIG_DFL);
}

/* Writing is denied to all others; the number of this process is there to be read. */
static inline long cli_take(const char *file) {
    char owner[32] = "";
    int f = _sopen(file, O_RDWR | O_CREAT | O_TRUNC | O_BINARY, _SH_DENYWR, _S_IREAD | _S_IWRITE);
    FILE *theirs;
    if (f >= 0) {
        snprintf(owner, sizeof owner, "%d\n", _getpid());
        return _write(f, owner, (unsigned)strlen(owner)) > 0 ? 0 : -1;
    }
    if (errno != EACCES || !(theirs = fopen(file, "rb"))) return -1;
    if (!fgets(owner, sizeof owner, theirs)) *owner = 0;
    fclose(theirs);
    errno = EACCES;
    return *owner ? atol(owner) : -1;
}

static inline int cli_identify(const char *path, BY_HANDLE_FILE_INFORMATION *info) {
    HANDLE h = CreateFileA(path, 0, 7, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    int known = h != INVALID_HANDLE_VALUE && GetFileInformationByHandle(h, info);
    if (h != INVALID_HANDLE_VALUE) CloseHandle(h);
    return known;
}

static inline int cli_is_same(const char *a, const char *b) {
    BY_HANDLE_FILE_INFORMATION x, y;
    return cli_identify(a, &x) && cli_identify(b, &y) && x.nFileIndexLow == y.nFileIndexLow
           && x.nFileIndexHigh == y.nFileIndexHigh
           && x.dwVolumeSerialNumber == y.dwVolumeSerialNumber;
}

static inline int cli_is_at(FILE *f, const char *path) {
    (void)f;
    return access(path, F_OK) == 0;                /* an open file stays where it is */
}

static inline double cli_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}
#else
/* A closed stream stays unused, and what cannot be written is an error, no signal. */
static inline void cli_prepare(void) {
    int f;
    while ((f = open("/dev/null", O_RDWR)) >= 0 && f < 3) { }
    close(f);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
}

/* From now on Ctrl-C and the like set cli_interrupted; or end the program, as they do at first. */
static inline void cli_catch_interrupts(int on) {
    struct sigaction action = { .sa_handler = cli_interrupt, .sa_flags = SA_RESTART };
    if (!on) action.sa_handler = SIG_DFL;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Locks a file until the process ends. Returns 0, or who has it, or -1 and errno. */
static inline long cli_take(const char *file) {
    struct flock lock;
    int f = open(file, O_RDWR | O_CREAT, 0666);
    do {   /* again where the other one has ended by the time it is asked for */
        memset(&lock, 0, sizeof lock);
        lock.l_type = F_WRLCK, lock.l_whence = SEEK_SET;
        if (f >= 0 && fcntl(f, F_SETLK, &lock) == 0) return 0;
        if (f < 0 || (errno != EACCES && errno != EAGAIN) || fcntl(f, F_GETLK, &lock)) return -1;
    } while (lock.l_type == F_UNLCK);
    return (long)lock.l_pid;
}

/* Is there one file or directory behind both names? */
static inline int cli_is_same(const char *a, const char *b) {
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Is this open file still the one behind that name? */
static inline int cli_is_at(FILE *f, const char *path) {
    struct stat x, y;
    return !fstat(fileno(f), &x) && !stat(path, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Seconds, by a clock that is never set back. */
static inline double cli_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#endif

/* --- errors and options ----------------------------------------------------------------------- */

static const char *cli_program = "";   /* begins every error */
static int cli_line_is_open;           /* a line on the terminal still lacks its end */

/* Of several processes that work together (cli_peers.h), this is number `rank` of `ranks`. */
static int cli_rank, cli_ranks = 1;
static void (*cli_at_failure)(int status, const char *text);   /* ends all of them */

/* Ends the program: one line on what is wrong and what would be right, and perhaps a second one,
   "(a hint)". 2: usage, 1: all else. Whatever was typed, it stays that: a long value loses its
   middle, and what would move the cursor turns into a question mark. */
#if defined(__GNUC__)
__attribute__((noreturn, format(printf, 2, 3)))
#endif
static inline void cli_fail(int status, const char *format, ...) {
    enum { HALF = 800 };
    char text[2 * HALF + 8], *hint = NULL, *all;
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n >= (int)sizeof text && (all = (char *)malloc((size_t)n + 1)) != NULL) {
        va_start(arguments, format);
        vsnprintf(all, (size_t)n + 1, format, arguments);
        va_end(arguments);
        snprintf(text + HALF, HALF + 8, " ... %s", all + n - HALF);
        free(all);
    }
    for (char *c = text; *c; c++) if (c[0] == '\n' && c[1] == '(') hint = c;
    for (char *c = text; *c; c++)
        if (((unsigned char)*c < ' ' || *c == 127) && c != hint) *c = '?';
    if (cli_line_is_open) putchar('\n');
    fflush(stdout);
    if (cli_at_failure) cli_at_failure(status, text);
    fprintf(stderr, "%s: %s\n", cli_program, text);
    exit(status);
}

static inline void cli_cannot(const char *what, const char *path) {
    cli_fail(1, "cannot %s %s: %s", what, path, strerror(errno));
}

/* What went wrong without ending the program: a line, and perhaps "(a hint)". The first process of
   several says it. */
#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
static inline void cli_warn(const char *format, ...) {
    va_list arguments;
    if (cli_rank) return;
    if (cli_line_is_open) putchar('\n');
    cli_line_is_open = 0;
    fflush(stdout);
    fprintf(stderr, "%s: warning: ", cli_program);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

static inline void *cli_alloc(size_t bytes) {
    void *p = malloc(bytes + !bytes);
    if (!p) cli_fail(1, "out of memory: %lu bytes were needed", (unsigned long)bytes);
    return p;
}

/* Position of a word in "a|b|c", or -1. */
static inline int cli_choice(const char *words, const char *word) {
    size_t n = strlen(word);
    for (int i = 0; words; i++, words = strchr(words, '|'), words += words != NULL)
        if (strcspn(words, "|") == n && !strncmp(words, word, n)) return i;
    return -1;
}

/* Stores a value, if it is one: no junk around it, finite, and in the range. Returns whether. */
static inline int cli_set(const cli_option *o, const char *text) {
    char left, right, *end;
    double low, high, x;
    int choice = o->kind == CLI_CHOICE ? cli_choice(o->range, text) : 1;
    if (o->kind == CLI_TEXT) *(const char **)o->value = text;
    else if (o->kind <= CLI_CHOICE && choice >= 0) *(int *)o->value = choice;
    if (o->kind <= CLI_CHOICE) return choice >= 0;
    if (text[strspn(text, o->kind == CLI_REAL ? "+-.0123456789eE" : "+-0123456789")]) return 0;
    x = strtod(text, &end);
    if (end == text || *end || !isfinite(x)) return 0;
    if (sscanf(o->range, "%c%lf, %lf%c", &left, &low, &high, &right) != 4) return 0;
    if (x < low || x > high || (x <= low && left == '(') || (x >= high && right == ')')) return 0;
    errno = 0;
    if (o->kind == CLI_REAL) *(double *)o->value = x;
    else if (o->kind == CLI_INT) *(int *)o->value = (int)x;
    else *(uint64_t *)o->value = strtoull(text, NULL, 10);
    return errno == 0;
}

/* And back: the number or the word stored at `value`, as text. */
static inline void cli_get(char *text, size_t size, const cli_option *o, const void *value) {
    const char *word = o->range;
    if (o->kind == CLI_REAL) snprintf(text, size, "%.15g", *(const double *)value);
    else if (o->kind == CLI_SEED)
        snprintf(text, size, "%llu", (unsigned long long)*(const uint64_t *)value);
    else if (o->kind == CLI_CHOICE) {
        for (int i = *(const int *)value; i > 0; i--) word = strchr(word, '|') + 1;
        snprintf(text, size, "%.*s", (int)strcspn(word, "|"), word);
    } else if (o->kind == CLI_FLAG) snprintf(text, size, "%s", *(const int *)value ? "it" : "none");
    else snprintf(text, size, "%d", *(const int *)value);
}

static inline const char *cli_given(const cli_option *options, const char *name) {
    while (strcmp(options->name, name)) options++;
    return options->given;
}

/* For options whose values are in one struct, `mine`: those given must have the values they have in
   another, found in a directory. */
static inline void cli_compare(const cli_option *options, int n, const void *mine,
                               const void *theirs, size_t size, const char *directory) {
    char asked[64], there[64];
    for (const cli_option *o = options; o < options + n; o++) {
        size_t offset = (size_t)((uintptr_t)o->value - (uintptr_t)mine);
        if (!o->given || offset >= size || o->kind == CLI_TEXT) continue;
        cli_get(asked, sizeof asked, o, o->value);
        cli_get(there, sizeof there, o, (const char *)theirs + offset);
        if (strcmp(asked, there))
            cli_fail(2, "%s%s%s: the run in %s has %s", o->name, *o->given ? " " : "", o->given,
                     directory, there);
    }
}

/* A word for a shell: that takes anything in quotes, but for a quote. */
static inline void cli_put_word(const char *word) {
    const char *quote = word[strspn(word, "+-./0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "abcdefghijklmnopqrstuvwxyz")] || !*word ? "'" : "";
    printf("%s", quote);
    for (const char *c = word; *c; c++)
        if (*c == '\'') printf("'\\''");
        else putchar(*c);
    printf("%s", quote);
}

/* The command to go on with: the program, and the options that were given and are not in that
   struct, flags left out. */
static inline void cli_repeat(const char *program, const cli_option *options, int n,
                              const void *but, size_t size) {
    cli_put_word(program);
    printf(" --resume");
    for (const cli_option *o = options; o < options + n; o++) {
        size_t offset = (size_t)((uintptr_t)o->value - (uintptr_t)but);
        if (!o->given || offset < size || o->kind == CLI_FLAG) continue;
        printf(" %s ", o->name);
        cli_put_word(o->given);
    }
    putchar('\n');
}

static inline void cli_help(const char *usage, const cli_option *options, int n) {
    printf("%s\n\n", usage);
    for (const cli_option *o = options; o < options + n; o++) {
        const char *what = o->kind == CLI_REAL ? "X" : o->kind >= CLI_INT ? "N" : o->range;
        const char *range = o->kind >= CLI_INT ? o->range : "";
        int column = printf("  %s %s", o->name, what ? what : "");
        printf("%*s %s", column < 22 ? 22 - column : 0, "", o->help);
        if (o->initial) printf(" [%s]", o->initial);
        printf("%s%s\n", *range ? " in " : "", range);
    }
    printf("  --help               this page; the default is in [brackets]\n");
}

static inline void cli_refuse(const cli_option *o, const char *given) {
    const char *space = given ? " " : "";
    const char *a[] = { "no value", "a", "one of", "a whole number in", "a whole number in",
                        "a number in" };
    cli_fail(2, "%s%s%s: needs %s %s", o->name, space, given ? given : "", a[o->kind],
             o->range ? o->range : "after it");
}

/* Sets all defaults, then what the command line says; what is not an option moves to argv's end.
   Returns where that starts. */
static inline int cli_parse(int argc, char **argv, cli_option *options, int n, const char *usage) {
    struct option names[64] = { { 0, 0, 0, 0 } }, *name = names;
    char letters[64] = ":", *letter = letters + 1;
    int c;
    cli_prepare();
    for (int i = 0; i < n; i++) {
        if (options[i].initial) cli_set(&options[i], options[i].initial);
        if (options[i].name[1] != '-') {
            *letter++ = options[i].name[1], *letter++ = ':';
            continue;
        }
        name->name = options[i].name + 2;
        name->has_arg = options[i].kind == CLI_FLAG ? no_argument : required_argument;
        name++->val = 256 + i;
    }
    name->name = "help", name->val = 256 + n;
    opterr = 0;
    while ((c = getopt_long(argc, argv, letters, names, NULL)) != -1) {
        cli_option *o = options;
        int known = c == ':' || c == '?' ? optopt : c;
        if (c == 256 + n) {
            cli_help(usage, options, n);
            if (cli_at_failure) cli_at_failure(0, "");   /* the others may not have been asked */
            exit(0);
        }
        while (o < options + n && known != 256 + (o - options) && known != o->name[1]) o++;
        if (c == '?' && known && known < 256)   /* a byte above 127 is negative */
            cli_fail(2, "-%c: no such option here (--help lists them)", known);
        if (c == '?' && o == options + n)
            cli_fail(2, "%s: no such option here (--help lists them)", argv[optind - 1]);
        if (c == '?' || c == ':') cli_refuse(o, NULL);
        if (!cli_set(o, optarg ? optarg : "")) cli_refuse(o, optarg);
        o->given = optarg ? optarg : "";
    }
    return optind;
}

/* A whole file, as bytes. */
static inline unsigned char *cli_read(const char *path, size_t *size, const char *hint) {
    size_t room = 1 << 16, n = 0, got;
    unsigned char *bytes = (unsigned char *)cli_alloc(room);
    FILE *f = fopen(path, "rb");
    while (f && (got = fread(bytes + n, 1, room - n, f)) > 0) {
        if ((n += got) < room) continue;
        bytes = (unsigned char *)realloc(bytes, room *= 2);
        if (!bytes) cli_fail(1, "%s: too large for the memory there is", path);
    }
    if (!f || ferror(f)) cli_fail(1, "cannot read %s: %s%s", path, strerror(errno), hint);
    fclose(f);
    *size = n;
    return bytes;
}

/* A file that takes the place of another one when it is whole. */
typedef struct cli_output {
    FILE *file;
    const char *path;
    char beside[1024];
} cli_output;

static inline void cli_open(cli_output *out, const char *path) {
    int n = snprintf(out->beside, sizeof out->beside, "%s.tmp", path);
    out->path = path;
    if (n >= (int)sizeof out->beside) cli_fail(2, "%.100s...: this path is too long", path);
    out->file = fopen(out->beside, "wb");
    if (!out->file) cli_cannot("write", out->beside);
}

static inline void cli_close(cli_output *out) {
    int failed = ferror(out->file);
    if (fclose(out->file) || failed || hmoe__replace(out->beside, out->path, ".")) {
        int error = errno;
        remove(out->beside);
        errno = error;
        cli_cannot("write", out->path);
    }
}

/* Turns bytes into tokens, in place. */
static inline void cli_tokens(const hmoe_config *c, unsigned char *text, size_t n, const char *what)
{
    int token[256];
    for (int i = 0; i < 256; i++) token[i] = -1;
    for (int i = 0; i < c->vocab_size; i++) token[c->vocab[i]] = i;
    for (size_t i = 0; i < n; i++) {
        if (token[text[i]] < 0)
            cli_fail(1, "%s: byte %d (0x%02x) at offset %lu is not among the %d of the model's "
                     "vocabulary", what, text[i], text[i], (unsigned long)i, c->vocab_size);
        text[i] = (unsigned char)token[text[i]];
    }
}

/* Mean cross-entropy of a text's n >= 2 tokens after the first. windows = 0: of all of them, in
   consecutive windows of T inputs, the last one shorter. Otherwise of that many windows, evenly
   spaced, if they are fewer. At most B windows are computed at a time, by all processes together.
   After each pass `look`, unless NULL, may see which tokens it had, if they are consecutive. */
static inline hmoe_status cli_loss(hmoe_model *m, const unsigned char *text, size_t n,
                                   size_t windows, int B,
                                   void (*look)(hmoe_model *m, size_t first, size_t tokens),
                                   double *loss) {
    size_t inputs = n - 1, T = (size_t)m->config.T < inputs ? (size_t)m->config.T : inputs;
    size_t all = (inputs + T - 1) / T, last = inputs - (all - 1) * T, count = 0;
    size_t spread = windows && windows < all ? inputs - T : 0;      /* from first start to last */
    int *x = (int *)cli_alloc((size_t)B * T * 2 * sizeof *x), *y = x + (size_t)B * T;
    hmoe_status status = HMOE_OK;
    size_t between = windows > 1 ? windows - 1 : 1;
    if (!spread) windows = all;
    *loss = 0;
    for (size_t w = 0, b; w < windows && !status; w += b) {
        int is_last = !spread && w == windows - 1;                  /* it goes alone */
        size_t t = is_last ? last : T, full = windows - !spread - w;
        b = is_last ? 1 : full < (size_t)B ? full : (size_t)B;
        size_t first = b * (size_t)cli_rank / (size_t)cli_ranks;    /* of this process */
        size_t mine = b * (size_t)(cli_rank + 1) / (size_t)cli_ranks - first;
        for (size_t i = 0; i < mine * t; i++) {
            size_t window = w + first + i / t;
            size_t start = spread ? window * spread / between : window * T;
            x[i] = text[start + i % t];
            y[i] = text[start + i % t + 1];
        }
        status = hmoe_forward(m, HMOE_EVALUATE, x, y, (int)mine, (int)t);
        if (!status && look) look(m, w * T, b * t);
        *loss += m->losses.ce * (double)(b * t);
        count += b * t;
    }
    *loss /= (double)count;
    free(x);
    return status;
}

typedef struct cli_sampling {
    double temperature, top_p;
    int top_k;
    uint64_t seed;
} cli_sampling;

/* A model for the CPU, where generation runs, with another's weights. */
static inline hmoe_status cli_copy(hmoe_model *copy, hmoe_model *m) {
    hmoe_status status = hmoe_create(copy, &m->config, m->seed, 0, 0);
    const char *error;
    if (status) return status;
    m->backend->download(copy->params, m->params, m->param_count * sizeof *m->params);
    if ((error = m->backend->synchronize()) == NULL) return HMOE_OK;
    snprintf(copy->message, sizeof copy->message, "%s: %s", m->backend->name, error);
    return HMOE_IO;
}

/* Lets the model go on after a prompt of at least one token, byte by byte. */
static inline hmoe_status cli_write(hmoe_model *m, const unsigned char *prompt, size_t prompt_size,
                                    int n, const cli_sampling *s, void (*put)(int byte)) {
    int V = m->config.V;
    hmoe_real *logits = (hmoe_real *)cli_alloc((size_t)V * sizeof *logits);
    hmoe_cache cache = { 0 };
    hmoe_model copy = { 0 }, *given = m;
    hmoe_status status = HMOE_OK;
    if (strcmp(m->backend->name, "cpu")) m = &copy, status = cli_copy(m, given);
    if (!status) status = hmoe_cache_create(&cache, m);
    for (size_t i = 0; i < prompt_size && !status && n > 0; i++)
        status = hmoe_next(m, &cache, prompt[i], logits);
    for (int i = 0, token; i < n && !status; i++) {
        token = hmoe_sample(logits, V, s->temperature, s->top_k, s->top_p, s->seed, cache.position);
        put(m->config.vocab[token]);
        if (i < n - 1) status = hmoe_next(m, &cache, token, logits);
    }
    if (m != given) memcpy(given->message, copy.message, sizeof copy.message);
    hmoe_cache_free(&cache);
    hmoe_free(&copy);
    free(logits);
    return status;
}

/* The sum over all processes. */
static inline double cli_sum(hmoe_model *m, double x) {
    if (m->processes) m->processes->sum(m, &x, 1);
    return x;
}

/* Is every weight of theirs? */
static inline int cli_is_finite(hmoe_model *m) {
    return isfinite(cli_sum(m, m->backend->squared_norm(m->params, m->param_count)));
}

/* What a text goes on from where nothing else is said: a newline, or token 0 if there is none. */
static inline unsigned char cli_first_token(const hmoe_config *c) {
    for (int i = 0; i < c->vocab_size; i++)
        if (c->vocab[i] == '\n') return (unsigned char)i;
    return 0;
}

/* Uses that many threads, 0: as before, and at first all. Returns how many it is. */
static inline int cli_threads(int threads) {
#ifdef _OPENMP
#define CLI_OPENMP ""
    if (threads) omp_set_num_threads(threads);
    return omp_get_max_threads();
#else
#define CLI_OPENMP " (built without OpenMP, which would use all cores)"
    return threads < 0 ? threads : 1;
#endif
}

/* Who computes: three options of both programs. */
typedef struct cli_backend {
    int threads, cuda, bf16;
} cli_backend;
#define CLI_BACKEND(b) \
    { "--threads", CLI_INT, &(b).threads, "[1, 1024]", "all", "that share the work", 0 }, \
    { "--backend", CLI_CHOICE, &(b).cuda, "cpu|cuda", "cpu", "who computes", 0 }, \
    { "--precision", CLI_CHOICE, &(b).bf16, "float32|bf16", "float32", \
      "in which cuda multiplies", 0 }

/* Gets them ready. Returns the steps for a model. */
static inline const hmoe_backend *cli_steps(const cli_backend *b) {
    cli_threads(b->threads);
    if (b->bf16 && !b->cuda) cli_fail(2, "--precision bf16: the cpu computes in float32 only");
    if (!b->cuda) return NULL;                       /* the CPU's */
#ifdef HMOE_CUDA
    char why[HMOE_MESSAGE_SIZE];
    const hmoe_backend *steps = hmoe_cuda(b->bf16 ? HMOE_BF16 : HMOE_FLOAT32, why);
    if (!steps) cli_fail(1, "%s", why);
    return steps;
#else
    cli_fail(2, "--backend cuda: this program was built without it: make cuda");
    return NULL;
#endif
}

/* Makes a directory where there is none, if it may, and locks it by a file in it until the process
   ends. */
static inline void cli_lock(const char *directory, const char *file, int may_make) {
    long owner;
    if (may_make && hmoe__make_directory(directory)) cli_cannot("make the directory", directory);
    if ((owner = cli_take(file)) == 0) return;
    if (owner < 0) cli_cannot("write to the directory", directory);
    cli_fail(1, "%s is in use by another run, process %ld: wait for it or choose another directory",
             directory, owner);
}

/* Renames a file while it is written: Windows renames none that is open. Not 0 where it cannot. */
static inline int cli_rename(FILE **f, const char *from, const char *to, const char *directory) {
    if (fclose(*f) || hmoe__replace(from, to, directory)) return -1;
    return (*f = fopen(to, "ab")) == NULL;
}

/* Forces to the disk what was written to a file, which must still be the one behind its name: the
   directory may be gone, or another one by now. */
static inline void cli_sync(FILE *f, const char *path) {
    if (ferror(f) || hmoe__flush_to_disk(f)) cli_cannot("write", path);
    if (!cli_is_at(f, path)) cli_fail(1, "nothing more is saved: %s is gone", path);
}

#include "extra/parallel/cli_peers.h"

#endif /* CLI_H */
