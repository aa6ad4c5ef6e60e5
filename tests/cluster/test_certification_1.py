# SPDX-License-Identifier: GPL-2.0-or-later
"""ZODB's own tests on one storage with one partition. See `certification`."""

from certification import certify

globals().update(certify(storages=1, partitions=1))
