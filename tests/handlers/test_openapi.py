"""The OpenAPI document: it says what the code does, and is one."""

import re
from typing import Any

import pytest
import schemathesis

from handlers import chat, openapi, sessions
from handlers.problems import Kind
from tests.handlers.conftest import Service


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document()


def test_it_is_served_to_anybody(service: Service, document: dict[str, Any]) -> None:
    """GET /openapi.json needs no identity, and gives none."""
    reply = service.send("GET", "/openapi.json")
    assert (reply.status, reply.body, reply.token) == (200, document, None)


def test_it_has_the_routes_of_the_functions_and_no_other(document: dict[str, Any]) -> None:
    """Each route that is registered is described, and each that is described is registered, in one of the functions."""
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    registered = [*chat.front.routes, *sessions.front.routes]
    assert described == set(registered)
    assert len(registered) == len(set(registered))


def test_it_is_an_openapi_document(document: dict[str, Any]) -> None:
    """The document is valid, as the specification of OpenAPI 3.1 has it."""
    schemathesis.openapi.from_dict(document).validate()


def test_its_references_lead_somewhere(document: dict[str, Any]) -> None:
    """Every `$ref` names a schema that is there, and every schema is referred to."""
    names = set(re.findall(r"'#/components/schemas/(\w+)'", str(document)))
    assert names == set(document["components"]["schemas"])


def test_every_kind_of_problem_is_described(document: dict[str, Any]) -> None:
    """All problem types are in the schema, and each is a response of some route, but for those of no route at all."""
    listed = set(re.findall(r"urn:rehydrate:problem:[\w-]+", str(document["paths"])))
    assert set(document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]) == {
        kind.urn for kind in Kind
    }
    assert {kind.urn for kind in Kind} - listed == {Kind.METHOD.urn}


def test_the_places_of_a_path_are_parameters(document: dict[str, Any]) -> None:
    """What stands in braces is described, and required."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            places = [one["name"] for one in operation["parameters"] if one["in"] == "path" and one["required"]]
            assert places == re.findall(r"{(\w+)}", path)
