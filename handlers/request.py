"""What a request asks for, checked, as values: bodies, queries, paths and the headers that identify a request."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from handlers.event import Event, header, query
from handlers.identity import TOKEN_HEADER, Caller
from handlers.problems import Kind, Problem, bad_field, unauthorized
from handlers.shapes import IDEMPOTENCY_KEY, SESSION_ID, SESSION_ID_RULE
from memory.turns import Session, SessionNotFound, TurnNotFound

JSON_TYPE = re.compile(r"[ \t]*application/json[ \t]*(;.*)?", re.IGNORECASE | re.ASCII)
"""A Content-Type. A page of another site can send no such request without asking first: a browser sends a preflight."""
TURN_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
MOST_FAULTS = 10
LONGEST_NAME = 100
"""Of the fields that a problem names. They are the client's words: all of them could be more than a response takes."""

M = TypeVar("M", bound=BaseModel)


def read_body(event: Event, model: type[M], *, limit: int, optional: bool = False) -> M:
    """The request's body, which may have `limit` bytes; an absent one is empty if it is `optional`.

    Raises a Problem that names the field.
    """
    body = event.get("body")
    if not isinstance(body, str) or not body:
        if optional:
            return model()
        raise bad_field("body", "body is missing; send a JSON object, with a content-type of application/json")
    if not JSON_TYPE.fullmatch(header(event, "content-type") or ""):
        raise bad_field("content-type", "content-type must be application/json", kind=Kind.MEDIA_TYPE)
    try:
        return model.model_validate(_known_fields(_content(event, body, limit), model))
    except ValidationError as error:
        raise _from_validation(error, model) from error


def _content(event: Event, body: str, limit: int) -> bytes:
    """The body's bytes. One that is too large is refused without a copy of it."""
    in_base64 = bool(event.get("isBase64Encoded"))
    size = len(body) * 3 // 4 - body[-2:].count("=") if in_base64 else len(body)
    try:
        content = b"" if size > limit else base64.b64decode(body, validate=True) if in_base64 else body.encode()
    except ValueError as error:
        raise bad_field("body", "body is not text in UTF-8; send a JSON object") from error
    if max(size, len(content)) > limit:
        raise bad_field(
            "body",
            f"body is larger than {limit} bytes, the limit here (12 for each of MAX_MESSAGE_CHARS, plus 4096); send a "
            "smaller one",
            kind=Kind.TOO_LARGE,
        )
    return content


def _known_fields(content: bytes, model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a body that the model has, and of the others as many as a problem names.

    Pydantic would find fault with each of thousands of unknown fields, and take a hundred times their size for that.
    """
    try:
        fields = from_json(content, cache_strings="none")
    except ValueError as error:
        raise bad_field("body", f"body is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise bad_field("body", "body must be a JSON object")
    unknown = [name for name in fields if name not in model.model_fields]
    for name in unknown[MOST_FAULTS:]:
        del fields[name]
    return fields


def read_query(event: Event, model: type[M]) -> M:
    """The request's query parameters. Raises a Problem that names the one that is wrong."""
    try:
        return model.model_validate(query(event))
    except ValidationError as error:
        raise _from_validation(error, model) from error


def session_named(caller: Caller, session_id: str) -> Session:
    """The caller's session in a path. Raises SessionNotFound where no session can have this id."""
    if not SESSION_ID.fullmatch(session_id):
        raise SessionNotFound
    return Session(owner=known(caller).owner, id=session_id)


def turn_named(number: str) -> int:
    """The number of a turn in a path. Raises TurnNotFound where no turn can have it."""
    if not TURN_NUMBER.fullmatch(number):
        raise TurnNotFound
    return int(number)


def session_header(event: Event) -> str | None:
    """The session that a header names. Raises a Problem where it cannot be one."""
    named = header(event, "x-session-id")
    if named is not None and not SESSION_ID.fullmatch(named):
        raise bad_field("x-session-id", f"x-session-id {SESSION_ID_RULE}")
    return named


def idempotency_key(event: Event) -> str | None:
    """The name that the client gave its request. Raises a Problem where it cannot be one."""
    key = header(event, "idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise bad_field("Idempotency-Key", "Idempotency-Key must be 1 to 255 visible ASCII characters; a UUID is good")
    return key


def body_hash(*asked: Any) -> str:
    """One value for everything that is asked: the route, the target, and what was parsed of the body."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]


def known(caller: Caller) -> Caller:
    """The caller, where it is one that can have sessions. Raises a 401 Problem for one that brought no identity."""
    if caller.source == "new":
        raise unauthorized(
            "The request brings no session token, so its owner is unknown, and has nothing yet. Send the cookie or the "
            f"{TOKEN_HEADER} header that came with an earlier answer; POST /chat or POST /sessions gives one to a new "
            "caller."
        )
    return caller


def _from_validation(error: ValidationError, model: type[BaseModel]) -> Problem:
    """What pydantic found wrong: the first field by name, the first ten of them in `errors`."""
    found = error.errors(include_url=False, include_input=False)
    faults = [_fault(fault, model) for fault in found[:MOST_FAULTS]]
    problem = bad_field(faults[0]["field"], "; ".join(f"{fault['field']} {fault['problem']}" for fault in faults))
    problem.extra = {**problem.extra, "errors": faults}
    return problem


def _fault(fault: Mapping[str, Any], model: type[BaseModel]) -> dict[str, str]:
    name = ".".join(map(str, fault["loc"]))[:LONGEST_NAME] or "body"
    known = {
        "extra_forbidden": f"is not a field of this request; the fields are {' and '.join(model.model_fields)}",
        "missing": "is missing; send a JSON object that has it",
        "string_type": "must be a string",
    }
    return {"field": name, "problem": known.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")}
