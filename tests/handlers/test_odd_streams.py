"""What OpenAI-compatible servers really stream, from public reports: `model_streams.json` beside this file has the
chunks. In every case the next turns reach a server that refuses all that a strict one refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_model import FaultyModel, faulty_model, says, streams
from tests.handlers.conftest import Reply, Service, deployed
from tests.strict_server import strict

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("model_streams.json").read_text())
FRAME = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "odd"}
ANSWER = "Fine."


class Conversation:
    """A new session on a strict server."""

    def __init__(self, service: Service, model: FaultyModel) -> None:
        self._service, self.model = service, model
        self._token: str | None = None

    def say(self, *chunks: Any) -> Reply:
        """A turn whose first answer is these chunks, and whose further answers are `ANSWER`."""
        events = [json.dumps(FRAME | chunk if chunk and "error" not in chunk else chunk) for chunk in chunks]
        self.model.tell(*([strict(streams(*events))] if events else []), always=strict(says(ANSWER)))
        reply = self._service.say("Hello", token=self._token)
        self._token = self._token or reply.token
        return reply

    def messages(self) -> list[dict[str, Any]]:
        """The messages of the newest turn."""
        turns = self._service.send("GET", "/sessions/default/turns", token=self._token).body["turns"]
        messages: list[dict[str, Any]] = turns[0]["messages"]
        return messages


@pytest.fixture(scope="module")
def _served(dynoxide: str) -> Iterator[tuple[Service, FaultyModel]]:
    with (
        pytest.MonkeyPatch.context() as patch,
        faulty_model() as model,
        deployed(dynoxide, model.endpoint, patch) as service,
    ):
        yield service, model


@pytest.fixture
def conversation(_served: tuple[Service, FaultyModel]) -> Conversation:
    return Conversation(*_served)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_an_odd_stream_gives_what_people_expect(conversation: Conversation, case: dict[str, Any]) -> None:
    """The answer, the calls that ran, what the model was told, and the log line are as the report expects."""
    expected = case["expect"]
    reply = conversation.say(*case["chunks"])
    assert reply.status == expected.get("status", 200)
    assert reply.body.get("code") == expected.get("code")
    assert reply.body.get("answer") == expected.get("answer")
    assert expected.get("line", {}).items() <= reply.line.items()
    messages = conversation.messages()
    calls = [call for message in messages for call in message["tool_calls"]]
    results = [message for message in messages if message["role"] == "tool"]
    if "calls" in expected:
        assert [{"name": call["name"], "arguments": call["arguments"]} for call in calls] == expected["calls"]
    if "results" in expected:
        assert [result["text"] for result in results] == expected["results"]
    if "told" in expected:
        assert expected["told"] in results[0]["text"]
    assert [call["id"] for call in calls] == [result["tool_call_id"] for result in results]
    assert all(call["id"] for call in calls)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_no_stream_breaks_the_turns_after_it(conversation: Conversation, case: dict[str, Any]) -> None:
    """A server that refuses malformed input takes the two turns that follow, and the model is shown the first one."""
    conversation.say(*case["chunks"])
    following = conversation.say(*case.get("next_chunks", ()))
    last = conversation.say()
    assert (following.status, last.status) == (200, 200)
    assert (following.body["answer"], last.body["answer"]) == (ANSWER, ANSWER)
    assert last.body["memory"]["turns_in_window"] == (2 if case["expect"].get("status", 200) == 200 else 1)


def test_an_emoji_that_is_split_over_two_deltas_arrives_whole(conversation: Conversation) -> None:
    """Its two halves, each an escape of its own, are one character in the answer and in the history."""
    halves = [{"choices": [{"index": 0, "delta": {"content": half}, "finish_reason": None}]} for half in "\ud83d\ude00"]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    assert conversation.say(*halves, end).body["answer"] == "\U0001f600"
    assert conversation.messages()[-1]["text"] == "\U0001f600"


def test_a_call_of_20000_numbers_is_made(conversation: Conversation) -> None:
    """It runs once, and the next turn is answered."""
    arguments = json.dumps({"numbers": [1] * 20_000})
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "total", "arguments": arguments}}
    end = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    assert conversation.say(end).status == 200
    assert conversation.messages()[2]["text"] == "20000"
    assert conversation.say().status == 200
