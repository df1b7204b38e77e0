/* generate.c - lets a trained model write, or measures how well it foresees a text.

       generate out/best --prompt "ROMEO:" -n 300           go on from a prompt
       generate out/best --score my.txt                     mean cross-entropy of a file
       generate --help                                      all options */
#define HMOE_IMPLEMENTATION
#include "hmoe_checkpoint.h"
#include "cli.h"
#include <signal.h>

static struct settings {
    const char *prompt, *score;
    int n, threads, backend;
    cli_sampling sampling;
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
    { "--threads", CLI_INT, &set.threads, "[1, 1024]", "all", "that share the work", 0 },
    { "--backend", CLI_CHOICE, &set.backend, "cpu|cuda", "cpu", "who computes", 0 },
};
enum { OPTIONS = sizeof options / sizeof *options };

/* Returns the model's directory. */
static const char *read_options(int argc, char **argv) {
    int first = cli_parse(argc, argv, options, OPTIONS, "usage: generate DIR [options]\n"
                          "Writes text with the model that train_tiny left in DIR.");
    if (set.backend) cli_fail(2, "--backend cuda: this build has no cuda backend, use cpu");
    if (first == argc) cli_fail(2, "which model? Give its directory, such as out/best");
    if (first + 1 < argc)
        cli_fail(2, "%s: one directory is enough, and it is %s", argv[first + 1], argv[first]);
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

static void score(hmoe_model *m, int batch) {
    size_t n;
    double nll;
    unsigned char *text = cli_read(set.score, &n, "");
    if (n < 2) cli_fail(1, "%s has %lu bytes: to score it, it must have at least 2", set.score,
                        (unsigned long)n);
    cli_tokens(&m->config, text, n, set.score);
    if (cli_loss(m, text, n, 0, batch, &nll)) cli_fail(1, "%s", m->message);
    printf("nll %.6f nats/token over %lu tokens\n", nll, (unsigned long)(n - 1));
    free(text);
}

int main(int argc, char **argv) {
    char why[HMOE_MESSAGE_SIZE];
    hmoe_model model = { 0 };
    hmoe_config config;
    cli_program = "generate";
    const char *dir = read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN);                        /* a reader that left is an error message */
    cli_threads(set.threads);
    if (hmoe_load_config(&config, dir, why)) cli_fail(1, "%s", why);
    int batch = !set.score ? 0 : config.T < 1024 ? 1024 / config.T : 1;
    if (hmoe_load(&model, dir, batch, 0)) cli_fail(1, "%s", model.message);
    if (!config.vocab_size)
        cli_fail(1, "%s: config.json has no vocab: the tokens of this model are no bytes", dir);
    if (set.score) score(&model, batch);
    else speak(&model);
    if (fflush(stdout) || ferror(stdout)) cli_fail(1, "cannot write to standard output");
    hmoe_free(&model);
    return 0;
}
