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
"""The columns of `PRETRAINING`, with their metrics; GQA is evaluated, but not printed."""

SFT_SOURCE = "MM1 (arXiv 2403.09611), results after supervised fine-tuning."
"""Where the numbers of `SFT` come from."""

SFT_TASKS: tuple[tuple[str, str], ...] = (
    ("VQAv2", "VQA acc."),
    ("TextVQA", "VQA acc."),
    ("SQA-I", "acc."),
    ("MMMU", "val"),
    ("MMMU-test", "test"),
    ("MathV", "acc."),
    ("MME-P", "score"),
    ("MME-C", "score"),
    ("MMB", "circular"),
    ("SEED", "all"),
    ("SEED-image", "images"),
    ("POPE", "F1"),
    ("LLaVA-W", "ratio"),
    ("MM-Vet", "grade"),
)
"""The columns of `SFT`, with their metrics."""


@dataclass(frozen=True)
class PaperRow:
    """One line of the paper's table.

    Attributes:
        model: the model's name.
        shots: examples shown before the question.
        scores: one a column; None where the paper gives none.
    """

    model: str
    shots: int
    scores: tuple[float | None, ...]

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

SFT: tuple[PaperRow, ...] = (
    PaperRow(
        "MM1-3B-Chat",
        0,
        (82.0, 71.9, 69.4, 33.9, 33.7, 32.0, 1482, 279, 67.8, 63.0, 68.8, 87.4, 72.1, 43.7),
    ),
    PaperRow(
        "MM1-3B-MoE",
        0,
        (82.5, 72.9, 76.1, 38.6, 35.7, 32.6, 1469, 303, 70.8, 63.9, 69.4, 87.6, 76.8, 42.2),
    ),
    PaperRow(
        "LLaVA-1.5-7B",
        0,
        (78.5, 58.2, 66.8, None, None, None, 1511, 316, 64.3, 58.6, 66.1, 85.9, 63.4, 31.1),
    ),
    PaperRow(
        "LLaVA-NeXT-7B",
        0,
        (81.8, 64.9, 70.1, 35.8, None, 34.6, 1519, 332, 67.4, None, 70.2, 86.5, 81.6, 43.9),
    ),
    PaperRow(
        "MM1-7B-Chat",
        0,
        (82.8, 72.8, 72.6, 37.0, 35.6, 35.9, 1529, 329, 72.3, 64.0, 69.9, 86.6, 81.5, 42.1),
    ),
    PaperRow(
        "MM1-7B-MoE",
        0,
        (83.4, 73.8, 74.4, 40.9, 37.9, 40.9, 1597, 395, 72.7, 65.5, 70.9, 87.8, 84.7, 45.2),
    ),
    PaperRow(
        "MM1-30B-Chat",
        0,
        (83.7, 73.5, 81.0, 44.7, 40.3, 39.4, 1638, 431, 75.1, 65.9, 72.1, 87.6, 89.3, 48.7),
    ),
)
"""Results after SFT, without shots, as printed in the paper.

Source: MM1, results after supervised fine-tuning.
"""

assert all(len(row.scores) == len(TASKS) for row in PRETRAINING)
assert all(len(row.scores) == len(SFT_TASKS) for row in SFT)
