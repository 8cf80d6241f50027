"""Weights in safetensors files: read one tensor at a time, and written so."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors by their names in a file."""

_READ_AS_FLOAT = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MAX_JSON_BYTES = 16_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class WeightFiles:
    """The tensors of one checkpoint, read one at a time.

    A pickle is never opened: unpickling runs code from the file.

    Args:
        source: a .safetensors file, or a folder with one (or with a sharded checkpoint and its
            `*.safetensors.index.json`) beside the model's JSON configuration.

    Raises:
        ValueError: there is no such file, or it is of another format.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.folder = source if source.is_dir() else source.parent
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, list[int]] = {}
        for path in _weight_files(source):
            self._scan(path)

    def _scan(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  not a mapping
                    self._file_of[name] = path
                    self._shapes[name] = list(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise ValueError(
                f"{path}: found no readable safetensors file ({error}). Fetch it anew; a file "
                "of a few hundred bytes is often a Git LFS pointer."
            ) from error

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return frozenset(self._file_of)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, without reading it."""
        return self._shapes[name]

    def tensor(self, name: str) -> Tensor:
        """Reads a tensor as float32 on the CPU.

        Raises:
            ValueError: it is quantised: whole numbers and 8-bit floats mean nothing by themselves.
        """
        tensor = self.stored(name)
        if tensor.dtype not in _READ_AS_FLOAT:
            raise ValueError(
                f"{self.source}: found {name} stored as {tensor.dtype}, expected float32, "
                "bfloat16, float16 or float64. Quantised weights are not read: fetch the model's "
                "unquantised ones."
            )
        return tensor.to(torch.float32)

    def stored(self, name: str) -> Tensor:
        """Reads a tensor as it is stored, on the CPU."""
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def dtype(self, name: str) -> str:
        """The type of a tensor as the file calls it (`F32`), without reading the tensor."""
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_slice(name).get_dtype()

    def read_json(self, *names: str) -> dict[str, Any]:
        """Reads the first of these files that lies beside the weights.

        Returns:
            Its content; empty if none is there.

        Raises:
            ValueError: it is no JSON object.
        """
        for path in (self.folder / name for name in names):
            if path.is_file():
                return _read_object(path)
        return {}


class TensorSlot(NamedTuple):
    """A tensor that is to be written, not yet made."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: a key of `DTYPES`."""
    parts: Callable[[], Iterator[Tensor]]
    """Gives its content in pieces along the first axis (or the whole), one after the other."""


def write_safetensors(path: Path, slots: Sequence[TensorSlot]) -> None:
    """Writes a file of any size, holding one piece of one tensor at a time.

    The library's own writer wants all tensors at once. The layout is its: the length of the
    header, the header as JSON, then the tensors' bytes in its order.

    Args:
        path: the file.
        slots: what to write; written in the order of their names.
    """
    ordered = sorted(slots, key=lambda slot: slot.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for slot in ordered:
        begin, end = end, end + math.prod(slot.shape) * DTYPES[slot.dtype].itemsize
        header[slot.name] = {
            "dtype": slot.dtype,
            "shape": list(slot.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8, as readers expect
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for slot in ordered:
            for part in slot.parts():
                assert part.dtype == DTYPES[slot.dtype], (slot.name, part.dtype)
                file.write(part.contiguous().view(torch.uint8).numpy().data)
        assert file.tell() == 8 + len(text) + end, path


def _weight_files(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix != ".safetensors":
            raise ValueError(_refusal(source, [source]))
        return [source]
    if not source.is_dir():
        raise ValueError(
            f"{source}: found nothing there, expected a .safetensors file or a folder."
        )
    # Hidden ones are of the file manager: macOS leaves `._model.safetensors`.
    indices = sorted(source.glob("[!.]*.safetensors.index.json"))
    if indices:
        return _sharded(indices[0])
    files = sorted(path for path in source.glob("[!.]*.safetensors") if path.is_file())
    if not files:
        raise ValueError(_refusal(source, sorted(source.iterdir())))
    if len(files) > 1:
        raise ValueError(
            f"{source}: found {', '.join(file.name for file in files)} and no index, expected one "
            "checkpoint. Name the file itself."
        )
    return files


def _sharded(index: Path) -> list[Path]:
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: found no weight_map, expected the index of a checkpoint.")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(
                f"{index}: found the file name {name!r}, expected a .safetensors file beside it."
            )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index}: names {', '.join(missing)}, which are missing beside it.")
    return [index.parent / name for name in names]


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path}: found over {_MAX_JSON_BYTES} bytes, too many for a config.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, expected a JSON object.")
    return content


def _refusal(source: Path, found: list[Path]) -> str:
    pickles = [path.name for path in found if path.suffix in _PICKLES]
    what = f"found only {', '.join(pickles[:3])}" if pickles else "found no .safetensors file"
    return (
        f"{source}: {what}, expected safetensors. Pickled weights are never opened, because that "
        "runs code from the file: fetch the model's safetensors, or make them of it with "
        "`kedro mm1 convert`, which runs none."
    )
