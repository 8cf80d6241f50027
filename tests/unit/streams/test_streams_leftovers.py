"""What killed runs leave is removed; what others use is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mm1_pipeline.streams.leftovers import TemporaryFolder, remove_leftovers


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder for temporary files and one for data."""
    for name in ("tmp", "data"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def in_killed_process(function: Callable[[], object]) -> None:
    """Runs a function in a process that is then killed, as no `finally` sees it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        kept = function()
        os.write(writing, b"r")
        time.sleep(60)
        del kept
        os._exit(0)
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_goes_with_its_run(machine):
    with TemporaryFolder("meeting") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "ranks").touch()
        assert remove_leftovers() == []
        assert names(folder) == [".alive", "ranks"]
    assert names(machine / "tmp") == []


def test_a_killed_runs_folder_goes_at_once(machine):
    in_killed_process(lambda: (TemporaryFolder("join").path / "log").write_bytes(b"x" * 100))
    in_killed_process(lambda: TemporaryFolder("join"))  # kept until it is killed
    told = remove_leftovers(dry_run=True)
    assert [size for _, size in told] in ([0, 100], [100, 0])
    assert len(names(machine / "tmp")) == 2
    assert remove_leftovers() == told
    assert names(machine / "tmp") == []


def test_large_folders_elsewhere_are_found_by_their_link(machine):
    place = machine / "data" / "cache"
    alive = TemporaryFolder("cache", place)
    in_killed_process(lambda: TemporaryFolder("cache", place))
    assert len(names(place)) == 2
    assert names(machine / "tmp") == names(place)
    ((removed, _),) = remove_leftovers()
    assert removed.parent == place
    assert names(machine / "tmp") == names(place) == [alive.path.name]
    alive.close()
    alive.close()
    assert names(machine / "tmp") == names(place) == []


def test_without_its_link_a_folder_is_found_where_it_lies(machine):
    """A restart of the machine clears temporary files."""
    place = machine / "data" / "cache"
    in_killed_process(lambda: TemporaryFolder("cache", place))
    (link,) = (machine / "tmp").iterdir()
    link.unlink()
    assert remove_leftovers() == []
    assert [path.parent for path, _ in remove_leftovers(place)] == [place]
    assert names(place) == []


def test_the_link_of_a_folder_that_was_removed_by_hand_goes(machine):
    in_killed_process(lambda: TemporaryFolder("cache", machine / "data"))
    (folder,) = (machine / "data").iterdir()
    (folder / ".alive").unlink()
    folder.rmdir()
    assert [path for path, _ in remove_leftovers()] == [machine / "tmp" / folder.name]
    assert names(machine / "tmp") == []


def test_what_is_not_a_runs_stays(machine, monkeypatch):
    """Without a lock, a link to another name, and whatever another user made."""
    (machine / "tmp" / "mm1-of-somebody-else").mkdir()
    (machine / "data" / ".alive").touch()
    (machine / "tmp" / "mm1-link").symlink_to(machine / "data")
    in_killed_process(lambda: TemporaryFolder("cache", machine / "data"))
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    assert remove_leftovers(machine / "data") == []
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(machine / "tmp"))
    assert len(remove_leftovers()) == 1
    assert names(machine / "tmp") == ["mm1-link", "mm1-of-somebody-else"]
    assert names(machine / "data") == [".alive"]


def test_a_process_that_outlives_its_parent_does_not_keep_the_folder(machine):
    """As those that read data do, which notice late that nobody waits for them."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        folder = TemporaryFolder("cache")
        if os.fork() == 0:
            folder.close()  # not its own
            os.write(writing, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reading, 20))
    assert remove_leftovers() == [], "the parent lives"
    assert len(names(machine / "tmp")) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.kill(grandchild, 0)
    assert len(remove_leftovers()) == 1
    os.kill(grandchild, signal.SIGKILL)


def test_looking_for_leftovers_needs_no_torch():
    code = "import sys; import mm1_pipeline.streams.leftovers\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
