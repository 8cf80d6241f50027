"""Commands of the project: `kedro run` with errors to act on, and `kedro mm1`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import env_option
from kedro.utils import load_obj
from kedro_rerun import cli as rerun


class UserErrorCommand(rerun.UserErrorCommand):
    """A command that shows what a user can mend as one message instead of a traceback."""

    def user_errors(self) -> tuple[type[Exception], ...]:
        """The plug-in's, and those of parameters and of what is compared."""
        from mm1_pipeline.comparing import ComparisonError
        from mm1_pipeline.config.validation import ParameterError

        return ParameterError, ComparisonError, *super().user_errors()

    @classmethod
    def like(cls, command: click.Command, callback: Callable[..., Any]) -> click.Command:
        """A command that takes and says what another does."""
        return cls(name=command.name, callback=callback, params=command.params, help=command.help)


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


cli.add_command(UserErrorCommand.like(kedro_run, _run))


@cli.group()
def mm1() -> None:
    """What is fresh, what is stale, and why."""


OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path, resolve_path=True)
"""Options are paths of the folder that the command is given in; the session changes it."""

for _command in (
    rerun.status, rerun.explain, rerun.accept, rerun.verify, rerun.runs, rerun.diff, rerun.sweep
):  # fmt: skip
    assert _command.callback is not None
    mm1.add_command(UserErrorCommand.like(_command, _command.callback))


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


def _gc(*, dry_run: bool, **options: Any) -> None:
    """The plug-in's `gc`, and what killed trainings left outside of the data root."""
    from kedro_rerun.artifacts import Removed

    from mm1_pipeline.streams.leftovers import remove_leftovers

    def more() -> list[Removed]:
        return [Removed(path, size) for path, size in remove_leftovers(dry_run=dry_run)]

    rerun.collect_garbage(dry_run=dry_run, more=more, **options)


mm1.add_command(UserErrorCommand.like(rerun.gc, _gc))


@mm1.command(cls=UserErrorCommand)
@click.option(
    "--output",
    default=None,
    type=click.Path(path_type=Path, resolve_path=True),
    help="Where to; `00_world` beside the environment's other data if not given.",
)
@env_option
@rerun.conf_source_option
def world(output: Path | None, env: str, conf_source: str | None) -> None:
    """Draws the lab's synthetic world as raw data, by the parameters `world`."""
    from mm1_pipeline.lab.world import prepare_world

    session = rerun.open_session(env, conf_source)
    parameters = session.load_context().config_loader["parameters"]
    folder = output or session.data_root() / "00_world"
    counts = prepare_world(parameters.get("world", {}), folder)
    click.echo(f"{folder}: {', '.join(f'{count} {name}' for name, count in counts.items())}")


@mm1.command(name="new-env", cls=UserErrorCommand)
@click.argument("name")
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path, resolve_path=True),
    help="Folder of raw data: files of one of the formats, or folders of such files.",
)
@rerun.conf_source_option
def new_env(name: str, folder: Path, conf_source: str | None) -> None:
    """Writes the environment NAME, which learns from a folder of yours and from nothing else.

    Formats and columns are told by looking; a part of your pairs is held out for evaluation.
    """
    from mm1_pipeline.environments import write_environment

    place = rerun.open_session(None, conf_source).place()
    os.chdir(str(place["project"]))  # Where the paths of parameters begin.
    for line in write_environment(name, folder, Path(str(place["conf_source"]))):
        click.echo(line)
    given = f" --conf-source={conf_source}" if conf_source else ""
    click.echo(f"Look at the parameters, then: kedro run --env={name}{given}")


@mm1.command(cls=UserErrorCommand)
@env_option
def viz(env: str | None) -> None:
    """Builds the pipeline's picture as a static site in build/, with stale nodes and previews."""
    from kedro_rerun.maintenance import status
    from kedro_rerun.session import find_project

    from mm1_pipeline.viz import build_site

    session = rerun.open_session(env)
    rerun.show_in_viz(None, status(session.planner(None)))
    site = build_site(find_project(Path.cwd()), session.data_root(), env)
    click.echo(f"{site}: look at it with python -m http.server -d {site}")


@mm1.command(cls=UserErrorCommand)
@click.argument("run_a")
@click.argument("run_b")
@click.option("--model", default=None, help="The model of RUN_A; needed if it has several.")
@click.option("--other-model", default=None, help="The model of RUN_B; as --model if not given.")
@click.option("--html", default=None, type=OUTPUT_FILE, help="Writes a page here.")
@rerun.json_option
@env_option
@rerun.conf_source_option
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

    A run is its number as `runs` tells it, a folder of predictions, a folder of data with one,
    `CURRENT`, or the beginning of the fingerprint of a version that the environment keeps.
    """
    from mm1_pipeline import comparing
    from mm1_pipeline.ground.files import write_text

    root = None
    if not all(Path(run).is_dir() for run in (run_a, run_b)):
        run_a, run_b = (
            str(Path(run).resolve()) if Path(run).is_dir() else run for run in (run_a, run_b)
        )
        root = rerun.open_session(env, conf_source).data_root()
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
@rerun.conf_source_option
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
        lambda: rerun.open_session(env, conf_source).data_root(),
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
        talk(chat_model, input, click.echo, lambda text: click.echo(text, nl=False))


@mm1.command(cls=UserErrorCommand)
@click.option("--device", default=None, help="h100, h200, a100 or l40s.")
@click.option("--num-devices", default=None, type=int, help="Devices that train together.")
@click.option("--mfu", default=None, type=float, help="Share of the peak reached, 0 to 1.")
@click.option("--price", default=None, type=float, help="Of a device an hour.")
@rerun.json_option
@rerun.params_option
@env_option
@rerun.conf_source_option
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

    raw = rerun.open_session(env, conf_source, params).load_context().config_loader["parameters"]
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
        rerun.show(planned, plan_table.render_plan, as_json=False)
