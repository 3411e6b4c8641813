"""Ways into this machine for containers: ports on an address that they reach, for ports on loopback."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

_PIECE_BYTES = 65_536


@contextlib.contextmanager
def opened(address: str, *, onward: tuple[str, int]) -> Iterator[int]:
    """Pass on what connects to a free port of `address`; yields that port. Raises OSError if it cannot be bound."""
    with _Door((address, 0), _Passage, onward) as door:
        threading.Thread(target=door.serve_forever, name=f"door to {onward[1]}", daemon=True).start()
        try:
            yield door.server_address[1]
        finally:
            door.shutdown()


class _Door(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler], onward: tuple[str, int]
    ) -> None:
        self.onward = onward
        super().__init__(address, handler)


class _Passage(socketserver.BaseRequestHandler):
    server: _Door

    def handle(self) -> None:
        # Either side may be killed at any moment, which is for the other one to notice: it sees the end.
        with contextlib.suppress(OSError), socket.create_connection(self.server.onward) as other:
            back = threading.Thread(target=_pump, args=(other, self.request), daemon=True)
            back.start()
            _pump(self.request, other)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the end of `source`, and then tell `sink` so; when either fails, both end."""
    try:
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
