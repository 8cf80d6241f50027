"""Parameters of the stages that make what multimodal pre-training starts from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from mm1_pipeline.config._base import (
    Layers,
    Positive,
    Width,
    bounds,
    input_path,
    only,
    parameters,
)
from mm1_pipeline.config.training import MIXTURE_FIELDS, TrainingConfig


class WeightSource(StrEnum):
    """Where the weights of a part come from."""

    SCRATCH = "scratch"
    """Random ones; the part is first trained together with the others, by `pretrain`."""
    TRAIN = "train"
    """Trained by this stage."""
    FILE = "file"
    """Imported from a file of another program."""


class VisionObjective(StrEnum):
    """What an encoder is trained for (MM1, Encoder ablation)."""

    CLIP = "clip"
    """Telling which text belongs to an image."""
    AIM = "aim"
    """Predicting an image's next patch."""


@parameters
class ClipConfig:
    """Contrastive image-text training.

    Source: MM1, Model (CLIP); sizes of the text tower after CLIP (arXiv 2103.00020), which MM1
    does not give.
    """

    d_embedding: Width = 512
    """Width of the space in which images and texts are compared."""
    d_model: Width = 512
    """Width of the text tower."""
    num_layers: Layers = 12
    num_heads: Width = 8
    d_ff: Width = 2048
    initial_temperature: Annotated[float, bounds(gt=0, le=100)] = 0.07
    """Similarities are divided by it; it is learned."""
    max_scale: Positive = 100.0
    """Largest factor that similarities are multiplied by (1 / temperature)."""

    def __post_init__(self) -> None:
        if self.d_model % self.num_heads or (self.d_model // self.num_heads) % 2:
            raise ValueError(
                f"num_heads: found {self.num_heads}, expected a number that divides d_model "
                f"({self.d_model}) into heads of an even width."
            )


@parameters
class AimConfig:
    """Autoregressive patch prediction.

    Source: MM1, Model (AIM); the head after AIM (arXiv 2401.08541), which MM1 does not give.
    """

    head_layers: Annotated[int, bounds(ge=0, le=10_000)] = 12
    """Residual feed-forward layers between the encoder and the pixels; thrown away afterwards."""
    head_width: Width = 2048
    normalise_pixels: bool = True
    """Makes each target patch have mean 0 and variance 1."""


@parameters
class VisionPretrainConfig:
    """The stage `vision_pretrain`: the image encoder's first weights."""

    training: TrainingConfig
    """Used when `source` is `train`; its seed is also that of random weights. The learning rate
    must be given: the law speaks of decoders."""
    source: WeightSource = WeightSource.SCRATCH
    path: str | None = input_path(default=None)
    """With `source: file`: a .safetensors file, or the folder of a model, in the layout of
    CLIP, open_clip, SigLIP, SigLIP 2 or AIM v2. `model.vision` must describe it; another
    image_size is interpolated."""
    objective: VisionObjective = VisionObjective.CLIP
    clip: ClipConfig = ClipConfig()
    aim: AimConfig = AimConfig()

    def __post_init__(self) -> None:
        _check_source(self.source, self.path)
        if self.source is WeightSource.TRAIN and self.training.optimizer.learning_rate is None:
            raise ValueError(
                "training.optimizer.learning_rate: found null, expected a number: the "
                "learning-rate law speaks of decoders, and this stage trains none."
            )

    def mixture_part(self) -> VisionPretrainConfig:
        """What the order of the sequences depends on, if it is trained."""
        return only(self, *_MIXTURE_FIELDS)


@parameters
class TextPretrainConfig:
    """The stage `text_pretrain`: the decoder's first weights."""

    training: TrainingConfig
    """Used when `source` is `train`; its seed is also that of random weights. Its mixture must
    hold sources without images only."""
    source: WeightSource = WeightSource.SCRATCH
    path: str | None = input_path(default=None)
    """With `source: file`: a decoder in the layout of transformers. `model.decoder` must
    describe it, and the tokenizer must be its own."""

    def __post_init__(self) -> None:
        _check_source(self.source, self.path)

    def mixture_part(self) -> TextPretrainConfig:
        """What the order of the sequences depends on, if it is trained."""
        return only(self, *_MIXTURE_FIELDS)


_MIXTURE_FIELDS = ("source", *(f"training.{field}" for field in MIXTURE_FIELDS))


def _check_source(source: WeightSource, path: str | None) -> None:
    if source is WeightSource.FILE and path is None:
        raise ValueError("path: found null, expected a file or folder because source is file.")
    if source is not WeightSource.FILE and path is not None:
        raise ValueError(f"path: found {path!r}, expected null unless source is file.")
