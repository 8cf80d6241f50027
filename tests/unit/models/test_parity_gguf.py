"""GGUF files: decoders of transformers written as llama.cpp lays them out, equal or refused.

Quantised types are read by transformers' own reader too (test_import_gguf.py has the others).
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mm1_pipeline.models.attention import DocumentLayout, packed_attention
from mm1_pipeline.models.convert.decoder import import_decoder, imported_config

SHAPE = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=5000.0,
    max_position_embeddings=256,
    pad_token_id=0,
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TABLE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama_tied": ("Llama", dict(tie_word_embeddings=True), {}),
    "llama_no_freq_base": ("Llama", dict(rope_theta=1e4), {"rope.freq_base": None}),
    "llama_no_kv_heads": ("Llama", dict(num_key_value_heads=4), {"attention.head_count_kv": None}),
    "llama_wide_heads": (
        "Llama",
        dict(head_dim=16),
        {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16},
    ),
    "llama_attention_bias": ("Llama", dict(attention_bias=True), {}),
    "llama_all_biases": ("Llama", dict(attention_bias=True, mlp_bias=True), {}),
    "llama_linear": (
        "Llama",
        dict(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama3_rope": (
        "Llama",
        dict(rope_scaling=LLAMA3, rope_theta=5e5),
        {"rope.freq_base": 5e5},
    ),
    "mixtral": (
        "Mixtral",
        dict(num_local_experts=4, num_experts_per_tok=2),
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "mixtral_single": (
        "Mixtral",
        dict(num_local_experts=4, num_experts_per_tok=2),
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "qwen2": ("Qwen2", {}, {}),
    "qwen3": ("Qwen3", dict(head_dim=16), {"attention.key_length": 16}),
}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EXPERT_NAMES = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}


def make(case: str) -> Any:
    name, options, _ = copy.deepcopy(TABLE[case])
    config = getattr(transformers, f"{name}Config")(
        **{**SHAPE, **options}, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (not key.endswith("bias")))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """llama.cpp turns neighbouring dimensions; its converter orders rows so."""
    halves = weight.unflatten(0, (num_heads, 2, -1))
    return halves.transpose(1, 2).flatten(0, 2)


def write(model: Any, case: str, folder: Path, **changes: Any) -> Path:
    """As llama.cpp's converter would; checked by transformers' own reader where it knows."""
    path, config = folder / f"{case}.gguf", model.config
    is_llama = case.startswith(("llama", "mixtral"))
    architecture = "llama" if is_llama else case
    writer = gguf.GGUFWriter(path, architecture)
    metadata: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": 256,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": SHAPE["rope_theta"],
        **TABLE[case][2],
        **changes,
    }
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        if value is not None:
            add.get(type(value), writer.add_string)(f"{architecture}.{key}", value)
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    from safetensors.torch import load_file

    experts: dict[str, list[Tensor]] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        values = tensor
        if is_llama and name.endswith(("q_proj.weight", "q_proj.bias")):
            values = interleaved(values, config.num_attention_heads)
        if is_llama and name.endswith(("k_proj.weight", "k_proj.bias")):
            values = interleaved(values, config.num_key_value_heads)
        if name.startswith("model.layers."):
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            if ".experts." in rest:
                expert, weight, _ = rest.rpartition("experts.")[2].split(".")
                their = f"blk.{layer}.{EXPERT_NAMES[weight]}"
                if case == "mixtral_single":
                    writer.add_tensor(f"{their}.{expert}.weight", values.numpy())
                else:
                    experts.setdefault(f"{their}_exps.weight", []).append(values)
                continue
            module, _, kind = rest.rpartition(".")
            their = NAMES.get(module, "ffn_gate_inp")
            writer.add_tensor(f"blk.{layer}.{their}.{kind}", values.numpy())
        else:
            their = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
            module = name.removesuffix(".weight")
            writer.add_tensor(f"{their.get(module, 'output')}.weight", values.numpy())
    for name, parts in experts.items():
        writer.add_tensor(name, torch.stack(parts).numpy())
    if case == "llama3_rope":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config.hidden_size // 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_factors(head_dim: int) -> np.ndarray:
    """How much each wave is stretched: nothing below 8192 / 4, 8 times above 8192, between else."""
    periods = 2 * math.pi * 5e5 ** (np.arange(0, head_dim, 2) / head_dim)
    kept = np.clip((8192 / periods - 1) / 3, 0, 1)
    return (1 / ((1 - kept) / 8 + kept)).astype(np.float32)


def logits_of(path: Path, input_ids: Tensor) -> Tensor:
    decoder, length = import_decoder(path), len(input_ids)
    layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, length]), length)
    with torch.no_grad():
        hidden = decoder(
            decoder.embedding(input_ids),
            torch.arange(length),
            lambda _, q, k, v, window: packed_attention(q, k, v, layout, window),
        )
        return hidden @ decoder.vocabulary_weight.T


@pytest.mark.parametrize("case", TABLE)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    model = make(case)
    input_ids = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids[None]).logits[0]
    path = write(model, case, tmp_path)
    difference = ((logits_of(path, input_ids) - expected).abs().max() / expected.abs().max()).item()
    print(f"{difference:.1e}")
    assert difference <= 1e-5  # worst measured: see docs/models.md
    assert expected.std() > 0.3
    assert imported_config(path) == import_decoder(path).config


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"rope.scaling.type": "yarn"}, "rope.scaling.type: found 'yarn'"),
        ("llama", {"rope.scaling.type": "linear"}, "found no rope.scaling.factor"),
        ("llama", {"rope.scale_linear": 2.0}, "rope.scale_linear: found 2.0"),
        ("llama", {"rope.dimension_count": 6}, "rope.dimension_count: found 6, expected 12"),
        ("llama", {"attention.sliding_window": 9}, "attention.sliding_window: found 9"),
        ("llama", {"attention.value_length": 6}, "attention.value_length: found 6"),
        ("llama", {"attention.scale": 0.5}, r"not known here: attention.scale \(0.5\)"),
        ("llama", {"logit_scale": 0.5}, r"not known here: logit_scale \(0.5\)"),
        ("llama", {"vocab_size": 95}, "vocab_size: found 95, expected 96"),
        ("llama", {"embedding_length": None}, "found no embedding_length"),
        ("llama", {"expert_count": 4}, "found no expert_used_count"),
        ("llama", {"tensor_data_layout": "other"}, "tensor_data_layout: found 'other'"),
        ("mixtral", {"expert_count": 0}, "found no tensor 'blk.0.ffn_down.weight'"),
        ("mixtral", {"expert_shared_count": 1}, r"not known here: expert_shared_count \(1\)"),
        ("qwen2", {"expert_count": 4}, "expert_count: found 4, expected none"),
    ],
)
def test_metadata_that_is_not_known_or_not_built_is_refused_by_name(
    case: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(make(case), case, tmp_path, **changes)
    for check in (import_decoder, imported_config):
        with pytest.raises(ValueError, match=message):
            check(path)


def test_wavelengths_stretched_otherwise_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "llama3_factors", lambda size: np.full(size // 2, 3, np.float32))
    path = write(make("llama3_rope"), "llama3_rope", tmp_path)
    with pytest.raises(ValueError, match=r"rope_freqs.weight: found wavelengths stretched other"):
        import_decoder(path)


QUANTISED = gguf.GGMLQuantizationType
SCALES = {
    # Where the float16 scales lie in a block of drawn bytes.
    QUANTISED.Q4_0: (0,),
    QUANTISED.Q5_0: (0,),
    QUANTISED.Q5_1: (0, 2),
    QUANTISED.Q2_K: (80, 82),
    QUANTISED.Q3_K: (108,),
    QUANTISED.Q4_K: (0, 2),
    QUANTISED.Q5_K: (0, 2),
    QUANTISED.Q6_K: (208,),
    QUANTISED.IQ4_NL: (0,),
    QUANTISED.IQ4_XS: (0,),
}


@pytest.mark.parametrize("kind", SCALES, ids=lambda kind: kind.name)
def test_quantised_types_are_read_as_transformers_does(kind: QUANTISED, tmp_path: Path) -> None:
    """Blocks of drawn bytes: no writer is needed, every bit of a block counts."""
    width, heads = 256, 4
    shapes = {"token_embd": 32, "attn_q": width, "attn_k": 128, "attn_v": 128}
    shapes |= {"attn_output": width, "ffn_gate": width, "ffn_up": width, "ffn_down": width}
    path, generator = tmp_path / "drawn.gguf", np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(32)])
    block, size = gguf.GGML_QUANT_SIZES[kind]
    for name, rows in shapes.items():
        blocks = generator.integers(0, 256, (rows, width // block, size), dtype=np.uint8)
        spread = 1.0
        for _ in range(2):  # first to see how large the values of a type are
            for place in SCALES[kind]:
                scale = generator.uniform(0.5, 1.5, blocks.shape[:2]) / spread
                blocks[..., place : place + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
            spread = gguf.dequantize(blocks.reshape(rows, -1), kind).std() * width**0.5
        their = name if name == "token_embd" else f"blk.0.{name}"
        writer.add_tensor(f"{their}.weight", blocks.reshape(rows, -1), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    content = load_gguf_checkpoint(str(path))["config"]
    content = {**content, "vocab_size": 32, "tie_word_embeddings": True}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**content)).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)["tensors"]
    tensors = {name: value.float() for name, value in tensors.items()}
    theirs.load_state_dict({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]})
    input_ids = torch.arange(32)
    with torch.no_grad():
        expected = theirs(input_ids[None]).logits[0]
    difference = (logits_of(path, input_ids) - expected).abs().max() / expected.abs().max()
    print(f"{difference.item():.1e}")
    assert difference <= 1e-5
    assert expected.std() > 0
