"""The chat model: OpenAI's, or any server that speaks its protocol."""

import email.utils
import math
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx
import openai
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    LLMMetadata,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from llama_index.llms.openai import OpenAI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import Field
from pydantic_core import from_json

from handlers.settings import Settings
from handlers.surrogates import clean_json
from memory.chat_store import clean_message

LONGEST_PAUSE_SECONDS = 5.0
"""A model's server that asks for a longer one before the next request is not waited for: the turn fails at once."""
NO_OBJECT = "arguments that are no JSON object"


class BrokenAnswer(Exception):
    """The model's answer broke off, or cannot be read."""


class ChatModel(OpenAI):
    """OpenAI's client without its table of model names: any name of any OpenAI-compatible server will do.

    It takes nothing for an answer that the model did not say was one.
    """

    context_window: int = Field(default=128_000, description="Tokens that the model takes, prompt and answer together.")

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.context_window,
            num_output=self.max_tokens or -1,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        return _clean(_whole(await super().astream_chat(messages, **kwargs)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        response: ChatResponse = await super().achat(messages, **kwargs)
        return response.model_copy(update={"message": _clean_message(response.message)})

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of tools. LlamaIndex mends broken arguments as it can, so that a tool runs with what nobody asked
        for; here they become an argument that no tool has, which the tool refuses, and the model is told."""
        calls = super().get_tool_calls_from_response(response, error_on_no_tool_call, **kwargs)
        given = [block.tool_kwargs for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        return [
            call if _is_object(arguments) else call.model_copy(update={"tool_kwargs": {NO_OBJECT: arguments}})
            for call, arguments in zip(calls, given, strict=True)
        ]


async def _clean(pieces: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
    """The pieces without lone surrogates: what they say is sent again, given to tools, counted and stored."""
    async for piece in pieces:
        yield piece.model_copy(update={"message": _clean_message(piece.message)})


def _clean_message(message: ChatMessage) -> ChatMessage:
    """The message without lone surrogates, whether as they are or escaped in the JSON of a tool's arguments."""
    message = clean_message(message)
    for block in message.blocks:
        if isinstance(block, ToolCallBlock) and isinstance(block.tool_kwargs, str):
            block.tool_kwargs = clean_json(block.tool_kwargs)
    return message


async def _whole(pieces: ChatResponseAsyncGen) -> ChatResponseAsyncGen:
    """The pieces of an answer. Raises openai.APIError or BrokenAnswer where the model does not come to its end."""
    finished = False
    try:
        async for piece in pieces:
            finished = finished or any(choice.finish_reason for choice in piece.raw.choices)  # type: ignore[union-attr]
            yield piece
    except Exception as error:
        if finished:
            return  # the answer is there, and whatever else was to come is no part of it
        if isinstance(error, openai.APIError):
            raise
        if isinstance(error, httpx.TimeoutException):
            raise openai.APITimeoutError(error.request) from error
        raise BrokenAnswer("the model's answer broke off, or cannot be read") from error
    if not finished:
        raise BrokenAnswer("the model's answer ended before the model said so")


def _is_object(arguments: Any) -> bool:
    """Whether a tool can be called with these; a call without any comes as an empty text."""
    try:
        return isinstance(from_json(arguments or "{}") if isinstance(arguments, str) else arguments, dict)
    except ValueError:
        return False


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a model's server asks to wait before the next request; 0 where it asks for none."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        date = email.utils.parsedate_tz(asked)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0


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
        max_retries=0,  # LlamaIndex's own retries, which would multiply those of the client
        async_openai_client=AsyncOpenAI(  # type: ignore[call-arg] # to the checker, a model takes its fields alone
            base_url=settings.openai_api_base,
            api_key=key,
            timeout=settings.model_timeout_seconds,
            max_retries=settings.model_retries,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [_no_long_pause]}),
        ),
    )
