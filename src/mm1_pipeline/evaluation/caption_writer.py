"""Writers of synthetic captions, among them a model of this project.

The writers without a model lie in `corpus.synthesis`; this one needs the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mm1_pipeline.config.synthesis import LocalModelConfig, SynthesisConfig
from mm1_pipeline.corpus.quarantine import Reason, Rejected
from mm1_pipeline.corpus.records import Segment
from mm1_pipeline.corpus.synthesis.endpoint import EndpointWriter
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest, CaptionWriter, TemplateWriter

_STOP = ("\n",)


def make_writer(config: SynthesisConfig) -> CaptionWriter:
    """The writer that the parameters name.

    Raises:
        ValueError: The local model cannot be read.
    """
    match config.writer:
        case "template":
            return TemplateWriter()
        case "endpoint":
            return EndpointWriter(config.endpoint, config.instruction)
        case "local":
            return LocalWriter(config.local, config.instruction)


class LocalWriter:
    """A model of this project goes on where the instruction ends, greedily.

    Text goes in and text comes out, as in VeCap: what the image shows reaches the model as
    concepts. Only a model that has learned to follow instructions gives captions worth having.

    Args:
        config: Checkpoint, tokenizer, length of an answer.
        instruction: The prompt's template.
    """

    def __init__(self, config: LocalModelConfig, instruction: str) -> None:
        from mm1_pipeline.evaluation.generation import Generator
        from mm1_pipeline.models.checkpoint import WEIGHTS, load_model
        from mm1_pipeline.streams.tokenizer import Tokenizer

        assert config.checkpoint is not None, "SynthesisConfig is checked"
        assert config.tokenizer is not None, "SynthesisConfig is checked"
        self._config, self._instruction = config, instruction
        self._tokenizer = Tokenizer.load(config.tokenizer)
        model = load_model(Path(config.checkpoint)).eval()
        features = cast(Any, _NoImages())
        self._generator = Generator(model, self._tokenizer, features, config.batch_size)
        with (Path(config.checkpoint) / WEIGHTS).open("rb") as weights:
            self._sha256 = hashlib.file_digest(weights, "sha256").hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes of weights and tokenizer, and the length of an answer."""
        return {
            "writer": "local",
            "model": self._sha256,
            "version": 1,
            "tokenizer_sha256": self._tokenizer.sha256,
            "max_new_tokens": self._config.max_new_tokens,
        }

    def prompt(self, request: CaptionRequest) -> str:
        """What the model reads."""
        return request.prompt(self._instruction)

    def write(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        """Answers all requests together."""
        from mm1_pipeline.evaluation.prompts import Prompt
        from mm1_pipeline.streams.serialization import serialize

        prompts = []
        for request in requests:
            text = self.prompt(request)
            segments = [Segment.of_text(text)]
            tokens = serialize(segments, self._tokenizer, image_tokens=1, end=False)
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            prompts.append(Prompt(request.key, (), text, digest, tokens.input_ids, ()))
        answers = self._generator.generate(
            prompts, max_new_tokens=self._config.max_new_tokens, stop=_STOP
        )
        return [
            answer.text.partition(_STOP[0])[0].strip()
            if answer.failure is None
            else Rejected(Reason.REWRITE_FAILED, answer.failure)
            for answer in answers
        ]


class _NoImages:
    """Stands where a generator asks for image features: these prompts show none."""

    def expect(self, keys: Iterable[str]) -> None:
        """Expects nothing."""
        assert not list(keys), "prompts of captions show no images"

    def failure(self, keys: Sequence[str]) -> str | None:
        """Nothing can fail."""
        return None

    def identity(self, key: str) -> str:
        """Never asked."""
        raise AssertionError("prompts of captions show no images")
