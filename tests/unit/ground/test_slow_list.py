"""The fast subset: what it leaves out exists, and every package is in it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LINES = [
    line
    for line in (ROOT / "tests" / "slow.txt").read_text().splitlines()
    if not line.startswith("#")
]
PACKAGES = sorted(
    path.parent.name for path in (ROOT / "src" / "mm1_pipeline").glob("*/__init__.py")
)


@pytest.fixture(scope="module")
def rule():
    spec = importlib.util.spec_from_file_location("slow", ROOT / "benchmarks" / "slow_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.slow_tests


def test_every_line_names_tests():
    gone = []
    for line in LINES:
        file, _, function = line.partition("::")
        path = ROOT / file
        name = f"def {function.rpartition('::')[2]}("
        if not path.exists() or (function and name not in path.read_text()):
            gone.append(line)
    assert gone == [], "mend tests/slow.txt, by hand or with benchmarks/slow_tests.py"


def test_every_package_has_fast_tests():
    folders = (ROOT / "tests", ROOT / "plugins" / "kedro-rerun" / "tests")
    imported = set()
    for path in (path for folder in folders for path in folder.rglob("test_*.py")):
        if not path.relative_to(ROOT).as_posix().startswith(tuple(LINES)):
            found = re.findall(
                r"\b(?:from|import) (kedro_rerun|mm1_pipeline\.\w+)", path.read_text()
            )
            imported.update(name.rpartition(".")[2] for name in found)
    missing = {*PACKAGES, "kedro_rerun"} - imported
    assert missing == set(), "tests/slow.txt leaves out every file that imports these packages"


def test_listed_tests_are_marked(request):
    listed = tuple(line for line in LINES if "::" not in line)
    for item in request.session.items:
        name = item.path.relative_to(ROOT).as_posix()
        is_listed = name.startswith(listed) or f"{name}::{item.originalname}" in LINES
        assert (item.get_closest_marker("slow") is not None) >= is_listed, item.nodeid


def test_the_rule(rule):
    durations = """
        1.00s call     tests/unit/test_a.py::test_b
        0.40s setup    tests/unit/test_a.py::test_b
        0.01s teardown tests/unit/test_a.py::test_b
        0.20s setup    tests/unit/test_c.py::test_d
        0.20s call     tests/unit/test_c.py::test_d[1]
        0.20s call     tests/unit/test_c.py::test_d[2]
        9.00s call     tests/unit/test_c.py::TestE::test_f[::]
        0.01s call     tests/unit/test_c.py::test_g[a]
        0.01s call     tests/unit/test_c.py::test_g[b]
        1.60s setup    tests/unit/test_h.py::test_i
        0.01s call     tests/unit/test_h.py::test_i
        9.00s call     tests/e2e/test_j.py::test_k
    12 passed in 3.00s
    """
    assert rule(iter(durations.splitlines())) == [
        "tests/e2e/",
        "tests/unit/test_c.py::TestE::test_f",
        "tests/unit/test_c.py::test_d",
        "tests/unit/test_h.py",
    ]
