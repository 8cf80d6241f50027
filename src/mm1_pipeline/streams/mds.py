"""Writes and reads files of the MDS format, mosaicml-streaming's, without importing Streaming.

A writing process then starts in a second and needs no torch: Streaming's own writer brings in
both. The tests compare the files byte for byte with those of Streaming's writer, and what is read
with what Streaming's own dataset reads.

    shard file   number of samples, where each begins (uint32), columns as JSON, the samples
    sample       size of each column of no fixed size (uint32), then the columns by name
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from numpy.typing import NDArray

from mm1_pipeline.ground.files import read_json
from mm1_pipeline.streams.shard_index import HASHES, INDEX_FILE

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


class ShardFile:
    """One shard file, read as `index.json` describes it.

    Args:
        directory: The dataset's folder, which holds its index.json and shards.
        entry: From the index.

    Raises:
        ValueError: The entry is none of this format, or holds a type that could run.
    """

    def __init__(self, directory: Path, entry: Mapping[str, Any]) -> None:
        index = directory / INDEX_FILE
        if (found := (entry["version"], entry["format"])) != (2, "mds"):
            raise ValueError(f"{index}: found version and format {found}, expected (2, 'mds').")
        self._raw, self._zip = entry["raw_data"], entry["zip_data"]
        for part in (self._raw, self._zip or self._raw):
            if Path(name := part["basename"]).name != name:
                raise ValueError(
                    f"{index}: found the file name {name!r}, which leads out of the folder."
                )
            if "xxh64" not in part["hashes"]:
                raise ValueError(f"{index}: found no xxh64 of {name}, expected one to check it by.")
        kinds = entry["column_encodings"]
        self._columns = [
            (name, kind, _fixed_size(kind))
            for name, kind in zip(entry["column_names"], kinds, strict=True)
        ]
        if unknown := [kind for kind in kinds if kind.partition(":")[0] not in _DECODERS]:
            raise ValueError(
                f"{index}: found a column of type {unknown[0]!r}, expected one of "
                f"{', '.join(_DECODERS)}."
            )
        self.num_samples: int = entry["samples"]
        self.name: str = self._raw["basename"]
        """Of the uncompressed file."""
        self.stored = directory / (self._zip or self._raw)["basename"]

    def unpack(self) -> bytes:
        """The uncompressed file, compared with its checksums.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not what was written.
        """
        data = self.stored.read_bytes()
        if self._zip is not None:
            check_content(self.stored, data, self._zip)
            try:
                # What a frame says of its size is what unpacking it would allocate.
                if zstandard.frame_content_size(data) != self._raw["bytes"]:
                    raise ValueError(f"{self.stored}: found a frame of another size than it says.")
                data = zstandard.decompress(data)
            except zstandard.ZstdError as error:
                raise ValueError(f"{self.stored}: found no frame of zstd ({error}).") from error
        check_content(self.stored, data, self._raw)
        return data

    def read_sample(self, file: Path, number: int) -> dict[str, Any]:
        """Reads one sample of an uncompressed file.

        Args:
            file: Holds what `unpack` gave. It is opened for each sample: a data set has more
                files than a process may keep open.
            number: From 0, in this file.
        """
        with file.open("rb", buffering=0) as content:
            handle = content.fileno()
            # Behind the count of samples: where each begins, and where the last one ends.
            begin, end = np.frombuffer(os.pread(handle, 8, 4 + 4 * number), np.uint32).tolist()
            return self._decode(os.pread(handle, end - begin, begin))

    def read_all(self) -> Iterator[dict[str, Any]]:
        """Reads the samples in order, with the file in memory."""
        data = self.unpack()
        borders = np.frombuffer(data, np.uint32, count=self.num_samples + 1, offset=4).tolist()
        for begin, end in itertools.pairwise(borders):
            yield self._decode(data[begin:end])

    def _decode(self, data: bytes) -> dict[str, Any]:
        """A sample's columns from its bytes: first the sizes of those of no fixed size, then all.

        With `keys: str` and `num_real: ndarray:int32:1`, whose 4 bytes are fixed, "ab" and 7 are
        02 00 00 00 | 61 62 | 07 00 00 00.
        """
        place = 4 * sum(size is None for _, _, size in self._columns)
        sizes = iter(np.frombuffer(data, np.uint32, count=place // 4).tolist())
        sample = {}
        for name, kind, fixed in self._columns:
            size = next(sizes) if fixed is None else fixed
            value = data[place : place + size]
            if len(value) != size:
                raise ValueError(f"{self.stored}: found {len(value)} bytes of {name}, not {size}.")
            sample[name] = _DECODERS[kind.partition(":")[0]](value, kind)
            place += size
        return sample


def read_index(directory: Path) -> list[ShardFile]:
    """The files of a dataset, in the order of their samples."""
    index = read_json(directory / INDEX_FILE)
    return [ShardFile(directory, entry) for entry in index["shards"]]


def read_sequences(directory: Path) -> Iterator[dict[str, Any]]:
    """Reads a dataset from beginning to end, one shard file in memory at a time."""
    for shard in read_index(directory):
        yield from shard.read_all()


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


def check_content(file: Path, data: bytes, expected: Mapping[str, Any]) -> None:
    """Compares what a file holds with what its index says of it.

    Raises:
        ValueError: They differ.
    """
    if len(data) != expected["bytes"]:
        raise ValueError(f"{file}: found {len(data)} bytes, expected {expected['bytes']}.")
    if xxhash.xxh64(data).hexdigest() != expected["hashes"]["xxh64"]:
        raise ValueError(f"{file}: found other content than was written (xxh64 differs).")


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


def _decode_array(data: bytes, kind: str) -> NDArray[Any]:
    _, dtype, *size = kind.split(":")
    # One dimension: the size stands behind one byte, whose low bits say how wide it is.
    begin = 0 if size else 1 + (1 << (data[0] & 3))
    return np.frombuffer(data, dtype, offset=begin)


_DECODERS = {
    "bytes": lambda data, _: data,
    "str": lambda data, _: data.decode("utf-8"),
    "ndarray": _decode_array,
}
"""By the name of a column's type. Streaming knows others, of which `pkl` could run."""


def _shape(array: NDArray[Any]) -> bytes:
    """Number of dimensions and width of the size in one byte, then the size."""
    assert array.ndim == 1, array.shape
    assert array.size > 0, "the format holds no empty array"
    width = next(number for number in range(3) if array.size < 1 << (8 << number))
    return bytes([1 << 2 | width]) + array.size.to_bytes(1 << width, "little")
