"""Events as somebody hostile would have them: some of those that `python -m proof hostile` sends."""

import pytest

from handlers import sessions
from proof import hostile
from tests.handlers.conftest import Service, configure

EVENTS = 300


def test_every_hostile_event_gets_a_clean_answer(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A documented status, a problem that is well formed, one line in the log and no word of a message in it."""
    configure(monkeypatch, IDENTITY_SOURCES=hostile.SETTINGS["IDENTITY_SOURCES"])
    monkeypatch.setattr(sessions, "INDEX_SECONDS", 0.0)
    with hostile.logged() as log:
        found = hostile.send(EVENTS, seed=7, log=log)
    assert found.wrong == {}
    assert {200, 400, 401, 404} <= set(found.statuses)
