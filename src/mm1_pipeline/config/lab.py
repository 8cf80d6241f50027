"""Parameters of the laboratory."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Annotated, Any

from mm1_pipeline.config._base import (
    NULL_REMOVES,
    Count,
    LearningRate,
    Name,
    Resamples,
    Seed,
    Share,
    Shots,
    Weight,
    Workers,
    bounds,
    operational,
    parameters,
)

_NumValues = Annotated[int, bounds(ge=2, le=1_000)]
"""With one value there is nothing to ask."""

Overrides = dict[str, Any]
"""Values by the dotted path of a parameter, for instance `pretrain.schedule.num_steps`."""


@parameters
class LawFitConfig:
    """How the learning-rate law is fitted to finished runs.

    Source: MM1, Pre-training (a quadratic a size, then linear regression in log space). How wide
    the quadratic reaches and its intervals are our choice.
    """

    higher_is_better: bool = False
    """Whether runs are judged by a score, as the paper's by the 8-shot average, or by a loss."""
    max_distance: Annotated[int, bounds(ge=1, le=1_000)] = 2
    """Rates on either side of a size's best that its quadratic is fitted to; beyond, losses rise
    more steeply than a parabola."""
    target_sizes: tuple[Count, ...] = (2_700_000_000, 6_400_000_000, 30_000_000_000)
    """Non-embedding parameters for which a rate is predicted."""
    bootstrap_samples: Annotated[int, bounds(ge=100, le=10_000_000)] = 2_000
    """Fewer than 100 give no interval."""
    seed: Seed = 0


class Attribute(StrEnum):
    """What can be asked about a scene of the synthetic world."""

    COLOUR = "colour"
    SHAPE = "shape"
    POSITION = "position"
    BACKGROUND = "background"
    WORD = "word"
    NUMBER = "number"


@parameters
class WorldConfig:
    """The synthetic world of the lab: how many scenes, and how badly alt texts describe them.

    All of it is our choice: the paper trains on the web.
    """

    canvas: Annotated[int, bounds(ge=48, le=4_096)] = 96
    """Pixels of a side. A shape is about a third as wide, capitals are an eleventh as high: at 96,
    a 64-px encoder gets shapes of 20 px and capitals of 6, one of 32 px capitals of 3. Below 48
    nobody could read them."""
    num_captions: Count = 4_000
    """Images with an alt text, and as many with a dense caption."""
    num_documents: Count = 3_000
    num_texts: Count = 4_000
    num_conversations: Count = 3_000
    """Conversations of three questions, for fine-tuning."""
    several_images: Share = 0.25
    """Share of conversations whose questions are each about an image of its own."""
    num_items: Count = 200
    """Items of each evaluation set."""
    num_values: dict[Attribute, _NumValues] = dataclasses.field(default_factory=dict)
    """How many values an attribute has, the first of `lab.scenes.VALUES`; all where it is not
    named. The fewer the other attributes have, the more an encoder needs the word to tell the
    images of a contrastive batch apart."""
    max_examples: Annotated[int, bounds(ge=2, le=1_000)] = 9
    """Images of the longest document: eight shots and a query."""
    caption_documents: Share = 0.2
    """Share of documents whose images have captions instead of a hidden task."""
    drop: Share = 0.3
    """How often an alt text leaves an attribute out."""
    wrong: Share = 0.15
    """How often it names another value than the scene's."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.drop + self.wrong > 1:
            raise ValueError(
                f"wrong: found {self.wrong} beside drop {self.drop}; together they exceed 1."
            )


class Goal(StrEnum):
    """Pipelines that an arm may run."""

    EVALUATE_PRETRAIN = "evaluate_pretrain"
    """Up to the scores of the pre-trained model."""
    EVALUATE_SFT = "evaluate_sft"
    """Up to the scores of the fine-tuned model."""
    EVALUATE = "evaluate"
    """Up to the scores of every stage's model."""


class Expectation(StrEnum):
    """What a lesson says of its first arm beside the second."""

    HIGHER = "higher"
    LOWER = "lower"
    EQUAL = "equal"
    """Within the margin."""


def _num_asked(scores: dict[str, tuple[int, ...]]) -> int:
    return sum(map(len, scores.values()))


@parameters
class LessonConfig:
    """One lesson of the paper as a comparison of two arms."""

    title: str
    first: str
    """Name of an arm."""
    second: str
    expected: Expectation = Expectation.HIGHER
    """Of the first arm's score beside the second's; of a loss, its negative."""
    margin: Weight = 0.0
    """With `equal`: the difference that is still negligible, in points of the score."""
    scores: Annotated[dict[str, tuple[Shots, ...]], NULL_REMOVES] = dataclasses.field(
        default_factory=dict
    )
    """Tasks, and the numbers of shots that count; all items weigh the same."""
    second_scores: Annotated[dict[str, tuple[Shots, ...]], NULL_REMOVES] = dataclasses.field(
        default_factory=dict
    )
    """What counts of the second arm where it is asked otherwise, for instance with other shots;
    as many tasks and shots as in `scores`, over the same items, paired in their order. The two
    arms may then be the same. Empty means `scores`."""
    held_out: str | None = None
    """Instead of scores: the stream whose held-out loss counts."""
    model: str | None = None
    """Whose scores count, such as `sft`; None takes the grid's `model`."""
    paper: str = ""
    """The paper's figure."""

    def __post_init__(self) -> None:
        if bool(self.scores) == (self.held_out is not None):
            raise ValueError(
                f"scores: found {self.scores} beside held_out {self.held_out!r}; a lesson counts "
                "either scores or one held-out loss."
            )
        if self.second_scores and _num_asked(self.second_scores) != _num_asked(self.scores):
            raise ValueError(
                f"second_scores: found {self.second_scores} beside scores {self.scores}; expected "
                "as many tasks and shots, as they are paired in their order."
            )
        if self.first == self.second and not self.second_scores:
            raise ValueError(
                f"second: found {self.second!r}, which is also the first arm; name another, or "
                "what else counts of it in second_scores."
            )
        if (self.expected == Expectation.EQUAL) != (self.margin > 0):
            raise ValueError(
                f"margin: found {self.margin} for expected {self.expected.value}; a margin above 0 "
                "belongs to `equal`, and to it only."
            )


@parameters
class ExecutionConfig:
    """How the runs of a grid are carried out; changes no result."""

    store: str | None = operational(default=None)
    """Folder for the results of finished runs, small enough to commit. What is there and was made
    from the same parameters, data and code is taken instead of run, so a grid may go on on
    another machine."""
    any_code: bool = operational(default=False)
    """Takes runs from the store that other code made, when you know that it gives the same."""
    num_workers: Workers = operational(default=1)
    """Runs at once. They share the cores and the GPUs evenly."""


@parameters
class GridConfig(ExecutionConfig):
    """Arms that are trained and evaluated, each from several seeds."""

    arms: Annotated[dict[Name, Overrides], NULL_REMOVES]
    """What each arm changes in the environment's parameters; `{}` changes nothing."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    seed_paths: tuple[str, ...] = ("pretrain.seed",)
    """Parameters that take the seed."""
    only: str | None = None
    """Arms to run, with spaces between them; None runs all. Lessons of other arms are left out."""
    max_seeds: Count | None = None
    """Takes the first seeds only."""
    usual_num_seeds: Count | None = None
    """How many of the seeds an arm takes, also the first; None takes all."""
    num_seeds: Annotated[dict[str, Count], NULL_REMOVES] = dataclasses.field(default_factory=dict)
    """Arms that take another number: fewer for dear ones, more for small differences. Two arms
    are compared by the seeds that both have."""
    goal: Goal = Goal.EVALUATE_PRETRAIN
    """The pipeline that every arm runs; what arms have in common is made once."""
    goals: Annotated[dict[str, Goal], NULL_REMOVES] = dataclasses.field(default_factory=dict)
    """Arms that run another one: an arm without fine-tuning is then as cheap as it can be."""
    model: str = "pretrain"
    """Whose scores count, as the evaluation names it."""

    def __post_init__(self) -> None:
        if not self.arms:
            raise ValueError("arms: found none; name at least one.")
        for name in self.arms:
            if not name.replace("-", "_").isidentifier():
                raise ValueError(
                    f"arms: found the name {name!r}; it becomes a folder, so use letters, digits, "
                    "hyphens and underscores."
                )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: found {self.seeds}, expected one or more different numbers.")
        if unknown := set(self.goals) - set(self.arms):
            raise ValueError(
                f"goals: found {', '.join(sorted(unknown))}, expected arms: {', '.join(self.arms)}."
            )
        if unknown := set((self.only or "").split()) - set(self.arms):
            raise ValueError(
                f"only: found {', '.join(sorted(unknown))}, expected arms: {', '.join(self.arms)}."
            )
        for arm in self.num_seeds:
            if arm not in self.arms:
                raise ValueError(
                    f"num_seeds: found {arm}, expected one of the arms {', '.join(self.arms)}."
                )

    @property
    def chosen_arms(self) -> dict[str, Overrides]:
        """Arms that are run."""
        wanted = self.only.split() if self.only else list(self.arms)
        return {name: changes for name, changes in self.arms.items() if name in wanted}

    def goal_of(self, arm: str) -> Goal:
        """The pipeline that an arm runs."""
        return self.goals.get(arm, self.goal)

    @property
    def chosen_seeds(self) -> tuple[int, ...]:
        """Seeds that are run, with an arm or another."""
        return self.seeds[: self.max_seeds]

    def seeds_of(self, *arms: str) -> tuple[int, ...]:
        """Seeds that all of these arms are run with."""
        usual = self.usual_num_seeds or len(self.seeds)
        return self.chosen_seeds[: min(self.num_seeds.get(arm, usual) for arm in arms)]


@parameters
class AblateConfig:
    """Parameters of `ablate`: arms, and the lessons that compare them."""

    grid: GridConfig
    lessons: Annotated[dict[str, LessonConfig], NULL_REMOVES]
    min_seeds: Annotated[int, bounds(ge=2, le=1_000)] = 2
    """Fewer show nothing: one seed tells no variation."""
    bootstrap_samples: Resamples = 2_000
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, lesson in self.lessons.items():
            for place in ("first", "second"):
                if (arm := getattr(lesson, place)) not in self.grid.arms:
                    raise ValueError(
                        f"lessons.{name}.{place}: found {arm!r}, expected one of the arms "
                        f"{', '.join(self.grid.arms)}."
                    )
        if not self.chosen_lessons:
            raise ValueError("lessons: found none whose two arms are run.")

    @property
    def chosen_lessons(self) -> dict[str, LessonConfig]:
        """Lessons whose arms are run."""
        arms = self.grid.chosen_arms
        return {
            name: lesson
            for name, lesson in self.lessons.items()
            if lesson.first in arms and lesson.second in arms
        }


@parameters
class LrLawConfig(ExecutionConfig):
    """Parameters of `lr_law`: sizes, rates, and how their runs are judged."""

    sizes: dict[Name, Overrides]
    """What each size changes in the environment's parameters, mostly `model.decoder`."""
    learning_rates: tuple[LearningRate, ...]
    seeds: tuple[Seed, ...] = (0,)
    rate_path: str = "pretrain.optimizer.learning_rate"
    decoder_path: str = "model.decoder"
    """Where the size is read from."""
    overrides: Overrides = dataclasses.field(default_factory=dict)
    """What all runs change, for instance shorter schedules.

    Source: MM1, Pre-training (runs shortened to 50k steps; unconfirmed).
    """
    goal: Goal = Goal.EVALUATE_PRETRAIN
    model: str = "pretrain"
    scores: dict[str, tuple[Shots, ...]] = dataclasses.field(default_factory=dict)
    """Tasks and shots whose mean score judges a run; without any, held-out losses do.

    Source: MM1, Pre-training (the 8-shot average; unconfirmed). A small lab's scores are noisier
    than its losses.
    """
    fit: LawFitConfig = LawFitConfig()

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or len(set(self.learning_rates)) < 3:
            raise ValueError(
                f"sizes: found {len(self.sizes)} sizes and {len(set(self.learning_rates))} rates, "
                "expected at least 2 and 3: a line through sizes, a parabola through rates."
            )
        if self.fit.higher_is_better != bool(self.scores):
            raise ValueError(
                f"fit.higher_is_better: found {self.fit.higher_is_better} with scores "
                f"{self.scores}; scores are better when higher, held-out losses when lower."
            )
