"""What each operation takes of the table, as an engine counts it: calls, read units and write units.

Reads are strongly consistent but for the list, whose index cannot be: an engine that shows no stale read still charges
twice for a consistent one.
"""

import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest

import memory.turns
from memory import codec, table
from memory.dynamodb import DynamoDBTurnLog
from memory.items import TITLE_CHARS
from memory.sessions import DynamoDBSessions
from memory.turns import Claim, Usage, Window, utc_now
from tests.conftest import Clock, Store, asking, claimed, exchange, items_of, noise, say

TURN = exchange(noise(500), noise(1500))
"""A turn of 2 KB."""
TURNS = 4


@dataclass(kw_only=True)
class Session:
    """A session of some turns in the middle of its minute, and what an operation on it takes."""

    store: Store
    clock: Clock = field(default_factory=Clock)

    def log(self) -> DynamoDBTurnLog:
        return self.store.log(clock=self.clock)

    def sessions(self) -> DynamoDBSessions:
        return self.store.sessions(clock=self.clock)

    async def begin(self) -> None:
        """The turns that are there before."""
        self.clock.now = self.clock.now.replace(second=0)
        for _ in range(TURNS):
            await say(self.log(), self.store.session(), noise(500), answer=noise(1500), tokens=500)

    async def window(self) -> Window:
        return await self.log().load(self.store.session(), token_limit=10_000)

    async def claim(self) -> Claim:
        return await self.log().claim(await self.window(), asking("next"))


async def load(session: Session) -> Usage:
    log = session.log()
    await log.load(session.store.session(), token_limit=10_000)
    return log.usage


async def look(session: Session) -> Usage:
    log = session.log()
    await log.load(session.store.session(), token_limit=0)
    return log.usage


async def claim(session: Session) -> Usage:
    window, log = await session.window(), session.log()
    await log.claim(window, asking("next"))
    return log.usage


async def claim_in_a_new_minute(session: Session) -> Usage:
    window, log = await session.window(), session.log()
    session.clock.pass_lease()
    session.clock.now = session.clock.now.replace(minute=(session.clock.now.minute + 1) % 60)
    await log.claim(window, asking("next"))
    return log.usage


async def renew(session: Session) -> Usage:
    claim, log = await session.claim(), session.log()
    await log.renew(claim)
    return log.usage


async def commit(session: Session) -> Usage:
    claim, log = await session.claim(), session.log()
    await log.commit(claim, claim.completed(TURN, tokens=500, at=utc_now(), instance="test"))
    return log.usage


async def mark(session: Session) -> Usage:
    window, log = await session.window(), session.log()
    await log.mark(window, archived=(2, 0))
    return log.usage


async def delete(session: Session) -> Usage:
    log = session.log()
    assert await log.delete(session.store.session())
    return log.usage


async def find(session: Session) -> Usage:
    sessions = session.sessions()
    await sessions.find(session.store.session())
    return sessions.usage


async def list_sessions(session: Session) -> Usage:
    sessions = session.sessions()
    await sessions.listed(session.store.owner, limit=10)
    return sessions.usage


async def rename(session: Session) -> Usage:
    sessions = session.sessions()
    await sessions.rename(session.store.session(), "another title")
    return sessions.usage


async def history(session: Session) -> Usage:
    state, sessions = await session.sessions().find(session.store.session()), session.sessions()
    entries = sessions.history(session.store.session(), state, oldest_first=False, page_size=TURNS)
    async with aclosing(entries):
        assert len([entry async for entry in entries]) == TURNS
    return sessions.usage


BUDGETS: dict[Callable[[Session], Awaitable[Usage]], Usage] = {
    load: Usage(calls=1, read_units=3),
    look: Usage(calls=1, read_units=1),
    claim: Usage(calls=1, write_units=1),
    claim_in_a_new_minute: Usage(calls=1, write_units=3),
    renew: Usage(calls=1, write_units=1),
    commit: Usage(calls=1, write_units=3),
    mark: Usage(calls=1, write_units=1),
    find: Usage(calls=1, read_units=1),
    list_sessions: Usage(calls=1, read_units=0.5),
    rename: Usage(calls=1, write_units=2),
}
CEILINGS: dict[Callable[[Session], Awaitable[Usage]], Usage] = {
    delete: Usage(calls=5, read_units=6, write_units=14),
    history: Usage(calls=2, read_units=4),
}
"""Of what takes several calls; engines round the units of a page that is nearly empty in ways of their own."""


@pytest.mark.parametrize("operation", BUDGETS, ids=lambda operation: operation.__name__)
async def test_an_operation_takes_so_many_calls_and_units(
    real_store: Store, operation: Callable[[Session], Awaitable[Usage]]
) -> None:
    """Neither more nor, for reads that have to be consistent, less."""
    session = Session(store=real_store)
    await session.begin()
    assert await operation(session) == BUDGETS[operation]


ANONYMOUS = "token:{}"
COGNITO = "jwt:https%3A//cognito-idp.eu-central-1.amazonaws.com/eu-central-1_AbCdEfGhI:{}-123"
LONGEST = "o" * (codec.LONGEST_OWNER - 32) + "{}"
PLAIN, CHINESE, EMOJI = ("t" * TITLE_CHARS, "\u4f60" * TITLE_CHARS, "\U0001f600" * TITLE_CHARS)


async def take_turns(log: DynamoDBTurnLog, session: memory.turns.Session, title: str, number: int) -> list[float]:
    """Turns that say nothing; the write units of each one's claim."""
    units = []
    for _ in range(number):
        window = await log.load(session, token_limit=0)
        before = log.usage.write_units
        claim = await log.claim(window, asking("next"), title=title)
        units.append(log.usage.write_units - before)
        await log.commit(claim, claim.void())
    return units


@pytest.mark.once
@pytest.mark.parametrize(
    ("owner", "name", "title", "kept"),
    [
        (ANONYMOUS, "0" * 32, PLAIN, 64),
        (ANONYMOUS, "0" * 32, "t", 64),
        (COGNITO, "0" * 32, PLAIN, 63),
        (ANONYMOUS, "0" * 32, CHINESE, 64),
        (ANONYMOUS, "0" * 32, EMOJI, 54),
        (LONGEST, "i" * 128, PLAIN, 64),
        (LONGEST, "i" * 128, EMOJI, 52),
    ],
    ids=[
        "anonymous",
        "a short title",
        "Cognito",
        "a title of 240 bytes",
        "of 320 bytes",
        "an owner of 512 bytes",
        "all of it",
    ],
)
async def test_a_claim_remembers_as_many_requests_as_cost_nothing(
    real_store: Store, owner: str, name: str, title: str, kept: int
) -> None:
    """64 requests, or as many as the item's write units have room for beside a long owner or title; 16 at the least."""
    session = memory.turns.Session(owner=owner.format(real_store.owner), id=name)
    units = await take_turns(real_store.log(clock=Clock()), session, title, 70)
    state = table._plain(items_of(real_store, session)["state"])
    size = codec.item_bytes(state)
    with_sixteen = math.ceil((size - len(state["recent"]) + 8 * 16) / codec.WRITE_UNIT)
    assert set(units[1:]) == {with_sixteen}
    assert len(state["recent"]) == 8 * kept
    assert kept == 64 or size + 8 > with_sixteen * codec.WRITE_UNIT


@pytest.mark.once
async def test_a_longer_title_costs_no_unit(real_store: Store) -> None:
    """There is always room for a title of 80 bytes, whoever gives it."""
    session, clock = memory.turns.Session(owner=COGNITO.format(real_store.owner), id="0" * 32), Clock()
    await take_turns(real_store.log(clock=clock), session, "t", 66)
    sessions = real_store.sessions(clock=clock)
    await sessions.rename(session, PLAIN)
    assert sessions.usage.write_units == BUDGETS[rename].write_units


@pytest.mark.parametrize("operation", CEILINGS, ids=lambda operation: operation.__name__)
async def test_an_operation_of_several_calls_takes_no_more(
    real_store: Store, operation: Callable[[Session], Awaitable[Usage]]
) -> None:
    """Removing costs what the items cost to write, and a history what they cost to read."""
    session = Session(store=real_store)
    await session.begin()
    usage, most = await operation(session), CEILINGS[operation]
    assert usage.calls == most.calls
    assert usage.read_units <= most.read_units
    assert usage.write_units <= most.write_units


async def test_requests_that_wait_cost_a_full_state_no_unit(real_store: Store) -> None:
    """An anonymous caller's session that remembers all the requests it can has room for two that wait."""
    session, clock = memory.turns.Session(owner=ANONYMOUS.format(real_store.owner), id="0" * 32), Clock()
    await take_turns(real_store.log(clock=clock), session, PLAIN, 66)
    await claimed(real_store, session, asking("held"), clock=clock)
    for _ in range(2):
        log = real_store.log(clock=clock)
        await log.wait(await log.load(session, token_limit=0), limit=2, seconds=12)
        assert log.usage.write_units == 1
