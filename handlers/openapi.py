"""The API as an OpenAPI 3.1 document, made from the bodies' models and the kinds of problems."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from handlers import shapes
from handlers.identity import TOKEN_HEADER
from handlers.problems import CONTENT_TYPE, Kind
from handlers.shapes import IDEMPOTENCY_KEY, SESSION_ID
from memory.codec import LEAST_RECENT_REQUESTS, RECENT_REQUESTS

VERSION = "0.1.0"
REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What one route takes and gives."""

    summary: str
    body: type[BaseModel] | None = None
    body_optional: bool = False
    query: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()
    responses: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    lines: bool = False
    """Whether the response is JSON Lines, each as its model says."""
    problems: tuple[Kind, ...] = ()


_ALWAYS = (Kind.NOT_BY_THE_PROXY, Kind.INTERNAL)
_OWN = (Kind.UNAUTHORIZED, Kind.FOREIGN_ORIGIN, Kind.INVALID, Kind.UNAVAILABLE)
_BODY = (Kind.MEDIA_TYPE, Kind.TOO_LARGE)
_ONE = (*_OWN, Kind.SESSION_NOT_FOUND, Kind.NOT_FOUND)
_TURN = (Kind.TURN_IN_PROGRESS, Kind.TURNS_USED_UP, Kind.KEY_REUSED, Kind.AGENT_FAILED, Kind.AGENT_TIMED_OUT)
_FORK = (Kind.TOO_MANY_SESSIONS, Kind.TURNS_USED_UP)

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/chat"): Operation(
        summary="Say something, and get the agent's answer",
        body=shapes.ChatRequest,
        headers=("idempotency-key", "x-session-id"),
        responses={200: shapes.ChatAnswer},
        problems=(*_OWN, *_TURN, *_BODY, Kind.TOO_MANY_SESSIONS),
    ),
    ("POST", "/sessions/{id}/turns/{n}/regenerate"): Operation(
        summary="Answer the newest turn again; its old answer stays in the history as superseded",
        headers=("idempotency-key",),
        responses={200: shapes.ChatAnswer},
        problems=(*_ONE, *_TURN, Kind.TURN_NOT_FOUND, Kind.NOT_THE_NEWEST),
    ),
    ("POST", "/sessions"): Operation(
        summary="Make a session",
        body=shapes.NewSession,
        body_optional=True,
        headers=("idempotency-key",),
        responses={201: shapes.SessionSummary},
        problems=(*_OWN, *_BODY, Kind.TOO_MANY_SESSIONS, Kind.KEY_REUSED, Kind.SESSION_NOT_FOUND),
    ),
    ("GET", "/sessions"): Operation(
        summary="The caller's sessions, the last active first",
        query=shapes.Page,
        responses={200: shapes.SessionList},
        problems=_OWN,
    ),
    ("DELETE", "/sessions"): Operation(
        summary="Delete everything of the caller",
        responses={204: None, 202: shapes.Removing},
        problems=_OWN,
    ),
    ("GET", "/sessions/{id}"): Operation(
        summary="A session, and what of it the model would be shown now",
        responses={200: shapes.SessionDetail},
        problems=_ONE,
    ),
    ("PATCH", "/sessions/{id}"): Operation(
        summary="Give a session another title",
        body=shapes.Rename,
        responses={200: shapes.SessionDetail},
        problems=(*_ONE, *_BODY),
    ),
    ("DELETE", "/sessions/{id}"): Operation(
        summary="Delete a session; a turn in flight is lost with it",
        responses={204: None, 202: shapes.Removing},
        problems=_ONE,
    ),
    ("GET", "/sessions/{id}/turns"): Operation(
        summary="The turns of a session, the newest first",
        query=shapes.Page,
        responses={200: shapes.TurnList},
        problems=(*_ONE, Kind.HISTORY_CHANGED),
    ),
    ("GET", "/sessions/{id}/export"): Operation(
        summary="All messages of a session as JSON Lines, the oldest first, page by page",
        query=shapes.Place,
        responses={200: shapes.ExportLine},
        lines=True,
        problems=(*_ONE, Kind.HISTORY_CHANGED),
    ),
    ("POST", "/sessions/{id}/fork"): Operation(
        summary="Make a new session with the turns of this one up to a certain turn",
        body=shapes.ForkRequest,
        body_optional=True,
        headers=("idempotency-key",),
        responses={201: shapes.Forked},
        problems=(*_ONE, *_BODY, Kind.TURN_NOT_FOUND, *_FORK, Kind.KEY_REUSED, Kind.HISTORY_CHANGED),
    ),
    ("GET", "/openapi.json"): Operation(summary="This document", responses={200: None}),
}

_HEADERS: Mapping[str, tuple[str, str]] = {
    "idempotency-key": (
        f"^{IDEMPOTENCY_KEY.pattern}$",
        (
            "The same request under the same key is done once; a copy gets the first one's result. A session remembers "
            f"the keys of its last {RECENT_REQUESTS} turns; fewer, but at least {LEAST_RECENT_REQUESTS}, if its title "
            "or the owner's name is very long. A request that makes a session is recognised as long as that exists."
        ),
    ),
    "x-session-id": (f"^{SESSION_ID.pattern}$", "The session, where the body names none."),
}
_PLACES: Mapping[str, dict[str, Any]] = {
    "id": {"type": "string", "pattern": f"^{SESSION_ID.pattern}$"},
    "n": {"type": "integer", "minimum": 1, "maximum": 10**10 - 1},
}
_STATUS_TEXT = {200: "Done", 201: "Made", 202: "Out of sight, and not finished", 204: "Gone"}


def document(prefix: str = "") -> dict[str, Any]:
    """The OpenAPI document of an API whose paths clients see behind `prefix`."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rehydrate",
            "version": VERSION,
            "description": "Conversations with an agent that remembers. What is not done is answered with a problem "
            "document (RFC 9457).",
        },
        # Without a host: clients resolve it against the address of this document, and may see another host than we do.
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "security": [{"token": []}, {"cookie": []}, {"bearer": []}, {}],
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": TOKEN_HEADER},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "__Host-rehydrate"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _operation(path: str, operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": operation.summary, "parameters": [*_parameters(path, operation)]}
    if operation.body:
        content = {"application/json": {"schema": _reference(operation.body)}}
        found["requestBody"] = {"required": not operation.body_optional, "content": content}
    found["responses"] = {
        str(status): _response(status, model, lines=operation.lines) for status, model in operation.responses.items()
    } | _problem_responses(operation)
    return found


def _parameters(path: str, operation: Operation) -> list[dict[str, Any]]:
    places = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in _PLACES.items()
        if f"{{{name}}}" in path
    ]
    headers = [
        {"name": name, "in": "header", "description": _HEADERS[name][1], "schema": _text(_HEADERS[name][0])}
        for name in operation.headers
    ]
    return places + headers + (_query(operation.query) if operation.query else [])


def _query(model: type[BaseModel]) -> list[dict[str, Any]]:
    found = []
    for name, schema in model.model_json_schema()["properties"].items():
        # A query parameter is there or not; null is a thing of JSON.
        plain = next((kind for kind in schema.get("anyOf", []) if kind["type"] != "null"), None)
        kept = plain or {key: value for key, value in schema.items() if key not in ("description", "title")}
        described = {"description": schema["description"]} if "description" in schema else {}
        found.append({"name": name, "in": "query", **described, "schema": kept})
    return found


def _text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _response(status: int, model: type[BaseModel] | None, *, lines: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"description": _STATUS_TEXT[status]}
    if lines and model:
        found["description"] = "Lines of JSON; `contentSchema` is the schema of a line"
        text = {"type": "string", "contentMediaType": "application/jsonl", "contentSchema": _reference(model)}
        found["content"] = {"application/jsonl": {"schema": text}}
        found["headers"] = {
            "x-next-cursor": {"description": "For the next page; absent at the end", "schema": {"type": "string"}}
        }
    elif model:
        found["content"] = {"application/json": {"schema": _reference(model)}}
    elif status == 200:
        found["content"] = {"application/json": {"schema": {"type": "object"}}}
    return found


def _problem_responses(operation: Operation) -> dict[str, Any]:
    """One response for each status, which lists the kinds of problems that have it."""
    by_status: dict[int, list[Kind]] = {}
    for kind in (*operation.problems, *_ALWAYS):
        by_status.setdefault(kind.status.value, []).append(kind)
    return {
        str(status): {
            "description": " ".join(f"`{kind.slug}`: {kind.when}" for kind in kinds),
            "content": {
                CONTENT_TYPE: {
                    "schema": {
                        "allOf": [
                            {"$ref": REFERENCE.format(model="Problem")},
                            {"properties": {"type": {"enum": [kind.urn for kind in kinds]}}},
                        ]
                    }
                }
            },
        }
        for status, kinds in sorted(by_status.items())
    }


def _schemas() -> dict[str, Any]:
    taken = {(operation.body, "validation") for operation in OPERATIONS.values() if operation.body}
    given = {
        (model, "serialization") for operation in OPERATIONS.values() for model in operation.responses.values() if model
    }
    models = sorted([*taken, *given], key=lambda model: model[0].__name__)
    _, schema = models_json_schema(models, ref_template=REFERENCE)  # type: ignore[arg-type] # the modes are literals
    return {**schema["$defs"], "Problem": _PROBLEM}


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": REFERENCE.format(model=model.__name__)}


_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "Why a request was not done, and what to do (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "enum": [kind.urn for kind in Kind]},
        "title": {"type": "string"},
        "status": {"type": "integer", "enum": sorted({kind.status.value for kind in Kind})},
        "detail": {"type": "string", "description": "What is wrong, and how to mend it."},
        "field": {"type": "string", "description": "The field, header or parameter that is wrong."},
        "code": {"type": "string", "description": "Why the agent gave no answer."},
        "errors": {
            "type": "array",
            "description": "What is wrong with the body or the query, ten fields at the most.",
            "items": {
                "type": "object",
                "required": ["field", "problem"],
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
    },
}
