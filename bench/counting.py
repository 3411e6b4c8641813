"""What a process asks of DynamoDB, as the table counts it. Needs botocore alone, so that any store can be measured.

The hooks go into botocore's own list of handlers, which every session made later registers: clients, resources and
aioboto3 are counted alike. Looks at a table's description count as nothing.
"""

import threading
from dataclasses import asdict, dataclass
from typing import Any

import botocore.handlers

READS = {"Query", "GetItem", "BatchGetItem", "Scan", "TransactGetItems"}


@dataclass(kw_only=True)
class Count:
    """What was asked since it was taken last: attempts of the SDK are calls, bytes are those of bodies."""

    calls: int = 0
    read_units: float = 0
    write_units: float = 0
    bytes_out: int = 0
    bytes_in: int = 0

    def taken(self) -> dict[str, float]:
        """What was asked since this was called last."""
        counted = asdict(self)
        self.calls, self.read_units, self.write_units, self.bytes_out, self.bytes_in = 0, 0, 0, 0, 0
        return counted


def start() -> Count:
    """Count from now on, in all sessions of boto3 that are made from now on."""
    count, capacity, lock = Count(), set[str](), threading.Lock()

    def ask(params: dict[str, Any], model: Any, **_: Any) -> None:
        if model.input_shape and "ReturnConsumedCapacity" in model.input_shape.members:
            capacity.add(model.name)
            params["ReturnConsumedCapacity"] = "TOTAL"

    def sent(request: Any, event_name: str, **_: Any) -> None:
        if event_name.rpartition(".")[2] in capacity:
            with lock:
                count.calls += 1
                count.bytes_out += len(request.body or b"")

    def received(http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
        if model.name not in capacity:
            return
        found = parsed.get("ConsumedCapacity") or {}
        units = sum(figure["CapacityUnits"] for figure in (found if isinstance(found, list) else [found]) if figure)
        with lock:
            count.bytes_in += len(http_response.content)
            if model.name in READS:
                count.read_units += units
            else:
                count.write_units += units

    botocore.handlers.BUILTIN_HANDLERS += [
        ("before-parameter-build.dynamodb", ask),
        ("before-send.dynamodb", sent),
        ("after-call.dynamodb", received),
    ]
    return count
