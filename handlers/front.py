"""What the functions behind the API share: an event comes in, one route answers it, one line is logged."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from aws_lambda_powertools.event_handler import ApiGatewayResolver, CORSConfig, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel

from handlers.identity import TOKEN_HEADER, Caller, identify, owner_hash, with_token, without_cookie
from handlers.openapi import OPERATIONS
from handlers.problems import Kind, Problem, cause, from_error
from handlers.proxy import check_proxy
from handlers.report import Exchange, log_exchange, logger
from handlers.router import Target, plain_event, resolver_of, result_for, target_of, with_header
from handlers.settings import Settings
from handlers.trigger import answer_plainly, is_request, is_websocket
from memory.allowance import DynamoDBAllowance
from memory.table import connect

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Answer = Callable[[Exchange], Awaitable[Response[str]]]
"""What answers the requests of a route."""

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
        """Answer a request, whichever kind of API or load balancer sent it. Raises UnexpectedEvent for what is none."""
        logger.remove_keys(["function_arn", "function_memory_size"])  # the same in every line of a log group
        if not is_request(event):
            return answer_plainly(event)
        return event_loop().run(self._resolve(Exchange(event=event, context=context)))

    async def _resolve(self, exchange: Exchange) -> dict[str, Any]:
        try:
            exchange.settings = process_settings()
            if is_websocket(exchange.event):
                raise _no_websocket()
            exchange.target = target_of(exchange.event, exchange.settings.base_path)
            resolver = self._resolver(exchange)
            result = await resolver.resolve_async(plain_event(exchange.event, exchange.target), exchange.context)
        except Exception as error:  # noqa: BLE001 - the last place where a clean answer can be given
            exchange.error, exchange.problem = error, from_error(error)
            log_exchange(exchange)
            result = result_for(exchange.event, exchange.problem)
        return with_header(result, "X-Content-Type-Options", "nosniff")

    def _resolver(self, exchange: Exchange) -> ApiGatewayResolver:
        """Powertools' routing for one event. Making it takes a fraction of a millisecond; nothing of it is kept."""
        resolver = resolver_of(exchange.event, _cors(exchange.settings))
        for (method, path), answer in self.routes.items():
            serve = _serving(exchange, method, path, answer)
            resolver.route(re.sub(r"{(\w+)}", r"<\1>", path), method)(serve)

        @resolver.not_found
        def not_found(_: NotFoundError) -> Response[str]:
            exchange.problem = _no_route(exchange.target)
            log_exchange(exchange)
            return exchange.problem.response()

        return resolver


def _serving(exchange: Exchange, method: str, path: str, answer: Answer) -> Callable[..., Awaitable[Response[str]]]:
    async def serve(**places: str) -> Response[str]:
        """The response to one request, its errors as problems, and its line in the log."""
        exchange.route = f"{method} {path}"
        exchange.places = {name: unquote(value, errors="surrogatepass") for name, value in places.items()}
        try:
            check_proxy(exchange.event, exchange.settings)
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


def _no_route(target: Target) -> Problem:
    """The problem of a request that no route answers."""
    methods = sorted(method for method, path in OPERATIONS if _is_at(target.path, path))
    if methods and target.method not in methods:
        allow = ", ".join(methods)
        return Problem(kind=Kind.METHOD, detail=f"The path has no {target.method}; it has {allow}.", allow=allow)
    return Problem(kind=Kind.NOT_FOUND, detail="There is no such path here. GET /openapi.json lists those there are.")


def _no_websocket() -> Problem:
    """The problem of whoever opens a WebSocket or sends a message through one.

    It is told to them rather than raised: nobody else would send the message again, and anybody could set off an alarm.
    """
    return Problem(
        kind=Kind.NOT_FOUND,
        detail="There is no WebSocket here. Send HTTP requests; GET /openapi.json lists the paths that there are.",
    )


def _is_at(path: str, route: str) -> bool:
    return re.fullmatch(re.sub(r"{\w+}", "[^/]+", route), path) is not None


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.cors_origins:
        return None
    first, *others = settings.cors_origins
    return CORSConfig(
        allow_origin=first,
        extra_origins=others,
        allow_headers=[*REQUEST_HEADERS, *settings.cors_headers],
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


def allowance(exchange: Exchange) -> DynamoDBAllowance:
    """What the settings let an owner do."""
    settings = exchange.settings
    is_new = exchange.caller is not None and exchange.caller.source == "new"
    found = DynamoDBAllowance(
        table_client(settings.dynamodb_endpoint),
        settings.table_name,
        turns_per_hour=settings.owner_turns_per_hour,
        max_sessions=0 if is_new else settings.max_sessions,  # who is new has none to count
    )
    exchange.usages.append(found.usage)
    return found


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
    exchange.caller = caller = identify(exchange.event, exchange.settings)
    exchange.owner_hash = owner_hash(caller.owner, exchange.settings)
    return caller
