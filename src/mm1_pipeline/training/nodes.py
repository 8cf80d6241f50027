"""The machines of one training: who takes part, what they are told, and whether all are there.

The leader is the process that runs the pipeline on node 0. It waits for the others at
MASTER_ADDR:MASTER_PORT, and closes that port once all have joined. Each of the others waits for the
training, runs its part, and keeps its connection: whoever goes, the rest notices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from mm1_pipeline.config._base import parameters
from mm1_pipeline.training.authenticated import Channel, RefusedError
from mm1_pipeline.training.errors import TrainingStoppedError

logger = logging.getLogger(__name__)

JOIN_SECONDS = 600.0
"""How long the leader waits for the other machines, and ranks for each other."""
TERMINATED = "terminated"
"""Reason of an end that all ranks have agreed on: those of this node say so themselves."""
_ANSWER_SECONDS = 30.0
_RETRY_SECONDS = 0.5
_CONNECTIONS_AT_ONCE = 64
"""Of strangers and joiners together; more are hung up on."""

_Text = Annotated[str, Field(max_length=20_000)]


@dataclasses.dataclass(frozen=True)
class Node:
    """This machine among those of a training, as the environment says."""

    rank: int = 0
    """NODE_RANK; 0 runs the pipeline."""
    count: int = 1
    """NNODES."""
    address: str = ""
    """MASTER_ADDR, an address of node 0."""
    port: int = 0
    """MASTER_PORT, where node 0 waits for the others."""

    @classmethod
    def of_environment(cls) -> Node:
        """Reads NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT.

        Raises:
            ValueError: several machines, and one of the others is missing or impossible.
        """
        count, rank = num_nodes(), int(os.environ.get("NODE_RANK", "0"))
        if count < 2:
            return cls()
        address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
        if not address or not port:
            raise ValueError(
                f"Found NNODES={count} in the environment without MASTER_ADDR and MASTER_PORT, "
                "expected both: the address of the node that runs the pipeline and a free port "
                "there."
            )
        if not port.isdecimal() or not 1 <= int(port) <= 65_535:
            raise ValueError(f"MASTER_PORT: found {port!r}, expected a number of 1..65535.")
        if not 0 <= rank < count:
            raise ValueError(
                f"NODE_RANK: found {rank}, expected 0..{count - 1} (NNODES={count} machines)."
            )
        return cls(rank, count, address, int(port))


ALONE = Node()
"""One machine trains."""


def num_nodes() -> int:
    """Machines that train together: the environment's NNODES, 1 without it."""
    return int(os.environ.get("NNODES", "1"))


@parameters
class Introduction:
    """What a joiner says first."""

    kind: Literal["introduction"] = "introduction"
    node: int
    num_nodes: int
    versions: dict[str, _Text]
    num_gpus: int


@parameters
class Assignment:
    """The leader's answer, once all are there: the training and this node's part in it."""

    kind: Literal["assignment"] = "assignment"
    order: str
    """A `job.Order` as JSON, which the ranks read."""
    num_processes: int
    device: Literal["cpu", "cuda"]


@parameters
class Refusal:
    """The leader's answer to one who cannot take part."""

    kind: Literal["refusal"] = "refusal"
    reason: _Text


@parameters
class End:
    """The sender's part of the training is over, well if there is no reason."""

    kind: Literal["end"] = "end"
    reason: _Text | None = None


_MESSAGE: TypeAdapter[Introduction | Assignment | Refusal | End] = TypeAdapter(
    Annotated[Introduction | Assignment | Refusal | End, Field(discriminator="kind")]
)


class Joined:
    """The other machines of a training that this one leads.

    Args:
        listener: from `listen`; closed once all have joined.
        secret: from `read_secret`.
        node: this machine's number and address among those of the training.
        num_processes: on every node.
        device: of every process.
        versions: of what has to be the same everywhere.
        timeout_seconds: how long the others may take.

    Raises:
        ValueError: one of them has other versions, too few GPUs, or counts other machines.
        TrainingStoppedError: some did not come.
    """

    def __init__(
        self,
        listener: socket.socket,
        secret: bytes,
        node: Node,
        *,
        num_processes: int,
        device: Literal["cpu", "cuda"],
        versions: dict[str, str],
        timeout_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._node, self._num_processes = node, num_processes
        self._device: Literal["cpu", "cuda"] = device
        self._versions = versions
        self._channels: dict[int, Channel] = {}
        self._ended: set[int] = set()
        self._refused: list[str] = []
        arrivals: queue.Queue[tuple[str, Channel]] = queue.Queue()
        with listener:
            threading.Thread(
                target=_accept, args=(listener, secret, arrivals), name="join", daemon=True
            ).start()
            try:
                self._gather(arrivals, time.monotonic() + timeout_seconds, timeout_seconds)
            except BaseException as error:
                self.end(str(error) or type(error).__name__)
                raise
            finally:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts

    def _gather(
        self, arrivals: queue.Queue[tuple[str, Channel]], deadline: float, timeout: float
    ) -> None:
        logger.info(
            "Waiting for %d other machine(s) at %s port %d.",
            self._node.count - 1,
            self._node.address,
            self._node.port,
        )
        while missing := self._missing():
            try:
                where, channel = arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                refused = f" Refused: {'; '.join(self._refused[:3])}." if self._refused else ""
                raise TrainingStoppedError(
                    f"Found {len(self._channels)} of {self._node.count - 1} other machines after "
                    f"{timeout:.0f} s, expected all of them (missing NODE_RANK: "
                    f"{', '.join(map(str, sorted(missing)))}).{refused} Start "
                    "`python -m mm1_pipeline.training.launch` on each of them."
                ) from None
            self._admit(where, channel)

    def _missing(self) -> set[int]:
        """Nodes that have not joined, or have gone again."""
        for node, channel in list(self._channels.items()):
            if channel.has_message():  # nobody speaks now, so it has gone
                logger.warning("Node %d has gone again before the training began.", node)
                self._channels.pop(node).close()
        return set(range(1, self._node.count)) - self._channels.keys()

    def _admit(self, where: str, channel: Channel) -> None:
        try:
            found = _receive(channel, _ANSWER_SECONDS)
        except RefusedError as error:
            logger.warning("Refused %s, which knows the secret: %s.", where, error)
            channel.close()
            return
        if not isinstance(found, Introduction):
            self._refuse(
                channel, f"Found a message {found.kind!r} from {where}, expected who it is"
            )
            return
        if problem := self._problem(found, where):
            self._refuse(channel, problem)
            raise ValueError(problem)
        if found.node not in self._missing():
            here = found.node in self._channels
            taken = "a node that has joined already" if here else f"a node {found.node}"
            self._refuse(
                channel,
                f"Found {taken} (NODE_RANK={found.node}) at {where}, expected each of "
                f"1..{self._node.count - 1} once",
            )
            return
        logger.info("Node %d has joined from %s.", found.node, where)
        self._channels[found.node] = channel

    def _problem(self, found: Introduction, where: str) -> str | None:
        """What must be mended before the training can start."""
        who = f"node {found.node} ({where})"
        if found.num_nodes != self._node.count:
            return (
                f"Found NNODES={found.num_nodes} on {who} and NNODES={self._node.count} on the "
                "leading node, expected the same number on all machines."
            )
        for name in sorted(self._versions.keys() | found.versions.keys()):
            here, there = self._versions.get(name), found.versions.get(name)
            if here != there:
                return (
                    f"Found {name} {there} on {who} and {here} on the leading node, expected the "
                    "same installation on all machines."
                )
        if self._device == "cuda" and found.num_gpus < self._num_processes:
            return (
                f"Found {found.num_gpus} GPUs on {who}, expected {self._num_processes}, as many as "
                "the leading node starts processes. Set num_processes to a number that every "
                "machine has GPUs for."
            )
        return None

    def _refuse(self, channel: Channel, reason: str) -> None:
        logger.warning("%s: refused.", reason)
        self._refused.append(reason)
        with contextlib.suppress(RefusedError):
            _send(channel, Refusal(reason=reason))
        channel.close()

    def assign(self, order: bytes) -> None:
        """Tells all of them what to train."""
        assignment = Assignment(
            order=order.decode(), num_processes=self._num_processes, device=self._device
        )
        for node, channel in self._channels.items():
            try:
                _send(channel, assignment)
            except RefusedError as error:
                raise TrainingStoppedError(_gone(f"node {node}", error)) from None

    def check(self) -> None:
        """Looks whether all are still there.

        Raises:
            TrainingStoppedError: one has gone or failed.
        """
        for node, channel in self._channels.items():
            if node not in self._ended and _has_ended(channel, f"node {node}"):
                self._ended.add(node)

    def end(self, reason: str | None) -> None:
        """Tells all that the training is over, and hangs up."""
        for channel in self._channels.values():
            with contextlib.suppress(RefusedError):
                _send(channel, End(reason=reason and reason[:10_000]))
            channel.close()


class Leader:
    """The node that leads the training that this one has joined.

    Args:
        node: this machine's number and address among those of the training.
        secret: from `read_secret`.
        versions: of what has to be the same everywhere.
        num_gpus: of this machine.
        timeout_seconds: how long the leader may not be there yet.

    Raises:
        TrainingStoppedError: it did not come, is no leader of ours, or refused this node.
    """

    def __init__(
        self,
        node: Node,
        secret: bytes,
        *,
        versions: dict[str, str],
        num_gpus: int,
        timeout_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._where = f"the leading node ({node.address} port {node.port})"
        self._channel = self._connect(node, secret, time.monotonic() + timeout_seconds)
        self._ended = False
        introduction = Introduction(
            node=node.rank, num_nodes=node.count, versions=versions, num_gpus=num_gpus
        )
        try:
            _send(self._channel, introduction)
            # The leader waits for all, then answers; when it goes, this ends too.
            answer = _receive(self._channel, None)
        except RefusedError as error:
            raise TrainingStoppedError(_gone(self._where, error)) from None
        if isinstance(answer, Refusal | End):
            self._channel.close()
            raise TrainingStoppedError(f"Refused by {self._where}: {answer.reason}")
        if not isinstance(answer, Assignment):
            raise TrainingStoppedError(
                f"Found a message {answer.kind!r} from {self._where}, expected an assignment."
            )
        self.assignment = answer

    def _connect(self, node: Node, secret: bytes, deadline: float) -> Channel:
        while True:
            try:
                return self._prove(node, secret)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise TrainingStoppedError(
                        f"Found no leader at {self._where} ({error}), expected the node that runs "
                        "the pipeline. Start it, or mend MASTER_ADDR and MASTER_PORT."
                    ) from None
                time.sleep(_RETRY_SECONDS)
            except RefusedError as error:
                raise TrainingStoppedError(
                    f"Found {self._where} but could not join: {error}. Set the same secret on all "
                    "machines (see docs/training.md)."
                ) from None

    @staticmethod
    def _prove(node: Node, secret: bytes) -> Channel:
        connection = socket.create_connection((node.address, node.port), timeout=10)
        try:
            _keep_alive(connection)
            return Channel.of_joiner(connection, secret)
        except BaseException:
            connection.close()
            raise

    @property
    def own_address(self) -> str:
        """Address of this machine by which the leader reaches it."""
        return self._channel.own_address

    def check(self) -> None:
        """Looks whether it is still there.

        Raises:
            TrainingStoppedError: it has gone or failed.
        """
        if not self._ended:
            self._ended = _has_ended(self._channel, self._where)

    def end(self, reason: str | None) -> None:
        """Tells it that this node's part is over, and hangs up."""
        with contextlib.suppress(RefusedError):
            _send(self._channel, End(reason=reason and reason[:10_000]))
        self._channel.close()


def listen(address: str, port: int) -> socket.socket:
    """Opens a port at one address of this machine, and at no other.

    Args:
        address: name or number.
        port: 0 for any that is free.

    Raises:
        ValueError: the address is none of this machine, or the port is taken.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((where[0], where[1]), family=family)  # pyright: ignore
    except OSError as error:
        raise ValueError(
            f"Found no way to listen at {address} port {port} ({error}), expected MASTER_ADDR to "
            "be an address of this machine, by which the others reach it, and MASTER_PORT to be "
            "free."
        ) from None


def interface_of(address: str) -> str | None:
    """Name of the network interface that has an address; None if it cannot be told."""
    if address.startswith("127.") or address == "::1":
        return loopback_interface()
    for name, known in _interface_addresses():
        if known == address:
            return name
    return None


def loopback_interface() -> str:
    """Name of the interface that only this machine can reach."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _interface_addresses() -> Iterator[tuple[str, str]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                yield name, socket.inet_ntoa(answer[20:24])
    table = Path("/proc/net/if_inet6")
    for line in table.read_text(encoding="ascii").splitlines() if table.exists() else ():
        number, *_, name = line.split()
        yield name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(number))


def _accept(
    listener: socket.socket, secret: bytes, arrivals: queue.Queue[tuple[str, Channel]]
) -> None:
    """Hands on those who know the secret, until the listener is closed."""
    places = threading.Semaphore(_CONNECTIONS_AT_ONCE)

    def prove(connection: socket.socket, where: str) -> None:
        try:
            _keep_alive(connection)
            arrivals.put((where, Channel.of_leader(connection, secret)))
        except RefusedError as error:
            logger.warning("Refused a connection from %s: %s.", where, error)
            connection.close()
        finally:
            places.release()

    while True:
        try:
            connection, where = listener.accept()
        except OSError:
            return
        if not places.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(target=prove, args=(connection, where[0]), daemon=True).start()


def _keep_alive(connection: socket.socket) -> None:
    """Lets the kernel notice within minutes that the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(channel: Channel, message: Introduction | Assignment | Refusal | End) -> None:
    channel.send(_MESSAGE.dump_json(message))


def _receive(
    channel: Channel, timeout_seconds: float | None
) -> Introduction | Assignment | Refusal | End:
    content = channel.receive(timeout_seconds)
    try:
        return _MESSAGE.validate_json(content, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RefusedError(f"its message is none of ours ({where}: {problem['msg']})") from None


def _has_ended(channel: Channel, who: str) -> bool:
    """Whether the other end has said that its part is over, and well."""
    if not channel.has_message():
        return False
    try:
        message = _receive(channel, _ANSWER_SECONDS)
    except RefusedError as error:
        raise TrainingStoppedError(_gone(who, error)) from None
    if not isinstance(message, End) or message.reason not in (None, TERMINATED):
        reason = message.reason if isinstance(message, End | Refusal) else message.kind
        raise TrainingStoppedError(
            f"Found the training ended by {who}, expected it to go on: {reason}"
        )
    return True


def _gone(who: str, error: RefusedError) -> str:
    return (
        f"Found the connection to {who} lost ({error}), expected it until the training ends. All "
        "ranks of this node were ended; the same call resumes from the last checkpoint."
    )
