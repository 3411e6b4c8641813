"""Lambda handlers for the tests: `handler` does what the path or `?do=` says, `sweep` notes what it gets."""

import json
import os
import time
from pathlib import Path
from typing import Any

IMPORTED_BY = os.getpid()

if os.environ.get("STUB_BROKEN_IF") and Path(os.environ["STUB_BROKEN_IF"]).exists():
    with Path(os.environ["STUB_BROKEN_IF"]).open("a") as stream:
        stream.write("tried\n")
    raise ImportError("the stub was told not to import")


def handler(event: dict[str, Any], context: Any) -> Any:
    match event.get("queryStringParameters", {}).get("do", event["rawPath"]):
        case "/respond":
            return json.loads(event["body"])
        case "/raise":
            raise ValueError("SECRET TEXT of the user")
        case "/exit":
            os._exit(3)
        case "/hold":
            return _hold(Path(event["queryStringParameters"]["folder"]), event["queryStringParameters"]["name"])
        case "/context":
            return {name: getattr(context, name) for name in _CONTEXT} | {
                "remaining": context.get_remaining_time_in_millis(),
                "environment": {name: os.environ[name] for name in _ENVIRONMENT},
            }
        case _:
            return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": json.dumps(event)}


_CONTEXT = (
    "function_name",
    "function_version",
    "memory_limit_in_mb",
    "invoked_function_arn",
    "aws_request_id",
    "log_group_name",
    "log_stream_name",
)


_ENVIRONMENT = ("AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME")


def sweep(event: dict[str, Any], context: Any) -> Any:
    """Fails by the name of the partition: always for `never`, and for `raises` and `later` the first time."""
    file = Path(os.environ["STUB_SWEPT"])
    before = file.read_text() if file.exists() else ""
    with file.open("a") as stream:
        stream.write(json.dumps(event) + "\n")
    failed = []
    for record in event["Records"]:
        name = record["dynamodb"]["Keys"]["pk"]["S"]
        if name.startswith("raises") and name not in before:
            raise ValueError("the stub was told to raise")
        if name.startswith("never") or (name.startswith("later") and name not in before):
            failed.append({"itemIdentifier": record["dynamodb"]["SequenceNumber"]})
    return {"batchItemFailures": failed}


def _hold(folder: Path, name: str) -> dict[str, Any]:
    """Say that it has begun, wait for the file `release`, say that it is done."""
    with (folder / "begun").open("a") as stream:
        stream.write(f"{name} {os.getpid()}\n")
    while not (folder / "release").exists():
        time.sleep(0.01)
    with (folder / "done").open("a") as stream:
        stream.write(f"{name}\n")
    return {"statusCode": 200, "body": name}
