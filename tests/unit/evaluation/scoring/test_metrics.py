"""CIDEr against pycocoevalcap, VQA accuracy against the official formula by hand."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from mm1_pipeline.config.evaluation import CaptionWords
from mm1_pipeline.evaluation.scoring.caption_words import (
    caption_tokens,
    caption_words,
    tokenizer_name,
)
from mm1_pipeline.evaluation.scoring.metrics import cider_scores, vqa_accuracy

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "cat",
    "dog",
    "boat",
    "sits",
    "runs",
    "on",
    "under",
    "near",
    "water",
]

CAPTIONS = [
    "A man's dog doesn't run.",
    "It's a well-known (red) [thing] -- ok... yes",
    "UB2006 “Penguin II” deep sea research vessel.",
    "He said \"hello\" and 'bye'",
    "3.5 cm, 1,000 men; 50% & $5 #1 and/or",
    "You cannot see the U.S. flag, Mr. Smith, e.g. this etc. end.",
    "a cat!? yes:no 10:30 1/2 the 1990s '90s",
    "Venus—the second planet — and the most … inhospitable!",
    "o'clock i'm we've they'll you'd can't won't",
    "  lots   of\tspace ",
    "T-shirt 20-30 -5 a - b -- c",
    "‘a’ it’s don’t",
    "the end.)",
    "",
]


def random_captions(seed: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))

    captions = {f"image {index}": caption() for index in range(40)}
    references = {key: [caption() for _ in range(rng.randint(1, 5))] for key in captions}
    return captions, references


@pytest.mark.parametrize("seed", range(5))
def test_cider_is_pycocoevalcaps(seed):
    captions, references = random_captions(seed)
    mean, scores = Cider().compute_score(
        references, {key: [text] for key, text in captions.items()}
    )
    ours = cider_scores(captions, references)
    # The words are plain, so both see the same ones: equal to the last bit.
    assert np.array_equal(ours, scores)
    assert ours.mean() == mean
    assert ours.max() > 0


def test_cider_ignores_case_and_punctuation():
    references = {"1": ["A red boat on the water."], "2": ["Two small dogs."], "3": ["A tree."]}
    plain = {"1": "a red boat on the water", "2": "two small dogs", "3": "a dog"}
    marked = {"1": "A red boat, on the WATER!", "2": "Two: small dogs.", "3": "a dog"}
    assert np.array_equal(cider_scores(plain, references), cider_scores(marked, references))
    assert cider_scores(plain, references)[0] == pytest.approx(10.0)


def test_an_empty_caption_scores_nothing():
    references = {"1": ["a red boat"], "2": ["two dogs"]}
    assert cider_scores({"1": "", "2": "two dogs"}, references)[0] == 0


def test_cider_needs_one_caption_and_a_reference_for_every_item():
    with pytest.raises(ValueError, match="exactly one caption for every item"):
        cider_scores({"1": "a"}, {"1": ["a"], "2": ["b"]})
    with pytest.raises(ValueError, match=r"without a reference caption: \['2'\]"):
        cider_scores({"1": "a", "2": "b"}, {"1": ["a"], "2": []})


def random_coco_captions(count: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions of frequent and rare words, with clitics, marks, hyphens and repeated n-grams."""
    rng = random.Random(1)
    words = [*WORDS, "man's", "doesn't", "well-known", "3.5", "(left)", "it's", "U.S.", '"stop"']
    words += [f"rare{number}" for number in range(300)]
    weights = [30] * len(WORDS) + [3] * 8 + [1] * 300

    def caption() -> str:
        chosen = rng.choices(words, weights, k=rng.randint(1, 16))
        return " ".join(chosen).capitalize() + rng.choice([".", "", "!", " ."])

    references = {str(n): [caption() for _ in range(5)] for n in range(count)}

    def near(texts: list[str]) -> str:
        found = rng.choice(texts).split()
        del found[rng.randrange(len(found))]
        return " ".join([*found, *rng.choices(words, weights, k=2)])

    captions = {key: near(texts) if rng.random() < 0.8 else "" for key, texts in references.items()}
    return captions, references


def words_of_stanford(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {key: [{"caption": text} for text in group] for key, group in texts.items()}
    return PTBTokenizer().tokenize(rows)


def words_of_ours(texts: dict[str, list[str]]) -> dict[str, list[str]]:
    return {key: [" ".join(caption_tokens(text)) for text in group] for key, group in texts.items()}


@pytest.mark.parametrize(
    ("words", "tokenize"),
    [
        (CaptionWords.REGEX, words_of_ours),
        pytest.param(
            CaptionWords.STANFORD,
            words_of_stanford,
            marks=pytest.mark.skipif(shutil.which("java") is None, reason="needs Java"),
        ),
    ],
)
def test_cider_is_pycocoevalcaps_on_1000_random_captions(words, tokenize):
    captions, references = random_coco_captions(1000)
    single = {key: [text] for key, text in captions.items()}
    mean, scores = Cider().compute_score(tokenize(references), tokenize(single))
    ours = cider_scores(captions, references, words)
    # Worst difference measured: 0.0, for both tokenizers.
    assert np.abs(ours - scores).max() < 1e-6
    assert abs(ours.mean() - mean) < 1e-6
    assert 0.5 < mean < 9


def test_stanfords_tokenizer_is_refused_or_replaced_without_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert tokenizer_name(CaptionWords.AUTO) == tokenizer_name(CaptionWords.REGEX) == "regex-ptb-1"
    with pytest.raises(ValueError, match="found `stanford`, but there is no `java`"):
        caption_words(["a cat"], CaptionWords.STANFORD)


@pytest.mark.skipif(shutil.which("java") is None, reason="Stanford's tokenizer needs Java")
def test_caption_words_are_those_of_stanfords_tokenizer():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    expected = PTBTokenizer().tokenize(
        {index: [{"caption": caption}] for index, caption in enumerate(CAPTIONS)}
    )
    found = {index: [" ".join(caption_tokens(text))] for index, text in enumerate(CAPTIONS)}
    assert found == {index: expected.get(index, [""]) for index in found}


@pytest.mark.parametrize(
    ("answer", "human", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("no", ["yes"] * 10, 0.0),
        # Leave one out: the one person who agrees is left out once, else 1/3.
        ("cat", ["cat"] + ["dog"] * 9, 0.3),
        # 2 agree: 8 times 2/3, twice 1/3.
        ("cat", ["cat"] * 2 + ["dog"] * 8, 0.6),
        # 3 agree: 7 times 1, three times 2/3.
        ("cat", ["cat"] * 3 + ["dog"] * 7, 0.9),
        ("cat", ["cat"] * 4 + ["dog"] * 6, 1.0),
        # Both sides are normalised where people differ, as they stand where all agree.
        ("Two.", ["2"] * 5 + ["two"] * 5, 1.0),
        ("the t-shirt", ["T shirt"] * 9 + ["shirt"], 1.0),
        ("the t-shirt", ["T shirt"] * 10, 0.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0),
        # An empty answer agrees with nobody, unless people gave none.
        ("", ["yes"] * 10, 0.0),
    ],
)
def test_vqa_accuracy(answer, human, expected):
    assert vqa_accuracy(answer, human) == pytest.approx(expected, abs=1e-12)


def test_vqa_accuracy_does_not_depend_on_the_order_of_people():
    human = ["cat"] * 3 + ["dog"] * 5 + ["a bird"] * 2
    scores = {vqa_accuracy("bird", random.Random(seed).sample(human, 10)) for seed in range(20)}
    assert len(scores) == 1
    assert scores.pop() == pytest.approx(0.6)
