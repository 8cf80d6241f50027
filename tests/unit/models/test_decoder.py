from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mm1_pipeline.config.model import DecoderConfig
from mm1_pipeline.models.attention import DocumentLayout, packed_attention
from mm1_pipeline.models.decoder import Decoder

TOLERANCE = 1e-5
"""Worst seen 1.8e-6 for logits up to 3."""


def make_llama(*, tied: bool, num_kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    positions: Any = {"rope_theta": 10_000.0, "attn_implementation": "eager"}
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=num_kv_heads,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-5,
        **positions,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    return model


def make_ours(llama: LlamaForCausalLM, *, tied: bool, num_kv_heads: int) -> Decoder:
    decoder = Decoder(
        DecoderConfig(
            vocab_size=96,
            d_model=48,
            num_layers=3,
            num_heads=6,
            num_kv_heads=num_kv_heads,
            d_ff=80,
            tie_embeddings=tied,
        )
    )
    decoder.load_state_dict(our_weights(llama, tied=tied), strict=True)
    return decoder


def our_weights(llama: LlamaForCausalLM, *, tied: bool) -> dict[str, Tensor]:
    theirs = llama.state_dict()
    ours = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "final_norm.weight": theirs["model.norm.weight"],
    }
    if not tied:
        ours["head.weight"] = theirs["lm_head.weight"]
    names = {
        "attention_norm": "input_layernorm",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    }
    for index in range(3):
        layer = f"model.layers.{index}"
        for our, their in names.items():
            ours[f"layers.{index}.{our}.weight"] = theirs[f"{layer}.{their}.weight"]
        ours[f"layers.{index}.attention.qkv.weight"] = torch.cat(
            [theirs[f"{layer}.self_attn.{x}_proj.weight"] for x in "qkv"]
        )
    return ours


def run(decoder: Decoder, input_ids: Tensor) -> Tensor:
    length = len(input_ids)
    layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, length]), length)
    hidden = decoder(
        decoder.embedding(input_ids),
        torch.arange(length),
        lambda _, q, k, v, window: packed_attention(q, k, v, layout, window),
    )
    return hidden @ decoder.vocabulary_weight.T


@pytest.mark.parametrize(("tied", "num_kv_heads"), [(True, 2), (False, 6), (True, 1)])
def test_equals_llama(tied: bool, num_kv_heads: int) -> None:
    llama = make_llama(tied=tied, num_kv_heads=num_kv_heads)
    decoder = make_ours(llama, tied=tied, num_kv_heads=num_kv_heads)
    input_ids = torch.randint(0, 96, (70,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = llama(input_ids[None]).logits[0]
        found = run(decoder, input_ids)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert expected.std() > 0.5


def test_gradients_equal_llamas() -> None:
    llama = make_llama(tied=True, num_kv_heads=2)
    decoder = make_ours(llama, tied=True, num_kv_heads=2)
    input_ids = torch.randint(0, 96, (40,), generator=torch.Generator().manual_seed(1))
    torch.nn.functional.cross_entropy(run(decoder, input_ids)[:-1], input_ids[1:]).backward()
    llama(input_ids[None], labels=input_ids[None]).loss.backward()
    theirs = {name: parameter.grad for name, parameter in llama.named_parameters()}
    ours = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    pairs = {
        "embedding.weight": "model.embed_tokens.weight",
        "layers.0.attention_norm.weight": "model.layers.0.input_layernorm.weight",
        "layers.1.attention.output.weight": "model.layers.1.self_attn.o_proj.weight",
        "layers.2.feed_forward.gate.weight": "model.layers.2.mlp.gate_proj.weight",
    }
    for our, their in pairs.items():
        found, expected = ours[our], theirs[their]
        assert found is not None
        assert expected is not None
        # Worst seen 2.1e-7 for gradients up to 0.3.
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        assert expected.abs().max() > 1e-2, their


def test_config_counts_non_embedding_parameters() -> None:
    llama = make_llama(tied=False, num_kv_heads=6)
    decoder = make_ours(llama, tied=False, num_kv_heads=6)
    counted = sum(
        parameter.numel()
        for name, parameter in decoder.named_parameters()
        if not name.startswith(("embedding", "head"))
    )
    assert decoder.config.non_embedding_parameters == counted
