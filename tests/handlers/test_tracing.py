"""What X-Ray is told of a turn: the datagrams that a process of Lambda's sends to its daemon, and no other."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import TABLE, event_named, store_at

pytestmark = [pytest.mark.xdist_group("traced"), pytest.mark.once]  # one process for all of them

WORD = "xyzzy"
PARENT = "53995c3f42cd8ad8"
INVOCATIONS: dict[str, tuple[str, str, bool]] = {
    "answered": (f"My code is {WORD}", "k1", False),
    "replayed": (f"My code is {WORD}", "k1", False),
    "refused": (f"My code is not {WORD}", "k1", False),
    "model fails": (f"please fail with status 500 {WORD}", "k2", False),
    "agent breaks": (f"break on {WORD}", "k3", True),
    "answered again": ("Hello", "k4", False),
}
"""By what becomes of them: the message, the Idempotency-Key, and whether the agent's error quotes the message."""


def trace_id(case: str) -> str:
    return f"1-5759e988-{list(INVOCATIONS).index(case):024x}"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What X-Ray and the log were told."""

    datagrams: list[str]
    lines: list[dict[str, Any]]

    def of(self, case: str) -> list[dict[str, Any]]:
        """The subsegments of one invocation, in the order in which they ended."""
        found = [json.loads(datagram.split("\n", 1)[1]) for datagram in self.datagrams]
        return [subsegment for subsegment in found if subsegment["trace_id"] == trace_id(case)]

    def turn(self, case: str) -> dict[str, Any]:
        (turn,) = [subsegment for subsegment in self.of(case) if subsegment["name"] == "turn"]
        return turn


@pytest.fixture(scope="module")
def told(dynoxide: str, demo: str) -> Told:
    """One process that is invoked for each case in turn."""
    lines = []
    owner = f"{WORD}-{store_at(dynoxide).owner}"
    for case, (message, key, breaks) in INVOCATIONS.items():
        event = event_named("chat_trusted_header")
        event["headers"] |= {"x-user-id": owner, "idempotency-key": key}
        event["body"] = json.dumps({"message": message})
        trace = f"Root={trace_id(case)};Parent={PARENT};Sampled=1"
        lines.append(json.dumps({"event": event, "trace": trace, "breaks": breaks}))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as daemon:
        daemon.bind(("127.0.0.1", 0))
        environment = {
            "TABLE_NAME": TABLE,
            "DYNAMODB_ENDPOINT": dynoxide,
            "OPENAI_API_BASE": f"{demo}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": "demo",
            "MODEL_RETRIES": "0",
            "IDENTITY_SOURCES": "header",
            "LAMBDA_TASK_ROOT": "/var/task",
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{daemon.getsockname()[1]}",
        }
        command = [sys.executable, "-m", "tests.traced"]
        ended = subprocess.run(  # noqa: S603 - the tests' own program
            command, input="\n".join(lines), env=os.environ | environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        daemon.setblocking(False)
        datagrams = []
        while True:  # on loopback, what was sent has arrived
            try:
                datagrams.append(daemon.recv(65_536).decode())
            except BlockingIOError:
                break
    logged = [json.loads(line) for line in ended.stdout.splitlines()]
    return Told(datagrams=datagrams, lines=[line for line in logged if line["message"] == "turn"])


def test_each_invocation_came_to_its_end(told: Told) -> None:
    """The cases are what they are called, as the log has it."""
    outcomes = ["answered", "answered", "idempotency-key-reused", "model_error", "agent_error", "answered"]
    assert [line["outcome"] for line in told.lines] == outcomes


@pytest.mark.parametrize(
    ("case", "steps"),
    [
        ("answered", ["load", "agent", "commit"]),
        ("replayed", ["load"]),
        ("refused", ["load"]),
        ("model fails", ["load", "agent", "commit"]),
        ("agent breaks", ["load", "agent", "commit"]),
        ("answered again", ["load", "agent", "commit"]),
    ],
)
def test_a_turn_is_a_subsegment_and_its_steps_are_parts_of_it(told: Told, case: str, steps: list[str]) -> None:
    """Within Lambda's segment lies the turn, and within the turn each step that it came to, one after the other."""
    turn, inner = told.turn(case), told.of(case)[:-1]
    assert turn["parent_id"] == PARENT
    assert [step["name"] for step in inner] == steps
    assert {step["parent_id"] for step in inner} == {turn["id"]}
    times = [turn["start_time"], *(time for step in inner for time in (step["start_time"], step["end_time"]))]
    assert times == sorted(times)
    assert times[-1] <= turn["end_time"]


@pytest.mark.parametrize(
    ("case", "annotations", "flag"),
    [
        ("answered", {"outcome": "answered", "turn": 1, "replayed": False}, None),
        ("replayed", {"outcome": "answered", "turn": 1, "replayed": True}, None),
        ("refused", {"outcome": "idempotency-key-reused", "replayed": False}, "error"),
        ("model fails", {"outcome": "model_error", "turn": 2, "replayed": False}, "fault"),
        ("agent breaks", {"outcome": "agent_error", "turn": 3, "replayed": False}, "fault"),
        ("answered again", {"outcome": "answered", "turn": 4, "replayed": False}, None),
    ],
)
def test_a_turn_can_be_found_by_what_became_of_it(
    told: Told, case: str, annotations: dict[str, Any], flag: str | None
) -> None:
    """Outcome, number and replay can be searched for; the caller's faults and ours are told apart."""
    turn = told.turn(case)
    assert turn["annotations"] == annotations
    assert [name for name in ("fault", "error", "throttle") if turn.get(name)] == ([flag] if flag else [])


@pytest.mark.parametrize(
    ("case", "failed", "outcome"),
    [("refused", "load", "idempotency-key-reused"), ("agent breaks", "agent", "agent_error")],
)
def test_the_step_that_failed_is_marked(told: Told, case: str, failed: str, outcome: str) -> None:
    """Of the steps the one that failed says so, by its code; the others are in order."""
    marks = {step["name"]: step.get("annotations") for step in told.of(case)[:-1]}
    assert marks == {name: {"outcome": outcome} if name == failed else None for name in marks}


def test_no_trace_has_what_was_said(told: Told) -> None:
    """Neither a message nor an error that quotes one is sent, nor who asked, nor any text beside the codes."""
    sent = "".join(told.datagrams)
    assert WORD not in sent
    assert not any(line["owner"] in sent or line["session_id"] in sent for line in told.lines if "owner" in line)
    members = {name for case in INVOCATIONS for subsegment in told.of(case) for name in subsegment}
    timed = {"id", "parent_id", "trace_id", "type", "name", "namespace", "start_time", "end_time", "in_progress"}
    assert members <= timed | {"annotations", "fault", "error"}


def test_invocations_are_apart(told: Told) -> None:
    """Nothing is left of one invocation that the next one's trace would show, and every datagram is of one of them."""
    assert sum(len(told.of(case)) for case in INVOCATIONS) == len(told.datagrams)
    assert all(len({step["id"] for step in told.of(case)}) == len(told.of(case)) for case in INVOCATIONS)
