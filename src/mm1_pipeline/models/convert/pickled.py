"""Weights out of files of `torch.save` (`.bin`, `.pt`, `.pth`), without unpickling.

Such a file is a zip of raw numbers and a pickle that says which numbers are which tensor. A pickle
is a program; here its instructions are listed (`pickletools`, which runs none) and only those
followed that make tensors, dictionaries and plain values. Any other name or instruction is refused.
"""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm1_pipeline.ground.files import replacing
from mm1_pipeline.models.safetensors_files import TensorSlot, write_safetensors

_STORAGES = {
    "torch FloatStorage": (torch.float32, "F32"),
    "torch HalfStorage": (torch.float16, "F16"),
    "torch BFloat16Storage": (torch.bfloat16, "BF16"),
    "torch DoubleStorage": (torch.float64, "F32"),
    "torch LongStorage": (torch.int64, None),
    "torch IntStorage": (torch.int32, None),
    "torch BoolStorage": (torch.bool, None),
}
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_DICTIONARY = "collections OrderedDict"
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _DICTIONARY}
_TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE")
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs keep the weights."""
_MAX_PICKLE_BYTES = 64_000_000
_MARK = object()


class _RefusedError(ValueError):
    """The pickle asks for something that making tensors does not take."""


class _Name(NamedTuple):
    """A class or function that the pickle names; it is never looked up."""

    name: str


class _Storage(NamedTuple):
    dtype: torch.dtype
    stored_as: str | None
    """What safetensors calls it; None for what no weights are of."""
    key: str


class _Pickled(NamedTuple):
    """A tensor that is described, not read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def convert_pickled(source: Path, target: Path, *, key: str | None = None) -> dict[str, int]:
    """Writes the weights of a pickled checkpoint as safetensors; no code from the file is run.

    Types stay, but for float64, which becomes float32.

    Args:
        source: a file of torch.save since torch 1.6, or a folder with `pytorch_model.bin` or its
            index of several files.
        target: the .safetensors file to write.
        key: where in the file the weights are, if not at the top or under `state_dict`, `model`,
            `model_state_dict` or `module`.

    Returns:
        How many `tensors` were written, how many `bytes`, and how many entries `left_out` that
        are no floating-point tensors.

    Raises:
        ValueError: it is of another format, asks for anything but tensors and plain values, or
            holds no weights; or the target exists.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: expected a file that ends in .safetensors.")
    if target.exists():
        raise ValueError(f"{target}: found a file there already; remove it or name another.")
    slots: dict[str, TensorSlot] = {}
    left_out = 0
    for path in _parts(source):
        file = _TorchFile(path)
        entries = _weights(file.content(), key, path)
        for name, value in entries.items():
            if not isinstance(value, _Pickled) or value.storage.stored_as is None:
                left_out += 1
                continue
            if name in slots:
                raise ValueError(f"{path}: found {name} a second time.")
            slots[name] = file.slot(name, value)
    if not slots:
        raise ValueError(f"{source}: found no floating-point tensors.")
    with replacing(target) as temporary:
        write_safetensors(temporary, list(slots.values()))
    return {"tensors": len(slots), "bytes": target.stat().st_size, "left_out": left_out}


def _parts(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    index = source / "pytorch_model.bin.index.json"
    if not index.is_file():
        return [source / "pytorch_model.bin"]
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index}: found the file name {name!r}, expected one beside it.")
    return [source / name for name in names]


class _TorchFile:
    """The zip of one torch.save."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}: found no file of torch.save as torch writes it since 1.6 ({error})."
            ) from error
        pickles = [name for name in self._zip.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{path}: found {len(pickles)} data.pkl in it, expected one.")
        self._root = pickles[0].removesuffix("data.pkl")
        order = self._root + "byteorder"
        if order in self._zip.namelist() and self._zip.read(order).strip() != b"little":
            raise ValueError(f"{path}: found big-endian numbers, expected little-endian ones.")

    def content(self) -> Any:
        """What the pickle describes."""
        name = self._root + "data.pkl"
        if self._zip.getinfo(name).file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"{self._path}: found a data.pkl of over {_MAX_PICKLE_BYTES} bytes.")
        try:
            return _follow(self._zip.read(name), self._path)
        except _RefusedError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self._path}: found a damaged pickle ({error!r}).") from error

    def slot(self, name: str, tensor: _Pickled) -> TensorSlot:
        """The tensor, to be read when it is written."""
        storage, member = tensor.storage, f"{self._root}data/{tensor.storage.key}"
        if member not in self._zip.namelist():
            raise ValueError(f"{self._path}: found no numbers of {name} ({member}).")
        info = self._zip.getinfo(member)
        spans = zip(tensor.shape, tensor.strides, strict=True)
        last = tensor.offset + sum((size - 1) * stride for size, stride in spans)
        is_inside = math.prod(tensor.shape) == 0 or last < info.file_size // storage.dtype.itemsize
        is_plain = info.compress_type == zipfile.ZIP_STORED
        if not is_inside or not is_plain or min((tensor.offset, *tensor.strides), default=0) < 0:
            raise ValueError(f"{self._path}: found {name} outside of its numbers.")

        def parts() -> Iterator[Tensor]:
            if math.prod(tensor.shape) == 0:
                yield torch.empty(0, dtype=storage.dtype)
                return
            numbers = torch.frombuffer(bytearray(self._zip.read(member)), dtype=storage.dtype)
            numbers = numbers.as_strided(tensor.shape, tensor.strides, tensor.offset).reshape(-1)
            yield numbers.float() if storage.dtype is torch.float64 else numbers

        assert storage.stored_as is not None
        return TensorSlot(name, tensor.shape, storage.stored_as, parts)


def _weights(content: Any, key: str | None, path: Path) -> Mapping[str, Any]:
    if isinstance(content, dict) and key is not None:
        content = content.get(key)
    elif isinstance(content, dict):
        wrapped = [content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)]
        has_own = any(isinstance(value, _Pickled) for value in content.values())
        content = wrapped[0] if len(wrapped) == 1 and not has_own else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(
            f"{path}: found no dictionary of tensors{f' under {key!r}' if key else ''}."
        )
    if not any(isinstance(value, _Pickled) for value in content.values()):
        raise ValueError(
            f"{path}: found no tensors under the keys {', '.join(list(content)[:8])}. Name the one "
            "that holds the weights with --key."
        )
    return content


def _follow(pickle: bytes, path: Path) -> Any:
    """Does what the listed instructions say, as far as they make tensors and plain values."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def marked() -> list[Any]:
        place = max(index for index, value in enumerate(stack) if value is _MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in _TEXTS or name in _NUMBERS:
            stack.append(argument)
            continue
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
            continue
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                values = tuple(stack[-count:])
                del stack[-count:]
                stack.append(values)
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
            case "GLOBAL":
                if argument not in _NAMES:
                    raise _RefusedError(
                        f"{path}: found the name {argument!r} in its pickle, expected tensors and "
                        "plain values only. It was not run, and nothing is written."
                    )
                stack.append(_Name(str(argument)))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":  # attributes of a dictionary, such as versions of its modules
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise TypeError("attributes of something else than a dictionary")
            case "SETITEM":
                value, item = stack.pop(), stack.pop()
                stack[-1][item] = value
            case "SETITEMS":
                values = marked()
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case "APPEND":
                value = stack.pop()
                _list(stack[-1]).append(value)
            case "APPENDS":
                values = marked()
                _list(stack[-1]).extend(values)
            case other:
                raise _RefusedError(
                    f"{path}: found the instruction {other} in its pickle, which making tensors "
                    "does not take. It was not run, and nothing is written."
                )
    raise TypeError("it does not end")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("entries of something else than a list")
    return value


def _storage(described: Any) -> _Storage:
    kind, name, key, *_ = described
    if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str):
        raise TypeError(f"storage {described!r}")
    dtype, stored_as = _STORAGES[name.name]
    return _Storage(dtype, stored_as, key)


def _made(name: Any, arguments: Any) -> Any:
    match name:
        case _Name(name=made) if made == _TENSOR:
            storage, offset, shape, strides, *_ = arguments
            if not isinstance(storage, _Storage) or len(shape) != len(strides):
                raise TypeError(f"tensor {arguments!r:.80}")
            sizes = tuple(int(size) for size in shape)
            if min(sizes, default=0) < 0:
                raise TypeError(f"shape {shape!r}")
            return _Pickled(storage, int(offset), sizes, tuple(int(step) for step in strides))
        case _Name(name=made) if made == _PARAMETER:
            if not isinstance(arguments[0], _Pickled):
                raise TypeError("a parameter of something else than a tensor")
            return arguments[0]
        case _Name(name=made) if made == _DICTIONARY:
            return dict(arguments[0]) if arguments else {}
        case _:
            raise TypeError(f"call of {name!r:.80}")
