"""Who does something with a session in a schedule: one request each, as the handlers make them."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from memory import codec
from memory.dynamodb import DynamoDBTurnLog
from memory.sessions import DynamoDBSessions
from memory.turns import (
    ClaimRefused,
    HistoryReplaced,
    LeaseLost,
    NotTheNewestTurn,
    Request,
    RequestIdReused,
    Session,
    SessionNotFound,
    TableUnavailable,
    Turn,
    TurnInProgress,
    TurnNotFound,
    TurnStatus,
    take_turn,
)
from proof.ledger import TOKENS, Attempt, Deletion, Ledger
from proof.loop import SteppedLoop, Wire

TABLE = "rehydrate"
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 25
REFUSALS = (TurnInProgress, LeaseLost, ClaimRefused, TableUnavailable, SessionNotFound, TurnNotFound, NotTheNewestTurn)


@dataclass(kw_only=True)
class Actor:
    """One invocation: its log, its clock, and what it does."""

    name: str
    loop: SteppedLoop
    ledger: Ledger
    random: random.Random
    new_token: Callable[[], str]
    skew: float
    """Seconds that its clock is ahead."""
    session: Session
    ids: str = "abcd"
    """Request ids to choose from; few, so that requests come again."""
    limits: tuple[int, ...] = (1000,)
    hasty: bool = False
    """Whether its agent answers at once, in few words, and never fails."""
    outcome: str = "unfinished"

    def clock(self) -> datetime:
        return BEGINNING + timedelta(milliseconds=round((self.loop.now + self.skew) * 1000))

    def log(self) -> DynamoDBTurnLog:
        return DynamoDBTurnLog(Wire(), TABLE, clock=self.clock, new_token=self.new_token)  # type: ignore[arg-type]

    def sessions(self) -> DynamoDBSessions:
        return DynamoDBSessions(Wire(), TABLE, clock=self.clock, new_token=self.new_token)  # type: ignore[arg-type]

    @property
    def partition(self) -> str:
        return codec.partition(self.session)

    async def act(self, kind: str) -> None:
        """One request. What a caller may be told is an outcome; anything else is for the schedule to report."""
        deeds: dict[str, Callable[[], Awaitable[None]]] = {
            "talk": self.talk,
            "regenerate": self.regenerate,
            "delete": self.delete,
            "rewrite": self.rewrite,
            "mark": self.mark,
            "rename": self.rename,
            "fork": self.fork,
            "sweep": self.sweep,
            "read": self.read,
            "history": self.history,
        }
        for _ in range(self.random.randint(0, 10) if kind != "talk" else 0):
            await asyncio.sleep(self.random.choice([0, 0.1, 1]))
        try:
            await deeds[kind]()
            self.outcome = "done"
        except REFUSALS as refusal:
            self.outcome = type(refusal).__name__

    async def talk(self) -> None:
        """Ask something; again under the same key where the answer did not come."""
        name, variant = self.random.choice(self.ids), self.random.random() < 0.05
        request = Request(id=name, body_hash=f"{name}{variant}")
        for attempts_left in (1, 0):
            try:
                await self.turn(request)
            except (TurnInProgress, LeaseLost, TableUnavailable):
                if not attempts_left or self.random.random() < 0.5:
                    raise
            except RequestIdReused:
                if not self._asked_otherwise(request):
                    self.ledger.wrong("a request was taken for another one")
                return
            else:
                return

    def _asked_otherwise(self, request: Request) -> bool:
        puts = (stored.item for stored in [*self.ledger.turns.values(), *self.ledger.removed.values()])
        return any(i["request_id"] == request.id and i["body_hash"] != request.body_hash for i in puts)

    async def regenerate(self) -> None:
        """Ask for another answer to the newest turn."""
        window = await self.log().load(self.session, token_limit=None)
        if window.turns:
            number = window.turns[-1].number
            name = f"again{number}{self.random.choice('xy')}"
            await self.turn(Request(id=name, body_hash=f"again {number}", regenerates=number))

    async def turn(self, request: Request, log: DynamoDBTurnLog | None = None) -> Turn:
        """Take a turn as the handler does: load, claim, think, commit."""
        log, begun = log or self.log(), self.ledger.step
        window, claim = await take_turn(
            log, self.session, request, token_limit=self.random.choice(self.limits), patience=PATIENCE, title="title"
        )
        self._check_window(window.turns, begun, window.generation, window.token_limit)
        if claim is None:
            if window.answered is None:
                raise AssertionError("there is neither a claim nor an answer")
            self.ledger.told(self.partition, window.answered, request, begun)
            return window.answered
        attempt = Attempt(actor=self.name, claim=claim, window=window)
        self.ledger.attempts[claim.token] = attempt
        for _ in range(0 if self.hasty else self.random.choice([0, 0, 0, 1, 1, 4])):
            await asyncio.sleep(1.5)
            if self.random.random() < 0.6:
                with suppress(TableUnavailable):
                    await log.renew(claim)
        turn = self._said(request, claim)
        self.ledger.said[turn.token] = turn.messages
        attempt.thinking = False
        stored = await log.commit(claim, turn)
        if stored.status is TurnStatus.COMPLETE:
            self.ledger.told(self.partition, stored, request, begun)
        return stored

    def _check_window(self, turns: tuple[Turn, ...], begun: int, generation: int, limit: int | None) -> None:
        self.ledger.check_read(self.partition, turns, begun, generation=generation, token_limit=limit)

    def _said(self, request: Request, claim: Any) -> Turn:
        """What came of the agent: mostly an answer, sometimes a large one, sometimes none."""
        size = 0 if self.hasty else self.random.choice([0, 0, 600])
        text = "".join(self.random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))
        messages: list[dict[str, Any]] = [
            {"role": role, "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": said}]}
            for role, said in (("user", request.id), ("assistant", f"{claim.token} {text}"))
        ]
        at = self.clock()
        if not self.hasty and self.random.random() < 0.15:
            failed: Turn = claim.failed("model_error", messages[:1], at=at, instance=self.name)
            return failed
        completed: Turn = claim.completed(messages, tokens=TOKENS, at=at, instance=self.name)
        return completed

    async def delete(self) -> None:
        """Delete the session, and go on until nothing is left."""
        deletion = Deletion(partition=self.partition, begun=self.ledger.step)
        self.ledger.deletions.append(deletion)
        log = self.log()
        try:
            while not await log.delete(self.session):
                pass
        except SessionNotFound:
            deletion.ended = self.ledger.step
            raise
        deletion.ended = self.ledger.step

    async def rewrite(self) -> None:
        """Replace the history by itself, with or without one of its turns."""
        log = self.log()
        begun = self.ledger.step
        window = await log.load(self.session, token_limit=None)
        self._check_window(window.turns, begun, window.generation, None)
        gone = {turn.token for turn in window.turns if self.random.random() < 0.2}
        self.ledger.dropped |= gone
        await log.rewrite(window, [turn for turn in window.turns if turn.token not in gone])

    async def mark(self) -> None:
        """Archive or delete the messages before a place."""
        log = self.log()
        window = await log.load(self.session, token_limit=None)
        if not window.turns:
            return
        turn = self.random.choice(window.turns)
        place = turn.number, self.random.randint(0, len(turn.messages) + turn.deleted)
        if self.random.random() < 0.5:
            await log.mark(window, archived=place)
            return
        self.ledger.dropped |= {one.token for one in window.turns if one.number <= turn.number}
        await log.mark(window, deleted=place)

    async def rename(self) -> None:
        """Give the session another title."""
        await self.sessions().rename(self.session, f"title of {self.name}")

    async def fork(self) -> None:
        """Fork the session at some turn; two who do so at the same turn make the same request."""
        window = await self.log().load(self.session, token_limit=None)
        if not window.turns:
            return
        through = self.random.choice([turn.number for turn in window.turns])
        target = replace(self.session, id=f"fork{through}")
        try:
            state, new = await self.sessions().fork(self.session, through, target, asked=str(through))
        except HistoryReplaced:
            return
        except RequestIdReused:
            self.ledger.wrong("a fork was taken for another request's")
            return
        if new:
            self.ledger.check_fork(self.partition, through, codec.partition(target), state)
        self.session = target
        await self.turn(Request(id="in the fork", body_hash="in the fork"))

    async def sweep(self) -> None:
        """Remove what nobody sees, as the table's stream has it done."""
        await self.sessions().sweep(self.partition)

    async def read(self) -> None:
        """Read the whole session, or what fits a window."""
        begun, limit = self.ledger.step, self.random.choice([None, None, *self.limits])
        window = await self.log().load(self.session, token_limit=limit)
        self._check_window(window.turns, begun, window.generation, limit)

    async def history(self) -> None:
        """Read the whole session as it is listed, in either direction."""
        sessions, begun, forwards = self.sessions(), self.ledger.step, self.random.random() < 0.5
        state = await sessions.find(self.session)
        async with aclosing(sessions.history(self.session, state, oldest_first=forwards, page_size=2)) as entries:
            turns = [entry.turn async for entry in entries if entry.turn]
        try:
            await sessions.unchanged(self.session, state)
        except HistoryReplaced:
            return
        self._check_window(tuple(turns), begun, state.generation, None)
