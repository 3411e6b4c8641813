"""Mixed traffic: what callers do in their sessions, by lot, and what each answer has to be."""

import asyncio
import string
import uuid
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from time import monotonic
from typing import Any

import httpx

from proof.callers import HANG_UP_SECONDS, Caller, Refused, Talk
from proof.told import Told

MESSAGE_CHARS = 600_000
"""MAX_MESSAGE_CHARS of the service: some turns are to be of several items."""
MARK = "xyzzy"
"""Stands in each fact that somebody tells: no log may have it."""
TURNS_OF_A_SESSION = (15, 50)
PAUSE_SECONDS = (0.2, 1.2)
"""Between the requests of a session: it is traffic, and no benchmark of a machine with two processors."""
KEYS_KNOWN = 6
"""How far back a turn is asked for again: well within those that a session remembers."""
REGENERATE = "/sessions/{id}/turns/{n}/regenerate"
Amiss = tuple[int, str, str, dict[str, Any]]
"""Status, method, route, and what else is sent, of a request that must be refused."""


class Seat:
    """Where a caller sits and does one thing after the other, in one session after the other."""

    def __init__(self, caller: Caller, lot: Random) -> None:
        self.caller, self.lot = caller, lot
        self.talk = self._begin()

    async def work(self, until: float) -> None:
        """Do what the lot says until the time is over. What goes wrong is noted, and another session begun."""
        while monotonic() < until:
            step = self.lot.choices([*STEPS], [*STEPS.values()])[0]
            try:
                await step(self)
            except (Refused, httpx.HTTPError) as error:
                self.caller.tally.wrong.append(f"{type(error).__name__} at {step.__name__}: {error}")
                self.talk = self._begin()
            if len(self.talk.told) >= self._most_turns:
                self.talk = self._begin()
            await asyncio.sleep(self.lot.uniform(*PAUSE_SECONDS))

    def _begin(self, talk: Talk | None = None) -> Talk:
        talk = talk or self.caller.begin(uuid.uuid4().hex)
        self._most_turns = len(talk.told) + self.lot.randint(*TURNS_OF_A_SESSION)
        return talk

    # ---- Turns ----

    async def say(self) -> None:
        await self._turn("turn", self._fact())

    async def ask(self) -> None:
        questions = ("What do you know about me?", "How many messages have you seen?")
        await self._turn("turn", f"{self.lot.choice(questions)} ({self._mark()})")

    async def want_a_tool(self) -> None:
        n = self._mark()
        wishes = (
            f"Add up {n}, 2 and 3.5",
            f"Add up {n}, 17 and 4. How many days between 2024-01-01 and 1999-12-31?",
            f"What time is it in Europe/Paris and Asia/Tokyo? ({n})",
            f"What time is it in Mars/Olympus? ({n})",
        )
        await self._turn("turn with tool calls", self.lot.choice(wishes))

    async def ask_a_slow_model(self) -> None:
        wait = self.lot.choice((0.5, 1, 2))
        await self._turn("turn with a slow model", f"please wait {wait} seconds. {self._fact()}")

    async def say_much(self) -> None:
        await self._turn("large turn", f"{self._fact()} {self._babble(10_000, 30_000)}")

    async def say_more_than_an_item_takes(self) -> None:
        await self._turn("turn of several items", f"{self._fact()} {self._babble(450_000, 590_000)}")

    async def say_it_twice_at_once(self) -> None:
        message, key = self._fact(), uuid.uuid4().hex
        copies = await asyncio.gather(
            *(self.caller.say("two copies of a turn at once", message, self.talk, key) for _ in range(2))
        )
        if len({_outcome(copy) for copy in copies}) > 1 or not any(map(_is_replay, copies)):
            raise Refused(f"copies of one turn were answered with {[copy.text for copy in copies]}")
        self._note(message, key, copies[0])

    async def hang_up(self) -> None:
        message, key = f"please wait 0.5 seconds. {self._fact()}", uuid.uuid4().hex
        await self.caller.hang_up(message, self.talk, key)
        self._note(message, key, await self.caller.say("turn after hanging up", message, self.talk, key))

    async def ask_for_an_old_answer(self) -> None:
        if self.talk.keys:
            key, told = self.lot.choice(self.talk.keys[-KEYS_KNOWN:])
            response = await self.caller.say("copy of an old turn", told.message, self.talk, key)
            if _outcome(response) != (told.number, told.answer) or not _is_replay(response):
                raise Refused(f"turn {told.number} was answered with {told.answer!r}, later with {response.text!r}")

    async def regenerate(self) -> None:
        if self.talk.told:
            newest = self.talk.told[-1]
            response = await self._at("regenerate", "POST", REGENERATE, n=newest.number, expected={200})
            self._told(newest.message, response)

    async def _turn(self, kind: str, message: str) -> None:
        key = uuid.uuid4().hex
        self._note(message, key, await self.caller.say(kind, message, self.talk, key))

    def _note(self, message: str, key: str, response: httpx.Response) -> None:
        self.talk.keys.append((key, self._told(message, response)))

    def _told(self, message: str, response: httpx.Response) -> Told:
        number, answer = _outcome(response)
        told = Told(number=number, message=message, answer=answer)
        self.talk.told.append(told)
        return told

    def _mark(self) -> int:
        return next(self.caller.tally.marks)

    def _fact(self) -> str:
        n = self._mark()
        return f"My item {n} is {MARK}-{n}."

    def _babble(self, shortest: int, longest: int) -> str:
        """Words that do not get much smaller in a codec."""
        letters = self.lot.choices(string.ascii_lowercase, k=self.lot.randint(shortest, longest))
        return " ".join("".join(letters[i : i + 9]) for i in range(0, len(letters), 10))

    # ---- Sessions ----

    async def read(self) -> None:
        if self.talk.told:
            found = await self.caller.history(self.talk, limit=self.lot.randint(5, 30))
            if found != [(turn.number, turn.message, turn.answer) for turn in self.talk.told]:
                raise Refused(f"the history of {self.talk.id} is not what was told of it")

    async def read_all(self) -> None:
        if self.talk.told:
            await self.caller.export(self.talk)

    async def look(self) -> None:
        if self.talk.told:
            found = (await self._at("look at a session", "GET", expected={200})).json()
            if found["turns"] < self.talk.told[-1].number or self.talk.title not in (None, found["title"]):
                raise Refused(f"{self.talk.id} has {found['turns']} turns and the title {found['title']!r}")

    async def list_all(self) -> None:
        """The index lags behind, so that of the caller's own sessions any may be missing."""
        owners, me = self.caller.tally.owners, self.caller.name
        listed = await self.caller.listed(limit=self.lot.randint(5, 30))
        if others := [one for one in listed if owners.get(one, me) != me]:
            raise Refused(f"the list of {me} has sessions of others: {others}")

    async def rename(self) -> None:
        if self.talk.told:
            title = f"Title {self._mark()}"
            found = await self._at("rename", "PATCH", body={"title": title}, expected={200})
            self.talk.title = title
            if found.json()["title"] != title:
                raise Refused(f"{self.talk.id} was renamed to {title!r}, and is {found.json()['title']!r}")

    async def fork(self) -> None:
        if self.talk.told:
            told = self.talk.told[: self.lot.randint(1, len(self.talk.told))]
            body = {"turn": told[-1].number}
            made = (await self._at("fork", "POST", "/sessions/{id}/fork", body=body, expected={201})).json()
            self.talk = self._begin(self.caller.begin(made["id"], title=made["title"], told=told))

    async def delete(self) -> None:
        """Now and then while a turn is in flight, and now and then to talk on under the same id."""
        talk = self.talk
        if not talk.told or talk.hung_up_on:
            return
        self.talk = self._begin()
        if self.lot.random() < 0.4:
            message = f"please wait 0.5 seconds. {self._fact()}"
            turn = asyncio.create_task(self.caller.say("turn while deleted", message, talk, uuid.uuid4().hex))
            await asyncio.sleep(self.lot.uniform(0, HANG_UP_SECONDS * 3))
            await self.caller.delete(talk)
            await turn  # as the last one before, or as the first one after it, which has to go as well
        await self.caller.delete(talk)
        await self.caller.miss(talk)
        if self.lot.random() < 0.3:
            self.talk = self._begin(self.caller.begin(talk.id))

    async def come_and_go(self) -> None:
        """Somebody else comes, talks in two sessions, and deletes everything."""
        visitor = Caller(self.caller.client, self.caller.tally, f"visitor {self._mark()}")
        await visitor.arrive()
        for _ in range(2):
            await Seat(visitor, self.lot).say()
        await visitor.delete_all()
        for talk in visitor.talks:
            await visitor.miss(talk)

    async def _at(self, kind: str, method: str, route: str = "/sessions/{id}", **more: Any) -> httpx.Response:
        return await self.caller.send(kind, method, route, **{"id": self.talk.id, **more})

    # ---- What is to be refused ----

    async def ask_amiss(self) -> None:
        refusals = [*_AMISS, *self._amiss_here()]
        status, method, route, more = self.lot.choice(refusals)
        await self._at("something amiss", method, route, expected={status}, **more)

    def _amiss_here(self) -> list[Amiss]:
        """What is wrong because of what was said here before, or said by others."""
        found: list[Amiss] = []
        if self.talk.told:
            found.append((404, "POST", REGENERATE, {"n": 10**9}))
            found.append((400, "GET", "/sessions/{id}/turns", {"query": {"cursor": "none"}}))
            found.append((404, "POST", "/sessions/{id}/fork", {"body": {"turn": 10**9}}))
        if len(self.talk.told) > 1:
            found.append((409, "POST", REGENERATE, {"n": self.talk.told[0].number}))
        if self.talk.keys:
            body = {"message": "something else", "session_id": self.talk.id}
            found.append((422, "POST", "/chat", {"body": body, "key": self.talk.keys[-1][0]}))
        if others := [one for one, owner in self.caller.tally.owners.items() if owner != self.caller.name]:
            found.append((404, "GET", "/sessions/{id}", {"id": self.lot.choice(others)}))
        return found


async def warm_up(caller: Caller, lot: Random, *, times: int) -> None:
    """Have so many of the largest requests done at once, so that every worker has its part of them.

    What a process took for the largest of them it keeps; from then on it has no reason to take more.
    """
    seat = Seat(caller, lot)
    for step in [seat.say_more_than_an_item_takes] * 4 + [seat.say_much] * 6:
        await step()
    for everybody in (_fork_and_delete, _read, _talk_and_leave):
        await asyncio.gather(*(everybody(seat) for _ in range(times)))


async def _fork_and_delete(seat: Seat) -> None:
    route = "/sessions/{id}/fork"
    made = await seat.caller.send("fork", "POST", route, id=seat.talk.id, body={}, expected={201})
    await seat.caller.delete(seat.caller.begin(made.json()["id"]))


async def _read(seat: Seat) -> None:
    await seat.caller.export(seat.talk)
    await seat.caller.history(seat.talk, limit=30)


async def _talk_and_leave(seat: Seat) -> None:
    await Seat(seat.caller, seat.lot).say_more_than_an_item_takes()
    await seat.come_and_go()


def _outcome(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    return body["turn"], body["answer"]


def _is_replay(response: httpx.Response) -> bool:
    return "idempotent-replayed" in response.headers


_AMISS: list[Amiss] = [
    (400, "POST", "/chat", {"body": "{"}),
    (400, "POST", "/chat", {"body": {}}),
    (400, "POST", "/chat", {"body": {"message": " "}}),
    (400, "POST", "/chat", {"body": {"message": 5}}),
    (400, "POST", "/chat", {"body": {"message": "Hello", "session_id": "../default"}}),
    (400, "GET", "/sessions", {"query": {"limit": 0}}),
    (401, "GET", "/sessions", {"headers": {"x-session-token": "forged"}}),
    (404, "GET", "/sessions/{id}/turns", {"id": "nobody-has-this"}),
    (404, "GET", "/somewhere", {}),
    (405, "PUT", "/sessions/{id}", {}),
    (413, "POST", "/chat", {"body": {"message": "x" * (MESSAGE_CHARS + 1)}}),
]
STEPS: Mapping[Callable[[Seat], Awaitable[None]], int] = {
    Seat.say: 24,
    Seat.ask: 14,
    Seat.want_a_tool: 10,
    Seat.ask_a_slow_model: 20,
    Seat.say_much: 5,
    Seat.say_more_than_an_item_takes: 1,
    Seat.say_it_twice_at_once: 3,
    Seat.hang_up: 3,
    Seat.ask_for_an_old_answer: 4,
    Seat.regenerate: 4,
    Seat.read: 6,
    Seat.read_all: 2,
    Seat.look: 3,
    Seat.list_all: 3,
    Seat.rename: 3,
    Seat.fork: 2,
    Seat.delete: 2,
    Seat.come_and_go: 1,
    Seat.ask_amiss: 8,
}
"""What is done, and how often of a hundred times or so."""
