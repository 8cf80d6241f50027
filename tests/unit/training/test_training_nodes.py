"""Machines that join a training, and strangers that try to."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from mm1_pipeline.training import authenticated, nodes
from mm1_pipeline.training.authenticated import Channel, RefusedError, read_secret
from mm1_pipeline.training.errors import TrainingStoppedError
from mm1_pipeline.training.nodes import Joined, Leader, Node, interface_of, listen

SECRET = b"0123456789abcdef" * 4
VERSIONS = {"mm1_pipeline": "0.1.0", "torch": "2.7.0"}


class Led:
    """A leader that waits for one other machine, in a thread."""

    def __init__(self, seconds: float = 20.0, device: str = "cpu", count: int = 2) -> None:
        self.listener = listen("127.0.0.1", 0)
        self.node = Node(0, count, *self.listener.getsockname()[:2])
        self.joined: Joined | None = None
        self.error: Exception | None = None
        self._how = {"device": device, "timeout_seconds": seconds}
        self._thread = threading.Thread(target=self._lead, daemon=True)
        self._thread.start()

    def _lead(self) -> None:
        try:
            self.joined = Joined(
                self.listener, SECRET, self.node, num_processes=5, versions=VERSIONS, **self._how
            )
            self.joined.assign(b'{"the": "order"}')
        except Exception as error:
            self.error = error

    def end(self) -> Joined:
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.joined is not None, self.error
        return self.joined

    def failure(self) -> str:
        self._thread.join(20)
        assert self.error is not None
        return f"{type(self.error).__name__}: {self.error}"

    def join(self, rank: int = 1, secret: bytes = SECRET, **changes) -> Leader:
        how = {"versions": VERSIONS, "num_gpus": 0, "timeout_seconds": 10, **changes}
        count = how.pop("count", self.node.count)
        return Leader(Node(rank, count, self.node.address, self.node.port), secret, **how)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.node.address, self.node.port), timeout=10)


@pytest.fixture
def led():
    return Led()


def test_a_joiner_is_told_what_to_train_and_how_many_processes_to_start(led):
    leader = led.join(num_gpus=8)
    joined = led.end()
    assert leader.assignment.order == '{"the": "order"}'
    assert (leader.assignment.num_processes, leader.assignment.device) == (5, "cpu")
    assert leader.own_address == "127.0.0.1"
    leader.check()
    joined.check()
    leader.end(None)
    joined.check()
    joined.check()
    joined.end(None)


def test_the_leader_may_end_first(led):
    leader, joined = led.join(), led.end()
    joined.end(None)
    leader.check()
    leader.check()


def test_the_port_is_closed_once_all_have_joined(led):
    led.join()
    led.end()
    with pytest.raises(ConnectionRefusedError):
        led.connect()


def hung_up(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def proven(led: Led) -> Channel:
    return Channel.of_joiner(led.connect(), SECRET)


def answers_with(data: bytes):
    def attack(led: Led) -> None:
        connection = led.connect()
        connection.recv(40)
        connection.sendall(data)
        assert hung_up(connection)

    return attack


def wrong_secret(led: Led) -> None:
    with pytest.raises(TrainingStoppedError, match="the secrets differ"):
        led.join(secret=b"another" * 6)


def empty_secret(led: Led) -> None:
    with pytest.raises(TrainingStoppedError, match="the secrets differ"):
        led.join(secret=b"")


def a_job_as_the_old_way_wanted_it(led: Led) -> None:
    connection = led.connect()
    connection.sendall(b"\x00\x03job\x80\x04\x95\x1e")
    connection.shutdown(socket.SHUT_WR)
    assert hung_up(connection)


def recorded_answer(led: Led) -> None:
    """What another connection proved itself with does not prove this one."""
    connection, heard = led.connect(), led.connect()
    nonce, own = heard.recv(40)[8:], b"n" * 32
    proof = hmac.new(SECRET, b"mm1 1 joiner\0" + nonce + own, hashlib.sha256).digest()
    connection.recv(40)
    connection.sendall(own + proof)
    assert hung_up(connection)
    heard.sendall(own + proof)
    assert len(heard.recv(32)) == 32, "where it was made for, it is accepted"
    heard.close()


def own_words_sent_back(led: Led) -> None:
    connection = led.connect()
    greeting = connection.recv(40)
    connection.sendall(greeting[8:] + greeting[8:])
    assert hung_up(connection)


def raw(led: Led, data: bytes) -> None:
    channel = proven(led)
    channel._connection.sendall(data)
    assert hung_up(channel._connection)


def sent(led: Led, body: bytes) -> None:
    channel = proven(led)
    channel.send(body)
    assert hung_up(channel._connection)


def first_message_twice(led: Led) -> None:
    """A whole message, recorded and played again in the same connection."""
    channel = proven(led)
    body = json.dumps({"kind": "end", "reason": None}).encode()
    frame = struct.pack(">I", len(body)) + channel._sends.seal(body) + body
    channel._connection.sendall(frame * 2)
    assert hung_up(channel._connection)


def introduction(**changes) -> bytes:
    right = {"kind": "introduction", "node": 1, "num_nodes": 2, "versions": VERSIONS, "num_gpus": 0}
    return json.dumps({**right, **changes}).encode()


ATTACKS = {
    "wrong secret": wrong_secret,
    "empty secret": empty_secret,
    "nothing": lambda led: led.connect().close(),
    "noise": answers_with(os.urandom(64)),
    "an endless answer": answers_with(os.urandom(1 << 20)),
    "too short an answer": lambda led: led.connect().sendall(b"x"),
    "the old job": a_job_as_the_old_way_wanted_it,
    "replayed handshake": recorded_answer,
    "reflected nonce": own_words_sent_back,
    "unsigned message": lambda led: raw(led, struct.pack(">I", 2) + bytes(32) + b"{}"),
    "oversize message": lambda led: raw(led, struct.pack(">I", 1 << 31) + bytes(32)),
    "message twice": first_message_twice,
    "no JSON": lambda led: sent(led, b"\x80\x04N."),
    "nested JSON": lambda led: sent(led, b"[" * 100_000),
    "no object": lambda led: sent(led, b"[1]"),
    "another kind": lambda led: sent(led, b'{"kind": "assignment", "order": "x"}'),
    "unknown kind": lambda led: sent(led, b'{"kind": "run", "command": "id"}'),
    "unknown field": lambda led: sent(led, introduction(command="id")),
    "wrong type": lambda led: sent(led, introduction(node="1")),
    "missing field": lambda led: sent(led, b'{"kind": "introduction", "node": 1}'),
    "long text": lambda led: sent(led, introduction(versions={"torch": "x" * 30_000})),
    "node of another training": lambda led: sent(led, introduction(node=2)),
    "node 0": lambda led: sent(led, introduction(node=0)),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_stranger_is_refused_and_the_joiner_still_joins(led, attack):
    attack(led)
    leader = led.join()
    led.end()
    assert leader.assignment.order == '{"the": "order"}'


def test_strangers_who_hold_every_place_do_not_keep_the_joiner_out(led, monkeypatch):
    monkeypatch.setattr(authenticated, "_HANDSHAKE_SECONDS", 1.0)
    silent = [led.connect() for _ in range(nodes._CONNECTIONS_AT_ONCE + 8)]
    assert led.join().assignment.num_processes == 5
    led.end()
    assert all(hung_up(connection) for connection in silent)


def false_leader(answer) -> Node:
    """Somebody who listens where the leader should."""
    listener = listen("127.0.0.1", 0)

    def serve() -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        with contextlib.suppress(ConnectionError, RefusedError):
            answer(connection)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return Node(1, 2, *listener.getsockname()[:2])


def guesses(connection: socket.socket) -> None:
    connection.sendall(b"mm1-join" + bytes(32))
    connection.recv(64)
    connection.sendall(os.urandom(32))


def sends_the_proof_back(connection: socket.socket) -> None:
    connection.sendall(b"mm1-join" + bytes(32))
    connection.sendall(connection.recv(64)[32:])


def speaks_another_language(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 0\r\n\r\n")
    connection.recv(64)


@pytest.mark.parametrize("answer", [guesses, sends_the_proof_back, speaks_another_language])
def test_a_joiner_takes_no_training_from_a_false_leader(answer):
    node = false_leader(answer)
    with pytest.raises(TrainingStoppedError, match="could not join"):
        Leader(node, SECRET, versions=VERSIONS, num_gpus=0, timeout_seconds=5)


@pytest.mark.parametrize(
    "message",
    [
        b'{"kind": "assignment", "order": {}, "num_processes": 1, "device": "cpu"}',
        b'{"kind": "assignment", "order": "", "num_processes": "1", "device": "cpu"}',
        b'{"kind": "assignment", "order": "", "num_processes": 1, "device": "tpu"}',
        b"\x80\x04N.",
    ],
)
def test_an_assignment_is_checked_on_arrival(message):
    def answer(connection: socket.socket) -> None:
        channel = Channel.of_leader(connection, SECRET)
        channel.receive(5)
        channel.send(message)

    with pytest.raises(TrainingStoppedError, match="its message is none of ours"):
        Leader(false_leader(answer), SECRET, versions=VERSIONS, num_gpus=0, timeout_seconds=5)


def test_a_message_cannot_be_turned_around():
    """What the leader said is not accepted from its joiner."""
    ends = socket.socketpair()
    made = []
    thread = threading.Thread(target=lambda: made.append(Channel.of_leader(ends[0], SECRET)))
    thread.start()
    joiner = Channel.of_joiner(ends[1], SECRET)
    thread.join()
    leader = made[0]
    leader.send(b"{}")
    frame = ends[1].recv(100)
    ends[1].sendall(frame)
    with pytest.raises(RefusedError, match="not written by one who knows"):
        leader.receive(5)
    joiner.send(b"a")
    assert leader._connection is ends[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 4}, r"NNODES=4 on node 1 .* and NNODES=2 on the leading node"),
        (
            {"versions": {**VERSIONS, "torch": "2.8.0"}},
            r"torch 2\.8\.0 on node 1 .* and 2\.7\.0 on the leading node",
        ),
    ],
)
def test_machines_that_do_not_fit_are_refused_on_both_with_both_values(led, changes, message):
    with pytest.raises(TrainingStoppedError, match=f"Refused by the leading node.*{message}"):
        led.join(**changes)
    assert led.failure().startswith("ValueError: Found")


def test_too_few_gpus_are_refused_on_both_with_both_numbers():
    led = Led(device="cuda")
    with pytest.raises(TrainingStoppedError, match=r"Found 4 GPUs on node 1 .*, expected 5"):
        led.join(num_gpus=4)
    assert "Found 4 GPUs on node 1 (127.0.0.1), expected 5" in led.failure()


def test_a_node_that_has_joined_is_not_replaced_while_it_is_there():
    led = Led(count=3)
    errors, ends = [], []

    def join_as_1() -> None:
        try:
            ends.append(led.join(rank=1))
        except TrainingStoppedError as error:
            errors.append(str(error))

    both = [threading.Thread(target=join_as_1) for _ in range(2)]
    for thread in both:
        thread.start()
    while not errors:  # one of them waits for node 2, the other is refused
        time.sleep(0.01)
    assert "a node that has joined already (NODE_RANK=1)" in errors[0]
    led.join(rank=2)
    led.end()
    for thread in both:
        thread.join()
    assert len(ends) == len(errors) == 1


def test_a_node_that_has_gone_may_come_again():
    led = Led(count=3)
    gone = proven(led)
    gone.send(introduction(num_nodes=3))
    gone.close()
    threading.Thread(target=lambda: led.join(rank=2), daemon=True).start()
    assert led.join(rank=1).assignment.num_processes == 5
    led.end()


def test_a_node_that_never_came_is_named():
    led = Led(seconds=0.3)
    failure = led.failure()
    assert failure.startswith("TrainingStoppedError: Found 0 of 1 other machines after 0 s")
    assert "(missing NODE_RANK: 1)" in failure


def test_a_joiner_does_not_wait_for_ever_for_a_leader():
    with listen("127.0.0.1", 0) as closed:
        node = Node(1, 2, *closed.getsockname()[:2])
    with pytest.raises(TrainingStoppedError, match="Found no leader at the leading node"):
        Leader(node, SECRET, versions=VERSIONS, num_gpus=0, timeout_seconds=0.1)


@pytest.mark.parametrize("reason", ["Found a loss of nan.", None])
def test_who_goes_is_noticed_and_told_why(led, reason):
    leader = led.join()
    joined = led.end()
    if reason is None:
        leader._channel.close()  # as when it is killed
    else:
        leader.end(reason)
    time.sleep(0.05)
    expected = reason or r"connection to node 1 lost \(it is gone"
    with pytest.raises(TrainingStoppedError, match=expected):
        joined.check()


def test_a_secret_is_taken_from_a_file_that_only_its_owner_reads(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("MM1_SECRET", raising=False)
    monkeypatch.delenv("MM1_SECRET_FILE", raising=False)
    with pytest.raises(ValueError, match=r"neither MM1_SECRET_FILE nor MM1_SECRET.*token_hex"):
        read_secret()
    file = tmp_path / "secret"
    monkeypatch.setenv("MM1_SECRET_FILE", str(file))
    with pytest.raises(ValueError, match="found no file"):
        read_secret()
    file.write_text("a" * 40 + "\n")
    file.chmod(0o644)
    with pytest.raises(ValueError, match=r"open to other users.*chmod 600"):
        read_secret()
    file.chmod(0o600)
    assert read_secret() == b"a" * 40
    file.write_text("password")
    with pytest.raises(ValueError, match=r"of 8 characters.*expected at least 32") as short:
        read_secret()
    assert "password" not in str(short.value)
    monkeypatch.delenv("MM1_SECRET_FILE")
    monkeypatch.setenv("MM1_SECRET", "b" * 32)
    assert read_secret() == b"b" * 32


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NNODES": "2"}, r"NNODES=2 .* without MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "x"}, r"MASTER_PORT: found 'x'"),
        (
            {"NNODES": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1", "NODE_RANK": "2"},
            r"NODE_RANK: found 2, expected 0\.\.1",
        ),
    ],
)
def test_an_environment_that_cannot_be_is_refused(monkeypatch, variables, message):
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        Node.of_environment()


def test_only_an_address_of_this_machine_is_listened_at():
    with pytest.raises(ValueError, match="an address of this machine"):
        listen("192.0.2.1", 0)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="MASTER_PORT to be"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
