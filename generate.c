/* generate.c - writes text with a trained model, or measures how well it predicts a text.

       generate out/best --prompt "ROMEO:" -n 300           continue a prompt
       generate out/best --prompt-file part.txt             the same with a file
       generate out/best --score my.txt                     mean cross-entropy of a file
       generate out/best --score my.txt --page see.html     show the experts of each byte
       generate out/best --export-mixtral for-python        the same model, for transformers
       generate --help                                      all options */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "cli.h"
#include "extra/run/prompt.h"
#include "extra/cuda_tiles/tiles.h"
#include "extra/interop/export.h"
#include "extra/parallel/devices.h"
#include "extra/router_page/page.h"

static struct settings {
    const char *score, *export_to, *routes, *page;
    int n, devices, show_tiles;
    prompt prompt;
    tokenizer words;
    text_sampling sampling;
    cli_backend backend;
} set;

static cli_option options[] = {
    PROMPT_OPTIONS(set.prompt),
    CLI_INT("-n", &set.n, 0, 1e9, "500", "tokens to write"),
    CLI_REAL("--temperature", &set.sampling.temperature, 0, INFINITY, "0.8",
             "0: take the likeliest token; 1: the model's own odds"),
    CLI_INT("--top-k", &set.sampling.top_k, 0, 1e9, "0",
            "draw from the N likeliest tokens only; 0: from all"),
    CLI_REAL("--top-p", &set.sampling.top_p, 1e-9, 1, "1",
             "draw from the fewest tokens whose probabilities sum to this"),
    CLI_SEED("--seed", &set.sampling.seed, "1337", "seed of all random numbers"),
    CLI_TEXT("--score", &set.score, "FILE", NULL, "print the loss on this text instead of writing"),
    CLI_TEXT("--routes", &set.routes, "CSV", NULL,
             "with --score: write each byte's experts as a table"),
    CLI_TEXT("--page", &set.page, "HTML", NULL,
             "with --score: write each byte's experts as a web page"),
    CLI_INT("--devices", &set.devices, 0, 256, "0",
            "with --score: show the work of N devices; 0: off"),
    CLI_FLAG("--show-tiles", &set.show_tiles,
             "with --score: draw the GPU's tiles of layer 0"),
    CLI_TEXT("--export-mixtral", &set.export_to, "DIR2", NULL,
             "write the model to DIR2 as a Mixtral instead"),
    CLI_BACKEND(set.backend),
};
enum { OPTIONS = sizeof options / sizeof *options };

static void check_output(const char *path) {
    if (path && cli_is_same(path, set.score))
        cli_fail(2, "%s: is the file of --score, choose another", path);
}

/* Returns the model's directory. */
static const char *read_options(int argc, char **argv) {
    static const char *const with_score[] = { "--routes", "--page", "--devices", "--show-tiles" };
    int words = cli_parse(argc, argv, options, OPTIONS, "usage: generate DIR [options]\n"
                          "Writes text with the model that train_tiny left in DIR.");
    if (words == 0) cli_fail(2, "which model? Give its directory, such as out/best");
    if (words > 1)
        cli_fail(2, "%.120s: unexpected word, the directory is %.120s", argv[2], argv[1]);
    const char *start = prompt_check(&set.prompt), *with = set.score ? "--score" : start;
    if (set.score && start) cli_fail(2, "--score: cannot go with %s", start);
    if (set.export_to && with) cli_fail(2, "--export-mixtral: cannot go with %s", with);
    if (set.backend.cuda && !set.score)
        cli_fail(2, "--backend cuda: is only for --score, the cpu writes text");
    for (size_t i = 0; i < sizeof with_score / sizeof *with_score; i++)
        if (!set.score && cli_given(options, with_score[i]))
            cli_fail(2, "%s: needs --score FILE", with_score[i]);
    if (set.page && !PAGE_IS_BUILT)
        cli_fail(2, "--page: this program was built without it, build it with make");
    if (set.page && set.routes
        && (!strcmp(set.page, set.routes) || cli_is_same(set.page, set.routes)))
        cli_fail(2, "--page and --routes: both are %s, choose two files", set.page);
    check_output(set.routes);
    check_output(set.page);
    return argv[1];
}

static void put(int byte) {
    putchar(byte);
    if (fflush(stdout)) cli_fail(1, "cannot write to standard output: %s", strerror(errno));
}

static void put_number(int token) {
    printf("%d", token);
    put(' ');
}

static const hmoe_config *config_of_words;
static void put_bytes(int token) { tokenizer_put(&set.words, config_of_words, token, put); }

/* The prompt, then n tokens, each shown as soon as it is known. */
static void speak(hmoe_model *m) {
    prompt *p = &set.prompt;
    void (*show)(int token) = p->numbers ? put_number : put_bytes;
    config_of_words = &m->config;
    prompt_read(p, &m->config);
    for (size_t i = 0; i < p->n; i++) show(p->token[i]);
    if (text_write(m, p->token, p->n ? p->n : 1, set.n, &set.sampling, show))
        cli_fail(1, "%s", m->message);
    if (isatty(STDOUT_FILENO)) put('\n');   /* elsewhere these are the model's bytes alone */
    free(p->token);
}

/* --- what the router did with each token: --routes and --page -------------------------------- */

static struct report {
    text_tokens text;
    cli_output routes;
    page page;
} report;

/* A row for a token in a layer. Positions count the file's tokens from 0. A token is shown as its
   byte, or as its number if the model's tokens are no bytes. nll is that of the token after this
   one, which these experts helped to predict. entropy is that of the model's softmax for the same
   token: the nll that it expected. Blanks separate the experts, their widths and gates
   (by falling P + b), and all of P. */
static void write_row(const hmoe_config *c, size_t at, double nll, double entropy, int layer,
                      const hmoe_route *r) {
    FILE *f = report.routes.file;
    int token;
    text_get(&report.text, at, 1, &token);
    if (c->vocab_size) token = c->vocab[token];
    fprintf(f, "%lu,%d,%.6f,%.6f,%d", (unsigned long)at, token, nll, entropy, layer);
    for (int i = 0; i < r->count; i++) fprintf(f, "%c%d", i ? ' ' : ',', r->expert[i]);
    for (int i = 0; i < r->count; i++) fprintf(f, "%c%d", i ? ' ' : ',', c->H[r->expert[i]]);
    for (int i = 0; i < r->count; i++) fprintf(f, "%c%.6f", i ? ' ' : ',', r->gate[i]);
    for (int e = 0; e < c->E; e++) fprintf(f, "%c%.6f", e ? ' ' : ',', r->P[e]);
    putc('\n', f);
}

/* Entropy in nats of the softmax of V logits:  -sum of p ln p = ln Z - sum of p x,
   with x = logit - the largest, Z = sum of exp(x), p = exp(x) / Z. */
static double entropy_of(const hmoe_real *logits, int V) {
    double max = (double)logits[0], Z = 0, mean = 0;
    for (int i = 1; i < V; i++) max = fmax(max, (double)logits[i]);
    for (int i = 0; i < V; i++) {
        double x = (double)logits[i] - max, z = exp(x);
        Z += z;
        if (z > 0) mean += z * x;
    }
    return log(Z) - mean / Z;
}

/* Called with each stretch of the text when its forward pass is made. */
static void look(hmoe_model *m, size_t first, size_t n) {
    const hmoe_config *c = &m->config;
    hmoe_real *nll = (hmoe_real *)cli_alloc(n * sizeof *nll);
    hmoe_real *logits = (hmoe_real *)cli_alloc(n * (size_t)c->V * sizeof *logits);
    double *entropy = (double *)cli_alloc(n * sizeof *entropy);
    hmoe_route route;
    if (hmoe_get_token_losses(m, nll) || hmoe_get_logits(m, logits)) cli_fail(1, "%s", m->message);
    for (size_t t = 0; t < n; t++) entropy[t] = entropy_of(logits + t * (size_t)c->V, c->V);
    if (set.page) page_tokens(&report.page, m, report.text.bytes, first, n, nll, entropy);
    for (size_t t = 0; t < n && set.routes; t++)
        for (int l = 0; l < c->L; l++) {
            if (hmoe_get_route(m, l, (int)t, &route)) cli_fail(1, "%s", m->message);
            write_row(c, first + t, (double)nll[t], entropy[t], l, &route);
        }
    free(entropy);
    free(logits);
    free(nll);
}

static void score(hmoe_model *m, const char *dir, int batch) {
    double nll;
    text_tokens *text = &report.text;
    *text = text_read(&m->config, set.score);
    if ((set.page || set.show_tiles) && !text->bytes)
        cli_fail(2, "--%s: needs a model whose tokens are bytes", set.page ? "page" : "show-tiles");
    if (set.show_tiles) tiles_draw(m, text->bytes, text->n, batch);
    if (set.routes) {
        cli_open(&report.routes, set.routes);
        fprintf(report.routes.file, "position,%s,nll,entropy,layer,experts,widths,gates,P\n",
                text->bytes ? "byte" : "token");
    }
    if (set.page) page_begin(&report.page, set.page, &m->config, dir, set.score, text->n - 1);
    hmoe_reset_usage(m);
    if (text_loss(m, text, 0, text->n, 0, batch, set.routes || set.page ? look : NULL, &nll))
        cli_fail(1, "%s", m->message);
    if (set.page) page_end(&report.page, &m->config, text->bytes);
    if (set.routes) cli_close(&report.routes);
    printf("nll %.6f nats/token over %lu tokens\n", nll, (unsigned long)(text->n - 1));
    if (set.page) page_tell(&report.page);
    if (set.devices) devices_show(m, set.devices);
    free(text->bytes);
}

int main(int argc, char **argv) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_model model = { 0 };
    hmoe_config config;
    cli_program = "generate";
    const char *dir = read_options(argc, argv);
    model.backend = cli_start_backend(&set.backend);
    if (hmoe_load_config(&config, dir, why)) cli_fail(1, "%s", why);
    int batch = config.T < 1024 ? 1024 / config.T : 1;
    if (!set.score) batch = 0;                       /* no room for whole sequences */
    if (hmoe_load_mixtral(&model, dir, batch)) cli_fail(1, "%s", model.message);
    tokenizer_of_model(&set.words, &model.config, dir);
    if (!model.config.vocab_size) model.tokenizer = set.words.text;
    if (set.export_to) export_mixtral(&model, dir, set.export_to);
    else if (set.score) score(&model, dir, batch);
    else speak(&model);
    if (fflush(stdout) || ferror(stdout)) cli_fail(1, "cannot write to standard output");
    hmoe_free(&model);
    return 0;
}
