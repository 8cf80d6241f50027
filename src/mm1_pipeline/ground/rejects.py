"""Why something is not kept: the kinds of faults, which are counted, and what is said of each.

One vocabulary for all layers: what `corpus` puts into quarantine under a reason, `evaluation` lists
as a failure with the same words.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Reason(StrEnum):
    """Why a record or an image was rejected."""

    EMPTY_FILE = "empty_file"
    """A file of no bytes."""
    TRUNCATED_FILE = "truncated_file"
    """An archive, compressed file or JSON array that ends too early; the rest of it is lost."""
    UNREADABLE_FILE = "unreadable_file"
    """A file that is not what its name says, or is damaged; the rest of it is lost."""
    DAMAGED_MEMBER = "damaged_member"
    """Bytes between intact records of an archive that are no record; reading goes on behind."""
    COMPRESSION_BOMB = "compression_bomb"
    """A compressed file, member or row group that swells more than any honest one."""
    FILE_TOO_LARGE = "file_too_large"
    """An annotation file that, unpacked, is longer than what may be held in memory."""
    TOO_MANY_MEMBERS = "too_many_members"
    """An archive with more members than allowed; the rest of it is not read."""
    MISSING_FROM_ARCHIVE = "missing_from_archive"
    """A sample that the table beside the archive promises and the archive lacks."""
    MEMBER_TOO_LARGE = "member_too_large"
    """An archive member larger than allowed, refused unread."""
    UNSAFE_PATH = "unsafe_path"
    """A name that leads out of its archive or folder."""
    UNSAFE_MEMBER = "unsafe_member"
    """An archive member that is a link or a device."""
    INVALID_JSON = "invalid_json"
    INVALID_UTF8 = "invalid_utf8"
    """Bytes, or an escaped half of a character, that no text holds."""
    LINE_TOO_LONG = "line_too_long"
    """A line, or an element of an array, longer than allowed."""
    MALFORMED_RECORD = "malformed_record"
    """An entry without the fields that its format promises, or with fields of another type."""
    DUPLICATE_KEY = "duplicate_key"
    """An identifier that an earlier entry of the same file has."""
    TEXT_MISSING = "text_missing"
    """An entry without text in the configured field."""
    CAPTION_WITHOUT_IMAGE = "caption_without_image"
    IMAGE_WITHOUT_CAPTION = "image_without_caption"
    QUESTION_WITHOUT_ANNOTATION = "question_without_annotation"
    ANNOTATION_WITHOUT_QUESTION = "annotation_without_question"
    IMAGE_TAG_MISMATCH = "image_tag_mismatch"
    """A conversation with more or fewer `<image>` tags than images."""
    UNKNOWN_ROLE = "unknown_role"
    """A turn of somebody who is neither the human nor the assistant."""
    CONVERSATION_EMPTY = "conversation_empty"
    TURN_EMPTY = "turn_empty"
    """A turn without text or image."""
    TURNS_NOT_ALTERNATING = "turns_not_alternating"
    """A conversation in which human and assistant do not take turns, or that no answer ends."""
    IMAGE_IN_ANSWER = "image_in_answer"
    """An `<image>` tag in a turn that is not the human's: the model writes no images."""
    HTTP_STATUS = "http_status"
    """A page that the server did not answer with success."""
    HTTP_ENCODING = "http_encoding"
    """A body that cannot be unpacked, or in a compression that is not supported."""
    ORIGINAL_MISSING = "original_missing"
    """A revisit record whose page no archive of the source holds."""
    PAGE_TOO_LARGE = "page_too_large"
    PAGE_TOO_COMPLEX = "page_too_complex"
    """Elements nested deeper, or with more attributes, than on any honest page."""
    RECORD_TOO_LARGE = "record_too_large"
    """Images that together exceed what one record may cost in memory."""
    CLIP_SCORE_TOO_LOW = "clip_score_too_low"
    """A caption that, to a contrastive model, does not belong to its image."""
    REWRITE_FAILED = "rewrite_failed"
    """A caption that the writer of synthetic captions did not give."""
    CONCEPTS_FAILED = "concepts_failed"
    """An image of which a model, or the reader of its text, could say nothing for an error."""

    IMAGE_MISSING = "image_missing"
    """A name or URL to which no image belongs."""
    IMAGE_AMBIGUOUS = "image_ambiguous"
    """A number to which several image files belong."""
    IMAGE_EMPTY = "image_empty"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_MANY_BYTES = "image_too_many_bytes"
    IMAGE_TOO_MANY_PIXELS = "image_too_many_pixels"
    """More pixels than allowed: a decompression bomb, refused before decoding."""
    IMAGE_TOO_COMPLEX = "image_too_complex"
    """A file that would cost far more to decode than its pixels do: thousands of scans or parts."""
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_ASPECT_RATIO = "image_aspect_ratio"
    IMAGE_URL_STOP_WORD = "image_url_stop_word"
    IMAGE_TOO_FREQUENT = "image_too_frequent"
    """An image whose URL or content occurs all over the source."""
    IMAGE_REPEATED = "image_repeated"
    """A later occurrence in the same document."""
    RECORD_REJECTED = "record_rejected"
    """An image that shares the fate of its record; counted, not listed."""

    TOO_FEW_IMAGES = "too_few_images"
    TOO_MANY_IMAGES = "too_many_images"
    TOO_FEW_CHARACTERS = "too_few_characters"
    TOO_MANY_CHARACTERS = "too_many_characters"
    TOO_FEW_WORDS = "too_few_words"
    TOO_MANY_WORDS = "too_many_words"
    WORD_LENGTH = "word_length"
    TOO_MANY_SYMBOLS = "too_many_symbols"
    TOO_FEW_LETTERS = "too_few_letters"
    TOO_FEW_STOP_WORDS = "too_few_stop_words"
    TOO_MANY_BULLETS = "too_many_bullets"
    TOO_MANY_ELLIPSES = "too_many_ellipses"
    REPEATED_LINES = "repeated_lines"
    """A text whose lines or paragraphs repeat each other."""
    REPEATED_NGRAMS = "repeated_ngrams"
    """A text whose word sequences repeat each other."""
    LANGUAGE = "language"
    PROFANITY = "profanity"
    CAPTION_FILE_NAME = "caption_file_name"
    CAPTION_CAMERA_DEFAULT = "caption_camera_default"
    """What a camera called the picture."""
    CAPTION_URL = "caption_url"
    CAPTION_BOILERPLATE = "caption_boilerplate"
    """"Image of", and nothing of what."""
    CONTAMINATED_IMAGE = "contaminated_image"
    """A training record that shows an evaluation image."""
    CONTAMINATED_TEXT = "contaminated_text"
    """A training record that holds an evaluation text."""

    DUPLICATE = "duplicate"
    """A record whose texts and images repeat an earlier one's."""
    NEAR_DUPLICATE = "near_duplicate"
    """A text that is nearly an earlier one's."""
    IMAGE_DUPLICATE = "image_duplicate"
    """A pair that shows an earlier pair's picture."""
    CAPTION_TOO_FREQUENT = "caption_too_frequent"


class Passed(StrEnum):
    """What lies in a file and is no record of its format."""

    DIRECTORY = "directory"
    """A folder in an archive."""
    RESOURCE_FORK = "resource_fork"
    """What macOS writes beside every file: `._name`, `.DS_Store`, `__MACOSX/`."""
    OTHER_MEMBER = "other_member"
    """A member of an archive with a suffix that the format does not read."""
    ARCHIVED_FILE = "archived_file"
    """A response of a web archive that is no page: images, which pages may show, and the rest."""
    OTHER_WARC_RECORD = "other_warc_record"
    """A record of a web archive that is no response: requests, metadata, information."""
    OTHER_ENTRY = "other_entry"
    """An entry of another split, or whose `id` the source's pattern does not match."""
    OTHER_FILE = "other_file"
    """A file in a source's folder whose name is none of the format's."""


class Rejected(ValueError):  # noqa: N818 - it is an outcome first, an error only in flight
    """Why something is not kept.

    Args:
        reason: the kind of problem, which is counted.
        detail: what was found and what was expected, for a person.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


def storable(text: str) -> str:
    r"""Text that any file can hold, unlike for unlike: what is not UTF-8 becomes `\xff`.

    File names hold bytes that are not UTF-8 as single surrogates (`os.fsdecode`), and JSON may
    escape half a pair of them.
    """
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Text that can be stored and that is the same in every run: no addresses of objects."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", storable(text))
