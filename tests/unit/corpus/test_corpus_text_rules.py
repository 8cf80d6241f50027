"""Rules for texts and captions: each with a text that breaks it and one that does not."""

from __future__ import annotations

import random

import pytest
from corpus_builders import make_config, picture, run, sample, write_bytes, write_tar

from mm1_pipeline.config.corpus_rules import (
    CAPTION_RULES,
    SHORT_TEXT_RULES,
    TEXT_RULES,
    TextRules,
)
from mm1_pipeline.config.ingest import SourceConfig
from mm1_pipeline.corpus.caption_rules import check_caption
from mm1_pipeline.corpus.text_rules import check_text, identify_language
from mm1_pipeline.ground.rejects import Rejected
from typed_values import entry

PROSE = (
    "The river that runs past the old mill has risen with the rain of the last days. People from "
    "the village came to see whether the bridge would hold, and most of them stayed until it was "
    "dark. Nobody had expected the water to reach the road, but by ten it stood in the yard of "
    "the inn, and the horses had to be taken up the hill. In the morning it was gone again."
)


def broken(text, rules=TEXT_RULES):
    try:
        check_text(text, rules)
    except Rejected as error:
        return error.reason.value
    return None


def words(count, seed=0, letters="abcdefghij"):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices(letters, k=5)) for _ in range(count))


def test_prose_is_kept():
    assert broken(PROSE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too short a text.", "too_few_words"),
        ("of to a in be " * 12, "word_length"),
        (" ".join(["internationalisation"] * 60), "word_length"),
        (PROSE.replace(" the ", " # the ") + " # # #", "too_many_symbols"),
        (PROSE + " 12 345 67 890 12 345 678 90 123 456 789 12 34 567 890 12 34 56 78 901",
         "too_few_letters"),
        (words(60), "too_few_stop_words"),
        ("\n".join(f"- {line}" for line in PROSE.split(". ")), "too_many_bullets"),
        (PROSE.replace(". ", "...\n"), "too_many_ellipses"),
        (PROSE + "\n" + "The same line again and again.\n" * 5, "repeated_lines"),
        ("\n\n".join([PROSE, PROSE]), "repeated_lines"),
        (f"{PROSE} {' '.join(['come to us'] * 12)}", "repeated_ngrams"),
        (f"{PROSE} {PROSE[:200]}", "repeated_ngrams"),
        (
            "Der Fluss, der an der alten Mühle vorbeifließt, ist mit dem Regen der letzten Tage "
            "gestiegen, und die Leute aus dem Dorf kamen, um zu sehen, ob die Brücke hält.",
            "language",
        ),
    ],
)  # fmt: skip
def test_each_rule_rejects_what_breaks_it(text, reason):
    rules = SHORT_TEXT_RULES if reason == "language" else TEXT_RULES
    assert broken(text, rules) == reason


def test_rules_that_are_none_do_not_apply():
    for text in ("", "a", "# # #", words(60), "1 2 3 " * 50):
        assert broken(text, TextRules()) is None


def test_nobody_is_sure_of_the_language_of_a_few_words():
    for text in ("A toucan.", "Olifant", "balloons", "Saint Kitts and Nevis"):
        assert broken(text, SHORT_TEXT_RULES) is None
    assert identify_language(PROSE)[0] == "en"
    assert broken("これは日本語の文章です。", SHORT_TEXT_RULES) == "language"
    assert broken("これは日本語の文章です。", TextRules(languages=("ja",))) is None


def slow_repeated_share(text, size):
    """The plain way to say it: characters of words inside an n-gram that came before."""
    tokens = text.split()
    seen, covered = set(), set()
    for start in range(len(tokens) - size + 1):
        gram = tuple(tokens[start : start + size])
        if gram in seen:
            covered.update(range(start, start + size))
        seen.add(gram)
    return sum(len(tokens[i]) for i in covered) / sum(map(len, tokens))


def slow_top_share(text, size):
    tokens = text.split()
    counts: dict[tuple, int] = {}
    for start in range(len(tokens) - size + 1):
        gram = tuple(tokens[start : start + size])
        counts[gram] = counts.get(gram, 0) + 1
    best = max((n * sum(map(len, g)) for g, n in counts.items() if n > 1), default=0)
    return best / sum(map(len, tokens))


@pytest.mark.parametrize("seed", range(12))
def test_repetition_against_a_plain_count(seed):
    rng = random.Random(seed)
    text = " ".join(
        rng.choice(["aa", "bbb", "c", "dddd", "ee", "f"]) for _ in range(rng.randint(3, 80))
    )
    for size in range(1, 11):
        for slow, field in (
            (slow_repeated_share, "max_repeated_ngram_characters"),
            (slow_top_share, "max_top_ngram_characters"),
        ):
            share = slow(text, size) if len(text.split()) >= size else 0.0
            for shift, expected in ((1e-6, None), (-1e-6, "repeated_ngrams")):
                if share + shift < 0:
                    continue
                rules = entry(TextRules, **{field: {size: share + shift}})
                assert broken(text, rules) == expected, (size, field, shift)


def test_listed_words_and_phrases_are_counted_and_not_repeated(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("# a comment\nDamn\nsilly goose\n", encoding="utf-8")
    rules = TextRules(profanity_list=str(path))
    assert broken("You silly, GOOSE!", rules) == "profanity"
    assert broken("damn", rules) == "profanity"
    assert broken("damnation of geese", rules) is None
    allowed = TextRules(profanity_list=str(path), max_profanities=2)
    assert broken("damn damn", allowed) is None
    with pytest.raises(Rejected) as caught:
        check_text("damn damn silly goose", allowed)
    assert "goose" not in caught.value.detail


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("holiday_2019-final (2).jpeg", "caption_file_name"),
        ("IMG_20190102_1234", "caption_camera_default"),
        ("DSC01234", "caption_camera_default"),
        ("Screenshot 2021-03-04 at 10.11.12", "caption_camera_default"),
        ("WhatsApp Image 2020-01-01 at 10", "caption_camera_default"),
        ("3f2a9c77b1de04ab", "caption_camera_default"),
        ("buy it at www.shop.example", "caption_url"),
        ("see https://x.example/a", "caption_url"),
        ("Shop.com coupon codes", "caption_url"),
        ("image of", "caption_boilerplate"),
        ("Stock Photo 12", "caption_boilerplate"),
        ("photo of the", "caption_boilerplate"),
        ("cow", "too_few_characters"),
        ("compass", "too_few_words"),
        ("x" * 1_001, "too_many_characters"),
        ("buy buy buy buy buy buy now", "repeated_ngrams"),
        ("a dog runs over the beach", None),
        ("Image of a dog", None),
        ("Portrait of a lady, 1912", None),
        ("Chapter 12 of the manual", None),
    ],
)
def test_captions(caption, reason):
    try:
        check_caption(caption, CAPTION_RULES)
        found = None
    except Rejected as error:
        found = error.reason.value
    assert found == reason


def test_rules_reach_the_report_and_defaults_can_be_switched_off(tmp_path):
    captions = ["a red bird on a branch", "IMG_1234", "image of", "bird"]
    members = [m for n, text in enumerate(captions) for m in sample(f"{n}", picture(n), text)]
    write_tar(tmp_path / "raw" / "0.tar", members)
    path, web = tmp_path / "raw", {"captions": {}, "text": {}}
    result = run(tmp_path / "a", "caption", "img2dataset", path, **web)
    assert result.rejected == {
        "caption_boilerplate": 1,
        "caption_camera_default": 1,
        "too_few_characters": 1,
    }
    off = run(tmp_path / "b", "caption", "img2dataset", path, captions={"defaults": False})
    assert off.report["kept"] == 4
    one = {"defaults": False, "min_words": 2}
    chosen = run(tmp_path / "c", "caption", "img2dataset", path, captions=one)
    assert chosen.rejected == {"too_few_words": 2}


def test_a_list_is_read_and_a_missing_one_named_before_anything_is_read(tmp_path):
    write_bytes(tmp_path / "raw" / "t.jsonl", b'{"text": "good"}\n{"text": "bad"}')
    (tmp_path / "list.txt").write_text("bad")
    arguments = (tmp_path / "out", "text", "jsonl", tmp_path / "raw")
    rules = {"defaults": False, "profanity_list": str(tmp_path / "list.txt")}
    assert run(*arguments, text=rules, text_column="text").rejected == {"profanity": 1}
    rules["profanity_list"] = str(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match=r"source\.text\.profanity_list: found .*missing"):
        run(*arguments, text=rules, text_column="text")


def test_wrong_parameters_are_named():
    source = {"kind": "text", "format": "jsonl", "path": "x"}
    for rules, message in (
        ({"text": {"languages": ["English"]}}, "ISO 639-1"),
        ({"captions": {"url": "("}}, "regular expression"),
        ({"deduplication": {"near": {"num_bands": 0}}}, "num_bands"),
    ):
        with pytest.raises(ValueError, match=message):
            make_config({"s": {**source, **rules}})
    assert isinstance(make_config({"s": source}).sources["s"], SourceConfig)
