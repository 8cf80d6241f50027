"""What the ranks of a training send each other as objects: plain values, never pickles.

torch's object collectives pickle what they send and unpickle what comes, which runs whatever code
a pickle names. This project calls none of them, but torch itself (for the shapes of weights that
it shards) and Composer do where it trains. Here JSON with a few marked types takes pickle's place.
"""

from __future__ import annotations

import json
from typing import IO, Any

import torch
from torch.distributed import distributed_c10d
from torch.distributed._state_dict_utils import _TensorInfo

_MARK = "is"


def send_plain_objects_only() -> None:
    """Makes the object collectives of this process refuse all but plain values.

    Raises:
        RuntimeError: this torch does not read objects by the way that is replaced.
    """
    missing = [name for name in ("_pickler", "_unpickler") if not hasattr(distributed_c10d, name)]
    if missing:
        raise RuntimeError(
            f"Found no torch.distributed.distributed_c10d.{missing[0]} in torch "
            f"{torch.__version__}, expected it: through it objects of other ranks are read. Use a "
            "version that the project was tested with, or train in one process."
        )
    distributed_c10d._pickler = _Writer  # pyright: ignore[reportPrivateImportUsage]
    distributed_c10d._unpickler = _Reader  # pyright: ignore[reportPrivateImportUsage]


class _Writer:
    """In the place of torch's pickler."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def dump(self, value: Any) -> None:
        self._file.write(json.dumps(_marked(value)).encode())


class _Reader:
    """In the place of torch's unpickler."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def load(self) -> Any:
        return _unmarked(json.loads(self._file.read()))


def _marked(value: Any) -> Any:
    """A JSON value that says which type each part had."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_marked(part) for part in value]
    if isinstance(value, dict):
        return {_MARK: "dict", "of": [[_marked(key), _marked(part)] for key, part in value.items()]}
    if isinstance(value, torch.dtype):
        return {_MARK: "dtype", "of": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Size):
        return {_MARK: "size", "of": list(value)}
    if type(value) in (tuple, _TensorInfo):
        kind = "tuple" if type(value) is tuple else "tensor"
        return {_MARK: kind, "of": [_marked(part) for part in value]}
    raise TypeError(
        f"Found a {type(value).__name__} to send to other ranks as an object, expected plain "
        "values (numbers, texts, lists, tuples, dicts, shapes and types of tensors)."
    )


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(part) for part in value]
    if not isinstance(value, dict):
        return value
    kind, of = value.get(_MARK), value.get("of")
    if kind == "dtype" and isinstance(dtype := getattr(torch, str(of), None), torch.dtype):
        return dtype
    if isinstance(of, list):
        if kind == "dict":
            return {_unmarked(key): _unmarked(part) for key, part in of}
        parts = [_unmarked(part) for part in of]
        if kind == "tuple":
            return tuple(parts)
        if kind == "size":
            return torch.Size(parts)
        if kind == "tensor":
            return _TensorInfo(*parts)
    raise ValueError(
        f"Found an object of the kind {kind!r} from another rank, expected a plain one."
    )
