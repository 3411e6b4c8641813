"""An event loop in which nothing happens of its own accord: calls to the table wait until somebody lets them through,
timers until somebody moves the time. So one seed is one schedule, however fast the machine is.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

ACTOR: contextvars.ContextVar[str] = contextvars.ContextVar("ACTOR", default="")
"""Whose code runs."""

MOST_CANCELS = 100
READS = ("query", "get_item")


@dataclass(frozen=True, kw_only=True)
class Packet:
    """A call to the table, as it goes over the wire."""

    operation: str
    arguments: dict[str, Any]

    @property
    def writes(self) -> bool:
        return self.operation not in READS


class Wire:
    """What a log takes for its client: each call becomes a packet, and the loop carries it."""

    def __getattr__(self, operation: str) -> Callable[..., Packet]:
        return lambda **arguments: Packet(operation=operation, arguments=arguments)


@dataclass(kw_only=True, eq=False)
class Call:
    """A packet under way, and what comes back."""

    actor: str
    packet: Packet
    future: asyncio.Future[Any]
    outcome: dict[str, Any] | Exception | None = None
    """The response or the error, once it is known; it still has to be delivered."""

    def deliver(self) -> None:
        """Hand over what came back."""
        if self.future.cancelled():
            return
        if isinstance(self.outcome, Exception):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


@dataclass(kw_only=True, eq=False)
class Timer:
    """Something that an actor waits for."""

    actor: str
    handle: asyncio.TimerHandle


@dataclass(kw_only=True, eq=False)
class SteppedLoop(asyncio.AbstractEventLoop):
    """An event loop with a clock of its own, whose calls and timers are for the schedule to choose from."""

    now: float = 0.0
    calls: list[Call] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    closing: bool = False
    _ready: deque[asyncio.Handle] = field(default_factory=deque)

    def settle(self) -> None:
        """Run everything that can go on, until all wait for a call or a timer."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._ready:
                self._ready.popleft()._run()
        finally:
            asyncio._set_running_loop(before)

    def begin(self, actor: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that does an actor's work; it runs once the loop settles."""
        context = contextvars.copy_context()
        context.run(ACTOR.set, actor)
        return self.create_task(work, name=actor, context=context)

    def close_all(self, tasks: list[asyncio.Task[None]]) -> None:
        """End what never came to its end; not one call more goes out."""
        self.closing = True
        for _ in range(MOST_CANCELS):
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            self.settle()
            self.calls.clear()

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def call_soon(  # type: ignore[override] # plainer than typeshed has it
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override] # plainer than typeshed has it
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override] # plainer than typeshed has it
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.timers.append(Timer(actor=ACTOR.get(), handle=handle))
        return handle

    def fire(self, timer: Timer) -> None:
        """Let an actor go on that waited for a time."""
        self.timers.remove(timer)
        self.now = max(self.now, timer.handle.when())
        if not timer.handle.cancelled():
            self._ready.append(timer.handle)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context, **options)

    def run_in_executor(  # type: ignore[override] # plainer than typeshed has it
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        call = Call(actor=ACTOR.get(), packet=func(*args), future=self.create_future())
        if self.closing:
            call.future.cancel()
        else:
            self.calls.append(call)
        return call.future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An error that nobody awaited: of an actor that was killed, or of the proof itself."""
        if not self.closing:
            raise RuntimeError(context.get("message")) from context.get("exception")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked for by TimerHandle; `fire` looks."""
