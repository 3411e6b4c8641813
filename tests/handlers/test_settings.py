"""Settings, and the secrets that they name."""

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from handlers import snapshot
from handlers.settings import Settings, SettingsError

KEY = "a-key-that-is-long-enough-to-sign-with"


@pytest.fixture(autouse=True)
def _as_a_new_process() -> Iterator[None]:
    """Nothing was asked of Secrets Manager yet."""
    yield
    snapshot.forget()


def test_an_empty_environment_gives_the_defaults() -> None:
    """Nothing has to be set for a first run."""
    settings = Settings.from_environment({})
    assert settings.token_limit == 10_000
    assert settings.identity_sources == ("token",)
    assert settings.turn_wait_seconds > 10, "longer than the lease of a dead invocation"


def test_an_empty_variable_counts_as_absent() -> None:
    """CloudFormation sets what was left open to nothing."""
    given = {"AWS_LAMBDA_LOG_STREAM_NAME": "here"}
    left_open = given | {"OPENAI_API_BASE": "", "TOKEN_LIMIT": ""}
    assert Settings.from_environment(left_open) == Settings.from_environment(given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_LIMIT", "many"),
        ("TOKEN_LIMIT", "-1"),
        ("IDENTITY_SOURCES", "cookie"),
        ("IDENTITY_SOURCES", ","),
        ("IDENTITY_SOURCES", "token,jwt"),
        ("TOKEN_DAYS", "0"),
        ("COOKIE_SECURE", "perhaps"),
        ("CORS_HEADERS", "trace parent"),
        ("CORS_HEADERS", "x-a: b"),
        ("CORS_HEADERS", "*"),
        ("BASE_PATH", "api"),
        ("BASE_PATH", "/api/"),
        ("BASE_PATH", "/"),
        ("BASE_PATH", "//api"),
        ("BASE_PATH", "/a%20b"),
        ("BASE_PATH", "https://www.example.com/api"),
        ("BASE_PATH", "/sessions"),
        ("BASE_PATH", "/sessions/api"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: str) -> None:
    """The error says which one it is."""
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment({name: value})


def test_a_window_must_leave_room_in_the_model() -> None:
    """A token limit as large as the model's context is refused at the start, and not by the model in a long talk."""
    with pytest.raises(SettingsError, match="CONTEXT_WINDOW"):
        Settings.from_environment({"TOKEN_LIMIT": "8000", "CONTEXT_WINDOW": "8000"})


def test_the_instance_is_the_log_stream_of_the_function() -> None:
    """A turn bears the name under which its logs are found."""
    assert (
        Settings.from_environment({"AWS_LAMBDA_LOG_STREAM_NAME": "2026/11/22/[1]abc"}).instance == "2026/11/22/[1]abc"
    )


def test_secrets_come_from_secrets_manager() -> None:
    """Where the environment names a secret, its value is read there."""
    with mock_aws():
        arn = boto3.client("secretsmanager").create_secret(Name="signing", SecretString=KEY)["ARN"]
        assert Settings(signing_secret_arn=arn).signing_keys() == [KEY]


@pytest.mark.parametrize(
    "secret",
    ["changeme", KEY[:31], f"{KEY} short", json.dumps({"signing": KEY}), json.dumps([KEY]), json.dumps(KEY)],
)
def test_a_weak_signing_secret_is_refused(secret: str) -> None:
    """One that could be guessed, and the pieces of a JSON secret, sign nothing. The error names the fix."""
    with pytest.raises(SettingsError, match=r"SIGNING_SECRET.*openssl rand"):
        Settings(signing_secret=secret).signing_keys()


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ({}, 30),
        ({"token_days": 7}, 7),
        ({"retention_days": 90}, 90),
        ({"retention_days": 0}, None),
        ({"identity_sources": "jwt"}, None),
        ({"identity_sources": "jwt,token"}, None),
    ],
)
def test_anonymous_conversations_go_with_the_token_that_reaches_them(given: dict[str, Any], days: int | None) -> None:
    """By default; a setting decides otherwise, and conversations of people who can come back are kept."""
    assert Settings(**given).retention == (timedelta(days=days) if days else None)


def test_a_secret_that_is_nowhere_is_named() -> None:
    """Neither a value nor a place for it: the error names the setting."""
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        Settings().model_key()


def test_a_secret_that_cannot_be_read_is_named() -> None:
    """Secrets Manager's refusal is an error with the name of the setting."""
    with mock_aws(), pytest.raises(SettingsError, match="SIGNING_SECRET"):
        Settings(signing_secret_arn="missing").signing_keys()


@pytest.mark.timeout(30)  # boto3's own patience is longer than an invocation
def test_a_secrets_manager_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is answered before the invocation ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SettingsError, match="SIGNING_SECRET"):
            Settings(signing_secret_arn="signing").signing_keys()
