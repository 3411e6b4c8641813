"""POST /chat: an event in, the caller's turn in between, a response out. The handler of the chat function."""

import asyncio
import json
from contextlib import aclosing
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, APIGatewayRestResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.utilities.typing import LambdaContext

from handlers.agent import build_agent
from handlers.conversation import Answered, Conversation, NoTimeLeft
from handlers.identity import identify, with_token, without_cookie
from handlers.model import chat_model
from handlers.problems import Problem, from_error, unavailable
from handlers.report import Exchange, log_turn, logger
from handlers.request import read_request
from handlers.run import AgentFailed
from handlers.settings import Settings
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

http_api, rest_api = APIGatewayHttpResolver(), APIGatewayRestResolver()


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda's entry point, for events of HTTP APIs and function URLs (version 2.0) and of REST APIs (1.0)."""
    logger.remove_keys(["function_arn", "function_memory_size"])  # the same in every line of a log group
    return _loop().run(_resolve(event, context))


@http_api.post("/chat")
@rest_api.post("/chat")
async def chat() -> Response[str]:
    """One turn of the caller's conversation."""
    settings, exchange = _settings(), Exchange()
    event, context = http_api.current_event.raw_event, http_api.lambda_context
    try:
        exchange.caller = identify(event, settings)
        exchange.ask = read_request(event, exchange.caller, settings, context.aws_request_id)
        exchange.conversation = begin(settings, deadline=_deadline(context))
        async with aclosing(exchange.conversation.answer(exchange.ask)) as events:
            async for happened in events:
                if isinstance(happened, Answered):
                    exchange.answered = happened
        response = answer(exchange)
    except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets a problem and the log its cause
        exchange.error, exchange.problem = error, problem(error)
        response = exchange.problem.response()
        if exchange.problem.clear_cookie:
            response = without_cookie(response, settings)
    log_turn(exchange)
    # A token goes out with a turn, or the attempt at one; never with a refusal, where it would be a new identity.
    return with_token(response, exchange.caller, settings) if exchange.caller and exchange.conversation else response


@http_api.not_found
@rest_api.not_found
def not_found(_: NotFoundError) -> Response[str]:
    """No such route."""
    return Problem(
        status=HTTPStatus.NOT_FOUND, type="not-found", title="Nothing is here", detail="The route is POST /chat."
    ).response()


def begin(settings: Settings, *, deadline: float) -> Conversation:
    """What this invocation takes its turn with; only clients and settings are kept from one to the next."""
    model = chat_model(settings)
    return Conversation(
        log=DynamoDBTurnLog(_table_client(settings.dynamodb_endpoint), settings.table_name),
        build_agent=lambda: build_agent(model),
        instance=settings.instance,
        token_limit=settings.token_limit,
        wait_seconds=settings.turn_wait_seconds,
        deadline=deadline,
    )


def answer(exchange: Exchange) -> Response[str]:
    """The response to a request that was answered."""
    if not (exchange.caller and exchange.ask and exchange.answered):
        raise RuntimeError("the conversation ended without an answer")
    turn = exchange.answered.turn
    body = {
        "answer": turn.answer,
        "session_id": exchange.ask.session.id,
        "turn": turn.number,
        "request_id": turn.request.id,
        "memory": {
            "turns_in_window": turn.window.turns,
            "window_tokens": turn.window.tokens,
            "token_limit": turn.window.limit,
            "turns_total": turn.number - 1,
        },
        "identity": exchange.caller.source,
    }
    headers: dict[str, str | list[str]] = {"Idempotent-Replayed": "true"} if exchange.answered.replayed else {}
    return Response(HTTPStatus.OK.value, "application/json", json.dumps(body, ensure_ascii=False), headers)


def problem(error: Exception) -> Problem:
    """The problem that an error is for the caller."""
    if isinstance(error, NoTimeLeft):
        return unavailable("There was not enough time left to begin a turn, and nothing was stored. Send it again.")
    if not isinstance(error, AgentFailed):
        return from_error(error)
    return Problem(
        status=HTTPStatus.GATEWAY_TIMEOUT if error.timed_out else HTTPStatus.BAD_GATEWAY,
        type="agent-timed-out" if error.timed_out else "agent-failed",
        title="The agent gave no answer",
        detail="The message was noted as a failed turn, which the agent will not see. Send the request again.",
        extra={"code": error.code},
    )


async def _resolve(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    try:
        app = rest_api if event.get("version", "1.0") == "1.0" else http_api
        return await app.resolve_async(event, context)
    except Exception as error:  # noqa: BLE001 - the last place where a clean answer can be given
        found = from_error(error)
        log_turn(Exchange(error=error, problem=found))
        return found.result()


@cache
def _settings() -> Settings:
    """The settings of this process, read at first use."""
    settings = Settings.from_environment()
    if "header" in settings.identity_sources:
        logger.warning(
            "IDENTITY_SOURCES has header: whoever reaches this function can claim to be anybody. Keep it on a private "
            "network, behind something that sets the header itself."
        )
    return settings


def _deadline(context: LambdaContext) -> float:
    """When the invocation ends, on the event loop's clock."""
    return asyncio.get_running_loop().time() + context.get_remaining_time_in_millis() / 1000


@cache
def _table_client(endpoint: str | None) -> "DynamoDBClient":
    return connect(endpoint)


@cache
def _loop() -> asyncio.Runner:
    """One event loop for the life of the process: connections that were kept belong to it."""
    return asyncio.Runner()
