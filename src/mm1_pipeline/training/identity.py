"""Which training a working directory belongs to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mm1_pipeline.config._base import OPERATIONAL
from mm1_pipeline.ground.files import write_json


def result_parameters(group: Any) -> Any:
    """The parameters that can change a result, as plain values.

    Operational ones, such as the number of workers, are left out: a training may be resumed
    with others.

    Args:
        group: a parameter group, or a value inside one.
    """
    if dataclasses.is_dataclass(group):
        return {
            field.name: result_parameters(getattr(group, field.name))
            for field in dataclasses.fields(group)
            if not field.metadata.get(OPERATIONAL)
        }
    if isinstance(group, dict):
        return {key: result_parameters(value) for key, value in group.items()}
    return group


def check_identity(work_dir: Path, identity: dict[str, Any]) -> None:
    """Refuses to resume a training with parameters other than those it was begun with.

    The first call writes the identity beside the checkpoints; later ones compare.

    Args:
        work_dir: the training's working directory.
        identity: JSON-able parameters that determine the result.

    Raises:
        ValueError: naming the first parameters that differ.
    """
    file = work_dir / "identity.json"
    wanted = json.loads(json.dumps(identity))
    if not file.exists():
        write_json(file, wanted)
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    differences = list(_differences(found, wanted, ""))
    if differences:
        raise ValueError(
            f"{work_dir}: found a training that was begun with other parameters "
            f"({'; '.join(differences[:3])}), expected the same ones: resuming would mix two "
            "trainings. Give another work_dir, or delete this one to start anew."
        )


def _differences(found: Any, wanted: Any, path: str) -> Iterator[str]:
    """Yields `dotted.path: found -> wanted` for every leaf that differs."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from _differences(found.get(key), wanted.get(key), f"{path}.{key}".lstrip("."))
    elif found != wanted:
        yield f"{path}: {found!r} -> {wanted!r}"
