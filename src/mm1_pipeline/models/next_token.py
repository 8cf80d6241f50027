"""Next-token prediction: the objective of multimodal pre-training and fine-tuning."""

from __future__ import annotations

from pathlib import Path

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.models.objective import Batch, Objective, ObjectiveOutput, ShardNeeds


class NextToken(Objective):
    """Cross-entropy of the next token at every labelled position.

    Source: MM1, Pre-training (all weights are trained).

    Args:
        model: trained in place; the weights it holds are the start.
    """

    def __init__(self, model: MM1) -> None:
        super().__init__()
        self.model = model

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
        )
        assert output.token_losses is not None
        return ObjectiveOutput(output.token_losses, batch["labels"] != IGNORED, output.terms)

    def count_targets(self, batch: Batch) -> int:
        """Positions that have a label."""
        return int((batch["labels"] != IGNORED).sum())

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
