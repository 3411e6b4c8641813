"""What goes in and out over HTTP: the bodies of requests and responses, as `/openapi.json` describes them."""

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter

from memory.items import TITLE_CHARS

DEFAULT_SESSION = "default"
SESSION_ID = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}")
"""Neither `.` nor `..`: clients resolve these in a path, and so would ask for another one than they were told to."""
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")
DEFAULT_PAGE, LARGEST_PAGE = 20, 100
SESSION_ID_RULE = "must be 1 to 128 characters out of letters, digits, '.', '_' and '-', and not '.' or '..'"


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say something")
    return text


def _is_a_session_id(session_id: str | None) -> str | None:
    if session_id is not None and not SESSION_ID.fullmatch(session_id):
        raise ValueError(SESSION_ID_RULE)
    return session_id


SessionId = Annotated[
    str | None,
    AfterValidator(_is_a_session_id),
    Field(json_schema_extra={"pattern": f"^{SESSION_ID.pattern}$"}),
]
Text = Annotated[str, AfterValidator(_says_something), Field(json_schema_extra={"pattern": r"\S"})]
Title = Annotated[Text, Field(max_length=TITLE_CHARS)]
_LATE = ConfigDict(defer_build=True)
"""Built at first use: a request needs two or three of all these, and every start would pay for all."""
LIST_PLACE = TypeAdapter[tuple[datetime, str]](
    tuple[datetime, Annotated[str, AfterValidator(_is_a_session_id)]], config=_LATE
)
"""What the cursor of a list of sessions says: last activity and id of the last one shown."""
TURN_PLACE = TypeAdapter(tuple[int, Annotated[int, Field(ge=1, lt=10**10)], NonNegativeInt], config=_LATE)
"""What the cursor of a history says: the generation, the turn to go on with, and what is known of it."""


class _Shape(BaseModel):
    model_config = _LATE


class _Body(_Shape):
    """A request's body: nothing else is in it, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ChatRequest(_Body):
    """What somebody says, and in which session."""

    message: Text
    session_id: SessionId = Field(
        default=None, description="The `x-session-id` header names it as well; without both it is `default`."
    )


class NewSession(_Body):
    """A session to be made."""

    title: Title | None = Field(default=None, description="Without one, the first message gives the title.")


class Rename(_Body):
    """Another title for a session."""

    title: Title


class ForkRequest(_Body):
    """Where the new session branches off."""

    turn: int | None = Field(default=None, ge=1, lt=10**10, description="The last turn to copy; the newest by default.")
    title: Title | None = Field(default=None, description="Without one, the title of the session that is forked.")


class Page(_Shape):
    """Query parameters of a list."""

    limit: int = Field(default=DEFAULT_PAGE, ge=1, le=LARGEST_PAGE)
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before.")


class Place(_Shape):
    """Query parameters of an export."""

    cursor: str | None = Field(default=None, description="The `x-next-cursor` header of the page before.")


class Memory(_Shape):
    """What the model was shown of the turns before."""

    turns_in_window: int
    turns_shortened: int = Field(
        description="How many of these turns were shown in part. Only the newest turn can be, if it exceeds the limit."
    )
    window_tokens: int
    token_limit: int
    turns_total: int


class ChatAnswer(_Shape):
    """A stored turn."""

    answer: str
    structured: dict[str, Any] | None = Field(
        description="What the agent made of the conversation beside its answer, if it makes something of it."
    )
    session_id: str
    turn: int
    request_id: str
    memory: Memory
    identity: str = Field(description="Where the caller's identity came from; `new` where it was given out just now.")


class SessionSummary(_Shape):
    """A session as lists show it."""

    id: str
    title: str
    created_at: datetime
    last_active_at: datetime = Field(description="In whole minutes.")


class Forked(SessionSummary):
    """A session that was forked from another one."""

    first_turn: int = Field(
        description="No turn below this number was copied. A fork takes the newest turns, as many as `FORK_MAX_TURNS` "
        "says; older ones stay in the session that was forked."
    )


class WindowNow(_Shape):
    """What the model would be shown if something were said now."""

    turns: int
    turns_shortened: int = Field(
        description="How many of these turns would be shown in part. Only the newest turn can be, if it exceeds the "
        "limit."
    )
    tokens: int = Field(description="Of a shortened turn, the most that it can take.")
    token_limit: int


class SessionDetail(SessionSummary):
    """One session."""

    turns: int = Field(description="Number of the newest turn.")
    window: WindowNow


class SessionList(_Shape):
    """A page of the caller's sessions, the last active first."""

    sessions: list[SessionSummary]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


class ToolCall(_Shape):
    """What the model asked of a tool."""

    id: str | None
    name: str
    arguments: Any = Field(description="As the model gave them: an object, or text that is none.")


class MessageView(_Shape):
    """One message of a turn."""

    role: str
    text: str
    tool_calls: list[ToolCall]
    tool_call_id: str | None = Field(description="In a tool's result: the call that it belongs to.")
    other_blocks: list[str] = Field(description="Kinds of content that is no text; the export has it.")
    answer: str | None = Field(
        description="What the caller was answered, if it is not the text: some agents write down how they came to it."
    )
    structured: dict[str, Any] | None = Field(description="What the agent made of the conversation beside its answer.")


class TurnView(_Shape):
    """One turn of a session's history."""

    number: int
    status: Literal["complete", "failed", "superseded", "damaged"] = Field(
        description="The model is shown complete turns alone. Superseded: answered again by a later turn. "
        "Damaged: what is stored cannot be read."
    )
    supersedes: int | None = Field(description="The turn that this one answers again.")
    failure: str | None = Field(description="Code of what went wrong in a failed turn.")
    started_at: datetime | None
    finished_at: datetime | None
    messages: list[MessageView]
    too_large: bool = Field(description="The messages do not fit a response and are left out; the export has them.")


class TurnList(_Shape):
    """A page of a session's turns, the newest first."""

    turns: list[TurnView]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


class ExportLine(_Shape):
    """One line of an export: a message, or a part of one that is too large for a response."""

    turn: int
    status: str
    failure: str | None = None
    supersedes: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    index: int | None = Field(default=None, description="Place of the message in its turn.")
    message: dict[str, Any] | None = Field(default=None, description="LlamaIndex's `ChatMessage`, as JSON.")
    part: int | None = Field(default=None, description="Which part of the message's JSON this is, from 0.")
    parts: int | None = Field(default=None, description="How many parts the message's JSON has.")
    json_part: str | None = Field(default=None, description="The part. All parts in a row are the message's JSON.")


class Removing(_Shape):
    """What was deleted is out of sight, and not all of it is out of the table yet; or more is left to delete."""

    deleted_sessions: int
    finished: Literal[False] = False
    detail: str
