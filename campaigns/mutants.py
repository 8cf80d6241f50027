"""Damages files of every kind where their structure hurts most, and looks whether it holds.

    python campaigns/mutants.py                      # 10,000 mutants over all kinds
    python campaigns/mutants.py --results=build/mutants.jsonl  # killed itself, it goes on
    python campaigns/mutants.py --count 500 --kinds tar warc
    python campaigns/mutants.py --kinds tar --only 4711    # one mutant again, with its traceback

A mutant holds if the reader ends within its budgets, raises nothing but an error that names the
file (or the parameter that names it), counts every unit once, and keeps the whole file beside it.
Mutant N of a kind and seed is the same on every machine. The last line is one JSON object: tried
and held by kind, and the numbers of those that did not hold. Inputs are the ones that tests make.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import multiprocessing
import queue
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT / "tests" / name) for name in (".", "unit/corpus", "unit/evaluation", "unit/models")
]

SECONDS_A_MUTANT = 10
"""Of computing, so that a busy machine is no fault of a reader's."""
SECONDS_TO_COME_BACK = 90
"""By the clock: for what waits, or computes elsewhere."""
BYTES_A_MUTANT = 2_000_000_000
RECORDS = 4
"""In every file."""

ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 2**70, 1e400, float("nan"), "", "\ud800", "x" * 70_000, [], {}, [[]], [None],
    {"a": None}, "../../etc/passwd", "\0", "\udce9", 0.5, [{}] * 3,
)  # fmt: skip
ODD_BYTES = (
    b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"[" * 4_000, b"../../..", b"\r\n\r\n",
    b"99999999999999999999", b"-1", b"<div>" * 12,
)  # fmt: skip


# --- Damage -------------------------------------------------------------------------------------


def damage_bytes(data: bytes, rng: random.Random, start: int = 0, end: int | None = None) -> bytes:
    """Flips, cuts, deletes, repeats or replaces a few bytes of a range."""
    end = len(data) if end is None else end
    if end <= start:
        return data
    place, size = rng.randrange(start, end), rng.choice((1, 4, 32, 600))
    match rng.randrange(6):
        case 0:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 1:
            return data[:place]
        case 2:
            return data[:place] + data[place + size :]
        case 3:
            return data[:place] + data[place : place + size] + data[place:]
        case 4:
            odd = rng.choice(ODD_BYTES)
            return data[:place] + odd + data[place + len(odd) :]
        case _:
            return data[:place] + rng.randbytes(size) + data[place:]


def damage_json(value: Any, rng: random.Random) -> Any:
    """Puts something odd in the place of one value, name or entry of a JSON tree."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    if isinstance(value, dict | list):
        collect(value)
    if not places or rng.random() < 0.02:
        return rng.choice(ODD_VALUES)
    node, key = rng.choice(places)
    match rng.randrange(5):
        case 0 if isinstance(node, dict):
            del node[key]
        case 1 if isinstance(node, dict):
            node[rng.choice(("", "x", "\ud800", str(key).upper()))] = node.pop(key)
        case 2 if isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        case 3:
            deep: Any = node[key]
            for _ in range(rng.choice((1, 3, 600))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            node[key] = deep
        case _:
            node[key] = rng.choice(ODD_VALUES)
    return value


def dump(value: Any) -> bytes:
    """JSON of a damaged tree, however deep it is."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return json.dumps(value).encode()
    finally:
        sys.setrecursionlimit(limit)


def damage_json_text(data: bytes, rng: random.Random) -> bytes:
    """Damages the tree of a JSON text, or the text."""
    if rng.random() < 0.25:
        return damage_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        try:
            data = dump(damage_json(json.loads(data), rng))
        except (ValueError, RecursionError):
            break
    return data


def damage_json_lines(data: bytes, rng: random.Random) -> bytes:
    """Damages one line."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = damage_json_text(lines[place], rng)
    return b"\n".join(lines)


def damage_tar(data: bytes, rng: random.Random) -> bytes:
    """Changes fields of a member's header (with a right checksum), or puts headers before it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        place = rng.choice([member.offset for member in archive])
    header = bytearray(data[place : place + 512])
    octal = (b"77777777777\0", b"-1\0", b"zzz\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\0" * 12)
    match rng.randrange(8):
        case 0:
            header[124:136] = rng.choice(octal).ljust(12, b"\0")[:12]
        case 1:
            name = rng.choice((b"\xe9\xff.jpg", b"../x.jpg", b"a.b.c.jpg", b"._0.jpg", b"x" * 100))
            header[0:100] = name.ljust(100, b"\0")
        case 2:
            header[156:157] = bytes([rng.choice(b"0123456 7LKxgSDVMX\0")])
        case 3:
            field = rng.choice(((100, 108), (108, 116), (136, 148), (257, 265), (345, 500)))
            header[slice(*field)] = rng.randbytes(field[1] - field[0])
        case 4:
            return data[:place] + _pax(rng) + data[place:]
        case 5:
            long_name = tarfile.TarInfo("././@LongLink")
            long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, rng.choice((5, 600, 1 << 40))
            odd = long_name.tobuf() + rng.randbytes(512)
            return data[:place] + odd * rng.choice((1, 2, 500)) + data[place:]
        case 6:
            return data + rng.choice((data, rng.randbytes(700), b"\0" * 100))
        case _:
            return damage_bytes(data, rng)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
    return data[:place] + bytes(header) + data[place + 512 :]


def _pax(rng: random.Random) -> bytes:
    """An extended header with a hostile record."""
    body = rng.choice(
        (b"0 path=x\n", b"-5 path=x\n", b"999999 path=x\n", b"abc path=x\n", b"12 size=-1\n",
         b"22 size=99999999999999\n", b"30 GNU.sparse.major=1\n", b"25 GNU.sparse.map=a,b,c\n",
         b"13 path=\xff\xfe\n", b"20 mtime=1e99999999\n", b"19 GNU.sparse.size=\n",
         b"26 GNU.sparse.numblocks=9\n", b"30 hdrcharset=BINARY\n" * 40)
    )  # fmt: skip
    info = tarfile.TarInfo("p")
    info.type, info.size = rng.choice((tarfile.XHDTYPE, tarfile.XGLTYPE)), len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


def damage_warc(data: bytes, rng: random.Random) -> bytes:
    """Damages the packed bytes, or one record under its compression."""
    if rng.random() < 0.3:
        return damage_bytes(data, rng)
    records = _members(data)
    place = rng.randrange(len(records))
    record = records[place]
    swaps = (
        (b"Content-Length: ", b"Content-Length: -"), (b"Content-Length: ", b"Content-Length: 9"),
        (b"WARC/1.0", b"WARC/7"), (b"\r\n", b"\n"), (b"charset=utf-8", b"charset=punycode"),
        (b"charset=utf-8", b"charset=\xff"), (b"Content-Type: text/html", b"X: y"),
        (b"HTTP/1.1 200 OK", b"HTTP/1.1 2x"), (b"-Target-URI: http://", b"-Target-URI: \xe9"),
        (b"Content-Type: text", b"Content-Encoding: br\r\nContent-Type: text"),
        (b"Content-Type: text", b"Transfer-Encoding: chunked\r\nContent-Type: text"),
        (b"response", b"revisit"), (b"<p>", b"<div>" * 3_000), (b"\r\n\r\n", b""),
    )  # fmt: skip
    records[place] = (
        record.replace(*rng.choice(swaps), 1) if rng.random() < 0.7 else damage_bytes(record, rng)
    )
    return b"".join(_pack(part) for part in records)


def _members(data: bytes) -> list[bytes]:
    """What the members of a gzip file hold."""
    found: list[bytes] = []
    while data:
        frame = zlib.decompressobj(wbits=31)
        found.append(frame.decompress(data))
        data = frame.unused_data
    return found


def _pack(data: bytes) -> bytes:
    frame = zlib.compressobj(wbits=31)
    return frame.compress(data) + frame.flush()


def damage_parquet(data: bytes, rng: random.Random) -> bytes:
    """Damages the footer, its length, or the pages."""
    (footer,) = struct.unpack("<I", data[-8:-4])
    match rng.randrange(4):
        case 0:
            length = rng.choice((0, 1, footer * 2, 2**31, 2**32 - 1))
            return data[:-8] + struct.pack("<I", length) + data[-4:]
        case 1 | 2:
            return damage_bytes(data, rng, len(data) - 8 - footer, len(data) - 8)
        case _:
            return damage_bytes(data, rng)


def damage_png(data: bytes, rng: random.Random) -> bytes:
    """Damages a chunk and mends its checksum, or adds one."""
    chunks: list[tuple[bytes, bytes]] = []
    place = 8
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    match rng.randrange(4):
        case 0:
            chunks[number] = (kind, damage_bytes(body, rng) if body else b"x")
        case 1:
            chunks.insert(number, chunks[number])
        case 2:
            extra = rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"tRNS", b"gAMA"))
            swollen = zlib.compress(bytes(rng.choice((10, 10_000_000))))
            chunks.insert(1, (extra, b"a\0\0" + swollen))
        case _:
            del chunks[number]
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:8] + b"".join(parts)


def damage_jpeg(data: bytes, rng: random.Random) -> bytes:
    """Damages one segment before the scan: its length, its content, or that it is there once."""
    places, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        places.append(place)
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
    place = rng.choice([*places, place])
    length = struct.unpack(">H", data[place + 2 : place + 4])[0]
    segment = data[place : place + 2 + length]
    match rng.randrange(4):
        case 0:
            return data[: place + 2] + rng.randbytes(2) + data[place + 4 :]
        case 1:
            return data[:place] + segment * rng.choice((2, 40)) + data[place + len(segment) :]
        case 2:
            return data[:place] + data[place + len(segment) :]
        case _:
            return damage_bytes(data, rng, place, place + len(segment))


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damages the header's tree, its length, or the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    match rng.randrange(4):
        case 0:
            odd = rng.choice((0, 7, length * 2, 2**40, 2**64 - 1))
            return struct.pack("<Q", odd) + data[8:]
        case 1 | 2:
            header = dump(damage_json(json.loads(data[8 : 8 + length]), rng))
            return struct.pack("<Q", len(header)) + header + data[8 + length :]
        case _:
            return damage_bytes(data, rng)


def damage_gguf(data: bytes, rng: random.Random) -> bytes:
    """Damages the metadata, which is the beginning."""
    return damage_bytes(data, rng, 0, min(len(data), rng.choice((64, 2_000, len(data)))))


# --- What must hold -----------------------------------------------------------------------------


class MutantError(AssertionError):
    """What a mutant made go wrong."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: Writes a whole one, and what belongs to it, into a folder; gives its path.
        damage: Makes a mutant of its content.
        check: Reads the folder with the mutant in it; raises whatever is wrong.
    """

    make: Callable[[Path], Path]
    damage: Callable[[bytes, random.Random], bytes]
    check: Callable[[Path, Path], None]


def _ingest(source_format: str, neighbour: bool, folder: Path, file: Path) -> None:
    """Ingests the folder: every unit is counted, and the whole file beside it is kept."""
    from corpus_builders import NAME, run

    from mm1_pipeline.config.source_formats import SourceFormat

    kind = SourceFormat(source_format).layout.kind.value
    output = folder.with_name("out")
    shutil.rmtree(output, ignore_errors=True)
    top = {"limits": {"max_line_bytes": 100_000}}
    try:
        result = run(output, kind, source_format, folder, top=top)
    except ValueError as error:
        if f"ingest.sources.{NAME}." in str(error):
            return  # a column of another name is a wrong parameter, not damage
        raise
    report = result.report
    if report["read"] != report["kept"] + sum(report["rejected"].values()):
        raise MutantError(f"counts: {report}")
    if neighbour:
        whole = [record.key for record in result.records if record.key.startswith("whole")]
        # Where the mutant repeats a record, the whole file may come second.
        lost = Counter(row["reason"] for row in result.quarantine if row["key"].startswith("whole"))
        repeated = sum(n for why, n in lost.items() if "duplicate" in why)
        if len(whole) + repeated < RECORDS:
            raise MutantError(
                f"the whole file beside it lost records: {len(whole)} kept, {dict(lost)}"
            )


def _make_source(source_format: str, folder: Path) -> Path:
    """A good source with a second file, whose records are others, where the format has several."""
    import test_corpus_fuzz
    from corpus_builders import (
        page,
        picture,
        sample,
        warc_record,
        write_bytes,
        write_json,
        write_parquet,
        write_tar,
        write_warc,
    )

    name, _ = test_corpus_fuzz.make_good(folder, source_format)
    numbers = range(100, 100 + RECORDS)
    match source_format:
        case "img2dataset":
            members = [m for n in numbers for m in sample(f"{n}", picture(n), f"a {n}", url="u")]
            write_tar(folder / "whole.tar", members)
        case "image_parquet":
            rows = [{"image": picture(n), "caption": f"caption {n}"} for n in numbers]
            write_parquet(folder / "whole.parquet", rows)
        case "interleaved_parquet":
            rows = [{"texts": [f"text {n}", None], "images": [None, picture(n)]} for n in numbers]
            write_parquet(folder / "whole.parquet", rows, test_corpus_fuzz.DOCUMENTS)
        case "synth_dog":
            truth = [json.dumps({"gt_parse": {"text_sequence": f"words {n}"}}) for n in numbers]
            rows = [
                {"image": {"bytes": picture(n)}, "ground_truth": text}
                for n, text in zip(numbers, truth, strict=True)
            ]
            write_parquet(folder / "whole.parquet", rows)
        case "jsonl":
            lines = [json.dumps({"caption": f"text {n}"}) for n in numbers]
            write_bytes(folder / "whole.jsonl", "\n".join(lines).encode())
        case "warc_html":
            pages = [page(f'<p>text {n}</p><img src="http://w/{n}.jpg">') for n in numbers]
            records = [
                record
                for n, body in zip(numbers, pages, strict=True)
                for record in (
                    warc_record(f"http://w/{n}", body),
                    warc_record(f"http://w/{n}.jpg", picture(n), "image/jpeg"),
                )
            ]
            write_warc(folder / "whole.warc.gz", records)
        case "llava":
            entries = [
                {
                    "id": n,
                    "image": "1.jpg",
                    "conversations": [
                        {"from": "human", "value": f"<image>q {n}"},
                        {"from": "gpt", "value": f"a {n}"},
                    ],
                }
                for n in numbers
            ]
            write_json(folder / "whole.json", entries)
    return folder / name


WITH_NEIGHBOUR = (
    "img2dataset", "image_parquet", "interleaved_parquet", "synth_dog", "jsonl", "warc_html",
    "llava",
)  # fmt: skip


def _make_image(kind: str, folder: Path) -> Path:
    from corpus_builders import noise, write_bytes

    return write_bytes(folder / f"image.{kind.lower()}", noise(kind=kind))


def _check_image(_folder: Path, file: Path) -> None:
    """What is checked cheaply and what is decoded agree on size."""
    from mm1_pipeline.corpus.images import check_image, open_image
    from mm1_pipeline.ground.rejects import Rejected

    data = file.read_bytes()
    with contextlib.suppress(Rejected):
        size = check_image(data)
        with contextlib.suppress(Rejected):
            if (found := open_image(data).size) != size:
                raise MutantError(f"checked as {size}, decoded as {found}")


def _names_the_file(read: Callable[[], Any], *paths: Path) -> None:
    """Whatever cannot be read is refused by an error that names the file."""
    try:
        read()
    except ValueError as error:
        if not any(str(path) in str(error) for path in paths):
            raise


@cache
def _model() -> Any:
    from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
    from mm1_pipeline.models.initialization import build_model

    vision = VisionConfig(
        image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16
    )
    decoder = DecoderConfig(
        vocab_size=300, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=32
    )
    config = MM1Config(
        vision=vision, connector=ConnectorConfig(num_tokens=4, num_blocks=1), decoder=decoder
    )
    return build_model(config, 3, seed=0)


def _make_model(suffix: str, folder: Path) -> Path:
    from mm1_pipeline.models.checkpoint import save_model

    save_model(_model(), folder)
    return next(folder.glob(f"*{suffix}"))


def _check_model(folder: Path, file: Path) -> None:
    from mm1_pipeline.models.checkpoint import load_model

    _names_the_file(lambda: load_model(folder), file, folder)


def _make_gguf(folder: Path) -> Path:
    import gguf
    from test_import_gguf import write_gguf

    return write_gguf(folder / "tiny.gguf", gguf.GGMLQuantizationType.F32, tied=True)


def _check_gguf(_folder: Path, file: Path) -> None:
    from mm1_pipeline.models.convert.gguf import import_gguf
    from mm1_pipeline.streams.tokenizer import Tokenizer

    _names_the_file(lambda: import_gguf(file), file)
    _names_the_file(lambda: Tokenizer.load(file), file)


def _make_tokenizer(folder: Path) -> Path:
    from mm1_pipeline.config.shard import TokenizerConfig
    from mm1_pipeline.streams.tokenizer import train_tokenizer

    train_tokenizer(TokenizerConfig(vocab_size=300), ["red dog"] * 9, folder)
    return folder / "tokenizer.json"


def _check_tokenizer(folder: Path, file: Path) -> None:
    from mm1_pipeline.streams.tokenizer import Tokenizer

    _names_the_file(lambda: Tokenizer.load(folder).encode("red dog"), file, folder)


_ROLES = ".roles.json"
"""Which files a benchmark consists of, beside them."""


def _make_benchmark(task: str, folder: Path) -> Path:
    import benchmark_files

    by_role = benchmark_files.WRITERS[task](folder)
    relative = {role: str(Path(path).relative_to(folder)) for role, path in by_role.items()}
    (folder / _ROLES).write_text(json.dumps(relative))
    paths = [Path(path) for path in by_role.values()]
    files = [path for path in paths if path.is_file()]
    return min(files, key=lambda path: path.stat().st_size) if files else _first_file(paths[0])


def _first_file(folder: Path) -> Path:
    suffixes = (".parquet", ".txt", ".tsv", ".json")
    return next(path for path in sorted(folder.rglob("*")) if path.suffix in suffixes)


def _damage_benchmark(data: bytes, rng: random.Random) -> bytes:
    if data[:4] == b"PAR1":
        return damage_parquet(data, rng)
    if data[:1] in b"[{":
        return damage_json_lines(data, rng) if b"}\n{" in data else damage_json_text(data, rng)
    return damage_bytes(data, rng)


def _check_benchmark(task: str, folder: Path, _file: Path) -> None:
    """Every row is an item, asked or failed, or the error names the task or a file of it."""
    from pydantic import TypeAdapter

    from mm1_pipeline.config.evaluation import TaskConfig
    from mm1_pipeline.evaluation.tasks import load_task

    roles = json.loads((folder / _ROLES).read_text())
    files = {role: str(folder / name) for role, name in roles.items()}
    try:
        config = TypeAdapter(TaskConfig).validate_python({"task": task, "files": files})
        load_task(task, config, folder, seed=0)
    except ValueError as error:
        if f"tasks.{task}" not in str(error) and str(folder) not in str(error):
            raise


def kinds() -> dict[str, Kind]:
    """All kinds of files that come from outside, by name."""
    import benchmark_files

    from mm1_pipeline.config.ingest import SourceFormat

    binary = {
        "img2dataset": ("tar", damage_tar),
        "warc_html": ("warc", damage_warc),
        "image_parquet": ("parquet", damage_parquet),
        "interleaved_parquet": ("parquet_documents", damage_parquet),
        "synth_dog": ("parquet_synth_dog", damage_parquet),
        "jsonl": ("jsonl", damage_json_lines),
    }
    found: dict[str, Kind] = {}
    for source_format in (item.value for item in SourceFormat):
        name, damage = binary.get(source_format, (f"json_{source_format}", damage_json_text))
        check = partial(_ingest, source_format, source_format in WITH_NEIGHBOUR)
        found[name] = Kind(partial(_make_source, source_format), damage, check)
    for kind, damage in (("PNG", damage_png), ("JPEG", damage_jpeg)):
        found[kind.lower()] = Kind(partial(_make_image, kind), damage, _check_image)
    for kind in ("WEBP", "GIF", "TIFF", "BMP", "AVIF"):
        found[kind.lower()] = Kind(partial(_make_image, kind), damage_bytes, _check_image)
    found["safetensors"] = Kind(
        partial(_make_model, ".safetensors"), damage_safetensors, _check_model
    )
    found["model_json"] = Kind(partial(_make_model, ".json"), damage_json_text, _check_model)
    found["gguf"] = Kind(_make_gguf, damage_gguf, _check_gguf)
    found["tokenizer_json"] = Kind(_make_tokenizer, damage_json_text, _check_tokenizer)
    for task in sorted(benchmark_files.WRITERS):
        check = partial(_check_benchmark, task)
        found[f"task_{task}"] = Kind(partial(_make_benchmark, task), _damage_benchmark, check)
    return found


# --- Running ------------------------------------------------------------------------------------


def run_mutant(kind: Kind, name: str, number: int, folder: Path, seed: int = 0) -> None:
    """Makes mutant `number` and reads it within the budgets.

    Raises:
        Exception: Whatever did not hold.
    """
    good, work = folder / "good", folder / "work" / "source"
    is_first = not good.exists()
    if is_first:
        good.mkdir(parents=True)
        kind.make(good)
    shutil.rmtree(work.parent, ignore_errors=True)
    shutil.copytree(good, work)
    file = _main_file(kind, good, work)
    if is_first:  # the whole file holds, and what reads it is imported
        kind.check(work, file)
        shutil.rmtree(work.parent)
        shutil.copytree(good, work)
    rng = random.Random(f"{seed}/{name}/{number}" if seed else f"{name}/{number}")
    file.write_bytes(kind.damage(file.read_bytes(), rng))

    def too_slow(*_: Any) -> None:
        raise MutantError(
            f"took longer than {SECONDS_A_MUTANT} s, or {SECONDS_TO_COME_BACK} s by the clock"
        )

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGPROF, too_slow)
    signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_PROF, SECONDS_A_MUTANT)
    signal.alarm(SECONDS_TO_COME_BACK)
    try:
        kind.check(work, file)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if grown > BYTES_A_MUTANT:
        raise MutantError(f"took {grown:,} bytes of memory")


_MAIN_FILES: dict[Path, Path] = {}


def _main_file(kind: Kind, good: Path, work: Path) -> Path:
    """The file of a copied folder that is damaged."""
    if good not in _MAIN_FILES:
        again = good.with_name("again")
        shutil.rmtree(again, ignore_errors=True)  # of a mutant whose making failed
        again.mkdir()
        _MAIN_FILES[good] = kind.make(again).relative_to(again)
        shutil.rmtree(again)
    return work / _MAIN_FILES[good]


def _next(jobs: Any) -> tuple[str, int] | None:
    """The next mutant; None at the end, or when the campaign was killed."""
    parent = multiprocessing.parent_process()
    while parent is None or parent.is_alive():
        with contextlib.suppress(queue.Empty):
            return jobs.get(timeout=5)
    return None


def _work(seed: int, jobs: Any, results: Any) -> None:
    """A worker: one mutant after the other, each announced before it is tried."""
    logging.disable(logging.CRITICAL)
    known = kinds()
    with tempfile.TemporaryDirectory() as folder:
        for name, number in iter(partial(_next, jobs), None):
            results.put((name, number, "started"))
            try:
                # What readers print and warn is theirs; nothing of it is wanted here.
                with contextlib.redirect_stderr(io.StringIO()):
                    run_mutant(known[name], name, number, Path(folder) / name, seed)
            except BaseException as error:
                results.put((name, number, f"{type(error).__name__}: {error}"[:300]))
            else:
                results.put((name, number, None))


def campaign(
    todo: list[tuple[str, int]], workers: int, seed: int
) -> Iterator[tuple[str, int, str | None]]:
    """Tries mutants in processes of their own; one that never comes back is killed and told.

    Yields:
        Kind, number, and what did not hold; None where all did.
    """
    context = multiprocessing.get_context("spawn")
    while todo:
        jobs, results = context.Queue(), context.Queue()
        for job in todo:
            jobs.put(job)
        processes = [
            context.Process(target=_work, args=(seed, jobs, results)) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        left, running = set(todo), dict[tuple[str, int], float]()
        while left:
            try:
                name, number, outcome = results.get(timeout=1)
            except queue.Empty:
                alive = all(process.is_alive() for process in processes)
                starts = running.values()
                if alive and not any(
                    time.monotonic() - start > 2 * SECONDS_TO_COME_BACK for start in starts
                ):
                    continue
                break
            if outcome == "started":
                running[name, number] = time.monotonic()
                continue
            running.pop((name, number), None)
            left.discard((name, number))
            yield name, number, outcome
        if left:
            # Those at work are tried no more; whoever was innocent among them is said too.
            for process in processes:
                process.kill()
            left -= running.keys()
            for job in running:
                yield (*job, "its process died or hung")
            if not running and not any(process.is_alive() for process in processes):
                raise RuntimeError("The processes died before they tried a mutant.")
        else:
            for _ in processes:
                jobs.put(None)
        for process in processes:
            process.join()
        todo = [job for job in todo if job in left]


def main() -> int:
    """Runs a campaign; 1 if a mutant did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="mutants over all kinds")
    parser.add_argument("--kinds", nargs="*", default=None, help="some kinds only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="other mutants of the same kinds")
    parser.add_argument("--only", type=int, default=None, help="one mutant, with its traceback")
    parser.add_argument("--results", type=Path, default=None, help="those tried; goes on there")
    options = parser.parse_args()
    known = kinds()
    names = [name for name in known if not options.kinds or name in options.kinds]
    if not names:
        parser.error(f"--kinds: found {options.kinds}, expected some of {', '.join(known)}")
    if options.only is not None:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    run_mutant(known[name], name, options.only, Path(folder) / name, options.seed)
                except BaseException:
                    traceback.print_exc()
                else:
                    print(f"{name} {options.only}: held")
        return 0
    wanted = [(names[n % len(names)], n // len(names)) for n in range(options.count)]
    outcomes: dict[tuple[str, int], str | None] = {}
    if options.results is not None and options.results.exists():
        for line in options.results.read_text().splitlines():
            with contextlib.suppress(ValueError):  # half a line, by a campaign that was killed
                seed, name, number, wrong = json.loads(line)
                if seed == options.seed:
                    outcomes[name, number] = wrong
    todo = [mutant for mutant in wanted if mutant not in outcomes]
    start = time.monotonic()
    finished = campaign(todo, options.workers, options.seed)
    for done, (name, number, wrong) in enumerate(finished, 1):
        outcomes[name, number] = wrong
        if options.results is not None:
            with options.results.open("a") as file:
                file.write(json.dumps([options.seed, name, number, wrong]) + "\n")
        if wrong is not None:
            print(f"{name} {number}: {wrong}", flush=True)
        if done % 500 == 0:
            rate = done / (time.monotonic() - start)
            left = (len(todo) - done) / rate
            print(f"{done:,} of {len(todo):,}, {rate:.1f} a second, {left:,.0f} s left", flush=True)
    tried, held, failures = Counter[str](), Counter[str](), dict[str, list[str]]()
    for name, number in wanted:
        wrong = outcomes[name, number]
        tried[name] += 1
        held[name] += wrong is None
        if wrong is not None:
            failures.setdefault(name, []).append(f"{number}: {wrong}")
    content = {
        "tried": sum(tried.values()),
        "held": sum(held.values()),
        "by_kind": {name: [held[name], tried[name]] for name in sorted(tried)},
        "failures": failures,
    }
    print(json.dumps(content))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
