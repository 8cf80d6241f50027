"""Versions of the libraries that can change results."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Collection, Mapping

PYTHON = "python"
ABSENT = "absent"


def library_versions(declared: Mapping[str, str], imported: Collection[str]) -> dict[str, str]:
    """Versions of the declared libraries that some code uses.

    Only declared ones count: a new plotting or logging library changes no model.

    Args:
        declared: distribution by import name, for instance `{"PIL": "pillow"}`. The name
            `python` stands for the interpreter's minor version and counts for all code.
        imported: import names that the code refers to.

    Returns:
        Version by import name; `absent` for a distribution that is not installed.
    """
    return {
        name: _version(name, distribution)
        for name, distribution in sorted(declared.items())
        if name in imported or name == PYTHON
    }


@functools.cache
def version_of(module: str) -> str:
    """Version of the distribution that a top-level module comes from; `absent` if none does.

    Args:
        module: its import name, which most distributions are called by.
    """
    version = _version(module, module)
    if version == ABSENT:  # Takes a second where much is installed.
        for distribution in importlib.metadata.packages_distributions().get(module, ()):
            return _version(module, distribution)
    return version


def _version(name: str, distribution: str) -> str:
    if name == PYTHON:
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT
