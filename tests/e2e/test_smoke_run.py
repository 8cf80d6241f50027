"""The whole pipeline at smoke size, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from edits_of_parameters import EDITS, FORETOLD, LOGS, RECORD, UPCYCLED, table
from kedro.framework.startup import bootstrap_project

from mm1_pipeline.cli import cli
from mm1_pipeline.datasets.artifact import ArtifactDataset
from mm1_pipeline.datasets.reports import HTMLReportDataset
from mm1_pipeline.streams.shard_index import ShardIndex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(make_smoke, tmp_path_factory):
    """One undisturbed run that several tests look at."""
    project = make_smoke(tmp_path_factory.mktemp("undisturbed"))
    status, output = project.run("run")
    assert status == 0, output
    return project, output


DETERMINISTIC = (
    "ingest_report.json",
    "shard_report.json",
    "sft_shard_report.json",
    "mixture.json",
    "mixture_vision_pretrain.json",
    "mixture_text_pretrain.json",
    "vision_held_out.json",
    "evaluation.json",
    "held_out_loss.json",
)
"""Reports without timings."""


def read_reports(project):
    return {name: (project.reports / name).read_bytes() for name in DETERMINISTIC}


TRAININGS = ("vision_pretrain", "text_pretrain", "pretrain", "upcycle", "dense_control", "sft")


def losses(project, *stages):
    found = []
    for stage in stages or TRAININGS:
        path = project.reports / f"training_{stage}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = map(json.loads, lines)
        found += [(stage, row["step"], row["loss"], row["terms"]) for row in rows]
    return found


def test_run_writes_every_report_and_says_where(finished):
    project, output = finished
    written = {path.name for path in project.reports.iterdir() if path.is_file()}
    trainings = {f"training_{stage}.jsonl" for stage in TRAININGS}
    assert written >= {*DETERMINISTIC, *trainings, "report.html"}
    assert "report.html" in "".join(output.split()), "long paths are wrapped"


def test_what_is_read_is_kept_or_rejected(finished):
    project, _ = finished
    report = json.loads((project.reports / "ingest_report.json").read_text())
    for name, source in report["sources"].items():
        assert source["read"] == source["kept"] + sum(source["rejected"].values()), name
        assert source["kept"] > 0, name


def test_evaluation_holds_the_contracts_models_tasks_and_shots(finished):
    project, _ = finished
    evaluation = json.loads((project.reports / "evaluation.json").read_text())
    stages = ("pretrain", "upcycle", "sft")
    blind = {f"{stage}:blind" for stage in stages}
    assert set(evaluation["models"]) == {*stages, *blind, "frequent"}
    for model in evaluation["models"].values():
        assert set(model["tasks"]) == {"sample_captions", "sample_vqa", "sample_digits"}
        for task in model["tasks"].values():
            for shot in task["shots"].values():
                assert {"value", "stderr", "n"} <= set(shot)
    assert {"prompts_sha256", "postprocess", "tokenizer"} <= set(evaluation["harness"])


def test_every_artifact_and_the_report_have_a_preview(finished):
    project, _ = finished
    catalog = yaml.safe_load((ROOT / "conf" / "base" / "catalog.yml").read_text())
    previewed = {}
    for name, entry in catalog.items():
        place = project.data / str(entry.get("path")).removeprefix("${globals:data_root}/")
        if (place / "CURRENT").exists():
            previewed[name] = ArtifactDataset(path=str(place), kind=entry["kind"]).preview()
    assert {"records", "sft_records", "shards", "sft_model", "predictions"} <= previewed.keys()
    for name, shown in previewed.items():
        assert shown["data"], name
        assert {len(row) for row in shown["data"]} == {len(shown["columns"])}, name
        json.dumps(shown, allow_nan=False)
    sources = {row[0] for row in previewed["records"]["data"]}
    assert {"text", "web_documents", "captions_openclipart"} <= sources
    assert {row[0] for row in previewed["predictions"]["data"]} >= {"sft", "pretrain:blind"}
    for model in ("sft_model", "vision_encoder", "text_decoder"):
        assert dict(previewed[model]["data"])["parameters"] > 1_000
    page = HTMLReportDataset(filepath=str(project.reports / "report.html")).preview()
    assert "At a glance" in page


def test_parts_are_trained_on_shards_of_their_own_sources(finished):
    project, _ = finished
    names = {}
    for name in ("shards", "text_shards", "vision_shards"):
        folder = project.data / "05_model_input" / name
        version = folder / (folder / "CURRENT").read_text().strip()
        names[name] = set(ShardIndex.read(version).sources)
    assert names["text_shards"] == {"text"}
    assert names["vision_shards"] < names["shards"] - {"text", "captions_synthetic"}


def test_encoder_and_decoder_are_trained_first_and_shown(finished):
    project, _ = finished
    assert len(losses(project, "vision_pretrain")) == len(losses(project, "text_pretrain")) == 3
    assert "retrieval_accuracy" in losses(project, "vision_pretrain")[0][3]
    for stage in ("vision_pretrain", "text_pretrain"):
        mixture = json.loads((project.reports / f"mixture_{stage}.json").read_text())
        assert mixture["num_steps"] == 3
    found = json.loads((project.reports / "vision_held_out.json").read_text())
    assert found["objective"] == "clip"
    for direction in found["sets"]["validation"].values():
        assert 0 < direction["chance"]["1"] < 0.1
    page = (project.reports / "report.html").read_text()
    assert "Retrieval on held-out pairs" in page
    for stage in ("vision_pretrain", "text_pretrain", "pretrain"):
        assert f"Stage {stage}" in page


def test_every_batch_holds_the_planned_shares(finished):
    project, _ = finished
    lines = (project.reports / "training_pretrain.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["shares"] == {"caption": 0.45, "interleaved": 0.45, "text": 0.1}


IN_ALL_STAGES = (
    "evaluate.batch_size=2",
    "ingest.sources.text.max_records=100",
    "ingest.sources.digit_strips.prompt=Read it.",
    "ingest.sources.eval_vqa.max_records=30",
    "shard.packing.overflow=truncate",
    "vision_pretrain.objective=aim",
    "model.decoder.num_layers=4",
    "pretrain.schedule.warmup_steps=0",
    "upcycle.moe.num_experts=3",
    "sft.seed=5",
    "evaluate.tasks.sample_digits.max_new_tokens=5",
    "report.title=Another",
)
"""Of the edits; `campaigns/edits.py` tries all, and runs them."""


@pytest.mark.parametrize("edit", IN_ALL_STAGES)
def test_a_changed_parameter_makes_stale_what_it_touches_and_nothing_else(
    finished, monkeypatch, edit
):
    # In this process: a process each would spend most of its time on starting.
    project, _ = finished
    monkeypatch.chdir(ROOT)  # And back, whatever a session changes it to.
    bootstrap_project(ROOT)
    command = project.command("mm1", "status", "--json", f"--params={edit}")
    result = CliRunner().invoke(cli, command[3:])
    assert "[\n" in result.output, result.output
    rows = json.loads(result.output[result.output.index("[\n") :])
    stale = EDITS[edit]
    assert {row["node"] for row in rows if row["state"] != "fresh"} == set(stale)
    assert result.exit_code == (3 if stale else 0)
    if stale:
        path, _, value = edit.partition("=")
        first = next(row for row in rows if row["state"] != "fresh")
        assert any(
            reason.startswith(f"params:{path}: ") and value in reason for reason in first["reasons"]
        ), first


def test_the_documents_hold_the_edits():
    bootstrap_project(ROOT)
    from kedro.framework.project import pipelines

    text = (ROOT / "docs" / "staleness.md").read_text(encoding="utf-8")
    expected = table([node.name for node in pipelines["__default__"].nodes])
    assert f"<!-- edits: begin -->\n{expected}<!-- edits: end -->" in text, expected


def test_the_record_of_edits_shows_nothing_missed_and_no_training_for_nothing():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert set(record) <= set(FORETOLD)
    assert len(record) >= 20
    trainings = {"pretrain_text", "pretrain_vision", "pretrain_model", "fine_tune", *UPCYCLED}
    for edit, found in record.items():
        ran, changed = set(found["ran"]), set(found["changed"])
        assert ran <= set(FORETOLD[edit]), edit
        assert edit in LOGS or changed <= ran, edit
        assert not (ran - changed) & trainings, edit


def test_status_tells_what_a_run_with_other_parameters_would_do(finished):
    project, _ = finished
    changed = "--params=pretrain.optimizer.learning_rate=0.01"
    status, output = project.run("mm1", "status", "--json", changed)
    rows = json.loads(output[output.index("[\n") :])
    stale = {row["node"] for row in rows if row["state"] != "fresh"}
    assert status == 3
    assert "pretrain_model" in stale
    assert not {"ingest_pretraining", "prepare_tokenizer", "pack_shards"} & stale
    assert project.run("mm1", "status")[0] == 0, "and changes nothing"


def test_the_run_is_remembered_with_its_scores(finished, monkeypatch):
    project, _ = finished
    monkeypatch.chdir(ROOT)
    bootstrap_project(ROOT)
    result = CliRunner().invoke(cli, project.command("mm1", "runs", "--json")[3:])
    run = json.loads(result.stdout)["runs"][-1]
    assert (run["run"], run["outcome"], len(run["ran"])) == (1, "done", 21)
    losses = json.loads((project.reports / "held_out_loss.json").read_text())["models"]
    of_streams = [stream["loss"] for stream in losses["sft"]["streams"].values()]
    assert run["scores"]["sft loss"] == pytest.approx(sum(of_streams) / len(of_streams))
    tasks = json.loads((project.reports / "evaluation.json").read_text())["models"]["sft"]["tasks"]
    values = [found["value"] for task in tasks.values() for found in task["shots"].values()]
    assert run["scores"]["sft score"] == pytest.approx(sum(values) / len(values))
    assert not [name for name in run["scores"] if "blind" in name or "frequent" in name]
    assert (project.data / run["versions"]["predictions"] / "sft").is_dir()


def test_a_sweep_looks_at_every_setting_before_any_run(finished, monkeypatch):
    project, _ = finished
    monkeypatch.chdir(ROOT)
    bootstrap_project(ROOT)
    rate = "--params=pretrain.optimizer.learning_rate="
    command = project.command("mm1", "sweep", "--pipeline=pretrain", "--dry-run", "--json")[3:]
    result = CliRunner().invoke(cli, [*command, f"{rate}1e-4,3e-4"])
    assert [item["would_run"] for item in json.loads(result.stdout)] == [["pretrain_model"]] * 2
    refused = CliRunner().invoke(cli, [*command, f"{rate}1e-4,-1"])
    assert refused.exit_code == 1
    assert "Found mistakes in 1 of 2 settings before the first run" in refused.output
    assert "learning_rate: found -1, expected a number of more than 0" in refused.output


WATCH_IMPORTS = """
import sys
from kedro.framework.cli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "composer", "streaming", "daft", "transformers"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""


@pytest.mark.parametrize("command", [("run",), ("mm1", "status")])
def test_with_everything_fresh_nothing_runs_and_nothing_heavy_is_imported(finished, command):
    project, _ = finished
    arguments = project.command(*command)[3:]
    finished_process = subprocess.run(
        [sys.executable, "-c", WATCH_IMPORTS, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    output = finished_process.stdout + finished_process.stderr
    assert finished_process.returncode == 0, output
    assert ("Ran 0 of 21 nodes" if command == ("run",) else "everything is fresh") in output


def test_same_seed_gives_the_same_reports(finished, make_smoke, tmp_path):
    project, _ = finished
    again = make_smoke(tmp_path)
    status, output = again.run("run")
    assert status == 0, output
    assert read_reports(again) == read_reports(project)
    assert losses(again) == losses(project)


def test_ended_and_killed_training_resumes_with_the_same_losses(finished, make_smoke, tmp_path):
    """SIGTERM, to the run alone as `kill` sends it; then SIGKILL, to all of its processes."""
    undisturbed, _ = finished
    project = make_smoke(tmp_path)
    shutil.copytree(undisturbed.data, project.data, symlinks=True)
    shutil.rmtree(project.data / "06_models" / "pretrain")
    (project.reports / "training_pretrain.jsonl").unlink()
    project.set_parameters(pretrain={"checkpoint": {"interval_steps": 1}})
    process = project.start("run", "--pipeline=pretrain")
    wait_for_checkpoint(project, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "stopped by SIGTERM after step" in output
    assert "Traceback" not in output
    process = project.start("run", "--pipeline=pretrain")
    wait_for_checkpoint(project, process, after=newest_checkpoint(project))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (project.reports / "training_pretrain.jsonl").exists()
    status, output = project.run("run", "--pipeline=pretrain")
    assert status == 0, output
    assert "esum" in output, "the last run must resume, not start again"
    assert losses(project) == losses(undisturbed)


def wait_for_checkpoint(project, process, *, after: str = "", seconds: float = 240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        if newest_checkpoint(project) > after:
            return
        time.sleep(0.02)
    pytest.fail("no checkpoint appeared")


def newest_checkpoint(project) -> str:
    work = project.data / "06_models" / "pretrain" / ".work"
    return max((path.name for path in work.rglob("step-????????")), default="")


def test_a_goal_builds_what_it_needs_and_nothing_else(make_smoke, tmp_path):
    project = make_smoke(tmp_path)
    status, output = project.run("run", "--pipelines=shard")
    assert status == 0, output
    assert (project.data / "05_model_input" / "shards" / "CURRENT").exists()
    assert (project.data / "05_model_input" / "sft_shards" / "CURRENT").exists()
    assert not (project.data / "06_models").exists()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (
            {"pretrain": {"schedule": {"num_stps": 3}}},
            "pretrain.schedule.num_stps: unknown parameter; did you mean `num_steps`?",
        ),
        (
            {"shard": {"packing": {"sequence_length": "long"}}},
            "shard.packing.sequence_length: found 'long'",
        ),
        (
            {"ingest": {"sources": {"text": {"path": "data/sample/missing"}}}},
            "ingest.sources.text.path: found",
        ),
    ],
)
def test_a_bad_parameter_is_one_clear_error_before_any_work(smoke_project, parameters, expected):
    smoke_project.set_parameters(**parameters)
    status, output = smoke_project.run("run")
    assert status == 1
    assert expected in output
    assert "Traceback" not in output
    assert not smoke_project.data.exists()
