"""Your agent. This is the one file to edit: the prompt, the tools, the kind of agent.

A new agent is built for every request, and finds the conversation so far in its memory. Keep nothing about a
conversation in module variables, and nothing that has to last in the workflow's `Context`: a tool that asks for one
gets it, but what it keeps there is gone in the next turn.

A tool is a function: its name, types and docstring are what the model knows of it, and what it returns is what the
model reads, as text of at most MAX_TOOL_RESULT_CHARS characters. Raise `ToolError` with a helpful text, and the model
reads that and can try again. Of any other error the model hears its type and no text, because texts of errors quote
passwords and other people's data; the log has the type and the place.

Any of LlamaIndex's agents will do. With `output_cls` or `structured_output_fn`, the response has the result as
`structured`; it has to be an object of JSON.
"""

from datetime import date, datetime
from zoneinfo import ZoneInfo

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms.function_calling import FunctionCallingLLM

from handlers.tools import ToolError

SYSTEM_PROMPT = """\
You are a helpful assistant who remembers the conversation so far.
Answer briefly. Use the tools for the time, for dates and for sums instead of guessing.
"""


def current_time(timezone: str = "UTC") -> str:
    """The date and time now in an IANA time zone such as Europe/Paris, with the day of the week."""
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ToolError(f"{timezone!r} is not an IANA time zone; Europe/Paris is one") from error
    return f"{datetime.now(zone):%A, %Y-%m-%d %H:%M:%S} {timezone}"


def days_between(start: str, end: str) -> int:
    """The number of days from one date to another, both as YYYY-MM-DD; negative if the end comes first."""
    try:
        return (date.fromisoformat(end) - date.fromisoformat(start)).days
    except ValueError as error:
        raise ToolError(f"start and end must be dates like 2026-01-31, not {start!r} and {end!r}") from error


def total(numbers: list[float]) -> float:
    """The sum of some numbers."""
    return sum(numbers)


def build_agent(llm: FunctionCallingLLM) -> FunctionAgent:
    """The agent that answers one request."""
    return FunctionAgent(
        name="assistant",
        system_prompt=SYSTEM_PROMPT,
        tools=[current_time, days_between, total],
        llm=llm,
    )
