from __future__ import annotations

import datetime
import json
import logging
import os
import pickle
import random

import numpy as np
import pytest
import torch

from mm1_pipeline.training.checkpoints import (
    BrokenCheckpointError,
    CheckpointStore,
    load_checkpoint,
)
from mm1_pipeline.training.random_state import random_state, restore_random_state


def content(value: float = 1.0) -> dict:
    state = {
        "model": {"model.weight": torch.full((1000,), float(value))},
        "optimizers": {},
        "schedulers": {},
        "timestamp": {"batch": 3},
        "dataset_state": {"train": None},
        "loss_spikes": {},
    }
    return {"num_rows": 3, "state": state, "rng": []}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_only_the_newest_are_kept(store):
    for step in (5, 10, 15, 20):
        store.save(step, content(step))
    assert store.steps() == [15, 20]
    assert names(store) == ["step-00000015.pt", "step-00000020.pt"]
    found = store.newest_good()
    assert found["step"] == 20
    assert found["state"]["model"]["model.weight"][0] == 20


def test_there_is_nothing_to_resume_from_in_an_empty_directory(store):
    assert store.newest_good() is None
    assert store.newest_path() is None


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit_of_a_weight(path):
    data = bytearray(path.read_bytes())
    place = data.find(torch.full((1000,), 20.0).numpy().tobytes())
    assert place > 0
    data[place + 100] ^= 1
    path.write_bytes(data)


def replace_with_text(path):
    path.write_text("not a checkpoint")


def replace_with_another_layout(path):
    torch.save({"weights": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    "damage",
    [cut, empty, flip_a_bit_of_a_weight, replace_with_text, replace_with_another_layout],
)
def test_a_broken_newest_is_set_aside_and_the_one_before_is_used(store, damage, caplog):
    store.save(15, content(15))
    store.save(20, content(20))
    damage(store.path(20))
    with caplog.at_level(logging.WARNING):
        found = store.newest_good()
    assert found["step"] == 15
    assert names(store) == ["step-00000015.pt", "step-00000020.pt.broken"]
    assert "step-00000020.pt cannot be read" in caplog.text
    assert store.newest_good()["step"] == 15, "a second call does not meet the broken one again"


def test_a_checkpoint_of_another_step_is_not_believed(store):
    store.save(15, content(15))
    os.replace(store.path(15), store.path(20))
    assert store.newest_good() is None


def test_all_broken_means_a_new_start(store):
    store.save(5, content())
    cut(store.path(5))
    assert store.newest_good() is None


def test_torch_alone_would_not_notice_a_flipped_bit(store):
    store.save(20, content(20))
    flip_a_bit_of_a_weight(store.path(20))
    torch.load(store.path(20), weights_only=True)  # no error: why checksums are verified here
    with pytest.raises(BrokenCheckpointError, match="checksum"):
        load_checkpoint(store.path(20))


def test_a_kill_while_writing_leaves_the_old_ones_and_its_half_is_cleared(store, monkeypatch):
    store.save(5, content(5))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mm1_pipeline.training.checkpoints.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(10, content(10))
    assert names(store) == ["step-00000005.pt", "step-00000010.tmp"]
    assert store.newest_good()["step"] == 5
    assert names(store) == ["step-00000005.pt"]


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_code_runs_from_a_hostile_checkpoint(store, tmp_path):
    marker = tmp_path / "code-ran"
    hostile = {"step": 5, **content()}
    hostile["state"]["model"]["model.weight"] = Hostile(marker)
    torch.save(hostile, store.path(5))
    (store.directory / "step-00000006.pt").write_bytes(pickle.dumps(Hostile(marker)))
    assert store.newest_good() is None
    assert not marker.exists()
    assert len(list(store.directory.glob("*.broken"))) == 2
    torch.load(store.directory / "step-00000005.pt.broken", weights_only=False)
    assert marker.exists(), "the attack works on an unsafe reader"


def test_content_that_could_not_be_loaded_again_is_refused_when_it_is_saved(store):
    store.save(5, content())
    with pytest.raises(pickle.UnpicklingError):
        store.save(10, {**content(), "rng": datetime.timedelta(seconds=1)})
    assert store.newest_good()["step"] == 5


def test_random_state_survives_a_trip_through_json():
    random.gauss(0, 1)
    np.random.normal()  # both keep a second draw back
    state = json.loads(json.dumps(random_state()))

    def draws():
        return (
            [random.gauss(0, 1) for _ in range(700)],
            np.random.normal(size=700).tolist(),
            torch.randn(700).tolist(),
        )

    expected = draws()
    assert draws() != expected
    restore_random_state(state)
    assert draws() == expected
