"""The corpora of `ingest.py`: pairs, pages with their images, and texts."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORKERS = 2
IMAGES_A_PAGE = 3
NEAR_COPIES = 0.1
FEW = 10

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


def pictures(seed: int, side: int, count: int) -> Iterator[bytes]:
    """Pictures with the frequencies, and about the bytes, of photographs, each another one."""
    rng = np.random.default_rng(seed)
    fine = rng.normal(0, 12, (2 * side, 2 * side, 3)).astype(np.int16)
    for _ in range(count):
        shape = (side // 16, side // 16, 3)
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        top, left = rng.integers(0, side, 2)
        pixels = (pixels + fine[top : top + side, left : left + side]).clip(0, 255)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def with_comment(data: bytes, comment: str) -> bytes:
    """The same picture in other bytes, at no cost of encoding one."""
    assert len(comment) == 8
    return data[:2] + b"\xff\xfe\x00\x0a" + comment.encode() + data[2:]


def make_pairs_file(path: str, file: int, count: int) -> None:
    """Writes pairs; one in fifty repeats the one before, one in fifty shows its picture."""
    rng = random.Random(file)
    rows: list[dict[str, Any]] = []
    for n, data in enumerate(pictures(file, 256, count)):
        rows.append({"image": data, "caption": sentence(rng, rng.randint(4, 20))})
        if n % 50 == 49:
            rows[-1] = rows[-2]
        elif n % 50 == 24:
            rows[-1]["image"] = with_comment(rows[-2]["image"], f"{file:04d}{n:04d}")
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_pages_file(path: str, file: int, count: int) -> None:
    """Writes an archive of pages and of the images that they show."""
    rng = random.Random(file)
    shown = list(pictures(file, 224, 60))
    with open(path, "wb") as archive:
        for n in range(count):
            blocks = ["<nav>" + "<a href=/x>Home</a>" * 12 + "</nav>", "<main><h1>Title</h1>"]
            for image in range(IMAGES_A_PAGE):
                blocks += [f"<p>{sentence(rng, 60)}.</p>" for _ in range(2)]
                url = f"http://x/{file}/{n}-{image}.jpg"
                blocks.append(f'<figure><img src="{url}"></figure>')
                data = shown[(n * 7 + image * 11) % len(shown)]
                data = with_comment(data, f"{file:03d}{n:04d}{image}")
                archive.write(warc_record(url, data, "image/jpeg"))
            body = f"<html><body>{''.join(blocks)}</main><footer>x</footer></body></html>"
            archive.write(warc_record(f"http://x/{file}/{n}", body.encode(), "text/html"))


def make_corpora(folder: Path, num_files: int, pairs_a_file: int, pages_a_file: int) -> None:
    """Writes the folders `pairs` and `pages`, and `few pairs` and `few pages` of two files each."""
    work: list[tuple[Any, tuple[str, int, int]]] = []
    for name, write, count, end in (
        ("pairs", make_pairs_file, pairs_a_file, "parquet"),
        ("pages", make_pages_file, pages_a_file, "warc.gz"),
    ):
        for part, files, records in ((name, num_files, count), (f"few {name}", 2, FEW)):
            (folder / part).mkdir()
            for file in range(files):
                path = str(folder / part / f"{file:04d}.{end}")
                work.append((write, (path, file, records)))
    with get_context("spawn").Pool(WORKERS) as pool:
        for result in [pool.apply_async(write, arguments) for write, arguments in work]:
            result.get()


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
