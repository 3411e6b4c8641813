"""What one load sees of a session, newest first, and what of it belongs to the window. Pure, no I/O."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from memory import codec
from memory.codec import Item
from memory.shortening import CountTokens, most_tokens, shortened
from memory.turns import (
    DamagedTurn,
    NotTheNewestTurn,
    Request,
    Session,
    SessionNotFound,
    State,
    Turn,
    TurnNotFound,
    TurnStatus,
)

TOKENS_PER_TURN = 500
"""What the first page of a load expects of a turn. Where turns are shorter, a second one follows."""
ACTIVE_TURNS = 50
"""Turns in the first page of a load of what is active. A second page has the rest."""


@dataclass(kw_only=True)
class Reading:
    """What one load has seen of a session, newest first."""

    session: Session
    token_limit: int | None
    now: datetime
    count_tokens: CountTokens = most_tokens
    request: Request | None = None
    active: bool = False
    """Whether to read no further than to what was archived."""
    state: State | None = None
    regenerated: Turn | None = None
    """The turn that the request wants answered again."""
    superseded: set[int] = field(default_factory=set)
    """Numbers of the turns that a later one took the place of."""
    followed: bool = False
    """Whether something came after the turn to be answered again, failed attempts at it aside."""
    turns: list[Turn] = field(default_factory=list)
    whole: dict[int, Turn] = field(default_factory=dict)
    """Turns that `turns` has shortened, as they are stored, by number."""
    too_small: bool = False
    """Whether the limit is too small for any part of the newest turn."""
    damaged: dict[int, str] = field(default_factory=dict)
    """Numbers of the turns that could not be read, with their request ids."""
    newest: int = 0
    """Number of the newest turn that is stored, readable or not."""
    oldest: int = 0
    """Number of the last turn that was looked at."""
    highest_generation: int = 0
    pages: int = 0

    @property
    def generation(self) -> int:
        """Without a state, whatever is stored belongs to a conversation that was deleted: the next one starts anew."""
        return self.state.generation if self.state else self.highest_generation + 1

    @property
    def next_number(self) -> int:
        if self.state is None:
            return 1
        return self.state.number + (1 if self.newest >= self.state.number else 0)

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)

    @property
    def met_unfinished_rewrite(self) -> bool:
        """A rewrite's turns, which nobody may see yet, stand above those of the state's generation."""
        return self.state is not None and self.highest_generation > self.state.generation

    def page_sizes(self) -> Iterator[int] | None:
        """As many items as the limit may hold; then as many as it may still hold, by the turns that were seen."""
        if self.active:
            return self._active_page_sizes()
        return None if self.token_limit is None else self._page_sizes(self.token_limit)

    def _active_page_sizes(self) -> Iterator[int]:
        """Some turns; then as many as are left above what is archived, and one more, which ends the load."""
        yield ACTIVE_TURNS + 1
        while True:
            archived = self.state.archived_through[0] if self.state else 0
            yield max(0, self.oldest - archived) + 2

    def _page_sizes(self, limit: int) -> Iterator[int]:
        size = limit // TOKENS_PER_TURN + 2
        while True:
            yield size
            average = self.tokens / len(self.turns) if self.turns else 0
            size = math.ceil((limit - self.tokens) / average * 1.1) + 2 if average else size * 2

    def take_state(self, item: Item) -> None:
        """Take the session's state. Of an expired one there is nothing to be seen, but it can still be claimed."""
        state = codec.decode_state(item)
        self.state = state if state.exists(self.now) else replace(state, created_at=None)

    def wants(self, item: Item) -> bool:
        """Whether this turn belongs to the window. If it does not, none of the older ones does."""
        generation, number = codec.turn_numbers(item["sk"])
        self.highest_generation = max(self.highest_generation, generation)
        if self.state is None or generation != self.state.generation:
            return False
        self.newest, self.oldest = max(self.newest, number), number
        if number == self.state.number:
            self.state = codec.corrected(self.state, item)
        if number < self.state.deleted_through[0]:
            return False
        self._notice(item, number)
        if self.followed:  # then it is too late, however far below the turn is
            return False
        if self.active and number < self.state.archived_through[0]:
            return False
        if self.token_limit is None or number >= self._to_regenerate > 0:
            return True
        if self.token_limit == 0 or self.too_small or number < self.state.archived_through[0]:
            return False
        if codec.is_expired(item, self.now):
            return not self.turns and not codec.all_turns_expired(self.state, self.now)
        return self.skips(item) or not self.turns or self.tokens + int(item.get("tokens", 0)) <= self.token_limit

    def skips(self, item: Item) -> bool:
        """Whether nothing of this turn is shown: it has expired, or the window is a model's and the turn is not."""
        number = codec.turn_numbers(item["sk"])[1]
        if codec.is_expired(item, self.now):
            return True
        if self.token_limit is None or number == self._to_regenerate:
            return False
        if item.get("status") in (TurnStatus.FAILED, TurnStatus.SUPERSEDED) or number in self.superseded:
            return True
        return bool(item.get("archived") or item.get("deleted") or self._is_marked(number))

    def _is_marked(self, number: int) -> bool:
        """Whether a mark covers some of this turn's messages, so that no model is shown the others."""
        state = self.state
        return state is not None and (number, 0) < max(state.archived_through, state.deleted_through)

    def _notice(self, item: Item, number: int) -> None:
        """What the turn says of others: which one it supersedes, and whether one can still be answered again."""
        supersedes, failed = int(item.get("supersedes", 0)), item.get("status") == TurnStatus.FAILED
        if supersedes and (not failed or number == self._to_regenerate):
            self.superseded.add(supersedes)
        if number > self._to_regenerate > 0 and item.get("status") != TurnStatus.VOID:
            self.followed |= not (failed and supersedes)

    @property
    def _to_regenerate(self) -> int:
        return (self.request and self.request.regenerates) or 0

    def recalled(self, request_id: str) -> list[int]:
        """Numbers of stored turns that may have answered this request."""
        if self.state is None:
            return []
        oldest = self.state.deleted_through[0]
        return [number for number in codec.recall(self.state, request_id) if oldest <= number <= self.newest]

    def add(self, turn: Turn) -> None:
        """Take the turn as the marks leave it, if there is anything of it to show."""
        if self.state is None or not (shown := visible(turn, self.state, self.superseded)):
            return
        if shown.number == self._to_regenerate:
            self.regenerated = shown
        elif self.token_limit is None:
            self.turns.append(shown)
        elif shown.shown_to_model:
            self._show(shown, self.token_limit - self.tokens)

    def _show(self, turn: Turn, room: int) -> None:
        """Take the turn into a model's window, shortened if it is too large: only the newest one can be."""
        if turn.tokens <= room:
            self.turns.append(turn)
        elif messages := shortened(turn.messages, room, self.count_tokens):
            self.whole[turn.number] = turn
            self.turns.append(replace(turn, messages=messages, tokens=self.count_tokens(messages)))
        else:
            self.too_small = True

    @property
    def stored_turns(self) -> Iterator[Turn]:
        """The turns of the window as they are stored."""
        return (self.whole.get(turn.number, turn) for turn in self.turns)

    def check_regenerated(self) -> None:
        """Raises where the request wants a turn answered again that is not there, or is not the newest one."""
        if not self._to_regenerate:
            return
        if self.state is None or not self.state.created_at:
            raise SessionNotFound
        if self._to_regenerate in self.damaged:
            raise DamagedTurn("the turn to be answered again cannot be read")
        if self.followed:
            raise NotTheNewestTurn
        if self.regenerated is None or self.regenerated.deleted:
            raise TurnNotFound


def to_supersede(turn: Turn) -> int:
    """Number of the turn that another answer to this one supersedes: of a failed attempt, the one that it was for."""
    return turn.supersedes if turn.status is TurnStatus.FAILED and turn.supersedes else turn.number


def visible(turn: Turn, state: State, superseded: Collection[int]) -> Turn | None:
    """The turn as its owner sees it: without its deleted messages, with its archived ones counted."""
    before = turn.deleted
    deleted, archived = (
        before + len(turn.messages) if turn.number < number else messages if turn.number == number else 0
        for number, messages in (state.deleted_through, state.archived_through)
    )
    deleted, archived = max(deleted, before), max(archived, before + turn.archived)
    left = turn.messages[deleted - before :]
    if turn.status is TurnStatus.VOID or not (left or turn.status is TurnStatus.FAILED):
        return None
    is_superseded = turn.status is TurnStatus.COMPLETE and turn.number in superseded
    return replace(
        turn,
        status=TurnStatus.SUPERSEDED if is_superseded else turn.status,
        messages=left,
        deleted=deleted,
        archived=max(archived - deleted, 0),
    )
