/* display.h - prints what train_tiny shows of a run: the progress line, each expert's share of
   the tokens and of the work, a warning if a layer has collapsed, and which rate is too high. */
#ifndef DISPLAY_H
#define DISPLAY_H

#include "cli.h"

/* The first lines, which describe the model. */
static inline void display_model(const hmoe_model *m) {
    const hmoe_config *c = &m->config;
    double widest = hmoe__widest(c) / hmoe__total_width(c);
    printf("model    %d layers of width %d, %d heads, ", c->L, c->C, c->NH);
    if (c->NKV < c->NH) printf("%d of keys and values, ", c->NKV);
    printf("context %d: %.0f parameters, ", c->T, hmoe_parameters(m));
    printf("%.0f activated\nexperts  %d per layer, ", hmoe_activated(m), c->E);
    if (c->routing == HMOE_TOP_P) printf("top-p %.9g; widths", c->top_p);
    else printf("top-k %d; widths", c->K);
    for (int e = 0; e < c->E; e++) printf(" %d", c->H[e]);
    if (c->budget > 0) printf("; steered to %.9g of the width", c->budget);
    if (c->balance == HMOE_BALANCE_TOKENS) printf("; tokens balanced");
    if (c->balance == HMOE_BALANCE_WORK) printf("; work balanced");
    putchar('\n');
    if (c->budget > 0 && c->budget < widest)
        cli_warn("--budget %.9g may be out of reach: the widest expert alone is %.6f of the "
                 "width", c->budget, widest);
}

/* The progress line. A terminal shows it in place; elsewhere it is printed every ten seconds.
   `from`: the state of the model when this program began. last = 1: other output follows. */
typedef struct display_start {
    int64_t step, tokens;
    double seconds;
} display_start;

static inline void display_progress(const hmoe_model *m, const display_start *from, int steps,
                                    const hmoe_losses *losses, double lr, int last) {
    static double shown;
    int terminal = isatty(STDOUT_FILENO);
    double now = cli_seconds(), every = terminal ? 0.1 : 10;
    double seconds = m->seconds - from->seconds;
    double left = seconds * (double)(steps - m->step) / (double)(m->step - from->step);
    if (shown <= 0) shown = now;
    if (!last && now - shown < every) return;
    shown = now;
    cli_line_is_open = terminal && !last;
    if (terminal) putchar('\r');
    printf("step %lld/%d  loss %.6f ce %.6f lr %.6f  %.0f tok/s  %.0f:%02d left",
           (long long)m->step, steps, losses->total, losses->ce, lr,
           (double)(m->tokens - from->tokens) / seconds, floor(left / 60), (int)fmod(left, 60));
    if (terminal) printf("\033[K");                  /* erases the rest of the older line */
    if (!cli_line_is_open) putchar('\n');
    fflush(stdout);
}

/* Experts first .. end - 1 of a layer, each as its share of the tokens and of the compute. */
static inline void display_layer(const hmoe_model *m, int l, int first, int end) {
    static const char *const bars[] = { " ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" };
    int E = m->config.E;
    hmoe_usage u;
    hmoe_get_usage(m, l, &u);
    printf("layer %-2d", l + 1);
    for (int e = first; e < end; e++) {
        double tokens = fmin(4 * u.share[e] * E / u.experts, 8);
        double compute = fmin(4 * u.compute[e] * E, 8);
        printf(" %s%3.0f%s%3.0f", bars[(int)ceil(tokens)], 100 * u.share[e],
               bars[(int)ceil(compute)], 100 * u.compute[e]);
    }
    putchar('\n');
}

/* A line per layer and a cell per expert, at most eight in a line. A bar of half height is an even
   share. Then the router's statistics of each layer. */
static inline void display_experts(const hmoe_model *m) {
    int E = m->config.E, L = m->config.L;
    hmoe_usage u;
    printf("experts by width, each with its %% of the tokens and of the compute (▄: even)\n");
    for (int first = 0; first < E; first += 8) {
        int end = E < first + 8 ? E : first + 8;
        printf("       ");
        for (int e = first; e < end; e++) printf("%9d", m->config.H[e]);
        putchar('\n');
        for (int l = 0; l < L; l++) display_layer(m, l, first, end);
    }
    printf("layer: entropy of the router in nats, experts per token, dead experts:");
    for (int l = 0; l < L; l++) {
        hmoe_get_usage(m, l, &u);
        printf("%s%d: %.2f %.2f %d", l % 4 ? "   " : "\n  ", l + 1, u.entropy, u.experts, u.dead);
    }
    putchar('\n');
    if (m->config.budget <= 0) return;
    printf("layer: top_p, %% of the width in use:");
    for (int l = 0; l < L; l++) {
        hmoe_get_usage(m, l, &u);
        printf("%s%d: %.6f %.2f", l % 4 ? "   " : "\n  ", l + 1, u.top_p,
               100 * u.width / hmoe__total_width(&m->config));
    }
    putchar('\n');
}

/* Warns once if layers have collapsed on the text just evaluated, and says which options may help.
   A layer has collapsed if one expert has nearly all choices, because then the others learn
   nothing; or if tokens have one expert each and gates are renormalised, because then the gate is
   always 1 and the router learns nothing. */
static inline void display_collapse(const hmoe_model *m) {
    static int warned;
    const hmoe_config *c = &m->config;
    int one = 0, alone = 0;                          /* the first such layer, from 1 */
    hmoe_usage u;
    for (int l = c->L - 1; l >= 0; l--) {
        double most = 0;
        hmoe_get_usage(m, l, &u);
        for (int e = 0; e < c->E; e++) most = fmax(most, u.share[e]);
        if (most > 0.95 * u.experts) one = l + 1;
        if (c->routing == HMOE_TOP_P && c->gate == HMOE_GATE_NORM && u.experts < 1.05)
            alone = l + 1;
    }
    if (c->E == 1 || warned || !(one || alone)) return;
    warned = 1;
    const char *less = c->loss_coef[HMOE_ENT] > 0 ? "a lower --ent, " : "";
    const char *even = c->balance ? "a higher --balance-rate" : "--balance work";
    const char *more = c->budget > 0 ? "a higher --budget" : "a higher --p, --budget 0.25";
    if (one)
        cli_warn("layer %d has collapsed: one expert has over 95 %% of all choices, the others "
                 "learn nothing\n(%s%s or a higher --pp or --lb spreads the work: start anew with "
                 "one of them)", one, less, even);
    else
        cli_warn("layer %d has collapsed: each token has one expert, and a renormalised gate is "
                 "then 1, so the router no longer learns from the text\n(%s%s or --gate raw may "
                 "help: start anew with one of them)", alone, less, more);
}

/* An evaluation: the loss per token and, unless it is 0, per byte; and the experts' work there. */
static inline void display_evaluation(const hmoe_model *m, double loss, double byte_loss,
                                      int best) {
    printf("step %lld: validation loss %.6f", (long long)m->step, loss);
    if (byte_loss > 0) printf(" (%.6f a byte)", byte_loss);
    printf("%s; %.0f activated, %.2f TFLOPs so far\n", best ? ", lowest yet" : "",
           hmoe_activated(m), m->flops / 1e12);
    display_experts(m);
    display_collapse(m);
}

/* Is this the gradient of 0, up to the rounding of all gradients? Not asked of an expert, which may
   have no token yet, and of a router of one expert, which has nothing to learn. */
static inline int display_is_untrained(hmoe_model *m, const hmoe_tensor *t, double rounding) {
    if (t->state || t->expert >= 0 || (m->config.E == 1 && t->rows == 1)) return 0;
    size_t n = (size_t)t->rows * t->cols;
    return sqrt(cli_sum(m, m->backend->squared_norm(m->grads + t->offset, n))) <= rounding;
}

/* Warns if tensors have no gradient after the backward passes of the first two steps. (In the first
   alone, experts that are copies of each other leave their router without one.) */
static inline void display_untrained(hmoe_model *m, int64_t steps_before) {
    static unsigned char *before;                    /* [tensor_count] those of the first step */
    const hmoe_tensor *first = NULL;
    int count = 0;
    if (steps_before > 1) return;
    if (steps_before == 0) before = (unsigned char *)cli_alloc(m->tensor_count);
    double rounding = 1e-7 * sqrt(cli_sum(m, m->backend->squared_norm(m->grads, m->param_count)));
    for (size_t i = 0; i < m->tensor_count; i++) {
        int untrained = display_is_untrained(m, &m->tensors[i], rounding);
        if (steps_before == 0) before[i] = (unsigned char)untrained;
        else if (before[i] && untrained && ++count == 1) first = &m->tensors[i];
    }
    if (steps_before == 1) free(before);
    if (first)
        cli_warn("with these options nothing trains %d of the model's tensors, such as %s: its "
                 "gradient is 0\n(a router needs --k above 1, --gate raw, or a loss of its own "
                 "such as --pp; attention needs --context above 1)", count, first->name);
}

/* The rate to blame if a run diverges: the one furthest above its default. Weight decay alone makes
   a weight grow if --lr times it is above 2. */
static inline const cli_option *display_suspect(const cli_option *options, int muon) {
    static const char *const names[] = { "--lr", "--weight-decay", "--muon-lr" };
    const cli_option *suspect = NULL;
    double most = -1, lr = cli_get(cli_find(options, "--lr"));
    for (int i = 0; i < (muon ? 3 : 2); i++) {
        const cli_option *o = cli_find(options, names[i]);
        double times = cli_get(o) / strtod(o->initial, NULL);
        if (times <= most || (i == 1 && lr * cli_get(o) <= 2)) continue;
        most = times;
        suspect = o;
    }
    return suspect;
}

/* Ends the program after a step that failed. */
CLI_NEVER_RETURNS static inline void display_divergence(const hmoe_model *m, hmoe_status status,
                                                        int64_t step, const cli_option *options,
                                                        const char *out) {
    const cli_option *rate = display_suspect(options, m->optimizer);
    const char *why = *m->message ? m->message : "a loss or weight is not finite";
    if (status && status != HMOE_NOT_FINITE) cli_fail(1, "step %lld: %s", (long long)step, why);
    cli_fail(1, "step %lld: %s; most likely %s %.9g is too high\n(this state is not saved, %s is "
             "unchanged; a lower %s, a longer --warmup or a smaller --clip may help)",
             (long long)step, why, rate->name, cli_get(rate), out, rate->name);
}

static inline void display_sample(int byte) {
    static int inside;
    if (!inside) printf("  | ");
    inside = byte != '\n';
    if (byte < ' ' && byte != '\n' && byte != '\t') byte = '.';
    putchar(byte);
}

#endif /* DISPLAY_H */
