"""What a turn takes of the table, as it is worked out and as real engines count it."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ChatMessage

from bench import stored, text
from bench.units import BYTES_PER_TOKEN, QUESTION_SHARE, Talk, units_of
from memory.chat_store import count_tokens, encode_message
from memory.turns import Session, Usage, Window, take_turn, utc_now
from tests.conftest import Store, asking

PAGE = Path(__file__).parents[2] / "docs" / "COST.md"
ROWS = re.findall(
    r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text(), re.MULTILINE
)
"""The page's table: tokens of a turn, of the window, TOKEN_LIMIT; bytes stored, calls, write and read units."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the page's table."""

    talk: Talk
    stored: int
    calls: int
    writes: int
    reads: int


def rows() -> list[Row]:
    found = []
    for cells in ROWS:
        tokens, window, limit, *figures = (int(cell.replace(",", "")) for cell in cells)
        talk = Talk(window=window, turn_tokens=tokens, turn_bytes=tokens * BYTES_PER_TOKEN, token_limit=limit)
        found.append(Row(talk=talk, **dict(zip(("stored", "calls", "writes", "reads"), figures, strict=True))))
    return found


async def counted(store: Store, talk: Talk) -> tuple[Usage, Window]:
    """What the next turn of a real conversation takes, which falls into another minute than the one before."""
    session, began = store.session(), utc_now().replace(second=0)
    older = 2 * talk.turns + talk.token_limit // 500 if talk.is_longer else talk.turns
    for _ in range(older):
        await take(store, session, talk, minute=0, began=began, limit=0)
    return await take(store, session, talk, minute=1, began=began, limit=talk.token_limit)


async def take(
    store: Store, session: Session, talk: Talk, *, minute: int, began: datetime, limit: int
) -> tuple[Usage, Window]:
    log = store.log(clock=lambda: began + timedelta(minutes=minute))
    window, claim = await take_turn(log, session, asking(""), token_limit=limit, patience=1, title=stored.TITLE)
    assert claim
    asked = round(talk.turn_bytes * QUESTION_SHARE)
    messages = stored.exchange(text.words("question", asked), text.words("answer", talk.turn_bytes - asked))
    turn = claim.completed(messages, tokens=talk.turn_tokens, at=claim.claimed_at, instance=stored.INSTANCE)
    await log.commit(claim, turn)
    return log.usage, window


def test_the_page_has_a_table() -> None:
    """The rows that the other tests go through are found in the page."""
    assert len(ROWS) >= 6


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.talk.turn_tokens} in {row.talk.window}")
async def test_the_page_and_the_engines_count_alike(real_store: Store, row: Row) -> None:
    """What the page says of a turn is what an engine counts when that turn is taken."""
    usage, window = await counted(real_store, row.talk)
    assert len(window.turns) == row.talk.turns
    reads = max(1, usage.read_units)  # DynamoDB Local alone counts nothing for a read that finds nothing
    assert (usage.calls, usage.write_units, reads) == (row.calls, row.writes, row.reads)


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.talk.turn_tokens} in {row.talk.window}")
def test_the_calculator_works_out_what_the_page_says(row: Row) -> None:
    """The units that are worked out without an engine are those that engines count."""
    units = units_of(row.talk)
    assert (units.stored, units.calls, units.writes, units.reads) == (row.stored, row.calls, row.writes, row.reads)


def test_a_token_of_the_made_up_text_has_so_many_bytes() -> None:
    """Turns are made as large as their tokens say."""
    said = text.words("any", 6_000)
    tokens = count_tokens([ChatMessage(role="user", content=said)])
    assert len(said) / tokens == pytest.approx(BYTES_PER_TOKEN, rel=0.05)


def test_messages_are_made_as_the_turn_log_keeps_them() -> None:
    """The made-up messages have the form of real ones, and so their size."""
    real = [encode_message(ChatMessage(role=role, content=f"by {role}")) for role in ("user", "assistant")]
    assert stored.exchange("by user", "by assistant") == real
