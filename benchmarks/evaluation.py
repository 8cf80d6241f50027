"""Few-shot answers a second, beside transformers' `generate` with the same weights.

A LLaVA of transformers (CLIP ViT, our connector as its projector, Llama) and our model hold the
same random weights, are asked the same 4-shot prompts in batches of 16 with 10 new tokens each,
in float32, and must answer the same; runs alternate. Images of transformers are given as pixels,
ours are decoded: that counts against us. Encoder and decoder take about the same share of a
prompt's operations, as in MM1's recipes.

`vs_hf_generate` is for shots that are the same for the whole task (`shot_draw: per_task`):
images are encoded once and the shots are read once. `vs_hf_generate_shots_per_query` has other
shots in each prompt: only the images are shared. The other two switch one saving off each.

    python benchmarks/evaluation.py [--items 64] [--repetitions 3]

Prints a Markdown table, then one JSON object as the last line. Ratios are our items a second over
those of transformers: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from _llava import build_llava
from mm1_pipeline.config.evaluation import ShotDraw
from mm1_pipeline.config.model import (
    Activation,
    ConnectorConfig,
    ConnectorKind,
    DecoderConfig,
    MM1Config,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, TokenizerConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.evaluation.generation import generation
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.generation.prefixes import SharedPrefixes
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.prompts.shots import ShotPool
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

BATCH_SIZE, NUM_SHOTS, NEW_TOKENS = 16, 4, 10
IMAGE_SIZE, NUM_TOKENS = 112, 16
TRANSFORM = ImageTransform(size=IMAGE_SIZE, encoding="png")
WORDS = (
    "what",
    "colour",
    "is",
    "the",
    "left",
    "right",
    "small",
    "large",
    "red",
    "green",
    "blue",
    "shape",
    "near",
    "of",
    "and",
    "number",
)

VISION = VisionConfig(
    image_size=IMAGE_SIZE,
    patch_size=14,
    d_model=192,
    num_layers=6,
    num_heads=6,
    d_ff=768,
    activation=Activation.QUICK_GELU,
    class_token=True,
    final_norm=False,
)


class Setting(NamedTuple):
    """One way to answer all prompts; gives texts."""

    name: str
    shot_draw: ShotDraw
    answer: Callable[[Sequence[Prompt]], list[str]]


class World(NamedTuple):
    """Images, tokenizer and prompts of both kinds of shots."""

    images: dict[str, bytes]
    tokenizer: Tokenizer
    prompts: dict[ShotDraw, list[Prompt]]


def make_world(num_items: int) -> World:
    """Items with an image and a question of 8 to 16 words each."""
    rng = random.Random(0)
    questions = [" ".join(rng.choices(WORDS, k=rng.randint(8, 16))) for _ in range(num_items)]
    with tempfile.TemporaryDirectory() as folder:
        config = TokenizerConfig(vocab_size=384, min_frequency=1)
        texts = [f"Question: {question} Short answer: red\n" for question in questions]
        tokenizer = train_tokenizer(config, texts, Path(folder))
    encoded = [random_image(number) for number in range(num_items)]
    keys = [hashlib.sha256(data).hexdigest() for data in encoded]
    images = {str(number): [key] for number, key in enumerate(keys)}

    def prompt(item: int, pool: ShotPool) -> Prompt:
        shots = pool.draw(str(item), [keys[item]], NUM_SHOTS)
        segments = []
        for place, shown in enumerate([*map(int, shots), item]):
            answer = "" if shown == item else f" {WORDS[shown % 8 + 7]}"
            text = f" Question: {questions[shown]} Short answer:{answer}"
            segments += [Segment.of_image(place), Segment.of_text(text)]
        document = serialize(segments, tokenizer, NUM_TOKENS, end=False)
        own = tuple(keys[int(shown)] for shown in (*shots, item))
        return Prompt(str(item), shots, "", str(item), document.input_ids, own)

    prompts = {
        draw: [prompt(item, ShotPool("task", images, 0, draw)) for item in range(num_items)]
        for draw in ShotDraw
    }
    return World(dict(zip(keys, encoded, strict=True)), tokenizer, prompts)


def random_image(number: int) -> bytes:
    """A JPEG of smooth random colours."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def make_models(tokenizer: Tokenizer) -> tuple[MM1, LlavaForConditionalGeneration]:
    """Ours and transformers' with the same weights."""
    decoder = DecoderConfig(
        vocab_size=4096, d_model=256, num_layers=6, num_heads=8, num_kv_heads=4, d_ff=688,
        tie_embeddings=False,
    )  # fmt: skip
    connector = ConnectorConfig(kind=ConnectorKind.AVERAGE_POOLING, num_tokens=NUM_TOKENS)
    config = MM1Config(vision=VISION, connector=connector, decoder=decoder)
    ours = build_model(config, tokenizer.image_id, seed=0).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)  # or all prompts get one answer
    theirs = build_llava(
        config,
        tokenizer.image_id,
        ours.connector,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    ).eval()
    missing = theirs.load_state_dict(their_weights(ours), strict=False)
    post_norm = "post_layernorm"  # of the class token, which LLaVA does not read
    left = [name for name in missing.missing_keys if post_norm not in name]
    left = [name for name in left if "projector" not in name and "position_ids" not in name]
    if left or missing.unexpected_keys:
        raise RuntimeError(f"weights do not fit: {left}, {missing.unexpected_keys}")
    return ours, theirs


def their_weights(ours: MM1) -> dict[str, Tensor]:
    """Our encoder and decoder under the names of transformers."""
    state = ours.state_dict()
    names = {
        "decoder.embedding.weight": "model.language_model.embed_tokens.weight",
        "decoder.final_norm.weight": "model.language_model.norm.weight",
        "decoder.head.weight": "lm_head.weight",
        "vision.class_embedding": "embeddings.class_embedding",
        "vision.position_embeddings": "embeddings.position_embedding.weight",
        "vision.embedding_norm.weight": "pre_layrnorm.weight",
        "vision.embedding_norm.bias": "pre_layrnorm.bias",
    }
    found = {}
    for our, their in names.items():
        tower = "model.vision_tower.vision_model."
        found[tower + their if our.startswith("vision") else their] = state[our]
    kernel = state["vision.patch_embedding.weight"]
    found["model.vision_tower.vision_model.embeddings.patch_embedding.weight"] = kernel.unflatten(
        1, (3, VISION.patch_size, VISION.patch_size)
    )
    parts = {
        "vision": (
            "model.vision_tower.vision_model.encoder.layers",
            ("weight", "bias"),
            {
                "attention_norm": "layer_norm1",
                "attention.output": "self_attn.out_proj",
                "feed_forward_norm": "layer_norm2",
                "feed_forward.up": "mlp.fc1",
                "feed_forward.down": "mlp.fc2",
            },
        ),
        "decoder": (
            "model.language_model.layers",
            ("weight",),
            {
                "attention_norm": "input_layernorm",
                "attention.output": "self_attn.o_proj",
                "feed_forward_norm": "post_attention_layernorm",
                "feed_forward.gate": "mlp.gate_proj",
                "feed_forward.up": "mlp.up_proj",
                "feed_forward.down": "mlp.down_proj",
            },
        ),
    }
    config = ours.config.decoder
    sizes = {
        "vision": [VISION.d_model] * 3,
        "decoder": [
            heads * config.head_dim
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ],
    }
    for part, (prefix, kinds, layer_names) in parts.items():
        num_layers = len(getattr(ours, part).layers)
        for index in range(num_layers):
            for kind in kinds:
                for our, their in layer_names.items():
                    found[f"{prefix}.{index}.{their}.{kind}"] = state[
                        f"{part}.layers.{index}.{our}.{kind}"
                    ]
                qkv = state[f"{part}.layers.{index}.attention.qkv.{kind}"].split(sizes[part])
                for letter, weight in zip("qkv", qkv, strict=True):
                    found[f"{prefix}.{index}.self_attn.{letter}_proj.{kind}"] = weight
    return found


def their_answers(
    model: LlavaForConditionalGeneration, world: World, pixels: dict[str, Tensor]
) -> Callable[[Sequence[Prompt]], list[str]]:
    """Batches in the order of the items, padded on the left as `generate` wants it."""
    tokenizer = world.tokenizer
    barred = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]
    decoder: Any = model.config.text_config
    generating: Any = model
    barred += range(tokenizer.vocab_size, decoder.vocab_size)

    @torch.inference_mode()
    def answer(prompts: Sequence[Prompt]) -> list[str]:
        texts = []
        for start in range(0, len(prompts), BATCH_SIZE):
            batch = prompts[start : start + BATCH_SIZE]
            longest = max(map(len, batch))
            ids = torch.full((len(batch), longest), tokenizer.pad_id)
            for row, prompt in enumerate(batch):
                ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.input_ids)
            output = generating.generate(
                input_ids=ids,
                attention_mask=(ids != tokenizer.pad_id).long(),
                pixel_values=torch.stack([pixels[key] for p in batch for key in p.images]),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                suppress_tokens=barred,
            )
            texts += [tokenizer.decode(row) for row in output[:, longest:].tolist()]
        return texts

    return answer


class EncodeAlways(ImageFeatures):
    """Keeps nothing: images are encoded for every prompt that shows them."""

    def failure(self, keys: Sequence[str]) -> str | None:
        return None

    def __call__(self, keys: Sequence[str]) -> Tensor:
        self._cache.clear()
        squares = [resize_image(open_image(self._images[key]), TRANSFORM) for key in keys]
        return self._model.connector(self._model.vision(to_pixel_values(squares, TRANSFORM)))


def our_answers(
    model: MM1, world: World, features: type[ImageFeatures] = ImageFeatures
) -> Callable[[Sequence[Prompt]], list[str]]:
    """Through the project's generator."""

    def answer(prompts: Sequence[Prompt]) -> list[str]:
        # New features each time: images are encoded anew in every run.
        encoder = features(model, world.images, TRANSFORM)
        generator = Generator(model, world.tokenizer, encoder, BATCH_SIZE)
        answers = generator.generate(prompts, max_new_tokens=NEW_TOKENS, stop=())
        return [answer.text for answer in answers]

    return answer


def without_prefixes(
    answer: Callable[[Sequence[Prompt]], list[str]],
) -> Callable[[Sequence[Prompt]], list[str]]:
    """The same, reading every prompt whole."""

    def share_nothing(streams: Sequence[np.ndarray]) -> SharedPrefixes:
        return SharedPrefixes(list(range(len(streams))), [()] * len(streams))

    def alone(prompts: Sequence[Prompt]) -> list[str]:
        shared = generation.shared_prefixes
        generation.shared_prefixes = share_nothing
        try:
            return answer(prompts)
        finally:
            generation.shared_prefixes = shared

    return alone


def operations(model: nn.Module) -> int:
    """Multiplications of one position in the layers' maps."""
    return sum(p.numel() for name, p in model.named_parameters() if p.ndim > 1 and "layers" in name)


def main() -> int:
    """Times every setting; tells if they do not answer alike."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    world = make_world(options.items)
    ours, theirs = make_models(world.tokenizer)
    pixels = {
        key: to_pixel_values([resize_image(open_image(data), TRANSFORM)], TRANSFORM)[0]
        for key, data in world.images.items()
    }
    hf, own = their_answers(theirs, world, pixels), our_answers(ours, world)
    task, query = ShotDraw.PER_TASK, ShotDraw.PER_QUERY
    settings = [
        Setting("transformers, shots per task", task, hf),
        Setting("ours, shots per task", task, own),
        Setting("ours, shots per task, no shared beginnings", task, without_prefixes(own)),
        Setting("ours, shots per task, images always encoded", task,
                our_answers(ours, world, EncodeAlways)),
        Setting("transformers, shots per query", query, hf),
        Setting("ours, shots per query", query, own),
    ]  # fmt: skip
    seconds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    texts: dict[str, list[str]] = {}
    for setting in settings:
        setting.answer(world.prompts[setting.shot_draw][:BATCH_SIZE])  # warm-up
    for _ in range(options.repetitions):
        for setting in settings:
            begun = time.perf_counter()
            texts[setting.name] = setting.answer(world.prompts[setting.shot_draw])
            seconds[setting.name].append(time.perf_counter() - begun)
    check_answers(texts)
    rate = {name: options.items / statistics.median(times) for name, times in seconds.items()}
    image = operations(ours.vision) * (VISION.num_patches + 1)
    prompts = world.prompts[query]
    per_shot = sum(map(len, prompts)) / len(prompts) / (NUM_SHOTS + 1)
    print(f"{torch.get_num_threads()} threads, {options.items} items, {per_shot:.0f} positions a")
    print(f"shot; decoder over encoder {operations(ours.decoder) * per_shot / image:.2f}\n")
    print("| | items/s | over transformers |\n|---|---|---|")
    for name, value in rate.items():
        base = rate["transformers, shots per query" if "query" in name else settings[0].name]
        print(f"| {name} | {value:.1f} | {value / base:.2f} |")
    base = rate[settings[0].name]
    result = {
        "vs_hf_generate": rate[settings[1].name] / base,
        "vs_hf_generate_shots_per_query": rate[settings[5].name] / rate[settings[4].name],
        "without_shared_beginnings": rate[settings[2].name] / base,
        "without_image_cache": rate[settings[3].name] / base,
    }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))
    return 0


def check_answers(texts: dict[str, list[str]]) -> None:
    """All ways must answer the same; prompts must differ, or equality would mean little."""
    for kind in ("per task", "per query"):
        answers = [found for name, found in texts.items() if kind in name]
        if any(found != answers[0] for found in answers):
            raise RuntimeError(f"answers differ with shots {kind}")
        if len(set(answers[0])) < len(answers[0]) / 2:
            raise RuntimeError("most answers are equal: the comparison would be blind")


if __name__ == "__main__":
    sys.exit(main())
