"""One turn of a conversation, top to bottom: load, claim, agent, commit. Knows no HTTP.

The process keeps nothing of a conversation: the agent is built anew around what the log holds, and what it says is
stored, whole, before anybody hears that it is.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import Memory

from handlers.model_answer import finish_reason
from handlers.run import AgentFailed, Concluded, Happened, run_agent
from handlers.settings import AGENT_SECONDS, COMMIT_SECONDS
from handlers.tools import Agent
from memory.allowance import DynamoDBAllowance
from memory.chat_store import TurnChatStore, clean_text, count_tokens, decode_message, encode_message, turn_memory
from memory.turns import (
    Claim,
    Request,
    Session,
    TableUnavailable,
    Turn,
    TurnLog,
    Window,
    concluding,
    take_turn,
    utc_now,
)

ANSWER_SECONDS = 0.3
"""Kept back for the response, of those that are kept back for the commit."""
EMPTY_BECAUSE = {"content_filter": "content_filter", "length": "answer_limit", "max_tokens": "answer_limit"}
"""Codes of answers of which the model's server left nothing, by its reason to stop."""
FIRST_RENEWAL_SECONDS = 6.0
RENEWAL_SECONDS = 4.0


class NoTimeLeft(Exception):
    """The invocation ends too soon to begin a turn."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What somebody says in a session, under which request id; nothing new where a turn is to be answered again."""

    session: Session
    request: Request
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The turn that holds the answer, and is stored; `replayed` where it was there before."""

    turn: Turn
    replayed: bool


@dataclass(kw_only=True)
class Progress:
    """How far a turn came, for its log line; each step is taken inside of what `traced` makes of its name."""

    traced: Callable[[str], AbstractContextManager[object]] = nullcontext
    window: Window | None = None
    turn: Turn | None = None
    milliseconds: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Note how long a step took, however it ends."""
        start = time.perf_counter()
        try:
            with self.traced(step):
                yield
        finally:
            self.milliseconds[step] = round((time.perf_counter() - start) * 1000)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What a turn is taken with: the log, an agent, and limits. `deadline` is a time of the event loop's clock."""

    log: TurnLog
    build_agent: Callable[[], Agent]
    instance: str
    token_limit: int
    max_result_chars: int
    """Of a tool's result."""
    wait_seconds: float
    max_waiting: int | None = None
    """Requests that may wait for one session; None is no limit."""
    deadline: float
    allowance: DynamoDBAllowance | None = None
    """What an owner may do; without one there is no limit."""
    progress: Progress = field(default_factory=Progress)

    async def answer(self, ask: Ask) -> AsyncGenerator[Happened | Answered]:
        """Answer in view of all turns before this one; yields what happens, and at last the stored turn.

        Raises NoTimeLeft, AgentFailed once the failed turn is stored, TurnsUsedUp, TooManySessions, and
        what a TurnLog raises.
        """
        progress, session = self.progress, ask.session
        with progress.timing("load"):
            window, claim = await self._begin(ask)
        progress.window, progress.turn = window, window.answered
        if claim is None:
            if window.answered:
                yield Answered(turn=window.answered, replayed=True)
            return

        message = said(window.regenerated) if window.regenerated else ask.message
        store, concluded, failure = TurnChatStore(window), None, None
        try:
            with progress.timing("agent"):
                async with (
                    keep_lease(self.log, claim) as lease,
                    aclosing(self._run(message, turn_memory(store, session), lease)) as events,
                ):
                    async for event in events:
                        if isinstance(event, Concluded):
                            concluded = event
                        else:
                            yield event
            turn = self._complete(claim, store, concluded)
        except AgentFailed as error:
            failure = error
            asked = encode_message(ChatMessage(role="user", content=message))
            turn = claim.failed(failure.code, [asked], at=utc_now(), instance=self.instance)
        finally:
            store.close()

        with progress.timing("commit"):
            progress.turn = await self._commit(claim, turn)
        replayed = progress.turn.token != claim.token
        if failure and not replayed:
            raise failure
        yield Answered(turn=progress.turn, replayed=replayed)

    async def _begin(self, ask: Ask) -> tuple[Window, Claim | None]:
        """The session's window, and a claim of its next turn; none where the request was answered before."""
        patience = self._patience()
        async with (
            in_time(self.deadline - COMMIT_SECONDS, "the session could not be loaded in time"),
            counted(self.allowance, ask.session.owner) as admit,
        ):
            return await take_turn(
                self.log,
                ask.session,
                ask.request,
                token_limit=self.token_limit,
                patience=patience,
                title=ask.message,
                admit=admit,
                max_waiting=self.max_waiting,
            )

    def _run(self, message: str, memory: Memory, lease: asyncio.Task[None]) -> AsyncGenerator[Happened | Concluded]:
        return run_agent(
            self.build_agent,
            message,
            memory,
            until=self.deadline - COMMIT_SECONDS,
            lease=lease,
            max_result_chars=self.max_result_chars,
        )

    async def _commit(self, claim: Claim, turn: Turn) -> Turn:
        """The stored turn. Whether it was stored is not known where the time runs out: a retry under its key tells."""
        async with in_time(self.deadline - ANSWER_SECONDS, "the turn could not be stored in time"):
            return await self.log.commit(claim, turn)

    def _patience(self) -> float:
        """Seconds there are to wait for another request of the session."""
        left = self.deadline - asyncio.get_running_loop().time() - COMMIT_SECONDS - AGENT_SECONDS
        if left < 0:
            raise NoTimeLeft
        return min(left, self.wait_seconds)

    def _complete(self, claim: Claim, store: TurnChatStore, concluded: Concluded | None) -> Turn:
        messages = store.collected()
        if concluded and (not messages or messages[-1].role is not MessageRole.ASSISTANT):
            messages.append(ChatMessage(role="assistant", content=concluded.answer))
        stored = [encode_message(message) for message in messages]
        if concluded:
            stored = concluding(stored, clean_text(concluded.answer), concluded.structured)
        turn = claim.completed(
            stored,
            tokens=count_tokens(messages),
            at=utc_now(),
            instance=self.instance,
        )
        if not turn.answer:
            raise AgentFailed(EMPTY_BECAUSE.get(finish_reason(messages[-1]), "empty_answer"))
        return turn


def said(turn: Turn) -> str:
    """What the user said in a turn."""
    messages = (decode_message(message) for message in turn.messages)
    return next((message.content or "" for message in messages if message.role is MessageRole.USER), "")


@asynccontextmanager
async def in_time(until: float, failure: str) -> AsyncIterator[None]:
    """Give the table until a time of the event loop's clock. Raises TableUnavailable."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as error:
        raise TableUnavailable(failure) from error


@asynccontextmanager
async def counted(
    allowance: DynamoDBAllowance | None, owner: str
) -> AsyncIterator[Callable[[Window], Awaitable[None]]]:
    """Count a turn of the owner while its session is loaded, and yield what waits for the verdict before the claim.

    If the turn would begin a session, that also checks whether the owner may have one more. The count costs no time. It
    also counts the copy of a request that was answered before, which only the load tells; but the copy is answered even
    if no turn is left.
    """
    counting = asyncio.create_task(allowance.spend_turn(owner)) if allowance else None

    async def admit(window: Window) -> None:
        if allowance and counting:
            await counting
            if window.live is None:
                await allowance.check_sessions(owner)

    try:
        yield admit
    except BaseException:
        if counting:
            counting.cancel()
        raise
    finally:
        if counting:
            await asyncio.wait({counting})
            if not counting.cancelled():
                counting.exception()  # nobody asked for the verdict on a copy


@asynccontextmanager
async def keep_lease(log: TurnLog, claim: Claim) -> AsyncIterator[asyncio.Task[None]]:
    """Renew the claim's lease for as long as the turn takes. The task ends early where the session was taken over."""

    async def renew() -> None:
        pause = FIRST_RENEWAL_SECONDS - (utc_now() - claim.claimed_at).total_seconds()
        while True:
            await asyncio.sleep(pause)
            try:
                await log.renew(claim)
                pause = RENEWAL_SECONDS
            except TableUnavailable:
                pause = 1.0  # there is time for more tries before the lease runs out

    task = asyncio.create_task(renew())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
