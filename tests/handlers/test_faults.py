"""Faults between the handler and its model, and between the handler and its table: those of `tests.faults` that take
seconds. `python -m proof faults` tries all of them, in the time that a deployment has.
"""

from collections.abc import Iterator

import pytest

from handlers.model_answer import NOT_AN_OBJECT
from tests.faults import FAULTS, ROUTE_FAULTS, ROUTES
from tests.faulty_model import calls, fails
from tests.rig import Fault, Rig, Route, RouteFault, rig_on, suffer, suffer_at, wrong

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def rig(dynoxide: str) -> Iterator[Rig]:
    with rig_on(dynoxide, hurry=True) as made:
        yield made


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.tested], ids=lambda fault: fault.name)
def test_a_fault_has_its_documented_outcome(rig: Rig, fault: Fault) -> None:
    """In time, with a documented status, nothing half stored, no word of a message in the log, its cause named; a retry
    under the same key gives exactly one whole turn, and the next request works."""
    assert wrong(fault, suffer(rig, fault)) == []


@pytest.mark.parametrize("fault", [fault for fault in ROUTE_FAULTS if fault.tested], ids=lambda fault: fault.name)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_request_to_the_sessions_survives_one_fault_and_says_503_to_many(
    rig: Rig, route: Route, fault: RouteFault
) -> None:
    """In time, with a documented status; and sent again when the fault is gone, it is done."""
    assert suffer_at(rig, route, fault)[0] == []


def test_a_request_that_the_table_does_not_answer_ends_in_time(rig: Rig) -> None:
    """Whatever a request waits for, there is a response before its invocation ends."""
    (route,) = [route for route in ROUTES if route.name == "GET /sessions/{id}"]
    (fault,) = [fault for fault in ROUTE_FAULTS if fault.name == "every call is not heard of"]
    assert suffer_at(rig, route, fault)[0] == []


def test_a_long_pause_that_the_model_asks_for_is_handed_on(rig: Rig) -> None:
    """It is not waited for, and no second request is sent: the caller is told when to come again."""
    rig.begin()
    rig.model.tell(always=fails(429, retry_after="60"))
    reply = rig.service.say("Hello", user=rig.user)
    assert (reply.status, reply.body["code"], reply.headers["retry-after"]) == (502, "model_busy", "60")
    assert len(rig.model.received) == 1
    rig.mend()


def test_no_tool_runs_with_arguments_that_nobody_gave(rig: Rig) -> None:
    """Arguments that break off reach no tool. They are kept in a JSON object, which servers take in later turns."""
    rig.begin()
    rig.model.tell(calls("total", '{"numbers": [1, 2'))
    assert rig.service.say("Add up", user=rig.user).status == 200
    (turn,) = rig.service.send("GET", "/sessions/default/turns", user=rig.user).body["turns"]
    asked, result = turn["messages"][1:3]
    assert asked["tool_calls"][0]["arguments"] == {NOT_AN_OBJECT: '{"numbers": [1, 2'}
    assert NOT_AN_OBJECT in result["text"]
    rig.mend()
