"""What `DynamoDBSessions` promises: sessions made, listed, renamed, read at length, forked and swept."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from memory import codec, items
from memory.sessions import DynamoDBSessions, Entry
from memory.turns import (
    HistoryReplaced,
    RequestIdReused,
    Session,
    SessionNotFound,
    State,
    TableUnavailable,
    TurnNotFound,
    TurnStatus,
    Window,
)
from tests.conftest import (
    REAL_ENGINES,
    Clock,
    InterruptedClient,
    Killed,
    LosingClient,
    Store,
    answer_again,
    answers,
    asking,
    claimed,
    completed,
    damage,
    fail,
    forget,
    items_of,
    keys_of,
    killed,
    meanwhile,
    noise,
    said,
    say,
)

COMPLETE, FAILED, SUPERSEDED = TurnStatus.COMPLETE, TurnStatus.FAILED, TurnStatus.SUPERSEDED
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


async def window_of(
    store: Store, session: Session | None = None, *, limit: int | None = 1000, **options: Any
) -> Window:
    return await store.log(**options).load(session or store.session(), token_limit=limit)


async def entries(store: Store, session: Session | None = None, *, clock: Any = None, **options: Any) -> list[Entry]:
    """A session's history."""
    sessions = store.sessions(**({"clock": clock} if clock else {}))
    session = session or store.session()
    return [entry async for entry in sessions.history(session, await sessions.find(session), **options)]


def outline(history: list[Entry]) -> list[tuple[int, TurnStatus | None]]:
    """Numbers and statuses of a history; None for a turn that cannot be read."""
    return [(entry.number, entry.turn.status if entry.turn else None) for entry in history]


async def is_there(store: Store, session: Session) -> bool:
    """Whether the session is seen; and then it is listed, and otherwise nothing of it is seen anywhere."""
    try:
        await store.sessions().find(session)
    except SessionNotFound:
        assert session.id not in await store.listed()
        assert (await window_of(store, session, limit=None)).turns == ()
        return False
    assert (await store.listed()).count(session.id) == 1
    return True


# Made


async def test_a_session_that_was_made_is_there_listed_and_empty(store: Store) -> None:
    """From the moment it is made a session is found and listed under its title, and holds no turn."""
    made, new = await store.sessions().create(store.session(), title="a plan")
    assert new
    assert await store.sessions().find(store.session()) == made
    assert [(session.id, session.title) for session in await store.sessions().listed(store.owner, limit=9)] == [
        ("talk", "a plan")
    ]
    assert await entries(store) == []
    assert (await window_of(store)).total_turns == 0


async def test_a_title_is_kept_on_one_line(store: Store) -> None:
    """Whatever a title holds of spaces and lines, the list shows one line of 80 characters at the most."""
    made, _ = await store.sessions().create(store.session(), title="  two\n\tlines ")
    assert made.title == "two lines"
    await store.sessions().rename(store.session(), "x" * 50 + "\r\n" + "y" * 50)
    assert (await store.sessions().find(store.session())).title == "x" * 50 + " " + "y" * 29


async def test_the_same_request_makes_one_session(store: Store) -> None:
    """A request to make a session that comes again finds the one that it made, which is not new."""
    made, _ = await store.sessions().create(store.session(), title="t", asked="k")
    assert await store.sessions().create(store.session(), title="t", asked="k") == (made, False)
    assert await store.listed() == ["talk"]


async def test_the_same_request_finds_its_session_after_turns_were_taken_in_it(store: Store) -> None:
    """What makes it the same session is who asked for it, not that it is still empty."""
    await store.sessions().create(store.session(), asked="k")
    await say(store.log(), store.session(), "a")
    state, new = await store.sessions().create(store.session(), asked="k")
    assert (state.number, new) == (1, False)
    assert said(await window_of(store)) == ["a"]


@pytest.mark.parametrize(("first", "second"), [("k", "other"), ("k", ""), ("", "k"), ("", "")])
async def test_a_session_that_another_request_made_is_not_made_again(store: Store, first: str, second: str) -> None:
    """An id that is in use is refused; and who gives no sign of himself is never taken for the same."""
    await store.sessions().create(store.session(), title="first", asked=first)
    with pytest.raises(RequestIdReused):
        await store.sessions().create(store.session(), title="second", asked=second)
    assert (await store.sessions().find(store.session())).title == "first"


async def test_a_session_that_began_with_a_turn_is_not_made_again(store: Store) -> None:
    """Nobody asked for it in so many words, so that no request to make it is the same."""
    await say(store.log(), store.session(), "a")
    with pytest.raises(RequestIdReused):
        await store.sessions().create(store.session(), asked="k")


async def test_a_deleted_session_is_not_made_again_by_the_request_that_made_it(store: Store) -> None:
    """A copy of the request that comes after the delete finds that the session is gone."""
    await store.sessions().create(store.session(), asked="k")
    await store.log().delete(store.session())
    with pytest.raises(SessionNotFound):
        await store.sessions().create(store.session(), asked="k")
    assert await store.listed() == []


async def test_the_first_turn_of_a_session_that_was_made_is_number_one(store: Store) -> None:
    """Making a session takes no number, and keeps nobody waiting."""
    await store.sessions().create(store.session())
    assert (await say(store.log(), store.session(), "a")).number == 1
    assert said(await window_of(store)) == ["a"]


@pytest.mark.parametrize(("given", "shown"), [("mine", "mine"), ("", "the first message")])
async def test_the_first_message_is_the_title_where_none_was_given(store: Store, given: str, shown: str) -> None:
    """A title that was given stays; without one the session is called by what is said first, and by nothing later."""
    await store.sessions().create(store.session(), title=given)
    for title in ("the first message", "the second"):
        log = store.log()
        claim = await log.claim(await log.load(store.session(), token_limit=0), asking(title), title=title)
        await log.commit(claim, completed(claim, title))
    assert (await store.sessions().find(store.session())).title == shown


async def test_a_session_whose_making_was_not_confirmed_is_made_once(store: Store) -> None:
    """The repeated put is refused by our own session, which is what it wants to find."""
    client = LosingClient(store.client, "put_item")
    made, new = await store.sessions(client=client).create(store.session(), title="t", asked="k")
    assert client.lost == 1
    assert new
    assert await store.sessions().find(store.session()) == made
    assert await store.listed() == ["talk"]


async def test_a_session_is_made_above_what_an_earlier_one_left_behind(store: Store) -> None:
    """Turns of a deleted session whose tombstone is gone do not appear in the next one."""
    late = await claimed(store, store.session(), asking("late"))
    await store.log().delete(store.session())
    await store.log().commit(late, completed(late, "late"))
    forget(store, codec.STATE_KEY)
    made, _ = await store.sessions().create(store.session())
    assert made.generation > late.generation
    assert (await window_of(store, limit=None)).turns == ()


async def test_a_session_is_made_above_parts_without_a_turn(store: Store) -> None:
    """A killed holder of a large turn may leave parts alone: those are of an earlier session, too."""
    late = await claimed(store, store.session(), asking("late"))
    await store.log().delete(store.session())
    await store.log().commit(late, completed(late, noise(100_000)))
    forget(store, codec.STATE_KEY)
    forget(store, codec.turn_key(1, 1))
    made, _ = await store.sessions().create(store.session())
    assert made.generation == 2


# Found, renamed, deleted


async def none_such(store: Store) -> None:
    """There never was one; somebody else has one of this name."""
    await say(store.log(), Session(owner=store.owner + "x", id="talk"), "not yours")


async def deleted(store: Store) -> None:
    await say(store.log(), store.session(), "a")
    await store.log().delete(store.session())


async def emptied(store: Store) -> None:
    """Rewritten to nothing, as the chat store does."""
    await say(store.log(), store.session(), "a")
    log = store.log()
    await log.rewrite(await log.load(store.session(), token_limit=None), ())


absent = pytest.mark.parametrize("make", [none_such, deleted, emptied])


@absent
async def test_a_session_that_is_not_there_is_not_found(store: Store, make: Any) -> None:
    """What never was, was deleted or was emptied has no state to show, cannot be renamed, deleted or forked."""
    await make(store)
    sessions, session = store.sessions(), store.session()
    with pytest.raises(SessionNotFound):
        await sessions.find(session)
    with pytest.raises(SessionNotFound):
        await sessions.rename(session, "new")
    with pytest.raises(SessionNotFound):
        await store.log().delete(session)
    with pytest.raises(SessionNotFound):
        await sessions.fork(session, 1, store.session("fork"))
    assert await store.listed() == []
    assert keys_of(store, store.session("fork")) == []


async def test_an_expired_session_is_not_found_though_its_item_is_there(store: Store) -> None:
    """From the second on in which it expires a session does not exist: not found, renamed, deleted, forked, listed."""
    clock = Clock()
    session, retention = store.session(), DAY
    sessions = store.sessions(clock=clock, retention=retention)
    state, _ = await sessions.create(session, title="t", asked="k")
    assert state.expires_at
    clock.now = state.expires_at - timedelta(milliseconds=1)
    await sessions.rename(session, "still there")
    assert (await sessions.find(session)).title == "still there"
    for clock.now in (state.expires_at, state.expires_at + HOUR):
        for refused in (
            sessions.find(session),
            sessions.rename(session, "gone"),
            sessions.unchanged(session, state),
            sessions.create(session, asked="k"),
            sessions.fork(session, 1, store.session("fork")),
            store.log(clock=clock).delete(session),
        ):
            with pytest.raises(SessionNotFound):
                await refused
        assert await sessions.listed(store.owner, limit=10) == []
    assert keys_of(store) == ["state"]


async def test_another_title_changes_the_list_and_nothing_else(store: Store) -> None:
    """A session keeps its place, its turns and its next number when it gets another title."""
    clock = Clock()
    for name in ("a", "b"):
        await say(store.log(clock=clock), store.session(name), "hello")
        clock.now += timedelta(minutes=1)
    before = await store.sessions().find(store.session("a"))
    await store.sessions(clock=clock).rename(store.session("a"), "new")
    listed = await store.sessions().listed(store.owner, limit=9)
    assert [(session.id, session.title) for session in listed] == [("b", "hello"), ("a", "new")]
    assert await store.sessions().find(store.session("a")) == replace(before, title="new")


async def test_a_new_title_does_not_revive_what_is_deleted_meanwhile(store: Store) -> None:
    """A delete that comes before the write of the title wins."""
    await say(store.log(), store.session(), "a")
    client = InterruptedClient(store.client, 1, meanwhile(lambda: store.log().delete(store.session())))
    with pytest.raises(SessionNotFound):
        await store.sessions(client=client).rename(store.session(), "new")
    assert not await is_there(store, store.session())


async def test_a_new_title_that_was_not_confirmed_is_there(store: Store) -> None:
    """To write a title twice is to write it."""
    await say(store.log(), store.session(), "a")
    client = LosingClient(store.client, "update_item")
    await store.sessions(client=client).rename(store.session(), "new")
    assert client.lost == 1
    assert (await store.sessions().find(store.session())).title == "new"


async def test_a_delete_that_is_repeated_finishes_the_first(store: Store) -> None:
    """What came after the sweep of a delete is removed by the next one; after that there is no such session."""
    late = await claimed(store, store.session(), asking("in flight"))
    await store.log().delete(store.session())
    await store.log().commit(late, completed(late, "in flight"))
    assert await store.log().delete(store.session())
    assert keys_of(store) == ["state"]
    with pytest.raises(SessionNotFound):
        await store.log().delete(store.session())


async def test_a_delete_of_much_says_that_it_is_not_finished(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete removes so much at once, and is called again until nothing is left."""
    monkeypatch.setattr(items, "SWEPT_AT_ONCE", 2)
    for text in "abc":
        await say(store.log(), store.session(), text)
    assert not await store.log().delete(store.session())
    assert not await is_there(store, store.session())
    assert await store.log().delete(store.session())
    assert keys_of(store) == ["state"]


# Listed


async def pages(sessions: DynamoDBSessions, owner: str, size: int, between: Any = None) -> AsyncIterator[list[str]]:
    """Ids page by page, with something that happens after each page."""
    after: tuple[datetime, str] | None = None
    while page := await sessions.listed(owner, limit=size, after=after):
        assert len(page) <= size
        yield [session.id for session in page]
        after = page[-1].active_at, page[-1].id
        if between:
            await between(page[-1].id)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_every_session_is_on_one_page(store: Store, size: int) -> None:
    """Pages of any size hold each session once, the last active first, however many were active in one minute."""
    clock = Clock()
    for name in "abcdefg":
        await store.sessions(clock=clock).create(store.session(name))
        if name in "be":
            clock.now += timedelta(minutes=1)
    found = [page async for page in pages(store.sessions(), store.owner, size)]
    assert all(len(page) == size for page in found[:-1])
    names = "".join(itertools.chain(*found))
    assert [set(names[:2]), set(names[2:5]), set(names[5:])] == [set("fg"), set("cde"), set("ab")]
    assert len(names) == 7


@pytest.mark.parametrize("change", ["delete", "say", "rename"])
@pytest.mark.parametrize("size", [1, 2])
async def test_a_page_goes_on_from_a_session_that_is_no_longer_there(store: Store, change: str, size: int) -> None:
    """Where the position was deleted or active again meanwhile, all the others come, and come once."""
    clock = Clock()
    for i, name in enumerate("abcdef"):
        await store.sessions(clock=clock).create(store.session(name))
        clock.now += timedelta(minutes=i % 2)

    async def between(name: str) -> None:
        if change == "delete":
            await store.log(clock=clock).delete(store.session(name))
        elif change == "say":
            await say(store.log(clock=clock), store.session(name), "again")
        else:
            await store.sessions().rename(store.session(name), "again")

    clock.now += HOUR
    found = [page async for page in pages(store.sessions(), store.owner, size, between)]
    assert sorted(itertools.chain(*found)) == list("abcdef")


async def test_an_expired_session_is_not_listed_and_ends_no_page_early(store: Store) -> None:
    """A page is full while there are sessions to fill it, whatever stands between them in the index."""
    clock = Clock()
    for name in "abcdefgh":
        lasting = {} if name in "adh" else {"retention": HOUR}
        await store.sessions(clock=clock, **lasting).create(store.session(name))
        clock.now += timedelta(minutes=1)
    clock.now += 2 * DAY
    found = [page async for page in pages(store.sessions(clock=clock), store.owner, 2)]
    assert found == [["h", "d"], ["a"]]


async def test_only_the_owners_sessions_are_listed(store: Store) -> None:
    """Nobody sees another's sessions, whatever position is given."""
    await say(store.log(), Session(owner=store.owner + "x", id="theirs"), "hello")
    await say(store.log(), store.session("mine"), "hello")
    assert await store.listed() == ["mine"]
    later = Clock()() + DAY
    listed = await store.sessions().listed(store.owner, limit=9, after=(later, "theirs"))
    assert [session.id for session in listed] == ["mine"]


# Read at length


async def an_eventful_session(store: Store, clock: Clock) -> None:
    """Everything that a history can hold: see `EVENTFUL`."""
    log, session = store.log(clock=clock), store.session()
    await fail(log, session, "1, which is deleted")
    await say(log, session, "2, of which one is")
    await say(log, session, "3", answer="the first answer")
    await fail(log, session, "4, another answer to 3, not given", again=3)
    await answer_again(log, session, 3, "5, the second answer")
    await answer_again(log, session, 5, "6, the third answer")
    await say(log, session, "7, which will be damaged")
    await fail(log, session, "8")
    await say(store.log(clock=clock, retention=HOUR), session, "9, which expires")
    await log.mark(await log.load(session, token_limit=None), deleted=(2, 1))
    damage(store, 7, "payload", {"B": b"not json"})

    class Dying(type(log)):  # type: ignore[misc]
        async def _flip(self, *arguments: Any) -> None:
            raise Killed

    with pytest.raises(Killed):  # 10 holds its number
        await store.log(kind=Dying, clock=clock).rewrite(await log.load(session, token_limit=None), ())
    await say(log, session, "11", answer="the only answer")
    await fail(log, session, "12, another answer to 11, not given", again=11)
    clock.now += 2 * HOUR


EVENTFUL = [
    (12, FAILED),
    (11, COMPLETE),
    (8, FAILED),
    (7, None),
    (6, COMPLETE),
    (5, SUPERSEDED),
    (4, FAILED),
    (3, SUPERSEDED),
    (2, COMPLETE),
]


@pytest.mark.parametrize("page_size", [1, 3, None])
async def test_a_history_is_the_same_in_both_directions(store: Store, page_size: int | None) -> None:
    """Newest first and oldest first show the same turns, with the same statuses and what is left of each."""
    clock = Clock()
    await an_eventful_session(store, clock)
    down = await entries(store, clock=clock, page_size=page_size)
    up = await entries(store, clock=clock, page_size=page_size, oldest_first=True)
    assert outline(down) == EVENTFUL
    assert [(entry.number, entry.turn) for entry in reversed(up)] == [(entry.number, entry.turn) for entry in down]
    assert down[-1].turn
    assert (down[-1].turn.deleted, len(down[-1].turn.messages)) == (1, 1)


async def test_a_history_goes_on_from_any_place(store: Store) -> None:
    """From each turn on, with what was known there to be superseded, the rest is that of the whole."""
    clock = Clock()
    await an_eventful_session(store, clock)
    down = await entries(store, clock=clock)
    assert await entries(store, clock=clock, start=99) == down
    for i, entry in enumerate(down):
        rest = down[i + 1 :]
        for start in range(rest[0].number if rest else 0, entry.number):
            assert await entries(store, clock=clock, start=start, superseded=entry.superseded) == rest
    up = await entries(store, clock=clock, oldest_first=True)
    for start in range(15):
        rest = [entry for entry in up if entry.number >= start]
        assert await entries(store, clock=clock, start=start, oldest_first=True) == rest


async def test_a_history_shows_what_a_window_shows(store: Store) -> None:
    """The turns that a model is shown are the complete and whole ones of the history."""
    clock = Clock()
    log = store.log(clock=clock)
    await an_eventful_session(store, clock)
    shown = [entry.turn for entry in await entries(store, clock=clock, oldest_first=True) if entry.turn]
    assert (await log.load(store.session(), token_limit=None)).turns == tuple(shown)


async def replaced_by_delete(store: Store, session: Session) -> None:
    await store.log().delete(session)
    await say(store.log(), session, "new")


async def replaced_by_rewrite(store: Store, session: Session) -> None:
    log = store.log()
    window = await log.load(session, token_limit=None)
    await log.rewrite(window, window.turns)


async def replaced_by_mark(store: Store, session: Session) -> None:
    log = store.log()
    await log.mark(await log.load(session, token_limit=None), deleted=(1, 1))


Moments = Callable[..., Iterator[int]]


def at_every_moment(test: Any) -> Any:
    """Of what is interrupted at each of its many calls in turn: on the real engines, and on one Python."""
    return pytest.mark.once(pytest.mark.parametrize("store", REAL_ENGINES, indirect=True)(test))


@pytest.fixture
def moments(request: pytest.FixtureRequest) -> Moments:
    """Which call is interrupted: one after the other; on DynamoDB Local every third, since it takes so long."""
    step = 3 if request.node.callspec.params["store"] == "dynamodb_local" else 1
    return lambda first=1: itertools.count(first, step)


replaced = pytest.mark.parametrize("replace_it", [replaced_by_delete, replaced_by_rewrite, replaced_by_mark])


@replaced
async def test_who_reads_a_history_learns_that_it_was_replaced(store: Store, replace_it: Any) -> None:
    """A delete, a rewrite and a deleted message change what was read before; another turn does not."""
    for text in "ab":
        await say(store.log(), store.session(), text)
    sessions = store.sessions()
    state = await sessions.find(store.session())
    await say(store.log(), store.session(), "c")
    await sessions.unchanged(store.session(), state)
    await replace_it(store, store.session())
    with pytest.raises(HistoryReplaced):
        await sessions.unchanged(store.session(), state)


async def test_who_reads_a_history_learns_that_it_was_deleted(store: Store) -> None:
    """After a delete there is no session whose history it could be."""
    await say(store.log(), store.session(), "a")
    sessions = store.sessions()
    state = await sessions.find(store.session())
    await store.log().delete(store.session())
    assert [entry async for entry in sessions.history(store.session(), state)] == []
    with pytest.raises(SessionNotFound):
        await sessions.unchanged(store.session(), state)


# Forked


async def a_source(store: Store) -> None:
    """A large turn, a failed one, one that was answered three times, and a plain one."""
    log, session = store.log(), store.session()
    await say(log, session, "a", answer=noise(100_000))
    await fail(log, session, "b")
    await say(log, session, "c", answer="the first answer")
    await answer_again(log, session, 3, "the second answer")
    await answer_again(log, session, 4, "the third answer")
    await say(log, session, "d", key="k")


def copied(history: list[Entry]) -> list[Any]:
    """What a fork takes over of its source's turns: all but their places and their requests."""
    turns = [entry.turn for entry in history]
    return [turn and replace(turn, generation=0, request=asking("", "-")) for turn in turns]


async def is_whole(store: Store, through: int, fork: Session) -> bool:
    """Whether the fork is not seen yet; where it is, it holds the source's turns."""
    if not await is_there(store, fork):
        return False
    there = await entries(store, fork)
    assert copied(there) == copied(await entries(store, start=through))
    assert (await store.sessions().find(fork)).number == through
    return True


def turn_keys(store: Store, session: Session) -> list[str]:
    return [key for key in keys_of(store, session) if key.startswith(codec.TURN_PREFIX)]


@pytest.mark.parametrize("through", [1, 2, 3, 4, 5, 6])
async def test_a_fork_holds_the_turns_up_to_a_number(store: Store, through: int) -> None:
    """The same turns under the same numbers, large ones too, and the next turn follows them."""
    await a_source(store)
    before = items_of(store)
    state, new = await store.sessions().fork(store.session(), through, store.session("fork"), title="a fork")
    assert (state.title, new) == ("a fork", True)
    assert await store.sessions().find(store.session("fork")) == state
    assert await is_whole(store, through, store.session("fork"))
    assert len(turn_keys(store, store.session("fork"))) == through
    assert items_of(store) == before
    assert (await say(store.log(), store.session("fork"), "next")).number == through + 1
    assert items_of(store) == before


@pytest.mark.parametrize(("through", "answer"), [(3, "first"), (4, "second"), (5, "third")])
async def test_a_fork_ends_with_an_answer_that_holds(store: Store, through: int, answer: str) -> None:
    """What superseded the last turn lies beyond the fork: there it is the answer that the model sees."""
    await a_source(store)
    await store.sessions().fork(store.session(), through, store.session("fork"))
    assert answers(await window_of(store, store.session("fork"), limit=100_000))[1:] == [f"the {answer} answer"]


async def test_a_fork_of_a_fork_ends_with_an_answer_that_holds(store: Store) -> None:
    """A turn that was superseded in the first fork is not so in the second, which ends with it."""
    await a_source(store)
    one, other = store.session("one"), store.session("other")
    await store.sessions().fork(store.session(), 5, one)
    await store.sessions().fork(one, 4, other)
    assert answers(await window_of(store, other))[1:] == ["the second answer"]
    assert outline(await entries(store, other))[:2] == [(4, COMPLETE), (3, SUPERSEDED)]


async def test_the_last_turn_of_a_fork_can_be_answered_again(store: Store) -> None:
    """In the fork it is the newest one."""
    await a_source(store)
    fork = store.session("fork")
    await store.sessions().fork(store.session(), 4, fork)
    await answer_again(store.log(), fork, 4, "the fork's answer")
    assert answers(await window_of(store, fork))[1:] == ["the fork's answer"]
    assert outline(await entries(store, fork))[:3] == [(5, COMPLETE), (4, SUPERSEDED), (3, SUPERSEDED)]


async def test_a_fork_copies_so_many_turns_and_the_newest_ones(store: Store) -> None:
    """Of more turns than it may copy, a fork has the newest ones up to its last, under their numbers, and no other."""
    await a_source(store)
    fork = store.session("fork")
    state, _ = await store.sessions().fork(store.session(), 5, fork, max_turns=3)
    assert copied(await entries(store, fork)) == copied(await entries(store, start=5))[:3]
    assert [entry.number for entry in await entries(store, fork)] == [5, 4, 3]
    assert state == await store.sessions().find(fork)
    assert state.deleted_through == (3, 0)
    assert len(turn_keys(store, fork)) == 3


async def test_a_fork_that_copies_all_says_nothing_of_a_limit(store: Store) -> None:
    """With as many turns as it may copy, nothing is left out."""
    for number in range(3):
        await say(store.log(), store.session(), str(number))
    state, _ = await store.sessions().fork(store.session(), 3, store.session("fork"), max_turns=3)
    assert state.deleted_through == (0, 0)
    assert said(await window_of(store, store.session("fork"))) == ["0", "1", "2"]


async def test_a_fork_that_was_cut_goes_on(store: Store) -> None:
    """The model is shown the copies, and the next turn has the next number."""
    for number in range(5):
        await say(store.log(), store.session(), str(number))
    fork = store.session("fork")
    await store.sessions().fork(store.session(), 4, fork, max_turns=2)
    assert said(await window_of(store, fork)) == ["2", "3"]
    assert said(await window_of(store, fork, limit=None)) == ["2", "3"]
    assert (await say(store.log(), fork, "next")).number == 5


async def test_what_a_fork_leaves_out_is_not_read(real_store: Store) -> None:
    """A fork of a long session costs what its copies cost."""
    for number in range(8):
        await say(real_store.log(), real_store.session(), noise(2000 + number), answer="")
    sessions = real_store.sessions()
    await sessions.fork(real_store.session(), 8, real_store.session("fork"), max_turns=2)
    assert sessions.usage.read_units <= 8
    assert sessions.usage.write_units <= 14


async def test_the_requests_of_the_source_are_free_in_the_fork(store: Store) -> None:
    """A key that a turn was asked under asks anew in another session, and that is all it is."""
    await a_source(store)
    await store.sessions().fork(store.session(), 6, store.session("fork"))
    turn = await say(store.log(), store.session("fork"), "something else", key="k")
    assert (turn.number, turn.answer) == (7, "answer to something else")
    assert await say(store.log(), store.session("fork"), "something else", key="k") == turn


async def test_a_fork_has_the_title_of_its_source_where_none_is_given(store: Store) -> None:
    """It is called as what it comes from, also when it gets a turn."""
    await store.sessions().create(store.session(), title="the source")
    await say(store.log(), store.session(), "a")
    await store.sessions().fork(store.session(), 1, store.session("fork"))
    await say(store.log(), store.session("fork"), "b")
    assert (await store.sessions().find(store.session("fork"))).title == "the source"


@pytest.mark.parametrize("through", [2, 99])
async def test_a_session_cannot_be_forked_at_a_turn_that_it_lacks(store: Store, through: int) -> None:
    """A number that no turn has, or one whose turn nobody may see, is no place to fork at; and nothing is left."""
    await say(store.log(), store.session(), "a")
    await claimed(store, store.session(), asking("killed"))
    with pytest.raises(TurnNotFound):
        await store.sessions().fork(store.session(), through, store.session("fork"), asked="k")
    assert not await is_there(store, store.session("fork"))
    assert turn_keys(store, store.session("fork")) == []
    _, new = await store.sessions().fork(store.session(), 1, store.session("fork"), asked="other")
    assert new


async def test_a_fork_leaves_out_what_is_deleted_expired_or_cannot_be_read(store: Store) -> None:
    """It has what the source's owner sees, and a turn that is not whole in the source is not shown to its model."""
    clock = Clock()
    await an_eventful_session(store, clock)
    fork = store.session("fork")
    await store.sessions(clock=clock).fork(store.session(), 12, fork)
    assert outline(await entries(store, fork, clock=clock)) == [entry for entry in EVENTFUL if entry[1]]
    assert answers(await window_of(store, fork, clock=clock)) == ["6, the third answer", "the only answer"]
    everything = [await window_of(store, which, limit=None, clock=clock) for which in (store.session(), fork)]
    assert [turn.messages for turn in everything[1].turns] == [turn.messages for turn in everything[0].turns]
    assert (await say(store.log(clock=clock), fork, "next")).number == 13


async def test_messages_of_a_fork_are_deleted_by_the_places_they_have(store: Store) -> None:
    """A turn of which the first message was deleted in the source loses its next one in the fork."""
    for text in "ab":
        await say(store.log(), store.session(), text)
    log, fork = store.log(), store.session("fork")
    await log.mark(await log.load(store.session(), token_limit=None), deleted=(1, 1))
    await store.sessions().fork(store.session(), 2, fork)
    there = await log.load(fork, token_limit=None)
    assert [(turn.deleted, turn.answer, len(turn.messages)) for turn in there.turns] == [
        (1, "answer to a", 1),
        (0, "answer to b", 2),
    ]
    await log.mark(there, deleted=(1, 2))
    assert said(await log.load(fork, token_limit=None)) == ["b"]


@pytest.mark.parametrize(("before", "after"), [((1, 2), (0, 0)), ((0, 0), (1, 2)), ((0, 0), (2, 0))])
async def test_messages_of_a_fork_are_archived_by_the_places_they_have(store: Store, before: Any, after: Any) -> None:
    """Archived before or after the fork, what is left of a turn is counted from where it begins."""
    log, fork = store.log(), store.session("fork")
    await say(log, store.session(), "a")
    await log.mark(await log.load(store.session(), token_limit=None), deleted=(1, 1), archived=before)
    await store.sessions().fork(store.session(), 1, fork)
    await log.mark(await log.load(fork, token_limit=None), archived=after)
    there = await log.load(fork, token_limit=None)
    assert [(turn.deleted, turn.archived, turn.answer) for turn in there.turns] == [(1, 1, "answer to a")]


async def test_a_fork_outlives_what_it_copied(store: Store) -> None:
    """A fork of turns that are kept for longer than new ones are is there for as long as they are."""
    clock = Clock()
    for name, promised in (("month", 30 * DAY), ("forever", None)):
        session = store.session(name)
        await say(store.log(clock=clock, retention=promised), session, "a")
        await store.sessions(clock=clock, retention=DAY).fork(session, 1, store.session(f"fork of {name}"))
    clock.now += 29 * DAY
    for name in ("month", "forever"):
        assert outline(await entries(store, store.session(f"fork of {name}"), clock=clock)) == [(1, COMPLETE)]


async def test_the_same_request_forks_once(store: Store) -> None:
    """A request to fork that comes again finds the one that it made; another request under the id is refused."""
    await a_source(store)
    fork = store.session("fork")
    made, _ = await store.sessions().fork(store.session(), 3, fork, asked="k")
    await say(store.log(), fork, "on")
    state, new = await store.sessions().fork(store.session(), 3, fork, asked="k")
    assert (state.created_at, state.number, new) == (made.created_at, 4, False)
    for asked in ("other", ""):
        with pytest.raises(RequestIdReused):
            await store.sessions().fork(store.session(), 3, fork, asked=asked)
    await store.log().delete(fork)
    with pytest.raises(SessionNotFound):
        await store.sessions().fork(store.session(), 3, fork, asked="k")


@at_every_moment
async def test_a_fork_that_is_killed_shows_nothing_until_it_is_whole(store: Store, moments: Moments) -> None:
    """At whatever call it ends, the fork is not there or is whole; the same request then makes it, once."""
    await a_source(store)
    for k in moments():
        fork = store.session(f"fork-{k}")
        client = InterruptedClient(store.client, k, killed)
        try:
            await store.sessions(client=client).fork(store.session(), 5, fork, asked="k")
        except Killed:
            shown = await is_whole(store, 5, fork)
        else:
            assert k > 12
            break
        _, new = await store.sessions().fork(store.session(), 5, fork, asked="k")
        assert new is not shown
        assert await is_whole(store, 5, fork)
        assert (await say(store.log(), fork, "next")).number == 6


async def test_a_fork_that_was_killed_over_and_over_leaves_nothing_of_its_attempts(store: Store) -> None:
    """The attempt that succeeds removes what those before it wrote."""
    await a_source(store)
    fork = store.session("fork")
    for k in range(1, 15):
        client = InterruptedClient(store.client, k, killed)
        with pytest.raises(Killed):
            await store.sessions(client=client).fork(store.session(), 5, fork, asked="k")
    assert len(turn_keys(store, fork)) > 5
    await store.sessions().fork(store.session(), 5, fork, asked="k")
    assert await is_whole(store, 5, fork)
    assert len(turn_keys(store, fork)) == 5


@at_every_moment
@pytest.mark.parametrize("end", ["deleted", "emptied"])
async def test_a_fork_that_was_made_and_came_to_an_end_meanwhile_is_not_revived(
    store: Store, moments: Moments, end: str
) -> None:
    """Whenever a copy of the request makes it and somebody ends it, a slower copy shows nothing any more."""
    await a_source(store)
    until_it_holds_the_place = 5
    for k in moments(until_it_holds_the_place + 1):
        fork = store.session(f"fork-{k}")

        async def made_and_ended() -> None:
            log = store.log()
            await store.sessions().fork(store.session(), 5, fork, asked="k")  # noqa: B023 - runs at once
            if end == "deleted":
                await log.delete(fork)  # noqa: B023
            else:
                await log.rewrite(await log.load(fork, token_limit=None), ())  # noqa: B023

        client = InterruptedClient(store.client, k, meanwhile(made_and_ended))
        with contextlib.suppress(SessionNotFound):
            await store.sessions(client=client).fork(store.session(), 5, fork, asked="k")
        if not client.reached:
            break
        assert not await is_there(store, fork)


@at_every_moment
@pytest.mark.parametrize("operation", ["put_item", "update_item", "batch_write_item"])
async def test_a_fork_whose_writes_are_not_confirmed_is_made_all_the_same(store: Store, operation: str) -> None:
    """The response to any of its writes may get lost."""
    await a_source(store)
    for skip in itertools.count():
        fork = store.session(f"fork-{skip}")
        client = LosingClient(store.client, operation, skip=skip)
        _, new = await store.sessions(client=client).fork(store.session(), 5, fork, asked="k")
        assert new
        assert await is_whole(store, 5, fork)
        if not client.lost:
            break


async def test_a_fork_that_may_have_been_shown_loses_nothing(store: Store) -> None:
    """Where the table never says whether the fork was shown, what it shows then must be there."""

    class Silent(LosingClient):
        def __getattr__(self, name: str) -> Any:
            call = super().__getattr__(name)

            def silent(**arguments: Any) -> Any:
                if self.lost and name == "update_item":
                    raise ReadTimeoutError(endpoint_url="http://silent")
                return call(**arguments)

            return silent

    await a_source(store)
    reserve = 1
    client = Silent(store.client, "update_item", skip=reserve)
    with pytest.raises(TableUnavailable):
        await store.sessions(client=client).fork(store.session(), 5, store.session("fork"), asked="k")
    assert client.lost == 1
    assert await is_whole(store, 5, store.session("fork"))
    _, new = await store.sessions().fork(store.session(), 5, store.session("fork"), asked="k")
    assert not new


@at_every_moment
async def test_two_copies_of_one_request_make_one_fork(store: Store, moments: Moments) -> None:
    """Whenever the other one comes between, both find the same whole fork, and nothing else is left."""
    await a_source(store)
    for k in moments():
        fork = store.session(f"fork-{k}")
        made: list[tuple[State, bool]] = []

        async def other() -> None:
            made.append(await store.sessions().fork(store.session(), 5, fork, asked="k"))  # noqa: B023 - runs at once

        client = InterruptedClient(store.client, k, meanwhile(other))
        made.append(await store.sessions(client=client).fork(store.session(), 5, fork, asked="k"))
        if not client.reached:
            break
        assert sorted(new for _, new in made) == [False, True]
        assert await is_whole(store, 5, fork)
        assert len(turn_keys(store, fork)) == 5


async def test_racing_copies_of_one_request_make_one_fork(real_store: Store) -> None:
    """However their calls are interleaved, one is the first, and all find the same whole fork."""
    await a_source(real_store)
    fork = real_store.session("fork")
    made = await asyncio.gather(
        *(real_store.sessions().fork(real_store.session(), 5, fork, asked="k") for _ in range(5))
    )
    assert sorted(new for _, new in made) == [False] * 4 + [True]
    assert await is_whole(real_store, 5, fork)


@at_every_moment
async def test_two_requests_for_one_fork_never_mix(store: Store, moments: Moments) -> None:
    """Whenever the other one comes between, one of them has its fork, and the other is refused, also when repeated."""
    await a_source(store)
    for k in moments():
        fork = store.session(f"fork-{k}")
        won: list[int] = []

        async def ask(through: int, client: Any = None) -> None:
            sessions = store.sessions(**({"client": client} if client else {}))
            try:
                await sessions.fork(store.session(), through, fork, asked=f"up to {through}")  # noqa: B023
                won.append(through)  # noqa: B023
            except RequestIdReused:
                pass

        client = InterruptedClient(store.client, k, meanwhile(lambda: ask(3)))
        await ask(5, client)
        if not client.reached:
            break
        assert len(won) == 1
        assert await is_whole(store, won[0], fork)
        for through in (3, 5):
            await ask(through)
        assert set(won) == {won[0]}


@at_every_moment
@replaced
async def test_a_fork_of_what_is_replaced_meanwhile_is_whole_or_nothing(
    store: Store, moments: Moments, replace_it: Any
) -> None:
    """Whenever its source is rewritten or begins anew, the fork has all of the turns, or is refused and not there."""
    outcomes = set()
    look = 1
    for k in moments(look + 1):
        source, fork = store.session(f"source-{k}"), store.session(f"fork-{k}")
        for text in "ab":
            await say(store.log(), source, text)
        client = InterruptedClient(store.client, k, meanwhile(lambda: replace_it(store, source)))  # noqa: B023
        try:
            await store.sessions(client=client).fork(source, 2, fork, asked="k")
        except HistoryReplaced:
            outcomes.add("refused")
            assert not await is_there(store, fork)
            assert turn_keys(store, fork) == []
        else:
            outcomes.add("forked")
            assert said(await window_of(store, fork)) == ["a", "b"]
        if not client.reached:
            break
    assert outcomes == {"forked", "refused"}


@at_every_moment
async def test_a_fork_of_what_is_deleted_meanwhile_is_whole_or_nothing(store: Store, moments: Moments) -> None:
    """Whenever its source is deleted, the fork has all of the turns, or there is no such session and no fork."""
    outcomes = set()
    for k in moments():
        source, fork = store.session(f"source-{k}"), store.session(f"fork-{k}")
        for text in "ab":
            await say(store.log(), source, text)
        client = InterruptedClient(store.client, k, meanwhile(lambda: store.log().delete(source)))  # noqa: B023
        try:
            await store.sessions(client=client).fork(source, 2, fork, asked="k")
        except SessionNotFound:
            outcomes.add("refused")
            assert not await is_there(store, fork)
            assert turn_keys(store, fork) == []
        else:
            outcomes.add("forked")
            assert said(await window_of(store, fork)) == ["a", "b"]
        if not client.reached:
            break
    assert outcomes == {"forked", "refused"}


@at_every_moment
async def test_a_fork_and_a_turn_in_its_place_never_mix(store: Store, moments: Moments) -> None:
    """Whoever takes a turn before the fork is shown has a session of his own; after that, one that holds the fork."""
    await a_source(store)
    outcomes = set()
    for k in moments():
        fork = store.session(f"fork-{k}")
        client = InterruptedClient(store.client, k, meanwhile(lambda: say(store.log(), fork, "first")))  # noqa: B023
        try:
            await store.sessions(client=client).fork(store.session(), 5, fork, asked="k")
            outcome = "forked"
        except RequestIdReused:
            outcome = "refused"
        if not client.reached:
            break
        outcomes.add(outcome)
        there = said(await window_of(store, fork, limit=100_000))
        assert there == (["first"] if outcome == "refused" else ["a", "c", "first"])
        assert (await say(store.log(), fork, "next")).number == (2 if outcome == "refused" else 7)
    assert outcomes == {"forked", "refused"}


@at_every_moment
async def test_a_fork_that_lay_half_made_for_days_is_made_by_the_same_request(store: Store, moments: Moments) -> None:
    """What a killed attempt left is nobody's session, and DynamoDB may remove it at any moment once it has expired."""
    await a_source(store)
    refused = []
    for k in moments():
        clock, fork = Clock(), store.session(f"fork-{k}")
        client = InterruptedClient(store.client, 9, killed)
        with pytest.raises(Killed):
            await store.sessions(client=client, clock=clock).fork(store.session(), 5, fork, asked="k")
        clock.now += 2 * DAY

        def remove() -> None:
            if "created_at" not in items_of(store, fork)["state"] and has_expired(store, fork, clock):  # noqa: B023
                forget(store, codec.STATE_KEY, fork)  # noqa: B023

        client = InterruptedClient(store.client, k, remove)
        try:
            await store.sessions(client=client, clock=clock).fork(store.session(), 5, fork, asked="k")
        except SessionNotFound:
            refused.append(k)
        await store.sessions(clock=clock).fork(store.session(), 5, fork, asked="k")
        assert await is_whole(store, 5, fork)
        assert len(turn_keys(store, fork)) == 5
        if not client.reached:
            break
    assert len(refused) <= 1  # between finding what is left and taking it up again


def has_expired(store: Store, session: Session, clock: Clock) -> bool:
    """Whether DynamoDB may remove the session's state by now."""
    return int(items_of(store, session)["state"]["expires_at"]["N"]) <= clock.now.timestamp()


# Swept


async def swept(store: Store, session: Session | None = None, **options: Any) -> float:
    """Sweep a session's partition, and say what that took of write units."""
    sessions = store.sessions(**options)
    await sessions.sweep(codec.partition(session or store.session()))
    return sessions.usage.write_units


async def with_leftovers(store: Store) -> None:
    """A deleted session in which a large turn was in flight."""
    await say(store.log(), store.session(), "old")
    late = await claimed(store, store.session(), asking("late"))
    await store.log().delete(store.session())
    await store.log().commit(late, completed(late, noise(100_000)))


async def test_a_sweep_removes_what_a_deleted_session_held(store: Store) -> None:
    """Turns and parts that came after the delete go, and the tombstone stays."""
    await with_leftovers(store)
    assert len(keys_of(store)) > 1
    await swept(store)
    assert keys_of(store) == ["state"]


async def test_a_sweep_removes_all_however_much_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on until nothing is left."""
    monkeypatch.setattr(items, "SWEPT_AT_ONCE", 2)
    for text in "abcdefg":
        await say(store.log(), store.session(), text)
    await store.log().delete(store.session())
    await swept(store)
    assert keys_of(store) == ["state"]


async def test_a_sweep_removes_nothing_of_a_session_that_began_anew(store: Store) -> None:
    """What is read now stays, with all that lies above it."""
    await with_leftovers(store)
    await say(store.log(), store.session(), "new", answer=noise(100_000))
    there = (await window_of(store)).turns
    await swept(store)
    assert (await window_of(store)).turns == there
    assert len(turn_keys(store, store.session())) == 1


async def test_a_sweep_of_what_has_nothing_left_writes_nothing(store: Store) -> None:
    """It is called for many partitions, of which most need nothing."""
    assert await swept(store, store.session("never was")) == 0
    assert keys_of(store, store.session("never was")) == []
    await say(store.log(), store.session(), "a")
    assert await swept(store) == 0
    await store.log().delete(store.session())
    assert await swept(store) == 0


async def test_a_sweep_removes_what_is_left_where_the_tombstone_is_gone(store: Store) -> None:
    """All of it goes; what stays is a tombstone that expires, and the next session begins above it."""
    await with_leftovers(store)
    forget(store, codec.STATE_KEY)
    await swept(store)
    assert keys_of(store) == ["state"]
    assert "expires_at" in items_of(store)["state"]
    assert not await is_there(store, store.session())
    assert (await say(store.log(), store.session(), "new")).generation > 1


@at_every_moment
@pytest.mark.parametrize("tombstone", ["there", "gone"])
async def test_a_sweep_and_a_session_that_begins_anew_do_not_meet(
    store: Store, moments: Moments, tombstone: str
) -> None:
    """Whenever the first turn of the next session comes between, it stays, and what was left before it goes."""
    for k in moments():
        if await is_there(store, store.session()):
            await store.log().delete(store.session())
        await with_leftovers(store)
        if tombstone == "gone":
            forget(store, codec.STATE_KEY)
        client = InterruptedClient(store.client, k, meanwhile(lambda: say(store.log(), store.session(), "new")))
        await swept(store, client=client)
        if not client.reached:
            break
        assert said(await window_of(store, limit=None)) == ["new"]
        await swept(store)
        assert said(await window_of(store, limit=None)) == ["new"]
        assert len(turn_keys(store, store.session())) == 1


async def test_a_claim_that_a_sweep_came_before_is_made_again(store: Store) -> None:
    """Who loaded where there was no tombstone, and claims where there is one, must look again."""
    await with_leftovers(store)
    forget(store, codec.STATE_KEY)
    claim = 2
    client = InterruptedClient(store.client, claim, meanwhile(lambda: swept(store)))
    await say(store.log(client=client), store.session(), "new")
    assert client.reached
    await swept(store)
    assert said(await window_of(store, limit=None)) == ["new"]


@at_every_moment
async def test_a_sweep_spares_what_is_being_made(store: Store, moments: Moments) -> None:
    """A fork and a rewrite whose turns nobody reads yet are whole, whenever their partition is swept."""
    await a_source(store)
    for k in moments():
        fork = store.session(f"fork-{k}")
        client = InterruptedClient(store.client, k, meanwhile(lambda: swept(store, fork)))  # noqa: B023
        await store.sessions(client=client).fork(store.session(), 5, fork)
        assert await is_whole(store, 5, fork)
        if not client.reached:
            break
    before = said(await window_of(store, limit=None))
    for k in moments():
        client = InterruptedClient(store.client, k, meanwhile(lambda: swept(store)))
        log = store.log(client=client)
        window = await log.load(store.session(), token_limit=None)
        await log.rewrite(window, window.turns)
        assert said(await window_of(store, limit=None)) == before
        if not client.reached:
            break


async def test_a_session_in_which_nothing_is_said_goes(store: Store) -> None:
    """Made on purpose and never used, it is gone after the retention of empty sessions."""
    clock = Clock()
    sessions = store.sessions(empty_retention=DAY, clock=clock)
    state, _ = await sessions.create(store.session())
    assert state.expires_at is not None
    assert timedelta(0) <= state.expires_at - (clock.now + DAY) < timedelta(seconds=1)
    clock.now += DAY + timedelta(seconds=1)
    with pytest.raises(SessionNotFound):
        await sessions.find(store.session())
    assert await sessions.listed(store.owner, limit=10) == []


async def test_the_first_turn_makes_a_session_last(store: Store) -> None:
    """From then on it is kept as long as its turns, whoever writes it."""
    clock = Clock()
    await store.sessions(empty_retention=DAY, clock=clock).create(store.session(), title="kept")
    await say(store.log(clock=clock), store.session(), "hello")
    clock.now += 30 * DAY
    state = await store.sessions(clock=clock).find(store.session())
    assert (state.expires_at, state.title) == (None, "kept")


async def test_the_first_turn_gives_a_session_the_retention_of_its_turns(store: Store) -> None:
    """Neither does the shorter time of an empty session outlive it, nor a longer one."""
    clock = Clock()
    for empty in (DAY, 90 * DAY):
        session = store.session(f"{empty.days}")
        made, _ = await store.sessions(empty_retention=empty, retention=30 * DAY, clock=clock).create(session)
        assert made.expires_at is not None
        assert made.expires_at <= clock.now + min(empty, 31 * DAY) + timedelta(seconds=1)
        await say(store.log(clock=clock, retention=30 * DAY), session, "hello")
        state = await store.sessions(clock=clock).find(session)
        assert state.expires_at == clock.now.replace(second=0, microsecond=0) + 31 * DAY
