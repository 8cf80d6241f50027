"""What a training step measured, and the file it is kept in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mm1_pipeline.ground.files import read_sealed, replacing, sealed_line
from mm1_pipeline.models.objective import Term
from mm1_pipeline.training.distributed import sum_counts, sum_over_ranks

logger = logging.getLogger(__name__)

Row = dict[str, Any]

TIMING = "timing"
"""Key of the numbers that depend on the clock; all others depend on parameters and data."""


def without_timing(rows: Iterable[Row]) -> list[Row]:
    """The part of the rows that equal parameters, data and device reproduce exactly."""
    return [{key: value for key, value in row.items() if key != TIMING} for row in rows]


class StreamLosses:
    """Sums losses by stream over the microbatches of a step.

    Sums are kept on the device, so that nothing waits for them before the step is done.

    Args:
        streams: names, in the order of the batch's `stream_ids`.
    """

    def __init__(self, streams: Sequence[str]) -> None:
        self._streams = tuple(streams)
        self._sums: Tensor | None = None

    def reset(self) -> None:
        """Begins a new step."""
        self._sums = None

    def add(self, losses: Tensor, weights: Tensor, stream_ids: Tensor) -> None:
        """Adds a microbatch.

        Args:
            losses: float[B, ...], 0 where the weight is.
            weights: bool or number, of the same shape.
            stream_ids: int64[B].
        """
        rows = len(stream_ids)
        sum_losses = losses.detach().double().reshape(rows, -1).sum(dim=1)
        sum_weights = weights.reshape(rows, -1).sum(dim=1).double()
        per_row = torch.stack([sum_losses, sum_weights])
        # A masked sum a stream, not a scatter, whose order on a GPU varies.
        sums = torch.stack(
            [(per_row * (stream_ids == stream)).sum(dim=1) for stream in range(len(self._streams))]
        )
        self._sums = sums if self._sums is None else self._sums + sums

    def means(self) -> tuple[float, dict[str, float]]:
        """Mean loss over targets: of the whole batch, all ranks', and of each stream in it.

        Returns:
            The global mean and, by name, the mean of every stream that has targets.
        """
        assert self._sums is not None, "no microbatch was added since the last reset"
        sums = sum_over_ranks(self._sums).tolist()
        total_loss = sum(loss for loss, _ in sums)
        total_count = sum(count for _, count in sums)
        by_stream = {
            name: loss / count
            for name, (loss, count) in zip(self._streams, sums, strict=True)
            if count
        }
        return total_loss / total_count, by_stream


class TermMeans:
    """Means of an objective's terms over the microbatches of a step, weighted by targets."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_targets = 0

    def reset(self) -> None:
        """Begins a new step."""
        self._sums, self._num_targets = {}, 0

    def add(self, terms: Mapping[str, Term], num_targets: int) -> None:
        """Adds a microbatch.

        Args:
            terms: as the objective gave them.
            num_targets: positions of the microbatch that predict a token.
        """
        for name, term in terms.items():
            value = term.value.detach().double() * num_targets
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._num_targets += num_targets

    def means(self) -> dict[str, Any]:
        """Means over all ranks by name, a number or nested lists of them; waits for the device."""
        if not self._sums:
            return {}
        (num_targets,) = sum_counts([self._num_targets])
        sums = {name: sum_over_ranks(value) for name, value in self._sums.items()}
        return {name: (value / num_targets).tolist() for name, value in sums.items()}


def count_positions(input_ids: Tensor, *, pad_id: int, image_id: int) -> dict[str, int]:
    """Positions of a global batch by what they hold.

    Args:
        input_ids: int64[B, T], this rank's rows.
        pad_id: token of empty positions.
        image_id: token that stands for a position filled by the connector.

    Returns:
        `{"text": ..., "image": ..., "padding": ...}` over all ranks.
    """
    padding = int((input_ids == pad_id).sum())
    image = int((input_ids == image_id).sum())
    counts = sum_counts([input_ids.numel() - padding - image, image, padding])
    return dict(zip(("text", "image", "padding"), counts, strict=True))


def stream_shares(stream_ids: Tensor, streams: Sequence[str]) -> dict[str, float]:
    """Share of a global batch's sequences that each stream gave.

    Args:
        stream_ids: int64[B], of this rank's rows.
        streams: names, in the order of the ids.
    """
    counts = sum_counts(torch.bincount(stream_ids.cpu(), minlength=len(streams)).tolist())
    return {name: count / sum(counts) for name, count in zip(streams, counts, strict=True)}


class MetricsLog:
    """A file of JSON lines, a row a logged step with its checksum, that survives a kill.

    Args:
        path: made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.num_rows = 0
        """Rows kept by `rewind` or appended since."""
        self._file: BinaryIO | None = None

    def rewind(self, step: int) -> None:
        """Drops the rows after a step, and a last line that was cut off by a kill.

        Args:
            step: that of the checkpoint from which training goes on; 0 to begin anew.
        """
        self.close()
        kept = [row for row in self.rows() if row["step"] <= step]
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(map(sealed_line, kept)))
        self.num_rows = len(kept)

    def append(self, row: Row) -> None:
        """Adds a row; a kill of this process no longer loses it."""
        if self._file is None:
            self._file = self.path.open("ab")
        self._file.write(sealed_line(row))
        self._file.flush()
        self.num_rows += 1

    def sync(self) -> None:
        """Brings the rows to disk; a kill of the machine no longer loses them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def rows(self) -> list[Row]:
        """All rows that are as they were written; others are said, but for one cut by a kill."""
        lines = self.path.read_bytes().split(b"\n")[:-1]
        rows = [read_sealed(line) for line in lines]
        if num_damaged := rows.count(None):
            logger.warning(
                "%s: %d of %d rows are damaged and left out; the training itself is as it was.",
                self.path,
                num_damaged,
                len(rows),
            )
        return [row for row in rows if row is not None]

    def close(self) -> None:
        """Closes the file; `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None
