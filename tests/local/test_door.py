"""Doors for containers to what listens on loopback only."""

import socket
import threading
from collections.abc import Iterator

import pytest

from local import door

LOOPBACK = "127.0.0.1"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as listening:
        listening.settimeout(20)
        yield listening


def connect(port: int) -> socket.socket:
    return socket.create_connection((LOOPBACK, port), timeout=20)


def test_passes_on_what_both_sides_say(server: socket.socket) -> None:
    """Whole, in order, and to the end, which each side says for itself."""
    sent, answered = b"q" * 300_000, b"a" * 300_000
    got: list[bytes] = []

    def serve() -> None:
        with server.accept()[0] as here, here.makefile("rb") as incoming:
            here.settimeout(20)
            got.append(incoming.read())
            here.sendall(answered)

    serving = threading.Thread(target=serve, daemon=True)
    serving.start()
    with door.opened(LOOPBACK, onward=server.getsockname()) as port, connect(port) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as incoming:
            assert incoming.read() == answered
        serving.join(20)
    assert got == [sent]


def test_a_client_that_is_killed_is_gone_for_the_server(server: socket.socket) -> None:
    """A container that dies in the middle of a request keeps nothing waiting."""
    with door.opened(LOOPBACK, onward=server.getsockname()) as port:
        client = connect(port)
        with server.accept()[0] as here:
            here.settimeout(20)
            client.close()
            assert here.recv(1) == b""


def test_a_server_that_is_gone_is_gone_for_the_client(server: socket.socket) -> None:
    """It gets the end of the connection, and not silence."""
    onward = server.getsockname()
    server.close()
    with door.opened(LOOPBACK, onward=onward) as port, connect(port) as client:
        assert client.recv(1) == b""


def test_is_shut_in_the_end(server: socket.socket) -> None:
    """Nothing listens any more, and nothing waits for somebody to come."""
    before = set(threading.enumerate())
    with door.opened(LOOPBACK, onward=server.getsockname()) as port:
        (waiting,) = set(threading.enumerate()) - before
    waiting.join(20)
    assert not waiting.is_alive()
    with pytest.raises(ConnectionRefusedError):
        connect(port)
