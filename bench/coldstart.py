"""How long a function takes from nothing to its first response, as it is built and as pip installs it.

`python -m bench.coldstart`: each start is a process of the Python that Lambda has, with Lambda's own runtime client
(awslambdaric), which asks this program for its one event and hands it the response. All are started in turn, and each
ratio is the median of the rounds' own, so that whatever else the machine does meets both sides alike; the disk's cache
is warm, and none finds bytecode that an earlier start has left. SnapStart, which starts from a process that has done
all of this, cannot be had outside Lambda.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from local import demo_model, engine
from memory.table import connect, create_table
from platforms import bytecode

ROOT = Path(__file__).parent.parent
TABLE = "rehydrate"
ACCOUNT = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
"""An engine on this machine checks no credentials, but no AWS SDK calls without some."""
TRACE = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0"
SHOWN = 14
LONGEST_SECONDS = 120
SELF_TIME = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Function:
    """One of the functions, and a request that it answers."""

    name: str
    handler: str
    lock: str
    path: str
    body: str


CHAT = Function(
    name="ChatFunction",
    handler="handlers.chat.handler",
    lock="requirements.txt",
    path="/chat",
    body='{"message": "My name is Ada"}',
)
SESSIONS = Function(
    name="SessionsFunction",
    handler="handlers.sessions.handler",
    lock="requirements-sessions.txt",
    path="/sessions",
    body="{}",
)


@dataclass(kw_only=True)
class Start:
    """What is seen of one start, in seconds after it."""

    event: Mapping[str, Any]
    began: float = field(default_factory=time.perf_counter)
    initialised: float = 0.0
    """When the process asked for an event."""
    answered: float = 0.0
    status: int = 0
    done: threading.Event = field(default_factory=threading.Event)


def main() -> None:
    """Exit code 1 where a function cannot be built or does not answer."""
    parser = argparse.ArgumentParser(prog="python -m bench.coldstart", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="starts of each (%(default)s)")
    rounds = parser.parse_args().rounds
    python = bytecode.find_python()
    if python is None:
        raise SystemExit(bytecode.WITHOUT)
    os.environ |= ACCOUNT
    with tempfile.TemporaryDirectory() as name, backends(Path(name)) as environment:
        folder = Path(name)
        runtime = _runtime(python, folder / "runtime")
        made = {
            function: {kind: make(function, folder / function.name / kind) for kind, make in KINDS.items()}
            for function in (CHAT, SESSIONS)
        }
        starts = _rounds(python, made, runtime, environment, rounds)
        for function, kinds in made.items():
            _report(function, kinds, starts[function])
        share = _ratio(starts[SESSIONS]["built"], starts[CHAT]["built"], _initialised)
        print(f"\nThe sessions function, as built, is initialised in {share:.2f} of the chat function's time.")
        _imports(python, made[CHAT])


# ---- What is started -------------------------------------------------------------------------------------------------


def _plain(function: Function, folder: Path) -> Path:
    """As `pip install --target` leaves it, without bytecode."""
    _say(f"{function.name}: a plain install")
    _install(folder, "--no-deps", "--require-hashes", "-r", function.lock)
    for package in ("handlers", "memory"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _built(function: Function, folder: Path) -> Path:
    """As it is deployed."""
    _say(f"{function.name}: the artifact")
    folder.mkdir(parents=True)
    command = ["make", "--makefile", "platforms/x86_64/Makefile", f"build-{function.name}"]
    _run(command, env={**os.environ, "ARTIFACTS_DIR": str(folder)})
    return folder


KINDS = {"plain": _plain, "built": _built}


def _runtime(python: str, folder: Path) -> Path:
    """Lambda's runtime client, which has a place of its own there too, and bytecode."""
    _say("Lambda's runtime client")
    _install(folder, "--constraint", "requirements-dev.txt", "awslambdaric")
    bytecode.write(folder, python)
    return folder


def _install(folder: Path, *what: str) -> None:
    target = ["--target", str(folder), "--python-version", bytecode.VERSION, "--link-mode", "copy"]
    _run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-python-downloads", "--no-build", *target, *what]
    )


def _run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


@contextmanager
def backends(folder: Path) -> Iterator[dict[str, str]]:
    """An engine with a table and the demo model; what tells a function of them."""
    with engine.start_embedded(folder / "data") as table, demo_model.start() as model:
        create_table(connect(table.endpoint), TABLE)
        yield {
            **ACCOUNT,
            "TABLE_NAME": TABLE,
            "DYNAMODB_ENDPOINT": table.endpoint,
            "OPENAI_API_BASE": f"{model.endpoint}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": demo_model.MODEL,
            "SIGNING_SECRET": "a-secret-of-the-bench-that-is-long-enough",
        }


# ---- Starts ----------------------------------------------------------------------------------------------------------


def _rounds(
    python: str, made: Mapping[Function, Mapping[str, Path]], runtime: Path, environment: Mapping[str, str], rounds: int
) -> dict[Function, dict[str, list[Start]]]:
    """Start all in turn; a first time that is not counted, so that the disk's cache has them."""
    starts: dict[Function, dict[str, list[Start]]] = {
        function: {kind: [] for kind in made[function]} for function in made
    }
    for number in range(rounds + 1):
        for kind in KINDS:
            for function, kinds in made.items():
                started = start(python, function, kinds[kind], runtime, environment)
                if number:
                    starts[function][kind].append(started)
        _say(f"{number} of {rounds} rounds")
    return starts


def start(python: str, function: Function, folder: Path, runtime: Path, environment: Mapping[str, str]) -> Start:
    """Start a function, and wait for its first response."""
    event = json.loads((ROOT / "events" / "chat_first_request.json").read_text())
    event |= {"rawPath": function.path, "routeKey": f"POST {function.path}", "body": function.body}
    event["requestContext"]["http"] |= {"path": function.path}
    given = {
        **environment,
        "LAMBDA_TASK_ROOT": str(folder),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "PYTHONPATH": f"{folder}{os.pathsep}{runtime}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    give_up = time.perf_counter() + LONGEST_SECONDS
    with runtime_api(event) as (address, started):
        command = [python, "-m", "awslambdaric", function.handler]
        with subprocess.Popen(
            command, cwd=folder, env=given | {"AWS_LAMBDA_RUNTIME_API": address}, stdout=subprocess.DEVNULL
        ) as process:
            while not started.done.wait(0.1) and process.poll() is None and time.perf_counter() < give_up:
                pass
            process.kill()
    if not started.done.is_set() or started.status >= 400:
        raise SystemExit(f"{function.name} ({folder.name}) did not answer. What it said stands above.")
    return started


@contextmanager
def runtime_api(event: Mapping[str, Any]) -> Iterator[tuple[str, Start]]:
    """Lambda's side of the runtime: one event, for whoever asks."""
    started = Start(event=event)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if started.initialised:  # for the next event, which never comes
                time.sleep(60)
                return
            started.initialised = time.perf_counter() - started.began
            body = json.dumps(event).encode()
            about = {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": "1",
                "Lambda-Runtime-Deadline-Ms": str(round((time.time() + 28) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:f",
                "Lambda-Runtime-Trace-Id": TRACE,
            }
            self._answer(200, body, about)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            started.answered = time.perf_counter() - started.began
            started.status = json.loads(body).get("statusCode", 500)
            started.done.set()
            self._answer(202, b"{}", {})

        def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in (*headers.items(), ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", started
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """Whoever was killed does not wait for another event."""


# ---- What came of it -------------------------------------------------------------------------------------------------


def _report(function: Function, kinds: Mapping[str, Path], starts: Mapping[str, Sequence[Start]]) -> None:
    """Print the medians, and those of the ratios."""
    head = f"{function.name}, medians of {len(starts['plain'])} starts"
    print(f"\n{head:54}{'MiB':>8}{'initialised':>14}{'answered':>12}")
    for kind, folder in kinds.items():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1024**2
        initialised = statistics.median(map(_initialised, starts[kind]))
        answered = statistics.median(map(_answered, starts[kind]))
        print(f"  {kind:52}{size:8.0f}{initialised:12.2f} s{answered:10.2f} s")
    ratios = [_ratio(starts["built"], starts["plain"], moment) for moment in (_initialised, _answered)]
    print(f"  {'built / plain':60}{ratios[0]:12.2f}  {ratios[1]:10.2f}", flush=True)


def _ratio(one: Sequence[Start], other: Sequence[Start], moment: Callable[[Start], float]) -> float:
    """The median of the ratios within a round."""
    return statistics.median(moment(a) / moment(b) for a, b in zip(one, other, strict=True))


def _initialised(start: Start) -> float:
    return start.initialised


def _answered(start: Start) -> float:
    return start.answered


def _imports(python: str, kinds: Mapping[str, Path]) -> None:
    """Print where the time of the imports goes, by top-level package."""
    spent = {kind: import_times(python, folder) for kind, folder in kinds.items()}
    print(f"\nImports of the chat function, ms{'':26}{'plain':>10}{'built':>10}")
    shown = [name for name, _ in spent["plain"].most_common(SHOWN)]
    for name in shown:
        print(f"  {name:56}{spent['plain'][name]:10.0f}{spent['built'][name]:10.0f}")
    rest = [spent[kind].total() - sum(spent[kind][name] for name in shown) for kind in kinds]
    print(f"  {'all others':56}{rest[0]:10.0f}{rest[1]:10.0f}")
    print(f"  {'all':56}{spent['plain'].total():10.0f}{spent['built'].total():10.0f}", flush=True)


def import_times(python: str, folder: Path) -> Counter[str]:
    """Milliseconds that the modules of each top-level package took, those that they import left out."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import handlers.chat"
    environment = {"LAMBDA_TASK_ROOT": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-S", "-X", "importtime", "-c", code]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    spent = Counter[str]()
    for microseconds, module in SELF_TIME.findall(said):
        spent[module.partition(".")[0]] += int(microseconds)
    return Counter({name: round(took / 1000) for name, took in spent.items()})


def _say(text: str) -> None:
    print(f"coldstart: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
