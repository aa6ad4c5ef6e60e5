# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a run, in Markdown."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _output(*command):
    try:
        result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    except OSError:
        return ''
    return result.stdout.strip() if not result.returncode else ''


def _cpu():
    with open('/proc/cpuinfo') as f:
        for line in f:
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.machine()


def _memory():
    with open('/proc/meminfo') as f:
        return f'{int(f.readline().split()[1]) / 2**20:.0f} GiB'


def table(header, rows):
    rows = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(str(x).replace('|', '/') for x in row) + ' |' for row in rows)


def version(executable):
    commit = _output('git', 'describe', '--always', '--dirty', '--abbrev=10')
    return ', '.join(filter(None, [_output(executable, '--version'), commit and f'commit {commit}']))


def write(run, verdict):
    """Text of the report. `verdict`: what `neo-chaos check` found, or None if it could not."""
    failures = list(run.failures)
    if not verdict and not failures:
        failures.append('no verdict')
    began = datetime.datetime.fromtimestamp(run.began, datetime.timezone.utc)
    lines = [
        f'# {run.minutes:g} minutes of chaos on {run.adapter_version}', '',
        table(['', ''], [
            ['verdict', '**FAILED**' if failures else '**passed**'],
            ['date', f'{began:%Y-%m-%d %H:%M} UTC'],
            ['duration', f'{run.duration / 60:.1f} min under load and faults'],
            ['seed', run.seed],
            ['version', version(run.executable)],
            ['machine', f'{_cpu()}, {os.cpu_count()} CPUs, {_memory()}, Linux {platform.release()}'],
            ['cluster', run.description],
            ['clients', run.clients_description],
            ['not tested', '; '.join(run.missing) or 'nothing was left out'],
        ])]
    if failures:
        lines += ['', '## What is wrong', '', *(f'- {x}' for x in failures), '',
                  f'Everything is kept in `{run.directory}`.']
    if verdict:
        lines += ['', *_verdict(run, verdict)]
    return '\n'.join(lines) + '\n'


def _verdict(run, verdict):
    def counts(name):
        return verdict.get(name) or {}
    acknowledged = counts('acknowledged').get('transactions', {})
    longest = verdict['longest'] or {'seconds': 0, 'faults': []}
    yield '## Service'
    yield ''
    yield (f'{sum(acknowledged.values())} transactions were acknowledged '
           f'({", ".join(f"{n} to clients in {x.title()}" for x, n in acknowledged.items())}), '
           f'{verdict["refused_commits"]} commits refused; of {verdict["unknown_commits"]} the '
           f'outcome was unknown to the client. The longest time in which nobody could commit was '
           f'{longest["seconds"]:.1f} s ({"; ".join(longest["faults"]) or "no fault"}).')
    yield ''
    yield 'After the end of a fault, until each client process had committed again (at most 15 s):'
    yield ''
    yield table(['fault', 'times', 'mean', 'longest'], [
        [kind, verdict['faults'][kind], f'{x["mean"]:.2f} s', f'{x["longest"]:.1f} s']
        for kind, x in verdict['returns'].items()])
    yield ''
    yield f'{run.resets} connections were reset.'
    if run.restarts:
        yield f'{run.restarts} storages ended because of their database server or disk, and were started again.'
    yield ''
    yield '## Operator'
    yield ''
    yield table(['command', 'done'], sorted(run.operator.counts.items()))
    yield ''
    yield '## Operations'
    yield ''
    yield table(['operation', 'Rust', 'Python'], [
        [name, x.get('rust', 0), x.get('python', 0)]
        for name, x in counts('operations').items() if any(x.values())])
    yield ''
    yield '## Errors that clients were told'
    yield ''
    yield table(['error', 'Rust', 'Python'], [
        [name, x.get('rust', 0), x.get('python', 0)] for name, x in counts('errors').items()])
    yield ''
    yield '## Checks'
    yield ''
    yield table(['what', 'checked', 'wrong'], verdict['checks'])
    yield ''
    yield (f'{verdict["committed"]} transactions are in the databases; {verdict["rows_compared"]} '
           f'revisions, with all copies, were compared cell by cell.')
