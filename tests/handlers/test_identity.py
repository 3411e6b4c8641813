"""Owners and session tokens."""

from datetime import timedelta
from typing import Any

import pytest

from handlers.identity import InvalidToken, SessionTokens, identify, owner_hash
from handlers.problems import Problem
from handlers.settings import Settings
from memory.turns import utc_now

NOW = utc_now().replace(microsecond=0)
LIFE = timedelta(days=30)
KEY = "a-key-that-is-long-enough-to-sign-with"
SETTINGS = Settings(signing_secret=KEY, cookie_secure=False)


def tokens(*, days: float = 0, key: str = KEY) -> SessionTokens:
    """The tokens of the service, so many days from now."""
    return SessionTokens(key.split(), life=LIFE, clock=lambda: NOW + timedelta(days=days))


def authorized(source: str, context: Any) -> dict[str, Any]:
    return {"headers": {}, "requestContext": {"authorizer": {source: context}}}


def owner(source: str, context: Any) -> str:
    return identify(authorized(source, context), Settings(identity_sources=source)).owner


def rest_owner(source: str, authorizer: Any) -> str:
    event = {"headers": {}, "requestContext": {"authorizer": authorizer}}
    return identify(event, Settings(identity_sources=source)).owner


def header_owner(headers: dict[str, str]) -> str:
    return identify({"headers": headers}, Settings(identity_sources="header")).owner


def test_a_token_gives_back_its_caller() -> None:
    """What was minted is read, and is young at first."""
    assert tokens().read(tokens().mint("ada")) == ("ada", False)


@pytest.mark.parametrize(("days", "ageing"), [(14.9, False), (15.1, True), (29.9, True)])
def test_a_token_ages_at_half_of_its_life(days: float, ageing: bool) -> None:
    """In its second half a token still holds, and asks to be renewed."""
    assert tokens(days=days).read(tokens().mint("ada")) == ("ada", ageing)


def test_a_token_expires() -> None:
    """Beyond its life a token is refused, and the reason is that."""
    with pytest.raises(InvalidToken, match="expired"):
        tokens(days=30.1).read(tokens().mint("ada"))


@pytest.mark.parametrize("forged", ["", "x", "a.b.c", "\ud800", "é", "x" * 100_000])
def test_a_token_that_this_service_did_not_make_is_refused(forged: str) -> None:
    """Nothing but a token of this key is read, whatever it looks like."""
    with pytest.raises(InvalidToken, match="did not make"):
        tokens().read(forged)


def test_a_host_whose_clock_is_behind_reads_new_tokens() -> None:
    """Hosts' clocks may differ by minutes, and a token that is from the future by so little holds."""
    assert tokens(days=-5 / 1440).read(tokens().mint("ada")) == ("ada", False)


def test_a_token_of_a_short_life_is_young_at_first() -> None:
    """What is taken off a token's life, for hosts whose clocks are behind, is a small part of it."""
    brief = SessionTokens(["key"], life=timedelta(minutes=5), clock=lambda: NOW)
    assert brief.read(brief.mint("ada")) == ("ada", False)


def test_a_token_of_another_key_is_refused() -> None:
    """A deployment with another secret does not know the caller."""
    with pytest.raises(InvalidToken):
        tokens().read(tokens(key="other").mint("ada"))


def test_a_token_cannot_be_altered() -> None:
    """Each character counts."""
    token = tokens().mint("ada")
    for i, character in enumerate(token[:-1]):  # the last one has bits that base64 does not use
        altered = token[:i] + ("A" if character != "A" else "B") + token[i + 1 :]
        with pytest.raises(InvalidToken):
            tokens().read(altered)


def test_a_token_is_not_renewed_for_ever() -> None:
    """A caller who has been renewing for TOKEN_MAX_DAYS starts anew, however new the token."""
    first = identify({"headers": {}}, SETTINGS, clock=lambda: NOW)
    renewed = tokens(days=360).mint(first.owner.removeprefix("anonymous:"))
    event = {"headers": {"x-session-token": renewed}}
    assert identify(event, SETTINGS, clock=lambda: NOW + timedelta(days=364)).owner == first.owner
    with pytest.raises(Problem) as refusal:
        identify(event, SETTINGS, clock=lambda: NOW + timedelta(days=366))
    assert refusal.value.status == 401


def test_a_caller_of_an_earlier_release_keeps_the_identity() -> None:
    """Its id has no date, so that only the token's own life counts."""
    old = {"headers": {"x-session-token": tokens().mint("0123456789abcdef" * 2)}}
    assert identify(old, SETTINGS, clock=lambda: NOW).owner == "anonymous:" + "0123456789abcdef" * 2


def test_the_hash_of_an_owner_cannot_be_made_without_the_signing_secret() -> None:
    """A log that is read by others does not tell who is who; it is the same for each request of an owner."""
    salted = [owner_hash("anonymous:ada", Settings(signing_secret=key * 8)) for key in ("abcd", "efgh")]
    assert len({*salted, owner_hash("anonymous:ada", Settings(identity_sources="jwt"))}) == 3
    assert owner_hash("anonymous:ada", SETTINGS) == owner_hash("anonymous:ada", SETTINGS)


def test_a_caller_with_an_ageing_token_gets_a_new_one() -> None:
    """Renewal keeps the owner, and hands out a token that lives on."""
    event = {"headers": {"X-Session-Token": tokens().mint("ada")}}
    caller = identify(event, SETTINGS, clock=lambda: NOW + timedelta(days=20))
    assert caller.token
    assert tokens(days=45).read(caller.token)[0] == "ada"
    young = identify(event, SETTINGS, clock=lambda: NOW)
    assert (young.owner, young.token) == (caller.owner, None)


def test_a_request_without_a_token_is_a_new_caller_each_time() -> None:
    """Nobody is given the identity of somebody else."""
    first, second = identify({"headers": {}}, SETTINGS), identify({"headers": {}}, SETTINGS)
    assert first.owner != second.owner
    assert first.source == second.source == "new"


def test_the_new_token_is_the_new_callers() -> None:
    """The identity that a first request gets is the one that its token brings back."""
    first = identify({"headers": {}}, SETTINGS)
    again = identify({"headers": {}, "cookies": ["other=1", f"rehydrate={first.token}"]}, SETTINGS)
    assert (again.owner, again.source) == (first.owner, "token")


def test_the_header_comes_before_the_cookie() -> None:
    """A client that sets the header means it."""
    event = {
        "headers": {"x-session-token": tokens().mint("header")},
        "cookies": [f"rehydrate={tokens().mint('cookie')}"],
    }
    assert identify(event, SETTINGS, clock=lambda: NOW).owner == "anonymous:header"


def test_a_token_that_does_not_hold_is_no_way_around_by_the_cookie() -> None:
    """A bad header is refused although a good cookie came with it."""
    event = {"headers": {"x-session-token": "bad"}, "cookies": [f"rehydrate={tokens().mint('cookie')}"]}
    with pytest.raises(Problem) as refusal:
        identify(event, SETTINGS)
    assert refusal.value.status == 401


def test_owners_of_different_sources_are_never_the_same() -> None:
    """One subject by way of two sources is two owners, and no claim can imitate another source or issuer."""
    owners = [
        owner("jwt", {"claims": {"sub": "a"}}),
        owner("jwt", {"claims": {"sub": "a", "iss": "https://issuer"}}),
        owner("jwt", {"claims": {"sub": "https://issuer:a"}}),
        owner("jwt", {"claims": {"iss": "a:b", "sub": "c"}}),
        owner("jwt", {"claims": {"iss": "a", "sub": "b:c"}}),
        owner("lambda", {"sub": "a"}),
        owner("lambda", {"sub": "anonymous:a"}),
        owner("iam", {"userArn": "a"}),
        rest_owner("cognito", {"claims": {"sub": "a"}}),
        rest_owner("lambda", {"principalId": "p", "sub": "b"}),
        owner("iam", {"userArn": "r", "cognitoIdentity": {"identityId": "a"}}),
        header_owner({"x-user-id": "a"}),
        header_owner({"x-session-id": "a"}),
        "anonymous:a",
    ]
    assert len(set(owners)) == len(owners)


@pytest.mark.parametrize("authorizer", [{"principalId": "user"}, {"lambda": {"principalId": "user"}}])
def test_a_principal_is_no_owner(authorizer: Any) -> None:
    """Many authorizers return the same one for everybody, so that a missing claim is 401."""
    with pytest.raises(Problem) as refusal:
        rest_owner("lambda", authorizer)
    assert refusal.value.status == 401


def test_a_deployment_may_choose_the_principal() -> None:
    """An authorizer whose principal is the user says so by IDENTITY_CLAIM."""
    event = {"headers": {}, "requestContext": {"authorizer": {"principalId": "p"}}}
    assert identify(event, Settings(identity_sources="lambda", identity_claim="principalId")).owner == "lambda:p"


@pytest.mark.parametrize("context", [None, {}])
def test_an_empty_authorizer_context_makes_no_new_caller(context: Any) -> None:
    """Whom an authorizer let in without saying who it is, is nobody, and never an anonymous caller."""
    event = {"headers": {}, "requestContext": {"authorizer": {"lambda": context}}}
    with pytest.raises(Problem) as refusal:
        identify(event, Settings(identity_sources="lambda,token", signing_secret=KEY))
    assert refusal.value.status == 401


ROLE = "arn:aws:sts::123456789012:assumed-role/Pool/CognitoIdentityCredentials"


def http_pool_user(identity: Any) -> dict[str, Any]:
    """A request that a user of a Cognito identity pool signed, as an HTTP API has it."""
    return authorized("iam", {"userArn": ROLE, "cognitoIdentity": identity})


def rest_pool_user(identity: str | None) -> dict[str, Any]:
    """The same, as a REST API has it."""
    signer = {"userArn": ROLE, "cognitoIdentityPoolId": "us-east-1:pool", "cognitoIdentityId": identity}
    return {"headers": {}, "requestContext": {"identity": signer}}


def test_the_users_of_an_identity_pool_are_owners_of_their_own() -> None:
    """All of them sign as one role. Each has an identity, which is the same behind both kinds of API."""
    iam = Settings(identity_sources="iam")
    http = [identify(http_pool_user({"identityId": f"us-east-1:{name}"}), iam).owner for name in ("ada", "bob")]
    rest = [identify(rest_pool_user(f"us-east-1:{name}"), iam).owner for name in ("ada", "bob")]
    assert http == rest == ["iam:cognito:us-east-1%3Aada", "iam:cognito:us-east-1%3Abob"]


@pytest.mark.parametrize("event", [http_pool_user({}), http_pool_user({"identityId": ""}), rest_pool_user(None)])
def test_a_pool_user_without_an_identity_is_nobody(event: dict[str, Any]) -> None:
    """The role is no owner: it would be one for all of its users."""
    with pytest.raises(Problem) as refusal:
        identify(event, Settings(identity_sources="iam"))
    assert refusal.value.status == 401


def test_the_claim_that_identifies_is_a_setting() -> None:
    """A deployment may know its callers by another claim."""
    by_mail = Settings(identity_sources="jwt", identity_claim="email")
    event = authorized("jwt", {"claims": {"sub": "1", "email": "ada@example.com"}})
    assert identify(event, by_mail).owner == "jwt:ada%40example.com"


def test_a_jwt_is_one_in_both_payload_formats() -> None:
    """An HTTP API says who asks in payload format 1.0 too; the claims of a REST API are of no JWT authorizer."""
    claims = {"iss": "https://login.example.com/", "sub": "a"}
    event = {"headers": {}, "requestContext": {"authorizer": {"claims": claims, "scopes": None}}}
    by_jwt = Settings(identity_sources="jwt")
    assert identify(event | {"version": "1.0"}, by_jwt).owner == owner("jwt", {"claims": claims})
    with pytest.raises(Problem) as refusal:
        identify(event, by_jwt)
    assert refusal.value.status == 401


def test_the_user_comes_before_the_session_where_headers_are_trusted() -> None:
    """`x-user-id` is the owner; a caller who sends `x-session-id` alone owns that one session."""
    assert header_owner({"X-User-Id": "a", "x-session-id": "s"}) == header_owner({"x-user-id": "a"})
    assert header_owner({"x-session-id": "s"}) != header_owner({"x-user-id": "s"})


def test_an_unsigned_request_to_a_rest_api_has_no_arn() -> None:
    """A REST API lists the ARN as null then, and that is nobody."""
    event = {"headers": {}, "requestContext": {"identity": {"userArn": None}}}
    with pytest.raises(Problem):
        identify(event, Settings(identity_sources="iam"))


def test_a_key_is_replaced_while_tokens_are_out() -> None:
    """The first key signs, all verify; a token of a key that was taken away does not hold."""
    old = tokens(key="old").mint("ada")
    both = tokens(key="new old")
    assert both.read(old) == ("ada", False)
    assert tokens(key="new").read(both.mint("ada")) == ("ada", False)
    with pytest.raises(InvalidToken):
        tokens(key="new").read(old)


@pytest.mark.parametrize("source", ["jwt", "cognito", "lambda", "iam"])
@pytest.mark.parametrize(
    "context",
    [
        None,
        "text",
        7,
        [],
        {},
        {"claims": None},
        {"claims": {"sub": ""}},
        {"claims": {"sub": 7}},
        {"claims": {"iss": "i"}},
    ],
)
def test_claims_that_are_none_are_refused(source: str, context: Any) -> None:
    """Whatever stands in the place of claims, there is no owner without one: 401."""
    with pytest.raises(Problem) as refusal:
        identify(authorized(source, context), Settings(identity_sources=source))
    assert refusal.value.status == 401


def test_claims_without_an_owner_make_no_new_caller() -> None:
    """A request with an authorizer's context is never answered as an anonymous one."""
    with pytest.raises(Problem) as refusal:
        identify(
            authorized("jwt", {"claims": {"scope": "x"}}), Settings(identity_sources="jwt,token", signing_secret=KEY)
        )
    assert refusal.value.status == 401


def test_the_first_source_that_a_request_has_decides() -> None:
    """Sources are tried in the order of the setting."""
    both = authorized("jwt", {"claims": {"sub": "a"}})
    both["requestContext"]["authorizer"]["iam"] = {"userArn": "arn"}
    assert identify(both, Settings(identity_sources="iam, jwt")).source == "iam"
    assert identify(both, Settings(identity_sources="jwt, iam")).source == "jwt"
    assert identify(both, Settings(identity_sources="lambda,jwt")).source == "jwt"
