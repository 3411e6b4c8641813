"""The log line of a request: who asked for what, what it cost, how it ended. Never what was said."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from handlers.event import source_ip
from handlers.identity import Caller
from handlers.metrics import MEASURES, metrics
from handlers.problems import Kind, Problem, cause
from handlers.router import Target
from handlers.settings import Settings
from handlers.silence import silence
from memory.turns import Session, Usage

FIELDS = {
    *("body", "message", "session_id", "title", "turn", "limit", "cursor"),
    *("x-session-id", "Idempotency-Key", "content-type"),
}
"""The fields that a line may name; others are the client's words."""
PROVOKED = frozenset(
    {
        *("timeout", "model_timeout", "model_busy", "model_quota", "too_many_steps", "empty_answer", "answer_limit"),
        *("prompt_too_long", "prompt_refused", "content_filter"),
    }
)
"""Codes of failed turns that callers can bring about: by what they ask for, how much of it, or how often. No alarm that
takes a release back may count them, or anonymous callers could take it back."""
NOT_PROVOKED = frozenset(
    {"model_error", "model_access", "parameter_refused", "agent_error", "structured_output_not_json"}
)
"""The other codes."""

logging.logAsyncioTasks = False  # type: ignore[attr-defined] # from Python 3.12 on each line would name a "Task-7"
# With a time in this form, Lambda hands a line on to CloudWatch as it is, and heeds its level.
logger = Logger(location=None, use_rfc3339=True)


@dataclass(kw_only=True)
class Exchange:
    """A request, and what is known of it so far."""

    event: dict[str, Any]
    context: LambdaContext
    settings: Settings = field(default_factory=Settings)
    target: Target = field(default_factory=lambda: Target(method="", prefix="", path="/"))
    line: str = "request"
    """What the log line is about."""
    route: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    """What stands in the places of the route's path."""
    caller: Caller | None = None
    owner_hash: str = ""
    """What logs and the model's provider are told of the owner."""
    session: Session | None = None
    taken: bool = False
    """Whether the request was found good, and something was done about it."""
    usages: list[Usage] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else its line says."""
    status: HTTPStatus = HTTPStatus.OK
    error: Exception | None = None
    problem: Problem | None = None
    """What the error is for the caller."""


def entry_point(handler: Callable[[dict[str, Any], LambdaContext], Any]) -> Callable[..., Any]:
    """A function as AWS Lambda calls it. No switch makes it log an event, or what libraries know of it."""

    @wraps(handler)
    def silent(event: dict[str, Any], context: LambdaContext) -> Any:
        silence()
        return handler(event, context)

    injected: Callable[..., Any] = logger.inject_lambda_context(silent, log_event=False)
    return injected


def log_exchange(exchange: Exchange) -> None:
    """Write the one line about a request."""
    problem = exchange.problem
    status = problem.status if problem else exchange.status
    facts: dict[str, Any] = {"route": exchange.route, "status": status.value, "instance": exchange.settings.instance}
    facts |= _who(exchange) | cost(exchange.usages) | {"outcome": "done"} | exchange.facts
    write = logger.warning if "hint" in facts else logger.info
    if problem:
        facts["outcome"] = problem.outcome
        if exchange.error:
            facts["cause"] = cause(exchange.error)
        if name := problem.extra.get("field"):
            facts["field"] = name if name in FIELDS else "one that is not known"
        write = logger.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logger.warning
    write(exchange.line, extra=facts | _metrics(exchange, facts))


def _metrics(exchange: Exchange, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What makes metrics of a turn's line. Of the other lines faults alone count: AWS counts requests itself."""
    counter = _counter(exchange)
    if exchange.line == "turn":
        return metrics(logger.service, counter, [(name, facts[name]) for name in MEASURES if name in facts])
    return metrics(logger.service, counter) if counter == "service_faults" else {}


def _counter(exchange: Exchange) -> str:
    """The counter that the request belongs to."""
    problem = exchange.problem
    if problem is None:
        return "turns_replayed" if exchange.facts.get("replayed") else "turns_answered"
    if problem.kind in (Kind.AGENT_FAILED, Kind.AGENT_TIMED_OUT):
        return "turns_unanswered" if problem.outcome in PROVOKED else "turns_failed"
    if problem.kind is Kind.TURN_IN_PROGRESS:
        return "lease_conflicts"
    return "service_faults" if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "turns_refused"


def _who(exchange: Exchange) -> dict[str, Any]:
    """Who asked, as far as that means anything: not an identity that nobody was given."""
    caller, session = exchange.caller, exchange.session
    who: dict[str, Any] = {"session_id": session.id} if session else {}
    if address := source_ip(exchange.event):
        who["source_ip"] = address
    if caller and (exchange.taken or caller.source != "new"):
        who |= {"identity": caller.source, "owner": exchange.owner_hash}
    return who


def cost(usages: Sequence[Usage]) -> dict[str, Any]:
    """What a line says of the table; nothing where it was not asked."""
    if not usages:
        return {}
    return {
        "dynamodb_calls": sum(usage.calls for usage in usages),
        "read_units": sum(usage.read_units for usage in usages),
        "write_units": sum(usage.write_units for usage in usages),
    }
