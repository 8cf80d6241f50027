"""Scores models and baselines on every task: the library function behind the stage `evaluate`."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mm1_pipeline.config.evaluation import (
    CaptionWords,
    EvaluateConfig,
    Metric,
    Precision,
)
from mm1_pipeline.evaluation.answers.mathvista import RULES
from mm1_pipeline.evaluation.answers.postprocess import POSTPROCESS
from mm1_pipeline.evaluation.generation.answer_log import Answer, AnswerLog
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.held_out.held_out import held_out_losses
from mm1_pipeline.evaluation.prompts.chat_prompts import ChatPrompts
from mm1_pipeline.evaluation.prompts.prompts import (
    Prompt,
    build_prompts,
    check_lengths,
    prompts_sha256,
)
from mm1_pipeline.evaluation.prompts.resolution import (
    SubImageCounter,
    check_budget,
    high_resolution,
)
from mm1_pipeline.evaluation.scoring.baselines import BLIND_SUFFIX, FREQUENT, most_frequent_answer
from mm1_pipeline.evaluation.scoring.caption_words import CAPTION_TOKENIZER, tokenizer_name
from mm1_pipeline.evaluation.scoring.draws import AveragedScores, gain_over, score_draws
from mm1_pipeline.evaluation.scoring.judge import Judge
from mm1_pipeline.evaluation.scoring.scoring import TaskScores, score_outputs
from mm1_pipeline.evaluation.small_images import write_small_images
from mm1_pipeline.evaluation.tasks import Task, load_task
from mm1_pipeline.evaluation.text.text_run import TextRunner
from mm1_pipeline.evaluation.text.text_tasks import TextTask, load_text_task
from mm1_pipeline.ground.identity import identity
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.models.checkpoint import CONFIG, WEIGHTS, load_model
from mm1_pipeline.models.device import usable_device
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.shard_index import SHARDS_FILE, ShardIndex
from mm1_pipeline.streams.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_LISTED = 100
"""Entries that are no item, named in evaluation.json; all are counted."""

Scores = dict[tuple[str, int], TaskScores | AveragedScores]
"""Scores of one model, by task and number of shots."""


class ChatModels(NamedTuple):
    """Fine-tuned models, which are asked in conversations."""

    models: Mapping[str, Path]
    """Folder of each model by its name in the report."""
    shards_dir: Path
    """The shards they were fine-tuned on: image transform and sub-images."""


class Evaluation(NamedTuple):
    """What `evaluate` finds."""

    evaluation: dict[str, Any]
    """Content of evaluation.json."""
    held_out_loss: dict[str, Any]
    """Content of held_out_loss.json."""


@dataclass(frozen=True)
class Harness:
    """Everything that is the same for all models: tasks, prompts, tokenizer.

    Attributes:
        config: Parameters of the stage.
        tasks: With their items.
        prompts: By task and number of shots.
        tokenizer: The one the models were trained with.
        index: `shards.json`: image transform and tokens of the training.
        shards_dir: The folder it lies in.
        text_tasks: Tasks without images.
    """

    config: EvaluateConfig
    tasks: tuple[Task, ...]
    prompts: Mapping[tuple[str, int], Sequence[Prompt]]
    tokenizer: Tokenizer
    index: ShardIndex
    shards_dir: Path
    text_tasks: tuple[TextTask, ...] = ()

    def parts(self) -> Iterator[tuple[Task, int]]:
        """Each task with each of its numbers of shots."""
        for task in self.tasks:
            for num_shots in task.config.shots:
                yield task, num_shots

    def num_positions(self, model: str) -> int:
        """Positions of all prompts of a model and their longest answers."""
        return sum(
            len(prompt) + task.config.max_new_tokens
            for task, num_shots in self.parts()
            if task.config.is_asked_of(model)
            for prompt in self.prompts[task.name, num_shots]
        )


def evaluate(
    config: EvaluateConfig,
    models: Mapping[str, Path],
    tokenizer_dir: Path,
    shards_dir: Path,
    records_dir: Path,
    output_dir: Path,
    part: Callable[[str], Path] | None = None,
    *,
    chat: ChatModels | None = None,
    loss_only: Mapping[str, Path] | None = None,
) -> Evaluation:
    """Scores models, their blind twins and the most frequent answer on every task.

    Tasks, prompts and models are checked before the first answer. The same inputs give the
    same bytes, also when a run is killed and another goes on with its answers. A model that did not
    change is not asked again what it answered before, whatever else is evaluated.

    Args:
        config: Tasks, shots, resamples, seed.
        models: Folder of each model by its name in the report.
        tokenizer_dir: Holds `tokenizer.json`.
        shards_dir: The artifact of the stage `shard`; held-out sequences and image transform.
        records_dir: The artifact that contains `records/`.
        output_dir: Gets `<model>/<task>_<shots>shot.jsonl`.
        part: Gives the folder for answers, as they come, by a name that tells what they depend on
            besides prompts and code; None keeps none.
        chat: Models that are asked in conversations, with the words of their fine-tuning.
        loss_only: Further models, of which only the held-out losses are measured.

    Returns:
        Contents of evaluation.json and held_out_loss.json.

    Raises:
        ValueError: If a task has too few records or examples, a prompt does not fit the cache,
            or a model belongs to another tokenizer or image size.
        JudgeError: If the judge cannot be asked.
    """
    _check_tasks(config, [*models, *(chat.models if chat is not None else ())])
    documents = build_harness(config, tokenizer_dir, shards_dir, records_dir)
    judge = _connect_judge(config, part)
    device = torch.device(usable_device(config.device))
    suites = [(name, directory, documents) for name, directory in models.items()]
    of_chat = None
    if chat is not None:
        of_chat = build_harness(config, tokenizer_dir, chat.shards_dir, records_dir, is_chat=True)
        suites += [(name, directory, of_chat) for name, directory in chat.models.items()]
    for name, directory, suite in suites:
        _check_model(name, load_model(directory), suite)
    entries: dict[str, Any] = {}
    held_out: dict[str, Any] = {}
    text_runners = {name: _text_runner(suite) for name, _, suite in suites}
    num_positions = sum(
        2 * suite.num_positions(name) + text_runners[name].num_positions
        for name, _, suite in suites
    )
    with Progress("evaluate", unit="items", total=num_positions) as progress:
        for name, directory, harness in suites:
            model = load_model(directory, device).eval()
            held_out[name] = held_out_losses(
                model, config, harness.shards_dir, harness.tasks, harness.tokenizer
            )
            model = _in_precision(model, config.precision)
            logs = _Logs(part, _made_with(config, directory, harness.shards_dir))
            run = _Run(harness, progress, logs, judge)
            seeing = _answer_all(name, model, run)
            blind = _answer_all(name + BLIND_SUFFIX, model, run, blind=True)
            entries[name] = _entry(harness, seeing, blind)
            entries[name + BLIND_SUFFIX] = _entry(harness, blind)
            texts = text_runners[name].run(name, model, progress, partial(logs.of, name))
            entries[name]["tasks"] |= _text_entries(harness, texts)
            _write_scores(output_dir / name, {**seeing, **texts})
            _write_scores(output_dir / (name + BLIND_SUFFIX), blind)
    for name, directory in (loss_only or {}).items():
        model = load_model(directory, device).eval()
        held_out[name] = held_out_losses(
            model, config, shards_dir, documents.tasks, documents.tokenizer
        )
    frequent = _frequent_scores(documents)
    entries[FREQUENT] = _entry(documents, frequent)
    _write_scores(output_dir / FREQUENT, frequent)
    write_small_images(documents.tasks, output_dir)
    evaluation = {
        "models": entries,
        "harness": {
            "prompts_sha256": prompts_sha256(documents.prompts),
            **({"chat_prompts_sha256": prompts_sha256(of_chat.prompts)} if of_chat else {}),
            "postprocess": POSTPROCESS,
            "tokenizer": CAPTION_TOKENIZER,
            **_judge_facts(config),
        },
    }
    return Evaluation(evaluation, {"models": held_out})


def build_harness(
    config: EvaluateConfig,
    tokenizer_dir: Path,
    shards_dir: Path,
    records_dir: Path,
    *,
    is_chat: bool = False,
) -> Harness:
    """Reads the tasks and builds every prompt; for arguments and errors, see `evaluate`.

    Args:
        config: See `evaluate`.
        tokenizer_dir: See `evaluate`.
        shards_dir: Of the models that are asked.
        records_dir: See `evaluate`.
        is_chat: Whether prompts are conversations, or documents as in pre-training.
    """
    tokenizer, index = Tokenizer.load(tokenizer_dir), ShardIndex.read(shards_dir)
    if tokenizer.sha256 != index.tokenizer_sha256:
        raise ValueError(
            f"Found the tokenizer {tokenizer.sha256[:12]} in {tokenizer_dir}, but the shards were "
            f"written with {index.tokenizer_sha256[:12]}; run the stage `shard` again."
        )
    tasks = tuple(
        load_task(name, task if is_chat else task.for_documents, records_dir, config.seed)
        for name, task in config.tasks.items()
    )
    prompts: dict[tuple[str, int], Sequence[Prompt]] = {}
    for task in tasks:
        conversations = ChatPrompts(task, tokenizer, index)
        sub_images = high_resolution(task.config.resolution, index.sub_images)
        counter = SubImageCounter(task.images, index.image, sub_images)
        for num_shots in task.config.shots:
            prompts[task.name, num_shots] = (
                conversations.build_all(num_shots, config.seed)
                if is_chat
                else build_prompts(
                    task, num_shots, config.seed, tokenizer, index.packing.image_tokens, counter
                )
            )
    text_tasks = tuple(
        load_text_task(name, task, config.seed) for name, task in config.text_tasks.items()
    )
    harness = Harness(config, tasks, prompts, tokenizer, index, shards_dir, text_tasks)
    for task, num_shots in harness.parts():
        _check_prompts(harness, task, num_shots)
    return harness


def _check_prompts(harness: Harness, task: Task, num_shots: int) -> None:
    resolution = task.config.resolution
    if resolution is not None:
        image_tokens = harness.index.packing.image_tokens
        prompts = harness.prompts[task.name, num_shots]
        check_budget(task.name, prompts, resolution, image_tokens, task.config.max_new_tokens)
        if high_resolution(resolution, harness.index.sub_images).grid == 1:
            logger.warning(
                "%s: resolution has no effect on models of %s, which were trained on one sub-image "
                "an image; resolution.sub_images would cut images all the same.",
                task.name,
                harness.shards_dir,
            )
    longest = check_lengths(
        harness.prompts[task.name, num_shots],
        task.config.max_new_tokens,
        harness.config.max_positions,
    )
    trained = harness.index.packing.sequence_length
    if longest > trained:
        logger.warning(
            "%s, %d shots: prompts with their answers take up to %d positions, but training "
            "sequences have %d; positions beyond were never trained.",
            task.name,
            num_shots,
            longest,
            trained,
        )


def _check_tasks(config: EvaluateConfig, models: Sequence[str]) -> None:
    if not config.tasks and not config.text_tasks:
        raise ValueError(
            f"tasks: found none that asks {', '.join(models)}, and no text_tasks; expected at "
            "least one under evaluate.tasks or evaluate.text_tasks."
        )
    for name, task in config.tasks.items():
        if models and not any(map(task.is_asked_of, models)):
            raise ValueError(
                f"tasks.{name}.models: found {list(task.models)}, but the models are "
                f"{', '.join(models)}; name one of them, or leave the parameter out to ask all."
            )


def _check_model(name: str, model: MM1, harness: Harness) -> None:
    if name == FREQUENT or BLIND_SUFFIX in name:
        raise ValueError(f"models: found the name {name!r}, which a baseline has; choose another.")
    expected = {
        "vision.image_size": (model.config.vision.image_size, harness.index.image.size),
        "connector.num_tokens": (
            model.config.connector.num_tokens,
            harness.index.packing.image_tokens,
        ),
        "image_token_id": (model.image_token_id, harness.tokenizer.image_id),
    }
    for field, (found, wanted) in expected.items():
        if found != wanted:
            raise ValueError(
                f"models.{name}: found {field} {found}, but the shards have {wanted}; evaluate a "
                "model with the shards that it was trained on."
            )
    if model.config.decoder.vocab_size < harness.tokenizer.vocab_size:
        raise ValueError(
            f"models.{name}: found decoder.vocab_size {model.config.decoder.vocab_size}, but the "
            f"tokenizer has {harness.tokenizer.vocab_size} tokens; evaluate a model with the "
            "tokenizer that it was trained with."
        )


@dataclass(frozen=True)
class _Run:
    """What answering needs besides a model."""

    harness: Harness
    progress: Progress
    logs: _Logs
    judge: Judge | None


def _answer_all(name: str, model: MM1, run: _Run, *, blind: bool = False) -> Scores:
    scores: Scores = {}
    harness = run.harness
    asked = [t for t in harness.tasks if t.config.is_asked_of(name.removesuffix(BLIND_SUFFIX))]
    for task in asked:
        features = ImageFeatures(
            model,
            task.images,
            harness.index.image,
            sub_images=high_resolution(task.config.resolution, harness.index.sub_images),
            blind=blind,
        )
        generator = Generator(model, harness.tokenizer, features, harness.config.batch_size)
        for num_shots in task.config.shots:
            prompts = harness.prompts[task.name, num_shots]
            positions = sum(map(len, prompts)) / max(len(prompts), 1) + task.config.max_new_tokens
            part = run.progress.part(
                f"{name} {task.name} {num_shots}-shot", len(prompts), positions
            )
            answers = generator.generate(
                prompts,
                max_new_tokens=task.config.max_new_tokens,
                stop=task.config.stop,
                advance=part.advance,
                log=run.logs.of(name, task, num_shots),
            )
            scored = score_draws(task, num_shots, prompts, answers, run.judge)
            result = f"{task.config.metric.value} {scored.value:.1f}"
            part.finish("answers to hand in" if task.config.hidden_answers else result)
            scores[task.name, num_shots] = scored
    return scores


@dataclass(frozen=True)
class _Logs:
    """Where the answers of one model are kept while an evaluation runs."""

    part: Callable[[str], Path] | None
    made_with: Mapping[str, Any]

    def of(self, name: str, task: Task | TextTask, num_shots: int) -> AnswerLog | None:
        """The log of one model, task and number of shots."""
        if self.part is None:
            return None
        folder = self.part(f"answers/{name}/{identity(**self.made_with)[:16]}")
        path = folder / f"{task.name}_{num_shots}shot.jsonl"
        limits = {"max_new_tokens": task.config.max_new_tokens, "stop": task.config.stop}
        log = AnswerLog(path, {**self.made_with, **limits})
        if len(log):
            logger.info("%s: goes on after %d answers of an earlier run.", path, len(log))
        return log


def _made_with(config: EvaluateConfig, model_dir: Path, shards_dir: Path) -> dict[str, Any]:
    """What decides a model's answers besides prompts and limits.

    Weights count by size and time of writing: to read them would take as long as to load them.
    """
    weights = (model_dir / WEIGHTS).stat()
    texts = {
        "model_config": model_dir / CONFIG,
        "shards": shards_dir / SHARDS_FILE,
    }
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in texts.items()}
    return {
        **digests,
        "weights": [weights.st_size, weights.st_mtime_ns],
        "precision": config.precision.value,
    }


def _in_precision(model: MM1, precision: Precision) -> MM1:
    match precision:
        case Precision.FLOAT32:
            return model.float()
        case Precision.BFLOAT16:
            return model.to(torch.bfloat16)


def _frequent_scores(harness: Harness) -> Scores:
    """The same answer to every prompt; it needs no shots, so it scores the same with any."""
    scores: Scores = {}
    texts: dict[str, str] = {}
    for task, num_shots in harness.parts():
        if task.config.metric.needs_judge or task.config.hidden_answers:
            continue  # No judge is paid for one answer to every question.
        if task.name not in texts:
            texts[task.name] = most_frequent_answer(task)
        prompts = [p for p in harness.prompts[task.name, num_shots] if p.draw == 0]
        answers = [Answer(texts[task.name])] * len(prompts)
        scores[task.name, num_shots] = score_outputs(task, num_shots, prompts, answers)
    return scores


def _entry(harness: Harness, scores: Scores, blind: Scores | None = None) -> dict[str, Any]:
    """A model's entry in evaluation.json."""
    num_samples, seed = harness.config.bootstrap_samples, harness.config.seed
    tasks: dict[str, Any] = {
        task.name: _task_entry(task, harness.config)
        for task in harness.tasks
        if any(name == task.name for name, _ in scores) and not task.config.hidden_answers
    }
    for (task, num_shots), scored in scores.items():
        if task not in tasks:
            continue
        summary = scored.summary(num_samples, seed)
        if blind is not None:
            gain = gain_over(scored, blind[task, num_shots], num_samples, seed)
            summary["gain_over_blind"] = gain
        tasks[task]["shots"][str(num_shots)] = summary
    return {"tasks": tasks}


def _text_runner(harness: Harness) -> TextRunner:
    config = harness.config
    return TextRunner(
        harness.text_tasks, harness.tokenizer, harness.index.image, config.seed, config.batch_size
    )


def _text_entries(harness: Harness, scores: Mapping[tuple[str, int], TaskScores]) -> dict[str, Any]:
    """Text tasks of a model's entry: no blind twin, for there is nothing to see."""
    entries: dict[str, Any] = {}
    for task in harness.text_tasks:
        config = task.config
        entries[task.name] = {
            "metric": config.metric.value,
            "shots": {
                str(num_shots): scores[task.name, num_shots].summary(
                    harness.config.bootstrap_samples, harness.config.seed
                )
                for num_shots in config.shots
            },
            "title": config.title,
            "unconfirmed": list(config.unconfirmed),
        }
    return entries


def _task_entry(task: Task, evaluation: EvaluateConfig) -> dict[str, Any]:
    """Metric and, of official benchmarks, what the number may be compared with."""
    config = task.config
    entry: dict[str, Any] = {"metric": config.metric.value, "shots": {}}
    if task.rejects:
        reasons = Counter(why.partition(":")[0] for why in task.rejects.values())
        keys = sorted(task.rejects)[:_LISTED]
        entry["rejects"] = {
            "count": dict(sorted(reasons.items())),
            "listed": {key: task.rejects[key] for key in keys},
        }
    if config.title:
        entry["title"] = config.title
    if config.metric == Metric.CIDER and config.caption_words != CaptionWords.REGEX:
        entry["tokenizer"] = tokenizer_name(config.caption_words)
    if config.paper is not None:
        entry["paper"] = {"table": config.paper_table, "column": config.paper}
    if config.unconfirmed:
        entry["unconfirmed"] = list(config.unconfirmed)
    if config.metric == Metric.MATHVISTA and evaluation.judge is None:
        entry["not_comparable"] = (
            f"answers were extracted by rules ({RULES}), where the benchmark asks a language model"
        )
    return entry


def _connect_judge(config: EvaluateConfig, part: Callable[[str], Path] | None) -> Judge | None:
    if config.judge is None:
        return None
    return Judge(config.judge, None if part is None else part("judge") / "replies.jsonl")


def _judge_facts(config: EvaluateConfig) -> dict[str, Any]:
    """The judge and its prompts, or how answers were extracted without one."""
    metrics = {task.metric for task in config.tasks.values()}
    if config.judge is None:
        return {"mathvista_extraction": RULES} if Metric.MATHVISTA in metrics else {}
    prompts = {
        name: hashlib.sha256(task.judge_prompt.encode()).hexdigest()
        for name, task in config.tasks.items()
        if task.metric.needs_judge
    }
    return {"judge": {"model": config.judge.model, "prompts_sha256": prompts}}


def _write_scores(directory: Path, scores: Scores) -> None:
    for (task, num_shots), scored in scores.items():
        scored.write(directory / f"{task}_{num_shots}shot.jsonl")
