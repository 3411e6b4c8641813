"""The handler of the sessions function: everything that people do with conversations but hold them.

It imports no LlamaIndex, and so starts in a fraction of the chat function's time.
"""

import asyncio
import hashlib
import json
import uuid
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext

from handlers import cursor, openapi, views
from handlers.front import Front, allowance, deadline, identified, json_response, table_client
from handlers.identity import new_caller
from handlers.problems import unavailable
from handlers.report import Exchange, entry_point
from handlers.request import body_hash, idempotency_key, known, read_body, read_query, session_named
from handlers.shapes import (
    LIST_PLACE,
    TURN_PLACE,
    Forked,
    ForkRequest,
    NewSession,
    Page,
    Place,
    Removing,
    Rename,
    SessionList,
    TurnList,
    TurnView,
)
from memory.dynamodb import DynamoDBTurnLog
from memory.sessions import DynamoDBSessions
from memory.turns import Session, SessionNotFound, State, TooManySessions, TurnNotFound

ANSWER_SECONDS = 2.0
"""Kept back of an invocation, so that what could not be finished is said."""
INDEX_SECONDS = 1.0
"""What the index is given to catch up."""
DELETED_AT_ONCE = 25

front = Front()


@entry_point
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda's entry point."""
    return front(event, context)


@front.route("GET", "/openapi.json")
async def describe(exchange: Exchange) -> Response[str]:
    """What the API takes and gives."""
    document = openapi.document(exchange.target.prefix)
    return Response(HTTPStatus.OK.value, "application/json", json.dumps(document))


@front.route("POST", "/sessions")
async def create(exchange: Exchange) -> Response[str]:
    """An empty session with an id of its own."""
    caller = identified(exchange)
    body = read_body(exchange.event, NewSession, limit=exchange.settings.max_body_bytes, optional=True)
    session, asked = _new_session(exchange, caller.owner, "POST /sessions", body.title)
    exchange.taken = True
    sessions = _sessions(exchange)
    try:
        await allowance(exchange).check_sessions(caller.owner)
    except TooManySessions:
        if made := await sessions.made(session, asked):  # by an earlier copy of this request
            return _made(session, made, new=False)
        raise
    state, new = await sessions.create(session, title=body.title or "", asked=asked)
    return _made(session, state, new=new)


@front.route("GET", "/sessions")
async def list_sessions(exchange: Exchange) -> Response[str]:
    """A page of the caller's sessions."""
    owner = known(identified(exchange)).owner
    page = read_query(exchange.event, Page)
    after = None
    if page.cursor is not None:
        after = cursor.decode(page.cursor, LIST_PLACE, owner=owner, what="sessions")
    exchange.taken = True
    found = await _sessions(exchange).listed(owner, limit=page.limit + 1, after=after)
    shown, last = found[: page.limit], found[page.limit - 1 : page.limit]
    place = [last[0].active_at.isoformat(), last[0].id] if len(found) > page.limit else None
    body = SessionList(
        sessions=[views.summary(one.id, one.title, one.created_at, one.active_at) for one in shown],
        next_cursor=cursor.encode(place, owner=owner, what="sessions") if place else None,
    )
    return json_response(HTTPStatus.OK, body)


@front.route("DELETE", "/sessions")
async def delete_all(exchange: Exchange) -> Response[str]:
    """Delete everything of the caller, as far as the time allows. An anonymous caller gets a new identity then."""
    owner = known(identified(exchange)).owner
    exchange.taken = True
    deleted = _Deleted()
    try:
        async with asyncio.timeout_at(deadline(exchange.context) - ANSWER_SECONDS):
            # The index lags behind: what was active just now may be missing, and what was deleted still be there. So
            # it is listed again until it shows nothing that is left.
            while await _delete_listed(exchange, owner, deleted) or deleted.rounds < 2:  # noqa: ASYNC110 - see above
                await asyncio.sleep(INDEX_SECONDS)
    except TimeoutError:
        return _removing(deleted.sessions, "There is more to delete than one request could. Send it again, until 204.")
    finally:
        exchange.facts["deleted_sessions"] = deleted.sessions
    if exchange.caller and exchange.caller.source == "token":
        # Whoever else has the old token reaches nothing that this caller says from now on.
        exchange.caller = new_caller(exchange.settings)
    if not deleted.swept:
        return _removing(deleted.sessions, "Nothing is seen any more. The rest is removed from the table shortly.")
    return _nothing()


@front.route("GET", "/sessions/{id}")
async def show(exchange: Exchange) -> Response[str]:
    """A session, and what the model would be shown of it."""
    return await _detail(exchange, _named(exchange))


@front.route("PATCH", "/sessions/{id}")
async def rename(exchange: Exchange) -> Response[str]:
    """Another title."""
    session = _named(exchange)
    title = read_body(exchange.event, Rename, limit=exchange.settings.max_body_bytes).title
    await _sessions(exchange).rename(session, title)
    return await _detail(exchange, session)


@front.route("DELETE", "/sessions/{id}")
async def delete(exchange: Exchange) -> Response[str]:
    """A session is gone with one write; what it held is removed now where it is little, else by the sweeper."""
    if await _log(exchange).delete(_named(exchange)):
        return _nothing()
    return _removing(1, "Nothing of the session is seen any more. The rest is removed from the table shortly.")


@front.route("GET", "/sessions/{id}/turns")
async def list_turns(exchange: Exchange) -> Response[str]:
    """A page of a session's history, the newest turn first."""
    session, page = _named(exchange), read_query(exchange.event, Page)
    sessions, what = _sessions(exchange), f"turns.{session.id}"
    state = await sessions.find(session)
    start, superseded = None, 0
    if page.cursor is not None:
        generation, start, superseded = cursor.decode(page.cursor, TURN_PLACE, owner=session.owner, what=what)
        views.same_history(state, generation)
    turns: list[TurnView] = []
    place, room = None, views.PAGE_BYTES
    history = sessions.history(session, state, start=start, superseded=superseded, page_size=page.limit + 1)
    async with aclosing(history) as entries:
        async for entry in entries:
            view = views.turn(entry)
            room -= views.wire_bytes(view.model_dump_json())
            if len(turns) == page.limit or (turns and room < 0):
                place = [state.generation, entry.number, superseded]
                break
            turns.append(view)
            superseded = entry.superseded
    await sessions.unchanged(session, state)
    following = cursor.encode(place, owner=session.owner, what=what) if place else None
    return json_response(HTTPStatus.OK, TurnList(turns=turns, next_cursor=following))


@front.route("GET", "/sessions/{id}/export")
async def export(exchange: Exchange) -> Response[str]:
    """A page of all that was said, one message a line."""
    session, place = _named(exchange), read_query(exchange.event, Place)
    sessions, what = _sessions(exchange), f"export.{session.id}"
    state = await sessions.find(session)
    start, skipped = 1, 0
    if place.cursor is not None:
        generation, start, skipped = cursor.decode(place.cursor, TURN_PLACE, owner=session.owner, what=what)
        views.same_history(state, generation)
    page, until = views.ExportPage(start, skipped), deadline(exchange.context) - ANSWER_SECONDS
    async with aclosing(sessions.history(session, state, start=start, oldest_first=True)) as entries:
        async for entry in entries:
            if not page.add(entry):
                break
            if asyncio.get_running_loop().time() > until:
                page.close()
    await sessions.unchanged(session, state)
    headers: dict[str, str | list[str]] = {}
    if page.next_place:
        headers["x-next-cursor"] = cursor.encode([state.generation, *page.next_place], owner=session.owner, what=what)
    return Response(HTTPStatus.OK.value, "application/jsonl", page.text, headers)


@front.route("POST", "/sessions/{id}/fork")
async def fork(exchange: Exchange) -> Response[str]:
    """A new session with the turns of this one up to a certain turn."""
    source = _named(exchange)
    body = read_body(exchange.event, ForkRequest, limit=exchange.settings.max_body_bytes, optional=True)
    target, asked = _new_session(exchange, source.owner, "POST /sessions/{id}/fork", source.id, body.turn, body.title)
    sessions = _sessions(exchange)
    if made := await sessions.made(target, asked):  # whatever became of the source since
        return _forked(target, made, new=False)
    limits = allowance(exchange)
    await limits.check_sessions(source.owner)
    await limits.spend_turn(source.owner)  # it may write as much as many turns did
    try:
        async with asyncio.timeout_at(deadline(exchange.context) - ANSWER_SECONDS):
            through = body.turn or await _newest(sessions, source)
            state, new = await sessions.fork(
                source,
                through,
                target,
                title=body.title or "",
                asked=asked,
                max_turns=exchange.settings.fork_max_turns,
            )
    except TimeoutError as error:
        raise unavailable(
            "The turns could not all be copied in time, and nothing was made. Fork at an older turn."
        ) from error
    return _forked(target, state, new=new)


class _Deleted:
    """What became of a request to delete everything."""

    def __init__(self) -> None:
        self.sessions = 0
        self.rounds = 0
        self.swept = True


async def _delete_listed(exchange: Exchange, owner: str, deleted: _Deleted) -> bool:
    """Delete all sessions that the index lists; whether there was one that was not deleted before."""
    log, sessions, before = _log(exchange), _sessions(exchange), deleted.sessions
    deleted.rounds += 1
    after = None
    while page := await sessions.listed(owner, limit=DELETED_AT_ONCE, after=after):
        results = await asyncio.gather(*(_deleted(log, Session(owner=owner, id=one.id)) for one in page))
        deleted.sessions += sum(result is not None for result in results)
        deleted.swept &= False not in results
        after = page[-1].active_at, page[-1].id
    return deleted.sessions > before


async def _deleted(log: DynamoDBTurnLog, session: Session) -> bool | None:
    """Whether all of the session is removed; None where it was not there any more."""
    try:
        return await log.delete(session)
    except SessionNotFound:
        return None


async def _detail(exchange: Exchange, session: Session) -> Response[str]:
    window = await _log(exchange).load(session, token_limit=exchange.settings.token_limit)
    if window.live is None:
        raise SessionNotFound
    return json_response(HTTPStatus.OK, views.detail(window, window.live))


async def _newest(sessions: DynamoDBSessions, session: Session) -> int:
    """Number of the newest turn. Raises TurnNotFound where there is none yet."""
    async with aclosing(sessions.history(session, await sessions.find(session), page_size=1)) as entries:
        async for entry in entries:
            return entry.number
    raise TurnNotFound


def _named(exchange: Exchange) -> Session:
    """The session in the path, and so a request that is good as far as who asks."""
    session = session_named(identified(exchange), exchange.places["id"])
    exchange.session, exchange.taken = session, True
    return session


def _new_session(exchange: Exchange, owner: str, *asked: Any) -> tuple[Session, str]:
    """A session that is not there yet, and what makes the request that makes it the same one when it comes again."""
    key = idempotency_key(exchange.event)
    session_id = uuid.uuid4().hex
    if key is not None:
        session_id = hashlib.sha256(json.dumps([asked[0], owner, key]).encode()).hexdigest()[:32]
    exchange.session = Session(owner=owner, id=session_id)
    return exchange.session, body_hash(*asked)


def _made(session: Session, state: State, *, new: bool) -> Response[str]:
    body = views.summary(session.id, state.title, state.created_at, state.active_at)
    return json_response(HTTPStatus.CREATED, body, replayed=not new)


def _forked(session: Session, state: State, *, new: bool) -> Response[str]:
    summary = views.summary(session.id, state.title, state.created_at, state.active_at)
    body = Forked(**summary.model_dump(), first_turn=state.deleted_through[0] or 1)
    return json_response(HTTPStatus.CREATED, body, replayed=not new)


def _nothing() -> Response[str]:
    return Response(HTTPStatus.NO_CONTENT.value)


def _removing(sessions: int, detail: str) -> Response[str]:
    return json_response(HTTPStatus.ACCEPTED, Removing(deleted_sessions=sessions, detail=detail))


def _sessions(exchange: Exchange) -> DynamoDBSessions:
    settings = exchange.settings
    client = table_client(settings.dynamodb_endpoint)
    sessions = DynamoDBSessions(
        client, settings.table_name, retention=settings.retention, empty_retention=settings.empty_retention
    )
    exchange.usages.append(sessions.usage)
    return sessions


def _log(exchange: Exchange) -> DynamoDBTurnLog:
    settings = exchange.settings
    log = DynamoDBTurnLog(table_client(settings.dynamodb_endpoint), settings.table_name, retention=settings.retention)
    exchange.usages.append(log.usage)
    return log
