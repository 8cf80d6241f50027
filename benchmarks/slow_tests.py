"""Which tests are `slow`: writes tests/slow.txt from how long each took in a run of all.

    pytest -n 2 --dist loadfile --durations=0 -vv > times.txt
    python benchmarks/slow_tests.py times.txt

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
    functions: dict[str, Counter[str]] = defaultdict(Counter)
    tests: dict[str, Counter[str]] = defaultdict(Counter)
    setup: Counter[str] = Counter()
    for match in filter(None, map(_LINE.match, lines)):
        seconds, when, file, test = match.groups()
        function = test.partition("[")[0]
        tests[file][function] += when == "call"
        # What a file's fixtures take stays while one of its tests is run.
        if when == "setup":
            setup[file] += float(seconds)
        functions[file][function] += float(seconds) if when != "setup" else 0.0
    found = [FOLDER]
    for file, times in sorted(functions.items()):
        if file.startswith(FOLDER) or times.total() + setup[file] <= MAX_FILE:
            continue
        slow = sorted(name for name, seconds in times.items() if seconds >= MIN_FUNCTION)
        left = times.total() - sum(times[name] for name in slow) + setup[file]
        share = 1 - sum(tests[file][name] for name in slow) / max(1, tests[file].total())
        whole = left > MAX_FILE or share < MIN_SHARE
        found += [file] if whole else [f"{file}::{name}" for name in slow]
    return found


def main() -> None:
    """Writes the list."""
    with Path(sys.argv[1]).open(encoding="utf-8") as lines:
        found = slow_tests(lines)
    if len(found) == 1:
        sys.exit(f"{sys.argv[1]}: found no durations, expected the output of --durations=0 -vv.")
    about = (
        "# Tests that are marked `slow`: folders, files, and functions of the other files.",
        f"# Written by benchmarks/{Path(__file__).name}, which says by which rule.",
    )
    LIST.write_text("\n".join((*about, *found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
