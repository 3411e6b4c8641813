"""Lone surrogates (half an emoji), taken out of whatever holds text: no encoding and no model takes them."""

import json
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


def clean_json(text: str) -> str:
    """The JSON text without lone surrogates that it has as escapes. Text that is not JSON stays as it is."""
    if "\\ud" not in text.lower():
        return text
    try:
        return json.dumps(clean(json.loads(text)), ensure_ascii=False)
    except ValueError:
        return text
