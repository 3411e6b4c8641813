"""One random schedule: several requests at a few sessions, whose every call to the table waits for its turn, and what
networks, clocks and killed processes do to them.

The seed decides everything: who goes on, whose response is lost, which packet comes late, who is killed, whose clock
moves. It is the same schedule on every engine.
"""

import asyncio
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any

from botocore.exceptions import ClientError, ReadTimeoutError

from memory import codec
from memory.turns import Request, Session, TurnStatus
from proof.actors import BEGINNING, TABLE, Actor
from proof.ledger import Ledger
from proof.loop import Call, Packet, SteppedLoop, Timer

MOST_STEPS = 20_000
LEASES_HOLD = timedelta(seconds=2)
TOLERABLE_CALLS = 4
"""Of an undisturbed turn: three, and one where an unfinished rewrite left something."""


LONGEST_BLOCK = 13.0
"""Seconds that a killed invocation holds a session up: a lease, the clocks' difference, and jitter."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What may happen in a schedule."""

    kills: bool = False
    losses: bool = False
    """Responses get lost, the SDK sends a call again, the table throttles."""
    late: bool = False
    """Packets arrive long after whoever sent them gave up, and twice."""
    slow: bool = False
    """Any call may take longer than a lease."""
    skew: float = 2
    """Seconds that clocks are off at the most."""
    deeds: tuple[str, ...] = ()
    """What is done beside talking and reading."""


@dataclass(kw_only=True)
class Schedule:
    """Everything of one schedule. `client` is an engine's, or a Shelf."""

    seed: int
    rules: Rules
    client: Any
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - a schedule, no secret
        self.loop = SteppedLoop()  # type: ignore[abstract] # what asyncio needs of a loop is there
        tame = not self.rules.slow and self.rules.skew <= LEASES_HOLD.total_seconds()
        self.ledger = Ledger(skew=LEASES_HOLD, one_at_a_time=tame)
        self.session = Session(owner=uuid.uuid4().hex, id="talk")
        self.late: list[Packet] = []
        self.killed: set[str] = set()
        self.stalled = ""
        """Who does not go on for a while, as long as others can."""
        self.quiet = False
        self.page_size, self.large = self.random.choice([None, None, 1, 2]), self.random.random() < 0.5
        self._tokens = count(1)
        self._old: dict[str, Any] = {}

    def run(self) -> set[str]:
        """What was violated."""
        state = random.getstate()
        random.seed(self.seed)  # the log's own jitter
        tasks: dict[str, asyncio.Task[None]] = {}
        try:
            with small_items() if self.large else nullcontext():
                tasks |= self._begin_all()
                self._drive(tasks)
                self._end(tasks)
        finally:
            self.loop.close_all(list(tasks.values()))
            random.setstate(state)
        return self.ledger.violations

    def actor(self, name: str, session: Session, **options: Any) -> Actor:
        """Somebody with a clock of their own."""
        rules = self.rules
        return Actor(
            name=name,
            loop=self.loop,
            ledger=self.ledger,
            random=self.random,
            new_token=lambda: f"{next(self._tokens):016x}",
            skew=self.random.choice([0, rules.skew, -rules.skew]),
            session=session,
            **options,
        )

    def _begin_all(self) -> dict[str, asyncio.Task[None]]:
        limits: tuple[int, ...] = self.random.choice([(1000,), (1000, 20, 0)])
        kinds = ["talk"] * 5 + ["read", "read", "history"]
        kinds += [deed for deed in self.rules.deeds for _ in range(2) if self.random.random() < 0.6]
        actors = [self.actor(f"{kind}{i}", self.session, limits=limits) for i, kind in enumerate(kinds)]
        self.actors = {actor.name: actor for actor in actors}
        return {
            actor.name: self.loop.begin(actor.name, actor.act(kind)) for actor, kind in zip(actors, kinds, strict=True)
        }

    # ---- who goes on -------------------------------------------------------------------------------------------------

    def _drive(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """Let them go on, one call at a time, until all are done or killed."""
        for _ in range(MOST_STEPS):
            self.loop.settle()
            live = [name for name, task in tasks.items() if not task.done() and name not in self.killed]
            for task in tasks.values():
                if task.done() and (error := task.exception()):
                    raise error
            if not live:
                return
            self._disturb(live)
            self._go_on(live)
        self.ledger.wrong("it never ended")

    def _disturb(self, live: list[str]) -> None:
        rules = self.rules
        if self.quiet:
            return
        if rules.slow:
            self.loop.now += self.random.choice([0, 0, 0.1, 0.3, 1, 4])
        if rules.kills and self.random.random() < 0.006:
            self._kill(self.random.choice(live))
        if self.random.random() < 0.05:
            self.stalled = self.random.choice(["", *live])
        if self.late and self.random.random() < 0.1:
            self._arrive(self.late.pop(self.random.randrange(len(self.late))))
        if self.random.random() < 0.02:
            name = self.random.choice(live)
            self.actors[name].skew = self.random.uniform(-rules.skew, rules.skew)

    def _go_on(self, live: list[str]) -> None:
        calls = [call for call in self.loop.calls if call.actor in live and call.actor not in self.killed]
        timers = [timer for timer in self.loop.timers if timer.actor in live and timer.actor not in self.killed]
        due = [timer for timer in timers if timer.handle.when() <= self.loop.now]
        choices: list[Call | Timer] = [*calls, *due]
        if choices := [choice for choice in choices if choice.actor != self.stalled] or choices:
            chosen: Call | Timer = self.random.choice(choices)
        elif timers:
            chosen = min(timers, key=lambda timer: timer.handle.when())
        else:
            return
        if not isinstance(chosen, Call):
            self.loop.fire(chosen)
        elif chosen.outcome is None:
            chosen.outcome = self._send(chosen.packet, chosen.actor)
        else:
            self.loop.calls.remove(chosen)
            chosen.deliver()

    def _kill(self, name: str) -> None:
        self.killed.add(name)
        for attempt in self.ledger.attempts.values():
            if attempt.actor == name:
                attempt.thinking = False
        for call in [call for call in self.loop.calls if call.actor == name]:
            self.loop.calls.remove(call)
            if call.outcome is None and call.packet.writes and self.random.random() < 0.5:
                self.late.append(call.packet)
        self._note(f"kill {name}")

    # ---- what becomes of a call --------------------------------------------------------------------------------------

    def _send(self, packet: Packet, actor: str) -> dict[str, Any] | Exception:
        """The response to a call, or the error, as the SDK hands it over."""
        rules, luck = self.rules, self.random.random()
        if self.quiet:
            return self._apply(packet, actor)
        if rules.late and packet.writes and luck < 0.04:
            self.late.append(packet)
            self._note(f"{actor} {packet.operation} does not arrive yet")
            return self._again(packet, actor)
        if rules.losses and luck < 0.09:
            self._apply(packet, actor)
            self._note("  and its response is lost")
            return self._again(packet, actor)
        if rules.losses and luck < 0.10:
            return _throttled(packet)
        outcome = self._apply(packet, actor)
        if rules.late and packet.writes and luck > 0.97:
            self.late.append(packet)
        return outcome

    def _again(self, packet: Packet, actor: str) -> dict[str, Any] | Exception:
        """What the SDK hands over after a first attempt that ended in silence: that of the second, or the silence."""
        self.loop.now += 2
        if self.random.random() < 0.5:
            return ReadTimeoutError(endpoint_url="http://silent")
        outcome = self._apply(packet, actor)
        if isinstance(outcome, ClientError):
            outcome.response.setdefault("ResponseMetadata", {})["RetryAttempts"] = 1  # type: ignore[typeddict-item]
        return outcome

    def _arrive(self, packet: Packet) -> None:
        self._apply(packet, "late:")

    def _apply(self, packet: Packet, actor: str) -> dict[str, Any] | Exception:
        """Hand a call to the engine, and let the ledger know what it did."""
        self.ledger.step += 1
        arguments = dict(packet.arguments)
        if self.page_size and packet.operation == "query":
            arguments.setdefault("Limit", self.page_size)  # as if a page were full
        if not packet.writes and not arguments.get("ConsistentRead"):
            return self._stale(packet.operation, arguments)
        try:
            outcome: dict[str, Any] = getattr(self.client, packet.operation)(**arguments)
        except ClientError as refusal:
            if refusal.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise
            self._note(f"{actor} {packet.operation} {_about(packet)} refused")
            return refusal
        self._note(f"{actor} {packet.operation} {_about(packet)}")
        if packet.writes:
            at = BEGINNING + timedelta(seconds=self.loop.now)
            self.ledger.applied(packet, self._state_after(arguments), at)
        return outcome

    def _stale(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What a read gives that is not strongly consistent: the same as the last time."""
        asked = f"{operation} {sorted(arguments.items(), key=str)}"
        found: dict[str, Any] = getattr(self.client, operation)(**arguments)
        if asked in self._old and self.random.random() < 0.5:
            found = self._old[asked]
        self._old[asked] = found
        return found

    def _state_after(self, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """The state item, where a write was to one."""
        key = arguments.get("Key") or arguments.get("Item") or {"sk": {"S": ""}}
        if key["sk"]["S"] != codec.STATE_KEY:
            return None
        place = {"pk": key["pk"], "sk": key["sk"]}
        found: dict[str, Any] | None = self.client.get_item(TableName=TABLE, Key=place, ConsistentRead=True).get("Item")
        return found

    def _note(self, line: str) -> None:
        self.trace.append(f"{self.ledger.step:5} {self.loop.now:8.2f}  {line.replace(self.session.owner, 'OWNER')}")

    # ---- the end -----------------------------------------------------------------------------------------------------

    def _end(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """What is still under way arrives; then whoever comes is served, and everything is where it should be."""
        while self.late:
            self._arrive(self.late.pop())
        self.quiet = True
        self._note("quiet")
        for session in self._sessions():
            for deed in (self._fresh, self._repeat, self._look):
                actor = self.actor(f"{deed.__name__} {session.id}", session, hasty=True)
                actor.skew = 0
                self.actors[actor.name] = actor
                tasks[actor.name] = self.loop.begin(actor.name, deed(actor))
                self._drive({actor.name: tasks[actor.name]})
        self.ledger.check_end()

    def _sessions(self) -> list[Session]:
        ids = sorted({codec.session_id(partition) for partition in self.ledger.states})
        return [replace(self.session, id=one) for one in ids]

    async def _fresh(self, actor: Actor) -> None:
        """Three turns of somebody who comes when all is over: the first waits for a lease at the most."""
        state = self.ledger.living(actor.partition)
        if not self.ledger.one_at_a_time and state:
            self.loop.now = max(self.loop.now, (state.lease_until - BEGINNING).total_seconds() + 0.001)
        begun, calls = self.loop.now, []
        actor.limits = (0,) if self.large else (10_000,)  # each part of a large turn in a window takes a call
        for name in ("fresh1", "fresh2", "fresh3"):
            log = actor.log()
            await actor.turn(Request(id=name, body_hash=name), log)
            calls.append(log.usage.calls)
            if name == "fresh1" and self.loop.now - begun > LONGEST_BLOCK:
                self.ledger.wrong("a session was blocked for longer than a lease")
        if calls[1] != calls[2] or calls[2] > TOLERABLE_CALLS:
            self.ledger.wrong("turns take more and more calls")

    async def _repeat(self, actor: Actor) -> None:
        """Every request that was answered, and is still there, gets the same answer again."""
        now = self.ledger.living(actor.partition)
        deleted = self.ledger.deleted_through(actor.partition, now.generation)[0] if now else 0
        there = {
            stored.token: n
            for n, stored in self.ledger.of_generation(actor.partition, now.generation if now else 0).items()
            if stored.status is TurnStatus.COMPLETE and n > deleted
        }
        last = max(there.values(), default=0)
        for report in list(self.ledger.reports):
            turn, number = report.turn, there.get(report.turn.token)
            if report.partition == actor.partition and number and last - number < 12:
                again = await actor.turn(turn.request)
                if again.token != turn.token:
                    self.ledger.wrong("a request that came again got another answer")

    async def _look(self, actor: Actor) -> None:
        """Windows and histories show what is there, whole."""
        window = await actor.log().load(actor.session, token_limit=None)
        now = self.ledger.living(actor.partition)
        deleted = self.ledger.deleted_through(actor.partition, now.generation)[0] if now else 0
        expected = list(self.ledger.visible(actor.partition))
        shown = [turn.token for turn in window.turns]
        if window.damaged:
            self.ledger.wrong("a turn cannot be read")
        if not deleted and shown != expected:
            self.ledger.wrong("a window does not show what is there")
        await actor.history()


@contextmanager
def small_items() -> Iterator[None]:
    """Turns of some hundred bytes are large ones, and have parts."""
    before = codec.INLINE_BYTES, codec.PART_BYTES
    codec.INLINE_BYTES, codec.PART_BYTES = 400, 300
    try:
        yield
    finally:
        codec.INLINE_BYTES, codec.PART_BYTES = before


def _throttled(packet: Packet) -> ClientError:
    error = {"Code": "ThrottlingException", "Message": "too fast"}
    about = {"RetryAttempts": 1, "HTTPStatusCode": 400}
    return ClientError({"Error": error, "ResponseMetadata": about}, packet.operation)  # type: ignore[typeddict-item]


def _about(packet: Packet) -> str:
    """A call in a word or two."""
    found = packet.arguments
    if "RequestItems" in found:
        keys = [request["DeleteRequest"]["Key"]["sk"]["S"] for request in found["RequestItems"][TABLE]]
        return f"removes {keys}"
    key = found.get("Key") or found.get("Item")
    if key is None:
        return str(list(found["ExpressionAttributeValues"].values())[1:])
    values = {name: next(iter(value.values())) for name, value in found.get("ExpressionAttributeValues", {}).items()}
    return f"{key['sk']['S']} { {n: v for n, v in values.items() if n not in (':recent', ':owner')} or '' }"
