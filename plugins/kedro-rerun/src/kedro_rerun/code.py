"""The code a function really reaches, read from source files without importing any.

From a node's function the closure follows names to functions, classes and constants of the
first-party packages, into lazily imported helpers, re-exports and annotations (which stand for
the methods of what is passed in). What cannot be followed falls back to the whole module. Known
limits: attributes of objects of unknown type, and names built at run time outside of
`import_module` and `getattr` on a module.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kedro_rerun.errors import StalenessError
from kedro_rerun.files import hash_file, hash_text
from kedro_rerun.scopes import ANY_MODULE, ONLY_EXECUTED, Reference
from kedro_rerun.source import ModuleSummary, Part
from kedro_rerun.summaries import SummaryCache

_EFFECTS = "<import>"
_WHOLE = "<module>"
_REGISTER = "register"


@dataclass(frozen=True)
class Target:
    """One thing that code can reach: a definition, a module's effects, a module, or a library."""

    module: str
    name: str


@dataclass(frozen=True)
class Closure:
    """Everything some functions reach."""

    parts: Mapping[str, str]
    """Hash by `module:name`."""
    libraries: frozenset[str]
    """Top-level names of the modules from outside of the first-party packages."""
    reached_from: Mapping[Target, Target | None] = field(default_factory=dict, repr=False)
    """What names each part, on a shortest way from the functions; None for themselves."""

    def way_to(self, part: str) -> list[str]:
        """Names on the way from a function to a part, without the part: who calls whom.

        Args:
            part: as in `parts`.

        Returns:
            `module.name` of each, with the last part of the module's name; empty for the
            functions themselves, and for what is not reached.
        """
        module, _, name = part.partition(":")
        way = []
        target = self.reached_from.get(Target(module, name))
        while target is not None:
            way.append(f"{target.module.rpartition('.')[2]}.{target.name}")
            target = self.reached_from.get(target)
        return way[::-1]


@dataclass
class _Found:
    parts: dict[str, str] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=set)
    reached_from: dict[Target, Target | None] = field(default_factory=dict)


class _Recorded(NamedTuple):
    """What a definition adds to every closure that reaches it, found once for all nodes."""

    hashes: dict[str, str]
    files: tuple[Target, ...]
    library: str | None


class CodeIndex:
    """Reads first-party source files and follows their names.

    Args:
        packages: first-party top-level packages or modules.
        excluded: first-party modules (with all below) that do not count.
        cache: file for summaries between processes; they are keyed by content.
    """

    def __init__(
        self,
        packages: Collection[str],
        excluded: Collection[str] = (),
        cache: Path | None = None,
    ) -> None:
        self._locations = {name: locate(name) for name in packages}
        self._excluded = tuple(excluded)
        self._cache = SummaryCache(cache, tuple(packages))
        self._summaries: dict[str, ModuleSummary | None] = {}
        self._files: dict[str, Path | None] = {}
        self._edges: dict[Target, tuple[Target, ...]] = {}
        self._recorded: dict[Target, _Recorded] = {}

    def is_first_party(self, module: str) -> bool:
        """Whether a module belongs to the packages that are followed."""
        if any(module == name or module.startswith(f"{name}.") for name in self._excluded):
            return False
        return module.partition(".")[0] in self._locations

    def is_package(self, module: str) -> bool:
        """Whether a first-party module is a package."""
        file = self._file(module)
        return file is not None and file.name == "__init__.py"

    def closure(self, entries: Iterable[tuple[str, str]]) -> Closure:
        """Follows everything that some definitions reach.

        Args:
            entries: module and top-level name of each; an empty name takes the whole module.

        Returns:
            The closure.

        Raises:
            StalenessError: for an entry whose module has no source file.
        """
        todo = deque(self._enter(module, name) for module, name in entries)
        found = _Found(reached_from=dict.fromkeys(todo))
        while todo:  # First in, first out, so that the ways are shortest ones.
            target = todo.popleft()
            self._record(target, found)
            for reached in self._follow(target):
                if reached not in found.reached_from:
                    found.reached_from[reached] = target
                    todo.append(reached)
        return Closure(
            dict(sorted(found.parts.items())), frozenset(found.libraries), found.reached_from
        )

    def save(self) -> None:
        """Keeps the summaries for the next process."""
        self._cache.save()

    # Modules

    def summary(self, module: str) -> ModuleSummary | None:
        """Summary of a first-party module; None where there is no such file."""
        if module not in self._summaries:
            path = self._file(module)
            self._summaries[module] = None if path is None else self._cache.get(path, module)
        return self._summaries[module]

    def _file(self, module: str) -> Path | None:
        if module not in self._files:
            self._files[module] = self._find_file(module)
        return self._files[module]

    def _find_file(self, module: str) -> Path | None:
        root, *rest = module.split(".")
        if not self.is_first_party(module):
            return None
        location = self._locations[root]
        if location.is_file():
            return None if rest else location
        base = location.joinpath(*rest)
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
        return None

    def _modules_below(self, prefix: str) -> Iterator[str]:
        for root, location in self._locations.items():
            files = [location] if location.is_file() else sorted(location.rglob("*.py"))
            for file in files:
                parts = [root, *file.relative_to(location).with_suffix("").parts]
                name = ".".join(part for part in parts if part != "__init__")
                if name.startswith(prefix) and self.is_first_party(name):
                    yield name

    # Edges

    def _enter(self, module: str, name: str) -> Target:
        summary = self.summary(module)
        if summary is None:
            raise StalenessError(
                f"Found no source file for the module {module!r} of {name or 'a node'!r}. Name "
                "its top-level package among the first-party packages."
            )
        return Target(module, name if name in summary.definitions else _WHOLE)

    def _follow(self, target: Target) -> tuple[Target, ...]:
        if target not in self._edges:
            reached = dict.fromkeys(self._reach(target))
            self._edges[target] = tuple(reached)
        return self._edges[target]

    def _reach(self, target: Target) -> Iterator[Target]:
        summary = self.summary(target.module)
        if summary is None or not target.name:  # A library, or a module that is not there.
            return
        if target.name == _EFFECTS:
            yield from self._reach_effects(target.module, summary)
            return
        yield Target(target.module, _EFFECTS)
        if target.name == _WHOLE:
            yield from (Target(target.module, name) for name in summary.definitions)
            return
        for part in summary.definitions[target.name]:
            yield from self._reach_part(target.module, part)

    def _reach_effects(self, module: str, summary: ModuleSummary) -> Iterator[Target]:
        for executed in (*_parents(module), *summary.executed):
            if self.summary(executed) is not None:
                yield Target(executed, _EFFECTS)
        for part in summary.effects:
            yield from self._reach_part(module, part)
        for name, parts in summary.definitions.items():
            if any(self._registers(module, part) for part in parts):
                yield Target(module, name)

    def _reach_part(self, module: str, part: Part) -> Iterator[Target]:
        if part.dynamic:
            yield Target(module, _WHOLE)
        for reference in part.references:
            yield from self._resolve(module, reference)

    def _registers(self, module: str, part: Part) -> bool:
        """Whether importing a definition records it somewhere, through decorator or base."""
        for chain in part.decorators:
            for target in self._resolve(module, Reference("", chain)):
                summary = self.summary(target.module)
                if summary is None or target.name not in summary.definitions:
                    continue
                if target.module != module and chain.endswith(f".{_REGISTER}"):
                    return True
                if any(known.mutates for known in summary.definitions[target.name]):
                    return True
        return False

    # Names

    def _resolve(self, module: str, reference: Reference) -> Iterator[Target]:
        if not reference.module:
            head, _, rest = reference.chain.partition(".")
            yield from self._look_up(module, head, rest, frozenset())
        elif reference.module.endswith(ANY_MODULE):
            prefix = reference.module.removesuffix(ANY_MODULE)
            yield from (Target(name, _WHOLE) for name in self._modules_below(prefix))
        elif reference.chain == ONLY_EXECUTED:
            yield self._module_target(reference.module, _EFFECTS)
        else:
            yield from self._walk(reference.module, reference.chain, frozenset())

    def _walk(self, module: str, chain: str, seen: frozenset[Target]) -> Iterator[Target]:
        """Resolves `chain` from a module object: submodules first, then names in the module."""
        if not self.is_first_party(module):
            yield Target(module.partition(".")[0], "")
            return
        if not chain:
            yield self._module_target(module, _WHOLE)
            return
        head, _, rest = chain.partition(".")
        yield self._module_target(module, _EFFECTS)
        if self._file(f"{module}.{head}") is not None:
            yield from self._walk(f"{module}.{head}", rest, seen)
        else:
            yield from self._look_up(module, head, rest, seen)

    def _look_up(
        self, module: str, name: str, rest: str, seen: frozenset[Target]
    ) -> Iterator[Target]:
        """Resolves a name in a module's namespace."""
        summary = self.summary(module)
        visited = Target(module, name)
        if summary is None or visited in seen:
            return
        seen |= {visited}
        if name in summary.definitions:
            yield Target(module, name)
        for source, attribute in summary.imports.get(name, ()):
            chain = ".".join(part for part in (attribute, rest) if part)
            yield from self._walk(source, chain, seen)
        if name in summary.definitions or name in summary.imports or _is_builtin(name):
            return
        yield from self._look_up_unknown(module, summary, name, rest, seen)

    def _look_up_unknown(
        self, module: str, summary: ModuleSummary, name: str, rest: str, seen: frozenset[Target]
    ) -> Iterator[Target]:
        found = False
        for star in summary.stars:
            for target in self._look_up(star, name, rest, seen):
                found = True
                yield target
        if not found and self.is_first_party(module):
            # Made at run time, or a typo: anything in the module may be meant.
            yield Target(module, _WHOLE)

    def _module_target(self, module: str, name: str) -> Target:
        if self.summary(module) is not None:
            return Target(module, name)
        return Target(module.partition(".")[0], "")

    # Hashes

    def _record(self, target: Target, found: _Found) -> None:
        if target not in self._recorded:
            self._recorded[target] = self._hashes(target)
        hashes, files, library = self._recorded[target]
        found.parts.update(hashes)
        for file in files:
            found.reached_from.setdefault(file, target)
        if library is not None:
            found.libraries.add(library)

    def _hashes(self, target: Target) -> _Recorded:
        """What one definition adds to every closure that reaches it."""
        summary = self.summary(target.module)
        if not target.name:
            is_library = target.module not in self._locations
            return _Recorded({}, (), target.module if is_library else None)
        hashes: dict[str, str] = {}
        paths: list[Path] = []
        if summary is None:
            pass
        elif target.name == _WHOLE:
            if self.is_package(target.module):  # Named by text, perhaps for its templates.
                paths += _data_files(self._folder(target.module))
        else:
            is_effect = target.name == _EFFECTS
            parts = summary.effects if is_effect else summary.definitions[target.name]
            if parts:
                hashes[f"{target.module}:{target.name}"] = _combine([part.hash for part in parts])
            for part in parts:
                paths += self._named_files(target.module, part)
        folder = self._folder(target.module) if paths else Path()
        files = [Target(target.module, path.relative_to(folder).as_posix()) for path in paths]
        for file, path in zip(files, paths, strict=True):
            hashes[f"{file.module}:{file.name}"] = hash_file(path)
        return _Recorded(hashes, tuple(files), None)

    def _named_files(self, module: str, part: Part) -> list[Path]:
        """Templates and tables beside the module that a definition names."""
        if not part.paths and not part.locates:
            return []
        folder = self._folder(module)
        named = [
            path for name in part.paths if ".." not in name for path in _data_files(folder / name)
        ]
        return named or (list(_data_files(folder)) if part.locates else [])

    def _folder(self, module: str) -> Path:
        file = self._file(module)
        assert file is not None, "only modules with a file are summarised"
        return file.parent


def locate(package: str) -> Path:
    """Folder of a package, or file of a single module; does not import it.

    Raises:
        StalenessError: there is none.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    raise StalenessError(
        f"Found no first-party package {package!r}. Name packages that can be imported."
    )


def _data_files(path: Path) -> Iterator[Path]:
    """A file, or all files below a folder, that are not Python's."""
    if path.is_file():
        if path.suffix not in (".py", ".pyc"):
            yield path
    elif path.is_dir():
        for below in sorted(path.iterdir()):
            # A package's files belong to its own modules.
            if below.is_file() or not (below / "__init__.py").exists():
                yield from _data_files(below)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _combine(hashes: list[str]) -> str:
    return hashes[0] if len(hashes) == 1 else hash_text(" ".join(hashes))[:20]


def _is_builtin(name: str) -> bool:
    return hasattr(builtins, name) or (name.startswith("__") and name.endswith("__"))
