"""Nodes that do not run again for changes of code and of libraries alone."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from kedro_rerun.components import Settings
from kedro_rerun.errors import StalenessError
from kedro_rerun.fingerprint import Cause
from kedro_rerun.verdict import Reason, Verdict, summarize

EXPENSIVE = "expensive"
"""Tag of such nodes."""


class ExpensiveNodeError(StalenessError):
    """An expensive node would run again for changes of code and of libraries alone."""


def explain_refusal(refused: Collection[Verdict], settings: Settings) -> str:
    """What a run says that asks first.

    Args:
        refused: verdicts of expensive nodes.
        settings: tell what libraries can alter.
    """
    lines = []
    for verdict in refused:
        lines.append(f"  {verdict.node}: {summarize(verdict.reasons)}")
        nodes: dict[Reason, list[str]] = {}
        for root in verdict.roots:
            nodes.setdefault(root.reason, []).append(root.node)
        for reason, where in nodes.items():
            if reason.cause is Cause.LIBRARY:
                library = settings.libraries.get(reason.name, reason.name)
                effect = settings.library_effects.get(reason.name, "whatever it computes there")
                used = f"used by {', '.join(where)}; can alter: {effect}"
                lines.append(f"    {library} {reason.detail}, {used}")
            elif where != [verdict.node]:
                lines.append(f"    {reason}, in {', '.join(where)}")
    names = shlex.join(verdict.node for verdict in refused)
    return (
        "Found expensive nodes that only changes of code or of libraries' versions make stale:\n"
        + "\n".join(lines)
        + "\nIf the change alters results, run with --params=allow_expensive=true; if it does "
        f"not, keep the results with `{settings.command} accept {names}`."
    )
