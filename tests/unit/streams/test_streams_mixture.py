"""A mixture that cannot be drawn is refused in words that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mm1_pipeline.config.training import (
    MixtureConfig,
    ScheduleConfig,
    StreamMixture,
    TrainingConfig,
)
from mm1_pipeline.streams.mixture import MAX_PERIOD, MixtureSnapshot

SIZES = {"a": 50, "b": 70, "c": 30, "d": 10}


def mixture(**sources: dict[str, float]) -> MixtureConfig:
    shares = {"caption": 0.45, "interleaved": 0.45, "text": 0.10}
    defaults = {"caption": {"a": 1.0}, "interleaved": {"b": 1.0}, "text": {"d": 1.0}}
    return MixtureConfig(
        streams={
            name: StreamMixture(share=share, sources={**defaults, **sources}[name])
            for name, share in shares.items()
        }
    )


def snapshot(config: MixtureConfig, **options: Any) -> MixtureSnapshot:
    defaults = {"num_steps": 10, "global_batch_size": 20, "seed": 0}
    return MixtureSnapshot(config, SIZES, **{**defaults, **options})


def test_mm1s_batch_of_512_holds_its_shares_exactly_every_five_batches() -> None:
    made = snapshot(mixture(), global_batch_size=512, num_steps=10)
    assert made.window_batches == 5
    counts = np.array(
        [np.bincount(made.stream_of_source[made.batch(step)[0]]) for step in range(10)]
    )
    assert set(counts[:, :2].flat) == {230, 231}
    assert set(counts[:, 2]) == {51, 52}
    assert counts[:5].sum(axis=0).tolist() == counts[5:].sum(axis=0).tolist() == [1152, 1152, 256]
    streams = made.describe()["streams"]
    assert streams["caption"]["sequences_per_batch"] == 230.4
    assert [streams[name]["drawn"] for name in streams] == [2304, 2304, 512]


@pytest.mark.parametrize(
    ("size", "window"), [(20, 1), (40, 1), (512, 5), (8, 5), (21, 20), (10, 2), (1, 20)]
)
def test_the_window_is_the_shortest_in_which_shares_are_whole(size: int, window: int) -> None:
    made = snapshot(mixture(), global_batch_size=size, num_steps=2 * window)
    shares = np.array([9, 9, 2])
    drawn = np.cumsum(
        [
            np.bincount(made.stream_of_source[made.batch(step)[0]], minlength=3)
            for step in range(2 * window)
        ],
        axis=0,
    )
    exact = [
        step
        for step, found in enumerate(drawn.tolist(), start=1)
        if (np.array(found) * 20 == shares * step * size).all()
    ]
    assert exact == [window, 2 * window]
    assert made.window_batches == made.describe()["window_batches"] == window


def test_shares_that_are_no_fractions_are_refused() -> None:
    config = MixtureConfig(
        streams={
            "x": StreamMixture(share=0.50003, sources={"a": 1}),
            "y": StreamMixture(share=0.49997, sources={"b": 1}),
        }
    )
    with pytest.raises(ValueError, match=r"denominators up to 10000"):
        snapshot(config)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            {"e": 1.0},
            r"caption.sources.e: found no such source .* one that they hold: a, b",
        ),
        ({"b": 1.0}, r"interleaved.sources.b: found the source in two streams"),
    ],
)
def test_unusable_sources_are_named(sources: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snapshot(mixture(caption=sources))


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"caption.sources.a: found a source without training"):
        MixtureSnapshot(mixture(), {**SIZES, "a": 0}, num_steps=1, global_batch_size=20, seed=0)


def test_steps_outside_the_training_are_refused() -> None:
    with pytest.raises(IndexError, match=r"step 10, expected 0..9"):
        snapshot(mixture()).batch(10)


def test_very_fine_weights_are_rounded() -> None:
    weights = {"a": 0.333_333_33, "c": 0.123_456_7}
    made = snapshot(mixture(caption=weights), num_steps=20_000)
    drawn = made.describe()["streams"]["caption"]["sources"]
    total = sum(weights.values())
    for name, weight in weights.items():
        assert drawn[name]["weight"] == pytest.approx(weight / total, abs=1 / MAX_PERIOD)
        assert drawn[name]["drawn"] == pytest.approx(180_000 * weight / total, abs=5)


def test_a_weight_too_small_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one draw in 65536"):
        snapshot(mixture(caption={"a": 1.0, "c": 1e-9}))


def test_the_description_counts_the_draws() -> None:
    made = snapshot(mixture(caption={"a": 1.0, "c": 2.0}), num_steps=7)
    streams = made.describe()["streams"]
    rows = [made.batch(step) for step in range(7)]
    for stream in streams.values():
        for name, source in stream["sources"].items():
            index = made.source_names.index(name)
            assert source["drawn"] == sum(int((found == index).sum()) for found, _ in rows)
            assert source["epochs"] == pytest.approx(source["drawn"] / SIZES[name], abs=1e-4)
    assert streams["caption"]["sequences_per_batch"] == 9
    assert streams["text"]["drawn"] == 14


def test_the_digest_changes_with_everything_that_changes_the_order() -> None:
    content = dict.fromkeys(SIZES, "0")
    digests = [
        snapshot(mixture(), content=content),
        snapshot(mixture(), content={**content, "a": "1"}),
        snapshot(mixture(), content=content, seed=1),
        snapshot(mixture(), content=content, num_steps=11),
        snapshot(mixture(), content=content, global_batch_size=40),
        snapshot(mixture(caption={"c": 1.0}), content=content),
    ]
    assert len({made.describe()["sha256"] for made in digests}) == len(digests)


def test_every_epoch_of_a_source_has_an_order_of_its_own() -> None:
    config = MixtureConfig(streams={"x": StreamMixture(share=1.0, sources={"a": 1.0})})
    made = snapshot(config, num_steps=3, global_batch_size=SIZES["a"])
    epochs = [made.batch(step)[1].tolist() for step in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_itself_is_what_it_was() -> None:
    """A golden batch: another one means that trainings of earlier versions cannot resume."""
    sources, samples = snapshot(mixture(caption={"a": 1.0, "c": 2.0})).batch(3)
    names = "".join("acbd"[index] for index in sources)
    assert names == GOLDEN_SOURCES
    assert samples.tolist() == GOLDEN_SAMPLES


GOLDEN_SOURCES = "cbabcbdcbabcbcbdabcb"
GOLDEN_SAMPLES = [14, 15, 22, 7, 4, 6, 8, 16, 10, 16, 46, 7, 54, 23, 22, 9, 0, 5, 2, 20]


def test_a_snapshot_of_shards_knows_their_content(shards_dir: Path) -> None:
    config = TrainingConfig(
        mixture=MixtureConfig(
            streams={"caption": StreamMixture(share=1.0, sources={"pairs": 1, "few_pairs": 1})}
        ),
        schedule=ScheduleConfig(num_steps=4, warmup_steps=0),
        global_batch_size=4,
        seed=9,
    )
    made = MixtureSnapshot.of_training(config, shards_dir)
    assert (made.num_steps, made.global_batch_size, made.seed) == (4, 4, 9)
    sources = made.describe()["streams"]["caption"]["sources"]
    assert len(sources["pairs"]["index_sha256"]) == 64
    assert np.array_equal(made.stream_of_source, [0, 0])
