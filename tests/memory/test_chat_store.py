"""LlamaIndex's chat stores over the log: the durable drop-in, and the store of one turn."""

import asyncio
import copy
import json
import os
import pickle
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.core.workflow import Context
from sqlalchemy.ext.asyncio import create_async_engine
from workflows.context.serializers import PickleSerializer

from memory import chat_store as chat_store_module
from memory.chat_store import (
    DynamoDBChatStore,
    TurnChatStore,
    clean_message,
    clean_text,
    count_tokens,
    turn_memory,
)
from memory.dynamodb import DynamoDBTurnLog
from memory.turns import ClaimRefused, DamagedTurn, LeaseLost, TurnInProgress
from tests.conftest import TABLE, Clock, Store, answer_again, damage, fail, say, store_at

ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED
Steps = Callable[[AsyncDBChatStore], Awaitable[Any]]


def on_table(store: Store, log: Any = None) -> DynamoDBChatStore:
    """The drop-in chat store on a table."""
    return DynamoDBChatStore.on(table=TABLE, log=log or store.log(), sessions=store.sessions(), owner=store.owner)


def message(text: str, role: str = "user") -> ChatMessage:
    return ChatMessage(role=role, content=text)


def messages(texts: str) -> list[ChatMessage]:
    return [message(text, "user" if i % 2 == 0 else "assistant") for i, text in enumerate(texts)]


def texts(found: list[ChatMessage]) -> str:
    return "".join(one.content or "-" for one in found)


@pytest.fixture
def chat_store(store: Store) -> DynamoDBChatStore:
    return on_table(store)


async def added(store: AsyncDBChatStore) -> None:
    await store.add_message("k", message("a"))
    await store.add_messages("k", messages("bc"))
    await store.add_message("k", message("d"), ARCHIVED)


async def was_set(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.set_messages("k", messages("xyz"))


async def was_set_archived(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.set_messages("k", messages("xyz"), ARCHIVED)
    await store.add_message("k", message("w"))


async def was_set_to_nothing(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.set_messages("k", [])


async def archived(store: AsyncDBChatStore) -> Any:
    await store.add_messages("k", messages("abcd"))
    first = await store.archive_oldest_messages("k", 1)
    second = await store.archive_oldest_messages("k", 2)
    return texts(first), texts(second), texts(await store.archive_oldest_messages("k", 9))


async def archived_around_an_archived_one(store: AsyncDBChatStore) -> Any:
    await added(store)
    await store.add_messages("k", messages("ef"))
    return texts(await store.archive_oldest_messages("k", 4))


async def deleted_from_the_front(store: AsyncDBChatStore) -> Any:
    await store.add_messages("k", messages("abc"))
    await store.add_messages("k", messages("de"))
    return texts(await store.delete_oldest_messages("k", 2)), texts(await store.delete_oldest_messages("k", 2))


async def deleted_behind_archived_ones(store: AsyncDBChatStore) -> Any:
    await store.add_messages("k", messages("abcde"))
    await store.archive_oldest_messages("k", 2)
    return texts(await store.delete_oldest_messages("k", 1))


async def deleted_to_the_last(store: AsyncDBChatStore) -> Any:
    await store.add_messages("k", messages("ab"))
    return texts(await store.delete_oldest_messages("k", 5))


async def deleted_by_status(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.delete_messages("k", ACTIVE)


async def deleted_the_archived(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.delete_messages("k", ARCHIVED)


async def deleted_all(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.delete_messages("k")


async def deleted_and_begun_again(store: AsyncDBChatStore) -> None:
    await deleted_all(store)
    await store.add_messages("k", messages("new"))


async def nothing_at_all(store: AsyncDBChatStore) -> Any:
    await store.delete_messages("k")
    await store.delete_messages("k", ACTIVE)
    return texts(await store.archive_oldest_messages("k", 1)), texts(await store.delete_oldest_messages("k", 1))


async def several_keys(store: AsyncDBChatStore) -> None:
    await added(store)
    await store.add_message("other key/with #", message("o"))


@pytest.mark.parametrize(
    "steps",
    [
        added,
        was_set,
        was_set_archived,
        was_set_to_nothing,
        archived,
        archived_around_an_archived_one,
        deleted_from_the_front,
        deleted_behind_archived_ones,
        deleted_to_the_last,
        deleted_by_status,
        deleted_the_archived,
        deleted_all,
        deleted_and_begun_again,
        nothing_at_all,
        several_keys,
    ],
)
async def test_it_shows_what_llama_index_own_store_shows(chat_store: DynamoDBChatStore, steps: Steps) -> None:
    """After the same calls, messages, their order and status, counts, pages and keys equal SQLAlchemyChatStore's."""

    async def visible(store: AsyncDBChatStore) -> Any:
        returned = await steps(store)
        shown = [
            texts(await store.get_messages("k", status, limit, offset))
            for status in (ACTIVE, ARCHIVED, None)
            for limit, offset in [(None, None), (2, None), (1, 1), (0, 0), (9, 2), (None, 1)]
            if limit is not None or offset is None
        ]
        counts = [await store.count_messages("k", status) for status in (ACTIVE, ARCHIVED, None)]
        return returned, shown, counts, sorted(await store.get_keys())

    engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    try:
        theirs = SQLAlchemyChatStore(table_name="messages", async_engine=engine)
        assert await visible(chat_store) == await visible(theirs)
    finally:
        await engine.dispose()


async def test_adding_nothing_does_nothing(chat_store: DynamoDBChatStore) -> None:
    """An empty batch is no turn, and makes no key."""
    await chat_store.add_messages("k", [])
    assert await chat_store.get_keys() == []


async def test_a_message_is_deleted_by_its_index_among_the_active_ones(chat_store: DynamoDBChatStore) -> None:
    """Index 0 is the oldest active message; one that is not there deletes nothing."""
    await chat_store.add_messages("k", messages("abcd"))
    await chat_store.archive_oldest_messages("k", 1)
    deleted = await chat_store.delete_message("k", 1)
    assert deleted is not None
    assert deleted.content == "c"
    assert await chat_store.delete_message("k", 9) is None
    assert await chat_store.delete_message("k", -1) is None
    assert texts(await chat_store.get_messages("k", None)) == "abd"


async def test_a_history_that_cannot_be_read_is_not_rewritten(store: Store) -> None:
    """A turn that only a newer release can read is not lost to a rewrite by this one."""
    chat_store = on_table(store)
    for text in "abc":
        await chat_store.add_message("talk", message(text))
    damage(store, 2, "v", {"N": "99"})
    with pytest.raises(DamagedTurn):
        await chat_store.delete_message("talk", 0)
    damage(store, 2, "v", {"N": "1"})
    assert texts(await chat_store.get_messages("talk")) == "abc"


async def test_every_kind_of_message_comes_back_as_it_was(chat_store: DynamoDBChatStore) -> None:
    """Tool calls, floats, images, thoughts and extra arguments survive the table."""
    kinds = [
        message("ask"),
        ChatMessage(
            role="assistant",
            blocks=[
                ThinkingBlock(content="hm"),
                ToolCallBlock(
                    tool_call_id="1", tool_name="total", tool_kwargs={"numbers": [1.5, 2e-9], "deep": {"": None}}
                ),
            ],
        ),
        ChatMessage(role="tool", content="3.5", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant", blocks=[TextBlock(text="3.5\u0000"), ImageBlock(image=b"aGk=", detail="low")]),
    ]
    await chat_store.add_messages("k", kinds)
    found = await chat_store.get_messages("k")
    assert [one.model_dump(mode="json") for one in found] == [one.model_dump(mode="json") for one in kinds]


HALF = "a\ud83db"
"""Half an emoji, as a stream leaves it that was cut in the middle of a character."""
DIRTY = {
    "text": lambda: message(HALF),
    "tool arguments": lambda: calling({"where": [{"name": HALF}, (HALF, 1.5)]}),
    "names of tool arguments": lambda: calling({HALF: 1}),
    "tool arguments as text": lambda: calling(HALF),
    "thinking": lambda: ChatMessage(role="assistant", blocks=[ThinkingBlock(content=HALF)]),
    "citable": lambda: ChatMessage(blocks=[CitableBlock(title=HALF, source="s", content=[TextBlock(text=HALF)])]),
    "document": lambda: ChatMessage(blocks=[DocumentBlock(data=b"x", title=HALF)]),
    "additional arguments": lambda: ChatMessage(content="x", additional_kwargs={HALF: [{"deep": HALF}]}),
}
"""Messages with half a character in every kind of place."""


def calling(arguments: Any) -> ChatMessage:
    call = ToolCallBlock(tool_call_id="1", tool_name="total", tool_kwargs=arguments)
    return ChatMessage(role="assistant", blocks=[call])


@pytest.mark.parametrize("kind", DIRTY)
async def test_half_a_character_is_stored_and_counted_as_it_is_sent_to_the_model(moto_store: Store, kind: str) -> None:
    """Wherever it stands, it is replaced once, when the message comes in, so that whatever follows can be encoded."""
    chat_store = on_table(moto_store)
    of_a_turn = await turn_store(moto_store)
    for store in (chat_store, of_a_turn):
        await store.add_message("k", DIRTY[kind]())
    (found,), collected = await chat_store.get_messages("k"), of_a_turn.collected()
    dumped = json.dumps(found.model_dump(mode="json"), ensure_ascii=False)
    assert "a\ufffdb" in dumped
    assert collected == [found]
    (turn,) = (await moto_store.log().load(moto_store.session("k"), token_limit=None)).turns
    assert turn.tokens == count_tokens([found])


async def test_what_an_agent_reads_in_its_turn_is_clean(moto_store: Store) -> None:
    """The model and the tools of a running turn are shown the text that is stored."""
    store = await turn_store(moto_store)
    await store.set_messages("any", [message(HALF)])
    assert texts(await store.get_messages("any")) == "a\ufffdb"


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("", ""),
        ("plain", "plain"),
        ("é\u0000\U0001f600", "é\u0000\U0001f600"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
    ],
)
def test_a_clean_text_can_be_encoded(dirty: str, clean: str) -> None:
    """Both halves of a character become that character, a lone half the replacement character; other text stays."""
    assert clean_text(dirty) == clean


def test_cleaning_a_message_changes_nothing_else() -> None:
    """A message without half a character comes back equal, and the one that was handed in is left as it was."""
    dirty = calling({"where": HALF, "numbers": [1.5, 2], "none": None})
    cleaned = clean_message(dirty)
    assert dirty.blocks[0].tool_kwargs["where"] == HALF
    assert cleaned == calling({"where": "a\ufffdb", "numbers": [1.5, 2], "none": None})
    assert clean_message(cleaned) == cleaned
    nested = ChatMessage(additional_kwargs={"block": TextBlock(text=HALF)})
    assert clean_message(nested).additional_kwargs == {"block": TextBlock(text="a\ufffdb")}
    image = ChatMessage(role="tool", blocks=[ImageBlock(image=b"aGk=", detail="low")], additional_kwargs={"raw": b"hi"})
    assert clean_message(image) == image


async def test_what_is_done_to_a_returned_message_never_changes_the_store(chat_store: DynamoDBChatStore) -> None:
    """LlamaIndex changes messages in place; each reader has copies of its own."""
    await chat_store.add_message("k", message("a"))
    (found,) = await chat_store.get_messages("k")
    found.blocks[0].text = "changed"
    assert texts(await chat_store.get_messages("k")) == "a"


async def test_one_add_is_one_append(real_store: Store) -> None:
    """Adding to a long history costs three calls, and as many units as adding to a short one."""
    store = on_table(real_store)
    for i in range(40):
        await store.add_message("k", message(str(i)))
    log = real_store.log()
    await on_table(real_store, log).add_message("k", message("last"))
    assert log.usage.calls == 3
    assert log.usage.read_units <= 1
    assert log.usage.write_units <= 4


async def test_concurrent_adds_are_all_kept(real_store: Store) -> None:
    """Programs that write to one key at once lose nothing, and what was added together stays together."""

    async def write(writer: str) -> None:
        store = on_table(real_store)
        for _ in range(5):
            await store.add_messages("k", messages(writer * 2))

    await asyncio.gather(*map(write, "abcd"))
    found = texts(await on_table(real_store).get_messages("k"))
    pairs = [found[i : i + 2] for i in range(0, len(found), 2)]
    assert sorted(pairs) == ["aa"] * 5 + ["bb"] * 5 + ["cc"] * 5 + ["dd"] * 5


async def test_memory_finds_its_history_again(chat_store: DynamoDBChatStore, store: Store) -> None:
    """LlamaIndex's Memory on the drop-in: another process with the same session id has the messages."""
    await Memory.from_defaults(session_id="ada", chat_store=chat_store).aput(message("My name is Ada"))
    other = on_table(store)
    assert texts(await Memory.from_defaults(session_id="ada", chat_store=other).aget()) == "My name is Ada"


async def test_memory_archives_on_the_drop_in(chat_store: DynamoDBChatStore) -> None:
    """When Memory's limit is reached it archives whole turns; nothing is lost, and the rest stays active."""
    memory = Memory.from_defaults(session_id="k", chat_store=chat_store, token_limit=40, token_flush_size=5)
    for i in range(8):
        await memory.aput_messages([message(f"question {i}"), message(f"answer {i}", "assistant")])
    active, everything = await memory.aget(), await memory.aget_all()
    assert [one.content for one in everything] == [f"{kind} {i}" for i in range(8) for kind in ("question", "answer")]
    assert 0 < len(active) < len(everything)
    assert active == everything[-len(active) :]
    assert active[0].role == "user"


def test_memory_works_without_an_event_loop(moto_store: Store) -> None:
    """The synchronous half of Memory works on the drop-in, from call to call."""
    store = on_table(moto_store)
    memory = Memory.from_defaults(session_id="k", chat_store=store)
    memory.put(message("a"))
    memory.put(message("b"))
    assert texts(memory.get()) == "ab"


async def turn_store(store: Store) -> TurnChatStore:
    for text in "ab":
        await say(store.log(), store.session(), text)
    return TurnChatStore(await store.log().load(store.session(), token_limit=1000))


async def test_the_store_of_a_turn_reads_the_window_and_collects_what_is_added(moto_store: Store) -> None:
    """The agent sees the window and its own messages; only those are for the commit, and no call is made."""
    store = await turn_store(moto_store)
    await store.add_message("any", message("c"))
    await store.add_messages("any", [message("d", "assistant")])
    assert [one.content for one in await store.get_messages("any")] == [
        "a",
        "answer to a",
        "b",
        "answer to b",
        "c",
        "d",
    ]
    assert texts(store.collected()) == "cd"
    assert await store.count_messages("any") == 6


async def test_the_store_of_a_turn_gives_copies(moto_store: Store) -> None:
    """Neither the window nor what was collected changes with what a reader does to its messages."""
    store = await turn_store(moto_store)
    await store.add_message("any", message("c"))
    for one in await store.get_messages("any"):
        one.blocks[0].text = "changed"
    assert texts(store.collected()) == "c"
    assert (await store.get_messages("any"))[0].content == "a"


async def test_a_closed_turn_takes_nothing_more(moto_store: Store) -> None:
    """What an agent adds after its deadline is not collected."""
    store = await turn_store(moto_store)
    store.close()
    await store.add_message("any", message("late"))
    assert store.collected() == []


async def test_the_store_of_a_turn_does_what_a_chat_store_does(moto_store: Store) -> None:
    """Archiving and deleting work within the turn, and leave the table as it is."""
    store = await turn_store(moto_store)
    assert texts(await store.archive_oldest_messages("any", 1)) == "a"
    assert texts(await store.delete_oldest_messages("any", 1)) == "answer to a"
    deleted = await store.delete_message("any", 0)
    assert deleted is not None
    assert deleted.content == "b"
    assert texts(await store.get_messages("any", ARCHIVED)) == "a"
    await store.set_messages("any", [message("new")])
    assert texts(await store.get_messages("any", None)) == "new"
    await store.delete_messages("any")
    assert await store.count_messages("any", None) == 0
    assert await store.get_keys() == []
    window = await moto_store.log().load(moto_store.session(), token_limit=1000)
    assert len(window.turns) == 2


async def test_the_memory_of_a_turn_never_cuts_the_window(moto_store: Store) -> None:
    """However much the window holds, Memory shows all of it: the log alone picks."""
    await say(moto_store.log(), moto_store.session(), "word " * 50_000, tokens=1)
    window = await moto_store.log().load(moto_store.session(), token_limit=1000)
    memory = turn_memory(TurnChatStore(window), moto_store.session())
    await memory.aput(message("next"))
    assert len(await memory.aget()) == 3


def test_tool_calls_count_as_tokens() -> None:
    """A tool call takes room in the model's context, and so it does in a window."""
    call = ToolCallBlock(tool_call_id="1", tool_name="total", tool_kwargs={"numbers": list(range(200))})
    assert count_tokens([ChatMessage(role="assistant", blocks=[call])]) > 200


async def test_answers_that_were_given_again_are_not_messages(store: Store, chat_store: DynamoDBChatStore) -> None:
    """LlamaIndex sees the last answer to a question, before and after it removes another message."""
    session = store.session("k")
    for text in "ab":
        await say(store.log(), session, text)
    await answer_again(store.log(), session, 2, "again")
    await fail(store.log(), session, "b", again=3)
    assert texts(await chat_store.get_messages("k")) == "aanswer to abagain"
    await chat_store.delete_message("k", 1)
    assert texts(await chat_store.get_messages("k")) == "abagain"
    assert [turn.answer for turn in (await store.log().load(session, token_limit=1000)).turns][-1] == "again"


RESTORED = {
    "dumped": lambda store: DynamoDBChatStore.model_validate(store.model_dump()),
    "dumped as JSON": lambda store: DynamoDBChatStore.model_validate_json(store.model_dump_json()),
    "pickled": lambda store: pickle.loads(pickle.dumps(store)),  # noqa: S301 - what was pickled just before
    "copied": lambda store: store.model_copy(deep=True),
    "deep-copied": copy.deepcopy,
    "in a memory's copy": lambda store: (
        Memory.from_defaults(session_id="k", chat_store=store).model_copy(deep=True).sql_store
    ),
}


@pytest.mark.parametrize("way", RESTORED)
async def test_a_store_that_was_copied_or_dumped_goes_on(dynoxide: str, way: str) -> None:
    """It finds the table again by name, endpoint and region, in another process too, and carries no credentials."""
    store_at(dynoxide)
    owner = uuid.uuid4().hex
    store = DynamoDBChatStore.from_table(
        TABLE, owner=owner, endpoint=dynoxide, region="us-east-1", retention=timedelta(days=1)
    )
    await store.add_message("k", message("a"))
    restored = RESTORED[way](store)
    await restored.add_message("k", message("b"))
    assert texts(await store.get_messages("k")) == "ab"
    assert restored.model_dump() == store.model_dump()
    assert not {"test", os.environ["AWS_SECRET_ACCESS_KEY"]} & set(map(str, store.model_dump().values()))


async def test_a_workflow_context_can_be_stored_with_its_memory(dynoxide: str) -> None:
    """`Context.to_dict` pickles the memory that an agent used, and the store in it."""
    store = DynamoDBChatStore.from_table(TABLE, owner=uuid.uuid4().hex, endpoint=dynoxide, region="us-east-1")
    store_at(dynoxide)
    await store.add_message("k", message("a"))
    context = Context(FunctionAgent(name="a", llm=MockFunctionCallingLLM()))
    await context.store.set("memory", Memory.from_defaults(session_id="k", chat_store=store))
    kept = json.loads(json.dumps(context.to_dict(serializer=PickleSerializer())))
    restored = Context.from_dict(
        FunctionAgent(name="a", llm=MockFunctionCallingLLM()), kept, serializer=PickleSerializer()
    )
    memory = await restored.store.get("memory")
    assert [each.content for each in await memory.aget_all()] == ["a"]


async def test_messages_are_kept_for_as_long_as_a_retention_says(dynoxide: str) -> None:
    """Those that are added with one expire; others stay."""
    store = store_at(dynoxide)
    kept = DynamoDBChatStore.from_table(TABLE, owner=store.owner, endpoint=dynoxide)
    brief = DynamoDBChatStore.from_table(TABLE, owner=store.owner, endpoint=dynoxide, retention=timedelta(days=1))
    await brief.add_message("brief", message("a"))
    await kept.add_message("kept", message("a"))
    tomorrow = Clock()
    tomorrow.now += timedelta(days=1, minutes=1)
    log = store.log(clock=tomorrow)
    left = [await log.load(store.session(name), token_limit=None) for name in ("brief", "kept")]
    assert [len(window.turns) for window in left] == [0, 1]


@pytest.mark.parametrize("error", [ClaimRefused("was faster"), LeaseLost("overtook"), TurnInProgress(7)], ids=repr)
async def test_whoever_is_always_overtaken_is_told_that_others_are_busy(
    moto_store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """After 30 s it is one error, whatever the others did, and nothing was changed."""

    async def overtaken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(chat_store_module, "PATIENCE_SECONDS", 0.0)
    store = on_table(moto_store)
    monkeypatch.setattr(DynamoDBTurnLog, "commit", overtaken)
    with pytest.raises(TurnInProgress, match="nothing of this change was stored") as raised:
        await store.add_message("k", message("a"))
    assert raised.value.__cause__ is error


async def test_what_is_archived_costs_nothing_to_who_does_not_ask_for_it(real_store: Store) -> None:
    """Reading, counting and archiving active messages takes the same units, however many messages are archived."""
    costs = []
    for archived in (160, 400):  # both fill the ring of request ids
        name = f"k{archived}"
        writer = on_table(real_store)
        await writer.set_messages(name, messages("x" * archived))
        await writer.archive_oldest_messages(name, archived)
        await writer.add_messages(name, messages("abcd"))
        log = real_store.log()
        reader = on_table(real_store, log)
        assert texts(await reader.get_messages(name)) == "abcd"
        assert await reader.count_messages(name) == 4
        assert texts(await reader.archive_oldest_messages(name, 2)) == "ab"
        costs.append((log.usage.calls, log.usage.read_units))
        assert texts(await reader.get_messages(name, None)) == "x" * archived + "abcd"
    assert costs[0] == costs[1]
