"""`ingest` side by side with a plain script, and its de-duplication with datasketch.

Corpora are made in a temporary folder: pairs of JPEG and caption in Parquet files, pages and
their images in web archives, and texts of which some are nearly copies. In one run, repeated in
turns:

- pairs and documents a second, beside a script of multiprocessing, Pillow and pandas that obeys
  the same rules; and with all rules that are on by default;
- MinHash de-duplication beside datasketch, with the same bands;
- one worker beside two;
- the peak memory with ten times the records.

    python benchmarks/ingest.py [--quick]

Prints a Markdown table, what MM1's corpora would take at these rates, then one JSON object as the
last line. Ratios above 1 mean that ours is better, but for `memory_10x`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DATASKETCH = "datasketch==2.0.0"
WORKERS = 2
PAIRS_A_FILE = 500
PAGES_A_FILE = 150
IMAGES_A_PAGE = 3
NEAR_COPIES = 0.1
PAIRS = 2_000_000_000
PAGES = 3_000_000_000
"""MM1's captioned images, and the HTML files it starts from (as its issue states them)."""
DOLLARS_A_CORE_HOUR = 0.04
"""An assumption: a virtual core of a general-purpose cloud machine on demand, rounded."""
CORES = 1_000

MIN_SIDE, MIN_WORDS, MAX_CHARACTERS = 100, 2, 1_000

WORDS = """
time person year way day thing man world life hand part child eye woman place work week
case point government company number group problem fact river stone lamp green walk seven under
cloud paper wheel often bread north light house garden window street morning water music letter
the of and to in that have with for not this but from they say her will one all would there
"""
VOCABULARY = tuple(WORDS.split())


def sentence(rng: random.Random, words: int) -> str:
    """Common words in any order."""
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def jpeg(rng: np.random.Generator, side: int) -> bytes:
    """A picture with the frequencies, and about the bytes, of a photograph."""
    shape = (side // 16, side // 16, 3)
    coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
    fine = rng.normal(0, 12, (side, side, 3))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + fine
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def with_comment(data: bytes, comment: str) -> bytes:
    """The same picture in other bytes, at no cost of encoding one."""
    assert len(comment) == 8
    return data[:2] + b"\xff\xfe\x00\x0a" + comment.encode() + data[2:]


def make_pairs(folder: Path, num_files: int) -> int:
    """Writes pairs; one in fifty repeats another."""
    folder.mkdir(parents=True)
    pictures = [jpeg(np.random.default_rng(n), 256) for n in range(200)]
    for file in range(num_files):
        rng = random.Random(file)
        rows = []
        for n in range(PAIRS_A_FILE):
            data = pictures[rng.randrange(len(pictures))]
            data = with_comment(data, f"{file:04d}{n:04d}")
            rows.append({"image": data, "caption": sentence(rng, rng.randint(4, 20))})
            if n % 50 == 49:
                rows[-1] = rows[-2]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{file:04d}.parquet")
    return num_files * PAIRS_A_FILE


def make_pages(folder: Path, num_files: int) -> int:
    """Writes archives of pages and of the images that they show."""
    folder.mkdir(parents=True)
    pictures = [jpeg(np.random.default_rng(n), 224) for n in range(60)]
    for file in range(num_files):
        rng = random.Random(file)
        with open(folder / f"{file:04d}.warc.gz", "wb") as archive:
            for n in range(PAGES_A_FILE):
                blocks = ["<nav>" + "<a href=/x>Home</a>" * 12 + "</nav>", "<main><h1>Title</h1>"]
                for image in range(IMAGES_A_PAGE):
                    blocks += [f"<p>{sentence(rng, 60)}.</p>" for _ in range(2)]
                    url = f"http://x/{file}/{n}-{image}.jpg"
                    blocks.append(f'<figure><img src="{url}"></figure>')
                    data = pictures[(n * 7 + image * 11 + file) % len(pictures)]
                    data = with_comment(data, f"{file:03d}{n:04d}{image}")
                    archive.write(warc_record(url, data, "image/jpeg"))
                body = f"<html><body>{''.join(blocks)}</main><footer>x</footer></body></html>"
                archive.write(warc_record(f"http://x/{file}/{n}", body.encode(), "text/html"))
    return num_files * PAGES_A_FILE


def warc_record(url: str, body: bytes, content_type: str) -> bytes:
    """A response, packed on its own."""
    payload = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2020-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + payload + b"\r\n\r\n", 1, mtime=0)


def make_texts(num_texts: int) -> list[str]:
    """Texts of 200 words, of which a part are copies with two words changed."""
    rng = random.Random(0)
    texts: list[str] = []
    for _ in range(num_texts):
        if texts and rng.random() < NEAR_COPIES:
            words = rng.choice(texts).split()
            for _ in range(2):
                words[rng.randrange(len(words))] = "changed"
            texts.append(" ".join(words))
        else:
            texts.append(sentence(rng, 200))
    return texts


# The plain script: what one would write in an afternoon.


def plain_pairs_file(paths: tuple[str, str]) -> str:
    """Reads a file of pairs, applies the rules, writes what is left and its hashes."""
    import pandas as pd

    source, target = paths
    table = pd.read_parquet(source)
    kept = []
    for image, caption in zip(table["image"], table["caption"], strict=True):
        if len(caption.split()) < MIN_WORDS or len(caption) > MAX_CHARACTERS:
            continue
        try:
            with Image.open(io.BytesIO(image)) as opened:
                opened.load()
                width, height = opened.size
        except OSError:
            continue
        if min(width, height) < MIN_SIDE:
            continue
        digest = hashlib.sha256(image).hexdigest()
        kept.append((image, caption, digest, width, height))
    names = ["image", "caption", "sha256", "width", "height"]
    pd.DataFrame(kept, columns=names).to_parquet(target, compression="zstd")
    return target


def plain_pages_file(paths: tuple[str, str]) -> str:
    """Reads an archive: text and images in reading order, images looked up by their URL."""
    import pandas as pd
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from selectolax.lexbor import LexborHTMLParser

    source, target = paths
    pages, images = [], {}
    with open(source, "rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            url = record.headers["WARC-Target-URI"]
            if record.http_content_type == "text/html":
                pages.append((url, record.reader.read().decode("utf-8", "replace")))
            else:
                images[url] = record.reader.read()
    rows = []
    for url, html in pages:
        parts, found = [], []
        for node in LexborHTMLParser(html).css("main p, main h1, main img"):
            if node.tag != "img":
                parts.append(node.text())
                continue
            data = images.get(node.attributes.get("src") or "")
            if data is None:
                continue
            try:
                with Image.open(io.BytesIO(data)) as opened:
                    opened.load()
                    sides = sorted(opened.size)
            except OSError:
                continue
            if sides[0] >= MIN_SIDE and sides[1] <= 2 * sides[0]:
                parts.append(hashlib.sha256(data).hexdigest())
                found.append(data)
        if 1 <= len(found) <= 30:
            rows.append((url, "\n".join(parts), found))
    pd.DataFrame(rows, columns=["url", "text", "images"]).to_parquet(target, compression="zstd")
    return target


def run_plain(function: Any, key: list[str], folder: Path, output: Path) -> float:
    """Seconds of the plain script: all files in a pool, then duplicates by pandas."""
    import pandas as pd

    output.mkdir(parents=True)
    start = time.perf_counter()
    files = sorted(folder.iterdir())
    work = [(str(f), str(output / f"{f.name.split('.')[0]}.parquet")) for f in files]
    with get_context("spawn").Pool(WORKERS) as pool:
        written = pool.map(function, work)
    keys = pd.concat([pd.read_parquet(p, columns=key) for p in written], keys=written)
    repeated = keys.duplicated()
    for path in written:
        if repeated[path].any():
            table = pd.read_parquet(path)[~repeated[path].to_numpy()]
            table.to_parquet(path, compression="zstd")
    return time.perf_counter() - start


# Ours, in a process of its own, so that its peak memory is its own.

EQUAL = {
    "text": {"defaults": False},
    "captions": {"defaults": False, "min_words": MIN_WORDS, "max_characters": MAX_CHARACTERS},
    "deduplication": {"near": None, "perceptual": False, "max_caption_occurrences": None},
    "images": {"min_side": MIN_SIDE},
}
"""The rules of the plain script."""
DEFAULTS: dict[str, Any] = {}


def run_ours(
    kind: str, folder: Path, output: Path, rules: dict[str, Any], *, workers: int
) -> tuple[float, float]:
    """Seconds and peak memory (MB, of the largest process) of `ingest`."""
    formats = {"caption": "image_parquet", "interleaved": "warc_html", "text": "jsonl"}
    source = {"kind": kind, "format": formats[kind], "path": str(folder), **rules}
    if kind == "interleaved":
        source["images"] = {}
    config = {"sources": {"s": source}, "num_workers": workers, "partition_bytes": 1}
    command = [sys.executable, __file__, "--ingest", json.dumps(config), str(output)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stderr[-4_000:])
    seconds, megabytes = json.loads(finished.stdout.splitlines()[-1])
    return seconds, megabytes


def ingest_here(config: str, output: str) -> None:
    """What the process of `run_ours` does."""
    from pydantic import TypeAdapter

    from mm1_pipeline.config.ingest import IngestConfig
    from mm1_pipeline.corpus.ingest import ingest

    parameters = TypeAdapter(IngestConfig).validate_python(json.loads(config))
    start = time.perf_counter()
    report = ingest(parameters, Path(output))
    seconds = time.perf_counter() - start
    assert report["totals"]["kept"], report
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps([seconds, peak / 1024]))


THEIR_DEDUPLICATION = """
import json, sys, time
from datasketch import MinHash, MinHashLSH
texts = json.load(open(sys.argv[1]))
start = time.perf_counter()
lsh = MinHashLSH(num_perm=112, params=(14, 8))
dropped = []
for number, text in enumerate(texts):
    words = text.split()
    grams = {" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)}
    signature = MinHash(num_perm=112)
    signature.update_batch(grams)
    if lsh.query(signature):
        dropped.append(number)
    lsh.insert(number, signature)
print(json.dumps([time.perf_counter() - start, dropped]))
"""


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


def their_deduplication(python: str, texts: Path) -> tuple[float, list[int]]:
    """The same with datasketch, in the environment that has it."""
    command = [python, "-c", THEIR_DEDUPLICATION, str(texts)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(finished.stdout))  # type: ignore[return-value]


def install_datasketch(folder: Path) -> str:
    """Makes a virtual environment with datasketch alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", DATASKETCH], check=True)
    return python


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


def main(quick: bool) -> None:
    """Measures and prints everything."""
    rounds = 1 if quick else 3
    num_files = 4 if quick else 16
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_pairs = make_pairs(folder / "pairs", num_files)
        num_pages = make_pages(folder / "pages", num_files // 2)
        corpora = {"caption": folder / "pairs", "interleaved": folder / "pages"}
        for number in range(rounds):
            outputs = (folder / f"out{number}-{n}" for n in range(9))
            for kind, function, key in (
                ("caption", plain_pairs_file, ["caption", "sha256"]),
                ("interleaved", plain_pages_file, ["text"]),
            ):
                plain = run_plain(function, key, corpora[kind], next(outputs))
                times.setdefault(f"{kind} plain", []).append(plain)
                for name, rules, workers in (
                    ("equal", EQUAL, WORKERS),
                    ("all", DEFAULTS, WORKERS),
                    ("all 1", DEFAULTS, 1),
                ):
                    output = next(outputs)
                    seconds, _ = run_ours(kind, corpora[kind], output, rules, workers=workers)
                    times.setdefault(f"{kind} {name}", []).append(seconds)
        typical = {name: statistics.median(values) for name, values in times.items()}
        # Memory: a run of few records against one of ten times as many, one worker each.
        make_pairs(folder / "few", 2)
        make_pairs(folder / "many", 20)
        _, few = run_ours("caption", folder / "few", folder / "m1", DEFAULTS, workers=1)
        _, many = run_ours("caption", folder / "many", folder / "m10", DEFAULTS, workers=1)
        texts = make_texts(1_000 if quick else 10_000)
        (folder / "texts.json").write_text(json.dumps(texts))
        python = install_datasketch(folder / "venv")
        ours, theirs = [], []
        for number in range(rounds):
            seconds, our_dropped = our_deduplication(texts, folder / f"dedup{number}")
            ours.append(seconds)
            seconds, their_dropped = their_deduplication(python, folder / "texts.json")
            theirs.append(seconds)
    print(
        "| what | records | plain script, 2 workers | ours, same rules, 2 workers "
        "| ours, all rules, 2 workers | ours, all rules, 1 worker |"
    )
    print("|---|---|---|---|---|---|")
    for kind, name, count in (("caption", "pairs", num_pairs), ("interleaved", "pages", num_pages)):
        cells = [
            f"{typical[f'{kind} {column}']:.1f} s, {count / typical[f'{kind} {column}']:,.0f}/s"
            for column in ("plain", "equal", "all", "all 1")
        ]
        print(f"| {name} | {count:,} | {' | '.join(cells)} |")
    common = len(set(our_dropped) & set(their_dropped))
    print(
        f"\nNear-duplicates of {len(texts):,} texts: ours {statistics.median(ours):.2f} s drops "
        f"{len(our_dropped):,}, datasketch {statistics.median(theirs):.2f} s drops "
        f"{len(their_dropped):,}, {common:,} are common."
    )
    print(f"Peak memory: {few:.0f} MB at 1,000 pairs, {many:.0f} MB at 10,000.")
    report_needs(num_pairs / typical["caption all 1"], num_pages / typical["interleaved all 1"])
    scaling = [typical[f"{kind} all 1"] / typical[f"{kind} all"] for kind in corpora]
    result = {
        "pairs_vs_multiprocessing": typical["caption plain"] / typical["caption equal"],
        "dedup_vs_datasketch": statistics.median(theirs) / statistics.median(ours),
        "scaling_2_workers": statistics.mean(scaling),
        "memory_10x": many / few,
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
