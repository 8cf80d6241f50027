"""Greedy answers to many prompts, in batches over a key-value cache.

Shape letters: B prompts of a batch, S positions of the longest, D decoder width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mm1_pipeline.evaluation.images import ImageFeatures
from mm1_pipeline.evaluation.postprocess import has_stop
from mm1_pipeline.evaluation.prompts import Prompt
from mm1_pipeline.models.mm1 import MM1
from mm1_pipeline.streams.tokenizer import Tokenizer


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
        self._device = next(model.parameters()).device
        self._never = _never_generated(model, tokenizer)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop: Sequence[str],
        advance: Callable[[int], None] = lambda _count: None,
    ) -> list[str]:
        """Answers every prompt.

        Prompts of similar length are computed together. Prompts that look the same to the model
        are computed once: blind, all images do.

        Args:
            prompts: In any order.
            max_new_tokens: Tokens after which an answer is cut off.
            stop: Strings at which an answer ends; the output holds them.
            advance: Called with the number of prompts that were just answered.

        Returns:
            The raw output of each prompt.
        """
        same: dict[object, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            same[self._identity(prompt)].append(index)
        # Longest first: a batch that does not fit in memory shows at once.
        groups = sorted(same.values(), key=lambda group: (-len(prompts[group[0]]), group[0]))
        outputs = [""] * len(prompts)
        for start in range(0, len(groups), self._batch_size):
            batch = groups[start : start + self._batch_size]
            answers = self._answer([prompts[group[0]] for group in batch], max_new_tokens, stop)
            for group, answer in zip(batch, answers, strict=True):
                for index in group:
                    outputs[index] = answer
            advance(sum(map(len, batch)))
        return outputs

    def _identity(self, prompt: Prompt) -> object:
        images = tuple(self._features.identity(key) for key in prompt.images)
        return prompt.input_ids.tobytes(), images

    def _answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
    ) -> list[str]:
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        cache = self._model.make_cache(len(prompts), int(lengths.max()) + max_new_tokens)
        embeddings = self._embed(prompts)
        position_ids = torch.arange(embeddings.shape[1], device=self._device)
        hidden = self._model.forward_cached(
            embeddings, position_ids.expand(embeddings.shape[:2]), cache
        )
        last = hidden[torch.arange(len(prompts), device=self._device), lengths - 1]
        answers = _Answers(self._tokenizer, len(prompts), stop)
        for step in range(max_new_tokens):
            tokens = self._most_likely(last)
            if answers.append(tokens.tolist()) or step + 1 == max_new_tokens:
                break
            embedded = self._model.decoder.embedding(tokens).unsqueeze(1)
            position = (lengths + step).unsqueeze(1)
            last = self._model.forward_cached(embedded, position, cache).squeeze(1)
        return answers.texts

    def _embed(self, prompts: Sequence[Prompt]) -> Tensor:
        """float[B, S, D], padded on the right."""
        padded = np.full((len(prompts), max(map(len, prompts))), self._tokenizer.pad_id, np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt.input_ids
        input_ids = torch.from_numpy(padded).to(self._device)
        image_tokens = self._features([key for prompt in prompts for key in prompt.images])
        embeddings = self._model.decoder.embedding(input_ids)
        places = (input_ids == self._model.image_token_id).flatten().nonzero().squeeze(1)
        spliced = embeddings.flatten(0, 1).index_copy_(0, places, image_tokens.flatten(0, 1))
        return spliced.view(embeddings.shape)

    def _most_likely(self, hidden: Tensor) -> Tensor:
        """The next token of each row: int64[B] from float[B, D]."""
        return self._model.logits(hidden).masked_fill_(self._never, -torch.inf).argmax(-1)


class _Answers:
    """Tokens of a batch of answers, and which of them are complete."""

    def __init__(self, tokenizer: Tokenizer, count: int, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._open = set(range(count))
        self.texts = [""] * count

    def append(self, tokens: Sequence[int]) -> bool:
        """Adds a token to each open answer; tells whether all answers are complete."""
        for row in sorted(self._open):
            if tokens[row] == self._tokenizer.eos_id:
                self._open.discard(row)
                continue
            self._tokens[row].append(tokens[row])
            self.texts[row] = self._tokenizer.decode(self._tokens[row])
            if has_stop(self.texts[row], self._stop):
                self._open.discard(row)
        return not self._open


def _never_generated(model: MM1, tokenizer: Tokenizer) -> Tensor:
    """Tokens that no answer holds: padding, BOS, images, and rows without a token; bool[V]."""
    vocab_size = model.config.decoder.vocab_size
    never = torch.zeros(vocab_size, dtype=torch.bool)
    never[[tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id]] = True
    never[tokenizer.vocab_size :] = True
    return never.to(next(model.parameters()).device)
