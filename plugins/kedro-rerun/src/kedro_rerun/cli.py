"""`kedro rerun`: the commands beside `kedro run`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import env_option, validate_conf_source

from kedro_rerun.errors import (
    StalenessError,
    hide_secrets,
    is_mended_by_user,
    without_secrets,
)

if TYPE_CHECKING:
    from kedro_rerun.maintenance import StatusRow
    from kedro_rerun.session import StalenessSession


_DEBUG = "kedro_rerun.debug"


class UserErrorCommand(click.Command):
    """A command that shows what a user can mend as one message; with --debug as a traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

        def note(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
            ctx.meta[_DEBUG] = value

        help_text = "Shows the traceback of an error that you can mend."
        debug = click.Option(
            ["--debug"], is_flag=True, expose_value=False, callback=note, help=help_text
        )
        others = [option for option in self.params if option.name != debug.name]
        self.params = [*others, debug]

    def user_errors(self) -> tuple[type[Exception], ...]:
        """The errors that users can mend; a project adds its own in a subclass."""
        from kedro.config import MissingConfigException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        return StalenessError, MissingConfigException, OmegaConfBaseException, YAMLError

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command.

        Raises:
            click.ClickException: for an error that a user can mend.
        """
        with warnings.catch_warnings():
            # `--pipeline` and `--pipelines` both work here; OmegaConf's own resolvers warn.
            warnings.filterwarnings("ignore", message=".*--pipeline.*")
            warnings.filterwarnings("ignore", message=".*register_new_resolver.*")
            try:
                return super().invoke(ctx)
            except Exception as error:
                hide_secrets(error)  # Whoever shows a traceback shows the texts of all.
                if ctx.meta.get(_DEBUG) or isinstance(error, click.ClickException):
                    raise
                if isinstance(error, self.user_errors()):
                    raise click.ClickException(without_secrets(str(error))) from error
                if _comes_from_a_node(error):
                    text = f"{without_secrets(str(error))} (--debug shows where.)"
                    raise click.ClickException(text) from error
                raise


def _comes_from_a_node(error: Exception) -> bool:
    """Whether the project declares an error as one that its users can mend."""
    from kedro.framework import project

    declared = getattr(project.settings.SESSION_CLASS, "staleness_settings", None)
    if declared is None:
        return False
    packages = declared.packages or (str(project.PACKAGE_NAME),)
    return is_mended_by_user(error, declared.user_errors, packages)


pipeline_option = click.option(
    "--pipeline", default=None, help="A registered pipeline; the default one if not given."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
conf_source_option = click.option(
    "--conf-source", default=None, callback=validate_conf_source, help="Another conf folder."
)
params_option = click.option(
    "--params",
    type=click.UNPROCESSED,
    default="",
    callback=next(option for option in kedro_run.params if option.name == "params").callback,
    help="Parameters in place of the environment's, as `kedro run` takes them.",
)


@click.group(name="kedro_rerun")
def commands() -> None:
    """Commands of kedro-rerun."""


@commands.group()
def rerun() -> None:
    """What is fresh, what is stale, and why."""


@rerun.command(cls=UserErrorCommand)
@pipeline_option
@json_option
@click.option("--viz", is_flag=True, help="Writes it for Kedro-Viz too, which colours the nodes.")
@params_option
@env_option
@conf_source_option
@click.pass_context
def status(
    ctx: click.Context,
    pipeline: str | None,
    as_json: bool,
    viz: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Shows a row a node: fresh, stale or missing, and why. Exit code 3 if any is not fresh."""
    from kedro_rerun import maintenance, render

    rows = maintenance.status(open_session(env, conf_source, params).planner(pipeline))
    show(rows, render.render_status, as_json)
    if viz:
        _show_in_viz(pipeline, rows)
    ctx.exit(maintenance.exit_code(rows))


@rerun.command(cls=UserErrorCommand)
@click.argument("node")
@pipeline_option
@json_option
@params_option
@env_option
@conf_source_option
def explain(
    node: str,
    pipeline: str | None,
    as_json: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Shows what decides a node's outputs, and how that differs from the last run."""
    from kedro_rerun import maintenance, render

    planner = open_session(env, conf_source, params).planner(pipeline, node)
    show(maintenance.explain(planner, node), render.render_explanation, as_json)


@rerun.command(cls=UserErrorCommand)
@click.argument("node")
@pipeline_option
@params_option
@env_option
@conf_source_option
def accept(
    node: str, pipeline: str | None, params: dict[str, Any], env: str, conf_source: str | None
) -> None:
    """Declares a node's outputs fresh without running it: the change altered no result."""
    from kedro_rerun import maintenance, render

    planner = open_session(env, conf_source, params).planner(pipeline, node)
    show([maintenance.accept(planner, node)], render.render_status, as_json=False)


@rerun.command(cls=UserErrorCommand)
@pipeline_option
@params_option
@env_option
@conf_source_option
@click.pass_context
def push(
    ctx: click.Context,
    pipeline: str | None,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Gives the shared cache all that is fresh. Exit code 1 if something could not be given."""
    from kedro_rerun import maintenance

    given = maintenance.push(open_session(env, conf_source, params).planner(pipeline))
    missing = [name for name, is_there in given.items() if not is_there]
    click.echo(f"The cache holds the outputs of {len(given) - len(missing)} nodes.")
    if missing:
        click.echo(f"Not those of: {', '.join(missing)}.")
    ctx.exit(1 if missing else 0)


@rerun.command(cls=UserErrorCommand)
@click.option("--keep-runs", default=2, show_default=True, help="Runs to remember for each node.")
@click.option("--dry-run", is_flag=True, help="Only tells what would go.")
@env_option
@conf_source_option
def gc(keep_runs: int, dry_run: bool, env: str, conf_source: str | None) -> None:
    """Removes versions and progress that no remembered run refers to, and what killed runs left."""
    from kedro_rerun import maintenance, render

    session = open_session(env, conf_source)
    removed = maintenance.collect_garbage(
        session.data_root(), session.known_nodes(), keep_runs, dry_run
    )
    show(removed, lambda found: render.render_removed(found, dry_run), as_json=False)


@rerun.command(cls=UserErrorCommand)
@click.option("--deep", is_flag=True, help="Hashes every file instead of comparing sizes.")
@json_option
@env_option
@conf_source_option
@click.pass_context
def verify(
    ctx: click.Context, deep: bool, as_json: bool, env: str, conf_source: str | None
) -> None:
    """Compares every artifact with its manifest. Exit code 1 if any differs."""
    from kedro_rerun import maintenance, render

    problems = maintenance.verify(open_session(env, conf_source).data_root(), deep)
    show(problems, render.render_problems, as_json)
    ctx.exit(maintenance.EXIT_DAMAGED if problems else maintenance.EXIT_FRESH)


def _show_in_viz(pipeline: str | None, rows: Sequence[StatusRow]) -> None:
    """Says on standard error what came of it, as standard output may be JSON."""
    from kedro.framework.project import pipelines

    from kedro_rerun.selection import DEFAULT_PIPELINE
    from kedro_rerun.session import find_project
    from kedro_rerun.viz import EVENTS, run_events, write_run_events

    events = run_events(rows, pipelines[pipeline or DEFAULT_PIPELINE].nodes)
    try:
        path = write_run_events(find_project(Path.cwd()), events)
    except OSError as error:
        click.echo(f"Kedro-Viz is not told: {EVENTS}: {error.strerror or error}.", err=True)
    else:
        click.echo(f"Kedro-Viz colours the nodes by {path}.", err=True)


def open_session(
    env: str | None, conf_source: str | None = None, params: dict[str, Any] | None = None
) -> StalenessSession:
    """A session of the project in whose folder a command is given.

    Raises:
        StalenessError: when the project's settings name another session class.
    """
    from kedro.framework.project import settings

    from kedro_rerun.session import StalenessSession

    session_class: type = settings.SESSION_CLASS
    if not issubclass(session_class, StalenessSession):
        raise StalenessError(
            f"settings.py: found the SESSION_CLASS {session_class.__name__}, expected "
            "StalenessSession. Add two lines there: `from kedro_rerun import StalenessSession` and "
            "`SESSION_CLASS = StalenessSession`."
        )
    session = session_class.create(env=env, conf_source=conf_source, runtime_params=params)
    assert isinstance(session, StalenessSession)
    return session


def show(value: Any, render: Callable[[Any], Any], as_json: bool) -> None:
    """Prints a result of `maintenance`.

    Args:
        value: the result.
        render: makes it something for a terminal.
        as_json: prints JSON instead.
    """
    from kedro_rerun import maintenance

    if as_json:
        click.echo(json.dumps(maintenance.as_json(value), indent=2))
    else:
        from rich.console import Console

        Console().print(render(value))
