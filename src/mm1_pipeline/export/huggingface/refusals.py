"""Why a file is refused: in an exported directory, `corpus.quarantine` is this module."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an image was rejected."""

    IMAGE_TOO_COMPLEX = "image_too_complex"
    """A file that would cost far more to decode than its pixels do: thousands of scans or parts."""


class Rejected(ValueError):  # noqa: N818  its name in training
    """An image that is not read, with the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
