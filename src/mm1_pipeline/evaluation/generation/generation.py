"""Greedy answers to many prompts: rows of a key-value cache that prompts enter and leave.

Three things are computed once that a plain loop computes again and again: an image, however
many prompts show it; a beginning that several prompts share; a prompt that is asked twice. And
nothing is computed for padding: new prompts are laid end to end, and a row whose answer is
complete makes room for the next prompt.

Shape letters: P new positions, n rows that are being answered, D decoder width.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mm1_pipeline.evaluation.answers.postprocess import has_stop
from mm1_pipeline.evaluation.generation.answer_log import Answer, AnswerLog
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.generation.prefixes import common_length, shared_prefixes
from mm1_pipeline.evaluation.prompts.prompts import Prompt
from mm1_pipeline.models.attention import KVCache
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.tokenizer import Tokenizer

GROUP_BATCHES = 8
"""A group of prompts, which is logged at its end, is this many batches. Our choice: a killed
run repeats one group at most, and a cache that empties at a group's end costs little."""

_REFILL_SHARE = 4
"""New prompts enter when a quarter of the rows is free. Our choice: reading a few prompts
together uses the machine better than reading one whenever a row is free."""

_MAX_ENTERING_POSITIONS = 32_768
"""Positions that are read in one call, which bounds memory; one prompt is always taken. Our
choice."""

Watch = Callable[[Sequence[int], str], bool]
"""Gets the tokens of an answer up to now and their text; says whether the answer ends there."""


@dataclass(frozen=True)
class _Question:
    """Prompts that look the same to the model, and how they are read."""

    prompt: Prompt
    members: tuple[int, ...]
    """Places of the prompts among all."""
    stream: np.ndarray
    """int32[length]; equal numbers at all positions mean equal input."""
    borders: tuple[int, ...]
    """Lengths of the beginnings that other questions share."""


@dataclass
class _Row:
    """A question that is being answered."""

    index: int
    """Place among the questions of its group."""
    num_positions: int
    """Positions that the cache holds."""
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    is_complete: bool = False


class Generator:
    """Answers prompts with a model's most likely tokens.

    Source: MM1, Evaluation (greedy decoding; unconfirmed).

    Args:
        model: In evaluation mode.
        tokenizer: The one the model was trained with.
        features: Gives the image tokens.
        batch_size: Prompts computed together.
    """

    def __init__(
        self, model: MM1, tokenizer: Tokenizer, features: ImageFeatures, batch_size: int
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._features = features
        self._batch_size = batch_size
        self._never = _never_generated(model, tokenizer)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        advance: Callable[[int], None] = lambda _count: None,
        log: AnswerLog | None = None,
        watch: Watch | None = None,
    ) -> list[Answer]:
        """Answers every prompt.

        Prompts that look the same to the model are computed once: blind, all images do. What is
        computed together depends on the prompts and the batch size alone, so a run that goes on
        from a log computes the very numbers of a whole run.

        Args:
            prompts: In any order.
            max_new_tokens: Tokens after which an answer is cut off.
            stop: Strings at which an answer ends; the output holds them.
            advance: Called with the number of prompts that were just answered.
            log: Gets the answers as they come; those it holds are not computed again.
            watch: Sees every answer after each of its tokens, and may end it.

        Returns:
            The answer to each prompt. A prompt with an image that cannot be read has a failure
            in its place.
        """
        questions = self._questions(prompts)
        self._features.expect(key for question in questions for key in question.prompt.images)
        answers = [Answer("")] * len(prompts)
        size = self._batch_size * GROUP_BATCHES
        num_slots = max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
        decoding = _Decoding(
            self._model,
            self._tokenizer,
            self._features,
            self._never,
            min(self._batch_size, len(questions)),
            num_slots,
            watch,
        )
        for start in range(0, len(questions), size):
            group = questions[start : start + size]
            found = _logged(group, log)
            if found is None:
                found = decoding.answer(group, max_new_tokens, stop, advance)
                if log is not None:
                    keys = (question.prompt.sha256 for question in group)
                    log.append(zip(keys, found, strict=True))
            else:
                advance(sum(len(question.members) for question in group))
            for question, answer in zip(group, found, strict=True):
                for member in question.members:
                    answers[member] = answer
        return answers

    def _questions(self, prompts: Sequence[Prompt]) -> list[_Question]:
        """What is computed, in an order that keeps shared beginnings together."""
        numbers: dict[str, int] = {}
        same: dict[bytes, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            same[self._stream(prompt, numbers).tobytes()].append(index)
        streams = [np.frombuffer(key, dtype=np.int32) for key in same]
        order, borders = shared_prefixes(streams)
        members = list(same.values())
        return [
            _Question(
                prompts[members[index][0]], tuple(members[index]), streams[index], borders[index]
            )
            for index in order
        ]

    def _stream(self, prompt: Prompt, numbers: dict[str, int]) -> np.ndarray:
        """A prompt's tokens, with a negative number for every position of an image."""
        stream = np.array(prompt.input_ids, dtype=np.int32)
        is_image = stream == self._model.image_token_id
        seen = [
            numbers.setdefault(self._features.identity(key), len(numbers)) for key in prompt.images
        ]
        per_image = is_image.sum() // max(len(seen), 1)
        stream[is_image] = -1 - np.repeat(np.array(seen, dtype=np.int32), per_image)
        return stream


def _logged(group: Sequence[_Question], log: AnswerLog | None) -> list[Answer] | None:
    """Answers of a group that the log holds whole."""
    if log is None:
        return None
    found = [log.get(question.prompt.sha256) for question in group]
    whole = [answer for answer in found if answer is not None]
    return whole if len(whole) == len(group) else None


class _Decoding:
    """Rows that are being answered, and one that holds the beginning they came from.

    Rows 0 to n - 1 of the cache are being answered. The last row, the trunk, holds the shared
    beginning of the prompts that enter: it is read there once, and copied.
    """

    def __init__(
        self,
        model: MM1,
        tokenizer: Tokenizer,
        features: ImageFeatures,
        never: Tensor,
        batch_size: int,
        num_slots: int,
        watch: Watch | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._features = features
        self._never = never
        self._batch_size = batch_size
        self._watch = watch
        self._cache: KVCache = model.make_cache(batch_size + 1, num_slots)
        self._trunk_stream = np.zeros(0, np.int32)
        self._trunk_borders: tuple[int, ...] = ()

    def answer(
        self,
        group: Sequence[_Question],
        max_new_tokens: int,
        stop: Sequence[str],
        advance: Callable[[int], None],
    ) -> list[Answer]:
        """Answers a group of questions; starts and ends without rows."""
        # A group is computed alike whether the one before it was or came from a log.
        self._trunk_borders = ()
        answers: dict[int, Answer] = {}
        waiting, rows = deque(range(len(group))), list[_Row]()
        while waiting or rows:
            hidden: list[Tensor] = []
            if rows:
                hidden.append(self._step(rows))
            num_free = self._batch_size - len(rows)
            if waiting and (not rows or num_free * _REFILL_SHARE >= self._batch_size):
                entered = self._enter(group, waiting, rows, answers, advance)
                hidden += [entered] if entered is not None else []
            if rows:
                tokens = self._most_likely(torch.cat(hidden)).tolist()
                self._append(rows, tokens, max_new_tokens, stop)
                for row in self._leave(rows):
                    answers[row.index] = Answer(row.text)
                    advance(len(group[row.index].members))
        return [answers[index] for index in range(len(group))]

    def _enter(
        self,
        group: Sequence[_Question],
        waiting: deque[int],
        rows: list[_Row],
        answers: dict[int, Answer],
        advance: Callable[[int], None],
    ) -> Tensor | None:
        """Reads new prompts into free rows: float[new rows, D], or None if none could be."""
        first_row, num_positions = len(rows), 0
        embeddings: list[Tensor] = []
        starts: list[int] = []
        while waiting and len(rows) < self._batch_size:
            question = group[waiting[0]]
            rest = len(question.stream) - (question.borders[-1] if question.borders else 0)
            if embeddings and num_positions + rest > _MAX_ENTERING_POSITIONS:
                break
            index = waiting.popleft()
            failure = self._features.failure(question.prompt.images)
            if failure is not None:
                answers[index] = Answer("", failure)
                advance(len(question.members))
                continue
            start = self._grow_trunk(question)
            if start:
                self._cache.copy_row(self._cache.batch - 1, len(rows), start)
            embeddings.append(self._embed(question, start, len(question.stream)))
            starts.append(start)
            num_positions += rest
            rows.append(_Row(index, len(question.stream)))
        if not embeddings:
            return None
        return self._model.extend_rows(
            torch.cat(embeddings), self._cache, first_row, starts, [len(x) for x in embeddings]
        )

    def _grow_trunk(self, question: _Question) -> int:
        """Makes the trunk hold a question's shared beginning; gives its length."""
        if not question.borders:
            return 0
        common = common_length(self._trunk_stream, question.stream)
        start = max((b for b in self._trunk_borders if b <= common), default=0)
        for border in question.borders:
            if border > start:
                embeddings = self._embed(question, start, border)
                trunk = self._cache.batch - 1
                self._model.extend_rows(embeddings, self._cache, trunk, [start], [border - start])
                start = border
        self._trunk_stream = question.stream[:start]
        self._trunk_borders = question.borders
        return start

    def _embed(self, question: _Question, start: int, end: int) -> Tensor:
        """float[end - start, D]: tokens of a part of a prompt, image tokens in their places."""
        ids = question.prompt.input_ids
        input_ids = torch.from_numpy(ids[start:end].astype(np.int64)).to(self._cache.device)
        embeddings = self._model.decoder.embedding(input_ids)
        is_image = ids == self._model.image_token_id
        before, until = int(is_image[:start].sum()), int(is_image[:end].sum())
        if until == before:
            return embeddings
        # Only the images of this part; a border may lie inside of one.
        per_image = int(is_image.sum()) // len(question.prompt.images)
        first = before // per_image
        keys = question.prompt.images[first : -(-until // per_image)]
        image_tokens = self._features(keys).flatten(0, 1)
        image_tokens = image_tokens[before - first * per_image : until - first * per_image]
        places = torch.from_numpy(np.flatnonzero(is_image[start:end])).to(embeddings.device)
        return embeddings.index_copy_(0, places, image_tokens.to(embeddings.dtype))

    def _step(self, rows: Sequence[_Row]) -> Tensor:
        """Reads each row's last token: float[n, D]."""
        device = self._cache.device
        tokens = torch.tensor([row.tokens[-1] for row in rows], device=device)
        positions = torch.tensor([row.num_positions for row in rows], device=device)
        embedded = self._model.decoder.embedding(tokens).unsqueeze(1)
        hidden = self._model.forward_cached(embedded, positions.unsqueeze(1), self._cache)
        for row in rows:
            row.num_positions += 1
        return hidden.squeeze(1)

    def _append(
        self, rows: Sequence[_Row], tokens: Sequence[int], max_new_tokens: int, stop: Sequence[str]
    ) -> None:
        """Adds a token to each row, and sees which answers are complete."""
        for row, token in zip(rows, tokens, strict=True):
            row.is_complete = token == self._tokenizer.eos_id
            if not row.is_complete:
                row.tokens.append(token)
                row.text = self._tokenizer.decode(row.tokens)
                at_limit = len(row.tokens) == max_new_tokens
                is_ended = self._watch is not None and self._watch(row.tokens, row.text)
                row.is_complete = is_ended or at_limit or has_stop(row.text, stop)

    def _leave(self, rows: list[_Row]) -> list[_Row]:
        """Takes complete rows out; the last row takes the place of each in the cache."""
        left = []
        for place in reversed(range(len(rows))):
            if rows[place].is_complete:
                left.append(rows[place])
                last = rows.pop()
                if place < len(rows):
                    self._cache.copy_row(len(rows), place, last.num_positions)
                    rows[place] = last
        return left

    def _most_likely(self, hidden: Tensor) -> Tensor:
        """The next token of each row: int64[n] from float[n, D]."""
        return self._model.logits(hidden).masked_fill_(self._never, -torch.inf).argmax(-1)


def _never_generated(model: MM1, tokenizer: Tokenizer) -> Tensor:
    """Tokens that no answer holds: padding, BOS, images, and rows without a token; bool[V]."""
    vocab_size = model.config.decoder.vocab_size
    never = torch.zeros(vocab_size, dtype=torch.bool)
    never[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]] = True
    never[tokenizer.vocab_size :] = True
    return never.to(next(model.parameters()).device)
