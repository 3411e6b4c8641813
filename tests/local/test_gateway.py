"""The gateway hands requests to worker processes as API Gateway and Lambda would, and outlives every one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from processes import STUB, RunningGateway, eventually, is_running, running_gateway, stub_env

from local.gateway import REQUEST_LIMIT
from local.guard import ROOT
from local.pool import WorkerStartError

CLIENT = httpx.Client(timeout=60)


@pytest.fixture(scope="module", autouse=True)
def _close_client() -> Iterator[None]:
    with CLIENT:
        yield


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def hold(threads: ThreadPoolExecutor, url: str, folder: Path, name: str = "one") -> "Future[httpx.Response]":
    """A request that is being handled until the file `release` is in `folder`, or waits in line for that."""
    return threads.submit(CLIENT.get, f"{url}/hold", params={"folder": str(folder), "name": name})


def held_by(folder: Path) -> int:
    """The worker that handles the held request, once it does."""
    eventually(lambda: lines(folder / "begun"), "a worker has begun")
    return int(lines(folder / "begun")[-1].split()[1])


def test_an_event_reaches_the_handler_and_its_answer_the_client(gateway: RunningGateway) -> None:
    """The handler sees the request as an API Gateway event, and x-local-worker names who answered."""
    response = CLIENT.post(
        f"{gateway.url}/a%20b?x=1&x=2", json={"m": "ü"}, headers=[("cookie", "a=1; b=2"), ("X-Q", "1"), ("x-q", "2")]
    )
    event = response.json()
    assert response.status_code == 200
    assert (event["rawPath"], event["queryStringParameters"]) == ("/a b", {"x": "1,2"})
    assert (event["cookies"], event["headers"]["x-q"]) == (["a=1", "b=2"], "1, 2".replace(" ", ""))
    assert json.loads(event["body"]) == {"m": "ü"}
    assert int(response.headers["x-local-worker"]) in gateway.pool.pids


def test_several_cookies_are_set(gateway: RunningGateway) -> None:
    """Each of the handler's cookies arrives as a Set-Cookie header of its own."""
    response = CLIENT.post(f"{gateway.url}/respond", json={"statusCode": 204, "cookies": ["a=1", "b=2"]})
    assert response.status_code == 204
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_the_context_is_lambdas(gateway: RunningGateway) -> None:
    """The handler gets Lambda's context and environment, with the time that is left."""
    context = CLIENT.get(f"{gateway.url}/context").json()
    assert context["log_stream_name"] == context["environment"]["AWS_LAMBDA_LOG_STREAM_NAME"]
    assert context["function_version"] == "$LATEST"
    assert 0 < context["remaining"] <= 28_000
    assert all(context.values())


def test_each_function_has_its_name_and_its_log_group(gateway: RunningGateway) -> None:
    """A worker's context and environment name the function whose worker it is."""
    answers = {
        "rehydrate-local-chat": CLIENT.post(f"{gateway.url}/chat?do=/context").json(),
        "rehydrate-local-sessions": CLIENT.get(f"{gateway.url}/context").json(),
    }
    for name, context in answers.items():
        assert context["function_name"] == context["environment"]["AWS_LAMBDA_FUNCTION_NAME"] == name
        assert context["log_group_name"] == context["environment"]["AWS_LAMBDA_LOG_GROUP_NAME"] == f"/aws/lambda/{name}"
        assert context["invoked_function_arn"].endswith(f":{name}")


@pytest.mark.parametrize(
    ("method", "path", "function"),
    [
        ("POST", "/chat", "chat"),
        ("POST", "/ch%61t", "chat"),
        ("POST", "/sessions/a%20b/turns/3/regenerate", "chat"),
        ("POST", "/sessions/a%2Fb/turns/3/regenerate", "sessions"),
        ("POST", "/sessions/%00%ff/turns", "sessions"),
        ("GET", "/chat", "sessions"),
        ("GET", "/", "sessions"),
    ],
)
def test_a_request_goes_to_the_function_that_it_is_for(
    gateway: RunningGateway, method: str, path: str, function: str
) -> None:
    """Method and percent-decoded path say whose worker answers, whatever is in the path."""
    response = CLIENT.request(method, f"{gateway.url}{path}")
    assert response.status_code == 200
    pool = gateway.chat if function == "chat" else gateway.pool
    assert int(response.headers["x-local-worker"]) in pool.pids


def test_a_prefix_of_the_functions_is_the_gateways_too() -> None:
    """Behind BASE_PATH, too, a turn goes to the chat function; its event keeps the path that the client asked for."""
    with running_gateway(workers=1, base_path="/api") as running:
        turn = CLIENT.post(f"{running.url}/api/chat", params={"do": "/echo"})
        assert int(turn.headers["x-local-worker"]) in running.chat.pids
        assert turn.json()["rawPath"] == "/api/chat"
        other = CLIENT.post(f"{running.url}/api/sessions", params={"do": "/echo"})
        assert int(other.headers["x-local-worker"]) in running.pool.pids


@pytest.mark.parametrize("host", ["evil.example", "evil.example:3000", "127.0.0.1.evil.example", "a@127.0.0.1", ""])
def test_a_page_that_reaches_loopback_by_its_own_name_is_refused(gateway: RunningGateway, host: str) -> None:
    """A name that its owner made lead to this machine (DNS rebinding) gets 403, and no worker has the request."""
    response = CLIENT.get(f"{gateway.url}/echo", headers={"host": host})
    assert (response.status_code, response.headers["content-type"]) == (403, "application/problem+json")
    assert "x-local-worker" not in response.headers


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "localhost", "LOCALHOST:5173", "[::1]:3000"])
def test_the_names_of_loopback_are_answered(gateway: RunningGateway, host: str) -> None:
    """With whatever port: it may be forwarded."""
    assert CLIENT.get(f"{gateway.url}/echo", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:5173", "http://127.0.0.1", "null"])
def test_a_foreign_page_is_refused(gateway: RunningGateway, origin: str) -> None:
    """Also one of another port of this machine, and a request that browsers send without asking first."""
    for method, headers in (("POST", {"content-type": "text/plain"}), ("OPTIONS", {})):
        response = CLIENT.request(method, f"{gateway.url}/chat", headers={"origin": origin, **headers})
        assert response.status_code == 403
        assert "x-local-worker" not in response.headers
        assert not any(name.startswith("access-control-") for name in response.headers)


def test_its_own_pages_may_call_it(gateway: RunningGateway) -> None:
    """A page that it served itself has its origin."""
    assert CLIENT.post(f"{gateway.url}/chat", headers={"origin": gateway.url}).status_code == 200


def test_pages_that_the_user_named_may_call_it() -> None:
    """Those of CORS_ORIGINS; the answer, and what it says to the browser, is the handler's."""
    with running_gateway(origins=["http://localhost:5173"]) as running:
        assert CLIENT.post(f"{running.url}/chat", headers={"origin": "http://localhost:5173"}).status_code == 200
        assert CLIENT.post(f"{running.url}/chat", headers={"origin": "http://localhost:5174"}).status_code == 403
    with running_gateway(origins=["*"]) as running:
        assert CLIENT.post(f"{running.url}/chat", headers={"origin": "https://any.example"}).status_code == 200


def test_a_killed_worker_of_sessions_does_not_disturb_chat(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A turn that is being answered is answered by the worker that began it, while the other function's are killed."""
    with running_gateway(workers=1) as running:
        query = {"do": "/hold", "folder": str(tmp_path), "name": "turn"}
        held = threads.submit(CLIENT.post, f"{running.url}/chat", params=query)
        chatting = held_by(tmp_path)
        victims = running.pool.pids
        os.kill(victims[0], signal.SIGKILL)
        following = CLIENT.get(f"{running.url}/echo")
        assert (following.status_code, int(following.headers["x-local-worker"]) in victims) == (200, False)
        (tmp_path / "release").touch()
        assert (held.result().status_code, held.result().headers["x-local-worker"]) == (200, str(chatting))
        assert running.chat.pids == [chatting]


def test_busy_sessions_do_not_hold_up_chat(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """While all workers of one function are busy the other one answers."""
    with running_gateway(workers=1) as running:
        held = hold(threads, running.url, tmp_path)
        held_by(tmp_path)
        assert CLIENT.post(f"{running.url}/chat").status_code == 200
        (tmp_path / "release").touch()
        assert held.result().status_code == 200


def test_an_error_is_a_502_without_its_text(gateway: RunningGateway) -> None:
    """A raised exception is a problem that names its type, and never quotes it; the worker lives on."""
    before = gateway.pool.pids
    response = CLIENT.get(f"{gateway.url}/raise")
    assert response.status_code == 502
    assert response.headers["content-type"] == "application/problem+json"
    assert "ValueError" in response.json()["detail"]
    assert "SECRET" not in response.text
    assert gateway.pool.pids == before


def test_a_malformed_result_is_a_502(gateway: RunningGateway) -> None:
    """A result that is no HTTP response is the handler's fault, and said so."""
    response = CLIENT.post(f"{gateway.url}/respond", json={"statusCode": 200, "body": 5})
    assert (response.status_code, response.headers["content-type"]) == (502, "application/problem+json")
    assert "malformed" in response.json()["detail"]


def test_a_body_that_lambda_would_not_take_is_413(gateway: RunningGateway) -> None:
    """A request over 6 MB is refused before any worker has it; one just below passes."""
    url = f"{gateway.url}/respond"
    text = {"content-type": "application/json"}
    refused = CLIENT.post(url, content=b"x" * (REQUEST_LIMIT + 1), headers=text)
    passed = CLIENT.post(url, content=b"5" + b" " * (REQUEST_LIMIT - 10_000), headers=text)
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    assert "x-local-worker" not in refused.headers
    assert passed.status_code == 200


def test_a_worker_killed_in_mid_request_is_replaced(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Its request is a 502 with the dead one's pid, and the next request is answered by another."""
    with running_gateway(workers=1) as running:
        held = hold(threads, running.url, tmp_path)
        victim = held_by(tmp_path)
        os.kill(victim, signal.SIGKILL)
        response = held.result()
        assert (response.status_code, response.headers["x-local-worker"]) == (502, str(victim))
        assert "SIGKILL" in response.json()["detail"]
        following = CLIENT.get(f"{running.url}/echo")
        assert following.status_code == 200
        assert following.headers["x-local-worker"] != str(victim)


def test_a_worker_that_exits_in_mid_request_is_a_502() -> None:
    """An exit is reported with its code, and the next request works."""
    with running_gateway(workers=1) as running:
        response = CLIENT.get(f"{running.url}/exit")
        assert response.status_code == 502
        assert "exited with code 3" in response.json()["detail"]
        assert CLIENT.get(f"{running.url}/echo").status_code == 200


def test_an_idle_worker_that_was_killed_costs_no_request() -> None:
    """A request sent right after the kill is answered by another worker: the dead one had not taken it."""
    with running_gateway(workers=2) as running:
        for _ in range(5):
            victims = running.pool.pids
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            response = CLIENT.get(f"{running.url}/echo")
            assert response.status_code == 200
            assert int(response.headers["x-local-worker"]) not in victims
            eventually(lambda: len(running.pool.pids) == 2, "both are replaced")


def test_a_worker_that_passes_its_deadline_is_killed(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Its request is a 504 with its pid, the process is gone by then, and the next request works."""
    with running_gateway(workers=1, timeout=1.5) as running:
        response = hold(threads, running.url, tmp_path).result()
        assert response.status_code == 504
        assert response.headers["content-type"] == "application/problem+json"
        assert int(response.headers["x-local-worker"]) == held_by(tmp_path)
        assert not is_running(held_by(tmp_path))
        assert CLIENT.get(f"{running.url}/echo").status_code == 200


def test_one_worker_takes_requests_one_at_a_time_in_order(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """While a request is handled the others wait; then they are handled in the order of their arrival."""
    with running_gateway(workers=1) as running:
        waiting = running.pool._open
        held = []
        for number in range(4):
            held.append(hold(threads, running.url, tmp_path, str(number)))
            eventually(lambda number=number: len(waiting) == number + 1, "the request has arrived")
        held_by(tmp_path)
        assert len(lines(tmp_path / "begun")) == 1
        (tmp_path / "release").touch()
        assert {one.result().status_code for one in held} == {200}
        assert lines(tmp_path / "done") == ["0", "1", "2", "3"]


def test_two_workers_handle_two_requests_at_once(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A busy worker keeps nobody waiting whom another could serve."""
    with running_gateway(workers=2) as running:
        held = [hold(threads, running.url, tmp_path, str(number)) for number in range(2)]
        eventually(lambda: len(lines(tmp_path / "begun")) == 2, "both have begun")
        (tmp_path / "release").touch()
        assert len({one.result().headers["x-local-worker"] for one in held}) == 2


def test_a_client_that_hangs_up_does_not_cancel(gateway: RunningGateway, tmp_path: Path) -> None:
    """The handler finishes what it began, whether or not anybody waits for it."""
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(f"GET /hold?folder={tmp_path}&name=one HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        worker = held_by(tmp_path)
    # An answer after the hang-up shows that the gateway has had time to notice it.
    assert CLIENT.get(f"{gateway.url}/echo").status_code == 200
    (tmp_path / "release").touch()
    eventually(lambda: lines(tmp_path / "done") == ["one"], "the handler is done")
    assert is_running(worker)


def test_stopping_answers_what_is_in_flight(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A request that is being handled when the gateway stops gets a 503, and its worker is gone."""
    with running_gateway(workers=1) as running:
        held = hold(threads, running.url, tmp_path)
        worker = held_by(tmp_path)
    assert held.result().status_code == 503
    assert not is_running(worker)


def test_a_handler_that_cannot_be_imported_stops_the_start(tmp_path: Path) -> None:
    """The reason is in the error, and no worker is left."""
    flag = tmp_path / "broken"
    flag.touch()
    with (
        pytest.raises(WorkerStartError, match="ImportError: the stub was told not to import"),
        running_gateway(env=stub_env(STUB_BROKEN_IF=str(flag))),
    ):
        pass


def test_a_handler_that_breaks_later_is_reported_and_tried_again(tmp_path: Path) -> None:
    """While no worker can import it requests get 502 with the reason; once it is mended they are answered."""
    flag = tmp_path / "broken"
    with running_gateway(workers=1, env=stub_env(STUB_BROKEN_IF=str(flag))) as running:
        flag.touch()
        os.kill(running.pool.pids[0], signal.SIGKILL)
        eventually(lambda: len(lines(flag)) >= 2, "it was tried again")
        response = CLIENT.get(f"{running.url}/echo")
        assert response.status_code == 502
        assert "the stub was told not to import" in response.json()["detail"]
        flag.unlink()
        eventually(lambda: CLIENT.get(f"{running.url}/echo").status_code == 200, "it works again")


KILLED_GATEWAY = """
import asyncio, os, sys
from local.pool import WorkerPool

async def main():
    pool = WorkerPool(name="chat", env=dict(os.environ), size=2, handler=sys.argv[1])
    await pool.start()
    print(*pool.pids, flush=True)
    await pool.invoke({"rawPath": "/hold", "queryStringParameters": {"folder": sys.argv[2], "name": "one"}})

asyncio.run(main())
"""


def test_workers_die_with_a_killed_gateway(tmp_path: Path) -> None:
    """A SIGKILL of the gateway leaves no worker, neither the idle one nor the one in the middle of an invocation."""
    command = [sys.executable, "-c", KILLED_GATEWAY, STUB, str(tmp_path)]
    env = stub_env(PYTHONPATH=f"{ROOT}:{Path(__file__).parent}")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - a fixed one
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert held_by(tmp_path) in workers
        process.kill()
    assert len(workers) == 2
    eventually(lambda: not any(map(is_running, workers)), "the workers are gone")


def test_workers_are_out_of_reach_of_ctrl_c(gateway: RunningGateway) -> None:
    """Each worker leads a process group of its own, so a terminal's SIGINT goes to the gateway alone."""
    for pid in gateway.pool.pids:
        assert os.getpgid(pid) == pid
