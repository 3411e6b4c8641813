"""The sessions of an owner: made, listed, renamed, read at length, forked, and swept once they are deleted."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import repeat
from typing import TYPE_CHECKING

from memory import codec
from memory.codec import Item
from memory.items import HELD, Items, new_token, one_line, state_expiry
from memory.reading import visible
from memory.table import INDEX, Refused
from memory.turns import (
    DamagedTurn,
    HistoryReplaced,
    Request,
    RequestIdReused,
    Session,
    SessionNotFound,
    State,
    Turn,
    TurnNotFound,
    TurnStatus,
    Usage,
    utc_now,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

FIRST_GENERATION = 1
COPIED_AT_ONCE = 25
UNEXPIRED = "(attribute_not_exists(#expires_at) OR #expires_at > :now)"
UNBORN = f"{HELD} AND attribute_not_exists(#created_at) AND attribute_not_exists(#deleted_at)"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A session as the list shows it."""

    id: str
    title: str
    created_at: datetime
    active_at: datetime


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One place of a history. There is no turn where the stored one cannot be read."""

    number: int
    turn: Turn | None
    superseded: int = 0
    """Number of the older turn that is superseded, as far as is known here; 0 where none is."""


class DynamoDBSessions:
    """Sessions in one table. Cheap to make: one for each invocation.

    Every method raises TableUnavailable where the table does not answer, and those for one session SessionNotFound
    where its owner has none of this id.
    """

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        retention: timedelta | None = None,
        empty_retention: timedelta | None = None,
        clock: Callable[[], datetime] = utc_now,
        new_token: Callable[[], str] = new_token,
    ) -> None:
        self._table = Items(client, table)
        self._retention = retention
        self._empty_retention = empty_retention
        self._clock = clock
        self._new_token = new_token

    @property
    def usage(self) -> Usage:
        """What was asked of the table so far."""
        return self._table.usage

    async def create(self, session: Session, *, title: str = "", asked: str = "") -> tuple[State, bool]:
        """Make an empty session, and say whether it is new; not so where the same request (`asked`) made it before.

        It expires after the retention of empty sessions, unless a turn is claimed in it. Raises RequestIdReused where
        another request made it.
        """
        item = await self._unborn(session) | self._birth(session, title, asked)
        if self._empty_retention:
            empty = codec.expiry(self._clock() + self._empty_retention)["expires_at"]
            item["expires_at"] = min(empty, item.get("expires_at", empty))
        try:
            await self._table.put_new(item)
        except Refused as refusal:
            if refusal.item.get("holder") != item["holder"]:
                return self._made_before(refusal.item, asked), False
        return codec.decode_state(item), True

    async def made(self, session: Session, asked: str) -> State | None:
        """The session that the same request (`asked`) made before; None where none did. Raises as `create` does."""
        item = await self._table.get(codec.partition(session), codec.STATE_KEY)
        if item is None or not item.keys() & {"created_at", "deleted_at"}:
            return None
        return self._made_before(item, asked)

    async def find(self, session: Session) -> State:
        """The state of a session that is there."""
        state = await self._table.state(session)
        if state is None or not state.exists(self._clock()):
            raise SessionNotFound
        return state

    async def listed(self, owner: str, *, limit: int, after: tuple[datetime, str] | None = None) -> list[Listed]:
        """The owner's sessions, the last active first, from an index that may lag behind by a moment.

        `after` is the (last activity, id) of the one to go on from; what was not active meanwhile comes exactly once.
        """
        pages = self._table.query(
            "#owner = :owner",
            {":owner": codec.owner_key(owner)},
            index=INDEX,
            after=self._index_key(owner, *after) if after else None,
            page_sizes=repeat(limit),
            ExpressionAttributeNames={"#owner": "owner"},
        )
        found: list[Listed] = []
        async with aclosing(pages):
            async for page in pages:
                found += [_listed(item) for item in page if not codec.is_expired(item, self._clock())]
                if len(found) >= limit:
                    break
        return found[:limit]

    async def rename(self, session: Session, title: str) -> None:
        """Give the session another title."""
        try:
            await self._table.update_state(
                session,
                {"title": one_line(title)},
                condition=f"attribute_exists(#created_at) AND {UNEXPIRED}",
                seen={":now": int(self._clock().timestamp())},
                persistent=True,
            )
        except Refused as refusal:
            raise SessionNotFound from refusal

    async def history(
        self,
        session: Session,
        state: State,
        *,
        start: int | None = None,
        superseded: int = 0,
        oldest_first: bool = False,
        page_size: int | None = None,
    ) -> AsyncGenerator[Entry]:
        """Everything that the session's owner may see, from turn `start` on, of the generation that `state` names.

        `superseded` is the turn that is known to be so by a newer one above the start. Who has read enough asks
        `unchanged` whether it still holds.
        """
        stored = self._stored(session, state, start, oldest_first=oldest_first, page_size=page_size)
        async with aclosing(stored) as items:
            found = self._forwards(items, state) if oldest_first else self._backwards(items, state, superseded)
            async with aclosing(found):
                async for entry in found:
                    yield entry

    async def unchanged(self, session: Session, state: State) -> None:
        """Raises HistoryReplaced where what was read in view of this state is no longer the history."""
        now = await self.find(session)
        if (now.generation, now.marker) != (state.generation, state.marker):
            raise HistoryReplaced

    async def fork(
        self,
        source: Session,
        through: int,
        target: Session,
        *,
        title: str = "",
        asked: str = "",
        max_turns: int | None = None,
    ) -> tuple[State, bool]:
        """Make a session that holds the source's turns up to number `through`, and say whether it is new.

        Of more than `max_turns` it holds the newest, which are those that a model is shown. The others stay in the
        source, and count as deleted here.

        The copies lie in a generation that nobody reads until the one write that shows them. Raises TurnNotFound where
        the source has no such turn, and HistoryReplaced where it was deleted or rewritten meanwhile.
        """
        state = await self.find(source)
        try:
            holder, generation = await self._reserve(target)
        except Refused as refusal:
            return self._made_before(refusal.item, asked), False
        try:
            first = await self._copy(source, state, through, target, generation, max_turns)
            born = self._birth(target, title or state.title, asked, turns=state)
            born |= {"deleted_through": codec.encode_position((first, 0))} if first else {}
            made = await self._show(target, holder, generation, through, born)
        except (SessionNotFound, TurnNotFound, HistoryReplaced):  # not TableUnavailable: it may have been shown then
            await self._sweep(target, generation, generation + 1)
            raise
        except Refused as refusal:
            await self._sweep(target, generation, generation + 1)
            return self._made_before(refusal.item, asked), False
        await self._sweep(target, 0, generation)
        return made, True

    async def sweep(self, partition: str) -> int:
        """Remove what nobody can see of the session in a partition: all generations below the one that is read.

        How many items that were.
        """
        item = await self._table.get(partition, codec.STATE_KEY) or await self._fence(partition)
        return await self._table.sweep_all(partition, 0, int(item["generation"])) if item else 0

    async def _fence(self, partition: str) -> Item | None:
        """Put a tombstone where the state is gone and something is left: whoever claims now stays above it."""
        generation = await self._next_generation(partition)
        if generation == FIRST_GENERATION:
            return None
        item = self._stateless(partition, generation) | codec.expiry(self._clock() + codec.STATE_OUTLIVES)
        try:
            await self._table.put_new(item)
        except Refused as refusal:
            return refusal.item
        return item

    async def _reserve(self, target: Session) -> tuple[str, int]:
        """Hold the place of a session to be, and a generation in it. Raises Refused where the place is taken.

        Attempts that were killed and others at the same time hold the place together: one of them will be shown.
        """
        lasting = codec.expiry(self._clock() + codec.STATE_OUTLIVES)
        item = await self._unborn(target) | lasting
        try:
            await self._table.put_new(item)
        except Refused as refusal:
            item = refusal.item
        counter = await self._table.update_state(
            target,
            lasting,
            count_up=["reserved"],
            condition=UNBORN,
            seen={":seen": item["holder"]},
            persistent=True,
        )
        return item["holder"], int(counter["reserved"])

    async def _copy(
        self, source: Session, state: State, through: int, target: Session, generation: int, max_turns: int | None
    ) -> int:
        """Write copies of the turns up to `through` into the target's generation, under their numbers.

        Number of the oldest copy, if there were more to copy than `max_turns`; else 0.
        """
        items: list[Item] = []
        newest = oldest = copied = cut = 0
        page_size = max_turns + 1 if max_turns else None
        async with aclosing(self._stored(source, state, through, page_size=page_size)) as stored:
            async for item in stored:
                # As it is stored: a turn that supersedes it says so in the copy as well, if it is among them.
                entry = await self._entry(item, state, 0)
                if entry is None:
                    continue
                newest = newest or entry.number
                if newest != through:
                    break
                if entry.turn is None:
                    continue
                if copied == max_turns:
                    cut = oldest
                    break
                copied, oldest = copied + 1, entry.number
                # Its request was another session's: the same key can be used anew here.
                copy = replace(entry.turn, generation=generation, request=Request(id="", body_hash=""))
                main, parts = codec.encode_turn(target, copy)
                items += [*parts, main]
                if len(items) >= COPIED_AT_ONCE:
                    await self._table.put_all(items)
                    items = []
        await self._table.put_all(items)
        await self.unchanged(source, state)
        if newest != through:
            raise TurnNotFound
        return cut

    async def _show(self, target: Session, holder: str, generation: int, number: int, born: Item) -> State:
        """Make a fork appear with all of its turns. Raises Refused where another attempt was faster."""
        state = State(generation=generation, number=number, holder=self._new_token(), lease_until=self._clock())
        values = codec.encode_state(state) | born
        try:
            await self._table.update_state(
                target,
                values,
                remove=[] if "expires_at" in values else ["expires_at"],
                condition=UNBORN,
                seen={":seen": holder},
                persistent=True,
            )
        except Refused as refusal:
            if refusal.item.get("generation") != generation:
                raise
        return codec.decode_state(values)

    async def _stored(
        self,
        session: Session,
        state: State,
        start: int | None,
        *,
        oldest_first: bool = False,
        page_size: int | None = None,
    ) -> AsyncGenerator[Item]:
        """The items of all turns of a state's generation, from number `start` on."""
        lowest = codec.turn_key(state.generation, (start or 0) if oldest_first else 0)
        highest = codec.turn_key(state.generation, codec.LAST_NUMBER if oldest_first or start is None else start)
        pages = self._table.query(
            "pk = :pk AND sk BETWEEN :lowest AND :highest",
            {":pk": codec.partition(session), ":lowest": lowest, ":highest": highest},
            oldest_first=oldest_first,
            page_sizes=repeat(page_size) if page_size else None,
        )
        async with aclosing(pages):
            async for page in pages:
                for item in page:
                    yield item

    async def _backwards(self, items: AsyncGenerator[Item], state: State, known: int) -> AsyncGenerator[Entry]:
        """Newest first: what supersedes a turn came before it."""
        superseded = known
        async for item in items:
            entry = await self._entry(item, state, superseded)
            if item.get("status") == TurnStatus.COMPLETE:
                superseded = int(item.get("supersedes", 0))
            if entry:
                yield replace(entry, superseded=superseded)

    async def _forwards(self, items: AsyncGenerator[Item], state: State) -> AsyncGenerator[Entry]:
        """Oldest first: whether a turn is superseded says the next complete one, so that long it is kept back."""
        kept_back: list[Item] = []
        async for item in items:
            if item.get("status") == TurnStatus.COMPLETE:
                for earlier in kept_back:
                    if entry := await self._entry(earlier, state, int(item.get("supersedes", 0))):
                        yield entry
                kept_back = []
            kept_back.append(item)
        for earlier in kept_back:
            if entry := await self._entry(earlier, state, 0):
                yield entry

    async def _entry(self, item: Item, state: State, superseded: int) -> Entry | None:
        number = codec.turn_numbers(item["sk"])[1]
        if codec.is_expired(item, self._clock()) or number < state.deleted_through[0]:
            return None
        try:
            turn = visible(await self._table.turn(item), state, {superseded})
        except DamagedTurn:
            return Entry(number=number, turn=None)
        return Entry(number=number, turn=turn) if turn else None

    async def _unborn(self, session: Session) -> Item:
        """The state of a session that nobody sees yet."""
        partition = codec.partition(session)
        return self._stateless(partition, await self._next_generation(partition))

    def _stateless(self, partition: str, generation: int) -> Item:
        """A state that says nothing but which generation comes next."""
        state = State(generation=generation, number=0, holder=self._new_token(), lease_until=self._clock())
        return {"pk": partition, "sk": codec.STATE_KEY, "reserved": generation, **codec.encode_state(state)}

    def _birth(self, session: Session, title: str, asked: str, *, turns: State | None = None) -> Item:
        """The attributes by which a session is seen, for as long as the turns that it was given are kept."""
        now = self._clock()
        return {
            "owner": codec.owner_key(session.owner),
            "active_at": codec.minute(now),
            "created_at": codec.second(now),
            "asked": asked,
            **({"title": one_line(title)} if title else {}),
            **codec.expiry(state_expiry(self._retention, now, turns)),
        }

    def _made_before(self, item: Item, asked: str) -> State:
        """The session that the same request made before. Raises SessionNotFound where it was deleted since."""
        state = codec.decode_state(item) if item else None
        if state is None or not state.exists(self._clock()):
            raise SessionNotFound
        if not asked or state.asked != asked:
            raise RequestIdReused
        return state

    async def _next_generation(self, partition: str) -> int:
        """Above everything that an earlier session left in the partition."""
        highest = FIRST_GENERATION - 1
        for kind in (codec.TURN_PREFIX, codec.PART_PREFIX):
            pages = self._table.query(
                "pk = :pk AND begins_with(sk, :kind)", {":pk": partition, ":kind": kind}, page_sizes=repeat(1)
            )
            async with aclosing(pages):
                async for page in pages:
                    highest = max([highest, *(int(item["sk"].split("#")[1]) for item in page)])
                    break
        return highest + 1

    async def _sweep(self, session: Session, first: int, end: int) -> None:
        await self._table.sweep_all(codec.partition(session), first, end)

    def _index_key(self, owner: str, active_at: datetime, session_id: str) -> Item:
        return {
            "owner": codec.owner_key(owner),
            "active_at": codec.minute(active_at),
            "pk": codec.partition(Session(owner=owner, id=session_id)),
            "sk": codec.STATE_KEY,
        }


def _listed(item: Item) -> Listed:
    return Listed(
        id=codec.session_id(item["pk"]),
        title=item.get("title", ""),
        created_at=datetime.fromisoformat(item["created_at"]),
        active_at=datetime.fromisoformat(item["active_at"]),
    )
