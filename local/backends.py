"""What the functions stand on when they run here: the data folder, a DynamoDB engine with the table, and a model.

`make run` and `make sam-local` start the same, on the same folder, so that a conversation goes on between the two.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from handlers.settings import Settings, SettingsError
from local import callers, demo_model, engine, engine_proxy, guard, stream
from memory.table import connect, create_table

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A process that was killed may still be there as a zombie for a moment.
_LIVE_HOLDER_SECONDS = 1.0
_DEAD_HOLDER_SECONDS = 10.0


class CannotRun(Exception):
    """Something that only the user can put right; the text says what and how."""


@dataclass(frozen=True, kw_only=True)
class Backends:
    """What was started, and the environment that leads a function to it."""

    servers: Sequence[guard.GuardedServer]
    environment: Mapping[str, str]


@contextlib.contextmanager
def started(env: Mapping[str, str], settings: Settings, *, folder: Path, lock: int) -> Iterator[Backends]:
    """Start what `env` names nothing else for, and make the table; stop it in the end. Raises CannotRun."""
    with contextlib.ExitStack() as stack:
        servers = []
        endpoint, model_endpoint = settings.dynamodb_endpoint, None
        if endpoint is None:
            servers.append(stack.enter_context(_start_engine(folder, lock)))
            proxy = engine_proxy.start(
                servers[-1].endpoint, access_key=engine_key(folder), log=folder / "engine-proxy.log"
            )
            servers.append(stack.enter_context(proxy.server))
            endpoint = proxy.address
            say(f"{servers[0].name} answers on {endpoint}")
        else:
            say(f"conversations are kept at {endpoint} (DYNAMODB_ENDPOINT is set; unset it for the embedded engine)")
        if settings.openai_api_key or settings.openai_api_base:
            where = settings.openai_api_base or "OpenAI"
            say(f"{settings.openai_model} at {where} answers (unset OPENAI_API_KEY and _BASE for the demo model)")
        else:
            recording = env.get("DEMO_MODEL_RECORDS") == "true"
            servers.append(stack.enter_context(demo_model.start(log=folder / "demo-model.log", recording=recording)))
            model_endpoint = servers[-1].endpoint
            say(f"the demo model answers on {model_endpoint} (OPENAI_API_KEY or OPENAI_API_BASE takes a real one)")
        secret = signing_secret(folder)
        environment = function_environment(env, endpoint=endpoint, model_endpoint=model_endpoint, secret=secret)
        _create_table(endpoint, environment, is_ours=settings.dynamodb_endpoint is None)
        yield Backends(servers=servers, environment=environment)


def number(env: Mapping[str, str], name: str, default: float, *, lowest: float, highest: float) -> float:
    """A setting that is a number, whole but for TIMEOUT_SECONDS. Raises CannotRun."""
    text = env.get(name) or str(default)
    try:
        number = float(text) if name == "TIMEOUT_SECONDS" else int(text)
    except ValueError:
        raise CannotRun(f"{name} must be a number, and is {text!r}.") from None
    if not lowest <= number <= highest:
        raise CannotRun(f"{name} must be between {lowest:g} and {highest:g}, and is {text}.")
    return number


def checked_settings(env: Mapping[str, str]) -> Settings:
    """The functions' settings, so that a wrong one is told now and not by every request. Raises CannotRun."""
    try:
        return Settings.from_environment(env)
    except SettingsError as error:
        raise CannotRun(f"{error}.") from None


def _start_engine(folder: Path, lock: int) -> engine.Engine:
    data = folder / "data"
    say(f"starting the DynamoDB engine on {data}")
    # It holds the lock too: should this process be killed, no other run gets at the file before the engine has ended.
    return engine.start_embedded(data, access_key=engine_key(folder), log=folder / "engine.log", pass_fds=(lock,))


def function_environment(
    env: Mapping[str, str], *, endpoint: str, model_endpoint: str | None, secret: str
) -> dict[str, str]:
    """The environment of the functions: `env`, what it leaves open, and the endpoints of what was started here."""
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
    if urlsplit(endpoint).hostname in callers.LOOPBACK_NAMES:
        if "AWS_ACCESS_KEY_ID" not in given:
            filled |= {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
            filled.pop("AWS_SESSION_TOKEN", None)
        if "AWS_REGION" not in given:
            filled["AWS_REGION"] = given.get("AWS_DEFAULT_REGION", "us-east-1")
        filled.setdefault("AWS_DEFAULT_REGION", filled["AWS_REGION"])
    return filled


@contextlib.contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A socket on loopback, bound before anything slow is started. Raises CannotRun when the port is taken."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # On macOS a socket can be bound beside one that listens on all addresses.
        if port and is_listening(port):
            raise port_taken(port, os.strerror(errno.EADDRINUSE))
        try:
            listener.bind((guard.LOOPBACK, port))
        except OSError as error:
            raise port_taken(port, error.strerror) from None
        yield listener


def is_listening(port: int) -> bool:
    """Whether anything listens on a port of loopback."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((guard.LOOPBACK, port)) == 0


def port_taken(port: int, reason: str | None) -> CannotRun:
    """What to say of a port that cannot be listened on."""
    other = 3001 if port == 3000 else 3000
    return CannotRun(f"Port {port} cannot be used: {reason}. Stop what listens there, or take another: PORT={other}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
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
                    "folder and port: LOCAL_DIR=.local2 PORT=3001"
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


def signing_secret(folder: Path) -> str:
    """The secret that signs this folder's tokens, made at the first run."""
    return _kept_secret(folder / "signing-secret", lambda: secrets.token_urlsafe(48))


def engine_key(folder: Path) -> str:
    """The access key under which the engine keeps this folder's data, made at the first run; letters and digits."""
    return _kept_secret(folder / "engine-key", lambda: secrets.token_hex(20))


def _kept_secret(file: Path, make: Callable[[], str]) -> str:
    if not file.exists():
        # Under the lock, so alone; renamed, so that no crash leaves half a secret.
        draft = file.with_name(f"{file.name}.new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(make())
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
    say(f"the table {env['TABLE_NAME']} is there")


def say(text: str) -> None:
    """Print a line for the user."""
    print(f"rehydrate: {text}", flush=True)


def invite(port: int) -> None:
    """Say where it serves, and what to try."""
    url = f"http://{guard.LOOPBACK}:{port}"
    say(f"serving {url} (Ctrl-C stops it)")
    print(
        "\nTry:\n\n"
        f"  curl -sS -b jar -c jar {url}/chat -H 'content-type: application/json' \\\n"
        """    -d '{"message": "My name is Ada"}'\n""",
        flush=True,
    )


async def first_to_end(servers: Sequence[guard.GuardedServer]) -> guard.GuardedServer:
    """Wait until one of `servers` has ended, whatever ended it, and return it."""
    while True:
        for server in servers:
            if server.exit_code is not None:
                return server
        await asyncio.sleep(0.5)


def stopped_by_itself(server: guard.GuardedServer) -> CannotRun:
    """What to say of a server that ended though nobody had stopped it."""
    return CannotRun(f"{server.name} stopped by itself (exit code {server.exit_code}):\n{server.last_output()}")


def _stop_now(*_: Any) -> NoReturn:
    # All that is left is to stop, and that is bounded: a second Ctrl-C has nothing to add.
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(0)


def obey(run: Callable[[], None]) -> None:
    """Run a program: exit code 0 after SIGINT or SIGTERM, 1 and one clear sentence when it cannot run."""
    logging.basicConfig(format="rehydrate: %(message)s", level=logging.WARNING)
    # While it starts: nothing is being served yet, and what was started is stopped by its context.
    for signal_number in STOP_SIGNALS:
        signal.signal(signal_number, _stop_now)
    try:
        run()
    except (CannotRun, engine.EngineMissing, guard.ServerStartError) as error:
        raise SystemExit(f"rehydrate: {error}") from None
