"""Cursors: opaque words for a place in a list, good for the one caller and the one list that they were made for."""

from typing import Any, TypeVar

from itsdangerous import BadData, URLSafeSerializer
from pydantic import TypeAdapter, ValidationError

from handlers.problems import bad_field

P = TypeVar("P")


def encode(place: list[Any], *, owner: str, what: str) -> str:
    """A cursor for a place in one of the owner's lists."""
    return _serializer(owner, what).dumps(place)


def decode(cursor: str, place: TypeAdapter[P], *, owner: str, what: str) -> P:
    """The place. Raises a Problem for whatever was not made for this owner and this list, or is no such place."""
    try:
        return place.validate_python(_serializer(owner, what).loads(cursor))
    except (BadData, UnicodeEncodeError, ValidationError) as error:
        raise bad_field(
            "cursor", "cursor is none that came with a page of this list; leave it out to begin at the first page"
        ) from error


def _serializer(owner: str, what: str) -> URLSafeSerializer:
    # The owner is no secret from itself, and need not be: who forges a cursor sees their own list from another place.
    # What cannot be is that a cursor names anything of somebody else, since every place is one of the caller's.
    return URLSafeSerializer(owner, salt=f"rehydrate.cursor.{what}")
