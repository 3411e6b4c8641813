"""What an event says, wherever its kind of API puts it: headers, cookies, and what an authorizer established.

An event may come from an HTTP API, a REST API or a function URL. Nothing here trusts its form: a part that is missing,
or has another type than AWS documents, is absent.
"""

from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]

_AUTHORIZER = ("requestContext", "authorizer")


def mapping(value: Any, *names: str) -> Mapping[str, Any]:
    """The mapping under these names, each inside the one before; empty if there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def header(event: Event, name: str) -> str | None:
    """A header's value, whatever the case of its name; the first one if there are several."""
    for key, value in mapping(event, "headers").items():
        if key.lower() == name and isinstance(value, str):
            return value
    for key, values in mapping(event, "multiValueHeaders").items():
        if key.lower() == name and isinstance(values, list) and values:
            return str(values[0])
    return None


def bearer(event: Event) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    scheme, _, token = (header(event, "authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookies(event: Event) -> dict[str, str]:
    """The cookies by name; of several with one name the first. HTTP APIs list them, REST APIs leave the header."""
    listed = event.get("cookies")
    pairs = listed if isinstance(listed, list) else (header(event, "cookie") or "").split(";")
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = str(pair).partition("=")
        found.setdefault(name.strip(), value.strip())
    return found


def jwt_claims(event: Event) -> Mapping[str, Any] | None:
    """The claims that an HTTP API's JWT authorizer found; None if the API has no such authorizer."""
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
