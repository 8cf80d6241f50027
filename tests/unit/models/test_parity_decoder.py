"""A table of decoders of transformers (family x option): equal logits, or refused by the field.

Weights are drawn. The table runs under transformers 4.57 and 5, where both can build the model.
"""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.attention import DocumentLayout, KVCache, packed_attention
from mm1_pipeline.models.convert.decoder import import_decoder, imported_config
from mm1_pipeline.models.convert.families import DEFAULTS, Family, decoder_config
from mm1_pipeline.models.decoder import Decoder, rotary_angles

RELATIVE = 1e-5
"""Of the largest logit. Worst measured: see docs/models.md."""
LENGTH = 60
SHAPE = dict(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
LINEAR = {"rope_type": "linear", "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
QWEN_EXPERTS = dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24)

TABLE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", dict(tie_word_embeddings=True)),
    "llama_theta": ("Llama", dict(rope_theta=500.0)),
    "llama_attention_bias": ("Llama", dict(attention_bias=True)),
    "llama_mlp_bias": ("Llama", dict(mlp_bias=True)),
    "llama_all_biases": ("Llama", dict(attention_bias=True, mlp_bias=True)),
    "llama_head_dim": ("Llama", dict(head_dim=16)),
    "llama_gelu": ("Llama", dict(hidden_act="gelu")),
    "llama_gelu_tanh": ("Llama", dict(hidden_act="gelu_pytorch_tanh")),
    "llama_linear": ("Llama", dict(rope_scaling=LINEAR)),
    "llama_llama3": ("Llama", dict(rope_scaling=LLAMA3)),
    "llama_yarn": ("Llama", dict(rope_scaling=YARN, head_dim=32)),
    "llama_yarn_factor": ("Llama", dict(rope_scaling={**YARN, "attention_factor": 0.7})),
    "llama_yarn_betas": ("Llama", dict(rope_scaling={**YARN, "beta_fast": 8, "beta_slow": 2})),
    "llama_yarn_scales": (
        "Llama",
        dict(rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 0.4}),
    ),
    "llama_yarn_fractions": ("Llama", dict(rope_scaling={**YARN, "truncate": False}, head_dim=32)),
    "llama_dynamic_within": ("Llama", dict(rope_scaling=DYNAMIC)),
    "llama_dynamic_beyond": ("Llama", dict(rope_scaling=DYNAMIC, max_position_embeddings=20)),
    "llama_one_kv_head": ("Llama", dict(num_key_value_heads=1)),
    "llama_epsilon": ("Llama", dict(rms_norm_eps=1e-2)),
    "mistral_window": ("Mistral", dict(sliding_window=7)),
    "mistral_no_window": ("Mistral", dict(sliding_window=None)),
    "mistral_head_dim": ("Mistral", dict(head_dim=20, sliding_window=30)),
    "qwen2": ("Qwen2", {}),
    "qwen2_tied": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2_windows": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=9, max_window_layers=2),
    ),
    "qwen2_unused_window": ("Qwen2", dict(use_sliding_window=False, sliding_window=9)),
    "qwen2_yarn": ("Qwen2", dict(rope_scaling=YARN)),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3_bias": ("Qwen3", dict(head_dim=16, attention_bias=True)),
    "qwen3_windows": (
        "Qwen3",
        dict(head_dim=16, use_sliding_window=True, sliding_window=9, layer_types=MIXED),
    ),
    "olmo2": ("Olmo2", {}),
    "olmo2_bias": ("Olmo2", dict(attention_bias=True)),
    "olmo3": ("Olmo3", dict(sliding_window=9, rope_theta=1e4)),
    "olmo3_layer_types": ("Olmo3", dict(sliding_window=9, layer_types=MIXED, rope_theta=1e4)),
    "olmo3_yarn": ("Olmo3", dict(sliding_window=9, rope_theta=1e4, rope_scaling=YARN)),
    "smollm3": ("SmolLM3", {}),
    "smollm3_interval": ("SmolLM3", dict(no_rope_layer_interval=2, tie_word_embeddings=False)),
    "smollm3_layers": ("SmolLM3", dict(no_rope_layers=[0, 1, 1, 0])),
    "smollm3_windows": (
        "SmolLM3",
        dict(use_sliding_window=True, sliding_window=8, no_rope_layers=[1, 0, 1, 0]),
    ),
    "smollm3_biases": ("SmolLM3", dict(attention_bias=True, mlp_bias=True)),
    "gemma3": ("Gemma3Text", dict(head_dim=16, sliding_window=8)),
    "gemma3_untied": (
        "Gemma3Text",
        dict(head_dim=16, sliding_window=8, tie_word_embeddings=False),
    ),
    "gemma3_scale": ("Gemma3Text", dict(head_dim=16, sliding_window=8, query_pre_attn_scalar=9)),
    "gemma3_layer_types": ("Gemma3Text", dict(head_dim=16, sliding_window=8, layer_types=MIXED)),
    "gemma3_linear": ("Gemma3Text", dict(head_dim=16, sliding_window=8, rope_scaling=LINEAR)),
    "phi3": ("Phi3", {}),
    "phi3_partial": ("Phi3", dict(partial_rotary_factor=0.5, hidden_size=64)),
    "phi3_window": ("Phi3", dict(sliding_window=9)),
    "phi3_tied": ("Phi3", dict(tie_word_embeddings=True)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "mixtral_window": (
        "Mixtral",
        dict(num_local_experts=4, num_experts_per_tok=1, sliding_window=9),
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        dict(**QWEN_EXPERTS, shared_expert_intermediate_size=32, decoder_sparse_step=1),
    ),
    "qwen2_moe_sparse": (
        "Qwen2Moe",
        dict(
            **QWEN_EXPERTS,
            shared_expert_intermediate_size=32,
            decoder_sparse_step=2,
            norm_topk_prob=True,
        ),
    ),
    "qwen3_moe": ("Qwen3Moe", dict(**QWEN_EXPERTS, head_dim=16, norm_topk_prob=True)),
    "qwen3_moe_sparse": ("Qwen3Moe", dict(**QWEN_EXPERTS, head_dim=16, decoder_sparse_step=2)),
    "qwen3_moe_bias": ("Qwen3Moe", dict(**QWEN_EXPERTS, head_dim=16, attention_bias=True)),
}


def make(case: str) -> Any:
    name, options = copy.deepcopy(TABLE[case])
    config = getattr(transformers, f"{name}Config")(
        **{**SHAPE, **options}, attn_implementation="eager"
    )
    if name == "Gemma3Text":
        name = "Gemma3"
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    is_gemma = name == "Gemma3"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:  # norms and biases
                parameter.copy_(0.3 * noise + (not key.endswith("bias") and not is_gemma))
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


def logits_of(decoder: Decoder, input_ids: Tensor) -> Tensor:
    """Of two documents of the same tokens, packed; the second's."""
    length = len(input_ids)
    layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, length, 2 * length]), 2 * length)
    with torch.no_grad():
        hidden = decoder(
            decoder.embedding(input_ids.repeat(2)),
            torch.arange(length).repeat(2),
            lambda _, q, k, v, window: packed_attention(q, k, v, layout, window),
        )
        return (hidden @ decoder.vocabulary_weight.T)[length:]


def cached_logits(decoder: Decoder, input_ids: Tensor) -> Tensor:
    """Read in pieces of two lengths, by both ways that a cache has."""
    config, length = decoder.config, len(input_ids)
    cache = KVCache(config.num_layers, 1, length, config.num_kv_heads, config.head_dim)
    pieces = []
    with torch.no_grad():
        embeddings = decoder.embedding(input_ids)
        for start in range(0, length, 20):
            part = torch.arange(start, start + 10)
            ids, attend = cache.attend_after(0, [start], [10])
            pieces.append(decoder(embeddings[part], ids, attend))
            part = part + 10
            pieces.append(decoder(embeddings[part], part, cache.attend_at(part[None])))
        return torch.cat(pieces) @ decoder.vocabulary_weight.T


@pytest.fixture(scope="module")
def input_ids() -> Tensor:
    return torch.randint(3, 96, (LENGTH,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", TABLE)
def test_logits_equal_transformers(case: str, input_ids: Tensor, tmp_path: Path) -> None:
    theirs = make(case)
    with torch.no_grad():
        expected = theirs(input_ids[None]).logits[0]
    theirs.save_pretrained(tmp_path, safe_serialization=True)
    decoder = import_decoder(tmp_path)
    found = logits_of(decoder, input_ids)
    scale = expected.abs().max()
    difference = ((found - expected).abs().max() / scale).item()
    print(f"{difference:.1e}")
    assert difference <= RELATIVE
    assert expected.std() > 0.3
    assert decoder.config == imported_config(tmp_path)
    assert sum(weight.numel() for weight in decoder.parameters()) == decoder.config.num_parameters
    if case != "llama_dynamic_beyond":  # what was cached was turned by another theta
        cached = cached_logits(decoder, input_ids)
        assert ((cached - expected).abs().max() / scale).item() <= RELATIVE


@pytest.mark.parametrize("case", ["llama", "llama_linear", "llama_llama3", "llama_yarn"])
def test_angles_are_those_of_transformers_at_thousands_of_positions(case: str) -> None:
    """But for rounding: 2.4e-4 of an angle at 4,000 positions."""
    theirs = make(case)
    position_ids = torch.arange(0, 4000, 3)
    expected, _ = theirs.model.rotary_emb(torch.zeros(1), position_ids[None])
    _, config = decoder_config(json.loads(theirs.config.to_json_string()))
    found = rotary_angles(position_ids, config.head_dim, config.rope_theta, config.rope_scaling)
    # Stretched wavelengths are computed in another order too.
    tolerance = 3e-4 if case == "llama" else 2e-3
    torch.testing.assert_close(found.cosine[:, 0], expected[0], atol=tolerance, rtol=0)


def config_of(case: str) -> dict[str, Any]:
    """config.json as transformers writes it."""
    name, options = copy.deepcopy(TABLE[case])
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **options})
    return json.loads(config.to_json_string())


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"hidden_act": "relu"}, "hidden_act: found 'relu', expected one of silu"),
        ("llama", {"sliding_window": 9}, "sliding_window: found 9, expected nothing"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved: found True, expected False"),
        ("llama", {"embedding_multiplier": 12.0}, r"not known here: embedding_multiplier \(12.0\)"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: found"),
        ("llama", {"auto_map": {"AutoModel": "own.Model"}}, "auto_map: found"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder: found True"),
        ("llama", {"rope_scaling": {"type": "longrope"}}, "found 'longrope', expected default"),
        ("llama", {"rope_scaling": {**LINEAR, "beta": 3}}, r"not known here: beta \(3\)"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5"),
        ("llama", {"vocab_size": None}, "found no vocab_size"),
        ("llama", {"hidden_size": "48"}, "hidden_size: found '48', expected a number"),
        ("mistral_window", {"layer_types": MIXED}, "layer_types: found"),
        ("mistral_window", {"attention_bias": True}, "attention_bias: found True"),
        ("qwen2", {"layer_types": MIXED}, "layer_types: found"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "found 'chunked_attention'"),
        ("qwen3", {"layer_types": MIXED[:2]}, "expected a list of 4 entries"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers: found \[1\]"),
        ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window: found True"),
        ("qwen2_moe", {"qkv_bias": False}, "qkv_bias: found False"),
        ("olmo3", {"rope_theta": None, "rope_parameters": None}, "found no rope_theta"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: found 30.0"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: found 50.0"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention: found"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers: found"),
        ("phi3", {"partial_rotary_factor": 0.75, "hidden_size": 40}, "rotary_dim: found 7"),
    ],
)
def test_fields_that_are_not_known_or_not_built_are_refused_by_name(
    case: str, changes: dict[str, Any], message: str
) -> None:
    content = config_of(case)
    if "rope_scaling" in changes or "partial_rotary_factor" in changes:
        content |= {"rope_parameters": None, "rope_theta": 1e4}
    with pytest.raises(ValueError, match=message):
        decoder_config({**content, **changes})


FIELDS_WITH_DEFAULTS = (
    "rope_theta",
    "rms_norm_eps",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "tie_word_embeddings",
    "hidden_act",
    "rope_parameters",
    "rope_scaling",
    "attention_bias",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "no_rope_layers",
    "no_rope_layer_interval",
    "layer_types",
    "max_window_layers",
    "use_sliding_window",
    "_sliding_window_pattern",
)


@pytest.mark.parametrize("family", Family)
def test_missing_fields_mean_what_the_class_takes(family: Family) -> None:
    """A config.json without them, and all that transformers writes for it, are one decoder."""
    name = DEFAULTS[family].classes + ("Text" if family is Family.GEMMA3 else "")
    sizes = {key: SHAPE[key] for key in ("vocab_size", "num_hidden_layers", "intermediate_size")}
    sizes |= {"hidden_size": 256, "num_attention_heads": 32}
    if family in (Family.QWEN2_MOE, Family.QWEN3_MOE):
        sizes |= QWEN_EXPERTS
    if family is Family.OLMO3:
        sizes |= {"rope_theta": 5e5}  # transformers 4.57 and 5 take another
    config = getattr(transformers, f"{name}Config")(**sizes)
    whole = json.loads(config.to_json_string(use_diff=False))
    sparse = {key: x for key, x in whole.items() if key not in FIELDS_WITH_DEFAULTS}
    sparse |= sizes
    assert decoder_config(sparse) == decoder_config(whole)
    assert isinstance(decoder_config(whole)[1], DecoderConfig)


def test_a_head_that_is_said_to_be_tied_and_is_not_is_refused(tmp_path: Path) -> None:
    make("llama_tied").save_pretrained(tmp_path, safe_serialization=True)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    tokens = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": tokens.clone()}, path)
    import_decoder(tmp_path)
    save_file({**weights, "lm_head.weight": tokens + 1}, path)
    with pytest.raises(ValueError, match=r"found other numbers in lm_head.weight"):
        import_decoder(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.sinks", "model.layers.3.attn.rotary_emb.inv_freq", "scale"]
)
def test_tensors_that_nobody_reads_are_refused(name: str, tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path, safe_serialization=True)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), name: torch.ones(3)}, path)
    for check in (import_decoder, imported_config):
        with pytest.raises(ValueError, match=rf"does not have, such as '{name}'"):
            check(tmp_path)
