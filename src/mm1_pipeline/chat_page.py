"""The chat as a page in the browser, with image upload; needs the extra `chat` (Gradio)."""

from __future__ import annotations

import importlib
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm1_pipeline.chat_terminal import read_image
from mm1_pipeline.staleness.errors import StalenessError

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.chat import ChatModel, Conversation

TITLE = "MM1"
PASSWORD_VARIABLE = "MM1_CHAT_PASSWORD"  # noqa: S105 - a name, no password
_USER = "mm1"
_MAX_UPLOAD = "50mb"


def build_page(chat: ChatModel) -> Any:
    """The page, not yet served.

    Each visitor has a conversation of their own.

    Args:
        chat: The model that answers.

    Raises:
        StalenessError: Gradio is not installed.
    """
    gradio = _import_gradio()
    from mm1_pipeline.evaluation.chat import Conversation

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"# {TITLE}\nAsk about an image, or say anything.")
        conversation = gradio.State(lambda: Conversation(chat))
        history = gradio.Chatbot(label="Conversation", height=420)
        message = gradio.MultimodalTextbox(
            placeholder="Type a message, or add an image",
            file_types=["image"],
            file_count="multiple",
            show_label=False,
        )
        reset = gradio.Button("New conversation")
        message.submit(_exchange, [message, history, conversation], [message, history])
        reset.click(_reset, [conversation], [message, history])
    return page


def serve(chat: ChatModel, *, host: str, port: int) -> None:
    """Serves the page until it is interrupted.

    Args:
        chat: The model that answers.
        host: Address to listen at; the default of the command is this machine alone. At any
            other, visitors log in as `mm1` with the password in the environment.
        port: Port to listen at.

    Raises:
        StalenessError: Others could reach the page, and there is no password.
    """
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password and not _is_loopback(host):
        raise StalenessError(
            f"--host: found {host!r}, which others can reach, and no password. Put one into the "
            f"environment variable {PASSWORD_VARIABLE} (visitors log in as {_USER!r}), or leave "
            "--host out to serve this machine alone."
        )
    build_page(chat).launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=_MAX_UPLOAD,
        auth=(_USER, password) if password else None,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _exchange(
    message: dict[str, Any], history: list[dict[str, Any]], conversation: Conversation
) -> tuple[None, list[dict[str, Any]]]:
    """One exchange: what the human said and showed, and the answer or what was wrong."""
    text, files = message.get("text") or "", message.get("files") or []
    shown = [{"role": "user", "content": {"path": path}} for path in files]
    if text:
        shown.append({"role": "user", "content": text})
    try:
        answer = conversation.ask(text, [read_image(Path(path)) for path in files])
    except ValueError as error:
        answer = f"*{error}*"
    return None, [*history, *shown, {"role": "assistant", "content": answer or "*(no answer)*"}]


def _reset(conversation: Conversation) -> tuple[None, list[dict[str, Any]]]:
    conversation.reset()
    return None, []


def _import_gradio() -> Any:
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise StalenessError(
            "The chat page needs Gradio, which is not installed. Install the extra `chat` "
            "(docs/sft.md), or leave --page out to chat in the terminal."
        ) from error
