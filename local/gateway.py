"""API Gateway on one machine: every HTTP request becomes an event for a worker of the function that it is for.

What the gateway itself has to say (errors, limits) is `application/problem+json` (RFC 9457) with a `detail`. A response
has `x-local-worker`, the process id of the worker that had the request; without it no worker had the request.

Unlike API Gateway it refuses requests that a foreign web page may have sent (`local/callers.py`): on AWS the service
has a name of its own, here it shares loopback with everything that a browser has open.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from handlers.router import target_of
from local import callers
from local.callers import Scope
from local.functions import function_for
from local.http_event import BadResponse, HttpResponse, event_of, response_of
from local.pool import Outcome, WorkerPool

# What Lambda accepts in one invocation, in bytes.
REQUEST_LIMIT = 6 * 1024 * 1024
# A client that is still sending would lose the answer with the connection, so that much of its body is read away.
_DRAIN_LIMIT = 64 * 1024 * 1024

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)


class _TooLarge(Exception):
    """The request is larger than Lambda takes."""


class _ClientGone(Exception):
    """The client hung up before its request was complete."""


class Gateway:
    """An ASGI application over the functions' worker pools, by the names that `function_for` gives the functions.

    The pools are started before the first request and stopped at the end by whoever made them. `base_path` is the
    functions' BASE_PATH.
    """

    def __init__(self, pools: Mapping[str, WorkerPool], *, base_path: str = "", origins: Iterable[str] = ()) -> None:
        """`origins` are the web pages that may call it; "*" allows all of them."""
        self._pools = pools
        self._base_path = base_path
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"The gateway speaks HTTP only, not {scope['type']}.")
        try:
            response = await self._respond(scope, receive)
        except _ClientGone:
            return
        headers = [*response.headers]
        if response.status not in (204, 304):
            headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _respond(self, scope: Scope, receive: Receive) -> HttpResponse:
        if refused := callers.refusal(
            callers.headers_of(scope), names=callers.LOOPBACK_NAMES, origins=self._origins, scheme=scope["scheme"]
        ):
            return _problem(403, refused)
        try:
            body = await _body(scope, receive)
            event = _event(scope, body)
        except _TooLarge:
            return _problem(413, f"The request is over {REQUEST_LIMIT} bytes (6 MB), the most that Lambda takes.")
        target = target_of(event, self._base_path)
        return _response(await self._pools[function_for(target.method, target.path)].invoke(event))


def _event(scope: Scope, body: bytes) -> dict[str, Any]:
    event = event_of(scope, body, request_id=str(uuid.uuid4()), now=datetime.now(UTC))
    # Base64 and quotes make it larger than the body was.
    if len(json.dumps(event)) > REQUEST_LIMIT:
        raise _TooLarge
    return event


def _response(outcome: Outcome) -> HttpResponse:
    response = _answer(outcome)
    if outcome.worker is None:
        return response
    headers = [pair for pair in response.headers if pair[0] != b"x-local-worker"]
    headers.append((b"x-local-worker", str(outcome.worker).encode()))
    return HttpResponse(status=response.status, headers=headers, body=response.body)


def _answer(outcome: Outcome) -> HttpResponse:
    if outcome.problem is not None:
        return _problem(outcome.status, outcome.problem)
    try:
        return response_of(outcome.response)
    except BadResponse as error:
        detail = f"The handler's response is malformed: {error}."
        _log.error("%s", detail)
        return _problem(502, detail)


def _problem(status: int, detail: str) -> HttpResponse:
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = [(b"content-type", b"application/problem+json"), (b"x-content-type-options", b"nosniff")]
    return HttpResponse(status=status, headers=headers, body=json.dumps(problem).encode())


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The request's whole body. Raises _TooLarge, _ClientGone."""
    sent = {name.lower(): value for name, value in scope["headers"]}
    length = sent.get(b"content-length", b"0")
    # Such a client waits for a word before it sends its body: the answer can go out at once.
    if b"expect" in sent and length.isdigit() and int(length) > REQUEST_LIMIT:
        raise _TooLarge
    body, seen = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        chunk = message.get("body", b"")
        seen += len(chunk)
        if seen <= REQUEST_LIMIT:
            body += chunk
        if seen > _DRAIN_LIMIT or (seen > REQUEST_LIMIT and not message.get("more_body")):
            raise _TooLarge
        if not message.get("more_body"):
            return bytes(body)
