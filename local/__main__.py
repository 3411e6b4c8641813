"""What `make run` runs: engine, table, demo model, the functions' workers, and what invokes them, until Ctrl-C.

Whatever it starts ends with it, however it ends: children read the end of a pipe or a socket that only it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import uvicorn
from botocore.exceptions import BotoCoreError, ClientError

from handlers.settings import AGENT_SECONDS, COMMIT_SECONDS, Settings, SettingsError
from local import demo_model, engine, guard, stream
from local.functions import CHAT, SESSIONS, SWEEP, name_of
from local.gateway import Gateway
from local.pool import WorkerPool, WorkerStartError
from memory.table import connect, create_table

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# With less, every turn would be refused.
_SHORTEST_TIMEOUT_SECONDS = COMMIT_SECONDS + AGENT_SECONDS + 1
# As deployed: nobody waits for the sweeper, which waits for turns in flight and may have much to remove.
_SWEEP_SECONDS = 300.0
# A process that was killed may still be there as a zombie for a moment.
_LIVE_HOLDER_SECONDS = 1.0
_DEAD_HOLDER_SECONDS = 10.0


class CannotRun(Exception):
    """Something that only the user can put right; the text says what and how."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of a run."""

    port: int
    workers: int
    timeout: float
    folder: Path
    dynamodb_endpoint: str | None
    own_model: bool

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Options:
        """Read environment variables. Raises CannotRun for a value that is none."""
        return cls(
            port=int(_number(env, "PORT", 3000, lowest=0, highest=65535)),
            workers=int(_number(env, "WORKERS", 2, lowest=1, highest=64)),
            timeout=_number(env, "TIMEOUT_SECONDS", 28, lowest=_SHORTEST_TIMEOUT_SECONDS, highest=900),
            folder=Path(env.get("LOCAL_DIR") or ".local"),
            dynamodb_endpoint=env.get("DYNAMODB_ENDPOINT") or None,
            own_model=bool(env.get("OPENAI_API_KEY") or env.get("OPENAI_API_BASE")),
        )


def _number(env: Mapping[str, str], name: str, default: float, *, lowest: float, highest: float) -> float:
    text = env.get(name) or str(default)
    try:
        number = float(text) if name == "TIMEOUT_SECONDS" else int(text)
    except ValueError:
        raise CannotRun(f"{name} must be a number, and is {text!r}.") from None
    if not lowest <= number <= highest:
        raise CannotRun(f"{name} must be between {lowest:g} and {highest:g}, and is {text}.")
    return number


def run(env: Mapping[str, str]) -> None:
    """Start everything, serve until a signal, stop everything. Raises CannotRun."""
    options = Options.read(env)
    settings = _checked_settings(env)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_locked(options.folder))
        listener = stack.enter_context(_listener(options.port))
        servers = []
        endpoint, model_endpoint = options.dynamodb_endpoint, None
        if endpoint is None:
            servers.append(stack.enter_context(_start_engine(options.folder, lock)))
            endpoint = servers[-1].endpoint
        else:
            _say(f"conversations are kept at {endpoint} (DYNAMODB_ENDPOINT is set; unset it for the embedded engine)")
        if options.own_model:
            where = settings.openai_api_base or "OpenAI"
            _say(f"{settings.openai_model} at {where} answers (unset OPENAI_API_KEY and _BASE for the demo model)")
        else:
            servers.append(stack.enter_context(demo_model.start(log=options.folder / "demo-model.log")))
            model_endpoint = servers[-1].endpoint
            _say(f"the demo model answers on {model_endpoint} (OPENAI_API_KEY or OPENAI_API_BASE takes a real one)")
        secret = _signing_secret(options.folder)
        worker_env = worker_environment(env, endpoint=endpoint, model_endpoint=model_endpoint, secret=secret)
        _create_table(endpoint, worker_env, is_ours=options.dynamodb_endpoint is None)
        asyncio.run(_serve(options, worker_env, listener, servers))
        # All that is left is to stop, and that is bounded: a second Ctrl-C has nothing to add.
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    _say("stopped")


def _checked_settings(env: Mapping[str, str]) -> Settings:
    """The functions' settings, so that a wrong one is told now and not by every request. Raises CannotRun."""
    try:
        return Settings.from_environment(env)
    except SettingsError as error:
        raise CannotRun(f"{error}.") from None


def _start_engine(folder: Path, lock: int) -> engine.Engine:
    data = folder / "data"
    _say(f"starting the DynamoDB engine on {data}")
    # It holds the lock too: should this process be killed, no other run gets at the file before the engine has ended.
    started = engine.start_embedded(data, log=folder / "engine.log", pass_fds=(lock,))
    _say(f"{started.name} answers on {started.endpoint}")
    return started


def worker_environment(
    env: Mapping[str, str], *, endpoint: str, model_endpoint: str | None, secret: str
) -> dict[str, str]:
    """The environment of the workers: `env`, what it leaves open, and the endpoints of what was started here."""
    given = {name: value for name, value in env.items() if value}
    filled = {
        "TABLE_NAME": "rehydrate",
        "SIGNING_SECRET": secret,
        "COOKIE_SECURE": "false",
        "IDENTITY_SOURCES": "token",
        # Servers on this machine want none, the client library does.
        "OPENAI_API_KEY": "none",
        "POWERTOOLS_SERVICE_NAME": "rehydrate",
        # No CloudWatch reads this log, people do.
        "POWERTOOLS_METRICS_DISABLED": "true",
        **given,
        "DYNAMODB_ENDPOINT": endpoint,
    }
    if model_endpoint is not None:
        filled |= {
            "OPENAI_API_BASE": f"{model_endpoint}/v1",
            "OPENAI_API_KEY": "demo",
            "OPENAI_MODEL": demo_model.MODEL,
        }
    # An engine on this machine checks no credentials, but no AWS SDK calls without some.
    if urlsplit(endpoint).hostname in _LOOPBACK_HOSTS:
        if "AWS_ACCESS_KEY_ID" not in given:
            filled |= {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
            filled.pop("AWS_SESSION_TOKEN", None)
        if "AWS_REGION" not in given:
            filled["AWS_REGION"] = given.get("AWS_DEFAULT_REGION", "us-east-1")
        filled.setdefault("AWS_DEFAULT_REGION", filled["AWS_REGION"])
    return filled


@contextlib.contextmanager
def _listener(port: int) -> Iterator[socket.socket]:
    """The gateway's socket, bound before anything slow is started. Raises CannotRun when the port is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # On macOS a socket can be bound beside one that listens on all addresses.
        if port and _is_listening(port):
            raise _port_taken(port, os.strerror(errno.EADDRINUSE))
        try:
            listener.bind((guard.LOOPBACK, port))
        except OSError as error:
            raise _port_taken(port, error.strerror) from None
        yield listener


def _is_listening(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((guard.LOOPBACK, port)) == 0


def _port_taken(port: int, reason: str | None) -> CannotRun:
    other = 3001 if port == 3000 else 3000
    return CannotRun(
        f"Port {port} cannot be used: {reason}. Stop what listens there, or take another: PORT={other} make run"
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the lock of `folder`; yields its descriptor. Raises CannotRun when another run holds it.

    Two engines on one file would not notice each other. The engine of a run that was killed may still be writing its
    last: that is waited for.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise CannotRun(f"LOCAL_DIR={folder} cannot be used as a folder: {error.strerror}.") from None
    try:
        began = time.monotonic()
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            if time.monotonic() - began > (_LIVE_HOLDER_SECONDS if _is_running(holder) else _DEAD_HOLDER_SECONDS):
                raise CannotRun(
                    f"Another run (process {holder or 'unknown'}) uses {folder.resolve()}. Stop it, or use another "
                    "folder and port: LOCAL_DIR=.local2 PORT=3001 make run"
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _signing_secret(folder: Path) -> str:
    """The secret that signs this folder's tokens, made at the first run."""
    file = folder / "signing-secret"
    if not file.exists():
        # Under the lock, so alone; renamed, so that no crash leaves half a secret.
        draft = folder / "signing-secret.new"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(secrets.token_urlsafe(48))
        draft.rename(file)
    return file.read_text().strip()


def _create_table(endpoint: str, env: Mapping[str, str], *, is_ours: bool) -> None:
    """Create the table, and mend one of ours that an earlier version made without a stream. Raises CannotRun."""
    os.environ.update({name: value for name, value in env.items() if name.startswith("AWS_")})
    try:
        client = connect(endpoint)
        create_table(client, env["TABLE_NAME"])
        if is_ours:
            stream.turn_on(client, env["TABLE_NAME"])
    except (BotoCoreError, ClientError) as error:
        raise CannotRun(f"The table cannot be made at {endpoint}: {error} Is DYNAMODB_ENDPOINT right?") from None
    _say(f"the table {env['TABLE_NAME']} is there")


async def _serve(
    options: Options, env: Mapping[str, str], listener: socket.socket, servers: Sequence[guard.GuardedServer]
) -> None:
    _say("starting the workers")
    stop = asyncio.Event()
    for number in _STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    pools = _pools(options, env)
    poller = stream.StreamPoller(endpoint=env["DYNAMODB_ENDPOINT"], table=env["TABLE_NAME"], sweeper=pools[SWEEP])
    stopping = asyncio.create_task(stop.wait())
    try:
        starting = asyncio.create_task(_start(pools.values()))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await starting
            _say(f"workers: {'; '.join(map(_who, pools.values()))}")
            await _serve_until(stop, pools, poller, listener, servers)
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
    listener: socket.socket,
    servers: Sequence[guard.GuardedServer],
) -> None:
    """Answer requests, and poll, until `stop` is set. Raises CannotRun when one of `servers` ends by itself."""
    try:
        listener.listen(128)
    except OSError as error:
        raise _port_taken(listener.getsockname()[1], error.strerror) from None
    server = _Server(_server_config(Gateway(pools)), stop)
    polling = asyncio.create_task(poller.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_first_to_end(servers))
    stopping = asyncio.create_task(stop.wait())
    _invite(listener.getsockname()[1])
    await asyncio.wait({serving, watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
    _say("stopping")
    # First the poller, to which a stopped worker is a failed one. Then the workers: what they had is answered at once,
    # and the server has nothing left to wait for.
    polling.cancel()
    await _stop(pools.values())
    server.should_exit = True
    await serving
    stopping.cancel()
    if not watching.cancel():
        ended = watching.result()
        raise CannotRun(f"{ended.name} stopped by itself (exit code {ended.exit_code}):\n{ended.last_output()}")


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


async def _first_to_end(servers: Sequence[guard.GuardedServer]) -> guard.GuardedServer:
    while True:
        for server in servers:
            if server.exit_code is not None:
                return server
        await asyncio.sleep(0.5)


def _invite(port: int) -> None:
    url = f"http://{guard.LOOPBACK}:{port}"
    _say(f"serving {url} (Ctrl-C stops it)")
    print(
        "\nTry:\n\n"
        f"  curl -sS -b jar -c jar {url}/chat -H 'content-type: application/json' \\\n"
        """    -d '{"message": "My name is Ada"}'\n""",
        flush=True,
    )


def _say(text: str) -> None:
    print(f"rehydrate: {text}", flush=True)


def _stop_now(*_: Any) -> NoReturn:
    raise SystemExit(0)


def main() -> None:
    """The program: exit code 0 after SIGINT or SIGTERM, 1 and one clear sentence when it cannot run."""
    settings = "Environment variables are its settings: see README.md."
    argparse.ArgumentParser(prog="python -m local", description=__doc__, epilog=settings).parse_args()
    logging.basicConfig(format="rehydrate: %(message)s", level=logging.WARNING)
    # While it starts: nothing is being served yet, and what was started is stopped by its context.
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop_now)
    try:
        run(os.environ)
    except (CannotRun, engine.EngineMissing, guard.ServerStartError) as error:
        raise SystemExit(f"rehydrate: {error}") from None


if __name__ == "__main__":
    main()
