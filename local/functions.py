"""The functions of the stack, by the names of their handlers, and which of them a request is for. Pure.

`template.yaml` says the same to AWS, except of what no function has a route for: there API Gateway answers that itself.
"""

from __future__ import annotations

import re

CHAT = "handlers.chat:handler"
SESSIONS = "handlers.sessions:handler"
SWEEP = "handlers.sweep:handler"

CHAT_ROUTES = (
    ("POST", r"/chat"),
    ("POST", r"/sessions/[^/]+/turns/[^/]+/regenerate"),
)
"""Method and path (a pattern of the whole of it) of what the chat function answers."""


def function_for(method: str, path: str) -> str:
    """The handler that answers a request. `path` is the API's own, without what stands in front of it."""
    is_chat = any(method == routed and re.fullmatch(pattern, path) for routed, pattern in CHAT_ROUTES)
    return CHAT if is_chat else SESSIONS


def name_of(function: str) -> str:
    """How people call a function: `chat` for `handlers.chat:handler`."""
    return function.partition(":")[0].rpartition(".")[2]
