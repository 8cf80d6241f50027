"""As a source of the caption stream, synthetic captions are 7 % of all sequences over time."""

from __future__ import annotations

from pathlib import Path

import yaml

from mm1_pipeline.config.training import MixtureConfig, StreamMixture
from mm1_pipeline.streams.mixture import MixtureSnapshot

ROOT = Path(__file__).parents[3]
SHARES = {"caption": 0.45, "interleaved": 0.45, "text": 0.10}


def test_seven_percent_are_drawn_and_every_batch_keeps_its_shares() -> None:
    smoke = yaml.safe_load((ROOT / "conf/smoke/parameters.yml").read_text())
    weights = smoke["pretrain"]["mixture"]["streams"]["caption"]["sources"]
    sources = {"caption": weights, "interleaved": {"pages": 1.0}, "text": {"books": 1.0}}
    streams = {
        name: StreamMixture(share=share, sources=sources[name]) for name, share in SHARES.items()
    }
    counts = dict.fromkeys([*weights, "pages", "books"], 50)
    for num_steps in (40, 333, 1000):
        snapshot = MixtureSnapshot(
            MixtureConfig(streams=streams),
            counts,
            num_steps=num_steps,
            global_batch_size=20,
            seed=1,
        )
        found = snapshot.describe()["streams"]
        synthetic = found["caption"]["sources"]["captions_synthetic"]["drawn"]
        # 7 % of a batch of 20 is 1.4 sequences: no batch can hold it, but any run of them does.
        assert abs(synthetic - 0.07 * 20 * num_steps) < 1
        per_batch = {name: stream["sequences_per_batch"] for name, stream in found.items()}
        assert per_batch == {"caption": 9, "interleaved": 9, "text": 2}
