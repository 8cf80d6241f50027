"""MM1: image encoder, connector and decoder, and how image tokens enter the text.

Shape letters: B rows, T positions of a row, N images, S pixels of a side, D decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models import losses
from mm1_pipeline.models.attention import DocumentLayout, KVCache, packed_attention
from mm1_pipeline.models.connectors import build_connector
from mm1_pipeline.models.decoder import Decoder
from mm1_pipeline.models.moe import RouterLog, router_terms
from mm1_pipeline.models.objective import Term, add_terms
from mm1_pipeline.models.vit import VisionTransformer


class MM1Output(NamedTuple):
    """What a forward pass gives."""

    hidden: Tensor
    """float[B, T, D], after the final norm; `MM1.logits` maps it to the vocabulary."""
    token_losses: Tensor | None
    """float32[B, T], cross-entropy, 0 where the label is -100; None without labels."""
    loss: Tensor | None
    """float32[], what training minimises: the mean over labelled positions plus the
    terms; None without labels."""
    terms: Mapping[str, Term] = {}
    """The router's losses and measurements, and the output's z-loss, where the decoder has
    them; empty without labels."""


class MM1(nn.Module):
    """A multimodal language model.

    Source: MM1, Model: image encoder -> vision-language connector -> decoder-only LLM, image
    tokens spliced among the text tokens at the image's place.

    Args:
        config: shape of the three parts.
        image_token_id: the placeholder; each image takes `connector.num_tokens` of them.
    """

    def __init__(self, config: MM1Config, image_token_id: int) -> None:
        super().__init__()
        if not 0 <= image_token_id < config.decoder.vocab_size:
            raise ValueError(
                f"Found image_token_id {image_token_id}, expected 0..vocab_size - 1 "
                f"({config.decoder.vocab_size - 1}). Take it from the tokenizer."
            )
        self.config = config
        self.image_token_id = image_token_id
        recompute = config.gradient_checkpointing
        self.vision = VisionTransformer(config.vision, recompute=recompute)
        self.connector = build_connector(config.connector, config.vision, config.decoder.d_model)
        self.decoder = Decoder(config.decoder, recompute=recompute)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        row_groups: Tensor | None = None,
    ) -> MM1Output:
        """One pass over packed sequences.

        Args:
            input_ids: int64[B, T].
            position_ids: int64[B, T], from 0 in each document.
            cu_seqlens: int32[num_documents + 1], borders of the documents over the B * T
                flattened positions; every row's border is one of them.
            pixel_values: float[N, 3, S, S], images in the order of their placeholders.
            labels: int64[B, T]; the token to predict at each position, or -100.
            row_groups: bool[G, B], rows whose router load is measured on its own.

        Raises:
            ValueError: placeholders and images do not match, or the borders do not cover the
                positions.
        """
        # The plan first: it is checked before anything is computed, and on a GPU it waits for
        # cu_seqlens while nothing else is queued.
        layout = DocumentLayout.from_cu_seqlens(cu_seqlens, input_ids.numel(), input_ids.device)

        embeddings = self.embed(input_ids, pixel_values)
        return decode_packed(
            self.decoder, embeddings, position_ids, layout, cu_seqlens, labels, row_groups
        )

    def token_losses(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        pixel_values: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Cross-entropy of every position, for callers that average by stream or by batch.

        Args:
            input_ids: see `forward`, as are the others.
            position_ids: int64[B, T].
            cu_seqlens: int32[num_documents + 1].
            pixel_values: float[N, 3, S, S].
            labels: int64[B, T].

        Returns:
            float32[B, T], 0 where the label is -100.
        """
        output = self(input_ids, position_ids, cu_seqlens, pixel_values, labels)
        assert output.token_losses is not None
        return output.token_losses

    def embed(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """Token embeddings with the image tokens in their places.

        The first `connector.num_tokens` placeholders, in reading order over the flattened
        batch, take the first image's tokens, and so on. Without images the encoder runs on
        none: its weights then get gradients of zero instead of none.

        Args:
            input_ids: int64[B, T].
            pixel_values: float[N, 3, S, S].

        Returns:
            float[B, T, D].

        Raises:
            ValueError: the placeholders are not N * num_tokens.
        """
        slots = (input_ids.flatten() == self.image_token_id).nonzero().squeeze(1)
        self._check_placeholders(len(slots), len(pixel_values))
        image_tokens = self.connector(self.vision(pixel_values)).flatten(0, 1)
        embeddings = self.decoder.embedding(input_ids)
        spliced = embeddings.flatten(0, 1).index_copy(
            0, slots.to(embeddings.device), image_tokens.to(embeddings)
        )
        return spliced.view(embeddings.shape)

    def make_cache(self, batch: int, max_positions: int) -> KVCache:
        """An empty cache that fits this model.

        Args:
            batch: rows that are generated together.
            max_positions: longest prompt plus tokens to generate.
        """
        config, weight = self.config.decoder, self.decoder.embedding.weight
        return KVCache(
            config.num_layers,
            batch,
            max_positions,
            config.num_kv_heads,
            config.head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward_cached(self, embeddings: Tensor, position_ids: Tensor, cache: KVCache) -> Tensor:
        """Hidden states of new positions, which see what the cache holds up to them.

        A prompt is one call with all its positions; each generated token is a call with one.
        Rows of different length are padded on the right, with position ids that go on rising;
        the next token of a row then takes the position right after its last real one.

        Args:
            embeddings: float[B, S, D], from `embed`.
            position_ids: int64[B, S].
            cache: written to.

        Returns:
            float[B, S, D], after the final norm.
        """
        hidden = self.decoder(
            embeddings.flatten(0, 1), position_ids.flatten(), cache.attend_at(position_ids)
        )
        return hidden.view(embeddings.shape)

    def extend_rows(
        self,
        embeddings: Tensor,
        cache: KVCache,
        first_row: int,
        starts: Sequence[int],
        lengths: Sequence[int],
    ) -> Tensor:
        """Hidden states at the end of rows that are read on by different lengths, unpadded.

        Args:
            embeddings: float[P, D] of the new positions, the rows laid end to end.
            cache: written to.
            first_row: row of the cache that the first belongs to; the others follow.
            starts: positions that the cache holds of each row already.
            lengths: new positions of each row; P together.

        Returns:
            float[len(lengths), D], after the final norm, of each row's last position.
        """
        position_ids, attend = cache.attend_after(first_row, starts, lengths)
        hidden = self.decoder(embeddings, position_ids, attend)
        ends = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
        return hidden.index_select(0, ends)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            hidden: float[..., D], after the final norm.

        Returns:
            float32[..., vocab_size].
        """
        return torch.nn.functional.linear(hidden, self.decoder.vocabulary_weight).float()

    def _check_placeholders(self, num_placeholders: int, num_images: int) -> None:
        per_image = self.config.connector.num_tokens
        if num_placeholders != num_images * per_image:
            raise ValueError(
                f"Found {num_placeholders} image placeholders (token {self.image_token_id}) but "
                f"the connector gives {num_images * per_image} image tokens ({num_images} images "
                f"x {per_image}). Packing must insert {per_image} placeholders an image."
            )


def decode_packed(
    decoder: Decoder,
    embeddings: Tensor,
    position_ids: Tensor,
    layout: DocumentLayout,
    cu_seqlens: Tensor,
    labels: Tensor | None,
    row_groups: Tensor | None = None,
) -> MM1Output:
    """One pass of a decoder over packed sequences, with the losses of next tokens.

    Args:
        decoder: of a whole model, or alone.
        embeddings: float[B, T, D], of tokens and image tokens.
        position_ids: int64[B, T], from 0 in each document.
        layout: of the documents.
        cu_seqlens: int32[num_documents + 1], which `layout` was made of.
        labels: int64[B, T]; the token to predict at each position, or -100.
        row_groups: bool[G, B], rows whose router load is measured on its own.
    """

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        return packed_attention(q, k, v, layout, window)

    router_log = None
    if labels is not None and decoder.config.moe is not None:
        counted = losses.documents_with_labels(labels.flatten(), cu_seqlens)
        if row_groups is not None:
            counted = row_groups.repeat_interleave(labels.shape[1], dim=1) & counted
        router_log = RouterLog(counted)
    hidden = decoder(embeddings.flatten(0, 1), position_ids.flatten(), attend, router_log)
    output = MM1Output(hidden.view(*position_ids.shape, -1), None, None)
    return output if labels is None else _with_losses(decoder, output, labels, router_log)


def _with_losses(
    decoder: Decoder, output: MM1Output, labels: Tensor, router_log: RouterLog | None
) -> MM1Output:
    config = decoder.config
    inputs = output.hidden.flatten(0, 1), decoder.vocabulary_weight, labels.flatten()
    num_labels = (labels != losses.IGNORED).sum().clamp(min=1)
    terms: dict[str, Term] = {}
    if config.moe is not None and router_log is not None:
        terms.update(router_terms(config.moe, router_log.stacked()))
    if config.output_z_weight:
        token_losses, z = losses.token_losses_and_z(*inputs)
        terms["output_z"] = Term(z.sum() / num_labels, config.output_z_weight)
    else:
        token_losses = losses.token_losses(*inputs)
    loss = add_terms(token_losses.sum() / num_labels, terms)
    return output._replace(token_losses=token_losses.view(labels.shape), loss=loss, terms=terms)
