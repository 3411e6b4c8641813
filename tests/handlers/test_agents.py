"""The kinds of agents that agent.py may build, all of LlamaIndex's: what the caller is answered, and what is kept."""

import asyncio
import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from pydantic import BaseModel

from tests.faulty_model import calls, chunk, fails, says, streams
from tests.workshop import Workshop, workshop

# LlamaIndex's own: its ReActAgent asks whether the workflow runs, inside of it.
pytestmark = pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")


@pytest.fixture
def shop(dynoxide: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with workshop(dynoxide, monkeypatch) as made:
        yield made


def total(numbers: list[float]) -> float:
    """The sum."""
    return sum(numbers)


ACTION = 'Thought: I have to add up.\nAction: total\nAction Input: {"numbers": [1, 2]}'
CONCLUSION = "Thought: I can answer without using any more tools.\nAnswer: It is 3.0."


def react(llm: Any) -> ReActAgent:
    return ReActAgent(name="assistant", tools=[total], llm=llm)


@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "no stream"])
def test_the_answer_of_a_react_agent_is_what_it_came_to(shop: Workshop, streaming: bool) -> None:
    """Not the trace of how it got there, which the history keeps beside the answer."""
    shop.build(lambda llm: ReActAgent(name="assistant", tools=[total], llm=llm, streaming=streaming))
    reply = shop.say(says(ACTION), says(CONCLUSION), message="Add up 1 and 2")
    assert reply.body["answer"] == "It is 3.0."
    asked, answered = shop.history()[0]["messages"]
    assert (asked["text"], asked["answer"]) == ("Add up 1 and 2", None)
    assert answered["answer"] == "It is 3.0."
    assert "Action: total" in answered["text"]
    assert "Observation: 3" in answered["text"]


def test_the_answer_of_a_react_agent_is_replayed(shop: Workshop) -> None:
    """A copy of the request gets the very answer of the first one; a fork keeps both."""
    shop.build(react)
    first = shop.say(says(ACTION), says(CONCLUSION), idempotency_key="k")
    again = shop.say(idempotency_key="k")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.body == first.body
    fork = shop.service.send("POST", "/sessions/default/fork", user=shop.user).body["id"]
    copied = shop.service.send("GET", f"/sessions/{fork}/turns", user=shop.user).body["turns"]
    assert copied[0]["messages"] == shop.history()[0]["messages"]


def test_a_react_agent_is_shown_its_trace_again(shop: Workshop) -> None:
    """As with LlamaIndex's own memory: what its tools returned is in there, and nowhere else."""
    shop.build(react)
    shop.say(says(ACTION), says(CONCLUSION))
    shop.say(says("Thought: (Implicit) I can answer.\nAnswer: You are welcome."), message="Thank you")
    *_, earlier, _ = shop.told()
    assert earlier["role"] == "assistant"
    assert "Observation: 3" in earlier["content"]
    assert "Answer: It is 3.0." in earlier["content"]


def test_a_react_agent_that_concludes_nothing_gave_no_answer(shop: Workshop) -> None:
    """An empty answer fails its turn, whatever the trace says."""
    shop.build(react)
    reply = shop.say(says("Thought: I can answer without using any more tools.\nAnswer: "))
    assert (reply.status, reply.body["code"]) == (502, "empty_answer")


def test_a_react_agent_is_told_of_its_mistakes(shop: Workshop) -> None:
    """Text in no known form, and a tool that fails: it tries again, and hears no error's text."""

    def lookup() -> str:
        """Something from the database."""
        raise ConnectionError("hunter2")

    shop.build(lambda llm: ReActAgent(name="assistant", tools=[lookup], llm=llm))
    again = says("Thought: I look it up.\nAction: lookup\nAction Input: {}")
    reply = shop.say(says("Thought: Hm.\nAction: nothing much"), again, says("Thought: I know.\nAnswer: I cannot."))
    assert (reply.status, reply.body["answer"]) == (200, "I cannot.")
    assert "Observation: The tool lookup failed: ConnectionError." in shop.told()[-1]["content"]
    assert "hunter2" not in json.dumps([shop.export(), shop.model.received, reply.line])


def test_a_tool_of_a_react_agent_may_give_the_answer(shop: Workshop) -> None:
    """With return_direct the tool's result is what the caller is answered."""
    tool = FunctionTool.from_defaults(total, return_direct=True)
    shop.build(lambda llm: ReActAgent(name="assistant", tools=[tool], llm=llm))
    assert shop.say(says(ACTION)).body["answer"] == "3"
    assert shop.history()[0]["messages"][-1]["answer"] == "3"


def test_the_turn_of_a_function_agent_is_stored_as_ever(shop: Workshop) -> None:
    """Where the answer is the text of the last message it is stored once, and costs what it did."""
    shop.equip(total)
    reply = shop.say(calls("total", '{"numbers": [1, 2]}'), says("It is 3."))
    assert reply.line["write_units"] <= 5
    assert all(set(line["message"]) == {"role", "additional_kwargs", "blocks"} for line in shop.export())
    assert [message["answer"] for message in shop.history()[0]["messages"]] == [None] * 4


class Verdict(BaseModel):
    """What is made of the conversation."""

    mood: str
    score: int


VERDICT = {"mood": "good", "score": 7}


def test_structured_output_is_part_of_the_turn(shop: Workshop) -> None:
    """What output_cls asks for comes with the answer, is stored with it, replayed, and shown in the history."""
    shop.equip(output_cls=Verdict)
    reply = shop.say(says("I am well."), calls("Verdict", json.dumps(VERDICT)), idempotency_key="k")
    assert (reply.body["answer"], reply.body["structured"]) == ("I am well.", VERDICT)
    assert shop.say(idempotency_key="k").body == reply.body
    assert [message["structured"] for message in shop.history()[0]["messages"]] == [None, VERDICT]
    assert shop.export()[1]["message"]["structured"] == VERDICT


def test_structured_output_is_asked_for_with_the_conversation(shop: Workshop) -> None:
    """The model reads the system prompt, and all that was said, this turn included."""
    shop.equip(output_cls=Verdict, system_prompt="Be kind.")
    shop.say(says("I am {well}."), calls("Verdict", json.dumps(VERDICT)), message="How are {you} {?")
    system, said = shop.told()
    assert system["content"] == "Be kind."
    assert "How are {you} {?" in said["content"]
    assert "I am {well}." in said["content"]


def structured(shop: Workshop, made: Any, **options: Any) -> Any:
    """What comes of a turn whose structured output is made by a function that returns this, or raises it."""

    def make(messages: list[ChatMessage]) -> Any:
        if isinstance(made, BaseException):
            raise made
        return made

    shop.equip(structured_output_fn=make, **options)
    return shop.say(says("I am well."))


@pytest.mark.parametrize("made", [VERDICT, Verdict(**VERDICT)], ids=["a dict", "a model"])
def test_a_function_makes_structured_output(shop: Workshop, made: Any) -> None:
    """What structured_output_fn returns: an object of JSON, or a pydantic model."""
    assert structured(shop, made).body["structured"] == VERDICT


def test_an_async_function_makes_structured_output(shop: Workshop) -> None:
    """It is given the messages of the conversation, the answer among them."""

    async def make(messages: list[ChatMessage]) -> dict[str, Any]:
        return {"roles": [message.role.value for message in messages], "last": messages[-1].content}

    shop.equip(structured_output_fn=make)
    assert shop.say(says("I am well.")).body["structured"] == {"roles": ["user", "assistant"], "last": "I am well."}


NOT_JSON = {
    "a date": ({"when": datetime.date(2026, 1, 1)}, "datetime.date"),
    "bytes": ({"list": [{"data": b"x"}]}, "builtins.bytes"),
    "no number": ({"score": float("nan")}, "builtins.float"),
    "a key that is no text": ({1: "one"}, "builtins.int"),
    "no object": (["one"], "builtins.list"),
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_structured_output_that_is_not_json_is_refused_by_name(shop: Workshop, case: str) -> None:
    """Nothing else can be stored and answered. The log names the type; the conversation goes on."""
    made, kind = NOT_JSON[case]
    reply = structured(shop, made)
    assert (reply.status, reply.body["code"]) == (502, "structured_output_not_json")
    assert "The agent is at fault" in reply.body["detail"]
    assert kind in [cause.get("code") for cause in reply.line["cause"]]
    assert "cause names the type" in reply.line["hint"]
    shop.equip()
    assert shop.say(says("Fine.")).status == 200


FAILURES = {
    "the model fails": (Verdict, fails(500), "openai.InternalServerError"),
    "the model gives something else": (Verdict, calls("Verdict", '{"mood": "hunter2"}'), "ValueError"),
    "the model calls no tool": (Verdict, says("hunter2"), "ValueError"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_an_answer_survives_the_failure_of_its_structured_output(
    shop: Workshop, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was paid for, and its tools have run. The log line has the cause; nothing has the error's text."""
    kind, answer, error = FAILURES[case]
    shop.equip(output_cls=kind)
    reply = shop.say(says("I am well."), answer)
    assert (reply.status, reply.body["answer"], reply.body["structured"]) == (200, "I am well.", None)
    assert error in json.dumps(reply.line["structured_output"])
    assert reply.line["level"] == "WARNING"
    assert "hunter2" not in json.dumps([reply.line, *reply.other_lines])
    assert "hunter2" not in "".join(capfd.readouterr())


RAISED = [KeyError("hunter2"), SystemExit("hunter2"), TimeoutError("hunter2"), asyncio.CancelledError("hunter2")]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_function_that_raises_costs_no_answer(shop: Workshop, error: BaseException) -> None:
    """As above, for structured_output_fn, whatever it raises."""
    reply = structured(shop, error)
    assert (reply.status, reply.body["structured"]) == (200, None)
    assert reply.line["structured_output"][0]["error"].endswith(f".{type(error).__name__}")
    assert "hunter2" not in json.dumps(reply.line)


def test_structured_output_is_clean_text(shop: Workshop) -> None:
    """Half an emoji in it costs no turn."""
    assert structured(shop, {"\ud83d": ["\ud83d"]}).body["structured"] == {"\ufffd": ["\ufffd"]}


def test_a_plain_answer_has_no_structured_output(shop: Workshop) -> None:
    """The field is there, and null."""
    shop.equip()
    assert shop.say(says("I am well.")).body["structured"] is None


def two_agents(llm: Any, **options: Any) -> AgentWorkflow:
    """A clerk, who hands over to an expert."""
    clerk = FunctionAgent(name="clerk", description="Asks", tools=[total], llm=llm, can_handoff_to=["expert"])
    expert = FunctionAgent(
        name="expert", description="Knows", system_prompt="You know.", tools=[total], llm=llm, can_handoff_to=["clerk"]
    )
    return AgentWorkflow(agents=[clerk, expert], root_agent="clerk", **options)


HANDOFF = calls("handoff", '{"to_agent": "expert", "reason": "a sum"}')


def test_agents_can_hand_over(shop: Workshop) -> None:
    """A workflow of several agents: one answer, one turn, whose tool calls and results are in order."""
    shop.build(two_agents)
    reply = shop.say(HANDOFF, calls("total", '{"numbers": [1, 2]}'), says("It is 3."))
    assert (reply.status, reply.body["answer"]) == (200, "It is 3.")
    assert [message["role"] for message in shop.history()[0]["messages"]] == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant")
    ]
    assert shop.told()[0] == {"role": "system", "content": "You know."}
    assert shop.say(says("Noted.")).body["turn"] == 2


def test_tools_of_all_agents_of_a_workflow_are_guarded(shop: Workshop) -> None:
    """Those of each agent, and the handoff."""

    def lookup() -> str:
        """Something from the database."""
        raise ConnectionError("hunter2")

    shop.build(
        lambda llm: AgentWorkflow(
            agents=[
                FunctionAgent(name="one", description="One", tools=[lookup], llm=llm),
                FunctionAgent(name="two", description="Two", llm=llm),
            ],
            root_agent="one",
        )
    )
    shop.say(calls("lookup", "{}"), calls("handoff", '{"to": "two"}'), says("Sorry."))
    failed, handoff = shop.results()
    assert failed == "The tool lookup failed: ConnectionError."
    assert handoff.startswith("The tool handoff failed: TypeError. Its arguments do not fit: unexpected argument 'to'")


def test_a_workflow_of_agents_makes_structured_output(shop: Workshop) -> None:
    """The workflow's own, else that of the agent that answered."""
    shop.build(lambda llm: two_agents(llm, output_cls=Verdict))
    assert shop.say(says("Fine."), calls("Verdict", json.dumps(VERDICT))).body["structured"] == VERDICT

    def build(llm: Any) -> AgentWorkflow:
        workflow = two_agents(llm)
        workflow.agents["expert"].output_cls = Verdict
        return workflow

    shop.build(build)
    assert shop.say(says("Fine.")).body["structured"] is None
    assert shop.say(HANDOFF, says("Fine."), calls("Verdict", json.dumps(VERDICT))).body["structured"] == VERDICT


def test_an_agent_that_does_not_stream_works_as_well(shop: Workshop) -> None:
    """For servers that cannot: tools, answers and the next turn are the same."""
    shop.equip(total, streaming=False)
    reply = shop.say(calls("total", '{"numbers": [1, 2]}'), says("It is 3."))
    assert reply.body["answer"] == "It is 3."
    assert shop.results() == ["3"]
    shop.say(says("You are welcome."), message="Thank you")
    assert [message["role"] for message in shop.told()] == [*("user", "assistant", "tool", "assistant", "user")]
    assert json.loads(shop.told()[1]["tool_calls"][0]["function"]["arguments"]) == {"numbers": [1, 2]}


def test_one_of_several_calls_may_fail(shop: Workshop) -> None:
    """Calls that a model makes at once run side by side; each has its result, in order."""

    async def lookup(key: str) -> str:
        """Something from the database."""
        if key == "b":
            raise ConnectionError("hunter2")
        await asyncio.sleep(0.1)
        return f"value of {key}"

    both = [
        chunk({"tool_calls": [{"index": i, "id": f"call_{i}", "type": "function", "function": function}]})
        for i, function in enumerate({"name": "lookup", "arguments": json.dumps({"key": key})} for key in "abc")
    ]
    shop.equip(lookup)
    reply = shop.say(streams(*both, chunk({}, "tool_calls")), says("Found two."))
    assert reply.status == 200
    results = {message["tool_call_id"]: message["content"] for message in shop.told() if message["role"] == "tool"}
    assert results == {
        "call_0": "value of a",
        "call_1": "The tool lookup failed: ConnectionError.",
        "call_2": "value of c",
    }


def test_an_agent_may_be_built_once_for_all_requests(shop: Workshop) -> None:
    """What a run changes of an agent is a copy: tools stay guarded once, structured output is made every time."""
    built: list[FunctionAgent] = []

    def build(llm: Any) -> FunctionAgent:
        if not built:
            built.append(FunctionAgent(name="assistant", tools=[total], llm=llm, output_cls=Verdict))
        return built[0]

    shop.build(build)
    for _ in range(3):
        reply = shop.say(calls("total", "{}"), says("Hm."), calls("Verdict", json.dumps(VERDICT)))
        assert reply.body["structured"] == VERDICT
        assert len(reply.line["failed_tools"]) == 1
    assert "get_tools" not in vars(built[0])


def test_an_agent_may_end_early_with_an_answer(shop: Workshop) -> None:
    """With early_stopping_method="generate", a model that calls tools without end is asked for its answer."""
    shop.equip(total, early_stopping_method="generate")
    always = [calls("total", '{"numbers": [1, 2]}')] * 20
    reply = shop.say(*always, says("That is what I found."))
    assert (reply.status, reply.body["answer"]) == (200, "That is what I found.")
    assert shop.say(says("Fine.")).status == 200


def test_the_state_of_a_context_lasts_for_one_turn(shop: Workshop) -> None:
    """What tools keep in the workflow's context is gone in the next turn, as agent.py says."""

    async def count(ctx: Context) -> str:
        """Counts."""
        counted = await ctx.store.get("counted", default=0) + 1
        await ctx.store.set("counted", counted)
        return str(counted)

    shop.equip(count)
    for _ in range(2):
        shop.say(calls("count", "{}"), calls("count", "{}"), says("Counted."))
        assert shop.results()[-2:] == ["1", "2"]


def test_an_agent_that_keeps_nothing_has_its_answer_kept(shop: Workshop) -> None:
    """The answer is the run's result, whether or not the agent put it into its memory."""

    class Forgetful(FunctionAgent):
        async def finalize(self, ctx: Context, output: Any, memory: Any) -> Any:
            return output

    shop.build(lambda llm: Forgetful(name="assistant", llm=llm))
    assert shop.say(says("I am well.")).body["answer"] == "I am well."
    assert [(message["role"], message["text"]) for message in shop.history()[0]["messages"]] == [
        ("user", "Go"),
        ("assistant", "I am well."),
    ]
