"""The way from an instance to its table, on which calls meet trouble."""

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Place = Literal["before", "after"]
"""Of a call: before it reaches the table, or after the table has done it and before anybody hears of that."""
STALL_SECONDS = 30.0


def forwarded(endpoint: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """The status, headers and body that another server answers a POST with."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


class Call:
    """One call on its way, for a trouble to decide about."""

    def __init__(self, handler: BaseHTTPRequestHandler, endpoint: str, operation: str, body: bytes) -> None:
        self._handler, self._endpoint, self.operation, self.body = handler, endpoint, operation, body

    def forward(self) -> tuple[int, dict[str, str], bytes]:
        """Have the table do it; what the table answers."""
        return forwarded(self._endpoint, "/", dict(self._handler.headers), self.body)

    def answer(self, status: int, headers: dict[str, str], body: bytes, *, lacks: int = 0) -> None:
        """Let the caller hear something, but for the last bytes of it that it `lacks`."""
        self._handler.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self._handler.send_header(name, value)
        self._handler.send_header("Content-Length", str(len(body)))
        self._handler.end_headers()
        self._handler.wfile.write(body[: len(body) - lacks])
        self._handler.close_connection = lacks > 0

    def hang_up(self) -> None:
        """Let the caller hear nothing any more."""
        self._handler.close_connection = True

    def reset(self) -> None:
        """Break the connection off."""
        self._handler.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        socket.close(self._handler.connection.detach())


Trouble = Callable[[Call], object]
"""What becomes of a call."""


@dataclass(kw_only=True)
class Ahead:
    """A trouble that lies ahead of the calls of an operation with a mark in their bodies, or of all, so many times."""

    trouble: Trouble
    operation: str | None = None
    mark: bytes = b""
    times: int | None = None

    def meets(self, call: Call) -> bool:
        """Whether this call gets into it."""
        if self.operation not in (None, call.operation) or self.mark not in call.body or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Wire:
    """Hands calls on to a table's endpoint, but for those that meet trouble."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.troubled = 0
        """How many calls met trouble so far."""
        self._ahead: Ahead | None = None
        self._lock = threading.Lock()
        self._server: _Server | None = self._listening(0)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def trouble(
        self, trouble: Trouble, operation: str | None = None, *, mark: bytes = b"", times: int | None = None
    ) -> None:
        """Put trouble ahead, in the place of what was there before."""
        self._ahead = Ahead(trouble=trouble, operation=operation, mark=mark, times=times)

    def stop_at(self, operation: str, place: Place, happens: Callable[[], object]) -> None:
        """Stop the next call of the operation there: something happens, and the caller hears nothing any more."""

        def stop(call: Call) -> None:
            if place == "after":
                call.forward()
            happens()
            call.hang_up()

        self.trouble(stop, operation, times=1)

    def clear(self) -> None:
        """Let all calls pass from now on, and take connections again."""
        self._ahead = None
        if self._server is None:
            self._server = self._listening(self._port)

    def refuse(self) -> None:
        """Take no connection any more, and break off those that there are."""
        server, self._server = self._server, None
        self.trouble(Call.reset)
        if server:
            server.server_close()
            # `shutdown` waits for the loop that may be waiting for this very call.
            threading.Thread(target=server.shutdown, daemon=True).start()

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def carry(self, call: Call) -> None:
        """Bring a call to its end, whichever that is."""
        with self._lock:
            ahead = self._ahead
            trouble = ahead.trouble if ahead and ahead.meets(call) else None
            self.troubled += trouble is not None
        if trouble:
            trouble(call)
        else:
            call.answer(*call.forward())

    def _listening(self, port: int) -> "_Server":
        wire = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                operation = self.headers["X-Amz-Target"].rpartition(".")[2]
                body = self.rfile.read(int(self.headers["Content-Length"]))
                wire.carry(Call(self, wire.endpoint, operation, body))

            def log_message(self, *_: Any) -> None:
                pass

        server = _Server(("127.0.0.1", port), Handler)
        self._port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


@contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    """A wire to a table's endpoint, for as long as the block runs."""
    wire = Wire(endpoint)
    try:
        yield wire
    finally:
        wire.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever was killed does not read its answers."""


def error(status: int, code: str) -> Trouble:
    """The table says that it did not do it."""
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": code}).encode()
    return lambda call: call.answer(status, {"Content-Type": "application/x-amz-json-1.0"}, body)


def reset(place: Place) -> Trouble:
    """The connection breaks off."""

    def happens(call: Call) -> None:
        if place == "after":
            call.forward()
        call.reset()

    return happens


def slow(seconds: float) -> Trouble:
    """The table takes its time."""

    def happens(call: Call) -> None:
        time.sleep(seconds)
        call.answer(*call.forward())

    return happens


def stall(place: Place) -> Trouble:
    """Nothing is heard of the call for longer than anybody waits."""

    def happens(call: Call) -> None:
        if place == "after":
            call.forward()
        time.sleep(STALL_SECONDS)
        call.hang_up()

    return happens


def cut(call: Call) -> None:
    """The last bytes of the answer get lost."""
    status, headers, body = call.forward()
    call.answer(status, headers, body, lacks=min(20, len(body)))


def unprocessed(call: Call) -> None:
    """Of a batch of writes the table does none, and says so."""
    left = json.loads(call.body)["RequestItems"]
    call.answer(200, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps({"UnprocessedItems": left}).encode())
