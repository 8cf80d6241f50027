"""The whole stage: files, report, resuming, determinism, preflight."""

from __future__ import annotations

import hashlib
import json
import logging

import pyarrow.parquet as pq
import pytest
from corpus_builders import (
    PLAIN,
    make_config,
    pattern,
    picture,
    run,
    sample,
    write_bytes,
    write_json,
    write_parquet,
    write_tar,
)

from mm1_pipeline.config.ingest import RecordKind
from mm1_pipeline.corpus import ingest as ingest_module
from mm1_pipeline.corpus import steps
from mm1_pipeline.corpus.decontamination import build_index, items_of
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.preflight import check_sources
from mm1_pipeline.corpus.quarantine import QUARANTINE_SCHEMA
from mm1_pipeline.corpus.records import (
    RECORD_SCHEMA,
    Record,
    RecordImage,
    RecordWriter,
    Segment,
    pretraining_sources,
    read_parts,
    read_records,
)
from mm1_pipeline.ground.rejects import printable


def make_sources(folder):
    """A good and bad source of every sort that matters here."""
    members = [m for n in range(7) for m in sample(f"{n}", picture(n), f"caption {n}")]
    write_tar(folder / "captions" / "0.tar", [*members, *sample("bad", b"no image", "caption")])
    lines = [json.dumps({"text": f"text {n % 9}", "n": n}) for n in range(10)]
    write_bytes(folder / "text" / "t.jsonl", "\n".join([*lines, "bad"]).encode())
    content = {
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "one"}],
    }
    write_json(folder / "eval" / "captions.json", content)
    write_bytes(folder / "eval" / "1.jpg", pattern(99))
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    write_json(folder / "chat" / "chat.json", [{"conversations": turns}])
    sources = {
        "captions": {"kind": "caption", "format": "img2dataset", "path": f"{folder}/captions"},
        "words": {
            "kind": "text",
            "format": "jsonl",
            "path": f"{folder}/text",
            "text_column": "text",
        },
        "chat": {"kind": "conversation", "format": "llava", "path": f"{folder}/chat"},
        "eval_captions": {
            "kind": "caption",
            "format": "coco_captions",
            "path": f"{folder}/eval",
            "split": "evaluation",
        },
    }
    return {name: {**PLAIN, **source} for name, source in sources.items()}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_report_and_schema(tmp_path):
    report = ingest(make_config(make_sources(tmp_path / "raw")), tmp_path / "out")
    assert report["sources"]["captions"] == {
        "kind": "caption",
        "format": "img2dataset",
        "split": "train",
        "read": 8,
        "kept": 7,
        "rejected": {"image_undecodable": 1},
        "passed_over": {},
        "images": {"read": 8, "kept": 7, "rejected": {"image_undecodable": 1}},
        "steps": {
            "read": {"read": 8, "kept": 8, "rejected": {}},
            "check": {"read": 8, "kept": 7, "rejected": {"image_undecodable": 1}},
            "filter": {"read": 7, "kept": 7, "rejected": {}},
            "deduplicate": {"read": 7, "kept": 7, "rejected": {}},
        },
    }
    assert report["sources"]["words"]["steps"]["read"]["rejected"] == {"invalid_json": 1}
    assert report["sources"]["words"]["steps"]["deduplicate"]["rejected"] == {"duplicate": 1}
    assert report["sources"]["words"]["rejected"] == {"duplicate": 1, "invalid_json": 1}
    assert report["totals"] == {
        "read": 21,
        "kept": 18,
        "rejected": {"duplicate": 1, "image_undecodable": 1, "invalid_json": 1},
        "images": {"read": 9, "kept": 8, "rejected": {"image_undecodable": 1}},
    }
    assert json.loads(json.dumps(report)) == report
    assert set(digests(tmp_path / "out")) == {
        "sources.json",
        *(f"records/{name}/part-00000.parquet" for name in report["sources"]),
        *(f"quarantine/{name}.parquet" for name in report["sources"]),
    }
    table = pq.read_table(tmp_path / "out" / "records" / "captions" / "part-00000.parquet")
    assert table.schema.equals(RECORD_SCHEMA)
    table = pq.read_table(tmp_path / "out" / "quarantine" / "captions.parquet")
    assert table.schema.equals(QUARANTINE_SCHEMA)
    (row,) = table.to_pylist()
    assert row["key"] == "0/bad"
    assert row["detail"].startswith("found a file that starts with 6e 6f")


def test_sources_of_pretraining_leave_conversations_and_evaluation_out(tmp_path):
    ingest(make_config(make_sources(tmp_path / "raw")), tmp_path / "out")
    assert pretraining_sources(tmp_path / "out") == {
        "captions": RecordKind.CAPTION,
        "words": RecordKind.TEXT,
    }


def test_two_runs_give_the_same_bytes(tmp_path):
    config = make_config(make_sources(tmp_path / "raw"), records_per_file=3)
    reports = [ingest(config, tmp_path / name) for name in ("a", "b")]
    assert reports[0] == reports[1]
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_records_per_file_changes_the_files_and_nothing_else(tmp_path):
    sources = make_sources(tmp_path / "raw")
    ingest(make_config(sources), tmp_path / "a")
    ingest(make_config(sources, records_per_file=3), tmp_path / "b")
    files = sorted(path.name for path in (tmp_path / "b" / "records" / "captions").iterdir())
    assert files == [f"part-{n:05d}.parquet" for n in range(3)]
    read = [list(read_records(tmp_path / name, "captions")) for name in "ab"]
    assert read[0] == read[1]
    sizes = [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "b").rglob("part*"))]
    assert max(sizes) == 3


def test_max_records_reads_no_more(tmp_path):
    sources = make_sources(tmp_path / "raw")
    sources["words"]["max_records"] = 4
    report = ingest(make_config(sources), tmp_path / "out")
    assert report["sources"]["words"]["read"] == 4


def count_reads(monkeypatch):
    names = []
    real = steps.read_source

    def read_source(source):
        names.append(source.name)
        return real(source)

    monkeypatch.setattr(steps, "read_source", read_source)
    return names


def test_an_interrupted_run_goes_on_with_the_next_source(tmp_path, monkeypatch):
    config = make_config(make_sources(tmp_path / "raw"))
    expected = ingest(config, tmp_path / "whole")
    real = ingest_module._find_repeats

    def die_in_chat(config, source, *rest):
        if source.kind == RecordKind.CONVERSATION:
            raise KeyboardInterrupt
        return real(config, source, *rest)

    monkeypatch.setattr(ingest_module, "_find_repeats", die_in_chat)
    with pytest.raises(KeyboardInterrupt):
        ingest(config, tmp_path / "first", work_dir=tmp_path / "work")
    assert not (tmp_path / "first" / "records").exists()
    monkeypatch.setattr(ingest_module, "_find_repeats", real)
    names = count_reads(monkeypatch)
    report = ingest(config, tmp_path / "second", work_dir=tmp_path / "work")
    assert names == []  # the last source had been read, and only what follows is made
    assert report == expected
    assert digests(tmp_path / "second") == digests(tmp_path / "whole")


def interrupt(config, folder, monkeypatch):
    """Leaves a work folder in which all sources are finished."""
    with monkeypatch.context() as patch:

        def die(*_):
            raise KeyboardInterrupt

        patch.setattr(ingest_module, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(config, folder)


def test_a_finished_source_is_read_again_when_it_would_differ(tmp_path, monkeypatch):
    sources = make_sources(tmp_path / "raw")
    out = tmp_path / "out"
    interrupt(make_config(sources), out, monkeypatch)
    sources["words"]["documents"] = {"min_characters": 2}
    write_tar(tmp_path / "raw" / "captions" / "1.tar", sample("new", picture(50), "new"))
    names = count_reads(monkeypatch)
    report = ingest(make_config(sources), out)
    assert names == ["captions", "words"]
    assert report["sources"]["captions"]["kept"] == 8
    assert not (out / ".ingest").exists()


def test_a_repeated_run_replaces_the_files(tmp_path):
    sources = make_sources(tmp_path / "raw")
    ingest(make_config(sources, records_per_file=2), tmp_path / "out")
    ingest(make_config(sources), tmp_path / "out")
    ingest(make_config(sources), tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_source_of_which_nothing_is_kept_is_empty_and_warned_about(tmp_path, caplog):
    write_bytes(tmp_path / "raw" / "t.jsonl", b'{"text": 1}\n')
    with caplog.at_level(logging.WARNING):
        result = run(tmp_path / "out", "text", "jsonl", tmp_path / "raw", text_column="text")
    assert result.records == []
    assert "kept 0 of 1 records; the commonest reason is text_missing" in caplog.text


def test_reading_an_unknown_source_names_the_known_ones(tmp_path):
    ingest(make_config(make_sources(tmp_path / "raw")), tmp_path / "out")
    with pytest.raises(ValueError, match=r"no records of the source 'other', only of .*words"):
        read_records(tmp_path / "out", "other")


def test_a_record_survives_the_disk(tmp_path):
    images = tuple(RecordImage(bytes([n]) * n, None, f"{n}", n, n + 1) for n in range(3))
    segments = (
        Segment.of_image(2),
        Segment.of_text("a\n\x00é第\U0001f600"),
        Segment.of_image(0),
        Segment.of_image(1),
        Segment.of_image(2),
    )
    metadata = {"n": 1, "deep": {"list": [1.5, None, True]}, "text": "é"}
    records = [
        Record("s", f"k{n}", RecordKind.INTERLEAVED, segments, images, ("r",), metadata)
        for n in range(200)
    ]
    with RecordWriter(tmp_path, 70) as writer:
        for record in records:
            writer.write(record)
    assert list(read_parts(tmp_path)) == records
    bare = next(read_parts(tmp_path, with_bytes=False))
    assert [image.bytes for image in bare.images] == [b""] * 3
    assert [image.sha256 for image in bare.images] == ["0", "1", "2"]
    assert bare.content_hash() == records[0].content_hash()


def test_content_hashes_tell_places_apart():
    def text(*parts):
        segments = tuple(Segment.of_text(part) for part in parts)
        return Record("s", "k", RecordKind.TEXT, segments).content_hash()

    hashes = [text("ab", "c"), text("a", "bc"), text("abc"), text('a","b'), text("a", "b")]
    assert len(set(hashes)) == len(hashes)


def test_all_wrong_sources_are_named_at_once(tmp_path):
    write_parquet(tmp_path / "p" / "t.parquet", [{"jpg": b"", "text": "a", "n": 1}])
    write_parquet(tmp_path / "i" / "t.parquet", [{"images": ["http://x"], "texts": [1]}])
    write_bytes(tmp_path / "j" / "t.jsonl", b'bad\n{"content": "a", "id": 1}\n')
    write_json(tmp_path / "v" / "questions.json", {})
    write_json(tmp_path / "c" / "captions.json", {})
    (tmp_path / "empty").mkdir()

    def source(kind, source_format, folder, **options):
        path = str(tmp_path / folder) if "://" not in folder else folder
        return {"kind": kind, "format": source_format, "path": path, **options}

    sources = {
        "nowhere": source("caption", "img2dataset", "missing"),
        "nothing": source("interleaved", "warc_html", "empty"),
        "columns": source("caption", "image_parquet", "p", text_column="n"),
        "urls": source("interleaved", "interleaved_parquet", "i"),
        "field": source("text", "jsonl", "j", text_column="text"),
        "half": source("conversation", "vqa_v2", "v"),
        "images": source("caption", "coco_captions", "c", image_path=f"{tmp_path}/none"),
        "pattern": source("text", "jsonl", "j", files="*train*", text_column="content"),
        "protocol": source("text", "jsonl", "nosuch://bucket/t.jsonl"),
        "good": source("text", "jsonl", "j", text_column="content"),
    }
    with pytest.raises(ValueError, match=r"ingest\.sources") as caught:
        ingest(make_config(sources), tmp_path / "out")
    lines = str(caught.value).split("\n")
    found = [line.split(":")[0] for line in lines]
    assert found == [
        "ingest.sources.nowhere.path",
        "ingest.sources.nothing.path",
        "ingest.sources.columns.image_column",
        "ingest.sources.columns.text_column",
        "ingest.sources.urls.path",
        "ingest.sources.urls.path",
        "ingest.sources.field.text_column",
        "ingest.sources.half.path",
        "ingest.sources.images.image_path",
        "ingest.sources.pattern.path",
        "ingest.sources.protocol.path",
    ]
    assert all("found" in line and "expected" in line for line in lines)
    assert "jpg (binary), text (string), n (int64)" in lines[2]
    assert not (tmp_path / "out").exists()


def test_good_sources_pass(tmp_path):
    check_sources(make_config(make_sources(tmp_path / "raw")))


def test_a_column_that_is_missing_later_stops_the_run_before_it_starts(tmp_path):
    for number in range(5):
        rows = [{"image": picture(), "caption" if number < 1 else "text": "a"}]
        write_parquet(tmp_path / "raw" / f"{number}.parquet", rows)
    write_bytes(tmp_path / "raw" / "00.parquet", b"PAR1 damaged")
    with pytest.raises(ValueError, match=r"text_column: found 'caption', .* 1\.parquet") as caught:
        run(tmp_path / "out", "caption", "image_parquet", tmp_path / "raw")
    assert "found 4 files of 6 whose columns" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_details_can_be_stored_and_are_the_same_in_every_run():
    assert printable("<BytesIO object at 0x7f00Ab>: \ud83d") == "<BytesIO object>: \\ud83d"


def parts_of(config):
    return config.evaluation_part(), config.pretraining_part(), config.conversation_part()


def test_sources_ingested_apart_are_those_ingested_together(tmp_path):
    """The nodes of the pipeline against one call: contaminated, repeated and bad records in all."""
    sources = make_sources(tmp_path / "raw")
    write_bytes(tmp_path / "raw" / "captions" / "9.tar", b"")
    write_tar(tmp_path / "raw" / "captions" / "8.tar", sample("seen", pattern(99), "one"))
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    write_json(tmp_path / "raw" / "chat" / "2.json", [{"conversations": turns, "image": "x.jpg"}])
    write_bytes(tmp_path / "raw" / "chat" / "x.jpg", pattern(99))
    config = make_config(sources)
    expected = ingest(config, tmp_path / "whole")
    assert len(expected["decontamination"]["rejected"]) == 2
    evaluation, *training = parts_of(config)
    reports = [ingest(evaluation, tmp_path / "evaluation")]
    index = tmp_path / "index"
    index.mkdir()
    records = [
        r for name in evaluation.sources for r in read_records(tmp_path / "evaluation", name)
    ]
    build_index(items_of(records), config.decontamination, index)
    for number, part in enumerate(training):
        folder = tmp_path / str(number)
        reports.append(ingest(part, folder, evaluation_index=index))
    found = {}
    for folder in ("evaluation", "0", "1"):
        found |= digests(tmp_path / folder)
    whole = digests(tmp_path / "whole")
    assert {n: d for n, d in found.items() if n != "sources.json"} == {
        n: d for n, d in whole.items() if n != "sources.json"
    }
    joined = ingest_module.join_reports(reports, config.source_names())
    assert json.dumps(joined) == json.dumps(expected)


def test_the_parts_of_a_recipe_hold_every_source_once(tmp_path):
    config = make_config(make_sources(tmp_path / "raw"))
    names = [name for part in parts_of(config) for name in part.sources]
    assert sorted(names) == sorted(config.sources)
    only_captions = make_config({"captions": make_sources(tmp_path / "raw")["captions"]})
    assert [list(part.sources) for part in parts_of(only_captions)] == [[], ["captions"], []]
    for number, part in enumerate(parts_of(only_captions)):  # which is no error
        ingest(part, tmp_path / f"out{number}")


def test_another_run_takes_the_sources_that_did_not_change(tmp_path, monkeypatch, caplog):
    sources = make_sources(tmp_path / "raw")
    place = tmp_path / "parts"
    first = ingest(make_config(sources), tmp_path / "first", part=place.joinpath)
    sources["words"]["documents"] = {"min_characters": 2}
    names = count_reads(monkeypatch)
    ingest(make_config(sources), tmp_path / "second", part=place.joinpath)
    assert names == ["words"]
    ingest(make_config(sources), tmp_path / "fresh")
    assert digests(tmp_path / "second") == digests(tmp_path / "fresh")
    names.clear()
    del sources["words"]["documents"]
    assert ingest(make_config(sources), tmp_path / "third", part=place.joinpath) == first
    assert names == []
    whole = digests(tmp_path / "first")
    assert digests(tmp_path / "third") == whole
    # What lies there is compared before it is taken, and whoever changes a version changes it too.
    victim = next((tmp_path / "third" / "records" / "captions").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert ingest(make_config(sources), tmp_path / "fourth", part=place.joinpath) == first
    assert names == ["captions"]
    assert "is not as it was written" in caplog.text
    assert digests(tmp_path / "fourth") == whole
