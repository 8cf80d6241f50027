"""Parameters of `evaluate`: tasks, shots, generation."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from mm1_pipeline.config._base import operational, parameters


class Metric(StrEnum):
    """How answers are scored."""

    CIDER = "cider"
    """Consensus of n-grams with the references, times 100."""
    VQA_ACCURACY = "vqa_accuracy"
    """Agreement with ten human answers, times 100."""


class ShotDraw(StrEnum):
    """Whether the prompts of a task show the same examples."""

    PER_QUERY = "per_query"
    """Each query has shots of its own: the score does not hang on a lucky choice."""
    PER_TASK = "per_task"
    """All queries have the first shots of one order, without those that are barred; more shots
    continue fewer. Their beginning is then read once for all: several times faster."""


class Precision(StrEnum):
    """Numbers that generation computes with."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """Half the memory and several times faster on a GPU; answers may differ a little."""


@parameters
class TaskConfig:
    """One evaluation task.

    Source: MM1, Evaluation (prompts, stop rules and shots are unconfirmed).
    """

    source: str
    """Name of the ingested evaluation source."""
    metric: Metric
    prompt: str
    """Template of one example; `{image}` and, for questions, `{question}` are filled in."""
    stop: tuple[str, ...] = ("\n",)
    """Strings at which an answer ends."""
    max_new_tokens: int = 30
    """Tokens after which an answer is cut off."""
    shots: tuple[int, ...] = (0, 4, 8)
    shot_draw: ShotDraw = ShotDraw.PER_QUERY
    """The paper draws shots for each data set and does not say whether anew for each query."""
    max_items: int | None = None
    """Scores only the first items (after a seeded shuffle); None scores all."""

    @property
    def question_slots(self) -> int:
        """How often the prompt must name `{question}`."""
        return 1 if self.metric == Metric.VQA_ACCURACY else 0

    def __post_init__(self) -> None:
        if self.prompt.count("{image}") != 1:
            raise ValueError(f"prompt: found {self.prompt!r}, expected '{{image}}' exactly once.")
        if self.prompt.count("{question}") != self.question_slots:
            raise ValueError(
                f"prompt: found {self.prompt!r}, expected '{{question}}' {self.question_slots} "
                f"time(s) for the metric {self.metric}."
            )
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots: found {self.shots}, expected different numbers from 0.")
        if "" in self.stop:
            raise ValueError(f"stop: found {self.stop}; an empty string would end every answer.")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: found {self.max_new_tokens}, expected at least 1.")
        if self.max_items is not None and self.max_items < 2:
            raise ValueError(
                f"max_items: found {self.max_items}, expected at least 2: one item has no "
                "standard error."
            )


@parameters
class EvaluateConfig:
    """Parameters of the stage `evaluate`."""

    tasks: dict[str, TaskConfig]
    max_validation_items: int = 512
    """Held-out sequences, and captions, whose loss is measured, a source."""
    bootstrap_samples: int = 2_000
    """Resamples behind every standard error and interval."""
    seed: int = 0
    precision: Precision = Precision.FLOAT32
    """Of answers; held-out losses are computed in float32."""
    batch_size: int = operational(default=32)
    """Prompts generated together."""
    max_positions: int = operational(default=8_192)
    """Positions of a prompt with its answer above which nothing is run: the key-value cache's
    limit."""
    device: Literal["auto", "cpu", "cuda"] = operational(default="auto")
