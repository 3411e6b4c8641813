"""Crashes: runtimes of Lambda that end in the middle of turns, at every step and hundreds of times at random.

Pairs of instances work side by side. One of a pair is the victim; whatever becomes of a turn there, its survivor gets
the session's next request at once, then the interrupted one again, twice; and then the table is read. Leases are waited
for.
"""

import os
import queue
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from memory.turns import Window
from proof import ACCOUNT
from proof.section import Section
from tests.crashes import ENDS, FAIL_ALONE, KILLS, TIMEOUT, Crash, Recovery, history_faults, recover, retry_faults
from tests.instances import Instance, Reply, Service, answered_with, missing_runtime, running_service

SEED = os.environ.get("SEED", "20261122")
PAIRS = 4
TURNS_OF_A_SESSION = 24
"""After so many a new session begins: the first turns of sessions are to be hit as well."""
BOUND_SECONDS = 13.0
"""For the next request: a lease of 10 s, and its own turn on a busy machine."""

AT_RANDOM = (
    Crash(name="killed at random, in a plain turn"),
    Crash(name="killed at random, with a model that takes its time", asks="please wait 0.3 seconds"),
    Crash(name="killed at random, with a tool call", asks="call linger with seconds=0.2"),
    Crash(name="killed at random, in a turn of several items", asks="call recite with kilobytes=450"),
)
HEAD = (
    "what ended the runtime",
    "times",
    "turns answered nevertheless",
    "next request answered in time (slowest)",
    "turns lost, doubled, half or blind",
    "retries that gave one whole turn",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One crash that is to happen."""

    number: int
    crash: Crash

    @property
    def key(self) -> str:
        return f"item-{self.number}"

    def moment(self, longest: float) -> float:
        """When the kill comes, in seconds after the request; now and then it comes too late."""
        return random.Random(f"{SEED}-{self.number}").uniform(0, longest * 1.15)  # noqa: S311 - not a secret


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one crash."""

    crash: str
    reached: str
    """How far the interrupted turn had come."""
    recovery: Recovery
    faults: Sequence[str]
    """Of the history."""
    retry_faults: Sequence[str]

    @property
    def next_in_time(self) -> bool:
        return self.recovery.next.status == 200 and self.recovery.seconds < BOUND_SECONDS

    @property
    def held(self) -> bool:
        return self.next_in_time and not self.faults and not self.retry_faults


@dataclass(kw_only=True)
class Pair:
    """A victim and its survivor, and what the callers of their session were told."""

    service: Service
    name: str
    victim: Instance
    survivor: Instance
    sessions: Iterator[int] = field(default_factory=count)
    session: str = ""
    answered: dict[str, Reply] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)
    """How long turns take that nothing ends, in seconds."""

    def suffer(self, job: Job) -> Outcome:
        """Have one crash happen in the pair's session, and look at what is left."""
        self.victim.warm()
        self.survivor.warm()
        if not self.session or self.service.window(self.session).total_turns >= TURNS_OF_A_SESSION:
            self.session, self.answered = f"{self.name}-{next(self.sessions)}", {}
        reply = self._at_random(job) if job.crash in AT_RANDOM else self._at_its_step(job)
        reached = self._reached(job.key, reply)
        recovery = recover(self.survivor, self.session, job.crash.message(job.key), job.key)
        told = reply if reply.status == 200 else recovery.retry
        if told.status == 200:
            self.answered[job.key] = told
        window = self.service.window(self.session)
        return Outcome(
            crash=job.crash.name,
            reached=reached,
            recovery=recovery,
            faults=[*history_faults(window, self.answered), *self._strays(window)],
            retry_faults=retry_faults(window, job.key, recovery),
        )

    def _at_its_step(self, job: Job) -> Reply:
        return job.crash.happens(self.service, self.victim, self.session, job.key)

    def _at_random(self, job: Job) -> Reply:
        longest = self.longest.get(job.crash.name) or self._measure(job.crash)
        pending = self.victim.asking(self.session, job.crash.message(job.key), key=job.key)
        time.sleep(job.moment(longest))
        self.victim.end()
        return pending.result()

    def _measure(self, crash: Crash) -> float:
        """How long such a turn takes; the first one takes longer than those after it."""
        for _ in range(2):
            began = time.monotonic()
            self.victim.ask(f"{self.name}-measured", crash.message("clock"))
            self.longest[crash.name] = time.monotonic() - began
        return self.longest[crash.name]

    def _reached(self, key: str, reply: Reply) -> str:
        window = self.service.window(self.session)
        if reply.status == 200:
            return "answered"
        if answered_with(window, key):
            return "stored"
        return "claimed" if window.busy_seconds else "not claimed"

    def _strays(self, window: Window) -> list[str]:
        """Parts of large turns that no stored turn has."""
        tokens = {turn.token for turn in window.turns}
        parts = self.service.parts(self.session)
        return [f"{part} belongs to no turn" for part in parts if part.split("#")[3] not in tokens]


def prove(*, quick: bool) -> Section:
    """Run all crashes in a random order, and count."""
    if missing := missing_runtime():
        raise SystemExit(missing)
    os.environ |= ACCOUNT
    print(f"seed {SEED}", flush=True)
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder)) as service:
        outcomes = _all_outcomes(service, _jobs(quick=quick))
    return Section(
        title="Crashes of the Lambda runtime",
        tried=(
            f"{len(outcomes)} times the runtime of the chat function (aws-lambda-rie and awslambdaric, AWS's emulator "
            f"and runtime) met its end in the middle of a turn, {PAIRS} sessions side by side, seed {SEED}. Each time "
            "another instance got the next request of the session at once, then the interrupted one again under its "
            "Idempotency-Key, twice; after each crash the whole history was read from the table."
        ),
        head=HEAD,
        rows=[_row(name, of_it) for name, of_it in _by_crash(outcomes).items()],
        held=all(outcome.held for outcome in outcomes),
        notes=_notes(outcomes),
    )


def _jobs(*, quick: bool) -> list[Job]:
    crashes = [*(KILLS + ENDS) * (1 if quick else 10), *(TIMEOUT, *FAIL_ALONE) * (1 if quick else 3)]
    crashes += AT_RANDOM * (5 if quick else 75)
    random.Random(SEED).shuffle(crashes)  # noqa: S311 - not a secret
    return [Job(number=number, crash=crash) for number, crash in enumerate(crashes, 1)]


def _all_outcomes(service: Service, jobs: Sequence[Job]) -> list[Outcome]:
    idle = queue.SimpleQueue[Pair]()
    for i in range(1, PAIRS + 1):
        victim, survivor = service.instance(f"victim-{i}"), service.instance(f"survivor-{i}")
        idle.put(Pair(service=service, name=f"pair-{i}", victim=victim, survivor=survivor))

    def run(job: Job) -> Outcome:
        pair = idle.get()
        try:
            outcome = pair.suffer(job)
        finally:
            idle.put(pair)
        if not outcome.held or job.number % 25 == 0:
            print(f"{job.number} of {len(jobs)}: {outcome if not outcome.held else 'held'}", flush=True)
        return outcome

    with ThreadPoolExecutor(PAIRS) as threads:
        return list(threads.map(run, jobs))


def _by_crash(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    names = [crash.name for crash in (*KILLS, *ENDS, TIMEOUT, *FAIL_ALONE, *AT_RANDOM)]
    return {name: [outcome for outcome in outcomes if outcome.crash == name] for name in names}


def _row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    times = len(outcomes)
    slowest = max(outcome.recovery.seconds for outcome in outcomes)
    return [
        name,
        str(times),
        str(sum(outcome.reached == "answered" for outcome in outcomes)),
        f"{sum(outcome.next_in_time for outcome in outcomes)} ({slowest:.1f} s)",
        str(sum(len(outcome.faults) for outcome in outcomes)),
        str(sum(not outcome.retry_faults for outcome in outcomes)),
    ]


def _notes(outcomes: Sequence[Outcome]) -> list[str]:
    kills = {crash.name for crash in AT_RANDOM}
    reached = Counter(outcome.reached for outcome in outcomes if outcome.crash in kills)
    found = ", ".join(f"{reached[step]} {step}" for step in ("not claimed", "claimed", "stored", "answered"))
    return [
        f"How far the turns had come that were killed at random, by the table and by what the caller got: {found}.",
        f"In time: at the first attempt, in less than {BOUND_SECONDS:.0f} s, of which a lease is 10 s.",
        (
            "Blind: not answered in view of all turns before it that its window had room for. Half: without its answer "
            "or a tool's result, or parts of a large turn that no turn has."
        ),
    ]
