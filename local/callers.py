"""Who may call a server on this machine: its own programs, and web pages that the user has named.

A browser runs pages of the whole web, and lets any of them send requests to loopback. Two headers, which a page cannot
choose, tell such requests apart. `Host` has the page's own name when its owner made that name lead to this machine (DNS
rebinding). `Origin` says which page sent a request, whenever the request may change something.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
CONTAINER_NAMES = frozenset({"host.docker.internal", "gateway.docker.internal"})
"""The names by which containers of Docker Desktop reach this machine."""
ANY_ORIGIN = "*"

Scope = MutableMapping[str, Any]
_HOST = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]@/\s]+))(?::\d{1,5})?")


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers of an ASGI request by their names in lower case; of several with one name, all, after commas."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]},{text}" if key in found else text
    return found


def refusal(headers: Mapping[str, str], *, names: Collection[str], origins: Iterable[str], scheme: str) -> str | None:
    """Why a request may not be answered; None if it may.

    `names` are the host names of the server, `origins` the web pages beside its own that may call it ("*": all).
    """
    host = headers.get("host", "")
    if host_name(host) not in names:
        return (
            f"This server answers on loopback only, and not under the name {host[:100]!r}: another web page may have "
            "sent the request. Call it as http://127.0.0.1 or http://localhost, with its port."
        )
    origin = headers.get("origin")
    if origin is None or origin == f"{scheme}://{host}" or not {origin, ANY_ORIGIN}.isdisjoint(origins):
        return None
    return f"Web pages of {origin[:100]!r} may not call this server. CORS_ORIGINS names the origins that may."


def host_name(host: str) -> str | None:
    """The name or address in a `Host` header, in lower case; None if it is not a valid one."""
    found = _HOST.fullmatch(host)
    return (found["six"] or found["name"]).lower() if found else None


def is_address(host: str) -> bool:
    """Whether a `Host` header has an IP address, which no page can make lead elsewhere."""
    try:
        ipaddress.ip_address(host_name(host) or "")
    except ValueError:
        return False
    return True
