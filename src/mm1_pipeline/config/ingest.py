"""Parameters of `ingest`: raw sources to clean records."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal

from mm1_pipeline.config import conversation_prompts as prompts
from mm1_pipeline.config._base import (
    NULL_REMOVES,
    Count,
    Name,
    Number,
    Share,
    Workers,
    bounds,
    check_order,
    input_path,
    only,
    operational,
    parameters,
    with_fields,
)
from mm1_pipeline.config.corpus_rules import (
    CAPTION_RULES,
    SHORT_TEXT_RULES,
    TEXT_RULES,
    CaptionRules,
    ClipScoreConfig,
    DecontaminationConfig,
    DeduplicationConfig,
    TextRules,
    settle,
)
from mm1_pipeline.config.source_files import read_by_source, seen_as_image
from mm1_pipeline.config.source_formats import RecordKind, SourceFormat


class SourceSplit(StrEnum):
    """What a source is for; evaluation data never enters a training stream."""

    TRAIN = "train"
    EVALUATION = "evaluation"


_DECODER_MAX_PIXELS = 178_956_970
"""Pixels above which Pillow raises DecompressionBombError: twice its MAX_IMAGE_PIXELS."""


@parameters
class ImageRules:
    """Which images are kept.

    A rule left at None takes the value of the record's kind. Interleaved documents come from
    web pages, which are full of boilerplate, and get MM1's values (`WEB_IMAGE_RULES`). Images of
    captions and conversations were chosen by somebody: only the rules set here apply to them,
    and a refused image takes its record along. Whatever the kind, an image that does not
    decode or exceeds `max_pixels` or `max_bytes` is refused; evaluation sources know no other
    rule.
    """

    min_side: Number | None = None
    """Shorter side in pixels below which an image is dropped (icons, spacers)."""
    max_side: Count | None = None
    """Longer side in pixels above which an image is dropped."""
    max_aspect_ratio: Annotated[float, bounds(ge=1, le=1e6)] | None = None
    """Longer side over shorter side above which an image is dropped."""
    max_pixels: Annotated[int, bounds(ge=1, le=_DECODER_MAX_PIXELS)] = 50_000_000
    """Decoded size above which an image is refused unread: a decompression bomb. At 100 million
    the dearest formats took 1.7 GB and, on a busy core, 16 s. Our choice."""
    max_bytes: Count = 50_000_000
    """Encoded size above which an image is refused unread. Our choice."""
    url_stop_words: tuple[str, ...] | None = None
    """An image whose URL contains one of these is boilerplate, not content."""
    max_occurrences: Count | None = None
    """An image whose URL or content occurs more often in the source is boilerplate."""

    def __post_init__(self) -> None:
        check_order(self, ("min_side", "max_side"))


WEB_IMAGE_RULES = ImageRules(
    min_side=100,
    max_side=10_000,
    max_aspect_ratio=2.0,
    url_stop_words=("logo", "button", "icon", "plugin", "widget"),
    max_occurrences=10,
)
"""What interleaved documents are held to where a rule is None.

Source: MM1, Appendix on interleaved documents (unconfirmed values).
"""


@parameters
class DocumentRules:
    """Which records are kept for their text, and which documents for their number of images.

    Source: MM1, Appendix on interleaved documents (unconfirmed values). Evaluation sources are
    not held to these.
    """

    min_images: Number = 1
    """Images below which an interleaved document is dropped."""
    max_images: Number = 30
    """Images above which an interleaved document is dropped."""
    min_characters: Number = 1
    """Characters of text below which a record of any kind is dropped. Our choice."""
    max_characters: Number = 1_000_000
    """Characters of text above which a record of any kind is dropped. Our choice."""

    def __post_init__(self) -> None:
        check_order(self, ("min_images", "max_images"), ("min_characters", "max_characters"))


@parameters
class SourceConfig:
    """One raw source."""

    kind: RecordKind
    format: SourceFormat
    path: str = input_path(reads=read_by_source)
    """Folder or file; any URL that fsspec opens."""
    files: str = "*"
    """Pattern of the file names to read inside a folder (`*val2014*`); images are not meant."""
    split: SourceSplit = SourceSplit.TRAIN
    text_column: str = "caption"
    """Column or JSON field that holds the text (img2dataset, image_parquet, jsonl)."""
    image_column: str = "image"
    """Column that holds the encoded image (image_parquet)."""
    image_path: str | None = input_path(default=None, reads=seen_as_image)
    """Folder that the image names of coco_captions, vqa_v2 and llava refer to; None takes the
    folder of the annotations, and `images` inside it."""
    follow_image_links: bool = False
    """Whether links in the folder of images may lead out of it. Names of images come with the
    data, which could reach any file of the machine through them."""
    prompt: str | None = None
    """What the human says in conversations that are made from questions or captions, with
    `{question}` and `{choices}`; None takes the format's."""
    ids: str = "*"
    """Pattern of the entries' `id` (llava); those of other ids are not this source's."""
    split_exchanges: bool = False
    """Whether each exchange becomes a conversation of its own (llava), for sets whose later
    questions can be answered from earlier answers instead of from the image."""
    images: ImageRules = ImageRules()
    documents: DocumentRules = DocumentRules()
    text: TextRules = TextRules()
    captions: CaptionRules = CaptionRules()
    """For captions only."""
    clip_score: ClipScoreConfig | None = None
    """For captions only; null keeps them whatever a model makes of them."""
    deduplication: DeduplicationConfig | None = None
    """None takes `ingest.deduplication`."""
    decontaminate_texts: bool = True
    """False where text is made from the templates of the evaluation questions, so that every
    record would go; images are compared all the same."""
    share: tuple[Share, Share] | None = None
    """Which records are this source's: those whose key's hash lies between the two, of 0 to 1; the
    others are passed over. Two sources of one path with [0, 0.1] and [0.1, 1] have no record in
    common and all together, so that one can be held out for evaluation."""
    licence: str | None = operational(default=None)
    """Origin and terms of the data, for the cards of models that learn from it."""
    max_records: Count | None = None
    """Reads at most this many records; None reads all."""

    def __post_init__(self) -> None:
        expected = [self.format.layout.kind]
        if self.format.layout.is_pair:
            expected = [RecordKind.CAPTION, RecordKind.CONVERSATION]
        if self.kind not in expected:
            raise ValueError(
                f"kind: found {self.kind.value}, expected {' or '.join(expected)}, the kind of "
                f"record that format {self.format.value} holds."
            )
        self._check_prompt()
        if self.share is not None and self.share[0] >= self.share[1]:
            raise ValueError(
                f"share: found {list(self.share)}, expected a smaller number before a larger one, "
                "such as [0.1, 1]."
            )
        if self.split_exchanges and not self.format.layout.has_exchanges:
            several = [item.value for item in SourceFormat if item.layout.has_exchanges]
            raise ValueError(
                f"split_exchanges: found true for format {self.format.value}, expected false: only "
                f"format {', '.join(several)} has conversations of several exchanges."
            )
        is_pair = self.kind == RecordKind.CAPTION and self.split == SourceSplit.TRAIN
        if self.clip_score is not None and not is_pair:
            raise ValueError(
                f"clip_score: found one for kind {self.kind.value} and split {self.split.value}, "
                "expected null: only captions to learn from are filtered by it."
            )

    def _check_prompt(self) -> None:
        if self.prompt is None:
            return
        usual = self.format.layout.prompt
        if usual is None:
            raise ValueError(
                f"prompt: found {self.prompt!r}, but format {self.format.value} brings its own "
                "turns; remove the prompt."
            )
        wanted = prompts.QUESTION in usual
        if not self.prompt.strip() or self.prompt.count(prompts.QUESTION) != int(wanted):
            raise ValueError(
                f"prompt: found {self.prompt!r}, expected text with '{prompts.QUESTION}' "
                f"{int(wanted)} time(s) for format {self.format.value}."
            )

    @property
    def conversation_prompt(self) -> str:
        """The template of the human's turn."""
        prompt = self.format.layout.prompt if self.prompt is None else self.prompt
        assert prompt is not None, f"{self.format.value} brings its own turns"
        return prompt

    @property
    def image_rules(self) -> ImageRules:
        """The image rules with every None settled: a rule that is still None does not apply."""
        if self.split == SourceSplit.EVALUATION:
            return ImageRules(max_pixels=self.images.max_pixels, max_bytes=self.images.max_bytes)
        if self.kind != RecordKind.INTERLEAVED:
            return self.images
        return settle(self.images, WEB_IMAGE_RULES)

    @property
    def text_rules(self) -> TextRules:
        """The text rules with every None settled: a rule that is still None does not apply."""
        if self.split == SourceSplit.EVALUATION:
            return TextRules()
        if not self.text.defaults:
            return self.text
        match self.kind:
            case RecordKind.INTERLEAVED | RecordKind.TEXT:
                return settle(self.text, TEXT_RULES)
            case RecordKind.CAPTION:
                return settle(self.text, SHORT_TEXT_RULES)
            case RecordKind.CONVERSATION:
                return self.text

    @property
    def caption_rules(self) -> CaptionRules:
        """The caption rules with every None settled; none apply outside of captions."""
        if self.split == SourceSplit.EVALUATION or self.kind != RecordKind.CAPTION:
            return CaptionRules()
        return settle(self.captions, CAPTION_RULES) if self.captions.defaults else self.captions


@parameters
class ReaderLimits:
    """What a hostile or broken archive may cost. Our choice."""

    max_member_bytes: Count = 200_000_000
    """Size above which one archive member or web response is refused."""
    max_members: Count = 2_000_000
    """Members above which the rest of an archive is refused."""
    max_line_bytes: Count = 50_000_000
    """Length above which one line, or one element of an array, of JSON is refused."""
    max_annotation_bytes: Count = 1_000_000_000
    """Length, unpacked, above which an annotation file that must be held as a whole is refused."""
    max_page_bytes: Count = 10_000_000
    """Length above which an HTML page is refused."""
    max_record_bytes: Count = 500_000_000
    """Encoded images of one record together above which the record is refused: what one record
    may cost in memory."""


@parameters
class IngestConfig:
    """Parameters of the stage `ingest`."""

    sources: Annotated[dict[Name, SourceConfig], NULL_REMOVES]
    deduplication: DeduplicationConfig = DeduplicationConfig()
    decontamination: DecontaminationConfig = DecontaminationConfig()
    limits: ReaderLimits = ReaderLimits()
    engine: Literal["native", "ray"] = operational(default="native")
    """Where partitions and tables are processed: on this machine, or on a Ray cluster (the extra
    `ray`; every machine must see the data root)."""
    num_workers: Workers = operational(default=1)
    """Partitions in work at once; with Ray, at most."""
    partition_bytes: Count = 1_000_000_000
    """Raw bytes from which on neighbouring files make a partition: what is lost when a run is
    killed, and what one worker takes."""
    records_per_file: Count = 10_000
    """Rows in one output Parquet file."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: found none; name at least one raw source.")
        for name in self.sources:
            if not name.isidentifier():
                raise ValueError(
                    f"sources: found the name {name!r}; a source's name becomes a folder and a "
                    "column, so use letters, digits and underscores."
                )

    def evaluation_part(self) -> IngestConfig:
        """What evaluation data depends on: it is compared with nothing, and may repeat itself."""
        return self._only(
            lambda source: source.split == SourceSplit.EVALUATION,
            deduplication=DeduplicationConfig(),
            decontamination=DecontaminationConfig(),
        )

    def index_part(self) -> IngestConfig:
        """What the index of evaluation data depends on, beside that data."""
        return only(self, "decontamination")

    def pretraining_part(self) -> IngestConfig:
        """What the records of captions, interleaved documents and text depend on."""
        return self._only(
            lambda source: (
                source.split == SourceSplit.TRAIN and source.kind != RecordKind.CONVERSATION
            )
        )

    def conversation_part(self) -> IngestConfig:
        """What the records of fine-tuning depend on."""
        return self._only(
            lambda source: (
                source.split == SourceSplit.TRAIN and source.kind == RecordKind.CONVERSATION
            )
        )

    def licences(self) -> dict[str, str | None]:
        """Under which terms the data of each source is, as far as its parameters say."""
        return {name: source.licence for name, source in self.sources.items()}

    def source_names(self) -> list[str]:
        """Names of all sources, in the order of the file."""
        return list(self.sources)

    def _only(self, is_wanted: Callable[[SourceConfig], bool], **others: Any) -> IngestConfig:
        """Some of the sources, none of them where the recipe has no such; values are checked.

        Which benchmarks are in the index is for who makes it: to the others its content counts.
        """
        sources = {name: source for name, source in self.sources.items() if is_wanted(source)}
        rules = with_fields(self.decontamination, benchmarks={}, required=True)
        return with_fields(self, sources=sources, **{"decontamination": rules, **others})

    def deduplication_of(self, source: SourceConfig) -> DeduplicationConfig:
        """How repetitions in a source are found."""
        return source.deduplication or self.deduplication

    def earlier_sources(self, name: str) -> list[str]:
        """Sources whose records a source must not repeat: those before it of the same kind."""
        source = self.sources[name]
        is_training = source.split == SourceSplit.TRAIN
        if not is_training or self.deduplication_of(source).within == "source":
            return []
        same_kind = self.training_sources(source.kind)
        return same_kind[: same_kind.index(name)]

    def training_sources(self, kind: RecordKind) -> list[str]:
        """Names of the training sources of one kind, in the order of the file."""
        return [
            name
            for name, source in self.sources.items()
            if source.kind == kind and source.split == SourceSplit.TRAIN
        ]
