"""Settings of the functions: the only reader of the environment."""

import os
import re
import secrets
import socket
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Annotated, Literal, Self

from aws_lambda_powertools.utilities import parameters
from botocore.config import Config
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

IdentitySource = Literal["jwt", "cognito", "lambda", "iam", "token", "header"]

COMMIT_SECONDS = 6.0
"""Kept back of an invocation for the commit, so that an answer that was paid for is stored."""
AGENT_SECONDS = 10.0
"""What an agent must have at the least; with less, a turn is not begun."""
SECRET_SECONDS = 300
"""How long a secret that was fetched is kept before it is fetched anew."""

SHORTEST_KEY = 32
"""Characters of a key that signs session tokens, at the least."""
ORIGIN = re.compile(r"\*|https?://[^\s/,*]+")
HEADER = re.compile(r"[A-Za-z0-9_-]+")
BASE_PATH = re.compile(r"(/[^\s/?#%]+)+")


class SettingsError(Exception):
    """A setting is missing or makes no sense; the text names it and says what to do."""


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseModel):
    """One field for each setting; in the environment a field has its name in capitals."""

    model_config = ConfigDict(frozen=True)

    table_name: str = Field(default="rehydrate", min_length=3)
    dynamodb_endpoint: str | None = None
    """URL of another DynamoDB engine; None for the region's own."""

    openai_model: str = "gpt-4.1-mini"
    openai_api_base: str | None = None
    """URL of any OpenAI-compatible server; None for OpenAI's own."""
    openai_api_key: str | None = None
    openai_api_key_secret: str | None = None
    """Name or ARN of the secret in Secrets Manager that holds the key."""
    context_window: int = Field(default=128_000, gt=0)
    """Tokens that the model takes, prompt and answer together."""
    model_timeout_seconds: float = Field(default=20, gt=0)
    """For one request to the model."""
    model_retries: int = Field(default=2, ge=0)
    """How often a request to the model is sent again, after a pause, when it failed in a way that may pass."""

    model_streaming: bool = True
    """Whether answers are streamed. False for servers that cannot."""
    model_temperature: float | None = Field(default=None, ge=0)
    """Sent to the model if it is set. Reasoning models refuse it."""
    model_reasoning_effort: str | None = None
    """Sent to the model if it is set: `low`, `medium`, `high`, or what else the model knows."""
    max_answer_tokens: int | None = Field(default=None, gt=0)
    """The longest answer, thinking included, in tokens; the model's own limit if it is not set."""
    model_user_parameter: Literal["safety_identifier", "user"] | None = None
    """The parameter in which the model's provider is told a hash of the owner, so that it can act on abuse by one."""

    token_limit: int = Field(default=10_000, ge=0)
    """Tokens of earlier turns that the model is shown."""
    max_message_chars: int = Field(default=32_000, gt=0)
    max_message_tokens: int = Field(default=16_000, gt=0)
    """The longest message in tokens: some characters are several. Never more than the model's context leaves."""
    max_tool_result_chars: int = Field(default=100_000, ge=100)
    """Characters of a tool's result that the model is shown and that are stored; the middle of a longer one is left
    out."""
    turn_wait_seconds: float = Field(default=12, ge=0)
    """How long a request waits for another one of its session; longer than the 10 s of a dead invocation's lease."""

    max_waiting: int = Field(default=2, ge=0)
    """Requests that may wait for one session at a time, each of which holds an instance; others get 409 at once."""
    owner_turns_per_hour: int = Field(default=0, ge=0)
    """Turns that an owner may take in an hour of the clock; 0 is no limit, and saves a write unit a turn."""

    max_sessions: int = Field(default=1_000, ge=0)
    """Sessions that an owner may have; 0 is no limit, and saves a small read for each new one."""
    fork_max_turns: int = Field(default=200, gt=0)
    """Turns that a fork copies, the newest ones up to the turn where it branches off."""
    empty_session_days: int = Field(default=7, ge=0, le=36_500)
    """Days after which a session in which nothing was ever said is gone; 0 keeps those."""

    identity_sources: Annotated[tuple[IdentitySource, ...], BeforeValidator(_listed)] = Field(
        default=("token",), min_length=1
    )
    """Where the owner of a session comes from; the first source that a request has decides, `token` last."""
    identity_claim: str = Field(default="sub", min_length=1)
    """Which of an authorizer's claims is the owner."""
    signing_secret: str | None = None
    """Keys that session tokens are signed with, separated by spaces or line ends: the first signs, all verify."""
    signing_secret_arn: str | None = None
    """Name or ARN of the secret in Secrets Manager that holds those keys."""
    origin_secret: str | None = None
    """Secrets that the proxy in front of the API sends with each request, separated by spaces: any of them will do."""
    origin_secret_arn: str | None = None
    """Name or ARN of the secret in Secrets Manager that holds those secrets."""
    token_days: float = Field(default=30, gt=0)
    """Life of a session token; it is renewed at half of it."""
    token_max_days: float = Field(default=365, gt=0)
    """How long an anonymous caller's token is renewed; then the caller starts anew."""
    cookie_secure: bool = True
    """Send the cookie over HTTPS alone, under a `__Host-` name. False for local runs only."""

    retention_days: int | None = Field(default=None, ge=0, le=36_500)
    """Days after which a turn is gone; 0 keeps turns until they are deleted.

    By default anonymous conversations go when the token that reaches them has expired, and others are kept.
    """
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Origins of the web pages that may call the service from a browser."""
    cors_headers: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """Headers that those pages may send beside the ones that the API reads, such as traceparent."""
    base_path: str = ""
    """A prefix of the API's paths that no API Gateway knows of, such as the /api of a CloudFront distribution."""

    instance: str = "local"
    """Name of this process in logs and turns."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The settings in the environment; an empty variable counts as absent. Raises SettingsError."""
        given = {name: environment.get(name.upper()) for name in cls.model_fields}
        # Functions with SnapStart are told no log stream, and all instances of a snapshot have one process id.
        stream = environment.get("AWS_LAMBDA_LOG_STREAM_NAME") or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        try:
            return cls.model_validate({"instance": stream} | {name: value for name, value in given.items() if value})
        except ValidationError as error:
            faults = (f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}" for e in error.errors())
            raise SettingsError("; ".join(faults)) from error

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [origin for origin in origins if not ORIGIN.fullmatch(origin)]:
            raise ValueError(f"{wrong[0]!r} is no origin; one is https://www.example.com, and * is all of them")
        return origins

    @field_validator("cors_headers")
    @classmethod
    def _are_header_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in names if not HEADER.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is not the name of a header; one is traceparent")
        return names

    @field_validator("base_path")
    @classmethod
    def _is_a_base_path(cls, base_path: str) -> str:
        if base_path and not BASE_PATH.fullmatch(base_path):
            raise ValueError(f"{base_path!r} is not a path such as /api: it begins with a slash, and ends without one")
        # DELETE /sessions/sessions would be two things: to delete one session, and behind the prefix, all of them.
        if base_path.split("/")[1:2] == ["sessions"]:
            raise ValueError("it cannot begin with /sessions, since paths of the API do; choose another prefix")
        return base_path

    @property
    def max_body_bytes(self) -> int:
        """What a request's body may have: the longest message in JSON's longest spelling, and room for the rest."""
        return 12 * self.max_message_chars + 4096

    @property
    def retention(self) -> timedelta | None:
        if self.retention_days is None and self.identity_sources == ("token",):
            return timedelta(days=self.token_days)
        return timedelta(days=self.retention_days) if self.retention_days else None

    @property
    def empty_retention(self) -> timedelta | None:
        return timedelta(days=self.empty_session_days) if self.empty_session_days else None

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        answer = self.max_answer_tokens or 0
        if self.token_limit + answer >= self.context_window:
            raise ValueError(
                f"TOKEN_LIMIT ({self.token_limit}) and MAX_ANSWER_TOKENS ({answer}) must stay below CONTEXT_WINDOW "
                f"({self.context_window}) together, which has to hold the prompt and the new message as well"
            )
        return self

    @model_validator(mode="after")
    def _tokens_come_last(self) -> Self:
        if "token" in self.identity_sources[:-1]:
            raise ValueError(
                "IDENTITY_SOURCES must name token last: a request without a token becomes a new caller, and the "
                "sources after it would never be asked"
            )
        return self

    @property
    def message_tokens(self) -> int:
        """The longest message that is taken, in tokens."""
        left = self.context_window - self.token_limit - (self.max_answer_tokens or 0)
        return min(self.max_message_tokens, left)

    def model_key(self) -> str:
        """The key for the model's server, from the environment or Secrets Manager. Raises SettingsError."""
        return _secret(self.openai_api_key, self.openai_api_key_secret, "OPENAI_API_KEY")

    def signing_keys(self) -> list[str]:
        """The keys that session tokens are signed with; the first signs, all verify. Raises SettingsError."""
        secret = _secret(self.signing_secret, self.signing_secret_arn, "SIGNING_SECRET").strip()
        keys = secret.split()
        if secret[:1] in ("{", "[", '"') or any(len(key) < SHORTEST_KEY for key in keys):
            raise SettingsError(
                f"SIGNING_SECRET must be plain text, and each key in it must have {SHORTEST_KEY} characters or more. "
                "`openssl rand -hex 32` makes one. A JSON secret does not work: store the key itself."
            )
        return keys

    def origin_secrets(self) -> list[str]:
        """What the proxy in front of the API may send; nothing where none is set up. Raises SettingsError."""
        if not self.origin_secret and not self.origin_secret_arn:
            return []
        return _secret(self.origin_secret, self.origin_secret_arn, "ORIGIN_SECRET").split()


@cache
def secrets_provider() -> parameters.SecretsProvider:
    """Secrets Manager, as this process asks it: two attempts that end soon, as those at the table do."""
    soon = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 2, "mode": "standard"})
    return parameters.SecretsProvider(boto_config=soon)


def _secret(value: str | None, name: str | None, setting: str) -> str:
    if value:
        return value
    if not name:
        raise SettingsError(f"set {setting}, or name a secret in Secrets Manager that holds it")
    try:
        secret = str(secrets_provider().get(name, max_age=SECRET_SECONDS)).strip()
    except parameters.GetParameterError as error:
        raise SettingsError(f"the secret for {setting} could not be read from Secrets Manager") from error
    if not secret:
        raise SettingsError(f"the secret for {setting} is empty")
    return secret
