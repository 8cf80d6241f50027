"""Whatever files, members and entries are called: rows in = kept + rejected + passed over."""

from __future__ import annotations

import gzip
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

    def interleaved_parquet(self, name: str, entries: list[str]) -> None:
        columns = {
            "texts": [[f"text {self.next_row()}", None] for _ in entries],
            "images": [[None, picture(number)] for number in range(len(entries))],
            "url": [entry.encode("utf-8", "ignore").decode() for entry in entries],
        }
        schema = {"texts": pa.list_(pa.string()), "images": pa.list_(pa.binary())}
        arrays = [pa.array(columns[c], schema.get(c, pa.string())) for c in columns]
        buffer = io.BytesIO()
        pq.write_table(pa.table(arrays, names=list(columns)), buffer)
        self.write(name, buffer.getvalue())

    def synth_dog(self, name: str, entries: list[str]) -> None:
        truth = json.dumps({"gt_parse": {"text_sequence": "words"}})
        paths = [entry.encode("utf-8", "ignore").decode() for entry in entries]
        images = [{"bytes": picture(self.next_row()), "path": path} for path in paths]
        buffer = io.BytesIO()
        table = pa.table({"image": images, "ground_truth": [truth] * len(entries)})
        pq.write_table(table, buffer)
        self.write(name, buffer.getvalue())

    def warc_html(self, name: str, entries: list[str]) -> None:
        """A page and the request for it, of every entry."""
        packed = b""
        for entry in entries:
            url = b"http://x/" + entry.encode("utf-8", "surrogatepass")
            page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>text</p>"
            for kind, body in ((b"response", page), (b"request", b"GET / HTTP/1.1\r\n\r\n")):
                self.next_row()
                head = b"WARC/1.0\r\nWARC-Type: %b\r\nWARC-Target-URI: %b\r\n" % (kind, url)
                head += b"Content-Type: application/http\r\nContent-Length: %d\r\n" % len(body)
                packed += gzip.compress(head + b"\r\n" + body + b"\r\n\r\n", mtime=0)
        self.write(name, packed)

    def vqa_v2(self, name: str, entries: list[str]) -> None:
        questions, annotations = [], []
        for entry in entries:
            row = self.next_row()
            self.write(f"images/{row:012d}.png", picture(row))
            both = {"question_id": entry, "image_id": row}
            questions.append({**both, "question": "q"})
            annotations.append({**both, "answers": [{"answer": "a"}] * 3})
        self.write(name, json.dumps({"questions": questions}).encode())
        folder, base = os.path.split(name)
        other = f"{base[:-30]}{base[-30:].replace('questions', 'annotations')}"[-250:]
        self.write(os.path.join(folder, other), json.dumps({"annotations": annotations}).encode())

    def a_okvqa(self, name: str, entries: list[str]) -> None:
        content = []
        for entry in entries:
            row = self.next_row()
            self.write(f"images/{row:012d}.png", picture(row))
            content.append(
                {
                    "split": "train",
                    "image_id": row,
                    "question_id": entry,
                    "question": "q",
                    "choices": ["rock", "fox"],
                    "correct_choice_idx": 1,
                    "direct_answers": ["fox"],
                }
            )
        self.write(name, json.dumps(content).encode())

    def ocr_vqa(self, name: str, entries: list[str]) -> None:
        book = {"imageURL": "http://x/i.jpg", "questions": ["q"], "answers": ["a"], "split": 1}
        for entry in entries:
            self.next_row()
            safe = entry.replace("/", "_").replace("\0", "0").replace("\ud800", "\udcd8")
            self.write(f"images/i{safe[:60]}.png", picture(self.rows))
        pairs = [f"{json.dumps(entry)}: {json.dumps(book)}" for entry in entries]
        self.write(name, ("{" + ", ".join(pairs) + "}").encode())

    def text_caps(self, name: str, entries: list[str]) -> None:
        content = [
            {"image_id": image[:-4], "caption_str": "text", "caption_id": entry}
            for entry, image in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps({"data": content}).encode())

    def chart_qa(self, name: str, entries: list[str]) -> None:
        content = [
            {"imgname": self.said(image), "query": "q", "label": "1"}
            for image in self.images(entries)
        ]
        self.write(name, json.dumps(content).encode())

    def ai2d(self, name: str, entries: list[str]) -> None:
        """One image and its questions: one unit, however many they are."""
        (image,) = self.images(entries[:1])
        question = {"answerTexts": ["egg", "larva"], "correctAnswer": 1}
        pairs = ", ".join(f"{json.dumps(e)}: {json.dumps(question)}" for e in entries)
        said = json.dumps(self.said(image))
        self.write(name, f'{{"imageName": {said}, "questions": {{{pairs}}}}}'.encode())

    def doc_vqa(self, name: str, entries: list[str]) -> None:
        content = [
            {"questionId": e, "question": "q", "image": self.said(i), "answers": ["a"]}
            for e, i in zip(entries, self.images(entries), strict=True)
        ]
        self.write(name, json.dumps({"dataset_name": "docvqa", "data": content}).encode())

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
    "interleaved_parquet": ("interleaved", [".parquet", ".0.parquet", ".1.PARQUET"]),
    "synth_dog": ("conversation", [".parquet", ".0.parquet"]),
    "warc_html": ("interleaved", [".warc.gz", ".example.com-0.warc.gz", ".WARC.GZ", ".warc"]),
    "vqa_v2": ("conversation", ["questions.json", "questions.1.json"]),
    "a_okvqa": ("conversation", ["aokvqa.json", "aokvqa.1.json"]),
    "ocr_vqa": ("conversation", []),
    "text_caps": ("conversation", ["textcaps.json", "textcaps.1.json"]),
    "chart_qa": ("conversation", [".json", ".1.json"]),
    "ai2d": ("conversation", [".png.json", ".1.json"]),
    "doc_vqa": ("conversation", [".json", ".1.json"]),
}
SEVERAL_COUNTS = ("gqa", "coco_captions", "vqa_v2", "ocr_vqa")
"""Formats in which one row may be more than one unit: a name that comes twice, or a half alone."""
WHOLE = ("jsonl", "image_parquet", "interleaved_parquet", "synth_dog")
"""Formats in which no name of ours makes a row unusable."""


def test_every_format_is_tried():
    assert set(FORMATS) == {item.value for item in SourceFormat}


@pytest.mark.parametrize("source_format", FORMATS)
def test_every_row_is_in_one_count_whatever_it_is_called(source_format):
    kind, suffixes = FORMATS[source_format]
    assert FORMAT_KINDS[SourceFormat(source_format)].value in (kind, "caption")

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
