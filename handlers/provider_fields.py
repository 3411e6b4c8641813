"""Fields beyond OpenAI's protocol that a provider needs back with its own answers.

DeepSeek refuses a later request without the `reasoning_content` of answers that called tools, Gemini one without the
`thought_signature` of its calls. Other vendors refuse fields that they do not know. So a message keeps such fields with
its origin, and they go back to that origin alone.
"""

from typing import Any

ORIGIN = "origin"
"""Where a message keeps which server and model wrote it, as `host/model`."""
FIELDS = "fields"
"""Where a message keeps a provider's fields of its own; those of its calls are a list, in their order."""
FIELD = "field"
"""Where a thinking block keeps the field that it came in, if the provider needs it back."""
MESSAGE_FIELDS = ("reasoning_content", "reasoning_details", "thinking_blocks", "extra_content")
"""Of a message: DeepSeek (and Kimi, MiMo, GLM), OpenRouter, LiteLLM, Gemini."""
CALL_FIELDS = ("extra_content", "thought_signature", "provider_specific_fields")
"""Of a call: Gemini, Gemini behind gateways, LiteLLM."""
_GROWING = ("text", "thinking", "summary", "data")
"""Texts that are streamed in pieces; any other value replaces the one before."""


def combined(kept: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Fields with what another piece of the stream says of them."""
    return {**kept, **{name: _value(name, kept.get(name), value) for name, value in more.items()}}


def _value(name: str, kept: Any, value: Any) -> Any:
    if isinstance(kept, dict) and isinstance(value, dict):
        return combined(kept, value)
    if isinstance(kept, list) and isinstance(value, list):
        items = list(kept)
        for item in value:
            _add(items, item)
        return items
    if isinstance(kept, str) and isinstance(value, str) and name in _GROWING:
        return kept + value
    return kept if value is None else value


def _add(items: list[Any], item: Any) -> None:
    """Continue the last item if this is a piece of it; else begin another."""
    last = items[-1] if items else None
    if isinstance(item, dict) and isinstance(last, dict):
        same = (item.get("index"), item.get("type")) == (last.get("index"), last.get("type"))
        if same and not last.get("signature"):
            items[-1] = combined(last, item)
            return
    items.append(item)
