"""What a turn asks of the model's server, and what it makes of a refusal."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from handlers.model_answer import NOT_AN_OBJECT
from memory.turns import Session
from tests.conftest import asking, claimed
from tests.faulty_model import Answer, Exchange, FaultyModel, faulty_model, refuses, responds, says, streams
from tests.handlers.conftest import Reply, Service, configure, deployed
from tests.strict_server import strict

USER = "ada"


@pytest.fixture
def model() -> Iterator[FaultyModel]:
    with faulty_model() as server:
        yield server


@pytest.fixture
def service(dynoxide: str, model: FaultyModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with deployed(dynoxide, model.endpoint, monkeypatch) as deployment:
        yield deployment


def chunks(*deltas: dict[str, Any], finish: str = "tool_calls") -> Answer:
    """A stream of these deltas."""
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return streams(*(json.dumps({**frame, "choices": [choice]}) for choice in choices))


def call(**more: Any) -> dict[str, Any]:
    """A call of `total`, as a delta has it."""
    function = {"name": "total", "arguments": '{"numbers": [1, 2]}'}
    return {"index": 0, "id": "call_1", "type": "function", "function": function, **more}


def completion(message: dict[str, Any], *, finish: str = "stop") -> Answer:
    """An answer in one piece."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return responds(200, json.dumps(body), kind="application/json")


class Talk:
    """A conversation of one caller."""

    def __init__(self, service: Service) -> None:
        self._service, self._token = service, None

    def say(self, text: str = "Hello") -> Reply:
        reply = self._service.say(text, token=self._token)
        self._token = self._token or reply.token
        return reply


@pytest.fixture
def talk(service: Service) -> Talk:
    return Talk(service)


def test_a_request_has_no_parameter_that_nobody_chose(model: FaultyModel, talk: Talk) -> None:
    """The model, the messages, the tools, and that the answer is to be streamed: nothing that a server could refuse."""
    talk.say()
    (request,) = model.requests
    assert request.keys() == {"model", "messages", "tools", "stream"}
    assert all("strict" not in tool["function"] for tool in request["tools"])


def test_the_parameters_that_settings_choose_are_sent(
    model: FaultyModel, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temperature, reasoning effort, and the longest answer."""
    configure(monkeypatch, MODEL_TEMPERATURE="0.5", MODEL_REASONING_EFFORT="low", MAX_ANSWER_TOKENS="300")
    talk.say()
    (request,) = model.requests
    assert {"temperature": 0.5, "reasoning_effort": "low", "max_tokens": 300}.items() <= request.items()


def test_a_provider_is_told_who_asks_if_a_setting_says_so(
    model: FaultyModel, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a hash, the one that the log line has: a provider can act on one caller's abuse, and learns no identity."""
    configure(monkeypatch, MODEL_USER_PARAMETER="safety_identifier")
    talk.say()
    line = talk.say().line
    assert [request["safety_identifier"] for request in model.requests] == [line["owner"]] * 2


def test_a_server_that_cannot_stream_is_asked_for_one_piece(
    model: FaultyModel, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MODEL_STREAMING=false; its tool calls are as good as streamed ones."""
    configure(monkeypatch, MODEL_STREAMING="false")
    model.tell(
        completion({"content": None, "tool_calls": [call(id="")]}, finish="tool_calls"), completion({"content": "3."})
    )
    assert talk.say().body["answer"] == "3."
    assert [request.get("stream", False) for request in model.requests] == [False, False]
    assert model.received[1][-1]["content"] == "3"


@pytest.mark.parametrize("body", ["<html>Welcome</html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}'])
def test_what_is_not_a_completion_is_no_answer(
    model: FaultyModel, talk: Talk, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """In one piece as in a stream, the turn fails, and says that it was the model."""
    configure(monkeypatch, MODEL_STREAMING="false")
    kind = "text/html" if body.startswith("<") else "application/json"
    model.tell(always=responds(200, body, kind=kind))
    reply = talk.say()
    assert (reply.status, reply.body["code"]) == (502, "model_error")


def test_a_refused_prompt_is_sent_again_without_earlier_tool_calls(model: FaultyModel, talk: Talk) -> None:
    """A server that refuses the calls of an earlier turn is told of them in words, and the turn is answered."""
    model.tell(chunks({"tool_calls": [call()]}), says("It is 3."))
    talk.say("Add 1 and 2")
    model.tell(always=_refuses_tools)
    reply = talk.say("And now?")
    assert (reply.status, reply.body["answer"]) == (200, "Fine.")
    assert [len(messages) for messages in model.received] == [6, 4]
    assert "total" in model.received[1][2]["content"]


def _refuses_tools(exchange: Exchange) -> None:
    """Takes no message with tool calls."""
    answer = says("Fine.")
    if any("tool_calls" in message for message in exchange.asked["messages"]):
        answer = refuses("unexpected tool_calls", param="messages")
    answer(exchange)


def test_a_prompt_that_is_refused_twice_fails_the_turn(model: FaultyModel, talk: Talk) -> None:
    """With a code of its own. The log line names the turns that the model was shown, the caller is told what helps."""
    model.tell(chunks({"tool_calls": [call()]}), says("It is 3."))
    talk.say("Add 1 and 2")
    model.tell(always=refuses("I do not like this.", param="messages"))
    reply = talk.say("And now?")
    assert (reply.status, reply.body["code"]) == (502, "prompt_refused")
    assert "new session" in reply.body["detail"]
    assert reply.line["window_turns"] == [1]
    assert len(model.received) == 2


def test_a_prompt_that_cannot_be_put_plainer_is_not_sent_again(model: FaultyModel, talk: Talk) -> None:
    """Without tool calls in the conversation, the second request would be the first one."""
    model.tell(always=refuses("I do not like this.", param="messages"))
    assert talk.say().body["code"] == "prompt_refused"
    assert len(model.received) == 1


@pytest.mark.parametrize(
    ("answer", "parameter"),
    [
        (refuses("Unsupported value", code="unsupported_value", param="temperature"), "temperature"),
        (refuses("Unsupported parameter: 'max_tokens' is not supported with this model."), "max_tokens"),
        (refuses("`temperature` is not supported by this model"), "temperature"),
        (
            refuses("Streaming responses are not currently supported", code="OperationParameterInvalid", status=422),
            "stream",
        ),
        (refuses("Unknown parameter: 'parallel_tool_calls'.", code="unknown_parameter"), "parallel_tool_calls"),
    ],
)
def test_the_log_names_the_parameter_that_a_server_refused(
    model: FaultyModel, talk: Talk, answer: Answer, parameter: str
) -> None:
    """It is no fault of the conversation, so nothing is sent again, and only the operator can help."""
    model.tell(always=answer)
    reply = talk.say()
    assert (reply.body["code"], reply.line["refused_parameter"]) == ("parameter_refused", parameter)
    assert "operator" in reply.body["detail"]
    assert "setting" in reply.line["hint"]
    assert len(model.received) == 1


def test_a_word_of_a_message_is_no_parameter(model: FaultyModel, talk: Talk) -> None:
    """A server that quotes what was said does not get it into the log."""
    model.tell(always=refuses("Invalid value: 'xyzzy' is not supported", param="messages[1].content"))
    assert "xyzzy" not in json.dumps(talk.say("xyzzy").line)


@pytest.mark.parametrize(
    ("answer", "limit"),
    [
        (refuses("Too much", code="context_length_exceeded"), None),
        (refuses("This model's maximum context length is 8192 tokens. You requested 9000 tokens."), 8192),
        (refuses("request (33056 tokens) exceeds the available context size (32768 tokens)", code=400), 32768),
        (refuses("Prompt is too long: 210000 tokens > 200000 maximum"), None),
        (refuses("Request too large", status=413, code="context_length_exceeded"), None),
    ],
)
def test_a_prompt_that_is_too_long_says_so(model: FaultyModel, talk: Talk, answer: Answer, limit: int | None) -> None:
    """To send it again cannot help. The log has the model's limit if the server named it."""
    model.tell(always=answer)
    reply = talk.say()
    assert (reply.status, reply.body["code"], reply.line.get("model_limit")) == (502, "prompt_too_long", limit)
    assert "Shorten" in reply.body["detail"]
    assert len(model.received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        refuses("Filtered", code="content_filter", param="prompt"),
        refuses("The prompt triggered Azure OpenAI's content management policy."),
        refuses("Rejected", code="data_inspection_failed"),
    ],
)
def test_a_content_filter_says_so(model: FaultyModel, talk: Talk, answer: Answer) -> None:
    """The caller is told to say it differently, and the next message is answered."""
    model.tell(always=answer)
    reply = talk.say()
    assert (reply.status, reply.body["code"]) == (502, "content_filter")
    assert "other words" in reply.body["detail"]
    model.tell()
    assert talk.say().status == 200


def test_reasoning_that_must_come_back_comes_back(model: FaultyModel, talk: Talk) -> None:
    """Within the turn and in later turns, from the store: DeepSeek refuses a request without it."""
    thinking = ({"reasoning_content": "I should "}, {"reasoning_content": "add."}, {"tool_calls": [call()]})
    model.tell(chunks(*thinking), says("It is 3."))
    talk.say("Add 1 and 2")
    assert model.received[1][2]["reasoning_content"] == "I should add."
    model.tell()
    talk.say("And now?")
    assert model.received[0][2]["reasoning_content"] == "I should add."


def test_a_signature_of_a_call_comes_back(model: FaultyModel, talk: Talk) -> None:
    """Within the turn and in later turns, from the store: Gemini refuses a call without it."""
    signature = {"google": {"thought_signature": "c2ln"}}
    model.tell(chunks({"tool_calls": [call(extra_content=signature)]}), says("It is 3."))
    talk.say("Add 1 and 2")
    assert model.received[1][2]["tool_calls"][0]["extra_content"] == signature
    model.tell()
    talk.say("And now?")
    assert model.received[0][2]["tool_calls"][0]["extra_content"] == signature


def test_a_conversation_goes_on_with_another_model(
    model: FaultyModel, talk: Talk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets ids that every vendor takes, and no field of the vendor before."""
    fields = {"extra_content": {"google": {"thought_signature": "c2ln"}}, "id": "function-call-12345678901234567890"}
    model.tell(chunks({"reasoning_content": "Hm."}, {"tool_calls": [call(**fields)]}), says("It is 3."))
    talk.say("Add 1 and 2")
    configure(monkeypatch, OPENAI_MODEL="another")
    model.tell(always=strict(says("Fine.")))
    assert talk.say("And now?").status == 200
    answer = model.received[0][2]
    assert answer.keys() == {"role", "content", "tool_calls"}
    assert answer["tool_calls"][0].keys() == {"id", "type", "function"}
    assert len(answer["tool_calls"][0]["id"]) == 9


def test_a_conversation_that_an_older_release_broke_goes_on(
    service: Service, model: FaultyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged calls, missing ids and broken arguments were stored as they came. The next turns are answered."""
    broken = [
        {"role": "user", "blocks": [{"block_type": "text", "text": "Add up"}], "additional_kwargs": {}},
        _old_answer("call_1call_2", "totaltotal", '{"numbers":[1,2]}{"numbers":[5,6]}'),
        _old_result("call_1call_2"),
        _old_answer(None, "total", '{"numbers": [1, 2'),
        _old_result(""),
        {"role": "assistant", "blocks": [{"block_type": "text", "text": "3"}], "additional_kwargs": {}},
    ]
    configure(monkeypatch, IDENTITY_SOURCES="header")
    session = Session(owner=f"header:user:{USER}", id="default")

    async def store() -> None:
        claim = await claimed(service.store, session, asking("Add up"))
        await service.store.log().commit(claim, claim.completed(broken, tokens=9, at=claim.claimed_at, instance="old"))

    service.run(store())
    model.tell(always=strict(says("Fine.")))
    replies = [service.say("And now?", x_user_id=USER) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 200]
    assert [reply.body["memory"]["turns_in_window"] for reply in replies] == [1, 2]
    assert NOT_AN_OBJECT in model.received[0][2]["tool_calls"][0]["function"]["arguments"]


def _old_answer(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    block = {"block_type": "tool_call", "tool_call_id": call_id, "tool_name": name, "tool_kwargs": arguments}
    kept = {"index": 0, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    blocks = [{"block_type": "text", "text": ""}, block]
    return {"role": "assistant", "blocks": blocks, "additional_kwargs": {"tool_calls": [kept]}}


def _old_result(call_id: str) -> dict[str, Any]:
    blocks = [{"block_type": "text", "text": "It failed."}]
    return {"role": "tool", "blocks": blocks, "additional_kwargs": {"tool_call_id": call_id}}
