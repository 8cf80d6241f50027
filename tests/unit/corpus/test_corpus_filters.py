"""Rules that look at a whole source: frequent images, documents, duplicates."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest
from corpus_builders import (
    noise,
    page,
    picture,
    run,
    sample,
    warc_record,
    write_bytes,
    write_parquet,
    write_tar,
    write_warc,
)

from mm1_pipeline.config.corpus_rules import DeduplicationConfig
from mm1_pipeline.config.ingest import (
    WEB_IMAGE_RULES,
    ImageRules,
    SourceConfig,
)
from mm1_pipeline.config.validation import ParameterError, check_parameters
from mm1_pipeline.corpus import deduplication
from mm1_pipeline.corpus.deduplication import (
    IMAGE_SCHEMA,
    KEY_SCHEMA,
    NAME_SCHEMA,
    PARTITION_STRIDE,
    TableWriter,
    find_frequent,
    find_repeats,
    read_frequent,
    read_repeats,
)
from mm1_pipeline.ground.rejects import Reason

DOCUMENTS = pa.schema([("texts", pa.list_(pa.string())), ("images", pa.list_(pa.binary()))])


def documents(tmp_path, *contents, **options):
    """Ingests interleaved documents, given as lists of text and bytes."""
    rows = [
        {
            "texts": [part if isinstance(part, str) else None for part in content],
            "images": [part if isinstance(part, bytes) else None for part in content],
        }
        for content in contents
    ]
    write_parquet(tmp_path / "raw" / "t.parquet", rows, DOCUMENTS)
    return run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw", **options)


def test_an_image_all_over_the_source_is_furniture_by_its_content(tmp_path):
    banner = noise()
    contents = [(f"text {n}", banner, picture(n), f"more {n}") for n in range(11)]
    result = documents(tmp_path, *contents)
    assert result.report["images"]["rejected"] == {"image_too_frequent": 11}
    assert result.texts == [f"text {n}|[image]|more {n}" for n in range(11)]


def test_what_occurs_as_often_as_allowed_is_kept(tmp_path):
    banner = noise()
    contents = [(f"text {n}", banner, picture(n)) for n in range(10)]
    assert documents(tmp_path, *contents).report["images"]["rejected"] == {}


def test_an_image_all_over_the_source_is_furniture_by_its_url(tmp_path):
    # One address whose content differs with every archive, as advertisements do.
    for n in range(3):
        body = page(f'<p>text {n}</p><img src="http://x/ad.jpg"><img src="http://x/{n}.jpg">')
        write_warc(
            tmp_path / f"raw{n}" / "a.warc.gz",
            [
                warc_record(f"http://x/{n}", body),
                warc_record(f"http://x/{n}.jpg", picture(n), "image/jpeg"),
                warc_record("http://x/ad.jpg", picture(100 + n), "image/jpeg"),
            ],
        )
    for n in range(3):
        (tmp_path / f"raw{n}" / "a.warc.gz").rename(tmp_path / f"{n}.warc.gz")
        (tmp_path / f"raw{n}").rmdir()
    result = run(
        tmp_path / "out", "interleaved", "warc_html", tmp_path, images={"max_occurrences": 2}
    )
    assert result.report["images"]["rejected"] == {"image_too_frequent": 3}
    assert result.texts == [f"text {n}|[image]" for n in range(3)]


def test_occurrences_on_one_page_count(tmp_path):
    banner = noise()
    result = documents(tmp_path, ["a", *[banner] * 11, picture(1), "b"])
    assert result.report["images"]["rejected"] == {"image_too_frequent": 11}


def test_only_the_first_occurrence_on_a_page_stays(tmp_path):
    first, second = picture(1), picture(2)
    result = documents(tmp_path, ["a", first, "b", second, "c", first, "d", second])
    assert result.texts == ["a|[image]|b|[image]|c\n\nd"]
    assert [image.bytes for image in result.records[0].images] == [first, second]
    assert result.rejected_keys("image_repeated", "image") == ["t/00000000"] * 2


def test_documents_have_images_and_text_within_limits(tmp_path):
    many = [picture(n) for n in range(31)]
    result = documents(
        tmp_path,
        ["no image"],
        ["too many", *many],
        [picture(40)],
        [picture(41), "x" * 101],
        ["just right", *many[:30]],
        documents={"max_characters": 100},
    )
    assert [row["reason"] for row in result.quarantine] == [
        "too_few_images",
        "too_many_images",
        "too_few_characters",
        "too_many_characters",
    ]
    assert result.report["images"] == {
        "read": 63,
        "kept": 30,
        "rejected": {"record_rejected": 33},
    }


def test_image_limits_count_after_furniture_is_gone(tmp_path):
    banner = noise()
    contents = [(f"text {n}", banner) for n in range(11)]
    result = documents(tmp_path, *contents, ["text", banner, *[picture(n) for n in range(30)]])
    assert result.rejected == {"too_few_images": 11}
    assert result.report["kept"] == 1


def test_captions_are_not_held_to_the_rules_of_the_web(tmp_path):
    members = [
        *sample("tiny", picture(1, (8, 8)), "tiny"),
        *sample("wide", picture(2, (300, 20)), "wide"),
        *sample("logo", picture(3), "logo", url="http://x/logo.png"),
        *[m for n in range(11) for m in sample(f"same{n}", picture(4), f"caption {n}")],
    ]
    write_tar(tmp_path / "raw" / "0.tar", members)
    result = run(tmp_path / "a", "caption", "img2dataset", tmp_path / "raw")
    assert result.rejected == {}
    rules = {
        "min_side": 10,
        "max_aspect_ratio": 10,
        "url_stop_words": ["logo"],
        "max_occurrences": 10,
    }
    result = run(tmp_path / "b", "caption", "img2dataset", tmp_path / "raw", images=rules)
    assert result.rejected == {
        "image_too_frequent": 11,
        "image_aspect_ratio": 1,
        "image_too_small": 1,
        "image_url_stop_word": 1,
    }
    rules["max_pixels"] = 100
    result = run(
        tmp_path / "c", "caption", "img2dataset", tmp_path / "raw", images=rules, split="evaluation"
    )
    assert result.rejected == {"image_too_many_pixels": 13}
    assert result.report["kept"] == 1


def test_rules_that_are_not_set_follow_the_kind():
    def rules(kind, source_format, **options):
        config = SourceConfig(kind=kind, format=source_format, path="x", **options)
        return config.image_rules

    assert rules("interleaved", "warc_html") == WEB_IMAGE_RULES
    chosen = rules("interleaved", "warc_html", images=ImageRules(min_side=32))
    assert (chosen.min_side, chosen.max_aspect_ratio) == (32, 2.0)
    assert rules("caption", "img2dataset") == ImageRules()
    assert rules("caption", "img2dataset", images=ImageRules(min_side=32)).max_side is None
    evaluation = rules(
        "caption", "img2dataset", split="evaluation", images=ImageRules(min_side=32, max_bytes=9)
    )
    assert evaluation == ImageRules(max_bytes=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "text"}, "kind: found text, expected interleaved"),
        (
            {"max_records": 0},
            "max_records: found 0, expected a whole number of",
        ),
        (
            {"images": {"max_pixels": 10**9}},
            "images.max_pixels: found 1000000000, expected",
        ),
        (
            {"images": {"max_aspect_ratio": 0.5}},
            "images.max_aspect_ratio: found 0.5, expected",
        ),
    ],
)
def test_parameters_that_make_no_sense_are_refused(options, message):
    raw = {"kind": "interleaved", "format": "warc_html", "path": "x", **options}
    with pytest.raises(ParameterError, match=re.escape(f"s.{message}")):
        check_parameters({"s": raw}, {"s": SourceConfig})


def test_the_earliest_of_equal_records_stays(tmp_path):
    lines = ["one", "two", "one ", "One", "two", "one"]
    text = "\n".join(f'{{"text": "{line}", "id": {n}}}' for n, line in enumerate(lines))
    write_bytes(tmp_path / "raw" / "t.jsonl", text.encode())
    result = run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text")
    assert [record.metadata["id"] for record in result.records] == [0, 1, 3]
    rows = [(row["key"], row["detail"]) for row in result.quarantine]
    assert rows == [
        ("t/00000003", "repeats t/00000001"),
        ("t/00000005", "repeats t/00000002"),
        ("t/00000006", "repeats t/00000001"),
    ]


def test_a_duplicate_repeats_text_and_images(tmp_path):
    first, second = picture(1), picture(2)
    result = documents(
        tmp_path,
        ["a", first, "b"],
        ["a", second, "b"],
        ["a", first, "c"],
        ["b", first, "a"],
        [first, "a", "b"],
        ["a", first, "b"],
    )
    assert result.rejected == {"duplicate": 1}
    assert result.rejected_keys("duplicate") == ["t/00000005"]


def test_documents_that_differ_in_furniture_only_are_equal(tmp_path):
    banner = noise()
    contents = [("same", banner, picture(1)), ("same", picture(1))]
    others = [(f"text {n}", banner, picture(5 + n)) for n in range(10)]
    result = documents(tmp_path, *contents, *others)
    assert result.rejected == {"duplicate": 1}


def test_evaluation_sources_and_sources_on_demand_keep_their_duplicates(tmp_path):
    write_bytes(tmp_path / "raw" / "t.jsonl", b'{"text": "a"}\n{"text": "a"}\n{"text": ""}')
    options = {"text_column": "text"}
    path = tmp_path / "raw"
    evaluation = run(tmp_path / "a", "text", "jsonl", path, split="evaluation", **options)
    assert (evaluation.report["kept"], evaluation.rejected) == (3, {})
    off = {"exact": False, "near": None}
    result = run(tmp_path / "b", "text", "jsonl", path, deduplication=off, **options)
    assert (result.report["kept"], result.rejected) == (2, {"too_few_characters": 1})


def write_keys(folder, name, rows, schema=KEY_SCHEMA):
    folder.mkdir(exist_ok=True)
    with TableWriter(folder / f"{name}.parquet", schema) as table:
        for row in rows:
            table.add(*row)
    return [folder / f"{name}.parquet"]


@pytest.mark.parametrize("rows_per_pass", [10**9, 7_000])
def test_duplicates_against_a_plain_search(tmp_path, monkeypatch, rows_per_pass):
    monkeypatch.setattr(deduplication, "ROWS_PER_PASS", rows_per_pass)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3_000, size=20_000)
    orders = np.sort(rng.choice(10**6, size=len(values), replace=False))
    first: dict[int, int] = {}
    expected = {}
    rows = list(zip(orders.tolist(), values.tolist(), strict=True))
    for order, value in rows:
        if first.setdefault(value, order) != order:
            expected[order] = (Reason.DUPLICATE, f"name {first[value]}")
    names = [(order, f"name {order}") for order, _ in rows]
    tables = {
        "exact": write_keys(tmp_path / "t", "exact", rows),
        "names": write_keys(tmp_path / "t", "names", names, NAME_SCHEMA),
    }
    find_repeats(DeduplicationConfig(), tables, tmp_path / "out", tmp_path / "work")
    assert read_repeats(tmp_path / "out", 0) == expected


def test_a_caption_made_frequent_by_copies_is_kept_once(tmp_path):
    exact = [(n, 1) for n in range(20)] + [(20 + n, 100 + n) for n in range(13)]
    captions = [(n, 5) for n in range(20)] + [(20 + n, 6) for n in range(12)] + [(32, 7)]
    names = [(n, str(n)) for n in range(33)]
    tables = {
        "exact": write_keys(tmp_path / "t", "exact", exact),
        "captions": write_keys(tmp_path / "t", "captions", captions),
        "names": write_keys(tmp_path / "t", "names", names, NAME_SCHEMA),
    }
    find_repeats(DeduplicationConfig(), tables, tmp_path / "out", tmp_path / "work")
    found = read_repeats(tmp_path / "out", 0)
    assert sorted(n for n, (why, _) in found.items() if why == "duplicate") == list(range(1, 20))
    frequent = [n for n, (why, _) in found.items() if why == "caption_too_frequent"]
    assert sorted(frequent) == list(range(20, 32))


def test_nothing_has_no_duplicates(tmp_path):
    tables = {
        "exact": write_keys(tmp_path / "t", "exact", []),
        "names": write_keys(tmp_path / "t", "names", [], NAME_SCHEMA),
    }
    find_repeats(DeduplicationConfig(), tables, tmp_path / "out", tmp_path / "work")
    assert read_repeats(tmp_path / "out", 0) == {}


@pytest.mark.parametrize("rows_per_pass", [10**9, 3])
def test_frequent_values_leave_nulls_out(tmp_path, monkeypatch, rows_per_pass):
    monkeypatch.setattr(deduplication, "ROWS_PER_PASS", rows_per_pass)
    places = [PARTITION_STRIDE, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    urls = ["a"] * 3 + ["b"] * 2 + [None] * 5
    rows = [(place, url, "x") for place, url in zip(places, urls, strict=True)]
    paths = write_keys(tmp_path / "t", "images", rows, IMAGE_SCHEMA)
    find_frequent(paths, "url", 2, tmp_path / "found")
    assert read_frequent(tmp_path / "found", 0) == {"a"}
    assert read_frequent(tmp_path / "found", 1) == {"a"}
    assert read_frequent(tmp_path / "found", 2) == set()
