from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mm1_pipeline.reporting.checkpoint import count_parameters, summarize_model


def _save(directory: Path) -> Path:
    tensors = {
        "vision.blocks.0.weight": np.zeros((3, 5), np.float32),
        "vision.norm": np.zeros(3, np.float32),
        "connector.weight": np.zeros((2, 2), np.float16),
        "decoder.embedding": np.zeros((7, 4), np.float32),
        "decoder.scale": np.zeros((), np.float32),
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"model": {"vision": {"image_size": 64}}}))
    return directory / "model.safetensors"


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    assert count_parameters(_save(tmp_path)) == {"vision": 18, "connector": 4, "decoder": 29}
    summary = summarize_model(tmp_path)
    assert summary is not None
    assert summary.total_parameters == 51
    assert summary.config["vision"]["image_size"] == 64


def test_a_folder_without_a_model_has_no_summary(tmp_path: Path) -> None:
    assert summarize_model(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"<html><body></body>"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    weights = _save(tmp_path)
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: found .* Write the model anew"):
        count_parameters(weights)
