"""Tables of documents that name their images, to the same tables with the images' bytes.

00000.parquet        the rows of a list: images' bytes where there were addresses
00000_images.jsonl   every image of every row, with its status and the reason of a failure
00000_stats.json     counts; written last: its presence means that the shard is finished

A document keeps what it has when some or all of its images fail. Two layouts are told apart by
their columns, as in `corpus.readers.interleaved_parquet`, which reads what is written here:

`texts` and `images` (OBELICS, OmniCorpus): the addresses of `images` move to `image_urls`.
`text_list` and `image_info` (MMC4): the structs get a field `bytes` beside `raw_url`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.corpus.download.failures import Failed
from mm1_pipeline.corpus.download.fetch import FetchedImage
from mm1_pipeline.corpus.download.lists import Fetch, Outcome, texts
from mm1_pipeline.corpus.download.shards import (
    DOCUMENTS,
    IMAGES_TABLE,
    PART,
    describe,
    publish_shard,
    shard_name,
)
from mm1_pipeline.corpus.download.tables import read_batches
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.corpus.readers import interleaved_parquet as layouts
from mm1_pipeline.corpus.readers.parquet import is_image_type
from mm1_pipeline.ground.rejects import Reason

_ROWS_AT_ONCE = 64
_ROWS_PER_GROUP = 256
_GROUP_BYTES = 64_000_000
"""Bytes of images from which on a group of rows is written: what waits in memory."""
_LISTS = (pa.types.is_list, pa.types.is_large_list)
_STRINGS = (pa.types.is_string, pa.types.is_large_string)
_BYTES = "bytes"


class ListedDocument(NamedTuple):
    """A row of a list.

    Attributes:
        row: The row itself.
        places: Of its images in their list.
        urls: Of its images.
    """

    row: pa.RecordBatch
    places: tuple[int, ...]
    urls: tuple[str | None, ...]


@dataclass(frozen=True)
class DocumentLists:
    """Lists of documents.

    Args:
        config: What is read.
        files: Lists of documents: Parquet or JSON lines, in the order of their rows.
    """

    config: DownloadConfig
    files: SourceFiles
    unit: str = "documents"
    suffixes: tuple[str, ...] = (DOCUMENTS, IMAGES_TABLE)

    def check(self, names: str, schema: pa.Schema) -> None:
        """Refuses a list that has no addresses to fetch.

        Raises:
            ValueError: With what was found.
        """
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        if _is_matched(schema):
            kind = schema.field(layouts.IMAGE_INFO).type
            fields = _fields(kind.value_type) if _is(kind, *_LISTS) else {}
            if any(is_image_type(fields[name]) for name in layouts.CONTENTS if name in fields):
                self._refuse_bytes(names)
            fits = layouts.URL in fields and _is(fields[layouts.URL], *_STRINGS)
            expected = f"{layouts.IMAGE_INFO}, lists of structs with the text {layouts.URL}"
        else:
            kind = schema.field(layouts.IMAGES).type if layouts.IMAGES in schema.names else None
            fits = kind is not None and _is(kind, *_LISTS) and _is(kind.value_type, *_STRINGS)
            if kind is not None and _is(kind, *_LISTS) and is_image_type(kind.value_type):
                self._refuse_bytes(names)
            expected = f"{layouts.IMAGES}, lists of the images' addresses"
        if not fits:
            raise ValueError(
                f"download.lists: found the columns {found} in {names}, expected {expected}."
            )

    def _refuse_bytes(self, name: str) -> None:
        raise ValueError(
            f"download.lists: found the images' bytes in {name}, expected their addresses; a "
            "source of format interleaved_parquet reads it as it is."
        )

    def read(self, limit: int | None) -> Iterator[list[ListedDocument]]:
        """The rows of each shard; none holds rows of two files, whose columns may differ."""
        left = limit
        for file in self.files:
            shard: list[ListedDocument] = []
            for batch in read_batches(self.config, self.files, file, _ROWS_AT_ONCE):
                for document in _documents(batch):
                    if left == 0:
                        break
                    left = None if left is None else left - 1
                    shard.append(document)
                    if len(shard) == self.config.documents_per_shard:
                        yield shard
                        shard = []
            if shard:
                yield shard

    def num_images(self, row: ListedDocument) -> int:
        """How much there is to fetch."""
        return max(1, len(row.urls))

    async def fetch(self, row: ListedDocument, fetch: Fetch) -> list[Outcome]:
        """Fetches a document's images together; an address that it names twice, once."""
        allowed = self.config.max_images_per_document
        wanted = list(dict.fromkeys(row.urls[:allowed]))
        found = dict(zip(wanted, await asyncio.gather(*map(fetch, wanted)), strict=True))
        too_many = Failed(Reason.TOO_MANY_IMAGES, f"allowed {allowed} in a document")
        rest = len(row.urls) - len(row.urls[:allowed])
        return [*(found[url] for url in row.urls[:allowed]), *([too_many] * rest)]

    def open(self, folder: Path, number: int, identity: str) -> DocumentShard:
        """Writes one shard."""
        return DocumentShard(folder, number, identity)


class DocumentShard:
    """Writes one shard under temporary names and renames it when it is finished.

    Args:
        folder: Where all shards lie; this one adds two files.
        number: From 0; five digits of the file's name.
        identity: What the shard is made of; a later run compares it.
    """

    def __init__(self, folder: Path, number: int, identity: str) -> None:
        self._folder, self._number, self._identity = folder, number, identity
        name = shard_name(number)
        self._table_path = folder / f"{name}{DOCUMENTS}{PART}"
        self._images_path = folder / f"{name}{IMAGES_TABLE}{PART}"
        self._images = self._images_path.open("w", encoding="utf-8")
        self._table: pq.ParquetWriter | None = None
        self._waiting: list[tuple[ListedDocument, Sequence[Outcome]]] = []
        self._waiting_bytes = 0
        self._failures: Counter[str] = Counter()
        self._documents: Counter[str] = Counter()
        self._bytes = 0
        self.num_kept = 0

    def add(self, listed: ListedDocument, found: Sequence[Outcome]) -> None:
        """Appends the next document with the outcomes of its images."""
        key = f"{shard_name(self._number)}/{self._documents.total():08d}"
        for place, url, outcome in zip(listed.places, listed.urls, found, strict=True):
            row = {"document": key, "place": place, "url": url, **describe(outcome)}
            self._images.write(json.dumps(row) + "\n")
            if isinstance(outcome, Failed):
                self._failures[str(outcome.reason)] += 1
        fetched = [outcome for outcome in found if isinstance(outcome, FetchedImage)]
        self.num_kept += len(fetched)
        size = sum(len(image.data) for image in fetched)
        self._bytes += size
        whole, some = len(fetched) == len(found), bool(fetched)
        self._documents["whole" if whole else "some_images" if some else "no_images"] += 1
        self._waiting.append((listed, found))
        self._waiting_bytes += size
        if self._waiting_bytes >= _GROUP_BYTES or len(self._waiting) == _ROWS_PER_GROUP:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Gives the files their names, the statistics last, and returns these."""
        self._flush()
        self._close()
        statistics = {
            "count": self.num_kept + self._failures.total(),
            "successes": self.num_kept,
            "failed_to_download": self._failures.total(),
            "status_dict": dict(sorted(self._failures.items())),
            "documents": {name: self._documents[name] for name in DOCUMENT_COUNTS},
            "bytes": self._bytes,
            "identity": self._identity,
        }
        publish_shard(self._folder, self._number, (DOCUMENTS, IMAGES_TABLE), statistics)
        return statistics

    def abandon(self) -> None:
        """Removes what was written."""
        self._close()
        for path in (self._table_path, self._images_path):
            path.unlink(missing_ok=True)

    def _close(self) -> None:
        self._images.close()
        if self._table is not None:
            self._table.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches([listed.row for listed, _ in self._waiting])
        contents = [content for listed, found in self._waiting for content in _cells(listed, found)]
        table = _with_contents(table, pa.array(contents, pa.large_binary()))
        if self._table is None:
            self._table = pq.ParquetWriter(self._table_path, table.schema, compression="zstd")
        self._table.write_table(table)
        self._waiting, self._waiting_bytes = [], 0


DOCUMENT_COUNTS = ("whole", "some_images", "no_images")
"""Documents by what was fetched of their images: all, some, none."""


def _documents(batch: pa.RecordBatch) -> Iterator[ListedDocument]:
    column = batch.column(_image_column(batch.schema))
    values = column.flatten()
    if _is_matched(batch.schema):
        values = values.flatten()[values.type.get_field_index(layouts.URL)]
    urls = iter(texts(values))
    matched = _is_matched(batch.schema)
    for number, length in enumerate(column.value_lengths().to_pylist()):
        cells = [(place, next(urls)) for place in range(length or 0)]
        # Where the one layout has text, its list of images has a gap.
        images = [cell for cell in cells if matched or cell[1] is not None]
        places, found = zip(*images, strict=True) if images else ((), ())
        yield ListedDocument(batch.slice(number, 1), places, found)


def _cells(listed: ListedDocument, found: Sequence[Outcome]) -> list[bytes | None]:
    """The bytes at each place of a document's list of images."""
    (length,) = listed.row.column(_image_column(listed.row.schema)).value_lengths().to_pylist()
    cells: list[bytes | None] = [None] * (length or 0)
    for place, outcome in zip(listed.places, found, strict=True):
        if isinstance(outcome, FetchedImage):
            cells[place] = outcome.data
    return cells


def _with_contents(table: pa.Table, contents: pa.Array) -> pa.Table:
    """A table with the bytes of its images."""
    name = layouts.IMAGE_INFO if _is_matched(table.schema) else layouts.IMAGES
    place = table.schema.get_field_index(name)
    column = table.column(name).combine_chunks()
    if name == layouts.IMAGES:
        # Anew, because an address that is no UTF-8 would make the whole row unreadable.
        urls = _like(column, pa.array(texts(column.flatten()), pa.string()))
        table = table.set_column(place, name, _like(column, contents))
        if layouts.URLS in table.schema.names:
            table = table.drop_columns([layouts.URLS])
        return table.append_column(layouts.URLS, urls)
    infos = column.flatten()
    kept = [field for field in infos.type if field.name != _BYTES]
    values = dict(zip([field.name for field in infos.type], infos.flatten(), strict=True))
    values[layouts.URL] = pa.array(texts(values[layouts.URL]), pa.string())
    kept = [pa.field(layouts.URL, pa.string()) if f.name == layouts.URL else f for f in kept]
    structs = pa.StructArray.from_arrays(
        [*(values[field.name] for field in kept), contents],
        fields=[*kept, pa.field(_BYTES, contents.type)],
        mask=infos.is_null(),
    )
    return table.set_column(place, name, _like(column, structs))


def _like(lists: pa.Array, values: pa.Array) -> pa.Array:
    """Other values in lists of the same lengths."""
    lengths = np.array([length or 0 for length in lists.value_lengths().to_pylist()], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=lists.is_null())


def _image_column(schema: pa.Schema) -> str:
    return layouts.IMAGE_INFO if _is_matched(schema) else layouts.IMAGES


def _is_matched(schema: pa.Schema) -> bool:
    return layouts.SENTENCES in schema.names and layouts.IMAGE_INFO in schema.names


def _is(kind: pa.DataType, *tests: Callable[[pa.DataType], bool]) -> bool:
    return any(test(kind) for test in tests)


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
