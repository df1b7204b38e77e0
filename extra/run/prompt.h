/* prompt.h - what generate continues: a text on the command line, a file, standard input, or the
   numbers of tokens. */
#ifndef PROMPT_H
#define PROMPT_H

#include "cli.h"
#include "extra/run/text.h"
#include "extra/run/tokenizer.h"

typedef struct prompt {
    const char *text, *file, *numbers;     /* the options */
    int *token;                            /* [n] tokens, at least one */
    size_t n;
} prompt;

#define PROMPT_OPTIONS(x) \
    CLI_TEXT("--prompt", &(x).text, "TEXT", NULL, "start of the text, else a newline; -: stdin"), \
    CLI_TEXT("--prompt-file", &(x).file, "FILE", NULL, "file with the start of the text"), \
    CLI_TEXT("--tokens", &(x).numbers, "LIST", NULL, \
             "start as numbers of tokens, \"12 7 9\"; write numbers, too")

/* The name of the option that is given, or NULL. Ends the program if there are two. */
static inline const char *prompt_check(const prompt *x) {
    int given = (x->text != NULL) + (x->file != NULL) + (x->numbers != NULL);
    if (given > 1) cli_fail(2, "--prompt, --prompt-file and --tokens: give only one of them");
    return x->text ? "--prompt" : x->file ? "--prompt-file" : x->numbers ? "--tokens" : NULL;
}

static inline void prompt_read_numbers(prompt *x, int V) {
    char *end;
    x->token = (int *)cli_alloc((strlen(x->numbers) / 2 + 1) * sizeof *x->token);
    for (const char *at = x->numbers; *at; at = end) {
        long token = strtol(at, &end, 10);
        if (end == at || token < 0 || token >= V || !strchr(" ,\n", *end))
            cli_fail(2, "--tokens %.80s: needs numbers from 0 to %d, such as \"12 7 9\"",
                     x->numbers, V - 1);
        x->token[x->n++] = (int)token;
        end += strspn(end, " ,\n");
    }
}

/* Reads the prompt. Without one, the text begins after a newline, or after token 0. */
static inline void prompt_read(prompt *x, const hmoe_config *c) {
    const char *what = x->file ? x->file : "--prompt";
    const char *file = x->text && !strcmp(x->text, "-") ? "/dev/stdin" : x->file;
    unsigned char *bytes = NULL;
    if (x->numbers) prompt_read_numbers(x, c->V);
    else if (file) bytes = cli_read(file, &x->n, "");
    else if (x->text) {
        x->n = strlen(x->text);
        bytes = (unsigned char *)memcpy(cli_alloc(x->n + 1), x->text, x->n);
    }
    if (x->n && !x->numbers) {
        if (!c->vocab_size)
            cli_fail(1, "%s: the model's %d tokens are no bytes, so it reads no text: give "
                     "--tokens (extra/interop/tokens.py makes them)", what, c->V);
        text_to_tokens(c, bytes, x->n, what);
    }
    if (!x->token) x->token = (int *)cli_alloc((x->n + 1) * sizeof *x->token);
    for (size_t i = 0; i < x->n && !x->numbers; i++) x->token[i] = bytes[i];
    if (!x->n) x->token[0] = text_start(c);
    if (bytes) free(bytes);
}

#endif
