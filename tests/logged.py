"""The functions in a process whose root logger takes everything, as Lambda's does when it is told to.

Each line of stdin is an invocation: the function's name and the event. The responses go to the file that the argument
names, one a line; stdout and stderr are the log.
"""

import importlib
import json
import logging
import sys
import time
import uuid
import warnings
from pathlib import Path
from typing import Any, NoReturn

from llama_index.core.agent.workflow import FunctionAgent
from pydantic import BaseModel

from local.worker import LambdaContext


class Verdict(BaseModel):
    """What is made of the conversation."""

    score: int


def lookup(word: str) -> NoReturn:
    """Something from the database."""
    raise ConnectionError(f"no connection for {word}")


def build_agent(llm: Any) -> FunctionAgent:
    """An agent with a tool that fails, and structured output."""
    return FunctionAgent(name="assistant", tools=[lookup], llm=llm, output_cls=Verdict)


def main() -> None:
    logging.basicConfig(level=logging.NOTSET)  # before the functions and their packages are imported, as in Lambda
    warnings.simplefilter("default")
    importlib.import_module("handlers.chat").build_agent = build_agent
    with Path(sys.argv[1]).open("w") as responses:
        for line in sys.stdin:
            invocation: dict[str, Any] = json.loads(line)
            function = importlib.import_module(f"handlers.{invocation['function']}")
            context = LambdaContext(
                aws_request_id=str(uuid.uuid4()),
                deadline=time.monotonic() + 28,
                function_name=invocation["function"],
                log_stream_name="logged",
            )
            responses.write(json.dumps(function.handler(invocation["event"], context)) + "\n")


if __name__ == "__main__":
    main()
