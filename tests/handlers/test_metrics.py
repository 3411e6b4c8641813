"""What CloudWatch finds to count in the log lines of the functions."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from handlers.conversation import EMPTY_BECAUSE
from handlers.metrics import COUNTERS, MEASURES, NAMESPACE
from handlers.report import NOT_PROVOKED, PROVOKED
from memory.turns import Session
from tests.conftest import asking, claimed
from tests.handlers.conftest import Reply, Service, configure

ROOT = Path(__file__).parents[2]


def counted(line: Mapping[str, Any]) -> dict[str, list[float]]:
    """The metrics that CloudWatch makes of a line, by the rules of its Embedded Metric Format."""
    found: dict[str, list[float]] = {}
    for directive in line.get("_aws", {}).get("CloudWatchMetrics", []):
        assert directive["Namespace"] == NAMESPACE
        assert directive["Dimensions"] == [["service"]]
        assert isinstance(line["service"], str)
        assert line["service"]
        for metric in directive["Metrics"]:
            value = line[metric["Name"]]
            assert isinstance(value, int | float)
            assert not isinstance(value, bool)
            assert metric["Unit"] == ("Milliseconds" if metric["Name"].endswith("_ms") else "Count")
            found.setdefault(metric["Name"], []).append(value)
    return found


def answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    return service.say("Hello")


def replayed(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    token = service.say("Hello").token
    return [service.say("My name is Ada", token=token, idempotency_key="k") for _ in range(2)][-1]


def failed(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    return service.say("please fail with status 500")


def unanswered(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    return service.say("please say nothing")


def refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    return service.say("")


def in_conflict(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    configure(monkeypatch, IDENTITY_SOURCES="header", TURN_WAIT_SECONDS="0")
    session = Session(owner=f"header:user:{service.store.owner}", id="default")
    service.run(claimed(service.store, session, asking("Hello")))
    return service.say("Hello", x_user_id=service.store.owner)


def unavailable(service: Service, monkeypatch: pytest.MonkeyPatch) -> Reply:
    configure(monkeypatch, TABLE_NAME="no-such-table")
    return service.say("Hello")


STEPS = {"load_ms", "agent_ms", "commit_ms"}
WINDOW = {"window_tokens", "turns_in_window"}
TABLE = {"dynamodb_calls", "read_units", "write_units"}
TURNS = [
    (answered, "turns_answered", STEPS | WINDOW | TABLE),
    (replayed, "turns_replayed", {"load_ms"} | WINDOW | TABLE),
    (failed, "turns_failed", STEPS | WINDOW | TABLE),
    (unanswered, "turns_unanswered", STEPS | WINDOW | TABLE),
    (refused, "turns_refused", set()),
    (in_conflict, "lease_conflicts", {"load_ms"} | TABLE),
    (unavailable, "service_faults", {"load_ms"} | TABLE),
]


@pytest.mark.parametrize(("ask", "counter", "measured"), TURNS, ids=[counter for _, counter, _ in TURNS])
def test_a_turn_counts_once_and_says_what_it_took(
    service: Service, monkeypatch: pytest.MonkeyPatch, ask: Any, counter: str, measured: set[str]
) -> None:
    """The line of a turn is counted under what became of it, and its numbers are metrics, as far as it came."""
    line = ask(service, monkeypatch).line
    metrics = counted(line)
    assert metrics[counter] == [1]
    assert metrics.keys() == {counter} | measured
    assert line.keys() & set(COUNTERS) == {counter}
    assert abs(line["_aws"]["Timestamp"] / 1000 - time.time()) < 60, "milliseconds, or CloudWatch drops it"


def test_every_metric_is_emitted_by_some_turn() -> None:
    """No metric is promised to dashboards and alarms that no request has."""
    assert {counter for _, counter, _ in TURNS} == set(COUNTERS)
    assert set.union(*(measured for _, _, measured in TURNS)) == set(MEASURES)


@pytest.mark.parametrize(
    ("message", "counter"),
    [
        ("please fail with status 400", "turns_unanswered"),
        ("please fail with status 413", "turns_unanswered"),
        ("please fail with status 422", "turns_unanswered"),
        ("please fail with status 429", "turns_unanswered"),
        ("please fail with status 401", "turns_failed"),
        ("please fail with status 404", "turns_failed"),
        ("please fail with status 503", "turns_failed"),
    ],
)
def test_what_callers_can_bring_about_is_no_failure_of_the_service(
    service: Service, monkeypatch: pytest.MonkeyPatch, message: str, counter: str
) -> None:
    """A prompt that the model refuses and a model that is asked too often count apart; a wrong key does not."""
    configure(monkeypatch, MODEL_RETRIES="0")
    line = service.say(message).line
    assert line.keys() & set(COUNTERS) == {counter}


def test_every_code_of_a_failed_turn_is_sorted() -> None:
    """A new code says whether callers can bring it about, and so whether it may take a release back."""
    modules = ("run.py", "conversation.py", "model_errors.py")
    sources = "".join((ROOT / "handlers" / name).read_text() for name in modules)
    codes = {
        *re.findall(r'(?:AgentFailed\(|ModelRefusal\(code=)"(\w+)"', sources),
        *EMPTY_BECAUSE.values(),
        "empty_answer",
    }
    assert codes == PROVOKED | NOT_PROVOKED
    assert not PROVOKED & NOT_PROVOKED


def test_of_other_requests_the_faults_count(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lists and shows conversations is counted by AWS; what went wrong in it is counted here, and nothing else."""
    token = service.say("Hello").token
    for line in (service.send("GET", "/sessions", token=token).line, service.send("GET", "/nowhere").line):
        assert counted(line) == {}
    configure(monkeypatch, TABLE_NAME="no-such-table")
    assert counted(service.send("GET", "/sessions", token=token).line) == {"service_faults": [1]}
    configure(monkeypatch, TOKEN_LIMIT="nonsense")
    assert counted(service.say("Hello").line) == {"service_faults": [1]}


def test_metrics_can_be_switched_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no CloudWatch reads the log, its lines are for people, and say the same beside the metrics."""
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    line = service.say("Hello").line
    assert line["outcome"] == "answered"
    assert "_aws" not in line
    assert line.keys() & set(COUNTERS) == set()


def test_metrics_say_nothing_of_the_caller(service: Service) -> None:
    """A metric has the service as its one dimension: no owner, no session, nothing that was said."""
    token = service.say("Hello").token
    line = service.say("My code is xyzzy", token=token, session="talk").line
    assert not any(word in json.dumps(line["_aws"]) for word in ("xyzzy", "talk", line["owner"]))
