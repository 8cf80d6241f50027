"""Fast generation = one prompt and one token at a time, for random models and ragged prompts."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mm1_pipeline.config.model import (
    ConnectorConfig,
    DecoderConfig,
    MM1Config,
    MoEConfig,
    VisionConfig,
)
from mm1_pipeline.config.shard import ImageTransform, TokenizerConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.evaluation.generation.answer_log import Answer
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

TRANSFORM = ImageTransform(size=16, encoding="png")
NUM_TOKENS = 4
MAX_NEW_TOKENS = 6
IMAGE = -1


def _image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {hashlib.sha256(data).hexdigest(): data for data in map(_image, range(6))}
KEYS = sorted(IMAGES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    config = TokenizerConfig(vocab_size=280, min_frequency=1)
    return train_tokenizer(config, ["a photo of a red square"], tmp_path_factory.mktemp("tok"))


def random_model(seed: int, tokenizer: Tokenizer, **decoder) -> MM1:
    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=32
        ),
        connector=ConnectorConfig(num_tokens=NUM_TOKENS, num_blocks=1),
        decoder=DecoderConfig(
            **{
                "vocab_size": tokenizer.vocab_size + seed % 3,
                "d_model": 32,
                "num_layers": 2,
                "num_heads": 4,
                "num_kv_heads": (1, 2, 4)[seed % 3],
                "d_ff": 48,
                "tie_embeddings": False,
                **decoder,
            }
        ),
    )
    model = build_model(config, tokenizer.image_id, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # answers then depend on more than the last token
    return model.eval()


@st.composite
def atom_lists(draw) -> list[list[int]]:
    """Ragged prompts as tokens and images (negative), many of which begin alike."""
    atom = st.one_of(st.integers(10, 40), st.integers(-len(KEYS), -1))
    beginnings = draw(st.lists(st.lists(atom, max_size=12), min_size=1, max_size=3))
    prompts = []
    for _ in range(draw(st.integers(1, 9))):
        chosen = draw(st.lists(st.sampled_from(beginnings), max_size=3))
        rest = draw(st.lists(atom, max_size=9))
        prompts.append([atom for part in chosen for atom in part] + rest)
    return prompts


def make_prompt(atoms: list[int], tokenizer: Tokenizer) -> Prompt:
    ids = [tokenizer.bos_id]
    for atom in atoms:
        ids += [tokenizer.image_id] * NUM_TOKENS if atom < 0 else [atom]
    images = tuple(KEYS[-atom - 1] for atom in atoms if atom < 0)
    name = hashlib.sha256(repr(atoms).encode()).hexdigest()
    return Prompt(name, (), name, name, np.array(ids, dtype=np.int32), images)


@torch.no_grad()
def alone(model: MM1, tokenizer: Tokenizer, prompt: Prompt) -> str:
    """No batch, no cache, nothing shared: the whole sequence again for every token."""
    squares = [resize_image(open_image(IMAGES[key]), TRANSFORM) for key in prompt.images]
    pixels = to_pixel_values(squares, TRANSFORM)
    never = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id}
    ids, answer = prompt.input_ids.tolist(), []
    for _ in range(MAX_NEW_TOKENS):
        read = torch.tensor([ids + answer])
        borders = torch.tensor([0, read.shape[1]], dtype=torch.int32)
        hidden = model(read, torch.arange(read.shape[1])[None], borders, pixels).hidden
        logits = model.logits(hidden)[0, -1].tolist()
        allowed = (token for token in range(tokenizer.vocab_size) if token not in never)
        token = max(allowed, key=logits.__getitem__)
        if token == tokenizer.eos_id:
            break
        answer.append(token)
    return tokenizer.decode(answer)


def check(model: MM1, tokenizer: Tokenizer, prompts: list[Prompt], batch_size: int) -> None:
    generator = Generator(model, tokenizer, ImageFeatures(model, IMAGES, TRANSFORM), batch_size)
    found = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, stop=())
    assert found == [Answer(alone(model, tokenizer, prompt)) for prompt in prompts]


@settings(max_examples=20, deadline=None)
@given(atom_lists(), st.integers(0, 2**16), st.integers(1, 5))
def test_dense_models(tokenizer, atoms, seed, batch_size):
    prompts = [make_prompt(each, tokenizer) for each in atoms]
    check(random_model(seed, tokenizer), tokenizer, prompts, batch_size)


@settings(max_examples=12, deadline=None)
@given(atom_lists(), st.integers(0, 2**16), st.integers(1, 5), st.integers(1, 2))
def test_mixtures_of_experts(tokenizer, atoms, seed, batch_size, every_n_layers):
    prompts = [make_prompt(each, tokenizer) for each in atoms]
    moe = MoEConfig(num_experts=4, every_n_layers=every_n_layers, renormalise=seed % 2 == 0)
    check(random_model(seed, tokenizer, moe=moe), tokenizer, prompts, batch_size)


def test_the_property_can_fail(tokenizer, monkeypatch):
    # A trunk that is copied one position short must show.
    model = random_model(0, tokenizer)
    atoms = [[*range(10, 30), -1, *range(30, 34), last] for last in range(10, 16)]
    prompts = [make_prompt(each, tokenizer) for each in atoms]
    check(model, tokenizer, prompts, 4)
    from mm1_pipeline.models.attention import KVCache

    copy_row = KVCache.copy_row
    monkeypatch.setattr(KVCache, "copy_row", lambda self, a, b, n: copy_row(self, a, b, n - 1))
    with pytest.raises(AssertionError):
        check(model, tokenizer, prompts, 4)
