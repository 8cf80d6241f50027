"""Encoders of transformers with random weights, saved to files and read back as ours."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    Aimv2VisionConfig,
    Aimv2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from mm1_pipeline.config.model import (
    Activation,
    EmbeddingNorm,
    PositionEmbedding,
    VisionConfig,
    VisionNorm,
)
from mm1_pipeline.models.convert.vision import describe_vision_encoder, import_vision_encoder
from typed_values import entry

TOLERANCE = 1e-5
"""Worst measured over all cases here: 3.8e-6 (CLIP, values up to 6.8)."""

SIZES: dict[str, Any] = dict(
    image_size=28,
    patch_size=7,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
)

CLIP = VisionConfig(
    image_size=28,
    patch_size=7,
    d_model=32,
    num_layers=3,
    num_heads=4,
    d_ff=64,
    activation=Activation.QUICK_GELU,
    class_token=True,
    final_norm=False,
)
SIGLIP = dataclasses.replace(
    CLIP,
    activation=Activation.GELU_TANH,
    norm_eps=1e-6,
    class_token=False,
    final_norm=True,
    embedding_norm=EmbeddingNorm.NONE,
    patch_bias=True,
)
AIMV2 = dataclasses.replace(
    CLIP,
    activation=Activation.SWIGLU,
    norm=VisionNorm.RMS_NORM,
    class_token=False,
    final_norm=True,
    embedding_norm=EmbeddingNorm.PATCHES,
    bias=False,
    patch_bias=True,
)
AIMV2_NATIVE = dataclasses.replace(AIMV2, positions=PositionEmbedding.SINUSOIDAL)

Reference = Callable[[Tensor], Tensor]


def randomize(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases of 0 and scales of 1 would hide a swap
                noise = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(noise + (".weight" in name))
            else:
                scale = 0.5 if "position" in name else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build(kind: str, folder: Path) -> Reference:
    """Writes a model of transformers and gives its patch embeddings."""
    match kind:
        case "clip":
            model = CLIPVisionModel(CLIPVisionConfig(**SIZES, hidden_act="quick_gelu"))
        case "siglip":
            model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
        case "siglip2":
            sizes = {name: value for name, value in SIZES.items() if name != "image_size"}
            model = Siglip2VisionModel(Siglip2VisionConfig(**sizes, num_patches=16))
        case "aimv2":
            model = Aimv2VisionModel(Aimv2VisionConfig(**SIZES, use_head=False))
        case "aimv2_native":
            model = Aimv2VisionModel(Aimv2VisionConfig(**SIZES, use_head=False, is_native=True))
        case _:
            raise AssertionError(kind)
    model.eval()
    randomize(model)
    model.save_pretrained(folder, safe_serialization=True)

    @torch.no_grad()
    def reference(pixel_values: Tensor) -> Tensor:
        if kind == "siglip2":
            return model(**naflex(pixel_values)).last_hidden_state
        hidden = model(pixel_values).last_hidden_state
        return hidden[:, 1:] if kind == "clip" else hidden

    return reference


def naflex(pixel_values: Tensor) -> dict[str, Tensor]:
    """Patches as Siglip2's image processor cuts them: rows, columns, channels."""
    images = pixel_values.permute(0, 2, 3, 1)
    patches = [
        images[:, y : y + 7, x : x + 7].flatten(1) for y in range(0, 28, 7) for x in range(0, 28, 7)
    ]
    count = len(pixel_values)
    return {
        "pixel_values": torch.stack(patches, 1),
        "pixel_attention_mask": torch.ones(count, 16, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[4, 4]] * count),
    }


CASES = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "siglip2": SIGLIP,
    "aimv2": AIMV2,
    "aimv2_native": AIMV2_NATIVE,
}


def images(size: int = 28) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal(source: Path, config: VisionConfig, expected: Tensor) -> None:
    found = import_vision_encoder(source, config)(images(config.image_size))
    difference = (found - expected).abs().max().item()
    print(f"largest difference {difference:.1e}, largest value {expected.abs().max():.1f}")
    assert difference <= TOLERANCE
    assert expected.abs().max() > 1


@pytest.mark.parametrize("kind", CASES)
def test_equals_transformers(kind: str, tmp_path: Path) -> None:
    reference = build(kind, tmp_path)
    assert_equal(tmp_path, CASES[kind], reference(images()))


@pytest.mark.parametrize("feature_layer", [-2, -3])
def test_an_earlier_layer_equals_transformers(feature_layer: int, tmp_path: Path) -> None:
    build("clip", tmp_path)
    model = CLIPVisionModel.from_pretrained(tmp_path)
    with torch.no_grad():
        states = model(images(), output_hidden_states=True).hidden_states
    config = dataclasses.replace(CLIP, feature_layer=feature_layer)
    assert_equal(tmp_path, config, states[feature_layer][:, 1:])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_another_resolution_equals_transformers(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path)
    cls = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}[kind]
    model = cls.from_pretrained(tmp_path)
    with torch.no_grad():
        hidden = model(images(42), interpolate_pos_encoding=True).last_hidden_state
    expected = hidden[:, 1:] if kind == "clip" else hidden
    assert_equal(tmp_path, dataclasses.replace(CASES[kind], image_size=42), expected)


def rename(weights: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    for pattern, name in rules:
        weights = {re.sub(pattern, name, key): value for key, value in weights.items()}
    return weights


def join_qkv(weights: dict[str, Tensor], theirs: str, joined: str) -> dict[str, Tensor]:
    """`theirs` has groups for what comes before and after q, k or v."""
    parts: dict[str, dict[str, Tensor]] = {}
    others = {}
    for name, value in weights.items():
        if match := re.fullmatch(theirs, name):
            parts.setdefault(match.expand(joined), {})[match["which"]] = value
        else:
            others[name] = value
    assert parts
    return {**others, **{name: torch.cat([x[k] for k in "qkv"]) for name, x in parts.items()}}


def test_open_clip_layout_equals_clip(tmp_path: Path) -> None:
    """DFN5B-H/14-378 was released so; built from transformers' CLIP by open_clip's names."""
    reference = build("clip", tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    weights = join_qkv(
        weights,
        r"(?:vision_model\.)?encoder\.layers\.(\d+)\.self_attn\.(?P<which>[qkv])_proj\.(\w+)",
        r"visual.transformer.resblocks.\1.attn.in_proj_\3",
    )
    weights = rename(
        weights,
        [
            (r"^(?:vision_model\.)?embeddings\.class_embedding", "visual.class_embedding"),
            (r"^(?:vision_model\.)?embeddings\.patch_embedding", "visual.conv1"),
            (
                r"^(?:vision_model\.)?embeddings\.position_embedding\.weight",
                "visual.positional_embedding",
            ),
            (r"^(?:vision_model\.)?pre_layrnorm", "visual.ln_pre"),
            (r"^(?:vision_model\.)?post_layernorm", "visual.ln_post"),
            (r"^(?:vision_model\.)?encoder\.layers", "visual.transformer.resblocks"),
            (r"self_attn\.out_proj", "attn.out_proj"),
            (r"layer_norm", "ln_"),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
        ],
    )
    text = {
        "transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(4, 4),
        "visual.proj": torch.zeros(32, 16),
        "logit_scale": torch.zeros(()),
    }
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file({**weights, **text}, folder / "open_clip_model.safetensors")
    vision = {"image_size": 28, "layers": 3, "width": 32, "head_width": 8, "patch_size": 7}
    content = {"model_cfg": {"quick_gelu": True, "vision_cfg": vision, "text_cfg": {}}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    assert_equal(folder, CLIP, reference(images()))
    with pytest.raises(ValueError, match=r"activation: gelu -> quick_gelu"):
        import_vision_encoder(folder, dataclasses.replace(CLIP, activation=Activation.GELU))


def test_aimv2s_own_names_equal_transformers(tmp_path: Path) -> None:
    reference = build("aimv2", tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    weights = join_qkv(
        weights,
        r"(.*)encoder\.layers\.(\d+)\.attention\.(?P<which>[qkv])_proj\.weight",
        r"trunk.blocks.\2.attn.qkv.weight",
    )
    weights = rename(
        weights,
        [
            (r".*embeddings\.patch_embed", "preprocessor.patchifier.proj"),
            (r".*embeddings\.rms_norm", "preprocessor.patchifier.norm"),
            (r".*embeddings\.position_embedding\.weight", "preprocessor.pos_embed"),
            (r".*encoder\.layers", "trunk.blocks"),
            (r"attention\.out_proj", "attn.proj"),
            (r"ffn\.gate_proj", "mlp.fc1"),
            (r"ffn\.down_proj", "mlp.fc2"),
            (r"ffn\.up_proj", "mlp.fc3"),
            (r"rms_norm([12])", r"norm_\1"),
            (r"^(vision_model\.)?rms_norm", "trunk.post_trunk_norm"),
        ],
    )
    weights["preprocessor.pos_embed"] = weights["preprocessor.pos_embed"].unsqueeze(0)
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    assert_equal(file, AIMV2, reference(images()))


@pytest.mark.parametrize("kind", CASES)
def test_a_file_describes_its_encoder(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path)
    described = describe_vision_encoder(tmp_path)
    image_size = {"image_size": 28} if kind == "aimv2_native" else {}
    final_norm = CASES[kind].final_norm
    assert entry(VisionConfig, **described, **image_size, final_norm=final_norm) == CASES[kind]


def test_another_shape_is_refused_with_all_differences(tmp_path: Path) -> None:
    build("clip", tmp_path)
    wanted = dataclasses.replace(CLIP, d_model=64, num_layers=5, num_heads=8, class_token=False)
    with pytest.raises(ValueError, match="found another encoder") as refusal:
        import_vision_encoder(tmp_path, wanted)
    for change in ("d_model: 64 -> 32", "num_layers: 5 -> 3", "num_heads: 8 -> 4"):
        assert f"model.vision.{change}" in str(refusal.value)


def test_what_the_file_does_not_tell_is_said(tmp_path: Path, caplog) -> None:
    reference = build("clip", tmp_path)
    (tmp_path / "config.json").unlink()
    assert_equal(tmp_path, CLIP, reference(images()))
    assert "does not tell num_heads, activation, norm_eps" in caplog.text


class Bomb:
    def __reduce__(self):
        return (Path("/nonexistent/unpickled").touch, ())


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    torch.save(Bomb(), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"only pytorch_model\.bin, expected safetensors"):
            import_vision_encoder(source, CLIP)


def test_other_weights_and_broken_files_are_refused(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"found tensors such as a\.weight.*open_clip"):
        import_vision_encoder(tmp_path, CLIP)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs...")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        import_vision_encoder(tmp_path, CLIP)
    with pytest.raises(ValueError, match="found nothing there"):
        import_vision_encoder(tmp_path / "missing", CLIP)


def test_a_sharded_checkpoint_is_read_and_may_not_point_outside(tmp_path: Path) -> None:
    reference = build("clip", tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    folder = tmp_path / "sharded"
    folder.mkdir()
    parts = {"a.safetensors": list(weights)[::2], "b.safetensors": list(weights)[1::2]}
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file)
    index = folder / "model.safetensors.index.json"
    weight_map = {name: file for file, names in parts.items() for name in names}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(folder, CLIP, reference(images()))
    (folder / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names b\.safetensors, which are missing"):
        import_vision_encoder(folder, CLIP)
    index.write_text(json.dumps({"weight_map": {"x": "../whole/model.safetensors"}}))
    with pytest.raises(ValueError, match=r"expected a \.safetensors file beside it"):
        import_vision_encoder(folder, CLIP)
