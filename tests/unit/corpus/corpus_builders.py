"""Makes tiny raw sources, good and bad, and runs `ingest` on them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import Record, read_records

NAME = "source"


def picture(
    seed: int = 0, size: tuple[int, int] = (120, 100), kind: str = "JPEG", **options
) -> bytes:
    """An encoded image whose content depends on the seed."""
    image = Image.new("RGB", size, ((37 * seed) % 256, (91 * seed) % 256, 200))
    image.putpixel((0, 0), (seed % 256, seed // 256, 0))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pattern(
    seed: int = 0, size: tuple[int, int] = (160, 120), kind: str = "JPEG", **options
) -> bytes:
    """An encoded image with large shapes that depend on the seed: no two seeds look alike."""
    buffer = io.BytesIO()
    draw_pattern(seed, size).save(buffer, kind, **options)
    return buffer.getvalue()


def draw_pattern(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """The picture of `pattern`."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def noise(size: tuple[int, int] = (120, 100), kind: str = "JPEG") -> bytes:
    """An encoded image with enough content to be cut in the middle."""
    image = Image.effect_noise(size, 90).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write_tar(path: Path, members: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    """A tar of the given members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, data = member
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, data: bytes | None, caption: str | None, /, **metadata: Any) -> list:
    """Members of one img2dataset sample."""
    members = []
    if data is not None:
        members.append((f"{key}.jpg", data))
    if caption is not None:
        members.append((f"{key}.txt", caption.encode()))
    if metadata:
        members.append((f"{key}.json", json.dumps(metadata).encode()))
    return members


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def warc_record(
    url: str,
    body: bytes,
    content_type: str = "text/html; charset=utf-8",
    status: str = "200 OK",
    headers: dict[str, str] | None = None,
    kind: str = "response",
) -> bytes:
    """One record of a web archive."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    payload = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\n"
        "WARC-Date: 2020-01-01T00:00:00Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload + b"\r\n\r\n"


def page(body: str, title: str = "T") -> bytes:
    """An HTML page."""
    return f"<html><head><title>{title}</title></head><body>{body}</body></html>".encode()


def write_warc(path: Path, records: list[bytes], *, packed: bool = True) -> Path:
    """A web archive, by default with every record packed on its own."""
    data = b"".join(gzip.compress(record, mtime=0) if packed else record for record in records)
    return write_bytes(path, data)


@dataclass
class Result:
    """What ingesting one source gave."""

    report: dict[str, Any]
    records: list[Record]
    quarantine: list[dict[str, str]]

    @property
    def rejected(self) -> dict[str, int]:
        return self.report["rejected"]

    @property
    def texts(self) -> list[str]:
        return ["|".join(s.text or "[image]" for s in r.segments) for r in self.records]

    def rejected_keys(self, reason: str, unit: str = "record") -> list[str]:
        rows = (row for row in self.quarantine if row["unit"] == unit)
        return [row["key"] for row in rows if row["reason"] == reason]


PLAIN: dict[str, Any] = {
    "text": {"defaults": False},
    "captions": {"defaults": False},
    "deduplication": {"near": None, "perceptual": False, "max_caption_occurrences": None},
}
"""A source that is held to no rule made for the web: tests of other things have tiny texts."""


def make_config(sources: dict[str, dict[str, Any]], **options: Any) -> IngestConfig:
    return TypeAdapter(IngestConfig).validate_python({"sources": sources, **options})


def run(
    output_dir: Path, kind: str, source_format: str, path: Path | str, *, top: Any = None, **options
) -> Result:
    """Ingests one source and reads everything back."""
    source = {**PLAIN, "kind": kind, "format": source_format, "path": str(path), **options}
    rules = (top or {}).get("deduplication", {})
    source["deduplication"] = {**source["deduplication"], **rules}
    report = ingest(make_config({NAME: source}, **(top or {})), output_dir)["sources"][NAME]
    table = pq.read_table(output_dir / "quarantine" / f"{NAME}.parquet")
    return Result(report, list(read_records(output_dir, NAME)), table.to_pylist())
