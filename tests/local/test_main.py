"""`python -m local`, which is what `make run` runs: one command starts everything, one Ctrl-C stops it."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from processes import HERE, eventually, is_running

from local import __main__ as program
from local import backends, engine, guard
from memory.table import TABLE_SCHEMA, connect
from tests.conftest import require


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DYNAMODB_", "AWS_"))}
    found = f"{guard.ROOT}:{HERE}"
    swept = str(folder / "swept")
    return {**kept, "PYTHONPATH": found, "LOCAL_DIR": str(folder), "PORT": "0", "STUB_SWEPT": swept, **more}


class Run:
    """A started program, and what it has printed so far."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - a fixed command
            [sys.executable, HERE / "stub_program.py"],
            cwd=guard.ROOT,
            env=environment(folder, **env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def read_until(self, pattern: str) -> str:
        """The first group of `pattern` in what it prints."""
        assert self.process.stdout is not None
        while (found := re.search(pattern, self.output)) is None:
            line = self.process.stdout.readline()
            assert line, f"it ended without {pattern!r}:\n{self.output}"
            self.output += line
        return found.group(1)

    def end(self) -> int:
        """Wait for the end; all output is read by then."""
        assert self.process.stdout is not None
        if not self.process.stdout.closed:
            self.output += self.process.communicate(timeout=60)[0]
        return self.process.returncode

    def url(self) -> str:
        return self.read_until(r"serving (http://[\d.:]+)")

    def others(self) -> tuple[list[str], list[int]]:
        """The endpoints of the servers and the process ids of the workers that it started."""
        self.url()
        listed = re.search(r"workers: (chat [\d, ]+; sessions [\d, ]+; sweep \d+)\n", self.output)
        assert listed is not None
        return re.findall(r"answers on (\S+)", self.output), [int(pid) for pid in re.findall(r"\d+", listed.group(1))]


@contextlib.contextmanager
def started(folder: Path, **env: str) -> Iterator[Run]:
    run = Run(folder, **env)
    try:
        yield run
    finally:
        run.process.kill()
        run.end()


def is_answering(endpoint: str) -> bool:
    try:
        guard.status_of(endpoint, "/")
    except OSError:
        return False
    return True


@pytest.fixture
def _an_engine() -> None:
    require(engine.missing_dynoxide() and engine.missing_dynamodb_local())


@pytest.mark.usefixtures("_an_engine")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """It serves; then SIGINT and SIGTERM end it with exit code 0, without a traceback, and nothing stays behind."""
    with started(tmp_path / "local") as run:
        endpoints, workers = run.others()
        event = httpx.get(f"{run.url()}/echo").json()
        assert event["version"] == "2.0"
        assert (len(endpoints), len(workers)) == (2, 5)
        run.process.send_signal(number)
        assert run.end() == 0
        assert "Traceback" not in run.output
        assert not any(map(is_answering, endpoints))
        assert not any(map(is_running, workers))


@pytest.mark.usefixtures("_an_engine")
def test_a_signal_during_the_start_stops_everything(tmp_path: Path) -> None:
    """Ctrl-C is obeyed before it serves, too."""
    with started(tmp_path / "local") as run:
        endpoint = run.read_until(r"answers on (\S+)")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 0
        assert "Traceback" not in run.output
        assert not is_answering(endpoint)


@pytest.mark.usefixtures("_an_engine")
def test_a_kill_leaves_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """After a SIGKILL nothing of it is left, and the next run takes the same folder with the same secret."""
    with started(tmp_path / "local") as run:
        endpoints, workers = run.others()
        run.process.kill()
        run.end()
    secret = (tmp_path / "local" / "signing-secret").read_text()
    with started(tmp_path / "local") as run:
        run.url()
        assert not any(map(is_running, workers))
        assert not any(map(is_answering, set(endpoints) - set(run.others()[0])))
        assert (tmp_path / "local" / "signing-secret").read_text() == secret


@pytest.mark.usefixtures("_an_engine")
def test_an_engine_that_dies_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    """Without its table the service is nothing: it says so and stops."""
    with started(tmp_path / "local") as run:
        name = run.read_until(r"rehydrate: (\S[^\n]*) answers on")
        run.url()
        command = ["ps", "-A", "-ww", "-o", "pid=,args="]
        children = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
        victims = [line for line in children if str(tmp_path / "local" / "data") in line and "/bin/sh" not in line]
        os.kill(int(victims[0].split()[0]), signal.SIGKILL)
        assert run.end() == 1
        assert f"{name} stopped by itself" in run.output
        assert "Traceback" not in run.output


@pytest.mark.usefixtures("_an_engine")
def test_no_web_page_reaches_what_runs(tmp_path: Path) -> None:
    """Gateway, engine and model refuse what a page sends that is open in a browser, and let no page read an answer."""
    page = {"origin": "https://evil.example", "content-type": "text/plain"}
    named = "http://localhost:5173"
    with started(tmp_path / "local", CORS_ORIGINS=named) as run:
        (engine_address, model), _ = run.others()
        engine_port = httpx.URL(engine_address).copy_with(path="/")
        for url in (run.url(), f"{model}/v1/chat/completions", engine_port):
            for headers in (page, page | {"host": "evil.example"}):
                response = httpx.post(url, headers=headers, content="{}")
                assert response.status_code == 403
                assert not any(name.startswith("access-control-") for name in response.headers)
        assert httpx.get(f"{model}/requests").status_code == 404
        assert httpx.post(run.url(), headers=page | {"origin": named}).status_code == 200


@pytest.mark.usefixtures("_an_engine")
def test_a_table_of_an_earlier_version_gets_its_stream(tmp_path: Path) -> None:
    """Its data stay, and what is deleted from now on reaches the sweeper."""
    key = {"pk": {"S": "old"}, "sk": {"S": "state"}}
    with engine.start_embedded(tmp_path / "data") as running:
        client = connect(running.endpoint)
        client.create_table(
            TableName="rehydrate",
            **{name: value for name, value in TABLE_SCHEMA.items() if name != "StreamSpecification"},
        )
        client.put_item(TableName="rehydrate", Item=key)
    with started(tmp_path) as run:
        client = connect(run.others()[0][0])
        client.delete_item(TableName="rehydrate", Key=key)
        swept = tmp_path / "swept"
        eventually(lambda: swept.exists() and '"REMOVE"' in swept.read_text(), "the sweeper was told")


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    """Before anything is started it names the port and how to take another."""
    with socket.socket() as other:
        other.bind((guard.LOOPBACK, 0))
        other.listen()
        port = str(other.getsockname()[1])
        with started(tmp_path / "local", PORT=port) as run:
            assert run.end() == 1
    assert f"Port {port} cannot be used" in run.output
    assert "PORT=3000" in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "local" / "data").exists()


def test_a_held_lock_is_a_clear_error(tmp_path: Path) -> None:
    """It names the folder, who holds it, and how to use another."""
    with (tmp_path / "lock").open("w") as lock:
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with started(tmp_path) as run:
            assert run.end() == 1
    assert f"process {os.getpid()}) uses {tmp_path}" in run.output
    assert "LOCAL_DIR=" in run.output
    assert "Traceback" not in run.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("WORKERS", "0"),
        ("TIMEOUT_SECONDS", "soon"),
        ("TIMEOUT_SECONDS", "15"),
        ("TOKEN_LIMIT", "abc"),
        ("CONTEXT_WINDOW", "8192"),
        ("DYNAMODB_ENDPOINT", "http://127.0.0.1:9"),
        ("LOCAL_DIR", "README.md"),
    ],
)
def test_a_wrong_setting_is_a_clear_error(tmp_path: Path, name: str, value: str) -> None:
    """What makes no sense is told at the start, by its name, and not by every request."""
    with pytest.raises(backends.CannotRun, match=name):
        program.run(environment(tmp_path, **{name: value}))


def test_the_start_says_who_answers(tmp_path: Path) -> None:
    """A key in the environment is not used in silence."""
    with started(tmp_path / "local", OPENAI_API_KEY="k", OPENAI_MODEL="some-model") as run:
        run.url()
    assert "some-model at OpenAI answers (unset OPENAI_API_KEY" in run.output


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    """Only its owner can read it, and it stays the same."""
    secret = backends.signing_secret(tmp_path)
    assert len(secret) >= 64
    assert stat.S_IMODE((tmp_path / "signing-secret").stat().st_mode) == 0o600
    assert backends.signing_secret(tmp_path) == secret


def test_the_engines_key_is_made_once_and_private(tmp_path: Path) -> None:
    """DynamoDB Local takes letters and digits alone, and keeps the data under them."""
    key = backends.engine_key(tmp_path)
    assert re.fullmatch(r"[A-Za-z0-9]{32,}", key)
    assert stat.S_IMODE((tmp_path / "engine-key").stat().st_mode) == 0o600
    assert backends.engine_key(tmp_path) == key


def test_what_the_user_set_wins() -> None:
    """Defaults fill only what is open; empty values count as open."""
    given = {"TABLE_NAME": "mine", "SIGNING_SECRET": "s", "IDENTITY_SOURCES": "", "OPENAI_API_KEY": "k"}
    made = backends.function_environment(given, endpoint="http://127.0.0.1:1", model_endpoint=None, secret="other")
    assert (made["TABLE_NAME"], made["SIGNING_SECRET"], made["OPENAI_API_KEY"]) == ("mine", "s", "k")
    assert (made["IDENTITY_SOURCES"], made["COOKIE_SECURE"]) == ("token", "false")
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= made.keys()
    assert "OPENAI_MODEL" not in made


def test_an_engine_elsewhere_gets_no_made_up_credentials() -> None:
    """Made-up credentials are for engines on this machine only."""
    made = backends.function_environment({}, endpoint="https://db.example.test", model_endpoint=None, secret="s")
    assert not [name for name in made if name.startswith("AWS_")]


def test_the_demo_model_is_handed_to_the_workers() -> None:
    """Base URL, a key and the model's name go together."""
    made = backends.function_environment({}, endpoint="http://127.0.0.1:1", model_endpoint="http://m", secret="s")
    assert (made["OPENAI_API_BASE"], made["OPENAI_API_KEY"], made["OPENAI_MODEL"]) == ("http://m/v1", "demo", "demo")


def test_lines_on_a_console_are_for_people() -> None:
    """The workers' lines carry no metrics here, unless somebody asks for them."""
    for given, disabled in (({}, "true"), ({"POWERTOOLS_METRICS_DISABLED": "false"}, "false")):
        made = backends.function_environment(given, endpoint="http://127.0.0.1:1", model_endpoint=None, secret="s")
        assert made["POWERTOOLS_METRICS_DISABLED"] == disabled
