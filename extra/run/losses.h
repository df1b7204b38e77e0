/* losses.h - the options of the router's losses, --lb, --pp and so on: one for each of
   hmoe_loss_terms. */
#ifndef LOSSES_H
#define LOSSES_H

#include "cli.h"

/* Where the default of a coefficient depends on other options: the words for --help. */
static inline const char *losses_exception(int i) {
    if (i == HMOE_PP) return ", or 0 with --balance";
    if (i == HMOE_ENT) return "; 3e-5 with topp and no --budget";
    return "";
}

/* Sets the coefficients whose default depends on other options. */
static inline void losses_set_exceptions(const cli_option *options, hmoe_config *c) {
    if (c->balance && !cli_given(options, "--pp")) c->loss_coef[HMOE_PP] = 0;
    if (c->routing == HMOE_TOP_P && !cli_given(options, "--budget") && !cli_given(options, "--ent"))
        c->loss_coef[HMOE_ENT] = 3e-5;
}

static inline cli_option losses_option(int i, double *coef) {
    static char name[HMOE_LOSS_TERMS][32], initial[HMOE_LOSS_TERMS][64], help[HMOE_LOSS_TERMS][64];
    const hmoe_loss_term *term = &hmoe_loss_terms[i];
    snprintf(name[i], sizeof name[i], "--%s", term->name);
    snprintf(initial[i], sizeof initial[i], "%g%s", term->initial, losses_exception(i));
    snprintf(help[i], sizeof help[i], "weight of the %s", term->what);
    cli_option o = CLI_REAL(name[i], &coef[i], 0, 1e6, initial[i], help[i]);
    return o;
}

/* options: [n + HMOE_LOSS_TERMS] receives the n rows, with those of the losses after row `after`.
   coef: [HMOE_LOSS_TERMS] is where their values go. */
static inline void losses_add_options(cli_option *options, const cli_option *rows, int n,
                                      const char *after, double *coef) {
    for (const cli_option *row = rows; row < rows + n; row++) {
        *options++ = *row;
        if (strcmp(row->name, after)) continue;
        for (int i = 0; i < HMOE_LOSS_TERMS; i++) *options++ = losses_option(i, coef);
    }
}

#endif
