"""A model's answer, put together from the pieces that an OpenAI-compatible server streams.

Servers and gateways differ from OpenAI's protocol in many small ways. The message that comes out of here does not:
every tool call has an id of its own, a name that the protocol allows and arguments that are a JSON object; thinking is
kept apart from the answer; no character is cut in half. Tools run on this message, and the turn stores it.
"""

import codecs
import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from pydantic_core import from_json

from handlers.provider_fields import CALL_FIELDS, FIELD, FIELDS, MESSAGE_FIELDS, ORIGIN, combined
from handlers.surrogates import clean
from memory.chat_store import clean_message, clean_text

NOTES = "notes"
"""Where a message keeps what its log line says: a truncating `finish_reason`, a `refusal`, `missing_tool_calls`."""
TRUNCATING = ("length", "max_tokens", "model_length", "content_filter")
"""Reasons to stop, in the words of several vendors, after which something of the answer is missing."""
NOT_AN_OBJECT = "arguments that are not a JSON object"
"""The one argument that a call gets if its own cannot be read. No tool has a parameter of this name, so none runs."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
UNKNOWN_TOOL = "unknown_tool"
THINKING_TAGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "[THINK]": "[/THINK]",
}
"""How local models mark the thinking that they write into the text, before the answer."""
_CLOSED_ONLY = re.compile(r"\A(.*?)</think>[ \t]*\r?\n\s*", re.DOTALL)
"""Thinking whose opening tag was part of the prompt, so that only the closing one is in the answer."""


class BrokenAnswer(Exception):
    """The model's answer broke off, or cannot be read."""


class Characters:
    """Joins pieces of a text whose server splits characters: half an emoji waits for its other half."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def add(self, piece: str) -> str:
        """The whole characters that a piece completes."""
        return self._decoder.decode(piece.encode("utf-16-le", "surrogatepass"))

    def end(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._decoder.decode(b"", final=True)


class AnswerText:
    """The text of an answer, without the thinking that may come before it."""

    def __init__(self) -> None:
        self._characters = Characters()
        self._beginning = ""
        self._answer: list[str] = []
        self.thinking = ""

    @property
    def text(self) -> str:
        return "".join(self._answer)

    def add(self, piece: str) -> str:
        """What of a piece is certain to belong to the answer."""
        return self._take(self._characters.add(piece))

    def end(self) -> str:
        """What of the answer is still to be shown."""
        delta = self._take(self._characters.end())
        if not self._answer:
            self.thinking, answer = _parted(self._beginning)
            if answer is None and not self.thinking:
                delta = self._beginning  # it might have become a tag, and did not
                self._answer.append(delta)
        if not self.thinking and (closed := _CLOSED_ONLY.match(self.text)):
            self.thinking, self._answer = closed[1], [self.text[closed.end() :]]
        return delta

    def _take(self, piece: str) -> str:
        if not self._answer:
            self._beginning += piece
            self.thinking, answer = _parted(self._beginning)
            piece = answer or ""
        if piece:
            self._answer.append(piece)
        return piece


def _parted(beginning: str) -> tuple[str, str | None]:
    """The thinking at the beginning of a text, and the answer after it; None if none has begun."""
    start = beginning.lstrip()
    for opening, closing in THINKING_TAGS.items():
        if start.startswith(opening):
            thinking, _, answer = start.removeprefix(opening).partition(closing)
            return thinking, answer.lstrip() or None
        if opening.startswith(start):
            return "", None
    return "", beginning


@dataclass(kw_only=True)
class Call:
    """A tool call, as far as it was streamed."""

    index: int | None
    id: str = ""
    name: str = ""
    arguments: str = ""
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return bool(self.name) and json_object(self.arguments) is not None


class Calls:
    """Puts tool calls together from all deltas of all chunks.

    A delta belongs to the call of its id, else to the call of its index, unless it begins another one: with another id,
    with another name, or because the arguments of the call are complete.
    """

    def __init__(self, tools: Collection[str] = ()) -> None:
        self._tools = tools
        self.calls: list[Call] = []

    def add(self, delta: Any) -> None:
        """Take one element of a chunk's `tool_calls`."""
        function = getattr(delta, "function", None)
        index, call_id = getattr(delta, "index", None), getattr(delta, "id", None) or ""
        name, arguments = getattr(function, "name", None) or "", _text_of(getattr(function, "arguments", None))
        call = self._open(index, call_id, name)
        if call and _sent_again(call, call_id, name, arguments):
            call.arguments = arguments
        elif call and call.name not in self._tools and call.name + name in self._tools:
            call.name += name  # which is streamed in pieces
            call.arguments += arguments
        elif call is None or _begins_another(call, call_id, name, arguments):
            call = Call(index=index, id=call_id, name=name, arguments=arguments)
            self.calls.append(call)
        else:
            call.id, call.name = call.id or call_id, call.name or name
            call.arguments += arguments
        call.fields = combined(call.fields, {key: value for key, value in _extras(delta).items() if key in CALL_FIELDS})

    def _open(self, index: int | None, call_id: str, name: str) -> Call | None:
        """The call that a delta may go on with."""
        if call_id and (same := [call for call in self.calls if call.id == call_id]):
            return same[-1]
        of_index = [call for call in self.calls if index is None or call.index in (index, None)]
        if of_index:
            return of_index[-1]
        # A new index without anything else that a call begins with: some servers count chunks.
        return self.calls[-1] if self.calls and not call_id and not name else None


def _begins_another(call: Call, call_id: str, name: str, arguments: str) -> bool:
    if call_id and call.id and call_id != call.id and (name or call.complete):
        return True
    if name and call.name and name != call.name:
        return True
    return bool(name and arguments.strip()) and call.complete


def _sent_again(call: Call, call_id: str, name: str, arguments: str) -> bool:
    """Whether a delta has all of the call's arguments so far once more, as some servers send it."""
    same = call_id and call_id == call.id and name in ("", call.name)
    return bool(same and call.arguments and arguments.startswith(call.arguments))


class Answer:
    """One answer of a model: `add` takes its pieces, `message` is the whole."""

    def __init__(self, *, origin: str, tools: Collection[str]) -> None:
        self._origin, self._tools = origin, tools
        self._text, self._refusal, self._reasoning = AnswerText(), Characters(), Characters()
        self._refused, self._thinking = "", ""
        self._calls = Calls(tools)
        self._fields: dict[str, Any] = {}
        self._reasoning_field = ""
        self.finish_reason: str | None = None

    def add(self, choice: Any) -> tuple[str, str]:
        """Take a choice of a chunk, or of a completion that came in one piece. The new text, and the new thinking."""
        delta = getattr(choice, "delta", None) or getattr(choice, "message", None)
        if (reason := getattr(choice, "finish_reason", None)) == "error":
            raise BrokenAnswer("the model's server said that the answer failed")
        self.finish_reason = reason or self.finish_reason
        if delta is None:
            return "", ""
        for call in getattr(delta, "tool_calls", None) or ():
            self._calls.add(call)
        thinking = self._think(delta)
        text = self._text.add(_content(delta, thinking=False))
        refused = self._refusal.add(_text_of(getattr(delta, "refusal", None)))
        self._refused += refused
        return text + refused, thinking

    def end(self) -> str:
        """The text that was held back. Raises BrokenAnswer if the answer is not whole."""
        calls = self._calls.calls
        if not self.finish_reason and not (calls and all(call.complete for call in calls)):
            raise BrokenAnswer("the model's answer ended before the model said so")
        rest = self._refusal.end()
        self._refused += rest
        self._thinking += self._reasoning.end()
        return self._text.end() + rest

    def message(self) -> ChatMessage:
        """The whole answer."""
        blocks: list[ContentBlock] = []
        if thinking := self._thinking or self._text.thinking:
            kept = {FIELD: self._reasoning_field} if self._reasoning_field in MESSAGE_FIELDS else {}
            blocks.append(ThinkingBlock(content=thinking, additional_information=kept))
        if text := self._text.text or self._refused:
            blocks.append(TextBlock(text=text))
        calls = well_formed_calls(self._calls.calls, self._tools)
        blocks += [
            ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments) for call in calls
        ]
        message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=self._extra(calls))
        return clean_message(message)

    def _think(self, delta: Any) -> str:
        """Take the thinking of a delta, and the provider's fields that have to come back."""
        extras = _extras(delta)
        for name in ("reasoning_content", "reasoning"):
            if isinstance(piece := extras.get(name), str) and piece:
                self._reasoning_field = self._reasoning_field or name
                break
        else:
            piece = _content(delta, thinking=True)
        fields = {key: extras[key] for key in MESSAGE_FIELDS if key in extras and not isinstance(extras[key], str)}
        self._fields = combined(self._fields, {key: value for key, value in fields.items() if value})
        thinking = self._reasoning.add(piece)
        self._thinking += thinking
        return thinking

    def _extra(self, calls: Sequence[Call]) -> dict[str, Any]:
        """What else the message keeps: where it came from, if that matters later, and notes for the operator."""
        extra: dict[str, Any] = {}
        if self._fields:
            extra[FIELDS] = self._fields
        if any(call.fields for call in calls):
            extra["call_" + FIELDS] = [call.fields for call in calls]
        if extra or calls or self._reasoning_field in MESSAGE_FIELDS:
            extra[ORIGIN] = self._origin
        notes = self._notes()
        return extra | ({NOTES: notes} if notes else {})

    def _notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = {"finish_reason": self.finish_reason} if self.finish_reason in TRUNCATING else {}
        if self.finish_reason == "tool_calls" and not self._calls.calls:
            notes["missing_tool_calls"] = True
        return notes | ({"refusal": True} if self._refused else {})


def finish_reason(message: ChatMessage) -> str:
    """Why something of the answer is missing; empty if it is whole."""
    return str(message.additional_kwargs.get(NOTES, {}).get("finish_reason", ""))


def well_formed_calls(calls: Sequence[Call], tools: Collection[str] = ()) -> list[Call]:
    """The calls with ids of their own, allowed names, and arguments that are a JSON object."""
    found: list[Call] = []
    ids: set[str] = set()
    for call in calls:
        for arguments in _separated(call.arguments):
            call_id = call.id if call.id and call.id not in ids else new_call_id()
            ids.add(call_id)
            name = tool_name(call.name, tools)
            found.append(Call(index=None, id=call_id, name=name, arguments=arguments, fields=call.fields))
    return found


def new_call_id() -> str:
    """An id that every vendor takes; Mistral is the strictest, with nine letters and digits."""
    return secrets.token_hex(5)[:9]


def tool_name(name: str, tools: Collection[str] = ()) -> str:
    """A name as the protocol allows it: that of a known tool if the given one has it with some decoration."""
    bare = name.strip().partition("<|")[0]
    for candidate in (name, bare, *re.split(r"[./:]", bare)):
        if candidate in tools:
            return candidate
    return re.sub(r"[^A-Za-z0-9_-]", "_", bare)[:64] or UNKNOWN_TOOL


def json_object(arguments: str) -> str | None:
    """The arguments if they are a JSON object, as text that every server can read; else None."""
    try:
        if isinstance(from_json(arguments, allow_inf_nan=False), dict):
            return arguments.strip()
    except ValueError:
        pass
    try:
        value = json.loads(arguments, parse_constant=_refuse, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, str):
        return json_object(value) if value != arguments else None
    # Half an emoji as an escape: Python reads it, and no encoding takes it.
    return json.dumps(clean(value), ensure_ascii=False) if isinstance(value, dict) else None


def object_or_told(arguments: Any) -> str:
    """Arguments of one call as a JSON object; those that are none become the one argument that says so."""
    text = clean_text(_text_of(arguments)).strip() or "{}"
    return json_object(text) or json.dumps({NOT_AN_OBJECT: text}, ensure_ascii=False)


def _separated(arguments: str) -> list[str]:
    """The arguments of a call; of several, if a server ran those of parallel calls together."""
    text = clean_text(arguments).strip()
    if text.startswith("{") and json_object(text) is None:
        decoder, found, at = json.JSONDecoder(strict=False), list[str](), 0
        try:
            while at < len(text):
                _, end = decoder.raw_decode(text, at)
                found.append(text[at:end])
                at = end + len(text[end:]) - len(text[end:].lstrip())
        except (ValueError, RecursionError):
            return [object_or_told(text)]
        if all(json_object(one) for one in found):
            # Some servers send `{}` first, to say that arguments follow.
            return [object_or_told(one) for one in found if one != "{}"] or ["{}"]
    return [object_or_told(text)]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _text_of(value: Any) -> str:
    """A piece of text; some servers send arguments as the object itself."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)


def _content(delta: Any, *, thinking: bool) -> str:
    """The text of a delta, or its thinking: some servers send a list of parts of both."""
    content = getattr(delta, "content", None)
    if not isinstance(content, list):
        return "" if thinking else _text_of(content)
    kind = "thinking" if thinking else "text"
    return "".join(_part_text(part.get(kind)) for part in content if isinstance(part, Mapping) and part.get(kind))


def _part_text(value: Any) -> str:
    if isinstance(value, list):
        return "".join(_part_text(part.get("text")) for part in value if isinstance(part, Mapping))
    return _text_of(value)


def _extras(delta: Any) -> dict[str, Any]:
    """What a delta has beyond OpenAI's protocol."""
    return getattr(delta, "model_extra", None) or {}
