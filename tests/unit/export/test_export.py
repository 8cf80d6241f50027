from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm1_pipeline.config.export import ExportConfig
from mm1_pipeline.config.model import (
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
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig, TokenizerConfig
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.export.huggingface_directory import export_model
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.sub_images import decompose
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

TOLERANCE = 1e-5
NUM_TOKENS = 4
TRANSFORM = ImageTransform(size=16)

VISION = VisionConfig(image_size=16, patch_size=4, d_model=32, num_layers=2, num_heads=2, d_ff=48)
DECODER = DecoderConfig(
    vocab_size=310, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=48
)
MODELS: dict[str, MM1Config] = {
    "dense": MM1Config(
        vision=VISION,
        connector=ConnectorConfig(num_tokens=NUM_TOKENS, num_blocks=1),
        decoder=DECODER,
    ),
    "moe": MM1Config(
        vision=dataclasses.replace(VISION, class_token=True, feature_layer=-2),
        connector=ConnectorConfig(
            kind=ConnectorKind.ATTENTION_POOLING, num_tokens=NUM_TOKENS, num_heads=4
        ),
        decoder=dataclasses.replace(
            DECODER, moe=MoEConfig(num_experts=4, every_n_layers=2), tie_embeddings=False
        ),
    ),
    "variants": MM1Config(
        vision=VISION,
        connector=ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=NUM_TOKENS),
        decoder=dataclasses.replace(
            DECODER,
            d_head=16,
            qkv_bias=True,
            qk_norm=QKNorm.PER_HEAD,
            norm_order=NormOrder.POST,
            rope_scaling=RopeScaling(
                kind=RopeScalingKind.LLAMA3, factor=8, original_max_positions=16
            ),
        ),
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = ["A cat and a dog sat on a mat. User: what is it? Assistant: a cat.\n"] * 3
    config = TokenizerConfig(vocab_size=300, min_frequency=1)
    return train_tokenizer(config, texts, tmp_path_factory.mktemp("tokenizer"))


@dataclass
class Exported:
    """A model, its exported directory, and what that computed in a process of its own."""

    model: MM1
    directory: Path
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def make_model(config: MM1Config, image_id: int) -> MM1:
    model = build_model(config, image_id, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # larger maps and uneven norms, so that answers vary
        for name, parameter in model.decoder.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            elif "layers" in name:
                parameter.mul_(1.5)
    return model


def make_inputs(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Three prompts of different length, padded on the left, with two images, one, none."""
    image = [tokenizer.image_id] * NUM_TOKENS
    words = [
        tokenizer.encode(text) for text in (" a cat", " a dog sat on", " what is it?", "A mat")
    ]
    prompts = [
        [*image, *words[0], *image, *words[1]],
        [*image, *words[2]],
        words[3],
    ]
    prompts = [[tokenizer.bos_id, *prompt] for prompt in prompts]
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    input_ids = [[tokenizer.pad_id] * n + prompt for n, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(pads, prompts, strict=True)]
    pixel_values = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.tensor(input_ids),
        "attention_mask": torch.tensor(mask),
        "pixel_values": pixel_values,
    }


@pytest.fixture(scope="module")
def exported(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    root = tmp_path_factory.mktemp("exported")
    tokenizer.save(root / "tokenizer")
    models = {}
    for name, config in MODELS.items():
        model = make_model(config, tokenizer.image_id)
        save_model(model, root / name / "model")
        target = root / name / "exported"
        export_model(ExportConfig(), root / name / "model", root / "tokenizer", TRANSFORM, target)
        inputs = make_inputs(tokenizer)
        save_file(inputs, root / name / "inputs.safetensors")
        models[name] = Exported(model, target, inputs, {})
    script = Path(__file__).with_name("load_exported.py")
    environment = {key: x for key, x in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(root / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, str(script), *(str(each.directory) for each in models.values())],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for each in models.values():
        each.outputs.update(load_file(each.directory.parent / "outputs.safetensors"))
    return models


def prompts_of(inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Token ids without pads, and the images, of each row."""
    rows = [
        ids[mask.bool()]
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    return list(zip(rows, inputs["pixel_values"].split([2, 1, 0]), strict=True))


def our_logits(model: MM1, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
    length = len(input_ids)
    with torch.no_grad():
        hidden = model(
            input_ids[None], torch.arange(length)[None], torch.tensor([0, length]), pixel_values
        ).hidden
        return model.logits(hidden)[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model(exported: dict[str, Exported], name: str) -> None:
    each = exported[name]
    for row, (input_ids, pixel_values) in enumerate(prompts_of(each.inputs)):
        expected = our_logits(each.model, input_ids, pixel_values)
        found = each.outputs["logits"][row, -len(input_ids) :]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
        assert expected.std() > 0.3


def test_transformers_can_save_and_load_it_again(exported: dict[str, Exported]) -> None:
    outputs = exported["dense"].outputs
    assert torch.equal(outputs["logits_again"], outputs["logits"])


@pytest.mark.parametrize("name", MODELS)
def test_text_alone_needs_no_images(exported: dict[str, Exported], name: str) -> None:
    each = exported[name]
    input_ids, none = prompts_of(each.inputs)[-1]
    expected = our_logits(each.model, input_ids, none)
    found = each.outputs["text_logits"][0, -len(input_ids) :]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_that_of_the_model(
    exported: dict[str, Exported], tokenizer: Tokenizer, name: str
) -> None:
    each = exported[name]
    never = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]
    never += range(tokenizer.vocab_size, DECODER.vocab_size)  # rows without a token
    length = each.inputs["input_ids"].shape[1]
    seen: set[int] = set()
    for row, (input_ids, pixel_values) in enumerate(prompts_of(each.inputs)):
        tokens = input_ids.tolist()
        while len(tokens) < len(input_ids) + 12 and tokens[-1] != tokenizer.eos_id:
            logits = our_logits(each.model, torch.tensor(tokens), pixel_values)[-1]
            logits[never] = -torch.inf
            tokens.append(int(logits.argmax()))
        answer = tokens[len(input_ids) :]
        found = each.outputs["generated"][row, length:].tolist()
        assert found[: len(answer)] == answer
        assert all(token == tokenizer.pad_id for token in found[len(answer) :])
        seen.update(answer)
    assert len(seen) > 5


def test_files_name_no_module_of_this_package(exported: dict[str, Exported]) -> None:
    for path in exported["dense"].directory.glob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.lstrip().startswith(("from mm1_pipeline", "import mm1_pipeline")), path
            assert not line.lstrip().startswith(("from pydantic", "import pydantic")), path


def test_equal_models_give_equal_bytes(
    exported: dict[str, Exported], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    each = exported["moe"]
    tokenizer.save(tmp_path / "tokenizer")
    model_dir = each.directory.parent / "model"
    export_model(ExportConfig(), model_dir, tmp_path / "tokenizer", TRANSFORM, tmp_path / "out")
    files = sorted(path.name for path in each.directory.iterdir() if path.is_file())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (each.directory / name).read_bytes()


def test_weights_may_be_cut_and_rounded(
    exported: dict[str, Exported], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    each = exported["moe"]
    tokenizer.save(tmp_path / "tokenizer")
    config = ExportConfig(dtype="bfloat16", max_shard_bytes=40_000)
    counts = export_model(
        config, each.directory.parent / "model", tmp_path / "tokenizer", TRANSFORM, tmp_path / "out"
    )
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert counts["weight_files"] == len(set(index["weight_map"].values())) > 2
    found = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.stat().st_size < 50_000
        found.update(load_file(path))
    expected = {f"model.{name}": x for name, x in each.model.state_dict().items()}
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name


@pytest.fixture(scope="module")
def processor(exported: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        modules = tmp_path_factory.mktemp("modules")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        yield transformers.AutoProcessor.from_pretrained(
            exported["dense"].directory, trust_remote_code=True
        )


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_processor_gives_the_tokens_and_pixels_of_training(
    processor: Any, picture: Image.Image, tokenizer: Tokenizer
) -> None:
    inputs = processor(images=[picture], text=["<|image|> a cat sat"])
    segments = [Segment.of_image(0), Segment.of_text("a cat sat")]
    expected = serialize(segments, tokenizer, NUM_TOKENS, end=False).input_ids
    assert inputs["input_ids"][0].tolist() == expected.tolist()
    square = to_pixel_values([resize_image(picture, TRANSFORM)], TRANSFORM)
    assert torch.equal(inputs["pixel_values"], square)


def test_chat_template_gives_the_tokens_of_sft(
    processor: Any, picture: Image.Image, tokenizer: Tokenizer
) -> None:
    question = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": question}])
    found = processor(images=[picture], text=[text])["input_ids"][0].tolist()
    turn = [
        dataclasses.replace(segment, role="human")
        for segment in (Segment.of_image(0), Segment.of_text("what is it?"))
    ]
    assert found == serialize_conversation(turn, tokenizer, NUM_TOKENS).input_ids.tolist()


def test_large_images_take_the_squares_that_they_had_in_training(
    processor: Any, picture: Image.Image, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sub_images = SubImageConfig(grid=2, skip_empty=True)
    assert processor.image_processor.sub_images["grid"] == 1
    monkeypatch.setattr(processor.image_processor, "sub_images", dataclasses.asdict(sub_images))
    small = Image.new("RGB", (9, 9))
    inputs = processor(images=[picture, small], text=["<|image|> a cat <|image|>"])
    squares = [*decompose(picture, TRANSFORM, sub_images), *decompose(small, TRANSFORM, sub_images)]
    assert torch.equal(inputs["pixel_values"], to_pixel_values(squares, TRANSFORM))
    placeholders = int((inputs["input_ids"] == tokenizer.image_id).sum())
    assert placeholders == len(squares) * NUM_TOKENS
    assert len(squares) > 3
    with pytest.raises(ValueError, match=r"Found 1 times <\|image\|> in the texts but 2 images"):
        processor(images=[picture, small], text=["<|image|> a cat"])


def test_padding_is_on_the_left(processor: Any, tokenizer: Tokenizer) -> None:
    inputs = processor(text=["a cat", "a cat and a dog sat"], padding=True)
    assert inputs["input_ids"][0, 0] == tokenizer.pad_id
    assert inputs["attention_mask"][0, 0] == 0
    assert "pixel_values" not in inputs


def test_a_tokenizer_of_another_model_is_refused(
    exported: dict[str, Exported], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    texts = [
        "the quick brown fox jumps over the lazy dog and runs away quickly, " + text
        for text in ("pack my box with five dozen jugs", "sphinx of black quartz")
    ]
    config = TokenizerConfig(vocab_size=350, min_frequency=1)
    assert train_tokenizer(config, texts, tmp_path / "tokenizer").vocab_size > 310
    model_dir = exported["dense"].directory.parent / "model"
    with pytest.raises(ValueError, match="Export the model with the tokenizer"):
        export_model(ExportConfig(), model_dir, tmp_path / "tokenizer", TRANSFORM, tmp_path / "out")


def test_a_decoder_alone_is_refused(tmp_path: Path) -> None:
    from mm1_pipeline.models.checkpoint import save_decoder
    from mm1_pipeline.models.decoder import Decoder

    save_decoder(Decoder(DECODER), tmp_path)
    with pytest.raises(ValueError, match="found no model, expected what save_model wrote"):
        export_model(ExportConfig(), tmp_path, tmp_path, TRANSFORM, tmp_path / "out")
