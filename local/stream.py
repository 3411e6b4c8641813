"""The table's stream, read as Lambda's event source mapping reads it: what its filters let through goes to the sweeper.

Nobody notes how far it was read. Every start reads all that the engine still has, and so finds what was deleted while
nothing ran; the sweeper takes no harm from a record that it has had before.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.pool import Outcome, WorkerPool
from memory.table import TABLE_SCHEMA, connect

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_STATE = {"Keys": {"sk": {"S": ["state"]}}}
FILTERS: tuple[dict[str, Any], ...] = (
    {"eventName": ["MODIFY"], "dynamodb": {**_STATE, "NewImage": {"deleted_at": {"N": [{"exists": True}]}}}},
    {"eventName": ["REMOVE"], "dynamodb": _STATE},
)
"""The patterns of the deployed mapping's FilterCriteria. A record reaches the sweeper if one of them matches."""
BATCH_SIZE = 100
MOST_ATTEMPTS = 10

_POLL_SECONDS = 1.0
# dynoxide goes through all that it has of a stream to find what is new, and nothing else meanwhile: it gets nine tenths
# of its time for those who have something to do.
_REST_FACTOR = 9.0
_TROUBLE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0

_LEFT_BEHIND = (
    "What the deleted sessions of this batch left in the table stays there until their DELETE is repeated, or until "
    "the next start, which reads the stream from its beginning."
)

Record = dict[str, Any]
_log = logging.getLogger(__name__)


class NoStream(Exception):
    """The table has no stream; the text says what that means, and how to get one."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What one look into a shard brought."""

    shard: str
    is_empty: bool
    batch: list[Record] = field(repr=False)
    """The records that the filters let through, as Lambda's events have them."""
    next_iterator: str | None
    """None at the end of a shard that gets no more records."""


class StreamPoller:
    """Hands the records of a table's stream to `sweeper`, a running pool, in their order."""

    def __init__(self, *, endpoint: str, table: str, sweeper: WorkerPool) -> None:
        self._where = f"the table {table} at {endpoint}"
        self._reader = StreamReader(connect(endpoint), _connect_stream(endpoint), table)
        self._sweeper = sweeper
        self._trouble: type[Exception] | None = None

    async def run(self) -> None:
        """Poll until cancelled. Whatever goes wrong is told once, and tried again."""
        while True:
            began = time.monotonic()
            try:
                pages = await asyncio.to_thread(self._reader.read)
            except Exception as error:  # noqa: BLE001 - engines answer anything, and the service goes on without this
                self._tell(error)
                await asyncio.sleep(_TROUBLE_SECONDS)
                continue
            self._tell(None)
            took = time.monotonic() - began
            for page in pages:
                await self._deliver(page.batch)
                self._reader.advance(page)
            if all(page.is_empty for page in pages):
                await asyncio.sleep(max(_POLL_SECONDS, _REST_FACTOR * took))

    def _tell(self, error: Exception | None) -> None:
        """Log a trouble when it is a new one, and the end of it."""
        before, self._trouble = self._trouble, _kind(error) if error else None
        if self._trouble is before:
            return
        if error is None:
            _log.warning("The stream of %s is read again.", self._where)
        elif isinstance(error, NoStream):
            _log.warning("%s", error)
        else:
            _log.warning(
                "The stream of %s cannot be read: %s It is tried again. Until it can, large deleted sessions are only "
                "removed when their DELETE is repeated. Is the engine there, and has it the DynamoDB Streams API? The "
                "embedded one has: unset DYNAMODB_ENDPOINT to use it.",
                self._where,
                f"{type(error).__name__}, {error}".rstrip(".") + ".",
            )

    async def _deliver(self, batch: list[Record]) -> None:
        """Invoke the sweeper until it is done with all of a batch, or has failed too often at one record."""
        attempts = 0
        while batch:
            outcome = await self._sweeper.invoke({"Records": batch})
            done = done_with(outcome, batch)
            batch = batch[done:]
            attempts = 1 if done else attempts + 1
            if not batch:
                return
            failure = outcome.problem or "It answered that records failed."
            if attempts == MOST_ATTEMPTS:
                _log.error("The sweeper failed %d times, and gives up. %s %s", attempts, failure, _LEFT_BEHIND)
                return
            pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (attempts - 1), _LONGEST_PAUSE_SECONDS)
            _log.warning("The sweeper failed, and is tried again in %g s. %s", pause, failure)
            await asyncio.sleep(pause)


def _kind(error: Exception) -> type[Exception]:
    """What is told once: an engine that refuses connections and then, while it starts, is slow is one trouble."""
    return BotoCoreError if isinstance(error, BotoCoreError) else type(error)


class StreamReader:
    """A table's stream, page by page. It blocks, and is for one thread at a time."""

    def __init__(self, table_client: DynamoDBClient, stream_client: Any, table: str) -> None:
        self._table_client = table_client
        self._stream_client = stream_client
        self._table = table
        self._forget(None)

    def read(self) -> list[Page]:
        """The next page of each open shard, the same ones until `advance`. Raises NoStream, and whatever boto does."""
        try:
            stream = _stream_of(self._table_client, self._table)
            if stream is None:
                raise NoStream(_how_to_turn_on(self._table_client.meta.endpoint_url, self._table))
            if stream != self._stream:
                self._forget(stream)
            if self._is_incomplete:
                self._open_shards(stream)
            return [self._page(shard) for shard in self._iterators]
        except ClientError:
            # An iterator expired, or what it belongs to is gone.
            self._forget(None)
            raise

    def advance(self, page: Page) -> None:
        """Go on behind a page that `read` returned."""
        if page.next_iterator:
            self._iterators[page.shard] = page.next_iterator
            return
        del self._iterators[page.shard]
        self._ended.add(page.shard)
        self._is_incomplete = True

    def _forget(self, stream: str | None) -> None:
        """Begin at the start of `stream`."""
        self._stream = stream
        self._iterators: dict[str, str] = {}
        self._ended: set[str] = set()
        self._is_incomplete = True

    def _open_shards(self, stream: str) -> None:
        """Open the shards that are new, each after the one that it continues."""
        shards = {shard["ShardId"]: shard.get("ParentShardId") for shard in self._shards(stream)}
        unread = shards.keys() - self._ended
        for shard in unread - self._iterators.keys():
            if shards[shard] not in unread:
                position = {"StreamArn": stream, "ShardId": shard, "ShardIteratorType": "TRIM_HORIZON"}
                self._iterators[shard] = self._stream_client.get_shard_iterator(**position)["ShardIterator"]
        self._is_incomplete = not self._iterators

    def _shards(self, stream: str) -> Iterator[dict[str, Any]]:
        start: dict[str, str] = {}
        while True:
            description = self._stream_client.describe_stream(StreamArn=stream, **start)["StreamDescription"]
            yield from description["Shards"]
            if "LastEvaluatedShardId" not in description:
                return
            start = {"ExclusiveStartShardId": description["LastEvaluatedShardId"]}

    def _page(self, shard: str) -> Page:
        answer = self._stream_client.get_records(ShardIterator=self._iterators[shard], Limit=BATCH_SIZE)
        return Page(
            shard=shard,
            is_empty=not answer["Records"],
            batch=[_event_record(record, self._stream) for record in answer["Records"] if passes(record)],
            next_iterator=answer.get("NextShardIterator"),
        )


def turn_on(client: DynamoDBClient, table: str) -> None:
    """Give a table that has no stream its stream, which then has what is written from now on."""
    if _stream_of(client, table) is None:
        client.update_table(TableName=table, StreamSpecification=TABLE_SCHEMA["StreamSpecification"])


def passes(record: Record) -> bool:
    """Whether the filters let a record through."""
    return any(_matches(pattern, record) for pattern in FILTERS)


def done_with(outcome: Outcome, batch: list[Record]) -> int:
    """How many records, from the first on, need not be sent again; none of them when it does not say so clearly."""
    if outcome.problem is not None:
        return 0
    numbers = [record["dynamodb"]["SequenceNumber"] for record in batch]
    try:
        failures = (outcome.response or {}).get("batchItemFailures") or []
        return min((numbers.index(failure["itemIdentifier"]) for failure in failures), default=len(batch))
    except (AttributeError, KeyError, TypeError, ValueError):
        return 0


def _matches(pattern: Any, value: Any) -> bool:
    """Whether a value matches a filter pattern of Lambda's; of these it knows values and `exists`."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(_matches(part, value.get(name)) for name, part in pattern.items())
    return value in pattern or (value is not None and {"exists": True} in pattern)


def _event_record(record: Record, stream: str | None) -> Record:
    """A record as Lambda's events have it."""
    same = ("eventID", "eventName", "eventVersion", "eventSource", "awsRegion")
    return {
        **{name: record[name] for name in same},
        "eventSourceARN": stream,
        "dynamodb": _as_json(record["dynamodb"]),
    }


def _as_json(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case datetime():
            return int(value.timestamp())
        case dict():
            return {name: _as_json(one) for name, one in value.items()}
        case list():
            return [_as_json(one) for one in value]
        case _:
            return value


def _stream_of(client: DynamoDBClient, table: str) -> str | None:
    description = client.describe_table(TableName=table)["Table"]
    # DynamoDB Local keeps the name of a stream that was turned off.
    is_on = description.get("StreamSpecification", {}).get("StreamEnabled")
    return description.get("LatestStreamArn") if is_on else None


def _how_to_turn_on(endpoint: str, table: str) -> str:
    return (
        f"The table {table} at {endpoint} has no stream, so that large deleted sessions are only removed when their "
        f"DELETE is repeated. Turn it on: aws dynamodb update-table --endpoint-url {endpoint} --table-name {table} "
        "--stream-specification StreamEnabled=true,StreamViewType=NEW_IMAGE"
    )


def _connect_stream(endpoint: str) -> Any:
    """A client whose calls end soon, as whoever stops the program waits for them."""
    config = Config(
        connect_timeout=1,
        read_timeout=3,
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,  # dynoxide's names of shards are shorter than AWS's ever are
    )
    return boto3.client("dynamodbstreams", endpoint_url=endpoint, config=config)
