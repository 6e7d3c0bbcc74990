// Preloaded: the nth call that writes below one folder fails, writes less than asked, or is the last of the process.
// Armed by `fault_arm`; counts from there. One fault only: what the program does about it works again.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, FAIL_NOSPC, FAIL_IO, FAIL_INTR, SHORT, KILL_BEFORE, KILL_AFTER };

static char folder[PATH_MAX];
static int kind, log_fd = -1;
static long at;
static atomic_long calls;

void fault_arm(const char* below, long number, int what, int log) {
    if (!number && !*below) { *folder = 0; return; } // disarmed; the count stays
    snprintf(folder, sizeof folder, "%s/", below);
    at = number;
    kind = what;
    log_fd = log;
    calls = 0;
}

long fault_calls(void) { return calls; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int below(const char* path) {
    char whole[PATH_MAX];
    if (!*folder || !path) {
        return 0;
    }
    if (path[0] != '/') {
        return 0; // the verbs are given absolute paths
    }
    snprintf(whole, sizeof whole, "%s/", path); // the folder itself counts
    return strncmp(whole, folder, strlen(folder)) == 0;
}

static int below_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (!*folder || fd == log_fd) {
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) {
        return 0;
    }
    path[length] = 0;
    return below(path);
}

// What is to happen to this call; the name goes to the log when it is the one.
static int meet(int counts, const char* name) {
    if (!counts) {
        return NONE;
    }
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (number != at) {
        return NONE;
    }
    if (log_fd >= 0) {
        REAL(write)(log_fd, name, strlen(name));
    }
    if (kind == KILL_BEFORE) {
        kill(getpid(), SIGKILL);
        pause();
    }
    return kind;
}

static int failing(int what) {
    if (what == FAIL_NOSPC) errno = ENOSPC;
    else if (what == FAIL_IO) errno = EIO;
    else if (what == FAIL_INTR) errno = EINTR;
    else return 0;
    return 1;
}

static void after(int what) {
    if (what == KILL_AFTER) {
        kill(getpid(), SIGKILL);
        pause();
    }
}

#define PLAIN(type, name, parameters, arguments, where)      \
    type name parameters {                                   \
        int what = meet(where, #name);                       \
        if (failing(what)) return -1;                        \
        type result = REAL(name) arguments;                  \
        after(what);                                         \
        return result;                                       \
    }

#define WRITING(name, parameters, arguments, less, where)    \
    ssize_t name parameters {                                \
        int what = meet(where, #name);                       \
        if (failing(what)) return -1;                        \
        ssize_t result = what == SHORT && size > 1 ? REAL(name) less : REAL(name) arguments; \
        after(what);                                         \
        return result;                                       \
    }

WRITING(write, (int fd, const void* data, size_t size), (fd, data, size), (fd, data, size / 2), below_fd(fd))
WRITING(pwrite, (int fd, const void* data, size_t size, off_t where), (fd, data, size, where), (fd, data, size / 2, where), below_fd(fd))
WRITING(pwrite64, (int fd, const void* data, size_t size, off64_t where), (fd, data, size, where), (fd, data, size / 2, where), below_fd(fd))
PLAIN(int, ftruncate, (int fd, off_t size), (fd, size), below_fd(fd))
PLAIN(int, ftruncate64, (int fd, off64_t size), (fd, size), below_fd(fd))
PLAIN(int, fallocate, (int fd, int mode, off_t start, off_t size), (fd, mode, start, size), below_fd(fd))
PLAIN(int, fallocate64, (int fd, int mode, off64_t start, off64_t size), (fd, mode, start, size), below_fd(fd))
PLAIN(int, fsync, (int fd), (fd), below_fd(fd))
PLAIN(int, fchmod, (int fd, mode_t mode), (fd, mode), below_fd(fd))
PLAIN(int, rename, (const char* from, const char* to), (from, to), below(to))
PLAIN(int, unlink, (const char* path), (path), below(path))
PLAIN(int, rmdir, (const char* path), (path), below(path))
PLAIN(int, mkdir, (const char* path, mode_t mode), (path, mode), below(path))

#define OPENING(name)                                        \
    int name(const char* path, int flags, ...) {             \
        va_list more;                                        \
        va_start(more, flags);                               \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
        va_end(more);                                        \
        int what = meet((flags & O_CREAT) && below(path), #name); \
        if (failing(what)) return -1;                        \
        int result = REAL(name)(path, flags, mode);          \
        after(what);                                         \
        return result;                                       \
    }

OPENING(open)
OPENING(open64)
