"""The chat as a page in the browser, with pictures; needs the extra `chat` (Gradio)."""

from __future__ import annotations

import importlib
import ipaddress
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro_rerun.errors import StalenessError

from mm1_pipeline.chat_terminal import NOTHING, read_image

if TYPE_CHECKING:
    from mm1_pipeline.evaluation.chat import ChatModel

TITLE = "MM1"
PASSWORD_VARIABLE = "MM1_CHAT_PASSWORD"  # noqa: S105 - a name, no password
_USER = "mm1"
_MAX_UPLOAD = "50mb"
_HINT = (
    "Click a picture, or drag, paste or add some of your own. They come before the words; earlier "
    "ones stay in the conversation."
)
_CSS = """
.gradio-container { max-width: 960px !important; margin: 0 auto !important; }
#head h1 { margin-bottom: 0; }
#chat { min-height: 380px; }
#card table { display: block; overflow-x: auto; }
#card ul { margin: 0; }
"""

Message = dict[str, Any]
History = list[Message]


class Visitor:
    """What one visitor said, was answered and sees; all that the page does, without the page.

    Args:
        chat: The model that answers.
    """

    def __init__(self, chat: ChatModel) -> None:
        from mm1_pipeline.evaluation.chat import Conversation

        self._conversation = Conversation(chat)
        self._turns: list[tuple[str, list[str], int]] = []
        """Words, pictures, and the exchanges that there were before."""
        self._history: History = []

    def say(self, text: str, files: list[str]) -> Generator[History, None, None]:
        """An exchange: what the visitor says and shows, and the answer as it grows."""
        self._turns.append((text, files, self._conversation.num_exchanges))
        shown: History = [_message("user", {"path": path}) for path in files]
        shown += [_message("user", text)] if text else []
        before = [*self._history, *shown]
        self._history = before
        yield before
        answer = ""
        try:
            images = [read_image(Path(path)) for path in files]
            for answer in self._conversation.stream(text, images):
                self._history = [*before, _message("assistant", answer or "…")]
                yield self._history
        except ValueError as error:
            answer = f"*{error}*"
        self._history = [*before, _message("assistant", answer or f"*{NOTHING}*")]
        yield self._history

    def undo(self) -> tuple[str, list[str]]:
        """Takes the last exchange back.

        Returns:
            What was said and shown in it; nothing where nothing was said yet.
        """
        if not self._turns:
            return "", []
        text, files, num_before = self._turns.pop()
        while self._conversation.num_exchanges > num_before:
            self._conversation.undo()
        while self._history and self._history[-1]["role"] == "assistant":
            self._history = self._history[:-1]
        self._history = self._history[: len(self._history) - len(files) - bool(text)]
        return text, files

    def retry(self) -> Generator[History, None, None]:
        """Asks the last thing again."""
        text, files = self.undo()
        if text or files:
            yield from self.say(text, files)
        else:
            yield self._history

    def clear(self) -> History:
        """Begins anew: the model, too, forgets what was said."""
        self._conversation.reset()
        self._turns, self._history = [], []
        return []

    @property
    def history(self) -> History:
        """What the visitor sees."""
        return self._history


def _message(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def build_page(chat: ChatModel) -> Any:
    """The page, not yet served.

    Each visitor has a conversation of their own.

    Args:
        chat: The model that answers.

    Raises:
        StalenessError: Gradio is not installed.
    """
    gradio = _import_gradio()

    def say(message: Message, visitor: Visitor) -> Generator[tuple[Any, History], None, None]:
        empty = {"text": "", "files": []}
        for history in visitor.say(message.get("text") or "", message.get("files") or []):
            yield empty, history

    def example(chosen: Any, visitor: Visitor) -> Generator[History, None, None]:
        files = [file["path"] for file in chosen.value.get("files", [])]
        yield from visitor.say(chosen.value.get("text", ""), files)

    example.__annotations__["chosen"] = gradio.SelectData  # Gradio reads it off the function.

    def undo(visitor: Visitor) -> tuple[Message, History]:
        text, files = visitor.undo()
        return {"text": text, "files": files}, visitor.history

    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        about = chat.card.partition("\n")[0] or "Ask about an image, or say anything."
        gradio.Markdown(f"# {TITLE}\n{about}", elem_id="head")
        if chat.card:
            with gradio.Accordion("What it can and cannot do, and what it learnt from", open=False):
                gradio.Markdown(chat.card, elem_id="card")
        visitor = gradio.State(lambda: Visitor(chat))
        chatbot = gradio.Chatbot(
            elem_id="chat",
            show_label=False,
            height="56vh",
            placeholder=_HINT,
            examples=_written_examples(chat),
            feedback_options=None,
            buttons=["copy"],
        )
        message = gradio.MultimodalTextbox(
            placeholder="Ask about a picture",
            sources=["upload"],
            file_types=["image"],
            file_count="multiple",
            show_label=False,
            autofocus=True,
            max_plain_text_length=100_000,
            stop_btn=True,
        )
        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        asked = message.submit(say, [message, visitor], [message, chatbot], **hidden)
        again = chatbot.retry(Visitor.retry, [visitor], [chatbot], **hidden)
        clicked = chatbot.example_select(example, [visitor], [chatbot], **hidden)
        message.stop(None, cancels=[asked, again, clicked])
        chatbot.undo(undo, [visitor], [message, chatbot], **hidden)
        chatbot.clear(Visitor.clear, [visitor], [chatbot], **hidden)
        gradio.Button("New conversation", size="sm").click(
            Visitor.clear, [visitor], [chatbot], cancels=[asked, again, clicked], **hidden
        )
    return page


def _written_examples(chat: ChatModel) -> list[dict[str, Any]]:
    """Pictures to click, as files of which the page makes copies."""
    if not chat.examples:
        return []
    folder = Path(tempfile.mkdtemp(prefix="mm1-chat-"))
    examples = []
    for number, (text, data) in enumerate(chat.examples):
        path = folder / f"{number}.png"
        path.write_bytes(data)
        file = {"path": str(path)}
        examples.append({"text": text, "icon": file, "files": [file], "display_text": text})
    return examples


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
        css=_CSS,
        footer_links=[],
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _import_gradio() -> Any:
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise StalenessError(
            "The chat page needs Gradio, which is not installed. `make chat` installs it and opens "
            "the page; or install the extra `chat` (docs/sft.md), or leave --page out to chat in "
            "the terminal."
        ) from error
