"""What goes wrong between the handler and its model, and between the handler and its table: what is injected, and the
outcome that is documented for it.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import pytest

from handlers import chat, conversation, front, openapi, sessions
from handlers.model import NO_OBJECT
from handlers.settings import COMMIT_SECONDS
from memory import codec, table
from memory.dynamodb import DynamoDBTurnLog
from memory.turns import Request, Session, TurnStatus, Window, utc_now
from tests import faulty_model, wire
from tests.conftest import TABLE, Store, client_at
from tests.faulty_model import FaultyModel, calls, chunk, fails, late, responds, says, streams
from tests.handlers.conftest import Reply, Service, configure, deployed, forget_settings
from tests.instances import answered_with
from tests.instances import faults as history_faults
from tests.wire import Trouble, Wire

ISSUER = "https://login.example.com/"
SESSION = "talk"
KEY = "the-key"
CANARY = "xyzzy"
MESSAGE = f"My code is {CANARY}"
FULL_SECONDS, QUICK_SECONDS, SHORT_SECONDS = 28.0, 18.0, 9.0
"""What an invocation has as it is deployed; where there is a hurry; and then for what lasts until its time is over."""
QUICK_AGENT_SECONDS, QUICK_PERSISTENCE_SECONDS = 0.5, 1.0

Stored = Literal["complete", "failed", "nothing"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What comes of a request: its status, the `outcome` of its log line, and what the table holds of it then."""

    status: int
    code: str
    stored: Stored
    cause: str = ""
    """What the log's `cause` names."""
    line: Mapping[str, Any] = field(default_factory=dict)
    """What else the log line says."""
    told: str = ""
    """What the model is told, so that it can try again."""


ANSWERED = Outcome(status=200, code="answered", stored="complete")
UNAVAILABLE = Outcome(status=503, code="unavailable", stored="nothing", cause="table.py")
SILENT = Outcome(status=503, code="unavailable", stored="nothing", cause="memory.table.Silent")
STORED_IN_SILENCE = Outcome(status=503, code="unavailable", stored="complete", cause="memory.table.Silent")


def failed(code: str, cause: str, *, status: int = 502) -> Outcome:
    return Outcome(status=status, code=code, stored="failed", cause=cause)


def told(what: str) -> Outcome:
    return Outcome(status=200, code="answered", stored="complete", told=what)


def cut_short(reason: str) -> Outcome:
    line = {"level": "WARNING", "finish_reason": reason}
    return Outcome(status=200, code="answered", stored="complete", line=line)


@dataclass(kw_only=True)
class Rig:
    """The functions of this process, with trouble to be had on the way to the table and at the model."""

    service: Service
    wire: Wire
    model: FaultyModel
    patch: pytest.MonkeyPatch
    hurry: bool
    """Whether the times are shortened, so that nothing takes longer than some seconds."""

    @property
    def short_seconds(self) -> float:
        """What an invocation has that takes all of its time."""
        return SHORT_SECONDS if self.hurry else FULL_SECONDS

    user: str = ""
    """Who asks."""

    @property
    def session(self) -> Session:
        return Session(owner=f"jwt:{quote(ISSUER, safe='')}:{self.user}", id=SESSION)

    @property
    def store(self) -> Store:
        """The table, without anything between."""
        return Store(client=client_at(self.wire.endpoint), owner=self.session.owner)

    def begin(self) -> None:
        """A caller of whom nothing is known yet."""
        self.user = uuid.uuid4().hex

    def mend(self) -> None:
        """All is well again, as in a new instance: the SDK has not spent its retries yet."""
        self.wire.clear()
        self.model.tell()
        self.shift_clock(0)
        front.table_client(self.wire.address).close()
        forget_settings()

    def shift_clock(self, minutes: float) -> None:
        """Have this instance's clock go wrong."""
        self.patch.setattr(chat, "DynamoDBTurnLog", partial(DynamoDBTurnLog, clock=_clock(minutes)))

    def hold(self, minutes: float) -> None:
        """Have the session be held by an instance that is no more, and whose clock was wrong."""

        async def claim() -> None:
            log = self.store.log(clock=_clock(minutes))
            await log.claim(await log.load(self.session, token_limit=0), Request(id="lost", body_hash=""))

        asyncio.run(claim())

    def everything(self) -> Window:
        """All that the table has of the session."""
        return asyncio.run(self.store.log().load(self.session, token_limit=None))

    def pass_lease(self) -> None:
        """Have the lease of a turn that was not stored run out now."""
        self.store.client.update_item(
            TableName=TABLE,
            Key={"pk": {"S": codec.partition(self.session)}, "sk": {"S": codec.STATE_KEY}},
            UpdateExpression="SET lease_until = :now",
            ExpressionAttributeValues={":now": {"N": "0"}},
        )


def _clock(minutes: float) -> Callable[[], datetime]:
    return lambda: utc_now() + timedelta(minutes=minutes)


@contextmanager
def rig_on(endpoint: str, *, hurry: bool) -> Iterator[Rig]:
    """A rig on an engine, for as long as the block runs."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        line = stack.enter_context(wire.wire_to(endpoint))
        model = stack.enter_context(faulty_model.faulty_model())
        settings = {"IDENTITY_SOURCES": "jwt", "MODEL_RETRIES": "1"}
        service = stack.enter_context(deployed(line.address, model.endpoint, patch, **settings))
        yield Rig(service=service, wire=line, model=model, patch=patch, hurry=hurry)
        front.table_client(line.address).close()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong in a turn."""

    name: str
    arm: Callable[[Rig], object]
    outcome: Outcome
    short: bool = False
    """Whether it takes all the time that there is."""
    lasts: bool = False
    """Whether it is there for as long as anybody tries."""
    settings: Mapping[str, str] = field(default_factory=dict)
    renews: bool = False
    """Whether the turn is to renew its lease."""
    on_the_wire: bool = False
    """Whether a call to the table has to come upon it."""
    tested: bool = True
    """Whether the tests have it; the proof has all."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of a fault."""

    reply: Reply
    seconds: float
    allowed: float
    """What the invocation had, in seconds."""
    met: bool
    """Whether a call to the table met trouble."""
    asked: Sequence[Any]
    """What the model was asked."""
    window: Window
    """What the table held afterwards."""
    retry: Reply
    """Of the same request under its key, when the fault was gone."""
    following: Reply
    """Of the next request."""
    last: Window


def suffer(rig: Rig, fault: Fault) -> Seen:
    """Have a fault happen in the second turn of a session, then send the request again, and another one."""
    rig.begin()
    say = partial(rig.service.say, user=rig.user, session=SESSION)
    assert say("My name is Ada").status == 200
    allowed = rig.short_seconds if fault.short else QUICK_SECONDS if rig.hurry else FULL_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, **fault.settings)
        if rig.hurry:
            patch.setattr(conversation, "AGENT_SECONDS", QUICK_AGENT_SECONDS)
        if rig.hurry and fault.lasts:
            patch.setattr(table, "PERSISTENCE_SECONDS", QUICK_PERSISTENCE_SECONDS)
        if fault.renews:
            patch.setattr(conversation, "FIRST_RENEWAL_SECONDS", 0.1)
        fault.arm(rig)
        before, began = rig.wire.troubled, time.monotonic()
        reply = say(MESSAGE, seconds=allowed, idempotency_key=KEY)
        seconds = time.monotonic() - began
    met, asked = rig.wire.troubled > before, list(rig.model.received)
    rig.mend()
    window = rig.everything()
    if reply.status != 200:
        rig.pass_lease()
    retry = say(MESSAGE, idempotency_key=KEY)
    following = say("What is next?")
    return Seen(
        reply=reply,
        seconds=seconds,
        allowed=allowed,
        met=met,
        asked=asked,
        window=window,
        retry=retry,
        following=following,
        last=rig.everything(),
    )


def wrong(fault: Fault, seen: Seen) -> list[str]:
    """Everything that is not as it was to be."""
    found = [*_wrong_reply(fault.outcome, seen), *_wrong_table(fault.outcome, seen)]
    if fault.on_the_wire and not seen.met:
        found.append("no call came upon it")
    if fault.outcome.told not in json.dumps(list(seen.asked[-1:])):
        found.append(f"the model was not told {fault.outcome.told!r}: {seen.asked[-1:]}")
    return found


def _wrong_reply(wanted: Outcome, seen: Seen) -> Iterator[str]:
    reply, line = seen.reply, seen.reply.line
    if (reply.status, line.get("outcome")) != (wanted.status, wanted.code):
        yield f"{reply.status} {line.get('outcome')} instead of {wanted.status} {wanted.code}: {line.get('cause')}"
    if seen.seconds >= seen.allowed:
        yield f"the response came after {seen.seconds:.1f} s, and the invocation had {seen.allowed} s"
    yield from undocumented("POST", "/chat", reply)
    if CANARY in json.dumps([line, reply.other_lines]):
        yield "words of the message in the log"
    if wanted.cause not in json.dumps(line.get("cause", "")):
        yield f"the cause names no {wanted.cause}: {line.get('cause')}"
    if not wanted.line.items() <= line.items():
        yield f"the line lacks some of {wanted.line}"


def _wrong_table(wanted: Outcome, seen: Seen) -> Iterator[str]:
    for window in (seen.window, seen.last):
        yield from history_faults(window)
    new = [turn.status for turn in seen.window.turns[1:]]
    statuses = {"complete": [TurnStatus.COMPLETE], "failed": [TurnStatus.FAILED], "nothing": []}
    if new != statuses[wanted.stored]:
        yield f"the table holds {new} instead of {wanted.stored}"
    if seen.retry.status != 200 or len(answered_with(seen.last, KEY)) != 1:
        yield f"sent again it gets {seen.retry.status}, and is there {len(answered_with(seen.last, KEY))} times"
    if ("idempotent-replayed" in seen.retry.headers) != (wanted.stored == "complete"):
        yield "sent again it is answered anew, or replayed, and was to be the other"
    if seen.following.status != 200:
        yield f"the next request gets {seen.following.status}"


def undocumented(method: str, path: str, reply: Reply) -> Iterator[str]:
    """What of a response is not as `/openapi.json` has it."""
    operation = openapi.OPERATIONS[method, path]
    if reply.status not in {*operation.responses, *(kind.status.value for kind in operation.problems)}:
        yield f"{reply.status} is not documented"
    if reply.status >= 400 and reply.headers["content-type"] != "application/problem+json":
        yield "no problem document"


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
        name="401: the key is wrong", arm=model(fails(401)), outcome=failed("model_error", "openai.AuthenticationError")
    ),
    Fault(
        name="400: the prompt is refused",
        arm=model(fails(400, code="content_filter")),
        outcome=failed("model_error", "content_filter"),
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
        outcome=failed("model_error", "handlers.model.BrokenAnswer"),
    ),
    Fault(
        name="a stream that breaks off in a tool call",
        arm=model(always=calls("total", '{"numbers": [1, 2', finish=None, end="clean")),
        outcome=failed("model_error", "handlers.model.BrokenAnswer"),
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
        outcome=failed("model_error", "handlers.model.BrokenAnswer"),
    ),
    Fault(
        name="events that are no JSON",
        arm=model(always=streams("{half")),
        outcome=failed("model_error", "json.decoder.JSONDecodeError"),
    ),
    Fault(
        name="events that are no completion",
        arm=model(always=streams('{"choices": 7}')),
        outcome=failed("model_error", "handlers.model.BrokenAnswer"),
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
        outcome=failed("empty_answer", "AgentFailed"),
    ),
    Fault(
        name="arguments that are no JSON", arm=model(calls("current_time", "{timezone: Paris")), outcome=told(NO_OBJECT)
    ),
    Fault(name="arguments that break off", arm=model(calls("total", '{"numbers": [1, 2')), outcome=told(NO_OBJECT)),
    Fault(name="arguments that are no object", arm=model(calls("current_time", '["UTC"]')), outcome=told(NO_OBJECT)),
    Fault(
        name="arguments that the tool does not take",
        arm=model(calls("total", '{"number": 1}')),
        outcome=told("unexpected keyword"),
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

STEPS = {"load": ("Query", 0), "claim": ("UpdateItem", 0), "renewal": ("UpdateItem", 1), "commit": ("PutItem", 0)}
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
    operation, skip = STEPS[step]

    def arm(rig: Rig) -> None:
        if step == "renewal":
            _renewing(rig)
        rig.wire.trouble(TROUBLES[name], operation, skip=skip, times=None if lasts else 1)

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
    operation, skip = STEPS[step]

    def arm(rig: Rig) -> None:
        if step == "load":
            rig.wire.refuse()
            return

        def from_now_on(call: wire.Call) -> None:
            call.reset()
            rig.wire.refuse()

        rig.wire.trouble(from_now_on, operation, skip=skip)

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
    rig.wire.trouble(wire.stall("before"), "Query", skip=1)


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


@dataclass(frozen=True, kw_only=True)
class Route:
    """A request to the sessions function, and the statuses that it has where nothing is wrong."""

    method: str
    path: str
    good: Sequence[int]
    body: Any = None
    done: Sequence[int] = ()
    """Statuses that it also has when it was done before."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def ask(self, rig: Rig, seconds: float) -> Reply:
        """Send it."""
        path = self.path.replace("{id}", SESSION)
        return rig.service.send(self.method, path, self.body, user=rig.user, seconds=seconds, idempotency_key=KEY)


@dataclass(frozen=True, kw_only=True)
class RouteFault:
    """Something that goes wrong in a request to the sessions function."""

    name: str
    arm: Callable[[Rig], object]
    lasts: bool = False
    """Whether it is there for as long as anybody tries; then the outcome is 503."""
    tested: bool = True


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


def suffer_at(rig: Rig, route: Route, fault: RouteFault) -> tuple[list[str], float, float]:
    """Have a fault happen in a request to the sessions function, then send it again: what was wrong, how long the
    request took, and what its invocation had."""
    rig.begin()
    for message in ("My name is Ada", "What is my name?"):
        assert rig.service.say(message, user=rig.user, session=SESSION).status == 200
    allowed = 4.0 if rig.hurry else FULL_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "INDEX_SECONDS", 0.1)
        if rig.hurry and fault.lasts:
            patch.setattr(table, "PERSISTENCE_SECONDS", QUICK_PERSISTENCE_SECONDS)
        fault.arm(rig)
        began = time.monotonic()
        reply = route.ask(rig, allowed)
        seconds = time.monotonic() - began
        rig.mend()
        again = route.ask(rig, FULL_SECONDS)
    wanted = (503,) if fault.lasts else route.good
    found = [*undocumented(route.method, route.path, reply)]
    if reply.status not in wanted:
        found.append(f"{reply.status} instead of {wanted}: {reply.line.get('cause')}")
    if seconds >= allowed:
        found.append(f"the response came after {seconds:.1f} s, and the invocation had {allowed} s")
    if CANARY in json.dumps([reply.line, reply.other_lines]):
        found.append("words of the request in the log")
    if again.status not in (*route.good, *route.done):
        found.append(f"sent again it gets {again.status}")
    return found, seconds, allowed
