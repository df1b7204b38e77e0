/* log.h - log.csv, a row for each step of a run. */
#ifndef LOG_H
#define LOG_H

#include "cli.h"

/* A new log, or the run's own up to a step: a crash may have left more rows than were saved. Rows
   are only added at the end, even if an editor has shortened the file meanwhile. */
static inline FILE *log_open(const char *dir, int64_t step, int resume) {
    char path[CLI_PATH_SIZE], row[512];
    long end = 0;
    if (cli_rank > 0) return stdout;                 /* it is not kept */
    cli_need_file(cli_path(path, dir, "log.csv"));
    FILE *f = fopen(path, "a+b");
    if (!f || fseek(f, 0, SEEK_SET)) cli_cannot("open", path);
    while (resume && fgets(row, sizeof row, f) && strchr(row, '\n')) {
        if (end > 0 && (atoll(row) < 1 || atoll(row) > step)) break;
        end = ftell(f);
    }
    if (truncate(path, end) || fseek(f, 0, SEEK_END)) cli_cannot("write", path);
    if (end == 0 && step > 0) cli_warn("%s is not there: it begins anew after step %lld", path,
                                       (long long)step);
    if (end == 0) {
        fputs("step,tokens,seconds,lr,loss,ce,", f);
        for (int i = 0; i < HMOE_LOSS_TERMS; i++) fprintf(f, "%s,", hmoe_loss_terms[i].name);
        fputs("grad_norm,activated,experts,val_loss\n", f);
    }
    if (hmoe__flush_to_disk(f)) cli_cannot("write", path);
    return f;
}

/* Writes the log anew if it was removed or replaced: the open file still has all rows. */
static inline FILE *log_restore(FILE *old, const char *dir, const char *path) {
    char part[4096], why[HMOE_MESSAGE_SIZE];
    hmoe__output out;
    cli_warn("%s was removed or replaced: it is written anew", path);
    if (!cli_is_file(path)) remove(path);
    if (hmoe__open_output(&out, dir, "log.csv", why)) cli_fail(1, "%s", why);
    rewind(old);
    for (size_t n; (n = fread(part, 1, sizeof part, old)) > 0;) fwrite(part, 1, n, out.file);
    hmoe_status status = hmoe__close_output(&out, HMOE_OK, why);
    if (!status) status = hmoe__rename_output(&out, why);
    if (status) {
        remove(out.beside);
        cli_fail(1, "%s", why);
    }
    fclose(old);
    FILE *f = fopen(path, "a+b");
    if (!f) cli_cannot("open", path);
    return f;
}

/* Forces to the disk what was written to the log. */
static inline void log_sync(FILE **log, const char *dir) {
    char path[CLI_PATH_SIZE];
    if (cli_rank > 0) return;
    cli_path(path, dir, "log.csv");
    if (ferror(*log) || hmoe__flush_to_disk(*log)) cli_cannot("write", path);
    if (!cli_is_at(*log, path)) *log = log_restore(*log, dir, path);
}

/* Writes a row without its last column, the validation loss. */
static inline void log_step(FILE *f, const hmoe_model *m, const hmoe_losses *x, double lr) {
    hmoe_usage u;
    double experts = 0;
    for (int l = 0; l < m->config.L; l++) {
        hmoe_get_usage(m, l, &u);
        experts += u.experts / m->config.L;
    }
    fprintf(f, "%lld,%lld,%.3f,%.9f,%.6f,%.6f,", (long long)m->step, (long long)m->tokens,
            m->seconds, lr, x->total, x->ce);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) fprintf(f, "%.6f,", x->term[i]);
    fprintf(f, "%.6f,%.1f,%.6f,", m->grad_norm, hmoe_activated(m), experts);
}

/* Ends the row, with that loss if there was an evaluation. */
static inline void log_end(FILE *f, const double *val_loss, const char *out) {
    if (val_loss) fprintf(f, "%.6f", *val_loss);
    putc('\n', f);
    if (fflush(f)) cli_fail(1, "cannot write %s/log.csv: %s", out, strerror(errno));
}

#endif
