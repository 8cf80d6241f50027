"""What a run is made from, as text that can be compared on another machine.

Two runs with the same identity give the same results, but for the machine's arithmetic. Fields
that change no result (workers, devices) do not count, nor does anything that the run's nodes do
not read. Of a world its parameters count, as another version of Pillow packs the same pictures
into other bytes; of other data its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kedro_rerun.hash_cache import HashCache
from kedro_rerun.inputs import Selection, path_digest
from kedro_rerun.parameters import diff, flatten_parameters

from mm1_pipeline.ground.files import canonical_json, hash_json
from mm1_pipeline.lab.world import world_of

CODE = "code"
_SHORT = 12


@dataclass(frozen=True)
class Scope:
    """What some nodes' outputs are made from.

    Attributes:
        nodes: Their names.
        groups: Parameters that they read, for instance `pretrain` or `model.vision`, or a part that
            a method of the group gives (`evaluate.benchmark_part`).
        code: Digest of the code that they reach.
    """

    nodes: tuple[str, ...]
    groups: tuple[str, ...]
    code: str


@dataclass(frozen=True)
class RunScopes:
    """The parts of a run that other runs may share.

    Attributes:
        prepared: Nodes before the pre-training: records, shards, encoders.
        pretrained: The pre-training and all before it.
        whole: All that the run's goal needs.
    """

    prepared: Scope
    pretrained: Scope
    whole: Scope


@dataclass(frozen=True)
class Identity:
    """Everything that decides a result, by name."""

    values: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Short hash of all values."""
        return hash_json(dict(self.values))[:_SHORT]

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """What differs in another identity's values, code aside; one text each."""
        return [str(change) for change in diff(other, self.values) if change.path != CODE]

    def has_code_of(self, other: Mapping[str, str]) -> bool:
        """Whether the code is the same."""
        return self.values.get(CODE) == other.get(CODE)


class IdentityReader:
    """Tells the identity of runs; reads each file of raw data once.

    Args:
        cache: Where hashes of files are kept between processes; None keeps them in memory.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._hashes = HashCache(cache)
        self._digests: dict[tuple[str, str], str] = {}

    def read(self, scope: Scope, groups: Mapping[str, Any]) -> Identity:
        """The identity of what a scope's nodes make of some parameters.

        Args:
            scope: The nodes.
            groups: Typed parameters by group.
        """
        values = {CODE: scope.code, "nodes": canonical_json(sorted(scope.nodes))}
        for path in scope.groups:
            flat = flatten_parameters(_at(groups, path), path)
            values |= flat.values
            values |= {
                f"data:{name}": self._data(selection, _group_of(name, flat.values))
                for name, selection in flat.inputs().items()
            }
        return Identity(dict(sorted(values.items())))

    def save(self) -> None:
        """Keeps the hashes for the next process."""
        self._hashes.save()

    def _data(self, selection: Selection, group: str) -> str:
        key = (selection.place, group)
        if key not in self._digests:
            world = world_of(Path(selection.place))
            self._digests[key] = (
                path_digest(selection, self._hashes) if world is None else canonical_json(world)
            )
        return self._digests[key]


def _group_of(name: str, values: Mapping[str, str]) -> str:
    """The values of the group that names an input: which files count depends on nothing else."""
    owner = name.rpartition(".")[0] + "."
    return canonical_json({path: value for path, value in values.items() if path.startswith(owner)})


def _at(groups: Mapping[str, Any], path: str) -> Any:
    first, *rest = path.split(".")
    value = groups[first]
    for name in rest:
        found = getattr(value, name)
        value = found() if callable(found) else found
    return value
