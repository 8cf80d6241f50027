"""Whatever files, members and entries are called: rows in = kept + rejected + passed over."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import IngestConfig, SourceFormat
from mm1_pipeline.corpus.columns import to_table
from mm1_pipeline.corpus.filters import ImageChecker, check_record
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.readers.base import RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source, unread_files
from mm1_pipeline.corpus.records import RECORD_SCHEMA, read_records
from mm1_pipeline.corpus.steps import count_passed_over
from mm1_pipeline.ground.rejects import Passed, storable
from source_samples import FORMATS, Writer

examples = settings(max_examples=15, deadline=None)

PIECES = ["a", "1", ".", "..", " ", "v1.2", "#2", "%2F", "\\xe9", "\u00e9", "e\u0301", "\u4e2d"]
FILE_NAMES = st.lists(st.sampled_from([*PIECES, "\udce9", "\udcff"]), min_size=1, max_size=6)
ENTRY_NAMES = st.lists(st.sampled_from([*PIECES, "/", "\udce9", "\ud800", "\0"]), max_size=6)
LONG = "n" * 255


def file_names(suffixes: list[str], *, below: bool):
    """Names of several files of a folder, none hidden; some lie in folders of their own."""

    def to_name(pieces: list[str], suffix: str, folder: str) -> str:
        name = f"x{''.join(pieces)}"[: 255 - len(suffix)] + suffix
        return f"{folder}/{name}" if folder else name

    folders = st.sampled_from(["", "", "d.1", "x", "x1", "xa"] if below else [""])
    names = FILE_NAMES | st.just([LONG])
    one = st.builds(to_name, names, st.sampled_from(suffixes), folders)
    return st.lists(one, min_size=1, max_size=4, unique=True)


def entry_names():
    return st.lists(ENTRY_NAMES.map("".join) | st.just("n" * 255), min_size=1, max_size=6)


SEVERAL_COUNTS = ("gqa", "coco_captions", "vqa_v2", "ocr_vqa")
"""Formats in which one row may be more than one unit: a name that comes twice, or a half alone."""
WHOLE = ("jsonl", "image_parquet", "interleaved_parquet", "synth_dog")
"""Formats in which no name of ours makes a row unusable."""


def test_every_format_is_tried():
    assert set(FORMATS) == {item.value for item in SourceFormat}


@pytest.mark.parametrize("source_format", FORMATS)
def test_every_row_is_in_one_count_whatever_it_is_called(source_format):
    kind, suffixes = FORMATS[source_format]
    assert SourceFormat(source_format).layout.kind in (kind, "caption")

    named = file_names(suffixes or [".json"], below=source_format != "llava")

    @examples
    @given(named.flatmap(lambda names: st.tuples(
        *(st.tuples(st.just(name), entry_names()) for name in names))))  # fmt: skip
    def check(files):
        if source_format == "ocr_vqa":  # whose one file is called dataset
            files = [(f"dataset{n}.json", entries) for n, (_, entries) in enumerate(files)]
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(Path(folder) / "raw")
            for name, entries in files:
                getattr(writer, source_format)(name, entries)
            (writer.folder / "._x.tar").write_bytes(b"fork")
            (writer.folder / os.fsdecode(b"not\xff.read")).write_bytes(b"x")
            check_counts(Path(folder), source_format, kind, writer.rows)

    check()


def check_counts(folder: Path, source_format: str, kind: str, rows: int) -> None:
    """Reads a source as the step `read` does, but for what lies between its partitions."""
    source = {"kind": kind, "format": source_format, "path": str(folder / "raw")}
    source |= {"text": {"defaults": False}, "captions": {"defaults": False}}
    config = TypeAdapter(IngestConfig).validate_python({"sources": {"s": source}})
    chosen = config.sources["s"]
    files = open_files(chosen)
    passed: Counter[Passed] = Counter()
    checker = ImageChecker(chosen.image_rules)
    keys, rejected = [], 0
    items = read_source(Source("s", chosen, files, config.limits))
    for item in count_passed_over(items, passed):
        if isinstance(item, RejectedRecord):
            assert storable(item.key).encode()
            rejected += 1
            continue
        verdict = check_record(item, "s", chosen, checker, 10**9)
        if verdict.record is None:
            assert verdict.why is not None
            rejected += 1
            continue
        to_table([verdict.record.to_row()], RECORD_SCHEMA)
        keys.append(verdict.record.key)
    assert len(set(keys)) == len(keys)
    assert unread_files(chosen, files)[0].total() == 1
    if source_format == "img2dataset":  # of two members each; those of no sample are passed over
        assert len(keys) + rejected + passed.total() >= rows
    elif source_format == "warc_html":  # a request is no page
        assert len(keys) + rejected == passed[Passed.OTHER_WARC_RECORD] == rows // 2
    elif source_format in SEVERAL_COUNTS:
        assert len(keys) + rejected >= rows
    else:
        assert len(keys) + rejected == rows
    if source_format in WHOLE:
        assert len(keys) == rows


def test_a_whole_run_with_names_that_are_no_text(tmp_path):
    writer = Writer(tmp_path / "raw")
    for name in ("x\udce9.tar", "x\\xe9.tar", "d\udcff/x.1.tar", "d\udcff/x.2.tar"):
        writer.img2dataset(name, ["a", "a.b", "\udce9", "\\xe9", "a"])
    source = {"kind": "caption", "format": "img2dataset", "path": str(tmp_path / "raw")}
    source |= {"text": {"defaults": False}, "captions": {"defaults": False}}
    source |= {"deduplication": {"perceptual": False, "max_caption_occurrences": None}}
    options = {"sources": {"s": source}, "partition_bytes": 1}
    config = TypeAdapter(IngestConfig).validate_python(options)
    report = ingest(config, tmp_path / "out")["sources"]["s"]
    # `\udce9` is the byte E9, which is stored as `\\xe9`: the second of that name, as of `a`.
    assert (report["read"], report["kept"]) == (20, 12)
    assert report["rejected"] == {"duplicate_key": 8}
    keys = [record.key for record in read_records(tmp_path / "out", "s")]
    assert len(set(keys)) == 12
    quarantine = pq.read_table(tmp_path / "out" / "quarantine" / "s.parquet").to_pylist()
    assert Counter(row["reason"] for row in quarantine) == {"duplicate_key": 8}
