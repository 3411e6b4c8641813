"""The log line of a turn: what it remembered, what it cost, how it ended. Never what was said."""

import hashlib
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools import Logger

from handlers.conversation import Answered, Ask, Conversation
from handlers.identity import Caller
from handlers.problems import Problem, cause

FIELDS = {"body", "message", "session_id", "x-session-id", "Idempotency-Key"}
"""The fields that a line may name; others are the client's words."""

logging.logAsyncioTasks = False  # type: ignore[attr-defined] # from Python 3.12 on each line would name a "Task-7"
logger = Logger(service="rehydrate", location=None)


@dataclass(kw_only=True)
class Exchange:
    """What is known of a request so far, for its log line."""

    caller: Caller | None = None
    ask: Ask | None = None
    conversation: Conversation | None = None
    error: Exception | None = None
    problem: Problem | None = None
    """What the error is for the caller."""
    answered: Answered | None = None


def log_turn(exchange: Exchange) -> None:
    """Write the one line about a request."""
    problem = exchange.problem
    status = problem.status if problem else HTTPStatus.OK
    facts: dict[str, Any] = {"status": status.value}
    if exchange.caller and (exchange.conversation or exchange.caller.source != "new"):
        facts |= {
            "identity": exchange.caller.source,
            "owner": hashlib.sha256(exchange.caller.owner.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        }
    if exchange.ask:
        facts |= {"session_id": exchange.ask.session.id, "request_id": exchange.ask.request.id}
    if exchange.conversation:
        facts |= _progress_facts(exchange.conversation)
    outcome = problem.extra.get("code", problem.type) if problem else "answered"
    facts |= {"outcome": outcome, "replayed": bool(exchange.answered and exchange.answered.replayed)}
    write = logger.info
    if problem:
        facts["cause"] = cause(exchange.error)
        if field := problem.extra.get("field"):
            facts["field"] = field if field in FIELDS else "one that is not known"
        write = logger.error if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logger.warning
    elif facts.get("turns_total") and not facts.get("turns_in_window"):
        facts["hint"] = "no earlier turn fits TOKEN_LIMIT, or all of them failed"
        write = logger.warning
    write("turn", extra=facts)


def _progress_facts(conversation: Conversation) -> dict[str, Any]:
    progress, usage = conversation.progress, conversation.log.usage
    facts: dict[str, Any] = {
        "instance": conversation.instance,
        "token_limit": conversation.token_limit,
        "dynamodb_calls": usage.calls,
        "read_units": usage.read_units,
        "write_units": usage.write_units,
        **{f"{step}_ms": taken for step, taken in progress.milliseconds.items()},
    }
    if progress.window:
        facts |= {
            "window_tokens": progress.window.tokens,
            "turns_in_window": len(progress.window.turns),
            "turns_total": progress.window.total_turns,
        }
        if progress.window.damaged:
            facts["damaged_turns"] = list(progress.window.damaged)
    if progress.turn:
        facts["turn"] = progress.turn.number
    return facts
