"""The chat function in a process that looks to it like Lambda's, where Powertools traces.

Each line of stdin is an invocation: the event, the trace that Lambda says it belongs to, and whether its agent breaks
with an error that quotes the message. The log lines go to stdout.
"""

import json
import os
import sys
import time
from typing import Any, NoReturn

import handlers.chat
from handlers.agent import build_agent
from local.worker import LambdaContext


def main() -> None:
    for line in sys.stdin:
        invocation: dict[str, Any] = json.loads(line)
        os.environ["_X_AMZN_TRACE_ID"] = invocation["trace"]
        message = json.loads(invocation["event"]["body"])["message"]

        def broken(_: Any, message: str = message) -> NoReturn:
            raise ValueError(f"cannot make sense of {message!r}")

        handlers.chat.build_agent = broken if invocation["breaks"] else build_agent
        context = LambdaContext(
            aws_request_id=invocation["trace"],
            deadline=time.monotonic() + 28,
            function_name="chat",
            log_stream_name="traced",
        )
        handlers.chat.handler(invocation["event"], context)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
