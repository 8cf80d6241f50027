"""Retrieval on held-out pairs against plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import normalize

from mm1_pipeline.evaluation.held_out.vision import Pairs, PatchErrors, patch_errors, retrieval

TEXT_OF_IMAGE = [0, 1, 2, 3, 1, 4, 5, 1, 6, 7, 8, 9, 10, 4]


def random_pairs(agreement: float) -> Pairs:
    """Texts that equal others have their features; images are near their text's."""
    generator = torch.Generator().manual_seed(3)
    of_text = normalize(torch.randn(11, 6, generator=generator), dim=1)
    texts = of_text[TEXT_OF_IMAGE]
    noise = torch.randn(14, 6, generator=generator)
    return Pairs(
        normalize(agreement * texts + noise, dim=1), texts, torch.tensor(TEXT_OF_IMAGE) * 1000 - 7
    )


def plain_recall(scores: list[list[float]], right: list[set[int]], rank: int) -> float:
    found = 0
    for row, wanted in zip(scores, right, strict=True):
        best = sorted(range(len(row)), key=lambda place: -row[place])[:rank]
        found += bool(wanted & set(best))
    return found / len(scores)


def plain_chance(num_candidates: int, right: list[set[int]], rank: int) -> float:
    """Over all choices of so many candidates."""
    choices = list(itertools.combinations(range(num_candidates), rank))
    hits = [sum(bool(wanted & set(choice)) for choice in choices) for wanted in right]
    return sum(hits) / len(hits) / len(choices)


@pytest.mark.parametrize("agreement", [0.0, 0.5, 2.0])
def test_recall_and_chance_by_their_definition(agreement: float) -> None:
    pairs = random_pairs(agreement)
    of_text = [TEXT_OF_IMAGE.index(text) for text in range(11)]
    scores = pairs.images @ pairs.texts[of_text].T
    directions = {
        "image_to_text": (scores.tolist(), [{text} for text in TEXT_OF_IMAGE]),
        "text_to_image": (
            scores.T.tolist(),
            [{i for i, t in enumerate(TEXT_OF_IMAGE) if t == text} for text in range(11)],
        ),
    }
    found = retrieval(pairs)
    for name, (rows, right) in directions.items():
        assert (found[name]["n"], found[name]["candidates"]) == (len(rows), len(rows[0]))
        for rank in (1, 5, 10):
            assert found[name]["recall"][str(rank)] == pytest.approx(
                plain_recall(rows, right, rank), abs=1e-6
            )
            assert found[name]["chance"][str(rank)] == pytest.approx(
                plain_chance(len(rows[0]), right, rank), abs=1e-6
            )
    if agreement == 2.0:
        assert found["image_to_text"]["recall"]["1"] > 5 * found["image_to_text"]["chance"]["1"]


def test_who_tells_nothing_apart_finds_nothing() -> None:
    pairs = random_pairs(1.0)
    same = pairs._replace(images=torch.ones_like(pairs.images), texts=torch.ones_like(pairs.texts))
    for result in retrieval(same).values():
        assert set(result["recall"].values()) == {0.0}


def test_ranks_that_take_all_candidates_are_left_out() -> None:
    few = Pairs(*(field[:4] for field in random_pairs(2.0)))
    assert retrieval(few)["image_to_text"]["recall"].keys() == {"1"}


def test_patch_errors_are_means_over_images() -> None:
    errors = PatchErrors(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 0.5, 2.0]))
    assert patch_errors(errors) == {"n": 3, "loss": 3.0, "constant": 1.0}
