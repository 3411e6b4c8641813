"""Which of the API's paths an event asks for, whatever stands before it and whichever kind of API sent it."""

from typing import Any

import pytest

from handlers.router import Target, target_of

TURNS = "/sessions/talk/turns"


def http_api(
    route: str, path: str, *, stage: str = "$default", method: str | None = None, **parameters: str
) -> dict[str, Any]:
    """A request to an HTTP API, whose path arrives decoded."""
    first = route.split(" ")[0]
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "pathParameters": parameters or None,
        "requestContext": {
            "domainName": "api.example.com",
            "http": {"method": method or first, "path": path},
            "routeKey": route,
            "stage": stage,
        },
    }


def http_api_1_0(
    method: str, resource: str, path: str, *, stage: str = "$default", **parameters: str
) -> dict[str, Any]:
    """A request to an HTTP API with payload format 1.0: the form of a REST API's, and still decoded."""
    return rest_api(method, resource, path, external=path, stage=stage, **parameters) | {"version": "1.0"}


def rest_api(
    method: str, resource: str, path: str, *, external: str, stage: str = "prod", **parameters: str
) -> dict[str, Any]:
    """A request to a REST API, whose path and parameters arrive as the client encoded them."""
    return {
        "resource": resource,
        "path": path,
        "httpMethod": method,
        "pathParameters": parameters or None,
        "requestContext": {"resourcePath": resource, "httpMethod": method, "path": external, "stage": stage},
    }


def function_url(method: str, path: str) -> dict[str, Any]:
    """A request to a function URL, whose path arrives as the client encoded it."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "requestContext": {
            "domainName": "abcdefghijklmnopqrstuvwxyz123456.lambda-url.us-east-1.on.aws",
            "http": {"method": method, "path": path},
        },
    }


def load_balancer(method: str, path: str) -> dict[str, Any]:
    """A request to a load balancer, whose path arrives as the client encoded it."""
    group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/chat/0123456789abcdef"
    return {"requestContext": {"elb": {"targetGroupArn": group}}, "httpMethod": method, "path": path}


def asked(event: dict[str, Any], base_path: str = "") -> tuple[str, str, str]:
    target = target_of(event, base_path)
    return target.method, target.prefix, target.path


@pytest.mark.parametrize(
    ("event", "prefix"),
    [
        (http_api("POST /chat", "/chat"), ""),
        (http_api("POST /chat", "/v1/chat"), "/v1"),
        (http_api("POST /chat", "/team/v1/chat"), "/team/v1"),
        (http_api("POST /chat", "/prod/chat", stage="prod"), "/prod"),
        (http_api("POST /chat", "/v1/chat", stage="prod"), "/v1"),
        (http_api("POST /chat", "/chat/chat"), "/chat"),
        (http_api("ANY /chat", "/v1/chat", method="POST"), "/v1"),
        (http_api("ANY /{proxy+}", "/v1/chat", method="POST", proxy="chat"), "/v1"),
        (http_api("$default", "/chat", method="POST"), ""),
        (http_api("$default", "/prod/chat", method="POST", stage="prod"), "/prod"),
        (http_api_1_0("POST", "/chat", "/v1/chat"), "/v1"),
        (http_api_1_0("POST", "/chat", "/prod/chat", stage="prod"), "/prod"),
        (http_api_1_0("POST", "$default", "/prod/chat", stage="prod"), "/prod"),
        (rest_api("POST", "/chat", "/chat", external="/prod/chat"), "/prod"),
        (rest_api("POST", "/chat", "/v1/chat", external="/v1/chat"), "/v1"),
        (rest_api("POST", "/chat", "/team/v1/chat", external="/team/v1/chat"), "/team/v1"),
        (rest_api("POST", "/chat", "/v1/prod/chat", external="/v1/prod/chat"), "/v1/prod"),
        (rest_api("POST", "/{proxy+}", "/chat", external="/prod/chat", proxy="chat"), "/prod"),
        (rest_api("POST", "/{proxy+}", "/v1/chat", external="/v1/chat", proxy="chat"), "/v1"),
        (function_url("POST", "/chat"), ""),
        (load_balancer("POST", "/chat"), ""),
    ],
)
def test_the_route_that_the_api_matched_says_where_its_own_path_begins(event: dict[str, Any], prefix: str) -> None:
    """Base path mappings of any depth and stages come off without a setting; what came off is known to clients."""
    assert asked(event) == ("POST", prefix, "/chat")


@pytest.mark.parametrize(
    ("event", "prefix"),
    [
        (http_api("GET /sessions/{id}/turns", "/team/v1/sessions/talk/turns", id="talk"), "/team/v1"),
        (http_api("GET /sessions/{name}/turns", "/v1/sessions/talk/turns", name="talk"), "/v1"),
        (http_api("GET /sessions/{id}/turns", "/v1/sessions/talk/turns"), "/v1"),
        (http_api("GET /sessions/talk/turns", "/v1/sessions/talk/turns"), "/v1"),
        (http_api("GET /{proxy+}", "/v1/sessions/talk/turns", proxy="sessions/talk/turns"), "/v1"),
        (http_api("GET /sessions/{rest+}", "/v1/sessions/talk/turns", rest="talk/turns"), "/v1"),
        (
            rest_api("GET", "/sessions/{id}/turns", f"/v1{TURNS}", external=f"/v1{TURNS}", id="talk"),
            "/v1",
        ),
        (rest_api("GET", "/{proxy+}", TURNS, external=f"/prod{TURNS}", proxy=TURNS[1:]), "/prod"),
    ],
)
def test_path_parameters_are_part_of_the_path(event: dict[str, Any], prefix: str) -> None:
    """Whatever the API calls its parameters, and also if a gateway reports a route without them."""
    assert asked(event) == ("GET", prefix, TURNS)


@pytest.mark.parametrize("reported", ["a b", "a%20b"])
def test_parameters_may_be_reported_in_either_spelling(reported: str) -> None:
    """An API that decodes the path may leave the parameters as they were sent: they are the same ones."""
    event = http_api("GET /sessions/{id}", "/v1/sessions/a b", id=reported)
    assert asked(event) == ("GET", "/v1", "/sessions/a%20b")


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("talk", "/sessions/talk"),
        ("t%61lk", "/sessions/talk"),
        ("a%20b", "/sessions/a%20b"),
        ("a%2Fb", "/sessions/a%2Fb"),
        ("a+b", "/sessions/a%2Bb"),
        ("%2561", "/sessions/%2561"),
        ("%C3%BC", "/sessions/%C3%BC"),
        ("ü", "/sessions/%C3%BC"),
        ("%0A", "/sessions/%0A"),
        ("%", "/sessions/%25"),
        ("%zz", "/sessions/%25zz"),
        ("%ff", "/sessions/%EF%BF%BD"),
    ],
)
def test_what_arrives_encoded_is_decoded_once(sent: str, path: str) -> None:
    """REST APIs, function URLs and load balancers hand on the client's percent-encoding; it is undone, once."""
    whole = f"/sessions/{sent}"
    encoded = [
        rest_api("GET", "/sessions/{id}", whole, external=f"/prod{whole}", id=sent),
        rest_api("GET", "/{proxy+}", whole, external=f"/prod{whole}", proxy=whole[1:]),
        function_url("GET", whole),
        load_balancer("GET", whole),
    ]
    assert [target_of(event).path for event in encoded] == [path] * 4


@pytest.mark.parametrize(
    ("arrived", "path"),
    [
        ("talk", "/sessions/talk"),
        ("a b", "/sessions/a%20b"),
        ("%61", "/sessions/%2561"),
        ("ü", "/sessions/%C3%BC"),
        ("a+b", "/sessions/a%2Bb"),
        ("\ud800", "/sessions/%ED%A0%80"),
    ],
)
def test_what_arrives_decoded_is_not_decoded_again(arrived: str, path: str) -> None:
    """HTTP APIs have undone the client's percent-encoding, in both payload formats."""
    whole = f"/v1/sessions/{arrived}"
    decoded = [
        http_api("GET /sessions/{id}", whole, id=arrived),
        http_api_1_0("GET", "/sessions/{id}", whole, id=arrived),
    ]
    assert [asked(event) for event in decoded] == [("GET", "/v1", path)] * 2


@pytest.mark.parametrize(
    "event",
    [
        http_api("DELETE /sessions", "/sessions/"),
        http_api("DELETE /sessions", "/v1/sessions/"),
        http_api("DELETE /sessions/{id}", "/v1/sessions/"),
        http_api("DELETE /sessions/{id}", "/v1/sessions/", id=""),
        http_api("DELETE /{proxy+}", "/v1/sessions/", proxy="sessions/"),
        http_api("DELETE /{proxy+}", "/v1/sessions/", proxy="sessions"),
        http_api("$default", "/sessions/", method="DELETE"),
        http_api_1_0("DELETE", "/sessions", "/v1/sessions/"),
        rest_api("DELETE", "/sessions", "/sessions/", external="/prod/sessions/"),
        rest_api("DELETE", "/sessions", "/v1/sessions/", external="/v1/sessions/"),
        rest_api("DELETE", "/sessions", "/sessions//", external="/prod/sessions//"),
        rest_api("DELETE", "/sessions/{id}", "/sessions/", external="/prod/sessions/", id=""),
        rest_api("DELETE", "/{proxy+}", "/sessions/", external="/prod/sessions/", proxy="sessions"),
        rest_api("DELETE", "/sessions", "/sessions%2F", external="/prod/sessions%2F"),
        rest_api("DELETE", "/sessions", "/sessions%0A", external="/prod/sessions%0A"),
        rest_api("DELETE", "/sessions/{id}", "/sessions/sessions/", external="/prod/sessions/sessions/", id="sessions"),
        function_url("DELETE", "/sessions/"),
        function_url("DELETE", "/sessions%2F"),
        function_url("DELETE", "/sessions%0a"),
        load_balancer("DELETE", "/sessions/"),
        load_balancer("DELETE", "//sessions"),
    ],
)
def test_a_path_without_its_id_is_not_the_path_of_all(event: dict[str, Any]) -> None:
    """DELETE /sessions/ lacks an id. No kind of API makes it DELETE /sessions, which deletes everything."""
    assert target_of(event).path != "/sessions"


@pytest.mark.parametrize(
    "event",
    [
        http_api("DELETE /sessions/{id}", "/sessions/sessions/x", id="sessions/x"),
        http_api("DELETE /sessions", "/sessions/other"),
        rest_api("DELETE", "/sessions/{id}", "/sessions/other", external="/sessions/other", id="talk"),
        http_api("DELETE /a/b/c/d", "/sessions/talk"),
    ],
)
def test_a_route_that_is_not_the_end_of_the_path_says_nothing(event: dict[str, Any]) -> None:
    """Where route and path disagree, the path is taken as a whole, and nothing comes off."""
    assert target_of(event).prefix == ""


@pytest.mark.parametrize(
    ("base_path", "path", "found"),
    [
        ("/api", "/api/chat", ("/api", "/chat")),
        ("/api", "/chat", ("", "/chat")),
        ("/api", "/apichat", ("", "/apichat")),
        ("/api", "/api", ("/api", "/")),
        ("/api", "/api/", ("/api", "/")),
        ("/api", "/api/sessions/", ("/api", "/sessions/")),
        ("/api", "/api//sessions", ("/api", "//sessions")),
        ("/api", "/api/api/chat", ("/api", "/api/chat")),
        ("/team/v1", "/team/v1/chat", ("/team/v1", "/chat")),
        ("/team/v1", "/team/chat", ("", "/team/chat")),
        ("/a b", "/a%20b/chat", ("/a%20b", "/chat")),
    ],
)
def test_a_setting_takes_off_a_prefix_that_no_api_reports(base_path: str, path: str, found: tuple[str, str]) -> None:
    """BASE_PATH comes off a path that begins with it, once and in whole segments."""
    for event in (function_url("POST", path), load_balancer("POST", path)):
        assert asked(event, base_path) == ("POST", *found)


def test_the_setting_adds_to_what_the_api_reports() -> None:
    """A route that has the prefix in itself is one of ours behind it; a mapping comes off as well."""
    behind = http_api("POST /api/chat", "/v1/api/chat")
    assert asked(behind, "/api") == ("POST", "/v1/api", "/chat")
    assert asked(http_api("POST /chat", "/v1/chat"), "/api") == ("POST", "/v1", "/chat")


@pytest.mark.parametrize(
    "event",
    [
        {"requestContext": None, "httpMethod": None, "path": None},
        {"version": "2.0", "rawPath": 7, "requestContext": {"http": []}},
        {"version": "2.0", "routeKey": 5, "rawPath": "chat", "requestContext": {"http": {"method": {}}, "stage": []}},
        {"resource": ["/chat"], "path": "", "httpMethod": 7, "pathParameters": "x", "requestContext": []},
        {"resource": "/{proxy+}", "path": "/x", "httpMethod": "GET", "pathParameters": {"proxy": 7}, "headers": {}},
    ],
)
def test_a_broken_event_asks_for_no_path_of_ours(event: dict[str, Any]) -> None:
    """Parts that are missing, or of another type, lead to no route and to no error."""
    assert target_of(event).path not in ("/chat", "/sessions", "/openapi.json")


def test_a_method_is_in_capitals() -> None:
    """`get` is `GET`."""
    assert target_of(function_url("get", "/sessions")) == Target(method="GET", prefix="", path="/sessions")
