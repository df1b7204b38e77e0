/* export.h - writes a model as an ordinary Mixtral: generate --export-mixtral. */
#ifndef EXPORT_H
#define EXPORT_H

#include "cli.h"
#include "hmoe_interop.h"

/* `from`: the model's own directory, which must not be overwritten, nor a run's best model. */
static inline void export_mixtral(hmoe_model *m, const char *from, const char *to) {
    char best[4096], run[4096];
    cli_made made;
    size_t padded;
    if (cli_is_same(from, to))
        cli_fail(1, "--export-mixtral %s: holds this model, choose another directory", to);
    snprintf(best, sizeof best, "%s/../best", to);
    snprintf(run, sizeof run, "%s/../training.safetensors", to);
    if (cli_is_same(to, best) && !access(run, F_OK))
        cli_fail(1, "--export-mixtral %s: holds a run's best model, choose another directory", to);
    cli_make_directory(&made, to);
    cli_lock(to);
    int failed = hmoe_export_mixtral(m, to, &padded);
    cli_unlock(to);
    if (failed) {
        cli_unmake_directory(&made);
        cli_fail(1, "%s", m->message);
    }
    printf("%s: a Mixtral of %lu parameters, %.1f MB; before its experts were padded to one width "
           "%lu, %.1f MB\n", to, (unsigned long)padded, 4e-6 * (double)padded,
           (unsigned long)m->param_count, 4e-6 * (double)m->param_count);
}

#endif
