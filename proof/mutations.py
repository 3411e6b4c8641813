"""Mutations: each guarantee is broken on purpose in a copy of the project, and a test has to fail for each.

python -m proof.mutations --only 7    shows what the test says of one of them
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from proof.broken import ROOT, Change, copy_with
from proof.section import Section

TURN_LOG = "tests/memory/test_turn_log.py"
BUDGETS = "tests/memory/test_budgets.py"
ALLOWANCE = "tests/memory/test_allowance.py"
LIMITS = "tests/handlers/test_limits.py"
SHORTENING = "tests/memory/test_shortening.py"
WAITING = "tests/memory/test_waiting.py"
SESSIONS = "tests/memory/test_sessions.py"
STORE = "tests/memory/test_chat_store.py"
CONVERSATION = "tests/handlers/test_conversation.py"
CHAT = "tests/handlers/test_chat.py"
IDENTITY = "tests/handlers/test_identity.py"
PROMPT = "tests/handlers/test_prompt.py"
ODD_STREAMS = "tests/handlers/test_odd_streams.py"
REQUESTS = "tests/handlers/test_model_requests.py"
QUICK = 4
PASSED, FAILED = 0, 1
"""pytest's exit codes; others say that it did not come to run the test."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A guarantee, how it is broken, and the test that has to fail then."""

    guarantee: str
    name: str
    change: Change
    test: str


def _in_memory(module: str, old: str, new: str) -> Change:
    return Change(file=f"memory/{module}.py", old=old, new=new)


def _in_handlers(module: str, old: str, new: str) -> Change:
    return Change(file=f"handlers/{module}.py", old=old, new=new)


MUTATIONS = (
    Mutation(
        guarantee="durable",
        name="the answer is told before its turn is stored",
        change=_in_handlers(
            "conversation",
            '        with progress.timing("commit"):\n',
            '        yield Answered(turn=turn, replayed=False)\n        with progress.timing("commit"):\n',
        ),
        test=f"{CONVERSATION}::test_a_turn_yields_what_happens_and_at_last_the_stored_turn",
    ),
    Mutation(
        guarantee="durable",
        name="nothing is kept back for the commit",
        change=_in_handlers(
            "conversation",
            "until=self.deadline - COMMIT_SECONDS",
            "until=self.deadline",
        ),
        test=f"{CHAT}::test_an_agent_that_takes_too_long_is_stopped",
    ),
    Mutation(
        guarantee="whole",
        name="results of tools are not stored",
        change=_in_memory(
            "chat_store",
            "if entry.position[0] == self._number)",
            'if entry.position[0] == self._number and entry.message["role"] != "tool")',
        ),
        test=f"{CHAT}::test_tool_calls_are_part_of_the_turn",
    ),
    Mutation(
        guarantee="whole",
        name="a large turn is read without its parts",
        change=_in_memory("items", "keys = codec.part_keys(item)", "keys = list[str]()"),
        test=f"{TURN_LOG}::test_a_turn_of_any_size_is_stored_whole",
    ),
    Mutation(
        guarantee="once",
        name="the body's hash is not compared",
        change=_in_memory("dynamodb", "if turn.request.body_hash != request.body_hash:", "if False:"),
        test=f"{TURN_LOG}::test_a_request_id_with_another_body_is_refused",
    ),
    Mutation(
        guarantee="once",
        name="the hash does not cover the message",
        change=_in_handlers(
            "chat", 'body_hash("POST /chat", session.id, body.message)', 'body_hash("POST /chat", session.id)'
        ),
        test=f"{CHAT}::test_bad_input_is_refused_by_name_and_harms_nothing",
    ),
    Mutation(
        guarantee="once",
        name="the Idempotency-Key is not heeded",
        change=_in_handlers(
            "chat",
            "return idempotency_key(exchange.event) or exchange.context.aws_request_id",
            "return exchange.context.aws_request_id",
        ),
        test=f"{CHAT}::test_an_idempotency_key_is_answered_once",
    ),
    Mutation(
        guarantee="once",
        name="the ring of recent requests is not asked",
        change=_in_memory("dynamodb", "for number in reading.recalled(request.id):", "for number in ():"),
        test=f"{TURN_LOG}::test_a_request_is_recognised_for_64_turns_though_it_left_the_window",
    ),
    Mutation(
        guarantee="flat",
        name="requests are remembered though they cost a write unit",
        change=_in_memory("codec", "LEAST_RECENT_REQUESTS = 16", "LEAST_RECENT_REQUESTS = 64"),
        test=f"{BUDGETS}::test_a_claim_remembers_as_many_requests_as_cost_nothing",
    ),
    Mutation(
        guarantee="serial",
        name="a commit has no condition",
        change=_in_memory("table", '"attribute_not_exists(pk)"', '"attribute_not_exists(nothing)"'),
        test=f"{TURN_LOG}::test_who_was_overtaken_cannot_write",
    ),
    Mutation(
        guarantee="serial",
        name="a claim does not compare the holder",
        change=_in_memory(
            "items", 'HELD = "#holder = :seen"', 'HELD = "(attribute_exists(#holder) OR #holder = :seen)"'
        ),
        test=f"{TURN_LOG}::test_two_claims_of_one_load_cannot_both_hold",
    ),
    Mutation(
        guarantee="serial",
        name="the attempt's token is not looked at: every refusal is a success",
        change=_in_memory("dynamodb", 'if refusal.item.get("token") != turn.token:', "if not refusal.item:"),
        test=f"{TURN_LOG}::test_who_was_overtaken_cannot_write",
    ),
    Mutation(
        guarantee="serial",
        name="the attempt's token is not looked at: every refusal is a loss",
        change=_in_memory("dynamodb", 'if refusal.item.get("token") != turn.token:', "if refusal.item:"),
        test=f"{TURN_LOG}::test_a_failure_whose_response_was_lost_is_stored_as_well",
    ),
    Mutation(
        guarantee="serial",
        name="a window shows its turns the newest first",
        change=_in_memory("dynamodb", "turns=tuple(reversed(reading.turns))", "turns=tuple(reading.turns)"),
        test=f"{TURN_LOG}::test_turns_are_numbered_in_the_order_in_which_they_were_stored",
    ),
    Mutation(
        guarantee="one at a time",
        name="a lease is not waited for",
        change=_in_memory(
            "dynamodb",
            "return max(0.0, min(left, LEASE.total_seconds() - watched))",
            "return 0",
        ),
        test=f"{TURN_LOG}::test_a_session_is_busy_while_a_lease_holds",
    ),
    Mutation(
        guarantee="one at a time",
        name="a lease is never renewed",
        change=_in_handlers("conversation", "await asyncio.sleep(pause)", "await asyncio.sleep(3600)"),
        test=f"{CONVERSATION}::test_a_turn_that_outlives_its_lease_renews_it",
    ),
    Mutation(
        guarantee="one at a time",
        name="the lease of a dead holder never ends",
        change=_in_memory(
            "dynamodb",
            "return max(0.0, min(left, LEASE.total_seconds() - watched))",
            "return 3600",
        ),
        test=f"{TURN_LOG}::test_a_dead_holder_blocks_for_one_lease_at_most",
    ),
    Mutation(
        guarantee="flat",
        name="a load reads the whole history",
        change=_in_memory("dynamodb", "page_sizes=reading.page_sizes(),", ""),
        test=f"{TURN_LOG}::test_a_turn_costs_the_same_at_turn_120_as_at_turn_30",
    ),
    Mutation(
        guarantee="any size",
        name="large turns are one item",
        change=_in_memory("codec", "INLINE_BYTES = 64_000", "INLINE_BYTES = 64_000_000"),
        test=f"{TURN_LOG}::test_a_turn_of_any_size_is_stored_whole",
    ),
    Mutation(
        guarantee="isolated",
        name="the owner is no part of the key",
        change=_in_memory(
            "codec", 'return f"SESSION#{owner_key(session.owner)}#{encoded}"', 'return f"SESSION##{encoded}"'
        ),
        test=f"{TURN_LOG}::test_a_session_of_another_owner_does_not_exist",
    ),
    Mutation(
        guarantee="isolated",
        name="a token's signature is not checked",
        change=_in_handlers(
            "identity",
            "            caller_id, signed_at = self._reading.loads(\n"
            "                token, max_age=round(self._life.total_seconds()), return_timestamp=True\n            )",
            "            _, caller_id = self._reading.loads_unsafe(token)\n            signed_at = self._clock()",
        ),
        test=f"{IDENTITY}::test_a_token_of_another_key_is_refused",
    ),
    Mutation(
        guarantee="isolated",
        name="a token does not expire",
        change=_in_handlers("identity", "max_age=round(self._life.total_seconds()), ", ""),
        test=f"{IDENTITY}::test_a_token_expires",
    ),
    Mutation(
        guarantee="isolated",
        name="a session that is named without a token is begun anew",
        change=_in_handlers("chat", 'if named is not None and caller.source == "new":', "if False:"),
        test=f"{CHAT}::test_a_session_without_a_token_is_refused",
    ),
    Mutation(
        guarantee="read-your-writes",
        name="reads are eventually consistent",
        change=_in_memory("table", '{"ConsistentRead": True}', '{"ConsistentRead": False}'),
        test=f"{BUDGETS}::test_an_operation_takes_so_many_calls_and_units",
    ),
    Mutation(
        guarantee="forgets when told",
        name="a delete keeps the generation",
        change=_in_memory("dynamodb", 'count_up=["generation", "reserved"]', 'count_up=["reserved"]'),
        test=f"{TURN_LOG}::test_a_turn_in_flight_does_not_outlive_a_delete",
    ),
    Mutation(
        guarantee="forgets when told",
        name="expired turns are read",
        change=_in_memory(
            "codec", 'return "expires_at" in item and int(item["expires_at"]) <= now.timestamp()', "return False"
        ),
        test=f"{TURN_LOG}::test_an_expired_turn_is_read_by_nobody_though_it_is_there",
    ),
    Mutation(
        guarantee="never summarised away",
        name="what LlamaIndex archives is deleted",
        change=_in_memory(
            "chat_store",
            "await self._log.mark(window, archived=chosen[-1].position)",
            "await self._log.mark(window, deleted=chosen[-1].position)",
        ),
        test=f"{STORE}::test_memory_archives_on_the_drop_in",
    ),
    Mutation(
        guarantee="stateless",
        name="a process keeps the window of a session",
        change=_in_handlers(
            "conversation",
            "store, concluded, failure = TurnChatStore(window), None, None",
            'window = globals().setdefault("kept", window)\n'
            "        store, concluded, failure = TurnChatStore(window), None, None",
        ),
        test=f"{CHAT}::test_it_remembers_what_was_said_before",
    ),
    Mutation(
        guarantee="a window is chosen",
        name="turns are shown that do not fit",
        change=_in_memory(
            "reading",
            'or self.tokens + int(item.get("tokens", 0)) <= self.token_limit',
            "or True",
        ),
        test=f"{TURN_LOG}::test_a_window_holds_the_newest_whole_turns_that_fit",
    ),
    Mutation(
        guarantee="never blank",
        name="a turn that does not fit ends the window",
        change=_in_memory(
            "reading",
            "return self.skips(item) or not self.turns or",
            "return self.skips(item) or",
        ),
        test=f"{TURN_LOG}::test_a_turn_that_does_not_fit_is_shown_in_part",
    ),
    Mutation(
        guarantee="never blank",
        name="a turn that is too large is shown whole",
        change=_in_memory("reading", "if turn.tokens <= room:", "if True:"),
        test=f"{TURN_LOG}::test_a_turn_that_does_not_fit_is_shown_in_part",
    ),
    Mutation(
        guarantee="never blank",
        name="calls are left out without their results",
        change=_in_memory("shortening", 'if part.role == "tool" and steps and steps[-1][0].calls_tools:', "if False:"),
        test=f"{SHORTENING}::test_calls_that_do_not_fit_are_left_out_with_their_results",
    ),
    Mutation(
        guarantee="never blank",
        name="the answer to a copy is the shortened one",
        change=_in_memory("dynamodb", "for turn in reading.stored_turns if", "for turn in reading.turns if"),
        test=f"{TURN_LOG}::test_a_shortened_turn_is_stored_whole",
    ),
    Mutation(
        guarantee="a window is chosen",
        name="failed turns are stored as complete ones",
        change=_in_memory(
            "turns", "self._turn(TurnStatus.FAILED, messages", "self._turn(TurnStatus.COMPLETE, messages"
        ),
        test=f"{CHAT}::test_a_failing_model_costs_the_turn_and_not_the_conversation",
    ),
    Mutation(
        guarantee="a damaged item hides no other",
        name="a turn that cannot be read ends the load",
        change=_in_memory(
            "dynamodb",
            'reading.damaged[codec.turn_numbers(item["sk"])[1]] = item.get("request_id", "")',
            "raise",
        ),
        test=f"{TURN_LOG}::test_a_damaged_turn_hides_no_other_and_is_reported",
    ),
    Mutation(
        guarantee="no text in a log",
        name="the line has what was said",
        change=_in_handlers(
            "chat", '"request_id": ask.request.id,', '"request_id": ask.request.id, "asked": ask.message,'
        ),
        test=f"{CHAT}::test_no_log_has_what_was_said",
    ),
    Mutation(
        guarantee="no error's text gets out",
        name="a 500 quotes the error",
        change=_in_handlers(
            "problems",
            'return Problem(kind=Kind.INTERNAL, detail="The cause was logged. Nothing of this request was stored.")',
            "return Problem(kind=Kind.INTERNAL, detail=str(error))",
        ),
        test=f"{CHAT}::test_a_missing_setting_is_logged_by_name",
    ),
    Mutation(
        guarantee="never bricked",
        name="arguments are sent as they were stored",
        change=_in_handlers("prompt", "tool_kwargs=object_or_told(call.tool_kwargs)", "tool_kwargs=call.tool_kwargs"),
        test=f"{PROMPT}::test_every_history_is_sent_in_a_form_that_a_strict_server_takes",
    ),
    Mutation(
        guarantee="never bricked",
        name="ids are sent as they were stored",
        change=_in_handlers("prompt", "ids.make(call.tool_call_id, keep=own) for", 'str(call.tool_call_id or "") for'),
        test=f"{PROMPT}::test_every_history_is_sent_in_a_form_that_a_strict_server_takes",
    ),
    Mutation(
        guarantee="never bricked",
        name="calls are sent without their results",
        change=_in_handlers(
            "prompt",
            "for call_id, result in zip(renamed, _results(calls, results), strict=True):",
            "for call_id, result in zip(renamed, _results(calls, results)[1:], strict=False):",
        ),
        test=f"{PROMPT}::test_every_history_is_sent_in_a_form_that_a_strict_server_takes",
    ),
    Mutation(
        guarantee="never bricked",
        name="empty messages are sent",
        change=_in_handlers(
            "prompt",
            "return found if says_something or _calls(message) else []",
            'return found or [TextBlock(text="")]',
        ),
        test=f"{PROMPT}::test_every_history_is_sent_in_a_form_that_a_strict_server_takes",
    ),
    Mutation(
        guarantee="never bricked",
        name="pieces of parallel calls are not told apart",
        change=_in_handlers(
            "model_answer",
            "[call for call in self.calls if index is None or call.index in (index, None)]",
            "self.calls",
        ),
        test=f"{ODD_STREAMS}::test_an_odd_stream_gives_what_people_expect",
    ),
    Mutation(
        guarantee="never bricked",
        name="a refused prompt is not sent again in a plainer form",
        change=_in_handlers("model", 'if refusal_of(error).code != "prompt_refused":', "if True:"),
        test=f"{REQUESTS}::test_a_refused_prompt_is_sent_again_without_earlier_tool_calls",
    ),
    Mutation(
        guarantee="one caller costs no more than the settings say",
        name="turns are counted, and none is refused",
        change=_in_memory("allowance", "(#turns < :limit AND #token <> :token)", "(#token <> :token)"),
        test=f"{ALLOWANCE}::test_an_owner_has_so_many_turns_in_an_hour",
    ),
    Mutation(
        guarantee="one caller costs no more than the settings say",
        name="nobody waits for the verdict on the count",
        change=_in_handlers("conversation", "            await counting\n", "            pass\n"),
        test=f"{LIMITS}::test_a_refused_turn_leaves_nothing",
    ),
    Mutation(
        guarantee="one caller costs no more than the settings say",
        name="each instance counts those who wait for itself",
        change=_in_memory("dynamodb", 'condition=f"{HELD} AND {unchanged}",', "condition=HELD,"),
        test=f"{WAITING}::test_who_finds_the_list_changed_loads_again",
    ),
    Mutation(
        guarantee="one caller costs no more than the settings say",
        name="who has claimed still counts as waiting",
        change=_in_memory("dynamodb", "self._waiters(window, but=waiter)) else {}", "self._waiters(window)) else {}"),
        test=f"{WAITING}::test_a_claim_makes_room",
    ),
    Mutation(
        guarantee="one caller costs no more than the settings say",
        name="a fork copies all there is",
        change=_in_memory("sessions", "if copied == max_turns:", "if False:"),
        test=f"{SESSIONS}::test_a_fork_copies_so_many_turns_and_the_newest_ones",
    ),
)


def prove(*, quick: bool) -> Section:
    """Run each mutation's test on the project as it is, and on a copy with the mutation."""
    tried = MUTATIONS[:QUICK] if quick else MUTATIONS
    with copy_with(None) as folder:
        sound = _code(folder, sorted({mutation.test for mutation in tried})) == PASSED
    caught = {}
    for mutation in tried:
        caught[mutation.name] = is_caught(mutation)
        print(f"{mutation.name}: {'caught' if caught[mutation.name] else 'NOT CAUGHT'}", flush=True)
    return Section(
        title="Mutations",
        tried=f"{len(tried)} times one guarantee was broken on purpose, in a copy of the project, and one test run on "
        f"it. On the project as it is, these tests {'pass' if sound else '**fail**'}.",
        head=("guarantee", "what was broken", "the test that failed", "what it claims"),
        rows=[
            (
                mutation.guarantee,
                mutation.name,
                f"`{mutation.test.rpartition('::')[2]}`" if caught[mutation.name] else "**none**",
                claim(mutation.test),
            )
            for mutation in tried
        ],
        held=sound and all(caught.values()),
    )


def is_caught(mutation: Mutation) -> bool:
    """Whether the mutation's test fails once the guarantee is broken."""
    with copy_with(mutation.change) as folder:
        return _code(folder, [mutation.test]) == FAILED


def claim(test: str) -> str:
    """What a test says that it holds: the first paragraph of its docstring, or of its module's."""
    file, _, name = test.partition("::")
    module = ast.parse((ROOT / file).read_text())
    found = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    text = next((ast.get_docstring(node) for node in found if node.name == name), ast.get_docstring(module))
    return re.sub(r"\s+", " ", (text or "").split("\n\n")[0])


def _code(folder: Path, tests: Sequence[str], *, show: bool = False) -> int:
    """pytest's exit code for some tests of a copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=not show, check=False).returncode


def main() -> None:
    """Exit code 1 where the test does not fail."""
    parser = argparse.ArgumentParser(prog="python -m proof.mutations", description=__doc__)
    parser.add_argument("--only", type=int, required=True, help=f"which one, 1 to {len(MUTATIONS)}")
    mutation = MUTATIONS[parser.parse_args().only - 1]
    print(f"{mutation.guarantee}: {mutation.name}", flush=True)
    with copy_with(mutation.change) as folder:
        raise SystemExit(_code(folder, [mutation.test], show=True) != FAILED)


if __name__ == "__main__":
    main()
