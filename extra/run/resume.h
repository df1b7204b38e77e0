/* resume.h - --resume: compares the options with the run in --out, and prints the command that
   continues a run. */
#ifndef RESUME_H
#define RESUME_H

#include "cli.h"

/* The value in a run's directory for the option of that name. */
typedef struct resume_value {
    const char *name;
    double value;
} resume_value;

/* Ends the program if an option differs from the run's value. */
static inline void resume_compare_value(const cli_option *o, double in_run, const char *dir) {
    if (!o->given || cli_get(o) == in_run) return;
    cli_fail(2, "%s%s%.120s: the run in %s has %s", o->name, *o->given ? " " : "", o->given, dir,
             cli_name_of(o, in_run));
}

static inline void resume_compare_sizes(const cli_option *o, const hmoe_config *c,
                                        const char *dir) {
    int H[HMOE_MAX_EXPERTS];
    long long total = (long long)hmoe__total_width(c);
    if (!o->given) return;
    if (hmoe_expert_sizes(H, c->E, total, o->given, NULL) == HMOE_OK
        && !memcmp(H, c->H, (size_t)c->E * sizeof *H)) return;
    cli_fail(2, "--sizes %.120s: the run in %s has %d experts of widths %d, ..., %d", o->given, dir,
             c->E, c->H[0], c->H[c->E - 1]);
}

static inline void resume_compare(const hmoe_model *m, const cli_option *options, const char *dir) {
    const hmoe_config *c = &m->config;
    const resume_value values[] = {
        { "--width", c->C }, { "--layers", c->L }, { "--heads", c->NH }, { "--context", c->T },
        { "--experts", c->E }, { "--hidden", floor(hmoe__total_width(c) / c->E) },
        { "--routing", c->routing == HMOE_TOP_P }, { "--k", c->K },
        { "--gate", c->gate == HMOE_GATE_RAW }, { "--noisy", c->noisy_gating },
        { "--budget", c->budget }, { "--balance", c->balance },
        { "--optimizer", m->optimizer },
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        resume_compare_value(cli_find(options, values[i].name), values[i].value, dir);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) {
        char name[32];
        snprintf(name, sizeof name, "--%s", hmoe_loss_terms[i].name);
        resume_compare_value(cli_find(options, name), c->loss_coef[i], dir);
    }
    /* config.json has these two only if they are used */
    if (!hmoe__is_mixtral(c)) resume_compare_value(cli_find(options, "--p"), c->top_p, dir);
    if (c->balance)
        resume_compare_value(cli_find(options, "--balance-rate"), c->balance_rate, dir);
    resume_compare_sizes(cli_find(options, "--sizes"), c, dir);
    const cli_option *seed = cli_find(options, "--seed");
    if (seed->given && *(const uint64_t *)seed->value != m->seed)
        cli_fail(2, "--seed %s: the run in %s has %llu", seed->given, dir,
                 (unsigned long long)m->seed);
}

/* Prints a word for a shell, in quotes if it needs them. */
static inline void resume_print_word(const char *word) {
    const char *plain = "+-./_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    if (*word && !word[strspn(word, plain)]) {
        printf("%s", word);
        return;
    }
    putchar('\'');
    for (; *word; word++)
        if (*word == '\'') printf("'\\''");
        else putchar(*word);
    putchar('\'');
}

/* The last line of a run that was stopped. */
static inline void resume_tell(const char *program, const cli_option *options, int64_t step) {
    printf("stopped after step %lld; with your other options, this is how to go on: %s",
           (long long)step, cli_launcher());
    resume_print_word(program);
    printf(" --resume --out ");
    resume_print_word(*(const char **)cli_find(options, "--out")->value);
    if (cli_given(options, "--steps")) printf(" --steps %s", cli_given(options, "--steps"));
    putchar('\n');
}

#endif
