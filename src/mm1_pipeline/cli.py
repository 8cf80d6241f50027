"""Commands of the project: `kedro run` with errors to act on, and `kedro mm1`."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import env_option, validate_conf_source
from kedro.utils import load_obj
from kedro_rerun.errors import hide_secrets, without_secrets

if TYPE_CHECKING:
    from kedro_rerun.session import StalenessSession


class UserErrorCommand(click.Command):
    """A command that shows what a user can mend as one message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command.

        Raises:
            click.ClickException: when configuration, parameters, sources, names or arguments
                cannot be used.
        """
        with warnings.catch_warnings():
            # `--pipeline` and `--pipelines` both work here; OmegaConf's own resolvers warn.
            warnings.filterwarnings("ignore", message=".*--pipeline.*")
            warnings.filterwarnings("ignore", message=".*register_new_resolver.*")
            try:
                return super().invoke(ctx)
            except _user_errors() as error:
                raise click.ClickException(without_secrets(str(error))) from error
            except Exception as error:
                hide_secrets(error)  # Whoever shows a traceback shows the texts of all.
                raise


def _user_errors() -> tuple[type[Exception], ...]:
    from kedro.config import MissingConfigException
    from kedro_rerun.errors import StalenessError
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from mm1_pipeline.comparing import ComparisonError
    from mm1_pipeline.config.validation import ParameterError

    of_project = ParameterError, StalenessError, ComparisonError
    return *of_project, MissingConfigException, OmegaConfBaseException, YAMLError


def _run(**options: Any) -> dict[str, Any]:
    """Kedro's `run`, after a look at the runner: Kedro loads it before it opens the session."""
    from kedro_rerun.errors import StalenessError, unknown_name
    from kedro_rerun.selection import refuse_runner

    try:
        refuse_runner(load_obj(options["runner"] or "SequentialRunner", "kedro.runner"))
    except (AttributeError, ImportError, ValueError) as error:
        if isinstance(error, StalenessError):
            raise
        raise StalenessError(
            unknown_name("--runner", options["runner"], ["SequentialRunner"])
        ) from error
    if unknown := sorted(options["runner_params"].keys() - {"is_async"}):
        raise StalenessError(unknown_name("--runner-params", unknown[0], ["is_async"]))
    return kedro_run.callback(**options)  # pyright: ignore[reportOptionalCall]


@click.group(name="mm1_pipeline")
def cli() -> None:
    """Commands of mm1-pipeline. Give them in a folder of the project, or name --conf-source."""


cli.add_command(
    UserErrorCommand(name="run", callback=_run, params=kedro_run.params, help=kedro_run.help)
)


@cli.group()
def mm1() -> None:
    """What is fresh, what is stale, and why."""


OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path, resolve_path=True)
"""Options are paths of the folder that the command is given in; the session changes it."""

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


@mm1.command(cls=UserErrorCommand)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--key", help="Where in the file the weights are; at the top or `state_dict` else.")
def convert(source: Path, target: Path, key: str | None) -> None:
    """Writes pickled weights (.bin, .pt, .pth) as safetensors, without running the pickle.

    SOURCE is a file of torch.save, or a folder with pytorch_model.bin; TARGET ends in
    .safetensors. Put the model's config.json beside TARGET.
    """
    from mm1_pipeline.models.convert.pickled import convert_pickled

    try:
        written = convert_pickled(source, target, key=key)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{target}: {written['tensors']} tensors, {written['bytes']:,} bytes; "
        f"{written['left_out']} other entries left out."
    )


@mm1.command(cls=UserErrorCommand)
@pipeline_option
@json_option
@params_option
@env_option
@conf_source_option
@click.pass_context
def status(
    ctx: click.Context,
    pipeline: str | None,
    as_json: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Shows a row a node: fresh, stale or missing, and why. Exit code 3 if any is not fresh."""
    from kedro_rerun import maintenance, render

    rows = maintenance.status(_open_session(env, conf_source, params).planner(pipeline))
    _show(rows, render.render_status, as_json)
    ctx.exit(maintenance.exit_code(rows))


@mm1.command(cls=UserErrorCommand)
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

    planner = _open_session(env, conf_source, params).planner(pipeline, node)
    _show(maintenance.explain(planner, node), render.render_explanation, as_json)


@mm1.command(cls=UserErrorCommand)
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

    planner = _open_session(env, conf_source, params).planner(pipeline, node)
    _show([maintenance.accept(planner, node)], render.render_status, as_json=False)


@mm1.command(cls=UserErrorCommand)
@click.option("--keep-runs", default=2, show_default=True, help="Runs to remember for each node.")
@click.option("--dry-run", is_flag=True, help="Only tells what would go.")
@env_option
@conf_source_option
def gc(keep_runs: int, dry_run: bool, env: str, conf_source: str | None) -> None:
    """Removes versions and progress that no remembered run refers to, and what killed runs left."""
    from kedro_rerun import maintenance, render
    from kedro_rerun.artifacts import Removed

    from mm1_pipeline.streams.leftovers import remove_leftovers

    session = _open_session(env, conf_source)
    removed = maintenance.collect_garbage(
        session.data_root(), session.known_nodes(), keep_runs, dry_run
    )
    removed += [Removed(path, size) for path, size in remove_leftovers(dry_run=dry_run)]
    _show(removed, lambda found: render.render_removed(found, dry_run), as_json=False)


@mm1.command(cls=UserErrorCommand)
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

    problems = maintenance.verify(_open_session(env, conf_source).data_root(), deep)
    _show(problems, render.render_problems, as_json)
    ctx.exit(maintenance.EXIT_DAMAGED if problems else maintenance.EXIT_FRESH)


@mm1.command(cls=UserErrorCommand)
@click.option(
    "--output",
    default=None,
    type=click.Path(path_type=Path, resolve_path=True),
    help="Where to; `00_world` beside the environment's other data if not given.",
)
@env_option
@conf_source_option
def world(output: Path | None, env: str, conf_source: str | None) -> None:
    """Draws the lab's synthetic world as raw data, by the parameters `world`."""
    from mm1_pipeline.lab.world import prepare_world

    session = _open_session(env, conf_source)
    parameters = session.load_context().config_loader["parameters"]
    folder = output or session.data_root() / "00_world"
    counts = prepare_world(parameters.get("world", {}), folder)
    click.echo(f"{folder}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@mm1.command(cls=UserErrorCommand)
@click.argument("run_a")
@click.argument("run_b")
@click.option("--model", default=None, help="The model of RUN_A; needed if it has several.")
@click.option("--other-model", default=None, help="The model of RUN_B; as --model if not given.")
@click.option("--html", default=None, type=OUTPUT_FILE, help="Writes a page here.")
@json_option
@env_option
@conf_source_option
def compare(
    run_a: str,
    run_b: str,
    model: str | None,
    other_model: str | None,
    html: Path | None,
    as_json: bool,
    env: str,
    conf_source: str | None,
) -> None:
    """Shows item by item what differs between the predictions of two runs.

    A run is a folder of predictions, a folder of data with one, `CURRENT`, or the beginning of the
    fingerprint of a version that the environment keeps.
    """
    from mm1_pipeline import comparing
    from mm1_pipeline.ground.files import write_text

    root = None
    if not all(Path(run).is_dir() for run in (run_a, run_b)):
        run_a, run_b = (
            str(Path(run).resolve()) if Path(run).is_dir() else run for run in (run_a, run_b)
        )
        root = _open_session(env, conf_source).data_root()
    found = comparing.compare_runs(run_a, run_b, model, other_model, root)
    if html is not None:
        write_text(html, comparing.page(found))
    if as_json:
        click.echo(json.dumps(comparing.data(found), indent=2))
    else:
        from rich.console import Console

        Console().print(comparing.table(found))


@mm1.command(cls=UserErrorCommand)
@click.option("--model", default=None, help="Folder of a checkpoint, or sft, upcycle, pretrain.")
@click.option(
    "--tokenizer",
    default=None,
    type=click.Path(exists=True, path_type=Path, resolve_path=True),
    help="Folder of the tokenizer; the environment's if not given.",
)
@click.option(
    "--shards",
    default=None,
    type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
    help="Shards that the model was trained on, for its image transform.",
)
@click.option("--max-new-tokens", default=128, show_default=True, help="Longest answer.")
@click.option("--page", is_flag=True, help="Serves a page with image upload (extra `chat`).")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the page.")
@click.option("--port", default=7860, show_default=True, help="Port of the page.")
@env_option
@conf_source_option
def chat(
    model: str | None,
    tokenizer: Path | None,
    shards: Path | None,
    max_new_tokens: int,
    page: bool,
    host: str,
    port: int,
    env: str,
    conf_source: str | None,
) -> None:
    """Talks with a checkpoint, in the terminal or on a page in the browser."""
    from mm1_pipeline.chat_terminal import open_chat_model, talk

    here = Path.cwd()
    chat_model = open_chat_model(
        lambda: _open_session(env, conf_source).data_root(),
        model,
        tokenizer,
        shards,
        max_new_tokens,
    )
    os.chdir(here)  # The paths of images that will be typed begin here.
    if page:
        from mm1_pipeline.chat_page import serve

        serve(chat_model, host=host, port=port)
    else:
        talk(chat_model, input, click.echo)


@mm1.command(cls=UserErrorCommand)
@click.option("--device", default=None, help="h100, h200, a100 or l40s.")
@click.option("--num-devices", default=None, type=int, help="Devices that train together.")
@click.option("--mfu", default=None, type=float, help="Share of the peak reached, 0 to 1.")
@click.option("--price", default=None, type=float, help="Of a device an hour.")
@json_option
@params_option
@env_option
@conf_source_option
def plan(
    device: str | None,
    num_devices: int | None,
    mfu: float | None,
    price: float | None,
    as_json: bool,
    params: dict[str, Any],
    env: str,
    conf_source: str | None,
) -> None:
    """Shows what the environment's pre-training takes: operations, memory, hours, cost, data.

    Options replace the parameters `cluster` of the environment.
    """
    from mm1_pipeline.lab import plan_table
    from mm1_pipeline.lab.plan import plan_environment

    raw = _open_session(env, conf_source, params).load_context().config_loader["parameters"]
    options = {
        "device": device,
        "num_devices": num_devices,
        "model_flops_utilisation": mfu,
        "price_per_device_hour": price,
    }
    given = {name: value for name, value in options.items() if value is not None}
    planned = plan_environment(raw, given)
    if as_json:
        click.echo(json.dumps(planned, indent=2))
    else:
        _show(planned, plan_table.render_plan, as_json=False)


def _open_session(
    env: str, conf_source: str | None, params: dict[str, Any] | None = None
) -> StalenessSession:
    from kedro.framework.project import settings

    return settings.SESSION_CLASS.create(env=env, conf_source=conf_source, runtime_params=params)


def _show(value: Any, render: Any, as_json: bool) -> None:
    from kedro_rerun import maintenance
    from rich.console import Console

    if as_json:
        click.echo(json.dumps(maintenance.as_json(value), indent=2))
    else:
        Console().print(render(value))
