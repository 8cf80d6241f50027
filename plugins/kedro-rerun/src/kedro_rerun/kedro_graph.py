"""Kedro's pipeline and catalog as the graph that staleness works on.

How a dataset's content is told: `root` (a Path) makes it an artifact directory,
`content_digest()` lets a dataset answer itself, a file path of Kedro's own datasets is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro.io import CatalogProtocol
from kedro.io.core import DatasetError, is_parameter
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from kedro_rerun.files import canonical_json
from kedro_rerun.graph import Dataset, Graph, StaleNode, Storage
from kedro_rerun.inputs import ABSENT
from kedro_rerun.narrowing import parts_by_dataset
from kedro_rerun.parameters import ORDER, flatten_parameters

_PLACES = frozenset(
    {"credentials", "filepath", "fs_args", "metadata", "path", "version", "versioned"}
)
"""Options that say where content lies or who may see it, not what it is."""
_LOCAL = ("file", "local", "")


def build_graph(pipeline: Pipeline, catalog: CatalogProtocol) -> Graph:
    """Describes a pipeline with its datasets.

    Args:
        pipeline: the nodes of a run.
        catalog: its datasets; those of patterns are made.

    Returns:
        The graph, nodes in an order in which they can run.
    """
    nodes = tuple(_describe_node(node) for node in pipeline.nodes)
    names = sorted({name for node in nodes for name in (*node.inputs, *node.outputs)})
    return Graph(nodes, {name: _describe_dataset(name, catalog) for name in names})


def artifact_root(dataset: Any) -> Path | None:
    """Root of an artifact directory dataset; None for any other dataset."""
    root = getattr(_unwrap(dataset), "root", None)
    return root if isinstance(root, Path) else None


def _describe_node(node: Node) -> StaleNode:
    return StaleNode(
        name=node.name,
        function=node.func,
        inputs=tuple(dict.fromkeys(node.inputs)),
        outputs=tuple(node.outputs),
        wiring={
            "inputs": canonical_json(node._inputs),
            "outputs": canonical_json(node._outputs),
        },
        tags=frozenset(node.tags),
        parts=parts_by_dataset(node.func, node._inputs),
    )


def _describe_dataset(name: str, catalog: CatalogProtocol) -> Dataset:
    dataset = _unwrap(catalog.get(name, fallback_to_runtime_pattern=True))
    if is_parameter(name):
        return Dataset(name, Storage.PARAMETER, value=dataset.load())
    if getattr(dataset, "_EPHEMERAL", False):
        return Dataset(name, Storage.MEMORY)
    common: dict[str, Any] = {"options": describe_options(dataset), "code": _class_of(dataset)}
    if (root := artifact_root(dataset)) is not None:
        return Dataset(name, Storage.ARTIFACT, location=lambda: str(root), **common)
    if callable(getattr(dataset, "content_digest", None)):
        return Dataset(name, Storage.CUSTOM, digest=dataset.content_digest, **common)
    if (location := _find_location(dataset)) is not None:
        if getattr(dataset, "_version", None) is not None:
            common["next_location"] = lambda: str(_next_version(dataset))
        return Dataset(name, Storage.PATH, location=location, **common)
    return Dataset(name, Storage.OPAQUE, digest=_existence(dataset), **common)


def _unwrap(dataset: Any) -> Any:
    """The dataset inside of wrappers such as CachedDataset."""
    while hasattr(dataset, "_dataset") and hasattr(dataset._dataset, "load"):
        dataset = dataset._dataset
    return dataset


def _find_location(dataset: Any) -> Callable[[], str] | None:
    place = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
    if place is None:
        return None
    protocol = getattr(dataset, "_protocol", "file")
    protocol = protocol if isinstance(protocol, str) else protocol[0]

    def locate() -> str:
        path = str(_versioned_path(dataset) or place)
        return path if protocol in _LOCAL or "://" in path else f"{protocol}://{path}"

    return locate


def _versioned_path(dataset: Any) -> Any:
    """Path of the newest version of a dataset that Kedro versions by time."""
    if getattr(dataset, "_version", None) is None:
        return None
    try:
        return dataset._get_load_path()
    except DatasetError:  # No version yet.
        return None


def _next_version(dataset: Any) -> Any:
    """Path of the version that this run would write of a dataset that Kedro versions by time."""
    place = dataset._get_versioned_path(dataset.resolve_save_version())
    dataset.release()  # It remembers which version is the newest.
    return place


def _existence(dataset: Any) -> Callable[[], str]:
    return lambda: "present" if dataset.exists() else ABSENT


def describe_options(dataset: Any) -> dict[str, str]:
    """The catalog options of a dataset that say what its content is, by dotted path."""
    options = {}
    given = dict(getattr(dataset, "_init_args", {}))
    # Kedro notes the keyword arguments of an inherited __init__ as one.
    given |= given.pop("kwargs", None) or {}
    for name, value in given.items():
        if name in _PLACES or value is None:
            continue
        try:
            flat = flatten_parameters(value, name).values
        except ValueError:  # Objects cannot come from a catalog file.
            flat = {name: type(value).__name__}
        options |= {path: text for path, text in flat.items() if not path.endswith(ORDER)}
    return options


def _class_of(dataset: Any) -> tuple[str, str]:
    return type(dataset).__module__, type(dataset).__qualname__.partition(".")[0]
