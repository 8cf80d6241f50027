"""A conversation with a checkpoint: the words and sub-images of its fine-tuning, turn by turn."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Generator as Growing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mm1_pipeline.config.shard import ImageTransform, SubImageConfig
from mm1_pipeline.corpus.images import RejectedImage, check_image
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.evaluation.prompts.resolution import sub_image_keys
from mm1_pipeline.evaluation.replies import is_of_another_kind, loop_length
from mm1_pipeline.models.checkpoint import load_model
from mm1_pipeline.models.device import usable_device
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.sub_images import count_sub_images
from mm1_pipeline.streams.tokenizer import Tokenizer

DEFAULT_POSITIONS = 4_096
"""Of a conversation with a model whose shards are not named. Source: MM1, Pre-training."""
NOTICE = "⚠"
"""Begins what is said in the place of an answer, by no model."""
_CHARACTERS_A_POSITION = 32
"""No text of more characters fits, so that a longer one is refused before it is cut into tokens."""


class TooLongError(ValueError):
    """What is said, with what was said before, is longer than what the model was trained on."""


@dataclass(frozen=True)
class ChatModel:
    """A checkpoint with what is needed to talk to it.

    Attributes:
        model: In evaluation mode.
        tokenizer: The one it was trained with.
        transform: How images become sub-images.
        sub_images: Which sub-images show a large image.
        max_new_tokens: Tokens after which an answer is cut off.
        max_positions: Of a conversation with its next answer: the length that the model was
            trained on, beyond which it says nothing of worth.
        purpose: What the model was trained for, said in the place of what is no answer.
        card: What it is, as Markdown.
        examples: Things to say with a picture each, which it was not trained on.
        known_words: Of the people in the conversations that it learnt from, in lower case; none
            where they are not known.
    """

    model: MM1
    tokenizer: Tokenizer
    transform: ImageTransform
    sub_images: SubImageConfig = field(default_factory=SubImageConfig)
    max_new_tokens: int = 128
    max_positions: int = DEFAULT_POSITIONS
    purpose: str = ""
    card: str = ""
    examples: tuple[tuple[str, bytes], ...] = ()
    known_words: frozenset[str] = frozenset()

    @classmethod
    def open(
        cls,
        model_dir: Path,
        tokenizer_dir: Path,
        shards_dir: Path | None = None,
        *,
        max_new_tokens: int = 128,
    ) -> ChatModel:
        """Reads any checkpoint of the pipeline: pre-trained, upcycled or fine-tuned.

        Args:
            model_dir: What `save_model` wrote.
            tokenizer_dir: Holds `tokenizer.json`.
            shards_dir: What the model was trained on, for its image transform; None shows an
                image as one padded square.
            max_new_tokens: Tokens after which an answer is cut off; at most half of what the
                model was trained on.

        Raises:
            ValueError: The three do not belong together.
        """
        device = usable_device("auto")
        model, tokenizer = load_model(model_dir, device).eval(), Tokenizer.load(tokenizer_dir)
        transform, sub_images = ImageTransform(size=model.config.vision.image_size), None
        max_positions = DEFAULT_POSITIONS
        if shards_dir is not None:
            index = ShardIndex.read(shards_dir)
            transform, sub_images = index.image, index.sub_images
            if tokenizer.sha256 != index.tokenizer_sha256:
                raise ValueError(
                    f"{tokenizer_dir}: found the tokenizer {tokenizer.sha256[:12]}, expected "
                    f"{index.tokenizer_sha256[:12]}, the one of the shards that the model was "
                    "trained on: with any other, its answers are letters without sense. Name it "
                    "with --tokenizer."
                )
            max_positions = index.packing.sequence_length
        _check_fits(model, tokenizer, transform, model_dir)
        # The question needs room as well.
        max_new_tokens = min(max_new_tokens, max_positions // 2)
        sub_images = sub_images or SubImageConfig()
        return cls(model, tokenizer, transform, sub_images, max_new_tokens, max_positions)


class Conversation:
    """What has been said so far.

    Args:
        chat: The model that answers.
    """

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self._segments: list[Segment] = []
        self._images: list[str] = []
        self._data: dict[str, bytes] = {}
        self._num_sub_images: list[int] = []
        self._exchanges: list[tuple[list[Segment], list[str], list[int]]] = []

    def ask(self, text: str, images: Sequence[bytes] = ()) -> str:
        """Says something to the model and gives its answer; see `stream`."""
        answer = ""
        for answer in self.stream(text, images):  # noqa: B007 - the last one is wanted
            pass
        return answer

    def stream(self, text: str, images: Sequence[bytes] = ()) -> Growing[str, None, None]:
        """Says something to the model and gives its answer as it grows.

        An error leaves the conversation as it was. Whoever stops asking for more ends the answer
        there, and it counts as said.

        Args:
            text: What the human says; may be empty beside an image.
            images: Encoded images, shown before the text.

        Yields:
            The answer up to now, greedy as in evaluation; the last one is whole. In the place of
            what is no answer (`evaluation.replies`) stands why, and what the model was trained for.

        Raises:
            ValueError: There is neither text nor image, or an image cannot be read.
        """
        if not text.strip() and not images:
            raise ValueError("Found an empty message, expected text or an image.")
        chat = self._chat
        if is_of_another_kind(text, chat.known_words):
            yield self._notice(
                "Most words of this message are in nothing that people said in my training"
            )
            return
        turn: list[Segment] = []
        names, num_sub_images = list(self._images), list(self._num_sub_images)
        try:
            self._check_size(text, images)
            for data in images:
                num_sub_images.append(self._count_sub_images(data))
                names.append(self._take(data))
                turn.append(Segment.of_image(len(names) - 1, Role.HUMAN))
            turn.append(Segment.of_text(text, Role.HUMAN))
            prompt = self._prompt([*self._segments, *turn], names, num_sub_images)
        except TooLongError as error:
            if not chat.purpose:
                raise
            yield self._notice(str(error))
            return
        answer, is_error = "", False
        try:
            for said, is_loop in self._grow(prompt):
                answer = "" if is_loop else said
                yield (
                    self._notice("The answer ran in a circle and was stopped") if is_loop else said
                )
        except Exception:
            is_error = True
            raise
        finally:  # Also where nobody asked for the rest.
            if not is_error:
                self._exchanges.append((self._segments, self._images, self._num_sub_images))
                self._images, self._num_sub_images = names, num_sub_images
                turn.append(Segment.of_text(answer or ".", Role.ASSISTANT))
                self._segments = [*self._segments, *turn]

    @property
    def num_exchanges(self) -> int:
        """How many were answered by the model."""
        return len(self._exchanges)

    def undo(self) -> None:
        """Takes back the last exchange; nothing where there is none."""
        if self._exchanges:
            self._segments, self._images, self._num_sub_images = self._exchanges.pop()

    def _notice(self, why: str) -> str:
        """Said in the place of an answer; no part of the conversation."""
        return f"{NOTICE} {why.rstrip('.')}. {self._chat.purpose}".strip()

    def _check_size(self, text: str, images: Sequence[bytes]) -> None:
        """Refuses what cannot fit before any of it is decoded, cut into tokens or computed."""
        chat = self._chat
        room = chat.max_positions - chat.max_new_tokens
        if len(text) > room * _CHARACTERS_A_POSITION:
            raise TooLongError(
                f"Found a message of {len(text):,} characters; {room:,} positions are left for all "
                "that is said. Say it in fewer words."
            )
        tokens = chat.model.config.connector.num_tokens
        if (len(self._images) + len(images)) * tokens > room:
            raise TooLongError(
                f"Found {len(self._images) + len(images)} images in the conversation; "
                f"{room // tokens} of {tokens} positions fit. Begin anew, or show fewer."
            )

    def _take(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self._data[name] = data
        return name

    def _count_sub_images(self, data: bytes) -> int:
        try:
            width, height = check_image(data)
        except RejectedImage as error:
            raise ValueError(f"The image cannot be read: {error}") from error
        return count_sub_images(width, height, self._chat.transform, self._chat.sub_images)

    def _prompt(
        self, segments: list[Segment], names: list[str], num_sub_images: list[int]
    ) -> Prompt:
        chat = self._chat
        tokens = chat.model.config.connector.num_tokens
        document = serialize_conversation(
            segments, chat.tokenizer, tokens, num_sub_images=num_sub_images
        )
        length, allowed = len(document.input_ids), chat.max_positions - chat.max_new_tokens
        if length > allowed:
            raise TooLongError(
                f"Found a conversation of {length:,} positions; {allowed:,} and an answer of "
                f"{chat.max_new_tokens} are what the model was trained on. Begin anew, or say it "
                "in fewer words."
            )
        keys = tuple(
            key
            for index in document.images
            for key in sub_image_keys(names[index], num_sub_images[index])
        )
        return Prompt("", (), "", "", document.input_ids, keys)

    def _grow(self, prompt: Prompt) -> Iterator[tuple[str, bool]]:
        """The answer after each token, and whether it has fallen into a loop."""
        chat = self._chat
        features = ImageFeatures(chat.model, self._data, chat.transform, sub_images=chat.sub_images)
        generator = Generator(chat.model, chat.tokenizer, features, batch_size=1)
        said: queue.SimpleQueue[tuple[str, bool] | BaseException | None] = queue.SimpleQueue()
        is_stopped = threading.Event()

        def watch(tokens: Sequence[int], text: str) -> bool:
            is_loop = loop_length(tokens) > 0
            said.put((text.strip(), is_loop))
            return is_loop or is_stopped.is_set()

        def compute() -> None:
            try:
                (answer,) = generator.generate(
                    [prompt], max_new_tokens=chat.max_new_tokens, stop=(), watch=watch
                )
                if answer.failure:
                    raise ValueError(f"The image cannot be read: {answer.failure}")
                said.put(None)
            except BaseException as error:
                said.put(error)

        thread = threading.Thread(target=compute, name="answer", daemon=True)
        thread.start()
        try:
            while (item := said.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            is_stopped.set()
            thread.join()


def _check_fits(
    model: MM1, tokenizer: Tokenizer, transform: ImageTransform, model_dir: Path
) -> None:
    config = model.config
    if model.image_token_id != tokenizer.image_id or (
        config.decoder.vocab_size < tokenizer.vocab_size
    ):
        raise ValueError(
            f"{model_dir}: found a model for image token {model.image_token_id} and "
            f"{config.decoder.vocab_size} tokens, but a tokenizer with image token "
            f"{tokenizer.image_id} and {tokenizer.vocab_size} tokens; name the tokenizer that the "
            "model was trained with (--tokenizer)."
        )
    if config.vision.image_size != transform.size:
        raise ValueError(
            f"{model_dir}: found a model for images of {config.vision.image_size} pixels, but "
            f"shards with images of {transform.size}; name the shards that the model was trained "
            "on (--shards)."
        )
