"""Measure the stores one after the other, and print them side by side: `python -m bench --peers .venv-bench`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import text
from local.engine import start_dynoxide

ROOT = Path(__file__).resolve().parent.parent
SHOWN_TURNS = (1, 10, 100, 190, 1_000)
COMPARED_TURNS = (100, 1_000)
EARLY_TURN, LATE_TURN = 20, 1_000
COLUMNS = {
    "calls": "calls",
    "read_units": "read units",
    "write_units": "write units",
    "bytes_out": "bytes sent",
    "bytes_in": "bytes received",
}

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Store:
    """A store, the program that measures it, and the environment that has what it needs."""

    name: str
    module: str
    environment: str = ""
    """Folder below that of the peers; empty for this project's own."""
    variant: str = ""


@dataclass(kw_only=True)
class Result:
    """What a store's programs printed."""

    store: Store
    turns: dict[int, Row] = field(default_factory=dict)
    race: Row = field(default_factory=dict)

    @property
    def end(self) -> Row | None:
        """The turn that failed; None where all were taken."""
        return next((row for row in self.turns.values() if "error" in row), None)

    @property
    def last(self) -> int:
        """The last turn that was taken."""
        return max((turn for turn, row in self.turns.items() if "error" not in row), default=0)

    def at(self, turn: int) -> Row | None:
        """What a turn took; None where it was not reached, or failed."""
        row = self.turns.get(turn)
        return row if row and "error" not in row else None


STORES = (
    Store(name="rehydrate", module="turn_log"),
    Store(name="rehydrate, each turn in another minute", module="turn_log", variant="minutes"),
    Store(name="LlamaIndex DynamoDBChatStore", module="llama_index_store", environment="llamaindex"),
    Store(name="LangChain DynamoDBChatMessageHistory", module="langchain_history", environment="langchain"),
    Store(name="LangGraph DynamoDBSaver", module="langgraph_saver", environment="langgraph"),
    Store(
        name="LangGraph DynamoDBSaver, gzip, exit only",
        module="langgraph_saver",
        environment="langgraph",
        variant="thrifty",
    ),
)
WIDTH = max(len(store.name) for store in STORES) + len("Write units to ")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-bench", help="folder of the peers' environments")
    parser.add_argument("--turns", type=int, default=LATE_TURN, help="of the long conversation")
    given = parser.parse_args()
    describe()
    with tempfile.TemporaryDirectory() as folder, start_dynoxide(Path(folder) / "bench.sqlite") as engine:
        results = [measured(store, given.peers.absolute(), engine.endpoint, given.turns) for store in STORES]
    print_turns(results)
    print_ends(results)
    print_flatness(results)
    print_races(results)
    print_ratios(results)


def describe() -> None:
    """Say what is measured."""
    said = (text.question(1) + text.answer(1)).encode()
    print(
        f"A turn: a question of {text.QUESTION_BYTES:,} bytes and an answer of {text.ANSWER_BYTES:,}, English words "
        f"drawn evenly (zlib makes {len(zlib.compress(said)):,} of the first {len(said):,}).\n"
        "New objects each turn. Engine: dynoxide.\n",
        flush=True,
    )


def measured(store: Store, peers: Path, endpoint: str, turns: int) -> Result:
    """Run a store's programs."""
    print(f"Measuring {store.name} ...", flush=True)
    python = peers / store.environment / "bin" / "python" if store.environment else Path(sys.executable)
    command = [str(python), "-m", f"bench.peers.{store.module}", "--endpoint", endpoint, "--variant", store.variant]
    table = f"{store.module}_{store.variant or 'usual'}"
    taken = printed([*command, "--table", table, "--turns", str(turns)])
    race = printed([*command, "--table", f"{table}_race"])
    return Result(store=store, turns={row["turn"]: row for row in taken}, race=next(race))


def printed(command: list[str]) -> Iterator[Row]:
    """What a program prints, a JSON object a line. Ends this one where it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=errors, check=False)
        if done.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()[-2_000:]}")
    return (json.loads(line) for line in done.stdout.splitlines())


def environment() -> dict[str, str]:
    """This process's environment, with credentials that open nothing but the engine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def print_turns(results: list[Result]) -> None:
    """Single turns, all stores side by side."""
    for turn in SHOWN_TURNS:
        print_heading(f"Turn {turn:,}", *COLUMNS.values())
        for result in results:
            row = result.at(turn)
            print_row(result.store.name, *(f"{row[name]:,.10g}" if row else "-" for name in COLUMNS))


def print_ends(results: list[Result]) -> None:
    """Where a store takes no more turns, and what it says."""
    print_heading("Takes turns", "until")
    for result in results:
        end = result.end
        print_row(result.store.name, f"{result.last:,}" if end else "the end")
        if end:
            print(f"  then {end['error']}: {end['says'][:200]}")


def print_flatness(results: list[Result]) -> None:
    """Whether a late turn costs more than an early one."""
    for what in ("write_units", "read_units", "calls"):
        print_heading(f"{COLUMNS[what].capitalize()} at turn", f"{EARLY_TURN:,}", f"{LATE_TURN:,}")
        for result in results:
            rows = [result.at(turn) for turn in (EARLY_TURN, LATE_TURN)]
            print_row(result.store.name, *(f"{row[what]:,.10g}" if row else "-" for row in rows))


def print_races(results: list[Result]) -> None:
    """What is left of the turns of two writers who add to one session at once."""
    of = results[0].race["of"]
    print_heading(f"Two writers, {of} turns", "stored", "refused", "lost unsaid")
    for result in results:
        race = result.race
        refused = sum(race["raised"].values())
        print_row(result.store.name, race["stored"], refused, race["of"] - race["stored"] - refused)
        if refused:
            print(f"  refused with {', '.join(race['raised'])}")


def print_ratios(results: list[Result]) -> None:
    """Write units as multiples of this project's, for both of its rows."""
    for own in results[:2]:
        turns = [f"turn {turn:,}" for turn in COMPARED_TURNS]
        print_heading(f"Write units to {own.store.name}", *turns, "its last turn")
        for result in results:
            print_row(result.store.name, *(ratio(result, own, turn) for turn in (*COMPARED_TURNS, result.last)))


def ratio(result: Result, own: Result, turn: int) -> str:
    """How often the one's write units hold the other's."""
    row, base = result.at(turn), own.at(turn)
    return f"{row['write_units'] / base['write_units']:,.1f}x" if row and base else "-"


def print_heading(name: str, *columns: str) -> None:
    """The first line of a table."""
    print(f"\n{name:<{WIDTH}}" + "".join(f"{column:>16}" for column in columns))


def print_row(name: str, *values: object) -> None:
    """A further line of it."""
    print(f"{name:<{WIDTH}}" + "".join(f"{value:>16}" for value in values), flush=True)


if __name__ == "__main__":
    main()
