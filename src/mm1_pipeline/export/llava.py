"""What transformers' LLaVA needs beside its weights, and what it cannot hold."""

from __future__ import annotations

from typing import Any

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.config.shard import ImageTransform, Resize, SubImageConfig
from mm1_pipeline.models.convert.llava import why_not_llava
from mm1_pipeline.streams.tokenizer import IMAGE

_BICUBIC = 3
"""Pillow's number of the filter."""


def check_llava(shape: MM1Config, transform: ImageTransform, sub_images: SubImageConfig) -> None:
    """Refuses a model that transformers' LLaVA would not compute as it was trained.

    Args:
        shape: of the model.
        transform: how images became pixels in training.
        sub_images: how large images were shown in training.

    Raises:
        ValueError: naming every parameter that stands in the way, and why.
    """
    if reasons := why_no_llava(shape, transform, sub_images):
        raise ValueError(
            "export.layout: found llava, but LlavaForConditionalGeneration cannot compute this "
            f"model: {'; '.join(reasons)}. Train one of that shape, or export it with layout: own."
        )


def why_no_llava(
    shape: MM1Config | None,
    transform: ImageTransform | None = None,
    sub_images: SubImageConfig | None = None,
) -> list[str]:
    """What `check_llava` refuses, each with its parameter; None is not looked at."""
    reasons = why_not_llava(shape) if shape is not None else []
    if transform is not None and transform.resize is not Resize.SQUASH:
        reasons.append(
            f"image.resize: {transform.resize.value} -> squash (its processor pads and crops by "
            "other rules)"
        )
    if sub_images is not None and sub_images.grid > 1:
        reasons.append(f"sub_images.grid: {sub_images.grid} -> 1 (it shows an image once)")
    return reasons


def llava_processors(shape: MM1Config, transform: ImageTransform) -> dict[str, dict[str, Any]]:
    """Content of the processors' files, by file name.

    Args:
        shape: of the model.
        transform: how images became pixels in training; squashed.
    """
    common = {"processor_class": "LlavaProcessor"}
    square = {"height": transform.size, "width": transform.size}
    return {
        "preprocessor_config.json": {
            **common,
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": square,
            "resample": _BICUBIC,
            "do_center_crop": False,
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(transform.mean),
            "image_std": list(transform.std),
        },
        "processor_config.json": {
            **common,
            "image_token": IMAGE,
            "patch_size": shape.vision.patch_size,
            "vision_feature_select_strategy": "default",
            # The class token, which the strategy leaves out again.
            "num_additional_image_tokens": 1,
        },
    }
