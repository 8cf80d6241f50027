"""Interleaved documents that name their images: fetched, embedded, and what is left is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from download_server import LOCAL, Handler, png

from mm1_pipeline.config.download import DownloadConfig, FetchLimits
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.download.download import download
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import Record, read_records

OBELICS = pa.schema(
    [
        ("texts", pa.list_(pa.string())),
        ("images", pa.list_(pa.string())),
        ("metadata", pa.string()),
        ("general_metadata", pa.string()),
    ]
)
MMC4 = pa.schema(
    [
        ("url", pa.string()),
        ("text_list", pa.list_(pa.string())),
        (
            "image_info",
            pa.list_(
                pa.struct(
                    [
                        ("image_name", pa.string()),
                        ("raw_url", pa.string()),
                        ("matched_text_index", pa.int64()),
                        ("matched_sim", pa.float64()),
                    ]
                )
            ),
        ),
    ]
)


def make_config(
    folder: Path, *tables: pa.Table, limits: FetchLimits = LOCAL, **more: Any
) -> DownloadConfig:
    lists = folder / "lists"
    lists.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, lists / f"{number}.parquet")
    return DownloadConfig(
        kind="interleaved", lists=str(lists), output=str(folder / "out"), limits=limits, **more
    )


def obelics(*rows: list[str | tuple[str | None]], **extra: Any) -> pa.Table:
    """Documents: a text stands for itself, a tuple holds the address of an image."""
    found = []
    for row in rows:
        images = [part[0] if isinstance(part, tuple) else None for part in row]
        found.append(
            {
                "texts": [part if isinstance(part, str) else None for part in row],
                "images": images,
                "metadata": json.dumps([{"src": url} if url else None for url in images]),
                **extra,
            }
        )
    return pa.Table.from_pylist(found, schema=OBELICS)


def read_back(folder: Path, min_images: int = 0) -> tuple[dict[str, Any], list[Record]]:
    from pydantic import TypeAdapter

    source = {
        "kind": "interleaved",
        "format": "interleaved_parquet",
        "path": str(folder / "out"),
        "images": {"min_side": 1},
        "text": {"defaults": False},
        "documents": {"min_images": min_images},
    }
    config = TypeAdapter(IngestConfig).validate_python({"sources": {"web": source}})
    report = ingest(config, folder / "records")["sources"]["web"]
    return report, list(read_records(folder / "records", "web"))


def outline(record: Record) -> list[str]:
    """Texts, and the addresses of images whose bytes are those of the server."""
    parts = []
    for segment in record.segments:
        if segment.image is None:
            parts.append(segment.text or "")
            continue
        image = record.images[segment.image]
        assert image.url is not None
        assert image.bytes == png(int(image.url.rpartition("/")[2]))
        parts.append("/".join(["", *image.url.split("/")[-2:]]))
    return parts


def outcomes(folder: Path, shard: str = "00000") -> list[dict[str, Any]]:
    lines = (folder / "out" / f"{shard}_images.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_documents_with_addresses_become_documents_that_ingest_reads(
    server: str, tmp_path: Path
) -> None:
    table = obelics(
        ["A cat.", (f"{server}/image/1",), "A dog.", (f"{server}/to/image/2",)],
        [(f"{server}/missing",), "The rest stays.", (f"{server}/image/3",), (f"{server}/noai",)],
        ["Nothing is left of the images.", (f"{server}/bomb",), ("",)],
        ["Only text."],
        general_metadata='{"url": "http://page"}',
    )
    report = download(make_config(tmp_path, table))
    assert report["read"] == report["kept"] + sum(report["rejected"].values()) == 7
    assert report["kept"] == 3
    assert report["rejected"] == {
        "http_status": 1, "image_too_many_pixels": 1, "opted_out": 1, "url_missing": 1
    }  # fmt: skip
    assert report["documents"] == {"whole": 2, "some_images": 1, "no_images": 1}
    found, records = read_back(tmp_path)
    assert (found["read"], found["kept"]) == (4, 4)
    assert found["images"]["read"] == found["images"]["kept"] == 3
    assert [outline(record) for record in records] == [
        ["A cat.", "/image/1", "A dog.", "/image/2"],
        ["The rest stays.", "/image/3"],
        ["Nothing is left of the images."],
        ["Only text."],
    ]
    assert records[0].metadata["general_metadata"] == '{"url": "http://page"}'
    rows = outcomes(tmp_path)
    assert [(row["document"], row["place"], row["reason"]) for row in rows if "reason" in row] == [
        ("00000/00000001", 0, "http_status"),
        ("00000/00000001", 3, "opted_out"),
        ("00000/00000002", 1, "image_too_many_pixels"),
        ("00000/00000002", 2, "url_missing"),
    ]
    assert rows[0]["sha256"] == hashlib.sha256(png(1)).hexdigest()
    assert {record.key for record in records} == {f"00000/{n:08d}" for n in range(4)}


def test_images_of_mmc4_stay_with_their_sentences(server: str, tmp_path: Path) -> None:
    def info(path: str | None, place: int) -> dict[str, Any]:
        url = None if path is None else f"{server}{path}"
        return {"image_name": "x.png", "raw_url": url, "matched_text_index": place}

    rows = [
        {"url": "u", "text_list": ["One.", "Two."], "image_info": [info("/image/4", 1)]},
        {
            "url": "u",
            "text_list": ["Three."],
            "image_info": [info("/missing", 0), info(None, 0), info("/image/5", 0)],
        },
        {"url": "u", "text_list": ["Four."], "image_info": None},
        {"url": "u", "text_list": ["Five."], "image_info": []},
    ]
    report = download(make_config(tmp_path, pa.Table.from_pylist(rows, schema=MMC4)))
    assert (report["read"], report["kept"]) == (4, 2)
    assert report["rejected"] == {"http_status": 1, "url_missing": 1}
    assert report["documents"] == {"whole": 3, "some_images": 1, "no_images": 0}
    found, records = read_back(tmp_path)
    assert [outline(record) for record in records] == [
        ["One.", "/image/4", "Two."],
        ["/image/5", "Three."],
        ["Four."],
        ["Five."],
    ]
    # What was listed and is not there counts again where it is missed.
    assert found["images"]["rejected"] == {"image_missing": 2}
    table = pq.read_table(tmp_path / "out" / "00000.parquet")
    assert table.column("image_info")[0].as_py()[0]["image_name"] == "x.png"


def test_an_image_is_asked_for_once_in_a_document_and_only_so_many(
    server: str, tmp_path: Path
) -> None:
    again = (f"{server}/image/6",)
    row = [again, "text", again, (f"{server}/image/7",), (f"{server}/image/8",)]
    report = download(make_config(tmp_path, obelics(row), max_images_per_document=3))
    assert Handler.requests == {"/image/6": 1, "/image/7": 1}
    assert report["kept"] == 3
    assert report["rejected"] == {"too_many_images": 1}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_run_keeps_its_shards_and_ends_with_the_same_bytes(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mm1_pipeline.corpus.download import documents

    rows = [[f"text {n}", (f"{server}/image/{n}",), (f"{server}/missing/{n}",)] for n in range(7)]
    tables = (obelics(*rows[:4]), obelics(*rows[4:]).drop_columns(["general_metadata"]))
    config = make_config(tmp_path, *tables, documents_per_shard=3)
    real = documents.DocumentShard.add
    added = []

    def die(self: Any, listed: Any, found: Any) -> None:
        added.append(listed)
        if len(added) == 5:
            raise KeyboardInterrupt
        real(self, listed, found)

    with monkeypatch.context() as patch:
        patch.setattr(documents.DocumentShard, "add", die)
        with pytest.raises(KeyboardInterrupt):
            download(config)
    # Shards end with their file: 3 + 1 rows of the first, 3 of the second.
    kept = set(digests(tmp_path / "out"))
    suffixes = (".parquet", "_images.jsonl", "_stats.json")
    assert kept == {f"0000{n}{suffix}" for n in (0, 1) for suffix in suffixes}
    Handler.requests.clear()
    report = download(replace(config, concurrency=2))
    assert report["shards"] == 3
    assert not any(Handler.requests[f"/image/{n}"] for n in range(4))
    assert all(Handler.requests[f"/image/{n}"] == 1 for n in range(4, 7))
    whole = digests(tmp_path / "out")
    again = replace(config, output=str(tmp_path / "again"), concurrency=1)
    assert download(again) == report
    assert digests(tmp_path / "again") == whole
    _, records = read_back(tmp_path)
    assert [record.segments[0].text for record in records] == [f"text {n}" for n in range(7)]


def test_a_shorter_list_or_another_kind_leaves_nothing_behind(server: str, tmp_path: Path) -> None:
    rows = [["t", (f"{server}/image/{n}",)] for n in range(3)]
    config = make_config(tmp_path, obelics(*rows), documents_per_shard=1)
    assert download(config)["shards"] == 3
    assert download(replace(config, max_images=2))["read"] == 2
    assert not list((tmp_path / "out").glob("00002*"))
    table = pa.table({"url": [f"{server}/image/1"], "caption": ["c"]})
    pq.write_table(table, tmp_path / "lists" / "0.parquet")
    download(replace(config, kind="caption"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000.parquet", "00000.tar", "00000_stats.json"
    ]  # fmt: skip


def test_private_addresses_are_refused_and_the_text_stays(server: str, tmp_path: Path) -> None:
    table = obelics(["Secret.", (f"{server}/image/1",), ("http://169.254.169.254/x.png",)])
    limits = replace(LOCAL, allow_private_addresses=False)
    report = download(make_config(tmp_path, table, limits=limits))
    assert report["rejected"] == {"private_address": 2}
    assert not Handler.requests
    found, records = read_back(tmp_path)
    assert [outline(record) for record in records] == [["Secret."]]
    assert read_back(tmp_path, min_images=1)[0]["rejected"] == {"too_few_images": 1}
    assert found["kept"] == 1


def test_damaged_rows_lose_nothing_else(server: str, tmp_path: Path) -> None:
    """Lists of other lengths, gaps, and addresses that are no UTF-8."""
    broken = pa.array([b"http://\xff\xfe", None], pa.binary()).view(pa.string())
    table = pa.table(
        {
            "texts": pa.array([[None, "b"], ["only"], None], pa.list_(pa.string())),
            "images": pa.ListArray.from_arrays(
                pa.array([0, 2, 2, 2]), broken, mask=pa.array([False, True, False])
            ),
        }
    )
    report = download(make_config(tmp_path, table))
    assert report["rejected"] in ({"url_invalid": 1}, {"name_unknown": 1})
    found, records = read_back(tmp_path)
    assert [outline(record) for record in records] == [["b"]]
    assert found["rejected"] == {"malformed_record": 2}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"texts": [["a"]]}), r"found the columns texts \(.*expected images, lists"),
        (
            pa.table({"texts": [["a"]], "images": [[b"x"]]}),
            r"found the images' bytes in 0.parquet.*interleaved_parquet reads it as it is",
        ),
        (
            pa.table({"text_list": [["a"]], "image_info": [[{"matched_text_index": 0}]]}),
            r"expected image_info, lists of structs with the text raw_url",
        ),
        (OBELICS.empty_table(), "found no rows"),
    ],
)
def test_lists_of_the_wrong_kind_are_named(table: pa.Table, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        download(make_config(tmp_path, table))
