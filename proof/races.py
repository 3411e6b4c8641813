"""Many writers at once: whether all that was answered is in the table, once, in one order."""

import asyncio
import hashlib
import os
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any

from local import engine
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect, create_table
from memory.turns import LeaseLost, Request, Session, Turn, TurnInProgress, take_turn, utc_now
from proof import ACCOUNT
from proof.section import Section

TABLE = "races"
WORKERS = 16
GIVE_UP = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Race:
    """So many turns that each of the workers takes, in one of so many sessions."""

    sessions: int
    turns: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the workers were told, and what the table holds afterwards."""

    answered: int
    lost: int
    doubled: int
    reordered: int
    pending: int
    seconds: float

    @property
    def held(self) -> bool:
        return not (self.lost or self.doubled or self.reordered or self.pending)


def prove(*, quick: bool) -> Section:
    """Sixteen writers, each with connections and an event loop of its own, on DynamoDB Local."""
    os.environ.update(ACCOUNT)
    races = [Race(sessions=1, turns=4 if quick else 25), Race(sessions=20, turns=4 if quick else 25)]
    with engine.start_dynamodb_local(None) as running:
        create_table(connect(running.endpoint), TABLE)
        outcomes = [run(running.endpoint, race) for race in races]
    return Section(
        title="Races",
        tried=f"{WORKERS} writers at once, each with its own connections, on Amazon's DynamoDB Local; what is counted "
        "afterwards is what stands in the table.",
        head=("sessions", "turns answered", "lost", "doubled", "reordered", "left pending", "seconds"),
        rows=[
            (
                str(race.sessions),
                *(str(getattr(outcome, name)) for name in ("answered", "lost", "doubled", "reordered", "pending")),
                f"{outcome.seconds:.0f}",
            )
            for race, outcome in zip(races, outcomes, strict=True)
        ],
        held=all(outcome.held for outcome in outcomes),
    )


def run(endpoint: str, race: Race) -> Outcome:
    """Let the workers race, and count."""
    owner, began = uuid.uuid4().hex, monotonic()
    with ThreadPoolExecutor(WORKERS) as threads:
        told = [
            turn
            for turns in threads.map(lambda worker: _work(endpoint, owner, race, worker), range(WORKERS))
            for turn in turns
        ]
    return asyncio.run(_count(endpoint, owner, race, told, seconds=monotonic() - began))


def _work(endpoint: str, owner: str, race: Race, worker: int) -> list[tuple[str, Turn]]:
    return asyncio.run(_turns(endpoint, owner, race, worker))


async def _turns(endpoint: str, owner: str, race: Race, worker: int) -> list[tuple[str, Turn]]:
    """A worker's turns, each in a session drawn by lot (the same lots at each run)."""
    client, lot = connect(endpoint), random.Random(worker)  # noqa: S311 - no secret
    told = []
    for i in range(race.turns):
        name = f"s{lot.randrange(race.sessions)}"
        told.append((name, await _persistently(client, Session(owner=owner, id=name), f"{worker}/{i}")))
    return told


async def _persistently(client: Any, session: Session, text: str) -> Turn:
    """A turn, sent again under its key for as long as others come first."""
    request = Request(id=text, body_hash=hashlib.sha256(text.encode()).hexdigest()[:32])
    give_up = utc_now() + GIVE_UP
    while True:
        log = DynamoDBTurnLog(client, TABLE)
        try:
            _, claim = await take_turn(log, session, request, token_limit=1_000_000, patience=30)
            if claim is None:
                raise AssertionError("a turn that nobody was told of was there before")
            message = {"role": "user", "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": text}]}
            return await log.commit(claim, claim.completed([message], tokens=10, at=utc_now(), instance="race"))
        except (TurnInProgress, LeaseLost):
            if utc_now() > give_up:
                raise
            await asyncio.sleep(0.05)


async def _count(endpoint: str, owner: str, race: Race, told: list[tuple[str, Turn]], *, seconds: float) -> Outcome:
    """What of that which the workers were told is in the table, and how."""
    lost = doubled = reordered = pending = 0
    for number in range(race.sessions):
        name = f"s{number}"
        window = await DynamoDBTurnLog(connect(endpoint), TABLE).load(Session(owner=owner, id=name), token_limit=None)
        stored = [turn.request.id for turn in window.turns]
        answered = {turn.number: turn.request.id for session, turn in told if session == name}
        lost += len(set(answered.values()) - set(stored))
        doubled += len(stored) - len(set(stored))
        reordered += sum(answered.get(turn.number) != turn.request.id for turn in window.turns)
        reordered += sum(turn.window.turns != turn.number - 1 for turn in window.turns)
        pending += window.state is not None and window.next_number != window.state.number + 1
    return Outcome(
        answered=len(told), lost=lost, doubled=doubled, reordered=reordered, pending=pending, seconds=seconds
    )
