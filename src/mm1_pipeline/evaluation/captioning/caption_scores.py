"""How well captions fit their images, to a contrastive model that this project has trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mm1_pipeline.config.corpus_rules import ClipScoreConfig
from mm1_pipeline.corpus.images import open_image
from mm1_pipeline.corpus.records import Record
from mm1_pipeline.ground.files import hash_file
from mm1_pipeline.ground.rejects import Rejected
from mm1_pipeline.models.checkpoint import CONFIG, WEIGHTS, check_finite
from mm1_pipeline.models.clip import HEADS, load_contrastive
from mm1_pipeline.models.pairs import ImageTexts
from mm1_pipeline.streams.images import resize_image, to_pixel_values
from mm1_pipeline.streams.serialization import serialize
from mm1_pipeline.streams.tokenizer import Tokenizer


class ContrastiveScorer:
    """Cosines under a model that the stage `vision_pretrain` has trained, on the CPU.

    Images and captions become pixels and tokens as they did in its training, except that images
    are not encoded anew in between and show their overview alone. One thread computes, so that
    a score does not depend on how many processes share the machine; partitions are what runs at
    once.

    Args:
        config: where the model and its tokenizer lie.

    Raises:
        ValueError: there is no such model, its weights are damaged, or the tokenizer is not its
            own.
    """

    def __init__(self, config: ClipScoreConfig) -> None:
        folder = Path(config.checkpoint)
        model = load_contrastive(folder)
        assert model.inputs is not None, "a stored model has them"
        check_finite(model, folder)
        self._tokenizer = Tokenizer.load(config.tokenizer)
        if self._tokenizer.sha256 != model.inputs.tokenizer_sha256:
            raise ValueError(
                f"{config.tokenizer}: found another tokenizer than the one that {folder} was "
                "trained with; name the tokenizer.json of that run."
            )
        self._model = model.requires_grad_(False).eval()
        self._transform = model.inputs.image
        self._max_tokens = config.max_tokens
        digest = hashlib.sha256(self._tokenizer.sha256.encode())
        for part in (folder, folder / HEADS):
            for path in (part / CONFIG, part / WEIGHTS):
                digest.update(bytes.fromhex(hash_file(path, "sha256")))
        self._identity = digest.hexdigest()

    @property
    def identity(self) -> str:
        """Hash of weights, shapes and tokenizer."""
        return self._identity

    def score(self, records: Sequence[Record]) -> list[float | Rejected]:
        """The cosine of each record's caption and first image, -1 to 1."""
        scores: list[float | Rejected] = []
        resized = []
        for record in records:
            try:
                image = open_image(record.images[0].bytes)
            except Rejected as error:
                scores.append(error)
                continue
            resized.append(resize_image(image, self._transform))
            scores.append(0.0)
        places = [place for place, score in enumerate(scores) if not isinstance(score, Rejected)]
        if places:
            pixel_values = to_pixel_values(resized, self._transform)
            texts = self._texts([records[place] for place in places])
            for place, cosine in zip(places, self._cosines(pixel_values, texts), strict=True):
                scores[place] = cosine
        return scores

    def _texts(self, records: Sequence[Record]) -> ImageTexts:
        texts = [self._tokens(record) for record in records]
        places = torch.arange(len(texts))
        lengths = torch.tensor([len(text) for text in texts])
        return ImageTexts(
            images=places,
            texts=places,
            sequences=places,
            input_ids=torch.cat(texts),
            position_ids=torch.cat([torch.arange(len(text)) for text in texts]),
            cu_seqlens=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        )

    def _tokens(self, record: Record) -> Tensor:
        """int64[n], what `pair_images_with_texts` finds in the record's training sequence."""
        document = serialize(record.segments, self._tokenizer, image_tokens=1)
        words = document.input_ids[document.loss_mask][:-1][: self._max_tokens]
        return torch.tensor([*words.tolist(), self._tokenizer.eos_id])

    @torch.inference_mode()
    def _cosines(self, pixel_values: Tensor, texts: ImageTexts) -> list[float]:
        with _one_thread():
            images = self._model.embed_images(pixel_values)
            return (images * self._model.embed_texts(texts)).sum(dim=-1).tolist()


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
