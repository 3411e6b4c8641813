"""A proxy in front of a DynamoDB engine, since engines check neither signatures nor who sent a request.

Its address ends in a random path. Whoever does not know it gets 403, and no response has a CORS header, so no web page
can read anything or have anything passed on. Requests go on with the engine's own access key: DynamoDB Local listens on
every network interface, and has a database for each access key and region. Only this process knows the key in use.

The path and the key come from the environment, since every user of a machine can read command lines.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local import guard
from local.engine import REGION

_PATH_VARIABLE = "ENGINE_PROXY_PATH"
_KEY_VARIABLE = "ENGINE_PROXY_KEY"
_SECONDS = 30.0
_SENT_ON = frozenset({"content-type", "x-amz-target", "x-amz-date"})
_SENT_BACK = frozenset({"content-type", "x-amzn-requestid", "x-amz-crc32"})
_SCOPE = re.compile(r"Credential=[^/,\s]+/(\d{8})/[^/,\s]+/")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A running proxy, and the address by which it lets its clients in."""

    server: guard.GuardedServer
    address: str


def start(onward: str, *, access_key: str, log: Path | None = None) -> Proxy:
    """Start a proxy to the engine at `onward` as a process that dies with this one. Raises guard.ServerStartError."""
    path = secrets.token_urlsafe(24)
    server = guard.start(
        "The engine's proxy",
        lambda port: [sys.executable, "-m", "local.engine_proxy", "--port", str(port), onward],
        lambda endpoint: guard.status_of(endpoint, f"/{path}") == 405,
        log=log,
        env={**os.environ, _PATH_VARIABLE: path, _KEY_VARIABLE: access_key},
    )
    return Proxy(server=server, address=f"{server.endpoint}/{path}")


def application(onward: str, *, path: str, access_key: str) -> Starlette:
    """The proxy, for clients that know `path`."""
    # No limit of its own: what waits, waits for the engine.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    client = httpx.AsyncClient(base_url=onward, timeout=_SECONDS, limits=limits, trust_env=False)

    async def pass_on(request: Request) -> Response:
        if not secrets.compare_digest(request.path_params["path"].rstrip("/").encode(), path.encode()):
            return _refusal(403, "AccessDeniedException", "This engine answers at the address that its owner was told.")
        if request.method != "POST":
            return _refusal(405, "MethodNotAllowedException", "DynamoDB takes POST requests alone.")
        headers = _onward(request.headers, access_key)
        try:
            answer = await client.post("/", content=await request.body(), headers=headers)
        except httpx.TransportError as error:
            return _refusal(503, "ServiceUnavailableException", f"The engine does not answer ({type(error).__name__}).")
        kept = {name: value for name, value in answer.headers.items() if name in _SENT_BACK}
        return Response(answer.content, answer.status_code, kept)

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", pass_on, methods=methods)])


def _onward(headers: Mapping[str, str], access_key: str) -> dict[str, str]:
    """What the engine needs to know of a request, with the credentials of its database."""
    kept = {name: value for name, value in headers.items() if name.lower() in _SENT_ON}
    signed = _SCOPE.sub(rf"Credential={access_key}/\1/{REGION}/", headers.get("authorization", ""))
    # The engine's answer has a checksum of its bytes as they are.
    return {**kept, "authorization": signed, "accept-encoding": "identity"}


def _refusal(status: int, kind: str, message: str) -> Response:
    """An error as AWS's clients read it."""
    return JSONResponse({"__type": f"com.amazonaws.dynamodb.v20120810#{kind}", "message": message}, status)


def main(arguments: list[str]) -> None:
    """Serve on loopback until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m local.engine_proxy", description="A guard of a DynamoDB engine.")
    parser.add_argument("onward", help="the engine's own address")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    uvicorn.run(
        application(options.onward, path=os.environ[_PATH_VARIABLE], access_key=os.environ[_KEY_VARIABLE]),
        host=guard.LOOPBACK,
        port=options.port,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
