/* log.h - log.csv, a row for each step of a run. */
#ifndef LOG_H
#define LOG_H

#include "cli.h"

/* A new log, or the run's own up to a step: a crash may have left more rows than were saved. */
static inline FILE *log_open(const char *dir, int64_t step, int resume) {
    char path[CLI_PATH_SIZE], row[512];
    FILE *f = NULL;
    long end = 0;
    if (cli_rank > 0) return stdout;                 /* it is not kept */
    cli_path(path, dir, "log.csv");
    if (resume) f = fopen(path, "r+b");
    if (!f && (!resume || errno == ENOENT)) f = fopen(path, "w+b");
    if (!f) cli_cannot("open", path);
    while (resume && fgets(row, sizeof row, f) && strchr(row, '\n')) {
        if (end > 0 && (atoll(row) < 1 || atoll(row) > step)) break;
        end = ftell(f);
    }
    if (truncate(path, end) || fseek(f, end, SEEK_SET)) cli_cannot("write", path);
    if (end == 0) {
        fputs("step,tokens,seconds,lr,loss,ce,", f);
        for (int i = 0; i < HMOE_LOSS_TERMS; i++) fprintf(f, "%s,", hmoe_loss_terms[i].name);
        fputs("grad_norm,activated,experts,val_loss\n", f);
    }
    cli_sync(f, path);
    return f;
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

#endif
