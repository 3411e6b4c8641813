"""How many requests may wait for one session: the limit of `take_turn`, on every engine that is fit to show it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from memory.dynamodb import LEASE
from memory.turns import Claim, ClaimRefused, TooManyWaiting, TurnInProgress, Usage, Window, take_turn
from tests.conftest import Clock, LosingClient, Store, asking, claimed, completed, items_of, say

LIMIT = 2


async def window_of(store: Store, **options: Any) -> Window:
    return await store.log(**options).load(store.session(), token_limit=1000)


async def wait(store: Store, *, seconds: float = 12, limit: int = LIMIT, **options: Any) -> int:
    """Begin to wait for the session, as an invocation does."""
    log = store.log(**options)
    return await log.wait(await log.load(store.session(), token_limit=0), limit=limit, seconds=seconds)


async def waiters(store: Store) -> tuple[int, ...]:
    """Those that the session's state names."""
    state = (await window_of(store)).state
    return state.waiters if state else ()


async def turn_of(store: Store, key: str, *, patience: float = 20) -> Any:
    """One turn, as the handler takes it."""
    log = store.log()
    window, claim = await take_turn(
        log, store.session(), asking(key, key), token_limit=1000, patience=patience, max_waiting=LIMIT
    )
    return await log.commit(claim, completed(claim, key)) if claim else window.answered


async def test_so_many_requests_wait_and_no_more(store: Store) -> None:
    """Whoever comes then is refused at once, and told how long the lease of the one that is answered still lasts."""
    await claimed(store, store.session(), asking("held"))
    for _ in range(LIMIT):
        await wait(store)
    with pytest.raises(TooManyWaiting) as refusal:
        await take_turn(store.log(), store.session(), asking("more"), token_limit=0, patience=60, max_waiting=LIMIT)
    assert refusal.value.limit == LIMIT
    assert 1 <= refusal.value.retry_after <= LEASE.total_seconds()


async def test_a_refused_request_holds_nothing(store: Store) -> None:
    """A refusal takes one look, and writes nothing."""
    await claimed(store, store.session(), asking("held"))
    for _ in range(LIMIT):
        await wait(store)
    log = store.log()
    with pytest.raises(TooManyWaiting):
        await take_turn(log, store.session(), asking("more"), token_limit=0, patience=60, max_waiting=LIMIT)
    assert (log.usage.calls, log.usage.write_units) == (1, 0)


async def test_instances_share_the_limit(real_store: Store) -> None:
    """Of many requests that pile up, all instances together let as many wait as the limit says; these are answered."""
    held = await claimed(real_store, real_store.session(), asking("held"))
    piled = [asyncio.create_task(turn_of(real_store, str(n))) for n in range(12)]
    while sum(task.done() for task in piled) < len(piled) - LIMIT:
        await asyncio.sleep(0.05)
    assert len(await waiters(real_store)) == LIMIT
    await real_store.log().commit(held, completed(held, "held"))
    outcomes = await asyncio.gather(*piled, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, TooManyWaiting)]
    answered = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert (len(refused), sorted(turn.number for turn in answered)) == (len(piled) - LIMIT, [2, 3])
    assert await waiters(real_store) == ()


async def test_a_claim_makes_room(store: Store) -> None:
    """The write that claims the turn takes the waiter out, and leaves the others in."""
    clock = Clock()
    await claimed(store, store.session(), asking("held"), clock=clock)
    mine, other = await wait(store, clock=clock), await wait(store, clock=clock)
    clock.pass_lease()
    log = store.log(clock=clock)
    await log.claim(await window_of(store, clock=clock), asking("mine"), waiter=mine)
    assert await waiters(store) == (other,)


async def test_a_waiter_that_was_killed_makes_room_when_its_time_is_over(store: Store) -> None:
    """Nobody has to take it out: from the end of its patience on it counts no more."""
    clock = Clock()
    await claimed(store, store.session(), asking("held"), clock=clock)
    for _ in range(LIMIT):
        await wait(store, seconds=5, clock=clock)
    clock.now += timedelta(seconds=6)
    fresh = await wait(store, clock=clock)
    assert await waiters(store) == (fresh,)


async def test_who_waited_for_an_answer_makes_room_with_it(store: Store) -> None:
    """The copy of a request that was being answered claims nothing, and still waits no longer."""
    held = await claimed(store, store.session(), asking("same", "same"))
    copy = asyncio.create_task(turn_of(store, "same"))
    while not await waiters(store):
        await asyncio.sleep(0.02)
    turn = await store.log().commit(held, completed(held, "same"))
    assert await copy == turn
    assert await waiters(store) == ()


async def test_a_session_that_is_free_lets_everybody_in(store: Store) -> None:
    """Waiters of before are in nobody's way when nothing is being answered."""
    held = await claimed(store, store.session(), asking("held"))
    for _ in range(LIMIT):
        await wait(store)
    await store.log().commit(held, completed(held, "held"))
    assert (await turn_of(store, "next", patience=0)).number == 2


async def test_who_finds_the_list_changed_loads_again(store: Store) -> None:
    """Of two that begin to wait in view of the same list, one is in it."""
    await claimed(store, store.session(), asking("held"))
    log, window = store.log(), await window_of(store)
    await wait(store)
    with pytest.raises(ClaimRefused):
        await log.wait(window, limit=LIMIT, seconds=5)


async def test_nobody_waits_for_a_session_that_was_deleted(store: Store) -> None:
    """The list goes with the session, and nobody gets into that of its tombstone."""
    await claimed(store, store.session(), asking("held"))
    await wait(store)
    log, window = store.log(), await window_of(store)
    await store.log().delete(store.session())
    assert "waiters" not in items_of(store)["state"]
    with pytest.raises(ClaimRefused):
        await log.wait(window, limit=LIMIT, seconds=5)


async def test_a_lost_response_lets_nobody_wait_twice(store: Store) -> None:
    """The write is sent again, and shows that it was applied."""
    await claimed(store, store.session(), asking("held"))
    lossy = LosingClient(store.client, "update_item")
    waiter = await wait(store, client=lossy)
    assert lossy.lost == 1
    assert await waiters(store) == (waiter,)


async def test_whoever_sets_no_limit_writes_nothing_to_wait(store: Store) -> None:
    """Programs that use the store beside a handler wait as they always did, however many they are."""
    await claimed(store, store.session(), asking("held"))
    for _ in range(LIMIT):
        await wait(store)
    log = store.log()
    with pytest.raises(TurnInProgress) as refusal:
        await take_turn(log, store.session(), asking("more"), token_limit=0, patience=0.3)
    assert not isinstance(refusal.value, TooManyWaiting)
    assert log.usage.write_units == 0


async def test_waiting_costs_one_unit(real_store: Store) -> None:
    """To get into the list; the claim takes the request out by a write that it makes anyway, for the unit it takes."""
    clock = Clock()
    clock.now = clock.now.replace(second=0)
    await say(real_store.log(clock=clock), real_store.session(), "before")
    held = await claimed(real_store, real_store.session(), asking("held"), clock=clock)
    log = real_store.log(clock=clock)
    waiter = await log.wait(await window_of(real_store, clock=clock), limit=LIMIT, seconds=5)
    assert log.usage == Usage(calls=1, write_units=1)
    await wait(real_store, clock=clock)
    await real_store.log(clock=clock).commit(held, completed(held, "held"))
    window, claiming = await window_of(real_store, clock=clock), real_store.log(clock=clock)
    claim: Claim = await claiming.claim(window, asking("mine"), waiter=waiter)
    assert claim.number == 3
    assert claiming.usage == Usage(calls=1, write_units=1)
