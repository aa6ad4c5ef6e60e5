# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/scenarios.md tells the truth: no scenario is missing, and each test that it names exists."""

import re

from cluster import ROOT, shared_dir

ROW = re.compile(r'^\| *((?:test|master|storage)[^|]*?) *\|(.*)\|$', re.M)


def test_table():
    wanted = [x[0] for x in ROW.findall((shared_dir() / 'SCENARIOS.md').read_text())]
    rows = dict(ROW.findall((ROOT / 'docs' / 'scenarios.md').read_text()))
    assert len(wanted) > 90
    assert list(rows) == wanted
    tests = set()
    for path in ROOT.glob('neo-*/**/*.rs'):
        tests.update(re.findall(r'#\[test\]\n(?: *#\[.*\n)*\s*fn (\w+)', path.read_text()))
    # The same tests for several databases.
    for path in ROOT.glob('neo-storage/tests/database/*.rs'):
        tests.update(re.findall(r'\bfn (\w+)', path.read_text()))
    for path in ROOT.glob('tests/cluster/test_*.py'):
        tests.update(re.findall(r'^def (test_\w+)', path.read_text(), re.M))
    for name, text in rows.items():
        named = re.findall(r'`(\w+)`', text)
        assert named or text.strip().startswith('none: '), f'{name}: {text}'
        assert not set(named) - tests, f'{name}: no such test: {set(named) - tests}'
