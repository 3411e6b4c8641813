"""The handler of the sweep function: the table's stream tells what was deleted, and it removes what is left of that."""

import time
from datetime import timedelta
from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from handlers.front import event_loop, process_settings, table_client
from handlers.problems import cause
from handlers.report import cost, entry_point, logger
from handlers.trigger import TABLE_STREAM, answer_plainly, sources_of
from memory.codec import STATE_KEY, session_id
from memory.dynamodb import LEASE
from memory.sessions import DynamoDBSessions

IN_FLIGHT = LEASE + timedelta(seconds=1)
"""After so long a turn that was in flight when its session was deleted has been stored, or never will be."""


@entry_point
def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse | dict[str, str]:
    """AWS Lambda's entry point, for events of a DynamoDB stream. The records that it names have to come again.

    Raises UnexpectedEvent for what is no such event, and is not to be lost.
    """
    logger.remove_keys(["function_arn", "function_memory_size"])
    if sources_of(event) != {TABLE_STREAM}:
        return answer_plainly(event, takes="records of its table's stream")
    processor = BatchProcessor(event_type=EventType.DynamoDBStreams, raise_on_entire_batch_failure=False)
    return process_partial_response(event=event, record_handler=sweep, processor=processor, context=context)


def sweep(record: DynamoDBRecord) -> None:
    """Remove what the session of a deleted or expired state still holds in the table."""
    stream = record.dynamodb
    keys = (stream and stream.keys) or {}
    if keys.get("sk") != STATE_KEY:
        return
    settings = process_settings()
    sessions = DynamoDBSessions(table_client(settings.dynamodb_endpoint), settings.table_name)
    facts: dict[str, Any] = {"instance": settings.instance, "session_id": session_id(keys["pk"])}
    try:
        _wait_for_turns_in_flight((stream and stream.new_image) or {})
        facts["removed"] = event_loop().run(sessions.sweep(keys["pk"]))
    except Exception as error:
        logger.error("sweep", extra=facts | {"outcome": "failed", "cause": cause(error)})
        raise
    logger.info("sweep", extra=facts | cost([sessions.usage]) | {"outcome": "done"})


def _wait_for_turns_in_flight(image: dict[str, Any]) -> None:
    """A turn that is answered while its session is deleted is stored where nobody looks: it goes with the rest."""
    deleted_at = float(image.get("deleted_at", 0)) / 1000
    time.sleep(min(IN_FLIGHT.total_seconds(), max(0.0, deleted_at + IN_FLIGHT.total_seconds() - time.time())))
