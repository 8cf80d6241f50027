"""Which images and records are kept, each rule with its reason.

The rules run in two steps. `check_record` looks at one record alone and decodes its images.
`judge_record` needs to know the whole source: which images occur all over it.

Source: MM1, Appendix on interleaved documents (unconfirmed values).
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mm1_pipeline.config.ingest import ImageRules, RecordKind, SourceConfig, SourceSplit
from mm1_pipeline.corpus.caption_rules import check_caption
from mm1_pipeline.corpus.decontamination import Decontaminator
from mm1_pipeline.corpus.images import check_image, check_url, look_at_image
from mm1_pipeline.corpus.readers.base import RawRecord, record_fault
from mm1_pipeline.corpus.records import Record, RecordImage, Segment, plain_metadata
from mm1_pipeline.corpus.text_rules import check_text
from mm1_pipeline.ground.rejects import Reason, Rejected, storable

_REMEMBERED_IMAGES = 4_096
_CONTAMINATED = frozenset({Reason.CONTAMINATED_IMAGE})


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found out about an image."""

    width: int
    height: int
    perceptual_hash: bytes | None = None
    why: Rejected | None = None


@dataclass(frozen=True, slots=True)
class DroppedImage:
    """An image that a record loses, or for which it is rejected."""

    url: str | None
    why: Rejected
    count: int
    """Places of the record that show it."""


@dataclass(frozen=True, slots=True)
class FilterResult:
    """What the rules make of one record."""

    record: Record | None
    """The record without its dropped images; None when it is rejected."""
    why: Rejected | None = None
    dropped: tuple[DroppedImage, ...] = ()
    num_images: int = 0
    """Places of images that the record had before."""


@dataclass(frozen=True, slots=True)
class FrequentImages:
    """URLs and contents of images that occur all over a source."""

    urls: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()

    def __contains__(self, image: RecordImage) -> bool:
        return image.url in self.urls or image.sha256 in self.hashes


@dataclass
class ImageChecker:
    """Decodes every image of a source once, even where several records show it in a row.

    Args:
        rules: least and greatest side, shape, pixels and bytes that are taken.
        decontaminator: knows the evaluation images; None where none are to be kept out.
        wants_hashes: whether perceptual hashes are needed for anything else.
    """

    rules: ImageRules
    decontaminator: Decontaminator | None = None
    wants_hashes: bool = False
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)

    def check(self, data: bytes, url: str | None) -> RecordImage:
        """The image with its hash and size.

        Raises:
            RejectedImage: a rule is broken, the image does not decode, or it shows an image of
                the evaluation data.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        known = self._known.get(sha256)
        if known is None:
            known = self._known[sha256] = self._look(data)
            if len(self._known) > _REMEMBERED_IMAGES:
                self._known.popitem(last=False)
        if known.why is not None:
            raise known.why
        url = None if url is None else storable(url)
        return RecordImage(data, url, sha256, known.width, known.height)

    def hash_of(self, image: RecordImage) -> bytes | None:
        """The perceptual hash of an image that was just checked, as it is stored."""
        known = self._known.get(image.sha256)
        return known.perceptual_hash if known is not None else None

    def _look(self, data: bytes) -> _Known:
        compares = self.decontaminator is not None and self.decontaminator.wants_images
        if not (compares or self.wants_hashes):
            return _Known(*check_image(data, self.rules))
        width, height, found = look_at_image(data, self.rules)
        stored = found.to_bytes() if self.wants_hashes else None
        try:
            if self.decontaminator is not None:
                self.decontaminator.check_image(found)
        except Rejected as error:
            return _Known(width, height, stored, error)
        return _Known(width, height, stored)


def check_record(
    raw: RawRecord, name: str, source: SourceConfig, checker: ImageChecker, max_bytes: int
) -> FilterResult:
    """Applies the rules that concern a record alone, and decodes its images.

    A document loses a bad image and goes on; any other record is rejected with it, because a
    caption or an answer without its image teaches the wrong thing. A record that shows an image
    of the evaluation data goes as a whole: its text may tell what is to be found out. Names,
    URLs and metadata that no file can hold are kept as `storable` writes them; texts are not.

    Args:
        raw: the record as its reader gave it.
        name: of the source.
        source: parameters of the source, with the rules of its kind.
        checker: for its images, and for what the evaluation data holds.
        max_bytes: limit of the record's encoded images together.
    """
    places = Counter(s.image for s in raw.segments if s.image is not None)
    kept: dict[int, RecordImage] = {}
    dropped: list[DroppedImage] = []
    num_bytes = 0
    try:
        metadata = plain_metadata(raw.metadata)
        _check_texts(raw)
        _check_words(raw, source, checker.decontaminator)
        for index, raw_image in enumerate(raw.images):
            try:
                check_url(raw_image.url, checker.rules)
                kept[index] = checker.check(raw_image.load(), raw_image.url)
                num_bytes += len(kept[index].bytes)
            except Exception as error:
                why = record_fault(error)
                dropped.append(DroppedImage(raw_image.url, why, places[index]))
                if source.kind != RecordKind.INTERLEAVED or why.reason in _CONTAMINATED:
                    raise why from None
            if num_bytes > max_bytes:
                raise Rejected(Reason.RECORD_TOO_LARGE, f"found images of over {max_bytes} bytes")
    except Exception as error:
        return FilterResult(None, record_fault(error), tuple(dropped), places.total())
    segments, images = _renumber(raw.segments, kept)
    key = storable(raw.key)
    record = Record(name, key, source.kind, segments, images, raw.references, metadata)
    return FilterResult(record, None, tuple(dropped), places.total())


def _check_words(
    raw: RawRecord, source: SourceConfig, decontaminator: Decontaminator | None
) -> None:
    """Applies the rules for texts to all text of a record, as if no image stood in between."""
    if source.split == SourceSplit.EVALUATION:
        return
    text = ""
    for segment in raw.segments:
        if segment.text:
            # A text that starts with a blank says itself how it follows; else it is a new block.
            text += segment.text if segment.text[0].isspace() or not text else f"\n\n{segment.text}"
    if source.kind == RecordKind.CAPTION:
        check_caption(text, source.caption_rules)
    check_text(text, source.text_rules)
    if decontaminator is not None and source.decontaminate_texts:
        decontaminator.check_text(text)


def judge_record(record: Record, source: SourceConfig, frequent: FrequentImages) -> FilterResult:
    """Applies the rules that need the whole source, then those about what is left.

    Args:
        record: a checked record; image bytes may be left out.
        source: parameters of the record's source, with the rules of its kind.
        frequent: images that occur too often in the source.
    """
    num_images = sum(1 for segment in record.segments if segment.image is not None)
    try:
        return _apply_rules(record, source, frequent, num_images)
    except Exception as error:
        return FilterResult(None, record_fault(error), (), num_images)


def _apply_rules(
    record: Record, source: SourceConfig, frequent: FrequentImages, num_images: int
) -> FilterResult:
    dropped: list[DroppedImage] = []
    segments = list(record.segments)
    if source.split == SourceSplit.TRAIN:
        if source.kind == RecordKind.INTERLEAVED:
            segments, dropped = _drop_frequent_images(record, frequent)
        elif any(image in frequent for image in record.images):
            why = Rejected(Reason.IMAGE_TOO_FREQUENT)
            return FilterResult(None, why, (DroppedImage(None, why, num_images),), num_images)
    kept = {s.image: record.images[s.image] for s in segments if s.image is not None}
    segments, images = _renumber(segments, kept)
    judged = replace(record, segments=_join_texts(segments), images=images)
    why = None if source.split == SourceSplit.EVALUATION else _broken_rule(judged, source)
    return FilterResult(None if why else judged, why, tuple(dropped), num_images)


def _check_texts(raw: RawRecord) -> None:
    """Refuses texts that cannot be written down: halves of surrogate pairs from JSON escapes."""
    for text in (*(segment.text or "" for segment in raw.segments), *raw.references):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Rejected(Reason.INVALID_UTF8, str(error)) from None


def _drop_frequent_images(
    record: Record, frequent: FrequentImages
) -> tuple[list[Segment], list[DroppedImage]]:
    """Leaves out images that occur all over the source, and later occurrences in the document."""
    segments: list[Segment] = []
    dropped: list[DroppedImage] = []
    seen: set[str] = set()
    for segment in record.segments:
        if segment.image is None:
            segments.append(segment)
            continue
        image = record.images[segment.image]
        names = {image.sha256, image.url or image.sha256}
        if image in frequent:
            dropped.append(DroppedImage(image.url, Rejected(Reason.IMAGE_TOO_FREQUENT), 1))
        elif names & seen:
            dropped.append(DroppedImage(image.url, Rejected(Reason.IMAGE_REPEATED), 1))
        else:
            segments.append(segment)
        seen |= names
    return segments, dropped


def _broken_rule(record: Record, source: SourceConfig) -> Rejected | None:
    rules, num_images = source.documents, len(record.images)
    if source.kind == RecordKind.INTERLEAVED and num_images < rules.min_images:
        found = f"found {num_images} images, expected at least {rules.min_images}"
        return Rejected(Reason.TOO_FEW_IMAGES, found)
    if source.kind == RecordKind.INTERLEAVED and num_images > rules.max_images:
        found = f"found {num_images} images, expected at most {rules.max_images}"
        return Rejected(Reason.TOO_MANY_IMAGES, found)
    if record.num_characters < rules.min_characters:
        found = f"found {record.num_characters} characters, expected {rules.min_characters} or more"
        return Rejected(Reason.TOO_FEW_CHARACTERS, found)
    if record.num_characters > rules.max_characters:
        found = f"found {record.num_characters} characters, expected at most {rules.max_characters}"
        return Rejected(Reason.TOO_MANY_CHARACTERS, found)
    return None


def _renumber(
    segments: Iterable[Segment], kept: dict[int, RecordImage]
) -> tuple[tuple[Segment, ...], tuple[RecordImage, ...]]:
    """Leaves out the places of images that are not kept, and numbers the others from 0."""
    numbers: dict[int, int] = {}
    renumbered: list[Segment] = []
    for segment in segments:
        if segment.image is None:
            renumbered.append(segment)
        elif segment.image in kept:
            number = numbers.setdefault(segment.image, len(numbers))
            renumbered.append(replace(segment, image=number))
    return tuple(renumbered), tuple(kept[index] for index in numbers)


def _join_texts(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Joins texts that lost the image between them, and strips what is left.

    A text that starts with a blank says itself how it follows; else it is a new block.
    """
    joined: list[Segment] = []
    for segment in segments:
        last = joined[-1] if joined else None
        if segment.text is None or last is None or last.text is None or last.role != segment.role:
            joined.append(segment)
        else:
            gap = "" if segment.text[:1].isspace() else "\n\n"
            text = last.text.rstrip() + gap + segment.text if last.text.strip() else segment.text
            joined[-1] = replace(last, text=text)
    stripped = (s if s.text is None else replace(s, text=s.text.strip()) for s in joined)
    return tuple(s for s in stripped if s.text is None or s.text)
