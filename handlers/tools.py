"""The tools of an agent, guarded: whatever one raises or returns, the run goes on and the model is told.

A tool that fails is reported to the model as a failure and nothing more, because the texts of errors quote connection
strings, paths and data. `ToolError` is the exception: its text is for the model.
"""

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

from llama_index.core.agent.workflow import AgentWorkflow
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent
from llama_index.core.tools import AsyncBaseTool, BaseTool, FunctionTool, ToolOutput, adapt_to_async_tool
from pydantic import ValidationError
from pydantic_core import ErrorDetails, core_schema
from workflows.runtime.types.results import WaitingForEvent

from handlers.results import for_the_model, shortened
from handlers.surrogates import clean

T = TypeVar("T")
Agent = BaseWorkflowAgent | AgentWorkflow
"""What `build_agent` of `agent.py` may return."""

MAX_FAULTS = 5
MAX_NAME_CHARS = 100
TEXT_OF_OTHERS = {"value_error", "assertion_error"}
"""Kinds of pydantic's errors whose text comes from somebody's validator, and may quote anything."""
OWN_TEXT = frozenset(get_args(core_schema.ErrorType)) - TEXT_OF_OTHERS


class ToolError(Exception):
    """Raise this in a tool to tell the model what went wrong. The text of any other error stays out of its sight."""


class ToolFailed(Exception):
    """A tool raised an error, which is this one's cause. The text is what the model is told."""

    def __init__(self, tool: str, text: str) -> None:
        super().__init__(text)
        self.tool = tool


def with_guarded_tools(agent: Agent, *, max_chars: int) -> Agent:
    """A copy of the agent, of which every tool is guarded: its own, those that it retrieves, the handoff to others.

    A result's text beyond `max_chars` is left out.
    """
    get_tools: Callable[..., Awaitable[Sequence[AsyncBaseTool]]] = agent.get_tools

    async def guarded_tools(*args: Any, **kwargs: Any) -> Sequence[AsyncBaseTool]:
        return [guarded(tool, max_chars=max_chars) for tool in await get_tools(*args, **kwargs)]

    found = copy.copy(agent)
    # An agent is a pydantic model, which takes no attribute that is not a field.
    object.__setattr__(found, "get_tools", guarded_tools)
    return found


def guarded(tool: BaseTool, *, max_chars: int) -> AsyncBaseTool:
    """The same tool, but that its calls never raise anything except ToolFailed, and return clean text.

    A copy rather than a wrapper: LlamaIndex hands the workflow's context to a FunctionTool only.
    """
    inner = adapt_to_async_tool(tool)
    found = copy.copy(inner)

    async def acall(*args: Any, **kwargs: Any) -> ToolOutput:
        arguments = clean(kwargs)
        outcome = await outcome_of(lambda: inner.acall(*args, **arguments))
        if isinstance(outcome, ToolOutput):
            return for_the_model(outcome, max_chars=max_chars)
        if isinstance(outcome, WaitingForEvent):  # a tool that waits for an answer to its question: no error
            raise outcome
        text, _ = shortened(clean(_report(inner, arguments, outcome)), max_chars)
        raise ToolFailed(inner.metadata.get_name(), text) from outcome

    object.__setattr__(found, "acall", acall)
    return found


async def outcome_of(call: Callable[[], Awaitable[T]]) -> T | BaseException:
    """What somebody's code returns or raises. Raises CancelledError only if the run itself is cancelled.

    The code has a task of its own. Clients leak the cancellation of one of their scopes, or cancel the task that they
    are in; in a task shared with the run nothing could tell that from the end of the run.
    """

    async def attempt() -> T | BaseException:
        try:
            return await call()
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - argparse raises SystemExit, which would end the process
            return error

    task = asyncio.create_task(attempt())
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        raise
    return task.result()


def _report(tool: AsyncBaseTool, arguments: Mapping[str, Any], error: BaseException) -> str:
    """What the model is told of a tool's error."""
    name = tool.metadata.get_name()
    if isinstance(error, ToolError):
        return text if (text := str(error)).strip() else f"The tool {name} failed."
    report = f"The tool {name} failed: {type(error).__name__}."
    if faults := _faults(tool, arguments, error):
        report += f" Its arguments do not fit: {'; '.join(faults)}."
    return report


def _faults(tool: AsyncBaseTool, arguments: Mapping[str, Any], error: BaseException) -> list[str]:
    """What is wrong with the arguments of a call that failed: which of them, and why, without any value.

    Only asked afterwards, since a tool may take what its schema does not.
    """
    target = tool.real_fn if isinstance(tool, FunctionTool) else tool.acall
    parameters = inspect.signature(target).parameters.values()
    faults = []
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        known = {parameter.name for parameter in parameters}
        faults = [f"unexpected argument {_name(name)}" for name in arguments if name not in known]
    invalid = _invalid(tool, arguments)
    # What the tool itself found invalid may be anything: only what bears an argument's name is told.
    invalid += [fault for fault in _details(error) if fault["loc"] and fault["loc"][0] in arguments]
    for fault in invalid:
        argument, *places = fault["loc"] or ("",)
        place = ".".join([_name(argument), *(str(place) for place in places if isinstance(place, int))])
        faults.append(f"{place}: {fault['msg'] if fault['type'] in OWN_TEXT else 'is not valid'}")
    return list(dict.fromkeys(faults))[:MAX_FAULTS]


def _invalid(tool: AsyncBaseTool, arguments: Mapping[str, Any]) -> list[ErrorDetails]:
    """What the tool's schema finds wrong with the arguments."""
    if schema := tool.metadata.fn_schema:
        try:
            schema.model_validate(dict(arguments))
        except Exception as error:  # noqa: BLE001 - a schema may have validators that raise anything
            return _details(error)
    return []


def _details(error: BaseException) -> list[ErrorDetails]:
    if not isinstance(error, ValidationError):
        return []
    return error.errors(include_url=False, include_context=False, include_input=False)


def _name(name: object) -> str:
    return repr(str(name)[:MAX_NAME_CHARS])
