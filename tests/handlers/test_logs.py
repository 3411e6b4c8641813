"""No switch of any library makes it log what was said, or a credential."""

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TABLE, event_named, store_at
from tests.faulty_model import Answer, calls, faulty_model, responds, says, streams
from tests.handlers.conftest import Service

pytestmark = pytest.mark.once

CANARY = "canary"
"""In everything that is said here, by anybody, and in every credential."""
SWITCHES = {
    "none": {},
    "events": {"POWERTOOLS_LOGGER_LOG_EVENT": "true"},
    "openai": {"OPENAI_LOG": "debug"},
    "the log's level": {"POWERTOOLS_LOG_LEVEL": "DEBUG"},
    "Lambda's level": {"AWS_LAMBDA_LOG_LEVEL": "DEBUG", "AWS_LAMBDA_LOG_FORMAT": "JSON"},
    "development": {"POWERTOOLS_DEV": "true"},
    "debugging": {"POWERTOOLS_DEBUG": "true"},
    "asyncio": {"PYTHONASYNCIODEBUG": "1"},
}
BROKEN = json.dumps(
    {"error": {"message": f"{CANARY} is no word", "type": "error", "param": CANARY, "code": f"the {CANARY}"}}
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of some invocations."""

    responses: list[dict[str, Any]]
    log: str


def asking(method: str, path: str, body: Any = None, *, user: str | None = CANARY) -> dict[str, Any]:
    """An HTTP API's event, full of words that no log may have."""
    event = event_named("chat_first_request") | {"rawPath": path, "routeKey": f"{method} {path}"}
    event["requestContext"]["http"] |= {"method": method, "path": path}
    event["headers"] |= {"x-canary": CANARY, "cookie": f"a={CANARY}", "authorization": f"Bearer {CANARY}"}
    if user:
        event["headers"]["x-user-id"] = f"{user}-{uuid.uuid4().hex}"
    event["body"] = body if isinstance(body, str | None) else json.dumps(body)
    return event


SAYING = {"message": f"I say {CANARY}"}
INVOCATIONS: Sequence[tuple[str, dict[str, Any], Sequence[Answer], int]] = [
    (
        "chat",
        asking("POST", "/chat", SAYING),
        [calls("lookup", json.dumps({"word": CANARY})), says(CANARY), calls("Verdict", f'{{"score": "{CANARY}"}}')],
        200,
    ),
    ("chat", asking("POST", "/chat", SAYING), [responds(400, BROKEN, kind="application/json")], 502),
    ("chat", asking("POST", "/chat", SAYING), [responds(500, BROKEN, kind="application/json")] * 2, 502),
    ("chat", asking("POST", "/chat", SAYING), [streams(f"{{{CANARY}")], 502),
    ("chat", asking("POST", "/chat", f"{{{CANARY}"), [], 400),
    ("sessions", asking("POST", "/sessions", {"title": CANARY}), [], 201),
    ("sessions", asking("POST", "/sessions", {CANARY: CANARY}), [], 400),
    ("sessions", asking("GET", f"/{CANARY}"), [], 404),
]


@pytest.fixture(scope="module", params=SWITCHES)
def run(request: pytest.FixtureRequest, dynoxide: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Turns and requests of all kinds, those that fail among them, in a process with a switch turned on."""
    store_at(dynoxide)
    responses = tmp_path_factory.mktemp("logged") / "responses"
    with faulty_model() as model:
        model.tell(*(answer for _, _, answers, _ in INVOCATIONS for answer in answers))
        environment = os.environ | {
            "TABLE_NAME": TABLE,
            "DYNAMODB_ENDPOINT": dynoxide,
            "IDENTITY_SOURCES": "header",
            "OPENAI_API_BASE": f"{model.endpoint}/v1",
            "OPENAI_API_KEY": f"sk-{CANARY}",
            "OPENAI_MODEL": "faulty",
            "MODEL_RETRIES": "1",
        }
        done = subprocess.run(  # noqa: S603 - a program of the tests
            [sys.executable, "-m", "tests.logged", str(responses)],
            cwd=Path(__file__).parent.parent.parent,
            env=environment | SWITCHES[request.param],
            input="".join(json.dumps({"function": name, "event": event}) + "\n" for name, event, _, _ in INVOCATIONS),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:]
    return Run(responses=[json.loads(line) for line in responses.read_text().splitlines()], log=done.stdout)


def test_no_switch_changes_what_is_answered(run: Run) -> None:
    """The same statuses, and no stack trace in any body."""
    assert [response["statusCode"] for response in run.responses] == [status for _, _, _, status in INVOCATIONS]
    assert "Traceback" not in json.dumps(run.responses)


def test_no_switch_logs_what_was_said(run: Run) -> None:
    """Neither messages nor answers, arguments, errors' texts, titles, headers or keys; each invocation has its line."""
    assert [line for line in run.log.splitlines() if CANARY in line.lower()] == []
    assert len(re.findall(r'"status": ?\d+', run.log)) == len(INVOCATIONS)


def test_an_error_that_nobody_waits_for_is_logged_without_its_text(service: Service) -> None:
    """What asyncio says of tasks that fail unseen has their errors' texts in it."""

    async def fails() -> None:
        raise ConnectionError(CANARY)

    async def forgets() -> None:
        task = asyncio.create_task(fails())
        await asyncio.wait({task})

    service.run(forgets())
    gc.collect()
    (line,) = [json.loads(line) for line in service.logged() if "ConnectionError" in line]
    assert (line["level"], line["message"], line["cause"][0]["error"]) == ("ERROR", "lost", "builtins.ConnectionError")
    assert CANARY not in json.dumps(line)
