"""The program that every measured store is: so many turns of one conversation, or two writers who race. Prints JSON.

A store brings `bench/peers/<name>.py`, which runs in an environment of its own: nothing here needs more than botocore.
"""

import argparse
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bench import counting, text

RACERS = 2
RACED_TURNS = 25


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a store is measured."""

    endpoint: str
    table: str
    variant: str
    """Name of another way to use the same store; empty for the usual one."""


class Peer(Protocol):
    """A store of conversations in a table of its own, which it makes."""

    def take_turn(self, session: str, number: int) -> None:
        """Load the conversation, and store a question and its answer; with no object of the turn before."""
        ...

    def texts(self, session: str) -> list[str]:
        """What all stored messages of a conversation say."""
        ...


def run(make: Callable[[Options], Peer]) -> None:
    """Measure a store as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--table", required=True)
    parser.add_argument("--variant", default="")
    parser.add_argument("--turns", type=int, default=0, help="of one conversation; without it, two writers race")
    given = parser.parse_args()
    count = counting.start()
    peer = make(Options(endpoint=given.endpoint, table=given.table, variant=given.variant))
    if given.turns:
        _converse(peer, given.turns, count)
    else:
        _race(peer)


def create_table(client: Any, name: str, *keys: str) -> None:
    """Create a table with these keys, of text."""
    client.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
        KeySchema=[{"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)],
        BillingMode="PAY_PER_REQUEST",
    )
    client.get_waiter("table_exists").wait(TableName=name)


def _converse(peer: Peer, turns: int, count: counting.Count) -> None:
    """Take turns until one fails, and print what each of them took."""
    count.taken()
    for number in range(1, turns + 1):
        try:
            peer.take_turn("alone", number)
        except Exception as error:  # noqa: BLE001 - whatever a store raises is a result
            _print(turn=number, error=_name(error), says=str(error))
            return
        _print(turn=number, **count.taken())


def _race(peer: Peer) -> None:
    """Let writers add turns to one session at once; print how many are there, and how many raised what."""
    barrier, raised = threading.Barrier(RACERS), Counter[str]()

    def write(racer: int) -> None:
        barrier.wait()
        for number in range(racer * RACED_TURNS, (racer + 1) * RACED_TURNS):
            try:
                peer.take_turn("raced", number)
            except Exception as error:  # noqa: BLE001 - whatever a store raises is a result
                raised[_name(error)] += 1

    writers = [threading.Thread(target=write, args=(racer,)) for racer in range(RACERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    there, numbers = set(peer.texts("raced")), range(RACERS * RACED_TURNS)
    stored = sum(text.question(number) in there and text.answer(number) in there for number in numbers)
    _print(stored=stored, of=len(numbers), raised=dict(raised))


def _name(error: Exception) -> str:
    """The error as DynamoDB calls it, else its class."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or type(error).__name__)


def _print(**values: Any) -> None:
    print(json.dumps(values), flush=True)
