"""Encoders of open_clip with drawn weights: their tensors, and the outputs that open_clip gave.

The outputs in open_clip_encoders.json were made where open_clip is installed, which this
project's environment has not:

    pip install --no-deps open_clip_torch==3.3.0 timm ftfy wcwidth
    python tests/golden/models/open_clip_encoders.py
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORED = Path(__file__).with_suffix(".json")
STRIDE = 7
"""Every so many values of an output are stored."""
SIZES = dict(image_size=28, patch_size=7, width=32, head_width=8, layers=2)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick_gelu": dict(quick_gelu=True),
    "layer_scale": dict(ls_init_value=0.1),
    "clipa": dict(no_ln_pre=True, pool_type="avg", final_ln_after_pool=True),
    "no_norm_before": dict(no_ln_pre=True),
    "epsilon": dict(norm_kwargs={"eps": 1e-2}),
    "tanh": dict(act_kwargs={"approximate": "tanh"}),
    "plain_gelu_said": dict(act_kwargs={"approximate": "none"}),
    "two_heads": dict(head_width=16),
    "mlp_ratio": dict(mlp_ratio=2.625),
    "average_pool": dict(pool_type="avg"),
    "attentional_pool": dict(attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2),
    "sines": dict(pos_embed_type="sin_cos_2d"),
    "patch_dropout": dict(patch_dropout=0.5),
    "custom_block": dict(block_type="custom"),
    "custom_block_layer_scale": dict(block_type="custom", ls_init_value=0.1),
    "larger_images": dict(loaded_size=42),
    "smaller_images": dict(loaded_size=21),
}
REFUSED: dict[str, dict[str, Any]] = {
    "qk_norm": dict(qk_norm=True),
    "scaled_cosine_attn": dict(scaled_cosine_attn=True),
    "scale_heads": dict(scale_heads=True),
    "scale_attn_inner": dict(scale_attn_inner=True),
    "scale_attn": dict(scale_attn=True),
    "scale_fc": dict(scale_fc=True),
    "timm_model_name": dict(timm_model_name="vit_tiny_patch16_224"),
    "layers": dict(layers=[1, 1, 1, 1], width=16),
}
"""The case is the field that is named."""


def model_config(case: str) -> dict[str, Any]:
    """Content of open_clip_config.json."""
    options = {key: x for key, x in (CASES | REFUSED)[case].items() if key != "loaded_size"}
    quick = options.pop("quick_gelu", False)
    vision = {**SIZES, **options}
    text = dict(context_length=8, vocab_size=16, width=16, heads=2, layers=1)
    extra = {"quick_gelu": True} if quick else {}
    model = dict(embed_dim=24, vision_cfg=vision, text_cfg=text, **extra)
    return {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}


def draw(name: str, shape: list[int]) -> Tensor:
    """The values of a tensor follow from its name."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        values /= 2.0 if "positional" in name else np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.3 * values + ("bias" not in name and "embedding" not in name)
    return torch.from_numpy(np.asarray(values, np.float32))


def images(size: int) -> Tensor:
    return draw(f"images {size}", [2, 3 * size * size]).view(2, 3, size, size) * size * 1.7


def sampled(output: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in output.flatten()[::STRIDE].tolist()]


def make() -> None:  # pragma: no cover - needs open_clip
    import open_clip  # pyright: ignore[reportMissingImports]
    from open_clip.model import CLIP, resize_pos_embed  # pyright: ignore[reportMissingImports]

    stored = {}
    for case, options in (CASES | REFUSED).items():
        model = CLIP(**model_config(case)["model_cfg"]).eval()
        weights = {
            name: value
            if "sin_cos" in str(options) and name == "visual.positional_embedding"
            else draw(name, list(value.shape))
            for name, value in model.state_dict().items()
            if value.is_floating_point() and not name.endswith("attn_mask")
        }
        size = options.get("loaded_size", SIZES["image_size"])
        shapes = {name: list(value.shape) for name, value in weights.items()}
        stored[case] = {"shapes": shapes}
        if case in REFUSED:
            continue
        if "loaded_size" in options:
            content = model_config(case)["model_cfg"]
            content["vision_cfg"]["image_size"] = size
            model = CLIP(**content).eval()
            resize_pos_embed(weights, model)
        model.load_state_dict(weights, strict=False)
        visual = model.visual
        with torch.no_grad():
            hidden = visual.transformer(visual._embeds(images(size)))
            is_pooled_first = visual.final_ln_after_pool or visual.attn_pool is not None
            hidden = hidden if is_pooled_first else visual.ln_post(hidden)
        output = hidden[:, 1:]
        stored[case]["output"] = sampled(output)
        stored[case]["scale"] = float(f"{output.abs().max().item():.3g}")
    stored["version"] = open_clip.__version__
    text = (
        json.dumps(stored).replace('"shapes"', '\n  "shapes"').replace('"output"', '\n  "output"')
    )
    STORED.write_text(text + "\n")


if __name__ == "__main__":
    make()
