"""What `DynamoDBAllowance` promises: the limits of an owner, on every engine that is fit to show them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from memory import codec, table
from memory.turns import Session, TableUnavailable, TooManySessions, TurnsUsedUp, Usage, Window, take_turn
from tests.conftest import TABLE, Clock, LosingClient, Store, asking, say

LIMIT = 3
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NOW = Clock()
"""Stands still: no test runs over the end of an hour."""


def quotas(store: Store) -> list[dict[str, Any]]:
    """The owner's items, as the table keeps them."""
    found = store.client.query(
        TableName=TABLE,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": codec.owner_partition(store.owner)}},
        ConsistentRead=True,
    )
    items: list[dict[str, Any]] = found["Items"]
    return items


async def is_given(store: Store, **options: Any) -> bool:
    """Ask for a turn, as an invocation does."""
    try:
        await store.allowance(**{"turns_per_hour": LIMIT, "clock": NOW, **options}).spend_turn(store.owner)
    except TurnsUsedUp:
        return False
    return True


async def spend(store: Store, times: int, **options: Any) -> int:
    """Ask for turns one after the other; how many were given."""
    return sum([await is_given(store, **options) for _ in range(times)])


async def test_an_owner_has_so_many_turns_in_an_hour(store: Store) -> None:
    """The first turn beyond the limit is refused, and so are all after it; the error says the limit."""
    for _ in range(LIMIT):
        assert await spend(store, 1) == 1
    assert await spend(store, 1) == 0
    with pytest.raises(TurnsUsedUp) as refusal:
        await store.allowance(turns_per_hour=LIMIT, clock=NOW).spend_turn(store.owner)
    assert refusal.value.limit == LIMIT


async def test_owners_count_apart(store: Store) -> None:
    """What one owner took is nothing to another."""
    await spend(store, LIMIT + 1)
    await store.allowance(turns_per_hour=LIMIT, clock=NOW).spend_turn(f"{store.owner}-other")


async def test_the_next_hour_begins_anew(store: Store) -> None:
    """The refusal says in how many seconds the hour of the clock ends; from then on there are turns again."""
    clock = Clock()
    clock.now = clock.now.replace(minute=58, second=30, microsecond=0)
    await spend(store, LIMIT, clock=clock)
    with pytest.raises(TurnsUsedUp) as refusal:
        await store.allowance(turns_per_hour=LIMIT, clock=clock).spend_turn(store.owner)
    assert refusal.value.retry_after == 90
    clock.now += timedelta(seconds=refusal.value.retry_after)
    assert await spend(store, LIMIT + 1, clock=clock) == LIMIT


async def test_instances_count_together(real_store: Store) -> None:
    """However many ask at once, no more than the limit are let in, and no fewer."""
    asked = await asyncio.gather(*(is_given(real_store) for _ in range(20)))
    assert sum(asked) == LIMIT


async def test_the_count_expires_with_its_hour(store: Store) -> None:
    """DynamoDB removes it; it has no key of the index, so that no list of sessions shows it."""
    clock = Clock()
    clock.now = clock.now.replace(minute=10, second=0, microsecond=0)
    await spend(store, 1, clock=clock)
    (item,) = quotas(store)
    assert int(item["expires_at"]["N"]) == (clock.now + 50 * MINUTE).timestamp()
    assert not item.keys() & {"owner", "active_at"}
    assert await store.listed() == []


async def test_deleting_everything_gives_no_turn_back(store: Store) -> None:
    """The count is not part of any session."""
    await say(store.log(), store.session(), "hello")
    await spend(store, LIMIT)
    await store.log().delete(store.session())
    assert await spend(store, 1) == 0


async def test_without_a_limit_nothing_is_counted(store: Store) -> None:
    """A limit of 0 makes no call."""
    allowance = store.allowance()
    await allowance.spend_turn(store.owner)
    assert allowance.usage == Usage()
    assert quotas(store) == []


async def test_a_turn_that_is_counted_takes_one_call_and_one_unit(real_store: Store) -> None:
    """So does the first one of an hour. DynamoDB charges the same for a refusal, though it does not report it."""
    for _ in range(LIMIT):
        allowance = real_store.allowance(turns_per_hour=LIMIT, clock=NOW)
        await allowance.spend_turn(real_store.owner)
        assert allowance.usage == Usage(calls=1, write_units=1)
    with pytest.raises(TurnsUsedUp):
        await allowance.spend_turn(real_store.owner)
    assert allowance.usage.calls == 2


async def test_a_lost_response_takes_no_second_turn(store: Store) -> None:
    """The write is sent again, and shows that it was applied; so does that of the last turn."""
    for _ in range(LIMIT):
        lossy = LosingClient(store.client, "update_item")
        assert await spend(store, 1, client=lossy) == 1
        assert lossy.lost == 1
    assert await spend(store, 1) == 0


async def test_a_lost_response_gives_no_turn_too_many(store: Store) -> None:
    """If somebody came between, the turn may count twice: rather that than a turn beyond the limit."""

    async def somebody() -> None:
        assert await spend(store, 1) == 1

    assert await spend(store, 1, client=LosingClient(store.client, "update_item", meanwhile=somebody)) == 1
    assert await spend(store, 1) == LIMIT - 3


async def test_a_turn_that_cannot_be_counted_is_not_given(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the table does not answer, the owner gets no turn: else a table under load would lift the limit."""
    monkeypatch.setattr(table, "PERSISTENCE_SECONDS", 0.1)

    class Silent:
        def update_item(self, **_: Any) -> None:
            raise ReadTimeoutError(endpoint_url="http://silent")

    with pytest.raises(TableUnavailable):
        await store.allowance(client=Silent(), turns_per_hour=LIMIT).spend_turn(store.owner)


class Refusal(Exception):
    """What whoever admits turns raises."""


async def refuse(_: Window) -> None:
    raise Refusal


async def test_a_turn_that_is_not_admitted_leaves_no_trace(store: Store) -> None:
    """Nothing is claimed, and nothing is waited for."""
    await say(store.log(), store.session(), "hello")
    before = await store.log().load(store.session(), token_limit=1000)
    with pytest.raises(Refusal):
        await take_turn(store.log(), store.session(), asking("more"), token_limit=1000, patience=20, admit=refuse)
    assert await store.log().load(store.session(), token_limit=1000) == before


async def test_an_answer_that_is_there_is_given_without_being_admitted(store: Store) -> None:
    """The copy of an answered request takes no turn."""
    session: Session = store.session()
    turn = await say(store.log(), session, "hello", key="k")
    window, claim = await take_turn(
        store.log(), session, asking("hello", "k"), token_limit=1000, patience=1, admit=refuse
    )
    assert (claim, window.answered) == (None, turn)


async def may_begin(store: Store, **options: Any) -> bool:
    """Ask whether the owner may have one more session, once the index shows all there are."""
    await asyncio.sleep(store.lag)
    try:
        await store.allowance(**{"max_sessions": LIMIT, **options}).check_sessions(store.owner)
    except TooManySessions:
        return False
    return True


async def test_an_owner_has_so_many_sessions(store: Store) -> None:
    """With one below the limit there can be one more, with the limit none; those of others do not count."""
    for number in range(LIMIT):
        assert await may_begin(store)
        await store.sessions().create(store.session(str(number)))
    await asyncio.sleep(store.lag)
    with pytest.raises(TooManySessions) as refusal:
        await store.allowance(max_sessions=LIMIT).check_sessions(store.owner)
    assert refusal.value.limit == LIMIT
    await store.allowance(max_sessions=LIMIT).check_sessions(f"{store.owner}-other")


async def test_a_session_that_is_gone_makes_room(store: Store) -> None:
    """One that was deleted counts no more, and neither does one that has expired, even if the table still has it."""
    clock = Clock()
    for number in range(LIMIT - 1):
        await store.sessions().create(store.session(str(number)))
    await store.sessions(empty_retention=DAY, clock=clock).create(store.session("empty"))
    assert not await may_begin(store, clock=clock)
    clock.now += 2 * DAY
    assert await may_begin(store, clock=clock)
    clock.now -= 2 * DAY
    await store.log().delete(store.session("0"))
    assert await may_begin(store, clock=clock)


async def test_without_a_limit_no_session_is_counted(store: Store) -> None:
    """A limit of 0 makes no call."""
    allowance = store.allowance()
    await allowance.check_sessions(store.owner)
    assert allowance.usage == Usage()


async def test_counting_sessions_is_one_small_read(real_store: Store) -> None:
    """Half a unit, as long as they are few."""
    for number in range(5):
        await real_store.sessions().create(real_store.session(str(number)))
    allowance = real_store.allowance(max_sessions=100)
    await allowance.check_sessions(real_store.owner)
    assert allowance.usage == Usage(calls=1, read_units=0.5)
