"""Reads the components of a node's fingerprint from where they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kedro_rerun.closures import ClosureCache
from kedro_rerun.code import Closure, CodeIndex
from kedro_rerun.environment import ABSENT, library_versions, version_of
from kedro_rerun.errors import StalenessError
from kedro_rerun.fingerprint import Cause
from kedro_rerun.functions import FunctionView, describe_function
from kedro_rerun.graph import UNKNOWN, Dataset, Graph, StaleNode, Storage, bare
from kedro_rerun.inputs import Selection, path_state, path_state_and_digest
from kedro_rerun.outputs import OutputStore
from kedro_rerun.parameters import FlatParameters, flatten_parameters
from kedro_rerun.preflight import Mistake

_ALL_PARAMETERS = "parameters"


@dataclass(frozen=True)
class Settings:
    """What a project declares about itself."""

    packages: tuple[str, ...] = ()
    """First-party top-level packages: changes of their code count. The project's own if none."""
    excluded: tuple[str, ...] = ()
    """First-party modules that change no result."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Libraries whose versions count: distribution by import name."""
    library_effects: Mapping[str, str] = field(default_factory=dict)
    """What another version can alter, by import name: told where an expensive node asks."""
    switches: frozenset[str] = frozenset({"allow_expensive", "when_busy", "rerun_cache"})
    """Parameters of a single run that steer the runner and are no input of any node."""
    history: int = 10
    """Runs remembered for each node."""
    run_history: int = 200
    """Runs that `runs` can list."""
    headlines: Callable[[Mapping[str, Path]], Mapping[str, float]] | None = None
    """Gives scores to remember a run by, the most telling first, from the places of its outputs by
    dataset: files, and folders of artifacts' versions. Asked when a run ends, also if it failed;
    with the outputs that it made or found fresh."""
    max_stored_bytes: int = 64 * 1024 * 1024
    """Size above which no copy of a file is kept."""
    cache: str | None = None
    """Where outputs are shared with other machines: a path or any URL that fsspec opens. The run
    parameter `rerun_cache` goes before it."""
    cache_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the cache's file system, as fsspec takes them."""
    preflight: Callable[[Graph], Iterable[Mistake]] | None = None
    """Looks for what users have to mend, from the nodes and parameters of a run, before its first
    node; `status` shows it as well. What concerns no node that must run is not said."""
    stale_inputs: Literal["warn", "refuse", "ignore"] = "warn"
    """What a run of some nodes does that reads what nodes before it would make anew now: says so
    and goes on, does not begin, or says nothing."""
    user_errors: tuple[type[Exception], ...] = ()
    """Errors of nodes that a user can mend where first-party code raises them: commands show their
    text alone, and the traceback with `--debug`."""
    command: str = "kedro rerun"
    """The command group that texts tell people to use; a project may have one of its own."""


class ComponentReader:
    """Reads what decides the outputs of a graph's nodes.

    Code is read once, when first asked for: a process executes what it had imported by then.
    So are inputs that no node makes.

    Args:
        graph: nodes in an order in which they can run, with their datasets.
        settings: what the project declares.
        outputs: looks at datasets on disk.
        cache: folder for what is known of source files.
    """

    def __init__(self, graph: Graph, settings: Settings, outputs: OutputStore, cache: Path) -> None:
        self._graph = graph
        self._settings = settings
        self._outputs = outputs
        self._cache = cache
        self._closures: dict[str, Closure] = {}
        self._views: dict[str, FunctionView] = {}
        self._external: dict[str, str] = {}
        # In which state each place that is read was when it was first looked at.
        self._states: dict[str, str] = {}
        self._known = ClosureCache(
            cache / "closures.json", settings.packages, settings.excluded, outputs.hashes
        )

    def inputs(self, node: StaleNode, predicted: Mapping[str, str | None]) -> dict[str, str | None]:
        """Digests of what a node reads.

        Args:
            node: of the graph that the reader was made for.
            predicted: digest of each dataset that an earlier node makes, by bare name; None
                where it is not known before that node has run.

        Returns:
            Digest by component name.
        """
        digests: dict[str, str | None] = {}
        for name in node.inputs:
            dataset = self._graph.datasets[name]
            if dataset.storage is Storage.PARAMETER:
                for path, selection in self._flatten(node, dataset).inputs().items():
                    component = f"{Cause.INPUT}:{path.removeprefix(f'{Cause.PARAMS}:')}"
                    digests[component] = self._read_path(component, selection)
            elif bare(name) in predicted:
                digests[f"{Cause.INPUT}:{name}"] = predicted[bare(name)]
            else:
                digests[f"{Cause.INPUT}:{name}"] = self._read_dataset(dataset)
        return digests

    def components(self, node: StaleNode, inputs: Mapping[str, str]) -> dict[str, str]:
        """All components of a node's fingerprint.

        Args:
            node: of the graph that the reader was made for.
            inputs: digest by component name (`input:<dataset>`).

        Returns:
            Text by component name.
        """
        view = self._view(node)
        closure = self._closure(node)
        versions = library_versions(self._settings.libraries, closure.libraries)
        versions |= {module: version_of(module) for module in self._own_libraries(node)}
        components = {
            **_prefixed(Cause.CODE, closure.parts),
            **_prefixed(Cause.CODE, view.source),
            **_prefixed(Cause.LIBRARY, versions),
            **_prefixed(Cause.WIRING, {"function": view.name, **node.wiring}),
            **_prefixed(Cause.WIRING, {f"bound.{name}": text for name, text in view.bound.items()}),
            **inputs,
        }
        for dataset in self._datasets(node):
            options = {f"{dataset.name}.{name}": text for name, text in dataset.options.items()}
            components |= _prefixed(Cause.CATALOG, options)
            if dataset.storage is Storage.PARAMETER:
                components |= self._flatten(node, dataset).values
        return components

    def code_changed(self, node: StaleNode) -> bool:
        """Whether the node's source files differ from when this process first read them."""
        return self._close(self._open_index(), node).parts != self._closure(node).parts

    def way_to(self, node: StaleNode, part: str) -> list[str]:
        """Who calls whom from the node's function to a part of its code; see `Closure.way_to`."""
        closure = self._closure(node)
        if not closure.reached_from:  # It was known.
            closure = self._closures[node.name] = self._close(self._index, node)
        return closure.way_to(part)

    def external_inputs_changed(self, node: StaleNode) -> bool:
        """Whether what no node makes was written to since this process first read it.

        One that was changed and then restored counts: the node may have read what lay there
        between.
        """
        before, self._external = self._external, {}
        states, self._states = self._states, {}
        self.inputs(node, {})
        changed = any(before.get(name, now) != now for name, now in self._external.items())
        touched = any(states.get(name, now) != now for name, now in self._states.items())
        self._external, self._states = before | self._external, states | self._states
        return changed or touched

    def save(self) -> None:
        """Keeps what is known of source files for the next process."""
        self._known.save()
        if "_index" in vars(self):
            self._index.save()

    # Code

    @cached_property
    def _index(self) -> CodeIndex:
        return self._open_index()

    def _open_index(self) -> CodeIndex:
        path = self._cache / "code.json"
        return CodeIndex(self._settings.packages, self._settings.excluded, path)

    def _view(self, node: StaleNode) -> FunctionView:
        if node.name not in self._views:
            self._views[node.name] = describe_function(node.function)
        return self._views[node.name]

    def _closure(self, node: StaleNode) -> Closure:
        if node.name not in self._closures:
            entries = self._entries(node)
            if (closure := self._known.get(entries)) is None:
                closure = self._close(self._index, node)
                self._known.put(entries, closure)
            self._closures[node.name] = closure
        return self._closures[node.name]

    def _entries(self, node: StaleNode) -> list[tuple[str, str]]:
        """Module and top-level name of the function, and of the classes of its datasets."""
        entries = list(self._view(node).entries)
        entries += [dataset.code for dataset in self._datasets(node) if dataset.code is not None]
        return entries

    def _close(self, index: CodeIndex, node: StaleNode) -> Closure:
        entries = self._entries(node)
        followed = [entry for entry in entries if index.is_first_party(entry[0])]
        closure = index.closure(followed)
        others = {module.partition(".")[0] for module, _ in entries} - set(self._settings.packages)
        return replace(closure, libraries=closure.libraries | others)

    def _own_libraries(self, node: StaleNode) -> set[str]:
        """Undeclared libraries that a node's very function comes from, such as `pandas.concat`.

        Raises:
            StalenessError: for one that is no installed distribution.
        """
        found = {module.partition(".")[0] for module, _ in self._view(node).entries}
        found -= {*self._settings.packages, *self._settings.libraries, *sys.stdlib_module_names}
        for module in found:
            if version_of(module) == ABSENT:
                raise StalenessError(
                    f"{node.name}: its function comes from {module!r}, which is neither a "
                    "first-party package nor a library with a version, so its changes would go "
                    "unnoticed. Add it to `packages` or `libraries` of the staleness settings."
                )
        return found

    # Parameters and inputs

    def _datasets(self, node: StaleNode) -> list[Dataset]:
        return [self._graph.datasets[name] for name in (*node.inputs, *node.outputs)]

    def _flatten(self, node: StaleNode, dataset: Dataset) -> FlatParameters:
        if (part := node.parts.get(dataset.name)) is not None:
            return flatten_parameters(part(dataset.value), dataset.name)
        if dataset.name != _ALL_PARAMETERS:
            return flatten_parameters(dataset.value, dataset.name)
        flat = FlatParameters.empty()
        for name, value in dataset.value.items():
            if name not in self._settings.switches:
                group = flatten_parameters(value, f"{Cause.PARAMS}:{name}")
                flat.values.update(group.values)
                flat.input_paths.update(group.input_paths)
                flat.selections.update(group.selections)
        return flat

    def _read_path(self, component: str, selection: Selection) -> str:
        if component not in self._external:
            found = path_state_and_digest(selection, self._outputs.hashes)
            self._states[component], self._external[component] = found
        return self._external[component]

    def _read_dataset(self, dataset: Dataset) -> str:
        if dataset.storage in (Storage.MEMORY, Storage.OPAQUE):
            return UNKNOWN
        if dataset.storage is Storage.ARTIFACT:
            return self._outputs.digest(dataset)
        if dataset.name not in self._external:
            if dataset.storage is Storage.PATH and dataset.location is not None:
                self._states[dataset.name] = path_state(Selection(dataset.location()))
            self._external[dataset.name] = self._outputs.digest(dataset)
        return self._external[dataset.name]


def _prefixed(cause: Cause, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{cause}:{name}": text for name, text in parts.items()}
