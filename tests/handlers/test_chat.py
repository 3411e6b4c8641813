"""POST /chat, from the event to the response and the log line."""

import json
import logging
import re
import tracemalloc
from base64 import b64encode
from typing import Any

import pytest

from handlers import conversation
from tests.conftest import EVENT_FILES, event_named
from tests.handlers.conftest import Service, configure


def test_it_remembers_what_was_said_before(service: Service) -> None:
    """The second turn is answered in view of the first."""
    first = service.say("My name is Ada")
    second = service.say("What is my name?", token=first.token)
    assert (first.status, second.status) == (200, 200)
    assert second.body["answer"] == "Your name is Ada."
    assert second.body["turn"] == 2


def test_an_answer_says_what_it_remembered_and_who_asked(service: Service) -> None:
    """The body has the answer, its place, and the window that the model was shown."""
    first = service.say("Hello")
    second = service.say("Hello again", token=first.token, idempotency_key="my-key")
    assert first.body["identity"] == "new"
    assert set(second.body) == {"answer", "session_id", "turn", "request_id", "memory", "identity", "structured"}
    assert second.body["session_id"] == "default"
    assert second.body["request_id"] == "my-key"
    assert second.body["identity"] == "token"
    assert second.body["memory"]["turns_in_window"] == second.body["memory"]["turns_total"] == 1
    assert second.body["memory"]["token_limit"] == 10_000
    assert second.body["memory"]["window_tokens"] > 0


def test_turns_in_window_are_the_turns_that_the_model_received(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the response says of the window is what went over the wire: all of those turns, and no other."""
    configure(monkeypatch, TOKEN_LIMIT="100")
    token = service.say("I am number 0").token
    for i in range(1, 12):
        reply = service.say(f"I am number {i}", token=token)
        received = [m["content"] for m in service.model_received()[-1] if m["role"] == "user"]
        shown = reply.body["memory"]["turns_in_window"]
        assert received == [f"I am number {n}" for n in range(i - shown, i + 1)]
        assert reply.body["memory"]["window_tokens"] <= 100
    assert 0 < shown < 11


NUMBERS = ", ".join(map(str, range(20_000)))


def test_a_turn_larger_than_the_window_does_not_blank_the_next_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call with 20,000 numbers is shown in part; body, log and session say so, and the history has all of it."""
    configure(monkeypatch, MAX_MESSAGE_CHARS="200000", MAX_MESSAGE_TOKENS="100000")
    large = service.say(f"My name is Ada. Add up {NUMBERS}. My dog is Rex")
    assert "199990000" in large.body["answer"]
    token = large.token
    reply = service.say("What do you know about me?", token=token, idempotency_key="k")
    assert reply.body["answer"] == "I know this: your name is Ada; your dog is Rex."
    memory = reply.body["memory"]
    assert (memory["turns_in_window"], memory["turns_shortened"]) == (1, 1)
    assert 8500 < memory["window_tokens"] <= memory["token_limit"] == 10_000
    assert (reply.line["shortened_turns"], reply.line["level"]) == ([1], "WARNING")
    assert "TOKEN_LIMIT" in reply.line["hint"]
    _, question, call, result, answer, _ = service.model_received()[-1]
    assert "characters left out" in question["content"]
    assert "characters left out" in json.loads(call["tool_calls"][0]["function"]["arguments"])["numbers"]
    assert (result["tool_call_id"], result["content"]) == (call["tool_calls"][0]["id"], "199990000")
    assert answer["content"] == "The tool says: 199990000"

    assert service.say("What do you know about me?", token=token, idempotency_key="k").body["memory"] == memory
    assert service.send("GET", "/sessions/default", token=token).body["window"]["turns_shortened"] == 0
    turns = service.send("GET", "/sessions/default/turns", token=token).body["turns"]
    assert turns[1]["messages"][1]["tool_calls"][0]["arguments"]["numbers"][-1] == 19_999


def test_a_large_turn_is_replayed_whole(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of a request gets the answer as it is stored, though the model would be shown a part of it."""
    configure(monkeypatch, TOKEN_LIMIT="200")
    token, message = service.say("Hello").token, "My book is " + "all of it, " * 100
    first = service.say(message, idempotency_key="k", token=token)
    again = service.say(message, idempotency_key="k", token=token)
    assert (again.headers["idempotent-replayed"], again.body["answer"]) == ("true", first.body["answer"])
    assert service.say("Thank you", token=token).line["shortened_turns"] == [2]


def test_tool_calls_are_part_of_the_turn(service: Service) -> None:
    """The call and its result are stored with the turn, and reach the model again in order."""
    first = service.say("Add up 1, 2 and 3.5")
    assert "6.5" in first.body["answer"]
    service.say("Thank you", token=first.token)
    assert [m["role"] for m in service.model_received()[-1]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_sessions_of_one_caller_are_apart(service: Service) -> None:
    """Each session id is a conversation of its own, whether it comes in the body or in the header."""
    token = service.say("My name is Ada").token
    named = service.say("What is my name?", token=token, session="other")
    assert "don't know" in named.body["answer"]
    assert named.body["session_id"] == "other"
    by_header = service.say("What is my name?", token=token, x_session_id="other")
    assert (by_header.body["session_id"], by_header.body["turn"]) == ("other", 2)
    assert service.say("What is my name?", token=token, session="default").body["answer"] == "Your name is Ada."


def test_the_body_names_the_session_before_the_header(service: Service) -> None:
    """Where both name one, the body decides."""
    token = service.say("Hello").token
    assert service.say("Hello", token=token, session="body", x_session_id="header").body["session_id"] == "body"


def test_an_idempotency_key_is_answered_once(service: Service) -> None:
    """The same key with the same request gets the stored answer, says so, and asks no model again."""
    token = service.say("Hello").token
    first = service.say("My name is Ada", token=token, idempotency_key="k")
    asked = len(service.model_received())
    again = service.say("My name is Ada", token=token, idempotency_key="k")
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.body == first.body
    assert again.line["replayed"] is True
    assert len(service.model_received()) == asked


def test_without_a_key_each_request_is_a_turn(service: Service) -> None:
    """Saying the same twice is two turns, also where the API gives every request one id, as `sam local` does."""
    token = service.say("Hello").token
    assert [service.say("Hello", token=token).body["turn"] for _ in range(2)] == [2, 3]


BAD_INPUT: dict[str, tuple[dict[str, Any], int, str]] = {
    "no body": ({"body": None}, 400, "body"),
    "empty body": ({"body": ""}, 400, "body"),
    "broken JSON": ({"body": '{"message": '}, 400, "body"),
    "no JSON": ({"body": "hello"}, 400, "body"),
    "no object": ({"body": '["message"]'}, 400, "body"),
    "deep JSON": ({"body": "[" * 100_000}, 400, "body"),
    "lone surrogate": ({"body": '{"message": "\\ud800"}'}, 400, "body"),
    "base64 that is none": ({"body": "\xe9", "base64": True}, 400, "body"),
    "no UTF-8": ({"body": "\ud800"}, 400, "body"),
    "no message": ({"body": "{}"}, 400, "message"),
    "empty message": ({"body": '{"message": ""}'}, 400, "message"),
    "blank message": ({"body": '{"message": " \\n"}'}, 400, "message"),
    "message of a wrong type": ({"body": '{"message": 7}'}, 400, "message"),
    "null message": ({"body": '{"message": null}'}, 400, "message"),
    "too long a message": ({"body": json.dumps({"message": "x" * 32_001})}, 413, "message"),
    "unknown field": ({"body": '{"message": "hi", "sessionId": "a"}'}, 400, "sessionId"),
    "session id of a wrong type": ({"body": '{"message": "hi", "session_id": 7}'}, 400, "session_id"),
    "session id with a space": ({"body": '{"message": "hi", "session_id": "a b"}'}, 400, "session_id"),
    "session id with a line end": ({"body": '{"message": "hi", "session_id": "a\\n"}'}, 400, "session_id"),
    "empty session id": ({"body": '{"message": "hi", "session_id": ""}'}, 400, "session_id"),
    "session id too long": ({"body": json.dumps({"message": "hi", "session_id": "a" * 129})}, 400, "session_id"),
    "session id that is a place in a path": ({"body": '{"message": "hi", "session_id": ".."}'}, 400, "session_id"),
    "session header that is a place in a path": (
        {"body": '{"message": "hi"}', "x_session_id": "."},
        400,
        "x-session-id",
    ),
    "session header with a slash": ({"body": '{"message": "hi"}', "x_session_id": "a/b"}, 400, "x-session-id"),
    "empty key": ({"body": '{"message": "hi"}', "idempotency_key": ""}, 400, "Idempotency-Key"),
    "key too long": ({"body": '{"message": "hi"}', "idempotency_key": "k" * 256}, 400, "Idempotency-Key"),
    "key with a space": ({"body": '{"message": "hi"}', "idempotency_key": "a b"}, 400, "Idempotency-Key"),
    "key that was used": ({"body": '{"message": "hi"}', "idempotency_key": "used"}, 422, "Idempotency-Key"),
}


MANY_FIELDS = json.dumps({f"field {i}": 1 for i in range(20_000)})
"""Nearly as much as a body may have."""


@pytest.mark.parametrize("body", ['{"' + "a" * 300_000 + '": 1}', MANY_FIELDS], ids=["long", "many"])
def test_a_problem_is_small_whatever_was_sent(service: Service, body: str) -> None:
    """Fields that are not known are named, as far as a response can."""
    reply = service.post(body)
    assert (reply.status, reply.body["field"]) == (400, "message")
    assert len(json.dumps(reply.body)) < 10_000


def test_validation_stops_at_the_tenth_fault(service: Service) -> None:
    """What 20,000 unknown fields take is what the JSON takes, not thousands of errors that nobody is told."""
    tracemalloc.start()
    errors = service.post(MANY_FIELDS).body["errors"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [error["field"] for error in errors] == ["message", *(f"field {i}" for i in range(9))]
    assert peak < 15 * len(MANY_FIELDS)


LIMIT = 12 * 32_000 + 4_096
"""The bytes that a body may have where MAX_MESSAGE_CHARS is as it is by default."""


def padded(size: int) -> str:
    """A good body of so many bytes."""
    body = '{"message": "My name is Ada"'
    return body + " " * (size - len(body) - 1) + "}"


@pytest.mark.parametrize("base64", [False, True], ids=["text", "base64"])
@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
def test_a_body_has_a_limit(service: Service, size: int, status: int, base64: bool) -> None:
    """To the byte, and counted as the client sent it: base64 is the gateway's."""
    body = padded(size)
    reply = service.post(b64encode(body.encode()).decode() if base64 else body, base64=base64)
    assert reply.status == status
    if status == 413:
        assert (reply.body["type"], reply.body["field"]) == ("urn:rehydrate:problem:too-large", "body")
        assert str(LIMIT) in reply.body["detail"]
        assert "MAX_MESSAGE_CHARS" in reply.body["detail"]


def test_the_limit_counts_bytes(service: Service) -> None:
    """Characters of several bytes count for as many."""
    assert service.post(json.dumps({"message": "ü" * (LIMIT // 2)}, ensure_ascii=False)).body["field"] == "body"


def test_the_longest_message_fits_in_every_spelling(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON may take 12 bytes for a character, and the limit has room for a message that is written so."""
    configure(monkeypatch, MAX_MESSAGE_TOKENS="100000")
    message = "\U0001f600" * 31_999
    assert len(json.dumps({"message": message})) > 380_000
    assert service.post(json.dumps({"message": message})).status == 200


@pytest.mark.parametrize("base64", [False, True], ids=["text", "base64"])
def test_a_body_over_the_limit_is_not_parsed(service: Service, base64: bool) -> None:
    """Neither decoded nor parsed: the largest body that Lambda lets in takes no memory beyond itself."""
    body = "{" + '"a":1,' * 700_000
    sent = b64encode(body.encode()).decode() if base64 else body
    tracemalloc.start()
    reply = service.post(sent, base64=base64)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reply.status == 413
    assert peak < 1_000_000


def test_the_limit_grows_with_the_messages(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that takes longer messages takes longer bodies, without another setting."""
    configure(monkeypatch, MAX_MESSAGE_CHARS="40000")
    assert service.post(padded(LIMIT + 1)).status == 200


JSON_TYPES = [
    "application/json",
    "Application/JSON",
    "application/json; charset=utf-8",
    'application/json;charset="UTF-8" ; x=1',
    " application/json ",
]
OTHER_TYPES = [
    None,
    "",
    "text/plain",
    "text/plain; x=application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=application/json",
    "application/jsonp",
    "application/problem+json",
    "application/json, text/plain",
    "application/json\u2001",
    "*/*",
]


@pytest.mark.parametrize("kind", JSON_TYPES)
def test_a_body_is_json(service: Service, kind: str) -> None:
    """`application/json` in any case, with or without parameters."""
    assert service.post('{"message": "Hello"}', content_type=kind).status == 200


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_body_of_another_type_is_refused(service: Service, kind: str | None) -> None:
    """A page of any site can send the others without asking; and what says nothing of its type may be anything."""
    event = event_named("chat_first_request")
    del event["headers"]["content-type"]
    if kind is not None:
        event["headers"]["Content-Type"] = kind
    reply = service.invoke(event)
    assert (reply.status, reply.body["type"]) == (415, "urn:rehydrate:problem:unsupported-media-type")
    assert (reply.body["field"], reply.line["field"]) == ("content-type", "content-type")
    assert "application/json" in reply.body["detail"]


def test_a_body_that_is_not_there_has_no_type(service: Service) -> None:
    """Where a body may be left out, so may its type."""
    event = event_named("sessions_create") | {"body": ""}
    event["headers"].pop("content-type", None)
    token = service.say("Hello").token
    event["headers"]["x-session-token"] = token
    assert service.invoke(event).status == 201


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_by_name_and_harms_nothing(service: Service, case: str) -> None:
    """The problem names the field and says what to do; nothing is stored, and the next good request works."""
    token = service.say("My name is Ada", idempotency_key="used").token
    request, status, field = BAD_INPUT[case]
    reply = service.post(**request, token=token)
    assert (reply.status, reply.body["status"], reply.body["field"]) == (status, status, field)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.line["field"] == (field if field != "sessionId" else "one that is not known")
    kind = {400: "invalid-request", 413: "too-large", 422: "idempotency-key-reused"}[status]
    assert reply.body["type"] == f"urn:rehydrate:problem:{kind}"
    assert len(reply.body["detail"]) > 20
    after = service.say("What is my name?", token=token)
    assert (after.body["answer"], after.body["turn"]) == ("Your name is Ada.", 2)


@pytest.mark.parametrize("session", [{"session": "mine"}, {"x_session_id": "mine"}])
def test_a_session_without_a_token_is_refused(service: Service, session: dict[str, str]) -> None:
    """Naming a conversation and bringing no token is 401, and no new identity: it would be answered from nothing."""
    reply = service.say("Hello", **session)
    assert reply.status == 401
    assert "session token" in reply.body["detail"]
    assert reply.token is None
    assert reply.cookies == []
    assert "owner" not in reply.line, "an identity that nobody was given"


@pytest.mark.parametrize("carrier", ["header", "cookie"])
@pytest.mark.parametrize("fault", ["forged", "empty", "of another secret"])
def test_a_token_that_does_not_hold_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch, carrier: str, fault: str
) -> None:
    """A forged token is 401, and clears the cookie where it came from there; it never becomes a new identity."""
    token = service.say("Hello").token
    assert token
    bad = {"forged": token[:-2] + "xx", "empty": "", "of another secret": token}[fault]
    if fault == "of another secret":
        configure(monkeypatch, SIGNING_SECRET="another" * 5)
    event = event_named("chat_first_request")
    event["headers"] |= {"x-session-token": bad} if carrier == "header" else {}
    event["cookies"] = [f"__Host-rehydrate={bad}"] if carrier == "cookie" else []
    reply = service.invoke(event)
    assert reply.status == 401
    assert reply.token is None
    cleared = [cookie for cookie in reply.cookies if cookie.startswith("__Host-rehydrate=; ") and "Max-Age=0" in cookie]
    assert len(reply.cookies) == len(cleared) == (1 if carrier == "cookie" else 0)


@pytest.mark.parametrize(
    "name",
    [
        "\u2001__Host-rehydrate",
        "__Host-rehydrate\u2001",
        "\xa0__Host-rehydrate",
        "__host-rehydrate",
        "x__Host-rehydrate",
    ],
)
def test_the_cookies_name_is_compared_exactly(service: Service, name: str) -> None:
    """A cookie of nearly the same name is another one: browsers let any page of the site set it."""
    event = event_named("chat_first_request") | {"cookies": [f"{name}=forged"]}
    assert service.invoke(event).body["identity"] == "new"
    rest = event_named("chat_rest_first_request")
    rest["headers"]["Cookie"] = f"a=1; {name}=forged;\t b=2"
    assert service.invoke(rest).body["identity"] == "new"


def test_a_cookie_may_come_in_any_of_several_headers(service: Service) -> None:
    """HTTP/2 may split the header; a REST API's single-value headers have only the last part."""
    event = event_named("chat_rest_first_request")
    (cookie,) = service.invoke(event).cookies
    event["headers"]["Cookie"] = "theme=dark"
    event["multiValueHeaders"]["Cookie"] = [cookie.split(";")[0], "theme=dark"]
    assert service.invoke(event).body["identity"] == "token"


def test_the_cookie_is_for_the_browser_alone(service: Service) -> None:
    """HttpOnly, Secure, for the whole host and no other, and not sent along from other sites."""
    (cookie,) = service.say("Hello").cookies
    name, *flags = cookie.split("; ")
    assert name.startswith("__Host-rehydrate=")
    assert {"HttpOnly", "Secure", "SameSite=Lax", "Path=/"} <= set(flags)
    assert not any(flag.startswith("Domain") for flag in flags)


EVENTS = {
    "chat_first_request": ("token", 200, "new"),
    "chat_jwt": ("jwt", 200, "jwt"),
    "chat_lambda_authorizer": ("lambda", 200, "lambda"),
    "chat_iam": ("iam", 200, "iam"),
    "chat_trusted_header": ("header", 200, "header"),
    "chat_url_first_request": ("token", 200, "new"),
    "chat_url_iam": ("iam", 200, "iam"),
    "chat_rest_first_request": ("token", 200, "new"),
    "chat_rest_cognito": ("cognito", 200, "cognito"),
    "chat_rest_lambda_authorizer": ("lambda", 200, "lambda"),
    "chat_rest_iam": ("iam", 200, "iam"),
    "chat_rest_trusted_header": ("header", 200, "header"),
    "chat_custom_domain": ("token", 200, "new"),
    "chat_named_stage": ("token", 200, "new"),
    "chat_rest_custom_domain": ("token", 200, "new"),
    "chat_payload_1_0_jwt": ("jwt", 200, "jwt"),
    "chat_url_without_stage": ("token", 200, "new"),
    "chat_alb_first_request": ("token", 200, "new"),
    "chat_alb_multi_value_headers": ("token", 200, "new"),
    "chat_base64_body": ("token", 200, "new"),
    "chat_no_body": ("token", 400, None),
    "chat_broken_json": ("token", 400, None),
}


@pytest.mark.parametrize("name", EVENTS)
def test_the_events_of_the_examples_are_answered(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each example event does what its name says."""
    sources, status, identity = EVENTS[name]
    configure(monkeypatch, IDENTITY_SOURCES=sources)
    reply = service.invoke(event_named(name))
    assert (reply.status, reply.body.get("identity")) == (status, identity)


WITH_TOKEN = [
    "chat_with_cookie",
    "chat_with_token_header",
    "chat_bearer_token",
    "chat_session_header",
    "chat_idempotency_key",
    "chat_rest_with_cookie",
    "chat_rest_bearer_token",
]


@pytest.mark.parametrize("name", WITH_TOKEN)
def test_the_events_with_a_token_are_answered(service: Service, name: str) -> None:
    """The examples that carry a token continue the conversation of its owner."""
    token = service.say("Hello").token
    assert token
    event = json.loads(json.dumps(event_named(name)).replace("TOKEN", token).replace("rehydrate=", "__Host-rehydrate="))
    if token not in json.dumps(event):
        event["headers"]["x-session-token"] = token
    reply = service.invoke(event)
    assert (reply.status, reply.body["identity"]) == (200, "token")


def test_every_example_event_is_tried() -> None:
    """No event of the chat function lies in `events/` that these tests do not know."""
    chat_events = {file.stem for file in EVENT_FILES if file.stem.startswith("chat")}
    assert chat_events == {*EVENTS, *WITH_TOKEN}


def test_a_rest_api_gets_its_cookie_too(service: Service) -> None:
    """The other payload version has another place for cookies; the conversation goes on all the same."""
    first = service.invoke(event_named("chat_rest_first_request"))
    (cookie,) = first.cookies
    event = event_named("chat_rest_with_cookie")
    event["headers"]["Cookie"] = "theme=dark; " + cookie.split(";")[0]
    second = service.invoke(event | {"body": '{"message": "What is my name?"}'})
    assert second.body["answer"] == "Your name is Ada."


def test_a_problem_of_a_rest_api_is_a_problem(service: Service) -> None:
    """Errors have the same form in both payload versions, and clear a bad cookie in both."""
    event = event_named("chat_rest_with_cookie")
    event["headers"]["Cookie"] = "__Host-rehydrate=forged"
    reply = service.invoke(event)
    assert (reply.status, reply.headers["content-type"]) == (401, "application/problem+json")
    assert "Max-Age=0" in reply.cookies[0]


def test_the_trusted_header_is_off_unless_it_is_named(service: Service) -> None:
    """In every other mode a client that names a user is not that user."""
    reply = service.invoke(event_named("chat_trusted_header"))
    assert reply.body["identity"] == "new"


def test_the_trusted_header_is_warned_of(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that believes its clients says so in its log, once."""
    configure(monkeypatch, IDENTITY_SOURCES="header")
    lines = [service.invoke(event_named("chat_trusted_header") | {"body": None}).other_lines for _ in range(2)]
    assert [len(found) for found in lines] == [1, 0]
    assert "private network" in lines[0][0]["message"]


@pytest.mark.parametrize("source", ["jwt", "cognito", "lambda", "iam", "header"])
def test_a_request_without_the_authorizer_claims_is_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Where an authorizer names the owner, a request without its claims is 401, whatever else it brings."""
    token = service.say("Hello").token
    configure(monkeypatch, IDENTITY_SOURCES=source)
    reply = service.say("Hello", token=token)
    assert reply.status == 401
    assert reply.token is None


def test_a_caller_with_claims_keeps_one_conversation(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims are the identity: no token is handed out, and the next request continues."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt")
    event = event_named("chat_jwt")
    event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"] = service.store.owner
    event |= {"isBase64Encoded": False, "body": '{"message": "My name is Ada"}'}
    first = service.invoke(event)
    second = service.invoke(event | {"body": '{"message": "What is my name?"}'})
    assert second.body["answer"] == "Your name is Ada."
    assert first.token is None


def test_a_failing_model_costs_the_turn_and_not_the_conversation(service: Service) -> None:
    """A model's error is 502; the failed message is kept for people, and no later request shows it to the model."""
    token = service.say("My name is Ada").token
    failed = service.say("please fail with status 500", token=token)
    assert (failed.status, failed.body["code"], failed.line["outcome"]) == (502, "model_error", "model_error")
    after = service.say("What is my name?", token=token)
    assert after.body["answer"] == "Your name is Ada."
    assert after.body["turn"] == 3
    assert "fail" not in json.dumps(service.model_received()[-1])


def test_a_retry_of_a_failed_turn_is_a_new_turn(service: Service) -> None:
    """A failure is not replayed: the same key runs the agent again."""
    token = service.say("Hello").token
    replies = [service.say("please fail with status 500", token=token, idempotency_key="k") for _ in range(2)]
    assert [(reply.status, reply.line["turn"]) for reply in replies] == [(502, 2), (502, 3)]


def test_a_failed_request_to_the_model_is_sent_again_as_often_as_set(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting says how often, and nothing multiplies it."""
    configure(monkeypatch, MODEL_RETRIES="1")
    service.say("please fail with status 500")
    assert len(service.model_received()) == 2


def test_an_agent_that_takes_too_long_is_stopped(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its time an agent is cancelled, the turn fails with 504, and the conversation goes on."""
    token = service.say("My name is Ada").token
    monkeypatch.setattr(conversation, "COMMIT_SECONDS", 0.5)
    monkeypatch.setattr(conversation, "AGENT_SECONDS", 0.1)
    late = service.say("please wait 30 seconds", token=token, seconds=1.5)
    assert (late.status, late.body["code"]) == (504, "timeout")
    assert service.say("What is my name?", token=token).body["answer"] == "Your name is Ada."


def test_a_model_that_does_not_answer_in_time_is_a_timeout(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own limit is 504 as well, and told apart in the code."""
    token = service.say("Hello").token
    configure(monkeypatch, MODEL_TIMEOUT_SECONDS="0.5")
    late = service.say("please wait 30 seconds", token=token)
    assert (late.status, late.body["code"]) == (504, "model_timeout")


def test_a_turn_is_not_begun_without_the_time_to_end_it(service: Service) -> None:
    """With too little time left the answer is 503, and nothing was stored."""
    token = service.say("Hello").token
    reply = service.say("Hello", token=token, seconds=15)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert service.say("Hello", token=token).body["turn"] == 2


def test_a_table_that_is_gone_is_unavailable(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets a clean 503, and the log has the cause."""
    configure(monkeypatch, TABLE_NAME="no-such-table")
    reply = service.say("Hello")
    assert (reply.status, reply.body["type"]) == (503, "urn:rehydrate:problem:unavailable")
    assert reply.line["cause"][-1]["code"] == "ResourceNotFoundException"
    assert reply.line["level"] == "ERROR"


def test_a_missing_setting_is_logged_by_name(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment without a signing secret answers 500, and says in the log which setting is missing."""
    configure(monkeypatch, SIGNING_SECRET="")
    reply = service.say("Hello")
    assert reply.status == 500
    assert "SIGNING_SECRET" in reply.line["cause"][0]["detail"]
    assert "SIGNING_SECRET" not in json.dumps(reply.body)


def test_the_log_line_shows_a_memory_fault_at_a_glance(service: Service) -> None:
    """One line a turn has everything that says why an agent forgot, and what the turn cost."""
    token = service.say("Hello").token
    line = service.say("Hello", token=token, session="talk").line
    assert {
        "session_id": "talk",
        "identity": "token",
        "turn": 1,
        "token_limit": 10_000,
        "window_tokens": 0,
        "turns_in_window": 0,
        "turns_total": 0,
        "dynamodb_calls": 4,  # three, and the count of the caller's sessions, since this one is new
        "outcome": "answered",
        "replayed": False,
        "status": 200,
        "level": "INFO",
    }.items() <= line.items()
    for name in ("owner", "request_id", "instance", "cold_start", "read_units", "write_units"):
        assert name in line
    for step in ("load_ms", "agent_ms", "commit_ms"):
        assert isinstance(line[step], int)
    assert "anonymous" not in line["owner"]
    assert not {"taskName", "location", "function_arn", "function_memory_size"} & line.keys(), (
        "they tell nobody anything"
    )


def test_lambda_can_read_the_lines(service: Service) -> None:
    """Each line has its level and an RFC 3339 time, else Lambda takes it for INFO and adds a time of its own."""
    token = service.say("Hello").token
    for line in (service.say("Hello", token=token).line, service.send("GET", "/sessions", token=token).line):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+([+-]\d\d:\d\d|Z)", line["timestamp"])
        assert line["level"] == "INFO"


def test_a_window_that_nothing_fits_is_a_warning(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that forgets because of its limit says so in its log."""
    token = service.say("Hello").token
    configure(monkeypatch, TOKEN_LIMIT="1")
    line = service.say("Hello", token=token).line
    assert line["level"] == "WARNING"
    assert "TOKEN_LIMIT" in line["hint"]


def test_a_window_after_failures_alone_is_a_warning(service: Service) -> None:
    """An agent that was shown nothing because nothing was answered says that."""
    token = service.say("please fail with status 500").token
    line = service.say("Hello", token=token).line
    assert line["level"] == "WARNING"
    assert "TOKEN_LIMIT" not in line["hint"]


def test_a_memory_that_is_switched_off_is_no_warning(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sets TOKEN_LIMIT to 0 wants no earlier turn to be shown."""
    token = service.say("Hello").token
    configure(monkeypatch, TOKEN_LIMIT="0")
    reply = service.say("Hello", token=token)
    assert (reply.body["memory"]["turns_in_window"], reply.line["level"]) == (0, "INFO")


@pytest.mark.parametrize("message", ["My code is xyzzy", "please fail with status 500 xyzzy"])
def test_no_log_has_what_was_said(
    service: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], message: str
) -> None:
    """Neither our lines nor those of the libraries quote a message or an answer."""
    caplog.set_level(logging.INFO)
    line = service.say(message).line
    out, err = capfd.readouterr()
    assert "xyzzy" not in caplog.text + out + err + json.dumps(line)


def test_no_log_has_the_names_of_unknown_fields(service: Service) -> None:
    """A field's name is the client's word like any other."""
    line = service.post('{"message": "hi", "my code is xyzzy": 1}').line
    assert "xyzzy" not in json.dumps(line)


def test_another_route_is_a_problem(service: Service) -> None:
    """A route that is not there is 404, as a problem that says where to find those that are."""
    event = event_named("chat_first_request")
    event |= {"rawPath": "/other", "routeKey": "POST /other"}
    event["requestContext"]["http"]["path"] = "/other"
    reply = service.invoke(event)
    assert (reply.status, reply.headers["content-type"]) == (404, "application/problem+json")
    assert "/openapi.json" in reply.body["detail"]


@pytest.mark.parametrize(
    "event",
    [
        {"httpMethod": "POST"},
        {"rawPath": "/chat"},
        {"requestContext": {}},
        {"requestContext": {"http": {"method": "POST", "path": "/chat"}}},
        {"headers": {"content-type": "application/json"}, "body": '{"message": "Hello"}'},
        {"version": "2.0", "rawPath": "", "requestContext": "x", "headers": 5},
    ],
)
def test_a_request_of_which_parts_are_missing_is_answered_cleanly(service: Service, event: dict[str, Any]) -> None:
    """What asks for no path that there is gets 404, and is no fault of the service."""
    reply = service.invoke(event)
    assert (reply.status, reply.body["type"]) == (404, "urn:rehydrate:problem:not-found")
    assert reply.line["outcome"] == "not-found"


def test_a_message_of_too_many_tokens_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some characters are several tokens, and tokens are what costs. The answer names the limit and its setting."""
    configure(monkeypatch, MAX_MESSAGE_TOKENS="100")
    reply = service.say("\U0001f9ff" * 60)
    assert (reply.status, reply.body["field"]) == (413, "message")
    assert "100 are allowed (MAX_MESSAGE_TOKENS)" in reply.body["detail"]
    assert service.say("a " * 60, token=reply.token).status == 200


def test_a_message_never_takes_more_than_the_model_has_left(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small model cannot take is refused before the model is asked."""
    configure(monkeypatch, CONTEXT_WINDOW="300", TOKEN_LIMIT="100", MAX_ANSWER_TOKENS="100")
    assert service.say("a " * 150).status == 413
