"""The handler of the chat function: an event in, the caller's turn in between, a response out."""

from collections.abc import Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.utilities.typing import LambdaContext
from llama_index.core.base.llms.types import ChatMessage

from handlers.agent import build_agent
from handlers.conversation import Answered, Ask, Conversation, NoTimeLeft, Progress
from handlers.front import Front, allowance, deadline, identified, json_response, table_client
from handlers.model import chat_model
from handlers.problems import ADVICE, AGAIN, HINTS, KEPT, Kind, Problem, bad_field, cause, unauthorized, unavailable
from handlers.report import Exchange, entry_point
from handlers.request import body_hash, idempotency_key, read_body, session_header, session_named, turn_named
from handlers.run import AgentFailed, ModelNoted, StructuredOutputFailed, ToolReturned
from handlers.settings import Settings
from handlers.shapes import DEFAULT_SESSION, ChatAnswer, ChatRequest, Memory
from handlers.snapshot import register_hooks
from handlers.tools import ToolError
from handlers.tracing import step
from memory.chat_store import count_tokens, decode_message
from memory.dynamodb import DynamoDBTurnLog
from memory.shortening import LEAST_TOKENS
from memory.turns import Message, Request, Session, Window

MAX_FAILED_TOOLS = 10
"""How many a log line tells of."""

front = Front()
register_hooks()


@entry_point
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda's entry point."""
    return front(event, context)


@front.route("POST", "/chat")
async def chat(exchange: Exchange) -> Response[str]:
    """One turn of the caller's conversation."""
    exchange.line = "turn"
    caller = identified(exchange)
    body = read_body(exchange.event, ChatRequest, limit=exchange.settings.max_body_bytes)
    _check_length(body.message, exchange.settings)
    named = body.session_id or session_header(exchange.event)
    if named is not None and caller.source == "new":
        raise unauthorized(
            f"The request names the session {named!r} and brings no session token, so its owner is unknown, and it "
            "would be answered from an empty conversation. Send the cookie or the x-session-token header that came "
            "with an earlier answer; to start as a new caller, leave the session out."
        )
    session = Session(owner=caller.owner, id=named or DEFAULT_SESSION)
    request = Request(id=_request_id(exchange), body_hash=body_hash("POST /chat", session.id, body.message))
    return await take_turn(exchange, Ask(session=session, request=request, message=body.message))


@front.route("POST", "/sessions/{id}/turns/{n}/regenerate")
async def regenerate(exchange: Exchange) -> Response[str]:
    """Another answer to the newest turn of a session."""
    exchange.line = "turn"
    session = session_named(identified(exchange), exchange.places["id"])
    number = turn_named(exchange.places["n"])
    asked = body_hash("POST /sessions/{id}/turns/{n}/regenerate", session.id, number)
    request = Request(id=_request_id(exchange), body_hash=asked, regenerates=number)
    return await take_turn(exchange, Ask(session=session, request=request))


async def take_turn(exchange: Exchange, ask: Ask) -> Response[str]:
    """The response to a request that is answered. Raises a Problem where the agent has no answer."""
    conversation, answered = begin(exchange), None
    exchange.session, exchange.taken = ask.session, True
    with step("turn") as note:
        try:
            async with aclosing(conversation.answer(ask)) as events:
                async for happened in events:
                    if isinstance(happened, Answered):
                        answered = happened
                    elif isinstance(happened, ModelNoted):
                        exchange.facts |= happened.notes
                        if "finish_reason" in happened.notes:
                            exchange.facts["hint"] = "the answer was cut short"
                        elif "missing_tool_calls" in happened.notes:
                            exchange.facts["hint"] = "the model announced tool calls and made none"
                    elif isinstance(happened, ToolReturned):
                        note_tool(exchange.facts, happened)
                    elif isinstance(happened, StructuredOutputFailed):
                        hint = "the answer has no structured output, since it could not be made"
                        exchange.facts |= {"structured_output": cause(happened.error), "hint": hint}
            return answer(exchange, ask, answered)
        except NoTimeLeft as error:
            raise unavailable(
                "There was not enough time left to begin a turn, and nothing was stored. Send it again."
            ) from error
        except AgentFailed as error:
            exchange.facts |= error.facts
            if error.code in HINTS:
                exchange.facts["hint"] = HINTS[error.code]
            if error.code == "prompt_refused" and (window := conversation.progress.window):
                exchange.facts["window_turns"] = [turn.number for turn in window.turns]
            raise Problem(
                kind=Kind.AGENT_TIMED_OUT if error.timed_out else Kind.AGENT_FAILED,
                detail=f"{KEPT} {ADVICE.get(error.code, AGAIN)}",
                extra={"code": error.code},
                retry_after=error.retry_after,
            ) from error
        finally:
            exchange.usages.append(conversation.log.usage)
            exchange.facts = facts(conversation, ask, answered) | exchange.facts
            note(exchange.facts)


def note_tool(facts: dict[str, Any], returned: ToolReturned) -> None:
    """What the log line says of a tool: how it failed, and how much of its result the model was not shown."""
    if returned.left_out:
        facts["tool_chars_left_out"] = facts.get("tool_chars_left_out", 0) + returned.left_out
        facts["hint"] = "a tool's result was longer than MAX_TOOL_RESULT_CHARS"
    if returned.error and len(failed := facts.setdefault("failed_tools", [])) < MAX_FAILED_TOOLS:
        failed.append({"tool": returned.name, "cause": cause(returned.error)})
    if returned.error and not isinstance(returned.error, ToolError):
        facts["hint"] = "a tool failed"


def begin(exchange: Exchange) -> Conversation:
    """What this invocation takes its turn with; only clients and settings are kept from one to the next."""
    settings = exchange.settings
    model = chat_model(settings)
    if settings.model_user_parameter:
        model = model.for_user(settings.model_user_parameter, exchange.owner_hash)
    client = table_client(settings.dynamodb_endpoint)
    return Conversation(
        log=DynamoDBTurnLog(client, settings.table_name, retention=settings.retention, count_tokens=tokens),
        build_agent=lambda: build_agent(model),
        instance=settings.instance,
        token_limit=settings.token_limit,
        max_result_chars=settings.max_tool_result_chars,
        wait_seconds=settings.turn_wait_seconds,
        max_waiting=settings.max_waiting,
        deadline=deadline(exchange.context),
        allowance=allowance(exchange),
        progress=Progress(traced=step),
    )


def answer(exchange: Exchange, ask: Ask, answered: Answered | None) -> Response[str]:
    """The response that shows a stored turn."""
    if not (exchange.caller and answered):
        raise RuntimeError("the conversation ended without an answer")
    turn = answered.turn
    body = ChatAnswer(
        answer=turn.answer,
        structured=turn.structured,
        session_id=ask.session.id,
        turn=turn.number,
        request_id=turn.request.id,
        memory=Memory(
            turns_in_window=turn.window.turns,
            turns_shortened=turn.window.shortened,
            window_tokens=turn.window.tokens,
            token_limit=turn.window.limit,
            turns_total=turn.number - 1,
        ),
        identity=exchange.caller.source,
    )
    return json_response(HTTPStatus.OK, body, replayed=answered.replayed)


def facts(conversation: Conversation, ask: Ask, answered: Answered | None) -> dict[str, Any]:
    """What the log line says of a turn: what was remembered, and how long each step took."""
    progress = conversation.progress
    found: dict[str, Any] = {
        "request_id": ask.request.id,
        "token_limit": conversation.token_limit,
        "replayed": bool(answered and answered.replayed),
        **{f"{step}_ms": taken for step, taken in progress.milliseconds.items()},
    }
    if answered:
        found["outcome"] = "answered"
    if window := progress.window:
        found |= {
            "window_tokens": window.tokens,
            "turns_in_window": len(window.turns),
            "turns_total": window.total_turns,
        }
        if window.shortened:
            found["shortened_turns"] = list(window.shortened)
        if window.damaged:
            found["damaged_turns"] = list(window.damaged)
        if answered and not answered.replayed and (why := hint(window)):
            found["hint"] = why
    if progress.turn:
        found["turn"] = progress.turn.number
    return found


def hint(window: Window) -> str | None:
    """Why the agent may seem to have forgotten something; None if there is no reason, or memory is switched off."""
    if window.shortened:
        return "the newest turn alone exceeds TOKEN_LIMIT: the model was shown parts of it"
    if window.turns or not window.total_turns or not window.token_limit:
        return None
    if window.token_limit < LEAST_TOKENS:
        return f"the model was shown no earlier turn: TOKEN_LIMIT is below {LEAST_TOKENS}, or none was answered"
    return "the model was shown no earlier turn: none was answered and can still be read"


def tokens(messages: Sequence[Message]) -> int:
    """Tokens that stored messages take of a model's context."""
    return count_tokens(map(decode_message, messages))


def _check_length(message: str, settings: Settings) -> None:
    """Raises a 413 Problem. Characters are counted first: to count tokens takes longer."""
    if len(message) > (limit := settings.max_message_chars):
        size, unit, name = len(message), "characters", "MAX_MESSAGE_CHARS"
    elif (counted := count_tokens([ChatMessage(role="user", content=message)])) > (limit := settings.message_tokens):
        size, unit, name = counted, "tokens", "MAX_MESSAGE_TOKENS"
    else:
        return
    raise bad_field(
        "message",
        f"message has {size} {unit}, and {limit} are allowed ({name}); shorten it or send it in parts",
        kind=Kind.TOO_LARGE,
    )


def _request_id(exchange: Exchange) -> str:
    """The client's idempotency key; without one, the id of the invocation.

    Not the id that API Gateway gives the request: `sam local` gives every request the same one.
    """
    return idempotency_key(exchange.event) or exchange.context.aws_request_id
