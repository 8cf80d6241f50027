"""A small part of the campaigns of `campaigns/`; they themselves take hours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_500_mutants_of_every_kind_of_file_cost_themselves_alone():
    command = [sys.executable, "campaigns/mutants.py", "--count=500", "--workers=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)
    assert result.stdout, result.stderr[-3_000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["failures"] == {}
    assert found["tried"] == found["held"] == 500
