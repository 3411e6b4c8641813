"""Your agent. This is the one file to edit: the prompt, the tools, the kind of agent.

A new agent is built for every request, and finds the conversation so far in its memory; so keep nothing about a
conversation in module variables. A tool is a function: its name, types and docstring are what the model knows of it,
and what it returns is what the model reads. Raise an exception with a helpful text, and the model can try again.
"""

from datetime import date, datetime
from zoneinfo import ZoneInfo

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms.function_calling import FunctionCallingLLM

SYSTEM_PROMPT = """\
You are a helpful assistant who remembers the conversation so far.
Answer briefly. Use the tools for the time, for dates and for sums instead of guessing.
"""


def current_time(timezone: str = "UTC") -> str:
    """The date and time now in an IANA time zone such as Europe/Paris, with the day of the week."""
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{timezone!r} is no IANA time zone; one is Europe/Paris") from error
    return f"{datetime.now(zone):%A, %Y-%m-%d %H:%M:%S} {timezone}"


def days_between(start: str, end: str) -> int:
    """The number of days from one date to another, both as YYYY-MM-DD; negative where the end comes first."""
    return (date.fromisoformat(end) - date.fromisoformat(start)).days


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
