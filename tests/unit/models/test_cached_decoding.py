from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mm1_pipeline.config.model import MM1Config
from mm1_pipeline.models.attention import KVCache
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.models.mm1 import MM1

IMAGE = 3
NUM_NEW = 12


@pytest.fixture
def model(tiny_config: MM1Config) -> MM1:
    model = build_model(tiny_config, IMAGE, seed=3)
    with torch.no_grad():  # larger maps than at the start, so that answers vary
        for name, parameter in model.decoder.named_parameters():
            if parameter.ndim == 2 and "embedding" not in name:
                parameter.mul_(3)
    return model


@pytest.fixture
def prompts(make_document: Callable[..., list[int]]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(4, 1), (13, 0), (1, 3), (7, 1)]
    return [make_document(words, images, generator)[:-1] for words, images in sizes]


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(count, 3, 16, 16, generator=generator) for count in (1, 0, 3, 1)]


def best_token(logits: Tensor) -> Tensor:
    logits = logits.clone()
    logits[..., IMAGE] = -torch.inf  # a placeholder without an image cannot be embedded
    return logits.argmax(-1)


def uncached(model: MM1, prompt: list[int], images: Tensor) -> list[int]:
    tokens = list(prompt)
    for _ in range(NUM_NEW):
        length = len(tokens)
        hidden = model(
            torch.tensor([tokens]),
            torch.arange(length)[None],
            torch.tensor([0, length]),
            images,
        ).hidden
        tokens.append(int(best_token(model.logits(hidden[0, -1]))))
    return tokens[len(prompt) :]


def cached(model: MM1, prompts: list[list[int]], images: Tensor) -> list[list[int]]:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    input_ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    cache = model.make_cache(len(prompts), longest + NUM_NEW)
    positions = torch.arange(longest).expand(len(prompts), -1)
    hidden = model.forward_cached(model.embed(input_ids, images), positions, cache)
    last = hidden[torch.arange(len(prompts)), lengths - 1]
    new = [best_token(model.logits(last))]
    for step in range(NUM_NEW - 1):
        embeddings = model.embed(new[-1][:, None], images[:0])
        hidden = model.forward_cached(embeddings, (lengths + step)[:, None], cache)
        new.append(best_token(model.logits(hidden[:, 0])))
    return torch.stack(new, 1).tolist()


@torch.no_grad()
def test_cached_greedy_decoding_equals_uncached(
    model: MM1, prompts: list[list[int]], images: list[Tensor]
) -> None:
    found = cached(model, prompts, torch.cat(images))
    expected = [uncached(model, *pair) for pair in zip(prompts, images, strict=True)]
    assert found == expected
    assert len({len(prompt) for prompt in prompts}) == 4
    assert len({token for tokens in expected for token in tokens}) > 8


@torch.no_grad()
def test_rows_do_not_depend_on_their_neighbours(
    model: MM1, prompts: list[list[int]], images: list[Tensor]
) -> None:
    together = cached(model, prompts, torch.cat(images))
    alone = [cached(model, [prompt], own)[0] for prompt, own in zip(prompts, images, strict=True)]
    assert together == alone


@torch.no_grad()
def test_a_prompt_may_come_in_pieces(model: MM1, prompts: list[list[int]]) -> None:
    input_ids = torch.tensor([prompts[1]])
    positions = torch.arange(input_ids.shape[1])[None]
    embeddings = model.embed(input_ids, torch.zeros(0, 3, 16, 16))
    whole = model.forward_cached(embeddings, positions, model.make_cache(1, 20))
    cache = model.make_cache(1, 20)
    pieces = [
        model.forward_cached(*piece, cache)
        for piece in zip(embeddings.split(5, 1), positions.split(5, 1), strict=True)
    ]
    # Equal bits on the machine it was written on, but kernels may choose by size.
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)


def test_a_position_without_a_slot_is_refused(model: MM1) -> None:
    cache = model.make_cache(1, 4)
    with pytest.raises(ValueError, match="Found position 4, but the cache has 4 slots"):
        model.forward_cached(torch.zeros(1, 5, 32), torch.arange(5)[None], cache)


def test_more_rows_than_the_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="Found 3 rows, but the cache was made for 2"):
        KVCache(1, 2, 8, 2, 4).attend_at(torch.zeros(3, 1, dtype=torch.int64))
