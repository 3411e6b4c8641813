"""What judges `python -m proof soak`: it sees what is lost, doubled, altered or blind, and what grows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import pytest

from local.demo_model import reply_to
from memory.chat_store import count_tokens, decode_message
from proof.aftermath import left_of
from proof.callers import Caller, Refused, Tally
from proof.gauges import Sample, commands_below, growth, missing_proc, sample
from proof.told import SYSTEM, Kept, Told, faults, kept_in

LIMIT = 10_000
SUM = [
    {"block_type": "tool_call", "tool_call_id": "a", "tool_name": "total", "tool_kwargs": {"numbers": [1, 2]}},
]
needs_proc = pytest.mark.skipif(missing_proc() is not None, reason=str(missing_proc()))


def message(role: str, text: str = "", *blocks: dict[str, Any], **extras: str) -> dict[str, Any]:
    """A message as the export has it."""
    found = [{"block_type": "text", "text": text}] if text else []
    return {"role": role, "additional_kwargs": extras, "blocks": [*found, *blocks]}


def kept(number: int, *messages: dict[str, Any], status: str = "complete", supersedes: int | None = None) -> Kept:
    return Kept(number=number, status=status, supersedes=supersedes, messages=messages)


def talked(*said: str, limit: int = LIMIT) -> list[Kept]:
    """A session in which this was said, answered as the demo model answers."""
    turns: list[Kept] = []
    for number, text in enumerate(said, 1):
        before, room = [], limit
        for turn in reversed(turns):
            room -= count_tokens(map(decode_message, turn.messages))
            if room < 0:
                break
            before = [{"role": view.role, "content": view.text} for view in turn.views] + before
        answer = reply_to([SYSTEM, *before, {"role": "user", "content": text}], frozenset()).text
        turns.append(kept(number, message("user", text), message("assistant", answer)))
    return turns


def told_of(turns: Sequence[Kept]) -> list[Told]:
    return [Told(number=turn.number, message=turn.said, answer=turn.answer) for turn in turns]


def found(told: Sequence[Told], turns: Sequence[Kept], limit: int = LIMIT) -> list[str]:
    return [fault.what for fault in faults(told, turns, token_limit=limit)]


SESSION = talked("My dog is Rex.", "My cat is Tom.", "What do you know about me?", "What is my dog?")
TOLD = told_of(SESSION)


def test_a_session_as_it_was_told_has_no_faults() -> None:
    """Every turn there once, in order, with its answer, and in view of those before it."""
    assert SESSION[2].answer == "I know this: your dog is Rex; your cat is Tom."
    assert found(TOLD, SESSION) == []


def test_a_lost_turn_is_seen() -> None:
    """Wherever it was, and also where only a failed turn has its number."""
    for place in range(len(SESSION)):
        assert found(TOLD, SESSION[:place] + SESSION[place + 1 :]) == ["lost"]
        failed = replace(SESSION[place], status="failed")
        assert found(TOLD, [*SESSION[:place], failed, *SESSION[place + 1 :]]) == ["lost"]


def test_a_doubled_turn_is_seen() -> None:
    """The same message under a number that nobody was told of."""
    assert found(TOLD, [*SESSION, replace(SESSION[1], number=5)]) == ["doubled"]


def test_a_turn_that_nobody_asked_for_is_seen() -> None:
    """Something that was said in another session."""
    assert found(TOLD, [*SESSION, *(replace(turn, number=5) for turn in talked("My name is Ada."))]) == [
        "never asked for"
    ]


@pytest.mark.parametrize("place", [0, -1], ids=["message", "answer"])
def test_an_altered_turn_is_seen(place: int) -> None:
    """One letter is enough."""
    messages = [*SESSION[1].messages]
    messages[place] = json.loads(json.dumps(messages[place]).replace("Tom", "Tim"))
    turns = [SESSION[0], replace(SESSION[1], messages=tuple(messages)), *SESSION[2:]]
    assert "altered" in found(TOLD, turns)


def test_turns_out_of_order_are_seen() -> None:
    """In what the callers were told, and in the history."""
    assert "out of order" in found([TOLD[1], TOLD[0], *TOLD[2:]], SESSION)
    assert "out of order" in found(TOLD, [SESSION[1], SESSION[0], *SESSION[2:]])


def test_a_blind_turn_is_seen() -> None:
    """An answer that does not know what was said before, though it is the one that the caller was told."""
    blind = replace(SESSION[3], messages=(SESSION[3].messages[0], talked("What is my dog?")[0].messages[1]))
    turns = [*SESSION[:3], blind]
    assert blind.answer.startswith("I don't know")
    assert found(told_of(turns), turns) == ["blind"]


def test_a_turn_knows_what_fits_its_window_and_no_more() -> None:
    """The newest whole turns up to the limit: one that saw fewer, or more, is blind."""
    said = ["My dog is Rex.", "My cat is Tom.", "What do you know about me?"]
    limit = SESSION[1].tokens
    turns = talked(*said, limit=limit)
    assert turns[2].answer == "I know this: your cat is Tom."
    assert found(told_of(turns), turns, limit) == []
    assert found(told_of(turns), turns, LIMIT) == ["blind"]
    assert found(TOLD, SESSION, limit) == ["blind", "blind"]


@pytest.mark.parametrize(("answer", "faults_found"), [("Your dog is Rex.", []), ("I don't know your dog.", ["blind"])])
def test_a_turn_knows_what_is_shown_of_one_that_is_too_large(answer: str, faults_found: list[str]) -> None:
    """The newest turn is shown in part if it does not fit: a turn that saw nothing of it is blind."""
    (large,) = talked("My dog is Rex. " + "And so on. " * 5000)
    turns = [large, kept(2, message("user", "What is my dog?"), message("assistant", answer))]
    assert found(told_of(turns), turns) == faults_found


def test_a_regenerated_turn_replaces_the_one_before() -> None:
    """It is no copy, and its answer knows nothing of the one that it supersedes."""
    first, second = talked("My dog is Rex.", "How many messages have you seen?")
    turns = [first, replace(second, status="superseded"), replace(second, number=3, supersedes=2)]
    assert found(told_of(turns), turns) == []
    assert found(told_of(turns), [*turns[:2], replace(turns[2], supersedes=None)]) == ["blind"]


def test_a_half_turn_is_seen() -> None:
    """Without its answer, without a tool's result, or with a result that nobody called for."""
    call, result = message("assistant", "", *SUM), message("tool", "3", tool_call_id="a")
    end = message("assistant", "The tool says: 3")
    whole = kept(1, message("user", "Add up 1 and 2"), call, result, end)
    told = told_of([whole])
    assert found(told, [whole]) == []
    for half in ((0, 1, 3), (0, 2, 3), (0, 1, 2), (1, 2, 3)):
        assert "half" in found(told, [replace(whole, messages=tuple(whole.messages[i] for i in half))])


def test_an_export_is_read_turn_by_turn() -> None:
    """Its lines are messages, which belong to turns."""
    lines = [
        {"turn": turn.number, "status": turn.status, "index": index, "message": one}
        for turn in SESSION
        for index, one in enumerate(turn.messages)
    ]
    assert kept_in("".join(json.dumps(line) + "\n" for line in lines)) == SESSION


def test_what_is_left_of_a_deleted_session_is_seen() -> None:
    """Turns and parts below the generation that is read, or without a state, and a state that still has a title."""
    gone = {"deleted_at": {"N": "1"}}
    table = [
        item("tidy", "state", generation=2, **gone),
        item("again", "state", generation=2),
        item("again", "TURN#000002#0000000001"),
        item("turn", "state", generation=2, **gone),
        item("turn", "TURN#000001#0000000001"),
        item("part", "PART#000001#0000000001#token#000"),
        item("title", "state", generation=2, title={"S": "Ada"}, **gone),
        item("another", "TURN#000000#0000000001"),
    ]
    assert sorted(left_of({"tidy", "again", "turn", "part", "title", "swept"}, table)) == [
        "PART#000001#0000000001#token#000 of part",
        "TURN#000001#0000000001 of turn",
        "the state of title still has title",
    ]


def item(session: str, sk: str, *, generation: int = 0, **more: Any) -> dict[str, Any]:
    return {"pk": {"S": f"SESSION#ada#{session}"}, "sk": {"S": sk}, "generation": {"N": str(generation)}, **more}


def series(megabytes: Callable[[int], float], descriptors: Callable[[int], int] = lambda _: 9) -> list[Sample]:
    return [Sample(megabytes=megabytes(i), descriptors=descriptors(i)) for i in range(100)]


def test_memory_that_grows_is_seen() -> None:
    """A steady leak, but neither a process that gets warm nor one that wavers."""
    assert growth(series(lambda i: 150 + 0.2 * i)) == [
        "memory grew from 155.9 MB in the second fifth to 167.9 MB in the last"
    ]
    assert growth(series(lambda i: min(150, 100 + 5 * i) + i % 3)) == []


def test_descriptors_that_grow_are_seen() -> None:
    """A leak of one in ten samples, but no single peak."""
    assert growth(series(lambda _: 150, lambda i: 9 + i // 10)) == [
        "descriptors grew from 12 at the most in the first two fifths to 18 in the last"
    ]
    assert growth(series(lambda _: 150, lambda i: 30 if i == 90 else 9)) == []


def test_a_series_that_is_too_short_says_so() -> None:
    """Nothing was measured, so nothing held."""
    assert growth([]) == ["0 samples say nothing"]


@needs_proc
def test_memory_and_descriptors_of_a_process_are_measured() -> None:
    """What it takes is what is read."""
    before = sample(os.getpid())
    pipes, memory = [os.pipe() for _ in range(5)], bytearray(b"x" * 64_000_000)
    after = sample(os.getpid())
    for pair in pipes:
        for end in pair:
            os.close(end)
    assert before is not None
    assert after is not None
    assert after.descriptors == before.descriptors + 10
    assert after.megabytes > before.megabytes + len(memory) / 2**20 * 0.9


@needs_proc
def test_processes_are_found_below_the_one_that_started_them() -> None:
    """The children of children as well; what has ended has no measures."""
    child = [sys.executable, "-c", "import subprocess; subprocess.run(['/bin/cat'])"]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603 - a fixed command
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"here\n")
        process.stdin.flush()
        process.stdout.readline()
        below = commands_below(os.getpid())  # beside what else tests have started
        assert process.pid in below
        assert [command.strip() for command in commands_below(process.pid).values()] == ["/bin/cat"]
        process.stdin.close()
    assert sample(process.pid) is None


def caller(*responses: httpx.Response) -> tuple[Caller, list[httpx.Request]]:
    """A caller to whom this is answered, one after the other, and what they send."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return responses[len(sent) - 1]

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://service")
    return Caller(client, Tally(), "ada"), sent


def problem(status: int, kind: str, detail: str = "") -> httpx.Response:
    return httpx.Response(status, json={"type": kind, "detail": detail}, headers={"retry-after": "0"})


DEATH = "Worker 7 of chat was killed by SIGKILL while it was handling the request. Whether it took effect ..."
BUSY = "urn:rehydrate:problem:turn-in-progress"


async def test_what_was_interrupted_is_sent_again_under_its_key() -> None:
    """After a worker's death, and where another request comes first; and it is counted."""
    ada, sent = caller(problem(502, "about:blank", DEATH), problem(409, BUSY), httpx.Response(200))
    response = await ada.send("turn", "POST", "/chat", body={"message": "Hello"}, expected={200})
    assert response.status_code == 200
    assert len({(request.headers["idempotency-key"], request.content) for request in sent}) == 1
    assert ada.tally.killed == 1
    assert ada.tally.statuses == {("turn", 502): 1, ("turn", 409): 1, ("turn", 200): 1}


@pytest.mark.parametrize(
    ("route", "response"),
    [
        ("/chat", problem(500, "urn:rehydrate:problem:internal")),
        ("/chat", problem(404, "urn:rehydrate:problem:session-not-found")),
        ("/chat", problem(502, "urn:rehydrate:problem:agent-failed")),
        ("/chat", problem(502, "about:blank", "The handler of chat failed with KeyError")),
        ("/chat", problem(504, "about:blank", "Worker 7 of chat did not answer within 28 s and was killed")),
        ("/sessions", problem(409, BUSY)),
    ],
)
async def test_what_nothing_explains_is_refused(route: str, response: httpx.Response) -> None:
    """A fault of the service, and what is not documented for the route, are not sent again."""
    ada, sent = caller(response, httpx.Response(200))
    with pytest.raises(Refused, match=str(response.status_code)):
        await ada.send("turn", "POST", route, expected={200})
    assert len(sent) == 1
