"""Log-likelihood of continuations: how probable a model finds a text after another.

A context and its continuation are encoded together, so that a token may not straddle their
border unseen; spaces at the end of a context belong to the continuation. Both as
lm-evaluation-harness does it. BOS stands first, as in training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from mm1_pipeline.evaluation.generation.answer_log import Answer, AnswerLog
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.tokenizer import Tokenizer

MAX_POSITIONS = 8_192
"""Positions computed together. Our choice."""


class Likelihood(NamedTuple):
    """What a model thinks of one continuation."""

    log_likelihood: float
    """Sum over its tokens, natural logarithm."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one."""


class Encoder(Protocol):
    """What turns text into token ids."""

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        ...


def encode_pair(context: str, continuation: str, encoder: Encoder) -> tuple[list[int], list[int]]:
    """Token ids of a context and of the continuation after it.

    Source: lm-evaluation-harness.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole, context_ids = encoder.encode(kept + continuation), encoder.encode(kept)
    return context_ids, whole[len(context_ids) :]


@torch.inference_mode()
def log_likelihoods(
    model: MM1,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    advance: Callable[[int], None] = lambda _count: None,
    max_positions: int = MAX_POSITIONS,
    log: AnswerLog | None = None,
) -> list[Likelihood]:
    """Scores continuations, many in one packed pass.

    What is computed together depends on the pairs alone, so a run that goes on from a log gives
    the very numbers of a whole run.

    Args:
        model: In evaluation mode.
        tokenizer: The one the model was trained with.
        pairs: Context and continuation each.
        advance: Called with the number of pairs that were just scored.
        max_positions: Positions computed together; one pair is always taken.
        log: Gets the scores as they come; groups that it holds are not computed again.

    Raises:
        ValueError: If a continuation has no token of its own.
    """
    encoded = []
    for context, continuation in pairs:
        before, after = encode_pair(context, continuation, tokenizer)
        if not after:
            raise ValueError(f"Found no token in the continuation {continuation!r}.")
        encoded.append(([tokenizer.bos_id, *before, *after], len(after)))
    found: dict[int, Likelihood] = {}
    order = sorted(range(len(encoded)), key=lambda index: (-len(encoded[index][0]), index))
    start = 0
    while start < len(order):
        end, total = start + 1, len(encoded[order[start]][0])
        while end < len(order) and total + len(encoded[order[end]][0]) <= max_positions:
            total += len(encoded[order[end]][0])
            end += 1
        batch = order[start:end]
        keys = [_log_key(index, pairs[index]) for index in batch]
        scored = _logged(log, keys)
        if scored is None:
            scored = _score(model, [encoded[index] for index in batch])
            if log is not None:
                log.append(zip(keys, map(_as_answer, scored), strict=True))
        found |= dict(zip(batch, scored, strict=True))
        advance(len(batch))
        start = end
    return [found[index] for index in range(len(pairs))]


def _log_key(index: int, pair: tuple[str, str]) -> str:
    # With its place: equal pairs of different groups may differ in the last digits.
    return hashlib.sha256(json.dumps([index, *pair]).encode()).hexdigest()


def _as_answer(likelihood: Likelihood) -> Answer:
    return Answer(json.dumps(likelihood))


def _logged(log: AnswerLog | None, keys: Sequence[str]) -> list[Likelihood] | None:
    """The scores of a whole group, if all of them were logged."""
    if log is None:
        return None
    answers = [log.get(key) for key in keys]
    known = [answer for answer in answers if answer is not None]
    if len(known) < len(keys):
        return None
    return [Likelihood(*json.loads(answer.text)) for answer in known]


def _score(model: MM1, batch: Sequence[tuple[list[int], int]]) -> list[Likelihood]:
    """Scores sequences whose last `count` tokens are continuations, laid end to end."""
    weight = model.decoder.embedding.weight
    lengths = [len(ids) for ids, _ in batch]
    input_ids = torch.tensor([token for ids, _ in batch for token in ids], device=weight.device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(weight.device)
    borders = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(weight.device)
    size = model.config.vision.image_size
    no_images = torch.zeros(0, 3, size, size, dtype=weight.dtype, device=weight.device)
    hidden = model(input_ids[None], positions[None], borders, no_images).hidden[0]
    ends = borders[1:].tolist()
    scored = []
    for end, (_, count) in zip(ends, batch, strict=True):
        logits = model.logits(hidden[end - count - 1 : end - 1])
        targets = input_ids[end - count : end]
        log_probabilities = logits.log_softmax(-1).gather(1, targets[:, None]).double()
        is_greedy = bool((logits.argmax(-1) == targets).all())
        scored.append(Likelihood(float(log_probabilities.sum()), is_greedy))
    return scored
