"""Turns that are too large for a window: what is left of them fits, makes sense, and can be sent to any model."""

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.llms.openai.utils import to_openai_message_dicts

from memory.chat_store import count_tokens, decode_message
from memory.dynamodb import DynamoDBTurnLog
from memory.shortening import LEAST_TOKENS, cut_text, most_tokens, shortened
from memory.turns import Message, Session, TurnStatus, Window, take_turn, utc_now
from proof.shelf import Shelf
from tests.conftest import TABLE, asking, asking_again, noise, text_message

SESSION = Session(owner="ada", id="talk")
LEFT_OUT = r"\[\.\.\. ([\d,]+) characters left out \.\.\.\]"
PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps. "
KINDS = [
    PROSE,
    "0123456789 31415, ",
    noise(64),
    "日本語の文章です。",
    "\U0001f469\u200d\U0001f467 ሰላም ",
    "a",
    '\n\t {"[\\ ',
]
"""Texts of many and of few characters per token."""


def count(messages: Sequence[Message]) -> int:
    """Tokens as the chat function counts them."""
    return count_tokens(map(decode_message, messages))


def call(name: str, call_id: str, arguments: Any, **extras: Any) -> Message:
    """A message that calls a tool."""
    block = {"block_type": "tool_call", "tool_call_id": call_id, "tool_name": name, "tool_kwargs": arguments}
    return {"role": "assistant", "additional_kwargs": extras, "blocks": [block]}


def result(call_id: str, text: str) -> Message:
    return text_message("tool", text) | {"additional_kwargs": {"tool_call_id": call_id}}


def text_of(message: Message) -> str:
    return "\n".join(block["text"] for block in message["blocks"] if block["block_type"] == "text")


def arguments_of(message: Message) -> Any:
    (block,) = [block for block in message["blocks"] if block["block_type"] == "tool_call"]
    return block["tool_kwargs"]


def cut(messages: Sequence[Message], room: int) -> tuple[Message, ...]:
    short = shortened(messages, room, count)
    assert short is not None
    assert count(short) <= room
    return short


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_keeps_its_beginning_and_its_end(kind: str) -> None:
    """The marker in between says how many characters are missing."""
    text = kind * 300
    short = cut_text(text, 200)
    head, missing, tail = re.fullmatch(f"(?s)(.*) {LEFT_OUT} (.*)", short).groups()  # type: ignore[union-attr]
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + int(missing.replace(",", "")) + len(tail) == len(text)
    assert 190 <= len((head + tail).encode()) <= 200


def test_a_text_that_a_marker_would_not_make_shorter_stays() -> None:
    """Nothing is left out to save nothing."""
    assert cut_text("x" * 38, 5) == "x" * 38
    assert cut_text("", 0) == ""


def test_tool_results_are_cut_before_anything_else() -> None:
    """Question, arguments and answer are whole while there is something else to cut."""
    messages = [
        text_message("user", PROSE * 20),
        call("search", "a", {"query": PROSE * 5}),
        result("a", PROSE * 1000),
        text_message("assistant", PROSE * 20),
    ]
    short = cut(messages, 2000)
    assert (short[0], short[1], short[3]) == (messages[0], messages[1], messages[3])
    assert re.search(LEFT_OUT, text_of(short[2]))


def test_arguments_are_cut_before_question_and_answer() -> None:
    """Each long value becomes a text that says what is missing; the other values stay what they are."""
    messages = [
        text_message("user", "Add them up. " + PROSE * 20),
        call("total", "a", {"numbers": [*range(20_000)], "digits": 2, "unit": "EUR"}),
        result("a", "199990000"),
        text_message("assistant", "It is 199990000."),
    ]
    short = cut(messages, 1000)
    assert (short[0], short[2], short[3]) == (messages[0], messages[2], messages[3])
    arguments = arguments_of(short[1])
    assert (arguments["digits"], arguments["unit"]) == (2, "EUR")
    assert re.fullmatch(rf"\[0, 1, 2, .* {LEFT_OUT} .*19998, 19999\]", arguments["numbers"])


def test_question_and_answer_are_shown_in_part_if_they_are_too_long() -> None:
    """What was said stays recognisable, however little of it there is room for."""
    messages = [text_message("user", "Dear agent! " + PROSE * 500), text_message("assistant", "Yes. " + PROSE * 500)]
    question, answer = cut(messages, 200)
    assert text_of(question).startswith("Dear agent! ")
    assert text_of(answer).startswith("Yes. ")
    assert text_of(answer).endswith("it sleeps. ")


@pytest.mark.parametrize(
    "arguments", ['{"n": [1, 2', '"text"', "[1, 2]", "", "NaN", {f"name{i}": i for i in range(99)}]
)
def test_arguments_become_an_object(arguments: Any) -> None:
    """Those that are not one, and those with too many names to keep, are an object with one text."""
    messages = [
        text_message("user", "go"),
        call("search", "a", arguments),
        result("a", PROSE * 999),
        text_message("assistant", "ok"),
    ]
    found = arguments_of(cut(messages, 1000)[1])
    assert found == {"arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}


def test_calls_that_do_not_fit_are_left_out_with_their_results() -> None:
    """The newest ones stay, and the message after the gap says how much is missing."""
    steps = [[call("search", f"call_{i}", {"query": "fox"}), result(f"call_{i}", PROSE)] for i in range(100)]
    messages = [text_message("user", "go"), *(message for step in steps for message in step)]
    messages.append(text_message("assistant", "done"))
    short = cut(messages, 1000)
    assert (short[0], short[-1]) == (messages[0], messages[-1])
    first, *others = short[1:-1]
    assert arguments_of(first) == {"query": "fox"}
    assert 6 <= len(others) == len(short) - 3 < 40
    assert others[-2:] == steps[-1]
    missing = 2 * (100 - (len(short) - 2) // 2)
    assert text_of(first) == f"[... {missing} messages ({missing // 2 * 68:,} characters) left out ...]"


def test_a_turn_of_nothing_but_one_large_step_leaves_a_note() -> None:
    """Where no part of it has room, the model is told so."""
    calls = [block for i in range(500) for block in call("search", f"call_{i}", {})["blocks"]]
    messages = [
        {"role": "assistant", "additional_kwargs": {}, "blocks": calls},
        *(result(f"call_{i}", "") for i in range(500)),
    ]
    assert [text_of(message) for message in cut(messages, LEAST_TOKENS)] == [
        "[... 501 messages (0 characters) left out ...]"
    ]


def test_media_become_markers_and_thinking_goes() -> None:
    """Neither can be cut."""
    image = {"block_type": "image", "url": "https://example.com/cat.png", "image_mimetype": "image/png"}
    thinking = {"block_type": "thinking", "content": PROSE * 500}
    messages = [
        {**text_message("user", "What is it?"), "blocks": [image, {"block_type": "text", "text": "What is it?"}]},
        {**text_message("assistant", ""), "blocks": [thinking, {"block_type": "text", "text": "A cat."}]},
    ]
    assert [text_of(message) for message in cut(messages, 1000)] == ["[... image left out ...]\nWhat is it?", "A cat."]


def test_what_streaming_leaves_beside_a_call_is_left_out() -> None:
    """The same call is there a second time, in the form of the model's protocol; nobody sends that one."""
    twice = [{"id": "a", "type": "function", "function": {"name": "search", "arguments": PROSE * 500}}]
    messages = [
        text_message("user", "go"),
        call("search", "a", {"query": PROSE * 500}, tool_calls=twice, signature="kept"),
        result("a", "nothing"),
        text_message("assistant", "ok"),
    ]
    assert cut(messages, 1000)[1]["additional_kwargs"] == {"signature": "kept"}


def test_most_of_the_room_is_used() -> None:
    """Little of what would fit is left out, unless a text has far fewer tokens than bytes."""
    for kind in set(KINDS) - {"a"}:
        messages = [text_message("user", "go"), text_message("assistant", kind * (200_000 // len(kind)))]
        assert count(cut(messages, 3000)) > 2700, kind


# Any history, any limit

TEXTS = st.builds(lambda kind, times: kind * times, st.sampled_from(KINDS), st.sampled_from([0, 1, 3, 40, 900]))
ARGUMENTS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=9), TEXTS | st.integers() | st.lists(st.integers(), max_size=500), max_size=4
)
CALLS = st.lists(st.tuples(ARGUMENTS, st.booleans(), TEXTS), min_size=1, max_size=4)
STEPS = st.lists(st.tuples(TEXTS, CALLS), max_size=5)
TURNS = st.tuples(TEXTS, STEPS, TEXTS)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["answered", "answered", "failed", "again"]), TURNS), min_size=1, max_size=4
)
LIMITS = st.integers(LEAST_TOKENS, 600) | st.integers(LEAST_TOKENS, 20_000)


def messages_of(turn: tuple[str, list[Any], str]) -> list[Message]:
    """A turn as an agent leaves it: what the user said, calls and their results, the answer."""
    question, steps, answer = turn
    messages: list[Message] = [text_message("user", f"Q {question}")]
    for number, (said, calls) in enumerate(steps):
        made = text_message("assistant", said)
        for i, (arguments, as_text, _) in enumerate(calls):
            given = json.dumps(arguments) if as_text else arguments
            made["blocks"] += call("search", f"call_{number}_{i}", given)["blocks"]
        messages += [made, *(result(f"call_{number}_{i}", found) for i, (_, _, found) in enumerate(calls))]
    return [*messages, text_message("assistant", f"A {answer}")]


async def load(events: list[tuple[str, Any]], limit: int, *, again: bool) -> tuple[Window, int]:
    """The window after these events, and the number of the newest turn that it has to show; 0 if there is none."""
    client, answered, newest = Shelf(), list[int](), None
    log = DynamoDBTurnLog(client, TABLE, count_tokens=count)  # type: ignore[arg-type] # as much of a client as it asks
    for number, (event, turn) in enumerate(events, 1):
        regenerate = event == "again" and newest is not None
        request = asking_again(newest) if regenerate and newest else asking(str(number))
        _, claim = await take_turn(log, SESSION, request, token_limit=limit, patience=0)
        assert claim
        messages = messages_of(turn)
        if event == "failed":
            stored = claim.failed("model_error", messages[:1], at=utc_now(), instance="test")
        else:
            stored = claim.completed(messages, tokens=count(messages), at=utc_now(), instance="test")
            answered = [one for one in answered if one != claim.supersedes] + [number]
        await log.commit(claim, stored)
        newest = number
    request = asking_again(len(events)) if again else asking("next")
    window = await log.load(SESSION, token_limit=limit, request=request)
    if again and window.regenerated and window.regenerated.status is TurnStatus.COMPLETE:
        answered = answered[:-1]
    return window, answered[-1] if answered else 0


def faults(messages: list[dict[str, Any]]) -> list[str]:
    """What a strict server would refuse."""
    found: list[str] = []
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                found.append(f"a result without its call: {message['tool_call_id']}")
            else:
                open_calls.remove(message["tool_call_id"])
            continue
        if open_calls:
            found.append(f"calls without results: {open_calls}")
        open_calls = [made["id"] for made in message.get("tool_calls", [])]
        arguments = [json.loads(made["function"]["arguments"]) for made in message.get("tool_calls", [])]
        found += [f"arguments that are not an object: {one}" for one in arguments if not isinstance(one, dict)]
        if not message["content"] and not open_calls:
            found.append("an empty message")
    return found + ([f"calls without results: {open_calls}"] if open_calls else [])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(events=EVENTS, limit=LIMITS, again=st.booleans())
def test_no_window_is_blank_and_every_window_fits(events: list[tuple[str, Any]], limit: int, again: bool) -> None:
    """The newest answered turn is always shown, within the limit, and what is sent to the model is well-formed."""
    if again and events[-1][0] == "failed":
        again = False
    window, newest = asyncio.run(load(events, limit, again=again))
    assert [turn.number for turn in window.turns][-1:] == ([newest] if newest else [])
    assert window.tokens <= limit
    for turn in window.turns:
        assert turn.tokens == count(turn.messages)
        assert text_of(turn.messages[0]).startswith(("Q ", "[..."))
        assert turn.messages[-1]["role"] == "assistant"
    assert set(window.shortened) <= {newest}
    shown = [decode_message(message) for turn in window.turns for message in turn.messages]
    assert faults(to_openai_message_dicts(shown)) == []  # type: ignore[arg-type] # typed dictionaries


@settings(max_examples=150, deadline=None, derandomize=True)
@given(turn=TURNS, room=LIMITS)
def test_no_tokenizer_counts_more_than_the_log_does_without_one(turn: Any, room: int) -> None:
    """A log without a tokenizer counts bytes, so its windows fit all the same."""
    short = shortened(messages_of(turn), room, most_tokens)
    assert short is not None
    assert count(short) <= most_tokens(short) <= room
