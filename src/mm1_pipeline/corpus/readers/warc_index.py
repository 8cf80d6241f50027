"""Where in the archives of a source each image lies, and what revisit records repeat."""

from __future__ import annotations

import base64
import binascii
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote_to_bytes

import numpy as np

from mm1_pipeline.corpus import http
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.html import absolute_url
from mm1_pipeline.corpus.images import check_url
from mm1_pipeline.corpus.readers.base import RawImage, Source, is_files_fault
from mm1_pipeline.corpus.warc import Archive, WarcRecord
from mm1_pipeline.ground.rejects import Reason, Rejected

RESPONSES = ("response", "resource")
"""Types of records that hold files."""
REVISIT = "revisit"
"""The type of those that say that a file was met again."""

_MAX_REDIRECTS = 5
_OPEN_ARCHIVES = 8
_MISSING = "no archive of the source holds the image"
_ORIGINAL = 1 << 62
"""Added to the hashes by which revisit records find what they repeat."""


class Places(NamedTuple):
    """Where everything lies; 28 bytes a place.

    Attributes:
        hashes: uint64[N], of URLs, and of what revisit records name.
        archives: uint32[N], numbers of archives in the source.
        positions: uint64[N], of records, or of the members that they are in.
        skips: uint64[N], bytes of the members' text before them.
        wanted: uint64[M], hashes that revisit records name.
    """

    hashes: np.ndarray
    archives: np.ndarray
    positions: np.ndarray
    skips: np.ndarray
    wanted: np.ndarray


class ArchivedImages:
    """Finds images by URL, and reads them out of the archives when they are wanted.

    All archives are gone through once, here or for all partitions together; 28 bytes are
    remembered for each response that is no page, so that a hundred million of them take 3 GB. Of
    several captures the first counts. Of pages only those that a revisit record repeats are
    remembered.

    Args:
        source: a source of WARC files.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = source.files.of_source
        self._open: OrderedDict[int, tuple[BinaryIO, Archive]] = OrderedDict()
        if source.prepared is None:
            self._found = merge_places([scan_archives(source, self._files)])
        else:
            self._found = load_places(source.prepared)

    def close(self) -> None:
        """Closes the archives."""
        for stream, _ in self._open.values():
            stream.close()
        self._open.clear()

    def find(self, urls: tuple[str, ...]) -> RawImage:
        """The image under the first of several addresses that was archived.

        Args:
            urls: addresses as `absolute_url` gives them.
        """
        for url in urls:
            if url.startswith("data:"):
                return RawImage(partial(_decode_data_url, url), None)
            if places := self._places(_hash(url)):
                return RawImage(partial(self._load, url, places), url)
        return RawImage.refused(Rejected(Reason.IMAGE_MISSING, _MISSING), urls[0])

    def original_of(self, revisit: WarcRecord) -> WarcRecord | None:
        """The record that a revisit record repeats; None if no archive holds it."""
        digest, date = (
            revisit.header(name) for name in ("warc-payload-digest", "warc-refers-to-date")
        )
        for name, wanted in _named_originals(revisit):
            for place in self._places(wanted):
                try:
                    record = self._record_at(place)
                except Rejected:
                    continue
                known = record.header("warc-payload-digest")
                if record.kind not in RESPONSES or (digest and known and digest != known):
                    continue
                is_same = name in [named for named, _ in _names_of(record)]
                if is_same and date in ("", record.header("warc-date")):
                    return record
        return None

    def _places(self, url_hash: int) -> range:
        wanted = np.array([url_hash, url_hash + 1], np.uint64)
        start, end = self._found.hashes.searchsorted(wanted).tolist()
        return range(start, end)

    def _load(self, url: str, places: range, redirects: int = 0) -> bytes:
        for place in places:
            record = self._record_at(place)
            if _url_of(record) != url:
                continue
            response = http.parse_response(record)
            if response.is_redirect:
                target = absolute_url(url, response.header("location"))
                if target is None or redirects >= _MAX_REDIRECTS:
                    raise Rejected(Reason.IMAGE_MISSING, "found only redirects that lead nowhere")
                check_url(target, self._source.config.image_rules)
                return self._load(target, self._places(_hash(target)), redirects + 1)
            if record.kind == REVISIT:
                original = self.original_of(record)
                if original is None:
                    continue
                response = http.parse_response(original)
            return http.read_body(response, self._source.limits.max_member_bytes)
        raise Rejected(Reason.IMAGE_MISSING, _MISSING)

    def _record_at(self, place: int) -> WarcRecord:
        number = int(self._found.archives[place])
        opened = self._open.pop(number, None)
        if opened is None:
            if len(self._open) >= _OPEN_ARCHIVES:
                self._open.popitem(last=False)[1][0].close()
            stream = self._source.files.open_aside(self._files[number])
            opened = stream, Archive(stream)
        self._open[number] = opened
        position, skip = int(self._found.positions[place]), int(self._found.skips[place])
        max_bytes = self._source.limits.max_member_bytes + http.MAX_HEADER_BYTES
        try:
            return opened[1].record_at(position, skip, max_bytes)
        except Exception as error:
            if not is_files_fault(error):
                raise
            raise Rejected(Reason.IMAGE_MISSING, f"{type(error).__name__}: {error}") from None


def scan_archives(source: Source, files: Iterable[SourceFile]) -> Places:
    """Goes through archives and notes where everything lies that is no page.

    Args:
        source: of WARC files, plain or packed.
        files: those of its archives to look into.

    Returns:
        Hash of the URL, number of the archive in the source and position in it, of each.
    """
    numbers = {file.name: number for number, file in enumerate(source.files.of_source)}
    hashes, archives = array("Q"), array("I")
    positions, skips, wanted = array("Q"), array("Q"), array("Q")
    for file in files:
        for record, keys, needed in _scan(source, file):
            wanted.extend(needed)
            for key in keys:
                hashes.append(key)
                archives.append(numbers[file.name])
                positions.append(record.position)
                skips.append(record.skip)
    return Places(
        np.array(hashes, np.uint64),
        np.array(archives, np.uint32),
        np.array(positions, np.uint64),
        np.array(skips, np.uint64),
        np.unique(np.array(wanted, np.uint64)),
    )


def merge_places(parts: list[Places]) -> Places:
    """The places of all archives, in the order of their hashes, the earliest capture first.

    What revisit records may repeat is left out where none does.
    """
    wanted = np.unique(np.concatenate([part.wanted for part in parts]))
    kept = [(part.hashes < _ORIGINAL) | np.isin(part.hashes, wanted) for part in parts]
    hashes, archives, positions, skips = (
        np.concatenate([part[column][rows] for part, rows in zip(parts, kept, strict=True)])
        for column in range(4)
    )
    order = np.argsort(hashes, kind="stable")
    return Places(hashes[order], archives[order], positions[order], skips[order], wanted)


def save_places(folder: Path, places: Places) -> None:
    """Writes places so that many processes can share them."""
    for name, values in zip(Places._fields, places, strict=True):
        np.save(folder / f"{name}.npy", values)


def load_places(folder: Path) -> Places:
    """Maps written places into memory."""
    return Places(
        *(
            # As plain arrays, for what NumPy adds to mapped ones takes longer than to look one up.
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in Places._fields
        )
    )


def _scan(source: Source, file: SourceFile) -> Iterator[tuple[WarcRecord, list[int], list[int]]]:
    """The records of an archive that may be looked for, with the hashes that lead to each.

    Those of everything that is no page, those that a revisit record may name, and, of a revisit
    record, those that it names. Damage is reported, and counted, when the pages are read.
    """
    max_bytes = source.limits.max_page_bytes
    try:
        with source.files.open_aside(file) as stream:
            for record in Archive(stream).records(max_bytes + http.MAX_HEADER_BYTES):
                if isinstance(record, Rejected) or record.kind not in (*RESPONSES, REVISIT):
                    continue
                try:
                    response = http.parse_response(record)
                except Rejected:
                    continue
                keys, needed = [], []
                if record.kind == REVISIT:
                    needed = [wanted for _, wanted in _named_originals(record)]
                    is_file = response.is_unchanged or (
                        response.is_good and response.media_type not in http.PAGE_TYPES
                    )
                else:
                    if response.is_good:
                        keys = [wanted for _, wanted in _names_of(record)]
                    is_file = response.is_good and not http.is_page(response, max_bytes)
                if is_file or response.is_redirect:
                    keys.append(_hash(_url_of(record)))
                yield record, keys, needed
    except Exception as error:
        if not is_files_fault(error):
            raise


def _url_of(record: WarcRecord) -> str:
    return absolute_url(record.url, record.url) or record.url


def _names_of(record: WarcRecord) -> list[tuple[str, int]]:
    """What a revisit record may call a record, with the hashes of that."""
    names = [
        f"id {record.header('warc-record-id')}",
        f"digest {record.header('warc-payload-digest')}",
        f"url {_url_of(record)}",
    ]
    return [(name, _hash(name) | _ORIGINAL) for name in names if not name.endswith(" ")]


def _named_originals(revisit: WarcRecord) -> list[tuple[str, int]]:
    """What a revisit record calls the record that it repeats, the surest first."""
    written = revisit.header("warc-refers-to-target-uri").strip("<>") or revisit.url
    names = [
        f"id {revisit.header('warc-refers-to')}",
        f"digest {revisit.header('warc-payload-digest')}",
        f"url {absolute_url(written, written) or written}",
    ]
    return [(name, _hash(name) | _ORIGINAL) for name in names if not name.endswith(" ")]


def _hash(url: str) -> int:
    """62 bits, so that the hash that follows is a number as well, and some are left for marks."""
    digest = hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _decode_data_url(url: str) -> bytes:
    """The image inside a data: URL, as notebooks and saved pages have them."""
    head, _, content = url.partition(",")
    try:
        data: Any = unquote_to_bytes(content)
        return base64.b64decode(data, validate=False) if head.endswith(";base64") else data
    except binascii.Error as error:
        raise Rejected(Reason.IMAGE_UNDECODABLE, f"data: URL: {error}") from None
