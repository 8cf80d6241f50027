"""Nothing in the package reads what could run: no pickle, no evaluated text, without exception.

Processes that this package starts itself (`ProcessPoolExecutor` of corpus/engine.py and
streams/shards.py, `DataLoader` of streams/loader.py) hand objects to each other over pipes that
they inherit; nobody else has an end of those, and they are not looked for here.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "src", ROOT / "plugins" / "kedro-rerun" / "src")
SOURCES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py"))

MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve",
    "marshal", "jsonpickle", "dbm", "code", "runpy", "xmlrpc", "hickle",
    "multiprocessing.managers", "multiprocessing.reduction", "torch.distributed.checkpoint",
    "torch.distributed.rpc", "torch.package", "torch.hub", "logging.config",
}  # fmt: skip
"""Modules that unpickle, or run what they read. `pickletools` lists instructions and runs none: the
converter of weights reads with it."""

NAMES = {
    "eval", "exec", "compile", "__import__", "ForkingPickler", "Unpickler", "Pickler", "Listener",
    "read_pickle", "to_pickle", "unsafe_load", "full_load", "BaseManager", "SyncManager",
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list",
    "send_object_list", "recv_object_list", "__reduce__", "__reduce_ex__", "__setstate__",
    "load_state_dict_from_url",
}  # fmt: skip
"""Functions, classes and methods by their last name, called, named or defined."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
"""Which are other things as methods: `model.eval()`, `re.compile`."""

CALLS = {"torch.load", "torch.save", "torch.jit.load", "yaml.load", "yaml.load_all", "dill.load"}

FLAGS = {
    "allow_pickle": True,
    "weights_only": False,
    "allow_unsafe_types": True,
    "trust_remote_code": True,
}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names]
            for name in [*origin, *names, *(f"{origin[0]}.{name}" for name in names if origin)]:
                bad = (MODULES, NAMES, CALLS, {"numpy.load"})
                if name.split(".")[0] in MODULES or any(name in names for names in bad):
                    yield line, f"imports {name}"
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            if node.attr not in BUILTINS or dotted(node.value) == "builtins":
                yield line, dotted(node)
        elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
            yield line, node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in NAMES:
            yield line, f"defines {node.name}"
        elif isinstance(node, ast.Constant) and node.value in ("pickle", "marshal", "dill"):
            yield line, f"names {node.value!r}"
        if isinstance(node, ast.Call):
            called, flags = dotted(node.func), {flag.arg: flag.value for flag in node.keywords}
            if called in CALLS or (called.startswith("torch.") and called.endswith(".load")):
                yield line, called
            loads_arrays = called.rpartition(".")[2] == "load" and called.startswith(
                ("np.", "numpy.")
            )
            if loads_arrays and "allow_pickle" not in flags:
                yield line, f"{called} without allow_pickle=False"
            for name, bad in FLAGS.items():
                value = flags.get(name)
                if isinstance(value, ast.Constant) and value.value is bad:
                    yield line, f"{name}={bad}"
                elif name in flags and not isinstance(value, ast.Constant):
                    yield line, f"{name} that depends"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_reads_nothing_that_could_run(path: Path):
    assert list(findings(path.read_text(encoding="utf-8"))) == []


def test_no_module_switches_the_linter_off_for_it():
    """Ruff's own rules (S301 to S307, S506, S614 and kin) hold in src without an exception."""
    silenced = re.compile(r"noqa(?!:)|noqa:[^#]*\bS(30[1-7]|403|506|614)\b", re.IGNORECASE)
    for path in SOURCES:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT:
                    assert not silenced.search(token.string), f"{path}:{token.start[0]}"
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"S"' in re.search(r"select = \[(.*?)\]", settings, re.DOTALL)[1]
    assert not re.search(r'"src[^"]*" = \[', settings)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads as read",
        "from torch.distributed import checkpoint",
        "import torch.distributed.checkpoint as dcp",
        "from multiprocessing.reduction import ForkingPickler",
        "job = __import__('pickle').loads(data)",
        "import importlib; importlib.import_module('pickle')",
        "torch.load(path, weights_only=True)",
        "torch.serialization.load(path)",
        "from torch import load",
        "from numpy import load as read",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "eval('1')",
        "exec(text)",
        "builtins.eval(text)",
        "run = eval",
        "exec(compile(text, 'x', 'exec'))",
        "dist.broadcast_object_list(box, src=0)",
        "from torch.distributed import all_gather_object",
        "pandas.read_pickle(path)",
        "class A:\n    def __reduce__(self): ...",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "StreamingDataset(allow_unsafe_types=True)",
    ],
)
def test_what_could_run_is_found(code):
    assert list(findings(code))


@pytest.mark.parametrize(
    "code",
    [
        "re.compile('x'); model.eval(); torch.compile(model)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "json.loads(text); yaml.safe_load(text); ast.literal_eval(text)",
        "from concurrent.futures import ProcessPoolExecutor",
    ],
)
def test_what_is_harmless_is_not(code):
    assert not list(findings(code))
