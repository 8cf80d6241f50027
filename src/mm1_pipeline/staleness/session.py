"""The session that makes skipping the default: for `SESSION_CLASS` of Kedro's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines as project_pipelines
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from kedro.runner import AbstractRunner, SequentialRunner

from mm1_pipeline.staleness.components import Settings
from mm1_pipeline.staleness.errors import StalenessError
from mm1_pipeline.staleness.kedro_graph import build_graph
from mm1_pipeline.staleness.planning import Planner
from mm1_pipeline.staleness.runner import RunOptions, StalenessRunner

DataRoot = Callable[[KedroContext], Path]
_DEFAULT = "__default__"


def data_root_of(context: KedroContext) -> Path:
    """The environment's data folder: `data_root` of globals.yml, inside the project.

    Raises:
        StalenessError: when globals.yml names none.
    """
    data_root = context.config_loader["globals"].get("data_root")
    if not data_root:
        raise StalenessError(
            f"globals.yml of the environment {context.env!r}: found no `data_root`. Name the "
            "folder that holds this environment's data, one for each environment."
        )
    return Path(context.project_path) / data_root


class StalenessSession(KedroSession):
    """A Kedro session whose sequential runs skip fresh nodes.

    `--runner=SequentialRunner`, given by name, runs without skipping; other runners are left as
    they are. Use `session_class` to make one for a project.
    """

    staleness_settings: Settings
    find_data_root: DataRoot = staticmethod(data_root_of)
    _context: KedroContext | None = None

    def load_context(self) -> KedroContext:
        """Loads the context and remembers it for the runner."""
        self._context = super().load_context()
        return self._context

    def run(
        self, *args: Any, runner: AbstractRunner | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Runs a pipeline; arguments as Kedro's."""
        if runner is None or type(runner) is SequentialRunner:
            is_async = runner is not None and runner._is_async
            force = runner is not None and _runner_was_named()
            runner = StalenessRunner(lambda: self._run_options(force), is_async)
        return super().run(*args, runner=runner, **kwargs)

    def planner(self, pipeline: str | None = None, node: str | None = None) -> Planner:
        """The planner of a registered pipeline, for status, explain and accept.

        Args:
            pipeline: its name; None takes the default one, or one that has the node.
            node: a node that the pipeline must have.

        Raises:
            StalenessError: for an unknown pipeline or node.
        """
        context = self.load_context()
        registered = dict(project_pipelines)
        if pipeline is None:
            pipeline = _pipeline_with(node, registered)
        if pipeline not in registered:
            raise StalenessError(
                f"Found no pipeline {pipeline!r}; there are: {', '.join(sorted(registered))}."
            )
        graph = build_graph(registered[pipeline], context.catalog)
        return Planner(graph, type(self).find_data_root(context), self.staleness_settings)

    def data_root(self) -> Path:
        """The folder of the session's environment."""
        return type(self).find_data_root(self._context or self.load_context())

    @staticmethod
    def known_nodes() -> set[str]:
        """Names of the nodes of all registered pipelines."""
        return {node.name for pipeline in project_pipelines.values() for node in pipeline.nodes}

    def _run_options(self, force: bool) -> RunOptions:
        assert self._context is not None, "Kedro loads the context before it runs"
        provenance = {"environment": self._context.env, **self.store.get("git", {})}
        return RunOptions(
            type(self).find_data_root(self._context), self.staleness_settings, force, provenance
        )


def session_class(
    settings: Settings, find_data_root: DataRoot = data_root_of
) -> type[StalenessSession]:
    """Makes the session class of a project.

    Args:
        settings: what the project declares.
        find_data_root: gives the folder of an environment.

    Returns:
        A class for `SESSION_CLASS` in settings.py.
    """
    attributes = {
        "staleness_settings": settings,
        "find_data_root": staticmethod(find_data_root),
        "__doc__": StalenessSession.__doc__,
    }
    return type("ProjectSession", (StalenessSession,), attributes)


def _pipeline_with(node: str | None, registered: dict[str, Pipeline]) -> str:
    names = [name for name in registered if name != _DEFAULT]
    for name in (_DEFAULT, *names):
        pipeline = registered.get(name)
        if pipeline and (node is None or node in {known.name for known in pipeline.nodes}):
            return name
    known = {known.name for pipeline in registered.values() for known in pipeline.nodes}
    raise StalenessError(f"Found no node {node!r}; there are: {', '.join(sorted(known))}.")


def _runner_was_named() -> bool:
    """Whether the user asked for the runner; Kedro's CLI passes one in any case."""
    context = click.get_current_context(silent=True)
    return context is None or "runner" not in context.params or bool(context.params["runner"])
