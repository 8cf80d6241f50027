"""Text-only tasks: reading them, scoring them by log-likelihood or by what a model writes."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm1_pipeline.config.evaluation import ShotDraw
from mm1_pipeline.config.text_tasks import TextMetric, TextTaskConfig
from mm1_pipeline.evaluation.answers.postprocess import cut_at_stop
from mm1_pipeline.evaluation.formats.base import letter
from mm1_pipeline.evaluation.formats.text import TextItem, read_text_items
from mm1_pipeline.evaluation.generation.likelihood import Likelihood
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.prompts.shots import ShotPool
from mm1_pipeline.evaluation.scoring.scoring import TaskScores
from mm1_pipeline.streams.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SEPARATOR = "\n\n"
"""Stands between examples. Source: lm-evaluation-harness."""

_PERCENT = 100
_DIGITS = 6
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextTask:
    """A text task with its items.

    Attributes:
        name: As in `text_tasks` of the parameters.
        config: Its parameters.
        items: What is asked.
        pool: Items that may be shown as shots, by key.
    """

    name: str
    config: TextTaskConfig
    items: tuple[TextItem, ...]
    pool: dict[str, TextItem]

    @property
    def is_written(self) -> bool:
        """Whether the model writes an answer, instead of scoring given ones."""
        return self.config.metric == TextMetric.ALIAS


def load_text_task(name: str, config: TextTaskConfig, seed: int) -> TextTask:
    """Reads a text task from its official files.

    Raises:
        ValueError: If a file is missing, or there are fewer than two items.
    """
    if config.files is None:
        raise ValueError(
            f"text_tasks.{name}.files: found none; give the paths of the benchmark's files."
        )
    items = list(read_text_items(config.format, _paths(config.files)))
    if len(items) < 2 or all(item.failure for item in items):
        reasons = sorted({item.failure for item in items if item.failure})
        raise ValueError(
            f"text_tasks.{name}.files: found {len(items)} items in {sorted(config.files.values())}"
            f"{': ' if reasons else ''}{'; '.join(reasons[:3])}; a score with a standard error "
            "needs at least 2 that can be asked."
        )
    shots = items
    if config.shot_files is not None and max(config.shots) > 0:
        shots = list(read_text_items(config.format, _paths(config.shot_files)))
    for item in items:
        if item.failure is not None:
            logger.warning("%s: item %s counts as wrong: %s", name, item.key, item.failure)
    chosen = _choose(name, items, config.max_items, seed)
    pool = {item.key: item for item in shots if item.failure is None}
    return TextTask(name, config, tuple(chosen), pool)


def text_pairs(
    task: TextTask, num_shots: int, seed: int
) -> dict[str, tuple[tuple[str, ...], list[tuple[str, str]]]]:
    """Shots, and the pairs of context and continuation, of each item that can be asked.

    A shot is never the item itself, nor one of the same context.
    """
    contexts = {key: [_text_hash(other)] for key, other in task.pool.items()}
    # Per query, as lm-evaluation-harness draws them.
    pool = ShotPool(task.name, contexts, seed, ShotDraw.PER_QUERY)
    pairs = {}
    for item in task.items:
        if item.failure is None:
            keys = pool.draw(item.key, [_text_hash(item)], num_shots)
            shots = "".join(task.pool[key].solved() + SEPARATOR for key in keys)
            pairs[item.key] = keys, item.pairs(shots)
    return pairs


def written_prompts(
    task: TextTask, num_shots: int, seed: int, tokenizer: Tokenizer
) -> list[Prompt]:
    """The prompt of each item whose answer is written."""
    prompts = []
    for key, (shots, pairs) in text_pairs(task, num_shots, seed).items():
        context = pairs[0][0]
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(context)], dtype=np.int32)
        content = json.dumps([context], ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8")).hexdigest()
        prompts.append(Prompt(key, shots, content, digest, ids, ()))
    return prompts


def score_likelihoods(
    task: TextTask,
    num_shots: int,
    asked: dict[str, tuple[tuple[str, ...], list[tuple[str, str]]]],
    likelihoods: Sequence[Likelihood],
) -> TaskScores:
    """Scores options by their log-likelihoods.

    Source: lm-evaluation-harness (acc, acc_norm by characters, greedy match).

    Args:
        task: A task of given answers.
        num_shots: Shots of the pairs.
        asked: From `text_pairs`.
        likelihoods: Of all pairs, in their order.
    """
    found = iter(likelihoods)
    by_key = {key: [next(found) for _ in pairs] for key, (_, pairs) in asked.items()}
    kinds: dict[str, list[float]] = {"acc": [], "acc_norm": [], "greedy_match": []}
    rows = []
    for item in task.items:
        marks = _marks(item, by_key.get(item.key))
        for kind, values in kinds.items():
            values.append(marks[kind])
        rows.append(_likelihood_row(task, num_shots, item, asked, by_key.get(item.key), marks))
    details = {
        kind: round(_PERCENT * float(np.mean(values)), _DIGITS) for kind, values in kinds.items()
    }
    if all(len(item.options) == 1 for item in task.items if item.failure is None):
        logs = [scored[0].log_likelihood for scored in by_key.values()]
        details = {
            "greedy_match": details["greedy_match"],
            "perplexity": round(math.exp(-float(np.mean(logs))), _DIGITS),
        }
    return _task_scores(task, kinds[task.config.metric.value], rows, details)


def score_written(
    task: TextTask, num_shots: int, prompts: Sequence[Prompt], outputs: Sequence[str]
) -> TaskScores:
    """Scores written answers against the names of the right one.

    Source: lm-evaluation-harness (TriviaQA: exact match but for case and punctuation).
    """
    answers = {p.key: text for p, text in zip(prompts, outputs, strict=True)}
    shots = {prompt.key: prompt for prompt in prompts}
    values, rows = [], []
    for item in task.items:
        raw = answers.get(item.key, "")
        answer = cut_at_stop(raw, task.config.stop).strip()
        right = item.failure is None and plain_name(answer) in map(plain_name, item.options)
        values.append(float(right))
        prompt = shots.get(item.key)
        rows.append(
            {
                **_row(task, num_shots, item, prompt.shots if prompt else ()),
                "prompt_sha256": prompt.sha256 if prompt else None,
                "raw_output": raw,
                "processed_output": answer,
                "references": list(item.options),
                "score": _PERCENT * float(right),
            }
        )
    return _task_scores(task, values, rows, {})


def plain_name(text: str) -> str:
    """A name without case and punctuation, as TriviaQA's answers are compared."""
    return text.lower().translate(_PUNCTUATION)


def _marks(item: TextItem, scored: Sequence[Likelihood] | None) -> dict[str, float]:
    if scored is None:
        return {"acc": 0.0, "acc_norm": 0.0, "greedy_match": 0.0}
    logs = np.array([each.log_likelihood for each in scored])
    return {
        "acc": float(int(logs.argmax()) in item.right),
        "acc_norm": float(int(_per_character(logs, item).argmax()) in item.right),
        "greedy_match": float(any(scored[place].is_greedy for place in item.right)),
    }


def _per_character(logs: np.ndarray, item: TextItem) -> np.ndarray:
    """Log-likelihoods by length; an option without a character is the least likely."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return logs / np.array([len(option) for option in item.options])


def _likelihood_row(
    task: TextTask,
    num_shots: int,
    item: TextItem,
    asked: dict[str, tuple[tuple[str, ...], list[tuple[str, str]]]],
    scored: Sequence[Likelihood] | None,
    marks: dict[str, float],
) -> dict[str, Any]:
    shots, pairs = asked.get(item.key, ((), []))
    best = ""
    if scored is not None:
        logs = np.array([each.log_likelihood for each in scored])
        if task.config.metric == TextMetric.ACC_NORM:
            logs = _per_character(logs, item)
        best = letter(int(logs.argmax()))
    content = json.dumps(pairs, ensure_ascii=False)
    return {
        **_row(task, num_shots, item, shots),
        "prompt_sha256": hashlib.sha256(content.encode()).hexdigest() if pairs else None,
        "raw_output": best,
        "processed_output": best,
        "references": [letter(place) for place in item.right],
        "score": _PERCENT * marks[task.config.metric.value],
        "options": list(item.options),
        "log_likelihoods": [round(each.log_likelihood, _DIGITS) for each in scored or ()],
    }


def _row(task: TextTask, num_shots: int, item: TextItem, shots: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id": f"{task.name}/{num_shots}shot/{item.key}",
        "source": None,
        "key": item.key,
        "shots": list(shots),
        "question": item.contexts[0] if item.contexts else "",
        "failure": item.failure,
    }


def _task_scores(
    task: TextTask, values: Sequence[float], rows: Sequence[dict[str, Any]], details: dict[str, Any]
) -> TaskScores:
    return TaskScores(
        values=_PERCENT * np.array(values),
        images=tuple(_text_hash(item) if item.contexts else item.key for item in task.items),
        rows=tuple(rows),
        details=details,
    )


def _choose(name: str, items: list[TextItem], max_items: int | None, seed: int) -> list[TextItem]:
    if max_items is None or max_items >= len(items):
        return items

    def rank(item: TextItem) -> str:
        return hashlib.sha256(json.dumps([seed, name, item.key]).encode()).hexdigest()

    chosen = {item.key for item in sorted(items, key=rank)[:max_items]}
    return [item for item in items if item.key in chosen]


def _text_hash(item: TextItem) -> str:
    return hashlib.sha256(json.dumps(item.contexts).encode()).hexdigest()


def _paths(files: dict[str, str]) -> dict[str, Path]:
    return {role: Path(path) for role, path in files.items()}
