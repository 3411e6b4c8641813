"""The demo model knows what the messages of the request say, and nothing else."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ToolCall
from llama_index.core.llms import ChatMessage, LLMMetadata
from llama_index.llms.openai import OpenAI

from local import demo_model, guard
from local.demo_model import Call, Reply, reply_to


def said(*texts: str, tools: frozenset[str] = frozenset()) -> str:
    """The answer to the last of the user's messages."""
    return reply_to([{"role": "user", "content": text} for text in texts], tools).text


@pytest.mark.parametrize("statement", ["My name is Ada", "Hi! My name is Ada.", "my name is Ada and my age is 36."])
@pytest.mark.parametrize("question", ["What is my name?", "what's my name", "Do you remember my name?"])
def test_it_recalls_what_it_was_told(statement: str, question: str) -> None:
    """A name that stands in the messages is the answer."""
    assert said(statement, "Something else", question) == "Your name is Ada."


def test_it_does_not_know_what_it_was_not_told() -> None:
    """Without the statement it says unmistakably that it does not know."""
    assert said("What is my name?") == "I don't know your name: nothing in the messages I was given says it."


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_only_the_user_and_the_system_are_believed(role: str) -> None:
    """Its own words and a tool's are no statements of the user."""
    messages = [{"role": role, "content": "my name is Eve"}, {"role": "user", "content": "What is my name?"}]
    assert "I don't know your name" in reply_to(messages, frozenset()).text


def test_the_last_statement_wins() -> None:
    """A correction replaces what was said before."""
    told = ["My favourite colour is teal.", "My favourite colour is now that I think of it red."]
    assert said(*told, "What is my favourite colour?") == ("Your favourite colour is now that I think of it red.")


def test_a_question_is_no_statement() -> None:
    """To ask whether something is so does not make it so."""
    assert "I don't know your name" in said("Is it true that my name is Bob?", "What is my name?")


def test_it_lists_all_that_it_knows() -> None:
    """Every statement is listed, each in its last form."""
    answer = said("My name is Ada.", "my lucky number is 3.5, my dog is Rex", "What do you know about me?")
    assert answer == "I know this: your name is Ada; your lucky number is 3.5; your dog is Rex."
    assert "don't know anything" in said("What do you know about me?")


def test_it_counts_the_users_messages() -> None:
    """The count is of the user messages in the request."""
    assert said("a", "b", "How many messages have you seen?") == "I have seen 3 user messages (3 messages in all)."


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("What time is it?", [Call(tool="current_time", arguments={"timezone": "UTC"})]),
        ("What's the date in Europe/Paris?", [Call(tool="current_time", arguments={"timezone": "Europe/Paris"})]),
        (
            "How many days between 2024-01-01 and 2024-03-01?",
            [Call(tool="days_between", arguments={"start": "2024-01-01", "end": "2024-03-01"})],
        ),
        ("Please add up 1, 2 and 3.5.", [Call(tool="total", arguments={"numbers": [1, 2, 3.5]})]),
        (
            "Call order_status with order=A17, days=2.5.",
            [Call(tool="order_status", arguments={"order": "A17", "days": 2.5})],
        ),
        ("call list_orders", [Call(tool="list_orders", arguments={})]),
        ("add up 1, -2, and 3", [Call(tool="total", arguments={"numbers": [1, -2, 3]})]),
    ],
)
def test_it_calls_the_tool_that_fits(text: str, calls: list[Call]) -> None:
    """With the tool offered it is called, with what the user named; without it the answer says so."""
    offered = frozenset({"current_time", "days_between", "total", "order_status", "list_orders"})
    assert reply_to([{"role": "user", "content": text}], offered) == Reply(calls=tuple(calls))
    assert f"not offered the tool {calls[0].tool}" in said(text)


# --- Over HTTP, through the clients that the project uses -------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with demo_model.start() as server:
        yield server.endpoint


class DemoLLM(OpenAI):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=8000, is_chat_model=True, is_function_calling_model=True, model_name="demo")


def llm(endpoint: str, **more: Any) -> DemoLLM:
    return DemoLLM(model="demo", api_base=f"{endpoint}/v1", api_key="none", max_retries=0, **more)


HISTORY = [ChatMessage(role="user", content="My name is Ada"), ChatMessage(role="assistant", content="Got it.")]
QUESTION = ChatMessage(role="user", content="What is my name?")


@pytest.mark.parametrize(("messages", "knows"), [([*HISTORY, QUESTION], True), ([QUESTION], False)])
def test_the_client_gets_the_same_with_and_without_streaming(
    endpoint: str, messages: list[ChatMessage], knows: bool
) -> None:
    """Recalled if and only if the history is in the request; the stream comes in several pieces of the same text."""
    whole = str(llm(endpoint).chat(messages).message.content)
    pieces = [piece.delta for piece in llm(endpoint).stream_chat(messages) if piece.delta]
    assert ("Ada" in whole) is knows
    assert ("I don't know your name" in whole) is not knows
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def current_time(timezone: str) -> str:
    """The time in a timezone."""
    return f"noon in {timezone}"


@pytest.mark.parametrize("streaming", [True, False])
def test_an_agent_calls_a_tool_and_answers_from_its_result(endpoint: str, streaming: bool) -> None:
    """The real FunctionAgent runs the tool that the model called, and the answer holds what it returned."""

    async def run() -> tuple[str, list[ToolCall], list[str]]:
        async with httpx.AsyncClient(timeout=30) as client:
            model = llm(endpoint, async_http_client=client)
            agent = FunctionAgent(tools=[current_time], llm=model, streaming=streaming)
            handler = agent.run(user_msg="What time is it in Europe/Paris and in Asia/Tokyo?")
            events = [event async for event in handler.stream_events()]
            answer = str(await handler)
        calls = [event for event in events if isinstance(event, ToolCall)]
        return answer, calls, [event.delta for event in events if isinstance(event, AgentStream) and event.delta]

    answer, calls, deltas = asyncio.run(run())
    assert [call.tool_kwargs for call in calls] == [{"timezone": "Europe/Paris"}, {"timezone": "Asia/Tokyo"}]
    assert "noon in Europe/Paris" in answer
    assert "noon in Asia/Tokyo" in answer
    if streaming:
        assert "".join(deltas) == answer
        assert len(deltas) > 1


def ask(endpoint: str, text: str, **more: Any) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], **more}
    return httpx.post(f"{endpoint}/v1/chat/completions", json=body, timeout=30)


def test_a_stream_ends_with_usage_and_done(endpoint: str) -> None:
    """With include_usage the last chunk before [DONE] holds the usage."""
    response = ask(endpoint, "Hello", stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["total_tokens"] > 0
    assert json.loads(events[-3])["choices"][0]["finish_reason"] == "stop"


def test_it_fails_when_told_to(endpoint: str) -> None:
    """The status is the one asked for, in OpenAI's error shape, and only for the newest message."""
    failing = ChatMessage(role="user", content="Please fail with status 500")
    with pytest.raises(openai.InternalServerError, match="asked for this failure"):
        llm(endpoint).chat([failing])
    assert llm(endpoint).chat([failing, ChatMessage(role="user", content="Hello")]).message.content


def test_a_wait_ends_in_the_answer_to_the_rest(endpoint: str) -> None:
    """After the wait the rest of the message is answered."""
    answer = ask(endpoint, "Please wait 0.05 seconds. My name is Ada. What is my name?").json()
    assert answer["choices"][0]["message"]["content"] == "Your name is Ada."


def test_the_requests_are_on_record(endpoint: str) -> None:
    """The messages of each request can be read, the last 50 of them, until they are deleted."""
    httpx.delete(f"{endpoint}/requests")
    for number in range(demo_model.RECORDED_REQUESTS + 2):
        ask(endpoint, f"message {number}")
    recorded = httpx.get(f"{endpoint}/requests").json()
    assert len(recorded) == demo_model.RECORDED_REQUESTS
    assert recorded[0] == [{"role": "user", "content": "message 2"}]
    httpx.delete(f"{endpoint}/requests")
    assert httpx.get(f"{endpoint}/requests").json() == []


def test_no_request_is_on_record_unless_that_is_asked_for() -> None:
    """As `make run` starts it, it keeps nothing of what was said, and so shows nothing."""
    with demo_model.start(recording=False) as server:
        assert ask(server.endpoint, "My name is Ada").status_code == 200
        assert httpx.get(f"{server.endpoint}/requests").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:8000"},
        {"origin": "null"},
    ],
)
def test_web_pages_get_nothing(endpoint: str, headers: dict[str, str]) -> None:
    """Neither by a name of theirs that leads here, nor from any origin."""
    for method, path in (("GET", "/requests"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        response = httpx.request(method, f"{endpoint}{path}", headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("host", ["localhost:8000", "172.17.0.1:40123", "host.docker.internal:8000", "[::1]:8000"])
def test_containers_reach_it(endpoint: str, host: str) -> None:
    """By the address of Docker's bridge, and by the name that Docker Desktop gives this machine."""
    assert httpx.get(f"{endpoint}/v1/models", headers={"host": host}).status_code == 200


def test_what_is_no_request_is_a_400(endpoint: str) -> None:
    """A broken request gets OpenAI's error shape."""
    response = httpx.post(f"{endpoint}/v1/chat/completions", content=b"{")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_model_is_listed(endpoint: str) -> None:
    """GET /v1/models names the demo model."""
    assert [model["id"] for model in httpx.get(f"{endpoint}/v1/models").json()["data"]] == ["demo"]
    assert guard.status_of(endpoint, "/v1/models") == 200
