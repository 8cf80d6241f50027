"""The chat as a page in the browser, with pictures; needs the extra `chat` (Gradio)."""

from __future__ import annotations

import atexit
import importlib
import ipaddress
import os
import shutil
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
#card table { display: block; overflow-x: auto; border: none; }
#card td, #card th { white-space: nowrap; }
#examples, #examples .grid-wrap { min-height: 0 !important; height: auto !important; }
#examples img { image-rendering: auto; background: white; }
#examples .caption-label { white-space: normal; font-size: 12px; position: static; }
@media (max-width: 640px) {
  #examples .grid-container { grid-template-columns: repeat(3, 1fr) !important; }
}
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

    def busy(is_busy: bool, value: Message | None = None) -> Any:
        """The box to write in: while an answer grows, its button stops it."""
        given = {} if value is None else {"value": value}
        return gradio.MultimodalTextbox(submit_btn=not is_busy, stop_btn=is_busy, **given)

    def show(growing: Generator[History, None, None]) -> Generator[tuple[Any, History], None, None]:
        history: History = []
        for number, history in enumerate(growing):
            yield busy(True, {"text": "", "files": []} if number == 0 else None), history
        yield busy(False), history

    def say(message: Message, visitor: Visitor) -> Generator[tuple[Any, History], None, None]:
        yield from show(visitor.say(message.get("text") or "", message.get("files") or []))

    def retry(visitor: Visitor) -> Generator[tuple[Any, History], None, None]:
        yield from show(visitor.retry())

    def example(visitor: Visitor, chosen: Any) -> Generator[tuple[Any, History], None, None]:
        yield from show(visitor.say(chat.examples[chosen.index][0], [pictures[chosen.index]]))

    example.__annotations__["chosen"] = gradio.SelectData  # Gradio reads it off the function.

    def undo(visitor: Visitor) -> tuple[Any, History]:
        text, files = visitor.undo()
        return busy(False, {"text": text, "files": files}), visitor.history

    def clear(visitor: Visitor) -> tuple[Any, History]:
        return busy(False), visitor.clear()

    pictures = _written_examples(chat)
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        about = chat.card.partition("\n")[0] or "Ask about an image, or say anything."
        gradio.Markdown(f"# {TITLE}\n{about}", elem_id="head")
        if chat.card:
            with gradio.Accordion("About this model", open=False):
                gradio.Markdown(chat.card, elem_id="card")
        visitor = gradio.State(lambda: Visitor(chat))
        chatbot = gradio.Chatbot(
            elem_id="chat",
            show_label=False,
            height="46vh",
            placeholder=_HINT,
            feedback_options=None,
            buttons=["copy"],
        )
        message = gradio.MultimodalTextbox(
            elem_id="say",
            placeholder="Ask about a picture",
            sources=["upload"],
            file_types=["image"],
            file_count="multiple",
            show_label=False,
            autofocus=True,
            max_plain_text_length=100_000,
        )
        asks: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        box = [message, chatbot]
        growing = [message.submit(say, [message, visitor], box, **asks)]
        growing.append(chatbot.retry(retry, [visitor], box, **asks))
        if pictures:
            gradio.Markdown("Pictures that it never learnt from: click one to ask of it")
            gallery = gradio.Gallery(
                [(path, text) for path, (text, _) in zip(pictures, chat.examples, strict=True)],
                elem_id="examples",
                show_label=False,
                container=False,
                columns=6,
                height="auto",
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
            )
            growing.append(gallery.select(example, [visitor], box, **asks))
        message.stop(lambda: busy(False), None, [message], cancels=growing, **asks)
        chatbot.undo(undo, [visitor], box, **asks)
        chatbot.clear(clear, [visitor], box, cancels=growing, **asks)
        gradio.Button("New conversation", size="sm").click(
            clear, [visitor], box, cancels=growing, **asks
        )
    return page


def _written_examples(chat: ChatModel) -> list[str]:
    """Pictures to click, as files of which the page makes copies."""
    if not chat.examples:
        return []
    folder = Path(tempfile.mkdtemp(prefix="mm1-chat-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = []
    for number, (_, data) in enumerate(chat.examples):
        path = folder / f"{number}.png"
        path.write_bytes(data)
        paths.append(str(path))
    return paths


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
