from __future__ import annotations

import ast
import importlib.util
import os
import symtable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kedro_rerun import hash_cache
from kedro_rerun.artifacts import Workspace, publish, verify
from kedro_rerun.files import hash_file
from kedro_rerun.hash_cache import HashCache
from kedro_rerun.meaning import hash_meaning
from kedro_rerun.parameters import diff, flatten_parameters
from kedro_rerun.scopes import collect_references

LIBRARY = (
    "argparse",
    "ast",
    "asyncio.base_events",
    "contextlib",
    "dataclasses",
    "enum",
    "functools",
    "inspect",
    "json.decoder",
    "logging",
    "pickle",
    "statistics",
    "tarfile",
    "typing",
    "unittest.mock",
)
QUOTED_ANNOTATIONS = {"IO", "BinaryIO", "TextIO"}
"""Definitions of `typing` that name types in quotes, which the compiler does not look into."""


def definitions_of(module: str) -> list[ast.FunctionDef | ast.ClassDef]:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def names_by_the_compiler(source: str) -> set[str]:
    def collect(table: symtable.SymbolTable) -> set[str]:
        names = {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
        }
        return names.union(*(collect(child) for child in table.get_children()))

    return collect(symtable.symtable(source, "source", "exec"))


@pytest.mark.parametrize("module", LIBRARY)
def test_outside_names_are_those_that_the_compiler_finds(module):
    compared = 0
    for definition in definitions_of(module):
        if definition.name in QUOTED_ANNOTATIONS:
            continue
        source = ast.unparse(definition)
        found = collect_references(ast.parse(source).body[0], "package", ())
        heads = {
            reference.chain.partition(".")[0]
            for reference in found.references
            if not reference.module
        }
        assert heads == names_by_the_compiler(source), definition.name
        compared += 1
    assert compared > 3


@pytest.mark.parametrize("module", LIBRARY)
def test_meaning_ignores_how_code_is_written(module):
    for definition in definitions_of(module):
        rewritten = "# A comment.\n" + ast.unparse(definition).replace("\n", "\n\n")
        undocumented = ast.parse(rewritten).body[0]
        for node in ast.walk(undocumented):
            is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if is_definition and ast.get_docstring(node) is not None:
                node.body[0] = ast.Expr(ast.Constant("Another docstring."))
        assert hash_meaning(undocumented) == hash_meaning(definition), definition.name


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_meaning_sees_every_changed_constant_and_name(data):
    module = data.draw(st.sampled_from(("json.decoder", "statistics", "functools")))
    definition = data.draw(st.sampled_from(definitions_of(module)))
    before = hash_meaning(definition)
    docstrings = {
        id(node.value)
        for node in ast.walk(definition)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    nodes = [
        node
        for node in ast.walk(definition)
        if isinstance(node, ast.Name | ast.Constant | ast.Attribute | ast.arg)
        and id(node) not in docstrings
    ]
    if not nodes:
        return
    match data.draw(st.sampled_from(nodes)):
        case ast.Name() as node:
            node.id += "_"
        case ast.Constant() as node:
            node.value = f"{node.value!r}, changed"
        case ast.Attribute() as node:
            node.attr += "_"
        case node:
            node.arg += "_"
    assert hash_meaning(definition) != before


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
names = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


@given(trees, trees)
def test_parameters_are_equal_exactly_when_their_flat_forms_are(first, second):
    same = repr(first) == repr(second)
    flat_first = flatten_parameters(first, "params:x").values
    flat_second = flatten_parameters(second, "params:x").values
    assert (flat_first == flat_second) == same
    assert bool(diff(flat_first, flat_second)) == (not same)


@dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    workers: int = field(default=0, metadata={"operational": True})


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    steps: int = 1
    path: str = field(default="", metadata={"input_path": True})


@given(st.floats(allow_nan=False), st.integers(), st.integers(), st.text())
def test_only_fields_that_can_change_results_count(lr, steps, workers, path):
    value = Outer(Inner(lr, workers), steps, path)
    flat = flatten_parameters(value, "params:x")
    assert flat.values == {"params:x.inner.lr": repr(lr), "params:x.steps": str(steps)}
    assert flat.input_paths == {"params:x.path": path}
    changed = flatten_parameters(replace(value, steps=steps + 1), "params:x").values
    (change,) = diff(flat.values, changed)
    assert str(change) == f"params:x.steps: {steps} -> {steps + 1}"


edits = st.lists(
    st.tuples(st.sampled_from("ab"), st.binary(max_size=3), st.booleans()), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(edits)
def test_the_cache_never_gives_the_hash_of_other_content(tmp_path_factory, edits):
    """Also for edits within one tick of the clock, of equal size, with times restored."""
    folder = tmp_path_factory.mktemp("cache")
    cache = HashCache(folder / "cache.json")
    for name, content, restores_times in edits:
        path = folder / name
        times = (path.stat().st_atime_ns, path.stat().st_mtime_ns) if path.exists() else None
        path.write_bytes(content)
        if restores_times and times:
            os.utime(path, ns=times)
        assert cache.hash(path) == hash_file(path)
        cache.save()
        cache = HashCache(folder / "cache.json")


def test_an_edit_within_one_tick_of_a_coarse_clock_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    found = hash_cache.signature(path)
    monkeypatch.setattr(hash_cache, "signature", lambda _: found)
    cache = HashCache()
    first = cache.hash(path)
    path.write_text("two")
    assert cache.hash(path) != first


def test_the_order_of_keys_counts():
    before = flatten_parameters({"a": 1, "b": 2}, "params:x").values
    after = flatten_parameters({"b": 2, "a": 1}, "params:x").values
    assert [str(change) for change in diff(before, after)] == [
        'params:x.(order): ["a","b"] -> ["b","a"]'
    ]
    longer = flatten_parameters({"c": 3, "a": 1, "b": 2}, "params:x").values
    assert [change.path for change in diff(before, longer)] == ["params:x.c"]


contents = st.dictionaries(
    st.sampled_from(("a", "b", "d/e", "d/f/g")), st.binary(max_size=4), min_size=1
)


@settings(max_examples=40, deadline=None)
@given(contents, contents)
def test_artifacts_have_equal_digests_exactly_when_their_files_are_equal(
    tmp_path_factory, first, second
):
    digests = []
    for fingerprint, files in (("a" * 12, first), ("b" * 12, second)):
        workspace = Workspace(tmp_path_factory.mktemp("artifact"), fingerprint)
        for name, content in files.items():
            path = workspace.staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        artifact = publish(workspace, kind="k", schema_version=1, counts={}, provenance={})
        assert verify(artifact, deep=True) == []
        digests.append(artifact.digest)
    assert (digests[0] == digests[1]) == (first == second)
