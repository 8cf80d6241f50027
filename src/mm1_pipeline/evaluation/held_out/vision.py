"""An image encoder at the task it was trained for, on what its training never saw.

CLIP: which text belongs to an image, and which image to a text, among all held-out ones.
AIM: the error of predicted patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mm1_pipeline.config.evaluation import EvaluateConfig
from mm1_pipeline.config.pretraining import VisionObjective, VisionPretrainConfig, WeightSource
from mm1_pipeline.evaluation.held_out.caption_losses import DIGITS
from mm1_pipeline.models.aim import PatchPrediction, load_patch_prediction
from mm1_pipeline.models.clip import Contrastive, load_contrastive
from mm1_pipeline.models.device import usable_device
from mm1_pipeline.models.pairs import text_keys
from mm1_pipeline.streams.loader import build_validation_loader

POOLED = "validation"
"""Name of the set of all sources' held-out images."""

RANKS = (1, 5, 10)
"""Recall is counted among so many best candidates."""

# Not the parameter `batch_size`, which is operational and so must not touch any digit.
_SEQUENCES_TOGETHER = 8
_STEP = 0
"""Prefixes of AIM are drawn by image and step; here every step is this one."""


class Pairs(NamedTuple):
    """M images with their texts, in the common space."""

    images: Tensor
    """float32[M, E], of length 1."""
    texts: Tensor
    """float32[M, E], of length 1; row i is the text of image i."""
    keys: Tensor
    """int64[M], equal for equal texts."""


class PatchErrors(NamedTuple):
    """Errors of N images, each the mean over its predicted patches."""

    losses: Tensor
    """float32[N], of the model."""
    constant: Tensor
    """float32[N], of predicting 0 (with normalised pixels: every patch's own mean)."""


Measured = TypeVar("Measured", Pairs, PatchErrors)


def held_out_vision(
    config: EvaluateConfig, pretraining: VisionPretrainConfig, encoder_dir: Path, shards_dir: Path
) -> dict[str, Any]:
    """Measures an encoder on the held-out images of the sources that it was trained on.

    Args:
        config: `max_validation_items` images of each source, and the device.
        pretraining: what it was trained for, and on which sources.
        encoder_dir: what the stage `vision_pretrain` wrote.
        shards_dir: what it was trained on.

    Returns:
        Empty for an encoder that was not trained here. Else {"objective": "clip" or "aim",
        "sets": {SET: see `retrieval` and `patch_errors`}}; sets are `validation` over all
        sources, and `validation: SOURCE` for each with two images or more.
    """
    if pretraining.source is not WeightSource.TRAIN:
        return {}
    device = torch.device(usable_device(config.device))
    streams = pretraining.training.mixture.streams.values()
    batches = {
        source: _held_out_batches(shards_dir, source, device)
        for stream in streams
        for source in stream.sources
    }
    limit = config.max_validation_items
    match pretraining.objective:
        case VisionObjective.CLIP:
            towers = load_contrastive(encoder_dir).to(device).eval()
            sets = _sets(batches, limit, lambda batch: embed_pairs(towers, batch), retrieval)
        case VisionObjective.AIM:
            model = load_patch_prediction(encoder_dir).to(device).eval()
            sets = _sets(batches, limit, lambda batch: predict(model, batch), patch_errors)
    return {"objective": pretraining.objective.value, "sets": sets}


def retrieval(pairs: Pairs) -> dict[str, Any]:
    """Share of images whose text is among the best texts of all, and the reverse.

    Equal texts are one candidate, and each of their images is a right one. A right candidate
    stands behind every wrong one that is as similar, so that a model that tells nothing apart
    finds nothing.

    Source: MM1 names no such number; recall at 1, 5 and 10 in both directions is CLIP's (arXiv
    2103.00020, zero-shot retrieval). Candidates are all images and texts of the set.

    Args:
        pairs: at least 2.

    Returns:
        {"image_to_text" and "text_to_image": {"n" (queries), "candidates", "recall": {"1": x,
        ...}, "chance": {"1": what a random order gives, ...}}}.
    """
    first_of: dict[int, int] = {}
    for place, key in enumerate(pairs.keys.tolist()):
        first_of.setdefault(key, place)
    chosen = torch.tensor(list(first_of.values()), device=pairs.keys.device)
    similarity = pairs.images @ pairs.texts[chosen].T  # [M, K]
    is_right = pairs.keys.unsqueeze(1) == pairs.keys[chosen]
    return {
        "image_to_text": _recall(similarity, is_right),
        "text_to_image": _recall(similarity.T, is_right.T),
    }


def patch_errors(errors: PatchErrors) -> dict[str, Any]:
    """Mean over images.

    Returns:
        {"n" (images), "loss", "constant" (the loss of predicting 0)}.
    """
    return {
        "n": len(errors.losses),
        "loss": round(float(errors.losses.double().mean()), DIGITS),
        "constant": round(float(errors.constant.double().mean()), DIGITS),
    }


def embed_pairs(model: Contrastive, batch: Mapping[str, Any]) -> Pairs:
    """The pairs of a batch in the common space."""
    found = model.pairs(batch)
    images = model.embed_images(batch["pixel_values"])[found.images]
    return Pairs(images, model.embed_texts(found)[found.texts], text_keys(found)[found.texts])


def predict(model: PatchPrediction, batch: Mapping[str, Any]) -> PatchErrors:
    """The errors of a batch's images."""
    pixel_values = batch["pixel_values"]
    return PatchErrors(
        model.image_losses(pixel_values, _STEP), model.constant_losses(pixel_values, _STEP)
    )


def _recall(similarity: Tensor, is_right: Tensor) -> dict[str, Any]:
    """Of queries (rows) among candidates (columns)."""
    num_queries, num_candidates = similarity.shape
    best_right = similarity.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
    num_before = ((similarity >= best_right) & ~is_right).sum(dim=1)
    num_right = is_right.sum(dim=1).tolist()
    ranks = [rank for rank in RANKS if rank < num_candidates]
    return {
        "n": num_queries,
        "candidates": num_candidates,
        "recall": {str(k): round(float((num_before < k).double().mean()), DIGITS) for k in ranks},
        "chance": {str(k): round(_chance(num_candidates, num_right, k), DIGITS) for k in ranks},
    }


def _chance(num_candidates: int, num_right: list[int], rank: int) -> float:
    """Mean probability that one of the right candidates is among `rank` random ones."""
    ways = math.comb(num_candidates, rank)
    missed = [math.comb(num_candidates - right, rank) / ways for right in num_right]
    return 1 - sum(missed) / len(missed)


@torch.inference_mode()
def _sets(
    batches: Mapping[str, Iterable[Mapping[str, Any]]],
    limit: int,
    measure: Callable[[Mapping[str, Any]], Measured],
    summarise: Callable[[Measured], dict[str, Any]],
) -> dict[str, Any]:
    """Measures the first images of every source, and sums them up alone and together."""
    measured: dict[str, Measured] = {}
    for source, of_source in batches.items():
        parts: list[Measured] = []
        for batch in of_source:
            parts.append(measure(batch))
            if sum(len(part[0]) for part in parts) >= limit:
                break
        if sum(len(part[0]) for part in parts) >= 2:
            measured[source] = _first(_joined(parts), limit)
    if not measured:
        return {}
    return {
        POOLED: summarise(_joined(list(measured.values()))),
        **{f"{POOLED}: {source}": summarise(found) for source, found in measured.items()},
    }


def _joined(parts: list[Measured]) -> Measured:
    return type(parts[0])(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _first(measured: Measured, limit: int) -> Measured:
    return type(measured)(*(field[:limit] for field in measured))


def _held_out_batches(
    shards_dir: Path, source: str, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A source's held-out sequences that have images, on the device."""
    for batch in build_validation_loader(shards_dir, source, _SEQUENCES_TOGETHER):
        if len(batch["pixel_values"]):
            yield {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
