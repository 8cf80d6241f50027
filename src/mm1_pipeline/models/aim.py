"""AIM: an encoder learns to predict an image's next patch from those before it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.config.pretraining import AimConfig
from mm1_pipeline.models.checkpoint import (
    check_weights,
    load_trained_encoder,
    save_part,
    save_vision_encoder,
)
from mm1_pipeline.models.flops import TRAINED, linear_flops, vision_flops
from mm1_pipeline.models.initialization import initialize
from mm1_pipeline.models.objective import Batch, Objective, ObjectiveOutput, ShardNeeds
from mm1_pipeline.models.pairs import mix
from mm1_pipeline.models.vit import VisionTransformer

HEAD = "pixel_head"
"""Folder beside a trained encoder that holds the head, by which it can be measured."""

_STEP_STRIDE = -0x61C8864680B583EB
"""Keeps the draws of neighbouring steps apart: 2^64 over the golden ratio."""
_VARIANCE_FLOOR = 1e-6
"""Added to a patch's variance, so that a patch of one colour is 0 and not noise."""


@dataclass(frozen=True)
class PatchPredictionShape:
    """What fixes the weights and the loss of `PatchPrediction`."""

    vision: VisionConfig
    aim: AimConfig


class PatchPrediction(Objective):
    """Squared error of each patch after a prefix, predicted from all patches before it.

    Patches come in reading order. A prefix of 1 to all but one patches is drawn for every
    image; its patches see each other, later ones see what comes before them, and losses are
    counted after the prefix only. So the encoder learns attention in both directions, which it
    is used with afterwards. An image's loss is the mean over its predicted patches.

    Source: MM1, Model (AIM = autoregressive pixel reconstruction); the prefix, the normalised
    pixels and the head are AIM's (arXiv 2401.08541); that every image counts alike is our
    choice.

    Args:
        vision: trained in place; the weights it holds are the start.
        config: the head and the targets.
        seed: of the head's weights.

    Raises:
        ValueError: the encoder has a class token, which has no place in an order of patches.
    """

    def __init__(self, vision: VisionTransformer, config: AimConfig, *, seed: int) -> None:
        super().__init__()
        if vision.class_embedding is not None:
            raise ValueError(
                "model.vision.class_token: found true, expected false: patches are predicted in "
                "order, and a class token has no place in it."
            )
        if vision.config.num_patches < 2:
            raise ValueError(
                f"model.vision: found {vision.config.num_patches} patch, expected at least 2, so "
                "that there is one to predict."
            )
        self.aim = config
        self.vision = vision
        self.head = PixelHead(config, vision.config.d_model, 3 * vision.config.patch_size**2)
        initialize(self.head, seed, prefix="head.")

    @property
    def config(self) -> PatchPredictionShape:
        """Shape of encoder and head."""
        return PatchPredictionShape(self.vision.config, self.aim)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Losses of the images of each sequence.

        Returns:
            losses float32[B], summed over a sequence's images; weights int64[B], how many
            there are.
        """
        losses = self.image_losses(batch["pixel_values"], batch["step"])
        counts = batch["images_per_sequence"].to(losses.device)
        rows = torch.arange(len(counts), device=losses.device)
        sequences = rows.repeat_interleave(counts, output_size=len(losses))
        return ObjectiveOutput(losses @ F.one_hot(sequences, len(counts)).to(losses.dtype), counts)

    def image_losses(self, pixel_values: Tensor, step: int) -> Tensor:
        """Losses of images.

        Args:
            pixel_values: float[N, 3, S, S].
            step: chooses the prefixes, see `draw_prefix_lengths`.

        Returns:
            float32[N].
        """
        prefix_lengths = self._prefix_lengths(pixel_values, step)
        predictions = self.head(self.vision(pixel_values, prefix_lengths))
        return self._losses(predictions, pixel_values, prefix_lengths)

    def constant_losses(self, pixel_values: Tensor, step: int) -> Tensor:
        """What predicting 0 everywhere would cost: with normalised pixels, each patch's mean.

        Args:
            pixel_values: float[N, 3, S, S].
            step: chooses the prefixes.

        Returns:
            float32[N].
        """
        zeros = torch.zeros_like(self.vision.patches(pixel_values))
        return self._losses(zeros, pixel_values, self._prefix_lengths(pixel_values, step))

    def _prefix_lengths(self, pixel_values: Tensor, step: int) -> Tensor:
        return draw_prefix_lengths(pixel_values, step, self.vision.config.num_patches)

    def _losses(self, predictions: Tensor, pixel_values: Tensor, prefix_lengths: Tensor) -> Tensor:
        patches = self.vision.patches(pixel_values)
        normalise = self.aim.normalise_pixels
        return patch_losses(predictions, patches, prefix_lengths, normalise=normalise)

    def count_targets(self, batch: Batch) -> int:
        """Images."""
        return len(batch["pixel_values"])

    def count_flops(self, batch: Batch) -> int:
        """Operations of forward and backward pass of encoder and head.

        Attention is counted whole: the prefix, which sees more than what comes before it, is
        drawn anew for every image.
        """
        head = linear_flops(self.head, self.vision.config.num_patches)
        return TRAINED * len(batch["pixel_values"]) * (vision_flops(self.vision.config) + head)

    def save(self, directory: Path) -> None:
        """Writes the encoder, and in a folder of its own the head."""
        save_vision_encoder(self.vision, directory)
        save_part(self.head.state_dict(), HEAD, asdict(self.aim), directory / HEAD)

    @property
    def needs(self) -> ShardNeeds:
        """Images must be of the encoder's size."""
        return ShardNeeds(image_size=self.vision.config.image_size)


def load_patch_prediction(directory: Path) -> PatchPrediction:
    """Reads encoder and head that `PatchPrediction.save` wrote, on the CPU.

    Args:
        directory: of the encoder.

    Raises:
        ValueError: there is no encoder, it was not trained by this objective, or files are
            damaged or do not fit each other.
    """
    encoder, weights, shape = load_trained_encoder(directory, HEAD, "aim")
    model = PatchPrediction(encoder, TypeAdapter(AimConfig).validate_python(shape), seed=0)
    check_weights(weights, model.head, directory / HEAD)
    model.head.load_state_dict(weights)
    return model


class PixelHead(nn.Module):
    """From patch embeddings to pixels of the next patch; later stages do not use it."""

    def __init__(self, config: AimConfig, d_model: int, num_pixels: int) -> None:
        super().__init__()
        width = config.head_width
        self.input = nn.Linear(d_model, width)
        self.layers = nn.ModuleList(HeadLayer(width) for _ in range(config.head_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_pixels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, D] to float[N, G, num_pixels]."""
        hidden = self.input(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.output(self.norm(hidden))


class HeadLayer(nn.Module):
    """A residual feed-forward map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.ModuleDict(
            {"up": nn.Linear(width, width), "down": nn.Linear(width, width)}
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps float[N, G, width] to float[N, G, width]."""
        inner = F.gelu(self.feed_forward["up"](self.norm(hidden)))
        return hidden + self.feed_forward["down"](inner)


def patch_losses(
    predictions: Tensor, patches: Tensor, prefix_lengths: Tensor, *, normalise: bool
) -> Tensor:
    """Mean squared error of the patches after the prefix.

    Args:
        predictions: float[N, G, P]; place k holds the prediction of patch k + 1, and the last
            place's is not used.
        patches: float[N, G, P], the pixels.
        prefix_lengths: int64[N], 1..G - 1.
        normalise: makes each target have mean 0 and variance 1 over its pixels.

    Returns:
        float32[N].
    """
    targets = patches[:, 1:].float()
    if normalise:
        targets = targets - targets.mean(dim=-1, keepdim=True)
        variance = targets.square().mean(dim=-1, keepdim=True)
        targets = targets * torch.rsqrt(variance + _VARIANCE_FLOOR)
    errors = (predictions[:, :-1].float() - targets).square().mean(dim=-1)
    places = torch.arange(1, patches.shape[1], device=patches.device)
    counts = places >= prefix_lengths.unsqueeze(1)
    return (errors * counts).sum(dim=1) / counts.sum(dim=1)


def draw_prefix_lengths(pixel_values: Tensor, step: int, num_patches: int) -> Tensor:
    """Draws a prefix for every image, from 1 to all patches but one, uniformly.

    The draw depends on the image and the step alone: it is the same on any number of ranks,
    in any microbatch and after a resume.

    Args:
        pixel_values: float[N, 3, S, S].
        step: optimizer step, from 0.
        num_patches: G, patches of an image.

    Returns:
        int64[N].
    """
    bits = pixel_values.float().contiguous().view(torch.int32)
    keys = mix(bits.flatten(1).sum(dim=1, dtype=torch.int64) + step * _STEP_STRIDE % 2**63)
    return 1 + ((keys >> 33) & 0x7FFFFFFF) % (num_patches - 1)
