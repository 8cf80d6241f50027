"""Which solved examples a prompt shows before its question."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from mm1_pipeline.config.evaluation import ShotDraw


class ShotPool:
    """Examples that a task's prompts may show.

    Source: MM1, Evaluation (shots are drawn for each data set, never the query; unconfirmed);
    deviation: an ingested source is its own pool, where the paper prefers a training split;
    official files have a pool of their own.

    A draw depends on the seed, the task, its number and, drawn per query, the query's key and the
    number of shots alone: not on the order of items, on other queries or on the batch size.

    Args:
        task: Name of the task.
        images: SHA-256 of the images of each example, by example key.
        seed: Same seed, same shots.
        shot_draw: Whether all queries are shown the same; those that one may not see are left
            out for it, and later ones of the order take their place.
        content: SHA-256 of an example's images where `images` leaves them out, because reading
            all of a training split takes too long; None for an example that cannot be shown.
    """

    def __init__(
        self,
        task: str,
        images: Mapping[str, Iterable[str]],
        seed: int,
        shot_draw: ShotDraw = ShotDraw.PER_TASK,
        content: Callable[[str], Iterable[str] | None] | None = None,
    ) -> None:
        self._task = task
        self._shot_draw = shot_draw
        self._content = content
        self._seed = seed
        self._keys = sorted(images)
        self._images = {key: frozenset(images[key]) for key in self._keys}
        self._keys_of_image: dict[str, set[str]] = defaultdict(set)
        for key, hashes in self._images.items():
            for image in hashes:
                self._keys_of_image[image].add(key)

    def draw(
        self, key: str, images: Iterable[str], num_shots: int, draw: int = 0
    ) -> tuple[str, ...]:
        """Draws the shots of one query.

        An example that may not be shown is replaced, so there are always as many as asked for.

        Args:
            key: The query's key; it is never drawn.
            images: SHA-256 of the query's images; an example with one of them is never drawn.
            num_shots: Shots, all different.
            draw: Number of the set of shots, from 0.

        Returns:
            Keys of the examples, in the order of the prompt.

        Raises:
            ValueError: If too few examples remain.
        """
        shown = frozenset(images)
        barred = {key}.union(*(self._keys_of_image.get(image, set()) for image in shown))
        self._check_available(key, barred, num_shots)
        shots: dict[str, None] = {}
        attempt = 0
        while len(shots) < num_shots:
            candidate = self._candidate(key, num_shots, draw, attempt)
            attempt += 1
            if candidate in barred or candidate in shots:
                continue
            if self._may_be_shown(candidate, shown):
                shots[candidate] = None
            else:
                barred.add(candidate)
                self._check_available(key, barred, num_shots)
        return tuple(shots)

    def _check_available(self, key: str, barred: set[str], num_shots: int) -> None:
        available = len(self._keys) - sum(other in self._images for other in barred)
        if available < num_shots:
            raise ValueError(
                f"tasks.{self._task}.shots: found {num_shots}, but only {available} examples with "
                f"another image than {key!r} can be shown; ask for fewer shots or add records to "
                "the task's source."
            )

    def _may_be_shown(self, candidate: str, shown: frozenset[str]) -> bool:
        """Whether an example whose images are not known yet is sound and shows other images."""
        if self._content is None:
            return True
        found = self._content(candidate)
        return found is not None and not shown.intersection(found)

    def _candidate(self, key: str, num_shots: int, draw: int, attempt: int) -> str:
        # A hash rather than a generator: the draw stays the same in every library version.
        match self._shot_draw:
            case ShotDraw.PER_QUERY:
                name = [self._seed, self._task, key, num_shots, attempt]
            case ShotDraw.PER_TASK:
                name = [self._seed, self._task, attempt]
        if draw:
            name.append(f"draw {draw}")
        number = int.from_bytes(hashlib.sha256(json.dumps(name).encode()).digest(), "big")
        return self._keys[number % len(self._keys)]
