"""Repetitions across sources of one kind: the first source by order keeps its records."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from corpus_builders import PLAIN, make_config, pattern, sample, write_bytes, write_tar

from mm1_pipeline.corpus import deduplication
from mm1_pipeline.corpus import ingest as ingest_module
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import read_records

NEAR = {"num_bands": 14, "rows_per_band": 8, "ngram_words": 3, "seed": 1}


def words(start, length=60, changed=()):
    """A text of its own for every start; `changed` words make it a near-duplicate."""
    found = [f"w{start * 1000 + n}" for n in range(length)]
    for place in changed:
        found[place] = f"new{place}"
    return " ".join(found)


def write_texts(folder, texts, per_file=3):
    for start in range(0, len(texts), per_file):
        lines = [json.dumps({"text": text}) for text in texts[start : start + per_file]]
        write_bytes(folder / f"{start:03d}.jsonl", "\n".join(lines).encode())
    return folder


def text_source(folder, **methods):
    rules = {**PLAIN["deduplication"], "near": NEAR, **methods}
    source = {"kind": "text", "format": "jsonl", "text_column": "text", "path": str(folder)}
    return {**source, **PLAIN, "deduplication": rules}


TEXTS = {
    "first": [words(1), words(2), words(2, changed=(30,)), words(3)],
    "second": [words(4), words(1), words(2, changed=(31,)), words(5), words(4)],
    "third": [words(5, changed=(3,)), words(6), words(1, changed=(50,)), words(6)],
}


def text_sources(folder, **methods):
    return {
        name: text_source(write_texts(folder / name, texts), **methods)
        for name, texts in TEXTS.items()
    }


def kept(out, name):
    return [record.segments[0].text for record in read_records(out, name)]


def quarantined(out, name):
    rows = pq.read_table(out / "quarantine" / f"{name}.parquet").to_pylist()
    return [(row["key"], row["reason"], row["detail"]) for row in rows]


def check_counts(report, out):
    for name, source in report["sources"].items():
        left = source["read"]
        for step in source["steps"].values():
            assert step["read"] == left == step["kept"] + sum(step["rejected"].values())
            left = step["kept"]
        assert left == source["kept"] == len(list(read_records(out, name)))
        reasons = Counter(reason for _, reason, _ in quarantined(out, name))
        assert reasons == source["rejected"]


@pytest.mark.parametrize("rows_per_pass", [7, 50_000_000])
@pytest.mark.parametrize("partition_bytes", [1, 1_000_000])
def test_texts_of_earlier_sources_are_not_repeated(
    tmp_path, monkeypatch, rows_per_pass, partition_bytes
):
    monkeypatch.setattr(deduplication, "ROWS_PER_PASS", rows_per_pass)
    config = make_config(text_sources(tmp_path / "raw"), partition_bytes=partition_bytes)
    report = ingest(config, tmp_path / "out")
    check_counts(report, tmp_path / "out")
    assert kept(tmp_path / "out", "first") == [words(1), words(2), words(3)]
    assert kept(tmp_path / "out", "second") == [words(4), words(5)]
    assert kept(tmp_path / "out", "third") == [words(6)]
    assert report["sources"]["second"]["rejected"] == {"duplicate": 2, "near_duplicate": 1}
    assert report["sources"]["third"]["rejected"] == {"near_duplicate": 2, "duplicate": 1}
    assert [detail for _, _, detail in quarantined(tmp_path / "out", "third")] == [
        "repeats second/003/00000001",
        "repeats first/000/00000001",
        "repeats 000/00000002",
    ]


def test_each_source_on_its_own_keeps_what_others_have(tmp_path):
    config = make_config(text_sources(tmp_path / "raw", within="source"))
    report = ingest(config, tmp_path / "out")
    check_counts(report, tmp_path / "out")
    assert [report["sources"][name]["kept"] for name in TEXTS] == [3, 4, 3]


def test_sources_lose_what_one_source_of_all_their_records_would(tmp_path):
    across = make_config(text_sources(tmp_path / "raw"), partition_bytes=1)
    ingest(across, tmp_path / "across")
    together = write_texts(tmp_path / "one", [text for texts in TEXTS.values() for text in texts])
    ingest(make_config({"one": text_source(together)}), tmp_path / "whole")
    texts = [text for name in TEXTS for text in kept(tmp_path / "across", name)]
    assert texts == kept(tmp_path / "whole", "one")


def test_the_order_of_the_sources_decides(tmp_path):
    sources = text_sources(tmp_path / "raw")
    turned = {name: sources[name] for name in reversed(sources)}
    ingest(make_config(turned), tmp_path / "out")
    assert kept(tmp_path / "out", "third") == [
        words(5, changed=(3,)), words(6), words(1, changed=(50,))
    ]  # fmt: skip
    assert kept(tmp_path / "out", "first") == [words(3)]


def test_only_methods_with_the_same_values_are_compared(tmp_path):
    sources = text_sources(tmp_path / "raw")
    sources["first"]["deduplication"] = {**PLAIN["deduplication"], "within": "source"}
    sources["second"]["deduplication"] = {
        **sources["second"]["deduplication"], "near": {**NEAR, "seed": 2}
    }  # fmt: skip
    report = ingest(make_config(sources), tmp_path / "out")
    # `first` is searched for exact copies alone, and takes part in no other search.
    assert report["sources"]["second"]["rejected"] == {"duplicate": 2}
    assert kept(tmp_path / "out", "third") == [
        words(5, changed=(3,)), words(6), words(1, changed=(50,))
    ]  # fmt: skip


def test_pictures_of_earlier_sources_are_not_repeated(tmp_path):
    first = [sample(f"{n}", pattern(n), f"caption {n}") for n in range(4)]
    second = [
        sample("a", pattern(2, (120, 90), quality=60), "another"),
        sample("b", pattern(9), "caption 1"),
        sample("c", pattern(3), "caption 3"),
    ]
    sources = {}
    for name, samples in {"first": first, "second": second}.items():
        write_tar(tmp_path / name / "0.tar", [member for one in samples for member in one])
        rules = {**PLAIN["deduplication"], "perceptual": True, "max_caption_occurrences": 1}
        common = {"kind": "caption", "format": "img2dataset", "path": f"{tmp_path}/{name}"}
        sources[name] = {**common, **PLAIN, "deduplication": rules}
    report = ingest(make_config(sources), tmp_path / "out")
    check_counts(report, tmp_path / "out")
    # A caption of another source makes none frequent.
    assert [record.key for record in read_records(tmp_path / "out", "second")] == ["0/b"]
    found = {reason: detail for _, reason, detail in quarantined(tmp_path / "out", "second")}
    assert found == {
        "image_duplicate": "repeats first/0/2",
        "duplicate": "repeats first/0/3",
    }


def test_kinds_do_not_meet(tmp_path):
    write_tar(tmp_path / "pairs" / "0.tar", sample("1", pattern(1), "a caption"))
    pairs = {"format": "img2dataset", "path": f"{tmp_path}/pairs", **PLAIN}
    sources = {
        "pairs": {"kind": "caption", **pairs},
        "held_out": {"kind": "caption", "split": "evaluation", **pairs},
        "chat": {"kind": "conversation", **pairs},
    }
    config = make_config(sources, decontamination={"images": False, "texts": False})
    report = ingest(config, tmp_path / "out")
    assert [source["kept"] for source in report["sources"].values()] == [1, 1, 1]


def digests(folder):
    files = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_killed_run_goes_on_and_a_changed_source_changes_those_after_it(tmp_path, monkeypatch):
    sources = text_sources(tmp_path / "raw")
    config = make_config(sources, partition_bytes=1)
    expected = ingest(config, tmp_path / "whole")
    real = ingest_module._find_repeats
    searched = []

    def die_once(config, source, tasks, folder, finished):
        searched.append(tasks[0].name)
        if searched == ["first", "second"]:
            raise KeyboardInterrupt
        return real(config, source, tasks, folder, finished)

    monkeypatch.setattr(ingest_module, "_find_repeats", die_once)
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        ingest(config, tmp_path / "killed", work_dir=work)
    with monkeypatch.context() as patch:

        def die(*_):
            raise KeyboardInterrupt

        patch.setattr(ingest_module, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(config, tmp_path / "killed", work_dir=work)
    assert searched == ["first", "second", "second", "third"]
    write_texts(tmp_path / "raw" / "second", [words(6)], per_file=1)
    ingest(config, tmp_path / "changed", work_dir=work)
    assert searched[4:] == ["second", "third"]
    assert words(6) not in kept(tmp_path / "changed", "third")
    write_texts(tmp_path / "raw" / "second", TEXTS["second"])
    assert ingest(config, tmp_path / "again", work_dir=work) == expected
    assert digests(tmp_path / "again") == digests(tmp_path / "whole")
