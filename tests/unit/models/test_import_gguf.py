from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mm1_pipeline.models.attention import DocumentLayout, packed_attention
from mm1_pipeline.models.convert.decoder import import_decoder

D_MODEL, D_FF, LAYERS, HEADS, KV_HEADS, VOCAB = 64, 96, 2, 4, 2, 96
QUANTISED = gguf.GGMLQuantizationType


def write_gguf(
    path: Path,
    kind: QUANTISED,
    *,
    tied: bool = True,
    architecture: str = "llama",
    extra: tuple[str, ...] = (),
    leave_out: tuple[str, ...] = (),
) -> Path:
    """A Llama with random weights, written by the package that llama.cpp's converter uses."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{number}" for number in range(VOCAB)])
    d_kv = D_MODEL // HEADS * KV_HEADS
    shapes = {"token_embd": (VOCAB, D_MODEL), "output_norm": (D_MODEL,)}
    shapes |= {} if tied else {"output": (VOCAB, D_MODEL)}
    shapes |= dict.fromkeys(extra, (D_MODEL,))
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (D_MODEL,),
            f"blk.{layer}.ffn_norm": (D_MODEL,),
            f"blk.{layer}.attn_q": (D_MODEL, D_MODEL),
            f"blk.{layer}.attn_k": (d_kv, D_MODEL),
            f"blk.{layer}.attn_v": (d_kv, D_MODEL),
            f"blk.{layer}.attn_output": (D_MODEL, D_MODEL),
            f"blk.{layer}.ffn_gate": (D_FF, D_MODEL),
            f"blk.{layer}.ffn_up": (D_FF, D_MODEL),
            f"blk.{layer}.ffn_down": (D_MODEL, D_FF),
        }
    for name, shape in shapes.items():
        values = generator.standard_normal(shape).astype(np.float32)
        if name in leave_out:
            continue
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", 1 + 0.3 * values)
        else:
            quantised = gguf.quantize(values / np.sqrt(shape[1]), kind)
            writer.add_tensor(f"{name}.weight", quantised, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read_by_transformers(path: Path, tied: bool) -> transformers.LlamaForCausalLM:
    config = load_gguf_checkpoint(str(path))["config"]
    options: Any = {**config, "vocab_size": VOCAB, "tie_word_embeddings": tied}
    options["attn_implementation"] = "eager"
    config = transformers.LlamaConfig(**options)
    model = transformers.LlamaForCausalLM(config).eval()
    content = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    tensors = {name: x.float() for name, x in content["tensors"].items()}
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [QUANTISED.F32, QUANTISED.F16, QUANTISED.Q8_0, QUANTISED.Q4_1])
def test_logits_equal_those_that_transformers_reads(
    kind: QUANTISED, tied: bool, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", kind, tied=tied)
    theirs = read_by_transformers(path, tied)
    decoder = import_decoder(path)
    input_ids = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(1))
    layout = DocumentLayout.from_cu_seqlens(torch.tensor([0, 40]), 40)
    with torch.no_grad():
        expected = theirs(input_ids[None]).logits[0]
        hidden = decoder(
            decoder.embedding(input_ids),
            torch.arange(40),
            lambda _, q, k, v, window: packed_attention(q, k, v, layout, window),
        )
        found = hidden @ decoder.vocabulary_weight.T
    # Worst seen 4.4e-6 for logits up to 4.4.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.5
    assert decoder.config.tie_embeddings == tied
    assert decoder.config.norm_eps == 1e-5
    assert decoder.config.rope_theta == 5000.0


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", QUANTISED.F32, architecture="gemma2")
    with pytest.raises(ValueError, match=r"tiny\.gguf.*found 'gemma2', expected one of llama"):
        import_decoder(path)


def test_tensors_too_many_or_too_few_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "more.gguf", QUANTISED.F32, extra=("blk.0.attn_q_norm",))
    with pytest.raises(ValueError, match=r"does not have, such as 'blk.0.attn_q_norm.weight'"):
        import_decoder(path)
    path = write_gguf(tmp_path / "less.gguf", QUANTISED.F32, leave_out=("blk.1.ffn_up",))
    with pytest.raises(ValueError, match=r"found no tensor 'blk.1.ffn_up.weight'"):
        import_decoder(path)


@pytest.mark.parametrize("keep", [0, 3, 100, 2000])
def test_a_cut_off_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", QUANTISED.F32)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"tiny.gguf: found no readable GGUF file"):
        import_decoder(path)
