"""An embedded engine answers, keeps its data, and never outlives the process that started it."""

import contextlib
import ipaddress
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from processes import eventually

from local import engine, guard
from tests.conftest import require

ENGINES = {
    "dynoxide": (engine.start_dynoxide, engine.missing_dynoxide),
    "dynamodb_local": (engine.start_dynamodb_local, engine.missing_dynamodb_local),
}


@pytest.fixture(params=["dynoxide", pytest.param("dynamodb_local", marks=pytest.mark.once)])
def start(request: pytest.FixtureRequest) -> Callable[..., engine.Engine]:
    starter, missing = ENGINES[request.param]
    require(missing())
    return starter


@contextlib.contextmanager
def client(endpoint: str, access_key: str = "local") -> Iterator[Any]:
    made = boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key="local",
    )
    with contextlib.closing(made):
        yield made


def is_answering(endpoint: str) -> bool:
    try:
        guard.status_of(endpoint, "/")
    except OSError:
        return False
    return True


def test_data_outlive_the_engine(start: Callable[..., engine.Engine], tmp_path: Path) -> None:
    """What was written is there for the next engine on the same path, and a stopped engine answers no more."""
    with start(tmp_path / "data") as running, client(running.endpoint) as table:
        table.create_table(
            TableName="kept",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        table.put_item(TableName="kept", Item={"pk": {"S": "a"}})
    assert not is_answering(running.endpoint)
    with start(tmp_path / "data") as running, client(running.endpoint) as table:
        assert table.get_item(TableName="kept", Key={"pk": {"S": "a"}})["Item"] == {"pk": {"S": "a"}}


def test_dynoxide_has_an_address_that_no_page_can_guess(tmp_path: Path) -> None:
    """It lets every web page in that finds it: it is at another address of loopback each time, and at no usual one."""
    require(engine.missing_dynoxide())
    with engine.start_dynoxide(tmp_path / "a") as one, engine.start_dynoxide(tmp_path / "b") as other:
        addresses = [ipaddress.ip_address(str(urlsplit(each.endpoint).hostname)) for each in (one, other)]
        assert all(address.is_loopback for address in addresses)
        assert addresses[0] != addresses[1]
        for each in (one, other):
            assert not is_answering(f"http://{guard.LOOPBACK}:{urlsplit(each.endpoint).port}")


@pytest.mark.once
def test_dynamodb_local_shows_its_data_to_one_access_key(tmp_path: Path) -> None:
    """It listens on every interface; to whoever lacks the key it has no table. What was kept before stays."""
    require(engine.missing_dynamodb_local())
    schema: Any = {
        "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}],
        "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
        "BillingMode": "PAY_PER_REQUEST",
    }
    with engine.start_dynamodb_local(tmp_path) as running, client(running.endpoint) as table:
        table.create_table(TableName="kept", **schema)
    for _ in range(2):
        with engine.start_dynamodb_local(tmp_path, access_key="Secret1") as running:
            with client(running.endpoint, access_key="Secret1") as table:
                assert table.list_tables()["TableNames"] == ["kept"]
            for stranger in ("local", "secret1", "Secret"):
                with client(running.endpoint, access_key=stranger) as table:
                    assert table.list_tables()["TableNames"] == []


def test_an_engine_dies_with_a_killed_parent(start: Callable[..., engine.Engine], tmp_path: Path) -> None:
    """A SIGKILL of the process that started it, which can do nothing about it, ends the engine."""
    script = (
        "import sys; from local import engine\n"
        f"print(engine.{start.__name__}(sys.argv[1]).endpoint, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(  # noqa: S603 - a fixed command
        [sys.executable, "-c", script, str(tmp_path / "data")],
        cwd=guard.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert is_answering(endpoint)
        parent.kill()
    eventually(lambda: not is_answering(endpoint), "the engine is gone")


def test_a_failed_start_shows_the_engines_words(tmp_path: Path) -> None:
    """The error holds the last lines that the engine wrote."""
    require(engine.missing_dynoxide())
    file = tmp_path / "data"
    file.write_text("this is no database" * 100)
    with pytest.raises(engine.ServerStartError, match="SQLite"):
        engine.start_dynoxide(file)


def test_the_engine_that_has_the_data_is_the_one_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dynoxide's data are and dynoxide is not, no other engine starts with an empty database."""
    (tmp_path / "dynoxide.sqlite").touch()
    monkeypatch.setattr(engine, "missing_dynoxide", lambda: "No dynoxide: install it.")
    with pytest.raises(engine.EngineMissing, match="install it"):
        engine.start_embedded(tmp_path)


def test_without_any_engine_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what is lacking for each engine, and the setting that needs none."""
    monkeypatch.setattr(engine, "missing_dynoxide", lambda: "No dynoxide.")
    monkeypatch.setattr(engine, "missing_dynamodb_local", lambda: "No Java.")
    with pytest.raises(engine.EngineMissing, match=r"No dynoxide\. No Java\. .*DYNAMODB_ENDPOINT"):
        engine.start_embedded(tmp_path)


def test_missing_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Java is told which one to install."""
    monkeypatch.setattr(engine, "_dynamodb_local_folder", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "install Java 17" in (engine.missing_dynamodb_local() or "")


def test_a_server_that_exits_during_start_is_an_error() -> None:
    """Its exit code and its words are in the error."""
    with pytest.raises(guard.ServerStartError, match="exited with 7 during start:\nno such luck"):
        guard.start(
            "It",
            lambda _: ["/bin/sh", "-c", "echo no such luck; exit 7"],
            lambda endpoint: guard.status_of(endpoint, "/") == 200,
            log=None,
        )
