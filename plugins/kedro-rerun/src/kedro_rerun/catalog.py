"""Kedro's catalogue without what it imports to look at parameters.

A parameter that is added to a catalogue becomes a `MemoryDataset`, which asks pandas, NumPy and
ibis whether the value is one of theirs, and imports them to do so. That takes two fifths of the
time of a command that has nothing to do.
"""

from __future__ import annotations

from typing import Any

from kedro.framework.context import CatalogCommandsMixin, KedroContext
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import is_parameter

_LOOKED_AT = frozenset({"kedro", "pandas", "numpy", "ibis"})
"""Packages whose objects Kedro treats in another way than all others."""


class LeanCatalog(DataCatalog, CatalogCommandsMixin):
    """Kedro's own catalogue, which tells from a parameter's class how Kedro would copy it."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Adds a dataset or a value, as Kedro does."""
        if is_parameter(key) and is_copied_deeply(value):
            value = MemoryDataset(value, copy_mode="deepcopy")
        super().__setitem__(key, value)


def is_copied_deeply(value: Any) -> bool:
    """Whether Kedro copies a value deeply; False also where only Kedro itself can tell.

    Args:
        value: of a parameter, or a dataset.
    """
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return packages.isdisjoint(_LOOKED_AT) and type(value).__name__ != "DataFrame"


def make_lean(context: KedroContext) -> None:
    """Lets a context make a `LeanCatalog` where it would make Kedro's own; a project's stays."""
    make = context._get_catalog

    def make_catalog(catalog_class: type = DataCatalog, **options: Any) -> Any:
        own = catalog_class is DataCatalog
        return make(catalog_class=LeanCatalog if own else catalog_class, **options)

    vars(context)["_get_catalog"] = make_catalog
