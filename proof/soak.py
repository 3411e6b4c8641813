"""Soak: mixed traffic on the stack that `make run` starts, and a worker killed every five seconds.

One worker of the chat and one of the sessions function is spared, and the sweeper after a quarter of the time. These
have to work to the end with the memory and the descriptors that they had early on, and so have gateway and demo model.
"""

import asyncio
import os
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic

from local.functions import CHAT, SESSIONS, SWEEP, name_of
from proof import ACCOUNT
from proof.aftermath import Aftermath, histories, remains
from proof.callers import Caller, Tally, client_at
from proof.gauges import (
    MORE_DESCRIPTORS,
    MORE_MEGABYTES,
    MORE_MEMORY,
    Sample,
    commands_below,
    fifth,
    growth,
    missing_proc,
    sample,
    typical,
)
from proof.section import Section, table
from proof.traffic import MARK, MESSAGE_CHARS, Seat, warm_up
from tests.conftest import TABLE
from tests.stack import Stack, running

SEED = os.environ.get("SEED", "20261122")
WORKERS = 3
CALLERS, SEATS = 4, 4
FULL_SECONDS, QUICK_SECONDS = 600.0, 60.0
KILL_SECONDS, LOOK_SECONDS, SAMPLE_SECONDS, PROGRESS_SECONDS = 5.0, 0.5, 2.0, 15.0
KILLS = {CHAT: 7, SESSIONS: 2, SWEEP: 1}
"""How often of ten times a worker of which function is killed."""
SWEEPER_SPARED_FROM = 0.25
EVERYBODY = {CHAT: WORKERS, SESSIONS: WORKERS, SWEEP: 1}
IDLE_SECONDS = 60.0
IDLE_DESCRIPTORS = 2
REST_SECONDS = 5.0
GATEWAY, ENGINE, DEMO_MODEL = "gateway", "engine", "demo model"
PROGRAMS = {ENGINE: "/dynoxide |DynamoDBLocal", DEMO_MODEL: "local[.]demo_model"}
FAULTS = ("lost", "doubled", "altered", "out of order", "half", "blind", "never asked for")
SHOWN = 20
"""Of what went wrong."""
CLASSES = {
    "done (2xx)": range(200, 300),
    "refused (4xx)": (*range(400, 409), *range(410, 500)),
    "409": (409,),
    "502, 503, 504": (502, 503, 504),
}
FLAT = (
    "A process keeps what it once took for the largest request: allocators give little back, connections stay in their "
    "pool. So every worker had some of the largest before the time began. "
    f"Flat: the median of the last fifth is at most {MORE_MEMORY - 1:.0%} and {MORE_MEGABYTES:g} MB above that of the "
    f"second fifth, and the descriptors' at most {MORE_DESCRIPTORS} above their peak in the first two. The engine is "
    "shown and not judged: it holds all that was said. The sweeper is measured from when it is spared, after a quarter "
    "of the time. A quick run gets nothing warm, and does not judge memory."
)


@dataclass(kw_only=True, eq=False)
class Soak:
    """A run: the stack, its traffic, and what is measured meanwhile."""

    stack: Stack
    seconds: float
    lot: Random = field(default_factory=lambda: Random(SEED))  # noqa: S311 - not a secret
    tally: Tally = field(default_factory=Tally)
    kills: Counter[str] = field(default_factory=Counter)
    spared: dict[str, int] = field(default_factory=dict)
    """Process ids of what is not killed, by their names."""
    series: dict[str, list[Sample]] = field(default_factory=dict)
    idle: list[Sample] = field(default_factory=list)
    """The gateway before and after the traffic."""
    began: float = field(default_factory=monotonic)

    @property
    def passed(self) -> float:
        """How much of the time has passed, from 0 to 1."""
        return (monotonic() - self.began) / self.seconds

    async def run(self) -> Aftermath:
        """Have everything happen until the time is over and every request is answered; then look at what is left."""
        self._spare()
        self.idle.append(self._gateway())
        async with client_at(self.stack.url) as client:
            callers = [Caller(client, self.tally, f"caller {n}") for n in range(1, CALLERS + 1)]
            await asyncio.gather(*(caller.arrive() for caller in callers))
            _say("having every worker do what is largest, once or twice")
            await warm_up(callers[0], self.lot, times=2 * WORKERS)
            self.began = monotonic()
            async with asyncio.TaskGroup() as tasks:
                for n in range(CALLERS * SEATS):
                    seat = Seat(callers[n % CALLERS], Random(f"{SEED}-{n}"))  # noqa: S311 - not a secret
                    tasks.create_task(seat.work(self.began + self.seconds))
                for beside in (self._kill, self._measure, self._tell):
                    tasks.create_task(beside())
            _say("the traffic is over; reading every history")
            found = await histories(self.tally)
        _say("reading the table")
        found.wrong += remains(self.stack.engine, TABLE, self.tally)
        self._come_to_rest()
        self.idle.append(self._gateway())
        found.wrong += self._wrong()
        return found

    def _spare(self) -> None:
        """Choose who is not killed. The sweeper is the only one of its function: its time comes later."""
        self.spared = {GATEWAY: self.stack.process.pid}
        commands = commands_below(self.stack.process.pid)
        for name, program in PROGRAMS.items():
            ours = (pid for pid, command in commands.items() if re.search(program, command))
            self.spared[name] = next(pid for pid in ours if not commands[pid].startswith("/bin/sh"))
        for function in (CHAT, SESSIONS):
            self.spared[f"spared {name_of(function)} worker"] = self.stack.workers(function)[0]

    async def _kill(self) -> None:
        """Every few seconds; now and then later, where nobody who may be killed is at work again yet."""
        due = monotonic() + KILL_SECONDS
        while self.passed < 1:
            await asyncio.sleep(max(LOOK_SECONDS, due - monotonic()))
            if self.passed > SWEEPER_SPARED_FROM and (sweepers := self.stack.workers(SWEEP)):
                self.spared.setdefault("spared sweeper", sweepers[0])
            wanted = self.lot.choices([*KILLS], [*KILLS.values()])[0]
            for function in (wanted, CHAT, SESSIONS):
                if victims := self._victims(function):
                    os.kill(self.lot.choice(victims), signal.SIGKILL)
                    self.kills[name_of(function)] += 1
                    due += KILL_SECONDS
                    break

    def _victims(self, function: str) -> list[int]:
        """Who may be killed. Workers that die at their start again and again are started ever later."""
        found = [pid for pid in self.stack.workers(function) if pid not in self.spared.values()]
        return [pid for pid in found if pid in self.tally.workers or function == SWEEP]

    async def _measure(self) -> None:
        while self.passed < 1:
            for name, pid in self.spared.items():
                if (one := sample(pid)) is None:
                    raise RuntimeError(f"the {name} is gone, which nobody killed: {self.stack.printed()[-2000:]}")
                self.series.setdefault(name, []).append(one)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _tell(self) -> None:
        while self.passed < 1:
            await asyncio.sleep(PROGRESS_SECONDS)
            sizes = (f"{name} {ones[-1]}" for name, ones in self.series.items())
            _say(
                f"{monotonic() - self.began:.0f} of {self.seconds:.0f} s: {self.tally.statuses.total()} requests, "
                f"{self.kills.total()} kills, {len(self.tally.wrong)} wrong; {', '.join(sizes)}"
            )

    def _come_to_rest(self) -> None:
        """Wait until all workers are there again, and what the callers had open is closed."""
        give_up = monotonic() + IDLE_SECONDS
        while monotonic() < give_up and any(len(self.stack.workers(one)) < n for one, n in EVERYBODY.items()):
            time.sleep(0.5)
        time.sleep(REST_SECONDS)

    def _gateway(self) -> Sample:
        found = sample(self.stack.process.pid)
        if found is None:
            raise RuntimeError(f"the gateway is gone: {self.stack.printed()[-2000:]}")
        return found

    def _wrong(self) -> Iterator[str]:
        """What must not be, apart from what is wrong in the histories and in the table."""
        yield from self.tally.wrong
        if self.tally.killed > self.kills.total():
            yield f"{self.tally.killed} requests were answered as killed, and {self.kills.total()} workers were"
        for name, samples in self.series.items():
            if name != ENGINE:
                yield from (f"{name}: {what}" for what in growth(samples, warm=self.seconds >= FULL_SECONDS))
        before, after = self.idle
        if after.descriptors > before.descriptors + IDLE_DESCRIPTORS:
            yield f"the idle gateway had {before.descriptors} descriptors before, and has {after.descriptors} after"
        printed = self.stack.printed()
        for word in ("Traceback", "never retrieved", MARK):
            if word in printed:
                yield f"the stack printed {word!r} {printed.count(word)} times"


def prove(*, quick: bool) -> Section:
    """A minute, or ten."""
    if missing := missing_proc():
        raise SystemExit(missing)
    os.environ |= ACCOUNT
    _say(f"seed {SEED}")
    settings = {"WORKERS": str(WORKERS), "MAX_MESSAGE_CHARS": str(MESSAGE_CHARS)}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), **settings) as stack:
        soak = Soak(stack=stack, seconds=QUICK_SECONDS if quick else FULL_SECONDS)
        found = asyncio.run(soak.run())
    return Section(
        title="Soak",
        tried=(
            f"{soak.seconds / 60:.0f} minutes of mixed traffic on the stack that `make run` starts: {CALLERS} callers "
            f"with {SEATS} conversations at a time each, and others who come, talk and delete everything; {WORKERS} "
            f"workers each for chat and sessions. Every {KILL_SECONDS:.0f} s, or as soon as one was at work again, a "
            f"worker was killed with SIGKILL ({', '.join(f'{n} of {name}' for name, n in soak.kills.items())}; seed "
            f"{SEED}). What was interrupted was sent again under its Idempotency-Key."
        ),
        head=("requests", "sent", *CLASSES),
        rows=_requests(soak.tally),
        held=not found.wrong,
        notes=(*_findings(soak, found), _sizes(soak), FLAT, *(f"**{one}**" for one in found.wrong[:SHOWN])),
    )


def _requests(tally: Tally) -> list[list[str]]:
    kinds = sorted({kind for kind, _ in tally.statuses})
    rows = [(kind, Counter({status: n for (of, status), n in tally.statuses.items() if of == kind})) for kind in kinds]
    rows.append(("all", sum((statuses for _, statuses in rows), Counter())))
    return [[kind, str(statuses.total()), *_by_class(statuses)] for kind, statuses in rows]


def _by_class(statuses: Mapping[int, int]) -> list[str]:
    return [str(sum(n for status, n in statuses.items() if status in wanted)) for wanted in CLASSES.values()]


def _findings(soak: Soak, found: Aftermath) -> list[str]:
    counted = ", ".join(f"{found.faults[what]} {what}" for what in FAULTS)
    tally = soak.tally
    return [
        (
            f"{found.turns:,} answered turns in {found.sessions} sessions were held against histories and exports: "
            f"{counted}. {found.failed_turns} failed turns are in the histories. {found.deleted} sessions were deleted "
            "and looked for again, through the API and in the table."
        ),
        (
            f"{tally.killed} of {soak.kills.total()} kills hit a worker that had a request. Callers hung up "
            f"{tally.hung_up} times; {tally.replayed} answers were replays."
        ),
    ]


def _sizes(soak: Soak) -> str:
    """Memory and descriptors of what was spared, from fifth to fifth of the time."""
    medians = {name: [typical(fifth(samples, n)) for n in range(1, 6)] for name, samples in soak.series.items()}
    rows = [(name, *map(str, fifths)) for name, fifths in medians.items()]
    before, after = map(str, soak.idle)
    rows.append(("gateway, idle before and after", before, "", "", "", after))
    return table(("process", "first fifth", "second", "third", "fourth", "last fifth"), rows)


def _say(text: str) -> None:
    print(text, flush=True)
