"""What goes wrong between the handler and its model, and between the handler and its table: what is injected, and the
outcome that is documented for it.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from handlers.model_answer import NOT_AN_OBJECT
from handlers.settings import COMMIT_SECONDS
from tests import faulty_model, wire
from tests.faulty_model import calls, chunk, fails, late, responds, says, streams
from tests.rig import (
    ANSWERED,
    CANARY,
    SILENT,
    STORED_IN_SILENCE,
    UNAVAILABLE,
    Fault,
    Rig,
    Route,
    RouteFault,
    cut_short,
    failed,
    told,
)
from tests.wire import Trouble

# ---- The model -------------------------------------------------------------------------------------------------------


def model(*answers: faulty_model.Answer, always: faulty_model.Answer | None = None) -> Callable[[Rig], object]:
    """The model answers so."""
    return lambda rig: rig.model.tell(*answers, always=always)


def _at_the_last_moment(rig: Rig) -> None:
    rig.model.tell(late(rig.short_seconds - COMMIT_SECONDS - 1.5, says("Noted.")))


def _last_moment(name: str, trouble: Trouble, times: int, *, tested: bool = True) -> Fault:
    """The answer comes when the agent's time is nearly over, and its commit meets trouble."""

    def arm(rig: Rig) -> None:
        _at_the_last_moment(rig)
        rig.wire.trouble(trouble, "PutItem", times=times)

    return Fault(
        name=f"an answer at the last moment, {name}",
        arm=arm,
        outcome=ANSWERED,
        short=True,
        tested=tested,
        on_the_wire=True,
    )


AT_ONCE = {"retry_after_ms": "1"}
MODEL_FAULTS = (
    Fault(name="500, once", arm=model(fails(500, **AT_ONCE)), outcome=ANSWERED),
    Fault(
        name="500, again and again",
        arm=model(always=fails(500, **AT_ONCE)),
        outcome=failed("model_error", "openai.InternalServerError"),
    ),
    Fault(
        name="503, again and again",
        arm=model(always=fails(503, **AT_ONCE)),
        outcome=failed("model_error", "openai.InternalServerError"),
    ),
    Fault(
        name="401: the key is wrong",
        arm=model(fails(401)),
        outcome=failed("model_access", "openai.AuthenticationError"),
    ),
    Fault(
        name="400: the prompt is refused",
        arm=model(always=fails(400)),
        outcome=failed("prompt_refused", "openai.BadRequestError"),
    ),
    Fault(
        name="400: the prompt is filtered",
        arm=model(fails(400, code="content_filter")),
        outcome=failed("content_filter", "openai.BadRequestError"),
    ),
    Fault(
        name="400: the prompt is too long",
        arm=model(fails(400, code="context_length_exceeded")),
        outcome=failed("prompt_too_long", "openai.BadRequestError"),
    ),
    Fault(
        name="429: nothing is left of the quota",
        arm=model(always=fails(429, code="insufficient_quota", **AT_ONCE)),
        outcome=failed("model_quota", "openai.RateLimitError"),
    ),
    Fault(
        name="only thinking, cut by the limit of tokens",
        arm=model(always=says("", finish="length")),
        outcome=failed("answer_limit", "AgentFailed"),
    ),
    Fault(name="429, `Retry-After` of 1 s", arm=model(fails(429, retry_after="1")), outcome=ANSWERED),
    Fault(
        name="429, `Retry-After` of a minute",
        arm=model(always=fails(429, retry_after="60")),
        outcome=failed("model_busy", "openai.RateLimitError"),
    ),
    Fault(
        name="429, again and again",
        arm=model(always=fails(429, **AT_ONCE)),
        outcome=failed("model_busy", "openai.RateLimitError"),
    ),
    Fault(
        name="no connection",
        arm=model(),
        settings={"OPENAI_API_BASE": "http://127.0.0.1:9/v1"},
        outcome=failed("model_error", "openai.APIConnectionError"),
    ),
    Fault(
        name="the first byte later than MODEL_TIMEOUT_SECONDS",
        arm=model(always=late(5, says("Late."))),
        settings={"MODEL_TIMEOUT_SECONDS": "0.3", "MODEL_RETRIES": "0"},
        outcome=failed("model_timeout", "openai.APITimeoutError", status=504),
    ),
    Fault(
        name="the first byte later than the agent's time",
        arm=model(always=late(30, says("Late."))),
        settings={"MODEL_TIMEOUT_SECONDS": "60"},
        outcome=failed("timeout", "TimeoutError", status=504),
        short=True,
    ),
    Fault(
        name="a stream that stalls, beyond MODEL_TIMEOUT_SECONDS",
        arm=model(always=says("Half an", finish=None, end="stall")),
        settings={"MODEL_TIMEOUT_SECONDS": "0.3"},
        outcome=failed("model_timeout", "openai.APITimeoutError", status=504),
    ),
    Fault(
        name="a stream that stalls, beyond the agent's time",
        arm=model(always=says("Half an", finish=None, end="stall")),
        settings={"MODEL_TIMEOUT_SECONDS": "60"},
        outcome=failed("timeout", "TimeoutError", status=504),
        short=True,
        tested=False,
    ),
    Fault(
        name="a stream that breaks off",
        arm=model(always=says("Half an", finish=None, end="cut")),
        outcome=failed("model_error", "httpx.RemoteProtocolError"),
    ),
    Fault(
        name="a stream that is reset",
        arm=model(always=says("Half an", finish=None, end="reset")),
        outcome=failed("model_error", "httpx.ReadError"),
    ),
    Fault(
        name="a stream that ends without a reason",
        arm=model(always=says("Half an", finish=None, end="clean")),
        outcome=failed("model_error", "handlers.model_answer.BrokenAnswer"),
    ),
    Fault(
        name="a stream that breaks off in a tool call",
        arm=model(always=calls("total", '{"numbers": [1, 2', finish=None, end="clean")),
        outcome=failed("model_error", "handlers.model_answer.BrokenAnswer"),
    ),
    Fault(name="a stream that breaks off after its end", arm=model(says("Noted.", end="cut")), outcome=ANSWERED),
    Fault(
        name="an error in the stream",
        arm=model(always=streams(chunk({"content": "Half an"}), '{"error": {"message": "overloaded"}}')),
        outcome=failed("model_error", "openai.APIError"),
    ),
    Fault(
        name="a body that is no JSON",
        arm=model(always=responds(200, "<html>Welcome</html>", kind="text/html")),
        outcome=failed("model_error", "handlers.model_answer.BrokenAnswer"),
    ),
    Fault(
        name="events that are no JSON",
        arm=model(always=streams("{half")),
        outcome=failed("model_error", "json.decoder.JSONDecodeError"),
    ),
    Fault(
        name="events that are no completion",
        arm=model(always=streams('{"choices": 7}')),
        outcome=failed("model_error", "handlers.model_answer.BrokenAnswer"),
    ),
    Fault(name="an empty answer", arm=model(always=says("")), outcome=failed("empty_answer", "AgentFailed")),
    Fault(
        name="an answer cut by the limit of tokens",
        arm=model(says("Half an", finish="length")),
        outcome=cut_short("length"),
    ),
    Fault(
        name="an answer cut by a content filter",
        arm=model(says("Half an", finish="content_filter")),
        outcome=cut_short("content_filter"),
    ),
    Fault(
        name="nothing but a content filter",
        arm=model(always=says("", finish="content_filter")),
        outcome=failed("content_filter", "AgentFailed"),
    ),
    Fault(
        name="arguments that are no JSON",
        arm=model(calls("current_time", "{timezone: Paris")),
        outcome=told(NOT_AN_OBJECT),
    ),
    Fault(name="arguments that break off", arm=model(calls("total", '{"numbers": [1, 2')), outcome=told(NOT_AN_OBJECT)),
    Fault(
        name="arguments that are no object", arm=model(calls("current_time", '["UTC"]')), outcome=told(NOT_AN_OBJECT)
    ),
    Fault(
        name="arguments that the tool does not take",
        arm=model(calls("total", '{"number": 1}')),
        outcome=told("unexpected argument"),
    ),
    Fault(name="a tool that there is not", arm=model(calls("order_status", "{}")), outcome=told("not found")),
    Fault(
        name="tool calls without end",
        arm=model(always=calls("current_time", "{}")),
        outcome=failed("too_many_steps", "WorkflowRuntimeError"),
    ),
    Fault(name="an answer at the last moment", arm=_at_the_last_moment, outcome=ANSWERED, short=True, tested=False),
    _last_moment("six commits throttled", wire.error(400, "ThrottlingException"), 6),
    _last_moment("three commits reset", wire.reset("before"), 3, tested=False),
    _last_moment("a commit reset when it was done", wire.reset("after"), 1),
    _last_moment("a commit of which nothing is heard", wire.stall("before"), 1, tested=False),
    _last_moment("a commit slow by 1.5 s", wire.slow(1.5), 1, tested=False),
)


# ---- The table -------------------------------------------------------------------------------------------------------

STEPS = {
    "load": ("Query", b""),
    "claim": ("UpdateItem", b""),
    "renewal": ("UpdateItem", b'"SET #lease_until = :lease_until"'),
    "commit": ("PutItem", b""),
}
"""The operation of each, and what is in the body of no other call of it."""
TROUBLES: Mapping[str, Trouble] = {
    "throttled": wire.error(400, "ThrottlingException"),
    "beyond its throughput": wire.error(400, "ProvisionedThroughputExceededException"),
    "answered 500": wire.error(500, "InternalServerError"),
    "answered 503": wire.error(503, "ServiceUnavailable"),
    "reset": wire.reset("before"),
    "reset when it was done": wire.reset("after"),
    "done, its answer cut": wire.cut,
    "not heard of": wire.stall("before"),
    "done, and not heard of": wire.stall("after"),
}
ONCE = {
    ("load", "throttled"),
    ("claim", "throttled"),
    ("commit", "throttled"),
    ("commit", "reset"),
    ("load", "done, its answer cut"),
    ("commit", "done, its answer cut"),
    ("load", "reset when it was done"),
    ("claim", "reset when it was done"),
    ("renewal", "reset when it was done"),
    ("commit", "reset when it was done"),
}
AGAIN_AND_AGAIN = {
    ("load", "throttled"),
    ("load", "not heard of"),
    ("load", "done, its answer cut"),
    ("claim", "throttled"),
    ("renewal", "throttled"),
    ("commit", "throttled"),
    ("commit", "reset when it was done"),
}
"""What the tests try."""
DONE: Sequence[str] = ("reset when it was done", "done, its answer cut", "done, and not heard of")
NOT_HEARD: Sequence[str] = ("not heard of", "done, and not heard of")


def _renewing(rig: Rig) -> None:
    rig.model.tell(late(0.4, says("Noted.")))


def _at(step: str, name: str, *, lasts: bool) -> Fault:
    operation, mark = STEPS[step]

    def arm(rig: Rig) -> None:
        if step == "renewal":
            _renewing(rig)
        rig.wire.trouble(TROUBLES[name], operation, mark=mark, times=None if lasts else 1)

    outcome = ANSWERED
    if lasts and step != "renewal":
        outcome = STORED_IN_SILENCE if step == "commit" and name in DONE else SILENT
    if lasts and (step == "claim" or (step == "load" and name in NOT_HEARD)):
        outcome = UNAVAILABLE
    return Fault(
        name=f"the {step} is {name}, {'again and again' if lasts else 'once'}",
        arm=arm,
        outcome=outcome,
        lasts=lasts,
        renews=step == "renewal",
        on_the_wire=True,
        short=lasts and (step == "claim" or name in NOT_HEARD),
        tested=(step, name) in (AGAIN_AND_AGAIN if lasts else ONCE),
    )


def _refused(step: str) -> Fault:
    """No connection comes about from this step on."""
    operation, mark = STEPS[step]

    def arm(rig: Rig) -> None:
        if step == "load":
            rig.wire.refuse()
            return

        def from_now_on(call: wire.Call) -> None:
            call.reset()
            rig.wire.refuse()

        rig.wire.trouble(from_now_on, operation, mark=mark)

    return Fault(name=f"from the {step} on every connection is refused", arm=arm, outcome=SILENT, lasts=True)


def _refused_for_a_while(rig: Rig) -> None:
    """The engine is gone when the answer is to be stored, and comes back."""

    def gone(call: wire.Call) -> None:
        call.reset()
        rig.wire.refuse()
        time.sleep(1)
        rig.wire.clear()

    rig.wire.trouble(gone, "PutItem")


TABLE_FAULTS = (
    *(_at(step, name, lasts=lasts) for lasts in (False, True) for step in STEPS for name in TROUBLES),
    *(_refused(step) for step in ("load", "claim", "commit")),
    Fault(
        name="every connection is refused for a second, at the commit",
        arm=_refused_for_a_while,
        outcome=ANSWERED,
        on_the_wire=True,
    ),
    Fault(
        name="every call takes 1.5 s",
        arm=lambda rig: rig.wire.trouble(wire.slow(1.5)),
        outcome=ANSWERED,
        on_the_wire=True,
    ),
)


# ---- The clock -------------------------------------------------------------------------------------------------------

CLOCK_FAULTS = (
    Fault(name="a clock 5 minutes ahead", arm=lambda rig: rig.shift_clock(5), outcome=ANSWERED),
    Fault(name="a clock 5 minutes behind", arm=lambda rig: rig.shift_clock(-5), outcome=ANSWERED),
    Fault(
        name="held by an instance that was killed, its clock 5 minutes ahead",
        arm=lambda rig: rig.hold(5),
        outcome=ANSWERED,
        tested=False,  # it waits for a lease
    ),
    Fault(
        name="held by an instance that was killed, its clock 5 minutes behind",
        arm=lambda rig: rig.hold(-5),
        outcome=ANSWERED,
    ),
)


def _left_by_a_killed_one(rig: Rig) -> None:
    """The session was held by a killed instance, and what that may have left cannot be asked for."""
    rig.hold(-5)
    rig.wire.trouble(wire.stall("before"), "Query", mark=b"ProjectionExpression")


TIDYING_FAULTS = (
    Fault(
        name="what a killed instance left is asked for, and nothing heard",
        arm=_left_by_a_killed_one,
        outcome=ANSWERED,
        on_the_wire=True,
    ),
)
FAULTS = (*MODEL_FAULTS, *TABLE_FAULTS, *CLOCK_FAULTS, *TIDYING_FAULTS)


# ---- The sessions ----------------------------------------------------------------------------------------------------

ROUTES = (
    Route(method="POST", path="/sessions", body={"title": "New"}, good=(201,)),
    Route(method="GET", path="/sessions", good=(200,)),
    Route(method="GET", path="/sessions/{id}", good=(200,)),
    Route(method="PATCH", path="/sessions/{id}", body={"title": CANARY}, good=(200,)),
    Route(method="GET", path="/sessions/{id}/turns", good=(200,)),
    Route(method="GET", path="/sessions/{id}/export", good=(200,)),
    Route(method="POST", path="/sessions/{id}/fork", good=(201,)),
    Route(method="DELETE", path="/sessions/{id}", good=(204, 202), done=(404,)),
    Route(method="DELETE", path="/sessions", good=(204, 202)),
)
ROUTE_FAULTS = (
    *(
        RouteFault(
            name=f"a call is {name}",
            arm=lambda rig, trouble=trouble: rig.wire.trouble(trouble, times=1),  # type: ignore[misc]
            tested=name == "done, its answer cut",
        )
        for name, trouble in TROUBLES.items()
    ),
    *(
        RouteFault(
            name=f"every call is {name}",
            arm=lambda rig, trouble=trouble: rig.wire.trouble(trouble),  # type: ignore[misc]
            lasts=True,
            tested=name == "done, its answer cut",
        )
        for name, trouble in TROUBLES.items()
    ),
    RouteFault(name="every connection is refused", arm=lambda rig: rig.wire.refuse(), lasts=True, tested=False),
)
