"""Two runs item by item: what flipped, and whether the difference is more than chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mm1_pipeline.evaluation.scoring.statistics import Interval, paired_interval

RIGHT = 50.0
"""Score from which an item counts as right."""

_ENDING = "shot.jsonl"
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Flip:
    """An item that one run had right and the other wrong.

    Attributes:
        key: the item's key.
        first: its row in the first run.
        second: its row in the second run.
    """

    key: str
    first: _Row
    second: _Row

    @property
    def is_gain(self) -> bool:
        """Whether the second run has it right."""
        return self.second["score"] >= RIGHT


@dataclass(frozen=True)
class TaskComparison:
    """One task and number of shots in two runs.

    Attributes:
        task: its name.
        shots: examples before the question.
        count: items that both runs have.
        only_first: items that the first run alone has.
        only_second: items that the second run alone has.
        first: mean score of the common items in the first run.
        second: in the second run.
        difference: second less first, with its paired 95 % interval over images.
        flips: items right in one run alone, losses first, then by key.
        p_value: of the flips, by McNemar's exact test; 1 without flips.
        same_prompts: common items that both runs asked in the same words.
    """

    task: str
    shots: int
    count: int
    only_first: int
    only_second: int
    first: float
    second: float
    difference: Interval
    flips: tuple[Flip, ...]
    p_value: float
    same_prompts: int

    @property
    def num_gained(self) -> int:
        """Items that only the second run has right."""
        return sum(flip.is_gain for flip in self.flips)

    @property
    def num_lost(self) -> int:
        """Items that only the first run has right."""
        return len(self.flips) - self.num_gained


def compare_predictions(
    first_dir: Path, second_dir: Path, num_samples: int = 2_000, seed: int = 0
) -> list[TaskComparison]:
    """Compares two models' predictions on every task that both have.

    Means are over items, so for benchmarks whose number is no mean (POPE, MME, MMBench, LLaVA-W)
    they are not the benchmark's number. CIDEr has no right and wrong: captions count as right
    from 50 on.

    Args:
        first_dir: folder of one model, with `<task>_<shots>shot.jsonl`.
        second_dir: of another run, or of another model.
        num_samples: bootstrap resamples of the interval.
        seed: same seed, same resamples.

    Raises:
        ValueError: if they have no task in common, or a file is no predictions file.
    """
    parts = sorted(_parts(first_dir).keys() & _parts(second_dir).keys())
    parts = [part for part in parts if _is_scored(_parts(first_dir)[part])]
    if not parts:
        raise ValueError(
            f"Found {_names(first_dir)} in {first_dir} and {_names(second_dir)} in {second_dir}: "
            "no task with the same number of shots is in both."
        )
    return [
        _compare(task, shots, first_dir / name, second_dir / name, num_samples, seed)
        for task, shots in parts
        for name in [f"{task}_{shots}{_ENDING}"]
    ]


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided probability of flips at least as uneven, if each way were equally likely."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    tail = sum(math.comb(total, count) for count in range(fewer + 1)) / 2**total
    return min(1.0, 2 * tail)


def _compare(
    task: str, shots: int, first_path: Path, second_path: Path, num_samples: int, seed: int
) -> TaskComparison:
    first, second = _read_parts(first_path), _read_parts(second_path)
    keys = [key for key in first if key in second]
    if len(keys) < 2:
        raise ValueError(
            f"{task}, {shots} shots: found {len(keys)} items that both runs have, expected at "
            "least 2; were they run on the same data?"
        )
    scores = [np.array([rows[key]["score"] for key in keys]) for rows in (first, second)]
    groups = [str(first[key].get("image") or first[key]["key"]) for key in keys]
    pairs = [Flip(key, first[key], second[key]) for key in keys]
    flips = [
        flip for flip in pairs if (flip.first["score"] >= RIGHT) != (flip.second["score"] >= RIGHT)
    ]
    gained = sum(flip.is_gain for flip in flips)
    return TaskComparison(
        task=task,
        shots=shots,
        count=len(keys),
        only_first=len(first) - len(keys),
        only_second=len(second) - len(keys),
        first=float(scores[0].mean()),
        second=float(scores[1].mean()),
        difference=paired_interval(scores[1], scores[0], num_samples, seed, groups),
        flips=tuple(sorted(flips, key=lambda flip: (flip.is_gain, flip.key))),
        p_value=mcnemar_exact(gained, len(flips) - gained),
        same_prompts=sum(
            flip.first["prompt_sha256"] == flip.second["prompt_sha256"] for flip in pairs
        ),
    )


def _parts(directory: Path) -> dict[tuple[str, int], Path]:
    found = {}
    for path in directory.glob(f"*{_ENDING}"):
        task, _, shots = path.name.removesuffix(_ENDING).rpartition("_")
        if task and shots.isdigit():
            found[task, int(shots)] = path
    return found


def _is_scored(path: Path) -> bool:
    """Whether a file holds scores: where answers are hidden there are none."""
    return any(row["score"] is not None for row in _prediction_rows(path))


def _names(directory: Path) -> str:
    names = [f"{task} ({shots} shots)" for task, shots in sorted(_parts(directory))]
    return ", ".join(names) or "no predictions"


def _read_parts(path: Path) -> dict[str, _Row]:
    return {_key(row): row for row in _prediction_rows(path) if row["score"] is not None}


def _key(row: _Row) -> str:
    """The item's key; with its number after the first set of shots, where there are several."""
    return f"{row['key']} (draw {row['draw']})" if row.get("draw") else str(row["key"])


def _prediction_rows(path: Path) -> Iterator[_Row]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):  # Answers may hold other line ends.
        try:
            row = json.loads(line)
            assert {"key", "score", "prompt_sha256"} <= row.keys()
        except (ValueError, AssertionError, AttributeError):
            raise ValueError(f"Found no prediction in {path}, line {number}.") from None
        yield row


def model_folders(predictions_dir: Path) -> Sequence[str]:
    """Names of the models whose predictions a folder holds."""
    return sorted(path.name for path in predictions_dir.iterdir() if path.is_dir() and _parts(path))
