"""What `make run` runs, as its users meet it: over HTTP, with processes that are killed."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import Stack, running


class Talker:
    """Somebody who talks to the service with a cookie jar, as a browser does."""

    def __init__(self, client: httpx.Client, stack: Stack) -> None:
        self.client, self.stack = client, stack

    def post(self, message: str, *, key: str | None = None, session: str | None = None) -> httpx.Response:
        body = {"message": message} | ({"session_id": session} if session else {})
        headers = {"idempotency-key": key} if key else {}
        return self.client.post(f"{self.stack.url}/chat", json=body, headers=headers)

    def say(self, message: str, **options: Any) -> dict[str, Any]:
        response = self.post(message, **options)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def received(self) -> list[str]:
        """What the user said in the last request that reached the model, oldest first."""
        messages = self.client.get(f"{self.stack.model}/requests").json()[-1]
        return [message["content"] for message in messages if message["role"] == "user"]


@pytest.fixture
def jar() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as client:
        yield client


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.once
def test_a_conversation_survives_whatever_is_killed(tmp_path: Path, jar: httpx.Client) -> None:
    """Workers killed between turns and in the middle of one, then everything restarted: the agent still knows all."""
    said = ["My name is Ada", "My city is Paris"]
    with running(tmp_path) as stack:
        ada = Talker(jar, stack)
        first = ada.post(said[0])
        kill(int(first.headers["x-local-worker"]))
        assert ada.say("What is my name?")["answer"] == "Your name is Ada."
        assert ada.say(said[1])["turn"] == 3

        interrupted = in_mid_turn(ada, "please wait 5 seconds. My dog is Rex", "the-key")
        assert interrupted.status_code == 502
        assert interrupted.headers["content-type"] == "application/problem+json"
        retried = ada.say("please wait 5 seconds. My dog is Rex", key="the-key")
        assert retried["turn"] == 4
        again = ada.post("please wait 5 seconds. My dog is Rex", key="the-key")
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json()["answer"] == retried["answer"]

    with running(tmp_path) as stack:
        ada = Talker(jar, stack)
        known = ada.say("What do you know about me?")
        assert known["answer"] == "I know this: your name is Ada; your city is Paris; your dog is Rex."
        assert (known["turn"], known["identity"]) == (5, "token")
        assert known["memory"]["turns_in_window"] == 4
        assert len(ada.received()) == 5, "each turn is there once"


def in_mid_turn(talker: Talker, message: str, key: str) -> httpx.Response:
    """The response to a message whose worker is killed while the model is thinking."""
    before = len(talker.client.get(f"{talker.stack.model}/requests").json())
    with ThreadPoolExecutor(1) as threads:
        pending = threads.submit(talker.post, message, key=key)
        while len(talker.client.get(f"{talker.stack.model}/requests").json()) == before:
            time.sleep(0.02)
        for pid in talker.stack.workers():
            kill(pid)
        return pending.result()


@pytest.mark.once
def test_a_turn_larger_than_the_window_is_not_forgotten(tmp_path: Path, jar: httpx.Client) -> None:
    """After a tool call with 20,000 numbers the agent still knows the turn: what it was told before them and after."""
    numbers = ", ".join(map(str, range(20_000)))
    with running(tmp_path, MAX_MESSAGE_CHARS="200000", MAX_MESSAGE_TOKENS="100000") as stack:
        ada = Talker(jar, stack)
        assert "199990000" in ada.say(f"My name is Ada. Add up {numbers}. My dog is Rex")["answer"]
        known = ada.say("What do you know about me?")
        assert known["answer"] == "I know this: your name is Ada; your dog is Rex."
        assert (known["memory"]["turns_in_window"], known["memory"]["turns_shortened"]) == (1, 1)
        session = ada.client.get(f"{stack.url}/sessions/default").json()
        assert (session["window"]["turns"], session["window"]["turns_shortened"]) == (1, 0)
    (line,) = [line for line in map(json.loads, stack.lines()) if line.get("shortened_turns")]
    assert (line["turn"], line["shortened_turns"]) == (2, [1])


@pytest.mark.once
def test_racing_requests_are_answered_one_after_the_other(tmp_path: Path, jar: httpx.Client) -> None:
    """Eight workers, eight requests at once in one session: every answered turn is there once, in one order."""
    with running(tmp_path, WORKERS="8", MAX_WAITING="8") as stack:
        ada = Talker(jar, stack)
        ada.say("Hello")
        with ThreadPoolExecutor(8) as threads:
            # The first turn of a process takes seconds: eight of them in a row are more than a session is waited for.
            list(threads.map(lambda i: ada.post("please wait 1 seconds", session=f"first-{i}"), range(8)))
            answers = list(threads.map(lambda i: ada.post(f"I am number {i}"), range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        by_turn = {answer.json()["turn"]: f"I am number {i}" for i, answer in enumerate(answers)}
        assert sorted(by_turn) == list(range(2, 10))
        assert len({answer.headers["x-local-worker"] for answer in answers}) > 1
        ada.say("Goodbye")
        assert ada.received() == ["Hello", *(by_turn[n] for n in sorted(by_turn)), "Goodbye"]


@pytest.mark.once
def test_a_key_is_replayed_by_any_worker(tmp_path: Path, jar: httpx.Client) -> None:
    """A copy of a request that another process answered gets the stored answer, also while it is being answered."""
    with running(tmp_path, WORKERS="4") as stack:
        ada = Talker(jar, stack)
        ada.say("Hello")
        with ThreadPoolExecutor(4) as threads:
            copies = list(threads.map(lambda _: ada.post("please wait 1 seconds", key="k"), range(4)))
        assert {(copy.status_code, copy.json()["turn"]) for copy in copies} == {(200, 2)}
        assert [copy.headers.get("idempotent-replayed") for copy in copies].count("true") == 3
        assert ada.say("Goodbye")["turn"] == 3


@pytest.mark.once
def test_each_turn_is_one_log_line(tmp_path: Path, jar: httpx.Client) -> None:
    """The terminal shows one JSON line for each turn, and none has what was said."""
    with running(tmp_path, WORKERS="1") as stack:
        ada = Talker(jar, stack)
        for _ in range(3):
            ada.say("My code is xyzzy")
    assert len(stack.lines()) == 3
    assert "xyzzy" not in "".join(stack.lines())
