from __future__ import annotations

import functools
import importlib
import itertools
import sys
import textwrap

import pytest

from kedro_rerun.code import CodeIndex
from kedro_rerun.functions import describe_function

packages = itertools.count()


class Source:
    """A package made of snippets, under a name of its own."""

    def __init__(self, folder, monkeypatch) -> None:
        self.name = f"closure{next(packages)}"
        self.folder = folder / self.name
        self.cache = folder / "cache.json"
        self.folder.mkdir()
        self.write("__init__", "")
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()

    def write(self, module: str, text: str) -> None:
        path = self.folder / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent != self.folder and path.name != "__init__.py":
            (path.parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text).replace("PKG", self.name))

    def closure(self, entry: str, **options):
        module, _, name = entry.partition(":")
        index = CodeIndex([self.name], cache=self.cache, **options)
        closure = index.closure([(f"{self.name}.{module}", name)])
        index.save()
        return closure

    def parts(self, entry: str, **options) -> set[str]:
        return {part.removeprefix(f"{self.name}.") for part in self.closure(entry, **options).parts}


@pytest.fixture
def source(tmp_path, monkeypatch) -> Source:
    return Source(tmp_path, monkeypatch)


HELPERS = """
    LIMIT = 3
    TABLE = {}
    TABLE["x"] = 1

    def used(): return LIMIT
    def other(): return TABLE
    class Thing:
        def method(self): return other()
    class Child(Thing): pass
"""

CASES = {
    "a name from a module": ("from PKG.helpers import used\ndef f(): used()", {"used", "LIMIT"}),
    "under another name": ("from .helpers import used as u\ndef f(): u()", {"used", "LIMIT"}),
    "of a module": ("from PKG import helpers\ndef f(): helpers.used()", {"used", "LIMIT"}),
    "of a module by path": ("import PKG.helpers\ndef f(): PKG.helpers.used()", {"used", "LIMIT"}),
    "of a module with an alias": ("import PKG.helpers as h\ndef f(): h.used()", {"used", "LIMIT"}),
    "imported inside": (
        "def f():\n from PKG.helpers import used\n return used()",
        {"used", "LIMIT"},
    ),
    "a module imported inside": (
        "def f():\n import PKG.helpers as h\n h.used()",
        {"used", "LIMIT"},
    ),
    "imported inside, used in a nested function": (
        "def f():\n def g(): return h.used()\n import PKG.helpers as h\n return g",
        {"used", "LIMIT"},
    ),
    "a module from a package inside": (
        "def f():\n from PKG import helpers\n return helpers.used()",
        {"used", "LIMIT"},
    ),
    "imported under try": (
        "try:\n from PKG.helpers import used\nexcept ImportError: used = None\ndef f(): used()",
        {"used", "LIMIT"},
    ),
    "imported for types only": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from PKG.helpers import Thing\n"
        "def f(x: Thing): return x.method()",
        {"Thing", "other", "TABLE"},
    ),
    "a quoted annotation": (
        "from PKG.helpers import Thing\ndef f(x: 'list[Thing]'): pass",
        {"Thing", "other", "TABLE"},
    ),
    "a base class": (
        "from PKG.helpers import Child\ndef f(): Child()",
        {"Child", "Thing", "other", "TABLE"},
    ),
    "a variable and what fills it": ("from PKG.helpers import TABLE\ndef f(): TABLE", {"TABLE"}),
    "a default": ("from PKG.helpers import LIMIT\ndef f(x=LIMIT): pass", {"LIMIT"}),
    "a decorator": ("from PKG.helpers import used\n@used\ndef f(): pass", {"used", "LIMIT"}),
    "in a comprehension": (
        "from PKG.helpers import LIMIT\ndef f(): [LIMIT for x in ()]",
        {"LIMIT"},
    ),
    "shadowed by an argument": ("from PKG.helpers import LIMIT\ndef f(LIMIT): LIMIT", set()),
    "shadowed in a comprehension": (
        "from PKG.helpers import LIMIT\ndef f(): [LIMIT for LIMIT in ()]",
        set(),
    ),
    "imported, not used": ("from PKG.helpers import used\ndef f(): pass", set()),
    "a star": ("from PKG.helpers import *\ndef f(): used()", {"used", "LIMIT"}),
    "a module given away": (
        "from PKG import helpers\ndef f(x): getattr(helpers, x)()",
        {"LIMIT", "TABLE", "used", "other", "Thing", "Child"},
    ),
    "a module by its name": (
        "from importlib import import_module\ndef f(): import_module('PKG.helpers').used()",
        {"LIMIT", "TABLE", "used", "other", "Thing", "Child"},
    ),
    "a module for another process": (
        "def f(run): run(['python', '-m', 'PKG.helpers'])",
        {"LIMIT", "TABLE", "used", "other", "Thing", "Child"},
    ),
    "a name in a string": ("def f(load): load('PKG.helpers:used')", {"used", "LIMIT"}),
    "a name that a string ends": ("def f(load): load('PKG.helpers.used')", {"used", "LIMIT"}),
    "a name that nobody knows": (
        "from PKG.helpers import made_at_run_time\ndef f(): made_at_run_time()",
        {"LIMIT", "TABLE", "used", "other", "Thing", "Child"},
    ),
    "a literal that looks like a type": (
        "from typing import Literal\ndef f(x: Literal['used', 'PKG']): pass",
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_function_reaches(source, case):
    text, expected = CASES[case]
    source.write("helpers", HELPERS)
    source.write("nodes", text)
    reached = source.parts("nodes:f")
    assert {part for part in reached if part.startswith("helpers:")} == {
        f"helpers:{name}" for name in expected
    }
    # A second process reads the summaries that the first one kept.
    assert source.parts("nodes:f") == reached


def test_reexports_are_followed_to_the_definition(source):
    source.write("inner.deep", "def used(): pass\ndef other(): pass")
    source.write("inner.__init__", "from .deep import used")
    source.write("nodes", "from PKG.inner import used\ndef f(): used()")
    assert source.parts("nodes:f") == {"nodes:f", "inner.deep:used"}


def test_import_cycles_end(source):
    source.write("a", "from PKG.b import x\ndef y(): x()")
    source.write("b", "from PKG.a import y, x\ndef z(): y()")
    assert source.parts("a:y") >= {"a:y"}


def test_what_an_import_does_counts_and_what_it_guards_does_not(source):
    source.write("__init__", "print('package')")
    source.write(
        "helpers", "print('module')\nif __name__ == '__main__':\n print('script')\ndef g(): pass"
    )
    source.write("nodes", "from PKG import helpers\ndef f(): pass")
    parts = source.closure("nodes:f").parts
    assert set(parts) == {
        f"{source.name}:<import>",
        f"{source.name}.helpers:<import>",
        f"{source.name}.nodes:f",
    }
    source.write(
        "helpers", "print('module')\nif __name__ == '__main__':\n print('x')\ndef g(): pass"
    )
    assert source.closure("nodes:f").parts == parts


def test_registrations_count(source):
    source.write("registry", "ALL = {}\ndef enter(f):\n ALL[f.__name__] = f\n return f")
    source.write(
        "members",
        """
        import functools
        from PKG.registry import enter
        @enter
        def member(): return helper()
        @functools.cache
        def plain(): pass
        def helper(): pass
        """,
    )
    source.write(
        "nodes", "import PKG.members\nfrom PKG.registry import ALL\ndef f(): ALL['member']()"
    )
    assert source.parts("nodes:f") == {
        "nodes:f",
        "registry:ALL",
        "registry:enter",
        "members:member",
        "members:helper",
    }


def test_subclasses_that_their_base_records_count(source):
    source.write("base", "class Base:\n def __init_subclass__(cls): KINDS.append(cls)\nKINDS = []")
    source.write("kinds", "from PKG.base import Base\nclass A(Base): pass\nclass B: pass")
    source.write("nodes", "from PKG import base, kinds\ndef f(): base.KINDS")
    assert source.parts("nodes:f") == {"nodes:f", "base:KINDS", "base:Base", "kinds:A"}


def test_overloads_of_a_dispatched_function_count(source):
    source.write(
        "nodes",
        """
        from functools import singledispatch
        @singledispatch
        def encode(x): pass
        @encode.register
        def _(x: int): return helper()
        def helper(): pass
        def f(): encode(1)
        """,
    )
    assert source.parts("nodes:f") == {"nodes:f", "nodes:encode", "nodes:helper", "nodes:_"} - {
        "nodes:_"
    }


def test_methods_of_a_reached_class_are_followed(source):
    source.write("helpers", HELPERS)
    source.write(
        "nodes",
        """
        from PKG.helpers import used
        class Model:
            size: int = 3
            def build(self):
                from PKG.helpers import other
                return other()
            @property
            def name(self): return used()
        def f(config): return Model().build()
        """,
    )
    assert "helpers:other" in source.parts("nodes:f")
    assert "helpers:used" in source.parts("nodes:f")


def test_previews_for_kedro_viz_do_not_count(source):
    text = """
        def draw(x): return x
        class Data:
            def load(self): return 1
            def preview(self) -> JSONPreview: return draw({value})
        """
    source.write("nodes", text.format(value=1))
    before = source.closure("nodes:Data").parts
    assert set(before) == {f"{source.name}.nodes:Data"}
    source.write("nodes", text.format(value=2))
    assert source.closure("nodes:Data").parts == before


@pytest.mark.parametrize(
    "code",
    [
        "from pathlib import Path\ndef f(): Path(__file__).with_name('templates').iterdir()",
        "from importlib import resources\ndef f(): resources.files('PKG.sub')",
        "from importlib import resources\ndef f(name): resources.files(__package__) / name",
        "from pathlib import Path\nFOLDER = Path(__file__).parent / 'templates'\ndef f(): FOLDER",
    ],
)
def test_files_beside_the_code_count(source, code):
    source.write("sub.nodes", code)
    template = source.folder / "sub" / "templates" / "a.txt"
    template.parent.mkdir()
    template.write_text("one")
    before = source.closure("sub.nodes:f").parts
    template.write_text("two")
    after = source.closure("sub.nodes:f").parts
    changed = {name.rpartition(":")[2] for name in before if before[name] != after[name]}
    assert changed == {"templates/a.txt"}


def test_libraries_are_those_that_reached_code_names(source):
    source.write(
        "nodes",
        """
        import numpy as np
        import pandas
        from PIL import Image
        def f():
            import torch.nn.functional as F
            return np.zeros(1), Image.open, F.relu
        def g(): return pandas.DataFrame
        """,
    )
    assert source.closure("nodes:f").libraries == {"numpy", "PIL", "torch"}


def test_excluded_modules_do_not_count(source):
    source.write("tools.helpers", "def used(): pass")
    source.write("nodes", "from PKG.tools.helpers import used\ndef f(): used()")
    assert source.parts("nodes:f", excluded=[f"{source.name}.tools"]) == {"nodes:f"}


def test_eval_takes_the_whole_module(source):
    source.write("nodes", "def f(x): return eval(x)\ndef g(): pass")
    assert source.parts("nodes:f") == {"nodes:f", "nodes:g"}


def test_an_import_of_a_computed_module_takes_all_that_it_may_name(source):
    source.write("readers.a", "def read(): pass")
    source.write("readers.b", "def read(): pass")
    source.write("others.c", "def read(): pass")
    source.write(
        "nodes",
        "from importlib import import_module\ndef f(x): import_module(f'PKG.readers.{x}').read()",
    )
    assert source.parts("nodes:f") == {"nodes:f", "readers.a:read", "readers.b:read"}


def test_a_file_that_does_not_parse_counts_as_a_whole(source):
    source.write("helpers", "def used(:")
    source.write("nodes", "from PKG.helpers import used\ndef f(): used()")
    before = source.closure("nodes:f").parts
    source.write("helpers", "def used(:\n# x")
    assert source.closure("nodes:f").parts != before


def test_nothing_is_imported(source):
    source.write("helpers", "raise RuntimeError('imported')\ndef used(): pass")
    source.write("nodes", "def f():\n from PKG.helpers import used\n used()")
    assert "helpers:used" in source.parts("nodes:f")
    assert not [name for name in sys.modules if name.startswith(source.name)]


def test_a_module_without_source_is_refused(source):
    with pytest.raises(ValueError, match=r"Found no source file for the module '.*missing' of 'f'"):
        source.closure("missing:f")


def outer(scale, key=""):
    def inner(x):
        return x * scale

    return inner


class Callable:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return x * self.scale

    def method(self, x):
        return x


@functools.cache
def cached(x):
    return x


HERE = __name__


@pytest.mark.parametrize(
    ("function", "entries", "bound"),
    [
        (outer, [(HERE, "outer")], {}),
        (outer(3), [(HERE, "outer")], {"scale": "3"}),
        (functools.partial(outer, 2, key="v"), [(HERE, "outer")], {"0": "2", "key": '"v"'}),
        (functools.partial(outer, outer(1)), [(HERE, "outer"), (HERE, "outer")], {"0.scale": "1"}),
        (Callable(2), [(HERE, "Callable")], {"scale": "2"}),
        (Callable(2).method, [(HERE, "Callable"), (HERE, "Callable")], {"self.scale": "2"}),
        (cached, [(HERE, "cached")], {}),
        (lambda x: x, [(HERE, "")], {}),
        (len, [("builtins", "len")], {}),
    ],
)
def test_functions_are_taken_apart(function, entries, bound):
    view = describe_function(function)
    assert view.entries == entries
    assert view.bound == bound


def test_a_value_without_a_stable_text_is_refused():
    with pytest.raises(ValueError, match="found a value of the type object"):
        describe_function(functools.partial(outer, object()))


def test_the_way_to_a_part_is_a_shortest_one(source):
    source.write("far", "LIMIT = 1\ndef deep():\n    return LIMIT\n")
    source.write(
        "near",
        "from PKG import far\ndef one():\n    return two()\ndef two():\n    return far.deep()\n",
    )
    source.write(
        "page",
        "from pathlib import Path\ndef render():\n"
        "    return Path(__file__).with_name('page.html').read_text()\n",
    )
    (source.folder / "page.html").write_text("<p>")
    source.write(
        "entry",
        "from PKG.near import one, two\nfrom PKG.page import render\n"
        "def f():\n    return one(), two(), render()\n",
    )
    closure = source.closure("entry:f")
    assert closure.way_to(f"{source.name}.entry:f") == []
    assert closure.way_to(f"{source.name}.near:two") == ["entry.f"]
    assert closure.way_to(f"{source.name}.far:LIMIT") == ["entry.f", "near.two", "far.deep"]
    assert closure.way_to(f"{source.name}.page:page.html") == ["entry.f", "page.render"]
    assert closure.way_to(f"{source.name}.far:nothing") == []
