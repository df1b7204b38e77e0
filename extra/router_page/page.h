/* page.h - writes the router's page: page.html, with a text's tokens and what the router did with
   each of them where it says @DATA@. HMOE_PAGE names a file with that page as a list of bytes.

   The data are base64, so that no text needs escaping, of whole numbers, the lowest byte first:

       4 bytes each   tokens on the page, tokens in all, T, L, E, slots, 1 for Top-P else 0,
                      H[0 .. E-1]
       twice          4 bytes of length, and a name: of the model's directory, of the text's file
       per token      1 its byte; of the byte after it, 4 bytes each, the bits of a float:
                      cross-entropy, and the entropy of what the model expected
         per layer    1 |S| (256 is 0)
           per slot   1 expert, 2 its gate * 65535: by falling P + b, zeros behind the last
           per expert 2 P * 65535
       at the end     1 the byte after the last token, which was foreseen too

   The page is ASCII, so that its bytes are chars everywhere. */
#ifndef PAGE_H
#define PAGE_H

enum { PAGE_TOKENS = 20000, PAGE_BYTES = 32 << 20 };   /* at most; more is no fun in a browser */

#ifdef HMOE_PAGE
static const char page_html[] = {
#include HMOE_PAGE
    0 };
#else
static const char page_html[] = "";
#endif

typedef struct page {
    FILE *file;
    size_t tokens;            /* the text's first ones are shown */
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

static void page_begin(page *p, FILE *file, const hmoe_config *c, const char *model,
                       const char *text, size_t tokens) {
    int top_p = c->routing == HMOE_TOP_P;
    size_t each = 9 + (size_t)c->L * (1 + 3 * (size_t)(top_p ? c->E : c->K) + 2 * (size_t)c->E);
    p->file = file, p->bits = p->held = 0, p->slots = top_p ? c->E : c->K;
    p->tokens = tokens < PAGE_TOKENS ? tokens : PAGE_TOKENS;
    if (p->tokens > PAGE_BYTES / each) p->tokens = PAGE_BYTES / each;
    fwrite(page_html, 1, (size_t)(strstr(page_html, "@DATA@") - page_html), file);
    page_add(p, 4, (unsigned)p->tokens), page_add(p, 4, (unsigned)tokens);
    page_add(p, 4, (unsigned)c->T), page_add(p, 4, (unsigned)c->L), page_add(p, 4, (unsigned)c->E);
    page_add(p, 4, (unsigned)p->slots), page_add(p, 4, (unsigned)top_p);
    for (int e = 0; e < c->E; e++) page_add(p, 4, (unsigned)c->H[e]);
    page_name(p, model), page_name(p, text);
}

static void page_float(page *p, double value) {
    float x = (float)value;
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    page_add(p, 4, bits);
}

static void page_token(page *p, int byte, double nll, double entropy) {
    page_add(p, 1, (unsigned)byte);
    page_float(p, nll), page_float(p, entropy);
}

static void page_layer(page *p, const hmoe_config *c, const hmoe_route *r) {
    page_add(p, 1, (unsigned)r->count);
    for (int i = 0; i < p->slots; i++) {
        page_add(p, 1, i < r->count ? (unsigned)r->expert[i] : 0);
        page_add(p, 2, i < r->count ? (unsigned)(r->gate[i] * 65535 + 0.5) : 0);
    }
    for (int e = 0; e < c->E; e++) page_add(p, 2, (unsigned)(r->P[e] * 65535 + 0.5));
}

static void page_end(page *p, int byte) {
    page_add(p, 1, (unsigned)byte);
    while (p->held) page_add(p, 1, 0);
    fputs(strstr(page_html, "@DATA@") + 6, p->file);
}

#endif /* PAGE_H */
