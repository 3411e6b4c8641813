"""What an event says, wherever its kind of API puts it: headers, cookies, and what an authorizer established.

Nothing here trusts the form of an event: a part that is missing, or has another type than AWS documents, is absent.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any
from urllib.parse import unquote_plus

Event = Mapping[str, Any]


class Sender(Enum):
    """What turns HTTP requests into events."""

    HTTP_API = "HTTP API"
    REST_API = "REST API"
    FUNCTION_URL = "function URL"
    LOAD_BALANCER = "load balancer"


_AUTHORIZER = ("requestContext", "authorizer")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}")


def mapping(value: Any, *names: str) -> Mapping[str, Any]:
    """The mapping under these names, each inside the one before; empty if there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def text(value: Any) -> str:
    """The value if it is a text; else an empty one."""
    return value if isinstance(value, str) else ""


def has_payload_2(event: Event) -> bool:
    """Whether the event has payload format 2.0, which HTTP APIs and function URLs use."""
    return event.get("version") == "2.0" or bool(mapping(event, "requestContext", "http"))


def sender_of(event: Event) -> Sender:
    """What sent the event. HTTP APIs may be set to payload format 1.0; REST APIs have the same, without its number."""
    context = mapping(event, "requestContext")
    if has_payload_2(event):
        return Sender.FUNCTION_URL if ".lambda-url." in text(context.get("domainName")) else Sender.HTTP_API
    if "elb" in context:
        return Sender.LOAD_BALANCER
    return Sender.HTTP_API if event.get("version") == "1.0" else Sender.REST_API


def header(event: Event, name: str) -> str | None:
    """A header's value, whatever the case of its name; of several headers of the name, one."""
    for key, value in mapping(event, "headers").items():
        if key.lower() == name and isinstance(value, str):
            return value
    values = _every(event, name)
    return values[0] if values else None


def _every(event: Event, name: str) -> list[str]:
    """The values of all headers of a name, from an event that lists them."""
    for key, values in mapping(event, "multiValueHeaders").items():
        if key.lower() == name and isinstance(values, list):
            return [value for value in values if isinstance(value, str)]
    return []


def query(event: Event) -> dict[str, str]:
    """The query's parameters; of several of one name the last, or as HTTP APIs have it, all of them with commas.

    Load balancers alone leave them percent-encoded.
    """
    several = mapping(event, "multiValueQueryStringParameters").items()
    found = {name: values[-1] for name, values in several if isinstance(values, list) and values}
    found |= mapping(event, "queryStringParameters")
    texts = {name: value for name, value in found.items() if isinstance(value, str)}
    if sender_of(event) is not Sender.LOAD_BALANCER:
        return texts
    return {unquote_plus(name): unquote_plus(value) for name, value in texts.items()}


def bearer(event: Event) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = (header(event, "authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookies(event: Event) -> dict[str, str]:
    """The cookies by name; of several with one name the first. Payload 2.0 lists them, other events have the header.

    Names are taken to the letter: browsers guard a `__Host-` name, and not one that only looks like it.
    """
    listed = event.get("cookies")
    headers = [header(event, "cookie") or "", *_every(event, "cookie")]
    pairs = listed if isinstance(listed, list) else ";".join(headers).split(";")
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = text(pair).partition("=")
        found.setdefault(name.strip(" \t"), value.strip(" \t"))
    return found


def source_ip(event: Event) -> str | None:
    """The address that the request came from, as API Gateway or the function URL saw it. Load balancers do not say."""
    context = mapping(event, "requestContext")
    address = mapping(context, "http" if has_payload_2(event) else "identity").get("sourceIp")
    return address if isinstance(address, str) and _ADDRESS.fullmatch(address) else None


def jwt_claims(event: Event) -> Mapping[str, Any] | None:
    """The claims that an HTTP API's JWT authorizer found; None if the API has no such authorizer.

    Payload format 1.0 has them where a REST API has those of a Cognito user pool.
    """
    if event.get("version") == "1.0":
        return mapping(event, *_AUTHORIZER, "claims") or None
    return mapping(event, *_AUTHORIZER, "jwt", "claims") if mapping(event, *_AUTHORIZER, "jwt") else None


def cognito_claims(event: Event) -> Mapping[str, Any] | None:
    """The claims that a REST API's Cognito authorizer found; None if there are none."""
    return mapping(event, *_AUTHORIZER, "claims") or None


def authorizer_context(event: Event) -> Mapping[str, Any] | None:
    """The context that a Lambda authorizer returned; None if there is none.

    HTTP APIs have a place for it. REST APIs put it beside the authorizer's principal.
    """
    flat = mapping(event, *_AUTHORIZER)
    if "lambda" in flat:
        return mapping(flat, "lambda")
    return flat if "principalId" in flat and "claims" not in flat else None


def pool_identity(event: Event) -> Any:
    """The identity of a Cognito identity pool's user who signed the request; None if the signer is no such user.

    An empty text if a pool is named and no identity: then nobody is known.
    """
    pool = mapping(event, *_AUTHORIZER, "iam").get("cognitoIdentity")
    if pool is not None:
        return mapping(pool).get("identityId") or ""
    signer = mapping(event, "requestContext", "identity")
    if signer.get("cognitoIdentityPoolId") or signer.get("cognitoIdentityId"):
        return signer.get("cognitoIdentityId") or ""
    return None


def signer_arn(event: Event) -> Any:
    """The ARN that an HTTP API or a function URL, else a REST API, gives whoever signed the request.

    None if nobody signed; an empty text if there is a signature and no ARN.
    """
    if iam := mapping(event, *_AUTHORIZER, "iam"):
        return iam.get("userArn") or ""
    return mapping(event, "requestContext", "identity").get("userArn") or None
