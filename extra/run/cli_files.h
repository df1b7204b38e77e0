/* cli_files.h - the files and directories that programs read and write: paths, locks, texts, and
   outputs that never destroy what they are pointed at. cli.h includes it there. */
#ifndef CLI_FILES_H
#define CLI_FILES_H

static inline const char *cli_path(char *path, const char *dir, const char *name) {
    int n = snprintf(path, CLI_PATH_SIZE, "%s/%s", dir, name);
    if (n >= CLI_PATH_SIZE) cli_fail(2, "%.120s...: this path is too long", path);
    return path;
}

/* Is it a regular file, or can it become one? Anything else could wait for ever if it is opened. */
static inline int cli_is_file(const char *path) {
    struct stat is;
    return stat(path, &is) ? errno == ENOENT : S_ISREG(is.st_mode);
}

/* Ends the program if something else is in the place of a program's own file. */
static inline void cli_need_file(const char *path) {
    if (!cli_is_file(path) && errno != ENOTDIR)
        cli_fail(1, "%s is in the way: it is no regular file, move it", path);
}

/* --- directories ----------------------------------------------------------------------------- */

/* A directory that this process made, with those of its parents that did not exist. */
typedef struct cli_made {
    char path[HMOE__PATH_SIZE];
    size_t first;              /* length of the first one's path; 0: all were there */
} cli_made;

/* Removes again what was made, as far as it is empty. */
static inline void cli_unmake_directory(cli_made *made) {
    for (size_t n = strlen(made->path); made->first && n >= made->first;) {
        made->path[n] = 0;
        rmdir(made->path);
        while (n > 0 && made->path[n - 1] != '/') n--;
        while (n > 0 && made->path[n - 1] == '/') n--;
    }
}

/* Makes a directory and its parents. If it is a link to nothing, makes what the link leads to. */
static inline void cli_make_directory(cli_made *made, const char *dir) {
    char *path = made->path;
    int failed = !*dir || snprintf(path, HMOE__PATH_SIZE, "%s", dir) >= HMOE__PATH_SIZE;
    made->first = 0;
    errno = *dir ? ENAMETOOLONG : ENOENT;
    if (failed || hmoe__follow(path)) cli_cannot("make the directory", dir);
    for (size_t i = 1, n = strlen(path); i <= n; i++) {
        char end = path[i];
        if ((end && end != '/') || path[i - 1] == '/') continue;
        path[i] = 0;
        int is_new = access(path, F_OK) != 0;
        failed = hmoe__make_directory(path);
        if (!failed && is_new && !made->first) made->first = i;
        path[i] = end;
    }
    if (!failed) return;
    int error = errno;
    cli_unmake_directory(made);
    errno = error;
    cli_cannot("make the directory", dir);
}

/* Locks a directory, by a file in it, until the process ends. */
static inline void cli_lock(const char *dir) {
    char path[CLI_PATH_SIZE];
    cli_need_file(cli_path(path, dir, "lock"));
    long owner = cli_take(path);
    if (owner < 0) cli_cannot("write to the directory", dir);
    if (owner > 0)
        cli_fail(1, "%s is in use by process %ld: wait for it, or choose another directory", dir,
                 owner);
}

/* Removes the lock. A file of that name that is not empty is no lock. */
static inline void cli_unlock(const char *dir) {
    char path[CLI_PATH_SIZE];
    struct stat is;
    if (!stat(cli_path(path, dir, "lock"), &is) && is.st_size == 0) remove(path);
}

/* --- reading --------------------------------------------------------------------------------- */

enum { CLI_STREAM_BYTES = 1 << 30 };   /* a stream may have no end */

/* How many bytes to expect of an open file. Ends the program if it is neither a file, nor a pipe,
   nor a terminal: such a device may never end. */
static inline size_t cli_expected(FILE *f, const char *path) {
    struct stat is;
    if (fstat(fileno(f), &is)) cli_cannot("read", path);
    if (S_ISREG(is.st_mode) && (uintmax_t)is.st_size < SIZE_MAX) return (size_t)is.st_size;
    if (!S_ISFIFO(is.st_mode) && !S_ISDIR(is.st_mode) && !isatty(fileno(f))
        && !cli_is_same(path, "/dev/null"))
        cli_fail(1, "cannot read %s: it is a device, not a text", path);
    return 0;
}

/* A whole file, as bytes, with a 0 after them. */
static inline unsigned char *cli_read(const char *path, size_t *size, const char *hint) {
    FILE *f = fopen(path, "rb");
    if (!f) cli_fail(1, "cannot read %s: %s%s", path, strerror(errno), hint);
    size_t expected = cli_expected(f, path), room = expected + 1, n = 0, got;
    unsigned char *bytes = (unsigned char *)malloc(room);
    while (bytes && (got = fread(bytes + n, 1, room - n, f)) > 0) {
        n += got;
        if (n < room) continue;
        if (n > expected && n >= CLI_STREAM_BYTES)
            cli_fail(1, "cannot read %s: more than %d bytes of a stream, save them in a file", path,
                     CLI_STREAM_BYTES);
        room = room < 1 << 16 ? 1 << 16 : 2 * room;
        bytes = (unsigned char *)realloc(bytes, room);
    }
    if (!bytes) cli_fail(1, "%s does not fit in memory", path);
    if (ferror(f)) cli_fail(1, "cannot read %s: %s%s", path, strerror(errno), hint);
    fclose(f);
    bytes[n] = 0;
    *size = n;
    return bytes;
}

/* --- writing --------------------------------------------------------------------------------- */

/* An output of a program. A file is replaced when its successor is complete, and a link leads to
   that file. Anything else, such as a pipe or a device, is written to directly. */
typedef struct cli_output {
    FILE *file;
    const char *name;                  /* what the user calls it */
    char path[HMOE__PATH_SIZE];        /* where that leads */
    char beside[HMOE__PATH_SIZE];      /* the successor's name until then; "": there is none */
    struct cli_output *next;
} cli_output;

static cli_output *cli_unfinished;     /* those with a name to remove if the program ends now */

static inline void cli_remove_unfinished(void) {
    for (const cli_output *out = cli_unfinished; out; out = out->next) unlink(out->beside);
}

/* As the signal would have ended the program without this. */
static inline void cli_end_by_signal(int number) {
    cli_remove_unfinished();
    signal(number, SIG_DFL);
    raise(number);
}

static inline void cli_remove_at_end(cli_output *out) {
    static int is_set;
    out->next = cli_unfinished;
    cli_unfinished = out;
    if (!is_set) atexit(cli_remove_unfinished);
    if (!is_set) cli_catch_ends(cli_end_by_signal);
    is_set = 1;
}

/* Opens a new file beside the output, under a name that nobody has. */
static inline void cli_open_beside(cli_output *out) {
    int n = snprintf(out->path, sizeof out->path, "%s", out->name);
    if (n < HMOE__PATH_SIZE && hmoe__follow(out->path)) return;
    for (int i = 0; !out->file; i++) {
        if (n < HMOE__PATH_SIZE)
            n = snprintf(out->beside, sizeof out->beside, "%s.tmp-%ld-%d", out->path,
                         (long)getpid(), i);
        if (n >= HMOE__PATH_SIZE) cli_fail(2, "%.120s...: this path is too long", out->path);
        out->file = hmoe__create(out->beside, out->path);
        if (!out->file && errno != EEXIST) return;
    }
    cli_remove_at_end(out);
}

static inline void cli_open(cli_output *out, const char *path) {
    struct stat is;
    out->name = path;
    *out->beside = 0;
    fflush(stdout);
    out->file = cli_same_stream(path);
    if (!out->file && !stat(path, &is) && !S_ISREG(is.st_mode)) out->file = fopen(path, "wb");
    else if (!out->file) cli_open_beside(out);
    if (!out->file) cli_cannot("write", path);
}

static inline void cli_close(cli_output *out) {
    cli_output **at = &cli_unfinished;
    int failed = ferror(out->file);
    if (fclose(out->file) || failed) cli_cannot("write", out->name);
    if (!*out->beside) return;
    if (hmoe__replace(out->beside, out->path)) cli_cannot("write", out->name);
    while (*at != out) at = &(*at)->next;
    *at = out->next;
}

#endif
