"""Which loop trains, and that nothing of the project needs Composer."""

from __future__ import annotations

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm1_pipeline.training import engine
from mm1_pipeline.training.engine import choose_engine

FOLDER = Path(engine.__file__).parent


@pytest.fixture
def composer(monkeypatch):
    """Answers for Composer: its version, what it asks for, whether its import works."""
    answers = {"version": "0.32.1", "requires": ["torch<2.7.1,>=2.6.0"], "error": None}

    def version(name):
        assert name == "mosaicml"
        if answers["version"] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return answers["version"]

    def import_composer():
        if answers["error"] is not None:
            raise answers["error"]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: answers["requires"])
    monkeypatch.setattr(engine, "_import_composer", import_composer)
    monkeypatch.setattr(torch, "__version__", "2.7.0+cu126")
    return answers


def test_composer_is_the_default_where_it_says_that_it_works(composer):
    assert choose_engine("auto") == "composer"
    assert choose_engine("composer") == "composer"
    assert choose_engine("torch") == "torch"


@pytest.mark.parametrize(
    "requires",
    [
        None,
        ["torchvision<0.22.1", "numpy"],
        ["torch==1.0; extra == 'old'", "torch==1.0; python_version < '3'"],
        ["torch>=2"],
    ],
)
def test_limits_that_do_not_apply_do_not_count(composer, requires):
    composer["requires"] = requires
    assert choose_engine("auto") == "composer"


@pytest.mark.parametrize("version", ["2.7.1", "2.14.1+cpu", "2.15.0.dev20261101", "2.5.1"])
def test_a_torch_that_composer_does_not_know_takes_our_own_loop(composer, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert choose_engine("auto") == "torch"
    assert choose_engine("composer") == "composer", "against its own word, if it is asked for"


def test_without_composer_our_own_loop_trains(composer):
    composer["version"] = None
    assert choose_engine("auto") == "torch"
    with pytest.raises(
        ValueError, match=r"engine: found composer, but .* is not installed, and"
    ) as e:
        choose_engine("composer")
    assert "Expected torch or auto" in str(e.value)
    assert "STACK=pinned" in str(e.value)


@pytest.mark.parametrize("error", [ImportError("_post_backward_final_callback"), RuntimeError()])
def test_a_composer_that_cannot_be_imported_is_told_and_left(composer, caplog, error):
    composer["error"] = error
    with caplog.at_level(logging.WARNING):
        assert choose_engine("auto") == "torch"
    assert f"cannot be imported ({type(error).__name__}: {error}); trainings" in caplog.text
    caplog.clear()
    with pytest.raises(ValueError, match=r"found composer, but Composer 0.32.1 cannot be imported"):
        choose_engine("composer")
    assert not caplog.records, "nothing trains, by whatever engine"


def test_all_of_the_training_is_imported_with_a_composer_that_is_broken(tmp_path):
    """As torch's next deletion will break it; it may not even be looked at."""
    package = tmp_path / "composer"
    package.mkdir()
    package.joinpath("__init__.py").write_text("raise AttributeError('torch has no _tensor')")
    names = [path.stem for path in sorted(FOLDER.glob("*.py"))]
    names = [name for name in names if name not in ("__init__", "composer_engine")]
    code = (
        "import importlib, importlib.metadata, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for name in {names}: importlib.import_module('mm1_pipeline.training.' + name)\n"
        "assert 'composer' not in sys.modules\n"
        "from mm1_pipeline.training.engine import choose_engine\n"
        "importlib.metadata.version = lambda name: '0.32.1'\n"
        "importlib.metadata.requires = lambda name: []\n"
        "assert choose_engine('auto') == 'torch'\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "AttributeError: torch has no _tensor" in finished.stderr, "the warning"
