"""The paper's own results, shown beside a run for orientation, never as a yardstick."""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "MM1 (arXiv 2403.09611), pre-training results: few-shot evaluation."
"""Where the numbers below come from."""

TASKS: tuple[tuple[str, str], ...] = (
    ("COCO", "CIDEr"),
    ("NoCaps", "CIDEr"),
    ("TextCaps", "CIDEr"),
    ("VQAv2", "VQA accuracy"),
    ("TextVQA", "VQA accuracy"),
    ("VizWiz", "VQA accuracy"),
    ("OKVQA", "VQA accuracy"),
)
"""The columns of `PRETRAINING`, with their metrics."""


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's table.

    Attributes:
        model: the model's name.
        shots: examples shown before the question.
        scores: one per task of `TASKS`; None where the paper gives none.
    """

    model: str
    shots: int
    scores: tuple[float | None, ...]

    def __post_init__(self) -> None:
        assert len(self.scores) == len(TASKS), self

    @property
    def is_mm1(self) -> bool:
        """Whether the row is one of the paper's own models."""
        return self.model.startswith("MM1-")


PRETRAINING: tuple[PaperRow, ...] = (
    PaperRow("Flamingo-3B", 0, (73.0, None, None, 49.2, 30.1, 28.9, 41.2)),
    PaperRow("Flamingo-3B", 8, (90.6, None, None, 55.4, 32.4, 38.4, 44.6)),
    PaperRow("MM1-3B", 0, (73.5, 55.6, 63.3, 46.2, 29.4, 15.6, 26.1)),
    PaperRow("MM1-3B", 8, (114.6, 104.7, 88.8, 63.6, 44.6, 46.4, 48.4)),
    PaperRow("Flamingo-9B", 8, (99.0, None, None, 58.0, 33.6, 39.4, 50.0)),
    PaperRow("Emu2-14B", 8, (None, None, None, 59.0, None, 43.9, None)),
    PaperRow("MM1-7B", 8, (116.3, 106.6, 88.2, 63.6, 46.3, 45.3, 51.4)),
    PaperRow("Flamingo-80B", 8, (108.8, None, None, 65.6, 37.3, 44.8, 57.5)),
    PaperRow("IDEFICS-80B", 8, (114.3, 105.7, 77.6, 64.8, 35.7, 46.1, 55.1)),
    PaperRow("Emu2-37B", 8, (None, None, None, 67.8, 49.3, 54.7, 54.1)),
    PaperRow("MM1-30B", 8, (123.1, 111.6, 92.9, 70.9, 49.4, 49.9, 58.3)),
)
"""Few-shot results after pre-training, as printed in the paper.

Source: MM1, pre-training results.
"""
