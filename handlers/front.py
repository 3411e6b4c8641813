"""What the functions behind the API share: an event comes in, one route answers it, one line is logged."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, APIGatewayRestResolver, CORSConfig, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel

from handlers.identity import TOKEN_HEADER, Caller, identify, with_token, without_cookie
from handlers.openapi import OPERATIONS
from handlers.problems import Kind, Problem, cause, from_error
from handlers.report import Exchange, log_exchange, logger
from handlers.settings import Settings
from memory.table import connect

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Answer = Callable[[Exchange], Awaitable[Response[str]]]
"""What answers the requests of a route."""
Resolver = APIGatewayHttpResolver | APIGatewayRestResolver

REQUEST_HEADERS = ["idempotency-key", "x-session-id", TOKEN_HEADER]
RESPONSE_HEADERS = [TOKEN_HEADER, "idempotent-replayed", "retry-after", "x-next-cursor"]
PREFLIGHT_SECONDS = 600
REPLY_SECONDS = 0.2
"""Kept back of an invocation, so that it ends with a response where nothing stopped it sooner."""


class Front:
    """The routes of one function. It is called as AWS Lambda calls a handler."""

    def __init__(self) -> None:
        self.routes: dict[tuple[str, str], Answer] = {}

    def route(self, method: str, path: str) -> Callable[[Answer], Answer]:
        """Register what answers a route; its path is written as in OpenAPI."""

        def register(answer: Answer) -> Answer:
            self.routes[method, path] = answer
            return answer

        return register

    def __call__(self, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Events of HTTP APIs and function URLs (version 2.0), and of REST APIs (1.0)."""
        logger.remove_keys(["function_arn", "function_memory_size"])  # the same in every line of a log group
        return event_loop().run(self._resolve(Exchange(event=event, context=context)))

    async def _resolve(self, exchange: Exchange) -> dict[str, Any]:
        try:
            exchange.settings = process_settings()
            return await self._resolver(exchange).resolve_async(exchange.event, exchange.context)
        except Exception as error:  # noqa: BLE001 - the last place where a clean answer can be given
            exchange.error, exchange.problem = error, from_error(error)
            log_exchange(exchange)
            return exchange.problem.result()

    def _resolver(self, exchange: Exchange) -> Resolver:
        """Powertools' routing, for the one event: made in a fraction of a millisecond, and nothing is left of it."""
        version = APIGatewayRestResolver if exchange.event.get("version", "1.0") == "1.0" else APIGatewayHttpResolver
        # Or POWERTOOLS_DEV would print the event, and answer an error with its stack trace.
        resolver = version(cors=_cors(exchange.settings), debug=False)
        for (method, path), answer in self.routes.items():
            serve = _serving(exchange, resolver, method, path, answer)
            resolver.route(re.sub(r"{(\w+)}", r"<\1>", path), method)(serve)

        @resolver.not_found
        def not_found(_: NotFoundError) -> Response[str]:
            exchange.problem = _no_route(resolver.current_event.http_method, resolver.current_event.path)
            log_exchange(exchange)
            return exchange.problem.response()

        return resolver


def _serving(
    exchange: Exchange, resolver: Resolver, method: str, path: str, answer: Answer
) -> Callable[..., Awaitable[Response[str]]]:
    async def serve(**places: str) -> Response[str]:
        """The response to one request, its errors as problems, and its line in the log."""
        exchange.route, exchange.places = f"{method} {path}", places
        asked = resolver.current_event.path
        try:
            # Powertools takes /sessions/ of a REST API for /sessions: a DELETE that lacks its id would delete all.
            if not _is_at(asked, path):
                raise _no_route(method, asked)
            async with asyncio.timeout_at(deadline(exchange.context) - REPLY_SECONDS):
                response = await answer(exchange)
            exchange.status = HTTPStatus(response.status_code)
        except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets a problem and the log its cause
            exchange.error, exchange.problem = error, from_error(error)
            response = exchange.problem.response()
            if exchange.problem.clear_cookie:
                response = without_cookie(response, exchange.settings)
        log_exchange(exchange)
        # Of the ways to say who asks, a cache knows Authorization alone: it may keep nothing for the next one.
        response.headers["Cache-Control"] = "no-store"
        # A token goes out with a request that was taken; never with a refusal, where it would be a new identity.
        return (
            with_token(response, exchange.caller, exchange.settings) if exchange.caller and exchange.taken else response
        )

    return serve


def _no_route(method: str, path: str) -> Problem:
    """The problem of a request that no route answers."""
    methods = sorted(m for m, known in OPERATIONS if _is_at(path, known))
    if methods and method not in methods:
        allow = ", ".join(methods)
        return Problem(kind=Kind.METHOD, detail=f"The path has no {method}; it has {allow}.", allow=allow)
    return Problem(kind=Kind.NOT_FOUND, detail="There is no such path here. GET /openapi.json lists those there are.")


def _is_at(path: str, route: str) -> bool:
    return re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), path) is not None


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.cors_origins:
        return None
    first, *others = settings.cors_origins
    return CORSConfig(
        allow_origin=first,
        extra_origins=others,
        allow_headers=REQUEST_HEADERS,
        expose_headers=RESPONSE_HEADERS,
        max_age=PREFLIGHT_SECONDS,
    )


def json_response(status: HTTPStatus, body: BaseModel, *, replayed: bool = False) -> Response[str]:
    """A response with a body of `/openapi.json`, which says so where an earlier request had the same result."""
    headers: dict[str, str | list[str]] = {"Idempotent-Replayed": "true"} if replayed else {}
    return Response(status.value, "application/json", body.model_dump_json(), headers)


@cache
def process_settings() -> Settings:
    """The settings of this process, read at first use. Raises SettingsError."""
    settings = Settings.from_environment()
    if "header" in settings.identity_sources:
        logger.warning(
            "IDENTITY_SOURCES has header: whoever reaches this function can claim to be anybody. Keep it on a private "
            "network, behind something that sets the header itself."
        )
    return settings


@cache
def table_client(endpoint: str | None) -> "DynamoDBClient":
    """The DynamoDB client of this process."""
    return connect(endpoint)


@cache
def event_loop() -> asyncio.Runner:
    """One event loop for the life of the process: connections that were kept belong to it."""
    runner = asyncio.Runner()
    runner.get_loop().set_exception_handler(_log_lost)
    return runner


def _log_lost(_: asyncio.AbstractEventLoop, happened: dict[str, Any]) -> None:
    """Log an error that nobody waits for. asyncio would log its text."""
    logger.error("lost", extra={"cause": cause(happened.get("exception"))})


def deadline(context: LambdaContext) -> float:
    """When the invocation ends, on the event loop's clock."""
    return asyncio.get_running_loop().time() + context.get_remaining_time_in_millis() / 1000


def identified(exchange: Exchange) -> Caller:
    """Who asks. Raises a 401 Problem."""
    exchange.caller = identify(exchange.event, exchange.settings)
    return exchange.caller
