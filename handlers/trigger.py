"""Events that are not requests: what sent them, and what to do about them.

A ping or a schedule carries nothing, and is answered. Whatever carries data is raised: its sender then keeps the data,
sends it again or sets it aside, while a result without an error would tell it that all is done.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from handlers.event import mapping, text
from handlers.report import logger

TABLE_STREAM = "aws:dynamodb"
_OF_REQUESTS = {"requestContext", "httpMethod", "rawPath", "headers", "multiValueHeaders"}
_NAME = re.compile(r"[\w.:/-]{1,100}")
_WARM_UP_FLAGS = {"warmer", "warmup", "warm", "keepwarm", "ping"}
"""Their keys without case and separators. lambda-warmer sends `warmer`; the others are what people write themselves."""


class UnexpectedEvent(Exception):
    """An event that this function has no use for, and that is not to be lost; the text names its sources."""

    def __init__(self, sources: set[str], *, takes: str) -> None:
        super().__init__(
            f"This function takes {takes}, and got an event of another kind ({', '.join(sorted(sources))}). It did "
            "nothing with it. Remove the function from the targets of what sent it."
        )


def is_request(event: Any) -> bool:
    """Whether an event has anything of what API Gateway, function URLs and load balancers send."""
    return isinstance(event, Mapping) and not _OF_REQUESTS.isdisjoint(event)


def is_websocket(event: Any) -> bool:
    """Whether an event is of a WebSocket API: a connection that opens or closes, or a message."""
    return "connectionId" in mapping(event, "requestContext")


def sources_of(event: Any) -> set[str]:
    """The names of what sent an event, or each of its records."""
    if is_request(event):
        return {"an HTTP request"}
    if not isinstance(event, Mapping):
        return {"unknown"}
    records = event.get("Records")
    if isinstance(records, list) and records:
        found = [mapping(record) for record in records]
        return {_name(record.get("eventSource") or record.get("EventSource")) for record in found}
    if "detail-type" in event:
        return {f"EventBridge ({_name(event.get('source'))})"}
    return {_name(event.get("eventSource"))}


def answer_plainly(event: Any, *, takes: str = "HTTP requests") -> dict[str, str]:
    """The answer to a ping or a schedule. Raises UnexpectedEvent for any other event."""
    harmless = _harmless(event)
    if harmless is None:
        sources = sources_of(event)
        logger.error("event", extra={"trigger": ", ".join(sorted(sources))})
        raise UnexpectedEvent(sources, takes=takes)
    logger.info("event", extra={"trigger": harmless})
    return {"answered": harmless}


def _harmless(event: Any) -> str | None:
    """What an event is that carries nothing; None for one that does."""
    if _is_ping(event):
        return "ping"
    is_scheduled = mapping(event).get("detail-type") == "Scheduled Event" and not _detail(event)
    return "schedule" if is_scheduled else None


def _is_ping(event: Any) -> bool:
    """Whether an event only keeps the function warm: it is empty, or says so as the well-known warmers do."""
    if not event:
        return event is None or event in ({}, [], "")
    if isinstance(event, str):
        return event.startswith("#warmup")
    if not isinstance(event, Mapping) or is_request(event) or not event.keys().isdisjoint({"Records", "detail-type"}):
        return False
    if any(isinstance(value, dict | list) for value in event.values()):
        return False
    flags = {re.sub(r"[_-]", "", name).lower() for name, value in event.items() if value}
    names = f"{text(event.get('source'))} {text(event.get('type'))}".lower()
    return not flags.isdisjoint(_WARM_UP_FLAGS) or "warm" in names


def _detail(event: Any) -> Any:
    """What an event of EventBridge is about. A schedule of EventBridge Scheduler has it as a text."""
    detail = event.get("detail")
    try:
        return json.loads(detail) if isinstance(detail, str) and detail else detail
    except ValueError:
        return detail


def _name(source: Any) -> str:
    """The name of a source, if it looks like one: it goes into logs, and into the text of an error."""
    return source if isinstance(source, str) and _NAME.fullmatch(source) else "unknown"
