"""Finds the images that annotations call by name, stem or number in a folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from mm1_pipeline.annotations.records import ImageCall, ImageName, as_name
from mm1_pipeline.corpus.files import ImageFolder
from mm1_pipeline.corpus.images import IMAGE_SUFFIXES
from mm1_pipeline.ground.rejects import Reason, Rejected

_MAX_DIGITS = 100


class AnnotatedImages:
    """The images of a set.

    Args:
        folder: where they lie; nothing outside of it is ever found.
    """

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder
        self._by_stem: dict[str, list[str]] | None = None
        self._by_number: dict[int, list[str]] | None = None

    def resolve(self, image: ImageName) -> str:
        """Name of an image's file in the folder.

        Raises:
            Rejected: there is none, there are several, or the name leads out of the folder.
        """
        if image.call == ImageCall.NUMBER:
            return self._numbered(image.value)
        if image.call == ImageCall.STEM:
            return self._with_stem(image.value)
        name = image.value
        if not isinstance(name, str):
            found = f"found the file name {name!r:.100}, expected text"
            raise Rejected(Reason.MALFORMED_RECORD, found)
        try:
            return self.folder.resolve(name)
        except Rejected as error:
            is_elsewhere = image.call == ImageCall.PAGE and "/" in name
            if not is_elsewhere or error.reason != Reason.IMAGE_MISSING:
                raise
            return self._with_stem(PurePosixPath(name).stem)

    def _with_stem(self, stem: object) -> str:
        """The image called `<stem>.<any suffix of images>`."""
        if self._by_stem is None:
            self._by_stem = {}
            for name in self.folder.names:
                path = PurePosixPath(name)
                if path.suffix[1:].lower() in IMAGE_SUFFIXES:
                    composed = unicodedata.normalize("NFC", path.stem)
                    self._by_stem.setdefault(composed, []).append(name)
        if as_name(stem) is None:
            found = f"found an image of the name {stem!r:.100}, expected a number or text"
            raise Rejected(Reason.MALFORMED_RECORD, found)
        names = self._by_stem.get(unicodedata.normalize("NFC", str(stem)), [f"{stem}.jpg"])
        return self._only(names, stem)

    def _numbered(self, number: object) -> str:
        """The image whose file name ends in a number."""
        if self._by_number is None:
            self._by_number = {}
            for name in self.folder.names:
                path = PurePosixPath(name)
                digits = re.search(r"[0-9]+$", path.stem)
                if (
                    digits
                    and len(digits[0]) <= _MAX_DIGITS
                    and path.suffix[1:].lower() in IMAGE_SUFFIXES
                ):
                    self._by_number.setdefault(int(digits[0]), []).append(name)
        if isinstance(number, str) and number.isascii() and number.isdecimal():
            number = int(number) if len(number) <= _MAX_DIGITS else number
        names: list[str] = []
        if isinstance(number, int) and not isinstance(number, bool):
            names = self._by_number.get(number, [])
        if not names:
            found = f"found no image file whose name ends in {str(number)[:_MAX_DIGITS]!r}"
            raise Rejected(Reason.IMAGE_MISSING, found)
        return self._only(names, number)

    def _only(self, names: list[str], called: object) -> str:
        if len(names) > 1:
            found = f"found {len(names)} files, as {', '.join(names[:3])}, for image {called!r}"
            raise Rejected(Reason.IMAGE_AMBIGUOUS, found)
        return self.folder.resolve(names[0])
