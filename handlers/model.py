"""The chat model: OpenAI's, or any server that speaks its protocol."""

from collections.abc import AsyncIterator, Collection, Sequence
from functools import lru_cache
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import openai
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.llms.openai import OpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import Field
from pydantic_core import from_json

from handlers.model_answer import Answer, BrokenAnswer, object_or_told
from handlers.model_errors import asked_pause, refusal_of
from handlers.prompt import openai_messages, tools_as_text
from handlers.settings import Settings

LONGEST_PAUSE_SECONDS = 5.0
"""A model's server that asks for a longer one before the next request is not waited for: the turn fails at once."""
OPENAI_HOST = "api.openai.com"


class ChatModel(OpenAI):
    """OpenAI's client for any model of any OpenAI-compatible server.

    It sends messages that every server accepts, sends no parameter that nobody chose, puts answers together itself, and
    takes nothing for an answer that the model did not finish.
    """

    context_window: int = Field(default=128_000, description="Tokens that the model takes, prompt and answer together.")
    chosen: dict[str, Any] = Field(default_factory=dict, description="Parameters of each request.")
    streaming: bool = Field(default=True, description="Whether the server can stream.")

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or -1,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
            system_role=MessageRole.SYSTEM,
        )

    @property
    def origin(self) -> str:
        """Which server and model this is, as messages remember it."""
        host = urlsplit(self.api_base or "").hostname or OPENAI_HOST
        return f"{host}/{self.model}"

    def _get_model_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """The parameters of a request: those that were chosen, and what the agent's tools need.

        LlamaIndex adds defaults of its own, such as a temperature, which some servers refuse.
        """
        needed = {name: value for name, value in kwargs.items() if value is not None}
        if needed.get("parallel_tool_calls") is True:
            del needed["parallel_tool_calls"]  # OpenAI's default
        if needed.get("tool_choice") == "auto":
            del needed["tool_choice"]
        if tools := needed.get("tools"):
            needed["tools"] = [_without_default_strictness(tool) for tool in tools]
        return {"model": self.model, **self.chosen, **self.additional_kwargs, **needed}

    def for_user(self, parameter: str, user: str) -> Self:
        """The same client, which names a user to the server."""
        return self.model_copy(update={"chosen": self.chosen | {parameter: user}})

    async def _achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        answer = self._answer(kwargs)
        completion = await self._create(messages, stream=False, **kwargs)
        try:
            text, _ = answer.add(completion.choices[0])
        except (AttributeError, LookupError, TypeError) as error:
            raise BrokenAnswer("what the model's server sent is not a completion") from error
        text += answer.end()
        return ChatResponse(message=answer.message(), delta=text, raw=completion)

    async def _astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        async def in_one_piece() -> ChatResponseAsyncGen:
            yield await self._achat(messages, **kwargs)

        if not self.streaming:
            return in_one_piece()
        stream = await self._create(messages, stream=True, **kwargs)
        return _pieces(stream, self._answer(kwargs))

    async def _create(self, messages: Sequence[ChatMessage], *, stream: bool, **kwargs: Any) -> Any:
        """Ask the server; once more in a plainer form if it refuses what an earlier turn left in the conversation."""
        prompt = openai_messages(messages, model=self.model, origin=self.origin)
        parameters = self._get_model_kwargs(stream=stream, **kwargs)
        create: Any = self._get_aclient().chat.completions.create
        try:
            return await create(messages=prompt, **parameters)
        except openai.APIStatusError as error:
            if refusal_of(error).code != "prompt_refused":
                raise
            plainer = openai_messages(tools_as_text(messages), model=self.model, origin=self.origin)
            if plainer == prompt:
                raise
        return await create(messages=plainer, **parameters)

    def _answer(self, kwargs: dict[str, Any]) -> Answer:
        tools: Collection[str] = {tool["function"]["name"] for tool in kwargs.get("tools") or ()}
        return Answer(origin=self.origin, tools=tools)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of tools, with the arguments as the message has them; LlamaIndex would guess at broken ones."""
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            raise ValueError("the model called no tool")
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=from_json(object_or_told(call.tool_kwargs)),
            )
            for call in calls
        ]


async def _pieces(stream: AsyncIterator[Any], answer: Answer) -> ChatResponseAsyncGen:
    """The text of an answer as it comes, and at last the whole message.

    Raises openai.APIError or BrokenAnswer if the model does not come to its end.
    """
    last: Any = None
    try:
        async for chunk in stream:
            if chunk is None or not (choices := chunk.choices):
                continue
            last = chunk
            text, thinking = answer.add(choices[0])
            if text or thinking:
                yield _piece(text, thinking)
    except Exception as error:
        if isinstance(error, openai.APIError | BrokenAnswer) and not answer.finish_reason:
            raise
        if not answer.finish_reason:
            raise _failure(error) from error
        # Else the answer is there, and whatever else was to come is no part of it.
    rest = answer.end()
    yield ChatResponse(message=answer.message(), delta=rest, raw=last)


def _piece(text: str, thinking: str) -> ChatResponse:
    extra = {"thinking_delta": thinking} if thinking else {}
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=text, additional_kwargs=extra)


def _failure(error: Exception) -> Exception:
    """What went wrong in the middle of an answer, as an error of the model's."""
    if isinstance(error, httpx.TimeoutException):
        return openai.APITimeoutError(error.request)
    return BrokenAnswer("the model's answer broke off, or cannot be read")


def _without_default_strictness(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool's schema without `strict: false`, which is the default, and which some servers refuse."""
    function = tool.get("function", {})
    if function.get("strict") is not False:
        return tool
    return {**tool, "function": {name: value for name, value in function.items() if name != "strict"}}


async def _no_long_pause(response: httpx.Response) -> None:
    """Tell the client not to wait where it would take the time of the turn."""
    if asked_pause(response.headers) > LONGEST_PAUSE_SECONDS:
        response.headers["x-should-retry"] = "false"


def chat_model(settings: Settings) -> ChatModel:
    """The client of this process. It keeps connections, and nothing of any conversation. Raises SettingsError."""
    return model_client(settings, settings.model_key())


@lru_cache(maxsize=2)  # a key that was replaced gets a new client
def model_client(settings: Settings, key: str) -> ChatModel:
    """The client for one key."""
    return ChatModel(
        model=settings.openai_model,
        api_base=settings.openai_api_base,
        api_key=key,
        context_window=settings.context_window,
        chosen=chosen_parameters(settings),
        streaming=settings.model_streaming,
        max_retries=0,  # LlamaIndex's own retries, which would multiply those of the client
        async_openai_client=AsyncOpenAI(  # type: ignore[call-arg] # to the checker, a model takes its fields alone
            base_url=settings.openai_api_base,
            api_key=key,
            timeout=settings.model_timeout_seconds,
            max_retries=settings.model_retries,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [_no_long_pause]}),
        ),
    )


def chosen_parameters(settings: Settings) -> dict[str, Any]:
    """The parameters of each request that the settings choose."""
    # OpenAI's newer models refuse `max_tokens`; other servers do not all know its successor.
    limit = "max_tokens" if settings.openai_api_base else "max_completion_tokens"
    chosen = {
        "temperature": settings.model_temperature,
        "reasoning_effort": settings.model_reasoning_effort,
        limit: settings.max_answer_tokens,
    }
    return {name: value for name, value in chosen.items() if value is not None}
