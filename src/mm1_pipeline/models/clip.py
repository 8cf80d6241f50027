"""CLIP: an encoder learns to tell which text belongs to an image."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor, nn

from mm1_pipeline.config.model import DecoderConfig, VisionConfig
from mm1_pipeline.config.pretraining import ClipConfig
from mm1_pipeline.config.shard import ImageTransform
from mm1_pipeline.models.attention import DocumentLayout, packed_attention
from mm1_pipeline.models.checkpoint import (
    check_weights,
    load_trained_encoder,
    save_part,
    save_vision_encoder,
)
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.flops import (
    TRAINED,
    PackedSizes,
    decoder_flops,
    linear_flops,
    vision_flops,
)
from mm1_pipeline.models.gather import gather_rows, num_ranks
from mm1_pipeline.models.initialization import initialize
from mm1_pipeline.models.objective import Batch, Objective, ObjectiveOutput, ShardNeeds, Term
from mm1_pipeline.models.pairs import ImageTexts, pair_images_with_texts, text_keys
from mm1_pipeline.models.vit import VisionTransformer

HEADS = "contrastive"
"""Folder beside a trained encoder that holds all else of the objective."""

_ENCODER = "vision."


@dataclass(frozen=True)
class PairInputs:
    """How images and texts became what a contrastive model was trained on."""

    image: ImageTransform
    tokenizer_sha256: str
    """`Tokenizer.sha256`."""


@dataclass(frozen=True)
class _Heads:
    """What is stored with the weights that are not the encoder's."""

    clip: ClipConfig
    vocab_size: int
    image_token_id: int
    inputs: PairInputs


@dataclass(frozen=True)
class ContrastiveShape:
    """What fixes the weights and the loss of `Contrastive`."""

    vision: VisionConfig
    clip: ClipConfig
    vocab_size: int


class Contrastive(Objective):
    """Cross-entropy of finding an image's text among all texts of the batch, and the reverse.

    Each image of a packed sequence is paired with the text of its document. Texts that are
    equal are not told apart: for an image, the same text of another pair is left out, neither
    right nor wrong. With several ranks the batch is that of all ranks.

    Source: MM1, Model (CLIP); deviation: the loss, and a causal text tower that is read at the
    end of the text, are CLIP's (arXiv 2103.00020); leaving equal texts out and, for encoders
    without a class token, the mean of the patches are our choice.

    Args:
        vision: trained in place; the weights it holds are the start.
        config: sizes of the text tower and of the common space.
        vocab_size: of the shards' tokenizer.
        image_token_id: the tokenizer's placeholder for image tokens.
        seed: of the weights that are not the encoder's.
        inputs: how the pairs were made; without it `save` writes the encoder alone, because
            nobody could tell what to feed the rest.
    """

    compares_batch = True

    def __init__(
        self,
        vision: VisionTransformer,
        config: ClipConfig,
        *,
        vocab_size: int,
        image_token_id: int,
        seed: int,
        inputs: PairInputs | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.clip = config
        self.image_token_id = image_token_id
        self.vocab_size = vocab_size
        self.vision = vision
        self.image_norm = nn.LayerNorm(vision.config.d_model)
        self.image_projection = nn.Linear(vision.config.d_model, config.d_embedding, bias=False)
        self.text_tower = Decoder(_tower(config, vocab_size))
        self.text_projection = nn.Linear(config.d_model, config.d_embedding, bias=False)
        # One dimension, because FSDP cannot shard a scalar.
        self.log_scale = nn.Parameter(torch.tensor([-math.log(config.initial_temperature)]))
        for name in ("image_norm", "image_projection", "text_tower", "text_projection"):
            initialize(self.get_submodule(name), seed, prefix=f"{name}.")

    @property
    def config(self) -> ContrastiveShape:
        """Shape of both towers."""
        return ContrastiveShape(self.vision.config, self.clip, self.vocab_size)

    @property
    def scale(self) -> Tensor:
        """float32[], what similarities are multiplied by, at most `max_scale`."""
        limit = math.log(self.clip.max_scale)
        # The value is cut, the gradient is not: past the limit the weight can still come back.
        excess = (self.log_scale - limit).clamp(min=0).detach()
        return (self.log_scale - excess).squeeze().float().exp()

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Losses of the pairs of each sequence.

        Returns:
            losses float32[B], summed over a sequence's pairs; weights int64[B], how many there
            are; terms `retrieval_accuracy` (share of images whose own text is the most similar
            of the batch) and `temperature`.
        """
        pairs = self.pairs(batch)
        image_features = self.embed_images(batch["pixel_values"])[pairs.images]
        text_features = self.embed_texts(pairs)[pairs.texts]
        keys = text_keys(pairs)[pairs.texts]
        losses, accuracy = contrast(image_features, text_features, keys, self.scale)
        num_sequences = len(batch["input_ids"])
        in_sequence = F.one_hot(pairs.sequences, num_sequences).to(losses.dtype)  # [M, B]
        terms = {
            "retrieval_accuracy": Term(accuracy, 0.0),
            "temperature": Term(1 / self.scale.detach(), 0.0),
        }
        return ObjectiveOutput(losses @ in_sequence, in_sequence.sum(0).long(), terms)

    def embed_images(self, pixel_values: Tensor) -> Tensor:
        """Images in the common space.

        Args:
            pixel_values: float[N, 3, S, S].

        Returns:
            float32[N, d_embedding], of length 1.
        """
        features = self.vision.encode(pixel_values)
        has_class = self.vision.class_embedding is not None
        pooled = features[:, 0] if has_class else features.mean(dim=1)
        return F.normalize(self.image_projection(self.image_norm(pooled)).float(), dim=-1)

    def embed_texts(self, pairs: ImageTexts) -> Tensor:
        """Texts in the common space, each read at its last token.

        Args:
            pairs: N images with K texts, and which text is whose.

        Returns:
            float32[K, d_embedding], of length 1.
        """
        layout = DocumentLayout.from_cu_seqlens(
            pairs.cu_seqlens, len(pairs.input_ids), pairs.input_ids.device
        )

        def attend(
            _layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None
        ) -> Tensor:
            return packed_attention(q, k, v, layout, window) if len(q) else v

        embeddings = self.text_tower.embedding(pairs.input_ids)
        hidden = self.text_tower(embeddings, pairs.position_ids, attend)
        ends = hidden[pairs.cu_seqlens[1:] - 1]
        return F.normalize(self.text_projection(ends).float(), dim=-1)

    def count_targets(self, batch: Batch) -> int:
        """Pairs of an image and a text."""
        return len(self.pairs(batch).images)

    def count_flops(self, batch: Batch) -> int:
        """Operations of forward and backward pass of both towers and of their comparison.

        With several ranks, the others are taken to have as many pairs as this one.
        """
        pairs = self.pairs(batch)
        num_images, num_pairs = len(batch["pixel_values"]), len(pairs.images)
        lengths = pairs.cu_seqlens.diff()
        num_attended = int((lengths * (lengths + 1) // 2).sum())
        sizes = PackedSizes(len(pairs.input_ids), num_attended, num_labels=0)
        texts = decoder_flops(self.text_tower.config, sizes)
        images = num_images * vision_flops(self.vision.config)
        projections = linear_flops(self.image_projection, num_images) + linear_flops(
            self.text_projection, len(lengths)
        )
        # In both directions, this rank's rows against those of all ranks.
        compared = 2 * 2 * num_pairs * (num_pairs * num_ranks()) * self.clip.d_embedding
        return TRAINED * (images + texts + projections + compared)

    def save(self, directory: Path) -> None:
        """Writes the encoder, and in a folder of its own what else compares images with texts."""
        save_vision_encoder(self.vision, directory)
        if self.inputs is None:
            return
        weights = {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(_ENCODER)
        }
        heads = _Heads(self.clip, self.vocab_size, self.image_token_id, self.inputs)
        save_part(weights, HEADS, asdict(heads), directory / HEADS)

    @property
    def needs(self) -> ShardNeeds:
        """The tokenizer is the shards' own; images must be of the encoder's size."""
        return ShardNeeds(vocab_size=self.vocab_size, image_size=self.vision.config.image_size)

    def pairs(self, batch: Batch) -> ImageTexts:
        """The images of a batch with their texts."""
        return pair_images_with_texts(
            batch["input_ids"],
            batch["labels"],
            batch["cu_seqlens"],
            len(batch["pixel_values"]),
            self.image_token_id,
        )


def load_contrastive(directory: Path) -> Contrastive:
    """Reads both towers that `Contrastive.save` wrote, on the CPU.

    Args:
        directory: of the encoder.

    Raises:
        ValueError: there is no encoder, it was not trained by this objective, or files are
            damaged or do not fit each other.
    """
    encoder, weights, shape = load_trained_encoder(directory, HEADS, "clip")
    heads = TypeAdapter(_Heads).validate_python(shape)
    model = Contrastive(
        encoder,
        heads.clip,
        vocab_size=heads.vocab_size,
        image_token_id=heads.image_token_id,
        seed=0,
        inputs=heads.inputs,
    )
    weights |= {f"{_ENCODER}{name}": tensor for name, tensor in encoder.state_dict().items()}
    check_weights(weights, model, directory / HEADS)
    model.load_state_dict(weights)
    return model


def contrast(
    image_features: Tensor, text_features: Tensor, text_ids: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The contrastive loss of this rank's pairs against the pairs of all ranks.

    Args:
        image_features: float32[M, E], of length 1.
        text_features: float32[M, E], of length 1; row i belongs to image i.
        text_ids: int64[M], equal for equal texts.
        scale: float32[], what similarities are multiplied by.

    Returns:
        float32[M], the mean of both directions' cross-entropy, and float32[], the share of
        images whose own text is the most similar (1 without pairs).
    """
    all_images, first = gather_rows(image_features)
    all_texts = gather_rows(text_features).rows
    all_ids = gather_rows(text_ids).rows
    own = torch.arange(first, first + len(text_ids), device=text_ids.device)
    is_other = torch.arange(len(all_ids), device=text_ids.device) != own.unsqueeze(1)
    hidden = is_other & (text_ids.unsqueeze(1) == all_ids)
    to_texts = (scale * image_features @ all_texts.T).masked_fill(hidden, -torch.inf)
    to_images = (scale * text_features @ all_images.T).masked_fill(hidden, -torch.inf)
    losses = 0.5 * (
        F.cross_entropy(to_texts, own, reduction="none")
        + F.cross_entropy(to_images, own, reduction="none")
    )
    if not len(own):
        return losses, scale.new_ones(())
    return losses, (to_texts.argmax(dim=1) == own).float().mean()


def _tower(config: ClipConfig, vocab_size: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        d_ff=config.d_ff,
    )
