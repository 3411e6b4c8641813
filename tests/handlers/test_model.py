"""What the client of the model makes of its server's headers."""

import pytest

from handlers.model import LONGEST_PAUSE_SECONDS
from handlers.model_errors import asked_pause


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("", 0),
        ("0", 0),
        ("-3", 0),
        ("soon", 0),
        ("nan", 0),
        ("inf", 0),
        ("Fri, 01 Jan 1999 00:00:00 GMT", 0),
    ],
)
def test_a_pause_is_read_in_seconds(asked: str, seconds: float) -> None:
    """What is no number of seconds to wait is no pause."""
    assert asked_pause({"retry-after": asked}) == seconds


def test_a_pause_may_be_a_date() -> None:
    """Until then is how long it is."""
    assert asked_pause({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}) > LONGEST_PAUSE_SECONDS


def test_no_header_is_no_pause() -> None:
    """Most servers ask for none."""
    assert asked_pause({}) == 0
