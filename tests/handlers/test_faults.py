"""Faults between the handler and its model, and between the handler and its table: those of `tests.faults` that take
seconds. `python -m proof faults` tries all of them, in the time that a deployment has.
"""

from collections.abc import Iterator

import pytest

from tests import faults
from tests.faults import FAULTS, ROUTE_FAULTS, ROUTES, Fault, Rig, Route, RouteFault, rig_on


@pytest.fixture(scope="module")
def rig(dynoxide: str) -> Iterator[Rig]:
    with rig_on(dynoxide, hurry=True) as made:
        yield made


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.tested], ids=lambda fault: fault.name)
def test_a_fault_has_its_documented_outcome(rig: Rig, fault: Fault) -> None:
    """In time, with a documented status, nothing half stored, no word of a message in the log, its cause named; a retry
    under the same key gives exactly one whole turn, and the next request works."""
    assert faults.wrong(fault, faults.suffer(rig, fault)) == []


@pytest.mark.parametrize("fault", [fault for fault in ROUTE_FAULTS if fault.tested], ids=lambda fault: fault.name)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_a_request_to_the_sessions_survives_one_fault_and_says_503_to_many(
    rig: Rig, route: Route, fault: RouteFault
) -> None:
    """In time, with a documented status; and sent again when the fault is gone, it is done."""
    assert faults.suffer_at(rig, route, fault)[0] == []
