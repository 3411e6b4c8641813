"""One run of an agent: its events come out, and nothing of it stays alive behind."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from llama_index.core.agent.workflow import AgentStream, ToolCall, ToolCallResult
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.memory import Memory
from workflows.handler import WorkflowHandler

from memory.turns import LeaseLost

T = TypeVar("T")

CANCEL_SECONDS = 1.0


class AgentFailed(Exception):
    """The agent gave no answer. `code` says why, and is stored with the turn."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code

    @property
    def timed_out(self) -> bool:
        """Whether it was the time that ran out."""
        return self.code in ("timeout", "model_timeout")


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A piece of what the model says."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ToolCalled:
    """The model asked for a tool."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ToolReturned:
    """A tool gave its result."""

    name: str
    failed: bool


async def run_agent(
    build: Callable[[], BaseWorkflowAgent], message: str, memory: Memory, *, until: float, lease: asyncio.Future[None]
) -> AsyncGenerator[TextDelta | ToolCalled | ToolReturned]:
    """Build an agent, run it on one message, and yield what happens.

    `until` is a time of the event loop's clock, in seconds. Raises AgentFailed where the agent does, or is not done by
    then; and what ends the `lease` early. However it ends, the run is cancelled and awaited first.
    """
    run: WorkflowHandler | None = None
    try:
        run = build().run(user_msg=message, memory=memory)
        events = run.stream_events()
        while (event := await _first(anext(events, None), lease, until)) is not None:
            if isinstance(event, AgentStream) and event.delta:
                yield TextDelta(text=event.delta)
            elif isinstance(event, ToolCallResult):
                yield ToolReturned(name=event.tool_name, failed=event.tool_output.is_error)
            elif isinstance(event, ToolCall):
                yield ToolCalled(name=event.tool_name)
        # The stream ends in silence where the model failed: only the run itself raises.
        await _first(run, lease, until)
    except TimeoutError as error:
        raise AgentFailed("timeout") from error
    except openai.APITimeoutError as error:
        raise AgentFailed("model_timeout") from error
    except openai.APIError as error:
        raise AgentFailed("model_error") from error
    except LeaseLost:
        raise
    except Exception as error:
        raise AgentFailed("agent_error") from error
    finally:
        if run is not None and not run.is_done():
            await run.cancel_run(timeout=CANCEL_SECONDS)


async def _first(step: Awaitable[T], lease: asyncio.Future[None], until: float) -> T:
    """What the step comes to; unless the lease ends first, or the time does (TimeoutError)."""
    task = asyncio.ensure_future(step)
    try:
        left = until - asyncio.get_running_loop().time()
        waited_for: set[asyncio.Future[Any]] = {task, lease}
        await asyncio.wait(waited_for, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if lease.done():
            lease.result()
        raise TimeoutError
    finally:
        task.cancel()
