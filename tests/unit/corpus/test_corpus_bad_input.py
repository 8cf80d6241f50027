"""Every bad input lands in quarantine under its own reason, and the run completes."""

from __future__ import annotations

import gzip
import json
import tarfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpus_builders import (
    bomb,
    noise,
    page,
    picture,
    run,
    sample,
    warc_record,
    write_bytes,
    write_json,
    write_parquet,
    write_tar,
    write_warc,
)

GOOD = sample("good", picture(), "a caption")


def run_tar(tmp_path, members, **options):
    write_tar(tmp_path / "raw" / "0.tar", members)
    return run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw", **options)


def run_text(tmp_path, data, name="t.jsonl", **options):
    write_bytes(tmp_path / "raw" / name, data)
    return run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text", **options)


def run_warc(tmp_path, records, **options):
    write_warc(tmp_path / "raw" / "0.warc.gz", records)
    return run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw", **options)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (noise()[:2_000], "image_truncated"),
        (bomb(), "image_too_many_pixels"),
        (b"no image", "image_undecodable"),
        (b"", "image_empty"),
    ],
)
def test_a_bad_image_takes_its_caption_along(tmp_path, data, reason):
    result = run_tar(tmp_path, [*GOOD, *sample("bad", data, "a caption")])
    assert result.rejected == {reason: 1}
    assert result.rejected_keys(reason) == ["0/bad"]
    assert [record.key for record in result.records] == ["0/good"]
    assert result.report["images"] == {"read": 2, "kept": 1, "rejected": {reason: 1}}


def test_halves_of_pairs(tmp_path):
    members = [
        *sample("a", picture(1), None),
        *sample("b", picture(2), " \n"),
        *sample("c", None, "a caption"),
        *sample("d", None, None, caption="in the metadata only"),
    ]
    result = run_tar(tmp_path, [*members, *GOOD])
    assert result.rejected_keys("image_without_caption") == ["0/a", "0/b"]
    assert result.rejected_keys("caption_without_image") == ["0/c", "0/d"]
    assert result.report["kept"] == 1


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/evil.jpg", "a/../../evil.jpg", "C:/e.jpg"])
def test_a_member_that_leads_out_of_the_archive_is_refused(tmp_path, name):
    stem = name.removesuffix(".jpg")
    result = run_tar(tmp_path, [(name, picture(1)), (f"{stem}.txt", b"a caption"), *GOOD])
    assert result.rejected == {"unsafe_path": 1}
    assert result.report["kept"] == 1
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert "evil.jpg" not in written


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("bad.jpg")
    link.type, link.linkname = kind, "good.jpg"
    result = run_tar(tmp_path, [*GOOD, link, ("bad.txt", b"a caption")])
    assert result.rejected == {"unsafe_member": 1}
    assert result.rejected_keys("unsafe_member") == ["0/bad"]


def test_limits_of_archives(tmp_path):
    members = [*sample("big", bytes(5_000), "a caption"), *GOOD]
    result = run_tar(tmp_path / "a", members, top={"limits": {"max_member_bytes": 4_000}})
    assert result.rejected == {"member_too_large": 1}
    members = [*GOOD, *sample("b", picture(1), "b"), *sample("c", picture(2), "c")]
    result = run_tar(tmp_path / "b", members, top={"limits": {"max_members": 4}})
    assert result.rejected == {"too_many_members": 1}
    assert [record.key for record in result.records] == ["0/good"]


def test_a_second_sample_of_one_name_is_no_other_sample(tmp_path):
    other = sample("other", picture(1), "b")
    result = run_tar(tmp_path, [*GOOD, *other, *sample("good", picture(2), "c")])
    assert result.rejected == {"duplicate_key": 1}


# A member takes a block of 512 bytes for its header and whole blocks for its content.
@pytest.mark.parametrize("place", ["in content", "in header", "between members", "end mark"])
def test_a_cut_tar_loses_only_its_end(tmp_path, place):
    path = write_tar(tmp_path / "raw" / "0.tar", [*GOOD, *sample("b", picture(1), "b")])
    data = path.read_bytes()
    start = data.index(b"b.jpg")
    cuts = {"in content": 700, "in header": 100, "between members": 0, "end mark": None}
    cut = start + cuts[place] if cuts[place] is not None else data.index(b"b.txt") + 1024
    path.write_bytes(data[:cut])
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    assert result.rejected == {"truncated_file": 1}, result.quarantine
    assert result.rejected_keys("truncated_file") == ["0.tar"]
    kept = [record.key for record in result.records]
    assert kept == (["0/good"] if place in ("in content", "end mark") else [])
    assert "good" in result.quarantine[0]["detail"] or kept or place != "in content"


def test_damage_inside_a_tar_is_not_taken_for_its_end(tmp_path):
    path = write_tar(tmp_path / "raw" / "0.tar", [*GOOD, *sample("b", picture(1), "b")])
    data = bytearray(path.read_bytes())
    start = data.index(b"b.jpg")
    data[start : start + 200] = b"x" * 200
    path.write_bytes(data)
    result = run(tmp_path / "out", "caption", "img2dataset", tmp_path / "raw")
    assert result.rejected == {"unreadable_file": 1}


def test_the_table_beside_a_shard_tells_what_is_missing(tmp_path):
    rows = [
        {"key": "good", "status": "success"},
        {"key": "lost", "status": "success"},
        {"key": "never", "status": "failed_to_download"},
    ]
    write_parquet(tmp_path / "raw" / "0.parquet", rows)
    result = run_tar(tmp_path, GOOD)
    assert result.rejected == {"missing_from_archive": 1}
    assert result.rejected_keys("missing_from_archive") == ["0/lost"]
    assert result.report["read"] == 2


@pytest.mark.parametrize("metadata", [b"{bad", b"[1]", b"\xff"])
def test_bad_metadata_of_a_sample(tmp_path, metadata):
    members = [*sample("bad", picture(1), "a caption"), ("bad.json", metadata), *GOOD]
    result = run_tar(tmp_path, members)
    reasons = {b"{bad": "invalid_json", b"[1]": "malformed_record", b"\xff": "invalid_utf8"}
    assert result.rejected == {reasons[metadata]: 1}


def test_a_caption_that_is_no_text(tmp_path):
    members = [("bad.jpg", picture(1)), ("bad.txt", b"caf\xe9"), *GOOD]
    result = run_tar(tmp_path, members)
    assert result.rejected == {"invalid_utf8": 1}


def test_bad_lines_cost_themselves_only(tmp_path):
    lines = {
        b'{"text": "good"}': None,
        b'{"text": "cut': "invalid_json",
        b"[" * 100_000: "invalid_json",
        b'{"text": "caf\xe9"}': "invalid_utf8",
        b'{"text": "\\ud83d"}': "invalid_utf8",
        b'{"texts": "misspelt"}': "text_missing",
        b'{"text": 5}': "text_missing",
        b'["text"]': "malformed_record",
        b'{"text": "' + b"x" * 200_000 + b'"}': "line_too_long",
        b'{"text": "  "}': "too_few_characters",
        b'{"text": "last"}': None,
    }
    data = b"\n".join(lines)
    result = run_text(tmp_path, data, top={"limits": {"max_line_bytes": 150_000}})
    by_line = {row["key"]: row["reason"] for row in result.quarantine}
    expected = {f"t/{n:08d}": reason for n, reason in enumerate(lines.values(), 1) if reason}
    assert by_line == expected
    assert result.texts == ["good", "last"]


def test_a_line_that_is_too_long_is_never_held(tmp_path):
    packed = zstandard.compress(b'{"text": "' + bytes(120_000_000) + b'"}\n{"text": "good"}')
    tracemalloc = pytest.importorskip("tracemalloc")
    tracemalloc.start()
    try:
        limits = {"limits": {"max_line_bytes": 1_000_000}}
        result = run_text(tmp_path, packed, "t.jsonl.zst", top=limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.rejected == {"line_too_long": 1}
    assert result.texts == ["good"]
    assert peak < 100_000_000  # measured 67 MB, two swollen pieces; the whole line has 120 MB


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "no archive"])
def test_damaged_compressed_text(tmp_path, suffix, damage):
    lines = "\n".join(json.dumps({"text": f"document {n} {n * 7919}"}) for n in range(8_000))
    pack = gzip.compress
    if suffix == ".zst":
        pack = zstandard.ZstdCompressor(write_checksum=True).compress
    packed = bytearray(pack(lines.encode()))
    if damage == "cut":
        del packed[len(packed) // 2 :]
    elif damage == "flipped":
        packed[len(packed) // 2 : len(packed) // 2 + 50] = bytes(50)
    else:
        packed = bytearray(b"plain text")
    result = run_text(tmp_path, bytes(packed), f"t.jsonl{suffix}")
    reason = "truncated_file" if damage == "cut" else "unreadable_file"
    if damage == "no archive":  # what a file is, its first bytes say
        assert result.rejected == {"invalid_json": 1}
        return
    assert result.rejected_keys(reason) == [f"t.jsonl{suffix}"]
    assert result.report["rejected"][reason] == 1
    assert result.report["kept"] > 500


def test_an_empty_file_is_one_rejected_unit_in_every_format(tmp_path):
    formats = {
        "img2dataset": ("caption", "e.tar"),
        "image_parquet": ("caption", "e.parquet"),
        "interleaved_parquet": ("interleaved", "e.parquet"),
        "coco_captions": ("caption", "captions.json"),
        "llava": ("conversation", "e.json"),
        "warc_html": ("interleaved", "e.warc.gz"),
        "jsonl": ("text", "e.jsonl"),
    }
    for name, (kind, file) in formats.items():
        write_bytes(tmp_path / name / file, b"")
        result = run(tmp_path / "out" / name, kind, name, tmp_path / name)
        assert result.rejected == {"empty_file": 1}, name
        assert (result.report["read"], result.report["kept"]) == (1, 0)


@pytest.mark.parametrize("cut", [10, 200, -1])
def test_a_cut_or_false_parquet_file(tmp_path, cut):
    rows = [{"image": picture(n), "caption": "c"} for n in range(3)]
    good = write_parquet(tmp_path / "raw" / "1.parquet", rows)
    write_bytes(tmp_path / "raw" / "0.parquet", good.read_bytes()[:cut])
    result = run(tmp_path / "out", "caption", "image_parquet", tmp_path / "raw")
    assert result.rejected == {"unreadable_file": 1}
    assert result.rejected_keys("unreadable_file") == ["0.parquet"]
    assert result.report["kept"] == 3


def test_bad_rows_of_a_table(tmp_path):
    text = pa.array([b"good", b"caf\xe9", b"no image", None, b"path only"], pa.binary())
    images = [
        {"bytes": picture(), "path": None},
        {"bytes": picture(1), "path": None},
        None,
        {"bytes": picture(2), "path": None},
        {"bytes": None, "path": "somewhere.jpg"},
    ]
    strings = pa.Array.from_buffers(pa.string(), len(text), text.buffers())
    table = pa.table({"image": pa.array(images), "caption": strings})
    (tmp_path / "raw").mkdir()
    pq.write_table(table, tmp_path / "raw" / "t.parquet", use_dictionary=False)
    result = run(tmp_path / "out", "caption", "image_parquet", tmp_path / "raw")
    assert {row["key"][-1]: row["reason"] for row in result.quarantine} == {
        "1": "invalid_utf8",
        "2": "caption_without_image",
        "3": "image_without_caption",
        "4": "image_missing",
    }


def test_interleaved_rows_that_do_not_fit_together(tmp_path):
    schema = pa.schema([("texts", pa.list_(pa.string())), ("images", pa.list_(pa.binary()))])
    rows = [
        {"texts": ["a", None], "images": [None, picture()]},
        {"texts": ["a"], "images": [None, picture()]},
        {"texts": ["both"], "images": [picture()]},
        {"texts": None, "images": None},
    ]
    write_parquet(tmp_path / "raw" / "t.parquet", rows, schema)
    result = run(tmp_path / "out", "interleaved", "interleaved_parquet", tmp_path / "raw")
    assert result.rejected == {"malformed_record": 3}
    assert result.texts == ["a|[image]"]


COCO = {
    "images": [
        {"id": 1, "file_name": "1.jpg"},
        {"id": 2, "file_name": "missing.jpg"},
        {"id": 3, "file_name": "../outside.jpg"},
        {"id": 4, "file_name": "/etc/hostname"},
        {"id": 5, "file_name": "1.jpg"},
        {"id": 6},
        {"id": 1, "file_name": "1.jpg"},
        "no entry",
    ],
    "annotations": [
        *({"id": n, "image_id": n, "caption": f"caption {n}"} for n in (1, 2, 3, 4, 6)),
        {"id": 7, "image_id": 99, "caption": "of nothing"},
        {"id": 8, "image_id": 1, "caption": None},
        {"image_id": 1, "caption": "without id"},
    ],
}


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_bad_entries_of_coco(tmp_path, split):
    write_bytes(tmp_path / "outside.jpg", picture())
    write_bytes(tmp_path / "raw" / "1.jpg", picture())
    write_json(tmp_path / "raw" / "captions.json", COCO)
    result = run(tmp_path / "out", "caption", "coco_captions", tmp_path / "raw", split=split)
    assert result.rejected == {
        "malformed_record": 3,
        "unsafe_path": 2,
        "caption_without_image": 1,
        "duplicate_key": 1,
        "image_missing": 1,
        "image_without_caption": 1,
        "text_missing": 1,
    }
    assert [r.metadata["image_id"] for r in result.records] == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": [', "invalid_json"),
        (b"\xff\xfe\xff", "invalid_utf8"),
        (b"[]", "malformed_record"),
        (b'{"images": []}', "malformed_record"),
    ],
)
def test_an_annotation_file_that_is_none(tmp_path, content, reason):
    write_bytes(tmp_path / "raw" / "captions.json", content)
    result = run(tmp_path / "out", "caption", "coco_captions", tmp_path / "raw")
    assert result.rejected == {reason: 1}
    assert result.rejected_keys(reason) == ["captions.json"]


def test_bad_entries_of_vqa(tmp_path):
    def question(number: Any, image: Any = 42, text: Any = "what?"):
        return {"question_id": number, "image_id": image, "question": text}

    def annotation(number, answers=("a",)):
        return {"question_id": number, "answers": [{"answer": answer} for answer in answers]}

    questions = [
        question(1),
        question(2),
        question(3, image=77),
        question(4, image=43),
        question(5, text=None),
        question(6),
        question(1),
        question(8, image="42; rm"),
    ]
    annotations = [annotation(n) for n in (1, 3, 4, 5, 8, 9)] + [annotation(6, ())]
    write_json(tmp_path / "raw" / "questions.json", {"questions": questions})
    write_json(tmp_path / "raw" / "annotations.json", {"annotations": annotations})
    write_bytes(tmp_path / "raw" / "images" / "42.jpg", picture())
    write_bytes(tmp_path / "raw" / "images" / "a_43.jpg", picture())
    write_bytes(tmp_path / "raw" / "images" / "b_43.png", picture(kind="PNG"))
    path = tmp_path / "raw"
    result = run(tmp_path / "out", "conversation", "vqa_v2", path, split="evaluation")
    assert result.rejected == {
        "image_missing": 2,
        "question_without_annotation": 2,
        "annotation_without_question": 1,
        "duplicate_key": 1,
        "image_ambiguous": 1,
        "text_missing": 1,
    }
    assert [r.metadata["question_id"] for r in result.records] == [1]


def test_bad_conversations(tmp_path):
    def turns(*values, speakers=("human", "gpt")):
        return [{"from": s, "value": v} for s, v in zip(speakers, values, strict=True)]

    entries = [
        {"image": "1.jpg", "conversations": turns("<image>hi", "hello")},
        {"image": "1.jpg", "conversations": turns("no tag", "hello")},
        {"image": ["1.jpg"], "conversations": turns("<image><image>", "hello")},
        {"conversations": turns("<image>no image", "hello")},
        {"conversations": turns("hi", "hello", speakers=("human", "narrator"))},
        {"image": "../../etc/passwd", "conversations": turns("<image>hi", "hello")},
        {"image": "missing.jpg", "conversations": turns("<image>hi", "hello")},
        {"image": 5, "conversations": turns("<image>hi", "hello")},
        {"conversations": []},
        {"conversations": [{"from": "human", "value": "alone"}]},
        {"conversations": turns("hello", "hi", speakers=("gpt", "human"))},
        {"conversations": turns("hi", "hi", "hello", speakers=("human", "human", "gpt"))},
        {"conversations": turns("hi", "hello", speakers=("human", "system"))},
        {"conversations": turns("be kind", speakers=("system",))},
        {"conversations": turns("hi", " ")},
        {"image": "1.jpg", "conversations": turns("draw it", "<image>")},
        {"conversations": [{"value": "nobody"}]},
        {"turns": []},
        "no entry",
    ]
    write_json(tmp_path / "raw" / "chat.json", entries)
    write_bytes(tmp_path / "raw" / "1.jpg", picture())
    result = run(tmp_path / "out", "conversation", "llava", tmp_path / "raw")
    assert [row["reason"] for row in result.quarantine] == [
        *["image_tag_mismatch"] * 3,
        "unknown_role",
        "unsafe_path",
        "image_missing",
        "malformed_record",
        "conversation_empty",
        *["turns_not_alternating"] * 5,
        "turn_empty",
        "image_in_answer",
        *["malformed_record"] * 3,
    ]
    assert all(row["detail"] for row in result.quarantine)
    assert result.texts == ["[image]|hi|hello"]


def test_a_cut_array_of_conversations_keeps_what_came_before(tmp_path):
    entry = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    text = json.dumps([{**entry, "id": n} for n in range(10)])
    top = {"deduplication": {"exact": False}}
    for name, data, reason in (
        ("cut", text[:-30], "truncated_file"),
        ("bad", text.replace('"id": 9', '"id" 9'), "invalid_json"),
        ("object", json.dumps({"a": 1}), "invalid_json"),
        ("bytes", text.encode().replace(b'"id": 9', b'"id": "\xff"'), "invalid_utf8"),
    ):
        data = data if isinstance(data, bytes) else data.encode()
        write_bytes(tmp_path / name / "chat.json", data)
        result = run(tmp_path / "out" / name, "conversation", "llava", tmp_path / name, top=top)
        assert result.rejected == {reason: 1}, name
        assert result.report["kept"] == (0 if name in ("object", "bytes") else 9), name


PAGE = page('<p>text</p><img src="http://x/1.jpg">')
IMAGE = warc_record("http://x/1.jpg", noise(), "image/jpeg")


def test_bad_pages_cost_themselves_only(tmp_path):
    deep = page("<div>" * 3_000 + "deep" + "</div>" * 3_000)
    records = [
        warc_record("http://x/good", PAGE),
        warc_record("http://x/gone", PAGE, status="404 Not Found"),
        warc_record("http://x/gzip", b"\x1f\x8bno", headers={"Content-Encoding": "gzip"}),
        warc_record("http://x/brotli", b"\xff" * 9, headers={"Content-Encoding": "br"}),
        warc_record(
            "http://x/huge", gzip.compress(bytes(10**7)), headers={"Content-Encoding": "gzip"}
        ),
        warc_record("http://x/large", b" " * 200_000),
        warc_record("http://x/deep", deep),
        warc_record("http://x/bytes", PAGE.replace(b"text", b"caf\xe9")),
        warc_record("http://x/imageless", page("<p>only text</p>")),
        IMAGE,
    ]
    result = run_warc(tmp_path, records, top={"limits": {"max_page_bytes": 100_000}})
    assert [row["reason"] for row in result.quarantine] == [
        "http_status",
        "http_encoding",
        "http_encoding",
        "page_too_large",
        "page_too_large",
        "page_too_complex",
        "invalid_utf8",
        "too_few_images",
    ]
    assert result.texts == ["text|[image]"]


def test_a_document_loses_its_bad_images_and_goes_on(tmp_path):
    good = [f'<p>text {n}</p><img src="{n}.jpg">' for n in range(6)]
    records = [
        warc_record("http://x/p", page("".join(good) + '<p>end</p><img src="logo.png">')),
        warc_record("http://x/0.jpg", noise()[:2_000], "image/jpeg"),
        warc_record("http://x/1.jpg", bomb(), "image/png"),
        warc_record("http://x/2.jpg", picture(size=(120, 99)), "image/jpeg"),
        warc_record("http://x/3.jpg", picture(size=(100, 300)), "image/jpeg"),
        warc_record("http://x/4.jpg", picture(), "image/jpeg"),
        warc_record("http://x/logo.png", picture(5), "image/png"),
    ]
    result = run_warc(tmp_path, records)
    assert result.texts == ["text 0\n\ntext 1\n\ntext 2\n\ntext 3\n\ntext 4|[image]|text 5\n\nend"]
    assert result.report["images"]["rejected"] == {
        "image_aspect_ratio": 1,
        "image_missing": 1,
        "image_too_many_pixels": 1,
        "image_too_small": 1,
        "image_truncated": 1,
        "image_url_stop_word": 1,
    }
    listed = [row for row in result.quarantine if row["unit"] == "image"]
    assert len(listed) == 6
    assert listed[0]["detail"].startswith("http://x/0.jpg: ")


def read_cut_warc(tmp_path, cut, *, packed):
    records = [warc_record(f"http://x/{n}", PAGE) for n in range(3)]
    pieces = [gzip.compress(r) if packed else r for r in [IMAGE, *records]]
    data = b"".join(pieces)
    position = len(data) + cut if cut < 0 else sum(map(len, pieces[:3])) + cut
    name = "0.warc.gz" if packed else "0.warc"
    write_bytes(tmp_path / "raw" / name, data[:position])
    top = {"deduplication": {"exact": False}}
    return run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw", top=top), name


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("cut", [5, 30, 150, -25])
def test_a_cut_web_archive_loses_only_its_end(tmp_path, packed, cut):
    result, name = read_cut_warc(tmp_path, cut, packed=packed)
    assert sum(result.rejected.values()) == 1, result.quarantine
    (reason,) = result.rejected
    assert reason in ("truncated_file", "unreadable_file")
    assert result.rejected_keys(reason) == [name]
    assert result.report["kept"] == 2
    assert result.report["read"] == 3


def test_an_image_that_is_cut_with_the_archive_is_counted(tmp_path):
    write_warc(tmp_path / "raw" / "0.warc.gz", [warc_record("http://x/p", PAGE), IMAGE])
    path = tmp_path / "raw" / "0.warc.gz"
    path.write_bytes(path.read_bytes()[:-1_000])
    result = run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw")
    assert result.rejected == {"too_few_images": 1, "truncated_file": 1}
    assert result.report["images"]["rejected"] == {"image_missing": 1}


def test_a_file_that_is_no_web_archive_is_one_rejected_unit(tmp_path):
    write_bytes(tmp_path / "raw" / "0.warc.gz", b"no web archive at all" * 50)
    result = run(tmp_path / "out", "interleaved", "warc_html", tmp_path / "raw")
    assert result.rejected == {"unreadable_file": 1}
    assert result.rejected_keys("unreadable_file") == ["0.warc.gz"]


def test_redirects_in_a_circle_end(tmp_path):
    circle = [
        warc_record(f"http://x/{n}.jpg", b"", "", "302 Found", {"Location": f"/{1 - n}.jpg"})
        for n in range(2)
    ]
    body = page('<p>text</p><img src="http://x/0.jpg">')
    result = run_warc(tmp_path, [warc_record("http://x/p", body), *circle])
    assert result.report["images"]["rejected"] == {"image_missing": 1}


def test_a_record_may_not_cost_more_memory_than_allowed(tmp_path):
    body = page("<p>text</p>" + "".join(f'<img src="{n}.bmp">' for n in range(9)))
    images = [
        warc_record(f"http://x/{n}.bmp", picture(n, kind="BMP"), "image/bmp") for n in range(9)
    ]
    limits = {"limits": {"max_record_bytes": 100_000}}  # one is 36 kB
    result = run_warc(tmp_path, [warc_record("http://x/p", body), *images], top=limits)
    assert result.rejected == {"record_too_large": 1}
    assert result.report["images"]["rejected"] == {"record_rejected": 9}


def test_details_are_the_same_in_every_run(tmp_path):
    for out in ("a", "b"):
        run_tar(tmp_path / out, [*GOOD, *sample("bad", b"no image", "a caption")])
    first, second = (
        (tmp_path / out / "out" / "quarantine" / "source.parquet").read_bytes() for out in "ab"
    )
    assert first == second


def test_lines_of_text_end_where_json_lines_do(tmp_path):
    """At a newline alone, whatever else a line holds; names as C4 and others give them."""
    lines = [
        '{"text": "one\u2028and two\u0085 and three", "id": 1}\r',
        '{"text": "a\\u0000b"}',
        "",
        '{"text": "' + "x" * 100_000 + '"}',
        "[" * 100_000,
        '{"text": "deep", "meta": ' + '{"a":' * 500 + "1" + "}" * 501,
        '{"text": "last"}',
    ]
    data = "\n".join(lines).encode()
    for name in ("c4-train.00000-of-01024.json.gz", "B.JSONL.GZ"):
        write_bytes(tmp_path / "raw" / name, gzip.compress(data))
    write_bytes(tmp_path / "raw" / "plain.json", data)
    write_bytes(tmp_path / "raw" / "utf16.jsonl", '{"text": "a"}\n'.encode("utf-16"))
    write_bytes(tmp_path / "raw" / "mark.jsonl", b"\xef\xbb\xbf" + lines[1].encode())
    deduplication = {"deduplication": {"exact": False}}
    result = run(
        tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text", top=deduplication
    )
    # Metadata nested 500 deep are stored by no reader of JSON: their record is rejected.
    assert result.report["kept"] == 3 * 4 + 1, result.rejected
    assert result.rejected["malformed_record"] == 3
    texts = [record.segments[0].text for record in result.records]
    assert texts[0] == "one\u2028and two\u0085 and three"
    assert texts.count("deep") == 0
    assert texts.count("a\0b") == 4
    assert set(result.rejected) <= {"invalid_json", "invalid_utf8", "malformed_record"}
    assert len([key for key in result.rejected_keys("invalid_json") if "utf16" not in key]) == 3
