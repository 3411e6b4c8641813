"""The sweeper: what the table's stream tells it, and what is left in the table afterwards."""

from typing import Any

import pytest

from handlers import sweep
from memory.codec import partition
from memory.turns import Session, SessionNotFound
from tests.conftest import TABLE, event_named, keys_of, said, say
from tests.handlers.conftest import Context, Service, configure


def event(*sessions: Session, deleted_at: int = 0, kind: str = "MODIFY", sk: str = "state") -> dict[str, Any]:
    """What Lambda makes of the stream when these sessions are deleted."""
    return {
        "Records": [
            {
                "eventID": str(number),
                "eventName": kind,
                "eventSource": "aws:dynamodb",
                "dynamodb": {
                    "Keys": {"pk": {"S": partition(session)}, "sk": {"S": sk}},
                    "SequenceNumber": str(number),
                    **({"NewImage": {"deleted_at": {"N": str(deleted_at)}}} if kind != "REMOVE" else {}),
                },
            }
            for number, session in enumerate(sessions)
        ]
    }


def keys(service: Service, session: Session) -> list[str]:
    return keys_of(service.store, session)


@pytest.fixture
def large(service: Service, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A deleted session, of which the delete removed a part."""
    session = service.store.session("large")
    for i in range(6):
        service.run(say(service.store.log(), session, str(i)))
    with monkeypatch.context() as patch:
        patch.setattr("memory.items.SWEPT_AT_ONCE", 2)
        assert not service.run(service.store.log().delete(session))
    return session


def test_what_a_deleted_session_held_is_removed(service: Service, large: Session) -> None:
    """After the sweep only the tombstone is left."""
    assert len(keys(service, large)) == 5
    assert sweep.handler(event(large), Context()) == {"batchItemFailures": []}  # type: ignore[arg-type]
    assert keys(service, large) == ["state"]


def test_what_began_anew_is_left_alone(service: Service, large: Session) -> None:
    """A conversation that was begun under the same id before the sweep came loses nothing."""
    service.run(say(service.store.log(), large, "new"))
    sweep.handler(event(large), Context())  # type: ignore[arg-type]
    assert said(service.run(service.store.log().load(large, token_limit=None))) == ["new"]
    assert len(keys(service, large)) == 2


def test_a_state_that_expired_takes_what_is_left_along(service: Service, large: Session) -> None:
    """When DynamoDB removes a tombstone, or the state of an expired session, nothing of the session stays behind."""
    service.store.client.delete_item(TableName=TABLE, Key={"pk": {"S": partition(large)}, "sk": {"S": "state"}})
    sweep.handler(event(large, kind="REMOVE"), Context())  # type: ignore[arg-type]
    assert keys(service, large) == ["state"], "a tombstone, so that nobody takes a number that is being removed"
    with pytest.raises(SessionNotFound):
        service.run(service.store.log().delete(large))


def test_the_event_of_the_example_is_understood(service: Service) -> None:
    """Where there is nothing left to remove, nothing is written, not even of a session that never was."""
    example = event_named("sweep_deleted_session")
    assert sweep.handler(example, Context()) == {"batchItemFailures": []}  # type: ignore[arg-type]
    pk = example["Records"][0]["dynamodb"]["Keys"]["pk"]
    assert "Item" not in service.store.client.get_item(TableName=TABLE, Key={"pk": pk, "sk": {"S": "state"}})


def test_it_waits_for_turns_in_flight(service: Service, large: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that is answered while its session is deleted can be stored for one lease more: it is removed too."""
    waited: list[float] = []
    monkeypatch.setattr(sweep.time, "sleep", waited.append)
    monkeypatch.setattr(sweep.time, "time", lambda: 1_000_003.0)
    sweep.handler(event(large, deleted_at=1_000_000_000), Context())  # type: ignore[arg-type]
    sweep.handler(event(large, deleted_at=900_000_000), Context())  # type: ignore[arg-type]
    sweep.handler(event(large, deleted_at=2_000_000_000_000), Context())  # type: ignore[arg-type]
    assert waited == [8.0, 0.0, 11.0]


def test_other_records_are_passed_by(service: Service) -> None:
    """Whatever the filter of the stream lets through, nothing but a session's state is a reason to sweep."""
    session = service.store.session()
    turn = service.run(say(service.store.log(), session, "hello"))
    assert sweep.handler(event(session, sk=f"TURN#000001#{turn.number:010}"), Context()) == {"batchItemFailures": []}  # type: ignore[arg-type]
    assert len(keys(service, session)) == 2


def test_a_record_that_failed_comes_again_and_the_others_do_not(
    service: Service, large: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that does not answer fails the record, and no other one; the log has the cause."""
    configure(monkeypatch, TABLE_NAME="no-such-table")
    failed = sweep.handler(event(large, large), Context())  # type: ignore[arg-type]
    assert failed == {"batchItemFailures": [{"itemIdentifier": "0"}, {"itemIdentifier": "1"}]}
    configure(monkeypatch, TABLE_NAME=TABLE)
    assert sweep.handler(event(large), Context()) == {"batchItemFailures": []}  # type: ignore[arg-type]
