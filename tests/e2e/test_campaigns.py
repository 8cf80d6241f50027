"""A small part of the campaigns of `campaigns/`; docs/robustness.md has the whole of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
needs_compiler = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="stands before calls of the C library on Linux",
)


def run_campaign(name: str, *arguments: str, seconds: int) -> dict[str, Any]:
    command = [sys.executable, f"campaigns/{name}.py", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert result.stdout, result.stderr[-3_000:]
    try:
        found = json.loads(result.stdout.splitlines()[-1])
    except ValueError:
        pytest.fail(result.stdout[-3_000:] + result.stderr[-3_000:])
    assert found["failures"] == {}
    assert result.returncode == 0
    return found


def test_500_mutants_of_every_kind_of_file_cost_themselves_alone():
    found = run_campaign("mutants", "--count=500", "--seed=1", "--workers=1", seconds=290)
    assert found["tried"] == found["held"] == 500


@needs_compiler
@pytest.mark.timeout(900)
def test_after_40_kills_and_full_disks_in_all_stages_a_run_gives_the_same_artifacts(tmp_path):
    options = ("--faults=40", "--per-chain=2", "--seed=1", "--workers=1", f"--place={tmp_path}")
    found = run_campaign("kills", *options, seconds=880)
    assert found["tried"] == found["held"] == 40
    kinds = ("open", "write", "rename", "remove", "folder", "sync")
    assert all(found["changes_a_run"][kind] > 20 for kind in kinds), "calls are seen"
    assert found["by_fault"].keys() == {"kill", "torn", "process", "full"}
    assert len(found["by_node"]) > 12, "of 20, and what comes before them"
    assert found["by_process"]["a process of its own"] == [2, 2], "every 20th"


@needs_compiler
@pytest.mark.timeout(300)
def test_a_training_that_is_killed_on_1_2_3_and_1_ranks_gives_the_same_losses(tmp_path):
    options = ("--chains=1", "--seed=1", f"--place={tmp_path}")
    found = run_campaign("rank_kills", *options, seconds=290)
    assert found["tried"] == found["held"] == 6
