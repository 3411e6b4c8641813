"""What a strict server of OpenAI's protocol refuses: the rules of the strictest vendors together."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.faulty_model import Answer, Exchange

ID = re.compile(r"[A-Za-z0-9_.:|-]{1,64}")
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
Message = Mapping[str, Any]


def faults(messages: Sequence[Message]) -> list[str]:
    """Why a strict server refuses these messages; nothing if it takes them."""
    found: list[str] = []
    roles = [str(message.get("role")) for message in messages]
    if any(role == "system" for role in roles[1:]):
        found.append("a system message that is not the first one")
    after = {"system": "", "user": "system assistant", "assistant": "user tool", "tool": "assistant tool"}
    for before, role in zip(["", *roles], roles, strict=False):
        if role not in after or before not in after[role].split() + ([""] if role in ("system", "user") else []):
            found.append(f"{role} after {before or 'nothing'}")
    for message in messages:
        found += _content_faults(message)
    return found + _call_faults(messages)


def _content_faults(message: Message) -> list[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and content.strip():
        return []
    if isinstance(content, list) and content:
        return [] if message["role"] == "user" else ["content in parts, of another than a user"]
    return [] if content is None and calls and message["role"] == "assistant" else [f"an empty {message.get('role')}"]


def _call_faults(messages: Sequence[Message]) -> list[str]:
    found: list[str] = []
    seen: set[str] = set()
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message.get("tool_call_id") not in waiting:
                found.append("a result without its call")
            else:
                waiting.remove(message["tool_call_id"])
            continue
        found += ["a call without a result"] * len(waiting)
        waiting = [str(call.get("id")) for call in message.get("tool_calls") or ()]
        for call in message.get("tool_calls") or ():
            found += _faults_of(call, seen)
    return found + ["a call without a result"] * len(waiting)


def _faults_of(call: Mapping[str, Any], seen: set[str]) -> list[str]:
    found = []
    call_id, function = call.get("id"), call.get("function") or {}
    if not isinstance(call_id, str) or not ID.fullmatch(call_id):
        found.append("a call without a usable id")
    elif call_id in seen:
        found.append("an id that two calls have")
    seen.add(str(call_id))
    if not NAME.fullmatch(str(function.get("name"))):
        found.append("a name that is not allowed")
    if not _is_object(function.get("arguments")):
        found.append("arguments that are not a JSON object in a string")
    return found


def _is_object(arguments: Any) -> bool:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return isinstance(arguments, str) and isinstance(json.loads(arguments, parse_constant=refuse), dict)
    except ValueError:
        return False


def strict(answer: Answer) -> Answer:
    """The answer, if the request is one that a strict server takes; else 400."""

    def respond(exchange: Exchange) -> None:
        if found := faults(exchange.asked["messages"]):
            error = {"message": "; ".join(found), "type": "invalid_request_error", "param": "messages", "code": None}
            exchange.respond(400, json.dumps({"error": error}))
            return
        answer(exchange)

    return respond
