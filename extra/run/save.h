/* save.h - saves a run: its log, state, recipe and best/. */
#ifndef SAVE_H
#define SAVE_H

#include "cli.h"
#include "extra/run/corpus.h"
#include "extra/run/log.h"
#include "extra/run/overwrite.h"
#include "extra/run/resume.h"

/* Writes all files under temporary names. If one fails, none is left. */
static inline hmoe_status save_prepare(hmoe_model *m, hmoe__output *recipe, const char *dir,
                                       const char *best_dir, const cli_option *options, int n,
                                       const corpus *x) {
    hmoe_status status = best_dir ? hmoe_prepare(m, best_dir, 0) : HMOE_OK;
    if (status) return status;
    status = resume_prepare(recipe, dir, options, n, x->size, x->hash, &m->recipe, m->message);
    if (!status) {
        status = hmoe_prepare(m, dir, 1);
        if (status) resume_discard(recipe);
    }
    if (status && best_dir) hmoe_discard(m, best_dir, 0);
    return status;
}

/* Writes all files, then replaces the older ones: first best/, then the state, then the recipe.
   After a crash in between, the resumed run saves best/ again, and resume_finish_save renames the
   recipe. If the commit of the state fails, the state may have been replaced or not, so the recipe
   keeps its temporary name. */
static inline void save_files(hmoe_model *m, overwrite *o, FILE **log, const cli_option *options,
                              int n, const corpus *x, int best) {
    char best_dir[CLI_PATH_SIZE];
    const char *dir = o->grows;
    cli_path(best_dir, dir, "best");
    overwrite_check(o);
    log_sync(log, dir);
    hmoe__output recipe;
    hmoe_status status = save_prepare(m, &recipe, dir, best ? best_dir : NULL, options, n, x);
    if (!status && best && (status = hmoe_commit(m, best_dir, 0))) {
        hmoe_discard(m, dir, 1);
        resume_discard(&recipe);
    }
    if (!status) status = hmoe_commit(m, dir, 1);
    if (!status) status = resume_commit(&recipe, m->message);
    if (status) cli_fail(1, "step %lld is not saved: %s", (long long)m->step, m->message);
    if (dir != o->dir) overwrite_commit(o, log);
}

#endif
