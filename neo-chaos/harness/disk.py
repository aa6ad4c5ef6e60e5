# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are slow or full for a while: `slow_disk.c` in the process that has the database."""

import contextlib
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name('slow_disk.c')


class Disk:
    """The disk of one database. `env`: of the process that uses it."""

    def __init__(self, library, path):
        self.path = Path(path)
        self.set(0)
        self.env = {'LD_PRELOAD': str(library), 'NEO_CHAOS_DISK': str(self.path)}

    def set(self, delay, full=False):
        """Each fsync and fdatasync takes so many seconds longer; `full`: each pwrite fails."""
        data = struct.pack('II', int(delay * 1e6), full)
        # In place: it is mapped.
        with open(self.path, 'r+b' if self.path.exists() else 'wb') as f:
            f.write(data)

    @contextlib.contextmanager
    def bad(self, delay=0, full=False):
        self.set(delay, full)
        try:
            yield
        finally:
            self.set(0)


def build(directory):
    """Compile the library; None, and it says why, without a C compiler."""
    library = Path(directory) / 'slow_disk.so'
    try:
        subprocess.run(['cc', '-O2', '-Wall', '-shared', '-fPIC', '-o', library, SOURCE, '-ldl'],
                       check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as e:
        print(f'NOT TESTED, slow disks: {SOURCE.name} can not be compiled: {e}', flush=True)
        return None
    return library
