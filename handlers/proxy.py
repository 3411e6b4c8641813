"""Whether a request came through the proxy in front of the API, such as a CloudFront distribution.

API Gateway has an address of its own. Whoever knows it could go around the proxy and its limits. So the proxy adds a
header with a secret. If ORIGIN_SECRET names one, no request without it is answered.
"""

import hmac
from collections.abc import Mapping
from typing import Any

from handlers.event import header
from handlers.problems import Kind, Problem
from handlers.settings import Settings

ORIGIN_HEADER = "x-origin-secret"


def check_proxy(event: Mapping[str, Any], settings: Settings) -> None:
    """Raises a 403 Problem if the request went around the proxy, and SettingsError if its secret cannot be read."""
    secrets = settings.origin_secrets()
    sent = (header(event, ORIGIN_HEADER) or "").encode("utf-8", "surrogatepass")
    if secrets and not any(hmac.compare_digest(sent, secret.encode()) for secret in secrets):
        raise Problem(
            kind=Kind.NOT_BY_THE_PROXY,
            detail="This API is not called by its own address. Use the address that the service has in public.",
        )
