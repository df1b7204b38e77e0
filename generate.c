/* generate.c - lets a trained model write, or measures how well it foresees a text.

       generate out/best --prompt "ROMEO:" -n 300           go on from a prompt
       generate out/best --score my.txt                     mean cross-entropy of a file
       generate out/best --score my.txt --page see.html     watch the router read it
       generate out/best --export-mixtral for-python        the same model, for transformers
       generate --help                                      all options */
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/interop/hmoe_interop.h"
#include "extra/parallel/hmoe_placement.h"
#include "cli.h"
#include "extra/router_page/page.h"

static struct settings {
    const char *prompt, *score, *export_to, *routes, *page;
    int n, devices, show_tiles;
    cli_sampling sampling;
    cli_backend backend;
} set;

static cli_option options[] = {
    { "--prompt", CLI_TEXT, &set.prompt, "TEXT", NULL, "what to go on from, if not a newline", 0 },
    { "-n", CLI_INT, &set.n, "[0, 1000000000]", "500", "bytes to write", 0 },
    { "--temperature", CLI_REAL, &set.sampling.temperature, "[0, inf)", "0.8",
      "0 takes the likeliest byte, 1 draws as the model says", 0 },
    { "--top-k", CLI_INT, &set.sampling.top_k, "[0, 1000000000]", "0",
      "draw among the k likeliest, 0: all", 0 },
    { "--top-p", CLI_REAL, &set.sampling.top_p, "(0, 1]", "1",
      "draw among the fewest whose shares reach p", 0 },
    { "--seed", CLI_SEED, &set.sampling.seed, "[0, 18446744073709551615]", "1337",
      "of the draws", 0 },
    { "--score", CLI_TEXT, &set.score, "FILE", NULL, "measure the loss on FILE instead", 0 },
    { "--routes", CLI_TEXT, &set.routes, "CSV", NULL,
      "with --score: who computed which byte, a row each per layer", 0 },
    { "--page", CLI_TEXT, &set.page, "HTML", NULL,
      "with --score: the same to look at, in a browser", 0 },
    { "--devices", CLI_INT, &set.devices, "[0, 256]", "0",
      "with --score: their shares, in pairs and side by side", 0 },
    { "--show-tiles", CLI_FLAG, &set.show_tiles, NULL, NULL,
      "draw how a GPU cuts layer 0's work on the start of FILE", 0 },
    { "--export-mixtral", CLI_TEXT, &set.export_to, "DIR2", NULL,
      "write the model as an ordinary Mixtral instead", 0 },
    CLI_BACKEND(set.backend),
};
enum { OPTIONS = sizeof options / sizeof *options };

/* Returns the model's directory. */
static const char *read_options(int argc, char **argv) {
    static const char *const with_score[] = { "--routes", "--page", "--devices", "--show-tiles",
                                              NULL };
    int first = cli_parse(argc, argv, options, OPTIONS, "usage: generate DIR [options]\n"
                          "Writes text with the model that train_tiny left in DIR.");
    if (first == argc) cli_fail(2, "which model? Give its directory, such as out/best");
    if (first + 1 < argc)
        cli_fail(2, "%s: one directory is enough, and it is %s", argv[first + 1], argv[first]);
    if (set.export_to && (set.score || set.prompt))
        cli_fail(2, "--export-mixtral: cannot go with --score or --prompt");
    if (set.backend.cuda && !set.score)
        cli_fail(2, "--backend cuda: only for --score; a text is written on the cpu");
    for (const char *const *o = with_score; *o && !set.score; o++)
        if (cli_given(options, *o)) cli_fail(2, "%s: needs --score FILE", *o);
    if (set.page && !*page_html) cli_fail(2, "--page: this program was built without it: make");
    if (set.page && set.routes && !strcmp(set.page, set.routes))
        cli_fail(2, "--page and --routes: both are %s, choose two files", set.page);
    for (int i = 0; i < 2; i++) {
        const char *out = i ? set.page : set.routes;
        if (out && cli_is_same(out, set.score))
            cli_fail(2, "%s: is the text itself, choose another file", out);
    }
    return argv[first];
}

static void put(int byte) {
    putchar(byte);
    if (fflush(stdout)) cli_fail(1, "cannot write to standard output: %s", strerror(errno));
}

/* The prompt, then n bytes, each shown as soon as it is known. */
static void speak(hmoe_model *m) {
    int prompted = set.prompt && *set.prompt;
    size_t n = prompted ? strlen(set.prompt) : 1;
    unsigned char *prompt = (unsigned char *)cli_alloc(n);
    *prompt = cli_first_token(&m->config);
    if (prompted) {
        memcpy(prompt, set.prompt, n);
        cli_tokens(&m->config, prompt, n, "--prompt");
        for (size_t i = 0; i < n; i++) put(set.prompt[i]);
    }
    if (cli_write(m, prompt, n, set.n, &set.sampling, put)) cli_fail(1, "%s", m->message);
    if (isatty(STDOUT_FILENO)) put('\n');   /* elsewhere these are the model's bytes alone */
    free(prompt);
}

/* The list of tiles of hmoe_cuda.cu's `multiply` for W1 and W3, which stand side by side in a tile,
   as the router shares out the start of a text: the widest expert first, and down its tokens. */
static void show_tiles(hmoe_model *m, const unsigned char *text, size_t n, int batch) {
    const hmoe_config *c = &m->config;
    int T = n < (size_t)c->T ? (int)n : c->T, B = n / T < (size_t)batch ? (int)(n / T) : batch;
    int *tokens = (int *)cli_alloc((size_t)B * T * sizeof *tokens), order[HMOE_MAX_EXPERTS];
    hmoe_usage usage;
    for (int t = 0; t < B * T; t++) tokens[t] = text[t];
    hmoe_reset_usage(m);
    if (hmoe_forward(m, HMOE_EVALUATE, tokens, NULL, B, T)) cli_fail(1, "%s", m->message);
    hmoe_get_usage(m, 0, &usage);
    for (int e = 0, at; e < c->E; e++) {
        for (at = e; at && c->H[e] > c->H[order[at - 1]]; at--) order[at] = order[at - 1];
        order[at] = e;
    }
    printf("%d tokens, tiles of %d tokens x %d of the width\n", B * T, HMOE_TILE, HMOE_TILE / 2);
    for (int i = 0, tile = 0; i < c->E; i++) {
        int e = order[i], rows = (int)(usage.share[e] * B * T + 0.5);
        int down = (rows + HMOE_TILE - 1) / HMOE_TILE;
        int right = (c->H[e] + HMOE_TILE / 2 - 1) / (HMOE_TILE / 2);
        printf("expert %d, width %d, %d tokens\n", e, c->H[e], rows);
        for (int r = 0; r < down; r++)
            for (int k = 0; k < right; k++)
                printf("%s%5d%s", k ? "" : "   [", tile + k * down + r,
                       k + 1 < right ? "" : " ]\n");
        tile += down * right;
    }
    free(tokens);
}

/* --- what the router did with each token: --routes, --page, --devices ------------------------ */

static struct report {
    const unsigned char *text;        /* tokens */
    cli_output routes, page_file;
    page page;
} report;

/* A row for a token in a layer. Positions count the file's bytes from 0; nll is that of the byte
   after this one, which is what was asked of these experts; entropy is that of the model's softmax
   for the same byte: the nll that it expected. In the lists of experts, widths, gates
   (by falling P + b) and of the whole softmax there are blanks. */
static void write_row(const hmoe_config *c, size_t at, double nll, double entropy, int layer,
                      const hmoe_route *r) {
    FILE *f = report.routes.file;
    fprintf(f, "%lu,%d,%.6f,%.6f,%d", (unsigned long)at, c->vocab[report.text[at]], nll, entropy,
            layer);
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
    hmoe_real *nll = (hmoe_real *)cli_alloc(n * (1 + (size_t)c->V) * sizeof *nll);
    hmoe_real *logits = nll + n;
    hmoe_route route;
    if (hmoe_get_token_losses(m, nll) || hmoe_get_logits(m, logits)) cli_fail(1, "%s", m->message);
    for (size_t t = 0; t < n; t++) {
        int on_page = first + t < report.page.tokens;
        if (!set.routes && !on_page) break;
        double entropy = entropy_of(logits + t * (size_t)c->V, c->V);
        if (on_page)
            page_token(&report.page, c->vocab[report.text[first + t]], (double)nll[t], entropy);
        for (int l = 0; l < c->L; l++) {
            if (hmoe_get_route(m, l, (int)t, &route)) cli_fail(1, "%s", m->message);
            if (set.routes) write_row(c, first + t, (double)nll[t], entropy, l, &route);
            if (on_page) page_layer(&report.page, c, &route);
        }
    }
    free(nll);
}

/* Were the experts on so many devices (MoDSE section 3.2), what would each have had to do? */
static void show_devices(const hmoe_model *m) {
    const hmoe_config *c = &m->config;
    int device[HMOE_MAX_EXPERTS] = { 0 }, D = set.devices;
    char why[HMOE_MESSAGE_SIZE];
    hmoe_device of[HMOE_MAX_EXPERTS], uneven;
    for (int contiguous = 0; contiguous < 2; contiguous++) {
        const char *name = contiguous ? "contiguous" : "in pairs";
        if (hmoe_place_experts(device, c->H, c->E, D, contiguous ? HMOE_CONTIGUOUS : HMOE_PAIRS,
                               why)) {
            printf("%s: %s\n", name, why);
            continue;
        }
        uneven = hmoe_get_devices(m, device, D, of);
        printf("%s: largest over mean: parameters %.6f tokens %.6f work %.6f\n", name,
               uneven.params, uneven.tokens, uneven.work);
        for (int d = 0; d < D; d++) {
            printf("  device %d: %.0f parameters, %.0f tokens, %.0f tokens * width; experts", d,
                   of[d].params, of[d].tokens, of[d].work);
            for (int e = 0; e < c->E; e++) if (device[e] == d) printf(" %d", e);
            putchar('\n');
        }
    }
}

static void score(hmoe_model *m, const char *dir, int batch) {
    size_t n;
    double nll;
    unsigned char *text = cli_read(set.score, &n, "");
    if (n < 2) cli_fail(1, "%s has %lu bytes: to score it, it must have at least 2", set.score,
                        (unsigned long)n);
    cli_tokens(&m->config, text, n, set.score);
    report.text = text;
    if (set.show_tiles) show_tiles(m, text, n, batch);
    if (set.routes) cli_open(&report.routes, set.routes);
    if (set.routes)
        fputs("position,byte,nll,entropy,layer,experts,widths,gates,P\n", report.routes.file);
    if (set.page) {
        cli_open(&report.page_file, set.page);
        page_begin(&report.page, report.page_file.file, &m->config, dir, set.score, n - 1);
    }
    hmoe_reset_usage(m);
    if (cli_loss(m, text, n, 0, batch, set.routes || set.page ? look : NULL, &nll))
        cli_fail(1, "%s", m->message);
    if (set.page) {
        page_end(&report.page, m->config.vocab[text[report.page.tokens]]);
        cli_close(&report.page_file);
    }
    if (set.routes) cli_close(&report.routes);
    printf("nll %.6f nats/token over %lu tokens\n", nll, (unsigned long)(n - 1));
    if (set.page && report.page.tokens < n - 1)
        printf("%s shows the first %lu of them\n", set.page, (unsigned long)report.page.tokens);
    if (set.devices) show_devices(m);
    free(text);
}

static void export_mixtral(hmoe_model *m, const char *dir) {
    char path[4096], run[4096];
    size_t padded;
    int failed;
    if (cli_is_same(dir, set.export_to))
        cli_fail(1, "--export-mixtral %s: is the model itself, choose another directory", dir);
    snprintf(path, sizeof path, "%s/../best", set.export_to);
    snprintf(run, sizeof run, "%s/../training.safetensors", set.export_to);
    if (cli_is_same(set.export_to, path) && !access(run, F_OK))
        cli_fail(1, "--export-mixtral %s: holds a run's best model, choose another directory",
                 set.export_to);
    snprintf(path, sizeof path, "%s/lock", set.export_to);
    cli_lock(set.export_to, path, 1);
    failed = hmoe_export_mixtral(m, set.export_to, &padded);
    remove(path);
    if (failed) rmdir(set.export_to);                /* if it is as empty as it was made */
    if (failed) cli_fail(1, "%s", m->message);
    printf("%s: a Mixtral of %lu parameters, %.1f MB; before its experts were padded to one width "
           "%lu, %.1f MB\n", set.export_to, (unsigned long)padded, 4e-6 * (double)padded,
           (unsigned long)m->param_count, 4e-6 * (double)m->param_count);
}

/* A model that others made does not say what its tokens are: token i is byte i. */
static void name_bytes(hmoe_config *c, const char *dir) {
    if (c->V > 256)
        cli_fail(1, "%s: its %d tokens are no bytes (config.json has no vocab): it can read and "
                 "write no text here", dir, c->V);
    for (int i = 0; i < c->V; i++) c->vocab[i] = (unsigned char)i;
    c->vocab_size = c->V;
}

int main(int argc, char **argv) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_model model = { 0 };
    hmoe_config config;
    cli_program = "generate";
    const char *dir = read_options(argc, argv);
    model.backend = cli_steps(&set.backend);
    if (hmoe_load_config(&config, dir, why)) cli_fail(1, "%s", why);
    int batch = !set.score ? 0 : config.T < 1024 ? 1024 / config.T : 1;
    if (hmoe_load_mixtral(&model, dir, batch)) cli_fail(1, "%s", model.message);
    if (!model.config.vocab_size && !set.export_to) name_bytes(&model.config, dir);
    if (set.export_to) export_mixtral(&model, dir);
    else if (set.score) score(&model, dir, batch);
    else speak(&model);
    if (fflush(stdout) || ferror(stdout)) cli_fail(1, "cannot write to standard output");
    hmoe_free(&model);
    return 0;
}
