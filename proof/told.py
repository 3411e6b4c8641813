"""What callers were told of their turns, held against the history of the session afterwards. Pure.

The demo model says what it knows and remembers nothing. So what a turn's answer must have been follows from the turns
before it that fit its window: an answer that is another one was given blind, or in view of something else.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from handlers import views
from handlers.agent import SYSTEM_PROMPT
from handlers.shapes import MessageView
from local.demo_model import reply_to
from memory.chat_store import count_tokens, decode_message
from memory.shortening import shortened
from memory.turns import Message

SYSTEM = {"role": "system", "content": SYSTEM_PROMPT}
ANSWERED = ("complete", "superseded")


@dataclass(frozen=True, kw_only=True)
class Told:
    """A turn that was answered: what the caller said, and was told."""

    number: int
    message: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A turn as the session's export has it."""

    number: int
    status: str
    supersedes: int | None
    messages: tuple[Mapping[str, Any], ...]

    @property
    def views(self) -> list[MessageView]:
        return [views.message(message) for message in self.messages]

    @property
    def said(self) -> str:
        return self.views[0].text if self.messages else ""

    @property
    def answer(self) -> str:
        return self.views[-1].text if self.messages else ""

    @property
    def tokens(self) -> int:
        return _tokens(self.messages)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that must not be."""

    what: str
    where: str


def kept_in(export: str) -> list[Kept]:
    """The turns of an export, all of its pages in a row."""
    lines = [json.loads(line) for line in export.splitlines()]
    return [_kept(number, list(of_it)) for number, of_it in groupby(lines, key=lambda line: line["turn"])]


def _kept(number: int, lines: Sequence[Mapping[str, Any]]) -> Kept:
    return Kept(
        number=number,
        status=lines[0]["status"],
        supersedes=lines[0].get("supersedes"),
        messages=tuple(line["message"] for line in lines if "message" in line),
    )


def faults(told: Sequence[Told], kept: Sequence[Kept], *, token_limit: int) -> list[Fault]:
    """Everything that is wrong with a session of which these turns were told, in this order, and no other."""
    answered = [turn for turn in kept if turn.status in ANSWERED]
    found = [
        *_missing(told, answered),
        *_doubled(told, answered),
        *_out_of_order(told, kept),
        *(Fault(what="half", where=f"turn {turn.number}: {why}") for turn in answered for why in _half(turn.views)),
    ]
    return found or list(_blind(answered, token_limit))


def _missing(told: Sequence[Told], answered: Sequence[Kept]) -> Iterator[Fault]:
    there = {turn.number: turn for turn in answered}
    for turn in told:
        kept = there.get(turn.number)
        if kept is None:
            yield Fault(what="lost", where=f"turn {turn.number}")
        elif (kept.said, kept.answer) != (turn.message, turn.answer):
            yield Fault(what="altered", where=f"turn {turn.number}")


def _doubled(told: Sequence[Told], answered: Sequence[Kept]) -> Iterator[Fault]:
    """Messages are said once; one that is regenerated was told of again."""
    were_said = Counter(turn.message for turn in told)
    stored = Counter(turn.said for turn in answered)
    for message, times in stored.items():
        if times > were_said[message]:
            what = "doubled" if were_said[message] else "never asked for"
            yield Fault(what=what, where=f"{message[:40]!r} is there {times} times, told of {were_said[message]} times")


def _out_of_order(told: Sequence[Told], kept: Sequence[Kept]) -> Iterator[Fault]:
    for numbers in ([turn.number for turn in told], [turn.number for turn in kept]):
        for before, after in pairwise(numbers):
            if after <= before:
                yield Fault(what="out of order", where=f"turn {after} after turn {before}")


def _half(messages: Sequence[MessageView]) -> Iterator[str]:
    """Why a turn is not whole."""
    roles = [message.role for message in messages]
    if roles[:1] != ["user"] or roles[-1:] != ["assistant"] or len(roles) < 2 or messages[-1].tool_calls:
        yield f"it is made of {', '.join(roles) or 'nothing'}"
    calls = [call.id for message in messages for call in message.tool_calls]
    results = [message.tool_call_id for message in messages if message.role == "tool"]
    if calls != results:
        yield f"{len(calls)} tool calls, and {len(results)} results that are not all theirs"


def _blind(answered: Sequence[Kept], token_limit: int) -> Iterator[Fault]:
    superseded = set[int | None]()
    for place, turn in enumerate(answered):
        superseded.add(turn.supersedes)
        shown = _window([one for one in answered[:place] if one.number not in superseded], token_limit)
        # The model is asked anew with each tool's result, the last time with all of the turn but the answer.
        asked = [{"role": view.role, "content": view.text} for view in turn.views[:-1]]
        expected = reply_to([SYSTEM, *shown, *asked], frozenset()).text
        if turn.answer != expected:
            yield Fault(what="blind", where=f"turn {turn.number}: {turn.answer[:80]!r} for {expected[:80]!r}")


def _window(before: Sequence[Kept], token_limit: int) -> list[dict[str, str]]:
    """The messages of the newest turns that fit the limit; the newest one is shortened if it does not."""
    shown: list[dict[str, str]] = []
    room = token_limit
    for turn in reversed(before):
        messages: Sequence[Message] | None = turn.messages
        if turn.tokens > room:
            messages = None if shown else shortened(turn.messages, room, _tokens)
        if not messages:
            break
        room -= _tokens(messages)
        shown = [{"role": view.role, "content": view.text} for view in map(views.message, messages)] + shown
    return shown


def _tokens(messages: Sequence[Message]) -> int:
    return count_tokens(map(decode_message, messages))
