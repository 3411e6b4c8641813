"""Events as somebody hostile would have them: what a client can put into a request, and what no gateway ever sends."""

import base64
import json
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

CANARY = "canary-7f3a"
"""Stands in every message and title, and must not be in any log."""
LARGE = 4_500_000
"""Characters of the largest bodies; in base64 they fill the 6 MB that Lambda takes."""
TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\r\nx-injected: yes",
    "é🌍\u202e\u2028",
    "../../etc/passwd",
    "%00%ff%2e%2e%2f",
    "{{7*7}}${x}'\"<script>",
    "-1",
    "1e309",
    "NaN",
    "9" * 400,
    "x" * 20_000,
    "SESSION#a#b",
    "default",
    "0",
    "null",
    "text/plain",
    "cross-site",
)
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 10**30, [], {}, [None], [[]], {"": ""}, *TEXTS)
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "", "PROPFIND", "\ud800")
NAMES = (
    "x-session-token",
    "x-session-id",
    "idempotency-key",
    "idempotency-key",
    "authorization",
    "cookie",
    "x-user-id",
    "content-type",
    "origin",
    "sec-fetch-site",
)
WORDS = ("chat", "sessions", "turns", "regenerate", "fork", "export", "openapi.json", "default", "1", "2", "999", "0")

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """An event, and whether a gateway could have sent it."""

    event: Event
    from_a_gateway: bool


class Hostility:
    """A source of hostile events, made from real ones; the seed decides which."""

    def __init__(self, seed: int, shapes: list[Event]) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._shapes = shapes
        self.tokens: list[str] = []
        """Session tokens that were handed out, to send and to spoil."""

    def event(self) -> Hostile:
        """The next one."""
        chosen = self._random
        event = deepcopy(chosen.choice(self._shapes))
        if self.tokens:
            event = json.loads(json.dumps(event).replace("TOKEN", chosen.choice(self.tokens)))
        if chosen.random() < 0.7:
            self._reroute(event)
        ways: list[Callable[[Event], None]] = [self._body, self._headers, self._cookies, self._path, self._query]
        ways.append(self._prefix)
        for _ in range(chosen.choice([0, 1, 1, 1, 2, 3])):
            chosen.choice(ways)(event)
        broken = chosen.random() < 0.3
        if broken:
            for _ in range(chosen.choice([1, 1, 2, 5])):
                event = self._break(event)
        return Hostile(event=event, from_a_gateway=not broken)

    # ---- what a client can do ----------------------------------------------------------------------------------------

    def _reroute(self, event: Event) -> None:
        """Another route, asked for as it should be."""
        method, path = self._random.choice(
            [
                ("POST", "/chat"),
                ("POST", "/chat"),
                ("GET", "/sessions"),
                ("POST", "/sessions"),
                ("DELETE", "/sessions"),
                ("GET", "/sessions/default"),
                ("PATCH", "/sessions/default"),
                ("DELETE", "/sessions/default"),
                ("GET", "/sessions/default/turns"),
                ("GET", "/sessions/default/export"),
                ("POST", "/sessions/default/fork"),
                ("POST", "/sessions/default/turns/1/regenerate"),
                ("GET", "/openapi.json"),
                (self._random.choice(METHODS), "/chat"),
            ]
        )
        event["body"] = json.dumps({"title": CANARY} if method == "PATCH" else {"message": f"My name is {CANARY}"})
        if "sessions" in path and method == "POST":
            event["body"] = None
        event["isBase64Encoded"] = False
        if self._random.random() < 0.3 and isinstance(event.get("headers"), dict):
            event["headers"]["idempotency-key"] = self._random.choice(["key", "other-key", str(self._random.random())])
        _set_path(event, method, path)

    def _text(self) -> str:
        return self._random.choice([*TEXTS, *self.tokens[-3:]])

    def _body(self, event: Event) -> None:
        text = self._body_text()
        if self._random.random() < 0.4:
            event["isBase64Encoded"] = True
            content = self._random.choice(
                [text.encode("utf-8", "surrogatepass"), b"\xff\xfe\x00", text.encode("utf-16", "surrogatepass")]
            )
            text = base64.b64encode(content).decode()
            text = self._random.choice([text, text, text[:-1], text + "=", text.replace("+", "-"), f" {text}\n"])
        event["body"] = self._random.choice([text, text, text, text, None])

    def _body_text(self) -> str:
        chosen = self._random
        if chosen.random() < 0.05:
            return json.dumps({"message": CANARY + "x" * chosen.choice([40_000, 40_000, 40_000, LARGE])})
        fields: Event = {"message": chosen.choice([CANARY + self._text(), chosen.choice(VALUES)])}
        if chosen.random() < 0.4:
            fields["session_id"] = chosen.choice([*VALUES, "default", "other"])
        if chosen.random() < 0.3:
            fields[chosen.choice(["title", "turn", "__proto__", "\x00", CANARY])] = chosen.choice(VALUES)
        depth = chosen.choice([10, 1000, 100_000])
        return chosen.choice(
            [
                json.dumps(fields),
                json.dumps(fields),
                json.dumps(fields),
                json.dumps(fields, ensure_ascii=False),
                json.dumps(chosen.choice(VALUES)),
                json.dumps(fields)[:-3],
                json.dumps(fields) + " trailing",
                f'{{"message": "{CANARY}", "message": 7}}',
                json.dumps({"title": CANARY + self._text()}),
                json.dumps({"turn": chosen.choice(VALUES)}),
                '{"message": NaN}',
                "[" * depth + "]" * depth,
                '{"message":' * depth + "1" + "}" * depth,
                "message=" + self._text(),
                self._text(),
            ]
        )

    def _headers(self, event: Event) -> None:
        name = self._random.choice(NAMES)
        value = self._random.choice(
            [self._text(), "key", f"Bearer {self._text()}", self._spoilt_token(), self._spoilt_token()]
        )
        spelling = self._random.choice([name, name.upper(), name.title(), name.swapcase(), f"{name} "])
        headers = event.get("headers")
        if not isinstance(headers, dict):
            return
        headers[spelling] = value
        several = event.get("multiValueHeaders")
        if isinstance(several, dict):
            several[spelling] = [value, *self._random.choice([[], [self._text()], [value] * 50])]
            if self._random.random() < 0.2:
                event["headers"] = None
        if self._random.random() < 0.1:
            event["headers"] = {key.swapcase(): held for key, held in headers.items()}

    def _spoilt_token(self) -> str:
        token = self._random.choice(self.tokens) if self.tokens else "a.b.c"
        place = self._random.randrange(len(token) + 1)
        return self._random.choice([token, token, token[:place], token[:place] + "x" + token[place + 1 :], token + "."])

    def _cookies(self, event: Event) -> None:
        name = self._random.choice(["__Host-rehydrate", "rehydrate", "", "a"])
        pairs = [
            f"{name}={self._random.choice([self._text(), self._spoilt_token()])}"
            for _ in range(self._random.randint(1, 3))
        ]
        if event.get("version") == "2.0":
            event["cookies"] = pairs
        elif isinstance(event.get("headers"), dict):
            event["headers"]["Cookie"] = self._random.choice(["; ", ";", ","]).join(pairs)

    def _path(self, event: Event) -> None:
        places = [self._random.choice([*WORDS, *WORDS, self._text()]) for _ in range(self._random.randint(0, 5))]
        path = "/" + "/".join(places)
        path = self._random.choice([path, path, path + "/", "//" + path, quote(path, errors="surrogatepass")])
        _set_path(event, self._random.choice(METHODS[:5]), path)

    def _prefix(self, event: Event) -> None:
        """The same route under a custom domain's mapping, whatever that is called, or with a slash too many."""
        prefix = self._random.choice(["/v1", "/team/v1", "/sessions", "/chat", "/sessions/default", "/%2e", "/"])
        end = self._random.choice(["", "", "", "/", "//", "%2F", "\n"])
        if event.get("version") == "2.0":
            event["rawPath"] = event["requestContext"]["http"]["path"] = f"{prefix}{event['rawPath']}{end}"
        else:
            event["path"] = event["requestContext"]["path"] = f"{prefix}{event['path']}{end}"

    def _query(self, event: Event) -> None:
        name = self._random.choice(["limit", "cursor", "limit", "cursor", self._text()])
        value = self._random.choice([self._text(), "1", "100", "101"])
        event["queryStringParameters"] = {name: value}
        event["rawQueryString"] = quote(f"{name}={value}", errors="surrogatepass")
        if event.get("version") != "2.0":
            event["multiValueQueryStringParameters"] = {name: [value, self._text()]}

    # ---- what no gateway does ----------------------------------------------------------------------------------------

    def _break(self, event: Any) -> Any:
        """The event with one thing in it, wherever it stands, removed, retyped, renamed, doubled or nested."""
        places = list(_places(event))
        if not places:
            return event
        holder, key = self._random.choice(places)
        match self._random.choice(["remove", "retype", "retype", "recase", "double", "nest"]):
            case "remove":
                del holder[key]
            case "retype":
                holder[key] = deepcopy(self._random.choice(VALUES))
            case "recase" if isinstance(holder, dict):
                holder[str(key).swapcase()] = holder.pop(key)
            case "double" if isinstance(holder, dict):
                holder[f"{key}2"] = deepcopy(holder[key])
            case "nest":
                holder[key] = self._random.choice([[holder[key]], {"": holder[key]}])
        return event


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a tree, as (what holds it, its key there)."""
    found: list[tuple[Any, Any]] = []
    for key, held in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *_places(held)]
    return found


def _set_path(event: Event, method: str, path: str) -> None:
    """Ask for another route, in the places where the event's version has it."""
    if event.get("version") == "2.0":
        event["rawPath"], event["routeKey"] = path, f"{method} {path}"
        event["requestContext"]["http"] |= {"method": method, "path": path}
    else:
        event["path"] = event["resource"] = path
        event["httpMethod"] = event["requestContext"]["httpMethod"] = method
