"""Files are those of Streaming's own writer, and samples those of its own dataset."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard

from mm1_pipeline.streams.mds import MDSWriter, compress, index_text, read_index, read_sequences

STORED = Path(__file__).parents[2] / "golden" / "mds" / "streaming_0_13_0.json"
"""The index.json of mosaicml-streaming 0.13.0's writer, by compression, for the samples below. Made
by `python tests/unit/streams/test_streams_mds.py` where that is installed."""

COLUMNS = {
    "input_ids": "ndarray:int32:7",
    "loss_mask": "ndarray:uint8:7",
    "cu_seqlens": "ndarray:int32",
    "images": "bytes",
    "keys": "str",
}


def samples() -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "input_ids": rng.integers(0, 9, 7, dtype=np.int32),
            "loss_mask": rng.integers(0, 2, 7, dtype=np.uint8),
            # 300 and 70,000 take two and four bytes to state.
            "cu_seqlens": np.arange({3: 300, 5: 70_000}.get(n, n + 1), dtype=np.int32),
            "images": rng.bytes(n * 11),
            "keys": json.dumps(["ü", n], ensure_ascii=False),
        }
        for n in range(12)
    ]


def index_of_streaming(compression: str, folder: Path) -> dict:
    from streaming.base.format.mds import (  # pyright: ignore[reportMissingImports]
        MDSWriter as StreamingWriter,
    )

    theirs = StreamingWriter(
        columns=COLUMNS,
        out=str(folder),
        compression=compression or None,
        hashes=["sha1", "xxh64"],
        size_limit=900,
    )
    for sample in samples():
        theirs.write(sample)
    theirs.finish()
    return json.loads((folder / "index.json").read_text())


@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_files_are_those_of_streaming(tmp_path: Path, compression: str) -> None:
    """Its index has the checksums of all that it wrote."""
    ours = MDSWriter(tmp_path / "ours", COLUMNS, "shard", compression, 900)
    for sample in samples():
        ours.write(sample)
    ours.finish()
    expected = json.loads(STORED.read_text())[compression]
    found = json.loads(index_text(ours.shards))
    assert len(found["shards"]) == len(expected["shards"]) > 3
    for mine, yours in zip(found["shards"], expected["shards"], strict=True):
        raw, other = mine.pop("raw_data"), yours.pop("raw_data")
        assert (raw["bytes"], raw["hashes"]) == (other["bytes"], other["hashes"])
        stored = (mine.pop("zip_data") or raw)["basename"]
        data = (tmp_path / "ours" / stored).read_bytes()
        # Levels and versions of zstd may pack differently; what comes out may not.
        unpacked = zstandard.decompress(data, raw["bytes"]) if compression else data
        assert len(unpacked) == raw["bytes"]
        for name, expected_hash in other["hashes"].items():
            algorithm = hashlib.sha1 if name == "sha1" else xxhash.xxh64
            assert algorithm(unpacked).hexdigest() == expected_hash
        yours.pop("zip_data")
        assert mine == yours


@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_what_is_stored_of_streaming_is_what_it_writes(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("streaming", reason="a part of the pinned stack only")
    found, expected = index_of_streaming(compression, tmp_path), json.loads(STORED.read_text())
    for index in (found, expected[compression]):
        for shard in index["shards"]:
            if compression:
                shard["zip_data"] = None
    assert found == expected[compression]


def equal(found: dict, expected: dict) -> bool:
    return list(found) == list(expected) and all(
        np.array_equal(value, expected[name])
        and getattr(value, "dtype", type(value)) == getattr(expected[name], "dtype", type(value))
        for name, value in found.items()
    )


@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_what_was_written_is_read(tmp_path: Path, compression: str) -> None:
    write_dataset(tmp_path, compression)
    expected = [dict(sorted(sample.items())) for sample in samples()]
    assert all(map(equal, read_sequences(tmp_path), expected))
    numbers = [shard.num_samples for shard in read_index(tmp_path)]
    assert sum(numbers) == len(expected)
    assert len(numbers) > 3
    shard = read_index(tmp_path)[1]
    (tmp_path / "unpacked").write_bytes(shard.unpack())
    for number in range(numbers[1]):
        found = shard.read_sample(tmp_path / "unpacked", number)
        assert equal(found, expected[numbers[0] + number])


def test_streamings_own_dataset_reads_the_same(
    shards_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real shards, of images and text; whoever has Streaming can use them without this project."""
    streaming = pytest.importorskip("streaming", reason="a part of the pinned stack only")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where it leaves its locks
    directory = shards_copy / "pages" / "train"
    ours = list(read_sequences(directory))
    theirs = streaming.StreamingDataset(local=str(directory), batch_size=1, shuffle=False)
    assert len(ours) == len(theirs) > 5
    assert all(equal(sample, theirs[number]) for number, sample in enumerate(ours))


def write_dataset(directory: Path, compression: str) -> None:
    writer = MDSWriter(directory, COLUMNS, "shard", compression, 900)
    for sample in samples():
        writer.write(sample)
    writer.finish()
    (directory / "index.json").write_text(index_text(writer.shards))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("version",), 3, r"found version and format \(3, 'mds'\)"),
        (("format",), "csv", "found version and format"),
        (("column_encodings", 0), "pkl", "found a column of type 'pkl', expected one of bytes"),
        (("raw_data", "basename"), "../shard.mds", "leads out of the folder"),
        (("zip_data", "basename"), "/etc/passwd", "leads out of the folder"),
        (("raw_data", "hashes"), {"sha1": "0"}, "found no xxh64"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, place, value, message) -> None:
    write_dataset(tmp_path, "zstd:3")
    index = json.loads((tmp_path / "index.json").read_text())
    part = index["shards"][0]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read_index(tmp_path)


@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_a_damaged_file_is_named(tmp_path: Path, compression: str) -> None:
    write_dataset(tmp_path, compression)
    shard = read_index(tmp_path)[0]
    whole = shard.stored.read_bytes()
    shard.stored.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"00000.mds.*: found {len(whole) - 1} bytes, expected"):
        shard.unpack()
    shard.stored.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"00000.mds.*: found other content"):
        shard.unpack()


@pytest.mark.parametrize("stored", [compress(bytes(10**6), "zstd:3"), b"no frame at all"])
def test_a_forged_frame_is_not_unpacked(tmp_path: Path, stored: bytes) -> None:
    """Its checksum may be right: the index is no more to be trusted than the file."""
    write_dataset(tmp_path, "zstd:3")
    index = json.loads((tmp_path / "index.json").read_text())
    part = index["shards"][0]["zip_data"]
    part |= {"bytes": len(stored), "hashes": {"xxh64": xxhash.xxh64(stored).hexdigest()}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / part["basename"]).write_bytes(stored)
    with pytest.raises(ValueError, match=r"found (a frame of another size|no frame of zstd)"):
        read_index(tmp_path)[0].unpack()


def test_an_empty_dataset_has_an_index(tmp_path: Path) -> None:
    writer = MDSWriter(tmp_path, COLUMNS, "shard", "zstd:3", 900)
    writer.finish()
    assert json.loads(index_text(writer.shards)) == {"shards": [], "version": 2}
    assert not list(tmp_path.iterdir())


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    writer = MDSWriter(tmp_path, {"a": "ndarray:int32"}, "shard", "", 900)
    with pytest.raises(AssertionError, match="no empty array"):
        writer.write({"a": np.zeros(0, np.int32)})


def test_compressing_is_undone() -> None:
    data = b"mm1" * 1000
    assert zstandard.decompress(compress(data, "zstd:19")) == data


def test_a_writing_process_needs_neither_torch_nor_streaming() -> None:
    code = (
        "import sys\n"
        "import mm1_pipeline.streams.partition_writer, mm1_pipeline.streams.shards\n"
        "heavy = {'torch', 'streaming', 'composer', 'daft'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        stored = {
            compression: index_of_streaming(compression, Path(place) / str(number))
            for number, compression in enumerate(["", "zstd:3"])
        }
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
