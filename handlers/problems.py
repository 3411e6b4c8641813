"""Errors as RFC 9457 problems: what the caller can mend says how; what they cannot is logged, and says so."""

import json
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler import Response
from botocore.exceptions import ClientError
from pydantic import ValidationError

from handlers.settings import SettingsError
from memory.turns import LeaseLost, RequestIdReused, TableUnavailable, TurnInProgress

CONTENT_TYPE = "application/problem+json"
MAX_CAUSES = 6


@dataclass(kw_only=True, eq=False)
class Problem(Exception):
    """An answer that is not 200. `type` is a stable name; `detail` says what to do."""

    status: HTTPStatus
    type: str
    title: str
    detail: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further members, such as `field`: the one that is wrong."""
    retry_after: int | None = None
    """Seconds."""
    clear_cookie: bool = False

    def body(self) -> dict[str, Any]:
        """The members of the problem document."""
        return {
            "type": f"urn:rehydrate:problem:{self.type}",
            "title": self.title,
            "status": self.status.value,
            "detail": self.detail,
            **self.extra,
        }

    def response(self) -> Response[str]:
        """The problem as an HTTP response."""
        headers: dict[str, str | list[str]] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status is HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Session"
        return Response(self.status.value, CONTENT_TYPE, json.dumps(self.body()), headers)

    def result(self) -> dict[str, Any]:
        """The problem as a Lambda function's result, for where nothing else can make one."""
        headers = {"content-type": CONTENT_TYPE}
        return {"statusCode": self.status.value, "headers": headers, "body": json.dumps(self.body())}


def bad_field(name: str, detail: str, *, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Problem:
    """One field of the request is wrong; the detail says what is, and how to mend it."""
    return Problem(
        status=status, type="invalid-request", title="The request is not valid", detail=detail, extra={"field": name}
    )


def unauthorized(detail: str, *, clear_cookie: bool = False) -> Problem:
    """The request does not say who asks, or says it with something that cannot be trusted."""
    return Problem(
        status=HTTPStatus.UNAUTHORIZED,
        type="unauthorized",
        title="The request could not be tied to an owner",
        detail=detail,
        clear_cookie=clear_cookie,
    )


def from_error(error: Exception) -> Problem:
    """The problem that an error is for the caller. What it does not know is a 500, and no text of it gets out."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TurnInProgress | LeaseLost):
        return Problem(
            status=HTTPStatus.CONFLICT,
            type="turn-in-progress",
            title="Another request of this session comes first",
            detail="The session is answering another request. Nothing of this one was stored: send it again.",
            retry_after=error.retry_after if isinstance(error, TurnInProgress) else 1,
        )
    if isinstance(error, RequestIdReused):
        return bad_field(
            "Idempotency-Key",
            "This Idempotency-Key belongs to an earlier request with another body. Send a new key with a new request; "
            "repeat the key only to send the very same request again.",
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
        )
    if isinstance(error, TableUnavailable):
        return unavailable("The conversation could not be read or stored just now. Send the request again.")
    return Problem(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        type="internal",
        title="Something went wrong in the service",
        detail="The cause was logged. Nothing of this request was stored.",
    )


def unavailable(detail: str) -> Problem:
    """The service cannot do this now, and can soon."""
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        type="unavailable",
        title="The service is not available just now",
        detail=detail,
        retry_after=1,
    )


def cause(error: BaseException | None) -> list[dict[str, Any]]:
    """An error and what led to it, for a log: kinds, codes and places, never a text, since texts quote messages."""
    found: list[dict[str, Any]] = []
    while error is not None and len(found) < MAX_CAUSES:
        fact: dict[str, Any] = {"error": f"{type(error).__module__}.{type(error).__qualname__}"}
        if isinstance(error, ClientError):
            fact |= {"operation": error.operation_name, "code": error.response.get("Error", {}).get("Code")}
        elif isinstance(error, SettingsError):
            fact["detail"] = str(error)
        else:
            fact |= {name: value for name in ("code", "status_code") if (value := getattr(error, name, None))}
        if frames := traceback.extract_tb(error.__traceback__):
            last = frames[-1]
            fact["at"] = f"{Path(last.filename).name}:{last.lineno} {last.name}"
        found.append(fact)
        error = error.__cause__ or error.__context__
    return found


def from_validation(error: ValidationError) -> Problem:
    """What pydantic found wrong with a body: the first field by name, all of them in `errors`."""
    faults = [_fault(fault) for fault in error.errors(include_url=False, include_input=False)]
    problem = bad_field(faults[0]["field"], "; ".join(f"{fault['field']} {fault['problem']}" for fault in faults))
    problem.extra = {**problem.extra, "errors": faults}
    return problem


def _fault(fault: Any) -> dict[str, str]:
    name = ".".join(map(str, fault["loc"])) or "body"
    known = {
        "extra_forbidden": "is not a field of this request; the fields are message and session_id",
        "missing": "is missing; send a JSON object that has it",
        "model_type": "must be a JSON object",
        "string_type": "must be a string",
    }
    if fault["type"] == "json_invalid":
        return {"field": "body", "problem": f"is not valid JSON ({fault['ctx']['error']})"}
    return {"field": name, "problem": known.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")}
