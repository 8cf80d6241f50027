"""Which tests are `slow`: writes tests/slow.txt from how long each took in a run of all.

    pytest -n 2 --dist loadfile --durations=0 -vv > times.txt
    python benchmarks/slow_tests.py times.txt [fast.txt]

What one test makes and others find made (a cache, a session's fixture) falls to another one where
the first is left out: `fast.txt` is the output of a run of the fast ones, and the longer time
counts.
A file whose tests took MAX_FILE seconds or less together, fixtures included, is fast. In another
one the functions from MIN_FUNCTION seconds on are slow, with all of their parameters; the whole
file is if what is left still takes too long, or is little. Whole stages, in tests/e2e, are anyway.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

MAX_FILE = 1.5
"""Seconds."""
MIN_FUNCTION = 0.3
"""Seconds."""
MIN_SHARE = 0.3
"""Of a file's tests that must be fast for them to be run apart from the others."""
FOLDER = "tests/e2e/"
LIST = Path(__file__).parents[1] / "tests" / "slow.txt"
_LINE = re.compile(r"\s*([\d.]+)s (setup|call|teardown) +(\S+\.py)::(.+?)\s*$")


def slow_tests(lines: Iterator[str]) -> list[str]:
    """Files, and functions as `file::function`, that are slow.

    Args:
        lines: of pytest's output with `--durations=0 -vv`.
    """
    longest: dict[tuple[str, str, str], float] = defaultdict(float)
    for match in filter(None, map(_LINE.match, lines)):
        seconds, *key = match.groups()
        longest[key[0], key[1], key[2]] = max(longest[key[0], key[1], key[2]], float(seconds))
    functions: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    tests: dict[str, Counter[str]] = defaultdict(Counter)
    setup: dict[str, float] = defaultdict(float)
    for (when, file, test), seconds in longest.items():
        function = test.partition("[")[0]
        tests[file][function] += when == "call"
        # What a file's fixtures take stays while one of its tests is run.
        if when == "setup":
            setup[file] += seconds
        functions[file][function] += seconds if when != "setup" else 0.0
    found = [FOLDER]
    for file, times in sorted(functions.items()):
        if file.startswith(FOLDER) or sum(times.values()) + setup[file] <= MAX_FILE:
            continue
        slow = sorted(name for name, seconds in times.items() if seconds >= MIN_FUNCTION)
        left = sum(times.values()) - sum(times[name] for name in slow) + setup[file]
        share = 1 - sum(tests[file][name] for name in slow) / max(1, tests[file].total())
        whole = left > MAX_FILE or share < MIN_SHARE
        found += [file] if whole else [f"{file}::{name}" for name in slow]
    return found


def main() -> None:
    """Writes the list."""
    texts = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
    found = slow_tests(line for text in texts for line in text.splitlines())
    if len(found) == 1:
        sys.exit(f"{sys.argv[1:]}: found no durations, expected the output of --durations=0 -vv.")
    about = (
        "# Tests that are marked `slow`: folders, files, and functions of the other files.",
        f"# Written by benchmarks/{Path(__file__).name}, which says by which rule.",
    )
    LIST.write_text("\n".join((*about, *found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
