"""The torch-free writer gives the bytes that Streaming's own writer gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from mm1_pipeline.streams.mds import MDSWriter, compress, index_text

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


@pytest.mark.parametrize("compression", ["", "zstd:3"])
def test_files_are_those_of_streaming(tmp_path: Path, compression: str) -> None:
    from streaming.base.compression import decompress
    from streaming.base.format.mds import MDSWriter as StreamingWriter

    ours = MDSWriter(tmp_path / "ours", COLUMNS, "shard", compression, 900)
    theirs = StreamingWriter(
        columns=COLUMNS,
        out=str(tmp_path / "theirs"),
        compression=compression or None,
        hashes=["sha1", "xxh64"],
        size_limit=900,
    )
    for sample in samples():
        ours.write(sample)
        theirs.write(sample)
    ours.finish()
    theirs.finish()
    expected = json.loads((tmp_path / "theirs/index.json").read_text())
    found = json.loads(index_text(ours.shards))
    assert len(found["shards"]) == len(expected["shards"]) > 3
    for mine, yours in zip(found["shards"], expected["shards"], strict=True):
        raw, other = mine.pop("raw_data"), yours.pop("raw_data")
        assert (raw["bytes"], raw["hashes"]) == (other["bytes"], other["hashes"])
        stored = (mine.pop("zip_data") or raw)["basename"]
        data = (tmp_path / "ours" / stored).read_bytes()
        # Levels and versions of zstd may pack differently; what comes out may not.
        unpacked = decompress(compression, data) if compression else data
        assert len(unpacked) == raw["bytes"]
        yours.pop("zip_data")
        assert mine == yours


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
