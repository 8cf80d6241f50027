"""`ingest` side by side with a plain script, and its de-duplication with datasketch.

Corpora are made in a temporary folder: pairs of JPEG and caption in Parquet files, pages and
their images in web archives, and texts of which some are nearly copies. In one run, repeated in
turns:

- pairs and documents a second, beside a script of multiprocessing, Pillow and pandas that obeys
  the same rules; and with all rules that are on by default;
- one worker beside two, with all rules; beside them what it takes to start, measured with next to
  no records, and two runs of one worker at the same time with a half of the files each: more than
  two such runs gain, which share nothing, no workers can;
- MinHash de-duplication beside datasketch, with the same bands;
- the peak memory with ten times the records.

    python benchmarks/ingest.py [--quick]

Prints Markdown tables, what MM1's corpora would take at these rates, then one JSON object as the
last line. Ratios above 1 mean that ours is better, but for `memory_10x`. The seconds are those of
the clock; the seconds of the processor beside them hold also where something else is running.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _ingest_corpora import WORKERS, make_corpora, make_texts
from _ingest_others import (
    MAX_CHARACTERS,
    MIN_SIDE,
    MIN_WORDS,
    install_datasketch,
    plain_pages_file,
    plain_pairs_file,
    run_plain,
    their_deduplication,
)

FULL = {"num_files": 32, "pairs_a_file": 1_000, "pages_a_file": 250}
"""One worker takes about 20 s for the pairs and for the pages, so that starting, which takes one,
is a small part, as it is of the hours that a real corpus takes."""
QUICK = {"num_files": 10, "pairs_a_file": 100, "pages_a_file": 25}
PAIRS = 2_000_000_000
PAGES = 3_000_000_000
"""MM1's captioned images, and the HTML files it starts from (as its issue states them)."""
DOLLARS_A_CORE_HOUR = 0.04
"""An assumption: a virtual core of a general-purpose cloud machine on demand, rounded."""
CORES = 1_000


def some_files(folder: Path, parts: slice, target: Path) -> Path:
    """A folder with some of the files of another."""
    target.mkdir()
    for path in sorted(folder.iterdir())[parts]:
        (target / path.name).hardlink_to(path)
    return target


# Ours, in a process of its own, so that its peak memory is its own.

EQUAL = {
    "text": {"defaults": False},
    "captions": {"defaults": False, "min_words": MIN_WORDS, "max_characters": MAX_CHARACTERS},
    "deduplication": {"near": None, "perceptual": False, "max_caption_occurrences": None},
    "images": {"min_side": MIN_SIDE},
}
"""The rules of the plain script."""
DEFAULTS: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """What one run of `ingest` took."""

    seconds: float
    processor_seconds: float
    """Of all its processes, those of imports included."""
    megabytes: float
    """Of its largest process, at its peak."""


def start_ours(
    kind: str, folder: Path, output: Path, rules: dict[str, Any], *, workers: int
) -> subprocess.Popen[str]:
    """Starts `ingest` in a process of its own."""
    formats = {"caption": "image_parquet", "interleaved": "warc_html", "text": "jsonl"}
    source = {"kind": kind, "format": formats[kind], "path": str(folder), **rules}
    if kind == "interleaved":
        source["images"] = {}
    config = {"sources": {"s": source}, "num_workers": workers, "partition_bytes": 1}
    command = [sys.executable, __file__, "--ingest", json.dumps(config), str(output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> Run:
    """Waits for what `start_ours` started."""
    printed, errors = process.communicate()
    if process.returncode:
        sys.exit(errors[-4_000:])
    return Run(*json.loads(printed.splitlines()[-1]))


def run_ours(kind: str, folder: Path, output: Path, rules: dict[str, Any], *, workers: int) -> Run:
    """Runs `ingest` in a process of its own, so that its peak memory is its own."""
    return result_of(start_ours(kind, folder, output, rules, workers=workers))


def run_halves(kind: str, folder: Path, output: Path) -> float:
    """Seconds of two runs at the same time, of one worker and a half of the files each."""
    output.mkdir()
    halves = [some_files(folder, slice(n, None, 2), output / f"files{n}") for n in range(2)]
    started = [
        start_ours(kind, half, output / f"out{n}", DEFAULTS, workers=1)
        for n, half in enumerate(halves)
    ]
    return max(result_of(process).seconds for process in started)


def ingest_here(config: str, output: str) -> None:
    """What the process of `start_ours` does."""
    from pydantic import TypeAdapter

    from mm1_pipeline.config.ingest import IngestConfig
    from mm1_pipeline.corpus.ingest import ingest

    parameters = TypeAdapter(IngestConfig).validate_python(json.loads(config))
    start = time.perf_counter()
    report = ingest(parameters, Path(output))
    seconds = time.perf_counter() - start
    assert report["totals"]["kept"], report
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor_seconds = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps([seconds, processor_seconds, max(u.ru_maxrss for u in used) / 1024]))


def our_deduplication(texts: list[str], folder: Path) -> tuple[float, list[int]]:
    """Seconds, and the places of what is dropped."""
    from mm1_pipeline.config.corpus_rules import DeduplicationConfig, MinHashConfig
    from mm1_pipeline.corpus.deduplication import (
        KEY_SCHEMA,
        NAME_SCHEMA,
        TableWriter,
        find_repeats,
        min_hash_keys,
        read_repeats,
    )

    folder.mkdir()
    start = time.perf_counter()
    paths = {name: [folder / f"{name}.parquet"] for name in ("exact", "near", "names")}
    with (
        TableWriter(paths["exact"][0], KEY_SCHEMA),
        TableWriter(paths["near"][0], KEY_SCHEMA) as near,
        TableWriter(paths["names"][0], NAME_SCHEMA) as names,
    ):
        for first in range(0, len(texts), 256):
            keys = min_hash_keys(texts[first : first + 256], MinHashConfig())
            for order, row in enumerate(keys.tolist(), start=first):
                names.add(order, str(order))
                for key in row:
                    near.add(order, key)
    find_repeats(DeduplicationConfig(), paths, folder / "found", folder / "work")
    dropped = sorted(read_repeats(folder / "found", 0))
    return time.perf_counter() - start, dropped


def report_needs(pairs_a_second: float, pages_a_second: float) -> None:
    """What MM1's corpora would take, if rates a core hold on many."""
    print(f"\nAt these rates a core, {CORES:,} cores, {DOLLARS_A_CORE_HOUR} dollars a core hour:\n")
    print("| corpus | records | records/s a core | core hours | hours | dollars |")
    print("|---|---|---|---|---|---|")
    for name, count, rate in (
        ("captioned images", PAIRS, pairs_a_second),
        ("HTML files", PAGES, pages_a_second),
    ):
        core_hours = count / rate / 3600
        print(
            f"| {name} | {count:,} | {rate:,.0f} | {core_hours:,.0f} | {core_hours / CORES:,.1f} "
            f"| {core_hours * DOLLARS_A_CORE_HOUR:,.0f} |"
        )


def compare_speeds(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds by kind and by what was run, in turns."""
    times: dict[str, list[float]] = {}
    outputs = (folder / f"out{number}" for number in itertools.count())
    for _ in range(rounds):
        for kind, name, function, key in (
            ("caption", "pairs", plain_pairs_file, ["caption", "sha256"]),
            ("interleaved", "pages", plain_pages_file, ["text"]),
        ):

            def note(what: str, seconds: float, name: str = name) -> None:
                times.setdefault(f"{name} {what}", []).append(seconds)

            def ours(
                what: str, rules: dict[str, Any], workers: int, kind: str = kind, name: str = name
            ) -> None:
                part = f"few {name}" if what.startswith("start") else name
                output = next(outputs)
                run = run_ours(kind, folder / part, output, rules, workers=workers)
                note(what, run.seconds)
                note(f"{what} processor", run.processor_seconds)
                shutil.rmtree(output)

            output = next(outputs)
            note("plain", run_plain(function, key, folder / name, output))
            shutil.rmtree(output)
            ours("equal", EQUAL, WORKERS)
            ours("all", DEFAULTS, WORKERS)
            ours("all 1", DEFAULTS, 1)
            ours("start", DEFAULTS, WORKERS)
            ours("start 1", DEFAULTS, 1)
            output = next(outputs)
            note("halves", run_halves(kind, folder / name, output))
            shutil.rmtree(output)
    return times


def compare_deduplication(folder: Path, num_texts: int, rounds: int) -> float:
    """How much faster ours is; prints what both find."""
    texts = make_texts(num_texts)
    (folder / "texts.json").write_text(json.dumps(texts))
    python = install_datasketch(folder / "venv")
    ours: list[float] = []
    theirs: list[float] = []
    our_dropped, their_dropped = [], []
    for number in range(rounds):
        seconds, our_dropped = our_deduplication(texts, folder / f"dedup{number}")
        ours.append(seconds)
        seconds, their_dropped = their_deduplication(python, folder / "texts.json")
        theirs.append(seconds)
    common = len(set(our_dropped) & set(their_dropped))
    print(
        f"\nNear-duplicates of {len(texts):,} texts: ours {statistics.median(ours):.2f} s drops "
        f"{len(our_dropped):,}, datasketch {statistics.median(theirs):.2f} s drops "
        f"{len(their_dropped):,}, {common:,} are common."
    )
    return statistics.median(theirs) / statistics.median(ours)


def compare_memory(folder: Path, pairs_a_file: int) -> float:
    """How much more ten times the records take."""
    megabytes = []
    for count in (1, 10):
        files = some_files(folder / "pairs", slice(count), folder / f"memory{count}")
        run = run_ours("caption", files, folder / f"memory{count} out", DEFAULTS, workers=1)
        megabytes.append(run.megabytes)
    print(
        f"\nPeak memory: {megabytes[0]:.0f} MB at {pairs_a_file:,} pairs, "
        f"{megabytes[1]:.0f} MB at {10 * pairs_a_file:,}."
    )
    return megabytes[1] / megabytes[0]


def report_speeds(seconds: dict[str, float], counts: dict[str, int]) -> None:
    """Prints the tables of speeds and of what two workers gain."""
    print(
        "| what | records | plain script, 2 workers | ours, same rules, 2 workers "
        "| ours, all rules, 2 workers | ours, all rules, 1 worker |"
    )
    print("|---|---|---|---|---|---|")
    for name, count in counts.items():
        cells = [
            f"{seconds[f'{name} {column}']:.1f} s, {count / seconds[f'{name} {column}']:,.0f}/s"
            for column in ("plain", "equal", "all", "all 1")
        ]
        print(f"| {name} | {count:,} | {' | '.join(cells)} |")
    print(
        "\n| all rules | 1 worker | 2 workers | gain | of this, to start: 1 worker | 2 workers "
        "| gain without | two separate runs, gain | processor, 1 worker | 2 workers |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in counts:
        one, two = seconds[f"{name} all 1"], seconds[f"{name} all"]
        start_one, start_two = seconds[f"{name} start 1"], seconds[f"{name} start"]
        cells = [
            f"{one:.1f} s",
            f"{two:.1f} s",
            f"{one / two:.2f}",
            f"{start_one:.1f} s",
            f"{start_two:.1f} s",
            f"{(one - start_one) / (two - start_two):.2f}",
            f"{one / seconds[f'{name} halves']:.2f}",
            f"{seconds[f'{name} all 1 processor']:.1f} s",
            f"{seconds[f'{name} all processor']:.1f} s",
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def main(quick: bool) -> None:
    """Measures and prints everything."""
    rounds = 1 if quick else 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = QUICK if quick else FULL
        make_corpora(folder, **size)
        counts = {n: size["num_files"] * size[f"{n}_a_file"] for n in ("pairs", "pages")}
        times = compare_speeds(folder, rounds)
        seconds = {name: statistics.median(values) for name, values in times.items()}
        report_speeds(seconds, counts)
        deduplication = compare_deduplication(folder, 1_000 if quick else 10_000, rounds)
        memory = compare_memory(folder, size["pairs_a_file"])
    report_needs(*(count / seconds[f"{name} all 1"] for name, count in counts.items()))
    result = {
        "pairs_vs_multiprocessing": seconds["pairs plain"] / seconds["pairs equal"],
        "pages_vs_multiprocessing": seconds["pages plain"] / seconds["pages equal"],
        "dedup_vs_datasketch": deduplication,
        "scaling_2_workers": statistics.mean(
            seconds[f"{name} all 1"] / seconds[f"{name} all"] for name in counts
        ),
        "scaling_2_separate_runs": statistics.mean(
            seconds[f"{name} all 1"] / seconds[f"{name} halves"] for name in counts
        ),
        "memory_10x": memory,
    }
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small corpora, one round")
    parser.add_argument("--ingest", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.ingest:
        ingest_here(*arguments.ingest)
    else:
        main(arguments.quick)
