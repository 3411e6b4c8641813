"""What template.yaml gives those who operate the service: alarms, a dashboard, deployments, limits, tags."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from handlers.metrics import COUNTERS, MEASURES, NAMESPACE
from handlers.settings import COMMIT_SECONDS
from memory.table import INDEX
from tests.cloudformation import (
    FUNCTIONS,
    Resource,
    as_list,
    functions_of,
    names_in,
    of_type,
    read_template,
    refusals,
    render,
)

TOPIC = "arn:aws:sns:us-east-1:123456789012:operators"
BEHIND_THE_API = ("ChatFunction", "SessionsFunction")

OUR_METRICS = {*COUNTERS, *MEASURES}
"""What real turns emit, each of them: see tests/handlers/test_metrics.py."""
AWS_METRICS: dict[tuple[str, str], set[tuple[str, ...]]] = {
    ("AWS/Lambda", "Errors"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/Lambda", "Throttles"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/Lambda", "Invocations"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/Lambda", "Duration"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/Lambda", "ConcurrentExecutions"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/Lambda", "IteratorAge"): {("FunctionName",), ("FunctionName", "Resource")},
    ("AWS/ApiGateway", "Count"): {("ApiId",), ("ApiId", "Stage")},
    ("AWS/ApiGateway", "4xx"): {("ApiId",), ("ApiId", "Stage")},  # 4XXError is a REST API's
    ("AWS/ApiGateway", "5xx"): {("ApiId",), ("ApiId", "Stage")},
    ("AWS/ApiGateway", "Latency"): {("ApiId",), ("ApiId", "Stage")},
    ("AWS/DynamoDB", "ConsumedReadCapacityUnits"): {("TableName",), ("TableName", "GlobalSecondaryIndexName")},
    ("AWS/DynamoDB", "ConsumedWriteCapacityUnits"): {("TableName",), ("TableName", "GlobalSecondaryIndexName")},
    ("AWS/DynamoDB", "ReadThrottleEvents"): {("TableName",), ("TableName", "GlobalSecondaryIndexName")},
    ("AWS/DynamoDB", "WriteThrottleEvents"): {("TableName",), ("TableName", "GlobalSecondaryIndexName")},
    ("AWS/DynamoDB", "SystemErrors"): {("TableName", "Operation")},
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): {("QueueName",)},
}
"""Those of AWS that are used, with the dimensions that the documentation of each service lists."""
UNTAGGED = {"AWS::Lambda::Permission", "AWS::CloudWatch::Dashboard"}


@dataclass(frozen=True)
class Metric:
    """A metric that an alarm or a widget names."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]

    @property
    def of(self) -> dict[str, str]:
        return dict(self.dimensions)

    @property
    def is_emitted(self) -> bool:
        if self.namespace == NAMESPACE:
            return self.name in OUR_METRICS and self.of == {"service": "AWS::StackName"}
        return tuple(self.of) in AWS_METRICS.get((self.namespace, self.name), set())


SHARES = [
    ("ChatErrors", "errors", "requests", 3),
    ("SessionsErrors", "errors", "requests", 3),
    ("ServiceFaults", "faults", "turns", 3),
    ("FailedTurns", "failed", "answered", 3),
    ("UnansweredTurns", "unanswered", "answered", 10),
    ("LeaseConflicts", "conflicts", "answered", 10),
    ("ChatThrottles", "throttles", "requests", 10),
    ("SessionsThrottles", "throttles", "requests", 10),
    ("ApiFaults", "faults", "requests", 10),
]
"""Alarms that compare a share of the requests: of what, the number beside it, and how many there are at the least. The
first four take a version back."""


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


@pytest.fixture(scope="module")
def deployed(template: dict[str, Any]) -> dict[str, Any]:
    """The template as it is deployed with nothing but what it has to be told."""
    return render(template)


@pytest.fixture(scope="module")
def alarms(deployed: dict[str, Any]) -> dict[str, Resource]:
    return {name: alarm["Properties"] for name, alarm in of_type(deployed, "AWS::CloudWatch::Alarm").items()}


@pytest.fixture(scope="module")
def dashboard(deployed: dict[str, Any]) -> dict[str, Any]:
    """The body as CloudWatch gets it, but for what only AWS knows: `${Table}` stands for the table's name."""
    (dashboard,) = of_type(deployed, "AWS::CloudWatch::Dashboard").values()
    body: dict[str, Any] = json.loads(dashboard["Properties"]["DashboardBody"]["Fn::Sub"])
    return body


def widgets(dashboard: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [widget["properties"] for widget in dashboard["widgets"] if widget["type"] == kind]


def watched(alarm: Resource) -> list[Metric]:
    """The metrics that an alarm is made of."""
    if "Metrics" not in alarm:
        return [_metric(alarm)]
    return [_metric(each["MetricStat"]["Metric"]) for each in alarm["Metrics"] if "MetricStat" in each]


def state(alarm: Resource, **counted: int) -> bool:
    """Whether an alarm over several metrics is on when these were counted, by their ids, and of the others none."""
    (compared,) = [each["Expression"] for each in alarm["Metrics"] if each.get("ReturnData", True)]
    ids = {each["Id"] for each in alarm["Metrics"] if "MetricStat" in each}
    assert set(counted) <= ids
    values = dict.fromkeys(ids, 0) | counted
    known = {"IF": lambda condition, yes, no: yes if condition else no, "SUM": sum, "FILL": lambda values, _: values}
    known["METRICS"] = lambda: list(values.values())
    try:
        value = eval(compared, {"__builtins__": {}}, known | values)  # noqa: S307 - the template's own arithmetic
    except ZeroDivisionError:
        return False  # CloudWatch has no value then, and TreatMissingData says what that means
    return bool(value >= alarm["Threshold"])


def _metric(of: dict[str, Any]) -> Metric:
    dimensions = tuple((each["Name"], _text(each["Value"])) for each in of["Dimensions"])
    return Metric(of["Namespace"], of["MetricName"], dimensions)


def _text(value: Any) -> str:
    match value:
        case {"Ref": str(name)} | {"Fn::GetAtt": str(name)}:
            return name
        case {"Fn::Sub": str(text)}:
            return re.sub(r"\$\{([^}]+)\}", r"\1", text)
    return str(value)


def shown(widget: dict[str, Any]) -> Iterator[tuple[Metric, dict[str, Any]]]:
    """The metrics of a widget and how each is drawn, with CloudWatch's shorthands for "as above" written out."""
    above: list[str] = []
    for row in widget["metrics"]:
        drawn = row[-1] if isinstance(row[-1], dict) else {}
        words = [word for word in row if isinstance(word, str)]
        if words[0] == "...":
            words = above[: len(above) - len(words) + 1] + words[1:]
        above = [above[place] if word == "." else word for place, word in enumerate(words)]
        namespace, name, *pairs = above
        dimensions = tuple(zip(pairs[::2], (re.sub(r"\$\{(.+)\}", r"\1", value) for value in pairs[1::2]), strict=True))
        yield Metric(namespace, name, dimensions), drawn


def all_shown(dashboard: dict[str, Any]) -> list[Metric]:
    return [metric for widget in widgets(dashboard, "metric") for metric, _ in shown(widget)]


class TestAlarms:
    def test_watch_what_is_emitted(self, alarms: dict[str, Resource]) -> None:
        """Every alarm is about metrics that the code or AWS emits, of something in this stack."""
        for name, alarm in alarms.items():
            assert watched(alarm), name
            assert [metric for metric in watched(alarm) if not metric.is_emitted] == [], name

    def test_cover_what_can_go_wrong(self, alarms: dict[str, Resource]) -> None:
        """Crashes, refusals and slowness of both functions, faults, failed turns, conflicts, the table, the sweeper.

        Each beside the number of requests that it is a share of.
        """
        subjects = {
            (metric.name, next(iter(metric.of.values()))) for alarm in alarms.values() for metric in watched(alarm)
        }
        assert subjects == {
            *((name, function) for name in ("Errors", "Throttles", "Duration") for function in BEHIND_THE_API),
            *(("Invocations", function) for function in BEHIND_THE_API),
            *((name, "AWS::StackName") for name in COUNTERS if name not in ("turns_replayed", "turns_refused")),
            ("Count", "Api"),
            *((name, "Table") for name in ("ReadThrottleEvents", "WriteThrottleEvents", "SystemErrors")),
            ("5xx", "Api"),
            ("ApproximateNumberOfMessagesVisible", "SweepFailures.QueueName"),
        }

    def test_watch_the_alias_that_callers_reach(self, template: dict[str, Any], alarms: dict[str, Resource]) -> None:
        """Errors and durations are those of the versions behind the alias, and not of tries beside it."""
        for alarm in alarms.values():
            for metric in watched(alarm):
                if "Resource" in metric.of:
                    function = template["Resources"][metric.of["FunctionName"]]["Properties"]
                    assert metric.of["Resource"] == f"{metric.of['FunctionName']}:{function['AutoPublishAlias']}"
        of_alias = [name for name, alarm in alarms.items() if "Resource" in watched(alarm)[0].of]
        assert sorted(of_alias) == ["ChatErrors", "ChatIsSlow", "SessionsAreSlow", "SessionsErrors"]

    def test_know_the_index_and_every_operation(self, template: dict[str, Any], alarms: dict[str, Resource]) -> None:
        """Throttling is that of the table and of its index; errors are those of all operations that are called."""
        throttles, errors = watched(alarms["TableThrottles"]), watched(alarms["TableErrors"])
        assert {(each.name, each.of.get("GlobalSecondaryIndexName")) for each in throttles} == {
            (name, index) for name in ("ReadThrottleEvents", "WriteThrottleEvents") for index in (None, INDEX)
        }
        roles = of_type(template, "AWS::IAM::Role").values()
        statements = [
            each for role in roles for each in role["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        ]
        allowed = [each["Action"] for each in statements if each.get("Sid") == "Conversations"]
        assert {f"dynamodb:{each.of['Operation']}" for each in errors} == {
            action for each in allowed for action in each
        }

    @pytest.mark.parametrize("name", ["TableThrottles", "TableErrors"])
    def test_add_up_what_the_table_says(self, alarms: dict[str, Resource], name: str) -> None:
        """An alarm of the table compares the sum of its metrics, in which what is missing counts as nothing."""
        (total,) = [each for each in alarms[name]["Metrics"] if each.get("ReturnData", True)]
        assert total["Expression"] == "SUM(FILL(METRICS(), 0))"

    @pytest.mark.parametrize(("name", "bad", "good", "least"), SHARES)
    def test_count_shares(self, alarms: dict[str, Resource], name: str, bad: str, good: str, least: int) -> None:
        """A few are no alarm, not even of all there were; and neither are many among very many."""
        alarm, enough = alarms[name], 20 * least
        total = good in ("requests", "turns")  # which are all requests, those that went wrong among them
        assert not state(alarm)
        assert not state(alarm, **{bad: least - 1, good: least - 1 if total else 0})
        assert state(alarm, **{bad: least, good: least if total else 0})
        assert state(alarm, **{bad: enough, good: enough})
        assert not state(alarm, **{bad: enough, good: 100 * enough})

    @pytest.mark.parametrize(("name", "bad", "good", "least"), SHARES[:4])
    def test_notice_a_canary_that_always_fails(
        self, alarms: dict[str, Resource], name: str, bad: str, good: str, least: int
    ) -> None:
        """What takes a version back sees the tenth of the requests that the version gets."""
        assert state(alarms[name], **{bad: 10, good: 100 if good in ("requests", "turns") else 90})

    def test_that_take_a_version_back_are_out_of_callers_reach(self, deployed: dict[str, Any]) -> None:
        """None of them counts what a caller can bring about: turns refused, unanswered or in conflict, 5xx."""
        for name in BEHIND_THE_API:
            for alarm in deployed["Resources"][name]["Properties"]["DeploymentPreference"]["Alarms"]:
                metrics = watched(deployed["Resources"][alarm["Ref"]]["Properties"])
                assert {metric.name for metric in metrics} <= {
                    *("Errors", "Invocations", "service_faults", "turns_failed", "turns_answered")
                }

    def test_have_a_share_each(self, alarms: dict[str, Resource]) -> None:
        """Whatever is compared with requests is in the list above: no alarm is a mere count of them."""
        counts = {name for name, alarm in alarms.items() if "Metrics" in alarm}
        assert counts == {*(name for name, *_ in SHARES), "TableThrottles", "TableErrors"}
        single = {name: watched(alarm)[0].name for name, alarm in alarms.items() if name not in counts}
        assert set(single.values()) == {"Duration", "ApproximateNumberOfMessagesVisible"}

    def test_are_calm_while_nothing_happens(self, alarms: dict[str, Resource]) -> None:
        """No request is no fault."""
        assert {alarm["TreatMissingData"] for alarm in alarms.values()} == {"notBreaching"}
        assert {alarm["ComparisonOperator"] for alarm in alarms.values()} == {"GreaterThanOrEqualToThreshold"}
        assert all(alarm["Threshold"] > 0 for alarm in alarms.values())

    def test_take_time_for_what_it_is(self, template: dict[str, Any], alarms: dict[str, Resource]) -> None:
        """A function is slow before it is stopped: the chat alarm goes off while agents still have time."""
        agent_ms = (template["Resources"]["ChatFunction"]["Properties"]["Timeout"] - COMMIT_SECONDS) * 1000
        assert alarms["ChatIsSlow"]["ExtendedStatistic"] == alarms["SessionsAreSlow"]["ExtendedStatistic"] == "p95"
        assert alarms["SessionsAreSlow"]["Threshold"] < alarms["ChatIsSlow"]["Threshold"] < agent_ms

    def test_tell_the_topic(self, template: dict[str, Any], alarms: dict[str, Resource]) -> None:
        """With a topic every alarm tells it when it goes off and when it is over; without one none tells anybody."""
        assert all("AlarmActions" not in alarm and "OKActions" not in alarm for alarm in alarms.values())
        told = of_type(render(template, AlarmTopicArn=TOPIC), "AWS::CloudWatch::Alarm").values()
        assert all(each["Properties"]["AlarmActions"] == each["Properties"]["OKActions"] == [TOPIC] for each in told)

    def test_say_what_they_mean(self, alarms: dict[str, Resource]) -> None:
        """Whoever is woken by an alarm reads in it what happened."""
        descriptions = {alarm["AlarmDescription"] for alarm in alarms.values()}
        assert len(descriptions) == len(alarms)


class TestDashboard:
    def test_shows_what_is_emitted(self, dashboard: dict[str, Any]) -> None:
        """Every line of every widget is of a metric that the code or AWS emits."""
        assert [metric for metric in all_shown(dashboard) if not metric.is_emitted] == []

    def test_shows_all_that_the_code_emits(self, dashboard: dict[str, Any]) -> None:
        """No metric is paid for that nobody sees."""
        assert {metric.name for metric in all_shown(dashboard) if metric.namespace == NAMESPACE} == OUR_METRICS

    def test_shows_every_alarm(self, dashboard: dict[str, Any], alarms: dict[str, Resource]) -> None:
        """The first widget says which alarms are on."""
        assert dashboard["widgets"][0]["type"] == "alarm"
        (widget,) = widgets(dashboard, "alarm")
        assert sorted(widget["alarms"]) == sorted(f"${{{name}.Arn}}" for name in alarms)

    def test_shows_the_window_beside_its_limit(self, template: dict[str, Any]) -> None:
        """How full the window is stands against TOKEN_LIMIT, whatever that is."""
        (resource,) = of_type(render(template, TokenLimit="4321"), "AWS::CloudWatch::Dashboard").values()
        body = json.loads(resource["Properties"]["DashboardBody"]["Fn::Sub"])
        (widget,) = [each for each in widgets(body, "metric") if "annotations" in each]
        assert widget["annotations"] == {"horizontal": [{"label": "TOKEN_LIMIT", "value": 4321}]}
        assert "window_tokens" in {metric.name for metric, _ in shown(widget)}

    def test_shows_the_spread_of_times(self, dashboard: dict[str, Any]) -> None:
        """Of each step and of both functions the half and the slow end, never a mean that hides it."""
        times: dict[str, list[str]] = {}
        for widget in widgets(dashboard, "metric"):
            for metric, drawn in shown(widget):
                if metric.name.endswith("_ms") or metric.name == "Duration":
                    times.setdefault(f"{metric.name} {metric.dimensions}", []).append(drawn["stat"])
        assert len(times) == 3 + len(BEHIND_THE_API)
        assert all(stats == ["p50", "p95"] for stats in times.values())

    def test_says_how_each_metric_is_counted(self, dashboard: dict[str, Any]) -> None:
        """No widget leaves the statistic or the region to CloudWatch's defaults."""
        for widget in widgets(dashboard, "metric"):
            assert all("stat" in widget | drawn for _, drawn in shown(widget)), widget["title"]
        others = [*widgets(dashboard, "metric"), *widgets(dashboard, "log")]
        assert {widget["region"] for widget in others} == {"${AWS::Region}"}

    def test_asks_the_logs_of_the_functions(self, template: dict[str, Any], dashboard: dict[str, Any]) -> None:
        """Cold starts are read from the reports that Lambda writes into both functions' logs."""
        (widget,) = widgets(dashboard, "log")
        groups = [
            template["Resources"][name]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"] for name in BEHIND_THE_API
        ]
        assert re.findall(r"SOURCE '\$\{(\w+)\}'", widget["query"]) == groups
        assert "filter type = 'platform.report'" in widget["query"]


class TestDeployments:
    @pytest.mark.parametrize("name", BEHIND_THE_API)
    def test_go_back_on_an_alarm(self, deployed: dict[str, Any], name: str) -> None:
        """A new version gets a tenth of the callers first, and its own errors and the faults take it back."""
        function = deployed["Resources"][name]["Properties"]
        preference = function["DeploymentPreference"]
        assert preference["Type"] == "Canary10Percent5Minutes"
        rollback = {alarm["Ref"] for alarm in preference["Alarms"]}
        assert rollback <= set(of_type(deployed, "AWS::CloudWatch::Alarm"))
        metrics = [metric for alarm in rollback for metric in watched(deployed["Resources"][alarm]["Properties"])]
        assert ("Errors", name) in {(metric.name, metric.of.get("FunctionName")) for metric in metrics}
        assert ("turns_failed" in {metric.name for metric in metrics}) is (name == "ChatFunction")
        # A handler answers nearly all that can go wrong, so that Lambda counts no error: its own metrics have to.
        assert "service_faults" in {metric.name for metric in metrics}

    def test_can_be_made(self, deployed: dict[str, Any]) -> None:
        """No rollback alarm is of the API, which needs the alias, which needs its deployment, which needs the alarm."""
        for function in functions_of(deployed):
            for alarm in function.get("DeploymentPreference", {}).get("Alarms", []):
                needed = set(names_in(deployed["Resources"][alarm["Ref"]]))
                assert needed & set(of_type(deployed, "AWS::Serverless::HttpApi")) == set()

    def test_are_made_for_every_change(self, template: dict[str, Any]) -> None:
        """What callers reach is the alias; a parameter that changes variables alone gets there too."""
        for function in functions_of(template):
            if "DeploymentPreference" in function:
                assert (function["AutoPublishAlias"], function["AutoPublishAliasAllProperties"]) == ("live", True)

    def test_can_be_had_at_once(self, template: dict[str, Any]) -> None:
        """Where nobody waits for a canary, as in development, the parameter says so; other types there are not."""
        assert refusals(template, DeploymentType="AllAtOnce") == []
        assert refusals(template, DeploymentType="Canary20Percent5Minutes") == ["DeploymentType"]
        function = render(template, DeploymentType="AllAtOnce")["Resources"]["ChatFunction"]["Properties"]
        assert function["DeploymentPreference"]["Type"] == "AllAtOnce"


class TestLimits:
    @pytest.mark.parametrize(
        ("name", "parameter"), [("ChatFunction", "ChatConcurrency"), ("SessionsFunction", "SessionsConcurrency")]
    )
    def test_reserve_instances_where_they_are_told(self, template: dict[str, Any], name: str, parameter: str) -> None:
        """A function has the instances that its parameter reserves; by default it shares the account's."""
        for given, expected in ({}, None), ({parameter: "0"}, None), ({parameter: "7"}, "7"):
            function = render(template, **given)["Resources"][name]["Properties"]
            assert function.get("ReservedConcurrentExecutions") == expected
        assert refusals(template, **{parameter: "-1"}) == [parameter]

    def test_hold_back_a_flood(self, template: dict[str, Any]) -> None:
        """The API takes so many requests a second and no more, also when nobody says how many."""
        for given, rate, burst in ({}, 5, 20), ({"ApiRateLimit": "50", "ApiBurstLimit": "90"}, "50", "90"):
            (api,) = of_type(render(template, **given), "AWS::Serverless::HttpApi").values()
            settings = api["Properties"]["DefaultRouteSettings"]
            assert settings == {"ThrottlingRateLimit": rate, "ThrottlingBurstLimit": burst}
            assert "RouteSettings" not in api["Properties"], "it would replace the default for a route"
        for parameter in ("ApiRateLimit", "ApiBurstLimit"):
            assert refusals(template, **{parameter: "0"}) == [parameter], "it would let nobody in"

    def test_leave_instances_to_others(self, template: dict[str, Any]) -> None:
        """By default, turns that all take as long as they may need a third of the 1,000 instances of an account."""
        (api,) = of_type(render(template), "AWS::Serverless::HttpApi").values()
        limits = api["Properties"]["DefaultRouteSettings"]
        function = template["Resources"]["ChatFunction"]["Properties"]
        at_once = limits["ThrottlingRateLimit"] * function["Timeout"] + limits["ThrottlingBurstLimit"]
        assert at_once * len(function["Events"]) <= 1000 / 3


class TestTraces:
    def test_are_taken_of_every_function(self, template: dict[str, Any]) -> None:
        """X-Ray sees where the time of an invocation goes."""
        assert [function["Tracing"] for function in functions_of(template)] == ["Active"] * len(FUNCTIONS)


class TestTags:
    def test_are_on_everything(self, template: dict[str, Any]) -> None:
        """Whatever costs money says whose it is: the project, and the environment of the parameter."""
        expected = {"Project": "rehydrate", "Environment": "test"}
        for name, resource in render(template, Environment="test")["Resources"].items():
            if resource["Type"] not in UNTAGGED:
                assert _tags(resource["Properties"]["Tags"]) == expected, name
            if resource["Type"].startswith("AWS::Serverless::"):
                assert resource["Properties"]["PropagateTags"] is True, "what SAM makes of it has them too"

    @pytest.mark.parametrize("value", ["", "a b", "x" * 257])
    def test_take_no_nonsense(self, template: dict[str, Any], value: str) -> None:
        """A tag that AWS would refuse, or that says nothing, is refused before anything is deployed."""
        assert refusals(template, Environment=value) == ["Environment"]


def _tags(tags: Any) -> dict[str, str]:
    return tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in as_list(tags)}


class TestQueues:
    def test_are_encrypted_and_forget(self, template: dict[str, Any]) -> None:
        """No queue holds anything in the clear, and none for longer than two weeks."""
        for queue in of_type(template, "AWS::SQS::Queue").values():
            assert queue["Properties"]["SqsManagedSseEnabled"] is True
            assert queue["Properties"]["MessageRetentionPeriod"] <= 14 * 24 * 3600
