"""The text in an image, as a small optical character recogniser reads it (the extra `ocr`)."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from mm1_pipeline.config.synthesis import TextReaderConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import RecordImage
from mm1_pipeline.corpus.synthesis.concepts import one_line
from mm1_pipeline.ground.rejects import Reason, Rejected

Lines = Sequence[tuple[str, float]]
"""Texts in reading order, each with how sure the reader is of it, 0 to 1."""

_MAX_SIDE = 960
"""Pixels to whose longer side text is looked for; larger images are reduced. Our choice."""
_LIBRARIES = ("rapidocr", "onnxruntime")


class TextReader:
    """Gives the words that stand in an image as the concept `text`.

    Args:
        config: How sure the reader must be, and how much is passed on.
        read: Reads an RGB image; None takes RapidOCR, whose models come with its package.
        provenance: Of `read`.

    Raises:
        ValueError: RapidOCR is not installed.
    """

    names = ("text",)

    def __init__(
        self,
        config: TextReaderConfig,
        read: Callable[[Image.Image], Lines] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._provenance = provenance or {}
        if read is None:
            read = _open_rapidocr()
            versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
            self._provenance = {"reader": "rapidocr", "max_side": _MAX_SIDE, **versions}
        self._read = read

    @property
    def provenance(self) -> dict[str, Any]:
        """The reader, its libraries' versions, and what it may say."""
        limits = {
            "min_confidence": self._config.min_confidence,
            "min_characters": self._config.min_characters,
            "max_characters": self._config.max_characters,
        }
        return {**self._provenance, **limits}

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        """What is written in each image; nothing where nothing was read."""
        return [self._detect(image) for image in images]

    def _detect(self, image: RecordImage) -> dict[str, str] | Rejected:
        try:
            lines = self._read(open_image(image.bytes))
            words = [text for text, score in lines if self._is_text(text, score)]
        except Rejected as error:
            return error
        except Exception as error:
            # A stranger's picture must cost one caption, not the run.
            return Rejected(Reason.CONCEPTS_FAILED, f"text: {type(error).__name__}: {error}")
        phrase = one_line(" ".join(words), self._config.max_characters)
        return {"text": phrase} if phrase else {}

    def _is_text(self, text: str, score: float) -> bool:
        num_characters = sum(map(str.isalnum, text))
        is_long = num_characters >= self._config.min_characters
        return is_long and score >= self._config.min_confidence


def _open_rapidocr() -> Callable[[Image.Image], Lines]:
    try:
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
        from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"synthesis.concepts: found 'text', which needs what is not installed ({error.name}); "
            "install mm1-pipeline[ocr], or take 'text' out."
        ) from None
    reader = RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": 0.0,  # the parameters decide
            # One thread: sums in another order could tip a letter.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            # By default small images are enlarged to several times their cost.
            "Det.limit_type": "max",
            "Det.limit_side_len": _MAX_SIDE,
        }
    )

    def read(image: Image.Image) -> Lines:
        found = reader(image)
        return list(zip(found.txts or (), found.scores or (), strict=True))

    return read
