"""Memory that `kedro mm1 plan` names beside what a training process really takes on a CPU.

    python benchmarks/plan_memory.py

Each size runs a few optimizer steps in a process of its own; its peak resident memory less what
the process held before the model was built is compared with the plan's total. The allocator is
glibc's, once as it is and once told to give free blocks back at once, which shows how much of the
difference is memory that nobody uses. Prints a JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "1.3M": {"d_model": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4, "d_ff": 352},
    "20M": {"d_model": 384, "num_layers": 8, "num_heads": 6, "num_kv_heads": 6, "d_ff": 1536},
}
BATCHES = (8, 24)
ALLOCATORS = {
    "default": {},
    "gives_back": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
}
STEPS = 3
MIB = 2**20


def main() -> None:
    """Compares every size and batch."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    rows = []
    for name in SIZES:
        for batch in BATCHES:
            for allocator, variables in ALLOCATORS.items():
                row = {"size": name, "sequences": batch, "allocator": allocator}
                row |= run(name, batch, variables)
                rows.append(row)
                print(
                    f"{name:>5} {batch:>3} sequences, {allocator:>10}: planned "
                    f"{row['planned_mib']:.0f} MiB, process {row['measured_mib']:.0f} MiB, "
                    f"ratio {row['ratio']:.3f}",
                    flush=True,
                )
    print(json.dumps({"plan_over_process": rows}))


def run(size: str, batch: int, variables: dict[str, str]) -> dict[str, Any]:
    """One measurement in a process of its own."""
    source = str(Path(__file__).parents[1] / "src")
    found = subprocess.run(
        [sys.executable, __file__, size, str(batch)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **variables},
    )
    return json.loads(found.stdout.splitlines()[-1])


def measure(size: str, num_sequences: int) -> dict[str, Any]:
    """Plan and process memory of a few steps.

    Returns:
        Both in MiB, and plan over process.
    """
    import torch

    from mm1_pipeline.config.model import (
        ConnectorConfig,
        ConnectorKind,
        DecoderConfig,
        MM1Config,
        VisionConfig,
    )
    from mm1_pipeline.config.plan import ClusterConfig
    from mm1_pipeline.config.shard import PackingConfig
    from mm1_pipeline.config.training import (
        MixtureConfig,
        ScheduleConfig,
        StreamMixture,
        TrainingConfig,
    )
    from mm1_pipeline.lab.plan import plan_training
    from mm1_pipeline.models.initialization import build_model

    length, images = 256, 4
    model = MM1Config(
        vision=VisionConfig(
            image_size=64, patch_size=8, d_model=96, num_layers=3, num_heads=4, d_ff=384
        ),
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=16),
        decoder=DecoderConfig(vocab_size=512, **SIZES[size]),
    )
    training = TrainingConfig(
        mixture=MixtureConfig(streams={"text": StreamMixture(share=1.0, sources={"t": 1.0})}),
        schedule=ScheduleConfig(num_steps=100, warmup_steps=10),
        global_batch_size=num_sequences,
    )
    packing = PackingConfig(sequence_length=length, max_images=images, image_tokens=16)
    labelled = (length - images * 16 - 1) / length
    cluster = ClusterConfig(num_devices=1, images_per_sequence=images, labelled_share=labelled)
    row = plan_training(model, packing, training, cluster)["memory"][0]

    ids = torch.randint(4, 512, (num_sequences, length))
    ids[:, : images * 16] = 3
    labels = ids.roll(-1, 1)
    labels[:, : images * 16] = -100
    inputs = {
        "input_ids": ids,
        "position_ids": torch.arange(length).expand(num_sequences, -1),
        "cu_seqlens": torch.arange(0, length * num_sequences + 1, length, dtype=torch.int32),
        "pixel_values": torch.randn(num_sequences * images, 3, 64, 64),
        "labels": labels,
    }
    # What torch loads on first use (kernels, thread pools) belongs to no model.
    torch.nn.Linear(64, 64)(torch.randn(8, 64)).sum().backward()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    built = build_model(model, 3, seed=0)
    optimizer = torch.optim.AdamW(built.parameters())
    for _ in range(STEPS):
        loss = built(**inputs).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = _status("VmHWM") - before
    planned = row["total_gib"] * 2**30
    return {
        "planned_mib": planned / MIB,
        "activations_mib": row["activations_gib"] * 1024,
        "measured_mib": measured / MIB,
        "ratio": planned / measured,
    }


def _status(name: str) -> int:
    """A size of this process in bytes, as Linux states it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status: found no {name}; this benchmark needs Linux.")


if __name__ == "__main__":
    main()
