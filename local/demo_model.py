"""A small OpenAI-compatible server that knows nothing but the messages of the request it is given.

Whoever talks to it sees at once whether a conversation was remembered: it has no state, no clock and no randomness, so
what it recalls was in the request. `python -m local.demo_model --port 8000` serves it on loopback.

What it understands in the newest user message, first match first:

- `please wait 3.5 seconds`: answers that much later (60 at most), in addition to what follows. A test hook.
- `please fail with status 500`: answers with that HTTP status and OpenAI's error shape. A test hook.
- `please say nothing`: answers with an empty text. A test hook.
- `what is the time`, `what is the date`: calls the tool `current_time` with `timezone` for each IANA zone named
  (`Europe/Paris`), else `UTC`. `days between 2024-01-01 and 2024-03-01`: calls `days_between` with `start` and `end`.
  `add up 1, 2 and 3.5`: calls `total` with `numbers`. Then it answers with what the tools returned. A tool that is not
  offered is not called, and it says so.
- `call order_status with order=17`: calls any tool, with such arguments; several are separated by commas.
- `how many messages have you seen` (or turns): "I have seen N user messages (M messages in all)."
- `what do you know about me`: every "my X is Y" of the user and system messages; for each X the last one counts.
- `what is my X` (who, where, when, which; "do you know/remember my X", "tell me my X"): that Y, or "I don't know your
  X: nothing in the messages I was given says it."
- `my X is Y`: acknowledges it.
- Anything else: a short friendly answer that says how many messages it was given.

With `--record`, which tests use, `GET /requests` returns the messages of the last 50 requests for completions, a list
of lists, oldest first, and `DELETE /requests` forgets them. Without it no request is kept.

It refuses what web pages send: they have no business here, and their users' conversations pass through it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from local import callers, guard

MODEL = "demo"
RECORDED_REQUESTS = 50
_LONGEST_WAIT_SECONDS = 60.0
_APOSTROPHE = "['\u2019]"
_NAME = r"[^\W_][\w'\u2019 -]{0,60}?"

_STATEMENT = re.compile(rf"\bmy ({_NAME}) (?:is|are|was|were) (?!my\b)(\S.*)", re.IGNORECASE)
_QUESTION = re.compile(
    rf"\b(?:what|who|where|when|which)(?:{_APOSTROPHE}s| is| are| was| were) my ({_NAME})[\s.!]*\?"
    rf"|\b(?:what|who|where|when|which)(?:{_APOSTROPHE}s| is| are| was| were) my ({_NAME})[\s.!]*$"
    rf"|\b(?:know|remember|recall|tell me|remind me of|remind me)(?: what| who| where| when)? my ({_NAME})"
    r"(?: is| are| was| were)?[\s.!?]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ALL = re.compile(r"\bwhat (?:do|did|can) you (?:know|remember|recall) about me\b", re.IGNORECASE)
_COUNT = re.compile(r"\bhow many (?:user )?(?:messages|turns)\b", re.IGNORECASE)
_CLOCK = re.compile(
    rf"\bwhat(?:{_APOSTROPHE}s| is| was)? (?:the |today{_APOSTROPHE}s |current )*(?:local )?(?:time|date|day)\b"
    rf"|\b(?:tell|give) me (?:the |today{_APOSTROPHE}s |current )*(?:time|date)\b"
    r"|\bwhich day is it\b|\btime is it\b",
    re.IGNORECASE,
)
_ZONE = re.compile(r"\b(?:Etc/[\w+-]+|[A-Z][A-Za-z_]+(?:/[A-Z][A-Za-z_-]+){1,2})\b")
_DAYS = re.compile(r"\bdays between (\d{4}-\d\d-\d\d) and (\d{4}-\d\d-\d\d)\b", re.IGNORECASE)
_TOTAL = re.compile(r"\badd up ((?:-?\d+(?:\.\d+)?(?:\s*,\s*and\s+|\s*,\s*|\s+and\s+|\s+)?)+)", re.IGNORECASE)
_CALL = re.compile(r"\bcall (\w+)(?: with (\w+ *=.*))?", re.IGNORECASE)
_ARGUMENT = re.compile(r"(\w+) *= *([^,]*[^,\s.!?])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_WAIT = re.compile(r"\bplease wait (\d+(?:\.\d+)?) seconds?\b", re.IGNORECASE)
_FAIL = re.compile(r"\bplease fail with status ([45]\d\d)\b", re.IGNORECASE)
_SILENCE = re.compile(r"\bplease say nothing\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")
_NEXT_STATEMENT = re.compile(r",?\s+(?:and|but)\s+(?=my\s)|,\s*(?=my\s)", re.IGNORECASE)

Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call that the model wants."""

    tool: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model says: text, or calls of tools."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def reply_to(messages: list[Message], tools: frozenset[str]) -> Reply:
    """What the model says to `messages` when it is offered `tools` (names). Depends on nothing else."""
    last = max((at for at, message in enumerate(messages) if message["role"] == "user"), default=-1)
    text = _text(messages[last]) if last >= 0 else ""
    if _SILENCE.search(text):
        return Reply()
    results = [_text(message) for message in messages[last + 1 :] if message["role"] == "tool"]
    if results:
        return Reply(text=" ".join(f"The tool says: {result}" for result in results))
    calls = _calls_for(text)
    missing = sorted({call.tool for call in calls} - tools)
    if missing:
        return Reply(text=f"I cannot do that: I was not offered the tool {', '.join(missing)}.")
    if calls:
        return Reply(calls=calls)
    return Reply(text=_said(text, messages))


def facts_in(messages: list[Message]) -> dict[str, str]:
    """Every "my X is Y" that the user and system messages hold, X in lower case; the last of an X wins."""
    facts: dict[str, str] = {}
    for message in messages:
        if message["role"] in ("user", "system", "developer"):
            for name, value in _statements(_text(message)):
                facts.pop(name, None)
                facts[name] = value
    return facts


def _said(text: str, messages: list[Message]) -> str:
    if _COUNT.search(text):
        seen = sum(message["role"] == "user" for message in messages)
        return f"I have seen {seen} user messages ({len(messages)} messages in all)."
    facts = facts_in(messages)
    if _ALL.search(text):
        if not facts:
            return "I don't know anything about you: nothing in the messages I was given says it."
        return "I know this: " + "; ".join(f"your {name} is {value}" for name, value in facts.items()) + "."
    if asked := _asked(text):
        return " ".join(_recall(name, facts) for name in asked)
    if told := _statements(text):
        return "Got it: " + "; ".join(f"your {name} is {value}" for name, value in told) + "."
    return (
        f"Hello! I am the demo model, and I was given {len(messages)} messages. Tell me \u201cmy favourite colour is "
        "teal\u201d and ask me later, ask for the time, or ask what I know about you."
    )


def _recall(name: str, facts: dict[str, str]) -> str:
    if name in facts:
        return f"Your {name} is {facts[name]}."
    return f"I don't know your {name}: nothing in the messages I was given says it."


def _asked(text: str) -> list[str]:
    return [next(name for name in found.groups() if name).lower() for found in _QUESTION.finditer(text)]


def _statements(text: str) -> list[tuple[str, str]]:
    found = []
    for sentence in _SENTENCE_END.split(text):
        if sentence.rstrip().endswith("?"):
            continue
        for part in _NEXT_STATEMENT.split(sentence):
            if match := _STATEMENT.search(part):
                value = match.group(2).strip().rstrip(".!;, ")
                if value:
                    found.append((match.group(1).lower(), value))
    return found


def _calls_for(text: str) -> tuple[Call, ...]:
    calls = []
    if _CLOCK.search(text):
        calls += [Call(tool="current_time", arguments={"timezone": zone}) for zone in _ZONE.findall(text) or ["UTC"]]
    calls += [Call(tool="days_between", arguments={"start": start, "end": end}) for start, end in _DAYS.findall(text)]
    for listed in _TOTAL.findall(text):
        numbers = [float(number) if "." in number else int(number) for number in _NUMBER.findall(listed)]
        calls.append(Call(tool="total", arguments={"numbers": numbers}))
    for name, arguments in _CALL.findall(text):
        given = {key: _value(value) for key, value in _ARGUMENT.findall(arguments)}
        if "_" in name or given:
            calls.append(Call(tool=name, arguments=given))
    return tuple(calls)


def _value(text: str) -> Any:
    """A number or a truth value where the text is one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))


# --- The server ------------------------------------------------------------------------------------------------------


async def _completions(request: Request) -> Response:
    try:
        asked = json.loads(await request.body())
        messages = [dict(message) for message in asked["messages"]]
        tools = frozenset(tool["function"]["name"] for tool in asked.get("tools") or [])
        roles = [message["role"] for message in messages]
    except (ValueError, KeyError, TypeError) as error:
        return _error(400, f"The request is no chat completion request ({type(error).__name__}).")
    request.app.state.requests.append(messages)
    newest = _text(messages[len(roles) - 1 - roles[::-1].index("user")]) if "user" in roles else ""
    if wait := _WAIT.search(newest):
        await asyncio.sleep(min(float(wait.group(1)), _LONGEST_WAIT_SECONDS))
    if failure := _FAIL.search(newest):
        return _error(int(failure.group(1)), "The user's message asked for this failure.")
    reply = reply_to(messages, tools)
    answer = _Completion(messages=messages, reply=reply, model=str(asked.get("model") or MODEL))
    if asked.get("stream"):
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        return StreamingResponse(answer.events(with_usage=with_usage), media_type="text/event-stream")
    return JSONResponse(answer.whole())


@dataclass(frozen=True, kw_only=True)
class _Completion:
    """A reply in the shapes of OpenAI's chat completions."""

    messages: list[Message]
    reply: Reply
    model: str

    @property
    def _id(self) -> str:
        return hashlib.sha256(json.dumps(self.messages, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def _finish_reason(self) -> str:
        return "tool_calls" if self.reply.calls else "stop"

    def whole(self) -> dict[str, Any]:
        message: Message = {"role": "assistant", "content": self.reply.text or None}
        if self.reply.calls:
            message["tool_calls"] = self._tool_calls()
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self._usage()}

    async def events(self, *, with_usage: bool) -> AsyncIterator[str]:
        for delta in self._deltas():
            yield self._event([{"index": 0, "delta": delta, "finish_reason": None}])
            # Gives every piece a packet of its own, as a model that thinks would.
            await asyncio.sleep(0)
        yield self._event([{"index": 0, "delta": {}, "finish_reason": self._finish_reason}])
        if with_usage:
            yield self._event([], usage=self._usage())
        yield "data: [DONE]\n\n"

    def _deltas(self) -> Iterator[dict[str, Any]]:
        yield {"role": "assistant", "content": None if self.reply.calls else ""}
        for piece in re.findall(r"\S+\s*", self.reply.text):
            yield {"content": piece}
        for index, call in enumerate(self._tool_calls()):
            arguments = call["function"]["arguments"]
            head = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
            yield {"tool_calls": [head]}
            size = max(8, len(arguments) // 100)  # clients parse all that came so far at every piece
            for start in range(0, len(arguments), size):
                piece = {"index": index, "function": {"arguments": arguments[start : start + size]}}
                yield {"tool_calls": [piece]}

    def _tool_calls(self) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{self._id}{index}",
                "type": "function",
                "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
            }
            for index, call in enumerate(self.reply.calls)
        ]

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**self._frame('chat.completion.chunk'), 'choices': choices, **more})}\n\n"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self._id}", "object": kind, "created": 0, "model": self.model}

    def _usage(self) -> dict[str, int]:
        """A rough count, four characters a token: it is there because clients read it."""
        prompt = sum(len(_text(message)) for message in self.messages) // 4 + 1
        completion = (len(self.reply.text) + sum(len(str(call.arguments)) for call in self.reply.calls)) // 4 + 1
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _models(_: Request) -> Response:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "local"}
    return JSONResponse({"object": "list", "data": [model]})


async def _requests(request: Request) -> Response:
    if request.method == "DELETE":
        request.app.state.requests.clear()
        return Response(status_code=204)
    return JSONResponse(list(request.app.state.requests))


def _error(status: int, message: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


class _NoWebPages:
    """Answers programs alone: those of this machine, and containers, which reach it by an address or Docker's name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = callers.headers_of(scope)
        names = callers.LOOPBACK_NAMES | callers.CONTAINER_NAMES
        if callers.is_address(host := headers.get("host", "")):
            names |= {str(callers.host_name(host))}
        refused = callers.refusal(headers, names=names, origins=(), scheme="")
        await (_error(403, refused) if refused else self._app)(scope, receive, send)


def application(*, recording: bool) -> Starlette:
    """The server. `recording` keeps requests, for whoever asks for them."""
    routes = [Route("/v1/chat/completions", _completions, methods=["POST"]), Route("/v1/models", _models)]
    if recording:
        routes.append(Route("/requests", _requests, methods=["GET", "DELETE"]))
    app = Starlette(routes=routes, middleware=[Middleware(_NoWebPages)])
    app.state.requests = deque(maxlen=RECORDED_REQUESTS if recording else 0)
    return app


def start(*, log: Path | None = None, recording: bool = True) -> guard.GuardedServer:
    """Start the demo model as a process that dies with this one. Raises guard.ServerStartError."""
    record = ["--record"] if recording else []
    return guard.start(
        "The demo model",
        lambda port: [sys.executable, "-m", "local.demo_model", "--port", str(port), *record],
        lambda endpoint: guard.status_of(endpoint, "/v1/models") == 200,
        log=log,
    )


def main(arguments: list[str]) -> None:
    """Serve the demo model on loopback until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.demo_model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--record", action="store_true", help="keep the last requests for GET /requests")
    options = parser.parse_args(arguments)
    uvicorn.run(
        application(recording=options.record),
        host=guard.LOOPBACK,
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
