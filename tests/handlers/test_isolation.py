"""Nobody sees or changes what belongs to another, whatever their names are made of."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers import openapi, sessions
from handlers.problems import Kind
from tests.handlers.conftest import Reply, Service, configure

HOSTILE = "#/%:=~.\u0000\u007f é🌍aA\\\"'"
NAMES = st.one_of(
    st.text(HOSTILE, min_size=1, max_size=6),
    st.text(HOSTILE, min_size=1, max_size=3).map(lambda text: text * 400),
    st.sampled_from(["a", "a#b", "a%23b", "a/b", "a:b", "a%3Ab", "ü" * 512, "ü" * 513, "state", "TURN#000001", "="]),
)
OWNERS = st.lists(NAMES, min_size=2, max_size=4, unique=True).map(lambda names: [*names, names[0] + "x", names[0] * 2])
IDS = ["default", "talk", "a.b", "a-b_c"]
ROUTES = sorted(route for route, operation in openapi.OPERATIONS.items() if Kind.UNAUTHORIZED in operation.problems)


@dataclass
class Owned:
    """What one owner's sessions hold, as far as their own requests say."""

    mark: str
    sessions: dict[str, list[str]] = field(default_factory=dict)
    """What was said in each session, in the turns that were stored."""


@pytest.fixture
def jwt(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    configure(monkeypatch, IDENTITY_SOURCES="jwt")
    monkeypatch.setattr(sessions, "INDEX_SECONDS", 0.0)
    return service


@pytest.mark.once
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=OWNERS, data=st.data())
def test_no_route_shows_or_changes_what_is_anothers(jwt: Service, names: list[str], data: st.DataObject) -> None:
    """Whatever each of several owners does by any route, in sessions of the same ids: no response has anything of
    another's, and in the end all of them have exactly what they themselves did."""
    issuer = f"https://{uuid.uuid4()}/"  # owners of their own for each example
    owners = {name: Owned(mark=f"mark{i}") for i, name in enumerate(dict.fromkeys(names))}
    marks = {owned.mark for owned in owners.values()}

    def send(name: str, method: str, path: str, body: Any = None) -> Reply:
        reply = jwt.send(method, path, body, user=name, issuer=issuer)
        shown = json.dumps(reply.body)
        assert reply.status < 500, (method, path, reply.body)
        assert not [mark for mark in marks - {owners[name].mark} if mark in shown], (method, path)
        return reply

    for name in owners:
        act(send, name, owners[name], "POST", "/chat", "default")
    for _ in range(data.draw(st.integers(4, 12))):
        name = data.draw(st.sampled_from(list(owners)))
        method, path = data.draw(st.sampled_from(ROUTES))
        act(send, name, owners[name], method, path, data.draw(st.sampled_from(IDS)))
    for name, owned in owners.items():
        listed = send(name, "GET", "/sessions").body["sessions"]
        assert {session["id"] for session in listed} == set(owned.sessions)
        for session, messages in owned.sessions.items():
            assert said(send(name, "GET", f"/sessions/{session}/turns")) == messages


def act(send: Any, name: str, owned: Owned, method: str, path: str, session: str) -> None:
    """One request of an owner, and what it changes of what is theirs."""
    there = owned.sessions.get(session)
    body = {"/chat": {"message": f"My name is {owned.mark}", "session_id": session}}.get(path)
    if path == "/sessions" and method == "POST":
        body = {"title": owned.mark}
    elif method == "PATCH":
        body = {"title": f"{owned.mark} again"}
    newest = len(there) if there else 1
    reply = send(name, method, path.replace("{id}", session).replace("{n}", str(newest)), body)
    if "{id}" in path and there is None:
        assert (reply.status, reply.body["type"]) == (404, "urn:rehydrate:problem:session-not-found")
        return
    match method, path:
        case "POST", "/chat":
            owned.sessions.setdefault(session, []).append(f"My name is {owned.mark}")
        case "POST", "/sessions":
            owned.sessions[reply.body["id"]] = []
        case "POST", "/sessions/{id}/fork" if there:
            owned.sessions[reply.body["id"]] = list(there)
        case "POST", "/sessions/{id}/turns/{n}/regenerate" if there:
            there.append(there[-1])
        case "DELETE", "/sessions":
            owned.sessions.clear()
        case "DELETE", _:
            del owned.sessions[session]


def said(reply: Reply) -> list[str]:
    """What the user said in the turns of a list, oldest first."""
    return [turn["messages"][0]["text"] for turn in reversed(reply.body["turns"])]
