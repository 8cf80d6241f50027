"""Skipping side by side with DVC: what a status and a no-op cost, and what each tool reruns.

The same chain of dummy stages is built twice in a temporary folder: as a minimal Kedro project
that uses `kedro_rerun`, run by `kedro run`; and as a dvc.yaml with a script a stage,
run by `dvc repro` from a virtual environment made here. Stages note in a journal that they ran,
so neither tool's own messages are trusted.

    python benchmarks/staleness.py [--times] [--dvc FOLDER]

`--times` leaves the edits out; `--dvc` names a virtual environment that has DVC, so that none is
made. Prints Markdown tables, then one JSON object as the last line. Commands of both tools follow
each other in pairs; a ratio is DVC's time over ours, the median of all pairs: above 1, ours is
faster. CPU seconds are those of the process and its children, user and system: where other programs
run beside, they differ less than wall time does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DVC_VERSION = "3.67.1"
NUM_PAIRS = 7
STAGES = ("ingest", "clean", "shuffle", "tokenize", "pack", "train", "evaluate", "report")
HELPERS = {
    "tokenize": "common.cut",
    "train": "tuning.tune",
    "evaluate": "scoring.score",
}
"""Helper that one stage alone uses, as module.function; `common` also holds one for all."""
DECLARED = {"train": ("tuning",)}
"""Helper modules named in dvc.yaml beside `common`; that of `evaluate` is forgotten there."""
WHOLE_GROUP = "pack"
"""Stage whose whole parameter group is named in dvc.yaml; the others name `level` only."""

SHARED_FILES = {
    "src/chain/__init__.py": '"""Dummy stages."""\n',
    "src/chain/common.py": '''
        """Helpers of several stages."""


        def tidy(text):
            """Strips."""
            return text.strip()


        def cut(text):
            return text[:40]
    ''',
    "src/chain/tuning.py": '''
        """Helper of one stage."""


        def tune(text):
            return text.upper()
    ''',
    "src/chain/scoring.py": '''
        """Helper of one stage."""


        def score(text):
            return f"{len(text)} {text}"
    ''',
    "src/chain/journal.py": '''
        """Notes which stages really ran."""

        import os


        def note(stage):
            with open(os.environ["CHAIN_JOURNAL"], "a") as journal:
                journal.write(stage + chr(10))
    ''',
    "raw/lines.txt": "one \ntwo\nthree\n",
}
STAGE = '''
    """The stage {name}."""

    from chain.common import tidy
    from chain.journal import note
    from chain.{module} import {function} as change
    {more_imports}

    def run(text{text_type}, config{config_type}){result_type}:
        """Changes every line."""
        # Lines keep their order.
        note("{name}")
        return "".join(f"{{change(tidy(line))}} {{config.level}}" + chr(10)
                       for line in text.splitlines())
'''
KEDRO_FILES = {
    "pyproject.toml": """
        [tool.kedro]
        package_name = "chain"
        project_name = "chain"
        kedro_init_version = "1.7.0"
        source_dir = "src"
    """,
    "src/chain/settings.py": """
        from kedro_rerun.components import Settings
        from kedro_rerun.session import session_class

        SESSION_CLASS = session_class(Settings(packages=("chain",)))
        CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "local"}
    """,
    "src/chain/parameters.py": """
        from dataclasses import dataclass, field


        @dataclass(frozen=True)
        class StageConfig:
            level: int
            log_interval: int = field(default=1, metadata={"operational": True})
    """,
    "conf/base/globals.yml": "data_root: data\n",
    "conf/local/parameters.yml": "{}\n",
}
DVC_MAIN = """

    if __name__ == "__main__":
        from chain.command import main

        main("{name}", run)
"""
DVC_COMMAND = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    import yaml


    def main(stage, run):
        config = yaml.safe_load(Path("params.yaml").read_text())[stage]
        source, target = map(Path, sys.argv[1:])
        target.write_text(run(source.read_text(), SimpleNamespace(**config)))
"""


class Seconds(NamedTuple):
    """How long a process took."""

    wall: float
    cpu: float


def timed(action: Callable[[], object]) -> Seconds:
    """Times the child processes of an action."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    action()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(wall, cpu)


class Project:
    """The chain in a folder of its own, run by one tool.

    Args:
        folder: where it is; its state right after the first run is kept beside it.
        command: what runs it.
        status: what tells its status.
        parameters: path of the file with parameters.
        environment: environment variables of the command.
    """

    def __init__(
        self,
        folder: Path,
        command: list[str],
        status: list[str],
        parameters: str,
        environment: dict[str, str],
    ) -> None:
        self.folder = folder
        self._command = command
        self._status = status
        self._parameters = parameters
        self.journal = folder.with_name(f"{folder.name}.journal")
        self._environment = {
            **os.environ,
            **environment,
            "CHAIN_JOURNAL": str(self.journal),
            "DO_NOT_TRACK": "1",
            "PYTHONDONTWRITEBYTECODE": "",
        }

    @property
    def _baseline(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.baseline")

    def write(self, files: dict[str, str]) -> None:
        """Writes files by their path inside the project."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).lstrip("\n"))

    def execute(self, command: list[str]) -> None:
        """Runs a command inside the project; stops the benchmark where it fails."""
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            sys.exit(f"{Path(command[0]).name} {command[1]} failed:\n{result.stdout[-4000:]}")

    def run(self, *options: str) -> list[str]:
        """Runs the chain and tells which stages ran."""
        self.journal.write_text("")
        self.execute([*self._command, *options])
        return self.journal.read_text().split()

    def run_fresh(self) -> Seconds:
        """Time of the whole process of a run in which everything is fresh."""
        ran: list[str] = []
        seconds = timed(lambda: ran.extend(self.run()))
        assert not ran, f"{self._command[0]} ran {ran} although all was fresh"
        return seconds

    def status(self) -> Seconds:
        """Time of the whole process of a status that finds everything fresh."""
        return timed(lambda: self.execute(self._status))

    def keep_baseline(self) -> None:
        """Remembers the present state."""
        shutil.copytree(self.folder, self._baseline)

    def restore(self) -> None:
        """Goes back to the remembered state, and lets the tool settle there."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._baseline, self.folder)
        self.run_fresh()

    def outputs(self) -> dict[str, str]:
        """Content of each stage's output."""
        return {stage: (self.folder / f"data/{stage}.txt").read_text() for stage in STAGES}

    def edit(self, name: str, before: str, after: str) -> None:
        """Replaces a text in a file, named by its path or as `parameters`."""
        path = self.folder / (self._parameters if name == "parameters" else name)
        text = path.read_text()
        assert before in text, f"{name} holds no {before!r}"
        path.write_text(text.replace(before, after, 1))


@dataclass(frozen=True)
class Edit:
    """One row of the table."""

    title: str
    apply: Callable[[Project], object]


def replacing(name: str, before: str, after: str) -> Callable[[Project], None]:
    """An edit that replaces a text in a file."""
    return lambda project: project.edit(name, before, after)


def set_parameter(stage: str, before: str, after: str) -> Callable[[Project], None]:
    """An edit of one parameter of a stage."""
    return replacing("parameters", f"{stage}: {{{before}", f"{stage}: {{{after}")


def go_and_come_back(project: Project) -> None:
    """Runs with another parameter, then sets the first one again."""
    set_parameter("train", "level: 6", "level: 60")(project)
    project.run()
    set_parameter("train", "level: 60", "level: 6")(project)


def later(project: Project) -> None:
    """Moves the raw file's time a minute on."""
    path = project.folder / "raw/lines.txt"
    os.utime(path, (time.time() + 60, time.time() + 60))


UNUSED = "def cut(text):"
EDITS = (
    Edit("a parameter of `train`", set_parameter("train", "level: 6", "level: 7")),
    Edit(
        "an operational parameter, left out of dvc.yaml",
        set_parameter("train", "level: 6, log_interval: 1", "level: 6, log_interval: 5"),
    ),
    Edit(
        "an operational parameter of a group that dvc.yaml names as a whole",
        set_parameter("pack", "level: 5, log_interval: 1", "level: 5, log_interval: 5"),
    ),
    Edit(
        "a comment in the code of `train`",
        replacing("src/chain/train.py", "# Lines keep", "# All lines keep"),
    ),
    Edit(
        "a docstring in the code of `train`",
        replacing("src/chain/train.py", "Changes every", "Alters every"),
    ),
    Edit(
        "the code of `train`",
        replacing("src/chain/train.py", "{config.level}", "= {config.level}"),
    ),
    Edit(
        "a helper module of `train` alone, named in dvc.yaml",
        replacing("src/chain/tuning.py", "upper", "title"),
    ),
    Edit(
        "a helper module of `evaluate` alone, forgotten in dvc.yaml",
        replacing("src/chain/scoring.py", "len(text)", "-len(text)"),
    ),
    Edit(
        "a helper of `tokenize` alone, in a module that all stages import",
        replacing("src/chain/common.py", "[:40]", "[:2]"),
    ),
    Edit(
        "an unused function added to that module",
        replacing("src/chain/common.py", UNUSED, f"def unused():\n    return 1\n\n\n{UNUSED}"),
    ),
    Edit(
        "a helper that all stages use",
        replacing("src/chain/common.py", "text.strip()", "'-' + text.strip()"),
    ),
    Edit("the raw file's time only", later),
    Edit("the raw file's content", replacing("raw/lines.txt", "two", "zwei")),
    Edit(
        "the raw file's content, which `ingest` makes equal again",
        replacing("raw/lines.txt", "one ", "one  "),
    ),
    Edit(
        "the output of `pack` deleted", lambda project: (project.folder / "data/pack.txt").unlink()
    ),
    Edit("the output of `pack` tampered with", replacing("data/pack.txt", "one", "uno")),
    Edit("a parameter of `train` A → B → A, the last run", go_and_come_back),
)


def build_kedro(folder: Path) -> Project:
    """Builds the chain as a Kedro project that uses `kedro_rerun`."""
    kedro = str(Path(sys.executable).with_name("kedro"))
    run, status = [kedro, "run"], [kedro, "rerun", "status"]
    project = Project(folder, run, status, "conf/base/parameters.yml", {})
    nodes, datasets, previous = [], ["raw"], "raw"
    for stage in STAGES:
        nodes.append(
            f'node({stage}.run, ["{previous}", "params:{stage}"], "{stage}", name="{stage}"),'
        )
        previous = stage
        datasets.append(stage)
    places = {name: f"data/{name}.txt" for name in datasets} | {"raw": "raw/lines.txt"}
    typing = {
        "more_imports": "from chain.parameters import StageConfig\n",
        "text_type": ": str",
        "config_type": ": StageConfig",
        "result_type": " -> str",
    }
    project.write(SHARED_FILES | KEDRO_FILES | stage_files(typing, ""))
    project.write(
        {
            "src/chain/pipeline_registry.py": "from kedro.pipeline import Pipeline, node\n\n"
            f"from chain import {', '.join(STAGES)}\n\n\n"
            "def register_pipelines():\n    return {'__default__': Pipeline([\n        "
            + "\n        ".join(nodes)
            + "\n    ])}\n",
            "conf/base/catalog.yml": "".join(
                f"{name}: {{type: text.TextDataset, filepath: {place}}}\n"
                for name, place in places.items()
            ),
            "conf/base/parameters.yml": parameters_text(),
        }
    )
    return project


def dvc_project(folder: Path, environment_folder: Path) -> Project:
    """A project of DVC, without files yet."""
    programs = environment_folder / "bin"
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        "DVC_NO_ANALYTICS": "1",
        # Nothing of the user's own settings and caches takes part.
        "DVC_GLOBAL_CONFIG_DIR": str(environment_folder / "config"),
        "DVC_SYSTEM_CONFIG_DIR": str(environment_folder / "config"),
        "DVC_SITE_CACHE_DIR": str(environment_folder / "cache"),
    }
    dvc = str(programs / "dvc")
    return Project(folder, [dvc, "repro"], [dvc, "status"], "params.yaml", environment)


def begin_dvc(project: Project, environment_folder: Path) -> None:
    """Makes a folder one of DVC's."""
    dvc = str(environment_folder / "bin" / "dvc")
    project.execute([dvc, "init", "--no-scm", "--quiet"])
    project.execute([dvc, "config", "core.analytics", "false"])
    project.execute([dvc, "config", "core.check_update", "false"])


def build_dvc(folder: Path, environment_folder: Path) -> Project:
    """Builds the chain for `dvc repro`."""
    project = dvc_project(folder, environment_folder)
    untyped: dict[str, str] = dict.fromkeys(
        ("more_imports", "text_type", "config_type", "result_type"), ""
    )
    project.write(SHARED_FILES | stage_files(untyped, DVC_MAIN))
    project.write(
        {
            "src/chain/command.py": DVC_COMMAND,
            "params.yaml": parameters_text(),
            "dvc.yaml": describe_dvc_stages(),
        }
    )
    begin_dvc(project, environment_folder)
    (folder / "data").mkdir()
    return project


def stage_files(typing: dict[str, str], ending: str) -> dict[str, str]:
    """Source of every stage: the same for both tools but for types and the script's ending."""
    files = {}
    for stage in STAGES:
        module, function = HELPERS.get(stage, "common.tidy").split(".")
        source = textwrap.dedent(STAGE).format(
            name=stage, module=module, function=function, **typing
        )
        files[f"src/chain/{stage}.py"] = source + textwrap.dedent(ending).format(name=stage)
    return files


def parameters_text() -> str:
    """The parameter file of either tool."""
    lines = (f"{s}: {{level: {i}, log_interval: 1}}\n" for i, s in enumerate(STAGES, start=1))
    return "".join(lines)


def describe_dvc_stages() -> str:
    """dvc.yaml: scripts, helpers, inputs and single parameters declared as its docs advise."""
    stages, source = {}, "raw/lines.txt"
    for stage in STAGES:
        target = f"data/{stage}.txt"
        modules = (stage, "common", *DECLARED.get(stage, ()))
        stages[stage] = {
            "cmd": f"python -m chain.{stage} {source} {target}",
            "deps": [source, *(f"src/chain/{module}.py" for module in modules)],
            "params": [stage if stage == WHOLE_GROUP else f"{stage}.level"],
            "outs": [target],
        }
        source = target
    return json.dumps({"stages": stages}, indent=1)  # JSON is YAML.


def install_dvc(folder: Path) -> None:
    """Makes a virtual environment with DVC."""
    venv.create(folder, with_pip=True, symlinks=True)
    command = [str(folder / "bin/python"), "-m", "pip", "install", "-q", f"dvc=={DVC_VERSION}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(
            f"DVC {DVC_VERSION} could not be installed, so there is nothing to compare with. pip "
            f"needs access to a package index. It said:\n{result.stderr[-2000:]}"
        )


def compare(edit: Edit, ours: Project, dvc: Project, fresh: dict[str, str]) -> list[str]:
    """Applies one edit to both projects.

    Args:
        edit: what to change.
        ours: the Kedro project.
        dvc: the DVC project.
        fresh: each stage's output before the edit.

    Returns:
        The cells of its row.
    """
    ran, made = [], []
    for project in (ours, dvc):
        project.restore()
        edit.apply(project)
        ran.append(project.run())
        made.append(project.outputs())
    # Plain Kedro without skipping shows what the outputs should be.
    everything = ours.run("--runner=SequentialRunner")
    assert tuple(everything) == STAGES, "a run without skipping runs every stage"
    expected = ours.outputs()
    cells = [name_stages([stage for stage in STAGES if expected[stage] != fresh[stage]])]
    for stages, outputs in zip(ran, made, strict=True):
        wrong = "" if outputs == expected else " (**wrong results kept**)"
        cells.append(name_stages(stages) + wrong)
    return [edit.title, *cells]


def name_stages(stages: list[str]) -> str:
    """A cell of the table."""
    if len(stages) == len(STAGES):
        return f"all {len(STAGES)}"
    return ", ".join(stages) or "none"


def print_table(rows: list[list[str]]) -> None:
    """Prints the rows as Markdown."""
    print("| edit | results it changes | reruns: ours | reruns: dvc repro |")
    print("|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def compare_times(ours: Project, dvc: Project) -> dict[str, dict[str, float]]:
    """Times both tools' commands in pairs, and prints a table.

    Returns:
        Seconds of ours and the ratios, by command.
    """
    print("| | ours: wall, CPU | DVC: wall, CPU | DVC / ours: wall | DVC / ours: CPU |")
    print("|---|---|---|---|---|")
    told = {}
    for name, command in (("status", Project.status), ("noop", Project.run_fresh)):
        for project in (ours, dvc):
            command(project)  # Caches of modules and hashes fill.
        pairs = [(command(ours), command(dvc)) for _ in range(NUM_PAIRS)]
        cells, numbers = [name], {}
        for tool, times in zip(("ours", "dvc"), zip(*pairs, strict=True), strict=True):
            medians = Seconds(*(statistics.median(column) for column in zip(*times, strict=True)))
            cells.append(f"{medians.wall:.2f} s, {medians.cpu:.2f} s")
            numbers |= {f"{tool}_wall": medians.wall, f"{tool}_cpu": medians.cpu}
        for kind in Seconds._fields:
            ratios = sorted(getattr(theirs, kind) / getattr(own, kind) for own, theirs in pairs)
            middle = statistics.median(ratios)
            cells.append(f"{middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
            numbers[f"vs_dvc_{kind}"] = middle
        print(f"| {' | '.join(cells)} |", flush=True)
        told[name] = {key: round(value, 3) for key, value in numbers.items()}
    return told


def main() -> None:
    """Builds both projects, times what finds nothing to do, and applies the edits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", action="store_true", help="Leaves the edits out.")
    parser.add_argument("--dvc", type=Path, help="A virtual environment that has DVC.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = arguments.dvc or folder / "environment"
        if arguments.dvc is None:
            install_dvc(environment)
        ours = build_kedro(folder / "kedro")
        dvc = build_dvc(folder / "dvc", environment)
        for project in (ours, dvc):
            assert tuple(project.run()) == STAGES, "the first run runs every stage"
            project.run_fresh()
            project.keep_baseline()
        assert ours.outputs() == dvc.outputs(), "both chains compute the same"
        times = compare_times(ours, dvc)
        if not arguments.times:
            fresh = ours.outputs()
            print_table([compare(edit, ours, dvc, fresh) for edit in EDITS])
    print(json.dumps(times))


if __name__ == "__main__":
    main()
