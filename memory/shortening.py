"""Shortening a turn that is too large for a window. Pure, without I/O and without LlamaIndex.

Long texts lose their middle, and a marker says how much is missing. Tool results are cut first, then the arguments of
tool calls and whatever else was said on the way, the user's message and the answer last. If that is not enough, the
oldest tool calls are left out together with their results. Arguments stay a JSON object, and every call keeps its
result. Images and other media are replaced by a marker; a model's thinking is dropped.
"""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory.turns import Message

CountTokens = Callable[[Sequence[Message]], int]

LEAST_TOKENS = 150
"""Every turn can be shortened to this many tokens."""
MESSAGE_TOKENS = 4
"""What a chat format adds to each message."""
RESULT, STEP, SPOKEN = 1, 2, 8
"""Shares of the room: of a tool result; of a call's arguments or another message on the way; of question and answer."""
GROWTH = 1.02
"""The sizes that are tried grow by this factor."""
BYTES_PER_TOKEN = 4
"""Of English prose. The first guess at how much fits."""
MARKER_BYTES = 40
MOST_NAMED_BYTES = 2000
"""Bytes that a call's arguments may take when each is cut to a marker. If they took more, they are cut as one text."""


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A tool call: its arguments by name, and each of them as a text that can be cut."""

    block: Mapping[str, Any]
    arguments: Mapping[str, Any]
    texts: Mapping[str, str]

    def cut(self, size: int) -> Message:
        each = size // max(1, len(self.texts))
        short = {name: cut_text(text, each) for name, text in self.texts.items()}
        whole = {name: value for name, value in self.arguments.items() if short[name] == self.texts[name]}
        return {**self.block, "tool_kwargs": short | whole}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A message, taken apart."""

    role: str
    text: str
    calls: Sequence[_Call]
    extras: Mapping[str, Any]
    """What else servers want to see where tools are called; it is never cut."""

    @property
    def calls_tools(self) -> bool:
        return bool(self.calls or self.extras.get("tool_calls"))

    @property
    def length(self) -> int:
        return len(self.text) + sum(len(text) for call in self.calls for text in call.texts.values())

    def cut(self, size: float, share: int, note: str) -> Message:
        """The message with its texts cut to their shares of a size, after a note on what was left out before it."""
        text = "\n".join(filter(None, [note, cut_text(self.text, int(size * share))]))
        blocks: list[Message] = [{"block_type": "text", "text": text}] if text or not self.calls else []
        blocks += [call.cut(int(size * STEP)) for call in self.calls]
        return {"role": self.role, "additional_kwargs": self.extras, "blocks": blocks}


_Step = list[_Part]
"""A message; or a message that calls tools, and the results."""


def shortened(messages: Sequence[Message], room: int, count_tokens: CountTokens) -> tuple[Message, ...] | None:
    """A turn's messages, cut to take at most `room` tokens as counted; None if even the shortest form takes more."""
    steps = _steps(messages)
    sizes = _sizes(max((part.length for step in steps for part in step), default=0))

    def cut(kept: int, size: float) -> tuple[Message, ...]:
        return tuple(part.cut(size, share, note) for part, share, note in _kept(steps, kept))

    # The bare calls may take half of the room, so that at least the other half is left for the texts.
    kept = max(0, _most(len(steps), lambda kept: cut(kept, 0), room // 2, count_tokens))
    chosen = _most(len(sizes) - 1, lambda index: cut(kept, sizes[index]), room, count_tokens)
    return cut(kept, sizes[chosen]) if chosen >= 0 else None


def most_tokens(messages: Sequence[Message]) -> int:
    """The most tokens that shortened messages can take: no tokenizer makes more tokens of a text than it has bytes."""
    return sum(MESSAGE_TOKENS + _block_bytes(message) + _extra_bytes(message) for message in messages)


def cut_text(text: str, size: int) -> str:
    """The beginning and the end of a text, `size` bytes of UTF-8 in all, and a marker in place of the middle."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= size:
        return text
    head = encoded[: (size + 1) // 2].decode("utf-8", "ignore")
    tail = encoded[len(encoded) - size // 2 :].decode("utf-8", "ignore")
    marker = f"[... {len(text) - len(head) - len(tail):,} characters left out ...]"
    short = " ".join(filter(None, [head, marker, tail]))
    return short if _bytes(short) < len(encoded) else text


def _kept(steps: Sequence[_Step], number: int) -> Iterator[tuple[_Part, int, str]]:
    """The question, the answer and the newest steps between them, `number` of them: parts, their shares and notes."""
    question = next((i for i, step in enumerate(steps) if step[0].role == "user"), None)
    last = steps[-1][0]
    answer = len(steps) - 1 if last.role == "assistant" and not last.calls_tools else None
    between = [i for i in range(len(steps)) if i not in (question, answer)]
    gone = set(between[: max(0, len(between) - number)])
    left_out: list[_Part] = []
    for i, step in enumerate(steps):
        if i in gone:
            left_out += step
            continue
        for part in step:
            note = ""
            if i != question:
                note, left_out = _note(left_out), []
            share = SPOKEN if i in (question, answer) else RESULT if part.role == "tool" else STEP
            yield part, share, note
    if left_out:
        yield _Part(role="assistant", text="", calls=(), extras={}), STEP, _note(left_out)


def _note(left_out: Sequence[_Part]) -> str:
    length = sum(part.length for part in left_out)
    return f"[... {len(left_out):,} messages ({length:,} characters) left out ...]" if left_out else ""


def _steps(messages: Sequence[Message]) -> list[_Step]:
    steps: list[_Step] = []
    for part in map(_part, messages):
        if part.role == "tool" and steps and steps[-1][0].calls_tools:
            steps[-1].append(part)
        else:
            steps.append([part])
    return steps


def _part(message: Message) -> _Part:
    calls = [_call(block) for block in message["blocks"] if block["block_type"] == "tool_call"]
    extras = dict(message.get("additional_kwargs") or {})
    if calls:
        extras.pop("tool_calls", None)  # the same calls again, as a model that streams leaves them
    elif message["role"] != "tool" and "tool_calls" not in extras:
        extras = {}
    text = "\n".join(filter(None, map(_block_text, message["blocks"])))
    return _Part(role=message["role"], text=text, calls=calls, extras=extras)


def _block_text(block: Mapping[str, Any]) -> str:
    match block["block_type"]:
        case "text":
            return str(block["text"])
        case "tool_call" | "thinking" | "cache":
            return ""
    return f"[... {block['block_type']} left out ...]"


def _call(block: Mapping[str, Any]) -> _Call:
    given = block["tool_kwargs"]
    arguments = _parsed(given)
    if not isinstance(arguments, dict) or sum(_bytes(name) + MARKER_BYTES for name in arguments) > MOST_NAMED_BYTES:
        arguments = {"arguments": _json(given)}
    return _Call(block=block, arguments=arguments, texts={name: _json(value) for name, value in arguments.items()})


def _parsed(arguments: Any) -> Any:
    """Arguments as JSON. Models that stream give them as text, which may be broken."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments, parse_constant=str)
    except ValueError:
        return arguments


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _most(limit: int, cut: Callable[[int], Sequence[Message]], room: int, count_tokens: CountTokens) -> int:
    """The largest number up to a limit whose messages fit the room; -1 if not even those of 0 do.

    Counting tokens takes long, so numbers are tried by their bytes, and tokens are counted to find out how many fit.
    """
    room_in_bytes: float = room * BYTES_PER_TOKEN
    while True:
        number = bisect_right(range(limit + 1), room_in_bytes, key=lambda number: most_tokens(cut(number))) - 1
        messages = cut(max(number, 0))
        taken = count_tokens(messages)
        if taken <= room:
            return max(number, 0)
        if number <= 0:
            return -1
        room_in_bytes = most_tokens(messages) * room / taken * 0.99


def _sizes(longest: int) -> list[float]:
    """Sizes in bytes to try: from nothing to what leaves a text of so many characters whole."""
    sizes = [0.0, 10.0]
    while sizes[-1] < 4 * longest:
        sizes.append(sizes[-1] * GROWTH)
    return sizes


def _block_bytes(message: Message) -> int:
    return sum(
        _bytes(block["text"]) if block["block_type"] == "text" else _bytes(_json(block)) for block in message["blocks"]
    )


def _extra_bytes(message: Message) -> int:
    extras = message["additional_kwargs"]
    return _bytes(json.dumps(extras)) if extras else 0


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
