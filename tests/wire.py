"""The way from an instance to its table, on which one call can be stopped at an exact place."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Place = Literal["before", "after"]
"""Of a call: before it reaches the table, or after the table has done it and before anybody hears of that."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What happens to the next call of an operation: it comes to its place, and no further."""

    operation: str
    place: Place
    happens: Callable[[], object]


class Wire:
    """Hands calls on to a table's endpoint, and stops the one that it was told to stop."""

    def __init__(self, endpoint: str, address: str) -> None:
        self.endpoint, self.address = endpoint, address
        self._stop: Stop | None = None

    def stop_at(self, operation: str, place: Place, happens: Callable[[], object]) -> None:
        """Stop the next call of the operation there: something happens, and the caller hears nothing any more."""
        self._stop = Stop(operation=operation, place=place, happens=happens)

    @property
    def waits(self) -> bool:
        """Whether the call that is to be stopped did not come yet."""
        return self._stop is not None

    def stops(self, operation: str, place: Place) -> bool:
        """Whether a call ends here."""
        stop = self._stop
        if stop is None or (stop.operation, stop.place) != (operation, place):
            return False
        self._stop = None
        stop.happens()
        return True


@contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    """A wire to a table's endpoint, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_POST(self) -> None:
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.close_connection = wire.stops(operation, "before")
            if self.close_connection:
                return
            response, answer = forwarded(endpoint, self.path, dict(self.headers), body)
            self.close_connection = wire.stops(operation, "after")
            if not self.close_connection:
                self._answer(response, answer)

        def _answer(self, response: http.client.HTTPResponse, answer: bytes) -> None:
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    wire = Wire(endpoint, f"http://127.0.0.1:{server.server_address[1]}")
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    serving.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever was killed does not read its answers."""


def forwarded(endpoint: str, path: str, headers: dict[str, str], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """What another server answers to a POST."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()
