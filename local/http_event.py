"""HTTP requests as API Gateway HTTP API events (payload format 2.0), and Lambda results as HTTP responses. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

_ACCOUNT = "123456789012"
_API = "local"
_TEXT_TYPES = re.compile(r"text/.*|application/(.*\+json|json|javascript|xml|.*\+xml)", re.IGNORECASE)
# The server writes these itself, from the body that it really sends.
_SERVER_HEADERS = frozenset({"connection", "content-length", "date", "keep-alive", "transfer-encoding", "upgrade"})
_NO_BODY = frozenset({204, 304})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
Headers = list[tuple[bytes, bytes]]


class BadResponse(Exception):
    """What the handler returned is no HTTP response; the text says why."""


@dataclass(frozen=True, kw_only=True)
class HttpResponse:
    """A response as it goes over the wire; `headers` hold no Content-Length."""

    status: int
    headers: Headers
    body: bytes


def event_of(scope: Mapping[str, Any], body: bytes, *, request_id: str, now: datetime) -> dict[str, Any]:
    """The event that API Gateway would send for the ASGI request `scope` with `body`.

    `rawPath` is percent-decoded, as HTTP APIs have it. A body of a text type is text, any other is base64.
    """
    headers, cookies = _headers_and_cookies(scope)
    query = scope["query_string"].decode("latin-1")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": scope["path"],
        "rawQueryString": query,
        "headers": headers,
        "requestContext": _request_context(scope, headers, request_id=request_id, now=now),
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = _joined(parse_qsl(query, keep_blank_values=True))
    if body:
        event["body"], event["isBase64Encoded"] = _event_body(body, headers.get("content-type", ""))
    return event


def response_of(result: Any) -> HttpResponse:
    """The response that API Gateway makes of what a handler returned. Raises BadResponse.

    A result without `statusCode` is the JSON body of a 200, as payload format 2.0 has it.
    """
    if not isinstance(result, dict) or "statusCode" not in result:
        text = result if isinstance(result, str) else json.dumps(result)
        return HttpResponse(status=200, headers=[(b"content-type", b"application/json")], body=text.encode())
    status = _status(result["statusCode"])
    headers = [_header(name, value) for name, value in _result_headers(result)]
    if not any(name == b"content-type" for name, _ in headers) and status not in _NO_BODY:
        headers.append((b"content-type", b"text/plain;charset=utf-8"))
    body = b"" if status in _NO_BODY else _response_body(result)
    return HttpResponse(status=status, headers=headers, body=body)


def _headers_and_cookies(scope: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    cookies = [
        cookie.strip() for name, value in pairs if name == "cookie" for cookie in value.split(";") if cookie.strip()
    ]
    address, port = (scope.get("client") or ("127.0.0.1",))[0], (scope.get("server") or ("", 80))[1]
    # As API Gateway does: its own word comes last, whatever the client claimed before it.
    pairs += [("x-forwarded-for", address), ("x-forwarded-port", str(port)), ("x-forwarded-proto", scope["scheme"])]
    return _joined(pair for pair in pairs if pair[0] != "cookie"), cookies


def _request_context(
    scope: Mapping[str, Any], headers: Mapping[str, str], *, request_id: str, now: datetime
) -> dict[str, Any]:
    domain = headers.get("host", "localhost").rsplit(":", 1)[0]
    return {
        "accountId": _ACCOUNT,
        "apiId": _API,
        "domainName": domain,
        "domainPrefix": domain.split(".")[0],
        "http": {
            "method": scope["method"],
            "path": scope["path"],
            "protocol": f"HTTP/{scope['http_version']}",
            "sourceIp": (scope.get("client") or ("127.0.0.1",))[0],
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now.timestamp() * 1000),
    }


def _event_body(body: bytes, content_type: str) -> tuple[str, bool]:
    if _TEXT_TYPES.fullmatch(content_type.split(";")[0].strip()):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _status(status: Any) -> int:
    if isinstance(status, bool) or not re.fullmatch(r"[2-5]\d\d", str(status)):
        raise BadResponse(f"its statusCode is no HTTP status: {status!r:.40}")
    return int(status)


def _result_headers(result: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    single, several = result.get("headers") or {}, result.get("multiValueHeaders") or {}
    cookies = result.get("cookies") or []
    if not isinstance(single, dict) or not isinstance(several, dict) or not isinstance(cookies, list):
        raise BadResponse("its headers and multiValueHeaders must be objects, and its cookies a list")
    repeated = {str(name).lower() for name in several}
    pairs = [pair for pair in single.items() if str(pair[0]).lower() not in repeated]
    pairs += [(name, one) for name, values in several.items() for one in (values or [])]
    pairs += [("set-cookie", cookie) for cookie in cookies]
    return [pair for pair in pairs if str(pair[0]).lower() not in _SERVER_HEADERS]


def _header(name: Any, value: Any) -> tuple[bytes, bytes]:
    text = str(value)
    if not _TOKEN.fullmatch(str(name)) or re.search(r"[\r\n\0]", text):
        raise BadResponse(f"its header {name!r:.60} cannot be sent")
    try:
        return str(name).lower().encode("ascii"), text.encode("latin-1")
    except UnicodeEncodeError:
        raise BadResponse(f"its header {name!r:.60} holds characters that no header can") from None


def _response_body(result: Mapping[str, Any]) -> bytes:
    body = result.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise BadResponse(f"its body is no string but {type(body).__name__}")
    if not result.get("isBase64Encoded"):
        return body.encode(errors="surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise BadResponse("its body is said to be base64 and is not") from None
