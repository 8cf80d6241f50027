"""Fixtures of the report's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_samples import Run, sample_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return sample_run(tmp_path)
