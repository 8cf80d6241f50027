"""How many processes train together: today one, the seam for more."""

from __future__ import annotations

import os


def world_size() -> int:
    """Processes that a launcher started for this training; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_single_process() -> None:
    """Refuses to train inside a launcher.

    Every process would write the same checkpoints and metrics.

    Raises:
        ValueError: when the environment names more than one process.
    """
    if world_size() != 1:
        raise ValueError(
            f"Found WORLD_SIZE={world_size()} in the environment, expected 1: training on "
            "several processes is not supported yet, and each of them would write over the "
            "others' checkpoints. Start the pipeline without a launcher (torchrun, composer)."
        )
