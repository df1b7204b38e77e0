/* init.h - --init: a new run whose weights begin as those of another model.

   --init DIR              the model in DIR: train_tiny's, or a Mixtral of another program
   --init DIR --upcycle E  DIR has a dense model. Each of E experts begins as its feed-forward layer
                           (sparse upcycling: Komatsuzaki et al., arXiv 2212.05055). With equal
                           widths and normalised gates the loss is at first the dense model's
   --init DIR --slim RULE  each expert keeps its strongest hidden units, until it has the width that
                           the rule of expert sizes gives it

   The strength of hidden unit j is |w1_j| |w3_j| |w2_j|: row j of W1 and W3, column j of W2. Units
   of zeros, with which an export pads an expert, have none. Therefore --slim undoes the padding. */
#ifndef INIT_H
#define INIT_H

#include "cli.h"
#include "extra/interop/hmoe_interop.h"
#include "extra/run/resume.h"

typedef struct init {
    const char *from, *slim;
    int upcycle;
} init;

#define INIT_OPTIONS(x) \
    CLI_TEXT("--init", &(x).from, "DIR", NULL, "begin with the weights of the model in DIR"), \
    CLI_INT("--upcycle", &(x).upcycle, 1, 256, "off", "with --init: N experts of a dense model"), \
    CLI_TEXT("--slim", &(x).slim, "RULE", NULL, "with --init: cut experts to widths as of --sizes")

/* Options that --init leaves free. All others must be those of the model, if they are given. */
static const char init_free[] = " --context ", init_free_slim[] = " --context --sizes --hidden ",
                  init_free_upcycle[] = " --context --experts --sizes --hidden --routing --gate "
                                        "--noisy --budget --balance ";

static inline void init_check(const init *x, const cli_option *options) {
    if (!x->from && x->upcycle) cli_fail(2, "--upcycle: needs --init");
    if (!x->from && x->slim) cli_fail(2, "--slim: needs --init");
    if (x->upcycle && x->slim) cli_fail(2, "--slim: with --upcycle, give the rule by --sizes");
    if (x->slim && cli_given(options, "--sizes"))
        cli_fail(2, "--sizes: leave it out, --slim gives the rule");
    if (x->upcycle && cli_given(options, "--experts"))
        cli_fail(2, "--experts: --upcycle %d says how many", x->upcycle);
    if (x->from && cli_given(options, "--resume"))
        cli_fail(2, "--init and --resume: give only one of them");
    if (x->from && cli_ranks > 1)
        cli_fail(2, "--init: needs a single process\n(begin the run alone with --steps 0, then "
                 "--resume it with several)");
}

/* The width of expert e in the model that we begin with. */
static inline int init_width(const init *x, const hmoe_config *from, int e) {
    return from->H[x->upcycle ? 0 : e];
}

/* Fills c->H with the widths of a rule. Returns the first expert that has too few hidden units for
   that in the other model, or -1. */
static inline int init_try_widths(const init *x, hmoe_config *c, const hmoe_config *from,
                                  const char *rule, int mean) {
    char why[HMOE_MESSAGE_SIZE];
    if (hmoe_expert_sizes(c->H, c->E, (long long)c->E * mean, rule, why))
        cli_fail(2, "%s %.120s: %s", x->slim ? "--slim" : "--sizes", rule, why);
    for (int e = 0; e < c->E; e++)
        if (c->H[e] > init_width(x, from, e)) return e;
    return -1;
}

/* The same for the mean of --hidden, or else for the largest one for which every expert has enough
   hidden units. */
static inline void init_widths(const init *x, hmoe_config *c, const hmoe_config *from,
                               const char *rule, int hidden, int given) {
    int mean = given ? hidden : hmoe__widest(from);
    int narrow = init_try_widths(x, c, from, rule, mean);
    while (narrow >= 0 && !given && mean > 1) narrow = init_try_widths(x, c, from, rule, --mean);
    if (narrow >= 0)
        cli_fail(2, "%s %.120s: expert %d would have width %d with --hidden %d, but has only %d in "
                 "%s", x->slim ? "--slim" : "--sizes", rule, narrow, c->H[narrow], mean,
                 init_width(x, from, narrow), x->from);
}

/* The configuration of the model that we begin with. */
static inline hmoe_config init_load_config(const init *x, const cli_option *options) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_config from;
    if (hmoe_load_config(&from, x->from, why)) cli_fail(1, "--init: %s", why);
    if (x->upcycle && from.E > 1)
        cli_fail(1, "--upcycle: the model in %s is not dense, it has %d experts", x->from, from.E);
    resume_compare(options, &from, x->from,
                   x->upcycle ? init_free_upcycle : x->slim ? init_free_slim : init_free);
    return from;
}

/* Turns the options in *c into the configuration of the new model. --context, --k, --p and
   --balance-rate are the model's own unless they are given; the losses are always the options'. */
static inline void init_configure(const init *x, const cli_option *options, hmoe_config *c) {
    hmoe_config ours = *c, from = init_load_config(x, options);
    *c = from;
    memcpy(c->loss_coef, ours.loss_coef, sizeof c->loss_coef);
    if (cli_given(options, "--context")) c->T = ours.T;
    if (cli_given(options, "--k") || x->upcycle) c->K = ours.K;
    if (cli_given(options, "--p") || x->upcycle) c->top_p = ours.top_p;
    if (cli_given(options, "--balance-rate") || x->upcycle) c->balance_rate = ours.balance_rate;
    if (x->upcycle) {
        c->E = x->upcycle;
        c->routing = ours.routing;
        c->gate = ours.gate;
        c->balance = ours.balance;
        c->budget = ours.budget;
        c->noisy_gating = ours.noisy_gating;
        if (c->K > c->E && !cli_given(options, "--k")) c->K = c->E;
    }
    const cli_option *hidden = cli_find(options, "--hidden");
    const char *rule = x->slim ? x->slim : cli_given(options, "--sizes");
    if (x->slim || x->upcycle)
        init_widths(x, c, &from, rule ? rule : "homogeneous", *(const int *)hidden->value,
                    hidden->given != NULL);
}

/* --- weights --------------------------------------------------------------------------------- */

/* The tensor of that name, or NULL. *at: where the search begins, because both tables have the same
   order. */
static inline const hmoe_tensor *init_find(const hmoe_model *m, const char *name, size_t *at) {
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *t = &m->tensors[(*at + i) % m->tensor_count];
        if (strcmp(t->name, name)) continue;
        *at = (size_t)(t - m->tensors);
        return t;
    }
    return NULL;
}

typedef struct init_unit {
    double strength;
    int index;
} init_unit;

static int init_by_strength(const void *a, const void *b) {
    const init_unit *x = (const init_unit *)a, *y = (const init_unit *)b;
    if (x->strength != y->strength) return x->strength < y->strength ? 1 : -1;
    return x->index - y->index;
}

static int init_by_index(const void *a, const void *b) {
    return ((const init_unit *)a)->index - ((const init_unit *)b)->index;
}

/* Chooses the `keep` strongest hidden units of an expert, of H. They stay in their order. */
static inline void init_choose(init_unit *units, const hmoe_real *w1, const hmoe_real *w3,
                               const hmoe_real *w2, int H, int C, int keep) {
    for (int j = 0; j < H; j++) {
        double a = 0, b = 0, c = 0;
        for (int i = 0; i < C; i++) {
            double x = (double)w1[(size_t)j * C + i], y = (double)w3[(size_t)j * C + i];
            double z = (double)w2[(size_t)i * H + j];
            a += x * x;
            b += y * y;
            c += z * z;
        }
        units[j].strength = sqrt(a) * sqrt(b) * sqrt(c);
        units[j].index = j;
    }
    qsort(units, (size_t)H, sizeof *units, init_by_strength);
    qsort(units, (size_t)keep, sizeof *units, init_by_index);
}

/* W1, W3 or W2 of an expert. */
static inline const hmoe_tensor *init_find_expert(const hmoe_model *m, int l, int e, int matrix,
                                                  size_t *at) {
    static const char *const names[] = { "w1", "w3", "w2" };
    char name[HMOE_NAME_SIZE];
    snprintf(name, sizeof name, "model.layers.%d.block_sparse_moe.experts.%d.%s.weight", l, e,
             names[matrix]);
    return init_find(m, name, at);
}

/* Copies W1, W3 and W2 of one expert, only the units that it keeps. places: [6] where the last
   expert's matrices were found. */
static inline void init_copy_expert(hmoe_model *m, const hmoe_model *from, int l, int e, int of,
                                    size_t *places) {
    int C = m->config.C, H = from->config.H[of], keep = m->config.H[e];
    init_unit *units = (init_unit *)cli_alloc((size_t)H * sizeof *units);
    const hmoe_real *old[3];
    hmoe_real *new_w = (hmoe_real *)cli_alloc((size_t)keep * C * sizeof *new_w);
    for (int i = 0; i < 3; i++)
        old[i] = from->params + init_find_expert(from, l, of, i, &places[i])->offset;
    init_choose(units, old[0], old[1], old[2], H, C, keep);
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < keep; j++)
            for (int k = 0; k < C; k++) {
                size_t unit = (size_t)units[j].index;
                if (i < 2) new_w[(size_t)j * C + k] = old[i][unit * C + k];
                else new_w[(size_t)k * keep + j] = old[i][(size_t)k * H + unit];
            }
        m->backend->upload(m->params + init_find_expert(m, l, e, i, &places[3 + i])->offset, new_w,
                           (size_t)keep * C * sizeof *new_w);
    }
    free(new_w);
    free(units);
}

/* Replaces the weights of a new model. A router for more experts, noise, biases and budgets that
   the other model lacks stay as they are. */
static inline void init_copy(const init *x, hmoe_model *m) {
    hmoe_model from = { 0 };
    size_t at = 0, places[6] = { 0 };
    if (hmoe_load_mixtral(&from, x->from, 0)) cli_fail(1, "--init: %s", from.message);
    for (size_t i = 0; i < m->tensor_count; i++) {
        const hmoe_tensor *to = &m->tensors[i];
        const hmoe_tensor *t = to->expert < 0 ? init_find(&from, to->name, &at) : NULL;
        if (t && t->rows == to->rows && t->cols == to->cols)
            m->backend->upload(m->params + to->offset, from.params + t->offset,
                               (size_t)t->rows * t->cols * sizeof *m->params);
    }
    for (int l = 0; l < m->config.L; l++)
        for (int e = 0; e < m->config.E; e++)
            if (m->config.H[e]) init_copy_expert(m, &from, l, e, x->upcycle ? 0 : e, places);
    const char *error = m->backend->synchronize();
    if (error) cli_fail(1, "%s: %s", m->backend->name, error);
    hmoe_free(&from);
}

#endif
