"""What an owner may do in an hour, counted in the table, so that all instances count together."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from memory import codec
from memory.items import new_token
from memory.table import Refused, Table
from memory.turns import TurnsUsedUp, Usage, utc_now

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
        clock: Callable[[], datetime] = utc_now,
        new_token: Callable[[], str] = new_token,
    ) -> None:
        self._table = Table(client, table)
        self._turns_per_hour = turns_per_hour
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
