"""Writes files of the MDS format, which Streaming reads, without importing Streaming.

A writing process then starts in a second and needs no torch: Streaming's own writer brings in
both. The tests compare the files byte for byte with those of Streaming's writer.

    shard file   number of samples, where each begins (uint32), columns as JSON, the samples
    sample       size of each column of no fixed size (uint32), then the columns by name
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from mm1_pipeline.streams.shard_index import HASHES

_MAX_SHARD_BYTES = 2**32
"""Places in a shard file are uint32."""


class MDSWriter:
    """Writes samples to numbered shard files and keeps what an index says of each.

    Args:
        directory: Gets the files; made if missing.
        columns: Type of each column: `bytes`, `str`, `ndarray:<dtype>` of one dimension, or
            `ndarray:<dtype>:<size>`.
        name: Beginning of the file names; `shard.00003` gives `shard.00003.00000.mds`.
        compression: `zstd:<level>`, or nothing.
        size_limit: Bytes, before compression, at which a file is closed.
    """

    def __init__(
        self,
        directory: Path,
        columns: Mapping[str, str],
        name: str,
        compression: str,
        size_limit: int,
    ) -> None:
        self._directory, self._name = directory, name
        self._columns = dict(sorted(columns.items()))
        self._compression = compression
        self._config = {
            "version": 2,
            "format": "mds",
            "compression": compression or None,
            "hashes": list(HASHES),
            "size_limit": size_limit,
            "column_names": list(self._columns),
            "column_encodings": list(self._columns.values()),
            "column_sizes": [_fixed_size(kind) for kind in self._columns.values()],
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()
        self._size_limit = size_limit
        self._samples: list[bytes] = []
        self._reset()
        self.shards: list[dict[str, Any]] = []
        """An entry of `index.json` for each finished file."""
        directory.mkdir(parents=True, exist_ok=True)

    def write(self, sample: Mapping[str, Any]) -> None:
        """Appends one sample; a full file is closed first."""
        encoded = self._encode(sample)
        size = len(encoded) + 4
        if self._samples and self._size + size > self._size_limit:
            self._flush()
        self._samples.append(encoded)
        self._size += size

    def finish(self) -> None:
        """Closes the last file."""
        if self._samples:
            self._flush()

    def _encode(self, sample: Mapping[str, Any]) -> bytes:
        sizes, values = [], []
        fixed_sizes = self._config["column_sizes"]
        for (name, kind), fixed in zip(self._columns.items(), fixed_sizes, strict=True):
            value = _encode_value(kind, sample[name])
            if fixed is None:
                sizes.append(len(value))
            else:
                assert len(value) == fixed, (name, len(value), fixed)
            values.append(value)
        return np.array(sizes, np.uint32).tobytes() + b"".join(values)

    def _flush(self) -> None:
        number = len(self._samples)
        begin = 4 + 4 * (number + 1) + len(self._header)
        offsets = begin + np.cumsum([0, *map(len, self._samples)], dtype=np.int64)
        if offsets[-1] >= _MAX_SHARD_BYTES:
            raise ValueError(
                f"Found a shard of {offsets[-1]} bytes, allowed {_MAX_SHARD_BYTES - 1}: one "
                "sequence holds too large images; store them smaller (shard.image)."
            )
        parts = [np.uint32(number).tobytes(), offsets.astype(np.uint32).tobytes(), self._header]
        raw = b"".join([*parts, *self._samples])
        base = f"{self._name}.{len(self.shards):05d}.mds"
        entry = {**self._config, "samples": number, "raw_data": _describe(base, raw)}
        entry["zip_data"] = None
        stored = raw
        if self._compression:
            base = f"{base}.zstd"
            stored = compress(raw, self._compression)
            entry["zip_data"] = _describe(base, stored)
        (self._directory / base).write_bytes(stored)
        self.shards.append(entry)
        self._reset()

    def _reset(self) -> None:
        self._samples = []
        self._size = 4 + 4 + len(self._header)


def index_text(shards: list[dict[str, Any]]) -> str:
    """The `index.json` of a dataset: its files in the order of their samples."""
    return json.dumps({"shards": shards, "version": 2}, sort_keys=True)


def compress(data: bytes, compression: str) -> bytes:
    """Compresses with `zstd:<level>`; Streaming unpacks it."""
    _, _, level = compression.partition(":")
    return zstandard.ZstdCompressor(level=int(level)).compress(data)


def _describe(basename: str, data: bytes) -> dict[str, Any]:
    digests = {
        "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        "xxh64": xxhash.xxh64(data).hexdigest(),
    }
    hashes = {name: digests[name] for name in HASHES}
    return {"basename": basename, "bytes": len(data), "hashes": hashes}


def _fixed_size(kind: str) -> int | None:
    name, _, rest = kind.partition(":")
    dtype, _, size = rest.partition(":")
    return np.dtype(dtype).itemsize * int(size) if name == "ndarray" and size else None


def _encode_value(kind: str, value: Any) -> bytes:
    match kind.split(":"):
        case ["bytes"]:
            return value
        case ["str"]:
            return value.encode("utf-8")
        case ["ndarray", dtype]:
            assert value.dtype == dtype, (value.dtype, dtype)
            return _shape(value) + value.tobytes()
        case ["ndarray", dtype, _]:
            assert value.dtype == dtype, (value.dtype, dtype)
            return value.tobytes()
    raise ValueError(f"Found the column type {kind!r}, expected bytes, str or ndarray:<dtype>.")


def _shape(array: NDArray[Any]) -> bytes:
    """Number of dimensions and width of the size in one byte, then the size."""
    assert array.ndim == 1, array.shape
    assert array.size > 0, "the format holds no empty array"
    width = next(number for number in range(3) if array.size < 1 << (8 << number))
    return bytes([1 << 2 | width]) + array.size.to_bytes(1 << width, "little")
