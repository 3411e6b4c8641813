"""What tools do to the run of an agent, and what the model, the caller and the log hear of it."""

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.objects import ObjectRetriever
from llama_index.core.tools import BaseTool, FunctionTool, ToolMetadata, ToolOutput
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from pydantic import AfterValidator, BaseModel, Field, validate_call

from handlers.model import ChatModel
from handlers.surrogates import clean
from handlers.tools import ToolError, with_guarded_tools
from tests.faulty_model import calls, says
from tests.handlers.conftest import configure
from tests.workshop import Workshop, workshop

SECRET = "postgres://admin:hunter2@db.internal/users"


@pytest.fixture
def shop(dynoxide: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with workshop(dynoxide, monkeypatch) as made:
        yield made


class Unspeakable(Exception):
    """An error that says nothing."""


def cancelled() -> str:
    raise asyncio.CancelledError("a scope of a client's was left")


def leaves() -> str:
    sys.exit(2)


def interrupted() -> str:
    raise KeyboardInterrupt


def silent() -> str:
    raise Unspeakable


def stops() -> str:
    raise StopIteration


OUTSIDE = {"cancelled": cancelled, "leaves": leaves, "interrupted": interrupted, "silent": silent}


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["in a thread", "in the loop"])
def test_whatever_a_tool_raises_is_a_failed_tool(shop: Workshop, name: str, kind: str) -> None:
    """Errors outside of Exception, and without a text: the model is told, and the turn goes on."""
    raises = OUTSIDE[name]

    async def raises_in_the_loop() -> str:
        await asyncio.sleep(0)
        return raises()

    def raises_in_a_thread() -> str:
        return raises()

    tool = raises_in_a_thread if kind == "in a thread" else raises_in_the_loop
    shop.equip(tool)
    reply = shop.say(calls(tool.__name__, "{}"), says("It did not work."))
    assert (reply.status, reply.body["answer"]) == (200, "It did not work.")
    (result,) = shop.results()
    assert tool.__name__ in result
    assert "failed" in result


def test_a_tool_that_cancels_its_own_task_is_a_failed_tool(shop: Workshop) -> None:
    """As scopes of anyio do when their end is missed: it is not the run that is cancelled."""

    async def fetch() -> str:
        """Something."""
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    shop.equip(fetch)
    assert shop.say(calls("fetch", "{}"), says("Sorry.")).body["answer"] == "Sorry."
    assert "failed" in shop.results()[0]


def test_the_text_of_an_error_stays_out_of_everything(shop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    """The model, the answer, the history and the log hear that the tool failed, and by what kind of error."""

    def lookup() -> str:
        """Something from the database."""
        raise ConnectionError(f"could not connect to {SECRET}")

    shop.equip(lookup)
    reply = shop.say(calls("lookup", "{}"), says("Sorry."))
    assert shop.results() == ["The tool lookup failed: ConnectionError."]
    everything = [shop.model.received, reply.body, reply.line, reply.other_lines, shop.export(), shop.history()]
    assert "hunter2" not in json.dumps(everything)
    assert "hunter2" not in "".join(capfd.readouterr())


def test_the_log_names_the_tool_that_failed_and_where(shop: Workshop) -> None:
    """The line of the turn has the error's type and its place, and is a warning."""

    def lookup() -> str:
        """Something from the database."""
        try:
            raise KeyError("hunter2")
        except KeyError as error:
            raise ConnectionError(SECRET) from error

    shop.equip(lookup)
    line = shop.say(calls("lookup", "{}"), says("Sorry.")).line
    (failed,) = line["failed_tools"]
    assert failed["tool"] == "lookup"
    assert [cause["error"] for cause in failed["cause"]] == ["builtins.ConnectionError", "builtins.KeyError"]
    assert all(cause["at"].startswith("test_tools.py:") for cause in failed["cause"])
    assert line["level"] == "WARNING"


def test_a_tool_error_tells_the_model_its_text(shop: Workshop) -> None:
    """The one type whose text is meant for the model; to the log it is no news."""

    def book(day: str) -> str:
        """Books a day."""
        raise ToolError(f"{day} is taken; the next free day is Friday")

    shop.equip(book)
    line = shop.say(calls("book", '{"day": "Monday"}'), says("Friday?")).line
    assert shop.results() == ["Monday is taken; the next free day is Friday"]
    assert line["level"] == "INFO"


def test_a_tool_error_without_a_text_says_that_the_tool_failed(shop: Workshop) -> None:
    """No message to the model is empty."""

    def book() -> str:
        """Books a day."""
        raise ToolError(" ")

    shop.equip(book)
    shop.say(calls("book", "{}"), says("Sorry."))
    assert shop.results() == ["The tool book failed."]


WRONG_ARGUMENTS = {
    "one that there is not": ('{"numbers": [1], "hunter2": 1}', ["unexpected argument 'hunter2'"]),
    "one that is missing": ("{}", ["'numbers': Field required"]),
    "one of a wrong type": ('{"numbers": "hunter2"}', ["'numbers': Input should be a valid list"]),
    "a part of a wrong type": ('{"numbers": [1, "hunter2"]}', ["'numbers'.1: Input should be a valid number"]),
    "a name without end": (json.dumps({"x" * 10_000: 1}), ["'numbers': Field required"]),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_arguments_are_named_to_the_model(shop: Workshop, case: str) -> None:
    """It hears which argument is wrong and why, so that it can call again; not what it held."""
    arguments, faults = WRONG_ARGUMENTS[case]

    def total(numbers: list[float]) -> float:
        """The sum."""
        return sum(numbers)

    shop.equip(total)
    shop.say(calls("total", arguments), says("Sorry."))
    (result,) = shop.results()
    assert result.startswith("The tool total failed: TypeError. Its arguments do not fit: ")
    assert all(fault in result for fault in faults)
    assert "hunter2" not in result.replace("unexpected argument 'hunter2'", "")
    assert len(result) < 500


def test_a_validator_of_somebodys_says_which_argument_and_no_more(shop: Workshop) -> None:
    """The texts of pydantic's own rules are known to quote nothing; those of others are not."""

    def check(value: str) -> str:
        raise ValueError(f"compared with {SECRET}")

    @validate_call
    def book(day: Annotated[str, AfterValidator(check)], seats: Annotated[int, Field(gt=0)]) -> str:
        """Books a day."""
        return "booked"

    shop.equip(book)
    shop.say(calls("book", '{"day": "Monday", "seats": 0}'), says("Sorry."))
    (result,) = shop.results()
    assert "'seats': Input should be greater than 0" in result
    assert "'day': is not valid" in result
    assert "hunter2" not in result


def test_what_a_tool_validates_of_its_own_is_not_told(shop: Workshop) -> None:
    """A validation error about something else than the arguments is an error as any other."""

    class Row(BaseModel):
        password: int

    def lookup(user: str) -> str:
        """Something from the database."""
        return str(Row.model_validate({"password": "hunter2"}))

    shop.equip(lookup)
    shop.say(calls("lookup", '{"user": "Ada"}'), says("Sorry."))
    assert shop.results() == ["The tool lookup failed: ValidationError."]


HALF = "\ud83d"
"""Half an emoji: a lone surrogate, which no encoding takes."""


def echo(text: str) -> str:
    """The same text."""
    seen.append(text)
    return f"{text} and {HALF}"


seen: list[str] = []


HALVES = {
    "in a tool's arguments": calls("echo", json.dumps({"text": f"half {HALF}"})),
    "in arguments as they come": calls("echo", f'{{"text": "half {HALF}"}}'),
    "in an argument's name": calls("echo", json.dumps({"text": "whole", HALF: "x"})),
    "in a list in a tool's arguments": calls("echo", json.dumps({"text": [f"half {HALF}"]})),
    "in text beside the call": calls("echo", '{"text": "whole"}', beside=f"I call {HALF}"),
    "in the name of a tool": calls(f"echo{HALF}", '{"text": "whole"}'),
}


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("case", HALVES)
def test_half_an_emoji_costs_no_turn(shop: Workshop, case: str, streaming: bool) -> None:
    """Wherever a model puts one: tool, model and store see the same clean text, and the next turn goes on."""
    seen.clear()
    shop.equip(echo, streaming=streaming)
    reply = shop.say(HALVES[case], says(f"Half {HALF}"))
    assert reply.status == 200
    assert clean(seen) == seen
    shop.say(says("Noted."))
    sent = [message for message in shop.told() if message["role"] != "user"]
    stored = [line["message"] for line in shop.export() if line["message"]["role"] != "user"][:-1]
    assert reply.body["answer"] == sent[-1]["content"]
    assert [text_of(message) for message in stored] == [message["content"] or "" for message in sent]
    assert [arguments_of(message) for message in stored] == [sent_arguments(message) for message in sent]
    assert "\\ud83d" not in json.dumps(sent).replace("\\\\", "\\").lower()


def test_two_halves_are_one_emoji(shop: Workshop) -> None:
    """Text that was cut between the two surrogates of a pair is joined again."""

    def halves() -> str:
        """Two halves."""
        return "\ud83d" + "\ude00"

    shop.equip(halves)
    shop.say(calls("halves", "{}"), says("Nice."))
    assert shop.results() == ["\N{GRINNING FACE}"]


def arguments_of(message: dict[str, Any]) -> list[Any]:
    return [block["tool_kwargs"] for block in message["blocks"] if block["block_type"] == "tool_call"]


def sent_arguments(message: dict[str, Any]) -> list[Any]:
    return [call["function"]["arguments"] for call in message.get("tool_calls", [])]


def text_of(message: dict[str, Any]) -> str:
    return "\n".join(block["text"] for block in message["blocks"] if block["block_type"] == "text")


def test_a_tools_image_is_noted_as_left_out(shop: Workshop) -> None:
    """The model hears that there was one, in this turn and in later ones; the history says the same."""
    image = ImageBlock(image=b"\x89PNG\r\n\x1a\n" + bytes(34_559))

    def draw() -> list[Any]:
        """A chart."""
        return [TextBlock(text="A chart of the year."), image]

    shop.equip(draw)
    told = "A chart of the year.\n[image left out: image/png, 34,567 bytes]"
    assert shop.say(calls("draw", "{}"), says("Look.")).status == 200
    assert shop.results() == [told]
    shop.say(says("Noted."))
    assert shop.results() == [told]
    result = shop.history()[-1]["messages"][2]
    assert (result["text"], result["other_blocks"]) == (told, [])


def test_a_long_result_is_cut_for_model_and_store(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the middle, with a note in its place; the log line says how much it was."""
    configure(monkeypatch, MAX_TOOL_RESULT_CHARS="1000")

    def recite() -> str:
        """A long text."""
        return "a" * 50_000

    shop.equip(recite)
    reply = shop.say(calls("recite", "{}"), says("Long."))
    (result,) = shop.results()
    assert result == "a" * 500 + "\n[49,000 characters left out]\n" + "a" * 500
    assert shop.history()[0]["messages"][2]["text"] == result
    assert reply.line["tool_chars_left_out"] == 49_000
    assert "MAX_TOOL_RESULT_CHARS" in reply.line["hint"]


def test_a_long_error_is_cut_too(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a ToolError says is a result as any other."""
    configure(monkeypatch, MAX_TOOL_RESULT_CHARS="1000")

    def recite() -> str:
        """A long text."""
        raise ToolError(f"{HALF}{'a' * 50_000}")

    shop.equip(recite)
    shop.say(calls("recite", "{}"), says("Long."))
    assert len(shop.results()[0]) < 1100


def test_retrieved_tools_are_guarded_too(shop: Workshop) -> None:
    """Tools that an agent finds by the message, rather than having them all."""

    def lookup() -> str:
        """Something from the database."""
        raise ConnectionError(SECRET)

    class Retriever(ObjectRetriever[BaseTool]):
        def __init__(self) -> None:
            """It has no index to ask."""

        async def aretrieve(self, str_or_query_bundle: Any) -> list[BaseTool]:
            return [FunctionTool.from_defaults(lookup)]

    shop.equip(tool_retriever=Retriever())
    shop.say(calls("lookup", "{}"), says("Sorry."))
    assert shop.results() == ["The tool lookup failed: ConnectionError."]


def test_a_tool_that_is_no_function_is_guarded_too(shop: Workshop) -> None:
    """LlamaIndex's other kinds of tools, those that know no asyncio among them."""

    class Lookup(BaseTool):
        metadata = ToolMetadata(name="lookup", description="Something from the database.")

        def __call__(self, input: Any) -> ToolOutput:  # noqa: A002 - LlamaIndex's name for it
            if input == "nothing":
                return ToolOutput(tool_name="lookup", content="", raw_input={})
            raise ConnectionError(SECRET)

    shop.equip(Lookup())
    shop.say(calls("lookup", '{"input": "nothing"}'), calls("lookup", '{"input": "x"}'), says("Sorry."))
    assert shop.results() == ["(The tool returned nothing.)", "The tool lookup failed: ConnectionError."]


def test_a_tool_that_asks_for_the_context_gets_it(shop: Workshop) -> None:
    """The workflow's context, partial parameters, defaults and return_direct are as LlamaIndex has them."""

    async def count(ctx: Context, by: int, unit: str = "steps") -> str:
        """Counts."""
        counted = await ctx.store.get("counted", default=0) + by
        await ctx.store.set("counted", counted)
        return f"{counted} {unit}"

    tool = FunctionTool.from_defaults(count, partial_params={"unit": "stairs"})
    done = FunctionTool.from_defaults(count, name="done", return_direct=True)
    shop.equip(tool, done)
    reply = shop.say(calls("count", '{"by": 2}'), calls("done", '{"by": 3}'))
    assert shop.results() == ["2 stairs"]
    assert reply.body["answer"] == "5 steps"
    assert [message["role"] for message in shop.history()[0]["messages"]] == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant")
    ]


async def test_a_tool_can_wait_for_an_event(shop: Workshop) -> None:
    """Pausing a run to ask a person is no error of the tool's."""

    async def ask(ctx: Context) -> str:
        """Asks."""
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent(prefix="sure?"))
        return str(answer.response)

    shop.model.tell(calls("ask", "{}"), says("Done."))
    model = ChatModel(model="faulty", api_base=f"{shop.model.endpoint}/v1", api_key="none")
    agent = with_guarded_tools(FunctionAgent(tools=[ask], llm=model), max_chars=1000)
    run = agent.run(user_msg="Go")
    async for event in run.stream_events():
        if isinstance(event, InputRequiredEvent):
            run.ctx.send_event(HumanResponseEvent(response="quite"))
    assert str(await run) == "Done."
    assert shop.results() == ["quite"]
    await model._get_aclient().close()


def test_the_code_of_an_error_is_logged_if_it_is_a_number(shop: Workshop) -> None:
    """Some errors keep a text there: what sys.exit was called with, for one."""

    class Refused(Exception):
        code = 7

    def lookup(how: str) -> str:
        """Something from the database."""
        if how == "refused":
            raise Refused
        sys.exit(SECRET)

    shop.equip(lookup)
    line = shop.say(calls("lookup", '{"how": "refused"}'), calls("lookup", '{"how": "exit"}'), says("Sorry.")).line
    refused, left = (failed["cause"][0] for failed in line["failed_tools"])
    assert refused["code"] == 7
    assert (left["error"], "code" in left) == ("builtins.SystemExit", False)
