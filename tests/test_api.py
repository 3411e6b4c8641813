"""The API as its clients meet it: on the running stack, with several workers, requests at once, and the sweeper."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from handlers import openapi
from memory.codec import STATE_KEY
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect
from memory.turns import Session
from tests.conftest import TABLE, Store, keys_of, say
from tests.stack import Stack, running

pytestmark = pytest.mark.xdist_group("stack")  # one stack for all of them

CHECKED = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.unsupported_method,
]
HANGS_AFTER_SECONDS = 30


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), WORKERS="3") as started:
        yield started


class Caller:
    """Somebody with a token of their own. Requests may be sent from several threads."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        made = client.post("/sessions")
        self.token = made.headers["x-session-token"]
        self.send("DELETE", f"/sessions/{made.json()['id']}")

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        sent = {"x-session-token": self.token} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.request(method, path, json=body, headers=sent)

    def say(self, message: str, session: str = "talk") -> httpx.Response:
        return self.send("POST", "/chat", {"message": message, "session_id": session})

    def turns(self, session: str = "talk") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.send("GET", f"/sessions/{session}/turns?limit=100").json()["turns"]
        return found


@contextmanager
def calling(stack: Stack) -> Iterator[Caller]:
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        yield Caller(client)


@pytest.fixture
def ada(stack: Stack) -> Iterator[Caller]:
    with calling(stack) as caller:
        yield caller


def at_once(*requests: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """Send requests at the same time."""
    with ThreadPoolExecutor(len(requests)) as threads:
        return [pending.result() for pending in [threads.submit(request) for request in requests]]


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until it holds; the time is only there to end a test that fails."""
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up, f"still not so: {what}"
        time.sleep(0.05)


API = schemathesis.openapi.from_dict(openapi.document())


def test_the_document_that_is_served_is_the_one_that_is_tested(stack: Stack) -> None:
    """What the gateway answers under /openapi.json is what the next test's requests are made of."""
    assert httpx.get(f"{stack.url}/openapi.json").json() == openapi.document()


@pytest.fixture(scope="module")
def regular(stack: Stack) -> Iterator[Caller]:
    """A caller who has some sessions, under ids that a shrinking example comes to."""
    with calling(stack) as caller:
        for session in ("a", "0"):
            caller.say("Hello", session=session)
        yield caller


def check(case: Any, stack: Stack, caller: Caller) -> None:
    case.headers = {**(case.headers or {}), "x-session-token": caller.token}
    response = case.call(base_url=stack.url, timeout=HANGS_AFTER_SECONDS)
    case.validate_response(response, checks=CHECKED)


@API.exclude(method="DELETE", path="/sessions").parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_api_does_what_its_document_says(case: Any, stack: Stack, regular: Caller) -> None:
    """Whatever requests the document gives rise to, valid or not: no 5xx, no status or body that it does not describe,
    no hang."""
    check(case, stack, regular)


@API.include(method="DELETE", path="/sessions").parametrize()
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_deleting_everything_does_what_the_document_says(case: Any, stack: Stack, regular: Caller) -> None:
    """The same of the one route whose requests take seconds, since it waits for the index."""
    check(case, stack, regular)


def test_two_answers_to_one_turn_are_one(stack: Stack, ada: Caller) -> None:
    """Two requests to answer a turn again, at once: one does, and the other is told that it is not the newest."""
    ada.say("My name is Ada")
    path = "/sessions/talk/turns/1/regenerate"
    replies = at_once(*[lambda: ada.send("POST", path)] * 2)
    assert sorted(reply.status_code for reply in replies) == [200, 409]
    assert [(turn["number"], turn["status"]) for turn in ada.turns()] == [(2, "complete"), (1, "superseded")]


def test_a_turn_and_another_answer_come_one_after_the_other(stack: Stack, ada: Caller) -> None:
    """Whichever is first: either the new turn follows the new answer, or the answer is not asked for any more."""
    ada.say("My name is Ada")
    regenerated, said = at_once(
        lambda: ada.send("POST", "/sessions/talk/turns/1/regenerate"), lambda: ada.say("What is my name?")
    )
    assert (said.status_code, said.json()["answer"]) == (200, "Your name is Ada.")
    statuses = [turn["status"] for turn in ada.turns()]
    assert (regenerated.status_code, statuses) in [
        (200, ["complete", "complete", "superseded"]),
        (409, ["complete", "complete"]),
    ]


def test_a_delete_is_final_for_a_turn_in_flight(stack: Stack, ada: Caller) -> None:
    """A session that is deleted while its agent thinks stays deleted, whatever the agent's request is told."""
    ada.say("My name is Ada")
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(ada.say, "please wait 2 seconds. My dog is Rex")
        eventually(lambda: stack.asked("Rex"), "the model is asked")
        assert ada.send("DELETE", "/sessions/talk").status_code == 204
        assert ada.send("GET", "/sessions/talk").status_code == 404
        in_flight = pending.result()
    assert in_flight.status_code in (200, 409), "stored where nobody looks, or not stored"
    assert ada.send("GET", "/sessions/talk").status_code == 404
    assert ada.send("GET", "/sessions").json()["sessions"] == []


def test_a_delete_is_final_for_the_next_conversation(stack: Stack, ada: Caller) -> None:
    """The first turn of the next conversation under the same id, begun while the old one is still answered, has it to
    itself."""
    ada.say("My name is Ada")
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(ada.say, "please wait 2 seconds. My dog is Rex")
        eventually(lambda: stack.asked("Rex"), "the model is asked")
        ada.send("DELETE", "/sessions/talk")
        anew = ada.say("What do you know about me?")
        pending.result()
    assert (anew.status_code, anew.json()["turn"]) == (200, 1)
    assert "Ada" not in anew.json()["answer"]
    assert [turn["messages"][0]["text"] for turn in ada.turns()] == ["What do you know about me?"]
    assert "Rex" not in ada.say("What do you know about me?").json()["answer"]


def test_deletes_and_turns_at_once_leave_no_half_a_state(stack: Stack, ada: Caller) -> None:
    """Turns and deletes of one session in a heap: in the end it has the turns since the last delete, or is gone."""
    for _ in range(4):
        replies = at_once(lambda: ada.say("one"), lambda: ada.send("DELETE", "/sessions/talk"), lambda: ada.say("two"))
        assert {reply.status_code for reply in replies} <= {200, 204, 404, 409}
        there = ada.send("GET", "/sessions/talk").status_code
        listed = [session["id"] for session in ada.send("GET", "/sessions").json()["sessions"]]
        assert (there, listed) in [(200, ["talk"]), (404, [])]
        if there == 200:
            numbers = [turn["number"] for turn in ada.turns()]
            assert numbers == list(range(len(numbers), 0, -1))
            assert ada.say("three").json()["turn"] == len(numbers) + 1


def test_a_fork_holds_what_was_there_before_it(stack: Stack, ada: Caller) -> None:
    """Forks that are made while a turn is answered have whole turns, from the first on, with that one or without."""
    for text in ("one", "two"):
        ada.say(text)
    path = "/sessions/talk/fork"
    *forks, said = at_once(*[lambda: ada.send("POST", path)] * 3, lambda: ada.say("three"))
    assert said.status_code == 200
    for fork in forks:
        assert fork.status_code == 201
        turns = ada.turns(fork.json()["id"])
        texts = [turn["messages"][0]["text"] for turn in reversed(turns)]
        assert texts in (["one", "two"], ["one", "two", "three"])
        assert ada.say("four", session=fork.json()["id"]).json()["turn"] == len(texts) + 1


def test_forks_under_one_key_are_one(stack: Stack, ada: Caller) -> None:
    """However many copies of the request come at once."""
    ada.say("one")
    forks = at_once(*[lambda: ada.send("POST", "/sessions/talk/fork", idempotency_key="k")] * 4)
    assert [fork.status_code for fork in forks] == [201] * 4
    assert len({fork.json()["id"] for fork in forks}) == 1
    assert len(ada.turns(forks[0].json()["id"])) == 1


@pytest.mark.once
def test_the_sweeper_removes_what_a_request_cannot(stack: Stack, ada: Caller) -> None:
    """A large session is out of sight at once, with 202, and out of the table soon after without another request."""
    client = connect(stack.engine)
    store = Store(client=client, owner="")
    name = ada.send("POST", "/sessions").json()["id"]
    session = session_named(client, name)

    async def fill() -> None:
        """Turns by the hundred, as nobody says them."""
        log = DynamoDBTurnLog(client, TABLE)
        turn = await say(log, session, "one")
        await log.rewrite(await log.load(session, token_limit=None), [turn] * 700)

    asyncio.run(fill())
    assert ada.send("GET", f"/sessions/{name}").json()["turns"] == 700
    reply = ada.send("DELETE", f"/sessions/{name}")
    assert (reply.status_code, reply.json()["finished"]) == (202, False)
    assert ada.send("GET", f"/sessions/{name}").status_code == 404
    assert len(keys_of(store, session)) > 1
    eventually(lambda: keys_of(store, session) == [STATE_KEY], "the sweeper removes the rest")


def session_named(client: Any, name: str) -> Session:
    """The session with an id that nobody else has, whoever its owner is."""
    found = client.scan(
        TableName=TABLE, FilterExpression="contains(pk, :id)", ExpressionAttributeValues={":id": {"S": name}}
    )
    _, owner, session = found["Items"][0]["pk"]["S"].split("#")
    return Session(owner=unquote(owner), id=session)
