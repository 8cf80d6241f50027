"""Reruns of Kedro pipelines: exactly what a change touches, with the reason.

Two lines in a project's settings.py switch it on:

    from kedro_rerun import StalenessSession
    SESSION_CLASS = StalenessSession

Nothing heavy is imported before it is used: parts that know nothing of Kedro, such as `artifacts`
and `errors`, can be used by libraries without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kedro_rerun.components import Settings
    from kedro_rerun.session import StalenessSession, session_class

__version__ = "0.1.0"
__all__ = ["Settings", "StalenessSession", "session_class"]

_PLACES = {"Settings": "components", "StalenessSession": "session", "session_class": "session"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
