"""The engines that tests run on, and the few ways in which all of them speak to a turn log."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from local import engine
from memory import codec
from memory.dynamodb import DynamoDBTurnLog
from memory.sessions import DynamoDBSessions
from memory.table import connect, create_table
from memory.turns import Request, Session, Turn, Window, take_turn, utc_now

TABLE = "rehydrate"
EVENT_FILES = sorted((Path(__file__).parent.parent / "events").glob("*.json"))


@pytest.fixture(scope="session", autouse=True)
def _no_account() -> Iterator[None]:
    """No test reaches an account: the credentials are made up, and so is the region."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "OPENAI_API_BASE", "DYNAMODB_ENDPOINT"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


def require(missing: str | None) -> None:
    """Skip where this machine lacks something, and say what to install; on CI nothing may be lacking."""
    if missing and os.environ.get("CI"):
        pytest.fail(f"CI must have everything: {missing}")
    if missing:
        pytest.skip(missing)


@pytest.fixture(scope="session")
def dynoxide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of a dynoxide on a file."""
    require(engine.missing_dynoxide())
    running = engine.start_dynoxide(tmp_path_factory.mktemp("dynoxide") / "table.sqlite")
    yield running.endpoint
    running.stop()


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[str]:
    """Endpoint of a DynamoDB Local in memory."""
    require(engine.missing_dynamodb_local())
    running = engine.start_dynamodb_local(None)
    yield running.endpoint
    running.stop()


@dataclass(frozen=True, kw_only=True)
class Store:
    """A table on some engine, and an owner that nobody else uses in it."""

    client: Any
    owner: str

    def log(self, *, kind: type[DynamoDBTurnLog] = DynamoDBTurnLog, **options: Any) -> DynamoDBTurnLog:
        """A log of its own, as every invocation has."""
        return kind(options.pop("client", self.client), TABLE, **options)

    def sessions(self, **options: Any) -> DynamoDBSessions:
        """The sessions of the table, as an invocation has them."""
        return DynamoDBSessions(options.pop("client", self.client), TABLE, **options)

    async def listed(self) -> list[str]:
        """Ids of the owner's sessions, as the index lists them."""
        return [session.id for session in await self.sessions().listed(self.owner, limit=100)]

    def session(self, name: str = "talk") -> Session:
        return Session(owner=self.owner, id=name)


def store_at(endpoint: str | None) -> Store:
    client = connect(endpoint)
    create_table(client, TABLE)
    return Store(client=client, owner=uuid.uuid4().hex)


@pytest.fixture
def moto_store() -> Iterator[Store]:
    with mock_aws():
        yield store_at(None)


@pytest.fixture(params=["moto", "dynoxide", "dynamodb_local"])
def store(request: pytest.FixtureRequest) -> Store:
    """A table on each engine in turn, for properties that all of them can show."""
    if request.param == "moto":
        found: Store = request.getfixturevalue("moto_store")
        return found
    return store_at(request.getfixturevalue(request.param))


@pytest.fixture(params=["dynoxide", "dynamodb_local"])
def real_store(request: pytest.FixtureRequest) -> Store:
    """A table on each real engine: for races, capacity and sizes, where moto looks away."""
    return store_at(request.getfixturevalue(request.param))


def text_message(role: str, text: str) -> dict[str, Any]:
    """A message as LlamaIndex dumps it."""
    return {"role": role, "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": text}]}


def exchange(question: str, answer: str) -> list[dict[str, Any]]:
    """The messages of a plain turn."""
    return [text_message("user", question), text_message("assistant", answer)]


async def say(
    log: DynamoDBTurnLog,
    session: Session,
    text: str,
    *,
    key: str | None = None,
    tokens: int = 10,
    limit: int = 10_000,
    answer: str | None = None,
) -> Turn:
    """One whole turn, as the handler takes it."""
    request = Request(id=key or uuid.uuid4().hex, body_hash=hashlib.sha256(text.encode()).hexdigest()[:32])
    window, claim = await take_turn(log, session, request, token_limit=limit, patience=20, title=text)
    if claim is None:
        assert window.answered
        return window.answered
    messages = exchange(text, f"answer to {text}" if answer is None else answer)
    return await log.commit(claim, claim.completed(messages, tokens=tokens, at=utc_now(), instance="test"))


def said(window: Window) -> list[str]:
    """What the user said in the turns of a window, oldest first."""
    return [turn.messages[0]["blocks"][0]["text"] for turn in window.turns]


def event_named(name: str) -> dict[str, Any]:
    """An event of `events/`."""
    event: dict[str, Any] = json.loads((Path(__file__).parent.parent / "events" / f"{name}.json").read_text())
    return event


def keys_of(client: Any, session: Session) -> list[str]:
    """Sort keys of everything that a session has in the table."""
    found = client.query(
        TableName=TABLE,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": codec.partition(session)}},
        ConsistentRead=True,
    )
    return [item["sk"]["S"] for item in found["Items"]]


def damage(store: Store, number: int, attribute: str, value: Any, *, session: Session | None = None) -> None:
    """Put another value in the place of one of a stored turn's attributes."""
    store.client.update_item(
        TableName=TABLE,
        Key={"pk": {"S": codec.partition(session or store.session())}, "sk": {"S": codec.turn_key(1, number)}},
        UpdateExpression="SET #a = :v",
        ExpressionAttributeNames={"#a": attribute},
        ExpressionAttributeValues={":v": value},
    )
