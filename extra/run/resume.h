/* resume.h - --resume: continues a run with the recipe that its directory holds.

   recipe.txt has a line for each option that decides what the next step does: its name and its
   value. --resume uses them. An option on the command line replaces one, and a line says so. The
   options that shape the model are not in it: they are in config.json and cannot change.
   config.json also has K, p and the losses, for programs that only use the model; here recipe.txt
   counts.

   The state, training.safetensors, holds the hash of its recipe. A save replaces the state first.
   If it ends before it replaces recipe.txt, too, the recipe of that hash still has its temporary
   name, and the next start renames it. */
#ifndef RESUME_H
#define RESUME_H

#include "cli.h"

static const char resume_shape[] = " --width --layers --heads --kv-heads --experts --hidden "
                                   "--sizes --routing --gate --noisy --budget --balance "
                                   "--context --seed --optimizer ";
static const char resume_forgotten[] = " --out --resume --overwrite --stop-at --threads --init "
                                       "--upcycle --slim --tokenizer --expert-ranks --place ";

static inline int resume_is_in(const char *list, const char *name) {
    char word[64];
    snprintf(word, sizeof word, " %s ", name);
    return strstr(list, word) != NULL;
}

/* Is it a line of recipe.txt? */
static inline int resume_keeps(const cli_option *o) {
    return !resume_is_in(resume_shape, o->name) && !resume_is_in(resume_forgotten, o->name);
}

/* --- options that shape the model ------------------------------------------------------------- */

typedef struct resume_value {
    const char *name;
    double value;
} resume_value;

/* Ends the program if the options describe another model than the one in dir. may_differ: names
   of options that are not compared. */
static inline void resume_compare(const cli_option *options, const hmoe_config *c, const char *dir,
                                  const char *may_differ) {
    const resume_value values[] = {
        { "--width", c->C }, { "--layers", c->L }, { "--heads", c->NH },
        { "--kv-heads", hmoe__kv_heads(c) }, { "--context", c->T }, { "--experts", c->E },
        { "--hidden", floor(hmoe__total_width(c) / c->E) },
        { "--routing", c->routing == HMOE_TOP_P }, { "--gate", c->gate == HMOE_GATE_RAW },
        { "--noisy", c->noisy_gating }, { "--budget", c->budget }, { "--balance", c->balance },
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        const cli_option *o = cli_find(options, values[i].name);
        if (!o->given || resume_is_in(may_differ, o->name)) continue;
        if (cli_get(o) == values[i].value) continue;
        cli_fail(2, "%s%s%.120s: the model in %s has %s", o->name, *o->given ? " " : "", o->given,
                 dir, cli_name_of(o, values[i].value));
    }
    int H[HMOE_MAX_EXPERTS];
    const char *sizes = cli_given(options, "--sizes");
    long long total = (long long)hmoe__total_width(c);
    if (sizes && !resume_is_in(may_differ, "--sizes")
        && (hmoe_expert_sizes(H, c->E, total, sizes, NULL)
            || memcmp(H, c->H, (size_t)c->E * sizeof *H)))
        cli_fail(2, "--sizes %.120s: the model in %s has %d experts of widths %d, ..., %d", sizes,
                 dir, c->E, c->H[0], c->H[c->E - 1]);
}

/* The same for what training.safetensors holds. */
static inline void resume_compare_state(const cli_option *options, const hmoe_model *m,
                                        const char *dir) {
    const cli_option *seed = cli_find(options, "--seed");
    const cli_option *optimizer = cli_find(options, "--optimizer");
    if (m->optimizer > 1) cli_fail(1, "%s: this program lacks the run's optimizer", dir);
    if (seed->given && *(const uint64_t *)seed->value != m->seed)
        cli_fail(2, "--seed %s: the run in %s has %llu", seed->given, dir,
                 (unsigned long long)m->seed);
    if (optimizer->given && cli_get(optimizer) != m->optimizer)
        cli_fail(2, "--optimizer %s: the run in %s has %s", optimizer->given, dir,
                 cli_name_of(optimizer, m->optimizer));
}

/* --- recipe.txt ------------------------------------------------------------------------------- */

/* Is it a number outside its range? Then its default is a word, such as "all". */
static inline int resume_is_unset(const cli_option *o) {
    return (o->kind == CLI_IS_INT || o->kind == CLI_IS_REAL) && cli_get(o) < o->low;
}

/* The value of an option, as the command line would have it. */
static inline const char *resume_value_of(const cli_option *o) {
    if (resume_is_unset(o)) return o->initial;
    if (o->kind != CLI_IS_TEXT) return cli_name_of(o, cli_get(o));
    return *(const char **)o->value ? *(const char **)o->value : "none";
}

static inline void resume_set_default(const cli_option *o) {
    if (o->kind == CLI_IS_TEXT) *(const char **)o->value = o->initial;
    else if (cli_set(o, o->initial)) return;
    else if (o->kind == CLI_IS_INT) *(int *)o->value = (int)o->low - 1;
    else *(double *)o->value = o->low - 1;
}

static inline const cli_option *resume_find_loss(const cli_option *options, int i) {
    char name[32];
    snprintf(name, sizeof name, "--%s", hmoe_loss_terms[i].name);
    return cli_find(options, name);
}

/* Takes the parts of the recipe that config.json holds. */
static inline void resume_use_config(const cli_option *options, const hmoe_config *c) {
    *(int *)cli_find(options, "--k")->value = c->K;
    *(double *)cli_find(options, "--p")->value = c->top_p;
    *(double *)cli_find(options, "--balance-rate")->value = c->balance_rate;
    for (int i = 0; i < HMOE_LOSS_TERMS; i++)
        *(double *)resume_find_loss(options, i)->value = c->loss_coef[i];
}

/* Puts them into a configuration. */
static inline void resume_change_config(hmoe_config *c, const cli_option *options) {
    c->K = *(int *)cli_find(options, "--k")->value;
    c->top_p = cli_get(cli_find(options, "--p"));
    c->balance_rate = cli_get(cli_find(options, "--balance-rate"));
    for (int i = 0; i < HMOE_LOSS_TERMS; i++)
        c->loss_coef[i] = cli_get(resume_find_loss(options, i));
}

/* A text in one line: \n for a newline, \\ for a backslash. */
static inline void resume_write_text(FILE *f, const char *text) {
    for (; *text; text++)
        if (*text == '\n') fputs("\\n", f);
        else if (*text == '\\') fputs("\\\\", f);
        else putc(*text, f);
}

/* Reads it back, in place. */
static inline char *resume_read_text(char *text) {
    char *to = text;
    for (const char *from = text; *from; from++) {
        if (*from == '\\' && from[1]) *to++ = *++from == 'n' ? '\n' : *from;
        else *to++ = *from;
    }
    *to = 0;
    return text;
}

/* The recipe of a run before it is continued. */
typedef struct resume_recipe {
    int is_there;          /* 0: an older version made the run, without recipe.txt */
    double size;           /* of the text, in bytes or tokens */
    uint64_t hash;
    int steps, warmup;     /* the schedule */
    double lr, min_lr;
    int text_is_given;     /* the command line names a text */
} resume_recipe;

/* The hash of a recipe, and 0 if it cannot be read. */
static inline uint64_t resume_hash(const char *path) {
    uint64_t hash = hmoe__hash("");
    char part[4096];
    FILE *f = hmoe__open(path);
    if (!f) return 0;
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) hash = hmoe__hash_more(hash, part, n);
    fclose(f);
    return hash;
}

/* Writes recipe.txt under a temporary name, and its hash to *recipe. Names of files become whole
   paths, for a later start elsewhere. */
static inline hmoe_status resume_prepare(hmoe__output *out, const char *dir,
                                         const cli_option *options, int n, double size,
                                         uint64_t hash, uint64_t *recipe, char *message) {
    char here[CLI_PATH_SIZE];
    if (cli_rank > 0) return HMOE_OK;
    hmoe_status status = hmoe__open_output(out, dir, "recipe.txt", message);
    if (status) return status;
    fputs("# The options of this run that --resume uses, if the command line has no others.\n",
          out->file);
    for (const cli_option *o = options; o < options + n; o++) {
        const char *file = o->kind == CLI_IS_TEXT ? *(const char **)o->value : NULL;
        if (!resume_keeps(o) || (o->kind == CLI_IS_TEXT && !file) || resume_is_unset(o)) continue;
        fprintf(out->file, "%s ", o->name + 2);
        if (file && cli_is_relative(file) && getcwd(here, sizeof here)) {
            resume_write_text(out->file, here);
            putc('/', out->file);
        }
        resume_write_text(out->file, resume_value_of(o));
        putc('\n', out->file);
    }
    fprintf(out->file, "text-size %.0f\ntext-hash %016llx\n", size, (unsigned long long)hash);
    status = hmoe__close_output(out, HMOE_OK, message);
    if (status) remove(out->beside);
    else *recipe = resume_hash(out->beside);
    return status;
}

static inline hmoe_status resume_commit(hmoe__output *out, char *message) {
    return cli_rank > 0 ? HMOE_OK : hmoe__rename_output(out, message);
}

static inline void resume_discard(hmoe__output *out) {
    if (cli_rank == 0) remove(out->beside);
}

/* The hash of the recipe of the state in dir, 0 if it has none. */
static inline uint64_t resume_hash_of_state(hmoe_model *m, const char *dir) {
    int repeats = 0;
    hmoe__input in;
    const char *value = NULL;
    memset(&in, 0, sizeof in);
    if (!hmoe__path(in.path, dir, "training.safetensors", NULL) && !hmoe__open_tensors(m, &in)) {
        value = hmoe__json_find(in.header, "__metadata__", &repeats);
        if (value) value = hmoe__json_find(value, "recipe", &repeats);
    }
    uint64_t hash = value ? strtoull(value + 1, NULL, 10) : 0;
    hmoe__close_input(&in);
    return hash;
}

/* Finishes a save that ended after it had replaced the state. */
static inline void resume_finish_save(hmoe_model *m, const char *dir) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe__output recipe;
    if (cli_rank > 0 || hmoe__name_output(&recipe, dir, "recipe.txt", why)
        || access(recipe.beside, F_OK)) return;
    if (resume_hash(recipe.beside) != resume_hash_of_state(m, dir)) remove(recipe.beside);
    else if (hmoe__replace(recipe.beside, recipe.path)) cli_cannot("rename", recipe.beside);
}

/* Uses a line of recipe.txt, and marks its option in `seen` [n]. Returns whether it is right. */
static inline int resume_use_line(const cli_option *options, int n, char *line,
                                  resume_recipe *was, char *seen) {
    char *blank = strchr(line, ' '), *value = blank + 1, *end;
    if (!blank) return 0;
    resume_read_text(value);
    if (!strncmp(line, "text-size ", 10)) {
        was->size = strtod(value, &end);
        return !*end && was->size >= 0;
    }
    if (!strncmp(line, "text-hash ", 10)) {
        was->hash = strtoull(value, &end, 16);
        return !*end && end - value == 16;
    }
    size_t length = (size_t)(blank - line);
    for (const cli_option *o = options; o < options + n; o++)
        if (strlen(o->name + 2) == length && !strncmp(o->name + 2, line, length)) {
            seen[o - options] = 1;
            return resume_keeps(o) && cli_set(o, value);
        }
    return 0;
}

/* The options that are in recipe.txt without a line of it: a version without them wrote it, or
   somebody removed the line. */
static inline void resume_tell_missing(const cli_option *options, int n, const char *seen) {
    for (int i = 0; i < n; i++)
        if (resume_keeps(&options[i]) && !seen[i] && options[i].kind != CLI_IS_TEXT
            && !resume_is_unset(&options[i]))
            printf("changed  recipe.txt has no %s: it is %s\n", options[i].name + 2,
                   resume_value_of(&options[i]));
}

/* Sets the options to the values in recipe.txt, whose text must then stay in memory. */
static inline void resume_use_recipe(hmoe_model *m, const char *dir, const cli_option *options,
                                     int n, resume_recipe *was) {
    char path[CLI_PATH_SIZE], seen[256] = { 0 };
    size_t size;
    int number = 1;
    cli_need_file(cli_path(path, dir, "recipe.txt"));
    resume_finish_save(m, dir);
    was->is_there = cli_sum(m, cli_rank == 0 && access(path, F_OK) == 0) > 0;
    if (!was->is_there) {
        cli_warn("%s has no recipe.txt: options that are not given now have their defaults", dir);
        return;
    }
    static char *volatile kept;      /* options point into the text: it is no leak */
    char *line = kept = (char *)cli_read_once(path, &size, "");
    if (strlen(line) != size || !strstr(line, "\ntext-size ") || !strstr(line, "\ntext-hash "))
        cli_fail(1, "%s is damaged or not complete\n(remove it and give all options again)", path);
    for (int more = 1; more; number++) {
        char *end = line + strcspn(line, "\n");
        more = *end == '\n';
        *end = 0;
        if (*line && *line != '#' && !resume_use_line(options, n, line, was, seen))
            cli_fail(1, "%s, line %d: \"%.120s\": no such option, or a wrong value\n(correct it, "
                     "or remove the file and give all options again)", path, number, line);
        line = end + 1;
    }
    resume_tell_missing(options, n, seen);
}

/* Then sets those on the command line again, and says what changes. */
static inline void resume_use_given(const cli_option *options, int n) {
    char before[CLI_PATH_SIZE];
    for (const cli_option *o = options; o < options + n; o++) {
        if (!o->given || !resume_keeps(o)) continue;
        snprintf(before, sizeof before, "%s", resume_value_of(o));
        cli_set(o, o->given);
        const char *now = resume_value_of(o);
        if (strcmp(before, now) && !cli_is_same(before, now))
            printf("changed  %s %s -> %s, as given now\n", o->name + 2, before, now);
    }
}

/* The schedule of the options, as they are now. */
static inline void resume_use_schedule(resume_recipe *r, const cli_option *options) {
    r->steps = (int)cli_get(cli_find(options, "--steps"));
    r->warmup = (int)cli_get(cli_find(options, "--warmup"));
    r->lr = cli_get(cli_find(options, "--lr"));
    r->min_lr = cli_get(cli_find(options, "--min-lr"));
}

static inline double resume_rate(const resume_recipe *r, int64_t step) {
    return hmoe_learning_rate(step, r->warmup, r->steps, r->lr, r->min_lr);
}

/* All of this: sets the options of a run that goes on, and returns the run's configuration. */
static inline hmoe_config resume_options(hmoe_model *m, const char *dir, const cli_option *options,
                                         int n, resume_recipe *was) {
    hmoe_config c;
    char why[HMOE_MESSAGE_SIZE];
    memset(&c, 0, sizeof c);
    memset(was, 0, sizeof *was);
    if (cli_rank == 0 && hmoe_load_config(&c, dir, why)) cli_fail(1, "%s", why);
    cli_share(&c, sizeof c);
    resume_compare(options, &c, dir, "");
    for (int i = 0; i < n; i++) if (resume_keeps(&options[i])) resume_set_default(&options[i]);
    resume_use_config(options, &c);
    resume_use_recipe(m, dir, options, n, was);
    resume_use_schedule(was, options);
    was->text_is_given = cli_given(options, "--data") || cli_given(options, "--tokens");
    resume_use_given(options, n);
    resume_change_config(&c, options);
    return c;
}

/* Compares the text with that of the recipe. */
static inline void resume_compare_text(const resume_recipe *was, double size, uint64_t hash,
                                       const char *path) {
    if (!was->is_there || (was->size == size && was->hash == hash)) return;
    if (!was->text_is_given)
        cli_fail(1, "%s has changed since the run was saved: its size was %.0f and is %.0f, or "
                 "other bytes are in it\n(to go on with the changed text, add its name: --data, or "
                 "--tokens)", path, was->size, size);
    printf("changed  the text: %s has other contents, as given now\n", path);
}

/* Says how another schedule moves the learning rate. */
static inline void resume_tell_rate(const resume_recipe *was, int64_t step,
                                    const cli_option *options) {
    resume_recipe is = *was;
    resume_use_schedule(&is, options);
    double next = resume_rate(&is, step + 1);
    if (was->is_there && step > 0 && step < is.steps && next != resume_rate(was, step + 1))
        printf("changed  learning rate %.9g -> %.9g at the next step\n", resume_rate(was, step),
               next);
}

/* best_of: what validation losses are now measured on. */
static inline void resume_best(hmoe_model *m, uint64_t best_of) {
    if (m->best_of && m->best_of != best_of) {
        m->best_val_loss = DBL_MAX;
        printf("changed  best/ starts anew: its loss is of another text or other windows\n");
    }
    m->best_of = best_of;
}

/* --- the command that continues --------------------------------------------------------------- */

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

static inline void resume_print_command(const char *program, const char *dir) {
    printf("%s", cli_launcher());
    resume_print_word(program);
    printf(" --resume --out ");
    resume_print_word(dir);
    putchar('\n');
}

#endif
