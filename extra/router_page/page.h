/* page.h - writes the router's page. It is page.html with data in place of @DATA@: the tokens of a
   text, and the router's decisions. HMOE_PAGE is the name of a file with page.html as a list of
   bytes.

   The data are whole numbers, lowest byte first, in base64, so that no text needs escaping:

       4 bytes each   tokens on the page, tokens in all, T, L, E, slots, 1 for Top-P else 0,
                      H[0 .. E-1]
       twice          4 bytes of length, and a name: of the model's directory, of the text's file
       per token      1 its byte; of the byte after it, 4 bytes each, the bits of a float:
                      cross-entropy, and the entropy of what the model expected
         per layer    1 |S| (256 is 0)
           per slot   1 expert, 2 its gate * 65535: by falling P + b, zeros behind the last
           per expert 2 P * 65535
       at the end     1 the byte after the last token, which was predicted too

   The page is ASCII, so that its bytes are chars everywhere. */
#ifndef PAGE_H
#define PAGE_H

#include "cli.h"

enum { PAGE_TOKENS = 20000, PAGE_BYTES = 32 << 20 };   /* limit; with more, browsers are slow */

#ifdef HMOE_PAGE
enum { PAGE_IS_BUILT = 1 };
static const char page_html[] = {
#include HMOE_PAGE
    0 };
#else
enum { PAGE_IS_BUILT = 0 };
static const char page_html[] = "@DATA@";
#endif

typedef struct page {
    cli_output out;
    FILE *file;
    const char *path;
    size_t tokens, all;       /* tokens of the text; tokens that are shown */
    int slots;
    unsigned bits, held;      /* bytes that wait for a third */
} page;

static void page_add(page *p, int bytes, unsigned value) {
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (; bytes > 0; bytes--, value >>= 8) {
        p->bits = p->bits << 8 | (value & 255);
        if (++p->held < 3) continue;
        for (int at = 18; at >= 0; at -= 6) putc(digit[p->bits >> at & 63], p->file);
        p->held = 0;
    }
}

static void page_name(page *p, const char *name) {
    page_add(p, 4, (unsigned)strlen(name));
    while (*name) page_add(p, 1, (unsigned char)*name++);
}

/* Begins the page at `path`, for a model's directory and a text of `tokens` tokens and one more. */
static void page_begin(page *p, const char *path, const hmoe_config *c, const char *model,
                       const char *text, size_t tokens) {
    int top_p = c->routing == HMOE_TOP_P, slots = top_p ? c->E : c->K;
    size_t each = 9 + (size_t)c->L * (1 + 3 * (size_t)slots + 2 * (size_t)c->E);
    cli_open(&p->out, path);
    p->file = p->out.file;
    p->path = path;
    p->bits = 0;
    p->held = 0;
    p->slots = slots;
    p->all = tokens;
    p->tokens = tokens < PAGE_TOKENS ? tokens : PAGE_TOKENS;
    if (p->tokens > PAGE_BYTES / each) p->tokens = PAGE_BYTES / each;
    fwrite(page_html, 1, (size_t)(strstr(page_html, "@DATA@") - page_html), p->file);
    page_add(p, 4, (unsigned)p->tokens);
    page_add(p, 4, (unsigned)tokens);
    page_add(p, 4, (unsigned)c->T);
    page_add(p, 4, (unsigned)c->L);
    page_add(p, 4, (unsigned)c->E);
    page_add(p, 4, (unsigned)slots);
    page_add(p, 4, (unsigned)top_p);
    for (int e = 0; e < c->E; e++) page_add(p, 4, (unsigned)c->H[e]);
    page_name(p, model);
    page_name(p, text);
}

static void page_float(page *p, double value) {
    float x = (float)value;
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    page_add(p, 4, bits);
}

static void page_layer(page *p, const hmoe_config *c, const hmoe_route *r) {
    page_add(p, 1, (unsigned)r->count);
    for (int i = 0; i < p->slots; i++) {
        int used = i < r->count;
        page_add(p, 1, used ? (unsigned)r->expert[i] : 0);
        page_add(p, 2, used ? (unsigned)(r->gate[i] * 65535 + 0.5) : 0);
    }
    for (int e = 0; e < c->E; e++) page_add(p, 2, (unsigned)(r->P[e] * 65535 + 0.5));
}

/* Adds tokens first .. first + n - 1 of the last pass, if they are shown. */
static void page_tokens(page *p, hmoe_model *m, const unsigned char *text, size_t first, size_t n,
                        const hmoe_real *nll, const double *entropy) {
    hmoe_route route;
    for (size_t t = 0; t < n && first + t < p->tokens; t++) {
        page_add(p, 1, m->config.vocab[text[first + t]]);
        page_float(p, (double)nll[t]);
        page_float(p, entropy[t]);
        for (int l = 0; l < m->config.L; l++) {
            if (hmoe_get_route(m, l, (int)t, &route)) cli_fail(1, "%s", m->message);
            page_layer(p, &m->config, &route);
        }
    }
}

static void page_end(page *p, const hmoe_config *c, const unsigned char *text) {
    page_add(p, 1, c->vocab[text[p->tokens]]);
    while (p->held) page_add(p, 1, 0);
    fputs(strstr(page_html, "@DATA@") + 6, p->file);
    cli_close(&p->out);
}

/* Prints how much of the text is on the page, if it is not all. */
static void page_tell(const page *p) {
    if (p->tokens < p->all)
        printf("%s shows the first %lu of them\n", p->path, (unsigned long)p->tokens);
}

#endif /* PAGE_H */
