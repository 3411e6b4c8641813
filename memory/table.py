"""One DynamoDB table, as the turn log calls it: asynchronous, counted, with errors that say whether a write may have
been applied. The only module that imports boto3.

Every conditional write asks for the item that refused it: the SDK retries writes that were applied though their
response was lost, so that a refusal which shows one's own token is a success.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from boto3.dynamodb.types import Binary, TypeDeserializer, TypeSerializer
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - the SDK's name for a connection that did not come about
    HTTPClientError,
    IncompleteReadError,
)
from botocore.loaders import create_loader
from botocore.session import get_session

from memory.codec import Item
from memory.turns import TableUnavailable, Usage

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

INDEX = "by_owner"
TABLE_SCHEMA: dict[str, Any] = {
    "AttributeDefinitions": [
        {"AttributeName": "pk", "AttributeType": "S"},
        {"AttributeName": "sk", "AttributeType": "S"},
        {"AttributeName": "owner", "AttributeType": "S"},
        {"AttributeName": "active_at", "AttributeType": "S"},
    ],
    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    "GlobalSecondaryIndexes": [
        {
            "IndexName": INDEX,
            "KeySchema": [
                {"AttributeName": "owner", "KeyType": "HASH"},
                {"AttributeName": "active_at", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["title", "created_at", "expires_at"]},
        }
    ],
    "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    "BillingMode": "PAY_PER_REQUEST",
}
"""Arguments of CreateTable: what `template.yaml` deploys, for tables made without it."""

PERSISTENCE_SECONDS = 6.0
"""How long a write that may be repeated is tried again where no verdict comes: as long as a turn keeps back for it."""
BATCH = 25
_READS = ("query", "get_item")
_NO_ANSWER = (HTTPClientError, ConnectionError, IncompleteReadError)
_NO_VERDICT = {
    "InternalServerError",
    "InternalFailure",
    "ServiceUnavailable",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "ThrottlingException",
}
# Reads what clients are made from, and keeps it for the next one.
_LOADER = create_loader()
# An executor of its own: tools that are stuck in the event loop's default one cannot hold up a commit.
_EXECUTOR = ThreadPoolExecutor(max_workers=16, thread_name_prefix="dynamodb")
_serialize = TypeSerializer().serialize
_deserialize = TypeDeserializer().deserialize


class Refused(Exception):
    """A write's condition did not hold.

    `item` is what stood in its place, empty where there was nothing; `repeated` says whether an earlier attempt of the
    same write ended in silence, and so may have been applied.
    """

    def __init__(self, item: Item, *, repeated: bool) -> None:
        super().__init__("the condition did not hold")
        self.item = item
        self.repeated = repeated


class Silent(TableUnavailable):
    """The table gave no verdict: a write may have been applied, or not."""


def connect(endpoint: str | None = None, region: str | None = None) -> "DynamoDBClient":
    """A client whose calls end soon: at most two attempts of 1 s to connect and 2 s to answer."""
    config = Config(
        connect_timeout=1,
        read_timeout=2,
        retries={"total_max_attempts": 2, "mode": "standard"},
        max_pool_connections=16,
    )
    return _client(config, endpoint=endpoint, region=region)


def prepare() -> None:
    """Read what every client is made from. No credential is looked for, and no connection opened."""
    _client(Config(signature_version=UNSIGNED), region="us-east-1")


def _client(config: Config, *, endpoint: str | None = None, region: str | None = None) -> "DynamoDBClient":
    """A client in a session of its own: its credentials go where it goes, and are not those that others left behind."""
    session = get_session()
    session.register_component("data_loader", _LOADER)
    client = session.create_client("dynamodb", region, endpoint_url=endpoint, config=config)
    client.meta.events.register("after-call.dynamodb", _check_whole)
    return cast("DynamoDBClient", client)


def _check_whole(http_response: Any, **_: Any) -> None:
    """Raises where the end of a response is missing: what it lacks, the SDK would say, the table does not hold."""
    expected, actual = int(http_response.headers.get("Content-Length") or 0), len(http_response.content)
    if actual < expected:
        raise IncompleteReadError(actual_bytes=actual, expected_bytes=expected)


def create_table(client: "DynamoDBClient", name: str) -> None:
    """Create the table where it does not exist yet, and wait until it takes requests."""
    with contextlib.suppress(client.exceptions.ResourceInUseException):
        client.create_table(TableName=name, **TABLE_SCHEMA)
    client.get_waiter("table_exists").wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})


class Table:
    """Calls to one table. Each raises Silent where no verdict came, and TableUnavailable where it never will."""

    def __init__(self, client: "DynamoDBClient", name: str) -> None:
        self.usage = Usage()
        self._client = client
        self._name = name

    async def query(
        self,
        condition: str,
        values: Mapping[str, Any],
        *,
        page_sizes: Iterator[int] | None = None,
        oldest_first: bool = False,
        index: str | None = None,
        after: Item | None = None,
        **options: Any,
    ) -> AsyncGenerator[list[Item]]:
        """Pages of items, newest first unless told; strongly consistent but for the index, which cannot be.

        `after` is the key of the item to go on from, which need not be there any more.
        """
        options |= {"IndexName": index} if index else {"ConsistentRead": True}
        start: dict[str, Any] = {"ExclusiveStartKey": _typed(after)} if after else {}
        while True:
            size: dict[str, Any] = {"Limit": next(page_sizes)} if page_sizes else {}
            page = await self._call(
                "query",
                KeyConditionExpression=condition,
                ExpressionAttributeValues=_typed(values),
                ScanIndexForward=oldest_first,
                **options,
                **size,
                **start,
            )
            yield [_plain(item) for item in page["Items"]]
            if "LastEvaluatedKey" not in page:
                return
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    async def get(self, pk: str, sk: str) -> Item | None:
        """One item, strongly consistent; None where there is none."""
        response = await self._call("get_item", Key=_typed({"pk": pk, "sk": sk}), ConsistentRead=True)
        return _plain(response["Item"]) if "Item" in response else None

    async def put_new(self, item: Item) -> None:
        """Put the item where nothing is yet, and try again where no verdict comes. Raises Refused."""
        await self._call(
            "put_item",
            persistent=True,
            Item=_typed(item),
            ConditionExpression="attribute_not_exists(pk)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )

    async def put_all(self, items: Iterable[Item]) -> None:
        """Put items whose keys nobody else writes."""
        await asyncio.gather(*(self._call("put_item", persistent=True, Item=_typed(item)) for item in items))

    async def delete_all(self, keys: Iterable[tuple[str, str]]) -> None:
        """Delete the items with these (pk, sk), for as long as the table gets on with it."""
        requests = [{"DeleteRequest": {"Key": _typed({"pk": pk, "sk": sk})}} for pk, sk in keys]
        for i in range(0, len(requests), BATCH):
            left, give_up = requests[i : i + BATCH], _from_now(PERSISTENCE_SECONDS)
            while left:
                response = await self._call("batch_write_item", persistent=True, RequestItems={self._name: left})
                undone = response.get("UnprocessedItems", {}).get(self._name, [])
                if len(undone) < len(left):
                    give_up = _from_now(PERSISTENCE_SECONDS)
                elif _from_now(0) >= give_up:
                    raise TableUnavailable("the table leaves deletes undone")
                if left := undone:
                    await _pause()

    async def update(
        self,
        pk: str,
        sk: str,
        expression: str,
        values: Mapping[str, Any],
        *,
        condition: str,
        persistent: bool = False,
    ) -> Item:
        """One conditional update; names in both expressions are written `#name`. The new values. Raises Refused."""
        names = set(re.findall(r"#(\w+)", f"{expression} {condition}"))
        response = await self._call(
            "update_item",
            persistent=persistent,
            Key=_typed({"pk": pk, "sk": sk}),
            UpdateExpression=expression,
            ConditionExpression=condition,
            ExpressionAttributeNames={f"#{name}": name for name in names},
            ExpressionAttributeValues=_typed(values),
            ReturnValues="UPDATED_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
        return _plain(response.get("Attributes", {}))

    async def _call(self, operation: str, *, persistent: bool = False, **arguments: Any) -> dict[str, Any]:
        """What the table answers; where it is `persistent`, asked again until there is a verdict, or no time left."""
        if "RequestItems" not in arguments:
            arguments["TableName"] = self._name
        call = partial(getattr(self._client, operation), ReturnConsumedCapacity="TOTAL", **arguments)
        give_up, repeated = _from_now(PERSISTENCE_SECONDS if persistent else 0), False
        while True:
            self.usage.calls += 1
            try:
                response = await asyncio.get_running_loop().run_in_executor(_EXECUTOR, call)
            except (ClientError, BotoCoreError) as error:
                verdict = _verdict(error, repeated=repeated)
                if not isinstance(verdict, Silent) or _from_now(0) >= give_up:
                    raise verdict from error
            else:
                self._count(operation, response.get("ConsumedCapacity"))
                return dict(response)
            repeated = True
            await _pause()

    def _count(self, operation: str, consumed: Any) -> None:
        """Engines report one figure, or one for each table of a batch."""
        figures = consumed if isinstance(consumed, list) else [consumed or {}]
        units = float(sum(figure.get("CapacityUnits", 0) for figure in figures))
        if operation in _READS:
            self.usage.read_units += units
        else:
            self.usage.write_units += units


def _from_now(seconds: float) -> float:
    """A time of the event loop's clock."""
    return asyncio.get_running_loop().time() + seconds


async def _pause() -> None:
    """Let a moment pass before the table is asked again, so that many who do so spread."""
    await asyncio.sleep(random.uniform(0.05, 0.15))  # noqa: S311 - jitter


def _verdict(error: ClientError | BotoCoreError, *, repeated: bool) -> Refused | TableUnavailable:
    """What an error of the SDK means for the call."""
    if isinstance(error, _NO_ANSWER):
        return Silent("the table did not answer")
    if not isinstance(error, ClientError):
        return TableUnavailable("the table could not be asked")
    code = error.response.get("Error", {}).get("Code", "")
    about = error.response.get("ResponseMetadata", {})
    if code == "ConditionalCheckFailedException":
        item = _plain(dict(error.response).get("Item") or {})
        return Refused(item, repeated=repeated or about.get("RetryAttempts", 0) > 0)
    status = about.get("HTTPStatusCode", 0)
    kind = Silent if code in _NO_VERDICT or status >= 500 else TableUnavailable
    return kind(f"the table answered {code}")


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _serialize(value) for name, value in values.items()}


def _plain(item: Any) -> Item:
    return {name: _unwrapped(_deserialize(value)) for name, value in item.items()}


def _unwrapped(value: Any) -> Any:
    return bytes(value) if isinstance(value, Binary) else value  # type: ignore[call-overload] # the stubs lack __bytes__
