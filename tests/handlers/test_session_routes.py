"""What people do with their sessions beside talking: the routes of the sessions function."""

import json
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from handlers import cursor, openapi, sessions, views
from handlers.identity import identify
from handlers.problems import Kind
from handlers.settings import Settings
from memory.codec import partition, turn_key
from memory.turns import Session, utc_now
from tests.conftest import EVENT_FILES, TABLE, damage, event_named, keys_of, noise, say, store_at
from tests.handlers.conftest import Reply, Service, configure

ROOT = Path(__file__).parent.parent.parent


class Person:
    """Somebody who is signed in, and calls the API."""

    def __init__(self, service: Service, name: str | None = None) -> None:
        self.service = service
        self.name = name or uuid.uuid4().hex

    @property
    def owner(self) -> str:
        claims = {"iss": "https://login.example.com/", "sub": self.name}
        event = {"requestContext": {"authorizer": {"jwt": {"claims": claims}}}}
        return identify(event, Settings(identity_sources=("jwt",))).owner

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> Reply:
        return self.service.send(method, path, body, user=self.name, **options)

    def get(self, path: str, **query: Any) -> Any:
        reply = self.send("GET", path, query={name: str(value) for name, value in query.items()})
        assert reply.status == 200, reply.body
        return reply.body

    def create(self, title: str | None = None, **headers: str) -> str:
        reply = self.send("POST", "/sessions", {"title": title} if title else None, **headers)
        assert reply.status == 201, reply.body
        created: str = reply.body["id"]
        return created

    def session(self, name: str = "talk") -> Session:
        return Session(owner=self.owner, id=name)

    def talk(
        self, *messages: str, session: str = "talk", tokens: int = 10, answer: str | None = None, **options: Any
    ) -> None:
        """Turns in a session, without a model."""
        for message in messages:
            log = self.service.store.log(**options)
            self.service.run(say(log, self.session(session), message, tokens=tokens, answer=answer))

    def ids(self) -> list[str]:
        """All sessions that are listed."""
        found: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            page = self.get("/sessions", **query)
            found += [session["id"] for session in page["sessions"]]
            if page["next_cursor"] is None:
                return found
            query["cursor"] = page["next_cursor"]


@pytest.fixture
def ada(service: Service, monkeypatch: pytest.MonkeyPatch) -> Person:
    """A person, where a JWT authorizer says who asks."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt")
    monkeypatch.setattr(sessions, "INDEX_SECONDS", 0.05)
    return Person(service)


class TestMaking:
    def test_a_session_has_an_id_and_is_there(self, ada: Person) -> None:
        """POST /sessions gives an id, under which the session is found, listed and talked in."""
        reply = ada.send("POST", "/sessions", {"title": " My\n trip "})
        assert (reply.status, reply.body["title"]) == (201, "My trip")
        assert ada.ids() == [reply.body["id"]]
        ada.talk("Hello", session=reply.body["id"])
        found = ada.get(f"/sessions/{reply.body['id']}")
        assert (found["title"], found["turns"], found["window"]["turns"]) == ("My trip", 1, 1)

    def test_a_body_need_not_be_sent(self, ada: Person) -> None:
        """Without a title the first message gives one."""
        session = ada.create()
        assert ada.get(f"/sessions/{session}")["title"] == ""
        assert ada.service.say("My name is Ada", session=session, user=ada.name).status == 200
        assert ada.get(f"/sessions/{session}")["title"] == "My name is Ada"

    def test_the_same_key_makes_one_session(self, ada: Person) -> None:
        """A copy of the request gets the first one's session, and says so; another request under the key is refused."""
        first = ada.send("POST", "/sessions", {"title": "a"}, idempotency_key="k")
        again = ada.send("POST", "/sessions", {"title": "a"}, idempotency_key="k")
        other = ada.send("POST", "/sessions", {"title": "b"}, idempotency_key="k")
        assert again.body == first.body
        assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
        assert (other.status, other.body["type"]) == (422, Kind.KEY_REUSED.urn)
        assert ada.ids() == [first.body["id"]]

    def test_a_new_caller_gets_a_token_with_the_first_session(self, service: Service) -> None:
        """Where tokens are the identity, making a session is a way to begin."""
        made = service.send("POST", "/sessions")
        assert (made.status, made.line["identity"]) == (201, "new")
        assert made.token
        assert service.send("GET", f"/sessions/{made.body['id']}", token=made.token).status == 200

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"title": ""}, "title"),
            ({"title": "x" * 81}, "title"),
            ({"title": 1}, "title"),
            ({"name": "x"}, "name"),
            ("[]", "body"),
            ("{", "body"),
        ],
    )
    def test_bad_input_is_refused_by_name(self, ada: Person, body: Any, field: str) -> None:
        """The problem names the field, and nothing was made."""
        reply = ada.send("POST", "/sessions", body)
        assert (reply.status, reply.body["field"]) == (400, field)
        assert ada.ids() == []


class TestListing:
    def test_the_last_active_comes_first(self, ada: Person) -> None:
        """Sessions are listed by their last activity, with title and times."""
        start = utc_now() - timedelta(days=1)
        for minutes, name in enumerate(["a", "b", "c", "a"]):
            ada.talk(f"in {name}", session=name, clock=lambda m=minutes: start + timedelta(minutes=m))
        page = ada.get("/sessions")
        assert [session["id"] for session in page["sessions"]] == ["a", "c", "b"]
        assert page["next_cursor"] is None
        assert page["sessions"][0].keys() == {"id", "title", "created_at", "last_active_at"}
        assert page["sessions"][0]["title"] == "in a"

    def test_pages_hold_everything_once(self, ada: Person) -> None:
        """Page by page the whole list comes, whatever the limit."""
        made = {ada.create() for _ in range(7)}
        listed = ada.ids()
        assert (len(listed), set(listed)) == (7, made)

    @pytest.mark.once
    def test_ten_thousand_are_listed_while_others_become_active(
        self, ada: Person, dynamodb_local: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each session that was not active while the pages were read comes exactly once, among many of one minute."""
        configure(monkeypatch, IDENTITY_SOURCES="jwt", DYNAMODB_ENDPOINT=dynamodb_local)  # in memory, and so fast
        ada.service.store = store_at(dynamodb_local)
        ada.talk("hello", session="first", clock=lambda: utc_now() - timedelta(days=1))
        fill(ada, "first", 10_000)
        found: list[str] = []
        active: set[str] = set()
        query: dict[str, Any] = {"limit": 100}
        while True:
            page = ada.get("/sessions", **query)
            found += [session["id"] for session in page["sessions"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
            for name in {found[-1], found[0], f"s{len(found) * 7919 % 10_000}"}:
                ada.talk("hello again", session=name)
                active.add(name)
        quiet = [name for name in found if name not in active]
        assert len(quiet) == len(set(quiet))
        assert set(quiet) | active == {"first", *(f"s{i}" for i in range(10_000))}
        assert len(active) > 150

    @pytest.mark.parametrize("limit", ["0", "101", "-1", "many", "", "5,5"])
    def test_a_limit_that_makes_no_sense_is_refused(self, ada: Person, limit: str) -> None:
        """A page has 1 to 100 entries."""
        reply = ada.send("GET", "/sessions", query={"limit": limit})
        assert (reply.status, reply.body["field"]) == (400, "limit")

    @pytest.mark.parametrize(("path", "status"), [("/sessions", 200), ("/sessions/talk", 404)])
    def test_no_cache_keeps_what_is_a_callers(self, ada: Person, path: str, status: int) -> None:
        """An answer says that it is not to be kept: the next one who asks for the same path may be somebody else."""
        reply = ada.send("GET", path)
        assert (reply.status, reply.headers["cache-control"]) == (status, "no-store")

    def test_nobody_who_brings_no_identity_has_a_list(self, service: Service) -> None:
        """Without a token there is no owner: that is 401, and no new identity."""
        reply = service.send("GET", "/sessions")
        assert (reply.status, reply.token) == (401, None)


WHAT = {"/sessions": "sessions", "/sessions/talk/turns": "turns.talk", "/sessions/talk/export": "export.talk"}
PLACES_THAT_ARE_NONE: list[Any] = [
    None,
    5,
    [],
    {"a": 1, "b": 2},
    ["no time", "talk"],
    ["2026-01-01T00:00:00+00:00", 3],
    ["2026-01-01T00:00:00+00:00", "é" * 500],
    [1, [], 0],
    [1, -5, 0],
    [1, "~", 0],
    [1, 10**12, 0],
    [1, 1, "x"],
    [1, 1, -1],
]


class TestCursors:
    def forged(self, cursor: str) -> list[str]:
        payload, signature = cursor.split(".")
        return [
            "",
            "x",
            ".",
            "é",
            "\ud800",
            payload,
            f"{payload}.",
            f"{payload}x.{signature}",
            cursor[:-1],
            cursor + "x",
        ]

    @pytest.mark.parametrize("path", ["/sessions", "/sessions/talk/turns", "/sessions/talk/export"])
    def test_what_was_not_given_out_is_refused(self, ada: Person, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        """A forged cursor, another caller's, or another list's is 400, and shows nothing."""
        bob = Person(ada.service)
        cursors = {}
        monkeypatch.setattr(views, "PAGE_BYTES", 300)
        for person in (ada, bob):
            person.talk("one", "two", "three")
            person.talk("one", "two", "three", session="other")
            for found in ("/sessions", "/sessions/talk/turns", "/sessions/other/turns", "/sessions/talk/export"):
                reply = person.send("GET", found, query={} if "export" in found else {"limit": "1"})
                cursors[person, found] = reply.headers.get("x-next-cursor") or reply.body["next_cursor"]
        own = cursors.pop((ada, path))
        assert ada.send("GET", path, query={"cursor": own}).status == 200
        for other in [*cursors.values(), *self.forged(own)]:
            reply = ada.send("GET", path, query={"cursor": other})
            assert (reply.status, reply.body.get("field")) == (400, "cursor"), other

    @pytest.mark.parametrize("path", WHAT)
    @pytest.mark.parametrize("place", PLACES_THAT_ARE_NONE, ids=str)
    def test_a_place_that_is_none_is_refused(self, ada: Person, path: str, place: Any) -> None:
        """Whoever signs a cursor of their own, with what they know of themselves, makes no fault of the service."""
        ada.talk("one")
        made = cursor.encode(place, owner=ada.owner, what=WHAT[path])
        reply = ada.send("GET", path, query={"cursor": made})
        assert (reply.status, reply.body.get("field")) == (400, "cursor")

    def test_a_cursor_ends_with_the_history_it_was_made_for(self, ada: Person) -> None:
        """After a delete the same id is another conversation, in which old cursors mean nothing."""
        ada.talk("one", "two")
        cursor = ada.get("/sessions/talk/turns", limit=1)["next_cursor"]
        ada.send("DELETE", "/sessions/talk")
        ada.talk("three", "four")
        reply = ada.send("GET", "/sessions/talk/turns", query={"cursor": cursor})
        assert (reply.status, reply.body["type"]) == (409, Kind.HISTORY_CHANGED.urn)


def fill(person: Person, model: str, number: int) -> None:
    """Put so many sessions beside one that is there: like it, and active in the one or other of a hundred minutes."""
    client = person.service.store.client
    key = {"pk": {"S": partition(person.session(model))}, "sk": {"S": "state"}}
    item = client.get_item(TableName=TABLE, Key=key)["Item"]
    items = [
        item
        | {
            "pk": {"S": partition(person.session(f"s{i}"))},
            "active_at": {"S": f"2026-01-01T{i * 37 % 100 // 60:02}:{i * 37 % 100 % 60:02}Z"},
        }
        for i in range(number)
    ]
    for i in range(0, number, 25):
        client.batch_write_item(RequestItems={TABLE: [{"PutRequest": {"Item": one}} for one in items[i : i + 25]]})


class TestReading:
    def test_a_session_says_what_the_model_would_be_shown(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """Title, times, number of turns, and the window as it is now."""
        ada.talk("one", "two", "three", tokens=10)
        configure(monkeypatch, IDENTITY_SOURCES="jwt", TOKEN_LIMIT="25")
        found = ada.get("/sessions/talk")
        assert (found["id"], found["title"], found["turns"]) == ("talk", "one", 3)
        assert found["window"] == {"turns": 2, "turns_shortened": 0, "tokens": 20, "token_limit": 25}

    def test_a_session_says_that_its_newest_turn_would_be_shown_in_part(
        self, ada: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A turn that exceeds the limit does not make the window blank."""
        ada.talk("one", noise(5000), tokens=4000)
        configure(monkeypatch, IDENTITY_SOURCES="jwt", TOKEN_LIMIT="1000")
        window = ada.get("/sessions/talk")["window"]
        assert (window["turns"], window["turns_shortened"]) == (1, 1)
        assert 800 < window["tokens"] <= window["token_limit"] == 1000

    def test_turns_show_what_was_said_and_which_tools_were_called(self, ada: Person) -> None:
        """Messages with roles, tool calls with arguments, results with the call that they belong to."""
        ada.service.say("Add up 1, 2 and 3.5", session="talk", user=ada.name)
        ada.service.say("please fail with status 500", session="talk", user=ada.name)
        failed, complete = ada.get("/sessions/talk/turns")["turns"]
        assert (failed["number"], failed["status"], failed["failure"]) == (2, "failed", "model_error")
        assert [message["text"] for message in failed["messages"]] == ["please fail with status 500"]
        assert complete["status"] == "complete"
        assert complete["started_at"] < complete["finished_at"]
        user, call, result, answer = complete["messages"]
        assert (user["role"], user["text"]) == ("user", "Add up 1, 2 and 3.5")
        assert [(made["name"], made["arguments"]) for made in call["tool_calls"]] == [
            ("total", {"numbers": [1, 2, 3.5]})
        ]
        assert (result["role"], result["text"]) == ("tool", "6.5")
        assert result["tool_call_id"] == call["tool_calls"][0]["id"]
        assert "6.5" in answer["text"]

    @pytest.mark.parametrize("arguments", ['{"a": "\\ud83d"}', '{"a": NaN}', "[" * 1_000 + "]" * 1_000])
    def test_arguments_that_no_response_can_hold_are_text(self, arguments: str) -> None:
        """What a model made up as a tool's arguments is shown as it is, and never keeps a history from being read."""
        call = {"block_type": "tool_call", "tool_name": "total", "tool_kwargs": arguments}
        view = views.message({"role": "assistant", "blocks": [call]})
        assert json.loads(view.model_dump_json())["tool_calls"][0]["arguments"] == arguments

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_turns_come_page_by_page(self, ada: Person, limit: int) -> None:
        """The newest first, each once, also where an answer was given again across a page's edge."""
        ada.service.say("one", session="talk", user=ada.name)
        ada.service.say("two", session="talk", user=ada.name)
        assert ada.send("POST", "/sessions/talk/turns/2/regenerate").status == 200
        ada.service.say("three", session="talk", user=ada.name)
        found: list[tuple[int, str]] = []
        query: dict[str, Any] = {"limit": limit}
        while True:
            page = ada.get("/sessions/talk/turns", **query)
            assert len(page["turns"]) <= limit
            found += [(turn["number"], turn["status"]) for turn in page["turns"]]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        assert found == [(4, "complete"), (3, "complete"), (2, "superseded"), (1, "complete")]

    def test_turns_that_do_not_fit_a_response_are_said_to(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """A page ends where the response is full, and a turn that is larger than one comes without its messages."""
        monkeypatch.setattr(views, "PAGE_BYTES", 2_000)
        ada.talk("small", "x" * 400, "y" * 5_000, "small again")
        pages = [ada.get("/sessions/talk/turns")]
        while cursor := pages[-1]["next_cursor"]:
            pages.append(ada.get("/sessions/talk/turns", cursor=cursor))
        turns = [turn for page in pages for turn in page["turns"]]
        assert [(turn["number"], turn["too_large"], len(turn["messages"])) for turn in turns] == [
            (4, False, 2),
            (3, True, 0),
            (2, False, 2),
            (1, False, 2),
        ]
        assert [len(page["turns"]) for page in pages] == [3, 1]

    def test_a_damaged_turn_hides_no_other(self, ada: Person) -> None:
        """What cannot be read is listed as damaged, in its place, and so in an export."""
        ada.talk("one", "two", "three")
        damage(ada.service.store, 2, "payload", {"B": b"not json"}, session=ada.session())
        turns = ada.get("/sessions/talk/turns")["turns"]
        assert [(turn["number"], turn["status"], len(turn["messages"])) for turn in turns] == [
            (3, "complete", 2),
            (2, "damaged", 0),
            (1, "complete", 2),
        ]
        assert [(line["turn"], line["status"]) for line in exported(ada)][2] == (2, "damaged")


def exported(person: Person, session: str = "talk", *, seconds: float = 28) -> list[dict[str, Any]]:
    """All lines of an export, page by page; none of the pages is larger than Lambda lets through."""
    lines: list[dict[str, Any]] = []
    query: dict[str, str] = {}
    while True:
        reply = person.send("GET", f"/sessions/{session}/export", query=query, seconds=seconds)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/jsonl")
        assert len(json.dumps(reply.body)) <= 6_000_000
        assert reply.body.endswith("\n") or not reply.body
        lines += [json.loads(line) for line in reply.body.splitlines()]
        if "x-next-cursor" not in reply.headers:
            return lines
        query = {"cursor": reply.headers["x-next-cursor"]}


def whole(lines: list[dict[str, Any]]) -> list[tuple[int, int, Any]]:
    """(turn, index, message) of an export, with the parts of large messages put together."""
    found: dict[tuple[int, int], Any] = {}
    for line in lines:
        place = line["turn"], line["index"]
        if "message" in line:
            found[place] = line["message"]
        else:
            assert line["part"] == found.get(place, "").count("\0")
            found[place] = found.get(place, "") + line["json_part"] + "\0"
    return [
        (*place, json.loads(found[place].replace("\0", "")) if isinstance(found[place], str) else found[place])
        for place in found
    ]


class TestExport:
    def test_it_is_one_line_a_message_oldest_first(self, ada: Person) -> None:
        """Each line has the message as LlamaIndex dumps it, its place, and what became of its turn."""
        ada.talk("one", "two")
        lines = exported(ada)
        assert [(line["turn"], line["index"], line["message"]["role"]) for line in lines] == [
            (1, 0, "user"),
            (1, 1, "assistant"),
            (2, 0, "user"),
            (2, 1, "assistant"),
        ]
        assert lines[0]["message"]["blocks"] == [{"block_type": "text", "text": "one"}]
        assert {line["status"] for line in lines} == {"complete"}

    def test_a_session_of_any_length_comes_whole(self, ada: Person) -> None:
        """Pages stay below Lambda's limit as it counts, with quotes, control characters and emoji; none is lost."""
        answers = ['"' * 900_000, "\u0001" * 700_000, "🌍" * 900_000, "é\\" * 900_000, "short", "x" * 6_000_000]
        for answer in answers:
            ada.talk("go on", answer=answer)
        found = whole(exported(ada))
        assert [message["blocks"][0]["text"] for _, index, message in found if index == 1] == answers
        assert [(turn, index) for turn, index, _ in found] == [(n, i) for n in range(1, 7) for i in (0, 1)]

    @pytest.mark.parametrize("room", [1, 500, 700, 2_000])
    def test_pages_may_end_anywhere(self, ada: Person, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        """Wherever a page ends, the next one goes on with the very next line."""
        ada.talk("one", "two", "three" * 100, "four")
        everything = exported(ada)
        monkeypatch.setattr(views, "PAGE_BYTES", room)
        monkeypatch.setattr(views, "PART_CHARS", 150)
        assert whole(exported(ada)) == whole(everything)

    def test_a_page_ends_where_the_time_does(self, ada: Person) -> None:
        """Turns that take long to fetch, as failed ones do, are never more than a request has time for."""
        ada.talk("one", "two", "three")
        assert len(ada.send("GET", "/sessions/talk/export", seconds=1).body.splitlines()) == 2
        assert exported(ada, seconds=1) == exported(ada)

    def test_it_says_what_was_superseded_and_what_failed(self, ada: Person) -> None:
        """Everything that was said is in it, and marked where the model does not see it."""
        ada.service.say("one", session="talk", user=ada.name)
        ada.send("POST", "/sessions/talk/turns/1/regenerate")
        ada.service.say("please fail with status 500", session="talk", user=ada.name)
        by_turn = {line["turn"]: line["status"] for line in exported(ada)}
        assert by_turn == {1: "superseded", 2: "complete", 3: "failed"}

    def test_an_empty_session_is_an_empty_export(self, ada: Person) -> None:
        """Nothing was said: no line."""
        assert exported(ada, ada.create()) == []


class TestRenaming:
    def test_a_title_can_be_changed(self, ada: Person) -> None:
        """The new title is there at once, in the list as well, and no message changes it."""
        ada.talk("one")
        reply = ada.send("PATCH", "/sessions/talk", {"title": "Other"})
        assert (reply.status, reply.body["title"]) == (200, "Other")
        ada.talk("two")
        assert ada.get("/sessions")["sessions"][0]["title"] == "Other"

    @pytest.mark.parametrize("body", [None, {}, {"title": None}, {"title": " "}, {"title": "x" * 81}])
    def test_a_title_that_is_none_is_refused(self, ada: Person, body: Any) -> None:
        """Nothing is changed by a request that is not valid."""
        ada.talk("one")
        assert ada.send("PATCH", "/sessions/talk", body).status == 400
        assert ada.get("/sessions/talk")["title"] == "one"


class TestDeleting:
    def test_a_session_is_gone_with_all_it_held(self, ada: Person) -> None:
        """204, and from then on it is unknown; nothing of it is left in the table but its tombstone."""
        ada.talk("one", "two", answer="x" * 500_000)
        assert ada.send("DELETE", "/sessions/talk").status == 204
        assert ada.ids() == []
        assert ada.send("GET", "/sessions/talk").status == 404
        assert items_of(ada) == ["state"]

    def test_a_large_session_is_out_of_sight_first(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """202 where removing takes longer than a request should; repeating it finishes, then it is unknown."""
        monkeypatch.setattr("memory.items.SWEPT_AT_ONCE", 2)
        ada.talk("one", "two", "three", "four")
        first = ada.send("DELETE", "/sessions/talk")
        assert (first.status, first.body["finished"]) == (202, False)
        assert ada.send("GET", "/sessions/talk").status == 404
        assert ada.send("DELETE", "/sessions/talk").status == 204
        assert ada.send("DELETE", "/sessions/talk").status == 404
        assert items_of(ada) == ["state"]

    def test_everything_of_a_caller_can_be_deleted(self, ada: Person) -> None:
        """DELETE /sessions leaves nothing of the caller, however many sessions there are, and nobody else's less."""
        bob = Person(ada.service)
        bob.talk("mine")
        for i in range(30):
            ada.talk("hello", session=f"s{i}")
        reply = ada.send("DELETE", "/sessions")
        assert (reply.status, reply.line["deleted_sessions"]) == (204, 30)
        assert ada.ids() == []
        assert [items_of(ada, f"s{i}") for i in range(30)] == [["state"]] * 30
        assert bob.ids() == ["talk"]

    def test_what_the_index_shows_late_is_deleted_too(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """A session that the index did not list yet is found when it is listed again."""
        ada.talk("one")
        listed = sessions.DynamoDBSessions.listed
        lists = 0

        async def late(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal lists
            lists += 1
            return await listed(self, *arguments, **options) if lists > 1 else []

        monkeypatch.setattr(sessions.DynamoDBSessions, "listed", late)
        assert ada.send("DELETE", "/sessions").status == 204
        assert ada.send("GET", "/sessions/talk").status == 404

    @pytest.mark.parametrize("path", ["/sessions/", "/sessions//", "/sessions\n"])
    def test_a_missing_id_is_not_everything(self, service: Service, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
        """DELETE /sessions/ is no DELETE /sessions, also through a REST API, which may end a path with a slash."""
        configure(monkeypatch, IDENTITY_SOURCES="header")
        made = service.send("POST", "/sessions", x_user_id="ada").body["id"]
        event = event_named("sessions_rest_turns") | {"httpMethod": "DELETE", "path": path, "resource": path}
        event["headers"] |= {"x-user-id": "ada"}
        for asked in (service.invoke(event), service.send("DELETE", path, x_user_id="ada")):
            assert (asked.status, asked.body["type"]) == (404, Kind.NOT_FOUND.urn)
        assert service.send("GET", f"/sessions/{made}", x_user_id="ada").status == 200

    def test_too_much_for_one_request_is_said(self, ada: Person) -> None:
        """Where the time ends first the answer is 202, and the same request again goes on."""
        for i in range(3):
            ada.talk("hello", session=f"s{i}")
        assert ada.send("DELETE", "/sessions", seconds=2.001).status == 202
        assert ada.send("DELETE", "/sessions").status == 204
        assert ada.ids() == []


def items_of(person: Person, session: str = "talk") -> list[str]:
    return keys_of(person.service.store, person.session(session))


class TestForking:
    def test_a_fork_goes_on_from_where_it_branched_off(self, ada: Person) -> None:
        """The new session has the turns up to that one; both go on apart."""
        for message in ("My name is Ada", "My city is Paris", "My name is Bob"):
            ada.service.say(message, session="talk", user=ada.name)
        reply = ada.send("POST", "/sessions/talk/fork", {"turn": 2, "title": "Before Bob"})
        assert (reply.status, reply.body["title"]) == (201, "Before Bob")
        fork = reply.body["id"]
        assert ada.service.say("What is my name?", session=fork, user=ada.name).body["answer"] == "Your name is Ada."
        assert ada.service.say("What is my name?", session="talk", user=ada.name).body["answer"] == "Your name is Bob."
        assert [turn["number"] for turn in ada.get(f"/sessions/{fork}/turns")["turns"]] == [3, 2, 1]

    def test_without_a_turn_it_branches_off_at_the_newest(self, ada: Person) -> None:
        """And takes over the title."""
        ada.talk("one", "two")
        reply = ada.send("POST", "/sessions/talk/fork")
        assert (reply.status, reply.body["title"]) == (201, "one")
        assert ada.get(f"/sessions/{reply.body['id']}")["turns"] == 2

    def test_the_same_key_makes_one_fork(self, ada: Person) -> None:
        """A copy of the request gets the first one's session, also when the conversation went on since."""
        ada.talk("one", "two")
        first = ada.send("POST", "/sessions/talk/fork", idempotency_key="k")
        ada.talk("three")
        again = ada.send("POST", "/sessions/talk/fork", idempotency_key="k")
        assert again.body == first.body
        assert again.headers["idempotent-replayed"] == "true"
        assert ada.send("POST", "/sessions/talk/fork", {"turn": 1}, idempotency_key="k").status == 422
        assert len(ada.ids()) == 2

    @pytest.mark.parametrize(("turn", "status"), [(3, 404), (10**10 - 1, 404), (0, 400), (-1, 400), ("1", 400)])
    def test_a_turn_that_is_not_there_is_refused(self, ada: Person, turn: Any, status: int) -> None:
        """No such turn, no fork."""
        ada.talk("one", "two")
        assert ada.send("POST", "/sessions/talk/fork", {"turn": turn}).status == status
        assert ada.ids() == ["talk"]

    def test_a_fork_that_was_made_outlives_its_source(self, ada: Person) -> None:
        """A copy of the request gets the fork that the first one made, though what was forked is gone."""
        ada.talk("one")
        first = ada.send("POST", "/sessions/talk/fork", idempotency_key="k")
        ada.send("DELETE", "/sessions/talk")
        again = ada.send("POST", "/sessions/talk/fork", idempotency_key="k")
        assert (again.status, again.body) == (201, first.body)

    def test_a_fork_that_takes_too_long_is_none(self, ada: Person) -> None:
        """Where the time ends first the answer is 503, and nothing of the new session is seen."""
        ada.talk("one", "two")
        reply = ada.send("POST", "/sessions/talk/fork", seconds=2.005)
        assert (reply.status, reply.body["type"]) == (503, Kind.UNAVAILABLE.urn)
        assert ada.ids() == ["talk"]

    def test_an_empty_session_cannot_be_forked(self, ada: Person) -> None:
        """There is no turn to branch off at."""
        assert ada.send("POST", f"/sessions/{ada.create()}/fork").status == 404


class TestRegenerating:
    def test_the_newest_turn_is_answered_again(self, ada: Person) -> None:
        """The new turn takes the old one's place before the model, and the old one stays for people to see."""
        ada.service.say("My name is Ada", session="talk", user=ada.name)
        ada.service.say("What is my name?", session="talk", user=ada.name)
        reply = ada.send("POST", "/sessions/talk/turns/2/regenerate")
        assert (reply.status, reply.body["turn"], reply.body["answer"]) == (200, 3, "Your name is Ada.")
        assert reply.body["memory"]["turns_in_window"] == 1
        received = [m["content"] for m in ada.service.model_received()[-1] if m["role"] == "user"]
        assert received == ["My name is Ada", "What is my name?"]
        ada.service.say("Thank you", session="talk", user=ada.name)
        received = [m["content"] for m in ada.service.model_received()[-1] if m["role"] == "user"]
        assert received == ["My name is Ada", "What is my name?", "Thank you"]

    def test_only_the_newest_can_be(self, ada: Person) -> None:
        """An older turn is 409, one that never was is 404, and so is whatever is no number."""
        ada.talk("one", "two")
        paths = {n: f"/sessions/talk/turns/{n}/regenerate" for n in ("1", "3", "0", "-1", "x", "9" * 30, "٢")}
        statuses = {n: ada.send("POST", path).status for n, path in paths.items()}
        assert statuses == {"1": 409, "3": 404, "0": 404, "-1": 404, "x": 404, "9" * 30: 404, "٢": 404}

    def test_a_failure_leaves_the_old_answer(self, ada: Person) -> None:
        """The model fails: the old answer is still the one that it is shown, and can be asked for again."""
        ada.service.say("My name is Ada", session="talk", user=ada.name)
        ada.service.say("please fail with status 500", session="talk", user=ada.name)
        assert [ada.send("POST", f"/sessions/talk/turns/{n}/regenerate").status for n in (2, 2, 4)] == [502] * 3
        assert ada.service.say("What is my name?", session="talk", user=ada.name).body["answer"] == "Your name is Ada."

    def test_the_same_key_is_answered_once(self, ada: Person) -> None:
        """A copy gets the stored answer, though the turn is not the newest any more."""
        ada.service.say("Hello", session="talk", user=ada.name)
        first = ada.send("POST", "/sessions/talk/turns/1/regenerate", idempotency_key="k")
        again = ada.send("POST", "/sessions/talk/turns/1/regenerate", idempotency_key="k")
        assert again.body == first.body
        assert again.headers["idempotent-replayed"] == "true"


ROUTES_OF_A_SESSION = [
    ("GET", "/sessions/{id}", None),
    ("PATCH", "/sessions/{id}", {"title": "x"}),
    ("DELETE", "/sessions/{id}", None),
    ("GET", "/sessions/{id}/turns", None),
    ("GET", "/sessions/{id}/export", None),
    ("POST", "/sessions/{id}/fork", None),
    ("POST", "/sessions/{id}/turns/1/regenerate", None),
]


def test_the_routes_of_a_session_are_all_tried() -> None:
    """No route with a session in its path is missing here."""
    tried = {(method, path.replace("turns/1/", "turns/{n}/")) for method, path, _ in ROUTES_OF_A_SESSION}
    assert tried == {route for route in openapi.OPERATIONS if "{id}" in route[1]}


@pytest.mark.parametrize(("method", "path", "body"), ROUTES_OF_A_SESSION)
def test_an_unknown_session_is_the_same_404_everywhere(ada: Person, method: str, path: str, body: Any) -> None:
    """Never there, another's, deleted, expired or no id at all: every route says the same, and changes nothing."""
    bob = Person(ada.service)
    bob.talk("secret", session="bobs")
    ada.talk("one", session="deleted")
    ada.send("DELETE", "/sessions/deleted")
    ada.talk("one", session="expired", retention=timedelta(days=1), clock=lambda: utc_now() - timedelta(days=3))
    replies = [
        ada.send(method, path.replace("{id}", session), body)
        for session in ("never", "bobs", "deleted", "expired", "a b", "x" * 129, "%2e", "ü")
    ]
    assert {reply.status for reply in replies} == {404}
    assert {json.dumps(reply.body) for reply in replies} == {json.dumps(replies[0].body)}
    assert replies[0].body["type"] == Kind.SESSION_NOT_FOUND.urn
    assert bob.get("/sessions/bobs")["title"] == "secret"


def test_a_turn_is_gone_after_its_days(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it expired, a turn is neither listed nor shown to the model, though the table still has it."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt", RETENTION_DAYS="2")
    ada.talk("My name is Ada", retention=timedelta(days=2), clock=lambda: utc_now() - timedelta(days=2, hours=1))
    reply = ada.service.say("What is my name?", session="talk", user=ada.name)
    assert "don't know" in reply.body["answer"]
    assert [turn["number"] for turn in ada.get("/sessions/talk/turns")["turns"]] == [2]
    assert turn_key(1, 1) in items_of(ada)


def test_each_request_is_one_line(ada: Person) -> None:
    """Route, owner, session, cost and outcome; never a title or anything that was said."""
    ada.talk("My code is xyzzy")
    line = ada.send("PATCH", "/sessions/talk", {"title": "xyzzy"}).line
    expected = {"message": "request", "route": "PATCH /sessions/{id}", "status": 200, "session_id": "talk"}
    assert (expected | {"identity": "jwt", "outcome": "done", "dynamodb_calls": 2}).items() <= line.items()
    assert "xyzzy" not in json.dumps(line)


def test_the_function_starts_without_llama_index() -> None:
    """Neither the sessions function nor the sweeper imports LlamaIndex, and so they start in a moment."""
    program = (
        "import sys; import handlers.sessions, handlers.sweep; print([m for m in sys.modules if 'llama_index' in m])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 - a fixed command
    assert done.stdout.strip() == "[]"


EVENTS = {
    "sessions_create": ("jwt", 201),
    "sessions_list": ("jwt", 200),
    "sessions_url_list": ("iam", 200),
    "sessions_rest_turns": ("cognito", 200),
    "sessions_custom_domain_turns": ("jwt", 200),
    "sessions_rest_custom_domain_turns": ("cognito", 200),
    "sessions_rest_proxy_turns": ("cognito", 200),
}
WITH_TOKEN = ["sessions_alb_list"]


@pytest.mark.parametrize("name", EVENTS)
def test_the_events_of_the_examples_are_answered(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """HTTP APIs, REST APIs and function URLs get through to the routes, by the identity that each of them proves."""
    source, status = EVENTS[name]
    configure(monkeypatch, IDENTITY_SOURCES=source)
    # So that the default session of each of the two users is there.
    service.invoke(event_named("chat_rest_cognito"))
    service.invoke(event_named("chat_jwt") | {"body": '{"message": "Hello"}', "isBase64Encoded": False})
    reply = service.invoke(event_named(name))
    assert (reply.status, reply.line["identity"]) == (status, source)


@pytest.mark.parametrize("name", WITH_TOKEN)
def test_the_events_with_a_token_are_answered(service: Service, name: str) -> None:
    """The examples that carry a token show the sessions of its owner."""
    token = service.say("Hello").token
    assert token
    reply = service.invoke(json.loads(json.dumps(event_named(name)).replace("TOKEN", token)))
    assert (reply.status, [one["id"] for one in reply.body["sessions"]]) == (200, ["default"])


def test_every_example_event_is_tried() -> None:
    """No event of the sessions function lies in `events/` that these tests do not know."""
    assert {file.stem for file in EVENT_FILES if file.stem.startswith("sessions")} == {*EVENTS, *WITH_TOKEN}


class TestCors:
    ORIGIN = "https://www.example.com"

    def test_it_is_off_unless_origins_are_named(self, ada: Person) -> None:
        """No page of another origin can read a response."""
        reply = ada.send("GET", "/sessions", origin=self.ORIGIN)
        assert not [name for name in reply.headers if name.startswith("access-control")]

    def test_named_origins_may_call(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """They get the headers, problems included, and the others do not."""
        configure(monkeypatch, IDENTITY_SOURCES="jwt", CORS_ORIGINS=f"https://other.example.com,{self.ORIGIN}")
        for path in ("/sessions", "/sessions/unknown", "/nowhere"):
            headers = ada.send("GET", path, origin=self.ORIGIN).headers
            assert headers["access-control-allow-origin"] == self.ORIGIN
            assert "x-session-token" in headers["access-control-expose-headers"]
            assert "access-control-allow-origin" not in ada.send("GET", path, origin="https://evil.example.com").headers

    def test_a_preflight_is_answered_to_whoever_asks(self, ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """A browser asks without any identity, and hears which headers it may send."""
        configure(monkeypatch, IDENTITY_SOURCES="jwt", CORS_ORIGINS=self.ORIGIN)
        reply = ada.service.send("OPTIONS", "/sessions/talk", origin=self.ORIGIN, access_control_request_method="PATCH")
        assert reply.status == 204
        assert "PATCH" in reply.headers["access-control-allow-methods"]
        assert {"idempotency-key", "x-session-token"} <= set(reply.headers["access-control-allow-headers"].split(","))


def test_deleting_everything_ends_an_anonymous_identity(service: Service) -> None:
    """Whoever else has the old token, on a lost device for example, reaches nothing that is said from then on."""
    old = service.say("My name is Ada").token
    deleted = service.send("DELETE", "/sessions", token=old)
    assert (deleted.status, bool(deleted.cookies)) == (204, True)
    assert deleted.token
    service.say("My dog is Rex", token=deleted.token)
    assert service.send("GET", "/sessions", token=old).body["sessions"] == []
    assert len(service.send("GET", "/sessions", token=deleted.token).body["sessions"]) == 1


def test_deleting_everything_leaves_the_identity_that_somebody_else_gave(service: Service, monkeypatch: Any) -> None:
    """A caller whom an authorizer lets in gets no token."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt")
    service.say("My name is Ada", user="ada")
    assert service.send("DELETE", "/sessions", user="ada").token is None
