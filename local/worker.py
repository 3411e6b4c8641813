"""One Lambda instance as a process: it imports the handler once and answers one invocation after the other.

The pool starts it as `python -m local.worker FD NAME HANDLER`: FD is its end of a socket pair, NAME the function's name
(`chat`) and HANDLER its code (`module:function`). Both sides write JSON, one object a line:

    worker   {"ready": true}                                   the handler is imported; or, and then it exits,
             {"initError": "..."}                              why it could not be
    pool     {"request_id": "...", "timeout_ms": 28000, "event": {...}}
    worker   {"taken": "<request_id>"}                         from here on the handler may have done something
             {"response": ...} or {"errorType": "..."}

The process ends when its socket closes, even in the middle of an invocation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What Lambda accepts as a response, in bytes of JSON.
RESPONSE_LIMIT = 6_291_556

_MEMORY_MB = 1024
Handler = Callable[[dict[str, Any], "LambdaContext"], Any]


@dataclass(frozen=True, kw_only=True)
class LambdaContext:
    """What Lambda hands to a handler beside the event."""

    aws_request_id: str
    deadline: float = field(repr=False)
    """On the clock of `time.monotonic`, in seconds."""
    function_name: str
    log_stream_name: str
    function_version: str = "$LATEST"
    memory_limit_in_mb: int = _MEMORY_MB
    identity: None = None
    client_context: None = None

    @property
    def invoked_function_arn(self) -> str:
        """The ARN that the function would have."""
        return f"arn:aws:lambda:us-east-1:123456789012:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        """The log group that Lambda would make for the function."""
        return _log_group(self.function_name)

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the pool kills this instance; never below 0."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


def main(arguments: list[str]) -> None:
    """Serve invocations until the socket closes."""
    parser = argparse.ArgumentParser(prog="python -m local.worker", description="One Lambda instance.")
    parser.add_argument("fd", type=int, help="the file descriptor of this instance's end of the socket pair")
    parser.add_argument("name", help="the function's name, chat for example")
    parser.add_argument("handler", help="module:function")
    options = parser.parse_args(arguments)
    # A pipe would keep a handler's prints in a buffer, which a SIGKILL throws away.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    function_name = f"rehydrate-local-{options.name}"
    log_stream = _lambda_environment(function_name, options.handler)
    channel = socket.socket(fileno=options.fd)
    lines = _lines_of(channel)
    try:
        handler = _imported(options.handler)
    except Exception as error:  # noqa: BLE001 - a module can raise anything, and the gateway has to hear of it
        traceback.print_exc()
        _send(channel, {"initError": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from None
    _send(channel, {"ready": True})
    while True:
        invocation = json.loads(lines.get())
        _send(channel, {"taken": invocation["request_id"]})
        context = LambdaContext(
            aws_request_id=invocation["request_id"],
            deadline=time.monotonic() + invocation["timeout_ms"] / 1000,
            function_name=function_name,
            log_stream_name=log_stream,
        )
        _write(channel, _outcome(handler, invocation["event"], context))


def _log_group(function_name: str) -> str:
    return f"/aws/lambda/{function_name}"


def _lambda_environment(function_name: str, handler: str) -> str:
    """Set the variables that Lambda sets and handlers read; returns the name of this instance's log stream."""
    log_stream = f"{time.strftime('%Y/%m/%d', time.gmtime())}/[$LATEST]{uuid.uuid4().hex}"
    os.environ.update(
        AWS_LAMBDA_FUNCTION_NAME=function_name,
        AWS_LAMBDA_FUNCTION_VERSION="$LATEST",
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE=str(_MEMORY_MB),
        AWS_LAMBDA_INITIALIZATION_TYPE="on-demand",
        AWS_LAMBDA_LOG_GROUP_NAME=_log_group(function_name),
        AWS_LAMBDA_LOG_STREAM_NAME=log_stream,
        _HANDLER=handler,
        TZ=":UTC",
    )
    time.tzset()
    return log_stream


def _imported(name: str) -> Handler:
    module, _, function = name.partition(":")
    handler = getattr(importlib.import_module(module), function or "handler")
    if not callable(handler):
        raise TypeError(f"{name} is not a function")
    return handler  # type: ignore[no-any-return]


def _lines_of(channel: socket.socket) -> queue.SimpleQueue[bytes]:
    """The lines that arrive on `channel`, read by a thread of their own.

    Only so does a handler that is busy, or stuck, end with the gateway: no one else would ever stop it.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        try:
            with channel.makefile("rb") as stream:
                for line in stream:
                    lines.put(line)
        finally:
            os._exit(0)

    threading.Thread(target=read, name="invocations", daemon=True).start()
    return lines


def _outcome(handler: Handler, event: dict[str, Any], context: LambdaContext) -> bytes:
    """The line that answers an invocation. An error's text stays here, on stderr: it may quote what the user said."""
    try:
        response = handler(event, context)
    except Exception as error:  # noqa: BLE001 - as Lambda: whatever a handler raises, the instance lives on
        traceback.print_exc()
        return _line({"errorType": type(error).__name__})
    try:
        line = _line({"response": response})
    except (TypeError, ValueError):
        traceback.print_exc()
        return _line({"errorType": "Runtime.MarshalError"})
    if len(line) > RESPONSE_LIMIT:
        return _line({"errorType": "Function.ResponseSizeTooLarge"})
    return line


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    _write(channel, _line(message))


def _write(channel: socket.socket, line: bytes) -> None:
    try:
        channel.sendall(line)
    except OSError:
        # The gateway is gone, and with it whoever waited for this.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
