"""Whatever files, members and entries are called: rows in = kept + rejected + passed over."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import FORMAT_KINDS, IngestConfig, SourceFormat
from mm1_pipeline.corpus.columns import to_table
from mm1_pipeline.corpus.filters import ImageChecker, check_record
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.quarantine import Passed, storable
from mm1_pipeline.corpus.readers.base import RejectedRecord, Source
from mm1_pipeline.corpus.readers.dispatch import open_files, read_source, unread_files
from mm1_pipeline.corpus.records import RECORD_SCHEMA, read_records
from mm1_pipeline.corpus.steps import count_passed_over

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


def picture(content: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (120, 100), (content % 256, content // 256, 200)).save(buffer, "PNG")
    return buffer.getvalue()


class Writer:
    """Writes files of one format; counts the rows and members that it puts in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0

    def next_row(self) -> int:
        self.rows += 1
        return self.rows

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def img2dataset(self, name: str, entries: list[str]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for entry in entries:
                row = self.next_row()
                name_of_sample = entry.replace("\ud800", "") + "_"
                for suffix, data in ((".png", picture(row)), (".txt", b"text %d" % row)):
                    info = tarfile.TarInfo(name_of_sample + suffix)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        self.write(name, buffer.getvalue())

    def jsonl(self, name: str, entries: list[str]) -> None:
        lines = [
            json.dumps({"caption": f"text {self.next_row()}", entry: entry}).encode()
            for entry in entries
        ]
        self.write(name, b"\n".join(lines))

    def image_parquet(self, name: str, entries: list[str]) -> None:
        rows = [(self.next_row(), entry) for entry in entries]
        columns = {
            "image": [picture(row) for row, _ in rows],
            "caption": [f"text {row}" for row, _ in rows],
            "url": [entry.encode("utf-8", "ignore").decode() for _, entry in rows],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        self.write(name, buffer.getvalue())

    def images(self, entries: list[str]) -> list[str]:
        """An image file of every entry; gives their names."""
        names = []
        for entry in entries:
            row = self.next_row()
            safe = entry.replace("/", "_").replace("\0", "0").replace("\ud800", "\udcd8")
            names.append(f"i{safe[:60]}{row}.png")
            self.write(f"images/{names[-1]}", picture(row))
        return names

    def llava(self, name: str, entries: list[str]) -> None:
        turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "it"}]
        content = [
            {"id": entry, "image": self.said(image), "conversations": turns}
            for entry, image in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps(content).encode())

    def dvqa(self, name: str, entries: list[str]) -> None:
        content = [
            {"question_id": e, "question": "q", "answer": "a", "image": self.said(i)}
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps(content).encode())

    def gqa(self, name: str, entries: list[str]) -> None:
        pairs = [
            f"{json.dumps(e)}: {json.dumps({'imageId': i[:-4], 'question': 'q', 'answer': 'a'})}"
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, ("{" + ", ".join(pairs) + "}").encode())

    def coco_captions(self, name: str, entries: list[str]) -> None:
        names = self.images(entries)
        images = [{"id": e, "file_name": self.said(i)} for e, i in zip(entries, names, strict=True)]
        # A caption of an identifier that comes twice is the first one's.
        captions = [
            {"id": e, "image_id": e, "caption": f"text {n}"}
            for n, e in enumerate(dict.fromkeys(entries))
        ]
        self.write(name, json.dumps({"images": images, "annotations": captions}).encode())

    def said(self, image: str) -> str:
        """The name of an image in the other normal form."""
        return unicodedata.normalize("NFD" if len(image) % 2 else "NFC", image)


FORMATS = {
    "img2dataset": ("caption", [".tar", ".TAR", ".v1.tar"]),
    "jsonl": ("text", [".jsonl", ".1.JSONL", ".v2.jsonl"]),
    "image_parquet": ("caption", [".parquet", ".0.parquet", ".1.PARQUET"]),
    "coco_captions": ("caption", ["captions.json", "captions.1.json", "captions.JSON"]),
    "llava": ("conversation", [".json", ".1.json", ".JSON"]),
    "dvqa": ("conversation", ["qa.json", "qa.1.json", "qa.JSON"]),
    "gqa": ("conversation", ["questions.json", "questions.1.json"]),
}


@pytest.mark.parametrize("source_format", FORMATS)
def test_every_row_is_in_one_count_whatever_it_is_called(source_format):
    kind, suffixes = FORMATS[source_format]
    assert FORMAT_KINDS[SourceFormat(source_format)].value in (kind, "caption")

    @examples
    @given(file_names(suffixes, below=source_format != "llava").flatmap(lambda names: st.tuples(
        *(st.tuples(st.just(name), entry_names()) for name in names))))  # fmt: skip
    def check(files):
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
    elif source_format in ("gqa", "coco_captions"):  # names that come twice are one unit each
        assert len(keys) + rejected >= rows
    else:
        assert len(keys) + rejected == rows
    if source_format in ("jsonl", "image_parquet"):
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
