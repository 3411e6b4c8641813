"""What a turn takes of DynamoDB: worked out from the items that the codec makes, by the rules of the load.

`tests/bench` compares it with what real engines count.
"""

import math
from dataclasses import dataclass

from bench import stored, text
from memory import codec
from memory.codec import item_bytes
from memory.reading import Reading

BYTES_PER_TOKEN = 6
"""Of `bench/text.py`, in UTF-8. Everyday prose has fewer bytes a token, and compresses better."""
QUESTION_SHARE = 0.25
READ_UNIT = 4096
PAGE_BYTES = 1_048_576
"""What one call of Query reads at the most."""
INDEX_WRITES = 2
"""In the first turn of a minute the session's entry in the index is deleted and put anew."""
ITEM_OVERHEAD = 100
"""What DynamoDB adds to an item where it bills storage."""
_ENDLESS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Units:
    """What one turn takes."""

    calls: int
    reads: int
    writes: int
    index_writes: int
    """Those of `writes` that only the first turn of a minute makes."""
    stored: int
    """Bytes that the turn adds to the table."""


@dataclass(frozen=True, kw_only=True)
class Talk:
    """A conversation of turns that are all alike, as the next one finds it."""

    window: int
    """Tokens of the turns that fit."""
    turn_tokens: int
    turn_bytes: int
    """UTF-8 of what is said in a turn, by both sides."""
    token_limit: int

    @property
    def turns(self) -> int:
        """Turns in the window."""
        return self.window // self.turn_tokens

    @property
    def is_longer(self) -> bool:
        """Whether there are older turns, since one more would not have fitted."""
        return self.window + self.turn_tokens > self.token_limit


def units_of(talk: Talk) -> Units:
    """What the next turn takes."""
    asked = round(talk.turn_bytes * QUESTION_SHARE)
    messages = stored.exchange(text.words("question", asked), text.words("answer", talk.turn_bytes - asked))
    turn = stored.turn_of(1, messages, talk.turn_tokens)
    item, parts = codec.encode_turn(stored.SESSION, turn)
    size, part_sizes = item_bytes(item), [item_bytes(part) for part in parts]
    before = codec.RECENT_REQUESTS if talk.is_longer else talk.turns
    state = item_bytes(stored.state_item([turn] * before))
    pages = _pages(talk, state, size)
    own = sum(math.ceil(each / codec.WRITE_UNIT) for each in (state, size, *part_sizes))
    index = INDEX_WRITES if talk.turns or talk.is_longer else 1  # a session's first turn has no entry to delete
    return Units(
        calls=len(pages) + talk.turns * len(parts) + 2 + len(parts),  # claim and commit, beside the load
        reads=sum(max(1, math.ceil(page / READ_UNIT)) for page in pages)
        + talk.turns * sum(math.ceil(each / READ_UNIT) for each in part_sizes),
        writes=own + index,
        index_writes=index,
        stored=size + sum(part_sizes) + ITEM_OVERHEAD * (1 + len(parts)),
    )


def _pages(talk: Talk, state: int, turn: int) -> list[int]:
    """Bytes of each page that the load reads: of the turns that fit, and of those beside them on a page."""
    reading = Reading(session=stored.SESSION, token_limit=talk.token_limit, now=stored.MOMENT)
    one, left = stored.turn_of(1, (), talk.turn_tokens), _ENDLESS if talk.is_longer else talk.turns
    pages: list[int] = []
    for size in reading.page_sizes() or ():
        room = size - (not pages)  # the first item of the first page is the state
        taken = min(room, left, PAGE_BYTES // turn)
        fitting = min(taken, talk.turns - len(reading.turns))
        pages.append(taken * turn + (0 if pages else state))
        reading.turns += [one] * fitting
        left -= taken
        if fitting < taken or (not left and taken < room):
            break
    return pages
