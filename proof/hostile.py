"""Hostile events through the handlers as they are deployed: every one gets a clean answer, and none is logged in words.

python -m proof.hostile --events 1000 --seed 5
"""

import argparse
import io
import json
import logging
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlers import chat, openapi, report, sessions, snapshot
from handlers.problems import CONTENT_TYPE, Kind
from handlers.router import target_of
from handlers.trigger import is_request
from local import demo_model
from local.functions import CHAT, function_for
from local.worker import RESPONSE_LIMIT, LambdaContext
from proof.hostile_events import CANARY, Hostile, Hostility
from proof.model import client_at, real_engine
from proof.section import Section

EVENTS = Path(__file__).parent.parent / "events"
SECONDS = 28
FULL, QUICK = 20_000, 1_000
SETTINGS = {
    "TABLE_NAME": "rehydrate",
    "OPENAI_API_KEY": "none",
    "OPENAI_MODEL": "demo",
    "MODEL_RETRIES": "0",
    "SIGNING_SECRET": "a-secret-of-the-proof-that-is-long-enough",
    "IDENTITY_SOURCES": "jwt,cognito,lambda,iam,token",
}


CHECKED = """\
Checked of each: a dict with a status that `/openapi.json` has for the route (404 and 405 if there is no route), and
never 500; a body in JSON, problems as RFC 9457 has them; no stack trace, no line end in a header; below 6 MB; one line
in the log, and no word of a message in it."""


@dataclass(kw_only=True)
class Found:
    """What came of the events."""

    events: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: dict[str, list[Any]] = field(default_factory=dict)
    """Events that were answered as they must not be, by what was wrong."""


def prove(*, quick: bool) -> Section:
    """Send them, and count."""
    with real_engine() as endpoint, deployed(endpoint) as log:
        found = send(QUICK if quick else FULL, seed=1, log=log)
    return Section(
        title="Hostile events",
        tried=f"{found.events:,} events made from the {len(shapes())} in `events/`, through the handlers in a process "
        "on dynoxide and the demo model. In seven of ten a client's part is spoilt: bodies (base64 that is none, 6 MB, "
        "JSON 100,000 deep, wrong types, lone surrogates, NUL), headers, cookies, tokens, paths, queries. Three in ten "
        "are broken as no gateway breaks them: anything removed, retyped, renamed, doubled or nested.",
        head=("status", "events"),
        rows=[(str(status), f"{count:,}") for status, count in sorted(found.statuses.items())],
        held=not found.wrong,
        notes=(
            CHECKED,
            *(f"**{what}**: {len(events)} events" for what, events in found.wrong.items()),
        ),
    )


def shapes() -> list[dict[str, Any]]:
    """The real events that a client's request makes."""
    files = sorted(file for file in EVENTS.glob("*.json") if file.name.startswith(("chat_", "sessions_")))
    return [json.loads(file.read_text()) for file in files]


@contextmanager
def deployed(endpoint: str) -> Iterator[io.StringIO]:
    """The functions of this process on an engine and the demo model; what they log."""
    client_at(endpoint)
    before, index_seconds = dict(os.environ), sessions.INDEX_SECONDS
    with demo_model.start() as demo, logged() as log:
        os.environ |= SETTINGS | {"DYNAMODB_ENDPOINT": endpoint, "OPENAI_API_BASE": f"{demo.endpoint}/v1"}
        snapshot.forget()
        sessions.INDEX_SECONDS = 0.0
        try:
            yield log
        finally:
            sessions.INDEX_SECONDS = index_seconds
            os.environ.clear()
            os.environ |= before
            snapshot.forget()


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What the functions log, which goes nowhere else meanwhile."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(report.logger.registered_formatter)
    others, report.logger.handlers[:] = report.logger.handlers[:], [handler]
    try:
        yield log
    finally:
        report.logger.handlers[:] = others


def send(events: int, *, seed: int, log: io.StringIO) -> Found:
    """Send hostile events, and look at what comes back."""
    found, source = Found(), Hostility(seed, shapes())
    for _ in range(events):
        hostile = source.event()
        if not is_request(hostile.event):
            continue  # so broken that nothing of a request is left
        log.seek(0)
        log.truncate()
        try:
            sent = json.loads(json.dumps(hostile.event))  # a handler may change it
            result = _handler(hostile.event)(sent, _context())
        except Exception as error:  # noqa: BLE001 - this is what must not happen
            result, what = {}, [f"{type(error).__name__} was raised"]
        else:
            what = [*faults(hostile, result), *log_faults(log.getvalue(), most=1 if hostile.from_a_gateway else 2)]
        found.events += 1
        found.statuses[result.get("statusCode", 0)] += 1
        for one in what:
            found.wrong.setdefault(one, []).append((hostile.event, result, log.getvalue()))
        if token := _header(result, "x-session-token"):
            source.tokens.append(token)
    return found


def _handler(event: Any) -> Any:
    target = target_of(event)
    return chat.handler if function_for(target.method, target.path) == CHAT else sessions.handler


def _context() -> LambdaContext:
    return LambdaContext(
        aws_request_id=str(uuid.uuid4()),
        deadline=time.monotonic() + SECONDS,
        function_name="rehydrate",
        log_stream_name="proof",
    )


def faults(hostile: Hostile, result: Any) -> Iterator[str]:
    """What is wrong with a response."""
    if not isinstance(result, dict) or not isinstance(result.get("statusCode"), int):
        yield "no status"
        return
    status, body = result["statusCode"], result.get("body")
    if status not in _documented(hostile):
        yield f"status {status} is not documented"
    try:
        wire = json.dumps(result, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        yield "not JSON in UTF-8"
        return
    if len(wire) > RESPONSE_LIMIT:
        yield "over 6 MB"
    if b"Traceback (most" in wire or b'File \\"' in wire:
        yield "a stack trace"
    if any(re.search(r"[\r\n\x00]", text) for text in _header_texts(result)):
        yield "a line end in a header"
    if status >= 400 and not _is_problem(status, _header(result, "content-type"), body):
        yield "no problem document"
    if body and "jsonl" not in str(_header(result, "content-type")):
        try:
            json.loads(body)
        except (TypeError, ValueError):
            yield "a body that is no JSON"


def _documented(hostile: Hostile) -> set[int]:
    """The statuses that an event may get. Of the service's own faults none, since nothing here is out of order."""
    target = target_of(hostile.event)
    allowed = {404, 405}
    for (known, pattern), operation in openapi.OPERATIONS.items():
        if known == target.method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", pattern), target.path):
            allowed = {*operation.responses, *(kind.status.value for kind in operation.problems)} - {502, 503, 504}
    if not hostile.from_a_gateway:
        allowed |= {400, 401, 403, 404, 405, 413, 415}
    return allowed


def _is_problem(status: int, kind: str | None, body: Any) -> bool:
    if kind != CONTENT_TYPE:
        return False
    problem = json.loads(body)
    return (
        {"type", "title", "status", "detail"} <= problem.keys()
        and problem["status"] == status
        and problem["type"] in {known.urn for known in Kind}
        and bool(problem["detail"])
    )


def _header_texts(result: Mapping[str, Any]) -> list[str]:
    single = [*(result.get("headers") or {}).items()]
    several = [(name, one) for name, values in (result.get("multiValueHeaders") or {}).items() for one in values]
    return [str(text) for pair in single + several for text in pair] + list(result.get("cookies") or [])


def _header(result: Mapping[str, Any], name: str) -> str | None:
    for key, value in (result.get("headers") or {}).items():
        if key.lower() == name:
            return str(value)
    for key, values in (result.get("multiValueHeaders") or {}).items():
        if key.lower() == name:
            return str(values[0])
    return None


def log_faults(log: str, *, most: int = 1) -> Iterator[str]:
    """What is wrong with what was logged of a request: one line, of the service's own."""
    lines = [json.loads(line) for line in log.splitlines()]
    if not 1 <= len(lines) <= most or any(line["message"] not in ("turn", "request") for line in lines):
        yield f"{len(lines)} lines in the log"
    if CANARY in log:
        yield "words of a message in the log"


def main() -> None:
    """Exit code 1 where something was answered as it must not be."""
    parser = argparse.ArgumentParser(prog="python -m proof.hostile", description=__doc__)
    parser.add_argument("--events", type=int, default=QUICK)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with real_engine() as endpoint, deployed(endpoint) as log:
        found = send(options.events, seed=options.seed, log=log)
    print(dict(sorted(found.statuses.items())))
    for what, events in found.wrong.items():
        event, result, logged = events[0]
        print(f"{what}: {len(events)}\n  {_short(event)}\n  {_short(result)}\n  {logged[:600]}")
    raise SystemExit(bool(found.wrong))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 3000 else f"{text[:1500]} ... {text[-1500:]}"


if __name__ == "__main__":
    main()
