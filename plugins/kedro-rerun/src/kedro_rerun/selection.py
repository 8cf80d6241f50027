"""What a run is asked for by name: checked before any work, with the nearest name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner, SequentialRunner

from kedro_rerun.errors import StalenessError, unknown_name

DEFAULT_PIPELINE = "__default__"


def refuse_runner(runner: AbstractRunner | type[AbstractRunner]) -> None:
    """Refuses runners under which nodes find no place to write to.

    Raises:
        StalenessError: for any but the sequential runners.
    """
    kind = runner if isinstance(runner, type) else type(runner)
    if not issubclass(kind, SequentialRunner):
        raise StalenessError(
            f"--runner: found {kind.__name__}, expected none, or SequentialRunner. Nodes write "
            "versions of artifacts under the lock of their data root, one node after the other, "
            "and a node that works in parallel does so itself, by its parameters. "
            "Without --runner fresh nodes are skipped; --runner=SequentialRunner runs them all."
        )


@dataclass(frozen=True)
class Selection:
    """The names that `KedroSession.run` takes."""

    pipeline_names: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    node_names: tuple[str, ...] = ()
    from_nodes: tuple[str, ...] = ()
    to_nodes: tuple[str, ...] = ()
    from_inputs: tuple[str, ...] = ()
    to_outputs: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    load_versions: tuple[str, ...] = ()

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Selection:
        """The selection among the arguments of `KedroSession.run`."""
        given = {field.name: tuple(arguments.get(field.name) or ()) for field in fields(cls)}
        if name := arguments.get("pipeline_name"):
            return replace(cls(**given), pipeline_names=(name,))
        return cls(**given)

    def check(self, registered: Mapping[str, Pipeline]) -> None:
        """Looks every name up.

        Args:
            registered: all pipelines by name.

        Raises:
            StalenessError: names what is unknown, or says that nothing is left to run.
        """
        check_names("--pipelines", self.pipeline_names, registered)
        names = self.pipeline_names or (DEFAULT_PIPELINE,)
        whole = sum((registered[name] for name in names), Pipeline([]))
        for option, found in (
            ("--nodes", self.node_names),
            ("--from-nodes", self.from_nodes),
            ("--to-nodes", self.to_nodes),
        ):
            for name in found:
                check_node(option, name, names, registered)
        check_names("--tags", self.tags, {tag for node in whole.nodes for tag in node.tags})
        check_names("--namespaces", self.namespaces, _namespaces(whole))
        data = {name for name in whole.datasets() if not name.startswith("param")}
        given = {name for name in whole.datasets() if name in self.from_inputs}
        check_names("--from-inputs", self.from_inputs, data | given)
        check_names("--to-outputs", self.to_outputs, whole.all_outputs())
        check_names("--load-versions", self.load_versions, data)
        self._refuse_nothing(whole, names)

    def _refuse_nothing(self, whole: Pipeline, names: tuple[str, ...]) -> None:
        """Every name is known, but together they may leave no node."""
        chosen = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("pipeline_names", "load_versions", "namespaces")
        }
        try:
            whole.filter(**chosen, node_namespaces=list(self.namespaces) or None)
        except ValueError as error:
            asked = ", ".join(f"{name} {list(value)}" for name, value in chosen.items() if value)
            raise StalenessError(
                f"Found no node of {', '.join(names)} that fits all of: {asked}. Leave one of "
                "them out."
            ) from error


def check_names(option: str, found: Iterable[str], allowed: Collection[str]) -> None:
    """Refuses the first name that is not allowed.

    Raises:
        StalenessError: with the nearest name.
    """
    for name in found:
        if name not in allowed:
            raise StalenessError(unknown_name(option, name, allowed))


def check_node(
    option: str, name: str, names: Iterable[str], registered: Mapping[str, Pipeline]
) -> None:
    """Refuses a node that none of some pipelines has.

    Raises:
        StalenessError: with the nearest name, or with the pipelines that do have it.
    """
    nodes = {node.name for pipeline in names for node in registered[pipeline].nodes}
    if name in nodes:
        return
    having = [
        other
        for other, pipeline in sorted(registered.items())
        if name in {node.name for node in pipeline.nodes}
    ]
    if not having:
        raise StalenessError(unknown_name(option, name, nodes))
    raise StalenessError(
        f"{option}: found {name!r}, which is no node of {', '.join(names)} but of: "
        f"{', '.join(having)}. Name one of those with --pipeline."
    )


def _namespaces(pipeline: Pipeline) -> set[str]:
    """Every namespace, and those around it."""
    found = set()
    for node in pipeline.nodes:
        parts = node.namespace.split(".") if node.namespace else []
        found |= {".".join(parts[: index + 1]) for index in range(len(parts))}
    return found
