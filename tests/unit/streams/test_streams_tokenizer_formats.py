from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from mm1_pipeline.streams.tokenizer import BOS, EOS, IMAGE, PAD, Tokenizer

TEXTS = ["A cat sat on 12 mats, and 345 dogs ran.\n", "Who is it? It's a cat: 2024!\n"] * 3
SAMPLES = ["A cat ran on 12345 mats.", "  two  spaces\n\nand lines", "naïve café 你好", "1,234.5"]


def published(*, digits: bool = True, names=("<|endoftext|>", "<|im_start|>", "<|im_end|>")):
    """A tokenizer like a published model's, with special tokens first."""
    backend = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = [pre_tokenizers.Digits(individual_digits=True), byte_level]
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if digits else byte_level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(name, special=True) for name in names],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def write_directory(directory: Path, backend: tokenizers.Tokenizer, **roles: object) -> Path:
    directory.mkdir(exist_ok=True)
    backend.save(str(directory / "tokenizer.json"))
    content = {f"{role}_token": token for role, token in roles.items()}
    (directory / "tokenizer_config.json").write_text(json.dumps(content))
    return directory


def write_gguf(path: Path, backend: tokenizers.Tokenizer, pre: str = "smollm") -> Path:
    content = json.loads(backend.to_str())
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    special = {token["content"] for token in content["added_tokens"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary["<|im_start|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|im_end|>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_models_special_tokens_keep_their_ids_and_take_our_roles(tmp_path: Path) -> None:
    backend = published()
    directory = write_directory(
        tmp_path / "model", backend, bos="<|im_start|>", eos={"content": "<|im_end|>"}
    )
    size = backend.get_vocab_size()
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.bos_id == backend.token_to_id("<|im_start|>")
    assert tokenizer.eos_id == backend.token_to_id("<|im_end|>")
    assert {tokenizer.pad_id, tokenizer.image_id} == {size, size + 1}, "new, at the end"
    for text in SAMPLES:
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_token_of_two_roles_takes_the_first(tmp_path: Path) -> None:
    backend = published()
    name = "<|endoftext|>"
    tokenizer = Tokenizer.load(
        write_directory(tmp_path / "m", backend, bos=name, eos=name, pad=name)
    )
    assert tokenizer.eos_id == backend.token_to_id(name)
    assert len({tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.image_id}) == 4


def test_what_is_saved_is_read_as_it_was(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model", published(), eos="<|endoftext|>")
    tokenizer = Tokenizer.load(directory)
    tokenizer.save(tmp_path / "ours")
    again = Tokenizer.load(tmp_path / "ours")
    assert again.sha256 == tokenizer.sha256
    assert again.eos_id == tokenizer.eos_id == 0


def test_text_never_becomes_a_renamed_token(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model", published(), eos="<|endoftext|>")
    tokenizer = Tokenizer.load(directory)
    for text in ("<|endoftext|>", EOS, BOS, IMAGE, PAD):
        special = {tokenizer.eos_id, tokenizer.bos_id, tokenizer.image_id, tokenizer.pad_id}
        assert not special & set(tokenizer.encode(text)), text


def test_a_post_processor_adds_nothing(tmp_path: Path) -> None:
    backend = published()
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    directory = write_directory(tmp_path / "model", backend, bos="<|im_start|>")
    expected = backend.encode("a cat", add_special_tokens=False).ids
    assert Tokenizer.load(directory).encode("a cat") == expected


def test_a_file_alone_keeps_its_names(tmp_path: Path) -> None:
    backend = published()
    directory = write_directory(tmp_path / "model", backend, eos="<|endoftext|>")
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    assert tokenizer.eos_id >= backend.get_vocab_size()


def test_gguf_gives_the_tokens_of_the_tokenizer_it_was_made_from(tmp_path: Path) -> None:
    backend = published()
    tokenizer = Tokenizer.load(write_gguf(tmp_path / "model.gguf", backend))
    for text in SAMPLES:
        assert tokenizer.encode(text) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.bos_id == backend.token_to_id("<|im_start|>")
    assert tokenizer.eos_id == backend.token_to_id("<|im_end|>")
    assert tokenizer.pad_id >= backend.get_vocab_size()
    undigited = Tokenizer.load(write_gguf(tmp_path / "gpt2.gguf", published(digits=False), "gpt-2"))
    assert undigited.encode("12") != [*undigited.encode("1"), *undigited.encode("2")]


def test_an_unknown_tokenizer_in_gguf_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", published(), pre="tekken")
    with pytest.raises(ValueError, match=r"found a tokenizer gpt2/tekken, expected gpt2 with one"):
        Tokenizer.load(path)
    path.write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="found no readable GGUF file"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("what", "other"),
    [
        (b"tokenizer.ggml.merges", b"tokenizer.ggml.Merges"),  # a key
        (b"smollm", b"smol\xf4m"),  # a value
    ],
)
def test_a_tokenizer_in_gguf_that_is_damaged_is_refused_by_name(tmp_path, what, other) -> None:
    path = write_gguf(tmp_path / "model.gguf", published())
    data = path.read_bytes()
    assert what in data
    path.write_bytes(data.replace(what, other))
    with pytest.raises(ValueError, match=r"model\.gguf: found"):
        Tokenizer.load(path)
