"""What a turn of the chat function adds to the agent's run alone, in time: `python -m bench.overhead`.

Alone is `agent.run` of an agent that is there, on LlamaIndex's `Memory` in this process, which holds the window.
The turn is all of `handlers.conversation`: load, claim, an agent built anew, its run, commit, with the real turn log.
The engine's time is left out by a client that answers from memory, in place of boto3's: so that all that this project
does itself is counted, items and their compression included, and nothing is subtracted.

`Memory` counts the tokens of the whole history at every read, which the turn log makes unnecessary. So the turn is
compared with a `Memory` as it comes, and with one that is spared the counting.

Both clocks are shown: the time that passed, which on a busy machine is mostly that of others, and the processor's time
of this process, all threads together.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from boto3.dynamodb.types import TypeSerializer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import Memory

from bench import stored, text
from handlers.agent import build_agent
from handlers.conversation import Answered, Ask, Conversation
from handlers.model import chat_model
from handlers.settings import Settings
from local import demo_model
from memory import codec
from memory.chat_store import count_tokens, encode_message
from memory.dynamodb import DynamoDBTurnLog
from memory.turns import Turn

WINDOWS = (1_000, 10_000, 30_000)
ROUNDS = 40
WARM_UP = 3
INVOCATION_SECONDS = 28.0
WAYS = ("alone", "alone, uncounted", "the turn")
CLOCKS = ("passed", "processor")

Item = dict[str, Any]
Times = tuple[float, float]
"""Seconds by the two clocks."""


class AnsweringClient:
    """A table that holds one session and takes every write, in memory and without any network."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = list(items)

    def query(self, Limit: int, ExclusiveStartKey: Item | None = None, **_: Any) -> Item:  # noqa: N803 - boto3's names
        """The next page of the session, newest first."""
        start = 0
        if ExclusiveStartKey:
            start = next(i for i, item in enumerate(self._items, 1) if item["sk"] == ExclusiveStartKey["sk"])
        page, more = self._items[start : start + Limit], start + Limit < len(self._items)
        last = {"LastEvaluatedKey": {name: page[-1][name] for name in ("pk", "sk")}} if more else {}
        return {"Items": page, "ConsumedCapacity": {"CapacityUnits": 1.0}} | last

    def update_item(self, **_: Any) -> Item:
        """A claim."""
        return {"Attributes": {}, "ConsumedCapacity": {"CapacityUnits": 1.0}}

    def put_item(self, **_: Any) -> Item:
        """A commit."""
        return {"ConsumedCapacity": {"CapacityUnits": 2.0}}


class Case:
    """One model and one window, and the three ways to take the next turn."""

    def __init__(self, model: FunctionCallingLLM, token_limit: int) -> None:
        self._model, self._limit = model, token_limit
        self._agent = build_agent(model)
        self.turns = window_of(token_limit)
        self._client = AnsweringClient(items_of(self.turns))

    @property
    def tokens(self) -> int:
        """Tokens of the window."""
        return sum(turn.tokens for turn in self.turns)

    async def measure(self) -> list[Times]:
        """Medians of the three ways, taken in turn, each as often first as any other."""
        ways = (self._alone, self._alone_uncounted, self._turn)
        taken: list[list[Times]] = [[] for _ in ways]
        for lap in range(WARM_UP + ROUNDS):
            for i in range(len(ways)):
                way = (lap + i) % len(ways)
                times = await ways[way]()
                if lap >= WARM_UP:
                    taken[way].append(times)
        return [
            (statistics.median(passed for passed, _ in times), statistics.median(used for _, used in times))
            for times in taken
        ]

    async def _alone(self) -> Times:
        return await self._run(await self._filled(Memory.from_defaults(token_limit=10 * self._limit)))

    async def _alone_uncounted(self) -> Times:
        memory = Memory.from_defaults(token_limit=10 * self._limit, tokenizer_fn=lambda _: [])
        return await self._run(await self._filled(memory))

    async def _turn(self) -> Times:
        log = DynamoDBTurnLog(cast(Any, self._client), "bench")
        conversation = Conversation(
            log=log,
            build_agent=lambda: build_agent(self._model),
            instance=stored.INSTANCE,
            token_limit=self._limit,
            max_result_chars=100_000,
            wait_seconds=1,
            deadline=asyncio.get_running_loop().time() + INVOCATION_SECONDS,
        )
        ask = Ask(session=stored.SESSION, request=stored.request_of(len(self.turns) + 1), message=text.question(0))

        async def answer() -> object:
            return [event async for event in conversation.answer(ask)][-1]

        times, last = await _timed(answer)
        if not (isinstance(last, Answered) and last.turn.window.turns == len(self.turns)):
            raise RuntimeError("the turn did not see the window")
        return times

    async def _filled(self, memory: Memory) -> Memory:
        await memory.aset([ChatMessage.model_validate(message) for turn in self.turns for message in turn.messages])
        return memory

    async def _run(self, memory: Memory) -> Times:
        async def run() -> object:
            return await self._agent.run(user_msg=text.question(0), memory=memory)

        return (await _timed(run))[0]


def main() -> None:
    """Measure and print."""
    settings = Settings(openai_model=demo_model.MODEL, openai_api_key="none", token_limit=0)
    with demo_model.start() as server:
        demo = chat_model(settings.model_copy(update={"openai_api_base": f"{server.endpoint}/v1"}))
        asyncio.run(_measure_all({"a model that answers at once": _instant_model(), "the demo model over HTTP": demo}))


async def _measure_all(models: dict[str, FunctionCallingLLM]) -> None:
    print(f"\nMilliseconds of a turn without the engine's, medians of {ROUNDS} rounds that take each way in turn.")
    for name, model in models.items():
        print(f"\n{name}")
        print("".join(f"{heading:>18}" for heading in ("window, tokens", "time", *WAYS, "ratio", "to uncounted")))
        for limit in WINDOWS:
            case = Case(model, limit)
            measured = await case.measure()
            for clock, (alone, uncounted, turn) in zip(CLOCKS, zip(*measured, strict=True), strict=True):
                figures = (f"{seconds * 1_000:.1f}" for seconds in (alone, uncounted, turn))
                ratios = (f"{turn / base:.2f}x" for base in (alone, uncounted))
                print("".join(f"{cell:>18}" for cell in (f"{case.tokens:,}", clock, *figures, *ratios)), flush=True)


def window_of(token_limit: int) -> list[Turn]:
    """Turns that fit the limit, oldest first."""
    turns: list[Turn] = []
    while True:
        turn = _turn(len(turns) + 1)
        if sum(earlier.tokens for earlier in turns) + turn.tokens > token_limit:
            return turns
        turns.append(turn)


def items_of(turns: Sequence[Turn]) -> list[Item]:
    """A session of these turns as a Query of the table returns it: its state, then the newest turn first."""
    items = [stored.state_item(turns), *(codec.encode_turn(stored.SESSION, turn)[0] for turn in reversed(turns))]
    serialize = TypeSerializer().serialize
    return [{name: serialize(value) for name, value in item.items()} for item in items]


def _turn(number: int) -> Turn:
    said = [
        ChatMessage(role="user", content=text.question(number)),
        ChatMessage(role="assistant", content=text.answer(number)),
    ]
    return stored.turn_of(number, [encode_message(message) for message in said], count_tokens(said))


def _instant_model() -> FunctionCallingLLM:
    answer = text.answer(0)
    return MockFunctionCallingLLM(response_generator=lambda *_, **__: ChatMessage(role="assistant", content=answer))


async def _timed(step: Callable[[], Awaitable[object]]) -> tuple[Times, object]:
    start, used = time.perf_counter(), time.process_time()
    result = await step()
    return (time.perf_counter() - start, time.process_time() - used), result


if __name__ == "__main__":
    main()
