from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import random
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mm1_pipeline.models.safetensors_files import DTYPES
from mm1_pipeline.training import checkpoints
from mm1_pipeline.training.checkpoints import (
    BrokenCheckpointError,
    CheckpointStore,
    TrainingState,
    load_checkpoint,
)
from mm1_pipeline.training.errors import TrainingStoppedError
from mm1_pipeline.training.random_state import random_state, restore_random_state

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def state(step: int) -> TrainingState:
    return TrainingState(
        step=step,
        samples=20 * step,
        targets=400 * step,
        num_rows=step,
        groups=[{"lr": 0.1 / 3, "initial_lr": 1e-300}],
        scheduler={"last_epoch": step, "lr_lambdas": [None]},
        dataset={"snapshot": "a" * 64, "sample_in_epoch": 20 * step},
        loss_spikes={"losses": [1 / 3], "found": 0, "skipped": 0},
        random_states=[random_state()],
    )


def save(store: CheckpointStore, step: int, value: float | None = None) -> Path:
    weight = torch.full((1000,), float(step if value is None else value))
    model = {"a.weight": weight, "b": weight.to(torch.bfloat16).reshape(10, 100).T}
    optimizer = {"a.weight/step": torch.tensor(float(step)), "a.weight/exp_avg": weight / 3}
    return store.save(state(step), model, optimizer)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_what_is_read_is_what_was_saved(store):
    random.gauss(0, 1)
    saved = state(20)
    weight = torch.randn(7, 5, dtype=torch.float64)
    tensors = {"x": weight, "z": weight[:, 1:3].float(), "scalar": torch.tensor(2.5)}
    tensors |= {str(dtype): (10 * weight).to(dtype) for dtype in DTYPES.values()}
    tensors |= {f"one {dtype}": torch.tensor(3).to(dtype) for dtype in DTYPES.values()}
    store.save(saved, tensors, {"x/rows": torch.randn(0)})
    found = store.newest_good()
    assert found.state == saved
    assert set(found.model) == set(tensors)
    for name, tensor in tensors.items():
        assert found.model[name].dtype == tensor.dtype
        assert torch.equal(found.model[name], tensor)
        assert found.model.layouts[name] == (list(tensor.shape), tensor.dtype)
    assert found.optimizer["x/rows"].shape == (0,)
    with pytest.raises(KeyError):
        found.model["y"]


def test_any_program_can_read_it(store):
    """The files are what their names say, by other people's readers too."""
    path = save(store, 20)
    assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)
    assert load_file(path / "model.safetensors")["a.weight"][0] == 20
    assert load_file(path / "optimizer.safetensors")["a.weight/step"].shape == ()
    assert json.loads((path / "state.json").read_text())["state"]["samples"] == 400


def test_only_the_newest_are_kept(store):
    for step in (5, 10, 15, 20):
        save(store, step)
    assert store.steps() == [15, 20]
    assert names(store) == ["step-00000015", "step-00000020"]
    found = store.newest_good()
    assert found.state.step == 20
    assert found.model["a.weight"][0] == 20


def test_a_step_that_is_saved_again_replaces_itself(store):
    save(store, 5)
    store.save(state(5), {"other": torch.zeros(1)}, {})
    assert list(store.newest_good().model) == ["other"]
    assert names(store) == ["step-00000005"]


def test_there_is_nothing_to_resume_from_in_an_empty_directory(store):
    assert store.newest_good() is None
    assert store.newest_path() is None


def flipped(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    file.write_bytes(data)


DAMAGES = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "replaced": lambda file: file.write_text("not a checkpoint"),
    "another JSON": lambda file: file.write_text("[]"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pickle": lambda file: file.write_bytes(pickle.dumps({"a": 1})),
    "an endless header": lambda file: file.write_bytes(struct.pack("<Q", 1 << 62) + bytes(99)),
    **{f"bit at {place}": lambda file, at=place: flipped(file, at) for place in (0, 9, 150, -1000)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_newest_is_set_aside_and_the_one_before_is_used(store, name, damage, caplog):
    save(store, 15)
    damage(save(store, 20) / name)
    with caplog.at_level(logging.WARNING):
        found = store.newest_good()
    assert found.state.step == 15
    assert names(store) == ["step-00000015", "step-00000020.broken"]
    assert "step-00000020 cannot be read" in caplog.text
    assert name in caplog.text
    assert store.newest_good().state.step == 15, "a second call does not meet the broken one again"


def test_every_flipped_bit_is_noticed(store):
    path = save(store, 20)
    places = random.Random(0)
    for name in FILES:
        content = (path / name).read_bytes()
        for _ in range(60):
            flipped(path / name, places.randrange(8 * len(content)))
            with pytest.raises(BrokenCheckpointError):
                load_checkpoint(path)
            (path / name).write_bytes(content)
    load_checkpoint(path)


def test_files_of_two_checkpoints_are_not_mixed(store):
    save(store, 15)
    path = save(store, 20)
    shutil.copy(store.path(15) / "model.safetensors", path)
    with pytest.raises(BrokenCheckpointError, match=r"the checksum of model\.safetensors"):
        load_checkpoint(path)


def restated(path: Path, **changes) -> None:
    """Another state under a right checksum: what damage cannot do, a forger can."""
    content = json.loads((path / "state.json").read_text())
    content["state"] |= changes
    content["checksum"] = checkpoints._checksum(content["state"], content["files"])
    (path / "state.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [{"step": "20"}, {"extra": 1}, {"groups": {}}, {"samples": None}, {"random_states": [1]}],
)
def test_a_state_of_another_type_is_refused(store, changes):
    path = save(store, 20)
    restated(path)
    load_checkpoint(path)
    restated(path, **changes)
    with pytest.raises(BrokenCheckpointError, match=r"state\.json: "):
        load_checkpoint(path)


def test_a_tensor_of_a_type_that_no_training_has_is_refused(store):
    path = save(store, 20)
    tensors = {"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save_file(tensors, path / "model.safetensors")
    content = json.loads((path / "state.json").read_text())
    content["files"]["model.safetensors"] = {
        "bytes": (path / "model.safetensors").stat().st_size,
        "xxh3_128": checkpoints._file_digest(path / "model.safetensors"),
    }
    (path / "state.json").write_text(json.dumps(content))
    restated(path)
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors: a tensor .* 'F8_E4M3'"):
        load_checkpoint(path)


def test_a_later_format_is_refused_by_name(store):
    path = save(store, 20)
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(BrokenCheckpointError, match="format_version 2, expected 1"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_step_is_not_believed(store):
    os.replace(save(store, 15), store.path(20))
    assert store.newest_good() is None


def test_all_broken_means_a_new_start(store):
    DAMAGES["cut"](save(store, 5) / "model.safetensors")
    assert store.newest_good() is None
    DAMAGES["cut"](save(store, 5) / "model.safetensors")
    assert store.newest_good() is None, "an older one that was set aside is in nobody's way"


class Kills:
    """Ends what runs at the n-th thing that it does to files, as a signal would.

    Python tells of each before it happens: opening, making, renaming, deleting.
    """

    EVENTS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"})

    def __init__(self) -> None:
        self._left: int | None = None
        sys.addaudithook(self._notice)  # which cannot be taken back

    def _notice(self, event: str, _: object) -> None:
        if self._left is not None and event in self.EVENTS:
            self._left -= 1
            if self._left < 0:
                self._left = None
                raise KeyboardInterrupt

    def kills(self, after: int, function) -> bool:
        """Calls a function; whether it was killed."""
        self._left = after
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            self._left = None
        return False


@pytest.fixture(scope="module")
def kills():
    return Kills()


@pytest.mark.parametrize(
    ("steps", "least"),
    [((5, 10), 8), ((5, 10, 15), 14), ((5, 10, 10), 14)],
    ids=["a new one", "the oldest goes", "the same step again"],
)
def test_a_kill_at_any_place_loses_no_checkpoint_that_was_whole(tmp_path, kills, steps, least):
    """Neither does one while what the first left is cleared."""
    num_places = 0
    while True:
        store = CheckpointStore(tmp_path / str(num_places), keep=2)
        for step in steps[:-1]:
            save(store, step)
        if not kills.kills(num_places, lambda: save(store, steps[-1], -1.0)):  # noqa: B023
            break
        places = range(num_places % 3, 99)
        for at in places:
            if not kills.kills(at, store.newest_good):
                break
        found = store.newest_good()
        assert found is not None
        before = (found.state.step, found.model["a.weight"][0]) == (steps[-2], steps[-2])
        after = (found.state.step, found.model["a.weight"][0]) == (steps[-1], -1)
        assert before or after, num_places
        assert all(name.startswith("step-") and len(name) == 13 for name in names(store))
        assert len(names(store)) <= 3
        num_places += 1
    assert num_places >= least
    assert store.newest_good().model["a.weight"][0] == -1
    assert len(names(store)) == 2


@pytest.mark.parametrize("function", ["write_safetensors", "os.fsync"])
def test_a_full_disk_stops_with_words_and_leaves_its_room(store, monkeypatch, function):
    save(store, 5)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"mm1_pipeline.training.checkpoints.{function}", full)
        with pytest.raises(TrainingStoppedError, match=r"step 10 .*No space left.*step-00000005"):
            save(store, 10)
    assert names(store) == ["step-00000005"]
    save(store, 10)
    assert store.newest_good().state.step == 10


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_pickles_of_earlier_versions_are_set_aside_unopened(store, tmp_path, caplog):
    marker = tmp_path / "code-ran"
    torch.save({"step": 5, "state": Hostile(marker)}, store.directory / "step-00000005.pt")
    (store.directory / "step-00000006.pt").write_bytes(pickle.dumps(Hostile(marker)))
    with caplog.at_level(logging.WARNING):
        assert store.newest_good() is None
    assert not marker.exists()
    assert names(store) == ["step-00000005.pt.unread", "step-00000006.pt.unread"]
    assert "step-00000005.pt was written by an earlier version as a pickle" in caplog.text
    torch.load(store.directory / "step-00000005.pt.unread", weights_only=False)
    assert marker.exists(), "the attack works on a reader that unpickles"


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
