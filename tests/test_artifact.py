"""What is deployed: the folders that `sam build` fills, run by the Python that Lambda has, with nothing else around."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from handlers import openapi
from local import demo_model
from memory import codec
from memory.turns import Session
from platforms import bytecode
from tests.conftest import TABLE, event_named, items_of, require, store_at

ROOT = Path(__file__).parent.parent
PROGRAM = Path(__file__).parent / "artifact_program.py"
NAMES = Path(__file__).parent / "artifact_names.py"
MOST_MIB = {"ChatFunction": 165, "SessionsFunction": 30}
"""Of 250 that Lambda unpacks: what an agent's own packages may add is the rest."""
ELF_MACHINE = {"x86_64": 62, "arm64": 183}
UNCHECKED_HASH = 1
PYTHON = bytecode.find_python()

pytestmark = [pytest.mark.once, pytest.mark.timeout(400), pytest.mark.xdist_group("artifact")]


def build(name: str, folder: Path, *, architecture: str = "x86_64") -> Path:
    """A function's artifact, made as `sam build` has it made."""
    command = ["make", "--makefile", f"platforms/{architecture}/Makefile", f"build-{name}"]
    environment = {**os.environ, "ARTIFACTS_DIR": str(folder)}
    folder.mkdir(parents=True)
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own Makefile
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifacts of two functions; the sweep function's is made as that of the sessions function."""
    require(None if PYTHON else bytecode.WITHOUT)
    folder = tmp_path_factory.mktemp("artifacts")
    return {name: build(name, folder / name) for name in ("ChatFunction", "SessionsFunction")}


@pytest.fixture(params=["ChatFunction", "SessionsFunction"])
def artifact(artifacts: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return artifacts[request.param]


class Function:
    """A process that answers events with a handler of an artifact."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def invoke(self, event: Any) -> dict[str, Any]:
        """What the handler makes of an event."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        lines = []
        for line in self._process.stdout:
            if '"result"' in line[:10]:
                result: dict[str, Any] = json.loads(line)["result"]
                assert result.get("statusCode", 200) < 500, lines
                return result
            lines.append(line)
        raise AssertionError(f"the process has ended: {lines}")

    def send(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any, str | None]:
        """The status, body and session token that a request is answered with."""
        event = event_named("chat_first_request") | {"rawPath": path, "routeKey": f"{method} {path}"}
        event["requestContext"]["http"] |= {"method": method, "path": path}
        event["body"] = None if body is None else json.dumps(body)
        if token:
            event["headers"]["x-session-token"] = token
        result = self.invoke(event)
        kind = {name.lower(): value for name, value in result["headers"].items()}
        text = result.get("body") or "null"
        read = text if "jsonl" in kind.get("content-type", "") else json.loads(text)
        return result["statusCode"], read, kind.get("x-session-token", token)


@contextmanager
def running(folder: Path, handler: str, environment: dict[str, str]) -> Iterator[Function]:
    """A function of an artifact, in a Python that has no packages of its own."""
    command = [str(PYTHON), "-I", "-S", str(PROGRAM), str(folder), handler]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd="/", env=environment, **pipes) as process:  # noqa: S603 - what was built
        yield Function(process)
        process.stdin.close()  # type: ignore[union-attr]
        process.stdout.read()  # type: ignore[union-attr]
    assert process.returncode == 0


@pytest.fixture
def environment(dynoxide: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """What Lambda would set, with an engine and a model on this machine."""
    store_at(dynoxide)
    with demo_model.start() as demo:
        yield {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_LAMBDA_FUNCTION_NAME": "rehydrate",
            "LAMBDA_TASK_ROOT": "/var/task",
            "_X_AMZN_TRACE_ID": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
            "HOME": "/nonexistent",
            "TMPDIR": str(tmp_path),
            "TABLE_NAME": TABLE,
            "DYNAMODB_ENDPOINT": dynoxide,
            "OPENAI_API_BASE": f"{demo.endpoint}/v1",
            "OPENAI_API_KEY": "none",
            "OPENAI_MODEL": "demo",
            "SIGNING_SECRET": "a-secret-of-the-tests-that-is-long-enough",
        }


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder, with size and time."""
    found = ((file, file.stat()) for file in folder.rglob("*"))
    return {str(file): (state.st_size, state.st_mtime_ns) for file, state in found}


def test_every_route_works_from_the_artifacts_alone(artifacts: dict[str, Path], environment: dict[str, str]) -> None:
    """Each answers as it does here, a tool and a trace included; nothing is written, so that nothing is compiled anew,
    and nothing is looked for on another machine."""
    before = {name: listing(folder) for name, folder in artifacts.items()}
    asked = set()
    with (
        running(artifacts["ChatFunction"], "handlers.chat.handler", environment) as chat,
        running(artifacts["SessionsFunction"], "handlers.sessions.handler", environment) as sessions,
    ):
        asked |= {("POST", "/chat"), ("POST", "/sessions/{id}/turns/{n}/regenerate")}
        status, body, token = chat.send("POST", "/chat", {"message": "My name is Ada. What time is it?"})
        assert (status, "The tool says" in body["answer"]) == (200, True)
        assert chat.send("POST", "/chat", {"message": "What is my name?"}, token)[1]["answer"] == "Your name is Ada."
        assert chat.send("POST", "/sessions/default/turns/2/regenerate", None, token)[0] == 200
        for (method, path), expected in {
            ("POST", "/sessions"): 201,
            ("GET", "/sessions"): 200,
            ("GET", "/sessions/{id}"): 200,
            ("PATCH", "/sessions/{id}"): 200,
            ("GET", "/sessions/{id}/turns"): 200,
            ("GET", "/sessions/{id}/export"): 200,
            ("POST", "/sessions/{id}/fork"): 201,
            ("DELETE", "/sessions/{id}"): 204,
            ("DELETE", "/sessions"): 204,
            ("GET", "/openapi.json"): 200,
        }.items():
            asked.add((method, path))
            given = {"title": "talk"} if method == "PATCH" else None
            assert sessions.send(method, path.replace("{id}", "default"), given, token)[0] == expected, (method, path)
    assert asked == set(openapi.OPERATIONS)
    assert {name: listing(folder) for name, folder in artifacts.items()} == before


def test_the_sweeper_works_from_its_artifact_alone(
    artifacts: dict[str, Path], environment: dict[str, str], dynoxide: str
) -> None:
    """It has the packages of the sessions function, and removes what is left of a session."""
    store = store_at(dynoxide)
    session = Session(owner=store.owner, id="deleted")
    left = {"pk": {"S": codec.partition(session)}, "sk": {"S": codec.turn_key(1, 1)}}
    store.client.put_item(TableName=TABLE, Item=left)
    event = event_named("sweep_deleted_session")
    event["Records"][0]["eventName"] = "REMOVE"
    event["Records"][0]["dynamodb"]["Keys"]["pk"]["S"] = codec.partition(session)
    with running(artifacts["SessionsFunction"], "handlers.sweep.handler", environment) as sweep:
        assert sweep.invoke(event) == {"batchItemFailures": []}
    assert codec.turn_key(1, 1) not in items_of(store, session)


def test_whatever_an_agent_may_be_made_of_is_there(artifact: Path) -> None:
    """Each name that a front imports late can be had: another kind of agent finds its parts, and all that they read."""
    before = listing(artifact)
    command = [str(PYTHON), "-I", "-S", str(NAMES), str(artifact)]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - a program of the tests
    assert asked.stdout.splitlines() == []
    assert listing(artifact) == before


def test_it_fits(artifact: Path) -> None:
    """What is unpacked leaves room for the packages of somebody's own agent."""
    size = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
    assert size / 1024**2 <= MOST_MIB[artifact.name]


def test_every_module_has_bytecode_that_is_taken_as_it_is(artifact: Path) -> None:
    """Lambda's files have other times than the builder's, so no time may matter; and paths are those of Lambda."""
    modules = [file for file in artifact.rglob("*.py") if "{{" not in file.name]
    compiled = [file.parent / "__pycache__" / f"{file.stem}.cpython-313.pyc" for file in modules]
    lacking = [str(file) for file in compiled if not file.exists()]
    assert not lacking
    assert {int.from_bytes(file.read_bytes()[4:8], "little") for file in compiled} == {UNCHECKED_HASH}
    front = (artifact / "handlers" / "__pycache__" / "front.cpython-313.pyc").read_bytes()
    assert b"/var/task/handlers/front.py" in front
    assert str(artifact).encode() not in front


@pytest.mark.parametrize("architecture", ELF_MACHINE)
def test_it_is_for_the_processor_that_was_asked_for(
    artifacts: dict[str, Path], tmp_path: Path, architecture: str
) -> None:
    """Each library in machine code is of the architecture, whatever machine builds it."""
    folder = artifacts["SessionsFunction"]
    if architecture != "x86_64":
        folder = build("SessionsFunction", tmp_path / "function", architecture=architecture)
    machines = {int.from_bytes(library.read_bytes()[18:20], "little") for library in folder.rglob("*.so")}
    assert machines == {ELF_MACHINE[architecture]}
