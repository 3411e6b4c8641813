"""A function as Lambda runs it: from its artifact alone, which nothing writes to, and with no network but loopback.

`python -I -S artifact_program.py FOLDER HANDLER`: each line of stdin is an event, and is answered by a line with the
result.
"""

import importlib
import json
import re
import sys
import time
import uuid
from types import SimpleNamespace
from typing import Any

LOOPBACK = re.compile(r"127(\.\d+){3}|localhost|::1")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse to leave the machine; no code of ours or of a package can switch this off."""
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not LOOPBACK.fullmatch(arguments[1][0]):
        raise PermissionError(f"{arguments[1]} is not on this machine")
    if event == "socket.getaddrinfo" and not LOOPBACK.fullmatch(str(arguments[0])):
        raise PermissionError(f"{arguments[0]} is not on this machine")


def main() -> None:
    folder, name = sys.argv[1:]
    sys.addaudithook(watch)
    sys.path.insert(0, folder)
    module, _, function = name.rpartition(".")
    handler = getattr(importlib.import_module(module), function)
    for line in sys.stdin:
        deadline = time.monotonic() + 28
        context = SimpleNamespace(
            function_name=module,
            memory_limit_in_mb=1024,
            invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:f:live",
            aws_request_id=str(uuid.uuid4()),
            get_remaining_time_in_millis=lambda end=deadline: round((end - time.monotonic()) * 1000),
        )
        result = handler(json.loads(line), context)
        sys.stdout.write(json.dumps({"result": result}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
