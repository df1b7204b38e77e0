/* memory.h - an allocator for hmoe.h that counts, refuses what no test needs, and fails when told
   to. Include it before hmoe.h. */

#ifndef MEMORY_H
#define MEMORY_H

#include <stdlib.h>
#include <string.h>

static size_t memory_live, memory_peak;            /* bytes: now, and at most */
static size_t memory_most = (size_t)1 << 22;       /* a larger block is refused */
static size_t memory_soiled = 4096;                /* bytes of a block that must not be zero */
static int memory_calls, memory_fail_at = -1;      /* this call fails, counted from 0 */

static void memory_soil(char *p, size_t n) {
    memset(p, 0xa5, n < memory_soiled ? n : memory_soiled);
}

static void *memory_malloc(size_t n) {
    char *p = NULL;
    if (memory_calls++ == memory_fail_at) return NULL;
    if (memory_live + n > memory_peak) memory_peak = memory_live + n;
    if (n <= memory_most) p = (char *)malloc(n + 64);   /* the size stands in front of the block */
    if (!p) return NULL;
    memcpy(p, &n, sizeof n);
    memory_soil(p + 64, n);
    memory_live += n;
    return p + 64;
}

static void memory_free(void *p) {
    size_t n;
    if (!p) return;
    memcpy(&n, (char *)p - 64, sizeof n);
    memory_live -= n;
    memory_soil((char *)p, n);
    free((char *)p - 64);
}

#define HMOE_MALLOC(n) memory_malloc(n)
#define HMOE_FREE(p) memory_free(p)

#endif
