"""A model of this project writes captions as a plain greedy loop over it would."""

from __future__ import annotations

from pathlib import Path

import torch

from mm1_pipeline.config.model import (
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.config.shard import TokenizerConfig
from mm1_pipeline.config.synthesis import LocalModelConfig, SynthesisConfig
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest
from mm1_pipeline.evaluation.caption_writer import LocalWriter, make_writer
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.tokenizer import train_tokenizer


def test_the_local_writer_goes_on_where_the_instruction_ends(tmp_path: Path) -> None:
    torch.manual_seed(3)
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), ["a red cat runs"] * 9, tmp_path / "tokenizer"
    )
    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=32
        ),
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=4),
        decoder=DecoderConfig(
            vocab_size=tokenizer.vocab_size,
            d_model=16,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            d_ff=32,
        ),
    )
    model = MM1(config, tokenizer.image_id).eval()
    save_model(model, tmp_path / "model")
    local = LocalModelConfig(
        checkpoint=str(tmp_path / "model"),
        tokenizer=str(tmp_path / "tokenizer"),
        max_new_tokens=5,
        batch_size=2,
    )
    synthesis = SynthesisConfig(sources=("pairs",), writer="local", local=local)
    writer = make_writer(synthesis)
    assert isinstance(writer, LocalWriter)
    requests = [CaptionRequest(str(n), f"a cat {n}", {"shape": "wide"}) for n in range(3)]
    found = writer.write(requests)
    assert found == writer.write(requests)
    assert all(isinstance(text, str) for text in found)
    for request, text in zip(requests, found, strict=True):
        ids = [tokenizer.bos_id, *tokenizer.encode(writer.prompt(request).strip())]
        written: list[int] = []
        with torch.inference_mode():
            for _ in range(5):
                logits = next_logits(model, ids + written)
                for never in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id):
                    logits[never] = -torch.inf
                token = int(logits.argmax())
                if token == tokenizer.eos_id:
                    break
                written.append(token)
        assert text == tokenizer.decode(written).partition("\n")[0].strip()
    assert len(writer.provenance["model"]) == 64


def next_logits(model: MM1, ids: list[int]) -> torch.Tensor:
    """Logits after a sequence of tokens, all of it computed anew."""
    cache = model.make_cache(1, len(ids))
    embedded = model.decoder.embedding(torch.tensor([ids]))
    hidden = model.forward_cached(embedded, torch.arange(len(ids))[None], cache)
    return model.logits(hidden[:, -1])[0]
