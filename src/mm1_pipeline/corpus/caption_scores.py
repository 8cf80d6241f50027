"""Captions that do not fit their images, as a model sees it that this layer knows nothing of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

from mm1_pipeline.config.corpus_rules import ClipScoreConfig
from mm1_pipeline.corpus.filters import FilterResult
from mm1_pipeline.corpus.readers.base import RawRecord, RejectedRecord
from mm1_pipeline.corpus.records import Record
from mm1_pipeline.ground.rejects import Reason, Rejected

SCORES_VERSION = 1
"""Raise it when the same model gives other scores. Staleness does not follow the scorer's code
(see settings.py): it reaches half of the project, and every edit there would rerun `ingest`."""

_TOGETHER = 32
"""Records that are scored together."""
_TOGETHER_BYTES = 256_000_000
"""Encoded images above which fewer are: what waiting may cost in memory."""


class CaptionScorer(Protocol):
    """Tells how well captions fit their images."""

    @property
    def identity(self) -> str:
        """Hash of all that the scores depend on besides the records."""
        ...

    def score(self, records: Sequence[Record]) -> list[float | Rejected]:
        """The cosine of each caption record; what cannot be scored is rejected.

        Equal calls give equal results, in any process.
        """
        ...


LoadScorer = Callable[[ClipScoreConfig], CaptionScorer]
"""Of a module's top level, because it is sent to other processes. Raises ValueError."""


@dataclass(frozen=True)
class ScorerReference:
    """A scorer that was found to work, as it is sent to workers."""

    load: LoadScorer
    config: ClipScoreConfig
    identity: str
    """Keeps a worker from taking an earlier model of the same path for this one."""


@lru_cache(1)
def open_scorer(reference: ScorerReference) -> CaptionScorer:
    """The scorer, loaded once a process."""
    return reference.load(reference.config)


class Checked(NamedTuple):
    """What a reader gave, and what the rules that look at one record alone make of it."""

    item: RawRecord | RejectedRecord
    verdict: FilterResult | None
    """None for what is no record."""
    perceptual_hash: bytes | None
    """Fingerprint of the record's first image, where it is wanted."""


def reject_low_scores(
    checked: Iterable[Checked], scorer: CaptionScorer, threshold: float
) -> Iterator[Checked]:
    """Rejects the records that score below a threshold; everything else stays, in its order.

    Args:
        checked: records of captions.
        scorer: gives their scores, several at a time.
        threshold: the lowest score that is kept.
    """
    waiting: list[Checked] = []
    num_bytes = 0
    for one in checked:
        waiting.append(one)
        if one.verdict is not None and one.verdict.record is not None:
            num_bytes += sum(len(image.bytes) for image in one.verdict.record.images)
        if len(waiting) == _TOGETHER or num_bytes > _TOGETHER_BYTES:
            yield from _score_waiting(waiting, scorer, threshold)
            waiting, num_bytes = [], 0
    yield from _score_waiting(waiting, scorer, threshold)


def _score_waiting(
    waiting: Sequence[Checked], scorer: CaptionScorer, threshold: float
) -> Iterator[Checked]:
    records = [one.verdict.record for one in waiting if one.verdict and one.verdict.record]
    scores = iter(scorer.score(records) if records else ())
    for one in waiting:
        if one.verdict is None or one.verdict.record is None:
            yield one
            continue
        score = next(scores)
        if isinstance(score, Rejected):
            why = score
        elif score < threshold:
            found = f"found a cosine of {score:.4f}, expected {threshold:g} or more"
            why = Rejected(Reason.CLIP_SCORE_TOO_LOW, found)
        else:
            yield one
            continue
        rejected = FilterResult(None, why, one.verdict.dropped, one.verdict.num_images)
        yield one._replace(verdict=rejected)
