"""The steps of a turn as X-Ray shows them. Never what was said: of an error its kind, since its text may quote it.

Outside Lambda, Powertools switches all of it off.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aws_lambda_powertools import Tracer
from aws_xray_sdk.core.emitters.udp_emitter import UDPEmitter  # type: ignore[import-untyped] # it has no types

from handlers.problems import from_error
from handlers.run import AgentFailed

NOTED = ("outcome", "turn", "replayed")
"""What traces can be searched for, of what a log line says."""

# It patches no library: what those would tell of their requests is not ours to say.
tracer = Tracer(auto_patch=False)


def reconnect() -> None:
    """Send what is traced from a socket of this instance's own: the SDK opens one when it is imported."""
    provider: Any = tracer.provider
    provider.configure(emitter=UDPEmitter())


@contextmanager
def step(name: str) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Trace what is done meanwhile; what is yielded notes facts about it.

    The SDK's own context managers would record the text of an error, and the stack.
    """
    recorder: Any = tracer.provider
    subsegment = recorder.begin_subsegment(name)

    def note(facts: Mapping[str, Any]) -> None:
        for fact in NOTED:
            if fact in facts:
                subsegment.put_annotation(fact, facts[fact])

    try:
        yield note
    except Exception as error:
        problem = from_error(error)
        subsegment.apply_status_code(problem.status.value)
        note({"outcome": error.code if isinstance(error, AgentFailed) else problem.outcome})
        raise
    finally:
        recorder.end_subsegment()
