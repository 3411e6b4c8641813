"""A process of which Lambda takes a snapshot, and two instances that start from it: `test_snapshot.py` watches them.

A fork stands for the restore, and what a fork does and a restore does not is undone: Python seeds its random numbers
anew in a fork, a fork has a process id of its own, and it has none of the threads.
"""

import gc
import json
import os
import random
import secrets
import socket
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import memory.turns

EVENT = Path(__file__).parents[2] / "events" / "chat_first_request.json"
AGE = timedelta(days=40)
"""Of the snapshot when an instance starts from it."""

age = AGE
connected: list[str] = []
now = memory.turns.utc_now


def project_clock() -> datetime:
    return now() - age


# Before anything else takes it from there.
memory.turns.utc_now = project_clock
sys.addaudithook(lambda event, values: connected.append(str(values[1])) if event == "socket.connect" else None)


def main() -> None:
    import numpy as np  # a tool of an agent could
    from awslambdaric.lambda_runtime_hooks_runner import run_after_restore, run_before_snapshot

    import handlers.chat

    np.random.random()
    others = use(handlers.chat.handler) if sys.argv[1:] == ["used"] else set()
    run_before_snapshot()
    before = set(sockets()) - others
    report(
        "snapshot",
        connected=connected,
        streams=[name for name, kind in sockets().items() if kind is socket.SOCK_STREAM],
        threads=[thread.name for thread in threading.enumerate()],
        generators=sum(type(found) is random.Random and not of_xray(found) for found in gc.get_objects()),
    )
    restored = json.loads(sys.stdin.readline())
    state, pid = random.getstate(), os.getpid()
    for _ in range(2):
        if not (child := os.fork()):
            random.setstate(state)
            os.getpid = lambda: pid
            memory.table._EXECUTOR = ThreadPoolExecutor()
            take_turns(handlers.chat.handler, run_after_restore, before=before, **restored)
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def use(handler: Any) -> set[str]:
    """What no module should do before the first request, and one of an agent may; the sockets that are its own."""
    import boto3
    from llama_index.core.llms import ChatMessage

    import handlers.front
    import handlers.model

    boto3.setup_default_session()
    assert boto3.DEFAULT_SESSION.get_credentials().get_frozen_credentials()
    own = set(sockets())
    assert invoke(handler, "My name is Ada.")["statusCode"] == 200
    model = handlers.model.chat_model(handlers.front.process_settings())
    handlers.front.event_loop().run(model.achat([ChatMessage("Not as a stream, whose connection is not kept.")]))
    return own


def take_turns(handler: Any, run_after_restore: Any, *, before: set[str], expired_token: str) -> None:
    """All that one instance does, and what is to be unlike in all instances."""
    import numpy as np

    global age
    age = timedelta()
    run_after_restore()
    gc.collect()
    kept = before & set(sockets())
    first = invoke(handler, "My name is Ada.")
    token = first["headers"]["x-session-token"]
    report(
        "instance",
        sockets=list(kept),
        first=first["statusCode"],
        second=json.loads(invoke(handler, "What is my name?", token)["body"]),
        expired=invoke(handler, "What is my name?", expired_token),
        token=token,
        random=[random.uniform(0.05, 0.35), random.getrandbits(64)],  # noqa: S311 - what is no secret is random, too
        numpy=[float(np.random.random()), int(np.random.randint(2**62))],
        ids=[uuid.uuid4().hex, secrets.token_hex(8), memory.items.new_token()],
    )


def invoke(handler: Any, message: str, token: str | None = None) -> dict[str, Any]:
    event = json.loads(EVENT.read_text())
    event["body"] = json.dumps({"message": message})
    if token:
        event["headers"]["x-session-token"] = token
    context = SimpleNamespace(
        function_name="chat",
        memory_limit_in_mb=1024,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:chat:live",
        aws_request_id=str(uuid.uuid4()),
        get_remaining_time_in_millis=lambda: 28_000,
    )
    result: dict[str, Any] = handler(event, context)
    return result


def sockets() -> dict[str, int]:
    """The sockets that the process has open, and their kinds."""
    found = {}
    for file in list(Path("/proc/self/fd").iterdir()):
        if file.exists() and (name := str(file.readlink())).startswith("socket:"):
            with socket.socket(fileno=os.dup(int(file.name))) as copy:
                found[name] = copy.type
    return found


def of_xray(generator: random.Random) -> bool:
    """Whether it is of the SDK's samplers, which are not asked in Lambda: there a trace's sampling is in its header."""
    owners = (type(owner).__module__ for owner in gc.get_referrers(generator))
    return any(owner.startswith("aws_xray_sdk.core.sampling") for owner in owners)


def report(kind: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"report": kind, **facts}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
