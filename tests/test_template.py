"""What template.yaml promises, read from the file itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import memory.table
from handlers.settings import IdentitySource
from memory.table import TABLE_SCHEMA

TEMPLATE = Path(__file__).parent.parent / "template.yaml"
API_TIMEOUT_SECONDS = 30  # API Gateway's, for HTTP APIs; it cannot be raised

Resource = dict[str, Any]

KEY = "arn:aws:secretsmanager:us-east-1:123456789012:secret:openai-key"
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:signing"
AUTHORIZER = "arn:aws:lambda:us-east-1:123456789012:function:authorizer"
MODES: dict[str, dict[str, str]] = {
    "token": {},
    "jwt": {"JwtIssuer": "https://login.example.com/", "JwtAudience": "chat,admin"},
    "lambda": {"AuthorizerFunctionArn": AUTHORIZER},
    "iam": {},
}
"""What each identity mode is deployed with, beside its name and the OpenAI key."""


class CloudFormationLoader(yaml.SafeLoader):
    """Reads `!GetAtt Table.Arn` as `{"Fn::GetAtt": "Table.Arn"}`, and so every short form of a function."""


def _function(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.MappingNode):
        argument: Any = loader.construct_mapping(node, deep=True)
    elif isinstance(node, yaml.SequenceNode):
        argument = loader.construct_sequence(node, deep=True)
    else:
        argument = loader.construct_scalar(node)
    return {name if name in {"Ref", "Condition"} else f"Fn::{name}": argument}


CloudFormationLoader.add_multi_constructor("!", _function)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return yaml.load(TEMPLATE.read_text(), Loader=CloudFormationLoader)  # noqa: S506 - it is a SafeLoader


@pytest.fixture
def table(template: dict[str, Any]) -> Resource:
    (table,) = of_type(template, "AWS::DynamoDB::Table").values()
    return table


@pytest.fixture
def chat(template: dict[str, Any]) -> Resource:
    return template["Resources"]["ChatFunction"]["Properties"]


@pytest.fixture
def statements(template: dict[str, Any], chat: Resource) -> list[dict[str, Any]]:
    """What the chat function's role allows."""
    role = template["Resources"][chat["Role"]["Fn::GetAtt"].removesuffix(".Arn")]["Properties"]
    return [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def deployed(template: dict[str, Any], mode: str) -> dict[str, Any]:
    """The template as it is deployed in the mode."""
    return render(template, IdentityMode=mode, **MODES[mode])


# ---- CloudFormation's part: parameters, conditions and rules ---------------------------------------------------------

NO_VALUE = object()


def render(template: dict[str, Any], **given: str) -> dict[str, Any]:
    """Resources and outputs for these parameters: conditions are decided, and what they leave out is gone."""
    parameters = _parameters(template, given)
    conditions = template["Conditions"]
    resources = {
        name: {key: value for key, value in resource.items() if key != "Condition"}
        for name, resource in template["Resources"].items()
        if "Condition" not in resource or _evaluate({"Condition": resource["Condition"]}, parameters, conditions)
    }
    return _evaluate({"Resources": resources, "Outputs": template["Outputs"]}, parameters, conditions)


def refusals(template: dict[str, Any], **given: str) -> list[str]:
    """Why CloudFormation would not deploy the template with these parameters: the names and texts of what fails."""
    parameters = _parameters(template, given)
    faults = [
        name
        for name, value in parameters.items()
        if value not in template["Parameters"][name].get("AllowedValues", [value])
        or not re.fullmatch(template["Parameters"][name].get("AllowedPattern", "(?s:.*)"), str(value))
    ]
    for rule in template["Rules"].values():
        if _evaluate(rule["RuleCondition"], parameters, {}):
            faults += [
                assertion["AssertDescription"]
                for assertion in rule["Assertions"]
                if not _evaluate(assertion["Assert"], parameters, {})
            ]
    return faults


def _parameters(template: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    given = {"OpenAiKeySecretArn": KEY} | given
    assert set(given) <= set(template["Parameters"])
    defaults = {name: parameter["Default"] for name, parameter in template["Parameters"].items() if name not in given}
    return defaults | given


def _evaluate(value: Any, parameters: dict[str, Any], conditions: dict[str, Any]) -> Any:
    """The value with its functions applied; those of what only AWS knows, a resource's ARN for one, stay."""

    def of(inner: Any) -> Any:
        return _evaluate(inner, parameters, conditions)

    match value:
        case list():
            return [item for item in map(of, value) if item is not NO_VALUE]
        case dict() if len(value) != 1:
            return {key: item for key, item in ((key, of(item)) for key, item in value.items()) if item is not NO_VALUE}
        case {"Ref": "AWS::NoValue"}:
            return NO_VALUE
        case {"Ref": str(name)}:
            return parameters.get(name, value)
        case {"Condition": str(name)}:
            return of(conditions[name])
        case {"Fn::If": [str(name), yes, no]}:
            return of(yes if of(conditions[name]) else no)
        case {"Fn::Equals": [left, right]}:
            return of(left) == of(right)
        case {"Fn::Not": [condition]}:
            return not of(condition)
        case {"Fn::And": list(operands)}:
            return all(map(of, operands))
        case {"Fn::Or": list(operands)}:
            return any(map(of, operands))
        case {"Fn::Split": [str(separator), text]}:
            return of(text).split(separator)
        case {"Fn::Sub": str(text)}:
            return {"Fn::Sub": re.sub(r"\$\{(\w+)\}", lambda found: str(parameters.get(found[1], found[0])), text)}
        case {"Fn::GetAtt": str()}:
            return value
        case dict():
            ((key, item),) = value.items()
            assert not key.startswith("Fn::"), f"{key} is not known here"
            inner = of(item)
            return {} if inner is NO_VALUE else {key: inner}
    return value


def of_type(template: dict[str, Any], kind: str) -> dict[str, Resource]:
    return {name: resource for name, resource in template["Resources"].items() if resource["Type"] == kind}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
        """Neither deleting the stack nor replacing the table deletes a conversation."""
        assert (table["DeletionPolicy"], table["UpdateReplacePolicy"]) == ("Retain", "Retain")

    def test_has_the_keys_of_the_turn_log(self, table: Resource) -> None:
        """The deployed table has the keys and the index of the one that the tests and `make run` create."""
        deployed = {name: table["Properties"][name] for name in TABLE_SCHEMA}
        assert _unordered(deployed) == _unordered(TABLE_SCHEMA)


def _unordered(value: Any) -> Any:
    """The value with its lists sorted: in a schema their order says nothing."""
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return sorted((_unordered(item) for item in value), key=repr)
    return value


class TestChatFunction:
    def test_answers_before_the_api_gives_up(self, chat: Resource) -> None:
        """A request that takes too long is answered by the function, while the API still listens."""
        assert chat["Timeout"] < API_TIMEOUT_SECONDS

    def test_is_reached_by_post_chat(self, chat: Resource) -> None:
        """`POST /chat`, as payload version 2.0, is the one way in."""
        (event,) = chat["Events"].values()
        properties = event["Properties"]
        assert event["Type"] == "HttpApi"
        assert (properties["Method"], properties["Path"]) == ("POST", "/chat")
        assert properties["PayloadFormatVersion"] == "2.0"

    def test_gets_its_secrets_from_secrets_manager(self, template: dict[str, Any], chat: Resource) -> None:
        """No parameter, and so no variable of the function, can hold a secret: only the ARN of one."""
        secrets = {name: value for name, value in template["Parameters"].items() if "Secret" in name or "Key" in name}
        assert set(secrets) == {"OpenAiKeySecretArn", "SigningSecretArn"}
        assert all(":secretsmanager:" in parameter["AllowedPattern"] for parameter in secrets.values())
        variables = chat["Environment"]["Variables"]
        assert variables["OPENAI_API_KEY_SECRET"] == {"Ref": "OpenAiKeySecretArn"}
        assert _variables(render(template))["SIGNING_SECRET_ARN"] == {"Ref": "SigningSecret"}
        assert _variables(render(template, SigningSecretArn=SECRET))["SIGNING_SECRET_ARN"] == SECRET
        assert "OPENAI_API_KEY" not in variables
        assert "resolve:" not in TEMPLATE.read_text()  # CloudFormation would put the plain value into the variable

    def test_is_built_for_the_processor_it_runs_on(self, template: dict[str, Any], chat: Resource) -> None:
        """One parameter says the processor to Lambda and to the build, and each of its values has its Makefile."""
        assert chat["Architectures"] == [{"Ref": "Architecture"}]
        metadata = template["Resources"]["ChatFunction"]["Metadata"]
        assert metadata == {"BuildMethod": "makefile", "ContextPath": {"Fn::Sub": "platforms/${Architecture}"}}
        for processor in template["Parameters"]["Architecture"]["AllowedValues"]:
            makefile = TEMPLATE.parent / "platforms" / processor / "Makefile"
            assert f"ARCH := {processor}\n" in makefile.read_text()

    def test_logs_as_json_into_its_own_group(self, template: dict[str, Any], chat: Resource) -> None:
        """The function's lines are JSON, in a log group of the template."""
        logging = chat["LoggingConfig"]
        assert logging["LogFormat"] == "JSON"
        assert logging["LogGroup"]["Ref"] in of_type(template, "AWS::Logs::LogGroup")


class TestPermissions:
    def test_name_each_action(self, statements: list[dict[str, Any]]) -> None:
        """No statement allows an action that it does not name."""
        assert [action for statement in statements for action in as_list(statement["Action"]) if "*" in action] == []
        assert [statement for statement in statements if "NotAction" in statement] == []

    def test_name_each_resource(self, template: dict[str, Any], statements: list[dict[str, Any]]) -> None:
        """Every statement is for the ARN of one thing: a resource of this template, or a secret named by parameter."""
        for statement in statements:
            assert "NotResource" not in statement
            for resource in as_list(statement["Resource"]):
                for name in _referred_to(resource):
                    assert name in template["Resources"] or name.endswith("SecretArn"), statement["Sid"]

    def test_are_those_of_the_turn(self, statements: list[dict[str, Any]]) -> None:
        """The table's operations are allowed that `memory.table` calls, and no other."""
        (table,) = [statement for statement in statements if _prefixes(statement) == {"dynamodb"}]
        assert table["Resource"] == {"Fn::GetAtt": "Table.Arn"}
        called = set(re.findall(r'_call\(\s*"(\w+)"', Path(memory.table.__file__).read_text()))
        operations = {"".join(map(str.capitalize, name.split("_"))) for name in called}
        assert set(table["Action"]) == {f"dynamodb:{operation}" for operation in operations}

    def test_open_two_secrets(self, template: dict[str, Any]) -> None:
        """The function reads the OpenAI key and the signing secret, and no other secret."""
        assert _secrets(render(template)) == [KEY, {"Ref": "SigningSecret"}]
        assert _secrets(render(template, SigningSecretArn=SECRET)) == [KEY, SECRET]

    @pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "token"], indirect=True)
    def test_open_the_signing_secret_to_nobody_who_signs_nothing(self, template: dict[str, Any], mode: str) -> None:
        """Where an authorizer says who asks, the OpenAI key is the one secret, also when a signing secret is named."""
        parameters = MODES[mode] | {"IdentityMode": mode}
        assert _secrets(render(template, **parameters)) == [KEY]
        assert _secrets(render(template, **parameters, SigningSecretArn=SECRET)) == [KEY]

    def test_come_from_nowhere_else(self, template: dict[str, Any], chat: Resource) -> None:
        """No managed policy, and none that SAM would add, widens what the statements allow."""
        assert "Policies" not in chat
        assert all(
            "ManagedPolicyArns" not in role["Properties"] for role in of_type(template, "AWS::IAM::Role").values()
        )


def _statements(template: dict[str, Any]) -> list[dict[str, Any]]:
    """What the roles of the template allow."""
    return [
        statement
        for role in of_type(template, "AWS::IAM::Role").values()
        for policy in role["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def _secrets(template: dict[str, Any]) -> list[Any]:
    """The secrets that may be read."""
    (secrets,) = [statement for statement in _statements(template) if _prefixes(statement) == {"secretsmanager"}]
    assert secrets["Action"] == "secretsmanager:GetSecretValue"
    return as_list(secrets["Resource"])


def _prefixes(statement: dict[str, Any]) -> set[str]:
    return {action.split(":")[0] for action in as_list(statement["Action"])}


def _referred_to(resource: Any) -> list[str]:
    """The names that an expression for a resource's ARN refers to; a text, a wildcard included, is none."""
    match resource:
        case {"Ref": "AWS::NoValue"}:
            return []
        case {"Ref": str(name)}:
            return [name]
        case {"Fn::GetAtt": str(path)} if path.endswith(".Arn"):
            return [path.removesuffix(".Arn")]
        case {"Fn::If": [_, yes, no]}:
            return _referred_to(yes) + _referred_to(no)
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
        assert all("LogGroup" in function["Properties"]["LoggingConfig"] for function in _functions(template))
        for api in of_type(template, "AWS::Serverless::HttpApi").values():
            group = api["Properties"]["AccessLogSettings"]["DestinationArn"]["Fn::GetAtt"].removesuffix(".Arn")
            assert group in of_type(template, "AWS::Logs::LogGroup")

    def test_hold_no_message(self, template: dict[str, Any]) -> None:
        """Access logs say that a request came, and nothing of its headers, body or caller's address."""
        for api in of_type(template, "AWS::Serverless::HttpApi").values():
            text = api["Properties"]["AccessLogSettings"]["Format"]
            assert "sourceIp" not in text
            assert "authorizer" not in text


def _functions(template: dict[str, Any]) -> list[Resource]:
    return list(of_type(template, "AWS::Serverless::Function").values())


def _variables(template: dict[str, Any]) -> dict[str, Any]:
    return template["Resources"]["ChatFunction"]["Properties"]["Environment"]["Variables"]


class TestSigningSecret:
    def test_is_made_unless_it_is_given(self, template: dict[str, Any]) -> None:
        """Without a parameter the template makes a random secret; with one it makes none."""
        assert of_type(render(template, SigningSecretArn=SECRET), "AWS::SecretsManager::Secret") == {}
        (secret,) = of_type(render(template), "AWS::SecretsManager::Secret").values()
        assert secret["Properties"]["GenerateSecretString"]["PasswordLength"] >= 32

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


class TestIdentityModes:
    def test_are_the_sources_of_the_function(self, template: dict[str, Any]) -> None:
        """Every identity source that an HTTP API can prove is offered, none that it cannot; the default is `token`."""
        parameter = template["Parameters"]["IdentityMode"]
        unproven = {"cognito", "header"}  # of REST APIs, and the client's own word
        assert set(parameter["AllowedValues"]) == set(MODES) == set(get_args(IdentitySource)) - unproven
        assert parameter["Default"] == "token"

    def test_tell_the_function_whom_to_believe(self, deployed: dict[str, Any], mode: str) -> None:
        """The function believes the mode's source and no other."""
        assert _variables(deployed)["IDENTITY_SOURCES"] == mode

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
        events = [event for function in _functions(template) for event in function["Properties"]["Events"].values()]
        assert {event["Type"] for event in events} == {"HttpApi"}
        assert all("Auth" not in event["Properties"] for event in events)
        routes = [(event["Properties"]["Path"], event["Properties"]["Method"].lower()) for event in events]
        assert sorted(routes) == sorted(route for route, _ in _operations(template))
        assert all("FunctionUrlConfig" not in function["Properties"] for function in _functions(template))
        assert of_type(template, "AWS::Lambda::Url") == {}

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
        names = set(_names(deployed))
        assert "ChatRole" in names
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
        ],
    )
    def test_take_no_nonsense(self, template: dict[str, Any], name: str, value: str) -> None:
        """A value that no authorizer could work with is refused before anything is deployed."""
        assert name in refusals(template, **{name: value})


def _operations(template: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Resource]]:
    """Path and method, and what the API's definition says of them."""
    for api in of_type(template, "AWS::Serverless::HttpApi").values():
        for path, methods in api["Properties"]["DefinitionBody"]["paths"].items():
            for method, operation in methods.items():
                yield (path, method), operation


def _schemes(template: dict[str, Any]) -> dict[str, Any]:
    return template["Resources"]["Api"]["Properties"]["DefinitionBody"]["components"]["securitySchemes"]


def _names(value: Any) -> Iterator[str]:
    """The names that anything in the value refers to."""
    match value:
        case {"Ref": str(name)}:
            yield name
        case {"Fn::GetAtt": str(path)}:
            yield path.split(".")[0]
        case {"Fn::Sub": str(text)}:
            yield from (name.split(".")[0] for name in re.findall(r"\$\{([^}]+)\}", text))
        case dict():
            for item in value.values():
                yield from _names(item)
        case list():
            for item in value:
                yield from _names(item)
