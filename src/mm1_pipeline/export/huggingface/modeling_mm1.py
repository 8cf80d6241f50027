"""An MM1 model with transformers' calling convention: padded batches, its caches, `generate`.

The network is the project's own `MM1`. Shape letters: B rows, S new positions of a row, C
positions that are seen (those in the cache and the new), V vocabulary.
"""

# pyright: reportIncompatibleMethodOverride=false, reportArgumentType=false
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
from mm1_pipeline.models.connectors import CONNECTORS
from mm1_pipeline.models.losses import IGNORED
from mm1_pipeline.models.mm1 import MM1

_CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
"""What transformers calls a cache: from 5.24 on, and before."""


class TiedEmbedding(torch.nn.Embedding):
    """Token embeddings that are the map to the vocabulary too.

    One module for both, because a weight is only at hand inside its module where modules lie on
    several devices or on the disk.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Maps int64[...] to float[..., D], and float[..., D] to float[..., V]."""
        return F.linear(input, self.weight) if input.is_floating_point() else super().forward(input)


class MM1ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Next tokens after text with images.

    Args:
        config: shape of the model.
    """

    config_class = MM1HFConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    # What adds its input to its output, or holds weights of its own beside those of its modules.
    _no_split_modules = [  # noqa: RUF012  as transformers reads it
        "DecoderLayer",
        "VisionLayer",
        *(connector.__name__ for connector in CONNECTORS.values()),
    ]

    def __init__(self, config: MM1HFConfig) -> None:
        super().__init__(config)
        assert config.shape is not None, "config.json has no shape"
        self.model = MM1(build(MM1Config, config.shape), config.image_token_id)
        decoder = self.model.decoder
        if decoder.head is None:
            decoder.embedding = TiedEmbedding(decoder.config.vocab_size, decoder.config.d_model)
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token embeddings."""
        return self.model.decoder.embedding

    def set_input_embeddings(self, value: torch.nn.Embedding) -> None:
        """Replaces the token embeddings; the output head too where it is tied."""
        if self.model.decoder.head is None and not isinstance(value, TiedEmbedding):
            value = TiedEmbedding.from_pretrained(value.weight, freeze=False)
        self.model.decoder.embedding = value

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """The map to the vocabulary, where it is not tied."""
        return self.model.decoder.head

    def set_output_embeddings(self, new_embeddings: torch.nn.Linear) -> None:
        """Replaces the map to the vocabulary."""
        self.model.decoder.head = new_embeddings

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: an exported directory holds every weight."""

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        """The model's own way, which computes each layer again in the backward pass."""
        self.gradient_checkpointing = enable
        self.model.vision.recompute = self.model.decoder.recompute = enable

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
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
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
            logits_to_keep: last positions whose logits are computed, 0 is all; or their indices.
            cache: `past_key_values` by its newer name.
            output_hidden_states: whether to return what enters each layer, and what leaves the
                final norm.
            output_attentions: not computed; the kernels keep no weights of attention.
            return_dict: False for a tuple.

        Returns:
            logits float32[B, S, V], loss, cache, hidden_states float[B, S, D].

        Raises:
            ValueError: placeholders and images do not match, or attentions are asked for.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError(
                "Found output_attentions=True, but this model's kernels keep no weights of "
                "attention. Leave it out."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        recomputes = self.model.decoder.recompute and torch.is_grad_enabled()
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None and not recomputes:
            cache = DynamicCache()
        embeddings = (
            self._embed(input_ids, pixel_values) if inputs_embeds is None else inputs_embeds
        )
        num_rows, num_new = embeddings.shape[:2]
        num_past = 0 if cache is None else int(cache.get_seq_length())
        device = embeddings.device
        if attention_mask is None:
            attention_mask = torch.ones(num_rows, num_past + num_new, device=device)
        real = attention_mask[:, : num_past + num_new].bool()
        if position_ids is None:
            position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, num_past:]
        entered: list[Tensor] = []
        watches = [
            layer.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
            for layer in (self.model.decoder.layers if output_hidden_states else ())
        ]
        try:
            hidden = self.model.decoder(
                embeddings.flatten(0, 1),
                position_ids.expand(num_rows, num_new).flatten(),
                _attend(cache, _visible(real, num_past), num_rows),
            ).view(embeddings.shape)
        finally:
            for watch in watches:
                watch.remove()
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = (self.model.decoder.head or self.get_input_embeddings())(hidden[:, kept]).float()
        states = (*(each.view(embeddings.shape) for each in entered), hidden)
        output = CausalLMOutputWithPast(
            loss=None if labels is None else _next_token_loss(logits, labels),
            logits=logits,
            hidden_states=states if output_hidden_states else None,
            **{_CACHE: cache},
        )
        wants_dict = (
            getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        )
        return output if wants_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        cache: Any = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the next call of `forward` gets: the positions that the cache does not hold."""
        cache = past_key_values if cache is None else cache
        num_past = 0 if cache is None else int(cache.get_seq_length())
        inputs = {
            _CACHE: cache,
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache", True),
            "logits_to_keep": kwargs.get("logits_to_keep", 0),
            "output_hidden_states": kwargs.get("output_hidden_states"),
            "output_attentions": kwargs.get("output_attentions"),
        }
        if inputs_embeds is not None and num_past == 0:
            generated = self.get_input_embeddings()(input_ids)
            return {**inputs, "inputs_embeds": torch.cat([inputs_embeds, generated], dim=1)}
        length = input_ids.shape[1] + (0 if inputs_embeds is None else inputs_embeds.shape[1])
        # A prompt that is read in pieces comes without what the cache holds.
        num_new = length - num_past if length > num_past else input_ids.shape[1]
        num_seen = input_ids.shape[1] - num_new
        if pixel_values is not None and num_seen:
            seen = self._num_sub_images(input_ids[:, :num_seen])
            rows = pixel_values.split(self._num_sub_images(input_ids))
            pixel_values = torch.cat([row[n:] for row, n in zip(rows, seen, strict=True)])
        has_images = pixel_values is not None and len(pixel_values) > 0
        return {
            **inputs,
            "input_ids": input_ids[:, num_seen:],
            "pixel_values": pixel_values if has_images else None,
        }

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Repeats each row with its images, of which it may have several or none."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and input_ids is not None:
            rows = pixel_values.split(self._num_sub_images(input_ids))
            pixel_values = torch.cat([row for row in rows for _ in range(expand_size)])
        parent: Any = super()
        input_ids, kwargs = parent._expand_inputs_for_generation(
            expand_size=expand_size, input_ids=input_ids, **kwargs
        )
        return input_ids, {**kwargs, "pixel_values": pixel_values}

    def _num_sub_images(self, input_ids: Tensor) -> list[int]:
        """How many of `pixel_values` belong to each row."""
        is_placeholder = input_ids == self.model.image_token_id
        return (is_placeholder.sum(1) // self.model.config.connector.num_tokens).tolist()

    def _embed(self, input_ids: Tensor | None, pixel_values: Tensor | None) -> Tensor:
        assert input_ids is not None, "give input_ids or inputs_embeds"
        if pixel_values is None:
            if (input_ids == self.model.image_token_id).any():
                raise ValueError(
                    f"Found image placeholders (token {self.model.image_token_id}) but no "
                    "pixel_values. Give the images, or leave their placeholders out."
                )
            return self.get_input_embeddings()(input_ids)
        return self.model.embed(input_ids, pixel_values.to(input_ids.device, self.dtype))


def _visible(real: Tensor, num_past: int) -> Tensor:
    """bool[B, 1, S, C]: earlier positions that are no pads; and itself, so that no row of scores
    is empty, not even a pad's.
    """
    slots = torch.arange(real.shape[1], device=real.device)
    new = slots[num_past:, None]
    return ((slots <= new) & real[:, None] | (slots == new)).unsqueeze(1)


def _attend(cache: Any, visible: Tensor, num_rows: int) -> Callable[..., Tensor]:
    """Attention over a cache of transformers', as `Decoder.forward` calls it."""
    num_new, num_seen = visible.shape[-2:]
    slots = torch.arange(num_seen - num_new, num_seen, device=visible.device)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        queries, keys, values = (x.unflatten(0, (num_rows, -1)).transpose(1, 2) for x in (q, k, v))
        mask = visible.to(q.device)
        if window is not None:
            # Pads lie before a row or behind it, so slots are as far apart as positions.
            ages = slots[:, None] - torch.arange(num_seen, device=slots.device)
            mask = mask & (ages < window).to(q.device)
        if cache is not None:
            new_slots = {"cache_position": slots.to(q.device)}
            keys, values = cache.update(keys, values, layer, new_slots)
            # A static cache is longer than what it holds.
            mask = F.pad(mask, (0, keys.shape[-2] - num_seen))
        repeats = q.shape[1] // k.shape[1]
        attended = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(repeats, 1),
            values.repeat_interleave(repeats, 1),
            attn_mask=mask,
        )
        return attended.transpose(1, 2).flatten(0, 1)

    return attend


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    targets = labels[:, 1:].flatten().to(logits.device)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORED)
