"""This project: the turn log as the chat function uses it, load, claim and commit, with a window of 10,000 tokens.

All turns fall into one minute, or, in the variant `minutes`, each into one of its own: the first turn of a minute also
writes the index of sessions.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from llama_index.core.base.llms.types import ChatMessage

from bench import program, text
from memory.chat_store import TurnChatStore, count_tokens, encode_message
from memory.dynamodb import DynamoDBTurnLog
from memory.table import connect, create_table
from memory.turns import Request, Session, take_turn, utc_now

TOKEN_LIMIT = 10_000
PATIENCE_SECONDS = 12.0
INSTANCE = f"2026/01/01/[$LATEST]{'0' * 32}"
OWNER = f"token:{'0' * 32}"


class TurnLogPeer:
    """The turn log."""

    def __init__(self, options: program.Options) -> None:
        self._client = connect(options.endpoint)
        self._table = options.table
        self._minutes = options.variant == "minutes"
        self._began = utc_now().replace(second=0)
        create_table(self._client, self._table)

    def take_turn(self, session: str, number: int) -> None:
        log = DynamoDBTurnLog(self._client, self._table, clock=self._clock(session, number))
        asyncio.run(_take_turn(log, session, number))

    def texts(self, session: str) -> list[str]:
        log = DynamoDBTurnLog(self._client, self._table)
        window = asyncio.run(log.load(_session(session), token_limit=None))
        return [block["text"] for turn in window.turns for message in turn.messages for block in message["blocks"]]

    def _clock(self, session: str, number: int) -> Callable[[], datetime]:
        """Racers look at the real clock, on which their leases rest."""
        if session != "alone":
            return utc_now
        moment = self._began + timedelta(minutes=number) if self._minutes else self._began
        return lambda: moment


async def _take_turn(log: DynamoDBTurnLog, session: str, number: int) -> None:
    question, answer = text.question(number), text.answer(number)
    window, claim = await take_turn(
        log, _session(session), _request(number), token_limit=TOKEN_LIMIT, patience=PATIENCE_SECONDS, title=question
    )
    if claim is None:
        raise RuntimeError("the turn was there before")
    store = TurnChatStore(window)
    said = [ChatMessage(role="user", content=question), ChatMessage(role="assistant", content=answer)]
    await store.get_messages(session)
    await store.add_messages(session, said)
    messages = store.collected()
    turn = claim.completed(
        [encode_message(message) for message in messages],
        tokens=count_tokens(messages),
        at=claim.claimed_at,
        instance=INSTANCE,
    )
    await log.commit(claim, turn)


def _session(session: str) -> Session:
    return Session(owner=OWNER, id=session)


def _request(number: int) -> Request:
    body = hashlib.sha256(text.question(number).encode()).hexdigest()
    return Request(id=str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))), body_hash=body)


if __name__ == "__main__":
    program.run(TurnLogPeer)
