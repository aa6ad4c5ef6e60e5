# SPDX-License-Identifier: GPL-2.0-or-later
"""Nodes of this project and of upstream in one cluster.

NEO_UPSTREAM_BIN: directory of upstream's executables (neomaster, neostorage, neoadmin, neoctl).
NEO_UPSTREAM: checkout of upstream, for its Python client.
NEO_UPSTREAM_PYTHON: an interpreter that can import it (default: that of the tests).
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests' / 'cluster'))

import cluster as cluster_module  # noqa: E402
from cluster import Cluster  # noqa: E402

ROLES = 'master', 'storage', 'admin', 'ctl'


@pytest.fixture(scope='session')
def upstream_bin():
    path = os.environ.get('NEO_UPSTREAM_BIN')
    if not path or not (Path(path) / 'neomaster').exists():
        pytest.skip('NOT TESTED, nodes of upstream: set NEO_UPSTREAM_BIN to the directory of '
                    'its executables')
    return Path(path).resolve()


@pytest.fixture
def mixed_cluster(tmp_path, monkeypatch, upstream_bin):
    """A function that makes a cluster in which some nodes are upstream's."""
    clusters = []
    ours = cluster_module.executable

    def new(roles=(), storages=2, **kw):
        """`roles`: those whose nodes are upstream's; `storage_0`: that one only."""
        directory = tmp_path / f'cluster{len(clusters)}'
        directory.mkdir()
        cluster = Cluster(directory, storages=storages, **kw)
        for node in cluster.nodes:
            node.is_upstream = bool({node.command.removeprefix('neo'), node.name} & set(roles))
            if node.is_upstream:
                node.command = str(upstream_bin / node.command)
        cluster.upstream_ctl = 'ctl' in roles
        clusters.append(cluster)
        return cluster

    def executable(name):
        if '/' in name:
            return name
        if name == 'neoctl' and any(x.upstream_ctl for x in clusters):
            return str(upstream_bin / name)
        return ours(name)
    monkeypatch.setattr(cluster_module, 'executable', executable)
    yield new
    for cluster in clusters:
        cluster.__exit__(None, None, None)
