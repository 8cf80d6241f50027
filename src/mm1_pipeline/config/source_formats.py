"""The formats of raw sources: all that is said of each, in one table.

A format is added by a member of `SourceFormat` here and an entry in `READERS` of the module of
`corpus.readers` that the member names. What a member leaves out fails when this is imported; the
test `test_every_source_format_is_whole` finds what the reader's module leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, auto

from mm1_pipeline.config import conversation_prompts as prompts


class RecordKind(StrEnum):
    """What one record is."""

    CAPTION = "caption"
    """An image and what is said of it."""
    INTERLEAVED = "interleaved"
    """Text and images in reading order."""
    TEXT = "text"
    """Text alone."""
    CONVERSATION = "conversation"
    """Turns of a human and an assistant, possibly about images."""


class ImagePlace(StrEnum):
    """Where the images of a format are."""

    INSIDE = auto()
    """In the files themselves, each of which stands alone."""
    BESIDE = auto()
    """Files of their own, in one folder that all annotations of the source refer to."""
    NOWHERE = auto()
    """The format has none; each file stands alone."""


class Content(StrEnum):
    """What a file of a format is, whatever its name says; as messages call it."""

    TAR = "a tar archive"
    PARQUET = "a Parquet table"
    JSON = "JSON"
    WARC = "a web archive (WARC)"
    TABLE = "a table of text (CSV or TSV)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLayout:
    """What is said of a format. Only what few formats have may be left out."""

    reader: str
    """Module of `corpus.readers` that reads it."""
    kind: RecordKind
    """What one record of it is."""
    files: tuple[str, ...]
    """Patterns of the names, in lower case, of the files in a folder that hold it."""
    content: Content
    """What each of them is."""
    images: ImagePlace
    prompt: str | None
    """What the human says in a conversation made from it; None where it brings its own turns, or
    is never a conversation."""
    is_pair: bool = False
    """Pairs of image and text, read as captions or as conversations about the image."""
    looks_below: bool = True
    """Whether its files are looked for in folders inside the folder."""
    tables: tuple[str, ...] = ()
    """Suffixes of what lies beside its files and is read with them."""
    packed: tuple[str, ...] = ()
    """Suffixes of files that would hold it, were they unpacked first."""
    has_exchanges: bool = False
    """Whether one conversation of it may have several exchanges, which can be parted."""


_PACKED = ("", ".gz", ".zst")


def _json(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}.json{packed}" for stem in stems for packed in _PACKED)


_TABLES = tuple(f"*{suffix}{packed}" for suffix in (".csv", ".tsv") for packed in _PACKED)
_JSON_LINES = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst")


def _question_set(
    *stems: str, prompt: str = prompts.SHORT_ANSWER, reader: str = "question_sets"
) -> SourceLayout:
    """An academic set for fine-tuning: questions in JSON beside a folder of images."""
    return SourceLayout(
        reader=reader,
        kind=RecordKind.CONVERSATION,
        files=_json(*stems),
        content=Content.JSON,
        images=ImagePlace.BESIDE,
        prompt=prompt,
        is_pair=prompt == prompts.ONE_SENTENCE,
    )


class SourceFormat(StrEnum):
    """How a raw source lies on disk."""

    layout: SourceLayout

    def __new__(cls, value: str, layout: SourceLayout) -> SourceFormat:
        member = str.__new__(cls, value)
        member._value_ = value
        member.layout = layout
        return member

    IMG2DATASET = (
        "img2dataset",
        SourceLayout(
            reader="img2dataset",
            kind=RecordKind.CAPTION,
            files=("*.tar",),
            content=Content.TAR,
            images=ImagePlace.INSIDE,
            prompt=prompts.ONE_SENTENCE,
            is_pair=True,
            tables=(".parquet",),
            packed=(".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz"),
        ),
    )
    """Tar shards with `<key>.jpg/.txt/.json` and a parquet of metadata beside each."""
    IMAGE_PARQUET = (
        "image_parquet",
        SourceLayout(
            reader="image_parquet",
            kind=RecordKind.CAPTION,
            files=("*.parquet",),
            content=Content.PARQUET,
            images=ImagePlace.INSIDE,
            prompt=prompts.ONE_SENTENCE,
            is_pair=True,
        ),
    )
    """Parquet rows with encoded image bytes and a caption column."""
    IMAGE_CSV = (
        "image_csv",
        SourceLayout(
            reader="image_csv",
            kind=RecordKind.CAPTION,
            files=_TABLES,
            content=Content.TABLE,
            images=ImagePlace.BESIDE,
            prompt=prompts.ONE_SENTENCE,
            is_pair=True,
        ),
    )
    """A folder of pictures beside a CSV or TSV, whose rows name a picture and say its caption."""
    INTERLEAVED_PARQUET = (
        "interleaved_parquet",
        SourceLayout(
            reader="interleaved_parquet",
            kind=RecordKind.INTERLEAVED,
            files=("*.parquet",),
            content=Content.PARQUET,
            images=ImagePlace.INSIDE,
            prompt=None,
        ),
    )
    """Interleaved documents with their images' bytes, laid out as OBELICS and OmniCorpus do
    (parallel `texts` and `images`) or as MMC4 does (`text_list` and `image_info`)."""
    COCO_CAPTIONS = (
        "coco_captions",
        SourceLayout(
            reader="caption_sets",
            kind=RecordKind.CAPTION,
            files=_json("*captions*"),
            content=Content.JSON,
            images=ImagePlace.BESIDE,
            prompt=prompts.ONE_SENTENCE,
            is_pair=True,
        ),
    )
    """COCO caption annotations (JSON) beside a folder of images."""
    VQA_V2 = "vqa_v2", _question_set("*questions*", "*annotations*")
    """VQAv2 questions and annotations (two JSON files) beside a folder of images."""
    LLAVA = (
        "llava",
        SourceLayout(
            reader="llava",
            kind=RecordKind.CONVERSATION,
            files=(*_json("*"), *_JSON_LINES),
            content=Content.JSON,
            images=ImagePlace.BESIDE,
            prompt=None,
            looks_below=False,
            has_exchanges=True,
        ),
    )
    """LLaVA / ShareGPT conversations (JSON) beside their images."""
    GQA = "gqa", _question_set("*questions*")
    """GQA questions (JSON) beside a folder of images."""
    A_OKVQA = "a_okvqa", _question_set("*aokvqa*", prompt=prompts.OPTION_LETTER)
    """A-OKVQA questions with options (JSON) beside COCO's images."""
    OCR_VQA = "ocr_vqa", _question_set("dataset*")
    """OCR-VQA: dataset.json beside a folder of book covers."""
    TEXT_CAPS = (
        "text_caps",
        _question_set("*textcaps*", prompt=prompts.ONE_SENTENCE, reader="caption_sets"),
    )
    """TextCaps captions (JSON) beside a folder of images."""
    DVQA = "dvqa", _question_set("*qa*")
    """DVQA questions on bar charts (JSON) beside a folder of images."""
    CHART_QA = "chart_qa", _question_set("*")
    """ChartQA questions (JSON) beside a folder of images."""
    AI2D = "ai2d", _question_set("*", prompt=prompts.OPTION_LETTER)
    """AI2D: one JSON file of questions with options an image."""
    DOC_VQA = "doc_vqa", _question_set("*")
    """DocVQA or InfoVQA questions (JSON) beside a folder of images."""
    SYNTH_DOG = (
        "synth_dog",
        SourceLayout(
            reader="synth_dog",
            kind=RecordKind.CONVERSATION,
            files=("*.parquet",),
            content=Content.PARQUET,
            images=ImagePlace.INSIDE,
            prompt=prompts.READ_TEXT,
            is_pair=True,
        ),
    )
    """SynthDog: Parquet rows of an image and, as JSON, the text in it."""
    WARC_HTML = (
        "warc_html",
        SourceLayout(
            reader="warc_html",
            kind=RecordKind.INTERLEAVED,
            files=("*.warc", "*.warc.gz", "*.warc.zst"),
            content=Content.WARC,
            images=ImagePlace.INSIDE,
            prompt=None,
        ),
    )
    """Web archives of HTML pages and the images they show."""
    JSONL = (
        "jsonl",
        SourceLayout(
            reader="jsonl",
            kind=RecordKind.TEXT,
            files=(*_JSON_LINES, "*.json", "*.json.gz", "*.json.zst"),  # C4 calls JSON lines so
            content=Content.JSON,
            images=ImagePlace.NOWHERE,
            prompt=None,
        ),
    )
    """One JSON object a line, plain or `.zst` or `.gz`."""

    @property
    def expected(self) -> str:
        """What files it consists of, for messages."""
        return f"expected {' and '.join(self.layout.files)} ({self.value})"
