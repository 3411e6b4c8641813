"""What `make run` runs: engine, table, demo model, the functions' workers, and what invokes them, until Ctrl-C.

Whatever it starts ends with it, however it ends: children read the end of a pipe or a socket that only it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from handlers.settings import AGENT_SECONDS, COMMIT_SECONDS
from local import backends, guard, stream
from local.backends import STOP_SIGNALS, Backends, CannotRun, say
from local.functions import CHAT, SESSIONS, SWEEP, name_of
from local.gateway import Gateway
from local.pool import WorkerPool, WorkerStartError

# With less, every turn would be refused.
_SHORTEST_TIMEOUT_SECONDS = COMMIT_SECONDS + AGENT_SECONDS + 1
# As deployed: nobody waits for the sweeper, which waits for turns in flight and may have much to remove.
_SWEEP_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of a run."""

    port: int
    workers: int
    timeout: float
    folder: Path

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Options:
        """Read environment variables. Raises CannotRun for a value that is none."""
        return cls(
            port=int(backends.number(env, "PORT", 3000, lowest=0, highest=65535)),
            workers=int(backends.number(env, "WORKERS", 2, lowest=1, highest=64)),
            timeout=backends.number(env, "TIMEOUT_SECONDS", 28, lowest=_SHORTEST_TIMEOUT_SECONDS, highest=900),
            folder=Path(env.get("LOCAL_DIR") or ".local"),
        )


def run(env: Mapping[str, str]) -> None:
    """Start everything, serve until a signal, stop everything. Raises CannotRun."""
    options = Options.read(env)
    settings = backends.checked_settings(env)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(backends.locked(options.folder))
        listener = stack.enter_context(backends.bound(options.port))
        them = stack.enter_context(backends.started(env, settings, folder=options.folder, lock=lock))
        asyncio.run(_serve(options, them, listener, origins=settings.cors_origins))
        # All that is left is to stop, and that is bounded: a second Ctrl-C has nothing to add.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    say("stopped")


async def _serve(options: Options, them: Backends, listener: socket.socket, *, origins: Iterable[str]) -> None:
    say("starting the workers")
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    env = them.environment
    pools = _pools(options, env)
    poller = stream.StreamPoller(endpoint=env["DYNAMODB_ENDPOINT"], table=env["TABLE_NAME"], sweeper=pools[SWEEP])
    stopping = asyncio.create_task(stop.wait())
    try:
        starting = asyncio.create_task(_start(pools.values()))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            say(f"workers: {'; '.join(map(_who, pools.values()))}")
            gateway = Gateway(pools, base_path=env.get("BASE_PATH", ""), origins=origins)
            await _serve_until(stop, pools, poller, gateway, listener, them.servers)
    except WorkerStartError as error:
        raise CannotRun(f"{error} What went wrong stands above.") from None
    finally:
        stopping.cancel()
        await _stop(pools.values())


def _pools(options: Options, env: Mapping[str, str]) -> dict[str, WorkerPool]:
    """The workers of each function: one sweeper, as the stream of a table this small has one shard."""
    answering = (options.workers, options.timeout)
    shapes = {CHAT: answering, SESSIONS: answering, SWEEP: (1, _SWEEP_SECONDS)}
    return {
        function: WorkerPool(name=name_of(function), handler=function, env=env, size=size, timeout=timeout)
        for function, (size, timeout) in shapes.items()
    }


def _who(pool: WorkerPool) -> str:
    return f"{pool.name} {', '.join(map(str, pool.pids))}"


async def _start(pools: Iterable[WorkerPool]) -> None:
    await asyncio.gather(*(pool.start() for pool in pools))


async def _stop(pools: Iterable[WorkerPool]) -> None:
    await asyncio.gather(*(pool.stop() for pool in pools))


async def _serve_until(
    stop: asyncio.Event,
    pools: Mapping[str, WorkerPool],
    poller: stream.StreamPoller,
    gateway: Gateway,
    listener: socket.socket,
    servers: Sequence[guard.GuardedServer],
) -> None:
    """Answer requests, and poll, until `stop` is set. Raises CannotRun when one of `servers` ends by itself."""
    try:
        listener.listen(128)
    except OSError as error:
        raise backends.port_taken(listener.getsockname()[1], error.strerror) from None
    server = _Server(_server_config(gateway), stop)
    polling = asyncio.create_task(poller.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(backends.first_to_end(servers))
    stopping = asyncio.create_task(stop.wait())
    backends.invite(listener.getsockname()[1])
    await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    say("stopping")
    # First the poller, to which a stopped worker is a failed one. Then the workers: what they had is answered at once,
    # and the server has nothing left to wait for.
    polling.cancel()
    await _stop(pools.values())
    server.should_exit = True
    await serving
    stopping.cancel()
    if not watching.cancel():
        ended = watching.result()
        raise backends.stopped_by_itself(ended)


def _server_config(gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
        loop="asyncio",
        ws="none",
        lifespan="off",
        # The address of the peer is who sent it, whatever its headers claim.
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal only says that it is time to stop, and is not raised again afterwards."""

    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)


def main() -> None:
    """The program: exit code 0 after SIGINT or SIGTERM, 1 and one clear sentence when it cannot run."""
    settings = "Environment variables are its settings: see README.md."
    argparse.ArgumentParser(prog="python -m local", description=__doc__, epilog=settings).parse_args()
    backends.obey(lambda: run(os.environ))


if __name__ == "__main__":
    main()
