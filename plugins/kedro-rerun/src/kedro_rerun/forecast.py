"""What a run is going to do and about how long it takes, by how long it took before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kedro_rerun.locks import NodeLock
from kedro_rerun.verdict import Action, Verdict

_LISTED = 3


def forecast(plan: Mapping[str, Verdict], lock: Callable[[str], NodeLock]) -> str:
    """A sentence for the log, before the first node runs.

    Args:
        plan: What becomes of each node, in the order of the run.
        lock: Tells the earlier runs of a node, which may have had other parameters.

    Returns:
        How many nodes run, the time that their last runs took together, those that took longest,
        and for how many no run is on record; of the latter nothing is guessed.
    """
    running = [name for name, verdict in plan.items() if verdict.action is Action.RUN]
    if not running:
        return f"Plan: nothing of {len(plan)} nodes has to run."
    known: dict[str, float] = {}
    for name in running:
        seconds = [run.provenance.get("seconds") for run in lock(name).runs]
        if found := [value for value in seconds if isinstance(value, int | float)]:
            known[name] = float(found[-1])
    text = f"Plan: {len(running)} of {len(plan)} nodes run"
    if not known:
        return f"{text}; how long that takes is unknown, as none of them ran here before."
    longest = sorted(known, key=known.__getitem__, reverse=True)[:_LISTED]
    listed = ", ".join(f"{name} {_time(known[name])}" for name in longest)
    text += f", in about {_time(sum(known.values()))} by their last runs ({listed})"
    unknown = len(running) - len(known)
    return f"{text}; unknown for {unknown}." if unknown else f"{text}."


def _time(seconds: float) -> str:
    """As people say it: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3600:.1f} h"
