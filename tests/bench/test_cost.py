"""The calculator of `make cost`: what it adds up, what it refuses, and that its page shows what it prints."""

import json
import re
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from llama_index.core.utils import get_tokenizer

from bench import cost
from bench.cost import costs, plan_of, report
from bench.prices import PRICES
from bench.units import Units
from handlers.agent import SYSTEM_PROMPT, build_agent
from handlers.metrics import COUNTERS, MEASURES
from handlers.settings import Settings
from tests.cloudformation import TEMPLATE, CloudFormationLoader

PAGE = Path(__file__).parents[2] / "docs" / "COST.md"
UNITS = Units(calls=3, reads=4, writes=5, index_writes=2, stored=1024**3)
PRICE_LIST = {name: price.dollars for name, price in PRICES.items()}
EXAMPLES = re.findall(r"^```text\n\$ make cost (.*)\n\n((?:.|\n)*?)\n```$", PAGE.read_text(), re.MULTILINE)
"""Commands of the page, and what stands below them."""
FLAGS = {"TURNS": "--turns", "TOKENS": "--tokens"}


def plan(*options: str) -> cost.Plan:
    return plan_of(cost.options().parse_args(list(options)))


def month(name: str, *options: str) -> float:
    """What one cost comes to in a month of 1,000,000 turns."""
    lines = costs(plan("--turns", "1000000", *options), UNITS, PRICE_LIST)
    return {line.name: line.month for line in lines}.get(name, 0)


@pytest.mark.parametrize(
    ("name", "options", "dollars"),
    [
        ("Model, input", "--prompt-tokens 100 --tokens 800 --turn-tokens 200 --answer-tokens 100", 400.0),
        (
            "Model, input",
            "--prompt-tokens 100 --tokens 800 --turn-tokens 200 --answer-tokens 100 --model-calls 2",
            800.0,
        ),
        ("Model, output", "--answer-tokens 100", 160.0),
        ("Lambda, duration", "--memory 2048 --seconds 2", 66.6668),
        ("Lambda, duration", "--memory 1024 --seconds 3 --architecture arm64", 40.0002),
        ("Lambda, requests", "", 0.2),
        ("Lambda, cold starts", "--no-snapstart --cold-percent 10 --init-seconds 6", 10.00002),
        ("Lambda, cold starts", "--snapstart", 0),
        ("Lambda, SnapStart cache", "--snapstart", 3.9540888),
        ("Lambda, SnapStart restores", "--snapstart --cold-percent 10", 13.97998),
        ("API Gateway, HTTP API", "", 1.0),
        ("API Gateway, REST API", "--api rest", 3.5),
        ("DynamoDB, writes", "", 3.125),
        ("DynamoDB, reads", "", 0.5),
        ("DynamoDB, storage", "--months 2 --retention-days 0", 500_000.0),
        ("DynamoDB, storage", "--retention-days 73", 600_000.0),
        ("DynamoDB, point-in-time recovery", "--months 2 --retention-days 0", 400_000.0),
        ("Logs, ingestion", "--log-bytes 1073741824", 500_000.0),
        ("Logs, storage", "--log-bytes 1073741824 --log-days 73", 72_000.0),
        ("Custom metrics", "--metrics 10", 3.0),
        ("X-Ray", "--traced-percent 5", 0.25),
        ("Secrets", "--secrets 3", 1.2),
        ("Secrets, calls", "--secrets 1 --seconds 1 --cold-percent 0", 0.0438),
        ("Secrets, calls", "--secrets 1 --seconds 3 --cold-percent 1", 0.1376),
    ],
)
def test_each_cost_is_what_it_takes_times_its_price(name: str, options: str, dollars: float) -> None:
    """A month of a million turns costs what the prices say, worked out by hand."""
    assert month(name, *options.split()) == pytest.approx(dollars)


def test_costs_stand_in_order_and_add_up() -> None:
    """The dearest comes first, and the shares of all lines and the total agree."""
    printed = report(plan("--snapstart", "--metrics", "3", "--traced-percent", "5"), PRICE_LIST)
    amounts = [float(row.split()[-2].replace(",", "")) for row in printed.splitlines() if row.endswith("%")]
    *lines, without_model, total = amounts
    assert lines == sorted(lines, reverse=True)
    assert sum(lines) == pytest.approx(total, abs=0.005 * len(amounts))
    assert without_model == pytest.approx(total - lines[0] - lines[1], abs=0.02)


def test_a_price_can_be_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Another price changes what it is the price of."""
    command = ["cost", "--turns", "1000000", "--price", "api-http=7", "--price", "model-input=0"]
    monkeypatch.setattr("sys.argv", command)
    cost.main()
    printed = capsys.readouterr().out
    assert re.search(r"^API Gateway, HTTP API .* 7\.00 ", printed, re.MULTILINE)
    assert re.search(r"^Model, input .* 0\.00 ", printed, re.MULTILINE)


def test_all_prices_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each price is shown with its unit and the page where it is published, also one that was set."""
    monkeypatch.setattr("sys.argv", ["cost", "--prices", "--price", "secret=9"])
    cost.main()
    shown = capsys.readouterr().out
    assert all(name in shown and price.unit in shown and price.page in shown for name, price in PRICES.items())
    assert re.search(r"^secret +9 ", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "names", "mend"),
    [
        ("--turns none", "--turns", "from 1"),
        ("--turns 0", "--turns", "from 1"),
        ("--turns -5", "--turns", "from 1"),
        ("--turns 1.5", "--turns", "whole number"),
        ("--tokens 10001", "--tokens", "10,000"),
        ("--turn-tokens 20000", "--turn-tokens", "10,000"),
        ("--turn-bytes 7000000", "--turn-bytes", "6,000,000"),
        ("--answer-tokens 331", "--answer-tokens", "330"),
        ("--seconds nan", "--seconds", "0 or more"),
        ("--seconds inf", "--seconds", "0 or more"),
        ("--cold-percent 101", "--cold-percent", "100"),
        ("--memory 64", "--memory", "128"),
        ("--architecture sparc", "--architecture", "arm64"),
        ("--price tea=1", "tea", "secret-call"),
        ("--price secret", "--price", "0 or more"),
        ("--price secret=-1", "--price", "0 or more"),
    ],
)
def test_nonsense_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: str, names: str, mend: str
) -> None:
    """What makes no sense ends the program with one line that names the option and says what would do."""
    monkeypatch.setattr("sys.argv", ["cost", *options.split()])
    with pytest.raises(SystemExit) as ended:
        cost.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert names in said.err
    assert mend in said.err


def test_the_page_has_examples() -> None:
    """The examples that the next test goes through are found in the page."""
    assert EXAMPLES


@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_the_page_shows_what_is_printed(command: str, shown: str) -> None:
    """The page's examples are what the calculator prints today."""
    options: list[str] = []
    for word in shlex.split(command):
        name, _, value = word.partition("=")
        options += value.split() if name == "ARGS" else [FLAGS[name], value]
    assert report(plan(*options), PRICE_LIST) == shown


def test_the_access_line_is_as_long_as_it_is_counted() -> None:
    """A line in the template's format, with values as long as usual ones, has the bytes that are counted for it."""
    template = yaml.load(TEMPLATE.read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader
    line = template["Resources"]["Api"]["Properties"]["AccessLogSettings"]["Format"]
    values = {
        "requestId": "JKJaXmPLvHcESHA=",
        "requestTime": "01/Jan/2026:12:34:56 +0000",
        "identity.sourceIp": "203.0.113.195",
        "httpMethod": "POST",
        "path": "/chat",
        "status": "200",
        "responseLength": "1834",
        "responseLatency": "3012",
        "integrationErrorMessage": "-",
    }
    for name, value in values.items():
        line = line.replace(f"$context.{name}", value)
    assert "$context" not in line
    assert len(line) == pytest.approx(cost.ACCESS_LINE_BYTES, rel=0.05)


def test_the_example_agents_prompt_is_counted() -> None:
    """The prompt and the tools' descriptions take as many tokens as are counted for them."""
    agent = build_agent(MockFunctionCallingLLM())
    tools = [tool.metadata.to_openai_tool() for tool in agent.tools if isinstance(tool, FunctionTool)]
    assert len(tools) == len(agent.tools)
    count = get_tokenizer()
    tokens = len(count(SYSTEM_PROMPT)) + len(count(json.dumps(tools)))
    assert tokens == pytest.approx(cost.PROMPT_TOKENS, rel=0.05)


def test_the_defaults_are_the_templates() -> None:
    """Memory, processor, start, metrics, window and the time that logs are kept are those of a deployment that changes
    nothing."""
    template = yaml.load(TEMPLATE.read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader
    parameters, usual = template["Parameters"], plan()
    deployed = {name: parameters[name]["Default"] for name in ("Architecture", "TokenLimit", "LogRetentionDays")}
    function = template["Resources"]["ChatFunction"]["Properties"]
    assert (function["MemorySize"], "SnapStart" in function) == (usual.memory, usual.snapstart)
    assert len(COUNTERS) + len(MEASURES) == usual.metrics
    assert list(deployed.values()) == [usual.architecture, usual.talk.token_limit, usual.log_days]
    assert Settings().retention == timedelta(days=usual.retention_days)
    assert parameters["RetentionDays"]["Default"] == -1, "the settings decide"
