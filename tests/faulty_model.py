"""An OpenAI-compatible server that answers as badly as it is told to, over real HTTP and server-sent events."""

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

End = Literal["done", "clean", "cut", "reset", "stall"]
"""How a stream ends: with `[DONE]`; without it; without its last chunk; by a reset; not at all."""
STALL_SECONDS = 30.0
ANSWER = "Noted."


class Exchange:
    """One request to the model, for an answer to decide about."""

    def __init__(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        self._handler, self.asked = handler, asked

    def respond(self, status: int, body: str, *, kind: str = "application/json", **headers: str) -> None:
        """A response of one piece."""
        self._head(status, {"Content-Type": kind, "Content-Length": str(len(body.encode()))} | headers)
        self._handler.wfile.write(body.encode())

    def stream(self, events: Sequence[str], end: End) -> None:
        """Server-sent events, each a chunk of its own; one response to a client that asked for no stream."""
        if not self.asked.get("stream"):
            self.respond(200, completion(events))
            return
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for event in [*events, *(["[DONE]"] if end == "done" else [])]:
            self._chunk(f"data: {event}\n\n".encode())
        if end == "stall":
            time.sleep(STALL_SECONDS)
        if end in ("done", "clean"):
            self._chunk(b"")
            return
        self._handler.close_connection = True
        if end == "reset":
            linger = struct.pack("ii", 1, 0)
            self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            socket.close(self._handler.connection.detach())

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self._handler.send_response_only(status)
        for name, value in headers.items():
            self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()

    def _chunk(self, data: bytes) -> None:
        self._handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


Answer = Callable[[Exchange], object]


class FaultyModel:
    """A model that answers `ANSWER`, unless it is told to answer otherwise."""

    def __init__(self) -> None:
        self.received: list[list[dict[str, Any]]] = []
        """The messages of each request since it was told last."""
        self.requests: list[dict[str, Any]] = []
        """The whole of each of these requests."""
        self._next: list[Answer] = []
        self._always: Answer = says(ANSWER)
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.received.append(asked["messages"])
                model.requests.append(asked)
                answer = model._next.pop(0) if model._next else model._always
                answer(Exchange(self, asked))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def tell(self, *answers: Answer, always: Answer | None = None) -> None:
        """What to answer to the next requests, one after the other, and then to all that follow."""
        self.received.clear()
        self.requests.clear()
        self._next, self._always = list(answers), always or says(ANSWER)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever gave up does not read its answers."""


@contextmanager
def faulty_model() -> Iterator[FaultyModel]:
    """A model on loopback, for as long as the block runs."""
    model = FaultyModel()
    try:
        yield model
    finally:
        model.close()


def chunk(delta: Mapping[str, Any], finish: str | None = None) -> str:
    """One event of a streamed completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "faulty"}
    return json.dumps({**frame, "choices": [choice]})


def completion(events: Sequence[str]) -> str:
    """What a stream of these events comes to, as one response."""
    message: dict[str, Any] = {"role": "assistant", "content": None}
    calls: dict[int, dict[str, Any]] = {}
    finish = None
    for event in map(json.loads, events):
        (choice,) = event["choices"]
        finish = choice["finish_reason"] or finish
        if text := choice["delta"].get("content"):
            message["content"] = (message["content"] or "") + text
        for call in choice["delta"].get("tool_calls", []):
            known = calls.setdefault(call["index"], call)
            if known is not call:
                known["function"]["arguments"] += call["function"]["arguments"]
    if calls:
        message["tool_calls"] = list(calls.values())
    frame = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "faulty"}
    return json.dumps({**frame, "choices": [{"index": 0, "message": message, "finish_reason": finish}]})


def says(text: str, *, finish: str | None = "stop", end: End = "done") -> Answer:
    """An answer in words, which stops for a reason (or says none) and ends in some way."""
    events = [chunk({"role": "assistant", "content": ""})]
    events += [chunk({"content": piece}) for piece in re.findall(r"\S+\s*", text)]
    events += [chunk({}, finish)] if finish else []
    return lambda exchange: exchange.stream(events, end)


def calls(
    tool: str, arguments: str, *, beside: str = "", finish: str | None = "tool_calls", end: End = "done"
) -> Answer:
    """A call of a tool, and a text beside it."""
    function = {"name": tool, "arguments": ""}
    events = [
        *([chunk({"content": beside})] if beside else []),
        chunk({"role": "assistant", "content": None, "tool_calls": [_call(function, id="call_1", type="function")]}),
        chunk({"tool_calls": [_call({"arguments": arguments})]}),
        *([chunk({}, finish)] if finish else []),
    ]
    return lambda exchange: exchange.stream(events, end)


def _call(function: Mapping[str, Any], **more: str) -> dict[str, Any]:
    return {"index": 0, "function": function, **more}


def streams(*events: str, end: End = "done") -> Answer:
    """Any events."""
    return lambda exchange: exchange.stream(events, end)


def fails(status: int, *, code: str | None = None, **headers: str) -> Answer:
    """An error in OpenAI's form."""
    body = json.dumps({"error": {"message": "It failed.", "type": "error", "param": None, "code": code}})
    return lambda exchange: exchange.respond(status, body, **headers)


def refuses(message: str, *, code: Any = None, param: str | None = None, status: int = 400) -> Answer:
    """A refusal in OpenAI's form, in a server's own words."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return lambda exchange: exchange.respond(status, json.dumps({"error": error}))


def responds(status: int, body: str, *, kind: str) -> Answer:
    """Any response of one piece."""
    return lambda exchange: exchange.respond(status, body, kind=kind)


def late(seconds: float, answer: Answer) -> Answer:
    """An answer whose first byte comes late."""

    def happens(exchange: Exchange) -> None:
        time.sleep(seconds)
        answer(exchange)

    return happens
