"""What code means, apart from how it is written: the hash of a syntax tree.

Left out: comments, docstrings, formatting, fields that are declared operational, and the
previews that Kedro-Viz draws of a dataset.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from kedro_rerun.files import hash_text

OPERATIONAL = "operational"
"""Marks fields that cannot change results: by a function of this name, or as metadata key."""
_PREVIEW = "preview"
_IGNORED_FIELDS = frozenset({"kind", "type_comment", "type_ignores", "ctx"})


def hash_meaning(node: ast.AST) -> str:
    """Hashes what code means (20 hexadecimal digits)."""
    return hash_text("".join(_dump(node)))[:20]


def is_meaningless(statement: Any) -> bool:
    """Whether a statement in a body cannot change results."""
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.Pass():
            return True
        case ast.AnnAssign(value=ast.Call() as call):
            return _declares_operational(call)
        case ast.FunctionDef(name="preview", returns=ast.expr() as returns):
            # Kedro-Viz demands the annotation, so other methods of this name are kept.
            return (dotted_name(returns) or "").lower().endswith(_PREVIEW)
    return False


def dotted_name(node: ast.expr) -> str | None:
    """The text of `a.b.c`; None for anything but names and attributes."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([node.id, *reversed(parts)])


def _dump(value: Any) -> Iterator[str]:
    """Serialises a syntax tree; empty fields are left out, which makes Python versions agree."""
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name, child in ast.iter_fields(value):
            if name in _IGNORED_FIELDS or child is None or child == []:
                continue
            yield f" {name}="
            yield from _dump(child)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            if not is_meaningless(item):
                yield from _dump(item)
        yield "]"
    else:
        yield f"{type(value).__name__}:{value!r};"


def _declares_operational(call: ast.Call) -> bool:
    if (dotted_name(call.func) or "").rpartition(".")[2] == OPERATIONAL:
        return True
    for keyword in call.keywords:
        if keyword.arg == "metadata" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                match key, value:
                    case ast.Constant(value="operational"), ast.Constant(value=True):
                        return True
    return False
