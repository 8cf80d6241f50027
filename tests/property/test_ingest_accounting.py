"""Whatever is mixed into a source: kept + rejected = read, in the order it was read."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import read_records

GOOD = st.integers(0, 5)
"""Content of a good record; equal contents are duplicates."""

examples = settings(max_examples=20, deadline=None)


def picture(content: int, size: tuple[int, int] = (120, 100)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (40 * content, 10, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def run(folder: Path, **source):
    """Ingests one source; gives its report, its records and its quarantine."""
    plain = {
        "text": {"defaults": False},
        "captions": {"defaults": False},
        "deduplication": {"near": None, "perceptual": False, "max_caption_occurrences": None},
    }
    sources = {"s": {"path": str(folder / "raw"), **plain, **source}}
    config = TypeAdapter(IngestConfig).validate_python(
        {"sources": sources, "limits": {"max_line_bytes": 1_000}, "records_per_file": 3}
    )
    report = ingest(config, folder / "out")["sources"]["s"]
    quarantine = pq.read_table(folder / "out" / "quarantine" / "s.parquet").to_pylist()
    return report, list(read_records(folder / "out", "s")), quarantine


def check(result, expected: Counter, kept: list) -> None:
    """Compares with what the mixture must give, which is known without the code under test."""
    report, records, quarantine = result
    assert report["rejected"] == dict(expected)
    left = report["read"]
    for step in report["steps"].values():
        assert step["read"] == left == step["kept"] + sum(step["rejected"].values())
        left = step["kept"]
    assert left == report["kept"]
    assert report["kept"] == len(records) == len(kept)
    assert report["read"] == report["kept"] + sum(report["rejected"].values())
    listed = Counter(row["reason"] for row in quarantine if row["unit"] == "record")
    assert listed == expected
    keys = [record.key for record in records]
    rejected = [row["key"] for row in quarantine if row["unit"] == "record"]
    assert len(set(keys) | set(rejected)) == report["read"]
    images = report["images"]
    assert images["read"] == images["kept"] + sum(images["rejected"].values())
    assert images["kept"] == sum(
        1 for record in records for segment in record.segments if segment.image is not None
    )
    assert [record.segments[-1].text for record in records] == kept


def expect(items: list, reasons: dict[str, str]) -> tuple[Counter, list[str]]:
    """Rejections by reason and the texts that are kept: the first of every good content."""
    expected = Counter(reasons[item] for item in items if isinstance(item, str))
    good = [item for item in items if isinstance(item, int)]
    unique = list(dict.fromkeys(good))
    if len(good) > len(unique):
        expected["duplicate"] = len(good) - len(unique)
    return expected, [f"text {content}" for content in unique]


LINES = {
    "json": (b'{"text": ', "invalid_json"),
    "utf8": (b'{"text": "\xff"}', "invalid_utf8"),
    "surrogate": (b'{"text": "\\udc00"}', "invalid_utf8"),
    "field": (b'{"body": "x"}', "text_missing"),
    "type": (b'"text"', "malformed_record"),
    "long": (b'{"text": "' + b"x" * 2_000 + b'"}', "line_too_long"),
    "empty": (b'{"text": " "}', "too_few_characters"),
}


@examples
@given(st.lists(GOOD | st.sampled_from(sorted(LINES)), max_size=40))
def test_lines_of_text(items):
    # A first line that has the field, so that the parameters are beyond doubt.
    items = [0, *items]
    lines = [
        LINES[item][0] if isinstance(item, str) else b'{"text": "text %d"}' % item for item in items
    ]
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        (raw / "t.jsonl").write_bytes(b"\n".join(lines))
        result = run(Path(folder), kind="text", format="jsonl", text_column="text")
    check(result, *expect(items, {name: reason for name, (_, reason) in LINES.items()}))


SAMPLES = {
    "truncated": "image_truncated",
    "undecodable": "image_undecodable",
    "empty": "image_empty",
    "small": "image_too_small",
    "no_image": "caption_without_image",
    "no_caption": "image_without_caption",
    "unsafe": "unsafe_path",
    "link": "unsafe_member",
}


def sample_members(item, key: str) -> list[tuple[str, bytes | None]]:
    caption = (f"{key}.txt", b"a caption")
    match item:
        case int():
            return [(f"{key}.png", picture(item)), (f"{key}.txt", b"text %d" % item)]
        case "truncated":
            return [(f"{key}.png", picture(1)[:-60]), caption]
        case "undecodable":
            return [(f"{key}.png", b"no image"), caption]
        case "empty":
            return [(f"{key}.png", b""), caption]
        case "small":
            return [(f"{key}.png", picture(1, (9, 9))), caption]
        case "no_image":
            return [caption]
        case "no_caption":
            return [(f"{key}.png", picture(1))]
        case "unsafe":
            return [(f"../{key}.png", picture(1)), (f"../{key}.txt", b"a caption")]
        case _:
            return [(f"{key}.png", None), caption]


@examples
@given(st.lists(GOOD | st.sampled_from(sorted(SAMPLES)), max_size=20), st.booleans())
def test_samples_of_archives(items, cut):
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        with tarfile.open(raw / "0.tar", "w") as archive:
            for number, item in enumerate(items):
                for name, data in sample_members(item, f"{number:04d}"):
                    info = tarfile.TarInfo(name)
                    if data is None:
                        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
                    info.size = len(data or b"")
                    archive.addfile(info, io.BytesIO(data or b""))
        whole = (raw / "0.tar").read_bytes()
        if cut:  # right after the last member: only the last sample is in doubt
            (raw / "0.tar").write_bytes(whole.rstrip(b"\0") if items else b"\0" * 512)
        source = {"kind": "caption", "format": "img2dataset", "images": {"min_side": 10}}
        result = run(Path(folder), **source)
    expected, kept = expect(items[:-1] if cut else items, SAMPLES)
    if cut:
        expected["truncated_file"] += 1
    check(result, expected, kept)


DOCUMENTS = {
    "no_image": "too_few_images",
    "bad_image": "too_few_images",
    "no_text": "too_few_characters",
    "lengths": "malformed_record",
    "both": "malformed_record",
}
SCHEMA = pa.schema([("texts", pa.list_(pa.string())), ("images", pa.list_(pa.binary()))])


def document(item, number: int) -> dict:
    match item:
        case int():
            return {"texts": [None, f"text {item}"], "images": [picture(item), None]}
        case "no_image":
            return {"texts": ["a"], "images": [None]}
        case "bad_image":
            return {"texts": ["a", None], "images": [None, b"no image"]}
        case "no_text":
            return {"texts": [None], "images": [picture(0, (150, 101 + number))]}
        case "lengths":
            return {"texts": ["a"], "images": []}
        case _:
            return {"texts": ["a"], "images": [picture(1)]}


@examples
@given(st.lists(GOOD | st.sampled_from(sorted(DOCUMENTS)), max_size=20))
def test_interleaved_documents(items):
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        rows = [document(item, number) for number, item in enumerate(items)]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), raw / "t.parquet")
        source = {"kind": "interleaved", "format": "interleaved_parquet"}
        # Contents repeat by design here; that they are no boilerplate is tested elsewhere.
        result = run(Path(folder), **source, images={"max_occurrences": 100})
    check(result, *expect(items, DOCUMENTS))


TURNS = {
    "tags": "image_tag_mismatch",
    "role": "unknown_role",
    "missing": "image_missing",
    "escape": "unsafe_path",
    "alone": "turns_not_alternating",
    "shape": "malformed_record",
}


def conversation(item) -> object:
    def turns(question: str, answer: str, speaker: str = "gpt"):
        return [{"from": "human", "value": question}, {"from": speaker, "value": answer}]

    match item:
        case int():
            return {"image": "1.png", "conversations": turns("<image>q", f"text {item}")}
        case "tags":
            return {"image": "1.png", "conversations": turns("q", "a")}
        case "role":
            return {"conversations": turns("q", "a", "narrator")}
        case "missing":
            return {"image": "2.png", "conversations": turns("<image>q", "a")}
        case "escape":
            return {"image": "../../1.png", "conversations": turns("<image>q", "a")}
        case "alone":
            return {"conversations": turns("q", "a")[:1]}
        case _:
            return ["no", "conversation"]


@examples
@given(st.lists(GOOD | st.sampled_from(sorted(TURNS)), max_size=20), st.integers(0, 40))
def test_conversations(items, cut):
    text = json.dumps([conversation(item) for item in items])
    ends = [
        len(json.dumps([conversation(i) for i in items[:n]])) - 1 for n in range(len(items) + 1)
    ]
    length = len(text) - cut if cut < len(text) - 1 else len(text)
    whole = max(n for n, end in enumerate(ends) if end <= length or n == 0)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        (raw / "chat.json").write_text(text[:length])
        (raw / "1.png").write_bytes(picture(1))
        result = run(Path(folder), kind="conversation", format="llava")
    expected, kept = expect(items if length == len(text) else items[:whole], TURNS)
    if length < len(text):
        expected["truncated_file"] += 1
    check(result, expected, kept)
