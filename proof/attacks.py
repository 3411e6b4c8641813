"""What somebody does who wants this to cost its operator as much as possible, over HTTP."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from memory import codec
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect
from memory.turns import Session, Turn, TurnStatus, WindowSize, utc_now
from proof.counting_model import AT_LENGTH, LOOP, SLOWLY
from tests.conftest import TABLE, asking, exchange, noise

RATE = 5.0
"""Requests a second: what ApiRateLimit lets through on each route."""
UNREAD_SECONDS = 8.0
FORKED_TURNS = 400
GREEDY = f"Answer {AT_LENGTH}, please."


@dataclass(kw_only=True, eq=False)
class Attacker:
    """Somebody with one identity, and what became of what they sent."""

    url: str
    engine: str
    client: httpx.AsyncClient
    requests: int
    """How many to send."""
    message_chars: int
    """Of the largest message that is taken."""
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """That requests to the sessions function took, one after the other."""
    token: str = ""

    async def arrive(self) -> str:
        """Get an identity, and a session, without a turn."""
        made = await self.client.post("/sessions", json={})
        self.token = made.headers["x-session-token"]
        session: str = made.json()["id"]
        return session

    async def say(self, message: str, session: str | None = None, *, new: bool = False) -> None:
        """One request for a turn, by this identity or a new one."""
        body = {"message": message} if new else {"message": message, "session_id": session or uuid.uuid4().hex}
        headers = {} if new else {"x-session-token": self.token}
        response = await self.client.post("/chat", json=body, headers=headers)
        self.statuses[response.status_code] += 1

    async def flood(self, request: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Send requests at the rate that the API lets through, whether or not they are answered."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.requests):
                tasks.create_task(request())
                await asyncio.sleep(1 / RATE)


async def new_callers(attacker: Attacker) -> None:
    """Each request is a caller of its own."""
    gate = asyncio.Semaphore(8)

    async def one() -> None:
        async with gate:
            await attacker.say("Hello", new=True)

    await asyncio.gather(*(one() for _ in range(attacker.requests)))


async def one_flood(attacker: Attacker) -> None:
    """One caller, a new session each time."""
    await attacker.arrive()
    await attacker.flood(lambda: attacker.say("Hello"))


async def largest_messages(attacker: Attacker) -> None:
    """The largest messages that are taken, of characters that are several tokens, for the longest answers."""
    session = await attacker.arrive()
    message = GREEDY + "\U00013080" * (attacker.message_chars - len(GREEDY))
    await attacker.flood(lambda: attacker.say(message, session))


async def forks_of_forks(attacker: Attacker) -> None:
    """A long session is forked, the fork is forked, and so on."""
    session = await attacker.arrive()
    await _fill(attacker.engine, session)
    for _ in range(attacker.requests):
        began = monotonic()
        made = await attacker.client.post(
            f"/sessions/{session}/fork", json={}, headers={"x-session-token": attacker.token}
        )
        attacker.seconds.append(monotonic() - began)
        attacker.statuses[made.status_code] += 1
        session = made.json().get("id", session)


async def tool_loops(attacker: Attacker) -> None:
    """Each message makes the model call tools without end."""
    await attacker.arrive()
    await attacker.flood(lambda: attacker.say(f"Add up 1 and 2, {LOOP}"))


async def slow_readers(attacker: Attacker) -> None:
    """Connections that ask, and do not read their answers."""
    await attacker.arrive()
    await attacker.flood(lambda: _ask_and_not_read(attacker))


async def pile_up(attacker: Attacker) -> None:
    """All requests are for one session, in which a slow turn is being answered."""
    session = await attacker.arrive()
    await attacker.flood(lambda: attacker.say(f"Hello, {SLOWLY}", session))


async def _ask_and_not_read(attacker: Attacker) -> None:
    where = urlsplit(attacker.url)
    _, writer = await asyncio.open_connection(where.hostname, where.port, limit=1)
    body = json.dumps({"message": GREEDY, "session_id": uuid.uuid4().hex}).encode()
    head = (
        f"POST /chat HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-type: application/json\r\n"
        f"x-session-token: {attacker.token}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await asyncio.sleep(UNREAD_SECONDS)
    writer.close()


async def _fill(engine: str, session_id: str) -> None:
    """Give a session, which is there, as many turns as a long conversation has."""
    client = connect(engine)
    pages = client.get_paginator("scan").paginate(TableName=TABLE, ConsistentRead=True)
    items: list[Any] = [item for page in pages for item in page["Items"]]
    (state,) = (
        item for item in items if item["sk"]["S"] == codec.STATE_KEY and codec.session_id(item["pk"]["S"]) == session_id
    )
    log = DynamoDBTurnLog(client, TABLE)
    session = Session(owner=unquote(state["owner"]["S"]), id=session_id)
    await log.rewrite(
        await log.load(session, token_limit=None), [_turn(number) for number in range(1, FORKED_TURNS + 1)]
    )


def _turn(number: int) -> Turn:
    now = utc_now()
    return Turn(
        generation=1,
        number=number,
        token="proof",  # noqa: S106 - the name of an attempt, not a secret
        status=TurnStatus.COMPLETE,
        request=asking(str(number)),
        messages=tuple(exchange(noise(400 + number), noise(1600 + number))),
        tokens=500,
        window=WindowSize(turns=0, tokens=0, limit=0),
        started_at=now,
        finished_at=now,
        instance="proof",
    )
