"""The ways in which a runtime ends in the middle of a turn, and what has to be so afterwards."""

import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory.turns import Turn, TurnStatus, Window
from tests.instances import Instance, Reply, Service, answered_with, faults, is_whole, wait_until
from tests.wire import Place

QUESTION = "What do you know about me?"
WAIT = "please wait 2 seconds"
LINGER = "call linger with seconds=20"
Strike = Callable[[Service, Instance, str], object]
"""Ends the runtime, or has it ended, while the request with a key is on its way."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """One way to end a runtime in the middle of a turn."""

    name: str
    asks: str = ""
    """What the turn wants of model and tools, so that it comes to pass."""
    arm: Callable[[Instance], object] = lambda _: None
    """What is done before the request is sent."""
    strike: Strike = lambda *_: None
    claims: bool = True
    """Whether the turn had been claimed."""
    stores: bool = False
    """Whether the turn had been stored, though nobody heard of it."""

    def message(self, key: str) -> str:
        """What the user says in the turn."""
        return f"My {key} is mine. {self.asks}"

    def happens(self, service: Service, victim: Instance, session: str, key: str) -> Reply:
        """What comes of the turn that it interrupts."""
        self.arm(victim)
        pending = victim.asking(session, self.message(key), key=key)
        self.strike(service, victim, key)
        return pending.result()


def _at(operation: str, place: Place) -> Callable[[Instance], object]:
    return lambda victim: victim.wire.stop_at(operation, place, victim.end)


def _in_the_model(by: signal.Signals) -> Strike:
    def strike(service: Service, victim: Instance, key: str) -> None:
        wait_until(lambda: service.asked(key), "the model is asked")
        victim.end(by)

    return strike


def _in_the_tool(_: Service, victim: Instance, __: str) -> None:
    wait_until(lambda: victim.lingers, "the tool runs")
    victim.end()


AFTER_THE_CLAIM = Crash(name="killed after the claim", arm=_at("UpdateItem", "after"))
KILLS = (
    Crash(name="killed before the load", arm=_at("Query", "before"), claims=False),
    Crash(name="killed before the claim", arm=_at("UpdateItem", "before"), claims=False),
    AFTER_THE_CLAIM,
    Crash(name="killed while the model is asked", asks=WAIT, strike=_in_the_model(signal.SIGKILL)),
    Crash(name="killed in a tool", asks=LINGER, strike=_in_the_tool),
    Crash(name="killed before the commit", arm=_at("PutItem", "before")),
    Crash(name="killed after the commit, before the response", arm=_at("PutItem", "after"), stores=True),
)
ENDS = (
    Crash(name="SIGTERM while the model is asked", asks=WAIT, strike=_in_the_model(signal.SIGTERM)),
    Crash(name="os._exit in a tool", asks="call leave with code=3"),
    Crash(name="os._exit in the event loop", asks="call leave_at_once with code=3"),
)
TIMEOUT = Crash(name="Lambda's timeout", asks="call stop_the_world with seconds=60")
FAIL_ALONE = (
    Crash(name="out of memory in a tool", asks="call hoard with megabytes=3000"),
    Crash(name="sys.exit in a tool", asks="call give_up with code=3"),
    Crash(name="sys.exit in the event loop", asks="call give_up_at_once with code=3"),
)
"""What ends a tool, and neither its turn nor the runtime."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What another instance made of a session after a crash."""

    seconds: float
    """How long the next request took."""
    next: Reply
    retry: Reply
    """Of the interrupted request."""
    again: Reply
    """Of the same once more."""


def recover(survivor: Instance, session: str, message: str, key: str) -> Recovery:
    """Ask something else in the session, then send the interrupted request again, twice."""
    began = time.monotonic()
    following = survivor.ask(session, QUESTION)
    seconds = time.monotonic() - began
    retry, again = (survivor.ask(session, message, key=key) for _ in range(2))
    return Recovery(seconds=seconds, next=following, retry=retry, again=again)


def retry_faults(window: Window, key: str, recovery: Recovery) -> list[str]:
    """What is wrong with a turn that was sent again until it was answered: it is to be there once, complete."""
    found = answered_with(window, key)
    if recovery.retry.status != 200 or len(found) != 1:
        return [f"{key} got {recovery.retry.status} when it was sent again, and is there {len(found)} times"]
    wrong = [] if is_whole(found[0]) else [f"{key} is not whole"]
    if (recovery.again.status, recovery.again.replayed, recovery.again.body) != (200, True, recovery.retry.body):
        wrong.append(f"{key} got another answer when it was sent once more")
    return wrong


def lost(window: Window, answered: dict[str, Reply]) -> list[str]:
    """Keys of the requests that were answered, and whose turns are not there as the caller was told."""
    told = {key: (reply.body["turn"], reply.body["answer"]) for key, reply in answered.items()}
    there = {turn.request.id: (turn.number, turn.answer) for turn in window.turns if turn.status is TurnStatus.COMPLETE}
    return [f"the answer to {key} is lost" for key in told if there.get(key) != told[key]]


def blind(window: Window) -> list[str]:
    """Turns that were not answered in view of all turns before them, as far as their window had room for those."""
    complete = [turn for turn in window.turns if turn.status is TurnStatus.COMPLETE]
    return [
        f"turn {turn.number} knows of other turns than those before it"
        for i, turn in enumerate(complete)
        if said(turn) == QUESTION and set(re.findall(r"your (\S+) is mine", turn.answer)) != known(complete[:i], turn)
    ]


def known(before: Sequence[Turn], turn: Turn) -> set[str]:
    """What the user said of themselves in the newest whole turns that fit a turn's window."""
    room, found = turn.window.limit, set[str]()
    for earlier in reversed(before):
        room -= earlier.tokens
        if room < 0:
            break
        found |= set(re.findall(r"My (\S+) is mine", said(earlier)))
    return found


def said(turn: Turn) -> str:
    """What the user said in a turn."""
    text: str = turn.messages[0]["blocks"][0]["text"]
    return text


def history_faults(window: Window, answered: dict[str, Reply]) -> list[str]:
    """Everything that is wrong with a session's history."""
    return [*faults(window), *lost(window, answered), *blind(window)]
