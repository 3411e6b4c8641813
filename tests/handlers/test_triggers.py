"""Events that are no requests: pings and schedules are answered, and what would be lost otherwise is raised."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from handlers import chat, sessions, sweep
from handlers.trigger import UnexpectedEvent
from tests.conftest import EVENT_FILES, event_named
from tests.handlers.conftest import Context, Service, configure

HANDLERS = {"chat": chat.handler, "sessions": sessions.handler, "sweep": sweep.handler}
PINGS: list[Any] = [
    {},
    None,
    [],
    "",
    {"source": "serverless-plugin-warmup"},
    {"source": "serverless-plugin-lambda-warmup"},
    {"source": "my-Keep-Warm-rule"},
    {"warmer": True, "concurrency": 3},
    {
        "warmer": True,
        "concurrency": 3,
        "__WARMER_INVOCATION__": 1,
        "__WARMER_CONCURRENCY__": 3,
        "__WARMER_CORRELATIONID__": "1773342541117-0001",
    },
    {"type": "warmer", "warmerId": "1773342541117-0001", "index": 0, "concurrency": 2, "delay": 75},
    {"warmup": True},
    {"warm_up": 1},
    {"keepWarm": True},
    {"ping": True},
    "#warmup wait=200",
]
SCHEDULES = ["schedule_rule", "schedule_scheduler"]
DATA = {
    "data_sqs": "aws:sqs",
    "data_sns": "aws:sns",
    "data_s3": "aws:s3",
    "data_kinesis": "aws:kinesis",
    "data_event_bridge": "EventBridge (my.shop)",
}
OTHER_DATA: list[tuple[Any, str]] = [
    ({"eventSource": "aws:kafka", "records": {"chat-0": [{"value": "eHl6enk="}]}}, "aws:kafka"),
    ({"deliveryStreamArn": "arn:aws:firehose:us-east-1:123456789012:deliverystream/d", "records": []}, "unknown"),
    ({"Records": []}, "unknown"),
    ({"Records": [{"eventSource": "xyzzy <script>", "body": "xyzzy"}]}, "unknown"),
    ({"Records": ["xyzzy"]}, "unknown"),
    ({"key1": "xyzzy"}, "unknown"),
    ({"message": "xyzzy"}, "unknown"),
    ({"ping": False, "order": 17}, "unknown"),
    ({"warmer": True, "detail": {"order": 17}}, "unknown"),
    (["xyzzy"], "unknown"),
    ("xyzzy", "unknown"),
    (7, "unknown"),
    ({"source": "my.shop", "detail-type": "Warm", "detail": {}}, "EventBridge (my.shop)"),
    ({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {"order": 17}}, "EventBridge (aws.events)"),
    (
        {"source": "aws.scheduler", "detail-type": "Scheduled Event", "detail": '{"a": 1}'},
        "EventBridge (aws.scheduler)",
    ),
]

Handler = Callable[[Any, Any], Any]


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> Handler:
    """Each function of the stack in turn."""
    return HANDLERS[request.param]


def lines(service: Service) -> list[dict[str, Any]]:
    return [json.loads(line) for line in service.logged()]


@pytest.mark.parametrize("event", PINGS, ids=str)
def test_a_ping_is_answered_plainly(service: Service, handler: Handler, event: Any) -> None:
    """It is no request and no fault: a small result, one line that says what arrived, and no metric."""
    assert handler(event, Context()) == {"answered": "ping"}
    (line,) = lines(service)
    assert (line["message"], line["trigger"], line["level"]) == ("event", "ping", "INFO")
    assert "_aws" not in line


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_answered_plainly(service: Service, handler: Handler, name: str) -> None:
    """A rule that keeps a function warm, or a schedule, brings nothing along that could be lost."""
    assert handler(event_named(name), Context()) == {"answered": "schedule"}
    (line,) = lines(service)
    assert (line["message"], line["trigger"], line["level"]) == ("event", "schedule", "INFO")
    assert "_aws" not in line


@pytest.mark.parametrize(("event", "source"), [*((event_named(n), s) for n, s in DATA.items()), *OTHER_DATA])
def test_data_is_not_lost(service: Service, handler: Handler, event: Any, source: str) -> None:
    """A queue deletes what a function took without an error. So this is one, and says what sent it."""
    with pytest.raises(UnexpectedEvent) as raised:
        handler(event, Context())
    assert source in str(raised.value)
    (line,) = lines(service)
    assert (line["message"], line["trigger"], line["level"]) == ("event", source, "ERROR")
    assert "_aws" not in line


@pytest.mark.parametrize(("event", "_"), [*((event_named(n), s) for n, s in DATA.items()), *OTHER_DATA])
def test_no_error_or_log_has_the_data(service: Service, handler: Handler, event: Any, _: str) -> None:
    """Neither the text of the error nor the line quotes what came."""
    with pytest.raises(UnexpectedEvent) as raised:
        handler(event, Context())
    said = str(raised.value) + "".join(service.logged())
    assert "xyzzy" not in said
    assert "Ada" not in said


@pytest.mark.parametrize("handler", ["chat", "sessions"], indirect=True)
def test_records_of_a_table_are_for_the_sweeper_alone(service: Service, handler: Handler) -> None:
    """The functions behind the API take no stream either."""
    with pytest.raises(UnexpectedEvent, match="aws:dynamodb"):
        handler(event_named("sweep_deleted_session"), Context())


@pytest.mark.parametrize("name", ["chat_first_request", "chat_rest_first_request", "chat_alb_first_request"])
def test_a_request_is_not_for_the_sweeper(service: Service, name: str) -> None:
    """The sweeper answers nobody: a request that reaches it is an error of whoever set that up."""
    with pytest.raises(UnexpectedEvent, match="HTTP request"):
        sweep.handler(event_named(name), Context())  # type: ignore[arg-type]


def test_the_sweeper_takes_no_batch_with_other_records(service: Service) -> None:
    """Records of another source are not passed by as if they had been dealt with."""
    event = event_named("sweep_deleted_session")
    event["Records"] += event_named("data_sqs")["Records"]
    with pytest.raises(UnexpectedEvent, match="aws:sqs"):
        sweep.handler(event, Context())  # type: ignore[arg-type]


@pytest.mark.parametrize("handler", ["chat", "sessions"], indirect=True)
@pytest.mark.parametrize("name", ["websocket_connect", "websocket_message"])
def test_a_websocket_is_refused(service: Service, handler: Handler, name: str) -> None:
    """The client hears at once that there is none: nobody has to send again, and no alarm is anybody's to set off."""
    result = handler(event_named(name), Context())
    problem = json.loads(result["body"])
    assert (result["statusCode"], problem["status"]) == (404, 404)
    assert "WebSocket" in problem["detail"]
    (line,) = lines(service)
    assert (line["message"], line["status"], line["outcome"]) == ("request", 404, "not-found")
    assert "_aws" not in line


def test_a_ping_needs_no_settings(service: Service, handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment whose settings are wrong is told so by its requests, not by what keeps it warm."""
    configure(monkeypatch, TOKEN_LIMIT="many")
    assert handler({}, Context()) == {"answered": "ping"}


def test_every_example_event_is_tried() -> None:
    """No event that is not a request lies in `events/` that these tests do not know."""
    others = {file.stem for file in EVENT_FILES if not file.stem.startswith(("chat_", "sessions_", "sweep_"))}
    pings = {"ping_warm_up_plugin", "ping_lambda_warmer"}
    assert all(event_named(name) in PINGS for name in pings)
    assert others == {*pings, *SCHEDULES, *DATA, "websocket_connect", "websocket_message"}
