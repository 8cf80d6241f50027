"""Lists are read as they are published: CC3M, CC12M, MMC4, LAION; damage is counted."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from download_server import LOCAL, Handler

from mm1_pipeline.config.corpus_rules import TextRules
from mm1_pipeline.config.download import DownloadConfig
from mm1_pipeline.config.ingest import ImageRules, IngestConfig, RecordKind, SourceConfig
from mm1_pipeline.config.ingest import SourceFormat as Format
from mm1_pipeline.corpus.download import tables
from mm1_pipeline.corpus.download.download import download
from mm1_pipeline.corpus.download.shards import ImageLists, ListedImage
from mm1_pipeline.corpus.download.tables import PATTERNS, read_head
from mm1_pipeline.corpus.files import SourceFiles
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import read_records

CC3M = "a very typical bus station\thttp://x.example/1.jpg\nsierra looks stunning\thttps://y/2\n"
CC12M = "http://x.example/1.jpg\ta very typical bus station\nhttps://y/2\tsierra looks stunning\n"
NAMED = "caption\turl\nhttp://in.a.caption\thttp://x.example/1.jpg\nsierra\thttps://y/2\n"


def listed(folder: Path, *, is_counted: bool = True, **more) -> list[ListedImage]:
    config = DownloadConfig(lists=str(folder), output=str(folder / "out"), **more)
    files = SourceFiles(str(folder), patterns=PATTERNS[config.kind])
    total = sum(read_head(config, files, file)[1] for file in files)
    rows = [row for shard in ImageLists(config, files).read(None) for row in shard]
    assert not is_counted or abs(total - len(rows)) <= max(2, 0.05 * len(rows))  # an estimate
    return rows


@pytest.mark.parametrize("pack", ["", ".gz", ".zst", ".zip", ".GZ"])
@pytest.mark.parametrize("text", [CC3M, CC12M, CC3M.replace("\n", "\r\n"), f"\ufeff{CC12M}\n\n"])
def test_pairs_in_either_order_without_a_line_of_names(tmp_path, text, pack):
    path = tmp_path / f"Train_GCC-training.tsv{pack}"
    data = text.encode()
    if pack == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("list.tsv", data)
    else:
        packers = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
        path.write_bytes(packers.get(pack.lower(), bytes)(data))
    assert listed(tmp_path) == [
        ListedImage("http://x.example/1.jpg", "a very typical bus station"),
        ListedImage("https://y/2", "sierra looks stunning"),
    ]


def test_a_line_of_names_decides_and_odd_lines_are_rows(tmp_path):
    (tmp_path / "a.TSV").write_text(NAMED)
    assert listed(tmp_path)[0] == ListedImage("http://x.example/1.jpg", "http://in.a.caption")
    (tmp_path / "a.TSV").write_bytes(
        b"no address\nhttp://x\n\t\nhttp://y\t\xff\nhttp://z\thttp://w\n"
    )
    assert listed(tmp_path) == [
        ListedImage(None, "no address"),
        ListedImage("http://x", None),
        ListedImage("http://y", "\ufffd"),
        ListedImage("http://z", "http://w"),
    ]


def test_columns_are_called_as_the_list_calls_them(tmp_path):
    columns = {"URL": pa.array(["http://x"]).dictionary_encode(), "TEXT": ["two words"]}
    pq.write_table(pa.table(columns), tmp_path / "laion.parquet")
    found = listed(tmp_path, url_column="URL", caption_column="TEXT")
    assert found == [ListedImage("http://x", "two words")]


def test_a_damaged_list_is_named_or_counted(tmp_path, caplog, monkeypatch):
    rows = [f"http://x/{number}" for number in range(40)]
    table = pa.table({"url": rows, "caption": ["two words"] * 40})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    about = pq.read_metadata(tmp_path / "a.parquet").row_group(2).column(0)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    start, size = about.data_page_offset, about.total_compressed_size
    data[start : start + size] = b"\xff" * size
    (tmp_path / "a.parquet").write_bytes(data)
    found = listed(tmp_path)
    assert [row.url for row in found] == rows[:20] + [None] * 10 + rows[30:]
    assert "a.parquet: 10 rows cannot be read" in caplog.text
    (tmp_path / "b.parquet").write_bytes(data[:500])
    with pytest.raises(ValueError, match=r"download.lists: found b.parquet, which cannot be read"):
        download(DownloadConfig(lists=str(tmp_path), output=str(tmp_path / "out")))
    (tmp_path / "b.parquet").unlink()
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress(CC12M.encode() * 5_000)[:-200])
    with pytest.raises(ValueError, match=r"found c\.tsv\.gz, which cannot be read"):
        listed(tmp_path)
    monkeypatch.setattr(tables, "_COUNTED_BYTES", 1_000)  # too long to be looked through before
    cut = listed(tmp_path, is_counted=False)
    assert cut[-1].url is None
    assert cut[0].url == "http://x.example/1.jpg"


def mmc4_line(server: str) -> dict:
    """One line as `docs_no_face_shard_0_v2.jsonl` has them."""
    return {
        "text_list": ["The first.", "The second sentence."],
        "url": "http://page.example/",
        "image_info": [
            {
                "image_name": "b9040a0dbb22.jpg",
                "raw_url": f"{server}/image/1",
                "matched_text_index": 1,
                "matched_sim": 0.27694183588027954,
            },
            {
                "image_name": "db1c21bc8474.jpg",
                "raw_url": f"{server}/missing",
                "matched_text_index": 0,
                "matched_sim": 0.39,
                "face_detections": None,
            },
        ],
        "similarity_matrix": [[0.1, 0.27], [0.39, 0.2]],
        "could_have_url_duplicate": 0,
    }


@pytest.mark.parametrize("pack", ["", ".zip"])
def test_mmc4_as_published_becomes_documents(server: str, tmp_path: Path, pack: str) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    path = lists / f"docs_no_face_shard_0_v2.jsonl{pack}"
    lines = [json.dumps(mmc4_line(server)), "{broken", '{"text_list": 5}', ""]
    if pack:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, "\n".join(lines))
    else:
        path.write_text("\n".join(lines))
    shards = str(tmp_path / "shards")
    images = Handler.requests["/image/1"]
    report = download(
        DownloadConfig(kind="interleaved", lists=str(lists), output=shards, limits=LOCAL)
    )
    assert Handler.requests["/image/1"] == images + 1
    assert (report["read"], report["kept"], report["rejected"]) == (2, 1, {"http_status": 1})
    source = SourceConfig(
        kind=RecordKind.INTERLEAVED,
        format=Format.INTERLEAVED_PARQUET,
        path=shards,
        images=ImageRules(min_side=1),
        text=TextRules(defaults=False),
    )
    counts = ingest(IngestConfig(sources={"s": source}), tmp_path / "records")["sources"]["s"]
    assert (counts["read"], counts["kept"]) == (3, 1)
    assert counts["rejected"] == {"malformed_record": 2}
    (record,) = read_records(tmp_path / "records", "s")
    assert [segment.text for segment in record.segments] == [
        "The first.",
        None,
        "The second sentence.",
    ]
    assert json.loads(record.metadata["metadata"])["similarity_matrix"][1] == [0.39, 0.2]


def test_lines_of_another_layout_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": 1}\n')
    config = DownloadConfig(kind="interleaved", lists=str(tmp_path), output=str(tmp_path / "o"))
    with pytest.raises(
        ValueError, match=r"found the fields id, text in a\.jsonl, expected text_list"
    ):
        download(config)


@pytest.mark.parametrize(
    ("name", "path", "format_"),
    [
        ("Train_GCC-training.tsv", "", Format.IMG2DATASET),
        ("cc12m.tsv", "cc12m.tsv", Format.IMAGE_PARQUET),
        ("docs_shard_1_v2.jsonl", "", Format.INTERLEAVED_PARQUET),
        ("laion.parquet", "", Format.IMAGE_PARQUET),
    ],
)
def test_ingest_sends_lists_to_download(tmp_path, name, path, format_):
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"URL": ["http://x"], "caption": ["two words"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text(CC3M)
    kind = RecordKind.INTERLEAVED if "docs" in name else RecordKind.CAPTION
    source = SourceConfig(kind=kind, format=format_, path=str(tmp_path / path))
    with pytest.raises(ValueError, match="the stage `download`"):
        ingest(IngestConfig(sources={"s": source}), tmp_path / "out")
