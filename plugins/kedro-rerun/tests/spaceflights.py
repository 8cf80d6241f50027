"""A project laid out as Kedro's spaceflights starter, in small, and a quick `kedro` to run it with.

Plain catalogue datasets, results in memory between nodes, one that nobody reads, versioned outputs,
pipelines that are found by their folders.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

FILES = {
    "requirements.txt": "kedro\nkedro-datasets[pandas-csvdataset,pandas-parquetdataset]\n",
    "pyproject.toml": """
        [tool.kedro]
        package_name = "spaceflights"
        project_name = "Spaceflights"
        kedro_init_version = "1.7.0"
        source_dir = "src"
    """,
    "conf/local/.gitkeep": "",
    "conf/base/catalog.yml": """
        companies:
          type: pandas.CSVDataset
          filepath: data/01_raw/companies.csv

        reviews:
          type: pandas.CSVDataset
          filepath: data/01_raw/reviews.csv

        shuttles:
          type: pandas.CSVDataset
          filepath: data/01_raw/shuttles.csv
          load_args: {sep: ";"}

        preprocessed_companies:
          type: pandas.ParquetDataset
          filepath: data/02_intermediate/preprocessed_companies.parquet

        preprocessed_shuttles:
          type: pandas.ParquetDataset
          filepath: data/02_intermediate/preprocessed_shuttles.parquet

        model_input_table:
          type: pandas.ParquetDataset
          filepath: data/03_primary/model_input_table.parquet

        regressor:
          type: json.JSONDataset
          filepath: data/06_models/regressor.json
          versioned: true

        prices_by_shuttle_type:
          type: pandas.CSVDataset
          filepath: data/08_reporting/prices_by_shuttle_type.csv
          versioned: true
    """,
    "conf/base/parameters_data_science.yml": """
        model_options:
          test_size: 0.25
          random_state: 3
          features: [engines, crew, company_rating]
    """,
    "src/spaceflights/__init__.py": '"""A project."""\n',
    "src/spaceflights/settings.py": """
        from kedro.config import OmegaConfigLoader

        CONFIG_LOADER_CLASS = OmegaConfigLoader
        CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "local"}
    """,
    "src/spaceflights/pipeline_registry.py": """
        from kedro.framework.project import find_pipelines


        def register_pipelines():
            pipelines = find_pipelines(raise_errors=True)
            pipelines["__default__"] = sum(pipelines.values())
            return pipelines
    """,
    "src/spaceflights/text.py": '''
        """Helpers of several pipelines."""


        def as_number(column):
            """Of amounts with signs and separators."""
            return strip_signs(column).astype(float)


        def strip_signs(column):
            return column.str.replace(r"[$,%]", "", regex=True)


        def title(name):
            return name.replace("_", " ").capitalize()
    ''',
    "src/spaceflights/pipelines/__init__.py": "",
    "src/spaceflights/pipelines/data_processing/__init__.py": """
        from .pipeline import create_pipeline

        __all__ = ["create_pipeline"]
    """,
    "src/spaceflights/pipelines/data_processing/nodes.py": '''
        import pandas as pd

        from spaceflights.text import as_number


        def preprocess_companies(companies: pd.DataFrame) -> pd.DataFrame:
            """Ratings as numbers."""
            rating = as_number(companies["company_rating"]) / 100
            return companies.assign(company_rating=rating)


        def preprocess_shuttles(shuttles: pd.DataFrame) -> pd.DataFrame:
            """Prices as numbers."""
            # Of the list, without taxes.
            return shuttles.assign(price=as_number(shuttles["price"]))


        def create_model_input_table(shuttles, companies, reviews):
            rated = shuttles.merge(reviews, left_on="id", right_on="shuttle_id").drop(columns="id")
            return rated.merge(companies, left_on="company_id", right_on="id").dropna()
    ''',
    "src/spaceflights/pipelines/data_processing/pipeline.py": """
        from kedro.pipeline import Node, Pipeline

        from .nodes import create_model_input_table, preprocess_companies, preprocess_shuttles


        def create_pipeline(**kwargs):
            return Pipeline([
                Node(
                    preprocess_companies, "companies", "preprocessed_companies",
                    name="preprocess_companies_node",
                ),
                Node(
                    preprocess_shuttles, "shuttles", "preprocessed_shuttles",
                    name="preprocess_shuttles_node",
                ),
                Node(
                    create_model_input_table,
                    ["preprocessed_shuttles", "preprocessed_companies", "reviews"],
                    "model_input_table",
                    name="create_model_input_table_node",
                ),
            ])
    """,
    "src/spaceflights/pipelines/data_science/__init__.py": """
        from .pipeline import create_pipeline

        __all__ = ["create_pipeline"]
    """,
    "src/spaceflights/pipelines/data_science/nodes.py": '''
        import logging

        import numpy as np


        def split_data(table, options: dict):
            """Shuttles to learn from, and shuttles to ask about."""
            shuffled = table.sample(frac=1, random_state=options["random_state"])
            count = int(len(shuffled) * options["test_size"])
            x, y = shuffled[options["features"]], shuffled["price"]
            return x[count:], x[:count], y[count:], y[:count]


        def train_model(x_train, y_train):
            """Least squares."""
            weights, *_ = np.linalg.lstsq(x_train.to_numpy(float), y_train.to_numpy(), rcond=None)
            return weights.round(6).tolist()


        def evaluate_model(regressor, x_test, y_test):
            errors = x_test.to_numpy(float) @ np.array(regressor) - y_test
            logging.getLogger(__name__).info("Mean error %.3f.", errors.abs().mean())
            return {"mae": float(errors.abs().mean())}
    ''',
    "src/spaceflights/pipelines/data_science/pipeline.py": """
        from kedro.pipeline import Node, Pipeline

        from .nodes import evaluate_model, split_data, train_model


        def create_pipeline(**kwargs):
            return Pipeline([
                Node(
                    split_data, ["model_input_table", "params:model_options"],
                    ["X_train", "X_test", "y_train", "y_test"], name="split_data_node",
                ),
                Node(train_model, ["X_train", "y_train"], "regressor", name="train_model_node"),
                Node(
                    evaluate_model, ["regressor", "X_test", "y_test"], "metrics",
                    name="evaluate_model_node",
                ),
            ])
    """,
    "src/spaceflights/pipelines/reporting/__init__.py": """
        from .pipeline import create_pipeline

        __all__ = ["create_pipeline"]
    """,
    "src/spaceflights/pipelines/reporting/nodes.py": '''
        import logging

        from spaceflights.text import title


        def compare_prices(shuttles):
            means = shuttles.groupby("shuttle_type")["price"].mean().reset_index()
            return means.rename(columns={name: title(name) for name in means})


        def announce(prices):
            """A node without outputs."""
            logging.getLogger(__name__).info("%d types of shuttles.", len(prices))
    ''',
    "src/spaceflights/pipelines/reporting/pipeline.py": """
        from kedro.pipeline import Node, Pipeline

        from .nodes import announce, compare_prices


        def create_pipeline(**kwargs):
            return Pipeline([
                Node(
                    compare_prices, "preprocessed_shuttles", "prices_by_shuttle_type",
                    name="compare_prices_node",
                ),
                Node(announce, "prices_by_shuttle_type", None, name="announce_node"),
            ])
    """,
}
NODES = {
    "preprocess_companies_node",
    "preprocess_shuttles_node",
    "create_model_input_table_node",
    "split_data_node",
    "train_model_node",
    "evaluate_model_node",
    "compare_prices_node",
    "announce_node",
}
THREE_LINES = {
    "requirements.txt": ["kedro-rerun"],
    "src/spaceflights/settings.py": [
        "from kedro_rerun import StalenessSession",
        "SESSION_CLASS = StalenessSession",
    ],
}


class Kedro:
    """`kedro` commands, each in a process of its own that has imported Kedro already.

    A process that waits with Kedro, pandas and the datasets imported forks itself for each command;
    so a command takes tenths of a second, and starts as fresh as one typed.
    """

    _SERVER = """
        import json, os, sys
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        import kedro.framework.cli.cli, kedro.framework.session, kedro.runner
        import kedro_datasets.pandas, kedro_datasets.json, pandas, numpy
        from pandas import read_parquet, read_csv

        for line in sys.stdin:
            folder, arguments, output, environment = json.loads(line)
            if not (child := os.fork()):
                for stream in (1, 2):
                    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
                os.chdir(folder)
                os.environ.update(environment)
                sys.argv = ["kedro", *arguments]
                sys.dont_write_bytecode = True
                code = 0
                try:
                    kedro.framework.cli.cli.main()
                except SystemExit as end:
                    code = int(end.code or 0)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    code = 1
                sys.stdout.flush()
                os._exit(code)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
    """

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self._SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "COLUMNS": "300", "DO_NOT_TRACK": "1"},
        )

    def __call__(self, folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code of a command, and all that it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._output.write_text("")
        request = [str(folder), arguments, str(self._output), environment]
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, self._output.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


class Spaceflights:
    """The starter in a folder; `add_three_lines` makes it skip what is fresh."""

    def __init__(self, folder: Path, kedro: Kedro) -> None:
        self.folder, self._kedro = folder, kedro
        self.environment: dict[str, str] = {}
        for name, text in FILES.items():
            self.write(name, textwrap.dedent(text).lstrip())
        numbers = range(40)
        rows = {
            "companies": ["id,company_rating", *(f"{n},{50 + n}%" for n in range(5))],
            "reviews": ["shuttle_id,rating", *(f"{n},{n % 7}" for n in numbers)],
            "shuttles": [
                "id;company_id;shuttle_type;engines;crew;price",
                *(
                    f'{n};{n % 5};T{n % 3};{1 + n % 4};{2 + n % 6};"${1 + n % 4},{n:03}"'
                    for n in numbers
                ),
            ],
        }
        for name, lines in rows.items():
            self.write(f"data/01_raw/{name}.csv", "\n".join(lines) + "\n")

    def copy_to(self, folder: Path) -> Spaceflights:
        """The same project with all that it has made, in another folder."""
        shutil.copytree(self.folder, folder)
        twin = copy.copy(self)
        twin.folder = folder
        return twin

    def add_three_lines(self) -> None:
        for name, lines in THREE_LINES.items():
            text = (self.folder / name).read_text()
            self.write(name, text + "\n".join(lines) + "\n")

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, before: str, after: str) -> None:
        text = (self.folder / name).read_text()
        assert before in text, f"{name} holds no {before!r}"
        self.write(name, text.replace(before, after))

    def call(self, *arguments: str) -> tuple[int, str]:
        return self._kedro(self.folder, *arguments, **self.environment)

    def run(self, *options: str) -> tuple[set[str], str]:
        """The nodes that `kedro run` ran, by Kedro's own word, and what it printed."""
        code, output = self.call("run", *options)
        assert code == 0, output
        ran = {
            name
            for name in NODES
            if any("Running node:" in line and f"{name}:" in line for line in output.splitlines())
        }
        return ran, output

    def status(self) -> dict[str, list[str]]:
        """Reasons of every stale node, as `kedro rerun status --json` prints them."""
        _, output = self.call("rerun", "status", "--json")
        rows = json.loads(output[output.index("[\n") :])
        return {row["node"]: row["reasons"] for row in rows if row["state"] != "fresh"}
