"""Files of lists as they are published, one batch of columns after the other.

Parquet                       any columns (LAION, COYO, OBELICS, OmniCorpus)
TSV, plain or packed          an address and a caption a line, in either order (CC3M, CC12M)
JSON lines, plain or packed   documents that name their images (MMC4)

A part of a file that cannot be read gives as many empty rows as it should have, which are counted
as rows without an address.
"""

from __future__ import annotations

import itertools
import logging
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.corpus import decompression, json_streams
from mm1_pipeline.corpus.files import SourceFile, SourceFiles
from mm1_pipeline.corpus.readers.base import is_files_fault
from mm1_pipeline.corpus.readers.interleaved_parquet import IMAGE_INFO, PLACE, SENTENCES, URL
from mm1_pipeline.corpus.records import dump_metadata
from mm1_pipeline.ground.rejects import storable

logger = logging.getLogger(__name__)

_PACKED = ("", ".gz", ".zst", ".zip")
PATTERNS = {
    "caption": ("*.parquet", *(f"*.tsv{packed}" for packed in _PACKED)),
    "interleaved": ("*.parquet", *(f"*.jsonl{packed}" for packed in _PACKED)),
}
"""Names of the files in a folder of lists, by `download.kind`."""
MATCHED_SCHEMA = pa.schema(
    [
        (SENTENCES, pa.list_(pa.string())),
        (
            IMAGE_INFO,
            pa.list_(
                pa.struct(
                    [
                        ("image_name", pa.string()),
                        (URL, pa.string()),
                        (PLACE, pa.int64()),
                        ("matched_sim", pa.float64()),
                    ]
                )
            ),
        ),
        ("url", pa.string()),
        ("metadata", pa.string()),
    ]
)
"""Columns of MMC4's JSON lines; `metadata` is a JSON object of all other fields."""

_WEB = ("http://", "https://")
_MAX_LINE_BYTES = 50_000_000
_COUNTED_BYTES = 16_000_000
_LINES_LOOKED_AT = 10
_LOST = b"\n(the rest of the list cannot be read)\n"


def read_head(
    config: DownloadConfig, files: SourceFiles, file: SourceFile
) -> tuple[pa.Schema, int]:
    """Columns of a file, and how many rows it has; of long files of lines, about how many.

    Raises:
        ValueError: the file cannot be read, or its lines are none of a list.
    """
    try:
        with files.open_aside(file) as stream:
            if _holds_lines(file, ".tsv"):
                return _pair_schema(config), _count_lines(stream, file)
            if _holds_lines(file, ".json"):
                _check_documents(stream, file)
                stream.seek(0)
                return MATCHED_SCHEMA, _count_lines(stream, file)
            with pq.ParquetFile(stream) as table:
                return table.schema_arrow, table.metadata.num_rows
    except Exception as error:
        if not is_files_fault(error) or isinstance(error, _WrongFieldsError):
            raise
        raise ValueError(
            f"download.lists: found {file.name}, which cannot be read ({type(error).__name__}: "
            f"{error}); expected a whole file. Fetch it again, or take it away."
        ) from None


def read_batches(
    config: DownloadConfig,
    files: SourceFiles,
    file: SourceFile,
    rows_at_once: int,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Reads a file a few rows at a time.

    Args:
        config: names the columns of pairs.
        files: the lists.
        file: the list to read, one of `files`.
        rows_at_once: at most so many rows a batch.
        columns: to read; None reads all.
    """
    with files.open(file) as stream:
        if _holds_lines(file, ".tsv"):
            rows: Iterator[dict[str, Any]] = _read_pairs(config, stream, file)
            schema = _pair_schema(config)
        elif _holds_lines(file, ".json"):
            rows, schema = _read_documents(stream, file), MATCHED_SCHEMA
        else:
            yield from _read_parquet(stream, file, rows_at_once, columns)
            return
        while some := list(itertools.islice(rows, rows_at_once)):
            yield pa.RecordBatch.from_pylist(some, schema=schema)


def _holds_lines(file: SourceFile, suffix: str) -> bool:
    name = file.name.lower()
    return any(name.endswith((suffix + packed, suffix + "l" + packed)) for packed in _PACKED)


def _pair_schema(config: DownloadConfig) -> pa.Schema:
    return pa.schema([(config.url_column, pa.string()), (config.caption_column, pa.string())])


def _read_parquet(
    stream: BinaryIO, file: SourceFile, rows_at_once: int, columns: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    """The rows of every row group; what cannot be read of one comes as empty rows."""
    with pq.ParquetFile(stream) as table:
        fields = [table.schema_arrow.field(name) for name in columns or table.schema_arrow.names]
        for group in range(table.num_row_groups):
            left = table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(
                    rows_at_once,
                    row_groups=[group],
                    columns=None if columns is None else [*columns],
                ):
                    left -= batch.num_rows
                    yield batch
            except Exception as error:
                if not is_files_fault(error):
                    raise
                _warn(file, left, error)
            while left > 0:
                size = min(left, rows_at_once)
                empty = [pa.nulls(size, field.type) for field in fields]
                yield pa.RecordBatch.from_arrays(empty, schema=pa.schema(fields))
                left -= size


def _read_pairs(
    config: DownloadConfig, stream: BinaryIO, file: SourceFile
) -> Iterator[dict[str, Any]]:
    """An address and a caption from every line that is not blank.

    CC3M puts the caption first, CC12M the address, both without a line of names. Where there is
    one, it says which is which; else the first field that is a web address is taken for it.
    """
    url_column, caption_column = config.url_column, config.caption_column
    places: tuple[int, int] | None = None
    for number, line in enumerate(_lines(stream, file)):
        fields = line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").split("\t")
        fields = [field.strip() for field in fields]
        if number == 0 and {url_column, caption_column} <= set(fields):
            places = fields.index(url_column), fields.index(caption_column)
        elif places is not None:
            url, caption = (fields[place] if place < len(fields) else None for place in places)
            yield {url_column: url, caption_column: caption}
        elif any(fields):
            urls = [field for field in fields if field.lower().startswith(_WEB)]
            captions = [field for field in fields if field not in urls[:1]]
            found = {url_column: urls[0] if urls else None}
            yield {**found, caption_column: captions[0] if captions else None}


def _read_documents(stream: BinaryIO, file: SourceFile) -> Iterator[dict[str, Any]]:
    """Documents in MMC4's layout; a line that is none gives an empty row."""
    values = json_streams.iterate_lines(_chunks(stream, file), _MAX_LINE_BYTES)
    for _, value in _to_the_damage(values, file, (0, None)):
        fields = value if isinstance(value, dict) else {}
        texts, infos = fields.get(SENTENCES), fields.get(IMAGE_INFO)
        is_text = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        rest = {n: v for n, v in fields.items() if n not in (SENTENCES, IMAGE_INFO, "url")}
        yield {
            SENTENCES: list(map(storable, texts)) if is_text and texts is not None else None,
            IMAGE_INFO: list(map(_to_info, infos)) if isinstance(infos, list) else None,
            "url": _text(fields.get("url")),
            "metadata": dump_metadata(rest) if rest else None,
        }


def _to_info(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    place, similarity = value.get(PLACE), value.get("matched_sim")
    is_place = isinstance(place, int) and abs(place) < 1 << 31
    is_number = isinstance(similarity, int | float) and abs(similarity) < 1e9
    return {
        "image_name": _text(value.get("image_name")),
        URL: _text(value.get(URL)),
        PLACE: place if is_place else None,
        "matched_sim": float(similarity) if is_number else None,  # pyright: ignore
    }


def _text(value: Any) -> str | None:
    return storable(value) if isinstance(value, str) else None


class _WrongFieldsError(ValueError):
    pass


def _check_documents(stream: BinaryIO, file: SourceFile) -> None:
    lines = json_streams.iterate_lines(_chunks(stream, file), _MAX_LINE_BYTES)
    found: set[str] = set()
    for _, value in itertools.islice(lines, _LINES_LOOKED_AT):
        found.update(value if isinstance(value, dict) else ())
    if not {SENTENCES, IMAGE_INFO} <= found:
        raise _WrongFieldsError(
            f"download.lists: found the fields {', '.join(sorted(found)) or 'of no object'} in "
            f"{file.name}, expected {SENTENCES} and {IMAGE_INFO}, the layout of MMC4."
        )


def _count_lines(stream: BinaryIO, file: SourceFile) -> int:
    """Lines of a file; of one that is long when it is unpacked, an estimate from its start."""
    num_lines, num_bytes, last = 0, 0, b""
    for chunk in _chunks(stream, file):
        num_lines += chunk.count(b"\n")
        num_bytes += len(chunk)
        last = chunk[-1:]
        if num_bytes >= _COUNTED_BYTES:
            return max(1, round(num_lines * file.size / max(1, min(stream.tell(), file.size))))
    return num_lines + (last not in (b"", b"\n"))


def _chunks(stream: BinaryIO, file: SourceFile) -> Iterator[bytes]:
    if not file.name.lower().endswith(".zip"):
        yield from decompression.read_chunks(stream, file.name.lower())
        return
    with zipfile.ZipFile(stream) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                yield from iter(lambda: member.read(1 << 20), b"")


def _lines(stream: BinaryIO, file: SourceFile) -> Iterator[bytes]:
    """Lines that are not blank; of one that is too long, its start."""
    pending = b""
    for chunk in _to_the_damage(_chunks(stream, file), file, _LOST):
        *whole, pending = (pending + chunk).split(b"\n")
        yield from filter(bytes.strip, whole)
        pending = pending[:_MAX_LINE_BYTES]
    if pending.strip():
        yield pending


def _to_the_damage(items: Iterator[Any], file: SourceFile, rest: Any) -> Iterator[Any]:
    """What a damaged file gives before the damage, and one thing for the rest, to be counted."""
    try:
        yield from items
    except Exception as error:
        if not is_files_fault(error):
            raise
        _warn(file, None, error)
        yield rest


def _warn(file: SourceFile, lost: int | None, error: Exception) -> None:
    what = "the rest" if lost is None else f"{lost} rows"
    logger.warning("%s: %s cannot be read: %s: %s", file.name, what, type(error).__name__, error)
