"""The paper's model sizes, by name.

Decoders: the paper gives sizes only. The shapes are ours; those of 9M to 1.2B count, without
embeddings, what the learning-rate law's four sizes are called. Feed-forward widths are
multiples of 16.
"""

from __future__ import annotations

import dataclasses

from mm1_pipeline.config.model import (
    Activation,
    DecoderConfig,
    EmbeddingNorm,
    MoEConfig,
    PositionEmbedding,
    VisionConfig,
    VisionNorm,
)

VOCAB_SIZE = 100_352
"""Tokens of the decoders, a multiple of 128. Our choice: the paper gives none."""


def decoder_9m(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """9.5 million parameters without embeddings.

    Source: MM1, Pre-training (smallest size of the learning-rate grid); deviation: our shape.
    """
    return _decoder(vocab_size, d_model=256, num_layers=12, num_heads=4, num_kv_heads=4, d_ff=688)


def decoder_85m(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """85 million parameters without embeddings.

    Source: MM1, Pre-training (learning-rate grid); deviation: our shape.
    """
    return _decoder(
        vocab_size, d_model=768, num_layers=12, num_heads=12, num_kv_heads=12, d_ff=2048
    )


def decoder_302m(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """302 million parameters without embeddings.

    Source: MM1, Pre-training (learning-rate grid); deviation: our shape.
    """
    return _decoder(
        vocab_size, d_model=1024, num_layers=24, num_heads=16, num_kv_heads=16, d_ff=2736
    )


def decoder_1_2b(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """1.2 billion parameters without embeddings.

    Source: MM1, Model (decoder of the ablations); deviation: our shape.
    """
    return _decoder(
        vocab_size, d_model=2048, num_layers=24, num_heads=16, num_kv_heads=8, d_ff=6144
    )


def decoder_3b(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """2.96 billion parameters, embeddings included.

    Source: MM1, Pre-training; deviation: our shape, which also reaches the paper's total for
    64 experts in every 2nd layer.
    """
    return _decoder(
        vocab_size, d_model=3072, num_layers=28, num_heads=24, num_kv_heads=8, d_ff=7552
    )


def decoder_7b(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """6.89 billion parameters, embeddings included.

    Source: MM1, Pre-training; deviation: our shape, which also reaches the paper's total for
    32 experts in every 4th layer.
    """
    return _decoder(
        vocab_size, d_model=4096, num_layers=32, num_heads=32, num_kv_heads=8, d_ff=13056
    )


def decoder_30b(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """30.2 billion parameters, embeddings included.

    Source: MM1, Pre-training; deviation: our shape.
    """
    return _decoder(
        vocab_size, d_model=6400, num_layers=60, num_heads=50, num_kv_heads=50, d_ff=17152
    )


def decoder_3b_moe(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """64.3 billion parameters, of which 3.9 billion compute a position.

    Source: MM1, Mixture of experts (64 experts, every 2nd layer, 64B in total).
    """
    return dataclasses.replace(
        decoder_3b(vocab_size), moe=MoEConfig(num_experts=64, every_n_layers=2)
    )


def decoder_7b_moe(vocab_size: int = VOCAB_SIZE) -> DecoderConfig:
    """46.7 billion parameters, of which 8.2 billion compute a position.

    Source: MM1, Mixture of experts (32 experts, every 4th layer, 47B in total).
    """
    return dataclasses.replace(
        decoder_7b(vocab_size), moe=MoEConfig(num_experts=32, every_n_layers=4)
    )


def vit_tiny_16(image_size: int = 224) -> VisionConfig:
    """ViT-B/16 at a quarter of its width: 5.5 million parameters.

    Source: none; our choice, for laptops.
    """
    return VisionConfig(
        image_size=image_size, patch_size=16, d_model=192, num_layers=12, num_heads=3, d_ff=768
    )


def vit_b_16(image_size: int = 224) -> VisionConfig:
    """CLIP's ViT-B/16.

    Source: none; the smallest encoder that released weights exist for in many layouts.
    """
    return _clip(image_size, patch_size=16, d_model=768, num_layers=12, num_heads=12)


def vit_l_14(image_size: int = 336) -> VisionConfig:
    """CLIP's ViT-L/14.

    Source: MM1, Model (encoder of the ablations, 336 px).
    """
    return _clip(image_size, d_model=1024, num_layers=24, num_heads=16)


def vit_h_14(image_size: int = 378) -> VisionConfig:
    """CLIP's ViT-H/14.

    Source: MM1, Model (encoder of the final recipe, 378 px, DFN-5B).
    """
    return _clip(image_size, d_model=1280, num_layers=32, num_heads=16)


def aim_600m(image_size: int = 224) -> VisionConfig:
    """AIM's smallest encoder, 681 million parameters.

    Source: MM1, Encoder ablation (AIM 600M); shape after AIM (arXiv 2401.08541), unconfirmed.
    """
    return _aim(image_size, d_model=1536, num_heads=12)


def aim_1b(image_size: int = 224) -> VisionConfig:
    """AIM's 1.2 billion parameters.

    Source: MM1, Encoder ablation (AIM 1B); shape after AIM (arXiv 2401.08541), unconfirmed.
    """
    return _aim(image_size, d_model=2048, num_heads=16)


def aim_3b(image_size: int = 224) -> VisionConfig:
    """AIM's 2.7 billion parameters.

    Source: MM1, Encoder ablation (AIM 3B); shape after AIM (arXiv 2401.08541), unconfirmed.
    """
    return _aim(image_size, d_model=3072, num_heads=24)


def siglip2_so400m_14(image_size: int = 384) -> VisionConfig:
    """SigLIP 2's shape-optimised encoder, for import. 14 does not divide its 384 px: 378.

    Source: not in MM1; an encoder users bring.
    """
    return VisionConfig(
        image_size=image_size // 14 * 14,
        patch_size=14,
        d_model=1152,
        num_layers=27,
        num_heads=16,
        d_ff=4304,
        activation=Activation.GELU_TANH,
        norm_eps=1e-6,
        embedding_norm=EmbeddingNorm.NONE,
        patch_bias=True,
    )


def aimv2_l_14(image_size: int = 224) -> VisionConfig:
    """AIMv2's large encoder, for import.

    Source: not in MM1; the successor of its AIM encoders.
    """
    return VisionConfig(
        image_size=image_size,
        patch_size=14,
        d_model=1024,
        num_layers=24,
        num_heads=8,
        d_ff=2816,
        activation=Activation.SWIGLU,
        norm=VisionNorm.RMS_NORM,
        embedding_norm=EmbeddingNorm.PATCHES,
        bias=False,
        patch_bias=True,
    )


def _decoder(
    vocab_size: int,
    *,
    d_model: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    d_ff: int,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        d_ff=d_ff,
    )


def _clip(
    image_size: int, *, d_model: int, num_layers: int, num_heads: int, patch_size: int = 14
) -> VisionConfig:
    """A CLIP encoder with the layout of the released DFN and OpenAI weights."""
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=4 * d_model,
        activation=Activation.QUICK_GELU,
        class_token=True,
        final_norm=False,
    )


def _aim(image_size: int, *, d_model: int, num_heads: int) -> VisionConfig:
    """An AIM encoder: no biases, fixed positions, a norm at the end."""
    return VisionConfig(
        image_size=image_size,
        patch_size=14,
        d_model=d_model,
        num_layers=24,
        num_heads=num_heads,
        d_ff=4 * d_model,
        norm_eps=1e-6,
        embedding_norm=EmbeddingNorm.NONE,
        positions=PositionEmbedding.SINUSOIDAL,
        bias=False,
        patch_bias=True,
    )
