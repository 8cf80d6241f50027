"""Checks of evaluations: every task has its data, enough examples, and models that are asked."""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mm1_pipeline.config.evaluation import CaptionWords, EvaluateConfig, Metric, TaskConfig
from mm1_pipeline.config.ingest import (
    IngestConfig,
    ReaderLimits,
    RecordKind,
    SourceConfig,
    SourceSplit,
)
from mm1_pipeline.config.shard import ShardConfig
from mm1_pipeline.config.task_formats import MAX_IMAGES, TaskFormat
from mm1_pipeline.config.text_tasks import TextTaskConfig
from mm1_pipeline.preflight.run import Check, Run, missing, refused, unknown
from mm1_pipeline.preflight.training import asks_pytorch

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.prompts.resolution import SubImageCounts

_READ_BYTES = 32_000_000
"""Size of a task's files up to which they are read already now, in a second or so; of larger ones
it is only seen that they are there. Our choice."""
_STAGES = ("pretrain", "upcycle", "sft")


def check_evaluation(*models: str) -> Check:
    """Of one node that scores models.

    Args:
        models: Names of those that are asked tasks.
    """

    def check(run: Run) -> Iterator[str]:
        whole = run.get("evaluate")
        config = whole if set(models) == set(_STAGES) else whole.asked_of(*models)
        if not config.tasks and not config.text_tasks:
            yield (
                f"evaluate.tasks: found none that asks {', '.join(models)}, expected at least one "
                "here or under evaluate.text_tasks."
            )
        yield from _positions(config, run)
        yield from _trained_length(config, run, models)
        for name, task in config.tasks.items():
            path = f"evaluate.tasks.{name}"
            yield from _models(path, task, models)
            if task.source is not None:
                yield from _ingested(path, task, run)
            else:
                yield from _official(path, task)
            if task.caption_words is CaptionWords.STANFORD and shutil.which("java") is None:
                yield (
                    f"{path}.caption_words: found stanford, but there is no `java` on the PATH; "
                    "install a Java runtime, or use regex."
                )
        for name, task in config.text_tasks.items():
            yield from _text_task(f"evaluate.text_tasks.{name}", task)
        yield from _judge(config)
        yield from check_device(run)

    return check


def check_index(run: Run) -> Iterator[str]:
    """There is something to keep out of training, and all files of it, whole as far as it shows."""
    rules, config = run.get("ingest").decontamination, run.get("evaluate")
    known = config.benchmarks(lambda name: True)
    path = "ingest.decontamination"
    for name in rules.benchmarks:
        if name not in known:
            yield unknown(f"{path}.benchmarks", name, known, "tasks that name files")
    named = config.benchmarks(rules.compares_with)
    sources = run.get("ingest").evaluation_part().sources
    if rules.required and rules.is_wanted and not named and not sources:
        yield (
            f"{path}.required: found true, but neither an evaluation source in ingest.sources nor "
            "a benchmark in evaluate.tasks, expected one to keep out of training; name it, or set "
            "this to false."
        )
    for name, parameter in named.items():
        task = config.tasks.get(name) or config.text_tasks[name]
        problems = _places(parameter, task)
        yield from problems
        if not problems and _is_small(task.files) and _is_small(task.shot_files):
            yield from run.once(("index", name, task), partial(_unreadable, config, name))


def _unreadable(config: EvaluateConfig, name: str) -> list[str]:
    """What is wrong with the files of a benchmark, which are small."""
    from mm1_pipeline.evaluation.benchmarks import read_benchmarks

    return refused("evaluate", lambda: deque(read_benchmarks(config, [name]), maxlen=0))


def check_device(run: Run) -> Iterator[str]:
    """The device of evaluations is there."""
    device = run.get("evaluate").device
    if asks_pytorch(device):
        from mm1_pipeline.models.device import usable_device

        for text in refused("device", lambda: usable_device(device)):
            yield f"evaluate.{text}"


def _models(path: str, task: TaskConfig, models: Iterable[str]) -> Iterator[str]:
    for name in task.models:
        if name not in _STAGES:
            yield unknown(f"{path}.models", name, _STAGES, "models that are scored")
    if task.models and set(task.models) <= set(_STAGES) and not any(map(task.is_asked_of, models)):
        yield (
            f"{path}.models: found {', '.join(task.models)}, expected one of those that are scored "
            f"here: {', '.join(models)}."
        )


def _positions(config: EvaluateConfig, run: Run) -> Iterator[str]:
    """What images and answer alone take; texts are not known before there is a tokenizer."""
    connector, shards = run.get("model.connector"), run.get("shard")
    if connector is None and shards is None:
        return
    image_tokens = connector.num_tokens if connector else shards.packing.image_tokens
    needed = {
        name: 1 + (max(task.shots) + 1) * image_tokens + task.max_new_tokens
        for name, task in config.tasks.items()
    }

    def said(path: str, limit: int, name: str) -> str:
        task = config.tasks[name]
        return (
            f"{path}: found {limit}, expected at least {needed[name]}: {max(task.shots) + 1} "
            f"images of {image_tokens} positions and an answer of {task.max_new_tokens} tokens "
            f"(evaluate.tasks.{name}, {max(task.shots)} shots), and the text beside them. Raise "
            "it, or ask for fewer shots."
        )

    longest = max(needed, key=needed.__getitem__, default=None)
    if longest is not None and needed[longest] > config.max_positions:
        yield said("evaluate.max_positions", config.max_positions, longest)
    for name, task in config.tasks.items():
        if task.resolution is not None and needed[name] > task.resolution.max_positions:
            path = f"evaluate.tasks.{name}.resolution.max_positions"
            yield said(path, task.resolution.max_positions, name)


def _trained_length(config: EvaluateConfig, run: Run, models: Iterable[str]) -> Iterator[str]:
    """What images and answer take fits the longest sequence of a model's training.

    Fine-tuning goes on from a model of longer sequences, and their positions stay learnt.
    """
    shard, sft_shard = run.get("shard"), run.get("sft_shard")
    if config.beyond_training or shard is None:
        return
    shards = {model: sft_shard if model == "sft" else shard for model in models}
    for name, task in config.tasks.items():
        found = [
            _beyond(f"evaluate.tasks.{name}", task, model, made, shard)
            for model, made in shards.items()
            if made is not None and task.is_asked_of(model)
        ]
        yield from max(found, key=lambda one: one[0], default=(0, []))[1]


def _beyond(
    path: str, task: TaskConfig, model: str, shards: ShardConfig, pretrained: ShardConfig
) -> tuple[int, list[str]]:
    """How many positions a task's longest prompt is too long for a model, and what to say."""
    from mm1_pipeline.evaluation.prompts.resolution import formula

    images, tokens = _most_images(task, shards), shards.packing.image_tokens
    length = max(shards.packing.sequence_length, pretrained.packing.sequence_length)
    needed = 1 + sum(map(sum, images)) * tokens + task.max_new_tokens
    text = (
        f"{path}.{'shots' if len(images) > 1 else 'resolution'}: found {max(task.shots)} shots and "
        f"a query that take {needed:,} positions or more of {model} ({formula(images, tokens)} of "
        f"images, and an answer of {task.max_new_tokens}), expected at most {length:,}, the "
        f"longest sequence it is trained on. Ask for fewer shots, give {path}.resolution with "
        "fewer num_high_shots or max_high_images, or set evaluate.beyond_training to true."
    )
    return needed - length, [text] if needed > length else []


def _most_images(task: TaskConfig, shards: ShardConfig) -> SubImageCounts:
    """Sub-images of each example of the longest prompt, at least, the query last."""
    from mm1_pipeline.evaluation.prompts.resolution import high_resolution, sub_images_per_example

    rules = high_resolution(task.resolution, shards.sub_images)
    # Elsewhere the images decide, which are not looked at before they are asked about.
    is_known = rules.grid > 1 and rules.enlarge and not rules.skip_empty
    high = 1 + rules.grid**2 if is_known else 1
    numbers = range(1, MAX_IMAGES + 1) if task.format is TaskFormat.MMMU else [1]
    longest = (
        sub_images_per_example(
            [[""]] * max(task.shots) + [[""] * number], task.resolution, lambda image: high
        )
        for number in numbers
    )
    return max(longest, key=lambda found: sum(map(sum, found)))


def _ingested(path: str, task: TaskConfig, run: Run) -> Iterator[str]:
    """A task out of a source that this run ingests."""
    ingest: IngestConfig | None = run.get("ingest")
    if ingest is None or "ingest_evaluation" not in run.nodes or task.source is None:
        return
    evaluated = [
        name
        for name, source in ingest.sources.items()
        if source.split is SourceSplit.EVALUATION
        and (source.kind is RecordKind.CONVERSATION or task.metric is Metric.CIDER)
    ]
    if task.source not in ingest.sources:
        yield unknown(f"{path}.source", task.source, evaluated, "evaluation sources")
        return
    source = ingest.sources[task.source]
    if task.source not in evaluated:
        kind = "captions" if task.metric is Metric.CIDER else "conversation"
        yield (
            f"{path}.source: found {task.source!r}, of kind {source.kind.value} and split "
            f"{source.split.value}, expected kind {kind} and split evaluation for the metric "
            f"{task.metric.value}: {', '.join(evaluated) or 'there is none'}."
        )
        return
    # A query is no example of itself.
    needed = max(task.shots) + 1
    counted = task.source, source, ingest.limits, needed
    available = run.once(counted, partial(_count_records, *counted))
    if available is not None and available < needed:
        yield _too_few(path, task, available - 1, f"the source {task.source!r}")


def _count_records(
    name: str, source: SourceConfig, limits: ReaderLimits, enough: int
) -> int | None:
    """Records of a raw source, counted up to `enough`; None where that would take long, or where
    the source cannot be read, which its own check says.
    """
    from mm1_pipeline.corpus.readers.base import RawRecord, Source
    from mm1_pipeline.corpus.readers.dispatch import open_files, read_source

    most = source.max_records
    if most is not None and most < enough:
        return most
    try:
        files = open_files(source)
        if "://" in source.path or files.bytes_total > _READ_BYTES:
            return None
        found = read_source(Source(name, source, files, limits))
        records = (item for item in found if isinstance(item, RawRecord))
        return sum(1 for _ in itertools.islice(records, enough))
    except Exception:  # whatever a damaged source raises
        return None


def _official(path: str, task: TaskConfig) -> Iterator[str]:
    """A task out of the files of its benchmark."""
    problems = _places(path, task)
    yield from problems
    if problems or not _is_small(task.files) or not _is_small(task.shot_files):
        return
    from mm1_pipeline.evaluation.tasks import num_examples

    found: list[tuple[int, int]] = []
    texts = refused(f"{path}.files", lambda: found.append(num_examples(path, task)))
    yield from texts
    for num_items, num_shots in found:
        if num_items < 2:
            yield (
                f"{path}.files: found {num_items} items, expected at least 2: a score with a "
                "standard error needs as many."
            )
        elif num_shots < max(task.shots):
            yield _too_few(path, task, num_shots, "its files")


def _too_few(path: str, task: TaskConfig, available: int, where: str) -> str:
    return (
        f"{path}.shots: found {max(task.shots)}, expected at most {max(0, available)}, the "
        f"examples that {where} can show beside a query; ask for fewer shots, or add records."
    )


def _text_task(path: str, task: TextTaskConfig) -> Iterator[str]:
    if task.files is None:
        yield f"{path}.files: found none, expected the paths of the benchmark's files."
    yield from _places(path, task)


def _places(path: str, task: TaskConfig | TextTaskConfig) -> list[str]:
    """Files of a benchmark that are not there."""
    return [
        text
        for field, files in (("files", task.files), ("shot_files", task.shot_files))
        for role, place in (files or {}).items()
        for text in missing(f"{path}.{field}.{role}", place, f"the {role} of {task.format}")
    ]


def _is_small(files: Mapping[str, str] | None) -> bool:
    """Whether all files that would be read now are small; images are not, and folders may be."""
    paths = [Path(place) for role, place in (files or {}).items() if role != "images"]
    return all(path.is_file() for path in paths) and (
        sum(os.path.getsize(path) for path in paths) <= _READ_BYTES
    )


def _judge(config: EvaluateConfig) -> Iterator[str]:
    from mm1_pipeline.corpus.api_keys import ApiKey

    path = "evaluate.judge.api_key_env"
    variable = config.judge.api_key_env if config.judge is not None else None
    if variable is None:
        return
    found: list[ApiKey] = []
    yield from refused(path, lambda: found.append(ApiKey(variable)))
    if found and not found[0]:
        yield (
            f"{path}: found no environment variable {variable}, expected the endpoint's key in it; "
            "set it, or leave the parameter out for a server without keys."
        )
