"""Sources that are declared as what they are not, and pictures beside a table of text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from corpus_builders import make_config, pattern, run, write_bytes

from mm1_pipeline.config.source_formats import Content, SourceFormat
from mm1_pipeline.corpus.ingest import without_records
from mm1_pipeline.corpus.preflight import source_problems
from mm1_pipeline.corpus.recognition import content_problems, formats_of, record_problems
from source_samples import FORMATS, SETS, Writer, make_set


def make_source(folder: Path, source_format: str) -> Path:
    """A good source; gives its main file."""
    if source_format in SETS:
        make_set(folder, source_format)
        return folder / SETS[source_format][0]
    suffixes = FORMATS[source_format][1]
    name = suffixes[0] if not suffixes[0].startswith(".") else f"x{suffixes[0]}"
    getattr(Writer(folder), source_format)(name, ["a", "b", "c"])
    return folder / name


def problems_of(kind: str, source_format: str, path: Path) -> list[str]:
    config = make_config({"s": {"kind": kind, "format": source_format, "path": str(path)}})
    key = "s", config.sources["s"], config.limits
    return content_problems(*key) or source_problems(*key)[0] or record_problems(*key)


@pytest.mark.parametrize("true", list(FORMATS))
def test_a_source_of_one_format_is_refused_as_any_other(true, tmp_path):
    """Under the name that the other format's files have, which alone would not tell."""
    main = make_source(tmp_path / "own", true)
    kind = FORMATS[true][0]
    assert problems_of(kind, true, tmp_path / "own") == []
    for other in SourceFormat:
        if other.value == true:
            continue
        folder = tmp_path / other.value
        make_source(folder, true)
        moved = (folder / main.name).rename(folder / other.layout.files[0].replace("*", "x"))
        for left in folder.glob("*.json"):
            if left != moved:
                left.unlink()
        found = problems_of(other.layout.kind.value, other.value, folder)
        assert found, other
        assert all(text.startswith("ingest.sources.s.") for text in found), found
        assert all("found" in text and "expected" in text for text in found), found
        if found[0].startswith("ingest.sources.s.format: found") and "whose files" in found[0]:
            assert f" {true} (" in found[0], found


@pytest.mark.parametrize("wanted", SourceFormat)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"image,caption\n1.png,a dog\n2.png,a cat\n", "a table of text"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "a PNG image"),
        (b"PK\x03\x04" + b"\0" * 50, "a zip archive"),
        (b"<!DOCTYPE html><p>not found", "a page of HTML"),
        (b"PAR1" + b"\0" * 50, "a Parquet table"),
        (b'{"a": 1}', "JSON"),
    ],
)
def test_what_a_file_is_is_said(wanted, content, words, tmp_path):
    name = wanted.layout.files[0].replace("*", "x")
    write_bytes(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    if wanted is SourceFormat.VQA_V2:
        write_bytes(tmp_path / "annotations.json", content)
    wants = wanted.layout.content
    found = problems_of(wanted.layout.kind.value, wanted.value, tmp_path)
    if words == wants.value[: len(words)]:
        return  # Damaged, or with columns that do not fit: others tell of it.
    assert found
    if words in ("JSON", "a table of text") and wants in (Content.JSON, Content.TABLE):
        return  # Text as well, in which no record is found
    assert found[0].startswith("ingest.sources.s.format: ")
    assert words in found[0]


@pytest.mark.parametrize("other", ["x.parquet", "y.parquet"])
def test_a_damaged_file_beside_a_good_one_is_no_wrong_format(other, tmp_path):
    Writer(tmp_path).image_parquet("w.parquet", ["a"])
    write_bytes(tmp_path / other, b"image,caption\n1.png,a dog\n")
    config = make_config(
        {"s": {"kind": "caption", "format": "image_parquet", "path": str(tmp_path)}}
    )
    assert content_problems("s", config.sources["s"], config.limits) == []


def test_a_source_without_a_record_is_told_by_its_report(tmp_path):
    write_bytes(tmp_path / "raw" / "captions.json", b'{"images": [')
    result = run(tmp_path / "out", "caption", "coco_captions", tmp_path / "raw")
    (text,) = without_records({"sources": {"source": result.report}})
    assert "no record of format coco_captions" in text
    assert "invalid_json (1)" in text
    of_other_ids = {"sources": {"s": {**result.report, "passed_over": {"other_entry": 20}}}}
    assert without_records(of_other_ids) == [], "they are of the format"
    Writer(tmp_path / "good").image_csv("x.csv", ["a", "b"])
    result = run(tmp_path / "out2", "caption", "image_csv", tmp_path / "good")
    assert without_records({"sources": {"source": result.report}}) == []


def test_formats_are_found_for_a_folder(tmp_path):
    Writer(tmp_path).image_csv("x.csv", ["a", "b"])
    source = {"kind": "caption", "format": "image_parquet", "path": str(tmp_path)}
    config = make_config({"s": source})
    assert formats_of(config.sources["s"], config.limits) == [SourceFormat.IMAGE_CSV]


def write_pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        write_bytes(folder / name, pattern(number))


PLAIN = {"text": {"defaults": False}, "captions": {"defaults": False}}


def read_table(folder: Path, table: bytes, name: str = "captions.csv", **options):
    write_bytes(folder / "raw" / name, table)
    return run(folder / "out", "caption", "image_csv", folder / "raw", **PLAIN, **options)


def texts(result) -> list[str]:
    return [
        segment.text for record in result.records for segment in record.segments if segment.text
    ]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("a.csv", 'image,caption\n1.jpg,"a dog, running"\nsub/2.jpg,"a ""cat"""\n3,a cow\n'),
        ("a.csv", 'caption;image\r\na dog, running;1.jpg\r\n"a ""cat""";sub/2.jpg\r\na cow;3\r\n'),
        ("a.tsv", 'image\tcaption\n1.jpg\ta dog, running\n\nsub/2.jpg\t"a ""cat"""\n3\ta cow'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_pictures_beside_a_table_are_pairs(tmp_path, name, table, encoding):
    write_pictures(tmp_path / "raw", ["1.jpg", "sub/2.jpg", "3.jpg"])
    result = read_table(tmp_path, table.encode(encoding), name)
    assert texts(result) == ["a dog, running", 'a "cat"', "a cow"]
    assert result.rejected == {}


def test_bad_rows_of_a_table_of_text_cost_themselves_only(tmp_path):
    write_pictures(tmp_path / "raw", ["1.jpg", "2.jpg", "3.jpg", "4.jpg"])
    rows = [
        b"image,caption",
        b"1.jpg,a dog, running",
        b'2.jpg,"a quote that is never closed',
        b"2.jpg,a cat",
        b"9.jpg,nothing there",
        b"../1.jpg,out of the folder",
        b"3.jpg,",
        b",a caption alone",
        b"3.jpg,caf\xe9",
        b"4.jpg,a cow",
    ]
    result = read_table(tmp_path, b"\n".join(rows))
    assert texts(result) == ["a cat", "a cow"]
    assert result.rejected == {
        "malformed_record": 2, "image_missing": 1, "unsafe_path": 1, "image_without_caption": 1,
        "caption_without_image": 1, "invalid_utf8": 1,
    }  # fmt: skip
    assert (result.report["read"], result.report["kept"]) == (9, 2)


def test_captions_of_one_picture_are_its_references(tmp_path):
    write_pictures(tmp_path / "raw", ["1.jpg", "2.jpg"])
    table = b"image,caption,by\n1.jpg,a dog,me\n2.jpg,a cat,me\n1.jpg,a hound,you\n"
    result = read_table(tmp_path, table, split="evaluation")
    assert [record.references for record in result.records] == [("a dog", "a hound"), ("a cat",)]


@pytest.mark.parametrize(
    ("table", "parameter"),
    [
        (b"file,text\n1.jpg,a dog\n", "image_column"),
        (b"1.jpg,a dog\n2.jpg,a cat\n", "image_column"),
        (b"image,caption\nhttps://x/1.jpg,a dog\n", "image_column"),
        (b"image,caption\npictures/1.jpg,a dog\n", "image_path"),
    ],
)
def test_a_table_that_does_not_fit_the_folder_is_refused_before_it_is_read(
    tmp_path, table, parameter
):
    write_pictures(tmp_path, ["1.jpg", "2.jpg"])
    write_bytes(tmp_path / "captions.csv", table)
    found = problems_of("caption", "image_csv", tmp_path)
    assert found[0].startswith(f"ingest.sources.s.{parameter}: found ")
