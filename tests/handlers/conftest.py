"""The chat function as API Gateway calls it: real events, a real engine, a real model server over HTTP."""

import io
import json
import logging
import urllib.request
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.llms.openai import OpenAI

from handlers import chat, front, model, report, sessions, snapshot
from handlers.settings import Settings
from local import demo_model
from tests.conftest import TABLE, Store, event_named, store_at


@pytest.fixture(scope="session")
def demo() -> Iterator[str]:
    """Endpoint of the demo model."""
    with demo_model.start() as server:
        yield server.endpoint


@pytest.fixture(scope="session", autouse=True)
def _event_loop_of_the_process() -> Iterator[None]:
    """The loop that the handler keeps lives as long as the process, here as long as the tests."""
    yield
    front.event_loop().close()


@dataclass(frozen=True, kw_only=True)
class Context:
    """What Lambda hands over beside the event."""

    function_name: str = "chat"
    memory_limit_in_mb: int = 1024
    invoked_function_arn: str = "arn:aws:lambda:us-east-1:123456789012:function:chat"
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    seconds: float = 28

    def get_remaining_time_in_millis(self) -> int:
        return round(self.seconds * 1000)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response, taken apart."""

    status: int
    body: Any
    """What was JSON, parsed; else the text."""
    headers: dict[str, str]
    cookies: list[str]
    form: str
    """Under which name the result has its headers."""
    line: dict[str, Any]
    """The log line of the request."""
    other_lines: list[dict[str, Any]]

    @property
    def token(self) -> str | None:
        return self.headers.get("x-session-token")


class Service:
    """The chat function of one deployment."""

    def __init__(self, store: Store, model_endpoint: str, log: io.StringIO) -> None:
        self.store, self._model, self._log = store, model_endpoint, log

    def result_of(self, event: dict[str, Any], *, seconds: float = 28) -> dict[str, Any]:
        """Hand an event to the handler that it is for, and return what that returns."""
        self._log.seek(0)
        self._log.truncate()
        path = event.get("rawPath", event.get("path", "/chat"))
        function = chat if path.endswith(("/chat", "/regenerate")) else sessions
        result: dict[str, Any] = function.handler(event, Context(seconds=seconds))
        return result

    def invoke(self, event: dict[str, Any], *, seconds: float = 28) -> Reply:
        """Hand an event to the handler."""
        result = self.result_of(event, seconds=seconds)
        lines = [json.loads(line) for line in self.logged()]
        turns = [line for line in lines if line["message"] in ("turn", "request")]
        assert len(turns) <= 1
        several = {name.lower(): values for name, values in result.get("multiValueHeaders", {}).items()}
        single = {name.lower(): value for name, value in result.get("headers", {}).items()}
        alone = [single.pop("set-cookie")] if "set-cookie" in single else []
        cookies = result.get("cookies", []) + several.pop("set-cookie", []) + alone
        text, kind = result.get("body") or "", single.get("content-type", "") or several.get("content-type", [""])[0]
        return Reply(
            status=result["statusCode"],
            body=json.loads(text) if "json" in kind and "jsonl" not in kind else text,
            headers=single | {name: values[0] for name, values in several.items()},
            cookies=cookies,
            form="multiValueHeaders" if "multiValueHeaders" in result else "headers",
            line=turns[0] if turns else {},
            other_lines=[line for line in lines if line not in turns],
        )

    def say(
        self,
        message: Any,
        *,
        token: str | None = None,
        session: Any = None,
        user: str | None = None,
        seconds: float = 28,
        **headers: Any,
    ) -> Reply:
        """POST /chat with a message."""
        body = {"message": message} | ({"session_id": session} if session is not None else {})
        return self.send("POST", "/chat", body, token=token, user=user, seconds=seconds, **headers)

    @staticmethod
    def run(work: Coroutine[Any, Any, Any]) -> Any:
        """What something comes to that is done beside the handlers."""
        return front.event_loop().run(work)

    def post(
        self, body: str | None, *, token: str | None = None, seconds: float = 28, base64: bool = False, **headers: str
    ) -> Reply:
        """POST /chat with any body."""
        event = event_named("chat_first_request") | {"isBase64Encoded": base64}
        event["headers"] |= {name.replace("_", "-"): value for name, value in headers.items()}
        event["body"] = body
        if token:
            event["headers"]["x-session-token"] = token
        return self.invoke(event, seconds=seconds)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        user: str | None = None,
        issuer: str = "https://login.example.com/",
        query: dict[str, str] | None = None,
        seconds: float = 28,
        **headers: str,
    ) -> Reply:
        """Any request; `user` is whom a JWT authorizer let in."""
        event = event_named("chat_first_request") | {"rawPath": path, "routeKey": f"{method} {path}"}
        event["requestContext"]["http"] |= {"method": method, "path": path}
        event["headers"] |= {name.replace("_", "-"): value for name, value in headers.items()}
        event["body"] = body if isinstance(body, str | None) else json.dumps(body)
        if token:
            event["headers"]["x-session-token"] = token
        if user is not None:
            claims = {"iss": issuer, "sub": user}
            event["requestContext"]["authorizer"] = {"jwt": {"claims": claims, "scopes": None}}
        if query:
            event["queryStringParameters"] = query
        return self.invoke(event, seconds=seconds)

    def logged(self) -> list[str]:
        """The lines that were logged since the last event was handed over."""
        return self._log.getvalue().splitlines()

    def model_received(self) -> list[list[dict[str, Any]]]:
        """The messages of each request that reached the model since the test began."""
        with urllib.request.urlopen(f"{self._model}/requests") as response:  # noqa: S310 - loopback
            received: list[list[dict[str, Any]]] = json.loads(response.read())
            return received


@contextmanager
def deployed(engine: str, model_endpoint: str, patch: pytest.MonkeyPatch, **settings: str) -> Iterator[Service]:
    """The functions on an engine and a model, in the anonymous mode, with nothing in their memory."""
    environment = {
        "TABLE_NAME": TABLE,
        "DYNAMODB_ENDPOINT": engine,
        "OPENAI_API_BASE": f"{model_endpoint}/v1",
        "OPENAI_API_KEY": "none",
        "OPENAI_MODEL": "demo",
        "MODEL_RETRIES": "0",
        "SIGNING_SECRET": "a-secret-of-the-tests-that-is-long-enough",
    }
    configure(patch, **environment | settings)
    captured = io.StringIO()
    handler = logging.StreamHandler(captured)
    handler.setFormatter(report.logger.registered_formatter)
    report.logger.addHandler(handler)
    models: list[OpenAI] = []

    def chat_model(settings: Settings) -> OpenAI:
        models.append(model.chat_model(settings))
        return models[-1]

    patch.setattr(chat, "chat_model", chat_model)
    yield Service(store_at(engine), model_endpoint, captured)
    report.logger.handlers.remove(handler)
    snapshot.forget()
    for used in models:
        front.event_loop().run(used._get_aclient().close())


@pytest.fixture
def service(dynoxide: str, demo: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The functions on dynoxide and the demo model."""
    urllib.request.urlopen(urllib.request.Request(f"{demo}/requests", method="DELETE")).close()  # noqa: S310 - loopback
    with deployed(dynoxide, demo, monkeypatch) as deployment:
        yield deployment


def configure(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Change settings as a deployment would, by the environment."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    snapshot.forget()
