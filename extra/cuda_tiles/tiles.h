/* tiles.h - draws the tiles into which hmoe_cuda.cu divides the work of layer 0:
   generate --show-tiles. */
#ifndef TILES_H
#define TILES_H

#include "cli.h"

/* The experts of each width, the widest first. */
static inline void tiles_order(const hmoe_config *c, int *order) {
    for (int e = 0; e < c->E; e++) {
        int at = e;
        while (at > 0 && c->H[e] > c->H[order[at - 1]]) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = e;
    }
}

/* The tiles of the products with W1 and W3, which stand side by side in a tile, for the first
   `batch` sequences of a text. They are numbered as `multiply` numbers them: expert by expert, and
   down the tokens of each. */
static inline void tiles_draw(hmoe_model *m, const unsigned char *text, size_t n, int batch) {
    const hmoe_config *c = &m->config;
    int order[HMOE_MAX_EXPERTS], tile = 0;
    int T = n < (size_t)c->T ? (int)n : c->T, B = n / T < (size_t)batch ? (int)(n / T) : batch;
    int *tokens = (int *)cli_alloc((size_t)B * T * sizeof *tokens);
    hmoe_usage usage;
    for (int t = 0; t < B * T; t++) tokens[t] = text[t];
    hmoe_reset_usage(m);
    if (hmoe_forward(m, HMOE_EVALUATE, tokens, NULL, B, T)) cli_fail(1, "%s", m->message);
    hmoe_get_usage(m, 0, &usage);
    tiles_order(c, order);
    printf("%d tokens, tiles of %d tokens x %d of the width\n", B * T, HMOE_TILE, HMOE_TILE / 2);
    for (int i = 0; i < c->E; i++) {
        int e = order[i], rows = (int)(usage.share[e] * B * T + 0.5);
        int down = (rows + HMOE_TILE - 1) / HMOE_TILE;
        int right = (c->H[e] + HMOE_TILE / 2 - 1) / (HMOE_TILE / 2);
        printf("expert %d, width %d, %d tokens\n", e, c->H[e], rows);
        for (int r = 0; r < down && right > 0; r++) {
            printf("   [");
            for (int k = 0; k < right; k++) printf("%5d", tile + k * down + r);
            printf(" ]\n");
        }
        tile += down * right;
    }
    free(tokens);
}

#endif
