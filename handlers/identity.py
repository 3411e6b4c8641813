"""Who is asking: the owner of the sessions, from what an API Gateway event proves. Fails closed.

An owner is stable: claims of an authorizer, or a session token that this service signed and handed out before. Nothing
is ever keyed by something random per request, and a token that does not hold never becomes a new identity.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.shared.cookies import Cookie, SameSite
from itsdangerous import BadSignature, SignatureExpired, TimestampSigner, URLSafeTimedSerializer

from handlers.problems import unauthorized
from handlers.settings import Settings
from memory.turns import utc_now

TOKEN_HEADER = "x-session-token"  # noqa: S105 - the name of a header
CLOCK_SKEW = timedelta(seconds=30)
_SALT = "rehydrate.session-token"

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, where that was learnt, and the token to give them where they have none or an old one."""

    owner: str
    source: Literal["new", "token", "jwt", "lambda", "iam"]
    token: str | None = None


class InvalidToken(Exception):
    """A session token that does not hold; `reason` is safe to tell anybody."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SessionTokens:
    """Signed tokens that carry an anonymous caller's id and the time they were made."""

    def __init__(self, key: str, *, life: timedelta, clock: Callable[[], datetime] = utc_now) -> None:
        self._life, self._clock = life, clock
        # A token is dated back a little, so that a host whose clock is behind does not take it for one of the future.
        self._minting = _serializer(key, lambda: clock() - CLOCK_SKEW)
        self._reading = _serializer(key, clock)

    def mint(self, caller_id: str) -> str:
        """A token that is good from now on."""
        return self._minting.dumps(caller_id)

    def read(self, token: str) -> tuple[str, bool]:
        """The caller's id, and whether half of the token's life is over. Raises InvalidToken."""
        try:
            caller_id, signed_at = self._reading.loads(
                token, max_age=round(self._life.total_seconds()), return_timestamp=True
            )
        except SignatureExpired as error:
            raise InvalidToken("it has expired") from error
        except (BadSignature, UnicodeEncodeError) as error:
            raise InvalidToken("this service did not make it") from error
        return str(caller_id), self._clock() - signed_at > self._life / 2


def identify(event: Event, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> Caller:
    """The caller of an HTTP API event, by the first identity source that the request has. Raises a 401 Problem."""
    for source in settings.identity_sources:
        if source == "token":
            return _token_caller(event, settings, clock)
        context = mapping(event, "requestContext", "authorizer", source)
        parts = _CLAIMS[source](context)
        if all(isinstance(part, str) and part for part in parts):
            return Caller(owner=_owner(source, *parts), source=source)
        if context:
            break  # claims without an owner: not somebody whom a later source may take for a new caller
    raise unauthorized(
        f"This service knows its callers by {' or '.join(settings.identity_sources)} alone, and the request came "
        "without. Send it through the API's authorizer, with the credentials that it asks for."
    )


def with_token(response: Response[str], caller: Caller, settings: Settings) -> Response[str]:
    """The response, and with it the caller's token where there is a new one: as a cookie and in a header."""
    if caller.token:
        response.headers[TOKEN_HEADER] = caller.token
        response.cookies.append(_cookie(caller.token, round(settings.token_days * 86_400), settings))
    return response


def without_cookie(response: Response[str], settings: Settings) -> Response[str]:
    """The response, told to forget a cookie that does not hold."""
    response.cookies.append(_cookie("", 0, settings))
    return response


def _token_caller(event: Event, settings: Settings, clock: Callable[[], datetime]) -> Caller:
    tokens = SessionTokens(settings.signing_key(), life=timedelta(days=settings.token_days), clock=clock)
    given, cookie = header(event, TOKEN_HEADER), _cookies(event).get(_cookie_name(settings))
    token = cookie if given is None else given
    if token is None:
        caller_id = secrets.token_hex(16)
        return Caller(owner=_owner("anonymous", caller_id), source="new", token=tokens.mint(caller_id))
    try:
        caller_id, ageing = tokens.read(token)
    except InvalidToken as error:
        raise unauthorized(
            f"The session token does not hold: {error.reason}. Its conversations cannot be reached with it; send the "
            f"request without the {TOKEN_HEADER} header and the cookie to start as a new caller.",
            clear_cookie=given is None,  # a bad header says nothing about the cookie
        ) from error
    renewed = tokens.mint(caller_id) if ageing else None
    return Caller(owner=_owner("anonymous", caller_id), source="token", token=renewed)


def _jwt(authorizer: Mapping[str, Any]) -> tuple[Any, ...]:
    claims = mapping(authorizer, "claims")
    return (claims.get("iss"), claims.get("sub")) if "iss" in claims else (claims.get("sub"),)


def _lambda(authorizer: Mapping[str, Any]) -> tuple[Any, ...]:
    return (authorizer.get("sub") or authorizer.get("principalId"),)


def _iam(authorizer: Mapping[str, Any]) -> tuple[Any, ...]:
    return (authorizer.get("userArn"),)


_CLAIMS: Mapping[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]] = {"jwt": _jwt, "lambda": _lambda, "iam": _iam}


def _owner(source: str, *parts: str) -> str:
    """The source first, and every part encoded: no caller of one source can be taken for one of another."""
    return ":".join([source, *(quote(part, safe="", errors="surrogatepass") for part in parts)])


def mapping(value: Any, *names: str) -> Mapping[str, Any]:
    """What stands under the names, if it is a mapping; else an empty one."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def header(event: Event, name: str) -> str | None:
    """A header's value, whatever the case of its name."""
    return next((value for key, value in mapping(event, "headers").items() if key.lower() == name), None)


def _cookies(event: Event) -> dict[str, str]:
    """The cookies by name; of several with one name the first."""
    cookies: dict[str, str] = {}
    for pair in event.get("cookies") or []:
        name, _, value = pair.partition("=")
        cookies.setdefault(name.strip(), value.strip())
    return cookies


def _cookie_name(settings: Settings) -> str:
    return "__Host-rehydrate" if settings.cookie_secure else "rehydrate"


def _cookie(value: str, max_age: int, settings: Settings) -> Cookie:
    return Cookie(
        _cookie_name(settings),
        value,
        path="/",
        max_age=max_age,
        http_only=True,
        secure=settings.cookie_secure,
        same_site=SameSite.LAX_MODE,
    )


def _serializer(key: str, clock: Callable[[], datetime]) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        key,
        salt=_SALT,
        signer=_ClockedSigner,
        signer_kwargs={"clock": clock, "key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


class _ClockedSigner(TimestampSigner):
    """A signer that takes the time from a clock it was given."""

    def __init__(self, *args: Any, clock: Callable[[], datetime], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock().timestamp())
