"""A web page of another origin cannot use the cookie of whoever looks at it."""

import json
from typing import Any

import pytest

from handlers.problems import Kind
from tests.conftest import event_named
from tests.handlers.conftest import Reply, Service, configure

HERE = "https://api.example.com"
"""The origin of the service, as the `Host` of the events has it."""
ALLOWED = "https://app.example.com"


def asked(service: Service, *, cookie: str | None = None, method: str = "POST", **headers: str) -> Reply:
    """A request for a new session, which no browser asks permission for."""
    event = event_named("chat_custom_domain") | {"body": None, "routeKey": f"{method} /sessions"}
    event["rawPath"] = "/v1/sessions"
    event["requestContext"]["http"] |= {"method": method, "path": "/v1/sessions"}
    del event["headers"]["content-type"]
    event["headers"] |= {name.replace("_", "-"): value for name, value in headers.items()}
    event["cookies"] = [f"__Host-rehydrate={cookie}"] if cookie else []
    return service.invoke(event)


@pytest.fixture
def cookie(service: Service, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cookie of somebody who has a conversation, where one other origin may call."""
    configure(monkeypatch, CORS_ORIGINS=f"https://other.example.com,{ALLOWED}")
    token = service.say("Hello").token
    assert token
    return token


FOREIGN: list[dict[str, str]] = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "cross-site", "origin": "https://evil.example.net"},
    {"sec_fetch_site": "same-site", "origin": "https://blog.example.com"},
    {"sec_fetch_site": "anything"},
    {"origin": "https://evil.example.net"},
    {"origin": "https://blog.example.com"},
    {"origin": "https://api.example.com.example.net"},
    {"origin": "https://api.example.com:8443"},
    {"origin": "http://api.example.com"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": f"{ALLOWED}, https://evil.example.net"},
    {"origin": f"{ALLOWED}.example.net"},
]
OWN: list[dict[str, str]] = [
    {},
    {"sec_fetch_site": "same-origin", "origin": HERE},
    {"sec_fetch_site": "same-origin"},
    {
        "sec_fetch_site": "same-origin",
        "origin": "https://www.example.com",
    },  # in front of the service, CloudFront has it
    {"sec_fetch_site": "none"},
    {"origin": HERE},
    {"origin": ALLOWED},
    {"sec_fetch_site": "same-site", "origin": ALLOWED},
    {"sec_fetch_site": "cross-site", "origin": ALLOWED},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("method", ["POST", "DELETE", "GET"])
def test_a_foreign_page_is_refused_where_the_cookie_decides(
    service: Service, cookie: str, method: str, headers: dict[str, str]
) -> None:
    """403, and nothing was done."""
    reply = asked(service, cookie=cookie, method=method, **headers)
    assert (reply.status, reply.body["type"]) == (403, Kind.FOREIGN_ORIGIN.urn)
    assert "CORS_ORIGINS" in reply.body["detail"]
    sessions = service.send("GET", "/sessions", token=cookie).body["sessions"]
    assert [session["id"] for session in sessions] == ["default"]


@pytest.mark.parametrize("headers", OWN, ids=str)
def test_the_services_own_pages_and_those_that_are_named_are_not(
    service: Service, cookie: str, headers: dict[str, str]
) -> None:
    """Nor is whatever is no browser, and so says nothing of an origin."""
    assert asked(service, cookie=cookie, **headers).status == 201


def test_a_custom_domain_is_the_services_own(service: Service, cookie: str) -> None:
    """Also where the `Host` that the function gets is the API's."""
    host = "a1b2c3d4e5.execute-api.us-east-1.amazonaws.com"
    assert asked(service, cookie=cookie, origin=HERE, host=host).status == 201
    assert asked(service, cookie=cookie, origin=f"https://{host}", host=host).status == 201
    assert asked(service, cookie=cookie, origin="https://api.example.org", host=host).status == 403


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_token_in_a_header_is_used_by_whoever_has_it(service: Service, cookie: str, headers: dict[str, str]) -> None:
    """A page that has the token was given it: only what browsers send by themselves is in question."""
    assert asked(service, x_session_token=cookie, **headers).status == 201
    assert asked(service, authorization=f"Bearer {cookie}", **headers).status == 201


def test_every_origin_is_not_a_name(service: Service, cookie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CORS_ORIGINS=* lets all pages call, with tokens of their own; it gives none of them other people's cookies."""
    configure(monkeypatch, CORS_ORIGINS="*")
    assert asked(service, cookie=cookie, origin="https://evil.example.net").status == 403
    assert asked(service, cookie=cookie, origin="*").status == 403


def test_a_foreign_page_cannot_clear_the_cookie(service: Service, cookie: str) -> None:
    """Whether the cookie is valid is nothing that such a page is told, or can change."""
    reply = asked(service, cookie="forged", sec_fetch_site="cross-site")
    assert (reply.status, reply.cookies) == (403, [])


@pytest.mark.parametrize("name", ["chat_rest_with_cookie", "chat_alb_first_request", "chat_alb_multi_value_headers"])
def test_it_is_so_behind_every_sender(service: Service, cookie: str, name: str) -> None:
    """Wherever the headers are."""
    event: dict[str, Any] = event_named(name)
    sent = {"cookie": f"__Host-rehydrate={cookie}", "sec-fetch-site": "cross-site", "content-type": "application/json"}
    if "headers" in event:
        event["headers"] = sent
    if "multiValueHeaders" in event:
        event["multiValueHeaders"] = {header: [value] for header, value in sent.items()}
    assert service.invoke(json.loads(json.dumps(event))).status == 403


def test_a_claim_is_not_a_cookie(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an authorizer says who asks, no browser sends that by itself."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt")
    assert service.say("Hello", user="ada", sec_fetch_site="cross-site").status == 200
