"""What one load sees of a session, newest first, and what of it belongs to the window. Pure, no I/O."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from memory import codec
from memory.codec import Item
from memory.turns import Session, State, Turn, TurnStatus

TOKENS_PER_TURN = 500
"""What the first page of a load expects of a turn. Where turns are shorter, a second one follows."""


@dataclass(kw_only=True)
class Reading:
    """What one load has seen of a session, newest first."""

    session: Session
    token_limit: int | None
    state: State | None = None
    turns: list[Turn] = field(default_factory=list)
    damaged: dict[int, str] = field(default_factory=dict)
    """Numbers of the turns that could not be read, with their request ids."""
    newest: int = 0
    """Number of the newest turn that is stored, readable or not."""
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
        return None if self.token_limit is None else self._page_sizes(self.token_limit)

    def _page_sizes(self, limit: int) -> Iterator[int]:
        size = limit // TOKENS_PER_TURN + 2
        while True:
            yield size
            average = self.tokens / len(self.turns) if self.turns else 0
            size = math.ceil((limit - self.tokens) / average * 1.1) + 2 if average else size * 2

    def wants(self, item: Item) -> bool:
        """Whether this turn belongs to the window; where it does not, none of the older ones does."""
        generation, number = codec.turn_numbers(item["sk"])
        self.highest_generation = max(self.highest_generation, generation)
        if self.state is None or generation != self.state.generation:
            return False
        self.newest = max(self.newest, number)
        if number == self.state.number:
            self.state = codec.corrected(self.state, str(item.get("request_id", "")))
        if number < self.state.deleted_through[0]:
            return False
        if self.token_limit is None:
            return True
        if self.token_limit == 0 or number < self.state.archived_through[0]:
            return False
        return self.tokens + int(item.get("tokens", 0)) <= self.token_limit

    def skips(self, item: Item) -> bool:
        """Whether the window passes by this turn: no model is shown what failed."""
        return self.token_limit is not None and item.get("status") == TurnStatus.FAILED

    def recalled(self, request_id: str) -> list[int]:
        """Numbers of stored turns that may have answered this request."""
        if self.state is None:
            return []
        oldest = self.state.deleted_through[0]
        return [number for number in codec.recall(self.state, request_id) if oldest <= number <= self.newest]

    def add(self, turn: Turn) -> None:
        """Take the turn as the marks leave it, if there is anything of it to show."""
        if self.state is not None:
            turn = _marked(turn, self.state)
        if turn.status is TurnStatus.VOID or not (turn.messages or turn.status is TurnStatus.FAILED):
            return
        if self.token_limit is None or turn.shown_to_model:
            self.turns.append(turn)


def _marked(turn: Turn, state: State) -> Turn:
    """The turn without its deleted messages, and with its archived ones counted."""
    deleted, archived = (
        len(turn.messages) if turn.number < number else messages if turn.number == number else 0
        for number, messages in (state.deleted_through, state.archived_through)
    )
    return replace(
        turn,
        messages=turn.messages[deleted:],
        deleted=deleted,
        archived=max(turn.archived, archived) - deleted if max(turn.archived, archived) > deleted else 0,
    )
