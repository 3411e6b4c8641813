"""The engines that tests run on, and the few ways in which all of them speak to a turn log."""

import asyncio
import functools
import hashlib
import json
import os
import random
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ReadTimeoutError
from moto import mock_aws

from local import engine
from memory import codec
from memory.allowance import DynamoDBAllowance
from memory.dynamodb import LEASE, DynamoDBTurnLog
from memory.sessions import DynamoDBSessions
from memory.table import connect, create_table
from memory.turns import Claim, Request, Session, Turn, Window, take_turn, utc_now

TABLE = "rehydrate-tests"
"""Not the name that a deployment's table may have: `DYNAMODB_ENDPOINT` can be an account's own."""
OWN_ENGINE = os.environ.get("DYNAMODB_ENDPOINT")
"""An engine beside the embedded ones that the contract is to run on; with the caller's credentials and region."""
EVENT_FILES = sorted((Path(__file__).parent.parent / "events").glob("*.json"))


@pytest.fixture(scope="session", autouse=True)
def _no_account() -> Iterator[None]:
    """No test reaches an account but the one of OWN_ENGINE: credentials are made up, and so is the region."""
    if OWN_ENGINE:
        client_at(OWN_ENGINE)  # which keeps the credentials that it was made with
        boto3.setup_default_session()
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
    lag: float = 0
    """Seconds after which the index shows what was written."""

    def log(self, *, kind: type[DynamoDBTurnLog] = DynamoDBTurnLog, **options: Any) -> DynamoDBTurnLog:
        """A log of its own, as every invocation has."""
        return kind(options.pop("client", self.client), TABLE, **options)

    def sessions(self, **options: Any) -> DynamoDBSessions:
        """The sessions of the table, as an invocation has them."""
        return DynamoDBSessions(options.pop("client", self.client), TABLE, **options)

    def allowance(self, **options: Any) -> DynamoDBAllowance:
        """What an owner may do, as an invocation asks it."""
        return DynamoDBAllowance(options.pop("client", self.client), TABLE, **options)

    async def listed(self) -> list[str]:
        """Ids of the owner's sessions, as the index lists them."""
        await asyncio.sleep(self.lag)
        return [session.id for session in await self.sessions().listed(self.owner, limit=100)]

    def session(self, name: str = "talk") -> Session:
        return Session(owner=self.owner, id=name)


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> Any:
        return self.now

    def pass_lease(self) -> None:
        self.now += LEASE + timedelta(seconds=1)


class LosingClient:
    """A client whose calls of one operation are applied, and the response to one of them (or more) gets lost.

    `meanwhile` is what somebody else does before the loss is noticed; `calls` are the arguments of all of them.
    """

    def __init__(
        self,
        client: Any,
        operation: str,
        *,
        skip: int = 0,
        meanwhile: Callable[[], Coroutine[Any, Any, Any]] | None = None,
    ) -> None:
        self._client, self._operation, self._skip, self._meanwhile = client, operation, skip, meanwhile
        self.calls: list[dict[str, Any]] = []
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name != self._operation:
            return call

        def losing(**arguments: Any) -> Any:
            self.calls.append(arguments)
            result = call(**arguments)
            if len(self.calls) == self._skip + 1:
                self.lost += 1
                if self._meanwhile:
                    asyncio.run(self._meanwhile())
                raise ReadTimeoutError(endpoint_url="http://lost")
            return result

        return losing


class ThrottledClient:
    """A client of whose batches the table does some writes each, and leaves the others undone."""

    def __init__(self, client: Any, *, done: int) -> None:
        self._client, self._done = client, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def batch_write_item(self, **arguments: Any) -> Any:
        ((name, requests),) = arguments.pop("RequestItems").items()
        now, later = requests[: self._done], requests[self._done :]
        if now:
            self._client.batch_write_item(RequestItems={name: now}, **arguments)
        return {"UnprocessedItems": {name: later} if later else {}}


class Killed(BaseException):
    """The process ends here: nothing of it catches this, and nothing tidies up."""


class InterruptedClient:
    """A client before whose k-th call something else happens; where that kills the process, no later call is made."""

    def __init__(self, client: Any, at: int, happens: Callable[[], None]) -> None:
        self._client, self._at, self._happens = client, at, happens
        self.calls = 0
        self.killed = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def interrupted(**arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._at or self.killed:
                try:
                    self._happens()
                except Killed:
                    self.killed = True
                    raise
            return call(**arguments)

        return interrupted

    @property
    def reached(self) -> bool:
        """Whether there was a k-th call."""
        return self.calls >= self._at


def killed() -> None:
    """What happens to a process before a call that it never makes."""
    raise Killed


def meanwhile(step: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], None]:
    """What somebody else does before a call is made."""
    return lambda: asyncio.run(step())


@functools.cache
def client_at(endpoint: str | None) -> Any:
    """A client; making one takes longer than most tests."""
    return connect(endpoint)


def store_at(endpoint: str | None) -> Store:
    client = client_at(endpoint)
    create_table(client, TABLE)
    return Store(client=client, owner=uuid.uuid4().hex, lag=1 if endpoint == OWN_ENGINE is not None else 0)


@pytest.fixture
def moto_store() -> Iterator[Store]:
    with mock_aws():
        yield store_at(None)


@pytest.fixture(scope="session")
def own_engine() -> str:
    """The endpoint that DYNAMODB_ENDPOINT names."""
    assert OWN_ENGINE
    return OWN_ENGINE


REAL_ENGINES = [
    "dynoxide",
    pytest.param("dynamodb_local", marks=pytest.mark.once),
    *(["own_engine"] if OWN_ENGINE else []),
]


@pytest.fixture(params=[pytest.param("moto", marks=pytest.mark.once), *REAL_ENGINES])
def store(request: pytest.FixtureRequest) -> Store:
    """A table on each engine in turn, for properties that all of them can show."""
    if request.param == "moto":
        found: Store = request.getfixturevalue("moto_store")
        return found
    return store_at(request.getfixturevalue(request.param))


@pytest.fixture(params=REAL_ENGINES)
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
    window, claim = await take_turn(log, session, asking(text, key), token_limit=limit, patience=20, title=text)
    if claim is None:
        assert window.answered
        return window.answered
    messages = exchange(text, f"answer to {text}" if answer is None else answer)
    return await log.commit(claim, claim.completed(messages, tokens=tokens, at=utc_now(), instance="test"))


async def answer_again(
    log: DynamoDBTurnLog,
    session: Session,
    number: int,
    answer: str,
    *,
    key: str | None = None,
    tokens: int = 10,
    limit: int = 10_000,
) -> Turn:
    """Another answer to a turn, as the handler gives it."""
    window, claim = await take_turn(log, session, asking_again(number, key), token_limit=limit, patience=20)
    if claim is None:
        assert window.answered
        return window.answered
    assert window.regenerated
    messages = [window.regenerated.messages[0], text_message("assistant", answer)]
    return await log.commit(claim, claim.completed(messages, tokens=tokens, at=utc_now(), instance="test"))


async def fail(log: DynamoDBTurnLog, session: Session, text: str, *, again: int | None = None) -> Turn:
    """A turn that got no answer, or one more answer that was never given to the turn number `again`."""
    request = asking_again(again) if again else asking(text)
    _, claim = await take_turn(log, session, request, token_limit=10_000, patience=20)
    assert claim
    messages = [text_message("user", text)]
    return await log.commit(claim, claim.failed("model_error", messages, at=utc_now(), instance="test"))


def said(window: Window) -> list[str]:
    """What the user said in the turns of a window, oldest first."""
    return [turn.messages[0]["blocks"][0]["text"] for turn in window.turns]


def answers(window: Window) -> list[str]:
    """What was answered in the turns of a window, oldest first."""
    return [turn.answer for turn in window.turns]


def event_named(name: str) -> dict[str, Any]:
    """An event of `events/`."""
    event: dict[str, Any] = json.loads((Path(__file__).parent.parent / "events" / f"{name}.json").read_text())
    return event


def damage(store: Store, number: int, attribute: str, value: Any, *, session: Session | None = None) -> None:
    """Put another value in the place of one of a stored turn's attributes."""
    store.client.update_item(
        TableName=TABLE,
        Key={"pk": {"S": codec.partition(session or store.session())}, "sk": {"S": codec.turn_key(1, number)}},
        UpdateExpression="SET #a = :v",
        ExpressionAttributeNames={"#a": attribute},
        ExpressionAttributeValues={":v": value},
    )


def asking(text: str, key: str | None = None) -> Request:
    return Request(id=key or uuid.uuid4().hex, body_hash=hashlib.sha256(text.encode()).hexdigest()[:32])


def asking_again(number: int, key: str | None = None) -> Request:
    return Request(id=key or uuid.uuid4().hex, body_hash=f"again {number}", regenerates=number)


async def claimed(store: Store, session: Session, request: Request, **options: Any) -> Claim:
    """A claim whose holder never came back."""
    log = store.log(**options)
    return await log.claim(await log.load(session, token_limit=1000), request)


def completed(claim: Claim, text: str) -> Any:
    return claim.completed(exchange(text, f"answer to {text}"), tokens=10, at=utc_now(), instance="test")


@functools.cache
def noise(size: int) -> str:
    """Text that does not compress, the same at each run."""
    return "".join(random.Random(size).choices([chr(c) for c in range(33, 127)], k=size))  # noqa: S311 - not a secret


def items_of(store: Store, session: Session | None = None) -> dict[str, dict[str, Any]]:
    """Everything that the session has in the table, by sort key, as the table keeps it."""
    found = store.client.query(
        TableName=TABLE,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": codec.partition(session or store.session())}},
        ConsistentRead=True,
    )
    return {item["sk"]["S"]: item for item in found["Items"]}


def keys_of(store: Store, session: Session | None = None) -> list[str]:
    """Sort keys of everything that the session has in the table."""
    return list(items_of(store, session))


def forget(store: Store, sort_key: str, session: Session | None = None) -> None:
    """Remove an item, as DynamoDB does at some time after it has expired."""
    key = {"pk": {"S": codec.partition(session or store.session())}, "sk": {"S": sort_key}}
    store.client.delete_item(TableName=TABLE, Key=key)
