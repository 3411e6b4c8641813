"""The chat function under Lambda's own runtime, which ends in the middle of turns; another instance takes over."""

import uuid
from collections.abc import Iterator

import pytest

from memory.turns import TurnStatus
from tests.conftest import require
from tests.crashes import (
    AFTER_THE_CLAIM,
    ENDS,
    FAIL_ALONE,
    KILLS,
    QUESTION,
    TIMEOUT,
    Crash,
    history_faults,
    recover,
    retry_faults,
)
from tests.instances import Instance, Service, answered_with, missing_runtime, running_service

pytestmark = [
    pytest.mark.once,  # on the Python that Lambda runs
    pytest.mark.timeout(300),  # a runtime takes seconds to start, and many times that on a busy machine
    pytest.mark.xdist_group("runtime"),  # two instances for all of them
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    require(missing_runtime())
    with running_service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module")
def instances(service: Service) -> tuple[Instance, Instance]:
    return service.instance("victim"), service.instance("survivor")


@pytest.fixture
def victim(instances: tuple[Instance, Instance]) -> Instance:
    instances[0].warm()
    return instances[0]


@pytest.fixture
def survivor(instances: tuple[Instance, Instance]) -> Instance:
    instances[1].warm()
    return instances[1]


@pytest.fixture
def session() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def key() -> str:
    """Of the request that is interrupted; the model's log tells requests apart by it."""
    return f"dog-{uuid.uuid4().hex[:8]}"


def named(crashes: tuple[Crash, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("crash", crashes, ids=lambda crash: crash.name)


def test_the_session_of_a_turn_that_timed_out_goes_on(
    service: Service, victim: Instance, survivor: Instance, session: str, key: str
) -> None:
    """A turn that Lambda itself had to end leaves nothing behind, and a retry ends with one whole turn."""
    reply = TIMEOUT.happens(service, victim, session, key)
    assert reply.status is None
    assert "timed out" in str(reply.body)
    assert not service.window(session).turns
    recovery = recover(survivor, session, TIMEOUT.message(key), key)
    assert recovery.next.status == 200
    assert retry_faults(service.window(session), key, recovery) == []


def test_a_killed_turn_holds_its_session_no_longer_than_a_lease(
    service: Service, victim: Instance, survivor: Instance, session: str, key: str
) -> None:
    """Another instance waits for the lease of a killed one, and then answers; it does not give up."""
    AFTER_THE_CLAIM.happens(service, victim, session, key)
    assert 0 < service.window(session).busy_seconds <= 10
    assert survivor.ask(session, QUESTION).body["turn"] == 1


@named(KILLS + ENDS)
def test_a_turn_is_there_whole_or_not_at_all_whenever_its_runtime_ends(
    service: Service, victim: Instance, survivor: Instance, session: str, key: str, crash: Crash
) -> None:
    """The turns before it stay, the next request is answered, and a retry ends with one whole turn."""
    before = survivor.ask(session, "My cat is mine.", key="cat")
    assert crash.happens(service, victim, session, key).status is None
    window = service.window(session)
    assert len(answered_with(window, key)) == crash.stores
    assert bool(window.busy_seconds) == (crash.claims and not crash.stores)
    if window.busy_seconds:
        service.pass_lease(session)

    recovery = recover(survivor, session, crash.message(key), key)
    assert recovery.next.status == 200
    assert recovery.retry.replayed == crash.stores
    window = service.window(session)
    assert retry_faults(window, key, recovery) == []
    assert history_faults(window, {"cat": before, key: recovery.retry}) == []
    assert [turn.status for turn in window.turns] == [TurnStatus.COMPLETE] * 3


@named(FAIL_ALONE)
def test_a_tool_fails_alone(service: Service, victim: Instance, session: str, key: str, crash: Crash) -> None:
    """The model is told, the turn is answered, and the same runtime answers the next one."""
    runtime = victim.runtime()
    reply = crash.happens(service, victim, session, key)
    assert reply.status == 200, reply.body
    assert victim.ask(session, QUESTION).status == 200
    assert victim.runtime() == runtime
    assert history_faults(service.window(session), {key: reply}) == []
