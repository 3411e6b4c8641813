"""LlamaIndex's `DynamoDBChatStore` of llama-index-storage-chat-store-dynamodb.

A turn is what a chat engine with a `ChatMemoryBuffer` makes of it: add the question, get the history, add the answer.
"""

import boto3
from llama_index.core.base.llms.types import ChatMessage
from llama_index.storage.chat_store.dynamodb import DynamoDBChatStore

from bench import program, text


class LlamaIndexPeer:
    """A table of one item a session."""

    def __init__(self, options: program.Options) -> None:
        self._options = options
        program.create_table(boto3.client("dynamodb", endpoint_url=options.endpoint), options.table, "SessionId")

    def take_turn(self, session: str, number: int) -> None:
        store = self._store()
        store.add_message(session, ChatMessage(role="user", content=text.question(number)))
        store.get_messages(session)
        store.add_message(session, ChatMessage(role="assistant", content=text.answer(number)))

    def texts(self, session: str) -> list[str]:
        return [message.content or "" for message in self._store().get_messages(session)]

    def _store(self) -> DynamoDBChatStore:
        return DynamoDBChatStore(self._options.table, resource_kwargs={"endpoint_url": self._options.endpoint})


if __name__ == "__main__":
    program.run(LlamaIndexPeer)
