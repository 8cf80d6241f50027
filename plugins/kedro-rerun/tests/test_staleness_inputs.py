"""What counts of files and folders that are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kedro_rerun.hash_cache import HashCache
from kedro_rerun.inputs import ABSENT, Selection, path_digest, path_state


def write(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize("kind", ["pipe", "gone", "self"])
def test_a_path_that_is_no_file_is_absent(kind, tmp_path):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    else:
        os.symlink("self" if kind == "self" else "nowhere", path)
    assert path_digest(Selection(str(path)), HashCache()) == ABSENT
    assert path_state(Selection(str(path))) == ABSENT


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_counts_by_its_name(tmp_path):
    write(tmp_path / "a").chmod(0)
    (tmp_path / "b").mkdir(mode=0)
    path_digest(Selection(str(tmp_path)), HashCache())
