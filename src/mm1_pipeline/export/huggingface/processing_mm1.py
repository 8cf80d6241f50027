"""Text with images to what the model reads."""

# pyright: reportIncompatibleMethodOverride=false, reportCallIssue=false
# The signatures are those that transformers documents for such classes, not those it writes.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.utils import logging

logger = logging.get_logger(__name__)

_MARK = "\u2060"
"""A word joiner. Inside a special token, it says that a user wrote the token."""
_SOURCES = ("image", "url", "path", "base64", "image_url")
_OPTIONS = frozenset(
    {"padding", "truncation", "max_length", "pad_to_multiple_of", "padding_side"}
    | {"return_attention_mask", "return_tensors", "add_special_tokens", "input_data_format"}
    | {"images", "text_kwargs", "images_kwargs", "common_kwargs"}
)


class MM1Processor(ProcessorMixin):
    """Puts an image's placeholders where the text says `<|image|>`, and pixels beside.

    Args:
        image_processor: makes pixel values.
        tokenizer: makes token ids.
        image_tokens: positions that a sub-image takes.
        image_token: what stands for an image in a text.
        chat_template: see transformers.
        **kwargs: what transformers passes to every processor.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012  the name that transformers reads
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"
    tokenizer: Any
    image_processor: Any

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_tokens: int = 0,
        image_token: str = "<|image|>",  # noqa: S107  no password
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_tokens = image_tokens
        self.image_token = image_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of the model.

        Training documents begin with BOS, so a text that does not gets one. In a text that does,
        as those of `apply_chat_template`, all special tokens count; in any other only the image's
        placeholder does, and the rest is text, whatever it says.

        Args:
            images: in the order of their `<|image|>`, over all texts; see `read_images` for what
                an image may be. A list for each text is checked against it.
            text: one or several.
            videos: none.
            audio: none.
            **kwargs: `padding`, `truncation`, `max_length`, `pad_to_multiple_of`, `padding_side`,
                `return_attention_mask`, `return_tensors` (`pt`), `add_special_tokens` as of a
                tokenizer, `input_data_format` as of an image processor.

        Returns:
            input_ids, attention_mask and, with images, pixel_values.

        Raises:
            ValueError: images and placeholders do not match, or truncation would part them.
        """
        if videos is not None or audio is not None:
            raise ValueError("Found videos or audio, but this model reads images and text.")
        if _is_text(images) and text is not None and not _is_text(text):
            images, text = text, images
        elif _is_text(images) and _is_text(text) and self._says_image(images):
            images, text = text, images  # paths or URLs of images behind the text
        options = {"return_tensors": "pt"}
        for group in ("common_kwargs", "images_kwargs", "text_kwargs"):
            options |= kwargs.pop(group, None) or {}
        options |= kwargs
        if unknown := options.keys() - _OPTIONS:
            logger.warning(f"{type(self).__name__} passes over {', '.join(sorted(unknown))}.")
        content: dict[str, Any] = {}
        num_sub_images: list[int] = []
        if images is not None:
            processed = self.image_processor(
                images, input_data_format=options.get("input_data_format")
            )
            content["pixel_values"] = processed["pixel_values"]
            num_sub_images = processed["num_sub_images"].tolist()
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            self._check_counts(texts, images, len(num_sub_images))
            counts = iter(num_sub_images)
            rows = [self._token_ids(each, counts, options) for each in texts]
            content = {**self._padded(rows, options), **content}
        return BatchFeature(content, tensor_type=options["return_tensors"])

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text of one or several conversations, or the model's inputs.

        Special tokens that a message writes stay text: they are marked, and `__call__` takes the
        marks out. Texts begin with BOS, whatever the template.

        Args:
            conversation: messages with `role` and `content`, a text or a list of parts
                (`{"type": "text", "text": ...}`, `{"type": "image", "image": ...}`, also with
                `url`, `path`, `base64` or OpenAI's `image_url`); or a list of conversations.
            chat_template: instead of the processor's.
            tokenize: whether to return token ids instead of text.
            return_dict: whether to return all inputs of the model, not the token ids alone.
            processor_kwargs: as `__call__` takes them; they may stand among the others too.
            **kwargs: variables of the template, `add_generation_prompt`,
                `continue_final_message`. The template ends a user's turn with the assistant's cue,
                as in training, so a generation prompt adds nothing.
        """
        if kwargs.pop("return_assistant_tokens_mask", None):
            raise ValueError("return_assistant_tokens_mask: this processor makes none.")
        is_single = isinstance(conversation[0], Mapping)
        chats = [conversation] if is_single else conversation
        sources: list[list[Any]] = [[] for _ in chats]
        messages = [
            [self._marked(message, found) for message in getattr(chat, "messages", chat)]
            for chat, found in zip(chats, sources, strict=True)
        ]
        template = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        rendered = super().apply_chat_template(messages, chat_template, tokenize=False, **template)
        bos = self.tokenizer.bos_token
        texts = [text if text.startswith(bos) else f"{bos}{text}" for text in rendered]
        if not tokenize:
            return texts[0] if is_single else texts
        options = {**(processor_kwargs or {}), **{n: kwargs[n] for n in kwargs if n in _OPTIONS}}
        if options.get("return_tensors") == "auto":
            del options["return_tensors"]
        images = options.pop("images", None)
        if images is None and any(sources):
            images = sources
        inputs = self(images=images, text=texts, **options)
        return inputs if return_dict else inputs["input_ids"]

    def _marked(self, message: Mapping[str, Any], sources: list[Any]) -> dict[str, Any]:
        """A message with its special tokens marked; its images are added to the sources."""
        content = message.get("content") or ""
        if isinstance(content, str):
            return {**message, "content": self._escape(content)}
        parts: list[dict[str, Any]] = []
        for each in content:
            part: Mapping[str, Any] = {"text": each} if isinstance(each, str) else each
            kind = part.get("type", "text")
            if kind == "text":
                parts.append({"type": "text", "text": self._escape(part.get("text") or "")})
            elif kind in ("image", "image_url"):
                given = [part[key] for key in _SOURCES if part.get(key) is not None][:1]
                sources += [one["url"] if isinstance(one, Mapping) else one for one in given]
                parts.append({"type": "image"})
            else:
                raise ValueError(f"Found a part of type {kind!r}, expected text or image.")
        return {**message, "content": parts}

    def _escape(self, text: str) -> str:
        """Marks special tokens; one that is marked already gets another mark."""
        for token in self._special_tokens():
            first, rest = map(re.escape, (token[0], token[1:]))
            text = re.sub(f"({first})({_MARK}*{rest})", rf"\1{_MARK}\2", text)
        return text

    def _unescape(self, text: str) -> str:
        for token in self._special_tokens():
            first, rest = map(re.escape, (token[0], token[1:]))
            text = re.sub(f"({first}){_MARK}({_MARK}*{rest})", r"\1\2", text)
        return text

    def _special_tokens(self) -> list[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return sorted((token.content for token in added if token.special), key=len, reverse=True)

    def _token_ids(self, text: str, counts: Iterator[int], options: Mapping[str, Any]) -> list[int]:
        """Token ids of a text; as in training, what parts special tokens is encoded alone."""
        tokenizer = self.tokenizer
        image_id = tokenizer.convert_tokens_to_ids(self.image_token)
        is_prompt = text.startswith(tokenizer.bos_token)
        special = self._special_tokens() if is_prompt else [self.image_token]
        begins = not is_prompt and options.get("add_special_tokens", True)
        ids: list[int] = [tokenizer.bos_token_id] if begins else []
        for piece in re.split(f"({'|'.join(map(re.escape, special))})", text):
            if piece == self.image_token:
                ids += [image_id] * (self.image_tokens * next(counts))
            elif piece in special:
                ids.append(tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                plain = self._unescape(piece) if is_prompt else piece
                encoded = tokenizer(plain, add_special_tokens=False, split_special_tokens=True)
                ids += encoded["input_ids"]
        limit = options.get("max_length") or tokenizer.model_max_length
        if options.get("truncation") in (None, False, "do_not_truncate") or len(ids) <= limit:
            return ids
        kept = ids[:limit] if tokenizer.truncation_side == "right" else ids[-limit:]
        if kept.count(image_id) < ids.count(image_id):
            raise ValueError(
                f"Found {len(ids)} tokens, and truncation to {limit} would cut placeholders of "
                "images. Raise max_length, or give fewer or smaller images."
            )
        return kept

    def _padded(self, rows: list[list[int]], options: Mapping[str, Any]) -> dict[str, Any]:
        names = ("padding", "max_length", "pad_to_multiple_of", "padding_side")
        given = {name: options[name] for name in names if options.get(name) is not None}
        # No warning that padding is faster together with encoding, which happens piece by piece.
        self.tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        padded = self.tokenizer.pad(
            {"input_ids": rows},
            **{"padding": False, **given},
            return_attention_mask=options.get("return_attention_mask", True),
        )
        lengths = {len(row) for row in padded["input_ids"]}
        if len(lengths) > 1 and options["return_tensors"] is not None:
            raise ValueError(
                f"Found texts of {min(lengths)} to {max(lengths)} tokens, which no tensor holds. "
                "Give padding=True."
            )
        return dict(padded)

    def _says_image(self, value: Any) -> bool:
        return any(
            self.image_token in each for each in ([value] if isinstance(value, str) else value)
        )

    def _check_counts(self, texts: Sequence[str], images: Any, num_images: int) -> None:
        found = [text.count(self.image_token) for text in texts]
        if sum(found) != num_images:
            raise ValueError(
                f"Found {sum(found)} times {self.image_token} in the texts but {num_images} images."
                " Write it once where each image stands; in a chat message's text it stays text."
            )
        if isinstance(images, (list, tuple)) and len(images) == len(texts):
            given = [len(each) if isinstance(each, (list, tuple)) else None for each in images]
            if None not in given and given != found:
                raise ValueError(
                    f"Found {found} times {self.image_token} in the texts but {given} images. Give "
                    "each text its own."
                )


def _is_text(value: Any) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) > 0
    return isinstance(value, str) or (is_list and all(isinstance(each, str) for each in value))
