"""Parameters of `ingest` that judge texts, captions and repetitions.

A rule left at None takes the value of the record's kind (`TEXT_RULES`, `CAPTION_RULES`), unless
`defaults: false` switches those off for a source; evaluation sources and conversations know none
but those that are set.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Literal, TypeVar

from mm1_pipeline.config._base import (
    Count,
    Name,
    NgramWords,
    Number,
    Seed,
    Share,
    Weight,
    bounds,
    check_order,
    input_path,
    parameters,
)

T = TypeVar("T")


@parameters
class TextRules:
    """Which records are kept for the quality of their text.

    MM1 names "length and quality filters" without values; where the defaults come from stands
    at `TEXT_RULES`.
    """

    defaults: bool = True
    """Whether a rule left at None takes the value of the record's kind."""
    min_words: Number | None = None
    max_words: Number | None = None
    min_mean_word_length: Weight | None = None
    """Characters of the mean word."""
    max_mean_word_length: Weight | None = None
    max_symbols_per_word: Weight | None = None
    """`#` and ellipses, per word."""
    max_bullet_lines: Share | None = None
    """Share of lines that start with a bullet."""
    max_ellipsis_lines: Share | None = None
    """Share of lines that end with an ellipsis."""
    min_alphabetic_words: Share | None = None
    """Share of words with at least one letter."""
    min_stop_words: Number | None = None
    """Different ones of the eight commonest English words."""
    max_repeated_lines: Share | None = None
    """Share of lines that repeat an earlier line."""
    max_repeated_line_characters: Share | None = None
    """Share of characters in lines that repeat an earlier line."""
    max_repeated_paragraphs: Share | None = None
    max_repeated_paragraph_characters: Share | None = None
    max_top_ngram_characters: dict[NgramWords, Share] | None = None
    """By number of words: share of characters in the n-gram that occurs most often."""
    max_repeated_ngram_characters: dict[NgramWords, Share] | None = None
    """By number of words: share of characters in n-grams that repeat an earlier one."""
    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes of the languages to keep; empty keeps all."""
    language_confidence: Share = 0.8
    """A text goes only when the identifier is at least this sure that it is in another language,
    so that short texts, of which nobody can be sure, stay. Our choice."""
    profanity_list: str | None = input_path(default=None)
    """A text file with one word or phrase a line; null switches the rule off."""
    max_profanities: Number = 0
    """Occurrences of listed words that are still allowed."""

    def __post_init__(self) -> None:
        check_order(
            self, ("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")
        )
        for code in self.languages or ():
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise ValueError(
                    f"languages: found {code!r}, expected codes of ISO 639-1, such as 'en'."
                )


TEXT_RULES = TextRules(
    min_words=50,
    max_words=100_000,
    min_mean_word_length=3.0,
    max_mean_word_length=10.0,
    max_symbols_per_word=0.1,
    max_bullet_lines=0.9,
    max_ellipsis_lines=0.3,
    min_alphabetic_words=0.8,
    min_stop_words=2,
    max_repeated_lines=0.3,
    max_repeated_line_characters=0.2,
    max_repeated_paragraphs=0.3,
    max_repeated_paragraph_characters=0.2,
    max_top_ngram_characters={2: 0.20, 3: 0.18, 4: 0.16},
    max_repeated_ngram_characters={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
    languages=("en",),
)
"""What interleaved documents and texts are held to where a rule is None.

Source: the quality and repetition rules of Gopher's MassiveText (Rae et al. 2021, tables A1 and
"repetition removal"), which MM1 does not name; English only is our choice.
"""

SHORT_TEXT_RULES = TextRules(languages=("en",))
"""What captions are held to: rules made for pages say nothing about a line."""


@parameters
class CaptionRules:
    """Which captions are kept; alt-text is often no description.

    Every pattern is a regular expression without regard to case, `""` switches it off.
    """

    defaults: bool = True
    """Whether a rule left at None takes the value of `CAPTION_RULES`."""
    min_words: Number | None = None
    min_characters: Number | None = None
    max_characters: Number | None = None
    max_repeated_words: Share | None = None
    """Share of words that repeat an earlier one, in captions of at least 6 words."""
    file_name: str | None = None
    """A caption that matches as a whole is the name of a file."""
    camera_default: str | None = None
    """A caption that matches as a whole is what a camera or phone called the picture."""
    url: str | None = None
    """A caption that contains it carries an address."""
    boilerplate: tuple[str, ...] | None = None
    """Phrases; a caption that holds nothing else but numbers describes nothing."""

    def __post_init__(self) -> None:
        check_order(self, ("min_characters", "max_characters"))
        for name in ("file_name", "camera_default", "url"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise ValueError(
                    f"{name}: found {pattern!r}, expected a regular expression ({error})."
                ) from None


CAPTION_RULES = CaptionRules(
    min_words=2,
    min_characters=5,
    max_characters=1_000,
    max_repeated_words=0.6,
    file_name=r"[\w .()+~\[\]-]*[\w)\]]\.(jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic|pdf)",
    camera_default=(
        r"((img|dsc[fn]?|dscn|dcim|pict?|pxl|mvi|gopr|cimg|sam|p|wp|screen ?shot|screenshot|"
        r"photo|image|picture|untitled|scan|whatsapp image|received|foto|bild)"
        r"[\s_.-]*\d[\d\s_.:-]*(at|am|pm|copy|\(\d+\)|[\s\d_.:-])*)"
        r"|untitled[\s_-]*(design|\d+)?|[\d\s_.:-]{4,}|[0-9a-f]{12,}([-_][0-9a-f]+)*"
    ),
    url=r"https?://|\bwww\.\w|\b[\w-]+\.(com|net|org|io|co\.uk|de|ru|info|biz)(\b|/)",
    boilerplate=(
        "image of", "images of", "picture of", "photo of", "photograph of", "photos of",
        "stock photo", "stock image", "stock vector", "stock illustration", "image may contain",
        "click to enlarge", "click here", "click for", "larger view", "view larger", "enlarge",
        "thumbnail", "image", "images", "picture", "photo", "photograph", "photos", "pic",
        "graphic", "illustration", "icon", "logo", "banner", "avatar", "placeholder", "alt text",
        "no description available", "no caption", "no alt", "missing", "none", "null",
        "undefined", "untitled", "default", "profile", "header", "featured", "main", "gallery",
        "slide", "cover", "product", "a", "an", "the", "for", "no",
    ),
)  # fmt: skip
"""What captions are held to where a rule is None.

Source: our choice, after the rules of CC12M, ALIGN and DataComp; MM1 takes its captions from
sets that were filtered before.
"""


@parameters
class ClipScoreConfig:
    """Which captions are kept for how well they fit their image.

    The score is the cosine of image and caption in the common space of a contrastive model that
    the stage `vision_pretrain` has trained; the filter of LAION and DataComp. MM1 takes its
    captions from sets that were filtered before: off by default.
    """

    checkpoint: str = input_path()
    """Folder that the stage `vision_pretrain` wrote with `source: train`, `objective: clip`. A
    copy outside of the data root stays, whatever a later run trains or removes."""
    tokenizer: str = input_path()
    """The tokenizer.json that the checkpoint was trained with, or the folder of it."""
    threshold: Annotated[float, bounds(ge=-1, le=1)]
    """Cosine below which a record is dropped. It depends on the model, so there is no default."""
    max_tokens: Count = 256
    """Tokens of a caption that are read; more are cut off, as training on them does. Our
    choice."""


@parameters
class MinHashConfig:
    """Near-duplicates of texts, by locality-sensitive hashing.

    Two texts whose sets of word n-grams have the similarity s (Jaccard) share one of the bands,
    and the later one goes, with the probability 1 - (1 - s^rows)^bands: with these defaults 5 % at
    s = 0.5, 56 % at 0.7, 92 % at 0.8, above 99.9 % at 0.9.

    Source: MM1, Appendix (LSH de-duplication, unconfirmed); the values are FineWeb's.
    """

    num_bands: Annotated[int, bounds(ge=1, le=10_000)] = 14
    rows_per_band: Annotated[int, bounds(ge=1, le=10_000)] = 8
    ngram_words: NgramWords = 5
    seed: Seed = 1


@parameters
class DeduplicationConfig:
    """Which repetitions are dropped from training sources; the earliest record stays.

    Source: MM1, Appendix (duplicates are looked for over all documents, unconfirmed).
    """

    within: Literal["source", "kind"] = "kind"
    """Whether a record goes only for an earlier one of its own source, or also for one of an
    earlier source of the same kind. Sources come in the order of the file, so one whose records
    are to stay goes first. An earlier source counts for the methods that it is itself searched
    by, with the same values. How often a caption occurs is counted in each source."""
    exact: bool = True
    """Drops a record whose text and image contents repeat an earlier one's."""
    near: MinHashConfig | None = MinHashConfig()
    """Drops documents and texts that are near-duplicates of an earlier one; null keeps them."""
    perceptual: bool = True
    """Drops a caption pair that shows an earlier pair's picture: re-encoded, resized, whatever
    its caption says."""
    max_picture_difference: Weight = 0.1
    """What still counts as the same picture, as in `decontamination.max_difference`."""
    max_caption_occurrences: Count | None = 10
    """Drops all pairs of a caption that occurs more often. Source: ALIGN; MM1 does not say."""


@parameters
class DecontaminationConfig:
    """What of the evaluation data must not be learnt from.

    Every source with `split: evaluation` counts, and every benchmark whose files `evaluate` names:
    images, questions, options, references. Examples that are only shown in prompts (`shot_files`,
    `shot_subset`) are kept out of pre-training; fine-tuning learns from the training splits that
    they are drawn from. MM1 does not describe decontamination: our choice.
    """

    benchmarks: dict[Name, bool] = dataclasses.field(default_factory=dict)
    """Tasks of `evaluate` whose files are not compared with (`vqav2: false`); those that are not
    named are. Reading them takes some 20 ms an image, once."""
    required: bool = True
    """Refuses to go on where there is nothing to compare with, or where a benchmark gives no item,
    image or text. False goes on; the report then says 0."""
    images: bool = True
    """Rejects a training record that shows an evaluation image: resized, compressed, or with up
    to `max_crop` cut off."""
    texts: bool = True
    """Rejects a training record that holds an n-gram of an evaluation text."""
    max_crop: Annotated[float, bounds(ge=0, le=0.2)] = 0.05
    """Part of the width or height that may be missing at each edge."""
    max_difference: Weight = 0.25
    """Root mean square difference of two 16 x 16 luminance pictures over the contrast of the
    evaluation image, up to which they are the same picture; images of few pixels get more.
    Measured on the sample's photographs and drawings: copies below 0.24, others above 0.4."""
    ngram_words: NgramWords = 13
    """Words of an n-gram (GPT-3's value)."""
    min_words: NgramWords = 8
    """An evaluation text shorter than `ngram_words` counts as one n-gram, unless it has fewer
    words than this: that much is common language. The report says how many texts that are."""

    @property
    def is_wanted(self) -> bool:
        """Whether anything is compared at all."""
        return self.images or self.texts

    def compares_with(self, task: str) -> bool:
        """Whether the files of a task are kept out of training."""
        return self.is_wanted and self.benchmarks.get(task, True)

    def __post_init__(self) -> None:
        if self.min_words > self.ngram_words:
            raise ValueError(
                f"min_words: found {self.min_words}, expected 1 to ngram_words "
                f"({self.ngram_words})."
            )


def settle(rules: T, defaults: T) -> T:
    """The rules with every None replaced by the default of the same name.

    Args:
        rules: as configured.
        defaults: of the same class; a None in it means that the rule does not apply.
    """
    chosen = {
        field.name: value
        for field in dataclasses.fields(rules)  # pyright: ignore[reportArgumentType]
        if (value := getattr(rules, field.name)) is not None
    }
    return dataclasses.replace(defaults, **chosen)  # pyright: ignore[reportArgumentType]
