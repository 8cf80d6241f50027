"""Models of this project that write captions: from a prompt, or from an image.

Staleness does not follow this module, which reaches half of the project (see settings.py):
`caption_writer.LOCAL_VERSION` stands for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from mm1_pipeline.config.conversation_prompts import ONE_SENTENCE
from mm1_pipeline.config.synthesis import CaptionerConfig, LocalModelConfig
from mm1_pipeline.corpus.records import RecordImage, Role, Segment
from mm1_pipeline.corpus.synthesis.concepts import one_line
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest
from mm1_pipeline.evaluation.chat import ChatModel
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.prompts.resolution import sub_image_keys
from mm1_pipeline.ground.files import hash_file
from mm1_pipeline.ground.rejects import Reason, Rejected
from mm1_pipeline.models.checkpoint import CONFIG, WEIGHTS, check_finite
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.shard_index import SHARDS_FILE
from mm1_pipeline.streams.sub_images import count_sub_images

_STOP = ("\n",)


class LocalWriter:
    """A model of this project goes on where the instruction ends, greedily.

    Text goes in and text comes out, as in VeCap: what the image shows reaches the model as
    concepts. Only a model that has learned to follow instructions gives captions worth having.

    Args:
        config: Checkpoint, tokenizer, length of an answer.
        instruction: The prompt's template.
        version: Counts in the cache's keys; LOCAL_VERSION of `caption_writer`.

    Raises:
        ValueError: The model cannot be read, or the tokenizer is not its own.
    """

    def __init__(self, config: LocalModelConfig, instruction: str, version: int) -> None:
        assert config.checkpoint is not None, "SynthesisConfig is checked"
        assert config.tokenizer is not None, "SynthesisConfig is checked"
        self._config, self._instruction, self._version = config, instruction, version
        self._chat = _open(config.checkpoint, config.tokenizer)
        self._sha256 = hash_file(Path(config.checkpoint) / WEIGHTS, "sha256")
        features = cast(Any, _NoImages())
        chat = self._chat
        self._generator = Generator(chat.model, chat.tokenizer, features, config.batch_size)

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes of weights and tokenizer, and the length of an answer."""
        return {
            "writer": "local",
            "model": self._sha256,
            "version": self._version,
            "tokenizer_sha256": self._chat.tokenizer.sha256,
            "max_new_tokens": self._config.max_new_tokens,
        }

    def prompt(self, request: CaptionRequest) -> str:
        """What the model reads."""
        return request.prompt(self._instruction)

    def write(self, requests: Sequence[CaptionRequest]) -> list[str | Rejected]:
        """Answers all requests together."""
        prompts = []
        for request in requests:
            text = self.prompt(request)
            segments = [Segment.of_text(text)]
            tokens = serialize(segments, self._chat.tokenizer, image_tokens=1, end=False)
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


class ModelCaptioner:
    """A model of this project says what an image shows, greedily: the concept `caption`.

    Args:
        config: Checkpoint, tokenizer, how it was shown images, what it is asked.
        version: Counts in the cache's keys; LOCAL_VERSION of `caption_writer`.

    Raises:
        ValueError: The model cannot be read, or tokenizer or shards are not its own.
    """

    names = ("caption",)

    def __init__(self, config: CaptionerConfig, version: int) -> None:
        assert config.checkpoint is not None, "SynthesisConfig is checked"
        assert config.tokenizer is not None, "SynthesisConfig is checked"
        self._config, self._version = config, version
        self._chat = _open(config.checkpoint, config.tokenizer, config.shards)
        folder = Path(config.checkpoint)
        self._sha256 = {name: hash_file(folder / name, "sha256") for name in (WEIGHTS, CONFIG)}

    @property
    def provenance(self) -> dict[str, Any]:
        """Hashes of weights, shapes and tokenizer; how images are shown and what is asked."""
        chat = self._chat
        shown = [repr(chat.transform), repr(chat.sub_images)]
        return {
            "captioner": "local",
            "model": self._sha256[WEIGHTS],
            "config_sha256": self._sha256[CONFIG],
            "version": self._version,
            "tokenizer_sha256": chat.tokenizer.sha256,
            "images_sha256": hashlib.sha256(json.dumps(shown).encode()).hexdigest(),
            "style": self._config.style,
            "prompt": self._text,
            "max_new_tokens": self._config.max_new_tokens,
        }

    @property
    def _text(self) -> str:
        default = ONE_SENTENCE if self._config.style == "chat" else ""
        return default if self._config.prompt is None else self._config.prompt

    def detect(self, images: Sequence[RecordImage]) -> list[dict[str, str] | Rejected]:
        """A caption of each image; nothing where the model says nothing."""
        chat = self._chat
        # Features remember what they were asked for, so each call has its own.
        encoded = {image.sha256: image.bytes for image in images}
        features = ImageFeatures(chat.model, encoded, chat.transform, sub_images=chat.sub_images)
        generator = Generator(chat.model, chat.tokenizer, features, self._config.batch_size)
        answers = generator.generate(
            [self._prompt(image) for image in images],
            max_new_tokens=self._config.max_new_tokens,
            stop=_STOP,
        )
        return [
            _concept(answer.text)
            if answer.failure is None
            else Rejected(Reason.CONCEPTS_FAILED, f"caption: {answer.failure}")
            for answer in answers
        ]

    def _prompt(self, image: RecordImage) -> Prompt:
        chat = self._chat
        tokens = chat.model.config.connector.num_tokens
        num_sub_images = (
            count_sub_images(image.width, image.height, chat.transform, chat.sub_images),
        )
        if self._config.style == "chat":
            turn = [Segment.of_image(0, Role.HUMAN), Segment.of_text(self._text, Role.HUMAN)]
            document = serialize_conversation(
                turn, chat.tokenizer, tokens, num_sub_images=num_sub_images
            )
        else:
            text = [Segment.of_text(self._text)] if self._text.strip() else []
            segments = [Segment.of_image(0), *text]
            document = serialize(
                segments, chat.tokenizer, tokens, num_sub_images=num_sub_images, end=False
            )
        keys = tuple(sub_image_keys(image.sha256, num_sub_images[0]))
        return Prompt(image.sha256, (), "", image.sha256, document.input_ids, keys)


def _concept(text: str) -> dict[str, str]:
    words = one_line(text.partition(_STOP[0])[0])
    return {"caption": words} if words else {}


def _open(checkpoint: str, tokenizer: str, shards: str | None = None) -> ChatModel:
    folder = None if shards is None else Path(shards)
    if folder is not None and folder.name == SHARDS_FILE:
        folder = folder.parent
    chat = ChatModel.open(Path(checkpoint), Path(tokenizer), folder)
    check_finite(chat.model, checkpoint)
    return chat


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
