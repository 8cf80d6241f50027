"""How checkpoints name the weights of an image encoder, and what the JSON beside them says.

A layout is known by the names of its tensors. Sizes come from their shapes; what shapes do not
tell (heads, non-linearity, epsilon) comes from the JSON, with the defaults of the program that
wrote it: transformers leaves out of a nested configuration what equals them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mm1_pipeline.config.model import Activation, EmbeddingNorm, VisionNorm
from mm1_pipeline.models.convert.accounting import Fields, Reason
from mm1_pipeline.models.safetensors_files import WeightFiles
from mm1_pipeline.models.vit import Resampling


class VisionLayout(StrEnum):
    """How a checkpoint names and lays out the weights of an encoder."""

    BLIP = "blip"
    """transformers' BLIP, BLIP-2 and InstructBLIP: queries, keys and values in one map."""
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
    AIMV1_TRUNK = "aimv1_trunk"
    """AIM v1 under the names of its own code."""


@dataclass(frozen=True)
class Names:
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
    attention_scale: str | None = None
    """LayerScale behind attention: a factor for each dimension, if the file has one."""
    feed_forward_scale: str | None = None
    resampling: Resampling = Resampling.BICUBIC
    """How the layout's own program brings position embeddings to another grid."""
    left_out: tuple[tuple[str, Reason], ...] = ()
    """Tensors of the encoder that patch embeddings do not depend on, as patterns."""


_SELF_ATTENTION = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")
_POOLING = "pools the patches; the connector reads them unpooled"
_PLACES = (r"embeddings\.position_ids", "counts the positions")

_SIGLIP = Names(
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
    left_out=(_PLACES, (r"head\..*", _POOLING)),
)
_AIM_TRUNK = Names(
    patch="preprocessor.patchifier.proj.",
    positions="preprocessor.pos_embed",
    embedding_norm="preprocessor.patchifier.norm.",
    final_norm="trunk.post_trunk_norm.",
    layer="trunk.blocks.{}.",
    attention_norm="norm_1.",
    qkv=("attn.qkv.",),
    attention_output="attn.proj.",
    feed_forward_norm="norm_2.",
    up="mlp.fc1.",
    down="mlp.fc2.",
    left_out=((r"head\..*", _POOLING),),
)

NAMES: Mapping[VisionLayout, Names] = {
    VisionLayout.BLIP: dataclasses.replace(
        _SIGLIP,
        class_embedding="embeddings.class_embedding",
        positions="embeddings.position_embedding",
        qkv=("self_attn.qkv.",),
        attention_output="self_attn.projection.",
        left_out=(_PLACES,),
    ),
    VisionLayout.CLIP: dataclasses.replace(
        _SIGLIP,
        embedding_norm="pre_layrnorm.",  # their spelling
        class_embedding="embeddings.class_embedding",
        left_out=(_PLACES,),
    ),
    VisionLayout.SIGLIP: _SIGLIP,
    VisionLayout.SIGLIP2: dataclasses.replace(_SIGLIP, resampling=Resampling.BILINEAR_ANTIALIASED),
    VisionLayout.OPEN_CLIP: Names(
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
        attention_scale="ls_1.gamma",
        feed_forward_scale="ls_2.gamma",
        resampling=Resampling.BICUBIC_ANTIALIASED,
        left_out=((r"proj", _POOLING), (r"attn_pool(_contrastive)?\..*", _POOLING)),
    ),
    VisionLayout.AIMV2: Names(
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
        left_out=(_PLACES, (r"head\..*", _POOLING)),
    ),
    VisionLayout.AIMV2_TRUNK: dataclasses.replace(_AIM_TRUNK, gate="mlp.fc1.", up="mlp.fc3."),
    VisionLayout.AIMV1_TRUNK: _AIM_TRUNK,
}

_OTHER_PARTS = re.compile(
    r"(model\.)?(text_model|text_encoder|text_decoder|text|transformer|token_embedding|ln_final"
    r"|language_model|layers|norm|embed_tokens|lm_head|multi_modal_projector|mm_projector"
    r"|qformer|language_projection|itm_head|itm_proj)\..*"
    r"|(model\.)?(positional_embedding|text_projection|visual_projection|vision_proj|text_proj"
    r"|query_tokens|logit_scale|logit_bias|image_newline|logit_inv_tau)(\.(weight|bias))?"
    # Projections of AIM v2's model of images and texts.
    r"|(image|text)_projector\..*"
)
"""Parts of whole models beside their encoder: text towers, projections, decoders."""

_MODEL_TYPES: Mapping[VisionLayout, tuple[str, ...]] = {
    VisionLayout.BLIP: ("blip_vision_model", "blip_2_vision_model", "instructblip_vision_model"),
    VisionLayout.CLIP: (
        "clip_vision_model",
        "chinese_clip_vision_model",
        "altclip_vision_model",
        "metaclip_2_vision_model",
    ),
    VisionLayout.SIGLIP: ("siglip_vision_model",),
    VisionLayout.SIGLIP2: ("siglip2_vision_model",),
    VisionLayout.AIMV2: ("aimv2_vision_model",),
    VisionLayout.AIMV2_TRUNK: ("aimv2", "aimv2_vision_model"),
    VisionLayout.AIMV1_TRUNK: (),
}
"""`model_type` of the configurations that a layout's tensors may have beside them."""

_ACTIVATIONS = {
    "quick_gelu": Activation.QUICK_GELU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
}


def of_layout(layout: VisionLayout) -> dict[str, Any]:
    """Fields of `VisionConfig` that a layout alone decides."""
    match layout:
        case VisionLayout.AIMV2 | VisionLayout.AIMV2_TRUNK:
            return {"norm": VisionNorm.RMS_NORM, "activation": Activation.SWIGLU}
        case VisionLayout.AIMV1_TRUNK:
            return {
                "norm": VisionNorm.LAYER_NORM,
                "activation": Activation.GELU,
                "norm_eps": 1e-6,
            }
        case _:
            return {"norm": VisionNorm.LAYER_NORM}


def embedding_norm(layout: VisionLayout) -> EmbeddingNorm:
    """Where a layout's norm before the first layer stands, if the file has one."""
    match layout:
        case VisionLayout.AIMV2 | VisionLayout.AIMV2_TRUNK | VisionLayout.AIMV1_TRUNK:
            return EmbeddingNorm.PATCHES
        case _:
            return EmbeddingNorm.POSITIONED


def of_json(files: WeightFiles, layout: VisionLayout, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration beside the weights adds to what shapes tell.

    Args:
        files: the checkpoint.
        layout: of its tensors.
        facts: what shapes told, with which the configuration has to agree.

    Returns:
        Fields of `VisionConfig`: empty if there is no configuration.

    Raises:
        ValueError: a field is unknown, contradicts the tensors, or asks for something that is
            not built here.
    """
    match layout:
        case VisionLayout.OPEN_CLIP:
            return _of_open_clip(files, facts)
        case VisionLayout.AIMV1_TRUNK:
            return _of_aimv1(files)
        case _:
            return _of_transformers(files, layout, facts)


def _of_transformers(
    files: WeightFiles, layout: VisionLayout, facts: Mapping[str, Any]
) -> dict[str, Any]:
    content = files.read_json("config.json")
    if not content:
        return {}
    source = str(files.folder / "config.json")
    if "vision_config" in content or "vision_config_dict" in content:
        # Where both are given, old CLIPs mean the second.
        content = content.get("vision_config_dict") or content.get("vision_config") or {}
        source += ", vision_config"
    fields = Fields(content, source)
    model_types = _MODEL_TYPES[layout]
    fields.expect("model_type", *model_types)
    is_apples = layout is VisionLayout.AIMV2_TRUNK
    if not is_apples:
        fields.expect("auto_map")
    fields.expect("num_channels", 3)
    fields.skip(("projection_dim", "vision_use_head", "use_head", "auto_map"))
    sizes = {
        "hidden_size": facts["d_model"],
        "num_hidden_layers": facts["num_layers"],
        "intermediate_size": facts["d_ff"],
        "patch_size": facts["patch_size"],
    }
    if "image_size" in facts:
        grid = facts["image_size"] // facts["patch_size"]
        sizes["num_patches"] = grid**2
        image_size = fields.read("image_size") or facts["image_size"]
        if image_size // facts["patch_size"] != grid:
            raise fields.refusal("image_size", image_size, f"{facts['image_size']}, as the tensors")
    fields.skip(("image_size", "num_patches"))
    for name, size in sizes.items():
        fields.expect(name, size)
    found: dict[str, Any] = {}
    match layout:
        case VisionLayout.AIMV2 | VisionLayout.AIMV2_TRUNK:
            for name in ("qkv_bias", "mlp_bias", "use_bias"):
                fields.expect(name, facts["bias"])
            fields.expect("is_native", "image_size" not in facts)
            fields.expect("hidden_act", "silu", "swish")
            found["norm_eps"] = fields.number("rms_norm_eps", 1e-5)
            found["num_heads"] = fields.number("num_attention_heads", 8)
        case VisionLayout.BLIP:
            is_blip1 = fields.read("model_type", model_types[0]) == model_types[0]
            fields.expect("qkv_bias", facts["bias"])
            found["norm_eps"] = fields.number("layer_norm_eps", 1e-5 if is_blip1 else 1e-6)
            found["num_heads"] = fields.number("num_attention_heads", 12 if is_blip1 else 16)
            found["activation"] = _activation(fields, "gelu")
        case _:
            is_clip = layout is VisionLayout.CLIP
            found["norm_eps"] = fields.number("layer_norm_eps", 1e-5 if is_clip else 1e-6)
            found["num_heads"] = fields.number("num_attention_heads", 12)
            found["activation"] = _activation(
                fields, "quick_gelu" if is_clip else "gelu_pytorch_tanh"
            )
    fields.finish()
    return found


def _activation(fields: Fields, default: str) -> Activation:
    name = fields.read("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise fields.refusal("hidden_act", name, f"one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _of_open_clip(files: WeightFiles, facts: Mapping[str, Any]) -> dict[str, Any]:
    content = files.read_json("open_clip_config.json", "config.json")
    content = content.get("model_cfg", content)
    if "vision_cfg" not in content:
        return {}
    source = f"{files.folder}, model_cfg"
    whole = Fields(content, source)
    quick = bool(whole.read("quick_gelu", False))
    whole.skip(("vision_cfg", "embed_dim", "custom_text", "output_dict", "cast_dtype"))
    whole.skip(("text_cfg", "multimodal_cfg"))
    whole.skip(("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"))
    whole.finish()

    fields = Fields(content["vision_cfg"], f"{source}.vision_cfg")
    for name, size in (("width", facts["d_model"]), ("layers", facts["num_layers"])):
        fields.expect(name, size)
    patch_size = facts["patch_size"]
    fields.expect("patch_size", patch_size, [patch_size, patch_size])
    image_size = fields.read("image_size") or facts["image_size"]
    grid = facts["image_size"] // patch_size
    sides = image_size if isinstance(image_size, list) else [image_size]
    if any(side // patch_size != grid for side in sides):
        raise fields.refusal("image_size", image_size, f"{facts['image_size']}, as the tensors")
    ratio = fields.number("mlp_ratio", facts["d_ff"] / facts["d_model"])
    if int(facts["d_model"] * ratio) != facts["d_ff"]:
        raise fields.refusal("mlp_ratio", ratio, str(facts["d_ff"] / facts["d_model"]))
    has_norm = facts["embedding_norm"] is not EmbeddingNorm.NONE
    fields.expect("no_ln_pre", not has_norm)
    for name in ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"):
        fields.expect(name, False)
    for name in ("scale_attn", "scale_fc", "timm_model_pretrained"):
        fields.expect(name, False)
    fields.expect("timm_model_name")
    # Drawn in training only, of the pooled features, or plain in the tensors.
    fields.skip(("patch_dropout", "pool_type", "attn_pooler_queries", "attn_pooler_heads"))
    fields.skip(("output_tokens", "ls_init_value", "pos_embed_type", "block_type"))
    fields.skip(("timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"))

    norm = Fields(fields.read("norm_kwargs") or {}, f"{source}.vision_cfg.norm_kwargs")
    found: dict[str, Any] = {"norm_eps": norm.number("eps", 1e-5)}
    norm.expect("elementwise_affine", True)
    norm.finish()
    gelu = Fields(fields.read("act_kwargs") or {}, f"{source}.vision_cfg.act_kwargs")
    gelu.expect("approximate", *(() if quick else ("tanh", "none")))
    is_tanh = gelu.read("approximate") == "tanh"
    gelu.finish()
    match (quick, is_tanh):
        case (True, _):
            found["activation"] = Activation.QUICK_GELU
        case (False, True):
            found["activation"] = Activation.GELU_TANH
        case _:
            found["activation"] = Activation.GELU
    found["num_heads"] = facts["d_model"] // fields.number("head_width", 64)
    if fields.read("final_ln_after_pool", False) or fields.read("attentional_pool", False):
        found["final_norm"] = False  # theirs is of the pooled features
    fields.finish()
    return found


def _of_aimv1(files: WeightFiles) -> dict[str, Any]:
    """The published weights have no JSON; their model hub's class has these fields."""
    content = files.read_json("config.json")
    if not content:
        return {}
    fields = Fields(content, str(files.folder / "config.json"))
    found = {"num_heads": fields.number("num_heads")} if "num_heads" in fields else {}
    fields.expect("num_channels", 3)
    fields.skip(("img_size", "patch_size", "embed_dim", "num_blocks", "num_heads"))
    fields.skip(("probe_layers", "num_classes"))
    fields.finish()
    return found


def recognise(files: WeightFiles) -> tuple[VisionLayout, str]:
    """The layout, and what the names of the encoder's tensors begin with.

    Raises:
        ValueError: no layout has such names.
    """
    for layout in VisionLayout:
        names = NAMES[layout]
        patch = f"{names.patch}weight"
        first = names.layer.format(0)
        wanted = [f"{first}{names.up}weight", f"{first}{names.qkv[0]}weight"]
        if names.gate is not None:
            wanted.append(f"{first}{names.gate}weight")
        prefixes = [name.removesuffix(patch) for name in files.names if name.endswith(patch)]
        for prefix in sorted(prefixes, key=len):
            if any(prefix + name not in files.names for name in wanted):
                continue
            is_linear = len(files.shape(prefix + patch)) == 2
            match layout:
                case VisionLayout.CLIP if f"{prefix}{names.class_embedding}" not in files.names:
                    continue
                case VisionLayout.SIGLIP if is_linear:
                    continue
            return layout, prefix
    some = ", ".join(sorted(files.names)[:4])
    raise ValueError(
        f"{files.source}: found tensors such as {some}, expected an image encoder in one of the "
        f"layouts {', '.join(VisionLayout)}. Convert it with transformers or open_clip first."
    )


def reason_to_skip(name: str, names: Names, prefix: str) -> Reason | None:
    """Why a tensor may be left unread; None if there is no known reason."""
    if name.startswith(prefix):
        short = name.removeprefix(prefix)
        for pattern, reason in names.left_out:
            if re.fullmatch(pattern, short):
                return reason
        return None
    return "another part of the model" if _OTHER_PARTS.fullmatch(name) else None
