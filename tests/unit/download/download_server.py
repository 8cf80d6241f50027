"""A server on loopback that answers well and badly, for tests of the stage `download`."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from mm1_pipeline.config.download import FetchLimits


def png(number: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: ClassVar[Counter[str]] = Counter()
    starts: ClassVar[list[float]] = []
    active = peak = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        cls = type(self)
        with cls.lock:
            cls.requests[self.path] += 1
            cls.starts.append(time.monotonic())
            cls.active += 1
            cls.peak = max(cls.peak, cls.active)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.answer(self.path.strip("/").split("/"))
        with cls.lock:
            cls.active -= 1

    def answer(self, parts: list[str]) -> None:
        match parts:
            case ["image", number]:
                self.reply(png(int(number)), "image/png")
            case ["unnamed", number]:
                self.reply(png(int(number)), None)
            case ["slow"]:
                time.sleep(1.0)
                self.reply(png(0), "image/png")
            case ["page"]:
                self.reply(b"<html>", "text/html; charset=utf-8")
            case ["fake"]:
                self.reply(b"<html>", "image/png")
            case ["cut"]:
                self.reply(png(1)[:-30], "image/png")
            case ["bomb"]:
                self.reply(bomb(), "image/png")
            case ["large"]:
                self.reply(b"0" * 100_000, "image/png")
            case ["endless"]:
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Connection", "close")
                self.end_headers()
                for _ in range(1_000):
                    self.wfile.write(b"0" * 10_000)
                self.close_connection = True
            case ["broken"]:
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"0" * 10)
                self.close_connection = True
            case ["packed"]:
                headers = {"Content-Encoding": "gzip"}
                self.reply(b"\x1f\x8b" + b"0" * 100, "image/png", headers)
            case ["noai"]:
                self.reply(png(1), "image/png", {"X-Robots-Tag": "noarchive, NoAI"})
            case ["nobot"]:
                self.reply(png(1), "image/png", {"X-Robots-Tag": "somebot: noindex"})
            case ["archive"]:
                self.reply(png(1), "image/png", {"X-Robots-Tag": "noarchive"})
            case ["to", *target]:
                self.reply(b"", None, {"Location": "/" + "/".join(target)}, 302)
            case ["metadata"]:
                target = "http://169.254.169.254/latest/meta-data"
                self.reply(b"", None, {"Location": target}, 302)
            case ["file"]:
                self.reply(b"", None, {"Location": "file:///etc/passwd"}, 302)
            case ["loop"]:
                self.reply(b"", None, {"Location": "/loop"}, 302)
            case ["flaky"]:
                if type(self).requests[self.path] == 1:
                    self.reply(b"", None, {}, 503)
                else:
                    self.reply(png(7), "image/png")
            case _:
                self.reply(b"", None, {}, 404)

    def reply(
        self, body: bytes, kind: str | None, headers: dict | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Silent."""


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests, Handler.starts, Handler.active, Handler.peak = Counter(), [], 0, 0
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


LOCAL = FetchLimits(
    connect_seconds=10.0,
    total_seconds=20.0,
    max_bytes=50_000,
    host_delay_seconds=0.0,
    connections_per_host=8,
    num_retries=0,
    allow_private_addresses=True,
)
