"""Image encoders from other programs: CLIP, open_clip, SigLIP, SigLIP 2, AIM v2.

A layout is known by the names of its tensors. Sizes come from their shapes; what shapes do not
tell (heads, non-linearity, epsilon) comes from the JSON beside them, if there is one.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm1_pipeline.config.model import (
    Activation,
    EmbeddingNorm,
    PositionEmbedding,
    VisionConfig,
    VisionNorm,
)
from mm1_pipeline.models.checkpoint import is_saved_vision_encoder
from mm1_pipeline.models.safetensors_files import WeightFiles
from mm1_pipeline.models.vit import VisionTransformer, resize_positions

logger = logging.getLogger(__name__)


class VisionLayout(StrEnum):
    """How a checkpoint names and lays out the weights of an encoder."""

    CLIP = "clip"
    """transformers' CLIPModel, CLIPVisionModel, and LLaVA's vision tower."""
    SIGLIP = "siglip"
    """transformers' SiglipVisionModel, which SigLIP 2's fixed resolutions use too."""
    SIGLIP2 = "siglip2"
    """transformers' Siglip2VisionModel (NaFlex): patches are rows of a linear map."""
    OPEN_CLIP = "open_clip"
    """open_clip's, in which DFN5B-H/14-378 was released."""
    AIMV2 = "aimv2"
    """transformers' Aimv2VisionModel."""
    AIMV2_TRUNK = "aimv2_trunk"
    """AIM v2 under the names of its own code."""


@dataclass(frozen=True)
class _Names:
    """Tensor names of a layout; of several, the rows are joined."""

    patch: str
    positions: str
    embedding_norm: str | None
    final_norm: str
    layer: str
    attention_norm: str
    qkv: tuple[str, ...]
    attention_output: str
    feed_forward_norm: str
    up: str
    down: str
    gate: str | None = None
    class_embedding: str | None = None


_SELF_ATTENTION = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")

_SIGLIP_NAMES = _Names(
    patch="embeddings.patch_embedding.",
    positions="embeddings.position_embedding.weight",
    embedding_norm=None,
    final_norm="post_layernorm.",
    layer="encoder.layers.{}.",
    attention_norm="layer_norm1.",
    qkv=_SELF_ATTENTION,
    attention_output="self_attn.out_proj.",
    feed_forward_norm="layer_norm2.",
    up="mlp.fc1.",
    down="mlp.fc2.",
)


def _names(layout: VisionLayout) -> _Names:
    match layout:
        case VisionLayout.CLIP:
            return dataclasses.replace(
                _SIGLIP_NAMES,
                embedding_norm="pre_layrnorm.",  # their spelling
                class_embedding="embeddings.class_embedding",
            )
        case VisionLayout.SIGLIP | VisionLayout.SIGLIP2:
            return _SIGLIP_NAMES
        case VisionLayout.OPEN_CLIP:
            return _Names(
                patch="conv1.",
                positions="positional_embedding",
                embedding_norm="ln_pre.",
                final_norm="ln_post.",
                layer="transformer.resblocks.{}.",
                attention_norm="ln_1.",
                qkv=("attn.in_proj_",),
                attention_output="attn.out_proj.",
                feed_forward_norm="ln_2.",
                up="mlp.c_fc.",
                down="mlp.c_proj.",
                class_embedding="class_embedding",
            )
        case VisionLayout.AIMV2:
            return _Names(
                patch="embeddings.patch_embed.",
                positions="embeddings.position_embedding.weight",
                embedding_norm="embeddings.rms_norm.",
                final_norm="rms_norm.",
                layer="encoder.layers.{}.",
                attention_norm="rms_norm1.",
                qkv=("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
                attention_output="attention.out_proj.",
                feed_forward_norm="rms_norm2.",
                gate="ffn.gate_proj.",
                up="ffn.up_proj.",
                down="ffn.down_proj.",
            )
        case VisionLayout.AIMV2_TRUNK:
            return _Names(
                patch="preprocessor.patchifier.proj.",
                positions="preprocessor.pos_embed",
                embedding_norm="preprocessor.patchifier.norm.",
                final_norm="trunk.post_trunk_norm.",
                layer="trunk.blocks.{}.",
                attention_norm="norm_1.",
                qkv=("attn.qkv.",),
                attention_output="attn.proj.",
                feed_forward_norm="norm_2.",
                gate="mlp.fc1.",
                up="mlp.fc3.",
                down="mlp.fc2.",
            )


def import_vision_encoder(source: Path, config: VisionConfig) -> VisionTransformer:
    """Reads an encoder into the shape that a model wants.

    Another resolution is allowed: position embeddings are then interpolated
    (`vit.resize_positions`). So are a deeper encoder cut by `feature_layer`, and a final norm
    left out. Everything else must be what the file holds; no code from the file is run.

    Source: MM1, Model (encoders pre-trained by CLIP or AIM are the start).

    Args:
        source: a .safetensors file or a folder with one, see `WeightFiles`.
        config: the encoder that is wanted, `model.vision`.

    Raises:
        ValueError: the file is of no known layout, or holds an encoder of another shape; all
            differences are named.
    """
    files = WeightFiles(source)
    layout, prefix = _recognise(files)
    facts = describe_vision_encoder(source)
    _check(facts, config, source)
    untold = [name for name in ("num_heads", "activation", "norm_eps") if name not in facts]
    if untold:
        logger.warning(
            "%s does not tell %s; taken from model.vision. Check them against the model's page.",
            source,
            ", ".join(untold),
        )
    weights = dict(_weights(files, layout, prefix, config))
    with torch.device("meta"):
        encoder = VisionTransformer(config)
    encoder.load_state_dict(weights, assign=True)
    return encoder.requires_grad_(True)


def check_vision_file(source: Path, config: VisionConfig) -> None:
    """Refuses a file that does not hold the wanted encoder, without reading its weights.

    Args:
        source: what `vision_pretrain.path` names: of this project or of another program.
        config: the encoder that is wanted.

    Raises:
        ValueError: it is missing, of no known layout, or holds another encoder.
    """
    if not is_saved_vision_encoder(source):
        _check(describe_vision_encoder(source), config, source)


def describe_vision_encoder(source: Path) -> dict[str, Any]:
    """What a file says of its encoder: the values to write under `model.vision`.

    Args:
        source: see `import_vision_encoder`.

    Returns:
        Fields of `VisionConfig`; `num_heads`, `activation` and `norm_eps` only where the
        file's JSON tells them.

    Raises:
        ValueError: the file is of no known layout.
    """
    files = WeightFiles(source)
    layout, prefix = _recognise(files)
    names = _names(layout)
    patch_shape = files.shape(f"{prefix}{names.patch}weight")
    d_model = patch_shape[0]
    patch_size = patch_shape[-1] if len(patch_shape) == 4 else round((patch_shape[1] / 3) ** 0.5)
    first = prefix + names.layer.format(0)
    facts = {
        "patch_size": patch_size,
        "d_model": d_model,
        "num_layers": _count_layers(files, prefix + names.layer),
        "d_ff": files.shape(f"{first}{names.up}weight")[0],
        "class_token": names.class_embedding is not None,
        "bias": _has_biases(files, first, names),
        "patch_bias": f"{prefix}{names.patch}bias" in files.names,
        **_of_layout(layout),
    }
    positions = prefix + names.positions
    if positions in files.names:
        num_patches = files.shape(positions)[-2] - facts["class_token"]
        facts["positions"] = PositionEmbedding.LEARNED
        facts["image_size"] = patch_size * round(num_patches**0.5)
    else:
        facts["positions"] = PositionEmbedding.SINUSOIDAL
    return {**facts, **_of_json(files, layout, d_model)}


def _recognise(files: WeightFiles) -> tuple[VisionLayout, str]:
    """The layout, and what the names of the encoder's tensors begin with."""
    for layout in VisionLayout:
        names = _names(layout)
        wanted = (f"{names.patch}weight", f"{names.layer.format(0)}{names.up}weight")
        prefixes = [
            name.removesuffix(wanted[0]) for name in files.names if name.endswith(wanted[0])
        ]
        for prefix in sorted(prefixes, key=len):
            if prefix + wanted[1] not in files.names:
                continue
            has_class = f"{prefix}embeddings.class_embedding" in files.names
            is_linear = len(files.shape(prefix + wanted[0])) == 2
            match layout:
                case VisionLayout.CLIP if not has_class:
                    continue
                case VisionLayout.SIGLIP if is_linear:
                    continue
            return layout, prefix
    some = ", ".join(sorted(files.names)[:4])
    raise ValueError(
        f"{files.source}: found tensors such as {some}, expected an image encoder in one of the "
        f"layouts {', '.join(VisionLayout)}. Convert it with transformers or open_clip first."
    )


def _count_layers(files: WeightFiles, layer: str) -> int:
    pattern = re.compile(re.escape(layer).replace(r"\{\}", r"(\d+)"))
    found = (pattern.match(name) for name in files.names)
    return 1 + max(int(match[1]) for match in found if match)


def _has_biases(files: WeightFiles, layer: str, names: _Names) -> bool:
    """Whether the maps of a layer have biases; all or none of them."""
    maps = (names.qkv[0], names.attention_output, names.up, names.down)
    have = {f"{layer}{name}bias" in files.names for name in maps}
    if len(have) > 1:
        raise ValueError(
            f"{files.source}: found biases in some linear maps of a layer and none in others, "
            "expected them in all or in none (model.vision.bias)."
        )
    return have.pop()


def _of_layout(layout: VisionLayout) -> dict[str, Any]:
    match layout:
        case VisionLayout.CLIP | VisionLayout.OPEN_CLIP:
            return {
                "norm": VisionNorm.LAYER_NORM,
                "embedding_norm": EmbeddingNorm.POSITIONED,
            }
        case VisionLayout.SIGLIP | VisionLayout.SIGLIP2:
            return {
                "norm": VisionNorm.LAYER_NORM,
                "embedding_norm": EmbeddingNorm.NONE,
            }
        case VisionLayout.AIMV2 | VisionLayout.AIMV2_TRUNK:
            return {
                "norm": VisionNorm.RMS_NORM,
                "embedding_norm": EmbeddingNorm.PATCHES,
                "activation": Activation.SWIGLU,
            }


_ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "silu": Activation.SWIGLU,
}


def _of_json(files: WeightFiles, layout: VisionLayout, d_model: int) -> dict[str, Any]:
    """What the configuration beside the weights adds to what shapes tell."""
    if layout is VisionLayout.OPEN_CLIP:
        content = files.read_json("open_clip_config.json", "config.json")
        content = content.get("model_cfg", content)
        if "vision_cfg" not in content:
            return {}
        quick = content.get("quick_gelu", False)
        return {
            "num_heads": d_model // content["vision_cfg"].get("head_width", 64),
            "activation": Activation.QUICK_GELU if quick else Activation.GELU,
            "norm_eps": 1e-5,
        }
    content = files.read_json("config.json")
    content = content.get("vision_config", content)
    facts: dict[str, Any] = {}
    if "num_attention_heads" in content:
        facts["num_heads"] = content["num_attention_heads"]
    for name in ("layer_norm_eps", "rms_norm_eps"):
        if name in content:
            facts["norm_eps"] = content[name]
    if "hidden_act" in content:
        if content["hidden_act"] not in _ACTIVATIONS:
            raise ValueError(
                f"{files.folder / 'config.json'}: found hidden_act {content['hidden_act']!r}, "
                f"expected one of {', '.join(_ACTIVATIONS)}."
            )
        facts["activation"] = _ACTIVATIONS[content["hidden_act"]]
    return facts


def _check(found: Mapping[str, Any], config: VisionConfig, source: Path) -> None:
    differences = [
        f"model.vision.{name}: {_plain(getattr(config, name))} -> {_plain(value)}"
        for name, value in found.items()
        if name != "image_size" and getattr(config, name) != value
    ]
    if differences:
        raise ValueError(
            f"{source}: found another encoder than model.vision describes; to use it, change "
            f"{'; '.join(differences)}."
        )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _weights(
    files: WeightFiles, layout: VisionLayout, prefix: str, config: VisionConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yields our names with tensors."""
    names = _names(layout)
    yield "patch_embedding.weight", _patch_weight(files, layout, prefix, config)
    if config.patch_bias:
        yield "patch_embedding.bias", files.tensor(f"{prefix}{names.patch}bias")
    if names.class_embedding is not None:
        yield "class_embedding", files.tensor(prefix + names.class_embedding).flatten()
    if config.positions is PositionEmbedding.LEARNED:
        positions = files.tensor(prefix + names.positions).reshape(-1, config.d_model)
        yield (
            "position_embeddings",
            resize_positions(positions, config.grid, class_token=config.class_token),
        )
    if names.embedding_norm is not None:
        yield from _pair(files, "embedding_norm", prefix + names.embedding_norm)
    if config.final_norm:
        yield from _pair(files, "final_norm", prefix + names.final_norm)
    maps = {
        "attention_norm": (names.attention_norm,),
        "attention.qkv": names.qkv,
        "attention.output": (names.attention_output,),
        "feed_forward_norm": (names.feed_forward_norm,),
        **({"feed_forward.gate": (names.gate,)} if names.gate else {}),
        "feed_forward.up": (names.up,),
        "feed_forward.down": (names.down,),
    }
    for index in range(config.num_built_layers):
        layer = prefix + names.layer.format(index)
        for ours, theirs in maps.items():
            yield from _pair(
                files, f"layers.{index}.{ours}", *(f"{layer}{their}" for their in theirs)
            )


def _pair(files: WeightFiles, ours: str, *theirs: str) -> Iterator[tuple[str, Tensor]]:
    """Weight and, where there is one, bias."""
    for kind in ("weight", "bias"):
        parts = [f"{their}{kind}" for their in theirs]
        if kind == "weight" or parts[0] in files.names:
            yield f"{ours}.{kind}", torch.cat([files.tensor(part) for part in parts])


def _patch_weight(
    files: WeightFiles, layout: VisionLayout, prefix: str, config: VisionConfig
) -> Tensor:
    """float[D, 3 * patch_size ** 2]; ours is laid out channel, row, column."""
    weight = files.tensor(f"{prefix}{_names(layout).patch}weight")
    if layout is VisionLayout.SIGLIP2:  # theirs is row, column, channel
        size = config.patch_size
        weight = weight.view(-1, size, size, 3).permute(0, 3, 1, 2)
    return weight.flatten(1).contiguous()
