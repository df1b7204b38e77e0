/* starve.c - an allocator for LD_PRELOAD under which one allocation of a program fails, its own or
   the C library's: number STARVE of them, from 0 on. It leaves the file STARVED when it has come
   that far. For tests/programs/analysis.sh; needs glibc. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

static int fails(void) {
    static long left = -1;
    const char *at = getenv("STARVE"), *file = getenv("STARVED");
    if (!at || !file) return 0;
    if (left < 0) left = atol(at);
    if (left-- > 0) return 0;
    unsetenv("STARVE");                            /* the only one that fails */
    close(open(file, O_CREAT | O_WRONLY, 0666));
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { return fails() ? NULL : __libc_realloc(p, n); }
