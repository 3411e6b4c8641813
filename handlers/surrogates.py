"""Lone surrogates (half an emoji), taken out of whatever holds text: no encoding and no model takes them."""

from typing import Any

from memory.chat_store import clean_text


def clean(value: Any) -> Any:
    """The value without lone surrogates in any of its texts."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {clean(key): clean(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [clean(entry) for entry in value]
    return value
