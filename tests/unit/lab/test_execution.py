"""Runs of a grid: what is made once, what runs at once, what is found again."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mm1_pipeline.config.lab import ExecutionConfig, GridConfig
from mm1_pipeline.config.training import MixtureConfig, StreamMixture, TrainingConfig
from mm1_pipeline.ground.files import write_json
from mm1_pipeline.lab import execution
from mm1_pipeline.lab.execution import Place, plan_runs, run_grid
from mm1_pipeline.lab.grid import resolve_arms
from mm1_pipeline.lab.identity import Identity, IdentityReader, RunScopes, Scope
from mm1_pipeline.lab.results import item_scores, read_json
from mm1_pipeline.lab.store import RunStore, describe
from mm1_pipeline.lab.workers import Processes, RunFailedError, machine_shares
from typed_values import not_none

STREAMS = {
    "caption": StreamMixture(share=0.5, sources={"a": 1.0}),
    "text": StreamMixture(share=0.5, sources={"t": 1.0}),
}
PARAMETERS = {
    "pretrain": TrainingConfig(mixture=MixtureConfig(streams=STREAMS)),
    "text_pretrain": TrainingConfig(mixture=MixtureConfig(streams=STREAMS)),
    "sft": TrainingConfig(mixture=MixtureConfig(streams=STREAMS)),
}
ARMS = {
    "mix": {},
    "other_decoder": {"text_pretrain.seed": 99},
    "other_sft": {"sft.seed": 99},
}
GRID = GridConfig(arms=ARMS, seeds=(3, 4))


def scopes(code: str = "c") -> RunScopes:
    return RunScopes(
        Scope(("pack", "read_text"), ("text_pretrain",), code),
        Scope(("pack", "read_text", "train"), ("text_pretrain", "pretrain"), code),
        Scope(("pack", "train", "tune"), ("text_pretrain", "pretrain", "sft"), code),
    )


def planned(grid: GridConfig = GRID, code: str = "c", **parameters):
    groups = {**PARAMETERS, **parameters}
    return plan_runs(resolve_arms(grid, groups), lambda _run: scopes(code), IdentityReader())


class FakeKedro:
    """Stands for the runs: notes them, and leaves the reports that a run leaves."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.shares: dict[str, dict] = {}
        self.failing: set[str] = set()
        self.seconds = 0.0
        self.at_once = self.most_at_once = 0
        self.lanes: list[Path] = []
        self.overlaps = 0
        self._lock = threading.Lock()

    def run(self, command, folder, log, share):
        conf = Path(next(part for part in command if "--conf-source=" in part).split("=", 1)[1])
        root = Path(yaml.safe_load((conf / "arm" / "globals.yml").read_text())["data_root"])
        name = conf.as_posix().split("/conf/", 1)[1]
        with self._lock:
            self.calls.append(name)
            self.shares[name] = share
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            self.overlaps += root in self.lanes
            self.lanes.append(root)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
            self.lanes.remove(root)
        if name in self.failing:
            raise RunFailedError("ended with 1. Its last lines:\ntraining: the loss is nan")
        prepares = any(part.startswith("--to-nodes") for part in command)
        (write_preparation if prepares else write_outputs)(root)

    @property
    def runs(self) -> list[str]:
        return [name for name in self.calls if "prepare" not in name]

    @property
    def preparations(self) -> list[str]:
        return [name for name in self.calls if "prepare" in name]


def write_preparation(root: Path) -> None:
    version = root / "05_model_input" / "shards" / "0123456789ab"
    version.mkdir(parents=True, exist_ok=True)
    (version / "shard.mds").write_text("rows")
    (version / "manifest.json").write_text("{}")
    (version.parent / "CURRENT").write_text("0123456789ab\n")
    (root / ".staleness").mkdir(exist_ok=True)
    (root / ".staleness" / "pack.json").write_text('{"head": "0123456789ab"}')


def write_outputs(root: Path) -> None:
    assert (root / "05_model_input" / "shards" / "CURRENT").is_file()
    reports, version = root / "08_reporting", root / "07_model_output" / "pretrain_predictions"
    (version / "abc" / "pretrain").mkdir(parents=True, exist_ok=True)
    reports.mkdir(exist_ok=True)
    (version / "CURRENT").write_text("abc\n")
    row = {"key": "item 0", "score": 25.0, "prompt": "long"}
    (version / "abc" / "pretrain" / "vqa_4shot.jsonl").write_text(json.dumps(row) + "\n")
    rows = [json.dumps({"step": step, "timing": {"s": 2}}) for step in range(1, 251)]
    (reports / "training_pretrain.jsonl").write_text("\n".join(rows) + "\n")
    for name in ("evaluation", "held_out_loss"):
        (reports / f"pretrain_{name}.json").write_text("{}")


@pytest.fixture
def kedro(monkeypatch) -> FakeKedro:
    fake = FakeKedro()
    monkeypatch.setattr(Processes, "run", lambda _self, *arguments: fake.run(*arguments))
    monkeypatch.setattr(execution, "visible_gpus", lambda: ["4", "7"])
    return fake


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "project" / "conf" / "base").mkdir(parents=True)
    return tmp_path / "project"


@pytest.fixture
def place(project, tmp_path) -> Place:
    return Place(project, tmp_path / "data", tmp_path / "out", {"commit": "abc"})


class TestParts:
    def test_what_arms_share_is_prepared_once_and_linked(self, kedro, place):
        runs = planned()
        run_grid(ExecutionConfig(), runs, place)
        assert len(kedro.preparations) == 2  # with either decoder
        assert len(kedro.runs) == 6
        lanes = {run.name: run.lane(place) for run in runs}
        assert lanes["mix/seed3"] == lanes["other_sft/seed3"]
        assert len(set(lanes.values())) == 4
        shard = Path("05_model_input/shards/0123456789ab/shard.mds")
        inodes = {(lane / shard).stat().st_ino for lane in lanes.values()}
        assert inodes == {(place.prepared / shard).stat().st_ino}

    def test_what_no_node_reads_decides_nothing(self):
        one, other = (planned(sft=dataclasses.replace(PARAMETERS["sft"], seed=n)) for n in (1, 2))
        assert [a.pretrained for a in one] == [b.pretrained for b in other]
        assert one[0].whole.digest != other[0].whole.digest
        (change,) = one[0].whole.differences(other[0].whole.values)
        assert change == "sft.seed: 2 -> 1"

    def test_raw_data_counts_by_content_and_a_world_by_its_parameters(self, tmp_path):
        @dataclasses.dataclass(frozen=True)
        class Reads:
            path: str = dataclasses.field(metadata={"input_path": True})

        def digest(folder: Path) -> str:
            scope = Scope(("read",), ("ingest",), "c")
            return IdentityReader().read(scope, {"ingest": Reads(str(folder))}).digest

        plain, moved = tmp_path / "plain", tmp_path / "moved"
        for folder in (plain, moved):
            folder.mkdir()
            (folder / "a.txt").write_text("same")
        assert digest(plain) == digest(moved)
        (moved / "a.txt").write_text("other")
        assert digest(plain) != digest(moved)
        found = []
        for number, seed in enumerate((1, 1, 2)):
            world = tmp_path / f"world{number}"
            (world / "text").mkdir(parents=True)
            (world / "text" / "a.png").write_text(f"packed by version {number}")
            (world / "world.json").write_text(json.dumps({"config": {"seed": seed}}))
            found.append(digest(world / "text"))
        assert found[0] == found[1] != found[2]


class TestResults:
    def test_what_is_kept_is_small_and_without_clocks(self, kedro, place):
        cost = run_grid(ExecutionConfig(), planned(), place)
        assert {arm: list(seeds) for arm, seeds in cost["arms"].items()} == {
            arm: ["3", "4"] for arm in ARMS
        }
        assert cost["arms"]["mix"]["4"]["commit"] == "abc"
        folder = place.output_dir / "mix" / "seed4"
        assert {path.name for path in folder.iterdir()} == {
            "evaluation.json", "held_out_loss.json", "parameters.json.gz", "scores.json.gz",
            "training_pretrain.jsonl",
        }  # fmt: skip
        rows = [json.loads(line) for line in (folder / "training_pretrain.jsonl").open()]
        assert len(rows) == 84
        assert rows[-1] == {"step": 250}
        assert read_json(folder / "parameters.json.gz")["pretrain"]["seed"] == 4
        assert item_scores(folder, "pretrain", {"vqa": (4,)}) == {("vqa", 4, "item 0"): 25.0}

    def test_a_grid_goes_on_where_it_was_and_a_failure_stops_no_other(self, kedro, place):
        kedro.failing.add("mix/seed4")
        with pytest.raises(RunFailedError, match=r"1 of 6 runs failed[\s\S]*mix/seed4 ended with"):
            run_grid(ExecutionConfig(), planned(), place)
        assert len(kedro.runs) == 6
        kedro.failing.clear()
        run_grid(ExecutionConfig(), planned(), place)
        assert kedro.runs[6:] == ["mix/seed4"]
        run_grid(ExecutionConfig(), planned(), place)
        assert len(kedro.runs) == 7
        assert len(kedro.preparations) == 2

    def test_a_failed_preparation_stops_the_grid(self, kedro, place):
        kedro.failing.add(f"prepare-{planned()[0].prepared.digest}")
        with pytest.raises(RunFailedError, match="Preparing mix, other_sft ended with 1"):
            run_grid(ExecutionConfig(), planned(), place)
        assert not kedro.runs

    def test_code_that_is_edited_meanwhile_stops_the_grid(self, kedro, place):
        edited = dataclasses.replace(place, scopes_of=lambda _run: scopes("edited"))
        with pytest.raises(RuntimeError, match="mix/seed3: the code changed since the grid"):
            run_grid(ExecutionConfig(), planned(), edited)
        assert not kedro.runs
        same = dataclasses.replace(place, scopes_of=lambda _run: scopes())
        run_grid(ExecutionConfig(), planned(), same)
        assert len(kedro.runs) == 6


class TestStore:
    def test_a_grid_goes_on_from_the_store_alone(self, kedro, place, tmp_path):
        config = ExecutionConfig(store=str(tmp_path / "store"))
        run_grid(config, planned(), place)
        assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
            "runs.parquet",
            "scores.parquet",
            "training.parquet",
        ]
        elsewhere = Place(place.project, tmp_path / "data2", tmp_path / "out2")
        cost = run_grid(config, planned(), elsewhere)
        assert len(kedro.runs) == 6
        assert cost["arms"]["mix"]["3"]["commit"] == "abc"
        for name in ("scores.json.gz", "training_pretrain.jsonl"):
            pair = [out / "mix" / "seed3" / name for out in (place.output_dir, tmp_path / "out2")]
            assert pair[0].read_bytes() == pair[1].read_bytes()

    def test_finished_runs_are_stored_at_once_and_later(self, kedro, place, tmp_path):
        kedro.failing.add("mix/seed4")
        config = ExecutionConfig(store=str(tmp_path / "store"))
        with pytest.raises(RunFailedError):
            run_grid(config, planned(), place)
        store = RunStore(tmp_path / "store")
        assert len(store.names()) == 5
        kedro.failing.clear()
        run_grid(ExecutionConfig(), planned(), place)
        run_grid(config, planned(), place)  # stored although it was run before
        assert len(kedro.runs) == 7
        assert "mix/seed4" in store.names()

    def test_what_was_made_from_something_else_is_not_taken(self, kedro, place, tmp_path, caplog):
        config = ExecutionConfig(store=str(tmp_path / "store"))
        run_grid(config, planned(), place)
        elsewhere = Place(place.project, tmp_path / "data2", tmp_path / "out2")
        changed = dataclasses.replace(PARAMETERS["sft"], global_batch_size=5)
        run_grid(config, planned(sft=changed), elsewhere)
        assert len(kedro.runs) == 12
        assert "mix/seed3 is not taken" in caplog.text
        assert "sft.global_batch_size: 512 -> 5" in caplog.text

    def test_what_other_code_made_is_taken_only_if_told(self, kedro, place, tmp_path, caplog):
        store = str(tmp_path / "store")
        run_grid(ExecutionConfig(store=store), planned(code="old"), place)
        elsewhere = Place(place.project, tmp_path / "data2", tmp_path / "out2")
        run_grid(ExecutionConfig(store=store, any_code=True), planned(code="new"), elsewhere)
        assert len(kedro.runs) == 6
        assert "is taken, though other code made it (commit abc)" in caplog.text
        third = Place(place.project, tmp_path / "data3", tmp_path / "out3")
        run_grid(ExecutionConfig(store=store), planned(code="new"), third)
        assert len(kedro.runs) == 12

    @pytest.mark.parametrize("killed_at", range(1, 7))
    def test_a_kill_leaves_the_runs_that_were_there(self, tmp_path, monkeypatch, killed_at):
        """Of three tables, each written beside itself and renamed: six places to be killed at."""
        store = RunStore(tmp_path / "store")
        old, new = (Identity({"code": "c", "seed": word}) for word in ("old", "new"))
        folders = {
            word: results(tmp_path / word, by, word) for word, by in [("o", old), ("n", new)]
        }
        store.put("mix/seed3", folders["o"])
        store.put("moe/seed3", folders["o"])
        calls = iter(range(1, 7))

        def killed(function):
            def call(*arguments, **options):
                if next(calls) == killed_at:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return call

        monkeypatch.setattr("os.replace", killed(os.replace))
        monkeypatch.setattr("pyarrow.parquet.write_table", killed(pq.write_table))
        with pytest.raises(KeyboardInterrupt):
            store.put("mix/seed3", folders["n"])
        monkeypatch.undo()
        for name in ("mix/seed3", "moe/seed3"):
            assert unpacked(store, name, old, tmp_path / name) == contents(folders["o"])
        store.put("mix/seed3", folders["n"])
        assert store.find("mix/seed3", old) is None
        assert unpacked(store, "mix/seed3", new, tmp_path / "after") == contents(folders["n"])
        assert unpacked(store, "moe/seed3", old, tmp_path / "other") == contents(folders["o"])
        store.put("moe/seed3", folders["o"])  # Now nothing of the replaced run is left.
        assert len(pq.read_table(tmp_path / "store" / "scores.parquet")) == 4

    def test_damage_is_named(self, tmp_path):
        store, identity = RunStore(tmp_path / "store"), Identity({"code": "c"})
        store.put("mix/seed3", results(tmp_path / "run", identity, "o"))
        path = tmp_path / "store" / "scores.parquet"
        stored, whole = not_none(store.find("mix/seed3", identity)), path.read_bytes()
        path.write_bytes(whole[:-20])
        with pytest.raises(ValueError, match=r"scores.parquet: found no table that can be read"):
            store.unpack(stored, tmp_path)
        path.unlink()
        with pytest.raises(ValueError, match=r"found mix/seed3 in runs.parquet and not in scores"):
            store.unpack(stored, tmp_path)
        pq.write_table(pa.table({"run": ["mix/seed3"]}), path)
        with pytest.raises(
            ValueError, match=r"scores.parquet: found the columns run, expected run,"
        ):
            store.unpack(stored, tmp_path)


def results(folder: Path, identity: Identity, word: str) -> Path:
    """What is kept of a run, its contents told apart by a word."""
    folder.mkdir()
    write_json(folder / "evaluation.json", {"models": {word: 1}})
    write_json(folder / "held_out_loss.json", {"models": {}})
    write_json(folder / "parameters.json.gz", {"word": word})
    scores = {"keys": ["é", "b"], "scores": [0.1, 100.0]}
    write_json(folder / "scores.json.gz", {"pretrain": {"vqa_0shot": scores}})
    row = {"step": 1, "loss": 0.1, "word": word}
    (folder / "training_pretrain.jsonl").write_text(json.dumps(row) + "\n")
    describe(folder, identity, {"commit": "abc"})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def unpacked(store: RunStore, name: str, identity: Identity, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    store.unpack(not_none(store.find(name, identity)), folder)
    return contents(folder)


class TestWorkers:
    def test_runs_go_at_once_but_never_two_of_a_lane(self, kedro, place):
        kedro.seconds = 0.05
        run_grid(ExecutionConfig(num_workers=3), planned(), place)
        assert len(kedro.runs) == 6
        assert 2 <= kedro.most_at_once <= 3
        assert not kedro.overlaps
        gpus = {share["CUDA_VISIBLE_DEVICES"] for name, share in kedro.shares.items() if share}
        assert gpus == {"4", "7"}

    def test_a_machine_is_divided_evenly(self):
        assert machine_shares(1, num_cores=8, gpus=["0"]) == [{}]
        assert machine_shares(3, num_cores=8, gpus=[]) == [{"OMP_NUM_THREADS": "2"}] * 3
        shares = machine_shares(2, num_cores=1, gpus=["0", "1", "5"])
        assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0,5", "1"]
        assert shares[0]["OMP_NUM_THREADS"] == "1"

    def test_a_process_that_fails_tells_its_last_lines(self, tmp_path):
        command = [sys.executable, "-c", "print('first'); raise SystemExit(3)"]
        with Processes() as processes, pytest.raises(RunFailedError, match="ended with 3") as error:
            processes.run(command, tmp_path, tmp_path / "a" / "log", {})
        assert "first" in str(error.value)

    def test_an_error_ends_the_processes_that_run(self, tmp_path):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        begun = time.monotonic()
        failures: list[RunFailedError] = []
        threads: list[threading.Thread] = []

        def start(processes: Processes) -> None:
            try:
                processes.run(command, tmp_path, tmp_path / "log", {})
            except RunFailedError as error:
                failures.append(error)

        with pytest.raises(KeyboardInterrupt), Processes() as processes:  # noqa: PT012
            threads.append(threading.Thread(target=start, args=(processes,)))
            threads[0].start()
            while not processes._running:
                time.sleep(0.01)
            raise KeyboardInterrupt
        threads[0].join(20)
        assert failures
        assert time.monotonic() - begun < 20
