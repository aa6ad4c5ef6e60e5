/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A slow disk: fsync and fdatasync take longer.
 *
 * Loaded into a process (LD_PRELOAD) that does not know of it. The file that NEO_CHAOS_DISK names holds
 * one 32-bit number, how many microseconds each call is delayed; it is mapped, so that who writes it
 * changes the disk at once. Without it, nothing is delayed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static const volatile uint32_t *delay;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("NEO_CHAOS_DISK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof(uint32_t), PROT_READ, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED)
        delay = map;
    close(fd);
}

static void wait_for_disk(void)
{
    uint32_t us = delay ? *delay : 0;
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
