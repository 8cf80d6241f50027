"""The tensors of a Hugging Face directory, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

CONFIG = "config.json"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 << 20
"""An index of a very large model has some megabytes."""
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


class SafetensorsDirectory:
    """Tensors by name over one or several safetensors files; a context manager.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and its files.

    Raises:
        ValueError: no weights, damaged ones, or an index that points out of the directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        try:
            for path in _weight_files(directory):
                file = self._open(path)
                self._file_of.update(dict.fromkeys(file.keys(), file))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> SafetensorsDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._file_of))

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str) -> Tensor:
        """One tensor, in its own dtype.

        Raises:
            ValueError: there is no such tensor.
        """
        if name not in self._file_of:
            raise ValueError(
                f"{self._directory}: found no tensor {name!r} among {len(self._file_of)}, which "
                f"{CONFIG} asks for. The weights are incomplete, or of another model."
            )
        return self._file_of[name].get_tensor(name)

    def _open(self, path: Path) -> Any:
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: found no readable safetensors file ({error}). Get the file again; a "
                "download may have been cut off."
            ) from error


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of a sensible size.

    Raises:
        ValueError: missing, too large, or no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent}: found no {path.name}, expected a Hugging Face directory.")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(
            f"{path}: found {path.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: found no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object.")
    return content


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{directory / _INDEX}: found no weight_map.")
        return [_inside(directory, name) for name in sorted(set(map(str, weight_map.values())))]
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    pickles = [name for name in _PICKLES if (directory / name).exists()]
    hint = (
        f" It holds {pickles[0]}, which can run code when it is read and is refused: convert it "
        "to safetensors where you trust it."
        if pickles
        else ""
    )
    raise ValueError(f"{directory}: found no {_SINGLE} and no {_INDEX}.{hint}")


def _inside(directory: Path, name: str) -> Path:
    if Path(name).name != name or name.startswith("."):
        raise ValueError(
            f"{directory / _INDEX}: found the file name {name!r}, expected a file beside the index."
        )
    if not (directory / name).is_file():
        raise ValueError(f"{directory}: found no {name}, which {_INDEX} lists.")
    return directory / name
