# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client logs: records of the logger `neo` of the standard `logging`.

The native half hands its records over. By default they go where the application sends the others:
nothing is configured here, except for the option `logfile`.
"""

import logging
import threading
import time

from . import _native

logger = logging.getLogger('neo')

_files = set()
_lock = threading.Lock()


class _Formatter(logging.Formatter):
    """Lines as those of the nodes."""

    def formatTime(self, record, datefmt=None):
        return '%s.%04d' % (time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created)),
                            record.created % 1 * 10000)


def start(logfile=None):
    """A storage is opened; `logfile` gets all from INFO on, once for each file."""
    with _lock:
        if logfile and str(logfile) not in _files:
            handler = logging.FileHandler(str(logfile))
            handler.setFormatter(_Formatter(
                '%(asctime)s %(levelname)-9s %(name)-10s [%(module)14s:%(lineno)3d] %(message)s'))
            logger.addHandler(handler)
            _files.add(str(logfile))
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.INFO)
    _native.set_log_level(logger.isEnabledFor(logging.DEBUG))
