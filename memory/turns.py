"""Sessions, turns and windows, and the log that keeps them: what it guarantees is documented here, once."""

import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

Message = Mapping[str, Any]
"""One LlamaIndex ``ChatMessage``, as its ``model_dump(mode="json")`` gives it.

The last one of an answered turn may have two members beside, which a ChatMessage ignores, so that the model is never
shown them: ``answer``, what the caller was answered if it is not the message's text (a ReActAgent writes all of its
thoughts there), and ``structured``, an object of JSON that the agent made of the conversation.
"""

Position = tuple[int, int]
"""A place between two messages: all turns below this number, and so many messages of the turn that bears it."""

START: Position = (0, 0)

HOLDING_SECONDS = 4.0
"""How often the lease of a claim is renewed that is held for long; a lease takes 10 s."""


class ConversationError(Exception):
    """Root of what this package raises on purpose."""


class TurnInProgress(ConversationError):
    """Another request of this session is being answered, and was not done in the time there was to wait."""

    def __init__(self, retry_after: int, text: str = "") -> None:
        super().__init__(text or f"the session is answering another request; its lease ends within {retry_after} s")
        self.retry_after = retry_after
        """Seconds until the other request is done or its lease has run out."""


class TooManyWaiting(TurnInProgress):
    """As many requests of this session as may wait are waiting already."""

    def __init__(self, *, limit: int, retry_after: int) -> None:
        super().__init__(retry_after)
        self.limit = limit


class TurnsUsedUp(ConversationError):
    """The owner has taken all turns that an hour may have."""

    def __init__(self, *, limit: int, retry_after: int) -> None:
        super().__init__(f"all {limit} turns of this hour are taken; the next hour begins in {retry_after} s")
        self.limit = limit
        self.retry_after = retry_after
        """Seconds until the next hour begins."""


class TooManySessions(ConversationError):
    """The owner has as many sessions as one may have."""

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"the owner has {limit} sessions already")
        self.limit = limit


class ClaimRefused(ConversationError):
    """The session moved on after it was loaded, or a claim ended in silence: load again."""


class LeaseLost(ConversationError):
    """Another request took the session over; nothing of this turn was stored, and nothing of it will be."""


class RequestIdReused(ConversationError):
    """The request id belongs to an earlier turn that was asked something else."""


class SessionNotFound(ConversationError):
    """The owner has no such session: there never was one, or it was deleted, or it has expired."""


class TurnNotFound(ConversationError):
    """The session has no such turn."""


class NotTheNewestTurn(ConversationError):
    """Only the newest turn can be answered again; others came after this one."""


class HistoryReplaced(ConversationError):
    """The history was deleted or rewritten since reading it began; a place in it means nothing any more."""


class DamagedTurn(ConversationError):
    """A stored turn cannot be read: an unknown codec version, a broken payload, a missing part."""


class TableUnavailable(ConversationError):
    """The table did not do what it was asked (throttled, unreachable, misconfigured). The cause is chained."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """One conversation of one owner. The owner is part of every key: another owner's session does not exist."""

    owner: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What makes two requests the same one: the id, and the hash of everything that was asked under it.

    A session remembers the ids of its last 64 turns or so; TurnLog says which.
    """

    id: str
    body_hash: str
    regenerates: int | None = None
    """Number of the turn that is to be answered again; None where something new is said."""


@dataclass(frozen=True, kw_only=True)
class WindowSize:
    """How much of a conversation the model was shown: turns, their tokens, and the limit they had to fit."""

    turns: int
    tokens: int
    limit: int
    shortened: int = 0
    """How many of the turns were too large and were shown with parts left out."""


class TurnStatus(StrEnum):
    """How a turn ended."""

    COMPLETE = "complete"
    FAILED = "failed"
    """The agent gave no answer: kept for people to see, never shown to the model."""
    SUPERSEDED = "superseded"
    """Answered again by a later turn: kept for people to see, never shown to the model."""
    VOID = "void"
    """Holds a number while a history is rewritten, so that nobody who was overtaken can take it."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A user's message and all that came of it: tool calls, tool results, the answer. Stored whole or not at all."""

    generation: int
    number: int
    token: str
    """Of the attempt that stored it."""
    status: TurnStatus
    request: Request
    messages: tuple[Message, ...]
    tokens: int
    """What its messages take of a window."""
    window: WindowSize
    """What the model was shown of the turns before it."""
    started_at: datetime
    finished_at: datetime
    instance: str
    """Name of the process that answered."""
    failure: str | None = None
    """Code of what went wrong in a failed turn."""
    supersedes: int | None = None
    """Number of the earlier turn that this one answers again, and takes the place of once it is complete."""
    expires_at: datetime | None = None
    """When it is gone, in whole seconds; None where it is kept until it is deleted."""
    archived: int = 0
    """How many of its messages, from the first, were archived by LlamaIndex's Memory."""
    deleted: int = 0
    """How many messages before the first one here were deleted."""

    @property
    def answer(self) -> str:
        """What the caller was answered: the text of the last message that the assistant wrote, if nothing else."""
        answer: str = self._last.get("answer", text_of(self._last))
        return answer

    @property
    def structured(self) -> dict[str, Any] | None:
        """What the agent made of the conversation beside its answer; None if nothing."""
        return self._last.get("structured")

    @property
    def _last(self) -> Message:
        return next((one for one in reversed(self.messages) if one["role"] == "assistant"), {"blocks": ()})

    @property
    def shown_to_model(self) -> bool:
        """Whether a window may hold this turn: it was answered, and is whole."""
        return self.status is TurnStatus.COMPLETE and not self.archived and not self.deleted


@dataclass(frozen=True, kw_only=True)
class State:
    """The one small item beside a session's log. Claiming a turn is a compare-and-swap of its ``holder``."""

    generation: int
    number: int
    """The number claimed last; 0 where no turn was claimed in this generation."""
    holder: str
    """Random token of the attempt that claimed last."""
    lease_until: datetime
    recent: tuple[bytes, ...] = ()
    """Hashes of the request ids of the last claims, oldest first, zeros for those that failed; the last one belongs to
    ``number``."""
    archived_through: Position = START
    deleted_through: Position = START
    marker: str = ""
    """Random token of whoever moved one of the two last."""
    waiters: tuple[int, ...] = ()
    """The requests that wait for the session, each with the time until which it does; for some that may be over."""
    title: str = ""
    created_at: datetime | None = None
    """None where nothing is to be seen of the session: it was deleted, has expired, or is a fork in the making."""
    active_at: datetime | None = None
    """When a turn was claimed last, in whole minutes."""
    expires_at: datetime | None = None
    asked: str = ""
    """Hash of the request that made the session, where one did so on purpose."""
    deleted: bool = False

    def exists(self, now: datetime) -> bool:
        """Whether the session is there for its owner."""
        return self.created_at is not None and not (self.expires_at and self.expires_at <= now)


@dataclass(frozen=True, kw_only=True)
class Window:
    """A session as one load found it: its newest turns that fit the token limit, and whose turn it is."""

    session: Session
    state: State | None
    """None where the session has no state: it is new, or its tombstone has expired."""
    generation: int
    next_number: int
    turns: tuple[Turn, ...]
    """Oldest first."""
    shortened: tuple[int, ...] = ()
    """Numbers of those turns that are too large and are here with parts left out."""
    token_limit: int | None
    """None where everything was asked for."""
    answered: Turn | None = None
    """The complete turn that answered this very request before."""
    regenerated: Turn | None = None
    """The turn that the request wants answered again; it is none of `turns`."""
    busy_seconds: float = 0
    """What is left of the lease of a turn that is being answered; 0 where nobody holds the session."""
    damaged: tuple[int, ...] = ()
    """Numbers of the turns that could not be read."""

    @property
    def live(self) -> State | None:
        """The state of a session that exists for its owner; None where there is none, or nothing to be seen of it."""
        return self.state if self.state and self.state.created_at else None

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def total_turns(self) -> int:
        """How many turns were stored before the next one, failed ones included."""
        return self.next_number - 1

    @property
    def size(self) -> WindowSize:
        return WindowSize(
            turns=len(self.turns), tokens=self.tokens, limit=self.token_limit or 0, shortened=len(self.shortened)
        )


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to store one turn, and what is known of that turn before it is answered."""

    session: Session
    generation: int
    number: int
    token: str
    request: Request
    window: WindowSize
    claimed_at: datetime
    takes_over: bool = False
    """Whether another holder had the same number before, and did not come back."""
    supersedes: int | None = None
    expires_at: datetime | None = None

    def completed(self, messages: Sequence[Message], *, tokens: int, at: datetime, instance: str) -> Turn:
        """The turn with everything that the agent and its tools said."""
        return self._turn(TurnStatus.COMPLETE, messages, tokens=tokens, at=at, instance=instance)

    def failed(self, code: str, messages: Sequence[Message], *, at: datetime, instance: str) -> Turn:
        """The turn that got no answer: what the user said, and why nothing came of it."""
        return self._turn(TurnStatus.FAILED, messages, tokens=0, at=at, instance=instance, failure=code)

    def void(self) -> Turn:
        """A turn that says nothing and only holds its number."""
        return self._turn(TurnStatus.VOID, (), tokens=0, at=self.claimed_at, instance="")

    def _turn(
        self,
        status: TurnStatus,
        messages: Sequence[Message],
        *,
        tokens: int,
        at: datetime,
        instance: str,
        failure: str | None = None,
    ) -> Turn:
        return Turn(
            generation=self.generation,
            number=self.number,
            token=self.token,
            status=status,
            request=self.request,
            messages=tuple(messages),
            tokens=tokens,
            window=self.window,
            started_at=self.claimed_at,
            finished_at=at,
            instance=instance,
            failure=failure,
            supersedes=self.supersedes,
            expires_at=self.expires_at,
        )


@dataclass(kw_only=True)
class Usage:
    """What a log has asked of its table so far, as the table counts it."""

    calls: int = 0
    read_units: float = 0
    write_units: float = 0


class TurnLog(Protocol):
    """The turns of many sessions, each a sequence numbered 1, 2, 3 ... without holes.

    - A turn is stored whole or not at all, and is in the table when ``commit`` returns.
    - A number is given out once. Whoever claims it has loaded after the number below it was stored, so that every
      stored turn was answered in view of all turns before it, whatever clocks, retries and crashes do.
    - A request is answered once, by its id: its copies get the stored turn. This holds for the requests of the last 64
      turns, and for fewer of them, but at least 16, if the session's title or its owner's name is very long.
    - While a lease holds, nobody else can claim; the lease only saves work, no correctness rests on it.
    - Loads are strongly consistent.
    - A deleted session is empty from the moment that ``delete`` wrote: no turn of before comes back, and neither does
      one that was in flight.
    - A turn that expired is never read, even while the table still holds it.

    Every method raises TableUnavailable where the table does not answer.
    """

    @property
    def usage(self) -> Usage:
        """What this log has asked of its table so far."""
        ...

    async def load(
        self, session: Session, *, token_limit: int | None, request: Request | None = None, active: bool = False
    ) -> Window:
        """The newest turns of a session that fit the limit together; all of them if the limit is None.

        The handler's windows (with a limit) hold complete turns only, and none of which something was archived or
        deleted. They are never blank: if the newest of these turns does not fit on its own, it is shortened until it
        does. (If the limit is below LEAST_TOKENS of `memory.shortening`, there may be no room for any of it; a limit of
        0 asks for no turns.) The stored turn stays whole, and so does the one that answered this request before.

        Raises RequestIdReused if the request's id answered something else, and DamagedTurn if the turn that answered it
        cannot be read. Other damaged turns are left out and reported in the window.

        `active` leaves out the turns below the one up to which everything is archived, without reading them.

        For a request that regenerates a turn, the window holds the turns before that one, and it apart. Raises
        SessionNotFound or TurnNotFound where there is none, and NotTheNewestTurn where others followed (failed attempts
        at the same aside).
        """
        ...

    async def claim(self, window: Window, request: Request, *, title: str = "", waiter: int | None = None) -> Claim:
        """Take the window's next number. Raises ClaimRefused where the session moved on since it was loaded.

        A request that waited says as which ``waiter``, and is none from then on.
        """
        ...

    async def wait(self, window: Window, *, limit: int, seconds: float) -> int:
        """Become one of at most ``limit`` requests that wait for the session, for so many seconds at most.

        Instances that do this at the same time count together. Raises TooManyWaiting, and ClaimRefused if the session
        or its waiters changed since it was loaded.
        """
        ...

    async def stop_waiting(self, window: Window, waiter: int) -> None:
        """Make room for another waiter, in view of a window that was loaded now."""
        ...

    async def renew(self, claim: Claim) -> None:
        """Lengthen the lease of a turn that takes long. Raises LeaseLost where the session was taken over."""
        ...

    async def commit(self, claim: Claim, turn: Turn) -> Turn:
        """Store the turn and return it; or return the complete one which answered the same request in its place.

        Raises LeaseLost where another request's turn has the number, or where the session was deleted or rewritten
        meanwhile: nothing of this one is seen then. (A turn of less than half a lease does not look whether it was: one
        that was in flight during a delete may be called stored, and is as gone as what was stored before.) Raises
        TableUnavailable where the table does not say: the turn may be stored, and loading its request tells.
        """
        ...

    async def delete(self, session: Session) -> bool:
        """Empty the session at once, and remove what it held; False where removing is not finished: call again.

        Raises SessionNotFound where there is no such session, and nothing left of one.
        """
        ...

    async def rewrite(self, window: Window, turns: Sequence[Turn]) -> None:
        """Replace everything in a window that was loaded without a limit by these turns, in one step for all readers.

        Raises TurnInProgress where a turn is being answered, ClaimRefused or LeaseLost where the session moved on since
        it was loaded. Nothing is changed then.
        """
        ...

    async def mark(self, window: Window, *, archived: Position = START, deleted: Position = START) -> None:
        """Archive or delete all messages before a position. Raises ClaimRefused where somebody else did meanwhile.

        Deleted is deleted: a request whose turn was deleted is a new one when it comes again.
        """
        ...


def text_of(message: Message) -> str:
    """The text in a message."""
    return "\n".join(block["text"] for block in message["blocks"] if block["block_type"] == "text")


def concluding(messages: Sequence[Message], answer: str, structured: dict[str, Any] | None) -> list[Message]:
    """The messages of a turn, the last one with what the run came to; as they are if its text says all of that."""
    *before, last = messages
    beside: dict[str, Any] = {}
    if answer != text_of(last):
        beside["answer"] = answer
    if structured is not None:
        beside["structured"] = structured
    return [*before, {**last, **beside}]


@asynccontextmanager
async def holding(log: TurnLog, claim: Claim) -> AsyncIterator[None]:
    """Renew the claim's lease for as long as the block runs."""

    async def renew() -> None:
        with suppress(LeaseLost):  # whoever writes under the claim finds out
            while True:
                await asyncio.sleep(HOLDING_SECONDS)
                with suppress(TableUnavailable):  # there is time for another try before the lease ends
                    await log.renew(claim)

    task = asyncio.create_task(renew())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def take_turn(
    log: TurnLog,
    session: Session,
    request: Request,
    *,
    token_limit: int | None,
    patience: float,
    title: str = "",
    admit: Callable[[Window], Awaitable[None]] | None = None,
    max_waiting: int | None = None,
) -> tuple[Window, Claim | None]:
    """Load the session, wait while another request is answered, claim the next turn: over again until it is ours.

    ``patience`` is the longest wait in seconds. There is no claim where the window shows that this very request was
    answered before. ``admit`` is asked after each load, before anything is waited for or claimed, and raises if the
    request may have no turn. ``max_waiting`` is how many requests may wait for one session, over all instances; None is
    no limit, and costs no write. Raises TooManyWaiting, TurnInProgress beyond the patience, and what ``load`` raises.
    """
    clock = asyncio.get_running_loop().time
    give_up = clock() + patience
    waiter: int | None = None
    while True:
        window = await log.load(session, token_limit=token_limit, request=request)
        if window.answered:
            if waiter is not None:
                await log.stop_waiting(window, waiter)
            return window, None
        if admit:
            await admit(window)
        try:
            if not window.busy_seconds:
                return window, await log.claim(window, request, title=title, waiter=waiter)
            if waiter is None and max_waiting is not None and (left := give_up - clock()) > 0:
                waiter = await log.wait(window, limit=max_waiting, seconds=left)
            await _until_free(log, window, give_up)
        except ClaimRefused as refusal:
            if clock() >= give_up:
                silence = refusal.__cause__
                raise silence if isinstance(silence, TableUnavailable) else TurnInProgress(1) from refusal
            await _pause()


async def _until_free(log: TurnLog, window: Window, give_up: float) -> None:
    """Wait for as long as another request of the session is answered. Raises TurnInProgress."""
    while window.busy_seconds:
        if asyncio.get_running_loop().time() >= give_up:
            raise TurnInProgress(max(1, math.ceil(window.busy_seconds)))
        await _pause()
        window = await log.load(window.session, token_limit=0)  # a look, at the price of one unit


async def _pause() -> None:
    """Let a moment pass, of random length, so that waiting requests spread."""
    await asyncio.sleep(random.uniform(0.05, 0.35))  # noqa: S311 - jitter


def utc_now() -> datetime:
    """The time now, aware of its zone, in whole milliseconds as the table keeps it."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
