/* train_tiny.c - trains a small heterogeneous mixture of experts on a text, byte by byte.

       train_tiny --data my.txt --out run          a new run, kept in the directory run/
       train_tiny --resume --out run               goes on where it stopped
       train_tiny --help                           all options

   A run's directory holds its latest state (training.safetensors) and weights (model.safetensors),
   best/ with the weights that did best on the validation text, and log.csv with a row per step.
   Ctrl-C finishes the step, saves, and says how to go on. Everything random depends on the seed
   and on what it is for, so a run that was stopped and resumed ends with the same bits as one that
   never was. The story is in main(), at the end. */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/muon/hmoe_muon.h"
#include "cli.h"

enum { PATH_SIZE = 1024, BATCHES = 1, SAMPLES };   /* for the last two hmoe_random draws */

static struct settings {
    const char *data, *out;
    int resume, steps, stop_at, batch, accum, warmup, eval_every, eval_tokens, save_every;
    double min_lr, dropout;
    hmoe_adamw adamw;
    hmoe_muon muon;
    cli_backend backend; cli_peers peers;
} set;

static struct held {        /* what a checkpoint holds: a resumed run takes it from there */
    hmoe_config config;
    const char *sizes;
    int hidden, routing, gate, balance, optimizer;
    uint64_t seed;
} held;

#define COUNT "[1, 1000000000]"
static const cli_option table[] = {
    { "--data", CLI_TEXT, &set.data, "FILE", "tinyshakespeare/input.txt", "the text to learn", 0 },
    { "--out", CLI_TEXT, &set.out, "DIR", "out", "where the run is kept", 0 },
    { "--resume", CLI_FLAG, &set.resume, 0, 0, "go on with the run in --out, up to --steps", 0 },
    { "--width", CLI_INT, &held.config.C, "[2, 1048576]", "128", "of the model", 0 },
    { "--layers", CLI_INT, &held.config.L, "[1, 1024]", "4", "of the model", 0 },
    { "--heads", CLI_INT, &held.config.NH, "[1, 524288]", "4", "of attention", 0 },
    { "--context", CLI_INT, &held.config.T, "[1, 1048576]", "64", "bytes the model sees", 0 },
    { "--experts", CLI_INT, &held.config.E, "[1, 256]", "8", "per layer; 1 is a dense model", 0 },
    { "--hidden", CLI_INT, &held.hidden, "[1, 1048576]", "172", "mean width of an expert", 0 },
    { "--sizes", CLI_TEXT, &held.sizes, "RULE", "arithmetic", "of widths: homogeneous, arithmetic,"
      "\n                       geometric, hybrid, modse, or ratios such as 9,11,13,15", 0 },
    { "--routing", CLI_CHOICE, &held.routing, "topk|topp", "topk", "how experts are chosen", 0 },
    { "--k", CLI_INT, &held.config.K, "[1, 256]", "2, or 1 of 1", "topk: experts of a token", 0 },
    { "--p", CLI_REAL, &held.config.top_p, "[1e-9, 1]", "0.57", "topp: what their P add up to", 0 },
    { "--gate", CLI_CHOICE, &held.gate, "norm|raw", "norm; raw if k is 1", "their weights", 0 },
    { "--noisy", CLI_FLAG, &held.config.noisy_gating, 0, 0, "noise in training's router", 0 },
    { "--budget", CLI_REAL, &held.config.budget, "(0, 1]", "off",
      "topp: steer p until tokens use this share of the width", 0 },
    { "--balance", CLI_CHOICE, &held.balance, "off|tokens|work", "off",
      "even out tokens or work by a bias on the choice", 0 },
    { "--balance-rate", CLI_REAL, &held.config.balance_rate, "[0, 1]", "0.001",
      "how far that bias moves in a step", 0 },
    { "losses", CLI_REAL, NULL, NULL, NULL, NULL, 0 },     /* here stand those of list_options */
    { "--steps", CLI_INT, &set.steps, "[0, 1000000000]", "2000", "of the whole run", 0 },
    { "--stop-at", CLI_INT, &set.stop_at, "[1, 1000000000]", "none", "step to stop after", 0 },
    { "--batch", CLI_INT, &set.batch, "[1, 16777216]", "12", "sequences in a micro-batch", 0 },
    { "--accum", CLI_INT, &set.accum, "[1, 1000000]", "1", "micro-batches in a step", 0 },
    { "--lr", CLI_REAL, &set.adamw.lr, "[0, inf)", "0.002", "highest learning rate", 0 },
    { "--min-lr", CLI_REAL, &set.min_lr, "[0, inf)", "0", "the last one, at most --lr", 0 },
    { "--warmup", CLI_INT, &set.warmup, "[0, 1000000000]", "a third", "steps up to --lr", 0 },
    { "--weight-decay", CLI_REAL, &set.adamw.weight_decay, "[0, inf)", "0.1", "of matrices", 0 },
    { "--beta1", CLI_REAL, &set.adamw.beta1, "[0, 0.999999]", "0.9", "AdamW's first moment", 0 },
    { "--beta2", CLI_REAL, &set.adamw.beta2, "[0, 0.999999]", "0.99", "AdamW's second moment", 0 },
    { "--optimizer", CLI_CHOICE, &held.optimizer, "adamw|muon", "adamw", "muon: half the text", 0 },
    { "--muon-lr", CLI_REAL, &set.muon.lr, "[0, inf)", "0.02", "Muon's, scheduled like --lr", 0 },
    { "--dropout", CLI_REAL, &set.dropout, "[0, 0.9]", "0", "of what a block adds", 0 },
    { "--clip", CLI_REAL, &set.adamw.clip, "[0, inf)", "1", "largest gradient norm, 0: any", 0 },
    { "--eval-every", CLI_INT, &set.eval_every, COUNT, "250", "steps between evaluations", 0 },
    { "--eval-tokens", CLI_INT, &set.eval_tokens, COUNT, "32768", "of text in an evaluation", 0 },
    { "--save-every", CLI_INT, &set.save_every, COUNT, "250", "steps between saves", 0 },
    { "--seed", CLI_SEED, &held.seed, "[0, 18446744073709551615]", "1337", "of all randomness", 0 },
    CLI_PEERS(set.peers) CLI_BACKEND(set.backend),
};
enum { OPTIONS = sizeof table / sizeof *table - 1 + HMOE_LOSS_TERMS };
static cli_option options[OPTIONS];
#define GIVEN(name) cli_given(options, name)      /* its value on the command line, or NULL */

typedef struct run {
    hmoe_model model;
    unsigned char *text;              /* tokens: n_train to learn from, then n_val to validate */
    size_t n_train, n_val;
    int *inputs, *targets;            /* [batch, T], a process's part of a micro-batch: sequences */
    int batch, first;                 /*   first .. first + batch - 1 */
    FILE *log;
    int ours;                         /* is this run in --out by now, and not an older one? */
    int64_t first_step, first_tokens; /* where this program began, */
    double first_seconds, began, shown;   /*   and when; when the progress line was written */
    int warned;                       /* of collapsed layers */
} run;

/* --- the command line ------------------------------------------------------------------------ */

/* The options are the table, and one for the weight of each of the router's losses. */
static void list_options(void) {
    static struct { char name[16], initial[64], help[80]; } text[HMOE_LOSS_TERMS];
    cli_option *o = options;
    for (size_t k = 0; k < sizeof table / sizeof *table; k++) {
        if (table[k].value) { *o++ = table[k]; continue; }
        for (int i = 0; i < HMOE_LOSS_TERMS; i++, o++) {
            const hmoe_loss_term *loss = &hmoe_loss_terms[i];
            const char *unless = i == HMOE_PP ? ", or 0 with --balance"
                                 : i == HMOE_ENT ? "; topp without --budget: 0.00003" : "";
            snprintf(text[i].name, sizeof text[i].name, "--%s", loss->name);
            snprintf(text[i].initial, sizeof text[i].initial, "%g%s", loss->initial, unless);
            snprintf(text[i].help, sizeof text[i].help, "weight of the loss: %s", loss->what);
            *o = (cli_option){ text[i].name, CLI_REAL, &held.config.loss_coef[i], "[0, 1e6]",
                               text[i].initial, text[i].help, 0 };
        }
    }
}

/* Reads the options; those that describe a model make its configuration. */
static void read_options(int argc, char **argv) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_config *c = &held.config;
    list_options();
    *c = hmoe_default_config(), set.muon = hmoe_default_muon();
    int end = cli_parse(argc, argv, options, OPTIONS, "usage: train_tiny [options]\n"
                        "Trains a heterogeneous mixture of experts on the bytes of a text.");
    if (end < argc) cli_fail(2, "%s: belongs to no option (--help lists them)", argv[end]);
    if (set.backend.cuda && held.optimizer)
        cli_fail(2, "--optimizer muon: runs on the cpu only, --backend cuda has adamw");
    if (strlen(set.out) > PATH_SIZE - 64) cli_fail(2, "--out: longer than %d", PATH_SIZE - 64);
    if (set.min_lr > set.adamw.lr)
        cli_fail(2, "--min-lr %.9g: is above --lr, %.9g", set.min_lr, set.adamw.lr);
    if (!GIVEN("--k") && c->E < c->K) c->K = c->E;
    if (!GIVEN("--warmup")) set.warmup = (set.steps + 2) / 3;
    if (!GIVEN("--ent") && held.routing && !GIVEN("--budget")) c->loss_coef[HMOE_ENT] = 3e-5;
    if (!GIVEN("--pp") && held.balance) c->loss_coef[HMOE_PP] = 0;
    c->balance = (hmoe_balance)held.balance;
    c->routing = held.routing ? HMOE_TOP_P : HMOE_TOP_K;
    if (GIVEN("--gate")) c->gate = held.gate ? HMOE_GATE_RAW : HMOE_GATE_NORM;
    if (set.resume) return;                          /* the directory has the rest */
    if (GIVEN("--budget") && !held.routing)
        cli_fail(2, "--budget %s: needs --routing topp: Top-K takes --k experts whatever they cost",
                 GIVEN("--budget"));
    c->V = 256;                                      /* at most; the text will tell */
    if (hmoe_expert_sizes(c->H, c->E, (long long)c->E * held.hidden, held.sizes, why))
        cli_fail(2, "--sizes %s --experts %d --hidden %d: %s", held.sizes, c->E, held.hidden, why);
    if (hmoe_check_config(c, why))
        cli_fail(2, "%s\n(C: --width, NH: --heads, T: --context, E: --experts, K: --k)", why);
    int most = HMOE_MAX_TOKENS / c->T / (held.routing ? c->E : c->K);
    if (set.batch > most)
        cli_fail(2, "--batch %d: with --context %d it can be at most %d", set.batch, c->T, most);
}

/* A resumed run is what its directory says. Options that repeat it are fine, others are not. */
static void compare_with_run(const hmoe_model *m) {
    const hmoe_config *c = &m->config;
    long long total = (long long)hmoe__total_width(c);
    struct held in_run = { .config = *c, .seed = m->seed, .routing = c->routing == HMOE_TOP_P,
                           .gate = c->gate == HMOE_GATE_RAW, .optimizer = m->optimizer,
                           .balance = (int)c->balance,
                           .hidden = (int)(total / c->E) };
    /* what config.json does not say, since it plays no part, is not compared */
    if (!c->balance) in_run.config.balance_rate = held.config.balance_rate;
    if (hmoe__is_mixtral(c)) in_run.config.top_p = held.config.top_p;
    cli_compare(options, OPTIONS, &held, &in_run, sizeof held, set.out);
    if (GIVEN("--sizes") && (hmoe_expert_sizes(held.config.H, c->E, total, held.sizes, NULL)
                             || memcmp(held.config.H, c->H, (size_t)c->E * sizeof *c->H)))
        cli_fail(2, "--sizes %s: the run in %s has %d experts of widths %d, ..., %d", held.sizes,
                 set.out, c->E, c->H[0], c->H[c->E - 1]);
}

/* --- the run's directory --------------------------------------------------------------------- */

static const char *path_of(char *path, const char *name) {
    snprintf(path, PATH_SIZE, "%s/%s", set.out, name);
    return path;
}

static void enter_directory(void) {
    char path[PATH_SIZE];
    if (cli_rank > 0) return;                        /* files are the first process's work */
    if (set.resume && (access(path_of(path, "config.json"), F_OK)
                       || access(path_of(path, "training.safetensors"), F_OK)))
        cli_fail(1, "--resume: there is no run in %s: cannot find %s", set.out, path);
    cli_lock(set.out, path_of(path, "lock"), !set.resume);
}

/* A new log.csv.new, with the rows up to the model's step where the run is resumed. A resumed run
   renames it at once, a fresh one with its first save. */
static void open_log(run *r) {
    char path[PATH_SIZE], new_path[PATH_SIZE], row[512];
    if (cli_rank > 0) { r->log = stdout; return; }   /* it goes nowhere */
    FILE *old = r->ours ? fopen(path_of(path, "log.csv"), "rb") : NULL;
    if (r->ours && !old && errno != ENOENT) cli_cannot("read", path);
    r->log = fopen(path_of(new_path, "log.csv.new"), "wb");
    if (!r->log) cli_cannot("write", new_path);
    fputs("step,tokens,seconds,lr,loss,ce,", r->log);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) fprintf(r->log, "%s,", hmoe_loss_terms[i].name);
    fputs("grad_norm,activated,experts,val_loss\n", r->log);
    while (old && fgets(row, sizeof row, old))
        if (strchr(row, '\n') && atoll(row) > 0 && atoll(row) <= r->model.step) fputs(row, r->log);
    if (old && (ferror(old) || fclose(old))) cli_fail(1, "cannot read the older log.csv");
    cli_sync(r->log, new_path);
    if (r->ours && cli_rename(&r->log, new_path, path, set.out)) cli_cannot("rename", new_path);
}

/* Before the first save of a fresh run: an older run in --out goes, config.json first, so that a
   crash before the new one is written leaves a directory that no reader takes for a run. Where it
   cannot go, config.json comes back. */
static int replace_older_run(run *r) {
    static const char *const files[] = { "best/config.json", "best/model.safetensors",
        "best/tokenizer.json", "best/tokenizer_config.json", "training.safetensors", "config.old" };
    char path[PATH_SIZE], config[PATH_SIZE], old[PATH_SIZE], log[PATH_SIZE];
    int error, was = !access(path_of(config, "config.json"), F_OK);
    int failed = (was && hmoe__replace(config, path_of(old, "config.old"), set.out))
                 || cli_rename(&r->log, path_of(log, "log.csv.new"), path_of(path, "log.csv"),
                               set.out);
    for (size_t i = 0; i < sizeof files / sizeof *files && !failed; i++)
        failed = unlink(path_of(path, files[i])) && errno != ENOENT;
    error = errno;
    rmdir(path_of(path, "best"));                    /* if it is empty now */
    if (!failed) return 1;
    if (was) hmoe__replace(old, config, set.out);
    hmoe_discard(&r->model, path_of(path, "best"), 0), hmoe_discard(&r->model, set.out, 1);
    cli_fail(1, "cannot replace the older run in %s: %s", set.out, strerror(error));
}

static void give_up(const run *r, hmoe_status status, int64_t step) {
    const char *why = r->model.message;
    if (status && status != HMOE_NOT_FINITE) cli_fail(1, "step %lld: %s", (long long)step, why);
    cli_fail(1, "step %lld: %s; most likely --lr %.9g is too high\n(this state is not saved, %s is "
             "as before; a lower --lr, a longer --warmup or a smaller --clip may help)",
             (long long)step, *why ? why : "a loss or weight is not finite", set.adamw.lr, set.out);
}

/* All is written before any older file goes. best/ comes first and the state at once: after a crash
   in between, the resumed run saves best/ again. Weights beyond all bounds, which no step may have
   met yet, are not saved. */
static void save(run *r, int best) {
    char path[PATH_SIZE], best_dir[PATH_SIZE];
    hmoe_model *m = &r->model;
    if (!cli_is_finite(m)) give_up(r, 0, m->step);
    if (cli_rank == 0) cli_sync(r->log, path_of(path, r->ours ? "log.csv" : "log.csv.new"));
    path_of(best_dir, "best");
    hmoe_status status = best ? hmoe_prepare(m, best_dir, 0) : HMOE_OK;
    if (!status && (status = hmoe_prepare(m, set.out, 1))) hmoe_discard(m, best_dir, 0);
    if (!status && !r->ours) r->ours = cli_rank > 0 || replace_older_run(r);
    if (!status && best && (status = hmoe_commit(m, best_dir, 0))) hmoe_discard(m, set.out, 1);
    if (status || hmoe_commit(m, set.out, 1))
        cli_fail(1, "step %lld is not saved: %s", (long long)m->step, m->message);
}

/* The bytes, as tokens. Their vocabulary is the model's. */
static void read_text(run *r) {
    hmoe_config *c = set.resume ? &r->model.config : &held.config;
    size_t n, least = (((size_t)c->T + 1) * 10 + 8) / 9;    /* then 9n/10 is at least T + 1 */
    r->text = cli_read_once(set.data, &n, GIVEN("--data") ? "" : "\n(`make data` fetches it)");
    r->n_train = n / 10 * 9 + n % 10 * 9 / 10;
    r->n_val = n - r->n_train;
    if (r->n_train < (size_t)c->T + 1 || r->n_val < 2)
        cli_fail(1, "%s has %lu bytes: with --context %d it must have at least %lu", set.data,
                 (unsigned long)n, c->T, (unsigned long)(least < 11 ? 11 : least));
    if (!set.resume) hmoe_byte_vocab(c, r->text, n, NULL);
    cli_tokens(c, r->text, n, set.data);
}

/* Micro-batch a of a step: where sequence s of a step starts depends on the seed, the step and s
   alone, so however a step is cut, it has the same sequences. */
static void fill_batch(run *r, int64_t step, int a) {
    size_t T = (size_t)r->model.config.T;
    for (int b = 0; b < r->batch; b++) {
        uint64_t s = (uint64_t)a * (uint64_t)set.batch + (uint64_t)(r->first + b);
        const unsigned char *x = r->text + hmoe_random(r->model.seed, BATCHES, (uint64_t)step, s)
                                           % (r->n_train - T);
        for (size_t t = 0, i = (size_t)b * T; t < T; t++, i++)
            r->inputs[i] = x[t], r->targets[i] = x[t + 1];
    }
}

/* --- what is shown --------------------------------------------------------------------------- */

static void introduce(const run *r) {
    const hmoe_model *m = &r->model;
    const hmoe_config *c = &m->config;
    int top_p = c->routing == HMOE_TOP_P;
    printf("model    %d layers of width %d, %d heads, context %d: %.0f parameters, ", c->L, c->C,
           c->NH, c->T, hmoe_parameters(m));
    printf("%.0f activated\nexperts  %d per layer, top-%c %.9g; widths", hmoe_activated(m), c->E,
           top_p ? 'p' : 'k', top_p ? c->top_p : c->K);
    for (int e = 0; e < c->E; e++) printf(" %d", c->H[e]);
    if (c->budget > 0) printf("; steered to %.9g of the width", c->budget);
    if (c->balance) printf("; %s balanced", c->balance == HMOE_BALANCE_WORK ? "work" : "tokens");
    printf("\ntext     %s: %lu bytes to learn from, %lu to validate on\n", set.data,
           (unsigned long)r->n_train, (unsigned long)r->n_val);
    printf("run      in %s, from step %lld to %d, each of %d x %d x %d tokens\n", set.out,
           (long long)m->step, set.steps, set.accum, set.batch, c->T);
    cli_introduce(&set.peers, m);
    double widest = hmoe__widest(c) / hmoe__total_width(c);
    if (c->budget > 0 && c->budget < widest)
        cli_warn("a budget of %.9g of the width may be out of reach: the widest expert alone is "
                 "%.6f of it", c->budget, widest);
}

/* One line, rewritten in place on a terminal; elsewhere printed every ten seconds. */
static void show_progress(run *r, const hmoe_losses *losses, double lr, int finish_line) {
    const hmoe_model *m = &r->model;
    int terminal = isatty(STDOUT_FILENO);
    double seconds = m->seconds - r->first_seconds;
    double left = seconds * (double)(set.steps - m->step) / (double)(m->step - r->first_step);
    if (!finish_line && cli_seconds() - r->shown < (terminal ? 0.1 : 10)) return;
    r->shown = cli_seconds();
    cli_line_is_open = terminal && !finish_line;
    printf("%sstep %lld/%d  loss %.6f ce %.6f lr %.6f  %.0f tok/s  %.0f:%02d left%s%s",
           terminal ? "\r" : "", (long long)m->step, set.steps, losses->total, losses->ce, lr,
           (double)(m->tokens - r->first_tokens) / seconds, floor(left / 60), (int)fmod(left, 60),
           terminal ? "\033[K" : "", cli_line_is_open ? "" : "\n");
    fflush(stdout);
}

/* A line per layer and a cell per expert: its share of the tokens and of the compute, as a bar and
   in percent. Half a bar is an even share. Eight experts fill a line, more go below. */
static void draw_experts(const hmoe_model *m) {
    static const char *const bars[] = { " ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" };
    int E = m->config.E;
    hmoe_usage u;
    printf("experts by width, each with its %% of the tokens and of the compute (▄: even)\n");
    for (int first = 0; first < E; first += 8) {
        int end = E < first + 8 ? E : first + 8;
        printf("       ");
        for (int e = first; e < end; e++) printf("%9d%s", m->config.H[e], e < end - 1 ? "" : "\n");
        for (int l = 0; l < m->config.L; l++) {
            hmoe_get_usage(m, l, &u);
            printf("layer %-2d", l + 1);
            for (int e = first; e < end; e++) {
                double tokens = fmin(4 * u.share[e] * E / u.experts, 8);
                double compute = fmin(4 * u.compute[e] * E, 8);
                printf(" %s%3.0f%s%3.0f%s", bars[(int)ceil(tokens)], 100 * u.share[e],
                       bars[(int)ceil(compute)], 100 * u.compute[e], e < end - 1 ? "" : "\n");
            }
        }
    }
    printf("layer: entropy of the router in nats, experts per token, dead experts:");
    for (int l = 0; l < m->config.L; l++) {
        hmoe_get_usage(m, l, &u);
        printf("%s%d: %.2f %.2f %d", l % 4 ? "   " : "\n  ", l + 1, u.entropy, u.experts, u.dead);
    }
    putchar('\n');
    if (m->config.budget > 0) printf("layer: top_p, %% of the width in use:");
    for (int l = 0; l < m->config.L && m->config.budget > 0; l++) {
        hmoe_get_usage(m, l, &u);
        printf("%s%d: %.6f %.2f", l % 4 ? "   " : "\n  ", l + 1, u.top_p,
               100 * u.width / hmoe__total_width(&m->config));
    }
    if (m->config.budget > 0) putchar('\n');
}

/* Warns once that layers have collapsed on the text just evaluated, and says what may help. One
   expert has nearly all choices, and the others learn nothing; or tokens have one expert each whose
   renormalised gate is 1 whatever the router says, so that it learns nothing from the text. */
static void warn_of_collapse(run *r) {
    const hmoe_config *c = &r->model.config;
    int top_p = c->routing == HMOE_TOP_P, one = 0, alone = 0;   /* the first such layer, from 1 */
    hmoe_usage u;
    for (int l = c->L; l-- > 0;) {
        double most = 0;
        hmoe_get_usage(&r->model, l, &u);
        for (int e = 0; e < c->E; e++) most = fmax(most, u.share[e]);
        if (most > 0.95 * u.experts) one = l + 1;
        if (top_p && c->gate == HMOE_GATE_NORM && u.experts < 1.05) alone = l + 1;
    }
    if (c->E == 1 || r->warned || !(one || alone)) return;
    r->warned = 1;
    const char *less = c->loss_coef[HMOE_ENT] > 0 ? "a lower --ent, " : "";
    if (one)
        cli_warn("layer %d has collapsed: one expert has over 95 %% of all choices, the others "
                 "learn nothing\n(%s%s, or a higher --pp or --lb, spreads the work: start anew with "
                 "one of them)", one, less, c->balance ? "a higher --balance-rate"
                 : "--balance work");
    else
        cli_warn("layer %d has collapsed: its tokens have one expert each, and a renormalised gate "
                 "is then 1, so the text no longer teaches the router\n(%s%s or --gate raw may "
                 "help: start anew with one of them)", alone, less,
                 c->budget > 0 ? "a higher --budget" : "a higher --p, --budget 0.25");
}

static void put_sample(int byte) {
    static int inside;
    if (!inside) printf("  | ");
    inside = byte != '\n';
    putchar(byte < ' ' && byte != '\n' && byte != '\t' ? '.' : byte);
}

/* --- training -------------------------------------------------------------------------------- */

/* One step: its micro-batches forward and backward, then the update. Returns the learning rate. */
static double train_step(run *r, hmoe_losses *mean) {
    hmoe_model *m = &r->model;
    hmoe_adamw adamw = set.adamw;
    int64_t step = m->step + 1;
    hmoe_muon muon = set.muon;
    double began = cli_seconds(), part = 1.0 / set.accum;
    hmoe_status status = HMOE_OK;
    hmoe_reset_usage(m);
    memset(mean, 0, sizeof *mean);
    for (int a = 0; a < set.accum && !status; a++) {
        fill_batch(r, step, a);
        status = hmoe_forward(m, HMOE_TRAIN, r->inputs, r->targets, r->batch, m->config.T);
        if (status || !isfinite(m->losses.total)) give_up(r, status, step);
        status = hmoe_backward(m, part);
        mean->total += part * m->losses.total, mean->ce += part * m->losses.ce;
        for (int i = 0; i < HMOE_LOSS_TERMS; i++) mean->term[i] += part * m->losses.term[i];
    }
    adamw.lr = hmoe_learning_rate(step, set.warmup, set.steps, adamw.lr, set.min_lr);
    muon.lr *= set.adamw.lr > 0 ? adamw.lr / set.adamw.lr : 1;
    if (!status && m->optimizer) status = hmoe_muon_update(&muon, m);
    if (status || (status = hmoe_update(m, &adamw)) != HMOE_OK) give_up(r, status, step);
    m->seconds += cli_seconds() - began;
    return adamw.lr;
}

/* The loss on evenly spaced windows of the validation text, the same each time, how the experts
   were used there, and a sample. Returns whether this is the lowest loss so far. */
static int evaluate(run *r, double *loss) {
    hmoe_model *m = &r->model;
    unsigned char first = cli_first_token(&m->config);
    cli_sampling how = { 0.8, 1.0, 0, hmoe_random(m->seed, SAMPLES, (uint64_t)m->step, 0) };
    size_t n = r->n_val, w = (size_t)(set.eval_tokens / m->config.T);    /* windows */
    hmoe_reset_usage(m);
    hmoe_status status = cli_loss(m, r->text + r->n_train, n, w + !w, set.batch, NULL, loss);
    if (status || !isfinite(*loss)) give_up(r, status, m->step);
    int best = *loss < m->best_val_loss;
    if (best) m->best_val_loss = *loss;
    printf("step %lld: validation loss %.6f%s; %.0f activated, %.2f TFLOPs so far\n", (long long)
           m->step, *loss, best ? ", lowest yet" : "", hmoe_activated(m), m->flops / 1e12);
    draw_experts(m);
    warn_of_collapse(r);
    status = cli_write(m, &first, 1, 200, &how, put_sample);
    put_sample('\n');
    if (status) give_up(r, status, m->step);
    fflush(stdout);
    return best;
}

static void log_step(run *r, const hmoe_losses *x, double lr) {
    const hmoe_model *m = &r->model;
    hmoe_usage u;
    double experts = 0;
    for (int l = 0; l < m->config.L; l++, experts += u.experts / m->config.L)
        hmoe_get_usage(m, l, &u);
    fprintf(r->log, "%lld,%lld,%.3f,%.9f,%.6f,%.6f,", (long long)m->step, (long long)m->tokens,
            m->seconds, lr, x->total, x->ce);
    for (int i = 0; i < HMOE_LOSS_TERMS; i++) fprintf(r->log, "%.6f,", x->term[i]);
    fprintf(r->log, "%.6f,%.1f,%.6f,", m->grad_norm, hmoe_activated(m), experts);
}

/* Steps until --steps or an interruption; returns 0 where it was one. */
static int train(run *r) {
    hmoe_model *m = &r->model;
    double val_loss;
    int stop = 0;
    if (set.steps == 0) save(r, evaluate(r, &val_loss));    /* the initial model */
    while (m->step < set.steps && !stop) {
        hmoe_losses losses;
        double lr = train_step(r, &losses);
        int last = m->step == set.steps, best = 0;
        int due = last || m->step % set.eval_every == 0;
        log_step(r, &losses, lr);
        stop = cli_sum(m, cli_interrupted) > 0 || m->step == set.stop_at;
        show_progress(r, &losses, lr, due || stop);
        if (due) best = evaluate(r, &val_loss), fprintf(r->log, "%.6f", val_loss);
        fputc('\n', r->log);
        if (fflush(r->log)) cli_fail(1, "cannot write %s/log.csv: %s", set.out, strerror(errno));
        if (best || last || stop || m->step % set.save_every == 0) save(r, best);
    }
    return m->step >= set.steps;
}

/* Makes the model, or takes it from --out, and room for its batches. */
static void start(run *r) {
    hmoe_model *m = &r->model;
    r->batch = set.batch / cli_ranks, r->first = r->batch * cli_rank;
    if (set.resume && hmoe_load(m, set.out, r->batch, 1)) cli_fail(1, "%s", m->message);
    if (m->optimizer > 1) cli_fail(1, "%s: its optimizer is not one of this program's", set.out);
    if (set.resume) compare_with_run(m);
    r->ours = set.resume;
    read_text(r);
    if (!set.resume && hmoe_create(m, &held.config, held.seed, r->batch, 1))
        cli_fail(1, "%s", m->message);
    if (!set.resume) m->optimizer = held.optimizer;
    if (m->optimizer && hmoe_muon_create(&set.muon, m)) cli_fail(1, "%s", m->message);
    m->dropout = set.dropout;
    r->inputs = (int *)cli_alloc((size_t)r->batch * (size_t)m->config.T * 2 * sizeof *r->inputs);
    r->targets = r->inputs + (size_t)r->batch * (size_t)m->config.T;
    r->first_step = m->step, r->first_tokens = m->tokens, r->first_seconds = m->seconds;
}

/* The last line: the whole validation text. The seconds are all of this program's, and those that
   the run had spent in training steps before it was resumed. */
static void finish(run *r) {
    hmoe_model *m = &r->model;
    double loss;
    cli_catch_interrupts(0);
    if (cli_loss(m, r->text + r->n_train, r->n_val, 0, set.batch, NULL, &loss))
        cli_fail(1, "%s", m->message);
    printf("final: val_loss %.6f nats/token over %lu tokens, %.0f tok/s, %.1f s\n", loss,
           (unsigned long)(r->n_val - 1), m->step ? (double)m->tokens / m->seconds : 0.0,
           r->first_seconds + cli_seconds() - r->began);
}

int main(int argc, char **argv) {
    static run r;
    cli_begin("train_tiny", &argc, &argv);
    r.began = r.shown = cli_seconds();
    read_options(argc, argv);
    cli_join(&set.peers, &r.model, options, OPTIONS);
    r.model.backend = cli_steps(&set.backend);
    enter_directory();
    start(&r);
    introduce(&r);
    if (set.resume && r.model.step >= set.steps) finish(&r);
    else if (cli_catch_interrupts(1), open_log(&r), train(&r)) finish(&r);
    else {
        printf("stopped after step %lld; to go on: %s", (long long)r.model.step, cli_launcher());
        cli_repeat(argv[0], options, OPTIONS, &held, sizeof held);
    }
    if (fflush(stdout) || ferror(stdout)) cli_fail(1, "cannot write to standard output");
    return 0;
}
