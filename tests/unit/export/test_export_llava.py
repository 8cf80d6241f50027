"""Models of LLaVA's shape, loaded by transformers' own class without any code of ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from mm1_pipeline.config.export import ExportConfig, Layout
from mm1_pipeline.config.model import (
    Activation,
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    NormOrder,
    QKNorm,
    RopeScaling,
    RopeScalingKind,
    VisionConfig,
)
from mm1_pipeline.config.shard import (
    ImageTransform,
    PackingConfig,
    Resize,
    ShardConfig,
    SubImageConfig,
    TokenizerConfig,
)
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.export.huggingface_directory import export_model
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

TOLERANCE = 1e-5
"""Of logits of size 1, up to 5, in float32. Worst seen: 4.0e-6."""

TRANSFORM = ImageTransform(size=16, resize=Resize.SQUASH)
STOCK = ExportConfig(layout=Layout.LLAVA)

MODEL = MM1Config(
    vision=VisionConfig(
        image_size=16,
        patch_size=4,
        d_model=32,
        num_layers=3,
        num_heads=2,
        d_ff=48,
        class_token=True,
        final_norm=False,
        activation=Activation.QUICK_GELU,
    ),
    connector=ConnectorConfig(kind=ConnectorKind.MLP, num_tokens=16),
    decoder=DecoderConfig(
        vocab_size=310, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=48
    ),
)


def changed(part: str, **changes) -> MM1Config:
    return dataclasses.replace(
        MODEL, **{part: dataclasses.replace(getattr(MODEL, part), **changes)}
    )


LLAMA3 = RopeScaling(kind=RopeScalingKind.LLAMA3, factor=8, original_max_positions=16)
MODELS = {
    "llama": MODEL,
    "llama, untied, scaled": changed(
        "decoder", tie_embeddings=False, rope_scaling=LLAMA3, d_head=16
    ),
    "qwen2": changed("decoder", qkv_bias=True),
    "qwen3": changed("decoder", qk_norm=QKNorm.PER_HEAD),
    "olmo2": changed("decoder", qk_norm=QKNorm.WHOLE, norm_order=NormOrder.POST),
    "the layer before the last": changed("vision", feature_layer=-2, activation=Activation.GELU),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["A cat and a dog sat on a mat. User: what is it? Assistant: a cat.\n"] * 3
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(TokenizerConfig(vocab_size=300, min_frequency=1), texts, folder)


def export(config: MM1Config, tokenizer: Tokenizer, folder: Path, **changes) -> MM1:
    model = build_model(config, tokenizer.image_id, seed=0)
    _make_uneven(model)
    save_model(model, folder / "model")
    tokenizer.save(folder / "tokenizer")
    arguments = {"transform": TRANSFORM, "sub_images": SubImageConfig(), **changes}
    export_model(
        STOCK, folder / "model", folder / "tokenizer", output_dir=folder / "out", **arguments
    )
    return model


@torch.no_grad()
def _make_uneven(model: MM1) -> None:
    """Norms and biases, which begin as ones and zeros, get values that tell them apart."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def our_logits(model: MM1, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    length = len(input_ids)
    with torch.no_grad():
        positions, borders = torch.arange(length)[None], torch.tensor([0, length])
        return model.logits(model(input_ids[None], positions, borders, pixel_values).hidden)[0]


@pytest.mark.parametrize("name", MODELS)
def test_stock_llava_gives_the_logits_and_the_answer(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = export(MODELS[name], tokenizer, tmp_path)
    assert not list((tmp_path / "out").glob("*.py"))
    loaded: Any = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    stock, told = loaded
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    image = [tokenizer.image_id] * 16
    words = tokenizer.encode(" a cat sat on a mat")
    long = torch.tensor([tokenizer.bos_id, *image, *words, *image, *words[:2]])
    short = torch.tensor([tokenizer.bos_id, *words])
    pads = torch.full((len(long) - len(short),), tokenizer.pad_id)
    input_ids = torch.stack([long, torch.cat([pads, short])])
    pixel_values = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != tokenizer.pad_id).long(),
        "pixel_values": pixel_values,
    }
    with torch.no_grad():
        logits = stock(**inputs).logits
    none = pixel_values[:0]
    for row, (ids, images) in enumerate(((long, pixel_values), (short, none))):
        expected = our_logits(model, ids, images)
        torch.testing.assert_close(logits[row, -len(ids) :], expected, atol=TOLERANCE, rtol=0)
        assert expected.std() > 0.3
    answer = stock.generate(**inputs, max_new_tokens=4, do_sample=False)[0, len(long) :].tolist()
    tokens = long.tolist()
    never = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]
    never += range(tokenizer.vocab_size, MODEL.decoder.vocab_size)  # rows without a token
    while len(tokens) < len(long) + 4 and tokens[-1] != tokenizer.eos_id:
        last = our_logits(model, torch.tensor(tokens), pixel_values)[-1]
        last[never] = -torch.inf
        tokens.append(int(last.argmax()))
    assert answer[: len(tokens) - len(long)] == tokens[len(long) :]


def test_its_processor_gives_the_tokens_and_pixels_of_training(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    export(MODEL, tokenizer, tmp_path)
    # transformers 5 resizes by torchvision unless it is told to do it as training did.
    loaded: Any = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert type(loaded) is transformers.LlavaProcessor
    processor: Any = loaded
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    bos = processor.tokenizer.bos_token
    inputs = processor(images=[picture], text=[f"{bos}<|image|> a cat sat"], return_tensors="pt")
    segments = [Segment.of_image(0), Segment.of_text("a cat sat")]
    expected = serialize(segments, tokenizer, 16, end=False).input_ids
    assert inputs["input_ids"][0].tolist() == expected.tolist()
    square = to_pixel_values([resize_image(picture, TRANSFORM)], TRANSFORM)
    # Rounding of 1 / 255; worst seen 2.4e-7.
    torch.testing.assert_close(inputs["pixel_values"], square, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            changed("connector", kind=ConnectorKind.AVERAGE_POOLING),
            r"model\.connector\.kind: average_pooling -> mlp",
        ),
        (changed("connector", num_tokens=4), r"model\.connector\.num_tokens: 4 -> 16"),
        (changed("vision", class_token=False), r"model\.vision\.class_token: false -> true"),
        (changed("vision", final_norm=True), r"model\.vision\.final_norm: true -> false"),
        (changed("vision", activation=Activation.SWIGLU), r"model\.vision\.activation: swiglu"),
        (changed("decoder", moe=MoEConfig(num_experts=2)), r"model\.decoder\.moe: found experts"),
        (changed("decoder", norm_order=NormOrder.POST), "which together no family"),
    ],
)
def test_what_it_cannot_compute_is_refused_by_name(
    config: MM1Config, reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        export(config, tokenizer, tmp_path)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_images_that_its_processor_would_show_otherwise_are_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    padded = dataclasses.replace(TRANSFORM, resize=Resize.PAD)
    with pytest.raises(ValueError, match=r"resize: pad -> squash .*sub_images\.grid: 2 -> 1"):
        export(MODEL, tokenizer, tmp_path, transform=padded, sub_images=SubImageConfig(grid=2))


def test_a_run_that_could_not_be_exported_does_not_start() -> None:
    from mm1_pipeline.preflight.run import Run
    from mm1_pipeline.preflight.training import check_export

    def told(model: MM1Config, config: ExportConfig, **shard: Any) -> list[str]:
        groups = {"export": config, "model": model, **shard}
        return list(check_export("pretrain")(Run(frozenset({"export_pretrained"}), groups)))

    pooled = changed("connector", num_tokens=4)
    assert told(pooled, ExportConfig()) == []
    assert told(MODEL, STOCK) == []
    text = "\n".join(told(pooled, STOCK))
    assert "model.connector.num_tokens: 4 -> 16" in text
    packing = PackingConfig(sequence_length=100, image_tokens=16)
    padded = ShardConfig(packing=packing, image=ImageTransform(size=32, resize=Resize.PAD))
    (text,) = told(MODEL, STOCK, shard=padded)
    assert "image.resize: pad -> squash" in text
