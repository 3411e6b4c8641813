"""DynamoDBChatStore beside LlamaIndex's own SQLAlchemyChatStore: whatever is done to both, they show the same."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from sqlalchemy.ext.asyncio import create_async_engine

from memory.chat_store import DynamoDBChatStore
from tests.conftest import TABLE, Store

KEYS = st.sampled_from(["k", "another key/with #"])
STATUS = st.sampled_from(list(MessageStatus))
BATCH = st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), min_size=1, max_size=4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add_messages"), KEYS, BATCH, STATUS),
        st.tuples(st.just("add_message"), KEYS, BATCH, STATUS),
        st.tuples(st.just("set_messages"), KEYS, st.lists(st.just("user"), max_size=3), STATUS),
        st.tuples(st.just("archive_oldest_messages"), KEYS, st.integers(0, 5)),
        st.tuples(st.just("delete_oldest_messages"), KEYS, st.integers(0, 5)),
        st.tuples(st.just("delete_messages"), KEYS, st.one_of(st.none(), STATUS)),
    ),
    max_size=12,
)
MEMORY_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("aput"), BATCH),
        st.tuples(st.just("aput_messages"), BATCH),
        st.tuples(st.just("aset"), BATCH),
        st.tuples(st.just("areset")),
    ),
    max_size=10,
)
ALIKE = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Messages:
    """Messages that are told apart by their texts, the same in the same order for each store."""

    def __init__(self) -> None:
        self._made = 0

    def of(self, roles: list[str]) -> list[ChatMessage]:
        """One message for each role."""
        self._made += len(roles)
        start = self._made - len(roles)
        return [ChatMessage(role=role, content=f"message {start + i}") for i, role in enumerate(roles)]


def shown(messages: list[ChatMessage]) -> list[tuple[str, str | None]]:
    return [(message.role.value, message.content) for message in messages]


async def step(store: AsyncDBChatStore, made: Messages, name: str, key: str, argument: Any, status: Any = None) -> Any:
    """One call, and what it returned."""
    match name:
        case "add_message":
            return await store.add_message(key, made.of(argument[:1])[0], status)
        case "add_messages" | "set_messages":
            return await getattr(store, name)(key, made.of(argument), status)
        case "delete_messages":
            return await store.delete_messages(key, argument)
        case _:
            return shown(await getattr(store, name)(key, argument))


async def everything(store: AsyncDBChatStore) -> Any:
    """All that the reading methods show."""
    found: dict[str, Any] = {"keys": sorted(await store.get_keys())}
    for key in ("k", "another key/with #"):
        for status in (*MessageStatus, None):
            found[f"{key} {status}"] = (
                shown(await store.get_messages(key, status)),
                await store.count_messages(key, status),
            )
            found[f"{key} {status} page"] = shown(await store.get_messages(key, status, 2, 1))
    return found


def side_by_side(store: Store, scenario: Callable[[AsyncDBChatStore], Awaitable[Any]]) -> tuple[Any, Any]:
    """What the scenario comes to on ours, and on theirs."""

    async def both() -> tuple[Any, Any]:
        ours = DynamoDBChatStore.on(table=TABLE, log=store.log(), sessions=store.sessions(), owner=store.owner)
        for key in await ours.get_keys():  # of the example before
            await ours.delete_messages(key)
        engine = create_async_engine("sqlite+aiosqlite:///:memory:")
        try:
            theirs = SQLAlchemyChatStore(table_name="messages", async_engine=engine)
            return await scenario(ours), await scenario(theirs)
        finally:
            await engine.dispose()

    return asyncio.run(both())


@pytest.mark.once
@ALIKE
@given(steps=STEPS)
def test_whatever_is_done_to_it_it_shows_what_llama_index_own_store_shows(moto_store: Store, steps: list[Any]) -> None:
    """Any calls in any order return the same, and leave the same messages, statuses, counts, pages and keys."""

    async def scenario(store: AsyncDBChatStore) -> Any:
        made = Messages()
        returned = [(one, await step(store, made, *one)) for one in steps]
        return returned, await everything(store)

    ours, theirs = side_by_side(moto_store, scenario)
    assert ours == theirs


@pytest.mark.once
@ALIKE
@given(steps=MEMORY_STEPS)
def test_memory_on_it_is_memory_on_llama_index_own_store(moto_store: Store, steps: list[Any]) -> None:
    """LlamaIndex's Memory with a small limit, so that it archives: the same active messages, and the same of all."""

    async def scenario(store: AsyncDBChatStore) -> list[Any]:
        memory = Memory.from_defaults(session_id="k", chat_store=store, token_limit=30, token_flush_size=5)
        made, seen = Messages(), []
        for name, *arguments in steps:
            messages = made.of(arguments[0]) if arguments else []
            call = getattr(memory, name)
            await (call() if name == "areset" else call(messages[0]) if name == "aput" else call(messages))
            seen.append((name, shown(await memory.aget()), shown(await memory.aget_all())))
        return seen

    ours, theirs = side_by_side(moto_store, scenario)
    assert ours == theirs
