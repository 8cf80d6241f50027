"""An MM1 model with transformers' calling convention: padded batches, its caches, `generate`.

The network is the project's own `MM1`. Shape letters: B rows, S new positions of a row, C
positions that are seen (those in the cache and the new), V vocabulary.
"""

# pyright: reportIncompatibleMethodOverride=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.export.huggingface.configuration_mm1 import MM1HFConfig
from mm1_pipeline.export.huggingface.parameters import build
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1


class MM1ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Next tokens after text with images.

    Args:
        config: shape of the model.
    """

    config_class = MM1HFConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012  the name that transformers reads

    def __init__(self, config: MM1HFConfig) -> None:
        super().__init__(config)
        assert config.shape is not None, "config.json has no shape"
        self.model = MM1(build(MM1Config, config.shape), config.image_token_id)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token embeddings."""
        return self.model.decoder.embedding

    def set_input_embeddings(self, value: torch.nn.Embedding) -> None:
        """Replaces the token embeddings; the output head too where it is tied."""
        self.model.decoder.embedding = value

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: an exported directory holds every weight."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token.

        Args:
            input_ids: int64[B, S]; image placeholders in the images' places.
            pixel_values: float[N, 3, H, W], the batch's images in order; with a cache, only
                those whose placeholders are among the new positions.
            attention_mask: int64[B, C], 0 at pads, on either side.
            position_ids: int64[B, S]; from the mask if not given.
            past_key_values: a cache of transformers'.
            inputs_embeds: float[B, S, D], instead of input_ids.
            labels: int64[B, S], -100 where nothing is predicted; shifted here.
            use_cache: whether to return a cache.
            logits_to_keep: last positions whose logits are computed; 0 is all.

        Returns:
            logits float32[B, S, V], loss, cache.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        embeddings = (
            self._embed(input_ids, pixel_values) if inputs_embeds is None else inputs_embeds
        )
        num_rows, num_new = embeddings.shape[:2]
        num_past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        device = embeddings.device
        if attention_mask is None:
            attention_mask = torch.ones(num_rows, num_past + num_new, device=device)
        real = attention_mask[:, : num_past + num_new].bool()
        if position_ids is None:
            position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, num_past:]
        hidden = self.model.decoder(
            embeddings.flatten(0, 1),
            position_ids.expand(num_rows, num_new).flatten(),
            _attend(past_key_values, _visible(real, num_past), num_rows),
        ).view(embeddings.shape)
        logits = self.model.logits(hidden[:, -logits_to_keep:])
        return CausalLMOutputWithPast(
            loss=None if labels is None else _next_token_loss(logits, labels),  # pyright: ignore[reportArgumentType]
            logits=logits,  # pyright: ignore[reportArgumentType]
            past_key_values=past_key_values,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the next call of `forward` gets: the positions that the cache does not hold."""
        num_past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        return {
            "input_ids": input_ids[:, num_past:],
            "pixel_values": pixel_values if num_past == 0 else None,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache", True),
        }

    def _embed(self, input_ids: Tensor | None, pixel_values: Tensor | None) -> Tensor:
        assert input_ids is not None, "give input_ids or inputs_embeds"
        if pixel_values is None:
            if (input_ids == self.model.image_token_id).any():
                raise ValueError(
                    f"Found image placeholders (token {self.model.image_token_id}) but no "
                    "pixel_values. Give the images, or leave their placeholders out."
                )
            return self.model.decoder.embedding(input_ids)
        weight = self.model.decoder.embedding.weight
        return self.model.embed(input_ids, pixel_values.to(weight))


def _visible(real: Tensor, num_past: int) -> Tensor:
    """bool[B, 1, S, C]: earlier positions that are no pads; and itself, so that no row of scores
    is empty, not even a pad's.
    """
    slots = torch.arange(real.shape[1], device=real.device)
    new = slots[num_past:, None]
    return ((slots <= new) & real[:, None] | (slots == new)).unsqueeze(1)


def _attend(cache: Any, visible: Tensor, num_rows: int) -> Callable[..., Tensor]:
    """Attention over a cache of transformers', as `Decoder.forward` calls it."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x.unflatten(0, (num_rows, -1)).transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            keys, values = cache.update(keys, values, layer)
        repeats = q.shape[1] // k.shape[1]
        attended = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=visible,
        )
        return attended.transpose(1, 2).flatten(0, 1)

    return attend


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)
