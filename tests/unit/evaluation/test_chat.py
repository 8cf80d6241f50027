"""Chat and chat prompts: the same tokens as training, sub-images and all, turn after turn."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kedro_rerun.errors import StalenessError
from PIL import Image

from mm1_pipeline import chat_page
from mm1_pipeline.chat_page import Visitor
from mm1_pipeline.chat_terminal import open_chat_model, read_image, talk
from mm1_pipeline.config.model import ConnectorConfig, DecoderConfig, MM1Config, VisionConfig
from mm1_pipeline.config.shard import ImageTransform, SubImageConfig, TokenizerConfig
from mm1_pipeline.corpus.records import Role, Segment
from mm1_pipeline.evaluation.chat import NOTICE, ChatModel, Conversation
from mm1_pipeline.evaluation.generation.generation import Generator
from mm1_pipeline.evaluation.generation.image_features import ImageFeatures
from mm1_pipeline.evaluation.prompts.resolution import sub_image_keys
from mm1_pipeline.evaluation.replies import is_of_another_kind, loop_length
from mm1_pipeline.models.checkpoint import save_model
from mm1_pipeline.models.initialization import build_model
from mm1_pipeline.streams.conversations import serialize_conversation
from mm1_pipeline.streams.images import to_pixel_values
from mm1_pipeline.streams.shard_index import ShardIndex
from mm1_pipeline.streams.sub_images import decompose
from mm1_pipeline.streams.tokenizer import Tokenizer, train_tokenizer

GRID = SubImageConfig(grid=2)
TRANSFORM = ImageTransform(size=16)


def picture(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(TokenizerConfig(vocab_size=300), ["red dog"] * 9, directory)


@pytest.fixture(scope="module")
def chat(tokenizer: Tokenizer) -> ChatModel:
    config = MM1Config(
        vision=VisionConfig(
            image_size=16, patch_size=8, d_model=16, num_layers=1, num_heads=2, d_ff=16
        ),
        connector=ConnectorConfig(num_tokens=4, num_blocks=1),
        decoder=DecoderConfig(
            vocab_size=300, d_model=32, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=32
        ),
    )
    model = build_model(config, tokenizer.image_id, seed=0).eval()
    return ChatModel(model, tokenizer, TRANSFORM, GRID, max_new_tokens=6)


@torch.no_grad()
def greedy(chat: ChatModel, segments: list[Segment], images: list[bytes]) -> str:
    """The answer by whole forward passes over what training would have packed."""
    sub_images = [
        square
        for data in images
        for square in decompose(Image.open(io.BytesIO(data)).convert("RGB"), TRANSFORM, GRID)
    ]
    num_sub_images = [
        len(decompose(Image.open(io.BytesIO(data)).convert("RGB"), TRANSFORM, GRID))
        for data in images
    ]
    ids = serialize_conversation(
        segments, chat.tokenizer, 4, num_sub_images=num_sub_images
    ).input_ids.tolist()
    pixels, answer = to_pixel_values(sub_images, TRANSFORM), []
    never = [chat.tokenizer.pad_id, chat.tokenizer.bos_id, chat.tokenizer.image_id]
    for _ in range(chat.max_new_tokens):
        length = len(ids) + len(answer)
        hidden = chat.model(
            torch.tensor([ids + answer]),
            torch.arange(length)[None],
            torch.tensor([0, length], dtype=torch.int32),
            pixels,
        ).hidden
        logits = chat.model.logits(hidden[0, -1])
        logits[never] = -torch.inf
        logits[chat.tokenizer.vocab_size :] = -torch.inf
        if (token := int(logits.argmax())) == chat.tokenizer.eos_id:
            break
        answer.append(token)
    return chat.tokenizer.decode(answer).strip()


def test_answers_are_those_of_the_trained_sequence(chat: ChatModel) -> None:
    """Two turns, an image of five sub-images and one of one: the cache and the plain pass agree."""
    conversation = Conversation(chat)
    large, small = picture(40, 30), picture(10, 12, seed=1)
    first = conversation.ask("what is it?", [large])
    said = [Segment.of_image(0, Role.HUMAN), Segment.of_text("what is it?", Role.HUMAN)]
    assert first == greedy(chat, said, [large])
    second = conversation.ask("and this?", [small])
    said += [
        Segment.of_text(first or ".", Role.ASSISTANT),
        Segment.of_image(1, Role.HUMAN),
        Segment.of_text("and this?", Role.HUMAN),
    ]
    assert second == greedy(chat, said, [large, small])
    conversation.reset()
    assert conversation.ask("what is it?", [large]) == first


def test_crops_change_what_the_model_sees(chat: ChatModel) -> None:
    """Each square has its own features, in the order of training."""
    data = picture(32, 32)
    features = ImageFeatures(chat.model, {"x": data}, TRANSFORM, sub_images=GRID)
    with torch.no_grad():
        found = features(sub_image_keys("x", 5))
        sub_images = decompose(Image.open(io.BytesIO(data)), TRANSFORM, GRID)
        pixels = to_pixel_values(sub_images, TRANSFORM)
        expected = chat.model.connector(chat.model.vision(pixels))
    # Worst seen: 2e-7; sub-images are encoded one by one here, together there.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found[1], found[2])


def test_an_image_that_cannot_be_read_leaves_the_conversation_as_it_was(chat: ChatModel) -> None:
    conversation = Conversation(chat)
    before = conversation.ask("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        conversation.ask("what?", [b"no image"])
    with pytest.raises(ValueError, match="empty message"):
        conversation.ask(" ")
    again = Conversation(chat)
    assert again.ask("hello") == before
    assert conversation.ask("and?") == again.ask("and?")


def test_what_does_not_fit_is_refused_before_it_is_computed(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(chat, max_positions=60)
    conversation = Conversation(short)
    before = conversation.ask("hello")
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", lambda *_args, **_kwargs: pytest.fail("computed"))
        with pytest.raises(ValueError, match=r"of \d+ positions; 54 and an answer of 6"):
            conversation.ask("red dog " * 30)
        patch.setattr(Tokenizer, "encode", lambda *_args: pytest.fail("cut into tokens"))
        with pytest.raises(ValueError, match="message of 20,000 characters; 54 positions"):
            conversation.ask("x" * 20_000)
        with pytest.raises(ValueError, match=r"14 images in the conversation; 13 of 4 positions"):
            conversation.ask("what?", [b"never decoded"] * 14)
    again = Conversation(short)
    assert again.ask("hello") == before
    assert conversation.ask("and?") == again.ask("and?")


def test_the_terminal_takes_commands(chat: ChatModel, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(picture(20, 20))
    lines = iter(
        ["", "hello", f"/image {image}", "what?", "/image missing.png", "/what", "/reset", "hello"]
    )
    shown: list[str] = []

    def read(_prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    talk(chat, read, shown.append)
    _, hello, _, missing, unknown, again = shown
    assert hello == again
    assert "missing.png: found no such file" in missing
    assert "/what" in unknown


def test_a_checkpoint_is_found_by_its_folder_and_checked(
    chat: ChatModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(chat.model, tmp_path / "model")
    tokenizer.save(tmp_path / "tokenizer")

    def nowhere() -> Path:
        return tmp_path / "empty"

    found = open_chat_model(nowhere, str(tmp_path / "model"), tmp_path / "tokenizer", None, 6)
    assert Conversation(found).ask("hello") == Conversation(chat).ask("hello")
    with pytest.raises(StalenessError, match="no model of sft or upcycle or pretrain"):
        open_chat_model(nowhere, None, None, None, 6)
    with pytest.raises(StalenessError, match="'nonsense', which is no folder"):
        open_chat_model(nowhere, "nonsense", None, None, 6)
    words = [f"{a}{b}{a} {b}{a}" for a in "abcdefghijkl" for b in "mnopqrstuvwx"]
    train_tokenizer(TokenizerConfig(vocab_size=400), words * 3, tmp_path / "larger")
    with pytest.raises(StalenessError, match="name the tokenizer"):
        open_chat_model(nowhere, str(tmp_path / "model"), tmp_path / "larger", None, 6)
    with pytest.raises(ValueError, match="found no such file"):
        read_image(tmp_path / "none.png")


def test_a_page_that_others_can_reach_needs_a_password(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[dict[str, object]] = []

    class Page:
        def launch(self, **options: object) -> None:
            launched.append(options)

    monkeypatch.setattr(chat_page, "build_page", lambda _chat: Page())
    monkeypatch.delenv(chat_page.PASSWORD_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(StalenessError, match="others can reach, and no password"):
            chat_page.serve(chat, host=host, port=1)
    for host in ("127.0.0.1", "::1", "localhost"):
        chat_page.serve(chat, host=host, port=1)
        assert launched.pop()["auth"] is None
    monkeypatch.setenv(chat_page.PASSWORD_VARIABLE, "secret")
    chat_page.serve(chat, host="0.0.0.0", port=1)
    assert launched.pop()["auth"] == ("mm1", "secret")


def test_an_answer_grows_and_who_stops_listening_ends_it(chat: ChatModel) -> None:
    whole = list(Conversation(chat).stream("what is it?", [picture(20, 20)]))
    assert whole[-1] == Conversation(chat).ask("what is it?", [picture(20, 20)])
    assert len(whole) > 1, "a token at a time"
    conversation = Conversation(chat)
    growing = conversation.stream("what is it?", [picture(20, 20)])
    first = next(growing)
    growing.close()
    assert first == whole[0]
    assert conversation.num_exchanges == 1
    conversation.undo()
    assert conversation.ask("hello") == Conversation(chat).ask("hello")


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        ([5] * 12, 12),
        ([5] * 11, 0),
        ([1, 2] * 6, 12),
        ([9, 1, 2, 3, 4] + [7, 8, 9] * 4, 12),
        ([7, 8, 9] * 3, 0),
        (list(range(16)) * 4, 64),
        (list(range(17)) * 4, 0),
        ([1, 2, 3, 4, 1, 2, 3, 5] * 3, 0),
        ([5] * 20 + [6], 0),
    ],
)
def test_a_loop_is_the_same_again_and_again_at_the_end(tokens: list[int], length: int) -> None:
    assert loop_length(tokens) == length


def test_an_answer_in_a_circle_is_stopped_and_said_so(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm1_pipeline.evaluation.chat.loop_length", lambda tokens: len(tokens) > 2)
    told = dataclasses.replace(chat, purpose="I name shapes.")
    conversation = Conversation(told)
    said = list(conversation.stream("hello"))
    assert len(said) == 3
    assert said[-1].startswith(NOTICE)
    assert said[-1].endswith("I name shapes.")
    assert conversation.num_exchanges == 1


def test_messages_of_another_kind_or_length_are_answered_by_what_it_was_trained_for(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = frozenset({"what", "is", "the", "red", "dog"})
    told = dataclasses.replace(chat, purpose="I name shapes.", known_words=known, max_positions=60)
    monkeypatch.setattr(Generator, "generate", lambda *_args, **_kwargs: pytest.fail("computed"))
    conversation = Conversation(told)
    for message in ("Write a poem on quantum gravity", "\u4f60\u597d", "x" * 8_000, "dog " * 2_000):
        (answer,) = conversation.stream(message)
        assert answer.startswith(NOTICE), message
        assert "I name shapes." in answer
    assert conversation.num_exchanges == 0
    for message in ("What is the dog?", "is the dog here", "12345", "?"):
        assert not is_of_another_kind(message, known), message
    assert not is_of_another_kind("anything at all", frozenset())


def test_a_tokenizer_that_is_not_the_shards_own_is_refused(
    chat: ChatModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Of the same size, so that nothing else would tell."""
    save_model(chat.model, tmp_path / "model")
    other = train_tokenizer(TokenizerConfig(vocab_size=300), ["der god"] * 9, tmp_path / "other")
    assert other.vocab_size == tokenizer.vocab_size
    index = SimpleNamespace(
        image=TRANSFORM, sub_images=GRID, tokenizer_sha256=tokenizer.sha256,
        packing=SimpleNamespace(sequence_length=60),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardIndex, "read", lambda _folder: index)
        with pytest.raises(StalenessError, match=r"expected .* the one of the shards"):
            open_chat_model(
                lambda: tmp_path, str(tmp_path / "model"), tmp_path / "other", tmp_path, 6
            )
    with pytest.raises(StalenessError, match="does not tell the tokenizer"):
        open_chat_model(lambda: tmp_path, str(tmp_path / "model"), None, None, 6)


def test_the_page_asks_again_takes_back_and_forgets(chat: ChatModel, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(picture(20, 20))
    visitor = Visitor(chat)
    first = list(visitor.say("hello", []))[-1]
    second = list(visitor.say("what?", [str(image), str(image)]))[-1]
    assert [turn["role"] for turn in second] == [
        "user", "assistant", "user", "user", "user", "assistant",
    ]  # fmt: skip
    assert list(visitor.retry())[-1] == second
    assert visitor.undo() == ("what?", [str(image), str(image)])
    assert visitor.history == first
    broken = list(visitor.say("what?", [str(tmp_path / "none.png")]))[-1]
    assert "found no such file" in broken[-1]["content"]
    visitor.undo()
    assert visitor.clear() == []
    assert list(visitor.say("hello", []))[-1] == first, "the model forgot, too"


def test_the_page_can_be_built(chat: ChatModel) -> None:
    pytest.importorskip("gradio", reason="the extra `chat` is not installed")
    told = dataclasses.replace(chat, card="A model.", examples=(("what?", picture(20, 20)),))
    chat_page.build_page(told)
