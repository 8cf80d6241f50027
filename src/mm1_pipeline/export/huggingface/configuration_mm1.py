"""The shape of an exported model as transformers keeps it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class MM1HFConfig(PretrainedConfig):
    """Shape and special tokens of an MM1 model.

    Args:
        shape: the fields of `MM1Config`, nested; without it the config describes no model.
        image_token_id: the placeholder; each sub-image of an image takes `num_tokens` of them.
        **kwargs: what transformers keeps in every config.
    """

    model_type = "mm1"

    def __init__(
        self, shape: dict[str, Any] | None = None, image_token_id: int = 0, **kwargs: Any
    ) -> None:
        self.image_token_id = image_token_id
        if shape is not None:
            # Transformers keeps the size here where embeddings are resized, so it goes first.
            kwargs.setdefault("vocab_size", shape["decoder"]["vocab_size"])
            decoder = {**shape["decoder"], "vocab_size": kwargs["vocab_size"]}
            shape = {**shape, "decoder": decoder}
            # What transformers asks every decoder for, for example to make a cache.
            kwargs["hidden_size"] = decoder["d_model"]
            kwargs["num_hidden_layers"] = decoder["num_layers"]
            kwargs["num_attention_heads"] = decoder["num_heads"]
            kwargs["num_key_value_heads"] = decoder["num_kv_heads"]
            kwargs["head_dim"] = decoder["d_head"] or decoder["d_model"] // decoder["num_heads"]
        self.shape = shape
        # The decoder ties its embeddings itself; transformers has nothing to tie.
        super().__init__(**{**kwargs, "tie_word_embeddings": False})
