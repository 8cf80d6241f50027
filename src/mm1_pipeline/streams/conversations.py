r"""The one rule from conversations to tokens, for SFT, evaluation and chat alike.

A worked example with two tokens an image; `|` parts what is encoded separately:

    turns      system "Be brief."   human image, "What is it?"   assistant "A cat."
               human "Sure?"   assistant "Yes."

    text       <bos> "System: Be brief.\n" | "User:" <img> <img> " What is it?\nAssistant:" |
               " A cat." <eos> | "User: Sure?\nAssistant:" | " Yes." <eos>
    loss_mask  1 on " A cat." <eos> and " Yes." <eos>, 0 elsewhere

Roles are plain text, so that any tokenizer and any pre-trained model can be used. What parts
the turns is EOS, which no text can forge: only an answer is followed by it. A prompt is a
conversation that ends with the human's turn, and is thus the beginning of a trained one.
Inside a turn the rules of `streams.serialization` hold.

Source: MM1, SFT (loss on the answers only); the template is our choice, the paper names none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from mm1_pipeline.config.shard import PackingConfig
from mm1_pipeline.corpus.records import Record
from mm1_pipeline.streams.serialization import SegmentLike, TokenizedDocument, join_texts
from mm1_pipeline.streams.tokenizer import Tokenizer

SYSTEM, USER, ASSISTANT = "System:", "User:", "Assistant:"

CHAT_TEMPLATE = """\
{%- macro plain(text) %}
  {{- text | trim | replace('<|image|>', '<\\u2060|image|>') | replace('<|eos|>', '<\\u2060|eos|>')
      | replace('<|bos|>', '<\\u2060|bos|>') | replace('<|pad|>', '<\\u2060|pad|>') }}
{%- endmacro %}
{{- bos_token }}
{%- set state = namespace(after='') %}
{%- for message in messages %}
  {%- if message.role not in ('system', 'user', 'assistant') %}
    {{- raise_exception('Found role ' + message.role + ', expected system, user or assistant.') }}
  {%- endif %}
  {%- if loop.first or loop.previtem.role != message.role %}
    {%- set state.after = 'cue' %}
    {{- {'system': 'System:', 'user': 'User:', 'assistant': ''}[message.role] }}
  {%- endif %}
  {%- set content = message.content or '' %}
  {%- for part in ([{'type': 'text', 'text': content}] if content is string else content) %}
    {%- if part.type == 'image' %}
      {{- ('\\n' if state.after == 'text' else '') + '<|image|>' }}
      {%- set state.after = 'image' %}
    {%- elif part.text | trim %}
      {{- ('\\n' if state.after == 'text' else ' ') + plain(part.text) }}
      {%- set state.after = 'text' %}
    {%- endif %}
  {%- endfor %}
  {%- if loop.last or loop.nextitem.role != message.role %}
    {{- {'system': '\\n', 'user': '\\nAssistant:', 'assistant': eos_token}[message.role] }}
  {%- endif %}
{%- endfor -%}
"""
"""The same rule as a Jinja template for an exported tokenizer: neighbours of one role are one
turn, contents are a text or a list of parts. `<|image|>` stands once an image; the processor
repeats it for the image's tokens. Special tokens that a message writes are parted by a word
joiner, so that they stay text; the processor takes it out again."""


class TurnSegment(SegmentLike, Protocol):
    """A segment of a conversation."""

    @property
    def role(self) -> str | None:
        """`system`, `human` or `assistant`."""
        ...


def serialize_conversation(
    segments: Iterable[TurnSegment],
    tokenizer: Tokenizer,
    image_tokens: int,
    *,
    num_sub_images: Sequence[int] | None = None,
    begin: bool = True,
) -> TokenizedDocument:
    """Turns a conversation into tokens, with the loss on the assistant's answers only.

    Args:
        segments: Turns in their order; neighbours of one role are one turn.
        tokenizer: Encodes the text.
        image_tokens: Positions one sub-image takes.
        num_sub_images: Of each image, by its index (`streams.sub_images`); None is one each.
        begin: Whether BOS stands first.

    Returns:
        The document. Image k of `images` owns the next `num_sub_images` runs of image tokens. A
        conversation that ends with the human's turn ends with the assistant's cue.

    Raises:
        ValueError: A segment has no role, or a role without a template.
    """
    input_ids: list[int] = [tokenizer.bos_id] if begin else []
    loss_mask: list[bool] = [False] * len(input_ids)
    images: list[int] = []
    for role, turn in itertools.groupby(segments, key=lambda segment: segment.role):
        is_answer = role == "assistant"
        for part in _turn_parts(role, join_texts(turn)):
            if isinstance(part, str):
                ids = tokenizer.encode(part)
            else:
                ids = [tokenizer.image_id] * (
                    image_tokens * (1 if num_sub_images is None else num_sub_images[part])
                )
                images.append(part)
            input_ids += ids
            loss_mask += [is_answer] * len(ids)
        if is_answer:
            input_ids.append(tokenizer.eos_id)
            loss_mask.append(True)
    return TokenizedDocument(
        np.array(input_ids, dtype=np.int32), np.array(loss_mask, dtype=np.bool_), images
    )


def fit_conversation(
    document: TokenizedDocument,
    tokenizer: Tokenizer,
    packing: PackingConfig,
    num_sub_images: Sequence[int],
) -> TokenizedDocument | None:
    """Leaves out the last exchanges of a conversation that does not fit a sequence.

    A piece that began in the middle would ask about images that it does not show, so nothing
    is carried over to another sequence.

    Args:
        document: From `serialize_conversation`.
        tokenizer: The one it was made with.
        packing: Positions and images of a sequence.
        num_sub_images: Sub-images of each image, by its index.

    Returns:
        The exchanges that fit; None where not even the first does.
    """
    ends = np.flatnonzero(document.input_ids == tokenizer.eos_id) + 1
    image_positions = np.cumsum(document.input_ids == tokenizer.image_id)
    shown_so_far = np.cumsum([num_sub_images[index] for index in document.images], dtype=np.int64)
    for end in ends[::-1].tolist():
        num_shown = int(image_positions[end - 1]) // packing.image_tokens
        if end <= packing.sequence_length and num_shown <= packing.max_images:
            num_images = int(np.searchsorted(shown_so_far, num_shown, side="right"))
            shown = document.images[:num_images]
            return TokenizedDocument(document.input_ids[:end], document.loss_mask[:end], shown)
    return None


def tokenize_conversation(
    record: Record, tokenizer: Tokenizer, packing: PackingConfig, num_sub_images: Sequence[int]
) -> tuple[TokenizedDocument | None, int]:
    """A conversation in tokens, cut to fit, and its positions (`partition_writer.Tokenize`)."""
    whole = serialize_conversation(
        record.segments, tokenizer, packing.image_tokens, num_sub_images=num_sub_images
    )
    fitting = fit_conversation(whole, tokenizer, packing, num_sub_images)
    return fitting, len(whole.input_ids)


def _turn_parts(role: str | None, parts: list[str | int]) -> list[str | int]:
    """A turn's texts and images with the words around them."""
    match role:
        case "system":
            return _after(f"{SYSTEM}", [*parts, "\n"])
        case "human":
            return _after(USER, [*parts, f"\n{ASSISTANT}"])
        case "assistant":
            return [f" {part}" if isinstance(part, str) else part for part in parts]
        case _:
            raise ValueError(
                f"Found a segment of role {role!r}, expected 'system', 'human' or 'assistant'."
            )


def _after(cue: str, parts: list[str | int]) -> list[str | int]:
    """Parts after the cue; neighbouring texts become one, so that they are encoded as one."""
    joined: list[str | int] = [cue]
    for place, part in enumerate(parts):
        last = joined[-1]
        if isinstance(part, int) or isinstance(last, int):
            joined.append(part)
        else:
            gap = " " if place == 0 and len(parts) > 1 else ""
            joined[-1] = f"{last}{gap}{part}"
    return joined
