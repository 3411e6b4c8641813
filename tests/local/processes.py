"""Running gateways, and eyes for processes: what several tests of this folder need."""

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from local.functions import CHAT, SESSIONS
from local.gateway import Gateway
from local.pool import WorkerPool

HERE = Path(__file__).resolve().parent
STUB = "stub_handler:handler"
STUB_SWEEP = "stub_handler:sweep"


def stub_env(**more: str) -> dict[str, str]:
    """An environment in which workers find the stub handler."""
    return {**os.environ, "PYTHONPATH": str(HERE), **more}


def eventually(holds: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Wait until `holds()`; the time is only there to end a test that fails."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and was not awaited by its new parent does not."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True).stdout.strip()  # noqa: S603 - a fixed command
    return bool(state) and not state.startswith("Z")


@dataclass(frozen=True, kw_only=True)
class RunningGateway:
    """`pool` are the workers that most paths lead to, the sessions function's."""

    url: str
    pool: WorkerPool
    chat: WorkerPool


@contextlib.contextmanager
def running_gateway(
    *, workers: int = 1, base_path: str = "", origins: Iterable[str] = (), **settings: Any
) -> Iterator[RunningGateway]:
    """A gateway over workers of the stub handler and one for chat, on a real port, in a thread of its own."""
    settings = {"env": stub_env(), "handler": STUB, **settings}
    pool = WorkerPool(name="sessions", size=workers, **settings)
    chat = WorkerPool(name="chat", size=1, **settings)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def on_loop(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    gateway = Gateway({SESSIONS: pool, CHAT: chat}, base_path=base_path, origins=origins)
    server = uvicorn.Server(uvicorn.Config(gateway, port=0, log_level="warning", lifespan="off", ws="none"))
    on_loop(pool.start())
    on_loop(chat.start())
    serving = asyncio.run_coroutine_threadsafe(server.serve(), loop)
    try:
        eventually(lambda: server.started, "the gateway serves")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningGateway(url=f"http://127.0.0.1:{port}", pool=pool, chat=chat)
    finally:
        on_loop(pool.stop())
        on_loop(chat.stop())
        server.should_exit = True
        serving.result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
