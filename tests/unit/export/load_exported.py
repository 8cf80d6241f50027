"""Run alone: loads exported directories where this package cannot be imported.

Usage: load_exported.py DIRECTORY ...; beside each directory lies inputs.safetensors, and
outputs.safetensors is written there.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


class OnlyTransformers(MetaPathFinder):
    """Hides this package and what it needs beyond torch and transformers."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mm1_pipeline", "pydantic", "kedro", "composer", "streaming"):
            raise ModuleNotFoundError(name, name=name)


for name in [*sys.modules]:
    assert not name.startswith("mm1_pipeline"), name
sys.meta_path.insert(0, OnlyTransformers())

directories = [*map(Path, sys.argv[1:])]
for directory in directories:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    inputs: dict[str, Any] = load_file(directory.parent / "inputs.safetensors")
    with torch.no_grad():
        outputs = {"logits": model(**inputs).logits}
        half = {name: x for name, x in inputs.items() if name != "pixel_values"}
        text_only = {name: x[-1:] for name, x in half.items()}
        outputs["text_logits"] = model(**text_only).logits
        outputs["loss"] = model(**text_only, labels=text_only["input_ids"]).loss
    outputs["generated"] = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    if directory is directories[0]:
        model.save_pretrained(directory.parent / "again")
        again = transformers.AutoModelForCausalLM.from_pretrained(
            directory.parent / "again", trust_remote_code=True
        )
        with torch.no_grad():
            outputs["logits_again"] = again(**inputs).logits
    save_file(
        {name: x.contiguous() for name, x in outputs.items()},
        directory.parent / "outputs.safetensors",
    )
