"""Work of a killed run is taken up for the files that it read, and no others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus import ingest as module
from mm1_pipeline.corpus.ingest import ingest
from typed_values import entry

WORDS = [f"A plain sentence about the thing number {number} and no other." for number in range(9)]


class KilledError(BaseException):
    """What no handler catches."""


def write(folder: Path, words: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(3):
        rows = [json.dumps({"text": word}) for word in words[number::3]]
        (folder / f"{number}.jsonl").write_text("\n".join(rows) + "\n")


def configure(folder: Path) -> IngestConfig:
    text = {"defaults": False}
    source = {"kind": "text", "format": "jsonl", "path": str(folder), "text_column": "text"}
    return entry(
        IngestConfig,
        sources={"texts": {**source, "text": text, "deduplication": {"near": None}}},
        partition_bytes=1,
    )


def texts(directory: Path) -> list[str]:
    table = pq.read_table(directory / "records" / "texts")
    return sorted(json.dumps(row, default=str, sort_keys=True) for row in table.to_pylist())


def exchange(folder: Path) -> tuple[dict[Path, bytes], dict[Path, os.stat_result]]:
    """Writes other content of the same size; returns what lay there."""
    contents = {path: path.read_bytes() for path in folder.iterdir()}
    times = {path: path.stat() for path in contents}
    for path, content in contents.items():
        path.write_bytes(content.replace(b"plain", b"false"))
    return contents, times


def restore(contents: dict[Path, bytes], times: dict[Path, os.stat_result]) -> None:
    for path, content in contents.items():
        path.write_bytes(content)
        os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))


def test_partitions_of_what_lay_there_for_a_while_are_made_again(tmp_path, monkeypatch):
    raw, work = tmp_path / "raw", tmp_path / "work"
    write(raw, WORDS)
    config = configure(raw)
    ingest(config, tmp_path / "whole", work_dir=tmp_path / "other")
    saved = []
    plan, finish = module._plan_tasks, module._finish_source

    def swap_and_plan(*arguments, **options):
        saved.extend(exchange(raw))
        return plan(*arguments, **options)

    def die(*_arguments):
        raise KilledError

    monkeypatch.setattr(module, "_plan_tasks", swap_and_plan)
    monkeypatch.setattr(module, "_finish_source", die)
    with pytest.raises(KilledError):
        ingest(config, tmp_path / "killed", work_dir=work)
    assert list((work / "texts").rglob("*.parquet")), "the killed run left no work"
    restore(*saved)
    monkeypatch.setattr(module, "_plan_tasks", plan)
    monkeypatch.setattr(module, "_finish_source", finish)
    ingest(config, tmp_path / "again", work_dir=work)
    assert texts(tmp_path / "again") == texts(tmp_path / "whole")
    assert len(texts(tmp_path / "whole")) == len(WORDS)


def test_files_that_are_written_to_while_they_are_read_are_refused(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    write(raw, WORDS)
    finish = module._finish_source

    def touch_and_finish(*arguments):
        restore(*exchange(raw))
        return finish(*arguments)

    monkeypatch.setattr(module, "_finish_source", touch_and_finish)
    told = r"ingest\.sources\.texts\.path: found files that were written to while they were read"
    with pytest.raises(ValueError, match=told):
        ingest(configure(raw), tmp_path / "out")
    monkeypatch.setattr(module, "_finish_source", finish)
    ingest(configure(raw), tmp_path / "out")
    assert len(texts(tmp_path / "out")) == len(WORDS)
