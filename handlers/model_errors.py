"""What an error of the model's server means: a code for logs and callers, and the facts that help an operator.

OpenAI's own codes come first. Other servers say the same in words alone, which are searched; none of them gets out.
"""

import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

_TOO_LONG = re.compile(
    r"context.{0,20}(length|window|size|limit)|maximum.{0,30}tokens|too many (input )?tokens"
    r"|(prompt|input|request|messages?).{0,20}too (long|large)|exceed\w* .{0,40}tokens",
    re.IGNORECASE,
)
_FILTERED = re.compile(
    r"content.?(filter|policy|management)|data_?inspection|responsible ?ai|safety (system|polic)", re.IGNORECASE
)
_QUOTED = r"['\"`]([a-z_]{2,40})['\"`]"
_PARAMETER = re.compile(
    rf"(?:unsupported|unrecognized|unknown|invalid|unexpected|not supported|extra)[^'\"`]{{0,40}}{_QUOTED}"
    rf"|{_QUOTED}[^'\"`]{{0,40}}(?:unsupported|not supported|not allowed|not permitted|does not support)",
    re.IGNORECASE,
)
_NO_STREAM = re.compile(
    r"\bstream(ing)?\b.{0,40}\b(not|cannot|unsupported)|(not|cannot)\b.{0,30}\bstream", re.IGNORECASE
)
_LIMIT = re.compile(r"(?:limit|maximum|max|length|window|size)\D{0,40}?(\d{3,8})", re.IGNORECASE)
_TOO_LONG_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_FILTER_CODES = {"content_filter", "content_policy_violation", "data_inspection_failed"}
_PARAMETER_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "invalid_parameter"}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
PARAMETERS = {
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "reasoning_effort", "stream", "stream_options"),
    *("parallel_tool_calls", "tool_choice", "tools", "strict", "response_format", "user", "safety_identifier"),
}
"""Parameters that a request may have. A log names these alone: any other word in an error may quote a message."""


@dataclass(frozen=True, kw_only=True)
class ModelRefusal:
    """Why the model's server gave no answer."""

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the log: `refused_parameter`, `model_limit` (tokens)."""
    retry_after: int | None = None
    """Seconds that the server asks to wait."""


def refusal_of(error: openai.APIError) -> ModelRefusal:
    """What an error means."""
    code, param, text = _said(error)
    if isinstance(error, openai.APITimeoutError):
        return ModelRefusal(code="model_timeout")
    if code in _QUOTA_CODES:
        return ModelRefusal(code="model_quota")
    if isinstance(error, openai.RateLimitError):
        pause = math.ceil(asked_pause(error.response.headers)) or None
        return ModelRefusal(code="model_busy", retry_after=pause)
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError):
        return ModelRefusal(code="model_access")
    if code in _TOO_LONG_CODES or _status(error) == 413 or _TOO_LONG.search(text):
        limit = _LIMIT.search(text)
        return ModelRefusal(code="prompt_too_long", facts={"model_limit": int(limit[1])} if limit else {})
    if code in _FILTER_CODES or _FILTERED.search(text):
        return ModelRefusal(code="content_filter")
    if _status(error) not in (400, 422):
        return ModelRefusal(code="model_error")
    if parameter := _parameter(code, param, text):
        return ModelRefusal(code="parameter_refused", facts={"refused_parameter": parameter})
    return ModelRefusal(code="prompt_refused")


def asked_pause(headers: Mapping[str, str]) -> float:
    """Seconds that a model's server asks to wait before the next request; 0 if it asks for none."""
    asked = headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        date = email.utils.parsedate_tz(asked)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0


def _status(error: openai.APIError) -> int | None:
    return error.status_code if isinstance(error, openai.APIStatusError) else None


def _parameter(code: str, param: str, text: str) -> str | None:
    """The parameter that a server refuses; None if it is the prompt."""
    if param in PARAMETERS:
        return param
    if param:
        return None  # `messages[3].tool_calls` and the like
    quoted = _PARAMETER.search(text)
    name = (quoted[1] or quoted[2]).lower() if quoted else ""
    if name in PARAMETERS:
        return name
    if re.search(
        r"\bstream(ing)?\b.{0,40}\b(not|cannot|unsupported)|(not|cannot)\b.{0,30}\bstream", text, re.IGNORECASE
    ):
        return "stream"
    return "unknown" if code in _PARAMETER_CODES else None


def _said(error: openai.APIError) -> tuple[str, str, str]:
    """The error's code (or type), parameter and words, wherever a server puts them."""
    body = error.body
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    said: Mapping[str, Any] = body if isinstance(body, Mapping) else {}
    inner = said.get("innererror")
    codes = [said.get("code"), said.get("type"), inner.get("code") if isinstance(inner, Mapping) else None]
    known = _TOO_LONG_CODES | _FILTER_CODES | _PARAMETER_CODES | _QUOTA_CODES
    code = next((one for one in (str(code).lower() for code in codes) if one in known), str(said.get("code") or ""))
    text = f"{said.get('message') or body or error.message}"
    return code, str(said.get("param") or ""), text
