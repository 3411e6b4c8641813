"""What an owner may do and have, counted in the table, so that all instances count together."""

from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime, timedelta
from itertools import repeat
from typing import TYPE_CHECKING

from memory import codec
from memory.items import new_token
from memory.table import INDEX, Refused, Table
from memory.turns import TooManySessions, TurnsUsedUp, Usage, utc_now

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

HOUR = timedelta(hours=1)


class DynamoDBAllowance:
    """The limits of each owner. Cheap to make: one for each invocation. A limit of 0 is off, and costs no call.

    Every method raises TableUnavailable if the table does not answer.
    """

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        turns_per_hour: int = 0,
        max_sessions: int = 0,
        clock: Callable[[], datetime] = utc_now,
        new_token: Callable[[], str] = new_token,
    ) -> None:
        self._table = Table(client, table)
        self._turns_per_hour = turns_per_hour
        self._max_sessions = max_sessions
        self._clock = clock
        self._new_token = new_token

    @property
    def usage(self) -> Usage:
        """What was asked of the table so far."""
        return self._table.usage

    async def spend_turn(self, owner: str) -> None:
        """Count one more turn of this hour. Raises TurnsUsedUp if the owner has had all of them.

        One conditional write, which costs one unit even if it is refused. If its response is lost, it is sent again:
        the token shows that it was applied. If another turn was counted in between, this one counts twice; nobody gets
        more turns than the limit.
        """
        if not self._turns_per_hour:
            return
        now = self._clock()
        begin = now.replace(minute=0, second=0, microsecond=0)
        end, token = begin + HOUR, self._new_token()
        values = {":none": 0, ":one": 1, ":limit": self._turns_per_hour, ":token": token}
        try:
            await self._table.update(
                codec.owner_partition(owner),
                codec.quota_key(begin),
                "SET #turns = if_not_exists(#turns, :none) + :one, #token = :token, #expires_at = :end",
                values | {":end": codec.expiry(end)["expires_at"]},
                condition="attribute_not_exists(#turns) OR (#turns < :limit AND #token <> :token)",
                persistent=True,
            )
        except Refused as refusal:
            if refusal.item.get("token") == token:
                return
            seconds = max(1, round((end - now).total_seconds()))
            raise TurnsUsedUp(limit=self._turns_per_hour, retry_after=seconds) from refusal

    async def check_sessions(self, owner: str) -> None:
        """See that the owner may have one more session. Raises TooManySessions.

        One read of the index, of as many entries as there are, up to the limit: half a unit for each 20 or so. The
        index lags behind by a moment, so sessions that are made at once can be a few too many.
        """
        if self._max_sessions and await self._count_sessions(owner) >= self._max_sessions:
            raise TooManySessions(limit=self._max_sessions)

    async def _count_sessions(self, owner: str) -> int:
        pages = self._table.query(
            "#owner = :owner",
            {":owner": codec.owner_key(owner)},
            index=INDEX,
            page_sizes=repeat(self._max_sessions),
            ProjectionExpression="expires_at",
            ExpressionAttributeNames={"#owner": "owner"},
        )
        count, now = 0, self._clock()
        async with aclosing(pages):
            async for page in pages:
                count += sum(not codec.is_expired(item, now) for item in page)
                if count >= self._max_sessions:
                    break
        return count
