"""Partitions: any number, any workers, killed anywhere, the same result."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from corpus_builders import (
    PLAIN,
    make_config,
    page,
    pattern,
    picture,
    sample,
    warc_record,
    write_bytes,
    write_tar,
    write_warc,
)

from mm1_pipeline.corpus import steps
from mm1_pipeline.corpus.ingest import ingest
from mm1_pipeline.corpus.records import read_records

NAMES = ("pairs", "words", "web")


def make_sources(folder, num_files=4, num_records=12):
    """Sources of several files, in which contents repeat within files and across."""
    for file in range(num_files):
        members = []
        for n in range(num_records):
            data = picture((n * 7 + file) % 20) if n % 3 else pattern(n + file)
            members += sample(f"{n}", data, f"caption {(n + file) % 9}")
        write_tar(folder / "pairs" / f"{file}.tar", members)
        lines = [json.dumps({"text": f"text {(n * file) % 17}"}) for n in range(num_records)]
        write_bytes(folder / "words" / f"{file}.jsonl", "\n".join([*lines, "bad"]).encode())
        records = []
        for n in range(num_records):
            url = f"http://x/{(n + file) % num_files}.jpg"
            body = f'<p>page {n} {file}</p><img src="{url}"><img src="http://x/ad.jpg">'
            records.append(warc_record(f"http://x/{file}/{n}", page(body)))
        records.append(warc_record(f"http://x/{file}.jpg", pattern(file), "image/jpeg"))
        records.append(warc_record("http://x/ad.jpg", pattern(77), "image/jpeg"))
        write_warc(folder / "web" / f"{file}.warc.gz", records)
    common = {"split": "train", **PLAIN}
    return {
        "pairs": {"kind": "caption", "format": "img2dataset", **common},
        "words": {"kind": "text", "format": "jsonl", "text_column": "text", **common},
        "web": {"kind": "interleaved", "format": "warc_html", "images": {"max_occurrences": 40}}
        | common,
    }


def config_of(folder, **options):
    sources = make_sources(folder)
    for name in sources:
        sources[name]["path"] = f"{folder}/{name}"
    sources["pairs"]["deduplication"] = {**PLAIN["deduplication"], "perceptual": True}
    return make_config(sources, **options)


def contents(out):
    return {name: list(read_records(out, name)) for name in NAMES}


def quarantined(out):
    tables = {name: pq.read_table(out / "quarantine" / f"{name}.parquet") for name in NAMES}
    return {name: sorted(map(str, table.to_pylist())) for name, table in tables.items()}


def test_partitions_change_neither_records_nor_counts(tmp_path):
    whole = ingest(config_of(tmp_path / "raw"), tmp_path / "whole")
    parted = ingest(config_of(tmp_path / "raw", partition_bytes=1), tmp_path / "parted")
    assert whole == parted
    assert contents(tmp_path / "whole") == contents(tmp_path / "parted")
    assert quarantined(tmp_path / "whole") == quarantined(tmp_path / "parted")
    assert parted["sources"]["web"]["images"]["rejected"] == {"image_too_frequent": 48}
    assert parted["sources"]["pairs"]["rejected"]["image_duplicate"] > 0
    assert parted["sources"]["words"]["rejected"]["duplicate"] > 0
    assert len(list((tmp_path / "parted" / "records" / "web").iterdir())) == 4


def digests(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_workers_change_no_byte(tmp_path):
    one = config_of(tmp_path / "raw", partition_bytes=1)
    two = config_of(tmp_path / "raw", partition_bytes=1, num_workers=2)
    assert ingest(one, tmp_path / "one") == ingest(two, tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_killed_run_makes_only_the_partitions_that_are_missing(tmp_path, monkeypatch):
    config = config_of(tmp_path / "raw", partition_bytes=1)
    expected = ingest(config, tmp_path / "whole")
    real = {
        name: getattr(steps, name) for name in ("_read_source", "_judge_partition", "_write_kept")
    }
    for name, at in (
        ("_read_source", 2),
        ("_judge_partition", 2),
        ("_write_kept", 3),
        ("_read_source", 3),
    ):
        calls = []

        def die(task, folder, *, name=name, at=at, calls=calls):
            calls.append(task)
            real[name](task, folder)
            if len(calls) == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(steps, name, die)
            with pytest.raises(KeyboardInterrupt):
                ingest(config, tmp_path / f"out{name}{at}", work_dir=tmp_path / "work")
    made = []

    def count(task, folder):
        made.append((task.name, task.number))
        real["_read_source"](task, folder)

    monkeypatch.setattr(steps, "_read_source", count)
    report = ingest(config, tmp_path / "last", work_dir=tmp_path / "work")
    assert made == [("words", 2), ("words", 3), *(("web", n) for n in range(4))]
    assert report == expected
    assert digests(tmp_path / "last") == digests(tmp_path / "whole")


PROGRAM = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from mm1_pipeline.config.ingest import IngestConfig
from mm1_pipeline.corpus.ingest import ingest

if __name__ == "__main__":
    content = Path(sys.argv[1]).read_bytes()
    config = TypeAdapter(IngestConfig).validate_json(content)
    ingest(config, Path(sys.argv[2]), work_dir=Path(sys.argv[3]))
"""


def start(folder, config, out, **options):
    from pydantic import TypeAdapter

    from mm1_pipeline.config.ingest import IngestConfig

    (folder / "program.py").write_text(PROGRAM)
    (folder / "config.json").write_bytes(TypeAdapter(IngestConfig).dump_json(config))
    arguments = ["program.py", "config.json", str(out), str(folder / "work")]
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, **options)


def children_of(process):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    return [int(pid) for pid in found.stdout.split()]


def test_workers_end_with_a_parent_that_is_killed_and_the_next_run_goes_on(tmp_path):
    config = config_of(tmp_path / "raw", partition_bytes=1, num_workers=2)
    process = start(tmp_path, config, tmp_path / "killed", start_new_session=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "work").glob("pairs/read/0000?")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children_of(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))
    report = ingest(config, tmp_path / "last", work_dir=tmp_path / "work")
    assert report == ingest(config, tmp_path / "whole")
    assert digests(tmp_path / "last") == digests(tmp_path / "whole")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="needs the extra `ray`: pip install 'mm1-pipeline[ray]'",
)
def test_a_ray_cluster_of_two_workers_gives_the_same_bytes(tmp_path):
    native = config_of(tmp_path / "raw", partition_bytes=1)
    ray = config_of(tmp_path / "raw", partition_bytes=1, num_workers=2, engine="ray")
    ingest(native, tmp_path / "native")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = start(tmp_path, ray, tmp_path / "ray", env=environment)
    assert process.wait(timeout=240) == 0
    assert digests(tmp_path / "native") == digests(tmp_path / "ray")


def test_ray_that_is_not_installed_is_named(tmp_path):
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed")
    config = config_of(tmp_path / "raw", engine="ray")
    with pytest.raises(ValueError, match=r"ingest\.engine: found 'ray', .* mm1-pipeline\[ray\]"):
        ingest(config, tmp_path / "out")
