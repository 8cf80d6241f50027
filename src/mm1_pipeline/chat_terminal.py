"""`kedro mm1 chat`: which checkpoint is meant, and the conversation in a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kedro_rerun.artifacts import check_content, current
from kedro_rerun.errors import StalenessError

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.chat import ChatModel

STAGES = ("sft", "upcycle", "pretrain")
"""Stages whose models are looked for, the last of the pipeline first."""
MAX_IMAGE_BYTES = 50_000_000
HELP = (
    "/image PATH shows an image with the next message, /reset begins anew, /quit ends (as does "
    "Ctrl-D)."
)


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
    stage = _stage_with_model(find_data_root(), model) if folder is None else None
    model_dir = folder or _artifact(find_data_root(), f"06_models/{stage}")
    if shards is None and stage is not None:
        name = "sft_shards" if stage == "sft" else "shards"
        shards = _artifact(find_data_root(), f"05_model_input/{name}")
    tokenizer = tokenizer or _artifact(find_data_root(), "04_feature/tokenizer")
    try:
        return ChatModel.open(model_dir, tokenizer, shards, max_new_tokens=max_new_tokens)
    except ValueError as error:
        raise StalenessError(str(error)) from error


def talk(chat: ChatModel, read: Callable[[str], str], write: Callable[[str], None]) -> None:
    """Leads a conversation until its end.

    Args:
        chat: The model that answers.
        read: Gives the human's next line; raises EOFError at the end.
        write: Shows a line.
    """
    from mm1_pipeline.evaluation.chat import Conversation

    conversation, images = Conversation(chat), list[bytes]()
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
                images = []
            case "/image":
                try:
                    images.append(read_image(Path(argument.strip()).expanduser()))
                except ValueError as error:
                    write(str(error))
            case _ if command.startswith("/"):
                write(f"Found the command {command!r}. {HELP}")
            case _:
                try:
                    write(conversation.ask(line, images))
                    images = []
                except ValueError as error:
                    write(str(error))
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


def _artifact(data_root: Path, name: str) -> Path:
    found = current(data_root / name)
    if found is None:
        raise StalenessError(
            f"{data_root / name}: found nothing published. Run the pipeline that makes it, or "
            "name another folder (--tokenizer, --shards)."
        )
    check_content(found)
    return found.path
