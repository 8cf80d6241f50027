"""Checkpoints to resume from: written atomically, checked to the last byte, free of code.

They are for resuming only; what a stage hands on is in models/checkpoint.py. Any engine can write
and read them: weights and optimizer state are safetensors by the weights' names, the rest is JSON.

    step-00000020/
        model.safetensors       every weight and kept buffer, whole, under its name in the objective
        optimizer.safetensors   <name of the weight>/<key of its state>
        state.json              a `TrainingState`, and the other files' sizes and checksums

The newest checkpoint is the one with the highest step in its name that can be read: there is no
`latest` link that could be missing or point at half a folder.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mm1_pipeline.config._base import parameters
from mm1_pipeline.ground.files import sync
from mm1_pipeline.models.safetensors_files import DTYPES, TensorSlot, write_safetensors
from mm1_pipeline.training.errors import TrainingStoppedError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

_NAME = re.compile(r"step-(\d{8,})")
_PICKLED_NAME = re.compile(r"step-\d{8,}\.pt")
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_REPLACED = ".replaced"
_BLOCK_BYTES = 1 << 22
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class BrokenCheckpointError(Exception):
    """A folder that is no checkpoint of ours, or no longer."""


@parameters
class TrainingState:
    """What a training has to know beside its tensors, whatever engine runs it."""

    step: int
    """Optimizer steps done."""
    samples: int
    """Sequences read: the place in the data, for a training is one pass over its mixture."""
    targets: int
    """Targets among them, over all ranks."""
    num_rows: int
    """Rows of the metrics file."""
    groups: list[dict[str, float]]
    """Learning rates of each parameter group, now (`lr`) and at the peak (`initial_lr`)."""
    scheduler: dict[str, Any]
    """`torch.optim.lr_scheduler.LambdaLR.state_dict()`."""
    dataset: dict[str, Any]
    """`SnapshotDataset.state_dict()`, which names the mixture."""
    loss_spikes: dict[str, Any]
    """`SpikeDetector.state_dict()`."""
    random_states: list[dict[str, Any]]
    """`random_state()` of each rank that wrote."""
    divergence: dict[str, Any] = field(default_factory=dict)
    """`DivergenceDetector.state_dict()`; earlier versions wrote none."""


_STATE_TYPE: TypeAdapter[TrainingState] = TypeAdapter(TrainingState)


def state_as_plain(state: TrainingState) -> dict[str, Any]:
    """A state as a JSON value."""
    return _STATE_TYPE.dump_python(state, mode="json")


def state_of_plain(content: Any) -> TrainingState:
    """Reads what `state_as_plain` gave.

    Raises:
        BrokenCheckpointError: a field is missing, unknown or of another type.
    """
    try:
        return _STATE_TYPE.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise BrokenCheckpointError(f"{_STATE}: {where}: {problem['msg']}") from None


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.layouts: dict[str, tuple[list[int], torch.dtype]] = {}
        """Shape and type of each, by name."""
        try:
            self._file = safe_open(path, framework="pt")
            for name in self._file.keys():  # noqa: SIM118  not a mapping
                stored = self._file.get_slice(name)
                self.layouts[name] = list(stored.get_shape()), DTYPES[stored.get_dtype()]
        except SafetensorError as error:
            raise BrokenCheckpointError(f"{path.name}: {error}") from None
        except KeyError as error:
            raise BrokenCheckpointError(f"{path.name}: a tensor has the type {error}") from None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.layouts:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    state: TrainingState
    model: StoredTensors
    """By the weights' names."""
    optimizer: StoredTensors
    """By `<name of the weight>/<key of its state>`."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint, checking every byte; nothing in it can run.

    Args:
        path: a folder written by `CheckpointStore.save`.

    Raises:
        BrokenCheckpointError: truncated, damaged, incomplete or of another layout.
    """
    for name in (_STATE, _MODEL, _OPTIMIZER):
        if not (path / name).is_file():
            raise BrokenCheckpointError(f"it has no file {name}")
    try:
        content = json.loads((path / _STATE).read_bytes())
        stated, files = content["state"], content["files"]
        version, checksum = content["format_version"], content["checksum"]
        expected = {name: (files[name]["bytes"], files[name]["xxh3_128"]) for name in files}
        is_whole = checksum == _checksum(stated, files)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BrokenCheckpointError(f"{_STATE} is damaged") from None
    if version != FORMAT_VERSION:
        raise BrokenCheckpointError(
            f"{_STATE} has format_version {version!r}, expected {FORMAT_VERSION}"
        )
    if not is_whole:
        raise BrokenCheckpointError(f"the checksum of {_STATE} is wrong")
    state = state_of_plain(stated)
    for name in (_MODEL, _OPTIMIZER):
        num_bytes = (path / name).stat().st_size
        if name not in expected or num_bytes != expected[name][0]:
            raise BrokenCheckpointError(f"{name} has {num_bytes} bytes, not those of {_STATE}")
        if _file_digest(path / name) != expected[name][1]:
            raise BrokenCheckpointError(f"the checksum of {name} is wrong")
    return Checkpoint(state, StoredTensors(path / _MODEL), StoredTensors(path / _OPTIMIZER))


class CheckpointStore:
    """The checkpoints of one training in one directory.

    Args:
        directory: made if missing; nothing else writes here.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        assert keep >= 1
        self.directory = directory
        self.keep = keep
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps lies."""
        return self.directory / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of which a checkpoint exists, rising."""
        names = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest_path(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def save(
        self,
        state: TrainingState,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
    ) -> Path:
        """Writes a checkpoint in one step and drops those that are too old.

        Until the new one is complete and on disk, it has another name and the old ones stay; so
        does one of the same step, which `newest_good` puts back if nothing has come in its place.

        Args:
            state: of this step.
            model: by name, on the CPU.
            optimizer: by `<name of the weight>/<key>`, on the CPU.

        Raises:
            TrainingStoppedError: the disk does not take it; the old ones stay.
        """
        final = self.path(state.step)
        temporary, replaced = final.with_suffix(".tmp"), final.with_suffix(_REPLACED)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write_files(temporary, state, model, optimizer)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)  # its room may be all there is
            raise TrainingStoppedError(
                f"Found no way to write the checkpoint after step {state.step} to "
                f"{self.directory} ({error.strerror}), expected one. The newest whole one is "
                f"{self.newest_path() or 'none yet'}: mend the disk, and the same call resumes "
                "from there."
            ) from error
        if final.exists():
            self._remove(replaced)
            os.replace(final, replaced)
        os.replace(temporary, final)
        sync(self.directory)
        for old in [replaced, *map(self.path, self.steps()[: -self.keep])]:
            self._remove(old)
        return final

    def newest_good(self) -> Checkpoint | None:
        """Opens the newest checkpoint that is whole and sets broken ones aside.

        A broken one is renamed to `<name>.broken`, with a warning, so that it is neither tried
        again nor lost. What a killed run left half is deleted, and what it was about to replace
        is put back. Checkpoints of versions before safetensors are pickles and are set aside
        unopened.

        Returns:
            The checkpoint, or None when there is nothing to resume from.
        """
        for replaced in self.directory.glob(f"*{_REPLACED}"):
            final = replaced.with_suffix("")
            if not final.exists():
                os.replace(replaced, final)
            self._remove(replaced)
        for leftover in self.directory.glob("*.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        for pickled in sorted(self.directory.iterdir()):
            if _PICKLED_NAME.fullmatch(pickled.name):
                aside = _set_aside(pickled, "unread")
                logger.warning(
                    "Checkpoint %s was written by an earlier version as a pickle, which is not "
                    "opened any more, as opening one can run code. Set aside as %s; without a "
                    "newer one, this training begins anew.",
                    pickled,
                    aside.name,
                )
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                checkpoint = load_checkpoint(path)
                if checkpoint.state.step != step:
                    raise BrokenCheckpointError(f"it holds step {checkpoint.state.step}")
            except BrokenCheckpointError as error:
                aside = _set_aside(path, "broken")
                logger.warning(
                    "Checkpoint %s cannot be read (%s). Set aside as %s; resuming from an older "
                    "one, if there is one.",
                    path,
                    error,
                    aside.name,
                )
            else:
                return checkpoint
        return None

    def _remove(self, path: Path) -> None:
        """Takes a checkpoint away in one step; a kill leaves it whole or as a leftover."""
        if path.exists():
            leaving = path.with_suffix(".old.tmp")
            shutil.rmtree(leaving, ignore_errors=True)
            os.replace(path, leaving)
            shutil.rmtree(leaving)


def _write_files(
    folder: Path,
    state: TrainingState,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
) -> None:
    """Writes a checkpoint's files into a folder that is not there yet, and brings them to disk."""
    folder.mkdir()
    files = {
        name: _write_tensors(folder / name, tensors)
        for name, tensors in ((_MODEL, model), (_OPTIMIZER, optimizer))
    }
    stated = state_as_plain(state)
    content = {
        "format_version": FORMAT_VERSION,
        "checksum": _checksum(stated, files),
        "files": files,
        "state": stated,
    }
    (folder / _STATE).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    for name in (_MODEL, _OPTIMIZER, _STATE, "."):
        sync(folder / name)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Writes a safetensors file; its size and checksum, the tensors' taken from memory."""
    digest = xxhash.xxh3_128()

    def slot(name: str, tensor: Tensor) -> TensorSlot:
        def parts() -> Iterator[Tensor]:
            flat = tensor.contiguous().reshape(-1)
            if flat.numel():
                digest.update(flat.view(torch.uint8).numpy().data)
            yield flat

        return TensorSlot(name, tuple(tensor.shape), _TYPE_NAMES[tensor.dtype], parts)

    write_safetensors(path, [slot(name, tensor) for name, tensor in tensors.items()])
    with path.open("rb") as file:
        digest.update(_read_header(file))
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _file_digest(path: Path) -> str:
    """The checksum of a safetensors file as `_write_tensors` takes it: tensors, then the header."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        header = _read_header(file)
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    digest.update(header)
    return digest.hexdigest()


def _read_header(file: IO[bytes]) -> bytes:
    """The length of a safetensors file's header, and the header; of a damaged file, what is there.

    Moves the file to the first tensor.
    """
    size = file.read(8)
    num_bytes = int.from_bytes(size, "little")
    return size + (file.read(num_bytes) if num_bytes < os.fstat(file.fileno()).st_size else b"")


def _checksum(stated: Any, files: Any) -> str:
    text = json.dumps([stated, files], sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _set_aside(path: Path, why: str) -> Path:
    aside = path.with_name(f"{path.name}.{why}")
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
    os.replace(path, aside)
    return aside
