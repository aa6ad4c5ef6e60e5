# SPDX-License-Identifier: GPL-2.0-or-later
"""ZODB's own tests on one storage with one partition. See `certification`."""

from importlib.metadata import version

import pytest

from certification import certify, table
from cluster import ROOT

globals().update(certify(storages=1, partitions=1))


def test_table():
    """The documentation says how many tests there are, and which ones fail."""
    if version('ZODB') < '6':
        pytest.skip("the documentation has the numbers of ZODB 6")
    documented = (ROOT / 'docs' / 'compatibility.md').read_text()
    assert '\n'.join(table()) in documented
