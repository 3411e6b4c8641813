"""Writes that were applied though nobody heard of it: whatever the operation, it ends as if nothing had been lost."""

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from memory import codec
from memory.dynamodb import LEASE, DynamoDBTurnLog
from memory.turns import ClaimRefused, Session, TableUnavailable
from tests.conftest import Clock, LosingClient, Store, asking, claimed, items_of, noise, said, say

WRITES = ("put_item", "update_item", "batch_write_item")
Deed = Callable[[DynamoDBTurnLog, Session], Awaitable[Any]]


async def a_turn(log: DynamoDBTurnLog, session: Session) -> None:
    await say(log, session, "c")


async def a_large_turn(log: DynamoDBTurnLog, session: Session) -> None:
    await say(log, session, "c", answer=noise(100_000))


async def a_rewrite(log: DynamoDBTurnLog, session: Session) -> None:
    """As the chat store makes it: whose claim ended in silence loads again."""
    for _ in range(2):
        window = await log.load(session, token_limit=None)
        with contextlib.suppress(ClaimRefused):
            await log.rewrite(window, window.turns[1:])
            return


async def an_archiving(log: DynamoDBTurnLog, session: Session) -> None:
    await log.mark(await log.load(session, token_limit=None), archived=(1, 2))


async def a_deletion_of_the_oldest(log: DynamoDBTurnLog, session: Session) -> None:
    await log.mark(await log.load(session, token_limit=None), deleted=(1, 2))


async def a_delete(log: DynamoDBTurnLog, session: Session) -> None:
    assert await log.delete(session)


LEFT: dict[Deed, list[str]] = {
    a_turn: ["a", "b", "c"],
    a_large_turn: ["a", "b", "c"],
    a_rewrite: ["b"],
    an_archiving: ["a", "b"],
    a_deletion_of_the_oldest: ["b"],
    a_delete: [],
}
"""What the user said in the turns that are there after each."""


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("deed", LEFT, ids=lambda deed: deed.__name__)
async def test_it_does_not_matter_which_response_is_lost(store: Store, deed: Deed, write: str) -> None:
    """Each of its writes in turn is applied and not confirmed; what is there then, is there once, and nothing else."""
    for skip in itertools.count():
        session = store.session(f"talk-{skip}")
        for text in "ab":
            await say(store.log(), session, text)
        client = LosingClient(store.client, write, skip=skip)
        await deed(store.log(client=client), session)
        assert said(await store.log().load(session, token_limit=None)) == LEFT[deed]
        if not client.lost:
            break
        assert not strays(store, session)


def strays(store: Store, session: Session) -> list[str]:
    """Parts of large turns that no turn has."""
    items = items_of(store, session)
    tokens = {item["token"]["S"] for key, item in items.items() if key.startswith(codec.TURN_PREFIX)}
    parts = [key for key in items if key.startswith(codec.PART_PREFIX)]
    return [part for part in parts if part.split("#")[3] not in tokens]


async def test_a_renewal_whose_response_was_lost_was_made(store: Store) -> None:
    """The lease is longer all the same; who holds it is told that the table was silent, and may try again."""
    clock = Clock()
    claim = await claimed(store, store.session(), asking("a"), clock=clock)
    clock.now += LEASE / 2
    log = store.log(client=LosingClient(store.client, "update_item"), clock=clock)
    with pytest.raises(TableUnavailable):
        await log.renew(claim)
    assert (await store.log(clock=clock).load(store.session(), token_limit=0)).busy_seconds == LEASE.total_seconds()
    await log.renew(claim)
