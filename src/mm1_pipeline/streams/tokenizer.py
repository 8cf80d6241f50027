"""The byte-level BPE tokenizer: trained on the records, or a user's own file.

Text never becomes a special token: a web page that says `<|image|>` is six words of text, or
a crawled page could forge image placeholders and document borders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mm1_pipeline.config.shard import TokenizerConfig
from mm1_pipeline.corpus.records import RECORDS, pretraining_sources, read_parts
from mm1_pipeline.streams.tokenizer_formats import (
    rename_special_tokens,
    special_tokens_of,
    tokenizer_from_gguf,
)

FILE_NAME = "tokenizer.json"

PAD, BOS, EOS, IMAGE = "<|pad|>", "<|bos|>", "<|eos|>", "<|image|>"

SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE)
"""In the order of their ids, 0 to 3, in a tokenizer trained here."""

_ROLES = {"pad": PAD, "bos": BOS, "eos": EOS}

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
"""One token a byte, so that no text is unknown, and the special tokens."""


class Tokenizer:
    """Text to token ids and back, with the four special tokens the pipeline needs.

    A user's tokenizer keeps its own ids; special tokens it lacks are added at its end.

    Args:
        backend: The wrapped tokenizer. It is changed: special tokens are added, and any
            padding and truncation of its own are switched off.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        backend.add_special_tokens([AddedToken(token, special=True) for token in missing])
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self._backend = backend
        self.pad_id, self.bos_id, self.eos_id, self.image_id = (
            self._special_id(token) for token in SPECIAL_TOKENS
        )

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Reads a `tokenizer.json`, the one in a folder, or that of a GGUF file.

        From a folder (that of a published model) and from GGUF, the model's own special tokens
        take our names and keep their ids, so that its end of text is ours.

        Raises:
            ValueError: The file is missing or is no tokenizer.
        """
        path = Path(path)
        if path.suffix == ".gguf" and path.is_file():
            return cls(rename_special_tokens(*tokenizer_from_gguf(path), _ROLES))
        file = path / FILE_NAME if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"Found no tokenizer at {file}; expected a {FILE_NAME}.")
        found = special_tokens_of(path) if path.is_dir() else {}
        try:
            backend = tokenizers.Tokenizer.from_file(str(file))
            return cls(rename_special_tokens(backend, found, _ROLES) if found else backend)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"Found a file at {file} that is no tokenizer ({error}); expected the JSON "
                "format of the `tokenizers` library."
            ) from error

    @classmethod
    def from_json(cls, content: str) -> Tokenizer:
        """The tokenizer that `to_json` gave, in another process."""
        return cls(tokenizers.Tokenizer.from_str(content))

    def to_json(self) -> str:
        """The tokenizer as text."""
        return self._backend.to_str()

    def save(self, directory: Path) -> Path:
        """Writes `tokenizer.json` into a folder and returns its path."""
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / FILE_NAME
        file.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        return file

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never a special token, whatever the text says."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs: the largest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def sha256(self) -> str:
        """Digest of everything that decides how text is encoded."""
        return hashlib.sha256(self._backend.to_str().encode("utf-8")).hexdigest()

    def _special_id(self, token: str) -> int:
        found = self._backend.token_to_id(token)
        assert found is not None, f"{token} was added above"
        return found


def prepare_tokenizer(config: TokenizerConfig, records_dir: Path, output_dir: Path) -> Tokenizer:
    """Takes the user's tokenizer, or trains one on the records of every training source.

    Args:
        config: Vocabulary size, training text, or the file to take instead.
        records_dir: The artifact that contains `records/`.
        output_dir: Gets `tokenizer.json`.

    Returns:
        The tokenizer that was written.

    Raises:
        ValueError: The user's file is unusable or larger than `vocab_size`.
    """
    if config.file is not None:
        return _take_tokenizer(config, output_dir)
    return train_tokenizer(config, training_texts(config, records_dir), output_dir)


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str], output_dir: Path) -> Tokenizer:
    """Trains a byte-level BPE and writes `tokenizer.json`.

    Byte-level, so no text is unknown and decoding restores it exactly. Our choice: the paper
    names no tokenizer.

    Args:
        config: Vocabulary size and smallest frequency of a merge.
        texts: Training text; read once.
        output_dir: Gets `tokenizer.json`.

    Returns:
        The trained tokenizer; special tokens have the ids 0 to 3.

    Raises:
        ValueError: The vocabulary is too small to hold every byte.
    """
    check_vocabulary(config)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer(config)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(backend)
    tokenizer.save(output_dir)
    return tokenizer


def check_vocabulary(config: TokenizerConfig, tokenizer: Tokenizer | None = None) -> None:
    """Refuses a vocabulary without room for the user's tokenizer, or for every byte.

    Args:
        config: Its size.
        tokenizer: The user's; None where one is trained.

    Raises:
        ValueError: It is too small.
    """
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size: found {config.vocab_size}, but {config.file} has "
            f"{tokenizer.vocab_size} tokens, special tokens included; raise vocab_size to "
            "at least that."
        )
    if tokenizer is None and config.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(
            f"tokenizer.vocab_size: found {config.vocab_size}, expected at least "
            f"{MIN_VOCAB_SIZE} (256 bytes and {len(SPECIAL_TOKENS)} special tokens)."
        )


def _pre_tokenizer(config: TokenizerConfig) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into words, within which bytes are merged."""
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if not config.split_digits:
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def training_texts(config: TokenizerConfig, records_dir: Path) -> Iterator[str]:
    """Text of every pre-training source, each cut to the same number of characters.

    Equal shares, because a long source would otherwise own the vocabulary.
    """
    sources = pretraining_sources(records_dir)
    budget = config.max_characters // max(1, len(sources))
    for source in sources:
        left = budget
        for record in read_parts(records_dir / RECORDS / source, with_bytes=False):
            text = "\n".join(segment.text for segment in record.segments if segment.text)
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def _take_tokenizer(config: TokenizerConfig, output_dir: Path) -> Tokenizer:
    assert config.file is not None
    tokenizer = Tokenizer.load(config.file)
    check_vocabulary(config, tokenizer)
    tokenizer.save(output_dir)
    return tokenizer
