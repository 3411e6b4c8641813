"""LangGraph's `DynamoDBSaver` of langgraph-checkpoint-aws, without a bucket for large checkpoints.

A turn is one run of the smallest graph of messages: a node that appends the answer. The variant `thrifty` is the least
that the saver can write: compressed, and one checkpoint a run (`durability="exit"`) in place of one a step.
"""

import boto3
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph_checkpoint_aws import DynamoDBSaver

from bench import program, text


class LangGraphPeer:
    """A table of checkpoints."""

    def __init__(self, options: program.Options) -> None:
        self._options = options
        self._thrifty = options.variant == "thrifty"
        self._session = boto3.Session()
        client = self._session.client("dynamodb", endpoint_url=options.endpoint)
        program.create_table(client, options.table, "PK", "SK")

    def take_turn(self, session: str, number: int) -> None:
        self._graph(text.answer(number)).invoke(
            {"messages": [HumanMessage(text.question(number))]},
            _config(session),
            durability="exit" if self._thrifty else "async",
        )

    def texts(self, session: str) -> list[str]:
        state = self._graph("").get_state(_config(session))
        return [str(message.content) for message in state.values["messages"]]

    def _graph(self, answer: str) -> CompiledStateGraph:
        graph = StateGraph(MessagesState)
        graph.add_node("answer", lambda _: {"messages": [AIMessage(answer)]})
        graph.add_edge(START, "answer")
        saver = DynamoDBSaver(
            self._options.table,
            session=self._session,
            endpoint_url=self._options.endpoint,
            enable_checkpoint_compression=self._thrifty,
        )
        return graph.compile(checkpointer=saver)


def _config(session: str) -> RunnableConfig:
    return {"configurable": {"thread_id": session}}


if __name__ == "__main__":
    program.run(LangGraphPeer)
