"""A table of encoders of transformers and open_clip: equal to theirs, or refused by a field's name.

Weights are drawn; open_clip's outputs were made outside (tests/golden/models).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mm1_pipeline.config.model import VisionConfig
from mm1_pipeline.models.convert.vision import (
    check_vision_file,
    describe_vision_encoder,
    import_vision_encoder,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "models" / "open_clip_encoders.py"
RELATIVE = 1e-5
"""Of the largest value. Worst measured: 1.4e-6."""
SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    patch_size=7,
    image_size=28,
)


def _load_golden() -> Any:
    spec = importlib.util.spec_from_file_location(GOLDEN.stem, GOLDEN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_golden()
stored = json.loads(golden.STORED.read_text())

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPVision", {}),
    "clip_gelu": ("CLIPVision", dict(hidden_act="gelu")),
    "clip_gelu_new": ("CLIPVision", dict(hidden_act="gelu_new")),
    "clip_epsilon": ("CLIPVision", dict(layer_norm_eps=1e-2)),
    "clip_two_heads": ("CLIPVision", dict(num_attention_heads=2)),
    "clip_larger_images": ("CLIPVision", dict(loaded_size=42)),
    "clip_smaller_images": ("CLIPVision", dict(loaded_size=21)),
    "altclip": ("AltCLIPVision", {}),
    "chinese_clip": ("ChineseCLIPVision", {}),
    "siglip": ("SiglipVision", {}),
    "siglip_no_head": ("SiglipVision", dict(vision_use_head=False)),
    "siglip_quick_gelu": ("SiglipVision", dict(hidden_act="quick_gelu")),
    "siglip_larger_images": ("SiglipVision", dict(loaded_size=42)),
    "siglip2": ("Siglip2Vision", {}),
    "siglip2_larger_images": ("Siglip2Vision", dict(loaded_size=42)),
    "siglip2_smaller_images": ("Siglip2Vision", dict(loaded_size=21)),
    "siglip2_epsilon": ("Siglip2Vision", dict(layer_norm_eps=1e-2)),
    "blip": ("BlipVision", {}),
    "blip_larger_images": ("BlipVision", dict(loaded_size=42)),
    "blip2": ("Blip2Vision", {}),
    "instructblip": ("InstructBlipVision", dict(hidden_act="gelu_pytorch_tanh")),
    "aimv2": ("Aimv2Vision", {}),
    "aimv2_biases": ("Aimv2Vision", dict(qkv_bias=True, mlp_bias=True)),
    "aimv2_native": ("Aimv2Vision", dict(is_native=True)),
    "aimv2_native_larger_images": ("Aimv2Vision", dict(is_native=True, loaded_size=42)),
    "aimv2_epsilon": ("Aimv2Vision", dict(rms_norm_eps=1e-2)),
}


def draw(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(golden.draw(name, list(parameter.shape)))


def saved(kind: str, folder: Path) -> Callable[[Tensor], Tensor]:
    """Writes a model of transformers; gives what computes its patch embeddings."""
    name, options = THEIRS[kind]
    options = {key: value for key, value in options.items() if key != "loaded_size"}
    sizes = {**SIZES, **options}
    if name == "Siglip2Vision":
        sizes["num_patches"] = (sizes.pop("image_size") // sizes["patch_size"]) ** 2
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}Model")(config).eval()
    draw(model)
    model.save_pretrained(folder, safe_serialization=True)

    @torch.no_grad()
    def reference(images: Tensor) -> Tensor:
        size = images.shape[-1]
        match name:
            case "Siglip2Vision":
                return model(**naflex(images)).last_hidden_state
            case "Aimv2Vision":
                return model(images).last_hidden_state
        extra = {} if size == SIZES["image_size"] else {"interpolate_pos_encoding": True}
        hidden = model(images, **extra).last_hidden_state
        return hidden if name == "SiglipVision" else hidden[:, 1:]

    return reference


def naflex(images: Tensor) -> dict[str, Tensor]:
    """Patches as Siglip2's image processor cuts them: rows, columns, colours."""
    count, _, size, _ = images.shape
    grid = size // 7
    num_sub_images = images.view(count, 3, grid, 7, grid, 7).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": num_sub_images.reshape(count, grid**2, -1),
        "pixel_attention_mask": torch.ones(count, grid**2, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[grid, grid]] * count),
    }


def imported(folder: Path, size: int, **changes: Any) -> tuple[VisionConfig, Tensor]:
    """By the file's own description, over the images of a size."""
    facts = {"final_norm": True, **describe_vision_encoder(folder), "image_size": size, **changes}
    config = VisionConfig(**facts)
    check_vision_file(folder, config)
    with torch.no_grad():
        return config, import_vision_encoder(folder, config)(golden.images(size))


@pytest.mark.parametrize("kind", THEIRS)
def test_equals_transformers(kind: str, tmp_path: Path) -> None:
    size = THEIRS[kind][1].get("loaded_size", SIZES["image_size"])
    expected = saved(kind, tmp_path)(golden.images(size))
    # transformers gives CLIP's patches before the last norm, the others' after it.
    is_clip = "CLIP" in THEIRS[kind][0]
    _, found = imported(tmp_path, size, **({"final_norm": False} if is_clip else {}))
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"{difference:.1e}")
    assert difference <= RELATIVE
    assert expected.std() > 0.3


def write_open_clip(case: str, folder: Path) -> dict[str, Tensor]:
    shapes = stored[case]["shapes"]
    weights = {name: golden.draw(name, shape) for name, shape in shapes.items()}
    if case == "sines":
        from mm1_pipeline.models.vit import sinusoidal_positions

        # open_clip computes and stores them.
        places = sinusoidal_positions(4, 32, torch.zeros(()))
        weights["visual.positional_embedding"] = torch.cat([torch.zeros(1, 32), places])
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    content = json.dumps(golden.model_config(case))
    (folder / "open_clip_config.json").write_text(content)
    return weights


@pytest.mark.parametrize("case", golden.CASES)
def test_equals_open_clip(case: str, tmp_path: Path) -> None:
    write_open_clip(case, tmp_path)
    size = golden.CASES[case].get("loaded_size", SIZES["image_size"])
    _, found = imported(tmp_path, size)
    expected = torch.tensor(stored[case]["output"])
    difference = (torch.tensor(golden.sampled(found)) - expected).abs().max().item()
    print(f"{difference / stored[case]['scale']:.1e}")
    assert difference <= RELATIVE * stored[case]["scale"]


@pytest.mark.parametrize("case", golden.REFUSED)
def test_what_open_clip_computes_otherwise_is_refused_by_name(case: str, tmp_path: Path) -> None:
    write_open_clip(case, tmp_path)
    is_vit = case not in ("timm_model_name", "layers")
    with pytest.raises(ValueError, match=rf"{case}: found" if is_vit else "expected an image enc"):
        imported(tmp_path, 28)
    if is_vit:
        (tmp_path / "open_clip_config.json").unlink()  # the tensors alone tell it too
        with pytest.raises(ValueError, match=r"found \d+ tensors that an encoder"):
            imported(tmp_path, 28, num_heads=4)


def test_an_open_clip_file_alone_warns_of_what_it_does_not_tell(tmp_path: Path, caplog) -> None:
    write_open_clip("layer_scale", tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    imported(tmp_path, 28, num_heads=4)
    assert "does not tell num_heads, activation, norm_eps" in caplog.text


@pytest.mark.parametrize(
    ("kind", "nested"),
    [
        ("siglip", {"model_type": "siglip_vision_model"}),
        ("siglip", {}),
        ("clip", {}),
        ("blip", {}),
    ],
)
def test_sparse_configurations_mean_the_defaults_of_transformers(
    kind: str, nested: dict[str, Any], tmp_path: Path
) -> None:
    """What a whole model's nested configuration leaves out equals its class's defaults."""
    name, _ = THEIRS[kind]
    saved(kind, tmp_path)
    content = {"model_type": kind, "vision_config": nested, "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    # The defaults' sizes are a base model's; only heads, activation and epsilon are not in shapes.
    defaults = getattr(transformers, f"{name}Config")()
    facts = describe_vision_encoder(tmp_path)
    assert facts["num_heads"] == defaults.num_attention_heads
    assert facts["norm_eps"] == defaults.layer_norm_eps
    expected = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
    assert facts["activation"] == expected[defaults.hidden_act]


def test_of_two_nested_configurations_the_second_holds(tmp_path: Path) -> None:
    saved("clip", tmp_path)
    content: dict[str, Any] = {"vision_config": {"layer_norm_eps": 1e-3, "num_attention_heads": 4}}
    content["vision_config_dict"] = {"layer_norm_eps": 1e-2}
    (tmp_path / "config.json").write_text(json.dumps(content))
    theirs: Any = transformers.CLIPConfig(**content).vision_config
    facts = describe_vision_encoder(tmp_path)
    found = (facts["norm_eps"], facts["num_heads"])
    assert found == (theirs.layer_norm_eps, theirs.num_attention_heads) == (1e-2, 12)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("clip", {"hidden_act": "silu"}, "hidden_act: found 'silu', expected one of quick_gelu"),
        ("clip", {"num_register_tokens": 4}, r"not known here: num_register_tokens \(4\)"),
        ("clip", {"model_type": "clipseg_vision_model"}, "model_type: found 'clipseg_vision"),
        ("clip", {"hidden_size": 64}, "hidden_size: found 64, expected 32"),
        ("clip", {"num_channels": 1}, "num_channels: found 1, expected 3"),
        ("clip", {"image_size": 336}, "image_size: found 336, expected 28"),
        ("clip", {"quantization_config": {"bits": 4}}, "quantization_config: found"),
        ("clip", {"layer_norm_eps": "tiny"}, "layer_norm_eps: found 'tiny', expected a number"),
        ("clip", {"auto_map": {"AutoModel": "own.Model"}}, "auto_map: found .* expected nothing"),
        ("siglip", {"hidden_act": "relu"}, "hidden_act: found 'relu'"),
        ("siglip2", {"num_patches": 64}, "num_patches: found 64, expected 16"),
        ("aimv2", {"hidden_act": "gelu"}, "hidden_act: found 'gelu', expected 'silu'"),
        ("aimv2", {"is_native": True}, "is_native: found True, expected False"),
        ("aimv2", {"qkv_bias": True}, "qkv_bias: found True, expected False"),
        ("blip2", {"use_qformer": True}, "not known here: use_qformer"),
    ],
)
def test_fields_that_are_not_known_or_not_built_are_refused_by_name(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(kind, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, 28)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "embeddings.register_tokens"),
        ("clip", "encoder.layers.1.layer_scale1.lambda1"),
        ("siglip", "encoder.layers.0.self_attn.q_norm.weight"),
        ("siglip2", "embeddings.register_tokens"),
        ("aimv2", "encoder.layers.1.rms_norm3.weight"),
        ("blip", "encoder.layers.0.self_attn.relative_position_bias_table"),
    ],
)
def test_tensors_that_nobody_reads_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    prefix = next(iter(weights)).partition("encoder.")[0].partition("embeddings.")[0]
    save_file({**weights, f"{prefix}{name}": torch.ones(32)}, path)
    for check in (imported, lambda folder, size: check_only(folder)):
        with pytest.raises(ValueError, match=rf"does not have, such as '{prefix}{name}'"):
            check(tmp_path, 28)


def check_only(folder: Path) -> None:
    facts = {"final_norm": True, **describe_vision_encoder(folder), "image_size": 28}
    check_vision_file(folder, VisionConfig(**facts))


def test_parts_beside_the_encoder_are_known_or_refused(tmp_path: Path) -> None:
    saved("clip", tmp_path)
    path = tmp_path / "model.safetensors"
    # Versions of transformers begin its names otherwise.
    weights = {
        f"vision_model.{name.removeprefix('vision_model.')}": tensor
        for name, tensor in load_file(path).items()
    }
    save_file({**weights, "text_model.final_layer_norm.weight": torch.ones(3)}, path)
    imported(tmp_path, 28)
    save_file({**weights, "vision_adapter.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"does not have, such as 'vision_adapter.weight'"):
        imported(tmp_path, 28)


def test_missing_and_quantised_tensors_are_named(tmp_path: Path) -> None:
    saved("clip", tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layers.1.self_attn.k_proj.weight"))
    save_file({**weights, name: weights[name].to(torch.int8)}, path)
    with pytest.raises(ValueError, match=rf"found {name} stored as torch.int8"):
        imported(tmp_path, 28)
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(ValueError, match=rf"found no tensor '{name}', which an encoder"):
        imported(tmp_path, 28)


def write_aimv1(folder: Path) -> dict[str, Tensor]:
    """Names and shapes of AIM v1's published files, drawn."""
    shapes = {
        "preprocessor.patchifier.proj.weight": [32, 3, 7, 7],
        "preprocessor.patchifier.proj.bias": [32],
        "head.cls_token": [1, 1, 32],
    }
    norms = ["preprocessor.patchifier.norm", "trunk.post_trunk_norm"]
    for layer in ("trunk.blocks.0", "trunk.blocks.1"):
        norms += [f"{layer}.norm_1", f"{layer}.norm_2"]
        shapes |= {f"{layer}.attn.qkv.weight": [96, 32], f"{layer}.attn.proj.weight": [32, 32]}
        shapes |= {f"{layer}.mlp.fc1.weight": [48, 32], f"{layer}.mlp.fc2.weight": [32, 48]}
    shapes |= {f"{norm}.{kind}": [32] for norm in norms for kind in ("weight", "bias")}
    weights = {name: golden.draw(name, shape) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    return weights


def test_aim_v1_is_what_its_paper_and_names_say(tmp_path: Path) -> None:
    """Written out from the definition. Apple's own code, run once outside: within 4.8e-7."""
    weights = write_aimv1(tmp_path)

    def norm(x: Tensor, name: str) -> Tensor:
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, (32,), scale, shift, 1e-6)

    num_sub_images = golden.images(28).unfold(2, 7, 7).unfold(3, 7, 7)  # [2, 3, 4, 4, 7, 7]
    patches = num_sub_images.permute(0, 2, 3, 1, 4, 5).reshape(2, 16, -1)
    x = patches @ weights["preprocessor.patchifier.proj.weight"].flatten(1).T
    x = norm(x + weights["preprocessor.patchifier.proj.bias"], "preprocessor.patchifier.norm")
    rates = 10_000.0 ** -(torch.arange(8) / 8)
    waves = [torch.cat([(n * rates).sin(), (n * rates).cos()]) for n in torch.arange(4.0)]
    x = x + torch.stack([torch.cat([waves[i % 4], waves[i // 4]]) for i in range(16)])
    for layer in ("trunk.blocks.0", "trunk.blocks.1"):
        qkv = norm(x, f"{layer}.norm_1") @ weights[f"{layer}.attn.qkv.weight"].T
        q, k, v = qkv.unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
        x = x + seen.transpose(1, 2).flatten(2) @ weights[f"{layer}.attn.proj.weight"].T
        inner = norm(x, f"{layer}.norm_2") @ weights[f"{layer}.mlp.fc1.weight"].T
        x = x + torch.nn.functional.gelu(inner) @ weights[f"{layer}.mlp.fc2.weight"].T
    expected = norm(x, "trunk.post_trunk_norm")
    _, found = imported(tmp_path, 28, num_heads=4)
    assert ((found - expected).abs().max() / expected.abs().max()).item() <= RELATIVE
    assert expected.std() > 0.3
