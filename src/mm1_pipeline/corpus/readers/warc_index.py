"""Where in the archives of a source each image lies."""

from __future__ import annotations

import base64
import binascii
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from mm1_pipeline.corpus import http
from mm1_pipeline.corpus.files import SourceFile
from mm1_pipeline.corpus.html import absolute_url
from mm1_pipeline.corpus.images import check_url
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.readers.base import RawImage, Source, is_files_fault

_MAX_REDIRECTS = 5
_OPEN_ARCHIVES = 8
_REDIRECTS = range(300, 400)
_RECORD_TYPES = WarcRecordType.response | WarcRecordType.resource
_PLACES = ("hashes", "archives", "positions")
_MISSING = "no archive of the source holds the image"

Places = tuple[np.ndarray, np.ndarray, np.ndarray]
"""uint64[N] hashes of URLs, uint32[N] numbers of archives, uint64[N] positions in them."""


class ArchivedImages:
    """Finds images by URL, and reads them out of the archives when they are wanted.

    All archives are gone through once, here or for all partitions together; 20 bytes are
    remembered for each response that is no page, so that a hundred million of them take 2 GB. Of
    several captures the first counts.

    Args:
        source: a source of WARC files.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._files = source.files.of_source
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        if source.prepared is None:
            places = merge_places([scan_archives(source, self._files)])
        else:
            places = load_places(source.prepared)
        self._hashes, self._numbers, self._positions = places

    def close(self) -> None:
        """Closes the archives."""
        for stream in self._open.values():
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
            if places := self._places(url):
                return RawImage(partial(self._load, url, places), url)
        return RawImage.refused(Rejected(Reason.IMAGE_MISSING, _MISSING), urls[0])

    def _places(self, url: str) -> range:
        url_hash = _hash(url)
        wanted = np.array([url_hash, url_hash + 1], np.uint64)
        start, end = self._hashes.searchsorted(wanted).tolist()
        return range(start, end)

    def _load(self, url: str, places: range, redirects: int = 0) -> bytes:
        for place in places:
            record = self._record_at(int(self._numbers[place]), int(self._positions[place]))
            if record is None or _url_of(record) != url:
                continue
            if http.status(record) in _REDIRECTS:
                target = absolute_url(url, http.header(record, "Location"))
                if target is None or redirects >= _MAX_REDIRECTS:
                    raise Rejected(Reason.IMAGE_MISSING, "found only redirects that lead nowhere")
                check_url(target, self._source.config.image_rules)
                return self._load(target, self._places(target), redirects + 1)
            return http.read_body(record, self._source.limits.max_member_bytes)
        raise Rejected(Reason.IMAGE_MISSING, _MISSING)

    def _record_at(self, number: int, position: int) -> WarcRecord | None:
        stream = self._open.pop(number, None)
        if stream is None:
            if len(self._open) >= _OPEN_ARCHIVES:
                self._open.popitem(last=False)[1].close()
            stream = self._source.files.open_aside(self._files[number])
        self._open[number] = stream
        stream.seek(position)
        try:
            return next(iter(ArchiveIterator(stream, parse_http=True)), None)
        except Exception as error:
            if not is_files_fault(error):
                raise
            raise Rejected(Reason.IMAGE_MISSING, f"{type(error).__name__}: {error}") from None


def scan_archives(source: Source, files: Iterable[SourceFile]) -> Places:
    """Goes through archives and notes where everything lies that is no page.

    Args:
        source: the source.
        files: those of its archives to look into.

    Returns:
        Hash of the URL, number of the archive in the source and position in it, of each.
    """
    numbers = {file.name: number for number, file in enumerate(source.files.of_source)}
    hashes, archives, positions = array("Q"), array("I"), array("Q")
    for file in files:
        for url_hash, position in _scan(source, file):
            hashes.append(url_hash)
            archives.append(numbers[file.name])
            positions.append(position)
    return (
        np.array(hashes, np.uint64),
        np.array(archives, np.uint32),
        np.array(positions, np.uint64),
    )


def merge_places(parts: list[Places]) -> Places:
    """The places of all archives, in the order of their hashes, the earliest capture first."""
    hashes, archives, positions = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(hashes, kind="stable")
    return hashes[order], archives[order], positions[order]


def save_places(folder: Path, places: Places) -> None:
    """Writes places so that many processes can share them."""
    for name, values in zip(_PLACES, places, strict=True):
        np.save(folder / f"{name}.npy", values)


def load_places(folder: Path) -> Places:
    """Maps written places into memory."""
    hashes, archives, positions = (
        # As plain arrays, for what NumPy adds to mapped ones takes longer than to look one up.
        np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))
        for name in _PLACES
    )
    return hashes, archives, positions


def _scan(source: Source, file: SourceFile) -> list[tuple[int, int]]:
    """Hash of URL and position of everything in an archive that is no page."""
    found = []
    try:
        with source.files.open_aside(file) as stream:
            for record in ArchiveIterator(stream, record_types=_RECORD_TYPES, parse_http=True):
                is_redirect = http.status(record) in _REDIRECTS
                wanted = http.status(record) == http.OK or is_redirect
                if wanted and (is_redirect or http.content_type(record) not in http.PAGE_TYPES):
                    found.append((_hash(_url_of(record)), record.stream_pos))
    except Exception as error:
        if not is_files_fault(error):
            raise
        # damage is reported, and counted, when the pages are read
    return found


def _url_of(record: WarcRecord) -> str:
    written = http.target_url(record)
    return absolute_url(written, written) or written


def _hash(url: str) -> int:
    """63 bits, so that the hash that follows is a number as well."""
    digest = hashlib.blake2b(url.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _decode_data_url(url: str) -> bytes:
    """The image inside a data: URL, as notebooks and saved pages have them."""
    head, _, content = url.partition(",")
    try:
        data: Any = unquote_to_bytes(content)
        return base64.b64decode(data, validate=False) if head.endswith(";base64") else data
    except binascii.Error as error:
        raise Rejected(Reason.IMAGE_UNDECODABLE, f"data: URL: {error}") from None
