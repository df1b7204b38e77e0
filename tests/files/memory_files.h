/* memory_files.h - hmoe.h with files in memory, which are quick to damage, and the
   allocator of memory.h. Include it in place of hmoe.h, before any other header. A path
   is the text behind its last slash: there is one directory. */

#ifndef MEMORY_FILES_H
#define MEMORY_FILES_H

#define _POSIX_C_SOURCE 200809L   /* fmemopen */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "memory.h"

/* ---- Files: bytes that a test owns and must leave where they are (NULL: a directory), or what was
   written, in room of the file's own. */

typedef struct memory_file {
    const char *name;           /* NULL: a free place */
    const char *data;
    size_t size;
    FILE *writer;
    char text[48], room[1 << 17];
} memory_file;

enum { MEMORY_FILES = 16 };
static memory_file memory_files[MEMORY_FILES];
static int memory_open;         /* files that are open now */

static memory_file *memory_find(const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (int i = 0; i < MEMORY_FILES; i++)
        if (memory_files[i].name && !strcmp(memory_files[i].name, name)) return &memory_files[i];
    return NULL;
}

static int memory_remove(const char *path) {
    memory_file *f = memory_find(path);
    if (f) f->name = NULL;
    return f ? 0 : -1;
}

static memory_file *memory_put(const char *name, const void *data, size_t size) {
    memory_file *f = memory_files;
    memory_remove(name);
    while (f->name) f++;
    f->name = name, f->data = (const char *)data, f->size = size;
    return f;
}

static void memory_clear(void) {
    for (int i = 0; i < MEMORY_FILES; i++) memory_files[i].name = NULL;
}

static FILE *memory_fopen(const char *path, const char *mode) {
    memory_file *f = *mode == 'r' ? memory_find(path) : memory_put("", NULL, 0);
    errno = ENOENT;
    if (!f) return NULL;
    memory_open++;
    if (*mode == 'r')
        return f->size ? fmemopen((void *)f->data, f->size, "r") : fopen("/dev/null", "rb");
    snprintf(f->text, sizeof f->text, "%s", strrchr(path, '/') + 1);
    f->name = f->text, f->data = f->room;
    return f->writer = fmemopen(f->room, sizeof f->room, "w");
}

static int memory_fclose(FILE *file) {
    memory_open--;
    for (int i = 0; i < MEMORY_FILES; i++)
        if (memory_files[i].writer == file) {
            fseek(file, 0, SEEK_END);
            memory_files[i].size = (size_t)ftell(file);
            memory_files[i].writer = NULL;
        }
    return fclose(file);
}

static int memory_rename(const char *from, const char *to) {
    memory_file *f = memory_find(from);
    if (!f) return -1;
    memory_remove(to);
    snprintf(f->text, sizeof f->text, "%s", strrchr(to, '/') + 1);
    return 0;
}

static int memory_stat(const char *path, struct stat *is) {
    memory_file *f = memory_find(path);
    is->st_mode = f && !f->data ? S_IFDIR : S_IFREG;
    return f ? 0 : -1;
}

/* A new file, which memory_fdopen opens at once; directories cannot be opened. */
static char memory_new[64];

static int memory_create(const char *path, int flags, ...) {
    if (!(flags & O_CREAT)) return -1;
    snprintf(memory_new, sizeof memory_new, "/%.60s", strrchr(path, '/') + 1);
    return memory_find(memory_new) ? -1 : 1;
}

static int memory_nothing(const char *path) { (void)path; return 0; }

#define fopen(path, mode) memory_fopen(path, mode)
#define fclose(file) memory_fclose(file)
#define rename(from, to) memory_rename(from, to)
#define remove(path) memory_remove(path)
#define stat(path, is) memory_stat(path, is)
#define mkdir(path, mode) memory_nothing(path)
#define open(path, ...) memory_create(path, __VA_ARGS__)
#define fdopen(fd, mode) memory_fopen(memory_new, mode)
#define fchmod(fd, mode) memory_nothing((fd) ? "" : NULL)
#define close(fd) memory_nothing((fd) ? "" : NULL)
#define readlink(path, to, size) ((to)[0] = 0, (ssize_t)memory_nothing(path) - 1)
#define fsync(fd) memory_nothing((fd) ? "" : NULL)
#define HMOE_IMPLEMENTATION
#include "hmoe.h"
#include "extra/interop/hmoe_interop.h"
#undef fopen
#undef fclose
#undef remove
#undef rename
#undef stat

/* A message is one line, and where a file is to blame it says which. */
static int memory_message_is_good(const hmoe_model *m, hmoe_status status) {
    const char *at = m->message;
    size_t n = strcspn(at, "\n\r");
    if (n == 0 || at[n] || n >= HMOE_MESSAGE_SIZE) return 0;
    if (status == HMOE_OUT_OF_MEMORY || status == HMOE_BAD_ARGUMENT) return 1;   /* sizes */
    return (status == HMOE_BAD_FILE || status == HMOE_IO)
           && (strstr(at, "config.json") || strstr(at, ".safetensors"));
}

/* ---- What is allocated must be justified: by the bytes of the files, once they are enough for the
   model that config.json describes, or by the batch and context asked for. */

static double memory_params(const hmoe_config *c) {
    double widths = 0, shared = c->NKV ? (double)c->NKV / c->NH : 1;   /* of keys and values */
    for (int e = 0; e < c->E; e++) widths += c->H[e];
    return 2.0 * c->V * c->C + c->C
           + c->L * (2.0 * c->C * c->C * (1 + shared) + 2.0 * c->C + (double)c->E * c->C
                     + 3 * widths * c->C + (c->noisy_gating ? c->E * (c->C + 1.0) : 0));
}

static double memory_justified(double files, int max_B, int training) {
    double most = (1 << 19) + 2 * files;          /* a chunk; texts */
    hmoe_config c;
    if (hmoe_load_config(&c, "", NULL)) return most;
    double least = memory_params(&c) - (training ? 0 : (double)c.V * c.C);   /* tied embeddings */
    if (files < least * (training ? 3 * sizeof(hmoe_real) : 2)) return most;
    return most + 16 * files + (double)hmoe_activation_bytes(&c, max_B, training)
           + (double)hmoe__threads() * HMOE__PACKED * sizeof(hmoe_real)
           + 2.0 * c.T * (c.C / c.NH + 1) * sizeof(hmoe_real);
}

#endif
