"""What a request asks for: its method, and its path below whatever stands in front of the API.

API Gateway puts a stage or a custom domain's base path mapping in front of the path, and reports the route that it
matched. The route says where the API's own path begins. Without such a report (`$default`, function URLs, load
balancers) there is only the path, and BASE_PATH says what to take off.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from aws_lambda_powertools.event_handler import (
    ALBResolver,
    APIGatewayHttpResolver,
    ApiGatewayResolver,
    CORSConfig,
)

from handlers.event import Event, Sender, has_payload_2, mapping, sender_of, text
from handlers.problems import Problem

UNESCAPED = "!$&'()*+,;=:@"
"""What RFC 3986 allows in a segment of a path as it is, beside letters, digits and `-._~`."""
_PARAMETER = re.compile(r"{([^{}+]+)(\+?)}")

Segments = list[str]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a request asks for."""

    method: str
    prefix: str
    """What clients see in front of the path, such as `/v1`; empty if there is nothing."""
    path: str
    """The path as the API's document has it. Whatever is not a letter, a digit or one of `-._~` is percent-encoded."""


def target_of(event: Event, base_path: str = "") -> Target:
    """The target of a request, without `base_path` if the API's path begins with that."""
    path = _path(event)
    begin = len(path) - _length_of_route(event, path)
    base = _segments(base_path)
    if base and path[begin : begin + len(base)] == base:
        begin += len(base)
    own = path[begin:]
    return Target(method=_method(event), prefix=_prefix(event, path, own), path=f"/{'/'.join(map(_encoded, own))}")


def resolver_of(event: Event, cors: CORSConfig | None) -> ApiGatewayResolver:
    """Powertools' resolver for events of this kind. Each of them matches paths to the letter.

    Powertools' own one for REST APIs does not: for it, /sessions/ is /sessions.
    """
    # Without debug=False, POWERTOOLS_DEV would print the event, and answer an error with its stack trace.
    if has_payload_2(event):
        return APIGatewayHttpResolver(cors=cors, debug=False)
    if sender_of(event) is Sender.LOAD_BALANCER:
        return ALBResolver(cors=cors, debug=False)
    return ApiGatewayResolver(cors=cors, debug=False)


def plain_event(event: Event, target: Target) -> dict[str, Any]:
    """What Powertools has to know of an event: the target, as if nothing stood in front of it, and the headers.

    Nothing else of the event, so that nothing in it can be of a form that Powertools does not expect.
    """
    plain: dict[str, Any] = {"headers": _texts(mapping(event, "headers"))}
    if has_payload_2(event):
        context = {"stage": "$default", "http": {"method": target.method, "path": target.path}}
        return plain | {"version": "2.0", "rawPath": target.path, "requestContext": context}
    several = {name: values for name, values in mapping(event, "multiValueHeaders").items() if _are_texts(values)}
    return plain | {"httpMethod": target.method, "path": target.path, "multiValueHeaders": several}


def result_for(event: Event, problem: Problem) -> dict[str, Any]:
    """The result that tells a problem to the sender of an event, for when no resolver can make one."""
    result = problem.result()
    if sender_of(event) is Sender.LOAD_BALANCER and "multiValueHeaders" in event:
        headers = result.pop("headers")
        result["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    return result


def with_header(result: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """The result, with one more header in the place where it has the others."""
    several = result.get("multiValueHeaders")
    if several is None:
        result["headers"][name] = value
    else:
        several[name] = [value]
    return result


def _method(event: Event) -> str:
    method = mapping(event, "requestContext", "http").get("method") if has_payload_2(event) else event.get("httpMethod")
    return text(method).upper()


def _path(event: Event) -> Segments:
    """The path's segments, decoded. HTTP APIs have decoded it, all others leave it as the client sent it."""
    path = _segments(text(event.get("rawPath" if has_payload_2(event) else "path")))
    return path if sender_of(event) is Sender.HTTP_API else [*map(unquote, path)]


def _segments(path: str) -> Segments:
    return path[1:].split("/") if path.startswith("/") else []


def _length_of_route(event: Event, path: Segments) -> int:
    """How many of the path's last segments the route is about that the API matched; all of them if it matched none."""
    route = _matched_route(event)
    if route is None:
        stage = text(mapping(event, "requestContext").get("stage"))
        in_path = sender_of(event) is Sender.HTTP_API and path[:1] == [stage]
        return len(path) - 1 if in_path else len(path)
    return len(route) if _ends_with(path, route) else len(path)


def _matched_route(event: Event) -> list[str | None] | None:
    """The segments of the route that the API matched, filled in; None for a route that does not tell."""
    reported = text(event.get("routeKey" if has_payload_2(event) else "resource"))
    template = reported.partition(" ")[2] if has_payload_2(event) else reported
    if not template.startswith("/"):
        return None  # no report, or `$default`
    route: list[str | None] = []
    for part in _segments(template):
        values = _filled(part, event)
        if values is None:
            return None
        route += values
    return route


def _filled(part: str, event: Event) -> Sequence[str | None] | None:
    """The segments that a part of a route stands for; None where that is not known, neither what nor how many."""
    parameter = _PARAMETER.fullmatch(part)
    if parameter is None:
        return [part]
    name, greedy = parameter.groups()
    value = mapping(event, "pathParameters").get(name)
    if not isinstance(value, str):
        return None if greedy else [None]
    return value.split("/") if greedy else [value]


def _ends_with(path: Segments, route: Sequence[str | None]) -> bool:
    """Whether the route is the end of the path: only then does what stands before it come off.

    The route's parameters may be percent-encoded, as REST APIs report them.
    """
    end = path[-len(route) :] if 0 < len(route) <= len(path) else []
    return len(end) == len(route) and all(
        part is None or there in (part, unquote(part)) for part, there in zip(route, end, strict=True)
    )


def _prefix(event: Event, path: Segments, own: Segments) -> str:
    """What clients see in front of the API's own path. REST APIs leave the stage out of `path`."""
    outside = path
    if sender_of(event) is Sender.REST_API:
        whole = [*map(unquote, _segments(text(mapping(event, "requestContext").get("path"))))]
        outside = whole if _ends_with(whole, own) else path
    before = outside[: len(outside) - len(own)]
    return "".join(f"/{quote(part, safe=UNESCAPED, errors='surrogatepass')}" for part in before)


def _encoded(segment: str) -> str:
    return quote(segment, safe="", errors="surrogatepass")


def _texts(headers: Event) -> dict[str, str]:
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
