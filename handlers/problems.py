"""Errors as RFC 9457 problems: what the caller can mend says how; what they cannot is logged, and says so."""

import json
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler import Response
from botocore.exceptions import ClientError

from handlers.settings import SettingsError
from memory.turns import (
    HistoryReplaced,
    LeaseLost,
    NotTheNewestTurn,
    RequestIdReused,
    SessionNotFound,
    TableUnavailable,
    TooManySessions,
    TooManyWaiting,
    TurnInProgress,
    TurnNotFound,
    TurnsUsedUp,
)

CONTENT_TYPE = "application/problem+json"
MAX_CAUSES = 6
CODED = {"handlers", "openai"}
"""Packages whose errors have a code in words. That of others may be a text: a SystemExit has its message there."""
CODE = re.compile(r"[\w.]{1,80}")


class Kind(Enum):
    """The kinds of problems: a stable name, the status, the title, and when it comes."""

    INVALID = ("invalid-request", 400, "The request is not valid", "A field is wrong: `field` names it.")
    TOO_LARGE = (
        "too-large",
        413,
        "The request is too large",
        "The body, or one of its fields, is larger than is taken: `field` names it.",
    )
    MEDIA_TYPE = (
        "unsupported-media-type",
        415,
        "The body is not of a type that is taken",
        "The `Content-Type` of a body is not `application/json`.",
    )
    KEY_REUSED = (
        "idempotency-key-reused",
        422,
        "The Idempotency-Key was used for another request",
        "The same key came with another request before.",
    )
    UNAUTHORIZED = (
        "unauthorized",
        401,
        "The request could not be tied to an owner",
        "There is no valid identity: a forged or expired token, no claims, or a session named without a token.",
    )
    FOREIGN_ORIGIN = (
        "foreign-origin",
        403,
        "A page of another origin may not use the cookie",
        "A browser sent the cookie with the request of a page that `CORS_ORIGINS` does not name.",
    )
    NOT_BY_THE_PROXY = (
        "not-by-the-proxy",
        403,
        "The request went around the service's public address",
        "The API answers only what comes through the proxy in front of it (`ORIGIN_SECRET`).",
    )
    NOT_FOUND = ("not-found", 404, "Nothing is here", "There is no such path.")
    SESSION_NOT_FOUND = (
        "session-not-found",
        404,
        "There is no such session",
        "The caller has no session of this id: it never was, is another's, was deleted or has expired.",
    )
    TURN_NOT_FOUND = ("turn-not-found", 404, "There is no such turn", "The session has no turn of this number.")
    METHOD = ("method-not-allowed", 405, "The path has no such method", "`Allow` lists the methods that it has.")
    TURN_IN_PROGRESS = (
        "turn-in-progress",
        409,
        "Another request of this session comes first",
        "The session was answering another request for too long, or others wait for it already; see `Retry-After`.",
    )
    NOT_THE_NEWEST = (
        "not-the-newest-turn",
        409,
        "Only the newest turn can be answered again",
        "Other turns followed the one that was to be answered again.",
    )
    HISTORY_CHANGED = (
        "history-changed",
        409,
        "The history was replaced while it was read",
        "The session was deleted or rewritten since reading it began.",
    )
    TOO_MANY_SESSIONS = (
        "too-many-sessions",
        409,
        "The caller has as many sessions as one may have",
        "The request would make one session more than `MAX_SESSIONS`.",
    )
    TURNS_USED_UP = (
        "turns-used-up",
        429,
        "All turns of this hour are taken",
        "The caller has taken `OWNER_TURNS_PER_HOUR` turns since the hour began; see `Retry-After`.",
    )
    INTERNAL = ("internal", 500, "Something went wrong in the service", "The log has the cause.")
    AGENT_FAILED = (
        "agent-failed",
        502,
        "The agent gave no answer",
        "The model or a tool failed; the message is kept as a failed turn. `code` says why.",
    )
    UNAVAILABLE = (
        "unavailable",
        503,
        "The service is not available just now",
        "The table cannot be reached, or too little time was left; see `Retry-After`.",
    )
    AGENT_TIMED_OUT = (
        "agent-timed-out",
        504,
        "The agent gave no answer in time",
        "The time ran out; the message is kept as a failed turn. `code` says whose time.",
    )

    def __init__(self, slug: str, status: int, title: str, when: str) -> None:
        self.slug = slug
        self.status = HTTPStatus(status)
        self.title = title
        self.when = when

    @property
    def urn(self) -> str:
        """The `type` of the problem document."""
        return f"urn:rehydrate:problem:{self.slug}"


@dataclass(kw_only=True, eq=False)
class Problem(Exception):
    """An answer that is not what was asked for; `detail` says what to do."""

    kind: Kind
    detail: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further members, such as `field`: the one that is wrong."""
    retry_after: int | None = None
    """Seconds."""
    allow: str | None = None
    """The methods that the path has."""
    clear_cookie: bool = False

    @property
    def status(self) -> HTTPStatus:
        return self.kind.status

    @property
    def outcome(self) -> str:
        """What logs and traces call it."""
        return str(self.extra.get("code", self.kind.slug))

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": self.kind.urn,
            "title": self.kind.title,
            "status": self.status.value,
            "detail": self.detail,
            **self.extra,
        }

    def response(self) -> Response[str]:
        """The problem as an HTTP response."""
        headers: dict[str, str | list[str]] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.allow is not None:
            headers["Allow"] = self.allow
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Session"
        return Response(self.status.value, CONTENT_TYPE, json.dumps(self.body()), headers)

    def result(self) -> dict[str, Any]:
        """The problem as a Lambda function's result, for where nothing else can make one."""
        headers = {"content-type": CONTENT_TYPE}
        return {"statusCode": self.status.value, "headers": headers, "body": json.dumps(self.body())}


def bad_field(name: str, detail: str, *, kind: Kind = Kind.INVALID) -> Problem:
    """One field of the request is wrong; the detail says what is, and how to mend it."""
    return Problem(kind=kind, detail=detail, extra={"field": name})


def unauthorized(detail: str, *, clear_cookie: bool = False) -> Problem:
    """The request does not say who asks, or says it with something that cannot be trusted."""
    return Problem(kind=Kind.UNAUTHORIZED, detail=detail, clear_cookie=clear_cookie)


def foreign_origin() -> Problem:
    """A page that the service does not know uses the cookie of whoever looks at it."""
    return Problem(
        kind=Kind.FOREIGN_ORIGIN,
        detail="A browser sent this request for a page of another origin, with the cookie of this service. Such a page "
        "has to send the session token itself, in x-session-token, or to be one of CORS_ORIGINS.",
    )


def unavailable(detail: str) -> Problem:
    """The service cannot do this now, and can soon."""
    return Problem(kind=Kind.UNAVAILABLE, detail=detail, retry_after=1)


def from_error(error: Exception) -> Problem:
    """The problem that an error is for the caller. What it does not know is a 500, and no text of it gets out."""
    match error:
        case Problem():
            return error
        case TooManyWaiting():
            return Problem(
                kind=Kind.TURN_IN_PROGRESS,
                detail=f"The session is answering a request, and no more than {error.limit} others may wait for it "
                "(MAX_WAITING). Nothing of this one was stored: send it again when the others have their answers.",
                retry_after=error.retry_after,
            )
        case TurnInProgress() | LeaseLost():
            return Problem(
                kind=Kind.TURN_IN_PROGRESS,
                detail="The session is answering another request. Nothing of this one was stored: send it again.",
                retry_after=error.retry_after if isinstance(error, TurnInProgress) else 1,
            )
        case TurnsUsedUp():
            return Problem(
                kind=Kind.TURNS_USED_UP,
                detail=f"You may take {error.limit} turns in an hour (OWNER_TURNS_PER_HOUR), and have taken them. "
                f"Nothing of this request was stored: send it again in {error.retry_after} seconds.",
                retry_after=error.retry_after,
            )
        case TooManySessions():
            return Problem(
                kind=Kind.TOO_MANY_SESSIONS,
                detail=f"You have {error.limit} sessions, and may have no more (MAX_SESSIONS). Delete some that you no "
                "longer need (GET /sessions lists them), or go on in one that you have.",
            )
        case RequestIdReused():
            return bad_field(
                "Idempotency-Key",
                "This Idempotency-Key belongs to an earlier request with other content. Send a new key with a new "
                "request; repeat the key only to send the very same request again.",
                kind=Kind.KEY_REUSED,
            )
        case TableUnavailable():
            return unavailable("The conversation could not be read or stored just now. Send the request again.")
        case TimeoutError():
            return unavailable("The request could not be done in the time there was. Send it again.")
    for kind, detail in _PLAIN.items():
        if isinstance(error, kind):
            return Problem(kind=detail[0], detail=detail[1])
    return Problem(kind=Kind.INTERNAL, detail="The cause was logged. Nothing of this request was stored.")


_PLAIN: Mapping[type[Exception], tuple[Kind, str]] = {
    SessionNotFound: (Kind.SESSION_NOT_FOUND, "You have no session of this id. GET /sessions lists those you have."),
    TurnNotFound: (Kind.TURN_NOT_FOUND, "The session has no such turn. GET /sessions/{id}/turns lists those it has."),
    NotTheNewestTurn: (
        Kind.NOT_THE_NEWEST,
        "Other turns followed this one. Answer the newest one again, or fork the session at an older one.",
    ),
    HistoryReplaced: (
        Kind.HISTORY_CHANGED,
        "The session was deleted or rewritten since reading it began. Read it from the beginning, without cursor.",
    ),
}


KEPT = "The message is kept as a failed turn, which the agent will not see."
AGAIN = "Send the request again."
ADVICE: Mapping[str, str] = {
    "prompt_too_long": "The model cannot take this much text. Shorten the message, or begin a new session.",
    "content_filter": "The model's provider filtered the request or its answer. Say it in other words.",
    "prompt_refused": "The model's server refused this conversation. Begin a new session, or ask the operator.",
    "parameter_refused": "The model's server refused a setting of this service. Only its operator can change that.",
    "model_access": "The model's server does not let this service in. Only its operator can change that.",
    "model_quota": "This service has used up its quota at the model's provider. Only its operator can change that.",
    "answer_limit": "The answer was longer than this service allows. Ask for less at a time.",
    "model_busy": "The model's server is busy. Wait a moment, then send the request again.",
    "structured_output_not_json": "The agent is at fault, not the request. Only the operator can change that.",
    "too_many_steps": "The agent called tools without coming to an end. Ask for less at a time.",
}
"""What would help with a failed turn, by its code; `AGAIN` is the advice for all others."""


HINTS: Mapping[str, str] = {
    "prompt_too_long": "the model takes less than CONTEXT_WINDOW says, or TOKEN_LIMIT is too large for it",
    "parameter_refused": "change the setting of refused_parameter, such as MODEL_TEMPERATURE or MODEL_STREAMING",
    "prompt_refused": "one of the turns in window_turns may hold what the server refuses; export the session to see",
    "model_access": "check the API key, OPENAI_MODEL and OPENAI_API_BASE",
    "model_quota": "the account at the model's provider has used up its quota",
    "structured_output_not_json": "the agent's structured output is not an object of JSON; cause names the type in it",
    "answer_limit": "MAX_ANSWER_TOKENS is too small for this model, whose thinking counts too",
}
"""What an operator can do about a failed turn, by its code."""


def cause(error: BaseException | None) -> list[dict[str, Any]]:
    """An error and what led to it, for a log: kinds, codes and places, never a text, since texts quote messages."""
    found: list[dict[str, Any]] = []
    if isinstance(error, Problem) and error.__cause__:
        error = error.__cause__  # which says more than what the caller was told
    while error is not None and len(found) < MAX_CAUSES:
        fact: dict[str, Any] = {"error": f"{type(error).__module__}.{type(error).__qualname__}"}
        if isinstance(error, ClientError):
            fact |= {"operation": error.operation_name, "code": error.response.get("Error", {}).get("Code")}
        elif isinstance(error, SettingsError):
            fact["detail"] = str(error)
        else:
            codes = {name: getattr(error, name, None) for name in ("code", "status_code")}
            fact |= {name: code for name, code in codes.items() if code and _is_code(error, code)}
        if frames := traceback.extract_tb(error.__traceback__):
            last = frames[-1]
            fact["at"] = f"{Path(last.filename).name}:{last.lineno} {last.name}"
        found.append(fact)
        error = error.__cause__ or error.__context__
    return found


def _is_code(error: BaseException, code: object) -> bool:
    if isinstance(code, str):
        return type(error).__module__.partition(".")[0] in CODED and CODE.fullmatch(code) is not None
    return isinstance(code, int)
