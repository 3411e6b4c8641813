"""Who is asking: the owner of the sessions, from what an API Gateway event proves. Fails closed.

An owner is stable: claims of an authorizer, or a session token that this service signed and handed out before. Nothing
is ever keyed by something random per request, and an invalid token never becomes a new identity.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.shared.cookies import Cookie, SameSite
from itsdangerous import BadSignature, SignatureExpired, TimestampSigner, URLSafeTimedSerializer

from handlers.event import (
    Event,
    authorizer_context,
    bearer,
    cognito_claims,
    cookies,
    header,
    jwt_claims,
    pool_identity,
    signer_arn,
)
from handlers.origin import is_foreign
from handlers.problems import foreign_origin, unauthorized
from handlers.settings import Settings
from memory.turns import utc_now

TOKEN_HEADER = "x-session-token"  # noqa: S105 - the name of a header
USER_HEADER = "x-user-id"
CLOCK_SKEW = timedelta(minutes=10)
_SALT = "rehydrate.session-token"
_DATED_ID = re.compile(r"t([0-9a-f]{8,10})-[0-9a-f]{32}")

Parts = tuple[Any, ...] | None
"""What makes an owner of one source; None where the request does not have that source."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, where that was learnt, and the token to give them where they have none or an old one."""

    owner: str
    source: Literal["new", "token", "jwt", "cognito", "lambda", "iam", "header"]
    token: str | None = None


class InvalidToken(Exception):
    """A session token that is invalid; `reason` is safe to tell anybody."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SessionTokens:
    """Signed tokens that carry an anonymous caller's id and the time they were made.

    The first of the `keys` signs, and all of them verify, so that a key can be replaced while tokens are out. A token
    lives for `life`, and its renewals for `longest` after the caller was new.
    """

    def __init__(
        self,
        keys: Sequence[str],
        *,
        life: timedelta,
        longest: timedelta = timedelta.max,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._life, self._longest, self._clock = life, longest, clock
        # A token is dated back a little, so that a host whose clock is behind does not take it for one of the future.
        self._minting = _serializer(keys, lambda: clock() - min(CLOCK_SKEW, life / 10))
        self._reading = _serializer(keys, clock)

    def new_caller(self) -> str:
        """The id of a new caller. It has the time in it, so that each renewal knows how old the caller is."""
        return f"t{int(self._clock().timestamp()):x}-{secrets.token_hex(16)}"

    def mint(self, caller_id: str) -> str:
        """A token that is valid from now on."""
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
        dated = _DATED_ID.fullmatch(str(caller_id))  # earlier releases made ids without a date
        if dated and self._clock() - datetime.fromtimestamp(int(dated[1], 16), UTC) > self._longest:
            raise InvalidToken("it was renewed for as long as a token may be")
        return str(caller_id), self._clock() - signed_at > self._life / 2


def identify(event: Event, settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> Caller:
    """The caller of an API Gateway or function URL event, by the first identity source that the request has.

    Raises a 401 Problem where it has none, or where what it has names nobody: that is never a new caller.
    """
    for source in settings.identity_sources:
        if source == "token":
            return _token_caller(event, settings, clock)
        parts = _SOURCES[source](event, settings.identity_claim)
        if parts is None:
            continue
        if all(isinstance(part, str) and part for part in parts):
            return Caller(owner=_owner(source, *parts), source=source)
        break
    raise unauthorized(
        f"This service knows its callers by {' or '.join(settings.identity_sources)} alone, and the request does not "
        f"say who is asking. {_HOW_TO[settings.identity_sources[0]]}"
    )


def with_token(response: Response[str], caller: Caller, settings: Settings) -> Response[str]:
    """The response, and with it the caller's token where there is a new one: as a cookie and in a header."""
    if caller.token:
        response.headers[TOKEN_HEADER] = caller.token
        response.cookies.append(_cookie(caller.token, round(settings.token_days * 86_400), settings))
    return response


def without_cookie(response: Response[str], settings: Settings) -> Response[str]:
    """The response, which tells the client to forget an invalid cookie."""
    response.cookies.append(_cookie("", 0, settings))
    return response


def _token_caller(event: Event, settings: Settings, clock: Callable[[], datetime]) -> Caller:
    tokens = _tokens(settings, clock)
    given, cookie = header(event, TOKEN_HEADER), cookies(event).get(_cookie_name(settings))
    if given is None:
        given = bearer(event)
    token = cookie if given is None else given
    if token is not None and given is None and is_foreign(event, settings.cors_origins):
        raise foreign_origin()
    if token is None:
        return new_caller(settings, clock=clock)
    try:
        caller_id, ageing = tokens.read(token)
    except InvalidToken as error:
        raise unauthorized(
            f"The session token is invalid: {error.reason}. Its conversations cannot be reached with it. To start as a "
            f"new caller, send the request without it ({TOKEN_HEADER} or Authorization header, cookie).",
            clear_cookie=given is None,  # a bad header says nothing about the cookie
        ) from error
    renewed = tokens.mint(caller_id) if ageing else None
    return Caller(owner=_owner("anonymous", caller_id), source="token", token=renewed)


def new_caller(settings: Settings, *, clock: Callable[[], datetime] = utc_now) -> Caller:
    """An anonymous caller that nobody knows yet, with a token. Raises SettingsError."""
    tokens = _tokens(settings, clock)
    caller_id = tokens.new_caller()
    return Caller(owner=_owner("anonymous", caller_id), source="new", token=tokens.mint(caller_id))


def owner_hash(owner: str, settings: Settings) -> str:
    """Sixteen hex digits for an owner, for logs and providers: the same each time, and no way back to the owner.

    Salted with the signing secret if the service signs tokens. If not, an owner that can be guessed can be recognised.
    """
    salt = settings.signing_keys()[0] if "token" in settings.identity_sources else ""
    return hmac.new(salt.encode(), owner.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def _tokens(settings: Settings, clock: Callable[[], datetime]) -> SessionTokens:
    life, longest = timedelta(days=settings.token_days), timedelta(days=settings.token_max_days)
    return SessionTokens(settings.signing_keys(), life=life, longest=longest, clock=clock)


def _jwt(event: Event, claim: str) -> Parts:
    """HTTP API with a JWT authorizer."""
    claims = jwt_claims(event)
    return None if claims is None else _identifying(claims, claim)


def _cognito(event: Event, claim: str) -> Parts:
    """REST API with a Cognito user pool."""
    claims = cognito_claims(event)
    return None if claims is None else _identifying(claims, claim)


def _lambda(event: Event, claim: str) -> Parts:
    """A Lambda authorizer: the claim in its context. A principal is the same for everybody in many authorizers."""
    context = authorizer_context(event)
    return None if context is None else (context.get(claim),)


def _iam(event: Event, _: str) -> Parts:
    """A signed request: the identity in a Cognito identity pool, whose users share one ARN, else the signer's ARN."""
    if (identity := pool_identity(event)) is not None:
        return "cognito", identity
    arn = signer_arn(event)
    return None if arn is None else (arn,)


def _trusted_header(event: Event, _: str) -> Parts:
    """The client's word, for private networks where something in front of the service sets it."""
    if (user := header(event, USER_HEADER)) is not None:
        return "user", user
    session = header(event, "x-session-id")
    return None if session is None else ("session", session)


def _identifying(claims: Mapping[str, Any], claim: str) -> tuple[Any, ...]:
    """The issuer, where the claims name one, and the claim that identifies."""
    return (claims.get("iss"), claims.get(claim)) if "iss" in claims else (claims.get(claim),)


_SOURCES: Mapping[str, Callable[[Event, str], Parts]] = {
    "jwt": _jwt,
    "cognito": _cognito,
    "lambda": _lambda,
    "iam": _iam,
    "header": _trusted_header,
}
_HOW_TO: Mapping[str, str] = {
    "jwt": "Send the JWT that the API asks for in the Authorization header.",
    "cognito": "Send the user pool's token in the Authorization header.",
    "lambda": "Send the credentials that the API's authorizer asks for.",
    "iam": "Sign the request with AWS credentials (SigV4).",
    "header": f"Send the {USER_HEADER} header.",
}


def _owner(source: str, *parts: str) -> str:
    """The source first, and every part encoded: no caller of one source can be taken for one of another."""
    return ":".join([source, *(quote(part, safe="", errors="surrogatepass") for part in parts)])


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


def _serializer(keys: Sequence[str], clock: Callable[[], datetime]) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        list(reversed(keys)),  # the last one signs
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
