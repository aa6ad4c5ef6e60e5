/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A slow disk: fsync and fdatasync take longer. A full disk: pwrite fails.
 *
 * Loaded into a process (LD_PRELOAD) that does not know of it. The file that NEO_CHAOS_DISK names holds
 * two 32-bit numbers: how many microseconds each fsync is delayed, and whether the disk is full. It is
 * mapped, so that who writes it changes the disk at once. Without it, nothing happens.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static const volatile struct {
    uint32_t delay;
    uint32_t full;
} *disk;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("NEO_CHAOS_DISK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof(*disk), PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED)
        disk = map;
    close(fd);
}

static void wait_for_disk(void)
{
    uint32_t us = disk ? disk->delay : 0;
    if (us) {
        struct timespec time = {us / 1000000, us % 1000000 * 1000L};
        while (nanosleep(&time, &time) != 0)
            ;
    }
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_for_disk();
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk();
    return real(fd);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real)
        real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    if (disk && disk->full) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, data, length, offset);
}
