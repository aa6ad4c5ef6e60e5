#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Print `PASSED FAILED SKIPPED` from what a test runner printed: nextest, cargo test, pytest."""

import re
import sys

# A word of a summary, and where it counts.
WORDS = {'passed': 0, 'xfailed': 0, 'failed': 1, 'error': 1, 'errors': 1, 'xpassed': 1,
         'timed out': 1, 'skipped': 2, 'ignored': 2}
SUMMARIES = (
    # Summary [   0.1s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped
    re.compile(r'\s*Summary \[.*?\] .*? tests? run: (.*)'),
    # test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0s
    re.compile(r'test result: \w+\. (.*)'),
    # 1 failed, 4 passed, 2 skipped in 0.5s
    re.compile(r'(?:=+ )?((?:\d+ [a-z]+, )*\d+ [a-z]+) in [\d.]+s\b.*'),
)


def main():
    counts = [0, 0, 0]
    with open(sys.argv[1], errors='replace') as log:
        for line in log:
            for summary in SUMMARIES:
                found = summary.fullmatch(line.rstrip('\n'))
                if found:
                    for number, word in re.findall(r'(\d+) (timed out|[a-z]+)', found[1]):
                        if word in WORDS:
                            counts[WORDS[word]] += int(number)
                    break
    print(*counts)


if __name__ == '__main__':
    main()
