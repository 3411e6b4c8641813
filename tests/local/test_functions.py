"""A request is for the chat function or for the sessions function, and it is clear for which."""

import pytest

from local.functions import CHAT, SESSIONS, SWEEP, function_for, name_of


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/chat"),
        ("POST", "/sessions/default/turns/1/regenerate"),
        ("POST", "/sessions/a b/turns/x/regenerate"),
        ("POST", "/sessions/\n/turns/\u2603/regenerate"),
    ],
)
def test_a_turn_is_for_chat(method: str, path: str) -> None:
    """A new turn and one that is made again go to the function that has the agent, whatever the session is called."""
    assert function_for(method, path) == CHAT


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/chat"),
        ("OPTIONS", "/chat"),
        ("POST", "/chat/"),
        ("POST", "/chat\n"),
        ("POST", "/prod/chat"),
        ("GET", "/sessions"),
        ("DELETE", "/sessions/default"),
        ("GET", "/sessions/default/turns/1/regenerate"),
        ("POST", "/sessions//turns/1/regenerate"),
        ("POST", "/sessions/a/b/turns/1/regenerate"),
        ("POST", "/sessions/default/turns/1/regenerate/"),
        ("BREW", "/"),
        ("GET", ""),
    ],
)
def test_everything_else_is_for_sessions(method: str, path: str) -> None:
    """Also what there is no route for: somebody has to answer that it is not there."""
    assert function_for(method, path) == SESSIONS


def test_functions_have_short_names() -> None:
    """They are those of the modules."""
    assert [name_of(function) for function in (CHAT, SESSIONS, SWEEP)] == ["chat", "sessions", "sweep"]
