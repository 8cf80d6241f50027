"""What Kedro-Viz reads to colour a pipeline: fresh nodes as run, all others as failed."""

from __future__ import annotations

import datetime
import hashlib
import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kedro.pipeline.node import Node

from kedro_rerun.files import write_atomically
from kedro_rerun.maintenance import StatusRow
from kedro_rerun.verdict import State

EVENTS = Path(".viz") / "kedro_pipeline_events.json"
"""Below the project. Kedro-Viz writes it in a run of the whole pipeline, and shows what it says."""


def run_events(rows: Iterable[StatusRow], nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """A status in the events of a run, which is all that Kedro-Viz has colours for.

    Source: Kedro-Viz 12.5, `PipelineRunStatusHook`, which writes such events, and its `run-status`
    response, which reads them; a test reads ours by the latter.

    Args:
        rows: of `maintenance.status`.
        nodes: of the same pipeline, in any order.

    Returns:
        An event a node, and one that ends the run. A fresh node succeeded, in the seconds that its
        outputs took to make. Any other failed, and its error says what `status` says, escaped, as
        Kedro-Viz puts it into its page as it is.
    """
    by_name = {node.name: node for node in nodes}
    events, stale = [], []
    for row in rows:
        # As Kedro-Viz names a node; of the rest of a row it wants nothing.
        digest = hashlib.sha1(str(by_name[row.node]).encode(), usedforsecurity=False).hexdigest()
        about = {"node": row.node, "node_id": digest[:8]}
        if row.state == State.FRESH:
            succeeded = {"event": "after_node_run", "status": "success"}
            events.append({**succeeded, **about, "duration": row.seconds or 0.0})
        else:
            stale.append(row.node)
            may = "" if row.certain else ", if the nodes before it make something new"
            told = "\n".join((f"{row.state}: would run{may}", *row.reasons))
            failed = {"event": "on_node_error", "traceback": ""}
            events.append({**failed, **about, "error": html.escape(told)})
    end = {"timestamp": datetime.datetime.now(datetime.UTC).isoformat(), "traceback": ""}
    if stale:
        told = f"{len(stale)} of {len(events)} nodes would run: {', '.join(stale)}"
        events.append({"event": "on_pipeline_error", **end, "error": html.escape(told)})
    else:
        events.append({"event": "after_pipeline_run", **end})
    return events


def write_run_events(project: Path, events: list[dict[str, Any]]) -> Path:
    """Puts events where Kedro-Viz looks for them.

    Args:
        project: the project's folder.
        events: of `run_events`.

    Returns:
        The file, which holds the old events or the new ones at any moment.

    Raises:
        OSError: for a folder that cannot be written to.
    """
    path = project / EVENTS
    write_atomically(path, json.dumps(events, indent=2) + "\n", durable=False)
    return path
