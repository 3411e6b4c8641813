"""Sessions and turns as their owner sees them: the bodies of responses, and how much of them one response takes."""

import json
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from handlers.shapes import ExportLine, MessageView, SessionDetail, SessionSummary, ToolCall, TurnView, WindowNow
from memory.sessions import Entry
from memory.turns import HistoryReplaced, Message, State, Window, text_of

PAGE_BYTES = 5_000_000
"""What of a response's 6 MB the content of a page may take, as Lambda counts it: the body as a JSON string."""
PART_CHARS = 400_000
"""Characters of a message's JSON in one line of an export; each takes 12 bytes of a response at the most."""
DAMAGED = "damaged"


def summary(session_id: str, title: str, created_at: datetime | None, active_at: datetime | None) -> SessionSummary:
    """A session in a list."""
    if created_at is None or active_at is None:
        raise ValueError("a session that exists has its times")
    return SessionSummary(id=session_id, title=title, created_at=created_at, last_active_at=active_at)


def detail(window: Window, state: State) -> SessionDetail:
    """A session, with what the model would be shown of it now."""
    size = window.size
    return SessionDetail(
        **summary(window.session.id, state.title, state.created_at, state.active_at).model_dump(),
        turns=window.total_turns,
        window=WindowNow(turns=size.turns, turns_shortened=size.shortened, tokens=size.tokens, token_limit=size.limit),
    )


def turn(entry: Entry) -> TurnView:
    """A turn in a list; without its messages where they would not fit a response."""
    found = entry.turn
    view = TurnView(
        number=entry.number,
        status=found.status.value if found else DAMAGED,  # type: ignore[arg-type] # a void turn is no entry
        supersedes=found.supersedes if found else None,
        failure=found.failure if found else None,
        started_at=found.started_at if found else None,
        finished_at=found.finished_at if found else None,
        messages=[message(one) for one in found.messages] if found else [],
        too_large=False,
    )
    if wire_bytes(view.model_dump_json()) > PAGE_BYTES:
        return view.model_copy(update={"messages": [], "too_large": True})
    return view


def message(stored: Message) -> MessageView:
    """A message in a list: its text, and the tools that it calls."""
    blocks = stored["blocks"]
    extras = stored.get("additional_kwargs") or {}
    return MessageView(
        role=stored["role"],
        text=text_of(stored),
        tool_calls=[
            ToolCall(id=block.get("tool_call_id"), name=block["tool_name"], arguments=_parsed(block.get("tool_kwargs")))
            for block in blocks
            if block["block_type"] == "tool_call"
        ],
        tool_call_id=extras.get("tool_call_id"),
        other_blocks=[kind for block in blocks if (kind := block["block_type"]) not in ("text", "tool_call")],
        answer=stored.get("answer"),
        structured=stored.get("structured"),
    )


def _parsed(arguments: Any) -> Any:
    """A tool's arguments; models that stream give them as text, which may hold what no response can."""
    try:
        return from_json(arguments, allow_inf_nan=False) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def wire_bytes(text: str) -> int:
    """Bytes that a text takes of a Lambda response, at the most: as a JSON string in ASCII."""
    return len(json.dumps(text))


def same_history(state: State, generation: int) -> None:
    """Raises HistoryReplaced where a cursor is of a history that is no more."""
    if state.generation != generation:
        raise HistoryReplaced


class ExportPage:
    """Lines of an export, from line `skipped` of turn `start` on, until the response is full."""

    def __init__(self, start: int, skipped: int) -> None:
        self._start, self._skipped = start, skipped
        self._lines: list[str] = []
        self._room = PAGE_BYTES
        self.next_place: tuple[int, int] | None = None
        """Turn and line that the next page begins with."""

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def close(self) -> None:
        """Take no more; the next page begins with what comes next."""
        self._room = 0

    def add(self, entry: Entry) -> bool:
        """Take the lines of a turn; False where the page is full."""
        lines = _lines(entry)
        for place, line in enumerate(lines):
            if entry.number == self._start and place < self._skipped:
                continue
            text = line.model_dump_json(exclude_none=True) + "\n"
            self._room -= wire_bytes(text)
            if self._lines and self._room < 0:
                self.next_place = entry.number, place
                return False
            self._lines.append(text)
        return True


def _lines(entry: Entry) -> list[ExportLine]:
    """A turn's lines: one a message, several where a message is too large for a response; one for a damaged turn."""
    turn = entry.turn
    if turn is None:
        return [ExportLine(turn=entry.number, status=DAMAGED)]
    facts: dict[str, Any] = {
        "turn": entry.number,
        "status": turn.status.value,
        "failure": turn.failure,
        "supersedes": turn.supersedes,
        "started_at": turn.started_at,
        "finished_at": turn.finished_at,
    }
    lines = []
    for index, stored in enumerate(turn.messages, turn.deleted):
        text = json.dumps(stored, ensure_ascii=False)
        if wire_bytes(text) < PAGE_BYTES // 2:
            lines.append(ExportLine(**facts, index=index, message=dict(stored)))
            continue
        parts = [text[i : i + PART_CHARS] for i in range(0, len(text), PART_CHARS)]
        lines += [
            ExportLine(**facts, index=index, part=part, parts=len(parts), json_part=piece)
            for part, piece in enumerate(parts)
        ]
    return lines
