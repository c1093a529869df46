/*
 * Preloaded into fsx.
 *
 * Unmaps what fsx 0.3.2 leaves mapped after each read through a map. A million operations would
 * need more maps than Linux allows, and each truncation would visit all of them.
 *
 * With FSX_DIRECT in the environment, files that are opened for reading and writing are opened with
 * O_DIRECT as well.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>

/* The map of the file that fsx has not unmapped. It needs one at a time and has one thread. */
static void *left;
static size_t left_len;

static void *map(const char *name, void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    void *(*next)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, name);
    int of_file = fd >= 0 && (flags & MAP_SHARED);
    if (of_file && left) {
        void *unused = left;
        left = NULL;
        munmap(unused, left_len);
    }
    void *got = next(at, len, prot, flags, fd, offset);
    if (of_file && got != MAP_FAILED) {
        left = got;
        left_len = len;
    }
    return got;
}

void *mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    return map("mmap", at, len, prot, flags, fd, offset);
}

void *mmap64(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    return map("mmap64", at, len, prot, flags, fd, offset);
}

int munmap(void *at, size_t len)
{
    int (*next)(void *, size_t) = dlsym(RTLD_NEXT, "munmap");
    if (at == left)
        left = NULL;
    return next(at, len);
}

#define WRAP_OPEN(name)                                               \
    int name(const char *path, int flags, ...)                        \
    {                                                                 \
        int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;     \
        va_end(rest);                                                 \
        if (getenv("FSX_DIRECT") && (flags & O_ACCMODE) == O_RDWR)    \
            flags |= O_DIRECT;                                        \
        return next(path, flags, mode);                               \
    }
WRAP_OPEN(open)
WRAP_OPEN(open64)
