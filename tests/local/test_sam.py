"""`make sam-local`, as far as it goes without Docker; the rest is what `docker` and `sam` do."""

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from local import sam
from local.backends import CannotRun
from local.sam import Docker, declaring, reachable
from tests.cloudformation import CloudFormationLoader

TEMPLATE = Path(__file__).parents[2] / "template.yaml"
ON_THIS_MACHINE = Docker(host="unix:///docker.sock", architecture="x86_64", bridge="127.0.0.1")
ON_A_MACHINE_OF_ITS_OWN = Docker(host="unix:///docker.sock", architecture="arm64", bridge=None)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only program on the PATH, once it is written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder / "docker"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)


@pytest.fixture
def engine() -> Iterator[str]:
    """Something on loopback that answers."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# ---- Without Docker --------------------------------------------------------------------------------------------------


def test_no_docker_is_a_clear_error(docker: Path, tmp_path: Path) -> None:
    """It says what works without, and has started nothing."""
    assert not docker.exists()
    with pytest.raises(CannotRun, match=r"not installed.*make run"):
        sam.run({"LOCAL_DIR": str(tmp_path / "local")}, "sam", [])
    assert not (tmp_path / "local").exists()


def test_a_docker_that_does_not_answer_is_a_clear_error(docker: Path, tmp_path: Path) -> None:
    """It hands on what docker says of it."""
    write(docker, "echo 'Cannot connect to the Docker daemon.' >&2; exit 1")
    with pytest.raises(CannotRun, match=r"(?s)start it, or use `make run`.*Cannot connect to the Docker daemon"):
        sam.run({"LOCAL_DIR": str(tmp_path / "local")}, "sam", [])
    assert not (tmp_path / "local").exists()


def test_an_address_that_is_not_this_machines_is_a_clear_error(engine: str) -> None:
    """A rootless or remote Docker is told as such."""
    elsewhere = Docker(host="tcp://192.0.2.1", architecture="x86_64", bridge="192.0.2.1")
    with pytest.raises(CannotRun, match=r"192\.0\.2\.1.*rootless"), reachable({"DYNAMODB_ENDPOINT": engine}, elsewhere):
        pass


# ---- What docker is asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "bridge"),
    [("172.18.0.1 172.18.0.0/16", "172.18.0.1"), (" 172.17.0.0/16", "172.17.0.1"), (" 172.17.42.1/16", "172.17.0.1")],
)
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere Docker has a machine of its own")
def test_finds_its_address_for_containers(docker: Path, config: str, bridge: str) -> None:
    """The gateway of their network, also where the engine names the network alone: never all addresses."""
    write(docker, f"case $1 in version) echo amd64;; info) echo Debian;; network) echo '{config}';; esac")
    assert Docker.found().bridge == bridge


def test_docker_desktop_has_a_way_back_of_its_own(docker: Path) -> None:
    """No port is opened for it, and the containers run on the machine's own processor."""
    write(docker, "case $1 in version) echo arm64;; info) echo 'Docker Desktop';; network) exit 1;; esac")
    found = Docker.found()
    assert (found.bridge, found.architecture) == (None, "arm64")


def test_sam_uses_the_docker_that_docker_uses(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the current context, unless DOCKER_HOST names another."""
    write(docker, "case $1 in info) echo 'Docker Desktop';; context) echo unix:///of/the/context.sock;; esac")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert Docker.found().host == "unix:///of/the/context.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///named.sock")
    assert Docker.found().host == "unix:///named.sock"


# ---- What containers get ---------------------------------------------------------------------------------------------


def test_containers_reach_what_listens_on_loopback(engine: str) -> None:
    """By a door that is open for as long as it is needed; the path of an address stays."""
    given = {"DYNAMODB_ENDPOINT": engine, "OPENAI_API_BASE": f"{engine}/v1"}
    with reachable(given, ON_THIS_MACHINE) as variables:
        assert set(variables.values()).isdisjoint(given.values())
        assert [httpx.get(url).status_code for url in variables.values()] == [204, 204]
        assert variables["OPENAI_API_BASE"].endswith("/v1")
    with pytest.raises(httpx.ConnectError):
        httpx.get(variables["DYNAMODB_ENDPOINT"])


def test_a_machine_of_its_own_reaches_loopback_by_name(engine: str) -> None:
    """Docker Desktop passes that name on to loopback itself."""
    with reachable({"DYNAMODB_ENDPOINT": engine}, ON_A_MACHINE_OF_ITS_OWN) as variables:
        assert variables["DYNAMODB_ENDPOINT"] == engine.replace("127.0.0.1", "host.docker.internal")


def test_addresses_elsewhere_stay_as_they_are() -> None:
    """Containers reach them as this machine does."""
    given = {"DYNAMODB_ENDPOINT": "https://db.example.test", "OPENAI_API_BASE": "https://models.example.test/v1"}
    with reachable(given, ON_THIS_MACHINE) as variables:
        assert variables == given


def test_only_settings_go_into_a_container() -> None:
    """And nothing else that this machine's environment holds."""
    given = {"TABLE_NAME": "mine", "POWERTOOLS_LOG_LEVEL": "DEBUG", "PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "k"}
    with reachable(given, ON_THIS_MACHINE) as variables:
        assert variables == {"TABLE_NAME": "mine", "POWERTOOLS_LOG_LEVEL": "DEBUG"}


def test_the_copy_declares_the_variables_and_changes_nothing_else() -> None:
    """Every function has them, with the template's own values where it has some; the template itself has none."""
    template = yaml.load(TEMPLATE.read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader
    before = yaml.safe_dump(template)
    names = {"SIGNING_SECRET", "DYNAMODB_ENDPOINT", "TOKEN_LIMIT"}
    copy = declaring(template, names)
    assert yaml.safe_dump(template) == before
    functions = [name for name, one in template["Resources"].items() if one["Type"] == "AWS::Serverless::Function"]
    for name in functions:
        own = template["Resources"][name]["Properties"].pop("Environment", {}).get("Variables", {})
        assert copy["Resources"][name]["Properties"].pop("Environment") == {
            "Variables": dict.fromkeys(names, "") | own,
        }
    assert copy == template
