"""The tokenizer restores text, and text never forges a special token."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from mm1_pipeline.config.shard import TokenizerConfig
from mm1_pipeline.streams.tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    prepare_tokenizer,
    train_tokenizer,
    training_texts,
)


def test_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    ids = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.image_id)
    assert ids == (0, 1, 2, 3)


@pytest.mark.parametrize("text", ["red dog", " two  spaces\n\ttab", "Grüße, 世界! 🐕", ""])
def test_decoding_restores_any_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_cannot_forge_a_special_token(tokenizer: Tokenizer, token: str) -> None:
    ids = tokenizer.encode(f"a {token} b")
    assert not set(ids) & {0, 1, 2, 3}
    assert tokenizer.decode(ids) == f"a {token} b"


def test_a_loaded_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == tokenizer.sha256
        assert loaded.vocab_size == tokenizer.vocab_size
        assert loaded.encode("a <|image|>") == tokenizer.encode("a <|image|>")


def test_training_is_deterministic_and_bounded(tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=270)
    texts = [f"the {word} sat on the mat" for word in ("cat", "dog", "fox")] * 20
    first, second = (train_tokenizer(config, texts, tmp_path / name) for name in "ab")
    assert first.sha256 == second.sha256
    assert first.vocab_size == 270
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer.json"
    ).read_bytes()
    assert len(first.encode("the cat")) < len("the cat")


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size: found 259, expected at least 260"):
        train_tokenizer(TokenizerConfig(vocab_size=259), ["text"], tmp_path)


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    """A tokenizer that has an end token of ours, pads, truncates and prepends a token."""
    backend = tokenizers.Tokenizer(models.WordLevel({"<|eos|>": 0, "red": 1, "?": 2}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<|eos|>"])
    backend.enable_padding(length=8)
    backend.enable_truncation(max_length=2)
    backend.save(str(tmp_path / "user.json"))
    return tmp_path / "user.json"


def test_a_users_tokenizer_gets_what_it_lacks(user_file: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=6, file=str(user_file))
    tokenizer = prepare_tokenizer(config, tmp_path, tmp_path / "out")
    assert tokenizer.eos_id == 0
    assert sorted((tokenizer.pad_id, tokenizer.bos_id, tokenizer.image_id)) == [3, 4, 5]
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("red red blue") == [1, 1, 2]
    assert Tokenizer.load(tmp_path / "out").sha256 == tokenizer.sha256


def test_a_users_tokenizer_must_fit(user_file: Path, tmp_path: Path) -> None:
    config = TokenizerConfig(vocab_size=5, file=str(user_file))
    with pytest.raises(ValueError, match=r"found 5, but .*user.json has 6 tokens"):
        prepare_tokenizer(config, tmp_path, tmp_path / "out")


def test_a_missing_or_foreign_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Found no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="that is no tokenizer"):
        Tokenizer.load(tmp_path)


def test_every_source_gets_the_same_number_of_characters(records_dir: Path) -> None:
    texts = list(training_texts(TokenizerConfig(vocab_size=400), records_dir))
    assert len(texts) == 150 + 45 + 40 + 60
    cut = list(training_texts(TokenizerConfig(vocab_size=400, max_characters=400), records_dir))
    assert sum(map(len, cut)) == 400
    assert "".join(cut)[:100] == "".join(texts)[:100]
