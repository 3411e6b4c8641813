"""What a model's server is sent, whatever a conversation holds."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from handlers.prompt import openai_messages, tools_as_text
from handlers.provider_fields import FIELD, FIELDS, ORIGIN
from tests.strict_server import faults

HERE = "api.example.com/model"
ELSEWHERE = "api.example.org/model"

IDS = st.sampled_from(["call_1", "call_2", "call_1call_2", "", None, "total:0", "x" * 60, "\u00e9"])
NAMES = st.sampled_from(["total", "current_time", "", "functions.total", "total<|channel|>analysis", "a b", "n" * 80])
ARGUMENTS = st.sampled_from(
    [
        '{"numbers": [1, 2]}',
        '{"numbers":[1,2]}{"numbers":[5,6]}',
        '{"numbers": [1, 2',
        '{"numbers": [1, NaN]}',
        '["UTC"]',
        '"{}"',
        "7",
        "null",
        "",
        "{}",
        "{timezone: Paris",
        {"numbers": [1, 2]},
        {},
    ]
)
TEXTS = st.sampled_from(["", " ", "Hello", "The sum is 3.", "\n"])
CALLS = st.builds(
    lambda call_id, name, arguments: ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=arguments),
    IDS,
    NAMES,
    ARGUMENTS,
)
EXTRAS = st.sampled_from(
    [
        {},
        {ORIGIN: HERE},
        {ORIGIN: ELSEWHERE, FIELDS: {"extra_content": {"a": 1}}},
        {"tool_call_id": "call_1"},
        {"tool_calls": [{"id": None, "type": "function", "function": {"name": "total", "arguments": "{}{}"}}]},
        {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "", "arguments": None}}]},
    ]
)


@st.composite
def messages(draw: st.DrawFn) -> ChatMessage:
    """Any message that a model, a tool, a user or an older release may have left."""
    role = draw(st.sampled_from(list(MessageRole)))
    blocks: list[Any] = [TextBlock(text=draw(TEXTS))] if draw(st.booleans()) else []
    if role is MessageRole.ASSISTANT:
        blocks += draw(st.lists(CALLS, max_size=3))
        blocks += [ThinkingBlock(content="Hm.", additional_information={FIELD: "reasoning_content"})]
    if draw(st.booleans()):
        blocks.append(ImageBlock(url="https://example.com/cat.png"))
    extra = {"tool_call_id": draw(IDS)} if role is MessageRole.TOOL else draw(EXTRAS)
    return ChatMessage(role=role, blocks=blocks, additional_kwargs=extra)


HISTORIES = st.lists(messages(), max_size=12)


@settings(max_examples=300, deadline=None)
@given(HISTORIES)
def test_every_history_is_sent_in_a_form_that_a_strict_server_takes(history: list[ChatMessage]) -> None:
    """Every call has an id of its own, an allowed name, an object and a result. Every result has its call. No message
    is empty, and the roles come in order."""
    sent = openai_messages([*history, ChatMessage(role="user", content="And now?")], model="model", origin=HERE)
    assert faults(sent) == []
    assert "And now?" in json.dumps(sent[-1])


@settings(max_examples=200, deadline=None)
@given(HISTORIES)
def test_a_history_is_told_without_tool_traffic(history: list[ChatMessage]) -> None:
    """The plainer form has no call and no result of an earlier turn, and a strict server takes it too."""
    plain = tools_as_text([*history, ChatMessage(role="user", content="And now?")])
    sent = openai_messages(plain, model="model", origin=HERE)
    assert faults(sent) == []
    assert not any("tool_calls" in message or message["role"] == "tool" for message in sent)


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_the_same_history_is_sent_the_same_way(history: list[ChatMessage]) -> None:
    """Ids that are made here do not change from one request to the next, so that a server's cache of prompts works."""
    assert openai_messages(history, model="m", origin=HERE) == openai_messages(history, model="m", origin=HERE)


def exchange(call_id: str = "call_1", *, origin: str = HERE, **extra: Any) -> list[ChatMessage]:
    """A question, a call, its result, and an answer."""
    call = ToolCallBlock(tool_call_id=call_id, tool_name="total", tool_kwargs='{"numbers": [1, 2]}')
    thinking = ThinkingBlock(content="I should add.", additional_information={FIELD: "reasoning_content"})
    return [
        ChatMessage(role="user", content="Add 1 and 2"),
        ChatMessage(role="assistant", blocks=[thinking, call], additional_kwargs={ORIGIN: origin, **extra}),
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": call_id}),
        ChatMessage(role="assistant", content="It is 3."),
        ChatMessage(role="user", content="And now?"),
    ]


def test_each_result_stays_with_its_call() -> None:
    """Results that came in another order are sent with the call of their id."""
    calls = [ToolCallBlock(tool_call_id=name, tool_name=name, tool_kwargs={}) for name in ("a", "b")]
    results = [ChatMessage(role="tool", content=name, additional_kwargs={"tool_call_id": name}) for name in ("b", "a")]
    user, answer = ChatMessage(role="user", content="Go"), ChatMessage(role="assistant", blocks=list(calls))
    sent = openai_messages([user, answer, *results], model="model", origin=HERE)
    named = {call["id"]: call["function"]["name"] for call in sent[1]["tool_calls"]}
    assert [(named[message["tool_call_id"]], message["content"]) for message in sent[2:]] == [("a", "a"), ("b", "b")]


def test_results_without_ids_belong_to_the_calls_in_their_order() -> None:
    """Older releases stored parallel calls without ids."""
    calls = [ToolCallBlock(tool_call_id=None, tool_name=name, tool_kwargs={}) for name in ("a", "b")]
    results = [ChatMessage(role="tool", content=name, additional_kwargs={"tool_call_id": ""}) for name in ("a", "b")]
    user, answer = ChatMessage(role="user", content="Go"), ChatMessage(role="assistant", blocks=list(calls))
    sent = openai_messages([user, answer, *results], model="model", origin=HERE)
    named = {call["id"]: call["function"]["name"] for call in sent[1]["tool_calls"]}
    assert [(named[message["tool_call_id"]], message["content"]) for message in sent[2:]] == [("a", "a"), ("b", "b")]


def test_ids_go_back_to_the_server_that_made_them() -> None:
    """Some servers keep in them what they need again."""
    sent = openai_messages(exchange("call_1__thought__c2ln"), model="model", origin=HERE)
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "call_1__thought__c2ln"


def test_another_server_gets_ids_that_every_server_takes() -> None:
    """Mistral takes nine letters and digits, and nothing else."""
    sent = openai_messages(exchange("call_1__thought__c2ln", origin=ELSEWHERE), model="model", origin=HERE)
    call_id = sent[1]["tool_calls"][0]["id"]
    assert len(call_id) == 9
    assert call_id.isalnum()
    assert sent[2]["tool_call_id"] == call_id


def test_a_providers_fields_go_back_to_it() -> None:
    """Fields of a message and of its calls, and the reasoning of a turn that called a tool."""
    fields = {FIELDS: {"reasoning_details": [{"text": "x"}]}, "call_" + FIELDS: [{"extra_content": {"google": "c2ln"}}]}
    answer = openai_messages(exchange(**fields), model="model", origin=HERE)[1]
    assert answer["reasoning_content"] == "I should add."
    assert answer["reasoning_details"] == [{"text": "x"}]
    assert answer["tool_calls"][0]["extra_content"] == {"google": "c2ln"}


def test_a_providers_fields_go_to_no_other() -> None:
    """Other vendors refuse what they do not know."""
    fields = {FIELDS: {"reasoning_details": [{"text": "x"}]}, "call_" + FIELDS: [{"extra_content": {"google": "c2ln"}}]}
    answer = openai_messages(exchange(origin=ELSEWHERE, **fields), model="model", origin=HERE)[1]
    assert answer.keys() == {"role", "content", "tool_calls"}
    assert answer["tool_calls"][0].keys() == {"id", "type", "function"}


def test_reasoning_of_a_turn_without_tools_does_not_go_back() -> None:
    """No provider needs it, and some refuse it."""
    thinking = ThinkingBlock(content="Hm.", additional_information={FIELD: "reasoning_content"})
    said = ChatMessage(role="assistant", blocks=[thinking, TextBlock(text="Hi.")], additional_kwargs={ORIGIN: HERE})
    sent = openai_messages([ChatMessage(role="user", content="Hello"), said], model="model", origin=HERE)
    assert sent[1] == {"role": "assistant", "content": "Hi."}


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    """A call whose result is gone does not make a server refuse the conversation."""
    sent = openai_messages([*exchange()[:2], *exchange()[4:]], model="model", origin=HERE)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool", "assistant", "user"]
    assert "not kept" in sent[2]["content"]


def test_the_stored_messages_stay_as_they_are() -> None:
    """Putting a prompt in order changes no message of the conversation."""
    history = exchange("", origin=ELSEWHERE)
    before = [message.model_dump() for message in history]
    openai_messages(history, model="model", origin=HERE)
    tools_as_text(history)
    assert [message.model_dump() for message in history] == before


def test_the_plainer_form_says_what_the_tools_returned() -> None:
    """Nothing that the model learnt is lost."""
    sent = openai_messages(tools_as_text(exchange()), model="model", origin=HERE)
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert "total" in sent[1]["content"]
    assert "3" in sent[1]["content"]
    assert "It is 3." in sent[1]["content"]


def test_the_plainer_form_keeps_the_turn_that_is_being_answered() -> None:
    """The calls of the current turn stay calls."""
    sent = openai_messages(tools_as_text([*exchange(), *exchange("call_2")[1:3]]), model="model", origin=HERE)
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "assistant", "tool"]
