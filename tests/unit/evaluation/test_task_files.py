"""Task files: data that is checked as parameters are, and overridden entry by entry."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import benchmark_files
import pytest
import yaml
from kedro_rerun.parameters import flatten_parameters

from mm1_pipeline.config.evaluation import EvaluateConfig, Metric, TaskConfig
from mm1_pipeline.config.task_files import FOLDER, TEXT_FOLDER, task_names
from mm1_pipeline.config.task_formats import TaskFormat
from mm1_pipeline.config.validation import ParameterError, check_parameters
from mm1_pipeline.evaluation.formats.base import FormatFiles
from mm1_pipeline.evaluation.formats.dispatch import read_items, reader_of
from mm1_pipeline.reporting.paper import SFT_TASKS, TASKS
from typed_values import entry

VQA_FILES = {"questions": "q.json", "annotations": "a.json", "images": "images"}
COLUMNS = {name for name, _ in (*TASKS, *SFT_TASKS)}


@pytest.mark.parametrize("name", task_names())
def test_a_task_file_is_a_task_that_lacks_only_its_paths(name):
    content = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    assert not {"files", "shot_files", "source", "max_items", "task"} & content.keys()
    roles = TaskFormat(content["format"]).layout.files
    task = entry(TaskConfig, task=name, files=dict.fromkeys(roles, "x"))
    assert task.title
    assert "prompt" in task.unconfirmed
    tables = {"pretrain": TASKS, "sft": SFT_TASKS, None: ((None, ""),)}
    assert task.paper in {column for column, _ in tables[task.paper_table]}


@pytest.mark.parametrize("task_format", TaskFormat)
def test_every_task_format_is_whole(task_format, tmp_path):
    """What a new format needs beside its member, which the enumeration itself asks for."""
    assert callable(reader_of(task_format)), "its reader's module names it in READERS"
    assert task_format.layout.answers < task_format.layout.files
    write = getattr(benchmark_files, task_format.value, None)
    assert write is not None, "benchmark_files.py has a function of its name that writes a sample"
    paths = {role: Path(path) for role, path in write(tmp_path).items()}
    assert paths.keys() == task_format.layout.files
    items = list(read_items(task_format, FormatFiles(paths)))
    assert len(items) >= benchmark_files.COUNT
    assert [item.failure for item in items if item.failure] == []


def test_every_column_of_the_papers_tables_has_a_task_file():
    papers = {
        yaml.safe_load((FOLDER / f"{name}.yml").read_text())["paper"] for name in task_names()
    }
    assert papers - {None} == COLUMNS


def test_an_entry_overrides_its_task_file():
    task = entry(
        TaskConfig, task="vqav2", files=VQA_FILES, shots=(0, 2), prompt="{image} {question} A:"
    )
    assert (task.metric, task.shots) == (Metric.VQA_ACCURACY, (0, 2))
    assert task.prompt == "{image} {question} A:"
    assert task.stop == ("\n", ".", ",")
    assert dataclasses.replace(task, shots=(1,)).prompt == task.prompt


OPTION_TASKS = ("mmbench", "mmbench_test", "mmmu_test", "mmmu_val", "scienceqa_img", "seed_all")


@pytest.mark.parametrize("name", [*OPTION_TASKS, "seed_image", "mme_cognition", "mme_perception"])
def test_whole_answers_of_fine_tuned_models_are_read_and_lines_of_documents(name):
    content = yaml.safe_load((FOLDER / f"{name}.yml").read_text())
    roles = TaskFormat(content["format"]).layout.files
    task = entry(TaskConfig, task=name, files=dict.fromkeys(roles, "x"))
    assert (task.stop, task.for_documents.stop) == ((), ("\n",))
    assert task.for_documents.prompt == task.prompt


@pytest.mark.parametrize("metric", Metric)
def test_a_task_of_ones_own_reads_whole_answers_where_its_metric_does(metric):
    values = {
        "source": "s",
        "metric": metric.value,
        "prompt": "{image} {question} {options}" if metric != Metric.CIDER else "{image}",
        "judge_prompt": "{answer}",
    }
    task = TaskConfig(**values)
    is_whole = metric in (
        Metric.CHOICE,
        Metric.CIRCULAR,
        Metric.MATHVISTA,
        Metric.JUDGE_RATIO,
        Metric.JUDGE_GRADE,
    )
    assert task.stop == (() if is_whole else ("\n",))
    assert task.for_documents.stop == ("\n",)
    assert entry(TaskConfig, **values, stop=["\n\n"]).for_documents.stop == ("\n\n",)
    with pytest.raises(ValueError, match="document_stop: found"):
        TaskConfig(**values, document_stop=("",))


def test_a_task_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yml"
    path.write_text('format: textvqa\nmetric: anls\nprompt: "{image} {question}"\nshots: [0]\n')
    files = {"annotations": "a.json", "images": "i"}
    assert entry(TaskConfig, task=str(path), files=files).metric == Metric.ANLS
    path.write_text("format: textvqa\nmetric: no_such\nprompt: x\n")
    with pytest.raises(ValueError, match="metric"):
        entry(TaskConfig, task=str(path), files=files)


def problem(**entry) -> str:
    with pytest.raises(ParameterError) as caught:
        check_parameters({"evaluate": {"tasks": {"t": entry}}}, {"evaluate": EvaluateConfig})
    return str(caught.value)


def test_errors_name_the_entry_what_was_found_and_what_is_there():
    assert "did you mean `vqav2`?" in problem(task="vqav22", files=VQA_FILES)
    assert "expected a task file" in problem(task="../vqav2", files=VQA_FILES)
    missing = problem(task="vqav2", files={"questions": "q"})
    assert "evaluate.tasks.t.files: found ['questions']" in missing
    assert "also needs ['annotations', 'images']" in missing
    assert "does not have" in problem(task="vqav2", files={**VQA_FILES, "pictures": "x"})
    assert "shot_files: found []" in problem(task="vqav2", files=VQA_FILES, shot_files={})
    assert "found both" in problem(task="vqav2", files=VQA_FILES, source="s")
    assert "found neither" in problem(metric="cider", prompt="{image}")
    assert "'{options}' exactly once" in problem(
        task="scienceqa_img",
        files=dict.fromkeys(TaskFormat.SCIENCEQA.layout.files, "x"),
        prompt="{image} {question}",
    )
    assert "judge_prompt" in problem(
        task="mm_vet", files={"annotations": "a", "images": "i"}, judge_prompt="grade it"
    )
    assert "did you mean `shots`?" in problem(task="vqav2", files=VQA_FILES, shotss=[0])


def test_prompts_count_for_staleness_and_places_of_files_do_not():
    def flat(**changes):
        task = TaskConfig(task="vqav2", **{"files": VQA_FILES, **changes})
        return flatten_parameters(EvaluateConfig(tasks={"t": task}), "params:evaluate")

    first = flat()
    assert first.values["params:evaluate.tasks.t.prompt"].startswith('"{image} Question:')
    moved = flat(files={role: f"/elsewhere/{path}" for role, path in VQA_FILES.items()})
    assert moved.values == first.values
    assert moved.input_paths != first.input_paths
    assert first.input_paths["params:evaluate.tasks.t.files.images"] == "images"
    assert flat(prompt="{image} {question}").values != first.values


def test_the_documentation_lists_every_task_file():
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    for name in (*task_names(), *task_names(TEXT_FOLDER)):
        assert f"| `{name}` |" in page
