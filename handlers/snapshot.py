"""What Lambda's SnapStart needs: it takes a snapshot of an initialised process once, and starts every instance from it.

Without SnapStart nobody calls the hooks, and what they would have done happens in the first request.
"""

import asyncio
import random
import sys

import httpx
from aws_lambda_powertools.utilities import parameters
from llama_index.core.agent.workflow import FunctionAgent
from openai import AsyncOpenAI
from snapshot_restore_py import (  # type: ignore[import-untyped] # it has no types
    register_after_restore,
    register_before_snapshot,
)

from handlers import tracing
from handlers.front import event_loop, process_settings, table_client
from handlers.model import ChatModel, model_client
from handlers.run import run_agent
from handlers.settings import secrets_provider
from handlers.shapes import ChatAnswer, ChatRequest
from memory import table
from memory.chat_store import TurnChatStore, count_tokens, turn_memory
from memory.turns import Session, Window

DRY_RUN_SECONDS = 60.0
CHUNK = (
    'data: {"id": "dry", "object": "chat.completion.chunk", "created": 0, "model": "dry", "choices": '
    '[{"index": 0, "delta": {"role": "assistant", "content": "Ready."}, "finish_reason": "stop"}]}\n\n'
    "data: [DONE]\n\n"
)


def register_hooks() -> None:
    """Have Lambda's runtime call both sides."""
    register_before_snapshot(before_snapshot)
    register_after_restore(after_restore)


def before_snapshot() -> None:
    """Do what is slow and belongs to nobody: no setting, secret or credential is read, and nobody is connected to."""
    asyncio.run(_dry_run())  # what the packages import and compile at first use: the most of a first turn
    table.prepare()
    for shape in (ChatRequest, ChatAnswer):
        shape.model_rebuild()


def after_restore() -> None:
    """Let this instance differ from all others of the snapshot, and hold nothing that may have passed since."""
    random.seed()  # or all would wait for each other in step
    if "numpy.random" in sys.modules:  # a tool's
        sys.modules["numpy.random"].seed()
    # Nothing here has made these before the snapshot; modules that agent.py imports could have.
    forget()
    event_loop.cache_clear()
    tracing.reconnect()


def forget() -> None:
    """Read settings and secrets anew, and connect anew, at the next use."""
    parameters.clear_caches()  # type: ignore[no-untyped-call] # it has no types
    for made in (process_settings, secrets_provider, model_client, table_client):
        made.cache_clear()


async def _dry_run() -> None:
    """A run of an agent on a model that answers from memory; not of agent.py's, which may want more than a model."""
    session = Session(owner="", id="")
    window = Window(session=session, state=None, generation=1, next_number=1, turns=(), token_limit=0)
    store = TurnChatStore(window)
    loop = asyncio.get_running_loop()
    transport = httpx.AsyncClient(transport=httpx.MockTransport(_answer))
    async with AsyncOpenAI(api_key="none", http_client=transport) as client:
        model = ChatModel(model="dry", api_key="none", async_openai_client=client)  # type: ignore[call-arg] # see model.py
        run = run_agent(
            lambda: FunctionAgent(name="dry", tools=[_tool], llm=model),
            "Are you ready?",
            turn_memory(store, session),
            until=loop.time() + DRY_RUN_SECONDS,
            lease=loop.create_future(),
            max_result_chars=1000,
        )
        async for _ in run:
            pass
    count_tokens(store.collected())


def _tool(text: str) -> str:
    """A tool that the model never asks for."""
    return text


def _answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=CHUNK)
