"""The contract of a TurnLog: what `memory.turns` promises, on every engine that is fit to show it."""

import asyncio
import hashlib
import random
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from memory import codec, items
from memory.dynamodb import LEASE
from memory.turns import (
    Claim,
    ClaimRefused,
    DamagedTurn,
    LeaseLost,
    Request,
    RequestIdReused,
    Session,
    TableUnavailable,
    TurnInProgress,
    TurnStatus,
    take_turn,
    utc_now,
)
from tests.conftest import TABLE, Store, damage, exchange, keys_of, said, say


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> Any:
        return self.now

    def pass_lease(self) -> None:
        self.now += LEASE + timedelta(seconds=1)


class LosingClient:
    """A client whose calls of one operation are applied, and the response to one of them (or more) gets lost.

    `meanwhile` is what somebody else does before the loss is noticed; `calls` are the arguments of all of them.
    """

    def __init__(
        self,
        client: Any,
        operation: str,
        *,
        skip: int = 0,
        meanwhile: Callable[[], Coroutine[Any, Any, Any]] | None = None,
    ) -> None:
        self._client, self._operation, self._skip, self._meanwhile = client, operation, skip, meanwhile
        self.calls: list[dict[str, Any]] = []
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name != self._operation:
            return call

        def losing(**arguments: Any) -> Any:
            self.calls.append(arguments)
            result = call(**arguments)
            if len(self.calls) == self._skip + 1:
                self.lost += 1
                if self._meanwhile:
                    asyncio.run(self._meanwhile())
                raise ReadTimeoutError(endpoint_url="http://lost")
            return result

        return losing


def asking(text: str, key: str | None = None) -> Request:
    return Request(id=key or uuid.uuid4().hex, body_hash=hashlib.sha256(text.encode()).hexdigest()[:32])


async def claimed(store: Store, session: Session, request: Request, **options: Any) -> Claim:
    """A claim whose holder never came back."""
    log = store.log(**options)
    return await log.claim(await log.load(session, token_limit=1000), request)


def completed(claim: Claim, text: str) -> Any:
    return claim.completed(exchange(text, f"answer to {text}"), tokens=10, at=utc_now(), instance="test")


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
    """Turns are taken from the newest backwards until the next one does not fit; none is cut, none is skipped."""
    for text, tokens in [("a", 10), ("b", 10), ("c", 100), ("d", 10), ("e", 30)]:
        await say(store.log(), store.session(), text, tokens=tokens)
    windows = {limit: await store.log().load(store.session(), token_limit=limit) for limit in (0, 29, 40, 139, 140)}
    assert {limit: "".join(said(window)) for limit, window in windows.items()} == {
        0: "",
        29: "",
        40: "de",
        139: "de",
        140: "cde",
    }
    assert windows[140].tokens == 140


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


async def test_a_request_is_recognised_for_sixteen_turns_though_it_left_the_window(store: Store) -> None:
    """The last 16 requests are known by the state item alone, however small the window is."""
    first = await say(store.log(), store.session(), "first", key="k")
    for i in range(15):
        await say(store.log(), store.session(), str(i))
    assert await say(store.log(), store.session(), "first", key="k", limit=0) == first
    await say(store.log(), store.session(), "the seventeenth")
    assert (await say(store.log(), store.session(), "first", key="k", limit=0)).number == 18


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
    assert await store.log(client=LosingClient(store.client, "put_item")).commit(claim, failed) == failed


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
    assert keys_of(store.client, store.session()) == ["TURN#000002#0000000001", "state"]


async def test_a_table_that_is_not_there_is_unavailable(store: Store) -> None:
    """What the table cannot do is one error with its cause, not an empty conversation."""
    log = store.log()
    log._table._name = "no-such-table"
    with pytest.raises(TableUnavailable):
        await log.load(store.session(), token_limit=0)


async def test_a_deleted_session_is_empty_at_once(store: Store) -> None:
    """After a delete nothing of before is read, found by its request id, listed or left in the table."""
    await say(store.log(), store.session(), "secret", key="k")
    assert await store.log().delete(store.session())
    window = await store.log().load(store.session(), token_limit=None, request=asking("secret", "k"))
    assert (window.turns, window.answered, window.total_turns) == ((), None, 0)
    assert await store.listed() == []
    assert keys_of(store.client, store.session()) == ["state"]


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
    assert keys_of(real_store.client, real_store.session()) == ["TURN#000001#0000000001", "state"]


async def test_a_large_turn_is_deleted_with_its_parts(real_store: Store) -> None:
    """A delete leaves nothing of a turn that was stored in parts."""
    await say(real_store.log(), real_store.session(), "tell me all", answer=noise(1_000_000))
    assert await real_store.log().delete(real_store.session())
    assert keys_of(real_store.client, real_store.session()) == ["state"]


async def test_a_large_turn_outside_the_window_costs_a_load_nothing(real_store: Store) -> None:
    """Parts lie below the turns, and are fetched only for a turn that is shown."""
    await say(real_store.log(), real_store.session(), "large", answer=noise(3_000_000), tokens=5000)
    await say(real_store.log(), real_store.session(), "small")
    log = real_store.log()
    assert said(await log.load(real_store.session(), token_limit=1000)) == ["small"]
    assert log.usage.calls == 1
    assert log.usage.read_units <= 2


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


async def test_a_turn_among_short_ones_costs_one_call_more(real_store: Store) -> None:
    """Where far more turns fit than expected, a second page holds all the rest, however long the conversation is."""
    log = real_store.log()
    for i in range(150):
        await say(log, real_store.session(), str(i), tokens=10, limit=0)
    log = real_store.log()
    turn = await say(log, real_store.session(), "next", limit=1000)
    assert turn.window.turns == 100
    assert log.usage.calls == 4


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


def noise(size: int) -> str:
    """Text that does not compress, the same at each run."""
    return "".join(random.Random(size).choices([chr(c) for c in range(33, 127)], k=size))  # noqa: S311 - not a secret
