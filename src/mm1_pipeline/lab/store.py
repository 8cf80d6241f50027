"""Finished runs as three tables in a folder that is committed, so that a grid goes on anywhere.

    runs.parquet        a row a run: who made it from what, its reports, its parameters
    scores.parquet      a row an item: its score, by run, model, task and shots
    training.parquet    a row a logged step: step, loss, and the whole row as JSON

A run is in the store when it has its row in the first table. That one is written last, and rows
of the others count only with the identity that it names: a kill in between leaves what was there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mm1_pipeline.ground.files import replacing, write_json
from mm1_pipeline.lab.identity import Identity
from mm1_pipeline.lab.results import (
    EVALUATION,
    HELD_OUT_LOSS,
    PARAMETERS,
    SCORES,
    read_json,
)

logger = logging.getLogger(__name__)

RUN, MADE_FROM = "run.json", "made_from.json.gz"
RUNS_TABLE, SCORES_TABLE, TRAINING_TABLE = "runs.parquet", "scores.parquet", "training.parquet"
_DOCUMENTS = {
    "about": RUN,
    "made_from": MADE_FROM,
    "evaluation": EVALUATION,
    "held_out_loss": HELD_OUT_LOSS,
    "parameters": PARAMETERS,
}
"""Files of a run's results that are one cell each, as JSON, by the column."""
_KEY = {"run": pa.string(), "identity": pa.string()}
_ITEM = {"model": pa.string(), "asked": pa.string(), "key": pa.string(), "score": pa.float64()}
_STEP = {"stage": pa.string(), "step": pa.int64(), "loss": pa.float64(), "row": pa.string()}
_SCHEMAS = {
    RUNS_TABLE: pa.schema(_KEY | dict.fromkeys(_DOCUMENTS, pa.string())),
    SCORES_TABLE: pa.schema(_KEY | _ITEM),
    TRAINING_TABLE: pa.schema(_KEY | _STEP),
}
_SHOWN = 3


@dataclass(frozen=True)
class RunStore:
    """Tables of finished runs.

    Attributes:
        folder: Made when the first run is put.
        any_code: Whether runs that other code made are taken.
    """

    folder: Path
    any_code: bool = False

    def find(self, name: str, identity: Identity) -> dict[str, Any] | None:
        """A run's row, if it was made from the same; the log says why not.

        Args:
            name: `<arm>/seed<seed>`.
            identity: What the run would be made from here.

        Raises:
            ValueError: A table is damaged.
        """
        stored = self._row(name)
        if stored is None:
            return None
        values = json.loads(stored["made_from"])
        commit = json.loads(stored["about"]).get("commit")
        where = f"{self.folder}: {name}"
        if changes := identity.differences(values):
            more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            logger.warning(
                "%s is not taken, as it was made from other parameters or data: %s%s",
                where,
                "; ".join(changes[:_SHOWN]),
                more,
            )
            return None
        if not identity.has_code_of(values):
            if not self.any_code:
                logger.warning(
                    "%s is not taken, as other code made it (commit %s). Where the change alters "
                    "no result, take it with `any_code: true`.",
                    where,
                    commit,
                )
                return None
            logger.warning("%s is taken, though other code made it (commit %s).", where, commit)
        return stored

    def unpack(self, stored: Mapping[str, Any], target: Path) -> None:
        """Writes a run's results into an empty folder, as `put` found them.

        Args:
            stored: What `find` gave.
            target: The folder.

        Raises:
            ValueError: The other tables lack the run, or a table is damaged.
        """
        for column, file in _DOCUMENTS.items():
            write_json(target / file, json.loads(stored[column]))
        scores: dict[str, dict[str, dict[str, list[Any]]]] = {}
        for row in self._rows_of(SCORES_TABLE, stored):
            entry = scores.setdefault(row["model"], {}).setdefault(
                row["asked"], {"keys": [], "scores": []}
            )
            entry["keys"].append(row["key"])
            entry["scores"].append(row["score"])
        logs: dict[str, list[str]] = {}
        for row in self._rows_of(TRAINING_TABLE, stored):
            logs.setdefault(row["stage"], []).append(row["row"] + "\n")
        if not scores or not logs:
            raise ValueError(
                f"{self.folder}: found {stored['run']} in {RUNS_TABLE} and not in {SCORES_TABLE} "
                f"and {TRAINING_TABLE}, expected it in all. Take the three from one commit."
            )
        write_json(target / SCORES, scores)
        for stage, lines in logs.items():
            (target / f"training_{stage}.jsonl").write_text("".join(lines), encoding="utf-8")

    def has(self, name: str, identity: Identity) -> bool:
        """Whether the very same run is stored."""
        stored = self._row(name)
        return stored is not None and stored["identity"] == identity.digest

    def put(self, name: str, results: Path) -> None:
        """Stores a run, in place of one that was made from something else; all or nothing.

        Args:
            name: `<arm>/seed<seed>`.
            results: Its folder, described by `describe`.
        """
        identity = read_json(results / RUN)["identity"]
        documents = {
            column: json.dumps(read_json(results / file)) for column, file in _DOCUMENTS.items()
        }
        runs = {row["run"]: row for row in self._read(RUNS_TABLE).to_pylist()}
        replaced = runs.get(name, {}).get("identity")
        if replaced not in (None, identity):
            logger.warning("%s: %s, made from something else, is replaced.", self.folder, name)
        # A run that is replaced keeps its rows until the first table no longer names it.
        others = [row["identity"] for row in runs.values() if row["run"] != name]
        kept: list[list[tuple[str, str, Any]]] = [[("run", "!=", name), ("identity", "in", others)]]
        if replaced not in (None, identity):
            kept.append([("run", "==", name), ("identity", "==", replaced)])
        key = {"run": name, "identity": identity}
        self.folder.mkdir(parents=True, exist_ok=True)
        for table, added in (
            (SCORES_TABLE, _scores(results)),
            (TRAINING_TABLE, _training(results)),
        ):
            fresh = pa.Table.from_pylist([key | row for row in added], _SCHEMAS[table])
            self._write(table, pa.concat_tables([self._read(table, kept), fresh]))
        runs[name] = key | documents
        rows = [runs[run] for run in sorted(runs)]
        self._write(RUNS_TABLE, pa.Table.from_pylist(rows, _SCHEMAS[RUNS_TABLE]))

    def names(self) -> list[str]:
        """Names of the stored runs, in order."""
        return self._read(RUNS_TABLE)["run"].to_pylist()

    def training(self, name: str, stage: str) -> list[dict[str, Any]]:
        """Rows of a run's log.

        Args:
            name: `<arm>/seed<seed>`.
            stage: For instance `pretrain`.
        """
        stored = self._row(name)
        rows = self._rows_of(TRAINING_TABLE, stored) if stored else []
        return [json.loads(row["row"]) for row in rows if row["stage"] == stage]

    def _row(self, name: str) -> dict[str, Any] | None:
        found = self._read(RUNS_TABLE, [[("run", "==", name)]]).to_pylist()
        return found[0] if found else None

    def _rows_of(self, table: str, stored: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self._read(table, [[(name, "==", stored[name]) for name in _KEY]]).to_pylist()

    def _read(
        self, table: str, filters: list[list[tuple[str, str, Any]]] | None = None
    ) -> pa.Table:
        """The rows of a table that meet one of the lists of conditions whole."""
        path, expected = self.folder / table, _SCHEMAS[table]
        if not path.exists():
            return expected.empty_table()
        try:
            schema = pq.read_schema(path)
            found = pq.read_table(path, filters=filters) if schema == expected else None
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: found no table that can be read ({error}), expected runs of a grid. Take "
                "it from the last commit, or remove the three tables to run everything again."
            ) from error
        if found is None:
            raise ValueError(
                f"{path}: found the columns {', '.join(schema.names)}, expected "
                f"{', '.join(expected.names)} of the types that `RunStore` writes."
            )
        return found

    def _write(self, table: str, content: pa.Table) -> None:
        with replacing(self.folder / table) as fresh:
            pq.write_table(content, fresh, compression="zstd", compression_level=9)


def describe(results: Path, identity: Identity, about: dict[str, Any]) -> None:
    """Says what a run's results were made from, and by whom.

    Args:
        results: Its folder.
        identity: What decides them.
        about: Commit, device, seconds: what decides nothing.
    """
    write_json(results / MADE_FROM, dict(identity.values))
    write_json(results / RUN, {**about, "identity": identity.digest})


def _scores(results: Path) -> Iterator[dict[str, Any]]:
    for model, tasks in read_json(results / SCORES).items():
        for asked, entry in tasks.items():
            for key, score in zip(entry["keys"], entry["scores"], strict=True):
                yield {"model": model, "asked": asked, "key": key, "score": score}


def _training(results: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(results.glob("training_*.jsonl")):
        stage = path.stem.removeprefix("training_")
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield {"stage": stage, "step": row["step"], "loss": row.get("loss"), "row": line}
