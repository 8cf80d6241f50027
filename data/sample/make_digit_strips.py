"""Makes the digit strips that SFT reads, from the handwritten digits of scikit-learn.

    pip install scikit-learn==1.9.1 pillow
    python data/sample/make_digit_strips.py

Each digit alone, and strips of two to four, drawn as those of `sft_llava` are, in SynthDog's format. The 300
strips of `sft_llava` are for evaluation: none of the 709 digits (of 1,797) that they show is
used here, so what is measured on them is reading, not memory. Same versions, same bytes.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

SAMPLE = Path(__file__).parent
NUM_STRIPS = 2_400
LENGTHS = (2, 3, 4)
"""Digits of a strip, drawn evenly from these; before them every digit stands alone once, which
teaches what a digit is."""
CELL, HEIGHT, SIDE = 48, 56, 40
"""Pixels: width of a digit's cell, height of a strip, side of a digit."""
MARGIN = ((CELL - SIDE) // 2, (HEIGHT - SIDE) // 2)
SAME = 1.0
"""Mean squared difference of grey values below which two digits are the same drawing."""


def draw_digits() -> list[Image.Image]:
    """Every digit of the set, dark on white, enlarged from 8 x 8."""
    grey = 255 - np.minimum(16 * load_digits().images, 255)
    return [
        Image.fromarray(digit.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for digit in grey
    ]


def digits_of_evaluation(bank: list[Image.Image]) -> set[int]:
    """Numbers of the digits that the strips of `sft_llava` show.

    Raises:
        SystemExit: a digit is not found, so that nothing could be kept apart.
    """
    pixels = np.stack([np.asarray(digit, dtype=float) for digit in bank])
    entries = json.loads((SAMPLE / "sft_llava" / "llava_instruct.json").read_text())
    used = set()
    for entry in entries:
        if not entry["id"].startswith("digits_"):
            continue
        strip = np.asarray(Image.open(SAMPLE / "sft_llava" / entry["image"]), dtype=float)
        for place in range(len(entry["conversations"][1]["value"])):
            left, top = place * CELL + MARGIN[0], MARGIN[1]
            shown = strip[top : top + SIDE, left : left + SIDE]
            differences = ((pixels - shown) ** 2).mean(axis=(1, 2))
            if differences.min() > SAME:
                raise SystemExit(f"{entry['id']}: digit {place} is none of scikit-learn's")
            used.add(int(differences.argmin()))
    return used


def make_strip(bank: list[Image.Image], numbers: list[int]) -> bytes:
    """Some digits side by side, as a grey JPEG."""
    strip = Image.new("L", (CELL * len(numbers), HEIGHT), 255)
    for place, number in enumerate(numbers):
        strip.paste(bank[number], (CELL * place + MARGIN[0], MARGIN[1]))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def main() -> None:
    """Writes the table."""
    bank, targets = draw_digits(), load_digits().target
    free = sorted(set(range(len(bank))) - digits_of_evaluation(bank))
    rng = random.Random(0)
    strips = [[number] for number in free]
    while len(strips) < NUM_STRIPS:
        strips.append([rng.choice(free) for _ in range(rng.choice(LENGTHS))])
    rows = []
    for numbers in strips:
        text = "".join(str(targets[number]) for number in numbers)
        truth = json.dumps({"gt_parse": {"text_sequence": text}})
        image = {"bytes": make_strip(bank, numbers), "path": None}
        rows.append({"image": image, "ground_truth": truth})
    folder = SAMPLE / "sft_digit_strips"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet", compression="zstd")
    print(f"{len(rows)} strips of {len(free)} digits")


if __name__ == "__main__":
    main()
