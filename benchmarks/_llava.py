"""The peer of two benchmarks: transformers' LLaVA with the dimensions of one of our models."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mm1_pipeline.config.model import MM1Config


def build_llava(
    config: MM1Config, image_id: int, connector: nn.Module, **text_options: Any
) -> LlavaForConditionalGeneration:
    """CLIP's ViT, our connector as the projector, Llama; its own weights are random.

    Args:
        config: dimensions; the encoder in CLIP's layout (class token, QuickGELU).
        image_id: token that stands for an image token.
        connector: takes the projector's place.
        text_options: further options of the Llama config.
    """
    decoder, vision = config.decoder, config.vision
    text = LlamaConfig(
        vocab_size=decoder.vocab_size,
        hidden_size=decoder.d_model,
        intermediate_size=decoder.d_ff,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        rms_norm_eps=decoder.norm_eps,
        rope_theta=decoder.rope_theta,
        tie_word_embeddings=decoder.tie_embeddings,
        **text_options,
    )
    encoder = CLIPVisionConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_size=vision.d_model,
        intermediate_size=vision.d_ff,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        hidden_act="quick_gelu",
    )
    whole = LlavaConfig(
        encoder,
        text,
        image_token_index=image_id,
        vision_feature_layer=-1,
        image_seq_length=config.connector.num_tokens,
        tie_word_embeddings=decoder.tie_embeddings,
    )
    whole._attn_implementation = "sdpa"
    model = LlavaForConditionalGeneration(whole)
    inner: Any = model.model
    inner.multi_modal_projector = connector
    return model
