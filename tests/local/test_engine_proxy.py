"""The engine's proxy lets in whoever knows its address, and nobody else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from local import engine, engine_proxy, guard
from memory.table import TABLE_SCHEMA
from tests.conftest import require

KEY = "Key0fTheEngine"
LISTING = {
    "content-type": "application/x-amz-json-1.0",
    "x-amz-target": "DynamoDB_20120810.ListTables",
    "x-amz-date": "20200101T000000Z",
    "authorization": "AWS4-HMAC-SHA256 Credential=local/20200101/us-east-1/dynamodb/aws4_request, "
    "SignedHeaders=host, Signature=0",
}
"""A request that both engines answer."""


@pytest.fixture(scope="module", params=["dynoxide", pytest.param("dynamodb_local", marks=pytest.mark.once)])
def proxy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[engine_proxy.Proxy]:
    """A proxy to each engine in turn, with a table."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "dynoxide":
        require(engine.missing_dynoxide())
        running = engine.start_dynoxide(folder / "table.sqlite")
    else:
        require(engine.missing_dynamodb_local())
        running = engine.start_dynamodb_local(folder, access_key=KEY)
    with running:
        started = engine_proxy.start(running.endpoint, access_key=KEY)
        with started.server:
            client(started.address).create_table(TableName="talks", **TABLE_SCHEMA)
            yield started


def client(address: str, *, service: str = "dynamodb", access_key: str = "any", region: str = "us-east-1") -> Any:
    return boto3.client(
        service,
        endpoint_url=address,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key="any",
    )


def test_its_address_is_all_that_a_client_needs(proxy: engine_proxy.Proxy) -> None:
    """With any credentials and in any region it finds the same data, on tables and streams."""
    for access_key, region in (("AKIAEXAMPLE", "eu-west-1"), ("local", "us-east-1")):
        options = {"access_key": access_key, "region": region}
        table = client(proxy.address, **options)
        table.put_item(TableName="talks", Item={"pk": {"S": access_key}, "sk": {"S": "state"}})
        stream = table.describe_table(TableName="talks")["Table"]["LatestStreamArn"]
        assert client(proxy.address, service="dynamodbstreams", **options).describe_stream(StreamArn=stream)
    assert {item["pk"]["S"] for item in table.scan(TableName="talks")["Items"]} == {"AKIAEXAMPLE", "local"}


def test_errors_arrive_as_the_engines(proxy: engine_proxy.Proxy) -> None:
    """A client reads them as it does without the proxy."""
    table = client(proxy.address)
    with pytest.raises(table.exceptions.ResourceNotFoundException):
        table.describe_table(TableName="nothing")


@pytest.mark.parametrize("path", ["", "/", "/other", "/?{path}", "/{path}x", "/x/{path}", "//{path}"])
def test_who_does_not_know_the_address_gets_nothing(proxy: engine_proxy.Proxy, path: str) -> None:
    """Not even the right port is enough."""
    secret = proxy.address.rpartition("/")[2]
    response = httpx.post(f"{proxy.server.endpoint}{path.format(path=secret)}", content="{}", headers=LISTING)
    assert response.status_code == 403
    assert "talks" not in response.text


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1"])
def test_no_page_is_told_that_it_may_read(proxy: engine_proxy.Proxy, host: str) -> None:
    """The engine's own word, which lets every page in, gets out neither with a refusal nor with an answer."""
    page = {"origin": "https://evil.example", "host": host, "access-control-request-method": "POST"}
    for address, status in ((proxy.server.endpoint, 403), (proxy.address, 405)):
        asked = httpx.options(address, headers=page)
        assert asked.status_code == status
        assert not any(name.startswith("access-control") for name in asked.headers)
    answered = httpx.post(proxy.address, content="{}", headers=LISTING | page)
    assert answered.json() == {"TableNames": ["talks"]}
    assert not any(name.startswith("access-control") for name in answered.headers)


def test_each_proxy_has_another_address(proxy: engine_proxy.Proxy) -> None:
    """Nobody who knew one knows the next; and what makes it is in no command line."""
    other = engine_proxy.start("http://127.0.0.1:9", access_key=KEY)
    with other.server:
        secrets = [each.address.rpartition("/")[2] for each in (proxy, other)]
        assert len(set(secrets)) == 2
        assert min(map(len, secrets)) >= 32
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                said = command.read_text(errors="replace")
            except OSError:
                continue  # it has ended meanwhile
            assert KEY not in said
            assert not any(secret in said for secret in secrets)


def test_an_engine_that_is_gone_is_an_error_that_clients_know() -> None:
    """503, which they send again for some time and then say so."""
    with engine_proxy.start("http://127.0.0.1:9", access_key=KEY).server as server:
        assert guard.status_of(server.endpoint, "/") == 403
    gone = engine_proxy.start("http://127.0.0.1:9", access_key=KEY)
    with gone.server:
        response = httpx.post(gone.address, content="{}", headers=LISTING)
    assert (response.status_code, response.json()["message"]) == (503, "The engine does not answer (ConnectError).")
