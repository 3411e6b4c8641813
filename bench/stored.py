"""A made-up session as it lies in the table: turns, and the items that the codec makes of them. Needs no LlamaIndex."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from memory import codec
from memory.items import fitted
from memory.turns import Claim, Message, Request, Session, State, Turn, WindowSize

INSTANCE = f"2026/01/01/[$LATEST]{'0' * 32}"
SESSION = Session(owner=f"token:{'0' * 32}", id="default")
MOMENT = datetime(2026, 1, 1, 12, 34, 56, 789_000, UTC)
TITLE = "What a session is called: the beginning of the first message, on one line, 80 ch"

Item = dict[str, Any]


def exchange(question: str, answer: str) -> list[Message]:
    """A user's message and the assistant's, as the turn log keeps them."""
    said = {"user": question, "assistant": answer}
    return [
        {"role": role, "additional_kwargs": {}, "blocks": [{"block_type": "text", "text": text}]}
        for role, text in said.items()
    ]


def turn_of(number: int, messages: Sequence[Message], tokens: int) -> Turn:
    """A complete turn."""
    claim = Claim(
        session=SESSION,
        generation=1,
        number=number,
        token=f"{number:016}",
        request=request_of(number),
        window=WindowSize(turns=0, tokens=0, limit=0),
        claimed_at=MOMENT,
    )
    return claim.completed(messages, tokens=tokens, at=MOMENT + timedelta(seconds=2), instance=INSTANCE)


def request_of(number: int) -> Request:
    """The request that a turn answered; its id is as long as Lambda's are."""
    return Request(id=f"{number:036}", body_hash="0" * 32)


def state_item(turns: Sequence[Turn]) -> Item:
    """The session's state after these turns."""
    state = State(
        generation=1,
        number=len(turns),
        holder=turns[-1].token if turns else "0" * 16,
        lease_until=MOMENT,
        recent=tuple(codec.request_hash(turn.request.id) for turn in turns)[-codec.RECENT_REQUESTS :],
    )
    owner = codec.owner_key(SESSION.owner)
    shown = {"owner": owner, "title": TITLE, "active_at": codec.minute(MOMENT), "created_at": codec.second(MOMENT)}
    keys = {"pk": codec.partition(SESSION), "sk": codec.STATE_KEY, "reserved": 1}
    return fitted(codec.encode_state(state) | shown | keys)
