"""Instances of the chat function under Lambda's own runtime, for those who kill them.

An instance is the emulator that AWS ships (aws-lambda-rie, in the wheel of aws-sam-cli) and the runtime that it starts
(awslambdaric), with the handler inside. The emulator takes one request at a time, ends a runtime that passes its time,
and starts another one at the next request once one has died.
"""

import asyncio
import functools
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local import demo_model, engine, guard
from memory import codec
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect, create_table
from memory.turns import Session, Turn, TurnStatus, Window
from tests.wire import Wire, wire_to

ROOT = Path(__file__).resolve().parent.parent
TABLE = "rehydrate"
USER = "ada"
OWNER = f"header:user:{USER}"
EVENT: Mapping[str, Any] = json.loads((ROOT / "events" / "chat_trusted_header.json").read_text())
HANDLER = "tests.handler_with_tools.handler"
TIMEOUT_SECONDS = 28
"""The function's, as template.yaml has it."""
ADDRESS_SPACE_KB = 1_500_000
"""Of a runtime: more than twice of what it takes with all of its threads."""
WARM_SECONDS = 120
_INVOKE = "/2015-03-31/functions/function/invocations"


def missing_runtime() -> str | None:
    """None if instances can be started here, else a sentence that says what is lacking and what to do."""
    if sys.platform != "linux":
        return "Lambda's runtime is for Linux only."
    if importlib.util.find_spec("awslambdaric") is None:
        return "Lambda's runtime awslambdaric is not installed; requirements-dev.txt has it."
    if _emulator() is None:
        return "aws-lambda-rie is not installed: `make check` does that, with aws-sam-cli."
    return engine.missing_dynoxide() and engine.missing_dynamodb_local()


def _emulator() -> Path | None:
    """The emulator beside `sam`: in the environment that make makes, else where PATH has it."""
    machine = {"x86_64": "x86_64", "aarch64": "arm64"}.get(os.uname().machine)
    ours = ROOT / os.environ.get("VENV_SAM", ".venv-sam") / "bin" / "sam"
    for sam in (ours, Path(shutil.which("sam") or ours)):
        packages = sam.resolve().parent.parent / "lib"
        for emulator in packages.glob(f"python*/site-packages/samcli/local/rapid/aws-lambda-rie-{machine}"):
            if os.access(emulator, os.X_OK):
                return emulator
    return None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of a request. `status` is the handler's; None where the runtime ended without a response."""

    status: int | None
    body: Mapping[str, Any]
    replayed: bool = False


class Instance:
    """One instance: its emulator, the runtime in it, and the wire between that and the table."""

    def __init__(self, name: str, server: guard.GuardedServer, runtime_api: str, wire: Wire, lingers: Path) -> None:
        self.name, self.wire, self._lingers = name, wire, lingers
        self._server, self._runtime_api = server, runtime_api
        self._threads = ThreadPoolExecutor(1)

    def ask(self, session: str, message: str, *, key: str = "") -> Reply:
        """The reply to one message of the user in a session."""
        headers = EVENT["headers"] | {"x-user-id": USER} | ({"idempotency-key": key} if key else {})
        event = {**EVENT, "headers": headers, "body": json.dumps({"message": message, "session_id": session})}
        answer = httpx.post(f"{self._server.endpoint}{_INVOKE}", json=event, timeout=120)
        if '"statusCode"' not in answer.text:
            return Reply(status=None, body={"error": answer.text})
        result = answer.json()
        replayed = "Idempotent-Replayed" in result["headers"]
        return Reply(status=result["statusCode"], body=json.loads(result["body"]), replayed=replayed)

    def asking(self, session: str, message: str, *, key: str = "") -> "Future[Reply]":
        """The same, while the caller goes on."""
        self._lingers.unlink(missing_ok=True)
        return self._threads.submit(self.ask, session, message, key=key)

    @property
    def lingers(self) -> bool:
        """Whether the request that was asked last came to the tool that takes its time."""
        return self._lingers.exists()

    def warm(self) -> None:
        """Have a runtime that has answered a request before."""
        give_up = time.monotonic() + WARM_SECONDS
        while (reply := self.ask(f"warm-{self.name}", "Hello")).status != 200:
            assert time.monotonic() < give_up, f"{reply.body}\n{self._server.last_output()}"

    def runtime(self) -> int | None:
        """The process that has the handler; None while there is none."""
        mark = f"AWS_LAMBDA_RUNTIME_API={self._runtime_api}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    return int(process.name)
        return None

    def end(self, by: signal.Signals = signal.SIGKILL) -> None:
        """End the runtime, if there is one."""
        with suppress(ProcessLookupError):
            if pid := self.runtime():
                os.kill(pid, by)

    def close(self) -> None:
        self._server.stop()
        self._threads.shutdown()


@dataclass(frozen=True, kw_only=True)
class Service:
    """A table, a model, and as many instances as are started."""

    endpoint: str
    model: str
    folder: Path
    instances: ExitStack

    def instance(self, name: str) -> Instance:
        """One more instance, which ends with the service."""
        wire = self.instances.enter_context(wire_to(self.endpoint))
        runtime_api = f"127.0.0.1:{guard.free_port()}"
        limit = f'ulimit -v {ADDRESS_SPACE_KB}; exec "$@"'
        runtime = ["/bin/sh", "-c", limit, "runtime", sys.executable, "-m", "awslambdaric", HANDLER]
        server = guard.start(
            f"The instance {name}",
            lambda port: [
                *(_emulator() or "", "--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
                *("--runtime-api-address", runtime_api, *runtime),
            ],
            lambda endpoint: guard.status_of(endpoint, "/") > 0,
            log=self.folder / f"{name}.log",
            env=self._environment(name, wire),
        )
        instance = Instance(name, server, runtime_api, wire, self.folder / f"{name}.lingers")
        self.instances.callback(instance.close)
        return instance

    def _environment(self, name: str, wire: Wire) -> dict[str, str]:
        return {
            **os.environ,
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(TIMEOUT_SECONDS),
            "CONTEXT_WINDOW": "1000000",
            "DYNAMODB_ENDPOINT": wire.address,
            "IDENTITY_SOURCES": "header",
            "INSTANCE": name,
            "LINGERS": str(self.folder / f"{name}.lingers"),
            "OPENAI_API_BASE": f"{self.model}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": demo_model.MODEL,
        }

    def asked(self, text: str) -> bool:
        """Whether the model was asked with a text in one of the last requests that reached it."""
        return text in httpx.get(f"{self.model}/requests").text

    def window(self, session: str) -> Window:
        """Everything that the table has of a session."""
        log = DynamoDBTurnLog(_client(self.endpoint), TABLE)
        return asyncio.run(log.load(Session(owner=OWNER, id=session), token_limit=None))

    def pass_lease(self, session: str) -> None:
        """Have the session's lease run out now."""
        _client(self.endpoint).update_item(
            TableName=TABLE,
            Key={"pk": {"S": codec.partition(Session(owner=OWNER, id=session))}, "sk": {"S": codec.STATE_KEY}},
            UpdateExpression="SET lease_until = :now",
            ExpressionAttributeValues={":now": {"N": "0"}},
        )

    def parts(self, session: str) -> list[str]:
        """Sort keys of the parts of large turns that the table has of a session."""
        found = _client(self.endpoint).query(
            TableName=TABLE,
            KeyConditionExpression="pk = :pk AND begins_with(sk, :part)",
            ExpressionAttributeValues={
                ":pk": {"S": codec.partition(Session(owner=OWNER, id=session))},
                ":part": {"S": codec.PART_PREFIX},
            },
            ProjectionExpression="sk",
        )
        return [item["sk"]["S"] for item in found["Items"]]


@contextmanager
def running_service(folder: Path) -> Iterator[Service]:
    """A service on data in a folder, until the block ends."""
    with ExitStack() as stack:
        start = engine.start_dynamodb_local if engine.missing_dynoxide() else engine.start_dynoxide
        table = stack.enter_context(start(folder / "table"))
        model = stack.enter_context(demo_model.start())
        create_table(_client(table.endpoint), TABLE)
        instances = stack.enter_context(ExitStack())
        yield Service(endpoint=table.endpoint, model=model.endpoint, folder=folder, instances=instances)


@functools.cache
def _client(endpoint: str) -> Any:
    return connect(endpoint)


def faults(window: Window) -> list[str]:
    """What is wrong with a history: turns that are lacking, unreadable, there twice, or not whole."""
    found = [f"turn {number} cannot be read" for number in window.damaged]
    numbers = [turn.number for turn in window.turns]
    if numbers != list(range(1, len(numbers) + 1)):
        found.append(f"the turns are numbered {numbers}")
    complete = [turn for turn in window.turns if turn.status is TurnStatus.COMPLETE]
    found += [f"{key} is there {n} times" for key, n in Counter(t.request.id for t in complete).items() if n > 1]
    return found + [f"turn {turn.number} is not whole" for turn in complete if not is_whole(turn)]


def is_whole(turn: Turn) -> bool:
    """Whether a turn begins with the user and ends with an answer, and each tool call between has its result."""
    roles = [message["role"] for message in turn.messages]
    blocks = [block for message in turn.messages for block in message["blocks"]]
    calls = sum(block["block_type"] == "tool_call" for block in blocks)
    return roles[:1] == ["user"] and roles[-1:] == ["assistant"] and bool(turn.answer) and calls == roles.count("tool")


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something; the time only ends what would never come."""
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            raise TimeoutError(f"still not so after {seconds} s: {what}")
        time.sleep(0.005)


def answered_with(window: Window, key: str) -> Sequence[Turn]:
    """The complete turns that a history has under an idempotency key."""
    return [turn for turn in window.turns if (turn.request.id, turn.status) == (key, TurnStatus.COMPLETE)]
