"""The functions of this process between a table and a model that are in trouble, and what has to be so all the same."""

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

from handlers import chat, conversation, front, openapi, sessions, snapshot
from memory import codec, table
from memory.dynamodb import DynamoDBTurnLog
from memory.turns import Request, Session, TurnStatus, Window, utc_now
from tests import faulty_model, wire
from tests.conftest import TABLE, Store, client_at
from tests.faulty_model import FaultyModel
from tests.handlers.conftest import Reply, Service, configure, deployed
from tests.instances import answered_with
from tests.instances import faults as history_faults
from tests.wire import Wire

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
    user: str = ""
    """Who asks."""

    @property
    def short_seconds(self) -> float:
        """What an invocation has that takes all of its time."""
        return SHORT_SECONDS if self.hurry else FULL_SECONDS

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
        snapshot.forget()

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
