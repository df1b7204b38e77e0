/* train_tiny.c - trains a small heterogeneous mixture of experts on a text.

       train_tiny --data my.txt --out run          a new run, kept in the directory run/
       train_tiny --resume --out run               goes on with it
       train_tiny --help                           all options

   A run's directory holds its latest state (training.safetensors) and weights (model.safetensors),
   best/ with the weights that did best on the validation text, log.csv with a row per step, and
   recipe.txt with the options that --resume uses.
   Ctrl-C finishes the step, saves, and says how to go on. Every random number depends on the seed
   and on its purpose alone, so a run that was stopped and resumed ends with the same bits as an
   uninterrupted one. Read from main(), at the end, upwards. */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/muon/hmoe_muon.h"
#include "cli.h"
#include "extra/run/corpus.h"
#include "extra/run/display.h"
#include "extra/run/init.h"
#include "extra/run/losses.h"
#include "extra/run/save.h"

enum { BATCHES = 1, SAMPLES, BEST_OF };   /* the purposes of random numbers */

static struct settings {
    const char *out, *sizes;
    int resume, overwrite, steps, stop_at, batch, accum, warmup;
    int eval_every, eval_tokens, final_tokens, save_every;
    int hidden, routing, gate, balance, optimizer;
    double min_lr, dropout;
    uint64_t seed;
    corpus corpus;
    init init;
    hmoe_config model;
    hmoe_adamw adamw;
    hmoe_muon muon;
    cli_backend backend;
    cli_peers peers;
} set;

static const cli_option rows[] = {
    CORPUS_OPTIONS(set.corpus),
    CLI_TEXT("--out", &set.out, "DIR", "out", "directory of the run"),
    CLI_FLAG("--resume", &set.resume, "continue the run in --out, up to --steps"),
    CLI_FLAG("--overwrite", &set.overwrite, "replace the run in --out at the new one's first save"),
    INIT_OPTIONS(set.init),
    CLI_INT("--width", &set.model.C, 2, 1 << 20, "128", "model width"),
    CLI_INT("--layers", &set.model.L, 1, 1024, "4", "layers"),
    CLI_INT("--heads", &set.model.NH, 1, 1 << 19, "4", "attention heads"),
    CLI_INT("--kv-heads", &set.model.NKV, 1, 1 << 19, "as --heads", "heads of keys and values"),
    CLI_INT("--context", &set.model.T, 1, 1 << 20, "64", "longest sequence, in tokens"),
    CLI_INT("--experts", &set.model.E, 1, 256, "8", "experts per layer; 1: a dense model"),
    CLI_INT("--hidden", &set.hidden, 1, 1 << 20, "172", "mean width of an expert"),
    CLI_TEXT("--sizes", &set.sizes, "RULE", "arithmetic", "expert widths: homogeneous, arithmetic,"
             "\n                             geometric, hybrid, modse, or ratios: 9,11,13,15"),
    CLI_WORD("--routing", &set.routing, "topk|topp", "topk", "choice of experts"),
    CLI_INT("--k", &set.model.K, 1, 256, "2; 1 if --experts is 1", "topk: experts per token"),
    CLI_REAL("--p", &set.model.top_p, 1e-9, 1, "0.57", "topp: experts until their P sum to this"),
    CLI_WORD("--gate", &set.gate, "norm|raw", "norm; raw if k is 1", "gates of sum 1, or P itself"),
    CLI_FLAG("--noisy", &set.model.noisy_gating, "add noise to the router's logits in training"),
    CLI_REAL("--budget", &set.model.budget, 1e-9, 1, "off", "topp: share of the width to use"),
    CLI_WORD("--balance", &set.balance, "off|tokens|work", "off", "load that a bias equalises"),
    CLI_REAL("--balance-rate", &set.model.balance_rate, 0, 1, "0.001", "change of a bias per step"),
    CLI_INT("--steps", &set.steps, 0, 1e9, "2000", "steps of the run, with those before --resume"),
    CLI_INT("--stop-at", &set.stop_at, 1, 1e9, "none", "stop and save after this step"),
    CLI_INT("--batch", &set.batch, 1, 1 << 24, "12", "sequences in a micro-batch"),
    CLI_INT("--accum", &set.accum, 1, 1e6, "1", "micro-batches in a step"),
    CLI_REAL("--lr", &set.adamw.lr, 0, INFINITY, "0.002", "peak learning rate"),
    CLI_REAL("--min-lr", &set.min_lr, 0, INFINITY, "0", "final learning rate, at most --lr"),
    CLI_INT("--warmup", &set.warmup, 0, 1e9, "a third", "steps until --lr is reached"),
    CLI_REAL("--weight-decay", &set.adamw.weight_decay, 0, INFINITY, "0.1", "decay of matrices"),
    CLI_REAL("--beta1", &set.adamw.beta1, 0, 0.999999, "0.9", "decay of AdamW's first moment"),
    CLI_REAL("--beta2", &set.adamw.beta2, 0, 0.999999, "0.99", "decay of AdamW's second moment"),
    CLI_WORD("--optimizer", &set.optimizer, "adamw|muon", "adamw", "optimizer of most matrices"),
    CLI_REAL("--muon-lr", &set.muon.lr, 0, INFINITY, "0.02", "Muon's peak learning rate"),
    CLI_REAL("--dropout", &set.dropout, 0, 0.9, "0", "dropout rate"),
    CLI_REAL("--clip", &set.adamw.clip, 0, INFINITY, "1", "largest gradient norm, 0: no limit"),
    CLI_INT("--eval-every", &set.eval_every, 1, 1e9, "250", "steps between evaluations"),
    CLI_INT("--eval-tokens", &set.eval_tokens, 1, 1e9, "32768", "tokens in an evaluation"),
    CLI_INT("--final-tokens", &set.final_tokens, 1, 1e9, "all", "tokens in the last evaluation"),
    CLI_INT("--save-every", &set.save_every, 1, 1e9, "250", "steps between saves"),
    CLI_SEED("--seed", &set.seed, "1337", "seed of all random numbers"),
    CLI_PEERS(set.peers)
    CLI_BACKEND(set.backend),
};
enum { ROWS = sizeof rows / sizeof *rows, OPTIONS = ROWS + HMOE_LOSS_TERMS };
static cli_option options[OPTIONS];   /* the rows, and those of the losses */
static int is_given(const char *name) { return cli_given(options, name) != NULL; }

typedef struct run {
    hmoe_model model;
    int *inputs, *targets;            /* [batch, T], this process's part of a micro-batch: */
    int batch, first;                 /*   sequences first .. first + batch - 1 */
    overwrite directory;
    FILE *log;
    double began;                     /* start time, */
    display_start start;              /*   and the model's state then */
} run;

/* --- the command line ------------------------------------------------------------------------ */

/* Checks that the options fit together and make a model. With --resume, those of recipe.txt are
   already set. */
static void check_options(const hmoe_config *c) {
    char why[HMOE_MESSAGE_SIZE];
    if (set.warmup < 0 && set.steps > 0) set.warmup = (set.steps + 2) / 3;
    corpus_check(&set.corpus, options);
    if (set.backend.cuda && set.optimizer)
        cli_fail(2, "--optimizer muon: runs on the cpu only, leave out --backend cuda");
    if (set.min_lr > set.adamw.lr)
        cli_fail(2, "--min-lr %.9g: is above --lr, %.9g", set.min_lr, set.adamw.lr);
    if (set.batch % cli_ranks)
        cli_fail(2, "--batch %d: must be a multiple of the %d processes", set.batch, cli_ranks);
    if (hmoe_check_config(c, why))
        cli_fail(2, "%s\n(C: --width, NH: --heads, NKV: --kv-heads, T: --context, E: --experts, "
                 "K: --k)", why);
    int most = HMOE_MAX_TOKENS / c->T / (c->routing == HMOE_TOP_P ? c->E : c->K);
    if (set.batch > most)
        cli_fail(2, "--batch %d: it can be at most %d with --context %d", set.batch, most, c->T);
}

/* Copies the options that describe a new model into its configuration. */
static void configure_model(void) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_config *c = &set.model;
    if (!is_given("--k") && c->E < c->K) c->K = c->E;
    c->balance = (hmoe_balance)set.balance;
    c->routing = set.routing ? HMOE_TOP_P : HMOE_TOP_K;
    if (is_given("--gate")) c->gate = set.gate ? HMOE_GATE_RAW : HMOE_GATE_NORM;
    if (set.init.from) init_configure(&set.init, options, c);
    else if (hmoe_expert_sizes(c->H, c->E, (long long)c->E * set.hidden, set.sizes, why))
        cli_fail(2, "--sizes %.120s --experts %d --hidden %d: %s", set.sizes, c->E, set.hidden,
                 why);
    losses_set_exceptions(options, c);
    if (c->budget > 0 && c->routing == HMOE_TOP_K)
        cli_fail(2, "--budget: works with --routing topp only, topk always takes --k experts");
    if (!set.init.from) c->V = 256;                  /* at most; the text will tell */
    check_options(c);
}

static void read_options(int argc, char **argv) {
    set.model = hmoe_default_config();
    set.muon = hmoe_default_muon();
    set.warmup = -1;                                 /* unless it is given */
    losses_add_options(options, rows, ROWS, "--balance-rate", set.model.loss_coef);
    int words = cli_parse(argc, argv, options, OPTIONS, "usage: train_tiny [options]\n"
                          "Trains a heterogeneous mixture of experts on a text.");
    if (words) cli_fail(2, "%.120s: unexpected word (--help lists the options)", argv[1]);
    if (set.resume && set.overwrite)
        cli_fail(2, "--overwrite and --resume: give only one of them");
    init_check(&set.init, options);
    if (!set.resume) configure_model();
}

/* Ends the program: nothing of this step is saved. */
static void give_up(const run *r, hmoe_status status, int64_t step) {
    display_divergence(&r->model, status, step, options, set.out);
}

/* Saves the state, and the weights as best/ too. A model that is not finite is not saved. */
static void save(run *r, int best) {
    hmoe_model *m = &r->model;
    if (!isfinite(cli_sum(m, m->backend->squared_norm(m->params, m->param_count))))
        give_up(r, HMOE_OK, m->step);
    save_files(m, &r->directory, &r->log, options, OPTIONS, &set.corpus, best);
}

/* --- training -------------------------------------------------------------------------------- */

static void introduce(const run *r, const char *program) {
    const hmoe_model *m = &r->model;
    const corpus *x = &set.corpus;
    display_model(m);
    printf("text     %s: %lu tokens to learn from, %lu to validate on\n", x->train.path,
           (unsigned long)x->n_train, (unsigned long)x->n_val);
    printf("run      in %s, from step %lld to %d, each of %d x %d x %d tokens\n"
           "         once it is saved, this continues it: ", set.out, (long long)m->step, set.steps,
           set.accum, set.batch, m->config.T);
    resume_print_command(program, set.out);
    cli_introduce(&set.peers, m);
}

/* Makes a new model, with weights from the seed or from another model. */
static void create(run *r) {
    hmoe_model *m = &r->model;
    corpus_open(&set.corpus, m, is_given("--data") ? "" : "\n(`make data` fetches it)");
    corpus_load(&set.corpus, m, &set.model, !set.init.from, set.init.from);
    if (hmoe_create(m, &set.model, set.seed, set.batch / cli_ranks, 1))
        cli_fail(1, "%s", m->message);
    if (set.init.from) init_copy(&set.init, m);
    m->optimizer = set.optimizer;
}

/* Loads the run in --out. Its recipe holds, but for the options that are given now. */
static void load(run *r) {
    hmoe_model *m = &r->model;
    resume_recipe was;
    hmoe_config c = resume_options(m, set.out, options, OPTIONS, &was);
    check_options(&c);
    if (!set.backend.cuda && !is_given("--precision")) set.backend.bf16 = 0;
    corpus_open(&set.corpus, m, "\n(--data says where it is now)");
    resume_compare_text(&was, set.corpus.size, set.corpus.hash, set.corpus.path);
    m->backend = cli_start_backend(&set.backend);
    if (hmoe_load_as(m, &c, set.out, set.batch / cli_ranks, 1)) cli_fail(1, "%s", m->message);
    resume_compare_state(options, m, set.out);
    corpus_load(&set.corpus, m, &c, 0, set.out);
    resume_tell_rate(&was, m->step, options);
}

/* Creates or loads the model, and allocates its batches. */
static void start(run *r) {
    hmoe_model *m = &r->model;
    overwrite_enter(&r->directory, set.out, set.resume, set.overwrite);
    if (set.resume) load(r);
    else create(r);
    set.model = m->config;
    if (m->optimizer && hmoe_muon_create(&set.muon, m)) cli_fail(1, "%s", m->message);
    m->dropout = set.dropout;
    resume_best(m, hmoe_random(set.corpus.hash, BEST_OF, text_windows(m, set.eval_tokens), 0));
    r->batch = set.batch / cli_ranks;
    r->first = r->batch * cli_rank;
    size_t tokens = (size_t)r->batch * (size_t)m->config.T;
    r->inputs = (int *)cli_alloc(2 * tokens * sizeof *r->inputs);
    r->targets = r->inputs + tokens;
    r->start = (display_start){ m->step, m->tokens, m->seconds };
}

/* Micro-batch a of a step. The start of sequence s depends on the seed, the step and s alone, so a
   step has the same sequences for any number of processes and micro-batches. */
static void fill_batch(run *r, int64_t step, int a) {
    size_t T = (size_t)r->model.config.T;
    for (int b = 0; b < r->batch; b++) {
        uint64_t s = (uint64_t)a * (uint64_t)set.batch + (uint64_t)(r->first + b);
        uint64_t draw = hmoe_random(r->model.seed, BATCHES, (uint64_t)step, s);
        size_t to = (size_t)b * T;
        text_get_pairs(&set.corpus.train, draw % (set.corpus.n_train - T), T, r->inputs + to,
                       r->targets + to);
    }
}

/* One step: its micro-batches forward and backward, then the update. Returns the learning rate. */
static double train_step(run *r, hmoe_losses *mean) {
    hmoe_model *m = &r->model;
    hmoe_adamw adamw = set.adamw;
    hmoe_muon muon = set.muon;
    int64_t step = m->step + 1;
    double began = cli_seconds(), part = 1.0 / set.accum;
    hmoe_status status = HMOE_OK;
    hmoe_reset_usage(m);
    memset(mean, 0, sizeof *mean);
    for (int a = 0; a < set.accum && !status; a++) {
        fill_batch(r, step, a);
        status = hmoe_forward(m, HMOE_TRAIN, r->inputs, r->targets, r->batch, m->config.T);
        if (status || !isfinite(m->losses.total)) give_up(r, status, step);
        status = hmoe_backward(m, part);
        mean->total += part * m->losses.total;
        mean->ce += part * m->losses.ce;
        for (int i = 0; i < HMOE_LOSS_TERMS; i++) mean->term[i] += part * m->losses.term[i];
    }
    if (!status) display_untrained(m, m->step - r->start.step);
    adamw.lr = hmoe_learning_rate(step, set.warmup, set.steps, adamw.lr, set.min_lr);
    if (set.adamw.lr > 0) muon.lr *= adamw.lr / set.adamw.lr;
    if (!status && m->optimizer) status = hmoe_muon_update(&muon, m);
    if (!status) status = hmoe_update(m, &adamw);
    if (status) give_up(r, status, step);
    m->seconds += cli_seconds_since(began, step > 1 ? m->seconds / (double)(step - 1) : 0);
    return adamw.lr;
}

static void show(int token) {
    tokenizer_put(&set.corpus.words, &set.model, token, display_sample);
}

/* The loss on evenly spaced windows of the validation text, the same each time; how the experts
   were used there; and a sample. Returns whether this is the lowest loss so far. */
static int evaluate(run *r, double *loss) {
    hmoe_model *m = &r->model;
    const corpus *x = &set.corpus;
    int first = text_start(&m->config);
    text_sampling how = { 0.8, 1.0, 0, hmoe_random(m->seed, SAMPLES, (uint64_t)m->step, 0) };
    hmoe_reset_usage(m);
    hmoe_status status = corpus_loss(x, m, text_windows(m, set.eval_tokens), set.batch, loss);
    if (status || !isfinite(*loss)) give_up(r, status, m->step);
    int best = *loss < m->best_val_loss;
    if (best) m->best_val_loss = *loss;
    display_evaluation(m, *loss, *loss * x->tokens_per_byte, best);
    status = text_write(m, &first, 1, 200, &how, show);
    display_sample('\n');
    if (status) give_up(r, status, m->step);
    fflush(stdout);
    return best;
}

/* Trains until --steps or an interruption. Returns whether --steps are reached. */
static int train(run *r) {
    hmoe_model *m = &r->model;
    double val_loss;
    int stop = 0;
    cli_catch_interrupts(1);
    if (!set.resume) overwrite_begin(&r->directory);
    r->log = log_open(r->directory.grows, m->step, set.resume);
    if (set.steps == 0) save(r, evaluate(r, &val_loss));    /* the initial model */
    while (m->step < set.steps && !stop) {
        hmoe_losses losses;
        double lr = train_step(r, &losses);
        int last = m->step == set.steps, best = 0;
        int due = last || m->step % set.eval_every == 0;
        log_step(r->log, m, &losses, lr);
        stop = cli_sum(m, cli_interrupted) > 0 || m->step == set.stop_at;
        display_progress(m, &r->start, set.steps, &losses, lr, due || stop);
        if (due) best = evaluate(r, &val_loss);
        log_end(r->log, due ? &val_loss : NULL, set.out);
        if (best || last || stop || m->step % set.save_every == 0) save(r, best);
    }
    return m->step >= set.steps;
}

/* The last line: the whole validation text, or --final-tokens of it. The seconds are all of this
   program's, and those that the run had spent in training steps before it was resumed. */
static void finish(run *r) {
    hmoe_model *m = &r->model;
    const corpus *x = &set.corpus;
    double loss, speed = m->step ? (double)m->tokens / m->seconds : 0;
    size_t windows = text_windows(m, set.final_tokens);
    cli_catch_interrupts(0);
    text_seconds_a_line = 10;
    if (corpus_loss(x, m, windows, set.batch, &loss)) cli_fail(1, "%s", m->message);
    if (x->tokens_per_byte > 0) printf("val_loss %.6f nats/byte\n", loss * x->tokens_per_byte);
    printf("final: val_loss %.6f nats/token over %lu tokens, %.0f tok/s, %.1f s\n", loss,
           (unsigned long)text_measured(m, x->n_val, windows), speed,
           r->start.seconds + cli_seconds() - r->began);
}

int main(int argc, char **argv) {
    static run r;
    cli_begin("train_tiny", &argc, &argv);
    r.began = cli_seconds();
    read_options(argc, argv);
    cli_join(&set.peers, &r.model, options, OPTIONS);
    if (!set.resume) r.model.backend = cli_start_backend(&set.backend);
    start(&r);
    introduce(&r, argv[0]);
    if ((set.resume && r.model.step >= set.steps) || train(&r)) finish(&r);
    else {
        printf("stopped after step %lld; to go on: ", (long long)r.model.step);
        resume_print_command(argv[0], set.out);
    }
    if (fflush(stdout) || ferror(stdout)) cli_fail(1, "cannot write to standard output");
    return 0;
}
