"""The contract of a TurnLog: what `memory.turns` promises, on every engine that is fit to show it."""

import asyncio
import re
import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from memory import codec, dynamodb, items, table
from memory.dynamodb import LEASE, DynamoDBTurnLog
from memory.shortening import LEAST_TOKENS, most_tokens
from memory.turns import (
    ClaimRefused,
    DamagedTurn,
    LeaseLost,
    Message,
    NotTheNewestTurn,
    RequestIdReused,
    Session,
    SessionNotFound,
    TableUnavailable,
    Turn,
    TurnInProgress,
    TurnNotFound,
    TurnStatus,
    Window,
    take_turn,
    utc_now,
)
from tests.conftest import (
    TABLE,
    Clock,
    InterruptedClient,
    Killed,
    LosingClient,
    Store,
    ThrottledClient,
    answer_again,
    asking,
    asking_again,
    claimed,
    completed,
    damage,
    exchange,
    fail,
    forget,
    items_of,
    keys_of,
    killed,
    noise,
    said,
    say,
)


async def test_a_stored_turn_is_read_back_as_it_was(store: Store) -> None:
    """What was committed is what the next load gives, message for message."""
    stored = await say(store.log(), store.session(), "Grüße 🌍\u0000", answer="schön")
    window = await store.log().load(store.session(), token_limit=1000)
    assert window.turns == (stored,)
    assert stored.answer == "schön"


async def test_turns_are_numbered_in_the_order_in_which_they_were_stored(store: Store) -> None:
    """Numbers run 1, 2, 3 without a hole, and a window shows the oldest first."""
    for text in "abc":
        await say(store.log(), store.session(), text)
    window = await store.log().load(store.session(), token_limit=1000)
    assert [turn.number for turn in window.turns] == [1, 2, 3]
    assert said(window) == ["a", "b", "c"]


async def test_a_window_holds_the_newest_whole_turns_that_fit(store: Store) -> None:
    """Turns are taken from the newest backwards until the next one does not fit; none of these is cut or skipped."""
    for text, tokens in [("a", 10), ("b", 10), ("c", 100), ("d", 10), ("e", 30)]:
        await say(store.log(), store.session(), text, tokens=tokens)
    windows = {limit: await store.log().load(store.session(), token_limit=limit) for limit in (0, 30, 40, 139, 140)}
    assert {limit: "".join(said(window)) for limit, window in windows.items()} == {
        0: "",
        30: "e",
        40: "de",
        139: "de",
        140: "cde",
    }
    assert windows[140].tokens == 140
    assert not any(window.shortened for window in windows.values())


async def test_a_window_of_many_short_turns_is_read_whole(store: Store) -> None:
    """A load goes on page by page where turns are shorter than it expects."""
    log = store.log()
    for i in range(30):
        await say(log, store.session(), str(i), tokens=1)
    window = await store.log().load(store.session(), token_limit=25)
    assert said(window) == [str(i) for i in range(5, 30)]


async def test_a_session_of_another_owner_does_not_exist(store: Store) -> None:
    """The owner is part of every key: the same session id of somebody else is empty."""
    await say(store.log(), store.session(), "mine")
    window = await store.log().load(Session(owner=store.owner + "x", id="talk"), token_limit=1000)
    assert window.turns == ()
    assert window.total_turns == 0


@pytest.mark.parametrize("other", ["a#b", "a%23b", "a/b", "ü" * 600, "ü" * 601, "\ud800", "=", ""])
async def test_owners_with_hostile_names_stay_apart(moto_store: Store, other: str) -> None:
    """No owner's key can be made to equal another's, whatever characters and lengths there are."""
    owners = ["a", "a#b#c", "ü" * 599, *([other])]
    for i, owner in enumerate(owners):
        await say(moto_store.log(), Session(owner=owner, id="b"), str(i))
    for i, owner in enumerate(owners):
        assert said(await moto_store.log().load(Session(owner=owner, id="b"), token_limit=1000)) == [str(i)]


async def test_the_same_request_is_answered_once(store: Store) -> None:
    """A request that comes again under its id gets the stored turn, and nothing more is stored."""
    first = await say(store.log(), store.session(), "once", key="k")
    again = await say(store.log(), store.session(), "once", key="k")
    assert again == first
    assert (await store.log().load(store.session(), token_limit=1000)).total_turns == 1


async def test_a_request_is_recognised_for_64_turns_though_it_left_the_window(store: Store) -> None:
    """The last 64 requests are known by the state item alone, however small the window is."""
    first = await say(store.log(), store.session(), "first", key="k")
    for i in range(63):
        await say(store.log(), store.session(), str(i), limit=0)
    assert await say(store.log(), store.session(), "first", key="k", limit=0) == first
    await say(store.log(), store.session(), "the 65th", limit=0)
    assert (await say(store.log(), store.session(), "first", key="k", limit=0)).number == 66


async def test_a_release_that_remembers_fewer_requests_does_no_harm(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old code that runs beside this one keeps 16 requests: those are recognised by both, and no other is mistaken."""
    turns = [await say(store.log(), store.session(), str(i), key=str(i), limit=0) for i in range(20)]
    with monkeypatch.context() as old:
        old.setattr(codec, "RECENT_REQUESTS", 16)
        turns += [await say(store.log(), store.session(), str(i), key=str(i), limit=0) for i in (20, 21)]
        assert await say(store.log(), store.session(), "6", key="6", limit=0) == turns[6]
    turns += [await say(store.log(), store.session(), str(i), key=str(i), limit=0) for i in range(22, 25)]
    for i in range(6, 25):
        assert await say(store.log(), store.session(), str(i), key=str(i), limit=0) == turns[i]
    assert (await say(store.log(), store.session(), "5", key="5", limit=0)).number == 26


async def test_a_request_that_failed_often_is_looked_up_as_fast_as_any(store: Store) -> None:
    """Attempts that came to nothing are not asked for the answer, however many of them are remembered."""
    for i in range(8):
        claim = await claimed(store, store.session(), asking("again", "k"))
        failed = claim.failed("model_error", exchange("again", "")[:1], at=utc_now(), instance="test")
        await store.log().commit(claim, failed)
        await say(store.log(), store.session(), str(i), limit=0)
    log = store.log()
    assert not (await log.load(store.session(), token_limit=0, request=asking("again", "k"))).answered
    assert log.usage.calls == 1


async def test_a_request_id_with_another_body_is_refused(store: Store) -> None:
    """The id of an answered request cannot be used to ask something else."""
    await say(store.log(), store.session(), "this", key="k")
    with pytest.raises(RequestIdReused):
        await say(store.log(), store.session(), "that", key="k")


async def test_a_failed_turn_is_kept_and_shown_to_no_model(store: Store) -> None:
    """A failure takes a number and stays in the history; a window leaves it out, and a retry is a new turn."""
    request = asking("hello", "k")
    log = store.log()
    claim = await claimed(store, store.session(), request)
    await log.commit(claim, claim.failed("model_error", exchange("hello", "")[:1], at=utc_now(), instance="test"))
    assert (await say(store.log(), store.session(), "hello", key="k")).number == 2
    assert [turn.number for turn in (await log.load(store.session(), token_limit=1000)).turns] == [2]
    history = (await log.load(store.session(), token_limit=None)).turns
    assert [(turn.status, turn.failure) for turn in history] == [
        (TurnStatus.FAILED, "model_error"),
        (TurnStatus.COMPLETE, None),
    ]


async def test_two_claims_of_one_load_cannot_both_hold(store: Store) -> None:
    """A claim is a compare-and-swap: who loaded before it was made is refused."""
    await say(store.log(), store.session(), "a")
    ours, theirs = store.log(), store.log()
    our_window = await ours.load(store.session(), token_limit=1000)
    their_window = await theirs.load(store.session(), token_limit=1000)
    await ours.claim(our_window, asking("ours"))
    with pytest.raises(ClaimRefused):
        await theirs.claim(their_window, asking("theirs"))


async def test_the_first_turn_of_a_session_is_claimed_once(store: Store) -> None:
    """Where there is no state yet, one of two first requests makes it."""
    first, second = store.log(), store.log()
    one = await first.load(store.session(), token_limit=0)
    other = await second.load(store.session(), token_limit=0)
    await first.claim(one, asking("one"))
    with pytest.raises(ClaimRefused):
        await second.claim(other, asking("other"))


async def test_a_session_is_busy_while_a_lease_holds(store: Store) -> None:
    """A request that comes while another is answered waits, and gives up when its patience ends."""
    await claimed(store, store.session(), asking("first"))
    with pytest.raises(TurnInProgress) as refusal:
        await take_turn(store.log(), store.session(), asking("second"), token_limit=0, patience=0)
    assert 1 <= refusal.value.retry_after <= LEASE.total_seconds()


@pytest.mark.once
async def test_waiting_costs_little_however_long_the_window_is(real_store: Store) -> None:
    """Who waits looks at the state alone, and reads the window when it is its turn."""
    for i in range(20):
        await say(real_store.log(), real_store.session(), noise(2000), tokens=500, key=str(i))
    await claimed(real_store, real_store.session(), asking("first"))
    log = real_store.log()
    with pytest.raises(TurnInProgress):
        await take_turn(log, real_store.session(), asking("second"), token_limit=10_000, patience=1)
    assert log.usage.calls >= 3
    assert (log.usage.read_units - 14) / (log.usage.calls - 1) <= 2


async def test_a_dead_holder_blocks_for_one_lease_at_most(store: Store) -> None:
    """When the lease has run out, the next request takes the same number."""
    clock = Clock()
    dead = await claimed(store, store.session(), asking("dead"), clock=clock)
    clock.pass_lease()
    turn = await say(store.log(clock=clock), store.session(), "alive")
    assert turn.number == dead.number == 1


def pass_time(monkeypatch: pytest.MonkeyPatch, passed: timedelta) -> None:
    """Have time go by for who is waiting, by the clock of the event loop, which nobody sets."""
    loop = asyncio.get_running_loop()
    began = loop.time
    monkeypatch.setattr(loop, "time", lambda: began() + passed.total_seconds())


async def test_a_lease_runs_out_for_who_watched_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far ahead the clock of a dead holder was: nobody waits for it longer than a lease."""
    ahead, clock = Clock(), Clock()
    ahead.now += timedelta(minutes=5)
    await claimed(store, store.session(), asking("lost"), clock=ahead)
    log = store.log(clock=clock)
    assert (await log.load(store.session(), token_limit=0)).busy_seconds == LEASE.total_seconds()
    pass_time(monkeypatch, LEASE)
    assert (await log.load(store.session(), token_limit=0)).busy_seconds == 0


async def test_a_clock_that_is_set_ends_no_lease(store: Store) -> None:
    """Who waits counts the time by a clock that nobody sets: theirs may have been behind when they began."""
    clock = Clock()
    await claimed(store, store.session(), asking("slow"), clock=clock)
    clock.now -= timedelta(seconds=2)
    log = store.log(clock=clock)
    await log.load(store.session(), token_limit=0)
    clock.now += LEASE + timedelta(seconds=0.5)
    assert (await log.load(store.session(), token_limit=0)).busy_seconds == 1.5


async def test_a_lease_that_is_renewed_is_watched_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that lives keeps its session, however far ahead its clock is."""
    ahead, clock = Clock(), Clock()
    ahead.now += timedelta(minutes=5)
    claim = await claimed(store, store.session(), asking("slow"), clock=ahead)
    log = store.log(clock=clock)
    await log.load(store.session(), token_limit=0)
    ahead.pass_lease()
    await store.log(clock=ahead).renew(claim)
    pass_time(monkeypatch, LEASE)
    assert (await log.load(store.session(), token_limit=0)).busy_seconds == LEASE.total_seconds()


async def test_a_renewed_lease_holds_on(store: Store) -> None:
    """A turn that takes longer than a lease keeps its session by renewing it."""
    clock = Clock()
    log = store.log(clock=clock)
    claim = await claimed(store, store.session(), asking("long"), clock=clock)
    clock.now += LEASE * 0.9
    await log.renew(claim)
    clock.now += LEASE * 0.9
    assert (await log.load(store.session(), token_limit=0)).busy_seconds > 0


async def test_who_was_overtaken_cannot_renew(store: Store) -> None:
    """A renewal is refused once another request holds the session."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    await claimed(store, store.session(), asking("new"), clock=clock)
    with pytest.raises(LeaseLost):
        await store.log().renew(old)


async def test_who_was_overtaken_cannot_write(store: Store) -> None:
    """The number of a turn is given out once: the commit of the slower holder is refused and leaves nothing."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    await say(store.log(clock=clock), store.session(), "new")
    with pytest.raises(LeaseLost):
        await store.log().commit(old, completed(old, "old"))
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["new"]


async def test_an_overtaken_request_gets_the_answer_that_its_retry_stored(store: Store) -> None:
    """Where the other holder answered the very same request, its turn is the answer of both."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("same", "k"), clock=clock)
    clock.pass_lease()
    stored = await say(store.log(clock=clock), store.session(), "same", key="k")
    assert await store.log().commit(old, completed(old, "same")) == stored


async def test_the_overtaker_is_refused_where_the_old_holder_was_faster(store: Store) -> None:
    """Taking over a number that is committed meanwhile gives nothing: the stored turn was not in the new one's view."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    new = await claimed(store, store.session(), asking("new"), clock=clock)
    await store.log().commit(old, completed(old, "old"))
    with pytest.raises(LeaseLost):
        await store.log().commit(new, completed(new, "new"))
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["old"]


async def test_a_commit_whose_response_was_lost_is_a_success(store: Store) -> None:
    """The repeated put is refused by our own turn, which is what a commit wants to find."""
    client = LosingClient(store.client, "put_item")
    turn = await say(store.log(client=client), store.session(), "hello")
    assert client.lost == 1
    assert (await store.log().load(store.session(), token_limit=1000)).turns == (turn,)


async def test_a_failure_whose_response_was_lost_is_stored_as_well(store: Store) -> None:
    """A refusal that shows our own token is a success for every kind of turn."""
    claim = await claimed(store, store.session(), asking("hello"))
    failed = claim.failed("model_error", exchange("hello", "")[:1], at=utc_now(), instance="test")
    client = LosingClient(store.client, "put_item", skip=1)  # after the part that has its message
    assert await store.log(client=client).commit(claim, failed) == failed
    assert client.lost == 1


async def test_a_claim_whose_response_was_lost_blocks_nobody(store: Store) -> None:
    """The table shows the token of the silent claim on the next load: it is ours, and is not waited for."""
    client = LosingClient(store.client, "update_item")
    log = store.log(client=client)
    _, claim = await take_turn(log, store.session(), asking("hello"), token_limit=0, patience=1)
    assert client.lost == 1
    assert claim is not None
    assert claim.number == 1


async def test_a_delete_whose_response_was_lost_is_done_all_the_same(store: Store) -> None:
    """A delete may be applied twice; the session is empty, and its next turn is the first."""
    await say(store.log(), store.session(), "old")
    assert await store.log(client=LosingClient(store.client, "update_item")).delete(store.session())
    assert (await say(store.log(), store.session(), "new")).number == 1


async def test_a_delete_that_arrives_late_deletes_nothing_newer(store: Store) -> None:
    """A copy of a delete's write that was under way while the session began anew finds another generation."""
    await say(store.log(), store.session(), "old")
    client = LosingClient(store.client, "update_item", skip=99)
    await store.log(client=client).delete(store.session())
    await say(store.log(), store.session(), "new")
    with pytest.raises(ClientError, match="ConditionalCheckFailed"):
        store.client.update_item(**client.calls[0])
    assert said(await store.log().load(store.session(), token_limit=None)) == ["new"]


async def test_a_rewrite_whose_response_was_lost_keeps_what_came_after_it(store: Store) -> None:
    """Another turn that was stored on the rewritten history is no sign that the rewrite was not shown."""
    for text in "abc":
        await say(store.log(), store.session(), text)
    claim, reserve = 1, 1
    client = LosingClient(
        store.client,
        "update_item",
        skip=claim + reserve,
        meanwhile=lambda: say(store.log(), store.session(), "d"),
    )
    log = store.log(client=client)
    window = await log.load(store.session(), token_limit=None)
    await log.rewrite(window, window.turns[1:])
    assert client.lost == 1
    assert said(await store.log().load(store.session(), token_limit=None)) == ["b", "c", "d"]


async def test_a_mark_whose_response_was_lost_is_not_made_twice(store: Store) -> None:
    """Where somebody moved the mark further meanwhile, ours was made before, or is no longer needed."""
    for text in "abc":
        await say(store.log(), store.session(), text)

    async def somebody_else() -> None:
        log = store.log()
        await log.mark(await log.load(store.session(), token_limit=None), deleted=(2, 2))

    log = store.log(client=LosingClient(store.client, "update_item", meanwhile=somebody_else))
    await log.mark(await log.load(store.session(), token_limit=None), deleted=(1, 2))
    assert said(await store.log().load(store.session(), token_limit=None)) == ["c"]


async def test_the_request_of_an_overtaken_turn_that_was_stored_is_recognised(store: Store) -> None:
    """Who claimed last may have stored nothing: the requests are those of the stored turns."""
    clock = Clock()
    faster = await claimed(store, store.session(), asking("faster", "k"), clock=clock)
    clock.pass_lease()
    await claimed(store, store.session(), asking("overtaker"), clock=clock)
    stored = await store.log().commit(faster, completed(faster, "faster"))
    await say(store.log(), store.session(), "next")
    window = await store.log().load(store.session(), token_limit=0, request=asking("faster", "k"))
    assert window.answered == stored


@pytest.mark.parametrize("change", ["rewrite", "delete"])
async def test_a_turn_that_a_rewrite_or_a_delete_overtook_is_not_called_stored(store: Store, change: str) -> None:
    """Its number was freed by the removal of the old turns; it can be put, but nobody would see it."""
    clock = Clock()
    await say(store.log(clock=clock), store.session(), "a")
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    log = store.log(clock=clock)
    if change == "delete":
        await log.delete(store.session())
    else:
        window = await log.load(store.session(), token_limit=None)
        await log.rewrite(window, window.turns)
    with pytest.raises(LeaseLost):
        await store.log(clock=clock).commit(old, completed(old, "old"))


async def test_a_turn_that_may_be_hidden_is_not_called_stored(store: Store) -> None:
    """Where the table does not say whether a rewrite freed its number, sending it again tells."""
    clock = Clock()
    slow = await claimed(store, store.session(), asking("slow", "k"), clock=clock)
    clock.pass_lease()
    client = LosingClient(store.client, "get_item")
    with pytest.raises(TableUnavailable):
        await store.log(client=client, clock=clock).commit(slow, completed(slow, "slow"))
    assert client.lost
    assert (await store.log(clock=clock).load(store.session(), token_limit=0, request=slow.request)).answered


async def test_a_stored_turn_does_not_wait_for_what_a_dead_holder_left(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parts are out of sight: where the table does not say what there is of them, the caller is answered."""
    monkeypatch.setattr(dynamodb, "TIDY_SECONDS", 0.1)
    clock, answered = Clock(), threading.Event()
    await claimed(store, store.session(), asking("lost"), clock=clock)
    clock.pass_lease()
    claim = await claimed(store, store.session(), asking("next"), clock=clock)

    class Stuck:
        def __getattr__(self, name: str) -> Any:
            return getattr(store.client, name)

        def query(self, **_: Any) -> Any:
            assert answered.wait(20)
            raise ReadTimeoutError(endpoint_url="http://stuck")

    turn = completed(claim, "next")
    assert await store.log(client=Stuck(), clock=clock).commit(claim, turn) == turn
    answered.set()


async def test_a_commit_that_finds_a_damaged_turn_in_its_place_was_taken_over(store: Store) -> None:
    """What cannot be read is somebody else's all the same."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    await say(store.log(clock=clock), store.session(), "new")
    damage(store, 1, "v", {"N": "99"})
    with pytest.raises(LeaseLost):
        await store.log().commit(old, completed(old, "old"))


async def test_a_request_whose_answer_is_damaged_is_not_answered_twice(store: Store) -> None:
    """Its turn is there, and cannot be read: that is an error, and no reason to run the agent again."""
    await say(store.log(), store.session(), "once", key="k")
    damage(store, 1, "payload", {"B": b"not json"})
    with pytest.raises(DamagedTurn):
        await say(store.log(), store.session(), "once", key="k")


@pytest.mark.once
async def test_failed_turns_cost_a_load_next_to_nothing(real_store: Store) -> None:
    """However many requests failed in a row, the window behind them is read at a small price."""
    await say(real_store.log(), real_store.session(), "before")
    for _ in range(60):
        log = real_store.log()
        claim = await claimed(real_store, real_store.session(), asking("x"))
        failed = claim.failed("model_error", exchange(noise(30_000), "")[:1], at=utc_now(), instance="test")
        await log.commit(claim, failed)
    log = real_store.log()
    assert said(await log.load(real_store.session(), token_limit=10_000)) == ["before"]
    assert log.usage.calls <= 2
    assert log.usage.read_units <= 12
    look = real_store.log()
    await look.load(real_store.session(), token_limit=0)
    assert (look.usage.calls, look.usage.read_units) == (1, 1)


async def test_a_rewrite_removes_all_that_it_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much that is, nothing of it stays in the table."""
    monkeypatch.setattr(items, "SWEPT_AT_ONCE", 2)
    for text in "abcdefg":
        await say(store.log(), store.session(), text)
    log = store.log()
    window = await log.load(store.session(), token_limit=None)
    await log.rewrite(window, window.turns[6:])
    assert keys_of(store) == ["TURN#000002#0000000001", "state"]


async def test_a_table_that_is_not_there_is_unavailable(store: Store) -> None:
    """What the table cannot do is one error with its cause, not an empty conversation."""
    log = store.log()
    log._table._name = "no-such-table"
    with pytest.raises(TableUnavailable):
        await log.load(store.session(), token_limit=0)


async def test_a_delete_goes_on_for_as_long_as_the_table_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that does a part of each batch is given the rest again, however often."""
    monkeypatch.setattr(table, "PERSISTENCE_SECONDS", 0.0)
    for text in "abcd":
        await say(store.log(), store.session(), text)
    assert await store.log(client=ThrottledClient(store.client, done=1)).delete(store.session())
    assert keys_of(store) == ["state"]


async def test_a_delete_that_the_table_leaves_undone_is_a_delete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be removed is not tried for ever, and seen by nobody; the next call removes it."""
    monkeypatch.setattr(table, "PERSISTENCE_SECONDS", 0.0)
    await say(store.log(), store.session(), "secret")
    assert not await store.log(client=ThrottledClient(store.client, done=0)).delete(store.session())
    assert said(await store.log().load(store.session(), token_limit=None)) == []
    assert await store.log().delete(store.session())
    assert keys_of(store) == ["state"]


async def test_a_deleted_session_is_empty_at_once(store: Store) -> None:
    """After a delete nothing of before is read, found by its request id, listed or left in the table."""
    await say(store.log(), store.session(), "secret", key="k")
    assert await store.log().delete(store.session())
    window = await store.log().load(store.session(), token_limit=None, request=asking("secret", "k"))
    assert (window.turns, window.answered, window.total_turns) == ((), None, 0)
    assert await store.listed() == []
    assert keys_of(store) == ["state"]


async def test_a_turn_in_flight_does_not_outlive_a_delete(store: Store) -> None:
    """A commit that was claimed before a delete lands where nobody looks."""
    claim = await claimed(store, store.session(), asking("in flight"))
    await store.log().delete(store.session())
    await store.log().commit(claim, completed(claim, "in flight"))
    assert said(await store.log().load(store.session(), token_limit=None)) == []
    assert (await say(store.log(), store.session(), "after")).number == 1
    assert said(await store.log().load(store.session(), token_limit=None)) == ["after"]


async def test_a_session_that_was_deleted_starts_anew(store: Store) -> None:
    """The same id is a new conversation after a delete, also when the state itself is gone."""
    await say(store.log(), store.session(), "old")
    claim = await claimed(store, store.session(), asking("late"))
    await store.log().delete(store.session())
    await store.log().commit(claim, completed(claim, "late"))
    store.client.delete_item(
        TableName=TABLE, Key={"pk": {"S": codec.partition(store.session())}, "sk": {"S": codec.STATE_KEY}}
    )
    turn = await say(store.log(), store.session(), "new")
    assert turn.generation > claim.generation
    assert said(await store.log().load(store.session(), token_limit=None)) == ["new"]


async def test_a_rewrite_replaces_everything_in_one_step(store: Store) -> None:
    """After a rewrite the new turns are there in order, numbered from 1, and the next turn follows them."""
    for text in "abc":
        await say(store.log(), store.session(), text)
    log = store.log()
    window = await log.load(store.session(), token_limit=None)
    await log.rewrite(window, window.turns[1:])
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["b", "c"]
    assert (await say(store.log(), store.session(), "d")).number == 3
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["b", "c", "d"]


async def test_a_rewrite_is_refused_where_a_turn_came_between(store: Store) -> None:
    """A turn that was stored after the load is not lost to a rewrite that did not know of it."""
    await say(store.log(), store.session(), "a")
    log = store.log()
    window = await log.load(store.session(), token_limit=None)
    await say(store.log(), store.session(), "b")
    with pytest.raises(ClaimRefused):
        await log.rewrite(window, ())
    assert said(await store.log().load(store.session(), token_limit=None)) == ["a", "b"]


async def test_a_holder_that_a_rewrite_overtook_cannot_write(store: Store) -> None:
    """The number of a dead holder is filled before the rewrite shows: its late commit is refused, not hidden."""
    clock = Clock()
    await say(store.log(clock=clock), store.session(), "a")
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    log = store.log(clock=clock)
    window = await log.load(store.session(), token_limit=None)
    replaced = asyncio.Event()

    class Pausing(type(log)):  # type: ignore[misc]
        async def _flip(self, *arguments: Any) -> None:
            with pytest.raises(LeaseLost):
                await store.log().commit(old, completed(old, "old"))
            replaced.set()
            await super()._flip(*arguments)

    await Pausing(store.client, TABLE, clock=clock).rewrite(window, window.turns)
    assert replaced.is_set()
    assert said(await store.log().load(store.session(), token_limit=None)) == ["a"]


async def test_what_an_unfinished_rewrite_left_behind_is_never_seen(store: Store) -> None:
    """Turns of a generation that was never shown hide nothing and appear nowhere."""
    await say(store.log(), store.session(), "a")
    window = await store.log().load(store.session(), token_limit=None)

    class Dying(type(store.log())):  # type: ignore[misc]
        async def _flip(self, *arguments: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Dying(store.client, TABLE).rewrite(window, window.turns * 30)
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["a"]
    await say(store.log(), store.session(), "b")
    assert said(await store.log().load(store.session(), token_limit=1000)) == ["a", "b"]


async def test_archived_and_deleted_messages_leave_the_window_with_their_turn(store: Store) -> None:
    """A mark moves over messages; a turn of which one is archived or deleted is no longer whole."""
    for text in "abc":
        await say(store.log(), store.session(), text)
    log = store.log()
    await log.mark(await log.load(store.session(), token_limit=None), deleted=(1, 2))
    await log.mark(await log.load(store.session(), token_limit=None), archived=(2, 1))
    assert said(await log.load(store.session(), token_limit=1000)) == ["c"]
    everything = await log.load(store.session(), token_limit=None)
    assert [(turn.number, turn.archived, len(turn.messages)) for turn in everything.turns] == [(2, 1, 2), (3, 0, 2)]


async def test_two_marks_from_one_load_cannot_both_move(store: Store) -> None:
    """Who archives on an older view is refused, and must look again."""
    for text in "ab":
        await say(store.log(), store.session(), text)
    log = store.log()
    window = await log.load(store.session(), token_limit=None)
    await log.mark(window, archived=(1, 1))
    with pytest.raises(ClaimRefused):
        await log.mark(window, archived=(1, 1))


async def test_sessions_are_listed_with_the_last_active_first(store: Store) -> None:
    """The index knows each session of an owner once, in the order of its last activity."""
    clock = Clock()
    for name in ("a", "b", "c", "a"):
        clock.now += timedelta(minutes=1)
        await say(store.log(clock=clock), store.session(name), "hello")
    assert await store.listed() == ["a", "c", "b"]


async def test_a_damaged_turn_hides_no_other_and_is_reported(store: Store) -> None:
    """A turn of an unknown version or with a broken payload is left out, and its number is told."""
    for text in "abcd":
        await say(store.log(), store.session(), text)
    damage(store, 2, "v", {"N": "99"})
    damage(store, 3, "payload", {"B": b"not json"})
    window = await store.log().load(store.session(), token_limit=1000)
    assert said(window) == ["a", "d"]
    assert window.damaged == (3, 2)
    assert window.next_number == 5


@pytest.mark.parametrize("size", [1, 300_000, 399_000, 401_000, 3_000_000, 5_000_000])
async def test_a_turn_of_any_size_is_stored_whole(real_store: Store, size: int) -> None:
    """There is no wall at DynamoDB's 400 KB, nor anywhere below a Lambda response's 6 MB."""
    answer = noise(size)
    await say(real_store.log(), real_store.session(), "tell me all", answer=answer)
    window = await real_store.log().load(real_store.session(), token_limit=1000)
    assert window.turns[0].answer == answer


async def test_a_large_turn_that_was_overtaken_leaves_no_parts(real_store: Store) -> None:
    """Who loses the number removes the parts that were written for it."""
    clock = Clock()
    old = await claimed(real_store, real_store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    await say(real_store.log(clock=clock), real_store.session(), "new")
    large = old.completed(exchange("old", noise(1_000_000)), tokens=10, at=utc_now(), instance="test")
    with pytest.raises(LeaseLost):
        await real_store.log().commit(old, large)
    assert keys_of(real_store) == ["TURN#000001#0000000001", "state"]


async def test_a_large_turn_is_deleted_with_its_parts(real_store: Store) -> None:
    """A delete leaves nothing of a turn that was stored in parts."""
    await say(real_store.log(), real_store.session(), "tell me all", answer=noise(1_000_000))
    assert await real_store.log().delete(real_store.session())
    assert keys_of(real_store) == ["state"]


async def test_a_large_turn_outside_the_window_costs_a_load_nothing(real_store: Store) -> None:
    """Parts lie below the turns, and are fetched only for a turn that is shown."""
    await say(real_store.log(), real_store.session(), "large", answer=noise(3_000_000), tokens=5000)
    await say(real_store.log(), real_store.session(), "small")
    log = real_store.log()
    assert said(await log.load(real_store.session(), token_limit=1000)) == ["small"]
    assert log.usage.calls == 1
    assert log.usage.read_units <= 2


@pytest.mark.once
async def test_a_turn_costs_the_same_at_turn_120_as_at_turn_30(real_store: Store) -> None:
    """Three calls, and units that depend on the window and the turn, never on the length of the conversation."""
    costs = {}
    for n in range(1, 121):
        log = real_store.log(clock=Clock())
        await say(log, real_store.session(), noise(500), answer=noise(1500), tokens=500)
        costs[n] = (log.usage.calls, log.usage.read_units)
    assert costs[120] == costs[30]
    assert costs[120][0] == 3
    assert costs[120][1] <= 14


@pytest.mark.once
async def test_a_turn_among_short_ones_costs_one_call_more(real_store: Store) -> None:
    """Where far more turns fit than expected, a second page holds all the rest, however long the conversation is."""
    log = real_store.log()
    for i in range(150):
        await say(log, real_store.session(), str(i), tokens=10, limit=0)
    log = real_store.log()
    turn = await say(log, real_store.session(), "next", limit=1000)
    assert turn.window.turns == 100
    assert log.usage.calls == 4


# A turn that is larger than the window


LARGE = noise(30_000)


async def say_much(log: DynamoDBTurnLog, session: Session, text: str = "tell me all", **options: Any) -> Turn:
    """A turn of 20,000 tokens."""
    return await say(log, session, text, answer=options.pop("answer", LARGE), tokens=20_000, **options)


async def test_a_turn_that_does_not_fit_is_shown_in_part(store: Store) -> None:
    """The newest turn never leaves a window blank: its question is whole, and its answer lacks the middle."""
    await say(store.log(), store.session(), "before", tokens=500)
    await say_much(store.log(), store.session())
    window = await store.log().load(store.session(), token_limit=2000)
    assert (said(window), window.shortened) == (["tell me all"], (2,))
    answer = window.turns[0].answer
    assert (answer[:500], answer[-500:]) == (LARGE[:500], LARGE[-500:])
    assert re.search(r" \[\.\.\. 2\d,\d{3} characters left out \.\.\.\] ", answer)
    assert most_tokens(window.turns[0].messages) == window.tokens <= 2000


async def test_a_shortened_turn_fits_by_the_counter_of_the_log(store: Store) -> None:
    """A log that is given a tokenizer shows as much of the turn as fits by that."""
    await say_much(store.log(), store.session())

    def count(messages: Sequence[Message]) -> int:
        return sum(len(block["text"]) for message in messages for block in message["blocks"]) // 4

    window = await store.log(count_tokens=count).load(store.session(), token_limit=2000)
    assert count(window.turns[0].messages) == window.tokens
    assert 1700 < window.tokens <= 2000


@pytest.mark.parametrize("older", [5, 5000])
async def test_older_turns_are_shown_beside_a_shortened_one_if_they_fit(store: Store, older: int) -> None:
    """What a shortened turn leaves of the limit goes to the turns before it, as ever."""
    await say(store.log(), store.session(), "first", tokens=5)
    await say(store.log(), store.session(), "second", tokens=older)
    picture = {"block_type": "image", "url": "https://example.com/" + LARGE}
    messages = exchange("what is this", "a cat")
    messages[0]["blocks"].append(picture)
    claim = await claimed(store, store.session(), asking("what is this"))
    await store.log().commit(claim, claim.completed(messages, tokens=5000, at=utc_now(), instance="test"))
    window = await store.log().load(store.session(), token_limit=1000)
    assert [turn.number for turn in window.turns] == ([1, 2, 3] if older == 5 else [3])
    assert window.shortened == (3,)
    assert window.turns[-1].messages[0]["blocks"][0]["text"] == "what is this\n[... image left out ...]"


async def test_a_shortened_turn_is_stored_whole(store: Store) -> None:
    """The history has all of it, and so has the answer to a copy of its request."""
    turn = await say_much(store.log(), store.session(), key="k")
    assert (await store.log().load(store.session(), token_limit=None)).turns == (turn,)
    for limit in (0, 1000):
        request = asking("tell me all", "k")
        assert (await store.log().load(store.session(), token_limit=limit, request=request)).answered == turn


async def test_a_turn_says_that_it_saw_a_shortened_one(store: Store) -> None:
    """What the model was shown is stored with the turn, so that a copy of its request is told the same."""
    await say_much(store.log(), store.session())
    turn = await say(store.log(), store.session(), "next", limit=1000)
    assert (turn.window.turns, turn.window.shortened) == (1, 1)
    assert (await store.log().load(store.session(), token_limit=1000)).turns == (turn,)
    assert "window_shortened" not in items_of(store)[codec.turn_key(1, 1)], "no other turn pays for it"


async def test_no_window_without_memory_is_filled(store: Store) -> None:
    """A limit of 0 switches the memory off; that of 1 has no room for any part of a turn, nor for older turns."""
    await say(store.log(), store.session(), "before", tokens=1)
    await say_much(store.log(), store.session())
    for limit in (0, 1):
        window = await store.log().load(store.session(), token_limit=limit)
        assert (window.turns, window.shortened) == ((), ())


async def test_a_window_of_the_least_size_shows_a_part_of_any_turn(store: Store) -> None:
    """However much was said on either side."""
    await say_much(store.log(), store.session(), LARGE)
    window = await store.log().load(store.session(), token_limit=LEAST_TOKENS)
    assert (len(window.turns), window.shortened) == (1, (1,))
    assert window.tokens <= LEAST_TOKENS


async def test_what_no_model_is_shown_does_not_hide_a_large_turn(store: Store) -> None:
    """Failed, superseded and damaged turns after it change nothing, however many there are."""
    log, session = store.log(), store.session()
    await say_much(log, session)
    await say(log, session, "b")
    await answer_again(log, session, 2, "again")
    for _ in range(3):
        await fail(log, session, "c")
    for number in (2, 3):
        damage(store, number, "v", {"N": "99"})
    window = await log.load(session, token_limit=1000)
    assert (said(window), window.shortened) == (["tell me all"], (1,))


@pytest.mark.parametrize("mark", ["archived", "deleted"])
async def test_a_large_turn_that_is_not_whole_is_not_shown(store: Store, mark: str) -> None:
    """Neither is any before it: the messages up to a mark are out of the window."""
    log, session = store.log(), store.session()
    await say(log, session, "a")
    await say_much(log, session)
    await log.mark(await log.load(session, token_limit=None), **{mark: (2, 1)})
    log = store.log()
    assert (await log.load(session, token_limit=1000)).turns == ()
    assert log.usage.calls == 1, "and none of its parts is read"


async def test_a_turn_is_answered_again_in_view_of_a_large_one(store: Store) -> None:
    """The newest answered turn before the one to be answered again is shown, shortened where it has to be."""
    log, session = store.log(), store.session()
    await say_much(log, session)
    await say(log, session, "b")
    window = await log.load(session, token_limit=1000, request=asking_again(2))
    assert (said(window), window.shortened) == (["tell me all"], (1,))
    turn = await answer_again(log, session, 2, "again", limit=1000)
    assert (turn.window.turns, turn.window.shortened) == (1, 1)


async def test_a_large_turn_is_answered_again(store: Store) -> None:
    """The turn to be answered again is whole, and takes no room in the window."""
    log, session = store.log(), store.session()
    await say(log, session, "a")
    turn = await say_much(log, session)
    window = await log.load(session, token_limit=1000, request=asking_again(2))
    assert (said(window), window.shortened, window.regenerated) == (["a"], (), turn)


async def test_a_large_turn_in_a_window_costs_its_parts_and_nothing_else(real_store: Store) -> None:
    """However long the conversation is: one call for each part, and none more for what does not fit beside it."""
    costs = []
    for _ in range(2):
        for i in range(30):
            await say(real_store.log(), real_store.session(), str(i), answer=noise(2000), tokens=500, limit=0)
        await say_much(real_store.log(), real_store.session(), answer=noise(1_000_000), limit=0)
        log = real_store.log()
        await log.load(real_store.session(), token_limit=10_000)
        costs.append((log.usage.calls, log.usage.read_units))
    assert costs[0] == costs[1]
    assert costs[0][0] == 1 + 3
    assert costs[0][1] <= 14 + 1_000_000 / 4096 + 3


async def test_a_turn_of_two_kilobytes_writes_four_units(real_store: Store) -> None:
    """Three units for the turn and one for the claim; the index is written once a minute and not at every turn."""
    clock = Clock()
    clock.now = clock.now.replace(second=0)
    await say(real_store.log(clock=clock), real_store.session(), "first")
    for second in (1, 59):
        clock.now = clock.now.replace(second=second)
        log = real_store.log(clock=clock)
        await say(log, real_store.session(), noise(500), answer=noise(1500), tokens=500)
        assert log.usage.write_units <= 4


async def test_racing_requests_are_all_stored_once_in_one_order(real_store: Store) -> None:
    """Eight logs that take turns at once lose nothing, double nothing, and each saw all turns before it."""

    async def talk(writer: int) -> list[Any]:
        log = real_store.log()
        return [await persistently(log, real_store.session(), f"{writer}/{i}") for i in range(4)]

    turns = [turn for turns in await asyncio.gather(*map(talk, range(8))) for turn in turns]
    window = await real_store.log().load(real_store.session(), token_limit=100_000)
    assert [turn.number for turn in window.turns] == list(range(1, 33))
    assert sorted(said(window)) == sorted(f"{writer}/{i}" for writer in range(8) for i in range(4))
    assert {turn.number: turn for turn in turns} == {turn.number: turn for turn in window.turns}
    assert all(turn.window.turns == turn.number - 1 for turn in window.turns)


async def persistently(log: Any, session: Session, text: str) -> Any:
    """A client that sends its request again, under the same key, until it is answered."""
    key = uuid.uuid4().hex
    while True:
        try:
            return await say(log, session, text, key=key)
        except (LeaseLost, TurnInProgress):
            await asyncio.sleep(0.05)


# Answered again


def answered(window: Window) -> dict[int, str]:
    """The answers of a window by the numbers of their turns."""
    return {turn.number: turn.answer for turn in window.turns}


async def test_a_turn_is_answered_again_in_view_of_what_came_before_it(store: Store) -> None:
    """The window for another answer holds the turns before the one it is for, and that one apart."""
    for text in "abc":
        await say(store.log(), store.session(), text)
    window = await store.log().load(store.session(), token_limit=1000, request=asking_again(3))
    assert said(window) == ["a", "b"]
    assert window.regenerated
    assert (window.regenerated.number, window.regenerated.answer) == (3, "answer to c")
    assert (window.next_number, window.size.turns, window.size.tokens) == (4, 2, 20)


async def test_another_answer_takes_the_place_of_the_one_before(store: Store) -> None:
    """From then on the window has the newest answer only, however often one was given; the history has them all."""
    log, session = store.log(), store.session()
    for text in "ab":
        await say(log, session, text)
    for number in (2, 3):
        turn = await answer_again(log, session, number, f"not as in {number}")
        assert (turn.number, turn.supersedes) == (number + 1, number)
    assert answered(await log.load(session, token_limit=1000)) == {1: "answer to a", 4: "not as in 3"}
    history = (await log.load(session, token_limit=None)).turns
    assert [turn.status for turn in history] == [
        TurnStatus.COMPLETE,
        TurnStatus.SUPERSEDED,
        TurnStatus.SUPERSEDED,
        TurnStatus.COMPLETE,
    ]
    again = await log.load(session, token_limit=1000, request=asking_again(4))
    assert answered(again) == {1: "answer to a"}
    assert (await say(log, session, "c")).window.turns == 2


@pytest.mark.parametrize("number", [1, 2])
async def test_only_the_newest_turn_is_answered_again(store: Store, number: int) -> None:
    """A turn that another one followed, or took the place of, keeps its answer."""
    for text in "ab":
        await say(store.log(), store.session(), text)
    await answer_again(store.log(), store.session(), 2, "again")
    with pytest.raises(NotTheNewestTurn):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(number))


async def test_a_turn_that_a_failed_question_followed_is_not_the_newest(store: Store) -> None:
    """Something else was asked after it, though no answer came of that."""
    await say(store.log(), store.session(), "a")
    await fail(store.log(), store.session(), "b")
    with pytest.raises(NotTheNewestTurn):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(1))


@pytest.mark.once
async def test_to_refuse_another_answer_costs_little_however_far_back_it_is(real_store: Store) -> None:
    """Who wants the first of many turns answered again is told so from the newest ones."""
    for i in range(60):
        await say(real_store.log(), real_store.session(), str(i), answer=noise(2000), limit=0)
    log = real_store.log()
    with pytest.raises(NotTheNewestTurn):
        await log.load(real_store.session(), token_limit=1000, request=asking_again(1))
    assert log.usage.calls == 1


async def test_what_is_not_there_is_not_answered_again(store: Store) -> None:
    """A number that no turn has is no turn; and where there is no session, there is none in it."""
    with pytest.raises(SessionNotFound):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(1))
    await say(store.log(), store.session(), "a")
    with pytest.raises(TurnNotFound):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(2))
    await store.log().delete(store.session())
    with pytest.raises(SessionNotFound):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(1))


async def test_a_turn_without_its_question_is_not_answered_again(store: Store) -> None:
    """Where the user's message was deleted, nothing is left to answer."""
    log = store.log()
    await say(log, store.session(), "a")
    await log.mark(await log.load(store.session(), token_limit=None), deleted=(1, 1))
    with pytest.raises(TurnNotFound):
        await log.load(store.session(), token_limit=1000, request=asking_again(1))


async def test_a_turn_that_cannot_be_read_is_not_answered_again(store: Store) -> None:
    """That is an error, and neither an empty question nor a turn that is not there."""
    await say(store.log(), store.session(), "a")
    damage(store, 1, "payload", {"B": b"not json"})
    with pytest.raises(DamagedTurn):
        await store.log().load(store.session(), token_limit=1000, request=asking_again(1))


async def test_another_answer_that_failed_leaves_the_one_before(store: Store) -> None:
    """It supersedes nothing: windows go on with the old answer."""
    for text in "ab":
        await say(store.log(), store.session(), text)
    await fail(store.log(), store.session(), "b", again=2)
    window = await store.log().load(store.session(), token_limit=1000)
    assert answered(window) == {1: "answer to a", 2: "answer to b"}


@pytest.mark.parametrize("number", [2, 3, 4])
async def test_after_a_failed_attempt_the_turn_can_be_answered_again(store: Store, number: int) -> None:
    """Under its own number or that of any failed attempt: what is superseded is always the turn that has an answer."""
    log, session = store.log(), store.session()
    for text in "ab":
        await say(log, session, text)
    await fail(log, session, "b", again=2)
    await fail(log, session, "b", again=3)
    window = await log.load(session, token_limit=1000, request=asking_again(number))
    assert answered(window) == {1: "answer to a"}
    assert (await answer_again(log, session, number, "at last")).supersedes == 2
    assert answered(await log.load(session, token_limit=1000)) == {1: "answer to a", 5: "at last"}


@pytest.mark.parametrize("number", [2, 3])
async def test_a_question_that_got_no_answer_is_asked_again(store: Store, number: int) -> None:
    """A failed turn is answered as any other; it stays a failed one in the history."""
    log, session = store.log(), store.session()
    await say(log, session, "a")
    await fail(log, session, "b")
    await fail(log, session, "b", again=2)
    turn = await answer_again(log, session, number, "at last")
    assert (turn.number, turn.supersedes) == (4, 2)
    assert answered(await log.load(session, token_limit=1000)) == {1: "answer to a", 4: "at last"}
    history = (await log.load(session, token_limit=None)).turns
    assert [turn.status for turn in history] == [
        TurnStatus.COMPLETE,
        TurnStatus.FAILED,
        TurnStatus.FAILED,
        TurnStatus.COMPLETE,
    ]


async def test_a_turn_that_a_killed_rewrite_followed_is_still_the_newest(store: Store) -> None:
    """The turn that holds a number for a rewrite says nothing, and follows nobody."""
    await say(store.log(), store.session(), "a")

    class Dying(type(store.log())):  # type: ignore[misc]
        async def _flip(self, *arguments: Any) -> None:
            raise Killed

    log = store.log(kind=Dying)
    with pytest.raises(Killed):
        await log.rewrite(await log.load(store.session(), token_limit=None), ())
    assert (await answer_again(store.log(), store.session(), 1, "again")).number == 3
    assert answered(await store.log().load(store.session(), token_limit=1000)) == {3: "again"}


async def test_the_same_wish_for_another_answer_is_granted_once(store: Store) -> None:
    """A copy of the request gets the stored answer, though its turn is no longer the newest."""
    await say(store.log(), store.session(), "a")
    first = await answer_again(store.log(), store.session(), 1, "again", key="k")
    await say(store.log(), store.session(), "b")
    assert await answer_again(store.log(), store.session(), 1, "and again", key="k") == first
    assert (await store.log().load(store.session(), token_limit=1000)).total_turns == 3


async def test_the_request_of_a_superseded_turn_is_not_answered_anew(store: Store) -> None:
    """A late copy of the first request gets the answer that was given to it."""
    first = await say(store.log(), store.session(), "a", key="k")
    await answer_again(store.log(), store.session(), 1, "again")
    again = await say(store.log(), store.session(), "a", key="k")
    assert (again.number, again.answer) == (1, first.answer)


async def test_of_two_wishes_for_another_answer_one_is_granted(real_store: Store) -> None:
    """The other one learns that its turn is not the newest any more."""
    await say(real_store.log(), real_store.session(), "a")
    outcomes = await asyncio.gather(
        *(answer_again(real_store.log(), real_store.session(), 1, str(i)) for i in range(4)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NotTheNewestTurn"] * 3 + ["Turn"]
    assert list(answered(await real_store.log().load(real_store.session(), token_limit=1000))) == [2]


async def test_a_wish_for_another_answer_waits_for_a_turn_in_progress(store: Store) -> None:
    """Nobody is told that his turn is the newest while another one is being answered."""
    await say(store.log(), store.session(), "a")
    await claimed(store, store.session(), asking("b"))
    with pytest.raises(TurnInProgress):
        await take_turn(store.log(), store.session(), asking_again(1), token_limit=1000, patience=0)


async def test_superseded_turns_take_no_room_in_a_window(store: Store) -> None:
    """Neither the turn to be answered again counts, nor those that it or a later one took the place of."""
    log, session = store.log(), store.session()
    for text in "ab":
        await say(log, session, text, tokens=10)
    await say(log, session, "c", tokens=500)
    await answer_again(log, session, 3, "again", tokens=500)
    window = await log.load(session, token_limit=20, request=asking_again(4))
    assert answered(window) == {1: "answer to a", 2: "answer to b"}
    await answer_again(log, session, 4, "short", tokens=10)
    assert answered(await log.load(session, token_limit=20)) == {2: "answer to b", 5: "short"}


async def test_a_window_without_room_can_still_be_answered_again(store: Store) -> None:
    """The turn to be answered again is found however small the limit is."""
    await say(store.log(), store.session(), "a", tokens=500)
    turn = await answer_again(store.log(), store.session(), 1, "again", limit=0)
    assert (turn.supersedes, turn.window.turns) == (1, 0)


async def test_a_rewrite_keeps_what_was_superseded_out_of_windows(store: Store) -> None:
    """Under their new numbers the old answers stay what they were."""
    log, session = store.log(), store.session()
    await say(log, session, "gone")
    await say(log, session, "a")
    await answer_again(log, session, 2, "again")
    window = await log.load(session, token_limit=None)
    await log.rewrite(window, window.turns[1:])
    assert answered(await log.load(session, token_limit=1000)) == {2: "again"}
    history = (await log.load(session, token_limit=None)).turns
    assert [(turn.number, turn.status) for turn in history] == [(1, TurnStatus.SUPERSEDED), (2, TurnStatus.COMPLETE)]
    await answer_again(log, session, 2, "and again")
    assert answered(await log.load(session, token_limit=1000)) == {3: "and again"}


@pytest.mark.parametrize("number", [1, 2])
async def test_a_rewrite_keeps_what_a_failed_attempt_was_for(store: Store, number: int) -> None:
    """Answered again after the rewrite, it supersedes the turn that has the answer, under the number it has now."""
    log, session = store.log(), store.session()
    await say(log, session, "gone")
    await say(log, session, "a")
    await fail(log, session, "a", again=2)
    window = await log.load(session, token_limit=None)
    await log.rewrite(window, window.turns[1:])
    await answer_again(log, session, number, "at last")
    assert answered(await log.load(session, token_limit=1000)) == {3: "at last"}


async def test_a_rewrite_keeps_turns_that_are_not_whole_out_of_windows(store: Store) -> None:
    """A turn that lost its first message is never taken for one that began with the second."""
    log, session = store.log(), store.session()
    for text in "ab":
        await say(log, session, text)
    await log.mark(await log.load(session, token_limit=None), deleted=(1, 1))
    window = await log.load(session, token_limit=None)
    await log.rewrite(window, window.turns)
    assert said(await log.load(session, token_limit=1000)) == ["b"]
    history = (await log.load(session, token_limit=None)).turns
    assert [(turn.deleted, len(turn.messages)) for turn in history] == [(1, 1), (0, 2)]


# Kept for a time


DAY = timedelta(days=1)


def expiries(store: Store) -> dict[str, int | None]:
    """When the items of the session expire, by sort key."""
    return {
        key: int(item["expires_at"]["N"]) if "expires_at" in item else None for key, item in items_of(store).items()
    }


async def test_an_expired_turn_is_read_by_nobody_though_it_is_there(store: Store) -> None:
    """From the second on in which it expires it is in no window and no history, and answers no request."""
    clock = Clock()
    log = store.log(clock=clock, retention=DAY)
    turn = await say(log, store.session(), "a", key="k")
    assert turn.expires_at
    clock.now = turn.expires_at - timedelta(milliseconds=1)
    for limit in (1000, None):
        assert said(await log.load(store.session(), token_limit=limit)) == ["a"]
    clock.now = turn.expires_at
    for limit in (0, 1000, None):
        window = await log.load(store.session(), token_limit=limit, request=asking("a", "k"))
        assert (window.turns, window.answered) == ((), None)
    with pytest.raises(TurnNotFound):
        await log.load(store.session(), token_limit=1000, request=asking_again(1))
    assert codec.turn_key(1, 1) in keys_of(store)
    assert (await say(log, store.session(), "a", key="k")).number == 2


async def test_a_window_ends_at_a_turn_that_expired(store: Store) -> None:
    """No window has a hole: what is older than an expired turn is not shown, though it may be kept for longer."""
    clock = Clock()
    await say(store.log(clock=clock), store.session(), "a")
    await say(store.log(clock=clock, retention=DAY), store.session(), "b")
    clock.now += 2 * DAY
    log = store.log(clock=clock, retention=DAY)
    await say(log, store.session(), "c")
    assert said(await log.load(store.session(), token_limit=1000)) == ["c"]
    assert said(await log.load(store.session(), token_limit=None)) == ["a", "c"]


async def test_a_window_is_not_blank_because_the_newest_turns_expired(store: Store) -> None:
    """Where nothing newer is left to show, the newest turn that was promised a longer time is shown."""
    clock = Clock()
    await say(store.log(clock=clock, retention=30 * DAY), store.session(), "a")
    await say(store.log(clock=clock, retention=30 * DAY), store.session(), "b")
    log = store.log(clock=clock, retention=DAY)
    await say(log, store.session(), "c")
    await fail(log, store.session(), "d")
    clock.now += 2 * DAY
    assert said(await log.load(store.session(), token_limit=1000)) == ["a", "b"]
    await fail(log, store.session(), "e")
    assert said(await log.load(store.session(), token_limit=1000)) == ["a", "b"]


async def test_a_session_that_has_expired_is_not_searched(real_store: Store) -> None:
    """Where all turns have expired, none that DynamoDB has not removed yet is read to find one that has not."""
    clock = Clock()
    log = real_store.log(clock=clock, retention=DAY)
    for i in range(12):
        await say(log, real_store.session(), str(i), limit=0)
    for later in (DAY + timedelta(minutes=1), 2 * DAY):
        clock.now += later
        log = real_store.log(clock=clock, retention=DAY)
        assert (await log.load(real_store.session(), token_limit=1)).turns == ()
        assert log.usage.calls == 1


async def test_a_state_outlives_its_turns(store: Store) -> None:
    """Whatever DynamoDB removes first, no turn is left that a new state would not know of."""
    clock = Clock()
    log = store.log(clock=clock, retention=DAY)
    for text in "abc":
        clock.now += timedelta(seconds=50)
        await say(log, store.session(), text)
    found = expiries(store)
    last = found.pop("state")
    assert last
    assert all(expiry is not None and last > expiry + 12 * 3600 for expiry in found.values())


async def test_what_older_turns_were_promised_is_kept(store: Store) -> None:
    """A shorter retention holds for the turns that come after: the session is there until the last one expires."""
    clock = Clock()
    begin = clock.now
    await say(store.log(clock=clock, retention=30 * DAY), store.session(), "a")
    log = store.log(clock=clock, retention=DAY)
    turn = await say(log, store.session(), "b")
    assert turn.expires_at
    assert turn.expires_at < begin + 2 * DAY
    clock.now = begin + 29 * DAY
    assert said(await log.load(store.session(), token_limit=None)) == ["a"]
    assert (await log.load(store.session(), token_limit=None)).live


async def test_a_session_that_was_kept_for_good_stays(store: Store) -> None:
    """Turns from before there was a retention are kept, and so is their state."""
    await say(store.log(), store.session(), "a")
    await say(store.log(retention=DAY), store.session(), "b")
    found = expiries(store)
    assert (found[codec.turn_key(1, 1)], found["state"]) == (None, None)
    assert found[codec.turn_key(1, 2)]


async def test_a_session_that_is_kept_for_good_from_now_on_does_not_expire(store: Store) -> None:
    """Without a retention a claim takes the expiry off the state."""
    await say(store.log(retention=DAY), store.session(), "a")
    await say(store.log(), store.session(), "b")
    found = expiries(store)
    assert (found[codec.turn_key(1, 2)], found["state"]) == (None, None)


async def test_nothing_expires_without_a_retention(store: Store) -> None:
    """Neither turns nor parts nor states carry an expiry then."""
    await say(store.log(), store.session(), "a", answer=noise(100_000))
    await fail(store.log(), store.session(), "b")
    log = store.log()
    window = await log.load(store.session(), token_limit=None)
    await log.rewrite(window, window.turns)
    assert set(expiries(store).values()) == {None}


async def test_parts_expire_with_their_turn(store: Store) -> None:
    """A turn is removed whole."""
    await say(store.log(retention=DAY), store.session(), "a", answer=noise(800_000))
    found = expiries(store)
    parts = [key for key in found if key.startswith(codec.PART_PREFIX)]
    assert len(parts) > 1
    assert {found[key] for key in parts} == {found[codec.turn_key(1, 1)]}


async def test_a_rewrite_keeps_what_its_turns_were_promised(store: Store) -> None:
    """Turns that have an expiry keep it, and those that come with the rewrite get one."""
    clock = Clock()
    log = store.log(clock=clock, retention=DAY)
    turn = await say(log, store.session(), "a")
    clock.now += DAY / 2
    window = await log.load(store.session(), token_limit=None)
    await log.rewrite(window, [turn, replace(turn, expires_at=None)])
    old, new = [turn.expires_at for turn in (await log.load(store.session(), token_limit=None)).turns]
    assert old == turn.expires_at
    assert new is not None
    assert DAY / 2 <= new - turn.expires_at <= DAY / 2 + timedelta(seconds=1)


@pytest.mark.parametrize("end", ["deleted", "expired"])
@pytest.mark.parametrize("title", ["", "the next one"])
async def test_a_conversation_inherits_nothing_of_the_one_before(store: Store, end: str, title: str) -> None:
    """One that begins where another was deleted or expired has its own title, its own time, and no maker."""
    clock = Clock()
    log, sessions = store.log(clock=clock, retention=DAY), store.sessions(clock=clock, retention=DAY)
    await sessions.create(store.session(), title="secret", asked="k")
    await say(log, store.session(), "secret")
    if end == "deleted":
        await log.delete(store.session())
    clock.now += 3 * DAY
    claim = await log.claim(await log.load(store.session(), token_limit=1000), asking("new"), title=title)
    await log.commit(claim, completed(claim, "new"))
    state = await sessions.find(store.session())
    assert (state.title, state.asked, state.deleted) == (title, "", False)
    assert state.created_at == clock.now.replace(microsecond=0)
    assert state.expires_at
    assert state.expires_at > clock.now + DAY
    assert said(await log.load(store.session(), token_limit=None)) == ["new"]


@pytest.mark.parametrize("order", ["turns first", "state first", "newest first"])
async def test_it_does_not_matter_in_which_order_expired_items_are_removed(store: Store, order: str) -> None:
    """Whatever is gone already of an expired session, a new turn sees nothing of it, and is seen itself."""
    clock = Clock()
    log = store.log(clock=clock, retention=DAY)
    for text in "abc":
        await say(log, store.session(), text)
    clock.now += 1.5 * DAY if order == "newest first" else 3 * DAY
    keys = {
        "turns first": [codec.turn_key(1, n) for n in (1, 2, 3)],
        "state first": ["state"],
        "newest first": [codec.turn_key(1, 3)],
    }
    for key in keys[order]:
        forget(store, key)
    assert (await say(log, store.session(), "new")).window.turns == 0
    assert said(await log.load(store.session(), token_limit=None)) == ["new"]
    assert (await say(log, store.session(), "next")).window.turns == 1


# What a killed holder left


@pytest.mark.parametrize("ending", ["complete", "failed"])
async def test_the_parts_of_a_killed_holder_go_when_its_number_is_taken(store: Store, ending: str) -> None:
    """Who took over removes them once its own turn is stored, whose parts stay."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    client = InterruptedClient(store.client, 3, killed)
    large = old.completed(exchange("old", noise(800_000)), tokens=10, at=utc_now(), instance="test")
    with pytest.raises(Killed):
        await store.log(client=client, clock=clock).commit(old, large)
    assert any(old.token in key for key in keys_of(store))
    clock.pass_lease()
    log = store.log(clock=clock)
    if ending == "complete":
        turn = await say(log, store.session(), "new", answer=noise(800_001))
    else:
        turn = await fail(log, store.session(), "new")
    parts = [key for key in keys_of(store) if key.startswith(codec.PART_PREFIX)]
    assert parts
    assert all(f"#{turn.token}#" in key for key in parts)
    assert (await log.load(store.session(), token_limit=None)).turns == (turn,)


async def test_the_parts_of_other_turns_stay_when_a_number_is_taken_over(store: Store) -> None:
    """What is removed belongs to the number that was taken over, and to no other."""
    clock = Clock()
    log = store.log(clock=clock)
    await say(log, store.session(), "a", answer=noise(100_000))
    await claimed(store, store.session(), asking("killed"), clock=clock)
    clock.pass_lease()
    await say(log, store.session(), "b", answer=noise(100_001))
    window = await log.load(store.session(), token_limit=1000)
    assert [len(turn.answer) for turn in window.turns] == [100_000, 100_001]


async def test_a_turn_is_stored_though_what_was_left_cannot_be_removed(store: Store) -> None:
    """Its commit has been done by then, and nobody sees the parts."""
    clock = Clock()
    old = await claimed(store, store.session(), asking("old"), clock=clock)
    clock.pass_lease()
    log = store.log(client=LosingClient(store.client, "query", skip=1), clock=clock)
    turn = await say(log, store.session(), "new")
    assert turn.number == old.number
    assert said(await log.load(store.session(), token_limit=1000)) == ["new"]
