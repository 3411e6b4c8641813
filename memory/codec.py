"""Turns and states as items of the table, and back: versioned, pure, no I/O.

Item attributes are plain Python values (str, int, bytes, lists); the table's own types are `dynamodb.py`'s business.
A release reads a version before any release writes it, since old and new code run side by side during a deployment.
"""

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote

from memory.turns import START, DamagedTurn, Message, Position, Request, Session, State, Turn, TurnStatus, WindowSize

Item = dict[str, Any]

WRITES = 1
"""Version of the items that this release writes: one that the release before it reads."""
READS = frozenset({1})
"""Versions of the items that it reads: all that were ever written."""
WRITE_UNIT = 1024
INLINE_BYTES = 64_000
"""Payload that a turn's own item takes. More goes into parts, which cost a load nothing where the turn does not fit."""
PART_BYTES = 380_000
"""Payload that a part takes; DynamoDB's limit for an item is 400 KiB, names and keys included."""
LARGEST_TURN = 64 * 1024 * 1024
"""Bytes of messages that are unpacked, at the most: many times what an invocation can have stored."""
LONGEST_SESSION = 1_000
"""Bytes of an encoded session id; a partition key takes 2,048 in all."""
STATE_OUTLIVES = timedelta(days=1)
"""How long a state stays when all of its turns have expired, or the session was deleted."""
RECENT_REQUESTS = 64
"""Requests that a state remembers, at most."""
LEAST_RECENT_REQUESTS = 16
"""Requests that it remembers even if its other attributes are long."""
HASH_BYTES = 8
UNANSWERED = bytes(HASH_BYTES)
"""Stands in the place of a request that failed: no copy of it can be given the answer."""
LONGEST_OWNER = 512
WAITERS_APART = 10**6

STATE_KEY = "state"
TURN_PREFIX = "TURN#"
PART_PREFIX = "PART#"
LAST_NUMBER = 10**10 - 1


def owner_key(owner: str) -> str:
    """The owner as part of a key: percent-encoded, and its SHA-256 (marked by a `=`, which encoding never yields)
    beyond 512 bytes."""
    encoded = quote(owner, safe="", errors="surrogatepass")
    if len(encoded) > LONGEST_OWNER:
        return "=" + hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()
    return encoded


def partition(session: Session) -> str:
    """The partition that holds everything of one session. Encoding keeps `#` for the places between the parts.

    Raises ValueError where the session's id is longer than a key may be.
    """
    encoded = quote(session.id, safe="", errors="surrogatepass")
    if len(encoded) > LONGEST_SESSION:
        raise ValueError(f"a session id takes {LONGEST_SESSION} bytes at the most, and this one has {len(encoded)}")
    return f"SESSION#{owner_key(session.owner)}#{encoded}"


def owner_partition(owner: str) -> str:
    """The partition that holds what concerns an owner, whatever the session."""
    return f"OWNER#{owner_key(owner)}"


def quota_key(begin: datetime) -> str:
    """Where the turns are counted that an owner takes from `begin` on: an item for each hour, which then expires."""
    return f"quota#{begin:%Y-%m-%dT%HZ}"


def session_id(partition_key: str) -> str:
    """The session id in a partition key."""
    return unquote(partition_key.rsplit("#", 1)[1], errors="surrogatepass")


def generation_prefix(generation: int) -> str:
    return f"{TURN_PREFIX}{generation:06}"


def turn_key(generation: int, number: int) -> str:
    return f"{generation_prefix(generation)}#{number:010}"


def part_key(generation: int, number: int, token: str, index: int) -> str:
    return f"{PART_PREFIX}{generation:06}#{number:010}#{token}#{index:03}"


def turn_numbers(sort_key: str) -> tuple[int, int]:
    """(generation, number) of a turn's sort key."""
    _, generation, number = sort_key.split("#")
    return int(generation), int(number)


def generation_ranges(first: int, end: int) -> list[tuple[str, str]]:
    """Bounds of the sort keys that turns and parts of the generations from `first` to below `end` have."""
    return [(f"{kind}{first:06}", f"{kind}{end:06}") for kind in (PART_PREFIX, TURN_PREFIX)]


def request_hash(request_id: str) -> bytes:
    """Eight bytes that find a request among the recent ones; the stored turn then decides."""
    return hashlib.sha256(request_id.encode("utf-8", "surrogatepass")).digest()[:HASH_BYTES]


def recent_request(status: str, request_id: str) -> bytes:
    """A turn's request among the recent ones."""
    return UNANSWERED if status == TurnStatus.FAILED else request_hash(request_id)


def encode_turn(session: Session, turn: Turn) -> tuple[Item, list[Item]]:
    """The turn's item, and the parts that have to be stored before it.

    There are parts where the turn is large; and where it failed, since loads pass by failed turns.
    """
    item: Item = {
        "pk": partition(session),
        "sk": turn_key(turn.generation, turn.number),
        "v": WRITES,
        "status": turn.status.value,
        "request_id": turn.request.id,
        "body_hash": turn.request.body_hash,
        "token": turn.token,
        "tokens": turn.tokens,
        "window": [turn.window.turns, turn.window.tokens, turn.window.limit],
        "started_at": timestamp(turn.started_at),
        "finished_at": timestamp(turn.finished_at),
        "instance": turn.instance,
    }
    if turn.window.shortened:
        item["window_shortened"] = turn.window.shortened  # beside `window`, of which 0.1.0 takes three numbers
    if turn.failure:
        item["failure"] = turn.failure
    if turn.supersedes:
        item["supersedes"] = turn.supersedes
    if turn.archived:
        item["archived"] = turn.archived
    if turn.deleted:
        item["deleted"] = turn.deleted
    lasting = expiry(turn.expires_at)
    item |= lasting
    payload = json.dumps(turn.messages, ensure_ascii=False, separators=(",", ":")).encode()
    packed = zlib.compress(payload)
    if _units(item, packed) < _units(item, payload):
        item["encoding"], payload = "zlib", packed
    if len(payload) <= INLINE_BYTES and turn.status is not TurnStatus.FAILED:
        return item | {"payload": payload}, []
    slices = [payload[i : i + PART_BYTES] for i in range(0, len(payload), PART_BYTES)]
    parts = [
        {"pk": item["pk"], "sk": part_key(turn.generation, turn.number, turn.token, i), "payload": part} | lasting
        for i, part in enumerate(slices)
    ]
    return item | {"parts": len(parts)}, parts


def part_keys(item: Mapping[str, Any]) -> list[str]:
    """Sort keys of the parts that a turn's item names; none where the item holds its messages itself."""
    generation, number = turn_numbers(item["sk"])
    return [part_key(generation, number, item["token"], i) for i in range(int(item.get("parts", 0)))]


def decode_turn(item: Mapping[str, Any], parts: Sequence[bytes] = ()) -> Turn:
    """The turn in an item (and the payloads of its parts, in order). Raises DamagedTurn where it cannot be read."""
    try:
        if int(item["v"]) not in READS:
            raise DamagedTurn(f"{item['sk']} has codec version {item['v']}; this release reads {sorted(READS)}")
        generation, number = turn_numbers(item["sk"])
        turns, tokens, limit = (int(value) for value in item["window"])
        return Turn(
            generation=generation,
            number=number,
            token=item["token"],
            status=TurnStatus(item["status"]),
            request=Request(id=item["request_id"], body_hash=item["body_hash"]),
            messages=_messages(b"".join(parts) if parts else item["payload"], item.get("encoding")),
            tokens=int(item["tokens"]),
            window=WindowSize(turns=turns, tokens=tokens, limit=limit, shortened=int(item.get("window_shortened", 0))),
            started_at=_datetime(item["started_at"]),
            finished_at=_datetime(item["finished_at"]),
            instance=item["instance"],
            failure=item.get("failure"),
            supersedes=int(item["supersedes"]) if "supersedes" in item else None,
            expires_at=_expires_at(item),
            archived=int(item.get("archived", 0)),
            deleted=int(item.get("deleted", 0)),
        )
    except (KeyError, ValueError, TypeError, zlib.error) as error:
        raise DamagedTurn(f"{item.get('sk')} cannot be read") from error


def encode_state(state: State) -> Item:
    """The attributes of a state item that every claim sets."""
    return {
        "generation": state.generation,
        "n": state.number,
        "holder": state.holder,
        "lease_until": timestamp(state.lease_until),
        "recent": b"".join(state.recent),
    }


def lasting(state: State | None) -> Item:
    """The attributes of a state item that claims leave as they are."""
    if state is None:
        return {}
    marks = {"archived_through": state.archived_through, "deleted_through": state.deleted_through}
    texts = {"title": state.title, "asked": state.asked, "marker": state.marker} | {
        name: encode_position(mark) for name, mark in marks.items() if mark != START
    }
    if state.created_at:
        texts["created_at"] = second(state.created_at)
    return {name: text for name, text in texts.items() if text}


def decode_state(item: Mapping[str, Any]) -> State:
    """The state in an item."""
    recent = item.get("recent", b"")
    return State(
        generation=int(item["generation"]),
        number=int(item["n"]),
        holder=item["holder"],
        lease_until=_datetime(item["lease_until"]),
        recent=tuple(recent[i : i + HASH_BYTES] for i in range(0, len(recent), HASH_BYTES)),
        archived_through=decode_position(item.get("archived_through")),
        deleted_through=decode_position(item.get("deleted_through")),
        marker=item.get("marker", ""),
        waiters=tuple(int(until) for until in item.get("waiters", ())),
        title=item.get("title", ""),
        created_at=_moment(item.get("created_at")),
        active_at=_moment(item.get("active_at")),
        expires_at=_expires_at(item),
        asked=item.get("asked", ""),
        deleted="deleted_at" in item,
    )


def encode_waiter(until: datetime, token: str) -> int:
    """A request that waits: the milliseconds until which it does, and digits of its token, since many come at once."""
    return timestamp(until) * WAITERS_APART + zlib.crc32(token.encode()) % WAITERS_APART


def waits(waiter: int, now: datetime) -> bool:
    """Whether a request still waits."""
    return waiter // WAITERS_APART > timestamp(now)


def expiry(moment: datetime | None) -> Item:
    """The attribute by which DynamoDB removes an item some time after a moment: seconds since 1970, rounded up."""
    return {} if moment is None else {"expires_at": math.ceil(moment.timestamp())}


def is_expired(item: Mapping[str, Any], now: datetime) -> bool:
    """Whether the item is to be taken for one that is not there."""
    return "expires_at" in item and int(item["expires_at"]) <= now.timestamp()


def all_turns_expired(state: State, now: datetime) -> bool:
    """Whether none of a session's turns can be unexpired: its state outlives them, counted in whole minutes."""
    return state.expires_at is not None and state.expires_at - STATE_OUTLIVES + timedelta(minutes=1) <= now


def minute(moment: datetime) -> str:
    """A time as the index sorts it: in whole minutes, so that it is not written at every turn."""
    return f"{moment:%Y-%m-%dT%H:%MZ}"


def second(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def encode_position(position: Position) -> str:
    number, messages = position
    return f"{number}:{messages}"


def decode_position(text: str | None) -> Position:
    number, messages = (text or "0:0").split(":")
    return int(number), int(messages)


def remember(state: State | None, number: int, request_id: str) -> tuple[bytes, ...]:
    """The recent requests after a claim of `number`: one entry for each of the last numbers."""
    before = () if state is None else state.recent if state.number < number else state.recent[:-1]
    return (*before, request_hash(request_id))[-RECENT_REQUESTS:]


def corrected(state: State, item: Mapping[str, Any]) -> State:
    """The state whose last entry is the request that the turn of its number, in `item`, has answered.

    A holder that was overtaken may still have been the faster one: then the entry is of a claim that came to nothing.
    """
    entry = recent_request(str(item.get("status", "")), str(item.get("request_id", "")))
    return replace(state, recent=(*state.recent[:-1], entry))


def recall(state: State, request_id: str) -> list[int]:
    """Numbers of the turns that may have answered this request, newest first."""
    wanted, newest = request_hash(request_id), state.number
    return [newest - age for age, entry in enumerate(reversed(state.recent)) if entry == wanted]


def _messages(payload: bytes, encoding: str | None) -> tuple[Message, ...]:
    if encoding == "zlib":
        unpacking = zlib.decompressobj()
        payload = unpacking.decompress(payload, LARGEST_TURN)
        if not unpacking.eof:
            raise ValueError(f"more than {LARGEST_TURN} bytes, or a broken end")
    elif encoding is not None:
        raise ValueError(f"unknown encoding {encoding!r}")
    return tuple(json.loads(payload))


def item_bytes(item: Mapping[str, Any]) -> int:
    """An item's size as DynamoDB counts it: names and values."""
    return sum(len(name) + _value_bytes(value) for name, value in item.items())


def _value_bytes(value: Any) -> int:
    match value:
        case str():
            return len(value.encode())
        case bytes():
            return len(value)
        case list():
            return 3 + sum(1 + _value_bytes(element) for element in value)
        case int() | Decimal():
            return math.ceil(len(str(value).rstrip("0")) / 2) + 1  # two digits a byte, except zeros at the end
    raise TypeError(f"items hold no {type(value).__name__}")


def _units(item: Item, payload: bytes) -> int:
    return math.ceil(item_bytes(item | {"payload": payload}) / WRITE_UNIT)


def timestamp(moment: datetime) -> int:
    """Milliseconds since 1970, UTC."""
    return round(moment.timestamp() * 1000)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _expires_at(item: Mapping[str, Any]) -> datetime | None:
    return _datetime(int(item["expires_at"]) * 1000) if "expires_at" in item else None


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(milliseconds))
