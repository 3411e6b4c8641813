"""What template.yaml promises, read from the file itself."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, get_args

import pytest

import memory.table
from handlers import chat as chat_module
from handlers import sessions as sessions_module
from handlers.settings import IdentitySource, Settings
from local import stream
from local.functions import function_for
from memory.codec import STATE_KEY, TURN_PREFIX
from memory.table import TABLE_SCHEMA
from tests.cloudformation import (
    AUTHORIZER,
    FUNCTIONS,
    KEY,
    MODES,
    ROOT,
    SECRET,
    TEMPLATE,
    Resource,
    as_list,
    branches,
    functions_of,
    names_in,
    of_type,
    read_template,
    refusals,
    render,
)

ORIGIN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:origin"
API_TIMEOUT_SECONDS = 30  # API Gateway's, for HTTP APIs; it cannot be raised


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


@pytest.fixture
def table(template: dict[str, Any]) -> Resource:
    (table,) = of_type(template, "AWS::DynamoDB::Table").values()
    return table


@pytest.fixture
def chat(template: dict[str, Any]) -> Resource:
    return template["Resources"]["ChatFunction"]["Properties"]


@pytest.fixture
def sessions(template: dict[str, Any]) -> Resource:
    return template["Resources"]["SessionsFunction"]["Properties"]


@pytest.fixture
def sweep(template: dict[str, Any]) -> Resource:
    return template["Resources"]["SweepFunction"]["Properties"]


@pytest.fixture(params=FUNCTIONS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each function, in turn."""
    return request.param


@pytest.fixture
def function(template: dict[str, Any], name: str) -> Resource:
    return template["Resources"][name]["Properties"]


@pytest.fixture
def statements(template: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What the function's role allows."""
    return _statements(template, name)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def deployed(template: dict[str, Any], mode: str) -> dict[str, Any]:
    """The template as it is deployed in the mode."""
    return render(template, IdentityMode=mode, **MODES[mode])


class TestTable:
    def test_expires_items(self, table: Resource) -> None:
        """DynamoDB removes items by the attribute that the turn log sets."""
        assert table["Properties"]["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}

    def test_can_be_restored(self, table: Resource) -> None:
        """The table can be restored to any second of its last weeks."""
        assert table["Properties"]["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}

    def test_is_encrypted(self, table: Resource) -> None:
        """The table is encrypted under a KMS key, whose use CloudTrail shows."""
        assert table["Properties"]["SSESpecification"] == {"SSEEnabled": True}

    def test_is_on_demand(self, table: Resource) -> None:
        """Nobody has to guess a capacity."""
        assert table["Properties"]["BillingMode"] == "PAY_PER_REQUEST"

    def test_outlives_the_stack(self, table: Resource) -> None:
        """Neither deleting the stack nor replacing the table deletes a conversation; nor does a call that names it."""
        assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")
        assert table["Properties"]["DeletionProtectionEnabled"] is True

    def test_has_the_keys_of_the_turn_log(self, table: Resource) -> None:
        """The deployed table has the keys and the index of the one that the tests and `make run` create."""
        deployed = {name: table["Properties"][name] for name in TABLE_SCHEMA}
        # CloudFormation has no StreamEnabled: to name a stream is to enable it.
        deployed["StreamSpecification"] = {"StreamEnabled": True, **deployed["StreamSpecification"]}
        assert _unordered(deployed) == _unordered(TABLE_SCHEMA)


def _unordered(value: Any) -> Any:
    """The value with its lists sorted: in a schema their order says nothing."""
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return sorted((_unordered(item) for item in value), key=repr)
    return value


class TestFunctions:
    def test_are_these(self, template: dict[str, Any]) -> None:
        """What is promised here of each function is promised of all."""
        assert set(of_type(template, "AWS::Serverless::Function")) == set(FUNCTIONS)

    def test_answer_before_the_api_gives_up(self, function: Resource) -> None:
        """A request that takes too long is answered by the function, while the API still listens."""
        if _routes(function):
            assert function["Timeout"] < API_TIMEOUT_SECONDS

    def test_get_payload_2_0(self, function: Resource) -> None:
        """Every route of a function has the one payload that it reads."""
        events = [event for event in function["Events"].values() if event["Type"] == "HttpApi"]
        assert {event["Properties"]["PayloadFormatVersion"] for event in events} <= {"2.0"}

    def test_are_built_for_the_processor_they_run_on(
        self, template: dict[str, Any], name: str, function: Resource
    ) -> None:
        """One parameter says the processor to Lambda and to the build, and each of its values has its Makefile."""
        assert function["Architectures"] == [{"Ref": "Architecture"}]
        metadata = template["Resources"][name]["Metadata"]
        assert metadata == {"BuildMethod": "makefile", "ContextPath": {"Fn::Sub": "platforms/${Architecture}"}}
        for processor in template["Parameters"]["Architecture"]["AllowedValues"]:
            makefile = ROOT / "platforms" / processor / "Makefile"
            assert f"ARCH := {processor}\n" in makefile.read_text()

    def test_log_as_json_into_groups_of_their_own(self, template: dict[str, Any]) -> None:
        """Every function's lines are JSON, each function's in another log group of the template."""
        logging = [function["LoggingConfig"] for function in functions_of(template)]
        assert {config["LogFormat"] for config in logging} == {"JSON"}
        groups = {config["LogGroup"]["Ref"] for config in logging}
        assert groups <= set(of_type(template, "AWS::Logs::LogGroup"))
        assert len(groups) == len(FUNCTIONS)

    def test_have_roles_of_their_own(self, template: dict[str, Any]) -> None:
        """No function has what another one was allowed."""
        roles = {function["Role"]["Fn::GetAtt"] for function in functions_of(template)}
        assert len(roles) == len(FUNCTIONS)

    def test_know_the_table(self, function: Resource) -> None:
        """Every function is told the table, and all log as one service: the stack, of which there may be several."""
        variables = function["Environment"]["Variables"]
        assert variables["TABLE_NAME"] == {"Ref": "Table"}
        assert variables["POWERTOOLS_SERVICE_NAME"] == {"Ref": "AWS::StackName"}


OF_NO_VERSION = ("DeploymentPreference", "ReservedConcurrentExecutions", "Tags")
"""What a function has, and its versions have not."""


class TestVersions:
    """The API calls an alias, and so what was published; SnapStart makes its snapshots of that alone."""

    @pytest.mark.parametrize("name", ["ChatFunction", "SessionsFunction"], indirect=True)
    def test_are_what_the_api_calls(self, function: Resource) -> None:
        """The functions behind the API are released by one alias, for whatever changes, and leave no version behind."""
        assert function["AutoPublishAlias"] == "live"
        assert function["AutoPublishAliasAllProperties"] is True
        assert function["VersionDeletionPolicy"] == "Delete"

    def test_start_from_a_snapshot_where_starting_takes_long(self, template: dict[str, Any]) -> None:
        """SnapStart is on for the function that imports LlamaIndex. It is for Zip packages of Python 3.12 and later."""
        snapshots = [name for name in FUNCTIONS if "SnapStart" in template["Resources"][name]["Properties"]]
        assert snapshots == ["ChatFunction"]
        function = template["Resources"]["ChatFunction"]["Properties"]
        assert function["SnapStart"] == {"ApplyOn": "PublishedVersions"}
        assert function.get("PackageType", "Zip") == "Zip"
        assert int(function["Runtime"].removeprefix("python3.")) >= 12

    @pytest.mark.parametrize("name", ["ChatFunction", "SessionsFunction"], indirect=True)
    @pytest.mark.parametrize("mode", ["token", "jwt"], indirect=True)
    def test_are_published_for_every_parameter_that_a_function_has(
        self, template: dict[str, Any], name: str, mode: str
    ) -> None:
        """The description of a version differs exactly where the function does: else a new value would reach nobody."""

        def published(**given: str) -> tuple[str, Resource]:
            """A version's description, and what else it takes along of the function."""
            properties = render(template, **{"IdentityMode": mode} | given)["Resources"][name]["Properties"]
            return properties.pop("VersionDescription"), {
                key: value for key, value in properties.items() if key not in OF_NO_VERSION
            }

        before = published()
        for parameter in template["Parameters"]:
            after = published(**{parameter: _another(template, parameter)})
            assert (after[0] != before[0]) == (after[1] != before[1]), parameter

    def test_have_descriptions_that_lambda_takes(self, template: dict[str, Any]) -> None:
        """With three secrets, another server, two origins and the headers of tracing it fits into a description."""
        origins = ",".join(f"https://{name}.example.com" for name in ("www", "admin"))
        function = render(
            template,
            SigningSecretArn=f"{SECRET}-of-the-production-service-a1b2c3",
            OpenAiKeySecretArn=f"{KEY}-of-the-production-service-a1b2c3",
            OriginSecretArn=f"{ORIGIN}-a1b2c3",
            OpenAiApiBase="https://models.internal.example.com/v1",
            CorsOrigins=origins,
            CorsHeaders="traceparent,baggage,sentry-trace",
        )["Resources"]["ChatFunction"]["Properties"]
        assert len(function["VersionDescription"]) <= 256


def _another(template: dict[str, Any], parameter: str) -> str:
    """Another value of a parameter than it has."""
    known = template["Parameters"][parameter]
    if parameter == "OpenAiKeySecretArn":
        return f"{KEY}-2"
    if parameter in ("SigningSecretArn", "OriginSecretArn"):
        return SECRET
    others = [value for value in known.get("AllowedValues", ["1234"]) if str(value) != str(known.get("Default"))]
    return str(others[-1])


class TestChatFunction:
    def test_is_reached_where_an_agent_answers(self, chat: Resource) -> None:
        """The two routes on which the agent answers are the ways in."""
        assert _routes(chat) == {"POST /chat", "POST /sessions/{id}/turns/{n}/regenerate"}

    def test_gets_its_secrets_from_secrets_manager(self, template: dict[str, Any], chat: Resource) -> None:
        """No parameter, and so no variable of the function, can hold a secret: only the ARN of one."""
        secrets = {name: value for name, value in template["Parameters"].items() if "Secret" in name or "Key" in name}
        assert set(secrets) == {"OpenAiKeySecretArn", "SigningSecretArn", "OriginSecretArn"}
        assert all(":secretsmanager:" in parameter["AllowedPattern"] for parameter in secrets.values())
        variables = chat["Environment"]["Variables"]
        assert variables["OPENAI_API_KEY_SECRET"] == {"Ref": "OpenAiKeySecretArn"}
        assert _variables(render(template))["SIGNING_SECRET_ARN"] == {"Ref": "SigningSecret"}
        assert _variables(render(template, SigningSecretArn=SECRET))["SIGNING_SECRET_ARN"] == SECRET
        assert "OPENAI_API_KEY" not in variables
        assert "resolve:" not in TEMPLATE.read_text()  # CloudFormation would put the plain value into the variable


class TestSessionsFunction:
    def test_is_reached_by_the_routes_of_sessions(self, sessions: Resource) -> None:
        """Every route that needs no agent leads here."""
        assert _routes(sessions) == {
            "GET /openapi.json",
            "GET /sessions",
            "POST /sessions",
            "DELETE /sessions",
            "GET /sessions/{id}",
            "PATCH /sessions/{id}",
            "DELETE /sessions/{id}",
            "GET /sessions/{id}/turns",
            "GET /sessions/{id}/export",
            "POST /sessions/{id}/fork",
        }

    def test_is_told_what_the_chat_function_is_told(self, deployed: dict[str, Any]) -> None:
        """Both functions know the same callers, limits and days; what is the model's, the sessions function lacks."""
        chat = _variables(deployed)
        others = {name: value for name, value in chat.items() if not name.startswith("OPENAI_")}
        assert others != chat
        assert _variables(deployed, "SessionsFunction") == others


def _key(sk: str) -> dict[str, Any]:
    """The key of an item, as a stream has it."""
    return {"pk": {"S": "SESSION#ada#default"}, "sk": {"S": sk}}


class TestSweepFunction:
    def test_is_reached_by_the_stream_alone(self, sweep: Resource) -> None:
        """No caller of the API reaches it: it reads the table's stream, from its oldest record on."""
        (event,) = sweep["Events"].values()
        assert event["Type"] == "DynamoDB"
        assert event["Properties"]["Stream"] == {"Fn::GetAtt": "Table.StreamArn"}
        assert event["Properties"]["StartingPosition"] == "TRIM_HORIZON"

    def test_is_told_the_table_alone(self, sweep: Resource) -> None:
        """It needs no setting of the callers or of the model."""
        assert set(sweep["Environment"]["Variables"]) == {"TABLE_NAME", "POWERTOOLS_SERVICE_NAME"}

    @pytest.mark.parametrize(
        "record",
        [
            {"eventName": "MODIFY", "dynamodb": {"Keys": _key(STATE_KEY), "NewImage": {"deleted_at": {"N": "1"}}}},
            {"eventName": "REMOVE", "dynamodb": {"Keys": _key(STATE_KEY)}},
        ],
        ids=["marked", "removed"],
    )
    def test_gets_deletions(self, sweep: Resource, record: dict[str, Any]) -> None:
        """A session that was marked as deleted or whose state is gone comes to the function."""
        assert _passes(sweep, record)

    @pytest.mark.parametrize(
        "record",
        [
            {"eventName": "INSERT", "dynamodb": {"Keys": _key(STATE_KEY), "NewImage": {"owner": {"S": "ada"}}}},
            {"eventName": "MODIFY", "dynamodb": {"Keys": _key(STATE_KEY), "NewImage": {"owner": {"S": "ada"}}}},
            {
                "eventName": "INSERT",
                "dynamodb": {"Keys": _key(f"{TURN_PREFIX}1"), "NewImage": {"deleted_at": {"N": "1"}}},
            },
            {"eventName": "REMOVE", "dynamodb": {"Keys": _key(f"{TURN_PREFIX}1")}},
        ],
        ids=["new", "changed", "turn", "turn removed"],
    )
    def test_gets_nothing_else(self, sweep: Resource, record: dict[str, Any]) -> None:
        """Turns, and sessions that live, cost no call of the function; neither does a turn that it removed."""
        assert not _passes(sweep, record)

    def test_repeats_what_failed_and_not_what_succeeded(self, sweep: Resource) -> None:
        """The function names the records that failed; a batch that fails as a whole is halved, and given up in time."""
        properties = _mapping(sweep)
        assert properties["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert properties["BisectBatchOnFunctionError"] is True
        assert 1 <= properties["MaximumRetryAttempts"] <= 20
        assert properties["BatchSize"] == 100

    def test_loses_no_failure(self, template: dict[str, Any], sweep: Resource) -> None:
        """What could not be removed is in an encrypted queue, for as long as a queue keeps anything."""
        assert _mapping(sweep)["DestinationConfig"] == {
            "OnFailure": {"Type": "SQS", "Destination": {"Fn::GetAtt": "SweepFailures.Arn"}}
        }
        queue = template["Resources"]["SweepFailures"]["Properties"]
        assert queue["SqsManagedSseEnabled"] is True
        assert queue["MessageRetentionPeriod"] == 14 * 24 * 3600


def _mapping(sweep: Resource) -> dict[str, Any]:
    (event,) = sweep["Events"].values()
    return event["Properties"]


def _passes(sweep: Resource, record: dict[str, Any]) -> bool:
    """Whether the stream's record gets to the function: in AWS, and on one machine, where the filters are the same."""
    filters = _mapping(sweep)["FilterCriteria"]["Filters"]
    assert [json.loads(each["Pattern"]) for each in filters] == list(stream.FILTERS)
    return stream.passes(record)


def _routes(function: Resource) -> set[str]:
    """The routes that lead to the function."""
    events = [event["Properties"] for event in function["Events"].values() if event["Type"] == "HttpApi"]
    return {f"{event['Method']} {event['Path']}" for event in events}


class TestPermissions:
    def test_name_each_action(self, statements: list[dict[str, Any]]) -> None:
        """No statement allows an action that it does not name."""
        assert [action for statement in statements for action in as_list(statement["Action"]) if "*" in action] == []
        assert [statement for statement in statements if "NotAction" in statement] == []

    def test_name_each_resource(self, template: dict[str, Any], statements: list[dict[str, Any]]) -> None:
        """Every statement is for the ARN of one thing: a resource of this template, or a secret named by parameter.

        But for traces: X-Ray has nothing that could be named.
        """
        for statement in statements:
            assert "NotResource" not in statement
            if _prefixes(statement) == {"xray"}:
                assert statement["Resource"] == "*"
                continue
            for resource in [branch for each in as_list(statement["Resource"]) for branch in branches(each)]:
                assert _referred_to(resource) in template["Resources"] or _is_secret(resource), statement["Sid"]

    def test_are_what_the_code_calls(self, template: dict[str, Any], name: str, function: Resource) -> None:
        """A function may do what its code calls, what brings it its events, and what its log and its traces need."""
        called = {f"dynamodb:{operation}" for operation in _operations_called(function["Handler"])}
        brought = {
            "HttpApi": set[str](),
            "DynamoDB": {
                *(
                    f"dynamodb:{action}"
                    for action in ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")
                ),
                "sqs:SendMessage",
            },
        }
        for event in function["Events"].values():
            called |= brought[event["Type"]]
        if name != "SweepFunction":  # which knows neither callers nor a model
            called.add("secretsmanager:GetSecretValue")
        called |= {"logs:CreateLogStream", "logs:PutLogEvents", "xray:PutTelemetryRecords", "xray:PutTraceSegments"}
        assert {action for each in _statements(template, name) for action in as_list(each["Action"])} == called

    def test_open_the_index_to_who_lists_or_counts(self, statements: list[dict[str, Any]], name: str) -> None:
        """The functions that answer callers may query the index; the sweeper need not."""
        index = [
            statement["Action"]
            for statement in statements
            if statement["Resource"] == {"Fn::Sub": f"${{Table.Arn}}/index/{memory.table.INDEX}"}
        ]
        assert index == ([] if name == "SweepFunction" else ["dynamodb:Query"])

    def test_open_the_stream_and_its_failures_to_the_sweep_function(
        self, statements: list[dict[str, Any]], name: str
    ) -> None:
        """The one function that is called by the stream may read it, and send what failed to the queue."""
        of = {str(statement["Resource"]): statement["Action"] for statement in statements}
        stream = of.get(str({"Fn::GetAtt": "Table.StreamArn"}))
        failures = of.get(str({"Fn::GetAtt": "SweepFailures.Arn"}))
        if name != "SweepFunction":
            assert (stream, failures) == (None, None)
            return
        reading = ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")
        assert stream == [f"dynamodb:{action}" for action in reading]
        assert failures == "sqs:SendMessage"

    def test_open_its_own_log_to_each_function(self, function: Resource, statements: list[dict[str, Any]]) -> None:
        """A function writes into its log group and no other."""
        (logs,) = [statement for statement in statements if _prefixes(statement) == {"logs"}]
        assert logs["Resource"] == {"Fn::GetAtt": f"{function['LoggingConfig']['LogGroup']['Ref']}.Arn"}
        assert logs["Action"] == ["logs:CreateLogStream", "logs:PutLogEvents"]

    def test_open_secrets_to_those_who_need_them(self, template: dict[str, Any]) -> None:
        """The chat function alone reads the OpenAI key; the signing secret is for the two that know callers by it."""
        for given, secret in (({}, {"Ref": "SigningSecret"}), ({"SigningSecretArn": SECRET}, SECRET)):
            deployed = render(template, **given)
            assert _secrets(deployed, "ChatFunction") == [KEY, secret]
            assert _secrets(deployed, "SessionsFunction") == [secret]
            assert _secrets(deployed, "SweepFunction") == []

    def test_open_the_origin_secret_to_whom_callers_reach(self, template: dict[str, Any], mode: str) -> None:
        """Both functions behind the API compare it, where it is named, in every mode; the sweep function never."""
        for given, more in (("", []), (ORIGIN, [ORIGIN])):
            deployed = render(template, IdentityMode=mode, OriginSecretArn=given, **MODES[mode])
            for name in ("ChatFunction", "SessionsFunction"):
                assert [secret for secret in _secrets(deployed, name) if secret == ORIGIN] == more
                assert _variables(deployed, name)["ORIGIN_SECRET_ARN"] == given
            assert _secrets(deployed, "SweepFunction") == []

    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "token"], indirect=True)
    def test_open_the_signing_secret_to_nobody_who_signs_nothing(self, template: dict[str, Any], mode: str) -> None:
        """Where an authorizer says who asks, the OpenAI key is the one secret, also when a signing secret is named."""
        for given in ("", SECRET):
            deployed = render(template, IdentityMode=mode, SigningSecretArn=given, **MODES[mode])
            assert [_secrets(deployed, name) for name in FUNCTIONS] == [[KEY], [], []]

    def test_say_for_what(self, deployed: dict[str, Any], name: str) -> None:
        """In no mode has a statement an empty list of resources, which IAM would refuse."""
        statements = _statements(deployed, name)
        assert statements
        assert all(as_list(statement["Resource"]) for statement in statements)

    def test_come_from_nowhere_else(self, template: dict[str, Any]) -> None:
        """No managed policy, and none that SAM would add, widens what the statements allow."""
        assert all("Policies" not in function for function in functions_of(template))
        assert all(
            "ManagedPolicyArns" not in role["Properties"] for role in of_type(template, "AWS::IAM::Role").values()
        )


def _operations_called(handler: str) -> set[str]:
    """DynamoDB's operations that a handler's code comes to, by the names of what it calls and what those call."""
    defined: dict[str, list[ast.AST]] = {}
    for file in ROOT.glob("memory/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                defined.setdefault(node.name, []).append(node)
    module = ROOT / f"{handler.removesuffix('.handler').replace('.', '/')}.py"
    files = [module, ROOT / "handlers" / "conversation.py"] if module.stem == "chat" else [module]
    waiting: list[ast.AST] = [ast.parse(file.read_text()) for file in files]
    known, operations = set[str](), set[str]()
    while waiting:
        for call in ast.walk(waiting.pop()):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name | ast.Attribute):
                continue
            name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
            if name == "_call" and isinstance(operation := call.args[0], ast.Constant):
                operations.add("".join(map(str.capitalize, str(operation.value).split("_"))))
            if name not in known:
                known.add(name)
                waiting += defined.get(name, [])
    return operations


def _statements(template: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What the function's role allows, also under a condition."""
    function = template["Resources"][name]["Properties"]
    role = template["Resources"][function["Role"]["Fn::GetAtt"].removesuffix(".Arn")]["Properties"]
    statements = [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]
    return [statement for each in statements for statement in branches(each)]


def _secrets(template: dict[str, Any], name: str) -> list[Any]:
    """The secrets that the function may read."""
    statements = [each for each in _statements(template, name) if _prefixes(each) == {"secretsmanager"}]
    assert all(statement["Action"] == "secretsmanager:GetSecretValue" for statement in statements)
    return [secret for statement in statements for secret in as_list(statement["Resource"])]


def _prefixes(statement: dict[str, Any]) -> set[str]:
    return {action.split(":")[0] for action in as_list(statement["Action"])}


def _is_secret(resource: Any) -> bool:
    return resource in ({"Ref": "OpenAiKeySecretArn"}, {"Ref": "SigningSecretArn"}, {"Ref": "OriginSecretArn"})


def _referred_to(resource: Any) -> str:
    """The name that an expression for a resource's ARN refers to; a text, a wildcard included, is none."""
    match resource:
        case {"Ref": str(name)}:
            return name
        case {"Fn::GetAtt": str(path)} if path.endswith((".Arn", ".StreamArn")):
            return path.split(".")[0]
        case {"Fn::Sub": str(text)} if found := re.fullmatch(r"\$\{(\w+)\.Arn\}/index/\w+", text):
            return found[1]
    pytest.fail(f"not the ARN of one thing: {resource!r}")


class TestLogs:
    def test_are_kept_for_a_time(self, template: dict[str, Any]) -> None:
        """Every log group forgets after the days of the parameter."""
        groups = of_type(template, "AWS::Logs::LogGroup")
        assert groups
        for group in groups.values():
            assert group["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}

    def test_cover_every_function_and_api(self, template: dict[str, Any]) -> None:
        """Nothing logs into a group that AWS makes, which would keep its lines for ever."""
        assert all("LogGroup" in function["LoggingConfig"] for function in functions_of(template))
        for api in of_type(template, "AWS::Serverless::HttpApi").values():
            group = api["Properties"]["AccessLogSettings"]["DestinationArn"]["Fn::GetAtt"].removesuffix(".Arn")
            assert group in of_type(template, "AWS::Logs::LogGroup")

    def test_hold_no_message(self, template: dict[str, Any]) -> None:
        """Access logs say that a request came and from which address, and nothing of its headers, body or claims."""
        for api in of_type(template, "AWS::Serverless::HttpApi").values():
            line = json.loads(api["Properties"]["AccessLogSettings"]["Format"])
            assert {value.removeprefix("$context.") for value in line.values()} == {
                *("requestId", "requestTime", "identity.sourceIp", "httpMethod", "path", "status"),
                *("responseLength", "responseLatency", "integrationErrorMessage"),
            }


def _variables(template: dict[str, Any], name: str = "ChatFunction") -> dict[str, Any]:
    return template["Resources"][name]["Properties"]["Environment"]["Variables"]


class TestSigningSecret:
    def test_is_made_unless_it_is_given(self, template: dict[str, Any]) -> None:
        """Without a parameter the template makes a random secret; with one it makes none."""
        assert of_type(render(template, SigningSecretArn=SECRET), "AWS::SecretsManager::Secret") == {}
        (secret,) = of_type(render(template), "AWS::SecretsManager::Secret").values()
        assert secret["Properties"]["GenerateSecretString"]["PasswordLength"] >= 32

    def test_has_a_name_of_its_stack_alone(self, template: dict[str, Any]) -> None:
        """Rights of a stage go by the stack's name; and the secret of a stack that was deleted has another name."""
        secret = template["Resources"]["SigningSecret"]["Properties"]
        identity = {"Fn::Select": [2, {"Fn::Split": ["/", {"Ref": "AWS::StackId"}]}]}
        assert secret["Name"] == {"Fn::Join": ["-", [{"Ref": "AWS::StackName"}, "signing", identity]]}

    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "token"], indirect=True)
    def test_is_of_mode_token_alone(self, template: dict[str, Any], mode: str) -> None:
        """Where an authorizer says who asks, no secret is made, and the function is told of none."""
        for given in ("", SECRET):
            deployed = render(template, IdentityMode=mode, SigningSecretArn=given, **MODES[mode])
            assert of_type(deployed, "AWS::SecretsManager::Secret") == {}
            assert _variables(deployed)["SIGNING_SECRET_ARN"] == ""

    def test_outlives_the_stack_as_the_table_does(self, template: dict[str, Any], table: Resource) -> None:
        """Whoever keeps the conversations keeps what proves whose they are."""
        secret = template["Resources"]["SigningSecret"]
        assert (secret["DeletionPolicy"], secret["UpdateReplacePolicy"]) == (
            table["DeletionPolicy"],
            table["UpdateReplacePolicy"],
        )


class TestEnvironment:
    def test_names_settings_alone(self, template: dict[str, Any]) -> None:
        """Every variable of a function is one that its code reads, or Powertools does."""
        known = {name.upper() for name in Settings.model_fields} | {"POWERTOOLS_SERVICE_NAME"}
        for function in functions_of(template):
            assert set(function["Environment"]["Variables"]) <= known


class TestIdentityModes:
    def test_are_the_sources_of_the_function(self, template: dict[str, Any]) -> None:
        """Every identity source that an HTTP API can prove is offered, none that it cannot; the default is `token`."""
        parameter = template["Parameters"]["IdentityMode"]
        unproven = {"cognito", "header"}  # of REST APIs, and the client's own word
        assert set(parameter["AllowedValues"]) == set(MODES) == set(get_args(IdentitySource)) - unproven
        assert parameter["Default"] == "token"

    def test_tell_the_function_whom_to_believe(self, deployed: dict[str, Any], mode: str) -> None:
        """The functions believe the mode's source and no other."""
        assert _variables(deployed)["IDENTITY_SOURCES"] == mode

    def test_tell_the_function_which_claim_to_believe(self, template: dict[str, Any]) -> None:
        """The owner is the claim of the parameter; its default is the setting's own."""
        default = Settings.model_fields["identity_claim"].default
        assert _variables(render(template))["IDENTITY_CLAIM"] == default
        assert _variables(render(template, IdentityClaim="email"))["IDENTITY_CLAIM"] == "email"

    def test_have_one_authorizer_each(self, deployed: dict[str, Any], mode: str) -> None:
        """The API has the authorizer of the mode and no other; in mode token it has none."""
        schemes = {"token": [], "jwt": ["jwt"], "lambda": ["lambda"], "iam": ["AWS_IAM"]}[mode]
        for api in of_type(deployed, "AWS::Serverless::HttpApi").values():
            assert "Auth" not in api["Properties"]
            assert list(api["Properties"]["DefinitionBody"]["components"]["securitySchemes"]) == schemes

    def test_let_nobody_past_the_authorizer(self, deployed: dict[str, Any], mode: str) -> None:
        """Every route of the mode asks for its authorizer; in mode token the function alone decides."""
        security = {"token": [], "jwt": [{"jwt": []}], "lambda": [{"lambda": []}], "iam": [{"AWS_IAM": []}]}[mode]
        operations = list(_operations(deployed))
        assert operations
        assert [operation["security"] for _, operation in operations] == [security] * len(operations)

    def test_know_every_route(self, template: dict[str, Any]) -> None:
        """No function is reached by a way that the API's definition, and so its authorizer, does not know."""
        events = [event for function in functions_of(template) for event in function["Events"].values()]
        assert {event["Type"] for event in events} == {"HttpApi", "DynamoDB"}
        assert all("Auth" not in event["Properties"] for event in events)
        routes = [route for function in functions_of(template) for route in _routes(function)]
        assert sorted(routes) == sorted(f"{method.upper()} {path}" for (path, method), _ in _operations(template))
        assert all("FunctionUrlConfig" not in function for function in functions_of(template))
        assert of_type(template, "AWS::Lambda::Url") == {}

    def test_send_each_route_to_the_function_that_has_it(self, template: dict[str, Any]) -> None:
        """AWS and the local gateway agree on which function answers a route, and that function has it."""
        routes = {
            f"{function['Handler']}": {tuple(route.split(" ", 1)) for route in _routes(function)}
            for function in functions_of(template)
        }
        modules = {"handlers.chat.handler": chat_module, "handlers.sessions.handler": sessions_module}
        for handler, module in modules.items():
            assert routes[handler] == set(module.front.routes)
            assert {function_for(*route).replace(":", ".") for route in routes[handler]} == {handler}
        assert routes.keys() - modules.keys() == {"handlers.sweep.handler"}

    def test_jwt_is_for_one_issuer_and_its_audiences(self, template: dict[str, Any]) -> None:
        """A token is let in that the issuer made for one of the audiences."""
        authorizer = _schemes(render(template, IdentityMode="jwt", **MODES["jwt"]))["jwt"]
        assert authorizer["x-amazon-apigateway-authorizer"] == {
            "type": "jwt",
            "identitySource": "$request.header.Authorization",
            "jwtConfiguration": {"issuer": "https://login.example.com/", "audience": ["chat", "admin"]},
        }

    def test_lambda_asks_the_function_about_every_request(self, template: dict[str, Any]) -> None:
        """The authorizer function gets every request that has the header, as payload 2.0, and no answer is kept."""
        authorizer = _schemes(render(template, IdentityMode="lambda", **MODES["lambda"]))["lambda"]
        properties = authorizer["x-amazon-apigateway-authorizer"]
        uri = properties.pop("authorizerUri")["Fn::Sub"]
        assert uri.endswith(f":lambda:path/2015-03-31/functions/{AUTHORIZER}/invocations")
        assert properties == {
            "type": "request",
            "identitySource": ["$request.header.Authorization"],
            "authorizerPayloadFormatVersion": "2.0",
            "enableSimpleResponses": False,
            "authorizerResultTtlInSeconds": 0,
        }

    def test_lambda_alone_opens_the_authorizer_function(self, deployed: dict[str, Any], mode: str) -> None:
        """In mode lambda this API's authorizers may call the function that is named; in the others nobody may."""
        permissions = [permission["Properties"] for permission in of_type(deployed, "AWS::Lambda::Permission").values()]
        if mode != "lambda":
            assert permissions == []
            return
        (permission,) = permissions
        assert permission.pop("SourceArn")["Fn::Sub"].endswith(":${Api}/authorizers/*")
        assert permission == {
            "FunctionName": AUTHORIZER,
            "Action": "lambda:InvokeFunction",
            "Principal": "apigateway.amazonaws.com",
        }

    def test_iam_checks_signatures(self, template: dict[str, Any]) -> None:
        """A request is let in that is signed by a principal of AWS."""
        (authorizer,) = _schemes(render(template, IdentityMode="iam")).values()
        assert authorizer["x-amazon-apigateway-authtype"] == "awsSigv4"

    def test_refer_to_nothing_that_is_not_there(self, deployed: dict[str, Any]) -> None:
        """What a mode leaves out, nothing in it refers to."""
        names = set(names_in(deployed))
        assert {"ChatRole", "SessionsRole", "SweepRole"} <= names
        assert {name for name in names if not name.startswith("AWS::")} <= set(deployed["Resources"])

    def test_are_deployed_when_complete(self, template: dict[str, Any], mode: str) -> None:
        """Each mode is deployed with what it needs."""
        assert refusals(template, IdentityMode=mode, **MODES[mode]) == []

    @pytest.mark.parametrize(("mode", "missing"), [(mode, name) for mode in MODES for name in MODES[mode]])
    def test_are_refused_when_incomplete(self, template: dict[str, Any], mode: str, missing: str) -> None:
        """A mode that lacks what it needs is not deployed, and the error names what is missing."""
        (refusal,) = refusals(template, IdentityMode=mode, **MODES[mode] | {missing: ""})
        assert f"IdentityMode {mode} needs {missing}" in refusal

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("IdentityMode", "none"),
            ("IdentityMode", "jwt,token"),
            ("JwtIssuer", "http://login.example.com/"),
            ("JwtAudience", "chat, admin"),
            ("JwtAudience", "chat,"),
            ("JwtAudience", ","),
            ("AuthorizerFunctionArn", "authorizer"),
            ("AuthorizerFunctionArn", KEY),
            ("IdentityClaim", ""),
            ("IdentityClaim", "the sub"),
        ],
    )
    def test_take_no_nonsense(self, template: dict[str, Any], name: str, value: str) -> None:
        """A value that no authorizer could work with is refused before anything is deployed."""
        assert name in refusals(template, **{name: value})


class TestRetention:
    def test_is_the_functions_own_by_default(self, template: dict[str, Any]) -> None:
        """Anonymous conversations go with their tokens, and nothing else expires unless somebody says when."""
        for name in ("ChatFunction", "SessionsFunction"):
            assert _variables(render(template), name)["RETENTION_DAYS"] == ""
            assert _variables(render(template, RetentionDays="30"), name)["RETENTION_DAYS"] == "30"

    @pytest.mark.parametrize("days", ["-1", "0", "1", "36500"])
    def test_is_a_number_of_days(self, template: dict[str, Any], days: str) -> None:
        """From none to a hundred years."""
        assert refusals(template, RetentionDays=days) == []

    @pytest.mark.parametrize("days", ["-2", "36501"])
    def test_takes_no_nonsense(self, template: dict[str, Any], days: str) -> None:
        """Other numbers are refused before anything is deployed."""
        assert refusals(template, RetentionDays=days) == ["RetentionDays"]


class TestLimits:
    def test_bound_what_one_caller_costs(self, template: dict[str, Any]) -> None:
        """A deployment that nobody thought about lets no caller take turns without end; another number is a choice."""
        assert str(_variables(render(template))["OWNER_TURNS_PER_HOUR"]) == "120"
        assert _variables(render(template, TurnsPerHour="0"))["OWNER_TURNS_PER_HOUR"] == "0"
        assert refusals(template, TurnsPerHour="-1") == ["TurnsPerHour"]


class TestCors:
    def test_is_off_by_default(self, deployed: dict[str, Any]) -> None:
        """Unless origins are named, the API answers no preflight, and the functions know of none."""
        assert "x-amazon-apigateway-cors" not in _definition(deployed)
        assert _variables(deployed)["CORS_ORIGINS"] == ""

    def test_lets_in_the_origins_that_are_named(self, template: dict[str, Any], mode: str) -> None:
        """In every mode the pages of these origins, and no others, may call what there is and read what it answers."""
        origins = "https://app.example.com,http://localhost:5173"
        deployed = render(template, IdentityMode=mode, CorsOrigins=origins, **MODES[mode])
        assert _definition(deployed)["x-amazon-apigateway-cors"] == {
            "allowOrigins": ["https://app.example.com", "http://localhost:5173"],
            "allowMethods": ["GET", "POST", "PATCH", "DELETE"],
            "allowHeaders": ["authorization", "content-type", "idempotency-key", "x-session-id", "x-session-token"],
            "exposeHeaders": ["x-session-token", "idempotent-replayed", "retry-after", "x-next-cursor"],
            "maxAge": 600,
        }
        assert _variables(deployed)["CORS_ORIGINS"] == origins

    def test_allows_further_headers(self, template: dict[str, Any]) -> None:
        """Those that a deployment names come after those that the API reads; the functions hear of them too."""
        headers = "traceparent,baggage,sentry-trace"
        deployed = render(template, CorsOrigins="https://example.com", CorsHeaders=headers)
        allowed = _definition(deployed)["x-amazon-apigateway-cors"]["allowHeaders"]
        assert allowed[-4:] == ["x-session-token", "traceparent", "baggage", "sentry-trace"]
        for name in ("ChatFunction", "SessionsFunction"):
            assert _variables(deployed, name)["CORS_HEADERS"] == headers

    @pytest.mark.parametrize("headers", ["*", "trace parent", "traceparent, baggage", "traceparent,", "a:b"])
    def test_takes_no_nonsense_for_headers(self, template: dict[str, Any], headers: str) -> None:
        """What is not the name of a header is refused before anything is deployed."""
        assert refusals(template, CorsHeaders=headers) == ["CorsHeaders"]

    def test_allows_the_methods_that_there_are(self, template: dict[str, Any]) -> None:
        """No route is out of a page's reach, and no method is allowed that no route has."""
        cors = _definition(render(template, CorsOrigins="https://example.com"))["x-amazon-apigateway-cors"]
        assert set(cors["allowMethods"]) == {method.upper() for (_, method), _ in _operations(template)}

    @pytest.mark.parametrize(
        "origins",
        [
            "*",
            "https://*.example.com",
            "example.com",
            "https://example.com/",
            "https://example.com/app",
            "https://a.example.com, https://b.example.com",
            "https://example.com,",
            "https://Example.com",
            "https://example.com:port",
            "null",
        ],
    )
    def test_takes_no_nonsense(self, template: dict[str, Any], origins: str) -> None:
        """What no browser sends as an origin, and what would let in all, is refused before anything is deployed."""
        assert refusals(template, CorsOrigins=origins) == ["CorsOrigins"]


class TestBuild:
    @pytest.mark.parametrize(
        ("name", "lock"),
        [
            ("ChatFunction", "requirements.txt"),
            ("SessionsFunction", "requirements-sessions.txt"),
            ("SweepFunction", "requirements-sessions.txt"),
        ],
    )
    def test_ships_the_lock_of_the_function(self, name: str, lock: str) -> None:
        """`make build-...` installs the packages of this lock."""
        makefile = (ROOT / "Makefile").read_text()
        assert re.findall(rf"^build-(?:.* build-)?{name}\b.*: LOCK := (.+)$", makefile, re.MULTILINE) == [lock]

    def test_ships_no_llamaindex_where_no_agent_answers(self) -> None:
        """The sessions and sweep functions start without LlamaIndex."""
        assert any(package.startswith("llama-index") for package in _locked("requirements.txt"))
        assert not any(package.startswith("llama-index") for package in _locked("requirements-sessions.txt"))

    def test_ships_one_version_of_everything(self) -> None:
        """What two functions import, both import in the same version."""
        assert _locked("requirements-sessions.txt").items() <= _locked("requirements.txt").items()

    def test_asks_for_the_same_versions(self) -> None:
        """The group `sessions` is a part of what the project depends on, with the same bounds."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        assert set(project["dependency-groups"]["sessions"]) < set(project["project"]["dependencies"])


def _locked(name: str) -> dict[str, str]:
    """The packages of a lock file and their versions."""
    return dict(re.findall(r"^([\w.-]+(?:\[.*\])?)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def _definition(template: dict[str, Any]) -> dict[str, Any]:
    return template["Resources"]["Api"]["Properties"]["DefinitionBody"]


def _operations(template: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Resource]]:
    """Path and method, and what the API's definition says of them."""
    for api in of_type(template, "AWS::Serverless::HttpApi").values():
        for path, methods in api["Properties"]["DefinitionBody"]["paths"].items():
            for method, operation in methods.items():
                yield (path, method), operation


def _schemes(template: dict[str, Any]) -> dict[str, Any]:
    return _definition(template)["components"]["securitySchemes"]
