"""A snapshot of the chat function, and the instances that Lambda starts from it 40 days later."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from handlers.identity import SessionTokens
from local import engine
from memory.turns import utc_now
from tests.conftest import TABLE, Store, require, store_at
from tests.wire import forwarded

ROOT = Path(__file__).parents[2]
AGE = timedelta(days=40)
"""Of the snapshot when instances start from it."""
LIFE = timedelta(days=30)
"""Of a session token."""

pytestmark = [
    pytest.mark.once,  # on the Python that Lambda runs
    pytest.mark.skipif(
        sys.platform != "linux", reason="the hooks are called by Lambda's own runtime, which is for Linux"
    ),
    pytest.mark.xdist_group("snapshot"),  # two processes for all of them
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that reached somebody: on whose word, and from which port."""

    what: str
    key: str
    port: int


@dataclass(kw_only=True)
class Account:
    """Everything that an instance can reach: the endpoint of its credentials, Secrets Manager, the table, the model."""

    table: str
    model: str
    access_key: str = "BEFORE"
    secrets: dict[str, str] = field(
        default_factory=lambda: {"model": "key-before", "signing": "signed-before-with-a-key-that-is-long-enough"}
    )
    asked: list[Asked] = field(default_factory=list)

    def rotate(self, *secrets: str) -> None:
        """New credentials, and new values of secrets."""
        self.access_key = "AFTER"
        new = {
            "model": "key-after",
            "signing": "signed-after-with-a-key-that-is-long-enough signed-before-with-a-key-that-is-long-enough",
        }
        self.secrets |= {name: new[name] for name in secrets}

    def of(self, what: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.what == what]


@contextmanager
def serving(account: Account) -> Iterator[str]:
    """The account's endpoint, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            self._note("credentials", self.headers["Authorization"])
            credentials = {
                "AccessKeyId": account.access_key,
                "SecretAccessKey": "none",
                "Token": "none",
                "Expiration": f"{utc_now() + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}",
            }
            self._answer(json.dumps(credentials).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            target, said = self.headers.get("X-Amz-Target"), self.headers["Authorization"]
            if target is None:
                self._note("model", said.removeprefix("Bearer "))
                self._forward(account.model, body)
                return
            key = re.findall(r"Credential=(\w+)/", said)[0]
            if target.startswith("secretsmanager."):
                self._note("secret", key)
                name = json.loads(body)["SecretId"]
                self._answer(json.dumps({"Name": name, "SecretString": account.secrets[name]}).encode())
            else:
                self._note("table", key)
                self._forward(account.table, body)

        def _note(self, what: str, key: str) -> None:
            account.asked.append(Asked(what=what, key=key, port=self.client_address[1]))

        def _forward(self, endpoint: str, body: bytes) -> None:
            status, headers, answer = forwarded(endpoint, self.path, dict(self.headers), body)
            kinds = [value for name, value in headers.items() if name.lower() == "content-type"]
            self._answer(answer, kinds[0], status)

        def _answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
            self.send_response_only(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class Story:
    """A snapshot, and what came of it."""

    snapshot: dict[str, Any]
    before: list[Asked]
    """What was asked of anybody before the snapshot."""
    account: Account
    """What was asked since."""
    instances: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    """Of the instances' logs, one for each turn."""
    stored: list[dict[str, Any]]
    """The turns in the table."""

    def differ(self, *names: str) -> bool:
        """Whether no value of these names is in what two instances report."""
        values = [value for instance in self.instances for name in names for value in instance[name]]
        return len(values) > len(self.instances) and len(set(values)) == len(values)


@pytest.fixture(scope="module", params=["fresh", "used"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo: str) -> Iterator[Story]:
    """Of a process that did nothing but import the handler, and of one that had used everything before the snapshot."""
    require(engine.missing_dynoxide())
    table = engine.start_dynoxide(tmp_path_factory.mktemp("snapshot") / "table.sqlite")
    account = Account(table=table.endpoint, model=demo)
    with serving(account) as endpoint:
        yield _told(account, endpoint, store_at(table.endpoint), request.param)
    table.stop()


def _told(account: Account, endpoint: str, store: Store, kind: str) -> Story:
    process = subprocess.Popen(  # noqa: S603 - a program of the tests, from a fixed list
        [sys.executable, "-m", "tests.handlers.snapshot_program", kind],
        cwd=ROOT,
        env=_environment(endpoint),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    with process:
        lines = iter(process.stdout.readline, "")
        snapshot = next(found for found in map(json.loads, lines) if found.get("report") == "snapshot")
        before, account.asked = account.asked, []
        # A model's key that stays does not bring another client with it.
        account.rotate("signing", *(["model"] if kind == "fresh" else []))
        expired = SessionTokens(
            ["signed-before-with-a-key-that-is-long-enough"], life=LIFE, clock=lambda: utc_now() - AGE
        ).mint("somebody")
        process.stdin.write(json.dumps({"expired_token": expired}) + "\n")
        process.stdin.close()
        told = [json.loads(line) for line in lines]
    assert process.returncode == 0
    return Story(
        snapshot=snapshot,
        before=before,
        account=account,
        instances=[found for found in told if found.get("report") == "instance"],
        lines=[found for found in told if found.get("message") == "turn"],
        stored=[item for item in store.client.scan(TableName=TABLE)["Items"] if item["sk"]["S"].startswith("TURN#")],
    )


def _environment(endpoint: str) -> dict[str, str]:
    """What Lambda gives a function with SnapStart: no keys, no log stream, and where to ask for credentials."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "OPENAI_", "SIGNING_"))}
    return ours | {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{endpoint}/credentials",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "of-the-function",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": endpoint,
        "TABLE_NAME": TABLE,
        "DYNAMODB_ENDPOINT": endpoint,
        "OPENAI_MODEL": "demo",
        "OPENAI_API_BASE": f"{endpoint}/v1",
        "OPENAI_API_KEY_SECRET": "model",
        "SIGNING_SECRET_ARN": "signing",
    }


def test_the_instances_answer(story: Story) -> None:
    """Each takes turns like any other process, and knows the conversation that it began."""
    assert [(told["first"], told["second"]["turn"]) for told in story.instances] == [(200, 2), (200, 2)]
    assert all("Ada" in told["second"]["answer"] for told in story.instances)


@pytest.mark.parametrize("story", ["fresh"], indirect=True)
def test_nobody_is_asked_for_anything_before_the_snapshot(story: Story) -> None:
    """What is done for all instances reads no secret, looks for no credential, leaves no connection and no thread."""
    assert story.before == []
    assert story.snapshot["connected"] == []
    assert story.snapshot["streams"] == []
    assert story.snapshot["threads"] == ["MainThread"]


def test_the_one_generator_of_random_numbers_is_pythons(story: Story) -> None:
    """No package keeps another one that is used in Lambda, and that nobody would seed anew."""
    assert story.snapshot["generators"] == 1


def test_no_random_number_repeats(story: Story) -> None:
    """The seeds of the snapshot are gone: instances that wait for each other do not wait in step."""
    assert story.differ("random")
    assert story.differ("numpy")


def test_no_id_repeats(story: Story) -> None:
    """Neither a made-up one, nor a caller's, nor the name of an instance, nor the token of a claim."""
    assert story.differ("ids")
    assert len({told["token"] for told in story.instances}) == 2
    assert sorted(Counter(item["pk"]["S"] for item in story.stored).values())[-2:] == [2, 2]
    assert len({line["instance"] for line in story.lines if line["outcome"] == "answered"}) == 2
    assert len({item["token"]["S"] for item in story.stored}) == len(story.stored)


def test_no_credential_of_before_signs_anything(story: Story) -> None:
    """Each instance asks for credentials of its own, and signs with them, however long the old ones would hold."""
    assert {asked.key for asked in story.account.of("table")} == {"AFTER"}
    assert {asked.key for asked in story.account.of("secret")} == {"AFTER"}
    assert len(story.account.of("credentials")) >= len(story.instances)


def test_no_secret_of_before_is_used(story: Story) -> None:
    """What was rotated since the snapshot is used in its new value by the first turn."""
    assert {asked.key for asked in story.account.of("model")} == {story.account.secrets["model"]}
    tokens = SessionTokens(["signed-after-with-a-key-that-is-long-enough"], life=LIFE)
    assert all(tokens.read(told["token"]) for told in story.instances)


def test_no_connection_of_before_is_used(story: Story) -> None:
    """Whatever the snapshot had open, instances hold no socket of it, and open their own."""
    assert [told["sockets"] for told in story.instances] == [[], []]
    before = {asked.port for asked in story.before}
    assert before.isdisjoint(asked.port for asked in story.account.asked)


def test_a_token_that_expired_since_the_snapshot_is_refused(story: Story) -> None:
    """No instance goes by the time of the snapshot."""
    assert {told["expired"]["statusCode"] for told in story.instances} == {401}
    assert all("it has expired" in told["expired"]["body"] for told in story.instances)
