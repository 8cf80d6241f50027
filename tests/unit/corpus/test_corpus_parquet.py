"""Tables of any column type, damaged in any place: every row of the footer is accounted for."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_builders import picture, run, write_bytes

from mm1_pipeline.corpus.readers import parquet, parquet_footer
from mm1_pipeline.ground.rejects import Rejected

NUM_ROWS = 6
CAPTIONS = [f"a picture, number {number}" for number in range(NUM_ROWS)]
PICTURES = [picture(number, kind="PNG") for number in range(NUM_ROWS)]


def write_table(path: Path, table: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def pairs(**more) -> pa.Table:
    return pa.table({"image": pa.array(PICTURES), "caption": pa.array(CAPTIONS), **more})


def read(tmp_path: Path):
    return run(tmp_path / "out", "caption", "image_parquet", tmp_path / "raw")


TEXTS = {
    "dictionary": pa.array(CAPTIONS).dictionary_encode(),
    "view": pa.array(CAPTIONS, pa.string_view()),
    "large": pa.array(CAPTIONS, pa.large_string()),
    "json": pa.array(CAPTIONS, pa.json_()),
}
SAME_LENGTH = [picture(number, size=(8, 8), kind="BMP") for number in range(NUM_ROWS)]
IMAGES = {
    "dictionary": pa.array(PICTURES).dictionary_encode(),
    "view": pa.array(PICTURES, pa.binary_view()),
    "large": pa.array(PICTURES, pa.large_binary()),
    "fixed": pa.array(SAME_LENGTH, pa.binary(len(SAME_LENGTH[0]))),
    "numbers": pa.array([list(data) for data in PICTURES], pa.list_(pa.uint8())),
    "struct": pa.array(
        [{"bytes": data, "path": None} for data in PICTURES],
        pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]),
    ),
    "struct of views": pa.array(
        [{"path": "x", "bytes": data} for data in PICTURES],
        pa.struct([("path", pa.string()), ("bytes", pa.binary_view())]),
    ),
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("image", IMAGES)
def test_texts_and_images_are_read_however_they_are_packed(tmp_path, text, image):
    table = pa.table({"image": IMAGES[image], "caption": TEXTS[text]})
    write_table(tmp_path / "raw" / "t.parquet", table)
    result = read(tmp_path)
    assert [record.segments[1].text for record in result.records] == CAPTIONS, result.rejected
    expected = SAME_LENGTH if image == "fixed" else PICTURES
    assert [record.images[0].bytes for record in result.records] == expected


def integers(value: int, kind: pa.DataType) -> pa.Array:
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array([1] * (NUM_ROWS - 1) + [value], width).view(kind)


UNREADABLE = {
    "date32": integers(2**31 - 1, pa.date32()),
    "date64": integers(2**62, pa.date64()),
    "timestamp": integers(2**62, pa.timestamp("us")),
    "time zone": integers(5, pa.timestamp("us", "Mars/Base")),
    "duration": integers(2**62, pa.duration("s")),
}
READABLE = {
    "decimal": pa.array([1] * NUM_ROWS, pa.decimal128(7, 2)),
    "map": pa.array([[("a", 1)]] * NUM_ROWS, pa.map_(pa.string(), pa.int8())),
    "null": pa.nulls(NUM_ROWS),
    "uuid": pa.array([b"1" * 16] * NUM_ROWS, pa.uuid()),
    "nested": pa.array([[[{"x": [1]}]]] * NUM_ROWS),
    "floats": pa.array([float("nan"), float("inf"), 0.5, -0.0, 1e308, 2]),
    "list view": pa.array([["a"]] * NUM_ROWS, pa.list_view(pa.string())),
    "bytes": pa.array([b"\xff"] * NUM_ROWS),
}


@pytest.mark.parametrize("column", [*UNREADABLE, *READABLE])
def test_no_other_column_costs_a_row(tmp_path, column, caplog):
    write_table(tmp_path / "raw" / "t.parquet", pairs(x={**UNREADABLE, **READABLE}[column]))
    result = read(tmp_path)
    assert result.report["kept"] == NUM_ROWS, result.rejected
    assert "x" not in result.records[-1].metadata or column in READABLE
    assert ("left" in caplog.text and "'x'" in caplog.text) == (column in UNREADABLE)
    if column in ("date32", "timestamp"):
        assert "x" in result.records[0].metadata


def test_texts_that_are_no_utf8_cost_their_row_or_their_cell(tmp_path):
    wrong = pa.array([b"\xff" if n == 2 else b"fine" for n in range(NUM_ROWS)])
    table = pairs(x=wrong.view(pa.string()))
    write_table(tmp_path / "raw" / "a.parquet", table)
    captions = pa.array([b"\xff" if n == 3 else b"two words" for n in range(NUM_ROWS)])
    write_table(
        tmp_path / "raw" / "b.parquet", table.set_column(1, "caption", captions.view(pa.string()))
    )
    result = read(tmp_path)
    assert result.rejected_keys("invalid_utf8") == ["b/00000003"]
    assert result.report["kept"] == 2 * NUM_ROWS - 1
    assert ["x" in record.metadata for record in result.records[:4]] == [True, True, False, True]


def test_columns_of_one_name(tmp_path):
    columns = [pa.array(PICTURES), pa.array(CAPTIONS), pa.array(CAPTIONS), pa.array(CAPTIONS)]
    table = pa.Table.from_arrays(columns, names=["image", "caption", "x", "x"])
    write_table(tmp_path / "raw" / "t.parquet", table)
    assert read(tmp_path).report["kept"] == NUM_ROWS
    write_table(
        tmp_path / "raw" / "u.parquet", table.rename_columns(["image", "caption", "caption", "x"])
    )
    with pytest.raises(
        ValueError, match=r"found 'caption', expected one column of text; u\.parquet"
    ):
        read(tmp_path)


def place_of(path: Path, group: int, column: str) -> tuple[int, int]:
    about = pq.read_metadata(path).row_group(group)
    chunks = [about.column(number) for number in range(about.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    return chunk.dictionary_page_offset or chunk.data_page_offset, chunk.total_compressed_size


@pytest.mark.parametrize("group", range(3))
@pytest.mark.parametrize("column", ["image", "caption", "x"])
def test_damage_to_a_row_group_costs_its_rows_alone(tmp_path, group, column, caplog):
    table = pairs(x=pa.array(["more"] * NUM_ROWS))
    path = write_table(
        tmp_path / "raw" / "t.parquet", table, row_group_size=2, use_dictionary=False
    )
    start, size = place_of(path, group, column)
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    result = read(tmp_path)
    lost = 0 if column == "x" else 2
    assert result.report["read"] == NUM_ROWS
    assert result.rejected == ({"unreadable_file": lost} if lost else {})
    assert ("left 2 values of the column 'x' out" in caplog.text) == (not lost)
    keys = [record.key for record in result.records]
    assert keys == [f"t/{n:08d}" for n in range(NUM_ROWS) if not lost or n // 2 != group]


def test_rows_before_the_damage_in_a_group_survive(tmp_path):
    captions = pa.array([f"a picture, number {number:04d}" for number in range(200)])
    table = pa.table({"image": pa.array([picture(7)] * 200), "caption": captions})
    path = write_table(
        tmp_path / "raw" / "t.parquet", table, use_dictionary=["image"], data_page_size=100,
        compression="none", write_batch_size=10,
    )  # fmt: skip
    data = path.read_bytes()
    page = data.index(b"number 0100") - 120
    path.write_bytes(data[:page] + b"\xff" * 100 + data[page + 100 :])
    result = read(tmp_path)
    assert result.report["read"] == 200
    assert 60 <= result.report["kept"] <= 100
    assert result.rejected == {"unreadable_file": 200 - result.report["kept"]}


@pytest.mark.parametrize("seed", range(12))
def test_rows_kept_and_rejected_are_those_of_the_footer(tmp_path, seed):
    """Damage in front of the footer, 12 mutants each: flips, and runs of zeros or noise."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 40))
    table = pa.table(
        {
            "image": pa.array([picture(n, (9, 9), "PNG") for n in range(num_rows)]),
            "caption": pa.array([f"a picture, number {n % 5}" for n in range(num_rows)]),
            "x": pa.array([[n] * (n % 4) for n in range(num_rows)]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=int(rng.integers(1, 20)),
        use_dictionary=bool(rng.integers(2)),
        compression=str(rng.choice(["none", "snappy", "zstd", "gzip"])),
        data_page_size=int(rng.choice([50, 1_000, 100_000])),
        data_page_version=str(rng.choice(["1.0", "2.0"])),
        write_page_checksum=bool(rng.integers(2)),
    )
    data = buffer.getvalue()
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for number in range(12):
        mutant = bytearray(data)
        start = int(rng.integers(4, end))
        length = int(rng.choice([1, 1, 30, 300]))
        found = rng.integers(0, 256, length, dtype=np.uint8) * rng.integers(0, 2)
        mutant[start : min(start + length, end)] = found.tobytes()[: end - start]
        write_bytes(tmp_path / "raw" / f"{number:02d}.parquet", bytes(mutant))
    result = read(tmp_path)
    assert result.report["read"] == 12 * num_rows
    assert result.report["kept"] + sum(result.rejected.values()) == 12 * num_rows
    keys = [record.key for record in result.records] + [row["key"] for row in result.quarantine]
    assert len(set(keys)) == len(keys) == 12 * num_rows


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_FREE_BYTES", 1_000_000)
    monkeypatch.setattr(parquet, "_BYTES_AT_ONCE", 100_000)
    monkeypatch.setattr(parquet, "_FREE_ROWS", 1_000)
    huge = bytes(20_000_000)
    write_table(  # one page that swells
        tmp_path / "raw" / "a.parquet",
        pa.table({"image": pa.array([huge, *PICTURES[1:]]), "caption": pa.array(CAPTIONS)}),
        compression="zstd", use_dictionary=False,
    )  # fmt: skip
    large = bytes(400_000)
    write_table(  # a value that every row repeats
        tmp_path / "raw" / "b.parquet",
        pa.table({"image": pa.array([large] * 300), "caption": pa.array(CAPTIONS * 50)}),
        compression="zstd",
    )  # fmt: skip
    write_table(  # a list that a few bytes call long
        tmp_path / "raw" / "c.parquet",
        pairs(x=pa.array([[None] * 3_000_000] + [[]] * 5, pa.list_(pa.int8()))),
    )
    others = pairs().set_column(1, "caption", pa.array([f"other {n}" for n in range(NUM_ROWS)]))
    write_table(tmp_path / "raw" / "d.parquet", others, row_group_size=2)
    peaks = []
    to_rows = parquet._to_rows

    def measure(batch, *rest):
        peaks.append(batch.nbytes)
        return to_rows(batch, *rest)

    monkeypatch.setattr(parquet, "_to_rows", measure)
    result = read(tmp_path)
    assert result.report["read"] == 6 + 300 + 6 + 6
    assert result.rejected["compression_bomb"] > 6 + 280
    assert max(peaks) < 1_000_000
    kept = [record.key for record in result.records]
    assert [key for key in kept if key[0] in "cd"] == [
        f"{f}/{n:08d}" for f in "cd" for n in range(6)
    ]


def test_footers_that_cannot_be_true_cost_the_file(tmp_path):
    table = pa.table(
        {"image": pa.nulls(30_000_000, pa.binary()), "caption": pa.nulls(30_000_000, pa.string())}
    )
    write_table(tmp_path / "raw" / "a.parquet", table, row_group_size=30_000_000)
    write_table(tmp_path / "raw" / "b.parquet", pairs())
    result = read(tmp_path)
    assert result.rejected_keys("unreadable_file") == ["a.parquet"]
    assert result.report["kept"] == NUM_ROWS


def test_the_footer_says_of_row_groups_what_arrow_reads_in_it(tmp_path):
    lists = pa.array([[number, None] for number in range(NUM_ROWS)], pa.list_(pa.int64()))
    nested = pa.array([{"x": {"y.z": number}} for number in range(NUM_ROWS)])
    table = pairs(lists=lists, nested=nested, true=pa.array([True] * NUM_ROWS))
    file = write_table(tmp_path / "t.parquet", table, row_group_size=4, compression="zstd")
    with file.open("rb") as stream:
        groups = parquet_footer.read_row_groups(stream)
    metadata = pq.read_metadata(file)
    assert [group.num_rows for group in groups] == [4, 2]
    for place, group in enumerate(groups):
        assert len(group.chunks) == metadata.num_columns == 5
        for number, chunk in enumerate(group.chunks):
            about = metadata.row_group(place).column(number)
            assert chunk.column == about.path_in_schema.split(".")[0]
            assert chunk.num_values == about.num_values
            assert chunk.packed == about.total_compressed_size
            assert chunk.unpacked == about.total_uncompressed_size


def test_statistics_that_do_not_fit_the_schema_end_no_process(tmp_path):
    """Arrow's Python wrapper ends the process there: it lets an exception of C++ through."""
    tags = pa.array([["a", "b"]] * NUM_ROWS)
    file = write_table(tmp_path / "raw" / "t.parquet", pairs(tags=tags))
    data = file.read_bytes()
    optional, required = b"\x25\x02\x18\x07element", b"\x25\x00\x18\x07element"
    assert data.count(optional) == 1
    file.write_bytes(data.replace(optional, required))
    result = read(tmp_path)
    assert len(result.records) + len(result.rejected) == NUM_ROWS


@pytest.mark.parametrize("place", [-6, -5, -1])
def test_a_file_without_a_footer_is_one_rejected_file(tmp_path, place):
    file = write_table(tmp_path / "t.parquet", pairs())
    data = bytearray(file.read_bytes())
    data[place] ^= 255
    with pytest.raises(Rejected, match="found a footer that cannot be read"):
        parquet_footer.read_row_groups(io.BytesIO(data))
