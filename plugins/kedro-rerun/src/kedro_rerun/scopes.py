"""Which names a piece of code takes from outside of itself, by Python's scoping rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kedro_rerun.meaning import is_meaningless

_DYNAMIC = frozenset({"eval", "exec", "globals"})
_IMPORTERS = frozenset({"import_module", "__import__"})
_MUTATORS = frozenset(
    {"add", "append", "appendleft", "extend", "insert", "register", "setdefault", "update"}
)
_MODULE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:[A-Za-z_]\w*)?")
ANY_MODULE = "*"
"""Ends the module of a reference whose target is only known when it runs."""
ONLY_EXECUTED = "<import>"
"""Chain of a reference to a module that is imported, without a name being taken from it."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


class Reference(NamedTuple):
    """A name from outside.

    With an empty module it is looked up in the module of the code; otherwise in that module,
    and an empty chain means the module itself.
    """

    module: str
    chain: str


@dataclass(frozen=True)
class ImportedName:
    """One name that an import statement binds."""

    name: str
    module: str
    attribute: str | None
    executed: tuple[str, ...]
    """Modules that are imported; of `from a import b`, `a.b` is only a candidate."""


def imported_names(statement: ast.Import | ast.ImportFrom, package: str) -> Iterator[ImportedName]:
    """Lists what an import statement binds.

    Args:
        statement: at any depth of the module, also inside a function.
        package: the package that relative imports start from.

    Yields:
        Each bound name.
    """
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.asname:
                yield ImportedName(alias.asname, alias.name, None, (alias.name,))
            else:
                top = alias.name.partition(".")[0]
                yield ImportedName(top, top, None, (alias.name,))
        return
    module = statement.module or ""
    if statement.level:
        parts = package.split(".")
        base = ".".join(parts[: len(parts) - statement.level + 1])
        module = f"{base}.{module}" if module else base
    if module == "__future__":
        return
    for alias in statement.names:
        executed = (module, f"{module}.{alias.name}")
        yield ImportedName(alias.asname or alias.name, module, alias.name, executed)


@dataclass
class Findings:
    """What `collect_references` found."""

    references: set[Reference] = field(default_factory=set)
    mutated: set[str] = field(default_factory=set)
    """Outside variables that functions of the code change when called."""
    strings: set[str] = field(default_factory=set)
    dynamic: bool = False


@dataclass
class _Scope:
    names: set[str]
    imports: dict[str, Reference] = field(default_factory=dict)
    is_class: bool = False


def collect_references(statement: ast.stmt, package: str, roots: Iterable[str]) -> Findings:
    """Finds what a top-level statement takes from outside.

    Args:
        statement: a statement of a module.
        package: the package that relative imports inside it start from.
        roots: top-level packages whose modules strings may name.

    Returns:
        The findings. Names that the statement itself binds at module level are references too.
    """
    visitor = _Visitor(package, frozenset(roots))
    visitor.visit(statement)
    return visitor.found


def root_name(node: ast.AST) -> str | None:
    """The variable at the start of `a.b["c"].d`; None where it starts with something else."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


class _Visitor(ast.NodeVisitor):
    def __init__(self, package: str, roots: frozenset[str]) -> None:
        self.found = Findings()
        self._package = package
        self._roots = roots
        self._scopes: list[_Scope] = []
        self._in_annotation = False

    # Scopes

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def _visit_function(self, node: _Function) -> None:
        self._visit_all(node.decorator_list)
        self._visit_signature(node.args)
        self._visit_annotation(node.returns)
        self._visit_type_parameters(node)
        self._visit_inside(_function_scope(node.args, node.body), node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_signature(node.args)
        self._visit_inside(_function_scope(node.args, [node.body]), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_all(node.decorator_list)
        self._visit_all(node.bases)
        self._visit_all(node.keywords)
        self._visit_type_parameters(node)
        body = [member for member in node.body if not is_meaningless(member)]
        self._visit_inside(_Scope(set(_bound_in(body)), is_class=True), body)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._visit_comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._visit_comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self._visit_comprehension(node)

    def _visit_comprehension(self, node: _Comprehension) -> None:
        # The first iterable belongs to the scope around; a difference only for classes.
        self.visit(node.generators[0].iter)
        targets = {name for generator in node.generators for name in _bound_in([generator.target])}
        self._scopes.append(_Scope(targets))
        for index, generator in enumerate(node.generators):
            if index:
                self.visit(generator.iter)
            self.visit(generator.target)
            self._visit_all(generator.ifs)
        if isinstance(node, ast.DictComp):
            self._visit_all([node.key, node.value])
        else:
            self.visit(node.elt)
        self._scopes.pop()

    def _visit_inside(self, scope: _Scope, body: Collection[ast.AST]) -> None:
        for node in _own_nodes(body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for binding in imported_names(node, self._package):
                    target = Reference(binding.module, binding.attribute or "")
                    scope.imports[binding.name] = target
        self._scopes.append(scope)
        self._visit_all(body)
        self._scopes.pop()

    # Names

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._refer(node.id)
            if node.id in _DYNAMIC:
                self.found.dynamic = True

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            chain.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            self._refer(".".join([value.id, *reversed(chain)]))
            self._note_change(node)
        else:
            self.visit(value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._note_change(node)
        self.visit(node.value)
        form = node.value.attr if isinstance(node.value, ast.Attribute) else root_name(node.value)
        if self._in_annotation and form == "Annotated" and isinstance(node.slice, ast.Tuple):
            self.visit(node.slice.elts[0])
            self._visit_as(False, node.slice.elts[1:])
        else:
            # The strings of Literal["a"] are values, those of list["A"] are types.
            self._visit_as(self._in_annotation and form != "Literal", [node.slice])

    def visit_Call(self, node: ast.Call) -> None:
        match node.func:
            case ast.Attribute(attr=name) if name in _MUTATORS:
                self._note_mutation(root_name(node.func))
        name = node.func.attr if isinstance(node.func, ast.Attribute) else root_name(node.func)
        if name in _IMPORTERS:
            self._refer_to_dynamic_import(node)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.found.mutated.update(node.names)

    def visit_Import(self, node: ast.Import) -> None:
        self._visit_import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._visit_import(node)

    def _visit_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if not self._scopes:
            return  # Module level: `source` keeps those.
        for binding in imported_names(node, self._package):
            for module in binding.executed:
                self.found.references.add(Reference(module, ONLY_EXECUTED))

    def _refer(self, chain: str) -> None:
        head, _, rest = chain.partition(".")
        scope = self._find_scope(head)
        if scope is None:
            self.found.references.add(Reference("", chain))
        elif head in scope.imports:
            target = scope.imports[head]
            joined = ".".join(part for part in (target.chain, rest) if part)
            self.found.references.add(Reference(target.module, joined))

    def _find_scope(self, name: str) -> _Scope | None:
        for depth, scope in enumerate(reversed(self._scopes)):
            if (name in scope.names or name in scope.imports) and (
                depth == 0 or not scope.is_class
            ):
                return scope
        return None

    # Changes of outside variables

    def _note_change(self, node: ast.Attribute | ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Store | ast.Del):
            self._note_mutation(root_name(node))

    def _note_mutation(self, name: str | None) -> None:
        inside_function = any(not scope.is_class for scope in self._scopes)
        if name is not None and inside_function and self._find_scope(name) is None:
            self.found.mutated.add(name)

    # Strings and annotations

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        if self._in_annotation:
            self._visit_quoted_annotation(node.value)
        elif len(node.value) <= 120:
            self.found.strings.add(node.value)
            self._refer_to_named_module(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # A docstring refers to nothing.
            self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._visit_annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def _refer_to_named_module(self, text: str) -> None:
        if text.partition(".")[0] in self._roots and _MODULE_NAME.fullmatch(text):
            root, _, chain = text.replace(":", ".").partition(".")
            self.found.references.add(Reference(root, chain))

    def _refer_to_dynamic_import(self, node: ast.Call) -> None:
        match node.args:
            case [ast.Constant(value=str(name)), *_]:
                if name.startswith("."):
                    name = f"{self._package}.{name.lstrip('.')}"
                self.found.references.add(Reference(name, ""))
            case [ast.JoinedStr(values=[ast.Constant(value=str(prefix)), *_]), *_]:
                self.found.references.add(Reference(prefix + ANY_MODULE, ""))
            case _:
                self.found.references.add(Reference(ANY_MODULE, ""))

    def _visit_quoted_annotation(self, text: str) -> None:
        try:
            self.visit(ast.parse(text, mode="eval").body)
        except SyntaxError:
            return

    def _visit_annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            self._visit_as(True, [node])

    def _visit_as(self, in_annotation: bool, nodes: Iterable[ast.AST]) -> None:
        outer, self._in_annotation = self._in_annotation, in_annotation
        self._visit_all(nodes)
        self._in_annotation = outer

    def _visit_signature(self, arguments: ast.arguments) -> None:
        self._visit_all(arguments.defaults)
        self._visit_all(default for default in arguments.kw_defaults if default is not None)
        for argument in _all_arguments(arguments):
            self._visit_annotation(argument.annotation)

    def _visit_type_parameters(self, node: ast.AST) -> None:
        self._visit_all(getattr(node, "type_params", ()))

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)


def _function_scope(arguments: ast.arguments, body: list[ast.stmt] | list[ast.expr]) -> _Scope:
    names = {argument.arg for argument in _all_arguments(arguments)}
    names |= set(_bound_in(body))
    for node in _own_nodes(body):
        if isinstance(node, ast.Global):
            names -= set(node.names)
    return _Scope(names)


def _all_arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from arguments.posonlyargs
    yield from arguments.args
    yield from arguments.kwonlyargs
    for argument in (arguments.vararg, arguments.kwarg):
        if argument is not None:
            yield argument


def _bound_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that code binds in its own scope; imports are kept apart by the visitor."""
    for node in _own_nodes(nodes):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Name(ctx=ast.Store() | ast.Del()):
                yield node.id
            case (
                ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
            ):
                yield name
            case ast.MatchMapping(rest=str(name)):
                yield name


def _own_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, _Comprehension):
            # Only `:=` reaches out of a comprehension.
            for inner in ast.walk(node):
                if isinstance(inner, ast.NamedExpr):
                    yield inner.target
            continue
        yield from _own_nodes(ast.iter_child_nodes(node))
