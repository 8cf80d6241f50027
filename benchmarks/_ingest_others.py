"""What `ingest.py` compares with: a plain script, and datasketch."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image

DATASKETCH = "datasketch==2.0.0"
WORKERS = 2
MIN_SIDE, MIN_WORDS, MAX_CHARACTERS = 100, 2, 1_000
"""The rules of the script, which is what one would write in an afternoon."""


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
            table = pd.read_parquet(path)[~pd.Series(repeated[path]).to_numpy()]
            table.to_parquet(path, compression="zstd")
    return time.perf_counter() - start


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
