"""What a training step measured, and the file it is kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

Row = dict[str, Any]

TIMING = "timing"
"""Key of the numbers that depend on the clock; all others depend on parameters and data."""


def without_timing(rows: Iterable[Row]) -> list[Row]:
    """The part of the rows that equal parameters, data and device reproduce exactly."""
    return [{key: value for key, value in row.items() if key != TIMING} for row in rows]


class StreamLosses:
    """Sums token losses by stream over the microbatches of a step.

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

    def add(self, token_losses: Tensor, labels: Tensor, stream_ids: Tensor) -> None:
        """Adds a microbatch.

        Args:
            token_losses: float[B, T], 0 where there is no label.
            labels: int64[B, T], -100 where there is no label.
            stream_ids: int64[B].
        """
        losses = token_losses.detach().double().sum(dim=1)
        counts = (labels != -100).sum(dim=1).double()
        per_row = torch.stack([losses, counts])
        # A masked sum a stream, not a scatter, whose order on a GPU varies.
        sums = torch.stack(
            [(per_row * (stream_ids == stream)).sum(dim=1) for stream in range(len(self._streams))]
        )
        self._sums = sums if self._sums is None else self._sums + sums

    def means(self) -> tuple[float, dict[str, float]]:
        """Mean loss over label positions: of the whole batch, and of each stream in it.

        Returns:
            The global mean and, by name, the mean of every stream that has labels.
        """
        assert self._sums is not None, "no microbatch was added since the last reset"
        sums = self._sums.tolist()
        total_loss = sum(loss for loss, _ in sums)
        total_count = sum(count for _, count in sums)
        by_stream = {
            name: loss / count
            for name, (loss, count) in zip(self._streams, sums, strict=True)
            if count
        }
        return total_loss / total_count, by_stream


def count_positions(input_ids: Tensor, *, pad_id: int, image_id: int) -> dict[str, int]:
    """Positions of a batch by what they hold.

    Args:
        input_ids: int64[B, T].
        pad_id: token of empty positions.
        image_id: token that stands for a position filled by the connector.

    Returns:
        `{"text": ..., "image": ..., "padding": ...}`; together B * T.
    """
    padding = int((input_ids == pad_id).sum())
    image = int((input_ids == image_id).sum())
    return {
        "text": input_ids.numel() - padding - image,
        "image": image,
        "padding": padding,
    }


def stream_shares(stream_ids: Tensor, streams: Sequence[str]) -> dict[str, float]:
    """Share of a batch's sequences that each stream gave.

    Args:
        stream_ids: int64[B].
        streams: names, in the order of the ids.
    """
    counts = torch.bincount(stream_ids.cpu(), minlength=len(streams)).tolist()
    return {name: count / len(stream_ids) for name, count in zip(streams, counts, strict=True)}


class MetricsLog:
    """A file of JSON lines, a row a logged step, that survives a kill.

    Args:
        path: made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.num_rows = 0
        """Rows kept by `rewind` or appended since."""
        self._file: TextIO | None = None

    def rewind(self, step: int) -> None:
        """Drops the rows after a step, and a last line that was cut off by a kill.

        Args:
            step: that of the checkpoint from which training goes on; 0 to begin anew.
        """
        self.close()
        kept = [row for row in self.rows() if row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        os.replace(temporary, self.path)
        self.num_rows = len(kept)

    def append(self, row: Row) -> None:
        """Adds a row; a kill of this process no longer loses it."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(_line(row))
        self._file.flush()
        self.num_rows += 1

    def sync(self) -> None:
        """Brings the rows to disk; a kill of the machine no longer loses them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def rows(self) -> list[Row]:
        """All whole rows."""
        rows = []
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break  # cut off by a kill: nothing can follow it
        return rows

    def close(self) -> None:
        """Closes the file; `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
