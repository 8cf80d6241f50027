"""Runs text-only tasks with a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.evaluation.generation.answer_log import AnswerLog
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.generation.likelihood import log_likelihoods
from mm1_pipeline.evaluation.scoring.scoring import TaskScores
from mm1_pipeline.evaluation.text.text_tasks import (
    TextTask,
    score_likelihoods,
    score_written,
    text_pairs,
    written_prompts,
)
from mm1_pipeline.ground.progress import Progress
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.tokenizer import Tokenizer


class _Size(NamedTuple):
    """What the progress bar knows of a part."""

    items: int
    positions: float
    """Of one item."""


LogOf = Callable[[TextTask, int], AnswerLog | None]
"""Gives the log of a task and number of shots; None keeps none."""


class TextRunner:
    """Scores models on text tasks.

    Args:
        tasks: With their items.
        tokenizer: The one the models were trained with.
        transform: How images become pixels; a generator wants to know, though none come.
        seed: Draws the shots.
        batch_size: Written answers computed together.
    """

    def __init__(
        self,
        tasks: Sequence[TextTask],
        tokenizer: Tokenizer,
        transform: ImageTransform,
        seed: int,
        batch_size: int,
    ) -> None:
        self._tasks = tasks
        self._tokenizer = tokenizer
        self._transform = transform
        self._seed = seed
        self._batch_size = batch_size

    @cached_property
    def num_positions(self) -> int:
        """Positions that one model reads and writes in all tasks, for the progress bar."""
        return round(sum(size.items * size.positions for size in self._sizes.values()))

    @cached_property
    def _sizes(self) -> Mapping[tuple[str, int], _Size]:
        return {
            (task.name, num_shots): self._size(task, num_shots)
            for task in self._tasks
            for num_shots in task.config.shots
        }

    def run(
        self, name: str, model: MM1, progress: Progress, log_of: LogOf
    ) -> Mapping[tuple[str, int], TaskScores]:
        """Scores by task and number of shots.

        Args:
            name: The model, as progress and records name it.
            model: In evaluation mode.
            progress: Is told of each part.
            log_of: Gives the log of a task and number of shots, or None.
        """
        scores = {}
        for task in self._tasks:
            for num_shots in task.config.shots:
                title = f"{name} {task.name} {num_shots}-shot"
                part = progress.part(title, *self._sizes[task.name, num_shots])
                score = self._written if task.is_written else self._likely
                log = log_of(task, num_shots)
                scored = score(task, num_shots, model, part.advance, log)
                part.finish(f"{task.config.metric.value} {scored.value:.1f}")
                scores[task.name, num_shots] = scored
        return scores

    def _size(self, task: TextTask, num_shots: int) -> _Size:
        """Items that can be asked, and positions of one on average."""
        if task.is_written:
            prompts = written_prompts(task, num_shots, self._seed, self._tokenizer)
            lengths = [len(prompt) + task.config.max_new_tokens for prompt in prompts]
        else:
            lengths = [
                sum(1 + len(self._tokenizer.encode("".join(pair))) for pair in pairs)
                for _, pairs in text_pairs(task, num_shots, self._seed).values()
            ]
        return _Size(len(lengths), sum(lengths) / max(len(lengths), 1))

    def _likely(
        self,
        task: TextTask,
        num_shots: int,
        model: MM1,
        advance: Callable[[float], None],
        log: AnswerLog | None,
    ) -> TaskScores:
        asked = text_pairs(task, num_shots, self._seed)
        pairs = [pair for _, group in asked.values() for pair in group]
        # The options of an item are not computed together: each is a part of it.
        share = len(asked) / max(len(pairs), 1)
        likelihoods = log_likelihoods(
            model, self._tokenizer, pairs, lambda count: advance(count * share), log=log
        )
        return score_likelihoods(task, num_shots, asked, likelihoods)

    def _written(
        self,
        task: TextTask,
        num_shots: int,
        model: MM1,
        advance: Callable[[float], None],
        log: AnswerLog | None,
    ) -> TaskScores:
        prompts = written_prompts(task, num_shots, self._seed, self._tokenizer)
        features = ImageFeatures(model, {}, self._transform)
        generator = Generator(model, self._tokenizer, features, self._batch_size)
        answers = generator.generate(
            prompts,
            max_new_tokens=task.config.max_new_tokens,
            stop=task.config.stop,
            advance=advance,
            log=log,
        )
        return score_written(task, num_shots, prompts, [answer.text for answer in answers])
