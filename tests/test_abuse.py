"""What judges `python -m proof abuse`: it tells requests that were taken from those that were refused, and adds up."""

from collections import Counter
from typing import Any

import httpx
import pytest

from proof.abuse import ATTACKS, QUOTA, Beside, Cost, a_minute, outcome_of
from proof.attacks import Attacker

FLOOD = next(attack for attack in ATTACKS if attack.name == "one caller's flood")
FORKS = next(attack for attack in ATTACKS if attack.name == "forks of forks")
TURN = Cost(tokens=100, write_units=3, read_units=1, worker_seconds=2)
REFUSAL = Cost(write_units=1, read_units=1)


def turn(status: int, **facts: Any) -> dict[str, Any]:
    """The line of a turn."""
    return {"message": "turn", "route": "POST /chat", "status": status, **facts}


def attacker(*statuses: int, seconds: tuple[float, ...] = ()) -> Attacker:
    """Somebody who was answered like this."""
    return Attacker(
        url="",
        engine="",
        client=httpx.AsyncClient(),
        requests=len(statuses),
        message_chars=0,
        statuses=Counter(statuses),
        seconds=list(seconds),
    )


def test_without_limits_every_request_of_a_minute_is_taken() -> None:
    """300 at the rate that the API lets through."""
    assert a_minute(TURN, REFUSAL, limited=False, share=1) == TURN.times(300)


def test_with_limits_two_turns_of_a_minute_are_taken_in_the_mean() -> None:
    """120 an hour, and all others are refused at what a refusal costs."""
    assert a_minute(TURN, REFUSAL, limited=True, share=0.5) == TURN.times(2).plus(REFUSAL.times(298))


def test_a_refused_count_costs_the_unit_that_nobody_reports() -> None:
    """The log line of a 429 lacks it; the bill has it."""
    lines = [
        turn(200, write_units=4, read_units=1, load_ms=100, agent_ms=800, commit_ms=100),
        turn(429, write_units=0, read_units=1, load_ms=50),
        {"message": "request", "route": "POST /sessions", "status": 201, "write_units": 2},
    ]
    found = outcome_of(FLOOD, attacker(200, 429), lines, 500, Beside(), limited=True)
    assert (found.taken, found.refused, found.wrong) == (1, 1, [])
    expected = Cost(tokens=500, write_units=4, read_units=1, worker_seconds=1).times(2)
    refusals = Cost(write_units=1, read_units=1, worker_seconds=0.05).times(298)
    assert vars(found.minute) == pytest.approx(vars(expected.plus(refusals)))


def test_a_fork_holds_its_worker_until_it_is_answered() -> None:
    """Its line has no steps: the time is the client's, who forks one after the other."""
    lines = [{"message": "request", "route": "POST /sessions/{id}/fork", "status": 201, "write_units": 200}]
    found = outcome_of(FORKS, attacker(201, seconds=(1.5,)), lines, 0, Beside(), limited=False)
    assert found.minute.worker_seconds == 450


def test_a_quota_that_lets_too_many_through_is_wrong() -> None:
    """So is a status that no caller should see."""
    lines = [turn(200) for _ in range(QUOTA + 1)]
    found = outcome_of(FLOOD, attacker(*[200] * QUOTA, 500), lines, 0, Beside(), limited=True)
    assert found.wrong == ["500 to 1 requests", f"{QUOTA + 1} of {QUOTA} turns were taken"]
