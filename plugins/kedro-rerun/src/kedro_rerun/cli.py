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
    from kedro_rerun.artifacts import Removed
    from kedro_rerun.maintenance import StatusRow
    from kedro_rerun.session import StalenessSession


_DEBUG = "kedro_rerun.debug"
_MAX_RUNS = 20


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
        show_in_viz(pipeline, rows)
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
@click.argument("nodes", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that only code and libraries make stale.")
@pipeline_option
@json_option
@params_option
@env_option
@conf_source_option
def accept(
    nodes: tuple[str, ...],
    every: bool,
    pipeline: str | None,
    as_json: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Declares outputs of NODES fresh without running them: the change altered no result."""
    from kedro_rerun import maintenance, render

    if every == bool(nodes):
        raise click.UsageError("Name the nodes to accept, or give --all; not both.")
    planner = open_session(env, conf_source, params).planner(pipeline, *nodes)
    rows = maintenance.accept_all(planner) if every else maintenance.accept(planner, nodes)
    show(rows, render.render_accepted, as_json)


@rerun.command(cls=UserErrorCommand)
@pipeline_option
@json_option
@params_option
@env_option
@conf_source_option
@click.pass_context
def push(
    ctx: click.Context,
    pipeline: str | None,
    as_json: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Gives the shared cache all that is fresh. Exit code 1 if something could not be given."""
    from kedro_rerun import maintenance

    given = maintenance.push(open_session(env, conf_source, params).planner(pipeline))
    missing = [name for name, is_there in given.items() if not is_there]
    if as_json:
        click.echo(json.dumps(given, indent=2))
    else:
        click.echo(f"The cache holds the outputs of {len(given) - len(missing)} nodes.")
        if missing:
            click.echo(f"Not those of: {', '.join(missing)}.")
    ctx.exit(1 if missing else 0)


@rerun.command(cls=UserErrorCommand)
@click.option("--keep-runs", default=2, show_default=True, help="Runs to remember for each node.")
@click.option("--dry-run", is_flag=True, help="Only tells what would go.")
@click.option("--verbose", is_flag=True, help="A line a path instead of one an artifact.")
@json_option
@env_option
@conf_source_option
def gc(
    keep_runs: int,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    env: str,
    conf_source: str | None,
) -> None:
    """Removes versions and progress that no remembered run refers to, and what killed runs left."""
    collect_garbage(keep_runs, dry_run, verbose, as_json, env, conf_source, list)


def collect_garbage(
    keep_runs: int,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
    env: str | None,
    conf_source: str | None,
    more: Callable[[], list[Removed]],
) -> None:
    """What `gc` does, for projects that leave more behind.

    Args:
        keep_runs: as the options of the command, like those that follow.
        dry_run: only tells.
        verbose: tells each path.
        as_json: prints JSON.
        env: the environment.
        conf_source: another conf folder.
        more: removes what lies outside of the data root, or in a dry run looks for it.
    """
    from kedro_rerun import maintenance, render

    session = open_session(env, conf_source)
    root = session.data_root()
    removed = maintenance.collect_garbage(root, session.known_nodes(), keep_runs, dry_run)
    removed += more()
    show(
        removed,
        lambda found: render.render_removed(found, dry_run, root, verbose=verbose),
        as_json,
    )


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
    show(problems, lambda found: render.render_problems(found, deep), as_json)
    ctx.exit(maintenance.EXIT_DAMAGED if problems else maintenance.EXIT_FRESH)


@rerun.command(cls=UserErrorCommand)
@click.option("--all", "every", is_flag=True, help="Lists more than the newest 20.")
@json_option
@env_option
@conf_source_option
def runs(every: bool, as_json: bool, env: str, conf_source: str | None) -> None:
    """Lists past runs, newest first: changed parameters, what ran and how long, scores."""
    from kedro_rerun import looking_back, render_runs
    from kedro_rerun.history import History

    history = History(open_session(env, conf_source).data_root())
    found, damaged = looking_back.list_runs(history), history.damaged()
    shown = found if every or as_json else found[:_MAX_RUNS]
    if as_json:
        click.echo(json.dumps(render_runs.runs_as_json(shown, damaged), indent=2))
    else:
        show_text(render_runs.render_runs(shown, len(found) - len(shown), damaged))


@rerun.command(cls=UserErrorCommand)
@click.argument("first", type=int)
@click.argument("second", type=int)
@json_option
@env_option
@conf_source_option
def diff(first: int, second: int, as_json: bool, env: str, conf_source: str | None) -> None:
    """Shows what differs between the runs FIRST and SECOND: numbers that `runs` tells."""
    from kedro_rerun import looking_back, render_runs
    from kedro_rerun.history import History

    history = History(open_session(env, conf_source).data_root())
    found = looking_back.compare_runs(history, first, second)
    if as_json:
        click.echo(json.dumps(render_runs.difference_as_json(found), indent=2))
    else:
        show_text(render_runs.render_difference(found))


@rerun.command(cls=UserErrorCommand)
@click.option(
    "--params",
    "texts",
    multiple=True,
    required=True,
    metavar="PATH=VALUE,VALUE",
    help="A parameter and its values; several give every combination.",
)
@click.option("--dry-run", is_flag=True, help="Only tells what each setting would run.")
@pipeline_option
@json_option
@env_option
@conf_source_option
@click.pass_context
def sweep(
    ctx: click.Context,
    texts: tuple[str, ...],
    dry_run: bool,
    pipeline: str | None,
    as_json: bool,
    env: str,
    conf_source: str | None,
) -> None:
    """Runs a grid of parameters; what settings have in common, once. Exit code 1 if any failed.

    Give the same command again after a kill: what is finished is fresh.
    """
    from kedro_rerun import render_sweep
    from kedro_rerun.history import History
    from kedro_rerun.sweep import Sweep, parse_grid

    errors = ctx.command.user_errors() if isinstance(ctx.command, UserErrorCommand) else ()
    grid = Sweep(
        parse_grid(texts),
        lambda params: open_session(env, conf_source, params),
        pipeline,
        errors,
    )
    if dry_run:
        planned = grid.planned()
        if as_json:
            click.echo(json.dumps(render_sweep.planned_as_json(planned), indent=2))
        else:
            show_text(render_sweep.render_planned(planned))
        return
    newest, finished = History(grid.data_root).next_number() - 1, []
    for item in grid.run(lambda place: _tell(render_sweep.before(grid, place), as_json), as_json):
        finished.append(item)
        if item.run is None or item.run.number > newest:
            _tell(render_sweep.after(grid, finished), as_json)
    if as_json:
        click.echo(json.dumps(render_sweep.finished_as_json(finished), indent=2))
    else:
        show_text(render_sweep.render_finished(finished))
        click.echo(f"In place is what ran last; back to the environment's own: {grid.command}")
    ctx.exit(0 if all(item.is_done for item in finished) else 1)


def _tell(text: str, as_json: bool) -> None:
    """Progress, away from JSON."""
    click.secho(text, bold=True, err=as_json)


def show_in_viz(pipeline: str | None, rows: Sequence[StatusRow]) -> None:
    """Writes a status for Kedro-Viz.

    Says on standard error what came of it, as standard output may be JSON.
    """
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
        show_text(render(value))


def show_text(renderable: Any) -> None:
    """Prints something of Rich as wide as the terminal is; numbers are not coloured."""
    from rich.console import Console

    Console(highlight=False).print(renderable)
