"""The chat function, unchanged but for its agent: the tools of this one do what no tool should, on a victim.

On other instances they do nothing, so that the same request, sent again, is answered there.
"""

import asyncio
import os
import secrets
import sys
import time
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms.function_calling import FunctionCallingLLM

import handlers.chat
from handlers.chat import handler

__all__ = ["handler"]

VICTIM = os.environ["INSTANCE"].startswith("victim")


def linger(seconds: float) -> str:
    """Takes its time; others see that it does by a file that is there from then on."""
    if VICTIM:
        Path(os.environ["LINGERS"]).touch()
        time.sleep(seconds)
    return "it is done"


async def stop_the_world(seconds: float) -> str:
    """Lets nothing else run: no renewal of the lease, and no end of the agent's time."""
    if VICTIM:
        time.sleep(seconds)  # noqa: ASYNC251 - that is the point
    return "it is done"


def leave(code: int) -> str:
    """Ends the process from a thread, as native code does that goes wrong."""
    if VICTIM:
        os._exit(code)
    return "it is done"


async def leave_at_once(code: int) -> str:
    """Ends the process from the event loop."""
    await asyncio.sleep(0)
    if VICTIM:
        os._exit(code)
    return "it is done"


def give_up(code: int) -> str:
    """Raises SystemExit in a thread, as a library does that takes itself for a program."""
    if VICTIM:
        sys.exit(code)
    return "it is done"


async def give_up_at_once(code: int) -> str:
    """Raises SystemExit in the event loop."""
    await asyncio.sleep(0)
    if VICTIM:
        sys.exit(code)
    return "it is done"


def hoard(megabytes: int) -> str:
    """Takes memory and keeps it for as long as it runs."""
    hoarded = [bytearray(1_000_000) for _ in range(megabytes if VICTIM else 1)]
    return f"it took {len(hoarded)} MB"


def recite(kilobytes: int) -> str:
    """A text that compression does not make small, so that its turn is stored in parts."""
    return secrets.token_hex(kilobytes * 500)


def build_agent(llm: FunctionCallingLLM) -> FunctionAgent:
    """The agent of the product has no say here."""
    tools = [linger, stop_the_world, leave, leave_at_once, give_up, give_up_at_once, hoard, recite]
    return FunctionAgent(name="assistant", system_prompt="Do as you are told.", tools=tools, llm=llm)


handlers.chat.build_agent = build_agent
