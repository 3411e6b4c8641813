"""One turn, from the load to the commit: what happens when agents, tools and leases do not behave."""

import asyncio
import inspect
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent

from handlers import conversation
from handlers.conversation import Answered, Ask, Conversation
from handlers.model import ChatModel
from handlers.run import AgentFailed, TextDelta, ToolCalled, ToolReturned
from handlers.tools import ToolError
from memory.dynamodb import DynamoDBTurnLog
from memory.turns import LeaseLost, Request, TableUnavailable, Turn, TurnStatus
from tests.conftest import Store, say, store_at, text_message


@pytest.fixture
def store(dynoxide: str) -> Store:
    return store_at(dynoxide)


@pytest.fixture
async def llm(demo: str) -> AsyncIterator[ChatModel]:
    model = ChatModel(model="demo", api_base=f"{demo}/v1", api_key="none", max_retries=1)
    yield model
    await model._get_aclient().close()


@pytest.fixture(autouse=True)
def _little_time_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn may be begun with any time left, and keeps back half a second for its commit."""
    monkeypatch.setattr(conversation, "AGENT_SECONDS", 0.0)
    monkeypatch.setattr(conversation, "COMMIT_SECONDS", 0.5)


def begin(
    store: Store, llm: ChatModel, *tools: Callable[..., Any], seconds: float = 20, **options: Any
) -> Conversation:
    return Conversation(
        log=options.pop("log", None) or store.log(),
        build_agent=lambda: FunctionAgent(tools=list(tools), llm=llm, **options),
        instance="test",
        token_limit=10_000,
        max_result_chars=10_000,
        wait_seconds=5,
        deadline=asyncio.get_running_loop().time() + seconds,
    )


def asking(store: Store, message: str, key: str | None = None) -> Ask:
    return Ask(session=store.session(), request=Request(id=key or uuid.uuid4().hex, body_hash=""), message=message)


async def everything(turn: Conversation, ask: Ask) -> list[Any]:
    return [event async for event in turn.answer(ask)]


async def history(store: Store) -> list[Turn]:
    return list((await store.log().load(store.session(), token_limit=None)).turns)


async def test_a_turn_yields_what_happens_and_at_last_the_stored_turn(store: Store, llm: ChatModel) -> None:
    """Tool calls and pieces of text come as they happen; the answer comes when it is in the table."""

    def current_time(timezone: str) -> str:
        """The time."""
        return f"noon in {timezone}"

    seen: list[Any] = []
    async for event in begin(store, llm, current_time).answer(asking(store, "What time is it in Europe/Paris?")):
        if isinstance(event, Answered):
            assert await history(store) == [event.turn]
        seen.append(event)
    calls = [event for event in seen if isinstance(event, ToolCalled | ToolReturned)]
    assert calls == [ToolCalled(name="current_time"), ToolReturned(name="current_time", failed=False)]
    text = "".join(event.text for event in seen if isinstance(event, TextDelta))
    assert text == seen[-1].turn.answer == "The tool says: noon in Europe/Paris"


async def test_a_turn_makes_three_calls_however_often_the_agent_uses_its_memory(store: Store, llm: ChatModel) -> None:
    """Load, claim, commit: the agent's reads and writes cost no call."""

    def total(numbers: list[float]) -> float:
        """The sum."""
        return sum(numbers)

    turn = begin(store, llm, total)
    await everything(turn, asking(store, "add up 1 and 2"))
    assert turn.log.usage.calls == 3


async def test_a_tool_that_raises_is_told_to_the_model(store: Store, llm: ChatModel) -> None:
    """A tool's error is part of the turn, which goes on."""

    def total(numbers: list[float]) -> float:
        """The sum."""
        raise ToolError("no sums today")

    events = await everything(begin(store, llm, total), asking(store, "add up 1 and 2"))
    (returned,) = [event for event in events if isinstance(event, ToolReturned)]
    assert (returned.name, returned.failed, type(returned.error)) == ("total", True, ToolError)
    assert "no sums today" in events[-1].turn.answer


async def test_what_a_stuck_tool_does_after_the_deadline_is_stored_nowhere(store: Store, llm: ChatModel) -> None:
    """A tool that cannot be stopped does not hold up the answer, and nothing of its turn but the failure is kept."""
    release, ended = threading.Event(), threading.Event()

    def current_time(timezone: str) -> str:
        """The time."""
        release.wait(20)
        ended.set()
        return "late"

    with pytest.raises(AgentFailed, match="timeout"):
        await everything(begin(store, llm, current_time, seconds=1.0), asking(store, "What time is it?"))
    stored = await history(store)
    assert [(turn.status, turn.failure, len(turn.messages)) for turn in stored] == [(TurnStatus.FAILED, "timeout", 1)]
    release.set()
    assert await asyncio.to_thread(ended.wait, 20)
    assert await history(store) == stored


async def test_the_agent_sees_its_cancellation(store: Store, llm: ChatModel) -> None:
    """A tool that is being awaited at the deadline is cancelled, and the run is over before the turn is."""
    cancelled = asyncio.Event()

    async def current_time(timezone: str) -> str:
        """The time."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "late"

    before = asyncio.all_tasks()
    with pytest.raises(AgentFailed, match="timeout"):
        await everything(begin(store, llm, current_time, seconds=1.0), asking(store, "What time is it?"))
    assert cancelled.is_set()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


async def test_structured_output_is_made_in_the_agents_time(store: Store, llm: ChatModel) -> None:
    """What is not done by the deadline is cancelled with the rest of the turn."""
    cancelled = asyncio.Event()

    async def make(_: list[Any]) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return {}

    with pytest.raises(AgentFailed, match="timeout"):
        await everything(begin(store, llm, seconds=1.5, structured_output_fn=make), asking(store, "Hello"))
    assert cancelled.is_set()


async def test_an_agent_that_calls_tools_without_end_fails(store: Store, llm: ChatModel) -> None:
    """Beyond the agent's number of steps the turn has failed, and its conversation goes on."""

    class Insatiable(FunctionAgent):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            return super().run(*args, **kwargs, max_iterations=1)

    turn = replace(begin(store, llm), build_agent=lambda: Insatiable(llm=llm))
    with pytest.raises(AgentFailed, match="too_many_steps"):
        await everything(turn, asking(store, "Hello"))
    assert [one.failure for one in await history(store)] == ["too_many_steps"]


async def test_an_agent_that_cannot_be_built_fails_its_turn(store: Store, llm: ChatModel) -> None:
    """A mistake in the agent's file is a failed turn, which holds up nobody."""

    def build() -> FunctionAgent:
        raise TypeError("no such tool")

    with pytest.raises(AgentFailed, match="agent_error"):
        await everything(replace(begin(store, llm), build_agent=build), asking(store, "Hello"))
    assert (await store.log().load(store.session(), token_limit=0)).busy_seconds == 0


async def test_a_front_that_stops_listening_leaves_no_run_behind(store: Store, llm: ChatModel) -> None:
    """Closing the events in the middle of a turn ends the agent and the renewal of its lease."""
    before = asyncio.all_tasks()
    events = begin(store, llm).answer(asking(store, "Hello"))
    await anext(events)
    await events.aclose()
    await asyncio.sleep(0)
    running = {task for task in asyncio.all_tasks() - before if not task.done()}
    # A stream of the model's that was let go of is closed by asyncio in a task of its own.
    assert {task for task in running if inspect.iscoroutine(task.get_coro())} == set()
    assert await history(store) == []


async def test_a_load_that_takes_too_long_is_given_up(store: Store, llm: ChatModel) -> None:
    """What is kept back for the commit is no time to wait for the table in, before there is anything to commit."""

    class Stuck(DynamoDBTurnLog):
        async def load(self, *_: Any, **__: Any) -> Any:
            await asyncio.sleep(60)
            raise AssertionError

    with pytest.raises(TableUnavailable):
        await everything(begin(store, llm, log=store.log(kind=Stuck), seconds=1), asking(store, "Hello"))


async def test_a_commit_that_takes_too_long_is_given_up(store: Store, llm: ChatModel) -> None:
    """The caller is answered before the invocation ends, also when the table is not."""

    class Stuck(DynamoDBTurnLog):
        async def commit(self, claim: Any, turn: Turn) -> Turn:
            await asyncio.sleep(60)
            raise AssertionError

    with pytest.raises(TableUnavailable):
        await everything(begin(store, llm, log=store.log(kind=Stuck), seconds=2), asking(store, "Hello"))


async def test_an_agent_that_says_nothing_has_failed(store: Store, llm: ChatModel) -> None:
    """An empty answer is no answer: it is not stored as one."""
    with pytest.raises(AgentFailed, match="empty_answer"):
        await everything(begin(store, llm), asking(store, "please say nothing"))
    assert [turn.failure for turn in await history(store)] == ["empty_answer"]


async def test_a_turn_that_outlives_its_lease_renews_it(
    store: Store, llm: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the agent works the lease is lengthened, so that nobody else begins."""
    monkeypatch.setattr(conversation, "FIRST_RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(conversation, "RENEWAL_SECONDS", 0.1)
    renewed: list[float] = []

    class Counting(DynamoDBTurnLog):
        async def renew(self, claim: Any) -> None:
            await super().renew(claim)
            renewed.append(time.monotonic())

    await everything(begin(store, llm, log=store.log(kind=Counting)), asking(store, "please wait 1 seconds"))
    assert len(renewed) >= 2


async def test_a_turn_that_is_taken_over_is_stopped(
    store: Store, llm: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a renewal shows another holder, the agent is cancelled and nothing of its turn is stored."""
    monkeypatch.setattr(conversation, "FIRST_RENEWAL_SECONDS", 0.2)
    running = asyncio.create_task(everything(begin(store, llm), asking(store, "please wait 30 seconds")))
    while not (await store.log().load(store.session(), token_limit=0)).busy_seconds:
        await asyncio.sleep(0.01)
    await store.log().delete(store.session())
    with pytest.raises(LeaseLost):
        await running
    assert await history(store) == []


async def test_a_renewal_that_fails_does_not_stop_the_turn(
    store: Store, llm: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease only saves work: where it cannot be renewed the turn goes on, and the commit decides."""
    monkeypatch.setattr(conversation, "FIRST_RENEWAL_SECONDS", 0.05)
    failures: list[str] = []

    class Unreachable(DynamoDBTurnLog):
        async def renew(self, claim: Any) -> None:
            failures.append(claim.token)
            raise TableUnavailable

    log = store.log(kind=Unreachable)
    events = await everything(begin(store, llm, log=log), asking(store, "please wait 0.5 seconds"))
    assert failures
    assert isinstance(events[-1], Answered)


async def test_a_failure_of_an_overtaken_request_gives_the_answer_that_its_retry_stored(
    store: Store, llm: ChatModel
) -> None:
    """Where the agent failed and the same request was answered elsewhere meanwhile, that answer is the answer."""

    class Overtaken(DynamoDBTurnLog):
        async def commit(self, claim: Any, turn: Turn) -> Turn:
            messages = [*turn.messages, text_message("assistant", "elsewhere")]
            winner = claim.completed(messages, tokens=1, at=turn.finished_at, instance="other")
            await store.log().commit(claim, replace(winner, token="another"))
            return await super().commit(claim, turn)

    log = store.log(kind=Overtaken)
    events = await everything(begin(store, llm, log=log), asking(store, "please fail with status 500", "k"))
    assert events[-1].replayed
    assert events[-1].turn.answer == "elsewhere"


async def test_requests_of_one_session_are_answered_one_after_the_other(store: Store, llm: ChatModel) -> None:
    """While one is answered the others wait; each then sees all that was stored before it."""
    running, most = 0, 0

    async def current_time(timezone: str) -> str:
        """The time."""
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await asyncio.sleep(0.05)
        running -= 1
        return "noon"

    turns = [begin(store, llm, current_time) for _ in range(4)]
    await asyncio.gather(*(everything(turn, asking(store, f"{i}: what time is it?")) for i, turn in enumerate(turns)))
    assert most == 1
    assert [turn.window.turns for turn in await history(store)] == [0, 1, 2, 3]


async def test_an_agent_with_state_does_not_change_the_history(store: Store, llm: ChatModel) -> None:
    """LlamaIndex writes an agent's state into the message it sends; the stored message is what the user said."""
    await everything(begin(store, llm, initial_state={"mood": "good"}), asking(store, "Hello"))
    (turn,) = await history(store)
    assert turn.messages[0]["blocks"][0]["text"] == "Hello"


async def test_a_window_never_starts_with_the_result_of_a_tool(store: Store, llm: ChatModel) -> None:
    """Turns are whole: what the model sees of a turn with tools begins with what the user said."""

    def total(numbers: list[float]) -> float:
        """The sum."""
        return sum(numbers)

    await everything(begin(store, llm, total), asking(store, "add up 1 and 2"))
    (stored,) = await history(store)
    await say(store.log(), store.session(), "next", tokens=10)
    for limit in range(stored.tokens + 12):
        window = await store.log().load(store.session(), token_limit=limit)
        roles = [message["role"] for turn in window.turns for message in turn.messages]
        assert not roles or roles[0] == "user"
        assert roles.count("tool") == sum(
            block["block_type"] == "tool_call"
            for turn in window.turns
            for message in turn.messages
            for block in message["blocks"]
        )
