# SPDX-License-Identifier: GPL-2.0-or-later
"""ZODB's own tests on 3 storages with 12 partitions. See `certification`."""

from certification import certify

globals().update(certify(storages=3, partitions=12))
