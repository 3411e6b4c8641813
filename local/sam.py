"""What `make sam-local` runs: the stack in Docker, by `sam local start-api`, on the backends of `make run`.

`sam` hands its own environment's variables to a container, but only those that the template declares, and the template
declares none that only a machine like this one needs. So it gets a copy of the built template which does. The build has
a folder of its own: what `sam deploy` takes knows nothing of all this.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from handlers.settings import Settings
from local import backends, callers, door, guard
from local.backends import CannotRun, say

BUILD = Path(".aws-sam") / "local"
_TEMPLATE = BUILD / "template.yaml"
_COPY = BUILD / "declaring.yaml"
_DOCKER_SECONDS = 30.0
_WAKE_SECONDS = 120.0
_INSTEAD = "or use `make run`, which needs no Docker."
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Docker:
    """The engine that runs the containers."""

    host: str
    """Where it is, since sam knows no contexts of docker's."""
    architecture: str
    bridge: str | None
    """This machine's address for containers; None where `host.docker.internal` leads to its loopback."""

    @classmethod
    def found(cls) -> Docker:
        """Ask the engine. Raises CannotRun when there is none."""
        machine = _docker("version", "--format={{.Server.Arch}}")
        kind = _docker("info", "--format={{.OperatingSystem}}")
        # On macOS, and in Docker Desktop everywhere, the engine has a machine of its own, with a way back to this one.
        has_own_machine = sys.platform == "darwin" or kind == "Docker Desktop"
        return cls(
            host=os.environ.get("DOCKER_HOST") or _docker("context", "inspect", "--format={{.Endpoints.docker.Host}}"),
            architecture="arm64" if machine == "arm64" else "x86_64",
            bridge=None if has_own_machine else _bridge(),
        )

    @property
    def parameters(self) -> str:
        """What the template has to be told, so that the containers run natively."""
        return f"Architecture={self.architecture}"


def run(env: Mapping[str, str], sam: str, arguments: Sequence[str]) -> None:
    """Build, start everything, serve until a signal, stop everything. Raises CannotRun."""
    folder = Path(env.get("LOCAL_DIR") or ".local")
    port = int(backends.number(env, "PORT", 3000, lowest=1, highest=65535))
    settings = backends.checked_settings(env)
    docker = Docker.found()
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(backends.locked(folder))
        with backends.bound(port):  # so that a taken port is told before all the building
            _build(sam, docker)
        stack.callback(say, "stopped")
        them = stack.enter_context(backends.started(env, settings, folder=folder, lock=lock))
        variables = stack.enter_context(reachable(them.environment, docker))
        copy = declaring(yaml.safe_load(_TEMPLATE.read_text()), variables)
        _COPY.write_text(yaml.safe_dump(copy, sort_keys=False))
        say("starting the containers (the first time, sam fetches their image)")
        command = [*_start_api(sam, port, docker), *arguments]
        sam_env = {**them.environment, **variables, "DOCKER_HOST": docker.host}
        api = stack.enter_context(_started(command, sam_env))
        _wait_until_it_listens(api, port)
        _wake(port)
        backends.invite(port)
        _serve(api, them.servers)


def _docker(*arguments: str) -> str:
    """What docker answers. Raises CannotRun."""
    try:
        asked = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=_DOCKER_SECONDS)  # noqa: S607 - the user's own
    except FileNotFoundError:
        raise CannotRun(f"Docker is not installed: install it, {_INSTEAD}") from None
    except subprocess.TimeoutExpired:
        raise CannotRun(f"Docker did not answer within {_DOCKER_SECONDS:.0f} s: start it anew, {_INSTEAD}") from None
    if asked.returncode:
        raise CannotRun(f"Docker does not answer: start it, {_INSTEAD}\n{asked.stderr.strip()}")
    return asked.stdout.strip()


def _bridge() -> str:
    """The address of this machine in the network of the containers."""
    config = "{{with index .IPAM.Config 0}}{{.Gateway}} {{.Subnet}}{{end}}"
    *gateway, subnet = _docker("network", "inspect", "bridge", f"--format={config}").split()
    # An engine that was never told the gateway takes the first address, and does not say so.
    return gateway[0] if gateway else str(ipaddress.ip_network(subnet, strict=False)[1])


def _build(sam: str, docker: Docker) -> None:
    say(f"building for {docker.architecture} in {BUILD}")
    command = [sam, "build", "--build-dir", str(BUILD), "--parameter-overrides", docker.parameters]
    # It says a lot, all of it on stderr, and nothing of it matters unless it fails.
    built = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if built.returncode:
        raise CannotRun(f"sam could not build:\n{built.stdout}")


@contextlib.contextmanager
def reachable(environment: Mapping[str, str], docker: Docker) -> Iterator[dict[str, str]]:
    """The settings for a container: where they name this machine's loopback, it gets there by another address.

    Raises CannotRun.
    """
    names = {name.upper() for name in Settings.model_fields} | {"POWERTOOLS_LOG_LEVEL", "POWERTOOLS_METRICS_DISABLED"}
    variables = {name: value for name, value in environment.items() if name in names}
    with contextlib.ExitStack() as stack:
        for name in ("DYNAMODB_ENDPOINT", "OPENAI_API_BASE"):
            url = urlsplit(variables.get(name, ""))
            if url.hostname in callers.LOOPBACK_NAMES:
                host, port = "host.docker.internal", url.port or _PORTS[url.scheme]
                if docker.bridge is not None:
                    host, port = docker.bridge, stack.enter_context(_door(docker.bridge, url.hostname, port))
                variables[name] = url._replace(netloc=f"{host}:{port}").geturl()
                say(f"containers reach {name} at {variables[name]}")
        yield variables


@contextlib.contextmanager
def _door(bridge: str, host: str, port: int) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(door.opened(bridge, onward=(host, port)))
        except OSError as error:
            raise CannotRun(
                f"Containers are to reach this machine at {bridge}, the address of Docker's bridge, and it cannot be "
                f"listened on: {error.strerror}. Is Docker rootless, or on another machine? Use one that is neither, "
                f"{_INSTEAD}"
            ) from None
        yield opened


def declaring(template: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A copy of a built template in which every function has these environment variables, empty, beside its own."""
    copy = deepcopy(template)
    for resource in copy["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            environment = resource["Properties"].setdefault("Environment", {})
            environment["Variables"] = dict.fromkeys(names, "") | environment.get("Variables", {})
    return copy


def _start_api(sam: str, port: int, docker: Docker) -> list[str]:
    return [
        *(sam, "local", "start-api", "--template", str(_COPY), "--parameter-overrides", docker.parameters),
        *("--host", guard.LOOPBACK, "--port", str(port)),
        # Else each request would get a container of its own, and wait for it: no instance would serve two of them.
        *("--warm-containers", "EAGER", "--no-watch"),
    ]


@contextlib.contextmanager
def _started(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run sam until the end of the context, or of this process, and remove its containers."""
    _remove_containers()
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_containers)  # those that it had begun to start
        process = stack.enter_context(guard.running(command, env=env))
        stack.callback(_remove_containers)  # which it would do itself, but one after the other, giving each 3 s
        yield process


def _remove_containers() -> None:
    """Remove the containers that run what was built here, also those of a run that was killed."""
    for function in BUILD.resolve().iterdir():
        if ours := _docker("ps", "--all", "--quiet", "--filter", f"volume={function}").split():
            _docker("rm", "--force", *ours)


def _wait_until_it_listens(api: subprocess.Popen[bytes], port: int) -> None:
    while not backends.is_listening(port):
        _check(api)
        time.sleep(0.2)


def _wake(port: int) -> None:
    """Have the functions imported before there is a turn, whose time that would take. Raises CannotRun."""
    say("waking the functions")
    url = f"http://{guard.LOOPBACK}:{port}"
    try:
        httpx.post(f"{url}/chat", json={}, timeout=_WAKE_SECONDS)  # 400: it says nothing
        httpx.get(f"{url}/openapi.json", timeout=_WAKE_SECONDS)
    except httpx.HTTPError as error:
        raise CannotRun(f"sam local does not answer ({type(error).__name__}). What went wrong stands above.") from None


def _serve(api: subprocess.Popen[bytes], servers: Sequence[guard.GuardedServer]) -> None:
    """Wait for a signal. Raises CannotRun when something ends by itself."""
    while True:
        _check(api)
        for server in servers:
            if server.exit_code is not None:
                raise backends.stopped_by_itself(server)
        time.sleep(0.5)


def _check(api: subprocess.Popen[bytes]) -> None:
    if (code := api.poll()) is not None:
        raise CannotRun(f"sam local stopped by itself (exit code {code}). What went wrong stands above.")


def main() -> None:
    """The program: exit code 0 after SIGINT or SIGTERM, 1 and one clear sentence when it cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m local.sam",
        description=__doc__,
        epilog="All other arguments go to `sam local start-api`.",
        allow_abbrev=False,
    )
    parser.add_argument("--sam", default=".venv-sam/bin/sam", help="the program sam")
    options, arguments = parser.parse_known_args()
    backends.obey(lambda: run(os.environ, options.sam, arguments))


if __name__ == "__main__":
    main()
