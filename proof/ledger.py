"""What really happened to the table, write by write, and what of the log's promises that breaks.

The ledger sees each write at the moment when it is applied, whoever sent it and however late; the actors tell it what
they saw and what they were told.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from boto3.dynamodb.types import TypeDeserializer

from memory import codec
from memory.turns import START, Claim, Position, Request, State, Turn, TurnStatus, Window
from proof.loop import Packet

_plain = TypeDeserializer().deserialize
FOREVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A turn as it was put."""

    item: dict[str, Any]
    step: int

    @property
    def token(self) -> str:
        return str(self.item["token"])

    @property
    def status(self) -> TurnStatus:
        return TurnStatus(self.item["status"])

    @property
    def supersedes(self) -> int:
        return int(self.item.get("supersedes", 0))


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a state was from one step on."""

    step: int
    state: State


@dataclass(kw_only=True)
class Attempt:
    """A claimed turn, and in view of what it is answered."""

    actor: str
    claim: Claim
    window: Window
    thinking: bool = True


@dataclass(frozen=True, kw_only=True)
class Report:
    """A turn that somebody was told is stored."""

    partition: str
    turn: Turn
    begun: int
    ended: int


@dataclass(kw_only=True)
class Deletion:
    """A delete that somebody asked for; it never ended where nobody was told so."""

    partition: str
    begun: int
    ended: int = FOREVER


@dataclass(kw_only=True)
class Ledger:
    """Everything that happened in one schedule."""

    skew: timedelta
    one_at_a_time: bool
    """Whether clocks are good enough for leases to hold."""
    step: int = 0
    violations: set[str] = field(default_factory=set)
    turns: dict[tuple[str, int, int], Stored] = field(default_factory=dict)
    removed: dict[tuple[str, int, int], Stored] = field(default_factory=dict)
    states: dict[str, list[Change]] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    """Steps at which claims were applied, by token."""
    renewed: dict[str, int] = field(default_factory=dict)
    """Step of the last renewal in a partition."""
    said: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """The messages of each turn that was to be stored, by token."""
    reports: list[Report] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    """Tokens of turns that a rewrite or a mark was to remove."""

    def wrong(self, what: str) -> None:
        self.violations.add(what)

    def living(self, partition: str, step: int = FOREVER) -> State | None:
        """The state after a step."""
        found = [change.state for change in self.states.get(partition, []) if change.step <= step]
        return found[-1] if found else None

    def of_generation(self, partition: str, generation: int) -> dict[int, Stored]:
        """The turns that lie in a generation, by number."""
        found = {n: stored for (pk, g, n), stored in self.turns.items() if (pk, g) == (partition, generation)}
        return dict(sorted(found.items()))

    def deleted_through(self, partition: str, generation: int) -> Position:
        """How far a generation was ever marked as deleted."""
        changes = (change.state for change in self.states.get(partition, []))
        return max((state.deleted_through for state in changes if state.generation == generation), default=START)

    def _archived_through(self, partition: str, generation: int) -> Position:
        changes = (change.state for change in self.states.get(partition, []))
        return max((state.archived_through for state in changes if state.generation == generation), default=START)

    # ---- what is applied ---------------------------------------------------------------------------------------------

    def applied(self, packet: Packet, state: Mapping[str, Any] | None, at: datetime) -> None:
        """A write was applied; `state` is the state item after it, where the write was to one."""
        if packet.operation == "batch_write_item":
            for requests in packet.arguments["RequestItems"].values():
                for request in requests:
                    self._removed(_untyped(request["DeleteRequest"]["Key"]))
        elif packet.operation == "put_item" and packet.arguments["Item"]["sk"]["S"].startswith(codec.TURN_PREFIX):
            self._turn_put(_untyped(packet.arguments["Item"]))
        elif state is not None:
            self._state_changed(_untyped(state), at)

    def _removed(self, key: Mapping[str, Any]) -> None:
        kind, generation = key["sk"].split("#")[:2]
        now = self.living(key["pk"])
        if now and now.generation == int(generation) and self._is_named(key):
            self.wrong("something of the living generation was removed")
        if kind + "#" == codec.TURN_PREFIX:
            place = key["pk"], *codec.turn_numbers(key["sk"])
            if gone := self.turns.pop(place, None):
                self.removed[place] = gone

    def _is_named(self, key: Mapping[str, Any]) -> bool:
        """Whether the key is of a turn, or of a part that a stored turn names."""
        if key["sk"].startswith(codec.TURN_PREFIX):
            return True
        _, generation, number, token, _ = key["sk"].split("#")
        stored = self.turns.get((key["pk"], int(generation), int(number)))
        return stored is not None and stored.token == token

    def _turn_put(self, item: dict[str, Any]) -> None:
        generation, number = codec.turn_numbers(item["sk"])
        place = item["pk"], generation, number
        before = self.turns.get(place)
        if before and before.item != item:
            self.wrong("a stored turn was overwritten")
        if before:
            return
        stored = Stored(item=item, step=self.step)
        self.turns[place] = stored
        attempt = self.attempts.get(stored.token)
        now = self.living(item["pk"])
        if attempt and now and now.generation == generation:  # else nobody will ever see it
            self._check_view(item["pk"], attempt, stored)

    def _check_view(self, partition: str, attempt: Attempt, stored: Stored) -> None:
        """The turn was answered in view of all turns before it."""
        claim, below = attempt.claim, self.of_generation(partition, attempt.claim.generation)
        below = {n: turn for n, turn in below.items() if n < claim.number}
        if claim.number > 1 and claim.number - 1 not in below:
            self.wrong("a turn was stored above a number that is free")
        if stored.status is TurnStatus.VOID:
            return
        gone = {turn.supersedes for turn in below.values() if turn.status is TurnStatus.COMPLETE}
        gone |= {claim.supersedes or 0}
        from_on = max(
            self.deleted_through(partition, claim.generation), self._archived_through(partition, claim.generation)
        )[0]
        numbers = {turn.token: n for n, turn in below.items()}
        expected = [
            turn.token
            for n, turn in below.items()
            if n > from_on and n not in gone and turn.status is TurnStatus.COMPLETE and not _cut(turn)
        ]
        saw = [turn.token for turn in attempt.window.turns]
        limit = attempt.window.token_limit
        room = len(expected) if limit is None else min(len(expected), limit // TOKENS)
        if [one for one in saw if numbers.get(one, 0) > from_on] != expected[len(expected) - room :]:
            self.wrong("a turn was answered without one before it")
        if set(saw) - {turn.token for turn in below.values()}:
            self.wrong("a turn was answered in view of one that is not below it")
        if (claim.window.turns, stored.item["window"][0]) != (len(saw), len(saw)):
            self.wrong("a turn says that it saw another number of turns than it did")
        between = (below[n] for n in below if n > (claim.supersedes or claim.number))
        if claim.supersedes and any(
            turn.status is not TurnStatus.VOID and not (turn.status is TurnStatus.FAILED and turn.supersedes)
            for turn in between
        ):
            self.wrong("a turn that others followed was answered again")

    def _state_changed(self, item: dict[str, Any], at: datetime) -> None:
        partition, state = item["pk"], codec.decode_state(item)
        before = self.living(partition)
        self.states.setdefault(partition, []).append(Change(step=self.step, state=state))
        if before and state.generation < before.generation:
            self.wrong("a generation came back")
        if before and state.holder == before.holder and state.lease_until != before.lease_until:
            self.renewed[partition] = self.step
        if before and (state.holder == before.holder or state.generation != before.generation):
            return
        if state.number:
            self._claim_applied(partition, state, before, at)

    def _claim_applied(self, partition: str, state: State, before: State | None, at: datetime) -> None:
        self.claimed[state.holder] = self.step
        stored = self.of_generation(partition, state.generation)
        if state.number > 1 and state.number - 1 not in stored:
            self.wrong("a number was claimed before the one below it was stored")
        if before is None or not before.number or before.number in stored or not self.one_at_a_time:
            return
        holder = self.attempts.get(before.holder)
        # Who loaded when a lease was over may still claim when it was renewed in between.
        renewed = self.renewed.get(partition, 0) > self.claimed.get(before.holder, 0)
        if holder and holder.thinking and before.lease_until > at + self.skew and not renewed:
            self.wrong("two requests of one session ran the agent at once")

    # ---- what actors saw and were told -------------------------------------------------------------------------------

    def check_read(
        self,
        partition: str,
        turns: Sequence[Turn],
        begun: int,
        *,
        generation: int | None = None,
        token_limit: int | None = None,
    ) -> None:
        """A reader that began at a step and has just ended saw these turns."""
        if len({turn.generation for turn in turns}) > 1 or any(t.generation != generation for t in turns if generation):
            self.wrong("a reader mixed generations")
        if not self._lived(partition, {turn.generation for turn in turns}, begun):
            self.wrong("a reader saw a generation that nobody was to see")
        for turn in turns:
            if (said := self.said.get(turn.token)) is not None and said[turn.deleted :] != turn.messages:
                self.wrong("a reader saw a turn that is not what was stored")
            if any(self._deleted_before(turn, deletion, partition, begun) for deletion in self.deletions):
                self.wrong("a reader saw a turn of before a delete")
        if token_limit is None and generation is not None:
            self._check_complete(partition, turns, begun, generation)

    def _lived(self, partition: str, generations: set[int], begun: int) -> bool:
        during = {change.state.generation for change in self.states.get(partition, []) if change.step > begun}
        if first := self.living(partition, begun):
            during.add(first.generation)
        return generations <= during

    def _deleted_before(self, turn: Turn, deletion: Deletion, partition: str, begun: int) -> bool:
        return (
            deletion.partition == partition
            and deletion.ended < begun
            and self.claimed.get(turn.token, FOREVER) < deletion.begun
        )

    def _check_complete(self, partition: str, turns: Sequence[Turn], begun: int, generation: int) -> None:
        """Nothing is missing that had been stored when the reader began."""
        seen = {turn.number for turn in turns}
        number = self.deleted_through(partition, generation)[0]
        removed = {n: stored for (pk, g, n), stored in self.removed.items() if (pk, g) == (partition, generation)}
        for n, stored in (removed | self.of_generation(partition, generation)).items():
            if stored.step < begun and stored.status is not TurnStatus.VOID and n > number and n not in seen:
                self.wrong("a reader missed a turn that was stored before it began")

    def told(self, partition: str, turn: Turn, request: Request, begun: int) -> None:
        """Somebody was told that a turn is stored, as the answer to a request."""
        if turn.request.id != request.id or turn.request.body_hash != request.body_hash:
            self.wrong("a request got the answer to another one")
        if (said := self.said.get(turn.token)) is not None and said[turn.deleted :] != turn.messages:
            self.wrong("an answer is not what was stored")
        stored = self.turns.get((partition, turn.generation, turn.number))
        if stored is None and not self._moved_since(partition, turn.generation):
            self.wrong("a turn was called stored that is not there")
        self.reports.append(Report(partition=partition, turn=turn, begun=begun, ended=self.step))

    def _moved_since(self, partition: str, generation: int) -> bool:
        now = self.living(partition)
        return now is None or now.generation != generation

    def check_fork(self, source: str, through: int, target: str, made: State) -> None:
        """A fork that was just made holds what its source held up to a number."""
        now = self.living(target)
        if now is None or now.generation != made.generation:
            return  # it is gone already
        copies = {stored.token for n, stored in self.of_generation(target, made.generation).items() if n <= through}
        for change in self.states.get(source, []):
            generation = change.state.generation
            deleted = self.deleted_through(source, generation)[0]
            held = {
                n: turn.token
                for n, turn in self.of_generation(source, generation).items()
                if n <= through and turn.status is not TurnStatus.VOID
            }
            if {token for n, token in held.items() if n > deleted} <= copies <= set(held.values()):
                return
        if all(self.of_generation(source, change.state.generation) for change in self.states.get(source, [])):
            self.wrong("a fork does not hold what its source held")

    # ---- the end -----------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """What has to hold when everything is over."""
        for partition, changes in self.states.items():
            living = self.of_generation(partition, changes[-1].state.generation)
            self._check_numbers(living)
            self._check_once(partition, changes[-1].state.generation, living)
        for report in self.reports:
            if not self._is_there(report) and not self._may_be_gone(report):
                self.wrong("a turn that was called stored is lost")

    def _check_numbers(self, living: Mapping[int, Stored]) -> None:
        forked = [n for n, stored in living.items() if not stored.item["request_id"]]
        first = max(forked, default=0) + 1  # copies keep their numbers, and what was void or deleted has none
        if [n for n in living if n >= first] != list(range(first, first + len([n for n in living if n >= first]))):
            self.wrong("there is a hole in the numbers")

    def _check_once(self, partition: str, generation: int, living: Mapping[int, Stored]) -> None:
        deleted = self.deleted_through(partition, generation)[0]
        ids = [
            stored.item["request_id"]
            for n, stored in living.items()
            if stored.status is TurnStatus.COMPLETE and n > deleted and stored.token not in self.dropped
        ]
        if any(ids.count(one) > 1 for one in ids if one):
            self.wrong("a request was stored twice")

    def _is_there(self, report: Report) -> bool:
        now = self.living(report.partition)
        return now is not None and any(
            stored.token == report.turn.token
            for stored in self.of_generation(report.partition, now.generation).values()
        )

    def _may_be_gone(self, report: Report) -> bool:
        """Deleted after it was claimed, by somebody who was at it then; or removed by a rewrite on purpose."""
        if report.turn.token in self.dropped:
            return True
        begun = min(report.begun, self.claimed.get(report.turn.token, report.begun))
        deleted = [c.step for c in self.states.get(report.partition, []) if c.state.deleted and c.step > begun]
        asked = [d for d in self.deletions if d.partition == report.partition]
        return any(d.begun <= step <= d.ended for step in deleted for d in asked)

    def visible(self, partition: str) -> Iterator[str]:
        """Tokens of the turns that a session's owner may see in the end, as far as no mark hides them."""
        now = self.living(partition)
        for stored in self.of_generation(partition, now.generation).values() if now else ():
            if stored.status is not TurnStatus.VOID:
                yield stored.token


TOKENS = 10
"""Of every turn in a schedule."""


def _cut(stored: Stored) -> bool:
    """Whether a rewrite stored the turn without some of its messages."""
    return bool(stored.item.get("archived") or stored.item.get("deleted"))


def _untyped(item: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: _plain(value) for name, value in item.items()}
    return {
        name: bytes(value) if hasattr(value, "value") and not isinstance(value, str) else value
        for name, value in found.items()
    }
