"""Cursors: opaque words for a place in a list, good for the one caller and the one list that they were made for."""

from typing import Any

from itsdangerous import BadData, URLSafeSerializer

from handlers.problems import bad_field


def encode(place: list[Any], *, owner: str, what: str) -> str:
    """A cursor for a place in one of the owner's lists."""
    return _serializer(owner, what).dumps(place)


def decode(cursor: str, *, owner: str, what: str) -> list[Any]:
    """The place. Raises a Problem for whatever was not made for this owner and this list."""
    try:
        place: list[Any] = _serializer(owner, what).loads(cursor)
    except (BadData, UnicodeEncodeError) as error:
        raise bad_field(
            "cursor", "cursor is none that came with a page of this list; leave it out to begin at the first page"
        ) from error
    return place


def _serializer(owner: str, what: str) -> URLSafeSerializer:
    # The owner is no secret from itself, and need not be: who forges a cursor sees their own list from another place.
    # What cannot be is that a cursor names anything of somebody else, since every place is one of the caller's.
    return URLSafeSerializer(owner, salt=f"rehydrate.cursor.{what}")
