"""Edges of the pipelines that a parameter chooses.

Kedro registers pipelines without knowing the environment, but which model SFT starts from decides
what has to be built before it. The parameters of a session are therefore looked at before its
pipelines are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm1_pipeline.config.stages import SFTStart

_chosen = {"sft.init_from": SFTStart.PRETRAIN}


def sft_start() -> SFTStart:
    """The model that SFT starts from in this process's session."""
    return _chosen["sft.init_from"]


def choose_edges(parameters: Mapping[str, Any]) -> bool:
    """Takes the choices from raw parameters.

    Args:
        parameters: as the configuration files give them; a value that cannot be used is left
            to the check of all parameters, which names it.

    Returns:
        Whether an edge changed, so that pipelines that were made before are no longer right.
    """
    group = parameters.get("sft")
    named = group.get("init_from") if isinstance(group, Mapping) else None
    wanted = SFTStart(named) if named in list(SFTStart) else SFTStart.PRETRAIN
    changed = wanted != _chosen["sft.init_from"]
    _chosen["sft.init_from"] = wanted
    return changed
