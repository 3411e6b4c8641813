"""HTTP requests become the events, and Lambda results the responses, that API Gateway makes of them."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from local.http_event import BadResponse, event_of, response_of

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def event(method: str = "GET", path: str = "/chat", query: str = "", headers: Any = (), body: bytes = b"") -> Any:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.9", 5555),
        "server": ("127.0.0.1", 3000),
    }
    return event_of(scope, body, request_id="r-1", now=NOW)


def test_the_request_context_describes_the_request() -> None:
    """Method, path, protocol, source address, user agent, time and ids stand where API Gateway puts them."""
    made = event("POST", "/chat", headers=[("user-agent", "curl/8"), ("host", "example.test:3000")])
    context = made["requestContext"]
    assert (made["version"], made["routeKey"], made["rawPath"]) == ("2.0", "$default", "/chat")
    assert context["http"] == {
        "method": "POST",
        "path": "/chat",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.9",
        "userAgent": "curl/8",
    }
    assert (context["requestId"], context["stage"], context["domainName"]) == ("r-1", "$default", "example.test")
    assert (context["time"], context["timeEpoch"]) == ("04/Mar/2026:05:06:07 +0000", 1772600767000)
    assert {"accountId", "apiId", "routeKey"} <= context.keys()


def test_duplicate_headers_are_joined_under_lower_case_names() -> None:
    """Header names are lower case, and the values of one name are joined by a comma."""
    made = event(headers=[("Accept", "a"), ("X-Many", "1"), ("x-many", "2")])
    assert made["headers"]["accept"] == "a"
    assert made["headers"]["x-many"] == "1,2"


def test_cookies_are_a_list_and_no_header() -> None:
    """Cookies of all Cookie headers are in `cookies`, one each, and nowhere else."""
    made = event(headers=[("cookie", "a=1; b=2=3"), ("cookie", "c=")])
    assert made["cookies"] == ["a=1", "b=2=3", "c="]
    assert "cookie" not in made["headers"]


def test_query_parameters_are_decoded_and_joined() -> None:
    """The raw query stays encoded; parameters are decoded, and duplicates joined by a comma."""
    made = event(query="a=1&b=x%20y&a=2&empty=")
    assert made["rawQueryString"] == "a=1&b=x%20y&a=2&empty="
    assert made["queryStringParameters"] == {"a": "1,2", "b": "x y", "empty": ""}


def test_absent_parts_are_absent() -> None:
    """Without cookies, query or body there is no such key."""
    assert not {"cookies", "queryStringParameters", "body"} & event().keys()


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "text/plain",
        "application/problem+json",
        "application/xml",
    ],
)
def test_text_bodies_are_text(content_type: str) -> None:
    """A body of a text type reaches the handler as it is."""
    made = event("POST", headers=[("content-type", content_type)], body="é".encode())
    assert (made["body"], made["isBase64Encoded"]) == ("é", False)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"a=1"),
        ("image/png", b"\x89PNG"),
        ("application/json", b"\xff\xfe"),
        ("", b"{}"),
    ],
)
def test_other_bodies_are_base64(content_type: str, body: bytes) -> None:
    """A body of any other type, of none, or that is no UTF-8, is base64."""
    made = event("POST", headers=[("content-type", content_type)], body=body)
    assert made["isBase64Encoded"] is True
    assert base64.b64decode(made["body"]) == body


def test_a_response_keeps_status_headers_cookies_and_body() -> None:
    """Each cookie is a Set-Cookie header of its own, each of multiValueHeaders' values a header."""
    response = response_of(
        {
            "statusCode": 201,
            "headers": {"Content-Type": "application/json", "X-One": 1, "Content-Length": "999"},
            "multiValueHeaders": {"X-Many": ["a", "b"]},
            "cookies": ["a=1; HttpOnly", "b=2"],
            "body": "{}",
        }
    )
    assert (response.status, response.body) == (201, b"{}")
    assert response.headers == [
        (b"content-type", b"application/json"),
        (b"x-one", b"1"),
        (b"x-many", b"a"),
        (b"x-many", b"b"),
        (b"set-cookie", b"a=1; HttpOnly"),
        (b"set-cookie", b"b=2"),
    ]


def test_a_base64_response_is_decoded() -> None:
    """`isBase64Encoded` bodies go out as the bytes that they stand for."""
    body = base64.b64encode(b"\x00\xff").decode()
    assert response_of({"statusCode": 200, "body": body, "isBase64Encoded": True}).body == b"\x00\xff"


def test_a_result_without_status_is_the_body() -> None:
    """Payload format 2.0 takes a result without statusCode as the JSON body of a 200."""
    response = response_of({"hello": "world"})
    assert (response.status, json.loads(response.body)) == (200, {"hello": "world"})
    assert response.headers == [(b"content-type", b"application/json")]


@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": "many"},
        {"statusCode": 99},
        {"statusCode": True},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "headers": {"x": "a\r\nset-cookie: b=1"}},
        {"statusCode": 200, "headers": {"x y": "a"}},
        {"statusCode": 200, "headers": {"x": "\u2603"}},
        {"statusCode": 200, "cookies": "a=1"},
    ],
)
def test_a_malformed_result_is_refused(result: Any) -> None:
    """What cannot be an HTTP response is an error, never a guess."""
    with pytest.raises(BadResponse):
        response_of(result)
