"""DynamoDBTurnLog: the turn log in one DynamoDB table.

A turn is one item that is put only where nothing is yet: that put is the one commit point. Beside the turns stands one
small `state` item, whose `holder` is swapped by comparison to claim the next number. No transactions, and no clock on
which correctness rests: number n is free only once, and whoever claims n has loaded after n-1 was stored.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from memory import codec
from memory.codec import Item
from memory.items import (
    EXISTS,
    HELD,
    INDEXED,
    SAME_GENERATION,
    UNHELD,
    Items,
    fitted,
    new_token,
    one_line,
    state_expiry,
)
from memory.reading import Reading, to_supersede
from memory.shortening import CountTokens, most_tokens
from memory.table import Refused, Silent
from memory.turns import (
    START,
    Claim,
    ClaimRefused,
    DamagedTurn,
    LeaseLost,
    Position,
    Request,
    RequestIdReused,
    Session,
    SessionNotFound,
    State,
    TableUnavailable,
    TooManyWaiting,
    Turn,
    TurnInProgress,
    TurnStatus,
    Usage,
    Window,
    holding,
    utc_now,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LEASE = timedelta(seconds=10)
TIDY_SECONDS = 1.0
"""What a turn that is stored still waits for, before its caller hears of it."""
UNMARKED = f"{SAME_GENERATION} AND (attribute_not_exists(#marker) OR #marker = :seen_marker)"
MARKS = ("archived_through", "deleted_through", "marker")


class DynamoDBTurnLog:
    """A TurnLog (its guarantees stand there) in one table. Cheap to make: one for each invocation."""

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        retention: timedelta | None = None,
        count_tokens: CountTokens = most_tokens,
        clock: Callable[[], datetime] = utc_now,
        new_token: Callable[[], str] = new_token,
    ) -> None:
        self._table = Items(client, table)
        self._retention = retention
        self._count_tokens = count_tokens
        self._clock = clock
        self._new_token = new_token
        # Tokens of claims that ended in silence: a state that shows one is ours, and not to be waited for.
        self._unconfirmed: set[str] = set()
        # The lease that was waited for last, and since when: nobody who renews it shows the same one for longer than it
        # lasts, so that then it has run out, whatever clock it was written by.
        self._watched: tuple[tuple[str, datetime], float] | None = None

    @property
    def usage(self) -> Usage:
        return self._table.usage

    async def load(
        self, session: Session, *, token_limit: int | None, request: Request | None = None, active: bool = False
    ) -> Window:
        def reading() -> Reading:
            return self._reading(session, token_limit, request, active=active)

        try:
            return await self._load(reading(), whole=True)
        except DamagedTurn:  # deleted or rewritten under our eyes; or it is damaged, and then it is so again
            return await self._load(reading(), whole=False)

    async def _load(self, reading: Reading, *, whole: bool) -> Window:
        """The window, with the turns that cannot be read left out; or, if it is to be `whole`, raises DamagedTurn."""
        session, token_limit, request = reading.session, reading.token_limit, reading.request
        await self._read(reading)
        if whole and (reading.damaged or await self._moved(reading)):
            raise DamagedTurn("what was read is not whole")
        answered = await self._find_answer(reading, request) if request else None
        if answered is None:
            reading.check_regenerated()
        return Window(
            session=session,
            state=reading.state,
            generation=reading.generation,
            next_number=reading.next_number,
            turns=tuple(reversed(reading.turns)),
            shortened=tuple(reading.whole),
            token_limit=token_limit,
            answered=answered,
            regenerated=reading.regenerated,
            busy_seconds=self._lease_left(reading),
            damaged=tuple(reading.damaged),
        )

    async def claim(self, window: Window, request: Request, *, title: str = "", waiter: int | None = None) -> Claim:
        now, token, number = self._clock(), self._new_token(), window.next_number
        state = State(
            generation=window.generation,
            number=number,
            holder=token,
            lease_until=now + LEASE,
            recent=codec.remember(window.state, number, request.id),
        )
        shown = {"owner": codec.owner_key(window.session.owner), "active_at": codec.minute(now)}
        once: dict[str, Any] = {"reserved": state.generation}
        named = {"title": one_line(title)} if title and not (window.live and window.live.title) else {}
        if window.live:
            once |= named
        else:
            shown |= {"created_at": codec.second(now)} | named
        values = codec.encode_state(state) | shown | codec.expiry(state_expiry(self._retention, now, window.live))
        values |= {"waiters": others} if (others := self._waiters(window, but=waiter)) else {}
        values["recent"] = self._recent(window, once | values)
        left = {"expires_at", "deleted_at", "waiters"} | (set() if window.live else {"title", "asked"})
        try:
            await self._table.update_state(
                window.session,
                values,
                once=once,
                remove=sorted(left - values.keys()),
                condition=HELD if window.state else UNHELD,
                seen={":seen": window.state.holder} if window.state else {},
            )
        except Refused as refusal:
            if refusal.item.get("holder") != token:
                raise ClaimRefused("another request claimed first") from refusal
        except Silent as silence:
            self._unconfirmed.add(token)
            raise ClaimRefused("the claim ended in silence") from silence
        return Claim(
            session=window.session,
            generation=window.generation,
            number=number,
            token=token,
            request=replace(request, regenerates=None),
            window=window.size,
            claimed_at=now,
            takes_over=window.state is not None and window.state.number == number,
            supersedes=to_supersede(window.regenerated) if window.regenerated else None,
            expires_at=self._turn_expiry(now),
        )

    async def wait(self, window: Window, *, limit: int, seconds: float) -> int:
        """A compare-and-swap of the list of waiters, which the claims that happen anyway shorten again."""
        others = self._waiters(window)
        if len(others) >= limit or window.state is None:
            raise TooManyWaiting(limit=limit, retry_after=max(1, math.ceil(window.busy_seconds)))
        waiter = codec.encode_waiter(self._clock() + timedelta(seconds=seconds), self._new_token())
        try:
            await self._change_waiters(window, [*others, waiter])
        except Refused as refusal:
            if waiter not in refusal.item.get("waiters", []):
                raise ClaimRefused("the session or its waiters changed") from refusal
        return waiter

    async def stop_waiting(self, window: Window, waiter: int) -> None:
        with suppress(Refused, TableUnavailable):  # then it ends by itself, when its time is over
            await self._change_waiters(window, self._waiters(window, but=waiter))

    async def _change_waiters(self, window: Window, waiters: list[int]) -> None:
        """Swap the list of waiters, if neither it nor the holder has changed since the load."""
        state = window.state
        if state is None:
            return
        unchanged = "#waiters = :seen_waiters" if state.waiters else "attribute_not_exists(#waiters)"
        await self._table.update_state(
            window.session,
            {"waiters": waiters},
            condition=f"{HELD} AND {unchanged}",
            seen={":seen": state.holder} | ({":seen_waiters": list(state.waiters)} if state.waiters else {}),
            persistent=True,
        )

    def _waiters(self, window: Window, *, but: int | None = None) -> list[int]:
        """Those that still wait for the session."""
        known, now = window.state.waiters if window.state else (), self._clock()
        return [waiter for waiter in known if waiter != but and codec.waits(waiter, now)]

    async def renew(self, claim: Claim) -> None:
        lease = {"lease_until": codec.timestamp(self._clock() + LEASE)}
        try:
            await self._table.update_state(claim.session, lease, condition=HELD, seen={":seen": claim.token})
        except Refused as refusal:
            raise LeaseLost(f"turn {claim.number} was taken over") from refusal

    async def commit(self, claim: Claim, turn: Turn) -> Turn:
        item, parts = codec.encode_turn(claim.session, turn)
        await self._table.put_all(parts)
        try:
            await self._table.put_new(item)
        except Refused as refusal:
            if refusal.item.get("token") != turn.token:
                await self._table.delete_all((part["pk"], part["sk"]) for part in parts)
                return await self._answer_in_its_place(refusal.item, turn)
        if claim.takes_over:
            await self._remove_strays(claim)
        # A rewrite or a delete frees the numbers of those that it overtook, so that their puts succeed unseen.
        slow = self._clock() - claim.claimed_at > LEASE / 2
        if slow and await self._generation(claim.session) != claim.generation:
            raise LeaseLost(f"turn {turn.number} was overtaken by a rewrite or a delete, and nobody will see it")
        return turn

    async def delete(self, session: Session) -> bool:
        """One compare-and-swap of the generation, so that a copy that arrives late finds nothing to delete."""
        while (seen := await self._table.state(session)) is not None and seen.exists(now := self._clock()):
            holder = self._new_token()
            values = {"n": 0, "holder": holder, "lease_until": 0, "deleted_at": codec.timestamp(now)}
            try:
                state = await self._table.update_state(
                    session,
                    values | codec.expiry(now + codec.STATE_OUTLIVES),
                    # Above every generation that was ever reserved: nothing that is or will be written is in it.
                    count_up=["generation", "reserved"],
                    remove=["recent", "asked", "waiters", *INDEXED, *MARKS],
                    condition=SAME_GENERATION,
                    seen={":seen_generation": seen.generation},
                    persistent=True,
                )
            except Refused as refusal:
                if refusal.item.get("holder") != holder:
                    continue
                state = refusal.item
            try:
                _, done = await self._sweep(session, 0, int(state["generation"]))
            except TableUnavailable:
                return False  # it is deleted, and the table's stream tells the sweeper so
            return done
        removed, done = await self._sweep(session, 0, seen.generation) if seen else (0, True)
        if not removed:
            raise SessionNotFound
        return done

    async def rewrite(self, window: Window, turns: Sequence[Turn]) -> None:
        """The new turns are written under a generation that nobody reads; then one compare-and-swap shows them."""
        session = window.session
        if window.busy_seconds:
            raise TurnInProgress(max(1, round(window.busy_seconds)))
        if not turns and window.state is None:
            return
        claim = await self.claim(window, Request(id="", body_hash=""))
        counter = await self._table.update_state(session, {}, count_up=["reserved"], condition=EXISTS, persistent=True)
        generation = int(counter["reserved"])
        places: dict[int | None, int] = {turn.number: n for n, turn in enumerate(turns, 1)}
        turns = [
            replace(
                turn,
                generation=generation,
                number=n,
                supersedes=places.get(turn.supersedes),
                expires_at=turn.expires_at or claim.expires_at,
            )
            for n, turn in enumerate(turns, 1)
        ]
        try:
            encoded = [codec.encode_turn(session, turn) for turn in turns]
            # Without the lease, writers that add all the time would overtake every rewrite that takes longer than one.
            async with holding(self, claim):
                await self._table.put_all(item for main, parts in encoded for item in (*parts, main))
            # Whoever was overtaken at this number must not store a turn that the flip would hide.
            await self.commit(claim, claim.void())
            await self._flip(window, claim, turns, generation)
        except (ClaimRefused, LeaseLost):
            await self._sweep(session, generation, generation + 1)
            raise
        with suppress(TableUnavailable):  # what is left is out of sight; the next rewrite or delete removes it
            await self._table.sweep_all(codec.partition(session), 0, generation)

    async def mark(self, window: Window, *, archived: Position = START, deleted: Position = START) -> None:
        if window.state is None:
            return
        marker = self._new_token()
        marks = {"archived_through": archived, "deleted_through": deleted}
        try:
            await self._table.update_state(
                window.session,
                {name: codec.encode_position(mark) for name, mark in marks.items() if mark != START}
                | {"marker": marker},
                condition=UNMARKED,
                seen=_seen_marks(window),
                persistent=True,
            )
        except Refused as refusal:
            if refusal.item.get("marker") == marker:
                return
            if not refusal.repeated:
                raise ClaimRefused("somebody else changed the history") from refusal
            # An earlier attempt may have been applied, and somebody moved the marks since. They only ever advance.
            if refusal.item.get("generation") != window.generation:
                raise TableUnavailable("rewritten meanwhile; whether it was marked before is not known") from refusal
            there = (codec.decode_position(refusal.item.get(name)) for name in marks)
            if any(now < wanted for now, wanted in zip(there, marks.values(), strict=True)):
                raise ClaimRefused("somebody else changed the history") from refusal

    def _reading(self, session: Session, token_limit: int | None, request: Request | None, *, active: bool) -> Reading:
        return Reading(
            session=session,
            token_limit=token_limit,
            now=self._clock(),
            count_tokens=self._count_tokens,
            request=request,
            active=active,
        )

    async def _read(self, reading: Reading) -> None:
        """State and turns in one Query, newest first, for as long as the turns fit."""
        await self._descend(reading, codec.STATE_KEY)
        if reading.met_unfinished_rewrite:
            await self._descend(reading, codec.turn_key(reading.generation, codec.LAST_NUMBER))

    async def _descend(self, reading: Reading, top: str) -> None:
        pages = self._table.query(
            "pk = :pk AND sk BETWEEN :bottom AND :top",
            {":pk": codec.partition(reading.session), ":bottom": codec.TURN_PREFIX, ":top": top},
            page_sizes=reading.page_sizes(),
        )
        async with aclosing(pages):
            async for page in pages:
                reading.pages += 1
                for item in page:
                    if item["sk"] == codec.STATE_KEY:
                        reading.take_state(item)
                    elif not reading.wants(item):
                        return
                    elif not reading.skips(item):
                        await self._add(reading, item)

    async def _add(self, reading: Reading, item: Item) -> None:
        """Add a turn; one that cannot be read hides no other."""
        try:
            reading.add(await self._table.turn(item))
        except DamagedTurn:
            reading.damaged[codec.turn_numbers(item["sk"])[1]] = item.get("request_id", "")

    async def _answer_in_its_place(self, item: Item, turn: Turn) -> Turn:
        """The stored turn that has the number, where it answered the same request; else raises LeaseLost."""
        try:
            if answer := _answer(await self._table.turn(item), turn.request):
                return answer
        except DamagedTurn as error:
            raise LeaseLost(f"turn {turn.number} was taken over, by one that cannot be read") from error
        raise LeaseLost(f"turn {turn.number} was taken over")

    async def _remove_strays(self, claim: Claim) -> None:
        """Remove the parts that a killed holder of the same number may have left."""
        with suppress(TableUnavailable, TimeoutError):  # the turn is stored, and nobody sees them
            async with asyncio.timeout(TIDY_SECONDS):
                await self._table.remove_parts(claim.session, claim.generation, claim.number, but=claim.token)

    async def _generation(self, session: Session) -> int | None:
        """The generation that is read now; None where the session has no state."""
        state = await self._table.state(session)
        return state.generation if state else None

    async def _moved(self, reading: Reading) -> bool:
        """Whether a rewrite or a delete came between the pages of a reading. (A claim would find out by itself.)"""
        if reading.pages == 1 or reading.token_limit is not None:
            return False
        now, then = await self._table.state(reading.session), reading.state
        return (now and (now.generation, now.marker)) != (then and (then.generation, then.marker))

    async def _find_answer(self, reading: Reading, request: Request) -> Turn | None:
        """The complete turn that answered this request: among the loaded ones, and those that the state remembers.

        Raises DamagedTurn where that one cannot be read: the request must not be answered twice.
        """
        if request.id in reading.damaged.values():
            raise DamagedTurn("the turn that answered this request cannot be read")
        candidates = [turn for turn in reading.stored_turns if turn.request.id == request.id]
        read = {turn.number for turn in reading.turns}
        for number in reading.recalled(request.id):
            key = codec.turn_key(reading.generation, number)
            if number in read:
                continue
            item = await self._table.get(codec.partition(reading.session), key)
            if item and not codec.is_expired(item, reading.now):
                candidates.append(await self._table.turn(item))
        return next((turn for turn in candidates if _answer(turn, request)), None)

    def _lease_left(self, reading: Reading) -> float:
        state = reading.state
        if state is None or state.number <= reading.newest or state.holder in self._unconfirmed:
            return 0
        now, lease = asyncio.get_running_loop().time(), (state.holder, state.lease_until)
        if self._watched is None or self._watched[0] != lease:
            self._watched = lease, now
        watched = now - self._watched[1]  # by a clock that nobody sets
        left = (state.lease_until - self._clock()).total_seconds()
        return max(0.0, min(left, LEASE.total_seconds() - watched))

    async def _flip(self, window: Window, claim: Claim, turns: Sequence[Turn], generation: int) -> None:
        """Show the turns of a new generation in place of the old ones, where nobody came between."""
        state = State(
            generation=generation,
            number=len(turns),
            holder=self._new_token(),
            lease_until=self._clock(),
            recent=tuple(codec.recent_request(turn.status, turn.request.id) for turn in turns)[
                -codec.RECENT_REQUESTS :
            ],
        )
        values = codec.encode_state(state)
        shown = {"owner": codec.owner_key(claim.session.owner), "active_at": codec.minute(claim.claimed_at)}
        values["recent"] = self._recent(window, values | shown | {"reserved": generation})
        try:
            await self._table.update_state(
                claim.session,
                values,
                remove=MARKS if turns else (*MARKS, *INDEXED),
                condition=f"{HELD} AND {UNMARKED}",
                seen={":seen": claim.token} | _seen_marks(window),
                persistent=True,
            )
        except Refused as refusal:
            there = int(refusal.item.get("generation", 0))
            if there == generation:
                return  # shown by an earlier attempt, and already claimed by somebody
            if refusal.repeated and there > generation:
                raise TableUnavailable("rewritten again; whether this was shown before is not known") from refusal
            raise ClaimRefused("another request came between") from refusal

    def _recent(self, window: Window, values: Item) -> bytes:
        """As many recent requests as the state that gets these values can have in the write units that it takes."""
        keys = {"pk": codec.partition(window.session), "sk": codec.STATE_KEY}
        recent: bytes = fitted(codec.lasting(window.state) | values | keys)["recent"]
        return recent

    async def _sweep(self, session: Session, first: int, end: int) -> tuple[int, bool]:
        return await self._table.sweep(codec.partition(session), first, end)

    def _turn_expiry(self, now: datetime) -> datetime | None:
        """When a turn that begins now expires, in whole seconds as the table keeps it."""
        if self._retention is None:
            return None
        return datetime.fromtimestamp(math.ceil((now + self._retention).timestamp()), UTC)


def _seen_marks(window: Window) -> dict[str, Any]:
    """Values of the UNMARKED condition."""
    return {":seen_generation": window.generation, ":seen_marker": window.state.marker if window.state else ""}


def _answer(turn: Turn, request: Request) -> Turn | None:
    """The turn, where it answered this request. Raises RequestIdReused where it was asked something else."""
    if turn.request.id != request.id or turn.status is not TurnStatus.COMPLETE:
        return None
    if turn.request.body_hash != request.body_hash:
        raise RequestIdReused(f"turn {turn.number} answered another request under the same id")
    return turn
