"""What every damage to every kind of file between stages comes to; the table of the documents.

A toy project leaves files of each kind where the stages leave theirs. Each is changed in five ways;
who names it is what `status` (and so the next run), `verify`, `verify --deep` and the dataset that
loads it say. Where nobody does, what the next run makes must be the same all the same.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kedro.io import DatasetError
from kedro_rerun import maintenance
from staleness_dummy import DummyProject

from mm1_pipeline.corpus.download.shards import finished_statistics, publish_shard
from mm1_pipeline.corpus.ingest import _finish, _finished_report
from mm1_pipeline.datasets.artifact import ArtifactDataset
from mm1_pipeline.evaluation.generation.answer_log import Answer, AnswerLog, RowLog
from mm1_pipeline.training.metrics import MetricsLog

DOCUMENT = Path(__file__).parents[3] / "docs" / "staleness.md"
BEGIN, END = "<!-- damage: begin -->\n", "<!-- damage: end -->"

DAMAGES = ("flip", "truncate", "delete", "replace", "extra")
"""A bit; the second half; the file; one that is whole but another's; one more beside it."""

HOLDS_NOTHING = "nothing reads it"
FILES = {
    "records (Parquet)": ("records", "records/s/part-00000.parquet"),
    "tokenizer.json": ("shards", "tokenizer.json"),
    "shards.json": ("shards", "shards.json"),
    "index of shards": ("shards", "s/train/index.json"),
    "shard": ("shards", "s/train/shard.00000.mds"),
    "weights": ("model", "model.safetensors"),
    "config.json of a model": ("model", "config.json"),
    "predictions": ("model", "predictions/t/answers.parquet"),
    "manifest.json": ("shards", "manifest.json"),
}
"""Files of an artifact's version."""
REPORTS = {
    "report, mixture": "08_reporting/evaluation.json",
    "published metrics": "08_reporting/training_log.json",
}
STATE = {
    "CURRENT": "shards/CURRENT",
    "record of runs": ".staleness/shard.json",
    "record of a run": ".staleness/runs/000001.json",
    "hashes of files": ".staleness/cache/hashes.json",
    "what is known of code": ".staleness/cache/code.json",
    "copy of a report": ".staleness/outputs/",
    "run lock": ".staleness/run.lock",
}
HARMLESS = {
    ("CURRENT", "extra"): HOLDS_NOTHING,
    ("report, mixture", "extra"): HOLDS_NOTHING,
    ("published metrics", "extra"): HOLDS_NOTHING,
    ("record of a run", "delete"): "`runs` has a row less",
    ("record of a run", "replace"): "decides nothing",
    ("record of a run", "extra"): HOLDS_NOTHING,
    ("hashes of files", "replace"): "holds other files",
    ("what is known of code", "replace"): "holds hashes of what it tells of",
    ("copy of a report", "extra"): "`gc` removes it",
    **{("run lock", damage): "only told to who waits" for damage in DAMAGES},
    **{
        (kind, damage): "computed again"
        for kind in ("hashes of files", "what is known of code")
        for damage in ("flip", "truncate", "delete")
    },
    **{(kind, "extra"): HOLDS_NOTHING for kind in ("hashes of files", "what is known of code")},
    **{
        ("copy of a report", damage): "its name is its hash: not used"
        for damage in ("flip", "truncate", "delete", "replace")
    },
}
"""Why a change that nobody names does not matter."""

_PUT = """
    from pathlib import Path
    import hashlib, json
    about = repr(config)
    def put(name, text):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
"""
_PUT_SHARDS = """
    put("s/train/shard.00000.mds", about)
    hashes = {"sha1": hashlib.sha1(about.encode()).hexdigest()}
    raw = {"basename": "shard.00000.mds", "bytes": len(about), "hashes": hashes}
    put("s/train/index.json", json.dumps({"version": 2, "shards": [{"raw_data": raw}]}))
"""


def build(folder: Path, number: int) -> DummyProject:
    """A project whose stages leave files with the names that the real ones give them."""
    project = DummyProject(folder)
    for node, artifact in (("ingest", "records"), ("shard", "shards"), ("train", "model")):
        names = [name for found, name in FILES.values() if found == artifact]
        puts = "".join(
            f"    put({name!r}, about)\n"
            for name in names
            if not name.startswith("s/") and name != "manifest.json"
        )
        begin = f'    folder = staged("{artifact}")\n'
        more = _PUT_SHARDS if node == "shard" else ""
        project.edit("nodes.py", begin, begin + _PUT + puts + more)
    project.edit("common.py", "return 1", f"return {number}")
    project.set("shard", width=number)
    project.set("evaluate", shots=number)
    project.set("train", steps=number)
    project.set("ingest", drop=("#", str(number)))
    project.run()
    project.status()
    return project


def flip(path: Path, _other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 + (content[len(content) // 2] in b" \n")] ^= 1
    path.write_bytes(content)


def truncate(path: Path, _other: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def delete(path: Path, _other: Path) -> None:
    path.unlink()


def replace(path: Path, other: Path) -> None:
    content = other.read_bytes()
    if path.name == "run.lock":  # Both runs of this process may have begun in one second.
        content = content.replace(b'"pid": ', b'"pid": 1')
    assert content != path.read_bytes() or not content, path
    path.write_bytes(content)


def extra(path: Path, _other: Path) -> None:
    shutil.copyfile(path, path.with_name(f"extra_{path.name}"))


ACTIONS: dict[str, Callable[[Path, Path], None]] = {
    "flip": flip,
    "truncate": truncate,
    "delete": delete,
    "replace": replace,
    "extra": extra,
}


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> tuple[DummyProject, DummyProject]:
    return (
        build(tmp_path_factory.mktemp("one"), 3),
        build(tmp_path_factory.mktemp("two"), 4),
    )


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], str]:
    return {}


def place_of(project: DummyProject, kind: str) -> Path:
    root = project.data_root
    if kind in FILES:
        artifact, name = FILES[kind]
        return root / artifact / (root / artifact / "CURRENT").read_text().strip() / name
    place = root / (REPORTS | STATE)[kind]
    return min(place.iterdir()) if place.is_dir() else place


def who_names(project: DummyProject, path: Path, kind: str) -> list[str]:
    """Who tells of a change, with the file, its artifact or its node in what is said."""
    artifact = FILES[kind][0] if kind in FILES else path.parent.name
    dataset = ArtifactDataset(path=str(project.data_root / artifact), kind=artifact)
    names = {path.name, f"extra_{path.name}", artifact, path.stem}
    found = []

    def names_it(texts: list[str], names: set[str] = names) -> bool:
        return any(name in text for text in texts for name in names)

    reasons = [
        f"{row.node} {reason}"
        for row in project.status().values()
        if row.state != "fresh"
        for reason in row.reasons
    ]
    if names_it(reasons):
        found.append("next run")
    plain, deep = (
        [
            f"{problem.path} {problem.text}"
            for problem in maintenance.verify(project.data_root, deep)
        ]
        for deep in (False, True)
    )
    files = names - {artifact}
    if names_it(plain, files):
        found.append("`verify`")
    elif names_it(deep, files):
        found.append("`verify --deep`")
    if kind in FILES:
        try:
            dataset.load()
        except DatasetError as error:
            found += ["load"] if names_it([str(error)]) else []
    return found


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [*FILES, *REPORTS, *STATE])
def test_a_change_is_named_or_does_not_matter(projects, cells, kind, damage):
    project, other = projects
    path = place_of(project, kind)
    whole, times = path.read_bytes(), path.stat()
    ACTIONS[damage](path, place_of(other, kind))
    found = who_names(project, path, kind)
    why = HARMLESS.get((kind, damage))
    assert bool(found) != bool(why), (found, why)
    cells[kind, damage] = ", ".join(found) if found else f"({why})"
    if not found:
        assert {row.state for row in project.status().values()} == {"fresh"}
    path.with_name(f"extra_{path.name}").unlink(missing_ok=True)
    path.write_bytes(whole)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


# Logs and marks of work in progress, which their own readers look at


def write_answers(folder: Path, number: int) -> Path:
    log = AnswerLog(folder / "log.jsonl", {"model": f"m{number}"})
    log.append([("p1", Answer("a", None)), ("p2", Answer("b", None))])
    return folder / "log.jsonl"


def read_answers(path: Path) -> list:
    log = AnswerLog(path, {"model": "m1"})
    return [log.get("p1"), log.get("p2"), len(log)]


def write_replies(folder: Path, number: int) -> Path:
    RowLog(folder / "judge.jsonl").append([{"key": key, "reply": number} for key in ("a", "b")])
    return folder / "judge.jsonl"


def write_metrics(folder: Path, number: int) -> Path:
    log = MetricsLog(folder / "training_x.jsonl")
    for step in (1, 2):
        log.append({"step": step, "loss": number / step})
    log.close()
    return log.path


def write_source(folder: Path, number: int, file: str = "finished.json") -> Path:
    work = folder / "work"
    work.mkdir(parents=True)
    (work / "records.parquet").write_text(f"records {number}")
    _finish(work, f"f{number}", {"read": 3}, folder / "part")
    return folder / "part" / file


def write_download(folder: Path, number: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "00000.tar.part").write_text(f"images {number}")
    publish_shard(folder, 0, (".tar",), {"identity": f"i{number}", "count": 3})
    return folder / "00000_stats.json"


WORK: dict[str, tuple[Callable[[Path, int], Path], Callable[[Path], Any]]] = {
    "logged answers": (write_answers, read_answers),
    "judge's replies": (write_replies, lambda path: RowLog(path).rows),
    "metrics of a training": (write_metrics, lambda path: MetricsLog(path).rows()),
    "finished source": (write_source, lambda path: _finished_report(path.parent, "f1")),
    "records of a finished source": (
        lambda folder, number: write_source(folder, number, "records.parquet"),
        lambda path: _finished_report(path.parent, "f1"),
    ),
    "fetched shard's counts": (
        write_download,
        lambda path: finished_statistics(path.parent, 0, "i1", (".tar",)),
    ),
    "fetched shard": (
        lambda folder, number: write_download(folder, number).with_name("00000.tar"),
        lambda path: finished_statistics(path.parent, 0, "i1", (".tar",)),
    ),
}
ROWS = ("logged answers", "judge's replies", "metrics of a training")
WHOLE_FOLDERS = ("finished source", "records of a finished source")
"""In which nothing may lie but what was written."""
MADE_AGAIN = {
    "logged answers": "asked again",
    "judge's replies": "asked again",
    "metrics of a training": "left out",
    "finished source": "read again",
    "records of a finished source": "read again",
    "fetched shard's counts": "fetched again",
    "fetched shard": "fetched again",
}
UNDAMAGED = {
    ("metrics of a training", "replace"): "(another training's: see the number of rows)",
    ("judge's replies", "replace"): "(its keys are hashes of what was asked)",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", WORK)
def test_work_that_is_not_as_it_was_left_is_not_believed(cells, kind, damage, tmp_path, caplog):
    write, read = WORK[kind]
    path, other = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    whole = read(path)
    assert whole
    if damage == "extra" and kind in ROWS:
        with path.open("ab") as file:
            file.write(b'{"step": 3, "loss": 0.5, "prompt_sha256": "p3", "text": "c"}\n')
    else:
        ACTIONS[damage](path, other)
    with caplog.at_level(logging.WARNING):
        if damage == "delete" and kind == "metrics of a training":
            MetricsLog(path)
        found = read(path)
    said = ", said" if str(path) in caplog.text else ""
    if damage == "extra" and kind not in WHOLE_FOLDERS:
        assert found == whole
        cells[kind, damage] = f"left out{said}" if kind in ROWS else f"({HOLDS_NOTHING})"
    elif (kind, damage) in UNDAMAGED:
        cells[kind, damage] = UNDAMAGED[kind, damage]
    else:
        rows = found[:2] if kind == "logged answers" and isinstance(found, list) else found
        assert rows is None or all(row is None or row in whole for row in rows)
        assert found != whole
        cells[kind, damage] = f"{MADE_AGAIN[kind]}{said}"


def test_the_documents_hold_the_table(cells):
    kinds = [*FILES, *REPORTS, *STATE, *WORK]
    if len(cells) < len(kinds) * len(DAMAGES):
        pytest.skip("only some of the cells were tried")
    lines = [f"| file | {' | '.join(DAMAGES)} |", "|---|" + "---|" * len(DAMAGES)]
    rows = {kind: " | ".join(cells[kind, damage] for damage in DAMAGES) for kind in kinds}
    lines += [f"| {kind} | {row} |" for kind, row in rows.items()]
    table = "\n".join(lines) + "\n"
    text = DOCUMENT.read_text(encoding="utf-8")
    assert BEGIN + table + END in text, table
