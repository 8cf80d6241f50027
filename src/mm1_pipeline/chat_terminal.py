"""`kedro mm1 chat`: which checkpoint is meant, and the conversation in a terminal."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kedro_rerun.artifacts import check_content, current
from kedro_rerun.errors import StalenessError
from kedro_rerun.manifests import read_manifest

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.chat import ChatModel

STAGES = ("sft", "upcycle", "pretrain")
"""Stages whose models are looked for, the last of the pipeline first."""
MAX_IMAGE_BYTES = 50_000_000
HELP = (
    "/image PATH shows an image with the next message (also several), /example 1 asks of a "
    "held-out picture, /card says what the model is, /retry asks again, /reset begins anew, Ctrl-C "
    "stops an answer, /quit ends (as does Ctrl-D)."
)
NOTHING = "(no answer)"
_EXAMPLES, _EXAMPLES_LOOKED_AT = 6, 400


def open_chat_model(
    find_data_root: Callable[[], Path],
    model: str | None,
    tokenizer: Path | None,
    shards: Path | None,
    max_new_tokens: int,
) -> ChatModel:
    """Opens a checkpoint by its folder or by the stage that made it.

    Args:
        find_data_root: Gives the environment's data folder; called if something is looked for.
        model: A folder, a stage, or None for the last stage that has a model.
        tokenizer: Folder or file; None takes the environment's.
        shards: Folder of `shards.json`; None takes those the stage trained on.
        max_new_tokens: Tokens after which an answer is cut off.

    Raises:
        StalenessError: There is no such checkpoint, or its parts do not fit.
    """
    from mm1_pipeline.evaluation.chat import ChatModel

    folder = Path(model).resolve() if model is not None and Path(model).is_dir() else None
    if model is not None and folder is None and model not in STAGES:
        raise StalenessError(
            f"--model: found {model!r}, which is no folder; expected the folder of a checkpoint, "
            f"or one of {', '.join(STAGES)}."
        )
    data_root: Path | None
    if folder is None:
        data_root = find_data_root()
        stage = _stage_with_model(data_root, model)
        model_dir = _artifact(data_root, f"06_models/{stage}")
    else:
        # A folder of versions is a model too: the current one of them.
        version = current(folder)
        model_dir = folder if version is None else version.path
        data_root = model_dir.parents[2] if _made_from(model_dir) else None
    if data_root is not None:
        shards = shards or _shards_of(data_root, model_dir)
        tokenizer = tokenizer or _tokenizer_of(data_root, shards)
    if tokenizer is None:
        raise StalenessError(
            f"--model: found {model_dir}, which does not tell the tokenizer that it was trained "
            "with, as no run of this project published it here; name that with --tokenizer, and "
            "with --shards what it was trained on."
        )
    try:
        chat = ChatModel.open(model_dir, tokenizer, shards, max_new_tokens=max_new_tokens)
    except ValueError as error:
        raise StalenessError(str(error)) from error
    return chat if data_root is None else _with_card(chat, model_dir, shards, data_root)


def _with_card(chat: ChatModel, model_dir: Path, shards: Path | None, data_root: Path) -> ChatModel:
    """The same model, which can say what it is."""
    from mm1_pipeline.reporting.model_card import human_words, read_card

    card = read_card(model_dir, shards, data_root)
    if card is None:
        return chat
    return dataclasses.replace(
        chat,
        purpose=card.purpose(),
        card=card.text(),
        known_words=human_words(data_root) if card.stage == "sft" else frozenset(),
        examples=tuple(_examples(data_root)),
    )


def _examples(data_root: Path) -> Iterator[tuple[str, bytes]]:
    """Held-out pictures with what evaluation asks of them, as their keys' hashes come."""
    from mm1_pipeline.config.conversation_prompts import ONE_SENTENCE
    from mm1_pipeline.config.ingest import RecordKind
    from mm1_pipeline.corpus.readers.dispatch import key_fraction
    from mm1_pipeline.corpus.records import read_records, read_sources

    records = current(data_root / "03_primary" / "evaluation_records")
    if records is None:
        return
    sources = read_sources(records.path)
    for name, (kind, _) in sources.items():
        found = itertools.islice(read_records(records.path, name), _EXAMPLES_LOOKED_AT)
        shown = [record for record in found if len(record.images) == 1]
        shown.sort(key=lambda record: key_fraction(record.key))
        for record in shown[: -(-_EXAMPLES // len(sources))]:
            asked = " ".join(part.text for part in record.segments if part.text)
            if kind is RecordKind.CAPTION:
                asked = ONE_SENTENCE
            yield asked.strip(), record.images[0].bytes


def talk(
    chat: ChatModel,
    read: Callable[[str], str],
    write: Callable[[str], None],
    grow: Callable[[str], None] | None = None,
) -> None:
    """Leads a conversation until its end.

    Args:
        chat: The model that answers.
        read: Gives the human's next line; raises EOFError at the end.
        write: Shows a line.
        grow: Shows what is added to an answer, without a new line; None shows whole answers.
            Control-C ends an answer there.
    """
    from mm1_pipeline.evaluation.chat import NOTICE, Conversation

    def answer(text: str) -> None:
        shown = ""
        growing = conversation.stream(text, images)
        try:
            for said in growing:
                if grow is not None and said.startswith(shown) and not said.startswith(NOTICE):
                    grow(said[len(shown) :])
                elif grow is not None:
                    grow(f"\n{said}" if shown else said)
                shown = said
        except ValueError as error:
            shown = str(error)
            if grow is not None:
                grow(shown)
        except KeyboardInterrupt:
            growing.close()
        if grow is None:
            write(shown or NOTHING)
        else:
            grow("\n" if shown else f"{NOTHING}\n")

    conversation, images = Conversation(chat), list[bytes]()
    last: tuple[str, list[bytes]] | None = None
    write(HELP)
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            return
        command, _, argument = line.partition(" ")
        match command:
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                conversation.reset()
                images, last = [], None
            case "/card":
                write(chat.card or "Nothing is known of this model but its weights.")
            case "/image":
                try:
                    images.append(read_image(Path(argument.strip()).expanduser()))
                except ValueError as error:
                    write(str(error))
            case "/example":
                number = int(argument) if argument.strip().isdecimal() else 0
                if not 1 <= number <= len(chat.examples):
                    write(f"Found {argument.strip()!r}, expected 1 to {len(chat.examples)}.")
                    continue
                text, data = chat.examples[number - 1]
                write(f"[picture {number}] {text}")
                images, last = [data], (text, [data])
                answer(text)
                images = []
            case "/retry" if last is not None:
                conversation.undo()
                text, images = last
                answer(text)
                images = []
            case _ if command.startswith("/"):
                write(f"Found the command {command!r}. {HELP}")
            case _:
                last = line, images
                answer(line)
                images = []


def read_image(path: Path) -> bytes:
    """Reads an image file, unless it is far larger than any photograph.

    Raises:
        ValueError: There is no such file, or it is too large.
    """
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected an image.")
    if (size := path.stat().st_size) > MAX_IMAGE_BYTES:
        raise ValueError(f"{path}: found {size} bytes, allowed are {MAX_IMAGE_BYTES}.")
    return path.read_bytes()


def _stage_with_model(data_root: Path, wanted: str | None) -> str:
    for stage in (wanted,) if wanted else STAGES:
        if current(data_root / "06_models" / stage) is not None:
            return stage
    raise StalenessError(
        f"{data_root / '06_models'}: found no model of {wanted or ' or '.join(STAGES)}. Run "
        f"`kedro run --pipeline={wanted or 'sft'}`, or name the folder of a checkpoint (--model)."
    )


def _made_from(model_dir: Path) -> dict[str, str]:
    """Digests of what a published model was made from; nothing for any other folder."""
    manifest = read_manifest(model_dir)
    return dict(manifest["provenance"].get("inputs", {})) if manifest else {}


def _shards_of(data_root: Path, model_dir: Path) -> Path | None:
    """The shards that a model was trained on, of whatever version; None where they are gone."""
    made_from = _made_from(model_dir)
    for name in ("sft_shards", "shards"):
        if name in made_from:
            root = data_root / "05_model_input" / name
            for folder in sorted(root.glob("*")):
                manifest = read_manifest(folder)
                if manifest is not None and manifest["digest"] == made_from[name]:
                    return folder
            raise StalenessError(
                f"{root}: found no longer the version that {model_dir} was trained on; name the "
                "folder of its shards and tokenizer (--shards, --tokenizer), or train it again."
            )
    return None


def _tokenizer_of(data_root: Path, shards: Path | None) -> Path:
    """The tokenizer of some shards, of whatever version, else the current one."""
    from mm1_pipeline.streams.shard_index import ShardIndex
    from mm1_pipeline.streams.tokenizer import Tokenizer

    root = data_root / "04_feature" / "tokenizer"
    wanted = None if shards is None else ShardIndex.read(shards).tokenizer_sha256
    for folder in sorted(root.glob("*")):
        if (folder / "tokenizer.json").is_file() and Tokenizer.load(folder).sha256 == wanted:
            return folder
    return _artifact(data_root, "04_feature/tokenizer")


def _artifact(data_root: Path, name: str) -> Path:
    found = current(data_root / name)
    if found is None:
        raise StalenessError(
            f"{data_root / name}: found nothing published. Run the pipeline that makes it, or "
            "name another folder (--tokenizer, --shards)."
        )
    check_content(found)
    return found.path
