"""Draws when each connector begins to read: the caption loss of the stored runs by step.

python docs/experiments/2026-11-25-small-lab-600-steps/plateaus.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mm1_pipeline.lab.store import RunStore

HERE = Path(__file__).parent
ARMS = {
    "average pooling": "mix_long",
    "attention pooling": "attention_pooling_long",
    "C-Abstractor": "c_abstractor_long",
}
NUM_SMOOTHED = 7
"""Rows of the log, each 12 steps apart."""


def caption_losses(store: RunStore, run: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and smoothed losses in nats a token."""
    rows = [row for row in store.training(run, "pretrain") if "caption" in row["losses"]]
    window = np.full(NUM_SMOOTHED, 1 / NUM_SMOOTHED)
    steps, losses = ([row["step"] for row in rows], [row["losses"]["caption"] for row in rows])
    return np.convolve(steps, window, "valid"), np.convolve(losses, window, "valid")


def main() -> None:
    """Writes the drawing beside this file."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    store = RunStore(HERE / "runs")
    for index, (name, arm) in enumerate(ARMS.items()):
        runs = [run for run in store.names() if run.startswith(f"{arm}/")]
        for number, run in enumerate(runs):
            label = None if number else name
            axes.plot(*caption_losses(store, run), color=f"C{index}", lw=1.3, label=label)
    axes.axvline(600, color="grey", lw=0.8, ls=":")
    axes.annotate("the grid's arms end here", (606, 0.53), color="grey", fontsize=8)
    axes.set(xlabel="step", ylabel="loss on captions, nats a token", ylim=(0.2, 0.56))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(HERE / "plateaus.png", dpi=130)


if __name__ == "__main__":
    main()
