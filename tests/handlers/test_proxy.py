"""With ORIGIN_SECRET, the functions answer only what came through the proxy that knows it."""

import pytest

from handlers.proxy import ORIGIN_HEADER
from tests.handlers.conftest import Service, configure

SECRETS = "the-secret-of-today the-secret-of-yesterday"


@pytest.mark.parametrize("sent", [None, "", "the-secret", SECRETS, "the-secret-of-today ", "the-secret-of-tödäy"])
def test_who_goes_around_the_proxy_gets_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, sent: str | None
) -> None:
    """Neither function answers, no identity is given out, and the log says why."""
    configure(monkeypatch, ORIGIN_SECRET=SECRETS)
    headers = {} if sent is None else {ORIGIN_HEADER: sent}
    for method, path in (("POST", "/chat"), ("GET", "/sessions")):
        reply = service.send(method, path, {"message": "Hello"}, **headers)
        assert (reply.status, reply.body["type"]) == (403, "urn:rehydrate:problem:not-by-the-proxy")
        assert reply.cookies == []
        assert reply.line["outcome"] == "not-by-the-proxy"
        assert "secret-of" not in str(reply.line)


@pytest.mark.parametrize("secret", SECRETS.split())
def test_what_comes_through_the_proxy_is_answered(
    service: Service, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    """With each of the secrets, so that one can be replaced while the other is still sent."""
    configure(monkeypatch, ORIGIN_SECRET=SECRETS)
    assert service.say("Hello", **{ORIGIN_HEADER.replace("-", "_"): secret}).status == 200


def test_without_the_setting_nobody_has_to_send_it(service: Service) -> None:
    """Most APIs have no proxy in front of them."""
    assert service.say("Hello").status == 200
