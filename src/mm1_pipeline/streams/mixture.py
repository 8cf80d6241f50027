"""The order of a whole training: which sequences every global batch holds, fixed beforehand.

Shares are exact, not merely expected:

- streams take turns by the running number of a sequence (step x batch size + row), so every
  stretch of the training holds each stream's share to less than two sequences, and exactly where
  the turns begin anew: in every batch of a size that the shares divide, else in every few of them
  (`window_batches`: 512 holds 230 or 231 captions of 45 %, every fifth time 1,152 of 2,560);
- inside a stream, each source has been drawn its weight's share, to less than one sequence,
  after every draw;
- every sequence of a source is drawn once before any is drawn again, in another order each
  time;
- so does any contiguous part of a batch (a rank's, a microbatch's).

Nothing depends on ranks, workers or earlier steps: `batch(step)` computes its step alone.
Source: MM1, Data (one fixed, ordered snapshot; unconfirmed). How it is drawn is our choice.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm1_pipeline.config.pretraining import TextPretrainConfig, VisionPretrainConfig, WeightSource
from mm1_pipeline.config.training import MixtureConfig, TrainingConfig
from mm1_pipeline.streams.permutation import fair_turns, permute
from mm1_pipeline.streams.shard_index import ShardIndex, link_sources

MAX_PERIOD = 65_536
"""Finest step of a source's weight inside its stream; finer weights are rounded to it."""

_MAX_SHARE_DENOMINATOR = 10_000
_SHARE_TOLERANCE = Fraction(1, 1_000_000)
_HASHED_STEPS = 256
"""Batches that enter the snapshot's digest, spread evenly over the training."""


class _Turns:
    """Who takes a turn when, in whole shares, periodically.

    Args:
        shares: Turns of each taker in one period.
    """

    def __init__(self, shares: list[int]) -> None:
        self.shares = np.array(shares, dtype=np.int64)
        self.period = sum(shares)
        self._takers = fair_turns(shares)
        self._taken_before = np.empty_like(self._takers)
        for taker, share in enumerate(shares):
            self._taken_before[self._takers == taker] = np.arange(share)

    def of(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of turns by their number: who takes each, and how many the taker had before it."""
        periods, places = np.divmod(numbers, self.period)
        takers = self._takers[places]
        return takers, periods * self.shares[takers] + self._taken_before[places]

    def taken(self, number: int) -> NDArray[np.int64]:
        """Turns that each taker has had before this one."""
        periods, rest = divmod(number, self.period)
        first = np.bincount(self._takers[:rest], minlength=len(self.shares))
        return periods * self.shares + first


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream: whose turn it is inside it.

    Attributes:
        sources: Index of each source.
        turns: Position in `sources` of each draw.
    """

    sources: tuple[int, ...]
    turns: _Turns


class MixtureSnapshot:
    """The fixed, ordered snapshot of one training.

    Args:
        mixture: Streams, their shares, their sources and weights.
        num_sequences: Training sequences of each source.
        num_steps: Global batches of the training.
        global_batch_size: Sequences in one, over all ranks.
        seed: Chooses the order inside each source.
        content: Digest of each source's sequences, for `describe`; may be left out.

    Raises:
        ValueError: The shares are no fractions, or a source is missing, empty or in two streams.
    """

    def __init__(
        self,
        mixture: MixtureConfig,
        num_sequences: Mapping[str, int],
        *,
        num_steps: int,
        global_batch_size: int,
        seed: int,
        content: Mapping[str, str] | None = None,
    ) -> None:
        self.num_steps, self.global_batch_size, self.seed = num_steps, global_batch_size, seed
        self.stream_names = tuple(mixture.streams)
        self.source_names = _source_names(mixture, num_sequences)
        self.num_sequences = tuple(num_sequences[name] for name in self.source_names)
        self._content = {name: content[name] for name in self.source_names} if content else {}
        self._turns = _stream_turns(mixture)
        self._streams = [
            _plan_stream(mixture, name, self.source_names) for name in self.stream_names
        ]
        self.stream_of_source = np.zeros(len(self.source_names), dtype=np.int64)
        for number, stream in enumerate(self._streams):
            self.stream_of_source[list(stream.sources)] = number

    @property
    def window_batches(self) -> int:
        """Batches after which every stream has had its share exactly; 1 if each batch has it."""
        return self._turns.period // math.gcd(self._turns.period, self.global_batch_size)

    @classmethod
    def of_training(cls, config: TrainingConfig, shards_dir: Path) -> MixtureSnapshot:
        """The snapshot that a training with these parameters reads from these shards."""
        return cls.of_shards(
            config.mixture,
            shards_dir,
            num_steps=config.schedule.num_steps,
            global_batch_size=config.global_batch_size,
            seed=config.seed,
        )

    @classmethod
    def of_shards(
        cls,
        mixture: MixtureConfig,
        shards_dir: Path,
        *,
        num_steps: int,
        global_batch_size: int,
        seed: int,
    ) -> MixtureSnapshot:
        """The snapshot of a mixture of these shards."""
        sources = ShardIndex.read(shards_dir).sources
        return cls(
            mixture,
            {name: source.train.sequences for name, source in sources.items()},
            num_steps=num_steps,
            global_batch_size=global_batch_size,
            seed=seed,
            content={name: source.train.index_sha256 for name, source in sources.items()},
        )

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The sequences of one global batch.

        Args:
            step: Counted from 0.

        Returns:
            source_index: int64[B], index into `source_names`.
            sample_index: int64[B], index of the sequence in its source.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"Found step {step}, expected 0..{self.num_steps - 1}.")
        source_index = np.empty(self.global_batch_size, dtype=np.int64)
        sample_index = np.empty(self.global_batch_size, dtype=np.int64)
        first = step * self.global_batch_size
        takers, draws = self._turns.of(np.arange(first, first + self.global_batch_size))
        for number, stream in enumerate(self._streams):
            rows = np.flatnonzero(takers == number)
            chosen, ordinals = stream.turns.of(draws[rows])
            for taker, source in enumerate(stream.sources):
                mine = chosen == taker
                source_index[rows[mine]] = source
                sample_index[rows[mine]] = self._samples(source, ordinals[mine])
        return source_index, sample_index

    def describe(self) -> dict[str, Any]:
        """What the snapshot is, for a report and to compare with a later run's.

        `sha256` covers the parameters, the content of the shards and the sequences of up to
        256 batches spread over the training, so it changes with any of them and with the way
        of drawing.
        """
        description = {
            "num_steps": self.num_steps,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "streams": self._describe_streams(),
        }
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        num_hashed = min(self.num_steps, _HASHED_STEPS)
        for step in np.linspace(0, self.num_steps - 1, num_hashed).round().astype(int).tolist():
            for indices in self.batch(step):
                digest.update(indices.astype("<i8").tobytes())
        return {
            **description,
            "window_batches": self.window_batches,
            "sha256": digest.hexdigest(),
        }

    def _describe_streams(self) -> dict[str, Any]:
        """What each stream and each of its sources gives to the whole training."""
        total = self.num_steps * self.global_batch_size
        described: dict[str, Any] = {}
        for stream, name, share, draws in zip(
            self._streams,
            self.stream_names,
            self._turns.shares.tolist(),
            self._turns.taken(total).tolist(),
            strict=True,
        ):
            per_batch = Fraction(share * self.global_batch_size, self._turns.period)
            sources = {}
            for source, weight, count in zip(
                stream.sources,
                stream.turns.shares.tolist(),
                stream.turns.taken(draws).tolist(),
                strict=True,
            ):
                available = self.num_sequences[source]
                sources[self.source_names[source]] = {
                    "weight": weight / stream.turns.period,
                    "sequences": available,
                    "drawn": count,
                    "epochs": round(count / available, 4),
                    "index_sha256": self._content.get(self.source_names[source]),
                }
            described[name] = {
                "share": share / self._turns.period,
                "sequences_per_batch": (
                    int(per_batch) if per_batch.denominator == 1 else float(per_batch)
                ),
                "drawn": draws,
                "sources": sources,
            }
        return described

    def _samples(self, source: int, ordinals: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sequences that the n-th draws of a source take: a new order every epoch."""
        size = self.num_sequences[source]
        epochs, places = np.divmod(ordinals, size)
        samples = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            key = (self.seed, self.source_names[source], epoch)
            samples[mine] = permute(places[mine], size, key)
        return samples


def plan_part(
    config: VisionPretrainConfig | TextPretrainConfig, shards_dir: Path
) -> dict[str, Any]:
    """The mixture that an encoder or a decoder is trained with; empty if it is not trained.

    Args:
        config: where the part's weights come from, and how they are trained.
        shards_dir: what it is trained on.

    Returns:
        What `MixtureSnapshot.describe` says.
    """
    if config.source is not WeightSource.TRAIN:
        return {}
    return MixtureSnapshot.of_training(config.training, shards_dir).describe()


def link_drawn(planned: Mapping[str, Any], shards_dir: Path, output_dir: Path) -> int:
    """Passes on the sources that a mixture draws, and no others.

    Args:
        planned: What `plan_part` says.
        shards_dir: Of all sources.
        output_dir: Gets theirs, by `link_sources`.

    Returns:
        How many they are.
    """
    sources = {name for stream in planned.get("streams", {}).values() for name in stream["sources"]}
    link_sources(shards_dir, sorted(sources), output_dir)
    return len(sources)


def mixture_problems(mixture: MixtureConfig, sources: Collection[str]) -> list[str]:
    """What is wrong with a mixture, as far as that shows before there are shards.

    Args:
        mixture: Streams, their shares, their sources and weights.
        sources: Names of those that will be in the shards.

    Returns:
        A text for each, which begins with a path inside the training's parameters.
    """
    problems = _source_problems(mixture, sources)
    checks: list[Callable[[], Any]] = [lambda: _stream_turns(mixture)]
    checks += [partial(_stream_weights, mixture, name) for name in mixture.streams]
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    return problems


def _stream_turns(mixture: MixtureConfig) -> _Turns:
    """Turns of the streams; 0.45 means 9/20, and three times 0.3333333333 means thirds."""
    found = {name: stream.share for name, stream in mixture.streams.items()}
    shares = {
        name: Fraction(share).limit_denominator(_MAX_SHARE_DENOMINATOR)
        for name, share in found.items()
    }
    is_near = all(abs(shares[name] - Fraction(found[name])) < _SHARE_TOLERANCE for name in found)
    if sum(shares.values()) != 1 or not is_near:
        raise ValueError(
            f"mixture.streams: found shares {found}, which are no fractions with denominators "
            f"up to {_MAX_SHARE_DENOMINATOR} that sum to 1; round them, such as 0.45."
        )
    return _Turns(_whole_weights("mixture.streams", shares))


def _source_names(mixture: MixtureConfig, num_sequences: Mapping[str, int]) -> tuple[str, ...]:
    if problems := _source_problems(mixture, num_sequences):
        raise ValueError("\n".join(problems))
    names = {name: _source_path(stream, name) for stream, name in _drawn(mixture)}
    for name, path in names.items():
        if num_sequences[name] < 1:
            raise ValueError(
                f"{path}: found a source without training sequences; remove it, or give it records."
            )
    return tuple(names)


def _source_problems(mixture: MixtureConfig, known: Collection[str]) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    for stream, name in _drawn(mixture):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{close[0]}`?" if close else "."
            problems.append(
                f"{_source_path(stream, name)}: found no such source in the shards, expected "
                f"one that they hold: {', '.join(sorted(known)) or 'there are none'}{hint}"
            )
        elif name in seen:
            problems.append(
                f"{_source_path(stream, name)}: found the source in two streams, expected it "
                "in one: a sequence would be drawn by both."
            )
        seen.add(name)
    return problems


def _drawn(mixture: MixtureConfig) -> Iterator[tuple[str, str]]:
    """Stream and source of all that is drawn."""
    for stream_name, stream in mixture.streams.items():
        for name in stream.sources:
            yield stream_name, name


def _source_path(stream: str, source: str) -> str:
    return f"mixture.streams.{stream}.sources.{source}"


def _plan_stream(mixture: MixtureConfig, name: str, source_names: tuple[str, ...]) -> _Stream:
    sources = tuple(source_names.index(source) for source in mixture.streams[name].sources)
    return _Stream(sources, _Turns(_stream_weights(mixture, name)))


def _stream_weights(mixture: MixtureConfig, name: str) -> list[int]:
    return _whole_weights(f"mixture.streams.{name}.sources", mixture.streams[name].sources)


def _whole_weights(path: str, weights: Mapping[str, float | Fraction]) -> list[int]:
    """Weights as the smallest whole numbers of the same ratio, or nearly: see MAX_PERIOD."""
    exact = [Fraction(str(weight)) for weight in weights.values()]
    unit = math.lcm(*(weight.denominator for weight in exact))
    whole = _reduced([int(weight * unit) for weight in exact])
    if sum(whole) <= MAX_PERIOD:
        return whole
    ideal = [weight * MAX_PERIOD / sum(exact) for weight in exact]
    rounded = [math.floor(weight) for weight in ideal]
    by_rest = sorted(range(len(ideal)), key=lambda index: rounded[index] - ideal[index])
    for index in by_rest[: MAX_PERIOD - sum(rounded)]:
        rounded[index] += 1
    if min(rounded) < 1:
        raise ValueError(
            f"{path}: found weights {dict(weights)}; a source needs at least one draw in "
            f"{MAX_PERIOD}. Raise its weight or remove it."
        )
    return _reduced(rounded)


def _reduced(numbers: list[int]) -> list[int]:
    divisor = math.gcd(*numbers)
    return [number // divisor for number in numbers]
