"""What a turn costs: `python -m bench.cost`, or `make cost TURNS=100000 TOKENS=3000`.

What a turn takes is worked out (`bench/units.py`) or was measured (the constants below, which the tests measure again);
what each unit costs stands in `bench/prices.py`; the rest is asked for. `docs/COST.md` explains the result.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from bench.prices import AS_OF, PRICES
from bench.units import BYTES_PER_TOKEN, QUESTION_SHARE, Talk, Units, units_of
from handlers.settings import SECRET_SECONDS

TURN_LINE_BYTES = 1_213
"""The turn's own log line, as the chat function writes it; 500 of them say which of its members are metrics."""
ACCESS_LINE_BYTES = 204
"""The line of the API's access log, in the template's format."""
PLATFORM_LINES_BYTES = 380
"""Lambda's `platform.start` and `platform.report`, by the form that AWS documents for them."""
LOG_BYTES = TURN_LINE_BYTES + ACCESS_LINE_BYTES + PLATFORM_LINES_BYTES
METRICS = 15
"""Those that CloudWatch takes from the lines, each of which it counts for a month that it has a value in."""
PROMPT_TOKENS = 310
"""The example agent's system prompt and the descriptions of its tools."""

GB = 1024**3
MONTH_HOURS = 730
MONTH_SECONDS = MONTH_HOURS * 3600
LARGEST_TURN = 6_000_000
"""Bytes, as many as Lambda lets in or out."""
MODEL = "Model"
FOOT = (
    f"US dollars, by the list prices of us-east-1 as of {AS_OF}, without free tiers and discounts. Prices change:",
    "--prices shows them and where each is published, --price name=value sets one. Data transfer is not counted.",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A deployment and its month."""

    turns: int
    talk: Talk
    answer_tokens: int
    prompt_tokens: int
    model_calls: int
    seconds: float
    cold_percent: float
    init_seconds: float
    memory: int
    architecture: str
    api: str
    snapstart: bool
    retention_days: int
    months: int
    log_bytes: int
    log_days: int
    metrics: int
    traced_percent: float
    secrets: int

    @property
    def starts(self) -> float:
        """Instances that a month starts."""
        return self.turns * self.cold_percent / 100

    @property
    def kept_months(self) -> float:
        """How many months' turns are in the table."""
        return self.retention_days * 24 / MONTH_HOURS if self.retention_days else self.months

    @property
    def secret_calls(self) -> float:
        """A month's calls to Secrets Manager, where turns come evenly: each instance that is busy fetches anew."""
        busy = max(1, math.ceil(self.turns * self.seconds / MONTH_SECONDS))
        return self.secrets * min(self.turns, busy * MONTH_SECONDS / SECRET_SECONDS + self.starts)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cost."""

    name: str
    takes: str
    """What it is a price for."""
    month: float
    """Dollars."""

    @property
    def of_model(self) -> bool:
        """Whether the model's provider gets it, and AWS all others."""
        return self.name.startswith(MODEL)


def costs(plan: Plan, units: Units, prices: Mapping[str, float]) -> list[Line]:
    """Everything that a month costs, the dearest first."""
    lines = (*_model(plan, prices), *_lambda(plan, prices), *_table(plan, units, prices), *_rest(plan, prices))
    return sorted(lines, key=lambda line: -line.month)


def _model(plan: Plan, prices: Mapping[str, float]) -> Iterator[Line]:
    asked = plan.talk.turn_tokens - plan.answer_tokens
    read = plan.model_calls * (plan.prompt_tokens + plan.talk.window + asked)
    for name, tokens in (("input", read), ("output", plan.answer_tokens)):
        month = plan.turns * tokens * prices[f"model-{name}"] / 1e6
        yield Line(name=f"{MODEL}, {name}", takes=f"{tokens:,} tokens", month=month)


def _lambda(plan: Plan, prices: Mapping[str, float]) -> Iterator[Line]:
    size, second = plan.memory / 1024, prices[f"lambda-{plan.architecture}"]
    used = size * plan.seconds
    yield Line(name="Lambda, duration", takes=f"{used:,.4g} GB-s", month=plan.turns * used * second)
    yield Line(name="Lambda, requests", takes="1 request", month=plan.turns * prices["lambda-request"] / 1e6)
    started = f"{plan.cold_percent:g} % of {size:,.4g} GB"
    if plan.snapstart:
        cached = size * MONTH_SECONDS
        yield Line(
            name="Lambda, SnapStart cache",
            takes=f"{cached:,.0f} GB-s a month",
            month=cached * prices["snapstart-cache"],
        )
        restored = plan.starts * size * prices["snapstart-restore"]
        yield Line(name="Lambda, SnapStart restores", takes=started, month=restored)
    else:
        initialised = plan.starts * size * plan.init_seconds * second
        yield Line(name="Lambda, cold starts", takes=f"{started} for {plan.init_seconds:g} s", month=initialised)


def _table(plan: Plan, units: Units, prices: Mapping[str, float]) -> Iterator[Line]:
    for kind, count in (("write", units.writes), ("read", units.reads)):
        month = plan.turns * count * prices[f"dynamodb-{kind}"] / 1e6
        yield Line(name=f"DynamoDB, {kind}s", takes=f"{count:,} units", month=month)
    stored = plan.turns * plan.kept_months * units.stored / GB
    takes = f"{units.stored:,} bytes for {plan.kept_months:.3g} months"
    yield Line(name="DynamoDB, storage", takes=takes, month=stored * prices["dynamodb-storage"])
    yield Line(name="DynamoDB, point-in-time recovery", takes=takes, month=stored * prices["dynamodb-pitr"])
    yield Line(name="DynamoDB, stream", takes="free to Lambda", month=0)


def _rest(plan: Plan, prices: Mapping[str, float]) -> Iterator[Line]:
    api = plan.turns * prices[f"api-{plan.api}"] / 1e6
    yield Line(name=f"API Gateway, {plan.api.upper()} API", takes="1 request", month=api)
    logged = plan.turns * plan.log_bytes / GB
    kept = logged * plan.log_days * 24 / MONTH_HOURS
    yield Line(name="Logs, ingestion", takes=f"{plan.log_bytes:,} bytes", month=logged * prices["logs-ingestion"])
    takes = f"{plan.log_bytes:,} bytes for {plan.log_days} days"
    yield Line(name="Logs, storage", takes=takes, month=kept * prices["logs-storage"])
    if plan.metrics:
        yield Line(name="Custom metrics", takes=f"{plan.metrics:,} a month", month=plan.metrics * prices["metric"])
    if plan.traced_percent:
        traces = plan.turns * plan.traced_percent / 100
        yield Line(
            name="X-Ray", takes=f"{plan.traced_percent:g} % of a trace", month=traces * prices["xray-trace"] / 1e6
        )
    yield Line(name="Secrets", takes=f"{plan.secrets} a month", month=plan.secrets * prices["secret"])
    calls = plan.secret_calls
    yield Line(name="Secrets, calls", takes=f"{calls:,.0f} a month", month=calls * prices["secret-call"] / 1e4)


def report(plan: Plan, prices: Mapping[str, float]) -> str:
    """What is printed."""
    units = units_of(plan.talk)
    lines = costs(plan, units, prices)
    sums = [
        Line(name="Without the model", takes="", month=sum(line.month for line in lines if not line.of_model)),
        Line(name="Total", takes="", month=sum(line.month for line in lines)),
    ]
    rows = [_row("", "a turn takes", "a turn", "1,000 turns", "a month", "share")]
    for line in (*lines, *sums):
        turn, share = line.month / plan.turns, line.month / sums[-1].month if sums[-1].month else 0
        amounts = (f"{turn:.7f}", f"{1_000 * turn:.4f}", f"{line.month:,.2f}", f"{share:.1%}")
        rows.append(_row(line.name, line.takes, *amounts))
    return "\n".join([*_described(plan, units), "", *rows, "", *FOOT])


def _described(plan: Plan, units: Units) -> list[str]:
    talk = plan.talk
    said = f"{talk.turn_tokens:,} tokens ({talk.turn_bytes:,} bytes), {plan.answer_tokens:,} of them the answer's"
    asked = f"{units.calls} calls, {units.writes} write units ({units.index_writes} of them for the index)"
    return [
        f"A turn of {said}, in view of {talk.turns:,} earlier turns.",
        f"DynamoDB: {asked}, {units.reads} read units.",
        f"Lambda: {plan.memory:,} MB on {plan.architecture} for {plan.seconds:g} s. {plan.turns:,} turns a month.",
    ]


def _row(name: str, takes: str, *amounts: str) -> str:
    return f"{name:<34}{takes:>28}" + "".join(f"{amount:>13}" for amount in amounts)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of twenty options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists all options)\n")


def main() -> None:
    """Work out and print."""
    parser = options()
    given = parser.parse_args()
    prices = {name: price.dollars for name, price in PRICES.items()} | dict(given.price)
    if given.prices:
        for name, price in PRICES.items():
            print(f"{name:<20}{prices[name]:>14.10g}  a {price.unit:<36}{price.page}")
        return
    try:
        plan = plan_of(given)
    except ValueError as error:
        parser.error(str(error))
    print(report(plan, prices))


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan of the command line. Raises ValueError where its values contradict each other."""
    values = vars(given).copy()
    talk = Talk(
        window=values.pop("tokens"),
        turn_tokens=values.pop("turn_tokens"),
        turn_bytes=values.pop("turn_bytes") or given.turn_tokens * BYTES_PER_TOKEN,
        token_limit=values.pop("token_limit"),
    )
    if values["answer_tokens"] is None:
        values["answer_tokens"] = round(talk.turn_tokens * (1 - QUESTION_SHARE))
    for name, value, most, of in (
        ("tokens", talk.window, talk.token_limit, "TOKEN_LIMIT (--token-limit) lets in"),
        ("turn-tokens", talk.turn_tokens, talk.token_limit, "TOKEN_LIMIT (--token-limit) lets in"),
        ("turn-bytes", talk.turn_bytes, LARGEST_TURN, "Lambda lets in or out"),
        ("answer-tokens", values["answer_tokens"], talk.turn_tokens, "its turn (--turn-tokens) has"),
    ):
        if value > most:
            raise ValueError(f"argument --{name}: {value:,} is more than the {most:,} that {of}; give less")
    return Plan(talk=talk, **{name: value for name, value in values.items() if name not in ("price", "prices")})


def options() -> _Parser:
    """What can be said of a deployment and its month."""
    parser = _Parser(prog="python -m bench.cost", description="What a turn costs, and what moves that.")
    add = parser.add_argument
    add("--turns", type=_whole(1), default=100_000, help="turns a month (%(default)s)")
    add("--tokens", type=_whole(0), default=3_000, help="window_tokens of a typical turn's log line (%(default)s)")
    add("--turn-tokens", type=_whole(10), default=330, help="of a turn: window_tokens / turns_in_window (%(default)s)")
    add("--turn-bytes", type=_whole(8), help=f"UTF-8 of what is said in a turn ({BYTES_PER_TOKEN} a token)")
    add("--answer-tokens", type=_whole(0), help="tokens of a turn that the model writes (three quarters of them)")
    add("--prompt-tokens", type=_whole(0), default=PROMPT_TOKENS, help="system prompt and tools (%(default)s)")
    add("--model-calls", type=_whole(1), default=1, help="requests to the model in a turn (%(default)s)")
    add("--token-limit", type=_whole(1, 2_000_000), default=10_000, help="TOKEN_LIMIT of the deployment (%(default)s)")
    add("--seconds", type=_amount(), default=3.0, help="that a turn takes, mostly the model's (%(default)s)")
    add("--cold-percent", type=_amount(100), default=1.0, help="of the turns that start an instance (%(default)s)")
    add("--init-seconds", type=_amount(), default=5.0, help="that a start takes without SnapStart (%(default)s)")
    add("--memory", type=_whole(128, 10_240), default=1_024, help="MB of the chat function (%(default)s)")
    add("--architecture", choices=("x86_64", "arm64"), default="x86_64", help="(%(default)s)")
    add("--api", choices=("http", "rest"), default="http", help="kind of API (%(default)s)")
    add(
        "--snapstart",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="instances start from a snapshot, of one version (%(default)s)",
    )
    add("--retention-days", type=_whole(0), default=30, help="RETENTION_DAYS; 0: turns are kept (%(default)s)")
    add("--months", type=_whole(1), default=12, help="of turns in the table, where they are kept (%(default)s)")
    add("--log-bytes", type=_whole(0), default=LOG_BYTES, help="that a turn logs (%(default)s)")
    add("--log-days", type=_whole(1), default=30, help="that logs are kept (%(default)s)")
    add("--metrics", type=_whole(0), default=METRICS, help="custom metrics (%(default)s)")
    add("--traced-percent", type=_amount(100), default=5.0, help="of the turns that X-Ray records (%(default)s)")
    add(
        "--secrets",
        type=_whole(0),
        default=2,
        help="the model's key, and in mode token the one that signs (%(default)s)",
    )
    add("--price", type=_price, action="append", default=[], metavar="NAME=VALUE", help="another price, in dollars")
    add("--prices", action="store_true", help="show the prices and where they are published, and nothing else")
    return parser


def _whole(least: int, most: int = 10**12) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{value!r} will not do; give a whole number, from {least} to {most}")
        return number

    return parse


def _amount(most: float = math.inf) -> Callable[[str], float]:
    limits = "0 or more" if math.isinf(most) else f"from 0 to {most:g}"

    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (0 <= number <= most and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{value!r} will not do; give a number, {limits}, such as 2.5")
        return number

    return parse


def _price(value: str) -> tuple[str, float]:
    name, _, dollars = value.partition("=")
    if name not in PRICES:
        raise argparse.ArgumentTypeError(f"there is no price {name!r}; there are {', '.join(PRICES)}")
    return name, _amount()(dollars)


if __name__ == "__main__":
    main()
