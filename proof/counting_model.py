"""A model that counts the tokens of what it is asked and answers, and answers as an attacker would like it to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llama_index.core.utils import get_tokenizer

from tests.faulty_model import Answer, Exchange, calls, chunk, faulty_model, streams

THINKING_SECONDS = 0.05
SLOW_SECONDS = 3.0
ANSWER_TOKENS, ENDLESS_TOKENS = 50, 8_000
"""Of an answer; and of the longest that it gives where nobody limits it."""
LOOP, SLOWLY, AT_LENGTH, BESIDE = "again and again", "slowly", "at length", "by the way"
"""Said in a message, they bring a tool call each time, a late answer, a long one, one that is not counted."""


@dataclass(kw_only=True)
class Tokens:
    """What attackers had the model read and write so far."""

    number: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, number: int) -> None:
        with self.lock:
            self.number += number

    def taken(self) -> int:
        """What was counted since this was asked last."""
        with self.lock:
            found, self.number = self.number, 0
            return found


@contextmanager
def counting_model() -> Iterator[tuple[str, Tokens]]:
    """The endpoint of such a model, and what it counts, for as long as the block runs."""
    tokens, count = Tokens(), get_tokenizer()

    def answer(exchange: Exchange) -> None:
        asked = exchange.asked
        newest = next(text_of(one) for one in reversed(asked["messages"]) if one["role"] == "user")
        time.sleep(SLOW_SECONDS if SLOWLY in newest else THINKING_SECONDS)
        reply, length = _reply(newest, asked)
        if BESIDE not in newest:
            tokens.add(sum(len(count(text_of(one))) for one in asked["messages"]) + length)
        reply(exchange)

    with faulty_model() as model:
        model.tell(always=answer)
        yield model.endpoint, tokens


def text_of(message: dict[str, Any]) -> str:
    """What a message says."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _reply(newest: str, asked: dict[str, Any]) -> tuple[Answer, int]:
    """What is answered, and its tokens: a word is one."""
    if LOOP in newest:
        return calls("total", '{"numbers": [1, 2]}'), 10
    limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or ENDLESS_TOKENS
    length = min(limit, ENDLESS_TOKENS if AT_LENGTH in newest else ANSWER_TOKENS)
    return streams(chunk({"role": "assistant", "content": " word" * length}), chunk({}, "stop")), length
