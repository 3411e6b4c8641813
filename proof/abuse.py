"""Abuse: what attackers cost with the limits off and on, and whether a well-behaved caller beside them is answered."""

import asyncio
import json
import os
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from proof import ACCOUNT, attacks
from proof.attacks import FORKED_TURNS, RATE, Attacker
from proof.callers import client_at
from proof.counting_model import BESIDE, Tokens, counting_model
from proof.section import Section
from tests.stack import Stack, running

WORKERS = 4
TURNS_PER_HOUR = 120
"""The template's default, by which the costs of a minute are worked out."""
QUOTA = 20
"""OWNER_TURNS_PER_HOUR of the run: soon used up."""
OFF = {
    "OWNER_TURNS_PER_HOUR": "0",
    "MAX_WAITING": "1000",
    "MAX_SESSIONS": "0",
    "FORK_MAX_TURNS": "100000",
    "MAX_MESSAGE_TOKENS": "1000000",
}
ON = {"OWNER_TURNS_PER_HOUR": str(QUOTA), "MAX_ANSWER_TOKENS": "2000"}
CHARS_OFF, CHARS_ON = 25_000, 3_900
"""Of the largest message with the limits off and on, of characters that are four tokens each."""
WELL_BEHAVED = "well-behaved"
PATIENCE_SECONDS, SETTLE_SECONDS = 60.0, 2.0
MOST_SAID = 15
CLEAN = {200, 201, 409, 413, 429, 502}
"""Statuses that an attacker may see: 502 is an agent that was stopped after 20 steps."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One way to cost much, how often it is tried with the limits off and on, and what bounds it."""

    name: str
    run: Callable[[Attacker], Awaitable[None]]
    off: int
    on: int
    bounds: str
    by_owner: bool = True
    """Whether OWNER_TURNS_PER_HOUR bounds it."""


ATTACKS = (
    Attack(
        name="1,000 new anonymous callers",
        run=attacks.new_callers,
        off=1000,
        on=1000,
        by_owner=False,
        bounds="`ApiRateLimit`; `NewCallersPerAddress`, `RequestsPerAddress` with docs/edge.yaml; `MAX_ANSWER_TOKENS`",
    ),
    Attack(name="one caller's flood", run=attacks.one_flood, off=40, on=40, bounds="`OWNER_TURNS_PER_HOUR`"),
    Attack(
        name="largest messages",
        run=attacks.largest_messages,
        off=8,
        on=30,
        bounds="`MAX_MESSAGE_TOKENS`, `MAX_ANSWER_TOKENS`, `OWNER_TURNS_PER_HOUR`",
    ),
    Attack(
        name="forks of forks",
        run=attacks.forks_of_forks,
        off=5,
        on=30,
        bounds="`FORK_MAX_TURNS`, `OWNER_TURNS_PER_HOUR`, `MAX_SESSIONS`",
    ),
    Attack(name="tool loops", run=attacks.tool_loops, off=12, on=40, bounds="`OWNER_TURNS_PER_HOUR`; 20 steps a turn"),
    Attack(name="slow readers", run=attacks.slow_readers, off=40, on=40, bounds="`OWNER_TURNS_PER_HOUR`"),
    Attack(
        name="requests that pile up on one session",
        run=attacks.pile_up,
        off=30,
        on=30,
        bounds="`MAX_WAITING`, `OWNER_TURNS_PER_HOUR`, `TURN_WAIT_SECONDS`",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one request costs in the mean, or those of a minute in all."""

    tokens: float = 0
    write_units: float = 0
    read_units: float = 0
    worker_seconds: float = 0

    def times(self, number: float) -> "Cost":
        return Cost(**{name: value * number for name, value in vars(self).items()})

    def plus(self, other: "Cost") -> "Cost":
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(kw_only=True)
class Beside:
    """What the well-behaved caller was told."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What an attack came to."""

    attack: Attack
    limited: bool
    taken: int
    """Requests on which work was done."""
    refused: int
    minute: Cost
    beside: Beside
    wrong: Sequence[str]


def prove(*, quick: bool) -> Section:
    """Seven attacks, each with the limits off and on."""
    os.environ |= ACCOUNT
    outcomes: list[Outcome] = []
    with counting_model() as (model, tokens):
        for limited in (False, True):
            settings = {"WORKERS": str(WORKERS), "OPENAI_API_BASE": f"{model}/v1", "OPENAI_API_KEY": "none"}
            settings |= ON if limited else OFF
            with tempfile.TemporaryDirectory() as folder, running(Path(folder), **settings) as stack:
                for attack in ATTACKS:
                    outcomes.append(asyncio.run(_suffer(stack, tokens, attack, limited=limited, quick=quick)))
                    _say(outcomes[-1])
    wrong = [f"{one.attack.name}: {what}" for one in outcomes for what in (*one.wrong, *one.beside.wrong)]
    return Section(
        title="Abuse",
        tried=_tried(quick=quick),
        head=(
            *("attack", "limits", "requests taken, refused", "model tokens a minute", "write units a minute"),
            *("read units a minute", "worker seconds a minute", "caller beside it: answers, slowest", "bounded by"),
        ),
        rows=[_row(outcomes[n + len(ATTACKS) * limited]) for n in range(len(ATTACKS)) for limited in (0, 1)],
        held=not wrong,
        notes=(_reading(), *(f"**{one}**" for one in wrong[:20])),
    )


async def _suffer(stack: Stack, tokens: Tokens, attack: Attack, *, limited: bool, quick: bool) -> Outcome:
    """Have one attack happen, with somebody beside it, and work out what it cost."""
    requests = attack.on if limited else attack.off
    async with client_at(stack.url) as client:
        attacker = Attacker(
            url=stack.url,
            engine=stack.engine,
            client=client,
            requests=min(requests, 60) if quick else requests,
            message_chars=CHARS_ON if limited else CHARS_OFF,
        )
        beside, over = Beside(), asyncio.Event()
        talking = asyncio.create_task(_talk(client, beside, over))
        seen = len(stack.lines())
        tokens.taken()
        await attack.run(attacker)
        over.set()
        await talking
    await asyncio.sleep(SETTLE_SECONDS)  # the last lines of the workers
    lines = [line for line in map(json.loads, stack.lines()[seen:]) if line.get("session_id") != WELL_BEHAVED]
    return outcome_of(attack, attacker, lines, tokens.taken(), beside, limited=limited)


def outcome_of(
    attack: Attack,
    attacker: Attacker,
    lines: Sequence[Mapping[str, Any]],
    tokens: float,
    beside: Beside,
    *,
    limited: bool,
) -> Outcome:
    """What an attack came to, by the log lines of its requests."""
    wanted = "request" if attacker.seconds else "turn"
    lines = [line for line in lines if line.get("message") == wanted and _is_part(line)]
    taken = [line for line in lines if line["status"] not in (409, 413, 429)]
    refused = [line for line in lines if line["status"] in (409, 413, 429)]
    seconds = sum(attacker.seconds[: len(taken)]) if attacker.seconds else sum(map(_seconds, taken))
    each = _mean(taken, seconds=seconds, tokens=tokens)
    refusal = _mean(refused, seconds=sum(attacker.seconds[len(taken) :]) or sum(map(_seconds, refused)), tokens=0)
    wrong = [f"{status} to {n} requests" for status, n in attacker.statuses.items() if status not in CLEAN]
    if limited and attack.by_owner and len(taken) > QUOTA:
        wrong.append(f"{len(taken)} of {QUOTA} turns were taken")
    share = len(taken) / max(len(lines), 1)
    return Outcome(
        attack=attack,
        limited=limited,
        taken=len(taken),
        refused=len(refused),
        minute=a_minute(each, refusal, limited=limited and attack.by_owner, share=share),
        beside=beside,
        wrong=wrong,
    )


def a_minute(each: Cost, refusal: Cost, *, limited: bool, share: float) -> Cost:
    """What a minute costs at the rate that the API lets through.

    With a limit for each owner, the mean of an hour in which the turns of one are taken and all other requests refused.
    """
    requests = RATE * 60
    taken = TURNS_PER_HOUR / 60 if limited else requests * share
    return each.times(taken).plus(refusal.times(requests - taken))


def _mean(lines: Sequence[Mapping[str, Any]], *, seconds: float, tokens: float) -> Cost:
    if not lines:
        return Cost()
    uncounted = sum(line["status"] == 429 for line in lines)  # a refused write costs one unit, and says nothing of it
    total = Cost(
        tokens=tokens,
        write_units=sum(line.get("write_units", 0) for line in lines) + uncounted,
        read_units=sum(line.get("read_units", 0) for line in lines),
        worker_seconds=seconds,
    )
    return total.times(1 / len(lines))


def _is_part(line: Mapping[str, Any]) -> bool:
    """Whether the request belongs to the attack, and not to its preparation."""
    return line.get("route") in ("POST /chat", "POST /sessions/{id}/fork")


def _seconds(line: Mapping[str, Any]) -> float:
    """What a turn held its worker for, as its line says."""
    return sum(float(line.get(f"{step}_ms", 0)) for step in ("load", "agent", "commit")) / 1000


async def _talk(client: httpx.AsyncClient, beside: Beside, over: asyncio.Event) -> None:
    """Say something every second, and expect an answer that remembers how much was said."""
    made = await client.post("/sessions", json={})
    headers = {"x-session-token": made.headers["x-session-token"]}
    while not over.is_set() and len(beside.seconds) < MOST_SAID:
        body, began = {"message": f"Hello, {BESIDE}", "session_id": WELL_BEHAVED}, monotonic()
        key = {"idempotency-key": uuid.uuid4().hex}
        try:
            response = await client.post("/chat", json=body, headers=headers | key, timeout=PATIENCE_SECONDS)
        except httpx.HTTPError as error:
            beside.wrong.append(f"the caller beside it got {type(error).__name__}")
            return
        beside.seconds.append(monotonic() - began)
        if response.status_code != 200 or response.json()["turn"] != len(beside.seconds):
            beside.wrong.append(f"the caller beside it got {response.status_code}: {response.text[:200]}")
            return
        await asyncio.sleep(1)


def _row(outcome: Outcome) -> list[str]:
    minute, beside = outcome.minute, outcome.beside.seconds
    return [
        outcome.attack.name,
        "on" if outcome.limited else "off",
        f"{outcome.taken}, {outcome.refused}",
        *(f"{value:,.0f}" for value in vars(minute).values()),
        f"{len(beside)}, {max(beside, default=0):.1f} s",
        outcome.attack.bounds if outcome.limited else "",
    ]


def _tried(*, quick: bool) -> str:
    off, on = (", ".join(f"`{name}={value}`" for name, value in settings.items()) for settings in (OFF, ON))
    return (
        f"Seven attacks on the stack that `make run` starts, with {WORKERS} workers of each function, first with the "
        f"limits off ({off}), then on (the defaults, and {on}, so that the quota is soon used up). Beside each attack "
        "a well-behaved caller said something every second. Forks began with a session of "
        f"{FORKED_TURNS} turns of 2 KB. The model answered after 50 ms, a slow one after 3 s; it counted the tokens."
        + (" A quick run, with fewer requests." if quick else "")
    )


def _reading() -> str:
    return (
        "Tokens, units and worker seconds were measured for each request, taken or refused. The columns are what a "
        f"minute comes to at {RATE:g} requests a second, the default of `ApiRateLimit` for a route, which API Gateway "
        f"enforces and nothing here. With the limits on it is the mean of an hour in which {TURNS_PER_HOUR} turns of "
        "one caller (`OWNER_TURNS_PER_HOUR`) are taken and all other requests are refused. New callers have a quota "
        "each, so that only limits for each address bound them below the API's. Worker seconds are those of this "
        "machine and of a model that is fast: a slow one holds a worker for as long as it takes, 28 s at most. Model "
        "tokens are prompts and answers together."
    )


def _say(outcome: Outcome) -> None:
    print(" | ".join(_row(outcome)), *outcome.wrong, *outcome.beside.wrong, flush=True)
