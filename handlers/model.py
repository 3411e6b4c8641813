"""The chat model: OpenAI's, or any server that speaks its protocol."""

from functools import lru_cache

from llama_index.core.base.llms.types import LLMMetadata
from llama_index.llms.openai import OpenAI
from openai import AsyncOpenAI
from pydantic import Field

from handlers.settings import Settings


class ChatModel(OpenAI):
    """OpenAI's client without its table of model names: any name of any OpenAI-compatible server will do."""

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
        ),
    )
