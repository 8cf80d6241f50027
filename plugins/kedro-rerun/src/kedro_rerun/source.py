"""What one Python source file defines, and what each definition refers to; nothing is imported.

A module is summarised into parts: the top-level statements, each with a hash of its meaning
(comments, docstrings and formatting do not count) and the names it refers to. `code` follows
those names from module to module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from kedro_rerun.files import hash_text
from kedro_rerun.meaning import dotted_name, hash_meaning
from kedro_rerun.scopes import (
    Reference,
    collect_references,
    imported_names,
    root_name,
)

SUMMARY_VERSION = 1
"""Raised when summaries change, so that kept ones are made anew."""
_PLACES = frozenset({"__file__", "__package__", "__path__", "__spec__"})
_PATH = re.compile(r"\w[\w\-./]*")


@dataclass(frozen=True)
class Part:
    """One top-level statement."""

    hash: str
    references: tuple[Reference, ...] = ()
    decorators: tuple[str, ...] = ()
    """Dotted names of the decorators (or base classes) that may record the definition elsewhere."""
    mutates: bool = False
    """Whether it changes a module's variable when it is called: a registration."""
    dynamic: bool = False
    """Whether it uses eval, exec or globals, so that anything in its module may be reached."""
    paths: tuple[str, ...] = ()
    """Strings that may name a file beside the module."""
    locates: bool = False
    """Whether it asks where its module lies, to read files from there."""


@dataclass
class ModuleSummary:
    """What one module holds."""

    definitions: dict[str, list[Part]] = field(default_factory=dict)
    effects: list[Part] = field(default_factory=list)
    """Statements that do something on import and bind no name."""
    imports: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    """Module and attribute (None: the module itself) behind each imported name."""
    stars: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    """Modules that importing this one imports; some are candidates, see `ImportedName`."""


def summarize(source: str, module: str, is_package: bool, roots: Collection[str]) -> ModuleSummary:
    """Summarises a module.

    Args:
        source: its text.
        module: its dotted name.
        is_package: whether it is an `__init__.py`.
        roots: top-level packages whose modules strings may name (`python -m package.module`).

    Returns:
        The summary. A file that does not parse is one opaque effect: any edit of it counts.
    """
    summary = ModuleSummary()
    try:
        tree = ast.parse(source)
    except SyntaxError:
        summary.effects.append(Part(hash_text(source)))
        return summary
    package = module if is_package else module.rpartition(".")[0]
    builder = _Builder(summary, package, frozenset(roots))
    builder.known = {name for statement in tree.body for name in _bound_names(statement)}
    for statement in tree.body:
        builder.add(statement)
    return summary


class _Builder:
    """Files each top-level statement of a module under the names that depend on it."""

    def __init__(self, summary: ModuleSummary, package: str, roots: frozenset[str]) -> None:
        self.known: set[str] = set()
        self._summary = summary
        self._package = package
        self._roots = roots

    def add(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import() | ast.ImportFrom():
                self._add_import(statement, executed=True)
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.If(test=test) if _is_type_checking(test):
                self._add_imports_below(statement.body, executed=False)
                for below in statement.orelse:
                    self.add(below)
            case ast.If(test=test) if _is_main_guard(test):
                pass
            case ast.AnnAssign(value=None):
                pass
            case _:
                self._add_part(statement)

    def _add_part(self, statement: ast.stmt) -> None:
        self._add_imports_below([statement], executed=True)
        part = self._describe(statement)
        names = _bound_names(statement)
        changed = _changed_roots(statement) & self.known
        for name in sorted(names | changed):
            self._summary.definitions.setdefault(name, []).append(part)
        if not (names | changed) or _does_something(statement, changed):
            self._summary.effects.append(part)

    def _describe(self, statement: ast.stmt) -> Part:
        found = collect_references(statement, self._package, self._roots)
        return Part(
            hash=hash_meaning(statement),
            references=tuple(sorted(found.references)),
            decorators=_registrars(statement),
            mutates=bool(found.mutated) or _has_subclass_hook(statement),
            dynamic=found.dynamic,
            paths=tuple(sorted(text for text in found.strings if _PATH.fullmatch(text))),
            locates=any(reference.chain.split(".")[0] in _PLACES for reference in found.references),
        )

    def _add_imports_below(self, statements: list[ast.stmt], executed: bool) -> None:
        for statement in statements:
            for node in _module_level(statement):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    self._add_import(node, executed)

    def _add_import(self, statement: ast.Import | ast.ImportFrom, executed: bool) -> None:
        for binding in imported_names(statement, self._package):
            if binding.name == "*":
                self._summary.stars.append(binding.module)
            else:
                self._summary.imports.setdefault(binding.name, []).append(
                    (binding.module, binding.attribute)
                )
            if executed:
                self._summary.executed.extend(binding.executed)


def _module_level(statement: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a statement that run when the module is imported, not inside functions."""
    yield statement
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
        return
    for child in ast.iter_child_nodes(statement):
        yield from _module_level(child)


def _bound_names(statement: ast.stmt) -> set[str]:
    names = set()
    for node in _module_level(statement):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names.add(node.id)
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                names.add(name)
    return names


def _changed_roots(statement: ast.stmt) -> set[str]:
    """Variables whose content a statement changes: `TABLE["a"] = 1`, `TABLE.update(...)`."""
    roots = set()
    for node in _module_level(statement):
        match node:
            case ast.Subscript(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()):
                roots.add(root_name(node))
            case ast.Expr(value=ast.Call(func=ast.Attribute() as target)):
                roots.add(root_name(target))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                # `@encode.register` adds an implementation to `encode`.
                roots |= {
                    root_name(decorator)
                    for decorator in node.decorator_list
                    if isinstance(_callee(decorator), ast.Attribute)
                }
    return {root for root in roots if root is not None}


def _does_something(statement: ast.stmt, changed: set[str]) -> bool:
    for node in _module_level(statement):
        match node:
            case ast.Expr(value=ast.Call(func=called)) if root_name(called) not in changed:
                return True
            case ast.Assert() | ast.Raise():
                return True
    return False


def _registrars(statement: ast.stmt) -> tuple[str, ...]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            candidates = statement.decorator_list
        case ast.ClassDef():
            candidates = statement.decorator_list + statement.bases
        case _:
            candidates = []
    names = (dotted_name(_callee(candidate)) for candidate in candidates)
    return tuple(name for name in names if name is not None)


def _has_subclass_hook(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ClassDef) and any(
        isinstance(member, ast.FunctionDef) and member.name == "__init_subclass__"
        for member in statement.body
    )


def _callee(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _is_type_checking(test: ast.expr) -> bool:
    return (dotted_name(test) or "").rpartition(".")[2] == "TYPE_CHECKING"


def _is_main_guard(test: ast.expr) -> bool:
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), comparators=[ast.Constant("__main__")]):
            return True
    return False
