"""What the table holds of a session: its state, its turns with the parts of large ones, and what is to be removed."""

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime, timedelta
from typing import Any

from memory import codec
from memory.codec import Item
from memory.table import Table
from memory.turns import DamagedTurn, Session, State, Turn

TITLE_CHARS = 80
SWEPT_AT_ONCE = 500

HELD = "#holder = :seen"
UNHELD = "attribute_not_exists(#holder)"
EXISTS = "attribute_exists(#holder)"
SAME_GENERATION = "#generation = :seen_generation"
INDEXED = ("owner", "active_at", "title", "created_at")


def new_token() -> str:
    """A random name for one attempt at something."""
    return secrets.token_hex(8)


def one_line(title: str) -> str:
    """A title as it is kept: on one line, of 80 characters at the most."""
    return " ".join(title.split())[:TITLE_CHARS]


def fitted(state: Item) -> Item:
    """A state's item with as many of its recent requests as cost nothing: those that its write units have room for.

    It would have these units with the fewest requests that are always kept. There stays room for a title of 80 bytes.
    """
    others = codec.item_bytes(state) - len(state["recent"])
    units = math.ceil((others + codec.LEAST_RECENT_REQUESTS * codec.HASH_BYTES) / codec.WRITE_UNIT)
    longer_title = max(0, TITLE_CHARS - len(state.get("title", "").encode()))
    room = (units * codec.WRITE_UNIT - others - longer_title) // codec.HASH_BYTES
    kept = max(codec.LEAST_RECENT_REQUESTS, room) * codec.HASH_BYTES
    return state | {"recent": state["recent"][-kept:]}


def state_expiry(retention: timedelta | None, now: datetime, turns: State | None = None) -> datetime | None:
    """When a state may go: a day after the last of its turns, of which those in `turns` were promised a time before."""
    if retention is None:
        return None
    expiry = now.replace(second=0, microsecond=0) + retention + codec.STATE_OUTLIVES
    if turns is None or not turns.number:
        return expiry
    return max(turns.expires_at, expiry) if turns.expires_at else None


class Items(Table):
    """One table, as sessions lie in it."""

    async def state(self, session: Session) -> State | None:
        item = await self.get(codec.partition(session), codec.STATE_KEY)
        return codec.decode_state(item) if item else None

    async def update_state(
        self,
        session: Session,
        values: Mapping[str, Any],
        *,
        condition: str,
        seen: Mapping[str, Any] | None = None,
        once: Mapping[str, Any] | None = None,
        count_up: Sequence[str] = (),
        remove: Sequence[str] = (),
        persistent: bool = False,
    ) -> Item:
        """Update the session's state: set values, set some only `once`, `count_up` to the next generation, remove."""
        once = once or {}
        assignments = [f"#{name} = :{name}" for name in values]
        assignments += [f"#{name} = if_not_exists(#{name}, :{name})" for name in once]
        assignments += [f"#{name} = #reserved + :one" for name in count_up]
        expression = "SET " + ", ".join(assignments)
        if remove:
            expression += " REMOVE " + ", ".join(f"#{name}" for name in remove)
        placeholders = {f":{name}": value for name, value in (*values.items(), *once.items())} | dict(seen or {})
        return await self.update(
            codec.partition(session),
            codec.STATE_KEY,
            expression,
            placeholders | ({":one": 1} if count_up else {}),
            condition=condition,
            persistent=persistent,
        )

    async def turn(self, item: Item) -> Turn:
        """The turn in an item, with its parts fetched where it has some. Raises DamagedTurn."""
        keys = codec.part_keys(item)
        parts = await asyncio.gather(*(self.get(item["pk"], key) for key in keys))
        payloads = [part["payload"] for part in parts if part]
        if len(payloads) < len(keys):
            raise DamagedTurn(f"{item['sk']} lacks {len(keys) - len(payloads)} of its {len(keys)} parts")
        return codec.decode_turn(item, payloads)

    async def remove_parts(self, session: Session, generation: int, number: int, *, but: str) -> None:
        """Remove the parts that were written for a turn, but for those under one token."""
        bottom, top = codec.part_key(generation, number, "", 0), codec.part_key(generation, number, "~", 0)
        pages = self.query(
            "pk = :pk AND sk BETWEEN :bottom AND :top",
            {":pk": codec.partition(session), ":bottom": bottom, ":top": top},
            ProjectionExpression="pk, sk",
        )
        strays = [(item["pk"], item["sk"]) async for page in pages for item in page if f"#{but}#" not in item["sk"]]
        await self.delete_all(strays)

    async def sweep_all(self, partition: str, first: int, end: int) -> int:
        """Remove what the generations from `first` to below `end` hold, however much that is; how many items it was."""
        removed, done = 0, False
        while not done:
            some, done = await self.sweep(partition, first, end)
            removed += some
        return removed

    async def sweep(self, partition: str, first: int, end: int) -> tuple[int, bool]:
        """Remove what the generations from `first` to below `end` hold, as far as one call may.

        How many items that were, and whether they were all.
        """
        keys = list[tuple[str, str]]()
        for bottom, top in codec.generation_ranges(first, end):
            pages = self.query(
                "pk = :pk AND sk BETWEEN :bottom AND :top",
                {":pk": partition, ":bottom": bottom, ":top": top},
                ProjectionExpression="pk, sk",
            )
            async with aclosing(pages):
                async for page in pages:
                    keys += [(item["pk"], item["sk"]) for item in page]
                    if len(keys) > SWEPT_AT_ONCE:
                        break
        await self.delete_all(keys[:SWEPT_AT_ONCE])
        return min(len(keys), SWEPT_AT_ONCE), len(keys) <= SWEPT_AT_ONCE
