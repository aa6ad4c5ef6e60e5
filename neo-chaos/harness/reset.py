# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections of a process that are reset, on both sides, by nobody.

The socket of the process is borrowed (`pidfd_getfd`, allowed to who may trace it, as a parent may) and
connected to nothing (`AF_UNSPEC`): Linux then sends a RST to the peer, and tells the process that its
connection was reset. No proxy is needed, and no privilege for processes of the same user.
"""

import ctypes
import errno
import os
import random
import struct

PIDFD_GETFD = 438
ESTABLISHED = '01'

_libc = ctypes.CDLL(None, use_errno=True)


def connections(pid):
    """File descriptors of the established TCP connections of a process."""
    inodes = set()
    for name in 'tcp', 'tcp6':
        try:
            with open(f'/proc/{pid}/net/{name}') as f:
                lines = f.read().splitlines()[1:]
        except OSError:
            continue
        inodes.update(x.split()[9] for x in lines if x.split()[3] == ESTABLISHED)
    found = []
    try:
        for fd in os.listdir(f'/proc/{pid}/fd'):
            try:
                link = os.readlink(f'/proc/{pid}/fd/{fd}')
            except OSError:
                continue    # closed meanwhile
            if link.startswith('socket:[') and link[8:-1] in inodes:
                found.append(int(fd))
    except OSError:
        pass    # the process ended
    return sorted(found)


def _reset(pidfd, fd):
    borrowed = _libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    if borrowed < 0:
        number = ctypes.get_errno()
        if number in (errno.EBADF, errno.ESRCH):
            return False    # closed meanwhile
        raise OSError(number, os.strerror(number))
    try:
        # The socket may be another one by now, that is no connection.
        return _libc.connect(borrowed, struct.pack('H14x', 0), 16) == 0
    finally:
        os.close(borrowed)


def reset(pid, rng=random, share=1.0):
    """Reset a part of the connections of a process. Returns how many."""
    pidfd = os.pidfd_open(pid)
    try:
        found = connections(pid)
        # A node that loses one may close the others at once.
        rng.shuffle(found)
        return sum(_reset(pidfd, fd) for fd in found if rng.random() < share)
    finally:
        os.close(pidfd)


def missing():
    """Why it can not work, or None."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        # No such descriptor: everything else works.
        _reset_missing = _libc.syscall(PIDFD_GETFD, -1, 0, 0)
        assert _reset_missing < 0
        number = ctypes.get_errno()
    except (AttributeError, OSError) as e:
        return f'pidfd_open: {e}'
    return None if number == errno.EBADF else f'pidfd_getfd: {os.strerror(number)}'
