"""Child processes that cannot outlive the process which started them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
_START_SECONDS = 30.0
_STOP_SECONDS = 8.0
_LAST_LINES = 12
_TAIL_BYTES = 4096

# Nobody can catch SIGKILL, but the kernel closes a dead process's pipes. The guard's standard input is a pipe whose
# other end only the parent holds: once it reads the end of file, by `stop` or by the parent's death, it ends the
# child, with SIGTERM first, so that a database can close its file. Plain sh, since macOS has no PR_SET_PDEATHSIG.
_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
(
  read -r _ <&3
  kill -TERM $child 2>/dev/null
  tries=0
  while [ $tries -lt 50 ] && kill -0 $child 2>/dev/null; do sleep 0.1; tries=$((tries + 1)); done
  kill -KILL $child 2>/dev/null
) >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $child
status=$?
kill $watcher 2>/dev/null
exit $status
"""


class ServerStartError(Exception):
    """A server was started and did not come up; the text holds its last output."""


class GuardedServer:
    """A server process on loopback that dies with the process which started it.

    It has a process group of its own, so that Ctrl-C in a terminal reaches only its parent. Use it as a context
    manager, or call `stop`.
    """

    def __init__(self, *, name: str, endpoint: str, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self.name = name
        self.endpoint = endpoint
        self._process = process
        self._output = output

    @property
    def exit_code(self) -> int | None:
        """The exit code once the server has ended, None while it runs."""
        return self._process.poll()

    def last_output(self) -> str:
        """The last lines that the server wrote, for people to read; nothing any more once it was stopped."""
        if self._output.closed:
            return ""
        file = self._output.fileno()
        # pread, since the server writes at the offset that it shares with this descriptor.
        tail = os.pread(file, _TAIL_BYTES, max(0, os.fstat(file).st_size - _TAIL_BYTES))
        return "\n".join(tail.decode(errors="replace").splitlines()[-_LAST_LINES:])

    def stop(self) -> None:
        """End the server with SIGTERM, after some seconds with SIGKILL, and wait for it. May be called twice."""
        self._let_go()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the server and its guard with SIGKILL, as a crash of the machine would."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._let_go()
        self._output.close()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __enter__(self) -> GuardedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    name: str,
    command: Callable[[int], Sequence[str | Path]],
    answers: Callable[[str], bool],
    *,
    log: Path | None,
    host: str = LOOPBACK,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> GuardedServer:
    """Start a server on a free port of `host`, an address of loopback, and return it once it answers.

    `command` makes the argument list for a port, `answers` tells whether the endpoint is ready (an OSError means not
    yet), `log` receives the output (None: an unnamed file). `pass_fds` stay open in the child for as long as it lives.
    Raises ServerStartError when the server exits, or does not answer within 30 s.
    """
    port = free_port(host)
    output = _output_file(log)
    process = _spawn(command(port), output, cwd=cwd, env=env, pass_fds=pass_fds)
    server = GuardedServer(name=name, endpoint=f"http://{host}:{port}", process=process, output=output)
    try:
        _wait_until(answers, server)
    except BaseException:
        server.stop()
        raise
    return server


@contextlib.contextmanager
def running(command: Sequence[str | Path], *, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that writes where this one does, until the end of the context, or of this process."""
    with _spawn(command, None, cwd=ROOT, env=env, pass_fds=()) as process:  # which closes its standard input, and waits
        yield process


def _output_file(log: Path | None) -> IO[bytes]:
    if log is None:
        return tempfile.TemporaryFile()
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("w+b")


def _spawn(
    command: Sequence[str | Path],
    output: IO[bytes] | None,
    *,
    cwd: Path,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=None if env is None else dict(env),
        pass_fds=pass_fds,
        process_group=0,
    )


def _wait_until(answers: Callable[[str], bool], server: GuardedServer) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        # Before the question, not after: whoever answers on this port once ours has exited is somebody else.
        if server.exit_code is not None:
            raise ServerStartError(
                f"{server.name} exited with {server.exit_code} during start:\n{server.last_output()}"
            )
        try:
            if answers(server.endpoint):
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > deadline:
            raise ServerStartError(
                f"{server.name} did not answer on {server.endpoint} within {_START_SECONDS:.0f} s:\n"
                f"{server.last_output()}"
            )
        time.sleep(0.05)


def status_of(
    endpoint: str, path: str, *, method: str = "GET", body: str | None = None, headers: Mapping[str, str] | None = None
) -> int:
    """The HTTP status that `endpoint` answers with. Raises OSError or HTTPException when it does not."""
    connection = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=2)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        return connection.getresponse().status
    finally:
        connection.close()


def free_port(host: str = LOOPBACK) -> int:
    """A port of a loopback address that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
