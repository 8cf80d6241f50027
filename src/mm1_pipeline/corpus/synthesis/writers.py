"""What writes a caption from alt text and concepts, and the writer that needs no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mm1_pipeline.ground.rejects import Rejected


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What a writer is given.

    Attributes:
        key: Of the record; two records of equal text may get different sentences.
        alt_text: The image's own caption.
        concepts: What was detected in the image.
    """

    key: str
    alt_text: str
    concepts: Mapping[str, str]

    def prompt(self, instruction: str) -> str:
        """The instruction with alt text and concepts in their places."""
        concepts = "; ".join(f"{name}: {words}" for name, words in self.concepts.items())
        places = {"alt_text": self.alt_text, "concepts": concepts or "nothing"}
        # In one pass, so that alt text which holds `{concepts}` stays as it is.
        return re.sub(r"\{(alt_text|concepts)\}", lambda place: places[place[1]], instruction)


class CaptionWriter(Protocol):
    """Writes captions."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What every caption's record says of the writer: name, model (None has none), version."""
        ...

    def prompt(self, request: CaptionRequest) -> str:
        """Everything that the caption depends on, besides `provenance`."""
        ...

    def write(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        """A caption for each request, or why there is none."""
        ...


class TemplateWriter:
    """Fixed sentences around alt text and concepts; the hash of the key chooses among them.

    A stand-in for a language model that any machine can run, the same every time. Our choice.
    """

    VERSION = 1

    @property
    def provenance(self) -> dict[str, Any]:
        """Name and version of the sentences."""
        return {"writer": "template", "model": None, "version": self.VERSION}

    def prompt(self, request: CaptionRequest) -> str:
        """Key, alt text and concepts: the sentence depends on nothing else."""
        return "\n".join([request.key, request.prompt("{alt_text}\n{concepts}")])

    def write(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        """Puts each request into a sentence."""
        return [self._sentence(request) for request in requests]

    def _sentence(self, request: CaptionRequest) -> str:
        text = request.alt_text.strip().rstrip(".")
        colours, shape = request.concepts.get("colours"), request.concepts.get("shape")
        regions = request.concepts.get("regions")
        caption, words = request.concepts.get("caption"), request.concepts.get("text")
        kind = f"{shape} picture" if shape else "picture"
        choices = [f"{_article(kind)} {kind}: {text}."]
        if colours:
            choices.append(f"{text}, in {colours}.")
            choices.append(f"{_article(kind)} {kind} in {colours}: {text}.")
        if regions:
            choices.append(f"{text}; {regions} of colour.")
        if caption:
            choices.append(f"{text}: {caption.rstrip('.')}.")
        if words:
            choices.append(f'{text}, with the words "{words}".')
        digest = hashlib.blake2b(request.key.encode(), digest_size=8).digest()
        return choices[int.from_bytes(digest, "big") % len(choices)]


def _article(noun: str) -> str:
    return "An" if noun[0] in "aeiou" else "A"
