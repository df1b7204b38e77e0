/* overwrite.h - the directory of a run. At every instant it holds one complete run, even while a
   new run replaces an older one. train_tiny.c includes it.

   The new run first writes to DIR.new, and DIR does not change. After the first complete save:

       DIR      becomes DIR.old
       DIR.new  becomes DIR
       DIR.old  is removed; files that no run makes move to DIR

   If the program starts and finds DIR.old but no DIR, it renames DIR.old to DIR. Each of these
   directories contains a file ".overwrite.hmoe". The program never touches a directory without it.

   A link, a mount point or the current directory cannot be renamed. Then the directories are
   DIR/.new, DIR/.part and DIR/.old, and the run's files move one by one:

       those of DIR go into DIR/.part   a start that finds .part moves them back
       .part becomes .old
       those of .new go into DIR        a start that finds .old and .new goes on with that
       .new and then .old are removed

   After an error the older run is in DIR again at once. The new one is complete by then. It stays
   where it grew, and loses its mark, so that nothing removes it.

   The lock is the file "lock" in the directory. DIR.new has a lock of its own. Therefore a program
   that has locked DIR keeps it under all its names. */
#ifndef OVERWRITE_H
#define OVERWRITE_H

#include "cli.h"

#define OVERWRITE_MARK ".overwrite.hmoe"

typedef struct overwrite {
    char dir[CLI_PATH_SIZE];            /* DIR */
    char beside_new[CLI_PATH_SIZE], beside_old[CLI_PATH_SIZE];                  /* DIR.new ... */
    char inside_new[CLI_PATH_SIZE], inside_part[CLI_PATH_SIZE], inside_old[CLI_PATH_SIZE];
    const char *grows;                  /* where the run's files are written: one of these, */
    int kept;                           /*   which is kept open */
} overwrite;

/* All files of a run. config.json is removed first: a directory without it is not a model. */
static const char *const overwrite_files[] = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "training.safetensors", "log.csv", "recipe.txt", "best", NULL
};

static inline int overwrite_has(const char *dir, const char *name) {
    char path[CLI_PATH_SIZE];
    return access(cli_path(path, dir, name), F_OK) == 0;
}

/* Is there a run, or the best model of one? */
static inline int overwrite_has_run(const char *dir) {
    return overwrite_has(dir, "config.json") || overwrite_has(dir, "best/config.json");
}

#ifdef _WIN32
static inline int overwrite_exists(const char *path) { return access(path, F_OK) == 0; }
static inline int overwrite_is_link(const char *path) { return path == NULL; }
#else
static inline int overwrite_exists(const char *path) {   /* a link to nothing does */
    struct stat is;
    return lstat(path, &is) == 0;
}
static inline int overwrite_is_link(const char *path) {
    struct stat is;
    return !lstat(path, &is) && S_ISLNK(is.st_mode);
}
#endif

/* Removes a run's files, and those that a crash left unfinished. Links go, what they lead to
   stays. */
static inline void overwrite_remove_files(const char *dir) {
    char path[CLI_PATH_SIZE];
    hmoe__output unfinished;
    for (const char *const *name = overwrite_files; *name; name++) {
        cli_path(path, dir, *name);
        if (!strcmp(*name, "best") && !overwrite_is_link(path)) {
            if (access(path, F_OK)) continue;
            overwrite_remove_files(path);
            rmdir(path);
        }
        if (!hmoe__name_output(&unfinished, dir, *name, NULL)) unlink(unfinished.beside);
        unlink(path);
    }
}

#ifdef _WIN32
/* Windows cannot rename a directory with an open file in it, such as the lock. */
static inline int overwrite_can_rename(const char *dir, const char *to) {
    (void)dir, (void)to;
    return 0;
}
static inline void overwrite_keep_others(const char *from, const char *to) {
    (void)from, (void)to;
}
#else
#include <dirent.h>

static inline int overwrite_can_rename(const char *dir, const char *to) {
    if (overwrite_is_link(dir) || cli_is_same(dir, ".") || rename(dir, to)) return 0;
    if (hmoe__replace(to, dir)) cli_cannot("rename", to);
    return 1;
}

/* Moves files that the user put beside the older run, such as an export, to the new one. */
static inline void overwrite_keep_others(const char *from, const char *to) {
    char a[4096], b[4096];
    struct dirent *entry;
    DIR *d = opendir(from);
    while (d && (entry = readdir(d)) != NULL) {
        if (!strcmp(entry->d_name, OVERWRITE_MARK)) continue;
        snprintf(a, sizeof a, "%s/%s", from, entry->d_name);
        snprintf(b, sizeof b, "%s/%s", to, entry->d_name);
        if (!overwrite_exists(b)) rename(a, b);
    }
    if (d) closedir(d);
}
#endif

/* Puts the mark into a directory. Returns 0 if it is there. */
static inline int overwrite_put_mark(const char *dir) {
    char path[CLI_PATH_SIZE];
    cli_need_file(cli_path(path, dir, OVERWRITE_MARK));
    FILE *f = fopen(path, "wb");
    return !f || fclose(f);
}

static inline void overwrite_mark(const char *dir) {
    if (overwrite_put_mark(dir)) cli_cannot("write to the directory", dir);
}

/* Removes a directory that this protocol made, the mark last. Other files move to `keep`. If files
   cannot be removed, the mark stays, and the next start tries again. */
static inline void overwrite_remove(const char *dir, const char *keep) {
    char path[CLI_PATH_SIZE];
    rmdir(dir);                                  /* empty: a crash before the mark was written */
    if (!overwrite_has(dir, OVERWRITE_MARK)) return;
    overwrite_remove_files(dir);
    cli_unlock(dir);
    if (keep) overwrite_keep_others(dir, keep);
    unlink(cli_path(path, dir, OVERWRITE_MARK));
    if (rmdir(dir)) overwrite_put_mark(dir);
}

/* Makes a directory with the mark. */
static inline void overwrite_make(const char *dir) {
    if (hmoe__make_directory(dir)) cli_cannot("make the directory", dir);
    overwrite_mark(dir);
}

/* Moves the run's files from one directory to another. Returns 0, or what errno says. */
static inline int overwrite_move(const char *from, const char *to) {
    char a[CLI_PATH_SIZE], b[CLI_PATH_SIZE];
    for (const char *const *name = overwrite_files; *name; name++) {
        if (!overwrite_exists(cli_path(a, from, *name))) continue;
        if (hmoe__replace(a, cli_path(b, to, *name))) return errno;
    }
    return 0;
}

/* The same, or ends the program. */
static inline void overwrite_must_move(const char *from, const char *to) {
    int error = overwrite_move(from, to);
    if (error) cli_fail(1, "cannot move the run from %s to %s: %s", from, to, strerror(error));
}

static inline void overwrite_name(overwrite *o, const char *dir) {
    size_t n = strlen(dir);
    if (n > CLI_PATH_SIZE - 64)
        cli_fail(2, "--out: is longer than %d bytes", CLI_PATH_SIZE - 64);
    while (n > 1 && dir[n - 1] == '/') n--;
    snprintf(o->dir, sizeof o->dir, "%.*s", (int)n, dir);
    snprintf(o->beside_new, sizeof o->beside_new, "%.1000s.new", o->dir);
    snprintf(o->beside_old, sizeof o->beside_old, "%.1000s.old", o->dir);
    cli_path(o->inside_new, o->dir, ".new");
    cli_path(o->inside_part, o->dir, ".part");
    cli_path(o->inside_old, o->dir, ".old");
    o->grows = o->dir;
    o->kept = -1;
}

/* Renames DIR.old to DIR after a crash between the two renames. */
static inline void overwrite_give_back(const overwrite *o) {
    char path[CLI_PATH_SIZE];
    if (access(o->dir, F_OK) == 0 || !overwrite_has(o->beside_old, OVERWRITE_MARK)) return;
    cli_lock(o->beside_old);
    if (hmoe__replace(o->beside_old, o->dir)) cli_cannot("rename", o->beside_old);
    unlink(cli_path(path, o->dir, OVERWRITE_MARK));
    cli_warn("the older run is in %s again: a run with --overwrite ended too early", o->dir);
}

/* Finishes the work that a crash interrupted. DIR is locked. */
static inline void overwrite_tidy(const overwrite *o) {
    char path[CLI_PATH_SIZE];
    if (overwrite_has(o->inside_part, OVERWRITE_MARK)) {
        overwrite_must_move(o->inside_part, o->dir);
        cli_warn("the older run is in %s again: a run with --overwrite ended too early", o->dir);
    }
    if (overwrite_has(o->inside_old, OVERWRITE_MARK)) overwrite_must_move(o->inside_new, o->dir);
    overwrite_remove(o->inside_part, NULL);
    overwrite_remove(o->inside_new, NULL);
    overwrite_remove(o->inside_old, NULL);
    if (overwrite_has_run(o->dir)) overwrite_remove(o->beside_old, o->dir);
    overwrite_remove(o->beside_new, NULL);
    unlink(cli_path(path, o->dir, OVERWRITE_MARK));
}

/* Ends the program if somebody else's file has one of the names that are needed. */
static inline void overwrite_look_for_obstacles(const overwrite *o) {
    const char *const places[] = { o->beside_new, o->beside_old, o->inside_new, o->inside_old };
    for (int i = 0; i < 4; i++)
        if (access(places[i], F_OK) == 0)
            cli_fail(1, "%s is in the way of --overwrite: move it, or choose another --out",
                     places[i]);
}

/* From now on the run's files are written to `dir`. */
static inline void overwrite_grow(overwrite *o, const char *dir) {
    if (o->kept >= 0) close(o->kept);
    o->grows = dir;
    o->kept = cli_keep(dir);
}

/* Ends the program if that directory is gone, or another one by now: it may be another run's. */
static inline void overwrite_check(const overwrite *o) {
    if (cli_rank == 0 && o->kept >= 0 && !cli_is_open_at(o->kept, o->grows))
        cli_fail(1, "cannot save: the directory %s was removed or replaced", o->grows);
}

static cli_made overwrite_made;      /* DIR, unless it was there */

/* At the end of a program that has written no file: removes DIR if it was made for it. */
static inline void overwrite_leave(void) {
    if (!overwrite_made.first || strlen(overwrite_made.path) > CLI_PATH_SIZE - 8) return;
    cli_unlock(overwrite_made.path);
    cli_unmake_directory(&overwrite_made);
}

/* Makes DIR for a new run. */
static inline void overwrite_make_dir(const overwrite *o) {
    cli_make_directory(&overwrite_made, o->dir);
    if (overwrite_made.first) atexit(overwrite_leave);
}

/* Locks DIR. Ends the program if its contents do not fit the options. From here on only the first
   process uses the directory. */
static inline void overwrite_enter(overwrite *o, const char *dir, int resume, int replace) {
    char path[CLI_PATH_SIZE];
    overwrite_name(o, dir);
    if (cli_rank > 0) return;
    overwrite_give_back(o);
    if (!resume) overwrite_make_dir(o);
    int is_run = overwrite_has(o->dir, "training.safetensors");
    if (is_run || !resume || overwrite_has(o->dir, ".part") || overwrite_has(o->dir, ".old")) {
        cli_lock(o->dir);
        overwrite_tidy(o);
    }
    if (resume && (access(cli_path(path, o->dir, "config.json"), F_OK)
                   || access(cli_path(path, o->dir, "training.safetensors"), F_OK)))
        cli_fail(1, "--resume: there is no run in %s: cannot find %s", o->dir, path);
    if (!resume && !replace && overwrite_has_run(o->dir))
        cli_fail(1, "--out %s: there is a run already, --resume continues it and --overwrite "
                 "replaces it", o->dir);
    if (replace) overwrite_look_for_obstacles(o);
    overwrite_grow(o, o->dir);
}

/* Makes the directory for the new run's files until the first save. */
static inline void overwrite_begin(overwrite *o) {
    char path[CLI_PATH_SIZE];
    overwrite_made.first = 0;                        /* files will be written to it */
    if (cli_rank > 0 || !overwrite_has_run(o->dir)) return;
    overwrite_mark(o->dir);                          /* a crash may come now */
    int beside = overwrite_can_rename(o->dir, o->beside_old);
    unlink(cli_path(path, o->dir, OVERWRITE_MARK));
    overwrite_make(beside ? o->beside_new : o->inside_new);
    overwrite_grow(o, beside ? o->beside_new : o->inside_new);
    if (beside) cli_lock(o->grows);
}

/* Ends the program because the new run cannot take the older one's place. */
CLI_NEVER_RETURNS static inline void overwrite_keep_both(const overwrite *o, int error) {
    char path[CLI_PATH_SIZE];
    unlink(cli_path(path, o->grows, OVERWRITE_MARK));
    cli_fail(1, "cannot replace the run in %s: %s\n(it is as it was; the new run is saved in %s: "
             "--resume --out %s continues it)", o->dir, strerror(error), o->grows, o->grows);
}

static inline void overwrite_swap_beside(const overwrite *o) {
    char path[CLI_PATH_SIZE];
    overwrite_mark(o->dir);
    int error = hmoe__replace(o->dir, o->beside_old) ? errno : 0;
    if (!error && hmoe__replace(o->beside_new, o->dir)) {
        error = errno;
        hmoe__replace(o->beside_old, o->dir);
    }
    if (!error) overwrite_remove(o->beside_old, o->dir);
    unlink(cli_path(path, o->dir, OVERWRITE_MARK));
    if (error) overwrite_keep_both(o, error);
}

static inline void overwrite_swap_inside(const overwrite *o) {
    overwrite_make(o->inside_part);
    int error = overwrite_move(o->dir, o->inside_part);
    if (!error && hmoe__replace(o->inside_part, o->inside_old)) error = errno;
    if (error) {
        if (!overwrite_move(o->inside_part, o->dir)) overwrite_remove(o->inside_part, NULL);
        overwrite_keep_both(o, error);
    }
    overwrite_must_move(o->inside_new, o->dir);
    overwrite_remove(o->inside_new, NULL);
    overwrite_remove(o->inside_old, NULL);
}

/* After the first complete save: DIR becomes the new run's. Windows allows no open file in it
   meanwhile; therefore the log is closed and opened again. */
static inline void overwrite_commit(overwrite *o, FILE **log) {
    char path[CLI_PATH_SIZE];
    fclose(*log);
    if (o->grows == o->beside_new) overwrite_swap_beside(o);
    else overwrite_swap_inside(o);
    overwrite_grow(o, o->dir);
    *log = fopen(cli_path(path, o->dir, "log.csv"), "a+b");
    if (!*log) cli_cannot("write", path);
}

#endif /* OVERWRITE_H */
