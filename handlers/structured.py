"""Structured output: an object of JSON that an agent makes of the conversation once it has answered.

LlamaIndex makes it inside the run, and turns whatever goes wrong into a warning, whose text quotes what the model said.
Here it is made after the run, by the same means: the error is known, and costs no answer.
"""

import copy
import inspect
from typing import Any, TypeVar

from llama_index.core.agent.utils import generate_structured_response
from llama_index.core.agent.workflow import AgentOutput, AgentWorkflow
from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from handlers.surrogates import clean
from handlers.tools import Agent

AnyAgent = TypeVar("AnyAgent", bound=Agent)

_OBJECT = TypeAdapter(dict[str, JsonValue], config=ConfigDict(strict=True, allow_inf_nan=False, defer_build=True))


class NotJson(Exception):
    """Structured output is not an object of JSON. `code` is the type in it that JSON does not know."""

    def __init__(self, value: object) -> None:
        self.code = f"{type(value).__module__}.{type(value).__qualname__}"
        super().__init__(f"structured output has a {self.code} in it")


def without_structured_output(agent: AnyAgent) -> AnyAgent:
    """A copy of the agent that makes none."""
    found = copy.copy(agent)
    found.output_cls = found.structured_output_fn = None
    if isinstance(found, AgentWorkflow):
        found.agents = {name: without_structured_output(one) for name, one in found.agents.items()}
    return found


async def structured_output(agent: Agent, output: AgentOutput, messages: list[ChatMessage]) -> dict[str, Any] | None:
    """What the agent wants to be made of the conversation that ends with this output; None if nothing.

    What a workflow wants comes before what the agent wants that answered. Raises NotJson.
    """
    answering = agent.agents[output.current_agent_name] if isinstance(agent, AgentWorkflow) else agent
    for asking in (agent, answering):
        if asking.output_cls:
            system = answering.system_prompt
            prompt = [ChatMessage(role="system", content=system)] if system else []
            return _object(await generate_structured_response([*prompt, *messages], answering.llm, asking.output_cls))
        if asking.structured_output_fn:
            made: Any = asking.structured_output_fn(messages)
            return _object(await made if inspect.isawaitable(made) else made)
    return _object(output.structured_response)


def _object(made: Any) -> dict[str, Any] | None:
    """An object of JSON, clean of lone surrogates."""
    if made is None:
        return None
    value = clean(made.model_dump(mode="json") if isinstance(made, BaseModel) else made)
    try:
        return _OBJECT.validate_python(value)
    except ValidationError as error:
        raise NotJson(error.errors()[0]["input"]) from None
