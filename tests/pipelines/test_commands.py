"""The commands as users give them: wherever in the project, from a wheel, with misspelt names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from mm1_pipeline.cli import cli

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "kedro-rerun"
SOURCES = os.pathsep.join([str(ROOT / "src"), str(PLUGIN / "src")])


@pytest.fixture(autouse=True)
def project(monkeypatch):
    bootstrap_project(ROOT)
    monkeypatch.chdir(ROOT)  # And back, whatever a session changes it to.


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--env=smok"], "--env: found 'smok'; did you mean 'smoke'? There are: base, "),
        (["mm1", "status", "--env=smok"], "--env: found 'smok'; did you mean 'smoke'?"),
        (["run", "--pipeline=ingst"], "--pipelines: found 'ingst'; did you mean 'ingest'?"),
        (["run", "--pipelines=shard,ingst"], "--pipelines: found 'ingst'; did you mean 'ingest'?"),
        (["run", "--tags=ingest,shrd"], "--tags: found 'shrd'; did you mean 'shard'?"),
        (["run", "--nodes=pack_shard"], "--nodes: found 'pack_shard'; did you mean 'pack_shards'?"),
        (["run", "--from-nodes=fine_tun"], "--from-nodes: found 'fine_tun'; did you mean"),
        (["run", "--to-nodes=fine_tun"], "--to-nodes: found 'fine_tun'; did you mean 'fine_tune'?"),
        (
            ["run", "--to-nodes=export_upcycled"],
            "found 'export_upcycled', which is no node of __default__ but of: export.",
        ),
        (["run", "--from-inputs=record"], "--from-inputs: found 'record'; did you mean 'records'?"),
        (["run", "--to-outputs=record"], "--to-outputs: found 'record'; did you mean 'records'?"),
        (["run", "--load-versions=record:1"], "--load-versions: found 'record'; did you mean"),
        (["run", "--namespaces=x"], "--namespaces: found 'x'; there are: none."),
        (
            ["run", "--nodes=pack_shards", "--tags=sft"],
            "Found no node of __default__ that fits all of: tags ['sft'], node_names",
        ),
        (["run", "--runner=SequentialRuner"], "did you mean 'SequentialRunner'?"),
        (["run", "--runner=no.such.Runner"], "--runner: found 'no.such.Runner'; there are: Seq"),
        (["run", "--runner=ThreadRunner"], "--runner: found ThreadRunner, expected none, or Seq"),
        (["run", "--runner=ParallelRunner"], "--runner: found ParallelRunner, expected none, or"),
        (["run", "--runner-params=workers=2"], "--runner-params: found 'workers'"),
        (["run", "--params=igest.x=3"], "igest: unknown parameter; did you mean `ingest`?"),
        (["run", "--params=sft.optimiser.lr=3"], "sft.optimiser: unknown parameter; did you mean"),
        (["mm1", "status", "--pipeline=ingst"], "--pipeline: found 'ingst'; did you mean 'ingest'"),
        (["mm1", "explain", "fine_tun"], "NODE: found 'fine_tun'; did you mean 'fine_tune'?"),
        (["mm1", "accept", "fine_tun"], "NODE: found 'fine_tun'; did you mean 'fine_tune'?"),
        (
            ["mm1", "explain", "fine_tune", "--pipeline=ingest"],
            "NODE: found 'fine_tune', which is no node of ingest but of: __default__, ",
        ),
        (["mm1", "gc", "--env=smok"], "did you mean 'smoke'?"),
        (["mm1", "stats"], "No such command 'stats'"),
    ],
)
def test_a_misspelt_name_is_one_error_with_the_nearest(arguments, told):
    result = invoke(*arguments)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit), "a traceback"
    assert told in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "text"),
    [("parameters.yml", "ingest: ["), ("globals.yml", "seed: ${nothing}"), ("catalog.yml", "{")],
)
def test_configuration_that_cannot_be_read_is_one_error(smoke_project, name, text):
    (smoke_project.folder / "conf" / "smoke" / name).write_text(text)
    conf = smoke_project.folder / "conf"
    result = invoke("mm1", "status", "--env=smoke", f"--conf-source={conf}")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), "a traceback"
    assert "Error: " in result.output


def test_runners_are_refused_before_the_session_opens_whoever_asks():
    from kedro.framework.project import settings
    from kedro.runner import ThreadRunner

    session = settings.SESSION_CLASS.create(env="smoke")
    with pytest.raises(ValueError, match="found ThreadRunner, expected none, or SequentialRunner"):
        session.run(runner=ThreadRunner())


def explain(smoke_project, *arguments: str) -> dict:
    conf = os.path.relpath(smoke_project.folder / "conf")
    options = ("--env=smoke", f"--conf-source={conf}", "--json")
    result = invoke("mm1", "explain", "ingest_evaluation", *options, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_paths_begin_at_the_project_wherever_the_command_is_given(smoke_project, monkeypatch):
    from_root = explain(smoke_project)
    monkeypatch.chdir(ROOT / "data" / "sample" / "sft_llava")
    from_below = explain(smoke_project)
    assert from_below["components"] == from_root["components"]
    read = [value for name, value in from_root["components"].items() if "input:ingest" in name]
    assert read
    assert "absent" not in read


def test_a_task_file_of_ones_own_is_found_from_everywhere(smoke_project, monkeypatch):
    # Validation itself reads task files, so it must know where paths begin as well.
    task = os.path.relpath(smoke_project.folder / "mine.yml", ROOT)
    (smoke_project.folder / "mine.yml").write_text("metric: exact_match\nprompt: '{question}'\n")
    smoke_project.set_parameters(evaluate={"tasks": {"sample_vqa": {"task": task}}})
    conf = smoke_project.folder / "conf"
    monkeypatch.chdir(ROOT / "docs")
    result = invoke("mm1", "plan", "--env=smoke", f"--conf-source={conf}")
    assert result.exit_code == 0, result.output


def test_a_session_of_kedro_itself_finds_paths_from_a_folder_below(smoke_project, monkeypatch):
    """As in a notebook: `context.catalog`, then functions of the library."""
    from mm1_pipeline.corpus.preflight import check_sources

    monkeypatch.chdir(ROOT / "docs")
    conf = os.path.relpath(smoke_project.folder / "conf")
    context = KedroSession.create(ROOT, env="smoke", conf_source=conf).load_context()
    check_sources(context.catalog.load("params:ingest"))
    assert "vision_pretrain" in context.params


# The console script, in processes of its own


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a wheel installs it, in a folder of its own."""
    sources, site = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (ROOT, PLUGIN):
        source = sources / folder.name
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(folder / name, source)
        shutil.copytree(folder / "src", source / "src", ignore=ignored)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    subprocess.run([*command, *map(str, sources.iterdir())], check=True)
    return site


@pytest.fixture
def user_folder(tmp_path) -> Path:
    """What a user of the wheel has: configuration and data."""
    shutil.copytree(ROOT / "conf", tmp_path / "user" / "conf")
    (tmp_path / "user" / "conf" / "local").mkdir(exist_ok=True)
    (tmp_path / "user" / "data").mkdir()
    (tmp_path / "user" / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    return tmp_path / "user"


def run_installed(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(site / "bin" / "mm1-pipeline"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_the_wheel_runs_in_a_folder_with_configuration_and_data(installed, user_folder):
    below = user_folder / "notes"
    below.mkdir()
    nodes = ("ingest_evaluation", "index_evaluation", "ingest_pretraining")
    node = ("--env=smoke", f"--nodes={','.join(nodes)}")
    few = "--params=ingest.sources.web_documents.max_records=1"
    ran = run_installed(installed, below, "run", *node, few)
    assert ran.returncode == 0, ran.stderr
    assert "Ran 3 of 3 nodes" in ran.stdout
    assert (user_folder / "data" / "smoke" / "03_primary" / "records" / "CURRENT").exists()
    assert list(below.iterdir()) == []
    # The same code and data, found through the sources and from above: nothing is stale.
    environment = {**os.environ, "PYTHONPATH": SOURCES, "COLUMNS": "200"}
    status = ("mm1", "status", "--env=smoke", "--pipeline=ingest", few)
    seen = subprocess.run(
        [sys.executable, "-m", "mm1_pipeline", *status, "--json"],
        cwd=user_folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    states = {row["node"]: row["state"] for row in json.loads(seen.stdout)}
    assert {states.pop(node) for node in nodes} == {"fresh"}, seen.stderr
    assert set(states.values()) == {"missing"}


def test_the_wheel_outside_of_a_project_says_what_it_needs(installed, tmp_path, user_folder):
    told = run_installed(installed, tmp_path, "--help")
    assert told.returncode == 0
    assert {"mm1", "run"} <= {line.split()[0] for line in told.stdout.splitlines() if line.strip()}
    refused = run_installed(installed, tmp_path, "mm1", "status", "--env=smoke")
    assert refused.returncode == 1
    assert f"Found no configuration in {tmp_path / 'conf'}: expected a folder" in refused.stderr
    assert "--conf-source" in refused.stderr
    elsewhere = run_installed(
        installed,
        tmp_path,
        "run",
        "--env=smoke",
        "--nodes=ingest_evaluation,index_evaluation,ingest_pretraining",
        "--conf-source=user/conf",
    )
    assert elsewhere.returncode == 1
    assert "found nothing at 'data/sample/captions_openclipart_wds'" in elsewhere.stderr
    assert f"Relative paths begin at {tmp_path}" in elsewhere.stderr


@pytest.mark.parametrize(
    ("group", "path"),
    [
        ("evaluate", ("tasks",)),
        ("evaluate", ("text_tasks",)),
        ("ingest", ("sources",)),
        ("pretrain", ("mixture", "streams")),
        ("pretrain", ("mixture", "streams", "caption", "sources")),
        ("ablate", ("grid", "arms")),
        ("lr_law", ("sizes",)),
    ],
)
@pytest.mark.parametrize(
    "name", ["../out", "a/b", "/etc/x", "..", "", ".hidden", "a\nb", "é", "a" * 101]
)
def test_names_that_would_lead_out_of_the_data_root_are_refused(group, path, name):
    from kedro.framework.project import pipelines
    from kedro.validation.type_extractor import TypeExtractor

    from mm1_pipeline.config.validation import ParameterError, check_parameters

    cls = TypeExtractor(dict(pipelines)).extract_types_from_pipelines()[group]
    raw: dict = {}
    inner = raw
    for part in path:
        inner = inner.setdefault(part, {})
    inner[name] = {}
    with pytest.raises(ParameterError) as refused:
        check_parameters({group: raw}, {group: cls})
    assert f"{group}.{'.'.join(path)}: found the name {name!r}, expected" in str(refused.value)


SECRET = "hunter2-not-real"


ADDRESSES = {
    "text": f"http://user:{SECRET}@127.0.0.1:1/x/",
    "web_documents": f"s3://key:{SECRET}@bucket/x",
    "instructions": f"https://127.0.0.1:1/x?api_key={SECRET}",
    "digit_strips": f"ftp://user:{SECRET}@127.0.0.1:1/x",
}


def test_what_lets_in_of_an_address_is_in_no_message_and_no_file(smoke_project):
    """Nor are keys of the environment."""
    keys = {"HF_TOKEN": f"hf_{SECRET}", "OPENAI_API_KEY": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    options = ("--env=smoke", f"--conf-source={smoke_project.folder / 'conf'}")
    sources = [f"ingest.sources.{name}.path={address}" for name, address in ADDRESSES.items()]
    param = f"--params={','.join(sources)}"
    for command in (
        (
            "run",
            "--nodes=ingest_evaluation,index_evaluation,ingest_pretraining,ingest_conversations",
            *options,
            param,
        ),
        ("mm1", "status", "--pipeline=ingest", *options, param),
    ):
        told = subprocess.run(
            [sys.executable, "-m", "mm1_pipeline", *command],
            env={**os.environ, **keys, "PYTHONPATH": SOURCES, "COLUMNS": "400"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert SECRET not in told.stdout + told.stderr, told.stderr[-3000:]
        if command[0] == "run":
            told_of = [name for name in ADDRESSES if f"ingest.sources.{name}.path" in told.stderr]
            assert told_of == list(ADDRESSES), told.stderr[-3000:]
    files = [path for path in smoke_project.folder.rglob("*") if path.is_file()]
    assert any("conf" not in path.parts for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
