"""Faults between the handler and its model, and between the handler and its table: every one of `tests.faults`, in the
time that a deployment has. What is injected, what comes of it, and how much of its time the request took.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

from proof import hostile
from proof.model import real_engine
from proof.section import Section
from tests import rig as rigs
from tests.faults import FAULTS, ROUTE_FAULTS, ROUTES

PARTS = 8
"""So many processes, which wait most of the time."""
CHECKED = """\
Checked of each: the response comes before the invocation ends, with a status that `/openapi.json` has; one line in
the log, with the outcome, the kind of what failed in `cause`, and no word of a message; nothing half is stored, and an
answer that the model gave is, if the table takes a write in the 6 s that are kept back. Then, without the fault: the
same request under its key is there exactly once, whole (replayed where it was stored, else answered anew), and the next
request works. Of the sessions function: one fault is survived, a lasting one is 503, and the same request sent again is
done."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one fault."""

    name: str
    outcome: str
    seconds: float
    allowed: float
    wrong: Sequence[str]

    def cells(self) -> Sequence[str]:
        return self.name, self.outcome, f"{self.seconds:.1f} of {self.allowed:.0f} s", "; ".join(self.wrong) or "so"


def prove(*, quick: bool) -> Section:
    """Have every fault happen; those that the tests have, where there is a hurry."""
    with real_engine() as endpoint, ProcessPoolExecutor(PARTS) as pool:
        parts = pool.map(_part, range(PARTS), [endpoint] * PARTS, [quick] * PARTS)
        rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    found = [row for _, row in rows]
    longest = max(found, key=lambda row: row.seconds / row.allowed)
    return Section(
        title="Faults of the model and of the table",
        tried=f"{len(found)} faults, on dynoxide behind a proxy that troubles its calls, and at an OpenAI-compatible "
        "server that answers as badly as it is told to; over real HTTP, through the handlers in a process.",
        head=("fault", "documented outcome", "took", "seen"),
        rows=[row.cells() for row in found],
        held=not any(row.wrong for row in found),
        notes=(
            CHECKED,
            f"Nearest to the end of its time ({longest.seconds:.1f} of {longest.allowed:.0f} s) came: {longest.name}.",
        ),
    )


def _part(part: int, endpoint: str, quick: bool) -> list[tuple[int, Row]]:
    """Every so many-th fault, with its place among all."""
    with hostile.logged(), rigs.rig_on(endpoint, hurry=quick) as rig:
        return [(place, row) for place, row in enumerate(_rows(rig, part, quick)) if row]


def _rows(rig: rigs.Rig, part: int, quick: bool) -> Iterator[Row | None]:
    """The rows of a part; None for what is not of it."""
    turns = [fault for fault in FAULTS if fault.tested or not quick]
    for place, fault in enumerate(turns):
        if place % PARTS != part:
            yield None
            continue
        seen = rigs.suffer(rig, fault)
        wanted = fault.outcome
        yield Row(
            name=fault.name,
            outcome=f"{wanted.status} `{wanted.code}`, stored: {wanted.stored}",
            seconds=seen.seconds,
            allowed=seen.allowed,
            wrong=rigs.wrong(fault, seen),
        )
    requests = product(ROUTES, [fault for fault in ROUTE_FAULTS if fault.tested or not quick])
    for place, (route, trouble) in enumerate(requests):
        if place % PARTS != part:
            yield None
            continue
        wrong, seconds, allowed = rigs.suffer_at(rig, route, trouble)
        yield Row(
            name=f"`{route.name}`: {trouble.name}",
            outcome="503" if trouble.lasts else " or ".join(map(str, route.good)),
            seconds=seconds,
            allowed=allowed,
            wrong=wrong,
        )
