"""The chat function with an agent of the test's own, on a model that says what the test tells it to."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.agent.workflow.base_agent import BaseWorkflowAgent

from handlers import chat, front
from tests.faulty_model import Answer, FaultyModel, faulty_model
from tests.handlers.conftest import Reply, Service, deployed

Build = Callable[[Any], BaseWorkflowAgent | AgentWorkflow]


class Workshop:
    """One caller's conversation with an agent that the test equips."""

    def __init__(self, service: Service, model: FaultyModel, patch: pytest.MonkeyPatch) -> None:
        self.service, self.model, self._patch = service, model, patch
        self.user = uuid.uuid4().hex

    def build(self, build: Build) -> None:
        """Have the function build this agent, of the model that it is given."""
        self._patch.setattr(chat, "build_agent", build)

    def equip(self, *tools: Any, **options: Any) -> None:
        """Have the function build an agent with these tools."""
        self.build(lambda llm: FunctionAgent(name="assistant", tools=list(tools), llm=llm, **options))

    def say(self, *answers: Answer, message: str = "Go", **options: Any) -> Reply:
        """What comes of a message to which the model answers so."""
        self.model.tell(*answers)
        return self.service.say(message, user=self.user, **options)

    def told(self, request: int = -1) -> list[dict[str, Any]]:
        """The messages of one of the last turn's requests to the model."""
        return self.model.received[request]

    def results(self) -> list[str]:
        """What the model was told in its last request of what tools came to."""
        return [message["content"] for message in self.told() if message["role"] == "tool"]

    def history(self) -> list[dict[str, Any]]:
        """The turns, the newest first, as the caller sees them."""
        reply = self.service.send("GET", "/sessions/default/turns", user=self.user)
        turns: list[dict[str, Any]] = reply.body["turns"]
        return turns

    def export(self) -> list[dict[str, Any]]:
        """The lines of the caller's export."""
        reply = self.service.send("GET", "/sessions/default/export", user=self.user)
        return [json.loads(line) for line in reply.body.splitlines()]


@contextmanager
def workshop(engine: str, patch: pytest.MonkeyPatch, **settings: str) -> Iterator[Workshop]:
    """A workshop on an engine, for as long as the block runs."""
    with (
        faulty_model() as model,
        deployed(engine, model.endpoint, patch, IDENTITY_SOURCES="jwt", **settings) as service,
    ):
        yield Workshop(service, model, patch)
        front.table_client(engine).close()
