"""Connections between machines that have proven to each other that they know one secret.

torch.distributed has no authentication, so what a training is must not come through it. Each
connection begins with a handshake of fixed sizes, in which nothing is parsed:

    leader -> joiner   greeting, nonce of the leader
    joiner -> leader   nonce of the joiner, HMAC-SHA256(secret, "joiner", both nonces)
    leader -> joiner   HMAC-SHA256(secret, "leader", both nonces)

Nonces are new for every connection, so a recorded answer proves nothing. After it, each
message carries an HMAC of its direction, number and content under a key of this connection, so
none can be forged, replayed, reordered or turned around. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import select
import socket
import struct
import time
from pathlib import Path

SECRET = "MM1_SECRET"  # noqa: S105  the variable's name
SECRET_FILE = "MM1_SECRET_FILE"  # noqa: S105

_GREETING = b"mm1-join"
_NONCE_BYTES = 32
_MAC_BYTES = 32
_MIN_SECRET_CHARACTERS = 32
_MAX_MESSAGE_BYTES = 1 << 20
_HANDSHAKE_SECONDS = 10.0
_HOW_TO_MAKE_ONE = (
    "Make one with `python -c 'import secrets; print(secrets.token_hex(32))' > FILE`, `chmod 600 "
    f"FILE`, give all machines the same file and set {SECRET_FILE} to its path on each of them"
)


class RefusedError(Exception):
    """The other end of a connection is not one of ours, or is not intact."""


def read_secret() -> bytes:
    """The secret that the machines of a training share.

    It is read from a file or from the environment, never from a command line, which every user of
    a machine can see.

    Raises:
        ValueError: there is none, it is too short to keep a guesser out, or others can read it.
    """
    if name := os.environ.get(SECRET_FILE):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"{SECRET_FILE}: found no file {path}. {_HOW_TO_MAKE_ONE}.")
        if path.stat().st_mode & 0o077:
            raise ValueError(
                f"{SECRET_FILE}: found {path} open to other users, expected a file that only its "
                f"owner can read: `chmod 600 {path}`."
            )
        where, text = f"the file {path} ({SECRET_FILE})", path.read_text(encoding="utf-8").strip()
    elif SECRET in os.environ:
        where, text = SECRET, os.environ[SECRET].strip()
    else:
        raise ValueError(
            f"Found several machines (NNODES) and neither {SECRET_FILE} nor {SECRET}, expected a "
            "secret that they share: without one, whoever reaches the port would decide what is "
            f"trained. {_HOW_TO_MAKE_ONE}."
        )
    if len(text) < _MIN_SECRET_CHARACTERS:
        raise ValueError(
            f"Found a secret of {len(text)} characters in {where}, expected at least "
            f"{_MIN_SECRET_CHARACTERS}. {_HOW_TO_MAKE_ONE}."
        )
    return text.encode()


def without_secret(environment: dict[str, str]) -> dict[str, str]:
    """An environment for processes that have no use for the secret."""
    return {name: value for name, value in environment.items() if not name.startswith(SECRET)}


class Channel:
    """One authenticated connection.

    Args:
        connection: past the handshake.
        secret: what all machines of the training know, from `read_secret`.
        nonces: of leader and joiner.
        leads: whether this end is the leader's.
    """

    def __init__(
        self, connection: socket.socket, secret: bytes, nonces: bytes, *, leads: bool
    ) -> None:
        self._connection = connection
        self._sends = _Sealer(secret, nonces, b"from leader" if leads else b"from joiner")
        self._receives = _Sealer(secret, nonces, b"from joiner" if leads else b"from leader")

    @classmethod
    def of_leader(cls, connection: socket.socket, secret: bytes) -> Channel:
        """Makes the leader's end; the joiner has to prove itself first.

        Raises:
            RefusedError: it does not know the secret, or is silent.
        """
        own, deadline = secrets.token_bytes(_NONCE_BYTES), time.monotonic() + _HANDSHAKE_SECONDS
        _send(connection, _GREETING + own)
        answer = _receive(connection, _NONCE_BYTES + _MAC_BYTES, deadline)
        nonces = own + answer[:_NONCE_BYTES]
        if not hmac.compare_digest(answer[_NONCE_BYTES:], _mac(secret, b"joiner", nonces)):
            raise RefusedError("it does not know the secret")
        _send(connection, _mac(secret, b"leader", nonces))
        return cls(connection, secret, nonces, leads=True)

    @classmethod
    def of_joiner(cls, connection: socket.socket, secret: bytes) -> Channel:
        """Makes the joiner's end.

        Raises:
            RefusedError: the other one is no leader that knows the secret, or refused this one.
            ConnectionError: it is silent or hung up at once.
        """
        deadline = time.monotonic() + _HANDSHAKE_SECONDS
        try:
            greeting = _receive(connection, len(_GREETING) + _NONCE_BYTES, deadline)
        except RefusedError as error:  # nothing is known of the secret yet: worth another try
            raise ConnectionError(str(error)) from None
        if not greeting.startswith(_GREETING):
            raise RefusedError("it is no leader of a training")
        own = secrets.token_bytes(_NONCE_BYTES)
        nonces = greeting[len(_GREETING) :] + own
        _send(connection, own + _mac(secret, b"joiner", nonces))
        try:
            proof = _receive(connection, _MAC_BYTES, deadline)
        except RefusedError:
            raise RefusedError("it hung up: the secrets differ") from None
        if not hmac.compare_digest(proof, _mac(secret, b"leader", nonces)):
            raise RefusedError("it does not know the secret")
        return cls(connection, secret, nonces, leads=False)

    @property
    def own_address(self) -> str:
        """Address of this machine by which the other one is reached."""
        return self._connection.getsockname()[0]

    def send(self, body: bytes) -> None:
        """Sends a message of at most a MiB.

        Raises:
            RefusedError: the other end is gone.
        """
        assert len(body) <= _MAX_MESSAGE_BYTES
        _send(self._connection, struct.pack(">I", len(body)) + self._sends.seal(body) + body)

    def receive(self, timeout_seconds: float | None = None) -> bytes:
        """Waits for the other end's next message.

        Args:
            timeout_seconds: how long; None waits until it comes or the other end is gone.

        Raises:
            RefusedError: it is too long or forged, or the other end is gone.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        header = _receive(self._connection, 4 + _MAC_BYTES, deadline)
        (size,) = struct.unpack(">I", header[:4])
        if size > _MAX_MESSAGE_BYTES:
            raise RefusedError(f"it announced a message of {size} bytes")
        body = _receive(self._connection, size, deadline)
        if not hmac.compare_digest(header[4:], self._receives.seal(body)):
            raise RefusedError("its message was not written by one who knows the secret")
        return body

    def has_message(self) -> bool:
        """Whether `receive` would not wait: for a message, or for the news that nobody is there."""
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        return bool(waiting.poll(0))

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()


class _Sealer:
    """Authenticates the messages of one direction in their order."""

    def __init__(self, secret: bytes, nonces: bytes, direction: bytes) -> None:
        self._key = _mac(secret, direction, nonces)
        self._number = 0

    def seal(self, body: bytes) -> bytes:
        self._number += 1
        return _mac(self._key, b"message", struct.pack(">Q", self._number) + body)


def _mac(key: bytes, purpose: bytes, content: bytes) -> bytes:
    return hmac.new(key, b"mm1 1 " + purpose + b"\0" + content, hashlib.sha256).digest()


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except OSError as error:
        raise RefusedError(f"it is gone ({error})") from None


def _receive(connection: socket.socket, size: int, deadline: float | None) -> bytes:
    """Exactly so many bytes, all of them before the deadline: drops keep no connection open."""
    parts = bytearray()
    while len(parts) < size:
        try:
            if deadline is not None and (left := deadline - time.monotonic()) > 0:
                connection.settimeout(left)
            elif deadline is not None:
                raise TimeoutError
            else:
                connection.settimeout(None)
            part = connection.recv(size - len(parts))
        except TimeoutError:
            raise RefusedError("it was silent") from None
        except OSError as error:
            raise RefusedError(f"it is gone ({error})") from None
        if not part:
            raise RefusedError("it is gone")
        parts += part
    return bytes(parts)
