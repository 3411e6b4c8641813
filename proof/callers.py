"""Callers over HTTP, who send again what was interrupted, and note what they are told."""

import asyncio
import json
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import count
from time import monotonic
from typing import Any

import httpx

from handlers.openapi import OPERATIONS
from handlers.problems import Kind
from proof.told import ANSWERED, Told

GIVE_UP_SECONDS = 120.0
HANG_UP_SECONDS = 0.25
PAUSE_SECONDS = 0.2
"""Before a request is sent again that was not told how long to wait."""

KILLED = re.compile("was killed by SIGKILL while it was handling the request")
NOT_TAKEN = re.compile("died before they took the request|^No worker of ")
_AGAIN = (Kind.TURN_IN_PROGRESS, Kind.UNAVAILABLE, Kind.AGENT_TIMED_OUT)


class Refused(Exception):
    """A request was not answered as it must be; the text says how."""


@dataclass(kw_only=True)
class Tally:
    """What became of all requests."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By kind of request and status."""
    hung_up: int = 0
    killed: int = 0
    """Requests whose worker was killed while it had them."""
    replayed: int = 0
    wrong: list[str] = field(default_factory=list)
    workers: set[int] = field(default_factory=set)
    """Process ids of those that answered."""
    owners: dict[str, str] = field(default_factory=dict)
    """Names of the callers, by the sessions that they made."""
    callers: list["Caller"] = field(default_factory=list)
    marks: Iterator[int] = field(default_factory=count)
    """Numbers by which messages are told apart."""


@dataclass(kw_only=True, eq=False)
class Talk:
    """A session, and what was told of it."""

    id: str
    title: str | None = None
    told: list[Told] = field(default_factory=list)
    keys: list[tuple[str, Told]] = field(default_factory=list)
    """Under which keys the newest turns can be asked for again."""
    removed: bool = False
    """Whether it was deleted, which is for good."""
    hung_up_on: bool = False
    """Whether a request may still be on its way of which nobody will hear."""

    @property
    def is_there(self) -> bool:
        return not self.removed and bool(self.told or self.title)


class Caller:
    """Somebody with a token of their own."""

    def __init__(self, client: httpx.AsyncClient, tally: Tally, name: str) -> None:
        self.client, self.tally, self.name = client, tally, name
        self.talks: list[Talk] = []
        self._token = ""
        tally.callers.append(self)

    async def arrive(self) -> None:
        """Make a first session, whose answer brings the token."""
        made = await self.send("make a session", "POST", "/sessions", body={"title": self.name}, expected={201})
        self._token = made.headers["x-session-token"]
        self.begin(made.json()["id"], title=self.name)

    def begin(self, session_id: str, *, title: str | None = None, told: Sequence[Told] = ()) -> Talk:
        """Begin to talk in a session."""
        talk = Talk(id=session_id, title=title, told=list(told))
        self.talks.append(talk)
        self.tally.owners[talk.id] = self.name
        return talk

    async def say(self, kind: str, message: str, talk: Talk, key: str) -> httpx.Response:
        """The answer to a message."""
        body = {"message": message, "session_id": talk.id}
        return await self.send(kind, "POST", "/chat", body=body, key=key, expected={200})

    async def hang_up(self, message: str, talk: Talk, key: str) -> None:
        """Say something, and do not wait for the answer."""
        talk.hung_up_on = True
        try:
            await asyncio.wait_for(self.say("turn", message, talk, key), HANG_UP_SECONDS)
        except TimeoutError:
            self.tally.hung_up += 1

    async def delete(self, talk: Talk) -> None:
        """Delete a session, which is there or, where it was deleted before, may be."""
        fine = {202, 204, 404} if talk.removed else {202, 204}
        await self.send("delete", "DELETE", "/sessions/{id}", id=talk.id, expected=fine, if_repeated={404})
        talk.removed = True

    async def delete_all(self) -> None:
        """Delete everything."""
        status = 202
        while status == 202:
            status = (await self.send("delete all", "DELETE", "/sessions", expected={202, 204})).status_code
        for talk in self.talks:
            talk.removed = True

    async def miss(self, talk: Talk) -> None:
        """See that a session is not there."""
        await self.send("look at a deleted session", "GET", "/sessions/{id}", id=talk.id, expected={404})

    async def history(self, talk: Talk, *, limit: int) -> list[tuple[int, str, str]]:
        """Number, message and answer of a session's turns, the oldest first, from pages of so many turns."""
        turns: list[Any] = []
        query: dict[str, Any] | None = {"limit": limit}
        while query:
            page = await self.send("history", "GET", "/sessions/{id}/turns", id=talk.id, query=query, expected={200})
            turns += page.json()["turns"]
            query = _next(query, page.json()["next_cursor"])
        return [
            (turn["number"], turn["messages"][0]["text"], turn["messages"][-1]["text"])
            for turn in reversed(turns)
            if turn["status"] in ANSWERED
        ]

    async def export(self, talk: Talk) -> str:
        """All lines of a session's export."""
        text = ""
        query: dict[str, Any] | None = {}
        while query is not None:
            page = await self.send("export", "GET", "/sessions/{id}/export", id=talk.id, query=query, expected={200})
            text += page.text
            query = _next(query, page.headers.get("x-next-cursor"))
        return text

    async def listed(self, *, limit: int) -> list[str]:
        """Ids of the sessions, from pages of so many."""
        found: list[str] = []
        query: dict[str, Any] | None = {"limit": limit}
        while query:
            page = (await self.send("list", "GET", "/sessions", query=query, expected={200})).json()
            found += [one["id"] for one in page["sessions"]]
            query = _next(query, page["next_cursor"])
        return found

    async def send(
        self,
        kind: str,
        method: str,
        route: str,
        *,
        expected: Collection[int],
        if_repeated: Collection[int] = (),
        key: str | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
        **places: Any,
    ) -> httpx.Response:
        """The answer to a request, which is sent again, the same, where something came in between. Raises Refused.

        `if_repeated` is what is expected as well once a copy that was interrupted may have been done.
        """
        sent = {"x-session-token": self._token} if self._token else {}
        if method != "GET":
            sent |= {"idempotency-key": key or uuid.uuid4().hex, "content-type": "application/json"}
        content = body if isinstance(body, str) or body is None else json.dumps(body)
        give_up, fine = monotonic() + GIVE_UP_SECONDS, {*expected}
        while True:
            response = await self.client.request(
                method, route.format(**places), content=content, headers={**sent, **(headers or {})}, params=query
            )
            self.tally.statuses[kind, response.status_code] += 1
            if worker := response.headers.get("x-local-worker"):
                self.tally.workers.add(int(worker))
            self.tally.replayed += "idempotent-replayed" in response.headers
            if response.status_code in fine:
                return response
            if not self._came_between(method, route, response) or monotonic() > give_up:
                raise Refused(f"{kind} got {response.status_code}: {response.text[:300]}")
            fine |= {*if_repeated}
            await asyncio.sleep(float(response.headers.get("retry-after", PAUSE_SECONDS)))

    def _came_between(self, method: str, route: str, response: httpx.Response) -> bool:
        """Whether it is a problem that is documented and passes, or the gateway's word of a worker's death."""
        if response.status_code not in (409, 502, 503, 504):
            return False
        problem = response.json()
        if problem["type"] == "about:blank":
            was_killed = bool(KILLED.search(problem["detail"]))
            self.tally.killed += was_killed
            return was_killed or bool(NOT_TAKEN.search(problem["detail"]))
        return problem["type"] in {kind.urn for kind in _AGAIN if kind in OPERATIONS[method, route].problems}


def client_at(url: str) -> httpx.AsyncClient:
    """A client for all callers: it keeps nobody's cookies."""
    return httpx.AsyncClient(
        base_url=url,
        timeout=GIVE_UP_SECONDS,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        # The gateway closes what is idle for 5 s, and might do so just when something is sent.
        limits=httpx.Limits(keepalive_expiry=2.0),
    )


def _next(query: Mapping[str, Any], cursor: str | None) -> dict[str, Any] | None:
    return {**query, "cursor": cursor} if cursor else None
