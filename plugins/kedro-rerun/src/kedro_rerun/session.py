"""The session that makes skipping the default: for `SESSION_CLASS` of Kedro's settings."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.framework import project
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines as project_pipelines
from kedro.framework.project import settings as project_settings
from kedro.framework.session import KedroSession
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner
from kedro.utils import is_kedro_project

from kedro_rerun.catalog import make_lean
from kedro_rerun.components import Settings
from kedro_rerun.errors import StalenessError, unknown_name, without_secrets
from kedro_rerun.graph import bare
from kedro_rerun.kedro_graph import build_graph
from kedro_rerun.parameters import dotted
from kedro_rerun.planning import Planner
from kedro_rerun.runner import LOGGER, Earlier, RunOptions, StalenessRunner
from kedro_rerun.selection import (
    DEFAULT_PIPELINE,
    Selection,
    check_names,
    check_node,
    refuse_runner,
)
from kedro_rerun.shared_cache import SharedCache

CACHE_PARAMETER = "rerun_cache"
DataRoot = Callable[[KedroContext], Path]


def data_root_of(context: KedroContext) -> Path:
    """The environment's data folder: `data_root` of globals.yml, else `data`, in the project."""
    try:
        named = context.config_loader["globals"].get("data_root")
    except (KeyError, MissingConfigException):  # Another loader, which has no globals.
        named = None
    return Path(context.project_path) / (named or "data")


def find_project(start: Path) -> Path:
    """The project that a folder is in.

    Args:
        start: any folder of it.

    Returns:
        The nearest folder, from `start` upwards, that is a Kedro project or holds its
        configuration, as the folder of an installed package's user does; `start` if there is none.
    """
    configuration = Path(project_settings.CONF_SOURCE) / _base_environment() / "globals.yml"
    for folder in (start, *start.parents):
        if is_kedro_project(folder) or (folder / configuration).is_file():
            return folder
    return start


class StalenessSession(KedroSession):
    """A Kedro session whose runs skip fresh nodes, and which looks at every name first.

    `--runner=SequentialRunner`, given by name, runs without skipping; runners that work on
    several nodes at once are refused. Use `session_class` to make one for a project
    that declares something about itself.
    """

    staleness_settings = Settings()
    find_data_root: DataRoot = staticmethod(data_root_of)
    provenance: Mapping[str, Any] = MappingProxyType({})
    """What the records of a run tell beside the environment and the commit."""
    _context: KedroContext | None = None
    _selection: Selection | None = None

    def __init__(
        self,
        session_id: str,
        package_name: str | None = None,
        project_path: Path | str | None = None,
        save_on_close: bool = False,
        conf_source: str | None = None,
    ) -> None:
        # Against the folder it was given in; a hook may change the working directory.
        if conf_source is not None and "://" not in conf_source:
            conf_source = os.path.abspath(conf_source)
        project_path = project_path or find_project(Path.cwd())
        super().__init__(session_id, package_name, project_path, save_on_close, conf_source)

    def load_context(self) -> KedroContext:
        """Loads the context and remembers it for the runner.

        Raises:
            StalenessError: there is no configuration, no such environment, or, in a run, no such
                pipeline, node, tag or dataset.
        """
        self._check_environment()
        self._context = super().load_context()
        make_lean(self._context)
        if self._selection is not None:
            project_pipelines.set_requested(None)
            self._selection.check(dict(project_pipelines))
        return self._context

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Runs a pipeline; arguments as Kedro's.

        Raises:
            StalenessError: for a runner that cannot run the project's nodes, and as
                `load_context`.
        """
        given = inspect.signature(super().run).bind(*args, **kwargs).arguments
        runner = given.get("runner")
        if runner is not None:
            refuse_runner(runner)
        if runner is None or type(runner) is SequentialRunner:
            is_async = runner is not None and runner._is_async
            force = runner is not None and _runner_was_named()
            given["runner"] = StalenessRunner(lambda: self._run_options(force), is_async)
        self._selection = Selection.of(given)
        return super().run(**given)

    def planner(self, pipeline: str | None = None, *nodes: str) -> Planner:
        """The planner of a registered pipeline, for status, explain and accept.

        Args:
            pipeline: its name; None takes the default one, or one that has the nodes.
            nodes: that the pipeline must have.

        Raises:
            StalenessError: for an unknown pipeline or node.
        """
        context = self.load_context()
        registered = dict(project_pipelines)
        if pipeline is None:
            pipeline = _pipeline_with(nodes, registered)
        check_names("--pipeline", [pipeline], registered)
        for node in nodes:
            check_node("NODE", node, [pipeline], registered)
        graph = build_graph(registered[pipeline], context.catalog)
        root = type(self).find_data_root(context)
        return Planner(graph, root, self._settings(), cache=self._cache(context))

    def data_root(self) -> Path:
        """The folder of the session's environment."""
        return type(self).find_data_root(self._context or self.load_context())

    @staticmethod
    def known_nodes() -> set[str]:
        """Names of the nodes of all registered pipelines."""
        return {node.name for pipeline in project_pipelines.values() for node in pipeline.nodes}

    def _check_environment(self) -> None:
        """Looks for the folders of the configuration; Kedro says itself what an archive lacks."""
        conf = Path(self._conf_source)
        base = _base_environment()
        if "://" in self._conf_source or conf.is_file():
            return
        if not (conf / base).is_dir():
            raise StalenessError(
                f"Found no configuration in {conf}: expected a folder {base!r} in it, with "
                "globals.yml, catalog.yml and parameters. Give the command in a folder of the "
                "project, which holds `conf` and the data that it names, or name another "
                "configuration with --conf-source."
            )
        default = project_settings.CONFIG_LOADER_ARGS.get("default_run_env", "local")
        environment = self.store.get("env") or default
        if not (conf / environment).is_dir():
            known = [path.name for path in conf.iterdir() if path.is_dir()]
            hint = "" if environment != default else "make that folder; it may be empty. There are"
            raise StalenessError(unknown_name("--env", environment, known, hint))

    def _run_options(self, force: bool) -> RunOptions:
        assert self._context is not None, "Kedro loads the context before it runs"
        git = self.store.get("git", {})
        provenance = {"environment": self._context.env, **git, **self.provenance}
        return RunOptions(
            type(self).find_data_root(self._context),
            self._settings(),
            force,
            returns=click.get_current_context(silent=True) is None,
            cache=self._cache(self._context),
            provenance=provenance,
            earlier=self._earlier,
        )

    def _earlier(self, pipeline: Pipeline) -> Earlier | None:
        """What a run reads of nodes of the project that it leaves out."""
        context, registered = self._context, dict(project_pipelines)
        assert context is not None, "Kedro loads the context before it runs"
        name, whole = _pipeline_of(pipeline.inputs(), registered)
        made = {bare(output): output for output in whole.all_outputs()}
        read = [made[bare(name)] for name in sorted(pipeline.inputs()) if bare(name) in made]
        if not read:
            return None
        try:
            # Kedro types only the parameters of the pipelines that it was asked for.
            context._pipelines_to_validate = None
            graph = build_graph(whole.to_outputs(*read), context.catalog)
        except Exception as error:  # whatever parameters of other pipelines give
            logging.getLogger(LOGGER).debug("Nodes before the run cannot be told: %s", error)
            return None
        return Earlier(graph, frozenset(read), self.run_command(name))

    def place(self) -> dict[str, str | None]:
        """How another process opens a session here."""
        return {
            "project": str(self._project_path),
            "package": project.PACKAGE_NAME,
            "env": self.store.get("env"),
            "conf_source": str(self._conf_source),
        }

    def run_command(self, pipeline: str | None) -> str:
        """How this session's environment and parameters are given to `kedro run`."""
        words = ["kedro", "run"]
        if env := self.store.get("env"):
            words.append(f"--env={env}")
        default_conf = Path(self._project_path) / project_settings.CONF_SOURCE
        if str(self._conf_source) != str(default_conf):
            words.append(f"--conf-source={self._conf_source}")
        if pipeline not in (None, DEFAULT_PIPELINE):
            words.append(f"--pipeline={pipeline}")
        if given := list(dotted(self.store.get("runtime_params") or {})):
            words.append(f"--params={','.join(f'{key}={value}' for key, value in given)}")
        return without_secrets(shlex.join(words))

    def _cache(self, context: KedroContext) -> SharedCache | None:
        """The shared cache that the run's parameters or the settings name; none as a rule."""
        settings = self._settings()
        url = context.params.get(CACHE_PARAMETER, settings.cache)
        if not url:
            return None
        if not isinstance(url, str):
            raise StalenessError(
                f"{CACHE_PARAMETER}: found {url!r}, expected a path or URL of a cache, or nothing."
            )
        place = url if "://" in url else str(Path(context.project_path) / url)
        return SharedCache(place, settings.cache_options)

    def _settings(self) -> Settings:
        """What the project declares; of a project that names no packages, its own counts."""
        declared = self.staleness_settings
        own = project.PACKAGE_NAME
        return declared if declared.packages or not own else replace(declared, packages=(own,))


def session_class(
    settings: Settings | None = None, find_data_root: DataRoot = data_root_of
) -> type[StalenessSession]:
    """Makes the session class of a project.

    Args:
        settings: what the project declares, if anything.
        find_data_root: gives the folder of an environment.

    Returns:
        A class for `SESSION_CLASS` in settings.py.
    """
    attributes = {
        "staleness_settings": settings or Settings(),
        "find_data_root": staticmethod(find_data_root),
        "__doc__": StalenessSession.__doc__,
    }
    return type("ProjectSession", (StalenessSession,), attributes)


def _pipeline_with(nodes: Collection[str], registered: dict[str, Pipeline]) -> str:
    """The first that has all nodes, or of nodes that no pipeline has together, the first node."""
    known = {name: {node.name for node in pipeline.nodes} for name, pipeline in registered.items()}
    names = sorted(registered, key=lambda name: name != DEFAULT_PIPELINE)
    for wanted in (set(nodes), set(list(nodes)[:1])):
        if unknown := sorted(wanted - set().union(*known.values())):
            raise StalenessError(unknown_name("NODE", unknown[0], set().union(*known.values())))
        for name in names:
            if registered[name] and wanted <= known[name]:
                return name
    raise StalenessError("Found no pipeline with a node; register one.")


def _pipeline_of(read: set[str], registered: dict[str, Pipeline]) -> tuple[str, Pipeline]:
    """The registered pipeline that makes most of some datasets, the default one before others."""
    names = sorted(registered, key=lambda name: name != DEFAULT_PIPELINE)
    wanted = {bare(name) for name in read}

    def number_made(name: str) -> int:
        return len({bare(output) for output in registered[name].all_outputs()} & wanted)

    most = max(names, key=number_made, default=None)
    return (most, registered[most]) if most is not None else (DEFAULT_PIPELINE, Pipeline([]))


def _base_environment() -> str:
    return project_settings.CONFIG_LOADER_ARGS.get("base_env", "base")


def _runner_was_named() -> bool:
    """Whether the user asked for the runner; Kedro's CLI passes one in any case."""
    context = click.get_current_context(silent=True)
    return context is None or "runner" not in context.params or bool(context.params["runner"])
