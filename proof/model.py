"""The turn protocol, driven through random schedules: the real log, on a real engine and on a table in memory.

python -m proof.model --seed 17 --row everything    replays one schedule, call by call
python -m proof.model --first 1000 --engine dynoxide    runs some of each row, and prints the seeds that fail
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local import engine
from memory.table import connect, create_table
from proof import ACCOUNT, lies
from proof.actors import TABLE
from proof.schedule import Rules, Schedule
from proof.section import Section
from proof.shelf import Shelf

ALL_FAULTS = {"kills": True, "losses": True, "late": True}
ROWS = {
    "no faults": Rules(deeds=("regenerate",)),
    "killed invocations": Rules(kills=True, deeds=("regenerate",)),
    "lost responses": Rules(losses=True, deeds=("regenerate",)),
    "late packets": Rules(**ALL_FAULTS, deeds=("regenerate",)),
    "leases run out": Rules(**ALL_FAULTS, slow=True, deeds=("regenerate",)),
    "clocks 30 s apart": Rules(**ALL_FAULTS, slow=True, skew=30, deeds=("regenerate",)),
    "deletes": Rules(**ALL_FAULTS, slow=True, skew=30, deeds=("delete", "sweep", "rename")),
    "deletes, clocks that agree": Rules(**ALL_FAULTS, deeds=("delete", "sweep", "rename")),
    "rewrites": Rules(**ALL_FAULTS, slow=True, deeds=("rewrite", "regenerate")),
    "marks": Rules(**ALL_FAULTS, slow=True, deeds=("mark", "rewrite")),
    "forks": Rules(**ALL_FAULTS, slow=True, deeds=("fork", "sweep")),
    "readings of many pages": Rules(deeds=("read", "read", "read", "history", "delete", "rewrite", "sweep")),
    "everything": Rules(
        **ALL_FAULTS,
        slow=True,
        skew=30,
        deeds=("regenerate", "delete", "rewrite", "mark", "rename", "fork", "sweep"),
    ),
}


@dataclass(kw_only=True)
class Tally:
    """What came of some schedules."""

    schedules: int = 0
    calls: int = 0
    failed: dict[str, list[int]] = field(default_factory=dict)
    """Seeds of the schedules that violated something, by what."""

    def add(self, other: "Tally") -> None:
        self.schedules += other.schedules
        self.calls += other.calls
        for what, seeds in other.failed.items():
            self.failed.setdefault(what, []).extend(seeds)


IN_MEMORY, REAL, TRIED_ON_LIES = 1500, 150, 3000
QUICK_IN_MEMORY, QUICK_REAL, QUICK_LIES = 100, 5, 5
CHUNK = 50
CHECKED = """\
Checked at each write and at each read: no turn is overwritten or lost that somebody was told is stored; no request is
stored twice; each turn was answered in view of all before it; numbers have no hole; readers see whole turns of one
generation, all that were stored before, and none of before a delete; nothing that is seen is swept; with clocks 2 s
apart no two agents run at once, and a killed one blocks for a lease at the most; who comes last is served, in three
calls (four above an unfinished rewrite)."""


def prove(*, quick: bool) -> Section:
    """Run the schedules of all rows on both tables, and then on logs that lie."""
    in_memory, real = (QUICK_IN_MEMORY, QUICK_REAL) if quick else (IN_MEMORY, REAL)
    with real_engine() as endpoint:
        found = {row: _row(row, in_memory, real, endpoint) for row in ROWS}
    tried = {lie.name: lies.caught(lie, TRIED_ON_LIES) for lie in lies.LIES[: QUICK_LIES if quick else None]}
    tallies = [tally for both in found.values() for tally in both]
    missed = [name for name, schedules in tried.items() if schedules is None]
    caught = [f"{name} ({schedules or 'never'})" for name, schedules in tried.items()]
    return Section(
        title="The turn protocol in random schedules",
        tried=f"{sum(tally.schedules for tally in tallies):,} schedules of the real turn log and sessions, "
        f"{sum(tally.calls for tally in tallies):,} calls to a table, one at a time as a seed decides: "
        "in memory and on dynoxide, where the same seed makes the same schedule. Seven or more requests at a session.",
        head=("what happens", "in memory", "on dynoxide", "violations"),
        rows=[
            (row, f"{memory.schedules:,}", f"{real.schedules:,}", _failures(memory, real))
            for row, (memory, real) in found.items()
        ],
        held=not missed and not any(tally.failed for tally in tallies),
        notes=(
            CHECKED,
            f"Logs that lie are caught, each after so many schedules: {'; '.join(caught)}.",
        ),
    )


def _row(row: str, in_memory: int, real: int, endpoint: str) -> tuple[Tally, Tally]:
    """A row's schedules on both tables, in memory first."""
    both = _many(row, in_memory, None), _many(row, real, endpoint)
    print(f"{row}: {in_memory} schedules in memory and {real} on dynoxide, violations: {_failures(*both)}", flush=True)
    return both


def _many(row: str, schedules: int, endpoint: str | None) -> "Tally":
    """A row's schedules, on all processors."""
    found, chunks = Tally(), [range(n, min(n + CHUNK, schedules)) for n in range(0, schedules, CHUNK)]
    with ProcessPoolExecutor() as pool:
        for part in pool.map(tally, [row] * len(chunks), chunks, [endpoint] * len(chunks)):
            found.add(part)
    return found


def _failures(*tallies: "Tally") -> str:
    failed = Tally()
    for one in tallies:
        failed.add(one)
    return "; ".join(f"{what} (seeds {seeds[:3]})" for what, seeds in failed.failed.items()) or "none"


def run(row: str, seed: int, client: Any) -> tuple[set[str], Schedule]:
    """One schedule: what it violated, and the schedule."""
    schedule = Schedule(seed=seed, rules=ROWS[row], client=client)
    try:
        return schedule.run(), schedule
    except Exception as error:  # noqa: BLE001 - whatever it is, nobody was promised it
        return {f"{type(error).__module__}.{type(error).__name__}: {error}"}, schedule


def tally(row: str, seeds: range, endpoint: str | None) -> Tally:
    """What came of a row's schedules, in memory where there is no endpoint."""
    found, client = Tally(), client_at(endpoint)
    for seed in seeds:
        violations, schedule = run(row, seed, client or Shelf())
        found.schedules += 1
        found.calls += schedule.ledger.step
        for what in violations:
            found.failed.setdefault(what, []).append(seed)
    return found


def client_at(endpoint: str | None) -> Any:
    """A client of an engine with a table; None where there is no endpoint."""
    if endpoint is None:
        return None
    client = connect(endpoint)
    create_table(client, TABLE)
    return client


@contextmanager
def real_engine() -> Iterator[str]:
    """Endpoint of a dynoxide on a file that is thrown away."""
    no_account()
    with tempfile.TemporaryDirectory() as folder:
        running = engine.start_dynoxide(Path(folder) / "table.sqlite")
        try:
            yield running.endpoint
        finally:
            running.stop()


def no_account() -> None:
    """Credentials are made up: nothing here reaches an account."""
    os.environ |= ACCOUNT


def main() -> None:
    """Exit code 1 where something was violated."""
    parser = argparse.ArgumentParser(prog="python -m proof.model", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--row", choices=ROWS, help="which rules; all of them by default")
    parser.add_argument("--first", type=int, default=200, help="how many schedules of each row")
    parser.add_argument("--begin", type=int, default=0, help="the seed to begin with")
    parser.add_argument("--until-it-fails", action="store_true", help="stop at the first violation")
    parser.add_argument("--engine", choices=("memory", "dynoxide"), default="memory")
    options = parser.parse_args()
    rows = [options.row] if options.row else list(ROWS)
    if options.engine == "memory":
        raise SystemExit(_command(options, rows, None))
    with real_engine() as endpoint:
        raise SystemExit(_command(options, rows, endpoint))


def _command(options: argparse.Namespace, rows: list[str], endpoint: str | None) -> int:
    if options.seed is not None:
        violations, schedule = run(rows[-1], options.seed, client_at(endpoint) or Shelf())
        print("\n".join([*schedule.trace, *sorted(violations)]))
        return bool(violations)
    if options.until_it_fails:
        return _first_failure(rows[-1], range(options.begin, options.begin + options.first), endpoint)
    failed = 0
    for row in rows:
        began = time.time()
        found = tally(row, range(options.begin, options.begin + options.first), endpoint)
        shown = {what: f"{len(seeds)}: {seeds[:3]}" for what, seeds in found.failed.items()}
        print(
            f"{row:28} {found.schedules:6} {found.calls:8} calls {time.time() - began:6.1f} s  {shown or 'held'}",
            flush=True,
        )
        failed |= bool(shown)
    return failed


def _first_failure(row: str, seeds: range, endpoint: str | None) -> int:
    client = client_at(endpoint)
    for tried, seed in enumerate(seeds, 1):
        violations, _ = run(row, seed, client or Shelf())
        if violations:
            print(f"failed after {tried} schedules, seed {seed}: {sorted(violations)}")
            return 1
    return 0


if __name__ == "__main__":
    main()
