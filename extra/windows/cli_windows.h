/* cli_windows.h - what cli.h takes from the platform, for Windows. cli.h includes it there. */
#ifndef CLI_WINDOWS_H
#define CLI_WINDOWS_H

#define WIN32_LEAN_AND_MEAN
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <share.h>
#include <windows.h>

static volatile sig_atomic_t cli_interrupted, cli_continued;

/* Bytes are written as they are. A console reads them as UTF-8 and knows "\033[K". */
static inline void cli_prepare(void) {
    HANDLE console = GetStdHandle(STD_OUTPUT_HANDLE);
    DWORD mode;
    for (int i = 0; i < 3; i++) _setmode(i, _O_BINARY);
    if (!GetConsoleMode(console, &mode)) return;
    SetConsoleOutputCP(CP_UTF8);
    SetConsoleMode(console, mode | 4);             /* ENABLE_VIRTUAL_TERMINAL_PROCESSING */
}

static inline void cli_interrupt(int signal_number) {
    cli_interrupted = 1;
    signal(signal_number, cli_interrupt);          /* a handler is good for one signal here */
}

static inline void cli_catch_interrupts(int on) {
    signal(SIGINT, on ? cli_interrupt : SIG_DFL);
    signal(SIGTERM, on ? cli_interrupt : SIG_DFL);
}

static inline void cli_catch_ends(void (*work)(int)) {
    signal(SIGINT, work);
    signal(SIGTERM, work);
}

/* Nobody else may write to the file. It holds the number of this process, to be read. */
static inline long cli_take(const char *file) {
    char owner[32] = "";
    int f = _sopen(file, O_RDWR | O_CREAT | O_TRUNC | O_BINARY, _SH_DENYWR, _S_IREAD | _S_IWRITE);
    FILE *theirs;
    if (f >= 0) {
        snprintf(owner, sizeof owner, "%d\n", _getpid());
        return _write(f, owner, (unsigned)strlen(owner)) > 0 ? 0 : -1;
    }
    if (errno != EACCES || !(theirs = fopen(file, "rb"))) return -1;
    if (!fgets(owner, sizeof owner, theirs)) *owner = 0;
    fclose(theirs);
    errno = EACCES;
    return *owner ? atol(owner) : -1;
}

static inline int cli_identify(const char *path, BY_HANDLE_FILE_INFORMATION *info) {
    HANDLE h = CreateFileA(path, 0, 7, NULL, OPEN_EXISTING, FILE_FLAG_BACKUP_SEMANTICS, NULL);
    int known = h != INVALID_HANDLE_VALUE && GetFileInformationByHandle(h, info);
    if (h != INVALID_HANDLE_VALUE) CloseHandle(h);
    return known;
}

static inline int cli_is_same(const char *a, const char *b) {
    BY_HANDLE_FILE_INFORMATION x, y;
    return cli_identify(a, &x) && cli_identify(b, &y) && x.nFileIndexLow == y.nFileIndexLow
           && x.nFileIndexHigh == y.nFileIndexHigh
           && x.dwVolumeSerialNumber == y.dwVolumeSerialNumber;
}

static inline int cli_is_relative(const char *path) {
    return *path != '/' && *path != '\\' && !(*path && path[1] == ':');
}

static inline int cli_keep(const char *dir) { (void)dir; return -1; }
static inline int cli_is_open_at(int f, const char *path) {
    (void)f;
    return access(path, F_OK) == 0;                /* an open file stays where it is */
}
static inline int cli_is_at(FILE *f, const char *path) { return cli_is_open_at(fileno(f), path); }

static inline FILE *cli_same_stream(const char *path) {
    (void)path;
    return NULL;
}

static inline double cli_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

#endif
