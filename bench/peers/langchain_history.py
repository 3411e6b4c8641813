"""LangChain's `DynamoDBChatMessageHistory` of langchain-community.

A turn is what `RunnableWithMessageHistory` makes of it: get the history, add question and answer together.
"""

import boto3
from langchain_community.chat_message_histories import DynamoDBChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage

from bench import program, text


class LangChainPeer:
    """A table of one item a session."""

    def __init__(self, options: program.Options) -> None:
        self._options = options
        self._session = boto3.Session()
        client = self._session.client("dynamodb", endpoint_url=options.endpoint)
        program.create_table(client, options.table, "SessionId")

    def take_turn(self, session: str, number: int) -> None:
        history = self._history(session)
        _ = history.messages
        history.add_messages([HumanMessage(text.question(number)), AIMessage(text.answer(number))])

    def texts(self, session: str) -> list[str]:
        return [str(message.content) for message in self._history(session).messages]

    def _history(self, session: str) -> DynamoDBChatMessageHistory:
        return DynamoDBChatMessageHistory(
            self._options.table, session, endpoint_url=self._options.endpoint, boto3_session=self._session
        )


if __name__ == "__main__":
    program.run(LangChainPeer)
