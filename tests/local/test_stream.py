"""What the table's stream tells of deleted sessions reaches the sweeper, as Lambda would bring it."""

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from processes import STUB_SWEEP, stub_env

from local import engine, guard, stream
from local.engine import Engine
from local.pool import Outcome, WorkerPool
from local.stream import StreamPoller, StreamReader, done_with, passes
from memory.table import TABLE_SCHEMA, connect, create_table
from tests.conftest import require

Start = Callable[..., Engine]


@pytest.fixture(params=["dynoxide", pytest.param("dynamodb_local", marks=pytest.mark.once)])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Each real engine in turn."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["dynoxide", pytest.param("dynamodb_local", marks=pytest.mark.once)])
def start(request: pytest.FixtureRequest) -> Start:
    """Starts a real engine on a file or folder of one's own."""
    require(engine.missing_dynoxide() if request.param == "dynoxide" else engine.missing_dynamodb_local())
    return engine.start_dynoxide if request.param == "dynoxide" else engine.start_dynamodb_local


class Sessions:
    """A table, and what becomes of the sessions in it."""

    def __init__(self, endpoint: str, name: str | None = None) -> None:
        self.endpoint = endpoint
        self.client: Any = connect(endpoint)
        self.name = name or f"t-{uuid.uuid4().hex}"
        if name is None:
            create_table(self.client, self.name)

    def put(self, session: str, item: str = "state", **attributes: Any) -> None:
        self.client.put_item(TableName=self.name, Item={**self._key(session, item), **attributes})

    def mark(self, session: str) -> None:
        """Say that a session is deleted."""
        self.client.update_item(
            TableName=self.name,
            Key=self._key(session, "state"),
            UpdateExpression="SET deleted_at = :now",
            ExpressionAttributeValues={":now": {"N": "1700000000"}},
        )

    def remove(self, session: str, item: str = "state") -> None:
        self.client.delete_item(TableName=self.name, Key=self._key(session, item))

    def delete(self, *sessions: str) -> None:
        for session in sessions:
            self.put(session)
            self.mark(session)

    def _key(self, session: str, item: str) -> dict[str, Any]:
        return {"pk": {"S": session}, "sk": {"S": item}}


@contextlib.asynccontextmanager
async def polling(sessions: Sessions, file: Path) -> AsyncIterator[None]:
    """A poller over the stub sweeper, which notes its events in a file."""
    pool = WorkerPool(name="sweep", handler=STUB_SWEEP, env=stub_env(STUB_SWEPT=str(file)), size=1)
    await pool.start()
    task = asyncio.create_task(StreamPoller(endpoint=sessions.endpoint, table=sessions.name, sweeper=pool).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        await pool.stop()


def swept(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def names(event: dict[str, Any]) -> list[str]:
    """The sessions that an event tells of."""
    return [record["dynamodb"]["Keys"]["pk"]["S"] for record in event["Records"]]


def told(file: Path) -> list[str]:
    """The sessions that the sweeper was told of, in this order."""
    return [name for event in swept(file) for name in names(event)]


async def until(holds: Callable[[], Any], what: str) -> None:
    """Wait until `holds()`; the time is only there to end a test that fails."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)
    assert holds(), what


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repetitions at once."""
    monkeypatch.setattr(stream, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_TROUBLE_SECONDS", 0.01)


async def test_a_record_is_lambdas(endpoint: str, tmp_path: Path) -> None:
    """It has the keys and types of Lambda's events, its times as numbers and its binaries as base64."""
    sessions = Sessions(endpoint)
    sessions.put("one", blob={"B": b"\x00\xff"}, deep={"M": {"l": {"L": [{"BS": [b"a"]}]}}})
    async with polling(sessions, tmp_path / "swept"):
        sessions.mark("one")
        await until(lambda: swept(tmp_path / "swept"), "the sweeper was told")
    ((record,),) = [event["Records"] for event in swept(tmp_path / "swept")]
    assert (record["eventName"], record["eventSource"], record["eventVersion"]) == ("MODIFY", "aws:dynamodb", "1.1")
    assert {"eventID", "awsRegion"} <= record.keys()
    assert f"table/{sessions.name}/stream/" in record["eventSourceARN"]
    change = record["dynamodb"]
    assert change["Keys"] == {"pk": {"S": "one"}, "sk": {"S": "state"}}
    assert change["NewImage"] == {
        **change["Keys"],
        "deleted_at": {"N": "1700000000"},
        "blob": {"B": "AP8="},
        "deep": {"M": {"l": {"L": [{"BS": ["YQ=="]}]}}},
    }
    assert (change["StreamViewType"], type(change["SequenceNumber"])) == ("NEW_IMAGE", str)
    assert (type(change["ApproximateCreationDateTime"]), type(change["SizeBytes"])) == (int, int)


async def test_only_what_concerns_deleted_sessions_is_brought(endpoint: str, tmp_path: Path) -> None:
    """Marks and removals of `state` items, in their order; turns and live sessions cause no invocation."""
    sessions = Sessions(endpoint)
    async with polling(sessions, tmp_path / "swept"):
        sessions.put("live")
        sessions.put("live", title={"S": "changed"})
        sessions.put("live", "turn")
        sessions.remove("live", "turn")
        sessions.delete("gone")
        sessions.remove("gone")
        await until(lambda: len(told(tmp_path / "swept")) == 2, "the sweeper was told")
    records = [record for event in swept(tmp_path / "swept") for record in event["Records"]]
    assert [(record["eventName"], record["dynamodb"]["Keys"]["pk"]["S"]) for record in records] == [
        ("MODIFY", "gone"),
        ("REMOVE", "gone"),
    ]
    assert "NewImage" not in records[1]["dynamodb"]


async def test_what_comes_later_is_seen(endpoint: str, tmp_path: Path) -> None:
    """The end of the stream is not the end: what is written after it was reached is brought, once."""
    sessions = Sessions(endpoint)
    async with polling(sessions, tmp_path / "swept"):
        for name in ("first", "second", "third"):
            sessions.delete(name)
            await until(lambda name=name: name in told(tmp_path / "swept"), f"{name} was brought")
    assert told(tmp_path / "swept") == ["first", "second", "third"]


async def test_many_come_in_batches_and_in_order(endpoint: str, tmp_path: Path) -> None:
    """No event has more records than Lambda's would, and none is left out, doubled or overtaken."""
    sessions, expected = Sessions(endpoint), [f"s{number:03}" for number in range(130)]
    sessions.delete(*expected)
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: len(told(tmp_path / "swept")) >= len(expected), "all were brought")
    assert told(tmp_path / "swept") == expected
    assert max(len(event["Records"]) for event in swept(tmp_path / "swept")) <= stream.BATCH_SIZE


async def test_what_came_while_nobody_polled_is_seen(start: Start, tmp_path: Path) -> None:
    """The next start finds what was deleted before it, also when the engine was started anew."""
    with start(tmp_path / "data") as running:
        sessions = Sessions(running.endpoint)
        async with polling(sessions, tmp_path / "first"):
            sessions.delete("first")
            await until(lambda: told(tmp_path / "first") == ["first"], "the sweeper was told")
        sessions.delete("unseen")
    with start(tmp_path / "data") as running:
        sessions = Sessions(running.endpoint, sessions.name)
        async with polling(sessions, tmp_path / "second"):
            await until(lambda: "unseen" in told(tmp_path / "second"), "the sweeper was told")
            sessions.delete("new")
            await until(lambda: "new" in told(tmp_path / "second"), "it goes on")
    assert told(tmp_path / "second") == ["first", "unseen", "new"]


@pytest.mark.usefixtures("_no_pauses")
async def test_an_engine_that_comes_back_is_read_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is away that is said once, with what it means; then what it has is brought."""
    port = guard.free_port()
    monkeypatch.setattr(guard, "free_port", lambda _: port)
    monkeypatch.setattr(engine, "_random_loopback", lambda: guard.LOOPBACK)
    with start(tmp_path / "data") as running:
        sessions = Sessions(running.endpoint)
        sessions.delete("before")
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: "cannot be read" in caplog.text, "the trouble is told")
        await asyncio.sleep(0.5)
        with await asyncio.to_thread(start, tmp_path / "data"):
            await until(lambda: told(tmp_path / "swept") == ["before"], "the sweeper was told")
            await until(lambda: "is read again" in caplog.text, "the end of the trouble is told")
    assert caplog.text.count("cannot be read") == 1
    assert "only removed when their DELETE is repeated" in caplog.text


@pytest.mark.usefixtures("_no_pauses")
async def test_a_table_without_a_stream_is_told_once(
    endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says what does not happen and how to turn the stream on; once it is on, that is all there is to do."""
    sessions = Sessions(endpoint, f"t-{uuid.uuid4().hex}")
    schema = {name: value for name, value in TABLE_SCHEMA.items() if name != "StreamSpecification"}
    sessions.client.create_table(TableName=sessions.name, **schema)
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: caplog.messages, "it is told")
        await asyncio.sleep(0.5)
        stream.turn_on(sessions.client, sessions.name)
        sessions.delete("one")
        await until(lambda: told(tmp_path / "swept") == ["one"], "the sweeper was told")
    (first, *others) = [message for message in caplog.messages if sessions.name in message]
    assert "only removed when their DELETE is repeated" in first
    assert f"update-table --endpoint-url {endpoint} --table-name {sessions.name}" in first
    assert ["is read again" in message for message in others] == [True]


@pytest.mark.usefixtures("_no_pauses")
async def test_an_engine_that_cannot_be_reached_in_several_ways_is_one_trouble(
    dynoxide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It refuses connections, then it is slow while it starts: that is told once."""
    errors = [EndpointConnectionError(endpoint_url="-"), ReadTimeoutError(endpoint_url="-")]
    read = StreamReader.read

    def failing_at_first(self: StreamReader) -> list[stream.Page]:
        if errors:
            raise errors.pop(0)
        return read(self)

    monkeypatch.setattr(StreamReader, "read", failing_at_first)
    async with polling(Sessions(dynoxide), tmp_path / "swept"):
        await until(lambda: "is read again" in caplog.text, "the end of the trouble is told")
    assert caplog.text.count("cannot be read") == 1


async def test_a_stream_that_was_turned_off_and_on_is_followed(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's newest stream is the one that counts."""
    monkeypatch.setattr(stream, "_TROUBLE_SECONDS", 0.1)
    sessions = Sessions(endpoint)
    async with polling(sessions, tmp_path / "swept"):
        sessions.delete("old")
        await until(lambda: "old" in told(tmp_path / "swept"), "the sweeper was told")
        sessions.client.update_table(TableName=sessions.name, StreamSpecification={"StreamEnabled": False})
        stream.turn_on(sessions.client, sessions.name)
        sessions.delete("new")
        await until(lambda: "new" in told(tmp_path / "swept"), "the sweeper was told of the new one")


@pytest.mark.usefixtures("_no_pauses")
async def test_a_failed_record_is_brought_again_with_what_follows(
    endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What stood before the first failure is done; the rest comes once more, and then what is next."""
    sessions = Sessions(endpoint)
    sessions.delete("done", "later", "after")
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: len(swept(tmp_path / "swept")) == 2, "it was tried again")
        sessions.delete("next")
        await until(lambda: "next" in told(tmp_path / "swept"), "it goes on")
    assert list(map(names, swept(tmp_path / "swept"))) == [["done", "later", "after"], ["later", "after"], ["next"]]
    assert "The sweeper failed, and is tried again" in caplog.text


@pytest.mark.usefixtures("_no_pauses")
async def test_a_sweeper_that_raises_gets_the_whole_batch_again(dynoxide: str, tmp_path: Path) -> None:
    """Who knows what it had done."""
    sessions = Sessions(dynoxide)
    sessions.delete("one", "raises")
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: len(swept(tmp_path / "swept")) == 2, "it was tried again")
    assert list(map(names, swept(tmp_path / "swept"))) == [["one", "raises"], ["one", "raises"]]


@pytest.mark.usefixtures("_no_pauses")
async def test_a_hopeless_batch_is_given_up_and_said(
    dynoxide: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After some attempts an error says what is left and until when, and the next records have their turn."""
    sessions = Sessions(dynoxide)
    sessions.delete("one", "never")
    async with polling(sessions, tmp_path / "swept"):
        await until(lambda: "gives up" in caplog.text, "it is given up")
        sessions.delete("next")
        await until(lambda: "next" in told(tmp_path / "swept"), "it goes on")
    assert told(tmp_path / "swept").count("never") == stream.MOST_ATTEMPTS
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "stays there until their DELETE is repeated" in error


def change(name: str = "MODIFY", sk: str = "state", **image: Any) -> dict[str, Any]:
    found = {"Keys": {"pk": {"S": "p"}, "sk": {"S": sk}}, "SequenceNumber": sk}
    return {"eventName": name, "dynamodb": found | ({"NewImage": image} if name != "REMOVE" else {})}


def test_the_filters_let_marks_and_removals_through() -> None:
    """That a session was marked as deleted, or is gone, is what the sweeper is for."""
    assert passes(change(deleted_at={"N": "0"}))
    assert passes(change("REMOVE"))


@pytest.mark.parametrize(
    "record",
    [
        change("INSERT", deleted_at={"N": "5"}),
        change(deleted_at={"S": "5"}),
        change(deleted_at={"NULL": True}),
        change(title={"S": "deleted_at"}),
        change(sk="turn", deleted_at={"N": "5"}),
        change("REMOVE", sk="turn"),
    ],
)
def test_the_filters_hold_everything_else_back(record: dict[str, Any]) -> None:
    """Other items, new ones, and changes of sessions that live cost no invocation."""
    assert not passes(record)


BATCH = [change(sk="a"), change(sk="b"), change(sk="c")]


@pytest.mark.parametrize("response", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_no_failures_are_a_success(response: Any) -> None:
    """As with Lambda, an answer that names none says that all is done."""
    assert done_with(Outcome(worker=1, response=response), BATCH) == 3


@pytest.mark.parametrize(
    "response",
    [
        "ok",
        [1],
        {"batchItemFailures": [{}]},
        {"batchItemFailures": [None]},
        {"batchItemFailures": "c"},
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}, {"itemIdentifier": "c"}]},
        {"batchItemFailures": [{"itemIdentifier": "another"}]},
    ],
)
def test_an_unclear_answer_is_a_failure_of_all(response: Any) -> None:
    """As with Lambda, the whole batch comes again."""
    assert done_with(Outcome(worker=1, response=response), BATCH) == 0


def test_the_first_failure_counts() -> None:
    """Whatever their order in the answer."""
    failures = [{"itemIdentifier": "c"}, {"itemIdentifier": "b"}]
    assert done_with(Outcome(worker=1, response={"batchItemFailures": failures}), BATCH) == 1


class FakeEngine:
    """A table and its stream in shards, `(id, parent)`, each of one page and closed unless it is in `open`."""

    def __init__(self, shards: Iterable[tuple[str, str | None]], *, still_open: Iterable[str] = ()) -> None:
        self.shards, self.still_open = list(shards), set(still_open)
        self.expired = False

    def describe_table(self, **_: Any) -> Any:
        return {"Table": {"LatestStreamArn": "arn", "StreamSpecification": {"StreamEnabled": True}}}

    def describe_stream(self, *, ExclusiveStartShardId: str = "", **_: Any) -> Any:  # noqa: N803 - as AWS has it
        """One shard a page."""
        place = [shard for shard, _ in self.shards].index(ExclusiveStartShardId) + 1 if ExclusiveStartShardId else 0
        shard, parent = self.shards[place]
        more = {"LastEvaluatedShardId": shard} if place + 1 < len(self.shards) else {}
        return {"StreamDescription": {"Shards": [{"ShardId": shard, "ParentShardId": parent}], **more}}

    def get_shard_iterator(self, **options: str) -> Any:
        assert options["ShardIteratorType"] == "TRIM_HORIZON"
        return {"ShardIterator": options["ShardId"]}

    def get_records(self, **options: Any) -> Any:
        if self.expired:
            self.expired = False
            raise ClientError({"Error": {"Code": "ExpiredIteratorException"}}, "GetRecords")
        shard, _, seen = options["ShardIterator"].partition(" ")
        following = {"NextShardIterator": f"{shard} seen"} if shard in self.still_open else {}
        return {"Records": [] if seen else [{"eventName": shard, "dynamodb": {}}], **following}


def read(reader: StreamReader) -> list[str]:
    """The shards of which one look brought something."""
    pages = reader.read()
    for page in pages:
        reader.advance(page)
    return sorted(page.shard for page in pages if not page.is_empty)


def reader_of(fake: Any) -> StreamReader:
    return StreamReader(fake, fake, "table")


def test_a_shard_is_read_after_the_one_that_it_continues() -> None:
    """Children come when their parent is at its end, and none is read twice."""
    fake = FakeEngine([("child", "parent"), ("other", None), ("parent", "trimmed")], still_open={"child", "other"})
    reader = reader_of(fake)
    assert [read(reader) for _ in range(4)] == [["other", "parent"], ["child"], [], []]


def test_new_shards_are_found() -> None:
    """When one has ended, what continues it is looked for until it is there."""
    fake = FakeEngine([("first", None)])
    reader = reader_of(fake)
    assert [read(reader) for _ in range(2)] == [["first"], []]
    fake.shards.append(("second", "first"))
    assert read(reader) == ["second"]


def test_an_iterator_that_expired_begins_anew() -> None:
    """What had been read comes again: better twice than never."""
    fake = FakeEngine([("first", None)], still_open={"first"})
    reader = reader_of(fake)
    assert [read(reader) for _ in range(2)] == [["first"], []]
    fake.expired = True
    with pytest.raises(ClientError):
        reader.read()
    assert read(reader) == ["first"]


def test_what_was_not_taken_is_read_again() -> None:
    """Only `advance` moves on."""
    reader = reader_of(FakeEngine([("first", None)], still_open={"first"}))
    assert [page.is_empty for page in reader.read() + reader.read()] == [False, False]
