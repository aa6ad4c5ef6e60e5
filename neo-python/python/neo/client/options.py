# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of the options of a storage, as users write them."""

import re

_BYTES = re.compile(r'(?i)\s*(\d+)\s*([kmg]?)b?\s*$')
_ZLIB = re.compile(r'zlib(?:=([1-9]))?$')


def compression_level(value):
    """-1: default level, 0: no compression, 1 to 9.

    Accepts what upstream does: None, booleans, "zlib", "zlib=N", and the pair (0, N) that stands
    for the last one there.
    """
    if value is None or value is True:
        return -1
    if value is False:
        return 0
    if isinstance(value, str):
        match = _ZLIB.match(value)
        if match:
            return int(match.group(1) or -1)
    if isinstance(value, tuple) and value[:1] == (0,) and value[1:] in [(n,) for n in range(1, 10)]:
        return value[1]
    raise ValueError("not a valid 'compress' option: %r" % (value,))


def size(value):
    """Number of bytes, from a number or a text like "20MB"."""
    if isinstance(value, str):
        match = _BYTES.match(value)
        if not match:
            raise ValueError("not a size: %r" % value)
        return int(match.group(1)) << {'': 0, 'k': 10, 'm': 20, 'g': 30}[match.group(2).lower()]
    if value < 0:
        raise ValueError("not a size: %r" % value)
    return int(value)


def addresses(value, default_port=10000):
    """List of "host:port", from a text separated by spaces (or "/", as in NEO 0.9), or a list."""
    if isinstance(value, str):
        value = value.replace('/', ' ').split()
    result = []
    for address in value:
        if not isinstance(address, str):  # (host, port)
            host, port = address
            host = host.decode() if isinstance(host, bytes) else host
            address = '[%s]:%s' % (host, port) if ':' in host else '%s:%s' % (host, port)
        elif not re.search(r'(^[^:]*|\]):\d+$', address):
            host = '[%s]' % address if ':' in address and not address.startswith('[') else address
            address = '%s:%s' % (host.rstrip(':'), default_port)
        result.append(address)
    if not result:
        raise ValueError("no master node is given")
    return result
