"""What template.yaml promises, read from the file itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import memory.table
from memory.table import TABLE_SCHEMA

TEMPLATE = Path(__file__).parent.parent / "template.yaml"
API_TIMEOUT_SECONDS = 30  # API Gateway's, for HTTP APIs; it cannot be raised

Resource = dict[str, Any]


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
        assert variables["SIGNING_SECRET_ARN"] == {
            "Fn::If": ["MakeSigningSecret", {"Ref": "SigningSecret"}, {"Ref": "SigningSecretArn"}]
        }
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

    def test_open_two_secrets(self, statements: list[dict[str, Any]]) -> None:
        """The function reads the OpenAI key and the signing secret, and no other secret."""
        (secrets,) = [statement for statement in statements if _prefixes(statement) == {"secretsmanager"}]
        assert secrets["Action"] == "secretsmanager:GetSecretValue"
        assert secrets["Resource"] == [
            {"Ref": "OpenAiKeySecretArn"},
            {"Fn::If": ["MakeSigningSecret", {"Ref": "SigningSecret"}, {"Ref": "SigningSecretArn"}]},
        ]

    def test_come_from_nowhere_else(self, template: dict[str, Any], chat: Resource) -> None:
        """No managed policy, and none that SAM would add, widens what the statements allow."""
        assert "Policies" not in chat
        assert all(
            "ManagedPolicyArns" not in role["Properties"] for role in of_type(template, "AWS::IAM::Role").values()
        )


def _prefixes(statement: dict[str, Any]) -> set[str]:
    return {action.split(":")[0] for action in as_list(statement["Action"])}


def _referred_to(resource: Any) -> list[str]:
    """The names that an expression for a resource's ARN refers to; a text, a wildcard included, is none."""
    match resource:
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


class TestSigningSecret:
    def test_is_made_unless_it_is_given(self, template: dict[str, Any]) -> None:
        """Without a parameter the template makes a random secret; with one it makes none."""
        secret = template["Resources"]["SigningSecret"]
        assert secret["Condition"] == "MakeSigningSecret"
        assert template["Conditions"]["MakeSigningSecret"] == {"Fn::Equals": [{"Ref": "SigningSecretArn"}, ""]}
        assert secret["Properties"]["GenerateSecretString"]["PasswordLength"] >= 32

    def test_outlives_the_stack_as_the_table_does(self, template: dict[str, Any], table: Resource) -> None:
        """Whoever keeps the conversations keeps what proves whose they are."""
        secret = template["Resources"]["SigningSecret"]
        assert (secret["DeletionPolicy"], secret["UpdateReplacePolicy"]) == (
            table["DeletionPolicy"],
            table["UpdateReplacePolicy"],
        )
