#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Print which tests failed, and why in a line, from what a test runner printed: who only sees the end of a
long output knows where to look."""

import re
import sys

LINES_MAX = 6
WIDTH = 200

# Of pytest, which tells the reason; of nextest; of cargo test.
TESTS = re.compile(r'((?:FAILED|ERROR) \S+.*::.*)|\s+(?:FAIL|TIMEOUT|SIG[A-Z]+) \[.*?\] (?:\(.*?\) )?(.*)|'
                   r'test (\S+) \.\.\. FAILED')
# Of the simulator and of the fuzzers; of Rust, followed by the message.
REASONS = re.compile(r'((?:VIOLATION|SUMMARY|error(?:\[\w+\])?):? .*)|.*(panicked at \S+:\d+).*')


def failures(lines):
    tests, reasons = {}, {}
    lines = iter(lines)
    for line in lines:
        if found := TESTS.fullmatch(line):
            tests[next(x for x in found.groups() if x)] = None
        elif found := REASONS.fullmatch(line):
            reasons[found[1] or f'{found[2]} {next(lines, "").strip()}'] = None
    return [*tests, *reasons]


def main():
    with open(sys.argv[1], errors='replace') as log:
        found = failures(log.read().splitlines())
    for line in found[:LINES_MAX]:
        print(f'    {line[:WIDTH]}')
    if len(found) > LINES_MAX:
        print(f'    ... and {len(found) - LINES_MAX} more lines of this kind')


if __name__ == '__main__':
    main()
