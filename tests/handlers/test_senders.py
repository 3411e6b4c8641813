"""HTTP APIs, REST APIs, function URLs and load balancers: the same service behind each, under any prefix."""

import json
from typing import Any
from urllib.parse import unquote

import pytest
from aws_lambda_powertools.event_handler import Response

from handlers.front import Front
from handlers.problems import Kind
from handlers.report import Exchange
from tests.conftest import event_named
from tests.handlers.conftest import Context, Reply, Service, configure

PROBLEM = "application/problem+json"
ALBS = ["chat_alb_first_request", "chat_alb_multi_value_headers"]


def document_of(service: Service, name: str, path: str, inside: str | None = None) -> Any:
    """GET /openapi.json through what sent an example event, at a path as clients see it.

    `inside` is what a REST API makes of it.
    """
    event = event_named(name) | {"body": None, "pathParameters": None}
    if "rawPath" in event:
        event["routeKey"], event["rawPath"] = "GET /openapi.json", path
        event["requestContext"]["http"] |= {"method": "GET", "path": path}
    else:
        event |= {"resource": "/openapi.json", "httpMethod": "GET"}
        event["path"] = inside or path
        event["requestContext"]["path"] = path
    reply = service.invoke(event)
    assert reply.status == 200
    return reply.body


@pytest.mark.parametrize(
    ("name", "path", "inside", "server"),
    [
        ("chat_first_request", "/openapi.json", None, "/"),
        ("chat_custom_domain", "/v1/openapi.json", None, "/v1"),
        ("chat_custom_domain", "/team/v1/openapi.json", None, "/team/v1"),
        ("chat_named_stage", "/prod/openapi.json", None, "/prod"),
        ("chat_rest_first_request", "/prod/openapi.json", "/openapi.json", "/prod"),
        ("chat_rest_custom_domain", "/v1/openapi.json", None, "/v1"),
        ("chat_rest_custom_domain", "/openapi.json", None, "/"),
        ("chat_url_first_request", "/openapi.json", None, "/"),
        ("chat_alb_first_request", "/openapi.json", None, "/"),
    ],
)
def test_the_document_says_where_the_api_is(
    service: Service, name: str, path: str, inside: str | None, server: str
) -> None:
    """`servers` is the prefix that the client asked under: a path, since the host may be another one in front."""
    assert document_of(service, name, path, inside)["servers"] == [{"url": server}]


def test_a_mapped_path_that_is_not_there_is_a_problem(service: Service) -> None:
    """Behind a prefix, other paths and methods are what they are without it."""
    event = event_named("chat_custom_domain")
    event["rawPath"] = event["requestContext"]["http"]["path"] = "/v1/other"
    event["routeKey"] = "POST /other"
    assert service.invoke(event).body["type"] == Kind.NOT_FOUND.urn
    event["rawPath"] = event["requestContext"]["http"]["path"] = "/v1/sessions"
    event["routeKey"], event["requestContext"]["http"]["method"] = "ANY /sessions", "PUT"
    reply = service.invoke(event)
    assert (reply.body["type"], reply.headers["allow"]) == (Kind.METHOD.urn, "DELETE, GET, POST")


@pytest.mark.parametrize("name", ["chat_url_first_request", "chat_alb_first_request"])
def test_a_prefix_that_no_api_knows_is_a_setting(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A CloudFront path in front of a function URL or a load balancer: BASE_PATH takes it off."""
    event = event_named(name)
    if "rawPath" in event:
        event["rawPath"] = event["requestContext"]["http"]["path"] = "/api/chat"
    else:
        event["path"] = "/api/chat"
    assert service.invoke(event).status == 404
    configure(monkeypatch, BASE_PATH="/api")
    assert service.invoke(event).status == 200


def test_the_prefix_of_the_setting_is_in_the_document(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients see what the setting takes off."""
    configure(monkeypatch, BASE_PATH="/api")
    event = event_named("sessions_url_list") | {"rawPath": "/api/openapi.json"}
    assert service.invoke(event).body["servers"] == [{"url": "/api"}]


def test_an_id_is_decoded_once_whatever_sent_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """%61 in a path is the letter a; a client that encodes it twice does not mean that letter."""
    configure(monkeypatch, IDENTITY_SOURCES="cognito")
    service.invoke(event_named("chat_rest_cognito"))
    event = event_named("sessions_rest_turns")

    def turns(session: str) -> int:
        paths = {"path": f"/sessions/{session}/turns", "pathParameters": {"id": session}}
        return service.invoke(event | paths).status

    assert [turns("default"), turns("d%65fault"), turns("d%2565fault")] == [200, 200, 404]


def test_an_id_with_a_slash_is_no_session_of_its_own(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoded slash does not reach over into another path: such a session does not exist."""
    configure(monkeypatch, IDENTITY_SOURCES="cognito")
    service.invoke(event_named("chat_rest_cognito"))
    event = event_named("sessions_rest_turns") | {"path": "/sessions/default%2Fturns", "resource": "/sessions/{id}"}
    reply = service.invoke(event | {"pathParameters": {"id": "default%2Fturns"}})
    assert (reply.status, reply.body["type"]) == (404, Kind.SESSION_NOT_FOUND.urn)


@pytest.mark.parametrize("sent", ["a%20b", "%C3%BC", "a%2Fb", "%2561", "%0A"])
def test_a_route_gets_what_stands_in_its_path_decoded(service: Service, sent: str) -> None:
    """Whatever a client put there, the route sees it as the client meant it."""
    seen: list[str] = []
    front = Front()

    @front.route("GET", "/sessions/{id}/turns")
    async def answer(exchange: Exchange) -> Response[str]:
        seen.append(exchange.places["id"])
        return Response(204)

    event = event_named("sessions_rest_turns")
    event |= {"path": f"/sessions/{sent}/turns", "pathParameters": {"id": sent}}
    assert front(event, Context())["statusCode"] == 204  # type: ignore[arg-type]
    assert seen == [unquote(sent)]


class TestLoadBalancers:
    """Target groups have single-value headers, or multi-value headers if their attribute says so."""

    @pytest.mark.parametrize("name", ALBS)
    def test_an_answer_has_its_headers_and_its_cookie(self, service: Service, name: str) -> None:
        """Content type, token and cookie arrive, in the form that the target group reads."""
        event = event_named(name)
        reply = service.invoke(event)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert reply.token
        (cookie,) = reply.cookies
        assert cookie.startswith(f"__Host-rehydrate={reply.token};")
        assert reply.form == ("multiValueHeaders" if "multiValueHeaders" in event else "headers")

    @pytest.mark.parametrize("name", ALBS)
    def test_a_conversation_goes_on(self, service: Service, name: str) -> None:
        """By the cookie that the first answer brought."""
        event = event_named(name)
        (cookie,) = service.invoke(event).cookies
        sent: Any = cookie.split(";")[0]
        if "multiValueHeaders" in event:
            event["multiValueHeaders"]["cookie"] = [f"theme=dark; {sent}"]
        else:
            event["headers"]["cookie"] = f"theme=dark; {sent}"
        assert service.invoke(event | {"body": '{"message": "What is my name?"}'}).body["answer"] == "Your name is Ada."

    @pytest.mark.parametrize("name", ["chat_alb_first_request", "chat_alb_multi_value_headers"])
    @pytest.mark.parametrize("fault", ["no such path", "bad cookie", "bad body", "no setting"])
    def test_a_problem_is_one_too(
        self, service: Service, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
    ) -> None:
        """Whatever goes wrong is answered in the form that the target group reads."""
        event = event_named(name)
        if fault == "no such path":
            event["path"] = "/other"
        elif fault == "bad cookie" and "headers" in event:
            event["headers"]["cookie"] = "__Host-rehydrate=forged"
        elif fault == "bad cookie":
            event["multiValueHeaders"]["cookie"] = ["__Host-rehydrate=forged"]
        elif fault == "bad body":
            event["body"] = "{"
        else:
            configure(monkeypatch, TOKEN_DAYS="none")
        reply = service.invoke(event)
        assert reply.status == {"no such path": 404, "bad cookie": 401, "bad body": 400, "no setting": 500}[fault]
        assert reply.headers["content-type"] == PROBLEM
        assert reply.form == ("multiValueHeaders" if "multiValueHeaders" in event else "headers")

    def test_an_answer_without_a_body_has_an_empty_one(self, service: Service) -> None:
        """A load balancer takes no null for a body: a 204 would become a 502."""
        token = service.say("Hello").token
        event = event_named("sessions_alb_list") | {"httpMethod": "DELETE", "path": "/sessions/default"}
        event["headers"]["x-session-token"] = token
        result = service.result_of(event)
        assert (result["statusCode"], result["body"]) == (204, "")

    @pytest.mark.parametrize("several", [False, True])
    def test_a_query_is_decoded(self, service: Service, several: bool) -> None:
        """Of all senders, load balancers alone leave query parameters percent-encoded."""
        token = service.say("Hello").token
        service.say("Hello", token=token, session="other")
        event = event_named("sessions_alb_list")
        event["headers"]["x-session-token"] = token
        first = service.invoke(event)
        cursor = first.body["next_cursor"]
        query = {"l%69mit": "%31", "cursor": cursor.replace("=", "%3D").replace("-", "%2D").replace("_", "%5F")}
        event["queryStringParameters"] = query
        if several:
            event["multiValueQueryStringParameters"] = {name: ["ignored", value] for name, value in query.items()}
            event["multiValueHeaders"] = {name: [value] for name, value in event.pop("headers").items()}
            del event["queryStringParameters"]
        second = service.invoke(event)
        assert second.status == 200, second.body
        assert (
            first.body["sessions"] + second.body["sessions"]
            == service.send("GET", "/sessions", token=token).body["sessions"]
        )


class TestCors:
    ORIGIN = "https://www.example.com"

    @pytest.mark.parametrize(
        "name", ["chat_url_first_request", "chat_alb_first_request", "chat_alb_multi_value_headers"]
    )
    def test_a_preflight_is_answered_behind_every_sender(
        self, service: Service, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """Also where no API Gateway answers it, and in the form that the sender reads."""
        configure(monkeypatch, CORS_ORIGINS=self.ORIGIN)
        event = event_named(name) | {"body": None}
        if "rawPath" in event:
            event["requestContext"]["http"]["method"] = "OPTIONS"
        else:
            event["httpMethod"] = "OPTIONS"
        if "multiValueHeaders" in event:
            event["multiValueHeaders"]["origin"] = [self.ORIGIN]
        else:
            event["headers"]["origin"] = self.ORIGIN
        reply = service.invoke(event)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, self.ORIGIN)

    def test_further_request_headers_are_a_setting(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """What tracing and error reports add to a page's requests, beside what the API reads."""
        configure(monkeypatch, CORS_ORIGINS=self.ORIGIN, CORS_HEADERS="traceparent, baggage,Sentry-Trace")
        reply = service.send("OPTIONS", "/chat", origin=self.ORIGIN)
        allowed = {name.lower() for name in reply.headers["access-control-allow-headers"].split(",")}
        assert {"traceparent", "baggage", "sentry-trace", "idempotency-key", "content-type"} <= allowed


@pytest.mark.parametrize(
    "name", ["chat_custom_domain", "chat_rest_custom_domain", "chat_url_without_stage", "chat_payload_1_0_jwt"]
)
def test_the_line_names_the_route(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The log names the API's own route, whatever stands in front of it."""
    configure(monkeypatch, IDENTITY_SOURCES="jwt" if "jwt" in name else "token")
    assert service.invoke(event_named(name)).line["route"] == "POST /chat"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("chat_first_request", "203.0.113.10"),
        ("chat_rest_first_request", "203.0.113.10"),
        ("chat_url_first_request", "203.0.113.10"),
        ("chat_alb_first_request", None),
    ],
)
def test_the_line_says_where_a_request_came_from(service: Service, name: str, address: str | None) -> None:
    """By the request's context, never by a header that the client can write; load balancers have none."""
    event = event_named(name)
    event["headers"]["x-forwarded-for"] = "192.0.2.66"
    assert service.invoke(event).line.get("source_ip") == address
    assert service.invoke(event | {"body": "{"}).line.get("source_ip") == address


@pytest.mark.parametrize("address", [None, 7, {}, "", "My name is Ada", "1" * 100, "203.0.113.10\n"])
def test_what_is_no_address_is_not_logged_as_one(service: Service, address: Any) -> None:
    """An address is digits, colons and dots."""
    event = event_named("chat_first_request")
    event["requestContext"]["http"]["sourceIp"] = address
    assert "source_ip" not in service.invoke(event).line


NOSNIFF = "x-content-type-options"


@pytest.mark.parametrize("name", ["chat_first_request", "chat_rest_first_request", *ALBS])
def test_no_browser_guesses_a_type(service: Service, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every response says so: answers, problems, preflights, and what is left where nothing works."""
    event = event_named(name)
    assert service.invoke(event).headers[NOSNIFF] == "nosniff"
    assert service.invoke(event | {"body": "{"}).headers[NOSNIFF] == "nosniff"
    other = json.loads(json.dumps(event).replace("/chat", "/other"))
    assert service.invoke(other).headers[NOSNIFF] == "nosniff"
    configure(monkeypatch, CORS_ORIGINS="https://www.example.com")
    preflight = json.loads(json.dumps(event).replace('"POST"', '"OPTIONS"').replace("POST /chat", "$default"))
    reply = service.invoke(preflight)
    assert (reply.status, reply.headers[NOSNIFF]) == (204, "nosniff")
    configure(monkeypatch, TOKEN_DAYS="none")
    reply = service.invoke(event)
    assert (reply.status, reply.headers[NOSNIFF]) == (500, "nosniff")


def delete_with_a_slash(service: Service, name: str, token: str | None) -> Reply:
    """DELETE /sessions/ as each sender would hand it over."""
    event = event_named(name) | {"body": None}
    if "rawPath" in event:
        event["rawPath"] = "/v1/sessions/" if "domain" in name else "/sessions/"
        event["requestContext"]["http"] |= {"method": "DELETE", "path": event["rawPath"]}
        event["routeKey"] = "$default" if "url" in name else "DELETE /sessions"
    else:
        event["path"] = event["requestContext"]["path"] = "/v1/sessions/" if "domain" in name else "/sessions/"
        event |= {"httpMethod": "DELETE", "resource": "/sessions"}
    several = event.get("multiValueHeaders")
    if several is not None:
        several["x-session-token"] = [token]
    if event.get("headers") is not None:
        event["headers"]["x-session-token"] = token
    return service.invoke(json.loads(json.dumps(event)))


@pytest.mark.parametrize(
    "name",
    [
        "chat_first_request",
        "chat_custom_domain",
        "chat_rest_first_request",
        "chat_rest_custom_domain",
        "chat_url_first_request",
        "chat_alb_first_request",
        "chat_alb_multi_value_headers",
    ],
)
def test_a_missing_id_is_not_everything_behind_any_sender(service: Service, name: str) -> None:
    """DELETE /sessions/ is 404, and the caller's sessions are still there."""
    token = service.say("Hello").token
    reply = delete_with_a_slash(service, name, token)
    assert (reply.status, reply.body["type"]) == (404, Kind.NOT_FOUND.urn)
    assert service.send("GET", "/sessions/default", token=token).status == 200
