"""All classes of parameters, to test what holds for each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import mm1_pipeline.config as config


def groups() -> Iterator[type]:
    for found in pkgutil.iter_modules(config.__path__):
        module = importlib.import_module(f"mm1_pipeline.config.{found.name}")
        for value in vars(module).values():
            is_group = isinstance(value, type) and hasattr(value, "__pydantic_validator__")
            if is_group and value.__module__ == module.__name__:
                yield value
