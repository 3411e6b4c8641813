"""Turns as items, and back."""

import zlib
from dataclasses import replace
from typing import Any

import pytest

from memory import codec
from memory.turns import DamagedTurn, Request, Session, Turn, TurnStatus, WindowSize, utc_now
from tests.conftest import exchange

SESSION = Session(owner="jwt:a", id="talk")


def turn(text: str = "hello", **changes: Any) -> Turn:
    plain = Turn(
        generation=3,
        number=7,
        token="token",
        status=TurnStatus.COMPLETE,
        request=Request(id="key", body_hash="hash"),
        messages=tuple(exchange(text, "answer")),
        tokens=12,
        window=WindowSize(turns=6, tokens=100, limit=1000),
        started_at=utc_now(),
        finished_at=utc_now(),
        instance="here",
    )
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text": ""},
        {"text": "Grüße 🌍 \u0000 \u2028"},
        {"text": "x" * 100_000},
        {"archived": 1},
        {"messages": ({"role": "tool", "additional_kwargs": {"f": 1.5e-300, "n": None, "d": {"": []}}, "blocks": []},)},
    ],
)
def test_a_turn_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    """Encoding and decoding change nothing."""
    item, parts = codec.encode_turn(SESSION, turn(**changes))
    assert parts == []
    assert codec.decode_turn(item) == turn(**changes) or codec.decode_turn(item).messages == turn(**changes).messages


def test_a_failed_turn_keeps_its_message_in_a_part() -> None:
    """Loads pass by failed turns, and do not pay for what was said in them."""
    failed = turn(status=TurnStatus.FAILED, failure="model_error")
    item, parts = codec.encode_turn(SESSION, failed)
    assert "payload" not in item
    assert codec.decode_turn(item, [part["payload"] for part in parts]) == failed


def test_a_session_id_that_no_key_takes_is_refused() -> None:
    """DynamoDB's keys are bounded, and the error says so."""
    with pytest.raises(ValueError, match="1000 bytes"):
        codec.partition(Session(owner="a", id="ü" * 500))


def test_a_turn_is_compressed_where_that_saves_a_write_unit() -> None:
    """Small payloads stay readable in the console; large ones cost less."""
    assert "encoding" not in codec.encode_turn(SESSION, turn())[0]
    assert codec.encode_turn(SESSION, turn("word " * 1000))[0]["encoding"] == "zlib"


def test_a_large_turn_is_cut_into_parts_that_fit_an_item() -> None:
    """The parts come with the keys that the main item names, and together they are the turn."""
    noise = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(400_000))
    item, parts = codec.encode_turn(SESSION, turn(noise))
    assert [part["sk"] for part in parts] == codec.part_keys(item)
    assert all(len(part["payload"]) <= codec.PART_BYTES for part in parts)
    assert codec.decode_turn(item, [part["payload"] for part in parts]).messages == turn(noise).messages


def test_a_turn_with_a_missing_part_is_damaged() -> None:
    """What is there of a turn is not shown for the whole."""
    noise = "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(400_000))
    item, parts = codec.encode_turn(SESSION, turn(noise))
    with pytest.raises(DamagedTurn):
        codec.decode_turn(item, [part["payload"] for part in parts[:-1]])


@pytest.mark.parametrize(
    "damage",
    [
        {"v": 99},
        {"v": "x"},
        {"payload": b"not json"},
        {"encoding": "zlib"},
        {"encoding": "unknown"},
        {"status": "unknown"},
        {"window": []},
        {"sk": "TURN#x"},
    ],
)
def test_an_item_that_cannot_be_read_is_damaged(damage: dict[str, Any]) -> None:
    """Whatever is wrong with an item, it is one error, with its cause."""
    item, _ = codec.encode_turn(SESSION, turn())
    with pytest.raises(DamagedTurn):
        codec.decode_turn(item | damage)


def test_a_small_item_cannot_unpack_to_a_huge_one() -> None:
    """Whoever can write to the table cannot use up the memory of a function with an item of a few kilobytes."""
    item, _ = codec.encode_turn(SESSION, turn())
    bomb = zlib.compress(b" " * (codec.LARGEST_TURN + 1))
    with pytest.raises(DamagedTurn):
        codec.decode_turn(item | {"encoding": "zlib", "payload": bomb})


def test_keys_sort_as_numbers_do() -> None:
    """The newest turn of the newest generation sorts last, the state above all, and parts below."""
    keys = [
        codec.part_key(999, 1, "t", 0),
        codec.turn_key(1, 9),
        codec.turn_key(1, 10),
        codec.turn_key(1, codec.LAST_NUMBER),
        codec.turn_key(2, 1),
        codec.turn_key(10, 1),
        codec.STATE_KEY,
    ]
    assert keys == sorted(keys)


@pytest.mark.parametrize("owner", ["jwt:a", "a#b", "ü" * 1000, "", "\ud800"])
def test_the_session_id_can_be_read_from_a_key(owner: str) -> None:
    """Ids of any characters survive the partition key."""
    for name in ("talk", "a#b/c", "ü", "%23", ""):
        assert codec.session_id(codec.partition(Session(owner=owner, id=name))) == name
