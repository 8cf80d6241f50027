"""What users do with an exported directory, on both generations of transformers."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mm1_pipeline.config.export import ExportConfig, Layout
from mm1_pipeline.config.model import (
    Activation,
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, Resize, SubImageConfig, TokenizerConfig
from mm1_pipeline.corpus.images import FORMATS, RejectedImage, open_image
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.export.huggingface import image_processing_mm1
from mm1_pipeline.export.huggingface_directory import export_model
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.sub_images import decompose
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parents[3]
NUM_TOKENS = 4
TRANSFORM = ImageTransform(size=16)
SUB_IMAGES = SubImageConfig(grid=2, skip_empty=True)

VISION = VisionConfig(image_size=16, patch_size=4, d_model=32, num_layers=2, num_heads=2, d_ff=48)
DENSE = MM1Config(
    vision=VISION,
    connector=ConnectorConfig(num_tokens=NUM_TOKENS, num_blocks=1),
    decoder=DecoderConfig(
        vocab_size=310, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=48
    ),
)
MOE = replace(
    DENSE,
    decoder=replace(
        DENSE.decoder, moe=MoEConfig(num_experts=4, every_n_layers=2), tie_embeddings=False
    ),
)
STOCK = replace(
    DENSE,
    vision=replace(VISION, class_token=True, final_norm=False, activation=Activation.QUICK_GELU),
    connector=ConnectorConfig(kind=ConnectorKind.MLP, num_tokens=16),
)

SCRIPT = Path(__file__).with_name("use_exported.py")
CHECKS = re.findall(r"^@check\ndef (\w+)", SCRIPT.read_text(), re.MULTILINE)

_INSTALLED = importlib.metadata.version("transformers")
VERSIONS = {
    version: ("accelerate",) if _INSTALLED.startswith(f"{version}.") else ("other-transformers",)
    for version in ("4.57", "5")
}
"""Folders of the environment that go before it, by the transformers that is then found."""

CHATS: list[tuple[list[dict[str, Any]], list[Segment]]] = []
"""Messages, and the segments that training serialises to the same tokens."""


def chat(*turns: tuple[str, list[str | int]]) -> None:
    messages, segments = [], []
    roles = {"human": "user"}
    for role, parts in turns:
        content: Any = [
            {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}
            for part in parts
        ]
        if role != "human":
            content = parts[0] if len(parts) == 1 else content
        messages.append({"role": roles.get(role, role), "content": content})
        segments += [
            replace(
                Segment.of_image(part) if isinstance(part, int) else Segment.of_text(part),
                role=role,
            )
            for part in parts
        ]
    CHATS.append((messages, segments))


def said(*parts: str | int) -> tuple[str, list[str | int]]:
    return "human", [*parts]


def answered(*parts: str | int) -> tuple[str, list[str | int]]:
    return "assistant", [*parts]


def told(*parts: str | int) -> tuple[str, list[str | int]]:
    return "system", [*parts]


chat(said(0, "what is it?"))
chat(said("what is it?", 0))
chat(said("  what is it?\n"))
chat(said("look", 0, 1, "and", "what is it?"))
chat(told("Be brief."), said(0, "what?"), answered("A cat."), said("Sure?"))
chat(told("Be", "brief."), said("a"), answered("A", "cat."), said(0))
chat(said("a"), said(0, "b"), said("c"), answered("d"), answered("e"))
chat(said(0, "say <|image|> and <|eos|>"), answered("<|bos|><|eos|>"), said("b"))
chat(said("a"), answered(" "), said(" ", "b"))


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def make_images() -> dict[str, bytes]:
    """One small file of every mode and trick, by name."""
    random = np.random.default_rng(0)
    rgb = Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    grey, alpha = rgb.getchannel(0), rgb.getchannel(1)
    deep = random.integers(0, 65_536, (20, 30)).astype(np.uint16)
    turned, exif = {}, Image.Exif()
    for orientation in (3, 5, 6):
        exif[0x0112] = orientation
        turned[orientation] = exif.tobytes()
    palette = rgb.quantize(16)
    return {
        "rgb.png": encoded(rgb, "PNG"),
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.webp": encoded(rgb, "WEBP", lossless=True),
        "grey.jpg": encoded(grey, "JPEG"),
        "one_bit.png": encoded(grey.convert("1"), "PNG"),
        "one_bit_trns.png": encoded(grey.convert("1"), "PNG", transparency=0),
        "la.png": encoded(Image.merge("LA", (grey, alpha)), "PNG"),
        "rgba.png": encoded(Image.merge("RGBA", (*rgb.split(), alpha)), "PNG"),
        "rgba.webp": encoded(Image.merge("RGBA", (*rgb.split(), alpha)), "WEBP", lossless=True),
        "rgba.tif": encoded(Image.merge("RGBA", (*rgb.split(), alpha)), "TIFF"),
        "palette.png": encoded(palette, "PNG"),
        "palette_trns.png": encoded(palette, "PNG", transparency=3),
        "palette_alphas.png": encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "palette.gif": encoded(palette, "GIF", transparency=3),
        "rgb_trns.png": encoded(rgb, "PNG", transparency=rgb.getpixel((3, 3))),
        "grey_trns.png": encoded(grey, "PNG", transparency=grey.getpixel((3, 3))),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "lab.tif": encoded(rgb.convert("LAB"), "TIFF"),
        "i16.png": encoded(Image.fromarray(deep), "PNG"),
        "i16.tif": encoded(Image.fromarray(deep), "TIFF"),
        "signed.tif": encoded(Image.fromarray((deep // 2).astype(np.int32)), "TIFF"),
        "i32.tif": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "i32_bytes.tif": encoded(Image.fromarray((deep // 257).astype(np.int32)), "TIFF"),
        "float01.tif": encoded(Image.fromarray((deep / 65_535).astype(np.float32)), "TIFF"),
        "float255.tif": encoded(Image.fromarray((deep / 257).astype(np.float32)), "TIFF"),
        "exif6.jpg": encoded(rgb, "JPEG", exif=turned[6]),
        "exif3.webp": encoded(rgb, "WEBP", lossless=True, exif=turned[3]),
        "exif5.png": encoded(rgb, "PNG", exif=turned[5]),
        "exif6.tif": encoded(rgb, "TIFF", tiffinfo={0x0112: 6}),
        "exif6_la.png": encoded(Image.merge("LA", (grey, alpha)), "PNG", exif=turned[6]),
        "mpo.jpg": encoded(rgb, "MPO", save_all=True, append_images=[grey.convert("RGB")]),
        "iccp_big.png": encoded(rgb, "PNG", icc_profile=bytes(2_000_000)),
        "small.png": encoded(rgb.resize((9, 7)), "PNG"),
        "refused_negative.tif": encoded(Image.fromarray(deep.astype(np.int32) - 32_768), "TIFF"),
        "refused_float.tif": encoded(Image.fromarray(deep.astype(np.float32) - 40_000), "TIFF"),
    }


def snippets() -> list[str]:
    """The Python that the documentation shows for exported models."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.partition("\n## A trained model for other programs\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def sub_images_of(data: bytes) -> torch.Tensor:
    return to_pixel_values(decompose(open_image(data), TRANSFORM, SUB_IMAGES), TRANSFORM)


def export(root: Path, name: str, config: MM1Config, tokenizer: Tokenizer, stock: bool) -> None:
    model = build_model(config, tokenizer.image_id, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # larger maps, so that images change the answers
        for key, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "decoder.layers" in key:
                parameter.mul_(1.5)
    save_model(model, root / "models" / name)
    transform = replace(TRANSFORM, resize=Resize.SQUASH) if stock else TRANSFORM
    export_model(
        ExportConfig(layout=Layout.LLAVA if stock else Layout.OWN),
        root / "models" / name,
        root / "tokenizer",
        transform,
        root / name,
        SubImageConfig() if stock else SUB_IMAGES,
    )


@dataclass
class Use:
    """A run of `use_exported.py`."""

    version: str
    errors: dict[str, str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every run of `use_exported.py` reads."""
    root = tmp_path_factory.mktemp("exported")
    texts = ["A cat and a dog sat on a mat. User: what is it? Assistant: a cat.\n"] * 3
    settings = TokenizerConfig(vocab_size=300, min_frequency=1)
    tokenizer = train_tokenizer(settings, texts, root / "tokenizer")
    export(root, "dense", DENSE, tokenizer, stock=False)
    export(root, "moe", MOE, tokenizer, stock=False)
    export(root, "llava", STOCK, tokenizer, stock=True)

    expected, refused = {}, {}
    (root / "images").mkdir()
    for name, data in make_images().items():
        (root / "images" / name).write_bytes(data)
        try:
            expected[name] = sub_images_of(data)
        except RejectedImage as error:
            refused[name] = error.detail
    assert [*refused] == ["refused_negative.tif", "refused_float.tif"]
    plan = {
        "images": [*expected],
        "not_by_pillow": ["iccp_big.png"],
        "refused": refused,
        "chats": [messages for messages, _ in CHATS],
        "chat_images": [],
        "snippets": snippets(),
    }
    for index, (_, segments) in enumerate(CHATS):
        seeds = [segment.image for segment in segments if segment.image is not None]
        pictures = [picture(seed) for seed in seeds]
        plan["chat_images"].append(seeds)
        num_sub_images = [len(decompose(each, TRANSFORM, SUB_IMAGES)) for each in pictures]
        document = serialize_conversation(
            segments, tokenizer, NUM_TOKENS, num_sub_images=num_sub_images
        )
        expected[f"chat {index}"] = torch.from_numpy(document.input_ids.astype(np.int64))
    squashed = replace(TRANSFORM, resize=Resize.SQUASH)
    expected["llava"] = to_pixel_values([resize_image(picture(1), squashed)], squashed)
    save_file(expected, root / "expected.safetensors")
    (root / "plan.json").write_text(json.dumps(plan))
    return root


@pytest.fixture(scope="module", params=list(VERSIONS))
def use(
    request: pytest.FixtureRequest, exported: Path, tmp_path_factory: pytest.TempPathFactory
) -> Use:
    beside = [Path(sys.prefix) / folder for folder in VERSIONS[request.param]]
    if missing := [str(folder) for folder in beside if not folder.is_dir()]:
        assert "CI" not in os.environ, f"{missing}: make test installs them"
        pytest.skip(f"found no {', '.join(missing)}; make test installs what this needs")
    work = tmp_path_factory.mktemp("use")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, beside)),
        "HF_HOME": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
    }
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(exported), str(work)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    errors = json.loads((work / "results.json").read_text())
    return Use(errors.pop("version"), errors)


def picture(seed: int) -> Image.Image:
    """As `use_exported.py` draws it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", CHECKS)
def test_users_find_what_transformers_promises(use: Use, name: str) -> None:
    assert not use.errors[name], use.errors[name]


def test_both_generations_of_transformers_are_run(use: Use, request: pytest.FixtureRequest) -> None:
    assert use.version.startswith(request.node.callspec.params["use"])
    assert use.errors.keys() == set(CHECKS)


def test_the_processor_reads_the_formats_of_training() -> None:
    assert image_processing_mm1.FORMATS == FORMATS


def test_the_docs_show_python_for_both_layouts() -> None:
    code = snippets()
    assert len(code) > 2
    assert any("LlavaForConditionalGeneration" in each for each in code)
