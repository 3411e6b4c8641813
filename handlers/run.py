"""One run of an agent: its events come out, and nothing of it stays alive behind."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import openai
from llama_index.core.agent.workflow import AgentOutput, AgentStream, ToolCall, ToolCallResult
from llama_index.core.memory import Memory
from workflows.errors import WorkflowRuntimeError
from workflows.handler import WorkflowHandler

from handlers.model_answer import NOTES, BrokenAnswer
from handlers.model_errors import refusal_of
from handlers.results import TextOutput
from handlers.structured import NotJson, structured_output, without_structured_output
from handlers.tools import Agent, ToolFailed, outcome_of, with_guarded_tools
from memory.turns import LeaseLost

T = TypeVar("T")

CANCEL_SECONDS = 1.0


class AgentFailed(Exception):
    """The agent gave no answer. `code` says why, and is stored with the turn."""

    def __init__(
        self, code: str, *, retry_after: int | None = None, facts: Mapping[str, str | int] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after = retry_after
        """Seconds that the model's server asks to wait."""
        self.facts = facts or {}
        """What else the log should say: never a text of the server's, which may quote a message."""

    @property
    def timed_out(self) -> bool:
        """Whether it was the time that ran out."""
        return self.code in ("timeout", "model_timeout")


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """A piece of what the model says."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ModelNoted:
    """What an operator should know of an answer: a truncating `finish_reason`, a `refusal`, `missing_tool_calls`."""

    notes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ToolCalled:
    """The model asked for a tool."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ToolReturned:
    """A tool gave its result."""

    name: str
    failed: bool
    error: BaseException | None = None
    """What the tool raised; None if it returned, or if there is no such tool."""
    left_out: int = 0
    """Characters of the result that the model is not shown."""


@dataclass(frozen=True, kw_only=True)
class StructuredOutputFailed:
    """The agent answered, and its structured output could not be made."""

    error: BaseException


@dataclass(frozen=True, kw_only=True)
class Concluded:
    """What the run came to."""

    answer: str
    structured: dict[str, Any] | None


Happened = TextDelta | ModelNoted | ToolCalled | ToolReturned | StructuredOutputFailed


async def run_agent(
    build: Callable[[], Agent],
    message: str,
    memory: Memory,
    *,
    until: float,
    lease: asyncio.Future[None],
    max_result_chars: int,
) -> AsyncGenerator[Happened | Concluded]:
    """Build an agent, run it on one message, and yield what happens.

    `until` is a time of the event loop's clock, in seconds. Raises AgentFailed if the agent does, or is not done by
    then; and what ends the `lease` early. However it ends, the run is cancelled and awaited first.
    """
    run: WorkflowHandler | None = None
    try:
        agent = build()
        runner = with_guarded_tools(without_structured_output(agent), max_chars=max_result_chars)
        run = runner.run(user_msg=message, memory=memory)
        events = run.stream_events()
        while (event := await _first(anext(events, None), lease, until)) is not None:
            if isinstance(event, AgentStream):
                if event.delta:
                    yield TextDelta(text=event.delta)
            elif isinstance(event, AgentOutput):
                if notes := event.response.additional_kwargs.get(NOTES):
                    yield ModelNoted(notes=notes)
            elif isinstance(event, ToolCallResult):
                yield _returned(event)
            elif isinstance(event, ToolCall):
                yield ToolCalled(name=event.tool_name)
        # The stream ends in silence if the model failed: only the run itself raises.
        result: Any = await _first(run, lease, until)
        if isinstance(result, AgentOutput):
            said = await memory.aget()
            made = await _first(outcome_of(lambda: structured_output(agent, result, said)), lease, until)
            if isinstance(made, NotJson):
                raise made
            if isinstance(made, BaseException):
                yield StructuredOutputFailed(error=made)
                made = None
            yield Concluded(answer=result.response.content or "", structured=made)
    except LeaseLost:
        raise
    except NotJson as error:
        raise AgentFailed("structured_output_not_json") from error
    except Exception as error:
        raise _failure(error) from error
    finally:
        if run is not None and not run.is_done():
            await run.cancel_run(timeout=CANCEL_SECONDS)


def _returned(event: ToolCallResult) -> ToolReturned:
    """What is to be known of a tool's result."""
    output = event.tool_output
    return ToolReturned(
        name=event.tool_name,
        failed=output.is_error,
        error=output.exception.__cause__ if isinstance(output.exception, ToolFailed) else None,
        left_out=output.left_out if isinstance(output, TextOutput) else 0,
    )


def _failure(error: Exception) -> AgentFailed:
    """What an error of the run is for logs and callers."""
    match error:
        case TimeoutError():
            return AgentFailed("timeout")
        case openai.APIError():
            refusal = refusal_of(error)
            return AgentFailed(refusal.code, retry_after=refusal.retry_after, facts=refusal.facts)
        case BrokenAnswer():
            return AgentFailed("model_error")
        case WorkflowRuntimeError() if "Max iterations" in str(error):
            return AgentFailed("too_many_steps")
    return AgentFailed("agent_error")


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
