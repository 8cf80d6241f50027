"""Next-token prediction: the objective of a whole model and of a decoder alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mm1_pipeline.config.model import DecoderConfig, MM1Config
from mm1_pipeline.config.shard import PackingConfig
from mm1_pipeline.models.attention import DocumentLayout
from mm1_pipeline.models.checkpoint import save_decoder, save_model
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.flops import TRAINED, PackedSizes, decoder_flops, training_flops
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.memory import activation_bytes, decoder_bytes
from mm1_pipeline.models.mm1 import MM1, decode_packed
from mm1_pipeline.models.objective import Batch, Objective, ObjectiveOutput, ShardNeeds


class NextToken(Objective):
    """Cross-entropy of the next token at every labelled position.

    Source: MM1, Pre-training (all weights are trained).

    Args:
        model: trained in place; the weights it holds are the start.
        num_streams: streams of the mixture, for each of which the load of experts is measured;
            None measures over all together.
    """

    def __init__(self, model: MM1, num_streams: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._num_streams = num_streams

    @property
    def config(self) -> MM1Config:
        """Shape of the model."""
        return self.model.config

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Losses of every position, and the decoder's terms.

        Returns:
            losses float32[B, T], 0 where there is no label.
        """
        output = self.model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            cu_seqlens=batch["cu_seqlens"],
            pixel_values=batch["pixel_values"],
            labels=batch["labels"],
            row_groups=self._rows_by_stream(batch),
        )
        assert output.token_losses is not None
        return ObjectiveOutput(output.token_losses, batch["labels"] != IGNORED, output.terms)

    def _rows_by_stream(self, batch: Batch) -> Tensor | None:
        """bool[num_streams, B]; None where nothing is routed."""
        if self._num_streams is None or self.config.decoder.moe is None:
            return None
        stream_ids = batch["stream_ids"]
        return torch.arange(self._num_streams, device=stream_ids.device)[:, None] == stream_ids

    def count_targets(self, batch: Batch) -> int:
        """Positions that have a label."""
        return int((batch["labels"] != IGNORED).sum())

    def count_flops(self, batch: Batch) -> int:
        """Operations of forward and backward pass, those of the encoder included."""
        sizes = PackedSizes.of_batch(batch["cu_seqlens"], batch["labels"])
        vision_trained = any(weight.requires_grad for weight in self.model.vision.parameters())
        num_images = len(batch["pixel_values"])
        return training_flops(self.config, sizes, num_images, vision_trained=vision_trained)

    def activation_bytes(
        self, num_sequences: int, packing: PackingConfig, *, in_bfloat16: bool
    ) -> int:
        """Of encoder and decoder, every position labelled and every place of an image taken."""
        positions = num_sequences * packing.sequence_length
        return activation_bytes(
            self.config,
            positions,
            num_sequences * packing.max_images,
            positions,
            in_bfloat16=in_bfloat16,
            recompute=self.config.gradient_checkpointing,
        ).total

    def save(self, directory: Path) -> None:
        """Writes the whole model."""
        save_model(self.model, directory)

    @property
    def needs(self) -> ShardNeeds:
        """All three: tokens, pixels and positions an image takes."""
        config = self.config
        return ShardNeeds(
            config.decoder.vocab_size, config.vision.image_size, config.connector.num_tokens
        )

    @property
    def law_parameters(self) -> int:
        """Source: MM1, Pre-training (the decoder's size, not the encoder's)."""
        return self.config.decoder.non_embedding_parameters


class NextTextToken(Objective):
    """Cross-entropy of the next token of a decoder alone, on sequences without images.

    Source: MM1, Pre-training (the decoder starts from one trained on text).

    Args:
        decoder: trained in place; the weights it holds are the start.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    @property
    def config(self) -> DecoderConfig:
        """Shape of the decoder."""
        return self.decoder.config

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Losses of every position, and the decoder's terms.

        Returns:
            losses float32[B, T], 0 where there is no label.
        """
        input_ids = batch["input_ids"]
        layout = DocumentLayout.from_cu_seqlens(
            batch["cu_seqlens"], input_ids.numel(), input_ids.device
        )
        output = decode_packed(
            self.decoder,
            self.decoder.embedding(input_ids),
            batch["position_ids"],
            layout,
            batch["cu_seqlens"],
            batch["labels"],
        )
        assert output.token_losses is not None
        return ObjectiveOutput(output.token_losses, batch["labels"] != IGNORED, output.terms)

    def count_targets(self, batch: Batch) -> int:
        """Positions that have a label.

        Raises:
            ValueError: there are images, which a decoder alone cannot see.
        """
        if len(batch["pixel_values"]):
            raise ValueError(
                f"text_pretrain.training.mixture: found {len(batch['pixel_values'])} images in a "
                f"batch ({'; '.join(batch['sample_keys'][:3])}), expected none: the decoder is "
                "trained alone. Name sources of text only."
            )
        return int((batch["labels"] != IGNORED).sum())

    def count_flops(self, batch: Batch) -> int:
        """Operations of forward and backward pass."""
        sizes = PackedSizes.of_batch(batch["cu_seqlens"], batch["labels"])
        return TRAINED * decoder_flops(self.config, sizes)

    def activation_bytes(
        self, num_sequences: int, packing: PackingConfig, *, in_bfloat16: bool
    ) -> int:
        """Of the decoder, every position labelled."""
        positions = num_sequences * packing.sequence_length
        recompute = self.decoder.recompute
        how = {"in_bfloat16": in_bfloat16, "recompute": recompute}
        return sum(decoder_bytes(self.config, positions, positions, **how))

    def save(self, directory: Path) -> None:
        """Writes the decoder."""
        save_decoder(self.decoder, directory)

    @property
    def needs(self) -> ShardNeeds:
        """Tokens only."""
        return ShardNeeds(vocab_size=self.config.vocab_size)

    @property
    def law_parameters(self) -> int:
        """Source: MM1, Pre-training."""
        return self.config.non_embedding_parameters
