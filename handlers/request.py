"""What a request to the chat function asks for: its body and headers, checked, as values."""

import base64
import hashlib
import json
import re
from http import HTTPStatus

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from handlers.conversation import Ask
from handlers.identity import TOKEN_HEADER, Caller, Event, header
from handlers.problems import bad_field, from_validation, unauthorized
from handlers.settings import Settings
from memory.turns import Request, Session

DEFAULT_SESSION = "default"
SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
SESSION_ID_RULE = "must be 1 to 128 characters out of letters, digits, '.', '_' and '-'"


class ChatRequest(BaseModel):
    """The body of POST /chat."""

    model_config = ConfigDict(extra="forbid", strict=True)

    message: str
    session_id: str | None = None

    @field_validator("message")
    @classmethod
    def _says_something(cls, message: str) -> str:
        if not message.strip():
            raise ValueError("is empty; say something")
        return message

    @field_validator("session_id")
    @classmethod
    def _is_a_session_id(cls, session_id: str | None) -> str | None:
        if session_id is not None and not SESSION_ID.fullmatch(session_id):
            raise ValueError(SESSION_ID_RULE)
        return session_id


def read_request(event: Event, caller: Caller, settings: Settings, invocation_id: str) -> Ask:
    """What is asked, in which session, under which request id. Raises a Problem that names the field that is wrong."""
    try:
        request = ChatRequest.model_validate_json(_body(event))
    except ValidationError as error:
        raise from_validation(error) from error
    if len(request.message) > settings.max_message_chars:
        raise bad_field(
            "message",
            f"message has {len(request.message)} characters, and {settings.max_message_chars} are allowed; shorten it",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    named = request.session_id or header(event, "x-session-id")
    if named is not None and not SESSION_ID.fullmatch(named):
        raise bad_field("x-session-id", f"x-session-id {SESSION_ID_RULE}")
    if named is not None and caller.source == "new":
        raise unauthorized(
            f"The request names the session {named!r} and brings no session token, so its owner is unknown, and it "
            f"would be answered from an empty conversation. Send the cookie or the {TOKEN_HEADER} header that came "
            "with an earlier answer; to start as a new caller, leave the session out."
        )
    session = Session(owner=caller.owner, id=named or DEFAULT_SESSION)
    asked = json.dumps(["POST /chat", session.id, request.message])
    return Ask(
        session=session,
        request=Request(
            id=_request_id(event, invocation_id), body_hash=hashlib.sha256(asked.encode()).hexdigest()[:32]
        ),
        message=request.message,
    )


def _body(event: Event) -> bytes:
    """The request's body. Raises a Problem where there is none."""
    body = event.get("body")
    if not isinstance(body, str) or not body:
        raise bad_field("body", 'body is missing; send a JSON object such as {"message": "Hello"}')
    try:
        return base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else body.encode()
    except ValueError as error:
        raise bad_field("body", "body is not text in UTF-8; send a JSON object") from error


def _request_id(event: Event, invocation_id: str) -> str:
    """The client's idempotency key; without one, the id of the invocation.

    Not the id that API Gateway gives the request: `sam local` gives every request the same one.
    """
    key = header(event, "idempotency-key")
    if key is None:
        return invocation_id
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise bad_field("Idempotency-Key", "Idempotency-Key must be 1 to 255 visible ASCII characters; a UUID is good")
    return key
