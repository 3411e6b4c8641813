"""The worker processes of a function, each a Lambda instance.

An instance has one invocation at a time, is killed when that passes its deadline, and is replaced when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from local.guard import ROOT

_START_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_MOST_WORKERS_TRIED = 3
_GRACE_SECONDS = 2.0
_CHUNK = 256 * 1024

_log = logging.getLogger(__name__)


class WorkerStartError(Exception):
    """A worker process did not get as far as importing the handler; the text says why."""


class _Died(Exception):
    """The worker died in the middle of the invocation, which may have done anything or nothing."""


class _NotTaken(Exception):
    """The worker died before it took the invocation, which therefore did nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an invocation ended: with the handler's `response`, or with a `problem` for people and its HTTP `status`."""

    worker: int | None
    """The process id of the worker that had the invocation."""
    response: Any = None
    status: int = 200
    problem: str | None = None


@dataclass(kw_only=True, eq=False)
class _Invocation:
    number: int
    request_id: str
    event: Mapping[str, Any] = field(repr=False)
    outcome: asyncio.Future[Outcome] = field(repr=False)
    tried: int = 0

    def __lt__(self, other: _Invocation) -> bool:
        return self.number < other.number

    def end(self, outcome: Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class WorkerPool:
    """`size` workers of one function, which take invocations in the order of their arrival.

    `name` is the function's and `handler` its code (`module:function`), `env` the whole environment of the workers,
    `timeout` the seconds that an invocation may take.
    """

    def __init__(
        self, *, name: str, handler: str, env: Mapping[str, str], size: int = 2, timeout: float = 28.0
    ) -> None:
        self.name = name
        self._env = dict(env)
        self._size = size
        self._timeout = timeout
        self._handler = handler
        self._numbers = itertools.count()
        self._waiting: asyncio.PriorityQueue[_Invocation] = asyncio.PriorityQueue()
        self._open: set[_Invocation] = set()
        self._places: list[asyncio.Task[None]] = []
        self._running: dict[int, _Worker] = {}
        self._start_problem: str | None = None
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return sorted(self._running)

    async def start(self) -> None:
        """Start all workers; returns when each has imported the handler. Raises WorkerStartError when one cannot."""
        loop = asyncio.get_running_loop()
        ready: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._size)]
        self._places = [asyncio.create_task(self._keep_place(one)) for one in ready]
        results = await asyncio.gather(*ready, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                await self.stop()
                raise result

    async def stop(self) -> None:
        """Kill all workers and wait for them; what they were doing, and what waits, ends with a 503."""
        self._stopping = True
        for place in self._places:
            place.cancel()
        await asyncio.gather(*self._places, return_exceptions=True)
        self._end_all(503, "The gateway is stopping. Whether the request took effect is not known.")

    async def invoke(self, event: Mapping[str, Any]) -> Outcome:
        """Run the handler on `event` as soon as a worker is free. To cancel the caller does not cancel the handler."""
        if self._stopping:
            return Outcome(worker=None, status=503, problem="The gateway is stopping; nothing was done.")
        if self._start_problem and not self._running:
            return Outcome(worker=None, status=502, problem=self._start_problem)
        invocation = _Invocation(
            number=next(self._numbers),
            request_id=str(uuid.uuid4()),
            event=event,
            outcome=asyncio.get_running_loop().create_future(),
        )
        self._open.add(invocation)
        invocation.outcome.add_done_callback(lambda _: self._open.discard(invocation))
        self._waiting.put_nowait(invocation)
        return await asyncio.shield(invocation.outcome)

    async def _keep_place(self, ready: asyncio.Future[None]) -> None:
        """Keep one worker running, for ever. Only the failure of the very first start is the caller's, by `ready`."""
        failures = 0
        while True:
            try:
                worker = await _Worker.start(self.name, self._handler, self._env)
            except WorkerStartError as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                failures += 1
                await asyncio.sleep(self._failed_to_start(error, failures))
                continue
            failures = 0
            self._start_problem = None
            self._running[worker.pid] = worker
            if not ready.done():
                ready.set_result(None)
            try:
                await self._feed(worker)
            finally:
                self._running.pop(worker.pid, None)
                await worker.end()

    def _failed_to_start(self, error: WorkerStartError, failures: int) -> float:
        """Tell everybody who waits, from the second time on; returns the seconds to pause before the next attempt.

        A worker that somebody kills while it starts is no reason to give up what waits for it.
        """
        pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (failures - 1), _LONGEST_PAUSE_SECONDS)
        _log.error("%s Trying again in %g s.", error, pause)
        if failures == 1:
            return pause
        self._start_problem = (
            f"No worker of {self.name} is running. {error} It is tried again at most every {pause:g} s."
        )
        if not self._running:
            self._end_all(502, self._start_problem)
        return pause

    def _end_all(self, status: int, problem: str) -> None:
        for invocation in list(self._open):
            invocation.end(Outcome(worker=None, status=status, problem=problem))

    async def _feed(self, worker: _Worker) -> None:
        """Give `worker` one invocation after the other until it is dead."""
        while (invocation := await self._next_for(worker)) is not None:
            if invocation.outcome.done():
                continue
            try:
                outcome = await self._run(worker, invocation)
            except _NotTaken:
                self._give_to_another(invocation, worker)
                return
            invocation.end(outcome)
            if worker.ended:
                return
        _log.warning("%s %s while idle; it is replaced.", worker, await worker.end())

    async def _next_for(self, worker: _Worker) -> _Invocation | None:
        """The next invocation in line; None when the worker dies before there is one."""
        arrival = asyncio.create_task(self._waiting.get())
        try:
            await asyncio.wait({arrival, worker.exited}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            arrival.cancel()
            raise
        if not worker.exited.done():
            return arrival.result()
        if not arrival.cancel():
            self._waiting.put_nowait(arrival.result())
        return None

    def _give_to_another(self, invocation: _Invocation, worker: _Worker) -> None:
        invocation.tried += 1
        _log.warning("%s was dead before it took a request; another worker gets it.", worker)
        if invocation.tried < _MOST_WORKERS_TRIED:
            # Its number puts it back to the head of the line.
            self._waiting.put_nowait(invocation)
            return
        problem = (
            f"{invocation.tried} workers of {self.name} in a row died before they took the request; nothing was done."
        )
        invocation.end(Outcome(worker=worker.pid, status=502, problem=problem))

    async def _run(self, worker: _Worker, invocation: _Invocation) -> Outcome:
        """Raises _NotTaken. A worker that fails to answer is dead when this returns."""
        message = {
            "request_id": invocation.request_id,
            "timeout_ms": int(self._timeout * 1000),
            "event": invocation.event,
        }
        try:
            async with asyncio.timeout(self._timeout):
                answer = await worker.ask(message)
        except _Died:
            problem = f"{worker} {await worker.end(grace=_GRACE_SECONDS)} while it was handling the request."
            problem += " Whether the request took effect is not known."
            _log.warning("%s The worker is replaced.", problem)
            return Outcome(worker=worker.pid, status=502, problem=problem)
        except TimeoutError:
            await worker.end()
            problem = f"{worker} did not answer within {self._timeout:g} s and was killed, as Lambda does."
            _log.warning("%s It is replaced.", problem)
            return Outcome(worker=worker.pid, status=504, problem=problem)
        if "response" in answer:
            return Outcome(worker=worker.pid, response=answer["response"])
        problem = f"The handler of {self.name} failed with {answer['errorType']}; the gateway's output tells where."
        return Outcome(worker=worker.pid, status=502, problem=problem)


class _Worker:
    """One worker process, in a process group of its own, and this side's end of its socket pair."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: socket.socket) -> None:
        self.pid = process.pid
        self._name = name
        self.exited = asyncio.create_task(process.wait())
        self._channel = channel
        self._received = bytearray()

    def __str__(self) -> str:
        return f"Worker {self.pid} of {self._name}"

    @classmethod
    async def start(cls, name: str, handler: str, env: Mapping[str, str]) -> _Worker:
        """Start a worker; returns when it has imported the handler. Raises WorkerStartError."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "local.worker", str(theirs.fileno()), name, handler),
                    stdin=asyncio.subprocess.DEVNULL,
                    cwd=ROOT,
                    env=dict(env),
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
        except BaseException:
            ours.close()
            raise
        worker = cls(name, process, ours)
        try:
            await worker._wait_until_ready(handler)
        except BaseException:
            await worker.end()
            raise
        return worker

    async def _wait_until_ready(self, handler: str) -> None:
        try:
            async with asyncio.timeout(_START_SECONDS):
                hello = await self._receive()
        except TimeoutError:
            raise WorkerStartError(f"{self} did not import {handler} within {_START_SECONDS:g} s.") from None
        if hello is None:
            raise WorkerStartError(f"{self} {await self.end(grace=_GRACE_SECONDS)} while it was importing {handler}.")
        if "initError" in hello:
            raise WorkerStartError(f"{self} could not import {handler}: {hello['initError']}.")

    @property
    def ended(self) -> bool:
        """Whether `end` was called, or the process died by itself and was awaited."""
        return self.exited.done() or self._channel.fileno() < 0

    async def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The worker's answer to an invocation. Raises _NotTaken or _Died when its socket closes before."""
        line = json.dumps(message).encode() + b"\n"
        try:
            await asyncio.get_running_loop().sock_sendall(self._channel, line)
        except OSError as error:
            raise _NotTaken from error
        if await self._receive() is None:
            raise _NotTaken
        answer = await self._receive()
        if answer is None:
            raise _Died
        return answer

    async def _receive(self) -> dict[str, Any] | None:
        """The next object that the worker writes, None when it has closed its socket."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            try:
                chunk = await asyncio.get_running_loop().sock_recv(self._channel, _CHUNK)
            except ConnectionError:
                chunk = b""
            if not chunk:
                return None
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    async def end(self, *, grace: float = 0.0) -> str:
        """Kill the process with all of its group and wait for it; returns how it ended, for people to read.

        A process that is already on its way out gets `grace` seconds, so that its own exit code is the one reported.
        """
        if grace:
            await asyncio.wait({self.exited}, timeout=grace)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        # Not `await self.exited`: whoever cancels us would cancel the waiting for good.
        await asyncio.wait({self.exited})
        self._channel.close()
        code = self.exited.result()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
