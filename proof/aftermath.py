"""What is left when the traffic is over: histories against what was told of them, and the table against both."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx

from handlers.settings import Settings
from memory import codec
from memory.table import connect
from proof.callers import Caller, Refused, Talk, Tally
from proof.told import faults, kept_in

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LARGEST_PAGE = 100
SWEEP_SECONDS = 120.0
"""What the sweeper is given, which waits for turns in flight, and reads a stream that is long by now."""
CONTENT = {"title", "owner", "created_at", "active_at", "recent", "asked"}
"""What a deleted session's state has lost."""


@dataclass(kw_only=True)
class Aftermath:
    """What was found."""

    sessions: int = 0
    turns: int = 0
    failed_turns: int = 0
    deleted: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """By kind."""
    wrong: list[str] = field(default_factory=list)


async def histories(tally: Tally) -> Aftermath:
    """Read all that every caller has, and compare."""
    found = Aftermath()
    for caller in tally.callers:
        try:
            await _sessions_of(caller, found)
        except (Refused, httpx.HTTPError) as error:
            found.wrong.append(f"{type(error).__name__} in the end: {error}")
    return found


async def _sessions_of(caller: Caller, found: Aftermath) -> None:
    there = {talk.id: talk for talk in caller.talks if talk.is_there}
    for talk in there.values():
        found.sessions += 1
        found.turns += len(talk.told)
        await _compare(caller, talk, found)
    for talk in caller.talks:
        if talk.removed:
            found.deleted += 1
            if talk.id not in there:
                await caller.miss(talk)
    listed = await caller.listed(limit=LARGEST_PAGE) if caller.talks else []
    if sorted(listed) != sorted(there):
        found.wrong.append(f"{caller.name} has {len(there)} sessions, and the list shows {len(listed)}")


async def _compare(caller: Caller, talk: Talk, found: Aftermath) -> None:
    kept = kept_in(await caller.export(talk))
    found.failed_turns += sum(turn.status == "failed" for turn in kept)
    token_limit: int = Settings.model_fields["token_limit"].default
    for fault in faults(talk.told, kept, token_limit=token_limit):
        found.faults[fault.what] += 1
        found.wrong.append(f"{fault.what}: session {talk.id} of {caller.name}, {fault.where}")
    if await caller.history(talk, limit=LARGEST_PAGE) != [(one.number, one.message, one.answer) for one in talk.told]:
        found.wrong.append(f"the history of {talk.id} is not what was told of it")


def remains(endpoint: str, table: str, tally: Tally) -> list[str]:
    """What the table holds of deleted sessions, once the sweeper had its time."""
    client, give_up = connect(endpoint), monotonic() + SWEEP_SECONDS
    deleted = {talk.id for caller in tally.callers for talk in caller.talks if talk.removed}
    while (left := list(left_of(deleted, _scan(client, table)))) and monotonic() < give_up:
        time.sleep(3)
    return left


def left_of(deleted: set[str], items: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Items of sessions that were deleted, of generations that are no more; and states that still tell of them."""
    by_session: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        by_session.setdefault(codec.session_id(item["pk"]["S"]), []).append(item)
    for session in deleted & by_session.keys():
        state = next((item for item in by_session[session] if item["sk"]["S"] == codec.STATE_KEY), None)
        generation = int(state["generation"]["N"]) if state else 0
        if state and "deleted_at" in state and (kept := CONTENT & state.keys()):
            yield f"the state of {session} still has {', '.join(sorted(kept))}"
        for item in by_session[session]:
            key = item["sk"]["S"]
            if item is not state and (not state or int(key.split("#")[1]) < generation):
                yield f"{key} of {session}"


def _scan(client: "DynamoDBClient", table: str) -> Iterator[Mapping[str, Any]]:
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        yield from page["Items"]
