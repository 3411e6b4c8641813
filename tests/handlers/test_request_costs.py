"""What requests take of the table and of the log, as `docs/COST.md` and the calculator say."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import cost, stored, text
from handlers import sweep
from memory import codec
from tests.conftest import say
from tests.handlers.conftest import Context, Reply, Service, configure
from tests.handlers.test_sweep import event

PAGE = Path(__file__).parents[2] / "docs" / "COST.md"
TURNS = 10
DEPLOYED_NAME = "rehydrate-ChatFunction-0123456789AB"

Taken = tuple[int, float, float]


def table_of_requests() -> dict[str, Taken]:
    """The page's table: calls, write and read units of each kind of request."""
    found = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: (int(calls), float(writes), float(reads)) for name, calls, writes, reads in found}


def taken(line: dict[str, Any]) -> Taken:
    return (line["dynamodb_calls"], line["write_units"], line["read_units"])


def test_the_page_says_what_each_request_takes(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests that the page lists take what it says, where each falls into another minute."""
    minutes = itertools.count()
    monkeypatch.setattr(codec, "minute", lambda _: f"2026-01-01T00:{next(minutes):02}Z")
    token = service.say("hello").token
    found: dict[str, Taken] = {}

    def ask(name: str, reply: Reply) -> None:
        assert reply.status < 300
        found[name] = taken(reply.line)

    def send(method: str, path: str, body: Any = None) -> None:
        ask(
            f"`{method} {path}`",
            service.send(method, path.replace("{id}", "long").replace("{n}", "10"), body, token=token),
        )

    for number in range(1, TURNS + 1):
        said = text.words(f"said {number}", 2_000)
        ask("`POST /chat`", service.say(said, token=token, session="long", idempotency_key=str(number)))
    ask("`POST /chat`, a copy", service.say(said, token=token, session="long", idempotency_key=str(TURNS)))
    send("POST", "/sessions/{id}/turns/{n}/regenerate")
    send("POST", "/sessions")
    send("GET", "/sessions")
    send("GET", "/sessions/{id}")
    send("PATCH", "/sessions/{id}", {"title": "another"})
    send("GET", "/sessions/{id}/turns")
    send("GET", "/sessions/{id}/export")
    send("POST", "/sessions/{id}/fork")
    send("DELETE", "/sessions/{id}")
    deleted = service.store.session()
    service.run(say(service.store.log(), deleted, "hello"))
    service.run(service.store.log().delete(deleted))
    sweep.handler(event(deleted), Context())  # type: ignore[arg-type]
    found["the sweep after it"] = taken(json.loads(service.logged()[-1]))
    assert found == table_of_requests()


def test_a_turn_logs_as_many_bytes_as_the_calculator_says(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a turn is as long as it is counted, within a twentieth: names and times differ."""
    configure(monkeypatch, AWS_LAMBDA_LOG_STREAM_NAME=stored.INSTANCE)
    token = service.say("My name is Ada").token
    service.say("What is my name?", token=token)
    (line,) = service.logged()
    bytes_there = len(line.encode()) + len(DEPLOYED_NAME) - len(Context().function_name)
    assert bytes_there == pytest.approx(cost.TURN_LINE_BYTES, rel=0.05)
