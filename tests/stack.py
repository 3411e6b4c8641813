"""The whole stack as `make run` starts it, for tests that talk to it over HTTP."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import httpx

from local import engine
from local.functions import CHAT
from tests.conftest import TABLE, require

ROOT = Path(__file__).parent.parent
START_SECONDS = 115.0
"""On a machine with other things to do each worker takes some seconds to import LlamaIndex."""
LIST_PROCESSES = ["/bin/ps", "-eww", "-o", "pid=,ppid=,args="]


class Stack:
    """A running stack: its address, its processes, and what it printed."""

    def __init__(self, process: subprocess.Popen[str], output: list[str]) -> None:
        self.process, self._output = process, output
        self.url = self._printed("serving ").split()[0]
        self.engine = self._printed(" answers on ").split()[0]

    @cached_property
    def model(self) -> str:
        """The demo model's address, if it is the one that answers."""
        return self._printed("the demo model answers on ").split()[0]

    def workers(self, function: str = CHAT) -> list[int]:
        """The worker processes of a function that are there now."""
        listed = subprocess.run(LIST_PROCESSES, capture_output=True, text=True, check=True).stdout  # noqa: S603 - a fixed command
        rows = [line.split(None, 2) for line in listed.splitlines()]
        return [int(pid) for pid, parent, args in rows if parent == str(self.process.pid) and function in args]

    def asked(self, text: str) -> bool:
        """Whether the model was asked with a text in the newest request that reached it."""
        received = httpx.get(f"{self.model}/requests").json()
        return bool(received) and text in str(received[-1])

    def lines(self) -> list[str]:
        return [line for line in self._output if line.startswith("{")]

    def printed(self) -> str:
        return "".join(self._output)

    def _printed(self, start: str) -> str:
        """What stands behind `start` in the output, once it is there."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            for line in list(self._output):
                if start in line:
                    return line.split(start, 1)[1]
            assert self.process.poll() is None, "".join(self._output)
            assert time.monotonic() < deadline, "".join(self._output)
            time.sleep(0.02)


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Stack]:
    """The stack on the data in a folder, until the block ends with the equivalent of Ctrl-C."""
    require(engine.missing_dynoxide() and engine.missing_dynamodb_local())
    environment = {**os.environ, "LOCAL_DIR": str(folder), "PORT": "0", "PYTHONUNBUFFERED": "1", "TABLE_NAME": TABLE}
    environment |= {"DEMO_MODEL_RECORDS": "true"} | settings
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "local"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output: list[str] = []
    reading = threading.Thread(target=lambda: output.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reading.start()
    try:
        yield Stack(process, output)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        reading.join(10)
        process.stdout.close()  # type: ignore[union-attr]
    assert code == 0, "".join(output)
