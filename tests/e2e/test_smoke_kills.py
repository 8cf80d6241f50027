"""SIGKILL at random moments of a whole run: the next run completes, and nothing differs.

`MM1_KILLS=30 make test` kills more often; docs/experiments holds such a run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("MM1_KILLS", "2"))
ARTIFACTS = (
    "03_primary/records",
    "04_feature/tokenizer",
    "05_model_input/shards",
    "05_model_input/sft_shards",
    "06_models/pretrain",
    "06_models/upcycle",
    "06_models/dense_control",
    "06_models/sft",
    "07_model_output/predictions",
)
REPORTS = (
    "ingest_report.json",
    "shard_report.json",
    "mixture.json",
    "evaluation.json",
    "held_out_loss.json",
)

pytestmark = pytest.mark.timeout(60 + 60 * KILLS)


def fingerprint_of_results(data: Path) -> dict[str, object]:
    """Digest of every artifact's files, and the bytes of every report without timings."""
    results: dict[str, object] = {}
    for name in ARTIFACTS:
        root = data / name
        current = root / (root / "CURRENT").read_text().strip()
        results[name] = json.loads((current / "manifest.json").read_text())["digest"]
        left_over = [path.name for path in (root / ".staging").glob("*")]
        assert not left_over, f"{name}: staging holds {left_over}"
    for name in REPORTS:
        results[name] = (data / "08_reporting" / name).read_bytes()
    return results


@pytest.fixture(scope="module")
def undisturbed(make_smoke, tmp_path_factory):
    project = make_smoke(tmp_path_factory.mktemp("kills_undisturbed"))
    started = time.monotonic()
    status, output = project.run("run")
    assert status == 0, output
    return fingerprint_of_results(project.data), time.monotonic() - started


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_completes_and_gives_the_same_artifacts(
    undisturbed, make_smoke, tmp_path, number
):
    expected, seconds = undisturbed
    project = make_smoke(tmp_path)
    process = project.start("run")
    time.sleep(random.Random(f"kill {number}").uniform(0.1, 1.0) * seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, output = project.run("run")
    assert status == 0, output
    assert fingerprint_of_results(project.data) == expected
