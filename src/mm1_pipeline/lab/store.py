"""Finished runs in a folder that is committed, so that a grid goes on anywhere.

<store>/<arm>/seed<seed>/   results (`lab.results`), and
    run.json                who made them: commit, device, seconds
    made_from.json.gz       the run's identity
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mm1_pipeline.lab.folders import whole_folder
from mm1_pipeline.lab.identity import Identity
from mm1_pipeline.lab.results import read_json, write_json

logger = logging.getLogger(__name__)

RUN, MADE_FROM = "run.json", "made_from.json.gz"
_SHOWN = 3


@dataclass(frozen=True)
class RunStore:
    """A folder of finished runs.

    Attributes:
        folder: Made when the first run is put.
        any_code: Whether runs that other code made are taken.
    """

    folder: Path
    any_code: bool = False

    def find(self, name: str, identity: Identity) -> Path | None:
        """A run's folder, if it was made from the same; the log says why not.

        Args:
            name: `<arm>/seed<seed>`.
            identity: What the run would be made from here.
        """
        folder = self.folder / name
        if not folder.is_dir():
            return None
        values = read_json(folder / MADE_FROM)
        commit = read_json(folder / RUN).get("commit")
        if changes := identity.differences(values):
            more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
            logger.warning(
                "%s is not taken, as it was made from other parameters or data: %s%s",
                folder,
                "; ".join(changes[:_SHOWN]),
                more,
            )
            return None
        if not identity.has_code_of(values):
            if not self.any_code:
                logger.warning(
                    "%s is not taken, as other code made it (commit %s). Where the change alters "
                    "no result, take it with `any_code: true`.",
                    folder,
                    commit,
                )
                return None
            logger.warning("%s is taken, though other code made it (commit %s).", folder, commit)
        return folder

    def has(self, name: str, identity: Identity) -> bool:
        """Whether the very same run is stored."""
        path = self.folder / name / RUN
        return path.is_file() and read_json(path).get("identity") == identity.digest

    def put(self, name: str, results: Path) -> None:
        """Stores a run, in place of one that was made from something else; all or nothing.

        Args:
            name: `<arm>/seed<seed>`.
            results: Its folder, described by `describe`.
        """
        target = self.folder / name
        if target.exists():
            logger.warning("%s: a run that was made from something else is replaced.", target)
        with whole_folder(target) as fresh:
            shutil.copytree(results, fresh, dirs_exist_ok=True)


def describe(results: Path, identity: Identity, about: dict[str, Any]) -> None:
    """Says what a run's results were made from, and by whom.

    Args:
        results: Its folder.
        identity: What decides them.
        about: Commit, device, seconds: what decides nothing.
    """
    write_json(results / MADE_FROM, dict(identity.values))
    write_json(results / RUN, {**about, "identity": identity.digest})
