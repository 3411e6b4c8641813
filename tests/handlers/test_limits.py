"""What one caller may do, as the handlers say it: each limit names itself, its setting, and when or how to go on."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from handlers import front
from handlers.problems import Kind
from memory.allowance import DynamoDBAllowance
from memory.turns import Session
from tests.conftest import Clock, Store, asking, claimed
from tests.handlers.conftest import Reply, Service, configure
from tests.handlers.test_session_routes import Person

Asking = Callable[[Person], Reply]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that stands a minute and a half before the end of an hour."""
    clock = Clock()
    clock.now = clock.now.replace(minute=58, second=30, microsecond=0)
    monkeypatch.setattr(front, "DynamoDBAllowance", partial(DynamoDBAllowance, clock=clock))
    return clock


@pytest.fixture
def ada(service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody who may take two turns in an hour."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt", OWNER_TURNS_PER_HOUR="2")
    return Person(service)


def say(person: Person, message: str = "Hello", **options: Any) -> Reply:
    return person.service.say(message, user=person.name, **options)


def test_the_turn_after_the_last_one_is_refused(ada: Person) -> None:
    """429 names the limit and its setting, and says in how many seconds there are turns again."""
    assert [say(ada).status for _ in range(2)] == [200, 200]
    refused = say(ada)
    assert (refused.status, refused.body["type"]) == (429, Kind.TURNS_USED_UP.urn)
    assert refused.headers["retry-after"] == "90"
    assert "2 turns in an hour (OWNER_TURNS_PER_HOUR)" in refused.body["detail"]
    assert (refused.line["outcome"], refused.line["turns_refused"]) == ("turns-used-up", 1)


def test_a_refused_turn_leaves_nothing(ada: Person) -> None:
    """No session is made, none changes, and no model is asked."""
    say(ada)
    say(ada)
    asked = len(ada.service.model_received())
    say(ada, "more")
    say(ada, "more", session="other")
    assert ada.ids() == ["default"]
    assert ada.get("/sessions/default")["turns"] == 2
    assert len(ada.service.model_received()) == asked


def test_in_the_next_hour_there_are_turns_again(ada: Person, clock: Clock) -> None:
    """A client that waits as long as it was told to is answered."""
    assert [say(ada).status for _ in range(3)] == [200, 200, 429]
    clock.now = clock.now.replace(hour=(clock.now.hour + 1) % 24, minute=0, second=0)
    assert say(ada).status == 200


def test_others_have_turns_of_their_own(ada: Person) -> None:
    """One caller's flood is nothing to another."""
    assert [say(ada).status for _ in range(3)] == [200, 200, 429]
    assert say(Person(ada.service)).status == 200


def test_an_answer_that_is_there_is_given_when_no_turn_is_left(ada: Person) -> None:
    """The copy of a request is answered from the table, as ever."""
    first = say(ada, idempotency_key="k")
    say(ada)
    again = say(ada, idempotency_key="k")
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["idempotent-replayed"] == "true"


def test_another_answer_is_a_turn(ada: Person) -> None:
    """Regenerating costs as much as saying something."""
    say(ada)
    route = "/sessions/default/turns/{}/regenerate"
    assert ada.send("POST", route.format(1)).status == 200
    assert ada.send("POST", route.format(2)).status == 429


def test_what_is_refused_before_it_is_a_turn_is_not_counted(ada: Person) -> None:
    """A request that is not valid takes no turn."""
    assert [say(ada, " ").status for _ in range(3)] == [400] * 3
    assert say(ada).status == 200


def test_the_count_costs_a_call_and_a_unit(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit a turn takes what it always did."""
    say(ada)
    counted = say(ada, session="counted").line
    configure(monkeypatch, OWNER_TURNS_PER_HOUR="0")
    plain = say(ada, session="plain").line
    assert counted["dynamodb_calls"] == plain["dynamodb_calls"] + 1
    assert counted["write_units"] == plain["write_units"] + 1
    assert counted["read_units"] == plain["read_units"]


def test_nobody_is_limited_who_set_no_limit(service: Service) -> None:
    """By default there is none."""
    token = service.say("Hello").token
    assert [service.say("Hello", token=token).status for _ in range(3)] == [200] * 3


def held(person: Person, *, waiting: int) -> None:
    """Have the person's session be answered elsewhere, and so many requests wait for it."""

    async def hold(store: Store, session: Session) -> None:
        await claimed(store, session, asking("held"))
        for _ in range(waiting):
            log = store.log()
            await log.wait(await log.load(session, token_limit=0), limit=waiting, seconds=60)

    person.service.run(hold(person.service.store, person.session("default")))


def test_a_request_beyond_those_that_may_wait_is_refused_at_once(ada: Person) -> None:
    """409 names the limit and its setting, and says when to come back; nothing was written for it."""
    held(ada, waiting=2)
    refused = say(ada)
    assert (refused.status, refused.body["type"]) == (409, Kind.TURN_IN_PROGRESS.urn)
    assert "2 others may wait for it (MAX_WAITING)" in refused.body["detail"]
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert refused.line["load_ms"] < 10_000
    assert refused.line["lease_conflicts"] == 1


def test_as_many_wait_as_the_setting_says(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a third one it waits, and is refused when its patience ends."""
    configure(monkeypatch, MAX_WAITING="3", TURN_WAIT_SECONDS="0.3")
    held(ada, waiting=2)
    refused = say(ada)
    assert refused.status == 409
    assert "MAX_WAITING" not in refused.body["detail"]


def test_nobody_need_wait(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 0, a session that is busy is busy for all."""
    configure(monkeypatch, MAX_WAITING="0")
    held(ada, waiting=0)
    assert "0 others may wait for it (MAX_WAITING)" in say(ada).body["detail"]
