/* Kills a run before one of its changes of files, or lets its disk be full after some bytes.
 *
 * Loaded before the C library (LD_PRELOAD) into every process of a run, it stands before the calls
 * that change files, whichever language makes them. `struct faults` is a file that all processes
 * of a run share; kills.py fills it before a run and reads from it what was hit.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, WRITE, RENAME, REMOVE, FOLDER, SYNC, RESIZE, LINK, CLASSES };
enum { NOTHING, KILL_RUN, KILL_PROCESS, FULL };

struct faults {
    uint64_t changes[CLASSES]; /* so far, by class */
    uint64_t bytes;            /* written so far */
    uint64_t fault;            /* what happens */
    uint64_t at_class;         /* of the change at which it happens */
    uint64_t at;               /* its number within the class, from 1; for FULL: bytes that fit */
    uint64_t torn;             /* half of a write is made before the kill */
    int64_t group;             /* processes that are killed */
    uint64_t hit;              /* 1: it happened */
    char below[1024];          /* only changes below this folder count */
    char call[32];             /* what it hit */
    char path[1024];
};

static struct faults *faults;

void faults_open(const char *file) {
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *place = mmap(0, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    faults = place == MAP_FAILED ? 0 : place;
}

__attribute__((constructor)) static void start(void) {
    const char *file = getenv("MM1_FAULTS");
    if (file) faults_open(file);
}

static int counts(const char *path) {
    size_t size = strlen(faults->below);
    return strncmp(path, faults->below, size) == 0 && path[size] == '/';
}

static int name_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

/* The whole name of a path that may be relative to a folder. */
static void whole_name(int folder, const char *name, char *path) {
    path[0] = 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (syscall(SYS_getcwd, path, PATH_MAX / 2) < 0) path[0] = 0;
        } else
            name_of(folder, path);
        strncat(path, "/", 2);
    }
    strncat(path, name, PATH_MAX / 2);
}

static void hit(const char *call, const char *path) {
    faults->hit = 1;
    snprintf(faults->call, sizeof faults->call, "%s", call);
    snprintf(faults->path, sizeof faults->path, "%s", path);
}

/* 1 if a kill is due; the caller may still write before it calls `end`. */
static int due(int class, const char *call, const char *path) {
    uint64_t number = __atomic_add_fetch(&faults->changes[class], 1, __ATOMIC_SEQ_CST);
    if (faults->fault != KILL_RUN && faults->fault != KILL_PROCESS) return 0;
    if (faults->hit || (uint64_t)class != faults->at_class || number < faults->at) return 0;
    hit(call, path);
    return 1;
}

static void end(void) {
    pid_t own = syscall(SYS_getpid);
    if (faults->fault == KILL_RUN) syscall(SYS_kill, -(pid_t)faults->group, SIGKILL);
    syscall(SYS_kill, own, SIGKILL);
}

static int is_full(void) { return faults->fault == FULL && faults->hit; }

/* A change by name; -1 if the disk has no room for it. */
static int change(int class, const char *call, int folder, const char *name, int needs_room) {
    int before = errno;
    char path[PATH_MAX];
    if (!faults || !name) return 0;
    whole_name(folder, name, path);
    if (!counts(path)) return errno = before, 0;
    if (due(class, call, path)) end();
    errno = before;
    if (needs_room && is_full()) return errno = ENOSPC, -1;
    return 0;
}

static int change_of(int class, const char *call, int fd) {
    int before = errno;
    char path[PATH_MAX];
    if (faults && name_of(fd, path) && counts(path) && due(class, call, path)) end();
    errno = before;
    return 0;
}

/* Bytes that may be written of so many; -1 if none. */
static ssize_t room(int fd, size_t size, const char *call, int *torn) {
    int before = errno;
    char path[PATH_MAX];
    *torn = 0;
    if (!faults || !size || !name_of(fd, path) || !counts(path)) return errno = before, size;
    if (due(WRITE, call, path)) {
        if (!faults->torn || size < 2) end();
        *torn = 1;
        return errno = before, size / 2;
    }
    uint64_t after = __atomic_add_fetch(&faults->bytes, size, __ATOMIC_SEQ_CST);
    errno = before;
    if (faults->fault != FULL || after <= faults->at) return size;
    if (!faults->hit) hit(call, path);
    uint64_t first = after - size;
    if (first >= faults->at) return errno = ENOSPC, -1;
    return faults->at - first;
}

#define REAL(name) static typeof(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    int torn;
    ssize_t allowed = room(fd, size, "write", &torn), written;
    if (allowed < 0) return -1;
    written = real(fd, data, allowed);
    if (torn) end();
    return written;
}

#define POSITIONED(name, offset_type)                                       \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(name);                                                         \
        int torn;                                                           \
        ssize_t allowed = room(fd, size, #name, &torn), written;            \
        if (allowed < 0) return -1;                                         \
        written = real(fd, data, allowed, offset);                          \
        if (torn) end();                                                    \
        return written;                                                     \
    }
POSITIONED(pwrite, off_t)
POSITIONED(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    size_t size = 0;
    int torn;
    for (int part = 0; part < count; part++) size += parts[part].iov_len;
    ssize_t allowed = room(fd, size, "writev", &torn);
    if (allowed < 0) return -1;
    if ((size_t)allowed == size) return real(fd, parts, count);
    size_t written = 0; /* of a part of them */
    for (int part = 0; part < count && written < (size_t)allowed; part++) {
        size_t wanted = parts[part].iov_len, left = allowed - written;
        if (wanted > left) wanted = left;
        ssize_t done = syscall(SYS_write, fd, parts[part].iov_base, wanted);
        if (done < 0) return -1;
        written += done;
    }
    if (torn) end();
    return written;
}

/* No more than a file has: copies ask for megabytes. */
static size_t left_in(int fd, const off64_t *offset, size_t size) {
    struct stat found;
    off64_t at = offset ? *offset : lseek(fd, 0, SEEK_CUR);
    if (at < 0 || fstat(fd, &found) || !S_ISREG(found.st_mode)) return size;
    size_t left = found.st_size > at ? found.st_size - at : 0;
    return left < size ? left : size;
}

#define COPYING(name, offset_type)                                        \
    ssize_t name(int to, int from, offset_type *offset, size_t size) {     \
        REAL(name);                                                       \
        int torn;                                                         \
        size = left_in(from, offset, size);                               \
        ssize_t allowed = room(to, size, #name, &torn), written;          \
        if (allowed < 0) return -1;                                       \
        written = real(to, from, offset, allowed);                        \
        if (torn) end();                                                  \
        return written;                                                   \
    }
COPYING(sendfile, off_t)
COPYING(sendfile64, off64_t)

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t size, unsigned flags) {
    REAL(copy_file_range);
    int torn;
    size = left_in(from, at, size);
    ssize_t allowed = room(to, size, "copy_file_range", &torn), written;
    if (allowed < 0) return -1;
    written = real(from, at, to, there, allowed, flags);
    if (torn) end();
    return written;
}

static int writes(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND); }

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPENING(name)                                                                   \
    int name(const char *path, int flags, ...) {                                        \
        REAL(name);                                                                     \
        va_list rest;                                                                   \
        va_start(rest, flags);                                                          \
        mode_t mode = mode_of(flags, rest);                                             \
        va_end(rest);                                                                   \
        if (writes(flags) && change(OPEN, "open", AT_FDCWD, path, flags & O_CREAT))     \
            return -1;                                                                  \
        return real(path, flags, mode);                                                 \
    }
#define OPENING_AT(name)                                                                \
    int name(int folder, const char *path, int flags, ...) {                            \
        REAL(name);                                                                     \
        va_list rest;                                                                   \
        va_start(rest, flags);                                                          \
        mode_t mode = mode_of(flags, rest);                                             \
        va_end(rest);                                                                   \
        if (writes(flags) && change(OPEN, "open", folder, path, flags & O_CREAT))       \
            return -1;                                                                  \
        return real(folder, path, flags, mode);                                         \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

#define FOPENING(name)                                                                     \
    FILE *name(const char *path, const char *mode) {                                       \
        REAL(name);                                                                        \
        if (mode[0] != 'r' && change(OPEN, "fopen", AT_FDCWD, path, 1)) return 0;          \
        return real(path, mode);                                                           \
    }
FOPENING(fopen)
FOPENING(fopen64)

/* By name: class, call, arguments as declared, as passed, folder, name, needs room. */
#define BY_NAME(class, name, declared, passed, folder, path, needs)   \
    int name declared {                                               \
        REAL(name);                                                   \
        if (change(class, #name, folder, path, needs)) return -1;     \
        return real passed;                                           \
    }
BY_NAME(RENAME, rename, (const char *a, const char *b), (a, b), AT_FDCWD, b, 0)
BY_NAME(RENAME, renameat, (int f, const char *a, int g, const char *b), (f, a, g, b), g, b, 0)
BY_NAME(RENAME, renameat2, (int f, const char *a, int g, const char *b, unsigned h),
        (f, a, g, b, h), g, b, 0)
BY_NAME(REMOVE, unlink, (const char *a), (a), AT_FDCWD, a, 0)
BY_NAME(REMOVE, unlinkat, (int f, const char *a, int h), (f, a, h), f, a, 0)
BY_NAME(REMOVE, remove, (const char *a), (a), AT_FDCWD, a, 0)
BY_NAME(REMOVE, rmdir, (const char *a), (a), AT_FDCWD, a, 0)
BY_NAME(FOLDER, mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a, 1)
BY_NAME(FOLDER, mkdirat, (int f, const char *a, mode_t m), (f, a, m), f, a, 1)
BY_NAME(RESIZE, truncate, (const char *a, off_t n), (a, n), AT_FDCWD, a, 0)
BY_NAME(RESIZE, truncate64, (const char *a, off64_t n), (a, n), AT_FDCWD, a, 0)
BY_NAME(LINK, link, (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
BY_NAME(LINK, linkat, (int f, const char *a, int g, const char *b, int h), (f, a, g, b, h), g, b, 1)
BY_NAME(LINK, symlink, (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
BY_NAME(LINK, symlinkat, (const char *a, int g, const char *b), (a, g, b), g, b, 1)

#define BY_DESCRIPTOR(class, name, declared, passed) \
    int name declared {                              \
        REAL(name);                                  \
        change_of(class, #name, fd);                 \
        return real passed;                          \
    }
BY_DESCRIPTOR(SYNC, fsync, (int fd), (fd))
BY_DESCRIPTOR(SYNC, fdatasync, (int fd), (fd))
BY_DESCRIPTOR(RESIZE, ftruncate, (int fd, off_t n), (fd, n))
BY_DESCRIPTOR(RESIZE, ftruncate64, (int fd, off64_t n), (fd, n))

/* A full disk says so. */
#define SPACE(name, type)                                                                 \
    int name(const char *path, struct type *found) {                                      \
        REAL(name);                                                                       \
        int status = real(path, found);                                                   \
        if (!status && faults && is_full()) found->f_bavail = found->f_bfree = 0;         \
        return status;                                                                    \
    }
SPACE(statvfs, statvfs)
SPACE(statvfs64, statvfs64)
