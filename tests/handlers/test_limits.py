"""What one caller may do, as the handlers say it: each limit names itself, its setting, and when or how to go on."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from handlers import front
from handlers.problems import Kind
from memory.allowance import DynamoDBAllowance
from memory.turns import Session, utc_now
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


@pytest.fixture
def bea(service: Service, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody who may have two sessions, and fork two turns."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt", MAX_SESSIONS="2", FORK_MAX_TURNS="2")
    return Person(service)


def test_no_session_is_made_beyond_the_limit(bea: Person) -> None:
    """However one would begin: 409 names the limit, its setting, and what to do; and nothing was made."""
    bea.talk("one", session="a")
    bea.talk("one", session="b")
    refusals = [
        bea.send("POST", "/sessions"),
        bea.send("POST", "/sessions/a/fork"),
        say(bea, session="c"),
    ]
    for refused in refusals:
        assert (refused.status, refused.body["type"]) == (409, Kind.TOO_MANY_SESSIONS.urn)
        assert "2 sessions, and may have no more (MAX_SESSIONS). Delete some" in refused.body["detail"]
    assert sorted(bea.ids()) == ["a", "b"]


def test_sessions_that_are_there_go_on(bea: Person) -> None:
    """Whoever has all the sessions that one may have talks on in them."""
    bea.talk("one", session="a")
    bea.talk("one", session="b")
    assert say(bea, session="a").status == 200


def test_a_deleted_session_makes_room(bea: Person) -> None:
    """Doing what the problem says helps."""
    bea.talk("one", session="a")
    bea.talk("one", session="b")
    bea.send("DELETE", "/sessions/a")
    assert bea.send("POST", "/sessions").status == 201


def test_a_copy_gets_the_session_that_was_made(bea: Person) -> None:
    """The same request under the same key finds what it made, also when there is room for no other."""
    made = bea.send("POST", "/sessions", idempotency_key="k")
    bea.talk("one", session="a")
    again = bea.send("POST", "/sessions", idempotency_key="k")
    assert (again.status, again.body["id"]) == (201, made.body["id"])
    assert again.headers["idempotent-replayed"] == "true"


def test_counting_sessions_costs_one_small_read_and_only_when_one_begins(bea: Person) -> None:
    """The first turn of a session takes a call and half a unit more; others take what they always did."""
    first, second = say(bea).line, say(bea).line
    assert first["dynamodb_calls"] == second["dynamodb_calls"] + 1 == 4
    assert first["read_units"] - second["read_units"] <= 0.5


def test_who_is_new_has_no_session_to_count(service: Service) -> None:
    """A new anonymous caller's first turn takes three calls."""
    assert service.say("Hello").line["dynamodb_calls"] == 3


def test_a_fork_says_what_it_copied(bea: Person) -> None:
    """The number of its oldest turn: of a longer session the newest turns are copied. A replay says the same."""
    bea.talk("one", "two", "three", session="long")
    whole = bea.send("POST", "/sessions/long/fork", {"turn": 2})
    assert (whole.status, whole.body["first_turn"]) == (201, 1)
    bea.send("DELETE", f"/sessions/{whole.body['id']}")
    cut, again = (bea.send("POST", "/sessions/long/fork", idempotency_key="k") for _ in range(2))
    assert (cut.status, cut.body["first_turn"]) == (201, 2)
    assert again.body == cut.body
    turns = bea.get(f"/sessions/{cut.body['id']}/turns")["turns"]
    assert [turn["number"] for turn in turns] == [3, 2]


def test_a_fork_is_counted_as_a_turn(ada: Person) -> None:
    """It may write as much as many turns did, so that no more forks than turns can be had; a copy is not counted."""
    ada.talk("one", session="a")
    assert [ada.send("POST", "/sessions/a/fork", idempotency_key=key).status for key in ("1", "1", "2")] == [201] * 3
    refused = ada.send("POST", "/sessions/a/fork")
    assert (refused.status, refused.body["type"]) == (429, Kind.TURNS_USED_UP.urn)
    assert refused.headers["retry-after"] == "90"


def test_an_empty_session_is_kept_for_so_many_days(bea: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven by default; with 0 it is kept until it is deleted."""
    state = bea.service.run(bea.service.store.sessions().find(bea.session(bea.create())))
    assert state.expires_at is not None
    assert timedelta(days=6, hours=23) < state.expires_at - utc_now() <= timedelta(days=7, seconds=1)
    configure(monkeypatch, EMPTY_SESSION_DAYS="0")
    assert bea.service.run(bea.service.store.sessions().find(bea.session(bea.create()))).expires_at is None
