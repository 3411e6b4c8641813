"""LlamaIndex's view of a turn log, in two uses.

`DynamoDBChatStore` is a drop-in for any program: ``Memory.from_defaults(session_id=..., chat_store=...)``. Each add is
one append to the log. `TurnChatStore` is the store of one turn that the handler uses: it reads from a window that was
loaded, and collects what the agent writes until the turn is committed, so that an agent run costs no call at all.
"""

import asyncio
import json
import random
import uuid
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    VideoBlock,
)
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.memory import Memory
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.utils import get_tokenizer

from memory.dynamodb import DynamoDBTurnLog
from memory.sessions import DynamoDBSessions
from memory.table import connect, create_table
from memory.turns import (
    START,
    ClaimRefused,
    DamagedTurn,
    LeaseLost,
    Message,
    Position,
    Request,
    Session,
    SessionNotFound,
    Turn,
    TurnInProgress,
    TurnLog,
    TurnStatus,
    Window,
    WindowSize,
    take_turn,
    utc_now,
)

T = TypeVar("T")

MESSAGE_TOKENS = 4
"""What a chat format adds to each message."""
MEDIA_TOKENS = 256
"""What an image, a sound or a film is taken to cost; LlamaIndex's own estimate, as is the next one."""
DOCUMENT_TOKENS = 2048
COUNTED_CHARS = 100_000
PATIENCE_SECONDS = 30.0
LISTED_AT_ONCE = 1000
NEVER_REACHED = 2**53


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One message of a history, where it stands, and what became of it."""

    message: Message
    status: MessageStatus
    position: Position
    """Number of its turn, and how many messages of that turn end with it."""


Choice = Callable[[list[_Entry]], list[_Entry]]
"""Picks some of a history's messages, in order."""


class _EntryChatStore(AsyncDBChatStore):
    """The ten methods, on a history that can be read, added to, and rid of some messages."""

    @abstractmethod
    async def _read(self, key: str, *, active: bool = False) -> list[_Entry]:
        """The whole history, oldest first; or at least what is active of it."""

    @abstractmethod
    async def _remove(self, key: str, choose: Choice) -> list[ChatMessage]:
        """Delete the chosen messages, and return them."""

    @abstractmethod
    async def _archive(self, key: str, choose: Choice) -> list[ChatMessage]:
        """Archive the chosen messages, the oldest active ones, and return them."""

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        start = offset or 0
        end = None if limit is None else start + limit
        return _decoded(_having(await self._read(key, active=status is MessageStatus.ACTIVE), status)[start:end])

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        return len(_having(await self._read(key, active=status is MessageStatus.ACTIVE), status))

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        await self.add_messages(key, [message], status)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the active message with this index (0: the oldest) and return it; None where there is none."""
        if idx < 0:
            return None
        deleted = await self._remove(key, lambda entries: _having(entries, MessageStatus.ACTIVE)[idx : idx + 1])
        return deleted[0] if deleted else None

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        await self._remove(key, lambda entries: _having(entries, status))

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        return await self._remove(key, lambda entries: _having(entries, MessageStatus.ACTIVE)[:n])

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        return await self._archive(key, lambda entries: _having(entries, MessageStatus.ACTIVE)[:n])


class TurnChatStore(_EntryChatStore):
    """The chat store of one turn: reads come from the window as copies, writes are collected for the commit.

    Nothing that happens here touches the table, archiving and deleting included: the log alone keeps the history, and
    the log alone picks the window. There is one conversation in it, whatever key it is asked for.
    """

    _entries: list[_Entry] = PrivateAttr(default_factory=list)
    _number: int = PrivateAttr()
    _closed: bool = PrivateAttr(default=False)

    def __init__(self, window: Window) -> None:
        super().__init__()
        self._entries = _entries_of(window.turns)
        self._number = window.next_number

    def collected(self) -> list[ChatMessage]:
        """What was added in this turn and not deleted again, in order."""
        return _decoded(entry for entry in self._entries if entry.position[0] == self._number)

    def close(self) -> None:
        """Take nothing more: what an agent does after its deadline is stored nowhere."""
        self._closed = True

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        if self._closed:
            return
        for message in messages:
            last = self._entries[-1].position if self._entries else START
            place = last[1] + 1 if last[0] == self._number else 1
            self._entries.append(_Entry(message=encode_message(message), status=status, position=(self._number, place)))

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        self._entries = []
        await self.add_messages(key, messages, status)

    async def get_keys(self) -> list[str]:
        """None: one turn's store knows no other conversation, and its own has no name here."""
        return []

    async def _read(self, key: str, *, active: bool = False) -> list[_Entry]:
        return self._entries

    async def _remove(self, key: str, choose: Choice) -> list[ChatMessage]:
        chosen = choose(self._entries)
        self._entries = [entry for entry in self._entries if entry not in chosen]
        return _decoded(chosen)

    async def _archive(self, key: str, choose: Choice) -> list[ChatMessage]:
        chosen = choose(self._entries)
        archived = MessageStatus.ARCHIVED
        self._entries = [replace(entry, status=archived) if entry in chosen else entry for entry in self._entries]
        return _decoded(chosen)


class DynamoDBChatStore(_EntryChatStore):
    """A durable chat store for any LlamaIndex program, on the turn log of `memory.dynamodb`.

    Keys are the session ids of one owner. Several programs may write to one key at once: every message is kept, what
    was added together stays together, and all readers see one order. Whatever changes a key waits while somebody else
    does. If that takes longer than 30 s it raises TurnInProgress, and nothing was changed. Every method raises
    TableUnavailable if the table does not answer. A history with a turn that cannot be read is not rewritten, and
    raises DamagedTurn.

        store = DynamoDBChatStore.from_table("rehydrate", owner="my-program")
        memory = Memory.from_defaults(session_id="ada", chat_store=store)

    A store can be dumped and validated, copied and pickled, as Context and Memory do. It takes its fields along, and
    never credentials: a restored store finds those where it is restored, as boto3 does.
    """

    table: str = Field(min_length=1, description="Name of the table.")
    owner: str = Field(min_length=1, description="Owner of the sessions; part of every key in the table.")
    endpoint: str | None = Field(default=None, description="URL of another DynamoDB engine than the region's own.")
    region: str | None = Field(default=None, description="AWS region; as boto3 is configured if there is none.")
    retention: timedelta | None = Field(
        default=None, gt=timedelta(0), description="How long messages are kept that are added from now on."
    )
    _connection: "tuple[TurnLog, DynamoDBSessions] | None" = PrivateAttr(default=None)

    @classmethod
    def from_table(
        cls,
        table: str,
        *,
        owner: str,
        endpoint: str | None = None,
        region: str | None = None,
        retention: timedelta | None = None,
        create: bool = False,
    ) -> Self:
        """The store in the table of this name, which is created first if `create` says so.

        With a `retention`, messages that are added from now on expire after so long.
        """
        store = cls(table=table, owner=owner, endpoint=endpoint, region=region, retention=retention)
        if create:
            create_table(connect(endpoint, region), table)
        return store

    @classmethod
    def on(cls, *, log: TurnLog, sessions: DynamoDBSessions, table: str, owner: str) -> Self:
        """The store on a log and sessions of a table. A copy of it connects to the table as boto3 is configured."""
        store = cls(table=table, owner=owner)
        store._connection = log, sessions
        return store

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A store of its own, which connects anew: a connection cannot be copied."""
        return type(self).model_validate(self.model_dump())

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "__pydantic_private__": {"_connection": None}}

    @property
    def _log(self) -> TurnLog:
        return self._connected()[0]

    @property
    def _sessions(self) -> DynamoDBSessions:
        return self._connected()[1]

    def _connected(self) -> tuple[TurnLog, DynamoDBSessions]:
        """The log and the sessions, connected at first use."""
        if self._connection is None:
            client = connect(self.endpoint, self.region)
            log = DynamoDBTurnLog(client, self.table, retention=self.retention)
            self._connection = log, DynamoDBSessions(client, self.table, retention=self.retention)
        return self._connection

    @classmethod
    def class_name(cls) -> str:
        return "DynamoDBChatStore"

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        if not messages:
            return
        turn = _turn(messages, status)

        async def append() -> None:
            _, claim = await take_turn(
                self._log, self._session(key), turn.request, token_limit=0, patience=PATIENCE_SECONDS
            )
            if claim:  # else an earlier attempt was stored after all
                placed = replace(
                    turn,
                    generation=claim.generation,
                    number=claim.number,
                    token=claim.token,
                    expires_at=claim.expires_at,
                )
                await self._log.commit(claim, placed)

        await _until_applied(append)

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        turns = [_turn(group, status) for group in _grouped(messages)]

        async def rewrite() -> None:
            await self._log.rewrite(await self._window(key), turns)

        await _until_applied(rewrite)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        if status is not None:
            await super().delete_messages(key, status)
            return
        with suppress(SessionNotFound):
            while not await self._log.delete(self._session(key)):
                pass  # removing goes in portions; the messages are out of sight since the first

    async def get_keys(self) -> list[str]:
        """All keys of this owner, the last active first; from an index that may lag behind by a moment."""
        keys: list[str] = []
        after = None
        while page := await self._sessions.listed(self.owner, limit=LISTED_AT_ONCE, after=after):
            keys += [session.id for session in page]
            after = page[-1].active_at, page[-1].id
        return keys

    async def _read(self, key: str, *, active: bool = False) -> list[_Entry]:
        return _entries_of((await self._window(key, active=active)).turns)

    async def _remove(self, key: str, choose: Choice) -> list[ChatMessage]:
        async def remove() -> list[ChatMessage]:
            window = await self._window(key)
            entries = _entries_of(window.turns)
            chosen = choose(entries)
            if window.damaged:
                raise DamagedTurn(f"turns {window.damaged} cannot be read, and would be lost with a rewrite")
            if chosen and chosen == entries[: len(chosen)] and len(chosen) < len(entries):
                await self._log.mark(window, deleted=chosen[-1].position)
            elif chosen:
                gone = {entry.position for entry in chosen}
                await self._log.rewrite(window, [kept for turn in window.turns if (kept := _without(turn, gone))])
            return _decoded(chosen)

        return await _until_applied(remove)

    async def _archive(self, key: str, choose: Choice) -> list[ChatMessage]:
        async def archive() -> list[ChatMessage]:
            window = await self._window(key, active=True)
            if chosen := choose(_entries_of(window.turns)):
                await self._log.mark(window, archived=chosen[-1].position)
            return _decoded(chosen)

        return await _until_applied(archive)

    async def _window(self, key: str, *, active: bool = False) -> Window:
        return await self._log.load(self._session(key), token_limit=None, active=active)

    def _session(self, key: str) -> Session:
        return Session(owner=self.owner, id=key)


def clean_text(text: str) -> str:
    """The text without lone surrogates, which cannot be encoded as UTF-8 and so can be neither stored nor sent.

    Two halves of a character that stand side by side become that character; any other half becomes U+FFFD.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def clean_message(message: ChatMessage) -> ChatMessage:
    """A copy of the message in which every text is clean, in any kind of block and in its additional arguments.

    Whoever accepts a message cleans it first, so that it is stored, counted and sent to the model with the same text.
    """
    cleaned: ChatMessage = _cleaned(message)
    return cleaned


def encode_message(message: ChatMessage) -> Message:
    """A message as the log keeps it: JSON."""
    stored: Message = clean_message(message).model_dump(mode="json")
    return stored


def decode_message(message: Message) -> ChatMessage:
    """A new ChatMessage, which its reader may change as it likes."""
    return ChatMessage.model_validate(message)


def count_tokens(messages: Iterable[ChatMessage]) -> int:
    """Tokens that the messages take of a model's context, tool calls and their results included."""
    return sum(_message_tokens(message) for message in messages)


def turn_memory(store: TurnChatStore, session: Session) -> Memory:
    """LlamaIndex's Memory over one turn's store.

    It gets a token limit that it never reaches, and need not count: at 0.7 of its limit it would archive in chunks, and
    cut a second time the window which the log has picked.
    """
    return Memory.from_defaults(
        session_id=session.id, chat_store=store, token_limit=NEVER_REACHED, tokenizer_fn=lambda _: []
    )


def _cleaned(value: Any) -> Any:
    """A copy of the value with all of its texts clean."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _cleaned(field) for name, field in value})
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cleaned(one) for one in value]  # a tuple is stored as a list, too
    return value


def _entries_of(turns: Sequence[Turn]) -> list[_Entry]:
    """The messages that turns show, oldest first."""
    return [
        _Entry(
            message=message,
            status=MessageStatus.ARCHIVED if i < turn.archived else MessageStatus.ACTIVE,
            position=(turn.number, turn.deleted + i + 1),
        )
        for turn in turns
        if turn.status is TurnStatus.COMPLETE
        for i, message in enumerate(turn.messages)
    ]


def _having(entries: Iterable[_Entry], status: MessageStatus | None) -> list[_Entry]:
    return [entry for entry in entries if status is None or entry.status is status]


def _decoded(entries: Iterable[_Entry]) -> list[ChatMessage]:
    return [decode_message(entry.message) for entry in entries]


def _without(turn: Turn, positions: set[Position]) -> Turn | None:
    """The turn without the messages at these positions; None where nothing of it is left."""
    if turn.status is not TurnStatus.COMPLETE:
        return turn
    kept = [entry for entry in _entries_of([turn]) if entry.position not in positions]
    if not kept:
        return None
    return replace(
        turn,
        messages=tuple(entry.message for entry in kept),
        tokens=count_tokens(_decoded(kept)),
        archived=len(_having(kept, MessageStatus.ARCHIVED)),
        deleted=0,
    )


def _grouped(messages: Iterable[ChatMessage]) -> list[list[ChatMessage]]:
    """The messages as turns: each begins with what a user said."""
    groups: list[list[ChatMessage]] = []
    for message in messages:
        if not groups or message.role is MessageRole.USER:
            groups.append([])
        groups[-1].append(message)
    return groups


def _turn(messages: Sequence[ChatMessage], status: MessageStatus) -> Turn:
    """A turn that holds these messages and that nobody asked for."""
    now, messages = utc_now(), [clean_message(message) for message in messages]
    return Turn(
        generation=0,
        number=0,
        token="",
        status=TurnStatus.COMPLETE,
        request=Request(id=uuid.uuid4().hex, body_hash=""),
        messages=tuple(encode_message(message) for message in messages),
        tokens=count_tokens(messages),
        window=WindowSize(turns=0, tokens=0, limit=0),
        started_at=now,
        finished_at=now,
        instance="",
        archived=len(messages) if status is MessageStatus.ARCHIVED else 0,
    )


async def _until_applied(change: Callable[[], Awaitable[T]]) -> T:
    """Try a change again for as long as others come first, up to 30 s."""
    clock = asyncio.get_running_loop().time
    give_up = clock() + PATIENCE_SECONDS
    while True:
        try:
            return await change()
        except (ClaimRefused, LeaseLost, TurnInProgress) as error:
            if clock() >= give_up:
                retry_after = error.retry_after if isinstance(error, TurnInProgress) else 1
                said = f"others changed this history for {PATIENCE_SECONDS:.0f} s; nothing of this change was stored"
                raise TurnInProgress(retry_after, said) from error
            await asyncio.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - jitter, so that writers do not march in step


def _message_tokens(message: ChatMessage) -> int:
    extras = json.dumps(message.additional_kwargs, default=str) if message.additional_kwargs else ""
    return MESSAGE_TOKENS + sum(map(_block_tokens, message.blocks)) + _text_tokens(extras)


def _block_tokens(block: ContentBlock) -> int:
    if isinstance(block, TextBlock):
        return _text_tokens(block.text)
    if isinstance(block, ImageBlock | AudioBlock | VideoBlock):
        return MEDIA_TOKENS
    if isinstance(block, DocumentBlock):
        return DOCUMENT_TOKENS
    return _text_tokens(block.model_dump_json())


def _text_tokens(text: str) -> int:
    """The tokens of a text; of a very long one by its beginning, since counting takes seconds for a megabyte."""
    counted = len(get_tokenizer()(text[:COUNTED_CHARS])) if text else 0
    return counted if len(text) <= COUNTED_CHARS else round(counted * len(text) / COUNTED_CHARS)
