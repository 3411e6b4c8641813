"""What a model's server is sent: messages in a form that every server accepts, whatever the conversation holds.

A stored turn must never break the turns after it. So the messages are put in order each time they are sent: every call
has an id, a name that the protocol allows, arguments that are a JSON object, and one result; every result has its call;
no message is empty; roles come in an order that strict servers take. The stored turns stay as they are.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.llms.openai.utils import to_openai_message_dicts

from handlers.model_answer import object_or_told, tool_name
from handlers.provider_fields import FIELD, FIELDS, ORIGIN

NO_RESULT = "(The result of this call was not kept.)"
NO_OUTPUT = "(no output)"
NO_ANSWER = "(no answer)"
EARLIER = "(The conversation began earlier.)"
ID_LENGTH = 9
"""Of an id that is made here: Mistral takes nine letters and digits alone, and every other vendor takes these too."""
OWN_ID = re.compile(r"[A-Za-z0-9_.:|=+/-]+")
"""An id that goes back to the server that made it."""
_INSTRUCTIONS = (MessageRole.SYSTEM, MessageRole.DEVELOPER)
_RESULTS = (MessageRole.TOOL, MessageRole.FUNCTION)
_ANSWERS = (MessageRole.ASSISTANT, MessageRole.MODEL, MessageRole.CHATBOT)


def openai_messages(messages: Sequence[ChatMessage], *, model: str, origin: str) -> list[dict[str, Any]]:
    """The messages as OpenAI's protocol has them, for the server and model of this origin."""
    ordered = well_formed(messages, origin=origin)
    sent = cast(list[dict[str, Any]], to_openai_message_dicts(ordered, model=model))
    used_tools = _answers_of_turns_with_tools(ordered)
    for index, (message, form) in enumerate(zip(ordered, sent, strict=True)):
        form |= _provider_fields(message, with_reasoning=index in used_tools)
        call_fields = message.additional_kwargs.get("call_" + FIELDS, ())
        for call, fields in zip(form.get("tool_calls", ()), call_fields, strict=False):
            call |= fields
    return sent


def well_formed(messages: Sequence[ChatMessage], *, origin: str = "") -> list[ChatMessage]:
    """The messages in order. Provider fields and ids stay if the message came from this origin."""
    ids = _Ids()
    exchanges = [message for exchange in _exchanges(messages) for message in _paired(exchange, ids, origin)]
    return list(_in_order(exchanges))


def tools_as_text(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with the tool calls of earlier turns, and their results, told as plain text.

    For a server that refuses the structure of an earlier turn. What follows the last user message stays as it is.
    """
    start = max((i for i, message in enumerate(messages) if message.role is MessageRole.USER), default=0)
    told = [
        ChatMessage(role=MessageRole.ASSISTANT, content=_told(exchange)) if _calls(exchange[0]) else _plain(exchange[0])
        for exchange in _exchanges(well_formed(messages[:start]))
    ]
    return [*told, *messages[start:]]


def _exchanges(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """Each message in a list of its own; one that calls tools with the results that follow it. Other results go."""
    exchange: list[ChatMessage] = []
    for message in messages:
        if message.role in _RESULTS:
            if exchange and _calls(exchange[0]):
                exchange.append(message)
            continue
        if exchange:
            yield exchange
        exchange = [message]
    if exchange:
        yield exchange


def _paired(exchange: Sequence[ChatMessage], ids: "_Ids", origin: str) -> Iterator[ChatMessage]:
    """The messages of an exchange, each call with exactly one result."""
    first, *results = exchange
    own = first.additional_kwargs.get(ORIGIN) == origin
    calls, blocks = _calls(first), _content(first)
    if not calls:
        if blocks:
            kept = first.additional_kwargs if own else {}
            yield ChatMessage(role=_role(first), blocks=blocks, additional_kwargs=_fields_alone(kept))
        return
    renamed = [ids.make(call.tool_call_id, keep=own) for call in calls]
    blocks += [
        ToolCallBlock(
            tool_call_id=call_id, tool_name=tool_name(call.tool_name), tool_kwargs=object_or_told(call.tool_kwargs)
        )
        for call, call_id in zip(calls, renamed, strict=True)
    ]
    kept = _fields_alone(first.additional_kwargs) if own else {}
    yield ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=kept)
    for call_id, result in zip(renamed, _results(calls, results), strict=True):
        content = _content(result) if result else [TextBlock(text=NO_RESULT)]
        yield ChatMessage(
            role=MessageRole.TOOL,
            blocks=content or [TextBlock(text=NO_OUTPUT)],
            additional_kwargs={"tool_call_id": call_id},
        )


def _results(calls: Sequence[ToolCallBlock], results: Iterable[ChatMessage]) -> list[ChatMessage | None]:
    """The result of each call: by its id, else in their order, since older releases stored calls without ids."""
    left = list(results)
    found: list[ChatMessage | None] = []
    for call in calls:
        match = next((one for one in left if call.tool_call_id and _result_id(one) == call.tool_call_id), None)
        if match:
            left.remove(match)
        found.append(match)
    known = {call.tool_call_id for call in calls if call.tool_call_id}
    nameless = [one for one in left if _result_id(one) not in known]
    return [one or (nameless.pop(0) if nameless else None) for one in found]


class _Ids:
    """Gives each call of a prompt an id of its own, the same one each time for the same prompt."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._count = 0

    def make(self, given: str | None, *, keep: bool) -> str:
        self._count += 1
        call_id = given if keep and given and OWN_ID.fullmatch(given) and given not in self._used else ""
        call_id = call_id or hashlib.sha256(f"{self._count} {given}".encode("utf-8", "replace")).hexdigest()[:ID_LENGTH]
        self._used.add(call_id)
        return call_id


def _in_order(messages: Iterable[ChatMessage]) -> Iterator[ChatMessage]:
    """One message of instructions, then users and answers in turn, beginning with a user."""
    rest: list[ChatMessage] = []
    instructions: list[ChatMessage] = []
    for message in messages:
        if message.role in _INSTRUCTIONS and not rest:
            instructions.append(message)
        elif message.role in _INSTRUCTIONS:
            _append(rest, ChatMessage(role=MessageRole.USER, blocks=message.blocks))
        else:
            _append(rest, message)
    if instructions:
        text = "\n\n".join(message.content or "" for message in instructions)
        yield ChatMessage(role=MessageRole.SYSTEM, content=text)
    if rest and rest[0].role is not MessageRole.USER:
        yield ChatMessage(role=MessageRole.USER, content=EARLIER)
    yield from rest


def _append(messages: list[ChatMessage], message: ChatMessage) -> None:
    """Append a message. Two of the user's, or two of the assistant's, in a row become one."""
    last = messages[-1] if messages else None
    if last and last.role is MessageRole.TOOL and message.role is MessageRole.USER:
        messages.append(last := ChatMessage(role=MessageRole.ASSISTANT, content=NO_ANSWER))
    if last is None or last.role is not message.role or message.role is MessageRole.TOOL:
        messages.append(message)
        return
    texts = [block for block in last.blocks if isinstance(block, TextBlock)]
    gap = [TextBlock(text="\n\n")] if texts and isinstance(message.blocks[0], TextBlock) else []
    messages[-1] = ChatMessage(
        role=message.role,
        blocks=[*last.blocks, *gap, *message.blocks],
        additional_kwargs=last.additional_kwargs | message.additional_kwargs,
    )


def _calls(message: ChatMessage) -> list[ToolCallBlock]:
    """The calls of a message. Older releases of LlamaIndex kept them beside the content."""
    if message.role not in _ANSWERS:
        return []
    blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    return blocks or [
        ToolCallBlock(
            tool_call_id=call.get("id"),
            tool_name=call["function"].get("name") or "",
            tool_kwargs=call["function"].get("arguments") or "",
        )
        for call in map(_as_dict, message.additional_kwargs.get("tool_calls") or ())
        if isinstance(call.get("function"), dict)
    ]


def _content(message: ChatMessage) -> list[ContentBlock]:
    """What a message says, without its calls, in blocks that the protocol has for its role; nothing if it is empty."""
    found: list[ContentBlock] = []
    for block in message.blocks:
        if isinstance(block, TextBlock):
            found += [block] if block.text.strip() else []
        elif isinstance(block, ThinkingBlock):
            found += [block] if message.role in _ANSWERS else []
        elif isinstance(block, ImageBlock | AudioBlock | DocumentBlock) and message.role is MessageRole.USER:
            found.append(block)
        elif not isinstance(block, CachePoint | ToolCallBlock):
            found.append(TextBlock(text=f"({block.block_type} left out)"))
    says_something = any(not isinstance(block, ThinkingBlock) for block in found)
    return found if says_something or _calls(message) else []


def _told(exchange: Sequence[ChatMessage]) -> str:
    """An answer that called tools, and what they returned, as text."""
    first, *results = exchange
    lines = [first.content] if first.content else []
    for call, result in zip(_calls(first), results, strict=True):
        lines.append(f"(I called {call.tool_name} with {call.tool_kwargs}. It returned: {result.content})")
    return "\n".join(lines)


def _plain(message: ChatMessage) -> ChatMessage:
    return message.model_copy(update={"additional_kwargs": {}})


def _role(message: ChatMessage) -> MessageRole:
    if message.role in _ANSWERS:
        return MessageRole.ASSISTANT
    return message.role if message.role in _INSTRUCTIONS else MessageRole.USER


def _result_id(message: ChatMessage) -> str:
    return str(message.additional_kwargs.get("tool_call_id") or "")


def _fields_alone(extra: dict[str, Any]) -> dict[str, Any]:
    return {name: extra[name] for name in (FIELDS, "call_" + FIELDS, ORIGIN) if name in extra}


def _provider_fields(message: ChatMessage, *, with_reasoning: bool) -> dict[str, Any]:
    """The fields that the provider of this message needs back."""
    extra = message.additional_kwargs
    fields: dict[str, Any] = dict(extra.get(FIELDS, {}))
    if with_reasoning and ORIGIN in extra:
        fields |= {
            str(block.additional_information[FIELD]): block.content or ""
            for block in message.blocks
            if isinstance(block, ThinkingBlock) and FIELD in block.additional_information
        }
    return fields


def _answers_of_turns_with_tools(messages: Sequence[ChatMessage]) -> set[int]:
    """Indexes of the answers of each turn that called a tool: these alone need their reasoning back."""
    found: set[int] = set()
    turn: list[int] = []
    for index, message in enumerate([*messages, ChatMessage(role=MessageRole.USER)]):
        if message.role is not MessageRole.USER:
            turn.append(index)
            continue
        if any(_calls(messages[i]) for i in turn):
            found.update(i for i in turn if messages[i].role is MessageRole.ASSISTANT)
        turn = []
    return found


def _as_dict(call: Any) -> dict[str, Any]:
    if isinstance(call, dict):
        return call
    dumped: dict[str, Any] = call.model_dump() if hasattr(call, "model_dump") else {}
    return dumped
