from __future__ import annotations

import importlib.metadata
import json
import shutil
import types
from functools import partial

import pytest
from kedro.io import AbstractDataset, MemoryDataset
from kedro.pipeline import node, pipeline

from kedro_rerun import maintenance, summaries
from kedro_rerun.context import current_context
from kedro_rerun.runner import ExpensiveNodeError, RunOptions, StalenessRunner
from kedro_rerun.source import summarize
from staleness_dummy import NODES, DummyProject, Recorder


@pytest.fixture
def project(tmp_path) -> DummyProject:
    return DummyProject(tmp_path)


@pytest.fixture
def built(project) -> DummyProject:
    assert set(project.run()) == set(NODES)
    return project


# The guard of expensive nodes


def test_code_alone_does_not_rerun_an_expensive_node(built):
    built.edit("layers.py", "return 2.0", "return 4.0")
    built.edit("common.py", "text.upper()", "text.lower()")
    with pytest.raises(ExpensiveNodeError, match=r"train: code:dummy.layers:Base: changed"):
        built.run()
    # Refused before anything ran.
    assert built.status()["summary"].state == "stale"
    built.switches["allow_expensive"] = True
    assert built.run() == ["summary", "train", "report"]


def test_parameters_rerun_an_expensive_node_without_asking(built):
    built.edit("layers.py", "return 2.0", "return 4.0")
    built.set("train", optimizer={"lr": 1.0})
    assert built.run() == ["train", "evaluate", "report"]


def test_an_expensive_node_never_run_needs_no_leave(project):
    assert "train" in project.run()


@pytest.fixture
def versions(monkeypatch) -> dict[str, str]:
    """Versions of distributions that are not installed; what is not here is looked up."""
    found = {"pillow": "11.3.0", "torch": "2.7.0"}
    look_up = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: found[name] if name in found else look_up(name)
    )
    return found


@pytest.fixture
def with_libraries(project, versions) -> DummyProject:
    """Pillow in `shard`, whose shards hold its version's first digit; torch in `train`."""
    project.libraries |= {"PIL": "pillow", "torch": "torch"}
    project.library_effects = {"PIL": "pixels of resized images"}
    project.edit(
        "sharding.py",
        '    return "\\n"',
        "    import importlib.metadata\n"
        "    try:\n        import PIL.nothing\n    except ImportError:\n        pass\n"
        '    text += importlib.metadata.version("pillow")[:2]\n'
        '    return "\\n"',
    )
    project.edit("training.py", "import os\n", "import os\nif not os: import torch\n")
    project.edit("training.py", "    model = Linear", "    assert os or torch\n    model = Linear")
    assert set(project.run()) == set(NODES)
    return project


def test_a_library_that_only_a_cheap_node_uses_asks_before_an_expensive_one(
    with_libraries, versions
):
    versions["pillow"] = "13.0.0"
    status = with_libraries.status()
    assert status["shard"].reasons == ("library:PIL: 11.3.0 -> 13.0.0",)
    assert status["train"].reasons == ("upstream:shard: runs first",)
    with pytest.raises(ExpensiveNodeError) as refused:
        with_libraries.run()
    assert "pillow 11.3.0 -> 13.0.0, used by shard; can alter: pixels of resized images" in str(
        refused.value
    )
    assert with_libraries.status()["shard"].state == "fresh"  # the cheap node has run
    # In another process too, which finds the new shards only.
    with pytest.raises(ExpensiveNodeError, match=r"train: input:shards: changed .*\n    pillow"):
        with_libraries.run()
    (row,) = maintenance.accept(with_libraries.planner(), ["train"])
    assert row.state == "fresh"
    assert with_libraries.run() == ["evaluate"]  # it reads the shards too; the score is the same
    assert with_libraries.run() == []


def test_a_library_that_alters_nothing_asks_nobody(with_libraries, versions):
    versions["pillow"] = "11.9.9"
    assert with_libraries.run() == ["shard"]


def test_a_library_of_an_expensive_node_asks_and_may_be_allowed(with_libraries, versions):
    versions["torch"] = "2.14.1"
    with pytest.raises(ExpensiveNodeError, match=r"torch 2.7.0 -> 2.14.1, used by train"):
        with_libraries.run()
    with_libraries.switches["allow_expensive"] = True
    assert with_libraries.run() == ["train"]  # its outputs are the same


def test_a_parameter_beside_a_library_reruns_what_it_touches_and_nothing_else(
    with_libraries, versions
):
    versions["pillow"], versions["torch"] = "13.0.0", "2.14.1"
    with_libraries.set("evaluate", shots=9)  # touches nothing expensive
    with pytest.raises(ExpensiveNodeError, match="train: input:shards"):
        with_libraries.run()
    with_libraries.set("shard", width=2)  # touches what `train` reads
    assert with_libraries.run() == ["shard", "train", "evaluate", "report"]


def test_records_that_are_forgotten_ask_nobody(with_libraries, versions):
    """What the shards were made from is not known any more, so neither is that it was the same."""
    versions["pillow"] = "13.0.0"
    with pytest.raises(ExpensiveNodeError):
        with_libraries.run()
    maintenance.collect_garbage(with_libraries.data_root, keep_runs=1)
    assert "train" in with_libraries.run()


def test_roots_are_found_through_results_in_memory(with_libraries, versions):
    settings_for_tests(with_libraries)
    with_libraries.extra_nodes = [
        node(as_text, "shards", "text", name="read"),
        node(as_text, "text", "evaluation2", name="costly", tags="expensive"),
    ]
    assert with_libraries.run() == ["read", "costly"]
    versions["pillow"] = "13.0.0"
    with_libraries.switches["allow_expensive"] = True
    assert "train" in with_libraries.run(tags=["shard", "train"])
    with_libraries.switches["allow_expensive"] = False
    with pytest.raises(ExpensiveNodeError, match=r"costly: input:text.*\n    pillow 11"):
        with_libraries.run()
    with_libraries.set("shard", width=2)
    assert "costly" in with_libraries.run()


def as_text(value):
    return str(value)[:0] + "text"


def test_other_nodes_run_beside_a_refused_one(built):
    built.edit("layers.py", "return 2.0", "return 4.0")
    built.edit("common.py", "text.upper()", "text.lower()")
    assert built.run(tags=["summary"]) == ["summary"]


# Code


def test_a_first_run_parses_every_module_once(project, monkeypatch):
    parsed = []

    def counting(source, module, *rest):
        parsed.append(module)
        return summarize(source, module, *rest)

    monkeypatch.setattr(summaries, "summarize", counting)
    assert set(project.run()) == set(NODES)
    assert len(parsed) == len(set(parsed)) > 2


# Selection


def test_a_stage_alone_takes_its_inputs_as_they_are(built):
    built.set("shard", width=2)
    assert built.run(tags=["train", "evaluate"]) == []
    assert built.run(tags=["shard"]) == ["shard"]
    assert built.run(tags=["train"]) == ["train"]
    assert built.status()["evaluate"].state == "stale"
    assert built.run() == ["evaluate", "report"]


def test_forced_runs_skip_nothing_and_leave_everything_fresh(built):
    assert set(built.run(force=True)) == set(NODES)
    assert built.run() == []


def test_a_forced_run_of_a_stale_chain_records_what_it_made(built):
    built.set("ingest", drop=("#", "two"))
    assert set(built.run(force=True)) == set(NODES)
    assert built.run() == []


def test_namespaces_give_nodes_and_workspaces_of_their_own(project):
    module = project.load_module("dummy.pipeline")
    whole = pipeline(
        module.create_pipeline(),
        namespace="small",
        parameters={f"params:{name}" for name in ("ingest", "shard", "train", "evaluate")},
    )
    datasets = project._catalog()
    for name in list(datasets.keys()):
        if not name.startswith("params:"):
            datasets[f"small.{name}"] = datasets[name]
    options = RunOptions(project.data_root, project.settings)
    for expected in (6, 0):
        recorder = Recorder()
        StalenessRunner(lambda: options).run(whole, datasets, project.hook_manager(recorder))
        assert len(recorder.ran) == expected
    lock = json.loads((project.data_root / ".staleness" / "small.train.json").read_text())
    assert lock["node"] == "small.train"


def test_kedro_viz_takes_the_runner_for_a_sequential_one():
    from kedro_viz.integrations.kedro.hooks_utils import is_sequential_runner

    runner = StalenessRunner(lambda: pytest.fail("not asked before a run"))
    assert is_sequential_runner({"runner": str(runner)})


def test_loading_and_saving_by_threads_keeps_the_context(built):
    built.set("shard", width=2)
    assert built.run(is_async=True) == ["shard", "train", "evaluate", "report"]
    manifest = json.loads(next(built.data_root.glob("shards/*/manifest.json")).read_text())
    assert manifest["provenance"]["node"] == "shard"
    assert built.run() == []


# Datasets that are not files


def double(x):
    return 2 * x


def add(x, y):
    return x + y


def sorted_items(parameters):
    return sorted(map(str, parameters.items()))


def settings_for_tests(project: DummyProject) -> None:
    project.packages = ("dummy", __name__)


def test_results_in_memory_are_made_again_only_for_nodes_that_need_them(built):
    settings_for_tests(built)
    built.parameters_plain = {"number": 3}
    built.extra_nodes = [
        node(double, "params:number", "doubled", name="double"),
        node(add, ["doubled", "params:number"], "evaluation2", name="add"),
    ]
    assert built.run() == ["double", "add"]
    assert built.run() == []
    built.parameters_plain = {"number": 4}
    status = built.status()
    assert status["double"].reasons == ("params:number: 3 -> 4",)
    assert built.run() == ["double", "add"]
    (built.data_root / "08_reporting" / "evaluation2.json").unlink()
    assert built.status()["double"].reasons == (
        "memory:doubled: kept in memory only, needed by add",
    )
    assert built.run() == ["double", "add"]
    assert built.run() == []


def test_results_that_a_run_returns_are_made_in_every_run(built):
    settings_for_tests(built)
    built.parameters_plain = {"number": 3}
    built.extra_nodes = [node(double, "params:number", "returned", name="double")]
    assert built.run() == ["double"]
    assert built.run() == ["double"]
    assert built.status()["double"].state == "fresh"


class Clock(AbstractDataset):
    """A dataset whose content nobody can tell."""

    def __init__(self) -> None:
        """Kedro's own is an attribute, which nobody can call without an argument."""

    def load(self):
        return 5

    def save(self, data):
        pass

    def _describe(self):
        return {}


class Table(Clock):
    version = "1"

    def content_digest(self) -> str:
        return self.version


def test_an_input_without_a_digest_reruns_its_node_and_says_so(built):
    settings_for_tests(built)
    built.extra_datasets = {"clock": Clock()}
    built.extra_nodes = [
        node(double, "clock", "evaluation2", name="double"),
        node(double, "evaluation2", "evaluation3", name="after"),
    ]
    assert built.run() == ["double", "after"]
    assert built.status()["double"].reasons == (
        "input:clock: gives no digest (add a method content_digest)",
    )
    assert built.run() == ["double"]


def test_what_is_unknown_stays_unknown_through_memory(built):
    settings_for_tests(built)
    built.extra_datasets = {"clock": Clock()}
    built.extra_nodes = [
        node(double, "clock", "doubled", name="double"),
        node(double, "doubled", "evaluation2", name="after"),
    ]
    assert built.run() == ["double", "after"]
    assert built.run() == ["double", "after"]


def test_a_dataset_may_give_its_digest(built):
    settings_for_tests(built)
    built.extra_datasets = {"table": Table()}
    built.extra_nodes = [node(double, "table", "evaluation2", name="double")]
    assert built.run() == ["double"]
    assert built.run() == []
    built.extra_datasets["table"].version = "2"
    assert built.run() == ["double"]


def test_a_node_without_outputs_runs_for_what_it_reads(built):
    settings_for_tests(built)
    built.parameters_plain = {"number": 3}
    built.extra_nodes = [node(print, "params:number", None, name="show")]
    assert built.run() == ["show"]
    assert built.run() == []
    built.parameters_plain = {"number": 4}
    assert built.run() == ["show"]


def test_values_bound_to_a_function_count(built):
    settings_for_tests(built)
    built.parameters_plain = {"number": 3}
    for value in (1, 2):
        built.extra_nodes = [
            node(partial(add, y=value), "params:number", "evaluation2", name="add")
        ]
        assert built.run() == ["add"]
        assert built.run() == []
    built.extra_nodes = [node(partial(add, y=1), "params:number", "evaluation2", name="add")]
    assert built.run() == []


def test_all_parameters_count_but_the_switches_of_a_run(built):
    settings_for_tests(built)
    built.extra_nodes = [node(sorted_items, "parameters", "evaluation2", name="all")]
    values = {"size": 1, "when_busy": "wait"}
    built.extra_datasets = {"parameters": MemoryDataset(values)}
    assert built.run() == ["all"]
    built.extra_datasets = {"parameters": MemoryDataset({**values, "when_busy": "refuse"})}
    assert built.run() == []
    built.extra_datasets = {"parameters": MemoryDataset({**values, "size": 2})}
    assert built.status()["all"].reasons == ("params:size: 1 -> 2",)
    assert built.run() == ["all"]


def test_a_memory_dataset_of_the_catalog_is_no_parameter(built):
    settings_for_tests(built)
    built.extra_datasets = {"given": MemoryDataset(3)}
    built.extra_nodes = [node(double, "given", "evaluation2", name="double")]
    assert built.run() == ["double"]
    assert built.run() == ["double"]


# Changes while a run is in progress


def test_code_that_changes_before_its_node_starts_stops_the_run(project):
    text = (
        "\n    from pathlib import Path; Path({!r}).write_text('def cut(text, width): return text')"
    )
    edit = text.format(str(project.source / "sharding.py"))
    project.edit("nodes.py", '    """Raw lines to records."""', edit)
    with pytest.raises(ValueError, match="shard: its code changed since this run started"):
        project.run()
    assert project.run(tags=["shard"]) == ["shard"]


def test_raw_files_that_change_during_ingest_leave_no_record(project):
    whole = '    """Raw lines to records."""'
    edit = "\n    from pathlib import Path; Path(config.path, 'a.txt').write_text('changed')"
    project.edit("nodes.py", whole, edit)
    with pytest.raises(ValueError, match="ingest: its input files were written to while it ran"):
        project.run()
    assert project.status()["ingest"].reasons == ("no record of a run",)
    project.edit("nodes.py", edit, whole)
    assert "ingest" in project.run()


def test_inputs_that_change_for_a_while_are_no_ones_inputs(project):
    """What was read was published as made from what lies there before and after."""
    before, times = (project.raw / "a.txt").read_text(), (project.raw / "a.txt").stat()
    project.edit(
        "nodes.py",
        "    lines = read_lines(config.path, config.drop)",
        "    from pathlib import Path; import os\n"
        "    file = Path(config.path, 'a.txt')\n"
        f"    file.write_text({before.replace('one', 'eno')!r})\n"
        "    lines = read_lines(config.path, config.drop)\n"
        f"    file.write_text({before!r})\n"
        f"    os.utime(file, ns=({times.st_atime_ns}, {times.st_mtime_ns}))",
    )
    with pytest.raises(ValueError, match=r"were written to while it ran.*even if they are as"):
        project.run()
    assert project.status()["ingest"].state != "fresh"


# Refusals


@pytest.mark.parametrize("number", [28, 122, None])
def test_a_full_disk_is_one_error_that_says_how_much_is_free(project, monkeypatch, number):
    failing = "OSError('problem writing')" if number is None else f"OSError({number}, 'No space')"
    edit = (
        f"try:\n        raise {failing}\n"
        "    except OSError as e:\n        raise ValueError('not written') from e"
    )
    project.edit("nodes.py", 'folder = staged("shards")', edit)
    if number is None:
        with pytest.raises(ValueError, match=r"^not written$"):  # As the disk has room.
            project.run()
        usage = types.SimpleNamespace(free=4096)
        monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage)
    with pytest.raises(ValueError, match=r"data: found no space left on the disk, [\d,.]+ MB"):
        project.run()


def test_artifacts_outside_of_the_data_root_are_refused(project, tmp_path):
    project.catalog_options["shards"] = {"path": str(tmp_path / "shared")}
    with pytest.raises(ValueError, match=r"shards: found the artifact root .*shared, expected"):
        project.run()


def test_a_function_from_nowhere_known_is_refused(built):
    built.parameters_plain = {"number": 3}
    built.extra_nodes = [node(double, "params:number", "evaluation2", name="double")]
    with pytest.raises(
        ValueError, match="neither a first-party package nor a library with a version"
    ):
        built.run()


def test_a_node_that_publishes_nothing_is_an_error(project):
    project.edit("datasets.py", "publish(", "(lambda *_, **__: None)(")
    with pytest.raises(ValueError, match="records: found no version in"):
        project.run()


def test_no_context_is_left_after_a_failed_node(project):
    project.edit("common.py", "text.strip()", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        project.run()
    assert current_context() is None


def test_environments_do_not_touch_each_other(built, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.data_root.rglob("*")}
    built.data_root = tmp_path / "other_data"
    built.set("shard", width=2)
    assert set(built.run()) == set(NODES)
    built.data_root = tmp_path / "data"
    assert {path: path.stat().st_mtime_ns for path in built.data_root.rglob("*")} == before
    built.set("shard", width=3)
    assert built.run() == []
