"""Keys of endpoints are in no log, artifact, answer or exception, whatever a server does."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mm1_pipeline.config.evaluation import JudgeConfig
from mm1_pipeline.config.synthesis import EndpointConfig
from mm1_pipeline.corpus.api_keys import ApiKey
from mm1_pipeline.corpus.synthesis.endpoint import EndpointWriter
from mm1_pipeline.corpus.synthesis.writers import CaptionRequest
from mm1_pipeline.evaluation.scoring.judge import Judge
from mm1_pipeline.ground.rejects import Rejected

KEY = "sk-4f9a-not-a-real-key-77c1"
HOW = (
    *("in a reply", "in no JSON", "in other JSON", "in the reason", "in a header", "in a redirect"),
    *("no status line", "closed", "500", "401"),
)
"""What the server does with the key that it was sent."""


class EchoServer:
    """Repeats the key that it is sent, where it can."""

    def __init__(self) -> None:
        self.how, self.seen = "", []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                told = self.headers.get("Authorization", "")
                owner.seen.append(told)
                self.close_connection = True
                how = owner.how
                if how == "closed":
                    return
                if how == "no status line":
                    self.wfile.write(f"{told}\r\n\r\n".encode())
                    return
                statuses = {"in the reason": 401, "in a redirect": 302, "500": 500, "401": 401}
                reason = told if how in ("in the reason", "500", "401") else None
                self.send_response(statuses.get(how, 200), reason)
                if how == "in a redirect":
                    self.send_header("Location", f"http://127.0.0.1:1/{told}?key={KEY}")
                content = {"choices": [{"message": {"content": f"9 9 {told}"}}]}
                body = json.dumps(content)
                if how == "in no JSON":
                    body = told
                elif how == "in other JSON":
                    body = json.dumps({"error": told, "choices": {told: 1}})
                self.send_header("X-Echo", told)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


def told_of(error: BaseException) -> str:
    """All that a traceback and the error's own attributes tell."""
    shown, found = "".join(traceback.format_exception(error)), error
    while found is not None:
        shown += repr(found) + repr(vars(found))
        found = found.__cause__ or found.__context__
    return shown


def written_in(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", [KEY, f"{KEY}\n"])
@pytest.mark.parametrize("how", HOW)
def test_a_judges_key_is_shown_nowhere(server, tmp_path, caplog, capfd, monkeypatch, how, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    caplog.set_level(logging.DEBUG)
    server.how = how
    config = JudgeConfig(endpoint=server.address, model="m", api_key_env="JUDGE_KEY", max_retries=1)
    judge = Judge(config, tmp_path / "judge.jsonl")
    try:
        shown = judge.ask("question").reply
        assert shown.startswith("9 9 ")
    except ValueError as error:
        shown = told_of(error)
    assert server.seen[0] == f"Bearer {KEY}", "it was sent"
    everything = shown + caplog.text + "".join(capfd.readouterr()) + written_in(tmp_path)
    assert KEY not in everything + repr(config) + repr(judge) + repr(vars(judge)["_key"])
    assert KEY[3:-3] not in everything


@pytest.mark.parametrize("how", HOW)
def test_a_writers_key_is_shown_nowhere(server, caplog, capfd, monkeypatch, how):
    monkeypatch.setenv("WRITER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    server.how = how
    config = EndpointConfig(base_url=server.address, key_variable="WRITER_KEY", num_retries=0)
    writer = EndpointWriter(config, "Say it anew.")
    try:
        (answer,) = writer.write([CaptionRequest("k", "a cat", {})])
        shown = f"{answer.reason} {answer.detail}" if isinstance(answer, Rejected) else answer
    except ValueError as error:
        shown = told_of(error)
    assert server.seen[0] == f"Bearer {KEY}"
    everything = shown + caplog.text + "".join(capfd.readouterr()) + repr(writer.provenance)
    assert KEY[3:-3] not in everything + repr(vars(writer))


@pytest.mark.parametrize("key", [f"{KEY}\nX: y", f"{KEY}\x07", f"{KEY}…"])
def test_a_key_that_no_header_holds_is_refused_without_being_shown(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    config = JudgeConfig(endpoint="http://127.0.0.1:1/v1", model="m", api_key_env="JUDGE_KEY")
    with pytest.raises(ValueError, match="JUDGE_KEY: found an environment variable with") as told:
        Judge(config)
    assert KEY not in told_of(told.value)


def test_a_placeholder_is_no_secret(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "EMPTY")
    key = ApiKey("JUDGE_KEY")
    assert key.headers() == {"Authorization": "Bearer EMPTY"}
    assert key.hide("the box is EMPTY") == "the box is EMPTY"
    assert not ApiKey(None)


@pytest.mark.parametrize("address", ["http://u:pw12@h/v1", "https://h/v1?api_key=pw12"])
def test_keys_in_addresses_are_refused_before_they_are_stored(address):
    for make in (
        lambda: JudgeConfig(endpoint=address, model="m"),
        lambda: EndpointConfig(base_url=address),
    ):
        with pytest.raises(ValueError, match="an address with a key in it") as told:
            make()
        assert "pw12" not in str(told.value).split("[type=")[0]
